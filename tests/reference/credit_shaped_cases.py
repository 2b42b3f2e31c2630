"""Small inputs of the shaped rules with literal results, derived by fractions, decimals or closed forms.

`{function name: [{"inputs": keyword arguments, "expected": nested result}, ...]}`; ten digits.
"""

from typing import Any

Cases = dict[str, list[dict[str, Any]]]


def case(expected: Any, **inputs: Any) -> dict[str, Any]:
    """One case."""
    return {"inputs": inputs, "expected": expected}


_HALF = 0.7071067812  # 1 / sqrt 2
_ROOT = 1.4142135624  # sqrt 2
_SYSTEMS = [
    {"outcome": 1.0, "reward": [0.0, -0.1, 0.1], "node_reward": [0.0, -0.1, 0.1], "edge_reward": [-0.1, 0.0, 0.0]},
    {"outcome": 1.0, "reward": [-0.2, 0.1], "node_reward": [-0.2, 0.1], "edge_reward": [0.0, 0.0]},
    {"outcome": 0.0, "reward": [0, 0, -0.1, 0], "node_reward": [0, 0, -0.1, 0], "edge_reward": [0.0, -0.2, 0.0, 0.0]},
]
_NODE = [
    [0.6571067812, 0.6071067812, 0.9071067812],
    [0.4071067812, 0.9071067812],
    [-1.4642135624, -1.5142135624, -1.6142135624, -1.4142135624],
]
_SOLVED = [{"outcome": 1.0, "reward": [-0.1, 0.1]}, {"outcome": 1.0, "reward": [0.1]}]
_RIGHT = {"passes": [1, 1], "length": 200, "boxed": True}
_FAILED = {"passes": [1, 0], "length": 200, "boxed": True}
_DRIVES = [{"reward": [0.0, -1.0]}, {"reward": [0.0, 0.0]}, {"reward": [-1.0, 0.0]}]
_HBPO = {"rewards": [[2.0, 0.0, 1.0, 1.0]], "budgets": [[64, 64, 48, 48]], "l_max": 96}
_DEGRPO = {"rewards": [[1.0, 0.5, 0.0]], "log_probs": [[-1.0, -2.0, -4.0]]}

ADVANTAGE_CASES: Cases = {
    "grpo": [
        case([[1.0, 0.0, -1.0], [0.0, 0.0]], rewards=[[2.0, 1.0, 0.0], [3.0, 3.0]], ddof=1, eps=0.0),
        case([[0.4999995000]], rewards=[[0.5]], single="raw"),
    ],
    "hrpo": [
        case([_NODE], groups=[_SYSTEMS], beta=2.0, gamma=0.5),
        case([[*_NODE[:2], [-_ROOT] * 4]], groups=[_SYSTEMS], beta=2.0, gamma=0.5, combine="gate"),
        case(
            {
                "node": [_NODE],
                "edge": [[[0.5071067812, _HALF, _HALF], [_HALF] * 2, [-1.6142135624, -1.8142135624, -_ROOT, -_ROOT]]],
            },
            groups=[_SYSTEMS],
            beta=2.0,
            gamma=0.5,
            combine="split",
        ),
        case([[[0.0, 0.1], [0.1]]], groups=[_SOLVED]),
        case([[[0.0, 0.1], [0.1]]], groups=[_SOLVED], combine="gate"),
        case([[[-0.1, 0.1], [0.1]]], groups=[_SOLVED], suffix=False),
        case([[[0.0, 0.0], [0.0]]], groups=[_SOLVED], degenerate_beta=0.0),
    ],
    "hrpo_joint_log_prob": [
        case(-4.3820266347, role=0.25, edge_probabilities=[0.9, 0.5], edges=[0, 1]),
        case(-0.6931471806, role=0.5, edge_probabilities=[], edges=[]),
    ],
    "hrpo_surrogate": [
        case(1.5, node_ratio=1.5, edge_ratio=0.5, node_advantage=2.0, edge_advantage=2.0, eps=0.2),
        case(1.6, node_ratio=1.5, edge_ratio=0.5, node_advantage=2.0, edge_advantage=-1.0, eps=0.2, combine="split"),
    ],
    "hbpo": [
        case([[0.2247433714, -2.2247433714, -1.8284271247, -1.8284271247]], **_HBPO),
        case([[-0.7752566286, -3.2247433714, -3.6568542495, -3.6568542495]], **_HBPO, intra_coef=2.0),
        case([[-2.0, 0.0]], rewards=[[0.0, 0.0]], budgets=[[64, 96]], l_max=96),
    ],
    "hbpo_intra": [case([[-1.5, -1.5]], rewards=[[1.0, 0.0]], budgets=[[64, 64]], l_max=96)],
    "hbpo_inter": [case([[1.0, 0.0, -1.0]], rewards=[[4.0, 2.0, 0.0]], eps=0.0)],
    "hicra": [
        case(
            [[[2.25, 1.5], [-1.0, -2.0, -1.0], [0.0]]],
            advantages=[[1.5, -2.0, 0.0]],
            planning=[[[True, False], [True, False, True], [True]]],
            alpha=0.5,
        )
    ],
    "hicra_entropy_mask": [case([False, False, False, True], entropies=[0.1, 0.2, 0.3, 0.4], top=0.5)],
    "hicra_code": [
        case(
            [[[-1.0] * 4, [1.0, 1.0], [1.0] * 3, [0.0] * 3]],
            advantages=[[-1.0, 1.0, 1.0, 0.0]],
            entropies=[[[0.1, 0.2, 0.3, 0.4], [0.1, 0.9], [0.1, 0.2, 0.9], [0.1, 0.2, 0.9]]],
            planning=[[[False] * 4, [False] * 2, [False] * 3, [True] * 3]],
        ),
        case(
            [[[1.0, 1.0, 1.0, 1.2], [-1.0, -1.0], [2.0, 2.0]]],
            advantages=[[1.0, -1.0, 2.0]],
            entropies=[[[0.1, 0.2, 0.3, 0.4], [0.1, 0.9], [0.1, 0.9]]],
            top=0.5,
        ),
        case(
            [[[1.2, 1.0, 1.0, 1.2], [-0.8, -1.0], [2.0, 2.4]]],
            advantages=[[1.0, -1.0, 2.0]],
            entropies=[[[0.1, 0.2, 0.3, 0.4], [0.1, 0.9], [0.1, 0.9]]],
            top=0.5,
            planning=[[[True, False, False, True], [True, False], [False, True]]],
        ),
    ],
    "mine_grams": [
        case(
            [["a", "b"], ["b", "c"]], solutions=[["a", "b", "c"], ["a", "b", "d"], ["x", "a", "b"]], sizes=(2,), top=0.5
        ),
        case([], solutions=[["a", "b", "a", "b"], ["a", "b", "c"]], sizes=(2,), top=0.3, max_repetition=1.0),
        case([["a", "b"]], solutions=[["a", "b"], ["a", "b", "c"]], sizes=(2,), top=0.5, max_repetition=1.0),
    ],
    "match_grams": [
        case([False, True, True, True, True], tokens=[1, 2, 1, 2, 3], grams=[[1, 2, 3], [2, 1]]),
        case([False, False], tokens=[1, 2], grams=[[1, 2, 3]]),
    ],
    "match_words": [
        case(
            [False, True, True, True, True, False, False],
            tokens=["Let", " us", "  Work", " back", "wards", ".", " Done"],
            grams=[["us", "work", "backwards"]],
        )
    ],
    "semantic_entropy": [case(1.0397207708, counts=[2, 1, 1]), case(0.0, counts=[]), case(0.0, counts=[5])],
    "d3s_samples": [
        case([[True, True, False], [False] * 3], advantages=[[2.0, -1.0, -1.0], [0.0, 1.0, -0.5]], n_s=1),
        case([[True] * 3, [False, True, False]], advantages=[[2.0, -1.0, -1.0], [0.0, 1.0, -0.5]], n_s=2),
        case([[True, True, False], [False, True, True]], advantages=[[2, -1, -1], [0, 1, -0.5]], n_s=2, scope="group"),
        case([[False, False]], advantages=[[0.0, 0.0]], n_s=1),
    ],
    "d3s_tokens": [
        case(
            [[[False, True], [True, False, False]]],
            advantages=[[2.0, -1.0]],
            entropies=[[[0.5, 1], [3, 0.1, 1.5]]],
            k=0.4,
        ),
        case(
            [[[False, True], [True, False, True]]],
            advantages=[[2.0, -1.0]],
            entropies=[[[0.5, 1], [3, 0.1, 1.5]]],
            k=0.4,
            scope="answer",
        ),
    ],
    "d3s_schedule": [case([10.0, 0.4], p=0.25, init=[8, 0.2], final=[16, 1.0])],
    "d3s": [
        case(
            {
                "advantage": [[[0.0, 1.0], [-1.0]], [[0.0], [0.0, 0.0]]],
                "samples": [[True, True], [False, False]],
                "normaliser": 2,
            },
            rewards=[[1.0, 0.0], [1.0, 1.0]],
            entropies=[[[1.0, 2.0], [3.0]], [[9.0], [9.0, 9.0]]],
            n_s=1,
            k=0.5,
        )
    ],
    "thor_keep": [
        case(
            [[True, False, False, True], [False] * 3],
            groups=[
                [_RIGHT, _FAILED, {**_RIGHT, "length": 150}, {**_RIGHT, "passes": []}],
                [_RIGHT, _FAILED, {**_RIGHT, "boxed": False}],
            ],
        ),
        case([[True, True]], groups=[[_RIGHT, _FAILED]], mode="mean", min_pass=0.5),
    ],
    "thor_group_advantages": [
        case(
            {"advantage": [[1.1546985384, -0.5773492692, 0.0, -0.5773492692]], "keep": [[True, True, False, True]]},
            rewards=[[1.0, 0.0, 1.0, 0.0]],
            keep=[[True, True, False, True]],
        ),
        case({"advantage": [[0.0, 0.0]], "keep": [[False, False]]}, rewards=[[1.0, 0.0]], keep=[[True, False]]),
        case(
            {"advantage": [[0.9999990000, 0.0]], "keep": [[True, False]]},
            rewards=[[1.0, 0.0]],
            keep=[[True, False]],
            drop_constant=False,
        ),
    ],
    "thor": [
        case(
            {
                "trajectory": {
                    "advantage": [[1.1546985384, -0.5773492692, -0.5773492692, 0.0]],
                    "keep": [[True, True, True, False]],
                },
                "step": {
                    "advantage": [[0.0, 0.0], [0.7071057812, -0.7071057812]],
                    "keep": [[False, False], [True, True]],
                },
            },
            trajectories=[
                [
                    {"reward": 1.0, **_RIGHT},
                    {"reward": 0.0, **_RIGHT},
                    {"reward": 0.0, **_RIGHT},
                    {"reward": 1.0, **_FAILED},
                ]
            ],
            steps=[
                [{"reward": 1.0, "fence": True}, {"reward": 1.0, "fence": True}],
                [{"reward": 1.0, "fence": True}, {"reward": 0.0, "fence": True}],
            ],
        )
    ],
    "thor_positive_nll": [
        case(
            {"l_pos": 0.5, "contribution": 0.05},
            log_probs=[-0.25, -0.75, -3.0],
            advantages=[1, 2, 0],
            mask=[1, 1, 1],
            alpha=0.1,
        ),
        case({"l_pos": 0.0, "contribution": 0.0}, log_probs=[-1.0], advantages=[-1.0], mask=[1]),
    ],
    "geometric_gap": [
        case(1.8171217033, values=[-1.0, -2.0, -4.0]),
        case(1.000001, values=[1.0, 0.0, 0.0], ties="skip"),
        case(0.0, values=[2.0]),
    ],
    "degrpo": [
        case(
            {
                "advantage": [[0.4354150309, 0.0, -0.4354150309]],
                "utility": [1.1447168500],
                "smoothed": [0.6289433700],
                "lifecycle": [1.0],
                "margin": [0.6666666667],
                "gate": [0.4355021139],
            },
            **_DEGRPO,
            smoothed=[0.5],
            baselines=[0.2],
        ),
        case(
            {
                "advantage": [[-0.1161169884, 0.0, 0.1161169884]],
                "utility": [1.1447168500],
                "smoothed": [0.9489433700],
                "lifecycle": [0.5],
                "margin": [0.6666666667],
                "gate": [-0.1161402117],
            },
            **_DEGRPO,
            smoothed=[0.9],
            baselines=[0.9],
        ),
        case(
            {
                "advantage": [[0.4354150309, 0.0, -0.4354150309]],
                "utility": [1.1447168500],
                "smoothed": [0.2289433700],
                "lifecycle": [1.0],
                "margin": [0.6666666667],
                "gate": [0.4355021139],
            },
            **_DEGRPO,
            smoothed=[None],
            baselines=[0.2],
            first_visit="discover",
        ),
        case(
            {
                "advantage": [[0.3711866397, -0.1855933199, -0.1855933199]],
                "utility": [1.000002],
                "smoothed": [1.000002],
                "lifecycle": [0.5],
                "margin": [0.6666666667],
                "gate": [0.3215127375],
            },
            rewards=[[1.0, 0.0, 0.0]],
            log_probs=[[0.0, -1.0, -1.0]],
            smoothed=[None],
            baselines=[0.0],
            first_visit="utility",
            ties="skip",
            clamp=True,
        ),
        case(
            {
                "advantage": [[0.0]],
                "utility": [0.0],
                "smoothed": [0.4],
                "lifecycle": [1.0],
                "margin": [0.0],
                "gate": [0.0],
            },
            rewards=[[1.0]],
            log_probs=[[-1.0]],
            smoothed=[0.5],
            baselines=[0.3],
            clamp=True,
        ),
    ],
    "worldrft": [
        case([[[-_HALF, -_ROOT], [_ROOT, _HALF], [-_HALF, _HALF]]], groups=[_DRIVES]),
        case(
            [[[-0.5773502692, -1.1547005384], [1.1547005384, 0.5773502692], [-0.5773502692, 0.5773502692]]],
            groups=[_DRIVES],
            ddof=1,
        ),
        case([[[0.0, 0.0], [0.0, 0.0]]], groups=[[{"reward": [0.0, -1.0]}, {"reward": [0.0, -1.0]}]]),
    ],
    "worldrft_objective": [case(0.6, ratios=[[1.5, 0.5], [1.0, 1.5]], advantages=[[1.0, -1.0], [2.0, -0.8]], eps=0.2)],
}

_EDITS = {
    "kind": ["add", "add", "add", "delete", "add", "exit"],
    "duplicate": [False, True, False, False, True, False],
    "isolated": [False, True, False, False, True, False],
    "just_added": [False, False, False, True, False, False],
    "correct": True,
}
_COSTS = {"episode": _EDITS, "mu": 0.1, "nu": 0.2, "kappa": 0.3}
_EMPTY = {
    "kind": ["add", "delete", "exit"], "duplicate": [False] * 3, "isolated": [False] * 3,
    "just_added": [False, True, False], "correct": True,
}  # fmt: skip

REWARD_CASES: Cases = {
    "hrpo_step_rewards": [
        case([0.0, 0.0, 0.0, -0.2, -0.5, 0.3], **_COSTS),
        case([0.0, -0.4, 0.0, -0.2, -0.5, 0.3], **_COSTS, exempts="additions"),
        case([0.0, -0.4, -0.1, -0.2, -0.5, 0.3], **_COSTS, exemption="agents", n_ex=2),
        case([-0.1, -0.5, -0.1, -0.2, -0.5, 0.3], **_COSTS, exemption="training", e_ex=5, update=5),
        case([0.0, -0.4, 0.0, -0.2, -0.4, 0.3], **_COSTS, exemption="training", e_ex=5, update=4),
        case([0.0, 0.0, 0.0, 0.0, -0.2, 0.0], **_COSTS, part="edge"),
        case([0.0, 0.0, 0.0, -0.2, -0.3, 0.3], **_COSTS, part="node"),
        case([0.0, -0.1, -1.0], episode=_EMPTY, t_ex=1),
        case([0.0, 0.0, 0.0], episode=_EMPTY),
    ],
    "hbpo_reward": [
        case(1.8333333333, n=64, b=48, correct=True, l_max=96, alpha=1 / 96),
        case(2.8284271247, n=40, b=48, correct=True, l_max=96, alpha=1 / 96),
        case(3.6955181300, n=12, b=24, correct=True, l_max=96, alpha=1 / 96),
        case(3.5705181300, n=24, b=12, correct=True, l_max=96, alpha=1 / 96),
        case(0.0, n=97, b=48, correct=True, l_max=96),
        case(-0.5, n=96, b=48, correct=True, l_max=96, alpha=1 / 96),
        case(0.0, n=64, b=48, correct=False, l_max=96),
        case(-1.0, n=64, b=48, correct=False, l_max=96, form="code", well_formed=False),
        case(2.83, n=48, b=None, correct=True, l_max=96, form="code"),
        case(2.0, n=0, b=64, correct=True, l_max=96, alpha=1 / 32, form="code"),
        case(1.0, n=0, b=48, correct=True, l_max=96, alpha=1 / 16, form="code"),
    ],
    "tail_entropy": [
        case(1.0397207708, probs=[0.5, 0.25]),
        case(0.6931471806, probs=[0.5, 0.0]),
        case(0.6931471806, probs=[0.5, 0.25], tail=False),
    ],
    "ares_windows": [
        case([2.5, 3.5, 3.0, 3.0], entropies=[1.0, 2.0, 3.0, 4.0], w=2),
        case([], entropies=[1.0, 2.0], w=2),
    ],
    "percentile": [case(3.85, values=[4.0, 1.0, 3.0, 2.0], percent=95.0)],
    "ares_threshold": [
        case(3.425, rollouts=[[1.0, 2.0, 3.0, 4.0], [1.0, 2.0]], w=2),
        case(2.01425, rollouts=[[1.0, 2.0, 3.0, 4.0]], previous=2.0, w=2),
    ],
    "ares_triggers": [
        case(
            {"count": 1, "invalid": 0, "soft_cost": 0.0},
            tokens=["wait", "a", "b"],
            entropies=[0, 1, 3],
            threshold=2.0,
            words=["wait"],
            w=2,
        ),
        case(
            {"count": 1, "invalid": 1, "soft_cost": 0.5},
            tokens=["ĠWait", " x", "▁wait", "y", "z", "wait"],
            entropies=[9, 2, 3, 1, 0, 9],
            threshold=2.0,
            words=["wait"],
            w=2,
        ),
    ],
    "ares_bucket": [
        case("easy", correct=[1, 1, 0]),
        case("medium", correct=[1, 0, 0]),
        case("hard", correct=[1, 0, 0, 0]),
    ],
    "ares_targets": [case({"easy": 4, "hard": 2}, counts=[[3, 5], [4, 3], [2, 3]], buckets=["easy", "easy", "hard"])],
    "ares_alpha": [
        case(0.52, alpha=0.5, mean_count=3.4, target=3, bucket="easy"),
        case(0.48, alpha=0.5, mean_count=3.4, target=3, bucket="hard"),
        case(2.0, alpha=1.99, mean_count=3.4, target=3, bucket="medium"),
        case(0.0, alpha=0.01, mean_count=3.4, target=3, bucket="hard"),
    ],
    "ares_entropy_reward": [
        case(-0.32, count=26, target=20, correct=1, bucket="easy", alpha=0.8),
        case(0.3509081177, count=25, target=20, correct=0, bucket="easy", alpha=0.8),
        case(-0.25, count=2, target=8, correct=1, bucket="medium", alpha=0.5),
        case(-0.15, count=13, target=8, correct=1, bucket="medium", alpha=0.5),
        case(-0.005, count=2, target=4, correct=1, bucket="hard", alpha=1.0),
        case(0.9750602484, count=7, target=4, correct=1, bucket="hard", alpha=1.0),
        case(0.6, count=4, target=4, correct=0, bucket="hard", alpha=1.0),
        case(0.3, count=1, target=2, correct=1, bucket="hard", alpha=0.5),
    ],
    "ares": [
        case(
            {
                "bucket": ["easy", "hard", "easy"],
                "reward": [[1.0, 1.0, 0.15], [0.3, 0.3, 0.3, 1.3964538213], [1.0, 1.0, 1.0]],
                "keep": [True, True, False],
                "advantage": [
                    [0.5773490927, 0.5773490927, -1.1546981854],
                    [-0.4999990880, -0.4999990880, -0.4999990880, 1.4999972639],
                    [0.0, 0.0, 0.0],
                ],
            },
            correct=[[1, 1, 0], [0, 0, 0, 1], [1, 1, 1]],
            counts=[[2, 4, 3], [1, 1, 3, 3], [3, 3, 3]],
        )
    ],
    "thor_execution_pass": [
        case(0.0, blocks=[1, 0]),
        case(0.5, blocks=[1, 0], mode="mean"),
        case(1.0, blocks=[]),
        case(1.0, blocks=[], mode="mean"),
        case(1.0, blocks=[1, 1]),
    ],
    "thor_restarts": [
        case([0, 2], passes=[[1, 0], [1], [0, 0], []]),
        case([2], passes=[[1, 0], [1], [0, 0], []], mode="mean"),
    ],
    "thor_prefix_length": [
        case(2, kinds=["text"] * 4 + ["code"] * 3 + ["output"] * 2 + ["text"], cut=2),
        case(5, kinds=["code", "output", "text", "text", "text", "text", "code", "output", "output"], cut=1),
        case(0, kinds=["text", "code", "output"], cut=5),
    ],
    "thor_mask": [case([0, 0, 1, 0, 1], kinds=["text", "code", "text", "output", "code"], prefix=2)],
    "thor_trim": [
        case("ab...yz", output="abcdefgxyz", limit=10, keep=2),
        case("abcdefxyz", output="abcdefxyz", limit=10, keep=2),
    ],
    "deeptravel_reward": [
        case(0.0, trajectory_ok=1, turn_ok=[1, 0]),
        case(0.5, trajectory_ok=1, turn_ok=[1, 0], combine="mean"),
        case(None, trajectory_ok=1, turn_ok=[1, None]),
        case(0.0, trajectory_ok=0, turn_ok=[None]),
        case(1.0, trajectory_ok=1, turn_ok=[]),
        case(1.0, trajectory_ok=1, turn_ok=[], combine="mean"),
        case(0.0, trajectory_ok=1, turn_ok=[1], format_ok=False),
    ],
    "deeptravel_judge_calls": [
        case(0, trajectory_ok=0, turn_ok=[1, 1]),
        case(4, trajectory_ok=1, turn_ok=[1, 0, 1, 0]),
        case(2, trajectory_ok=1, turn_ok=[1, 0, 1, 0], early_exit=True),
    ],
    "deeptravel": [
        case(
            [[[1.1546985384], [-0.5773492692] * 2, [0.0] * 2, [-0.5773492692] * 3]],
            groups=[
                [
                    {"trajectory_ok": 1, "turn_ok": [1]},
                    {"trajectory_ok": 1, "turn_ok": [0, 1]},
                    {"trajectory_ok": 1, "turn_ok": [None, 1]},
                    {"trajectory_ok": 0, "turn_ok": [1, 1, 1]},
                ]
            ],
        ),
        case(
            [[[0.9999980000], [0.0, 0.0], [-0.9999980000]]],
            groups=[
                [
                    {"trajectory_ok": 1, "turn_ok": [1]},
                    {"trajectory_ok": 1, "turn_ok": [0, 1]},
                    {"trajectory_ok": 0, "turn_ok": [1]},
                ]
            ],
            combine="mean",
        ),
    ],
    "deeptravel_buffer": [
        case(
            [("b", 2), ("c", 0)],
            buffer=[("a", 1), ("b", 2)],
            outcomes=[("a", [0, 1]), ("b", [0, 0]), ("c", [0, 0]), ("d", [1, 1])],
        ),
        case([("a", 0)], buffer=[], outcomes=[("a", [0, 0, 0, 1]), ("b", [1, 1, 0, 0])], threshold=0.25),
    ],
    "deeptravel_batch": [
        case(
            {"batch": ["p", "q", "r", "b", "c"], "buffer": [("a", 4), ("b", 4), ("c", 1), ("d", 0)]},
            buffer=[("a", 4), ("b", 3), ("c", 0), ("d", 0)],
            batch=["p", "q", "r", "s", "t"],
            iteration=10,
        ),
        case({"batch": ["p"], "buffer": [("a", 0)]}, buffer=[("a", 0)], batch=["p"], iteration=4),
    ],
    "worldrft_collision": [
        case([0.0, -1.0, 0.0, -1.0], overlaps=[False, True, False, True]),
        case([0.0, -1.0, 0.0, 0.0], overlaps=[False, True, False, True], mark="first"),
        case([0.0, -1.0, -1.0, -1.0], overlaps=[False, True, False, True], mark="following"),
    ],
    "worldrft_reference_nll": [case(2.4628770664, mu=[0.0, 1.0], sigma=[0.5, 2.0], reference=[0.5, 2.0])],
    "laplace_nll": [case(3.1931471806, y=[1.0, 0.0], mu=[0.0, 0.5], b=[0.5, 1.0])],
    "pdm_score": [case(0.375, nc=1.0, dac=0.5, ep=0.6, ttc=1.0, comfort=0.5)],
}
