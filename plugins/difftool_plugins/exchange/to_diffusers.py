"""A model as a folder that diffusers opens."""

from __future__ import annotations

import copy
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from difftool import Backbone, Codec, DifftoolError, Model, Prediction, UsageError, printable, write_json
from difftool_plugins.exchange.card import card
from difftool_plugins.exchange.schedulers import scheduler_config

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
FOLDERS = {"UNet2DModel": "unet", "DiTTransformer2DModel": "transformer"}
"""The folder of each network in a pipeline's folder."""
RECORD = "difftool.json"
"""The file that records what diffusers does not: classes, units, settings."""


def check(model: Model) -> None:
    """Raise `UsageError` for a model that no pipeline of diffusers could run."""
    backbone, training = model.recipe[Backbone], model.recipe.training
    wrapped: Any = getattr(model.network, "model", None)
    if type(wrapped).__name__ not in FOLDERS:
        raise UsageError(
            f"--to diffusers: the network {backbone.name} is none of diffusers; train one with --backbone "
            "diffusers-unet or diffusers-dit"
        )
    if model.recipe[Codec].name != "none":
        raise UsageError("--to diffusers: the model works in latents, which these pipelines do not decode")
    if training.self_condition:
        raise UsageError("--to diffusers: the model conditions on itself, which no pipeline there does")
    if others := [name for name in model.data.condition.shapes if name != "label"]:
        raise UsageError(f"--to diffusers: the model needs {', '.join(others)}, which no pipeline there gives")
    if model.network.times != training.timesteps:
        raise UsageError(
            f"--to diffusers: the network counts {model.network.times} times, and the schedule has "
            f"{training.timesteps} levels; train with --backbone.times {training.timesteps}"
        )


def write_folder(model: Model, out: Path, *, dtype: str, license: str) -> list[str]:
    """Write a model as a folder of diffusers, whole or not at all, and return the files. Raises `DifftoolError`."""
    check(model)
    if out.exists() or out.is_symlink():
        raise DifftoolError(f"--out: {printable(str(out))} already exists; choose another name, or remove it")
    network: Any = model.network
    wrapped, learned = network.model, model.recipe.training.learn_variance
    try:
        scheduler = scheduler_config(model.schedule, model.recipe[Prediction].name, model.data.bounds)
    except ValueError as error:
        raise UsageError(f"--to diffusers: {error}") from None
    part = FOLDERS[type(wrapped).__name__]
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    folder = temporary / "model"
    try:
        (folder / "scheduler").mkdir(parents=True)
        chosen = wrapped if dtype == "fp32" else nn.Module.to(copy.deepcopy(wrapped), DTYPES[dtype])
        chosen.save_pretrained(folder / part, safe_serialization=True)
        write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
        runs_alone = part == "unet" and not model.data.classes and not learned
        if runs_alone:
            write_json(
                folder / "model_index.json",
                {
                    "_class_name": "DDIMPipeline",
                    "scheduler": ["diffusers", "DDIMScheduler"],
                    "unet": ["diffusers", "UNet2DModel"],
                },
            )
        record = {**model.recipe.shared_document(), "data": model.data.document()}
        write_json(folder / RECORD, {"weights": model.weights, "step": model.step, **record})
        text = card(model, name=out.name, license=license, dtype=dtype, pipeline=runs_alone, part=part)
        (folder / "README.md").write_text(text, encoding="utf-8", newline="\n")
        os.rename(folder, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return sorted(str(file) for file in out.rglob("*") if file.is_file())
