"""The built-in datasets."""

from difftool import Dataset, hookimpl
from difftool_plugins.datasets.array import Array
from difftool_plugins.datasets.gradients import Gradients
from difftool_plugins.datasets.hf import HuggingFace
from difftool_plugins.datasets.image_folder import ImageFolder
from difftool_plugins.datasets.points import GaussianMixture, SwissRoll, TwoMoons
from difftool_plugins.datasets.sound_folder import SoundFolder
from difftool_plugins.datasets.webdataset import WebDataset


@hookimpl
def difftool_datasets() -> list[type[Dataset]]:
    return [SwissRoll, TwoMoons, GaussianMixture, Gradients, ImageFolder, SoundFolder, Array, HuggingFace, WebDataset]
