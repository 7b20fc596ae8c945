"""The laws of commands: what their help shows, and the components that they take."""

from __future__ import annotations

from difftool.cli.resources import ComponentResource, resources_of
from difftool.components import Command
from difftool.errors import DifftoolError, counted
from difftool.options import fields
from difftool.plugins.registry import registry
from difftool.testing.common import parsed, shown_help
from difftool.testing.laws import Failed, Skipped, require


def shows_its_arguments(command: Command) -> str:
    """Its help shows every argument and option of the command."""
    record = type(command)
    names = [f.flag.upper() if f.details.positional else f"--{f.flag}" for f in fields(record) if f.inner is not bool]
    names += [f"--{flag}" for one in resources_of(record) for flag in sorted(one.flags)]
    text = shown_help(record)
    missing = [name for name in names if name not in text]
    require(not missing, f"the help lacks {', '.join(missing)}")
    return counted(len(names), "name")


def takes_components_by_name(command: Command) -> str:
    """Each of its fields for a component takes every installed component of the kind by its name on the command line,
    but for those that need an option."""
    taken = 0
    record = type(command)
    for one in resources_of(record):
        if isinstance(one, ComponentResource):
            for cls in registry().all_of(one.base):
                if any(f.required for f in fields(cls)):
                    continue
                name = registry().reference(cls)
                try:
                    found = getattr(parsed(command, f"--{one.flag}", name), one.name)
                except DifftoolError as error:
                    raise Failed(f"--{one.flag} {name} is refused: {error}") from None
                require(type(found) is cls, f"--{one.flag} {name} became {found}")
                taken += 1
    if not taken:
        raise Skipped("it takes no component")
    return counted(taken, "component")


LAWS = (shows_its_arguments, takes_components_by_name)
