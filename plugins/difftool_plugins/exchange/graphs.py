"""Networks as graphs of plain tensors, and the numbers with which code without difftool samples from them."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import shutil
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from difftool import (
    Backbone,
    Codec,
    Condition,
    DifftoolError,
    Model,
    ObjectiveSpec,
    Prediction,
    UsageError,
    printable,
    write_json,
)
from difftool_plugins.exchange.folders import rounded

SCRIPTS = Path(__file__).parent / "scripts"
BATCH, LARGEST_BATCH = 2, 2**20
"""The size of the batch that is traced, since a single item would count as a constant, and the largest one."""
CLOSE = 1e-4
"""The largest difference between the outputs of a network and of its graph, relative to the largest output."""


class NetworkGraph(nn.Module):
    """The network of a model as a function of tensors alone, each with the batch first.

    x (B, *shape) is x_t times the input scale of its level, and t (B,) the time of that level. Conditions come by name
    with `hidden` (B,), true for items whose condition the network must not use; and with self-conditioning the last
    estimate of x_0 as `x_self_cond`. Weights of half size are stored as such, and computed with in float32.
    """

    def __init__(self, model: Model, dtype: str) -> None:
        super().__init__()
        self.network, self.channels = rounded(model.network, dtype), model.space.shape[0]
        self.network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        self.image_beside = model.space.condition.image is not None and "image" not in model.recipe[Backbone].conditions
        self.is_rounded = dtype != "fp32"

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        x_self_cond: Tensor | None = None,
        label: Tensor | None = None,
        vector: Tensor | None = None,
        image: Tensor | None = None,
        tokens: Tensor | None = None,
        hidden: Tensor | None = None,
    ) -> Tensor:
        if x_self_cond is not None:
            x = torch.cat([x, x_self_cond], dim=1)
        if self.image_beside and image is not None:
            x, image = torch.cat([x, image], dim=1), None
        cond = None
        if hidden is not None and any(field is not None for field in (label, vector, image, tokens)):
            cond = Condition(label=label, vector=vector, image=image, tokens=tokens, hidden=hidden)
        if self.is_rounded:
            stored = [*self.network.named_parameters(), *self.network.named_buffers()]
            weights = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in stored}
            output: Tensor = torch.func.functional_call(self.network, weights, (x, t, cond))
        else:
            output = self.network(x, t, cond)
        return output[:, : self.channels]  # what follows is a learned variance


class DecoderGraph(nn.Module):
    """The decoder of a model's latents z (B, ...), in the units of network and data."""

    scale: Tensor
    shift: Tensor

    def __init__(self, model: Model) -> None:
        super().__init__()
        assert model.latents is not None
        self.codec, facts = copy.deepcopy(model.latents.codec).cpu(), model.latents.facts
        ends = (1,) * (len(facts.shape) - 1)
        # of its own: a constant that is traced is no tensor any more, and those of `Scaling` are kept for later
        self.register_buffer("scale", torch.tensor(facts.scale).view(-1, *ends))
        self.register_buffer("shift", torch.tensor(facts.shift).view(-1, *ends))

    def forward(self, z: Tensor) -> Tensor:
        decode: Any = self.codec.decode
        output: Tensor = decode(z * self.scale + self.shift)
        return output


def examples(model: Model, count: int = BATCH) -> dict[str, Tensor]:
    """Return inputs of the network graph by name, drawn at random: x, t, x_self_cond and the conditions."""
    space, generator = model.space, torch.Generator().manual_seed(0)
    inputs = {"x": torch.randn(count, *space.shape, generator=generator), "t": torch.arange(count) * 100.0 % 1000.0}
    if model.recipe.training.self_condition:
        inputs["x_self_cond"] = torch.randn(count, *space.shape, generator=generator)
    for name, shape in space.condition.shapes.items():
        inputs[name] = torch.randn(count, *shape, generator=generator)
    if "label" in inputs:
        inputs["label"] = torch.arange(count) % len(space.class_names)
    if space.condition:
        inputs["hidden"] = torch.arange(count) % 2 == 1
    return inputs


def check(model: Model) -> None:
    """Raise `UsageError` for a model that the script could not sample from."""
    if model.latents is not None and model.space.condition.image is not None:
        raise UsageError("--to: the model takes condition images as latents, which nothing in the folder encodes")


def graphs_of(model: Model, dtype: str) -> Iterator[tuple[str, str, nn.Module, dict[str, Tensor]]]:
    """Yield name, words for messages, graph and inputs: of the network, and of the decoder of a model of latents."""
    what = f"backbone {model.recipe[Backbone].name}"
    yield "network", what, NetworkGraph(model, dtype).eval().requires_grad_(False), examples(model)
    if model.latents is not None:
        z = {"z": torch.randn(BATCH, *model.space.shape)}
        yield "decoder", f"codec {model.recipe[Codec].name}", DecoderGraph(model).eval().requires_grad_(False), z


def traced(graph: nn.Module, inputs: Mapping[str, Tensor], what: str) -> Any:
    """Return the program of a graph, for batches of any size if its code allows it. Raises `UsageError`.

    The quick way of tracing takes `len(x)` for a constant, the other one does not, and each fails for some networks. At
    last the program may choose the sizes of batches, but one size alone is refused.
    """
    dim: Any = torch.export.Dim  # a function with attributes in torch 2.6, a class later
    free, reason = dim("batch", min=1, max=LARGEST_BATCH), ""
    for batch, strict in ((free, False), (free, True), (dim.AUTO, False)):
        try:
            with quiet(), torch.no_grad():
                shapes: Any = {name: {0: batch} for name in inputs}
                program = torch.export.export(graph, (), dict(inputs), dynamic_shapes=shapes, strict=strict)
        except Exception as error:
            reason = reason or f"{type(error).__name__}: {printable(' '.join(str(error).split()))[:200]}"
            continue
        if program.range_constraints:
            for node in program.graph.nodes:  # each names lines of files of this machine
                node.meta.pop("stack_trace", None)
            return program
        reason = "its code fixes the size of a batch"
    raise UsageError(f"--to: {what} cannot be traced by torch.export ({reason})")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep what exporters say of their own parts from the reader in a block."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def check_same(name: str, graph: nn.Module, inputs: Mapping[str, Tensor], found: Tensor) -> None:
    """Raise `DifftoolError` if an exported graph gave other outputs than the network does."""
    with torch.no_grad():
        wanted = graph(**inputs)
    difference = float((wanted - found).abs().max() / wanted.abs().max().clamp_min(1.0))
    if not difference <= CLOSE:
        raise DifftoolError(f"--to: the exported {name} differs from the original by {difference:.2g}")


def document(model: Model) -> dict[str, Any]:
    """Return what `sample.py` reads: a row for each level, the units of the data, and the conditions."""
    prediction, data, space = model.recipe[Prediction], model.data, model.space
    spec = ObjectiveSpec(schedule=model.schedule, sigma_data=space.std)
    rows = [
        (level.alpha, level.sigma, model.schedule.time(level.t), prediction.input_scale(level, spec), a, b)
        for level in model.schedule
        for a, b in [prediction.coefficients(level, spec)]
    ]
    names = ("alpha", "sigma", "time", "input_scale", "a", "b")
    return {
        "model": model.description,
        "shape": list(space.shape),
        "bounds": space.bounds,
        "sigma_data": space.std,
        "self_condition": model.recipe.training.self_condition,
        "levels": dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)),
        "conditions": {name: list(shape) for name, shape in space.condition.shapes.items()},
        "unconditional": bool(space.condition) and not model.needs_condition,
        "class_names": list(data.class_names),
        "vector": {"shift": data.vector_scaling.shift, "scale": data.vector_scaling.scale},
        "data": {"shape": list(data.shape), "form": data.form, "shift": data.shift, "scale": data.scale},
        "data_bounds": data.bounds,
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
python sample.py -n 16 --steps 50 {condition}--out samples.npy
```

`sample.py` holds DDIM in NumPy, `network.py` runs the network, and `model.json` has the numbers of each noise level.
Inputs of the network are {inputs}, for batches of any size:

- `x` is x_t times `input_scale` of its level, and `t` the `time` of the level;
{more}- the output is a x_0 + b eps, where x_t = alpha x_0 + sigma eps.
"""


def use_of(model: Model, packages: str) -> str:
    """Return the words of the card on how to run the scripts."""
    names, more = [*examples(model)], ""
    if "x_self_cond" in names:
        more += "- `x_self_cond` is the last estimate of x_0, and zeros at first;\n"
    if "hidden" in names:
        more += "- `hidden` is true for items whose condition does not count;\n"
    words = {"label": printable(model.data.class_names[0])} if model.data.class_names else {}
    shown = [*model.space.condition.shapes] if model.needs_condition else [*words]
    condition = "".join(f'--{name} "{words.get(name, f"{name}.npy")}" ' for name in shown)
    inputs = ", ".join(f"`{name}`" for name in names)
    return TEXT.format(packages=packages, condition=condition, inputs=inputs, more=more)
