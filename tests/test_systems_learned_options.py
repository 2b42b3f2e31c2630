"""DQN, Option-Critic and PPOC: published numbers, loops over steps, and runs that stop in the middle of an option."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from stopped_runs import assert_resumes
from test_online import Counting
from torch import Tensor, nn

from echelon.envs.spaces import Spaces
from echelon.errors import DataError, UsageError
from echelon.hierarchy.runner import Runner
from echelon.hierarchy.world import from_gym
from echelon.rollout import Begin, End, Rollout
from echelon.systems.online import option_critic, ppoc
from echelon.systems.online.dqn import DQN, DeepQ, QLevel
from echelon.systems.online.learned_options import OptionActors
from echelon.systems.online.option_critic import FRESH, OptionCritic
from echelon.systems.online.ppoc import PPOC, whitened
from echelon.systems.online.rooms import steps_after_move, steps_with_options
from echelon.training.agent import build_agent
from echelon.training.online.agent import OnlineAgent
from echelon.training.online.config import OnlineConfig
from echelon.training.online.play import Evaluator
from echelon.training.online.worlds import world_spaces

SPACES = Spaces({"observation": (1,)}, {}, 2)
VECTORS = Spaces({"observation": (1,)}, {}, None, (-1.0, -1.0), (1.0, 1.0))


class Table(nn.Module):
    """Row s of a table for the features [s]."""

    def __init__(self, *rows: list[float]):
        super().__init__()
        self.rows = nn.Parameter(torch.tensor(rows))

    def forward(self, features: Tensor) -> Tensor:
        return self.rows[features[..., 0].long()]


# ---- DQN


def q_parts(**changes: Any) -> DeepQ:
    torch.manual_seed(0)
    parts = DeepQ(3, (8,), 4, **changes).double()
    for p in parts.parameters():
        p.data = torch.randn_like(p)
    return parts


def q_rows(rows: int = 6) -> dict[str, Tensor]:
    torch.manual_seed(1)
    found = {name: torch.randn(rows, 3, dtype=torch.float64) for name in ("features", "next_features")}
    return found | {
        "action": torch.randint(4, (rows,)),
        "reward": torch.randn(rows, dtype=torch.float64),
        "discount": torch.tensor([0.99, 0.0, 0.729, 0.99, 0.5, 0.0], dtype=torch.float64),
    }


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("dueling", [False, True])
def test_q_learning_equals_a_loop(double: bool, dueling: bool) -> None:
    parts, rows = q_parts(double=double, dueling=dueling, largest_error=0.7), q_rows()
    loss, _ = parts.loss(rows)
    expected = 0.0
    for row in range(6):
        own, later = parts.q(rows["next_features"][row]), parts.target_q(rows["next_features"][row])
        after = later[own.argmax()] if double else later.max()
        y = rows["reward"][row] + rows["discount"][row] * after
        error = (parts.q(rows["features"][row])[rows["action"][row]] - y).abs().item()
        expected += (0.5 * error**2 if error < 0.7 else 0.7 * (error - 0.35)) / 6
    assert loss.item() == pytest.approx(expected, rel=1e-9)
    loss.backward()
    assert all(p.grad is None for p in parts.target_q.parameters())


def test_a_choice_of_three_steps_is_discounted_by_its_own_time() -> None:
    """Q = 1, rewards 1, 0, 2, gamma 0.9, max Q = 4: the target is 5.536, and half the way to it 3.268."""
    parts = DeepQ(1, (), 2)
    parts.q, parts.target_q = Table([1.0, 0.0], [4.0, 3.0]), Table([1.0, 0.0], [4.0, 3.0])
    row = {"next_features": torch.tensor([[1.0]]), "reward": torch.tensor([1 + 0.81 * 2])}
    y = parts.target(row | {"discount": torch.tensor([0.9**3])})
    assert y.item() == pytest.approx(5.536, abs=1e-6)
    assert 1 + 0.5 * (y.item() - 1) == pytest.approx(3.268, abs=1e-6)


def test_dueling_advantages_have_mean_zero() -> None:
    parts, rows = q_parts(dueling=True), q_rows()
    heads = parts.q.heads(rows["features"])
    q = parts.q(rows["features"])
    assert torch.allclose(q.mean(-1), heads[:, 0])
    assert torch.allclose(q[:, 1] - q[:, 3], heads[:, 2] - heads[:, 4])


def test_the_copy_moves_at_every_so_many_th_step() -> None:
    parts = q_parts(rate=0.25, copy_every=3)
    before = [p.clone() for p in parts.target_q.parameters()]
    for step in range(1, 4):
        parts.follow()
        for old, new, online in zip(before, parts.target_q.parameters(), parts.q.parameters(), strict=True):
            assert torch.allclose(new, old if step < 3 else 0.75 * old + 0.25 * online)


def test_exploration_takes_any_choice_with_its_probability() -> None:
    agent = DQN(DQN.Config(hidden=(), epsilon_start=1.0, epsilon_end=0.2, epsilon_steps=100), SPACES)
    agent.parts.q = Table([0.0, 1.0])
    level = agent.levels(explore=True)[0]
    level.generator = torch.Generator().manual_seed(0)
    seen, due = {"observation": torch.zeros(20_000, 1)}, torch.ones(20_000, dtype=torch.bool)
    for steps, share in ((0, 0.5), (50, 0.7), (100, 0.9), (500, 0.9)):
        agent.seen.fill_(steps)
        assert float(level.decide(seen, None, due).action.double().mean()) == pytest.approx(share, abs=0.02)
    assert bool((agent.levels(explore=False)[0].decide(seen, None, due).action == 1).all())


def test_a_command_is_part_of_what_is_valued() -> None:
    agent = DQN(DQN.Config(hidden=()), SPACES)
    parts = DeepQ(3, (), 2)
    level = QLevel(parts, agent.read, None)
    with torch.no_grad():
        parts.q.layers[0].weight.copy_(torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]))
    parent = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert level.decide({"observation": torch.zeros(2, 1)}, parent, torch.ones(2)).action.tolist() == [0, 1]


# ---- Option-Critic


def critic_agent(**changes: Any) -> OptionCritic:
    agent = OptionCritic(OptionCritic.Config(hidden=(), options=2, **changes), SPACES)
    agent.parts.q, agent.parts.target_q = Table([2.0, 3.0]), Table([1.0, 4.0])
    return agent


def beta(chance: float) -> nn.Module:
    class Constant(nn.Module):
        def forward(self, features: Tensor) -> Tensor:
            return torch.full((*features.shape[:-1], 2), chance)

    return Constant()


def step_of(end: End = End.OPEN) -> dict[str, Tensor]:
    columns = {
        "features": torch.zeros(1, 1),
        "next_features": torch.zeros(1, 1),
        "command": torch.tensor([0]),
        "action": torch.tensor([1]),
        "reward": torch.tensor([1.0]),
        "end": torch.tensor([int(end)]),
    }
    return columns | {FRESH + name: column for name, column in columns.items()}


def test_option_critic_s_published_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Q(s', .) = [1, 4], beta .25: y = 2.7325; Q(s, w) = 2; log pi = -.7, H = .6; then beta .4, Q = [2, 3]."""
    agent = critic_agent()
    agent.terminations = beta(0.25)  # type: ignore[assignment]
    batch = agent.prepare(step_of())
    assert batch["target"].item() == pytest.approx(2.7325, abs=1e-6)
    assert agent.critic_loss(batch)[0].item() == pytest.approx(0.268278, abs=1e-6)
    monkeypatch.setattr(agent.actors, "judged", lambda *_: (torch.tensor([-0.7]), torch.tensor([0.6])))
    assert agent.policy_loss(batch)[0].item() == pytest.approx(0.50675, abs=1e-6)
    agent.terminations = beta(0.4)  # type: ignore[assignment]
    assert agent.termination_loss(batch)[0].item() == pytest.approx(-0.396, abs=1e-6)
    agent = critic_agent(margin=0.02)
    agent.terminations = beta(0.4)  # type: ignore[assignment]
    assert agent.termination_loss(agent.prepare(step_of()))[0].item() == pytest.approx(-0.392, abs=1e-6)


def test_deliberation_costs_what_ending_is_worth() -> None:
    """U = 1.75, with a cost of .1 1.725; the termination's advantage is less by it too."""
    agent = critic_agent(deliberation_cost=0.1)
    agent.terminations = beta(0.25)  # type: ignore[assignment]
    batch = agent.prepare(step_of())
    assert batch["target"].item() == pytest.approx(1 + 0.99 * 1.725, abs=1e-6)
    assert batch["ending"].item() == pytest.approx(3 - 2 - 0.01 - 0.1, abs=1e-6)


def test_nothing_follows_a_terminal_state_but_a_truncated_one() -> None:
    agent = critic_agent()
    over, cut = agent.prepare(step_of(End.TERMINATED)), agent.prepare(step_of(End.TRUNCATED))
    assert over["target"].item() == 1 and over["ending"].item() == 0
    assert cut["target"].item() > 1 and cut["ending"].item() != 0


def test_each_step_improves_the_options_once() -> None:
    """The record's steps are parted among the gradient steps that are due; the values' rows come from replay."""
    config = OptionCritic.Config(
        hidden=(), options=2, slots=2, ticks=6, gradient_ratio=0.25, random_steps=0, batch_size=5
    )
    agent = OptionCritic(config, SPACES)
    runner = acting(agent)
    with torch.no_grad():
        for _ in range(2):
            rollout = runner.collect(6)
            batches = list(agent.learn(rollout))
            assert len(batches) == 3
            fresh = torch.cat([b[FRESH + "features"] for b in batches])[:, 0]
            assert sorted(fresh.tolist()) == sorted(rollout.observation["observation"][:, 0].tolist())
            assert all(len(b["features"]) == 5 for b in batches)
    options = rollout.decisions["option"]
    rows = agent.moves.add(rollout)
    assert torch.equal(rows["command"], options.action[rollout.decisions["action"].parent])


@pytest.mark.parametrize("spaces", [SPACES, VECTORS])
def test_each_row_acts_by_its_own_option(spaces: Spaces) -> None:
    torch.manual_seed(0)
    actors = OptionActors(spaces, 1, (4,), 3)
    for p in actors.parameters():
        p.data = torch.randn_like(p)
    features, option = torch.randn(9, 1), torch.tensor([0, 1, 2] * 3)
    action, log_prob = actors.sample(features, option, torch.Generator().manual_seed(0))
    again, entropy = actors.judged(features, option, action)
    assert torch.allclose(log_prob, again)
    for row in range(9):
        actor: Any = actors.actors[int(option[row])]
        parameters = actor(features[row])
        assert log_prob[row].item() == pytest.approx(actor.log_prob(parameters, action[row]).item(), abs=1e-6)
        assert entropy[row].item() == pytest.approx(actor.entropy(parameters).item(), abs=1e-6)
        assert torch.equal(actors.mode(features, option)[row], actor.mode(parameters))


# ---- PPOC


def acting(agent: OnlineAgent, *lengths: int) -> Runner:
    world = from_gym([Counting(length) for length in lengths or (7, 5)])
    return Runner(agent.levels(explore=True), world, generator=torch.Generator().manual_seed(0))


class Ends(nn.Module):
    """beta 1 in the states given, 0 in others."""

    def __init__(self, *states: int):
        super().__init__()
        self.states = states

    def forward(self, features: Tensor) -> Tensor:
        return (
            torch.isin(features[..., 0], torch.tensor(self.states)).float()[..., None].expand(*features.shape[:-1], 2)
        )


def ppoc_agent(ends: tuple[int, ...], values: Table, **changes: Any) -> PPOC:
    agent = PPOC(PPOC.Config(hidden=(), options=2, **changes), SPACES)
    agent.terminations.mlp = Ends(*ends)
    agent.terminations.forward = agent.terminations.mlp.forward  # type: ignore[method-assign]
    agent.critic = values
    return agent


def test_ppoc_s_published_advantages() -> None:
    """r = 1, 1, 1, V = .5, .4, .6, then .3; the option ends after the second step, at a cost of .2."""
    values = Table(*([v, v] for v in (0.5, 0.4, 0.6, 0.3)))
    agent = ppoc_agent((2,), values, deliberation_cost=0.2)
    with torch.no_grad():
        rollout = acting(agent, 9).collect(3)
        rollout.reward["reward"].fill_(1.0)
        batch = agent.credited(rollout)
    advantage = batch["target"] - values(batch["features"])[:, 0]
    assert advantage.tolist() == pytest.approx([2.447382, 1.649529, 0.697], abs=1e-5)
    assert batch["chosen"].tolist() == [True, False, True]
    assert batch["advantage"].tolist() == pytest.approx(
        ((advantage - advantage.mean()) / advantage.std(correction=0)).tolist(), abs=1e-5
    )


def naive_choices(rollout: Rollout) -> list[tuple[int, bool, int | None]]:
    """Of each step: the option that holds, whether it was chosen there, and the option that entered the state."""
    d, found = rollout.decisions["option"], []
    for item in range(rollout.size):
        row = next(r for r in range(len(d)) if d.start[r] <= item < d.stop[r])
        first = item == 0 or bool(rollout.stream[item] != rollout.stream[item - 1])
        chosen = bool(d.start[row] == item) and int(d.begin[row]) == Begin.DECIDED
        found.append((int(d.action[row]), chosen, None if first else found[-1][0]))
    return found


def test_choices_and_arrivals_across_records() -> None:
    """V(s, w) differ; where a stream goes on from the record before, its first option was not chosen here."""
    torch.manual_seed(3)
    values = Table(*torch.randn(10, 2).tolist())
    agent = ppoc_agent((2, 3, 6), values)
    runner, carried = acting(agent), 0
    for ticks in (4, 5, 4):
        with torch.no_grad():
            rollout = runner.collect(ticks)
            batch = agent.credited(rollout)
        v, p = values(batch["features"]), agent.chooser(batch["features"]).softmax(-1)
        carried += int((rollout.decisions["option"].begin == Begin.CARRIED).sum())
        raw = batch["target"] - v.detach().gather(1, batch["option"][:, None])[:, 0]
        v, p = v.detach(), p.detach()
        choice = [float(raw[i] + v[i, batch["option"][i]] - (p[i] * v[i]).sum()) for i in range(rollout.size)]
        for i, (option, chosen, arrived) in enumerate(naive_choices(rollout)):
            assert (int(batch["option"][i]), bool(batch["chosen"][i])) == (option, chosen)
            expected = 0.0 if arrived is None else float((p[i] * v[i]).sum() - v[i, arrived])
            assert batch["ending"][i].item() == pytest.approx(expected, abs=1e-6)
            assert arrived is None or int(batch["arrived"][i]) == arrived
            if chosen:
                logits = agent.chooser(batch["features"][i])
                assert batch["choice_log_prob"][i].item() == pytest.approx(logits.log_softmax(-1)[option].item())
        mine = torch.tensor([choice[i] for i in range(rollout.size) if batch["chosen"][i]])
        scaled = (mine - mine.mean()) / (mine.std(correction=0) + 1e-8)
        assert torch.allclose(batch["choice_advantage"][batch["chosen"]], scaled, atol=1e-4)
        assert not batch["choice_advantage"][~batch["chosen"]].any()
    assert carried > 0


def test_the_value_after_the_last_step() -> None:
    """Known to have ended: over the policy; known to go on: the option's; cut off: by its chance."""
    values = Table(*([0.0, 10.0 * s] for s in range(10)))
    agent = ppoc_agent((3,), values)
    with torch.no_grad():
        rollout = acting(agent, 9, 9).collect(3)
        v, p = values(torch.tensor([3.0])), agent.chooser(torch.tensor([3.0])).softmax(-1)
        option = torch.tensor([0, 1])
        expected = float((v * p).sum())
        assert agent.final_value(rollout, option, torch.tensor([True, False])).tolist() == pytest.approx([expected, 30])
        rollout.streams.truncated.fill_(True)
        assert agent.final_value(rollout, option, torch.zeros(2).bool()).tolist() == pytest.approx([expected] * 2)


def test_an_option_below_the_others_learns_to_end() -> None:
    torch.manual_seed(0)
    agent = PPOC(PPOC.Config(hidden=(), options=2), SPACES)
    rows = {"features": torch.ones(2, 1), "arrived": torch.tensor([0, 1]), "ending": torch.tensor([0.5, -0.5])}
    agent.termination_loss(rows)[0].backward()
    weight: Any = agent.terminations.mlp.layers[0]
    assert weight.bias.grad[0] < 0 < weight.bias.grad[1]


def test_whitening_is_of_the_chosen_rows_alone() -> None:
    x, where = torch.tensor([1.0, 100.0, 3.0]), torch.tensor([True, False, True])
    assert whitened(x, where).tolist() == pytest.approx([-1, 0, 1], abs=1e-6)
    assert whitened(x, torch.tensor([True, False, False])).tolist() == [0, 0, 0]
    assert whitened(x, torch.zeros(3, dtype=torch.bool)).tolist() == [0, 0, 0]


# ---- runs

OFTEN = {"eval_every": 3, "eval_episodes": 2, "checkpoint_every": 2, "updates": 6, "log_every": 2, "limit": 60}
REPLAYED = {"slots": 3, "ticks": 12, "hidden": (8,), "random_steps": 36, "batch_size": 8, "gradient_ratio": 0.125}
RUNS: dict[str, tuple[type[OnlineAgent], OnlineConfig, int]] = {
    "dqn": (DQN, DQN.Config(**OFTEN, **REPLAYED, copy_every=3), 11),
    "option-critic": (OptionCritic, OptionCritic.Config(**OFTEN, **REPLAYED, copy_every=3), 11),
    "option-critic in rooms": (
        OptionCritic,
        OptionCritic.Config(**OFTEN, **{**REPLAYED, "hidden": ()}, env="four-rooms@30", deliberation_cost=0.02),
        11,
    ),
    "ppoc": (PPOC, PPOC.Config(**OFTEN, slots=3, ticks=16, minibatch=16, epochs=2, hidden=(8,), options=3), 15),
    "ppoc with vectors": (
        PPOC,
        PPOC.Config(**OFTEN, slots=3, ticks=16, minibatch=16, epochs=2, hidden=(8,), env="Pendulum-v1"),
        15,
    ),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_goes_on_in_the_middle_of_an_option(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    system, config, at = RUNS[name]
    stood: list[dict[str, Any]] = []
    load = Runner.load_state_dict
    monkeypatch.setattr(Runner, "load_state_dict", lambda runner, state: (stood.append(state), load(runner, state))[1])
    assert_resumes(system, config, at, tmp_path, monkeypatch)
    (state,) = stood
    top = state["tracks"][0]
    if system is not DQN:
        inside = (top["codes"] == 0) & (top["ticks"] > 0)
        assert bool(inside.any()), "no option was running, so that nothing was tested"


def test_what_a_run_says_of_its_options(tmp_path: Path) -> None:
    from echelon.training import run

    system, config, _ = RUNS["ppoc"]
    run.train(system, config, tmp_path / "run", device="cpu", threads=1, say=lambda line: None)
    from echelon.evidence.run import Run

    rows = [row for row in Run(tmp_path / "run").metrics if row["kind"] == "train"]
    assert len(rows) == 3
    for row in rows:
        assert row["option/length"] >= 1 and 0 <= row["option/entropy"] <= 1
        ends = [value for name, value in row.items() if name.startswith("option/end_")]
        assert len(ends) == 6 and sum(ends) == pytest.approx(1)
        assert row["option/termination"] <= 1 / row["option/length"] + 1e-9


def test_evaluations_follow_the_rules_of_their_step() -> None:
    """The goal moves after 24 steps of a slot, which are two iterations."""
    config = DQN.Config(**OFTEN, **{**REPLAYED, "hidden": ()}, env="four-rooms@24")
    agent, evaluator = build_agent(DQN, config, world_spaces(config.env)), Evaluator(config)
    for step, moved in ((1, 0), (2, 1), (1, 0), (5, 1)):
        evaluator.run(agent, step)
        world: Any = evaluator.world
        assert world.state_dict()["env"]["_variant"].tolist() == [moved, moved]


@pytest.mark.parametrize(
    ("system", "changes", "said"),
    [
        (DQN, {"epsilon_end": 1.5}, "epsilon_end must be in"),
        (DQN, {"copy_every": 0}, "copy_every must be at least 1"),
        (DQN, {"largest_error": math.inf}, "largest_error must be positive"),
        (DQN, {"clip_norm": 0.0}, "clip_norm must be positive"),
        (OptionCritic, {"options": 1}, "options must be at least 2"),
        (OptionCritic, {"gradient_ratio": 0.01}, "gradient_ratio must be 0.0625"),
        (OptionCritic, {"gradient_ratio": 2.0}, "gradient_ratio must be"),
        (OptionCritic, {"deliberation_cost": -0.1}, "deliberation_cost must be 0 or more"),
        (OptionCritic, {"termination_lr": 0.0}, "termination_lr must be positive"),
        (PPOC, {"options": 1}, "options must be at least 2"),
        (PPOC, {"option_entropy": -1.0}, "option_entropy must be 0 or more"),
        (PPOC, {"clip": 0.0}, "clip must be positive"),
    ],
)
def test_senseless_settings(system: Any, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        system.Config(**changes)


def test_dqn_needs_choices() -> None:
    with pytest.raises(UsageError, match="chooses among actions"):
        DQN(DQN.Config(), VECTORS)


# ---- what is claimed


class FakeRun:
    """A run with two slots of eight steps an iteration, whose goal moves after the first."""

    path = Path("fake")

    def __init__(self, env: str = "four-rooms@8", entropy: float = 0.9, length: float = 3.0, episodes: int = 1_010):
        self.config = {"env": env, "slots": 2, "ticks": 8, "limit": 500}
        # five episodes end before the move; two go on across it; those from number 7 on begin after it
        self.episodes = [
            {"environment_steps": 16 if e < 5 else 32, "episode": e, "length": 3 if e < 7 else e}
            for e in range(episodes)
        ][::-1]
        self.metrics = [
            {"step": step, "kind": "train", "option/entropy": entropy + step / 10, "option/length": length}
            for step in (-1, 1)
        ]


def test_the_area_counts_a_thousand_episodes_that_began_after_the_move() -> None:
    expected = -sum(range(7, 1_007)) / 1_000
    assert steps_after_move(FakeRun()) == pytest.approx(expected)
    assert steps_with_options(FakeRun()) == pytest.approx(expected)
    assert steps_with_options(FakeRun(entropy=0.5, length=2.0)) == pytest.approx(expected)
    for changes in ({"entropy": 0.49}, {"length": 1.99}):
        assert steps_with_options(FakeRun(**changes)) == -500
    with pytest.raises(DataError, match="2 of the first 1000 episodes"):
        steps_after_move(FakeRun(episodes=1_005))
    for env in ("four-rooms", "four-rooms@12"):
        with pytest.raises(DataError, match="multiple of 8 steps"):
            steps_after_move(FakeRun(env))


def test_claims_compare_like_with_like() -> None:
    for module in (option_critic, ppoc):
        (claim,) = module.claims()
        method, baseline = (score.arm.config(100) for score in claim.scores)
        assert len(claim.seeds) == 10
        for name in ("env", "slots", "ticks", "limit", "updates", "hidden", "gamma", "seed"):
            assert getattr(method, name) == getattr(baseline, name), name
        moves = int(method.env.partition("@")[2])
        assert moves % method.ticks == 0
        # a thousand episodes end even if all are cut off: those that began earlier, theirs, and what each slot is in
        assert method.ticks * method.updates >= moves + (1_000 / method.slots + 2) * method.limit
