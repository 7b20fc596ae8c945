"""Scripts: single Python files that the user names, and that are imported without a place on the module path.

A script is compiled from bytes that are read once. Its module is named after its file and its digest, so a script that
was changed is another module, and a worker process can build the very same module from the same bytes.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

from difftool.errors import DifftoolError, UsageError, describe, is_signal
from difftool.files import read_bounded

LARGEST = 2**22
"""The size in bytes up to which a script is read."""
NAME = re.compile(r"[\w.-]{1,90}\.py")
"""The file names of scripts, which runs and models record."""
DIGEST = "sha256:"
"""The beginning of the digest of a script, as a run records it in place of a version."""

MODULE = "difftool_script_"
"""The beginning of the names of their modules."""


def is_script(name: object, digest: object) -> bool:
    """Return whether a stranger's texts can be the file name and the digest of a script."""
    if not isinstance(name, str) or not isinstance(digest, str):
        return False
    return NAME.fullmatch(name) is not None and re.fullmatch(f"{DIGEST}[0-9a-f]{{64}}", digest) is not None


def short(digest: str) -> str:
    """Return the beginning of a digest, by which people tell scripts apart."""
    return digest[: len(DIGEST) + 8]


@dataclass(frozen=True)
class Script:
    """A Python file: its place, and its content when it was read."""

    path: Path
    """The absolute path."""
    source: bytes = field(repr=False)

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def digest(self) -> str:
        """The digest of the content: `sha256:` and 64 hexadecimal digits."""
        import hashlib

        return DIGEST + hashlib.sha256(self.source).hexdigest()

    @property
    def module(self) -> str:
        """The name of the module: it belongs to one content, and no other module has it."""
        digits = self.digest.removeprefix(DIGEST)[:12]
        return f"{MODULE}{re.sub(r'[^0-9A-Za-z]', '_', self.path.stem)}_{digits}"

    @classmethod
    def read(cls, path: Path) -> Script:
        """Read a file. Raises `UsageError` if there is none, or if it cannot be a script."""
        if path.suffix != ".py" or path.is_dir():
            raise UsageError(f"{path} is not a Python file; name a FILE.py")
        if NAME.fullmatch(path.name) is None:
            raise UsageError(f"{path}: models record the name of the file; use letters, digits, '-', '_' and '.' alone")
        try:
            return cls(Path(os.path.abspath(path)), read_bounded(path, LARGEST))
        except FileNotFoundError:
            raise UsageError(f"{path} does not exist") from None
        except OSError as error:
            raise UsageError(f"{path} cannot be read: {error.strerror}") from None
        except ValueError as error:
            raise UsageError(f"{path} is not a script: {error}") from None

    def load(self) -> ModuleType:
        """Import the script, unless this process has done so. Raises `DifftoolError` with the line that failed."""
        if (known := sys.modules.get(self.module)) is not None:
            return known
        module = ModuleType(self.module)
        module.__file__ = str(self.path)
        module.__spec__ = ModuleSpec(self.module, None, origin=str(self.path))
        sys.modules[self.module] = module  # dataclasses look up their annotations there
        _loading.append(self)
        try:
            with redirect_stdout(sys.stderr):  # stdout is for results
                exec(compile(self.source, str(self.path), "exec", dont_inherit=True), module.__dict__)
        except BaseException as error:
            del sys.modules[self.module]
            if is_signal(error):
                raise
            raise DifftoolError(self._failure(error)) from error
        finally:
            _loading.remove(self)
        _loaded.append(self)
        return module

    def _failure(self, error: BaseException) -> str:
        """Return the reason why the import failed, with its line, and what to do about it."""
        import traceback

        if isinstance(error, SyntaxError) and error.filename in (None, str(self.path)):
            line = f", line {error.lineno}" if error.lineno else ""
            return f"{self.path}{line}: {type(error).__name__}: {error.msg}"
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(self.path)]
        where = f"{self.path}, line {lines[-1]}" if lines else str(self.path)
        if isinstance(error, DifftoolError):
            return f"{where}: {error}"
        if isinstance(error, ModuleNotFoundError) and isinstance(error.name, str) and error.name:
            return f"{where}: needs the module {error.name!r}, which is not installed; {self._cure(error.name)}"
        return f"{where}: {describe(error)}"

    def _cure(self, module: str) -> str:
        """Return what to do about a missing module: a file beside the script is not found by its import."""
        missing = module.partition(".")[0]
        if (self.path.with_name(f"{missing}.py")).is_file() or self.path.with_name(missing).is_dir():
            return (
                f"a {missing} lies beside it, but only the named file is loaded: move it into {self.name}, or make a "
                "package of both"
            )
        return f"install what brings it, perhaps: pip install {missing}"


_loaded: list[Script] = []
"""The scripts that this process has imported."""
_loading: list[Script] = []
"""The scripts whose import has begun and not ended, the innermost last."""


class LoadedScripts:
    """The scripts of this process. Unpickling one imports them, and thus the modules of what follows in the pickle.

    An object that is sent to worker processes holds one as its first attribute. The content of the scripts travels
    with it, so workers run the same code even if the files were changed meanwhile.
    """

    def __reduce__(self) -> tuple[object, ...]:
        return _load_again, (tuple(_loaded),)


def _load_again(scripts: Iterable[Script]) -> LoadedScripts:
    for script in scripts:
        script.load()
    return LoadedScripts()


def check_not_loading(what: str) -> None:
    """Raise `UsageError` if a script is being imported, whose top level should only define things."""
    if _loading:
        name = _loading[-1].name
        raise UsageError(f'{what} is called while {name} is loaded; put it below `if __name__ == "__main__":`')


def script_of(cls: type) -> Script | None:
    """Return the script that defines a class: the program itself, or a module that belongs to no package."""
    module = sys.modules.get(cls.__module__)
    file = getattr(module, "__file__", None)
    if file is None or getattr(module, "__package__", None):
        return None
    try:
        return Script.read(Path(file))
    except DifftoolError:  # a notebook, or a file that is gone
        return None
