"""Blocks such as <switch>KEEP</switch> in what a model writes: labels of its tokens, and the fields of its reply.

One scanner serves both, so that what is trained and what is acted on never disagree. A block goes from the "<" of its
opening tag to the ">" of its closing tag. An opening tag inside another block ends that one, unclosed, and so does the
end of the text; a closing tag that closes nothing is plain text. A token belongs to the block in which it starts.

Labels are pure functions of the exact ids of one call: text is never encoded again. They are read by whoever trains,
never fed back to the policy.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from echelon.errors import UsageError

Ids = Sequence[int]
Matcher = Callable[[tuple[int, ...]], Sequence[bool]]
"""Ids of a call → whether each is meant."""
_HALF = "\ufffd"  # what a tokenizer shows for a part of a character
_TAG = re.compile(r"[A-Za-z_][\w.-]*")


class Offsets(Protocol):
    """The part of a tokenizer that labels need."""

    def offsets(self, ids: Ids) -> tuple[str, list[tuple[int, int]]]:
        """The text of `ids`, and where in it each token starts and stops."""


@dataclass(frozen=True)
class Block:
    """One block of a text; places are characters."""

    tag: str
    text: str
    """Between the tags, without white space at its ends."""
    start: int
    stop: int
    closed: bool
    """Whether it has its closing tag."""
    inner: tuple[int, int]
    """Where the text between its tags starts and stops."""


class Scanner:
    """Finds blocks in a text that comes in pieces; how it is cut makes no difference."""

    def __init__(self, tags: Sequence[str]):
        for tag in tags:
            if not _TAG.fullmatch(tag) or list(tags).count(tag) > 1:
                raise UsageError(f"'{tag}' cannot be a tag: a name of letters, digits, '_', '-' and '.', used once")
        if not tags:
            raise UsageError("there are no tags to look for")
        self._pattern = re.compile("<(/?)(" + "|".join(map(re.escape, tags)) + ")>")
        self._longest = max(map(len, tags)) + len("</>")
        self._text, self._from = "", 0
        self._open: tuple[str, int, int] | None = None  # tag, start, start of the inner text
        self._done: list[Block] = []
        self.stray: list[str] = []
        """Closing tags that close nothing."""

    def feed(self, piece: str) -> None:
        """Go on with the text."""
        self._text += piece
        while match := self._pattern.search(self._text, self._from):
            self._from = match.end()
            closes, tag = bool(match[1]), match[2]
            if closes and self._open is not None and self._open[0] == tag:
                self._end(match.start(), match.end(), closed=True)
            elif closes:
                self.stray.append(match[0])
            else:
                if self._open is not None:
                    self._end(match.start(), match.start(), closed=False)
                self._open = (tag, match.start(), match.end())
        self._from = max(self._from, len(self._text) - self._longest + 1)

    @property
    def inside(self) -> str | None:
        """Tag of the block in which the text ends so far."""
        return None if self._open is None else self._open[0]

    @property
    def blocks(self) -> list[Block]:
        """The blocks so far; the last one may be open."""
        if self._open is None:
            return list(self._done)
        return [*self._done, self._block(len(self._text), len(self._text), closed=False)]

    def _end(self, inner: int, stop: int, closed: bool) -> None:
        self._done.append(self._block(inner, stop, closed))
        self._open = None

    def _block(self, inner: int, stop: int, closed: bool) -> Block:
        assert self._open is not None
        tag, start, begin = self._open
        return Block(tag, self._text[begin:inner].strip(), start, stop, closed, (begin, inner))


class TagMachine:
    """Labels of the tokens of one text, while it is being written: push its ids, in any portions.

    Codes: the place of the block's tag in `tags`, -1 outside of all blocks. What a token is may still change while it
    lies in what could become a tag; `codes` is final once the text is.
    """

    def __init__(self, tags: Sequence[str], tokenizer: Offsets):
        self.tags, self._tokenizer, self._scanner = tuple(tags), tokenizer, Scanner(tags)
        self._ids: list[int] = []
        self._starts: list[int] = []
        self._first = 0  # the last token whose text is certain, from which the rest is read
        self._stop: int | None = None  # where that stops; None: there is none yet

    def push(self, ids: Ids) -> None:
        """Go on with these ids."""
        self._ids += ids
        text, places = self._tokenizer.offsets(self._ids[self._first :])
        shift = 0 if self._stop is None else self._stop - places[0][1]
        self._starts[self._first + (self._stop is not None) :] = [
            shift + start for start, _ in places[self._stop is not None :]
        ]
        certain = [i for i, (start, stop) in enumerate(places) if start < stop and _HALF not in text[start:stop]]
        if certain:
            stop = places[certain[-1]][1]
            self._scanner.feed(text[(self._stop or 0) - shift : stop])
            self._first, self._stop = self._first + certain[-1], shift + stop

    @property
    def inside(self) -> str | None:
        """Tag of the block in which the text ends so far."""
        return self._scanner.inside

    @property
    def blocks(self) -> list[Block]:
        """The blocks so far."""
        return self._scanner.blocks

    @property
    def codes(self) -> list[int]:
        """One code a token."""
        return codes_of(self.blocks, self._starts, self.tags)


def codes_of(blocks: Sequence[Block], starts: Sequence[int], tags: Sequence[str]) -> list[int]:
    """The code of each token that starts at one of `starts`; an open block reaches beyond the text."""
    begins, number = [block.start for block in blocks], {tag: code for code, tag in enumerate(tags)}
    codes = []
    for start in starts:
        at = bisect_right(begins, start) - 1
        last = at == len(blocks) - 1
        inside = at >= 0 and (start < blocks[at].stop or (last and not blocks[at].closed))
        codes.append(number[blocks[at].tag] if inside else -1)
    return codes


@dataclass(frozen=True)
class TagChannel:
    """A channel for `lm(labels=[…])`: the block in which each token starts."""

    name: str
    tags: tuple[str, ...]
    tokenizer: Offsets = field(repr=False)
    fallback: str | None = None
    """Label of every token of a text that has no block of this tag."""
    tail: bool = False
    """Whether what follows the last block (the end token) belongs to it."""

    def __post_init__(self) -> None:
        Scanner(self.tags)
        if self.fallback is not None and self.fallback not in self.tags:
            raise UsageError(f"the fallback '{self.fallback}' is none of the tags {', '.join(self.tags)}")

    @property
    def labels(self) -> tuple[str, ...]:
        """What the codes mean."""
        return self.tags

    def __call__(self, ids: Ids) -> list[int]:
        """One code a token."""
        text, places = self.tokenizer.offsets(ids)
        scanner = Scanner(self.tags)
        scanner.feed(text)
        blocks = scanner.blocks
        if self.fallback is not None and all(block.tag != self.fallback for block in blocks):
            return [self.tags.index(self.fallback)] * len(ids)
        if self.tail and blocks:
            blocks[-1] = replace(blocks[-1], closed=False)  # it reaches beyond the text
        return codes_of(blocks, [start for start, _ in places], self.tags)


@dataclass(frozen=True)
class MatchChannel:
    """A channel with one label, on the tokens that a matcher means."""

    name: str
    matcher: Matcher = field(repr=False)

    @property
    def labels(self) -> tuple[str, ...]:
        """What the code 0 means."""
        return (self.name,)

    def __call__(self, ids: Ids) -> list[int]:
        """0 where matched, else -1."""
        mask = self.matcher(tuple(ids))
        if len(mask) != len(ids):
            raise UsageError(f"the matcher of '{self.name}' gave {len(mask)} answers for {len(ids)} tokens")
        return [0 if bool(matched) else -1 for matched in mask]


def phrases(grams: Sequence[Ids]) -> Matcher:
    """A matcher of every token that lies in an occurrence of one of `grams`, which are sequences of ids."""
    by_first: dict[int, list[tuple[int, ...]]] = {}
    for gram in grams:
        if not len(gram):
            raise UsageError("a phrase has no tokens")
        by_first.setdefault(int(gram[0]), []).append(tuple(gram))

    def match(ids: tuple[int, ...]) -> list[bool]:
        mask = [False] * len(ids)
        for start, token in enumerate(ids):
            for gram in by_first.get(token, ()):
                if ids[start : start + len(gram)] == gram:
                    mask[start : start + len(gram)] = [True] * len(gram)
        return mask

    return match


@dataclass(frozen=True)
class Slot:
    """A place in a format: blocks of any of `tags`, one after the other."""

    tags: tuple[str, ...]
    least: int = 1
    most: int | None = 1
    """None: any number."""
    values: tuple[str, ...] = ()
    """What may stand in its blocks, whatever the case; (): anything."""
    empty: bool = False
    """Whether its blocks may be empty."""


@dataclass(frozen=True)
class Parsed:
    """The fields of a reply."""

    blocks: tuple[Block, ...]
    problems: tuple[str, ...]
    """Why the text does not keep to the format; none: it does, strictly."""

    @property
    def valid(self) -> bool:
        """Whether the text keeps to the format."""
        return not self.problems

    def first(self, *tags: str) -> Block | None:
        """The first block of one of `tags`; of the first that is closed, if any is."""
        found = [block for block in self.blocks if block.tag in tags]
        return next((block for block in found if block.closed), found[0] if found else None)

    def get(self, tag: str, default: str = "") -> str:
        """The text of the first block of `tag`."""
        block = self.first(tag)
        return default if block is None else block.text

    def all(self, tag: str) -> tuple[str, ...]:
        """The texts of all blocks of `tag`."""
        return tuple(block.text for block in self.blocks if block.tag == tag)

    @property
    def fields(self) -> Mapping[str, str]:
        """Tag → text of its first block."""
        return {block.tag: self.get(block.tag) for block in self.blocks}


@dataclass(frozen=True)
class Format:
    """What a reply looks like: its slots, in this order.

    >>> HIPER = Format((Slot(("switch",), values=("KEEP", "SWITCH")), Slot(("subgoal",)), Slot(("action",))))
    >>> RLVMR = Format((Slot(("planning", "explore", "reflection", "monitor")), Slot(("action",))), free_text=True)
    >>> PLANNER = Format((Slot(("think",)), Slot(("task", "answer"))))
    """

    slots: tuple[Slot, ...]
    free_text: bool = False
    """Whether text may stand outside of the blocks."""

    def __post_init__(self) -> None:
        Scanner(self.tags)

    @property
    def tags(self) -> tuple[str, ...]:
        """All tags, slot after slot."""
        return tuple(tag for slot in self.slots for tag in slot.tags)

    def channel(self, name: str, tokenizer: Offsets, fallback: str | None = None, tail: bool = False) -> TagChannel:
        """The labels that belong to the fields."""
        return TagChannel(name, self.tags, tokenizer, fallback, tail)

    def parse(self, text: str, strict: bool = False) -> Parsed:
        """The blocks of `text`, and every way in which it departs from the format.

        strict: no blocks at all if it does. Otherwise one takes what is there, such as an unclosed last block.
        """
        scanner = Scanner(self.tags)
        scanner.feed(text)
        blocks = scanner.blocks
        problems = [f"{tag} closes nothing" for tag in scanner.stray]
        problems += [f"<{block.tag}> is not closed" for block in blocks if not block.closed]
        problems += self._counts(blocks) + self._contents(blocks)
        if not self.free_text and (outside := _outside(text, blocks)):
            problems.append(f"text outside of the blocks: {outside[:40]!r}")
        return Parsed(() if strict and problems else tuple(blocks), tuple(problems))

    def _counts(self, blocks: Sequence[Block]) -> list[str]:
        place = {tag: number for number, slot in enumerate(self.slots) for tag in slot.tags}
        order = [place[block.tag] for block in blocks]
        problems = [] if order == sorted(order) else ["the blocks are not in their order"]
        for number, slot in enumerate(self.slots):
            count, name = order.count(number), " or ".join(f"<{tag}>" for tag in slot.tags)
            if count < slot.least or (slot.most is not None and count > slot.most):
                most = "or more" if slot.most is None else f"to {slot.most}"
                wanted = str(slot.least) if slot.least == slot.most else f"{slot.least} {most}"
                problems.append(f"{count} blocks of {name} instead of {wanted}")
        return problems

    def _contents(self, blocks: Sequence[Block]) -> list[str]:
        slot_of = {tag: slot for slot in self.slots for tag in slot.tags}
        problems = []
        for block in blocks:
            slot = slot_of[block.tag]
            if not block.text and not slot.empty:
                problems.append(f"<{block.tag}> is empty")
            elif slot.values and block.text.casefold() not in {value.casefold() for value in slot.values}:
                problems.append(f"<{block.tag}> says {block.text[:40]!r}, not {' or '.join(slot.values)}")
        return problems


def _outside(text: str, blocks: Sequence[Block]) -> str:
    """What stands outside of the blocks, without white space at its ends."""
    edges = [0, *(place for block in blocks for place in (block.start, block.stop)), len(text)]
    pieces = (text[start:stop] for start, stop in zip(edges[::2], edges[1::2], strict=True))
    return " ".join(piece.strip() for piece in pieces if piece.strip())
