"""`difftool train`: compose dataset x schedule x backbone, train, and leave a run folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from difftool.cli.command import component_command, given_values, name_option
from difftool.cli.console import bar, note, result, result_json, stop_signals
from difftool.components import Component, Options
from difftool.errors import DifftoolError, Interrupted, InvalidOption, UsageError
from difftool.options import Group, flag_of, help_text
from difftool.recipe import PARTS, Recipe, choose, compose, line_of, merge, read_toml, training_values
from difftool.settings import Training
from difftool.validation import make

if TYPE_CHECKING:
    from difftool.experiment import Experiment

PANEL = "Components"
MAY_CHANGE = ("steps", "epochs", "checkpoint_every", "keep", "preview_every", "workers", "threads")
"""Settings that --resume may change. None changes what was done; a later end stretches a cosine learning rate, and
another number of threads may change sums in their last digits."""


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
        from difftool.runs import open_run

        document = open_run(Path(resume)).read_config()
    try:
        from difftool.recipe import check_tables

        check_tables(document)
    except InvalidOption as error:
        raise _located(error, Path(config or Path(resume or "") / "config.toml"), error.field, "") from None
    return document


def _note_left_out(document: Mapping[str, Any], params: Mapping[str, Any]) -> None:
    """Options of a file that fall away because another component is named on the command line."""
    for kind in PARTS:
        table = document.get(kind, {})
        left = [key for key in table if key != "name"]
        if left and params.get(kind) not in (None, table.get("name")):
            note(f"--{kind} {params[kind]}: leaves out the {table.get('name')}'s {', '.join(left)} of the config")


def _choose(params: dict[str, Any], _args: list[str]) -> Sequence[Group]:
    document = _document(params)
    classes = choose(document)
    groups = [
        Group.of(cls, defaults={k: v for k, v in document.get(kind, {}).items() if k != "name"})
        for kind, cls in classes.items()
    ]
    defaults = training_values(classes["backbone"], document.get("training", {}))
    return [*groups, Group("training", (Training,), "Training", defaults=defaults)]


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
    config: Annotated[
        Path | None, typer.Option(help="Take what is not given here from a TOML file.", metavar="FILE")
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
    config_path = config or (resume / "config.toml" if resume else None)
    recipe = compose(merge(document, given), make=_maker(given, config_path))
    if resume is not None:
        from difftool.runs import open_run

        if out is not None:
            raise UsageError("--out: a resumed run stays in its folder; leave it out")
        _check_resume(compose(open_run(resume).read_config()), recipe, resume)
    elif out is not None:
        from difftool.runs import check_run_output

        check_run_output(out, overwrite=overwrite)
    _train(recipe, out=out, overwrite=overwrite, resume=resume, device_name=device, dry_run=dry_run, as_json=json)


def add_to(app: typer.Typer) -> None:
    app.command(cls=component_command(_choose))(train)


def _train(
    recipe: Recipe,
    *,
    out: Path | None,
    overwrite: bool,
    resume: Path | None,
    device_name: str,
    dry_run: bool,
    as_json: bool,
) -> None:
    from difftool import device as devices
    from difftool.experiment import prepare
    from difftool.runs import RunFolder, create, now

    device = devices.choose(device_name)
    with devices.threads(recipe.training.threads):
        experiment = prepare(recipe, device)
        _introduce(experiment, devices.describe(device))
        if dry_run:
            _dry_run(experiment, as_json=as_json)
            return
        folder = RunFolder(resume) if resume is not None else create(recipe, out, overwrite=overwrite)
        experiment.folder = folder
        with folder.lock():
            if resume is not None:
                started = folder.started
                experiment.resume()
                note(f"going on with {folder.path} after step {experiment.state.step}")
            else:
                started = now()
                note(f"run folder {folder.path}")
            recorded = {"started": started, "device": str(device), "torch": _torch_version()}
            folder.write_config(recipe, recorded)
            _fit(experiment)
    if as_json:
        last = folder.read_metrics()[-1:] or [{}]
        result_json({"run": str(folder.path), "model": str(folder.model), "step": experiment.state.step, **last[0]})
    else:
        result(str(folder.path))


def _fit(experiment: Experiment) -> None:
    """Train to the end under a bar; a signal saves and ends the run."""
    folder, settings = experiment.folder, experiment.recipe.training
    words = _Words(settings.batch_size)
    with stop_signals() as stop, bar("training", experiment.steps) as shown:
        try:
            for update in experiment.run():
                if update.metrics is not None:
                    words.see(update.metrics)
                shown.update(update.step, words)
                if stop.number is not None:
                    experiment.save()
                    raise Interrupted(
                        f"stopped after step {update.step} of {update.steps}; everything is saved; "
                        f"go on with: difftool train --resume {folder.path}",
                        stop.number,
                    )
                if update.preview:
                    _preview(experiment)
        except DifftoolError as error:
            if isinstance(error, Interrupted):
                raise
            saved = folder.saved_states()
            state = f"the last state is {saved[0]}" if saved else "no state was saved before"
            raise type(error)(f"{error}; {state}") from None
    experiment.save()
    drawn, rows = _preview(experiment), folder.read_metrics()
    if rows:
        _draw_loss(experiment, rows)
    if words.loss is not None:
        held_out = rows[-1].get("held_out_loss")
        beside = "" if held_out is None else f", {loss_text(held_out)} held out"
        note(f"loss {loss_text(words.loss)}{beside} after {experiment.state.step} steps in {experiment.elapsed:.1f} s")
    for path in (*drawn[:1], folder.loss):
        if path.exists():
            note(f"drew {path}")
    note(f"sample it with: difftool sample {folder.path}")


def _preview(experiment: Experiment) -> list[Path]:
    """Draw a preview. It is no reason to lose a run: what goes wrong is noted, and training goes on."""
    from difftool import previews

    try:
        return previews.draw(experiment)
    except Exception as error:
        note(f"no preview after step {experiment.state.step}: {' '.join(str(error).split())}")
        return []


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
        return f"{rates}  loss {loss_text(self.loss)}  by t {quartiles}"


def _draw_loss(experiment: Experiment, rows: list[dict[str, Any]]) -> None:
    from difftool.figures.loss import loss_figure
    from difftool.figures.style import save
    from difftool.files import atomic

    figure = loss_figure(rows, title=experiment.recipe.name)
    with atomic(experiment.folder.loss) as temporary:
        save(figure, temporary)


def _introduce(experiment: Experiment, device: str) -> None:
    recipe, settings = experiment.recipe, experiment.recipe.training
    note(
        f"{recipe.dataset.name} ({len(experiment.train):,} x {'x'.join(map(str, experiment.data.shape))}) / "
        f"{recipe.schedule.name} (T {settings.timesteps}) / "
        f"{recipe.backbone.name} ({experiment.parameters:,} parameters) / "
        f"{recipe.prediction.name}; {device}, {settings.precision}, seed {settings.seed}"
    )
    if left := experiment.model.schedule.signal_left:
        note(
            f"the last level is not noise: {100 * left**0.5:.0f} % of the signal is left (alpha-bar {left:.3f}); "
            "sampling starts from N(0, I) all the same"
        )


def _dry_run(experiment: Experiment, *, as_json: bool) -> None:
    parameters = experiment.parameters
    copies = 5 if experiment.state.ema is not None else 4  # weights, gradients, two Adam moments, average
    facts = {
        "parameters": parameters,
        "state_bytes": 4 * copies * parameters,
        "steps": experiment.steps,
        "steps_per_epoch": experiment.steps_per_epoch,
        "device": str(experiment.device),
        **experiment.recipe.document(),
    }
    if as_json:
        result_json(facts)
        return
    from difftool.recipe import dump_toml

    note(
        f"{experiment.steps} steps, {experiment.steps_per_epoch} an epoch; "
        f"weights and optimizer take {4 * copies * parameters / 2**20:.1f} MiB, activations come on top"
    )
    result(dump_toml(experiment.recipe.document()).rstrip())


def _check_resume(before: Recipe, now: Recipe, path: Path) -> None:
    """Refuse to go on with other options than the run's own, listing them."""
    rows = []
    old, new = before.document(), now.document()
    for table in old:
        if old[table].get("name") != new[table].get("name"):  # the options of two components cannot be compared
            rows.append(f"--{table} is {old[table]['name']} in the run, not {new[table]['name']}")
            continue
        for key in sorted({*old[table], *new[table]}):
            a, b = old[table].get(key), new[table].get(key)
            if a != b and not (table == "training" and key in MAY_CHANGE):
                flag = f"--{key.replace('_', '-')}" if table == "training" else f"--{table}.{key.replace('_', '-')}"
                rows.append(f"{flag} is {_said(a)} in the run, not {_said(b)}")
    if rows:
        raise DifftoolError(f"--resume {path}: {'; '.join(rows)}; leave these out, or start a new run")


def _said(value: Any) -> str:
    """A value as a user would say it."""
    words = {True: "on", False: "off", None: "not set"}
    return words[value] if value is None or isinstance(value, bool) else str(value)


def _maker(given: Mapping[str, Mapping[str, Any]], config: Path | None) -> Callable[..., Any]:
    """`make`, with errors that name the flag, or the file and line, that a value came from."""

    def make_named(record: type[Options], values: Mapping[str, object]) -> Any:
        try:
            return make(record, values)
        except InvalidOption as error:
            key = record.kind if issubclass(record, Component) else "training"
            if config is not None and error.field in values and error.field not in given.get(key, {}):
                raise _located(error, config, key, error.field) from None
            raise InvalidOption(error.field, error.reason, where=flag_of(record, error.field)) from None

    return make_named


def _located(error: InvalidOption, path: Path, table: str, key: str) -> UsageError:
    line = line_of(path, table, key)
    where = f"{path}, line {line}" if line else str(path)
    return UsageError(f"{where}: {table}{'.' + key if key else ''}: {error.reason}")


def _torch_version() -> str:
    import torch

    return str(torch.__version__)
