"""Ask a trained agent what it thinks: value fields over a maze, values along a path, the subgoals it would choose."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from echelon.data.store import Store
from echelon.envs.maze import MazeMap
from echelon.errors import CheckpointError, MissingExtra, UsageError
from echelon.evidence.view.gather import store_name
from echelon.evidence.view.mazes import field_mask, field_points
from echelon.evidence.view.runs import Episode, Group, Run
from echelon.evidence.view.timeline import Strings, Timeline
from echelon.systems.launch import load_agent
from echelon.systems.offline.order import expert_order
from echelon.systems.offline.recipes import environment_settings
from echelon.training.agent import Agent

SUBGOALS_PER_EPISODE = 24
CANDIDATES = 500
TOGETHER = 50
"""Ticks whose subgoals are looked for at once."""
WORK = 20 * 10**9
"""Products that looking for the subgoals of one episode may take, about, where its levels are shown."""


def probe(group: Group) -> None:
    """Add value fields, values along the recorded paths and subgoals to every run of `group` that has a checkpoint.

    What cannot be had is noted in the run's `missing`: no checkpoint, or no data set here to take states from.
    """
    if group.maze is None:
        return
    for run in group.runs:
        states = data_states(run)
        try:
            agent = load_agent(run.path)
        except (CheckpointError, UsageError) as error:
            run.missing["fields"] = run.missing["subgoals"] = f"no trained networks to ask: {error}"
            continue
        with torch.no_grad():
            _fields(agent, run, group.maze, states)
            _along(agent, run, states)
        if run.fields:
            _order(agent, run)


def data_states(run: Run) -> Tensor | None:
    """Evenly spaced states [C, O] of the data set, or None when it is not on this machine."""
    name = store_name(run)
    if name is None:
        return None
    rows = Store.open(name).columns["observations"]
    chosen = np.linspace(0, len(rows) - 1, 20 * CANDIDATES).astype(int)
    return torch.from_numpy(np.asarray(rows[chosen], dtype=np.float32))


def _fields(agent: Agent, run: Run, maze: MazeMap, states: Tensor | None) -> None:
    mask = field_mask(maze)
    observation = _states_at(field_points(maze)[mask], run, states)
    if observation is None:
        run.missing["fields"] = "the data set is not on this machine, so there are no full states to place in the maze"
        return
    for task in maze.tasks:
        goal = _states_at(np.array([task.goal_xy]), run, states)
        if goal is None:
            continue
        found = agent.value_functions(observation, goal.expand_as(observation))
        for name, value in found.items():
            image = np.full(mask.shape, np.nan)
            image[mask] = value.double().numpy()
            run.fields.setdefault(task.name, {})[name] = image
    if not run.fields:
        run.missing["fields"] = "this system learns no goal-conditioned value"


def _states_at(points: np.ndarray, run: Run, states: Tensor | None) -> Tensor | None:
    """A state [P, O] at each position [P, 2]: the position if that is the whole state, else the nearest data state."""
    wanted = torch.from_numpy(points.astype(np.float32))
    size = run.episodes[0].observation.shape[1] if run.episodes else (states.shape[1] if states is not None else 2)
    if size == 2:
        return wanted
    if states is None:
        return None
    return states[torch.cdist(wanted, states[:, :2]).argmin(1)]


def _order(agent: Agent, run: Run) -> None:
    k = run.config.get("subgoal_steps") or environment_settings(run.system, run.env)["subgoal_steps"]
    try:
        found = expert_order(agent, run.env, int(k))
    except (UsageError, MissingExtra) as error:
        run.missing["order"] = f"not measured: {error}"
        return
    run.order = {name: float(np.nanmean(s)) for name, s in found.items() if np.isfinite(s).any()}


def _along(agent: Agent, run: Run, states: Tensor | None) -> None:
    for episode in run.episodes:
        observation, goal = torch.from_numpy(episode.observation), torch.from_numpy(episode.goal)
        values = agent.value_functions(observation, goal)
        episode.values = {name: value.double().numpy() for name, value in values.items()}
        if states is not None and "subgoals" not in run.missing:
            _subgoals(agent, run, episode, observation, goal, states)
    if states is None:
        run.missing["subgoals"] = "the data set is not on this machine, so a subgoal has no nearest state to show"


def _subgoals(agent: Agent, run: Run, episode: Episode, observation: Tensor, goal: Tensor, states: Tensor) -> None:
    candidates = states[:: max(len(states) // CANDIDATES, 1)]
    ticks = _asked(agent, episode, len(observation))
    parts = [agent.subgoals(observation[t], goal[t], candidates) for t in ticks.split(TOGETHER)]
    found = [part for part in parts if part is not None]
    if not found:
        run.missing["subgoals"] = "a flat policy: it chooses no subgoals"
        return
    chosen = torch.cat(found)[:, :2].double()
    every = torch.cat([ticks[:, None].double(), chosen], dim=1).numpy()
    shown = np.unique(np.linspace(0, len(every) - 1, SUBGOALS_PER_EPISODE).round().astype(int))
    episode.subgoals = every[shown]
    if episode.timeline is not None:
        _named(episode.timeline, run.strings, every)


def _asked(agent: Agent, episode: Episode, length: int) -> Tensor:
    """int64 [M]: ticks at which the top level is asked for its subgoal: where it decides, as far as that is affordable.

    Finding a subgoal takes a pass of the networks for each of the candidates.
    """
    size = sum(p.numel() for p in agent.parameters())
    most = SUBGOALS_PER_EPISODE if episode.timeline is None else max(WORK // (size * CANDIDATES), SUBGOALS_PER_EPISODE)
    decided = torch.arange(length) if episode.timeline is None else torch.from_numpy(_begins(episode.timeline)).long()
    return decided[torch.linspace(0, len(decided) - 1, min(most, len(decided))).round().long().unique()]


def _begins(one: Timeline) -> np.ndarray:
    """Ticks at which the top level of an episode decides."""
    top = one.rows[0].level
    return np.unique(one.start[[one.rows[r].level == top for r in one.row]])


def _named(one: Timeline, strings: Strings, subgoals: np.ndarray) -> None:
    """Put the subgoals [M, 3] of an episode (tick, x, y) into its timeline: beside the path, and in words."""
    one.subgoals = subgoals
    place = {tick: (x, y) for tick, x, y in subgoals.tolist()}
    for box, row in enumerate(one.row):
        if one.rows[row].level == one.rows[0].level and float(one.start[box]) in place:
            x, y = place[float(one.start[box])]
            numbers = strings.all[one.text[box]]
            one.text[box] = strings(f"to ({x:.3g}, {y:.3g}), the nearest state of the data; as numbers: {numbers}")
