"""Success of one set of weights under other prompts: a training is made once, its skills are asked in several ways.

Source: HILP (arXiv 2402.15567), whose prompts differ in acting alone.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from echelon.training.evaluation import Evaluator
from echelon.training.runtime import choose


def prompted(run: Any, prompt: str) -> np.ndarray:
    """Statistic of a claim: success in points (0 to 100) of a run's final weights, acting on `prompt`, [task, episode].

    The episodes are those of the run's last evaluation, so under the prompt that it was trained with the outcomes are
    the same again. UsageError for a prompt that the system does not know.
    """
    agent, last = run.agent(), int(run.evaluations[-1]["step"])
    agent.config = config = dataclasses.replace(agent.config, prompt=prompt)
    with choose("cpu", "float32", 1, run.identity).active():
        evaluator = Evaluator(config.env, config.eval_episodes, config.seed, goal_dim=agent.goal_dim)
        row = evaluator.run(agent, last).row
    return 100.0 * np.array(list(row["tasks"].values()), dtype=float)
