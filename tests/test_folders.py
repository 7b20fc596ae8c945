"""Files that are moved into a folder together."""

from __future__ import annotations

from pathlib import Path

import pytest

from difftool.errors import DifftoolError
from difftool.files import move


def test_files_move_together_and_replace_only_when_told(tmp_path: Path) -> None:
    made, folder = tmp_path / "made", tmp_path / "folder"
    made.mkdir()
    folder.mkdir()
    (folder / "2").write_text("old")
    files = [made / str(i) for i in range(40)]
    for file in files:
        file.write_text(file.name)
    with pytest.raises(DifftoolError, match="exists already"):
        move(files, folder, overwrite=False)
    assert (folder / "2").read_text() == "old"
    for file in files:
        file.write_text(file.name)
    move(files, folder, overwrite=True)
    assert {path.name: path.read_text() for path in folder.iterdir()} == {str(i): str(i) for i in range(40)}
