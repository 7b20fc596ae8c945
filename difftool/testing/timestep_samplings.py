"""Laws of time densities."""

from __future__ import annotations

from difftool.components import TimestepSampling
from difftool.specs import ObjectiveSpec
from difftool.testing.known import TABLES
from difftool.testing.laws import Broken
from difftool.training.loss import distribution


def is_a_distribution(time: TimestepSampling) -> str:
    """Over the levels of each of three tables its weights are finite, not negative, and of a sum above 0."""
    for name, table in TABLES.items():
        try:
            distribution(time, ObjectiveSpec(schedule=table))
        except ValueError as error:
            raise Broken(f"{name}: {error}") from None
    return ", ".join(TABLES)


LAWS = (is_a_distribution,)
