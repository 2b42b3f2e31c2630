"""Act2Goal: offsets, losses, gradients and plans against a derivation; goals nearer than frames; stages; play."""

from __future__ import annotations

import dataclasses
import signal
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import offline_act2goal as reference
from small_runs import TinyWorld, assert_same, outcome, small, synthetic_store, tiny_world
from test_offline_losses import assert_slope
from torch import Tensor

from echelon.data.windows import Windows
from echelon.errors import UsageError
from echelon.hierarchy.runner import Runner
from echelon.hierarchy.world import Reset, from_gym
from echelon.nets.flow import flow_loss, flow_point, flow_sample
from echelon.nets.samplers import unit_noise
from echelon.spans import Spans
from echelon.systems import index
from echelon.systems.offline import act2goal
from echelon.systems.offline.recipes import recipe
from echelon.training import run
from echelon.training.agent import DataSpec, Learner
from echelon.training.runtime import choose

B, OBS, ACT = 10, 3, 2
LENGTHS = [14, 1, 5, 9]
SMALL = {"horizon": 9, "proximal": 4, "frame_stride": 2, "distal": 2, "play": 3, "flow_steps": 3, "heads": 2,
         "world_dim": 8, "world_hidden": (12, 9), "expert_dim": 4, "expert_hidden": (6, 5)}  # fmt: skip


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def agent_of(**changes) -> act2goal.Act2Goal:
    torch.manual_seed(3)
    agent = act2goal.Act2Goal(act2goal.Act2GoalConfig(**SMALL | changes), DataSpec(OBS, ACT)).double()
    with torch.no_grad():  # away from special points
        for p in agent.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return agent


def drawn(agent: act2goal.Act2Goal, seed: int = 5) -> tuple[dict[str, Tensor], list[dict]]:
    """A batch of an agent's windows from four episodes, and of each row what follows in its episode."""
    episodes = Spans.from_lengths(LENGTHS)
    row = torch.arange(episodes.size) + episodes.ids
    states, actions = 2 + draw(seed, int(row[-1]) + 2, OBS), draw(seed + 1, int(row[-1]) + 2, ACT).tanh()
    (spec,) = agent.config.goals().values()
    windows = Windows(spec, OBS, row, episodes)
    u = torch.rand(3, B, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    u[0, :2] = torch.tensor([14.5, 13.5]) / episodes.size  # an episode of one transition; the last one of another
    u[:2, 2:5] = torch.tensor([[0.5, 1.5, 0.5], [0.99, 0.99, 0.5]]) / torch.tensor([[episodes.size], [1]])  # far goals
    found = windows.draw(u)
    rows = []
    for first, goal, final in zip(found.first.tolist(), found.goal.tolist(), found.final.tolist(), strict=True):
        part = row[first : final + 1]
        rows.append(
            {"states": states[part], "actions": actions[part], "goal": states[row[goal]], "until": goal - first}
        )
    return windows.gather(found, states, actions, slice(None)), rows


def weights(agent: act2goal.Act2Goal) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    world, expert = (
        {name: p.detach().numpy().copy() for name, p in net.named_parameters()} for net in (agent.world, agent.expert)
    )
    return world, expert


def reference_losses(agent: act2goal.Act2Goal, rows: list[dict], prepared: dict[str, Tensor]) -> tuple[float, float]:
    """Scaled by the moments that the agent has seen, which tests of these modules check."""
    scaled = []
    for b, row in enumerate(rows):
        states, goal, until = row["states"], row["goal"], row["until"]
        if agent.config.goal_law == "next":
            until = min(1, len(states) - 1)
            goal = states[until]
        scaled.append(
            {"states": agent.states(states).numpy(), "actions": agent.actions(row["actions"]).numpy(),
             "goal": agent.states(goal).numpy(), "until": until}
            | {f"{x}_noise": prepared[f"{x}_noise"][b].numpy() for x in ("frames", "steps")}
            | {f"{x}_tau": float(prepared[f"{x}_tau"][b]) for x in ("frames", "steps")}
        )  # fmt: skip
    return reference.losses(weights(agent), dataclasses.asdict(agent.config), scaled)


# --- offsets


@pytest.mark.parametrize(
    ("shape", "law", "expected"),
    [
        ((100, 20, 5), "printed", (50, 69, 81, 91, 100)),
        ((100, 10, 4), "printed", (48, 71, 87, 100)),
        ((540, 54, 9), "printed", (200, 285, 346, 393, 432, 464, 492, 517, 540)),
        ((100, 20, 5), "growing", (26, 36, 50, 71, 100)),
        ((100, 20, 5), "even", (36, 52, 68, 84, 100)),
        ((57, 2, 2), "printed", (36, 57)),  # in double precision the formula's last is 56
        ((64, 4, 7), "printed", (24, 35, 44, 50, 55, 60, 64)),  # a third and two thirds of 60 are whole steps
        ((100, 20, 1), "growing", (100,)),
        ((100, 20, 0), "printed", ()),
    ],
)
def test_offsets_by_hand(shape, law, expected):
    assert act2goal.distal_offsets(*shape, law) == expected


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.integers(1, 60), st.integers(0, 12), st.sampled_from(["printed", "growing", "even"]))
def test_offsets_equal_the_reference(beyond, proximal, count, law):
    found = act2goal.distal_offsets(proximal + beyond, proximal, count, law)
    expected = reference.distal(proximal + beyond, proximal, count, law)
    assert list(found) == expected


def test_gaps_shrink_as_printed_and_grow_in_the_mirror():
    for law, sign in (("printed", -1), ("growing", 1)):
        gaps = np.diff([20, *act2goal.distal_offsets(200, 20, 8, law)])
        assert (sign * np.diff(gaps) > 0).sum() >= 6 and sign * (gaps[-1] - gaps[0]) > 0


def test_frames_and_steps_of_the_paper():
    config = act2goal.Act2GoalConfig(horizon=540)
    assert config.frames() == (6, 12, 18, 24, 30, 36, 42, 48, 54, 200, 285, 346, 393, 432, 464, 492, 517, 540)
    assert config.steps() == (*range(54), 200, 285, 346, 393, 432, 464, 492, 517, 540)
    assert config.goals()["chunk"].places() == (*range(55), *config.sparse())
    assert act2goal.Act2GoalConfig(distal=0).frames() == tuple(range(6, 55, 6))


# --- learning


def test_flow_matching_by_hand():
    noise, data, tau = (torch.tensor([x], dtype=torch.float64) for x in (-0.5, 1.5, 0.25))
    assert float(flow_point(noise, data, tau)) == 0.0
    assert float(flow_loss(lambda x, t: torch.full_like(x, 2.0), data, tau, noise)) == 0.0
    assert float(flow_sample(lambda x, t: torch.full_like(x, 2.0), noise, 4)) == 1.5


def test_stages_by_hand():
    world, actions = torch.tensor(0.4, dtype=torch.float64), torch.tensor(0.3, dtype=torch.float64)
    assert float(act2goal.stage_loss(world, actions, True, 0.1)) == pytest.approx(0.43, abs=1e-15)
    assert float(act2goal.stage_loss(world, actions, False, 0.1)) == pytest.approx(0.3, abs=1e-15)


@pytest.mark.parametrize(
    "changes", [{}, {"distal": 0}, {"offsets": "growing"}, {"goal_law": "next"}, {"frame_stride": 1, "distal": 1}]
)
def test_losses_equal_the_reference(changes):
    agent = agent_of(**changes)
    batch, rows = drawn(agent)
    assert {row["until"] for row in rows} >= {0} and max(row["until"] for row in rows) > 4
    prepared = agent.prepare(batch)
    world, actions = reference_losses(agent, rows, prepared)
    loss, metrics = agent.loss(prepared)
    assert float(metrics["flow/frames"]) == pytest.approx(world, rel=1e-9)
    assert float(metrics["flow/actions"]) == pytest.approx(actions, rel=1e-9)
    assert float(loss.detach()) == pytest.approx(world + 0.1 * actions, rel=1e-9)


@pytest.mark.parametrize("joint", [True, False])
def test_gradients_equal_finite_differences_of_the_reference(joint):
    """In the second stage, too, they reach the world model through what the actions attend to."""
    agent = agent_of(joint_updates=int(joint))
    batch, rows = drawn(agent)
    prepared = agent.prepare(batch)
    agent.loss(prepared)[0].backward()

    def total() -> float:
        world, actions = reference_losses(agent, rows, prepared)
        return world + 0.1 * actions if joint else actions

    moved = [p for p in agent.parameters() if p.grad is not None]
    still = {name for name, p in agent.named_parameters() if p.grad is None}
    head = {"world.head.weight", "world.head.bias", "world.body.norm.weight", "world.body.norm.bias"}
    assert still == (set() if joint else head)
    assert_slope(moved, total)


def test_the_second_stage_begins_after_its_updates_and_leaves_the_frames_head_alone():
    agent = agent_of(joint_updates=2)
    learner, batch = Learner(agent, choose("cpu", "float32", 1)), drawn(agent)[0]
    heads = [agent.world.head.weight.detach().clone()]
    for step in (1, 2, 3, 4):
        before = agent.world.state.weight.detach().clone()
        metrics = learner.step(step, batch)
        heads.append(agent.world.head.weight.detach().clone())
        assert not torch.equal(before, agent.world.state.weight)
        expected = metrics["flow/actions"] * (0.1 if step <= 2 else 1) + metrics["flow/frames"] * (step <= 2)
        torch.testing.assert_close(metrics["loss/flow"], expected)
    assert not torch.equal(heads[1], heads[2])
    assert torch.equal(heads[2], heads[4])


@pytest.mark.parametrize("joint", [0, 10])
def test_a_run_that_is_stopped_in_the_second_stage_ends_like_one_that_is_not(joint, tmp_path, monkeypatch):
    found = small(act2goal.Act2Goal, **SMALL | {"joint_updates": joint, "updates": 20})
    with tiny_world(synthetic_store(tmp_path / "walks")):
        train = partial(run.train, act2goal.Act2Goal, found, device="cpu", threads=1, say=lambda line: None)
        train(tmp_path / "whole")
        step = Learner.step

        def stopped(learner, number, batch):
            if number == 15:
                signal.raise_signal(signal.SIGINT)
            return step(learner, number, batch)

        with monkeypatch.context() as patch:
            patch.setattr(Learner, "step", stopped)
            assert train(tmp_path / "stopped") is None
        train(tmp_path / "stopped")
    assert_same(outcome(tmp_path / "whole"), outcome(tmp_path / "stopped"))


def test_frames_beyond_the_goal_are_the_goal_and_the_first_of_them_counts():
    """By hand: frames at 2, 4, 6, 9 and actions at 0 to 3, 6, 9."""
    agent = agent_of(offsets="even")
    assert agent.config.frames() == (2, 4, 6, 9)
    batch = {
        "observations": torch.arange(7.0)[None, :, None].expand(5, 7, OBS).double(),
        "actions": draw(1, 5, 7, ACT), "real": torch.ones(5, 7, dtype=torch.bool),
        "goals": torch.full((5, 1, OBS), 50.0, dtype=torch.float64), "kept": torch.ones(5, 1, 1, dtype=torch.bool),
        "until": torch.tensor([0, 1, 4, 6, 30]),
    }  # fmt: skip
    made = agent.prepare(batch)
    assert made["frames_count"].int().tolist() == [[1, 0, 0, 0], [1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]
    assert made["steps_count"].sum(1).tolist() == [1, 1, 4, 4, 6]
    goal = made["goal"][:, None].expand(-1, 4, -1)
    same = (made["frames"] == goal).all(-1).int().tolist()
    assert same == [[1, 1, 1, 1], [1, 1, 1, 1], [0, 1, 1, 1], [0, 0, 1, 1], [0, 0, 0, 0]]


def test_the_next_states_are_goals_where_the_law_says_so():
    """(o_0, a_0, o_1), (o_1, a_1, o_2) -> goals o_1, o_2."""
    agent = agent_of(goal_law="next")
    o = draw(2, 8, OBS)
    batch = {
        "observations": torch.stack([o[:7], o[1:]]), "actions": draw(3, 2, 7, ACT),
        "real": torch.ones(2, 7, dtype=torch.bool), "goals": draw(4, 2, 1, OBS),
        "kept": torch.ones(2, 1, 1, dtype=torch.bool), "until": torch.tensor([5, 5]),
    }  # fmt: skip
    made = agent.prepare(batch)
    torch.testing.assert_close(made["goal"], agent.states(o[1:3]))
    assert made["steps_count"].sum(1).tolist() == [1, 1]


def test_batches_that_do_not_fit_are_refused():
    agent = agent_of()
    batch = drawn(agent)[0]
    with pytest.raises(ValueError, match=r"sizes differ: .*'real': \(10, 3\)"):
        agent.prepare(batch | {"real": batch["real"][:, :3]})


# --- acting


@pytest.mark.parametrize("changes", [{}, {"distal": 0}, {"flow_steps": 1}])
def test_plans_equal_the_reference(changes):
    agent = agent_of(**changes)
    c = agent.config
    agent.states.update(5 * draw(20, 50, OBS))
    agent.actions.update(0.6 * draw(21, 50, ACT))
    s, g = draw(1, 4, OBS), draw(2, 4, OBS)
    frames, actions = agent.plan(s, g, unit_noise(torch.Generator().manual_seed(0), shared=True))
    assert actions.shape == (4, c.proximal, ACT)
    noise = unit_noise(torch.Generator().manual_seed(0), shared=True)
    sizes = ((len(c.frames()), OBS), (len(c.steps()), ACT))
    first, second = (noise(torch.zeros(1, *size, dtype=torch.float64))[0].numpy() for size in sizes)
    for b in range(4):
        scaled = agent.states(s[b]).numpy(), agent.states(g[b]).numpy()
        expected = reference.plan(weights(agent), dataclasses.asdict(c), *scaled, (first, second))
        torch.testing.assert_close(frames[b], torch.tensor(expected[0]), rtol=1e-8, atol=1e-10)
        chunk = torch.tensor(expected[1][: c.proximal].clip(-1.1, 1.1))
        torch.testing.assert_close(actions[b], agent.actions.inverse(chunk).clamp(-1, 1), rtol=1e-8, atol=1e-10)


def test_in_play_dense_actions_alone_are_played_and_replanned_after_their_span():
    agent = act2goal.Act2Goal(act2goal.Act2GoalConfig(**SMALL), DataSpec(3, 2))
    chunks: dict[tuple[float, ...], Tensor] = {}
    plan = agent.plan

    def recorded(s: Tensor, g: Tensor, noise) -> tuple[Tensor, Tensor]:
        frames, actions = plan(s, g, noise)
        chunks.update({tuple(row.tolist()): chunk for row, chunk in zip(s, actions, strict=True)})
        return frames, actions

    agent.plan = recorded  # type: ignore[method-assign]
    resets = [Reset(seed=k, options={"task_id": 1 + k % 5}) for k in range(6)]
    rollout = Runner(agent.levels(), from_gym([TinyWorld(), TinyWorld()])).episodes(resets)
    spans = rollout.spans["stream"]
    assert int(spans.lengths.max()) > 3, "a chunk ends within an episode"
    for first, length in zip(spans.starts.tolist(), spans.lengths.tolist(), strict=True):
        for t in range(length):
            chunk = chunks[tuple(rollout.observation["observation"][first + t - t % 3].tolist())]
            assert chunk.shape == (4, 2)
            torch.testing.assert_close(rollout.executed[first + t], chunk[t % 3], rtol=0, atol=1e-6)


# --- settings


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"frame_stride": 3}, r"a divisor of proximal \(4\), got 3"),
        ({"play": 5}, r"proximal \(4\) or less, got 5"),
        ({"horizon": 5}, r"so far beyond proximal \(4\) that the distal \(2\) frames differ, got 5"),
        ({"heads": 3}, r"a divisor of world_dim \(8\), got 3"),
        ({"expert_hidden": (6,)}, r"as many sizes as world_hidden, \(12, 9\), got \(6,\)"),
        ({"distal": -1}, "0 or more, got -1"),
        ({"action_weight": 0.0}, "positive, got 0.0"),
        ({"offsets": "mirrored"}, "one of printed, growing, even, got mirrored"),
        ({"goal_law": "last"}, "one of later, next, got last"),
    ],
)
def test_wrong_settings_are_refused(change, what):
    with pytest.raises(UsageError, match=f"act2goal: {next(iter(change))} must be {what}"):
        act2goal.Act2GoalConfig(**SMALL | change)


def test_frames_that_would_coincide_are_refused_though_there_is_a_step_for_each():
    with pytest.raises(UsageError, match="horizon must be so far"):
        act2goal.Act2GoalConfig(**SMALL | {"horizon": 13, "distal": 9})


def test_recipes_and_claims():
    full, small = (
        recipe(act2goal.Act2GoalConfig, "pointmaze-large-navigate-v0", size) for size in ("published", "cpu")
    )
    assert (full.proximal, full.frame_stride, full.distal, full.play, full.action_weight) == (54, 6, 9, 50, 0.1)
    assert (small.horizon, small.proximal, small.distal, small.play) == (200, 20, 8, 10)
    assert 3 * small.joint_updates == 2 * small.updates and 3 * full.joint_updates == 2 * full.updates
    (claim,) = act2goal.claims()
    assert index.load("act2goal") is act2goal.Act2Goal
    method, baseline = claim.method.arm.config(4), claim.baseline.arm.config(4)
    assert method.seed == baseline.seed == 4 and dataclasses.replace(method, distal=0) == baseline
