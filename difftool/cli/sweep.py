"""`difftool sweep`: train all combinations of some options, one after the other, or print their commands."""

from __future__ import annotations

import contextlib
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from difftool.cli.console import help_text, note, result, result_json
from difftool.cli.main import failure
from difftool.cli.parameters import AsJson
from difftool.cli.run_table import facts, print_runs
from difftool.cli.training import script_words
from difftool.cli.variations import Combination, Variation, combinations
from difftool.errors import TRY_AGAIN, DifftoolError, Interrupted, Stopped, UsageError, counted, printable
from difftool.runs.recipe import Recipe, differences

if TYPE_CHECKING:
    from difftool.cli.request import Request
    from difftool.runs.folder import RunFolder, Status

ROOT = Path("runs/sweep")
NAMED = 5
"""The number of failed runs that the last line names."""


def sweep(
    config: Annotated[
        Path | None,
        typer.Argument(
            metavar="[FILE|NAME]",
            help=help_text(
                "A TOML file, or one of 'difftool list configs', for all that does not vary.",
                "default: the defaults of train",
            ),
        ),
    ] = None,
    vary: Annotated[
        list[str] | None,
        typer.Option(
            metavar="OPTION=VALUES",
            help="An option of train and its values, such as lr=1e-4,3e-4, seed=0..2 or schedule=linear,cosine. With "
            "several of them, every combination is a run.",
        ),
    ] = None,
    fixed: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="OPTION=VALUE", help="An option of train for all runs, such as steps=2000."),
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="The folder of the runs, each named by what varies.")] = ROOT,
    print_: Annotated[
        bool, typer.Option("--print", help="Print the commands that are left to do, one a line, and train nothing.")
    ] = False,
    json: AsJson = False,
) -> None:
    """Train every combination of some options, one after the other, and print their results in one table.

    The same command goes on where it was stopped: finished runs are skipped, and half-done ones resumed. A run that
    fails leaves the others to go on.
    """
    varying = [Variation.read(text, "--vary") for text in vary or ()]
    if not varying:
        raise UsageError("--vary: name what differs between the runs, such as --vary lr=1e-4,3e-4 --vary seed=0..2")
    settings = [Variation.read(text, "--set", several=False) for text in fixed or ()]
    planned = [_plan(config, one, out) for one in combinations(varying, settings)]
    left = [run for run in planned if run.state in ("new", "stopped")]
    if done := sum(run.state == "finished" for run in planned):
        note(f"{done:,} of {counted(len(planned), 'run')} {'is' if done == 1 else 'are'} finished already")
    for run in planned:
        if run.state == "training":
            note(f"{run.path} is being trained by another process, and left to it")
    if print_:
        commands = [shlex.join(["difftool", *run.words]) for run in left]
        if json:
            result_json({"commands": commands})
        for command in commands if not json else ():
            result(command)
        return
    again = _same_command(config, vary or (), fixed or (), out)
    failed = _train_all(left, planned, again)
    _report([run for run in planned if run.state != "new" or run.folder.config.is_file()], failed, out, as_json=json)
    if failed:
        names = ", ".join(f"{run.path.name} ({reason})" for run, reason in [*failed.items()][:NAMED])
        names += f" and {len(failed) - NAMED:,} more" if len(failed) > NAMED else ""
        raise DifftoolError(
            f"{len(failed):,} of {counted(len(planned), 'run')} failed: {names}; try again with: {again}"
        )


def add_to(app: typer.Typer) -> None:
    app.command()(sweep)


@dataclass(frozen=True, eq=False)
class Planned:
    """A run of a sweep: where it lies, how far it is, and the command that trains it to its end."""

    path: Path
    state: str
    """`new`, `stopped`, `training` (by another process) or `finished`."""
    words: tuple[str, ...]
    """The words of its command after `difftool`."""

    @property
    def folder(self) -> RunFolder:
        from difftool.runs.folder import RunFolder

        return RunFolder(self.path)


def _plan(config: Path | None, one: Combination, out: Path) -> Planned:
    """Check the options of a run and what lies in its folder. Raises `UsageError`, which names the run."""
    from difftool.cli.request import Request
    from difftool.runs.creation import check_run_output
    from difftool.runs.folder import RunFolder, is_run

    path = out / one.name
    words = ["train", *([] if config is None else ["--config", str(config)]), *one.words]
    with _naming(one.name):
        recipe = _requested(words).recipe()
        if not is_run(path):
            check_run_output(path, overwrite=False)
            return Planned(path, "new", (*script_words(), *words, "--out", str(path)))
        before = Request.read({}, config=None, resume=path).recipe()
        recipe = recipe.as_begun(before)
        if rows := differences(before, recipe):
            raise DifftoolError(f"{path} is a run of other settings ({'; '.join(rows)}); give another --out")
        status = RunFolder(path).status()
        more = _more(before, recipe, status)
        device = list(one.words[one.words.index("--device") :][:2]) if "--device" in one.words else []
    state = {"finished": "finished", "stopped early": "finished", "training": "training"}.get(status.status, "stopped")
    resume = (*script_words(), "train", "--resume", str(path), *more, *device)
    return Planned(path, "stopped" if more and state == "finished" else state, resume)


def _requested(words: Sequence[str]) -> Request:
    """Return the request of a command line of `train`, checked as `train` checks it."""
    from difftool.cli import train
    from difftool.cli.command import given_values

    program = typer.Typer(add_completion=False)
    train.add_to(program)
    ctx: Any = typer.main.get_command(program).make_context("difftool train", list(words[1:]))
    request: Request = replace(ctx.obj, values=given_values(ctx))
    request.recipe()
    request.companions()
    return request


def _more(before: Recipe, now: Recipe, status: Status) -> list[str]:
    """Return the options that make a run longer. Raises `DifftoolError` for one that is longer already."""
    old, new = before.training, now.training
    if (old.steps, old.epochs) == (new.steps, new.epochs):
        return []
    if new.steps is not None and new.steps < status.step:
        raise DifftoolError(f"it has made {status.step:,} steps already, more than {new.steps:,}; give another --out")
    return ["--steps", str(new.steps)] if new.steps is not None else ["--epochs", str(new.epochs)]


@contextlib.contextmanager
def _naming(name: str) -> Iterator[None]:
    """Put the name of a run before the message of an error in this block."""
    try:
        yield
    except Exception as error:
        code, message = failure(error)
        if code not in (1, 2) or not isinstance(error, (DifftoolError, typer.TyperException)):
            raise
        kind = UsageError if code == UsageError.exit_code else DifftoolError
        raise kind(f"{name}: {message.removeprefix('error: ')}") from error


def _train_all(left: Sequence[Planned], planned: Sequence[Planned], again: str) -> dict[Planned, str]:
    """Train the runs one after the other, and return why some failed. Raises `Interrupted` at a signal."""
    failed: dict[Planned, str] = {}
    for number, run in enumerate(left, start=1):
        note(f"run {number} of {len(left)}: {run.path}")
        try:
            code = call(run.words)
        except Stopped as stopped:
            whole = sum(one.folder.status().status == "finished" for one in planned if one.folder.config.is_file())
            which = signal.Signals(stopped.number)
            raise Interrupted(
                f"stopped by {which.name}; {whole:,} of {counted(len(planned), 'run')} finished; go on with: {again}",
                stopped.exit_code,
            ) from None
        if code == TRY_AGAIN:  # the time of the job is over
            raise Interrupted(f"stopped in {run.path}; go on with: {again}", code)
        if code:
            failed[run] = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            note(f"{run.path} failed ({failed[run]}); the others go on")
    return failed


def call(words: Sequence[str]) -> int:
    """Run a command of difftool in a process of its own, and return its exit code.

    A signal lets the process save first, and is then raised as `Stopped`; another one ends the process at once.
    """
    command = [sys.executable, "-m", "difftool", *words]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        try:
            return process.wait()
        except Stopped:
            with _killed_by_another_signal(process):
                if sys.platform != "win32":  # Ctrl-C has reached it already, but a signal to this process alone has not
                    process.send_signal(signal.SIGUSR1)
                process.wait()
            raise


@contextlib.contextmanager
def _killed_by_another_signal(process: subprocess.Popen[bytes]) -> Iterator[None]:
    try:
        yield
    except BaseException:
        process.kill()
        raise


def _report(runs: Sequence[Planned], failed: dict[Planned, str], out: Path, *, as_json: bool) -> None:
    """Print the results of all runs: a table, or one JSON object."""
    from difftool.runs.summary import Summary, differing

    summaries = {run: Summary.of(run.folder) for run in runs}
    if as_json:
        names = differing([summary.options for summary in summaries.values()])
        rows = [{**facts(summary, names), "failed": failed.get(run)} for run, summary in summaries.items()]
        missing = [{"run": str(run.path), "failed": why} for run, why in failed.items() if run not in summaries]
        result_json({"out": str(out), "runs": [*rows, *missing]})
    elif summaries:
        print_runs([*summaries.values()])
        place = shlex.quote(printable(str(out)))
        note(f"see also: difftool runs {place} --plot losses.png; difftool compare {place}")


def _same_command(config: Path | None, vary: Sequence[str], fixed: Sequence[str], out: Path) -> str:
    words = ["difftool", *script_words(), "sweep", *([] if config is None else [str(config)])]
    words += [word for text in vary for word in ("--vary", text)] + [word for text in fixed for word in ("--set", text)]
    return shlex.join([*words, *([] if out == ROOT else ["--out", str(out)])])
