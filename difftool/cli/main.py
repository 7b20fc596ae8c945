"""The entry point. `main` alone turns exceptions into a line on stderr and an exit code."""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import re
import signal
import sys
import time
import warnings
from collections.abc import Iterator
from typing import Any

from difftool.children import safe_path
from difftool.cli.signals import signals
from difftool.distributed import end_if_connected, leave_world, world
from difftool.errors import (
    LONGEST_LINE,
    OUT_OF_MEMORY,
    READER_DIED,
    DifftoolError,
    Interrupted,
    Stopped,
    UsageError,
    is_signal,
    one_line,
    out_of_memory,
    printable,
    reader_died,
    reader_left,
    shortened,
)
from difftool.version import __version__

BUG = "this is a bug in difftool or a plugin: run again with --debug and report what it prints"
DEBUG, NO_PLUGINS, PLUGIN = "--debug", "--no-plugins", "--plugin"
"""Options of the program itself, which may stand anywhere before a `--`."""
COMPLETE = "_DIFFTOOL_COMPLETE"
"""The variable by which a shell asks for completions."""
COMPLETION = ("--install-completion", "--show-completion")
"""Typer's own options of the program, which end the process when they are done."""
BROKEN_PIPE = 141  # 128 + SIGPIPE, as for any tool whose reader is gone
LAST_STREAM = 2
DISTRIBUTED = ("train", "sample")
"""The commands that several processes share; the main process runs the others alone."""
MAIN_FIRST = 10.0
"""Seconds that a process leaves to the main process to report wrong usage, and to torchrun to end this one."""
LONG_WORD, SHORT_WORD = 300, 85
"""The length from which words are shortened, and the length that they get."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit."""
    with signals.caught(), safe_path():
        try:
            code = _exit_code(list(sys.argv[1:] if arguments is None else arguments))
        except Stopped as stopped:  # a second signal, while the end by the first one is being reported
            code = stopped.exit_code
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # nothing is left to do: end without a traceback
        with contextlib.suppress(ValueError):  # not in the main thread
            signal.signal(signal.SIGINT, signal.SIG_DFL)
    if arguments is None and world().size > 1:
        end_if_connected(code)
    sys.exit(code)


def _exit_code(given: list[str]) -> int:
    """Run a command, report a failure, and return the exit code."""
    warnings.showwarning = _warn
    _prepare_streams()
    end = given.index("--") if "--" in given else len(given)
    options, values = given[:end], given[end:]
    try:
        if NO_PLUGINS in options:
            os.environ["DIFFTOOL_PLUGINS"] = ""  # also for the processes that this one starts
        with _only_main_prints():
            code = _run_with_scripts([a for a in options if a not in (DEBUG, NO_PLUGINS)], values)
        sys.stdout.flush()
        return code
    except Stopped as stopped:
        return stopped.exit_code
    except BaseException as error:
        if isinstance(error, BrokenPipeError) or reader_left(error):
            _forget_stdout()
            return BROKEN_PIPE
        if is_signal(error):
            return 130
        # other code may have turned the signal into an error of its own
        if signals.number is not None and not isinstance(error, DifftoolError):
            return signals.exit_code(signals.number)
        if isinstance(error, SystemExit) and (COMPLETE in os.environ or _program_options(options) & {*COMPLETION}):
            raise  # how Typer ends all that has to do with completion
        return _end(error, debug=DEBUG in options)


def _program_options(given: list[str]) -> set[str]:
    """Return the options that stand before the name of the command."""
    return set(itertools.takewhile(lambda argument: argument.startswith("-"), given))


def _end(error: BaseException, *, debug: bool) -> int:
    """Report a failure in one line, and return the exit code.

    Each of several processes reports its own failures, with its rank before them. All find wrong usage, and all stop at
    a signal, so the main process alone reports these.
    """
    code, message = failure(error)
    here, wrong_usage = world(), code == UsageError.exit_code
    if here.size > 1:
        if wrong_usage and not here.is_main:
            try:
                time.sleep(MAIN_FIRST)
            except Stopped:
                return code
        signals.ignore()  # torchrun signals those that are left when another has failed; the line matters more
        if isinstance(error, Interrupted) and not here.is_main:
            return code
    if debug:
        import traceback

        traceback.print_exception(error)
        _say(_versions())
    shared = here.size == 1 or wrong_usage or isinstance(error, Interrupted)
    _say(message, prefix="" if shared else f"[rank{here.rank}]: ")
    return code


@contextlib.contextmanager
def _only_main_prints() -> Iterator[None]:
    """Keep all processes but the main one silent in this block."""
    if world().is_main:
        yield
        return
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        yield


def _run_with_scripts(options: list[str], values: list[str]) -> int:
    """Run a command with the components of the scripts that its options name."""
    if not any(option.partition("=")[0] == PLUGIN for option in options):
        return _run([*options, *values])
    from difftool.cli.scripts import loaded, split_off

    options, files = split_off(options)
    with loaded(files):
        return _run([*options, *values])


def _run(arguments: list[str]) -> int:
    import typer

    from difftool.cli.app import app

    try:
        os.getcwd()
    except OSError as error:  # torch could not be imported there
        raise DifftoolError(f"the current folder cannot be used ({error.strerror}); change to another") from None
    _refuse_empty(arguments)
    if world().size > 1:
        if next((a for a in arguments if not a.startswith("-")), "") in DISTRIBUTED:
            os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # DDP would warn in each that all weights are used
        elif world().is_main:
            leave_world()
        else:
            return 0
    outcome = typer.main.get_command(app).main(arguments, prog_name="difftool", standalone_mode=False)
    return outcome if isinstance(outcome, int) else 0


def _refuse_empty(arguments: list[str]) -> None:
    """Refuse empty values. No option takes one, and an empty path would be the current folder. Raises `UsageError`."""
    for before, argument in zip(["", *arguments], arguments, strict=False):
        if argument == "--":
            return
        name, equals, value = argument.partition("=")
        if argument == "" or (equals and value == "" and name.startswith("-")):
            where = name or (before if before.startswith("-") else "an argument")
            raise UsageError(f"{where}: must not be empty")


def failure(error: BaseException) -> tuple[int, str]:
    """Return the exit code and the message for an exception."""
    import typer

    if isinstance(error, Interrupted):
        return error.exit_code, str(error)
    if isinstance(error, DifftoolError):
        return error.exit_code, f"error: {error}"
    if isinstance(error, typer.TyperException):
        return error.exit_code, f"error: {_usage(error)}"
    if out_of_memory(error):
        return 1, f"error: {OUT_OF_MEMORY.format(_memory_limit())}"
    if reader_died(error):
        return 1, f"error: {READER_DIED}"
    if isinstance(error, OSError) and error.strerror:
        return 1, f"error: {error.filename or 'the output'}: {error.strerror}"
    return 1, f"error: unexpected {type(error).__name__}: {one_line(error)}; {BUG}"


def _memory_limit() -> str:
    """Return the limit of the shell on the memory of a process, to add to an error, or an empty text."""
    if sys.platform == "win32":
        return ""
    import resource

    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    return "" if limit == resource.RLIM_INFINITY else f" (ulimit -v allows {limit >> 20:,} MiB)"


def _usage(error: Any) -> str:
    """Return the message of a Typer exception, worded as the other messages are."""
    if type(error).__name__ == "NoArgsIsHelpError":
        return "name a command, such as 'difftool train'"
    text = " ".join(str(error.format_message()).split()).rstrip(".")
    if text.lower().startswith("no such option"):
        near = getattr(error, "possibilities", None)
        text = f"there is no option {error.option_name}" + (f"; did you mean {' or '.join(near)}?" if near else "")
    text = re.sub(r"^Invalid value for '?(-[^:']*?|[A-Z]+)'?( / [^:]*)?: ", lambda m: f"{m[1].split(' / ')[0]}: ", text)
    text = text.replace(": Value error, ", ": ").replace(": Input should be", ": must be")
    if text.startswith("Got unexpected extra argument"):
        text = text[0].lower() + text[1:] + "; options begin with --"
    if ctx := getattr(error, "ctx", None):
        text += f" (see '{ctx.command_path} --help')"
    return text


def _say(message: str, prefix: str = "") -> None:
    """Print one line to stderr, with the middle of very long words, and of a very long line, left out."""
    words = (word if len(word) < LONG_WORD else shortened(word, SHORT_WORD) for word in message.split())
    line = shortened(printable(" ".join(words)), LONGEST_LINE)
    with contextlib.suppress(OSError):
        sys.stderr.write(f"{prefix}difftool: {line}\n")


def _versions() -> str:
    """Return the versions that a bug report should contain."""
    import platform
    from importlib.metadata import version

    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "typer", "pluggy", "safetensors"))
    return f"difftool {__version__}, {packages}, Python {platform.python_version()}, {platform.platform()}"


def _warn(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    """Print a warning as one line, unless it is meant for programmers."""
    if not issubclass(category, (DeprecationWarning, FutureWarning, ImportWarning, ResourceWarning)):
        _say(f"warning: {message}")


def _prepare_streams() -> None:
    """Let output to a closed stream vanish, and escape characters that a stream cannot encode.

    Descriptors 0 to 2 are opened if they are closed. Otherwise a file that is opened later gets such a number, and with
    it whatever native code prints.
    """
    if os.environ.get("COLUMNS", "").strip("0") == "":  # rich prints nothing in zero columns
        os.environ.pop("COLUMNS", None)
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= LAST_STREAM:
        pass
    os.close(descriptor)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name) or open(os.devnull, "w")  # noqa: SIM115 - stays open until the process ends
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
        setattr(sys, name, stream)
    _keep_stdout_for_results()


def _keep_stdout_for_results() -> None:
    """Move the results to a descriptor of their own, and let descriptor 1 lead to stderr.

    Then whatever writes to descriptor 1, such as native code of a plugin or a process that it starts, cannot mix with
    the results. There is nothing to move where a program that calls this one has put another stream in place of stdout.
    """
    stream: Any = sys.stdout
    standard = 1
    try:
        if stream.fileno() != standard:
            return
    except (OSError, ValueError):
        return
    stream.flush()
    results = os.dup(standard)
    os.dup2(LAST_STREAM, standard)
    sys.stdout = io.TextIOWrapper(
        open(results, "wb", buffering=0 if stream.write_through else -1),  # noqa: SIM115 - open until the process ends
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def _forget_stdout() -> None:
    """Discard buffered output: the reader is gone, or the disk is full."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
