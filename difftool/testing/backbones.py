"""The laws of backbones. A network is built for items of one shape and trained on a task that it can learn by heart."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import combinations
from pathlib import Path

import torch
from torch import nn

from difftool import devices
from difftool.errors import InvalidOption, counted
from difftool.options import make
from difftool.rng import generator
from difftool.runs import checkpoint
from difftool.settings import Training
from difftool.specs import BackboneSpec, ConditionSpec
from difftool.testing.backbone_case import GOAL, Case
from difftool.testing.laws import Failed, Skipped, accelerators, gap, largest, raised, require, size
from difftool.testing.toy_task import CLASSES, LOOK_EVERY, condition_of, mean_loss, noise, predict, train

ODD_SHAPES: Sequence[tuple[int, ...]] = ((1,), (5,), (1, 1, 1), (3, 7, 5), (1, 12, 8), (4, 6, 6), (2, 9))
"""Shapes that not every network accepts."""
CONDITION_GOAL = 0.5
"""Error with a condition, relative to the error without one."""
TOLERANCE = 1e-4
"""Change of an output with the other items of the batch, relative to the largest output."""
SENSITIVITY = 1e-3
"""Smallest change of an output that counts as one, relative to the largest output."""


def returns_the_right_shape(case: Case) -> str:
    """net(x, t, cond) returns float32 of the shape of x, for one item and for five, with each condition that the
    backbone declares and with hidden ones. It also does so without conditions, with twice the channels for a learned
    variance, with twice the input channels if the backbone declares self-conditioning, and with more input channels for
    a condition image that it does not take itself. x is not changed. A lack of conditions, and a learned variance, may
    be refused with a `ValueError`."""
    specs = {
        "plain": replace(case.spec, condition=ConditionSpec()),
        **({str(case.condition): case.spec} if case.condition else {}),
        "learned variance": replace(case.spec, out_channels=2 * case.shape[0]),
    }
    if case.backbone.self_conditioning:
        specs["self-conditioning"] = replace(case.spec, self_condition=True)
    if len(case.shape) == 3 and "image" not in case.backbone.conditions:
        specs["an image beside x"] = replace(case.spec, image_channels=2)
    accepted, refused = [], [name for name in case.backbone.conditions if name not in case.condition.shapes]
    for name, spec in specs.items():
        try:
            network = case.build(spec)
        except ValueError as error:
            if name != "learned variance" and not (name == "plain" and case.condition):
                raise
            refused.append(f"{name} ({error})")
            continue
        accepted.append(name)
        for count in (1, 5):
            check_output(network, spec, count, name)
    return f"{size(case.shape)}: {', '.join(accepted)}{'; refuses ' if refused else ''}{', '.join(refused)}"


def check_output(network: nn.Module, spec: BackboneSpec, count: int, name: str) -> None:
    """Predict for items of every class and with hidden conditions, each at its own time. Raises `Failed`."""
    x = noise(spec, count)
    before, t = x.clone(), torch.linspace(0.0, 999.0, count)
    for label in range(CLASSES + 1) if spec.condition else (CLASSES,):
        which = f", {words_of(spec.condition, label)}" if spec.condition else ""
        try:
            output = predict(network, x, t, condition_of(spec.condition, torch.full((count,), label)))
        except Exception as error:
            raise Failed(f"{name}, {counted(count, 'item')}{which}: {raised(error)}") from None
        expected = (count, spec.out_channels, *spec.shape[1:])
        if tuple(output.shape) != expected or output.dtype != torch.float32:
            raise Failed(f"{name}: it returned {tuple(output.shape)} {output.dtype}, not {expected} torch.float32")
        require(torch.equal(x, before), f"{name}: it changes x in place; make new tensors")


def refuses_unsupported_shapes(case: Case) -> str:
    """Items of odd shapes either work, or `build` refuses them with a `ValueError`, so users learn of it before they
    train."""
    accepted, refused = [], []
    for shape in ODD_SHAPES:
        spec = replace(case.spec, shape=shape, out_channels=shape[0])
        try:
            network = case.build(spec)
        except ValueError:
            refused.append(size(shape))
            continue
        except Exception as error:
            raise Failed(f"build() for items of {size(shape)} {raised(error)}; raise ValueError instead") from None
        try:
            predict(network, noise(spec, 2), 500.0, case.conditions(2))
        except Exception as error:
            raise Failed(f"build() accepted items of {size(shape)}, but the network {raised(error)}") from None
        accepted.append(size(shape))
    return f"accepts {', '.join(accepted) or 'none'}; refuses {', '.join(refused) or 'none'}"


def has_reproducible_initial_weights(case: Case) -> str:
    """Two networks that are built from the same seed of torch have equal weights, and one that is built on the meta
    device has weights of the same names and shapes."""
    a, b = case.build(seed=3).state_dict(), case.build(seed=3).state_dict()
    if different := [name for name in a if not torch.equal(a[name], b[name])]:
        raise Failed(f"{different[0]} differs between two networks of one seed")
    with devices.meta():
        meta = case.backbone.build(case.spec)
    if rows := checkpoint.differences(meta.state_dict(), a):
        raise Failed(f"on the meta device it has other weights: {rows}; make no tensors on a fixed device")
    return f"{sum(p.numel() for p in meta.parameters()):,} parameters"


def trains_every_parameter(case: Case) -> str:
    """Every parameter receives a gradient in a training step. One that receives none would never change, and training
    on several devices would stop."""
    network = case.build()
    network.train()
    case.task.noise_loss(network, generator(0, "law")).backward()  # type: ignore[no-untyped-call]
    if unused := [name for name, p in network.named_parameters() if p.requires_grad and p.grad is None]:
        more = f" and {len(unused) - 3} more" if len(unused) > 3 else ""
        raise Failed(f"no gradient reaches {', '.join(unused[:3])}{more}")
    return f"{sum(1 for _ in network.parameters())} tensors"


def learns_to_denoise(case: Case) -> str:
    """After at most 800 steps of Adam on eight items, its mean squared error in eps is at most 0.6 times that of
    predicting 0."""
    _, losses = case.training
    rows = f"loss {losses[0]:.2f}, after {LOOK_EVERY * (len(losses) - 1)} steps {losses[-1]:.2f}"
    require(losses[-1] <= GOAL, f"{rows}; at most {GOAL} is required")
    return f"{rows}, at most {GOAL}"


def uses_the_label(case: Case) -> str:
    """If the backbone declares labels, it learns in at most 800 steps to predict the pattern of a class from its label
    and pure noise: for each class the error is at most half of the error with hidden labels. Its outputs for any two
    labels, or for a label and "no class", differ."""
    return uses(case, "label")


def uses_the_vector(case: Case) -> str:
    """If the backbone declares vectors, it learns the same from a vector for each class."""
    return uses(case, "vector")


def uses_the_tokens(case: Case) -> str:
    """If the backbone declares tokens, it learns the same from four tokens for each class."""
    return uses(case, "tokens")


def uses_the_image(case: Case) -> str:
    """If the backbone declares images, it learns the same from an image for each class."""
    return uses(case, "image")


def uses(case: Case, field: str) -> str:
    """Check that a network learns to tell the classes by a field. Raises `Failed`, or `Skipped` if it takes none."""
    network, condition = case.learned(field)
    loss = partial(case.task.pattern_loss, condition=condition, field=field)
    without = mean_loss(network, partial(loss, hidden=1.0))
    errors = [mean_loss(network, partial(loss, hidden=0.0, only=label)) for label in range(CLASSES)]
    if not max(errors) <= CONDITION_GOAL * without:
        worst = max(range(CLASSES), key=errors.__getitem__)
        required = f"{without:.3f} without; at most {CONDITION_GOAL * without:.3f} is required"
        raise Failed(f"error {errors[worst]:.3f} with the {field} of class {worst}, {required}")
    x, each = noise(case.spec, 1), range(CLASSES + 1)
    outputs = [predict(network, x, 999.0, condition_of(condition, torch.tensor([k]), field)) for k in each]
    for a, b in combinations(each, 2):
        if not gap(outputs[a], outputs[b]) > SENSITIVITY * largest(outputs[a]):
            first, second = words_of(condition, a), words_of(condition, b)
            raise Failed(f"{first} and {second} have the same output")
    return f"error {max(errors):.3f} with the {field}, {without:.3f} without"


def words_of(condition: ConditionSpec, label: int) -> str:
    """Return the name of a class; `CLASSES` hides it."""
    return f"class {label}" if label < CLASSES else "no class" if condition.classes else "hidden conditions"


def does_not_use_what_is_hidden(case: Case) -> str:
    """The fields of an item whose conditions are hidden are zeros. The output for such an item differs from the output
    for zeros that are not hidden, which are class 0 or the mean of all vectors: a network that does not look at
    `cond.hidden` takes one for the other."""
    fields = [name for name in case.condition.shapes if name != "image"]  # an image of zeros is but an image
    if not fields:
        raise Skipped("it declares no label, vector or tokens")
    x, rows = noise(case.spec, 1), []
    for field in fields:
        network, condition = case.learned(field)
        hidden = condition_of(condition, torch.tensor([CLASSES]))
        assert hidden is not None
        shown = replace(hidden, hidden=torch.zeros_like(hidden.hidden))
        a, b = (predict(network, x, 999.0, cond) for cond in (hidden, shown))
        row = f"hidden and zero {field} differ by {gap(a, b):.2g}, the largest output being {largest(a):.2g}"
        require(gap(a, b) > SENSITIVITY * largest(a), row)
        rows.append(f"{gap(a, b):.2g} ({field})")
    return f"hidden and zero fields differ by {', '.join(rows)}"


def uses_the_time(case: Case) -> str:
    """The trained network's output for one input depends on t."""
    x = noise(case.spec, 4)
    early, late = case.predict(x, 20.0), case.predict(x, 900.0)
    rows = f"outputs at t = 20 and t = 900 differ by {gap(early, late):.2g}, the largest being {largest(late):.2g}"
    require(gap(early, late) > SENSITIVITY * largest(late), rows)
    return rows


def uses_the_last_estimate(case: Case) -> str:
    """If the backbone declares self-conditioning, the last estimate of x_0, which is passed beside x_t, changes the
    output of a network that was trained with it."""
    if not case.backbone.self_conditioning:
        raise Skipped("it does not declare self-conditioning")
    network = case.build(replace(case.spec, self_condition=True))
    train(network, case.task.self_conditioning_loss, GOAL)
    x, x_0 = noise(case.spec, 4), torch.ones(4, *case.shape)
    outputs = [predict(network, torch.cat([x, beside], 1), 500.0, case.conditions(4)) for beside in (x_0, 0 * x_0)]
    rows = (
        f"outputs with and without an estimate differ by {gap(*outputs):.2g}, the largest is {largest(outputs[1]):.2g}"
    )
    require(gap(*outputs) > SENSITIVITY * largest(outputs[1]), rows)
    return rows


def recomputes_activations(case: Case) -> str:
    """If the backbone declares activation checkpointing, its network stores fewer bytes for the backward pass with
    `spec.checkpoint_activations`, and output and gradients are the same to the last bit, dropout included."""
    if not case.backbone.activation_checkpointing:
        raise Skipped("it does not declare activation checkpointing")
    (plain, stored), (again, fewer) = (_gradients(case, recompute=recompute) for recompute in (False, True))
    for name, gradient in plain.items():
        require(torch.equal(gradient, again[name]), f"the gradient of {name} differs")
    rows = f"{fewer:,} bytes are stored with it, and {stored:,} without"
    require(fewer < stored, rows)
    return rows


def _gradients(case: Case, *, recompute: bool) -> tuple[dict[str, torch.Tensor], int]:
    """Return the output and the gradients of a network in training mode, and the bytes stored for its backward pass."""
    network = case.build(replace(case.spec, checkpoint_activations=recompute)).train()
    with torch.no_grad():
        for weight in network.parameters():  # a weight of zero would stop the gradients of those before it
            weight.add_(0.02 * torch.randn(weight.shape, generator=generator(0, "law")))
    x, cond = noise(case.spec, 8), case.conditions(8)
    weights, stored = {p.untyped_storage().data_ptr() for p in network.parameters()}, {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        stored[storage.data_ptr()] = storage.nbytes()
        return tensor

    torch.manual_seed(1)  # for dropout
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = network(x, torch.full((8,), 300.0), cond)
    output.square().mean().backward()
    found = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    return {**found, "output": output.detach()}, sum(size for at, size in stored.items() if at not in weights)


def treats_items_independently(case: Case) -> str:
    """In evaluation mode, an output depends only on the item's own x, t and conditions, and not on the rest of the
    batch. A second call gives the same output."""
    x, t, cond = noise(case.spec, 5), torch.linspace(10.0, 990.0, 5), case.conditions(5)
    network = case.training[0]
    together, again = predict(network, x, t, cond), predict(network, x, t, cond)
    require(torch.equal(together, again), "two calls in evaluation mode give two outputs")
    items = [slice(i, i + 1) for i in range(5)]
    alone = torch.cat([predict(network, x[i], t[i], None if cond is None else cond[i]) for i in items])
    rows = f"outputs alone and in a batch differ by {gap(together, alone):.2g}, the largest being {largest(alone):.2g}"
    if not gap(together, alone) <= TOLERANCE * max(largest(alone), 1e-6):
        raise Failed(f"{rows}; at most {TOLERANCE:g} of that is rounding")
    return rows


def can_be_saved_and_loaded(case: Case) -> str:
    """A new network that loads the weights from a safetensors file gives the same output to the last bit."""
    x = noise(case.spec, 3)
    expected = case.reference(x)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        checkpoint.save(path, case.training[0].state_dict(), {})
        tensors, _ = checkpoint.load(path)
    other = case.build(seed=9)
    if rows := checkpoint.differences(other.state_dict(), tensors):
        raise Failed(f"a new network has other weights: {rows}")
    other.load_state_dict(tensors)
    if not torch.equal(expected, predict(other, x, 300.0, case.conditions(3))):
        raise Failed("its output differs after loading; everything it needs must be a parameter or a buffer")
    return f"{sum(t.numel() * t.element_size() for t in tensors.values()) / 2**20:.2f} MiB"


def works_in_bf16(case: Case) -> str:
    """Under autocast to bfloat16 its outputs are finite, and differ from those in float32 by at most a tenth on
    average."""
    x = noise(case.spec, 4)
    full = case.reference(x)
    with torch.autocast("cpu", torch.bfloat16):
        half = case.predict(x).float()
    mean_gap, mean_size = float((full - half).abs().mean()), float(full.abs().mean())
    rows = f"outputs in bfloat16 differ by {mean_gap:.2g} on average, of {mean_size:.2g}"
    require(mean_gap <= 0.1 * mean_size, f"{rows}; at most a tenth is required")
    return rows


def suggests_valid_settings(case: Case) -> str:
    """`training_defaults` holds options of `difftool train` by their Python names, with values that these accept."""
    try:
        make(Training, dict(case.backbone.training_defaults))
    except InvalidOption as error:
        raise Failed(f"training_defaults: {error}") from None
    return counted(len(case.backbone.training_defaults), "setting")


def works_on_every_device(case: Case) -> str:
    """On each accelerator of the machine its output differs from the one on the CPU by at most a hundredth."""
    found, x = accelerators(), noise(case.spec, 4)
    expected, state = case.reference(x), case.training[0].state_dict()
    for device in found:
        network = case.build().to(device)
        network.load_state_dict(state)
        cond = case.conditions(4)
        output = predict(network, x.to(device), 300.0, None if cond is None else cond.to(device))
        if not gap(output.cpu(), expected) <= 1e-2 * largest(expected):
            raise Failed(f"its outputs on {device} and on the CPU differ by {gap(output.cpu(), expected):.2g}")
    return ", ".join(map(str, found))


LAWS = (
    returns_the_right_shape,
    refuses_unsupported_shapes,
    has_reproducible_initial_weights,
    trains_every_parameter,
    learns_to_denoise,
    uses_the_label,
    uses_the_vector,
    uses_the_tokens,
    uses_the_image,
    does_not_use_what_is_hidden,
    uses_the_time,
    uses_the_last_estimate,
    recomputes_activations,
    treats_items_independently,
    can_be_saved_and_loaded,
    works_in_bf16,
    suggests_valid_settings,
    works_on_every_device,
)
