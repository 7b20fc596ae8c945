"""A page of `difftool report` as its reader meets it, and run folders to make one of."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

HOSTILE = "<script>alert(1)</script>"
VOID = {"meta", "img", "input", "path", "circle", "br"}


@dataclass
class Element:
    """An element: its tag, its attributes, its text, and the elements within it."""

    tag: str
    attributes: dict[str, str]
    text: str = ""
    within: list[Element] = field(default_factory=list)

    def __getitem__(self, name: str) -> str:
        return self.attributes.get(name, "")

    @property
    def whole_text(self) -> str:
        return " ".join(" ".join([self.text, *(one.whole_text for one in self.within)]).split())


class Page(HTMLParser):
    """The elements of a page, in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text, self.elements, self._open = text, list[Element](), list[Element]()
        self.feed(text)
        self.close()
        assert not self._open, [one.tag for one in self._open]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, {name: value or "" for name, value in attrs})
        self.elements.append(element)
        if self._open:
            self._open[-1].within.append(element)
        if tag not in VOID:
            self._open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self._open, f"</{tag}> ends nothing"
        assert self._open.pop().tag == tag, f"</{tag}> ends another element"

    def handle_data(self, data: str) -> None:
        if self._open:
            self._open[-1].text += data

    def all(self, *tags: str) -> list[Element]:
        return [one for one in self.elements if one.tag in tags]

    @property
    def titles(self) -> list[str]:
        """The headings."""
        return [one.whole_text for one in self.elements if re.fullmatch(r"h\d", one.tag)]

    @property
    def policy(self) -> dict[str, str]:
        (meta,) = (one for one in self.all("meta") if one["http-equiv"] == "Content-Security-Policy")
        return dict(rule.strip().split(" ", 1) for rule in meta["content"].split(";"))

    @property
    def scripts(self) -> list[Element]:
        """The scripts that run."""
        return [one for one in self.all("script") if not one["type"]]


def picture(path: Path, size: tuple[int, int] = (60, 40), seed: int = 0) -> Path:
    """Write a PNG file of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def with_previews(run: Path, steps: Sequence[int] = (1, 2, 4), size: tuple[int, int] = (60, 40)) -> Path:
    """Give a run previews."""
    for step in steps:
        for kind in ("samples", "panel"):
            picture(run / "previews" / f"{kind}-{step:06d}.png", size, seed=step)
    return run


def with_evaluation(run: Path, **changes: Any) -> Path:
    """Give a run an evaluation with a picture of the nearest pairs."""
    name = "evaluations/step-000004-pixels-nearest.png"
    picture(run / name)
    kid = {"metric": "kid", "name": "kid", "value": 0.012, "error": 0.001, "floor": 0.0003, "floor_error": 0.0002}
    recall = {"metric": "prdc", "name": "recall", "value": 0.5, "error": None, "unit": "of 1"}
    scores = [{**kid, "n": 2000, "better": "lower"}, {**recall, "n": 2000, "better": "higher"}]
    pair = {"sample": 3, "item": 17, "id": "a/b.png", "distance": 0.1}
    document = {
        "step": 4,
        "weights": "ema-0.999",
        "n": 2000,
        "against": "held-out",
        "reference": 360,
        "features": {"name": "pixels"},
        "sampling": {"sampler": "ddim", "steps": 50},
        "scores": scores,
        "copies": {"share": 0.12, "quantile": 0.95, "nearest": [pair]},
        "pictures": [name],
    }
    with open(run / "evaluations.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps({**document, **changes}) + "\n")
    return run


def copied(run: Path, folder: Path) -> Path:
    """Copy a run."""
    shutil.copytree(run, folder, ignore=shutil.ignore_patterns("state", "averages", "lock"))
    return folder


def renamed_classes(run: Path, names: Sequence[str]) -> Path:
    """Give the model of a run classes of other names."""
    from dataclasses import replace

    from difftool.sampling.model import Model

    model = Model.read(run / "model.safetensors")
    model.data = replace(model.data, class_names=tuple(names))
    model.save(run / "model.safetensors")
    return run
