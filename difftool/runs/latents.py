"""Latent spaces in files of weights: the codec's tensors, its facts, and the scaling of its latents."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from difftool import devices
from difftool.data.facts import DataFacts
from difftool.data.latents import LatentSpace, latents_of
from difftool.errors import BadFile, DifftoolError
from difftool.plugins.build import build_codec
from difftool.runs import checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable

    from difftool.components import Codec

KEY = "latents"
"""The entry of a file's document that describes latents; a model of the data themselves has none."""
LARGEST_MODEL = 10**10
"""The largest number of parameters of a file's network, or of its codec. It is checked before memory is allocated."""


def document_of(space: LatentSpace | None) -> dict[str, Any]:
    """Return what a file records of a latent space beside the tensors of its codec."""
    if space is None:
        return {}
    facts = space.facts
    numbers = {"shift": list(facts.shift), "scale": list(facts.scale), "std": facts.std}
    return {KEY: {"shape": list(facts.shape), **numbers, "facts": dict(getattr(space.codec, "facts", {}))}}


def tensors_of(space: LatentSpace | None) -> dict[str, Tensor]:
    """Return the tensors of the codec, by name."""
    return {} if space is None else space.codec.state_dict()


def read_space(
    path: Path, component: Codec, data: DataFacts, document: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> LatentSpace | None:
    """Return the latent space that an untrusted file describes, or None if it has none. Raises `BadFile`."""
    recorded, name = document.get(KEY), f"codec {component.name}"
    if recorded is None and not tensors:
        return None
    if not isinstance(recorded, Mapping) or not isinstance(recorded.get("facts"), Mapping):
        raise BadFile(f"{path}: its metadata describe no latents")
    try:
        facts = DataFacts.read({**data.document(), **{k: recorded.get(k) for k in ("shape", "shift", "scale", "std")}})
        facts = latents_of(
            data,
            shape=facts.shape,
            shift=facts.shift,
            scale=facts.scale,
            std=facts.std,
            keeps_range=component.keeps_range,
            name=name,
        )
    except (ValueError, DifftoolError):
        raise BadFile(f"{path}: its metadata describe no latents that difftool knows") from None
    module = built(path, name, lambda: build_codec(component, data.shape, recorded["facts"]), tensors)
    return LatentSpace(module.requires_grad_(False), data, facts, name)


def built(path: Path, what: str, build: Callable[[], nn.Module | None], tensors: Mapping[str, Tensor]) -> nn.Module:
    """Return the module that a file describes, with its tensors.

    They are compared on the meta device first, without memory. Raises `BadFile`.
    """
    with devices.meta():
        sketch = build()
    if sketch is None:
        raise BadFile(f"{path}: its {what} is none")
    if sum(p.numel() for p in sketch.parameters()) > LARGEST_MODEL:
        raise BadFile(f"{path}: its metadata ask for more than {LARGEST_MODEL:,} parameters")
    if rows := checkpoint.differences(sketch.state_dict(), tensors):
        raise BadFile(f"{path}: its weights do not fit its {what}: {rows}")
    module = build()
    assert module is not None
    module.load_state_dict(tensors)
    return module
