"""Finding plugins, keeping broken ones apart, looking names up.

Every entry point of group `difftool` is loaded, registered and asked on its own. One that fails is set aside with its
reason and never stops the tool. Its identity is `distribution:entry-point`.

Environment: `DIFFTOOL_PLUGINS=a,b` allows only these distributions besides the built-ins (empty: the built-ins alone);
`DIFFTOOL_DISABLE_PLUGINS=x` leaves distributions, or single `distribution:entry-point`s, out.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType
from typing import Any, TypeVar

import pluggy

from difftool import hookspecs
from difftool.components import KINDS, Command, Component
from difftool.errors import PluginFailure, UnknownComponent
from difftool.validation import problem, suggestion
from difftool.version import API_VERSION, OLDEST_API

GROUP = "difftool"
COMMANDS = "difftool.commands"
"""The group whose entry points announce commands by their names, so that help can list them and load nothing."""
BUILT_IN = "difftool"
ALLOW, DENY = "DIFFTOOL_PLUGINS", "DIFFTOOL_DISABLE_PLUGINS"
API = "difftool_api"
"""The attribute by which a plugin may say for which version of the API it was made."""
HOOKS = tuple(f"difftool_{kind}s" for kind in KINDS)

C = TypeVar("C", bound=Component)


@dataclasses.dataclass(frozen=True)
class Problem:
    """Why a plugin, or one component of it, was set aside, and what helps."""

    reason: str
    cure: str
    kind: str = ""
    """Kind and name of the component, where it is about a single one."""
    name: str = ""

    def __str__(self) -> str:
        return f"{self.reason}; {self.cure}"


@dataclasses.dataclass
class Plugin:
    """One entry point and what became of it."""

    distribution: str
    entry_point: str
    version: str
    module: str = ""
    """What the entry point names: `package.module` or `package.module:attribute`."""
    components: list[type[Component]] = dataclasses.field(default_factory=list)
    problems: list[Problem] = dataclasses.field(default_factory=list)
    seconds: float = 0.0
    """How long it took to import."""
    imports_torch: bool = False

    @property
    def identity(self) -> str:
        return f"{self.distribution}:{self.entry_point}"

    def cause(self, kind: str, name: str) -> Problem | None:
        """The problem that keeps this plugin from giving the component, where it is this plugin that should."""
        distribution, _, bare = name.rpartition(":")
        named = name in (self.identity, self.distribution, self.entry_point) or distribution == self.distribution
        own = next((p for p in self.problems if (p.kind, p.name) == (kind, bare)), None)
        if own is not None and (named or not distribution):
            return own
        return self.problems[0] if named and self.problems else None

    @property
    def built_in(self) -> bool:
        return self.distribution == BUILT_IN


class Registry:
    """The components of a list of plugins, by kind and name."""

    def __init__(self, plugins: Iterable[Plugin], left_out: Sequence[str] = ()) -> None:
        self.plugins = [dataclasses.replace(plugin, problems=[*plugin.problems]) for plugin in plugins]
        self.left_out = left_out
        """Identities of plugins that the environment leaves out."""
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


def winner_of(claims: Sequence[tuple[T, bool]]) -> T | None:
    """Who gets what several claim, given as (claimant, whether it is built in): a built-in, or the only one."""
    built_in = [claimant for claimant, ours in claims if ours]
    return built_in[0] if built_in else claims[0][0] if len(claims) == 1 else None


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
    kept, left_out = choose(entry_points(group=GROUP), allowed, denied)
    with contextlib.redirect_stdout(sys.stderr):  # stdout is for results, not for what a plugin prints when imported
        plugins = list(load(kept))
    known = {(a.distribution, a.command) for a in _announced(allowed, denied)}
    for plugin in plugins:
        _set_aside_unannounced(plugin, known)
    return Registry(plugins, sorted(left_out))


@dataclasses.dataclass(frozen=True)
class Announced:
    """A command that a package says it provides."""

    command: str
    distribution: str
    version: str
    summary: str
    """Of the package, in a line."""


def announced(taken: Iterable[str] = ()) -> dict[str, Announced]:
    """The commands that packages announce, by the names they are called by; those in `taken` are given away already."""
    found = _announced(os.environ.get(ALLOW), os.environ.get(DENY, ""))
    names: dict[str, Announced] = {}
    for one in found:
        claims = [(other, other.distribution == BUILT_IN) for other in found if other.command == one.command]
        wins = one.command not in taken and winner_of(claims) is one
        names[one.command if wins else f"{one.distribution}:{one.command}"] = one
    return names


@functools.cache
def _announced(allowed: str | None, denied: str) -> list[Announced]:
    kept, _ = choose(entry_points(group=COMMANDS), allowed, denied)
    found = {(distribution_of(e), e.name): e.dist for e in kept}
    return [
        Announced(name, owner, dist.version if dist else "", (dist.metadata["Summary"] or "") if dist else "")
        for (owner, name), dist in sorted(found.items(), key=lambda item: item[0])
    ]


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


def load(found: Iterable[EntryPoint]) -> Iterator[Plugin]:
    """Load, register and ask each entry point on its own, in sorted order, the built-ins first."""
    manager = new_manager()
    ordered = sorted(found, key=lambda e: (distribution_of(e) != BUILT_IN, distribution_of(e), e.name))
    seen: set[str] = set()
    for entry_point in ordered:
        version = entry_point.dist.version if entry_point.dist else ""
        plugin = Plugin(distribution_of(entry_point), entry_point.name, version, entry_point.value)
        if plugin.identity in seen:  # the same distribution found twice on sys.path
            continue
        seen.add(plugin.identity)
        before, start = set(sys.modules), time.perf_counter()
        try:
            loaded = entry_point.load()
        except (Exception, SystemExit) as error:
            plugin.problems.append(_import_problem(plugin, error))
        else:
            ask(manager, plugin, loaded)
        finally:
            plugin.seconds = time.perf_counter() - start
            plugin.imports_torch = _torch_came(before)
        yield plugin


def new_manager() -> pluggy.PluginManager:
    """A pluggy manager that knows difftool's hooks."""
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(hookspecs)
    return manager


def ask(manager: Any, plugin: Plugin, loaded: object) -> None:
    """Register one loaded plugin and collect its components; what is wrong with it goes to `plugin.problems`."""
    if misfit := _api_problem(plugin, getattr(loaded, API, API_VERSION)):
        plugin.problems.append(misfit)
        return
    try:
        manager.register(loaded, name=plugin.identity)
        manager.check_pending()
    except (pluggy.PluginValidationError, ValueError) as error:
        manager.unregister(name=plugin.identity)
        plugin.problems.append(_hook_problem(manager, loaded, error))
        return
    plugin.problems += _unmarked(manager, loaded)
    for caller in manager.get_hookcallers(loaded) or ():
        base = KINDS[caller.name.removeprefix("difftool_").removesuffix("s")]
        (implementation,) = (i for i in caller.get_hookimpls() if i.plugin_name == plugin.identity)
        try:
            provided = list(implementation.function())
        except Exception as error:
            what = f"{caller.name}() failed: {type(error).__name__}: {' '.join(str(error).split())}"
            plugin.problems.append(Problem(what, f"it must return a list of {base.__name__} classes"))
            continue
        for component in provided:
            reason = problem(component) or _out_of_place(plugin, component, base, caller.name)
            if reason is not None:
                known = isinstance(component, type) and issubclass(component, Component)
                about = (component.kind, component.name) if known else ("", "")
                cure = f"{caller.name}() must return classes derived from difftool.{base.__name__}"
                plugin.problems.append(Problem(reason, "mend the class" if known else cure, *about))
            else:
                plugin.components.append(component)


def _out_of_place(plugin: Plugin, component: type[Component], base: type[Component], hook: str) -> str | None:
    """Why a sound component cannot come from this hook, or None."""
    if not issubclass(component, base):
        return f"{hook}() returned {component.__name__}, which is no {base.__name__}"
    if any(c.kind == component.kind and c.name == component.name for c in plugin.components):
        return f"{component.kind} {component.name!r}: provided twice by {plugin.identity}"
    return None


def choose(
    found: Iterable[EntryPoint], allowed: str | None = None, denied: str = ""
) -> tuple[list[EntryPoint], list[str]]:
    """(the entry points that the two environment variables let through, the identities of the others)."""
    kept, left_out = [], []
    for entry_point in found:
        name = distribution_of(entry_point)
        identity = f"{name}:{entry_point.name}"
        wanted = allowed is None or name in names_in(allowed)
        if name == BUILT_IN or (wanted and not {name, identity} & names_in(denied)):
            kept.append(entry_point)
        else:
            left_out.append(identity)
    return kept, left_out


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


def names_in(text: str) -> set[str]:
    """The distributions, or `distribution:entry-point`s, that an environment variable lists."""
    return {distribution_name(part.strip()) for part in text.split(",") if part.strip()}


def distribution_of(entry_point: EntryPoint) -> str:
    return distribution_name(entry_point.dist.name) if entry_point.dist else "unknown"


def distribution_name(name: str) -> str:
    """PEP 503: `My_Plugin` and `my-plugin` are one distribution."""
    head, colon, tail = name.partition(":")
    return re.sub(r"[-_.]+", "-", head).lower() + colon + tail


def _torch_came(before: set[str]) -> bool:
    """Whether what was imported since pulled torch in, or would have, had it not been there already."""
    if "torch" in sys.modules and "torch" not in before:
        return True
    new = [module for name, module in list(sys.modules.items()) if name not in before]
    return any(_of_torch(value) for module in new for value in list(vars(module).values()))


def _of_torch(value: object) -> bool:
    home = getattr(value, "__name__" if isinstance(value, ModuleType) else "__module__", None)
    return isinstance(home, str) and home.partition(".")[0] == "torch"


def _import_problem(plugin: Plugin, error: BaseException) -> Problem:
    module = plugin.module.partition(":")[0].strip()
    if isinstance(error, ModuleNotFoundError) and error.name:
        reason = f"needs the module {error.name!r}, which is not installed"
        missing = error.name.partition(".")[0]
        if missing == module.partition(".")[0]:
            return Problem(reason, f"install it again: pip install --force-reinstall {plugin.distribution}")
        return Problem(reason, f"install what brings it, perhaps: pip install {missing}")
    text = " ".join(str(error).split())
    reason = f"failed to import: {type(error).__name__}{': ' if text else ''}{text}"
    return Problem(reason, f'see where: python -c "import {module}"')


def _api_problem(plugin: Plugin, version: object) -> Problem | None:
    """Whether a plugin was made for another API than this one."""
    if type(version) is not int:
        return Problem(f"{API} is {version!r}", f"it must be a whole number, such as {API} = {API_VERSION}")
    if version > API_VERSION:
        reason = f"made for version {version} of the plugin API; this difftool has {API_VERSION}"
        return Problem(reason, "pip install --upgrade difftool")
    if version < OLDEST_API:
        reason = f"made for version {version} of the plugin API; this difftool has {API_VERSION}"
        return Problem(reason, f"pip install --upgrade {plugin.distribution}")
    return None


def _hook_problem(manager: Any, loaded: object, error: Exception) -> Problem:
    """What pluggy refused: a hook that there is not, or one with arguments it does not get."""
    if unknown := [name for name in _marked(manager, loaded) if name not in HOOKS]:
        near = difflib.get_close_matches(unknown[0], HOOKS, n=1)
        cure = f"did you mean {near[0]}?" if near else f"the hooks are {', '.join(HOOKS)}"
        return Problem(f"there is no hook {unknown[0]!r}", cure)
    return Problem(" ".join(str(error).split()), "hooks take the arguments of difftool/hookspecs.py, or none")


def _unmarked(manager: Any, loaded: object) -> Iterator[Problem]:
    """Hooks that would never be called: without the marker pluggy passes over them in silence."""
    marked = _marked(manager, loaded)
    forgotten = [name for name in HOOKS if name not in marked and callable(getattr(loaded, name, None))]
    for name in forgotten:
        yield Problem(f"{name} is not marked as a hook", "put @difftool.hookimpl above it")
    if not marked and not forgotten:
        yield Problem("it implements no hook", f"the hooks are {', '.join(HOOKS)}")


def _marked(manager: Any, loaded: object) -> list[str]:
    return [name for name in dir(loaded) if manager.parse_hookimpl_opts(loaded, name) is not None]
