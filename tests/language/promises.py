"""What every text world promises, to be asked of any of them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence

import numpy as np

from echelon.language.worlds.world import BaseWorld, Demonstration, Task, expert_episode

_ELSEWHERE = """
from echelon.language.worlds.world import Task, expert_episode, make
world = make({name!r}, **{options!r})
for task in {tasks!r}:
    print(expert_episode(world, task, {slips}))
"""


def same_in_any_order(one: BaseWorld, other: BaseWorld, made: Sequence[Task], slips: float = 0.2) -> None:
    """A task makes the same game in any world, whatever was played before."""
    forwards = [expert_episode(one, task, slips) for task in made]
    backwards = [expert_episode(other, task, slips) for task in reversed(made)]
    assert forwards == backwards[::-1]


def same_in_turns(worlds: Sequence[BaseWorld], episodes: Sequence[Demonstration]) -> None:
    """Worlds that take turns play as they did alone."""
    for world, episode in zip(worlds, episodes, strict=True):
        assert world.reset(episode.task) == episode.turns[0].before
    for step in range(max(len(episode.turns) for episode in episodes)):
        for world, episode in zip(worlds, episodes, strict=True):
            if step < len(episode.turns):
                assert world.step(episode.turns[step].action) == episode.turns[step].after


def restored(one: BaseWorld, other: BaseWorld, task: Task, slips: float = 0.2, every: int = 1) -> None:
    """A snapshot leads to the observation that was seen there, and to the expert's advice."""
    done = tuple(turn.action for turn in expert_episode(one, task, slips).turns)
    one.reset(task)
    for count, action in enumerate(done, 1):
        seen = one.step(action)
        if count % every == 0:
            assert other.restore(task, one.snapshot()) == seen
            assert other.expert() == one.expert()


def admissible_is_valid(world: BaseWorld, task: Task, steps: int, seed: int) -> None:
    """Every admissible command that a walk at random meets is carried out."""
    rng = np.random.default_rng(seed)
    seen = world.reset(task)
    for _ in range(steps):
        if seen.done:
            break
        seen = world.step(seen.admissible[int(rng.integers(len(seen.admissible)))])
        assert seen.valid


def same_elsewhere(
    world: BaseWorld, made: Sequence[Task], slips: float, options: Mapping[str, float], env: Mapping[str, str]
) -> None:
    """Another process, where texts have other hashes, plays the same and says nothing else."""
    code = _ELSEWHERE.format(name=world.name, options=dict(options), tasks=list(made), slips=slips)
    env = {**os.environ, "PYTHONHASHSEED": "7", **env}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout == "".join(f"{expert_episode(world, task, slips)}\n" for task in made)
