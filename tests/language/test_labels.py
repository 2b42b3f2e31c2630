"""Labels of tokens and fields of replies: one scanner, exact places, whatever the tokenizer."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import Any

import pytest
from driving import Characters, babble, drive, starts
from hypothesis import given, settings
from hypothesis import strategies as st

from echelon.errors import UsageError
from echelon.language.engine import ScriptedEngine
from echelon.language.labels import Format, MatchChannel, Scanner, Slot, TagChannel, TagMachine, phrases

TAGS = ("switch", "subgoal", "action")
HIPER = Format((Slot(("switch",), values=("KEEP", "SWITCH")), Slot(("subgoal",)), Slot(("action",))))
RLVMR = Format((Slot(("planning", "explore", "reflection", "monitor")), Slot(("action",))), free_text=True)
PLANNER = Format((Slot(("think",)), Slot(("task", "answer"))))
EXECUTOR = Format((Slot(("think",)), Slot(("search",), 0, None), Slot(("refine",), 0, None), Slot(("answer",))))


class Pieces:
    """A tokenizer whose ids are the places of given pieces of text: tokens may be cut anywhere."""

    def __init__(self, pieces: Sequence[str]):
        self.pieces = pieces

    def offsets(self, ids: Sequence[int]) -> tuple[str, list[tuple[int, int]]]:
        texts = [self.pieces[i] for i in ids]
        edges = list(itertools.accumulate(map(len, texts), initial=0))
        return "".join(texts), list(itertools.pairwise(edges))


def labelled(*pieces: str, **options: Any) -> list[int]:
    return TagChannel("block", TAGS, Pieces(pieces), **options)(range(len(pieces)))


# ---- tokens


@pytest.mark.parametrize(
    ("pieces", "codes"),
    [
        (("<switch>", "KEEP", "</switch>", "<action>", "go", "</action>"), [0, 0, 0, 2, 2, 2]),
        # a token across a boundary belongs to the block where it starts
        (("<sw", "itch>KEEP</", "switch><", "subgoal>", "x", "</subgoal> <", "action>a"), [0] * 3 + [1] * 3 + [2]),
        (("say ", "<", "action", ">", "go", "<", "/", "action", ">", " so"), [-1] + [2] * 8 + [-1]),
        (("<switch>KEEP", "<action>", "go"), [0, 2, 2]),  # nothing is closed
        (("</switch>", "<", "switch", "x>", "go"), [-1] * 5),
        (("<action>", "</switch>", "</action>", "</action>"), [2, 2, 2, -1]),
        (("", "<action>", "", "go</action>", ""), [2, 2, 2, 2, -1]),  # tokens without text stand where they stand
        ((), []),
    ],
)  # fmt: skip
def test_a_token_belongs_to_the_block_in_which_it_starts(pieces: tuple[str, ...], codes: list[int]) -> None:
    assert labelled(*pieces) == codes


def test_the_fallback_and_the_tail() -> None:
    assert labelled("<switch>", "KEEP", "</switch>", "go", fallback="action") == [2, 2, 2, 2]
    assert labelled("<switch>", "KEEP", "</switch>", "<action>", fallback="action") == [0, 0, 0, 2]
    assert labelled("x", "<action>go", "</action>", " ", "<eos>", tail=True) == [-1, 2, 2, 2, 2]
    assert labelled("x", "y", tail=True) == [-1, -1]


def naive(text: str, starts_at: Sequence[int]) -> list[int]:
    """A label a character, in one pass over the tags of the text, each token by its first character."""
    per_character: list[int] = []
    current, cursor = -1, 0
    for match in re.finditer(r"<(/?)(switch|subgoal|action)>", text):
        per_character += [current] * (match.start() - cursor)
        code = TAGS.index(match[2])
        if not match[1]:
            current = code
        per_character += [current] * (match.end() - match.start())
        if match[1] and code == current:
            current = -1
        cursor = match.end()
    per_character += [current] * (len(text) - cursor + 1)
    return [per_character[start] for start in starts_at]


fragments = st.lists(
    st.sampled_from(
        ["<switch>", "</switch>", "<subgoal>", "</subgoal>", "<action>", "</action>", "<", ">", "/", "a", " b", "<act"]
    ),
    max_size=12,
).map("".join)


@given(text=fragments, cuts=st.lists(st.integers(0, 80), max_size=12))
def test_labels_are_those_of_the_characters(text: str, cuts: list[int]) -> None:
    edges = sorted({min(cut, len(text)) for cut in cuts} | {0, len(text)})
    pieces = [text[a:b] for a, b in itertools.pairwise(edges)]
    channel = TagChannel("block", TAGS, Pieces(pieces))
    assert channel(range(len(pieces))) == naive(text, edges[:-1])
    scanner = Scanner(TAGS)
    for piece in pieces:
        scanner.feed(piece)
    whole = Scanner(TAGS)
    whole.feed(text)
    assert scanner.blocks == whole.blocks and scanner.stray == whole.stray and scanner.inside == whole.inside


portions = st.lists(st.integers(1, 4), min_size=60, max_size=60)


def push_all(machine: TagMachine, ids: Sequence[int], sizes: Sequence[int]) -> TagMachine:
    at = 0
    for size in sizes:
        machine.push(ids[at : at + size])
        at += size
    machine.push(ids[at:])
    return machine


@given(text=fragments, cuts=st.lists(st.integers(0, 80), max_size=12), sizes=portions)
def test_the_machine_agrees_however_the_ids_come(text: str, cuts: list[int], sizes: list[int]) -> None:
    edges = sorted({min(cut, len(text)) for cut in cuts} | {0, len(text)})
    pieces = [text[a:b] for a, b in itertools.pairwise(edges)]
    channel = TagChannel("block", TAGS, Pieces(pieces))
    ids = range(len(pieces))
    machine = push_all(TagMachine(TAGS, Pieces(pieces)), ids, sizes)
    assert machine.codes == channel(ids)


def test_the_machine_knows_where_it_is() -> None:
    machine = TagMachine(TAGS, Characters())
    inside = []
    for letter in "x<action>go</action>y":
        machine.push([ord(letter)])
        inside.append(machine.inside)
    assert inside == [None] * 8 + ["action"] * 11 + [None, None]
    assert [block.text for block in machine.blocks] == ["go"]


@pytest.fixture(scope="module")
def bytewise() -> Any:
    """A byte-level BPE of Hugging Face, on the text of the tags: its tokens cut characters and tags."""
    transformers, tokenizers = pytest.importorskip("transformers"), pytest.importorskip("tokenizers")
    from echelon.language.words import HFTokenizer

    bpe = tokenizers.ByteLevelBPETokenizer()
    corpus = ["<switch>KEEP</switch><subgoal>a b</subgoal>><action>go to</action></"] * 9
    bpe.train_from_iterator(corpus, vocab_size=290, special_tokens=["<eos>"], show_progress=False)
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, eos_token="<eos>")
    return HFTokenizer(fast, template="{{ messages }}")


@settings(max_examples=60)
@given(text=fragments.flatmap(lambda f: st.text("é中🙂 a<>\n", max_size=6).map(lambda t: f + t)), sizes=portions)
def test_the_machine_agrees_on_a_tokenizer_of_bytes(text: str, sizes: list[int], bytewise: Any) -> None:
    ids = [*bytewise.encode(text + text[::-1]), bytewise.eos]
    machine = push_all(TagMachine(TAGS, bytewise), ids, sizes)
    whole, places = bytewise.offsets(ids)
    assert machine.codes == TagChannel("block", TAGS, bytewise)(ids) == naive(whole, [start for start, _ in places])


@settings(max_examples=60)
@given(ids=st.lists(st.integers(0, 289), max_size=20), sizes=portions)
def test_the_machine_agrees_on_bytes_that_are_no_text(ids: list[int], sizes: list[int], bytewise: Any) -> None:
    machine = push_all(TagMachine(TAGS, bytewise), ids, sizes)
    assert machine.codes == TagChannel("block", TAGS, bytewise)(ids)


@given(data=st.data(), sizes=portions)
def test_the_machine_agrees_on_a_tokenizer_of_words(data: st.DataObject, sizes: list[int]) -> None:
    from echelon.language.words import WordTokenizer

    words = WordTokenizer.build(
        ["go to fridge 1, in/on it; look."], tags=[f"<{c}{t}>" for t in TAGS for c in ("", "/")]
    )
    ids = data.draw(st.lists(st.integers(0, words.size - 1), max_size=20))
    machine = push_all(TagMachine(TAGS, words), ids, sizes)
    whole, places = words.offsets(ids)
    assert machine.codes == TagChannel("block", TAGS, words)(ids) == naive(whole, [start for start, _ in places])


# ---- matchers


@given(
    st.lists(st.integers(0, 2), max_size=10),
    st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=3), max_size=4),
)
def test_phrases_match_as_in_a_naive_search(ids: list[int], grams: list[list[int]]) -> None:
    expected = [
        any(ids[s : s + len(g)] == g for g in grams for s in range(max(0, t - len(g) + 1), t + 1))
        for t in range(len(ids))
    ]
    assert phrases(grams)(tuple(ids)) == expected
    assert MatchChannel("plan", phrases(grams))(ids) == [0 if hit else -1 for hit in expected]


def test_matchers_are_checked() -> None:
    with pytest.raises(UsageError, match="1 answers for 2 tokens"):
        MatchChannel("plan", lambda ids: [True])((1, 2))
    with pytest.raises(UsageError, match="no tokens"):
        phrases([[]])


# ---- fields


def test_hiper_strict() -> None:
    text = "<switch>KEEP</switch>\n<subgoal> find an apple </subgoal><action>go to fridge 1</action>"
    parsed = HIPER.parse(text)
    assert parsed.valid and parsed.fields == {
        "switch": "KEEP",
        "subgoal": "find an apple",
        "action": "go to fridge 1",
    }
    assert HIPER.parse(text, strict=True) == parsed
    assert HIPER.parse(text.replace("KEEP", "Switch")).valid


@pytest.mark.parametrize(
    ("text", "problem", "action"),
    [
        ("<switch>KEEP</switch><subgoal>x</subgoal>", "0 blocks of <action> instead of 1", ""),
        ("<switch>no</switch><subgoal>x</subgoal><action>a</action>", "<switch> says 'no', not KEEP or SWITCH", "a"),
        ("<switch>KEEP</switch><subgoal>x</subgoal><action>go to f", "<action> is not closed", "go to f"),
        ("<switch>KEEP<subgoal>x</subgoal><action>a</action>", "<switch> is not closed", "a"),
        ("<subgoal>x</subgoal><switch>KEEP</switch><action>a</action>", "the blocks are not in their order", "a"),
        ("ok <switch>KEEP</switch><subgoal>x</subgoal><action>a</action>", "text outside of the blocks: 'ok'", "a"),
        ("<switch>KEEP</switch><subgoal> </subgoal><action>a</action>", "<subgoal> is empty", "a"),
        ("<switch>KEEP</switch><subgoal>x</subgoal><action>a</action></action>", "</action> closes nothing", "a"),
        ("<switch>KEEP</switch><subgoal>x</subgoal><action>a</action><action>b</action>", "2 blocks of <action>", "a"),
        ("<switch>KEEP</switch><subgoal>x</subgoal><action>a<action>b</action>", "<action> is not closed", "b"),
        ("go to fridge 1", "0 blocks of <switch> instead of 1", ""),
    ],
)  # fmt: skip
def test_hiper_lenient(text: str, problem: str, action: str) -> None:
    parsed = HIPER.parse(text)
    assert not parsed.valid and any(problem in said for said in parsed.problems), parsed.problems
    assert parsed.get("action") == action
    strict = HIPER.parse(text, strict=True)
    assert strict.problems == parsed.problems and strict.blocks == () and strict.get("action", "none") == "none"


def test_rlvmr_wants_one_of_its_tags_and_one_action() -> None:
    good = RLVMR.parse("Well: <explore>look around</explore> then <action>open 1</action>")
    tag = good.first("planning", "explore", "reflection", "monitor")
    assert good.valid and tag is not None and (tag.tag, tag.text) == ("explore", "look around")
    for text, problem in (
        ("<explore>x</explore><monitor>y</monitor><action>a</action>", "2 blocks of <planning> or"),
        ("<action>a</action><explore>x</explore>", "not in their order"),
        ("<explore></explore><action>a</action>", "<explore> is empty"),
        ("<action>a</action>", "0 blocks of <planning> or <explore>"),
    ):
        assert any(problem in said for said in RLVMR.parse(text).problems)


def test_coda_formats() -> None:
    assert PLANNER.parse("<think>a</think><task>b</task>").valid
    assert PLANNER.parse("<think>a</think><answer>b</answer>").valid
    assert not PLANNER.parse("<think>a</think><task>b</task><answer>c</answer>").valid
    assert not PLANNER.parse("<think>a <think>b</think></think><task>c</task>").valid  # nested tags count
    assert not PLANNER.parse("<think>a</think><answer>b").valid  # cut off
    run = "<think>a</think><search>b</search><search>c</search><refine>d</refine><answer>e</answer>"
    parsed = EXECUTOR.parse(run)
    assert parsed.valid and parsed.all("search") == ("b", "c") and parsed.get("answer") == "e"
    assert EXECUTOR.parse("<think>a</think><answer>e</answer>").valid


def test_slots_count() -> None:
    some = Format((Slot(("x",), 1, None), Slot(("y",), 0, 2, empty=True)))
    assert some.parse("<x>a</x><x>b</x><y></y>").valid
    assert some.parse("<y></y>").problems == ("0 blocks of <x> instead of 1 or more",)
    assert some.parse("<x>a</x>" + "<y></y>" * 3).problems == ("3 blocks of <y> instead of 0 to 2",)


@given(fragments)
def test_fields_and_labels_never_disagree(text: str) -> None:
    """The characters labelled with a tag are those of its blocks."""
    codes = HIPER.channel("block", Characters())(Characters().encode(text))
    parsed = HIPER.parse(text)
    for code, tag in enumerate(TAGS):
        places = {place for block in parsed.blocks if block.tag == tag for place in range(block.start, block.stop)}
        assert {place for place, label in enumerate(codes) if label == code} == places
    for block in parsed.blocks:
        assert text[slice(*block.inner)].strip() == block.text
        assert block.closed == text[: block.stop].endswith(f"</{block.tag}>") or not block.closed


def test_tags_are_checked() -> None:
    for tags, message in ((("a", "a"), "used once"), (("<a>",), "cannot be a tag"), ((), "no tags")):
        with pytest.raises(UsageError, match=message):
            TagChannel("block", tags, Characters())
    with pytest.raises(UsageError, match="fallback 'x'"):
        TagChannel("block", TAGS, Characters(), fallback="x")
    with pytest.raises(UsageError, match="used once"):
        Format((Slot(("a",)), Slot(("a", "b"))))


# ---- in the record


def test_labels_of_replies_reach_the_record() -> None:
    text = "<switch>SWITCH</switch><subgoal>x</subgoal><action>go</action>"
    engine = ScriptedEngine(lambda request: list(map(ord, text)) + babble(request))
    channels = [HIPER.channel("block", Characters()), MatchChannel("letters", lambda ids: [i > 96 for i in ids])]

    async def program(task: Any, world: Any, lm: Any, log: Any) -> Any:
        reply = await lm("go", max_tokens=200, labels=channels)
        plain = await lm("go", max_tokens=4)
        if HIPER.parse(reply.text).get("switch") == "SWITCH":
            log.begin("segment", of=reply)
        log.label("tag", 3, of=reply)
        return reply.labels, plain.labels

    phase = drive(program, starts(2), engine=engine)
    record = phase.record
    assert record.labels == ("block", "letters") and record.meta["labels"] == {
        "block": list(TAGS),
        "letters": ["letters"],
    }
    labels, plain = phase.results[1]
    first = record.item_slice(2)
    assert plain == {} and list(labels["block"]) == record.items.label["block"][first].tolist()
    assert record.items.label["block"][record.item_slice(3)].tolist() == [-1] * 4
    assert labels["block"][: len(text)] == tuple(naive(text, range(len(text))))
    assert record.calls.begin["segment"].tolist() == [True, False] * 2
    assert record.calls.label["tag"].tolist() == [3, -1] * 2
    assert [record.tree()[name].n for name in ("segment", "call")] == [2, 4]
