"""Collecting cube, scene and puzzle data: scripted oracles that pursue one random target after another.

Recipe (OGBench, arXiv 2410.20092, data set types `play` and `noisy`; the oracles are those of its package):
- a new random target whenever the current oracle says that it is done (reached, or out of time);
- play: the open-loop oracle follows a plan of key-frames with smoothed noise on the plan;
- noisy: the closed-loop oracle, its action disturbed by N(0, (xi [1, 1, 1, 3, 10])^2) with one xi ~ U(0, 0.1) an
  episode, and replaced by a uniform one with probability 0.1 (puzzle: 0.2);
- cubes are stacked with a probability drawn for each episode; a scene episode in which the block leaves the visible
  area other than into the drawer is thrown away and drawn again.
The first action after a change of target is chosen from what the oracle saw of the previous target, as in the original.
A row is (observation, action, last row?, qpos and qvel before the step, and the buttons' states where there are any).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from echelon.envs.catalog import DataInfo
from echelon.envs.simulators import build

RECIPE = {"name": "ogbench-manipulation", "version": 1}
PLAN = {"noise": 0.1, "noise_smoothing": 0.5}
MARKOV = {"min_norm": 0.4}
NOISE_LEVEL = 0.1
NOISE_SHAPE = np.array([1.0, 1.0, 1.0, 3.0, 10.0])
STACKING = {"single": (0.0, 0.0), "double": (0.0, 0.25), "triple": (0.05, 0.35), "quadruple": (0.1, 0.5)}
OTHER_STACKING = (0.5, 0.5)
SCENES = ("scene", "told")
BLOCK_XYZ = slice(14, 17)  # in the scene's qpos: behind 6 arm and 8 gripper joints


class ManipulationCollector:
    """Collects episodes of one manipulation data set; each is a function of (seed, episode number) alone."""

    def __init__(self, info: DataInfo):
        self.info = info
        self.family = info.env.family
        self.noisy = info.kind == "noisy"
        self.random_rate = (0.2 if self.family == "puzzle" else 0.1) if self.noisy else 0.0
        self.stacking = STACKING.get(info.name.split("-")[1], OTHER_STACKING)
        self.env = build(info.env, collecting=True)
        self.env.reset(seed=0)
        self.oracles = oracles_of(self.env, self.family, self.noisy)

    def close(self) -> None:
        """Release the simulator."""
        self.env.close()

    def episode(self, seed: int, index: int) -> dict[str, np.ndarray]:
        """The rows of episode `index`: float32 observations, actions, qpos, qvel, bool terminals, int64 button_states.

        Seeds NumPy's global generator, from which the oracles draw.
        """
        attempt = 0
        while True:
            columns = self._attempt(np.random.default_rng([seed, index, attempt]))
            if self.family not in SCENES or visible(columns["qpos"][:, BLOCK_XYZ]):
                return columns
            attempt += 1

    def begin(self, seed: int) -> tuple[np.ndarray, dict[str, Any]]:
        """Reset the simulator, with a random target: what it shows and tells."""
        return self.env.reset(seed=seed)

    def retarget(self, stacking: float) -> tuple[np.ndarray, dict[str, Any]]:
        """Draw the next target: what the simulator shows and tells now."""
        return self.env.set_new_target(p_stack=stacking)

    def pursued(self, facts: dict[str, Any]) -> dict[str, int]:
        """What is noted, by column, of the rows in which the target of `facts` is pursued: nothing here."""
        return {}

    def _attempt(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        np.random.seed(rng.integers(2**32, dtype=np.uint32))
        observation, info = self.begin(int(rng.integers(2**31)))
        stacking = rng.uniform(*self.stacking)
        spread = rng.uniform(0.0, NOISE_LEVEL) * NOISE_SHAPE if self.noisy else np.zeros(5)
        rows = self.info.length + 1
        noise = rng.standard_normal((rows, 5)) * spread
        random = rng.random(rows) < self.random_rate
        oracle = self.oracles[info["privileged/target_task"]]
        oracle.reset(observation, info)
        record: dict[str, list[np.ndarray]] = {name: [] for name in ("observations", "actions", "qpos", "qvel")}
        buttons: list[np.ndarray] = []
        pursued = [self.pursued(info)]
        for t in range(rows):
            action = rng.uniform(-1.0, 1.0, 5) if random[t] else oracle.select_action(observation, info) + noise[t]
            action = np.clip(action, -1.0, 1.0)
            record["observations"].append(observation)
            record["actions"].append(action)
            observation, _, _, _, info = self.env.step(action)
            record["qpos"].append(info["prev_qpos"])
            record["qvel"].append(info["prev_qvel"])
            if "prev_button_states" in info:
                buttons.append(info["prev_button_states"])
            pursued.append(pursued[-1])
            if oracle.done:
                seen, facts = self.retarget(stacking)
                pursued[-1] = self.pursued(facts)
                oracle = self.oracles[facts["privileged/target_task"]]
                oracle.reset(seen, facts)  # `info` stays that of the previous target for one more action
        columns = {name: np.array(values, np.float32) for name, values in record.items()}
        if buttons:
            columns["button_states"] = np.array(buttons, np.int64)
        columns |= {name: np.array([row[name] for row in pursued[:rows]], np.int64) for name in pursued[0]}
        columns["terminals"] = np.arange(rows) == rows - 1
        return columns


def visible(block: np.ndarray) -> bool:
    """Whether the scene's block [T, 3] (metres) stays in view: not too far right, and at the far left in the drawer."""
    y, z = block[:, 1], block[:, 2]
    lost = (y >= 0.29) | ((y <= -0.3) & ((z < 0.06) | (z > 0.08)))
    return not lost.any()


def oracles_of(env: Any, family: str, noisy: bool) -> dict[str, Any]:
    """The package's scripted oracles for `env`, by what they pursue; closed-loop ones for `noisy` data."""
    if noisy:
        from ogbench.manipspace.oracles.markov import button_markov, cube_markov, drawer_markov, window_markov

        makers = {
            "cube": cube_markov.CubeMarkovOracle,
            "button": button_markov.ButtonMarkovOracle,
            "drawer": drawer_markov.DrawerMarkovOracle,
            "window": window_markov.WindowMarkovOracle,
        }
    else:
        from ogbench.manipspace.oracles.plan import button_plan, cube_plan, drawer_plan, window_plan

        makers = {
            "cube": cube_plan.CubePlanOracle,
            "button": button_plan.ButtonPlanOracle,
            "drawer": drawer_plan.DrawerPlanOracle,
            "window": window_plan.WindowPlanOracle,
        }
    settings = MARKOV if noisy else PLAN
    if family == "puzzle":
        return {"button": makers["button"](env=env, gripper_always_closed=True, **settings)}
    targets = ("cube",) if family == "cube" else tuple(makers)
    return {target: makers[target](env=env, **settings) for target in targets}
