"""`difftool check`: check components, or everything in a package, against the laws of their kinds."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Column

from difftool.cli.command import component_command, given_values
from difftool.cli.console import new_table, plain, progress, result, result_json, stdout
from difftool.cli.flags import Group, flag_of, make_from_flags, text_of
from difftool.cli.parameters import AsJson
from difftool.components import KINDS, Backbone, Codec, Component
from difftool.errors import DifftoolError, InvalidOption, PluginFailure, UnknownComponent, UsageError, counted
from difftool.options import Options, fields, option, options_of, suggestion
from difftool.plugins.discovery import distribution_name
from difftool.plugins.loading import Plugin
from difftool.plugins.registry import registry

if TYPE_CHECKING:
    from difftool.testing import Finding

LARGEST_ITEM = 2**22
"""The most numbers in an item that is checked with, such as four images of 3x512x512."""
STYLES = {"passed": "green", "failed": "bold red", "skipped": "dim"}


class Checking(Options):
    """The settings of a check."""

    shape: tuple[int, ...] | None = option(
        default=None, ge=1, le=4096, help="C,H,W or D: shape of the items that backbones and codecs are checked with"
    )

    def __post_init__(self) -> None:
        if self.shape is not None and not 1 <= len(self.shape) <= 4:
            raise ValueError("shape: must be one to four numbers, such as 3,64,64")
        if self.shape is not None and math.prod(self.shape) > LARGEST_ITEM:
            raise ValueError(f"shape: an item may have at most {LARGEST_ITEM:,} numbers, not {math.prod(self.shape):,}")


def _choose(_ctx: typer.Context, _params: dict[str, Any], args: list[str]) -> Sequence[Group]:
    """Return the options of the named components.

    A first, lenient pass over the arguments cannot tell names from values, so every argument that is a name counts.
    """
    classes = dict.fromkeys(cls for name in args for cls in _components(name))
    kinds = {cls.kind: [c for c in classes if c.kind == cls.kind] for cls in classes}
    return [*(Group.of(*some) for some in kinds.values()), Group("check", (Checking,), "Check")]


def check(
    ctx: typer.Context,
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME...",
            autocompletion=lambda incomplete: [name for name in _names() if name.startswith(incomplete)],
            help="A component, such as ddim, or a package, such as difftool-digits.",
        ),
    ],
    json: AsJson = False,
) -> None:
    """Check components against the laws of their kind.

    The laws are those of [bold]difftool.testing[/bold], for use in the tests of a package; docs/laws.md lists them.
    For each law, the command prints a verdict and what was measured. It exits with 1 if a law fails.
    """
    values = given_values(ctx)
    settings: Checking = make_from_flags(Checking, values["check"])
    cases = [case for name in dict.fromkeys(names) for case in _cases(name, values, settings.shape)]
    from difftool.testing.examine import PLUGIN_LAWS, laws_of

    total = sum(len(PLUGIN_LAWS if case.kind == "plugin" else laws_of(case.kind)) for case in cases)
    with progress("checking", total) as bar:
        for case in cases:
            for finding in case.examine():
                case.findings.append(finding)
                bar.update(sum(len(c.findings) for c in cases), f"{case.kind} {case.name}: {finding.law}")
    failures = [f"{case.kind} {case.name} {f.law}" for case in cases for f in case.findings if f.failed]
    if json:
        result_json({"verdict": "failed" if failures else "passed", "checked": [_as_json(case) for case in cases]})
    else:
        _print(cases)
    if failures:
        more = ", ..." if len(failures) > 1 else ""
        raise DifftoolError(f"{counted(len(failures), 'law')} failed: {failures[0]}{more}")


def add_to(app: typer.Typer) -> None:
    app.command(cls=component_command(_choose))(check)


@dataclass
class _Case:
    """A component, or a plugin as a whole, that is checked, and what was found."""

    kind: str
    name: str
    package: str
    examine: Callable[[], Iterator[Finding]]
    findings: list[Finding] = field(default_factory=list)


def _cases(name: str, values: Mapping[str, Mapping[str, Any]], shape: tuple[int, ...] | None) -> Iterator[_Case]:
    """Yield the plugins of a package and their components, or the components of this name. Raises `UsageError`."""
    from difftool.testing.examine import examine, examine_plugin
    from difftool.testing.laws import Finding

    plugins, components = _plugins(name), _components(name)
    for plugin in plugins:
        yield _Case("plugin", plugin.identity, plugin.label, partial(examine_plugin, plugin))
    for cls in components:
        owner = registry().owner(cls)
        package = "" if owner is None else owner.label
        try:
            component = make_from_flags(cls, options_of(cls, values.get(cls.kind, {})))
        except InvalidOption as error:
            if not plugins:
                raise
            reason = Finding("can be checked", "skipped", f"{error}; check {cls.name} by itself")
            yield _Case(cls.kind, cls.name, package, partial(iter, [reason]))
            continue
        item_shape = shape if cls.kind in (Backbone.kind, Codec.kind) else None
        yield _Case(cls.kind, _title(component), package, partial(examine, component, shape=item_shape))
    if not plugins and not components:
        for kind in KINDS:  # raises the reason for a component that was set aside
            with contextlib.suppress(UnknownComponent):
                registry().get(kind, name)
        raise UsageError(
            f"there is no component or package called {name!r}{suggestion(name, _names())}{registry().missing_note()}"
        )


def _title(component: Component) -> str:
    """Return the component's name, with the options that differ from their defaults."""
    values = [(f, getattr(component, f.name)) for f in fields(type(component))]
    changed = [f"{flag_of(type(component), f.name)} {text_of(value)}" for f, value in values if value != f.default]
    return " ".join([component.name, *changed])


def _plugins(name: str) -> list[Plugin]:
    """Return the plugins of a package, or the one with this identity, which may be a script."""
    wanted = {name, distribution_name(name)}
    return [p for p in registry().plugins if wanted & {p.distribution, p.identity}]


def _components(name: str) -> list[type[Component]]:
    """Return the components of a package, or the components of this name, whatever their kind."""
    if plugins := _plugins(name):
        return [component for plugin in plugins for component in plugin.components]
    components = []
    for kind in KINDS:
        with contextlib.suppress(UnknownComponent, PluginFailure):
            components.append(registry().get(kind, name))
    return components


def _names() -> list[str]:
    """Return the names of all components and packages."""
    names = [name for kind in KINDS for name in registry().names(kind)]
    return sorted({*names, *(p.distribution for p in registry().plugins)})


def _print(cases: Sequence[_Case]) -> None:
    console = stdout()
    counts = dict.fromkeys(STYLES, 0)
    for case in cases:
        title = f"{case.kind} {case.name}{f' ({case.package})' if case.package else ''}"
        table = new_table(
            Column(no_wrap=True),
            Column("law", no_wrap=True, overflow="fold"),
            Column("measured", overflow="fold"),
            title=title,
        )
        for finding in case.findings:
            counts[finding.verdict] += 1
            verdict = f"[{STYLES[finding.verdict]}]{finding.verdict}[/]"
            table.add_row(verdict, plain(finding.law), plain(finding.measured))
        console.print(table, "")
    result(", ".join(f"{count} {verdict}" for verdict, count in counts.items()))


def _as_json(case: _Case) -> dict[str, Any]:
    laws = [{"law": f.law, "verdict": f.verdict, "measured": f.measured} for f in case.findings]
    return {"kind": case.kind, "name": case.name, "package": case.package, "laws": laws}
