"""Weights of others: where they are looked for, and how they are read without running what lies in them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from difftool import DifftoolError, printable

CONFIG, WEIGHTS = "config.json", "model.safetensors"
INCEPTION_HASH = "6726825d"
"""The first digits of the SHA-256 of torch-fidelity's Inception, which are in its name too."""


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hub_folder(repository: str, weights: Path | None, *, download: bool) -> Path:
    """Return a folder with a configuration and safe weights: the one given, or that of a repository in the cache.

    Raises `DifftoolError` where there is none and it may not be downloaded, and `ValueError` for a wrong one.
    """
    if weights is not None:
        for name in (CONFIG, WEIGHTS):
            if not (weights / name).is_file():
                raise ValueError(f"weights: {printable(str(weights))} is no folder with {CONFIG} and {WEIGHTS}")
        return weights
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    found = [try_to_load_from_cache(repository, name) for name in (CONFIG, WEIGHTS)]
    if all(isinstance(path, str) for path in found):
        return Path(str(found[0])).parent
    if not download:
        raise DifftoolError(
            f"the weights of {printable(repository)} are not in your cache; put {CONFIG} and {WEIGHTS} from "
            f"https://huggingface.co/{printable(repository)} into a folder and name it (--features.weights FOLDER), or "
            "let them be downloaded (--features.download)"
        )
    try:
        _, path = [hf_hub_download(repository, name) for name in (CONFIG, WEIGHTS)]
        return Path(str(path)).parent
    except Exception as error:  # of the network, and of a repository that has no such file
        raise DifftoolError(
            f"{printable(repository)} cannot be downloaded: {printable(str(error).splitlines()[0])}"
        ) from None


def inception_file(weights: Path | None, *, download: bool) -> Path:
    """Return the file of torch-fidelity's Inception: the one given, or the one in the cache of torch.

    Raises `DifftoolError` where there is none and it may not be downloaded, and `ValueError` for a wrong one.
    """
    if weights is not None:
        if not weights.is_file():
            raise ValueError(f"weights: {printable(str(weights))} is no file")
        return weights
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    url = str(URL_INCEPTION_V3)
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if path.is_file():
        return path
    if not download:
        raise DifftoolError(
            f"the weights of Inception are not in your cache; put {url} there, as {printable(str(path))}, or anywhere "
            "(--features.weights FILE), or let them be downloaded (--features.download)"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), hash_prefix=INCEPTION_HASH, progress=False)
    except (OSError, RuntimeError) as error:
        raise DifftoolError(f"{url} cannot be downloaded: {printable(str(error))}") from None
    return path


def tensors(path: Path) -> Mapping[str, Tensor]:
    """Return the tensors of a .safetensors file, or of one that torch wrote, of which nothing else is unpickled.

    Raises `ValueError`.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a stranger's file makes of the reader
        reason = printable(str(error).splitlines()[0] if str(error) else type(error).__name__)
        raise ValueError(f"weights: {printable(str(path))} cannot be read ({reason:.200})") from None
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise ValueError(f"weights: {printable(str(path))} holds more than tensors by name")
    return found
