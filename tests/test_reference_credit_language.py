"""The references of the language agents' credit rules against published and hand-derived numbers."""

import itertools
import math
from fractions import Fraction as F
from typing import Any

import pytest
from reference import credit_language as ref
from reference import credit_language_critics as critics
from reference import credit_language_values as values

SIX = 5.1e-7  # numbers printed with six decimals


def close(actual: Any, expected: Any, tolerance: float) -> bool:
    """Nested lists and dicts of numbers, equal within the tolerance; anything else must be equal."""
    if isinstance(expected, dict):
        return set(actual) == set(expected) and all(close(actual[k], expected[k], tolerance) for k in expected)
    if isinstance(expected, list):
        return len(actual) == len(expected) and all(
            close(a, e, tolerance) for a, e in zip(actual, expected, strict=True)
        )
    if isinstance(expected, int | float) and not isinstance(expected, bool):
        return math.isfinite(actual) and abs(actual - expected) <= tolerance
    return actual == expected


def same(actual: Any, expected: Any, tolerance: float = SIX) -> None:
    assert close(actual, expected, tolerance), f"\nactual   {actual}\nexpected {expected}"


RULES = [
    (module, rule, case)
    for module in (ref, values, critics)
    for rule, cases in module.CASES.items()
    for case in range(len(cases))
]


@pytest.mark.parametrize(("module", "rule", "case"), RULES, ids=[f"{rule}-{case}" for _, rule, case in RULES])
def test_credit_language_cases_by_exact_fractions__reconstructed(module: Any, rule: str, case: int) -> None:
    entry = module.CASES[rule][case]
    same(getattr(module, rule)(**entry["inputs"]), entry["expected"], 1e-9)


# --- HAE --------------------------------------------------------------------------------------------------------------

FIVE: dict[str, Any] = {
    "reward": [0, 0, 0, 0, 1],
    "switch": [1, 0, 1, 0, 0],
    "v_low": [0.2, 0.3, 0.4, 0.5, 0.7],
    "v_high": [0.25, 0.35, 0.45, 0.55, 0.65],
    "v_term": [0.0] * 5,
    "terminated": True,
}
THREE: dict[str, Any] = {
    "reward": [0, 0, 0],
    "switch": [1, 0, 1],
    "v_low": [0.2, 0.3, 0.4],
    "v_high": [0.25, 0.35, 0.45],
    "v_term": [0.0] * 3,
    "terminated": False,
}


def test_hae_discounted_episode__code() -> None:
    low, high = values.hae_low([[FIVE]], 0.9, 0.95), values.hae_high([[FIVE]], 0.9, 0.95)
    same(low["advantage"], [[[0.159775, 0.105, 0.380458, 0.3865, 0.3]]])
    same(high["advantage"], [[[0.39152, 0, 0.36, 0, 0]]])
    same(high["return"], [[[0.64152, 0, 0.81, 0, 0]]])
    same(values.hae_switch_value_head([[FIVE]], 0.9)["return"], [[[0.3645, 0.405, 0.81, 0.9, 1]]])


def test_hae_undiscounted_episode__code() -> None:
    same(values.hae_low([[FIVE]])["advantage"], [[[0.25, 0.15, 0.6, 0.5, 0.3]]])
    same(values.hae_high([[FIVE]])["advantage"], [[[0.7225, 0, 0.55, 0, 0]]])
    same(values.hae_switch_value_head([[FIVE]])["return"], [[[0.45, 0.45, 1, 1, 1]]])


@pytest.mark.parametrize(
    ("bootstrap", "low", "high", "back"),
    [
        (False, [0.159775, 0.105, -0.4], [-0.231775, 0, -0.45], [0.3645, 0.405, 0]),
        (True, [0.159775, 0.105, -0.04], [0.0798725, 0, -0.045], [0.3645, 0.405, 0.405]),
    ],
)
def test_hae_truncated_episode__code(bootstrap: bool, low: list[float], high: list[float], back: list[float]) -> None:
    same(values.hae_low([[THREE]], 0.9, 0.95, bootstrap)["advantage"], [[low]])
    same(values.hae_high([[THREE]], 0.9, 0.95, bootstrap)["advantage"], [[high]])
    same(values.hae_switch_value_head([[THREE]], 0.9, bootstrap)["return"], [[back]])


def test_hae_switch_difference__paper() -> None:
    episode = {
        "switch": [1, 0, 1, 0, 0],
        "switch_prob": [1, 0.3, 0.6, 0.2, 0.1],
        "v_high": FIVE["v_high"],
        "v_low_previous": [0, 0.3, 0.32, 0.5, 0.7],
    }
    same(values.hae_switch_difference([[episode]]), [[[0, -0.015, 0.052, -0.01, 0.005]]])


def test_hae_keep_penalty__code() -> None:
    plain = [[{"reward": [0, 0, 0, 0, 0], "switch": [1, 0, 1, 0, 0]}]]
    same(values.hae_rewards(plain, -3.5), [[[0, -0.7, 0, -0.7, -0.7]]])
    same(values.hae_rewards([[FIVE]], -0.3, "fixed"), [[[0, -0.3, 0, -0.3, 0.7]]])


def test_hae_normalisation__code() -> None:
    same(values.hae_normalise([[[1, 2, 3]]], [[[1, 1, 1]]]), [[[-1.224745, 0, 1.224745]]])
    same(values.hae_normalise([[[1, 9, 2], [3]]], [[[1, 0, 1], [1]]]), [[[-1.224745, 0, 0], [1.224745]]])


def gae(reward: list[float], value: list[float], gamma: float, lam: float) -> list[float]:
    """Plain recursion, terminal at the end."""
    out, after = [0.0] * len(reward), 0.0
    for t in reversed(range(len(reward))):
        follow = value[t + 1] if t + 1 < len(reward) else 0.0
        after = reward[t] + gamma * follow - value[t] + gamma * lam * after
        out[t] = after
    return out


def test_hae_all_switch_and_all_keep_are_plain_gae__reconstructed() -> None:
    switching, keeping = {**FIVE, "switch": [1] * 5}, {**FIVE, "switch": [0] * 5}
    high = values.hae_high([[switching]], 0.9, 0.8)["advantage"]
    same(high, [[gae(FIVE["reward"], FIVE["v_high"], 0.9, 0.8)]], 1e-12)
    low = values.hae_low([[keeping]], 0.9, 0.8)["advantage"]
    same(low, [[gae(FIVE["reward"], FIVE["v_low"], 0.9, 0.8)]], 1e-12)
    one_step = [gae([FIVE["reward"][t]], [FIVE["v_low"][t]], 0.9, 0.8)[0] for t in range(5)]
    boot = [0.9 * v for v in FIVE["v_high"][1:]] + [0.0]
    same(values.hae_low([[switching]], 0.9, 0.8)["advantage"], [[[a + b for a, b in zip(one_step, boot, strict=True)]]])


# --- GiGPO ------------------------------------------------------------------------------------------------------------

TWO = [[{"reward": [0, 0, 10], "state": ["A", "B", "C"]}, {"reward": [0, 0, 0], "state": ["A", "B", "B"]}]]


def test_gigpo_step_returns__code() -> None:
    same(ref.gigpo_step_returns(TWO), [[[9.025, 9.5, 10], [0, 0, 0]]])


def test_gigpo_mean_norm__code() -> None:
    out = ref.gigpo(TWO, mode="mean_norm")
    same(out["episode"], [[[5, 5, 5], [-5, -5, -5]]])
    same(out["step"], [[[4.5125, 6.333333, 0], [-4.5125, -3.166667, -3.166667]]])
    same(out["total"], [[[9.5125, 11.333333, 5], [-9.5125, -8.166667, -8.166667]]])


def test_gigpo_mean_std_norm__code() -> None:
    out = ref.gigpo(TWO)
    same(out["episode"], [[[0.912871] * 3, [-0.912871] * 3]])
    same(out["step"], [[[0.707107, 1.154700, 0], [-0.707107, -0.577350, -0.577350]]])
    same(out["total"], [[[1.619977, 2.067571, 0.912871], [-1.619977, -1.490221, -1.490221]]])
    same(ref.gigpo(TWO, over="trajectories")["episode"], [[[0.707107] * 3, [-0.707107] * 3]])


def test_gigpo_row_weighting__code() -> None:
    short = {"reward": [0, 10], "state": ["A", "B"]}
    long = {"reward": [0] * 4, "state": ["A", "C", "D", "E"]}
    same(ref.gigpo([[short, long]], mode="mean_norm")["episode"], [[[6.6667] * 2, [-3.3333] * 4]], 5e-5)
    out = ref.gigpo([[short, long]], mode="mean_norm", over="trajectories")
    same(out["episode"], [[[5] * 2, [-5] * 4]])


def test_gigpo_singletons_and_equal_groups__reconstructed() -> None:
    lone = [[{"reward": [3], "state": ["A"]}]]
    same(ref.gigpo(lone)["total"], [[[0]]])
    same(ref.gigpo(lone, legacy_singleton=True)["episode"], [[[3 / (1 + 1e-6)]]], 1e-12)
    same(ref.gigpo(lone, legacy_singleton=True, mode="mean_norm")["total"], [[[3]]])
    equal = [[{"reward": [0.1, 0.2], "state": ["A", "B"]}] * 3]
    assert ref.gigpo(equal)["total"] == [[[0, 0]] * 3]


def test_gigpo_first_fit__reconstructed() -> None:
    # ratio = 2 M / (len + len): "abcd" against "abce" 6/8, against "abxy" 4/8; "abxe" 6/8 to "abce" but first fit looks
    # at the first member of each cluster only.
    assert ref.gigpo_clusters(["abcd", "abce", "abxy", "abxe", "abcd"], 0.75) == [[0, 1, 4], [2, 3]]
    assert ref.gigpo_clusters(["abcd", "abce", "abxy", "abxe", "abcd"]) == [[0, 4], [1], [2], [3]]


# --- HiMAC, PECO ------------------------------------------------------------------------------------------------------


def test_himac_macro_and_micro__reconstructed() -> None:
    out = ref.himac_macro([[1, 0, 0, 0.5]])
    assert out["selected"] == [0]
    same(out["advantage"], [[1.305580, -0.783348, -0.783348, 0.261116]])
    same(ref.himac_macro([[1, 0, 0, 0.5]], ddof=0)["advantage"], [[1.507553, -0.904532, -0.904532, 0.301511]])
    same(ref.himac_micro([[1, 1, 0, 1]]), [[0.499999, 0.499999, -1.499997, 0.499999]])
    assert ref.himac_macro([[0.3, 0.3]]) == {"advantage": [[0, 0]], "selected": [0]}


def test_himac_masks__reconstructed() -> None:
    assert ref.himac_tokens(1.0, [1, 1, 1, 0, 0], "macro") == [1, 1, 1, 0, 0]
    assert ref.himac_tokens(1.0, [1, 1, 1, 0, 0], "micro") == [0, 0, 0, 1, 1]
    assert ref.himac_visible_turns([0, 1, 0, 0, 0]) == [[0], [0, 1], [2], [2, 3], [2, 3, 4]]


def test_peco_shared_advantage__code() -> None:
    parts = [(1, 1, [0.0, 1.0, 0.5], 1), (0.5, 1, [1.0], 0), (0, 0, [], 0), (0, 1, [1.0, 1.0], 1)]
    keys = ("f1", "planner_format", "executor_format", "refine")
    out = ref.peco([[dict(zip(keys, row, strict=True)) for row in parts]])
    same(out["reward"], [[5, 2, -3, -0.5]])
    same(out["planner"], [[1.204454, 0.328487, -1.131457, -0.401485]])
    same(out["executor"], [[[1.204454] * 3, [0.328487], [], [-0.401485] * 2]])


# --- IGPO -------------------------------------------------------------------------------------------------------------


def test_igpo_gains__paper() -> None:
    probabilities = [(0.1, 0.2), (0.2, 0.4), (0.4, 0.4)]
    logs = [[math.log(p) for p in row] for row in probabilities]
    same(ref.igpo_gains(logs), [0.693147, 0.346574])
    same(ref.igpo_gains(logs, "prob"), [0.141421, 0.117157])


def test_igpo_pooled__paper() -> None:
    group = [[{"gain": [0.2, 0.1, 9.0], "outcome": 1}, {"gain": [-0.1, 0.2, 9.0], "outcome": 0.5}]]
    out = ref.igpo(group, eps=0.0)
    same(out["reward"], [[[0.707107, 0, 0.707107], [-1.414214, 0.707107, -0.707107]]])
    same(out["advantage"], [[[1.414214, 0.707107, 0.707107], [-1.414214, 0, -0.707107]]])
    out = ref.igpo(group, eps=0.0, ddof=0)
    same(out["reward"], [[[0.816497, 0, 1], [-1.632993, 0.816497, -1]]])
    same(out["advantage"], [[[1.816497, 1, 1], [-1.816497, -0.183503, -1]]])


def test_igpo_column_mean__code() -> None:
    one = [[1], [1], [1]]
    a = {"gain": [0.2, 0.1, 0], "outcome": 1, "mask": one}
    b = {"gain": [-0.1, 0.2, 0], "outcome": 0.5, "mask": one}
    out = ref.igpo_column_mean([[a, b]])
    same(out["return"], [[[[1.3], [1.1], [1]], [[0.6], [0.7], [0.5]]]])
    same(out["advantage"], [[[[0.35], [0.2], [0.25]], [[-0.35], [-0.2], [-0.25]]]])


# --- RLVMR ------------------------------------------------------------------------------------------------------------

RLVMR = [
    [
        {
            "tag": ["planning", "explore", "explore", "reflection"],
            "valid": [1, 1, 1, 1],
            "action": ["look", "go", "go", "take"],
            "admissible": [1, 1, 0, 1],
            "success": True,
        },
        {
            "tag": ["planning", "explore", "explore"],
            "valid": [1, 1, 0],
            "action": ["look", "go", "??"],
            "admissible": [1, 1, 1],
            "success": False,
        },
    ]
]


def test_rlvmr_levels__code() -> None:
    out = ref.rlvmr(RLVMR)
    assert out["meta"] == [[[1, 1, 0, 1], [0, 1, 0]]]
    assert out["tag"][0][1] == ["planning", "explore", "none"]
    same(out["episode"], [[[0.801768] * 4, [-1.062809, -1.062809, -1.081455]]])
    same(out["step"], [[[0.707106, 0.577349, -1.154699, 0.999999], [-0.707106, 0.577349, 0]]])
    same(out["total"], [[[1.508874, 1.379117, -0.352930, 1.801767], [-1.769915, -0.485460, -1.081455]]])
    same(
        ref.rlvmr(RLVMR, w=0.5)["total"],
        [[[1.155321, 1.090443, 0.224419, 1.301768], [-1.416362, -0.774134, -1.081455]]],
    )
    same(ref.rlvmr(RLVMR, mode="mean_norm")["episode"], [[[4.3] * 4, [-5.7, -5.7, -5.8]]], 1e-12)


def test_rlvmr_alpha_half_is_half_of_unit_weight__paper() -> None:
    whole, half = ref.rlvmr(RLVMR)["total"], ref.rlvmr(RLVMR, alpha=0.5)["total"]
    same(half, [[[x / 2 for x in row] for row in rows] for rows in whole], 1e-12)
    doubled = ref.rlvmr(RLVMR * 2, scope="batch")["step"]  # the lone reflection now has an equal twin
    assert doubled[0][0][3] == 0 and doubled[0] == doubled[1]


def test_rlvmr_reflection_at_the_first_step_counts_as_after_a_failure__code() -> None:
    episode = {"tag": ["reflection", "reflection"], "valid": [1, 1], "action": ["a", "b"], "admissible": [1, 1]}
    assert ref.rlvmr_meta_rewards([[{**episode, "success": False}]])["meta"] == [[[1, 0]]]
    assert ref.rlvmr_tag(["reflection", "monitor", "explore"], True) == "explore"
    assert ref.rlvmr_tag(["monitor"], True) == ref.rlvmr_tag(["planning"], False) == "none"


# --- SPA, ArCHer, VSC-RL ----------------------------------------------------------------------------------------------

SPA = {"contribution": [0.1, 0.3, -0.05, 0.5], "executable": [1, 0, 1, 1], "value": [0.5, 0.6, 0.7, 0.8], "outcome": 1}


def test_spa_attribution_and_advantages__paper() -> None:
    assert values.spa_estimator_loss([SPA["contribution"]], [1]) == pytest.approx(0.0225, abs=1e-12)
    same(values.spa_rewards([[SPA]]), [[[0.6, 0.3, 0.45, 1.0]]], 1e-12)
    same(values.spa_turn_advantages([[SPA]]), [[[1.74785, 1.103, 0.74, 0.2]]], 1e-12)
    same(values.spa_even_rewards([[SPA]]), [[[0.25] * 4]])
    tokens = {**SPA, "contribution": [0.1, 0.3], "executable": [1, 1], "token_kl": [[0] * 3, [0] * 3]}
    same(values.spa_token_rewards([[tokens]]), [[[[0, 0, 0.6], [0, 0, 0.8]]]], 1e-12)


def test_spa_estimator_gradient__paper() -> None:
    for t in range(4):
        up, down = list(SPA["contribution"]), list(SPA["contribution"])
        up[t] += 1e-4
        down[t] -= 1e-4
        slope = (values.spa_estimator_loss([up], [1]) - values.spa_estimator_loss([down], [1])) / 2e-4
        assert slope == pytest.approx(-0.3, abs=1e-9)


def test_spa_released_variants__code() -> None:
    assert values.spa_released_multiplier([1, 0.5, 1, 1]) == [3, 1, 1, 0]
    same(values.spa_leave_one_out([[1, 0, 0.5]]), [[0.75, -0.75, 0]])


def test_archer_targets_and_advantage__code() -> None:
    episode = {"reward": [-1, 0], "done": [0, 1], "next_v1": [-2, 5], "next_v2": [-3, 5]}
    same(critics.archer_q_targets([[episode]]), {"q1": [[[-2.9, 0]]], "q2": [[[-3.85, 0]]]}, 1e-12)
    same(critics.archer_mc_returns([[{"reward": [-1, -1, 0]}]]), [[[-1.95, -1, 0]]], 1e-12)
    turn = {"q1": [-1.2], "q2": [-1.0], "v1": [-1.5], "v2": [-1.8], "token_value": [[0.1, 0.2, 0.3]]}
    same(critics.archer_advantages([[turn]]), [[[0.6]]], 1e-12)
    same(critics.archer_token_advantages([[turn]]), [[[[0.5, 0.4, 0.3]]]], 1e-12)
    assert critics.archer_actor_loss([0.6], [[-1, -0.5, -1.5]]) == pytest.approx(1.8)
    both = critics.archer_baseline_losses([0.6], [[0.1, 0.2, 0.3]], [[-1, -0.5, -1.5]])
    same(both, {"policy": 1.15, "value": 0.166667})
    same(critics.archer_polyak([0], [1]), [0.1])


def test_archer_offline__code() -> None:
    head = critics.archer_offline_value_loss([1.0, -0.5], [0.2, 0.1])
    assert head == pytest.approx(0.306, abs=1e-12)
    same(critics.archer_awr([0.6], [-3]), {"weight": [1.822119], "loss": 5.466356})


def test_vsc_segments_and_advantage__code() -> None:
    assert critics.vsc_segments([0, 0, 1, 0, 1, 0]) == [[0, 1, 2], [3, 4], [5]]
    episode = {"reward": [0, 0, 1, 0, 1, 0]}
    assert critics.vsc_mc_returns([[episode]]) == [[[0.25, 0.5, 1, 0.5, 1, 0]]]
    assert critics.vsc_segment_rewards([[episode]]) == [[[1, 1, 0]]]
    finished = {"reward": [0, 0, 1], "v1": [0.3] * 3, "v2": [0.5] * 3, "nv1": [0.2] * 3, "nv2": [0.4] * 3}
    raw = critics.vsc_advantages([[finished]], clip=False, binary=False)
    assert raw[0][0][0] == pytest.approx(0.10, abs=1e-12)
    failed = {"reward": [0, 0], "v1": [0.3, 0.3], "v2": [0.3, 0.3], "nv1": [0.36, 0.34], "nv2": [0.36, 0.34]}
    same(critics.vsc_advantages([[failed]], clip=False, binary=False), [[[0.01, -0.01]]], 1e-12)
    assert critics.vsc_advantages([[failed]]) == [[[1, 0]]]


def test_vsc_filter__code() -> None:
    baseline = [0.9, 0.2, 0.5, 0.1, 0.6, 0.3, 0.2, 0.05, 0.4, 0.7]
    out = critics.vsc_filter([1, 1, 0, 0, 1, 0, 0, 1, 0, 0], baseline)
    same(out["score"], [0.1, 0.8, -0.5, -0.1, 0.4, -0.3, -0.2, 0.95, -0.4, -0.7], 1e-12)
    assert out["threshold"] == pytest.approx(0.815, abs=1e-12) and out["kept"] == [7]
    assert critics.vsc_bc_filter([0, 0, 0]) == [0, 1, 2]  # a tie keeps everything


# --- Hi-Agent, ChatShopBuddy ------------------------------------------------------------------------------------------


def test_hi_agent_foresight__paper() -> None:
    rows = [[[1, 1, 1], [1, 0, 1], [1, 1, 0], [0, 0, 0]]]
    same(ref.hi_agent_foresight(rows)["reward"], [[1.0, 0.7, 0.7, 0]], 1e-12)
    same(ref.hi_agent_foresight(rows)["advantage"], [[0.942807, 0.235702, 0.235702, -1.414210]])
    same(ref.hi_agent_foresight(rows, ddof=0)["advantage"], [[1.088659, 0.272165, 0.272165, -1.632989]])


def test_hi_agent_low_level__paper() -> None:
    rewards = [[1, 0, 0, 1], [1, 1, 0, 1]]
    for ddof, right, wrong in ((1, 0.724567, -1.207612), (0, 0.774595, -1.290992)):
        same(ref.hi_agent_low(rewards, ddof=ddof), [[right if r else wrong for r in row] for row in rewards])


def test_hi_agent_match__paper() -> None:
    assert ref.hi_agent_match("click", "click", [0.5, 0.3], [0.501, 0.301]) == 1
    assert ref.hi_agent_match("click", "click", [0.5, 0.3], [0.5015, 0.3015]) == 0
    assert ref.hi_agent_match("click", "swipe", [0.5, 0.3], [0.5, 0.3]) == 0


SHOP = [(1, 0.8, 0.6), (1, 0.4, 0.9), (0, 0.9, 0.9), (1, 0.5, 0)]


def test_chatshopbuddy_gate__reconstructed() -> None:
    rewards = [ref.chatshopbuddy_reward(*row) for row in SHOP]
    same(rewards, [1.52, 1.2, 0, 1.25], 1e-12)
    same(ref.normalise(rewards), [0.779828, 0.306757, -1.467259, 0.380674])
    ladders = [ref.gated_reward([(c, 1, 1), (s, 0.5, 0.5), (e, 0, 0.2)]) for c, s, e in SHOP]
    same([ladder["reward"] for ladder in ladders], rewards, 1e-12)
    assert [ladder["evaluated"] for ladder in ladders] == [3, 2, 1, 3]


def test_dcpo_selection_and_advantages__reconstructed() -> None:
    rewards, lengths = [1.5, 1.5, 1.2, 0, 0, 1.0, 0, 1.5], [300, 120, 200, 90, 400, 250, 150, 500]
    assert ref.dcpo_select(rewards, lengths, 4) == {"positives": [1, 0], "negatives": [4, 6]}
    kept = ref.dcpo([rewards], [lengths])
    same(kept, {"kept": [[0, 1, 4, 6]], "advantage": [[0.866024, 0.866024, 0, 0, -0.866024, 0, -0.866024, 0]]})
    whole = ref.dcpo([rewards], [lengths], statistics="all")["advantage"]
    same(whole, [[0.926549, 0.926549, 0, 0, -1.171298, 0, -1.171298, 0]])
    assert ref.dcpo([[1, 1, 1, 1]], [[5, 5, 5, 5]]) == {"kept": [[]], "advantage": [[0, 0, 0, 0]]}


def test_pass_all_counts_subsets__reconstructed() -> None:
    assert ref.average_at([4, 3, 1], 4) == pytest.approx(0.666667, abs=SIX)
    assert ref.pass_all([4, 3, 1], 4, 4) == pytest.approx(0.333333, abs=SIX)
    for right in range(5):
        subsets = list(itertools.combinations([1] * right + [0] * (4 - right), 2))
        expected = F(sum(all(s) for s in subsets), len(subsets))
        assert ref.pass_all([right], 4, 2) == pytest.approx(float(expected), abs=1e-12)
