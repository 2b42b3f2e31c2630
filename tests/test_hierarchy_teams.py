"""Several agents in a slot: clocks of their own, decisions for whole teams, agents that stop early."""

from __future__ import annotations

import pytest
import torch
from hierarchy_scripts import Clock, Script, differences, lengths, obey, table

from echelon.errors import UsageError
from echelon.hierarchy.owners import owners
from echelon.hierarchy.runner import Runner
from echelon.hierarchy.termination import Every, Until
from echelon.hierarchy.world import Reset
from echelon.rollout import End, Rollout
from echelon.spans import Spans

OPTION, TIMEOUT, PARENT, TERMINATED = int(End.OPTION), int(End.TIMEOUT), int(End.PARENT), int(End.TERMINATED)


class Coach(Script):
    """Decides (seed, tick) for its members together; keeps the shapes that it saw."""

    def decide(self, features, parent, due):
        self.shape = tuple(features["observation"].shape)
        return super().decide({"observation": features["observation"][:, 0]}, parent, due)


def under(level: Script, *parent_of: int) -> Script:
    level.parent_of = parent_of
    return level


def test_two_agents_with_their_own_clocks():
    """Agent a decides anew every a + 2 ticks."""
    own = Until(lambda features, running: running.age >= features["observation"][:, 2] + 2, End.TIMEOUT)
    rollout = Runner([Script("high", own), obey()], Clock(2, agents=2)).episodes(lengths(5, 4))
    assert rollout.streams.episode.tolist() == [0, 0, 1, 1]
    assert rollout.streams.role == ["agent_0", "agent_1"] * 2
    assert rollout.spans["episode"].lengths.tolist() == [10, 8]
    found = table(rollout, "high", "stream", "start", "stop", "end")
    assert found == [
        (0, 0, 2, TIMEOUT),
        (0, 2, 4, TIMEOUT),
        (0, 4, 5, TERMINATED),
        (1, 5, 8, TIMEOUT),
        (1, 8, 10, TERMINATED),
        (2, 10, 12, TIMEOUT),
        (2, 12, 14, TERMINATED),
        (3, 14, 17, TIMEOUT),
        (3, 17, 18, TERMINATED),
    ]
    joint = rollout.spans["high"].meet(Spans.by_key(rollout.streams.episode[rollout.stream], rollout.tick))
    assert joint.n == rollout.size, "joint decision times can be found with `meet`"


def test_a_team_decision_commands_several_agents():
    coach, low = Coach("coach", Every(3)), under(obey(), 0, 0, 0)
    rollout = Runner([coach, low], Clock(2, agents=3)).episodes(lengths(5, 4))
    assert coach.shape == (2, 3, 3), "it sees its members' observations stacked"
    assert table(rollout, "coach", "stream", "start", "stop", "end") == [
        (0, 0, 3, TIMEOUT),
        (0, 3, 5, TERMINATED),
        (3, 15, 18, TIMEOUT),
        (3, 18, 19, TERMINATED),
    ], "a team's decision is entered once, on the time line of its first member"
    assert rollout.executed[:, 1].tolist() == [0, 0, 0, 3, 3] * 3 + [0, 0, 0, 3] * 3
    assert owners(rollout, "coach").tolist() == [0, 0, 0, 1, 1] * 3 + [2, 2, 2, 3] * 3
    assert owners(rollout, "low").tolist() == list(range(27))
    assert rollout.spans["coach"].lengths.tolist() == [3, 2, 5, 5, 3, 1, 4, 4], "the other members' streams stay whole"
    assert rollout.spans.parent("low") == "coach"
    together = Spans.by_key(owners(rollout, "coach"))
    assert together.reduce(rollout.reward["reward"], "sum").tolist() == [9, 21, 9, 9]


def test_the_end_of_a_team_decision_ends_its_members_spans():
    low = under(Script("low", Every(2)), 0, 0)
    rollout = Runner([Coach("coach", Every(3)), low], Clock(1, agents=2)).episodes(lengths(4))
    ends = [(2, TIMEOUT), (1, PARENT), (1, TERMINATED)] * 2
    assert [(b - a, end) for a, b, end in table(rollout, "low", "start", "stop", "end")] == ends
    assert rollout.decisions["low"].parent.tolist() == [0, 0, 1] * 2


def test_a_team_may_give_each_member_its_own_command():
    class Split(Coach):
        per_member = True

        def decide(self, features, parent, due):
            return super().decide(features, parent, due)._replace(action=features["observation"][:, :, 1:])

    rollout = Runner([Split("coach", Every(2)), under(obey(), 0, 0)], Clock(2, agents=2)).episodes(lengths(3, 3))
    assert rollout.executed.tolist() == [[0, 0], [0, 0], [2, 0], [0, 1], [0, 1], [2, 1]] * 2
    assert rollout.decisions["coach"].action.shape == (4, 2, 2)


def test_two_interleaved_teams_with_their_own_clocks_under_one_head():
    team = Until(lambda f, running: running.age >= f["observation"][:, 0, 2] + 1, End.TIMEOUT)
    coaches = under(Coach("coach", team), 0, 0)
    rollout = Runner([Coach("head", Every(3)), coaches, under(obey(), 0, 1, 0, 1)], Clock(1, agents=4)).episodes(
        lengths(4)
    )
    assert coaches.shape == (2, 2, 3)
    assert table(rollout, "coach", "stream", "start", "stop", "end") == [
        (0, 0, 1, TIMEOUT),
        (0, 1, 2, TIMEOUT),
        (0, 2, 3, TIMEOUT),
        (0, 3, 4, TERMINATED),
        (1, 4, 6, TIMEOUT),
        (1, 6, 7, PARENT),
        (1, 7, 8, TERMINATED),
    ]
    assert owners(rollout, "coach").tolist() == [0, 1, 2, 3, 4, 4, 5, 6] * 2
    assert owners(rollout, "head").tolist() == [0, 0, 0, 1] * 4
    assert rollout.decisions["coach"].parent.tolist() == [0, 0, 0, 1, 0, 0, 1]


def test_below_shows_a_coach_each_of_its_members():
    class Patient(Coach):
        def ends(self, features, running, below):
            self.below = below
            return below.all(1)

    coach = Patient("coach")
    own = Until(lambda f, running: running.age >= f["observation"][:, 2] + 1)
    rollout = Runner([coach, under(Script("low", own), 0, 0)], Clock(1, agents=2)).episodes(lengths(5))
    assert coach.below.shape == (1, 2)
    assert table(rollout, "coach", "start", "stop", "end") == [(0, 2, OPTION), (2, 4, OPTION), (4, 5, TERMINATED)]


def test_a_coach_may_guard_its_members():
    class Swap(Coach):
        def guard(self, features, proposed, running):
            return proposed.flip(1)

    low = Script("low", act=lambda f, p: f["observation"][:, 2:])
    rollout = Runner([Swap("coach"), under(low, 0, 0, 0)], Clock(2, agents=3)).episodes(lengths(1, 1))
    assert rollout.proposed[:, 0].tolist() == [0, 1, 2] * 2
    assert rollout.executed[:, 0].tolist() == [2, 1, 0] * 2
    rollout = Runner([Swap("coach"), under(low, 0, 1, 0, 1)], Clock(2, agents=4)).episodes(lengths(1, 1))
    assert rollout.executed[:, 0].tolist() == [2, 3, 0, 1] * 2


@pytest.mark.parametrize("slots", [1, 2, 3])
def test_agents_that_stop_early_leave_the_team_to_go_on(slots):
    coach, low = Coach("coach", Every(2)), under(obey(), 0, 0)
    rollout = Runner([coach, low], Clock(slots, agents=2)).episodes(lengths((1, 5), (3, 3), (4, 2)))
    assert rollout.spans["stream"].lengths.tolist() == [1, 5, 3, 3, 4, 2]
    assert rollout.streams.final_observation["observation"][:, 1].tolist() == [1, 5, 3, 3, 4, 2]
    assert table(rollout, "coach", "stream", "start", "stop", "end") == [
        (1, 1, 3, TIMEOUT),
        (1, 3, 5, TIMEOUT),
        (1, 5, 6, TERMINATED),
        (2, 6, 8, TIMEOUT),
        (2, 8, 9, TERMINATED),
        (4, 12, 14, TIMEOUT),
        (4, 14, 16, TERMINATED),
    ], "a team goes by the member that lasted longest"
    assert owners(rollout, "coach").tolist() == [0, 0, 0, 1, 1, 2, 3, 3, 4, 3, 3, 4, 5, 5, 6, 6, 5, 5]
    assert rollout.streams.labels["return"].tolist() == [0, 10, 3, 3, 6, 1]


def test_team_decisions_are_carried_across_batches():
    def runner():
        stack = [Coach("coach", Every(4)), under(Script("low", Every(3)), 0, 0)]
        return Runner(stack, Clock(2, agents=2), resets=lambda i: Reset(seed=i, options={"length": 3 + 4 * (i % 2)}))

    parts, whole = runner(), runner().collect(11)
    assert differences(Rollout.cat([parts.collect(n) for n in (3, 3, 5)]), whole) == []
    assert owners(whole, "coach").min() >= 0


@pytest.mark.parametrize("cuts", [(5, 4), (1, 4, 4), (6, 3), (2, 5, 2)])
def test_a_carried_team_decision_outlives_the_member_on_whose_time_line_it_is_entered(cuts):
    """Agent 0 stops at 6; the decision made at 4 lasts until 8."""

    def runner():
        reset = Reset(options={"length": (6, 9)})
        return Runner([Coach("coach", Every(4)), under(obey(), 0, 0)], Clock(1, agents=2), resets=lambda i: reset)

    parts, whole = runner(), runner().collect(9)
    joined = Rollout.cat([parts.collect(n) for n in cuts])
    assert owners(joined, "coach").tolist() == [0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 1, 1, 1, 1, 2]
    assert joined.executed.equal(whole.executed)
    assert joined.decisions["coach"].end.tolist() == [TIMEOUT, TIMEOUT, TERMINATED]


def test_roles_policies_and_learners_are_recorded():
    world = Clock(1, agents=2)
    rollout = Runner([Script("low")], world, policy_id=["new", "old"], learner=[True, False]).episodes(lengths(1, 1))
    assert rollout.streams.policy_id == ["new", "old"] * 2
    assert rollout.streams.learner.tolist() == [True, False] * 2


def test_teams_that_do_not_fit_are_refused():
    with pytest.raises(UsageError, match=r"has 2 streams a slot, but parent_of names \[0, 0, 0\]"):
        Runner([Coach("coach"), under(obey(), 0, 0, 0)], Clock(1, agents=2))
    with pytest.raises(UsageError, match=r"teams of sizes \[2, 1\]"):
        Runner([Coach("coach"), under(obey(), 0, 0, 1)], Clock(1, agents=3))
    with pytest.raises(UsageError, match="'low' is at the top"):
        Runner([under(obey(), 0, 0)], Clock(1, agents=2))
    alone = Coach("coach")
    alone.per_member = True
    with pytest.raises(UsageError, match="per_member, but 'low' does not set parent_of"):
        Runner([alone, obey()], Clock(1))


def test_a_level_over_one_agent_of_several_sees_plain_rows():
    rollout = Runner([Script("high", Every(2)), under(obey(), 0, 1)], Clock(1, agents=2)).episodes(lengths(3))
    assert rollout.decisions["high"].action.tolist() == [[0, 0], [0, 2], [0, 0], [0, 2]]
    assert torch.equal(owners(rollout, "high"), torch.tensor([0, 0, 1, 2, 2, 3]))
