"""Where the numbers of a page come from: configuration, identity of the runs, data set; folded tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from echelon.evidence.view.markup import Markup, join, plural, tag
from echelon.evidence.view.runs import Group


def provenance(groups: Sequence[Group]) -> Markup:
    """Configuration, identity of the runs, and the data set, folded."""
    parts = []
    for group in groups:
        parts += [config_table(group), identity_table(group)]
        if group.manifest:
            parts.append(data_table(group.manifest))
    unique = list(dict.fromkeys(parts))
    return join(unique)


def config_table(group: Group) -> Markup:
    """The resolved configuration; values that differ from the published defaults are marked."""
    config = group.runs[0].config
    changed = {
        name
        for name, value in config.items()
        if name in group.defaults and name != "seed" and plain(value) != plain(group.defaults[name])
    }
    rows = []
    for name, value in config.items():
        shown = ", ".join(str(run.seed) for run in group.runs) if name == "seed" else plain(value)
        default = plain(group.defaults[name]) if name in changed else ""
        rows.append(
            tag(
                "tr",
                tag("td", name, class_="code"),
                tag("td", shown, class_="code"),
                tag("td", default, class_="code"),
                class_="changed" if name in changed else None,
            )
        )
    head = tag("tr", tag("th", "setting"), tag("th", "value"), tag("th", "default, where it differs"))
    told = (
        f"{len(changed)} of {len(config)} settings differ from the defaults"
        if group.defaults
        else f"{len(config)} settings"
    )
    return tag(
        "details", tag("summary", f"Configuration of {group.label}", tag("small", told)), tag("table", head, rows)
    )


def plain(value: object) -> str:
    """A setting as text; tuples and lists look alike."""
    if isinstance(value, list | tuple):
        return ", ".join(plain(item) for item in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def identity_table(group: Group) -> Markup:
    """What the runs were made with; a value that is the same for all seeds is given once."""
    facts: dict[str, list[str]] = {}
    for run in group.runs:
        found = {
            "folder": str(run.path),
            **run.identity,
            **run.result,
        }
        for name, value in found.items():
            if value is not None:
                facts.setdefault(name, []).append(flat(value))
    rows = [
        tag("tr", tag("td", name), tag("td", "; ".join(dict.fromkeys(values)), class_="code"))
        for name, values in facts.items()
    ]
    return tag(
        "details",
        tag("summary", f"Identity of {group.label}", tag("small", plural(len(group.runs), "run"))),
        tag("table", rows),
    )


def data_table(manifest: dict[str, Any]) -> Markup:
    """The manifest of the data set: what it is, and whether it was made here or downloaded."""
    made = "regenerated on this machine by the published recipe" if manifest.get("regenerated") else "as published"
    rows = [
        tag("tr", tag("td", name.replace("_", " ")), tag("td", flat(value), class_="code"))
        for name, value in manifest.items()
        if name not in ("columns", "lengths", "format")
    ]
    columns = manifest.get("columns", {})
    shapes = "; ".join(f"{name} {spec.get('dtype')} {spec.get('shape')}" for name, spec in columns.items())
    rows.append(tag("tr", tag("td", "columns"), tag("td", shapes, class_="code")))
    return tag(
        "details", tag("summary", f"Data set {manifest.get('name', '')}", tag("small", made)), tag("table", rows)
    )


def flat(value: object) -> str:
    """Nested facts on one line."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {flat(item)}" for name, item in value.items())
    return plain(value)
