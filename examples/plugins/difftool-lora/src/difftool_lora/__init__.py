"""LoRA for difftool: low-rank adapters on the layers of any backbone, and a command that merges them into its weights.

The adapters are trained while the weights of the backbone stay as they are (Hu et al., 2022).
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from difftool import Backbone, Command, Output, UsageError, component, hookimpl, model_option, option, output_option

if TYPE_CHECKING:
    from torch import nn

    from difftool import BackboneSpec, Model

difftool_api = 2


class LoRA(Backbone, name="lora"):
    """Another backbone with adapters: each chosen layer adds a product of two small matrices to its weight.

    Name the backbone of the run to adapt and its options, and train the adapters alone:
    --backbone lora --init-from RUN --train-only lora
    """

    conditions = ("label", "vector", "tokens")
    self_conditioning = True

    base: str = option(default="mlp", help="backbone to adapt")
    options: str = option(default="", help="its options, such as 'width=64, dim_mults=[1, 2]'")
    layers: str = option(default=".*", help="pattern of the names of linear and convolution layers to adapt")
    rank: int = option(default=4, ge=1, le=1024, help="rank of the product")
    alpha: float = option(default=4.0, gt=0, help="factor of the product, divided by the rank")

    def __post_init__(self) -> None:
        try:
            re.compile(self.layers)
        except re.error as error:
            raise ValueError(f"layers: is no pattern: {error}") from None
        self._options()

    def backbone(self) -> Backbone:
        """Return the backbone to adapt. Raises `UsageError` if there is none, or if it refuses its options."""
        if self.base == self.name:
            raise UsageError("backbone lora: base must be another backbone")
        return cast(Backbone, component("backbone", self.base, **self._options()))

    def build(self, spec: BackboneSpec) -> nn.Module:
        """Return the network of the backbone, whose weights keep their names, with adapters in its layers."""
        from difftool_lora.adapters import adapt

        backbone = self.backbone()
        if spec.self_condition and not backbone.self_conditioning:
            raise ValueError(f"the backbone {self.base} has no room for self-conditioning")
        taken = spec.condition.only({*backbone.conditions, "image"})
        network = adapt(backbone.build(replace(spec, condition=taken)), self.layers, self.rank, self.alpha / self.rank)
        if refused := [name for name in spec.condition.shapes if name not in taken.shapes]:
            raise ValueError(f"the backbone {self.base} takes no {refused[0]}; choose others by --condition")
        return network

    def _options(self) -> dict[str, Any]:
        try:
            tables = tomllib.loads(f"options = {{{self.options}}}")
        except tomllib.TOMLDecodeError:
            tables = {}
        if [*tables] != ["options"]:
            raise ValueError(f"options: must be such as 'width=64, depth=2', not {self.options!r}")
        options: dict[str, Any] = tables["options"]
        return options


class MergeLoRA(Command, name="merge-lora"):
    """Add the adapters of a run to the weights of its backbone, and write an ordinary model file.

    The file needs neither the adapters nor this package.
    """

    model: Model = model_option(help="A run folder or a model file with the backbone lora.")
    out: Output = output_option(suffixes=(".safetensors",), default="merged.safetensors", help="The file.")

    def run(self) -> None:
        from difftool_lora.adapters import merge

        model, lora = self.model, self.model.recipe.parts["backbone"]
        if not isinstance(lora, LoRA):
            raise UsageError(f"{model.source}: its backbone is {lora.name}, which has no adapters to merge")
        recipe = replace(model.recipe, parts={**model.recipe.parts, "backbone": lora.backbone()})
        merged = replace(model, recipe=recipe, network=merge(model.network))
        with self.out.writing() as path:
            merged.save(path)


@hookimpl
def difftool_backbones() -> list[type[Backbone]]:
    return [LoRA]


@hookimpl
def difftool_commands() -> list[type[Command]]:
    return [MergeLoRA]
