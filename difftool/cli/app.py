"""The Typer application and its commands."""

from __future__ import annotations

from typing import Annotated

import typer

from difftool.cli.commands import Commands
from difftool.version import __version__

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
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of a failure; works anywhere.")] = False,
    no_plugins: Annotated[
        bool, typer.Option("--no-plugins", help="Take the built-ins alone, whatever is installed; works anywhere.")
    ] = False,
) -> None:
    pass


def _add_commands() -> None:
    from difftool.cli import check, compare, info, inspect_schedule, listing, noise, plugins, runs, sample, train

    for module in (train, sample, compare, noise, inspect_schedule, runs, info, listing, plugins, check):
        module.add_to(app)


_add_commands()
