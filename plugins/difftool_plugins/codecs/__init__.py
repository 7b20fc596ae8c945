"""Built-in codecs."""

from difftool import Codec, hookimpl
from difftool_plugins.codecs.autoencoder_kl import AutoencoderKL
from difftool_plugins.codecs.linear import PCA, Nothing, Patch


@hookimpl
def difftool_codecs() -> list[type[Codec]]:
    return [Nothing, Patch, PCA, AutoencoderKL]
