"""`--plugin FILE.py`: the components of scripts, for one command. Only the command line names scripts."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from difftool.errors import PluginFailure, UsageError
from difftool.plugins.discovery import also_announced
from difftool.plugins.loading import commands_of
from difftool.plugins.registry import scripts_added

FLAG = "--plugin"


def split_off(options: Sequence[str]) -> tuple[list[str], list[Path]]:
    """Return the options without each `--plugin FILE`, and the files. Raises `UsageError` where a file is missing."""
    rest: list[str] = []
    files: list[Path] = []
    remaining = iter(options)
    for word in remaining:
        name, equals, value = word.partition("=")
        if name != FLAG:
            rest.append(word)
            continue
        file = value if equals else next(remaining, "")
        if file == "" or file.startswith("-"):
            raise UsageError(f"{FLAG}: name a file, such as {FLAG} mine.py")
        files.append(Path(os.path.expanduser(file)))
    return rest, files


@contextlib.contextmanager
def loaded(files: Sequence[Path]) -> Iterator[None]:
    """Offer the components of scripts in this block, and warn of those that were set aside.

    Raises `UsageError` and `PluginFailure`.
    """
    with contextlib.ExitStack() as stack:
        try:
            plugins = stack.enter_context(scripts_added(files))
        except (UsageError, PluginFailure) as error:
            raise type(error)(f"{FLAG}: {error}") from error
        for plugin in plugins:
            for problem in plugin.problems:
                warnings.warn(f"{FLAG} {plugin.distribution}: {problem}", stacklevel=2)
        stack.enter_context(also_announced(commands_of(plugins)))
        yield
