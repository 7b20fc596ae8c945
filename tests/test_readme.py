"""What the README prints is right; `tests/test_docs.py` runs all of it as it stands."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

README = Path(__file__).parent.parent / "README.md"
pytestmark = pytest.mark.skipif(not README.exists(), reason="the README is not beside the tests")


def code(words: str) -> str:
    """The one block of Python that holds these words."""
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    (found,) = (block for block in blocks if words in block)
    return str(found)


def test_the_same_seed_draws_the_same_samples_in_the_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(code("difftool.train"), names)
    assert torch.equal(names["points"], names["again"])
    assert names["points"].shape == (500, 2)
    assert (tmp_path / "moons" / "model.safetensors").is_file()


def test_the_schedule_of_the_example_has_the_formula_that_it_says(tmp_path: Path) -> None:
    (tmp_path / "example.py").write_text(code("hookimpl"))
    assert len(code("hookimpl").strip().splitlines()) <= 25
    (power,) = runpy.run_path(str(tmp_path / "example.py"), run_name="example")["difftool_schedules"]()
    built = power(p=3).build(9).alpha_bars.tolist()
    assert built == pytest.approx([1 - 0.9999 * ((t + 1) / 9) ** 3 for t in range(9)], abs=1e-12)
