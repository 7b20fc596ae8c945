"""Loggers for services whose libraries are extras of difftool."""

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
    """Event files for TensorBoard: numbers, previews and the configuration."""

    requires: ClassVar[Mapping[str, str]] = {"tensorboard": "difftool[tensorboard]"}
    files = ("tensorboard/events.out.tfevents.*",)

    dir: Path | None = option(
        default=None, help="folder of the event files", otherwise="logs/tensorboard in the run folder"
    )

    @contextlib.contextmanager
    def open(self, run: RunContext) -> Iterator[Callable[[Row], None]]:
        import numpy as np
        from PIL import Image
        from torch.utils.tensorboard import SummaryWriter

        folder = run.logs / "tensorboard" if self.dir is None else self.dir / run.folder.name
        # rows that a killed run logged after its last checkpoint are hidden, since they are logged again
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
    """Weights & Biases: numbers, previews and the configuration. A resumed run continues the same W&B run."""

    requires: ClassVar[Mapping[str, str]] = {"wandb": "difftool[wandb]"}

    project: str = option(default="difftool", help="project of the run")
    entity: str | None = option(default=None, help="team or user", otherwise="the default of your account")
    mode: Literal["online", "offline"] | None = option(
        default=None, help="online: send at once; offline: keep files for wandb sync", otherwise="WANDB_MODE, or online"
    )

    @contextlib.contextmanager
    def open(self, run: RunContext) -> Iterator[Callable[[Row], None]]:
        import wandb

        mode = self.mode or os.environ.get("WANDB_MODE", "online")
        if mode == "online" and not wandb.login(prompt=False):  # wandb.init would prompt, and wait for an answer
            raise ValueError("you are not logged in; run 'wandb login', or choose --logger.mode offline")
        run.logs.mkdir(exist_ok=True)
        wandb_run = wandb.init(
            project=self.project,
            entity=self.entity,
            mode=mode,
            dir=str(run.logs),
            name=run.folder.name,
            id=hashlib.sha256(f"{run.folder.name} {run.started}".encode()).hexdigest()[:16],
            resume="allow",
            config={table: dict(values) for table, values in run.config.items()},
        )
        remove_log_links(run.logs)  # at once, since a run may be killed
        with wandb_run:  # an exception marks it as failed

            def log(row: Row) -> None:
                numbers = {name: value for name, value in row.metrics.items() if value is not None}
                pictures = {tag_of(path): wandb.Image(str(path)) for path in row.pictures}
                wandb_run.log({**numbers, **pictures}, step=row.step)

            yield log


def remove_log_links(logs: Path) -> None:
    """Remove the links by which wandb leads to its own log in the user's cache.

    A run folder with a link that leads out of it could not be resumed.
    """
    for link in logs.glob("wandb/*/logs/debug-core.log"):
        if link.is_symlink():
            link.unlink()


def tag_of(picture: Path) -> str:
    """Return the name of a picture without its step: `samples` for samples-000500.png."""
    return picture.stem.rpartition("-")[0] or picture.stem


def markdown(config: Mapping[str, Mapping[str, object]]) -> str:
    """Return the configuration as a Markdown code block."""
    lines = []
    for table, values in config.items():
        lines += [f"    [{table}]", *(f"    {key} = {value}" for key, value in values.items()), "    "]
    return "\n".join(lines)
