"""Folders of files, of images or of sounds: find the files, and derive classes from sub-folders."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections import deque
from collections.abc import Sequence
from typing import Any, Literal

from difftool import option, printable

EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")
MAX_LISTED = 10
"""Bad files or folders that a warning names."""
SPLITS = {"train", "training", "test", "testing", "val", "valid", "validation", "dev", "eval", "holdout"}
"""Names of folders that divide data for training and evaluation; they say nothing about what an image shows."""
Labels = Literal["auto", "folders", "none"]


def list_images(root: str) -> list[str]:
    """Return the paths of the image files below a folder, as `list_files` does."""
    return list_files(root, EXTENSIONS, "images")


def list_files(root: str, extensions: tuple[str, ...], what: str) -> list[str]:
    """Return the paths of files with these extensions below a folder, in the order of bytes.

    Paths are relative to the folder and separated by '/'.
    Links are followed. No folder is entered twice, so a loop of links ends, and links to folders come last, so a folder
    keeps its own name. Pipes and devices are skipped. Raises `ValueError` if there are no such files, which `what`
    names.
    """
    if not os.path.exists(root):
        raise ValueError(f"{printable(root)} does not exist")
    if not os.path.isdir(root):
        raise ValueError(f"{printable(root)} is not a folder")
    found: list[str] = []
    entered: set[tuple[int, int]] = set()
    folders, links = deque([""]), deque[str]()
    while folders or links:
        prefix = (folders or links).popleft()
        path = os.path.join(root, prefix)
        try:
            status = os.stat(path)
            if (status.st_dev, status.st_ino) in entered:
                continue
            entered.add((status.st_dev, status.st_ino))
            with os.scandir(path) as scan:
                entries = sorted(scan, key=lambda entry: os.fsencode(entry.name))
        except OSError as error:
            raise ValueError(f"{printable(path)}: {error.strerror}") from None
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if _is_folder(entry):
                (links if entry.is_symlink() else folders).append(f"{prefix}{entry.name}/")
            elif entry.name.lower().endswith(extensions) and _is_file(entry):
                found.append(prefix + entry.name)
    if not found:
        raise ValueError(f"no {what} in {printable(root)} or its sub-folders (looked for {' '.join(extensions)})")
    return sorted(found, key=os.fsencode)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()  # is_dir() fails on a link to itself


def _is_file(entry: os.DirEntry[str]) -> bool:
    """Accept a regular file, a link to one, and a dangling link, which is better reported than skipped."""
    if entry.is_symlink():
        return os.path.isfile(entry.path) or not os.path.exists(entry.path)
    return entry.is_file()


def labels_option(what: str) -> Any:
    """Return the option `labels: Labels` of a dataset of files, which `what` names in the plural."""
    return option(
        default="auto",
        help=f"auto: sub-folders are classes if all {what} lie in them and they are not named train, test, ...; "
        f"folders: sub-folders are classes, whatever they are named, and {what} beside them are left out; "
        "none: there are no classes",
    )


def kept(names: Sequence[str], labels: Labels, what: str) -> list[int]:
    """Return the numbers of the files to read: of all, or with `labels` folders of those in sub-folders."""
    inside = [i for i, name in enumerate(names) if "/" in name]
    if labels != "folders" or len(inside) == len(names):
        return list(range(len(names)))
    beside = len(names) - len(inside)
    warnings.warn(f"left out {beside} of {len(names)} {what}, which lie beside the sub-folders", stacklevel=4)
    return inside


def classes_of(roots: Sequence[str], names: Sequence[str], labels: Labels, what: str) -> dict[str, Any]:
    """Return labels and class_names of files below some folders, as arguments of `Samples`.

    Classes are sub-folders. Warns where some or all of them are none. Raises `ValueError` if `labels` is folders and
    there are fewer than two.
    """
    import torch

    folders = _classes(roots, names, labels, what)
    number = {name: k for k, name in enumerate(folders)}
    return {
        "labels": torch.tensor([number[name.partition("/")[0]] for name in names]) if folders else None,
        "class_names": tuple(os.fsencode(name).decode("utf-8", "backslashreplace") for name in folders),
    }


def _classes(roots: Sequence[str], names: Sequence[str], labels: Labels, what: str) -> tuple[str, ...]:
    if labels == "none":
        return ()
    folders = class_folders(names)
    if labels == "auto" and (reason := no_classes(roots[0], names, folders, what)):
        warnings.warn(f"no classes: {reason}; --dataset.labels none confirms it", stacklevel=5)
        return ()
    if len(folders) < 2 and labels == "folders":
        raise ValueError(f"labels: folders needs {what} in two sub-folders or more, not {listed(folders) or 'none'}")
    if empty := sorted({name for root in roots for name in sub_folders(root)} - set(folders), key=os.fsencode):
        no = "" if len(folders) > 1 else f"no classes, for there are {what} in one sub-folder alone: "
        warnings.warn(f"{no}a sub-folder without readable {what} is not a class ({listed(empty)})", stacklevel=5)
    return folders if len(folders) > 1 else ()


def class_folders(names: Sequence[str]) -> tuple[str, ...]:
    """Return the top-level folders of files in the order of bytes."""
    return tuple(sorted({name.partition("/")[0] for name in names if "/" in name}, key=os.fsencode))


def no_classes(root: str, names: Sequence[str], folders: Sequence[str], what: str) -> str:
    """Return why folders that look like classes are none, and the option that takes them, or an empty text."""
    beside = [name for name in names if "/" not in name]
    if len(folders) == 1 and not beside:
        below = class_folders([name.partition("/")[2] for name in names])
        if len(below) > 1:
            inner = printable(os.path.join(root, folders[0]))
            return (
                f"all {what} lie in {inner}; --dataset.path {inner} takes its sub-folders ({listed(below)}) as classes"
            )
    if len(folders) < 2:
        return ""
    if beside:
        return (
            f"{what} lie beside the sub-folders ({len(beside)} of {len(names)}: {listed(beside)}); "
            f"--dataset.labels folders leaves them out and takes {listed(folders)} as classes"
        )
    if all(name.casefold() in SPLITS for name in folders):
        path = printable(os.path.join(root, folders[-1]))
        return (
            f"{listed(folders)} divide data for training and evaluation, and {what} of all are taken; "
            f"--dataset.path {path} takes one, --dataset.labels folders makes classes of them"
        )
    return ""


def sub_folders(root: str) -> list[str]:
    """Return the names of the folders in a folder, without hidden ones."""
    with contextlib.suppress(OSError), os.scandir(root) as scan:
        return [entry.name for entry in scan if not entry.name.startswith(".") and _is_folder(entry)]
    return []


def listed(names: Sequence[str]) -> str:
    """Return the first names, separated by commas."""
    return ", ".join([*map(printable, names[:MAX_LISTED]), *(["..."] if len(names) > MAX_LISTED else [])])


def report(bad: Sequence[str], total: int, what: str, where: str = "") -> None:
    """Warn of items that were left out, by their errors. Raises `ValueError` if none is left."""
    if not bad:
        return
    if len(bad) >= total:
        raise ValueError(f"none of the {total} {what}{where} can be read; the first error: {bad[0]}")
    more = f"; and {len(bad) - MAX_LISTED} more" if len(bad) > MAX_LISTED else ""
    warnings.warn(f"left out {len(bad)} of {total} {what}: {'; '.join(bad[:MAX_LISTED])}{more}", stacklevel=5)
