"""A training step on tensors without values, for its operations and the memory that it needs."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from difftool.data.batches import Batch
from difftool.data.condition import Condition
from difftool.diffusion.memory_layout import layout_of
from difftool.distributed import ProcessGroup
from difftool.errors import DifftoolError
from difftool.training.auxiliary import trainable
from difftool.training.ema import Averages
from difftool.training.frozen import train_mode
from difftool.training.inputs import inputs_from
from difftool.training.live_memory import LiveMemory
from difftool.training.optimizer import Updater
from difftool.training.state import TrainState
from difftool.training.step import eager_backward

if TYPE_CHECKING:
    from difftool.settings import Training
    from difftool.training.experiment import Experiment

INPUTS, ACTIVATIONS, GRADIENTS = "inputs", "activations", "gradients"


@dataclass(frozen=True)
class FakeStep:
    """The needs of a step in one process."""

    flops: float
    """The floating-point operations of matrix products, convolutions and attention, forward and backward."""
    peak: Mapping[str, int]
    """The bytes at the peak beside those of the run's state: of inputs, activations and gradients."""


class FakeBatches:
    """Stand-in for `Batches`, whose items have no values."""

    def __init__(self, experiment: Experiment, part: slice) -> None:
        self.batch_size, self.part, self.size = experiment.batch_size, part, part.stop - part.start
        self.feed, self.device, self.block = experiment.feed, experiment.device, 1
        items, condition = self.feed.train.take([0])
        noise = self.feed.train.take_noise([0])
        self._rows = {"items": items} | ({} if condition is None else condition.fields())
        self._rows |= {} if noise is None else {"noise": noise}

    def start(self, step: int, *, block: int = 1) -> Iterator[Batch]:
        """Yield batches of a whole block each."""
        self.block = block if self.feed.train.in_memory else 1
        count = self.block * self.size
        while True:
            rows = {
                name: torch.empty(count, *row.shape[1:], dtype=row.dtype, device=self.device)
                for name, row in self._rows.items()
            }
            items, noise = rows.pop("items"), rows.pop("noise", None)
            batch = Batch(items, Condition.shown(rows), noise)
            yield batch if self.feed.encode is None else self.feed.encode(batch)


def fake_step(experiment: Experiment, group: ProcessGroup) -> FakeStep:
    """Return what a step needs, computed without the memory for it. Compiled networks are measured as if they were not.

    Raises what the network or the loss raises if it looks at values.
    """
    if group.sharded:
        raise DifftoolError("the processes share the weights out among them")
    from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode
    from torch.utils.flop_counter import FlopCounterMode

    objective, settings = experiment.objective, replace(experiment.recipe.training, compile=False)
    alone = ProcessGroup(group.world)  # with its share of the batch, but nobody to wait for
    part = alone.shard(experiment.batch_size)
    batches: Any = FakeBatches(experiment, part)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with FakeCopyMode(mode):
        network, auxiliary = copy.deepcopy((experiment.state.network, experiment.state.auxiliary))
    train_mode(network, settings)
    tensors = [*network.parameters(), *network.buffers()]
    live, flops = LiveMemory(tensors if auxiliary is None else [*tensors, *auxiliary.parameters()]), 0
    self_conds = (False, True) if objective.self_condition else (False,)
    with mode:
        state = fake_state(experiment.state, network, auxiliary, settings)
    for weight in state.optimizer.parameters:
        weight.register_post_accumulate_grad_hook(lambda weight: live.classify(weight.grad, GRADIENTS))  # type: ignore[no-untyped-call]
    with mode, live:
        live.kind = INPUTS
        inputs = inputs_from(0, batches, objective, settings, layout_of(network, objective.data.shape))
        backward = eager_backward(network, state, objective, settings, experiment.steps, alone)
        for self_cond in self_conds:
            state.optimizer.clear_gradients()
            own = next(inputs)
            live.kind = ACTIVATIONS
            with FlopCounterMode(display=False) as counter:
                backward(own, self_cond)
            flops += counter.get_total_flops()
            live.kind = INPUTS
        for _ in range(batches.block):  # the first block is still there when the second one is made
            next(inputs)
    return FakeStep(flops / len(self_conds), live.peak)


def fake_state(state: TrainState, network: nn.Module, auxiliary: nn.Module | None, settings: Training) -> TrainState:
    """Return the state of a run whose networks have no values."""
    weights = [*network.named_parameters(), *trainable(auxiliary)]
    component = state.optimizer.component
    groups = component.groups([(name, weight) for name, weight in weights if weight.requires_grad])
    optimizer = Updater(component, weights, settings.lr, joined=False, groups=groups)
    return TrainState(network, optimizer, Averages(), torch.amp.GradScaler(enabled=False), auxiliary)
