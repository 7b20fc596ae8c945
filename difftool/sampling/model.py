"""A trained model: all that sampling needs, read from one file."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from difftool.components import Backbone, Codec, Dataset, Features, NoiseSchedule, Prediction
from difftool.data.condition import Condition
from difftool.data.facts import DataFacts
from difftool.data.latents import LatentSpace
from difftool.data.samples import Samples
from difftool.diffusion.estimate import Denoise
from difftool.diffusion.memory_layout import arrange
from difftool.diffusion.prediction import step_gain
from difftool.display import Displayed
from difftool.errors import BadFile, DifftoolError, UsageError, blaming, one_line
from difftool.evaluation.evaluation import Evaluation
from difftool.evaluation.from_python import evaluate
from difftool.options import make
from difftool.plugins.build import build_network, build_schedule, load_samples, loading, puts_image_beside
from difftool.runs import averages, checkpoint
from difftool.runs.averages import canonical
from difftool.runs.checkpoint import Contents
from difftool.runs.folder import RunFolder, find_model, step_of
from difftool.runs.latents import built, document_of, read_space, tensors_of
from difftool.runs.origin import Origin
from difftool.runs.recipe import Recipe, plugins_of
from difftool.runs.recorded import changed_scripts, made_with, read_recipe
from difftool.runs.weights import BEST, files_of, newest_weights
from difftool.sampling.conditions import arrays_in
from difftool.sampling.denoiser import Denoiser
from difftool.sampling.loop import draw
from difftool.sampling.plan import Plan, caution
from difftool.sampling.posthoc import check_length, reconstruct
from difftool.sampling.source import Autocast, Source
from difftool.settings import AUTO, LARGEST_STEP, Precision, Sampling
from difftool.specs import ObjectiveSpec

if TYPE_CHECKING:
    from difftool.components import Guidance, Metric, Sampler, Spacing
    from difftool.diffusion.schedule import Level, Schedule


@dataclass
class Model(Source, Displayed):
    """A network with everything that turns it into samples."""

    recipe: Recipe
    data: DataFacts
    schedule: Schedule
    network: nn.Module
    weights: str = "raw"
    """The weights in the network: the trained ones (`raw`), or an average, such as `ema-0.999` or `power-0.05`."""
    step: int = 0
    source: Path | None = None
    """The file that the model was read from."""
    run: RunFolder | None = None
    """The run that the model belongs to, if it was found in one."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    forward: Callable[..., Tensor] | None = None
    """The compiled network, which takes the place of `network` in calls."""
    digest: str = ""
    """The digest that the file carries, SHA-256 in hexadecimal."""
    latents: LatentSpace | None = None
    """The latents that the network works in, or None if it works on the data themselves."""
    origin: Origin | None = None
    """The model whose weights its run started from, or None."""

    @classmethod
    def read(cls, path: Path, *, device: torch.device | str = "cpu", run: RunFolder | None = None) -> Model:
        """Read the model in a file, of a run if one is given, whose config file then names the data.

        Raises `BadFile`, or `UnknownComponent` if a plugin is missing.
        """
        tensors, document, digest = checkpoint.load_with_digest(path)
        if document.get("kind") != "model":
            if document.get("kind") == "state":
                raise BadFile(f"{path} holds a training state, not a model; sample the run's model.safetensors")
            raise BadFile(f"{path} holds no model")
        recipe = read_recipe(path, document, None if run is None else run.readable_config())
        try:
            data = DataFacts.read(document.get("data"))
        except ValueError:
            raise BadFile(f"{path}: its metadata describe no data that difftool knows") from None
        weights, step = document.get("weights"), document.get("step")
        if (
            not isinstance(weights, str)
            or weights not in ("raw", canonical(weights))
            or type(step) is not int
            or not 0 <= step <= LARGEST_STEP
        ):
            raise BadFile(f"{path}: its metadata are malformed")
        try:
            origin = Origin.read(document.get("init_from"))
        except ValueError as error:
            raise BadFile(f"{path}: its metadata are malformed: {error}") from None
        try:
            groups = checkpoint.grouped(tensors, ("network", "codec"))
            groups["network"] = checkpoint.widened(groups["network"], document.get("dtype"))
        except ValueError as error:
            raise BadFile(f"{path}: its weights do not fit: {error}") from None
        try:
            latents = read_space(path, recipe[Codec], data, document, groups["codec"])
            space, backbone = data if latents is None else latents.facts, recipe[Backbone]
            network = built(
                path, backbone.name, lambda: build_network(backbone, space, recipe.training), groups["network"]
            )
        except DifftoolError as error:
            raise BadFile(f"{error}{made_with(document.get('plugins'))}") from None
        schedule = build_schedule(recipe[NoiseSchedule], recipe.training.timesteps, recipe[Prediction])
        used = plugins_of(part for part in recipe.parts.values() if part.needed_to_sample)
        for change in changed_scripts(document.get("plugins"), used):
            warnings.warn(change, stacklevel=2)
        about: dict[str, Any] = {"digest": digest, "origin": origin, "latents": latents}
        return cls(recipe, data, schedule, network, weights, step, path, run, **about).to(device)

    def save(
        self, path: str | Path, *, overwrite: bool = True, codec: bool = True, about: Mapping[str, Any] | None = None
    ) -> None:
        """Write the model to a safetensors file that `read` can read, unless the file leaves the codec out.

        A network in bfloat16 or float16 is written as it is, and read as float32. `about` are further metadata.
        """
        checkpoint.save(Path(path), *contents(self, codec=codec, about=about), overwrite=overwrite)

    def __repr__(self) -> str:
        return f"Model({self.description}, items {'x'.join(map(str, self.data.shape))}, on {self.device})"

    def to(self, device: torch.device | str) -> Model:
        self.device = torch.device(device)
        self.network.to(self.device).eval()
        arrange(self.network)
        if self.latents is not None:
            self.latents.codec.to(self.device)
        return self

    @property
    def name(self) -> str:
        return self.recipe.name

    @property
    def schedule_name(self) -> str:
        return self.recipe[NoiseSchedule].name

    @property
    def description(self) -> str:
        return f"{self.name}, step {self.step}, {self.weights} weights"

    @property
    def needs_condition(self) -> bool:
        return bool(self.data.condition) and not self.recipe.training.condition_dropout

    @property
    def precision(self) -> Precision:
        precision = self.recipe.training.precision
        return "fp32" if precision == AUTO else precision  # auto: imported, not trained

    @property
    def held_out(self) -> int:
        return self.recipe.training.held_out

    @property
    def evaluated(self) -> dict[str, Any]:
        digest = {"model": self.digest} if self.digest else {}
        return {"step": self.step, "weights": self.weights, **digest}

    def read_condition(self, field: str, text: str) -> Tensor | None:
        dataset = self.recipe[Dataset]
        where = f"--{field}: dataset {dataset.name}"
        try:
            with blaming(where, OSError, refusal=UsageError):
                return dataset.read_condition(field, text, self.data.condition)
        except OSError as error:
            raise DifftoolError(f"{where}: {one_line(error)}") from None

    def denoiser(
        self,
        count: int,
        *,
        condition: Condition | None = None,
        autocast: Autocast | None = None,
        gradients: bool = False,
    ) -> Denoise:
        cond = None
        if self.space.condition:
            nothing = Condition.nothing(count, self.space.condition, self.device)
            cond = nothing if condition is None else condition.to(self.device)
        return Denoiser(
            self.network if self.forward is None else self.forward,
            self.recipe[Prediction],
            ObjectiveSpec(schedule=self.schedule, sigma_data=self.space.std),
            cond=cond,
            image_beside=puts_image_beside(self.recipe[Backbone], self.space),
            self_condition=self.recipe.training.self_condition,
            learned_variance=self.recipe.training.learn_variance,
            bounds=self.space.bounds,
            autocast=autocast,
            gradients=gradients,
            name=f"backbone {self.recipe[Backbone].name}",
        )

    def open_other(self, run: Path, weights: str) -> Model:
        return load_model(run, weights, device=self.device)

    def sample(
        self,
        n: int = 16,
        *,
        sampler: str | Sampler = "ddim",
        spacing: str | Spacing = "trailing",
        guidance: float | str | Guidance | None = None,
        **settings: Any,
    ) -> Tensor:
        """Draw n samples (n, *shape), floats in data units; those of images are pixel values from 0 to 255.

        They are float32, or float64 where the data lie so far from 0 that float32 would lose digits. `settings` are
        the options of `difftool sample`: steps, seed, label, batch_size, ... Of these, vector, image and
        tokens may also be tensors, arrays or lists, of one for all samples or with a row for each sample: vectors
        (N, D) in the units of the data, images (N, C, H, W) as uint8 pixels or floats in model units, tokens (N, L, D).
        The label may be a list of classes, or `none`; by default they are all classes in turn. Sample k takes row k
        modulo their number. `guidance` is a scale, such as 2, of classifier-free guidance, or another guidance. Raises
        `DifftoolError`, and `TypeError` for a sampler, spacing or guidance that is neither a name nor a component.
        """
        if n is None or "num_samples" in settings:
            raise TypeError("sample() takes the number of samples as n")
        arrays, settings = arrays_in(self, settings)
        chosen = make(Sampling, {"num_samples": n, **settings})
        self._others.clear()  # a run that guides may have been trained further
        plan = Plan.of(self, chosen, sampler=sampler, spacing=spacing, guidance=guidance, conditions=arrays)
        if warning := caution(self, plan):
            warnings.warn(warning, stacklevel=2)
        return draw(self, plan)

    def evaluate(
        self,
        n: int = 5_000,
        *,
        metrics: Sequence[str | Metric] = (),
        features: str | Features = Features.default,
        against: str | Path | Samples = "train",
        sampler: str | Sampler = "ddim",
        spacing: str | Spacing = "trailing",
        guidance: float | str | Guidance | None = None,
        **settings: Any,
    ) -> Evaluation:
        """Draw n samples and measure them against data, as `difftool evaluate` does, but without adding to the run.

        `against` is `train`, `held-out`, a path, or `Samples`; `settings` are the other options of the command.
        `evaluation["kid"]` is a score, with its value, error and floor. Raises `DifftoolError`, and `TypeError` for a
        component that is neither a name nor an instance.
        """
        drawing = {"sampler": sampler, "spacing": spacing, "guidance": guidance}
        return evaluate(self, n, metrics, features, against, drawing, settings)

    def step_gain(self, t: Level, s: Level) -> float:
        spec = ObjectiveSpec(schedule=self.schedule, sigma_data=self.space.std)
        return step_gain(self.recipe[Prediction], spec, t, s)

    def load_samples(self) -> Samples:
        dataset = self.recipe[Dataset]
        with loading(dataset):
            shape = dataset.item_shape()
        if shape not in (None, self.data.shape):  # a foreign run folder must not have other data opened
            raise DifftoolError(
                f"dataset {dataset.name}: its items are {shape}, and those of the model {self.data.shape}"
            )
        return load_samples(dataset, self.recipe.training.seed, self.recipe.training.condition)


def load_model(
    path: Path | None, weights: str = "ema", *, ema_length: float | None = None, device: torch.device | str = "cpu"
) -> Model:
    """Load the model of a run folder or a model file, by default the model of the newest run.

    `weights` is "ema" (what the model file holds: the first average, or the trained weights of a run without one),
    "raw" (the weights being trained, from the run's newest state), "best" (the model that the run kept for its held-out
    loss or a metric) or the name of an average, such as "ema-0.9999".
    `ema_length` reconstructs a power-function average of any length from the snapshots of the run. Raises
    `DifftoolError`.
    """
    if ema_length is not None:
        check_length(ema_length)
        if weights != "ema":
            raise UsageError("--ema-length: names an average by itself; leave --weights out")
    source, run = find_model(path)
    model = Model.read(source, run=run)
    if ema_length is not None:
        return power_model(model, run, ema_length).to(device)
    return _with_weights(model, run, weights).to(device)


def _with_weights(model: Model, run: RunFolder | None, weights: str) -> Model:
    """Return the model of a file, or another of its run, with the weights of a name. Raises `DifftoolError`."""
    name = canonical(str(weights)) or weights
    if name in ("ema", model.weights):
        return model
    if run is None:
        raise UsageError(f"--weights {weights}: {model.source} holds {model.weights} alone; name its run folder")
    if name == "raw":
        return raw_model(model, run)
    files = files_of(run)
    if name not in files:
        known = ", ".join(dict.fromkeys(["ema", "raw", model.weights, *files]))
        raise UsageError(f"--weights: unknown weights {weights!r}; {run.path} has {known}")
    other = Model.read(files[name], run=run)
    if name not in (BEST, other.weights):
        raise BadFile(f"{files[name]} holds {other.weights}: it was renamed")
    return other


def power_model(model: Model, run: RunFolder | None, length: float) -> Model:
    """Return the model with a power-function average, reconstructed from the snapshots of its run."""
    if run is None:
        raise UsageError(f"--ema-length: {model.source} holds {model.weights} alone; name its run folder")
    tensors, step, source = reconstruct(run, length, model.network)
    model.network.load_state_dict(tensors)
    return replace(model, weights=averages.power_name(length), step=step, source=source)


def raw_model(model: Model, run: RunFolder) -> Model:
    """Return the model with the weights that were being trained, from the newest readable state of its run."""
    raw = newest_weights(run)
    if rows := checkpoint.differences(model.network.state_dict(), raw.tensors):
        raise BadFile(f"{raw.path}: its weights do not fit: {rows}")
    model.network.load_state_dict(raw.tensors)
    return replace(model, weights="raw", step=step_of(raw.path), source=raw.path, digest=raw.digest)


def contents(model: Model, *, codec: bool = True, about: Mapping[str, Any] | None = None) -> Contents:
    """Return what `Model.save` writes, with the tensors of the network itself."""
    document = {
        **model.recipe.shared_document(),
        "kind": "model",
        "data": model.data.document(),
        "plugins": model.recipe.plugins(),
        "weights": model.weights,
        "step": model.step,
        **document_of(model.latents),
        **(about or {}),
    }
    if model.origin is not None:
        document["init_from"] = model.origin.document()
    groups = {"network": model.network.state_dict(), "codec": tensors_of(model.latents) if codec else {}}
    if (half := checkpoint.half_of(groups["network"])) is not None:
        document["dtype"] = half
    return Contents(checkpoint.ungrouped(groups), document)
