"""`difftool info`: what a run or a model file is."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from difftool.cli.console import help_text, result_json, stdout
from difftool.errors import BadFile, printable

if TYPE_CHECKING:
    from difftool.runs.folder import RunFolder

DEEPEST = 4
"""Levels of nesting that are printed."""
MOST = 12
"""Entries of a list that are printed."""


def info(
    target: Annotated[
        Path | None,
        typer.Argument(metavar="RUN", help=help_text("A run folder or a model file.", "default: the newest run")),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say what a run or a model file is: how far, how good, made of what, and whether its files are whole."""
    facts = describe(target)
    if json:
        result_json(facts)
        return
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts.items():
        rows = value if isinstance(value, list) and value and isinstance(value[0], dict) else [value]
        for i, row in enumerate(rows):
            table.add_row("" if i else name.replace("_", " "), escape(printable(_words(row))))
    stdout().print(table)


def add_to(app: typer.Typer) -> None:
    app.command()(info)


def describe(target: Path | None) -> dict[str, Any]:
    """The facts of a run folder, a model file or a training state."""
    from difftool.runs.checkpoint import load
    from difftool.runs.folder import all_runs, open_run

    if target is None:
        runs = all_runs()
        target = runs[0].path if runs else find_nothing()
    return {"file": str(target), **_facts(*load(target))} if not target.is_dir() else _run(open_run(target))


def _run(run: RunFolder) -> dict[str, Any]:
    config = {k: v for k, v in run.read_config().items() if isinstance(v, dict)}
    status = run.status()
    facts: dict[str, Any] = {"run": str(run.path), **config.pop("run", {}), **asdict(status)}
    if rows := run.read_metrics():
        last = rows[-1]
        facts["progress"] = {k: last.get(k) for k in ("step", "samples", "elapsed", "steps_per_second")}
        facts["loss"] = {k: last[k] for k in ("loss", "loss_quartiles", "held_out_loss") if k in last}
    plugins = config.pop("plugins", {})
    facts |= config
    facts["plugins"] = {name: _version(name, version) for name, version in plugins.items()}
    states = (_state(path) for path in (*run.saved_states(), *run.damaged_states()))
    facts["states"] = [state for state in states if state is not None]
    facts["model"] = _model(run.model)
    if status.status == "stopped":
        facts["go_on"] = f"difftool train --resume {shlex.quote(str(run.path))}"
    return facts


def _state(path: Path) -> dict[str, Any] | None:
    """A training state, whole or not; None where the run that is being trained has just put another in its place."""
    from difftool.training.state import check

    try:
        size = path.stat().st_size
    except FileNotFoundError:
        return None
    problem = check(path)
    return {
        "file": path.name,
        "mebibytes": round(size / 2**20, 2),
        "valid": not problem,
        **({"problem": problem} if problem else {}),
    }


def _model(path: Path) -> dict[str, Any] | None:
    """The model of a run, whole or not; a damaged one is a fact of the run like others."""
    from difftool.runs.checkpoint import load

    if not path.exists():
        return None
    try:
        return {"file": str(path), "valid": True, **_facts(*load(path), brief=True)}
    except BadFile as error:
        return {"file": str(path), "valid": False, "problem": str(error)}


def _version(distribution: str, recorded: str) -> str:
    """The version that a package had, and has now where that is another."""
    try:
        now = metadata.version(distribution)
    except (metadata.PackageNotFoundError, ValueError):
        return f"{recorded} (not installed)"
    return recorded if now == recorded else f"{recorded} (now {now})"


def find_nothing() -> Path:
    from difftool.runs.folder import find_model

    return find_model(None)[0]


def _facts(tensors: dict[str, Any], document: dict[str, Any], *, brief: bool = False) -> dict[str, Any]:
    facts = {
        "kind": document.get("kind"),
        "weights": document.get("weights"),
        "step": document.get("step"),
        "parameters": sum(t.numel() for t in tensors.values()),
    }
    rest = {} if brief else {k: v for k, v in document.items() if k not in facts and k != "format"}
    return {k: v for k, v in {**facts, **rest}.items() if v is not None}


def _words(value: Any, depth: int = 0) -> str:
    if depth > DEEPEST:
        return "..."
    if value is None:
        return "-"
    if isinstance(value, dict):
        return ", ".join(f"{k.replace('_', ' ')} {_words(v, depth + 1)}" for k, v in value.items() if v is not None)
    if isinstance(value, list):
        shown = [_words(v, depth + 1) for v in value[:MOST]]
        return " ".join([*shown, *(["..."] if len(value) > MOST else [])]) or "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
