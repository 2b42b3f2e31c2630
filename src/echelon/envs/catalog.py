"""The environments and data sets that echelon knows by name: sizes, lengths and limits, without loading any physics.

Source: OGBench (arXiv 2410.20092), package 1.2.2 and its data recipes. A data set's name is the environment's name with
the type before the version: `pointmaze-large-stitch-v0` was collected in `pointmaze-large-v0`. A request for fewer
episodes than the full set is a data set of its own, called `NAME@EPISODES`.
The Fetch sets are echelon's own (sizes after arXiv 2311.02013): `fetchreach-mixed-v0` was collected in FetchReach-v4, a
tenth of it by an expert; `fetchreach-mixed2.5-v0` has 2.5 % of the expert's episodes, the random set none.
The metaworld sets, one with good experts and one of which half are bad, were collected in `metaworld-tracking-v0`.
`scene-told-v0` and `scene-orders-v0` are echelon's own, too, with test environments of their own in OGBench's scene.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from itertools import permutations

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
    simulator: str = ""
    """Name of the simulator where it is not `name`: an environment of echelon's own, in another's."""
    measures: tuple[str, ...] = ()
    """What it says of an episode beside success, in its infos; evaluations record the last value of each."""


@dataclass(frozen=True)
class DataInfo:
    """What is known of a data set without opening it. An episode of T transitions has T + 1 rows."""

    name: str
    env: EnvInfo
    kind: str
    """How it was collected: navigate, stitch, explore, play, noisy, told or orders; random, mixed or expert."""
    episodes: int
    length: int
    """Transitions of each episode; of `scene-orders-v0`, the most that one may have."""
    full_episodes: int
    """Episodes of the whole set of this recipe; above `episodes` when fewer were asked for."""
    regenerable: bool
    """Whether the recipe needs nothing but the packages (no trained expert)."""
    experts: float = 0.0
    """Share of the episodes that a scripted expert collects, where the others are random; or else of good experts."""

    @property
    def published(self) -> bool:
        """Whether there is a released file of this name."""
        return self.env.family not in HOME_MADE

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
    asked = _numbered(" ".join(sentence.replace(" ", "_") for sentence in SCENE_INSTRUCTIONS))
    found += [EnvInfo("scene-told-v0", "told", 40, 5, 150, asked, "scene-v0")]
    orders = _numbered(" ".join("_".join(order) for order in permutations(SCENE_SUBTASKS)))
    found += [EnvInfo("scene-orders-v0", "orders", 40, 5, 300, orders, "scene-v0", ("completion",))]
    boards = (("3x3", 55, 500), ("4x4", 83, 500), ("4x5", 99, 1000), ("4x6", 115, 1000))
    found += [EnvInfo(f"puzzle-{board}-v0", "puzzle", dim, 5, limit) for board, dim, limit in boards]
    found += [EnvInfo("FetchReach-v4", "fetch", 10, 4, 50), EnvInfo("FetchPush-v4", "fetch", 25, 4, 50)]
    found += [EnvInfo("metaworld-tracking-v0", "metaworld", 11, 4, 150, _numbered(" ".join(METAWORLD_TASKS)))]
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
    found["scene-told-v0"] = DataInfo("scene-told-v0", ENVIRONMENTS["scene-told-v0"], "told", 1000, 500, 1000, True)
    found["scene-orders-v0"] = DataInfo(
        "scene-orders-v0", ENVIRONMENTS["scene-orders-v0"], "orders", 240, 200, 240, True
    )
    tracked = ENVIRONMENTS["metaworld-tracking-v0"]
    for stem, good in (("metaworld-experts-v0", 1.0), ("metaworld-corrupted-v0", 0.5)):
        found[stem] = DataInfo(stem, tracked, "expert" if good == 1 else "mixed", 240, 120, 240, True, good)
    for place, name in FETCH.items():
        for kind, experts in SHARES.items():
            stem = f"{place}-{kind}-v0"
            found[stem] = DataInfo(stem, ENVIRONMENTS[name], kind, 2000, 50, 2000, True, experts)
    return found


SCENE_INSTRUCTIONS = (
    "open the drawer",
    "close the drawer",
    "open the window",
    "close the window",
    "press the left button",
    "press the right button",
    "put the block into the drawer",
    "move the block to another place on the table",
)
"""What is pursued in `scene-told-v0`, by the number in its column `instructions`; left and right as the robot sees it.

The right button locks and unlocks the drawer, the left one the window.
"""
SCENE_SUBTASKS = ("drawer", "window", "left", "right")
"""What is done in each of the 24 orders of `scene-orders-v0`: drawer and window are opened, the buttons pressed."""
HOME_MADE = ("fetch", "told", "orders", "metaworld")
"""Families of environments and data sets that nobody else has published."""
METAWORLD_TASKS = ("reach", "push", "drawer-open", "button-press", "pick-place", "window-open")
"""Tasks of metaworld whose experts are in the sets and the tracking environment, in the order of their numbers."""
FETCH = {"fetchreach": "FetchReach-v4", "fetchpush": "FetchPush-v4"}
SHARES = {"random": 0.0, "mixed": 0.1, "expert": 1.0}
"""Expert's share in the Fetch sets with a name of their own."""
_MIXED = re.compile(r"(\w+)-mixed(\d{1,3}|\d{1,2}\.\d{1,4})-v0")
ENVIRONMENTS = _environments()
DATASETS = _datasets()


def parse(name: str) -> DataInfo:
    """Facts of a data set, by its name or `NAME@EPISODES`. UsageError names the nearest known name."""
    base, mark, count = name.partition("@")
    info = DATASETS.get(base) or _mixed(base)
    if info is None:
        raise unknown("data set", base, DATASETS)
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


def with_experts(name: str, share: float) -> str:
    """Name of the Fetch set like `name` (`fetchpush-mixed-v0`, or as long `@EPISODES`) with this share of experts."""
    base, mark, count = name.partition("@")
    place = base.partition("-")[0]
    if place not in FETCH or parse(base).published:
        raise UsageError(f"{base} has no share of experts; valid: {', '.join(f'{place}-mixed-v0' for place in FETCH)}")
    if not 0 <= share <= 1:
        raise UsageError(f"{base}: a share of {share:g} experts was asked for; valid: 0 to 1")
    percent = round(100 * share, 4)
    named = {100 * value: kind for kind, value in SHARES.items()}
    return f"{place}-{named.get(percent, f'mixed{percent:g}')}-v0{mark}{count}"


def _mixed(base: str) -> DataInfo | None:
    """The Fetch set whose name states the expert's share in per cent; None if `base` is not the name of one."""
    match = _MIXED.fullmatch(base)
    if match is None or match[1] not in FETCH or float(match[2]) > 100:
        return None
    share = round(float(match[2]) / 100, 6)
    name = with_experts(f"{match[1]}-mixed-v0", share)
    return DATASETS.get(name) or replace(DATASETS[f"{match[1]}-mixed-v0"], name=name, experts=share)


def environment(name: str) -> EnvInfo:
    """Facts of an environment, by its own name or that of a data set collected in it."""
    if name in ENVIRONMENTS:
        return ENVIRONMENTS[name]
    base = name.partition("@")[0]
    if base in DATASETS or _mixed(base) is not None:
        return parse(name).env
    raise unknown("environment", name, [*ENVIRONMENTS, *DATASETS])


def cannot_make(info: DataInfo) -> str:
    """What to tell someone who wants a data set that is not stored and cannot be regenerated."""
    return f"data set '{info.name}' needs a trained expert to make; with internet: echelon data fetch {info.name}"
