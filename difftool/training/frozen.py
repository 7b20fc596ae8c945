"""Parameters that training leaves as they are."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from torch import nn

from difftool.errors import InvalidOption

if TYPE_CHECKING:
    from difftool.settings import Training

LISTED = 3
"""The number of names that a message lists."""


def freeze(network: nn.Module, settings: Training) -> None:
    """Let only the parameters train that the settings select. Raises `InvalidOption` if a pattern selects none."""
    names = [name for name, _ in network.named_parameters()]
    chosen = [name for name in names if not is_frozen(name, settings)]
    option = "train_only" if settings.train_only is not None else "freeze"
    flag, reason = f"--{option.replace('_', '-')}", ""
    if option == "train_only" and not chosen:
        reason = f"{settings.train_only!r} matches none"
    elif settings.freeze is not None and len(chosen) in (0, len(names)):
        reason = f"{settings.freeze!r} matches {'none' if chosen else 'all'}"
    if reason:
        raise InvalidOption(option, f"{reason} of the {len(names)} parameters: {listed(names)}", where=flag)
    for name, weight in network.named_parameters():
        if is_frozen(name, settings):
            weight.requires_grad_(False)


def is_frozen(name: str, settings: Training) -> bool:
    """Return whether the settings leave a parameter or buffer of this name as it is."""
    if settings.train_only is not None:
        return re.search(settings.train_only, name) is None
    return settings.freeze is not None and re.search(settings.freeze, name) is not None


def train_mode(network: nn.Module, settings: Training) -> None:
    """Put a network into training mode, but for the modules whose parameters and buffers are all frozen.

    The norm statistics of those stay as they are.
    """
    network.train()
    if settings.train_only is None and settings.freeze is None:
        return
    for path, module in network.named_modules():
        buffers = [name for name, _ in module.named_buffers(recurse=False)]
        names = [*(name for name, _ in module.named_parameters(recurse=False)), *buffers]
        if buffers and all(is_frozen(f"{path}.{name}" if path else name, settings) for name in names):
            module.training = False


@contextlib.contextmanager
def evaluating(*networks: nn.Module | None) -> Iterator[None]:
    """Put networks into evaluation mode for a block, and each of their modules back into its own mode."""
    modules = [module for network in networks if network is not None for module in network.modules()]
    modes = [(module, module.training) for module in modules]
    for module in modules:
        module.training = False
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def listed(names: Sequence[str]) -> str:
    """Return the first names, and the number of the others."""
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more
