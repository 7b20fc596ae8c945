"""Networks as graphs of plain tensors, and the numbers with which code without difftool samples from them."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from difftool import Backbone, Codec, Condition, Model, ObjectiveSpec, Prediction, UsageError, write_json
from difftool_plugins.exchange.folders import rounded

SCRIPTS = Path(__file__).parent / "scripts"
TYPES = {"label": torch.int64, "hidden": torch.bool}
"""The dtypes of conditions; all others are float32."""


class NetworkGraph(nn.Module):
    """The network of a model as a function of tensors alone: x, t, and its conditions with `hidden` at the end.

    Weights of half size are stored as such, and computed with in float32.
    """

    def __init__(self, model: Model, dtype: str) -> None:
        super().__init__()
        self.network, self.channels = rounded(model.network, dtype), model.space.shape[0]
        self.names = condition_names(model)
        self.image_beside = "image" in self.names and "image" not in model.recipe[Backbone].conditions
        self.is_rounded = dtype != "fp32"

    def forward(self, x: Tensor, t: Tensor, *conditions: Tensor) -> Tensor:
        fields = dict(zip(self.names, conditions, strict=True))
        if self.image_beside:
            x = torch.cat([x, fields.pop("image")], dim=1)
        cond = Condition(**fields) if fields else None
        if self.is_rounded:
            stored = [*self.network.named_parameters(), *self.network.named_buffers()]
            weights = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in stored}
            output: Tensor = torch.func.functional_call(self.network, weights, (x, t, cond))
        else:
            output = self.network(x, t, cond)
        return output[:, : self.channels]  # what follows is a learned variance


class DecoderGraph(nn.Module):
    """The decoder of a model's latents (B, ...), in the units of network and data."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        assert model.latents is not None
        self.codec, self.scaling = model.latents.codec, model.latents.facts.scaling

    def forward(self, z: Tensor) -> Tensor:
        output: Tensor = self.codec.decode(self.scaling.to_data(z).float())  # type: ignore[operator]
        return output


def condition_names(model: Model) -> list[str]:
    """Return the names of the conditions that a network takes, with `hidden` at the end; none without conditions."""
    shapes = model.space.condition.shapes
    return [*shapes, "hidden"] if shapes else []


def examples(model: Model, count: int = 2) -> list[Tensor]:
    """Return inputs of the network graph: x, t and the conditions."""
    shapes = model.space.condition.shapes
    conditions = [
        torch.zeros(count, *shapes.get(name, ()), dtype=TYPES.get(name, torch.float32))
        for name in condition_names(model)
    ]
    return [torch.randn(count, *model.space.shape), torch.linspace(0, 999, count), *conditions]


def with_batch(inputs: Sequence[Tensor], batch: Any) -> tuple[Any, ...]:
    """Return the dynamic shapes of inputs whose first axis is a batch; conditions are one argument."""
    rows = [{0: batch} for _ in inputs]
    return (*rows[:2], tuple(rows[2:])) if len(rows) > 2 else tuple(rows)


def check(model: Model) -> None:
    """Raise `UsageError` for a model that the scripts could not sample from."""
    if model.recipe.training.self_condition:
        raise UsageError("--to: the model conditions on itself, which the exported loop does not do")


def document(model: Model) -> dict[str, Any]:
    """Return what `sample.py` reads: a row for each level, the units of the data, and the conditions."""
    prediction, facts = model.recipe[Prediction], model.data
    spec = ObjectiveSpec(schedule=model.schedule, sigma_data=model.space.std)
    rows = [
        (level.alpha, level.sigma, model.schedule.time(level.t), prediction.input_scale(level, spec), a, b)
        for level in model.schedule
        for a, b in [prediction.coefficients(level, spec)]
    ]
    names = ("alpha", "sigma", "time", "input_scale", "a", "b")
    return {
        "model": model.description,
        "shape": list(model.space.shape),
        "bounds": model.space.bounds,
        "levels": dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)),
        "conditions": {name: list(shape) for name, shape in model.space.condition.shapes.items()},
        "class_names": list(facts.class_names),
        "data": {"shape": list(facts.shape), "form": facts.form, "shift": facts.shift, "scale": facts.scale},
        "data_bounds": facts.bounds,
        "codec": model.recipe[Codec].name,
    }


def write_scripts(model: Model, folder: Path, network: str) -> None:
    """Write the numbers of a model, the script that samples, and the one that loads the network beside it."""
    write_json(folder / "model.json", document(model))
    shutil.copyfile(SCRIPTS / "sample.py", folder / "sample.py")
    shutil.copyfile(SCRIPTS / network, folder / "network.py")


TEXT = """\
```
pip install {packages}
python sample.py -n 16 --steps 50 --out samples.npy
```

`sample.py` holds DDIM in some sixty lines of NumPy, `network.py` runs the network, and `model.json` has the numbers of
each noise level. Inputs of the network are {inputs}, for batches of any size.
"""


def use_of(model: Model, library: str, packages: str) -> str:
    """Return the words of the card on how to run the scripts."""
    return TEXT.format(packages=packages, inputs=", ".join(f"`{name}`" for name in ["x", "t", *condition_names(model)]))
