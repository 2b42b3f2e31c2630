"""How noisy gradients from HAE are beside those from flat GAE: sampled, on three tabular tasks of 24 turns.

`python -m benchmarks.credit --variance` prints the whole table. Variance of HAE over that of flat GAE, the same
episodes, λ and exact values, for rewards at every turn / for one at the end:

    λ       switch        by difference    subgoal        action         all
    1       0.46 / 0.30   0.03 / 0.01      0.99 / 1.00    0.41 / 0.29    0.51 / 0.39
    0.95    0.79 / 0.73   0.06 / 0.02      1.59 / 2.23    0.55 / 0.47    0.74 / 0.74
    0.8     1.73 / 2.39   0.11 / 0.06      2.71 / 4.47    0.78 / 0.81    1.20 / 1.49
    0       3.65 / 5.99   0.17 / 0.13      3.29 / 5.03    0.97 / 1.02    1.66 / 2.20

So the claim of lower variance (arXiv 2602.16165) holds at λ near 1, which language agents use: segments end in a value
where flat returns run on. It does not hold at lower λ: a return over segments meets fewer factors λ on its way than one
over turns, and the switch by return meets none. With each level at its own best λ flat GAE is as good for actions and
better for subgoals and switches by return; what remains of HAE's is the switch by difference, where values are good.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))  # pytest does not add the repository's root

from benchmarks.variance import TASKS, Comparison, compare, errors, task, variances

EPISODES = 1000


@pytest.fixture(scope="module", params=[("dense", 0.0), ("dense", 1.0), ("outcome", 0.0), ("outcome", 1.0)], ids=str)
def runs(request: pytest.FixtureRequest) -> list[dict[float, Comparison]]:
    """Of every task; the error of the values is relative to their spread over states."""
    rewards, error = request.param
    return [compare(task(rewards, seed), error=error, episodes=EPISODES) for seed in TASKS]


def test_at_lambda_1_hae_is_less_noisy(runs: list[dict[float, Comparison]]) -> None:
    for run in runs:
        switch, _, subgoal, action, together = variances(run[1.0])
        assert switch < 0.85 and action < 0.7 and together < 0.8
        assert subgoal < 1.1  # as flat: its returns run to the end too


def test_actions_stay_less_noisy_at_lambda_95(runs: list[dict[float, Comparison]]) -> None:
    for run in runs:
        assert variances(run[0.95])[3] < 0.9


def test_subgoals_are_noisier_below_lambda_1(runs: list[dict[float, Comparison]]) -> None:
    """A limit of the method, kept in view: λ_seg acts once a segment."""
    for run in runs:
        assert variances(run[0.8])[2] > 1.5


def test_the_switch_by_difference_is_less_noisy_than_by_return(runs: list[dict[float, Comparison]]) -> None:
    for run in runs:
        switch, difference, *_ = variances(run[1.0])
        assert difference < 0.6 * switch


def test_at_its_own_best_lambda_flat_gae_is_no_worse(runs: list[dict[float, Comparison]]) -> None:
    """bias² + variance / 64, the switch by return: what HAE saves at λ = 1 flat GAE saves by a lower λ."""
    for run in runs:
        *_, action, together = errors(run)
        assert action > 0.8 and together > 1
