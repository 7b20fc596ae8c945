"""Runs whose network and sampler work on latents."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import IMAGES, Outcome, Run, last_of
from PIL import Image
from torch import Tensor, nn

import difftool
from difftool.components import Codec, Dataset
from difftool.data.batches import Batch, Batches
from difftool.data.facts import DataFacts
from difftool.data.latents import LatentSpace, latent_facts
from difftool.data.samples import PIXELS, Samples
from difftool.errors import DifftoolError, UsageError
from difftool.runs import checkpoint
from difftool.runs.folder import RunFolder
from difftool.sampling.plan import Plan
from difftool.settings import Sampling
from difftool.training.latents import Feed, encoded

CPU = torch.device("cpu")
LATENT = (*IMAGES, "--codec", "pca", "--codec.size", 4, "--codec.components", 6, "--held-out", 8, "--steps", 6)


@pytest.fixture(scope="module")
def latent_run(shared: Callable[..., Path]) -> Path:
    return shared("latent", *LATENT)


def ok(outcome: Outcome) -> Outcome:
    assert outcome.code == 0, outcome.err
    return outcome


class Affine(nn.Module):
    """Twice the items plus 3: latents whose moments are known."""

    def encode(self, x: Tensor) -> Tensor:
        return 2.0 * x + 3.0

    def decode(self, z: Tensor) -> Tensor:
        return (z - 3.0) / 2.0


class Double(Codec, name="double"):
    def build(self, spec: difftool.CodecSpec) -> nn.Module:
        return Affine()


def pictures(n: int = 24, **changes: Any) -> Samples:
    """Return colour images of 8 x 8 pixels whose channels differ in mean and deviation."""
    random = torch.Generator().manual_seed(0)
    means, stds = torch.tensor([60.0, 120.0, 200.0]).view(3, 1, 1), torch.tensor([10.0, 30.0, 20.0]).view(3, 1, 1)
    items = (means + stds * torch.randn(n, 3, 8, 8, generator=random)).clamp(0, 255).to(torch.uint8)
    return Samples(items=items, shape=(3, 8, 8), **{**PIXELS, **changes})


def space_of(samples: Samples, component: Codec | None = None) -> LatentSpace:
    component = component or Double()
    data, codec = DataFacts.of(samples), component.build(difftool.CodecSpec(shape=samples.shape))
    assert codec is not None
    x = data.scaling.to_model(samples.take_items(range(len(samples))))
    return LatentSpace(codec, data, latent_facts(component, codec, data, x), f"codec {component.name}")


class TestSpace:
    def test_latents_have_mean_0_in_each_channel_and_deviation_1_over_all(self) -> None:
        samples = pictures()
        space = space_of(samples)
        z = space.encode(space.data.scaling.to_model(samples.take_items(range(24))))
        torch.testing.assert_close(z.mean(dim=(0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
        assert float(z.std(correction=0)) == pytest.approx(1.0, abs=1e-5)
        assert space.facts.std == pytest.approx(1.0, abs=1e-5)
        deviations = z.std(dim=(0, 2, 3), correction=0)
        assert float(deviations[1] / deviations[0]) == pytest.approx(3.0, rel=0.1)  # channels keep their proportions

    def test_decoding_undoes_encoding(self) -> None:
        samples = pictures()
        space = space_of(samples)
        x = space.data.scaling.to_model(samples.take_items(range(24)))
        torch.testing.assert_close(space.decode(space.encode(x)), x, atol=1e-5, rtol=0)

    def test_latents_are_unbounded_unless_they_keep_the_range(self) -> None:
        assert space_of(pictures()).facts.bounds is None
        kept = space_of(pictures(), type("Kept", (Double,), {"keeps_range": True})())
        assert (kept.facts.bounds, kept.facts.shift, kept.facts.scale) == ((-1.0, 1.0), (0.0,), (1.0,))

    def test_decoding_can_be_differentiated(self) -> None:
        space = space_of(pictures())
        z = torch.zeros(1, 3, 8, 8, requires_grad=True)
        space.decode(z).sum().backward()
        assert z.grad is not None
        torch.testing.assert_close(z.grad, torch.full_like(z, space.facts.scale[0] / 2))

    @pytest.mark.parametrize(
        ("encode", "words"),
        [
            (lambda x: x / 0, "its latents hold NaN or infinite numbers"),
            (lambda x: x[:1], "it must return float tensors with an entry for each item"),
            (lambda x: x.long(), "it must return float tensors"),
            (lambda x: x.flatten(1).mean(1), "its latents have no shape"),
            (lambda _: 1 / 0, "codec double failed: ZeroDivisionError"),
        ],
    )
    def test_unsuitable_latents_are_refused(self, encode: Callable[[Tensor], Tensor], words: str) -> None:
        class Bad(Affine):
            def encode(self, x: Tensor) -> Tensor:
                return encode(x)

        data = DataFacts.of(pictures())
        with pytest.raises(DifftoolError, match=words):
            latent_facts(Double(), Bad(), data, torch.rand(4, 3, 8, 8))

    def test_a_condition_image_of_another_shape_is_refused(self) -> None:
        samples = pictures(images=torch.zeros(24, 1, 8, 8, dtype=torch.uint8))
        with pytest.raises(UsageError, match="cannot encode condition images of 1x8x8"):
            space_of(samples)


class TestFeed:
    """What is encoded once is what would be encoded anew for each batch."""

    def batches(self, feed: Feed) -> list[Batch]:
        found = Batches(feed.train, 8, seed=0, encode=feed.encode).start(0)
        return [next(found) for _ in range(4)]

    def test_both_ways_give_the_same_latents_and_condition_images(self) -> None:
        samples = pictures(images=255 - pictures().items)  # type: ignore[operator]
        space = space_of(samples)
        once = Feed.of(samples, None, space, component_of(samples), CPU)
        random = replace(samples, augment=lambda items, _generator, images: (items, images))
        each = Feed.of(random, None, space, component_of(samples), CPU)
        assert once.encode is None
        assert each.encode is not None
        for a, b in zip(self.batches(once), self.batches(each), strict=True):
            assert a.condition is not None
            assert b.condition is not None
            torch.testing.assert_close(a.items, b.items)
            torch.testing.assert_close(a.condition.image, b.condition.image)
            x_0, image = space.facts.scaling.to_model(a.items), space.facts.model_condition(a.condition)
            assert image is not None
            torch.testing.assert_close(space.decode(x_0), -space.decode(image.image), atol=1e-5, rtol=0)  # type: ignore[arg-type]

    def test_latents_of_files_lie_in_the_cache_and_are_made_once(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        samples = pictures()
        listed = replace(samples, items=[*samples.items], fingerprint="x", item_ids=[*map(str, range(24))])  # type: ignore[arg-type]
        space, calls = space_of(samples), []
        codec = space.codec.encode
        monkeypatch.setattr(space.codec, "encode", lambda x: (calls.append(len(x)), codec(x))[1])  # type: ignore[operator]
        first = encoded(listed, space, component_of(samples), CPU)
        assert sum(calls) == 24
        second = encoded(listed, space, component_of(samples), CPU)
        assert sum(calls) == 24
        assert torch.equal(first.items, second.items)  # type: ignore[arg-type]
        (file,) = tmp_path.rglob("*.npy")
        torn = file.read_bytes()[:-5]
        file.unlink()  # `first` lies in it
        file.write_bytes(torn)
        assert torch.equal(encoded(listed, space, component_of(samples), CPU).items, first.items)  # type: ignore[arg-type]
        other = replace(listed, item_ids=[*map(str, range(1, 25))])
        assert sum(calls) == 48
        encoded(other, space, component_of(samples), CPU)
        assert (sum(calls), len([*tmp_path.rglob("*.npy")])) == (72, 2)

    def test_latents_that_fill_a_device_are_read_from_their_file(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        monkeypatch.setattr("difftool.training.latents.MOST_IN_MEMORY", 0)
        samples = pictures(images=255 - pictures().items)  # type: ignore[operator]
        listed = replace(samples, items=[*samples.items], fingerprint="x", item_ids=[*map(str, range(24))])  # type: ignore[arg-type]
        space = space_of(samples)
        held = Feed.of(samples, None, space, component_of(samples), CPU)
        read = Feed.of(listed, None, space, component_of(samples), CPU)
        assert (held.train.in_memory, read.train.in_memory) == (True, False)
        for a, b in zip(self.batches(held), self.batches(read), strict=True):
            assert torch.equal(a.items, b.items)
            assert torch.equal(a.condition.image, b.condition.image)  # type: ignore[union-attr, arg-type]

    def test_a_cache_that_cannot_be_written_is_done_without(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "file").touch()
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
        samples = pictures()
        listed = replace(samples, items=[*samples.items], fingerprint="x", item_ids=[*map(str, range(24))])  # type: ignore[arg-type]
        found = encoded(listed, space_of(samples), component_of(samples), CPU)
        assert torch.equal(found.items, encoded(samples, space_of(samples), component_of(samples), CPU).items)  # type: ignore[arg-type]

    def test_noise_of_items_has_no_latents(self) -> None:
        with pytest.raises(UsageError, match="codec pca: the dataset brings the noise of its items"):
            difftool.train(
                dataset=pictures(noise=torch.zeros(24, 3, 8, 8)), codec="pca", steps=1, progress=False, out="unused"
            )


def component_of(samples: Samples) -> Dataset:
    from difftool.data.memory import Memory

    return Memory.of(samples)


class TestRuns:
    def test_the_shared_file_decodes_itself(self, run: Run, latent_run: Path) -> None:
        shutil.copy(latent_run / "model.safetensors", "x.safetensors")
        few = ("-n", 4, "--steps", 3, "--batch-size", 4)
        ok(run("sample", "x.safetensors", *few, "--out", "x.npy", "--out", "x.png"))
        ok(run("sample", latent_run, *few, "--out", "run.npy"))
        x = np.load("x.npy")
        assert x.shape == (4, *np.load("run.npy").shape[1:])
        assert x.dtype == np.uint8
        assert (x == np.load("run.npy")).all()
        assert b"/" not in json.dumps(checkpoint.load(Path("x.safetensors"))[1]["latents"]).encode()

    def test_samples_are_the_decoded_states_of_the_sampler(self, latent_run: Path) -> None:
        from difftool.sampling.loop import collect, sample

        model = difftool.load(latent_run)
        plan = Plan.of(model, Sampling(steps=3, num_samples=5, batch_size=3))
        states = [step.x for step in sample(model, plan) if step.done]
        assert model.latents is not None
        assert {tuple(z.shape[1:]) for z in states} == {model.space.shape}
        decoded = torch.cat([model.decode(z) for z in states])
        assert torch.equal(collect(model, plan).x, decoded.clamp(-1, 1))
        assert float(decoded.abs().max()) > 1.0
        free = replace(plan, settings=Sampling(steps=3, num_samples=5, batch_size=3, clip=False))
        assert torch.equal(collect(model, free).x, decoded)
        assert tuple(model.sample(3, steps=2).shape) == (3, *model.data.shape)

    def test_an_image_keeps_its_own_pixels_where_it_is_not_painted(self, run: Run, latent_run: Path) -> None:
        side = difftool.load(latent_run).data.shape[1]
        random = np.random.default_rng(0)
        pixels = random.integers(0, 255, (side, side, 3), dtype=np.uint8)
        mask = np.zeros((side, side), dtype=np.uint8)
        mask[: side // 2] = 255
        Image.fromarray(pixels).save("a.png")
        Image.fromarray(mask).save("m.png")
        ok(run("sample", latent_run, "-n", 2, "--steps", 3, "--inpaint", "a.png", "--mask", "m.png", "--out", "x.npy"))
        x = np.load("x.npy")
        assert (x[:, side // 2 :] == pixels[side // 2 :]).all()
        assert (x[:, : side // 2] != pixels[: side // 2]).any()

    def test_a_start_from_an_image_is_near_it(self, run: Run, latent_run: Path) -> None:
        model = difftool.load(latent_run)
        samples = model.load_samples()
        image = samples.take_items([3])[0].movedim(0, -1).numpy()
        Image.fromarray(image).save("a.png")
        start = ("--init", "a.png", "--strength", 0.1, "--steps", 20)
        ok(run("sample", latent_run, "-n", 2, *start, "--out", "x.npy"))
        x = np.load("x.npy").astype(float)
        assert np.abs(x - image).mean() < 0.5 * np.abs(x[:, ::-1] - image).mean()

    def test_pictures_reconstruction_and_comparison_are_in_the_data(self, run: Run, latent_run: Path) -> None:
        outcome = ok(run("reconstruct", latent_run, "--out", "r.png", "--json"))
        assert len(json.loads(outcome.out)["levels"]) == 5
        ok(run("train", *last_of((*LATENT, "--steps", 2, "--preview-every", 1, "--out", "p"))))
        assert {file.stem for file in Path("p/previews").iterdir()} == {
            f"{kind}-{step:06d}" for kind in ("samples", "panel") for step in (1, 2)
        }
        ok(run("compare", latent_run, "-n", 4, "--calls", 2, "--samplers", "ddim", "--reference", 4, "--out", "c.png"))
        assert Path("r.png").exists()
        assert Path("c.png").exists()

    def test_a_run_in_latents_can_be_started_from_another(self, run: Run, latent_run: Path) -> None:
        outcome = ok(run("train", *LATENT[:-1], 1, "--init-from", latent_run, "--out", "r"))
        assert "left behind" not in outcome.err
        tensors = [checkpoint.load(folder / "model.safetensors")[0] for folder in (latent_run, Path("r"))]
        assert all(torch.equal(tensors[1][name], t) for name, t in tensors[0].items() if name.startswith("codec."))

    def test_the_threshold_of_unbounded_latents_is_refused(self, run: Run, latent_run: Path) -> None:
        outcome = run("sample", latent_run, "--threshold", 0.9)
        assert "--threshold: the latents of " in outcome.error

    def test_averages_hold_the_codec_and_snapshots_do_not(self, run: Run) -> None:
        averages = ("--ema", "0.9,0.99", "--ema-lengths", 0.1, "--snapshot-every", 2)
        ok(run("train", *LATENT[:-1], 4, *averages, "--out", "r"))
        for file in Path("r/averages").iterdir():
            tensors = checkpoint.load(file)[0]
            assert any(name.startswith("codec.") for name in tensors) != ("step" in file.name)
        ok(run("sample", "r/averages/ema-0.99.safetensors", "-n", 1, "--steps", 2, "--out", "a.npy"))
        ok(run("sample", "r", "--ema-length", 0.12, "-n", 1, "--steps", 2, "--out", "b.npy"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d, _: d.pop("latents"), "describe no latents"),
        (lambda d, _: d.update(latents=3), "describe no latents"),
        (lambda d, _: d["latents"].update(shape=[10**9, 10**9]), "describe no latents that difftool knows"),
        (lambda d, _: d["latents"].update(scale=[0.0]), "describe no latents that difftool knows"),
        (lambda d, _: d["latents"].update(shift=[0.0, 0.0]), "describe no latents that difftool knows"),
        (lambda d, _: d["latents"].update(shape=[6, 4, 4]), "codec pca: it returned (1, 3, 16, 16), not (1, 3, 8, 8)"),
        (lambda d, _: d["codec"].update(components=7), "its weights do not fit its codec pca"),
        (lambda d, _: d.update(codec={"name": "none"}), "its codec none is none"),
        (lambda _, t: [t.pop(k) for k in list(t) if k.startswith("codec.")], "its weights do not fit its codec pca"),
        (lambda _, t: t.update({"other.x": torch.zeros(1)}), "other.x belongs to none of network, codec"),
    ],
)
def test_a_file_with_other_latents_is_refused(run: Run, latent_run: Path, change: Any, words: str) -> None:
    tensors, document = checkpoint.load(latent_run / "model.safetensors")
    document.pop("format")
    change(document, tensors)
    checkpoint.save(Path("x.safetensors"), tensors, document)
    outcome = run("sample", "x.safetensors", "-n", 1, "--steps", 1, "--out", "x.npy")
    assert outcome.code == 1
    assert words in outcome.error
    assert "Traceback" not in outcome.err


def test_a_state_makes_room_for_the_codec(run: Run) -> None:
    dry = ("--optimizer", "adam", "--dry-run", "--json")
    plain, latent = (json.loads(ok(run("train", *a, *dry)).out) for a in ((*IMAGES,), LATENT))
    kept = 6 * 48 + 48 + 1  # components, mean and the error of patches of 3 x 4 x 4
    networks = 4 * (latent["parameters"] - plain["parameters"]) * 4  # weights, average, two moments
    assert latent["state_bytes"] - plain["state_bytes"] == pytest.approx(networks + 4 * kept, abs=64)


def test_a_resumed_run_takes_the_codec_of_its_state(run: Run, latent_run: Path) -> None:
    """Also where its data would give another: the codec is fitted once."""
    shutil.copytree(latent_run, "r")
    state = RunFolder(Path("r")).saved_states()[0]
    tensors, document = checkpoint.load(state)
    document.pop("format")
    name = next(name for name in tensors if name.startswith("codec.") and tensors[name].is_floating_point())
    tensors[name] = tensors[name] + 0.25
    checkpoint.save(state, tensors, document)
    ok(run("train", "--resume", "r", "--steps", 8))
    assert torch.equal(checkpoint.load(Path("r/model.safetensors"))[0][name], tensors[name])
    assert os.listdir("r/state")
