"""Several processes that train or sample together under torchrun.

`connect` yields a `ProcessGroup`. A process by itself gets `SINGLE`, whose methods return what they are given, so
callers need no case of their own. torch.distributed is imported only where there are several processes.

A process that fails prints its line and exits. Its connections close with it, so the others fail at their next
exchange, and torchrun ends those that are left.
"""

from __future__ import annotations

import atexit
import contextlib
import copy
import gc
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from difftool.errors import DifftoolError, PeerDied, one_line

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

T = TypeVar("T")

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
"""The environment variables by which torchrun tells a process its place."""
GRADIENT_TIMEOUT = timedelta(minutes=5)
"""All processes end a step together, so one that has not read its share of a batch and computed gradients in this time
is dead. A killed process is noticed at once; the timeout is for machines that vanish."""
MEETING = timedelta(seconds=90)
"""The time in which all processes must have been started, and reach the main one."""
TIMEOUT = timedelta(minutes=30)
"""The timeout of all other exchanges, in which the main process may draw or save while the others wait for it."""


@dataclass(frozen=True)
class World:
    """The rank of this process, and the number of processes: on all machines, and on this one."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @property
    def is_main(self) -> bool:
        """The main process is the one that writes files, draws and prints."""
        return self.rank == 0


def world() -> World:
    """Return the place of this process by torchrun's environment; without one, that of a single process."""
    rank, size, local_rank, local_size = (os.environ.get(name, "") for name in NAMES)
    if not (rank.isdecimal() and size.isdecimal() and int(rank) < int(size)) or int(size) == 1:
        return World()
    local = int(local_rank) if local_rank.isdecimal() else int(rank)
    return World(int(rank), int(size), local, int(local_size) if local_size.isdecimal() else int(size))


def leave_world() -> None:
    """Make this process, and those that it starts, single ones."""
    for name in NAMES:
        os.environ.pop(name, None)


class ProcessGroup:
    """The processes that work together, as one of them sees them. In this class there is only one."""

    sharded = False
    """True if each process holds a part of every weight; see `difftool.training.sharding`."""

    def __init__(self, here: World | None = None) -> None:
        self.world = here or World()
        self.rank, self.size, self.is_main = self.world.rank, self.world.size, self.world.is_main

    @property
    def key(self) -> tuple[int, ...]:
        """The parts to add to a random key (`difftool.rng.key`) for numbers that differ by process."""
        return () if self.is_main else (self.rank,)

    def shard(self, n: int) -> slice:
        """Return this process's share of n items."""
        return slice(self.rank * n // self.size, (self.rank + 1) * n // self.size)

    def loss_factor(self, n: int) -> float:
        """Return the factor for the mean loss over this process's share of n items.

        Shares differ in size; with the factor, the mean over the processes is the mean over the n items.
        """
        shard = self.shard(n)
        return float(shard.stop - shard.start) * self.size / n

    def spread(self, network: nn.Module) -> None:
        """Leave each process its part of the weights, if they are to be sharded."""

    def copied(self, network: nn.Module) -> nn.Module:
        """Return a copy of the network, in parts as the network is."""
        return copy.deepcopy(network)

    def whole(self, network: nn.Module) -> nn.Module:
        """Return the network as the main process can use it inside `on_main`: whole."""
        return network

    def norm(self, own: Tensor) -> Tensor:
        """Return the norm of the gradients of all weights, given that of those that this process updates."""
        return own

    def wrap(self, network: nn.Module) -> nn.Module:
        """Return the network such that a backward pass averages gradients over the processes."""
        return network

    def wrap_again(self, wrapped: nn.Module, network: nn.Module) -> nn.Module:
        """Return the wrapped network for the steps after the first, which has shown whether all weights are used."""
        return wrapped

    def averaging(self, wrapped: nn.Module, now: bool) -> AbstractContextManager[object]:
        """Return a context for a forward and a backward pass that averages the gradients, or else only adds them up."""
        return contextlib.nullcontext()

    def average_gradients(self, weights: Sequence[nn.Parameter]) -> None:
        """Average the gradients of weights that do not belong to the wrapped network over the processes."""

    def all_max(self, number: int) -> int:
        """Return the largest of the processes' numbers."""
        return number

    def all_sum(self, value: float) -> float:
        """Return the sum of the processes' values."""
        return value

    def all_mean(self, value: float) -> float:
        """Return the mean of the processes' values."""
        return self.all_sum(value) / self.size

    def all_gather(self, value: T) -> list[T]:
        """Return the values of all processes by rank."""
        return [value]

    def on_main(self, function: Callable[[], T]) -> T:
        """Call a function in the main process alone, and return its result in all."""
        return function()

    def send(self, tensor: Tensor) -> None:
        """Send a tensor to the main process, which must `recv` it."""

    def recv(self, tensor: Tensor, rank: int) -> None:
        """Fill a tensor with the one that another process sends."""


SINGLE = ProcessGroup()


class DistributedGroup(ProcessGroup):
    """Several processes, connected by torch.distributed.

    One group averages gradients, on GPUs by NCCL; another, on CPUs by gloo, exchanges the rest.
    """

    def __init__(self, here: World, device: torch.device | None) -> None:
        super().__init__(here)
        import torch.distributed as dist

        self._dist = dist
        self._cpu: Any = dist.new_group(timeout=TIMEOUT, backend="gloo")
        self._gradients: Any = None
        if device is not None:
            backend = "nccl" if device.type == "cuda" else "gloo"
            self._gradients = dist.new_group(timeout=GRADIENT_TIMEOUT, backend=backend)

    def close(self) -> None:
        for group in (self._cpu, self._gradients):
            if group is not None:
                self._dist.destroy_process_group(group)

    def wrap(self, network: nn.Module) -> nn.Module:
        self._silent = {weight for weight in network.parameters() if weight.requires_grad}
        weights: list[Any] = [*self._silent]
        self._hooks = [weight.register_post_accumulate_grad_hook(self._silent.discard) for weight in weights]
        self._in_vectors = any(weight.grad is not None for weight in weights)
        return self._averaged(network, find_unused_parameters=True)

    def wrap_again(self, wrapped: nn.Module, network: nn.Module) -> nn.Module:
        for hook in self._hooks:
            hook.remove()
        skips = self.all_max(len(self._silent)) > 0 or getattr(network, "skips_weights", False)
        return wrapped if skips else self._averaged(network, find_unused_parameters=False)

    def _averaged(self, network: nn.Module, *, find_unused_parameters: bool) -> nn.Module:
        from torch.nn.parallel import DistributedDataParallel

        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="`broadcast_buffers`")  # torch 2.6 has no other name for it
            return DistributedDataParallel(
                network,
                process_group=self._gradients,
                broadcast_buffers=False,
                find_unused_parameters=find_unused_parameters,  # a search through the graph in every step
                gradient_as_bucket_view=not self._in_vectors,  # gradients that are views of vectors must stay so
            )

    def averaging(self, wrapped: nn.Module, now: bool) -> AbstractContextManager[object]:
        return contextlib.nullcontext() if now else wrapped.no_sync()  # type: ignore[operator]

    def average_gradients(self, weights: Sequence[nn.Parameter]) -> None:
        import torch

        # one exchange, in which all processes take part, also one whose share of the batch used none of the weights
        gradients = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in weights]
        flat = torch.cat([gradient.float().flatten() for gradient in gradients])
        self._dist.all_reduce(flat, group=self._gradients)
        flat /= self.size
        for weight, old, new in zip(weights, gradients, torch.split(flat, [*map(torch.numel, weights)]), strict=True):
            weight.grad = old.copy_(new.view(old.shape))

    def all_max(self, number: int) -> int:
        import torch

        largest = torch.tensor(number)
        self._dist.all_reduce(largest, self._dist.ReduceOp.MAX, group=self._cpu)
        return int(largest)

    def all_sum(self, value: float) -> float:
        import torch

        total = torch.tensor(value, dtype=torch.float64)
        self._dist.all_reduce(total, group=self._cpu)
        return total.item()

    def all_gather(self, value: T) -> list[T]:
        values: list[Any] = [None] * self.size
        self._dist.all_gather_object(values, value, group=self._cpu)
        return values

    def on_main(self, function: Callable[[], T]) -> T:
        result: list[Any] = [function() if self.is_main else None]
        self._dist.broadcast_object_list(result, group=self._cpu)
        value: T = result[0]
        return value

    def send(self, tensor: Tensor) -> None:
        self._dist.send(tensor.contiguous(), 0, group=self._cpu)

    def recv(self, tensor: Tensor, rank: int) -> None:
        self._dist.recv(tensor, rank, group=self._cpu)


@contextlib.contextmanager
def connect(
    device: torch.device | None = None, kind: type[DistributedGroup] = DistributedGroup
) -> Iterator[ProcessGroup]:
    """Connect the processes of this run for a block. To share gradients, `device` is the one of this process.

    A script that has called `torch.distributed.init_process_group` itself keeps its default group. Raises `PeerDied` if
    another process is gone, also inside the block.
    """
    here = world()
    if here.size == 1:
        yield SINGLE
        return
    with naming_lost_peers():
        import torch
        import torch.distributed as dist

        if not dist.is_initialized():
            _meet()
            atexit.register(_leave)
        if device is not None and device.type == "cuda":
            torch.cuda.set_device(device)
        group = kind(here, device)
        try:
            yield group
        finally:
            group.close()


def end_if_connected(code: int) -> None:
    """Leave the other processes and end this one at once; do nothing if it was never connected with them.

    Threads of torch may still run. One that asks for Python's lock while Python is taken apart aborts the process.
    """
    dist = sys.modules.get("torch.distributed")
    if dist is None or not dist.is_available() or not dist.is_initialized():
        return
    dist.destroy_process_group()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def _leave() -> None:
    """Leave the other processes at the end of a script, before Python is taken apart; see `end_if_connected`.

    A group waits for its threads when it is freed, but a training that is over leaves its groups in a reference cycle.
    """
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()
    gc.collect()


def _meet() -> None:
    """Find the other processes. Raises `DifftoolError`, also if they cannot be reached in time."""
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    try:
        with _silent_descriptor():  # its C++ code repeats each failure there
            store, rank, size = next(rendezvous("env://", timeout=MEETING))
        store.set_timeout(TIMEOUT)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=TIMEOUT)
    except (ValueError, RuntimeError) as error:
        where = ":".join(os.environ.get(name, "?") for name in ("MASTER_ADDR", "MASTER_PORT"))
        reason = re.split(r"\. | \(|Exception raised| while trying", one_line(error).rstrip("."))[0]
        raise DifftoolError(f"cannot find the other processes at {where}: {reason}; start them with torchrun") from None


@contextlib.contextmanager
def _silent_descriptor() -> Iterator[None]:
    """Let what native code prints to descriptor 2 in a block vanish."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


@contextlib.contextmanager
def naming_lost_peers() -> Iterator[None]:
    """Turn errors of torch.distributed into `PeerDied` if another process is gone, and else into a `DifftoolError`."""
    try:
        yield
    except RuntimeError as error:
        if world().size == 1:
            raise
        import torch.distributed as dist

        text = one_line(error)
        if any(word in text for word in LOST):
            raise PeerDied("another process of this run failed or was killed") from error
        if "finished reduction in the prior iteration" in text:
            raise DifftoolError(
                "the network leaves some weights out of some steps, but not of the first; to train it with many "
                "processes, its class must set skips_weights = True"
            ) from error
        if isinstance(error, dist.DistError):
            raise DifftoolError(f"the processes cannot work together: {text}") from error
        raise


LOST = ("by peer", "imed out", "timeout", "Broken pipe", "remote process exited", "peer closed", "was aborted")
"""Words of gloo and NCCL about a process that is gone; they have no class of error for it."""
