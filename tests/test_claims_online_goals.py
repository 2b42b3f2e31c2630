"""What HIRO and HAC claim against a flat policy with hindsight: equal steps, equal updates, recipes that build."""

from __future__ import annotations

import json
from typing import Any

import pytest

pytest.importorskip("gymnasium_robotics")

from echelon.systems import index, launch
from echelon.systems.online import hac, hiro
from echelon.systems.online.recipes import SIZES
from echelon.training.agent import build_agent
from echelon.training.config import from_json, to_json
from echelon.training.online.agent import OnlineAgent
from echelon.training.online.worlds import world_spaces

SAME = ("env", "slots", "ticks", "updates", "limit", "random_steps", "gradient_ratio", "eval_every", "eval_episodes")


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("module", [hiro, hac])
def test_arms_have_the_same_budget(module: Any, full: bool) -> None:
    (claim,) = module.claims(full)
    assert claim.baseline is not None and claim.seeds == (0, 1, 2)
    ours, flat = (score.arm.config(3) for score in claim.scores)
    assert (ours.system, flat.system) == (module.__name__.rsplit(".", 1)[1], "sac-her")
    if not full:
        assert {name: getattr(ours, name) for name in SAME} == {name: getattr(flat, name) for name in SAME}
    assert ours.env.partition("_")[0] == ("AntMaze" if full else "PointMaze")
    assert ours.steps * ours.updates == flat.steps * flat.updates and ours.gradient_ratio == flat.gradient_ratio
    assert (ours.seed, flat.seed) == (3, 3)


@pytest.mark.parametrize("slug", ["sac-her", "hiro", "hac"])
def test_defaults_build(slug: str) -> None:
    system = index.load(slug)
    assert issubclass(system, OnlineAgent)
    config = system.Config()
    assert build_agent(system, config, world_spaces(config.env)).updates()


@pytest.mark.parametrize("slug", ["sac-her", "hiro", "hac"])
def test_recipes_build(slug: str) -> None:
    spaces = world_spaces("PointMaze_UMaze-v3")
    for size in SIZES:
        config = launch.recipe(slug, "PointMaze_UMaze-v3", size)
        document = json.loads(json.dumps(to_json(config)))
        assert from_json(type(config), document["config"]) == config
        system = index.load(slug)
        assert issubclass(system, OnlineAgent)
        names = [update.name for update in build_agent(system, config, spaces).updates()]
        assert len(names) == len(set(names)) >= 2
