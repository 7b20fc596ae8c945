"""A register of plugins for tests, and the command line in the current process."""

from __future__ import annotations

import contextlib
import io
import signal
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

from difftool.plugins.discovery import GROUP, also_announced, choose, installed
from difftool.plugins.loading import Plugin, ask, commands_of, load, new_manager
from difftool.plugins.registry import Registry, replaced_by


class PluginManager:
    """The built-ins and the plugins that a test registers. Other installed plugins are ignored.

    While it is `active`, difftool finds its components here.
    """

    def __init__(self) -> None:
        built_in, _ = choose(installed(GROUP), allowed="")
        self._plugins = list(load(built_in))
        self._built_in = len(self._plugins)
        self._active: contextlib.ExitStack | None = None

    def register(self, plugin: object, distribution: str = "tested") -> Plugin:
        """Register a module, or any object with hooks, as a plugin of a package.

        Return the plugin. Its `components` are those that difftool accepted, and its `problems` are empty unless
        something was set aside.
        """
        new = Plugin(distribution, getattr(plugin, "__name__", "plugin").replace(".", "-"), "0")
        ask(new_manager(), new, plugin)
        self._plugins.append(new)
        if self._active is not None:
            self._active.enter_context(replaced_by(self.registry))
            self._active.enter_context(also_announced(commands_of([new])))
        return next(p for p in self.registry.plugins if p.identity == new.identity)

    @property
    def registry(self) -> Registry:
        """The components by name: `manager.registry.get("sampler", "ddim")`."""
        return Registry(self._plugins)

    @contextlib.contextmanager
    def active(self) -> Iterator[PluginManager]:
        """Let the command line, `difftool.component` and files that are loaded use this register alone."""
        with contextlib.ExitStack() as self._active:
            self._active.enter_context(replaced_by(self.registry))
            self._active.enter_context(also_announced(commands_of(self._plugins[self._built_in :]), alone=True))
            yield self
        self._active = None


@dataclass(frozen=True)
class Outcome:
    """The exit code of a command, and its output."""

    code: int
    out: str
    err: str


def invoke(*arguments: object) -> Outcome:
    """Run the command line in the current process: `invoke("train", "--steps", 3)`."""
    from difftool.cli.main import main

    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    show, interrupt, code = warnings.showwarning, signal.getsignal(signal.SIGINT), 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                main([str(a) for a in arguments])
            except SystemExit as stop:
                code = stop.code if isinstance(stop.code, int) else 1
    finally:
        warnings.showwarning = show
        signal.signal(signal.SIGINT, interrupt)
    texts = [stream.buffer.getvalue().decode() for stream in (out, err)]
    return Outcome(code, *texts)
