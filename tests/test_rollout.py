"""Rollouts: one simulated history recorded whole or in batches, cut, joined, saved, damaged and refused."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from echelon import columns
from echelon.errors import DataError
from echelon.rollout import Begin, Decisions, End, Ragged, Rollout, Streams, decision_returns, partition
from echelon.spans import Spans, SpanTree

LEVELS = ("manager", "worker")


# ---- a history in plain Python, and its record over a window of ticks


def simulate(seed: int, episodes: int = 3) -> list[dict]:
    """Streams of one or two roles: rewards, time, and decisions as (start, stop, end, row of the parent) by tick."""
    rng = np.random.default_rng(seed)
    history = []
    for episode in range(episodes):
        for role in ("leader", "helper")[: rng.integers(1, 3)]:
            length = int(rng.integers(1, 13))
            fate = rng.choice([End.TERMINATED, End.TRUNCATED, End.OPEN])
            manager, tick = [], 0
            while tick < length:
                stop = min(tick + int(rng.integers(0, 5)), length)
                manager.append((tick, stop, rng.choice([End.OPTION, End.TIMEOUT]) if stop < length else fate, -1))
                tick = stop
            owner = [next(k for k, d in enumerate(manager) if d[0] <= t < d[1]) for t in range(length)]
            worker = [(t, t + 1, End.OPTION if t + 1 < length else fate, owner[t]) for t in range(length)]
            history.append(
                {
                    "episode": 10 + episode, "role": role, "length": length, "fate": fate,
                    "reward": rng.normal(size=length).tolist(), "elapsed": rng.choice([0.0, 1.0, 3.0], length).tolist(),
                    "manager": manager, "worker": worker,
                }
            )  # fmt: skip
    return history


def record(history: list[dict], start: int = 0, stop: int = 99) -> Rollout:
    """What a collector records of ticks start..stop-1: open decisions are cut, and carried into the next window."""
    alive = [s for s in history if s["length"] > start]
    spans_of = [(start, min(stop, s["length"])) for s in alive]
    ticks = [t for a, b in spans_of for t in range(a, b)]
    stream = [k for k, (a, b) in enumerate(spans_of) for _ in range(a, b)]
    first = [sum(b - a for a, b in spans_of[:k]) - spans_of[k][0] for k in range(len(alive))]
    streams = Spans.by_key(torch.tensor(stream, dtype=torch.int64))
    tree: dict[str, tuple[Spans, str | None]] = {
        "episode": (Spans.by_key(torch.tensor([alive[k]["episode"] for k in stream], dtype=torch.int64)), None),
        "stream": (streams, "episode"),
    }
    tables: dict[str, Decisions] = {}
    row_of: dict[tuple[str, int, int], int] = {}
    for level, above in zip(LEVELS, ("stream", "manager"), strict=True):
        rows = []
        for k, s in enumerate(alive):
            a, b = spans_of[k]
            for number, (begin, end, why, parent) in enumerate(s[level]):
                if (begin < b and end > a) or (begin == end and a <= begin < b):
                    cut = end > b
                    row_of[level, k, number] = len(rows)
                    rows.append(
                        (k, max(begin, a) + first[k], min(end, b) + first[k], int(begin < a),
                         End.OPEN if cut else why, row_of.get(("manager", k, parent), -1), 100.0 * s["episode"] + begin)
                    )  # fmt: skip
        column = [torch.tensor([row[j] for row in rows], dtype=torch.int64) for j in range(6)]
        action = torch.tensor([row[6] for row in rows], dtype=torch.float32)
        spans, span = partition(tree[above][0], column[1], column[2])
        tables[level] = Decisions(
            **dict(zip(("stream", "start", "stop", "begin", "end", "parent"), column, strict=True)), span=span,
            action=action[:, None].expand(-1, 2), log_prob=-action, values={"V": action + 1},
        )  # fmt: skip
        tree[level] = (spans, above)
    fates = [s["fate"] if s["length"] <= stop else None for s in alive]
    final = [[b, s["episode"]] for s, (_, b) in zip(alive, spans_of, strict=True)]
    number = torch.tensor(ticks, dtype=torch.int64)
    marks = (number % 4 == 0).nonzero()[:, 0]
    seen = torch.stack([number, torch.tensor([alive[k]["episode"] for k in stream], dtype=torch.int64)], 1).float()
    reward = torch.tensor([alive[k]["reward"][t] for k, t in zip(stream, ticks, strict=True)], dtype=torch.float32)
    return Rollout(
        stream=torch.tensor(stream, dtype=torch.int64),
        tick=number,
        elapsed=torch.tensor([alive[k]["elapsed"][t] for k, t in zip(stream, ticks, strict=True)], dtype=torch.float32),
        reward={"task": reward, "bonus": torch.ones(len(ticks))},
        scored={name: torch.ones(len(ticks), dtype=torch.bool) for name in ("task", "bonus")},
        observation={
            "state": seen,
            "text": Ragged(values=number.repeat_interleave(number % 3 + 1), spans=Spans.from_lengths(number % 3 + 1)),
        },
        proposed=seen * 2,
        executed=seen * 2,
        decisions=tables,
        streams=Streams(
            episode=torch.tensor([s["episode"] for s in alive], dtype=torch.int64),
            role=[s["role"] for s in alive],
            policy_id=["p" for _ in alive],
            learner=torch.tensor([s["role"] == "leader" for s in alive], dtype=torch.bool),
            terminated=torch.tensor([fate == End.TERMINATED for fate in fates], dtype=torch.bool),
            truncated=torch.tensor([fate == End.TRUNCATED for fate in fates], dtype=torch.bool),
            start_tick=torch.tensor([a for a, _ in spans_of], dtype=torch.int64),
            final_observation={"state": torch.tensor(final, dtype=torch.float32).reshape(-1, 2)},
            labels={"last": torch.tensor([b for _, b in spans_of]), "task": [f"task{s['episode']}" for s in alive]},
        ),
        spans=SpanTree(tree),
        memory={"manager": (marks, number[marks].float())},
        meta={"seed": 1, "levels": list(LEVELS)},
    )  # fmt: skip


def readable(r: Rollout) -> dict:
    """The whole record as plain values, by names that survive any renumbering of rows."""
    name = [(int(e), role) for e, role in zip(r.streams.episode, r.streams.role, strict=True)]
    text = r.observation["text"]
    words = [part.tolist() for part in text.values.split(text.spans.lengths.tolist())]
    items = {
        (*name[int(r.stream[i])], int(r.tick[i])): (
            float(r.elapsed[i]), float(r.reward["task"][i]), bool(r.scored["task"][i]), words[i],
            r.observation["state"][i].tolist(), r.proposed[i].tolist(), r.executed[i].tolist(),
        )
        for i in range(r.size)
    }  # fmt: skip
    keys = list(items)
    decisions = {}
    for level, d in r.decisions.items():
        above = r.decisions.get("manager")
        decisions[level] = sorted(
            (
                *name[int(d.stream[k])], int(d.stop[k] - d.start[k]), int(d.begin[k]), int(d.end[k]),
                keys[int(d.start[k])] if d.start[k] < r.size else None, d.action[k].tolist(), float(d.log_prob[k]),
                float(d.values["V"][k]), int(d.span[k]) >= 0,
                float(above.action[d.parent[k], 0]) if d.parent[k] >= 0 else None,
            )
            for k in range(len(d))
        )  # fmt: skip
    s = r.streams
    streams = {
        name[k]: (s.policy_id[k], bool(s.learner[k]), bool(s.terminated[k]), bool(s.truncated[k]), int(s.start_tick[k]),
                  s.final_observation["state"][k].tolist(), int(s.labels["last"][k]), s.labels["task"][k])
        for k in range(len(s))
    }  # fmt: skip
    memory = {keys[int(i)]: float(v) for i, v in zip(*r.memory["manager"], strict=True)}
    tree = {
        n: (r.spans.parent(n), sorted(sorted(map(str, np.array(keys, object)[part])) for part in parts(r.spans[n])))
        for n in r.spans
    }
    return {"items": items, "decisions": decisions, "streams": streams, "memory": memory, "tree": tree, "meta": r.meta}


def parts(spans: Spans) -> list[list[int]]:
    order = torch.arange(spans.size) if spans.order is None else spans.order
    return [part.tolist() for part in order.split(spans.lengths.tolist())] if spans.n else []


# ---- joining and cutting


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.lists(st.integers(1, 12), max_size=4))
def test_batches_join_to_the_whole(seed, cuts):
    history, edges = simulate(seed), [0, *sorted(set(cuts)), 99]
    batches = [record(history, a, b) for a, b in pairwise(edges)]
    whole = readable(record(history))
    assert readable(Rollout.cat(batches)) == whole
    assert readable(Rollout.cat([Rollout.cat(batches[:2]), *batches[2:]])) == whole
    rest = record(history, edges[-2])  # what began before the first batch given stays carried
    assert readable(Rollout.cat([rest])) == readable(rest)


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.permutations(range(3)), st.integers(1, 3))
def test_episodes_are_cut_out_in_the_order_asked_for(seed, order, count):
    history, ids = simulate(seed), order[:count]
    taken = record(history).episodes(ids)
    chosen = [s for k in ids for s in history if s["episode"] == 10 + k]
    assert taken.streams.episode.tolist() == [s["episode"] for s in chosen]
    assert readable(taken) == readable(record(chosen))
    assert readable(Rollout.cat([record(history).episodes([k]) for k in ids])) == readable(taken)


def test_no_episodes_are_an_empty_record():
    none = record(simulate(0)).episodes([])
    assert none.size == len(none.streams) == len(none.decisions["worker"]) == 0
    with pytest.raises(DataError, match="once"):
        record(simulate(0)).episodes([1, 1])


def test_metas_that_differ_are_kept_side_by_side():
    a, b = record(simulate(0)).episodes([0]), record(simulate(0)).episodes([1])
    assert Rollout.cat([a, b]).meta == a.meta
    b.meta = {"seed": 2}
    assert Rollout.cat([a, b]).meta == {"parts": [a.meta, {"seed": 2}]}


def test_cat_refuses_what_does_not_follow():
    ended, open_ = _two_streams()
    open_ = {**open_, "role": "helper"}
    with pytest.raises(
        DataError, match="'leader' of episode 0 is met again but had ended before: give the rollouts in"
    ):
        Rollout.cat([record([ended, open_]), record([ended, open_])])
    with pytest.raises(DataError, match="'helper' of episode 1 is met again but goes back in time"):
        Rollout.cat([record([open_]), record([open_])])
    with pytest.raises(
        DataError, match=r"rollout 1 cannot be joined to rollout 0: reward channels \[\] against \['bonus', 't"
    ):
        Rollout.cat([record([ended]), replace(record([open_]), reward={}, scored={})])
    with pytest.raises(DataError, match="no rollouts to join"):
        Rollout.cat([])


def test_cat_refuses_an_open_decision_that_nothing_carries():
    history = [{**simulate(0)[0], "length": 4, "fate": End.TERMINATED, "reward": [0.0] * 4, "elapsed": [1.0] * 4,
                "manager": [(0, 4, End.TERMINATED, -1)], "worker": []}]  # fmt: skip
    first, second = record(history, 0, 2), record(history, 2)
    begin = torch.full_like(second.decisions["manager"].begin, Begin.DECIDED)
    second.decisions["manager"] = replace(second.decisions["manager"], begin=begin)
    with pytest.raises(DataError, match="'manager' leaves decisions open"):
        Rollout.cat([first, second])


# ---- rewards


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.sampled_from(LEVELS))
def test_decision_returns_are_the_discounted_sums_over_their_spans(seed, level):
    history, gamma = simulate(seed), 0.9
    rollout = record(history)
    returns = decision_returns(rollout, level, gamma, "task")
    expected = []
    for s in history:
        for start, stop, end, _ in s[level]:
            clock, total = 0.0, 0.0
            for t in range(start, stop):
                total += gamma**clock * s["reward"][t]
                clock += s["elapsed"][t]
            expected.append((total, clock, end))
    torch.testing.assert_close(returns.reward, torch.tensor([e[0] for e in expected]), rtol=1e-5, atol=1e-5)
    assert returns.duration.tolist() == [e[1] for e in expected]
    assert returns.end.tolist() == [e[2] for e in expected]


def test_reward_channels_add_up_and_unscored_rows_are_refused():
    rollout = record(simulate(1))
    torch.testing.assert_close(rollout.reward_sum(), rollout.reward["task"] + 1)
    torch.testing.assert_close(rollout.reward_sum(["bonus"]), torch.ones(rollout.size))
    rollout.scored["task"][[1, 2]] = False
    assert rollout.reward_sum("bonus").sum() == rollout.size
    for ask in (rollout.reward_sum, lambda: decision_returns(rollout, "worker", 0.9)):
        with pytest.raises(DataError, match="'task' is not scored at 2 items, the first is 1"):
            ask()
    with pytest.raises(DataError, match="no reward channel 'style'; there are task, bonus"):
        rollout.reward_sum("style")
    with pytest.raises(DataError, match="no level 'planner'; there are manager, worker"):
        decision_returns(rollout, "planner", 0.9)


def test_zero_length_decisions_own_nothing_and_earn_nothing():
    streams = Spans.from_lengths([3])
    spans, span = partition(streams, torch.tensor([0, 0, 2, 3]), torch.tensor([0, 2, 3, 3]))
    assert spans.offsets.tolist() == [0, 2, 3] and span.tolist() == [-1, 0, 1, -1]


# ---- files


def flat(r: Rollout) -> dict[str, torch.Tensor]:
    from echelon.rollout import _columns

    return columns.flatten(_columns(r))


@settings(max_examples=10)
@given(st.integers(0, 10**6))
def test_save_and_load_give_the_same_bits(tmp_path_factory, seed):
    path, rollout = tmp_path_factory.mktemp("rollout") / "step_000015.000", record(simulate(seed))
    rollout.proposed = rollout.executed  # shared memory
    rollout.save(path)
    loaded = Rollout.load(path)
    before, after = flat(rollout), flat(loaded)
    assert before.keys() == after.keys()
    for name, column in before.items():
        assert column.dtype == after[name].dtype and torch.equal(column, after[name]), name
    assert readable(loaded) == readable(rollout) and loaded.levels == rollout.levels
    assert sorted(file.name for file in path.parent.iterdir()) == [
        "step_000015.000.json",
        "step_000015.000.safetensors",
    ]
    header = json.loads((path.parent / "step_000015.000.json").read_text())["header"]
    assert header["counts"]["items"] == rollout.size and header["enums"]["end"]["truncated"] == End.TRUNCATED
    assert readable(rollout.to("cpu")) == readable(rollout)


@pytest.fixture
def saved(tmp_path):
    record(simulate(5)).save(tmp_path / "r")
    return tmp_path / "r"


def test_every_flipped_or_missing_byte_is_noticed(saved):
    rng = np.random.default_rng(0)
    for suffix in (".safetensors", ".json"):
        file = saved.with_name("r" + suffix)
        intact = file.read_bytes()
        for _ in range(60):
            damaged = bytearray(intact)
            if rng.random() < 0.5:
                damaged[rng.integers(len(intact))] ^= 1 << rng.integers(8)
            else:
                damaged = damaged[: rng.integers(len(intact))]
            file.write_bytes(damaged)
            try:
                same = columns._digest(json.loads(damaged)) == columns._digest(json.loads(intact))
            except ValueError:
                same = False
            if not same:  # a changed blank between JSON values changes nothing
                with pytest.raises(DataError, match=r"r\.(safetensors|json): "):
                    Rollout.load(saved)
        file.write_bytes(intact)
    assert Rollout.load(saved).size


def test_files_that_do_not_belong_together_are_refused(saved, tmp_path):
    other = tmp_path / "other"
    record(simulate(6)).save(other)
    saved.with_name("r.safetensors").write_bytes(other.with_name("other.safetensors").read_bytes())
    with pytest.raises(DataError, match=r"r\.safetensors: altered or truncated"):
        Rollout.load(saved)
    other.with_name("other.safetensors").unlink()
    with pytest.raises(DataError, match=r"other\.safetensors: no such file"):
        Rollout.load(other)
    columns.save(other, "echelon.other", {"x": torch.ones(1)}, {})
    with pytest.raises(DataError, match=r"holds echelon\.other version 1, not echelon\.rollout 1"):
        Rollout.load(other)


def test_who_lists_the_tensors_of_a_run_that_goes_on_finds_whole_records(tmp_path, monkeypatch):
    order, put = [], os.replace
    monkeypatch.setattr(columns.os, "replace", lambda new, old: (order.append(Path(old).suffix), put(new, old)))
    record(simulate(5)).save(tmp_path / "r")
    assert order == [".json", ".safetensors"]


def test_a_full_disk_leaves_the_old_file_and_no_litter(saved, monkeypatch):
    def full(tensors, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(columns, "save_file", full)
    with pytest.raises(OSError, match="No space"):
        record(simulate(6)).save(saved)
    assert readable(Rollout.load(saved)) == readable(record(simulate(5)))
    assert len(list(saved.parent.iterdir())) == 2


def test_names_and_headers_that_cannot_be_stored_are_refused(tmp_path):
    with pytest.raises(DataError, match="'a/b' cannot be a column's"):
        columns.save(tmp_path / "r", "x", {"a/b": torch.ones(1)}, {})
    with pytest.raises(DataError, match="not JSON-able"):
        columns.save(tmp_path / "r", "x", {}, {"meta": object()})
    assert not list(tmp_path.iterdir())


# ---- what a record may not say


def _spoil(**changes):
    return lambda r: replace(r, **{name: change(getattr(r, name)) for name, change in changes.items()})


def _decisions(level="manager", **changes):
    def spoil(r):
        d = r.decisions[level]
        d = replace(d, **{name: change(getattr(d, name).clone(), r) for name, change in changes.items()})
        return replace(r, decisions={**r.decisions, level: d})

    return spoil


def _streams(**changes):
    return lambda r: replace(r, streams=replace(r.streams, **{n: f(getattr(r.streams, n)) for n, f in changes.items()}))


def _put(value, row=0):
    def change(column, *_):
        column = column.clone()
        column[row] = value
        return column

    return change


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_spoil(tick=lambda t: t[:-1]), "tick has 5 rows, expected 6"),
        (_spoil(tick=_put(7, 1)), "tick decreases at item 2"),
        (_spoil(tick=lambda t: t.float()), "tick must be torch.int64"),
        (_spoil(elapsed=_put(-1.0, 2)), "elapsed must be finite and at least 0, is not at item 2"),
        (_spoil(elapsed=_put(torch.nan)), "elapsed"),
        (_spoil(scored=lambda s: {"task": s["task"]}), "reward channels"),
        (_spoil(reward=lambda r: {**r, "task": r["task"] * torch.nan}), "'task' is marked scored but not finite"),
        (_spoil(observation=lambda o: {"state": o["state"][1:]}), "observation 'state' has 5 rows"),
        (_spoil(stream=lambda s: 1 - s), "stream column and the partition"),
        (_spoil(spans=lambda t: SpanTree({n: Spans.by_key(torch.arange(6) % 2) for n in t})), "contiguous"),
        (_spoil(memory=lambda m: {"manager": (torch.tensor([6]), torch.ones(1))}), "outside of the items at row 0"),
        (_streams(truncated=lambda t: ~t), "stream 0 is terminated and truncated"),
        (_streams(episode=lambda e: e * 0), "two streams of one episode have the same role"),
        (_streams(episode=lambda e: e * 0, role=lambda r: ["a", "b"]), "'episode' and the episode numbers"),
        (_streams(start_tick=lambda t: t - 1), "start_tick is not the tick of the first item in stream 0"),
        (_streams(labels=lambda t: {"task": ["a"]}), "streams' task has 1 rows"),
        (_decisions(stream=_put(5)), "decision 0 of level 'manager' names a stream that does not exist"),
        (_decisions(stop=_put(6)), "start <= stop inside its stream"),
        (_decisions(start=_put(3)), "start <= stop inside its stream"),
        (_decisions(span=_put(-1)), "must own a span if it holds any item"),
        (_decisions(span=_put(99)), "names a span that does not exist"),
        (_decisions(span=_put(1)), "does not fill its span"),
        (_decisions(stop=_put(1)), "does not fill its span"),
        (_decisions(end=_put(9)), "unknown end"),
        (_decisions(begin=_put(2)), "unknown begin"),
        (_decisions(end=_put(End.TERMINATED)), "ends as terminated, its stream does not there"),
        (_decisions(end=_put(End.TRUNCATED, 1)), "ends as truncated, its stream does not there"),
        (_decisions(end=_put(End.OPEN)), "is open, but not at the end"),
        (_decisions(end=_put(End.OPEN, 1)), "is open, but not at the end of an unfinished stream"),
        (_decisions(begin=_put(Begin.CARRIED, 1)), "is carried, but does not start with its stream"),
        (_decisions(parent=_put(0)), "parent outside of the 0 decisions above"),
        (_decisions("worker", parent=_put(3)), "parent outside of the 3 decisions above"),
        (_decisions("worker", parent=_put(2)), "has a parent in another episode"),
        (_spoil(decisions=lambda d: {"stream": d["manager"]}), "not names for a level"),
        (_decisions(action=lambda a, r: a[1:]), r"decisions\['manager'\] action has 2 rows, expected 3"),
    ],
)  # fmt: skip
def test_contradictions_are_refused_by_name(spoil, message):
    with pytest.raises(DataError, match=message):
        spoil(record(_two_streams()))


def _two_streams() -> list[dict]:
    """Stream 0: managers hold items 0-1 and 2-3, terminated; stream 1: items 4-5, open."""
    plain = {"role": "leader", "worker": []}
    return [
        {**plain, "episode": 0, "length": 4, "fate": End.TERMINATED, "reward": [1.0] * 4, "elapsed": [1.0] * 4,
         "manager": [(0, 2, End.OPTION, -1), (2, 4, End.TERMINATED, -1)], "worker": [(0, 1, End.OPTION, 0)]},
        {**plain, "episode": 1, "length": 2, "fate": End.OPEN, "reward": [1.0] * 2, "elapsed": [1.0] * 2,
         "manager": [(0, 2, End.OPEN, -1)]},
    ]  # fmt: skip


def test_the_unspoilt_record_is_accepted():
    rollout = record(_two_streams())
    assert (
        rollout.levels == ["manager", "worker"]
        and rollout.above("worker") == "manager"
        and rollout.above("manager") is None
    )
