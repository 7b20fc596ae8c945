"""The laws of codecs, checked with smooth items of random numbers, to which the codec is fitted."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from difftool import devices
from difftool.components import Codec
from difftool.errors import DifftoolError, UsageError
from difftool.options import fields, make, plain
from difftool.paths import without_paths
from difftool.plugins.build import build_codec
from difftool.rng import generator
from difftool.runs import checkpoint
from difftool.testing.laws import Failed, Skipped, accelerators, gap, largest, raised, require, size

SHAPES = (
    *((3, 16, 16), (3, 32, 32), (1, 16, 16), (1, 28, 28), (2,), (2, 64)),
    *((4, 32, 32), (3, 64, 64), (3, 256, 256)),
)
"""Shapes of items that are tried in turn."""
ODD_SHAPES = ((1,), (5,), (1, 7), (1, 5, 5), (3, 17, 13), (2, 8, 8), (2, 4, 4, 4))
"""Shapes of items that many codecs do not fit."""
COUNT, BATCH = 96, 40
"""Items that the codec is fitted to, and those in a batch."""
TOLERANCE, ROUNDING = 0.02, 1e-4
"""The share of its `error` by which a codec may miss it, and the error that counts as rounding, in model units."""


def smooth(shape: tuple[int, ...], count: int, *parts: int | str) -> Tensor:
    """Return items (count, *shape) from -1 to 1 whose neighbours are alike, as pixels of photographs are."""
    random = generator(0, "law", *parts)
    items = torch.randn(count, *shape, generator=random)
    for axis in range(2, items.ndim):
        window = torch.arange(-(shape[axis - 1] // 4), shape[axis - 1] // 4 + 1)
        items = torch.stack([items.roll(int(by), axis) for by in window]).mean(dim=0)
    items = items / items.std() + 0.1 * torch.randn(count, *shape, generator=random)
    return items.mul(0.4).add(0.1).clamp(-1.0, 1.0)


@dataclass(frozen=True)
class Case:
    """A codec, and the shape of the items that it is checked with."""

    codec: Codec
    shape: tuple[int, ...]

    def fitted(self) -> nn.Module:
        """Return the module, built and fitted to the items. Raises `Skipped` if there is none."""
        module = build_codec(self.codec, self.shape)
        if module is None:
            raise Skipped("it leaves items as they are")
        self.codec.fit(module, self.batches)
        return module

    @cached_property
    def module(self) -> nn.Module:
        return self.fitted()

    @cached_property
    def items(self) -> Tensor:
        """The items that the codec is fitted to (COUNT, *shape), in model units."""
        return smooth(self.shape, COUNT)

    def batches(self) -> Iterator[Tensor]:
        """Yield the items, some at a time, of which the last ones are fewer."""
        yield from torch.split(self.items, BATCH)

    @cached_property
    def latents(self) -> Tensor:
        return encode(self.module, self.items)


@torch.no_grad()
def encode(module: Any, x: Tensor) -> Tensor:
    z: Tensor = module.encode(x)
    return z


@torch.no_grad()
def decode(module: Any, z: Tensor) -> Tensor:
    x: Tensor = module.decode(z)
    return x


def prepare(codec: Codec, *, shape: tuple[int, ...] | None = None) -> Case:
    """Return the codec with the first shape that it accepts.

    Raises `Failed` if it accepts none, and `Skipped` if it refuses all alike for the lack of a file.
    """
    reasons: dict[str, str] = {}
    for candidate in SHAPES if shape is None else (shape,):
        try:
            build_codec(codec, candidate)
        except UsageError as error:
            reasons[size(candidate)] = str(error)
        except DifftoolError as error:
            raise Failed(f"{size(candidate)}: {error}") from None
        else:
            return Case(codec, candidate)
    if len(alike := set(reasons.values())) == 1 and _lacks_a_path(codec):
        raise Skipped(alike.pop())
    refusals = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
    advice = "" if shape else "; name one that fits by --shape, or check_component(..., shape=...)"
    raise Failed(f"it accepts none of the shapes tried ({refusals}){advice}")


def _lacks_a_path(codec: Codec) -> bool:
    """Return whether an option that names a file to read has no value."""
    return any(getattr(codec, f.name) is None for f in fields(type(codec)) if f.use_in(type(codec)) is not None)


def gives_latents_of_one_shape(case: Case) -> str:
    """`encode` returns finite float32 latents of the same shape for one item and for five, and `decode` returns float32
    items of the shape of the data. Neither changes the tensor that it receives."""
    for count in (1, 5):
        x = case.items[:count].clone()
        z = encode(case.module, x)
        require(torch.equal(x, case.items[:count]), "encode() changes its items in place")
        if z.dtype != torch.float32 or z.ndim < 2 or z.shape != (count, *case.latents.shape[1:]):
            raise Failed(f"encode() returned {tuple(z.shape)} {z.dtype} for {count} items of {size(case.shape)}")
        require(z.isfinite().all(), "latents hold NaN or infinite numbers")
        before = z.clone()
        y = decode(case.module, z)
        require(torch.equal(z, before), "decode() changes its latents in place")
        if y.dtype != torch.float32 or y.shape != x.shape:
            raise Failed(f"decode() returned {tuple(y.shape)} {y.dtype}, not {tuple(x.shape)} torch.float32")
        require(y.isfinite().all(), "decoded items hold NaN or infinite numbers")
    return f"{size(case.shape)} to {size(tuple(case.latents.shape[1:]))}"


def decodes_what_it_encoded(case: Case) -> str:
    """If the fitted module has an `error`, the root mean square of decode(encode(x)) - x over the items that it was
    fitted to is that error, to 2 %."""
    measured = float((decode(case.module, case.latents) - case.items).square().mean().sqrt())
    claimed = getattr(case.module, "error", None)
    if claimed is None:
        raise Skipped(f"it claims no error; {measured:.3g} was measured on random items")
    if not abs(measured - float(claimed)) <= TOLERANCE * float(claimed) + ROUNDING:
        raise Failed(f"the error is {measured:.3g}, and the module claims {float(claimed):.3g}")
    return f"{measured:.3g} of a deviation of {float(case.items.std()):.2g}"


def latents_differ(case: Case) -> str:
    """The latents of different items differ by a finite amount, so that difftool can scale them to a deviation of 1."""
    deviation = float(case.latents.double().std(dim=0, correction=0).square().mean().sqrt())
    require(math.isfinite(deviation) and deviation > 0, f"the latents of all items are the same ({deviation})")
    return f"deviation {deviation:.2g}"


def keeps_the_range_it_claims(case: Case) -> str:
    """If the codec says `keeps_range`, latents have the lowest and the highest number of the items, and their deviation
    around 0, so that scale and bounds of the data are those of latents."""
    if not case.codec.keeps_range:
        raise Skipped("it does not claim to")
    x, z = case.items, case.latents
    ends = max(abs(float(x.min() - z.min())), abs(float(x.max() - z.max())))
    powers = [float(numbers.double().square().mean().sqrt()) for numbers in (x, z)]
    require(
        ends <= ROUNDING, f"items reach from {x.min():.3g} to {x.max():.3g}, latents {z.min():.3g} to {z.max():.3g}"
    )
    require(abs(powers[0] - powers[1]) <= ROUNDING, f"root mean square {powers[0]:.4g}, of latents {powers[1]:.4g}")
    return f"{z.min():.2g} to {z.max():.2g}"


def is_deterministic(case: Case) -> str:
    """A second call of `encode` or `decode` gives the same numbers to the last bit, whatever random numbers the program
    has drawn in between, and draws none itself."""
    torch.manual_seed(1)
    state = torch.get_rng_state()
    again = encode(case.module, case.items)
    restored = decode(case.module, case.latents)
    require(torch.equal(torch.get_rng_state(), state), "it draws from torch's global random generator")
    require(torch.equal(again, case.latents), f"two calls of encode() differ by {gap(again, case.latents):.2g}")
    torch.manual_seed(2)
    difference = gap(decode(case.module, case.latents), restored)
    require(difference == 0.0, f"two calls of decode() differ by {difference:.2g}")
    return "equal to the last bit"


def treats_items_independently(case: Case) -> str:
    """The latents of an item, and the item of some latents, do not depend on the others in the batch."""
    alone = torch.cat([encode(case.module, x) for x in torch.split(case.items[:4], 1)])
    room = 10 * ROUNDING * largest(case.latents)
    difference = gap(alone, case.latents[:4])
    require(difference <= room, f"latents change by {difference:.2g} with the other items of a batch")
    together = decode(case.module, case.latents[:8])
    alone = torch.cat([decode(case.module, z) for z in torch.split(case.latents[:4], 1)])
    restored = gap(alone, together[:4])
    require(restored <= 10 * ROUNDING, f"decoded items change by {restored:.2g} with the others of a batch")
    return f"{max(difference, restored):.1g} apart"


def fits_the_same_again(case: Case) -> str:
    """A second module that is built and fitted to the same items has the same parameters and buffers to the last bit,
    and `fit` leaves the items as they are."""
    state = case.module.state_dict()
    torch.manual_seed(3)
    other = case.fitted().state_dict()
    require(torch.equal(case.items, smooth(case.shape, COUNT)), "fit() changes the items in place")
    require(state.keys() == other.keys(), "a second module has other parameters and buffers")
    if changed := [name for name in state if not torch.equal(state[name].nan_to_num(), other[name].nan_to_num())]:
        raise Failed(f"{changed[0]} differs in a second module that was fitted to the same items")
    return f"{len(state)} tensors"


def is_not_trained(case: Case) -> str:
    """Encoding and decoding change no parameter and no buffer of the module."""
    module = case.fitted()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    decode(module, encode(module, case.items))
    changed = [
        name for name, t in module.state_dict().items() if not torch.equal(t.nan_to_num(), before[name].nan_to_num())
    ]
    require(not changed, f"{', '.join(changed)} changed while it encoded and decoded")
    return "nothing changes"


def passes_gradients(case: Case) -> str:
    """Gradients flow through `decode`: those of what is decoded are finite in all latents, and not all 0."""
    z = case.latents[:2].clone().requires_grad_()
    x: Tensor = case.module.decode(z)  # type: ignore[operator]
    require(x.requires_grad, "what it decodes has no gradient; decode must not switch gradients off")
    (gradient,) = torch.autograd.grad(x.square().sum(), z)
    norm = float(gradient.norm())
    require(math.isfinite(norm) and norm > 0, f"the gradient in the latents has the norm {norm}")
    return f"norm {norm:.2g}"


def can_be_saved_and_loaded(case: Case) -> str:
    """A module that is built from the `facts` of this one alone, by a component without its paths, and then loads the
    weights from a safetensors file, encodes and decodes to the same bits. So does one that was built on the meta
    device. Its `facts` are plain values that JSON gives back, and name no path of an option."""
    facts = getattr(case.module, "facts", {})
    try:
        text = json.dumps(facts, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise Failed(f"its facts are no plain values: {error}") from None
    require(isinstance(facts, dict) and json.loads(text) == facts, "JSON gives back other facts; use lists, not tuples")
    options = plain(case.codec)
    pathless = without_paths(type(case.codec), options)
    paths = [str(value) for name, value in options.items() if name not in pathless]
    require(not any(json.dumps(path)[1:-1] in text for path in paths), "its facts name the path of an option")
    component = make(type(case.codec), pathless)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "codec.safetensors"
        checkpoint.save(path, {f"codec.{name}": t for name, t in case.module.state_dict().items()}, {})
        tensors = {name.removeprefix("codec."): t for name, t in checkpoint.load(path)[0].items()}
    loaded = _of_file(component, case.shape, json.loads(text))
    with devices.meta():
        meta = _of_file(component, case.shape, json.loads(text))
    for module in (loaded, meta):
        if rows := checkpoint.differences(module.state_dict(), tensors):
            raise Failed(f"a module that is built from the facts has other tensors: {rows}")
    loaded.load_state_dict(tensors)
    require(torch.equal(encode(loaded, case.items), case.latents), "the latents differ after it was loaded")
    same = torch.equal(decode(loaded, case.latents), decode(case.module, case.latents))
    require(same, "what it decodes differs after it was loaded")
    return f"{len(tensors)} tensors, {len(text)} characters of facts"


def _of_file(component: Codec, shape: tuple[int, ...], facts: dict[str, Any]) -> nn.Module:
    """Return the module that the facts of a file describe. Raises `Failed`."""
    try:
        module = build_codec(component, shape, facts)
    except DifftoolError as error:
        raise Failed(f"it cannot be built from its facts alone: {error}") from None
    require(module is not None, "built from its facts it is None")
    assert module is not None
    return module


def refuses_unsupported_shapes(case: Case) -> str:
    """Items of odd shapes either work, or `build` refuses them with a `ValueError`, so users learn of it before they
    train."""
    accepted, refused = [], []
    for shape in ODD_SHAPES:
        odd = replace(case, shape=shape)
        try:
            module = odd.fitted()
        except Skipped:
            raise
        except UsageError:
            refused.append(size(shape))
            continue
        except DifftoolError as error:
            raise Failed(f"build() for items of {size(shape)}: {error}; raise ValueError instead") from None
        except Exception as error:
            raise Failed(f"fit() for items of {size(shape)} {raised(error)}") from None
        try:
            shapes = decode(module, encode(module, odd.items[:2])).shape
        except Exception as error:
            raise Failed(f"build() accepted items of {size(shape)}, but the codec {raised(error)}") from None
        require(shapes == (2, *shape), f"items of {size(shape)} come back as {tuple(shapes)}")
        accepted.append(size(shape))
    return f"accepts {', '.join(accepted) or 'none'}; refuses {', '.join(refused) or 'none'}"


def works_on_every_device(case: Case) -> str:
    """On each accelerator of the machine, latents and decoded items differ from those on the CPU by at most a
    hundredth."""
    devices, module = accelerators(), case.fitted()
    for device in devices:
        module.to(device)
        z = encode(module, case.items.to(device)).cpu()
        x = decode(module, case.latents.to(device)).cpu()
        room = 1e-2 * largest(case.latents)
        require(gap(z, case.latents) <= room, f"latents on {device} differ by {gap(z, case.latents):.2g}")
        expected = decode(case.module, case.latents)
        require(
            gap(x, expected) <= 1e-2 * largest(expected), f"decoded items on {device} differ by {gap(x, expected):.2g}"
        )
    return ", ".join(map(str, devices))


LAWS = (
    gives_latents_of_one_shape,
    decodes_what_it_encoded,
    latents_differ,
    keeps_the_range_it_claims,
    is_deterministic,
    treats_items_independently,
    fits_the_same_again,
    is_not_trained,
    passes_gradients,
    can_be_saved_and_loaded,
    refuses_unsupported_shapes,
    works_on_every_device,
)
