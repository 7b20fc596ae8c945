"""The registry: the plugins of this process, and the components that their names stand for."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from difftool.components import KINDS, Command, Component, Dataset, Guidance
from difftool.errors import InvalidOption, PluginFailure, UnknownComponent, UsageError, printable
from difftool.options import dashed, make, plain, suggestion
from difftool.plugins.discovery import (
    ALLOW,
    COMMANDS,
    DENY,
    GROUP,
    announcements,
    choose,
    impostors,
    installed,
    winner_of,
)
from difftool.plugins.loading import Plugin, Problem, impostor, load, load_script

C = TypeVar("C", bound=Component)


OWN = "own"
"""The version of what a program itself provides, which no package and no script has."""
HUB_NAMES = {
    "mnist": "ylecun/mnist",
    "fashion-mnist": "zalando-datasets/fashion_mnist",
    "cifar10": "uoft-cs/cifar10",
    "cifar-10": "uoft-cs/cifar10",
    "cifar100": "uoft-cs/cifar100",
}
"""Data sets that many ask for first, by their names on the hub of Hugging Face."""


def _folder_of_images(kind: str, name: str) -> str:
    """Return advice for a folder that is named where a dataset is expected."""
    if kind != Dataset.kind or not os.path.isdir(name):
        return ""
    return f"; for a folder of images: --dataset image-folder --dataset.path {shlex.quote(printable(name))}"


def _own_images(kind: str, name: str) -> str:
    """Return advice for a dataset that is not built in, such as mnist."""
    if kind != Dataset.kind:
        return ""
    if hub := HUB_NAMES.get(name.casefold()):
        return f"; it is on the hub of Hugging Face: --dataset hf --dataset.path {hub}"
    return "; for images of your own, in sub-folders if they have classes: --dataset image-folder --dataset.path FOLDER"


class Registry:
    """The components of a list of plugins, by kind and name.

    A component is called by its bare name, or by `distribution:name`. A built-in keeps its bare name; of two strangers
    that claim the same name, neither gets it.
    """

    def __init__(self, plugins: Iterable[Plugin], left_out: Sequence[str] = ()) -> None:
        self._sources = list(plugins)
        self.plugins = [
            dataclasses.replace(p, components=[*p.components], problems=[*p.problems]) for p in self._sources
        ]
        self.left_out = left_out
        """Identities of the plugins that the environment leaves out."""
        self._owners: dict[type[Component], Plugin] = {}
        for plugin in self.plugins:
            for component in plugin.components:
                self._owners.setdefault(component, plugin)  # a class that several plugins return belongs to the first
        self._qualified: dict[str, dict[str, type[Component]]] = {kind: {} for kind in KINDS}
        for component, plugin in self._owners.items():
            self._qualified[component.kind][f"{plugin.distribution}:{component.name}"] = component
        self._bare = {kind: self._resolve_names(kind) for kind in KINDS}

    def _resolve_names(self, kind: str) -> dict[str, type[Component]]:
        """Give out the bare names of a kind, and note a problem for each component that does not get its own."""
        claims: dict[str, list[type[Component]]] = {}
        for component in self._qualified[kind].values():
            claims.setdefault(component.name, []).append(component)
        bare: dict[str, type[Component]] = {}
        for name, claimants in claims.items():
            winner = winner_of([(c, self._owners[c].built_in) for c in claimants])
            if winner is not None:
                bare[name] = winner
            for loser in (c for c in claimants if c is not winner):
                owner = self._owners[loser]
                others = [self._owners[c] for c in claimants if c is not loser]
                cure = f"reach it as {owner.distribution}:{name}"
                packages = [p.distribution for p in (*others, owner) if p.script is None]
                if winner is None and packages:
                    cure += f", or leave one out by {DENY}={packages[0]}"
                reason = f"{kind} {name!r}: the name is taken by {', '.join(p.distribution for p in others)}"
                owner.problems.append(Problem(reason, cure, kind, name))
        return bare

    @property
    def set_aside(self) -> list[Plugin]:
        """The plugins with a problem."""
        return [plugin for plugin in self.plugins if plugin.problems]

    def names(self, kind: str) -> list[str]:
        """Return all names by which a component of the kind can be called, sorted."""
        bare = self._bare[kind]
        only_qualified = [name for name, c in self._qualified[kind].items() if bare.get(c.name) is not c]
        return sorted(bare) + sorted(only_qualified)

    def get(self, kind: str, name: str) -> type[Component]:
        """Return the component class. Raises `UnknownComponent`, or `PluginFailure` if a broken plugin is to blame."""
        found = self._bare[kind].get(name) or self._qualified[kind].get(name)
        if found is not None:
            return found
        for plugin in self.set_aside:
            if cause := plugin.cause(kind, name):
                raise PluginFailure(f"{kind} {name!r}: plugin {plugin.identity} was set aside: {cause}")
        known = self.names(kind)
        hint = _folder_of_images(kind, name) or suggestion(name, known) or _own_images(kind, name)
        raise UnknownComponent(kind, f"unknown {kind} {name!r}{hint} (known: {', '.join(known)}){self.missing_note()}")

    def with_script(self, plugin: Plugin) -> Registry:
        """Return a registry with a script, in place of what the same file held before. Raises `UsageError`."""
        assert plugin.script is not None
        others = [p for p in self._sources if p.script is None or p.script.path != plugin.script.path]
        if taken := next((p.script.path for p in others if p.script and p.distribution == plugin.distribution), None):
            raise UsageError(f"{taken} and {plugin.script.path} have the same name; rename one of them")
        return Registry([*others, plugin], self.left_out)

    def with_components(self, components: Iterable[type[Component]]) -> Registry:
        """Return a registry that also knows those of these components that no plugin provides."""
        own = [component for component in dict.fromkeys(components) if component not in self._owners]
        plugins = [Plugin(component.__module__, "", OWN, components=[component]) for component in own]
        return Registry([*self._sources, *plugins], self.left_out) if plugins else self

    def missing_note(self) -> str:
        """Return a note on the plugins that are not available, among which the one looked for may be."""
        counts = {"set aside": len(self.set_aside), "left out by the environment": len(self.left_out)}
        notes = [f"{n} plugin{'s were' if n > 1 else ' was'} {what}" for what, n in counts.items() if n]
        return "".join(f"; {note}" for note in notes) + (", see 'difftool plugins'" if notes else "")

    def of_kind(self, base: type[C], name: str) -> type[C]:
        """Return a component class, typed: `registry.of_kind(Sampler, "ddim")`. Raises as `get` does."""
        found = self.get(base.kind, name)
        assert issubclass(found, base)
        return found

    def all_of(self, base: type[C]) -> list[type[C]]:
        """Return every component of a kind, in the order of their names."""
        return [self.of_kind(base, name) for name in self.names(base.kind)]

    def owner(self, component: type[Component]) -> Plugin | None:
        """Return the package or the script that provides a component, or None for one of the program itself."""
        owner = self._owners.get(component)
        return None if owner is not None and owner.version == OWN else owner

    def reference(self, component: type[Component]) -> str:
        """Return the name to write into a file: the bare one if it finds this very component again."""
        owner = self.owner(component)
        if owner is None or self._bare[component.kind].get(component.name) is component:
            return component.name
        return f"{owner.distribution}:{component.name}"


_replacements: list[Registry] = []


def registry() -> Registry:
    """Return the registry of this process: the built-ins and everything installed."""
    if _replacements:
        return _replacements[-1]
    return _installed(os.environ.get(ALLOW), os.environ.get(DENY, ""))


@contextlib.contextmanager
def replaced_by(other: Registry) -> Iterator[None]:
    """Use another registry in this block."""
    _replacements.append(other)
    try:
        yield
    finally:
        _replacements.remove(other)


@contextlib.contextmanager
def scripts_added(paths: Iterable[Path]) -> Iterator[list[Plugin]]:
    """Use a registry with the components of these scripts in this block, which gets the scripts as plugins.

    Names are given out as among packages: a built-in keeps its own, and `mine.py:name` reaches each. Raises
    `UsageError` and `PluginFailure`.
    """
    scripts = [load_script(path) for path in dict.fromkeys(paths)]
    extended = registry()
    for plugin in scripts:
        extended = extended.with_script(plugin)
    with replaced_by(extended):
        yield [plugin for plugin in extended.plugins if plugin.script is not None]


def load_plugin(path: str | os.PathLike[str]) -> ModuleType:
    """Load components from a script, as `--plugin FILE.py` does, and return its module.

    From then on, `train`, `load` and `component` find its components by their names. A script that was changed can be
    loaded again. Raises `DifftoolError`.
    """
    named: object = path
    if not isinstance(named, (str, os.PathLike)):
        raise TypeError(f"a script is named by its path, as text or Path, not by {type(named).__name__}")
    plugin = load_script(Path(path))
    _replacements.append(registry().with_script(plugin))
    return sys.modules[plugin.module]


@functools.cache
def _installed(allowed: str | None, denied: str) -> Registry:
    admitted, left_out = choose(installed(GROUP), allowed, denied)
    with contextlib.redirect_stdout(sys.stderr):  # stdout is for results, not for what a plugin prints when imported
        plugins = [*load(admitted), *map(impostor, impostors())]
    announced = {(a.distribution, a.command) for a in announcements(allowed, denied)}
    for plugin in plugins:
        _set_aside_unannounced(plugin, announced)
    return Registry(plugins, sorted(left_out))


def _set_aside_unannounced(plugin: Plugin, announced: set[tuple[str, str]]) -> None:
    """Set aside commands that no entry point names, since the command line would never find them."""
    for component in [c for c in plugin.components if c.kind == Command.kind]:
        if (plugin.distribution, component.name) not in announced:
            plugin.components.remove(component)
            reason = f"command {component.name!r}: no entry point announces it"
            entry = f'{component.name} = "{plugin.module}"'
            cure = f'put {entry} under [project.entry-points."{COMMANDS}"] and install again'
            plugin.problems.append(Problem(reason, cure, component.kind, component.name))


def given(base: type[C], choice: object, others: str = "") -> C:
    """Return the component that Python code gives by its name or as an instance, with its options checked.

    Raises `UsageError`, and `TypeError` for anything else; `others` says what else the caller takes.
    """
    if isinstance(choice, str):
        return make(registry().of_kind(base, choice), {})
    if not isinstance(choice, base):
        found = type(choice).__name__
        if isinstance(choice, type) and issubclass(choice, base):
            found = f"the class {choice.__name__}; write {choice.__name__}()"
        raise TypeError(f"a {base.kind} is given by its name{others} or as a {base.__name__}, not as {found}")
    values = plain(choice)
    made = make(type(choice), values)
    try:
        json.dumps(values)
    except TypeError:  # numbers of NumPy, which no file could hold
        return made
    return choice


def given_guidance(choice: float | str | Guidance, options: Mapping[str, object] | None = None) -> Guidance:
    """Return the guidance that Python code gives by a scale, by its name or as an instance.

    `options` are further options of the one that a scale stands for. Raises `UsageError`, and `TypeError` for anything
    else.
    """
    if isinstance(choice, (int, float)) and not isinstance(choice, bool):
        try:
            return make(registry().of_kind(Guidance, Guidance.by_number), {**(options or {}), "scale": float(choice)})
        except InvalidOption as error:
            where = Guidance.flag if error.field == "scale" else f"{Guidance.flag}.{dashed(error.field)}"
            raise InvalidOption(error.field, error.reason, where=where) from None
    return given(Guidance, choice, ", by a scale such as 2,")


def component(kind: str, name: str, **options: Any) -> Component:
    """Return a component with its options: `component("backbone", "unet", dim=64)`.

    Raises `UsageError`, and `TypeError` for a kind or a name that is not text.
    """
    named: object = name
    if not isinstance(named, str):
        raise TypeError(f"a component is named by a text, not by {type(name).__name__}")
    return make(registry().get(_check_kind(kind), name), options)


def names(kind: str) -> list[str]:
    """Return the names of all components of a kind that are installed: `names("sampler")`. Raises `UsageError`."""
    return registry().names(_check_kind(kind))


def _check_kind(kind: str) -> str:
    named: object = kind
    if not isinstance(named, str):
        raise TypeError(f"a kind is named by a text such as 'backbone', not by {type(kind).__name__}")
    if kind not in KINDS:
        raise UsageError(f"unknown kind {kind!r}{suggestion(kind, KINDS)}; the kinds are {', '.join(KINDS)}")
    return kind
