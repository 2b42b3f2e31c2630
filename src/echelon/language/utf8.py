"""A tokenizer without a vocabulary: the bytes of UTF-8, and marks for the ends and speakers of messages.

For models whose own tokenizer is out of reach, such as those behind an endpoint: programs go on working with token
ids, any text has its ids, and a conversation can be read back from them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from echelon.errors import UsageError
from echelon.language.words import Message

ROLES = ("system", "user", "assistant")
_BYTES = 256


class Utf8Tokenizer:
    """A token a byte, then the end of a message and one token a role; equal for everybody."""

    def __init__(self) -> None:
        self.eos = self.pad = _BYTES
        self.special = {"<eos>": _BYTES, **{f"<{role}>": _BYTES + 1 + k for k, role in enumerate(ROLES)}}
        self.size = _BYTES + len(self.special)
        self.hash = hashlib.sha256(f"utf-8 {list(self.special)}".encode()).hexdigest()
        self._shown = {_BYTES: "\n", **{self.special[f"<{role}>"]: f"{role}: " for role in ROLES}}

    def encode(self, text: str) -> list[int]:
        """Ids of a plain text; nothing is added before or behind."""
        return list(text.encode())

    def decode(self, ids: Sequence[int], control: bool = True) -> str:
        """The text of `ids`: with `control`, a line "role: content" a message; without, contents alone.

        What is no UTF-8, such as half a character, becomes U+FFFD.
        """
        return "".join(text for text, _ in self._pieces(ids, control))

    def offsets(self, ids: Sequence[int]) -> tuple[str, list[tuple[int, int]]]:
        """The text of `ids`, and where in it each token starts and stops; a character belongs to its last byte."""
        places: list[tuple[int, int]] = []
        pieces = self._pieces(ids, control=True)
        position = 0
        for text, count in pieces:
            places += [(position, position)] * (count - 1) + [(position, position + len(text))]
            position += len(text)
        return "".join(text for text, _ in pieces), places

    def render(self, messages: Sequence[Message], reply: bool = True) -> list[int]:
        """Ids of a conversation: <role> content <eos> for each message; with `reply`, <assistant>."""
        ids: list[int] = []
        for message in messages:
            if message["role"] not in ROLES:
                raise UsageError(f"unknown role '{message['role']}'; this tokenizer has {', '.join(ROLES)}")
            ids += [self.special[f"<{message['role']}>"], *self.encode(message["content"]), self.eos]
        return [*ids, self.special["<assistant>"]] if reply else ids

    def follow(self, messages: Sequence[Message], reply: bool = True) -> list[int]:
        """Ids of further `messages`, to append to a conversation that ends with an answer."""
        return self.render(messages, reply)

    def messages(self, ids: Sequence[int]) -> list[dict[str, str]]:
        """The conversation that ids tell of, the inverse of `render`; ids without a role are the user's.

        An answer that is still to come is left out; one that was cut off needs no <eos>.
        """
        roles = {self.special[f"<{role}>"]: role for role in ROLES}
        found: list[tuple[str, list[int]]] = []
        for token in ids:
            if token in roles:
                found.append((roles[token], []))
            elif token != self.eos:
                if not found:
                    found.append(("user", []))
                found[-1][1].append(token)
        if ids and roles.get(ids[-1]) == "assistant":
            found.pop()
        return [{"role": role, "content": bytes(content).decode(errors="replace")} for role, content in found]

    def _pieces(self, ids: Sequence[int], control: bool) -> list[tuple[str, int]]:
        """(text, number of tokens) of one character or mark after the other."""
        pieces: list[tuple[str, int]] = []
        start = 0
        while start < len(ids):
            token = ids[start]
            if token >= _BYTES:
                pieces.append((self._shown.get(token, "\ufffd") if control else "", 1))
                start += 1
                continue
            stop = start + 1
            while stop < len(ids) and stop - start < _length(token) and ids[stop] >> 6 == 0b10:
                stop += 1
            pieces.append((_character(bytes(ids[start:stop])), stop - start))
            start = stop
        return pieces


def _length(first: int) -> int:
    """Bytes of the character that begins with the byte `first`; 1 for what begins none."""
    return 2 if 0xC2 <= first <= 0xDF else 3 if 0xE0 <= first <= 0xEF else 4 if 0xF0 <= first <= 0xF4 else 1


def _character(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "\ufffd"


def messages_text(messages: Sequence[Mapping[str, str]]) -> str:
    """A conversation as the lines that `Utf8Tokenizer.decode` makes of it, up to where the next answer begins."""
    return "".join(f"{message['role']}: {message['content']}\n" for message in messages) + "assistant: "
