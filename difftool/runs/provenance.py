"""What a file says it was made with, against what is here."""

from __future__ import annotations

import re
from collections.abc import Mapping

from difftool.plugins.discovery import ALLOW, DENY
from difftool.plugins.registry import registry


def made_with(recorded: object) -> str:
    """What to install or change, where a file was made with packages that are not here as it knew them.

    `recorded` is what the file says: distributions and their versions.
    """
    if not isinstance(recorded, Mapping):
        return ""
    return "".join(
        f"; the file says that it was made with {name} {version}, {reason}"
        for name, version in recorded.items()
        if is_release(name, version) and (reason := _absence(name, version))
    )


def is_release(name: object, version: object) -> bool:
    """Whether a stranger's text is no more than the name and the version that a package can have (PEP 508, PEP 440)."""
    return all(isinstance(text, str) and re.fullmatch(r"[A-Za-z0-9][\w.+!-]{0,99}", text) for text in (name, version))


def _absence(name: str, version: str) -> str:
    """Why a package's components are not here as they were, or an empty text."""
    here = [plugin for plugin in registry().plugins if plugin.distribution == name]
    if any(identity.partition(":")[0] == name for identity in registry().left_out):
        return f"which {ALLOW} or {DENY} leaves out"
    if not here:
        return f"which is not installed: pip install {name}=={version}, if you trust it"
    if problems := [problem for plugin in here for problem in plugin.problems]:
        return f"which was set aside: {problems[0]}"
    return "" if here[0].version == version else f"and {here[0].version} is installed: pip install {name}=={version}"
