"""DreamBooth: a class of one subject, learnt from a few images of it (Ruiz et al., 2023, sections 3.2 and 3.3).

A model of classes is tuned to a few images, as a new class, with all its weights. So that it forgets nothing of the
class that the subject belongs to, it also learns images that it drew of this class itself before it was tuned. The loss
is the sum of both, the second with a weight lambda (eq. 2). The data below do the same by counts: of all items, a share
lambda/(1 + lambda) are images that the model drew. --init-from knows classes by name, so the old ones stay.

    python examples/tutorials/patches.py photos/things --of rocket china -n 400
    python examples/tutorials/patches.py photos/animals --of cat -n 200
    python examples/tutorials/patches.py cup --of coffee -n 5
    difftool train --dataset image-folder --dataset.path photos --dataset.size 16 --backbone unet \
      --backbone.dim-mults 1,2 --steps 3000 --batch-size 32 --out runs/photos
    difftool train --plugin examples/papers/dreambooth.py --dataset dreambooth --dataset.model runs/photos \
      --dataset.subject cup --dataset.label things --dataset.called cup --dataset.n 60 --backbone.dim-mults 1,2 \
      --init-from runs/photos --steps 300 --batch-size 32 --lr 1e-4 --condition-dropout 0 --out runs/cup
    difftool sample runs/cup --plugin examples/papers/dreambooth.py --label cup --out cups.png
"""

from __future__ import annotations

from pathlib import Path

import torch

from difftool import PIXELS, Dataset, DatasetContext, Samples, load, option, read_image


class DreamBooth(Dataset, name="dreambooth"):
    """A few images of a subject as a new class, and images that a model draws of one of its classes."""

    default_backbone = "unet"

    model: Path = option(help="run or model file of images with classes, to be tuned")
    subject: Path = option(help="folder of a few images of the subject")
    label: str = option(help="class that the subject belongs to")
    called: str = option(default="subject", help="name of the subject's class")
    n: int = option(default=200, ge=1, help="number of images that the model draws of its class")
    weight: float = option(default=1.0, gt=0, help="weight lambda of these images, in their sum with the subject's")

    def load(self, context: DatasetContext) -> Samples:
        model = load(self.model)
        names = model.data.class_names
        if self.label not in names or self.called in names:
            raise ValueError(
                f"label and called: must be an old class and a new one; {self.model} has {', '.join(names)}"
            )
        prior = (
            model.sample(self.n, label=self.label, steps=25, seed=context.seed).round().clamp(0, 255).to(torch.uint8)
        )
        channels, *size = model.data.shape
        files = sorted(path for path in self.subject.iterdir() if path.suffix in (".png", ".jpg", ".jpeg"))
        if not files:
            raise ValueError(f"subject: {self.subject} holds no .png and no .jpg file")
        images = torch.stack([read_image(path, channels=channels, size=(size[0], size[1])) for path in files])
        images = images.repeat(max(1, round(self.n / (self.weight * len(images)))), 1, 1, 1)
        return Samples(
            items=torch.cat([prior, images]),
            shape=model.data.shape,
            labels=torch.tensor([names.index(self.label)] * len(prior) + [len(names)] * len(images)),
            class_names=(*names, self.called),
            **PIXELS,
        )
