"""Implements a hook that does not exist, since its name lacks the final s."""

from difftool import Sampler, hookimpl


@hookimpl
def difftool_sampler() -> list[type[Sampler]]:
    return []
