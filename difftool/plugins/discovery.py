"""What is installed, by the packages' own words: entry points, read without importing anything of the packages.

Environment: `DIFFTOOL_PLUGINS=a,b` allows only these distributions besides the built-ins (empty: the built-ins alone);
`DIFFTOOL_DISABLE_PLUGINS=x` leaves distributions, or single `distribution:entry-point`s, out.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import Distribution, EntryPoint, distributions, entry_points
from pathlib import Path
from typing import NamedTuple, TypeVar

T = TypeVar("T")

GROUP = "difftool"
COMMANDS = "difftool.commands"
"""The group whose entry points announce commands by their names, so that help can list them and load nothing."""
BUILT_IN = "difftool"
ALLOW, DENY = "DIFFTOOL_PLUGINS", "DIFFTOOL_DISABLE_PLUGINS"
ENTRY_POINTS = "entry_points.txt"
"""Where the metadata of a package list its entry points."""


class Unreadable(NamedTuple):
    """A package that may bring plugins, in a list that cannot be read."""

    distribution: str
    version: str
    error: Exception


def installed(group: str) -> tuple[list[EntryPoint], list[Unreadable]]:
    """(the entry points of a group, the packages whose lists cannot be read and may have some)."""
    try:
        return list(entry_points(group=group)), []
    except Exception:  # one list that cannot be read hides all others
        return _one_by_one(group)


def _one_by_one(group: str) -> tuple[list[EntryPoint], list[Unreadable]]:
    """`installed`, each package read by itself."""
    found: list[EntryPoint] = []
    broken: list[Unreadable] = []
    for distribution in distributions():
        try:
            found += [point for point in distribution.entry_points if point.group == group]
        except Exception as error:
            if GROUP in (distribution.read_text(ENTRY_POINTS) or ""):
                broken.append(Unreadable(_name_of(distribution), _version_of(distribution), error))
    return found, broken


def choose(
    found: Iterable[EntryPoint], allowed: str | None = None, denied: str = ""
) -> tuple[list[EntryPoint], list[str]]:
    """(the entry points that the two environment variables let through, the identities of the others)."""
    kept, left_out = [], []
    for entry_point in found:
        identity = f"{distribution_of(entry_point)}:{entry_point.name}"
        if let_through(identity, allowed, denied):
            kept.append(entry_point)
        else:
            left_out.append(identity)
    return kept, left_out


def let_through(identity: str, allowed: str | None, denied: str) -> bool:
    name = identity.partition(":")[0]
    wanted = allowed is None or name in names_in(allowed)
    return name == BUILT_IN or (wanted and not {name, identity} & names_in(denied))


def names_in(text: str) -> set[str]:
    """The distributions, or `distribution:entry-point`s, that an environment variable lists."""
    return {distribution_name(part.strip()) for part in text.split(",") if part.strip()}


def distribution_of(entry_point: EntryPoint) -> str:
    return _name_of(entry_point.dist) if entry_point.dist else "unknown"


def version_of(entry_point: EntryPoint) -> str:
    return _version_of(entry_point.dist) if entry_point.dist else ""


def _name_of(distribution: Distribution) -> str:
    """Its name, or where its metadata have none, what their folder is called after."""
    folder = Path(str(getattr(distribution, "_path", "unknown"))).name
    return distribution_name(readable(lambda: distribution.name) or folder.partition("-")[0])


def _version_of(distribution: Distribution) -> str:
    return readable(lambda: distribution.version)


def summary_of(entry_point: EntryPoint) -> str:
    """Of its package, in a line."""
    distribution = entry_point.dist
    return readable(lambda: distribution.metadata["Summary"]) if distribution else ""


def readable(read: Callable[[], str | None]) -> str:
    """A text of a package's metadata; empty where it is not there, or the metadata are not."""
    try:
        return read() or ""
    except Exception:  # Python's versions raise different ones
        return ""


def distribution_name(name: str) -> str:
    """PEP 503: `My_Plugin` and `my-plugin` are one distribution."""
    head, colon, tail = name.partition(":")
    return re.sub(r"[-_.]+", "-", head).lower() + colon + tail


def is_name(text: object) -> bool:
    """Whether a component can be called so."""
    return isinstance(text, str) and re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", text) is not None


def winner_of(claims: Sequence[tuple[T, bool]]) -> T | None:
    """Who gets what several claim, given as (claimant, whether it is built in): a built-in, or the only one."""
    built_in = [claimant for claimant, ours in claims if ours]
    return built_in[0] if built_in else claims[0][0] if len(claims) == 1 else None


class Announced(NamedTuple):
    """A command that a package says it provides."""

    command: str
    distribution: str
    version: str
    summary: str
    """Of the package, in a line."""


def announced(taken: Iterable[str] = ()) -> dict[str, Announced]:
    """The commands that packages announce, by the names they are called by; those in `taken` are given away already."""
    found = announcements(os.environ.get(ALLOW), os.environ.get(DENY, ""))
    names: dict[str, Announced] = {}
    for one in found:
        claims = [(other, other.distribution == BUILT_IN) for other in found if other.command == one.command]
        wins = one.command not in taken and winner_of(claims) is one
        names[one.command if wins else f"{one.distribution}:{one.command}"] = one
    return names


@functools.cache
def announcements(allowed: str | None, denied: str) -> list[Announced]:
    kept, _ = choose(installed(COMMANDS)[0], allowed, denied)
    found = {(distribution_of(e), e.name): e for e in kept if is_name(e.name)}
    return [
        Announced(name, owner, version_of(entry_point), summary_of(entry_point))
        for (owner, name), entry_point in sorted(found.items(), key=lambda item: item[0])
    ]
