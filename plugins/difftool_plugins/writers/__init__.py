"""The built-in file formats of samples."""

from difftool import Writer, hookimpl
from difftool_plugins.writers.arrays import CSV, NPY, NPZ, SafeTensors
from difftool_plugins.writers.moving import MP4, WAV
from difftool_plugins.writers.pictures import Film, Folder, Picture


@hookimpl
def difftool_writers() -> list[type[Writer]]:
    return [Picture, Film, MP4, WAV, Folder, NPY, NPZ, SafeTensors, CSV]
