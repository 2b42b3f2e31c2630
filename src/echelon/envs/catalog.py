"""The environments and data sets that echelon knows by name: sizes, lengths and limits, without loading any physics.

Source: OGBench (arXiv 2410.20092), package 1.2.2 and its data recipes. A data set's name is the environment's name with
the type before the version: `pointmaze-large-stitch-v0` was collected in `pointmaze-large-v0`. A request for fewer
episodes than the full set is a data set of its own, called `NAME@EPISODES`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from echelon.errors import UsageError, unknown


@dataclass(frozen=True)
class EnvInfo:
    """What is known of an environment without building it."""

    name: str
    family: str
    observation_dim: int
    action_dim: int
    limit: int
    """Steps after which a test episode is cut off."""
    tasks: tuple[str, ...] = ("task1", "task2", "task3", "task4", "task5")
    """Names of the test tasks; task ids count from 1."""


@dataclass(frozen=True)
class DataInfo:
    """What is known of a data set without opening it. An episode of T transitions has T + 1 rows."""

    name: str
    env: EnvInfo
    kind: str
    """How it was collected: navigate, stitch, explore, play or noisy."""
    episodes: int
    length: int
    """Transitions of each episode."""
    full_episodes: int
    """Episodes of the whole set of this recipe; above `episodes` when fewer were asked for."""
    regenerable: bool
    """Whether the recipe needs nothing but the packages (no trained expert)."""

    @property
    def transitions(self) -> int:
        """Transitions of all episodes."""
        return self.episodes * self.length

    @property
    def validation_episodes(self) -> int:
        """Extra episodes kept apart for validation: a tenth, at least one."""
        return max(1, self.episodes // 10)


def _numbered(names: str) -> tuple[str, ...]:
    return tuple(f"task{k}_{name}" for k, name in enumerate(names.split(), 1))


def _environments() -> dict[str, EnvInfo]:
    found = [EnvInfo(f"pointmaze-{m}-v0", "pointmaze", 2, 2, 1000) for m in ("medium", "large", "giant", "teleport")]
    found += [EnvInfo(f"antmaze-{m}-v0", "antmaze", 29, 8, 1000) for m in ("medium", "large", "giant", "teleport")]
    limits = {"medium": 2000, "large": 2000, "giant": 4000}
    found += [EnvInfo(f"humanoidmaze-{m}-v0", "humanoidmaze", 69, 21, limit) for m, limit in limits.items()]
    found += [EnvInfo(f"antsoccer-{m}-v0", "antsoccer", 42, 8, 1000) for m in ("arena", "medium")]
    cubes = (
        ("single", 28, 200, "horizontal vertical1 vertical2 diagonal1 diagonal2"),
        ("double", 37, 500, "single_pnp double_pnp1 double_pnp2 swap stack"),
        ("triple", 46, 1000, "single_pnp triple_pnp pnp_from_stack cycle stack"),
        ("quadruple", 55, 1000, "double_pnp quadruple_pnp pnp_from_square cycle stack"),
    )
    found += [EnvInfo(f"cube-{n}-v0", "cube", dim, 5, limit, _numbered(tasks)) for n, dim, limit, tasks in cubes]
    in_scene = _numbered("open unlock_and_lock rearrange_medium put_in_drawer rearrange_hard")
    found += [EnvInfo("scene-v0", "scene", 40, 5, 750, in_scene)]
    boards = (("3x3", 55, 500), ("4x4", 83, 500), ("4x5", 99, 1000), ("4x6", 115, 1000))
    found += [EnvInfo(f"puzzle-{board}-v0", "puzzle", dim, 5, limit) for board, dim, limit in boards]
    return {env.name: env for env in found}


def _datasets() -> dict[str, DataInfo]:
    shapes: dict[str, tuple[int, int]] = {}
    for body in ("pointmaze", "antmaze"):
        for maze in ("medium", "large", "giant", "teleport"):
            shapes[f"{body}-{maze}-navigate"] = (500, 2000) if maze == "giant" else (1000, 1000)
            shapes[f"{body}-{maze}-stitch"] = (5000, 200)
    shapes |= {f"antmaze-{maze}-explore": (10000, 500) for maze in ("medium", "large", "teleport")}
    for maze in ("medium", "large", "giant"):
        shapes[f"humanoidmaze-{maze}-navigate"] = (1000, 4000 if maze == "giant" else 2000)
        shapes[f"humanoidmaze-{maze}-stitch"] = (10000 if maze == "giant" else 5000, 400)
    shapes |= {"antsoccer-arena-navigate": (1000, 1000), "antsoccer-medium-navigate": (4000, 1000)}
    shapes |= {"antsoccer-arena-stitch": (5000, 200), "antsoccer-medium-stitch": (8000, 500)}
    many = {"cube-triple": 3000, "cube-quadruple": 5000, "puzzle-4x5": 3000, "puzzle-4x6": 5000}
    for scene in ("cube-single", "cube-double", *list(many)[:2], "scene", "puzzle-3x3", "puzzle-4x4", *list(many)[2:]):
        for kind in ("play", "noisy"):
            shapes[f"{scene}-{kind}"] = (many.get(scene, 1000), 1000)
    found = {}
    for stem, (episodes, length) in shapes.items():
        place, kind = stem.rsplit("-", 1)
        env = ENVIRONMENTS[f"{place}-v0"]
        scripted = env.family in ("pointmaze", "cube", "scene", "puzzle")
        found[f"{stem}-v0"] = DataInfo(f"{stem}-v0", env, kind, episodes, length, episodes, scripted)
    return found


ENVIRONMENTS = _environments()
DATASETS = _datasets()


def parse(name: str) -> DataInfo:
    """Facts of a data set, by its name or `NAME@EPISODES`. UsageError names the nearest known name."""
    base, mark, count = name.partition("@")
    if base not in DATASETS:
        raise unknown("data set", base, DATASETS)
    info = DATASETS[base]
    if not mark:
        return info
    if not count.isdecimal() or not 1 <= int(count) <= info.full_episodes:
        raise UsageError(f"'{name}': after @ stands a number of episodes from 1 to {info.full_episodes}")
    return sized(info, int(count))


def sized(info: DataInfo, episodes: int | None) -> DataInfo:
    """The set of the first `episodes` episodes of `info`'s recipe; the whole set for None or the full number."""
    if episodes is None or episodes == info.full_episodes:
        return replace(info, name=info.name.partition("@")[0], episodes=info.full_episodes)
    if not 1 <= episodes <= info.full_episodes:
        raise UsageError(f"{info.name}: {episodes} episodes were asked for; valid: 1 to {info.full_episodes}")
    return replace(info, name=f"{info.name.partition('@')[0]}@{episodes}", episodes=episodes)


def environment(name: str) -> EnvInfo:
    """Facts of an environment, by its own name or that of a data set collected in it."""
    if name in ENVIRONMENTS:
        return ENVIRONMENTS[name]
    if name.partition("@")[0] in DATASETS:
        return parse(name).env
    raise unknown("environment", name, [*ENVIRONMENTS, *DATASETS])


def cannot_make(info: DataInfo) -> str:
    """What to tell someone who wants a data set that is not stored and cannot be regenerated."""
    return f"data set '{info.name}' needs a trained expert to make; with internet: echelon data fetch {info.name}"
