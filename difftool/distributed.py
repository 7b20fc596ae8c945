"""Many processes that train or sample together, as torchrun starts them: who this one is, and what they agree on.

One process by itself is a `Team` too, of which every method gives back what it was given; torch.distributed is
imported only where there are more. Nobody is waited for without end, and where one fails all do, with one line.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from itertools import count
from typing import TYPE_CHECKING, Any, TypeVar

from difftool.errors import DifftoolError, PeerDied, one_line

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

T = TypeVar("T")

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
"""Of the environment variables by which torchrun tells a process who it is."""
ALIVE = timedelta(seconds=60)
"""Who has not brought its gradients by then is dead: all begin a step together. A process that was killed is noticed
at once; this is for machines that vanish."""
PATIENCE = timedelta(minutes=30)
"""The same where one may be at work that the others wait for: reading data, drawing, saving."""
FAREWELL, SHORT_FAREWELL = 10.0, 1.0
"""Seconds that a process which fails waits for the others to fail too: by itself, or because another has died. The
latter pass it on one by one, as each that ends is noticed by the next."""
POLL = 0.02


@dataclass(frozen=True)
class World:
    """Which process this is, and of how many."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """Among the processes of this machine."""
    local_size: int = 1

    @property
    def first(self) -> bool:
        """Whether it is the one that writes, draws and speaks."""
        return self.rank == 0


def world() -> World:
    """As torchrun's environment has it; one process where it has nothing. Imports nothing."""
    rank, size, local_rank, local_size = (os.environ.get(name, "") for name in NAMES)
    if not (rank.isdecimal() and size.isdecimal() and int(rank) < int(size)) or int(size) == 1:
        return World()
    local = int(local_rank) if local_rank.isdecimal() else int(rank)
    return World(int(rank), int(size), local, int(local_size) if local_size.isdecimal() else int(size))


def hush() -> None:
    """Before torch is imported by one of many processes: what its C++ parts warn of, each for itself, is not shown.

    Above all that a network uses all its weights, which the wrapper of `Joined` must not count on.
    """
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


def forget() -> None:
    """From here on this is one process by itself, and so are those that it starts."""
    for name in NAMES:
        os.environ.pop(name, None)


class Team:
    """The processes that work together, seen from one. This one works alone, and pays nothing for the question."""

    def __init__(self, here: World | None = None) -> None:
        self.world = here or World()
        self.first, self.size = self.world.first, self.world.size

    @property
    def own(self) -> tuple[int, ...]:
        """What a key is made of, beside the rest, where each process shall draw other numbers."""
        return () if self.first else (self.world.rank,)

    def part(self, n: int) -> slice:
        """This process's part of n items."""
        rank, size = self.world.rank, self.size
        return slice(rank * n // size, (rank + 1) * n // size)

    def balance(self, n: int) -> float:
        """What the mean over this part of n items is multiplied by, so that the mean over processes is that of all."""
        part = self.part(n)
        return float(part.stop - part.start) * self.size / n

    def wrap(self, network: nn.Module) -> nn.Module:
        """The network, of which a backward pass gives the mean of all processes' gradients."""
        return network

    def agree(self, number: int | None) -> int | None:
        """The largest number that a process has, if any has one."""
        return number

    def sum(self, value: float) -> float:
        """The sum over the processes."""
        return value

    def mean(self, value: float) -> float:
        return self.sum(value) / self.size

    def gathered(self, value: T) -> list[T]:
        """What each process has, in order."""
        return [value]

    def by_first(self, make: Callable[[], T]) -> T:
        """What the first process makes, given to all. The others wait; where it fails, so do they."""
        return make()

    def give(self, tensor: Tensor) -> None:
        """Send a tensor to the first process, which must `take` it."""

    def take(self, room: Tensor, owner: int) -> Tensor:
        """What another process gives, in a tensor that has its shape."""
        return room


ALONE = Team()


class Joined(Team):
    """Several processes, joined by torch.distributed: gradients by one group, what is small and on CPUs by another."""

    def __init__(self, here: World, device: torch.device | None) -> None:
        super().__init__(here)
        import torch.distributed as dist

        self._dist = dist
        self._gradients: Any = None
        if device is not None:
            self._gradients = dist.new_group(timeout=ALIVE, backend="nccl" if device.type == "cuda" else "gloo")

    def wrap(self, network: nn.Module) -> nn.Module:
        from torch.nn.parallel import DistributedDataParallel

        # a network may leave some weights unused, and not always the same
        return DistributedDataParallel(
            network, process_group=self._gradients, broadcast_buffers=False, find_unused_parameters=True
        )

    def agree(self, number: int | None) -> int | None:
        import torch

        asked = torch.tensor(number or 0)
        self._dist.all_reduce(asked, self._dist.ReduceOp.MAX)
        return int(asked) or None

    def sum(self, value: float) -> float:
        import torch

        total = torch.tensor(value, dtype=torch.float64)
        self._dist.all_reduce(total)
        return total.item()

    def gathered(self, value: T) -> list[T]:
        values: list[Any] = [None] * self.size
        self._dist.all_gather_object(values, value)
        return values

    def by_first(self, make: Callable[[], T]) -> T:
        made = [make() if self.first else None]
        self._dist.broadcast_object_list(made)
        return made[0]  # type: ignore[return-value]  # the others' None is written over

    def give(self, tensor: Tensor) -> None:
        self._dist.send(tensor.contiguous(), 0)

    def take(self, room: Tensor, owner: int) -> Tensor:
        self._dist.recv(room, owner)
        return room


@contextlib.contextmanager
def joined(device: torch.device | None = None) -> Iterator[Team]:
    """The processes of this run, met and joined; `device`, if gradients are to be shared, is this process's own.

    Raises `PeerDied` where another has failed or is gone, in this block too.
    """
    here = world()
    if here.size == 1:
        yield ALONE
        return
    with telling_of_peers():
        store = _store()
        place = f"joined/{next(_counter)}"
        _meet(store, f"{place}/ready", PATIENCE.total_seconds())
        import torch.distributed as dist
        from torch.distributed.distributed_c10d import PrefixStore

        if dist.is_initialized():
            raise DifftoolError("this process has joined others already by torch.distributed; difftool does so itself")
        dist.init_process_group(
            "gloo",
            store=PrefixStore(place, store),
            rank=here.rank,
            world_size=here.size,
            timeout=PATIENCE,
        )
        try:
            if device is not None and device.type == "cuda":
                import torch

                torch.cuda.set_device(device)
            yield Joined(here, device)
        finally:
            dist.destroy_process_group()


_counter = count()
"""How often this process has joined others; as often as these have."""


@contextlib.contextmanager
def telling_of_peers() -> Iterator[None]:
    """What torch says when another process is gone becomes `PeerDied`, what else goes wrong between them one line."""
    try:
        yield
    except RuntimeError as error:
        if world().size == 1:
            raise
        import torch.distributed as dist

        text = one_line(error)
        if any(word in text for word in GONE):
            raise PeerDied("another process of this run died") from error
        if isinstance(error, dist.DistError):
            raise DifftoolError(f"the processes cannot work together: {text}") from error
        raise


GONE = ("by peer", "imed out", "timeout", "Broken pipe", "remote process exited", "peer closed", "was aborted")
"""Words of gloo and NCCL for another process that is gone; they have no class of error for it."""


# --- how all end -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def settled(code: int, message: str, *, died: bool) -> Iterator[tuple[int, bool]]:
    """In this block a failure is told: (the exit code of all processes, whether this is the one that tells it).

    A failure that several have is told by the first of them; that another died, only where nobody knows more. All leave
    the block together, for torchrun ends those that are left as soon as one has ended.
    """
    here = world()
    if here.size == 1:
        yield code, True
        return
    try:
        store = _store()
        known = _exchanged(store, here, {"code": code, "message": message, "died": died})
    except Exception:  # nobody can be asked
        yield code, True
        return
    reasons = {rank: one for rank, one in known.items() if not one["died"]}
    if reasons:
        alike = [rank for rank, one in reasons.items() if one["message"] == message]
        yield reasons[min(reasons)]["code"], here.rank in alike[:1]
    else:  # they notice one after the other: who is first tells it
        yield code, store.add("death told", 1) == 1
    if len(known) == here.size:
        with contextlib.suppress(Exception):
            _meet(store, "told", FAREWELL, failures=False)


def _exchanged(store: Any, here: World, own: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """The failures of all processes, by rank; of those that are dead, or at work without knowing, nothing."""
    store.set(f"failure/{here.rank}", json.dumps(own))
    with contextlib.suppress(PeerDied):
        _meet(store, "failed", SHORT_FAREWELL if own["died"] else FAREWELL, failures=False)
    keys = {rank: f"failure/{rank}" for rank in range(here.size)}
    return {rank: json.loads(store.get(key)) for rank, key in keys.items() if store.check([key])}


def _meet(store: Any, name: str, seconds: float, *, failures: bool = True) -> None:
    """Wait until all processes are here. Raises `PeerDied` after so many seconds, or as soon as one has failed.

    Signals are handled meanwhile, as they are not while torch waits.
    """
    size, deadline = world().size, time.monotonic() + seconds
    store.add(name, 1)
    while store.add(name, 0) < size:
        if failures and store.add("failed", 0):
            raise PeerDied("another process of this run failed")
        if time.monotonic() > deadline:
            raise PeerDied("another process of this run does not answer")
        time.sleep(POLL)


_stores: list[Any] = []
"""The store that torchrun provides, once it is connected to."""


def _store() -> Any:
    """Where the processes of this run leave notes for each other. Raises `DifftoolError` where there is none."""
    if not _stores:
        from torch.distributed.rendezvous import rendezvous

        try:
            _stores.append(next(iter(rendezvous("env://", timeout=ALIVE)))[0])
        except ValueError as error:
            raise DifftoolError(f"the other processes cannot be found: {error}; start them with torchrun") from None
    return _stores[0]
