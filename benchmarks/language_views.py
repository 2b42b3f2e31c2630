"""Updates over multi-turn episodes by rows, paths and forest."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from benchmarks.language_equal import terms_of
from echelon.language.engine import Source
from echelon.language.models import tiny
from echelon.language.record import Record, RecordBuilder
from echelon.language.scorer import Scorer
from echelon.language.update import policy_step
from echelon.language.views import View, cheapest, forest, paths, rows

Clock = Callable[[], float]
TARGETS = {"paths": 3.0, "forest": 2.0}


def conversations(rewritten: bool, episodes: int = 4, turns: int = 8, words: int = 2048) -> Record:
    """Episodes of made-up tokens: 32 emitted a turn. Append-only: each turn adds 32 more to a prompt of 64. Rewritten:
    a prefix of 400 that all share, then 40 other tokens every turn."""
    draw = torch.Generator().manual_seed(0)

    def some(count: int) -> list[int]:
        return torch.randint(words, (count,), generator=draw).tolist()

    builder, prefix = RecordBuilder(), some(400)
    for uid in range(episodes):
        episode = builder.episode(uid=uid, group=0, task="talk", kind="made up", seed=uid)
        stream, context = episode.stream("policy"), some(64)
        for _ in range(turns):
            if rewritten:
                context = prefix + some(40)
            output = some(32)
            episode.call(stream, context, output, source=Source.SCORED)
            context = [*context, *output, *some(32)]
        episode.done(terminated=True)
    return builder.build()


def measure_views(rounds: int, threads: int) -> None:
    """Print emitted tokens a second of an update, by view."""
    torch.set_num_threads(threads)
    clock: Clock = time.process_time if threads == 1 else time.perf_counter
    model = tiny(2048, layers=6, width=256)
    scorer = Scorer(model)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-6, weight_decay=0.0, fused=True)
    weights = sum(p.numel() for p in model.parameters()) / 1e6
    print(f"\nviews: {weights:.1f} M weights, float32; emitted tokens a second of an update; what `cheapest` takes: *")
    for title, rewritten, best in (("append-only", False, "paths"), ("rewritten", True, "forest")):
        record = conversations(rewritten)
        given = {"advantage": torch.linspace(-1, 1, record.size)}
        views: dict[str, View] = {"rows": rows(record), "paths": paths(record), "forest": forest(record, width=256)}
        taken = cheapest(record, width=256)[0]
        laps: dict[str, list[float]] = {name: [] for name in views}
        for turn in range(rounds + 1):
            for name in list(views) if turn % 2 else list(views)[::-1]:
                begun = clock()
                policy_step(scorer, views[name], terms_of(record, 0.0), optimiser, given=given, budget=2048)
                laps[name].append(clock() - begun)
        rate = {name: record.size / statistics.median(lap[1:]) for name, lap in laps.items()}
        gain = statistics.median(a / b for a, b in zip(laps["rows"][1:], laps[best][1:], strict=True))
        cells = "".join(f"  {name}{'*' if name == taken else ''} {value:.0f}" for name, value in rate.items())
        print(f"{title:12}{cells}   {best} / rows {gain:.2f} (target {TARGETS[best]:.0f})", flush=True)
