"""Word tokenizer: exact up to white space, spacing learned from the corpus; the same interface over Hugging Face's."""

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echelon.errors import DataError, UsageError
from echelon.language.words import CONTROL, HFTokenizer, WordTokenizer

CORPUS = """You are in the middle of a room, and looking around you, you see a cabinet 1, a fridge 1, a fridge 12.
Your task is to: put a hot apple in/on countertop 1.
- go to fridge 1
- take apple 1 from fridge 1
"""
TAGS = ("<think>", "</think>", "<action>", "</action>")


@pytest.fixture(scope="module")
def words():
    return WordTokenizer.build([CORPUS], TAGS)


def tokens(tokenizer, text):
    return [tokenizer.vocabulary[i] for i in tokenizer.encode(text)]


def test_numbers_are_split_from_names(words):
    assert tokens(words, "take apple 1 from fridge 12") == ["take", "apple", "1", "from", "fridge", "12"]
    assert tokens(words, "fridge12") == ["fridge", "<join>", "12"]


def test_spacing_is_learned_from_the_corpus(words):
    text = "put a apple in/on cabinet 1, and go."
    assert tokens(words, text) == ["put", "a", "apple", "in", "/", "on", "cabinet", "1", ",", "and", "go", "."]
    assert words.decode(words.encode(text)) == text
    odd = "put a apple in / on cabinet 1 ,and"
    assert tokens(words, odd).count("<split>") == 3 and tokens(words, odd).count("<join>") == 1
    assert words.decode(words.encode(odd)) == odd


def test_what_a_model_writes_without_markers_is_spaced_as_in_the_corpus(words):
    ids = [
        words.special.get(t) or words.vocabulary.index(t) for t in ["put", "apple", "1", "in", "/", "on", "fridge", "1"]
    ]
    assert words.decode(ids) == "put apple 1 in/on fridge 1"


def test_tags_are_one_token_and_swallow_white_space(words):
    text = "<think> you see a fridge 1 </think><action>go to fridge 1</action>"
    assert tokens(words, text)[:2] == ["<think>", "you"]
    assert words.decode(words.encode(text)) == "<think>you see a fridge 1</think><action>go to fridge 1</action>"


def test_line_breaks_are_tokens_and_other_white_space_is_one_space(words):
    text = "\n go  to\tfridge 1 \n\n - take apple 1\n"
    assert tokens(words, text) == ["go", "to", "fridge", "1", "\n", "-", "take", "apple", "1"]
    assert words.decode(words.encode(text)) == "go to fridge 1\n- take apple 1"
    flat = WordTokenizer.build([CORPUS], newlines=False)
    assert flat.decode(flat.encode("go to\nfridge 1")) == "go to fridge 1"


def test_control_tokens_do_not_arise_from_text(words):
    wide = WordTokenizer.build([CORPUS + " < > eos user"], TAGS)
    ids = wide.encode("go <eos> <user> to")
    assert not {wide.eos, wide.special["<user>"]} & set(ids)
    assert wide.decode(ids) == "go <eos> <user> to"


def test_unknown_words_are_counted(words):
    words.unknown.clear()
    ids = words.encode("take the zeppelin from fridge 1, zeppelin 7") + words.encode("zeppelin")
    assert words.unknown == {"zeppelin": 3, "7": 1}
    assert ids.count(words.unk) == 4
    assert words.decode(ids[:3]) == "take the <unk>"


def test_case_digits_counts_and_sizes():
    lower = WordTokenizer.build([CORPUS], TAGS, lower=True)
    assert lower.decode(lower.encode("YOU see <think>You")) == "you see<think>you"
    digits = WordTokenizer.build(["42 + 17 = 59", "3 x 4"], digits=True)
    assert tokens(digits, "47") == ["4", "7"] and digits.decode(digits.encode("47 + 1 = 9")) == "47 + 1 = 9"
    frequent = WordTokenizer.build(["b b b a a c"], min_count=2)
    assert frequent.words == ("b", "a")
    assert WordTokenizer.build([CORPUS], TAGS, size=20).size == 20
    assert WordTokenizer.build([CORPUS], TAGS).size == len(CONTROL) + 3 + 4 + len(WordTokenizer.build([CORPUS]).words)


def test_offsets_name_the_place_of_every_token(words):
    text = "<action>put apple 1 in/on fridge12"
    out, places = words.offsets(words.encode(text))
    assert out == text
    assert [out[a:b] for a, b in places] == ["<action>", "put", "apple", "1", "in", "/", "on", "fridge", "", "12"]


def test_conversations(words):
    first = [{"role": "system", "content": "go to"}, {"role": "user", "content": "you see a fridge 1"}]
    ids = words.render(first)
    assert words.decode(ids) == "<bos><system>go to<eos><user>you see a fridge 1<eos><assistant>"
    assert words.decode(ids, control=False) == "go to you see a fridge 1"
    answer = [*words.encode("<action>go to fridge 1</action>"), words.eos]
    then = [{"role": "user", "content": "you see a apple 1"}]
    said = {"role": "assistant", "content": "<action>go to fridge 1</action>"}
    assert ids + answer + words.follow(then) == words.render([*first, said, *then])
    assert words.render(first, reply=False) == ids[:-1]
    with pytest.raises(UsageError, match="role 'tool'"):
        words.render([{"role": "tool", "content": ""}])


def test_saved_and_loaded(words, tmp_path):
    words.save(tmp_path / "words.json")
    again = WordTokenizer.load(tmp_path / "words.json")
    assert again.hash == words.hash and again.encode(CORPUS) == words.encode(CORPUS)
    assert again.hash != WordTokenizer.build([CORPUS]).hash
    document = json.loads((tmp_path / "words.json").read_text())
    document["words"][0] = "pear"
    (tmp_path / "words.json").write_text(json.dumps(document))
    with pytest.raises(DataError, match="altered"):
        WordTokenizer.load(tmp_path / "words.json")
    for text in ("{", "[]", '{"format": "echelon words", "version": 9, "sha256": ""}'):
        (tmp_path / "words.json").write_text(text)
        with pytest.raises(DataError, match="words"):
            WordTokenizer.load(tmp_path / "words.json")
    with pytest.raises(DataError):
        WordTokenizer.load(tmp_path / "nothing.json")


def test_impossible_vocabularies_are_refused():
    for tags in (("a b",), ("",), ("end",)):
        with pytest.raises(UsageError, match="tag"):
            WordTokenizer(["a"], tags)
    for words, tags in ((["a", "a"], ()), ([], ("<eos>",)), ([], ("<t>", "<t>"))):
        with pytest.raises(UsageError, match="twice"):
            WordTokenizer(words, tags)


ALPHABET = "ab Zß7½٣.,/'-_<>\n\t\u00a0\u2028é東🙂"
TEXTS = st.lists(st.one_of(st.text(ALPHABET, max_size=12), st.sampled_from(TAGS)), max_size=6).map("".join)


@given(TEXTS, st.text(), st.booleans(), st.booleans(), st.booleans(), st.sampled_from([(), TAGS]))
def test_decoding_gives_back_what_was_encoded_up_to_white_space(text, corpus, lower, digits, newlines, tags):
    tokenizer = WordTokenizer.build([text, corpus], tags, lower=lower, digits=digits, newlines=newlines)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == tokenizer.normal(text)
    assert not tokenizer.unknown
    bare = "".join((text.lower() if lower else text).split())
    assert "".join(tokenizer.normal(text).split()) == bare
    assert tokenizer.encode(tokenizer.normal(text)) == ids
    out, places = tokenizer.offsets(ids)
    assert len(places) == len(ids)
    assert all(out[a:b] in ("", tokenizer.vocabulary[i]) for i, (a, b) in zip(ids, places, strict=True))


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def bytes_tokenizer():
    """A byte-level tokenizer without merges beyond those of a small corpus, with ChatML."""
    transformers = pytest.importorskip("transformers")
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator([CORPUS] * 4, trainer)
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>")
    tokenizer.add_special_tokens({"additional_special_tokens": special[:2]})
    tokenizer.chat_template = CHATML
    return tokenizer


def test_hugging_face_tokenizers_have_the_same_interface(bytes_tokenizer):
    tokenizer = HFTokenizer(bytes_tokenizer)
    assert tokenizer.size == len(bytes_tokenizer) and tokenizer.pad == tokenizer.eos == tokenizer.special["<|im_end|>"]
    first = [{"role": "user", "content": "go to fridge 1"}]
    ids = tokenizer.render(first)
    assert tokenizer.decode(ids) == "<|im_start|>user\ngo to fridge 1<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(ids, control=False) == "user\ngo to fridge 1\nassistant\n"
    said, then = {"role": "assistant", "content": "ok"}, [{"role": "user", "content": "a room"}]
    answer = [*tokenizer.encode("ok"), tokenizer.eos]
    assert ids + answer + tokenizer.follow(then) == tokenizer.render([*first, said, *then])
    assert tokenizer.hash == HFTokenizer(bytes_tokenizer).hash != HFTokenizer(bytes_tokenizer, CHATML + " ").hash


@given(st.text(max_size=20))
def test_offsets_over_parts_of_characters(bytes_tokenizer, text):
    tokenizer = HFTokenizer(bytes_tokenizer)
    ids = tokenizer.encode(text)
    for part in (ids, ids[1:], ids[:-1]):  # may begin or end inside a character
        out, places = tokenizer.offsets(part)
        assert out == tokenizer.decode(part)
        assert all(a <= b <= c for (a, b), (c, _) in pairwise(places))
        assert places == [] or (places[0][0] == 0 and places[-1][1] == len(out))


def test_templates_that_cannot_be_continued_are_refused(bytes_tokenizer):
    only_last = "{{ messages[-1]['content'] }}<|im_end|>"
    with pytest.raises(UsageError, match="appending"):
        HFTokenizer(bytes_tokenizer, only_last).follow([{"role": "user", "content": "x"}])
    bare = type(bytes_tokenizer)(tokenizer_object=bytes_tokenizer.backend_tokenizer, eos_token="<|im_end|>")
    with pytest.raises(UsageError, match="chat template"):
        HFTokenizer(bare)
