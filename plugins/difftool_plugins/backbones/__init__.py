"""Built-in backbones: the options are here, the networks that they build are in `networks`."""

from difftool import Backbone, hookimpl
from difftool_plugins.backbones.mlp import MLP
from difftool_plugins.backbones.unet import UNet


@hookimpl
def difftool_backbones() -> list[type[Backbone]]:
    return [MLP, UNet]
