"""The dataset `sound-folder`: parts of WAV files, classes, and bad files."""

from __future__ import annotations

import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import difftool
from difftool import DatasetContext, Samples

RATE = 8000


def write(path: Path, sound: Any, rate: int = RATE) -> None:
    """Write whole numbers of 16 bits (channels, length)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(len(sound))
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.asarray(sound, "<i2").T.tobytes())


def ramp(length: int, start: int = 0) -> Any:
    return np.arange(start, start + length)[None]


def load(path: Path, **options: Any) -> Samples:
    dataset: Any = difftool.component("dataset", "sound-folder", path=path, **{"length": 16, **options})
    samples: Samples = dataset.load(DatasetContext(seed=0))
    return samples


def test_middle_parts_and_zeros(tmp_path: Path) -> None:
    write(tmp_path / "a.wav", ramp(32))
    write(tmp_path / "b.wav", ramp(5, 100))
    samples = load(tmp_path)
    x = samples.take_items([0, 1]) * 2**15
    assert torch.equal(x[0, 0], torch.arange(8.0, 24.0))
    assert torch.equal(x[1, 0], torch.cat([torch.arange(100.0, 105.0), torch.zeros(11)]))
    assert (samples.form, samples.rate, list(samples.item_ids or ())) == ("sound", RATE, ["a.wav", "b.wav"])
    assert samples.scale[0] == pytest.approx(float((x / 2**15).double().std(correction=0)))


def test_channels_are_mixed_and_doubled(tmp_path: Path) -> None:
    write(tmp_path / "stereo.wav", np.stack([np.full(16, 300), np.full(16, 100)]))
    assert torch.equal(load(tmp_path).take_items([0]) * 2**15, torch.full((1, 1, 16), 200.0))
    write(tmp_path / "mono.wav", np.full((1, 16), 7))
    mono, stereo = load(tmp_path, channels=2).take_items([0, 1]) * 2**15
    assert torch.equal(mono, torch.full((2, 16), 7.0))
    assert stereo[:, 0].tolist() == [300.0, 100.0]


def test_memory_changes_nothing(tmp_path: Path) -> None:
    for k in range(3):
        write(tmp_path / f"{k}.wav", ramp(40, 100 * k))
    held, read = load(tmp_path), load(tmp_path, memory=0.0)
    assert held.in_memory
    assert not read.in_memory
    assert torch.equal(held.take_items(range(3)), read.take_items(range(3)))
    assert (held.scale, held.fingerprint) == (read.scale, read.fingerprint)
    write(tmp_path / "2.wav", ramp(41))
    assert load(tmp_path).fingerprint != held.fingerprint


def test_random_parts_are_keyed_by_the_seed(tmp_path: Path) -> None:
    write(tmp_path / "a.wav", ramp(1000))
    items: Any = load(tmp_path, crop="random").items
    starts = [float(items.draw(0, seed)[0, 0] * 2**15) for seed in (0, 2**30, 2**30, 2**31 - 1)]
    assert starts == [0, 492, 492, 984]  # both ends can be reached


def test_sub_folders_are_classes(tmp_path: Path) -> None:
    write(tmp_path / "kick" / "a.wav", ramp(16))
    write(tmp_path / "snare" / "b.WAV", ramp(16))
    samples = load(tmp_path)
    assert samples.class_names == ("kick", "snare")
    assert samples.labels is not None
    assert samples.labels.tolist() == [0, 1]
    assert load(tmp_path, labels="none").labels is None
    write(tmp_path / "c.wav", ramp(16))
    with pytest.warns(UserWarning, match="sounds lie beside the sub-folders"):
        assert load(tmp_path).labels is None
    with pytest.warns(UserWarning, match="left out 1 of 3 sounds"):
        assert len(load(tmp_path, labels="folders")) == 2


def test_bad_files_are_named_or_left_out(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no sounds in"):
        load(tmp_path)
    write(tmp_path / "a.wav", ramp(16))
    for make, message in [
        (lambda path: write(path, ramp(16), 44100), "b.wav has a rate of 44100 Hz, and not 8000"),
        (lambda path: path.write_bytes(b"not a sound"), "b.wav is not a WAV file"),
        (lambda path: path.write_bytes((tmp_path / "a.wav").read_bytes()[:-4]), "b.wav is cut off"),
    ]:
        make(tmp_path / "b.wav")
        with pytest.raises(ValueError, match=message):
            load(tmp_path)
        with pytest.warns(UserWarning, match=f"left out 1 of 2 sound files: .*{message}"):
            assert list(load(tmp_path, skip_bad=True).item_ids or ()) == ["a.wav"]
    with pytest.raises(ValueError, match=r"a\.wav has a rate of 8000 Hz, and not 16000"):
        load(tmp_path, rate=16000)
