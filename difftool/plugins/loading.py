"""Loading of plugins: each entry point is imported, registered and asked for its components on its own.

A plugin that fails is set aside with the reason and a cure, and never stops the tool. Its identity is
`distribution:entry-point`. A script that the user names is a plugin too, but the command fails if it does.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import inspect
import sys
import time
from collections.abc import Iterable, Iterator
from importlib.metadata import EntryPoint
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pluggy

from difftool import hookspecs
from difftool.components import KINDS, Command, Component
from difftool.errors import DifftoolError, PluginFailure, UsageError, describe, is_signal, one_line
from difftool.plugins.discovery import BUILT_IN, GROUP, Announced, distribution_of, version_of
from difftool.plugins.validation import problem
from difftool.scripts import Script
from difftool.version import API_VERSION, OLDEST_API

API = "difftool_api"
"""The attribute by which a plugin may say for which version of the API it was made."""


@dataclasses.dataclass(frozen=True)
class Problem:
    """The reason why a plugin, or one component of it, was set aside, and a cure."""

    reason: str
    cure: str
    kind: str = ""
    """The kind of component that it concerns, or empty where it concerns the whole plugin."""
    name: str = ""
    """The component that it concerns, or empty where it concerns all of a kind."""

    def __str__(self) -> str:
        return f"{self.reason}; {self.cure}"


@dataclasses.dataclass
class Plugin:
    """One entry point or script, and what loading it has brought."""

    distribution: str
    """The normalised name of the package, or the file name of the script."""
    entry_point: str
    """The name of the entry point, or empty for a script."""
    version: str
    """The version of the package, or the digest of the script."""
    module: str = ""
    """The target of the entry point: `package.module` or `package.module:attribute`."""
    components: list[type[Component]] = dataclasses.field(default_factory=list)
    problems: list[Problem] = dataclasses.field(default_factory=list)
    seconds: float = 0.0
    """The time that importing it took."""
    imports_torch: bool = False

    script: Script | None = None

    @property
    def identity(self) -> str:
        return f"{self.distribution}:{self.entry_point}" if self.script is None else self.distribution

    @property
    def label(self) -> str:
        """The name and the version of the package, or the name of the script."""
        return f"{self.distribution} {self.version}" if self.script is None else self.distribution

    @property
    def built_in(self) -> bool:
        return self.distribution == BUILT_IN

    def cause(self, kind: str, name: str) -> Problem | None:
        """Return the problem that keeps this plugin from providing a component, or None."""
        distribution, _, bare = name.rpartition(":")
        named = self.distribution in (distribution, name) or name in (self.identity, self.entry_point)
        for found in self.problems:
            if (found.kind, found.name) == (kind, bare) and (named or not distribution):
                return found
            if named and not found.name and found.kind in ("", kind):
                return found
        return None


def load(found: Iterable[EntryPoint]) -> Iterator[Plugin]:
    """Load, register and ask each entry point on its own, in sorted order, the built-ins first."""
    manager = new_manager()
    ordered = sorted(found, key=lambda e: (distribution_of(e) != BUILT_IN, distribution_of(e), e.name))
    loaded: set[str] = set()
    for entry_point in ordered:
        plugin = Plugin(distribution_of(entry_point), entry_point.name, version_of(entry_point), entry_point.value)
        if plugin.identity in loaded:  # the same distribution, found twice on sys.path
            continue
        loaded.add(plugin.identity)
        _load(manager, plugin, entry_point)
        yield plugin


def _load(manager: Any, plugin: Plugin, entry_point: EntryPoint) -> None:
    had_torch, start = "torch" in sys.modules, time.perf_counter()
    try:
        if plugin.built_in:
            _import_from_here(plugin.module.partition(".")[0])
        module = entry_point.load()
    except BaseException as error:
        if is_signal(error):
            raise
        plugin.problems.append(_import_problem(plugin, error))
    else:
        ask(manager, plugin, module)
    finally:
        plugin.seconds = time.perf_counter() - start
        plugin.imports_torch = "torch" in sys.modules and not had_torch


def load_script(path: Path) -> Plugin:
    """Load a script as a plugin: its hooks, and its classes that are components by themselves.

    Raises `UsageError` for a file that is no script or has no component, and `PluginFailure` if it cannot be imported.
    """
    script = Script.read(path)
    plugin = Plugin(script.name, "", script.digest, script.module, script=script)
    had_torch, start = "torch" in sys.modules, time.perf_counter()
    try:
        module = script.load()
    except DifftoolError as error:
        raise PluginFailure(str(error)) from error
    finally:
        plugin.seconds = time.perf_counter() - start
        plugin.imports_torch = "torch" in sys.modules and not had_torch
    ask(new_manager(), plugin, module)
    if whole := next((problem for problem in plugin.problems if not problem.kind), None):
        raise PluginFailure(f"{path}: {whole}")
    classes = [value for value in vars(module).values() if isinstance(value, type) and issubclass(value, Component)]
    defined = dict.fromkeys(cls for cls in classes if cls.__module__ == script.module)
    for cls in defined:
        if cls.name and cls not in plugin.components and not any(p.name == cls.name for p in plugin.problems):
            base = next((base for base in KINDS.values() if issubclass(cls, base)), Component)
            _accept(plugin, cls, base, "mend the class")
    if not plugin.components:
        if plugin.problems:
            raise PluginFailure(f"{path}: {plugin.problems[0]}")
        nameless = next((f"{cls.__name__}({cls.__bases__[0].__name__}" for cls in defined), "Mine(Sampler")
        example = f'class {nameless}, name="mine")'
        raise UsageError(f"{path} defines no component, which is a class of a kind that has a name: {example}")
    return plugin


def commands_of(plugins: Iterable[Plugin]) -> list[Announced]:
    """Return the commands of plugins that no entry point announces, for `also_announced`."""
    return [
        Announced(
            cls.name,
            plugin.distribution,
            plugin.version if plugin.script is None else "",
            (inspect.getdoc(cls) or "").partition("\n")[0],
        )
        for plugin in plugins
        for cls in plugin.components
        if cls.kind == Command.kind
    ]


def _import_from_here(package: str) -> None:
    """Import a package of the built-ins from beside this one, wherever others of its name lie on the module path."""
    home = Path(__file__).parents[2]
    for folder in (home / package, home / "plugins" / package):  # installed, or in a checkout
        if package not in sys.modules and (folder / "__init__.py").is_file():
            spec = spec_from_file_location(package, folder / "__init__.py", submodule_search_locations=[str(folder)])
            assert spec is not None
            assert spec.loader is not None
            sys.modules[package] = module = module_from_spec(spec)
            spec.loader.exec_module(module)


def impostor(entry_point: EntryPoint) -> Plugin:
    """Return a plugin that is set aside, of a package that calls itself difftool."""
    place = entry_point.dist.locate_file("") if entry_point.dist else "an unknown place"
    plugin = Plugin(f"{BUILT_IN} in {place}", entry_point.name, version_of(entry_point), entry_point.value)
    reason = f"its package calls itself {BUILT_IN}, which is the name of the program itself"
    plugin.problems.append(Problem(reason, "rename it, or remove it from the module path"))
    return plugin


def new_manager() -> pluggy.PluginManager:
    """Return a pluggy manager that knows difftool's hooks."""
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(hookspecs)
    return manager


def ask(manager: Any, plugin: Plugin, module: object) -> None:
    """Register one imported plugin and collect its components; what is wrong with it goes to `plugin.problems`."""
    with _setting_aside(plugin, "failed when it was registered", _where(plugin)):
        if wrong := _api_problem(plugin, getattr(module, API, API_VERSION)):
            plugin.problems.append(wrong)
            return
        try:
            manager.register(module, name=plugin.identity)
            manager.check_pending()
        except (pluggy.PluginValidationError, ValueError) as error:
            if manager.has_plugin(plugin.identity):
                manager.unregister(name=plugin.identity)
            plugin.problems.append(_hook_problem(manager, module, error))
            return
        for caller in dict.fromkeys(manager.get_hookcallers(module) or ()):
            _collect(plugin, caller)


def _collect(plugin: Plugin, caller: Any) -> None:
    """Take the components that one hook returns."""
    base = next(kind for kind in KINDS.values() if kind.hook == caller.name)
    cure = f"{base.hook}() must return classes that derive from difftool.{base.__name__}"
    classes: list[Any] = []
    for implementation in caller.get_hookimpls():  # a module may have several, by @hookimpl(specname=...)
        if implementation.plugin_name == plugin.identity:
            with _setting_aside(plugin, f"{base.hook}() failed", cure, base.kind):
                classes += implementation.function()
    for component in classes:
        with _setting_aside(plugin, f"what {base.hook}() returned cannot be examined", _where(plugin), base.kind):
            _accept(plugin, component, base, cure)


def _accept(plugin: Plugin, component: Any, base: type[Component], cure: str) -> None:
    """Add a class to the components of a plugin, or what is wrong with it to the problems."""
    if reason := problem(component) or _out_of_place(plugin, component, base):
        name = component.name if isinstance(component, type) and issubclass(component, Component) else ""
        plugin.problems.append(Problem(reason, cure if not name else "mend the class", base.kind, name))
    else:
        plugin.components.append(component)


def _out_of_place(plugin: Plugin, component: type[Component], base: type[Component]) -> str | None:
    """Return why a valid component cannot come from this hook, or None."""
    if not issubclass(component, base):
        return f"{base.hook}() returned {component.__name__}, which is not a {base.__name__}"
    if any(c.name == component.name for c in plugin.components if c.kind == component.kind):
        return f"{component.kind} {component.name!r}: provided twice by {plugin.identity}"
    return None


@contextlib.contextmanager
def _setting_aside(plugin: Plugin, what: str, cure: str, kind: str = "") -> Iterator[None]:
    """Turn whatever a plugin's code raises, of any class, into a problem of the plugin."""
    try:
        yield
    except BaseException as error:
        if is_signal(error):
            raise
        plugin.problems.append(Problem(f"{what}: {describe(error)}", cure, kind))


def _where(plugin: Plugin) -> str:
    if plugin.script is not None:
        return f"see where: python {plugin.script.path}"
    return f'see where: python -c "import {plugin.module.partition(":")[0].strip()}"'


def _import_problem(plugin: Plugin, error: BaseException) -> Problem:
    module = plugin.module.partition(":")[0].strip()
    if isinstance(error, ModuleNotFoundError) and isinstance(error.name, str) and error.name:
        missing = error.name.partition(".")[0]
        cure = f"install what brings it, perhaps: pip install {missing}"
        if missing == module.partition(".")[0]:
            cure = f"install it again: pip install --force-reinstall {plugin.distribution}"
        return Problem(f"needs the module {error.name!r}, which is not installed", cure)
    return Problem(f"failed to import: {describe(error)}", _where(plugin))


def _api_problem(plugin: Plugin, version: object) -> Problem | None:
    """Return a problem if a plugin was made for another version of the API."""
    if type(version) is not int:
        return Problem(f"{API} is {version!r}", f"it must be a whole number, such as {API} = {API_VERSION}")
    if OLDEST_API <= version <= API_VERSION:
        return None
    reason = f"made for version {version} of the plugin API; this difftool has {API_VERSION}"
    older = "difftool" if version > API_VERSION else plugin.distribution
    return Problem(reason, f"pip install --upgrade {older}")


def _hook_problem(manager: Any, module: object, error: Exception) -> Problem:
    """Explain why pluggy refused a plugin: an unknown hook, or one with arguments that it does not get."""
    hooks = [kind.hook for kind in KINDS.values()]
    marked = [name for name in dir(module) if manager.parse_hookimpl_opts(module, name) is not None]
    if unknown := [name for name in marked if name not in hooks]:
        near = difflib.get_close_matches(unknown[0], hooks, n=1)
        cure = f"did you mean {near[0]}?" if near else f"the hooks are {', '.join(hooks)}"
        return Problem(f"there is no hook {unknown[0]!r}", cure)
    return Problem(one_line(error), "hooks take the arguments of difftool/hookspecs.py, or none")
