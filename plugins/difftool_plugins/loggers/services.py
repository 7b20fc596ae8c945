"""Loggers of services with a library of their own, which is installed as an extra."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from difftool import Logger, option

if TYPE_CHECKING:
    from difftool import Row, RunContext


class TensorBoard(Logger, name="tensorboard"):
    """Event files for TensorBoard: numbers, previews, and the configuration as text."""

    requires: ClassVar[Mapping[str, str]] = {"tensorboard": "difftool[tensorboard]"}

    dir: Path | None = option(default=None, help="where the events go", otherwise="logs/tensorboard in the run folder")

    @contextlib.contextmanager
    def open(self, run: RunContext) -> Iterator[Callable[[Row], None]]:
        import numpy as np
        from PIL import Image
        from torch.utils.tensorboard import SummaryWriter

        folder = run.logs / "tensorboard" if self.dir is None else self.dir / run.folder.name
        # what a killed run logged beyond its last state is hidden, for it is logged again
        with SummaryWriter(str(folder), purge_step=run.step + 1) as writer:
            if run.step == 0:
                writer.add_text("config", markdown(run.config), 0)

            def log(row: Row) -> None:
                for name, value in row.metrics.items():
                    if value is not None:
                        writer.add_scalar(name, value, row.step)
                for path in row.pictures:
                    picture = np.asarray(Image.open(path).convert("RGB"))
                    writer.add_image(tag_of(path), picture, row.step, dataformats="HWC")
                writer.flush()

            yield log


class WandB(Logger, name="wandb"):
    """Weights & Biases: numbers, previews and configuration; a resumed run goes on as the same one."""

    requires: ClassVar[Mapping[str, str]] = {"wandb": "difftool[wandb]"}

    project: str = option(default="difftool", help="project that the run belongs to")
    entity: str | None = option(default=None, help="team or user", otherwise="the account's own")
    mode: Literal["online", "offline"] | None = option(
        default=None, help="send at once, or keep the files for wandb sync", otherwise="WANDB_MODE, or online"
    )

    @contextlib.contextmanager
    def open(self, run: RunContext) -> Iterator[Callable[[Row], None]]:
        import wandb

        mode = self.mode or os.environ.get("WANDB_MODE", "online")
        if mode == "online" and not wandb.login(prompt=False):  # init would ask, and wait for an answer
            raise ValueError("nobody is logged in; run 'wandb login', or give --logger.mode offline")
        run.logs.mkdir(exist_ok=True)
        started = wandb.init(
            project=self.project,
            entity=self.entity,
            mode=mode,
            dir=str(run.logs),
            name=run.folder.name,
            id=hashlib.sha256(f"{run.folder.name} {run.started}".encode()).hexdigest()[:16],
            resume="allow",
            config={table: dict(values) for table, values in run.config.items()},
        )
        with started:  # a run that fails is marked as failed

            def log(row: Row) -> None:
                numbers = {name: value for name, value in row.metrics.items() if value is not None}
                pictures = {tag_of(path): wandb.Image(str(path)) for path in row.pictures}
                started.log({**numbers, **pictures}, step=row.step)

            yield log


def tag_of(picture: Path) -> str:
    """`samples` for samples-000500.png: the pictures of all steps under one name."""
    return picture.stem.rpartition("-")[0] or picture.stem


def markdown(config: Mapping[str, Mapping[str, object]]) -> str:
    """The configuration as indented text, which Markdown shows as it is."""
    lines = []
    for table, values in config.items():
        lines += [f"    [{table}]", *(f"    {key} = {value}" for key, value in values.items()), "    "]
    return "\n".join(lines)
