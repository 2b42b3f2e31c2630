"""The references of the shaped rules against published or longhand numbers, and against their own cases."""

import itertools
import math
import statistics
from types import ModuleType
from typing import Any

import pytest
from reference import credit_shaped as adv
from reference import credit_shaped_answers as text
from reference import credit_shaped_rewards as rew

DIGITS = 6e-7  # the numbers below are printed with six digits


def same(got: Any, expected: Any, tol: float = DIGITS) -> None:
    """Nested comparison: same shape, numbers within `tol`, everything else equal."""
    if isinstance(expected, dict):
        assert set(got) == set(expected)
        for key in expected:
            same(got[key], expected[key], tol)
    elif isinstance(expected, list):
        assert len(got) == len(expected), (got, expected)
        for a, b in zip(got, expected, strict=True):
            same(a, b, tol)
    elif isinstance(expected, int | float) and not isinstance(expected, bool):
        assert not isinstance(got, bool)
        assert got == pytest.approx(expected, abs=tol, rel=tol), (got, expected)
    else:
        assert got == expected


ALL = [
    (module, name, number)
    for module in (adv, rew, text)
    for name, cases in module.CASES.items()
    for number in range(len(cases))
]


@pytest.mark.parametrize(
    ("module", "name", "number"), ALL, ids=[f"{m.__name__.split('.')[-1]}-{n}-{k}" for m, n, k in ALL]
)
def test_cases(module: ModuleType, name: str, number: int) -> None:
    example = module.CASES[name][number]
    same(getattr(module, name)(**example["inputs"]), example["expected"], 1.5e-10)


# --- HRPO -------------------------------------------------------------------------------------------------------------

BUILT = {"kind": ["add", "add", "exit"], "correct": True}
FAILED = {"kind": ["add", "add", "add", "exit"], "correct": False}


def construction(shape: dict[str, Any], outcome: float) -> dict[str, Any]:
    """An episode without flaws and its step rewards."""
    none = [False for _ in shape["kind"]]
    episode = {**shape, "duplicate": none, "isolated": none, "just_added": none, "outcome": outcome}
    return {**episode, "reward": rew.hrpo_step_rewards(episode, t_ex=1)}


def test_hrpo_group__reconstructed() -> None:
    same(adv.grpo([[1, 0, 1, 0]], 0, 0.0), [[1, -1, 1, -1]])
    same(adv.grpo([[1, 0, 1, 0]], 1, 0.0), [[0.866025, -0.866025, 0.866025, -0.866025]])
    same(adv.grpo([[0.1, 0.1, 0.1]], 0, 0.0), [[0, 0, 0]])


def test_hrpo_sum_and_gate__reconstructed() -> None:
    group = [construction(BUILT, 1.0), construction(FAILED, 0.0)]
    same([e["reward"] for e in group], [[0, -0.1, 0.1], [0, -0.1, -0.1, 0]])
    same(adv.hrpo([group]), [[[1.0, 1.0, 1.1], [-1.2, -1.2, -1.1, -1.0]]])
    same(adv.hrpo([group], combine="gate"), [[[1.0, 1.0, 1.1], [-1.0] * 4]])


def test_hrpo_ratios__reconstructed() -> None:
    same(adv.hrpo_joint_log_prob(0.5, [0.8, 0.3], [1, 0]), -1.272966)
    for a, joint, split in ((1.0, 1.17, 2.1), (-1.0, -1.17, -2.2)):
        same(adv.hrpo_surrogate(1.3, 0.9, a, a, 0.2), joint)
        same(adv.hrpo_surrogate(1.3, 0.9, a, a, 0.2, "split"), split)


# --- HBPO -------------------------------------------------------------------------------------------------------------


def test_hbpo_rewards__paper() -> None:
    same([rew.hbpo_ceiling(b) for b in (512, 1024, 2048, 2560)], [3.923141, 3.695518, 2.828427, 2.222281])
    rollouts = [(400, 512, True), (1024, 512, True), (400, 2560, True), (3000, 2560, False)]
    same([rew.hbpo_reward(*r) for r in rollouts], [3.923141, 3.570518, 2.222281, 0])
    same([rew.hbpo_reward(*r, form="code") for r in rollouts], [3.923141, 3.570518, 2.222281, 0])


def test_hbpo_minimum_punishes_short_answers__code() -> None:
    same(rew.hbpo_reward(0, 512, True, form="code"), 3.875)
    same(rew.hbpo_reward(0, 512, True), 3.923141)


def test_hbpo_advantage__paper() -> None:
    rewards = [[rew.hbpo_ceiling(512), rew.hbpo_reward(1024, 512, True), rew.hbpo_ceiling(2560), 0.0]]
    budgets = [[512, 512, 2560, 2560]]
    same(adv.hbpo_intra(rewards, budgets), [[-0.176311, -0.176311, -1.111140, -1.111140]])
    same(adv.hbpo_inter(rewards), [[0.840604, 0.642220, -0.116291, -1.366533]])
    same(adv.hbpo(rewards, budgets), [[0.664292, 0.465908, -1.227431, -2.477673]])


def test_hbpo_doubled_intra__code() -> None:
    rewards = [[rew.hbpo_ceiling(512), rew.hbpo_reward(1024, 512, True), rew.hbpo_ceiling(2560), 0.0]]
    got = adv.hbpo(rewards, [[512, 512, 2560, 2560]], intra_coef=2.0)
    same(got, [[0.487981, 0.289597, -2.338571, -3.588814]])


# --- HICRA ------------------------------------------------------------------------------------------------------------


def test_hicra_amplification__paper() -> None:
    same(adv.hicra([[0.8, -0.5]], [[[True, False], [True, False]]]), [[[0.96, 0.8], [-0.4, -0.5]]])


def test_hicra_semantic_entropy__paper() -> None:
    same(adv.semantic_entropy([4, 2, 1, 1]), 1.213008)
    same(adv.semantic_entropy([4, 2, 1, 1]) / math.log(2), 1.75)


def test_hicra_entropy_mask__code() -> None:
    mask = adv.hicra_entropy_mask([0.1, 0.9, 0.4, 0.2, 1.5, 0.3, 0.05, 0.6, 0.7, 0.0])
    assert [i for i, chosen in enumerate(mask) if chosen] == [1, 4]


def test_hicra_code_equals_paper_form_for_planning_tokens__code() -> None:
    masks = [[[True, False, True], [False, True]]]
    flat = [[[1.0, 1.0, 1.0], [1.0, 1.0]]]  # no token is strictly above the threshold
    same(adv.hicra_code([[0.8, -0.5]], flat, masks), adv.hicra([[0.8, -0.5]], masks), 1e-12)


def test_hicra_matching__paper() -> None:
    assert adv.match_grams([7, 1, 2, 3, 4, 9], [[1, 2, 3], [3, 4]]) == [False, True, True, True, True, False]


def test_hicra_mining_with_clusters__reconstructed() -> None:
    docs = [["we", "try", "again", "x"], ["we", "test", "again", "y"], ["so", "z", "q", "w"]]
    meaning = {("we", "try", "again"): "A", ("we", "test", "again"): "A"}
    got = adv.mine_grams(docs, lambda gram: meaning.get(gram, " ".join(gram)), sizes=(3,), top=0.2)
    assert got == [["we", "test", "again"], ["we", "try", "again"]]


# --- D3S --------------------------------------------------------------------------------------------------------------

THREE_GROUPS = [[1, 0, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]


def test_d3s_samples__paper() -> None:
    advantages = adv.grpo(THREE_GROUPS, 0, 0.0)
    same(advantages[0] + advantages[1], [1.732051, *[-0.57735] * 3, *[0.57735] * 3, -1.732051], 1e-6)
    assert sum(map(sum, adv.d3s_samples(advantages, 1))) == 3  # one a query
    kept = adv.d3s_samples(advantages, 0, n=4)
    flat = [a for row in advantages for a in row]
    chosen = [a for a, flag in zip(flat, [flag for row in kept for flag in row], strict=True) if flag]
    same(sorted(chosen), [-1.732051, -0.57735, 0.57735, 1.732051], 1e-6)
    same(statistics.pvariance(chosen), 1.666667)
    brute = max(statistics.pvariance([flat[i] for i in s]) for s in itertools.combinations(range(12), 4))
    same(brute, 1.666667)
    ordered = sorted(flat)
    splits = [statistics.pvariance(ordered[: 4 - top] + ordered[12 - top :]) for top in range(5)]
    same(splits, [0.25, 1.583333, 1.666667, 1.583333, 0.25])


@pytest.mark.parametrize("keep", range(1, 8))
def test_d3s_split_search_is_exact__paper(keep: int) -> None:
    values = [0.3, -1.1, 2.0, 0.3, -0.4, 0.0, 1.2, -1.1]
    got = statistics.pvariance([values[i] for i in adv.select_extremes(values, keep)] or [0.0])
    brute = max(statistics.pvariance([values[i] for i in s]) for s in itertools.combinations(range(8), keep))
    assert got == pytest.approx(brute, abs=1e-12)


def test_d3s_tokens__reconstructed() -> None:
    # Tokens 0, 1, 5 belong to the first answer (A = 1.5), tokens 2, 3, 4 to the second (A = -0.5).
    advantages, entropies = [[1.5, -0.5]], [[[0.1, 0.8, 0.4], [2, 0.3, 0]]]
    assert adv.d3s_tokens(advantages, entropies, 0.5) == [[[False, True, True], [True, False, False]]]
    assert adv.d3s_tokens(advantages, entropies, 0.5, "answer") == [[[False, True, True], [True, True, False]]]


def test_d3s_schedule__paper() -> None:
    same([adv.d3s_schedule(p, [4, 0.2], [8, 1]) for p in (0, 0.5, 1)], [[4, 0.2], [6, 0.6], [8, 1]])


# --- ARES -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "correct", "bucket", "expected"),
    [
        (14, 1, "easy", -0.214286),
        (11, 1, "easy", 0.0),
        (10, 0, "easy", 0.15),
        (4, 1, "medium", -0.181818),
        (20, 0, "medium", 0.381030),
        (10, 1, "hard", 0.457525),
        (2, 1, "hard", -0.1),
        (20, 0, "hard", 0.538330),
    ],
)
def test_ares_entropy_reward__code(count: int, correct: int, bucket: str, expected: float) -> None:
    same(rew.ares_entropy_reward(count, 10, correct, bucket), expected)


def test_ares_entropies__code() -> None:
    same(rew.tail_entropy([0.6, 0.3]), 0.897946)
    same(rew.ares_windows([0.2, 2, 1, 1, 1, 1, 0.1], 4)[1], 1.0)


def test_ares_wrong_answers_are_paid__code() -> None:
    lows = {"easy": (0.15, 0.30), "medium": (0.20, 0.40), "hard": (0.30, 0.60)}
    for bucket, (low, high) in lows.items():
        paid = [rew.ares_entropy_reward(n, 10, 0, bucket) for n in range(200)]
        assert min(paid) == pytest.approx(low) and max(paid) == pytest.approx(high, abs=1e-6)
        right = [1 + rew.ares_entropy_reward(n, 10, 1, bucket) for n in range(200)]
        assert min(right) >= (0.4 if bucket == "hard" else 0.5)


def test_ares_accuracy_on_the_bucket_edge__code() -> None:
    assert [rew.ares_bucket([1] * k + [0] * (9 - k)) for k in (6, 5, 3, 2)] == ["easy", "medium", "medium", "hard"]


# --- THOR -------------------------------------------------------------------------------------------------------------


def test_thor_step_group__code() -> None:
    steps = [[{"reward": r, "fence": True} for r in (1, 0, 1, 1)]]
    got = adv.thor([], steps)["step"]["advantage"]
    same(got, [[0.499999, -1.499997, 0.499999, 0.499999]])


def test_thor_positive_nll__code() -> None:
    got = adv.thor_positive_nll([-0.5, -1, -0.2, -2], [0.5, 0.5, -1.5, 0.5], [1, 1, 1, 0])
    same(got, {"l_pos": 0.75, "contribution": 0.0075})


def test_thor_masks_and_outputs__code() -> None:
    assert "".join(map(str, rew.thor_mask(["text"] * 10, 6))) == "0000001111"
    assert len(rew.thor_trim("x" * 300)) == 128 + 3 + 128
    assert [len(rew.thor_trim("x" * n)) for n in (255, 256)] == [255, 259]


def test_thor_all_passes_or_mean__code() -> None:
    assert rew.thor_execution_pass([1, 0]) == 0 and rew.thor_execution_pass([1, 0], "mean") == 0.5
    assert rew.thor_restarts([[1, 0], [1, 1], []]) == [0] and rew.thor_restarts([[1, 0]], "mean") == []


# --- DE-GRPO ----------------------------------------------------------------------------------------------------------

FAVCHAT = ([[1, 0.6, 0.4, 0]], [[-1, -1.5, -2.5, -4]])


@pytest.mark.parametrize(
    ("before", "now", "life", "expected"),
    [
        (0.0, 0.135615, 0, [0, 0, 0, 0]),
        (None, 0.135615, 0, [0, 0, 0, 0]),
        (0.3, 0.375615, 1, [0.489998, 0.098, -0.098, -0.489998]),
        (1.0, 0.935615, 0.5, [0.256150, 0.051230, -0.051230, -0.256150]),
    ],
)
def test_degrpo_literal__code(before: float | None, now: float, life: float, expected: list[float]) -> None:
    got = adv.degrpo(*FAVCHAT, [before], [0.1])
    same([got["margin"], got["utility"]], [[0.533333], [0.678077]])
    same([got["smoothed"], got["lifecycle"]], [[now], [life]])
    same(got["advantage"], [expected])


def test_degrpo_statistics__code() -> None:
    same([adv.geometric_gap(FAVCHAT[0][0]), adv.geometric_gap(FAVCHAT[1][0])], [0.475236, 1.426820])
    same(adv.grpo(FAVCHAT[0], 1, 1e-4), [[1.200673, 0.240135, -0.240135, -1.200673]])
    same([math.tanh(0.533333 - 0.1), math.tanh((0.533333 - 0.1) / 2)], [0.408103, 0.213339])
    binary = adv.degrpo([[1, 1, 0, 0]], [[-1, -2, -3, -4]], [0.5], [0.0])
    same(binary["margin"], [0.666667])
    same(adv.geometric_gap([1, 1, 0, 0]), 0.01)
    same(adv.geometric_gap([1, 1, 1, 1]), 1e-6, 1e-12)


def test_degrpo_gate_flips_signs_unless_clamped__code() -> None:
    flipped = adv.degrpo(*FAVCHAT, [0.3], [2.0])["advantage"][0]
    assert flipped[0] < 0 < flipped[3]
    same(adv.degrpo(*FAVCHAT, [0.3], [2.0], clamp=True)["advantage"], [[0, 0, 0, 0]])


# --- DeepTravel -------------------------------------------------------------------------------------------------------

TRIPS = [
    {"trajectory_ok": 1, "turn_ok": [1, 1, 1]},
    {"trajectory_ok": 0, "turn_ok": [1, 1]},
    {"trajectory_ok": 1, "turn_ok": [1, 0, 1]},
    {"trajectory_ok": 1, "turn_ok": [1, 1]},
]


def test_deeptravel_gate__reconstructed() -> None:
    same([rew.deeptravel_reward(**trip) for trip in TRIPS], [1, 0, 0, 1])
    signs = [0.866024, -0.866024, -0.866024, 0.866024]
    expected = [[a] * len(trip["turn_ok"]) for a, trip in zip(signs, TRIPS, strict=True)]
    same(rew.deeptravel([TRIPS]), [expected], 1e-6)


def test_deeptravel_judge_calls__reconstructed() -> None:
    assert sum(rew.deeptravel_judge_calls(**trip) for trip in TRIPS) == 8
    assert sum(rew.deeptravel_judge_calls(**trip, early_exit=True) for trip in TRIPS) == 7


def test_deeptravel_one_success_in_eight__reconstructed() -> None:
    same(adv.grpo([[1, 0, 0, 0, 0, 0, 0, 0]]), [[2.474867, *[-0.353552] * 7]], 1e-6)


def test_deeptravel_failure_buffer__reconstructed() -> None:
    assert rew.deeptravel_buffer([], [("q1", [0] * 4), ("q2", [1, 0, 0, 0])]) == [("q1", 0)]


# --- Shop-R1 ----------------------------------------------------------------------------------------------------------

ROWS = [[0.7, 0.1, 0.1, 0.1], [0.25] * 4]


def test_shop_r1_self_certainty__paper() -> None:
    same(text.self_certainty(ROWS), 0.0557308)
    same(text.self_certainty(ROWS, "mean"), 0.2229232)


def test_shop_r1_actions__paper() -> None:
    def answer(action: str) -> str:
        return f'{{"rationale": "r", "action": {action}}}'

    target = {"type": "click", "name": "add to cart button"}
    same(text.rouge_l("add to cart", "add to cart button"), 0.857143)
    same(text.rouge_l("cart", "add to cart button"), 0.4)
    same(text.shop_r1_reward(answer('{"type": "click", "name": "add to cart"}'), target), 858.142857)
    same(text.shop_r1_reward(answer('{"type": "click", "name": "cart"}'), target), 1.0)
    same(text.shop_r1_reward(answer('{"type": "terminate"}'), {"type": "terminate"}), 0.8)
    same(text.shop_r1_reward(answer('{"type": "terminate"}'), target), 0.5)
    same(text.shop_r1_reward("not json", target), 0)


def test_shop_r1_threshold_is_strict__paper() -> None:
    target = {"type": "click", "name": "a b c d"}
    same(text.rouge_l("a b c x", "a b c d"), 0.75)
    same(text.shop_r1_action({"type": "click", "name": "a b c x"}, target), 0.5)


# --- HierSearch -------------------------------------------------------------------------------------------------------


def test_hiersearch_rewards__code() -> None:
    same(text.token_f1("the red cat", "red cat sat"), 0.8)
    wrong = text.hiersearch_reward(0.0, ["x", "y"], ["x", "y", "z"])
    same(wrong, 0.0666667)
    expected = [1.780455, -0.348350, -0.541878, -0.348350, -0.541878]
    same(adv.grpo([[0.8, wrong, 0, wrong, 0]]), [expected], 1e-6)


def test_hiersearch_penalties__code() -> None:
    table = {"LLLW": -0.2, "LLLLLW": -0.1, "LLLLLLW": -0.045, "LLLLLLLLW": -0.01, "LWL": -1.0, "LLL": 0.0}
    same({calls: text.hiersearch_penalty(list(calls)) for calls in table}, table, 1e-12)
    got = text.hiersearch_reward(0.15, ["x"], ["x", "y"], penalty=text.hiersearch_penalty(list("LLLW")))
    same(got, 0.05)  # -0.05 is not positive: the tool bonus is paid


def test_hiersearch_refiner_counts__code() -> None:
    same([text.min_max([0.2, 0.8, 0.5]), text.min_max([0.4, 0.4])], [[0, 1, 0.5], [0.4, 0.4]])
    assert [text.keep_count(n, 0.3) for n in (5, 7, 10, 1)] == [1, 2, 3, 1]


# --- WorldRFT ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ddof", "factor"), [(0, 1.0), (1, 0.8660254)])
def test_worldrft_advantage__paper(ddof: int, factor: float) -> None:
    rewards = [[0, 0, 0], [0, -1, 0], [0, -1, -1], [0, 0, -1]]
    expected = [[2, 2, 1], [0, 0, 1], [-2, -2, -1], [0, 0, -1]]
    got = adv.worldrft([[{"reward": row} for row in rewards]], ddof)
    same(got, [[[factor * a for a in row] for row in expected]])


def test_worldrft_terms__paper() -> None:
    same(rew.worldrft_reference_nll([1, 2], [0.5, 0.2], [1.2, 1.9]), -0.25970803, 1e-8)
    same(rew.laplace_nll([3], [2.5], [0.4]), 1.02685645, 1e-8)
    same(rew.pdm_score(1, 1, 0.817, 0.94, 1), 0.89875)
