"""Options and other classic hierarchies, rule by rule, in the form in which an independent naive reference answers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from forests import columns
from hypothesis import given
from hypothesis import strategies as st
from reference import credit_control as ref
from test_options import bools, choices, close, doubles, flags, ints, one, tree_of
from torch import Tensor

from echelon.credit.groups import normalise
from echelon.credit.options import (
    arrival_probability,
    continuation_value,
    cosine_max,
    deliberation_reward,
    director_blocks,
    director_manager,
    feudal,
    feudal_intrinsic,
    hdqn_target,
    interruptions,
    intra_option_target,
    maxq_target,
    option_critic,
    option_q_target,
    option_value,
    ppoc,
    termination_credit,
    transition_cosine,
)
from echelon.spans import Spans


def option_critic_of(q: Tensor, option: list[int], beta: list[float], done: list[bool], **options: Any) -> Any:
    beta_of_all = doubles(*beta)[:, None].expand_as(q)
    return option_critic(
        q=torch.zeros_like(q), option=ints(*option), next_termination=beta_of_all, terminated=bools(*done), **options
    )


def check_option_critic_target(x: dict[str, Any]) -> Any:
    q = doubles(*x["q_next"])
    options = {"gamma": x.get("gamma", 0.99), "deliberation_cost": x.get("cost", 0.0)}
    out = option_critic_of(q, x["option"], x["beta_next"], x["done"], reward=doubles(*x["reward"]), next_q=q, **options)
    return out["action"].target["q"]


def check_intra_option(x: dict[str, Any]) -> Any:
    target = intra_option_target(
        reward=doubles(x["reward"]),
        terminated=bools(x.get("terminated", False)),
        next_q=doubles(x["q_next"]),
        next_termination=doubles(x["beta"]),
        gamma=x.get("gamma", 0.99),
    )[0]
    q = doubles(*x["q"])
    return {"target": target, "q": q + x.get("alpha", 0.5) * doubles(*x["weight"]) * (target - q)}


def check_termination(x: dict[str, Any]) -> Any:
    credit = termination_credit(
        q=doubles(*x["q"]), option=ints(*x["option"]), terminated=bools(*x["done"]), cost=x.get("xi", 0.01)
    )
    return {"weight": -credit.advantage, "loss": -credit.advantage * doubles(*x["beta"])}


def episodes_of(done: list[bool]) -> tuple[Spans, Tensor]:
    """Episodes that end at the marked steps, and whether each is over."""
    starts = bools(1, *done[:-1])
    episodes = Spans.from_starts(starts)
    return episodes, bools(*done)[episodes.ends]


def check_ppoc(x: dict[str, Any]) -> Any:
    episodes, over = episodes_of(x["done"])
    value = doubles(*x["value"])
    n = len(x["reward"])
    after = value[episodes.ends + 1]
    return ppoc(
        episodes,
        reward=doubles(*x["reward"]),
        value=value[:-1, None],
        option=torch.zeros(n, dtype=torch.int64),
        policy=torch.ones(n, 1, dtype=torch.float64),
        ended=bools(*x["ended"]),
        terminated=over,
        final_value=after,
        gamma=x.get("gamma", 0.99),
        lam=x.get("lam", 0.95),
        deliberation_cost=x.get("cost", 0.0),
    )["action"].advantage


def check_deliberation(x: dict[str, Any]) -> Any:
    episodes, over = episodes_of(x["episode_end"])
    ended, cost = bools(*x["ended"]), x.get("cost", 0.1)
    return deliberation_reward(episodes, reward=doubles(*x["reward"]), ended=ended, cost=cost, terminated=over)


def check_feudal_manager(x: dict[str, Any]) -> Any:
    n, zero = len(x["returns"]), torch.zeros(len(x["returns"]), dtype=torch.float64)
    returns, c = doubles(*x["returns"]), x.get("c", 10)
    reward = returns - torch.cat([returns[1:], zero[:1]])
    manager = feudal(
        one(n),
        reward=reward,
        intrinsic=zero,
        manager_value=doubles(*x["values"]),
        worker_value=zero,
        gamma=1.0,
        horizon=c,
    )["manager"]
    cosine = transition_cosine(one(n), state=doubles(*x["states"]), goal=doubles(*x["goals"]), horizon=c)
    return {"advantage": manager.advantage, "loss": -manager.advantage * manager.weight * cosine}


def check_feudal_worker(x: dict[str, Any]) -> Any:
    n = len(x["returns"])
    each = Spans.from_lengths([1] * n)
    zero = torch.zeros(n, dtype=torch.float64)
    return feudal(
        each,
        reward=doubles(*x["returns"]),
        intrinsic=doubles(*x["intrinsic_returns"]),
        manager_value=zero,
        worker_value=doubles(*x["values"]),
        alpha=x.get("alpha", 0.5),
    )["worker"].advantage


def check_feudal_intrinsic(x: dict[str, Any]) -> Any:
    n, c = len(x["states"]), x.get("c", 10)
    got = feudal_intrinsic(one(n), state=doubles(*x["states"]), goal=doubles(*x["goals"]), horizon=c)
    terms = torch.arange(n).clamp(1, c) if x.get("divisor", "c") == "available" else c
    return got * c / terms


def check_maxq_q(x: dict[str, Any]) -> Any:
    over = not x["value_next"]
    target = maxq_target(
        duration=ints(x["steps"]),
        next_value=doubles(x["value_next"] or [math.nan]),
        next_completion=doubles(x["c_next"] or [math.nan]),
        next_pseudo=doubles(x["c_pseudo_next"] or [math.nan]),
        pseudo_reward=doubles(x["pseudo_reward"]),
        terminated=bools(over),
        gamma=x.get("gamma", 0.9),
    )
    a = x.get("alpha", 0.5)
    c, pseudo = (1 - a) * x["c"] + a * target.completion, (1 - a) * x["c_pseudo"] + a * target.pseudo
    return {"c": float(c), "c_pseudo": float(pseudo)}


def check_maxq_0(x: dict[str, Any]) -> Any:
    value = doubles([x["value_next"], -100])
    target = maxq_target(
        duration=ints(x["steps"]),
        next_value=value,
        next_completion=torch.zeros_like(value),
        terminated=bools(0),
        gamma=x.get("gamma", 0.9),
    )
    a = x.get("alpha", 0.5)
    return float((1 - a) * x["c"] + a * target.completion)


def check_manager_blocks(x: dict[str, Any]) -> Any:
    k, cont = x.get("k", 8), doubles(*x["cont"])
    blocks = Spans.from_lengths([k] * (len(x["rewards"]) // k))
    earned, alive = director_blocks(blocks, reward=doubles(*x["rewards"]), cont=cont[:-1], next_cont=cont[1:])
    return {"reward": earned, "cont": torch.cat([cont[:1], alive])}


def check_imagined(x: dict[str, Any]) -> Any:
    cont, value = doubles(*x["cont"]), doubles(*x["values"])
    return director_manager(
        tree_of(*[1] * len(x["rewards"])),
        reward=doubles(*x["rewards"]),
        cont=torch.ones_like(cont[1:]),  # one step a block: the reward counts whole
        next_cont=cont[1:],
        value=value[:-1],
        final_value=value[-1:],
        gamma=x.get("gamma", 0.99),
        lam=x.get("lam", 0.95),
    ).target["value"]


def check_hdqn(x: dict[str, Any]) -> Any:
    over = bools(x.get("terminated", False))
    q, gamma = doubles(x["q_next"]), x.get("gamma", 0.975)
    return hdqn_target(one(len(x["rewards"])), reward=doubles(*x["rewards"]), next_q=q, terminated=over, gamma=gamma)[0]


def check_smdp(x: dict[str, Any]) -> Any:
    over = bools(x.get("terminated", False))
    zero = torch.zeros(len(x["rewards"]), 2, dtype=torch.float64)
    target = option_q_target(
        tree_of(len(x["rewards"])),
        reward=doubles(*x["rewards"]),
        q=zero,
        terminated=over,
        final_value=option_value(doubles(x["q_next"])),
        gamma=x.get("gamma", 0.99),
    )
    return {"target": float(target), "q": float(x["q"] + x.get("alpha", 0.5) * (target - x["q"]))}


def arrival_of(x: dict[str, Any]) -> Tensor:
    return arrival_probability(
        termination=doubles(x["beta"]), policy=doubles(x["pi_omega"]), previous=ints(x["previous"])
    )


CHECKS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "smdp_q_update": check_smdp,
    "continuation_value": lambda x: continuation_value(
        doubles(x["q_next"]), torch.full((1, 2), x["beta"]).double(), deliberation_cost=x.get("cost", 0.0)
    )[0, x["option"]],
    "intra_option_update": check_intra_option,
    "interrupts": lambda x: (
        interruptions(one(2), q=doubles([0, 0], x["q"]), option=torch.full((2,), x["option"])).n == 2
    ),
    "option_critic_target": check_option_critic_target,
    "termination_loss": check_termination,
    "deliberation_reward": check_deliberation,
    "ppoc_gae": check_ppoc,
    "ppoc_termination_weight": lambda x: (
        -termination_credit(
            q=doubles(x["value"]), option=ints(x["option"]), policy=doubles(x["pi_omega"]), cost=x.get("cost", 0.0)
        ).advantage[0]
    ),
    "dac_arrival": lambda x: arrival_of(x)[0],
    "dac_high_value": lambda x: option_value(doubles(x["value"]), arrival_of(x))[0],
    "feudal_intrinsic": check_feudal_intrinsic,
    "feudal_manager": check_feudal_manager,
    "feudal_worker": check_feudal_worker,
    "normalise_per_option": lambda x: normalise(
        Spans.by_key(ints(*x["option"])), doubles(*x["advantage"]), ddof=0, eps=x.get("eps", 1e-8)
    ),
    "hdqn_meta_target": check_hdqn,
    "maxq_0_update": check_maxq_0,
    "maxq_q_update": check_maxq_q,
    "cosine_max": lambda x: cosine_max(doubles(*x["goal"]), doubles(*x["feature"])),
    "manager_blocks": check_manager_blocks,
    "imagined_lambda_return": check_imagined,
}


@pytest.mark.parametrize("rule", CHECKS)
def test_hand_derived_cases__paper(rule: str) -> None:
    for case in ref.CASES[rule]:
        assert close(CHECKS[rule](case["inputs"]), case["expected"])


def halves(draw: st.DrawFn, *shape: int) -> Any:
    return columns(draw, math.prod(shape)).reshape(shape).tolist()


@st.composite
def inputs(draw: st.DrawFn, rule: str) -> dict[str, Any]:
    """Random arguments of a reference: n steps, three options, two state features."""
    n = draw(st.integers(1, 6))
    table, option, reward = halves(draw, n, 3), choices(draw, n, 3), halves(draw, n)
    beta = [x / 4 + 0.5 for x in halves(draw, n)]
    done = flags(draw, n)
    goals = {"states": halves(draw, n, 2), "goals": halves(draw, n, 2), "c": draw(st.integers(1, 4))}
    scale = {"gamma": 0.8}
    return {
        "smdp_q_update": {"q": 1.0, "rewards": reward, "q_next": table[0], "terminated": done[0], **scale},
        "intra_option_update": {
            "q": table[0],
            "q_next": table[-1],
            "reward": reward[0],
            "beta": beta[:1] * 3,
            "weight": [1.0, 0.0, 0.5],
            "terminated": done[0],
            **scale,
        },
        "option_critic_target": {
            "reward": reward,
            "option": option,
            "q_next": table,
            "beta_next": beta,
            "done": done,
            "cost": 0.3,
            **scale,
        },
        "termination_loss": {"beta": beta, "q": table, "option": option, "done": done},
        "ppoc_gae": {
            "reward": reward,
            "value": [*reward[::-1], 0.5],
            "ended": flags(draw, n),
            "done": done,
            "cost": 0.3,
            "lam": 0.7,
            **scale,
        },
        "feudal_intrinsic": goals,
        "feudal_manager": {"returns": reward, "values": beta, **goals},
        "hdqn_meta_target": {"rewards": reward, "q_next": table[0], "terminated": done[0], **scale},
        "maxq_q_update": {
            "c": 1.0,
            "c_pseudo": 0.5,
            "c_next": table[0],
            "c_pseudo_next": table[-1],
            "value_next": halves(draw, 3),
            "pseudo_reward": reward[0],
            "steps": n,
            **scale,
        },
        "manager_blocks": {"rewards": reward * 2, "cont": [x / 4 + 0.5 for x in halves(draw, 2 * n + 1)], "k": n},
        "imagined_lambda_return": {
            "rewards": reward,
            "values": [*beta, 0.5],
            "cont": [1.0, *beta],
            "lam": 0.7,
            **scale,
        },
    }[rule]


RANDOM = (
    "smdp_q_update",
    "intra_option_update",
    "option_critic_target",
    "termination_loss",
    "ppoc_gae",
    "feudal_intrinsic",
    "feudal_manager",
    "hdqn_meta_target",
    "maxq_q_update",
    "manager_blocks",
    "imagined_lambda_return",
)


@pytest.mark.parametrize("rule", RANDOM)
def test_equals_its_naive_reference(rule: str) -> None:
    @given(x=inputs(rule))
    def check(x: dict[str, Any]) -> None:
        assert close(CHECKS[rule](x), getattr(ref, rule)(**x))

    check()
