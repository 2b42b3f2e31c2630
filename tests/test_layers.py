"""The house keeps its shape: import order, lazy extras, and files small enough to read."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "echelon"
MODULES = sorted(SOURCE.rglob("*.py"))
CORE = {"torch", "numpy", "gymnasium", "safetensors", "tyro", "rich", "echelon"}
FILE_LINES, FUNCTION_LINES = 500, 60


def imports_at_load(tree: ast.Module) -> Iterator[str]:
    """Yield the top-level packages that loading the module imports (not those inside functions or TYPE_CHECKING)."""
    pending: list[ast.AST] = list(tree.body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.partition(".")[0]
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            pending += node.orelse
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            pending += ast.iter_child_nodes(node)


def length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of the function's code, without decorators and docstring."""
    first = function.body[0]
    documented = (
        isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
    )
    docstring = (first.end_lineno or 0) - first.lineno + 1 if documented else 0
    return (function.end_lineno or 0) - function.lineno + 1 - docstring


def test_rooms_import_only_rooms_below() -> None:
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout[-4000:]


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_module_loads_core_dependencies_only_and_is_short(path: Path) -> None:
    text = path.read_text()
    tree = ast.parse(text)
    extras = {name for name in imports_at_load(tree)} - CORE - set(sys.stdlib_module_names)
    assert not extras, (
        f"imports optional packages at load: {sorted(extras)}; import them inside the function that needs them"
    )
    lines = len(text.splitlines())
    assert lines <= FILE_LINES, f"{lines} lines; the budget is {FILE_LINES}"
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    long = {f.name: length(f) for f in functions if length(f) > FUNCTION_LINES}
    assert not long, f"functions over {FUNCTION_LINES} lines: {long}"
