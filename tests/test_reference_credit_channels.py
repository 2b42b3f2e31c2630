"""The references of vector rewards, set functions, teams and shaping against printed numbers and hand-derived cases.

A name ends in where its number comes from: the paper's formula, published code, or a derivation of our own.
"""

import itertools
import math
from typing import Any

import pytest
from reference import credit_base as base
from reference import credit_channels as ref
from reference.checking import close


@pytest.mark.parametrize("rule", sorted(ref.CASES))
def test_cases__reconstructed(rule: str) -> None:
    for case in ref.CASES[rule]:
        close(getattr(ref, rule)(**case["inputs"]), case["expected"])


def test_every_rule_has_a_case__reconstructed() -> None:
    public = {n for n, f in vars(ref).items() if callable(f) and getattr(f, "__module__", "") == ref.__name__}
    assert {name for name in public if not name.startswith("_")} == set(ref.CASES)


# --- several channels -------------------------------------------------------------------------------------------------

REWARD = [[1.0, 0.0, 0.0], [0.0, 0.5, -10.0], [2.0, 0.0, -1.0]]
VALUE = [[0.5, 0.1, -2.0], [0.4, 0.2, -3.0], [0.3, 0.3, -1.0]]


def columns(rows: list[list[float]]) -> list[list[float]]:
    return [[row[k] for row in rows] for k in range(len(rows[0]))]


def three_channels(scale: float = 1.0) -> list[list[dict[str, Any]]]:
    """Reach, discovery and safety; safety times `scale`."""
    reward, value = ([[r, d, scale * s] for r, d, s in rows] for rows in (REWARD, VALUE))
    return [[{"reward": reward, "value": value, "terminated": True}]]


def test_channel_gae__reconstructed() -> None:
    out = columns(ref.channel_gae(three_channels(), 0.9, 0.8)[0][0])
    close(out, [[1.64768, 1.094, 1.7], [0.33488, 0.354, -0.3], [-6.388, -7.9, 0.0]])


def test_slim_advantage__reconstructed() -> None:
    out = ref.slim_advantage(three_channels(), 0.9, 0.8)
    reach, discovery, safety = columns(out["channels"][0][0])
    close(reach, [0.609543, -1.409915, 0.800372], 5e-7)
    close(discovery, [0.675415, 0.738332, -1.413747], 5e-7)
    close(safety, [-0.474714, -0.916326, 1.391040], 5e-7)
    close(out["advantage"][0][0], [0.810244, -1.587910, 0.777665], 1e-6)
    out = ref.slim_advantage(three_channels(), 0.9, 0.8, weights=[1.0, 0.5, 2.0])
    close(out["advantage"][0][0], [-0.002177, -2.873402, 2.875579], 1e-6)


def test_slim_ignores_a_channels_scale__reconstructed() -> None:
    a, b = (ref.slim_advantage(three_channels(s), 0.9, 0.8)["advantage"] for s in (1.0, 100.0))
    close(a, b, 1e-7)


def test_one_critic_of_the_sum_flips_a_sign__reconstructed() -> None:
    episode = {"reward": [sum(r) for r in REWARD], "value": [sum(v) for v in VALUE], "terminated": True}
    raw = base.gae([[episode]], 0.9, 0.8)["advantage"][0][0]
    close(raw, [-4.40544, -6.452, 1.4])
    mean = sum(raw) / 3
    std = math.sqrt(sum((a - mean) ** 2 for a in raw) / 3)
    close([(a - mean) / (std + 1e-8) for a in raw], [-0.376745, -0.992113, 1.368859], 5e-7)


def test_hamnet_vector_ppo__code() -> None:
    advantage, ratio = [[1.0, -10.0], [0.0, 0.0], [2.0, -20.0]], [1.2, 0.9, 1.5]
    close(ref.hamnet_normalise(advantage), [[0, 0], [-0.099504, 0.995037], [0.099504, -0.995037]], 5e-7)
    assert ref.hamnet_policy_loss(advantage, ratio) == pytest.approx(0.092870, abs=5e-7)
    assert ref.hamnet_policy_loss(advantage, ratio, per_channel=False) == pytest.approx(0.089553, abs=5e-7)


def test_log_distance_potential__code() -> None:
    potential = ref.log_distance_potential([0.5, 0.4])
    assert potential == pytest.approx([-0.916291, -0.788457], abs=5e-7)
    assert ref.potential_reward(potential, 1.0, 0.16) == pytest.approx([0.020453], abs=5e-7)


# --- set functions ----------------------------------------------------------------------------------------------------


def test_coverage_on_a_line__paper() -> None:
    cover, weight = [[s, s + 1] for s in range(6)], [1.0] * 7
    values = ref.coverage_values([0, 1, 1, 3], cover, weight)
    assert values == [2, 3, 3, 5]
    assert ref.set_gains(values) == [1, 0, 2]
    assert ref.set_weights([values]) == [[3, 2, 2]]
    assert ref.set_weights([values], "prefix") == [[3, 3, 5]]
    assert ref.coverage_values([0, 1, 1, 3], cover, weight, additive=True)[-1] == 8


def test_coverage_curvature__paper() -> None:
    """c = 1 - min over v of (F(V) - F(V - v)) / F(v): an inner cell's cover is covered by its neighbours."""
    cover, weight = [[s, s + 1] for s in range(6)], [1.0] * 7
    whole = ref.coverage_values(range(6), cover, weight)[-1]
    left = [(whole - ref.coverage_values([s for s in range(6) if s != v], cover, weight)[-1]) / 2 for v in range(6)]
    assert 1 - min(left) == 1


def test_capped_counts__code() -> None:
    assert ref.capped_count_values([0, 1, 3, 4, 5], [[0, 1], [3, 4, 5]], [1, 2]) == [1, 1, 2, 3, 3]


@pytest.mark.parametrize(
    ("draws", "value", "truth", "short"),
    [
        (2, 1.653478988, (0.006033631, 0.04823324, -0.054266871), (0.003016816, 0.02411662, -0.027133435)),
        (3, 2.084651889, (0.007718543, 0.098430398, -0.106148941), (0.005589663, 0.056926752, -0.062516415)),
    ],
)
def test_gradient_of_distinct_draws__paper(
    draws: int, value: float, truth: tuple[float, ...], short: tuple[float, ...]
) -> None:
    logits = [0.2, -0.1, 0.4]

    def probabilities(z: list[float]) -> list[float]:
        total = sum(math.exp(x) for x in z)
        return [math.exp(x) / total for x in z]

    def objective(z: list[float]) -> float:
        p = probabilities(z)
        return sum(math.prod(p[a] for a in path) * len(set(path)) for path in itertools.product(range(3), repeat=draws))

    p = probabilities(logits)
    assert p == pytest.approx([0.337584538, 0.250088777, 0.412326686], abs=5e-10)
    assert objective(logits) == pytest.approx(value, abs=5e-10)
    found = {}
    for estimator in ("togo", "greedy", "prefix"):
        gradient = [0.0] * 3
        for path in itertools.product(range(3), repeat=draws):
            prefixes = [0.0, *[float(len(set(path[: i + 1]))) for i in range(draws)]]
            weights = ref.set_weights([prefixes], estimator)[0]
            for action, w in zip(path, weights, strict=True):
                for k in range(3):
                    gradient[k] += math.prod(p[a] for a in path) * w * ((action == k) - p[k])
        found[estimator] = gradient
    h = 1e-5
    for k in range(3):
        up, down = ([z + s * h * (i == k) for i, z in enumerate(logits)] for s in (1, -1))
        assert (objective(up) - objective(down)) / (2 * h) == pytest.approx(truth[k], abs=1e-8)
    assert found["togo"] == pytest.approx(truth, abs=1e-9)
    assert found["greedy"] == pytest.approx(short, abs=1e-9)
    assert found["prefix"] == pytest.approx(short, abs=1e-9)


def test_myopic_weights_point_the_wrong_way__paper() -> None:
    """Left gains 1 then 0, right 0 then 2, left chosen with q = sigmoid(theta) = .5."""
    for estimator, want in (("togo", -0.25), ("greedy", 0.25), ("prefix", 0.25)):
        left, right = ref.set_weights([[0.0, 1.0, 1.0], [0.0, 0.0, 2.0]], estimator)
        assert 0.5 * left[0] * 0.5 + 0.5 * right[0] * -0.5 == pytest.approx(want)


def test_entropy_of_states__code() -> None:
    kernel = [[1.0, 0.5], [0.5, 1.0]]
    assert ref.entropy_values([0, 1], kernel, constant=0.0)[1] == pytest.approx(-0.14383970, abs=5e-9)
    assert ref.entropy_values([0, 1], kernel, 0.0, 0.0)[1] == pytest.approx(-0.14384104, abs=5e-9)
    # The printed numbers use the constant rounded to 9.965784; -log2(1e-3) is 9.9657842847.
    values = ref.entropy_values([0, 1], kernel, constant=9.965784)
    assert values == pytest.approx([9.96578450, 19.78772830], abs=5e-9)
    again = ref.entropy_values([0, 0], kernel, constant=9.965784)
    assert again[1] == pytest.approx(13.37038656, abs=5e-9)
    assert again[1] - again[0] == pytest.approx(3.40460206, abs=1e-8)


# --- teams and shaped rewards -----------------------------------------------------------------------------------------


def test_monotone_mix__paper() -> None:
    out = ref.monotone_mix([1.0, -2.0], [[0.5, -1.0], [0.25, 0.75]], [0.1, -0.2], [-0.5, 1.5], 0.3)
    assert out["value"] == pytest.approx(-0.405122, abs=5e-7)
    assert out["gradient"] == pytest.approx([0.994878, 0.683658], abs=5e-7)


def test_gridworld_rewards__code() -> None:
    assert ref.early_success_reward(40, 256) == pytest.approx(0.921875)
    assert ref.early_success_reward(40, 256, 0.9) == pytest.approx(0.859375)
    items = [(5, 0), (3, 4), (4, 2), (5, 7), (3, 8)]
    assert ref.approach_reward((0, 0), items) == pytest.approx(0.1)
    assert ref.approach_reward((1, 0), items) == pytest.approx(0.125)


def test_joint_targets_of_one_agent_are_span_targets__reconstructed() -> None:
    q = [[[0.0, 0.0]], [[0.0, 0.0]], [[1.0, 4.0]], [[2.0, -1.0]]]
    switch, goal, reward = [[True], [False], [True]], [[0], [0], [1]], [1.0, 2.0, 4.0]
    joint = ref.joint_targets(reward, switch, goal, q, 0.9, final_switch=[True])["target"]
    episode = {"reward": reward, "switch": [s[0] for s in switch], "terminated": False}
    episode |= {"value": [max(row[0]) for row in q[:-1]], "final_value": max(q[-1][0])}
    assert joint == pytest.approx(base.smdp_target([[episode]], 0.9)[0][0])


def test_span_target_of_a_team__paper() -> None:
    out = ref.joint_targets([0.0, 0.0, 1.0], [[True]] + [[False]] * 2, [[0]] * 3, [[[2.0]]] * 4, 0.9)
    assert out["target"] == pytest.approx([2.268])
