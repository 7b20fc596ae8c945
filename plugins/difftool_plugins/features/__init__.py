"""The built-in features, in which samples are compared with data."""

from difftool import Features, hookimpl
from difftool_plugins.features.classifier import Classifier
from difftool_plugins.features.pixels import PCA, Pixels
from difftool_plugins.features.pretrained import CLIP, DINOv2, Inception
from difftool_plugins.features.scattering import Scattering


@hookimpl
def difftool_features() -> list[type[Features]]:
    return [Pixels, PCA, Scattering, Classifier, Inception, DINOv2, CLIP]
