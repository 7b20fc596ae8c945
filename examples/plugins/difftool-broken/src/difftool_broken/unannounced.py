"""Provides a command that no entry point announces."""

from difftool import Command, hookimpl


class Secret(Command, name="secret"):
    """A command that is never found."""

    def run(self) -> str:
        return "found"


@hookimpl
def difftool_commands() -> list[type[Command]]:
    return [Secret]
