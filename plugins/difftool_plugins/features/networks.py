"""Networks of others as functions of images."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from difftool import printable
from difftool_plugins.features.fitting import Described
from difftool_plugins.features.weights import WEIGHTS, sha256, tensors

BATCH = 32
"""The largest number of images that go through a network at once."""
SIDE = 224
"""The side of the images that the transformers get, or less if they were trained on smaller ones."""
STATISTICS = {
    "Dinov2Model": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "CLIPVisionModelWithProjection": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
}
"""Mean and deviation of the pixels from 0 to 1 that each was trained on."""


def inception(path: Path, device: torch.device) -> Described:
    """Return the 2,048 features of torch-fidelity's Inception with the weights in a file. Raises `ValueError`."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    file = io.BytesIO()
    torch.save(dict(tensors(path)), file)
    file.seek(0)  # it reads by pickle, so it gets a file of ours in place of the stranger's
    try:
        network: Any = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=file)
    except RuntimeError as error:
        raise ValueError(f"weights: {printable(str(path))} are not those of Inception ({_first(error)})") from None
    network.to(device)

    def features(items: Tensor) -> Tensor:
        (found,) = network(colours(items))
        return torch.as_tensor(found)

    return Described(by_parts(features), {"sha256": sha256(path)})


def transformer(architecture: str, folder: Path, device: torch.device) -> Described:
    """Return the features of a network of transformers, with the configuration and weights in a folder.

    Images are resized to squares by bicubic interpolation. Raises `ValueError`.
    """
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    kind: Any = getattr(transformers, architecture)
    try:
        network, loaded = kind.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, dtype=torch.float32, output_loading_info=True
        )
    except Exception as error:  # whatever a stranger's configuration makes of the library
        raise ValueError(f"weights: {printable(str(folder))} cannot be read ({_first(error)})") from None
    if missing := sorted(loaded["missing_keys"]):
        raise ValueError(f"weights: {printable(str(folder))} lacks {printable(missing[0])} of {architecture}")
    network.to(device).eval().requires_grad_(False)
    mean, std = (torch.tensor(values, device=device).view(3, 1, 1) for values in STATISTICS[architecture])
    side = min(SIDE, int(network.config.image_size))

    def features(items: Tensor) -> Tensor:
        x = interpolate(colours(items) / 255, size=(side, side), mode="bicubic", antialias=True).clamp(0, 1)
        found = network(pixel_values=(x - mean) / std)
        return torch.as_tensor(found.image_embeds if hasattr(found, "image_embeds") else found.last_hidden_state[:, 0])

    return Described(by_parts(features), {"sha256": sha256(folder / WEIGHTS)})


def colours(items: Tensor) -> Tensor:
    """Return images (B, C, H, W) of pixels as RGB (B, 3, H, W), uint8."""
    pixels = items if items.dtype == torch.uint8 else items.round().clamp(0, 255).to(torch.uint8)
    return pixels.expand(-1, 3, -1, -1)


def by_parts(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return the function for batches of any size, of which it gets at most `BATCH` items at once."""

    def parts(items: Tensor) -> Tensor:
        with torch.no_grad():
            found = [function(items[first : first + BATCH]) for first in range(0, len(items), BATCH)]
        return torch.cat(found).float()

    return parts


def _first(error: Exception) -> str:
    """Return the first line of an error, shortened."""
    lines = str(error).split("\n")
    return printable(" ".join(line.strip() for line in lines[:2]))[:200]
