"""`difftool info`: the facts of a run, a model file or a training state, and how a file of samples was made."""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Iterator
from dataclasses import asdict, replace
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Column

from difftool.cli.console import add_row, help_text, new_table, result_json, stdout
from difftool.cli.parameters import AsJson
from difftool.errors import BadFile
from difftool.plugins.discovery import BUILT_IN
from difftool.plugins.registry import registry
from difftool.runs.losses import losses
from difftool.runs.rows import QUARTILES
from difftool.runs.verdict import verdict
from difftool.scripts import is_script, short
from difftool.version import __version__

if TYPE_CHECKING:
    from difftool.runs.folder import RunFolder

MAX_DEPTH, MAX_ENTRIES, MAX_ROWS = 4, 12, 200
"""The largest depth of nested values, number of entries of a list, and number of rows that are printed."""


def info(
    target: Annotated[
        Path | None,
        typer.Argument(
            metavar="RUN", help=help_text("A run folder, a model file or samples.", "default: the newest run")
        ),
    ] = None,
    json: AsJson = False,
) -> None:
    """Describe a run or a model: progress, loss, parts, and whether files are intact; or how samples were made."""
    from difftool.runs.checkpoint import load
    from difftool.runs.folder import all_runs, find_model, is_run, open_run
    from difftool.sampling.record import samples_in

    if target is None:  # the newest run, trained or not; without any, `find_model` raises the reason
        target = next((run.path for run in all_runs()), None) or find_model(None)[0]
    if target.is_dir() and (is_run(target) or not samples_in(target)):
        facts = _of_run(open_run(target))
    else:
        facts = _of_samples(target) or {"file": str(target), **_of_file(*load(target))}
    if json:
        result_json(facts)
        return
    table = new_table(Column(style="cyan", no_wrap=True), Column(overflow="fold"), header=False)
    for name, row in islice(_rows(facts), MAX_ROWS):
        add_row(table, name, row)
    stdout().print(table)


def add_to(app: typer.Typer) -> None:
    app.command()(info)


def _rows(facts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield names and values as texts; a list of tables takes several rows, of which the first has the name."""
    from difftool.data.facts import classes_text

    for name, value in facts.items():
        rows = value if isinstance(value, list) and value and isinstance(value[0], dict) else [value]
        for i, row in enumerate(rows):
            text = classes_text(row) if name == "classes" and isinstance(row, list) else _text(row)
            yield "" if i else name.replace("_", " "), text


def _of_samples(target: Path) -> dict[str, Any] | None:
    """Return how samples were made; None for a file of weights, which its name or its content says it is."""
    from difftool.runs.checkpoint import PICKLES
    from difftool.sampling.record import NoRecord, read_record

    suffix = target.suffix.lower()
    if not target.exists() or suffix in PICKLES:
        return None
    try:
        document = read_record(target).document()
    except NoRecord:
        if suffix in ("", ".safetensors") and target.is_file():
            return None
        raise
    document["plugins"] = {name: _version(name, version) for name, version in document.get("plugins", {}).items()}
    target_in_words = shlex.quote(str(target))
    return {"samples": str(target), **document, "again": f"difftool sample --again {target_in_words} --out FILE"}


def _of_run(run: RunFolder) -> dict[str, Any]:
    config = {k: v for k, v in run.read_config().items() if isinstance(v, dict)}
    status = run.status()
    recorded = {name: value for name, value in config.pop("run", {}).items() if name != "stopped"}
    facts: dict[str, Any] = {"run": str(run.path), **recorded, **asdict(status)}
    if status.reason is None:
        del facts["reason"]
    if rows := run.read_metrics():
        last = rows[-1]
        facts["progress"] = {k: last.get(k) for k in ("step", "samples", "elapsed", "steps_per_second")}
        facts["losses"] = {**losses(rows), **{name: last.get(name) for name in QUARTILES}}
        judged = verdict(rows)
        facts |= {"verdict": judged.state, "verdict_words": judged.words}
        facts["losses_by_noise"] = [asdict(quarter) for quarter in judged.quarters]
    facts |= _of_evaluations(run)
    plugins = config.pop("plugins", {})
    facts |= config
    facts["plugins"] = {name: _version(name, version) for name, version in plugins.items()}
    states = (_of_state(path) for path in (*run.saved_states(), *run.damaged_states()))
    facts["states"] = [state for state in states if state is not None]
    facts["averages"] = list(_of_averages(run))
    facts["model"] = model = _of_model(run.model)
    if best := _of_model(run.best):
        facts["best"] = {
            name: best[name] for name in ("file", "valid", "problem", "best", "weights", "step") if name in best
        }
    for name in ("classes", "condition", "latents"):
        if model and (value := model.pop(name, None)):
            facts[name] = value
    if status.status in ("stopped", "stopped early"):
        facts["go_on"] = f"difftool train --resume {shlex.quote(str(run.path))}"
    return facts


def _of_evaluations(run: RunFolder) -> dict[str, Any]:
    """Describe the newest evaluation of a run, if there is one."""
    from difftool.runs.evaluations import read_evaluations

    if not (found := read_evaluations(run)):
        return {}
    newest, names = found[-1], ("name", "value", "error", "floor", "unit")
    features = newest.get("features", {}).get("name")
    about = {**{key: newest.get(key) for key in ("step", "weights", "n", "against", "reference")}, "features": features}
    copies = {"copies": words} if (words := newest.get("copies", {}).get("words")) else {}
    scores = [{name: score.get(name) for name in names if score.get(name) != ""} for score in newest["scores"]]
    return {"evaluation": {key: value for key, value in about.items() if value is not None}, "scores": scores, **copies}


def _of_state(path: Path) -> dict[str, Any] | None:
    """Describe a training state; None if the run that is being trained has just replaced it."""
    from difftool.runs.states import size_of
    from difftool.training.state import check

    try:
        size = size_of(path)
    except FileNotFoundError:
        return None
    problem = check(path)
    if problem and not os.path.lexists(path):
        return None
    facts = {"file": path.name, "mebibytes": round(size / 2**20, 2), "valid": not problem}
    return facts | ({"problem": problem} if problem else {})


def _of_averages(run: RunFolder) -> Iterator[dict[str, Any]]:
    """Describe the averages beside the model, and name the snapshots of each, which may be too many to read."""
    from difftool.runs.averages import files_in

    files = files_in(run.averages)
    for name in dict.fromkeys(file.name for file in files):
        newest = next((file.path for file in files if file.name == name and file.step is None), None)
        facts = None if newest is None else _of_model(newest)
        row: dict[str, Any] = {
            "weights": name,
            **{key: facts[key] for key in ("step", "valid", "problem") if facts and key in facts},
        }
        if steps := [file.step for file in files if file.name == name and file.step is not None]:
            row["snapshots"] = f"{len(steps)}, of steps {steps[0]} to {steps[-1]}"
        yield row


def _of_model(path: Path) -> dict[str, Any] | None:
    """Describe the model of a run, which may be missing or damaged."""
    from difftool.runs.checkpoint import load

    if not path.exists():
        return None
    try:
        return {"file": str(path), "valid": True, **_of_file(*load(path), brief=True)}
    except BadFile as error:
        return {"file": str(path), "valid": False, "problem": str(error)}


def _of_file(tensors: dict[str, Any], document: dict[str, Any], *, brief: bool = False) -> dict[str, Any]:
    from difftool.data.facts import DataFacts

    facts = {key: document.get(key) for key in ("kind", "weights", "step", "best")}
    facts |= {"dtype": dtype} if (dtype := document.get("dtype")) else {}
    facts["parameters"] = sum(t.numel() for name, t in tensors.items() if name.startswith("network."))
    latents, data = document.get("latents"), document.get("data")
    facts["latents"] = latents.get("shape") if isinstance(latents, dict) else None
    names = data.get("class_names") if isinstance(data, dict) else None
    if isinstance(names, list) and names and all(isinstance(name, str) for name in names):
        facts["classes"] = names
    with contextlib.suppress(ValueError):  # a file of this or another kind may describe no data
        facts["condition"] = str(replace(DataFacts.read(data).condition, classes=None)) or None
    rest = {} if brief else {k: v for k, v in document.items() if k not in facts and k != "format"}
    return {k: v for k, v in {**facts, **rest}.items() if v is not None}


def _version(distribution: str, recorded: str) -> str:
    """Return the recorded version of a package or digest of a script, and the present one if it differs."""
    if is_script(distribution, recorded):
        loaded = next((p.version for p in registry().plugins if p.distribution == distribution), None)
        present = "" if loaded == recorded else f" (now {short(loaded)})" if loaded else " (not loaded)"
        return short(recorded) + present
    try:
        installed = __version__ if distribution == BUILT_IN else metadata.version(distribution)
    except (metadata.PackageNotFoundError, ValueError):
        return f"{recorded} (not installed)"
    return recorded if installed == recorded else f"{recorded} (now {installed})"


def _text(value: Any, depth: int = 0) -> str:
    if depth > MAX_DEPTH:
        return "..."
    if value is None:
        return "-"
    if isinstance(value, dict):
        return ", ".join(f"{k.replace('_', ' ')} {_text(v, depth + 1)}" for k, v in value.items() if v is not None)
    if isinstance(value, list):
        entries = [_text(v, depth + 1) for v in value[:MAX_ENTRIES]]
        return " ".join([*entries, *(["..."] if len(value) > MAX_ENTRIES else [])]) or "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
