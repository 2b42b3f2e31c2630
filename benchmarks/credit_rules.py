"""A batch of a language agent, and every rule of `echelon.credit` on it, at the scale of its items.

Legend: G groups > E episodes > turns > tokens, and segments of about four turns; lengths vary around their means.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from echelon.credit import channels, credit, critics, groups, options, returns, roles, segments, selection, sets, shaped
from echelon.credit import tokens as token_rules
from echelon.credit import turns as turn_rules
from echelon.spans import Spans, SpanTree

Rules = dict[str, Callable[[], object]]
OPTIONS, HEADS, STATES = 4, 2, 200


class Size(NamedTuple):
    """How many there are of each in the next larger one, on average."""

    groups: int = 64
    episodes: int = 8
    turns: int = 50
    tokens: int = 64


def uneven(count: int, mean: int, generator: torch.Generator) -> Spans:
    """`count` spans of `mean` items on average and exactly so in all, from half to one and a half times as long."""
    change = torch.randint(-(mean // 2), mean // 2 + 1, (count // 2,), generator=generator)
    change = torch.cat([change, -change, change.new_zeros(count % 2)])
    return Spans.from_lengths(mean + change[torch.randperm(count, generator=generator)])


class Batch:
    """Partitions and float32 columns.

    turns: over turns, `group` > `episode` > `segment`.    tokens: over tokens, `group` > `episode`.
    groups: the episodes as items.    turn: the tokens of each turn.
    """

    def __init__(self, size: Size | None = None):
        size = size or Size()
        self.generator = torch.Generator().manual_seed(0)
        count = size.groups * size.episodes
        episode = uneven(count, size.turns, self.generator)
        self.turn = uneven(episode.size, size.tokens, self.generator)
        self.groups = Spans.from_lengths([size.episodes] * size.groups)
        self.switch = torch.rand(episode.size, generator=self.generator) < 0.25
        group = Spans.from_lengths(self.groups.reduce(episode.lengths))
        self.turns = SpanTree(
            {
                "group": group,
                "episode": (episode, "group"),
                "segment": (segments.boundaries(self.switch, episode), "episode"),
            }
        )
        self.tokens = SpanTree(
            {
                "group": Spans.from_lengths(group.reduce(self.turn.lengths)),
                "episode": (Spans.from_lengths(episode.reduce(self.turn.lengths)), "group"),
            }
        )

    def column(self, rows: int, *trailing: int) -> Tensor:
        """Independent uniform numbers."""
        return torch.rand(rows, *trailing, generator=self.generator)

    def chosen(self, rows: int, share: float = 0.5) -> Tensor:
        """bool: a share of the rows."""
        return self.column(rows) < share

    def whole(self, rows: int, high: int) -> Tensor:
        """int64 in 0..high-1."""
        return torch.randint(high, (rows,), generator=self.generator)


def episode_rules(batch: Batch) -> Rules:
    """Items are episodes."""
    g, n = batch.groups, batch.groups.size
    reward, length = batch.chosen(n).float(), batch.tokens["episode"].lengths
    where, budget, log_prob = batch.chosen(n, 0.9), 1 + batch.whole(n, 3), -batch.column(n)
    step = g.expand(batch.chosen(g.n))
    chosen = g.position < g.expand(g.lengths) // 2
    return {
        "reinforce": lambda: groups.reinforce(reward=reward, baseline=0.5),
        "rloo": lambda: groups.rloo(g, reward=reward),
        "grpo": lambda: groups.grpo(g, reward=reward),
        "dr_grpo": lambda: groups.dr_grpo(g, reward=reward),
        "batch_std": lambda: groups.batch_std(g, reward=reward),
        "opo": lambda: groups.opo(g, reward=reward, length=length),
        "pass_at_k": lambda: groups.pass_at_k(g, reward=reward),
        "reinforce_pp_baseline": lambda: groups.reinforce_pp_baseline(g, reward=reward, length=length),
        "gdpo": lambda: groups.gdpo(g, rewards={"right": reward, "short": log_prob}),
        "hbpo": lambda: shaped.hbpo(g, reward=reward, budget=budget, ceiling=log_prob),
        "de_grpo": lambda: shaped.de_grpo(g, reward=reward, log_prob=log_prob, smoothed=torch.full((g.n,), 0.5)),
        "aepo": lambda: token_rules.aepo(g, reward=reward),
        "dcpo": lambda: selection.dcpo(g, reward=reward, length=length),
        "thor": lambda: selection.thor(g, reward=reward, valid=where, step=step),
        "himac": lambda: roles.himac(g, reward=reward, chosen=chosen),
    }


def turn_rules_of_groups(batch: Batch) -> Rules:
    """Items are turns; no critic."""
    tree, episode, n = batch.turns, batch.turns["episode"], batch.turns.size
    reward, outcome = batch.column(n), batch.chosen(episode.n).float()
    state, tag, score = batch.whole(n, STATES), batch.whole(n, 4), episode.expand(outcome)
    log_prob, initial, planner = -batch.column(n), -batch.column(episode.n), episode.position == 0
    return {
        "rloo_to_go": lambda: turn_rules.rloo_to_go(tree, reward=reward),
        "gigpo": lambda: turn_rules.gigpo(tree, reward=reward, state=state),
        "rlvmr": lambda: turn_rules.rlvmr(tree, score=score, meta=reward, tag=tag),
        "information_gain": lambda: turn_rules.information_gain(episode, log_prob=log_prob, initial=initial),
        "igpo, pool": lambda: turn_rules.igpo(tree, gain=reward, outcome=outcome),
        "igpo, column": lambda: turn_rules.igpo(tree, gain=reward, outcome=outcome, statistics="column"),
        "spa": lambda: turn_rules.spa(episode, attribution=reward, grounded=tag > 0, value=score),
        "peco": lambda: roles.peco(tree, reward=score, planner=planner),
        "hrpo": lambda: shaped.hrpo(tree, outcome=outcome, reward=reward),
        "hrpo_split": lambda: shaped.hrpo_split(tree, outcome=outcome, node_reward=reward, edge_reward=log_prob),
        "worldrft": lambda: shaped.worldrft(tree, reward=reward),
        "subpo": lambda: sets.subpo(episode, value=reward),
        "slim": lambda: channels.slim({"task": reward, "safety": score}),
        "hamnet": lambda: channels.hamnet({"task": reward, "safety": score}),
    }


def turn_rules_of_critics(batch: Batch) -> Rules:
    """Items are turns; values, segments, options."""
    tree, episode, segment, n = batch.turns, batch.turns["episode"], batch.turns["segment"], batch.turns.size
    reward, value, log_ratio = batch.column(n), batch.column(n), 0.1 * batch.column(n)
    q, next_q, policy = (batch.column(n, OPTIONS) for _ in range(3))
    policy, heads = policy / policy.sum(-1, keepdim=True), batch.column(n, HEADS)
    option, ended, after = batch.whole(n, OPTIONS), episode.shift(batch.switch, 1, True), batch.column(segment.n)
    terminated, probability, final = batch.chosen(n, 0.02), batch.column(n), batch.column(episode.n)
    sparse = reward * (reward > 0.95)
    levels = segments.hae(tree, reward=reward, low_value=value, high_value=probability, term_value=log_ratio)
    return {
        "discounted_return": lambda: returns.discounted_return(episode, reward=reward, gamma=0.99),
        "td_error": lambda: returns.td_error(episode, reward=reward, value=value, gamma=0.99),
        "n_step_return": lambda: returns.n_step_return(episode, reward=reward, value=value, n=5, gamma=0.99),
        "lambda_return": lambda: returns.lambda_return(episode, reward=reward, value=value, gamma=0.99),
        "gae": lambda: returns.gae(episode, reward=reward, value=value, gamma=0.99),
        "vtrace": lambda: returns.vtrace(episode, reward=reward, value=value, log_ratio=log_ratio, gamma=0.99),
        "smdp_return": lambda: returns.smdp_return(segment, reward=reward, gamma=0.99),
        "hae": lambda: segments.hae(tree, reward=reward, low_value=value, high_value=probability, term_value=log_ratio),
        "switch_return": lambda: segments.switch_return(segment, reward=reward, term_value=value, next_value=after),
        "switch_difference": lambda: segments.switch_difference(
            episode, switch=batch.switch, probability=probability, high_value=value, low_value=reward
        ),
        "normalise_levels": lambda: segments.normalise_levels(levels),
        "archer": lambda: critics.archer(q=heads, value=heads),
        "archer_offline": lambda: critics.archer_offline(q=heads, value=heads),
        "archer_kl": lambda: critics.archer_kl(q=heads, value=heads, log_ratio=log_ratio, coefficient=0.1),
        "vsc_rl": lambda: critics.vsc_rl(episode, reward=sparse, value=heads, next_value=heads, task_value=value),
        "filtered_bc": lambda: critics.filtered_bc(episode, score=final),
        "termination_credit": lambda: options.termination_credit(q=q, option=option, policy=policy),
        "option_critic": lambda: options.option_critic(
            reward=reward, option=option, q=q, next_q=next_q, next_termination=policy, terminated=terminated
        ),
        "option_q_target": lambda: options.option_q_target(tree, reward=reward, q=q),
        "ppoc": lambda: options.ppoc(episode, reward=reward, value=q, option=option, policy=policy, ended=ended),
        "dac": lambda: options.dac(episode, reward=reward, value=q, option=option, arrival=policy),
        "feudal": lambda: options.feudal(
            episode, reward=reward, intrinsic=log_ratio, manager_value=value, worker_value=value
        ),
        "director_manager": lambda: options.director_manager(
            tree, reward=reward, cont=probability, next_cont=probability, value=after, final_value=final
        ),
    }


def token_rules_of(batch: Batch) -> Rules:
    """Items are tokens, spans are episodes if nothing else is said."""
    tree, episode, turn, n = batch.tokens, batch.tokens["episode"], batch.turn, batch.tokens.size
    reward, value, log_ratio = batch.column(n), batch.column(n), 0.1 * batch.column(n)
    outcome, planning, entropy = batch.chosen(episode.n).float(), batch.chosen(n, 0.1), batch.column(n)
    of_turns = groups.reinforce(reward=batch.column(turn.n))
    of_episodes = groups.grpo(batch.groups, reward=outcome)
    low = batch.chosen(n)
    two = {"high": of_turns, "low": of_turns}
    return {
        "expand, turn → token": lambda: of_turns.expand(turn),
        "spread, two levels": lambda: credit.spread(two, turn, {"high": ~low, "low": low}),
        "discounted_return": lambda: returns.discounted_return(episode, reward=reward, gamma=0.99),
        "td_error": lambda: returns.td_error(episode, reward=reward, value=value, gamma=0.99),
        "n_step_return": lambda: returns.n_step_return(episode, reward=reward, value=value, n=5, gamma=0.99),
        "gae": lambda: returns.gae(episode, reward=reward, value=value, gamma=0.99),
        "vtrace": lambda: returns.vtrace(episode, reward=reward, value=value, log_ratio=log_ratio, gamma=0.99),
        "whiten": lambda: groups.whiten(reward),
        "reinforce_pp": lambda: groups.reinforce_pp(episode, reward=reward),
        "amplify": lambda: token_rules.amplify(credit.Credit(reward), planning, 0.2),
        "hicra": lambda: token_rules.hicra(tree, reward=outcome, planning=planning),
        "hicra_code": lambda: token_rules.hicra_code(tree, reward=outcome, entropy=entropy),
        "trigger_counts": lambda: token_rules.trigger_counts(episode, entropy=entropy, trigger=planning, threshold=0.5),
        "entropy_threshold": lambda: token_rules.entropy_threshold(episode, entropy=entropy),
        "d3s": lambda: selection.d3s(tree, reward=outcome, entropy=entropy, keep=4, share=0.2),
        "archer_tokens": lambda: critics.archer_tokens(turn, of_turns, token_value=value),
        "positive_nll_weight": lambda: selection.positive_nll_weight(advantage=reward, mask=planning),
        "at_end, then gae": lambda: returns.gae(
            episode, reward=turn_rules.at_end(turn, of_turns.advantage), value=value, gamma=1.0
        ),
        "grpo, expanded": lambda: of_episodes.expand(episode),
    }


LEVELS: dict[str, tuple[Callable[[Batch], Rules], float]] = {  # the rules and the milliseconds to stay below
    "episodes": (episode_rules, 3.0),
    "turns, no critic": (turn_rules_of_groups, 3.0),
    "turns, critics and options": (turn_rules_of_critics, 3.0),
    "tokens": (token_rules_of, 12.0),
}
