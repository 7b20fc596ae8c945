"""The folder of a run: a new one, that of a run to resume, or with `--resume auto` whatever is there."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from difftool.distributed import ProcessGroup
from difftool.errors import DifftoolError, UsageError, counted
from difftool.runs.recipe import Recipe, build_recipe, differences
from difftool.settings import AUTO

if TYPE_CHECKING:
    from difftool.cli.request import Request
    from difftool.runs.folder import RunFolder


@dataclass(frozen=True)
class Place:
    """The folder of a run: a new one, or that of the run to resume."""

    out: Path | None
    overwrite: bool
    resume: Path | None
    new_data: bool
    auto: bool = False
    """True for `--resume auto`, which goes on where there is a run at `out`, and else begins."""

    @classmethod
    def of(cls, out: Path | None, overwrite: bool, resume: Path | None, new_data: bool) -> Place:
        """Return the place that the options name. Raises `UsageError`."""
        from difftool.runs.folder import is_run

        if resume != Path(AUTO):
            return cls(out, overwrite, resume, new_data)
        if out is None:
            raise UsageError("--resume auto: goes on with the run in the folder of --out; add --out DIR")
        if overwrite:
            raise UsageError("--overwrite: --resume auto goes on with a run that is there; leave one of them out")
        return cls(out, False, out if is_run(out) else None, new_data, auto=True)

    def check(self, recipe: Recipe, request: Request) -> Recipe:
        """Refuse, before any work, a folder that cannot be used, or a run that was trained with another recipe.

        Return the recipe to train.
        """
        from difftool.runs.creation import check_run_output
        from difftool.runs.folder import open_run

        if self.resume is None:
            if self.new_data and not self.auto:
                raise UsageError("--new-data: only a resumed run can have other data; add --resume")
            if self.overwrite and self.out is None:
                raise UsageError("--overwrite: says that the run named by --out is replaced; add --out")
            check_run_output(self.out, overwrite=self.overwrite)
            return recipe
        if self.auto:
            recipe = self._as_recorded(recipe)
        else:
            self._check_resume(recipe, request)
        open_run(self.resume).check_free()
        return recipe

    def _check_resume(self, recipe: Recipe, request: Request) -> None:
        """Refuse what a run that is named cannot take. Raises `UsageError` and `DifftoolError`."""
        if self.out is not None:
            raise UsageError("--out: a resumed run stays in its folder; leave it out")
        if self.overwrite:
            raise UsageError("--overwrite: a resumed run is continued, not replaced; leave it out")
        if "init_from" in request.values["training"]:
            raise UsageError("--init-from: a resumed run goes on from its own weights; leave it out")
        if rows := differences(build_recipe(request.tables), recipe):
            raise DifftoolError(f"--resume {self.resume}: {'; '.join(rows)}; leave these out, or start a new run")

    def _as_recorded(self, recipe: Recipe) -> Recipe:
        """Return the recipe with what `auto` found as the run began. Raises `DifftoolError` if the run has another."""
        from difftool.cli.request import Request

        before = Request.read({}, config=None, resume=self.resume).recipe()
        recipe = recipe.as_begun(before)
        if rows := differences(before, recipe):
            raise DifftoolError(
                f"--resume auto: the run in {self.out} began otherwise: {'; '.join(rows)}; give what it has, or "
                "another --out"
            )
        return recipe

    def agreed(self, group: ProcessGroup) -> Place:
        """Return the place that the main process sees, for all to go on or to begin alike."""
        begun = group.on_main(lambda: self.resume is not None)
        return replace(self, resume=self.out if begun else None) if self.auto else self

    def finished(self, recipe: Recipe) -> str:
        """Return a line if `--resume auto` finds a complete run, and else an empty text."""
        run = self.resumed
        if run is None or not self.auto:
            return ""
        status, before = run.status(), run.readable_config().get("training", {})
        now = recipe.training
        same = (now.steps, now.epochs) == (before.get("steps"), before.get("epochs"))
        steps = status.steps if same else now.steps
        early = same and status.status == "stopped early"
        if steps is None or not (early or status.step >= steps) or not is_whole(run, recipe, status.step):
            return ""
        reason = f"; {status.reason}" if early else ""
        return f"{run.path} is complete ({counted(status.step, 'step')}{reason}); pass --steps N to train further"

    @property
    def resumed(self) -> RunFolder | None:
        """The run to resume, or None."""
        from difftool.runs.folder import RunFolder

        return None if self.resume is None else RunFolder(self.resume)

    def folder(self, recipe: Recipe) -> RunFolder:
        """Return the folder, and create it if it is new."""
        from difftool.runs.creation import create

        return self.resumed or create(recipe, self.out, overwrite=self.overwrite)


def is_whole(run: RunFolder, recipe: Recipe, step: int) -> bool:
    """Return whether the model and the averages of a run are those of its last state: a kill may come between them."""
    from difftool.runs import checkpoint
    from difftool.runs.averages import files_in

    try:
        averages = [file.path for file in files_in(run.averages) if file.step is None]
        steps = [checkpoint.load_document(path).get("step") for path in (run.model, *averages)]
    except DifftoolError:
        return False
    settings = recipe.training
    return steps == [step] * (len(settings.ema) + len(settings.ema_lengths))  # the model is the first of them
