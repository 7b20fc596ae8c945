"""The parts of a run folder, gathered for a page. Whatever is absent or broken is left out, and said."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from difftool.diffusion.visible import spread
from difftool.errors import BadFile, DifftoolError, counted, one_line, printable, shortened
from difftool.report.content import Command, Fact, Table, number
from difftool.report.curves import Rows
from difftool.report.evaluations import MOST_PICTURES, Recorded, newest_evaluations
from difftool.report.pictures import Encoded, read_picture
from difftool.report.trajectory import film
from difftool.runs.config import dump_toml
from difftool.runs.folder import RunFolder, Status
from difftool.runs.losses import losses
from difftool.runs.verdict import Verdict, verdict

if TYPE_CHECKING:
    import torch

    from difftool.diffusion.estimate import Step
    from difftool.sampling.model import Model

PREVIEW = re.compile(r"(samples|panel)-(\d{6,10})\.png", re.ASCII)
MOST_PREVIEWS = 40
"""The largest number of previews of a kind that are read, evenly spread over the run."""
MOST_NOTES = 20
LONGEST = 300
"""Characters of a text from a file."""


@dataclass
class Gathered:
    """The parts of a run, as they were read."""

    run: RunFolder
    status: Status
    config: Mapping[str, Any]
    rows: Rows
    losses: Mapping[str, float | None]
    verdict: Verdict
    model: Model | None = None
    samples: Sequence[Encoded] = ()
    """Previews: samples after some steps."""
    panels: Sequence[Encoded] = ()
    """Previews: what the network predicts."""
    film: Sequence[Encoded] = ()
    evaluations: Sequence[tuple[Recorded, Sequence[Encoded]]] = ()
    notes: list[str] = field(default_factory=list)
    """Notes on what could not be read."""

    @property
    def name(self) -> str:
        """The name of the run on the page."""
        return clean(self.run.path.name or str(self.run.path.resolve().name))


def clean(value: object, most: int = LONGEST) -> str:
    """Return a value from a file as text that fits a line."""
    return shortened(printable(str(value)), most)


def gather(
    run: RunFolder,
    device: torch.device,
    *,
    with_samples: bool = True,
    watch: Callable[[Step], object] | None = None,
) -> Gathered:
    """Read a run folder, and draw a few samples of its model."""
    rows = run.read_metrics()
    found = Gathered(run, run.status(), run.readable_config(), rows, losses(rows), verdict(rows))
    if not found.config:
        found.notes.append("config.toml cannot be read")
    if not rows:
        found.notes.append("metrics.jsonl holds no rows, so there are no curves of the loss")
    found.samples = _previews(found, "samples", "Samples")
    found.panels = _previews(found, "panel", "Items, their noise, and what the network makes of them,")
    found.evaluations = [(one, _pictures(found, one)) for one in newest_evaluations(run)]
    _open_model(found, device)
    if with_samples and found.model is not None:
        _draw(found, found.model, watch)
    return found


def _previews(found: Gathered, kind: str, what: str) -> list[Encoded]:
    """Return the previews of a kind by their steps."""
    folder = found.run.previews
    named = [(match, path) for path in folder.glob("*.png") if (match := PREVIEW.fullmatch(path.name))]
    files = sorted((int(match[2]), path) for match, path in named if match[1] == kind)
    kept = [files[i] for i in spread(range(len(files)), MOST_PREVIEWS)]
    if len(kept) < len(files):
        found.notes.append(f"{len(files):,} previews {kind}-*.png: {len(kept)} of them are shown, evenly spread")
    label = [(path, f"step {step:,}") for step, path in kept]
    return _read(found, [(path, words, f"{what} after {words}") for path, words in label])


def _pictures(found: Gathered, recorded: Recorded) -> list[Encoded]:
    """Return the pictures that an evaluation names. They lie in the folder `evaluations`, and nowhere else."""
    named = []
    for name in recorded.pictures[:MOST_PICTURES]:
        path = Path(name)
        if path.parts[:1] == ("evaluations",) and len(path.parts) == 2 and path.suffix == ".png":
            pairs = path.stem.endswith("-nearest")
            alt = "Samples beside their nearest training items" if pairs else f"Evaluation: {clean(path.stem, 80)}"
            named.append((found.run.path / path, clean(path.stem, 80), alt))
        else:
            found.notes.append(f"{clean(name, 80)} is no picture of an evaluation, and was left out")
    return _read(found, named)


def _read(found: Gathered, files: Sequence[tuple[Path, str, str]]) -> list[Encoded]:
    pictures = []
    for path, label, alt in files:
        try:
            pictures.append(read_picture(path, found.run.path, label=label, alt=alt))
        except BadFile as error:
            found.notes.append(f"{clean(error)}; it was left out")
    return pictures


def _open_model(found: Gathered, device: torch.device) -> None:
    from difftool.sampling.model import load_model

    if not found.run.model.is_file():
        found.notes.append("the run has no model yet, so there are no samples, no classes and no schedule of it")
        return
    try:
        found.model = load_model(found.run.path, device=device)
    except DifftoolError as error:
        found.notes.append(f"the model cannot be opened: {clean(error)}")


def _draw(found: Gathered, model: Model, watch: Callable[[Step], object] | None) -> None:
    try:
        found.film = film(model, watch)
    except DifftoolError as error:
        found.notes.append(f"no samples were drawn: {clean(error)}")
        return
    if not found.film:
        found.notes.append("no samples were drawn: they are no pictures, or need conditions that only data have")


# --- words ------------------------------------------------------------------------------------------------------------


def progress(status: Status) -> str:
    """Return the progress of a run in words: `finished, step 2,000 of 2,000`."""
    total = "" if status.steps is None else f" of {status.steps:,}"
    reason = f" ({clean(status.reason)})" if status.reason else ""
    return f"{status.status}{reason}, step {status.step:,}{total}"


def _name_of(config: Mapping[str, Any], kind: str) -> str:
    table = config.get(kind)
    return clean(table.get("name", "?"), 60) if isinstance(table, Mapping) else "?"


def sentence(found: Gathered) -> str:
    """Return what the run is in one sentence."""
    names = {kind: _name_of(found.config, kind) for kind in ("dataset", "schedule", "backbone", "prediction")}
    size = ""
    if found.model is not None:
        size = f" of {sum(p.numel() for p in found.model.network.parameters()):,} parameters"
    return (
        f"The network {names['backbone']}{size} learns to predict {names['prediction']} on the data set "
        f"{names['dataset']} under the {names['schedule']} schedule: {progress(found.status)}."
    )


def facts(found: Gathered) -> list[Fact]:
    """Return the summary of a run: progress, losses, data, model, machine and versions."""
    recorded = found.config.get("run")
    recorded = recorded if isinstance(recorded, Mapping) else {}
    plugins = found.config.get("plugins")
    last = found.rows[-1] if found.rows else {}
    rows: dict[str, object] = {
        "progress": progress(found.status),
        "training loss, smoothed": found.losses["loss"],
        "loss of eps, smoothed": found.losses["eps_loss"],
        "held-out loss": found.losses["held_out_loss"],
        "items seen": last.get("samples"),
        "seconds of training": last.get("elapsed"),
        "data": recorded.get("data"),
        **_model_facts(found.model),
        "started": found.run.started.replace("T", " ")[:16],
        "device": recorded.get("device"),
        "torch": recorded.get("torch"),
        "plugins": ", ".join(f"{a} {b}" for a, b in plugins.items()) if isinstance(plugins, Mapping) else "",
    }
    return [Fact(name=name, value=_value(value)) for name, value in rows.items() if value not in (None, "")]


def _value(value: object) -> str:
    return number(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else clean(value)


def _model_facts(model: Model | None) -> dict[str, object]:
    if model is None:
        return {}
    facts: dict[str, object] = {
        "items": model.data.words,
        "conditions": model.data.conditions_text,
        "weights": f"{model.weights}, step {model.step:,}",
    }
    if model.origin is not None:
        facts["began from"] = str(model.origin)
    return facts


def judged_table(found: Gathered) -> Table | None:
    """Return the numbers of the verdict, by level of noise."""
    quarters = found.verdict.quarters
    if not quarters:
        return None
    rows = [
        [
            f"{one.noise} noise",
            one.state + (" (memorises)" if one.memorises else ""),
            number(one.loss),
            "–" if one.train is None else number(one.train),
            f"{number(one.best)} at step {one.best_step:,}",
            f"{one.above_best:.1%}",
            f"{one.change:+.1%} ± {one.error:.1%}",
        ]
        for one in quarters
    ]
    headings = ("level", "loss is", "at the end", "training", "best", "above the best", "change over the last third")
    held_out = "held-out loss" if found.verdict.measurements else "loss"
    return Table(caption=f"The {held_out} by level of noise, which the verdict rests on", headings=headings, rows=rows)


def commands(found: Gathered) -> list[Command]:
    """Return the command lines that train the run again, go on with it, and sample it."""
    path = shlex.quote(clean(found.run.path, 1000))
    seed = _seed(found.config)
    again = Command(
        words=f"difftool train --config {shlex.quote(clean(found.run.config, 1000))} --out NEW-FOLDER",
        text=f"Train it again: the config holds all settings{seed}.",
    )
    rows = [again]
    if found.status.status in ("stopped", "stopped early"):
        rows.append(Command(words=f"difftool train --resume {path}", text="Go on where it stopped."))
    if found.run.model.is_file():
        rows.append(Command(words=f"difftool sample {path}", text="Draw samples."))
    return rows


def _seed(config: Mapping[str, Any]) -> str:
    training = config.get("training")
    seed = training.get("seed") if isinstance(training, Mapping) else None
    return f", also the seed {seed}" if type(seed) is int else ""


def config_text(found: Gathered) -> str:
    """Return the settings of the run as TOML. Of paths of its machine only the last part is shown."""
    tables = {name: _shortened(table) for name, table in found.config.items()}
    return dump_toml(tables) if tables else ""


def _shortened(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _shortened(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_shortened(entry) for entry in value]
    if isinstance(value, str) and os.path.isabs(value):
        return f".../{os.path.basename(value.rstrip('/'))}"
    return value


def classes(found: Gathered, most: int) -> tuple[list[str], int]:
    """Return the names of the first classes, and the number of the others."""
    names = found.model.data.class_names if found.model is not None else ()
    return [clean(name, 200) for name in names[:most]], max(0, len(names) - most)


def notes(found: Gathered) -> list[str]:
    """Return what could not be read, and the number of further notes."""
    shown = [one_line(ValueError(note)) for note in found.notes[:MOST_NOTES]]
    more = len(found.notes) - len(shown)
    return [*shown, f"and {counted(more, 'further note')}"] if more else shown
