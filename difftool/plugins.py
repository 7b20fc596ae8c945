"""Finding plugins, keeping broken ones apart, looking names up.

Every entry point of group `difftool` is loaded, registered and asked on its own. One that fails is set aside with its
reason and never stops the tool. Its identity is `distribution:entry-point`.

Environment: `DIFFTOOL_PLUGINS=a,b` allows only these distributions besides the built-ins (empty: the built-ins alone);
`DIFFTOOL_DISABLE_PLUGINS=x` leaves distributions, or single `distribution:entry-point`s, out.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

import pluggy

from difftool import hookspecs
from difftool.components import KINDS, Component
from difftool.errors import PluginFailure, UnknownComponent
from difftool.validation import problem, suggestion

GROUP = "difftool"
BUILT_IN = "difftool"

C = TypeVar("C", bound=Component)


@dataclasses.dataclass
class Plugin:
    """One entry point and what became of it."""

    distribution: str
    entry_point: str
    version: str
    components: list[type[Component]] = dataclasses.field(default_factory=list)
    problems: list[str] = dataclasses.field(default_factory=list)
    seconds: float = 0.0
    imports_torch: bool = False

    @property
    def identity(self) -> str:
        return f"{self.distribution}:{self.entry_point}"

    def cause(self, kind: str, name: str) -> str | None:
        """The problem that keeps this plugin from giving the component, where it is this plugin that should."""
        distribution, _, bare = name.rpartition(":")
        own = [p for p in self.problems if p.startswith(f"{kind} {bare!r}:")]
        named = name in (self.identity, self.distribution, self.entry_point) or distribution == self.distribution
        if own and (named or not distribution):
            return own[0]
        return self.problems[0] if named and self.problems else None

    @property
    def built_in(self) -> bool:
        return self.distribution == BUILT_IN


class Registry:
    """The components of a list of plugins, by kind and name."""

    def __init__(self, plugins: Iterable[Plugin]) -> None:
        self.plugins = list(plugins)
        self._owners: dict[type[Component], Plugin] = {}
        self._qualified: dict[str, dict[str, type[Component]]] = {kind: {} for kind in KINDS}
        self._bare: dict[str, dict[str, type[Component]]] = {kind: {} for kind in KINDS}
        for plugin in self.plugins:
            for component in plugin.components:
                self._owners[component] = plugin
                self._qualified[component.kind][f"{plugin.distribution}:{component.name}"] = component
        for kind in KINDS:
            self._name(kind)

    def _name(self, kind: str) -> None:
        """Give out the bare names: a built-in keeps its own, of two strangers neither gets it."""
        claims: dict[str, list[type[Component]]] = {}
        for component in self._qualified[kind].values():
            claims.setdefault(component.name, []).append(component)
        for name, claimants in claims.items():
            built_in = [c for c in claimants if self._owners[c].built_in]
            winner = built_in[0] if built_in else claimants[0] if len(claimants) == 1 else None
            if winner is not None:
                self._bare[kind][name] = winner
            for loser in claimants:
                if loser is not winner:
                    owner = self._owners[loser]
                    others = ", ".join(self._owners[c].distribution for c in claimants if c is not loser)
                    owner.problems.append(
                        f"{kind} {name!r}: the name is taken by {others}; reach it as {owner.distribution}:{name}"
                    )

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
        count = len(self.set_aside)
        aside = (
            f"; {count} plugin{'s were' if count > 1 else ' was'} set aside, see 'difftool plugins'" if count else ""
        )
        raise UnknownComponent(
            kind, f"no {kind} is called {name!r}{suggestion(name, known)} (known: {', '.join(known)}){aside}"
        )

    def of_kind(self, base: type[C], name: str) -> type[C]:
        """`get`, typed: `registry.of_kind(Sampler, "ddim")`."""
        found = self.get(base.kind, name)
        assert issubclass(found, base)
        return found

    def owner(self, component: type[Component]) -> Plugin | None:
        return self._owners.get(component)

    def reference(self, component: type[Component]) -> str:
        """The name to write into a file: bare where that finds this very component again."""
        owner = self._owners.get(component)
        if owner is None or self._bare[component.kind].get(component.name) is component:
            return component.name
        return f"{owner.distribution}:{component.name}"


@functools.cache
def registry() -> Registry:
    """The register of this process: built-ins and everything installed."""
    with contextlib.redirect_stdout(sys.stderr):  # stdout is for results, not for what a plugin prints when imported
        return Registry(load(_chosen(entry_points(group=GROUP), os.environ)))


def load(found: Iterable[EntryPoint]) -> Iterator[Plugin]:
    """Load, register and ask each entry point on its own, in sorted order, the built-ins first."""
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(hookspecs)
    ordered = sorted(found, key=lambda e: (_distribution(e) != BUILT_IN, _distribution(e), e.name))
    seen: set[str] = set()
    for entry_point in ordered:
        version = entry_point.dist.version if entry_point.dist else ""
        plugin = Plugin(_distribution(entry_point), entry_point.name, version)
        if plugin.identity in seen:  # the same distribution found twice on sys.path
            continue
        seen.add(plugin.identity)
        torch_before, start = "torch" in sys.modules, time.perf_counter()
        try:
            loaded = entry_point.load()
        except (Exception, SystemExit) as error:
            plugin.problems.append(_import_problem(error))
        else:
            plugin.seconds = time.perf_counter() - start
            plugin.imports_torch = not torch_before and "torch" in sys.modules
            ask(manager, plugin, loaded)
        yield plugin


def ask(manager: Any, plugin: Plugin, loaded: object) -> None:
    """Register one loaded plugin and collect its components; what is wrong with it goes to `plugin.problems`."""
    try:
        manager.register(loaded, name=plugin.identity)
        manager.check_pending()
    except (pluggy.PluginValidationError, ValueError) as error:
        manager.unregister(name=plugin.identity)
        plugin.problems.append(" ".join(str(error).split()))
        return
    for caller in manager.get_hookcallers(loaded) or ():
        base = KINDS[caller.name.removeprefix("difftool_").removesuffix("s")]
        (implementation,) = (i for i in caller.get_hookimpls() if i.plugin_name == plugin.identity)
        try:
            provided = list(implementation.function())
        except Exception as error:
            plugin.problems.append(f"{caller.name}() failed: {type(error).__name__}: {error}")
            continue
        for component in provided:
            if reason := problem(component):
                plugin.problems.append(reason)
            elif not issubclass(component, base):
                plugin.problems.append(f"{caller.name}() returned {component.__name__}, which is no {base.__name__}")
            elif any(c.kind == component.kind and c.name == component.name for c in plugin.components):
                plugin.problems.append(f"{component.kind} {component.name!r}: provided twice by {plugin.identity}")
            else:
                plugin.components.append(component)


def _chosen(found: Iterable[EntryPoint], environment: Mapping[str, str]) -> Iterator[EntryPoint]:
    allowed = environment.get("DIFFTOOL_PLUGINS")
    denied = _names(environment.get("DIFFTOOL_DISABLE_PLUGINS", ""))
    for entry_point in found:
        name = _distribution(entry_point)
        if name != BUILT_IN:
            if allowed is not None and name not in _names(allowed):
                continue
            if name in denied or f"{name}:{entry_point.name}" in denied:
                continue
        yield entry_point


def _names(text: str) -> set[str]:
    return {_canonical(part.strip()) for part in text.split(",") if part.strip()}


def _distribution(entry_point: EntryPoint) -> str:
    return _canonical(entry_point.dist.name) if entry_point.dist else "unknown"


def _canonical(name: str) -> str:
    """PEP 503: `My_Plugin` and `my-plugin` are one distribution."""
    head, colon, tail = name.partition(":")
    return re.sub(r"[-_.]+", "-", head).lower() + colon + tail


def _import_problem(error: BaseException) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"needs the module {error.name!r}, which is not installed"
    text = " ".join(str(error).split())
    return f"failed to import: {type(error).__name__}: {text}" if text else f"failed to import: {type(error).__name__}"
