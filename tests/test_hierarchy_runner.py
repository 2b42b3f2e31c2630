"""The runner on scripted levels: clocks, ends, carried decisions, slots, memory, labels."""

from __future__ import annotations

from itertools import count

import numpy as np
import pytest
import torch
from hierarchy_scripts import Clock, Script, differences, lengths, obey, table

from echelon.errors import UsageError
from echelon.hierarchy.level import Decision, Level
from echelon.hierarchy.owners import owners
from echelon.hierarchy.runner import Runner
from echelon.hierarchy.termination import Every, Learned, Never, Until
from echelon.hierarchy.transitions import Transitions
from echelon.hierarchy.world import Reset
from echelon.rollout import Begin, End, Rollout

D, C = int(Begin.DECIDED), int(Begin.CARRIED)
OPEN, OPTION, TIMEOUT = int(End.OPEN), int(End.OPTION), int(End.TIMEOUT)
PARENT, TERMINATED, TRUNCATED = int(End.PARENT), int(End.TERMINATED), int(End.TRUNCATED)


def test_one_level_that_decides_on_every_tick():
    rollout = Runner([Script("low")], Clock(2)).episodes(lengths(2, 3))
    assert rollout.stream.tolist() == [0, 0, 1, 1, 1]
    assert rollout.tick.tolist() == [0, 1, 0, 1, 2]
    assert rollout.observation["observation"][:, :2].tolist() == [[0, 0], [0, 1], [1, 0], [1, 1], [1, 2]]
    assert rollout.proposed.tolist() == [[0, 0], [0, 1], [1, 0], [1, 1], [1, 2]]
    assert rollout.executed.tolist() == rollout.proposed.tolist()
    assert rollout.reward["reward"].tolist() == [0, 1, 0, 1, 2]
    assert rollout.elapsed.tolist() == [1] * 5
    ends = [TIMEOUT, TERMINATED, TIMEOUT, TIMEOUT, TERMINATED]
    assert table(rollout, "low") == [
        (s, i, i + 1, D, e) for i, (s, e) in enumerate(zip([0, 0, 1, 1, 1], ends, strict=True))
    ]
    found = rollout.decisions["low"]
    assert found.log_prob.tolist() == pytest.approx([0, 0.1, 0, 0.1, 0.2])
    assert found.values["guess"].tolist() == [0, 2, 0, 2, 4]
    assert found.span.tolist() == [0, 1, 2, 3, 4] and found.parent.tolist() == [-1] * 5
    assert rollout.streams.final_observation["observation"].tolist() == [[0, 2, 0], [1, 3, 0]]
    assert not rollout.proposed.is_inference(), "what is recorded must be fit for training"


def test_every_k_ends_by_timeout_and_the_episode_ends_what_is_left():
    rollout = Runner([Script("high", Every(2)), obey()], Clock(2)).episodes(lengths(5, 4))
    assert table(rollout, "high") == [
        (0, 0, 2, D, TIMEOUT),
        (0, 2, 4, D, TIMEOUT),
        (0, 4, 5, D, TERMINATED),
        (1, 5, 7, D, TIMEOUT),
        (1, 7, 9, D, TERMINATED),
    ]
    assert rollout.decisions["low"].parent.tolist() == [0, 0, 1, 1, 2, 3, 3, 4, 4]
    assert rollout.executed[:, 1].tolist() == [0, 0, 2, 2, 4, 0, 0, 2, 2], "a decision holds until it ends"
    assert owners(rollout, "high").tolist() == [0, 0, 1, 1, 2, 3, 3, 4, 4]
    assert rollout.spans.parent("low") == "high" and rollout.spans.parent("high") == "stream"


def test_every_k_and_until():
    """At least two ticks, then as soon as the tick is divisible by three; or after four ticks at most."""

    def third(features, running):
        return features["observation"][:, 1] % 3 == 0

    def ends(termination):
        rollout = Runner([Script("high", termination), obey()], Clock(1)).episodes(lengths(12))
        return [(stop - start, end) for start, stop, end in table(rollout, "high", "start", "stop", "end")]

    assert ends(Every(2) & Until(third)) == [(3, OPTION)] * 3 + [(3, TERMINATED)]
    assert ends(Every(4) & Until(third)) == [(6, OPTION), (6, TERMINATED)]
    assert ends(Until(third) | Every(2)) == [(2, TIMEOUT), (1, OPTION)] * 3 + [(2, TIMEOUT), (1, TERMINATED)]
    assert ends(Every(3) | Until(third)) == [(3, OPTION)] * 3 + [(3, TERMINATED)], "its own condition names the end"
    assert ends(Never()) == [(12, TERMINATED)]
    interrupted = ends(Until(third, End.INTERRUPTED))
    assert interrupted == [(3, int(End.INTERRUPTED))] * 3 + [(3, TERMINATED)]


def test_a_parents_end_ends_the_childs_span():
    low = Script("low", Every(2))
    rollout = Runner([Script("high", Every(3)), low], Clock(1)).episodes(lengths(7))
    assert table(rollout, "low", "start", "stop", "end") == [
        (0, 2, TIMEOUT),
        (2, 3, PARENT),
        (3, 5, TIMEOUT),
        (5, 6, PARENT),
        (6, 7, TERMINATED),
    ]
    assert rollout.decisions["low"].parent.tolist() == [0, 0, 1, 1, 2]


def test_a_level_sees_which_decisions_below_have_ended():
    class Waits(Script):
        def ends(self, features, running, below):
            return below & (running.age >= 3)

    rollout = Runner([Waits("high"), Script("low", Every(2))], Clock(1)).episodes(lengths(9))
    assert table(rollout, "high", "start", "stop", "end") == [(0, 4, OPTION), (4, 8, OPTION), (8, 9, TERMINATED)]


def test_terminated_and_truncated_are_kept_apart_and_the_final_observation_is_the_true_one():
    resets = [Reset(seed=s, options={"length": 3, "truncate": s == 1}) for s in range(3)]
    rollout = Runner([Script("high", Every(2)), obey()], Clock(1)).episodes(resets)
    assert rollout.streams.terminated.tolist() == [True, False, True]
    assert rollout.streams.truncated.tolist() == [False, True, False]
    assert rollout.streams.final_observation["observation"].tolist() == [[0, 3, 0], [1, 3, 0], [2, 3, 0]]
    assert [end for (end,) in table(rollout, "high", "end")] == [
        TIMEOUT,
        TERMINATED,
        TIMEOUT,
        TRUNCATED,
        TIMEOUT,
        TERMINATED,
    ]


@pytest.mark.parametrize("cuts", [(4, 4, 4), (1, 1, 3, 7), (5, 7), (11, 1)])
def test_carried_spans_join_to_what_one_long_collect_gives(cuts):
    def runner():
        high = Script("high", Until(lambda f, r: f["observation"][:, 1] % 4 == 3))
        resets = iter(lengths(*[3, 9, 5, 4, 7, 2, 6, 3] * 2))
        return Runner([high, obey("middle", Every(2)), obey()], Clock(3), resets=lambda i: next(resets))

    parts, whole = runner(), runner().collect(12)
    joined = Rollout.cat([parts.collect(ticks) for ticks in cuts])
    assert differences(joined, whole) == []
    assert joined.streams.episode.tolist() == whole.streams.episode.tolist()


def test_open_spans_are_carried_with_what_was_decided():
    runner = Runner([Script("high", Every(3)), obey()], Clock(1), resets=lambda i: Reset(options={"length": 100}))
    first, second = runner.collect(4), runner.collect(4)
    assert table(first, "high") == [(0, 0, 3, D, TIMEOUT), (0, 3, 4, D, OPEN)]
    assert table(second, "high") == [(0, 0, 2, C, TIMEOUT), (0, 2, 4, D, OPEN)]
    assert second.decisions["high"].action[0].tolist() == [0, 3]
    assert second.decisions["high"].log_prob[0] == pytest.approx(0.3)
    assert second.decisions["high"].values["guess"][0] == 6
    assert second.streams.start_tick.tolist() == [4] and second.tick.tolist() == [4, 5, 6, 7]
    assert first.streams.final_observation["observation"][:, 1].tolist() == [4]
    assert not (first.streams.terminated | first.streams.truncated).any()


def test_a_decision_that_ends_at_the_batchs_end_is_closed_there():
    runner = Runner([Script("high", Every(2)), obey()], Clock(1), resets=lambda i: Reset(options={"length": 100}))
    assert table(runner.collect(2), "high") == [(0, 0, 2, D, TIMEOUT)]
    assert table(runner.collect(2), "high") == [(0, 0, 2, D, TIMEOUT)]


def test_bootstrapped_spans_are_over_and_decided_anew():
    runner = Runner([Script("high", Every(3)), obey()], Clock(1), resets=lambda i: Reset(options={"length": 100}))
    first, second = (runner.collect(4, open_spans="bootstrapped") for _ in range(2))
    assert table(first, "high") == [(0, 0, 3, D, TIMEOUT), (0, 3, 4, D, OPEN)]
    assert table(second, "high") == [(0, 0, 3, D, TIMEOUT), (0, 3, 4, D, OPEN)]
    assert second.decisions["high"].action[:, 1].tolist() == [4, 7]


def test_spans_of_length_zero_are_recorded_and_replaced_at_once():
    """A planner skips steps that are fulfilled already: here, plan steps below the current tick."""

    class Plan(Level):
        name, termination = "plan", Every(2)

        def start(self, streams):
            return torch.zeros(streams)

        def observe(self, obs, memory):
            self.next = memory.clone()
            return obs, memory

        def decide(self, features, parent, due):
            step = self.next[due].clone()
            self.next[due] += 1
            return Decision(step[:, None], step, {"step": step}, empty=step < features["observation"][:, 1])

    runner = Runner([Plan(), obey()], Clock(2), resets=lambda i: Reset(options={"length": 100}))
    rollout = runner.collect(5)
    found = [row for row in table(rollout, "plan", "stream", "start", "stop", "end", "span") if row[0] == 1]
    assert found == [
        (1, 5, 7, TIMEOUT, 3),
        (1, 7, 7, OPTION, -1),
        (1, 7, 7, OPTION, -1),
        (1, 7, 9, TIMEOUT, 4),
        (1, 9, 9, OPTION, -1),
        (1, 9, 9, OPTION, -1),
        (1, 9, 9, OPTION, -1),
        (1, 9, 9, OPTION, -1),
        (1, 9, 10, OPEN, 5),
    ]
    plan = rollout.decisions["plan"]
    assert plan.action[plan.stream == 1][:, 0].tolist() == [0, 0, 1, 2, 0, 1, 2, 3, 4]
    assert plan.log_prob.tolist() == plan.action[:, 0].tolist() == plan.values["step"].tolist()
    assert rollout.executed[5:, 0].tolist() == [0, 0, 2, 2, 4]
    parents = rollout.decisions["low"].parent
    assert plan.action[parents, 0].tolist() == rollout.executed[:, 0].tolist(), "only lasting decisions command"
    assert owners(rollout, "plan").tolist() == parents.tolist()


@pytest.mark.parametrize("slots", [1, 2, 3, 4, 9])
def test_episodes_do_not_depend_on_the_number_of_slots(slots):
    resets = [
        Reset(seed=i, options={"length": n, "truncate": n == 3}, labels={"task": i % 2, "name": f"e{i}"})
        for i, n in enumerate([3, 1, 8, 2, 2, 5, 1])
    ]

    def run(slots):
        stack = [Script("high", Every(3) | Until(lambda f, r: f["observation"][:, 0] == 2)), obey()]
        return Runner(stack, Clock(slots), info_labels=("success",)).episodes(resets)

    rollout, reference = run(slots), run(7)
    assert differences(rollout, reference) == []
    labels = rollout.streams.labels
    assert labels["seed"].tolist() == list(range(7)) and labels["length"].tolist() == [3, 1, 8, 2, 2, 5, 1]
    assert labels["return"].tolist() == [3, 0, 28, 1, 1, 10, 0]
    assert labels["success"].tolist() == [1, 0, 1, 0, 1, 0, 1]
    assert labels["task"].tolist() == [0, 1, 0, 1, 0, 1, 0] and labels["name"] == [f"e{i}" for i in range(7)]
    assert rollout.streams.truncated.tolist() == [n == 3 for n in [3, 1, 8, 2, 2, 5, 1]]


def test_idle_slots_are_neither_asked_nor_recorded():
    low = Script("low")
    world = Clock(3)
    rollout = Runner([low], world).episodes(lengths(1, 4))
    assert [len(rows) for rows, _, _ in low.asked] == [2, 1, 1, 1]
    assert [due.tolist() for _, _, due in low.asked][1:] == [[False, True, False]] * 3
    assert world.heard[0][1].tolist() == [True, True, False]
    assert rollout.stream.tolist() == [0, 1, 1, 1, 1]


def test_a_second_call_begins_anew():
    runner = Runner([Script("high", Every(4)), obey()], Clock(2), resets=lambda i: Reset(seed=i))
    before = runner.collect(3)
    first, second = runner.episodes(lengths(3, 2, 4)), runner.episodes(lengths(3, 2, 4))
    assert differences(first, second) == []
    assert differences(before, runner.collect(3)) == [], "collect starts over after episodes"
    numbers = [rollout.streams.episode.tolist() for rollout in (before, first, second)]
    assert numbers == [[0, 1], [2, 3, 4], [5, 6, 7]], "episode numbers are unique in what a runner gives"


def test_a_generator_makes_collects_repeatable():
    class Dice(Level):
        name = "low"

        def decide(self, features, parent, due):
            return Decision(torch.rand(int(due.sum()), 1, generator=self.generator))

    def run(seed):
        return Runner([Dice()], Clock(2), generator=torch.Generator().manual_seed(seed)).collect(12)

    assert differences(run(1), run(1)) == [] and "proposed" in differences(run(1), run(2))
    assert len(set(run(1).streams.labels["seed"].tolist())) > 3


class Counter(Level):
    """A recurrent level: its memory counts the observations of the episode."""

    name = "low"

    def start(self, streams):
        return torch.zeros(streams, 1)

    def observe(self, obs, memory):
        return {"seen": memory + 1}, memory + 1

    def decide(self, features, parent, due):
        return Decision(features["seen"])


def test_memory_sees_every_tick_begins_anew_and_is_recorded_where_unrolls_start():
    class Slow(Counter):
        name, termination = "high", Every(3)

    runner = Runner([Slow(), Counter()], Clock(2), resets=lambda i: Reset(options={"length": [4, 7][i % 2]}))
    first, second = runner.collect(6), runner.collect(2)
    assert first.executed[:, 0].tolist() == [1, 2, 3, 4, 1, 2, 3, 4, 5, 6, 1, 2]
    assert first.decisions["high"].action[:, 0].tolist() == [1, 4, 1, 4, 1]
    items, states = first.memory["low"]
    assert sorted(items.tolist()) == [0, 4, 10] and states[:, 0].tolist() == [0, 0, 0]
    items, states = second.memory["high"]
    assert dict(zip(items.tolist(), states[:, 0].tolist(), strict=True)) == {0: 6, 1: 2, 3: 0}, "ticks gone before"
    assert second.streams.start_tick.tolist() == [6, 2, 0]


def test_only_what_is_asked_for_is_recorded():
    resets = lengths(3, 2)
    full = Runner([Script("high"), obey()], Clock(2)).episodes(resets)
    named = Runner([Script("high"), obey()], Clock(2), record=()).episodes(resets)
    assert named.observation == {} and named.streams.final_observation == {}
    assert named.executed.equal(full.executed) and named.decisions["high"].action.equal(full.decisions["high"].action)
    none = Runner([Script("high"), obey()], Clock(2), record=False, info_labels=("success",)).episodes(resets)
    assert none.decisions == {} and none.proposed.shape == (5, 0)
    assert none.streams.labels["success"].tolist() == [1, 0] and none.streams.labels["return"].tolist() == [3, 1]
    assert none.reward["reward"].equal(full.reward["reward"])


def test_reward_channels_late_rewards_and_elapsed_time():
    class Rich(Clock):
        def step(self, actions, active):
            step = super().step(actions, active)
            late = np.where(self.time.repeat(self.agents) == 2, np.nan, 1.0)
            return step._replace(reward={"task": step.reward, "late": late}, elapsed=np.full(self.slots, 0.5))

    rollout = Runner([Script("low")], Rich(1)).episodes(lengths(3))
    assert rollout.reward["task"].tolist() == [0, 1, 2]
    assert rollout.scored["late"].tolist() == [True, False, True] and rollout.scored["task"].all()
    assert rollout.elapsed.tolist() == [0.5] * 3
    assert rollout.streams.labels["return/task"].tolist() == [3]
    assert rollout.streams.labels["return/late"].isnan().all() and rollout.streams.labels["return"].isnan().all()


def test_advance_moves_what_is_held_and_keeps_what_was_decided():
    """A goal relative to the state: what the world moves by is taken off what remains."""

    class Relative(Script):
        def advance(self, action, obs, previous):
            return action + previous["observation"][:, :2] - obs["observation"][:, :2]

    def reached(features, running):
        return running.action[:, 1] <= 0

    high = Relative("high", Until(reached), lambda f, p: torch.tensor([[0.0, 3.0]]).expand(len(f["observation"]), -1))
    rollout = Runner([high, obey()], Clock(2)).episodes(lengths(7, 4))
    assert rollout.executed[:, 1].tolist() == [3, 2, 1, 3, 2, 1, 3, 3, 2, 1, 3]
    assert table(rollout, "high", "start", "stop", "end") == [
        (0, 3, OPTION),
        (3, 6, OPTION),
        (6, 7, TERMINATED),
        (7, 10, OPTION),
        (10, 11, TERMINATED),
    ]
    assert (rollout.decisions["high"].action == torch.tensor([0.0, 3.0])).all(), "decided, not moved"


def test_a_bottom_level_may_hold_and_move_its_action():
    class Decay(Script):
        def advance(self, action, obs, previous):
            return action / 2

    low = Decay("low", Every(3), lambda f, p: torch.full((len(f["observation"]), 1), 8.0))
    rollout = Runner([low], Clock(1)).episodes(lengths(5))
    assert rollout.proposed[:, 0].tolist() == [8, 4, 2, 8, 4]
    assert rollout.decisions["low"].action[:, 0].tolist() == [8, 8]


class Reflex(Script):
    """Executes the negative of what is proposed at ticks 1 and 2."""

    def guard(self, features, proposed, running):
        danger = (features["observation"][:, 1] - 1.5).abs() < 1
        return torch.where(danger[:, None], -proposed, proposed)


def test_a_reflex_overrides_without_ending_the_span():
    low = Reflex("low", act=lambda f, p: p + 1)
    rollout = Runner([Script("high", Every(4)), low], Clock(2)).episodes(lengths(4, 3))
    assert rollout.proposed[:, 0].tolist() == [1, 1, 1, 1, 2, 2, 2]
    assert rollout.executed[:, 0].tolist() == [1, -1, -1, 1, 2, -2, -2]
    assert table(rollout, "high", "start", "stop", "end") == [(0, 4, TERMINATED), (4, 7, TERMINATED)]
    assert len(rollout.decisions["low"]) == 7, "credit goes to what was proposed, tick by tick"


def test_a_termination_may_look_at_overrides():
    high = Script("high", Until(lambda features, running: running.overridden, End.INTERRUPTED))
    rollout = Runner([high, Reflex("low", act=lambda f, p: p + 1)], Clock(1)).episodes(lengths(5))
    interrupted = int(End.INTERRUPTED)
    assert table(rollout, "high", "start", "stop", "end") == [
        (0, 2, interrupted),
        (2, 3, interrupted),
        (3, 5, TERMINATED),
    ]


def test_a_guard_without_danger_changes_nothing():
    class Careless(Script):
        def guard(self, features, proposed, running):
            return proposed

    plain = Runner([Script("low")], Clock(2)).episodes(lengths(3, 2))
    guarded = Runner([Careless("low")], Clock(2)).episodes(lengths(3, 2))
    assert differences(plain, guarded) == []


def test_a_guard_may_return_what_is_proposed_on_some_ticks_only():
    class Seldom(Script):
        def guard(self, features, proposed, running):
            return proposed * 5 if (features["observation"][:, 1] == 2).any() else proposed

    rollout = Runner([Seldom("low", act=lambda f, p: f["observation"][:, 1:2] + 1)], Clock(1)).episodes(lengths(4, 4))
    assert rollout.executed[:, 0].tolist() == [1, 2, 15, 4] * 2


def test_the_top_guard_has_the_last_word():
    class Top(Script):
        def guard(self, features, proposed, running):
            return torch.full_like(proposed, 9.0)

    rollout = Runner([Top("high"), Reflex("low", act=lambda f, p: p + 1)], Clock(1)).episodes(lengths(2))
    assert rollout.executed.tolist() == [[9, 9], [9, 9]]


@pytest.mark.parametrize("termination", [lambda t: t, lambda t: t | Every(1), lambda t: Every(3) & t])
def test_learned_terminations_are_evaluated_and_recorded_on_every_tick(termination):
    def head(features, action):
        return features["observation"][:, 1] / 10 + action[:, 1] / 100

    learned = Learned(head, threshold=0.35)
    rollout = Runner([Script("high", termination(learned)), obey()], Clock(2)).episodes(lengths(6, 4))
    recorded = rollout.observation["high.termination"]
    assert recorded.dtype == torch.float32
    assert recorded.isnan().tolist() == [tick == 0 for tick in rollout.tick.tolist()], (
        "nothing to end at the first tick"
    )
    running = rollout.decisions["high"].action[owners(rollout, "high").roll(1), 1]  # held when the tick began
    expected = rollout.tick / 10 + running / 100
    assert torch.allclose(recorded[rollout.tick > 0], expected[rollout.tick > 0])


def test_learned_terminations_sample_with_the_runners_generator():
    def run(probability, seed=0):
        learned = Learned(lambda features, action: torch.full((len(action),), probability))
        runner = Runner([Script("high", learned), obey()], Clock(8), generator=torch.Generator().manual_seed(seed))
        return runner.episodes(lengths(*[50] * 16))

    assert differences(run(0.3, 1), run(0.3, 1)) == [] and differences(run(0.3, 1), run(0.3, 2)) != []
    assert len(run(0.0).decisions["high"]) == 16 and len(run(1.0).decisions["high"]) == 800
    share = (len(run(0.3).decisions["high"]) - 16) / (16 * 49)
    assert abs(share - 0.3) < 4 * (0.3 * 0.7 / 784) ** 0.5
    ends = set(run(0.3).decisions["high"].end.tolist())
    assert ends == {OPTION, TERMINATED}


def test_several_learned_terminations_are_told_apart():
    low = Learned(lambda f, a: torch.full((len(a),), 0.25), threshold=0.5)
    high = Learned(lambda f, a: torch.full((len(a),), 0.75), threshold=0.9)
    rollout = Runner([Script("high", low | high), obey()], Clock(1)).episodes(lengths(3))
    assert rollout.observation["high.termination.0"][1:].tolist() == [0.25] * 2
    assert rollout.observation["high.termination.1"][1:].tolist() == [0.75] * 2


def test_the_runner_refuses_what_makes_no_sense():
    with pytest.raises(UsageError, match="at least one level"):
        Runner([], Clock(1))
    with pytest.raises(UsageError, match="different names"):
        Runner([Script("a"), Script("a")], Clock(1))
    with pytest.raises(UsageError, match="'stream'"):
        Runner([Script("stream")], Clock(1))
    with pytest.raises(UsageError, match="at least one tick, not 0"):
        Runner([Script("low")], Clock(1)).collect(0)
    with pytest.raises(UsageError, match="'carry'"):
        Runner([Script("low")], Clock(1)).collect(1, open_spans="carry")
    with pytest.raises(UsageError, match="at least one Reset"):
        Runner([Script("low")], Clock(1)).episodes([])
    with pytest.raises(UsageError, match="same labels"):
        Runner([Script("low")], Clock(2)).episodes([Reset(labels={"task": 1}), Reset()])
    with pytest.raises(UsageError, match="label 'length'"):
        Runner([Script("low")], Clock(1)).episodes([Reset(labels={"length": 1})])
    with pytest.raises(UsageError, match="k >= 1"):
        Every(0)
    with pytest.raises(UsageError, match="policy_id names 2 agents"):
        Runner([Script("low")], Clock(1), policy_id=["a", "b"])


def test_records_of_one_tick_tell_what_one_long_record_tells():
    """Of a level that decides on every tick; episodes end in the middle, side by side and one at a time."""

    def rows(ticks, slots):
        resets = count()
        runner = Runner([Script("low")], Clock(slots), resets=lambda _: lengths(2 + next(resets) % 3)[0])
        moves = Transitions("low", 0.9)
        rollouts = [runner.collect(ticks) for _ in range(12 // ticks)]
        parts = [moves.add(rollout) for rollout in rollouts]
        return Rollout.cat(rollouts), {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    for slots in (1, 3):
        (one, single), (long, whole) = rows(1, slots), rows(12, slots)
        assert one.reward["reward"].equal(long.reward["reward"]) and one.stream.equal(long.stream)
        assert one.spans["low"].offsets.equal(long.spans["low"].offsets)
        for columns in (single, whole):  # in order of episode, then of what happened in it
            order = columns["key"].argsort(stable=True)
            columns.update({name: column[order] for name, column in columns.items()})
        assert single.keys() == whole.keys()
        assert all(torch.equal(single[name].nan_to_num(), whole[name].nan_to_num()) for name in single)
