"""Independent reference of windows and their goals: one sample at a time, from its uniform numbers."""

from typing import Any


def window(
    lengths: list[int],
    u: Any,
    steps: int,
    anchor: str,
    frames: int,
    ahead: int,
    stride: int = 1,
    within: int | None = None,
) -> tuple[list, list]:
    """(episode, place) of the window's steps and of the goal's frames; u: which transition, how far the goal."""
    every = [(e, t) for e, length in enumerate(lengths) for t in range(length)]
    episode, at = every[int(u[0] * len(every))]
    length = lengths[episode]
    offsets = range(1 - steps, 1) if anchor == "last" else range(steps)
    places = [at + k * stride for k in offsets]
    inside = [t for t in places if 0 <= t < length]
    possible = [t for t in range(at + ahead, length) if t + frames <= length]
    if not possible:  # too few are left: the soonest, or the last state
        possible = [min(at + ahead, length - 1)]
    if within is not None:
        possible = [t for t in possible if t <= at + within]
    start = possible[int(u[1] * len(possible))]
    return [(episode, t) for t in inside], [(episode, min(start + k, length - 1)) for k in range(frames)]
