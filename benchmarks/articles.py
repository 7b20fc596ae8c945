"""The loops that others write: a tutorial's own, and one with accelerate and diffusers' scheduler."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from benchmarks.measuring import Steps

BATCH, RATE = 128, 1e-3
CPU = torch.device("cpu")


class PlainTime(nn.Module):
    """The tutorials' network: layers of ReLU over the flat item with t/1000 as one more input."""

    def __init__(self, shape: tuple[int, ...], *, width: int = 128, depth: int = 1) -> None:
        super().__init__()
        numbers = torch.Size(shape).numel()
        sizes = [numbers + 1, *[width] * depth]
        layers: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(sizes):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(width, numbers))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        time = t.float()[:, None] / 1000
        answer: Tensor = self.layers(torch.cat([time, x.flatten(1)], dim=1)).view_as(x)
        return answer


class OneByOne(Dataset[Tensor]):
    """Items that a DataLoader asks for one at a time, as tutorials have it."""

    def __init__(self, items: Tensor) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> Tensor:
        return self.items[i]


def loader(items: Tensor, batch_size: int = BATCH) -> DataLoader[Tensor]:
    return DataLoader(OneByOne(items), batch_size, shuffle=True, drop_last=True)


def unseen_bar(batches: Any) -> Any:
    """tqdm's bar, written into nothing."""
    from tqdm.auto import tqdm

    with open(os.devnull, "w") as nowhere:
        yield from tqdm(batches, file=nowhere)


def article(
    network: nn.Module, items: Tensor, timesteps: int, *, statistics: bool = False, device: torch.device = CPU
) -> Iterator[None]:
    """A tutorial's loop: DataLoader, tqdm, Adam as it comes, and each step's loss as a number.

    `statistics`: it also keeps mean and variance of the network's answer and input.
    """
    network = network.to(device)
    alpha_bars = (1 - torch.linspace(1e-4, 0.02, timesteps, device=device)).cumprod(0)
    signal, noise = alpha_bars.sqrt(), (1 - alpha_bars).sqrt()
    optimizer = torch.optim.Adam(network.parameters(), lr=RATE)
    ones = (1,) * (items.ndim - 1)
    losses, seen = [], []
    while True:
        for x_0 in unseen_bar(loader(items)):
            x_0 = x_0.to(device)
            t = torch.randint(0, timesteps, (len(x_0),), device=device)
            eps = torch.randn_like(x_0)
            x_t = signal[t].view(-1, *ones) * x_0 + noise[t].view(-1, *ones) * eps
            answer = network(x_t, t)
            loss = F.mse_loss(answer, eps)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses.append(loss.item())
            if statistics:
                seen.append((answer.mean().item(), answer.var().item(), x_t.mean().item(), x_t.var().item()))
            yield


def accelerated(
    network: nn.Module,
    items: Tensor,
    timesteps: int,
    *,
    batch_size: int = BATCH,
    answer_of: Callable[[Any], Tensor] = lambda output: output,
    cpu: bool = True,
    compiled: bool = False,
) -> Steps:
    """The training loop of diffusers' tutorials: accelerate, their DDPMScheduler, clipping, a bar with the loss."""
    from accelerate import Accelerator
    from diffusers import DDPMScheduler

    accelerator = Accelerator(cpu=cpu)
    schedule = DDPMScheduler(num_train_timesteps=timesteps)
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE)
    trained: Any = torch.compile(network) if compiled else network
    network, optimizer, batches = accelerator.prepare(trained, optimizer, loader(items, batch_size))
    return _accelerated(accelerator, network, optimizer, batches, schedule, timesteps, answer_of)


def _accelerated(
    accelerator: Any,
    network: Any,
    optimizer: Any,
    batches: Any,
    schedule: Any,
    timesteps: int,
    answer_of: Callable[[Any], Tensor],
) -> Iterator[None]:
    from tqdm.auto import tqdm

    with open(os.devnull, "w") as nowhere:
        while True:
            bar = tqdm(total=len(batches), file=nowhere)
            for x_0 in batches:
                eps = torch.randn_like(x_0)
                t = torch.randint(0, timesteps, (len(x_0),), device=x_0.device)
                x_t = schedule.add_noise(x_0, eps, t)
                with accelerator.accumulate(network):
                    loss = F.mse_loss(answer_of(network(x_t, t)), eps)
                    accelerator.backward(loss)
                    accelerator.clip_grad_norm_(network.parameters(), 1.0)
                    optimizer.step()
                    optimizer.zero_grad()
                bar.update(1)
                bar.set_postfix(loss=loss.detach().item())
                yield
