"""Shaped advantages, selections and token rules against hand-derived cases and independent naive references.

An adaptor has the name, the arguments and the nested results of its reference.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import chain
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import credit_shaped as ref
from reference import credit_shaped_rewards as rewards_ref
from torch import Tensor

from echelon.credit import selection, shaped, tokens
from echelon.credit.groups import grpo as group_relative
from echelon.spans import Spans, SpanTree
from echelon.systems.reasoning import hicra_grams

Rows = list[list[Any]]


def doubles(values: Any) -> Tensor:
    return torch.tensor(list(values), dtype=torch.float64)


def flat(rows: Any) -> list[Any]:
    return list(chain.from_iterable(rows))


def groups_of(rows: Rows) -> Spans:
    return Spans.from_lengths([len(row) for row in rows])


def tree_of(rows: list[Rows]) -> SpanTree:
    """group → completion → token."""
    episode = Spans.from_lengths([len(tokens) for group in rows for tokens in group])
    return SpanTree(
        {"group": Spans.from_lengths([sum(map(len, group)) for group in rows]), "episode": (episode, "group")}
    )


def nest(column: Tensor, rows: Rows) -> Rows:
    """The column in the shape of the rows."""
    values = iter(column.tolist())
    return [[next(values) for _ in row] for row in rows]


def nest_tokens(column: Tensor, rows: list[Rows]) -> list[Rows]:
    values = iter(column.tolist())
    return [[[next(values) for _ in tokens] for tokens in group] for group in rows]


# ---- adaptors


def grpo(rewards: Rows, ddof: int = 1, eps: float = 1e-6, single: Any = "zero") -> Rows:
    credit = group_relative(groups_of(rewards), reward=doubles(flat(rewards)), ddof=ddof, eps=eps, singleton=single)
    return nest(credit.advantage, rewards)


def hrpo(
    groups: Any, combine: Any = "sum", suffix: bool = True, degenerate_beta: float | None = None, **options: Any
) -> Any:
    episodes = flat(groups)
    shape = [[episode["reward"] for episode in group] for group in groups]
    given: dict[str, Any] = {
        "outcome": doubles(episode["outcome"] for episode in episodes),
        "equal_beta": degenerate_beta,
        "eps": 0.0,
        **options,
        **({} if suffix else {"gamma": 0.0}),
    }
    columns = {key: doubles(flat(e[key] for e in episodes if key in e))
               for key in ("reward", "node_reward", "edge_reward")}  # fmt: skip
    if combine == "split":
        del columns["reward"]
        credits = shaped.hrpo_split(tree_of(shape), **columns, **given)
        return {name: nest_tokens(credit.advantage, shape) for name, credit in credits.items()}
    credit = shaped.hrpo(tree_of(shape), reward=columns["reward"], combine=combine, **given)
    return nest_tokens(credit.advantage, shape)


def hbpo(
    rewards: Rows, budgets: Rows, intra_coef: float = 1.0, beta: float = 4.0, l_max: int = 4096,
    ddof: int = 1, eps: float = 1e-6,
) -> Rows:  # fmt: skip
    budget = torch.tensor(flat(budgets))
    credit = shaped.hbpo(
        groups_of(rewards),
        reward=doubles(flat(rewards)),
        budget=budget,
        ceiling=beta * torch.cos(torch.pi * budget.double() / (2 * l_max)),
        intra_coef=intra_coef,
        ddof=ddof,
        eps=eps,
    )
    return nest(credit.advantage, rewards)


def hicra(advantages: Rows, planning: Any, alpha: float = 0.2) -> Any:
    base = tokens.Credit(doubles(flat(advantages))).expand(tree_of(planning)["episode"])
    return nest_tokens(tokens.amplify(base, torch.tensor(flat(flat(planning))), alpha).advantage, planning)


def hicra_entropy_mask(entropies: list[float], top: float = 0.3) -> list[bool]:
    return tokens.high_entropy(Spans([0, len(entropies)]), doubles(entropies), top=top).tolist()


def match_grams(tokens: list[int], grams: Rows) -> list[bool]:
    return hicra_grams.match_ids(Spans([0, len(tokens)]), torch.tensor(tokens), grams)[0].tolist()


def match_words(tokens: list[str], grams: list[list[str]]) -> list[bool]:
    return hicra_grams.match_words(tokens, [" ".join(gram) for gram in grams]).tolist()


def mine_grams(solutions: list[list[str]], max_repetition: float | None = None, **options: Any) -> list[list[str]]:
    texts = [" ".join(solution) for solution in solutions]
    return [gram.split() for gram in hicra_grams.mine(texts, max_repetition=max_repetition, **options)]


def semantic_entropy(counts: list[float]) -> float:
    return tokens.semantic_entropy(doubles(counts)).item()


def d3s_samples(advantages: Rows, n_s: int, scope: Any = "batch") -> Rows:
    return nest(
        selection.d3s_samples(groups_of(advantages), advantage=doubles(flat(advantages)), keep=n_s, scope=scope),
        advantages,
    )


def d3s_tokens(advantages: Rows, entropies: list[Rows], k: float, scope: Any = "batch") -> list[Rows]:
    episodes = tree_of(entropies)["episode"]
    chosen = selection.d3s_tokens(
        episodes,
        advantage=episodes.expand(doubles(flat(advantages))),
        entropy=doubles(flat(flat(entropies))),
        share=k,
        scope=scope,
    )
    return nest_tokens(chosen, entropies)


def d3s_schedule(p: float, init: Any, final: Any) -> list[float]:
    return list(selection.d3s_budget(p, first=tuple(init), last=tuple(final)))


def d3s(
    rewards: Rows, entropies: list[Rows], n_s: int, k: float, scope: Any = "batch", token_scope: Any = "batch",
    ddof: int = 0, eps: float = 0.0,
) -> dict[str, Any]:  # fmt: skip
    tree = tree_of(entropies)
    credit = selection.d3s(
        tree, reward=doubles(flat(rewards)), entropy=doubles(flat(flat(entropies))), keep=n_s, share=k,
        sample_scope=scope, token_scope=token_scope, ddof=ddof, eps=eps,
    )  # fmt: skip
    return {
        "advantage": nest_tokens(credit.advantage * credit.weight, entropies),
        "samples": d3s_samples(grpo(rewards, ddof, eps), n_s, scope),
        "normaliser": int(credit.weight.sum()),
    }


def thor(trajectories: Any, steps: Any, mode: str = "all", drop_constant: bool = True) -> dict[str, Any]:
    def valid(member: dict[str, Any]) -> bool:
        if "fence" in member:
            return member["fence"]
        passed = rewards_ref.thor_execution_pass(member["passes"], mode) >= 1
        return passed and member["length"] > 150 and member["boxed"]

    rows = [*trajectories, *steps]
    members = flat(rows)
    credit = selection.thor(
        groups_of(rows),
        reward=doubles(member["reward"] for member in members),
        valid=torch.tensor([bool(valid(member)) for member in members]),
        step=torch.tensor(["fence" in member for member in members]),
        singleton="zero" if drop_constant else "raw",
    )
    advantage, kept = nest(credit.advantage, rows), nest(credit.weight > 0, rows)
    cut = len(trajectories)
    return {
        "trajectory": {"advantage": advantage[:cut], "keep": kept[:cut]},
        "step": {"advantage": advantage[cut:], "keep": kept[cut:]},
    }


def thor_group_advantages(rewards: Rows, keep: Rows, drop_constant: bool = True) -> dict[str, Any]:
    steps = [
        [{"reward": r, "fence": flag} for r, flag in zip(*rows, strict=True)]
        for rows in zip(rewards, keep, strict=True)
    ]
    return thor([], steps, drop_constant=drop_constant)["step"]


def thor_positive_nll(log_probs: Any, advantages: Any, mask: Any, alpha: float = 0.01) -> dict[str, float]:
    weight = selection.positive_nll_weight(advantage=doubles(advantages), mask=torch.tensor(mask), alpha=1.0)
    value = -(weight * doubles(log_probs)).sum().item()
    return {"l_pos": value, "contribution": alpha * value}


def geometric_gap(values: list[float], ties: Any = "literal") -> float:
    return shaped.geometric_gap(Spans([0, len(values)]), doubles(values), ties=ties).item()


def degrpo(
    rewards: Rows, log_probs: Rows, smoothed: Any, baselines: Any, first_visit: Any = "literal", ties: Any = "literal",
    clamp: bool = False,
) -> dict[str, Any]:  # fmt: skip
    groups, reward, log_prob = groups_of(rewards), doubles(flat(rewards)), doubles(flat(log_probs))
    credit, life = shaped.de_grpo(
        groups, reward=reward, log_prob=log_prob, smoothed=doubles(math.nan if s is None else s for s in smoothed),
        baseline=doubles(baselines), first_visit=first_visit, ties=ties, gate_min=0.0 if clamp else -1.0,
    )  # fmt: skip
    utility = math.prod(shaped.geometric_gap(groups, x, ties=ties) for x in (reward, log_prob))
    return {
        "advantage": nest(credit.advantage, rewards),
        "utility": utility.tolist(),  # type: ignore[attr-defined]
        "smoothed": life.smoothed.tolist(),
        "lifecycle": life.factor.tolist(),
        "margin": life.margin.tolist(),
        "gate": life.gate.tolist(),
    }


def worldrft(groups: Any, ddof: int = 0, eps: float = 0.0) -> Any:
    shape = [[episode["reward"] for episode in group] for group in groups]
    credit = shaped.worldrft(tree_of(shape), reward=doubles(flat(flat(shape))), ddof=ddof, eps=eps)
    return nest_tokens(credit.advantage, shape)


def tail_entropy(probs: list[float], tail: bool = True) -> float:
    return tokens.partial_entropy(doubles(probs).log()[None], rest="one" if tail else "none").item()


def ares_threshold(rollouts: Rows, previous: float | None = None, w: int = 4) -> float | None:
    before = None if previous is None else torch.tensor(previous, dtype=torch.float64)
    theta = tokens.entropy_threshold(
        groups_of(rollouts), entropy=doubles(flat(rollouts)), previous=before, width=w
    ).item()
    return None if math.isnan(theta) else theta


def ares_bucket(correct: list[int]) -> str:
    return ("easy", "medium", "hard")[
        tokens.difficulty(Spans([0, len(correct)]), correct=torch.tensor(correct).bool()).item()  # type: ignore[index]
    ]


ADAPTORS: dict[str, Callable[..., Any]] = {
    adaptor.__name__: adaptor
    for adaptor in (
        grpo, hrpo, hbpo, hicra, hicra_entropy_mask, match_grams, match_words, mine_grams, semantic_entropy,
        d3s_samples, d3s_tokens, d3s_schedule, d3s, thor, thor_group_advantages, thor_positive_nll, geometric_gap,
        degrpo, worldrft, tail_entropy, ares_threshold, ares_bucket,
    )
}  # fmt: skip
TOLERANCE = {"ares_threshold": 1e-6}  # the place of a quantile is a float32
ALL_CASES = {**ref.CASES, **rewards_ref.CASES}


def same(actual: Any, expected: Any, tolerance: float) -> None:
    """Nested lists and dicts of numbers, equal within the tolerance."""
    if isinstance(expected, dict):
        assert set(actual) == set(expected)
        for key in expected:
            same(actual[key], expected[key], tolerance)
    elif isinstance(expected, list):
        assert len(actual) == len(expected)
        for a, e in zip(actual, expected, strict=True):
            same(a, e, tolerance)
    elif isinstance(expected, float | int) and not isinstance(expected, bool):
        assert actual == pytest.approx(expected, abs=tolerance, rel=tolerance)
    else:
        assert actual == expected


@pytest.mark.parametrize("rule", ADAPTORS)
def test_hand_derived_cases__paper(rule: str) -> None:
    for case in ALL_CASES[rule]:
        same(ADAPTORS[rule](**case["inputs"]), case["expected"], TOLERANCE.get(rule, 2e-9))


# ---- random inputs

halves = st.integers(-4, 4).map(lambda k: k / 2)
numbers = st.floats(-3, 3, allow_nan=False, width=32)


@st.composite
def nested(draw: st.DrawFn, value: st.SearchStrategy[Any] = halves, most: int = 4) -> Rows:
    return draw(st.lists(st.lists(value, min_size=1, max_size=most), min_size=1, max_size=3))


def like(draw: st.DrawFn, rows: Any, value: st.SearchStrategy[Any]) -> Any:
    """Values in the shape of nested rows."""
    return [like(draw, row, value) for row in rows] if isinstance(rows, list) else draw(value)


@st.composite
def inputs(draw: st.DrawFn, rule: str) -> dict[str, Any]:
    rewards = draw(nested())
    rows = draw(st.lists(nested(), min_size=1, max_size=3))  # group → completion → token
    completions = [[0 for _ in group] for group in rows]
    ddof = draw(st.sampled_from([0, 1]))
    if rule == "hbpo":
        return {"rewards": rewards, "budgets": like(draw, rewards, st.sampled_from([16, 32, 64])), "l_max": 96,
                "ddof": ddof, "intra_coef": draw(st.sampled_from([1.0, 2.0]))}  # fmt: skip
    if rule == "hrpo":
        keys = ("reward", "node_reward", "edge_reward")
        forest = [[{"outcome": draw(halves), **{key: like(draw, steps, halves) for key in keys}} for steps in group]
                  for group in rows]  # fmt: skip
        return {"groups": forest, "beta": draw(halves), "gamma": draw(st.sampled_from([0.0, 0.5, 1.0])), "ddof": ddof,
                "combine": draw(st.sampled_from(["sum", "gate", "split"])), "suffix": draw(st.booleans()),
                "degenerate_beta": draw(st.sampled_from([None, 0.0, 0.5])), "eps": 1e-6}  # fmt: skip
    if rule == "worldrft":
        points = draw(st.integers(1, 4))
        forest = [[{"reward": [draw(halves) for _ in range(points)]} for _ in group] for group in rows]
        return {"groups": forest, "ddof": ddof, "eps": draw(st.sampled_from([0.0, 1e-6]))}
    if rule == "hicra":
        return {"advantages": like(draw, completions, halves), "planning": like(draw, rows, st.booleans())}
    if rule == "hicra_entropy_mask":
        return {"entropies": draw(st.lists(halves, min_size=1, max_size=12)), "top": draw(st.sampled_from([0.3, 0.5]))}
    if rule in ("d3s_samples", "d3s_tokens", "d3s"):
        scope = draw(st.sampled_from(["batch", "group"]))
        token_scope = draw(st.sampled_from(["batch", "answer"]))
        share, keep = draw(st.sampled_from([0.2, 0.5, 1.0])), draw(st.integers(1, 4))
        entropies = like(draw, rows, st.floats(0.01, 3))
        if rule == "d3s_samples":
            return {"advantages": rewards, "n_s": keep, "scope": scope}
        if rule == "d3s_tokens":
            return {"advantages": like(draw, completions, halves), "entropies": entropies, "k": share,
                    "scope": token_scope}  # fmt: skip
        return {"rewards": like(draw, completions, st.floats(-2, 2, width=16)), "entropies": entropies, "n_s": keep,
                "k": share, "scope": scope, "token_scope": token_scope, "eps": 1e-6}  # fmt: skip
    if rule == "thor":
        member = st.fixed_dictionaries({"reward": st.sampled_from([0.0, 1.0]), "boxed": st.booleans(),
                                        "passes": st.lists(st.sampled_from([0, 1, 1, 1]), max_size=3),
                                        "length": st.sampled_from([150, 151])})  # fmt: skip
        step = st.fixed_dictionaries({"reward": st.sampled_from([0.0, 1.0]), "fence": st.booleans()})
        return {"trajectories": draw(nested(member)), "steps": draw(nested(step))}
    if rule == "degrpo":
        state = st.one_of(st.none(), st.floats(0, 1.2))
        return {"rewards": rewards, "log_probs": like(draw, rewards, st.floats(-4, 0)),
                "smoothed": [draw(state) for _ in rewards], "baselines": [draw(numbers) for _ in rewards],
                "first_visit": draw(st.sampled_from(["literal", "utility", "discover"])),
                "ties": draw(st.sampled_from(["literal", "skip"])), "clamp": draw(st.booleans())}  # fmt: skip
    if rule == "ares_threshold":
        return {
            "rollouts": like(draw, rewards, st.floats(0, 3)),
            "previous": draw(st.sampled_from([None, 0.5])),
            "w": 2,
        }
    if rule == "ares_bucket":
        return {"correct": draw(st.lists(st.integers(0, 1), min_size=1, max_size=12))}
    assert rule == "mine_grams"
    word = st.sampled_from(["a", "b", "c"])
    return {"solutions": draw(st.lists(st.lists(word, max_size=8), max_size=4)),
            "top": draw(st.sampled_from([0.2, 0.5])),
            "max_repetition": draw(st.sampled_from([None, 1.0, 1.5]))}  # fmt: skip


def reference(rule: str) -> Callable[..., Any]:
    return getattr(ref, rule, None) or getattr(rewards_ref, rule)


@pytest.mark.parametrize(
    "rule",
    ["hbpo", "hrpo", "worldrft", "hicra", "hicra_entropy_mask", "d3s_samples", "d3s_tokens", "d3s", "thor", "degrpo",
     "ares_threshold", "ares_bucket", "mine_grams"],
)  # fmt: skip
@given(data=st.data())
def test_equals_its_naive_reference(rule: str, data: st.DataObject) -> None:
    given = data.draw(inputs(rule))
    same(ADAPTORS[rule](**given), reference(rule)(**given), TOLERANCE.get(rule, 1e-8))


@given(data=st.data())
def test_hicra_of_the_release_equals_its_naive_reference__code(data: st.DataObject) -> None:
    rows = data.draw(st.lists(nested(), min_size=1, max_size=3))
    tree, planning = tree_of(rows), like(data.draw, rows, st.booleans())
    rewards = [[data.draw(halves) for _ in group] for group in rows]
    for mask in (None, planning):
        credit = tokens.hicra_code(
            tree,
            reward=doubles(flat(rewards)),
            entropy=doubles(flat(flat(rows))),
            planning=None if mask is None else torch.tensor(flat(flat(mask))),
            top=0.5,
        )
        expected = ref.hicra_code(ref.grpo(rewards), rows, mask, top=0.5)
        same(nest_tokens(credit.advantage, rows), expected, 1e-8)
