"""The autoencoder of latent diffusion, read from a folder that diffusers wrote."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from difftool import Codec, CodecSpec, option, printable, read_json

if TYPE_CHECKING:
    from difftool_plugins.codecs.diffusers_kl import KLModule

CLASS = "AutoencoderKL"
CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model"
VARIANTS: dict[str | None, str] = {None: f"{WEIGHTS}.safetensors", "fp16": f"{WEIGHTS}.fp16.safetensors"}
"""The files of weights by the names that diffusers has for variants; the first one is taken that exists."""
LARGEST_NUMBER, MOST_BLOCKS, LONGEST_WORD = 4096, 16, 100
"""Limits for the entries of a configuration, which may come from a stranger's file."""


class AutoencoderKL(Codec, name="autoencoder-kl"):
    """The autoencoder of latent diffusion (Rombach et al., 2022), trained beforehand and saved by diffusers.

    Latents are the mode of its posterior. Its weights become part of the model file, which needs the folder no more.
    """

    path: Path | None = option(
        default=None,
        help=f"folder with {CONFIG} and {VARIANTS[None]}, such as the folder vae of Stable Diffusion",
        otherwise="none; a new run must be given one",
    )

    def build(self, spec: CodecSpec) -> KLModule:
        saved = spec.facts.get("config")
        if saved is None and self.path is None:
            raise ValueError("path: name the folder of an autoencoder (--codec.path FOLDER)")
        config = checked(saved if self.path is None or saved is not None else read_config(self.path))
        check_shape(spec.shape, config)
        if find_spec("diffusers") is None:
            raise ValueError("needs diffusers, which is not installed; pip install 'difftool[diffusers]'")
        from difftool_plugins.codecs.diffusers_kl import from_config, from_folder

        if saved is not None or self.path is None:
            return from_config(config)
        variants = (variant for variant, name in VARIANTS.items() if (self.path / name).is_file())
        return from_folder(config, self.path, next(variants, None))


def read_config(folder: Path) -> Any:
    """Return the configuration in a folder that holds safe weights too. Raises `ValueError`."""
    place = printable(str(folder))
    if not folder.is_dir():
        raise ValueError(f"path: {place} is not a folder")
    if not (folder / CONFIG).is_file():
        inner = folder / "vae"
        cure = f"; name {printable(str(inner))}" if (inner / CONFIG).is_file() else ""
        raise ValueError(f"path: {place} has no {CONFIG}{cure}")
    if not any((folder / name).is_file() for name in VARIANTS.values()):
        pickled = (folder / f"{WEIGHTS}.bin").is_file()
        cure = "; its .bin may run code, so it is never opened: save it with safe_serialization=True" if pickled else ""
        raise ValueError(f"path: {place} has no {VARIANTS[None]}{cure}")
    try:
        config = read_json(folder / CONFIG)
    except (OSError, ValueError) as error:
        raise ValueError(f"path: {place}: {CONFIG} cannot be read ({error})") from None
    name = config.get("_class_name") if isinstance(config, dict) else None
    if name != CLASS:
        raise ValueError(f"path: {place} holds {printable(repr(name))}, not an {CLASS}")
    return config


ARCHITECTURE = (
    *("in_channels", "out_channels", "latent_channels", "block_out_channels", "down_block_types", "up_block_types"),
    *("layers_per_block", "norm_num_groups", "act_fn", "use_quant_conv", "use_post_quant_conv"),
    "mid_block_add_attention",
)
"""The entries of a configuration that shape the network."""
REQUIRED = ("in_channels", "out_channels", "latent_channels", "block_out_channels")


def checked(config: Any) -> dict[str, Any]:
    """Return the entries that shape the network, all of them small. Raises `ValueError`."""
    if not isinstance(config, Mapping) or not all(name in config for name in REQUIRED):
        raise ValueError(f"its configuration lacks one of {', '.join(REQUIRED)}")
    chosen = {name: config[name] for name in ARCHITECTURE if name in config}
    for name, value in chosen.items():
        entries = value if isinstance(value, (list, tuple)) else [value]
        if len(entries) > MOST_BLOCKS or not entries or not all(map(_is_ordinary, entries)):
            raise ValueError(f"its configuration has no usable {name}")
    if not isinstance(chosen["block_out_channels"], (list, tuple)):
        raise ValueError("its configuration has no usable block_out_channels")
    return chosen


def _is_ordinary(value: Any) -> bool:
    if isinstance(value, str):
        return len(value) <= LONGEST_WORD
    return isinstance(value, int) and 0 <= value <= LARGEST_NUMBER  # a bool is an int


def check_shape(shape: tuple[int, ...], config: Mapping[str, Any]) -> None:
    """Raise `ValueError` if items of a shape do not fit the autoencoder."""
    channels, factor = config["in_channels"], 2 ** (len(config["block_out_channels"]) - 1)
    if config["out_channels"] != channels:
        raise ValueError(f"it takes {channels} channels and gives {config['out_channels']}, so it restores no images")
    size = "x".join(map(str, shape))
    if len(shape) != 3 or shape[0] != channels:
        raise ValueError(f"it takes images of {channels} channels, and the items are {size}")
    if any(side % factor for side in shape[1:]):
        nearest = [str(max(factor, round(side / factor) * factor)) for side in shape[1:]]
        raise ValueError(f"sides must be multiples of {factor}, and the items are {size}; {'x'.join(nearest)} fits")
