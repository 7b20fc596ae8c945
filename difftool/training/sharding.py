"""Weights that are shared out among processes, for networks that do not fit one of them: `--shard`.

torch's `fully_shard` (FSDP2) leaves each process some rows of every weight, and gathers those of a block where the
block computes. Optimizer and averages work on the rows that a process holds, as they do on whole weights elsewhere. The
main process alone draws, measures and saves models; while it does, the others wait, and take part in whatever needs the
whole network.
"""

from __future__ import annotations

import contextlib
import copy
import ctypes
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from difftool.compiling import CONTAINERS
from difftool.distributed import DistributedGroup
from difftool.errors import DifftoolError
from difftool.runs.states import rows_of
from difftool.training.frozen import evaluating
from difftool.training.vectors import is_sharded, own_part

if TYPE_CHECKING:
    from difftool.distributed import World

T = TypeVar("T")

SMALLEST, LARGEST = 1 / 1000, 1 / 8
"""The shares of all numbers between which a block is gathered by itself: a smaller one with what surrounds it, and of a
larger one each block inside."""
M_MMAP_THRESHOLD, LEAST_GIVEN_BACK = -3, 2**20
"""The number by which glibc's `mallopt` knows the size of blocks that go back to the system, and that size in bytes."""


def give_back_freed_memory() -> None:
    """Let the C library return large blocks to the system once they are freed.

    glibc keeps all of up to 32 MiB once it has seen one freed, and whole weights come and go in every step.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # other C libraries return them anyway
            ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LEAST_GIVEN_BACK)


def units(network: nn.Module) -> list[nn.Module]:
    """Return the blocks whose weights are gathered together, the innermost first, without the network itself.

    They are members of lists, and modules of a class that the network has several of, unless a weight of theirs also
    belongs to another one.
    """
    owners = Counter(id(weight) for module in network.modules() for weight in own_weights(module))
    classes = Counter(type(module) for module in network.modules())
    members = {child for module in network.modules() if isinstance(module, CONTAINERS) for child in module.children()}
    total = sum(weight.numel() for weight in network.parameters())

    def is_block(module: nn.Module) -> bool:
        if type(module).forward is nn.Module.forward:  # a list, which is never called
            return False
        weights = Counter(id(weight) for part in module.modules() for weight in own_weights(part))
        if any(owners[weight] > count for weight, count in weights.items()):
            return False
        own = not type(module).__module__.startswith("torch.") and any(True for _ in module.children())
        return module in members or (own and classes[type(module)] > 1)

    def found(module: nn.Module) -> Iterator[nn.Module]:
        for child in module.children():
            share = sum(weight.numel() for weight in child.parameters()) / max(1, total)
            if share < SMALLEST:
                continue
            if is_block(child):
                yield child
                if share <= LARGEST:
                    continue
            yield from found(child)

    return [*dict.fromkeys(found(network))][::-1]


def own_weights(module: nn.Module) -> Iterator[nn.Parameter]:
    """Yield the weights of a module itself, without those of its children."""
    return module.parameters(recurse=False)


def without_view(_module: nn.Module, _inputs: object, output: object) -> object:
    """Copy an output that is a view: changed in place, it would lose the hook that gathers weights backwards."""
    return output.clone() if isinstance(output, Tensor) and output._is_view() else output


def without_memory(network: nn.Module) -> nn.Module:
    """Return a copy whose weights have shapes and no values. Its buffers are copied."""
    empty = {id(w): nn.Parameter(torch.empty_like(w, device="meta"), w.requires_grad) for w in network.parameters()}
    return copy.deepcopy(network, empty)


class ShardedGroup(DistributedGroup):
    """Processes of which each holds a part of every weight."""

    sharded = True

    def __init__(self, here: World, device: torch.device | None) -> None:
        super().__init__(here, device)
        self.device = device or torch.device("cpu")
        give_back_freed_memory()
        self._mesh = DeviceMesh.from_group(self._gradients, self.device.type)
        self._templates: dict[nn.Module, nn.Module] = {}
        self._views: list[Whole] = []

    def spread(self, network: nn.Module) -> None:
        self._templates[network] = without_memory(network)
        self._shard(network)

    def copied(self, network: nn.Module) -> nn.Module:
        template = self._templates[network]
        made = copy.deepcopy(template)
        self._shard(made)
        with torch.no_grad():
            for new, old in zip(made.parameters(), network.parameters(), strict=True):
                own_part(new).copy_(own_part(old))
            for buffer, other in zip(made.buffers(), network.buffers(), strict=True):
                buffer.copy_(other)
        self._templates[made] = template
        return made

    def _shard(self, network: nn.Module) -> None:
        for module in (*units(network), network):
            module.register_forward_hook(without_view)
            fully_shard(module, mesh=self._mesh)
        if any(weight.is_meta for weight in network.parameters()):
            network.to_empty(device=self.device)
        for module in network.modules():
            if isinstance(module, FSDPModule):
                module.unshard()  # from here on the parts stay where they are in memory
                module.reshard()

    def whole(self, network: nn.Module) -> nn.Module:
        view = Whole(network, self._templates[network], self, len(self._views))
        self._views.append(view)
        return view

    def wrap(self, network: nn.Module) -> nn.Module:
        return network

    def wrap_again(self, wrapped: nn.Module, network: nn.Module) -> nn.Module:
        return wrapped

    def averaging(self, wrapped: nn.Module, now: bool) -> AbstractContextManager[object]:
        return nullcontext()  # gradients that are only added up would be whole ones, in the memory of each process

    def norm(self, own: Tensor) -> Tensor:
        squares = own.double() ** 2
        self._dist.all_reduce(squares, group=self._gradients)
        return squares.sqrt().to(own.dtype)

    def on_main(self, function: Callable[[], T]) -> T:
        """Call a function in the main process, which may use the networks that `whole` returned."""
        if self.is_main:
            result = function()
            self.order(None, result)
            return result
        while True:
            message: list[Any] = [None]
            self._dist.broadcast_object_list(message, group=self._cpu)
            view, content = message[0]
            if view is None:
                value: T = content
                return value
            self._views[view].take_part(*content)

    def order(self, view: int | None, content: object) -> None:
        """Tell the others, who are in `on_main`, what to take part in, or else the result."""
        self._dist.broadcast_object_list([(view, content)], group=self._cpu)

    def gather(self, tensor: Tensor) -> Tensor:
        """Return a tensor in the host's memory: the whole one in the main process, the own part in the others."""
        part = own_part(tensor).cpu()
        if not is_sharded(tensor):
            return part
        if not self.is_main:
            if part.numel():
                self.send(part)
            return part
        whole = torch.empty(tensor.shape, dtype=tensor.dtype)
        for rank in range(self.size):
            rows = whole[rows_of(len(whole), rank, self.size)]
            if rank == self.rank:
                rows.copy_(part)
            elif rows.numel():
                self.recv(rows, rank)
        return whole


class Whole(nn.Module):
    """A sharded network as the main process uses it inside `on_main`, where the others take part in each call."""

    def __init__(self, network: nn.Module, template: nn.Module, group: ShardedGroup, number: int) -> None:
        super().__init__()
        self.network = network
        self._group, self._number = group, number
        self._template = (template,)  # in a tuple, so that it is no part of this module

    def forward(self, *arguments: Any) -> Tensor:
        if torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in arguments):
            raise DifftoolError("with --shard, nothing is differentiated through the network while it trains")
        first = [None if argument is None else argument[:1].to("cpu") for argument in arguments]
        self._group.order(self._number, ("predict", first))
        return self._predict(arguments)

    def state_dict(self, *_: Any, **__: Any) -> dict[str, Tensor]:  # type: ignore[override]
        """Return whole tensors in the host's memory, of which each is gathered by itself."""
        self._group.order(self._number, ("gather", ()))
        return self._gather()

    def __deepcopy__(self, _memo: object) -> nn.Module:
        """Return a whole copy in the host's memory."""
        made = copy.deepcopy(self._template[0])
        made.load_state_dict(self.state_dict(), assign=True)
        return made

    def take_part(self, method: str, arguments: Any) -> None:
        """Do what the main process does, for the sake of the parts that this process holds."""
        if method == "gather":
            self._gather()
            return
        with evaluating(self.network):  # a batch of one item is enough to gather the blocks in the same order
            self._predict([None if argument is None else argument.to(self._group.device) for argument in arguments])

    @torch.no_grad()
    def _predict(self, arguments: Any) -> Tensor:
        output: Tensor = self.network(*arguments)
        self.network.reshard()  # type: ignore[operator]
        return output

    def _gather(self) -> dict[str, Tensor]:
        return {name: self._group.gather(tensor) for name, tensor in self.network.state_dict().items()}
