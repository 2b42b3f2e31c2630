"""HTML and SVG as nested calls: text is escaped unless it is already `Markup`, so no page can be broken by its data."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

VOID = frozenset({"br", "hr", "input", "link", "meta"})


class Markup(str):
    """Text that is finished HTML or SVG; any other string is escaped by `tag` and `join`."""


Inside = str | float | Iterable["Inside"] | None


def tag(name: str, /, *inside: Inside, **attributes: str | float | bool | None) -> Markup:
    """The element `name` around `inside` (nested iterables are flattened, None is skipped).

    Attribute names lose a trailing underscore and turn the others into hyphens (`class_`, `stroke_width`);
    an attribute that is None or False is left out, True gives its name as its value.
    """
    shown = "".join(f' {_name(key)}="{_value(key, value)}"' for key, value in attributes.items() if _present(value))
    if name in VOID:
        return Markup(f"<{name}{shown}>")
    return Markup(f"<{name}{shown}>{join(*inside)}</{name}>")


def join(*inside: Inside) -> Markup:
    """Concatenate, escaping every string that is not Markup."""
    parts: list[str] = []
    for item in inside:
        if isinstance(item, Markup):
            parts.append(item)
        elif isinstance(item, str):
            parts.append(escape(item))
        elif isinstance(item, int | float):
            parts.append(number(item))
        elif item is not None:
            parts.append(join(*item))
    return Markup("".join(parts))


def number(value: float, digits: int = 2) -> str:
    """A coordinate: `digits` decimals at most, no trailing zeros, no minus zero."""
    text = f"{value:.{digits}f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text in ("-0", "") else text


def short(value: float) -> str:
    """A number for people: 1500 -> 1.5k, 0.00031 -> 3.1e−4, 12.345 -> 12.3."""
    size = abs(value)
    if value == 0 or value != value:
        return "0" if value == 0 else "–"
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size >= 0.9995 * limit:
            return _minus(f"{value / limit:.3g}") + unit
    if size < 1e-3:
        mantissa, _, exponent = f"{value:.1e}".partition("e")
        return _minus(f"{mantissa.removesuffix('.0')}e{int(exponent)}")
    return _minus(f"{value:.3g}")


def duration(seconds: float) -> str:
    """Seconds as 42 s, 12 min 30 s or 3 h 20 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def signed(value: float) -> str:
    """A difference with its sign and one decimal."""
    return _minus(f"{value:+.1f}")


def plural(count: int, noun: str) -> str:
    """1 seed, 3 seeds."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _minus(text: str) -> str:
    return text.replace("-", "−")


def _present(value: str | float | bool | None) -> bool:
    return value is not None and value is not False


def _name(key: str) -> str:
    return key.removesuffix("_").replace("_", "-")


def _value(key: str, value: str | float | bool | None) -> str:
    if value is True:
        return _name(key)
    return escape(value) if isinstance(value, str) else number(float(value or 0), 3)
