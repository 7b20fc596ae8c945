"""The memory of tensors while a block of code runs, counted storage by storage, also for tensors without values."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveMemory(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Count the bytes of the storages that operators make in a block, by kind, and keep the counts at their peak.

    Storages of the `known` tensors are left out. What an operator frees before it returns is not seen.
    """

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.kind = ""
        """The kind of the storages that are made from now on."""
        self.now: Counter[str] = Counter()
        """The bytes of the live storages by kind."""
        self.peak: Counter[str] = Counter()
        """The same when there were most of them."""
        self._kinds = {_key(tensor): "known" for tensor in known}

    def __torch_dispatch__(
        self,
        function: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and _key(tensor) not in self._kinds:
                self._add(tensor)
        return result

    def _add(self, tensor: Tensor) -> None:
        storage, key = tensor.untyped_storage(), _key(tensor)
        self._kinds[key] = self.kind
        self.now[self.kind] += storage.nbytes()
        weakref.finalize(storage, self._remove, key, storage.nbytes()).atexit = False
        if self.now.total() > self.peak.total():
            self.peak = self.now.copy()

    def _remove(self, key: int, size: int) -> None:
        self.now[self._kinds.pop(key)] -= size

    def classify(self, tensor: Tensor, kind: str) -> None:
        """Count a tensor's storage, which was made in the block, as another kind."""
        before, size = self._kinds.get(_key(tensor)), tensor.untyped_storage().nbytes()
        if before not in (None, "known", kind):
            self._kinds[_key(tensor)] = kind
            self.now[before] -= size
            self.now[kind] += size


def _key(tensor: Tensor) -> int:
    """Return a number that tells a live storage from all others."""
    return int(tensor.untyped_storage()._cdata)
