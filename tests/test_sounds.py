"""WAV files: read with every width of amplitudes, and written for other programs."""

from __future__ import annotations

import struct
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from difftool.data.scaling import Scaling
from difftool.errors import UsageError
from difftool.figures.drawing import Drawing
from difftool.figures.formats import DrawingSpec
from difftool.sampling.writers import check, write, writer_of
from difftool_plugins.sounds.wav import open_wav, write_wav

RATE = 8000


def tone(channels: int = 1, length: int = 400) -> Any:
    steps = np.arange(length) / RATE
    return np.stack([(0.9 - 0.3 * c) * np.sin(2 * np.pi * 440 * (c + 1) * steps) for c in range(channels)])


@pytest.mark.parametrize(
    ("kind", "factor", "offset", "tolerance"),
    [
        ("uint8", 127.0, 128, 0.02),
        ("int16", 2.0**15 - 1, 0, 1e-4),
        ("int32", 2.0**31 - 1, 0, 1e-6),
        ("float32", 1.0, 0, 1e-6),
        ("float64", 1.0, 0, 1e-6),
    ],
)
def test_files_of_scipy_are_read(tmp_path: Path, kind: str, factor: float, offset: int, tolerance: float) -> None:
    wavfile = pytest.importorskip("scipy.io.wavfile")
    sound = tone(2)
    wavfile.write(tmp_path / "a.wav", RATE, (sound.T * factor + offset).astype(kind))
    header = open_wav(tmp_path / "a.wav")
    assert (header.rate, header.channels, header.length) == (RATE, 2, 400)
    np.testing.assert_allclose(header.read(0, 400), sound, atol=tolerance)
    np.testing.assert_array_equal(header.read(100, 50), header.read(0, 400)[:, 100:150])


def test_24_bits_are_read(tmp_path: Path) -> None:
    values = np.array([0, 1, -1, 2**23 - 1, -(2**23)])
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setparams((1, 3, RATE, 0, "NONE", ""))
        file.writeframes(b"".join(int(value).to_bytes(3, "little", signed=True) for value in values))
    np.testing.assert_array_equal(open_wav(tmp_path / "a.wav").read(0, 5)[0], (values / 2**23).astype(np.float32))


def test_python_and_scipy_read_what_is_written(tmp_path: Path) -> None:
    sound = tone(2)
    write_wav(tmp_path / "a.wav", sound, RATE)
    with wave.open(str(tmp_path / "a.wav")) as file:
        assert file.getparams()[:4] == (2, 2, RATE, 400)
        frames = np.frombuffer(file.readframes(400), "<i2").reshape(400, 2)
    np.testing.assert_allclose(frames.T / 2**15, sound, atol=2**-15)
    np.testing.assert_allclose(open_wav(tmp_path / "a.wav").read(0, 400), sound, atol=2**-15)
    write_wav(tmp_path / "b.wav", np.array([[-3.0, 3.0]]), RATE)
    assert open_wav(tmp_path / "b.wav").read(0, 2)[0].tolist() == [-1.0, 1 - 2**-15]


def wav_bytes(
    *, code: int = 1, bits: int = 16, channels: int = 1, size: int | None = None, data: bytes = b"\0" * 8
) -> bytes:
    form = struct.pack("<HHIIHH", code, channels, RATE, 0, 0, bits)
    extra = b"LIST" + struct.pack("<I", 3) + b"abc\0"  # a chunk of odd length has a byte more
    body = b"WAVE" + extra + b"fmt " + struct.pack("<I", 16) + form + b"data"
    return b"RIFF" + struct.pack("<I", 0) + body + struct.pack("<I", len(data) if size is None else size) + data


@pytest.mark.parametrize("size", [None, 0, 0xFFFFFFFF])
def test_other_chunks_and_streams_are_read(tmp_path: Path, size: int | None) -> None:
    (tmp_path / "a.wav").write_bytes(wav_bytes(size=size))
    assert open_wav(tmp_path / "a.wav").length == 4


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is not a WAV file"),
        (b"RIFF....AVI ", "is not a WAV file"),
        (wav_bytes()[:30], "has no sound in it"),
        (wav_bytes(data=b""), "has no sound in it"),
        (wav_bytes(size=100), "is cut off: 8 of 100 bytes"),
        (wav_bytes(code=85), "holds 16 bits in format 85"),
        (wav_bytes(bits=12), "holds 12 bits in format 1"),
        (wav_bytes(channels=0), "claims 0 channels"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "a.wav").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.wav") as caught:
        open_wav(tmp_path / "a.wav")
    assert words in str(caught.value)


def sounds(count: int = 3) -> Drawing:
    x = torch.from_numpy(np.stack([tone() * (k + 1) / count for k in range(count)])).float() / 0.5
    return Drawing(x=x, scaling=Scaling((0.0,), (0.5,)), title="t", form="sound", rate=RATE)


def test_sounds_lie_one_after_the_other_with_a_gap(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    write(writer_of(path)(gap=0.01), sounds(), path, overwrite=False)
    whole = open_wav(path).read(0, open_wav(path).length)[0]
    assert len(whole) == 3 * 400 + 2 * 80
    np.testing.assert_allclose(whole[480:880], tone()[0] * 2 / 3, atol=1e-4)
    assert not whole[400:480].any()


def test_a_folder_of_sounds(tmp_path: Path) -> None:
    write(writer_of(tmp_path / "x")(), sounds(), tmp_path / "x", overwrite=False)
    files = sorted(file.name for file in (tmp_path / "x").glob("[!.]*.wav"))
    assert files == ["0000.wav", "0001.wav", "0002.wav"]
    np.testing.assert_allclose(open_wav(tmp_path / "x" / "0002.wav").read(0, 400), tone(), atol=1e-4)


def test_other_forms_are_no_sound() -> None:
    with pytest.raises(UsageError, match=r"WAV files hold sound, but the samples have the form 'series'.*\.npy"):
        check(writer_of(Path("a.wav"))(), Path("a.wav"), DrawingSpec(shape=(1, 9), steps=2, form="series"))
