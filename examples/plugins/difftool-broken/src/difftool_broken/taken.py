"""Takes a name that a built-in has."""

from __future__ import annotations

from difftool import Sampler, hookimpl, option
from difftool_broken.wrong import Sound


class DDIM(Sound, name="ddim"):
    """Another DDIM, to be had as difftool-broken:ddim."""

    twist: float = option(default=0.5, help="changes nothing")


@hookimpl
def difftool_samplers() -> list[type[Sampler]]:
    return [DDIM]
