"""How fast the run viewer is in a headless Chromium: opening, panning, draw calls, size.

    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE python -m benchmarks frames

Two pages: an episode of 2,000 control steps under three levels, and eight language episodes of fifty turns whose
contexts are written anew at every turn. What the columns mean is in `benchmarks/README.md`. Nothing asserts a time.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.browser import Browser, Tab, started
from echelon.evidence.view import control, talk
from echelon.evidence.view.gather import gather
from echelon.evidence.view.page import page
from echelon.evidence.view.timeline import Strings, Timeline
from echelon.language.record import Record, RecordBuilder
from echelon.rollout import Begin, Decisions, End, Rollout, Streams, partition
from echelon.spans import Spans, SpanTree

STEPS, PERIODS = 2000, {"plan": 160, "subgoal": 8, "action": 1}
EPISODES, TURNS, READ, WRITTEN = 8, 50, 800, 60  # tokens that a turn reads and writes
SHARES = (0.25, 0.02)  # of an episode that are in view
TARGETS = "asked: drawn < 2000 ms, frame <= 33 ms, language page < 5 MB; calls bounded by visible boxes"

WATCH = """
(() => {
  const look = () => {
    const it = document.getElementById("flame")?.explorer;
    if (it && it.stats.frames) window.drawn = performance.now(); else requestAnimationFrame(look);
  };
  requestAnimationFrame(look);
})()
"""
PAN = """
(seconds) => new Promise((done) => {
  const it = document.getElementById("flame").explorer, e = it.episode, span = e.raw.span, wide = span * %s;
  const frames = [], draws = [], calls = [], seen = [];
  let begun = null, last = null;
  const frame = (now) => {
    if (begun === null) begun = now; else frames.push(now - last);
    last = now;
    const at = (now - begun) / (1000 * seconds);
    if (at >= 1) return done({ frames, draws, calls, seen });
    it.look(at * (span - wide), at * (span - wide) + wide);
    const before = performance.now();
    it.draw();
    draws.push(performance.now() - before);
    calls.push(it.stats.calls);
    let boxes = 0;
    for (let k = 0; k < e.row.length; k++) boxes += e.stop[k] > it.state.from && e.start[k] < it.state.to;
    const tokens = e.tokens.at ? e.tokens.at.filter((t) => t + 1 > it.state.from && t < it.state.to).length : 0;
    seen.push(boxes + tokens);
    requestAnimationFrame(frame);
  };
  requestAnimationFrame(frame);
})
"""


def control_episode(steps: int = STEPS) -> Rollout:
    """An episode of decisions of three periods, with random values, rewards and reasons of ending."""
    rng = torch.Generator().manual_seed(0)
    stream = Spans.from_lengths(torch.tensor([steps]))
    tables, parent = {}, None
    for level, period in PERIODS.items():
        start = torch.arange(0, steps, period)
        stop = (start + period).clamp(max=steps)
        count = len(start)
        end = torch.tensor([int(End.OPTION), int(End.TIMEOUT), int(End.INTERRUPTED)])
        end = end[torch.multinomial(torch.tensor([8.0, 1.0, 1.0]), count, replacement=True, generator=rng)]
        end[-1] = int(End.TERMINATED)
        tables[level] = Decisions(
            stream=torch.zeros(count, dtype=torch.int64), start=start, stop=stop,
            span=partition(stream, start, stop)[1], begin=torch.full((count,), int(Begin.DECIDED)), end=end,
            action=torch.randn(count, 2, generator=rng), log_prob=torch.randn(count, generator=rng) - 2,
            values={"value": torch.randn(count, generator=rng)},
            parent=torch.full((count,), -1) if parent is None else partition(stream, *parent)[0].ids[start],
        )  # fmt: skip
        parent = start, stop
    spans: dict[str, tuple[Spans, str | None]] = {"episode": (stream, None), "stream": (stream, "episode")}
    spans |= {level: (partition(stream, d.start, d.stop)[0], "stream") for level, d in tables.items()}
    reward = torch.where(torch.rand(steps, generator=rng) < 0.1, torch.randn(steps, generator=rng), torch.zeros(steps))
    action = torch.randn(steps, 2, generator=rng)
    return Rollout(
        stream=stream.ids, tick=torch.arange(steps), elapsed=torch.ones(steps), reward={"env": reward},
        scored={"env": torch.ones(steps, dtype=torch.bool)}, decisions=tables, spans=SpanTree(spans),
        observation={"observation": torch.randn(steps, 8, generator=rng)}, proposed=action,
        executed=action.clamp(-2.0, 2.0),
        streams=Streams(
            episode=torch.zeros(1, dtype=torch.int64), role=["agent"], policy_id=["policy"],
            learner=torch.ones(1, dtype=torch.bool), terminated=torch.ones(1, dtype=torch.bool),
            truncated=torch.zeros(1, dtype=torch.bool), start_tick=torch.zeros(1, dtype=torch.int64),
        ),
    )  # fmt: skip


def rewritten(episodes: int = EPISODES, turns: int = TURNS) -> Record:
    """Episodes whose contexts are new texts at every turn that say most of the same again; advantages of two terms."""
    rng = np.random.default_rng(0)
    builder = RecordBuilder({"labels": {}})
    for uid in range(episodes):
        opened = builder.episode(uid)
        stream = opened.stream()
        for turn in range(turns):
            context = [1000 + turn, *rng.permutation(40).repeat(READ // 40).tolist()]
            written = rng.integers(40, 90, WRITTEN).tolist()
            opened.call(stream, context, written, logp=rng.normal(-1, 0.1, WRITTEN))
    made = builder.build()
    noise = torch.from_numpy(rng.normal(0, 1, (2, made.size)))
    return made.write(items={"adv.episode": noise[0], "adv.turn": noise[1]})


def decode(ids: Sequence[int]) -> str:
    """Lines for what is read, words for what is written."""
    return "".join(f"<user>line {k} of what was seen before, at some length" if k < 40 else f" word{k}" for k in ids)


def write_page(folder: Path, timelines: list[Timeline], strings: Strings) -> Path:
    """The page of a run that recorded these episodes and nothing else."""
    folder.mkdir(parents=True, exist_ok=True)
    told = {"system": "synthetic", "config": {"env": "somewhere", "seed": 0}}
    (folder / "config.json").write_text(json.dumps(told))
    group = gather([folder])[0]
    group.runs[0].timelines, group.runs[0].strings = timelines, strings
    (folder / "page.html").write_text(page([group]), encoding="utf-8")
    return folder / "page.html"


def control_page(folder: Path, steps: int = STEPS) -> Path:
    """The page of the control episode."""
    strings = Strings()
    found = control.timelines(control_episode(steps), {"gamma": 0.99, "lam": 0.95}, strings, 1)
    return write_page(folder, found, strings)


def language_page(folder: Path, episodes: int = EPISODES, turns: int = TURNS) -> Path:
    """The page of the language episodes."""
    strings = Strings()
    found = talk.timelines(rewritten(episodes, turns), strings, decode, "random numbers", episodes)
    return write_page(folder, found, strings)


def busy_ms(tab: Tab) -> float:
    """Milliseconds of CPU time that the page's main thread has spent on tasks."""
    told = tab.call("Performance.getMetrics")["metrics"]
    return 1000 * next(one["value"] for one in told if one["name"] == "TaskDuration")


def opened(browser: Browser, file: Path, repeats: int) -> tuple[float, float]:
    """Milliseconds from asking for the page to the first drawn flame graph, and those of CPU time to load it."""
    found = []
    for _ in range(repeats):
        tab = Tab(browser)
        tab.call("Performance.enable", timeDomain="threadTicks")
        tab.call("Page.addScriptToEvaluateOnNewDocument", source=WATCH)
        tab.open(file)
        found.append((float(tab.js("window.drawn")), busy_ms(tab)))
        tab.close()
    drawn, busy = np.median(found, axis=0)
    return float(drawn), float(busy)


def panned(browser: Browser, file: Path, share: float, seconds: float) -> dict[str, Any]:
    """Frames of a pan over the episode while `share` of it is in view, and what each of them drew."""
    tab = Tab(browser)
    tab.open(file)
    tab.js("document.querySelector('#flame canvas').scrollIntoView({block: 'center', behavior: 'instant'})")
    tab.call("Performance.enable", timeDomain="threadTicks")
    before = busy_ms(tab)
    found = tab.js(f"({PAN % share})({seconds})")
    busy = (busy_ms(tab) - before) / max(len(found["frames"]), 1)
    tab.close()
    return {name: np.array(column) for name, column in found.items()} | {"busy": busy}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each pan")
    parser.add_argument("--repeats", type=int, default=3, help="times that each page is opened")
    parser.add_argument("--out", type=Path, help="keep the pages in this folder")
    options = parser.parse_args()
    names = ("page", "MB", "drawn ms", "CPU ms", "view", "frames", "frame ms", "95 %", "draw ms", "CPU ms", "calls",
             "boxes", "most")  # fmt: skip
    print("".join(f"{name:>10}" for name in names))
    with tempfile.TemporaryDirectory() as folder, started(Path(folder) / "browser") as browser:
        root = options.out or Path(folder)
        for name, made in (("control", control_page), ("language", language_page)):
            file = made(root / name)
            drawn, busy = opened(browser, file, options.repeats)
            for share in SHARES:
                found = panned(browser, file, share, options.seconds)
                row = [drawn, busy, share, len(found["frames"]), *np.percentile(found["frames"], [50, 95])]
                row += [np.median(found["draws"]), found["busy"], found["calls"].max(), found["seen"].max()]
                row += [(found["calls"] / found["seen"]).max()]
                size = file.stat().st_size / 1e6
                print(f"{name:>10}{size:10.2f}" + "".join(f"{x:10.4g}" for x in row), flush=True)
    print(f"{TARGETS}\nload {' '.join(f'{x:.2f}' for x in os.getloadavg())}")


if __name__ == "__main__":
    main()
