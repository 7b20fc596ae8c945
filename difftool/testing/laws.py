"""The vocabulary of the law kit: laws, verdicts, and the exceptions of both.

A law is a function. Its name states a fact about a component, and its docstring says how the fact is checked. It
returns what it measured, raises `Failed` with the measurement and the requirement if the fact does not hold, and raises
`Skipped` if it does not apply.
"""

from __future__ import annotations

import inspect
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from difftool import errors
from difftool.components import Component
from difftool.options import make

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Law = Callable[[Any], str]


class Failed(AssertionError):
    """A law does not hold. The text says what was measured and what is required."""


def require(holds: object, otherwise: str) -> None:
    """Raise `Failed` with the text unless something holds."""
    if not holds:
        raise Failed(otherwise)


class Skipped(Exception):
    """A law does not apply to this component, or cannot be checked on this machine. The text says why."""


@dataclass(frozen=True)
class Finding:
    """The result of checking one law."""

    law: str
    """The fact that was checked, such as `has the order it claims`."""
    verdict: Literal["passed", "failed", "skipped"]
    measured: str
    """The measured value, for a failed law what is required, for a skipped one the reason."""

    @property
    def failed(self) -> bool:
        return self.verdict == "failed"


class LawsFailed(AssertionError):
    """A component fails laws of its kind. The text names each of them with its measurement."""

    def __init__(self, component: Component, findings: list[Finding]) -> None:
        self.component, self.findings = component, findings
        failed = [finding for finding in findings if finding.failed]
        rows = "".join(f"\n  {finding.law}: {finding.measured}" for finding in failed)
        count = f"{len(failed)} of {len(findings)} laws"
        super().__init__(f"{component.kind} {component.name} fails {count}:{rows}")


@dataclass(frozen=True)
class KindLaws:
    """The laws of one kind of component."""

    laws: tuple[Law, ...] = ()
    prepare: Callable[..., Any] = lambda component: component
    """Make what the laws take: the component itself, or a record of it and of what it built.

    Raises `Failed`, and `Skipped` where nothing can be checked."""


def name_of(law: Law) -> str:
    """Return the law's name as words: `has_the_order_it_claims` becomes `has the order it claims`."""
    return law.__name__.replace("_", " ")


def text_of(law: Law) -> str:
    """Return the law's docstring, which says how it is checked, on one line."""
    return " ".join((inspect.getdoc(law) or "").split())


def size(shape: tuple[int, ...]) -> str:
    """Return a shape as text: `3x32x32`."""
    return "x".join(map(str, shape))


def gap(a: Tensor, b: Tensor) -> float:
    """Return the largest absolute difference between two tensors."""
    return float((a - b).abs().max())


def largest(x: Tensor) -> float:
    """Return the largest absolute value of a tensor."""
    return float(x.abs().max())


def raised(error: BaseException) -> str:
    """Describe an unexpected exception, with the last line of the author's own code that it passed through."""
    libraries = [sys.modules[name].__file__ for name in ("torch", "numpy", "contextlib") if name in sys.modules]
    others = [str(Path(__file__).parents[1]), *(str(Path(file).parent) for file in libraries if file)]
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith(tuple(others))]
    where = f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""
    return f"raised {errors.describe(error)}{where}"


def accelerators() -> list[torch.device]:
    """Return the devices of this machine other than the CPU. Raises `Skipped` if there is none."""
    import torch

    from difftool.devices import available

    devices = [torch.device(name) for name in available() if name != "cpu"]
    if not devices:
        raise Skipped("this machine has no accelerator")
    return devices


def instance(component: Component | type[Component]) -> Component:
    """Return a component as it is, or a class with its defaults. Raises `InvalidOption` if an option is required."""
    return component if isinstance(component, Component) else make(component, {})
