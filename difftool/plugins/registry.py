"""The register: which plugins there are, and what their names stand for."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

from difftool.components import KINDS, Command, Component
from difftool.errors import PluginFailure, UnknownComponent, UsageError
from difftool.options import make, suggestion
from difftool.plugins.discovery import (
    ALLOW,
    COMMANDS,
    DENY,
    GROUP,
    announcements,
    choose,
    installed,
    let_through,
    winner_of,
)
from difftool.plugins.loading import Plugin, Problem, load, unreadable

C = TypeVar("C", bound=Component)


class Registry:
    """The components of a list of plugins, by kind and name."""

    def __init__(self, plugins: Iterable[Plugin], left_out: Sequence[str] = ()) -> None:
        self.plugins = [
            dataclasses.replace(plugin, components=[*plugin.components], problems=[*plugin.problems])
            for plugin in plugins
        ]
        self.left_out = left_out
        """Identities of plugins that the environment leaves out."""
        self._owners: dict[type[Component], Plugin] = {}
        self._qualified: dict[str, dict[str, type[Component]]] = {kind: {} for kind in KINDS}
        self._bare: dict[str, dict[str, type[Component]]] = {kind: {} for kind in KINDS}
        for plugin in self.plugins:
            for component in [*plugin.components]:
                if (owner := self._owners.setdefault(component, plugin)) is not plugin:
                    _set_aside_borrowed(plugin, component, owner)
                    continue
                self._qualified[component.kind][f"{plugin.distribution}:{component.name}"] = component
        for kind in KINDS:
            self._name(kind)

    def _name(self, kind: str) -> None:
        """Give out the bare names: a built-in keeps its own, of two strangers neither gets it."""
        claims: dict[str, list[type[Component]]] = {}
        for component in self._qualified[kind].values():
            claims.setdefault(component.name, []).append(component)
        for name, claimants in claims.items():
            winner = winner_of([(c, self._owners[c].built_in) for c in claimants])
            if winner is not None:
                self._bare[kind][name] = winner
            for loser in claimants:
                if loser is not winner:
                    owner = self._owners[loser]
                    others = [self._owners[c].distribution for c in claimants if c is not loser]
                    reason = f"{kind} {name!r}: the name is taken by {', '.join(others)}"
                    cure = f"reach it as {owner.distribution}:{name}"
                    if winner is None:
                        cure += f", or leave one out by {DENY}={others[0]}"
                    owner.problems.append(Problem(reason, cure, kind, name))

    @property
    def set_aside(self) -> list[Plugin]:
        return [plugin for plugin in self.plugins if plugin.problems]

    def names(self, kind: str) -> list[str]:
        """All names by which a component of the kind can be asked for, sorted."""
        bare = self._bare[kind]
        only_qualified = [q for q, c in self._qualified[kind].items() if bare.get(c.name) is not c]
        return sorted(bare) + sorted(only_qualified)

    def get(self, kind: str, name: str) -> type[Component]:
        """The component class. Raises `UnknownComponent`, or `PluginFailure` where a broken plugin is to blame."""
        found = self._bare[kind].get(name) or self._qualified[kind].get(name)
        if found is not None:
            return found
        for plugin in self.set_aside:
            if cause := plugin.cause(kind, name):
                raise PluginFailure(f"{kind} {name!r}: plugin {plugin.identity} was set aside: {cause}")
        known = self.names(kind)
        raise UnknownComponent(
            kind,
            f"no {kind} is called {name!r}{suggestion(name, known)} (known: {', '.join(known)}){self.missing_too()}",
        )

    def missing_too(self) -> str:
        """The plugins that are not here, among which the one looked for may be."""
        told = ""
        for count, what in ((len(self.set_aside), "set aside"), (len(self.left_out), "left out by the environment")):
            told += f"; {count} plugin{'s were' if count > 1 else ' was'} {what}" if count else ""
        return f"{told}, see 'difftool plugins'" if told else ""

    def of_kind(self, base: type[C], name: str) -> type[C]:
        """`get`, typed: `registry.of_kind(Sampler, "ddim")`."""
        found = self.get(base.kind, name)
        assert issubclass(found, base)
        return found

    def all_of(self, base: type[C]) -> list[type[C]]:
        """Every component of a kind, in the order of their names."""
        return [self.of_kind(base, name) for name in self.names(base.kind)]

    def owner(self, component: type[Component]) -> Plugin | None:
        return self._owners.get(component)

    def reference(self, component: type[Component]) -> str:
        """The name to write into a file: bare where that finds this very component again."""
        owner = self._owners.get(component)
        if owner is None or self._bare[component.kind].get(component.name) is component:
            return component.name
        return f"{owner.distribution}:{component.name}"


T = TypeVar("T")


_standing_in: list[Registry] = []


def registry() -> Registry:
    """The register of this process: built-ins and everything installed."""
    if _standing_in:
        return _standing_in[-1]
    return _installed(os.environ.get(ALLOW), os.environ.get(DENY, ""))


@contextlib.contextmanager
def standing_in(other: Registry) -> Iterator[None]:
    """In this block another register is the one of this process."""
    _standing_in.append(other)
    try:
        yield
    finally:
        _standing_in.remove(other)


@functools.cache
def _installed(allowed: str | None, denied: str) -> Registry:
    found, broken = installed(GROUP)
    kept, left_out = choose(found, allowed, denied)
    with contextlib.redirect_stdout(sys.stderr):  # stdout is for results, not for what a plugin prints when imported
        plugins = [*load(kept), *(p for p in map(unreadable, broken) if let_through(p.identity, allowed, denied))]
    known = {(a.distribution, a.command) for a in announcements(allowed, denied)}
    for plugin in plugins:
        _set_aside_unannounced(plugin, known)
    return Registry(plugins, sorted(left_out))


def _set_aside_borrowed(plugin: Plugin, component: type[Component], owner: Plugin) -> None:
    """A class that another plugin brings too: else neither would have its name."""
    plugin.components.remove(component)
    reason = f"{component.kind} {component.name!r}: it is a class of {owner.identity}"
    plugin.problems.append(Problem(reason, "derive a class of your own from it", component.kind, component.name))


def _set_aside_unannounced(plugin: Plugin, known: set[tuple[str, str]]) -> None:
    """Commands that no entry point names could not be found."""
    for component in [c for c in plugin.components if c.kind == Command.kind]:
        if (plugin.distribution, component.name) not in known:
            plugin.components.remove(component)
            reason = f"command {component.name!r}: no entry point announces it"
            cure = (
                f'put {component.name} = "{plugin.module}" under [project.entry-points."{COMMANDS}"] and install again'
            )
            plugin.problems.append(Problem(reason, cure, component.kind, component.name))


def component(kind: str, name: str, **options: Any) -> Component:
    """A component with its options: `component("backbone", "unet", dim=64)`. Raises `UsageError`."""
    return make(registry().get(_known(kind), name), options)


def names(kind: str) -> list[str]:
    """The names of all components of a kind that are installed: `names("sampler")`. Raises `UsageError`."""
    return registry().names(_known(kind))


def _known(kind: str) -> str:
    if kind not in KINDS:
        raise UsageError(f"there is no kind {kind!r}{suggestion(kind, KINDS)}; the kinds are {', '.join(KINDS)}")
    return kind
