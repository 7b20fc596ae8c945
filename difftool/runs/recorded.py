"""Recipes as files of weights record them: untrusted, and made with plugins that may be absent or different here."""

from __future__ import annotations

import re
import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from difftool.components import KINDS, Component, Dataset
from difftool.data.memory import Memory
from difftool.errors import BadFile, DifftoolError, UsageError
from difftool.options import fields, make
from difftool.paths import without_paths
from difftool.plugins.discovery import ALLOW, DENY
from difftool.plugins.registry import registry
from difftool.plugins.validation import abstract_methods
from difftool.runs.recipe import Recipe, build_recipe, in_memory, options_in, recipe_kinds
from difftool.scripts import is_script, short


def read_recipe(path: Path, document: Mapping[str, Any], config: Mapping[str, Any] | None = None) -> Recipe:
    """Return the recipe in the metadata of a file, through the registry and the components' own validation.

    `config` holds the tables of the run that the file belongs to. Paths come from there, and so does the dataset. A
    file by itself names no paths, and its dataset loads nothing unless its samples are generated. Components that
    sampling does not need may be absent, or come from a plugin that is not installed. Raises `BadFile`.
    """
    tables = {kind: document[kind] for kind in (*recipe_kinds(), "training") if kind in document}
    ready: dict[str, Component] = {}
    try:
        for kind, base in recipe_kinds().items():
            table = tables.get(kind, None if base.needed_to_sample else {"name": ""})
            if not isinstance(table, Mapping) or not isinstance(name := table.get("name"), str):
                raise BadFile(f"{path}: its metadata name no {kind}")
            if in_memory(kind, table):
                ready[kind] = make(Memory, {key: value for key, value in table.items() if key != "name"})
            elif name in registry().names(kind):
                cls = registry().of_kind(base, name)
                tables[kind] = {**without_paths(cls, table), **_own_paths(cls, name, (config or {}).get(kind))}
                missing = [f.name for f in fields(cls) if f.required and f.use_in(cls) and f.name not in tables[kind]]
                if missing and base.needed_to_sample:
                    what = f"the {kind} {name} needs {missing[0]}, a path, which a model file does not hold"
                    raise BadFile(f"{path}: {what}; name its run folder")
                if issubclass(cls, Dataset) and not cls.generated:
                    ready[kind] = _own_dataset(config or {}) or _sealed(cls, tables[kind], missing)
                elif missing:
                    ready[kind] = _sealed(cls, tables[kind], missing)
            elif not base.needed_to_sample and re.fullmatch(r"[\w.:-]{1,100}", name):
                ready[kind] = _stand_in(base, name, "its plugin is not installed")
        if not isinstance(tables.get("training"), Mapping):
            raise BadFile(f"{path}: its metadata have no training settings")
        return build_recipe(tables, parts=ready)
    except UsageError as error:
        raise BadFile(f"{path}: its metadata are refused: {error}{made_with(document.get('plugins'))}") from None


def _own_paths(cls: type[Component], name: str, table: object) -> dict[str, Any]:
    """Return the paths that a run's own table gives to a component, if it names the same one."""
    if not isinstance(table, Mapping) or table.get("name") != name:
        return {}
    others = without_paths(cls, table)
    return {key: value for key, value in table.items() if key not in others}


def _own_dataset(config: Mapping[str, Any]) -> Dataset | None:
    """Return the dataset that a run's own config file names, or None if that cannot be made here."""
    table = config.get(Dataset.kind)
    if not isinstance(table, Mapping) or not isinstance(name := table.get("name"), str):
        return None
    try:
        return make(registry().of_kind(Dataset, name), options_in(config, Dataset.kind))
    except DifftoolError:
        return None


def _sealed(cls: type[Component], table: Mapping[str, Any], missing: Iterable[str]) -> Component:
    """Return a component of a file with its options, for comparison alone: it does no work."""
    options = {**dict.fromkeys(missing, "."), **{key: value for key, value in table.items() if key != "name"}}
    return _stand_in(cls, table["name"], "a model file does not bring its data; name its run folder", options)


def _stand_in(base: type[Component], name: str, reason: str, options: Mapping[str, Any] | None = None) -> Component:
    """Return a component that stands for one that must not or cannot work; its methods refuse with a reason."""

    def refuse(*_: object) -> None:
        raise ValueError(reason)

    methods = {**dict.fromkeys(abstract_methods(KINDS[base.kind]), refuse), "item_shape": lambda _: None}
    cls = types.new_class(
        base.__name__, (base,), {"name": name}, lambda body: body.update(methods, __module__=__name__)
    )
    stand_in: Component = make(cls, options or {})
    return stand_in


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


def changed_scripts(recorded: object, now: Mapping[str, str]) -> list[str]:
    """Return a note for each script whose content is not the one that a run recorded."""
    if not isinstance(recorded, Mapping):
        return []
    return [
        f"{name} has changed since the run was trained ({short(recorded[name])}; now {short(digest)})"
        for name, digest in now.items()
        if is_script(name, digest) and is_script(name, recorded.get(name)) and recorded[name] != digest
    ]


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
