"""Rewards of turns, of reasoning and of driving plans, against published numbers and independent references."""

from __future__ import annotations

import math
from itertools import chain
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from packed_turns import Turns, assert_close, booleans, doubles, integers, turns
from reference import credit_language as ref
from reference import credit_language_values as ref_values
from reference import credit_shaped_rewards as ref_rewards
from torch import Tensor

from echelon.credit.groups import normalise
from echelon.errors import UsageError
from echelon.objectives.driving import collision_reward, pdm_score
from echelon.objectives.reasoning import budget_ceiling, budget_reward, exploration_reward
from echelon.objectives.terms import each, evaluate
from echelon.objectives.turns import (
    ADD,
    EXIT,
    EXPLORE,
    NONE,
    PLANNING,
    REFLECTION,
    EditReward,
    hiper_reward,
    mashost_edits,
    rlvmr_meta,
    rlvmr_score,
)
from echelon.spans import Spans


def bools(*flags: int) -> Tensor:
    return torch.tensor(flags).bool()


def rows_of(packed: Turns, **columns: Tensor) -> list[dict[str, Any]]:
    """The episodes as dicts of lists."""
    nested = {name: packed.nest(column) for name, column in columns.items()}
    return [{name: rows[i] for name, rows in nested.items()} for i in range(packed.episodes.n)]


# ---- RLVMR

TAGS = {"planning": PLANNING, "explore": EXPLORE, "reflection": REFLECTION, "monitor": 7, "none": NONE}


def test_rlvmr__code() -> None:
    episodes, success = Spans.from_lengths([4, 3]), bools(1, 0)
    valid = bools(1, 1, 1, 1, 1, 1, 0)
    tag, reward = rlvmr_meta(
        episodes,
        tag=torch.tensor([PLANNING, EXPLORE, EXPLORE, REFLECTION, PLANNING, EXPLORE, EXPLORE]),
        valid=valid,
        action=torch.tensor([0, 1, 1, 2, 0, 1, 3]),
        admissible=bools(1, 1, 0, 1, 1, 1, 1),
        success=success,
    )
    assert reward.tolist() == [1, 1, 0, 1, 0, 1, 0]
    assert tag.tolist() == [0, 1, 1, 2, 0, 1, NONE]
    score = rlvmr_score(episodes, success=success, valid=valid)
    assert_close(score, [10, 10, 10, 10, 0, 0, -0.1])
    level = normalise(Spans([0, 7]), score.double(), singleton="raw")
    assert_close(level, [*[0.801768] * 4, -1.062809, -1.062809, -1.081455])
    step = normalise(Spans.by_key(tag), reward.double(), singleton="raw")
    assert_close(level + step, [1.508874, 1.379117, -0.352930, 1.801767, -1.769915, -0.485460, -1.081455], 2e-6)
    assert_close(level + step / 2, [1.155321, 1.090443, 0.224419, 1.301768, -1.416362, -0.774134, -1.081455], 2e-6)


@given(turns(), st.data())
def test_rlvmr_equals_its_naive_reference(packed: Turns, data: st.DataObject) -> None:
    size, names = packed.episodes.size, list(TAGS)
    tag, action = integers(data.draw, size, 0, 4), integers(data.draw, size, 0, 2)
    valid, admissible = booleans(data.draw, size), booleans(data.draw, size)
    success = booleans(data.draw, packed.episodes.n)
    episodes = rows_of(packed, tag=tag, action=action, valid=valid, admissible=admissible)
    for episode, won in zip(episodes, success.tolist(), strict=True):
        episode |= {"tag": [names[k] for k in episode["tag"]], "success": won}
    expected = ref.rlvmr_meta_rewards([episodes])
    key = torch.tensor([TAGS[names[k]] for k in tag.tolist()])
    meta = rlvmr_meta(packed.episodes, tag=key, valid=valid, action=action, admissible=admissible, success=success)
    assert packed.nest(meta.reward) == expected["meta"][0]
    assert packed.nest(meta.tag) == [[TAGS[name] for name in row] for row in expected["tag"][0]]


# ---- HiPER

FIVE = Spans.from_lengths([5])


def test_keep_penalties__code() -> None:
    switch, same = bools(1, 0, 1, 0, 0), torch.zeros(5, dtype=torch.long)
    flags = {"switch": switch, "subgoal": same, "valid": bools(1, 1, 1, 1, 1)}
    charged = hiper_reward(FIVE, reward=torch.zeros(5).double(), keep=-3.5, **flags)
    assert_close(charged, [0, -0.7, 0, -0.7, -0.7])
    switch = bools(1, 0, 1, 0, 1)
    fixed = hiper_reward(FIVE, reward=doubles(0, 0, 0, 0, 1), scale="fixed", **(flags | {"switch": switch}))
    assert_close(fixed, [0, -0.3, 0, -0.3, 1])
    switch = bools(1, 0, 1, 0, 0)
    assert_close(hiper_reward(FIVE, reward=doubles(0, 0, 0, 0, 1), scale="fixed", **flags), [0, -0.3, 0, -0.3, 0.7])


@given(turns(), st.data())
def test_hiper_equals_its_naive_reference(packed: Turns, data: st.DataObject) -> None:
    size = packed.episodes.size
    reward = integers(data.draw, size, -2, 2).double()
    switch, valid = booleans(data.draw, size), booleans(data.draw, size)
    subgoal = integers(data.draw, size, -1, 1)
    options = {
        "keep": -1.5,
        "scale": data.draw(st.sampled_from(["fixed", "normalized"])),
        "inconsistent": -0.5,
        "invalid": 0.2,
    }
    episodes = rows_of(packed, reward=reward, switch=switch, valid=valid, subgoal=subgoal)
    for episode in episodes:
        episode["subgoal"] = ["" if key < 0 else "ab"[key] for key in episode["subgoal"]]
    expected = ref_values.hae_rewards([episodes], *options.values())
    actual = hiper_reward(packed.episodes, reward=reward, switch=switch, subgoal=subgoal, valid=valid, **options)
    assert packed.nest(actual) == [pytest.approx(row, abs=1e-12) for row in expected[0]]


# ---- MasHost


def edits(*kinds: int, correct: bool, **options: Any) -> EditReward:
    none = torch.zeros(len(kinds), dtype=torch.bool)
    columns = {"duplicate": none, "isolated": none, "just_added": none, "correct": bools(correct)}
    return mashost_edits(Spans.from_lengths([len(kinds)]), kind=torch.tensor(kinds), **columns, **options)


def test_mashost_edits__reconstructed() -> None:
    node, edge = edits(ADD, ADD, EXIT, correct=True, limit=1)
    assert_close(node, [0, -0.1, 0.1])
    assert_close(edge, [0, 0, 0])
    assert_close(edits(ADD, ADD, ADD, EXIT, correct=False, limit=1).node, [0, -0.1, -0.1, 0])
    assert_close(edits(EXIT, correct=True, limit=0).node, [-1])
    with pytest.raises(UsageError, match="unknown exemption 'step'; did you mean steps"):
        edits(EXIT, correct=True, exemption="step")


KINDS = ["add", "delete", "exit"]
EXEMPT: dict[str, dict[str, Any]] = {
    "steps": {"exemption": "steps", "t_ex": 2},
    "early_additions": {"exemption": "steps", "t_ex": 2, "exempts": "additions"},
    "agents": {"exemption": "agents", "n_ex": 2},
    "training": {"exemption": "training", "e_ex": 2},
}


@given(turns(), st.sampled_from(sorted(EXEMPT)), st.integers(0, 3), st.data())
def test_mashost_equals_its_naive_reference(packed: Turns, exemption: Any, update: int, data: st.DataObject) -> None:
    size, correct = packed.episodes.size, booleans(data.draw, packed.episodes.n)
    kind = integers(data.draw, size, 0, 2)
    flags = {name: booleans(data.draw, size) for name in ("duplicate", "isolated", "just_added")}
    costs = {"size_cost": 0.1, "flaw_cost": 0.2, "exit_bonus": 0.3}
    actual = mashost_edits(
        packed.episodes, kind=kind, correct=correct, exemption=exemption, limit=2, update=update, **flags, **costs
    )
    episodes = rows_of(packed, kind=kind, **flags)
    for part in ("node", "edge"):
        for episode, right, row in zip(episodes, correct.tolist(), packed.nest(getattr(actual, part)), strict=True):
            named = episode | {"kind": [KINDS[k] for k in episode["kind"]], "correct": right}
            options = {"mu": 0.1, "nu": 0.2, "kappa": 0.3, "update": update, "part": part} | EXEMPT[exemption]
            assert row == pytest.approx(ref_rewards.hrpo_step_rewards(named, **options), abs=1e-6)


# ---- HBPO


def test_budget_ceilings__paper() -> None:
    assert_close(budget_ceiling(doubles(512, 1024, 2048, 2560)), [3.923141, 3.695518, 2.828427, 2.222281])


@pytest.mark.parametrize("form", ["paper", "code"])
def test_budget_rewards__paper(form: Any) -> None:
    columns = {"length": doubles(400, 1024, 400, 3000), "budget": doubles(512, 512, 2560, 2560)}
    assert_close(budget_reward(**columns, correct=bools(1, 1, 1, 0), form=form), [3.923141, 3.570518, 2.222281, 0])


def test_the_released_form_punishes_very_short_answers__code() -> None:
    columns = {"length": torch.tensor([0, 9]), "budget": torch.tensor([512, 512]), "correct": bools(1, 1)}
    assert_close(budget_reward(**columns, form="code")[:1], [3.875])
    assert_close(budget_reward(**columns, form="paper"), [3.923141, 3.923141])
    assert budget_reward(**columns, form="code", well_formed=bools(0, 1))[0] == -1
    with pytest.raises(UsageError, match="unknown form 'printed'"):
        budget_reward(**columns, form="printed")


LENGTH = st.integers(0, 100)


@given(st.lists(st.tuples(LENGTH, st.none() | LENGTH, st.booleans(), st.booleans()), min_size=1, max_size=5), st.data())
def test_budget_reward_equals_its_naive_reference(rows: list[Any], data: st.DataObject) -> None:
    form, pi = data.draw(st.sampled_from(["paper", "code"])), data.draw(st.sampled_from([math.pi, 3.1416]))
    options = {"form": form, "alpha": 1 / 32, "pi": pi}
    length, budget, correct, formed = zip(*rows, strict=True)
    actual = budget_reward(
        length=torch.tensor(length),
        budget=doubles(*[math.nan if b is None else b for b in budget]),
        correct=bools(*correct),
        well_formed=bools(*formed),
        max_length=96,
        **options,
    )
    expected = [ref_rewards.hbpo_reward(n, b, c, well_formed=f, l_max=96, **options) for n, b, c, f in rows]
    assert_close(actual, expected, 1e-9)


# ---- ARES

BUCKETS = ["easy", "medium", "hard"]


def explore(count: Any, target: Any, correct: Any, bucket: Any, alpha: Any = (0.5, 0.5, 0.5)) -> Tensor:
    columns = {"count": doubles(*count), "correct": bools(*correct), "difficulty": torch.tensor(bucket)}
    return exploration_reward(**columns, target=doubles(*target), alpha=doubles(*alpha))


def test_exploration_rewards__code() -> None:
    right = explore([14, 11, 4, 10, 2], [10, 10, 10], [1] * 5, [0, 0, 1, 2, 2])
    assert_close(right, [-0.214286, 0, -0.181818, 0.457525, -0.1])
    wrong = explore([10, 20, 20], [10, 10, 10], [0] * 3, [0, 1, 2])
    assert_close(wrong, [0.15, 0.381030, 0.538330])


def test_a_long_wrong_answer_can_outrank_a_short_right_one__code() -> None:
    def gap(due: float, alpha: float) -> float:
        right, wrong = explore([0, 9 * due], [due] * 3, [1, 0], [2, 2], [alpha] * 3)
        return float(1 + right - wrong)

    assert gap(39, 0.5) > 0 > gap(41, 0.5)
    assert gap(39, 0.43) > 0 < gap(1000, 0.43)
    assert gap(4, 0.84) < 0


@given(st.data())
def test_exploration_equals_its_naive_reference(data: st.DataObject) -> None:
    count = st.integers(0, 30)
    groups = data.draw(
        st.lists(st.lists(st.tuples(st.integers(0, 1), count), min_size=1, max_size=4), min_size=1, max_size=3)
    )
    correct, counts = ([[row[k] for row in group] for group in groups] for k in (0, 1))
    targets, alpha = (
        {name: data.draw(values) for name in BUCKETS} for values in (count, st.sampled_from([0.1, 0.5, 2.0]))
    )
    expected = ref_rewards.ares(correct, counts, alpha, targets)
    bucket = [BUCKETS.index(name) for name, group in zip(expected["bucket"], groups, strict=True) for _ in group]
    right, number, reward = (list(chain.from_iterable(rows)) for rows in (correct, counts, expected["reward"]))
    actual = doubles(*right) + explore(number, targets.values(), right, bucket, alpha.values())
    assert_close(actual, reward, 1e-9)


# ---- WorldRFT


@given(turns(), st.sampled_from(["each", "first", "following"]), st.data())
def test_collisions_equal_their_naive_reference(packed: Turns, mark: Any, data: st.DataObject) -> None:
    overlap = booleans(data.draw, packed.episodes.size)
    actual = collision_reward(packed.episodes, overlap=overlap, mark=mark)
    assert packed.nest(actual) == [ref_rewards.worldrft_collision(row, mark) for row in packed.nest(overlap)]


def test_collisions_of_four_plans__paper() -> None:
    overlap = bools(0, 0, 0, 0, 1, 0, 0, 1, 1, 0, 0, 1)
    reward = collision_reward(Spans.from_lengths([3] * 4), overlap=overlap)
    assert reward.view(4, 3).tolist() == [[0, 0, 0], [0, -1, 0], [0, -1, -1], [0, 0, -1]]
    with pytest.raises(UsageError, match="unknown mark 'last'"):
        collision_reward(Spans.from_lengths([12]), overlap=overlap, mark="last")


def pdm(*scores: float) -> tuple[float, dict[str, int]]:
    judges = [each(lambda scene, k=k: scene[k]) for k in range(5)]
    result = evaluate(pdm_score(*judges), [scores], dtype=torch.float64)
    return float(result.reward[0]), result.calls


def test_pdm_score__paper() -> None:
    assert pdm(1, 1, 0.817, 0.94, 1)[0] == pytest.approx(0.89875)
    assert pdm(0, 1, 1, 1, 1) == (
        0,
        {"no_collision": 1, "drivable": 0, "progress": 0, "time_to_collision": 0, "comfort": 0},
    )


@given(st.lists(st.integers(0, 4).map(lambda x: x / 4), min_size=5, max_size=5))
def test_pdm_score_equals_its_naive_reference(scores: list[float]) -> None:
    assert pdm(*scores)[0] == pytest.approx(ref_rewards.pdm_score(*scores), abs=1e-12)
