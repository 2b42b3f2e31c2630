"""Metrics of an iteration: by group, state, level and label, with the numbers counted by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from echelon.credit.credit import Credit
from echelon.language.engine import Source
from echelon.language.program import LevelSpec
from echelon.language.record import Record, RecordBuilder
from echelon.language.update import Step
from echelon.training.language import measures
from echelon.training.language.agent import Turns

SWITCH, SUBGOAL, ACTION = range(3)
LABELS = {"labels": {"block": ["switch", "Sub-goal", "action", "never"]}}
PLANS = (
    LevelSpec("episode", span="episode"),
    LevelSpec("segment", span="begin", owns=("Sub-goal",)),
    LevelSpec("turn", owns=("switch", "action")),
    LevelSpec("goal", span="label", owns=("Sub-goal",)),
)


def record_of(episodes: list[list[dict[str, Any]]], meta: dict[str, Any] | None = None) -> Record:
    """Episodes two a group; a turn has `labels` for its tokens and perhaps state, reward, valid, switch."""
    builder = RecordBuilder(LABELS if meta is None else meta)
    for uid, turns in enumerate(episodes):
        episode = builder.episode(uid, uid // 2)
        stream = episode.stream("policy")
        for number, turn in enumerate(turns):
            labels = turn.get("labels", [ACTION])
            episode.call(
                stream, [1] * (number + 1), [2] * len(labels), logp=[-0.5] * len(labels), source=Source.SAMPLED,
                valid=turn.get("valid", True), state=turn.get("state"), begin={"segment": turn.get("switch", False)},
                labels={"block": labels},
            )  # fmt: skip
            episode.reward(turn.get("reward", 0.0))
        episode.done(terminated=True)
    return builder.build()


def plain(metrics: measures.Metrics) -> dict[str, float]:
    return {name: round(float(value), 6) for name, value in metrics.items()}


def test_states_are_counted_by_the_turns_that_met_them() -> None:
    visits = {"a": 1, "b": 2, "c": 3, "d": 5, "e": 9}
    states: list[dict[str, Any]] = [{"state": name} for name, count in visits.items() for _ in range(count)]
    first = [*states[:10], {"state": None}]  # without a state: no part of any
    record = record_of([first, states[10:], [{"state": "a"}], [{"state": "a"}, {"state": "z"}]])
    found = plain(measures.states(Turns.of(record)))
    assert found == {
        "states/alone": round(2 / 23, 6), "states/of_2": round(4 / 23, 6), "states/of_3_4": round(3 / 23, 6),
        "states/of_5_8": round(5 / 23, 6), "states/of_9_up": round(9 / 23, 6),
    }  # fmt: skip
    assert set(plain(measures.states(Turns.of(record_of([[{}]])))).values()) == {0.0}


def test_groups_that_earned_the_same_are_silent() -> None:
    record = record_of([[{"reward": 1.0}], [{}, {"reward": 1.0}], [{"reward": 1.0}], [{}]])
    assert plain(measures.groups(Turns.of(record))) == {"groups/episodes": 2.0, "groups/silent": 0.5}


PLAN = [SWITCH, SUBGOAL, SUBGOAL, ACTION]
EPISODES: list[list[dict[str, Any]]] = [
    [{"switch": True, "labels": PLAN}, {"labels": [SWITCH, ACTION]}, {"labels": [ACTION], "valid": False}],
    [{"switch": True, "labels": PLAN}, {"switch": True, "labels": [SUBGOAL, ACTION], "valid": False}],
]


def test_levels_are_counted_and_measured() -> None:
    found = plain(measures.by_level(PLANS, Turns.of(record_of(EPISODES))))
    assert found == {
        "level/episode/count": 1.0, "level/episode/turns": 2.5, "level/episode/tokens": 6.5,
        "level/episode/invalid": 0.4,
        "level/segment/count": 1.5, "level/segment/turns": round(5 / 3, 6), "level/segment/tokens": round(13 / 3, 6),
        "level/segment/invalid": 0.4,
        "level/turn/count": 2.5, "level/turn/tokens": 2.6, "level/turn/invalid": 0.4,
        "level/goal/count": 1.5, "level/goal/tokens": round(5 / 3, 6),
    }  # fmt: skip


def test_roles_of_one_agent_are_told_apart_by_their_labels() -> None:
    """Planner and executor calls of one model; what has no label at all belongs to both."""
    meta = {"labels": {"role": ["planner", "executor"]}}
    builder = RecordBuilder(meta)
    episode = builder.episode(0, 0)
    planner = episode.stream("policy")
    call = episode.call(planner, [1], [2, 2], logp=[-0.5] * 2, source=Source.SAMPLED, labels={"role": [0, 0]})
    executor = episode.stream("policy", call)
    for number in range(3):
        episode.call(
            executor,
            [3] * (number + 1),
            [2],
            logp=[-0.5],
            source=Source.SAMPLED,
            valid=number > 0,
            labels={"role": [1]},
        )
    episode.done(terminated=True)
    levels = (LevelSpec("planner", owns=("planner",)), LevelSpec("executor", span="stream", owns=("executor",)))
    found = plain(measures.by_level(levels, Turns.of(builder.build())))
    assert found == {
        "level/planner/count": 1.0, "level/planner/tokens": 2.0, "level/planner/invalid": 0.0,
        "level/executor/count": 1.0, "level/executor/turns": 3.0, "level/executor/tokens": 3.0,
        "level/executor/invalid": round(1 / 3, 6),
    }  # fmt: skip
    other = (LevelSpec("judge", agent="judge"),)
    assert plain(measures.by_level(other, Turns.of(builder.build()))) == {"level/judge/count": 0.0}


def test_levels_have_the_variance_of_what_they_own() -> None:
    turns = Turns.of(record_of([[{"labels": PLAN}], [{"labels": [ACTION, ACTION]}]]))
    credit, trained = Credit(torch.tensor([4.0, 1.0, 3.0, 2.0, 6.0, 9.0])), torch.tensor([True] * 5 + [False])
    levels = (
        LevelSpec("goal", span="label", owns=("Sub-goal",)),
        LevelSpec("act", owns=("action", "switch")),
        LevelSpec("all"),
        LevelSpec("judge", agent="judge"),
    )
    assert plain(measures.spreads(levels, turns, credit, trained)) == {
        "level/goal/advantage_variance": 1.0,
        "level/act/advantage_variance": round(8 / 3, 6),
        "level/all/advantage_variance": round((16 + 1 + 9 + 4 + 36) / 5 - 3.2**2, 6),
    }


def test_labels_have_advantages_divergence_and_entropy() -> None:
    turns = Turns.of(record_of([[{"labels": PLAN}], [{"labels": [ACTION, ACTION]}]]))
    credit = Credit(torch.tensor([4.0, 1.0, 3.0, 2.0, 6.0, 9.0]))
    trained = torch.tensor([True, True, True, True, True, False])
    said = {"kl": torch.tensor([0.5, 1.0, 2.0, torch.nan, 3.0, 4.0])}
    assert plain(measures.by_label(turns, credit, trained, said)) == {
        "label/block/switch/tokens": 0.5, "label/block/switch/advantage": 4.0,
        "label/block/switch/advantage_std": 0.0, "label/block/switch/kl": 0.5,
        "label/block/sub_goal/tokens": 1.0, "label/block/sub_goal/advantage": 2.0,
        "label/block/sub_goal/advantage_std": 1.0, "label/block/sub_goal/kl": 1.5,
        "label/block/action/tokens": 1.5, "label/block/action/advantage": 4.0,
        "label/block/action/advantage_std": 2.0, "label/block/action/kl": 3.5,
    }  # fmt: skip


def step(term: float, norm: float, **columns: list[float]) -> Step:
    return Step(term, {"policy": term}, norm, 3, 3, 3, 1, {name: torch.tensor(x) for name, x in columns.items()})


def test_what_the_steps_said_is_put_together_over_all_of_them() -> None:
    nan = torch.nan
    turns = Turns.of(record_of([[{"labels": [ACTION] * 2, "reward": 1.0}], [{"labels": [ACTION]}]]))
    steps = [
        step(1.0, 0.5, logp=[-1.0, nan, nan], entropy=[2.0, nan, nan]),
        step(3.0, 0.25, logp=[nan, -2.0, -4.0], entropy=[nan, 1.0, 3.0]),
    ]
    given = {
        "advantage": torch.tensor([1.0, 1.0, -1.0]),
        "old_logp": torch.tensor([-1.0, -2.0, -3.0]),
        "ref_logp": torch.tensor([-1.5, -2.5, -2.5]),
    }
    trained = torch.ones(3, dtype=torch.bool)
    found = plain(measures.measure((), turns, Credit(given["advantage"]), trained, given, steps))
    assert found["kl"] == pytest.approx((0.5 + 0.5 - 1.5) / 3, abs=1e-6) and found["entropy"] == 2.0
    assert found["loss/policy"] == 2.0 and found["gradient_norm"] == 0.5
    assert found["ratio/clip_low"] == 0.5  # of the last step: the second of its two tokens fell by a nat
    assert found["success"] == 0.5 and found["label/block/action/entropy"] == 2.0
    nothing = plain(measures.measure((), turns, Credit(given["advantage"]), trained, given, []))
    assert "kl" not in nothing and "gradient_norm" not in nothing and nothing["advantage/advantage"] == 1.0
