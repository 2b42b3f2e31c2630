"""One set of weights that acts in several ways: a training is made once, its weights act again with other settings.

Sources: HILP (arXiv 2402.15567), whose prompts differ in acting alone; BESO (arXiv 2304.02532), whose denoising steps
do.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from echelon.hierarchy.columns import as_tensors
from echelon.hierarchy.world import Reset
from echelon.training.evaluation import Evaluator
from echelon.training.runtime import choose

DECISIONS = 100
"""How many decisions are timed in each of two ways, in turns."""


def prompted(run: Any, prompt: str) -> np.ndarray:
    """Statistic of a claim: success in points (0 to 100) of a run's final weights, acting on `prompt`, [task, episode].

    As `acting_with`.
    """
    return acting_with(run, "prompt", prompt)


def acting_with(run: Any, field: str, value: Any) -> np.ndarray:
    """Statistic of a claim: success in points (0 to 100) of a run's final weights by another setting, [task, episode].

    `field` of the configuration is `value` while they act. The episodes are those of the run's last evaluation, so with
    the setting that it was trained with the outcomes are the same again. UsageError for a value that is refused.
    """
    agent, last = run.agent(), int(run.evaluations[-1]["step"])
    agent.config = config = dataclasses.replace(agent.config, **{field: value})
    with choose("cpu", "float32", 1, run.identity).active():
        evaluator = Evaluator(config.env, config.eval_episodes, config.seed, goal_dim=agent.goal_dim)
        row = evaluator.run(agent, last).row
    return 100.0 * np.array(list(row["tasks"].values()), dtype=float)


def takes_longer(run: Any, field: str, value: Any, times: float) -> np.ndarray:
    """Statistic of a claim: 100 if a decision with `field` = `value` takes `times` as long as with the run's own value,
    or longer, else 0, [].

    The ratio of the medians over decisions of one stream that are made in turns on one core: what else the machine does
    slows both. Whether it is so large is recorded and not the ratio, which is never the same twice.
    """
    agent = run.agent()
    own, other = agent.config, dataclasses.replace(agent.config, **{field: value})
    world = Evaluator(own.env, 1, own.seed, slots=1, goal_dim=agent.goal_dim).world
    shown = as_tensors(world.reset(np.zeros(1, dtype=int), [Reset(seed=0, options={"task_id": 1})]))
    seconds: dict[bool, list[float]] = {False: [], True: []}
    with choose("cpu", "float32", 1, run.identity).active():
        for changed in [False, True] * DECISIONS:
            agent.config = other if changed else own
            seconds[changed].append(_seconds(agent, shown))
    ratio = statistics.median(seconds[True]) / statistics.median(seconds[False])
    return np.array(100.0 * (ratio >= times))


@torch.inference_mode()
def _seconds(agent: Any, shown: dict[str, Tensor]) -> float:
    """How long all levels take to decide for one stream that sees `shown`, at the beginning of an episode."""
    action, due, spent = None, torch.ones(1, dtype=torch.bool), 0.0
    for level in agent.levels():
        features, _ = level.observe(shown, level.start(1))
        started = time.perf_counter()
        action = level.decide(features, action, due).action
        spent += time.perf_counter() - started
    return spent
