"""One claim on a system's page: its text and verdict, the plots behind it, and how the numbers came about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from echelon.claims import AtLeast
from echelon.evidence.compare import seeds_line
from echelon.evidence.reproduce import begun_from
from echelon.evidence.site import charts
from echelon.evidence.site.charts import Measure
from echelon.evidence.site.gather import Measured, Side
from echelon.evidence.site.layout import freshness, prose, verdict_badge
from echelon.evidence.status import SHOWN, remark
from echelon.evidence.view.markup import Inside, Markup, duration, plural, tag
from echelon.evidence.view.svg import line_chart

CURVE = (charts.WIDTH, 226)
Rows = Sequence[tuple[str, Inside]]


def claim_section(slug: str, measured: Measured) -> Markup:
    """Everything about one claim."""
    state = measured.state
    fresh = freshness(state)
    outcome = tag("p", verdict_badge(state), tag("span", fresh, class_="fresh") if fresh else None)
    return tag(
        "article",
        outcome,
        tag("h3", state["text"]),
        reservations(state),
        plots(measured),
        pairs(numbers(measured)),
        tag("pre", tag("code", f"echelon reproduce {slug}")),
        provenance(measured) if measured.entry else None,
        class_="claim",
        id=state["id"],
    )


def reservations(state: dict[str, Any]) -> list[Markup]:
    """What to know before the verdict is believed: why it is stale, what the guard found."""
    said: list[Inside] = []
    if state["stale"]:
        said.append([tag("b", "Stale"), f"{remark(state, SHOWN).removeprefix(' (stale').removesuffix(')')}."])
    if state["replayed"]:
        said.append("The code changed since, and replays of the first updates show that the numbers did not.")
    if state["guard"]:
        said.append(f"Guard: {state['guard']}.")
    notes = [tag("p", text, class_="note") for text in said]
    if len(state["stale"]) > SHOWN:
        changes = tag("ul", [tag("li", reason) for reason in state["stale"]])
        notes.append(tag("details", tag("summary", f"All {len(state['stale'])} changes since"), changes))
    return notes


def plots(measured: Measured) -> Markup | None:
    """Method against baseline, their difference, and the curves that led there."""
    sides, estimate = measured.sides, measured.estimate
    if not sides or estimate is None:
        return None
    unit = unit_of(sides[0])
    alone = isinstance(measured.test, AtLeast)
    arms = charts.means(
        [Measure(label(side), side.mean, list(side.seeds.values()), style) for style, side in enumerate(sides)],
        title=f"Means: {', '.join(f'{label(side)} {charts.said(side.mean)}' for side in sides)}",
        unit=unit,
        points=all(side.in_points for side in sides),
        mark=next(iter(charts.asked(measured.test)), None) if alone else None,
    )
    figures = [figure("Each arm.", "Bar from zero: mean of the runs; line: 95 % interval; dots: runs.", arms)]
    if not alone:
        apart = charts.difference(
            estimate,
            measured.test,
            title=f"Difference: {charts.said(estimate)}; {measured.test}",
            unit=f"method − baseline, {unit}",
        )
        words = "What the verdict rests on, with its 95 % interval; the solid line is no difference."
        figures.append(figure("Difference.", words, apart))
    drawn = curves(sides)
    figures += [drawn] if drawn is not None else []
    return tag("div", figures, class_="plots")


def curves(sides: Sequence[Side]) -> Markup | None:
    """Success over training, a line an arm; None unless every arm told of it more than once."""
    different = {side.name: side for side in sides}
    lines = [seeds_line(name, side.curves, style) for style, (name, side) in enumerate(different.items())]
    shown = [line for line in lines if line is not None and len(line.x) > 1]
    if not shown or len(shown) < len(different):
        return None
    title = f"Success over training: {', '.join(different)}"
    chart = line_chart(
        shown,
        title=title,
        x_label="updates",
        y_label="success, points",
        size=CURVE,
        y_limits=(0.0, 100.0),
        dots=True,
    )
    key = [tag("span", tag("span", class_=f"swatch s{line.style}"), line.label) for line in shown]
    words = "Line: mean of the runs; band: least to most."
    return figure("Over training.", words, tag("div", key, class_="key"), chart)


def figure(name: str, words: str, *drawn: Markup) -> Markup:
    """A drawing with its caption."""
    return tag("figure", *drawn, tag("figcaption", tag("b", name), f" {words}"))


def numbers(measured: Measured) -> Rows:
    """The test and its answer; without a result what would be measured."""
    claim, entry, estimate = measured.claim, measured.entry, measured.estimate
    rows: list[tuple[str, Inside]] = [("Test", str(measured.test)), ("Score", prose(measured.meaning))]
    if entry is None or estimate is None:
        rows += [("Seeds", ", ".join(map(str, claim.seeds)))]
        rows += [
            (role, budget(arm["config"])) for role, arm in zip(("Method", "Baseline"), measured.planned, strict=False)
        ]
        return [*rows, ("Source", claim.source)]
    of = entry["estimate"]
    paired = ", on the same runs" if of["paired"] else ""
    rows.append((of["of"][:1].upper() + of["of"][1:], f"{charts.said(estimate)} ({of['level']:.0%} interval{paired})"))
    if entry["improvement"] is not None:
        rows.append(("P(a run of the method is better)", f"{entry['improvement']:.2f}"))
    rows.append(("Seeds", ", ".join(map(str, entry["seeds"]))))
    for side in measured.sides:
        runs = ", ".join(f"{seed}: {value:.4g}" for seed, value in side.seeds.items())
        rows.append((f"{side.role.capitalize()} by seed", f"{side.name}: {runs}"))
    rows += [("Without verdict", text) for text in measured.state["also"]]
    return [*rows, ("Budget", [tag("div", spent(side)) for side in measured.sides]), ("Source", entry["source"])]


def budget(config: Mapping[str, Any]) -> str:
    """What one run is given: its environment and updates."""
    updates = config.get("updates")
    return f"{config.get('env', '')}{f', {updates} updates' if updates is not None else ''} a run"


def spent(side: Side) -> str:
    """What an arm was given and took."""
    parts = [f"{side.name} ({side.system}): {plural(len(side.results), 'run')} on {budget(side.config)}"]
    steps = [result["environment_steps"] for result in side.results if "environment_steps" in result]
    if steps:
        parts.append(f"{sum(steps) // len(steps)} environment steps each")
    seconds = [float(result["train_s"]) for result in side.results if "train_s" in result]
    if seconds:
        parts.append(f"{duration(sum(seconds) / len(seconds))} of training each")
    return ", ".join(parts)


def provenance(measured: Measured) -> Markup:
    """Where the result comes from: when, by which code, on what machine; and the file with every score."""
    entry, state = measured.entry or {}, measured.state
    same = entry["code_hash"] == measured.code_hash
    code = f"{entry['code_hash']}, {'as now' if same else f'now {measured.code_hash}'}"
    commit = entry.get("git") or {}
    machine = entry["machine"]
    rows: list[tuple[str, Inside]] = [
        ("Recorded", entry["date"]),
        ("Command", tag("code", entry["command"])),
        ("Code hash", code),
        ("Commit", f"{commit.get('commit', 'unknown')}{', with changes' if commit.get('dirty') else ''}"),
        (
            "Machine",
            f"{machine['cpu']}, {plural(machine['cores'], 'core')}, {machine['memory_gib']} GiB, {machine['system']}",
        ),
        ("Versions", ", ".join(f"{name} {version}" for name, version in entry["versions"].items())),
        ("Scored by", [tag("div", tag("code", f"{side.role}: {side.statistic}")) for side in measured.sides]),
        ("All scores", tag("a", state["result_file"], href=f"../results/{state['result_file']}")),
    ]
    if begun_from(entry):
        rows.append(("Began from", begun_from(entry)))
    return tag("details", tag("summary", "How it came about"), pairs(rows))


def pairs(rows: Rows) -> Markup:
    """Names and what they stand for, as a table of two columns."""
    return tag(
        "table", [tag("tr", tag("th", name, scope="row"), tag("td", text)) for name, text in rows], class_="pairs"
    )


def label(side: Side) -> str:
    """An arm for a chart."""
    return f"{side.role}: {side.name}"


def unit_of(side: Side) -> str:
    """The unit of an arm's scores, as far as it is known: success in points, else the statistic's name."""
    return "success in points" if side.in_points else side.statistic.partition(":")[2]
