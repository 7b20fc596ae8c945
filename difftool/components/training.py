"""The components of training: what is minimised, how the weights move, and what watches a run."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, ClassVar

from difftool.components.component import Component
from difftool.options import dashed, plain

if TYPE_CHECKING:
    from torch import Tensor, nn

    from difftool.specs import ObjectiveSpec, OptimizerLike, Progress, Row, RunContext, Stop
    from difftool.training.batch import LossSpec, Pairing, Predict, TrainingBatch


class Loss(Component):
    """The loss of each item, whose mean training minimises."""

    kind = "loss"
    hook = "difftool_losses"
    flag = "--loss"
    commands = ("train",)
    default = "mse"
    needed_to_sample = False

    weighted: ClassVar[bool] = False
    """True if `loss` applies `batch.weight` itself. Otherwise difftool multiplies the loss of each item by it."""

    def build(self, spec: LossSpec) -> nn.Module | None:
        """Return an auxiliary network, such as a teacher, a target or a learnt uncertainty, or None.

        Its parameters that require gradients are trained with the network's. Parameters and buffers are part of the
        training state, so a resumed run continues exactly. It stays in the mode (train or eval) that it is returned in.
        """
        return None

    def pair(self, pairing: Pairing) -> Pairing:
        """Return the items, noise and levels of a step in the order in which they are combined to x_t.

        Shapes and types must stay the same. `dataclasses.replace(pairing, eps=...)` changes the noise. With several
        processes, each pairs its own share of a batch.
        """
        return pairing

    @abstractmethod
    def loss(self, predict: Predict, batch: TrainingBatch, auxiliary: nn.Module | None) -> Tensor:
        """Return the loss of each item (B,), to be averaged.

        Metrics measure the first prediction at `batch.x_t`. Without one, the loss of eps has no number, and a variance
        cannot be learned beside this loss.
        """

    def mean_loss(self, predict: Predict, batch: TrainingBatch, auxiliary: nn.Module | None) -> Tensor:
        """Return the mean of `loss` as a scalar. Override it only where one call is cheaper.

        difftool calls an overridden one where no weighting applies and there is no auxiliary network. It computes the
        losses of items for the metrics later, for many steps at once: `loss` must then depend on the prediction at
        `batch.x_t`, on `batch.target` and on `batch.t` alone.
        """
        return self.loss(predict, batch, auxiliary).mean()

    def after_step(self, network: nn.Module, auxiliary: nn.Module | None) -> None:
        """Change the auxiliary network after each step of the optimizer, such as a target that follows the network.

        It is called without gradients, also after a step that changed nothing because its gradient was not finite.
        """


class Weighting(Component):
    """The weight of each noise level in the loss."""

    kind = "weighting"
    hook = "difftool_weightings"
    flag = "--weighting"
    commands = ("train",)
    default = "none"
    needed_to_sample = False

    @abstractmethod
    def weight(self, native: Tensor, spec: ObjectiveSpec) -> Tensor:
        """Return the weight (T,) of the squared error in x_0 space, float64.

        `native` (T,) is the weight that the plain loss of the prediction type has there: snr for eps, 1 for x_0. Most
        weightings start from `spec.schedule.snr`.
        """


class TimestepSampling(Component):
    """The distribution from which training draws its noise levels."""

    kind = "timestep-sampling"
    hook = "difftool_timestep_samplings"
    flag = "--timestep-sampling"
    commands = ("train",)
    default = "uniform"
    needed_to_sample = False

    @abstractmethod
    def density(self, spec: ObjectiveSpec) -> Tensor:
        """Return the weights (T,) of the levels, float64, not negative. They need not sum to 1."""


class Optimizer(Component):
    """The optimizer, by which gradients move the weights."""

    kind = "optimizer"
    hook = "difftool_optimizers"
    flag = "--optimizer"
    commands = ("train",)
    default = "adam"
    needed_to_sample = False

    elementwise: ClassVar[bool] = False
    """True if a number of the weights moves by its own gradient alone. Small weights of a group are then joined into
    one vector, which is faster. In a vector, a weight that receives no gradient counts as one with a gradient of 0."""

    def groups(self, parameters: Sequence[tuple[str, nn.Parameter]]) -> list[dict[str, Any]]:
        """Return the parameters in groups, each parameter once: `[{"params": [...], "weight_decay": 0.01}]`.

        The keys beside `params` override the options of the optimizer in that group, and `lr_scale` is a factor of its
        learning rate. By default there is one group. An optimizer with an option `weight_decay` above 0 gets two, the
        second one without decay, for parameters of fewer than two axes: biases and the scales of norms.
        """
        everything = [parameter for _, parameter in parameters]
        if not hasattr(self, "weight_decay"):
            return [{"params": everything}]
        decay = self.weight_decay
        if not decay:
            return [{"params": everything, "weight_decay": 0.0}]
        groups = [
            {"params": [p for p in everything if p.ndim >= 2], "weight_decay": decay},
            {"params": [p for p in everything if p.ndim < 2], "weight_decay": 0.0},
        ]
        return [group for group in groups if group["params"]]

    @abstractmethod
    def build(self, groups: list[dict[str, Any]], lr: float) -> OptimizerLike | Sequence[OptimizerLike]:
        """Return the optimizer of the groups, one of `torch.optim` or one like it, or several for different groups.

        In place of small parameters a group may hold the vector that they were joined into. `lr` is the setting; before
        each step the learning rate of that step is written into the `lr` of each group. `build` is called twice, once
        with small copies of the parameters: state that is neither tensors nor numbers is refused before the first step.

        A step whose gradient is not finite must change nothing. On a GPU, an optimizer with an attribute `found_inf`
        gets a number there, 1.0 for such a step, and masks the step. Others are not called, for which the GPU is waited
        for once a step. Nor is any called for such a step on a CPU, where `found_inf` stays as it was. Raise
        `ValueError` for weights or options that do not fit.
        """

    def factor(self, step: int, steps: int) -> float | None:
        """Return the factor of the learning rate in step 0, 1, ..., or None to follow `--lr-schedule` and `--warmup`.

        `steps` is the number of steps of the run.
        """
        return None


class Companion(Component):
    """A component that watches a run. The steps of the run do not depend on it."""

    several = True
    commands = ("train",)
    needed_to_sample = False
    path_use = "write"

    requires: ClassVar[Mapping[str, str]] = {}
    """The modules that it needs, looked for before a run begins, each with what to pip install for it."""
    files: ClassVar[tuple[str, ...]] = ()
    """Patterns of its files below `run.logs`, such as `metrics.csv`, which `train --overwrite` deletes with the run."""

    @abstractmethod
    def open(self, run: RunContext) -> AbstractContextManager[Callable[[Any], Any]]:
        """Return a context that stays open during training, and that gives a function to call at each row."""


class Logger(Companion):
    """A place to log the metrics of a training run, besides its own `metrics.jsonl`."""

    kind = "logger"
    hook = "difftool_loggers"
    flag = "--logger"

    @abstractmethod
    def open(self, run: RunContext) -> AbstractContextManager[Callable[[Row], None]]:
        """Return a context that stays open during training, and that gives the function to call with each row.

        Rows up to `run.step` were logged before. Rows beyond it must be discarded, since a resumed run logs them again.
        An exception that the function raises is reported, and the run continues without this logger.
        """

    def destination(self, run: RunContext) -> str:
        """Return where the rows go, for the first lines of `difftool train`: the options, or `run.logs`."""
        return ", ".join(f"{dashed(name)} {v}" for name, v in plain(self).items() if v != []) or str(run.logs)


class Callback(Companion):
    """A watcher of training, which measures what it likes and may stop the run."""

    kind = "callback"
    hook = "difftool_callbacks"
    flag = "--callback"

    last: ClassVar[bool] = False
    """True if it judges the numbers of other callbacks, so that it is called after them at each row."""

    @abstractmethod
    def open(
        self, run: RunContext
    ) -> AbstractContextManager[Callable[[Progress], Mapping[str, float | None] | Stop | None]]:
        """Return a context that stays open during training, and that gives the function to call at each logged row.

        The function returns numbers, which join the row under their names, or `Stop(reason)`, or None. It is called on
        the first process alone. What it remembers must follow from `run.rows` and the rows that it saw since, so that a
        resumed run goes on as if it had not been interrupted.

        An exception that the function raises is reported, and the run continues without this callback.
        """
