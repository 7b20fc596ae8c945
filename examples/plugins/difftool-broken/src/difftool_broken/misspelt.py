"""Implements a hook that there is not: it lacks an s."""

from difftool import Sampler, hookimpl


@hookimpl
def difftool_sampler() -> list[type[Sampler]]:
    return []
