"""The table of systems: complete, unambiguous, lazy, and every implemented row leads to its class."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from echelon.errors import UsageError
from echelon.systems import index

FAMILIES = {"offline", "online", "multiagent", "agents", "reasoning", "decisions", "embodied", "representation"}


def test_it_holds_the_101_systems_in_order_then_the_baselines() -> None:
    rows = list(index.rows().values())
    assert [row.number for row in rows[:101]] == list(range(1, 102))
    assert {"gcbc", "gcivl", "gciql", "hiql", "grpo"} <= {row.slug for row in rows[101:]} <= set(index.names())
    assert {row.number for row in rows[101:]} == {None}


def test_every_cell_is_well_formed_and_names_are_unique() -> None:
    rows = index.rows()
    papers = [row for row in rows.values() if row.number is not None]
    assert len(index.TABLE.strip().splitlines()) == len(rows)
    assert len({row.name for row in rows.values()}) == len(rows)
    assert len({row.arxiv for row in papers}) == 101
    for slug, row in rows.items():
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", slug)
        older = r"" if row.number is not None else r"|cs/\d{7}|-"
        assert re.fullmatch(r"\d{4}\.\d{5}" + older, row.arxiv), slug
        assert row.family in FAMILIES and row.name and row.title


@pytest.mark.parametrize(
    ("slug", "number", "arxiv", "family"),
    [
        ("gmah", 1, "2408.11416", "multiagent"),
        ("ota", 27, "2505.12737", "offline"),
        ("gigpo", 51, "2505.10978", "agents"),
        ("hilp", 84, "2402.15567", "offline"),
        ("subrl", 101, "2307.13372", "decisions"),
    ],
)
def test_known_rows(slug: str, number: int, arxiv: str, family: str) -> None:
    row = index.rows()[slug]
    assert (row.number, row.arxiv, row.family) == (number, arxiv, family)


def test_families_have_their_sizes() -> None:
    papers = [row.family for row in index.rows().values() if row.number is not None]
    assert {family: papers.count(family) for family in sorted(FAMILIES)} == {
        "agents": 15, "decisions": 10, "embodied": 19, "multiagent": 12,
        "offline": 11, "online": 13, "reasoning": 17, "representation": 4,
    }  # fmt: skip


@pytest.mark.parametrize("slug", index.names())
def test_an_implemented_row_leads_to_its_class(slug: str) -> None:
    cls = index.load(slug)
    assert cls.Config.system == slug
    assert cls.__module__ == index.rows()[slug].module
    assert cls.__name__ == index.rows()[slug].name
    assert index.rows()[slug].family in str(cls.__module__).split(".")
    assert cls.__doc__ and sys.modules[cls.__module__].__doc__


def test_every_listed_class_has_a_row() -> None:
    assert set(index.CLASSES) <= set(index.rows())


def test_unknown_and_planned_systems_are_refused_with_a_remedy() -> None:
    with pytest.raises(UsageError, match="unknown system 'hiqll'; did you mean hiql"):
        index.load("hiqll")
    with pytest.raises(UsageError, match=r"'gmah' \(arXiv 2408.11416\) is planned; implemented: gcbc"):
        index.load("gmah")


def test_reading_the_table_imports_no_system_and_no_torch() -> None:
    code = (
        "import sys; from echelon.systems import index; index.rows(); index.names(); "
        "print([m for m in sys.modules if m.startswith('echelon.systems.') or m == 'torch'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['echelon.systems.index']"
