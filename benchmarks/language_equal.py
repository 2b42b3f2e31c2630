"""Echelon's optimiser step against TRL's: the same weights, texts and advantages, the same numbers?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import language_peer as peer
from echelon.language.engine import End, Source
from echelon.language.models import load_model
from echelon.language.record import Record, RecordBuilder
from echelon.language.scorer import Scorer
from echelon.language.update import Step, Term, policy_step
from echelon.language.views import forest, rows
from echelon.losses.aggregate import loss_weights
from echelon.losses.kl import kl_estimate
from echelon.losses.surrogate import ppo_clip

BETA, LONGEST, ROWS = 0.04, 48, 8


def record_of(inputs: dict[str, Tensor]) -> Record:
    """TRL's batch as a record: an episode a completion, its row as uid, its prompt as group."""
    builder, groups = RecordBuilder(), {}
    for row in range(len(inputs["prompt_ids"])):
        prompt, completion = (
            inputs[f"{kind}_ids"][row][inputs[f"{kind}_mask"][row].bool()].tolist() for kind in ("prompt", "completion")
        )
        group = groups.setdefault(tuple(prompt), len(groups))
        episode = builder.episode(uid=row, group=group, task="prompt", kind="peer", seed=row)
        episode.call(episode.stream("policy"), prompt, completion, source=Source.SCORED, end=End.LENGTH)
        episode.done(terminated=True)
    return builder.build()


def row_of(record: Record) -> tuple[Tensor, Tensor]:
    """For each item its row in TRL's batch and its place in the completion, int64 [N] each."""
    return record.episodes.uid[record.episode[record.call]].long(), record.tree()["call"].position


def terms_of(record: Record, beta: float) -> dict[str, Term]:
    """TRL's default loss: clipped ratios, the token mean (DAPO), k3 times the ratio as KL penalty."""
    weight = loss_weights(record.tree()["call"], "token-mean")
    terms = {"policy": Term(lambda c: ppo_clip(c["logp"] - c["old_logp"], c["advantage"]), weight)}
    if beta:

        def kl(c: dict[str, Tensor]) -> Tensor:
            return kl_estimate(c["logp"], c["ref_logp"], gradient="ratio", log_ratio=c["logp"] - c["old_logp"])

        terms["kl"] = Term(kl, beta * weight)
    return terms


@dataclass(frozen=True)
class Equal:
    """How far echelon is from TRL in one optimiser step."""

    logp: float  # largest difference of a token's log-prob
    entropy: float
    loss: float  # difference of the losses, relative where they are above 1
    change: float  # largest |log r|: how far the policy has moved from the one that sampled
    gradient: float  # |ours - theirs| / |theirs|


def compare(
    path: str,
    folder: Path,
    view: str,
    *,
    words: int = 250,
    lr: float = 1e-3,
    scoring: dict[str, Any] | None = None,
    **options: Any,
) -> list[Equal]:
    """Let TRL take two steps on one batch, then echelon from the same weights on the same texts, by rows or forest.

    words: the tokens that occur. scoring: options of the `Scorer`; the rest are the trainer's.
    """
    completions = peer.made_up(ROWS, words, LONGEST)
    found = peer.passes(path, folder, 2, completions, beta=BETA, learning_rate=lr, **options)
    work = Repeat(path, found[0].inputs, view, lr, **(scoring or {}))
    old = work.scorer.score(work.texts)["logp"]
    work.given |= {"old_logp": old, "ref_logp": old}
    row, place = row_of(work.record)
    terms = terms_of(work.record, BETA)
    terms["look"] = Term(lambda c: 0 * c["entropy"], terms["policy"].weight, want=("entropy",))
    result = []
    for theirs in found:
        peers = peer_rows(theirs, found[0])
        step = work.step(terms)
        result.append(
            Equal(
                (step.columns["logp"] - theirs.logp[peers][row, place]).abs().max().item(),
                (step.columns["entropy"] - theirs.entropy[peers][row, place]).abs().max().item(),
                abs(step.loss - theirs.loss) / max(1.0, abs(theirs.loss)),
                (step.columns["logp"] - old).abs().max().item(),
                distance(work.gradient(), theirs.gradient),
            )
        )
    return result


class Repeat:
    """A batch of TRL's, to be learnt from with the weights that TRL began with."""

    def __init__(self, path: str, inputs: dict[str, Tensor], view: str, lr: float, **scoring: Any):
        self.model = load_model(path, template="plain").model.train()
        self.record = record_of(inputs)
        self.texts = {"rows": rows, "forest": forest}[view](self.record)
        self.scorer = Scorer(self.model, **scoring)
        self.given = {"advantage": inputs["advantages"][row_of(self.record)[0]]}
        self.optimiser = torch.optim.AdamW(self.model.parameters(), lr=lr, weight_decay=0.0)

    def step(self, terms: dict[str, Term]) -> Step:
        """One optimiser step, in micro-batches."""
        return policy_step(self.scorer, self.texts, terms, self.optimiser, given=self.given, budget=256)

    def gradient(self) -> dict[str, Tensor]:
        """By weight, of the last step."""
        return {name: p.grad for name, p in self.model.named_parameters() if p.grad is not None}


def alignment(path: str, folder: Path, words: int = 250) -> tuple[float, float]:
    """The cosines of echelon's and of TRL's bfloat16 gradient with the float32 gradient of the same batch."""
    (theirs,) = peer.passes(path, folder, 1, peer.made_up(ROWS, words, LONGEST), bf16=True)
    ours = []
    for precision in (None, torch.bfloat16):
        work = Repeat(path, theirs.inputs, "forest", 0.0, autocast=precision)
        work.step(terms_of(work.record, 0.0))
        ours.append({name: g.clone() for name, g in work.gradient().items()})
    return cosine(ours[1], ours[0]), cosine(theirs.gradient, ours[0])


def cosine(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """Of two gradients, over all weights."""
    ab, aa, bb = (sum((x[k].double() * y[k]).sum() for k in b) for x, y in ((a, b), (a, a), (b, b)))
    return float(ab / (aa * bb).sqrt())


def peer_rows(later: peer.Pass, first: peer.Pass) -> Tensor:
    """The rows of a later pass in the sequence of the first: TRL shuffles its batch before each."""
    ids = [p.inputs["completion_ids"] for p in (first, later)]
    return torch.stack([(ids[1] == one).all(1).nonzero()[0, 0] for one in ids[0]])


def distance(ours: dict[str, Tensor], gradient: dict[str, Tensor]) -> float:
    """|our gradient - theirs| / |theirs|, over all weights."""
    if ours.keys() != gradient.keys():
        raise RuntimeError(f"gradients of other weights: {sorted(ours.keys() ^ gradient.keys())[:3]}")
    wrong = sum((ours[name] - g).double().square().sum() for name, g in gradient.items())
    return float((wrong / sum(g.double().square().sum() for g in gradient.values())).sqrt())
