"""The model card: a README with the YAML header that the Hugging Face hub reads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tomli_w

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
    note,
    printable,
)

if TYPE_CHECKING:
    from difftool import Model
    from difftool_plugins.exchange.folders import Use

MEASURES = {"loss": "loss", "held_out_loss": "held-out loss", "eps_loss": "error of eps"}
"""The losses of a run that a card shows, by their names in metrics.jsonl."""
TAGS = {"image": "unconditional-image-generation", "sound": "audio", "series": "time-series"}
"""The tags of the hub by the form of the data."""


def write_card(model: Model, folder: Path, use: Use, *, name: str, license: str, dtype: str) -> None:
    """Write README.md into the folder of an exported model, with a picture of samples where there is one."""
    pictures = []
    if (picture := picture_of(model)) is not None:
        (folder / "samples.png").write_bytes(picture)
        pictures.append("## Samples\n\n![Samples](samples.png)\n")
    parts = [
        _header(model, use, license),
        f"# {name}\n\nA diffusion model, trained with difftool {__version__}.\n\n{_table(_facts(model, dtype))}",
        *pictures,
        f"## Use it\n\nIn this folder:\n\n{use.text}",
        f"## How it was trained\n\n{_table(_training(model))}\n"
        f"A config file for `difftool train --config`:\n\n```toml\n{settings_of(model)}```\n",
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


def _training(model: Model) -> dict[str, str]:
    """Return how the model was trained, and its losses at the end, as far as its run is known."""
    recipe, training = model.recipe, model.recipe.training
    losses = {} if model.run is None else model.run.losses(model.step)
    return {
        "training": f"{model.step:,} steps of {training.batch_size}, learning rate {training.lr:g}",
        **{base.kind: recipe[base].name for base in (Optimizer, Weighting, TimestepSampling)},
        "loss function": recipe[Loss].name,
        "seed": str(training.seed),
        **{MEASURES[name]: f"{value:.4g}" for name, value in losses.items() if value is not None},
    }


def picture_of(model: Model) -> bytes | None:
    """Return the last preview of the run as PNG, or samples drawn now; None for data that no picture shows."""
    previews = [] if model.run is None else sorted(model.run.previews.glob("samples-*.png"))
    if previews:
        return previews[-1].read_bytes()
    note("drawing samples for the card")
    return model._repr_png_()


def settings_of(model: Model) -> str:
    """Return the settings as a config file, which names no path of this machine."""

    def present(table: Mapping[str, Any]) -> dict[str, Any]:
        rows = {key: present(value) if isinstance(value, Mapping) else value for key, value in table.items()}
        return {key: value for key, value in rows.items() if value is not None}

    return tomli_w.dumps(present(model.recipe.shared_document()))


def _table(rows: dict[str, str]) -> str:
    def cell(text: str) -> str:
        return text.replace("|", "\\|").replace("\n", " ")

    return "| | |\n|---|---|\n" + "\n".join(f"| {key} | {cell(value)} |" for key, value in rows.items()) + "\n"
