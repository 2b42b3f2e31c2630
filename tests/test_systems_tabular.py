"""Options, h-DQN and MAXQ with tables: their updates one by one, their exact values, that they find the optimum."""

from __future__ import annotations

import dataclasses
import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from stopped_runs import assert_same
from torch import Tensor

from echelon.claims import AtLeast
from echelon.envs import exact, grids
from echelon.envs.tables import Model, TableWorld, model_of
from echelon.errors import UsageError
from echelon.evidence.run import Run
from echelon.hierarchy.runner import Runner
from echelon.rollout import End, Rollout
from echelon.systems.online import hdqn, maxq, options, taskgraph
from echelon.systems.online.hdqn import HDQN
from echelon.systems.online.maxq import MAXQ
from echelon.systems.online.options import Options
from echelon.systems.online.tables import Table, sampled
from echelon.training import run
from echelon.training.agent import build_agent
from echelon.training.online.worlds import make_world, world_spaces


class Done:
    """What a statistic reads of a run."""

    def __init__(self, agent: Any):
        self._agent, self.config = agent, {"env": agent.config.env}

    def agent(self) -> Any:
        return self._agent


def begun(cls: Any, **changes: Any) -> tuple[Any, Runner]:
    config = cls.Config(**changes)
    agent = build_agent(cls, config, world_spaces(config.env))
    world = make_world(config.env, config.slots, config.limit)
    return agent, Runner(agent.levels(True), world, generator=torch.Generator().manual_seed(config.seed))


def trained(cls: Any, iterations: int, **changes: Any) -> Any:
    torch.manual_seed(0)
    agent, runner = begun(cls, **changes)
    for _ in range(iterations):
        with torch.no_grad():
            assert list(agent.learn(runner.collect(agent.config.ticks))) == []
    return agent


def rows_of(**columns: Any) -> dict[str, Tensor]:
    return {name: torch.as_tensor(column) for name, column in columns.items()}


# ---- tables


def test_a_table_moves_by_the_mean_of_an_entry_s_targets() -> None:
    generator = torch.Generator().manual_seed(0)
    table, power, floor = Table((3, 2), 0.7, 0.05), 0.7, 0.05
    value, visits = [[0.0] * 2 for _ in range(3)], [[0] * 2 for _ in range(3)]
    for _ in range(20):
        at = torch.randint(3, (9,), generator=generator), torch.randint(2, (9,), generator=generator)
        target = torch.rand(9, generator=generator)
        table.learn(at, target)
        for i in range(3):
            for j in range(2):
                mine = [
                    t
                    for s, a, t in zip(at[0].tolist(), at[1].tolist(), target.tolist(), strict=True)
                    if (s, a) == (i, j)
                ]
                if mine:
                    visits[i][j] += len(mine)
                    weight = min(1.0, len(mine) * max(visits[i][j] ** -power, floor))
                    value[i][j] += weight * (sum(mine) / len(mine) - value[i][j])
    assert table.visits.tolist() == visits
    assert table.values.tolist() == [pytest.approx(row) for row in value]


def test_with_power_one_a_table_is_the_mean_of_all_targets() -> None:
    table, targets = Table((2,), 1.0), torch.arange(12).double()
    for part in targets.split([1, 5, 2, 4]):
        table.learn((torch.ones(len(part), dtype=torch.int64),), part)
    assert table.values.tolist() == pytest.approx([0, float(targets.mean())])


def test_choices_explore_as_often_as_they_should() -> None:
    q = torch.tensor([[1.0, 3.0, -torch.inf, 2.0]]).expand(6000, 4)
    generator = torch.Generator().manual_seed(0)
    share = torch.bincount(sampled(q, 0.3, generator), minlength=4) / 6000
    assert share.tolist() == pytest.approx([0.1, 0.8, 0, 0.1], abs=0.02)
    assert bool((sampled(q, 0.0, generator) == 1).all())


# ---- options


def test_hallway_options() -> None:
    given = options.hallway_options()
    assert given.policy.shape == (8, 104) and torch.equal(given.stops, ~given.starts)
    assert sorted(given.starts.sum(1).tolist()) == [21, 21, 26, 26, 26, 26, 31, 31]  # a room and its other hallway
    halls = {cell: grids.CELLS.index(cell) for cell in grids.HALLWAYS}
    held = exact.until(exact.followed(exact.steps(grids.four_rooms(), 1.0), given.policy), given.stops)
    for option in range(8):
        begins = given.starts[option]
        ends = held.arrival[option][begins].sum(0)
        target = max(halls, key=lambda cell: float(ends[halls[cell]]))
        assert bool(given.stops[option, halls[target]])
        assert float(ends[halls[target]]) / int(begins.sum()) > 0.75  # slips lead out by the other hallway
        for move, (di, dj) in enumerate(grids.MOVES):
            beside = (target[0] - di, target[1] - dj)
            if beside in grids.CELLS and bool(begins[grids.CELLS.index(beside)]):
                assert int(given.policy[option, grids.CELLS.index(beside)]) == move
    assert given.starts[:, list(halls.values())].sum(0).tolist() == [2, 2, 2, 2]


def test_semi_markov_and_intra_option_updates_by_hand() -> None:
    """Q = 1, rewards 1, 0, 2, γ = .9, max Q(s') = 4, step size 1/2: target 5.536, Q = 3.268."""
    agent, _ = begun(Options, primitives=False, intra=False, gamma=0.9, power=1.0)
    state, option = 3, int(agent.given.starts[:, 3].nonzero()[0])
    after = int(agent.given.stops[option].nonzero()[0])
    best = agent.given.starts[:, after].nonzero()[0]
    agent.table.values[state, option], agent.table.visits[state, option] = 1.0, 1
    agent.table.values[after, best] = 4.0
    whole = {"action": [option], "reward": [1 + 0.81 * 2], "discount": [0.9**3]}
    agent.learn_from_options(rows_of(observation=[state], next_observation=[after], **whole))
    assert float(agent.table.values[state, option]) == pytest.approx(3.268)
    agent.table.values[state, option], agent.table.visits[state, option] = 1.0, 1
    agent.table.values[:, option].index_fill_(0, torch.tensor([4]), 2.0)
    cut = rows_of(observation=[state], next_observation=[4], action=[option], reward=[0.0], discount=[0.9])
    agent.learn_from_options(cut)  # cut by a time limit where the option goes on: its own value counts
    assert float(agent.table.values[state, option]) == pytest.approx((1 + 0.9 * 2) / 2)


def test_intra_option_learning_is_the_sum_over_options_written_out() -> None:
    agent, runner = begun(Options, slots=6, ticks=40, limit=9)
    agent.table.values.copy_(torch.rand(agent.table.values.shape, generator=torch.Generator().manual_seed(1)))
    before, given = agent.table.values.clone(), agent.given
    rows = agent.moves.add(runner.collect(40))
    assert End.TRUNCATED in rows["end"].tolist() or End.TERMINATED in rows["end"].tolist()
    targets: dict[tuple[int, int], list[float]] = {}
    for k in range(len(rows["action"])):
        s, a, n = (int(rows[name][k]) for name in ("observation", "action", "next_observation"))
        best = max(float(before[n, w]) for w in range(12) if given.starts[w, n])
        for w in range(12):
            if given.starts[w, s] and int(given.policy[w, s]) == a:
                after = best if given.stops[w, n] else float(before[n, w])
                ended = rows["end"][k] == End.TERMINATED
                targets.setdefault((s, w), []).append(float(rows["reward"][k]) + (0 if ended else 0.9 * after))
    agent.learn_from_steps(rows)
    for (s, w), found in targets.items():
        weight = min(1.0, len(found) * len(found) ** -agent.config.power)
        expected = float(before[s, w]) + weight * (sum(found) / len(found) - float(before[s, w]))
        assert float(agent.table.values[s, w]) == pytest.approx(expected)
    untouched = torch.ones_like(before, dtype=torch.bool)
    untouched[tuple(torch.tensor(list(targets)).T)] = False
    assert torch.equal(agent.table.values[untouched], before[untouched])


def options_of(record: Rollout, level: str) -> list[tuple[int, int, list[int], list[int]]]:
    """(stream, action, states, executed actions) of each decision of a level."""
    d = record.decisions[level]
    seen, done = record.observation["observation"].tolist(), record.executed.tolist()
    spans = zip(d.stream.tolist(), d.action.tolist(), d.start.tolist(), d.stop.tolist(), strict=True)
    return [(stream, action, seen[i:j], done[i:j]) for stream, action, i, j in spans]


def test_options_act_by_their_policy_until_they_stop() -> None:
    agent, runner = begun(Options, slots=5, limit=50)
    record, given = runner.collect(60), agent.given
    for _, option, states, actions in options_of(record, "option"):
        assert actions == [int(given.policy[option, s]) for s in states]
        assert not any(bool(given.stops[option, s]) for s in states[1:])
    assert agent.facts(record)["option/duration"] > 1
    greedy = Runner(agent.levels(False), make_world("four-rooms", 3, 30), generator=torch.Generator().manual_seed(0))
    agent.table.values.copy_(torch.rand(agent.table.values.shape, generator=torch.Generator().manual_seed(2)))
    found = greedy.collect(40)
    q = agent.q(torch.arange(104))
    for _, option, states, _ in options_of(found, "option"):
        assert all(int(q[s].argmax()) == option for s in states)  # it leaves an option that is no longer the best


def test_the_optimum_of_options() -> None:
    model, hallways = grids.four_rooms(), options.hallway_options()
    both = options.given("four-rooms", 104, 4, True)
    flat = exact.optimal(exact.steps(model, 0.9)).amax(0)
    assert torch.allclose(options.optimum(model, both, 0.9), flat, atol=1e-9)
    alone = options.optimum(model, hallways, 0.9)
    assert bool((alone <= flat + 1e-9).all()) and float((flat - alone).max()) > 1e-4
    held = exact.until(exact.followed(exact.steps(model, 0.9), hallways.policy), hallways.stops | model.terminal)
    q = exact.optimal(held, hallways.starts | model.terminal).T
    q = torch.where(hallways.starts.T, q, options.BARRED)
    without, with_it = (options.worth(model, hallways, q, 0.9, each) for each in (False, True))
    assert torch.allclose(without, alone, atol=1e-9)
    assert bool((with_it >= without - 1e-9).all()) and bool((with_it <= flat + 1e-9).all())


def test_learned_options_come_near_the_optimum() -> None:
    agent = trained(Options, 60, primitives=False)
    assert float(options.lost(Done(agent))) > -2e-3 and float(options.gained(Done(agent))) > -1e-3
    longer = trained(Options, 60, primitives=False, intra=False, interrupt=False)
    assert float(options.lost(Done(longer))) < -2e-3


# ---- h-DQN


def test_transitions_of_h_dqn_hold_where_a_goal_began() -> None:
    agent, runner = begun(HDQN, slots=4, ticks=30)
    record = runner.collect(30)
    agent.keep(agent.pursuits.add(record), agent.moves.add(record))
    place = record.observation["place"].tolist()
    expected, moves = [], []
    d = record.decisions["goal"]
    final = record.streams.final_observation["observation"].tolist()
    seen = record.observation["observation"].tolist()
    last = (record.spans["stream"].starts + record.spans["stream"].lengths).tolist()
    for k in range(len(d.start)):
        i, j, goal, stream = int(d.start[k]), int(d.stop[k]), int(d.action[k]), int(d.stream[k])
        after = final[stream] if j == last[stream] else seen[j]
        assert goal not in place[i + 1 : j]  # it ends where its goal is reached
        ended = int(d.end[k]) == End.TERMINATED
        if int(d.end[k]) != End.OPEN:
            expected.append((seen[i], goal, after, round(float(record.reward_sum()[i:j].sum()), 6), ended))
        for t in range(i, j):
            to = final[stream] if t + 1 == last[stream] else seen[t + 1]
            if not (int(d.end[k]) == End.OPEN and t + 1 == j == last[stream] and False):
                moves.append(
                    (goal, seen[t], int(record.executed[t]), to, to % 6 == goal, to % 6 == goal or to % 6 == 0)
                )

    def held(replay: Any, *names: str) -> list[tuple[Any, ...]]:
        columns = [replay.columns[name][: len(replay)].tolist() for name in names]
        return sorted(
            tuple(round(x, 6) if isinstance(x, float) else x for x in row) for row in zip(*columns, strict=True)
        )

    assert held(agent.pursued, "state", "action", "next_state", "reward", "terminated") == sorted(expected)
    found = held(agent.moved, "command", "state", "action", "next_state", "reward", "terminated")
    assert found == sorted((*row[:4], float(row[4]), row[5]) for row in moves)


def test_targets_of_h_dqn_by_hand() -> None:
    agent, _ = begun(HDQN, gamma=0.9, controller_gamma=0.5, power=1.0)
    agent.meta.values[4] = torch.tensor([0.0, 3.0, 1.0, 0.0, 0.0, 0.0])
    rows = rows_of(state=[1, 1], action=[4, 2], next_state=[4, 6], reward=[0.25, 1.0], terminated=[False, True])
    agent.teach_meta(rows)
    assert agent.meta.values[1, [4, 2]].tolist() == pytest.approx([0.25 + 0.9 * 3, 1.0])
    agent.controller.values[5, 2] = torch.tensor([0.2, 0.6])
    rows = rows_of(command=[5, 5], state=[1, 4], action=[1, 1], next_state=[2, 11], reward=[0.0, 1.0],
                   terminated=[False, True])  # fmt: skip
    agent.teach_controller(rows)
    assert agent.controller.values[5, [1, 4], 1].tolist() == pytest.approx([0.3, 1.0])


def test_exploration_of_h_dqn_falls() -> None:
    agent, _ = begun(HDQN, epsilon=0.1, epsilon_steps=1000)
    assert agent.meta_epsilon == 1 and agent.controller_epsilon.tolist() == [1] * 6
    agent.seen += 500
    agent.success[2] = 0.4
    agent.success[3] = 1.0
    assert agent.meta_epsilon == pytest.approx(0.55)
    assert agent.controller_epsilon.tolist() == pytest.approx([1, 1, 0.6, 0.1, 1, 1])
    agent.seen += 5000
    assert agent.meta_epsilon == 0.1


def test_h_dqn_solves_the_chain() -> None:
    agent = trained(HDQN, 300, epsilon_steps=30_000)
    assert float(hdqn.lost(Done(agent))) >= -1e-3
    found = hdqn.worth(grids.chain(), "place", agent.meta.values, agent.controller.values)
    assert float(found[1]) == pytest.approx(0.208)
    left = torch.zeros(6, 12, 2, dtype=torch.float64)
    assert float(hdqn.worth(grids.chain(), "place", agent.meta.values, left)[1]) == pytest.approx(0.01)


# ---- MAXQ


def fork() -> Model:
    """0 1 2 3 4 5: left from 1 costs 10 more and ends, right from 4 pays 10 and ends; begins in 2; a step costs 1."""

    def rule(state: int, action: int) -> Any:
        after = state + (1 if action else -1)
        yield 1.0, after, {0: -10.0, 5: 10.0}.get(after, 0.0) - 1.0

    return model_of(2, rule, [True, False, False, False, False, True], [2])


def fork_tasks(pseudo: float) -> taskgraph.Graph:
    """Leave 2 and 3, by 1 or by 4; then, whether it was good or not, go on the same way."""
    place = torch.arange(6)
    inside = (place == 2) | (place == 3)
    steps = [taskgraph.Child("left"), taskgraph.Child("right")]
    leave = taskgraph.Task("leave", ~inside, steps, torch.where(place == 1, pseudo, 0.0).double())
    on = [taskgraph.Child("leave", inside), taskgraph.Child("left", place == 1), taskgraph.Child("right", place == 4)]
    whole = taskgraph.Task("whole", torch.zeros(6, dtype=torch.bool), on)
    return taskgraph.graph(fork(), ("left", "right"), [leave, whole], {})


def test_recursive_optima_by_hand() -> None:
    """The way to 1 is shorter: without pseudo-reward `leave` takes it, whatever comes after."""
    near, far = (taskgraph.recursion(fork(), fork_tasks(pseudo), 0.9) for pseudo in (0.0, -100.0))
    assert float(near[2]) == pytest.approx(-1 + 0.9 * -11)
    assert float(far[2]) == pytest.approx(-1 - 0.9 + 0.81 * 9)
    taxi, tasks = grids.taxi(), taskgraph.taxi_tasks()
    flat = exact.optimal(exact.steps(taxi, 0.99)).amax(0)
    assert torch.allclose(taskgraph.recursion(taxi, tasks, 0.99), flat, atol=1e-8)  # the taxi's graph loses nothing
    assert tasks.depth == 3 and tasks.numbers() < 650 and tasks.names[tasks.root] == "root"


def test_pseudo_rewards_steer_a_task_and_are_kept_from_its_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(grids.WORLDS, "fork", lambda slots, limit, at: TableWorld(fork(), slots, limit or 30))
    for pseudo, value in ((0.0, -10.9), (-100.0, 5.39)):
        monkeypatch.setitem(taskgraph.GRAPHS, "fork", lambda pseudo=pseudo: fork_tasks(pseudo))
        agent = trained(MAXQ, 80, env="fork", slots=8, gamma=0.9, floor=0.5, updates=80)
        assert float(maxq.lost(Done(agent))) == pytest.approx(0, abs=1e-6)
        found = agent.decomposition().value
        assert float(found[3, 2]) == pytest.approx(value, abs=1.0)  # in the mean over what it does when it explores
        assert float(found[2, 2]) == pytest.approx(-1 if pseudo == 0 else -1.9, abs=1e-3)  # no pseudo-reward in V


def test_completions_by_hand() -> None:
    """γ = .9, three steps, C(s', a*) = 1, V(a*, s') = 2, step size 1/2: C = .5 · .729 · 3 = 1.0935."""
    agent, _ = begun(MAXQ, power=1.0, floor=0.0, gamma=0.9)
    tasks = agent.tasks
    node = {name: number for number, name in enumerate(tasks.names)}
    state, after = grids.taxi_state(2, 2, 0, 1), grids.taxi_state(0, 0, 0, 1)
    get, there, pickup = node["get"], node["navigate 0"], node["pickup"]
    row = tasks.reward_alike[pickup, after]
    agent.rewards.values[pickup, row] = 2.0
    for table in (agent.completions, agent.pseudo):
        table.values[get, pickup, tasks.alike[get, pickup, after]] = 1.0
        table.visits[get, there] = 1
    calls = {"caller": [get], "action": [there], "observation": [state], "next_observation": [after], "duration": [3.0]}
    agent.teach(rows_of(**calls))
    at = tasks.alike[get, there, state]
    assert float(agent.completions.values[get, there, at]) == pytest.approx(1.0935)
    assert float(agent.pseudo.values[get, there, at]) == pytest.approx(1.0935)
    aboard = grids.taxi_state(0, 0, grids.IN_TAXI, 1)
    before = [table.values.clone() for table in (agent.completions, agent.pseudo)]
    for caller, child, end in ((node["north"], node["north"], after), (get, there, state), (get, pickup, aboard)):
        agent.teach(rows_of(**{**calls, "caller": [caller], "action": [child], "next_observation": [end]}))
    found = [table.values for table in (agent.completions, agent.pseudo)]  # a primitive's, a cut call, the task's end
    assert all(torch.equal(a, b) for a, b in zip(before, found, strict=True))


def test_a_pseudo_reward_enters_its_own_table_alone() -> None:
    tasks = fork_tasks(-5.0)
    agent, _ = begun(MAXQ, power=1.0, floor=0.0, gamma=0.9)
    agent.tasks = tasks
    for table in (agent.completions, agent.pseudo):
        table.values, table.visits = torch.zeros(4, 4, 6, dtype=torch.float64), torch.ones(4, 4, 6, dtype=torch.int64)
    agent.rewards.values = torch.zeros(2, 6, dtype=torch.float64)
    agent.teach(rows_of(caller=[2], action=[0], observation=[2], next_observation=[1], duration=[1.0]))
    assert float(agent.pseudo.values[2, 0, 2]) == pytest.approx(0.5 * 0.9 * -5)
    assert float(agent.completions.values[2, 0, 2]) == 0


def test_tasks_call_what_they_may_until_it_is_over() -> None:
    agent, runner = begun(MAXQ, slots=6, epsilon=0.6, limit=60)
    record, tasks = runner.collect(120), agent.tasks
    for level, above in (("depth1", None), ("depth2", "depth1"), ("action", "depth2")):
        d = record.decisions[level]
        seen = record.observation["observation"]
        caller = torch.full_like(d.action, tasks.root) if above is None else record.decisions[above].action[d.parent]
        assert bool(tasks.may[caller, d.action, seen[d.start]].all())
        for node, i, j in zip(d.action.tolist(), d.start.tolist(), d.stop.tolist(), strict=True):
            assert not bool(tasks.done[node, seen[i + 1 : j]].any())
    assert torch.equal(record.executed, record.decisions["action"].action)


def test_maxq_finds_the_recursive_optimum_of_the_taxi() -> None:
    agent = trained(MAXQ, 240, updates=300)
    assert float(maxq.lost(Done(agent))) >= -1e-3


def test_a_graph_that_cannot_be_is_refused() -> None:
    never = torch.zeros(6, dtype=torch.bool)
    with pytest.raises(UsageError, match="does not come before"):
        taskgraph.graph(fork(), ("left", "right"), [taskgraph.Task("a", never, [taskgraph.Child("b")])], {})
    with pytest.raises(UsageError, match="nothing to call in state 1"):
        child = taskgraph.Child("left", torch.arange(6) != 1)
        taskgraph.graph(fork(), ("left", "right"), [taskgraph.Task("a", never, [child])], {})
    with pytest.raises(UsageError, match="need a name each"):
        taskgraph.graph(fork(), ("left",), [], {})
    column = torch.tensor([3, 1, 3, 0, 1, 3])
    assert taskgraph.alike(column).tolist() == [0, 1, 0, 3, 1, 0]


# ---- runs


SMALL: dict[Any, dict[str, Any]] = {
    Options: {"slots": 3, "limit": 40},
    HDQN: {"slots": 3, "batch_size": 16, "capacity": 90, "meta_capacity": 30},
    MAXQ: {"slots": 3, "limit": 30},
}


LOST: dict[Any, Any] = {Options: options.lost, HDQN: hdqn.lost, MAXQ: maxq.lost}


@pytest.mark.parametrize("cls", SMALL, ids=lambda cls: cls.Config.system)
def test_a_run_goes_on_bit_for_bit(cls: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = {"ticks": 7, "updates": 9, "eval_every": 3, "eval_episodes": 3, "checkpoint_every": 4, "log_every": 1}
    config = cls.Config(**few, **SMALL[cls])

    def train(name: str) -> Any:
        return run.train(cls, config, tmp_path / name, device="cpu", threads=1, say=lambda line: None)

    train("whole")
    collect, calls = Runner.collect, []

    def signalled(runner: Runner, ticks: int) -> Rollout:
        calls.append(ticks)
        if len(calls) == 5:
            signal.raise_signal(signal.SIGINT)
        return collect(runner, ticks)

    with monkeypatch.context() as patch:
        patch.setattr(Runner, "collect", signalled)
        assert train("cut") is None
    train("cut")
    assert_same(tmp_path)
    lost, same = (LOST[cls](Run(tmp_path / name)) for name in ("whole", "cut"))
    assert lost.shape == () and lost == same and -1000 < lost < 0
    assert {step for step, _ in Run(tmp_path / "whole").curve} <= {3, 6, 9}


def test_errors_say_what_is_wrong() -> None:
    with pytest.raises(UsageError, match="one of so many states"):
        begun(HDQN, env="CartPole-v1")
    with pytest.raises(UsageError, match="none are given for 'chain'"):
        begun(Options, env="chain")
    with pytest.raises(UsageError, match="no graph of tasks"):
        begun(MAXQ, env="chain")
    with pytest.raises(UsageError, match="no exact model"):
        grids.named_model("CartPole-v1")
    for cls, wrong in ((Options, {"power": 0.4}), (HDQN, {"recent": 0.0}), (MAXQ, {"floor": 2.0})):
        with pytest.raises(UsageError, match=next(iter(wrong))):
            cls.Config(**wrong)


def test_claims_are_about_these_systems() -> None:
    for module, cls in ((options, Options), (hdqn, HDQN), (maxq, MAXQ)):
        found = module.claims()
        assert found == () or all(score.arm.config(3).seed == 3 for claim in found for score in claim.scores)
        assert any(isinstance(claim.test, AtLeast) for claim in found)
        assert all(isinstance(score.arm.config(0), cls.Config) for claim in found for score in claim.scores)
        assert len({json.dumps(dataclasses.asdict(claim.method.arm.config(0))) + claim.id for claim in found}) == len(
            found
        )
