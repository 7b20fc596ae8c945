"""The page of all components, docs/components.md, and a page for each kind with all options of its built-ins."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import typer

from difftool.cli.flags import Group, compile_options, text_of
from difftool.components import KINDS, Component
from difftool.options import dashed, fields
from difftool.plugins.registry import registry
from website.markdown import fenced, paragraphs, plain, table
from website.options import options_table

LAWS = {"schedule": "a-noise-schedule", "weighting": "a-loss-weighting", "features": "a-set-of-features"}
"""The headings of docs/laws.md that differ from the kind."""
CONTRACTS = dict.fromkeys(("prediction", "weighting", "timestep-sampling"), "predictions-weightings-timestep-samplings")
"""The headings of docs/plugin-kinds.md that are not the plural of the kind."""


def overview(linked: Callable[[type[Component]], str] | None = None) -> str:
    """Return the page of all built-in components. `linked` gives a line for each kind that leads further."""
    lines = [
        "# Components",
        "",
        "Everything that difftool can be given by name, one table a kind. `difftool list` prints the same, with",
        "everything installed from other packages. An option such as `eta` of a sampler is set by `--sampler.eta`.",
    ]
    for kind, base in KINDS.items():
        lines += ["", f"## {title(base)}", "", summary(base), *_choice(base)]
        if linked is not None:
            lines += ["", linked(base)]
        lines += ["", f"| {kind} | what it is | options |", "|---|---|---|"]
        for cls in built_in(base):
            options = ", ".join(f"`{f.flag}`" for f in fields(cls))
            lines.append(f"| `{cls.name}` | {summary(cls)} | {options} |")
    return "\n".join(lines) + "\n"


def page(base: type[Component]) -> str:
    """Return the page of a kind: its built-in components with their options."""
    anchor = LAWS.get(base.kind, f"a{'n' if base.kind[0] in 'aeiou' else ''}-{base.kind}")
    contract = CONTRACTS.get(base.kind, base.plural())
    lines = [f"# {title(base)}", "", summary(base), *_choice(base, "[`{0}`](/commands/{0}.md)")]
    lines += ["", f"A plugin brings further ones: what they [receive and return](/plugin-kinds.md#{contract}), and the"]
    lines += [f"[laws](/laws.md#{anchor}) that hold for all of them."]
    found = built_in(base)
    lines += ["", table((base.kind, "what it is"), ((f"[`{c.name}`](#{c.name})", plain(_first(c))) for c in found))]
    for cls in found:
        lines += ["", f"## {cls.name}", "", paragraphs(cls.__doc__)]
        lines += ["", fenced("bash", f"difftool {base.commands[0]} {cls.chosen_by()}")] if base.flag else []
        if suggested := getattr(cls, "training_defaults", {}):
            flags = ", ".join(f"`--{dashed(name)}` {text_of(value)}" for name, value in suggested.items())
            lines += ["", f"Defaults of training beside it: {flags}."]
        options = options_table(compile_options([_group(base, cls)]), typer.Context(_STUB))
        lines += ["", options] if options else []
    return "\n".join(lines) + "\n"


def built_in(base: type[Component]) -> list[type[Component]]:
    """Return the components of a kind that come with difftool."""
    return [cls for cls in registry().all_of(base) if (owner := registry().owner(cls)) and owner.built_in]


def title(base: type[Component]) -> str:
    return base.plural().replace("-", " ").capitalize()


def summary(cls: type[Component]) -> str:
    """Return the first paragraph of what is said of a kind or a component, as a cell of a table."""
    return _first(cls).replace("|", "\\|")


def _first(cls: type[Component]) -> str:
    return " ".join((inspect.getdoc(cls) or "").partition("\n\n")[0].split())


def _choice(base: type[Component], command: str = "`{0}`") -> list[str]:
    """Return how a component of the kind is chosen, and where."""
    if base.flag is None:
        return []
    several = ", as often as you like" if base.several else ""
    commands = ", ".join(command.format(name) for name in base.commands)
    return ["", f"Chosen by `{base.flag} NAME`{several}, in {commands}. Default: {base.default or 'none'}."]


def _group(base: type[Component], cls: Any) -> Group:
    return Group.of_command(cls) if base.kind == "command" else Group.of(cls)


_STUB: Any = typer.main.get_command(typer.Typer(callback=lambda: None, invoke_without_command=True))
"""The command of the context in which options are described."""
