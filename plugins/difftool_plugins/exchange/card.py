"""The model card: a README with the YAML header that the Hugging Face hub reads."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from difftool import Backbone, Dataset, NoiseSchedule, Prediction, __version__, printable

if TYPE_CHECKING:
    from difftool import Model

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


def card(model: Model, *, name: str, license: str, dtype: str, pipeline: bool, part: str) -> str:
    """Return the text of the card of a model in a folder of diffusers."""
    recipe, training = model.recipe, model.recipe.training
    cls = type(model.network.model).__name__
    if pipeline:
        use = PIPELINE
    else:
        null = model.data.classes or 0  # the row after the classes stands for a hidden class
        shape = ", ".join(map(str, model.data.shape))
        use = LOOP.format(cls=cls, part=part, shape=shape, label=null, channels=model.data.shape[0])
        if model.data.classes:
            use += f"\nLabels are 0 to {null - 1}, in the order of the classes above; {null} stands for none.\n"
    count = sum(parameter.numel() for parameter in model.network.parameters())
    rows = {
        "data": f"{recipe[Dataset].name}, {model.data.words}",
        "classes": ", ".join(printable(one) for one in model.data.class_names[:100]) or "none",
        "network": f"{recipe[Backbone].name} ({cls}), {count:,} parameters",
        "schedule": f"{recipe[NoiseSchedule].name}, {training.timesteps} levels",
        "prediction": recipe[Prediction].name,
        "training": f"{model.step:,} steps of {training.batch_size}, learning rate {training.lr:g}",
        "weights": f"{model.weights}, {dtype}",
    }
    header = "\n".join(
        [
            "---",
            *([f"license: {json.dumps(license)}"] if license else []),
            "library_name: diffusers",
            "tags:\n- difftool\n- unconditional-image-generation",
            "---",
        ]
    )
    table = "\n".join(f"| {key} | {_cell(value)} |" for key, value in rows.items())
    return (
        f"{header}\n\n# {name}\n\nA diffusion model, trained with difftool {__version__}.\n\n"
        f"| | |\n|---|---|\n{table}\n\n"
        f"## Use it\n\nIn this folder:\n\n{use}\nOr with any sampler of difftool:\n\n```\n"
        "difftool import . --out model.safetensors\n"
        "difftool sample model.safetensors --sampler unipc --steps 10\n```\n\n"
        f"## Share it\n\n```\nhf upload YOUR-NAME/{name} . .\n```\n"
    )


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
