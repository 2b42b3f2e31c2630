"""The basic credit references against printed oracle numbers and hand-derived cases.

A name ends in where its number comes from: the paper's formula, published code, or a derivation of our own.
"""

import pytest
from reference import credit_base as ref
from reference.checking import close


@pytest.mark.parametrize("rule", sorted(ref.CASES))
def test_cases__reconstructed(rule: str) -> None:
    for case in ref.CASES[rule]:
        close(getattr(ref, rule)(**case["inputs"]), case["expected"])


def test_every_rule_has_a_case__reconstructed() -> None:
    public = {n for n, f in vars(ref).items() if callable(f) and getattr(f, "__module__", "") == ref.__name__}
    assert {name for name in public if not name.startswith("_")} == set(ref.CASES)


def test_grpo_two_right_of_four__code() -> None:
    rewards = [[1.0, 0.0, 0.0, 1.0]]
    for ddof, eps, size in ((1, 1e-4, 0.865875), (1, 1e-6, 0.866024), (0, 0.0, 1.0), (1, 0.0, 0.866025)):
        close(ref.grpo(rewards, ddof, eps), [[size, -size, -size, size]], 5e-7)


def test_grpo_one_right_of_four__code() -> None:
    rewards = [[1.0, 0.0, 0.0, 0.0]]
    close(ref.grpo(rewards, eps=1e-4), [[1.4997, -0.4999, -0.4999, -0.4999]], 5e-5)
    close(ref.grpo(rewards, eps=1e-6), [[1.499997, -0.499999, -0.499999, -0.499999]], 5e-7)
    close(ref.rloo(rewards), [[1.0, -1 / 3, -1 / 3, -1 / 3]])
    close(ref.dr_grpo(rewards), [[0.75, -0.25, -0.25, -0.25]])


def test_grpo_equal_rewards__code() -> None:
    assert ref.grpo([[0.1, 0.1, 0.1]], eps=0.0) == [[0.0, 0.0, 0.0]]


def test_singletons__code() -> None:
    assert ref.rloo([[3.0]]) == [[0.0]]
    assert ref.rloo([[3.0]], singleton="raw") == [[3.0]]
    assert ref.grpo([[3.0]], singleton="raw") == [[3.0]]


def test_rloo_is_scaled_dr_grpo__paper() -> None:
    rewards = [[2.0, -1.0, 0.5, 4.0]]
    scaled = [[4 / 3 * a for a in row] for row in ref.dr_grpo(rewards)]
    close(ref.rloo(rewards), scaled, 1e-12)


def test_lambda_return_is_gae_target__paper() -> None:
    groups = ref.CASES["gae"][0]["inputs"]["groups"]
    for lam in (0.0, 0.3, 1.0):
        close(ref.lambda_return(groups, 0.9, lam), ref.gae(groups, 0.9, lam)["target"], 1e-12)
    close(ref.lambda_return(groups, 0.9, 1.0), ref.discounted_return(groups, 0.9), 1e-12)
    close(ref.n_step_return(groups, 99, 0.9), ref.discounted_return(groups, 0.9), 1e-12)
    close(ref.n_step_return(groups, 1, 0.9), ref.lambda_return(groups, 0.9, 0.0), 1e-12)


def test_v_trace_on_policy_is_the_return__paper() -> None:
    groups = [[dict(ref.CASES["v_trace"][0]["inputs"]["groups"][0][0])]]
    groups[0][0]["logp"] = groups[0][0]["logp_behaviour"]
    close(ref.v_trace(groups, 0.9)["target"], ref.discounted_return(groups, 0.9), 1e-12)


def test_smdp_target_of_one_option__paper() -> None:
    # r = [1, 0, 2], gamma .9, a best next value of 4 after three steps: 5.536.
    episode = {"reward": [1.0, 0.0, 2.0], "switch": [1, 0, 0], "value": [1.0] * 3, "terminated": False}
    close(ref.smdp_target([[episode | {"final_value": 4.0}]], 0.9), [[[5.536]]])


def test_span_target_of_a_team__paper() -> None:
    episode = {"reward": [0.0, 0.0, 1.0], "switch": [1, 0, 0], "value": [0.0] * 3, "terminated": False}
    close(ref.smdp_target([[episode | {"final_value": 2.0}]], 0.9), [[[2.268]]])


def test_whitened_rules_have_zero_mean_and_unit_variance__paper() -> None:
    case = ref.CASES["reinforce_pp_baseline"][0]["inputs"]
    out = ref.reinforce_pp_baseline(**case)
    flat = []
    for row, counts in zip(out, case["lengths"], strict=True):
        for a, n in zip(row, counts, strict=True):
            flat += [a] * n
    assert sum(flat) == pytest.approx(0.0, abs=1e-12)
    assert sum(a * a for a in flat) / (len(flat) - 1) == pytest.approx(1.0, abs=1e-7)


def test_pass_at_k_ties__code() -> None:
    assert ref.pass_at_k([[1.0, 1.0, 0.0]]) == [[0.0, 0.0, 0.0]]
