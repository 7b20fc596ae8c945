"""Weights of others: where they are looked for, and how they are read without running what lies in them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from difftool import DifftoolError, printable

CONFIG, WEIGHTS = "config.json", "model.safetensors"


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


def inception_file(weights: Path | None) -> Path:
    """Return the file of torch-fidelity's Inception that is given. Raises `DifftoolError` without one."""
    if weights is None:
        raise DifftoolError(
            "the weights of Inception are not here; convert those of torch-fidelity to a .safetensors file, as "
            "docs/features.md says, and name it (--features.weights FILE)"
        )
    if not weights.is_file():
        raise ValueError(f"weights: {printable(str(weights))} is no file")
    return weights


def tensors(path: Path) -> Mapping[str, Tensor]:
    """Return the tensors of a .safetensors file. Raises `ValueError`."""
    from safetensors.torch import load_file

    if path.suffix != ".safetensors":
        raise ValueError(f"weights: {printable(str(path))} must be a .safetensors file, which holds numbers alone")
    try:
        return load_file(path)
    except Exception as error:  # whatever a stranger's file makes of the reader
        reason = printable(str(error).splitlines()[0] if str(error) else type(error).__name__)
        raise ValueError(f"weights: {printable(str(path))} cannot be read ({reason:.200})") from None
