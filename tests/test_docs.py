"""What README and docs say is so: their code runs, their links lead somewhere, their tables are up to date."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from echelon.cli import VERBS
from echelon.envs.collect import make
from echelon.evidence import status
from echelon.training import run
from echelon.training.config import Config

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
ENV = "pointmaze-medium-navigate-v0"
SMALL: dict[str, Any] = {
    "updates": 3,
    "batch_size": 8,
    "transitions": 1500,
    "eval_every": 3,
    "eval_episodes": 1,
    "log_every": 1,
    "actor_hidden": (8, 8),
    "value_hidden": (8, 8),
}


def blocks(page: Path) -> list[str]:
    """The Python code of a page."""
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


def small(config: Config) -> Config:
    """`config` with a budget for a test."""
    fields = {field.name for field in dataclasses.fields(config)}
    return dataclasses.replace(config, **{name: value for name, value in SMALL.items() if name in fields})


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that holds the first episodes of the data set that the examples use."""
    root = tmp_path_factory.mktemp("data")
    make(ENV, jobs=1, episodes=2, root=root, progress=False)
    return root


@pytest.fixture
def workplace(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory in which every training is small; modules imported from it are forgotten."""
    train = run.train
    monkeypatch.setenv("ECHELON_DATA", str(data))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(run, "train", lambda cls, config, *args, **options: train(cls, small(config), *args, **options))
    yield tmp_path
    sys.modules.pop("hbc", None)


def test_readme_example_runs(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = blocks(ROOT / "README.md")
    assert len(example.splitlines()) <= 20
    exec(compile(example, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "['high', 'low']" in printed
    assert "decisions of the upper level in 5 episodes" in printed
    assert (workplace / "runs/seven/report.html").is_file()


def test_the_worked_example_is_a_system_that_holds_its_subgoals(workplace: Path) -> None:
    source, trial, claims = blocks(ROOT / "docs/add-a-system.md")
    (workplace / "hbc.py").write_text(source)
    importlib.invalidate_caches()
    scope: dict[str, Any] = {}
    exec(compile(trial, "add-a-system.md", "exec"), scope)
    assert scope["run"] == Path("runs/hbc")
    agent, step = run.load_agent(scope["HBC"], scope["run"])
    assert step == SMALL["updates"] and [level.name for level in agent.levels()] == ["high", "low"]
    ast.parse(claims)

    (reading,) = blocks(ROOT / "docs/runs.md")
    scope = {"path": "runs/hbc/rollouts/step_000000003"}
    exec(compile(reading, "runs.md", "exec"), scope)
    assert scope["length"].max() == 25 and scope["length"].sum() == scope["rollout"].size


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text())
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not missing, f"{page.name} links to what is not there: {missing}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_commands_and_files_that_pages_name_exist(page: Path) -> None:
    text = page.read_text()
    verbs = set(re.findall(r"\bechelon ([a-z]+)\b", "\n".join(re.findall(r"`([^`\n]+)`", text))))
    assert verbs <= {*VERBS, "systems"}, f"unknown verbs: {sorted(verbs - set(VERBS))}"
    files = re.findall(r"`((?:src|tests|docs|benchmarks)/[\w/.-]+\.\w+)`", text)
    missing = [name for name in files if not (ROOT / name).exists() and "hbc" not in name]
    assert not missing, f"{page.name} names files that are not there: {missing}"


def test_generated_tables_are_up_to_date() -> None:
    assert status.outdated(ROOT) == [], "run: echelon systems --write"


def test_the_module_map_of_the_docs_names_every_room() -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    rooms = {
        path.name for path in (ROOT / "src/echelon").iterdir() if path.is_dir() and (path / "__init__.py").exists()
    }
    assert all(f"`{room}/`" in text for room in rooms), sorted(rooms)
