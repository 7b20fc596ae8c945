"""`difftool train`: compose dataset, schedule and backbone, train, and leave a run folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from difftool.cli.command import component_command, given_values
from difftool.cli.console import help_text, note, result, result_json
from difftool.cli.dry_run import report_needs
from difftool.cli.flags import Choice, Group, split_names
from difftool.cli.parameters import Device
from difftool.cli.place import Place
from difftool.cli.request import Request
from difftool.cli.signals import signals
from difftool.cli.time_limit import Deadline
from difftool.cli.training import encoding_bar, first_note, fit
from difftool.components import KINDS, Backbone, Codec, Dataset, Features, Metric, NoiseSchedule, Prediction
from difftool.distributed import connect
from difftool.errors import InvalidOption, counted
from difftool.runs.losses import losses
from difftool.settings import AUTO

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
    resume = None if resume == Path(AUTO) else resume  # the command line names all settings, as that which began it
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
        Path | None,
        typer.Option(
            help="Continue this run exactly where it stopped; auto: the run in --out, or begin it there.",
            metavar="RUN|auto",
        ),
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
    time_limit: Annotated[
        str | None,
        typer.Option(
            help=help_text(
                "Save and exit with 75 before this time since the start is over: 20s, 7h30m or 1-12:00:00.",
                "default: the end of the SLURM job, if it is one",
            ),
            metavar="TIME",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what the run needs and its configuration; write nothing.")
    ] = False,
    profile: Annotated[
        int | None,
        typer.Option(
            min=1, max=1000, metavar="N", help="Show where N steps spend their time, and write a trace of N more."
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of the run's path.")] = False,
) -> None:
    """Train a model, and print its run folder.

    Without options it learns the swiss roll with an MLP in well under a minute; [bold]--backbone unet[/bold] learns
    colour gradients; [bold]--dataset image-folder --dataset.path DIR[/bold] learns your images.
    The bar shows the loss by t too: its mean over each quarter of the noise levels, from clean to noisy.
    """
    request: Request = replace(ctx.obj, values=given_values(ctx))
    deadline = Deadline.of(time_limit)
    recipe, companions = request.recipe(), request.companions()
    place = Place.of(out, overwrite, resume, new_data)
    recipe = place.check(recipe, request)
    signals.repeatable = resume is not None
    for text in request.ignored_options():
        note(text)

    from difftool import devices
    from difftool.training.companions import check_requirements
    from difftool.training.prepare import prepare
    from difftool.training.processes import kind_of_group

    check_requirements(companions)
    chosen = devices.choose(device)
    with devices.threads(recipe.training.threads), connect(chosen, kind_of_group(recipe.training)) as group:
        place = place.agreed(group)
        if not dry_run and (finished := group.on_main(lambda: place.finished(recipe))):
            note(finished)
            _report(place.folder(recipe), as_json=json)
            return
        try:
            with encoding_bar() as watch:
                experiment = prepare(recipe, chosen, place.resumed, watch=watch, group=group)
        except InvalidOption as error:
            raise request.locate(error) from None
        _introduce(experiment, request)
        if dry_run:
            report_needs(experiment, group, place.resumed, out, as_json=json)
            return
        resumed = place.resume is not None
        with experiment.open(
            lambda: place.folder(recipe), resume=resumed, new_data=new_data, companions=companions, group=group
        ):
            note(first_note(experiment, resumed=resumed))
            if deadline is not None and not deadline.flags:
                note(f"stops before {deadline.name}; --time-limit sets another time")
            for destination in experiment.destinations:
                note(f"logging to {destination}")
            if experiment.evaluation is not None:
                note(str(experiment.evaluation))
            fit(experiment, deadline, profile or 0)
    _report(experiment.folder, as_json=json)


def add_to(app: typer.Typer) -> None:
    app.command(cls=component_command(_choose, command="train", choices=MEASURED))(train)


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


def _report(folder: RunFolder, *, as_json: bool) -> None:
    """Print the folder of a run that has ended, or its last numbers."""
    if as_json:
        rows, status = folder.read_metrics(), folder.status()
        last = {**rows[-1], **losses(rows)} if rows else {}
        last |= {"stopped": status.reason} if status.reason else {}
        result_json({"run": str(folder.path), "model": str(folder.model), "step": status.step, **last})
    else:
        result(str(folder.path))
