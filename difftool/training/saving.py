"""Saves of a run: copied to the host's memory between two steps, and written by a thread while training goes on.

At most one save is being written. The files are those that a save without a thread writes, in the same order, so a kill
at any moment leaves a valid newest state.
"""

from __future__ import annotations

import threading
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from types import TracebackType

import torch
from torch import Tensor

from difftool import devices
from difftool.errors import DifftoolError, out_of_memory
from difftool.files import sweep
from difftool.runs import checkpoint, states
from difftool.runs.checkpoint import Contents
from difftool.runs.folder import RunFolder
from difftool.training.watched_folder import WatchedFolder

LEAST_LEFT = 0.25
"""The share of its own size that a copy must leave free in the host's memory."""


@dataclass(frozen=True)
class Save:
    """The files of a save in the order in which they are written, and the number of states that are kept."""

    files: Sequence[tuple[Path, Contents]]
    """Paths in the run folder, each with what the file holds."""
    keep: int
    own: Sequence[tuple[Path, Contents]] = ()
    """Files to write before the others, whose tensors nothing else changes."""
    ready: Callable[[], object] | None = None
    """Waits for copies from the device, if there are any."""

    def write(self, place: Callable[[], RunFolder]) -> None:
        """Write the files, and delete older states. Raises `DifftoolError`.

        `place` returns the run folder, which somebody may move at any time.
        """
        if self.ready is not None:
            self.ready()
        for path, contents in (*self.own, *self.files):
            write_file(place, path, contents)
        for old in place().saved_states()[self.keep :]:
            states.remove(old)

    def tensors(self) -> Iterator[Tensor]:
        """Return the tensors that training changes."""
        for _, contents in self.files:
            yield from contents.tensors.values()


def write_file(place: Callable[[], RunFolder], path: Path, contents: Contents) -> None:
    """Write a file of a run folder whose place is asked last, since encoding takes time. Raises `DifftoolError`."""
    encoded = checkpoint.encoded(*contents)
    checkpoint.write(place().path / path, *encoded)


class HostCopies:
    """Memory of the host for copies of tensors. Each save uses that of the one before."""

    def __init__(self) -> None:
        self._held: dict[tuple[torch.Size, torch.dtype], list[Tensor]] = {}

    def copy(self, save: Save) -> Save | None:
        """Return a save of copies, of one copy for each tensor however many files hold it.

        Return None if the host has too little memory for them.
        """
        distinct = {_identity(tensor): tensor for tensor in save.tensors()}
        try:
            copies = self._copy(distinct)
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            copies = None
        if copies is None:
            self._held = {}
            return None

        def copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {name: copies[_identity(tensor)] for name, tensor in tensors.items()}

        files = [(path, contents._replace(tensors=copied(contents.tensors))) for path, contents in save.files]
        on_gpu = next((tensor for tensor in distinct.values() if tensor.is_cuda), None)
        return replace(save, files=files, ready=None if on_gpu is None else _recorded(on_gpu.device))

    def _copy(self, tensors: Mapping[object, Tensor]) -> dict[object, Tensor] | None:
        spare, self._held = self._held, defaultdict(list)
        kinds: dict[tuple[torch.Size, torch.dtype], list[Tensor]] = defaultdict(list)
        for tensor in tensors.values():
            kinds[tensor.shape, tensor.dtype].append(tensor)
        new = sum(sum(map(_bytes, some[len(spare.get(kind, ())) :])) for kind, some in kinds.items())
        left = devices.host_memory_left() if new else None
        if left is not None and left < (1 + LEAST_LEFT) * new:
            return None
        made: dict[object, Tensor] = {}
        for key, tensor in tensors.items():
            kind = tensor.shape, tensor.dtype
            old = spare.get(kind)
            place = old.pop() if old else torch.empty(*kind[:1], dtype=kind[1], pin_memory=tensor.is_cuda)
            self._held[kind].append(place)
            made[key] = place.copy_(tensor.detach(), non_blocking=tensor.is_cuda)
        return made


def _identity(tensor: Tensor) -> object:
    """Return what two views of the same numbers have in common."""
    return tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _recorded(device: torch.device) -> Callable[[], object]:
    """Return the function that waits until a GPU has done what it was asked for up to now."""
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(device))  # what follows changes the tensors after the copies only
    return event.synchronize


class Saver:
    """The thread that writes saves, one at a time. Its errors surface in `wait` and `check`."""

    def __init__(self, watched: WatchedFolder) -> None:
        self.watched = watched
        self.longest = 0.0
        """The longest time that a save took, in seconds."""
        self._copies = HostCopies()
        self._save: Save | None = None
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._left = False

    @property
    def busy(self) -> bool:
        """True while the thread writes."""
        return self._thread is not None and self._thread.is_alive()

    def start(self, save: Save) -> None:
        """Begin to write a save once the one before is on the disk. Raises `DifftoolError` if that one failed."""
        self.wait()
        begun = perf_counter()
        copied = self._copies.copy(save)
        if copied is None:
            warnings.warn("memory is short, so training waits while a state is saved", stacklevel=2)
            self.write(save)
            return
        self._save = copied
        self.watched.find()
        self._thread = threading.Thread(target=self._run, args=(copied, begun), name="difftool save", daemon=True)
        self._thread.start()

    def write(self, save: Save) -> None:
        """Write a save before this returns. Raises `DifftoolError`."""
        self.wait()
        begun = perf_counter()
        self.watched.write(lambda: save.write(self.watched.locked))
        self.longest = max(self.longest, perf_counter() - begun)

    def check(self) -> None:
        """Raise the error of the thread, if it failed."""
        if self._error is not None:
            self.wait()

    def wait(self) -> None:
        """Wait until the save is on the disk. One that failed is written once more: the folder may have been moved."""
        if self._thread is None:
            return
        try:
            self._thread.join()
        except BaseException:  # a signal that is not to be kept waiting
            self._left = True
            raise
        save, self._save, self._thread = self._save, None, None
        error, self._error = self._error, None
        if isinstance(error, DifftoolError) and save is not None:
            self.watched.write(lambda: save.write(self.watched.locked))
        elif error is not None:
            raise error

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, kind: type[BaseException] | None, _error: object, _trace: TracebackType | None) -> None:
        """Wait for the thread. After an error, which matters more, its own is dropped."""
        try:
            if not self._left:
                self.wait()
        except Exception:
            if kind is None:
                raise
        finally:
            if self._left:
                sweep(self.watched.locked().path)

    def _run(self, save: Save, begun: float) -> None:
        try:
            save.write(self.watched.locked)
            self.longest = max(self.longest, perf_counter() - begun)
        except BaseException as error:
            self._error = error
