"""Built-in samplers and level grids."""

from difftool import Sampler, Spacing, hookimpl
from difftool_plugins.samplers.ancestral import DDIM, DDPM
from difftool_plugins.samplers.spacings import Leading, Linspace, LogSNR, Trailing


@hookimpl
def difftool_samplers() -> list[type[Sampler]]:
    return [DDPM, DDIM]


@hookimpl
def difftool_spacings() -> list[type[Spacing]]:
    return [Trailing, Leading, Linspace, LogSNR]
