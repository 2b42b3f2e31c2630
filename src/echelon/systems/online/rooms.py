"""Four rooms whose goal moves: how soon the episodes of a run are short again, and what is claimed of that."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from echelon.claims import Above, Claim, Score, metric
from echelon.errors import DataError
from echelon.systems.online.recipes import arm_of
from echelon.training.online.config import OnlineConfig

EPISODES = 1_000
"""Episodes after the move that count."""
LEAST_ENTROPY, LEAST_LENGTH = 0.5, 2.0
"""Below this share of ln(options), or of steps an option holds, a run has no options to speak of."""


def steps_after_move(run: Any) -> np.ndarray:
    """Minus the mean steps of the first thousand episodes begun after the goal had moved, []: the area under them.

    In the order in which they began, so that no slot's short episodes come first. DataError for a run with fewer.
    """
    config, rows = run.config, run.episodes
    slots, ticks = config["slots"], config["ticks"]
    base, _, moves = config["env"].partition("@")
    if not moves or int(moves) % ticks:
        raise DataError(
            f"{run.path}: the rules of '{base}' must change after a multiple of {ticks} steps, not '{moves}'"
        )
    first = slots + sum(row["environment_steps"] <= int(moves) * slots for row in rows)
    lengths = {row["episode"]: row["length"] for row in rows}
    missing = [episode for episode in range(first, first + EPISODES) if episode not in lengths]
    if missing:
        raise DataError(f"{run.path}: {len(missing)} of the first {EPISODES} episodes after the move have no end")
    return np.array(-np.mean([lengths[episode] for episode in range(first, first + EPISODES)]))


def steps_with_options(run: Any) -> np.ndarray:
    """`steps_after_move` of a run whose options are in use; where they collapsed, as if no episode reached the goal.

    In use: over the training, the options' entropy is half of ln(options) or more, and they hold for two steps or more.
    """
    steps = steps_after_move(run)
    used = metric(run, "option/entropy") >= LEAST_ENTROPY and metric(run, "option/length") >= LEAST_LENGTH
    return steps if used else np.array(-float(run.config["limit"]))


def sooner(method: OnlineConfig, baseline: OnlineConfig, names: tuple[str, str], source: str) -> Claim:
    """That a system with options finds a goal that moved in fewer steps than the flat learner of the same kind."""
    with_options, flat = arm_of(method, names[0]), arm_of(baseline, names[1])
    return Claim(
        id="goal-moves",
        text=f"In four rooms, over the first {EPISODES:,} episodes after the goal has moved, {names[0]} takes fewer "
        f"steps than flat {names[1]}. Its options keep an entropy of half of ln n and hold for two steps, or it counts "
        "as never arriving.",
        method=Score(with_options, steps_with_options),
        baseline=Score(flat, steps_after_move),
        test=Above(0),
        source=source,
        seeds=tuple(range(10)),
        also=(
            Score(with_options, steps_after_move),
            Score(with_options, partial(metric, name="option/entropy")),
            Score(with_options, partial(metric, name="option/length")),
        ),
    )
