"""From words to a dataclass: tyro reads the flags, and whatever is wrong becomes a one-line `UsageError`."""

from __future__ import annotations

import contextlib
import io
import itertools
import re
from collections.abc import Callable, Mapping
from typing import TypeVar

from echelon.errors import UsageError, unknown

Schema = TypeVar("Schema")
Action = Callable[[list[str]], None]


def parse(schema: type[Schema], args: list[str], verb: str, default: Schema | None = None) -> Schema:
    """Read `args` into the dataclass `schema`; its fields are the flags, their docs the help.

    `default` supplies the values of flags that are not given (else the dataclass's own defaults hold). `--help` prints
    and exits 0. Anything else that does not fit raises UsageError, with the nearest flags for an unknown one.
    """
    value, extra = parse_known(schema, args, verb, default)
    if extra:
        raise unexpected(extra[0], verb, flags(schema, verb, default))
    return value


def parse_known(
    schema: type[Schema], args: list[str], verb: str, default: Schema | None = None
) -> tuple[Schema, list[str]]:
    """As `parse`, but return the words that `schema` does not know instead of refusing them."""
    import tyro

    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(
                schema,
                args=args,
                prog=f"echelon {verb}",
                default=tyro.MISSING_NONPROP if default is None else default,
                return_unknown_args=True,
                config=(tyro.conf.FlagCreatePairsOff,),
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        raise UsageError(f"{first_paragraph(complaint.getvalue())} (echelon {verb} --help)") from None


def subverb(verb: str, args: list[str], actions: Mapping[str, Action], usage: str) -> tuple[Action, list[str]]:
    """Split `args` into one of `actions` and its own arguments; without any, or with --help, print `usage` and exit."""
    if not args or args[0] in ("-h", "--help"):
        print(usage)
        raise SystemExit(0)
    if args[0] not in actions:
        raise unknown(f"{verb} action", args[0], actions)
    return actions[args[0]], args[1:]


def flags(schema: type[Schema], verb: str, default: Schema | None = None) -> list[str]:
    """Every option string of `schema`, as its help lists them."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        parse_known(schema, ["--help"], verb, default)
    return sorted(set(re.findall(r"(?<![\w-])--[a-z][\w.-]*", text.getvalue())))


def unexpected(word: str, verb: str, options: list[str]) -> UsageError:
    """Build the error for a `word` that verb does not take."""
    if word.startswith("-"):
        return unknown("flag", word.partition("=")[0], options)
    return UsageError(f"unexpected argument '{word}' (echelon {verb} --help)")


def first_paragraph(box: str) -> str:
    """Reduce a boxed error text, drawn in UTF-8 or ASCII, to its first paragraph below the title, on one line."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", box)
    lines = [line.strip("│ ") for line in plain.splitlines() if line.strip("│ ") and not line.startswith("╰")]
    if not lines:
        return "the arguments do not fit"
    body = lines[1:]
    while body and is_rule(body[0]):
        body = body[1:]
    text = " ".join(" ".join(itertools.takewhile(lambda line: not is_rule(line), body)).split())
    return re.sub(r"^Missing from .*?: ", "missing: ", text)


def is_rule(line: str) -> bool:
    """Whether a line of a box only separates."""
    return set(line) <= {"─", "-"}
