"""Episodes of a `Rollout` as timelines: the decisions of every level of every stream, and what came of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from echelon.errors import DataError
from echelon.evidence.view.timeline import Array, Row, Strings, Timeline, followed, lanes
from echelon.hierarchy.diagnostics import VALUE
from echelon.rollout import Decisions, End, Ragged, Rollout, decision_returns
from echelon.training.online.agent import AFTER, BONUS, EXPECTED

WORDS = {
    End.OPTION: "its own condition",
    End.TIMEOUT: "time was up",
    End.INTERRUPTED: "interrupted",
    End.PARENT: "the level above ended",
    End.TERMINATED: "a terminal state",
    End.TRUNCATED: "the episode was cut off",
    End.OPEN: "goes on",
}
MARKS = {End.TIMEOUT: "timeout", End.INTERRUPTED: "interrupted"}
NUMBERS = 8
"""Numbers of a vector that a box shows."""
WIDEST = 64
"""Numbers of an observation that the page keeps."""


def timelines(
    rollout: Rollout, config: Mapping[str, Any], strings: Strings, most: int, trained: bool = False
) -> list[Timeline]:
    """The first `most` episodes of a record. config: of the run, whose gamma and lam are those of the credit, where the
    record tells no others. trained: whether these are episodes of the training, and to be called so.
    """
    table = _table(rollout, config, strings)
    episodes = rollout.streams.episode.numpy()
    chosen = list(dict.fromkeys(episodes.tolist()))[:most]
    found = [_episode(rollout, table, np.flatnonzero(episodes == episode)) for episode in chosen]
    for one in found if trained else ():
        one.key, one.title = f"trained {one.key}", " · ".join(filter(None, ("training episode", one.title)))
    return found


def advantages(rollout: Rollout, level: str, config: Mapping[str, Any]) -> Array:
    """The advantages of a level's decisions that can be told, float64, stream by stream."""
    chain, _ = credit_of(rollout, level, config)
    if not chain:
        return np.zeros(0)
    d = rollout.decisions[level]
    order = _in_time(d)[(d.span >= 0)[_in_time(d)]].numpy()
    found = followed(d.stream.numpy()[order], chain["td_error"][order], chain["decay"][order])
    return found[np.isfinite(found)]


def _table(rollout: Rollout, config: Mapping[str, Any], strings: Strings) -> dict[str, dict[str, Any]]:
    """Level → what is known of all its decisions, [D] each, in time: stream by stream."""
    begin, stop = _times(rollout)
    found = {}
    for level, d in rollout.decisions.items():
        credit, why = credit_of(rollout, level, config)
        metrics = {VALUE if name == EXPECTED else name: column.double().numpy() for name, column in d.values.items()}
        if bool(d.log_prob.isfinite().any()):
            metrics["log-probability"] = d.log_prob.double().numpy()
        choice = d.action.ndim == 1 and not d.action.is_floating_point()
        last = np.maximum(d.stop.numpy() - 1, d.start.numpy())
        found[level] = {
            "start": begin[d.start.numpy().clip(max=rollout.size - 1)],
            "stop": np.where((d.span >= 0).numpy(), stop[last.clip(max=rollout.size - 1)], np.nan),
            "end": d.end.numpy(),
            "choice": d.action.numpy() if choice else np.full(len(d), -1),
            "text": np.array([strings(shown(action)) for action in d.action], dtype=np.int64),
            "metrics": metrics,
            "chain": credit,
            "why": why,
        }
    return found


def _times(rollout: Rollout) -> tuple[Array, Array]:
    """When each item begins and ends, float64 [N]: counted in its episode, inner decisions share their tick."""
    begin = rollout.tick.double()
    stop = begin + rollout.elapsed.clamp(min=0).double()
    inner = rollout.elapsed == 0
    return begin.numpy(), torch.where(inner, begin, stop).numpy()


def credit_of(rollout: Rollout, level: str, config: Mapping[str, Any]) -> tuple[dict[str, Array], str]:
    """("td_error", "decay" and the parts of a TD error of each decision, float64 [D]; how they come about or why not).

    With `lam` the chain is that of `credit.returns.gae` over the decisions of the level; else it is the TD error alone.
    gamma and lam are those that the record tells of the level, else the run's. After the last decision of a stream
    comes what the record says was expected then; where it says nothing, its advantage is unknown, and the ones before
    reach up to it.
    """
    d = rollout.decisions[level]
    noted = expected(d)
    if noted is None:
        return {}, f"{level} notes no values of its decisions, so there is nothing to compare what came of them with"
    rule = rollout.meta.get("credit", {}).get(level, config)
    try:
        gamma, lam = float(rule.get("gamma", 1.0)), float(rule.get("lam", 0.0))
        told = decision_returns(rollout, level, gamma)
    except DataError as problem:  # rewards that were never scored
        return {}, str(problem)
    value, ended = noted.double(), d.end == int(End.TERMINATED)
    last = rollout.streams.labels.get(AFTER + level)
    unknown = torch.full((len(rollout.streams),), torch.nan, dtype=torch.float64)
    after = _following(d, value, torch.as_tensor(last).double() if last is not None else unknown)
    after = torch.where(ended, 0.0, after)
    decay = gamma ** told.duration.double()
    own = d.values[BONUS].double() if BONUS in d.values else torch.zeros_like(value)
    error = told.reward.double() + own + decay * after - value
    known = _following(d, error, unknown).isfinite() & ~ended
    chain = {
        "td_error": error,
        "decay": torch.where(known, lam * decay, 0.0),
        "reward over it": told.reward.double(),
        **({"reward of the level's own": own} if BONUS in d.values else {}),
        "discounted value after it": decay * after,
        "value before it": value,
    }
    how = (
        f"generalised advantage: TD errors ahead, each weighed by gamma · lambda = {gamma:g} · {lam:g} once more"
        if lam
        else f"TD error of the noted values: reward + {gamma:g}^duration · value after − value before"
    )
    return {name: column.numpy() for name, column in chain.items()}, how


def expected(d: Decisions) -> Tensor | None:
    """What a level expected before each decision [D], however it was noted; None if it was not."""
    return d.values.get(VALUE, d.values.get(EXPECTED))


def _in_time(d: Decisions) -> Tensor:
    """int64 [D]: the decisions stream by stream, in order of time."""
    order = torch.argsort(d.start * 2 + (d.span >= 0), stable=True)
    return order[torch.argsort(d.stream[order], stable=True)]


def _following(d: Decisions, column: Tensor, last: Tensor) -> Tensor:
    """[D]: a column at the next decision of the same stream; at the last one of each, `last` [S]."""
    order = _in_time(d)
    found = last[d.stream].clone()
    same = d.stream[order[1:]] == d.stream[order[:-1]]
    found[order[:-1][same]] = column[order[1:][same]]
    return found


def _episode(rollout: Rollout, table: Mapping[str, Mapping[str, Any]], streams: Array) -> Timeline:
    """The timeline of the streams of one episode."""
    rows: list[Row] = []
    parts: list[tuple[str, Array, Array]] = []  # level, decisions of a lane in time order, their row
    for stream in streams:
        for level, d in rollout.decisions.items():
            mine = np.flatnonzero((d.stream.numpy() == stream) & (d.span.numpy() >= 0))
            mine = mine[np.argsort(d.start.numpy()[mine], kind="stable")]
            lane = lanes(table[level]["start"][mine], table[level]["stop"][mine])
            for k in range(int(lane.max()) + 1 if len(mine) else 1):
                rows.append(Row(rollout.streams.role[stream] if len(streams) > 1 else "", level, k))
                parts.append((level, mine[lane == k], np.full(int((lane == k).sum()), len(rows) - 1)))

    def column(name: str) -> Array:
        return np.concatenate([table[level][name][chosen] for level, chosen, _ in parts])

    def named(group: str) -> dict[str, Array]:
        names = dict.fromkeys(name for level, _, _ in parts for name in table[level][group])
        missing = {level: np.full(len(d), np.nan) for level, d in rollout.decisions.items()}
        return {
            name: np.concatenate([table[level][group].get(name, missing[level])[rows] for level, rows, _ in parts])
            for name in names
        }

    row = np.concatenate([numbers for _, _, numbers in parts])
    chain, metrics = named("chain"), named("metrics")
    if chain:
        metrics = {"advantage": followed(row, chain["td_error"], chain["decay"]), **metrics}
    start, first = column("start"), int(streams[0])
    items = np.flatnonzero(np.isin(rollout.stream.numpy(), streams))
    length, earned, success = _outcome(rollout, first, items)
    parent = _parents(rollout, parts)
    return Timeline(
        key=f"{int(rollout.streams.episode[first])}", title=_title(rollout, first), earned=earned, success=success,
        length=length, unit="step", span=float(max(np.nanmax(column("stop"), initial=1.0), 1.0)), rows=rows, row=row,
        start=start, stop=column("stop"), end=column("end"), parent=parent, text=column("text"),
        ends=[(WORDS[reason], MARKS.get(reason, "")) for reason in End], choice=column("choice"), metrics=metrics,
        chain=chain, why={level: table[level]["why"] for level in rollout.decisions},
        rewards=_rewards(rollout, items), replaced=_replaced(rollout, items), observation=_observed(rollout, items),
    )  # fmt: skip


def _parents(rollout: Rollout, parts: list[tuple[str, Array, Array]]) -> Array:
    """int64 [B]: the box of the decision that each serves, -1 without one."""
    place = {level: np.full(len(d) + 1, -1) for level, d in rollout.decisions.items()}  # the last one: no parent
    count = 0
    for level, chosen, _ in parts:
        place[level][chosen] = np.arange(count, count + len(chosen))
        count += len(chosen)
    found = []
    for level, chosen, _ in parts:
        above = rollout.above(level)
        parents = rollout.decisions[level].parent.numpy()[chosen]
        found.append(np.full(len(chosen), -1) if above is None else place[above][parents])
    return np.concatenate(found)


def _outcome(rollout: Rollout, stream: int, items: Array) -> tuple[int, float, bool | None]:
    """(environment steps, sum of the rewards that are known, success if it is told) of an episode."""
    mine = items[rollout.stream.numpy()[items] == stream]
    earned = sum(float(np.nansum(column.double().numpy()[items])) for column in rollout.reward.values())
    for name in ("success", "is_success"):
        column = rollout.streams.labels.get(name)
        if column is not None and not isinstance(column[stream], str) and np.isfinite(float(column[stream])):
            return len(np.unique(rollout.tick.numpy()[mine])), earned, bool(float(column[stream]) > 0)
    return len(np.unique(rollout.tick.numpy()[mine])), earned, None


def _title(rollout: Rollout, stream: int) -> str:
    task = rollout.streams.labels.get("task")
    return "" if task is None else f"task {task[stream].item() if isinstance(task, Tensor) else task[stream]}"


def _by_tick(rollout: Rollout, items: Array, column: Array) -> Array:
    """A column of items summed by tick, from tick 0."""
    ticks = rollout.tick.numpy()[items]
    return np.bincount(ticks, weights=np.nan_to_num(column), minlength=int(ticks.max(initial=0)) + 1)


def _rewards(rollout: Rollout, items: Array) -> dict[str, Array]:
    return {
        name: _by_tick(rollout, items, column.double().numpy()[items])
        for name, column in rollout.reward.items()
        if bool(rollout.scored[name].numpy()[items].any())
    }


def _replaced(rollout: Rollout, items: Array) -> Array:
    """Ticks at which a guard, a clip or a person changed what was decided."""
    differs = (rollout.executed[items] != rollout.proposed[items]).reshape(len(items), -1).any(1)
    return np.unique(rollout.tick.numpy()[items[differs.numpy()]])


def _observed(rollout: Rollout, items: Array) -> dict[str, Array]:
    """The first numbers of each observation of the episode's first stream, float32 [T, D]."""
    first = items[rollout.stream.numpy()[items] == rollout.stream.numpy()[items[0]]] if len(items) else items
    return {
        name: column[first].reshape(len(first), -1)[:, :WIDEST].float().numpy()
        for name, column in rollout.observation.items()
        if not isinstance(column, Ragged)
    }


def shown(action: Tensor) -> str:
    """A decision in short: its number, or the first numbers of a vector."""
    if action.ndim == 0 and not action.is_floating_point():
        return str(int(action))
    numbers = action.flatten()[:NUMBERS].tolist()
    return ", ".join(f"{x:.3g}" for x in numbers) + (", …" if action.numel() > NUMBERS else "")
