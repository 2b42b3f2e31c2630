"""The flame graph of recorded episodes: its columns, its numbers, hostile text, and how it behaves in a browser."""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_language import small, tiny_language
from test_view import checked, record

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import frames
from echelon.credit.returns import gae
from echelon.errors import EchelonError
from echelon.evidence.view import control, flame, gather, talk
from echelon.evidence.view.page import page
from echelon.evidence.view.timeline import Strings, Timeline, followed, lanes, packed, unpacked
from echelon.language.record import Record
from echelon.rollout import End, Rollout
from echelon.systems import index
from echelon.training import run

HOSTILE = (
    '</script><script>document.title="owned"</script><img src=x onerror=document.title="owned">\u202eevil\u0000 & ]]>'
)


# ---- columns


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([0, 1, 255, 256, -1, 40_000, -70_000]), max_size=40))
def test_whole_numbers_travel_unchanged(numbers: list[int]) -> None:
    column = np.array(numbers, dtype=np.int64)
    assert unpacked(json.loads(json.dumps(packed(column)))).tolist() == numbers


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(width=64), max_size=30), st.integers(1, 5))
def test_real_numbers_travel_bit_for_bit(numbers: list[float], times: int) -> None:
    column = np.repeat(np.array(numbers, dtype=np.float64), times)
    assert unpacked(packed(column)).tobytes() == column.tobytes()


def test_repeated_numbers_are_kept_once() -> None:
    told = packed(np.repeat([1.5, 2.5], 500))
    assert len(json.dumps(told)) < 120 and unpacked(told).tolist() == [1.5] * 500 + [2.5] * 500


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 5)), max_size=20))
def test_boxes_of_a_lane_do_not_overlap(pairs: list[tuple[int, int]]) -> None:
    start = np.array([a for a, _ in pairs], dtype=float)
    stop = start + np.array([b for _, b in pairs], dtype=float)
    found = lanes(start, stop)
    for i in range(len(pairs)):
        for j in range(i):
            apart = stop[i] <= start[j] or stop[j] <= start[i]
            assert found[i] != found[j] or apart
    deepest = max((int(((start <= t) & (stop > t)).sum()) for t in range(26)), default=0)
    assert len(set(found.tolist())) <= max(deepest + int((start == stop).sum()), 1) or not pairs


# ---- numbers of control episodes


def valued(length: int = 60) -> Rollout:
    """A record whose high level notes values."""
    rollout = record("pointmaze-medium-navigate-v0", 1, length)
    generator = torch.Generator().manual_seed(0)
    high = rollout.decisions["high"]
    high.values["value"] = torch.randn(len(high), generator=generator)
    rollout.reward["env"] = torch.randn(rollout.size, generator=generator)
    rollout.scored["env"] = torch.ones(rollout.size, dtype=torch.bool)
    return rollout


def test_advantages_are_those_of_gae_and_their_terms_sum_to_them() -> None:
    rollout, config = valued(), {"gamma": 0.9, "lam": 0.8}
    rollout.streams.terminated[:], rollout.streams.truncated[:] = True, False
    high = rollout.decisions["high"]
    high.end[high.end == int(End.TRUNCATED)] = int(End.TERMINATED)
    one = control.timelines(rollout, config, Strings(), 1)[0]
    mine = np.flatnonzero([one.rows[r].level == "high" for r in one.row])
    rows = (high.stream == 0).nonzero()[:, 0]
    reward = torch.tensor(
        [sum(0.9**k * float(rollout.reward["env"][int(a) + k]) for k in range(int(b - a)))
         for a, b in zip(high.start[rows], high.stop[rows], strict=True)], dtype=torch.float64,
    )  # fmt: skip
    gamma = 0.9 ** (high.stop[rows] - high.start[rows]).double()
    from echelon.spans import Spans

    value = high.values["value"][rows].double()
    exact = gae(Spans.from_lengths(torch.tensor([len(rows)])), reward=reward, value=value, gamma=gamma, lam=0.8,
                terminated=torch.ones(1, dtype=torch.bool))  # fmt: skip
    np.testing.assert_allclose(one.metrics["advantage"][mine], exact.advantage.numpy(), atol=1e-6)
    error, decay = one.chain["td_error"][mine], one.chain["decay"][mine]
    for k in range(len(mine)):
        weights = np.concatenate([[1.0], np.cumprod(decay[k:-1])])
        assert abs(weights @ error[k:] - one.metrics["advantage"][mine[k]]) < 1e-6
    parts = one.chain["reward over it"] + one.chain["discounted value after it"] - one.chain["value before it"]
    np.testing.assert_allclose(parts[mine], error, atol=1e-12)


def test_what_was_cut_off_or_notes_no_values_says_so() -> None:
    one = control.timelines(valued(), {"gamma": 0.9, "lam": 0.8}, Strings(), 1)[0]
    high = [k for k, r in enumerate(one.row) if one.rows[r].level == "high"]
    assert np.isnan(one.metrics["advantage"][high[-1]])
    assert "notes no values" in one.why["low"] and "generalised advantage" in one.why["high"]
    assert one.parent[[k for k, r in enumerate(one.row) if one.rows[r].level == "low"]].tolist() == [
        high[t // 7] for t in range(60)
    ]


def test_a_chain_stops_where_the_row_or_the_episode_does() -> None:
    found = followed(np.array([0, 0, 0, 1]), np.array([1.0, 2.0, 4.0, 8.0]), np.array([0.5, 0.0, 0.5, 0.5]))
    assert found.tolist() == [2.0, 2.0, 4.0, 8.0]


def test_rewards_and_replaced_actions_lie_at_their_steps() -> None:
    rollout = valued()
    rollout.executed[3] += 1.0
    one = control.timelines(rollout, {}, Strings(), 2)[0]
    assert one.replaced.tolist() == [3] and one.length == 60 and one.span == 60.0
    np.testing.assert_allclose(one.rewards["env"], rollout.reward["env"][:60].numpy(), atol=1e-7)
    assert one.earned == pytest.approx(float(rollout.reward["env"][:60].sum()), abs=1e-5)


# ---- language


@contextlib.contextmanager
def talking(folder: Path) -> Iterator[Path]:
    """A run of GiGPO in a world of a dozen words, which is known within it."""
    with tiny_language(folder / "models"):
        cls = index.load("gigpo")
        config = small(cls, updates=2, warm_epochs=1, warm_episodes=24)
        done = run.train(cls, config, folder / "run", device="cpu", threads=1, say=lambda line: None)
        assert done is not None
        yield done


@pytest.fixture(scope="module")
def talked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Such a run."""
    with talking(tmp_path_factory.mktemp("talked")) as done:
        yield done


def test_a_language_run_shows_what_it_learnt_from(talked: Path) -> None:
    group = gather.gather([talked])[0]
    one = group.runs[0].timelines[0]
    learnt = Record.load(talked / "records" / "learnt_000000002")
    assert one.key.startswith("learnt ") and set(one.terms) == set(learnt.items.adv) and len(one.terms) == 2
    np.testing.assert_allclose(sum(one.terms.values()), one.metrics["advantage"], atol=1e-6)
    for k, (role, text, box) in enumerate(one.said):
        assert one.rows[one.row[box]].level == "call", k
        assert role in ("world", "policy") and isinstance(group.runs[0].strings.all[text], str)
    calls = (learnt.episode == 0).nonzero()[:, 0]
    assert one.length == len(calls) and one.span == float(learnt.length[calls].clamp(min=1).sum())
    first = learnt.item_slice(int(calls[0]))
    total = sum(column[first].double().mean() for column in learnt.items.adv.values())
    assert one.metrics["advantage"][one.said[0][2]] == pytest.approx(float(total), abs=1e-6)
    shown = "".join(group.runs[0].strings.all[k] for k in one.context[one.said[0][2]])
    assert shown.strip(), "the context is told"
    html = page([group])
    checked(html)
    assert "learnt 6" in html or "learnt " in html


def test_rewritten_contexts_stay_small() -> None:
    """8 episodes of 50 turns, each of which reads 800 tokens anew, in less than 5 MB."""
    strings = Strings()
    made = frames.rewritten(8, 50)
    told = talk.timelines(made, strings, frames.decode, "", 8)
    documents = [flame.episode_document(one, None) for one in told]
    text = flame.as_script({"runs": [{"strings": strings.all, "episodes": documents}]})
    assert len(told) == 8 and len(text) < 5_000_000 and len(set(strings.all)) == len(strings.all)
    assert len(told[0].tokens["at"]) == 50 * 60 and told[0].tokens["at"].tolist() == list(range(3000))
    shown = "".join(strings.all[k] for k in told[3].context[7])
    assert shown == frames.decode(made.context_ids(3 * 50 + 7).tolist())


# ---- hostile text


def hostile() -> Timeline:
    """An episode whose texts try to get out."""
    strings = Strings()
    numbers = [strings(text) for text in (HOSTILE, "x" * 1_000_000)]
    rollout = valued(20)
    one = control.timelines(rollout, {"gamma": 0.9}, strings, 1)[0]
    one.text = np.full(len(one.row), numbers[0])
    one.text[1] = numbers[1]
    one.said = [(HOSTILE, numbers[0], 0), ("world", numbers[1], 1)]
    one.title = HOSTILE
    hostile_run.strings = strings
    return one


class hostile_run:
    """Where the strings of the latest hostile episode are."""

    strings: Strings


def test_no_text_gets_out_of_the_script_element(tmp_path: Path) -> None:
    html = hostile_page(tmp_path).read_text()
    parser = checked(html)
    assert not re.search(r"onerror=document", re.sub(r"<script.*?</script>", "", html, flags=re.S))
    blob = json.loads(next(text for text in parser.scripts if text.startswith('{"colours"')))
    assert HOSTILE in blob["runs"][0]["strings"]
    assert sum(len(text) == 1_000_000 for text in blob["runs"][0]["strings"]) == 1 and html.count("x" * 1_000_000) == 1


def hostile_page(folder: Path) -> Path:
    (folder / "config.json").write_text(json.dumps({"system": "nobody", "config": {"env": "somewhere", "seed": 0}}))
    group = gather.gather([folder])[0]
    group.runs[0].timelines = [hostile()]
    group.runs[0].strings = hostile_run.strings
    (folder / "page.html").write_text(page([group]))
    return folder / "page.html"


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("evaluations.jsonl", b'{"step": 1, "tasks": 7}\n'),
        ("evaluations.jsonl", b'{"tasks": {"a": [1]}}\n'),
        ("metrics.jsonl", b'{"loss": 1.0}\n'),
        ("identity.json", b"[1]"),
        ("result.json", b'{"score": '),
        ("rollouts/step_000000001.safetensors", b"not a tensor"),
        ("records/step_000000001.safetensors", b"not a tensor"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, file: str, content: bytes) -> None:
    fields: dict[str, Any] = {"env": "somewhere", "seed": 0}
    if file.startswith("records"):
        fields |= {"group": 1, "warm_episodes": 0}
    (tmp_path / "config.json").write_text(json.dumps({"system": "nobody", "config": fields}))
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_bytes(content)
    with pytest.raises(EchelonError, match=Path(file).stem):
        gather.gather([tmp_path])
