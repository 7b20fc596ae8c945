"""`difftool train`: compose dataset, schedule and backbone, train, and leave a run folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from difftool.cli.command import component_command, given_values
from difftool.cli.console import help_text, note, result, result_json
from difftool.cli.flags import Choice, Group, split_names
from difftool.cli.parameters import Device
from difftool.cli.request import Request
from difftool.cli.training import encoding_bar, first_note, fit
from difftool.components import KINDS, Backbone, Codec, Dataset, Features, Metric, NoiseSchedule, Prediction
from difftool.distributed import connect
from difftool.errors import DifftoolError, InvalidOption, UsageError, counted
from difftool.runs.config import dump_toml
from difftool.runs.losses import losses
from difftool.runs.recipe import Recipe, build_recipe, differences

if TYPE_CHECKING:
    from difftool.runs.folder import RunFolder
    from difftool.training.experiment import Experiment


EVALUATE, NO_METRIC = "evaluate", "none"
MEASURED = (
    Choice(EVALUATE, Metric, "default: none", "Measure a metric during training; several are joined by commas."),
    Choice(Features.kind, Features, f"default: {Features.default}", "The features in which --evaluate compares."),
)
"""The components that measure samples of a run while it trains."""


def _choose(ctx: typer.Context, params: dict[str, Any], _args: list[str]) -> Sequence[Group]:
    config, resume = (None if params.get(key) is None else Path(params[key]) for key in ("config", "resume"))
    names = {kind: params[kind] for kind in KINDS if params.get(kind) is not None}
    if params.get(EVALUATE):
        chosen = split_names(params[EVALUATE], f"--{EVALUATE}", "kid,fid")
        names[Metric.kind] = [] if chosen == [NO_METRIC] else chosen
    ctx.obj = Request.read(names, config=config, resume=resume)
    groups: Sequence[Group] = ctx.obj.groups()
    return groups


def train(
    ctx: typer.Context,
    out: Annotated[
        Path | None,
        typer.Option(help=help_text("Run folder.", "default: runs/<dataset>-<backbone>-NNN"), metavar="DIR"),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run that --out names.")] = False,
    resume: Annotated[
        Path | None, typer.Option(help="Continue this run exactly where it stopped.", metavar="RUN")
    ] = None,
    new_data: Annotated[bool, typer.Option("--new-data", help="Resume although the data have changed since.")] = False,
    config: Annotated[
        Path | None,
        typer.Option(
            help="Take everything that is not given here from a TOML file, or one of 'difftool list configs'.",
            metavar="FILE|NAME",
        ),
    ] = None,
    device: Device = "auto",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show parameters and the resolved configuration; write nothing.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of the run's path.")] = False,
) -> None:
    """Train a model, and print its run folder.

    Without options it learns the swiss roll with an MLP in well under a minute; [bold]--backbone unet[/bold] learns
    colour gradients; [bold]--dataset image-folder --dataset.path DIR[/bold] learns your images.
    The bar shows the loss by t too: its mean over each quarter of the noise levels, from clean to noisy.
    """
    request: Request = replace(ctx.obj, values=given_values(ctx))
    recipe, companions = request.recipe(), request.companions()
    place = _Place(out, overwrite, resume, new_data)
    place.check(recipe, request)
    for text in request.ignored_options():
        note(text)

    from difftool import devices
    from difftool.training.companions import check_requirements
    from difftool.training.prepare import prepare
    from difftool.training.processes import kind_of_group

    check_requirements(companions)
    chosen = devices.choose(device)
    with devices.threads(recipe.training.threads), connect(chosen, kind_of_group(recipe.training)) as group:
        try:
            with encoding_bar() as watch:
                experiment = prepare(recipe, chosen, place.resumed, watch=watch, group=group)
        except InvalidOption as error:
            raise request.locate(error) from None
        _introduce(experiment, request)
        if dry_run:
            _report_dry_run(experiment, as_json=json)
            return
        resumed = resume is not None
        with experiment.open(
            lambda: place.folder(recipe), resume=resumed, new_data=new_data, companions=companions, group=group
        ):
            note(first_note(experiment, resumed=resumed))
            for destination in experiment.destinations:
                note(f"logging to {destination}")
            if experiment.evaluation is not None:
                note(str(experiment.evaluation))
            fit(experiment)
    _report(experiment, as_json=json)


def add_to(app: typer.Typer) -> None:
    app.command(cls=component_command(_choose, command="train", choices=MEASURED))(train)


@dataclass(frozen=True)
class _Place:
    """The folder of a run: a new one, or that of the run to resume."""

    out: Path | None
    overwrite: bool
    resume: Path | None
    new_data: bool

    def check(self, recipe: Recipe, request: Request) -> None:
        """Refuse, before any work, a folder that cannot be used, or a run that was trained with another recipe."""
        from difftool.runs.creation import check_run_output
        from difftool.runs.folder import open_run

        if self.resume is None:
            if self.new_data:
                raise UsageError("--new-data: only a resumed run can have other data; add --resume")
            if self.overwrite and self.out is None:
                raise UsageError("--overwrite: says that the run named by --out is replaced; add --out")
            check_run_output(self.out, overwrite=self.overwrite)
            return
        if self.out is not None:
            raise UsageError("--out: a resumed run stays in its folder; leave it out")
        if self.overwrite:
            raise UsageError("--overwrite: a resumed run is continued, not replaced; leave it out")
        if "init_from" in request.values["training"]:
            raise UsageError("--init-from: a resumed run goes on from its own weights; leave it out")
        if rows := differences(build_recipe(request.tables), recipe):
            raise DifftoolError(f"--resume {self.resume}: {'; '.join(rows)}; leave these out, or start a new run")
        open_run(self.resume).check_free()

    @property
    def resumed(self) -> RunFolder | None:
        """The run to resume, or None."""
        from difftool.runs.folder import RunFolder

        return None if self.resume is None else RunFolder(self.resume)

    def folder(self, recipe: Recipe) -> RunFolder:
        """Return the folder, and create it if it is new."""
        from difftool.runs.creation import create

        return self.resumed or create(recipe, self.out, overwrite=self.overwrite)


def _introduce(experiment: Experiment, request: Request) -> None:
    """Print the parts of a run and their sizes, and notes on what may spoil its samples."""
    from difftool import devices
    from difftool.diffusion.prediction import LARGEST_GAIN, first_step_gain

    recipe, settings = experiment.recipe, experiment.recipe.training
    trained = f", {experiment.trained:,} trained" if experiment.trained < experiment.parameters else ""
    note(
        f"{recipe[Dataset].name} ({len(experiment.train):,} x {'x'.join(map(str, experiment.data.shape))}"
        f"{', ' if experiment.data.condition else ''}{experiment.data.conditions_text}) / {_codec(experiment)}"
        f"{recipe[NoiseSchedule].name} (T {settings.timesteps}) / "
        f"{recipe[Backbone].name} ({counted(experiment.parameters, 'parameter')}{trained}) / "
        f"{recipe[Prediction].name}; {devices.describe(experiment.device)}, {settings.precision}, seed {settings.seed}"
    )
    chosen, schedule = recipe[Prediction].name, recipe[NoiseSchedule]
    if Prediction.kind not in request.document and chosen == schedule.default_prediction != Prediction.default:
        note(
            f"predicts {chosen}, which suits {schedule.name}; --prediction {Prediction.default} is another choice. "
            "Their losses cannot be compared, but eps_loss can: it is in metrics.jsonl, runs and info"
        )
    if experiment.group.sharded:
        each = experiment.state.bytes / experiment.group.size / 2**20
        note(f"each process holds {each:.1f} MiB of weights, averages and optimizer")
    elif settings.shard:
        note("--shard: a single process holds everything; torchrun starts several, which share it")
    if experiment.transfer is not None:
        note(str(experiment.transfer))
    if experiment.search is not None:
        note(str(experiment.search))
    if left := experiment.model.schedule.signal_left:
        note(
            f"the last level is not noise: {100 * left**0.5:.0f} % of the signal is left (alpha-bar {left:.3f}); "
            "sampling starts from N(0, I) all the same"
        )
    if (gain := first_step_gain(recipe[Prediction], experiment.objective.spec)) > LARGEST_GAIN:
        note(
            f"with --prediction {recipe[Prediction].name}, the first sampling step multiplies an error of the network "
            f"by {gain:.0f}, and by more if there are fewer steps; --prediction v avoids this, and so does "
            "'difftool sample --spacing log-snr'"
        )


def _codec(experiment: Experiment) -> str:
    """Return the codec with the shape of its latents and the share that it loses, or an empty text without one."""
    space = experiment.model.latents
    if space is None:
        return ""
    error = getattr(space.codec, "error", None)
    lost = "" if error is None else f", loses {100 * error / experiment.data.std:.2g} % of the deviation"
    return f"{experiment.recipe[Codec].name} (latents of {'x'.join(map(str, space.facts.shape))}{lost}) / "


def _report(experiment: Experiment, *, as_json: bool) -> None:
    folder = experiment.folder
    if as_json:
        rows = folder.read_metrics()
        last = {**rows[-1], **losses(rows)} if rows else {}
        last |= {"stopped": experiment.stopped} if experiment.stopped else {}
        result_json({"run": str(folder.path), "model": str(folder.model), "step": experiment.state.step, **last})
    else:
        result(str(folder.path))


def _report_dry_run(experiment: Experiment, *, as_json: bool) -> None:
    facts = {
        "parameters": experiment.parameters,
        "state_bytes": experiment.state.bytes,
        "steps": experiment.steps,
        "steps_per_epoch": experiment.timetable.steps_per_epoch,
        "classes": list(experiment.data.class_names),
        "condition": {name: list(shape) for name, shape in experiment.data.condition.shapes.items()},
        "latents": None if experiment.model.latents is None else list(experiment.model.latents.facts.shape),
        "device": str(experiment.device),
        **experiment.recipe.document(),
    }
    if as_json:
        result_json(facts)
        return
    note(
        f"{counted(experiment.steps, 'step')}, {experiment.timetable.steps_per_epoch} an epoch; "
        f"weights and optimizer take {experiment.state.bytes / 2**20:.1f} MiB, gradients and activations come on top"
    )
    result(dump_toml(experiment.recipe.document()).rstrip())
