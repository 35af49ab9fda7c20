"""Data flows one way, and functions stay small enough to be read."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import hmt

SOURCE = Path(__file__).parents[1] / "src" / "hmt"
LAYERS = (
    "terminal", "config", "files", "options", "atomic", "pretrained", "text", "memory", "extensions",
    "model", "metrics", "report", "training", "evaluation", "serving", "harness", "compat", "cli",
)  # fmt: skip
FILES = [
    path for path in sorted(SOURCE.rglob("*.py")) if path.parent != SOURCE or path.stem not in ("__init__", "__main__")
]


def layer_of(module: str) -> str:
    """The layer of a module named below hmt, such as model.step."""
    part = module.split(".")[0]
    if part == "extensions":  # they are parts of the model that it does not name
        return "model"
    return "cli" if module == "compat.published" else part


def imports_of(path: Path, for_types: bool = True) -> list[str]:
    """Modules below hmt that a file imports, wherever in the file; those for type checkers alone may be left out."""
    tree, found = ast.parse(path.read_text()), []
    if not for_types:
        tree.body = [node for node in tree.body if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node))]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("hmt."):
            found.append(node.module.removeprefix("hmt."))
        elif isinstance(node, ast.ImportFrom) and node.module == "hmt":
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            found += [alias.name.removeprefix("hmt.") for alias in node.names if alias.name.startswith("hmt.")]
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(SOURCE).as_posix())
def test_a_file_imports_only_from_the_layers_before_it(path: Path) -> None:
    own = layer_of(path.relative_to(SOURCE).with_suffix("").as_posix().replace("/", "."))
    for module in imports_of(path):
        assert LAYERS.index(layer_of(module)) <= LAYERS.index(own), f"{own} imports {module}"


def test_every_import_is_of_a_module_that_is_there() -> None:
    """Verbs import within functions, where a missing module shows only to the user of that verb."""
    for path in SOURCE.rglob("*.py"):
        for module in imports_of(path):
            place = SOURCE.joinpath(*module.split("."))
            assert place.with_suffix(".py").is_file() or place.is_dir() or module in hmt.__all__, f"{path}: {module}"


def test_no_files_import_each_other() -> None:
    graph = {
        path.relative_to(SOURCE).with_suffix("").as_posix().replace("/", "."): imports_of(path, for_types=False)
        for path in FILES
    }

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join((*trail, module))
        for target in graph.get(module, []):
            visit(target, (*trail, module))

    for module in graph:
        visit(module, ())


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(SOURCE).as_posix())
def test_functions_stay_short(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef) and node.end_lineno is not None:
            documented = ast.get_docstring(node, clean=False)
            length = node.end_lineno - node.lineno + 1 - (len(documented.splitlines()) if documented else 0)
            assert length <= 65, f"{node.name} has {length} lines besides its docstring"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(SOURCE).as_posix())
def test_files_stay_short(path: Path) -> None:
    """One class of transformers' is one file; everything else is read in one sitting."""
    tree, described = ast.parse(path.read_text()), 0
    for node in ast.walk(tree):
        for text in getattr(node, "body", []) if not isinstance(node, ast.Lambda | ast.IfExp) else []:
            if (
                isinstance(text, ast.Expr)
                and isinstance(text.value, ast.Constant)
                and isinstance(text.value.value, str)
            ):
                described += (text.end_lineno or text.lineno) - text.lineno + 1
    lines = sum(bool(line.strip()) for line in path.read_text().splitlines()) - described
    assert lines <= (500 if path.name == "modeling_hmt.py" else 310), f"{lines} lines besides docstrings"
