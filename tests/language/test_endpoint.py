"""Models behind an endpoint: what is asked, in which order it comes back, and what happens when the server fails."""

from __future__ import annotations

import dataclasses
import json
import math
import socket
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from driving import assert_same
from hypothesis import given
from hypothesis import strategies as st
from stand_in import Fault, chat, last, stand_in

from echelon.errors import UsageError
from echelon.language._http import Endpoint, EndpointRefusal, _seconds
from echelon.language.driver import Driver, FaultLimit, Phase, Settings, Start
from echelon.language.endpoint import BYTES, EndpointEngine, EndpointScorer
from echelon.language.engine import End, EngineDown, Request, Source
from echelon.language.program import ScoreRequest
from echelon.language.record import Record
from echelon.language.utf8 import Utf8Tokenizer

TOKENS = Utf8Tokenizer()


def ask(text: str, seed: int = 7, max_tokens: int = 400, **changes: Any) -> Request:
    """A conversation of one message."""
    return Request(tuple(TOKENS.render([{"role": "user", "content": text}])), max_tokens, seed, **changes)


def said(sample: Any) -> str:
    return TOKENS.decode(sample.ids, control=False)


# ---- the tokenizer

MESSAGES = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant"]), "content": st.text()}), min_size=1
)


@given(MESSAGES)
def test_a_conversation_can_be_read_back(messages: list[dict[str, str]]) -> None:
    assert TOKENS.messages(TOKENS.render(messages)) == messages
    whole = TOKENS.render(messages[:1]), TOKENS.follow(messages[1:], reply=False)
    ids = [*whole[0][:-1], *whole[1]]
    if messages[-1]["role"] != "assistant" or messages[-1]["content"]:
        assert TOKENS.messages(ids) == messages


@given(st.lists(st.integers(0, TOKENS.size - 1)))
def test_offsets_cover_the_text_of_any_ids(ids: list[int]) -> None:
    text, places = TOKENS.offsets(ids)
    assert text == TOKENS.decode(ids) and len(places) == len(ids)
    assert "".join(text[a:b] for a, b in places) == text
    assert places == sorted(places)
    assert TOKENS.decode(TOKENS.encode("ä→😀 plain")) == "ä→😀 plain"


# ---- what is asked and answered


def test_the_request_and_the_answer() -> None:
    with stand_in(lambda body: "go to fridge 1\n") as server:
        engine = EndpointEngine(server.endpoint(fields={"top_p": 0.9, "seed": None}), instructions="Be brief.")
        (sample,) = engine.generate([ask("You see a fridge.", max_tokens=81, temperature=0.4)])
    assert server.bodies == [
        {
            "model": "stand-in",
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "You see a fridge."},
            ],
            "max_tokens": 11,
            "temperature": 0.4,
            "top_p": 0.9,
        }
    ]
    assert server.paths == ["/v1/chat/completions"]
    assert said(sample) == "go to fridge 1" and sample.ids[-1] == TOKENS.eos
    assert sample.end is End.EOS and sample.source is Source.SCORED and all(map(math.isnan, sample.logp))
    assert dataclasses.astuple(engine.asked) == (1, 0, 10, 3)


def test_each_call_has_its_seed_and_conversations_go_on() -> None:
    with stand_in() as server:
        engine = EndpointEngine(server.endpoint())
        (first,) = engine.generate([ask("a", seed=(5 << 31) + 3)])
        context = (*ask("a").context, *first.ids, *TOKENS.follow([{"role": "user", "content": "b"}]))
        engine.generate([Request(context, 80, 9)])
    assert [body["seed"] for body in server.bodies] == [3, 9]
    assert server.bodies[1]["messages"] == [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "said a"},
        {"role": "user", "content": "b"},
    ]


@pytest.mark.parametrize(
    ("choice", "text", "end"),
    [
        (chat("cut off", "length"), "cut off", End.LENGTH),
        (chat("", "length"), "", End.LENGTH),
        (chat("", "stop"), "", End.EOS),
        ({"message": {"content": None}, "finish_reason": None}, "", End.EOS),
        (chat("ä" * 30, "stop"), "ä" * (5 * BYTES // 2), End.LENGTH),
        (chat("x" + "ä" * 30, "stop"), "x" + "ä" * (5 * BYTES // 2 - 1), End.LENGTH),
    ],
)
def test_how_texts_end(choice: dict[str, Any], text: str, end: End) -> None:
    with stand_in(lambda body: choice) as server:
        (sample,) = EndpointEngine(server.endpoint()).generate([ask("a", max_tokens=5 * BYTES)])
    assert said(sample) == text and sample.end is end and 0 < len(sample.ids) <= 5 * BYTES
    assert (sample.ids[-1] == TOKENS.eos) == (end is End.EOS or not text)


def test_completions_take_lines_and_forced_beginnings() -> None:
    with stand_in(lambda body: {"text": " fridge", "finish_reason": "stop"}) as server:
        engine = EndpointEngine(server.endpoint(), api="completions")
        (sample,) = engine.generate([ask("where?", forced=tuple(TOKENS.encode("in the")))])
        with pytest.raises(UsageError, match="--endpoint-api completions"):
            EndpointEngine(server.endpoint()).generate([ask("where?", forced=(65,))])
    assert server.bodies[0]["prompt"] == "user: where?\nassistant: in the"
    assert said(sample) == "in thefridge" and server.paths == ["/v1/completions"]


def test_what_an_endpoint_cannot_do_is_said() -> None:
    engine = EndpointEngine(Endpoint("http://localhost:1/v1", "m"))
    with pytest.raises(UsageError, match=r"neither token ids nor exact log-probs.*evaluation.*echelon train"):
        engine.load("policy", {})
    with pytest.raises(UsageError, match="stops at tokens"):
        engine.generate([ask("a", stop=(5,))])
    with pytest.raises(UsageError, match="api of an endpoint"):
        EndpointEngine(Endpoint("http://localhost:1/v1", "m"), api="responses")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"not entropy.*model in this process"):
        EndpointScorer(engine.client, TOKENS).score([ScoreRequest((65,), (66,), ("logp", "entropy"))])


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"url": "localhost:8000/v1"}, "begins with http"),
        ({"url": "http://me:secret@host/v1"}, "the key in"),
        ({"url": "https://host/v1?api-key=secret"}, "the key in"),
        ({"model": ""}, "which model"),
        ({"at_once": 0}, "at_once 0"),
        ({"timeout_s": 0}, "timeout_s 0"),
    ],
)
def test_wrong_endpoints_are_refused_without_their_secrets(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said) as error:
        Endpoint(**{"url": "http://host/v1", "model": "m", **wrong})
    assert "secret" not in str(error.value)
    assert Endpoint("http://host/v1/chat/completions", "m").base == "http://host/v1"


def test_the_key_is_sent_and_shown_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "sk-very-secret")

    def refuses(body: dict[str, Any], n: int) -> Fault | None:
        return Fault(401, message="the key sk-very-secret is wrong") if last(body) == "b" else None

    with stand_in(fail=refuses) as server:
        engine = EndpointEngine(server.endpoint(key="MY_KEY"))
        engine.generate([ask("a")])
        with pytest.raises(EngineDown, match=r"401 .* the key \$MY_KEY is wrong; export the key as \$MY_KEY") as error:
            engine.generate([ask("b")])
    assert server.keys == ["Bearer sk-very-secret"] * 2
    assert "secret" not in f"{error.value} {engine.client.endpoint} {engine.about}"


# ---- faults

PASSING = {
    "rate limit": Fault(429, message="slow down"),
    "rate limit with a wait": Fault(429, {"Retry-After": "0.05"}),
    "server error": Fault(500),
    "overloaded": Fault(503),
    "not json": Fault(raw=b"<html>"),
    "truncated json": Fault(raw=b'{"choices": [{"message": {"cont'),
    "cut off": Fault(raw=b'{"choices": [', cut=True),
    "no choices": Fault(raw=b'{"error": {"message": "try again"}}'),
    "reset": Fault(reset=True),
}


@pytest.mark.parametrize("fault", PASSING.values(), ids=PASSING)
def test_nothing_is_lost_when_answers_fail_at_first(fault: Fault) -> None:
    def fails(body: dict[str, Any], n: int) -> Fault | None:
        return fault if n <= 1 + (len(last(body)) % 2) else None

    texts = [f"{k}" * (1 + k % 3) for k in range(12)]
    with stand_in(fail=fails) as server:
        engine = EndpointEngine(server.endpoint(at_once=4))
        samples = engine.generate([ask(text, seed=k) for k, text in enumerate(texts)])
    assert [said(sample) for sample in samples] == [f"said {text}" for text in texts]
    assert 1 <= server.most <= 4
    assert engine.asked.answers == 12 and engine.asked.retries == sum(1 + len(text) % 2 for text in texts)
    assert len(server.bodies) == engine.asked.answers + engine.asked.retries


def test_a_slow_answer_is_asked_for_again() -> None:
    with stand_in(fail=lambda body, n: Fault(sleep_s=0.6) if n == 1 else None) as server:
        engine = EndpointEngine(server.endpoint(timeout_s=0.2))
        (sample,) = engine.generate([ask("a")])
        assert said(sample) == "said a" and engine.asked.retries == 1
    with stand_in(fail=lambda body, n: Fault(sleep_s=0.6)) as server:
        with pytest.raises(EngineDown, match=r"/chat/completions \(model 'stand-in'\) has not answered within 0.1 s"):
            EndpointEngine(server.endpoint(timeout_s=0.1, attempts=2)).generate([ask("a")])
        assert len(server.bodies) == 2


def test_a_server_that_starts_late_is_waited_for() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
    late = Endpoint(f"http://127.0.0.1:{port}/v1", "m", wait_s=0.02, attempts=12)
    found: list[Any] = []
    asking = threading.Thread(target=lambda: found.extend(EndpointEngine(late).generate([ask("a")])))
    asking.start()
    time.sleep(0.05)
    with stand_in(port=port):
        asking.join()
    assert said(found[0]) == "said a"
    late = dataclasses.replace(late, wait_s=0.004, attempts=3)
    with pytest.raises(EngineDown, match=r"refuses the connection \(3 attempts\); is the server running"):
        EndpointEngine(late).generate([ask("a")])
    with pytest.raises(EngineDown, match=r"refuses the connection; is"):
        EndpointEngine(late).check()


@pytest.mark.parametrize(
    ("fault", "words", "attempts"),
    [
        (Fault(500, message="boom"), r"answers 500 .*boom \(3 attempts\); look at its log", 3),
        (Fault(429), r"answers 429 .*\(3 attempts\); ask for fewer at once \(now 8\)", 3),
        (Fault(404), r"/v1/chat/completions \(model 'stand-in'\) answers 404 .*; check the URL", 1),
        (Fault(403), r"answers 403 .*\$OPENAI_API_KEY may not use", 1),
        (Fault(307, {"Location": "http://other/v1"}), r"answers 307 .*points to \(http://other/v1\)", 1),
        (Fault(429, {"Retry-After": "3600"}), r"asks to wait 3600 s, more than the 60 s allowed; go on later", 1),
        (Fault(raw=b"{"), r"truncated or invalid JSON \(3 attempts\)", 3),
    ],
)
def test_the_last_error_names_url_status_and_remedy(fault: Fault, words: str, attempts: int) -> None:
    with stand_in(fail=lambda body, n: fault) as server:
        engine = EndpointEngine(server.endpoint(attempts=3))
        with pytest.raises(EngineDown, match=words) as error:
            engine.generate([ask("a")])
    assert len(server.bodies) == attempts and server.url in str(error.value) and "\n" not in str(error.value)


def test_a_wait_that_is_asked_for_holds_for_all() -> None:
    with stand_in(fail=lambda body, n: Fault(429, {"Retry-After": "0.3"}) if n == 1 else None) as server:
        engine = EndpointEngine(server.endpoint(at_once=1))
        engine.generate([ask("a"), ask("b")])
    gaps = np.diff(server.times)
    assert gaps[0] >= 0.3 and gaps[2] >= 0.3
    assert _seconds("-1") == _seconds("soon") == _seconds(None) == 0.0 and _seconds("2") == 2.0
    assert _seconds("Fri, 01 Jan 2100 00:00:00 GMT") > 0


def test_one_refused_request_costs_no_other_and_is_not_asked_again() -> None:
    def refuses(body: dict[str, Any], n: int) -> Fault | None:
        return Fault(400, message="context too long") if last(body) == "long" else None

    with stand_in(fail=refuses) as server:
        engine = EndpointEngine(server.endpoint())
        requests = [ask("a"), ask("long"), ask("b")]
        with pytest.raises(EndpointRefusal, match=r"400 .*context too long"):
            engine.generate(requests)
        assert [said(one) for one in engine.generate([requests[0]])] == ["said a"]
        with pytest.raises(EndpointRefusal):
            engine.generate([requests[1]])
        engine.generate([requests[2]])
        assert len(server.bodies) == 3
    with (
        stand_in(lambda body: chat("no", "content_filter")) as server,
        pytest.raises(EndpointRefusal, match="ends a text by 'content_filter'"),
    ):
        EndpointEngine(server.endpoint()).generate([ask("a")])


def test_a_server_that_fails_in_one_request_alone_is_not_down() -> None:
    def crashes(body: dict[str, Any], n: int) -> Fault | None:
        return Fault(500, sleep_s=0.05) if last(body) == "odd" else None

    with stand_in(fail=crashes) as server, pytest.raises(EndpointRefusal, match="500"):
        EndpointEngine(server.endpoint(attempts=2)).generate([ask("odd"), ask("a")])


def test_once_it_is_down_the_rest_is_not_asked() -> None:
    with stand_in(fail=lambda body, n: Fault(401) if last(body) >= "2" else None) as server:
        engine = EndpointEngine(server.endpoint(at_once=1))
        with pytest.raises(EngineDown) as error:
            engine.generate([ask(str(k)) for k in range(6)])
    assert len(server.bodies) == 3
    assert {k: said(one) for k, one in error.value.answered.items()} == {0: "said 0", 1: "said 1"}


# ---- episodes


async def talk(task: Any, world: Any, lm: Any, log: Any) -> list[str]:
    """Three turns."""
    context, texts = lm.tokenizer.render([{"role": "user", "content": f"episode {task}"}]), []
    for turn in range(3):
        reply = await lm(context, max_tokens=240)
        texts.append(reply.text)
        context = [*context, *reply.ids, *lm.tokenizer.follow([{"role": "user", "content": f"turn {turn}"}])]
    return texts


def rollout(server: Any, journal: Path | None = None, count: int = 6, **changes: Any) -> Phase:
    engine = EndpointEngine(server.endpoint(**changes))
    with Driver(engine, engine.tokenizer, Settings(batch=4, temperature=0.5)) as driver:
        starts = [Start(uid, uid // 2, f"{uid}") for uid in range(count)]
        return driver.rollout(talk, starts, journal=journal, meta={"endpoint": engine.about})


def write(body: dict[str, Any]) -> str:
    """Depends on the seed and the conversation, as a server that keeps to its seed would."""
    return f"{body['seed'] % 97} {len(json.dumps(body['messages']))}"


def test_a_record_is_the_same_whatever_failed_on_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    kinds = list(PASSING.values())

    def fails(body: dict[str, Any], n: int) -> Fault | None:
        return kinds[body["seed"] % len(kinds)] if n <= body["seed"] % 3 else None

    with stand_in(write) as calm:
        plain = rollout(calm, tmp_path / "calm")
    with stand_in(write, fails) as server:
        stormy = rollout(server, tmp_path / "stormy")
    meta = [dict(phase.record.meta) for phase in (plain, stormy)]
    assert [one.pop("endpoint")["model"] for one in meta] == ["stand-in"] * 2 and meta[0] == meta[1]
    assert stormy.results == plain.results and not stormy.faults and len(plain.results[0]) == 3
    a, b = ({k: v for k, v in phase.record.columns().items()} for phase in (plain, stormy))
    assert a.keys() == b.keys() and all(a[k].equal(b[k]) or bool(a[k].isnan().all()) for k in a)
    assert bool((plain.record.items.source == Source.SCORED).all()) and bool(plain.record.items.logp.isnan().all())
    plain.record.save(tmp_path / "record")
    assert_same(Record.load(tmp_path / "record"), plain.record)
    kept = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert b"secret" not in kept and b"Authorization" not in kept


def test_a_rollout_that_a_server_stopped_goes_on_from_its_journal(tmp_path: Path) -> None:
    down = [True]

    def fails(body: dict[str, Any], n: int) -> Fault | None:
        return Fault(503) if down[0] and last(body) == "turn 1" and "episode 3" in str(body["messages"]) else None

    with stand_in(write, fails) as server:
        with pytest.raises(EngineDown, match="503"):
            rollout(server, tmp_path / "journal", attempts=2)
        asked = len(server.bodies)
        down[0] = False
        resumed = rollout(server, tmp_path / "journal", attempts=2)
        assert len(server.bodies) == 18 + 2  # each text once, and the two attempts that failed
        whole = rollout(server)
    assert resumed.progress.replayed == asked - 2 and not resumed.faults
    assert_same(resumed.record, whole.record)


def test_refused_requests_close_their_episodes_alone() -> None:
    def refuses(body: dict[str, Any], n: int) -> Fault | None:
        return Fault(400, message="too long") if "episode 2" in str(body["messages"]) else None

    with stand_in(write, refuses) as server:
        phase = rollout(server)
    (fault,) = phase.faults
    assert fault.uid == 2 and "400" in fault.message and "too long" in fault.message
    assert len(server.bodies) == 5 * 3 + 1
    with stand_in(write, lambda body, n: Fault(400)) as server, pytest.raises(FaultLimit, match="400"):
        rollout(server)


# ---- scoring


def echo(body: dict[str, Any]) -> dict[str, Any]:
    """The prompt in words with log-prob minus its length, and one more token that was asked for."""
    tokens, place = [], 0
    prompt = body["prompt"]
    while place < len(prompt):
        stop = prompt.find(" ", place + 1)
        tokens.append((place, prompt[place : stop if stop > 0 else len(prompt)]))
        place += len(tokens[-1][1])
    tokens.append((len(prompt), "!"))
    return {
        "text": prompt + "!",
        "logprobs": {
            "text_offset": [place for place, _ in tokens],
            "tokens": [text for _, text in tokens],
            "token_logprobs": [None, *(-float(len(text)) for _, text in tokens[1:])],
        },
    }


def test_sums_of_log_probs_are_exact_over_the_words_of_the_server() -> None:
    target = " a wörd more"
    context = tuple(TOKENS.render([{"role": "user", "content": "say"}]))
    with stand_in(echo) as server:
        scorer = EndpointScorer(EndpointEngine(server.endpoint()).client, TOKENS)
        ids = (*TOKENS.encode(target), TOKENS.eos)
        requests = [ScoreRequest((*context[:-1], *TOKENS.encode("x")), ids[:-1]), ScoreRequest(context, ids)]
        with pytest.raises(EndpointRefusal, match="across the beginning"):
            scorer.score([ScoreRequest(context, tuple(TOKENS.encode("over")))])
        requests[1] = ScoreRequest(tuple(TOKENS.encode("text")), ids)
        columns = [one["logp"] for one in scorer.score([requests[1]])]
    assert server.bodies[-1]["echo"] is True and server.bodies[-1]["prompt"].endswith(target)
    (logp,) = columns
    assert len(logp) == len(ids) and logp.sum() == -len(target)
    assert [(k, value) for k, value in enumerate(logp) if value] == [(1, -2.0), (7, -5.0), (12, -5.0)]


def test_a_server_that_does_not_echo_says_so() -> None:
    with stand_in(lambda body: {"text": "no"}) as server:
        scorer = EndpointScorer(EndpointEngine(server.endpoint()).client, TOKENS)
        with pytest.raises(EndpointRefusal, match="does not repeat a prompt with log-probs"):
            scorer.score([ScoreRequest((65,), (66,))])


def test_waits_grow_and_are_bounded() -> None:
    with stand_in(fail=lambda body, n: Fault(503)) as server:
        begun = time.monotonic()
        with pytest.raises(EngineDown):
            EndpointEngine(server.endpoint(wait_s=0.04, attempts=4, longest_wait_s=0.1)).generate([ask("a")])
    gaps = np.diff(server.times)
    assert len(gaps) == 3 and all(gaps >= np.array([0.02, 0.04, 0.05]))
    assert time.monotonic() - begun >= 0.11
