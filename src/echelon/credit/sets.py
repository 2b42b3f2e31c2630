"""Credit of objectives that are set functions of the trajectory: what a visit adds depends on the visits before it.

Items are the actions of an episode. F is evaluated on prefixes: F of what was visited up to and including the effect of
each action, [N], and F of the start alone, [n]. Legend: N actions, n episodes.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from echelon.credit.credit import Credit, finite
from echelon.spans import Spans


def marginal_gains(episodes: Spans, *, value: Tensor, initial: float | Tensor = 0.0) -> Tensor:
    """D_j = F(prefix j) - F(prefix j-1), [N]: the reward of each action; they sum to F(episode) - initial.

    value: [N], F after each action. initial: F of the start state, a number or [n].
    """
    finite("episode", episodes, value=value)
    return value - episodes.shift(value, -1, initial)


def subpo(
    episodes: Spans,
    *,
    value: Tensor,
    initial: float | Tensor = 0.0,
    estimator: Literal["togo", "greedy", "prefix"] = "togo",
    baseline: float | Tensor = 0.0,
) -> Credit:
    """Submodular policy optimisation: the marginal gains of a set function F as rewards.

        togo:   A_i = Σ_{j≥i} D_j - b        the policy gradient of E F(τ): unbiased for any b of the past
        greedy: A_i = D_i - b                the immediate gain alone: myopic, can point the wrong way
        prefix: A_i = F(prefix i) - b        the released script: in expectation the same as greedy, of higher variance

    Shapes: value [N], initial a number or [n], baseline a number or [N]; see `marginal_gains` for D. Needs neither
    values nor groups; the policy must see the history, or time under deterministic dynamics, to be optimal.
    Source: arXiv 2307.13372; its script divides F by a constant and keeps F of the start in every prefix.
    """
    gain = marginal_gains(episodes, value=value, initial=initial)
    parts = {"togo": lambda: episodes.scan(gain), "greedy": lambda: gain, "prefix": lambda: value}
    weight = parts[estimator]()
    offset = -torch.as_tensor(baseline, dtype=gain.dtype, device=gain.device).expand_as(gain)
    return Credit(weight + offset, terms={estimator: weight, "baseline": offset})
