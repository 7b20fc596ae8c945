"""text.py: prompts become tokens, attention is that of other code, and a prompt decides what is drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Run

import difftool
from difftool import BackboneSpec, ConditionSpec
from difftool.scripts import Script
from difftool.testing import check_component

PAPER = Path(__file__).resolve().parents[2] / "examples" / "papers" / "text.py"
text = Script.read(PAPER).load()


def test_a_token_is_a_row_of_a_table_of_embeddings() -> None:
    """The linear layer of the built-in U-Net, applied to one-hot tokens, looks words up."""
    count, size = text.LENGTH, len(text.WORDS)
    spec = BackboneSpec(shape=(3, 8, 8), out_channels=3, condition=ConditionSpec(tokens=(count, size)))
    network = difftool.component("backbone", "unet", dim=8, dim_mults=(1,), groups=4).build(spec)
    linear = network.context.linear
    table = linear.weight.T + linear.bias
    numbers = [text.WORDS.index(word) for word in ("a", "green", "cross")]
    torch.testing.assert_close(linear(text.tokens_of("a green cross")), table[numbers])


def test_cross_attention_is_that_of_diffusers() -> None:
    attention = pytest.importorskip("diffusers.models.attention_processor")
    spec = BackboneSpec(shape=(3, 8, 8), out_channels=3, condition=ConditionSpec(tokens=(text.LENGTH, 9)))
    options = {"dim": 8, "dim_mults": (1,), "groups": 4, "heads": 2, "head_dim": 4, "zero_init": False}
    cross = difftool.component("backbone", "unet", **options).build(spec).cross
    other = attention.Attention(8, cross_attention_dim=32, heads=2, dim_head=4)
    with torch.no_grad():
        keys, values = cross.kv.weight.chunk(2)
        for layer, weight in ((other.to_q, cross.q.weight.flatten(1)), (other.to_k, keys), (other.to_v, values)):
            layer.weight.copy_(weight)
        other.to_out[0].weight.copy_(cross.out.weight.flatten(1))
        other.to_out[0].bias.copy_(cross.out.bias)
        x, context = torch.randn(2, 8, 4, 4), torch.randn(2, 3, 32)
        expected = other(cross.norm(x).flatten(2).mT, context).mT.unflatten(2, (4, 4))
        torch.testing.assert_close(cross(x, context) - x, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("prompt", "words"), [("a pink disc", "unknown word 'pink'"), ("a a red disc", "at most 3")])
def test_prompts_that_mean_nothing(prompt: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        text.tokens_of(prompt)


@pytest.mark.slow
def test_the_dataset_keeps_the_laws() -> None:
    check_component(text.Captions(n=200))


@pytest.mark.slow
def test_the_prompt_decides_the_colour(run: Run) -> None:
    network = ("--backbone.dim", 16, "--backbone.dim-mults", "1,2", "--ema", 0.98)
    sizes = ("--dataset.n", 1500, "--dataset.size", 8, "--steps", 250, "--batch-size", 32, "--lr", 3e-3, "--threads", 1)
    script = ("--plugin", PAPER)
    outcome = run("train", *script, "--dataset", "captions", *network, *sizes, "--preview-every", 0, "--out", "run")
    assert outcome.code == 0, outcome.err
    for colour in ("red", "blue"):
        words = ("--tokens", f"a {colour} square", "-n", 16, "--steps", 8, "--out", f"{colour}.npy")
        outcome = run("sample", "run", *script, *words)
        assert outcome.code == 0, outcome.err
    red, blue = ((255.0 - np.load(f"{colour}.npy")).mean(axis=(0, 1, 2)) for colour in ("red", "blue"))
    assert red[0] < 0.6 * red[2]  # what is red lacks blue,
    assert blue[2] < 0.6 * blue[0]  # and the other way round
    wrong = run("sample", "run", *script, "--tokens", "a pink disc")
    assert wrong.code == 2
    assert "unknown word 'pink'; there are a, red" in wrong.error
