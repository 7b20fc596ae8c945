"""The built-in commands that are plugins."""

from difftool import Command, hookimpl
from difftool_plugins.commands.new_plugin import NewPlugin


@hookimpl
def difftool_commands() -> list[type[Command]]:
    return [NewPlugin]
