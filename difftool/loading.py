"""From entry points to plugins: each is loaded, registered and asked on its own, and what is wrong with it is told.

One that fails is set aside with its reason and never stops the tool. Its identity is `distribution:entry-point`.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import sys
import time
from collections.abc import Iterable, Iterator
from importlib.metadata import EntryPoint
from types import ModuleType
from typing import Any

import pluggy

from difftool import hookspecs
from difftool.components import KINDS, Component
from difftool.validation import problem
from difftool.version import API_VERSION, OLDEST_API

GROUP = "difftool"
BUILT_IN = "difftool"
API = "difftool_api"
"""The attribute by which a plugin may say for which version of the API it was made."""
HOOKS = tuple(f"difftool_{kind}s" for kind in KINDS)


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
