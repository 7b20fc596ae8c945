"""The built-in commands that are plugins."""

from difftool import Command, hookimpl
from difftool_plugins.commands.export import Export
from difftool_plugins.commands.import_model import Import
from difftool_plugins.commands.new_plugin import NewPlugin


@hookimpl
def difftool_commands() -> list[type[Command]]:
    return [Export, Import, NewPlugin]
