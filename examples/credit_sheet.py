"""Two episodes of one task, and what nine rules of credit make of their turns.

    python examples/credit_sheet.py                            print the numbers
    python examples/credit_sheet.py docs/images/credit.svg     draw them

The left episode succeeds on its last turn, the right one fails. Letters are states; K and G occur in both, so their
turns have something to be compared with. A subgoal is chosen where a bracket begins and held as long as it lasts.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor

from echelon.credit.groups import grpo
from echelon.credit.returns import discounted_return, gae
from echelon.credit.segments import boundaries, hae, switch_difference
from echelon.credit.turns import gigpo, rloo_to_go
from echelon.spans import Spans, SpanTree

STATES = "KFKGT" + "KWKG"
EPISODES = Spans.from_lengths([5, 4])
GROUP = Spans.from_lengths([9])
SWITCH = torch.tensor([1, 0, 1, 0, 0, 1, 0, 1, 0]).bool()
REWARD = torch.tensor([0.0, 0, 0, 0, 1, 0, 0, 0, 0])
LOW_VALUE = torch.tensor([0.2, 0.3, 0.4, 0.5, 0.7, 0.2, 0.2, 0.15, 0.1])  # of the state and the subgoal
HIGH_VALUE = torch.tensor([0.25, 0.35, 0.45, 0.55, 0.65, 0.25, 0.2, 0.2, 0.1])  # of the state alone
HELD_VALUE = torch.tensor([0.0, 0.3, 0.32, 0.5, 0.7, 0.0, 0.2, 0.25, 0.1])  # of the state and the subgoal on arrival
SWITCHING = torch.tensor([1.0, 0.3, 0.6, 0.2, 0.1, 1.0, 0.4, 0.5, 0.3])  # probability of SWITCH


def rows() -> list[tuple[str, str, Tensor]]:
    """(rule, what it is made of, a number a turn; NaN where the rule says nothing)."""
    tree = SpanTree(
        {"group": GROUP, "episode": (EPISODES, "group"), "segment": (boundaries(SWITCH, EPISODES), "episode")}
    )
    outcome = grpo(tree.within("episode", "group"), reward=EPISODES.reduce(REWARD))
    state = torch.tensor([ord(letter) for letter in STATES])
    levels = hae(tree, reward=REWARD, low_value=LOW_VALUE, high_value=HIGH_VALUE, lam_turn=0.95)
    difference = switch_difference(
        EPISODES, switch=SWITCH, probability=SWITCHING, high_value=HIGH_VALUE, low_value=HELD_VALUE
    )
    high, silent = levels["high"], torch.tensor(torch.nan)
    return [
        ("reward", "what happened", REWARD),
        ("return to go", "scan", discounted_return(EPISODES, reward=REWARD)),
        ("grpo", "episodes of the group", outcome.expand(EPISODES).advantage),
        ("rloo_to_go", "others at the same turn", rloo_to_go(tree, reward=REWARD).advantage),
        ("gigpo", "group + equal states", gigpo(tree, reward=REWARD, state=state).advantage),
        ("gae", "shift and scan of values", gae(EPISODES, reward=REWARD, value=LOW_VALUE, lam=0.95).advantage),
        ("hae: action", "gae inside segments", levels["low"].advantage),
        ("hae: subgoal", "gae over segments", torch.where(high.weight > 0, high.advantage, silent)),
        ("hae: switch", "gain of switching", torch.where(difference.weight > 0, difference.advantage, silent)),
    ]


STYLE = """svg.sheet { --paper: #fcfbf8; --ink: #1d2126; --soft: #5d646c; --hair: #dcd8ce }
svg.sheet { --up: 0 103 168; --down: 196 80 10 }
@media (prefers-color-scheme: dark) {
  svg.sheet { --paper: #15181c; --ink: #e6e4df; --soft: #9aa1a9; --hair: #30353c }
  svg.sheet { --up: 99 179 234; --down: 240 144 90 }
}
text { font: 12px ui-sans-serif, system-ui, sans-serif; fill: var(--ink); font-variant-numeric: tabular-nums }
.soft { fill: var(--soft); font-size: 11px } .mid { text-anchor: middle } .rule { font-weight: 600 }
.cell { stroke: var(--hair) } .bracket { stroke: var(--soft); fill: none; stroke-width: 1.5 }"""
LEFT, TOP, WIDE, HIGH, GAP = 250, 76, 62, 30, 26


def left_of(turn: int) -> int:
    return LEFT + WIDE * turn + (GAP if turn >= 5 else 0)


def picture() -> str:
    """The table as SVG: blue raises the turn's probability, orange lowers it, the stronger the larger."""
    segments = boundaries(SWITCH, EPISODES)
    parts = [
        f'<text class="mid" x="{left_of(2) + WIDE / 2}" y="18">succeeds</text>',
        f'<text class="mid" x="{left_of(7)}" y="18">fails</text>',
    ]
    for start, end in zip(segments.starts.tolist(), segments.ends.tolist(), strict=True):
        a, b = left_of(start) + 4, left_of(end) + WIDE - 4
        parts.append(f'<path class="bracket" d="M{a} 36V29H{b}V36"/>')
    for turn, letter in enumerate(STATES):
        parts.append(f'<text class="mid soft" x="{left_of(turn) + WIDE / 2}" y="{TOP - 18}">{letter}</text>')
    for row, (name, composition, column) in enumerate(rows()):
        y = TOP + HIGH * row
        parts.append(f'<text class="rule" x="0" y="{y + 20}">{name}</text>')
        parts.append(f'<text class="soft" x="100" y="{y + 20}">{composition}</text>')
        largest = float(column.nan_to_num().abs().max())
        for turn, value in enumerate(column.tolist()):
            if value != value:
                continue
            ink = f"rgb(var(--{'up' if value > 0 else 'down'}) / {0.75 * abs(value) / largest:.2f})"
            x, shown = left_of(turn), f"{value:+.2f}".replace("-", "−") if abs(value) >= 0.005 else "0"
            parts.append(f'<rect class="cell" x="{x}" y="{y}" width="{WIDE}" height="{HIGH}" style="fill:{ink}"/>')
            parts.append(f'<text class="mid" x="{x + WIDE / 2}" y="{y + 20}">{shown}</text>')
    wide, high = left_of(8) + WIDE + 8, TOP + HIGH * len(rows()) + 8
    label = "Nine rules of credit on the turns of two episodes"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="sheet" viewBox="-12 0 {wide + 12} {high}" width="{wide + 12}" '
        f'height="{high}" role="img" aria-label="{label}"><style>{STYLE}</style>'
        f'<rect x="-12" width="{wide + 12}" height="{high}" style="fill:var(--paper)"/>' + "".join(parts) + "</svg>\n"
    )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(picture())
    else:
        for name, composition, column in rows():
            print(f"{name:14}{composition:26}" + "".join(f"{x:8.3f}" for x in column.tolist()))
