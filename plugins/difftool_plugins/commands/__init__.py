"""Built-in commands that a package could have brought."""

from difftool import Command, hookimpl
from difftool_plugins.commands.new_plugin import NewPlugin


@hookimpl
def difftool_commands() -> list[type[Command]]:
    return [NewPlugin]
