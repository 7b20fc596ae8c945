"""Features of networks that others have trained, whose weights difftool does not bring along."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from difftool import Features, option

if TYPE_CHECKING:
    from torch import Tensor

    from difftool import FeaturesSpec, Samples

EXTRA = "'difftool[features]'"
CHANNELS = (1, 3)


class Pretrained(Features):
    """The features of a network for images, whose weights are read from a file and never executed."""

    weights: Path | None = option(
        default=None,
        help="the weights, read as plain numbers; see the docs for where to get them",
        otherwise="your cache",
    )

    def check(self, spec: FeaturesSpec) -> None:
        """Raise `ValueError` for data that are no images of one or three channels."""
        if spec.form != "image" or spec.shape[0] not in CHANNELS:
            what = f"{spec.form} of {'x'.join(map(str, spec.shape))}"
            raise ValueError(f"takes grey or RGB images, not {what}; take --features scattering or pixels")


class Inception(Pretrained, name="inception"):
    """The 2,048 features of Inception-v3 in which FID was defined (Heusel et al., 2017), by torch-fidelity.

    Its weights are those of torch-fidelity, once they are converted to a .safetensors file; docs/features.md says how.
    """

    requires = {"torch_fidelity": EXTRA, "torchvision": EXTRA}

    def build(self, spec: FeaturesSpec, data: Samples) -> Callable[[Tensor], Tensor]:
        self.check(spec)
        from difftool_plugins.features.networks import inception
        from difftool_plugins.features.weights import inception_file

        return inception(inception_file(self.weights), spec.device)


class FromHub(Pretrained):
    """The features of a network that the library transformers builds."""

    requires = {"transformers": EXTRA}
    architecture: ClassVar[str]

    download: bool = option(default=False, help="download the weights if they are not in your cache yet")

    def __post_init__(self) -> None:
        if self.weights is not None and self.download:
            raise ValueError("download: leave it out, since --features.weights names the weights")

    def build(self, spec: FeaturesSpec, data: Samples) -> Callable[[Tensor], Tensor]:
        self.check(spec)
        from difftool_plugins.features.networks import transformer
        from difftool_plugins.features.weights import hub_folder

        return transformer(
            self.architecture, hub_folder(self.repository, self.weights, download=self.download), spec.device
        )

    @property
    def repository(self) -> str:
        """The name on the Hugging Face Hub."""
        raise NotImplementedError


class DINOv2(FromHub, name="dinov2"):
    """The class token of DINOv2 (Oquab et al., 2023), closer to what people see than Inception (Stein et al., 2023).

    Its weights are a folder with config.json and model.safetensors, as Hugging Face has them.
    """

    architecture = "Dinov2Model"
    model: str = option(
        default="facebook/dinov2-large", help="repository on the Hugging Face Hub; Stein et al. took large"
    )

    @property
    def repository(self) -> str:
        return self.model


class CLIP(FromHub, name="clip"):
    """The image embedding of CLIP (Radford et al., 2021), in which CMMD compares images (Jayasumana et al., 2024).

    Its weights are a folder with config.json and model.safetensors, as Hugging Face has them.
    """

    architecture = "CLIPVisionModelWithProjection"
    model: str = option(default="openai/clip-vit-large-patch14", help="repository on the Hugging Face Hub")

    @property
    def repository(self) -> str:
        return self.model
