"""What an iteration of a language agent was like, as numbers: by group, state, level and label.

Levels are those that the agent declares; labels are the channels of its tokens. A metric of a label that no token had
is left out. Legend: N items of the record, M items of the turns.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from echelon.credit.credit import Credit
from echelon.language.program import LevelSpec
from echelon.language.record import Record
from echelon.language.update import Step
from echelon.losses.surrogate import clip_fractions
from echelon.spans import Spans
from echelon.training.language import play
from echelon.training.language.agent import Turns
from echelon.training.language.critic import explained_variance

Metrics = dict[str, float | Tensor]
SIZES = {"of_2": (2, 2), "of_3_4": (3, 4), "of_5_8": (5, 8), "of_9_up": (9, 1 << 62)}
"""Bins of the histogram of state groups: name → fewest and most turns; those of one turn are `states/alone`."""


def measure(
    levels: Sequence[LevelSpec],
    turns: Turns,
    credit: Credit,
    trained: Tensor,
    given: Mapping[str, Tensor],
    steps: Sequence[Step],
) -> Metrics:
    """All of an iteration's metrics that do not depend on the system.

    trained: bool [M]. given: "advantage", "old_logp", perhaps "ref_logp", [N]. steps: the optimiser's, in order.
    """
    record = turns.record
    values: Metrics = {
        "success": play.success(record).float().mean(),
        "return": play.returns(record).mean(),
        **play.facts(record),
        "advantage/std": credit.advantage.std(),
        **{f"advantage/{name.replace('.', '/')}": term.abs().mean() for name, term in credit.terms.items()},
        **groups(turns),
        **states(turns),
        **losses(steps),
    }
    if steps:
        last = steps[-1].columns
        known = last["logp"].isfinite()
        ratio = last["logp"][known] - given["old_logp"][known]
        values |= {f"ratio/{k}": v for k, v in clip_fractions(ratio, given["advantage"][known]).items()}
        values["gradient_norm"] = max(step.grad_norm for step in steps)
    said = policy_columns(steps, given, turns)
    for name, column in said.items():
        values |= _mean(name, column, column.isfinite())
    values |= by_level(levels, turns) | spreads(levels, turns, credit, trained)
    return values | by_label(turns, credit, trained, said)


def groups(turns: Turns) -> Metrics:
    """Episodes in a group of equal tasks, and the share of groups whose episodes all earned the same."""
    outcome = turns.tree["episode"].reduce(turns.reward)
    within = turns.tree.within("episode", "group")
    silent = within.reduce(outcome, "max") == within.reduce(outcome, "min")
    return {"groups/episodes": within.lengths.float().mean(), "groups/silent": silent.float().mean()}


def states(turns: Turns) -> Metrics:
    """Shares of the turns by how many turns of their task met their state: a histogram of the step groups."""
    known = turns.state >= 0
    sizes = Spans.by_key(turns.tree["group"].ids[known], turns.state[known]).lengths
    total = max(int(known.sum()), 1)
    found: Metrics = {"states/alone": (sizes == 1).sum() / total}
    for name, (least, most) in SIZES.items():
        found[f"states/{name}"] = sizes[(sizes >= least) & (sizes <= most)].sum() / total
    return found


def policy_columns(steps: Sequence[Step], given: Mapping[str, Tensor], turns: Turns) -> dict[str, Tensor]:
    """The columns "kl" (log π / π_ref at what was emitted) and "entropy", [M], before their step; NaN if not scored."""
    found: dict[str, Tensor] = {}
    for name in ("logp", "entropy"):
        for step in steps:
            if name in step.columns:
                column = step.columns[name][turns.items]
                found[name] = torch.where(column.isfinite(), column, found.get(name, column))
    logp = found.pop("logp", None)
    if logp is not None and "ref_logp" in given:
        found["kl"] = logp - given["ref_logp"][turns.items]
    return found


def by_level(levels: Sequence[LevelSpec], turns: Turns) -> Metrics:
    """For each level: spans an episode, turns and tokens of a span, and the share of invalid turns."""
    record, calls = turns.record, turns.calls
    tree, first = record.tree(calls), turns.tokens.position == 0
    invalid = first & ~turns.tokens.expand(turns.valid)
    episodes = max(turns.tree["episode"].n, 1)
    found: Metrics = {}
    for level in levels:
        if level.span == "label":
            name = next((channel for channel, labels in _labels(record).items() if {*level.owns} & {*labels}), "")
        else:
            name = level.name if level.span == "begin" else level.span
        if name not in tree:
            continue
        spans = tree[name]
        kept = _of_level(level, levels, turns, spans)
        found[f"level/{_plain(level.name)}/count"] = kept.sum() / episodes
        if not bool(kept.any()):
            continue
        length = spans.reduce(first.long())[kept]
        if level.span not in ("call", "label"):
            found[f"level/{_plain(level.name)}/turns"] = length.float().mean()
        found[f"level/{_plain(level.name)}/tokens"] = spans.lengths[kept].float().mean()
        if level.span != "label":
            found[f"level/{_plain(level.name)}/invalid"] = spans.reduce(invalid.long())[kept].sum() / length.sum()
    return found


def spreads(levels: Sequence[LevelSpec], turns: Turns, credit: Credit, trained: Tensor) -> Metrics:
    """For each level the variance of its trained tokens' advantages: its agent's, of its labels alone if it has any."""
    record, found = turns.record, Metrics()
    agent = turns.tokens.expand(record.streams.agent[record.calls.stream[turns.calls]])
    for level in levels:
        mine = trained & (agent == (record.agents.index(level.agent) if level.agent in record.agents else -1))
        mine = mine & _owned(turns, level.owns) if level.owns else mine
        if bool(mine.any()):
            found[f"level/{_plain(level.name)}/advantage_variance"] = credit.advantage[mine].var(correction=0)
    return found


def by_label(turns: Turns, credit: Credit, trained: Tensor, said: Mapping[str, Tensor]) -> Metrics:
    """For each label: tokens an episode; of its trained tokens the advantage's mean and deviation, KL and entropy."""
    found: Metrics = {}
    episodes = max(turns.tree["episode"].n, 1)
    for channel, code, label in _codes(turns.record):
        mine = turns.record.items.label[channel][turns.items] == code
        if not bool(mine.any()):
            continue
        name = f"label/{_plain(channel)}/{_plain(label)}"
        found[f"{name}/tokens"] = mine.sum() / episodes
        found |= _mean(f"{name}/advantage", credit.advantage, mine & trained)
        if bool((mine & trained).any()):
            found[f"{name}/advantage_std"] = credit.advantage[mine & trained].std(correction=0)
        for column, value in said.items():
            found |= _mean(f"{name}/{column}", value, mine & value.isfinite())
    return found


def losses(steps: Sequence[Step]) -> Metrics:
    """The mean over the steps of each term."""
    names = dict.fromkeys(name for step in steps for name in step.terms)
    return {f"loss/{name}": sum(step.terms.get(name, 0.0) for step in steps) / len(steps) for name in names}


def values(values: Mapping[str, Tensor], credit: Credit, steps: Sequence[Step]) -> Metrics:
    """What each head said and was to say, at its own items, before the critic's steps; and their losses."""
    found: Metrics = {}
    for head, value in values.items():
        known = credit.target[head].isfinite()
        found[f"value/{head}"] = value[known].mean() if bool(known.any()) else torch.tensor(0.0)
        found[f"value/{head}/explained"] = explained_variance(value, credit.target[head])
    if steps:
        found["critic_gradient_norm"] = max(step.grad_norm for step in steps)
    return found | losses(steps)


def _of_level(level: LevelSpec, levels: Sequence[LevelSpec], turns: Turns, spans: Spans) -> Tensor:
    """bool [n]: the spans that belong to a level: its agent's, and not another role's of the same agent."""
    record = turns.record
    agent = record.streams.agent[record.calls.stream[turns.calls]]
    codes = [k for k, name in enumerate(record.agents) if name == level.agent]
    kept = torch.isin(turns.tokens.expand(agent)[spans.starts], torch.tensor(codes, dtype=torch.int64))
    own = spans.reduce(_owned(turns, level.owns).long()) > 0
    if level.span == "label":
        return kept & own
    if level.span == "begin" or not level.owns:
        return kept
    others = [
        name for other in levels if other is not level and other.span in ("call", "stream") for name in other.owns
    ]
    return kept & (own | (spans.reduce(_owned(turns, others).long()) == 0))


def _owned(turns: Turns, labels: Sequence[str]) -> Tensor:
    """bool [M]: items with one of these labels."""
    found = torch.zeros(len(turns.items), dtype=torch.bool)
    for channel, code, label in _codes(turns.record):
        if label in labels:
            found |= turns.record.items.label[channel][turns.items] == code
    return found


def _labels(record: Record) -> dict[str, list[str]]:
    """Channel → what its codes mean, of the record's channels."""
    return {channel: labels for channel, labels in record.meta.get("labels", {}).items() if channel in record.labels}


def _codes(record: Record) -> Iterator[tuple[str, int, str]]:
    """Every channel with each of its codes and what that means."""
    return ((channel, code, label) for channel, labels in _labels(record).items() for code, label in enumerate(labels))


def _mean(name: str, column: Tensor, where: Tensor) -> Metrics:
    """The mean of a column there, under a name; nothing if there is nothing."""
    return {name: column[where].mean()} if bool(where.any()) else {}


def _plain(name: str) -> str:
    """As part of a metric's name."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_") or "none"
