"""The options that guidances share, and their words."""

from __future__ import annotations


def check_interval(interval: tuple[float, ...] | None) -> None:
    """Raise `ValueError` unless the interval is LOW,HIGH."""
    if interval is not None and not (len(interval) == 2 and interval[0] < interval[1]):
        raise ValueError("interval: must be LOW,HIGH with LOW below HIGH, such as 0.3,5")


def interval_words(interval: tuple[float, ...] | None) -> list[str]:
    """Return the interval in words, or nothing without one."""
    return [] if interval is None else ["only for sigma/alpha of {:g} to {:g}".format(*interval)]
