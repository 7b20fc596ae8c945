"""Models with conditions: trained on vectors, images and tokens, resumed, read from a lone file, and sampled."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Run
from PIL import Image
from torch import Tensor

import difftool
from difftool import BackboneSpec, Condition, ConditionSpec, DifftoolError, Samples, UsageError, component
from difftool.data.own_images import condition_pixels
from difftool.data.samples import PIXELS
from difftool.diffusion.condition_image import with_image_beside
from difftool.sampling.loop import sample
from difftool.sampling.model import Model
from difftool.sampling.plan import Plan
from difftool.settings import Sampling
from difftool_plugins.backbones import MLP, UNet

SMALL: dict[str, Any] = {"dim": 8, "dim_mults": (1, 2), "groups": 4, "head_dim": 8}
QUICK: dict[str, Any] = {
    "batch_size": 128,
    "lr": 1e-2,
    "warmup": 0,
    "ema": (0.9,),
    "preview_every": "0",
    "progress": False,
}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def circle(count: int = 1000) -> Samples:
    """Points on a circle of radius 10 around (100, 0), whose vector is their direction, in units of its own."""
    angle = 2 * torch.pi * torch.rand(count, generator=torch.Generator().manual_seed(0))
    direction = torch.stack([angle.cos(), angle.sin()], 1)
    items = 10 * direction + torch.tensor([100.0, 0.0])
    return Samples(items=items, shape=(2,), shift=(100.0, 0.0), scale=(7.0, 7.0), vectors=50 + 3 * direction)


def flat_images(field: str, count: int = 64) -> Samples:
    """Images of one gray each, which the condition tells: as an image, or as two tokens, one of which holds it."""
    gray = torch.randint(0, 256, (count, 1, 1, 1), generator=torch.Generator().manual_seed(0))
    items = gray.expand(count, 1, 4, 4).to(torch.uint8).contiguous()
    if field == "image":
        return Samples(items=items, shape=(1, 4, 4), images=255 - items, **PIXELS)
    told = gray.view(count, 1).float() / 127.5 - 1
    tokens = torch.stack([torch.cat([told, 0 * told], 1), random(count, 2)], 1)
    return Samples(items=items, shape=(1, 4, 4), tokens=tokens, **PIXELS)


@pytest.fixture(scope="module")
def vector_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the circle, trained until the vector matters."""
    run = tmp_path_factory.mktemp("vector") / "run"
    backbone = component("backbone", "mlp", width=32, depth=3)
    difftool.train(dataset=circle(), backbone=backbone, steps=500, out=run, **QUICK)
    return run


def test_a_model_learns_to_use_its_vector(vector_run: Path) -> None:
    model = difftool.load(vector_run)
    directions = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-0.6, 0.8]])
    samples = model.sample(60, vector=50 + 3 * directions, steps=20)
    expected = torch.tensor([100.0, 0.0]) + 10 * directions.repeat(20, 1)
    assert float((samples - expected).norm(dim=1).mean()) < 2.0  # of a radius of 10
    spread = model.sample(60, steps=20) - torch.tensor([100.0, 0.0])
    assert float(spread.mean(0).norm()) < 5.0, "without a vector, it samples all of the circle"


def test_a_lone_file_knows_its_conditions(vector_run: Path, run: Run) -> None:
    shutil.copy(vector_run / "model.safetensors", "m.safetensors")
    assert Model.read(Path("m.safetensors")).data.condition == ConditionSpec(vector=2)
    out = run("sample", "m.safetensors", "--vector", "53,50", "-n", 4, "--out", "a.npz", "--out", "a.png", "--json")
    assert out.code == 0, out.err
    assert "4 samples under vector 53,50" in out.err
    np.save("v.npy", np.array([[53.0, 50], [50, 53], [47, 50]]))
    assert run("sample", "m.safetensors", "--vector", "v.npy", "--out", "b.npz").code == 0
    a, b = np.load("a.npz"), np.load("b.npz")
    assert a["vectors"].tolist() == [[53, 50]] * 4
    assert len(b["samples"]) == 3, "a row for each sample is the default of -n"
    assert np.array_equal(b["vectors"], np.load("v.npy"))
    np.testing.assert_allclose(a["samples"][0], b["samples"][0], rtol=1e-5)
    assert "a vector of 2" in run("info", "m.safetensors").out


def test_the_rows_repeat_and_batches_change_nothing(vector_run: Path) -> None:
    model, rows = difftool.load(vector_run), 50 + 3 * random(3, 2)
    whole = model.sample(7, vector=rows, steps=5)
    torch.testing.assert_close(model.sample(7, vector=rows, steps=5, batch_size=2), whole, rtol=1e-4, atol=1e-3)
    longer = torch.cat([rows, rows, rows])[:7]
    assert torch.equal(model.sample(7, vector=longer.tolist(), steps=5), whole)
    plan = Plan.of(model, Sampling(), conditions={"vector": rows.numpy()})
    assert plan.num_samples == 3
    condition = plan.condition(2, 3)
    assert condition is not None
    assert torch.equal(condition.vector, rows[[2, 0, 1]].float())


def test_guidance_pushes_away_from_the_mean_of_all(vector_run: Path) -> None:
    model, vector = difftool.load(vector_run), [53.0, 50.0]
    reach = [float(model.sample(50, vector=vector, guidance=w, steps=20)[:, 0].mean()) for w in (0.0, 1.0, 3.0)]
    assert reach[0] < reach[1] < reach[2]
    u, w_0 = model.sample(9, steps=8), model.sample(9, vector=vector, guidance=0.0, steps=8)
    torch.testing.assert_close(w_0, u, rtol=1e-5, atol=1e-4)


def test_paths_and_other_commands_take_conditions(vector_run: Path, run: Run) -> None:
    assert run("sample", vector_run, "--vector", "53,50", "--interpolate", "0,1", "--out", "p.npy").code == 0
    assert len(np.load("p.npy")) == 9
    shutil.copytree(vector_run, "copy")
    assert run("sample", "copy", "--vector", "53,50", "--precision", "bf16", "-n", 5, "--out", "q.npy").code == 0
    assert np.isfinite(np.load("q.npy")).all()


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "size": ({"vector": [1.0, 2.0, 3.0]}, r"--vector: must have the shape \(2,\) or \(N, 2\), not \(3,\)"),
    "text": ({"vector": "1,x"}, "--vector: must be numbers such as 0.3,1.2 or a .npy file, not '1,x'"),
    "count": ({"vector": "1,2,3"}, "--vector: takes 2 numbers, not 3"),
    "nan": ({"vector": [1.0, float("nan")]}, "--vector: holds NaN or infinite numbers"),
    "nan in text": ({"vector": "1,nan"}, "--vector: holds NaN or infinite numbers"),
    "ragged": ({"vector": [[1.0, 2.0], [3.0]]}, "--vector: is a list whose rows differ in length"),
    "no rows": ({"vector": np.zeros((0, 2))}, r"--vector: must have the shape"),
    "texts": ({"vector": np.array(["a", "b"])}, "--vector: the numbers must be numbers|--vector"),
    "missing file": ({"vector": "gone.npy"}, "--vector: gone.npy: No such file"),
    "other field": ({"tokens": np.zeros((2, 2))}, "--tokens: .* takes a vector"),
    "image": ({"image": "x.png"}, "--image: .* takes a vector"),
    "label": ({"label": "1"}, "--label: .* has no classes"),
    "nothing to guide towards": ({"guidance": 2.0}, "--guidance: needs a --vector to guide towards"),
}


@pytest.mark.parametrize(("settings", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_conditions_that_are_refused(vector_run: Path, run: Run, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(DifftoolError, match=words):
        difftool.load(vector_run).sample(2, **settings)


def test_files_of_conditions_that_are_refused(vector_run: Path, run: Run) -> None:
    Path("text.npy").write_text("no array")
    np.save("objects.npy", np.array([{}, []], dtype=object), allow_pickle=True)
    np.save("long.npy", np.zeros((4, 3)))
    for name, words in (
        ("text.npy", "is not a .npy file of numbers, or is damaged"),
        ("objects.npy", "is not a .npy file of numbers, or is damaged"),
        ("long.npy", "must have the shape (2,) or (N, 2), not (4, 3)"),
        (".", "must be numbers such as"),
    ):
        assert words in run("sample", vector_run, "--vector", name, "--out", "x.npy").error
    assert not Path("x.npy").exists()


def test_a_model_without_dropout_needs_its_condition(run: Run) -> None:
    backbone = component("backbone", "mlp", width=8, depth=1)
    difftool.train(dataset=circle(64), backbone=backbone, steps=2, condition_dropout=0.0, out="run", **QUICK)
    model = difftool.load("run")
    with pytest.raises(UsageError, match="--vector: the model was trained with --condition-dropout 0 and knows no"):
        model.sample(2)
    with pytest.raises(UsageError, match="has nothing to guide away from"):
        model.sample(2, vector=[50.0, 50.0], guidance=2.0)
    assert model.sample(2, vector=[50.0, 50.0], steps=2).shape == (2, 2)


def test_all_conditions_are_given_or_none(run: Run) -> None:
    data = circle(60)
    labelled = Samples(
        items=data.items,
        shape=(2,),
        scale=(7.0, 7.0),
        shift=(100.0, 0.0),
        vectors=data.vectors,
        labels=torch.arange(60) % 2,
        class_names=("cat", "dog"),
    )
    backbone = component("backbone", "mlp", width=8, depth=1)
    model = difftool.train(dataset=labelled, backbone=backbone, steps=2, **QUICK, out="run")
    with pytest.raises(UsageError, match=r"--label: .* takes a vector too; add --vector, or leave both out"):
        model.sample(2, label="cat")
    with pytest.raises(UsageError, match=r"--vector: .* takes a class too; add --label, or leave both out"):
        model.sample(2, vector=[50.0, 50.0])
    out = run("sample", "run", "--label", "dog", "--vector", "50,50", "-n", 2, "--steps", 2, "--out", "x.safetensors")
    assert "2 samples under class dog, vector 50,50" in out.err, out.err


@pytest.mark.parametrize("field", ["image", "tokens"])
def test_a_model_of_images_learns_to_use(field: str, run: Run) -> None:
    samples = flat_images(field)
    backbone = component("backbone", "unet", dim=8, dim_mults=(1,), groups=4, head_dim=8)
    quick = {**QUICK, "batch_size": 32, "lr": 5e-3}
    model = difftool.train(dataset=samples, backbone=backbone, steps=250, out="run", **quick)
    rows = (samples.images if field == "image" else samples.tokens)[:8]  # type: ignore[index]
    drawn = model.sample(8, **{field: rows}, steps=10)
    error = float((drawn - samples.items[:8].float()).abs().mean())
    others = float((drawn.roll(1, 0) - samples.items[:8].float()).abs().mean())
    assert error < min(30.0, others / 2), others


def test_a_run_with_a_vector_resumes_exactly(run: Run) -> None:
    arguments = (
        *("--dataset", "swiss-roll", "--dataset.condition", "angle", "--dataset.n", 200, "--backbone.width", 8),
        *("--backbone.depth", 1, "--batch-size", 32, "--preview-every", 0, "--checkpoint-every", 4),
    )
    assert run("train", *arguments, "--steps", 8, "--out", "whole").code == 0
    out = run("train", *arguments, "--steps", 4, "--out", "parts")
    assert "a vector of 1" in out.err, out.err
    assert run("train", "--resume", "parts", "--steps", 8).code == 0
    tensors = [difftool.load(name).network.state_dict() for name in ("whole", "parts")]
    assert all(torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[0])


def test_what_a_backbone_does_not_take_is_refused_before_training(run: Run) -> None:
    class Deaf(MLP, name="deaf"):
        """Takes labels alone."""

        conditions = ("label",)

    with pytest.raises(UsageError, match=r"backbone deaf: does not take .*\(a vector of 2\); .*--condition none"):
        difftool.train(dataset=circle(50), backbone=Deaf(), steps=1, **QUICK)
    model = difftool.train(dataset=circle(50), backbone=Deaf(), steps=1, condition=("none",), **QUICK)
    assert not model.data.condition


# Networks


FIELDS = ConditionSpec(classes=3, vector=2, tokens=(4, 5))
CASES = [
    pytest.param(MLP(width=16), (2,), ("label", "vector"), id="mlp"),
    pytest.param(MLP(width=16, time="plain"), (2,), ("label", "vector"), id="mlp-plain"),
    pytest.param(UNet(**SMALL), (1, 8, 8), ("label", "vector", "tokens"), id="unet"),
    pytest.param(UNet(**SMALL, attention=("linear", "none")), (1, 8, 8), ("tokens",), id="unet-linear"),
]


def conditions(spec: ConditionSpec, count: int = 4, seed: int = 0) -> Condition:
    fields = {name: random(count, *shape, seed=seed) for name, shape in spec.shapes.items()}
    if "label" in fields:
        fields["label"] = torch.arange(count) % 3
    hidden = torch.arange(count) % 2 == 1
    return Condition(**fields, hidden=torch.zeros_like(hidden)).hide(hidden)


def built(backbone: Any, shape: tuple[int, ...], fields: tuple[str, ...], image: int = 0) -> torch.nn.Module:
    torch.manual_seed(0)
    spec = BackboneSpec(shape=shape, out_channels=shape[0], condition=FIELDS.only(fields), image_channels=image)
    network = backbone.build(spec)
    for parameter in network.parameters():  # none of them zero, so that every part has an effect
        torch.nn.init.normal_(parameter, std=0.3)
    return network.eval()  # type: ignore[no-any-return]


@pytest.mark.parametrize(("backbone", "shape", "fields"), CASES)
def test_a_network_uses_what_is_shown_and_nothing_else(backbone: Any, shape: Any, fields: tuple[str, ...]) -> None:
    network, x, t = built(backbone, shape, fields), random(4, *shape), torch.linspace(10, 900, 4)
    cond = conditions(FIELDS.only(fields))
    output = network(x, t, cond)
    for name in fields:
        garbage = {name: getattr(cond, name) + 1} if name != "label" else {name: (cond.label + 1) % 3}  # type: ignore[operator]
        other = network(x, t, Condition(**{**cond.tensors(), **garbage}))
        change = (other - output).flatten(1).abs().amax(1)
        assert (change > 1e-4).tolist() == [True, False, True, False], f"{name}: {change}"
    nothing = network(x, t, None)
    torch.testing.assert_close(nothing[1::2], output[1::2])
    shown = Condition(**{**cond.tensors(), "hidden": torch.zeros(4, dtype=torch.bool)})
    assert float((network(x, t, shown) - output).detach().flatten(1).abs().amax(1)[1::2].min()) > 1e-4, (
        "hidden is not zero"
    )
    with pytest.raises(ValueError, match="this network was built with"):
        network(x, t, Condition(**{name: v for name, v in cond.tensors().items() if name != fields[0]}))
    with pytest.raises(ValueError, match="this network was built without condition images"):
        network(x, t, Condition(**cond.tensors(), image=random(4, 1, 8, 8)))


@pytest.mark.parametrize(("backbone", "shape", "fields"), CASES)
def test_a_network_with_conditions_compiles_whole(backbone: Any, shape: Any, fields: tuple[str, ...]) -> None:
    network, x, t = built(backbone, shape, fields), random(4, *shape), torch.linspace(10, 900, 4)
    cond = conditions(FIELDS.only(fields))
    compiled: Callable[..., Tensor] = torch.compile(network, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x, t, cond), network(x, t, cond))
    with torch.autocast("cpu", torch.bfloat16):
        half = network(x, t, cond).float()
    assert bool(half.isfinite().all())


def test_cross_attention_by_its_formula() -> None:
    """x + out(softmax(q k^T / sqrt(d)) v), head by head."""
    from difftool_plugins.backbones.networks.cross_attention import CrossAttention

    torch.manual_seed(0)
    layer = CrossAttention(channels=8, context=6, heads=2, head_dim=4, groups=2, zero=False)
    x, context = random(2, 8, 3, 3), random(2, 5, 6)
    q = layer.q(layer.norm(x)).flatten(2).transpose(1, 2)
    k, v = (context @ layer.kv.weight.T).chunk(2, dim=-1)
    heads = []
    for head in range(2):
        part = slice(4 * head, 4 * head + 4)
        weights = (q[..., part] @ k[..., part].transpose(1, 2) / 2).softmax(-1)
        heads.append(weights @ v[..., part])
    mixed = torch.cat(heads, -1).transpose(1, 2).reshape(2, 8, 3, 3)
    torch.testing.assert_close(layer(x, context), x + layer.out(mixed), rtol=1e-4, atol=1e-5)
    fresh = CrossAttention(channels=8, context=6, heads=2, head_dim=4, groups=2)
    assert torch.equal(fresh(x, context), x)


def test_tokens_need_an_attention() -> None:
    spec = BackboneSpec(shape=(1, 8, 8), out_channels=1, condition=ConditionSpec(tokens=(4, 5)))
    with pytest.raises(ValueError, match="tokens act where attention is, and there is none"):
        UNet(**SMALL, attention=("none",), middle="none").build(spec)


def test_the_image_comes_after_the_channels_of_the_input() -> None:
    seen: list[Any] = []

    def network(x: Tensor, t: Tensor, cond: Condition | None) -> Tensor:
        seen.append((x, cond))
        return x[:, :1]

    x, t = random(4, 1, 8, 8), torch.zeros(4)
    cond = conditions(ConditionSpec(vector=2, image=(2, 8, 8)))
    with_image_beside(network)(x, t, cond)
    with_image_beside(network)(x.to(memory_format=torch.channels_last), t, conditions(ConditionSpec(image=(2, 8, 8))))
    (joined, rest), (_, nothing) = seen
    assert torch.equal(joined, torch.cat([x, cond.image], 1))  # type: ignore[list-item]
    assert rest.image is None
    assert rest.vector is cond.vector
    assert rest.hidden is cond.hidden
    assert nothing is None, "a network without other conditions gets none"
    spec = BackboneSpec(shape=(3, 8, 8), out_channels=3, self_condition=True, image_channels=2)
    assert spec.in_channels == 8


# Condition images from files


def test_small_images_are_repeated_and_others_scaled(tmp_path: Path) -> None:
    small = np.arange(12, dtype=np.uint8).reshape(2, 6) * 20
    Image.fromarray(small).save(tmp_path / "small.png")
    pixels = condition_pixels(tmp_path / "small.png", 1, (8, 24))
    assert torch.equal(pixels[0], torch.from_numpy(small).repeat_interleave(4, 0).repeat_interleave(4, 1))
    assert torch.equal(condition_pixels(tmp_path / "small.png", 1, (2, 6))[0], torch.from_numpy(small))
    assert condition_pixels(tmp_path / "small.png", 3, (5, 5)).shape == (3, 5, 5)


def test_alpha_is_a_channel(tmp_path: Path) -> None:
    rgba = np.full((4, 4, 4), 200, dtype=np.uint8)
    rgba[:2, :, 3], rgba[2:, :, 3] = 0, 255
    Image.fromarray(rgba).save(tmp_path / "rgba.png")
    Image.fromarray(rgba[..., :3]).save(tmp_path / "rgb.png")
    four = condition_pixels(tmp_path / "rgba.png", 4, (4, 4))
    assert four[:, 0, 0].tolist() == [0, 0, 0, 0], "colours under alpha 0 are black"
    assert four[:, 3, 0].tolist() == [200, 200, 200, 255]
    assert condition_pixels(tmp_path / "rgba.png", 2, (4, 4))[:, 3, 3].tolist() == [200, 255]
    assert condition_pixels(tmp_path / "rgb.png", 4, (4, 4))[:, 0, 0].tolist() == [200, 200, 200, 255]


@pytest.fixture(scope="module")
def image_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("image") / "run"
    backbone = component("backbone", "unet", **{**SMALL, "dim_mults": (1,)})
    quick = {**QUICK, "batch_size": 8}
    difftool.train(dataset=flat_images("image", 16), backbone=backbone, steps=2, out=run, **quick)
    return run


def test_samples_of_images_in_files(image_run: Path, run: Run) -> None:
    Path("folder").mkdir()
    for k in range(3):
        Image.fromarray(np.full((2, 2), 80 * k, dtype=np.uint8)).save(f"folder/{k}.png")
    Path("folder/notes.txt").write_text("no image")
    out = run("sample", image_run, "--image", "folder", "--steps", 2, "--out", "a.npz", "--out", "a.png", "--json")
    assert out.code == 0, out.err
    assert "3 samples under image folder" in out.err
    arrays = np.load("a.npz")
    assert arrays["images"].shape == arrays["samples"].shape == (3, 4, 4, 1)
    assert arrays["images"][:, 0, 0, 0].tolist() == [0, 80, 160]
    one = run("sample", image_run, "--image", "folder/1.png", "--steps", 2, "-n", 2, "--out", "b.npz", "--out", "b.gif")
    assert one.code == 0, one.err
    assert np.load("b.npz")["images"][:, 0, 0, 0].tolist() == [80, 80]
    assert run("sample", image_run, "--image", "folder/1.png", "--strip", 3, "-n", 2, "--out", "c.png").code == 0
    Path("empty").mkdir()
    Path("damaged.png").write_bytes(b"no image")
    for name, words in (
        ("empty", "--image: empty holds no image"),
        ("damaged.png", "--image: damaged.png: is not an image of the formats"),
        ("gone.png", "--image: gone.png: No such file"),
    ):
        assert words in run("sample", image_run, "--image", name).error
    for name, words in (("--init", "folder/2.png"), ("--inpaint", "folder/2.png")):
        mask = ("--mask", "folder/2.png") if name == "--inpaint" else ()
        assert (
            run(
                "sample", image_run, "--image", "folder/1.png", name, words, *mask, "--steps", 3, "--out", f"{name}.png"
            ).code
            == 0
        )


def test_reconstruct_and_compare_use_the_conditions_of_items(run: Run) -> None:
    arguments = ("--dataset", "swiss-roll", "--dataset.condition", "angle", "--dataset.n", 100, "--backbone.width", 8)
    quick = ("--backbone.depth", 1, "--batch-size", 32, "--condition-dropout", 0, "--steps", 4, "--preview-every", 0)
    assert run("train", *arguments, *quick, "--out", "run").code == 0
    out = run("compare", "run", "--samplers", "ddim", "--calls", 3, "--reference", 4, "-n", 10, "--json")
    assert out.code == 0, out.err
    assert "under the conditions of items" in out.err
    assert json.loads(out.out)["num_samples"] == 10
    assert run("reconstruct", "run", "-n", 20, "--json").code == 0


def test_previews_use_the_conditions_of_items(run: Run) -> None:
    backbone = ("--backbone.width", 8, "--backbone.depth", 1, "--batch-size", 32, "--steps", 2, "--preview-every", 1)
    data = ("--dataset", "swiss-roll", "--dataset.condition", "angle", "--dataset.n", 100, "--condition-dropout", 0)
    out = run("train", *data, *backbone, "--out", "run")
    assert out.code == 0, out.err
    assert "failed" not in out.err
    assert Path("run/previews/samples-000001.png").exists()


def test_batches_of_samples_under_a_condition(vector_run: Path) -> None:
    model = difftool.load(vector_run)
    plan = Plan.of(model, Sampling(num_samples=5, steps=3, batch_size=2, vector="53,50"))
    assert [len(step.x) for step in sample(model, plan) if step.done] == [2, 2, 1]
