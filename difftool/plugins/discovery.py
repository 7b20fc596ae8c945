"""Installed plugins, found through the entry points of packages. Nothing of the packages is imported here.

Environment: `DIFFTOOL_PLUGINS=a,b` allows only these distributions besides the built-ins (empty: the built-ins alone);
`DIFFTOOL_DISABLE_PLUGINS=x` leaves out distributions, or single plugins as `distribution:entry-point`.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.metadata import Distribution, EntryPoint, distributions, entry_points
from pathlib import Path
from typing import NamedTuple, TypeVar
from urllib.parse import unquote, urlsplit

from difftool.version import __version__

T = TypeVar("T")

GROUP = "difftool"
COMMANDS = "difftool.commands"
"""The group whose entry points announce commands by name, so that the help can list them without importing anything."""
BUILT_IN = "difftool"
"""The distribution of the built-in plugins."""
ALLOW, DENY = "DIFFTOOL_PLUGINS", "DIFFTOOL_DISABLE_PLUGINS"


def installed(group: str) -> list[EntryPoint]:
    """Return the entry points of a group: those of the distribution that runs, and those of other packages.

    Packages whose metadata cannot be read are left out, and so are those that call themselves difftool.
    """
    own = running_distribution(tuple(sys.path))
    others = [point for point in _found(group) if distribution_of(point) != BUILT_IN]
    return [*([] if own is None else own.entry_points.select(group=group)), *others]


def impostors() -> list[EntryPoint]:
    """Return the plugins of packages that call themselves difftool and are not the distribution that runs."""
    own = running_distribution(tuple(sys.path))
    return [e for e in _found(GROUP) if distribution_of(e) == BUILT_IN and not (own and _same(own, e.dist))]


@functools.cache
def running_distribution(_path: tuple[str, ...]) -> Distribution | None:
    """Return the distribution of the very package that runs, wherever other ones of its name lie on the module path."""
    named = list(distributions(name=BUILT_IN))
    running = [found for found in named if _holds(found, Path(__file__).parents[1])]
    same_version = [found for found in running if _text(lambda found=found: found.version) == __version__]  # type: ignore[misc]
    return next(iter(same_version or running or (named if len(named) == 1 else [])), None)


def _holds(found: Distribution, package: Path) -> bool:
    """Return whether a package was installed by a distribution: beside its metadata, or from an editable checkout."""
    try:
        if os.path.samefile(str(found.locate_file(package.name)), package):
            return True
    except OSError:
        pass
    try:
        address = json.loads(found.read_text("direct_url.json") or "{}")["url"]
        checkout = unquote(urlsplit(address).path)
        return package.is_relative_to(os.path.realpath(checkout.lstrip("/") if os.name == "nt" else checkout))
    except Exception:  # no such file, or not what the standard says
        return False


def _same(one: Distribution, other: Distribution | None) -> bool:
    """Return whether two distributions lie in one place."""
    return other is not None and str(one.locate_file("")) == str(other.locate_file(""))


def _found(group: str) -> list[EntryPoint]:
    return _read(group, tuple(sys.path))


@functools.cache
def _read(group: str, _path: tuple[str, ...]) -> list[EntryPoint]:
    """Read the entry points of a group. Of distributions with equal names, Python takes the first alone."""
    try:
        return list(entry_points(group=group))
    except Exception:  # one unreadable package hides all others, so read them one by one
        found: list[EntryPoint] = []
        for distribution in distributions():
            try:
                found += [point for point in distribution.entry_points if point.group == group]
            except Exception:
                continue
        return found


def choose(
    found: Iterable[EntryPoint], allowed: str | None = None, denied: str = ""
) -> tuple[list[EntryPoint], list[str]]:
    """Return the entry points that the two environment variables admit, and the identities of the others."""
    admitted, left_out = [], []
    for entry_point in found:
        name = distribution_of(entry_point)
        identity = f"{name}:{entry_point.name}"
        wanted = allowed is None or name in names_in(allowed)
        if name == BUILT_IN or (wanted and not {name, identity} & names_in(denied)):
            admitted.append(entry_point)
        else:
            left_out.append(identity)
    return admitted, left_out


def names_in(text: str) -> set[str]:
    """Return the distributions and identities that an environment variable lists."""
    return {distribution_name(part.strip()) for part in text.split(",") if part.strip()}


def distribution_of(entry_point: EntryPoint) -> str:
    """Return the name of the distribution that brings an entry point."""
    return distribution_name(_text(lambda: entry_point.dist.name) or "unknown")  # type: ignore[union-attr]


def version_of(entry_point: EntryPoint) -> str:
    return _text(lambda: entry_point.dist.version)  # type: ignore[union-attr]


def summary_of(entry_point: EntryPoint) -> str:
    return _text(lambda: entry_point.dist.metadata["Summary"])  # type: ignore[union-attr]


def _text(read: Callable[[], str | None]) -> str:
    """Return a text of a distribution's metadata, empty if it is missing or cannot be read."""
    try:
        return read() or ""
    except Exception:  # versions of Python differ in what they raise
        return ""


def distribution_name(name: str) -> str:
    """Normalise a name as PEP 503 does: `My_Plugin` and `my-plugin` are one distribution."""
    head, colon, tail = name.partition(":")
    return re.sub(r"[-_.]+", "-", head).lower() + colon + tail


def is_name(text: object) -> bool:
    """Return whether a component can have this name."""
    return isinstance(text, str) and re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", text) is not None


def is_number(text: str) -> bool:
    """Return whether Python reads a text as a number, as it does `2`, `1e5`, `nan` and `infinity`."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def winner_of(claims: Sequence[tuple[T, bool]]) -> T | None:
    """Resolve a contested name, given (claimant, whether it is built in): the built-in, or else the only claimant."""
    built_in = [claimant for claimant, is_built_in in claims if is_built_in]
    if built_in:
        return built_in[0]
    return claims[0][0] if len(claims) == 1 else None


class Announced(NamedTuple):
    """A command that a package says it provides."""

    command: str
    distribution: str
    version: str
    summary: str
    """The summary of the package, one line."""


def announced(taken: Iterable[str] = ()) -> dict[str, Announced]:
    """Return the commands that packages announce, by the names they are called by; names in `taken` are not free."""
    allowed = "" if _alone else os.environ.get(ALLOW)
    found = [*announcements(allowed, os.environ.get(DENY, "")), *_also]
    names: dict[str, Announced] = {}
    for one in found:
        claims = [(other, other.distribution == BUILT_IN) for other in found if other.command == one.command]
        wins = one.command not in taken and winner_of(claims) is one
        names[one.command if wins else f"{one.distribution}:{one.command}"] = one
    return names


_also: list[Announced] = []
_alone: list[bool] = []


@contextlib.contextmanager
def also_announced(commands: Sequence[Announced], *, alone: bool = False) -> Iterator[None]:
    """Announce more commands in this block, those of scripts, or with `alone` of a test that ignores installed ones."""
    _also.extend(commands)
    _alone.extend([True] * alone)
    try:
        yield
    finally:
        del _also[len(_also) - len(commands) :], _alone[len(_alone) - alone :]


@functools.cache
def announcements(allowed: str | None, denied: str) -> list[Announced]:
    """Return the announced commands that the environment variables admit, sorted."""
    admitted, _ = choose(installed(COMMANDS), allowed, denied)
    found = {(distribution_of(e), e.name): e for e in admitted if is_name(e.name)}
    return [
        Announced(name, distribution, version_of(entry_point), summary_of(entry_point))
        for (distribution, name), entry_point in sorted(found.items(), key=lambda item: item[0])
    ]
