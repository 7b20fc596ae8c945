"""The components of a model: its data, noise schedule, network and prediction."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, ClassVar

from difftool.components.component import Component

if TYPE_CHECKING:
    from torch import Tensor, nn

    from difftool.data.samples import DatasetContext, Samples
    from difftool.diffusion.schedule import Level, Schedule
    from difftool.specs import BackboneSpec, CodecSpec, ConditionSpec, ObjectiveSpec


class Dataset(Component):
    """The data to learn."""

    kind = "dataset"
    hook = "difftool_datasets"
    flag = "--dataset"
    commands = ("train", "sample", "compare", "evaluate", "noise")
    default = "swiss-roll"
    needed_to_sample = False

    default_backbone: ClassVar[str] = "mlp"
    """The backbone that is taken when the user names none."""

    generated: ClassVar[bool] = False
    """True if the samples are computed from the options and the seed alone. A model file by itself loads no others."""

    def suggested_backbone(self) -> str:
        """Return the backbone that is taken when the user names none, where it depends on the options.

        It may look at files, whose errors are left to `load`.
        """
        return self.default_backbone

    @abstractmethod
    def load(self, context: DatasetContext) -> Samples:
        """Return the samples. Raise `ValueError` or `OSError` with one clear line when they cannot be loaded."""

    def item_shape(self) -> tuple[int, ...] | None:
        """Return the shape of one item if the options alone fix it, so that misfits are refused before any work."""
        return None

    def read_condition(self, field: str, text: str, spec: ConditionSpec) -> Tensor | None:
        """Return the raw condition that a user means by `--vector TEXT`, `--image TEXT` or `--tokens TEXT`.

        `field` is "vector", "image" or "tokens", and `spec` has its shape. The result has one row for each sample, or
        one for all of them, in the units of `Samples`: (N, D), (N, C, H, W) or (N, L, D). None, the default, leaves it
        to difftool, which reads numbers, images and `.npy` files. Raise `ValueError` or `OSError` with one clear line
        for a text that means nothing.
        """
        return None


class Codec(Component):
    """The codec, which takes items to latents, where network and sampler work, and back."""

    kind = "codec"
    hook = "difftool_codecs"
    flag = "--codec"
    commands = ("train",)
    default = "none"

    keeps_range: ClassVar[bool] = False
    """True if latents keep the scale and the bounds of the data, as those of a mere rearrangement do.

    Otherwise difftool shifts each channel to mean 0, scales all of them by one number to deviation 1, and clips no
    estimate.
    """

    @abstractmethod
    def build(self, spec: CodecSpec) -> nn.Module | None:
        """Return a module with the methods `encode` and `decode`, or None, which leaves items as they are.

        `encode(x)` takes items (B, *spec.shape) in model units, float32, to latents (B, *latent shape), channels first,
        and `decode(z)` takes them back. Both are deterministic, and treat each item on its own. Parameters and buffers
        of the module are saved with the model, and are not trained.

        An attribute `facts` of the module, plain values by name, is saved too: a file is opened with them as
        `spec.facts`, without the files that options name. An attribute `error` is the root mean square of
        decode(encode(x)) - x, in model units, that `difftool check` verifies on the data that the codec was fitted to.

        Raise `ValueError` when the shape does not fit, and say which shapes do.
        """

    def fit(self, module: nn.Module, batches: Callable[[], Iterator[Tensor]]) -> None:
        """Fit the module to the training data, once, when a run begins.

        Each call of `batches` goes through all items in order, some at a time: (B, *shape) in model units. The result
        must depend on nothing else, so that the same run gives the same model.
        """
        return


class NoiseSchedule(Component):
    """The noise schedule: a table of alpha_t and sigma_t in x_t = alpha_t x_0 + sigma_t eps."""

    kind = "schedule"
    hook = "difftool_schedules"
    flag = "--schedule"
    commands = ("train", "sample", "compare", "evaluate", "noise")
    default = "linear"

    default_prediction: ClassVar[str] = "eps"
    """The prediction type that suits this schedule."""

    @abstractmethod
    def build(self, timesteps: int) -> Schedule:
        """Return the float64 table of `timesteps` levels, its signal-to-noise ratio strictly falling."""


class Backbone(Component):
    """The network."""

    kind = "backbone"
    hook = "difftool_backbones"
    flag = "--backbone"
    commands = ("train",)
    default = "mlp"

    default_dataset: ClassVar[str] = "swiss-roll"
    """The dataset that is taken when the user names none."""

    default_schedule: ClassVar[str | None] = None
    """The noise schedule that suits this network, if another than the default does; its prediction type follows."""

    default_optimizer: ClassVar[str | None] = None
    """The optimizer that suits this network, if another than the default does."""

    training_defaults: ClassVar[Mapping[str, object]] = {}
    """Defaults of `Training` that suit this network, such as `{"lr": 2e-4, "batch_size": 32}`."""

    self_conditioning: ClassVar[bool] = False
    """True if the network takes the last estimate of x_0 beside x_t, as further channels of its input."""

    activation_checkpointing: ClassVar[bool] = False
    """True if the network obeys `spec.checkpoint_activations`, which `--checkpoint-activations` sets."""

    conditions: ClassVar[tuple[str, ...]] = ()
    """The fields of `Condition` that the network takes: of `label`, `vector`, `image` and `tokens`.

    Data with others are refused. Only an image needs no declaration: difftool then puts it beside x_t, as further
    channels, which `spec.in_channels` counts, and `cond` does not hold it.
    """

    @abstractmethod
    def build(self, spec: BackboneSpec) -> nn.Module:
        """Return a module `net(x, t, cond=None)`.

        x is (B, spec.in_channels, *spec.shape[1:]), of unit variance if the data are (else see `spec.sigma_data`); t is
        (B,), a float in [0, 1000); cond is a `Condition` with the fields of `spec.condition`, or None, which hides
        them from all items; the output is (B, spec.out_channels, *spec.shape[1:]).

        Raise `ValueError` when the shape does not fit, and say which shapes do.
        """


class Prediction(Component):
    """The quantity that the network predicts, a x_0 + b eps. Loss and estimates follow from it."""

    kind = "prediction"
    hook = "difftool_predictions"
    flag = "--prediction"
    commands = ("train",)
    default = "eps"

    @abstractmethod
    def coefficients(self, level: Level, spec: ObjectiveSpec) -> tuple[float, float]:
        """Return (a, b) at a level. difftool refuses alpha b = sigma a, which would leave x_0 unknown."""

    def input_scale(self, level: Level, spec: ObjectiveSpec) -> float:
        """Return the factor of x_t in the network's input, by default 1/norm: unit variance if the data have it."""
        return 1.0 / level.norm
