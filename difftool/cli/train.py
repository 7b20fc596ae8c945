"""`difftool train`: compose dataset x schedule x backbone, train, and leave a run folder."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from difftool.cli.command import component_command, given_values, name_option, names_of
from difftool.cli.console import bar, help_text, note, result, result_json
from difftool.cli.flags import Group, flag_of, own
from difftool.cli.signals import Signals, signals
from difftool.components import Component, Logger
from difftool.distributed import joined, telling_of_peers
from difftool.errors import (
    DifftoolError,
    Interrupted,
    InvalidOption,
    PeerDied,
    UnknownComponent,
    UsageError,
    one_line,
    spending,
)
from difftool.options import Options, make
from difftool.runs.recipe import (
    PARTS,
    TABLE,
    Recipe,
    choose,
    compose,
    contradictions,
    line_of,
    made_with,
    merge,
    read_toml,
    training_values,
)
from difftool.settings import Training
from difftool.training import loggers

if TYPE_CHECKING:
    from difftool.runs.folder import RunFolder
    from difftool.training.experiment import Experiment

T = TypeVar("T")

PANEL = "Components"

LARGEST_GAIN = 4.0
"""Of an error of the network in the first step of a walk, from which on it is worth a line."""

WORTH_SAYING = 0.02
"""Share of the time spent waiting for data from which on the bar shows it."""


def _document(params: Mapping[str, Any]) -> dict[str, Any]:
    """The config file or resumed run, under the names given on the command line."""
    names = {kind: {"name": params[kind]} for kind in PARTS if params.get(kind) is not None}
    return merge(_file(params), names)


def _file(params: Mapping[str, Any]) -> dict[str, Any]:
    """The tables of the config file, or of the run that is resumed."""
    config, resume = params.get("config"), params.get("resume")
    if config is not None and resume is not None:
        raise UsageError("--config: a resumed run has its own; leave it out")
    document: dict[str, Any] = {}
    if config is not None:
        document = read_toml(Path(config))
    elif resume is not None:
        from difftool.runs.folder import open_run

        document = open_run(Path(resume)).read_config()
    try:
        from difftool.runs.recipe import check_tables

        check_tables(document)
        loggers.tables(document)
    except InvalidOption as error:
        path = _config_path(params)
        assert path is not None
        raise _located(error, path, error.field, "") from None
    return document


def _config_path(params: Mapping[str, Any]) -> Path | None:
    """The file that values not given on the command line come from."""
    config, resume = params.get("config"), params.get("resume")
    if config is not None:
        return Path(config)
    return None if resume is None else Path(resume) / "config.toml"


def _note_left_out(document: Mapping[str, Any], params: Mapping[str, Any]) -> None:
    """Options of a file that fall away because another component is named on the command line."""
    for kind in PARTS:
        table = document.get(kind, {})
        left = [key for key in table if key != "name"]
        if left and params.get(kind) not in (None, table.get("name")):
            note(f"--{kind} {params[kind]}: leaves out the {table.get('name')}'s {', '.join(left)} of the config")


def _choose(params: dict[str, Any], _args: list[str]) -> Sequence[Group]:
    document = _document(params)
    try:
        classes = choose(document)
    except UnknownComponent as error:
        path = _config_path(params)
        if path is None or params.get(error.kind) is not None:
            raise
        reason = f"{error}{made_with(document.get('plugins'))}"
        raise _located(InvalidOption("name", reason), path, error.kind, "name") from None
    groups = [
        Group.of(cls, defaults={k: v for k, v in document.get(kind, {}).items() if k != "name"})
        for kind, cls in classes.items()
    ]
    if chosen := _loggers(params, document):
        groups.append(Group.of(*chosen.values()))
    defaults = training_values(classes["backbone"], document.get("training", {}))
    return [*groups, Group("training", (Training,), "Training", defaults=defaults)]


def _loggers(params: Mapping[str, Any], document: Mapping[str, Any]) -> dict[str, type[Logger]]:
    """The loggers named on the command line, or else in the config file."""
    if named := params.get("logger"):
        return loggers.classes(named)
    try:
        return loggers.classes([*loggers.tables(document)])
    except UnknownComponent as error:
        path = _config_path(params)
        raise UsageError(f"{path}: {TABLE}: {error}{made_with(document.get('plugins'))}") from None


def train(
    ctx: typer.Context,
    dataset: Annotated[str | None, name_option("dataset", "What to learn.", "suits the backbone", panel=PANEL)] = None,
    backbone: Annotated[str | None, name_option("backbone", "The network.", "suits the dataset", panel=PANEL)] = None,
    schedule: Annotated[str | None, name_option("schedule", "The noise schedule.", "linear", panel=PANEL)] = None,
    prediction: Annotated[
        str | None, name_option("prediction", "What the network predicts.", "suits the schedule", panel=PANEL)
    ] = None,
    weighting: Annotated[
        str | None, name_option("weighting", "Weight of the noise levels.", "none", panel=PANEL)
    ] = None,
    time: Annotated[
        str | None, name_option("time", "How often each noise level is drawn.", "uniform", panel=PANEL)
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help=help_text("Run folder.", "default: runs/<dataset>-<backbone>-NNN"), metavar="DIR"),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run that --out names.")] = False,
    resume: Annotated[
        Path | None, typer.Option(help="Go on with this run, exactly where it stopped.", metavar="RUN")
    ] = None,
    new_data: Annotated[bool, typer.Option("--new-data", help="Resume although the data have changed since.")] = False,
    config: Annotated[
        Path | None, typer.Option(help="Take what is not given here from a TOML file.", metavar="FILE")
    ] = None,
    logger: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            autocompletion=names_of("logger"),
            help="Log the metrics there too; may be given several times, and a resumed run remembers.",
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.", metavar="NAME")] = "auto",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show parameters and the resolved configuration; write nothing.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of the run's path.")] = False,
) -> None:
    """Train a model, and print its run folder.

    Bare, it learns the swiss roll with an MLP in well under a minute; [bold]--backbone unet[/bold] learns colour
    gradients; [bold]--dataset image-folder --dataset.path DIR[/bold] learns your images.
    """
    given = given_values(ctx)
    document = _document(ctx.params)
    _note_left_out(_file(ctx.params), ctx.params)
    config_path = _config_path(ctx.params)
    make_named = _maker(given, config_path)
    told, before = given.get(Logger.kind, {}), loggers.tables(document)
    parts = {key: values for key, values in given.items() if key != Logger.kind}
    recipe = compose(merge(document, parts), make=make_named)
    logs = [
        make_named(cls, {**before.get(name, {}), **own(cls, told)})
        for name, cls in _loggers(ctx.params, document).items()
    ]
    loggers.check_requirements(logs)
    place = _Place(out, overwrite, resume, new_data)
    place.check(recipe)

    from difftool import devices
    from difftool.training.experiment import prepare

    where = devices.choose(device)
    with devices.threads(recipe.training.threads):
        try:
            experiment = prepare(recipe, where)
        except InvalidOption as error:  # a setting that the data or the device do not allow
            if config_path is None or error.field in given["training"]:
                raise
            raise _located(error, config_path, "training", error.field) from None
        _introduce(experiment, devices.describe(where))
        if dry_run:
            _dry_run(experiment, as_json=json)
            return
        with joined(where) as team:
            folder = team.by_first(lambda: place.folder(recipe))
            with experiment.held(folder, resume=resume is not None, new_data=new_data, loggers=logs, team=team):
                note(_beginning(experiment, resumed=resume is not None))
                _fit(experiment)
    if json:
        last = folder.read_metrics()[-1:] or [{}]
        result_json({"run": str(folder.path), "model": str(folder.model), "step": experiment.state.step, **last[0]})
    else:
        result(str(folder.path))


def add_to(app: typer.Typer) -> None:
    app.command(cls=component_command(_choose))(train)


@dataclass(frozen=True)
class _Place:
    """Which folder a run lies in: a new one, or, resumed, its own."""

    out: Path | None
    overwrite: bool
    resume: Path | None
    new_data: bool

    def check(self, recipe: Recipe) -> None:
        """Refuse, before any work, a folder that cannot be taken, or a run that was another than this recipe's."""
        from difftool.runs.folder import check_run_output, open_run

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
            raise UsageError("--overwrite: a resumed run is gone on with, not replaced; leave it out")
        run = open_run(self.resume)
        if rows := contradictions(compose(run.read_config()), recipe):
            raise DifftoolError(f"--resume {self.resume}: {'; '.join(rows)}; leave these out, or start a new run")
        run.check_free()

    def folder(self, recipe: Recipe) -> RunFolder:
        """The folder, made where it is new."""
        from difftool.runs.folder import RunFolder, create

        return create(recipe, self.out, overwrite=self.overwrite) if self.resume is None else RunFolder(self.resume)


def _beginning(experiment: Experiment, *, resumed: bool) -> str:
    path, step = experiment.folder.path, experiment.state.step
    if not resumed:
        return f"run folder {path}"
    if step >= experiment.steps:
        return f"{path} has made all its {step} steps; --steps N makes more"
    return f"going on with {path} after step {step}"


def _fit(experiment: Experiment) -> None:
    """Train to the end under a bar; a signal saves and ends the run."""
    words = _Words(experiment.recipe.training.batch_size)
    with (
        signals.deferred() as stop,
        bar("training", experiment.steps) as shown,
        _knowing_the_last_state(experiment),
    ):
        for update in experiment.run():
            if update.metrics is not None:
                words.see(update.metrics)
            shown.update(update.step, words)
            if update.preview and experiment.team.first:
                _preview(experiment)
            _stop_if_asked(experiment, stop)
        experiment.save()
    _stop_if_asked(experiment, signals)
    experiment.team.by_first(lambda: _conclude(experiment, words))


def _stop_if_asked(experiment: Experiment, stop: Signals) -> None:
    """After a signal, to whichever process: save, and end with the line that goes on."""
    number = experiment.team.agree(stop.number)
    if number is not None:
        experiment.save()
        raise Interrupted(
            f"stopped after step {experiment.state.step} of {experiment.steps}; everything is saved; "
            f"{_how_to_go_on(experiment)}",
            number,
        )


def _how_to_go_on(experiment: Experiment) -> str:
    return f"go on with: difftool train --resume {shlex.quote(str(experiment.folder.path))}"


@contextlib.contextmanager
def _knowing_the_last_state(experiment: Experiment) -> Iterator[None]:
    """What goes wrong on the way is told with the state that the run can go on from."""
    try:
        with spending(experiment.recipe.training.batch_size), telling_of_peers():
            yield
    except Interrupted:
        raise
    except Exception as error:
        saved = experiment.folder.saved_states()
        state = f"the last state is {saved[0]}" if saved else "no state was saved before"
        if saved and isinstance(error, PeerDied):
            state += f"; {_how_to_go_on(experiment)}"
        if isinstance(error, DifftoolError):
            error.args = (f"{error}; {state}",)
        else:
            note(state)
        raise


def _conclude(experiment: Experiment, words: _Words) -> None:
    """What is left of a run that was trained to its end: the last pictures, and what came of it in words."""
    folder = experiment.folder
    drawn, rows = _preview(experiment), folder.read_metrics()
    if rows:
        _attempt("picture of the loss", lambda: _draw_loss(experiment, rows))
    if words.loss is not None:
        held_out = rows[-1].get("held_out_loss")
        beside = "" if held_out is None else f", {loss_text(held_out)} held out"
        note(f"loss {loss_text(words.loss)}{beside} after {experiment.state.step} steps in {experiment.elapsed:.1f} s")
    if skipped := experiment.state.skipped:
        note(f"{skipped} steps changed nothing, since fp16 overflowed; --precision bf16 does not")
    for path in (*drawn[:1], folder.loss):
        if path.exists():
            note(f"drew {path}")
    note(f"sample it with: difftool sample {shlex.quote(str(folder.path))}")


def _preview(experiment: Experiment) -> list[Path]:
    """Draw a preview, and tell the loggers of it."""
    from difftool.components import Row
    from difftool.training import previews

    step = experiment.state.step
    drawn = _attempt(f"preview after step {step}", lambda: previews.draw(experiment)) or []
    if drawn:
        experiment.loggers(Row(step=step, metrics={}, pictures=tuple(drawn)))
    return drawn


def _attempt(what: str, draw: Callable[[], T]) -> T | None:
    """Draw. A picture is no reason to lose a run: what goes wrong is noted, and the run goes on."""
    try:
        return draw()
    except Exception as error:
        note(f"no {what}: {one_line(error)}")
        return None


def loss_text(loss: float, digits: int = 4) -> str:
    """A loss in so many decimals, or as many digits where it is tiny: that of the posterior mean is."""
    return f"{loss:.{digits}f}" if loss >= 0.1**digits else f"{loss:.{digits - 2}g}"


class _Words:
    """The words beside the bar: speed, smoothed loss, loss by quartile of t."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self.loss: float | None = None
        self.row: Mapping[str, Any] = {}

    def see(self, row: Mapping[str, Any]) -> None:
        self.row = row
        if row["loss"] is not None:
            self.loss = row["loss"] if self.loss is None else 0.9 * self.loss + 0.1 * row["loss"]

    def __call__(self) -> str:
        speed = self.row.get("steps_per_second")
        if speed is None or self.loss is None:
            return ""
        quartiles = " ".join("-" if q is None else loss_text(q, 3) for q in self.row["loss_quartiles"])
        rates = f"{speed:,.1f} steps/s  {speed * self.batch_size:,.0f} samples/s"
        waiting = self.row.get("waiting") or 0.0
        beside = f"  {waiting:.0%} waiting for data" if waiting >= WORTH_SAYING else ""
        return f"{rates}  loss {loss_text(self.loss)}  by t {quartiles}{beside}"


def _draw_loss(experiment: Experiment, rows: list[dict[str, Any]]) -> None:
    from difftool.figures.loss import loss_figure
    from difftool.figures.style import save
    from difftool.files import atomic

    figure = loss_figure(rows, title=experiment.recipe.name)
    with atomic(experiment.folder.loss) as temporary:
        save(figure, temporary)


def _introduce(experiment: Experiment, device: str) -> None:
    from difftool.diffusion.prediction import first_step_gain

    recipe, settings = experiment.recipe, experiment.recipe.training
    note(
        f"{recipe.dataset.name} ({len(experiment.train):,} x {'x'.join(map(str, experiment.data.shape))}) / "
        f"{recipe.schedule.name} (T {settings.timesteps}) / "
        f"{recipe.backbone.name} ({experiment.parameters:,} parameters) / "
        f"{recipe.prediction.name}; {device}, {settings.precision}, seed {settings.seed}"
    )
    if experiment.found is not None:
        note(str(experiment.found))
    if left := experiment.model.schedule.signal_left:
        note(
            f"the last level is not noise: {100 * left**0.5:.0f} % of the signal is left (alpha-bar {left:.3f}); "
            "sampling starts from N(0, I) all the same"
        )
    if (gain := first_step_gain(recipe.prediction, experiment.objective.spec)) > LARGEST_GAIN:
        note(
            f"at the last level {recipe.prediction.name} hardly tells x_0: the first step of a walk multiplies what "
            f"it gets wrong by {gain:.0f}, and shorter walks by more; --prediction v has no such level"
        )


def _dry_run(experiment: Experiment, *, as_json: bool) -> None:
    parameters = experiment.parameters
    facts = {
        "parameters": parameters,
        "state_bytes": experiment.state_bytes,
        "steps": experiment.steps,
        "steps_per_epoch": experiment.steps_per_epoch,
        "device": str(experiment.device),
        **experiment.recipe.document(),
    }
    if as_json:
        result_json(facts)
        return
    from difftool.runs.recipe import dump_toml

    note(
        f"{experiment.steps} steps, {experiment.steps_per_epoch} an epoch; "
        f"weights and optimizer take {experiment.state_bytes / 2**20:.1f} MiB, gradients and activations come on top"
    )
    result(dump_toml(experiment.recipe.document()).rstrip())


def _maker(given: Mapping[str, Mapping[str, Any]], config: Path | None) -> Callable[..., Any]:
    """`make`, with errors that name the flag, or the file and line, that a value came from."""

    def make_named(record: type[Options], values: Mapping[str, object]) -> Any:
        try:
            return make(record, values)
        except InvalidOption as error:
            key = record.kind if issubclass(record, Component) else "training"
            table = f"{TABLE}.{record.name}" if issubclass(record, Logger) else key
            if config is not None and error.field in values and error.field not in given.get(key, {}):
                raise _located(error, config, table, error.field) from None
            raise InvalidOption(error.field, error.reason, where=flag_of(record, error.field)) from None

    return make_named


def _located(error: InvalidOption, path: Path, table: str, key: str) -> UsageError:
    line = line_of(path, table, key)
    where = f"{path}, line {line}" if line else str(path)
    return UsageError(f"{where}: {table}{'.' + key if key else ''}: {error.reason}")
