"""The references of options, goals, skills and subtasks against printed oracle numbers and hand-derived cases.

A name ends in where its number comes from: the paper's formula, published code, or a derivation of our own.
"""

import math

import pytest
from reference import credit_base as base
from reference import credit_control as ref
from reference.checking import close


@pytest.mark.parametrize("rule", sorted(ref.CASES))
def test_cases__reconstructed(rule: str) -> None:
    for case in ref.CASES[rule]:
        close(getattr(ref, rule)(**case["inputs"]), case["expected"])


def test_every_rule_has_a_case__reconstructed() -> None:
    public = {n for n, f in vars(ref).items() if callable(f) and getattr(f, "__module__", "") == ref.__name__}
    assert {name for name in public if not name.startswith("_")} == set(ref.CASES)


# --- options ----------------------------------------------------------------------------------------------------------


def test_smdp_q_update_and_intra_option__paper() -> None:
    close(ref.smdp_q_update(1.0, [1.0, 0.0, 2.0], [4.0, 0.0], 0.9, 0.5), {"target": 5.536, "q": 3.268})
    out = ref.intra_option_update([1.0, 0.0], 1.0, [2.0, 3.0], [0.3, 0.0], [1.0, 0.0], 0.9, 0.5)
    assert out["target"][0] == pytest.approx(3.07)
    assert out["q"] == pytest.approx([2.035, 0.0])


def test_option_critic__code() -> None:
    target = ref.option_critic_target([1.0], [0], [[1.0, 4.0]], [0.25], [False], 0.99)
    assert target == pytest.approx([2.7325])
    assert 0.5 * (2.0 - target[0]) ** 2 == pytest.approx(0.268278, abs=5e-7)
    assert ref.option_critic_policy_loss([-0.7], target, [2.0], [0.6]) == pytest.approx([0.50675])
    for xi, loss in ((0.01, -0.396), (0.02, -0.392)):
        assert ref.termination_loss([0.4], [[2.0, 3.0]], [0], [False], xi)["loss"] == pytest.approx([loss])


def test_continuation_value_with_deliberation_cost__code() -> None:
    assert ref.continuation_value([1.0, 4.0], 0, 0.25) == pytest.approx(1.75)
    assert ref.continuation_value([1.0, 4.0], 0, 0.25, 0.1) == pytest.approx(1.725)


def test_ppoc_gae__code() -> None:
    out = ref.ppoc_gae([1.0] * 3, [0.5, 0.4, 0.6, 0.3], [False, True, False], [False] * 3, 0.2, 0.99, 0.95)
    assert out == pytest.approx([2.447382, 1.649529, 0.697], abs=5e-7)


def test_ppoc_gae_without_options_is_gae__paper() -> None:
    episode = {"reward": [1.0, -2.0, 0.5], "value": [0.5, 0.4, 0.6], "terminated": False, "final_value": 0.3}
    plain = base.gae([[episode]], 0.9, 0.8)["advantage"][0][0]
    got = ref.ppoc_gae(episode["reward"], [*episode["value"], 0.3], [True] * 3, [False] * 3, 0.0, 0.9, 0.8)
    assert got == pytest.approx(plain, abs=1e-12)


def test_dac_arrival__paper() -> None:
    assert ref.dac_arrival(0.25, [0.2, 0.8], 0)[0] == pytest.approx(0.8)


def test_termination_weight_is_a_finite_difference__paper() -> None:
    q, beta, h = [2.0, 5.0], 0.4, 1e-6
    up, down = (ref.continuation_value(q, 0, beta + s * h) for s in (1, -1))
    weight = ref.termination_loss([beta], [q], [0], [False], 0.0)["weight"][0]
    assert -(up - down) / (2 * h) == pytest.approx(weight, abs=1e-8)


# --- goals and skills -------------------------------------------------------------------------------------------------


def test_feudal__paper() -> None:
    states = [[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [2.0, 2.0]]
    goals = [[1.0, 0.0], [0.0, 1.0], [0.6, 0.8], [1.0, 0.0]]
    assert ref.feudal_intrinsic(states, goals, 3)[3] == pytest.approx(0.863828, abs=5e-7)
    last = ref.feudal_intrinsic(states[2:], goals[2:], 1)[1]
    assert last == pytest.approx(0.989949, abs=5e-7)
    out = ref.feudal_manager([2.0] * 4, [1.5] * 4, states, goals, 2)
    assert out["loss"][0] == pytest.approx(-0.353553, abs=5e-7)


def test_hiro_relabelling__code() -> None:
    states, actions = [[0.0, 0.0], [0.5, 0.0], [1.0, 0.5]], [[0.5, 0.1], [0.4, 0.4]]

    def mu(goal: list[float]) -> list[float]:
        return [min(max(0.5 * g, -1.0), 1.0) for g in goal]

    candidates = [[2.0, 0.0], [1.0, 0.5], [1.0, 0.2]]
    predicted = [[mu(g) for g in ref.hiro_goals(states, goal)[:-1]] for goal in candidates]
    out = ref.hiro_relabel(actions, predicted)
    assert out["score"] == pytest.approx([-0.27125, -0.03375, -0.05625], abs=1e-12)
    assert out["choice"] == 1
    assert ref.hiro_candidates([2.0, 0.0], states[0], states[2], [], [-9.0, -9.0], [9.0, 9.0])[1] == [1.0, 0.5]


def test_hiro_goal_transition__paper() -> None:
    states = [[0.0, 0.0], [0.5, 0.0]]
    close(ref.hiro_goals(states, [1.0, 0.5])[1], [0.5, 0.5])
    close(ref.hiro_low_reward(states, [[1.0, 0.5]]), [-0.707107], 5e-7)


def test_hac_transitions__paper() -> None:
    step = {"state": [0.0], "action": [5.0], "achieved": [3.0], "tested": True}
    out = ref.hac_transitions([step], [9.0], 3, 0.5, 0.98, hindsight=[0])
    close(out["action"], [([0.0], [3.0], -1.0, [3.0], [9.0], 0.98)])
    close(out["test"], [([0.0], [5.0], -3.0, [3.0], [9.0], 0.0)])
    close(out["her"], [([0.0], [3.0], 0.0, [3.0], [3.0], 0.0)])


def test_hac_bounded_q__code() -> None:
    assert ref.hac_bounded_q(0.0, 10) == pytest.approx(-0.067)
    assert ref.hac_bounded_q(4.998925, 10) == pytest.approx(-5.0, abs=5e-6)


def test_skill_rewards__paper() -> None:
    rewards = ref.diayn_reward([[0.6, 0.2, 0.1, 0.1], [0.6, 0.2, 0.1, 0.1]], [0, 2])
    assert rewards == pytest.approx([0.875469, -0.916291], abs=5e-7)
    assert ref.hsd_reward([2.0], [0.5], 0.75) == pytest.approx([1.326713], abs=5e-7)
    assert ref.dads_reward(-1.0, [-2.0, -3.0, -1.5]) == pytest.approx(0.639727, abs=5e-7)
    assert ref.directional_reward([0.3, -0.1], [0.1, 0.2], [1.0, 0.0]) == pytest.approx(0.2)


# --- subtasks ---------------------------------------------------------------------------------------------------------


def test_maxq__paper() -> None:
    assert ref.maxq_0_update(0.0, 3.0, 3, 0.9, 0.5) == pytest.approx(1.0935)
    out = ref.maxq_q_update(0.0, 0.0, [1.0], [1.0], [2.0], -5.0, 3, 0.9, 0.5)
    close(out, {"c": 1.0935, "c_pseudo": -0.729})


def test_six_state_chain__paper() -> None:
    """Reward 1 at the left end if the right end was visited; right succeeds half the time (arXiv 1604.06057)."""

    def best(gamma: float) -> float:
        value = {(s, seen): 0.0 for s in range(2, 7) for seen in (False, True)}

        def after(s: int, seen: bool) -> float:
            seen = seen or s == 6
            return (1.0 if seen else 0.01) if s == 1 else gamma * value[s, seen]

        for _ in range(3000):
            for s, seen in value:
                left, right = after(s - 1, seen), 0.0
                if s < 6:
                    right = 0.5 * after(s + 1, seen) + 0.5 * after(s - 1, seen)
                value[s, seen] = max(left, right)
        return value[2, False]

    assert best(1.0) == pytest.approx(0.2 + 0.8 * 0.01)
    assert best(0.975) == pytest.approx(0.156222, abs=5e-7)


# --- a manager in imagination -----------------------------------------------------------------------------------------


def test_cosine_max__paper() -> None:
    for goal, feature, want in (([1, 0], [2, 0], 0.5), ([1, 1], [1, 0], 0.5), ([3, 2], [3, 2], 1.0)):
        assert ref.cosine_max(goal, feature) == pytest.approx(want)


def test_manager_blocks__code() -> None:
    out = ref.manager_blocks([1.0, 2.0, 3.0, 4.0], [1.0, 1.0, 1.0, 0.0, 1.0], 2)
    close(out, {"reward": [1.5, 1.5], "cont": [1.0, 1.0, 0.0]})


def test_imagined_lambda_return__paper() -> None:
    out = ref.imagined_lambda_return([1.0, 0.0, 2.0], [0.5, 0.6, 0.7, 0.8], [1.0] * 4)
    assert out == pytest.approx([3.531925, 2.660526, 2.792], abs=5e-7)
    assert math.isclose(out[2], 2 + 0.99 * 0.8)
