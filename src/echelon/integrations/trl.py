"""Any rule of echelon's in TRL: `CreditGRPOTrainer` is TRL's GRPOTrainer with the advantages of your rule.

>>> from echelon.credit import grpo
>>> from echelon.integrations.trl import CreditGRPOTrainer
>>> trainer = CreditGRPOTrainer(
...     model, reward_funcs, args, dataset,
...     credit=lambda batch: grpo(batch.groups, reward=batch.reward, where=batch.scored, ddof=1, eps=1e-4),
... )

The rule sees one whole generation batch (`integrations.batch.Batch`) before TRL shuffles it and splits it over steps,
and answers with Credit, or with a tensor, of completions, turns or tokens. Credit's weights, at least 0, multiply the
advantages: TRL's policy losses are proportional to them, while its denominators and its KL term stay as they are.
Value heads have no place in TRL: keep them in the rule, or pass their values as a field of the rollout.

On several processes each one gathers the fields of all completions, computes the credit of the whole batch, as TRL does
with its own advantages, and keeps its own rows. The rule must therefore be deterministic.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from echelon.credit.credit import Credit
from echelon.errors import DataError, MissingExtra, UsageError
from echelon.integrations import padded
from echelon.integrations.batch import Batch, Rule
from echelon.spans import Spans

if TYPE_CHECKING:
    CreditGRPOTrainer: Any

__all__ = ["Batch", "CreditGRPOTrainer", "CreditMixin", "Rule"]

_Base: Any = object  # TRL's trainer, once the class is made; importing this module does not import TRL
LEFT_OUT = ("prompt", "image", "images")  # columns that do not become fields: the prompt is added below


class CreditMixin(_Base):
    """The advantages of a rule in TRL's GRPOTrainer or a subclass of it: `class Mine(CreditMixin, YourTrainer)`.

    credit: the rule, called once for each generation batch, evaluation included.
    environment_fields: attributes that are read from each environment of an `environment_factory` after its rollout
        and become fields of the batch. What a `rollout_func` returns beside TRL's own and the columns of the data set
        are fields already; so are "prompt", "completion" and "completion_ids".
    All other arguments are TRL's. Raises DataError where the rule's answer does not fit the batch or is not finite.
    """

    def __init__(self, *args: Any, credit: Rule, environment_fields: Sequence[str] = (), **kwargs: Any):
        self.credit = credit
        self.environment_fields = tuple(environment_fields)
        super().__init__(*args, **kwargs)
        if environment_fields and self.environment_factories is None:
            raise UsageError(f"environment_fields {self.environment_fields} need an environment_factory")

    def _generate(self, prompts: list[Any]) -> Any:
        generated = super()._generate(prompts)
        self._emitted = generated[2]  # 1 where the policy wrote, 0 for tools; TRL forgets it for completions it masks
        for name, values in generated[5].items():  # a list is one entry a completion; anything else is for all of them
            if isinstance(values, list) and len(values) != len(prompts):
                raise DataError(f"the rollout returned {len(values)} '{name}' for {len(prompts)} completions")
        return generated

    def _calculate_rewards(
        self, inputs: list[dict[str, Any]], prompts: list[Any], completions: list[Any], completion_ids_list: list[Any]
    ) -> Tensor:
        """TRL's rewards, [N, functions] of all processes; `inputs` hold what the rollout returned by now."""
        self._rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        self._fields = [{name: row[name] for name in row if name not in LEFT_OUT} for row in inputs]
        for i, row in enumerate(self._fields):
            row |= {"prompt": prompts[i], "completion": completions[i], "completion_ids": completion_ids_list[i]}
            row |= {name: _attribute(self.environments[i], name) for name in self.environment_fields}
        return self._rewards

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)
        batch = self._batch(output)
        credit = batch.check(self.credit(batch))
        advantage = (credit.advantage * credit.weight).to(batch.reward)
        output["advantages"] = self._own_rows(batch, advantage, output["completion_ids"])
        self._record(batch, credit, advantage)
        return output

    def _batch(self, output: Mapping[str, Tensor]) -> Batch:
        """The generation batch of all processes, packed."""
        from accelerate.utils import gather_object

        device, loss_mask = self._rewards.device, output["completion_mask"]
        if "tool_mask" in output:
            loss_mask = loss_mask * output["tool_mask"]
        emitted = self._emitted or [[1] * len(row["completion_ids"]) for row in self._fields]
        trained = [mask[: len(own)] for mask, own in zip(loss_mask.tolist(), emitted, strict=True)]
        gathered = gather_object(list(zip(self._fields, emitted, trained, strict=True)))
        fields, emitted, trained = map(list, zip(*gathered, strict=True))
        group = self.num_generations if self.model.training else self.num_generations_eval
        weights = self.reward_weights.to(device)
        names = self.reward_func_names
        if len(set(names)) < len(names):
            names = [f"{name}#{i}" for i, name in enumerate(names)]
        reward = (self._rewards * weights).nansum(1).masked_fill(self._rewards.isnan().all(1), torch.nan)
        return Batch(
            groups=Spans.from_lengths(torch.full((len(fields) // group,), group, device=device)),
            tokens=Spans.from_lengths(torch.tensor([len(own) for own in emitted], device=device)),
            reward=reward,
            rewards=dict(zip(names, self._rewards.T, strict=True)),
            reward_weights=dict(zip(names, weights.tolist(), strict=True)),
            emitted=_flags(emitted, device),
            trained=_flags(trained, device),
            fields=fields,
        )

    def _own_rows(self, batch: Batch, advantage: Tensor, completion_ids: Tensor) -> Tensor:
        """The rows of this process in TRL's layout: [B] of completions, else [B, T], 0 where there is no token."""
        count, width = completion_ids.shape
        first = self.accelerator.process_index * count
        if batch.level(advantage) == "completion":
            return advantage[first : first + count]
        row = batch.tokens.ids
        mask = padded.prefix(batch.tokens.lengths[first : first + count], width)
        return padded.pad(batch.over_tokens(advantage)[(row >= first) & (row < first + count)], mask)

    def _record(self, batch: Batch, credit: Credit, advantage: Tensor) -> None:
        """Log the mean size of the credit's terms, and each completion's mean advantage in place of TRL's own."""
        mode = "train" if self.model.training else "eval"
        for name, column in credit.terms.items():
            self._metrics[mode][f"credit/{name}"].append(column.abs().mean().item())
        emitted = batch.emitted.to(advantage.dtype)
        total, count = batch.tokens.reduce(batch.over_tokens(advantage) * emitted), batch.tokens.reduce(emitted)
        logged = self._logs["advantages"]
        for _ in range(min(len(logged), batch.tokens.n)):
            logged.pop()
        logged.extend((total / count.clamp(min=1)).tolist())


def __getattr__(name: str) -> Any:
    """`CreditGRPOTrainer`, made when it is first asked for, since its base comes from TRL."""
    if name == "CreditGRPOTrainer":
        return _trainer()
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")


@functools.cache
def _trainer() -> type:
    try:
        from trl import GRPOTrainer
    except ModuleNotFoundError as error:
        raise MissingExtra(error.name or "trl", "trl") from error
    about = {"__module__": __name__, "__doc__": CreditMixin.__doc__}
    return type("CreditGRPOTrainer", (CreditMixin, GRPOTrainer), about)


def _attribute(environment: Any, name: str) -> Any:
    if not hasattr(environment, name):
        raise DataError(f"environment_fields names '{name}', but a {type(environment).__name__} has no such attribute")
    return getattr(environment, name)


def _flags(rows: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    return torch.tensor([entry for row in rows for entry in row], device=device).bool()
