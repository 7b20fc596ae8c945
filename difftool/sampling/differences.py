"""What differs between two records, in words: why a file that is made again may not be the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from difftool.errors import printable
from difftool.options import dashed
from difftool.sampling.record import Record, Table

SHORT = 12
"""The digits of a digest that are shown."""
LONGEST_VALUE = 60
WORDS: Mapping[Any, str] = {True: "on", False: "off", None: "not set"}


def differences(before: Record, now: Record) -> list[str]:
    """Return what differs from an earlier record, such as `--seed 1 (was 0)` or `torch 2.7.0 (was 2.6.0)`.

    Between files of two formats, what only one of them records is left out.
    """
    rows = [
        *_of_models(before, now),
        *_of_tables("--sampler", before.sampler, now.sampler),
        *_of_tables("--spacing", before.spacing, now.spacing),
        *_of_tables("--guidance", before.guidance, now.guidance),
        *_of_values("--", before.settings, now.settings),
        *_of_inputs(before, now),
    ]
    if before.writer and now.writer and before.writer["name"] == now.writer["name"]:
        rows += _of_tables("--writer", [before.writer], [now.writer])
        rows += _of_values("--", before.display, now.display)
    rows += _of_values("", before.machine, now.machine)
    common = before.versions.keys() & now.versions.keys()
    rows += _of_values("", *({k: v for k, v in one.versions.items() if k in common} for one in (before, now)))
    rows += _of_values("", before.plugins, now.plugins)
    return [printable(row) for row in dict.fromkeys(rows)]


def _of_models(before: Record, now: Record) -> Iterator[str]:
    if before.checkpoints or now.checkpoints:
        for name in dict.fromkeys([*before.checkpoints, *now.checkpoints]):
            old, new = (one.checkpoints.get(name) for one in (before, now))
            if old != new:
                yield f"checkpoint {name} {_digest(new)} (was {_digest(old)})"
    else:
        yield from _of_pairs("model", [before.model], [now.model])
    yield from _of_pairs("the model of --guidance", before.guides, now.guides)
    if before.oracle is not None and now.oracle is not None:
        for kind in ("oracle", "dataset", "schedule"):
            yield from _of_tables(f"--{kind}", [before.oracle[kind]], [now.oracle[kind]])
        if before.oracle["timesteps"] != now.oracle["timesteps"]:
            yield f"--timesteps {now.oracle['timesteps']} (was {before.oracle['timesteps']})"
        if before.oracle["data"] != now.oracle["data"]:
            yield "the data of the oracle are others"
    elif before.oracle is not None or now.oracle is not None:
        yield "a trained model in place of an oracle" if before.oracle else "an oracle in place of a trained model"


def _of_pairs(what: str, before: Sequence[Table | None], now: Sequence[Table | None]) -> Iterator[str]:
    for old, new in zip(before, now, strict=False):
        if old is not None and new is not None and old["digest"] != new["digest"]:
            told = [f"{one['name']}, step {one['step']}, digest {_digest(one['digest'])}" for one in (new, old)]
            yield f"{what} {told[0]} (was {told[1]})"
        elif old is not None and new is not None and old.get("ema_length") != new.get("ema_length"):
            yield f"--ema-length {_words(new.get('ema_length'))} (was {_words(old.get('ema_length'))})"


def _of_tables(flag: str, before: Sequence[Table], now: Sequence[Table]) -> Iterator[str]:
    """Yield the names of components if they differ, or else their options."""
    names = [",".join(table["name"] for table in tables) or "none" for tables in (before, now)]
    if names[0] != names[1]:
        yield f"{flag} {names[1]} (was {names[0]})"
        return
    for old, new in zip(before, now, strict=True):
        yield from _of_values(f"{flag}.", old, new)


def _of_inputs(before: Record, now: Record) -> Iterator[str]:
    for name in dict.fromkeys([*before.inputs, *now.inputs]):
        old, new = before.inputs.get(name, {}), now.inputs.get(name, {})
        if old.get("sha256") != new.get("sha256"):
            yield f"--{name} {new.get('name', 'a text') if new else 'not set'} is not {old.get('name', 'what it was')}"
        elif old.get("name") != new.get("name"):
            yield f"--{name} is called {new.get('name')} in titles (was {old.get('name')})"


def _of_values(start: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    for name in dict.fromkeys([*before, *now]):
        if before.get(name) != now.get(name):
            shown = dashed(name) if start else name
            yield f"{start}{shown} {_words(now.get(name))} (was {_words(before.get(name))})"


def _digest(text: str | None) -> str:
    return "none" if text is None else text[:SHORT]


def _words(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        text = ",".join(map(_words, value)) or "none"
    else:
        text = WORDS[value] if value is None or isinstance(value, bool) else str(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}..."
