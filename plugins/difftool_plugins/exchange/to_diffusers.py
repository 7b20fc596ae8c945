"""A model as a folder that diffusers opens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from difftool import Backbone, Codec, Model, Prediction, UsageError, write_json
from difftool_plugins.exchange.folders import Use, rounded
from difftool_plugins.exchange.schedulers import scheduler_config

FOLDERS = {"UNet2DModel": "unet", "DiTTransformer2DModel": "transformer"}
"""The folder of each network in a pipeline's folder."""
RECORD = "difftool.json"
"""The file that records what diffusers does not: classes, units, settings."""


PIPELINE = """\
```python
from diffusers import DDIMPipeline

pipeline = DDIMPipeline.from_pretrained(".")
pipeline(batch_size=4, num_inference_steps=50, use_clipped_model_output=True).images[0].save("sample.png")
```
"""
LOOP = """\
No pipeline of diffusers runs it as it is, so the loop is written out:

```python
import torch
from diffusers import DDIMScheduler, {cls}

network = {cls}.from_pretrained(".", subfolder="{part}").eval()
scheduler = DDIMScheduler.from_pretrained(".", subfolder="scheduler")
scheduler.set_timesteps(50)
x = torch.randn(4, {shape}, generator=torch.manual_seed(0))
labels = torch.full((4,), {label})
with torch.no_grad():
    for t in scheduler.timesteps:
        output = network(x, t.expand(len(x)), class_labels=labels).sample[:, :{channels}]
        x = scheduler.step(output, t, x, use_clipped_model_output=True).prev_sample
```
"""


AGAIN = """
Or with any sampler of difftool:

```
difftool import . --out model.safetensors
difftool sample model.safetensors --sampler unipc --steps 10
```
"""


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


def write(model: Model, folder: Path, dtype: str) -> Use:
    """Write the network, the scheduler, and what diffusers does not record. Raises `UsageError`."""
    network: Any = model.network
    wrapped, learned = network.model, model.recipe.training.learn_variance
    try:
        scheduler = scheduler_config(model.schedule, model.recipe[Prediction].name, model.data.bounds)
    except ValueError as error:
        raise UsageError(f"--to diffusers: {error}") from None
    part = FOLDERS[type(wrapped).__name__]
    (folder / "scheduler").mkdir()
    chosen: Any = rounded(wrapped, dtype)
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
    return Use("diffusers", (PIPELINE if runs_alone else _loop(model, part)) + AGAIN)


def _loop(model: Model, part: str) -> str:
    """Return the sampling loop for a network that no pipeline takes."""
    network: Any = model.network
    null = model.data.classes or 0  # the row after the classes stands for a hidden class
    text = LOOP.format(
        cls=type(network.model).__name__,
        part=part,
        shape=", ".join(map(str, model.data.shape)),
        label=null,
        channels=model.data.shape[0],
    )
    if model.data.classes:
        text += f"\nLabels are 0 to {null - 1}, in the order of the classes above; {null} stands for none.\n"
    return text
