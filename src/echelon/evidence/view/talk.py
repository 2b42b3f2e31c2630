"""Episodes of a language `Record` as timelines: spans of levels, calls, labels of tokens, and the tokens themselves.

Time is counted in emitted tokens, call by call in the sequence in which they were made.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import torch

from echelon.evidence.view.timeline import Array, Row, Strings, Timeline, lanes
from echelon.language.engine import End, Source
from echelon.language.record import Record

WORDS = {
    End.EOS: "it ended its text",
    End.STOP: "a stop text",
    End.LENGTH: "the bound of tokens",
    End.GRAMMAR: "the grammar",
    End.ERROR: "an error",
    End.TIMEOUT: "time was up",
    End.KILLED: "killed",
}
MARKS = {End.LENGTH: "timeout", End.TIMEOUT: "timeout", End.ERROR: "fault", End.KILLED: "interrupted"}
PIECES = re.compile(r"(?<=\n)|(?=<\|?(?:im_start|user|assistant|system|world)\b)")
"""Where the text of a context is cut, so that what is read again and again is kept once."""
CALL, TOKEN = "call", "token"
Decode = Callable[[Sequence[int]], str]


def timelines(
    record: Record, strings: Strings, decode: Decode | None, why: str, most: int, name: str = ""
) -> list[Timeline]:
    """The first `most` episodes of a record. decode: ids → text; None without a tokenizer. why: of its credit."""
    found = []
    for episode in range(min(most, len(record.episodes.uid))):
        calls = (record.episode == episode).nonzero()[:, 0].numpy()
        if len(calls):
            found.append(_Teller(record, strings, decode, calls).told(episode, why, name))
    return found


class _Teller:
    """One episode on its way: its calls in time order, and where each of them begins."""

    def __init__(self, record: Record, strings: Strings, decode: Decode | None, calls: Array):
        started = record.calls.started.numpy()[calls]
        if np.isfinite(started).all() and len(set(record.calls.stream.numpy()[calls].tolist())) > 1:
            calls = calls[np.argsort(started, kind="stable")]
        self.record, self.strings, self.decode, self.calls = record, strings, decode, calls
        self.items = [np.arange(s.start, s.stop) for s in map(record.item_slice, calls.tolist())]
        self.size = np.array([len(items) for items in self.items])
        wide = np.maximum(self.size, 1)
        self.begin = np.concatenate([[0], np.cumsum(wide)])[:-1].astype(np.float64)
        self.stop = self.begin + wide
        self.all = np.concatenate(self.items)
        self.boxes: list[tuple[Row, float, float, int, int, int, Array]] = []

    def told(self, episode: int, why: str, name: str) -> Timeline:
        record = self.record
        self._spans()
        self._calls()
        self._labels()
        rows = list(dict.fromkeys(box[0] for box in self.boxes))
        place = {row: k for k, row in enumerate(rows)}
        boxes = sorted(self.boxes, key=lambda box: (place[box[0]], box[1]))
        row = np.array([place[box[0]] for box in boxes])
        start, stop = (np.array([box[k] for box in boxes]) for k in (1, 2))
        calls = np.array([box[5] for box in boxes])
        metrics, terms, facts = self._credit([box[6] for box in boxes], calls)
        terminated = bool(record.episodes.terminated[episode])
        paid = float(record.calls.reward[torch.from_numpy(self.calls)].double().sum())
        number = {int(call): k for k, call in enumerate(calls) if rows[row[k]].level == CALL}
        return Timeline(
            key=f"{name}{int(record.episodes.uid[episode])}", title=self._title(episode, name), earned=paid,
            success=terminated and paid > 0, length=len(self.calls), unit="token", span=float(self.stop[-1]),
            rows=rows, row=row, start=start, stop=stop, end=np.array([box[3] for box in boxes]),
            ends=[*((WORDS[reason], MARKS.get(reason, "")) for reason in End), ("the level begins anew", "")],
            parent=_enclosing(rows, row, start, stop), text=np.array([box[4] for box in boxes]),
            choice=np.full(len(boxes), -1), metrics=metrics, terms=terms, facts=facts, why={"": why},
            rewards={"reward": self._rewards()}, said=self._said(number),
            context=[self._context(box[5]) if rows[r].level == CALL else [] for box, r in zip(boxes, row, strict=True)],
            tokens=self._tokens(),
        )  # fmt: skip

    # ---- boxes

    def _stream(self, call: int) -> str:
        record = self.record
        stream = int(record.calls.stream[call])
        agent = record.agents[int(record.streams.agent[stream])]
        mine = {int(record.calls.stream[c]) for c in self.calls}
        alike = sorted(s for s in mine if record.agents[int(record.streams.agent[s])] == agent)
        return agent if len(alike) == 1 else f"{agent} {alike.index(stream) + 1}"

    def _spans(self) -> None:
        """Spans of the levels that calls begin."""
        record, over = self.record, len(End)
        streams = record.calls.stream.numpy()
        for level in record.levels:
            begins = record.calls.begin[level].numpy()
            for stream in dict.fromkeys(streams[self.calls].tolist()):
                mine = np.flatnonzero(streams[self.calls] == stream)
                cuts = [0, *(k for k in range(1, len(mine)) if begins[self.calls[mine[k]]]), len(mine)]
                for a, b in pairwise(cuts):
                    part, call = mine[a:b], int(self.calls[mine[a]])
                    end = over if b < len(mine) else int(record.calls.end[self.calls[mine[-1]]])
                    items = np.concatenate([self.items[k] for k in part])
                    row, text = Row(self._stream(call), level), self._out(call)
                    self.boxes.append((row, self.begin[part[0]], self.stop[part[-1]], end, text, call, items))

    def _calls(self) -> None:
        lane = lanes(self.begin, self.stop)
        for k, call in enumerate(self.calls.tolist()):
            row = Row(self._stream(call), CALL, int(lane[k]))
            end = int(self.record.calls.end[call])
            self.boxes.append((row, self.begin[k], self.stop[k], end, self._out(call), call, self.items[k]))

    def _labels(self) -> None:
        """Runs of equal labels of tokens: blocks of a text."""
        names = self.record.meta.get("labels", {})
        for channel in self.record.labels:
            for k, call in enumerate(self.calls.tolist()):
                codes = self.record.items.label[channel].numpy()[self.items[k]]
                cuts = [0, *(np.flatnonzero(codes[1:] != codes[:-1]) + 1).tolist(), len(codes)]
                for a, b in pairwise(cuts):
                    if a < b and codes[a] >= 0:
                        label = names.get(channel, [])[codes[a]] if codes[a] < len(names.get(channel, [])) else ""
                        text = self.strings(f"{label}: {self._text(self.items[k][a:b])}")
                        row, at = Row(self._stream(call), channel), self.begin[k]
                        end = int(self.record.calls.end[call]) if b == len(codes) else len(End)
                        self.boxes.append((row, at + a, at + b, end, text, call, self.items[k][a:b]))

    # ---- what is known of them

    def _credit(self, items: list[Array], calls: Array) -> tuple[dict[str, Array], dict[str, Array], dict[str, Array]]:
        """Means over the tokens of each box: (metrics, terms of the advantage, facts behind it)."""
        written = self.record.items
        terms = {name: _means(column.double().numpy(), items) for name, column in written.adv.items()}
        metrics: dict[str, Array] = {"advantage": sum(terms.values(), np.zeros(len(items)))} if terms else {}
        metrics["log-probability"] = _means(written.logp.double().numpy(), items)
        for table, chosen in ((self.record.items, items), (self.record.calls, [np.array([call]) for call in calls])):
            metrics |= {
                f"value {head}": _means(column.double().numpy(), chosen) for head, column in table.value.items()
            }
        metrics["reward"] = self.record.calls.reward.double().numpy()[calls]
        return {name: m for name, m in metrics.items() if np.isfinite(m).any()}, terms, self._facts(calls)

    def _facts(self, calls: Array) -> dict[str, Array]:
        """What group-relative credit compares: the return of the episode, and its group's."""
        record = self.record
        paid = torch.zeros(len(record.episodes.uid)).double().index_add(0, record.episode, record.calls.reward.double())
        episode = int(record.episode[calls[0]])
        group = paid[record.episodes.group == record.episodes.group[episode]].numpy()
        told = {"return of the episode": float(paid[episode]), "mean return of its group": float(group.mean())}
        told |= {"deviation in its group": float(group.std()), "episodes in its group": float(len(group))}
        valid = record.calls.valid.numpy()[calls].astype(np.float64)
        return {name: np.full(len(calls), number) for name, number in told.items()} | {"understood": valid}

    def _rewards(self) -> Array:
        found = np.zeros(int(self.stop[-1]))
        found[self.stop.astype(int) - 1] = self.record.calls.reward.numpy()[self.calls]
        return found

    def _tokens(self) -> dict[str, Array]:
        """Columns of the emitted tokens; the place of each is its time."""
        written, items = self.record.items, self.all
        if not len(items):
            return {}
        at = np.concatenate([self.begin[k] + np.arange(n) for k, n in enumerate(self.size)])
        told = {
            "at": at.astype(np.int64),
            "text": np.array([self._token(int(i)) for i in self.record.token.numpy()[items]]),
            "given": written.source.numpy()[items] != int(Source.SAMPLED),
            "log-probability": written.logp.numpy()[items].astype(np.float32),
        }
        return told | {f"term {name}": column.double().numpy()[items] for name, column in written.adv.items()}

    # ---- texts

    def _token(self, token: int) -> int:
        return self.strings(self.decode([token]) if self.decode else f"#{token}")

    def _text(self, items: Array) -> str:
        ids = self.record.token.numpy()[items].tolist()
        return self.decode(ids) if self.decode else f"{len(ids)} tokens"

    def _out(self, call: int) -> int:
        text = int(self.record.calls.out_text[call])
        if text >= 0:
            return self.strings(self.record.texts[text])
        items = self.record.item_slice(call)
        return self.strings(self._text(np.arange(items.start, items.stop)))

    def _context(self, call: int) -> list[int]:
        """Pieces of what a call read."""
        if self.decode is None:
            return []
        text = self.decode(self.record.context_ids(call).tolist())
        return [self.strings(piece) for piece in PIECES.split(text) if piece]

    def _said(self, box: dict[int, int]) -> list[tuple[str, int, int]]:
        found = []
        for call in self.calls.tolist():
            seen = int(self.record.calls.obs_text[call])
            if seen >= 0:
                found.append(("world", self.strings(self.record.texts[seen]), box[call]))
            found.append((self._stream(call), self._out(call), box[call]))
        return found

    def _title(self, episode: int, name: str) -> str:
        kind = self.record.kinds[int(self.record.episodes.kind[episode])]
        group = int(self.record.episodes.group[episode])
        return f"training episode · {kind}, group {group}" if name else kind


def _means(column: Array, items: list[Array]) -> Array:
    """float64 [B]: the mean of a column over the items of each box; NaN without one that is known."""
    found = np.full(len(items), np.nan)
    for box, mine in enumerate(items):
        known = column[mine][np.isfinite(column[mine])]
        if len(known):
            found[box] = known.mean()
    return found


def _enclosing(rows: list[Row], row: Array, start: Array, stop: Array) -> Array:
    """int64 [B]: the shortest box of another level of the same stream that holds a box, -1 without one."""
    found = np.full(len(row), -1)
    for box in range(len(row)):
        same = [k for k, other in enumerate(rows) if other.stream == rows[row[box]].stream and k < row[box]]
        holds = np.isin(row, same) & (start <= start[box]) & (stop >= stop[box])
        if holds.any():
            places = np.flatnonzero(holds)
            found[box] = places[np.argmin(stop[places] - start[places])]
    return found
