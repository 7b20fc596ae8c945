"""`difftool info`: what a run or a model file is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from difftool.cli.console import result_json
from difftool.errors import printable
from difftool.options import help_text

DEEPEST = 4
"""Levels of nesting that are printed."""


def info(
    target: Annotated[
        Path | None,
        typer.Argument(metavar="RUN", help=help_text("A run folder or a model file.", "default: the newest run")),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say what a run or a model file is: settings, progress, loss, plugins."""
    facts = describe(target)
    if json:
        result_json(facts)
        return
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts.items():
        table.add_row(name.replace("_", " "), escape(printable(_words(value))))
    Console(highlight=False).print(table)


def add_to(app: typer.Typer) -> None:
    app.command()(info)


def describe(target: Path | None) -> dict[str, Any]:
    """The facts of a run folder, a model file or a training state."""
    from difftool.checkpoint import load
    from difftool.runs import all_runs, open_run

    if target is None:
        runs = all_runs()
        target = runs[0].path if runs else find_nothing()
    if not target.is_dir():
        tensors, document = load(target)
        return {"file": str(target), **_model_facts(tensors, document)}
    run = open_run(target)
    facts: dict[str, Any] = {"run": str(run.path)}
    config = {k: v for k, v in run.read_config().items() if isinstance(v, dict)}
    facts |= config.pop("run", {})
    rows = run.read_metrics()
    if rows:
        last = rows[-1]
        facts["progress"] = {k: last.get(k) for k in ("step", "samples", "elapsed", "steps_per_second")}
        facts["loss"] = {k: last.get(k) for k in ("loss", "loss_quartiles", "held_out_loss") if k in last}
    facts |= config
    facts["states"] = [p.name for p in run.saved_states()]
    if run.model.is_file():
        tensors, document = load(run.model)
        facts["model"] = {"file": str(run.model), **_model_facts(tensors, document, brief=True)}
    else:
        facts["model"] = None
    return facts


def find_nothing() -> Path:
    from difftool.runs import find_model

    return find_model(None)[0]


def _model_facts(tensors: dict[str, Any], document: dict[str, Any], *, brief: bool = False) -> dict[str, Any]:
    facts = {
        "kind": document.get("kind"),
        "weights": document.get("weights"),
        "step": document.get("step"),
        "parameters": sum(t.numel() for t in tensors.values()),
    }
    rest = {} if brief else {k: v for k, v in document.items() if k not in facts and k != "format"}
    return {k: v for k, v in {**facts, "data": document.get("data"), **rest}.items() if v is not None}


def _words(value: Any, depth: int = 0) -> str:
    if depth > DEEPEST:
        return "..."
    if isinstance(value, dict):
        return ", ".join(f"{k} {_words(v, depth + 1)}" for k, v in value.items() if v is not None)
    if isinstance(value, list):
        shown = [_words(v, depth + 1) for v in value[:12]]
        return ",".join(shown) + (", ..." if len(value) > 12 else "")
    return f"{value:.6g}" if isinstance(value, float) else str(value)
