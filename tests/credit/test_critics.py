"""ArCHer and VSC-RL against the numbers of their sources and independent references."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from checks import doubles, same
from forests import Forest, column, columns, forest_of, forests
from hypothesis import given
from hypothesis import strategies as st
from reference import credit_language_critics as ref
from torch import Tensor

from echelon.credit.credit import Credit
from echelon.credit.critics import (
    archer,
    archer_kl,
    archer_offline,
    archer_targets,
    archer_tokens,
    filtered_bc,
    reaches_quantile,
    subgoal_segments,
    vsc_rl,
)
from echelon.credit.returns import discounted_return
from echelon.errors import DataError
from echelon.losses.value import expectile_loss
from echelon.spans import Spans

Groups = list[list[dict[str, Any]]]


def near(actual: Tensor, *expected: float, digits: int = 6) -> None:
    torch.testing.assert_close(actual, doubles(*expected), atol=0.51 * 10.0**-digits, rtol=0)


def heads(groups: Groups, *names: str) -> Tensor:
    return torch.stack([column(groups, name) for name in names], -1)


# ---- ArCHer


def test_archer_q_targets__code() -> None:
    targets = archer_targets(
        reward=doubles(-1, 0),
        terminated=torch.tensor([False, True]),
        next_value=doubles([-2, -3], [5, 5]),
        action_q=doubles([0.5, 1], [2, 3]),
    )
    near(targets.q[:, 0], -2.9, 0)
    near(targets.q[:, 1], -3.85, 0)
    assert torch.equal(targets.v, doubles([0.5, 1], [2, 3]))  # each head learns from its own copy


def test_archer_monte_carlo_returns__code() -> None:
    near(discounted_return(Spans([0, 3]), reward=doubles(-1, -1, 0), gamma=0.95), -1.95, -1, 0)


def test_archer_advantage__code() -> None:
    credit = archer(q=doubles([-1.2, -1.0]), value=doubles([-1.5, -1.8]))
    near(credit.advantage, 0.6)
    near(-credit.advantage * -3, 1.8)
    near(credit.terms["q"], -1.2)
    near(credit.terms["value"], 1.8)


def test_archer_token_baseline__code() -> None:
    tokens, log_prob = Spans([0, 3]), doubles(-1, -0.5, -1.5)
    credit = archer_tokens(tokens, Credit(doubles(0.6)), token_value=doubles(0.1, 0.2, 0.3))
    near(-(credit.advantage * log_prob).sum()[None], 1.15)
    near((credit.target["token"] - doubles(0.1, 0.2, 0.3)).square().mean()[None], 0.166667)
    torch.testing.assert_close(torch.stack(list(credit.terms.values())).sum(0), credit.advantage)


def test_archer_slow_copies__code() -> None:
    target, online = doubles(0.0), doubles(1.0)
    near(target.lerp(online, 0.1), 0.1)


def test_archer_offline__code() -> None:
    recorded = doubles([1.0], [-0.5])
    targets = archer_targets(
        reward=doubles(0, 0), terminated=torch.tensor([True, True]), next_value=recorded, action_q=recorded
    )
    error = targets.v - doubles([0.2], [0.1])
    near(expectile_loss(error, error, 0.9).mean()[None], 0.306)
    credit = archer_offline(q=doubles([-1.2, -1.0]), value=doubles([-1.5, -1.8]))
    near(credit.advantage, 1.822119)
    near(-credit.advantage * -3, 5.466356)
    colder = archer_offline(q=doubles([-1.2, -1.0]), value=doubles([-1.5, -1.8]), inverse_temperature=2.0)
    near(colder.advantage, math.exp(1.2))


def archer_turns(rule: str, groups: Groups, gamma: float = 0.95) -> Any:
    """The rule under test on nested utterances, in the form in which its reference answers."""
    groups = [[{"reward": e.get("reward", e.get("q1")), **e} for e in group] for group in groups]
    forest = forest_of(groups)
    if rule == "archer_advantages":
        return forest.nest(archer(q=heads(groups, "q1", "q2"), value=heads(groups, "v1", "v2")).advantage)
    if rule == "archer_mc_returns":
        return forest.nest(discounted_return(forest.tree["episode"], reward=column(groups, "reward"), gamma=gamma))
    next_value = heads(groups, "next_v1", "next_v2")
    done = column(groups, "done") > 0
    targets = archer_targets(
        reward=column(groups, "reward"), terminated=done, next_value=next_value, action_q=next_value, gamma=gamma
    )
    return {f"q{i + 1}": forest.nest(targets.q[:, i]) for i in range(2)}


def archer_flat(rule: str, **x: Any) -> Any:
    a = doubles(*x["advantage"])[:, None]  # min Q - min V of one head, with V = 0
    if rule == "archer_awr":
        credit = archer_offline(q=a, value=torch.zeros_like(a), inverse_temperature=x.get("inv_temp", 1.0))
        loss = -(credit.advantage * doubles(*x["log_prob"])).mean()
        return {"weight": credit.advantage.tolist(), "loss": float(loss)}
    if rule == "archer_iql_kl_loss":
        log_prob = doubles(*x["log_prob"])
        ratio = log_prob - doubles(*x["log_ref"])
        credit = archer_kl(q=a, value=torch.zeros_like(a), log_ratio=ratio, coefficient=x["c"])
        return float(-(credit.advantage * log_prob).mean())
    utterances = Spans.from_lengths([len(row) for row in x["token_value"]])
    value, log_prob = (doubles(*(v for row in x[name] for v in row)) for name in ("token_value", "log_prob"))
    credit = archer_tokens(utterances, Credit(a[:, 0]), token_value=value)
    policy = -utterances.reduce(credit.advantage * log_prob).mean()
    return {"policy": float(policy), "value": float((credit.target["token"] - value).square().mean())}


TURN_RULES = ("archer_q_targets", "archer_advantages", "archer_mc_returns")
FLAT_RULES = ("archer_awr", "archer_iql_kl_loss", "archer_baseline_losses")


@pytest.mark.parametrize("rule", TURN_RULES + FLAT_RULES)
def test_archer_hand_derived_cases__paper(rule: str) -> None:
    compute = archer_turns if rule in TURN_RULES else archer_flat
    for case in ref.CASES[rule]:
        assert same(compute(rule, **case["inputs"]), case["expected"])


@st.composite
def batches(draw: st.DrawFn) -> Groups:
    names = ("q1", "q2", "v1", "v2", "next_v1", "next_v2", "nv1", "nv2", "v_instr")
    groups: Groups = []
    for lengths in draw(forests(max_groups=2)).lengths:
        groups.append([])
        for t in lengths:
            episode: dict[str, Any] = {name: columns(draw, t).tolist() for name in names}
            episode["reward"] = draw(st.lists(st.sampled_from([0.0, 0.0, 1.0]), min_size=t, max_size=t))
            episode["done"] = draw(st.lists(st.integers(0, 1), min_size=t, max_size=t))
            groups[-1].append(episode)
    return groups


@pytest.mark.parametrize("rule", TURN_RULES)
@given(groups=batches())
def test_archer_equals_its_naive_reference(rule: str, groups: Groups) -> None:
    assert same(archer_turns(rule, groups), getattr(ref, rule)(groups))


@given(data=st.data(), size=st.integers(1, 6))
def test_archer_losses_equal_their_naive_references(data: st.DataObject, size: int) -> None:
    a, log_prob, log_ref = (columns(data.draw, size).tolist() for _ in range(3))
    x: dict[str, Any] = {"advantage": a, "log_prob": log_prob, "log_ref": log_ref, "c": 0.3}
    assert same(archer_flat("archer_iql_kl_loss", **x), ref.archer_iql_kl_loss(**x))
    x = {"advantage": a, "log_prob": log_prob, "inv_temp": 0.5}
    assert same(archer_flat("archer_awr", **x), ref.archer_awr(**x))


def test_the_reference_term_is_the_gradient_of_the_divergence() -> None:
    """In expectation over the policy's samples the credit moves down KL(π, π_ref)."""
    logits = doubles(0.3, -0.4, 1.1).requires_grad_()
    reference = doubles(0.1, 0.5, 0.2).log_softmax(0)
    log_prob = logits.log_softmax(0)
    (exact,) = torch.autograd.grad((log_prob.exp() * (log_prob - reference)).sum(), logits, retain_graph=True)
    zero = torch.zeros(3, 2, dtype=torch.float64)
    credit = archer_kl(q=zero, value=zero, log_ratio=(log_prob - reference).detach(), coefficient=1.0)
    (sampled,) = torch.autograd.grad(-(log_prob.exp().detach() * credit.advantage * log_prob).sum(), logits)
    torch.testing.assert_close(sampled, exact)


# ---- VSC-RL


def vsc_credit(forest: Forest, groups: Groups, **options: Any) -> Credit:
    return vsc_rl(
        forest.tree["episode"],
        reward=forest.pack([[e["reward"] for e in group] for group in groups]),
        value=heads_of(forest, groups, "v1", "v2"),
        next_value=heads_of(forest, groups, "nv1", "nv2"),
        task_value=forest.pack([[e["v_instr"] for e in group] for group in groups]),
        **options,
    )


def heads_of(forest: Forest, groups: Groups, *names: str) -> Tensor:
    return torch.stack([forest.pack([[e[name] for e in group] for group in groups]) for name in names], -1)


def one_episode(reward: list[float], value: float = 0.0, next_value: float = 0.0, **options: Any) -> Credit:
    def twin(v: float) -> Tensor:
        return torch.full((len(reward), 2), v, dtype=torch.float64)

    episode, task = Spans([0, len(reward)]), torch.zeros(len(reward), dtype=torch.float64)
    return vsc_rl(
        episode,
        reward=doubles(*reward),
        value=twin(value),
        next_value=twin(next_value),
        task_value=task,
        **options,
    )


def test_vsc_segments__code() -> None:
    reward = doubles(0, 0, 1, 0, 1, 0)
    segments = subgoal_segments(Spans([0, 6]), reward)
    assert segments.lengths.tolist() == [3, 2, 1]
    credit = one_episode(reward.tolist())
    near(credit.terms["return"], 0.25, 0.5, 1, 0.5, 1, 0)
    assert segments.reduce(credit.target["value"], "first").tolist() == [1, 1, 0]
    assert credit.target["task"][segments.starts].tolist() == [1, 1, 0]
    assert credit.target["task"].isnan().sum() == 3


def test_vsc_advantage__code() -> None:
    won = {"value": 0.3, "next_value": 0.2}
    near(one_episode([0, 0, 1], **won, form="raw").advantage[:1], 0.1)
    near(one_episode([0, 0, 1], **won, form="clip").advantage, 0.1, 0.35, 1)
    assert one_episode([0, 0, 1], **won).advantage.tolist() == [1, 1, 1]
    near(one_episode([0], value=0.3, next_value=0.36, form="raw").advantage, 0.01)
    near(one_episode([0], value=0.3, next_value=0.34, form="raw").advantage, -0.01)
    assert one_episode([0], value=0.3, next_value=0.36).advantage.tolist() == [1]  # a failure may pass
    assert one_episode([0], value=0.3, next_value=0.34).advantage.tolist() == [0]


def test_vsc_filter__code() -> None:
    reward = doubles(1, 1, 0, 0, 1, 0, 0, 1, 0, 0)
    expected = doubles(0.9, 0.2, 0.5, 0.1, 0.6, 0.3, 0.2, 0.05, 0.4, 0.7)
    score = reward - expected
    near(score, 0.1, 0.8, -0.5, -0.1, 0.4, -0.3, -0.2, 0.95, -0.4, -0.7)
    near(doubles(np.quantile(score.numpy(), 0.9)), 0.815)
    assert reaches_quantile(score).nonzero().flatten().tolist() == [7]
    assert reaches_quantile(reward).sum() == 4  # imitation: the successes, all of them
    each = Spans.from_lengths([1] * 10)
    zero = torch.zeros(10, 2, dtype=torch.float64)
    credit = vsc_rl(each, reward=reward, value=zero, next_value=zero, task_value=expected)
    assert credit.weight.tolist() == [0] * 7 + [1, 0, 0]


@given(forest=forests(max_groups=2), data=st.data(), clip=st.booleans(), binary=st.booleans())
def test_vsc_equals_its_naive_reference(forest: Forest, data: st.DataObject, clip: bool, binary: bool) -> None:
    groups = [
        [{name: columns(data.draw, t).tolist() for name in ("v1", "v2", "nv1", "nv2", "v_instr")} for t in group]
        for group in forest.lengths
    ]
    for group in groups:
        for e in group:
            rewards = st.sampled_from([0.0, 0.0, 1.0])
            e["reward"] = data.draw(st.lists(rewards, min_size=len(e["v1"]), max_size=len(e["v1"])))
    form: Any = "binary" if binary else "clip" if clip else "raw"
    credit = vsc_credit(forest, groups, quantile=0.5, form=form)
    expected = ref.vsc_rl(groups, quantile=0.5, clip=clip or binary, binary=binary)
    assert same(forest.nest(credit.advantage * credit.weight), expected)
    assert same(forest.nest(credit.terms["return"]), ref.vsc_mc_returns(groups))
    torch.testing.assert_close(torch.stack(list(credit.terms.values())).sum(0), credit.advantage)


@given(scores=st.lists(st.integers(-4, 4), min_size=1, max_size=12))
def test_quantile_filter_equals_numpy(scores: list[int]) -> None:
    kept = reaches_quantile(doubles(*scores)).nonzero().flatten().tolist()
    assert kept == ref.vsc_bc_filter([float(s) for s in scores])
    assert kept == [i for i, s in enumerate(scores) if s >= np.quantile(scores, 0.9)]


def test_filtered_cloning() -> None:
    episodes = Spans.from_lengths([2, 1, 3])
    credit = filtered_bc(episodes, score=doubles(1, 3, 2))
    assert credit.weight.tolist() == [0, 0, 1, 0, 0, 0]
    assert credit.advantage.tolist() == [1] * 6
    assert filtered_bc(episodes, score=doubles(2, 2, 2)).weight.all()  # ties keep everything: plain cloning


def test_long_segments_keep_their_target_in_float32() -> None:
    """Half to the power of 200 is 0 in float32; the segment was finished all the same."""
    reward = torch.zeros(200)
    reward[-1] = 1
    zero = torch.zeros(200, 2)
    credit = vsc_rl(Spans([0, 200]), reward=reward, value=zero, next_value=zero, task_value=reward)
    assert credit.target["value"].all()
    assert credit.terms["return"][0] == 0


def test_degenerate_sizes() -> None:
    none = torch.zeros(0, 2)
    assert len(archer(q=none, value=none).advantage) == 0
    credit = vsc_rl(Spans([0]), reward=torch.zeros(0), value=none, next_value=none, task_value=torch.zeros(0))
    assert len(credit.advantage) == 0
    assert one_episode([1]).weight.tolist() == [1]


def test_bad_input_names_the_episode() -> None:
    nan, zero = doubles(0, 0, math.nan), torch.zeros(3, 2, dtype=torch.float64)
    done = torch.tensor([False, True, True])
    with pytest.raises(DataError, match="reward of utterance 2 is nan"):
        archer_targets(reward=nan, terminated=done, next_value=zero, action_q=zero)
    unread = doubles([0, 0], [0, 0], [math.nan, 0])
    archer_targets(reward=zero[:, 0], terminated=done, next_value=unread, action_q=zero)
    with pytest.raises(DataError, match="next_value of utterance 2"):
        archer_targets(reward=zero[:, 0], terminated=~done, next_value=unread, action_q=zero)
    with pytest.raises(DataError, match="value of utterance 2"):
        archer(q=zero, value=unread)
    with pytest.raises(DataError, match=r"token_value of utterance 1 \(item 2\)"):
        archer_tokens(Spans([0, 2, 3]), Credit(doubles(0, 0)), token_value=nan)
    with pytest.raises(DataError, match=r"reward of episode 1 \(item 2\) is nan"):
        vsc_rl(Spans([0, 1, 3]), reward=nan, value=zero, next_value=zero, task_value=zero[:, 0])
    with pytest.raises(DataError, match="next_value of episode 1"):
        vsc_rl(Spans([0, 1, 3]), reward=zero[:, 0], value=zero, next_value=unread, task_value=zero[:, 0])
    with pytest.raises(DataError, match="task_value of episode 1"):
        vsc_rl(Spans([0, 2, 3]), reward=zero[:, 0], value=zero, next_value=zero, task_value=nan)
    started = doubles(0, math.nan, 0)  # read where a segment starts
    vsc_rl(Spans([0, 2, 3]), reward=zero[:, 0], value=zero, next_value=zero, task_value=started)
    with pytest.raises(DataError, match="unknown form 'soft'"):
        one_episode([0], form="soft")
