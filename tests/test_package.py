"""The installed package: light to import, whole without its extras, and consistent with its metadata."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parents[1]
EXTRAS = (
    "ogbench",
    "mujoco",
    "dm_control",
    "metaworld",
    "gymnasium_robotics",
    "tensorboard",
    "matplotlib",
    "transformers",
)

BLOCK = """
import importlib.abc, sys
class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named '{{name}}'", name=name)
sys.meta_path.insert(0, Block())
"""


def python(code: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run `code` in a fresh interpreter that sees no user configuration."""
    env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=cwd, env=env)


def test_import_loads_neither_torch_nor_any_extra() -> None:
    code = "import sys, echelon; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    loaded = set(python(code).stdout.split())
    assert "echelon" in loaded
    assert not loaded & {"torch", "numpy", "gymnasium", "rich", "tyro", *EXTRAS}


def test_every_module_imports_without_extras(tmp_path: Path) -> None:
    code = BLOCK.format(blocked=set(EXTRAS)) + (
        "import pkgutil, importlib, echelon\n"
        "found = pkgutil.walk_packages(echelon.__path__, 'echelon.')\n"
        "names = [module.name for module in found if not module.name.endswith('__main__')]\n"
        "[importlib.import_module(name) for name in names]\n"
        "print(len(names))"
    )
    done = python(code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout.split()[-1]) > 10


def test_missing_extra_is_named_with_its_remedy() -> None:
    code = BLOCK.format(blocked=set(EXTRAS)) + (
        "from echelon.errors import MissingExtra\n"
        "from echelon.envs.ogbench import make_env\n"
        "try: make_env('pointmaze-medium-navigate-v0')\n"
        "except MissingExtra as error: print(error)"
    )
    done = python(code)
    assert 'pip install "echelon[control]"' in done.stdout, done.stderr[-2000:]


def test_version_agrees_everywhere() -> None:
    import echelon

    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert echelon.__version__ == declared == metadata.version("echelon")
    assert f"version: {declared}" in (ROOT / "CITATION.cff").read_text()
    assert declared in (ROOT / "CHANGELOG.md").read_text()


def test_constraints_pin_every_declared_dependency_exactly() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.strip()]
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][0-9A-Za-z.]*", line) for line in lines)
    pinned = {canonical(line.partition("==")[0]) for line in lines}
    wanted = (
        project["dependencies"] + project["optional-dependencies"]["control"] + project["optional-dependencies"]["dev"]
    )
    missing = {canonical(re.split(r"[=<>!~\[; ]", item)[0]) for item in wanted} - pinned
    assert not missing, f"declared, but not pinned in constraints.txt: {sorted(missing)}"


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
