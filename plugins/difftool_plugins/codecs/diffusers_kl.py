"""An autoencoder of diffusers as the module of a codec."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from difftool import printable


class KLModule(nn.Module):
    """An `AutoencoderKL` with the mode of its posterior as latents."""

    def __init__(self, autoencoder: nn.Module, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.autoencoder: Any = autoencoder
        self.facts = {"config": {name: list(v) if isinstance(v, tuple) else v for name, v in config.items()}}

    def encode(self, x: Tensor) -> Tensor:
        """Return the latents (B, latent channels, H/f, W/f) of images (B, C, H, W) from -1 to 1."""
        latents: Tensor = self.autoencoder.encode(x).latent_dist.mode()
        return latents

    def decode(self, z: Tensor) -> Tensor:
        """Return the images of latents."""
        images: Tensor = self.autoencoder.decode(z).sample
        return images


def from_config(config: Mapping[str, Any]) -> KLModule:
    """Return an autoencoder whose weights are still to be loaded. Raises `ValueError` if there is no such network."""
    try:
        with torch.random.fork_rng(devices=()):  # its first weights are random
            return KLModule(AutoencoderKL(**config), config)
    except Exception as error:
        raise ValueError(f"diffusers cannot build it by its configuration ({_line(error)})") from None


def from_folder(config: Mapping[str, Any], folder: Path, variant: str | None) -> KLModule:
    """Return the autoencoder of a folder, with its weights. Raises `ValueError` if they do not fit its configuration.

    On the meta device, which holds no numbers, nothing is read.
    """
    if torch.empty(0).is_meta:
        return from_config(config)
    with torch.device("meta"):
        from_config(config)  # refuses a configuration before the weights are read
    try:
        with torch.random.fork_rng(devices=()):
            autoencoder, info = AutoencoderKL.from_pretrained(
                folder,
                variant=variant,
                use_safetensors=True,
                local_files_only=True,
                low_cpu_mem_usage=False,
                output_loading_info=True,
            )
    except Exception as error:
        raise ValueError(f"path: {printable(str(folder))}: its weights cannot be loaded ({_line(error)})") from None
    if missing := info["missing_keys"]:
        raise ValueError(f"path: {printable(str(folder))}: its weights lack {printable(sorted(missing)[0])}")
    return KLModule(autoencoder.float(), config)


def _line(error: Exception) -> str:
    text = printable(" ".join(str(error).split()))
    return f"{type(error).__name__}: {text[:300]}"
