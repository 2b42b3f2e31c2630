"""Independent reference of pairs and steps on the way to a sentence: one sample at a time, from its uniform numbers."""

from typing import Any

Place = tuple[int, int]


def runs(told: list[list[int]]) -> list[list[Place]]:
    """The runs of each episode's sentences, as lists of (episode, place); `told` has one number a transition."""
    found: list[list[Place]] = []
    for e, words in enumerate(told):
        for t, word in enumerate(words):
            if t == 0 or words[t - 1] != word:
                found.append([])
            found[-1].append((e, t))
    return found


def pair(told: list[list[int]], u: Any, near: int, far: int) -> tuple[Place, Place]:
    """u: which pair, how far."""
    firsts = [(run, k) for run in runs(told) for k in range(len(run)) if k + near < len(run)]
    run, k = firsts[int(u[0] * len(firsts))]
    possible = [j for j in range(k + near, k + far) if j < len(run)]
    return run[k], run[possible[int(u[1] * len(possible))]]


def step(told: list[list[int]], u: float, ahead: int) -> tuple[Place, Place]:
    """u: which step."""
    every = [(run, k) for run in runs(told) for k in range(len(run))]
    run, k = every[int(u * len(every))]
    return run[k], run[min(k + ahead, len(run) - 1)]
