"""The layout: folders import downwards only, no modules import each other in a circle, and no module only forwards."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import difftool

PACKAGE = Path(difftool.__file__).parent
BUILT_INS = PACKAGE.parent / "plugins" / "difftool_plugins"

LAYERS = (
    ("version", "errors", "files", "locks", "manifest", "rng", "children", "scripts", "resources", "display"),
    ("distributed", "devices", "compiling"),
    ("options", "paths", "specs", "components", "settings", "hookspecs"),
    ("diffusion",),
    ("data",),
    ("figures",),
    ("plugins",),
    ("runs",),
    ("sampling", "evaluation"),
    ("training",),
    ("testing",),
    ("report",),
    ("cli",),
    ("pictures",),
    ("api", "__main__"),
)
"""The folders and modules of the core, lowest first. A module imports from its own layer and from those below."""

ALLOWED = {(f"difftool.testing.{name}", "difftool.cli") for name in ("common", "commands", "manager")}
"""The exceptions: the laws that send options through the real command line, and `invoke`, which runs it."""


def sources() -> dict[str, Path]:
    """Every module of the core and of the built-ins, by its dotted name."""
    found = {f"difftool.{_dotted(path.relative_to(PACKAGE))}".rstrip("."): path for path in PACKAGE.rglob("*.py")}
    if BUILT_INS.is_dir():
        found |= {
            f"difftool_plugins.{_dotted(path.relative_to(BUILT_INS))}".rstrip("."): path
            for path in BUILT_INS.rglob("*.py")
        }
    return found


def _dotted(path: Path) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix("__init__").rstrip(".")


def imports(path: Path, known: Mapping[str, Path], *, types: bool) -> Iterator[str]:
    """The known modules that a file imports, also inside functions, and with `types` also under TYPE_CHECKING."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    left_out: set[ast.AST] = set()
    if not types:
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
                left_out.update(ast.walk(node))
    for node in ast.walk(tree):
        if node in left_out:
            continue
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            while name and name not in known:
                name = name.rpartition(".")[0]
            if name not in ("", "difftool"):  # the public face imports everything, lazily
                yield name


def graph(*, types: bool) -> dict[str, set[str]]:
    known = sources()
    return {
        module: {name for name in imports(path, known, types=types) if name != module}
        for module, path in known.items()
        if module != "difftool"
    }


def circles(arrows: Mapping[str, set[str]]) -> list[list[str]]:
    """The strongly connected components of more than one module (Tarjan, 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(module: str) -> None:
        index[module] = low[module] = len(index)
        stack.append(module)
        for other in arrows.get(module, ()):
            if other not in index:
                visit(other)
                low[module] = min(low[module], low[other])
            elif other in stack:
                low[module] = min(low[module], index[other])
        if low[module] == index[module]:
            at = stack.index(module)
            if len(stack) - at > 1:
                found.append(sorted(stack[at:]))
            del stack[at:]

    for module in arrows:
        if module not in index:
            visit(module)
    return found


def layer_of(module: str) -> int:
    name = module.split(".")[1]
    return next(number for number, names in enumerate(LAYERS) if name in names)


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert circles(graph(types=True)) == []


def test_a_circle_is_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": set()}) == [["a", "b", "c"]]


def test_folders_import_downwards_only() -> None:
    upwards = [
        f"{module} -> {other}"
        for module, others in graph(types=False).items()
        for other in others
        if module.startswith("difftool.") and other.startswith("difftool.") and layer_of(other) > layer_of(module)
        if not any(module == low and other.startswith(high) for low, high in ALLOWED)
    ]
    assert upwards == []


def test_no_module_only_forwards() -> None:
    forwarders = []
    for module, path in sources().items():
        nodes = [node for node in ast.parse(path.read_text(encoding="utf-8")).body if not isinstance(node, ast.Expr)]
        if nodes and all(isinstance(node, (ast.Import, ast.ImportFrom)) for node in nodes):
            forwarders.append(module)
    assert set(forwarders) <= {"difftool", "difftool.__main__"}
