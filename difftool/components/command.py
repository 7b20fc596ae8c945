"""Commands that plugins add."""

from __future__ import annotations

from abc import abstractmethod

from difftool.components.component import Component


class Command(Component):
    """A command of `difftool`; its fields are its arguments.

    The package announces it, so that `difftool --help` can name it without importing anything:

        [project.entry-points."difftool.commands"]
        fid = "difftool_fid"
    """

    kind = "command"
    hook = "difftool_commands"

    @classmethod
    def chosen_by(cls) -> str:
        return f"difftool {cls.name}"

    @abstractmethod
    def run(self) -> object:
        """Run the command, and return its result.

        The result goes to stdout: a mapping as one JSON object, a list one entry a line, None as nothing. Anything
        printed meanwhile goes to stderr. Raise `DifftoolError` for a failure, and `UsageError` for a request that
        cannot be met.
        """
