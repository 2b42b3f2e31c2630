"""The references of policy losses against printed oracle numbers, finite differences and hand-derived cases.

A name ends in where its number comes from: the paper's formula, published code, or a derivation of our own.
"""

import math
from collections.abc import Callable
from typing import Any

import pytest
from reference import losses_policy as ref
from reference.checking import close

RATIO = [[1.0, 1.5, 0.5], [1.5, 0.5]]
LOGP = [[math.log(r) - 1.0 for r in row] for row in RATIO]
OLD = [[-1.0] * len(row) for row in RATIO]
ADVANTAGE = [[1.0, 1.0, 1.0], [-1.0, -1.0]]
MASK = [[1, 1, 1], [1, 1]]


@pytest.mark.parametrize("rule", sorted(ref.CASES))
def test_cases__reconstructed(rule: str) -> None:
    for case in ref.CASES[rule]:
        close(getattr(ref, rule)(**case["inputs"]), case["expected"])


def test_every_rule_has_a_case__reconstructed() -> None:
    public = {n for n, f in vars(ref).items() if callable(f) and getattr(f, "__module__", "") == ref.__name__}
    assert {name for name in public if not name.startswith("_")} == set(ref.CASES)


# --- surrogates -------------------------------------------------------------------------------------------------------


def test_ppo_clip__paper() -> None:
    close(ref.ppo_clip_loss(LOGP, OLD, ADVANTAGE)["loss"], [[-1, -1.2, -0.5], [1.5, 0.8]])
    close(ref.ppo_clip_loss(LOGP, OLD, ADVANTAGE, eps_high=0.28)["loss"], [[-1, -1.28, -0.5], [1.5, 0.8]])


def test_dual_clip_and_delta__code() -> None:
    one: dict[str, Any] = {"logp": [[math.log(5.0)]], "old_logp": [[0.0]], "advantage": [[-1.0]]}
    for extra, want in (({}, 5.0), ({"dual_clip": 3.0}, 3.0), ({"delta": 4.0}, 4.0)):
        close(ref.ppo_clip_loss(**one, **extra)["loss"], [[want]])


def test_gspo_ratios__paper() -> None:
    assert ref.sequence_ratio(LOGP, OLD, MASK) == pytest.approx([0.90856, 0.866025], abs=5e-6)


def test_gspo_forms_agree__paper() -> None:
    token = ref.gspo_loss(LOGP, OLD, ADVANTAGE, MASK)
    whole = ref.gspo_sequence_loss(LOGP, OLD, [1.0, -1.0], MASK)
    mean = sum(x for x in whole["loss"] if isinstance(x, float)) / 2
    assert ref.aggregate(token["loss"], MASK, "seq-mean-token-mean") == pytest.approx(mean)
    close([[g / len(row) for g in row] for row in token["grad"]], whole["grad"])


def test_one_sided_cispo_at_ratio_one_is_reinforce__paper() -> None:
    close(ref.cispo_loss(OLD, OLD, ADVANTAGE), ref.reinforce_loss(OLD, ADVANTAGE))


def test_sapo_at_ratio_one_has_the_policy_gradient__paper() -> None:
    close(ref.sapo_loss(OLD, OLD, ADVANTAGE)["grad"], [[-a for a in row] for row in ADVANTAGE])


def slopes(rule: Callable[..., Any], **inputs: Any) -> list[list[float]]:
    """Central differences of each token's loss in its own logp."""
    h, out = 1e-6, []
    for i, row in enumerate(inputs["logp"]):
        out.append([])
        for t in range(len(row)):
            ends = []
            for sign in (1, -1):
                moved = [list(r) for r in inputs["logp"]]
                moved[i][t] += sign * h
                ends.append(rule(**(inputs | {"logp": moved}))["loss"][i][t])
            out[-1].append((ends[0] - ends[1]) / (2 * h))
    return out


@pytest.mark.parametrize("rule", ["ppo_clip_loss", "sapo_loss", "kl_estimate", "gspo_sequence_loss"])
def test_gradients_are_finite_differences__reconstructed(rule: str) -> None:
    function = getattr(ref, rule)
    for case in ref.CASES[rule]:
        inputs = case["inputs"]
        if inputs.get("kind", "").endswith("+"):
            continue
        if rule == "gspo_sequence_loss":
            logp = inputs["logp"]

            def spread(index: int = 0, width: int = 0, inputs: Any = inputs, **moved: Any) -> dict[str, Any]:
                return {"loss": [[x] * 3 for x in ref.gspo_sequence_loss(**(inputs | moved))["loss"]]}

            close(slopes(spread, logp=logp), function(**inputs)["grad"], 1e-7)
        else:
            close(slopes(function, **inputs), function(**inputs)["grad"], 1e-7)


# --- aggregation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("eps_high", "token_mean", "seq_mean", "seq_sum", "norm"),
    [(0.2, -0.08, 0.125, -0.2, -0.05), (0.28, -0.096, 0.111667, -0.24, -0.06)],
)
def test_five_losses_of_one_matrix__code(
    eps_high: float, token_mean: float, seq_mean: float, seq_sum: float, norm: float
) -> None:
    loss = [[*row, 7.0] for row in ref.ppo_clip_loss(LOGP, OLD, ADVANTAGE, eps_high=eps_high)["loss"]]
    mask = [[*row, 0] for row in MASK]
    assert ref.aggregate(loss, mask) == pytest.approx(token_mean)
    assert ref.aggregate(loss, mask, "seq-mean-token-mean") == pytest.approx(seq_mean, abs=5e-7)
    assert ref.aggregate(loss, mask, "seq-mean-token-sum") == pytest.approx(seq_sum)
    assert ref.aggregate(loss, mask, "seq-mean-token-sum-norm") == pytest.approx(norm)


def test_micro_batches_add_up__code() -> None:
    loss, mask = [[1.0, 2.0, 3.0], [4.0], [5.0, 6.0]], [[1, 1, 0], [1], [1, 1]]
    for mode, counts in (("token-mean", {"tokens": 5}), ("seq-mean-token-mean", {"sequences": 3})):
        parts = ref.aggregate(loss[:1], mask[:1], mode, **counts) + ref.aggregate(loss[1:], mask[1:], mode, **counts)
        assert parts == pytest.approx(ref.aggregate(loss, mask, mode))


# --- KL and entropy ---------------------------------------------------------------------------------------------------


def test_kl_estimates_of_one_token__paper() -> None:
    for kind, want in (("k1", 0.693147), ("k2", 0.240227), ("k3", 0.193147)):
        close(ref.kl_estimate([[math.log(0.5)]], [[math.log(0.25)]], kind)["loss"], [[want]], 5e-7)


def test_kl_of_two_outcomes__paper() -> None:
    logits, other = [0.0, 0.0], [0.0, math.log(3.0)]
    true = ref.kl_true(logits, other)
    close(true, {"value": 0.143841, "gradient": [0.274653, -0.274653]}, 5e-7)
    for kind, value, slope in (
        ("k1", 0.143841, 0.0),
        ("k2", 0.161214, 0.274653),
        ("k3", 0.143841, 0.25),
        ("r_k3", 0.143841, 0.274653),
        ("k3+", 0.143841, 0.274653),
    ):
        close(ref.kl_expectation(logits, other, kind), {"value": value, "gradient": [slope, -slope]}, 5e-7)


def test_kl_gradients_of_three_outcomes__reconstructed() -> None:
    """k2 and r k3 tend to the reverse KL's gradient, k3 to the forward KL's, p - q."""
    logits, other, h = [0.3, -0.2, 1.0], [0.0, 0.5, -1.0], 1e-6
    found = []
    for j in range(3):
        up, down = ([z + s * h * (k == j) for k, z in enumerate(logits)] for s in (1, -1))
        a, b = ref.kl_true(up, other)["value"], ref.kl_true(down, other)["value"]
        assert isinstance(a, float) and isinstance(b, float)
        found.append((a - b) / (2 * h))
    close(ref.kl_true(logits, other)["gradient"], found, 1e-8)
    close(ref.kl_expectation(logits, other, "k2")["gradient"], found, 1e-8)
    close(ref.kl_expectation(logits, other, "r_k3")["gradient"], found, 1e-8)
    difference = [a - b for a, b in zip(ref.softmax(logits), ref.softmax(other), strict=True)]
    close(ref.kl_expectation(logits, other, "k3")["gradient"], difference, 1e-12)


def test_entropy__paper() -> None:
    out = ref.entropy([2.0, 1.0, 0.0])
    close(ref.softmax([2.0, 1.0, 0.0]), [0.665241, 0.244728, 0.090031], 5e-7)
    assert out["value"] == pytest.approx(0.832396, abs=5e-7)
    assert isinstance(out["logp"], list)
    assert out["logp"][0] == pytest.approx(-0.407606, abs=5e-7)


# --- sampler, lengths -------------------------------------------------------------------------------------------------


def test_importance_weights__code() -> None:
    d, zero, mask = [[0.1, -0.2, 0.3], [1.0, 0.5, 0.2]], [[0.0] * 3] * 2, [[1] * 3] * 2
    close(ref.sequence_importance(d, zero, mask, "truncate", 99.0), [1.221403, 5.473947], 5e-7)
    close(ref.sequence_importance(d, zero, mask), [1.221403, 0.0], 5e-7)
    want = [[1.105171, 0.818731, 1.349859], [2.718282, 1.648721, 1.221403]]
    close(ref.token_importance(d, zero, high=99.0), want, 5e-7)
    want[1][0] = 2.0
    close(ref.token_importance(d, zero), want, 5e-7)


def test_missing_sampler_numbers_have_weight_one__code() -> None:
    assert ref.token_importance([[-1.0]], [[math.nan]]) == [[1.0]]


def test_soft_overlong_penalty__paper() -> None:
    out = ref.soft_overlong_penalty([[5, 6, 7, 8, 9, 10]], 10, 4)
    close(out, [[0, 0, -0.25, -0.5, -0.75, -1]])
