"""What every implemented system shows for itself: fair claims, documentation, a computed status, oracle tests."""

from __future__ import annotations

import ast
import inspect
import itertools
import json
import re
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from echelon.claims import Claim, statistic_name
from echelon.errors import UsageError
from echelon.evidence import reproduce, status
from echelon.systems import index
from echelon.training.config import RunConfig, from_json, to_json
from echelon.training.language.agent import LanguageAgent
from echelon.training.online.agent import OnlineAgent
from echelon.training.online.config import OnlineConfig
from echelon.training.trainer import Trainable

TESTS = Path(__file__).parent
BUDGET = (
    "env",
    "updates",
    "batch_size",
    "transitions",
    "lr",
    "eval_every",
    "eval_episodes",
    "actor_hidden",
    "value_hidden",
    "limit",
    "model",
    "layers",
    "width",
    "context",
    "warm_episodes",
    "warm_slips",
    "warm_epochs",
    "warm_seed",
    "tasks",
    "group",
)
ONLINE_BUDGET = ("env", "limit", "environment_steps", "eval_episodes")
"""Online systems learn in their own ways from as many steps."""


@pytest.fixture(params=index.names())
def cls(request: pytest.FixtureRequest) -> type[Trainable]:
    """Every implemented system in turn."""
    return index.load(request.param)


def claims() -> list[Any]:
    """Every claim of every system, at the size of record and, where there is one, at the published size."""
    found = []
    for slug, full in itertools.product(index.names(), (False, True)):
        try:
            made = reproduce.claims_of(slug, full)
        except UsageError:
            continue
        found += [pytest.param(slug, claim, id=f"{slug}-{claim.id}{'-full' * full}") for claim in made]
    return found


def test_claims_of_a_system_have_unique_ids(cls: type[Trainable]) -> None:
    ids = [claim.id for claim in reproduce.claims_of(cls.Config.system)]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize(("slug", "claim"), claims())
def test_a_claim_is_fair_and_complete(slug: str, claim: Claim) -> None:
    assert claim.seeds == tuple(range(len(claim.seeds))), "seeds of record are 0, 1, 2, …"
    assert claim.text and claim.source
    budgets = []
    for score in claim.scores:
        assert statistic_name(score.statistic)
        configs = reproduce.configs_of(score.arm, claim.seeds)
        assert configs[0].system in index.names()
        document = json.loads(json.dumps(to_json(configs[0])))
        assert from_json(type(configs[0]), document["config"]) == configs[0]
        names = ONLINE_BUDGET if isinstance(configs[0], OnlineConfig) else BUDGET
        budgets.append({name: getattr(configs[0], name) for name in names if hasattr(configs[0], name)})
    shared = set.intersection(*(set(budget) for budget in budgets))
    assert all(budget[name] == budgets[0][name] for budget in budgets for name in shared), (
        "method and baseline differ in budget"
    )
    assert any(score.arm.config(0).system == slug for score in claim.scores)


def test_everything_public_is_documented(cls: type[Trainable]) -> None:
    module = sys.modules[cls.__module__]
    lacking = [
        name for name, value in vars(module).items() if public(module, name, value) and not inspect.getdoc(value)
    ]
    for name, kind in inspect.getmembers(module, inspect.isclass):
        if public(module, name, kind):
            members = [m for m, value in vars(kind).items() if inspect.isfunction(value) and not m.startswith("_")]
            lacking += [f"{name}.{member}" for member in members if not inspect.getdoc(getattr(kind, member))]
    lacking += [f"{cls.Config.__name__}.{name}" for name in undocumented_fields(cls.Config)]
    assert not lacking


def public(module: Any, name: str, value: Any) -> bool:
    """Whether `value` is a public function or class that `module` itself defines."""
    here = inspect.isfunction(value) or inspect.isclass(value)
    return here and value.__module__ == module.__name__ and not name.startswith("_")


def undocumented_fields(config: type[RunConfig]) -> list[str]:
    """Fields of the class's own body that no text follows."""
    body = ast.parse(textwrap.dedent(inspect.getsource(config))).body[0].body  # type: ignore[attr-defined]
    lacking = []
    for node, following in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign) and "ClassVar" not in ast.unparse(node.annotation):
            text = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
            lacking += [] if text else [ast.unparse(node.target)]
    return lacking


def test_its_file_opens_with_idea_source_levels_and_deviations(cls: type[Trainable]) -> None:
    text = sys.modules[cls.__module__].__doc__ or ""
    if index.rows()[cls.Config.system].arxiv != "-":  # what was published elsewhere names its journal
        assert re.search(r"arXiv (\d{4}\.\d{5}|[a-z]+/\d{7})", text)
    for heading in ("Idea:", "Source:", "Levels:", "Deviations:"):
        assert f"\n{heading}" in text, f"the module's docstring lacks '{heading}'"


def test_its_status_is_computed(tmp_path: Path) -> None:
    rows = {row["slug"]: row for row in status.table(tmp_path)}
    for slug in index.names():
        assert rows[slug]["status"] == status.RUNS, "nothing is verified without results"
        assert {claim["verdict"] for claim in rows[slug]["claims"]} <= {status.NOT_RUN}
    planned = [row["slug"] for row in rows.values() if row["status"] == status.PLANNED]
    assert set(planned) == set(rows) - set(index.names())


def test_it_has_oracle_tests(cls: type[Trainable]) -> None:
    """Some test of it compares with `tests/reference`, which was written without a look at its code.

    The credit rules of language agents and of options are compared there one by one; of the agent itself, which says
    what they are given, numbers set by hand in tests of its module will do.
    """
    for file in TESTS.rglob("test_*.py"):
        tree = ast.parse(file.read_text())
        imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)} | {
            alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
        }
        words = {
            node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
        if cls.Config.system in words and any(str(name).split(".")[0] == "reference" for name in imported):
            return
        if issubclass(cls, LanguageAgent | OnlineAgent) and cls.__module__ in imported:
            return
    pytest.fail(f"no test compares {cls.Config.system} with an independent reference")
