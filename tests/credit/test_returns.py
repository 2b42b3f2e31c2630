"""Returns, advantages and targets against independent references, hand-derived cases and closed forms."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from checks import doubles, same
from forests import Forest, column, columns, forest_of, forests, scalars
from hypothesis import given
from hypothesis import strategies as st
from reference import credit_base as ref
from torch import Tensor

from echelon.credit.returns import (
    discounted_return,
    gae,
    lambda_return,
    n_step_return,
    smdp_return,
    smdp_target,
    td_error,
    vtrace,
)
from echelon.errors import DataError
from echelon.spans import Spans

Groups = list[list[dict[str, Any]]]


def compute(rule: str, groups: Groups, gamma: float = 0.99, **options: float) -> Any:
    """The rule under test on nested episodes, in the form in which its reference answers."""
    forest = forest_of(groups)
    episodes, segments = forest.tree["episode"], forest.tree["segment"]
    ends = {"terminated": scalars(groups, "terminated", 1) > 0, "final_value": scalars(groups, "final_value")}
    reward, value, discount = column(groups, "reward"), column(groups, "value"), gamma ** column(groups, "elapsed")
    if rule == "discounted_return":
        return forest.nest(discounted_return(episodes, reward=reward, gamma=discount, **ends))
    if rule == "n_step_return":
        n = int(options["n"])
        return forest.nest(n_step_return(episodes, reward=reward, value=value, n=n, gamma=discount, **ends))
    if rule == "lambda_return":
        lam = options["lam"]
        return forest.nest(lambda_return(episodes, reward=reward, value=value, gamma=discount, lam=lam, **ends))
    if rule == "gae":
        credit = gae(episodes, reward=reward, value=value, gamma=discount, lam=options["lam"], **ends)
        return {"advantage": forest.nest(credit.advantage), "target": forest.nest(credit.target["value"])}
    if rule == "v_trace":
        options = {{"rho_bar": "rho_max", "c_bar": "c_max"}.get(name, name): x for name, x in options.items()}
        ratio = column(groups, "logp") - column(groups, "logp_behaviour")
        credit = vtrace(episodes, reward=reward, value=value, log_ratio=ratio, gamma=discount, **ends, **options)
        return {"advantage": forest.nest(credit.advantage), "target": forest.nest(credit.target["value"])}
    nested = segments.within(episodes)
    if rule == "smdp_return":
        return by_episode(forest, smdp_return(segments, reward=reward, gamma=discount)[0])
    after = nested.shift(value[segments.starts], 1, torch.where(ends["terminated"], 0, ends["final_value"]))
    done = torch.zeros(segments.n, dtype=torch.bool)
    done[nested.ends] = ends["terminated"]
    return by_episode(forest, smdp_target(segments, reward=reward, gamma=discount, next_value=after, terminated=done))


def by_episode(forest: Forest, x: Tensor) -> list[list[list[float]]]:
    """A column of segments as group → episode → segment."""
    flat, counts = iter(x.tolist()), iter(forest.tree.within("segment", "episode").lengths.tolist())
    return [[[next(flat) for _ in range(next(counts))] for _ in group] for group in forest.lengths]


RULES = ("discounted_return", "n_step_return", "lambda_return", "gae", "smdp_return", "smdp_target", "v_trace")


@pytest.mark.parametrize("rule", RULES)
def test_hand_derived_cases__paper(rule: str) -> None:
    for case in ref.CASES[rule]:
        assert same(compute(rule, **case["inputs"]), case["expected"])


@st.composite
def batches(draw: st.DrawFn) -> Groups:
    forest = draw(forests(max_groups=2))
    groups: Groups = []
    for lengths in forest.lengths:
        groups.append([])
        for t in lengths:
            names = ("reward", "value", "logp", "logp_behaviour")
            episode: dict[str, Any] = {name: columns(draw, t).tolist() for name in names}
            episode["elapsed"] = draw(st.lists(st.integers(0, 3), min_size=t, max_size=t))
            episode["switch"] = draw(st.lists(st.booleans(), min_size=t, max_size=t))
            episode["terminated"] = draw(st.booleans())
            episode["final_value"] = draw(st.sampled_from([0.5, -1.0]))
            groups[-1].append(episode)
    return groups


OPTIONS: dict[str, dict[str, float]] = {
    "n_step_return": {"n": 2},
    "lambda_return": {"lam": 0.7},
    "gae": {"lam": 0.7},
    "v_trace": {"lam": 0.9, "rho_bar": 1.5, "c_bar": 0.8},
}


@pytest.mark.parametrize("rule", RULES)
@given(groups=batches())
def test_equals_its_naive_reference(rule: str, groups: Groups) -> None:
    expected = getattr(ref, rule)(groups, gamma=0.8, **OPTIONS.get(rule, {}))
    assert same(compute(rule, groups, gamma=0.8, **OPTIONS.get(rule, {})), expected)


@given(forest=forests(), data=st.data())
def test_item_order_does_not_matter(forest: Forest, data: st.DataObject) -> None:
    episodes = forest.tree["episode"]
    reward, value = columns(data.draw, forest.size), columns(data.draw, forest.size)
    packed = gae(Spans(episodes.offsets), reward=reward, value=value, gamma=0.9, lam=0.8).advantage
    column = torch.empty_like(packed)
    order = torch.arange(forest.size) if episodes.order is None else episodes.order
    scattered = {"reward": torch.empty_like(reward), "value": torch.empty_like(value)}
    for name, x in (("reward", reward), ("value", value)):
        scattered[name][order] = x
    column[order] = packed
    torch.testing.assert_close(gae(episodes, **scattered, gamma=0.9, lam=0.8).advantage, column)


def test_limits_of_lambda() -> None:
    episodes = Spans.from_lengths([3, 1])
    x = {"reward": doubles(1, -1, 2, 0.5), "value": doubles(0.3, 0.2, -0.4, 1.0), "gamma": 0.9}
    one_step = n_step_return(episodes, n=1, **x)
    torch.testing.assert_close(lambda_return(episodes, lam=0.0, **x), one_step)
    torch.testing.assert_close(td_error(episodes, **x) + x["value"], one_step)
    torch.testing.assert_close(
        lambda_return(episodes, lam=1.0, **x), discounted_return(episodes, reward=x["reward"], gamma=0.9)
    )
    credit = gae(episodes, lam=0.95, **x)
    torch.testing.assert_close(credit.terms["td_error"] + credit.terms["later"], credit.advantage)


def test_lambda_return_of_a_dreamed_trajectory__code() -> None:
    episode = Spans.from_lengths([3])
    out = lambda_return(
        episode, reward=doubles(1, 0, 2), value=doubles(0.5, 0.6, 0.7), gamma=0.99, lam=0.95, final_value=doubles(0.8)
    )
    torch.testing.assert_close(out, doubles(3.531925, 2.660526, 2.792), atol=5e-7, rtol=0)


def test_smdp_q_target__paper() -> None:
    spans, later = Spans.from_lengths([3]), torch.tensor([False])
    target = smdp_target(spans, reward=doubles(1, 0, 2), next_value=doubles(4), terminated=later, gamma=0.9)
    torch.testing.assert_close(target, doubles(5.536))
    torch.testing.assert_close(1 + 0.5 * (target - 1), doubles(3.268))


def test_span_target_of_a_team__reconstructed() -> None:
    spans, later = Spans.from_lengths([3]), torch.tensor([False])
    target = smdp_target(spans, reward=doubles(0, 0, 1), next_value=doubles(2), terminated=later, gamma=0.9)
    torch.testing.assert_close(target, doubles(2.268))


def test_vtrace_on_policy_is_the_lambda_return() -> None:
    episodes = Spans.from_lengths([4])
    x = {"reward": doubles(1, 0, -1, 2), "value": doubles(0.1, 0.2, 0.3, 0.4), "gamma": 0.9}
    credit = vtrace(episodes, log_ratio=torch.zeros(4, dtype=torch.float64), lam=0.7, **x)
    torch.testing.assert_close(credit.target["value"], lambda_return(episodes, lam=0.7, **x))


def test_returns_keep_autograd_and_credit_is_detached() -> None:
    episodes = Spans.from_lengths([2, 1])
    value = doubles(0.1, 0.2, 0.3).requires_grad_()
    reward = doubles(1, 2, 3).requires_grad_()
    arguments = (reward, value)
    assert torch.autograd.gradcheck(
        lambda r, v: lambda_return(episodes, reward=r, value=v, gamma=0.9, lam=0.8), arguments
    )
    credit = gae(episodes, reward=reward, value=value)
    assert not credit.advantage.requires_grad
    assert not credit.target["value"].requires_grad


def test_bad_input_names_the_episode() -> None:
    episodes = Spans.from_lengths([2, 2])
    nan = doubles(0, 1, math.nan, 0)
    with pytest.raises(DataError, match=r"reward of episode 1 \(item 2\) is nan"):
        gae(episodes, reward=nan, value=doubles(0, 0, 0, 0))
    with pytest.raises(DataError, match="value of episode 1"):
        gae(episodes, reward=doubles(0, 0, 0, 0), value=nan)
    with pytest.raises(DataError, match="episode 1 was truncated: give `final_value`"):
        discounted_return(episodes, reward=doubles(0, 0, 0, 0), terminated=torch.tensor([True, False]))
    with pytest.raises(DataError, match="final_value of episode 0 is nan"):
        discounted_return(episodes, reward=doubles(0, 0, 0, 0), final_value=doubles(math.nan, 0))
    unread = doubles(math.nan, 1)  # the value after a termination is never looked at
    out = discounted_return(
        episodes, reward=doubles(0, 0, 0, 0), terminated=torch.tensor([True, False]), final_value=unread
    )
    torch.testing.assert_close(out, doubles(0, 0, 1, 1))
