"""The origin of the weights that a run started from."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any

from difftool.errors import printable
from difftool.settings import LARGEST_STEP

LONGEST_NAME = 200


@dataclass(frozen=True, kw_only=True)
class Origin:
    """The model that a run took its first weights from.

    It names no path, since files of weights, which others may get, record it too.
    """

    name: str
    """The name of the model, such as `swiss-roll-mlp`."""
    weights: str
    """The weights that were taken: the average (`ema`) or the trained ones (`raw`)."""
    step: int
    sha256: str
    """The digest that the file carries."""

    def document(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def read(cls, document: object) -> Origin | None:
        """Read an untrusted record of an origin; None stands for a run from fresh weights. Raises `ValueError`."""
        if document is None:
            return None
        if not isinstance(document, dict) or document.keys() != {"name", "weights", "step", "sha256"}:
            raise ValueError("init_from must be a table of name, weights, step and sha256")
        name, weights, step, sha256 = (document[key] for key in ("name", "weights", "step", "sha256"))
        if not all(isinstance(text, str) and 0 < len(text) <= LONGEST_NAME for text in (name, weights, sha256)):
            raise ValueError("init_from must name a model")
        if type(step) is not int or not 0 <= step <= LARGEST_STEP or not re.fullmatch(r"[0-9a-f]{64}", sha256):
            raise ValueError("init_from must have a step and a digest")
        return cls(name=printable(name), weights=printable(weights), step=step, sha256=sha256)
