"""Rows, paths and forest: what they hold on small records, and that a model finds the same numbers in all three."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from lm_views import tiny_lm
from record_reference import build, episodes, naive
from torch import Tensor

from echelon.errors import DataError, UsageError
from echelon.language.engine import End, Source
from echelon.language.record import Record, RecordBuilder, Use
from echelon.language.views import View, ancestor_mask, cheapest, cost, forest, paths, rows

PROMPT = [1, 2, 3]


def group() -> Record:
    """Two samples of one prompt, one of them going on."""
    builder = RecordBuilder()
    for uid, output in enumerate(([10, 11], [10, 12, 13])):
        episode = builder.episode(uid)
        line = episode.stream()
        episode.call(line, PROMPT, output, [-1] * len(output))
    episode.call(line, [*PROMPT, 10, 12, 13, 4], [14], [-1])
    return builder.build()


def layout(view: View) -> list[list[int]]:
    return [view.ids[a:b].tolist() for a, b in zip(view.rows.offsets[:-1], view.rows.offsets[1:], strict=True)]


def test_rows() -> None:
    view = rows(group())
    assert layout(view) == [[1, 2, 3, 10, 11], [1, 2, 3, 10, 12, 13], [1, 2, 3, 10, 12, 13, 4, 14]]
    assert view.position.tolist() == [*range(5), *range(6), *range(8)]
    assert view.parent.tolist() == [-1, 0, 1, 2, 3, -1, 5, 6, 7, 8, 9, -1, *range(11, 18)]
    assert view.item.tolist() == [0, 1, 2, 3, 4, 5]
    assert view.at.tolist() == [2, 3, 7, 8, 9, 17]
    assert view.here.tolist() == [3, 4, 8, 9, 10, 18] and view.target.tolist() == [10, 11, 10, 12, 13, 14]


def test_paths() -> None:
    view = paths(group())
    assert layout(view) == [[1, 2, 3, 10, 11], [1, 2, 3, 10, 12, 13, 4, 14]]
    assert view.item.tolist() == [0, 1, 2, 3, 4, 5] and view.at.tolist() == [2, 3, 7, 8, 9, 11]


def test_forest() -> None:
    view = forest(group())
    assert layout(view) == [[1, 2, 3, 10, 11, 12, 13, 4, 14]]
    assert view.position.tolist() == [0, 1, 2, 3, 4, 4, 5, 6, 7]
    assert view.parent.tolist() == [-1, 0, 1, 2, 3, 3, 5, 6, 7]
    # two outputs begin with the same token: one place predicts it, for both items
    assert view.at.tolist() == [2, 2, 3, 3, 5, 7] and view.item.tolist() == [0, 2, 1, 3, 4, 5]
    assert view.here.tolist() == [3, 3, 4, 5, 6, 8] and view.target.tolist() == [10, 10, 11, 12, 13, 14]
    mask = ancestor_mask(view, 0)
    assert mask[4].nonzero()[:, 0].tolist() == [0, 1, 2, 3, 4]
    assert mask[6].nonzero()[:, 0].tolist() == [0, 1, 2, 3, 5, 6]


def test_some_calls_only() -> None:
    view = paths(group(), [1])
    assert layout(view) == [[1, 2, 3, 10, 12, 13]] and view.item.tolist() == [2, 3, 4]
    empty = forest(group(), [])
    assert empty.rows.n == 0 and len(empty.item) == 0 and cost(empty) == 0


def test_a_budget_splits_trees() -> None:
    builder = RecordBuilder()
    for uid in range(4):
        episode = builder.episode(uid)
        episode.call(episode.stream(), PROMPT, [10 + uid, 20], [-1, -1])
    record = builder.build()
    assert [len(tree) for tree in layout(forest(record, budget=11))] == [11]
    assert [len(tree) for tree in layout(forest(record, budget=10))] == [9, 5]
    assert [len(tree) for tree in layout(forest(record, budget=1))] == [5, 5, 5, 5]
    with pytest.raises(DataError, match="at least 1 token, got 0"):
        forest(record, budget=0)


def test_texts_that_share_too_little_stay_apart() -> None:
    builder = RecordBuilder()
    for uid in range(2):
        episode = builder.episode(uid)
        episode.call(episode.stream(), [1], [10 + uid] * 300, [-1] * 300)
    record = builder.build()
    assert forest(record).rows.n == 2  # one token saved, 90,000 pairs in vain
    assert forest(record, width=10**6).rows.n == 1


def test_an_item_without_predecessor_is_refused() -> None:
    builder = RecordBuilder()
    episode = builder.episode(3)
    episode.call(episode.stream(), [], [], [], end=End.ERROR)
    episode.call(0, [], [5], [-1])
    record = builder.build()
    for view in (rows, paths, forest):
        with pytest.raises(
            DataError, match=r"call 1 \(number 1 of episode 3\) emits its first token with no token before"
        ):
            view(record)
    assert rows(record, [0]).rows.n == 0


# ---- cost


def test_cost_counts_padding_and_pairs() -> None:
    record = group()
    width = 10
    pairs = 1 / (6 * width)
    line = {5: 5 * (1 + 2.5 * pairs), 6: 6 * (1 + 3 * pairs), 8: 8 * (1 + 4 * pairs)}
    assert cost(rows(record), width, batch=1) == pytest.approx(sum(line.values()))
    assert cost(rows(record), width, batch=16) == pytest.approx(2 * line[8] + line[5])
    assert cost(paths(record), width, batch=16) == pytest.approx(2 * line[8])
    assert cost(forest(record, width=width), width) == pytest.approx(9 * (1 + 9 * pairs))


def test_the_cheapest_view() -> None:
    def one_prompt(samples: int, prompt: int, turns: int) -> Record:
        builder = RecordBuilder()
        for uid in range(samples):
            episode = builder.episode(uid)
            line, text = episode.stream(), list(range(prompt))
            for turn in range(turns):
                output = [1000 + uid, turn, 7, 7]
                episode.call(line, text, output, [-1] * 4)
                text = text + output
        return builder.build()

    name, view, costs = cheapest(one_prompt(8, 400, 1))
    assert name == "forest" and view.rows.n == 1 and set(costs) == {"rows", "paths", "forest"}
    assert costs["forest"] < costs["paths"] == costs["rows"] and costs["forest"] == cost(view)
    record = mixed()
    expected = {"rows": cost(rows(record)), "paths": cost(paths(record)), "forest": cost(forest(record))}
    assert cheapest(record)[2] == expected
    assert cheapest(one_prompt(8, 400, 1), among=("paths",))[0] == "paths"
    name, view, costs = cheapest(one_prompt(1, 50, 8))
    assert name == "paths" and costs["paths"] == costs["forest"] < costs["rows"] / 4
    with pytest.raises(UsageError, match="unknown view 'tree'; valid: forest, paths, rows"):
        cheapest(group(), among=("tree",))


# ---- the same numbers


def mixed() -> Record:
    """A group with forced prefixes; appended and rewritten turns; a planner with isolated executors; restarts inside
    sampled texts; turns sampled with a hint and scored without; a probe after every turn; a demonstration."""
    draw = torch.Generator().manual_seed(0)

    def some(count: int) -> list[int]:
        return torch.randint(4, 50, (count,), generator=draw).tolist()

    builder = RecordBuilder()
    system = [1, *some(12)]
    first: list[int] = []
    for uid in range(3):
        episode = builder.episode(uid)
        planner = episode.stream("planner")
        text = [*system, *some(2)] if uid else system
        for turn in range(3):
            forced = [2, 3] if turn == 0 else []
            output = forced + some(4)
            first = first or output
            source = [Source.FORCED] * len(forced) + [Source.SAMPLED] * 4
            logp = [float("nan")] * len(forced) + [-1.0] * 4
            hint = [*text, *some(3)] if turn == 1 else None
            call = episode.call(planner, text, output, logp, source, given=hint)
            episode.call(planner, [*text, *output, 2], some(1), source=Source.SCORED, use=Use.PROBE)
            worker = episode.stream("worker", call)
            own = [*system[:5], *output]
            for _ in range(2):
                done = some(3)
                episode.call(worker, own, done, [-1.0] * 3)
                own = [*own, *done, *some(1)]
            text = [*text, *output, *some(3)] if uid < 2 else [*system[:8], *some(3)]
        target = some(3)
        episode.call(planner, text, target, source=Source.SCORED, use=Use.TARGET)
    for uid, kept in ((10, 1), (11, 3)):
        again = builder.episode(uid, origin=(0, 0, kept))
        again.call(again.stream("planner"), [*system, *first[:kept]], some(5), [-1.0] * 5)
    return builder.build()


def logp(model: torch.nn.Module, view: View, count: int) -> Tensor:
    """Log-prob of the record's items under the model, one row at a time, with the row's mask written out."""
    found = torch.full((count,), torch.nan, dtype=torch.float64)
    starts = view.rows.offsets.tolist()
    for row, (start, stop) in enumerate(pairwise(starts)):
        mask = torch.zeros(1, 1, stop - start, stop - start, dtype=torch.float64)
        mask.masked_fill_(~ancestor_mask(view, row), torch.finfo(torch.float64).min)
        out = model(
            input_ids=view.ids[None, start:stop], position_ids=view.position[None, start:stop], attention_mask=mask
        )
        mine = (view.at >= start) & (view.at < stop)
        words = out.logits[0, view.at[mine] - start].log_softmax(-1)
        found = found.index_put((view.item[mine],), words.gather(1, view.target[mine, None])[:, 0])
    return found


def naive_logp(model: torch.nn.Module, record: Record) -> Tensor:
    """The same, call by call, with the model's own causal attention."""
    found = []
    for call in range(len(record.calls.out)):
        context, output = record.context_ids(call), record.output_ids(call)
        if len(output):
            words = model(input_ids=torch.cat([context, output])[None]).logits[0].log_softmax(-1)
            found.append(words[len(context) - 1 : -1].gather(1, output[:, None])[:, 0])
    return torch.cat(found)


@pytest.mark.parametrize("case", ["mixed", 3, 8])
def test_equal_log_probs_and_gradients(case: str | int) -> None:
    record = mixed() if isinstance(case, str) else build(episodes(case))
    model = tiny_lm(dtype=torch.float64)  # its attention is torch's; transformers' eager one has a softmax in float32
    weight = torch.randn(record.size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    parameters = list(model.parameters())

    def both(found: Tensor) -> list[Tensor]:
        return [found.detach(), *torch.autograd.grad(weight @ found, parameters)]

    expected = both(naive_logp(model, record))
    for view in (rows(record), paths(record), forest(record), forest(record, budget=30), forest(record, width=10**6)):
        for mine, other in zip(both(logp(model, view, record.size)), expected, strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-12)


def test_the_mixed_record_is_mixed() -> None:
    record = mixed()
    tokens = [len(view.ids) for view in (rows(record), paths(record), forest(record))]
    assert tokens[0] > tokens[1] > tokens[2]
    assert record.on_context.sum() < len(record.calls.out) and (record.items.source == Source.FORCED).any()
    assert all(len(naive(episodes(seed)).items) > 10 for seed in (3, 8))
