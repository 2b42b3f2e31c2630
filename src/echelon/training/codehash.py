"""Which code a run depends on, as hashes: what was trained by other code is not the same experiment.

A run depends on its system's module, on the modules that train and evaluate, and on whatever these import inside
echelon, at load or inside functions, or name as "module:name" to import it later. What is hashed is the syntax tree
without positions, docstrings and TYPE_CHECKING blocks, so comments, formatting and documentation can be edited freely.
A system's `claims` function is left out too: a result records the configurations and the test themselves.

Rooms below `systems` only look at runs and are not followed; nor are the modules in `SILENT`, which can change what is
shown, but no number.
"""

from __future__ import annotations

import ast
import hashlib
import re
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

from echelon.errors import DataError

PACKAGE = Path(__file__).parents[1]
TRAINER = "echelon.training.run"
"""The module that runs every training; it imports the loops and the evaluation."""
UNFOLLOWED = ("evidence", "cli")
SILENT = tuple(f"echelon.{name}" for name in ("errors", "training.codehash", "training.launch", "training.progress"))

_NAMED = re.compile(r"\w+(\.\w+)+:\w+")

Hashes = dict[str, str]
"""Path of a module below the package -> its hash, 12 hexadecimal digits."""


def code_hash(module: str) -> str:
    """Hash of all code that training and evaluating the system in `module` (dotted) runs, 12 hexadecimal digits.

    A module outside echelon counts with its own file and all that it takes from echelon; without a file (typed into an
    interpreter), only the trainer's code can count.
    """
    if module.partition(".")[0] == PACKAGE.name:
        return digest(code_hashes([module, TRAINER]))
    name = getattr(sys.modules.get(module), "__file__", None)
    if name is None:
        return digest(code_hashes([TRAINER]))
    file = Path(name)
    taken = [found for found in _imports(file, file.stat().st_mtime_ns, module, PACKAGE) if _file(found, PACKAGE)]
    return digest(code_hashes([*taken, TRAINER]) | {file.name: module_hash(file)})


def code_hashes(roots: Iterable[str]) -> Hashes:
    """Hash of every module that `roots` (dotted names) reach. Raises DataError when a root does not exist."""
    return {file.relative_to(PACKAGE).as_posix(): module_hash(file) for file in closure(roots).values()}


def digest(hashes: Mapping[str, str]) -> str:
    """One hash for all modules, 12 hexadecimal digits."""
    return _short("\n".join(f"{name} {value}" for name, value in sorted(hashes.items())))


def closure(roots: Iterable[str], package: Path = PACKAGE) -> dict[str, Path]:
    """All modules that `roots` (dotted names) import inside `package`, themselves included: name -> file.

    A name that a module takes from a package, and that is not one of its modules, counts as the package's `__init__`.
    Raises DataError when a root does not exist.
    """
    found: dict[str, Path] = {}
    pending = list(roots)
    missing = [root for root in pending if _file(root, package) is None]
    if missing:
        raise DataError(f"no module {missing[0]} in {package}")
    while pending:
        name = pending.pop()
        file = _file(name, package)
        if file is None or name in found or name in SILENT or name.split(".")[1:2] in ([room] for room in UNFOLLOWED):
            continue
        found[name] = file
        pending += _imports(file, file.stat().st_mtime_ns, name, package)
    return found


def module_hash(file: Path) -> str:
    """Hash of one module's code, 12 hexadecimal digits."""
    return _hash(file, file.stat().st_mtime_ns)


def _file(name: str, package: Path) -> Path | None:
    """Source file of a dotted name inside `package`; None for anything else (a class, another distribution)."""
    first, *rest = name.split(".")
    if first != package.name:
        return None
    base = package.joinpath(*rest)
    return next((f for f in (base.with_suffix(".py"), base / "__init__.py") if f.is_file()), None)


@cache
def _imports(file: Path, changed_ns: int, module: str, package: Path) -> list[str]:
    """Dotted names of the modules that a module imports, or names in order to import them."""
    names: list[str] = []
    parts = module.split(".")
    for node in ast.walk(_stripped(file)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = parts[: len(parts) - node.level + (file.name == "__init__.py")] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            candidates = [f"{base}.{alias.name}" for alias in node.names]
            names += [name if _file(name, package) else base for name in candidates]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and _NAMED.fullmatch(node.value):
            names.append(node.value.partition(":")[0])
    return names


@cache
def _hash(file: Path, changed_ns: int) -> str:
    return _short(_text(_stripped(file)))


def _stripped(file: Path) -> ast.Module:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    tree.body = [node for node in tree.body if not (isinstance(node, ast.FunctionDef) and node.name == "claims")]
    return _Strip().visit(tree)


class _Strip(ast.NodeTransformer):
    """Removes what never runs: texts that stand alone (docstrings, docs of fields) and TYPE_CHECKING blocks."""

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        return None if isinstance(node.value, ast.Constant) else self.generic_visit(node)

    def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
        name = node.test.attr if isinstance(node.test, ast.Attribute) else getattr(node.test, "id", "")
        if name == "TYPE_CHECKING":
            self.generic_visit(node)
            return node.orelse
        return self.generic_visit(node)


def _text(node: object) -> str:
    """The tree as text without positions; empty fields are left out, since Python versions add new ones."""
    if isinstance(node, list):
        return "[" + ",".join(_text(item) for item in node) + "]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = [(name, value) for name, value in ast.iter_fields(node) if value is not None and value != []]
    return f"{type(node).__name__}({','.join(f'{name}={_text(value)}' for name, value in fields)})"


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
