"""`difftool schema`: a JSON schema that admits what difftool reads, and refuses what it refuses."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from conftest import Run

from difftool.runs.config import installed_configs

jsonschema = pytest.importorskip("jsonschema")


@pytest.fixture
def check(run: Run) -> Any:
    outcome = run("schema")
    assert outcome.code == 0
    document = json.loads(outcome.out)
    jsonschema.Draft202012Validator.check_schema(document)
    return jsonschema.Draft202012Validator(document)


def test_configs_of_runs_and_tutorials_fit(check: Any, points_run: Path) -> None:
    for path in (points_run / "config.toml", *installed_configs().values()):
        check.validate(tomllib.loads(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    "text",
    [
        '[dataset]\nname = "gradients"\nsize = 8',  # one value stands for a list
        '[training]\npreview_every = 200\nbatch_size = "auto"',
        '[dataset]\nname = "of-a-plugin"\nany = 1',
        "[loggers.csv]",
    ],
)
def test_what_is_read_fits(check: Any, text: str) -> None:
    check.validate(tomllib.loads(text))


@pytest.mark.parametrize(
    "text",
    [
        "[trainin]\nsteps = 3",
        "[training]\nstepz = 3",
        "[training]\nsteps = -1",
        "[training]\nlr = 0",
        '[training]\nlr_schedule = "cosin"',
        '[dataset]\nname = "swiss-roll"\nn = 1.5',
        '[dataset]\nname = "swiss-roll"\nsize = 8',  # an option of another dataset
        "[loggers.csv]\nnope = 1",
    ],
)
def test_what_is_refused_does_not_fit(check: Any, text: str) -> None:
    with pytest.raises(jsonschema.ValidationError):
        check.validate(tomllib.loads(text))
