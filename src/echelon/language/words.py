"""Text to token ids and back: a tokenizer of whole words built from an environment's text, and one over Hugging Face's.

Small models trained from scratch read and write the sentences of one environment. A vocabulary of its words makes texts
short and copying easy: "fridge 1" is two tokens, the same two wherever they occur.

White space is no token. Whether a space stands between two tokens follows from their kinds, by a table learned from the
corpus ("in/on" has none, "fridge 1" has one); where a text departs from the table, a marker token says so. Hence
`decode(encode(text)) == normal(text)` for every text without unknown words.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from echelon.errors import DataError, UsageError

Message = Mapping[str, str]
"""{"role": ..., "content": ...}"""

PAD, BOS, EOS, UNKNOWN, JOIN, SPLIT, NEWLINE = CONTROL = (
    "<pad>",
    "<bos>",
    "<eos>",
    "<unk>",
    "<join>",
    "<split>",
    "\n",
)
"""The first tokens of every vocabulary of words, in this order; the roles, the caller's tags and the words follow."""

_FORM, _VERSION = "echelon words", 1
_WORD, _NUMBER, _TAG = "word", "number", ""  # kinds of tokens; a punctuation mark is a kind of its own
_LETTERS = r"[^\W\d_]+(?:['’-][^\W\d_]+)*"
_REMEMBERED = 1 << 17  # texts between white space whose ids are remembered


class Tokenizer(Protocol):
    """What programs, engines and labels need to know about a tokenizer."""

    @property
    def size(self) -> int:
        """Number of token ids."""

    @property
    def eos(self) -> int:
        """The token that ends a text."""

    @property
    def pad(self) -> int:
        """A token to fill rows with; nothing attends to it."""

    @property
    def special(self) -> Mapping[str, int]:
        """Tokens that are no plain text: name → id."""

    @property
    def hash(self) -> str:
        """SHA-256 of all that the ids depend on."""

    def encode(self, text: str) -> list[int]:
        """Ids of a plain text; nothing is added before or behind."""

    def decode(self, ids: Sequence[int], control: bool = True) -> str:
        """The text of `ids`; without `control`, the markers of beginnings, ends and roles are left out."""

    def offsets(self, ids: Sequence[int]) -> tuple[str, list[tuple[int, int]]]:
        """The text of `ids`, and where in it each token starts and stops."""

    def render(self, messages: Sequence[Message], reply: bool = True) -> list[int]:
        """Ids of a conversation; with `reply`, up to where the assistant's next answer begins."""

    def follow(self, messages: Sequence[Message], reply: bool = True) -> list[int]:
        """Ids of further `messages`, to append to a conversation that ends with an answer and its `eos`."""


class WordTokenizer:
    """Whole words, numbers, punctuation marks and the caller's tags; made by `build` or `load`.

    words: the vocabulary; at most `tags`, `roles` and the control tokens come before it.
    tags: strings that are one token each, such as "<action>"; white space beside them is dropped.
    roles: who may speak; the last one is the one that answers.
    exceptions: pairs of kinds that are spaced against the rule that spaces stand between words and numbers only.
    lower: make capital letters small. digits: one token a digit, not a number. newlines: line breaks are tokens.

    Control tokens never arise from plain text (a game that prints "<eos>" ends no turn); tags do.
    """

    def __init__(
        self,
        words: Sequence[str],
        tags: Sequence[str] = (),
        roles: Sequence[str] = ("system", "user", "assistant"),
        exceptions: Iterable[tuple[str, str]] = (),
        lower: bool = False,
        digits: bool = False,
        newlines: bool = True,
    ):
        for tag in tags:
            if tag.split() != [tag] or tag[0].isalnum():
                raise UsageError(f"{tag!r} cannot be a tag: it must not contain white space nor begin as a word does")
        self.words, self.tags, self.roles = tuple(words), tuple(tags), tuple(roles)
        self.exceptions = tuple(sorted(exceptions))
        self.lower, self.digits, self.newlines = lower, digits, newlines
        self.vocabulary = (*CONTROL, *(f"<{role}>" for role in self.roles), *self.tags, *self.words)
        self._ids = {token: i for i, token in enumerate(self.vocabulary)}
        if len(self._ids) < len(self.vocabulary):
            twice = next(token for token, count in Counter(self.vocabulary).items() if count > 1)
            raise UsageError(f"the token {twice!r} occurs twice in the vocabulary")
        self.special = {token: self._ids[token] for token in self.vocabulary[: -len(self.words) or None]}
        self.pad, self.bos, self.eos, self.unk = (self._ids[token] for token in (PAD, BOS, EOS, UNKNOWN))
        self._join, self._split, self._newline = (self._ids[token] for token in (JOIN, SPLIT, NEWLINE))
        self._parsed = {token: self._ids[token] for token in (*self.tags, *self.words)}
        self._pattern = _pattern(self.tags, digits)
        self._kinds = [_TAG] * len(self.special) + [_kind(word) for word in self.words]
        self._kinds[self.unk] = _WORD
        self._reversed = frozenset(self.exceptions)
        self._chunks: dict[str, tuple[list[int], str, str, tuple[str, ...]]] = {}
        self.unknown: Counter[str] = Counter()
        """Words met by `encode` that the vocabulary lacks, and how often."""

    @classmethod
    def build(
        cls,
        texts: Iterable[str],
        tags: Sequence[str] = (),
        roles: Sequence[str] = ("system", "user", "assistant"),
        lower: bool = False,
        digits: bool = False,
        newlines: bool = True,
        min_count: int = 1,
        size: int | None = None,
    ) -> WordTokenizer:
        """The tokenizer of the words that occur at least `min_count` times in `texts`, the most frequent first.

        With `size`, the vocabulary has at most that many tokens, all kinds together.
        """
        pattern, plain = _pattern(tags, digits), frozenset(tags)
        counts: Counter[str] = Counter()
        gaps: Counter[tuple[str, str, bool]] = Counter()
        for text in texts:
            for line in text.split("\n") if newlines else (text,):
                before = _TAG
                for chunk in line.split():
                    spaced = True
                    for token in pattern.findall(chunk):
                        word = token.lower() if lower and token not in plain else token
                        kind = _TAG if token in plain else _kind(word)
                        counts[word] += 1
                        gaps[before, kind, spaced] += 1
                        before, spaced = kind, False
        exceptions = {
            (a, b)
            for a, b, _ in gaps
            if _TAG not in (a, b) and (gaps[a, b, True] > gaps[a, b, False]) != _spaced_by_rule(a, b)
        }
        words = [w for w, n in counts.items() if n >= min_count and w not in plain]
        words.sort(key=lambda word: (-counts[word], word))
        room = None if size is None else max(0, size - len(CONTROL) - len(roles) - len(tags))
        return cls(words[:room], tags, roles, exceptions, lower, digits, newlines)

    @property
    def size(self) -> int:
        """Number of token ids."""
        return len(self.vocabulary)

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the saved form."""
        return hashlib.sha256(json.dumps(self._document(), sort_keys=True).encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        """Ids of a plain text; words that the vocabulary lacks become <unk> and are counted in `unknown`."""
        ids: list[int] = []
        for line in text.split("\n") if self.newlines else (text,):
            before = _TAG
            chunks = line.split()
            if chunks and ids:
                ids.append(self._newline)
            for chunk in chunks:
                of_chunk, first, last, unknown = self._chunks.get(chunk) or self._encode_chunk(chunk)
                if before and first and not self._spaced(before, first):
                    ids.append(self._split)
                ids += of_chunk
                before = last
                if unknown:
                    self.unknown.update(unknown)
        return ids

    def decode(self, ids: Sequence[int], control: bool = True) -> str:
        """The text of `ids`; without `control`, the markers of beginnings, ends and roles are left out."""
        if not control:
            hidden = {self.pad, self.bos, self.eos, *(self.special[f"<{role}>"] for role in self.roles)}
            ids = [i for i in ids if i not in hidden]
        return self.offsets(ids)[0]

    def offsets(self, ids: Sequence[int]) -> tuple[str, list[tuple[int, int]]]:
        """The text of `ids`, and where in it each token starts and stops; markers of white space are empty."""
        pieces: list[str] = []
        places: list[tuple[int, int]] = []
        position, before, marker = 0, _TAG, -1
        for i in ids:
            if i in (self._join, self._split):
                marker = i
                places.append((position, position))
                continue
            kind = self._kinds[i]
            if before and kind and (marker == self._split if marker >= 0 else self._spaced(before, kind)):
                pieces.append(" ")
                position += 1
            token = self.vocabulary[i]
            pieces.append(token)
            places.append((position, position + len(token)))
            position += len(token)
            before, marker = kind, -1
        return "".join(pieces), places

    def normal(self, text: str) -> str:
        """What is left of a text when it is encoded and decoded, apart from unknown words.

        White space is one space, or one line break where it contained one, and none at the ends or beside tags.
        """
        lines = text.split("\n") if self.newlines else [text]
        text = "\n".join(" ".join(line.split()) for line in lines if line.strip())
        if self.lower:
            text = self._pattern.sub(lambda found: self._lowered(found[0]), text)
        return re.sub(rf" ?({_either(self.tags)}) ?", r"\1", text) if self.tags else text

    def render(self, messages: Sequence[Message], reply: bool = True) -> list[int]:
        """Ids of a conversation: <bos>, then <role> content <eos> for each message; with `reply`, <assistant>."""
        return [self.bos, *self.follow(messages, reply)]

    def follow(self, messages: Sequence[Message], reply: bool = True) -> list[int]:
        """Ids of further `messages`, to append to a conversation that ends with an answer and its <eos>."""
        ids: list[int] = []
        for message in messages:
            if message["role"] not in self.roles:
                raise UsageError(f"unknown role '{message['role']}'; this tokenizer has {', '.join(self.roles)}")
            ids += [self.special[f"<{message['role']}>"], *self.encode(message["content"]), self.eos]
        return [*ids, self.special[f"<{self.roles[-1]}>"]] if reply else ids

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the tokenizer as JSON, replacing the file at once."""
        temporary = Path(f"{os.fspath(path)}.tmp")
        temporary.write_text(json.dumps({**self._document(), "sha256": self.hash}, indent=1), encoding="utf-8")
        os.replace(temporary, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> WordTokenizer:
        """Read what `save` wrote; DataError if the file is missing, altered or something else."""
        try:
            document = json.loads(Path(path).read_text(encoding="utf-8"))
            form, version, digest = (document.pop(name) for name in ("format", "version", "sha256"))
            if (form, version) != (_FORM, _VERSION):
                raise DataError(f"{path}: holds {form} version {version}, not {_FORM} {_VERSION}")
            exceptions = [(a, b) for a, b in document.pop("exceptions")]
            made = cls(exceptions=exceptions, **document)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path}: no tokenizer written by echelon ({error})") from error
        if made.hash != digest:
            raise DataError(f"{path}: altered since it was written (its checksum differs)")
        return made

    def _document(self) -> dict[str, Any]:
        return {
            "format": _FORM,
            "version": _VERSION,
            "words": self.words,
            "tags": self.tags,
            "roles": self.roles,
            "exceptions": self.exceptions,
            "lower": self.lower,
            "digits": self.digits,
            "newlines": self.newlines,
        }

    def _lowered(self, token: str) -> str:
        return token.lower() if self.lower and token not in self.special else token

    def _spaced(self, a: str, b: str) -> bool:
        return _spaced_by_rule(a, b) != ((a, b) in self._reversed)

    def _encode_chunk(self, chunk: str) -> tuple[list[int], str, str, tuple[str, ...]]:
        """Of a text without white space: ids, the kinds of its first and last token, its unknown words."""
        ids: list[int] = []
        unknown: list[str] = []
        kinds: list[str] = []
        for token in self._pattern.findall(chunk):
            word = self._lowered(token)
            i = self._parsed.get(word, self.unk)
            if i == self.unk:
                unknown.append(word)
            kinds.append(self._kinds[i])
            if len(kinds) > 1 and kinds[-2] and kinds[-1] and self._spaced(kinds[-2], kinds[-1]):
                ids.append(self._join)
            ids.append(i)
        if len(self._chunks) >= _REMEMBERED:
            self._chunks.clear()
        self._chunks[chunk] = known = (ids, kinds[0], kinds[-1], tuple(unknown))
        return known


class HFTokenizer:
    """A Hugging Face tokenizer with a chat template, behind the same interface.

    `template` (Jinja) replaces the tokenizer's own. Special tokens in plain texts are parsed as such, as its owners do.
    """

    def __init__(self, tokenizer: Any, template: str | None = None):
        self.tokenizer = tokenizer
        self.template = template or tokenizer.chat_template
        if not self.template:
            raise UsageError(f"{tokenizer.name_or_path}: this tokenizer has no chat template; give one (`template`)")
        if tokenizer.eos_token_id is None:
            raise UsageError(f"{tokenizer.name_or_path}: this tokenizer has no token that ends a text")
        self.eos: int = tokenizer.eos_token_id
        self.pad: int = self.eos if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        self.special: dict[str, int] = {
            str(token): i for i, token in tokenizer.added_tokens_decoder.items() if token.special
        }

    @property
    def size(self) -> int:
        """Number of token ids; a model may have more, for the sake of round numbers."""
        return len(self.tokenizer)

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the vocabulary, the rules and the chat template."""
        rules = self.tokenizer.backend_tokenizer.to_str() if self.tokenizer.is_fast else self.tokenizer.get_vocab()
        return hashlib.sha256(json.dumps([rules, self.template, self.eos], sort_keys=True).encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        """Ids of a plain text; nothing is added before or behind."""
        return self.tokenizer.encode(text, add_special_tokens=False)

    def decode(self, ids: Sequence[int], control: bool = True) -> str:
        """The text of `ids`; without `control`, special tokens are left out."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=not control, clean_up_tokenization_spaces=False)

    def offsets(self, ids: Sequence[int]) -> tuple[str, list[tuple[int, int]]]:
        """The text of `ids`, and where in it each token starts and stops.

        Tokens that share a character (bytes of one code point) stand where it stands; the last of them is its own.
        """
        ids = list(ids)
        text = self.decode(ids)
        places: list[tuple[int, int]] = []
        anchor = settled = position = 0  # decode from ids[anchor]; ids[:settled] are whole characters, `position` long
        for stop in range(1, len(ids) + 1):
            known = len(self.decode(ids[anchor:settled]))
            grown = self.decode(ids[anchor:stop])
            if grown.endswith("\ufffd") and not text.startswith(grown[known:], position):
                places.append((position, position))
                continue
            length = len(grown) - known
            places.append((position, position + length))
            anchor, settled, position = settled, stop, position + length
        return text, places

    def render(self, messages: Sequence[Message], reply: bool = True) -> list[int]:
        """Ids of a conversation by the chat template; with `reply`, up to where the assistant's answer begins."""
        return self.tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            chat_template=self.template,
            tokenize=True,
            add_generation_prompt=reply,
            return_dict=False,
        )

    def follow(self, messages: Sequence[Message], reply: bool = True) -> list[int]:
        """Ids of further `messages`, to append to a conversation that ends with an answer and its `eos`.

        UsageError if the template writes earlier turns anew when turns are added: then only `render` is right.
        """
        before: list[Message] = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        earlier, whole = self.render(before, reply=False), self.render([*before, *messages], reply)
        answered = max((k + 1 for k, i in enumerate(earlier) if i == self.eos), default=0)
        if not answered or whole[:answered] != earlier[:answered]:
            raise UsageError(
                "this chat template does not let a conversation be continued by appending: it ends answers without "
                f"{self.tokenizer.eos_token} or changes earlier turns; render the whole conversation each time"
            )
        return whole[answered:]


def _pattern(tags: Sequence[str], digits: bool) -> re.Pattern[str]:
    number = r"\d" if digits else r"\d+"
    words = rf"{_LETTERS}|{number}|\S"
    return re.compile(rf"{_either(tags)}|{words}" if tags else words)


def _either(tags: Sequence[str]) -> str:
    return "|".join(re.escape(tag) for tag in sorted(tags, key=len, reverse=True))


def _kind(token: str) -> str:
    if token[0].isdecimal():
        return _NUMBER
    return _WORD if re.fullmatch(_LETTERS, token) else token


def _spaced_by_rule(a: str, b: str) -> bool:
    return a in (_WORD, _NUMBER) and b in (_WORD, _NUMBER)
