"""From entry points to plugins: each is loaded, registered and asked on its own, and what is wrong with it is told.

One that fails is set aside with its reason and never stops the tool. Its identity is `distribution:entry-point`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import sys
import time
from collections.abc import Iterable, Iterator
from importlib.metadata import EntryPoint
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

import pluggy

from difftool import hookspecs
from difftool.components import KINDS, Component
from difftool.errors import describe, is_signal, one_line
from difftool.plugins.discovery import BUILT_IN, ENTRY_POINTS, GROUP, Unreadable, distribution_of, readable, version_of
from difftool.plugins.validation import problem
from difftool.version import API_VERSION, OLDEST_API

API = "difftool_api"
"""The attribute by which a plugin may say for which version of the API it was made."""
HOOKS = tuple(f"difftool_{kind}s" for kind in KINDS)


@dataclasses.dataclass(frozen=True)
class Problem:
    """Why a plugin, or one component of it, was set aside, and what helps."""

    reason: str
    cure: str
    kind: str = ""
    """Kind of the components it is about, and the name where it is about a single one."""
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
        general = (p for p in self.problems if p.kind in ("", kind) and not p.name)
        return next(general, None) if named else None

    @property
    def built_in(self) -> bool:
        return self.distribution == BUILT_IN


def unreadable(package: Unreadable) -> Plugin:
    """A package whose list of entry points cannot be read, as a plugin that is set aside."""
    plugin = Plugin(package.distribution, ENTRY_POINTS, package.version)
    plugin.problems.append(Problem(f"{ENTRY_POINTS} cannot be read: {describe(package.error)}", _again(plugin)))
    return plugin


def load(found: Iterable[EntryPoint]) -> Iterator[Plugin]:
    """Load, register and ask each entry point on its own, in sorted order, the built-ins first."""
    manager = new_manager()
    ordered = sorted(found, key=lambda e: (distribution_of(e) != BUILT_IN, distribution_of(e), e.name))
    seen: set[str] = set()
    for entry_point in ordered:
        plugin = Plugin(distribution_of(entry_point), entry_point.name, version_of(entry_point), entry_point.value)
        if plugin.identity in seen:  # the same distribution found twice on sys.path
            continue
        seen.add(plugin.identity)
        if misfit := _metadata_problem(plugin, entry_point):
            plugin.problems.append(misfit)
        else:
            _load(manager, plugin, entry_point)
        yield plugin


def _load(manager: Any, plugin: Plugin, entry_point: EntryPoint) -> None:
    before, start = set(sys.modules), time.perf_counter()
    try:
        loaded = entry_point.load()
    except BaseException as error:
        if is_signal(error):
            raise
        plugin.problems.append(_import_problem(plugin, error))
    else:
        ask(manager, plugin, loaded)
    finally:
        plugin.seconds = time.perf_counter() - start
        plugin.imports_torch = _torch_came(before)


def new_manager() -> pluggy.PluginManager:
    """A pluggy manager that knows difftool's hooks."""
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(hookspecs)
    return manager


def ask(manager: Any, plugin: Plugin, loaded: object) -> None:
    """Register one loaded plugin and collect its components; what is wrong with it goes to `plugin.problems`."""
    with _setting_aside(plugin, "failed when it was asked what it brings", _look(plugin)):
        if misfit := _api_problem(plugin, getattr(loaded, API, API_VERSION)) or _again_problem(manager, loaded):
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
            _ask(plugin, caller)


def _ask(plugin: Plugin, caller: Any) -> None:
    """Take the components that one hook gives."""
    base = KINDS[caller.name.removeprefix("difftool_").removesuffix("s")]
    (implementation,) = (i for i in caller.get_hookimpls() if i.plugin_name == plugin.identity)
    provided: list[Any] = []
    with _setting_aside(
        plugin, f"{caller.name}() failed", f"it must return a list of {base.__name__} classes", base.kind
    ):
        provided = list(implementation.function())
    for component in provided:
        with _setting_aside(plugin, f"what {caller.name}() gave cannot be examined", _look(plugin), base.kind):
            _take(plugin, component, base, caller.name)


def _take(plugin: Plugin, component: Any, base: type[Component], hook: str) -> None:
    """Offer what a hook gave, or note why it cannot be."""
    reason = problem(component) or _out_of_place(plugin, component, base, hook)
    if reason is None:
        plugin.components.append(component)
        return
    known = isinstance(component, type) and issubclass(component, Component)
    about = (component.kind, component.name) if known else (base.kind, "")
    cure = f"{hook}() must return classes derived from difftool.{base.__name__}"
    plugin.problems.append(Problem(reason, "mend the class" if known else cure, *about))


@contextlib.contextmanager
def _setting_aside(plugin: Plugin, what: str, cure: str, kind: str = "") -> Iterator[None]:
    """What a plugin's code raises in this block, of whatever class, becomes a problem of it and goes no further."""
    try:
        yield
    except BaseException as error:
        if is_signal(error):
            raise
        plugin.problems.append(Problem(f"{what}: {describe(error)}", cure, kind))


def _out_of_place(plugin: Plugin, component: type[Component], base: type[Component], hook: str) -> str | None:
    """Why a sound component cannot come from this hook, or None."""
    if not issubclass(component, base):
        return f"{hook}() returned {component.__name__}, which is no {base.__name__}"
    if any(c.kind == component.kind and c.name == component.name for c in plugin.components):
        return f"{component.kind} {component.name!r}: provided twice by {plugin.identity}"
    return None


def _torch_came(before: set[str]) -> bool:
    """Whether what was imported since pulled torch in, or would have, had it not been there already."""
    if "torch" in sys.modules and "torch" not in before:
        return True
    new = [module for name, module in list(sys.modules.items()) if name not in before]
    return any(_of_torch(value) for module in new for value in _contents(module).values())


def _contents(module: object) -> dict[str, Any]:
    """What a module holds; other things that stand in `sys.modules`, None among them, hold nothing."""
    # not by vars(): a module that is imported when it is first used would be imported now
    return dict(object.__getattribute__(module, "__dict__")) if issubclass(type(module), ModuleType) else {}


def _of_torch(value: object) -> bool:
    """Whether it is a part of torch. The value's own code, such as a lazy proxy has, is not run to find out."""
    kind = type(value)
    if issubclass(kind, ModuleType):
        home = _contents(value).get("__name__")
    else:
        named = issubclass(kind, (type, FunctionType, BuiltinFunctionType))
        try:
            home = getattr(value if named else kind, "__module__", None)
        except Exception:  # of a metaclass
            return False
    return isinstance(home, str) and home.partition(".")[0] == "torch"


def _look(plugin: Plugin) -> str:
    return f'see where: python -c "import {plugin.module.partition(":")[0].strip()}"'


def _again(plugin: Plugin) -> str:
    return f"install it again: pip install --force-reinstall {plugin.distribution}"


def _metadata_problem(plugin: Plugin, entry_point: EntryPoint) -> Problem | None:
    """What is wrong with what the package says of itself."""
    distribution = entry_point.dist
    if distribution is not None and not readable(lambda: distribution.name):
        return Problem("its metadata do not say what the package is called", _again(plugin))
    if not EntryPoint.pattern.match(plugin.module):
        cure = f'write {plugin.entry_point} = "package.module" under [project.entry-points.{GROUP}] and install again'
        return Problem(f"the entry point {plugin.module!r} names no module", cure)
    return None


def _again_problem(manager: Any, loaded: object) -> Problem | None:
    """Whether another entry point names the same module."""
    if (other := manager.get_name(loaded)) is None:
        return None
    return Problem(f"it names the same module as {other}", "one entry point is enough; take this one out")


def _import_problem(plugin: Plugin, error: BaseException) -> Problem:
    module = plugin.module.partition(":")[0].strip()
    if isinstance(error, ModuleNotFoundError) and isinstance(error.name, str) and error.name:
        reason = f"needs the module {error.name!r}, which is not installed"
        missing = error.name.partition(".")[0]
        if missing == module.partition(".")[0]:
            return Problem(reason, _again(plugin))
        return Problem(reason, f"install what brings it, perhaps: pip install {missing}")
    return Problem(f"failed to import: {describe(error)}", _look(plugin))


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
    return Problem(one_line(error), "hooks take the arguments of difftool/hookspecs.py, or none")


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
