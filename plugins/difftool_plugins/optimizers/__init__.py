"""Built-in optimizers."""

from difftool import Optimizer, hookimpl
from difftool_plugins.optimizers.adam import Adam, AdamW
from difftool_plugins.optimizers.muon import Muon
from difftool_plugins.optimizers.sgd import SGD


@hookimpl
def difftool_optimizers() -> list[type[Optimizer]]:
    return [Adam, AdamW, SGD, Muon]
