"""Any rule of echelon's in verl: an advantage estimator with the signature of verl's registry.

>>> from verl.trainer.ppo.core_algos import register_adv_est
>>> from echelon.credit import rloo
>>> register_adv_est("echelon_rloo")(estimator(lambda batch: rloo(batch.groups, reward=batch.reward)))

and then `algorithm.adv_estimator=echelon_rloo`. verl need not be installed to use this module.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from echelon.errors import DataError
from echelon.integrations import padded
from echelon.integrations.batch import Batch, Rule
from echelon.spans import Spans

Estimator = Callable[..., tuple[Tensor, Tensor]]


def estimator(credit: Rule) -> Estimator:
    """An advantage estimator of verl's from a rule: (advantages, returns), both [B, T] and 0 outside the mask.

    Returns are the rule's target of the head "value" where it has one, else the advantages. A response lasts until the
    last position that the mask, or a reward, marks; masked positions inside it were written by tools. A rule gets the
    field "token_reward", one entry a token, beside what verl passes: "reward_baseline", and the columns of
    `non_tensor_batch`. Groups are the rows of equal `index`; `rewards` are the columns that the configuration names in
    `gdpo_reward_keys`, with their `gdpo_reward_weights`, else "score" alone.
    """

    def estimate(
        token_level_rewards: Tensor,
        response_mask: Tensor,
        index: Sequence[Any] | None = None,
        config: Mapping[str, Any] | None = None,
        reward_baselines: Tensor | None = None,
        non_tensor_batch: Mapping[str, Sequence[Any]] | None = None,
        batch: Mapping[str, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        columns: dict[str, Sequence[Any] | Tensor] = dict(non_tensor_batch or {})
        if reward_baselines is not None:
            columns["reward_baseline"] = reward_baselines
        inside = _inside(token_level_rewards, response_mask)
        packed = _batch(token_level_rewards, response_mask, inside, index, config, columns)
        answer = packed.check(credit(packed))
        advantage = answer.advantage * answer.weight
        both = (advantage, answer.target.get("value", advantage))
        mask = response_mask.to(token_level_rewards.dtype)
        advantages, returns = (padded.pad(packed.over_tokens(column.to(mask)), inside) * mask for column in both)
        return advantages, returns

    return estimate


def _inside(rewards: Tensor, response_mask: Tensor) -> Tensor:
    """bool [B, T]: the positions of each row up to the last one with a mask or a reward, at least one."""
    used = response_mask.bool() | (rewards != 0)
    position = torch.arange(1, used.shape[1] + 1, device=used.device)
    return padded.prefix((used * position).amax(1).clamp(min=1), used.shape[1])


def _batch(
    rewards: Tensor,
    response_mask: Tensor,
    inside: Tensor,
    index: Sequence[Any] | None,
    config: Mapping[str, Any] | None,
    columns: Mapping[str, Sequence[Any] | Tensor],
) -> Batch:
    """verl's rows as a batch: groups by `index`, one completion a row."""
    tokens, emitted = padded.rows(inside), padded.pack(response_mask.bool(), inside)
    token_reward = padded.pack(rewards, inside).split(tokens.lengths.tolist())
    names = list((config or {}).get("gdpo_reward_keys") or ()) if columns else []
    if missing := [name for name in names if name not in columns]:
        raise DataError(f"gdpo_reward_keys name {missing}; verl passed the columns {', '.join(columns)}")
    parts = {name: torch.as_tensor([float(x) for x in columns[name]]).to(rewards) for name in names}
    parts = parts or {"score": rewards.sum(1)}
    weights = (config or {}).get("gdpo_reward_weights") or [1.0] * len(parts)
    seen: dict[Any, int] = {}
    ids = range(len(rewards)) if index is None else [seen.setdefault(uid, len(seen)) for uid in index]
    return Batch(
        groups=Spans.by_key(torch.tensor(list(ids), device=rewards.device)),
        tokens=tokens,
        reward=rewards.sum(1),
        rewards=parts,
        reward_weights=dict(zip(parts, map(float, weights), strict=True)),
        emitted=emitted,
        trained=emitted,
        fields=[
            {"token_reward": row, **{name: column[i] for name, column in columns.items()}}
            for i, row in enumerate(token_reward)
        ],
    )
