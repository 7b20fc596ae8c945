"""Uses the name of a built-in sampler."""

from __future__ import annotations

from difftool import Sampler, hookimpl, option
from difftool_broken.wrong import Sound


class DDIM(Sound, name="ddim"):
    """Another DDIM, available as difftool-broken:ddim."""

    twist: float = option(default=0.5, help="has no effect")


@hookimpl
def difftool_samplers() -> list[type[Sampler]]:
    return [DDIM]
