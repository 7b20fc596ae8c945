"""The training of a small classifier, a function of the data and a seed alone."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from difftool import FeaturesSpec, Samples
from difftool_plugins.features.fitting import Described, standardised
from difftool_plugins.features.pixels import averaged

BATCH = 64
FILE = "network.safetensors"
TESTED = 1000
"""The largest number of items that are kept from training to test the network; otherwise a tenth of them."""


class Network(nn.Module):
    """Convolutions over the axes of an item, each second one with a stride of 2, and two layers of their mean."""

    def __init__(self, channels: int, axes: int, width: int, classes: int) -> None:
        super().__init__()
        convolution = {0: None, 1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[axes]
        widths = [channels, width // 2, width // 2, width, width]
        layers: list[nn.Module] = []
        for k, (before, after) in enumerate(itertools.pairwise(widths)):
            if convolution is None:
                layers.append(nn.Linear(before, after))
            else:
                layers.append(convolution(before, after, 3, padding=1, stride=1 + k % 2))
            layers += [nn.GroupNorm(1, after), nn.SiLU()]
        self.body = nn.Sequential(*layers)
        self.last_but_one = nn.Linear(width, width)
        self.head = nn.Linear(width, classes)

    def features(self, x: Tensor) -> Tensor:
        """Return features (B, width) of items (B, C, ...) in model units."""
        inner = self.body(x)
        return nn.functional.silu(self.last_but_one(inner.flatten(2).mean(2) if inner.ndim > 2 else inner))

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (B, classes)."""
        logits: Tensor = self.head(self.features(x))
        return logits


@dataclass(frozen=True, kw_only=True)
class Training:
    """A network to be trained on data, and how."""

    spec: FeaturesSpec
    data: Samples
    steps: int
    width: int
    lr: float
    size: tuple[int, int] | None
    """The (height, width) to which images are averaged down."""

    def features(self) -> Described:
        """Train, and return the last layer but one, with the accuracy on items that were kept from training."""
        assert self.data.labels is not None
        axes = len(self.spec.shape) - 1
        if axes > 3:
            raise ValueError(f"takes items of at most four axes, not {'x'.join(map(str, self.spec.shape))}")
        order = torch.randperm(len(self.data), generator=self.spec.generator("order"))
        tested = order[: min(TESTED, len(order) // 10)]
        network = self._network(int(self.data.labels.max()) + 1)
        if not restored(network, self.spec.cache):
            with torch.enable_grad(), torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
                self._train(network, order[len(tested) :])
            keep(network, self.spec.cache)
        network.eval().requires_grad_(False)
        facts = {"accuracy": round(self._accuracy(network, tested), 4), "tested": len(tested)} if len(tested) else {}
        function = standardised(lambda items: network.features(self._inputs(items)), self.spec, self.data)
        return Described(function, facts)

    def _network(self, classes: int) -> Network:
        """Return the network with weights that are a function of the seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.spec.generator("weights").initial_seed())
            return Network(self.spec.shape[0], len(self.spec.shape) - 1, self.width, classes).to(self.spec.device)

    def _train(self, network: Network, chosen: Tensor) -> None:
        assert self.data.labels is not None
        optimizer = torch.optim.AdamW(network.parameters(), lr=self.lr, weight_decay=1e-2)
        for step, indices in enumerate(itertools.islice(self._batches(chosen), self.steps)):
            for group in optimizer.param_groups:
                group["lr"] = self.lr * 0.5 * (1 + math.cos(math.pi * step / self.steps))
            labels = self.data.labels[indices].to(self.spec.device)
            loss = nn.functional.cross_entropy(network(self._items(indices)), labels)
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            optimizer.step()

    def _batches(self, chosen: Tensor) -> Iterator[Tensor]:
        """Yield the indices of batches, epoch after epoch, each in an order of its own."""
        size = min(BATCH, len(chosen))
        for epoch in itertools.count():
            order = chosen[torch.randperm(len(chosen), generator=self.spec.generator("epoch", epoch))]
            yield from order[: len(order) // size * size].view(-1, size)

    @torch.no_grad()
    def _accuracy(self, network: Network, tested: Tensor) -> float:
        assert self.data.labels is not None
        right = 0
        for first in range(0, len(tested), BATCH):
            indices = tested[first : first + BATCH]
            right += int((network(self._items(indices)).argmax(1).cpu() == self.data.labels[indices]).sum())
        return right / len(tested)

    def _items(self, indices: Tensor) -> Tensor:
        return self._inputs(self.data.take_items(indices.tolist()).to(self.spec.device))

    def _inputs(self, items: Tensor) -> Tensor:
        return averaged(self.data.scaling.to_model(items), self.size)


def restored(network: nn.Module, folder: Path | None) -> bool:
    """Give a network the weights that were kept in a folder, and return whether there were any that fit."""
    if folder is None or not (folder / FILE).is_file():
        return False
    try:
        weights = load_file(folder / FILE)
        network.load_state_dict(weights)
    except (OSError, RuntimeError, SafetensorError):
        return False
    return True


def keep(network: nn.Module, folder: Path | None) -> None:
    """Keep the weights of a network in a folder. Without room for them it is trained again next time."""
    if folder is None:
        return
    temporary = folder / f"{os.getpid()}.part"
    with contextlib.suppress(OSError, SafetensorError):
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: weight.cpu().contiguous() for name, weight in network.state_dict().items()}, temporary)
        temporary.replace(folder / FILE)
