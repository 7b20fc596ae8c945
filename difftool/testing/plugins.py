"""Laws of a plugin as a whole, asked about what became of it when it was loaded."""

from __future__ import annotations

from collections.abc import Iterator

from difftool.plugins.loading import Plugin
from difftool.testing.common import counted
from difftool.testing.examine import hold
from difftool.testing.laws import Broken, Finding


def is_found_whole(plugin: Plugin) -> str:
    """It is loaded, its hooks are known and called, and nothing of it is set aside."""
    if plugin.problems:
        raise Broken("; ".join(map(str, plugin.problems)))
    if not plugin.components:
        raise Broken("it provides no component; put @difftool.hookimpl above its hooks")
    return counted(len(plugin.components), "component")


def loads_without_torch(plugin: Plugin) -> str:
    """Loading it does not import torch, for which every command and each --help would wait."""
    if plugin.imports_torch:
        raise Broken(f"it imports torch, and takes {plugin.seconds:.2f} s; import inside the methods that need it")
    return f"{1000 * plugin.seconds:.1f} ms"


LAWS = (is_found_whole, loads_without_torch)


def examine_plugin(plugin: Plugin) -> Iterator[Finding]:
    """Hold a plugin to its laws, one by one."""
    for law in LAWS:
        yield hold(law, plugin)
