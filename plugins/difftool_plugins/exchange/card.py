"""The model card: a README with the YAML header that the Hugging Face hub reads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from difftool import (
    Backbone,
    Codec,
    Dataset,
    Loss,
    NoiseSchedule,
    Optimizer,
    Prediction,
    TimestepSampling,
    Weighting,
    __version__,
    printable,
)

if TYPE_CHECKING:
    from difftool import Model
    from difftool_plugins.exchange.folders import Use

MEASURES = {"loss": "loss", "held_out_loss": "held-out loss", "eps_loss": "error of eps"}
"""The measures of a run that a card shows, by their names in metrics.jsonl."""
TAGS = {"image": "unconditional-image-generation", "sound": "audio", "series": "time-series"}
"""The tags of the hub by the form of the data."""


def write_card(model: Model, folder: Path, use: Use, *, name: str, license: str, dtype: str) -> None:
    """Write README.md into the folder of an exported model, with the last preview of its run as a picture."""
    pictures = []
    if model.run is not None and (previews := sorted(model.run.previews.glob("samples-*.png"))):
        shutil.copyfile(previews[-1], folder / "samples.png")
        pictures.append("## Samples\n\n![Samples at the end of training](samples.png)\n")
    parts = [
        _header(model, use, license),
        f"# {name}\n\nA diffusion model, trained with difftool {__version__}.\n\n{_table(_facts(model, dtype))}",
        *pictures,
        f"## Use it\n\nIn this folder:\n\n{use.text}",
        f"## How it was trained\n\n{_table(_settings(model))}",
        f"## Share it\n\n```\nhf upload YOUR-NAME/{name} . .\n```\n",
    ]
    (folder / "README.md").write_text("\n".join(parts), encoding="utf-8", newline="\n")


def _header(model: Model, use: Use, license: str) -> str:
    tags = ["difftool", *filter(None, [TAGS.get(model.data.form or "")])]
    lines = [*([f"license: {json.dumps(license)}"] if license else []), f"library_name: {use.library}", "tags:"]
    return "\n".join(["---", *lines, *(f"- {tag}" for tag in tags), "---\n"])


def _facts(model: Model, dtype: str) -> dict[str, str]:
    """Return what the model is."""
    recipe, codec = model.recipe, model.recipe[Codec].name
    count = sum(parameter.numel() for parameter in model.network.parameters())
    return {
        "data": f"{recipe[Dataset].name}, {model.data.words}",
        "classes": ", ".join(printable(one) for one in model.data.class_names[:100]) or "none",
        "network": f"{recipe[Backbone].name}, {count:,} parameters",
        **({} if codec == "none" else {"codec": codec}),
        "schedule": f"{recipe[NoiseSchedule].name}, {recipe.training.timesteps} levels",
        "prediction": recipe[Prediction].name,
        "weights": f"{model.weights}, {dtype}",
    }


def _settings(model: Model) -> dict[str, str]:
    """Return how the model was trained, and what was measured at the end, as far as its run is known."""
    recipe, training = model.recipe, model.recipe.training
    rows = {
        "training": f"{model.step:,} steps of {training.batch_size}, learning rate {training.lr:g}",
        **{base.kind: recipe[base].name for base in (Optimizer, Weighting, TimestepSampling)},
        "loss function": recipe[Loss].name,
        "seed": str(training.seed),
    }
    for row in [] if model.run is None else model.run.read_metrics(model.step):
        rows |= {MEASURES[key]: f"{row[key]:.4g}" for key in MEASURES if isinstance(row.get(key), float)}
    return rows


def _table(rows: dict[str, str]) -> str:
    def cell(text: str) -> str:
        return text.replace("|", "\\|").replace("\n", " ")

    return "| | |\n|---|---|\n" + "\n".join(f"| {key} | {cell(value)} |" for key, value in rows.items()) + "\n"
