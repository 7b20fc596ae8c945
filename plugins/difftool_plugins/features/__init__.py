"""The built-in features, in which samples are compared with data."""

from difftool import Features, hookimpl
from difftool_plugins.features.pixels import Pixels


@hookimpl
def difftool_features() -> list[type[Features]]:
    return [Pixels]
