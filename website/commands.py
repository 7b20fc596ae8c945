"""A page for each command: its help, its options, and commands on other pages that use it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import typer
from rich.text import Text

from difftool.cli.app import app
from difftool.components import KINDS
from website import contents
from website.markdown import fenced, plain, table
from website.options import options_table
from website.places import MARKUP, page_of

MOST_PAGES, MOST_LINES = 6, 3
"""Pages from which examples of a command are taken, and commands of each."""


@dataclass(frozen=True)
class Command:
    """A command, and the context in which its parameters are known."""

    name: str
    command: Any
    context: Any

    @property
    def summary(self) -> str:
        """The first line of its help."""
        return Text.from_markup(self.command.help).plain.partition("\n")[0]

    @property
    def panels(self) -> dict[str, list[Any]]:
        """The parameters by the panels of the help, but for the options of components."""
        found: dict[str, list[Any]] = {}
        for one in self.command.get_params(self.context):
            argument = one.param_type_name == "argument"
            if argument or not any("." in flag or flag == "--help" for flag in one.opts):
                title = "Arguments" if argument else one.rich_help_panel or "Options"
                found.setdefault(title, []).append(one)
        return {title: found[title] for title in sorted(found, key=_order)}


def _order(title: str) -> int:
    return ("Arguments", "Options").index(title) if title in ("Arguments", "Options") else 2


def commands() -> list[Command]:
    """Return all commands that come with difftool, in the order of its help."""
    root: Any = typer.main.get_command(app)
    return [
        _command(root, name) for name in root.list_commands(root.make_context("difftool", [], resilient_parsing=True))
    ]


def _command(root: Any, listed: str) -> Command:
    context = root.make_context("difftool", [], resilient_parsing=True)  # which keeps the options of one command
    name, command, _ = root.resolve_command(context, [listed])
    return Command(name, command, command.make_context(name, [], parent=context, resilient_parsing=True))


def page(one: Command, examples: Mapping[str, Sequence[tuple[str, str]]]) -> str:
    """Return the page of a command."""
    _, *more = Text.from_markup(re.sub(r"\[bold\](.+?)\[/bold\]", r"`\1`", one.command.help)).plain.split("\n")
    usage = one.command.get_usage(one.context).removeprefix("Usage: ")
    lines = [f"# difftool {one.name}", "", plain(one.summary), "", fenced("text", " ".join(usage.split()))]
    lines += ["", *map(plain, more), ""] if any(more) else []
    links = {base.flag: f"/kinds/{base.plural()}.md" for base in KINDS.values() if base.flag}
    kinds = [base for base in KINDS.values() if one.name in base.commands]
    for title, parameters in one.panels.items():
        if shown := options_table(parameters, one.context, links):
            lines += ["", f"## {title}", "", shown]
    if kinds:
        names = ", ".join(f"[{base.plural().replace('-', ' ')}](/kinds/{base.plural()}.md)" for base in kinds)
        lines += ["", f"Each component brings options of its own, such as `{kinds[0].flag}.NAME`: {names}."]
    if suggesting := [base for base in kinds if hasattr(base, "training_defaults")]:
        where = f"[{suggesting[0].kind}](/kinds/{suggesting[0].plural()}.md)"
        lines += ["", f"A {where} may suggest other defaults of training; those above are beside the default one."]
    if found := examples.get(one.name):
        lines += ["", "## Examples"]
        for file, text in found:
            lines += ["", f"From [{title_of(file)}](/{page_of(file)}.md):", "", fenced("bash", text)]
    return "\n".join(lines) + "\n"


def overview(found: Sequence[Command]) -> str:
    """Return the page that lists all commands."""
    rows = [(f"[`{one.name}`](/commands/{one.name}.md)", plain(one.summary)) for one in found]
    return f"# Commands\n\n{table(('command', 'what it does'), rows)}\n"


def examples() -> dict[str, list[tuple[str, str]]]:
    """Return commands on the pages of the checkout, by the command: the file, and a few of its commands."""
    found: dict[str, list[tuple[str, str]]] = {}
    for file in ("README.md", *contents.listed()):
        by_name: dict[str, list[str]] = {}
        for command in commands_of(contents.read(file)) if file.endswith(".md") else ():
            by_name.setdefault(command.split()[1], []).append(command)
        for name, lines in by_name.items():
            if len(found.setdefault(name, [])) < MOST_PAGES:
                found[name].append((file, "\n".join(dict.fromkeys(lines[:MOST_LINES]))))
    return found


def commands_of(text: str) -> Iterator[str]:
    """Yield the commands of difftool in the console blocks of a page, each with the lines on which it goes on."""
    for match in MARKUP.finditer(text):
        if match["language"] == "console":
            yield from re.findall(r"^(?:\$ )?(difftool \w(?:.*\\\n)*.*)", match["code"], re.MULTILINE)


def title_of(file: str) -> str:
    """Return the title of a page."""
    title = re.search(r"^# (.+)", contents.read(file), re.MULTILINE)
    return title[1] if title else file
