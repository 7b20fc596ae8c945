"""`difftool check`: hold components, or all that a package brings, to the laws of their kinds."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from difftool.cli.command import component_command, given_values
from difftool.cli.console import bar, result, result_json, stdout
from difftool.cli.flags import Group, flag_of, make_from_flags, text_of
from difftool.components import KINDS, Component
from difftool.errors import DifftoolError, InvalidOption, PluginFailure, UnknownComponent, UsageError, printable
from difftool.options import fields, options_of, suggestion
from difftool.plugins.discovery import distribution_name
from difftool.plugins.loading import Plugin
from difftool.plugins.registry import registry

if TYPE_CHECKING:
    from difftool.testing import Finding

STYLES = {"kept": "green", "broken": "bold red", "not asked": "dim"}


def _choose(_ctx: typer.Context, _params: dict[str, Any], args: list[str]) -> Sequence[Group]:
    """Names are positionals, which a lenient pass cannot tell from values: take every argument that is one."""
    classes = dict.fromkeys(cls for name in args for cls in _components(name))
    kinds = {cls.kind: [c for c in classes if c.kind == cls.kind] for cls in classes}
    return [Group.of(*some) for some in kinds.values()]


def check(
    ctx: typer.Context,
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME...",
            autocompletion=lambda incomplete: [name for name in _known() if name.startswith(incomplete)],
            help="A component, such as ddim, or a package, such as difftool-digits, with all it brings.",
        ),
    ],
    shape: Annotated[
        str | None,
        typer.Option(metavar="C,H,W", help="Items to ask a backbone with, where usual ones do not fit."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Prove that components keep the laws of their kind: how far each holds, and a verdict.

    The laws are those of [bold]difftool.testing[/bold], which a package's own tests can ask too; docs/plugins.md lists
    them. Exits with 1 where one is broken.
    """
    given = given_values(ctx)
    sizes = _shape(shape)
    cases = [case for name in dict.fromkeys(names) for case in _cases(name, given, sizes)]
    from difftool.testing.examine import laws_of
    from difftool.testing.plugins import LAWS

    total = sum(len(LAWS if case.kind == "plugin" else laws_of(case.kind)) for case in cases)
    found: list[tuple[_Case, list[Finding]]] = []
    with bar("checking", total) as shown:
        for case in cases:
            found.append((case, findings := []))
            for finding in case.examine():
                findings.append(finding)
                shown.update(sum(len(some) for _, some in found), f"{case.kind} {case.name}: {finding.law}")
    broken = [(case, finding) for case, findings in found for finding in findings if finding.broken]
    if json:
        result_json(_as_json(found))
    else:
        _print(found)
    if broken:
        laws = f"{len(broken)} law{'s are' if len(broken) > 1 else ' is'} broken"
        first, law = broken[0]
        raise DifftoolError(f"{laws}: {first.kind} {first.name} {law.law}{', ...' if len(broken) > 1 else ''}")


def add_to(app: typer.Typer) -> None:
    app.command(cls=component_command(_choose))(check)


@dataclass(frozen=True)
class _Case:
    """What is held to laws: a component, or a plugin as a whole."""

    kind: str
    name: str
    package: str
    examine: Callable[[], Iterator[Finding]]


def _cases(name: str, given: Mapping[str, Mapping[str, Any]], shape: tuple[int, ...] | None) -> Iterator[_Case]:
    """The plugins of a package and all their components, or the components of that name. Raises `UsageError`."""
    from difftool.testing.examine import examine
    from difftool.testing.laws import Finding
    from difftool.testing.plugins import examine_plugin

    plugins = _plugins(name)
    for plugin in plugins:
        yield _Case("plugin", plugin.identity, _package(plugin), partial(examine_plugin, plugin))
    for cls in _components(name):
        owner = registry().owner(cls)
        package = "" if owner is None else _package(owner)
        about = {"shape": shape} if cls.kind == "backbone" and shape else {}
        try:
            component = make_from_flags(cls, options_of(cls, given.get(cls.kind, {})))
        except InvalidOption as error:
            if not plugins:
                raise
            reason = Finding("keeps the laws of its kind", "not asked", f"{error}; check {cls.name} by itself")
            yield _Case(cls.kind, cls.name, package, partial(iter, [reason]))
            continue
        yield _Case(cls.kind, _titled(component), package, partial(examine, component, **about))
    if not plugins and not _components(name):
        for kind in KINDS:  # one that was set aside says why
            with contextlib.suppress(UnknownComponent):
                registry().get(kind, name)
        known = _known()
        raise UsageError(
            f"there is no component or package called {name!r}{suggestion(name, known)}{registry().missing_note()}"
        )


def _titled(component: Component) -> str:
    """Its name, and the options that it was given."""
    defaults = {f.name: f.default for f in fields(type(component))}
    values = {f.name: getattr(component, f.name) for f in fields(type(component))}
    given = [f"{flag_of(type(component), n)} {text_of(v)}" for n, v in values.items() if v != defaults[n]]
    return " ".join([component.name, *given])


def _plugins(name: str) -> list[Plugin]:
    """The plugins of a package, or the one of that identity."""
    wanted = distribution_name(name)
    return [p for p in registry().plugins if wanted in (p.distribution, p.identity)]


def _components(name: str) -> list[type[Component]]:
    """All that a package brings, or else the components of that name, of whatever kind."""
    if plugins := _plugins(name):
        return [component for plugin in plugins for component in plugin.components]
    found = []
    for kind in KINDS:
        with contextlib.suppress(UnknownComponent, PluginFailure):
            found.append(registry().get(kind, name))
    return found


def _known() -> list[str]:
    names = [name for kind in KINDS for name in registry().names(kind)]
    return sorted({*names, *(p.distribution for p in registry().plugins)})


def _package(plugin: Plugin) -> str:
    return f"{plugin.distribution} {plugin.version}"


def _shape(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        shape = tuple(int(part) for part in text.split(","))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1 or len(shape) > 4:
        raise UsageError(f"--shape: must be one to four numbers from 1 on, such as 3,64,64, not {text!r}")
    return shape


def _print(found: Sequence[tuple[_Case, list[Finding]]]) -> None:
    console = stdout()
    counts = dict.fromkeys(STYLES, 0)
    for case, findings in found:
        title = f"{case.kind} {case.name}{f' ({case.package})' if case.package else ''}"
        table = Table(
            title=escape(printable(title)), title_justify="left", title_style="bold", box=None, pad_edge=False
        )
        for heading, fixed in (("", True), ("law", True), ("measured", False)):
            table.add_column(heading, no_wrap=fixed, overflow="fold")
        for finding in findings:
            counts[finding.verdict] += 1
            verdict = f"[{STYLES[finding.verdict]}]{finding.verdict}[/]"
            table.add_row(verdict, escape(finding.law), escape(printable(finding.measured)))
        console.print(table)
        console.print()
    result(f"{counts['kept']} laws kept, {counts['broken']} broken, {counts['not asked']} not asked")


def _as_json(found: Sequence[tuple[_Case, list[Finding]]]) -> dict[str, Any]:
    return {
        "verdict": "broken" if any(f.broken for _, findings in found for f in findings) else "kept",
        "checked": [
            {
                "kind": case.kind,
                "name": case.name,
                "package": case.package,
                "laws": [{"law": f.law, "verdict": f.verdict, "measured": f.measured} for f in findings],
            }
            for case, findings in found
        ],
    }
