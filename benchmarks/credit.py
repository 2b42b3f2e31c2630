"""How fast is credit? Every rule at the scale of its items, beside Python loops, and whether time is linear in items.

    python -m benchmarks.credit [--threads 2] [--repeats 15]
    python -m benchmarks.credit --variance      how noisy HAE is beside flat GAE, instead

The batch: 64 groups x 8 episodes x 50 turns x 64 tokens on average, 25,600 turns and 1,638,400 tokens, float32.
Milliseconds are the best of several, partitions built before. `ops` is the same in units of x + y over as many items:
about how many operations on all items the rule is.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks import credit_loops as loops
from benchmarks import variance
from benchmarks.credit_rules import LEVELS, Batch, Rules, Size
from echelon.credit import groups, returns, segments, tokens, turns
from echelon.spans import Spans

GAMMA, LAM = 0.99, 0.95
LEAST_RATIO = 100  # of a Python loop's time over the rule's
Convert = Callable[[Tensor], Any]  # a column for a loop
LONG, SPAN = 1_000_000, 1000


def best_ms(run: Callable[[], object], repeats: int, least_s: float = 0.05) -> float:
    """The shortest of `repeats` timed runs, of more if they take less than `least_s` together, after one to warm up."""
    run()
    times: list[float] = []
    while len(times) < repeats or (sum(times) < least_s and len(times) < 50 * repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return 1e3 * min(times)


def pass_ms(items: int, repeats: int) -> float:
    """The time of x + y."""
    x, y = torch.rand(2, items)
    return best_ms(lambda: x + y, repeats)


def mark(met: bool) -> str:
    return "met" if met else "MISSED"


def rule_rows(rules: Rules, items: int, target: float, repeats: int) -> Iterator[str]:
    """One row a rule: milliseconds, ops, and whether the target is met."""
    once = pass_ms(items, repeats)
    for name, run in rules.items():
        ms = best_ms(run, repeats)
        yield f"  {name:28}{ms:9.3f}{ms / once:9.0f}{target:9.0f}  {mark(ms <= target)}"


class Pair(NamedTuple):
    """A rule and the loop that computes the same advantage, from lists or from tensors."""

    items: int
    rule: Callable[[], Tensor]
    loop: Callable[[Convert], list[float]]


def pairs(batch: Batch) -> dict[str, Pair]:
    """What is compared with loops; both see the same numbers."""
    size, group, tree, episode = batch.groups.longest, batch.groups, batch.turns, batch.turns["episode"]
    token, n, m = batch.tokens["episode"], batch.turns.size, batch.tokens.size
    outcome, reward, value, high = batch.column(group.size), batch.column(n), batch.column(n), batch.column(n)
    state, planning, paid, worth = batch.whole(n, 200), batch.chosen(m, 0.1), batch.column(m), batch.column(m)
    of_turns, of_tokens = episode.lengths.tolist(), token.lengths.tolist()
    states, switch, plans = state.tolist(), batch.switch.tolist(), planning.tolist()

    def hae() -> Tensor:
        credits = segments.hae(tree, reward=reward, low_value=value, high_value=high)
        return torch.cat((credits["low"].advantage, credits["high"].advantage))

    return {
        "grpo": Pair(
            group.size,
            lambda: groups.grpo(group, reward=outcome).advantage,
            lambda to: loops.grpo(size, to(outcome)),
        ),
        "gae, turns": Pair(
            n,
            lambda: returns.gae(episode, reward=reward, value=value, gamma=GAMMA, lam=LAM).advantage,
            lambda to: loops.gae(of_turns, to(reward), to(value), GAMMA, LAM),
        ),
        "rloo_to_go": Pair(
            n,
            lambda: turns.rloo_to_go(tree, reward=reward).advantage,
            lambda to: loops.rloo_to_go(size, of_turns, to(reward)),
        ),
        "gigpo": Pair(
            n,
            lambda: turns.gigpo(tree, reward=reward, state=state).advantage,
            lambda to: loops.gigpo(size, of_turns, to(reward), states),
        ),
        "hae": Pair(n, hae, lambda to: loops.hae(of_turns, switch, to(reward), to(value), to(high))),
        "discounted_return": Pair(
            m,
            lambda: returns.discounted_return(token, reward=paid, gamma=GAMMA),
            lambda to: loops.returns(of_tokens, to(paid), GAMMA),
        ),
        "gae, tokens": Pair(
            m,
            lambda: returns.gae(token, reward=paid, value=worth, gamma=GAMMA, lam=LAM).advantage,
            lambda to: loops.gae(of_tokens, to(paid), to(worth), GAMMA, LAM),
        ),
        "reinforce_pp": Pair(
            m,
            lambda: groups.reinforce_pp(token, reward=paid, gamma=GAMMA).advantage,
            lambda to: loops.whiten(loops.returns(of_tokens, to(paid), GAMMA)),
        ),
        "hicra": Pair(
            m,
            lambda: tokens.hicra(batch.tokens, reward=outcome, planning=planning).advantage,
            lambda to: loops.hicra(size, of_tokens, to(outcome), plans),
        ),
    }


def pair_rows(size: Size, repeats: int) -> Iterator[str]:
    """Nanoseconds an item and ratios, once both are known to agree; tensors by element on one group, for their time."""
    small = pairs(Batch(size._replace(groups=1)))
    for name, pair in pairs(Batch(size)).items():
        torch.testing.assert_close(pair.rule(), torch.tensor(pair.loop(Tensor.tolist)), rtol=1e-3, atol=1e-3)
        rule = best_ms(pair.rule, repeats) / pair.items
        floats = best_ms(partial(pair.loop, Tensor.tolist), 2, least_s=0.0) / pair.items
        tensors = best_ms(partial(small[name].loop, Tensor.detach), 1, least_s=0.0) / small[name].items
        times = f"{1e6 * rule:9.1f}{1e6 * floats:9.0f}{1e6 * tensors:9.0f}"
        met = f"{mark(floats / rule >= LEAST_RATIO)}, {mark(tensors / rule >= LEAST_RATIO)}"
        yield f"  {name:24}{pair.items:10,}{times}{floats / rule:10.0f}{tensors / rule:10.0f}  {met}"


def gae_ns(spans: Spans, repeats: int) -> float:
    """Nanoseconds an item."""
    generator = torch.Generator().manual_seed(0)
    reward, value = torch.rand(2, spans.size, generator=generator)
    run = partial(returns.gae, spans, reward=reward, value=value, gamma=GAMMA, lam=LAM)
    return 1e6 * best_ms(run, repeats) / spans.size


def linearity_rows(largest: int, repeats: int) -> Iterator[str]:
    """gae at three sizes of spans of 1000, and with one long span among short ones."""
    for size in (largest // 100, largest // 10, largest):
        spans = Spans.from_lengths([SPAN] * (size // SPAN))
        yield f"  {f'{size:,} items in spans of {SPAN:,}':44}{gae_ns(spans, repeats):9.2f}"
    long = largest // 10
    short = [10] * (long // 10)
    yield f"  {f'{2 * long:,} items in spans of 10':44}{gae_ns(Spans.from_lengths(short + short), repeats):9.2f}"
    among = Spans.from_lengths([*short[::2], long, *short[1::2]])
    yield f"  {f'the same, half of them one span of {long:,}':44}{gae_ns(among, repeats):9.2f}"


def report(size: Size, repeats: int, largest: int = 10 * LONG) -> Iterator[str]:
    """The lines of the report."""
    load = f"load {os.getloadavg()[0]:.1f}"
    yield f"torch {torch.__version__}, {torch.get_num_threads()} threads, {load}, best of {repeats}"
    start = time.perf_counter()
    batch = Batch(size)
    made = 1e3 * (time.perf_counter() - start)
    yield f"{batch.turns.size:,} turns, {batch.tokens.size:,} tokens, partitions made in {made:.0f} ms"
    for level, (rules, target) in LEVELS.items():
        items = {"episodes": batch.groups.size, "tokens": batch.tokens.size}.get(level, batch.turns.size)
        yield f"{f'{level}, {items:,} items':30}{'ms':>9}{'ops':>9}{'target':>9}"
        yield from rule_rows(rules(batch), items, target, repeats)
    yield "beside Python loops over floats, and over elements of tensors"
    header = f"{'items':>10}{'ns/item':>9}{'floats':>9}{'tensors':>9}{'x floats':>10}{'x tensors':>10}"
    yield f"{'':26}{header}  target {LEAST_RATIO}"
    yield from pair_rows(size, repeats)
    yield f"{'gae, nanoseconds an item':46}{'ns':>9}"
    yield from linearity_rows(largest, repeats)
    yield f"load {os.getloadavg()[0]:.1f} at the end"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--variance", action="store_true", help="how noisy HAE is beside flat GAE, instead")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.variance:
        return variance.main()
    for line in report(Size(), arguments.repeats):
        print(line, flush=True)


if __name__ == "__main__":
    main()
