"""The Typer application. Its commands are named here, and imported only when they are called.

The help of the program must not cost more than that of any small program, and importing all commands would.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from difftool.cli.console import help_text
from difftool.cli.help import whole_names
from difftool.plugins.discovery import BUILT_IN, Announced, announced
from difftool.version import __version__

COMMANDS: Mapping[str, str] = {
    "train": "Train a model, and print its run folder.",
    "sample": "Draw samples from a trained model, or from an oracle, and print the files written.",
    "compare": "Compare samplers, spacings and guidances on one model, or several runs: a table, a figure in a file.",
    "evaluate": "Measure how good the samples of models are, against data and beside the same measure of data.",
    "noise": "Show how signal turns into noise: the clean x_0, then x_t at several levels.",
    "reconstruct": "Show what a network makes of noised items in one step.",
    "inspect-schedule": "Compare noise schedules: a table and a small plot here, a figure in a file.",
    "report": "Write one HTML page about runs: losses, samples, metrics, schedule, and how to repeat them.",
    "runs": "List the runs in a folder, the newest first, with what differs between them.",
    "sweep": "Train every combination of some options, one after the other, and print their results in one table.",
    "info": "Describe a run or a model: progress, loss, parts, and whether files are intact; or how samples were made.",
    "list": "List the components that commands can be given, with their options, or the installed configs.",
    "schema": "Print the JSON schema of config files, with the options of every component that is installed.",
    "plugins": "List the plugins found, what they provide and cost, and why any was set aside.",
    "check": "Check components against the laws of their kind.",
}
"""The first line of the help of each command. The module in `difftool.cli` that adds it has the command's name."""
PANEL = "Commands of plugins"
BUILT_INS: Mapping[str, str] = {
    "export": "Write a trained model for other software, with a card that says what it is and how to run it.",
    "import": "Read a model of another library, as a file that every command takes.",
    "new-plugin": "Write a package with one working component, its tests, a README and a CI file.",
}
"""The same for the commands of the built-in plugins, which the help names without importing them."""


class Commands(TyperGroup):
    """difftool's own commands, and those that packages announce."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [*COMMANDS, *announced(COMMANDS)]

    def format_help(self, ctx: Any, formatter: Any) -> None:
        with whole_names():
            super().format_help(ctx, formatter)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a placeholder with the command's name and first line, which is all that the help needs."""
        if cmd_name in COMMANDS:
            return _placeholder(cmd_name, COMMANDS[cmd_name])
        if (one := announced(COMMANDS).get(cmd_name)) is not None:
            return _placeholder(cmd_name, _summary(one), PANEL)
        return None

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Import the command that is called."""
        try:
            name, _, rest = super().resolve_command(ctx, args)
        except typer.TyperException as error:
            if args[0].startswith("-"):
                raise
            from difftool.cli.plugin_command import unknown_command

            raise unknown_command(args[0], self.list_commands(ctx)) from error
        if name is None:
            return name, None, rest
        return name, _load(name), rest


def _load(name: str) -> Any:
    program = _new_program()
    if name in COMMANDS:
        import_module(f"difftool.cli.{name.replace('-', '_')}").add_to(program)
    else:
        from difftool.cli.plugin_command import add_to

        add_to(program, name, announced(COMMANDS)[name])
    return typer.main.get_command(program)


def _placeholder(name: str, text: str, panel: str | None = None) -> Any:
    program = _new_program()

    @program.command(name, help=help_text(text), rich_help_panel=panel)
    def placeholder() -> None: ...

    return typer.main.get_command(program)


def _summary(one: Announced) -> str:
    if one.distribution == BUILT_IN:
        return BUILT_INS.get(one.command, "Built in.")
    package = f"{one.distribution} {one.version}".rstrip()
    return f"{one.summary or 'From a package'} ({package})"


def _new_program() -> typer.Typer:
    """Return a Typer application for a single command, without completion and tracebacks of its own."""
    return typer.Typer(add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)


app = typer.Typer(
    name="difftool",
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Diffusion models on the command line: any dataset, noise schedule, backbone and sampler, built in or "
    "installed, composed.",
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"difftool {__version__}")
        raise typer.Exit


@app.callback()
def difftool(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of a failure; works anywhere on the command line.")
    ] = False,
    no_plugins: Annotated[
        bool, typer.Option("--no-plugins", help="Use only the built-ins; works anywhere on the command line.")
    ] = False,
    plugin: Annotated[
        list[Path] | None,
        typer.Option(help="Load components from a script; works anywhere on the command line.", metavar="FILE.py"),
    ] = None,
) -> None:
    pass
