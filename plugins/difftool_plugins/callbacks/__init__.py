"""The built-in callbacks."""

from difftool import Callback, hookimpl
from difftool_plugins.callbacks.early_stop import EarlyStop
from difftool_plugins.callbacks.nothing import Nothing


@hookimpl
def difftool_callbacks() -> list[type[Callback]]:
    return [EarlyStop, Nothing]
