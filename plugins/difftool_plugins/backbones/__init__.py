"""The built-in backbones. Their options are in this folder, and their networks in `networks`."""

from difftool import Backbone, hookimpl
from difftool_plugins.backbones.diffusers import DiffusersDiT, DiffusersUNet
from difftool_plugins.backbones.mlp import MLP
from difftool_plugins.backbones.unet import UNet


@hookimpl
def difftool_backbones() -> list[type[Backbone]]:
    return [MLP, UNet, DiffusersUNet, DiffusersDiT]
