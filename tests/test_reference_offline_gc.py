"""The offline goal-conditioned reference against numbers derived another way: longhand, fractions, published code."""

import math
from copy import deepcopy
from fractions import Fraction as F
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference import offline_gc as ref
from reference.offline_gc_cases import small_case

HALF_LOG_TWO_PI = 0.9189385332046727


def rows(*numbers: float) -> np.ndarray:
    """A [B, 1] column."""
    return np.array(numbers, float)[:, None]


def linear(weight: list[float], bias: float = 0.0) -> ref.Layers:
    """One bare layer with a scalar output."""
    return [{"weight": np.array([weight], float), "bias": np.array([bias], float)}]


# --- the oracle numbers of the OTA description ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "advantage", "weight", "loss"), [((-4.5, -3.5), 0.03, 0.7, 0.39991), ((-4.0, -3.5), -0.22, 0.3, 0.17139)]
)
def test_oracle_value_loss(target: tuple[float, float], advantage: float, weight: float, loss: float) -> None:
    one = np.ones(1)
    out = ref.twin_value_loss(rows(-3, -2), rows(*target), rows(-4.2, -3.7), -one, one, 0.99, 0.7)
    assert out["q"] == pytest.approx([-3.97], abs=1e-12)
    assert out["advantage"] == pytest.approx([advantage], abs=1e-12)
    assert out["weight"] == pytest.approx([weight], abs=1e-12)
    assert out["targets"][:, 0] == pytest.approx([-3.97, -2.98], abs=1e-12)
    assert out["loss"] == pytest.approx(loss, abs=1e-12)
    assert ref.expectile_weight(np.zeros(1), 0.7) == 0.7  # a tie counts as positive


def test_oracle_fixed_points() -> None:
    flat = {0: 0, 1: -1, 2: -1.99, 10: -9.561792, 100: -63.396766, 1000: -99.995683}
    option = {0: 0, 1: 0, 5: 0, 6: -1, 10: -1, 11: -1.99, 25: -3.940399, 100: -17.383138, 500: -63.027036}
    assert {d: ref.value_fixed_point(d, 0.99) for d in flat} == pytest.approx(flat, abs=5e-7)
    assert {d: ref.option_value_fixed_point(d, 5, 0.99) for d in option} == pytest.approx(option, abs=5e-7)


@pytest.mark.parametrize(
    ("i", "goal", "in_traj", "current", "expected"),
    [
        (2, 4, True, False, (4, 4, 0, 0)),
        (2, 9, True, False, (7, 9, -1, 1)),
        (2, 7, True, False, (7, 7, 0, 0)),
        (2, 15, False, False, (7, 15, -1, 1)),
        (7, 15, False, False, (9, 15, -1, 1)),
        (2, 15, False, True, (7, 7, 0, 0)),
    ],
)
def test_oracle_option_sampling(
    i: int, goal: int, in_traj: bool, current: bool, expected: tuple[int, int, int, int]
) -> None:
    # The draw that is not used is an index that would show if it leaked into the result.
    traj_goal, random_goal = (goal, 99) if in_traj else (9, goal)
    assert ref.ota_option(i, 9, 5, traj_goal, random_goal, in_traj, current) == expected


def test_oracle_awr() -> None:
    weights = ref.awr_weight(np.array([0.5, 1.5, 1.6, -1.0]), 3.0)
    assert weights == pytest.approx([4.481689, 90.017131, 100.0, 0.049787], abs=5e-7)
    log_prob = ref.gaussian_log_prob(np.array([[0.5, -1.0]] * 2), np.array([[0.0, 0.0], [0.5, 0.0]]))
    assert ref.awr_loss(np.array([0.5, -1.0]), log_prob, 3.0)["loss"] == pytest.approx(5.577123, abs=5e-7)


def test_oracle_order_consistency() -> None:
    ratio, smooth = ref.order_consistency(np.array([-6, -4, -7, -5, -4, -2, -3, 0.0]), 3, 2)
    expected = [-6, -5, -5.666667, -5.333333, -5.333333, -3.666667, -3, -1.666667]
    assert smooth == pytest.approx(expected, abs=5e-7)
    assert ratio == pytest.approx(5 / 6)
    assert ref.order_consistency(np.array([-6, -4, -7, -5, -4, -2, -3, 0.0]), 1, 2)[0] == pytest.approx(4 / 6)
    assert ref.order_consistency(np.zeros(5), 1, 2)[0] == 0.0  # ties are not in order


# --- networks, by hand ------------------------------------------------------------------------------------------------


def test_gelu_is_the_tanh_form() -> None:
    # Longhand at 1: sqrt(2/pi) * 1.044715 = 0.833562; tanh = 0.682384; (1 + 0.682384) / 2. The erf form is 0.8413447.
    assert float(ref.gelu(np.array(1.0))) == pytest.approx(0.841191990607, abs=1e-11)
    assert abs(float(ref.gelu(np.array(1.0))) - NormalDist().cdf(1.0)) > 1e-4


def test_layer_norm_longhand() -> None:
    # [1, 3]: mean 2, biased variance 1, so +-1 / sqrt(1 + 1e-6); then weight (2, 3) and bias (1, 0).
    unit = 1 / math.sqrt(1.000001)
    assert ref.layer_norm(np.array([1.0, 3.0])) == pytest.approx([-unit, unit], abs=1e-15)
    scaled = ref.layer_norm(np.array([1.0, 3.0]), np.array([2.0, 3.0]), np.array([1.0, 0.0]))
    assert scaled == pytest.approx([1 - 2 * unit, 3 * unit], abs=1e-15)


def test_mlp_order_is_dense_gelu_norm_and_the_last_layer_is_bare() -> None:
    def scalar_gelu(x: float) -> float:
        return x / (1 + math.exp(-2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))  # tanh written as a sigmoid

    layers: ref.Layers = [
        {"weight": np.array([[1.0, 2.0], [0.5, -1.0]]), "bias": np.array([0.1, 0.2]),
         "norm_weight": np.array([2.0, 1.0]), "norm_bias": np.array([0.0, -1.0])},
        {"weight": np.array([[3.0, 1.0]]), "bias": np.array([0.25])},
    ]  # fmt: skip
    h = [scalar_gelu(1 * 1 + 2 * -0.5 + 0.1), scalar_gelu(0.5 * 1 - 1 * -0.5 + 0.2)]
    assert ref.mlp_forward(layers, np.array([1.0, -0.5]), False, False)[0] == pytest.approx(3 * h[0] + h[1] + 0.25)
    mean = (h[0] + h[1]) / 2
    scale = math.sqrt(((h[0] - mean) ** 2 + (h[1] - mean) ** 2) / 2 + 1e-6)
    normed = [2 * (h[0] - mean) / scale, (h[1] - mean) / scale - 1]
    plain = ref.mlp_forward(layers, np.array([1.0, -0.5]), False, True)
    assert plain[0] == pytest.approx(3 * normed[0] + normed[1] + 0.25, rel=1e-12)
    # Activating the last layer normalises a single feature: always zero.
    assert ref.mlp_forward(layers, np.array([1.0, -0.5]), True, True)[0] == 0.0


def test_phi_has_norm_root_dim() -> None:
    identity: ref.Layers = [{"weight": np.array([[1.0, 0.0], [0.0, 1.0]]), "bias": np.zeros(2)}]
    out = ref.phi(identity, rows(3.0), rows(4.0))
    assert out == pytest.approx(np.array([[0.6, 0.8]]) * math.sqrt(2), abs=1e-15)


def test_gaussian_log_prob_is_the_sum_of_one_dimensional_densities() -> None:
    x, mean, log_std = np.array([[0.5, -1.0]]), np.array([[0.2, 0.4]]), np.array([0.3, -0.7])
    expected = sum(math.log(NormalDist(float(mean[0, k]), math.exp(log_std[k])).pdf(float(x[0, k]))) for k in range(2))
    assert ref.gaussian_log_prob(x, mean, log_std)[0] == pytest.approx(expected, rel=1e-12)
    # Constant std: (0.5, -1) at the origin is -0.625 - log(2 pi).
    assert ref.gaussian_log_prob(x, np.zeros((1, 2)))[0] == pytest.approx(-0.625 - 2 * HALF_LOG_TWO_PI, rel=1e-15)


def test_log_std_is_clipped_and_defaults_to_zero() -> None:
    network: dict[str, Any] = {"layers": linear([1.0, 0.0])}
    assert ref.actor(network, rows(1.0), rows(2.0))[1] == 0.0
    network["log_std"] = np.array([9.0])
    assert ref.actor(network, rows(1.0), rows(2.0))[1] == 2.0


# --- flat agents, by hand ---------------------------------------------------------------------------------------------


def test_gcbc_longhand() -> None:
    # Means 2 s - g = (1, -1); actions (1.5, 0): squared errors 0.25 and 1, so mean 0.3125 + log(2 pi) / 2.
    batch = {"observations": rows(1, 0), "actor_goals": rows(1, 1), "actions": rows(1.5, 0)}
    out = ref.gcbc_loss({"actor": {"layers": linear([2, -1])}}, batch)
    assert out["total"] == pytest.approx(0.3125 + HALF_LOG_TWO_PI, rel=1e-14)


def test_gcivl_longhand() -> None:
    # Targets move by 1.5 a unit of s, online heads by 0.5: the value loss is the first oracle number, the actor's
    # advantage is 0.5 and its log density -0.125 - log(2 pi) / 2.
    params = {
        "value": {"heads": [linear([0.5, 0], -4.2), linear([0.5, 0], -3.7)]},
        "target_value": {"heads": [linear([1.5, 0], -4.5), linear([1.5, 0], -3.5)]},
        "actor": {"layers": linear([0, 1])},
    }
    batch = {
        "observations": rows(0), "next_observations": rows(1), "value_goals": rows(7), "actor_goals": rows(2),
        "actions": rows(1.5), "rewards": np.array([-1.0]), "masks": np.array([1.0]),
    }  # fmt: skip
    out = ref.gcivl_losses(params, batch, {"discount": 0.99, "expectile": 0.7, "alpha": 3.0})
    assert out["value"] == pytest.approx(0.39991, abs=1e-12)
    assert out["actor"] == pytest.approx(math.exp(1.5) * (0.125 + HALF_LOG_TWO_PI), rel=1e-12)
    assert out["total"] == pytest.approx(out["value"] + out["actor"], rel=1e-15)


GCIQL_PARAMS: ref.Params = {
    "value": {"heads": [linear([1, 1], -5)]},
    "critic": {"heads": [linear([1, 1, 2], -7), linear([1, 1, 1], -5)]},  # input order: state, goal, action
    "target_critic": {"heads": [linear([1, 1, 1], -6), linear([1, 1, -1], -4)]},
    "actor": {"layers": linear([3, 0])},
}
GCIQL_BATCH: ref.Batch = {
    "observations": rows(0.5), "next_observations": rows(1.0), "value_goals": rows(2.0), "actor_goals": rows(1.0),
    "actions": rows(0.25), "rewards": np.array([-1.0]), "masks": np.array([1.0]),
}  # fmt: skip


def test_gciql_value_and_critic_in_fractions() -> None:
    s, following, goal, action, discount = F(1, 2), F(1), F(2), F(1, 4), F(99, 100)
    advantage = min(s + goal + action - 6, s + goal - action - 4) - (s + goal - 5)
    assert advantage == F(-3, 4)
    target = -1 + discount * (following + goal - 5)
    critic = (s + goal + 2 * action - 7 - target) ** 2 + (s + goal + action - 5 - target) ** 2
    hyper = {"discount": 0.99, "expectile": 0.9, "actor_loss": "awr", "alpha": 2.0}
    out = ref.gciql_losses(GCIQL_PARAMS, GCIQL_BATCH, hyper)
    assert out["value"] == pytest.approx(float(F(1, 10) * advantage**2), rel=1e-12)
    assert out["critic"] == pytest.approx(float(critic), rel=1e-12)
    # AWR: min Q = min(1.5 + 0.5 - 7, 1.5 + 0.25 - 5) = -5, V = -3.5, A = -1.5; mean 1.5, action 0.25.
    assert out["actor"] == pytest.approx(math.exp(-3.0) * (1.25**2 / 2 + HALF_LOG_TWO_PI), rel=1e-12)


def test_gciql_ddpg_bc_longhand() -> None:
    # Mean 1.5 acts as 1: Q = min(1.5 + 2 - 7, 1.5 + 1 - 5) = -3.5, so q_loss = 3.5 / (3.5 + 1e-6); the cloning loss
    # keeps the unclipped mean.
    hyper = {"discount": 0.99, "expectile": 0.9, "actor_loss": "ddpgbc", "alpha": 0.3}
    out = ref.gciql_losses(GCIQL_PARAMS, GCIQL_BATCH, hyper)
    assert out["actor/q"] == pytest.approx([-3.5])
    assert out["actor/q_loss"] == pytest.approx(3.5 / 3.500001, rel=1e-12)
    assert out["actor/bc_loss"] == pytest.approx(0.3 * (1.25**2 / 2 + HALF_LOG_TWO_PI), rel=1e-12)
    assert out["total"] == pytest.approx(out["value"] + out["critic"] + out["actor/q_loss"] + out["actor/bc_loss"])


# --- hierarchical agents, by hand -------------------------------------------------------------------------------------
# phi([s; g]) = sign(g) with one dimension; V heads 2 s + z - 5 and 2 s + z - 4.

HIQL_PARAMS: ref.Params = {
    "phi": linear([0, 1]),
    "value": {"heads": [linear([2, 1], -5), linear([2, 1], -4)]},
    "target_value": {"heads": [linear([2, 1], -5), linear([2, 1], -4)]},
    "low_actor": {"layers": linear([0, 0.5])},
    "high_actor": {"layers": linear([0, 0.1])},
}
HIQL_BATCH: ref.Batch = {
    "observations": rows(0), "next_observations": rows(1), "value_goals": rows(3), "actions": rows(0.5),
    "low_goals": rows(-2), "high_goals": rows(3), "high_targets": rows(-0.25),
    "rewards": np.array([-1.0]), "masks": np.array([1.0]),
}  # fmt: skip
HIQL_HYPER = {"discount": 0.99, "expectile": 0.7, "low_alpha": 3.0, "high_alpha": 3.0}
# Value: q = -1 - 1.98, A = 0.52, errors 1.02 and 1.01. Low: A = 2, weight clipped, mean -0.5. High: A = -0.5, mean 0.3
# against the representation -1.
HIQL_VALUE = 0.7 * (1.02**2 + 1.01**2)
LOW_ACTOR = 100 * (0.5 + HALF_LOG_TWO_PI)
HIGH_ACTOR = math.exp(-1.5) * (1.3**2 / 2 + HALF_LOG_TWO_PI)


def test_hiql_longhand() -> None:
    out = ref.hiql_losses(HIQL_PARAMS, HIQL_BATCH, HIQL_HYPER)
    assert out["value/advantage"] == pytest.approx([0.52], abs=1e-12)
    assert out["value"] == pytest.approx(HIQL_VALUE, rel=1e-12)
    assert out["low_actor"] == pytest.approx(LOW_ACTOR, rel=1e-12)
    assert out["high_actor"] == pytest.approx(HIGH_ACTOR, rel=1e-12)
    assert out["total"] == pytest.approx(HIQL_VALUE + LOW_ACTOR + HIGH_ACTOR, rel=1e-12)


def test_hiql_target_with_its_own_phi() -> None:
    # The target's phi is -sign(g): t(s') = (-4, -3), t(s) = (-6, -5); q = -4.96, A = 0.54, targets -4.96 and -3.97.
    params = deepcopy(HIQL_PARAMS)
    params["target_value"]["phi"] = linear([0, -1])
    out = ref.hiql_losses(params, HIQL_BATCH, HIQL_HYPER)
    assert out["value"] == pytest.approx(0.7 * (0.96**2 + 0.97**2), rel=1e-12)
    assert out["low_actor"] == pytest.approx(LOW_ACTOR, rel=1e-12)


def ota_params() -> ref.Params:
    """The same low level; V_h heads s + z - 3 and s + z - 2, their targets half a unit lower."""
    params = {key: value for key, value in HIQL_PARAMS.items() if "value" not in key}
    params |= {"low_value": HIQL_PARAMS["value"], "target_low_value": HIQL_PARAMS["target_value"]}
    params["high_value"] = {"heads": [linear([1, 1], -3), linear([1, 1], -2)]}
    params["target_high_value"] = {"heads": [linear([1, 1], -3.5), linear([1, 1], -2.5)]}
    return params


def option(reward: float, mask: float) -> ref.Batch:
    """One option sample: s_O = 1.5, goal -1."""
    numbers = {"option_rewards": np.array([reward]), "option_masks": np.array([mask])}
    return {"option_next_observations": rows(1.5), "option_goals": rows(-1)} | numbers


@pytest.mark.parametrize("success", [False, True])
def test_ota_longhand(success: bool) -> None:
    sample = option(0.0, 0.0) if success else option(-1.0, 1.0)
    out = ref.ota_losses(ota_params(), HIQL_BATCH | sample, HIQL_HYPER)
    # Goal side z = -1: t(s_O) = (-3, -2), t(s) = (-4.5, -3.5), V = (-4, -3). Not there: q = -3.97, A = 0.03, targets
    # -3.97 and -2.98 (discounted once). There: q = 0, A = 4, both targets 0.
    high_value = 0.7 * (4**2 + 3**2) if success else 0.7 * (0.03**2 + 0.02**2)
    assert out["high_value/advantage"] == pytest.approx([4.0 if success else 0.03], abs=1e-12)
    assert out["high_value"] == pytest.approx(high_value, rel=1e-9)
    assert out["low_value"] == pytest.approx(HIQL_VALUE, rel=1e-12)
    assert out["low_actor"] == pytest.approx(LOW_ACTOR, rel=1e-12)
    # The high level follows V_h: A = -0.25 instead of -0.5.
    high_actor = math.exp(-0.75) * (1.3**2 / 2 + HALF_LOG_TWO_PI)
    assert out["high_actor"] == pytest.approx(high_actor, rel=1e-12)
    assert out["total"] == pytest.approx(high_value + HIQL_VALUE + LOW_ACTOR + high_actor, rel=1e-12)


def test_ota_discounts_are_separate() -> None:
    out = ref.ota_losses(ota_params(), HIQL_BATCH | option(-1.0, 1.0), HIQL_HYPER | {"high_discount": 0.5})
    # q = -1 - 1.5, A = 1.5; targets -2.5 and -2 against -4 and -3.
    assert out["high_value"] == pytest.approx(0.7 * (1.5**2 + 1**2), rel=1e-12)
    assert out["low_value"] == pytest.approx(HIQL_VALUE, rel=1e-12)


def test_greedy_actions() -> None:
    params: ref.Params = {"high_actor": {"layers": linear([0, 0.1])}, "low_actor": {"layers": linear([0, 0.5], 0.25)}}
    # High means 0.3 and -0.1 rescale to 1 and -1; low means 0.75 and -0.25.
    goals = rows(3, -1)
    assert ref.hierarchical_action(params, rows(0, 0), goals)[:, 0] == pytest.approx([0.75, -0.25], abs=1e-15)
    assert ref.flat_action({"actor": {"layers": linear([0, 1])}}, rows(0, 0), goals)[:, 0].tolist() == [1.0, -1.0]


# --- where gradients flow ---------------------------------------------------------------------------------------------


def test_frozen_parameters_carry_no_gradient() -> None:
    moved = deepcopy(HIQL_PARAMS)
    moved["phi"] = linear([0, -1])
    still = ref.hiql_losses(HIQL_PARAMS, HIQL_BATCH, HIQL_HYPER)
    out = ref.hiql_losses(moved, HIQL_BATCH, HIQL_HYPER, frozen=HIQL_PARAMS)
    assert out["value"] != still["value"]
    assert (out["low_actor"], out["high_actor"]) == (still["low_actor"], still["high_actor"])
    pixels = ref.hiql_losses(moved, HIQL_BATCH, HIQL_HYPER | {"low_actor_rep_grad": True}, frozen=HIQL_PARAMS)
    assert pixels["low_actor"] == pytest.approx(100 * HALF_LOG_TWO_PI)  # the mean is now 0.5, the action itself


def test_ddpg_bc_normaliser_is_frozen() -> None:
    hyper = {"discount": 0.99, "expectile": 0.9, "actor_loss": "ddpgbc", "alpha": 0.0}
    moved = GCIQL_PARAMS | {"actor": {"layers": linear([0, 0])}}
    # Action 0: Q = min(-5.5, -3.5) = -5.5, still divided by the frozen 3.5.
    out = ref.gciql_losses(moved, GCIQL_BATCH, hyper, frozen=GCIQL_PARAMS)
    assert out["actor"] == pytest.approx(5.5 / 3.500001, rel=1e-12)


# --- one update -------------------------------------------------------------------------------------------------------


def test_adam_longhand() -> None:
    lr = 3e-4
    tree = {"w": [np.array([1.0, -1.0])]}
    zero = ref.tree_map(np.zeros_like, tree)
    params, first, second = ref.adam_step(tree, {"w": [np.array([2.0, 0.0])]}, zero, zero, 1)
    # The first step is lr g / (|g| + eps); a zero gradient does not move.
    assert params["w"][0] == pytest.approx([1 - lr * 2 / (2 + 1e-8), -1.0], abs=1e-15)
    params, first, second = ref.adam_step(params, {"w": [np.array([-1.0, 0.0])]}, first, second, 2)
    m, v = F(9, 10) * F(1, 5) - F(1, 10), F(999, 1000) * F(1, 250) + F(1, 1000)
    assert first["w"][0][0] == pytest.approx(float(m), rel=1e-14)
    assert second["w"][0][0] == pytest.approx(float(v), rel=1e-14)
    step = float(m / F(19, 100)) / (math.sqrt(v / F(1999, 1000000)) + 1e-8)
    assert params["w"][0][0] == pytest.approx(1 - lr * 2 / (2 + 1e-8) - lr * step, abs=1e-15)


def test_polyak_longhand() -> None:
    assert ref.polyak({"w": [4.0]}, {"w": [2.0]}, 0.005)["w"][0] == pytest.approx(float(F(2, 200) + F(199 * 4, 200)))


# --- sampling ---------------------------------------------------------------------------------------------------------


@given(st.floats(0, 0.999999), st.sampled_from([0.5, 0.9, 0.99]))
def test_geometric_offset_inverts_the_distribution(u: float, discount: float) -> None:
    t = ref.geometric_offset(u, discount)
    assert t >= 1
    assert 1 - discount ** (t - 1) <= u + 1e-12
    assert u < 1 - discount**t + 1e-12


def test_geometric_support_and_masses() -> None:
    assert [ref.geometric_offset(u, 0.5) for u in (0.0, 0.49, 0.5, 0.74, 0.75, 0.99)] == [1, 1, 2, 2, 3, 7]
    grid = [ref.geometric_offset((k + 0.5) / 20000, 0.99) for k in range(20000)]
    assert sum(t == 1 for t in grid) == 200
    assert np.mean(grid) == pytest.approx(100, abs=0.5)


def test_in_trajectory_threshold() -> None:
    # 0.5 / 0.8 = 0.625; the option sampler's 1e-6 lowers it by about 7.8e-7.
    assert ref.in_trajectory(0.6249999, 0.5, 0.2)
    assert not ref.in_trajectory(0.625, 0.5, 0.2)
    assert ref.in_trajectory(0.6249990, 0.5, 0.2, option=True)
    assert not ref.in_trajectory(0.6249995, 0.5, 0.2, option=True)
    assert ref.in_trajectory(0.999999, 0.5, 0.5)
    assert not ref.in_trajectory(0.9999985, 0.5, 0.5, option=True)


def test_value_goal_succeeds_on_the_current_index() -> None:
    assert ref.value_goal(3, 6, 40, True, False) == (6, -1.0, 1.0)
    assert ref.value_goal(3, 6, 40, False, False) == (40, -1.0, 1.0)
    assert ref.value_goal(3, 6, 40, False, True) == (3, 0.0, 0.0)
    assert ref.value_goal(3, 6, 3, False, False) == (3, 0.0, 0.0)  # a random draw may hit the current index
    assert ref.future_geometric(9, 9, 4) == 9
    assert ref.value_goal(9, 9, 40, True, False) == (9, 0.0, 0.0)  # the trajectory's end is its own goal
    assert ref.ota_option(9, 9, 5, 9, 40, True, False) == (9, 9, 0.0, 0.0)


def test_future_uniform_covers_next_to_last() -> None:
    assert [ref.future_uniform(2, 9, u) for u in (0.0, 0.5, 0.75, 0.999999)] == [9, 6, 4, 3]
    assert ref.future_uniform(9, 9, 0.3) == 9
    # Halves go to even: u = 1/2 between 3 and 8 is 5.5, between 3 and 10 is 6.5.
    assert (ref.future_uniform(2, 8, 0.5), ref.future_uniform(2, 10, 0.5)) == (6, 6)


def test_actor_targets_clamp() -> None:
    assert (ref.low_goal(2, 9, 5), ref.low_goal(6, 9, 5), ref.low_goal(9, 9, 5)) == (7, 9, 9)
    assert ref.high_goal_and_target(2, 9, 5, 4, 40, False) == (4, 4)
    assert ref.high_goal_and_target(2, 9, 5, 9, 40, False) == (9, 7)
    assert ref.high_goal_and_target(2, 9, 5, 4, 40, True) == (40, 7)
    assert ref.high_goal_and_target(6, 9, 5, 7, 40, True) == (40, 9)


@given(st.integers(0, 30), st.integers(0, 30), st.integers(1, 12), st.integers(1, 40), st.booleans(), st.booleans())
def test_option_invariants(i: int, rest: int, n: int, offset: int, in_traj: bool, current: bool) -> None:
    f = i + rest
    o, goal, reward, mask = ref.ota_option(i, f, n, ref.future_geometric(i, f, offset), 1000, in_traj, current)
    assert i <= o <= min(i + n, f)
    assert (o == goal) == (reward == 0.0) == (mask == 0.0)
    assert goal == o if current else in_traj or goal == 1000


# --- fixed points and order consistency -------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 3, 5, 10])
def test_fixed_points_match_iteration_and_fractions(n: int) -> None:
    discount = F(99, 100)
    flat, option = ref.chain_iteration(60, 0.99), ref.chain_iteration(60, 0.99, n)
    for d in range(61):
        steps = max(math.ceil(F(d, n)) - 1, 0)
        assert flat[d] == pytest.approx(-float(sum(discount**t for t in range(d))), abs=1e-12)
        assert option[d] == pytest.approx(-float(sum(discount**t for t in range(steps))), abs=1e-12)
        assert ref.value_fixed_point(d, 0.99) == pytest.approx(flat[d], abs=1e-12)
        assert ref.option_value_fixed_point(d, n, 0.99) == pytest.approx(option[d], abs=1e-12)
        # One-step options are the flat value shifted by one: success is checked where the option ends.
        assert ref.option_value_fixed_point(d, 1, 0.99) == pytest.approx(flat[max(d - 1, 0)], abs=1e-12)


def test_order_consistency_in_fractions() -> None:
    v, window, k = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5], 4, 3
    smooth = [F(sum(v[max(0, t - window + 1) : t + 1]), min(t + 1, window)) for t in range(len(v))]
    ups = sum(smooth[t + k] > smooth[t] for t in range(len(v) - k))
    ratio, got = ref.order_consistency(np.array(v, float), window, k)
    assert ratio == ups / (len(v) - k)
    assert got == pytest.approx([float(x) for x in smooth])


# --- numbers computed by the published agents -------------------------------------------------------------------------
# OGBench's own code (JAX, float64) on the same weights and batch, flat agents and HIQL; printed to 12 digits. Its HIQL
# keeps ONE phi, shared by V, target V and low actor: the small case has no phi of the target's own.


PUBLISHED_NUMBERS: dict[str, dict[str, float]] = {
    "gcbc": {"total": 10.6339462979, "actor": 10.6339462979},
    "gcivl": {"total": 333.447696701, "value": 0.195119658792, "actor": 333.252577043},
    "gciql/awr": {"total": 11.8610579496, "value": 0.211907828268, "critic": 3.40160593796, "actor": 8.24754418339},
    "gciql/ddpgbc": {"total": 7.34253558367, "value": 0.211907828268, "critic": 3.40160593796, "actor": 3.72902181744},
    "hiql": {"total": 80.1449632854, "value": 1.12355757606, "low_actor": 53.3007920485, "high_actor": 25.7206136608},
}


LOSSES: dict[str, Any] = {"gcbc": ref.gcbc_loss, "gcivl": ref.gcivl_losses, "gciql": ref.gciql_losses}
LOSSES |= {"hiql": ref.hiql_losses, "ota": ref.ota_losses}


def hyper_of(case: str) -> ref.Hyper:
    agent, _, actor_loss = case.partition("/")
    return ref.PUBLISHED[agent] | ({"actor_loss": actor_loss, "alpha": 3.0} if actor_loss == "awr" else {})


@pytest.mark.parametrize("case", list(PUBLISHED_NUMBERS))
def test_published_agents_agree(case: str) -> None:
    agent = case.partition("/")[0]
    out = LOSSES[agent](*small_case(agent), hyper_of(case))
    for term, number in PUBLISHED_NUMBERS[case].items():
        assert out[term] == pytest.approx(number, rel=1e-10)


@pytest.mark.parametrize("case", [*PUBLISHED_NUMBERS, "ota"])
def test_each_term_trains_its_own_network_only(case: str) -> None:
    agent = case.partition("/")[0]
    params, batch = small_case(agent)
    still = LOSSES[agent](params, batch, hyper_of(case))
    terms = {key for key in still if "/" not in key} - {"total"}
    for name in set(params) - {"phi"}:
        moved = params | {name: ref.tree_map(lambda leaf: leaf + 0.01, params[name])}
        out = LOSSES[agent](moved, batch, hyper_of(case), frozen=params)
        assert {term for term in terms if out[term] != still[term]} == {name} & terms


def test_ota_with_hiql_values_and_one_step_options_is_hiql() -> None:
    params, batch = small_case("hiql")
    twice = params | {f"{level}_value": params["value"] for level in ("low", "high")}
    twice |= {f"target_{level}_value": params["target_value"] for level in ("low", "high")}
    option = {"option_next_observations": batch["next_observations"], "option_goals": batch["value_goals"]}
    option |= {"option_rewards": batch["rewards"], "option_masks": batch["masks"]}
    hiql = ref.hiql_losses(params, batch, ref.PUBLISHED["hiql"])
    ota = ref.ota_losses(twice, batch | option, ref.PUBLISHED["ota"])
    assert ota["total"] == pytest.approx(hiql["total"] + hiql["value"], rel=1e-14)
