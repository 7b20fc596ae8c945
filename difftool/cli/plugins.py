"""`difftool plugins`: the packages that bring components, the cost of importing them, and why any was set aside."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from typing import Annotated, Any

import typer
from rich.table import Column

from difftool.cli.console import add_row, new_table, plain, result_json, stdout
from difftool.cli.parameters import AsJson
from difftool.components import KINDS
from difftool.errors import DifftoolError
from difftool.plugins.discovery import ALLOW, DENY, names_in
from difftool.plugins.loading import Plugin
from difftool.plugins.registry import Registry, registry
from difftool.scripts import short

SLOW = 0.2
"""The duration of an import in seconds from which it is shown as such and not in milliseconds."""


def plugins(
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 if a plugin was set aside.")] = False,
    json: AsJson = False,
) -> None:
    """List the plugins found, what they provide and cost, and why any was set aside."""
    found = registry()
    if json:
        result_json({"plugins": [_as_json(p) for p in found.plugins], "left_out": list(found.left_out)})
    else:
        _print(found)
    if strict and (aside := found.set_aside):
        were = "plugins were" if len(aside) > 1 else "plugin was"
        raise DifftoolError(f"{len(aside)} {were} set aside: {', '.join(p.identity for p in aside)}")


def add_to(app: typer.Typer) -> None:
    app.command()(plugins)


def _print(found: Registry) -> None:
    console = stdout()
    table = new_table(*(Column(heading, overflow="fold") for heading in ("plugin", "version", "import", "provides")))
    plugins_of = Counter(p.distribution for p in found.plugins)
    for p in found.plugins:
        names = {kind: sorted(c.name for c in p.components if c.kind == kind) for kind in KINDS}
        provides = "; ".join(f"{kind}: {', '.join(some)}" for kind, some in names.items() if some)
        cost = f"{p.seconds:.2f} s" if p.seconds > SLOW else f"{1000 * p.seconds:.1f} ms"
        add_row(
            table,
            p.identity if plugins_of[p.distribution] > 1 else p.distribution,
            p.version if p.script is None else short(p.version),
            f"{cost}, imports torch" if p.imports_torch else cost,
            provides or "-",
        )
    console.print(table)
    for heading, identity, text, cure in _findings(found):
        rows = f"[bold]{heading}[/bold] {plain(identity)}: {plain(text)}"
        rows += f"\n  [bold]cure[/bold]: {plain(cure)}" if cure else ""
        console.print(rows, soft_wrap=True)  # a terminal may break lines, but a command must stay whole


def _findings(found: Registry) -> Iterator[tuple[str, str, str, str]]:
    """Yield (heading, plugin, problem, cure) for everything that needs attention."""
    for p in found.plugins:
        for problem in p.problems:
            yield "set aside", p.identity, problem.reason, problem.cure
        if p.imports_torch and p.script is None:
            cost = f"imports torch when it is loaded: every command, and each --help, waits {p.seconds:.1f} s for it"
            yield "slow", p.identity, cost, "import torch inside the methods that need it"
    for identity in found.left_out:
        yield "left out", identity, f"by {ALLOW} or {DENY}", ""
    identities = {*(p.identity for p in found.plugins), *found.left_out}
    installed = identities | {identity.partition(":")[0] for identity in identities}
    for variable in (ALLOW, DENY):
        for name in sorted(names_in(os.environ.get(variable, "")) - installed):
            yield "unknown", name, f"{variable} names it, but it is not installed", ""


def _as_json(p: Plugin) -> dict[str, Any]:
    provides: dict[str, list[str]] = {}
    for component in p.components:
        provides.setdefault(component.plural(), []).append(component.name)
    return {
        "plugin": p.identity,
        "distribution": p.distribution,
        "version": p.version,
        "import_seconds": round(p.seconds, 4),
        "imports_torch": p.imports_torch,
        "provides": provides,
        "problems": [{"reason": problem.reason, "cure": problem.cure} for problem in p.problems],
    }
