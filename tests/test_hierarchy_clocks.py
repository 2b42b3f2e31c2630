"""Clocks under any order of collects and episodes: invariants, and equality with a tick-by-tick reference in Python."""

from __future__ import annotations

import numpy as np
import torch
from hierarchy_scripts import Clock, Script, lengths, valid
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from echelon.hierarchy.owners import owners
from echelon.hierarchy.runner import Runner
from echelon.hierarchy.termination import Every, Never, Termination, Until
from echelon.hierarchy.world import Reset
from echelon.rollout import Begin, End, Rollout
from echelon.spans import Spans

Rule = tuple[
    int, int, bool
]  # (hold at most k ticks or 0, end where (7 seed + 3 tick + age) % m == 0 or 0, both needed)


def termination(rule: Rule) -> Termination:
    k, m, both = rule

    def hit(features, running):
        seed, tick = features["observation"][:, 0], features["observation"][:, 1]
        return (7 * seed + 3 * tick + running.age) % m == 0

    parts: list[Termination] = ([Every(k)] if k else []) + ([Until(hit)] if m else [])
    if not parts:
        return Never()
    return parts[0] if len(parts) == 1 else parts[0] & parts[1] if both else parts[0] | parts[1]


def code(rule: Rule, seed: int, tick: int, age: int) -> int:
    """The same, said plainly."""
    k, m, both = rule
    timeout, option = k > 0 and age >= k, m > 0 and (7 * seed + 3 * tick + age) % m == 0
    if both and k > 0 and m > 0:
        return int(End.OPTION) if timeout and option else 0
    return int(End.OPTION) if option else int(End.TIMEOUT) if timeout else 0


def reference(rules: list[Rule], seed: int, length: int, truncate: bool) -> list[list[tuple[int, int, int]]]:
    """The (start, stop, end) of the decisions of every level in one episode, one tick after another."""
    found: list[list[tuple[int, int, int]]] = [[] for _ in rules]
    begun = [0] * len(rules)
    for tick in range(1, length):
        parent_ended = False
        for level, held in enumerate(rules):
            end = code(held, seed, tick, tick - begun[level]) or (int(End.PARENT) if parent_ended else 0)
            parent_ended = end > 0
            if end:
                found[level].append((begun[level], tick, end))
                begun[level] = tick
    for level in range(len(rules)):
        found[level].append((begun[level], length, int(End.TRUNCATED if truncate else End.TERMINATED)))
    return found


def check_clocks(rollout: Rollout) -> None:
    """Every item lies in one decision a level, children inside their parents, at most one is open in a stream."""
    rollout = valid(rollout)
    ended = rollout.streams.terminated | rollout.streams.truncated
    for index, level in enumerate(rollout.levels):
        d = rollout.decisions[level]
        cover = torch.zeros(rollout.size, dtype=torch.int64)
        for start, stop in zip(d.start.tolist(), d.stop.tolist(), strict=True):
            cover[start:stop] += 1
        assert (cover == 1).all()
        assert (rollout.stream[d.start] == d.stream).all() and (rollout.stream[d.stop - 1] == d.stream).all()
        open_ones = torch.bincount(d.stream[d.end == End.OPEN], minlength=len(ended))
        assert (open_ones <= 1).all() and (open_ones[ended] == 0).all()
        carried = d.begin == Begin.CARRIED
        assert (rollout.streams.start_tick[d.stream[carried]] > 0).all()
        if index:
            above = rollout.decisions[rollout.levels[index - 1]]
            assert (above.start[d.parent] <= d.start).all() and (d.stop <= above.stop[d.parent]).all()
            last = d.stop == above.stop[d.parent]
            assert (above.end[d.parent[last]] != End.OPEN).logical_or(d.end[last] != End.PARENT).all()
            assert (d.stop[d.end == End.PARENT] == above.stop[d.parent[d.end == End.PARENT]]).all()
            assert torch.equal(d.parent[owners(rollout, level)], owners(rollout, rollout.levels[index - 1]))


class Clocks(RuleBasedStateMachine):
    """One runner, called in any order; what it collected since it last started over is joined and compared."""

    @initialize(
        rules=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 5), st.booleans()), min_size=1, max_size=3),
        slots=st.integers(1, 4),
        sizes=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    )
    def build(self, rules, slots, sizes):
        self.rules, self.sizes = rules, sizes
        stack = [Script(f"level_{i}", termination(rule)) for i, rule in enumerate(rules)]
        self.runner = Runner(stack, Clock(slots), resets=self.next_reset)
        self.batches: list[Rollout] = []
        self.open: dict[tuple[str, int], tuple] = {}  # what was decided, of decisions that the next batch carries
        self.bootstrapped = False

    def next_reset(self, episode: int) -> Reset:
        size = self.sizes[episode % len(self.sizes)]
        return Reset(seed=episode, options={"length": size, "truncate": episode % 3 == 0})

    @rule(ticks=st.integers(1, 7), bootstrapped=st.sampled_from([False, False, False, True]))
    def collect(self, ticks, bootstrapped):
        batch = self.runner.collect(ticks, "bootstrapped" if bootstrapped else "carried")
        check_clocks(batch)
        assert batch.size == ticks * self.runner.world.slots, "no slot is ever idle"
        for level, d in batch.decisions.items():
            for row in np.flatnonzero((d.begin == Begin.CARRIED).numpy()):
                held = self.open[level, int(batch.streams.episode[d.stream[row]])]
                assert (d.action[row].tolist(), float(d.log_prob[row]), float(d.values["guess"][row])) == held
        self.open = {
            (level, int(batch.streams.episode[d.stream[row]])): (
                d.action[row].tolist(),
                float(d.log_prob[row]),
                float(d.values["guess"][row]),
            )
            for level, d in batch.decisions.items()
            for row in np.flatnonzero((d.end == End.OPEN).numpy())
        }
        self.batches.append(batch)
        self.bootstrapped |= bootstrapped
        if self.bootstrapped:
            self.batches = []

    @rule(sizes=st.lists(st.integers(1, 7), min_size=1, max_size=6))
    def episodes(self, sizes):
        rollout = self.runner.episodes(lengths(*sizes))
        check_clocks(rollout)
        for stream, size in enumerate(sizes):
            self.compare(rollout, stream, stream, size, truncate=False)
        self.batches, self.bootstrapped = [], False

    @invariant()
    def agrees_with_the_reference(self):
        if not getattr(self, "batches", None):
            return
        joined = Rollout.cat(self.batches)
        for stream, seed in enumerate(joined.streams.labels["seed"].tolist()):
            options = self.next_reset(seed).options
            self.compare(joined, stream, seed, options["length"], options["truncate"])

    def compare(self, rollout: Rollout, stream: int, seed: int, size: int, truncate: bool) -> None:
        """One stream, which may be cut where the last batch ended, with the whole episode of the reference."""
        ticks = rollout.tick[rollout.stream == stream].tolist()
        assert ticks == list(range(len(ticks)))
        first = int(rollout.spans["stream"].starts[stream])
        whole = len(ticks) == size
        assert bool(rollout.streams.terminated[stream]) == (whole and not truncate)
        assert bool(rollout.streams.truncated[stream]) == (whole and truncate)
        for level, expected in zip(rollout.levels, reference(self.rules, seed, size, truncate), strict=True):
            d = rollout.decisions[level]
            mine = np.flatnonzero((d.stream == stream).numpy())
            mine = mine[np.argsort(d.start[mine].numpy(), kind="stable")]
            found = [(int(d.start[i]) - first, int(d.stop[i]) - first, int(d.end[i])) for i in mine]
            cut = [(a, min(b, len(ticks)), end if b <= len(ticks) else 0) for a, b, end in expected if a < len(ticks)]
            assert found == cut
            assert [d.action[i].tolist() for i in mine] == [[seed, start] for start, _, _ in found]


TestClocks = Clocks.TestCase
TestClocks.settings = settings(max_examples=150, stateful_step_count=10, deadline=None)


class Coach(Script):
    """Decides for its members by what the first of them sees."""

    def observe(self, obs, memory):
        return {"observation": obs["observation"][:, 0]}, memory


@given(
    rules=st.tuples(st.tuples(st.integers(1, 3), st.integers(0, 4)), st.tuples(st.integers(1, 4), st.integers(0, 4))),
    ages=st.lists(st.lists(st.integers(1, 8), min_size=4, max_size=4), min_size=1, max_size=4),
    cuts=st.lists(st.integers(3, 5), min_size=1, max_size=4),
    slots=st.integers(1, 2),
)
@settings(max_examples=60)
def test_teams_whose_members_stop_early_are_cut_and_joined(rules, ages, cuts, slots):
    """Two coaches of two agents each; no decision of theirs is longer than a batch."""

    def runner():
        coach = Coach("coach", termination((*rules[0], False)))
        low = Script("low", termination((*rules[1], False)))
        low.parent_of = (0, 1, 1, 0)
        world = Clock(slots, agents=4)
        return Runner(
            [coach, low], world, resets=lambda i: Reset(seed=i, options={"length": np.array(ages[i % len(ages)])})
        )

    parts, whole = runner(), valid(runner().collect(sum(cuts)))
    joined = Rollout.cat([valid(parts.collect(ticks)) for ticks in cuts])
    assert torch.equal(joined.tick, whole.tick) and torch.equal(joined.executed, whole.executed)
    for level in whole.levels:
        mine, theirs = owners(joined, level), owners(whole, level)
        assert (mine >= 0).all() and torch.equal(Spans.by_key(mine).ids, Spans.by_key(theirs).ids)
        a, b = joined.decisions[level], whole.decisions[level]
        assert torch.equal(a.action[mine], b.action[theirs]) and len(a) == len(b)
        assert torch.equal(a.end[mine], b.end[theirs])
    member = torch.tensor([0, 1, 1, 0])[torch.tensor([int(role[-1]) for role in whole.streams.role])[whole.stream]]
    team = Spans.by_key(owners(whole, "coach"))
    for column in (member, whole.streams.episode[whole.stream]):
        assert torch.equal(team.reduce(column, "min"), team.reduce(column, "max")), "a decision is one team's"
