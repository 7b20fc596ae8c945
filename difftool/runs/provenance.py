"""Where components come from: the packages and scripts that a run records, and those that are here."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from difftool.components import Component
from difftool.plugins.discovery import ALLOW, DENY
from difftool.plugins.registry import registry
from difftool.scripts import is_script, script_of, short


def plugins_of(components: Iterable[Component]) -> dict[str, str]:
    """Return what components come from: packages with their versions, and scripts with their digests."""
    found: dict[str, str] = {}
    for cls in map(type, components):
        if (owner := registry().owner(cls)) is not None:
            found[owner.distribution] = owner.version
        elif (script := script_of(cls)) is not None:
            found[script.name] = script.digest
    return found


def changed_scripts(recorded: object, now: Mapping[str, str]) -> list[str]:
    """Return a note for each script whose content is not the one that a run recorded."""
    if not isinstance(recorded, Mapping):
        return []
    return [
        f"{name} has changed since the run was trained ({short(recorded[name])}; now {short(digest)})"
        for name, digest in now.items()
        if is_script(name, digest) and is_script(name, recorded.get(name)) and recorded[name] != digest
    ]


def made_with(recorded: object) -> str:
    """Return what to install or change if a file was made with packages that are missing or different here.

    `recorded` is the file's own list of packages with their versions, and of scripts with their digests.
    """
    if not isinstance(recorded, Mapping):
        return ""
    return "".join(
        f"; the file says that it was made with {name}{'' if script else f' {version}'}, {reason}"
        for name, version in recorded.items()
        if (script := is_script(name, version)) or is_release(name, version)
        if (reason := _other_script(name, version) if script else _mismatch(name, version))
    )


def is_release(name: object, version: object) -> bool:
    """Return whether a stranger's texts can be the name and version of a package (PEP 508, PEP 440)."""
    return all(isinstance(text, str) and re.fullmatch(r"[A-Za-z0-9][\w.+!-]{0,99}", text) for text in (name, version))


def _other_script(name: str, digest: str) -> str:
    """Return how a script differs from the one that a file was made with, or an empty text."""
    loaded = next((plugin.version for plugin in registry().plugins if plugin.distribution == name), None)
    if loaded is None:
        return f"a script that is not loaded: --plugin {name}, if you trust it"
    return "" if loaded == digest else f"of which another version is loaded ({short(loaded)}, not {short(digest)})"


def _mismatch(name: str, version: str) -> str:
    """Return how a package differs from the one that a file was made with, or an empty text."""
    plugins = [plugin for plugin in registry().plugins if plugin.distribution == name]
    if any(identity.partition(":")[0] == name for identity in registry().left_out):
        return f"which {ALLOW} or {DENY} leaves out"
    if not plugins:
        return f"which is not installed: pip install {name}=={version}, if you trust it"
    if problems := [problem for plugin in plugins for problem in plugin.problems]:
        return f"which was set aside: {problems[0]}"
    installed = plugins[0].version
    return "" if installed == version else f"and {installed} is installed: pip install {name}=={version}"
