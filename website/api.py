"""The pages of the public Python names: signatures, fields, methods and what their docstrings say."""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib
import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from types import ModuleType
from typing import Any

import difftool
import difftool.testing
from difftool import hookspecs
from website.markdown import paragraphs, plain, table

TITLES = {
    "api": "Training and loading",
    "sampling": "Models",
    "data": "Data",
    "diffusion": "Levels and estimates",
    "components": "Kinds of components",
    "specs": "What components are given",
    "training": "What losses are given",
    "evaluation": "Evaluation",
    "cli": "Commands of plugins",
    "figures": "Drawings and files",
}
"""The titles of the pages, by the part of the code that defines the names. Names of all other parts are on one page."""
OTHERS = "Options, errors, files"


@dataclasses.dataclass(frozen=True)
class Group:
    """The public names of one page."""

    title: str
    module: ModuleType
    names: tuple[str, ...]

    @property
    def page(self) -> str:
        return f"api/{self.title.lower().replace(',', '').replace(' ', '-')}"


def groups() -> list[Group]:
    """Return the public names of `difftool`, and those of `difftool.testing`."""
    found: dict[str, list[str]] = {title: [] for title in (*TITLES.values(), OTHERS)}
    for name in difftool.__all__:
        if not name.startswith("__"):
            found[TITLES.get(difftool._HOME.get(name, "").partition(".")[0], OTHERS)].append(name)
    parts = [Group(title, difftool, tuple(names)) for title, names in found.items()]
    return [*parts, Group("Testing", difftool.testing, tuple(sorted(difftool.testing.__all__)))]


def page(group: Group) -> str:
    """Return the page of a group."""
    lines = [f"# {group.title}", ""]
    for name in group.names:
        lines += _described(f"{group.module.__name__}.{name}", getattr(group.module, name))
    return "\n".join(lines) + "\n"


def overview(found: list[Group]) -> str:
    """Return the page that lists all public names."""
    lines = ["# Python names", "", "What `difftool` and `difftool.testing` export is the API: all that a script"]
    lines += ["or a plugin may rely on. [From Python](/python.md) shows how to use it."]
    for group in found:
        rows = (
            (f"{{py:obj}}`~{group.module.__name__}.{name}`", plain(_first(getattr(group.module, name), name)))
            for name in group.names
        )
        lines += ["", f"## [{group.title}](/{group.page}.md)", "", table(("name", "what it is"), rows)]
    rows = ((f"`{name}{_signature(hook)}`", plain(_first(hook, name))) for name, hook in hooks())
    lines += ["", "## Hooks", "", "A plugin implements hooks, see [Writing plugins](/plugins.md#hooks).", ""]
    return "\n".join([*lines, table(("hook", "what it is"), rows)]) + "\n"


def hooks() -> Iterator[tuple[str, Any]]:
    return ((name, hook) for name, hook in sorted(vars(hookspecs).items()) if name.startswith("difftool_"))


def _first(value: Any, name: str) -> str:
    return " ".join(_documentation(value, name).partition("\n\n")[0].split())


def _documentation(value: Any, name: str) -> str:
    """Return what is said of a public name: of a class or function its docstring, of a value the text below it."""
    if inspect.isclass(value) or inspect.isroutine(value):
        return inspect.getdoc(value) or ""
    return _notes(f"difftool.{difftool._HOME.get(name, 'version')}")[""].get(name, "")


def _described(name: str, value: Any) -> Iterator[str]:
    if inspect.isclass(value):
        yield from _object("class", f"{name}{_constructor(value)}", _documentation(value, name), [*_members(value)])
    elif inspect.isroutine(value):
        yield from _object("function", f"{name}{_signature(value)}", _documentation(value, name))
    else:
        yield from _object("data", name, _documentation(value, name.rpartition(".")[2]))


def _object(kind: str, signature: str, doc: str, within: list[str] | None = None) -> list[str]:
    """Return the description of an object of Python, and of those within it."""
    fence = "::::::" if within is not None else ":::"
    return [f"{fence}{{py:{kind}}} {signature}", "", _linked(paragraphs(doc)), "", *(within or []), fence, ""]


def _linked(text: str) -> str:
    """Return a text with public names as links."""
    return re.sub(r"`(\w+)`", lambda m: f"{{py:obj}}`~difftool.{m[1]}`" if m[1] in difftool._HOME else m[0], text)


def _members(cls: type) -> Iterator[str]:
    """Yield the fields, then the other public members that difftool defines, in the order of their definition."""
    ours = [base for base in cls.__mro__ if base.__module__.startswith("difftool")]
    notes: dict[str, str] = {}
    for base in reversed(ours):
        notes |= _notes(base.__module__).get(base.__name__, {})
    own = {f.name: f for f in dataclasses.fields(cls)} if dataclasses.is_dataclass(cls) else {}
    for f in own.values():
        if not f.name.startswith("_"):
            default = "" if f.default is dataclasses.MISSING else f" = {f.default!r}"
            yield from _object("attribute", f"{f.name}: {_bare(f.type)}{default}", notes.get(f.name, ""))
    found: dict[str, Any] = {}
    for base in reversed(ours):
        found |= {n: v for n, v in vars(base).items() if not n.startswith("_") or n == "__call__"}
    for name, value in found.items():
        if name in own:
            continue
        if isinstance(value, (classmethod, staticmethod)):
            yield from _object(
                "method", f"{name}{_signature(getattr(cls, name))}", inspect.getdoc(value.__func__) or ""
            )
        elif isinstance(value, (property, functools.cached_property)):
            yield from _object("property", name, inspect.getdoc(value) or "")
        elif inspect.isfunction(value):
            yield from _object("method", f"{name}{_signature(value, bound=True)}", inspect.getdoc(value) or "")
        elif notes.get(name):
            yield from _object("attribute", f"{name} = {value!r}", notes[name])


def _constructor(cls: type) -> str:
    """Return the arguments of a class; nothing for records, whose fields they are."""
    own = "__init__" in vars(cls) and not dataclasses.is_dataclass(cls) and not getattr(cls, "_is_protocol", False)
    return _signature(cls) if own else ""


def _signature(function: Any, *, bound: bool = False) -> str:
    signature = inspect.signature(function)
    parameters = [*signature.parameters.values()][bound:]
    return _text(signature.replace(parameters=parameters))


class _Name:
    """An annotation that is shown as it was written."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


def _text(signature: inspect.Signature) -> str:
    def bare(annotation: Any) -> Any:
        return annotation if annotation is inspect.Parameter.empty else _Name(_bare(annotation))

    def named(p: inspect.Parameter) -> inspect.Parameter:
        default = _Name("...") if p.default is dataclasses.MISSING else p.default
        return p.replace(annotation=bare(p.annotation), default=default)

    parameters = [named(p) for p in signature.parameters.values()]
    return str(signature.replace(parameters=parameters, return_annotation=bare(signature.return_annotation)))


def _bare(annotation: Any) -> str:
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)


@functools.cache
def _notes(module: str) -> Mapping[str, Mapping[str, str]]:
    """Return the texts that stand below values in a module, by class ("" for the module itself) and name."""
    tree = ast.parse(inspect.getsource(importlib.import_module(module)))
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    return {"": _texts(tree.body), **{name: _texts(node.body) for name, node in classes.items()}}


def _texts(body: Sequence[ast.stmt]) -> Mapping[str, str]:
    found = {}
    for statement, after in pairwise(body):
        target = statement.targets[0] if isinstance(statement, ast.Assign) else getattr(statement, "target", None)
        if isinstance(target, ast.Name) and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            found[target.id] = inspect.cleandoc(str(after.value.value))
    return found
