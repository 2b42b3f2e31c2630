"""Models behind an OpenAI-compatible server: for evaluation and for collecting data, not for training.

Such a server gives texts. It keeps its token ids, and tells log-probs of its own tokens at best, so that a text is
recorded as one from elsewhere (`Source.SCORED`), in ids of a tokenizer of this side: bytes, whatever the model.

>>> engine = EndpointEngine(Endpoint("http://localhost:8000/v1", "my-model"))
>>> driver = Driver(engine, engine.tokenizer, scorer=EndpointScorer(engine.client, engine.tokenizer))
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from echelon.errors import EchelonError, UsageError, unknown
from echelon.language._http import Asked, Client, Endpoint, EndpointRefusal, in_threads
from echelon.language._play import ScoreRequest
from echelon.language.engine import End, EngineDown, Request, Sample, Source
from echelon.language.utf8 import Utf8Tokenizer, messages_text

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Api", "Asked", "Endpoint", "EndpointEngine", "EndpointRefusal", "EndpointScorer"]

Api = Literal["chat", "completions"]
BYTES = 8
"""Bytes that a token of a server may stand for on average; beyond `max_tokens` bytes, a text is cut here."""
_SEED = (1 << 31) - 1  # what all servers take


class EndpointEngine:
    """An `Engine` over one model of a server, which every agent's texts come from.

    endpoint: the server, or a client that asks it. api: "chat" hands over messages; "completions" lines "role: content"
    with the answer begun, for models without a chat format and for programs that force the beginning of a turn.
    instructions: a system message before every conversation, such as what an answer may look like.

    Requests are in ids of `tokenizer`; one may emit `max_tokens` of these, for which the server is asked for an eighth
    as many of its own. A server's `seed` is the call's, its lower 31 bits.
    """

    def __init__(self, endpoint: Endpoint | Client, api: Api = "chat", instructions: str = ""):
        if api not in get_args(Api):
            raise unknown("api of an endpoint", api, get_args(Api))
        self.client = endpoint if isinstance(endpoint, Client) else Client(endpoint)
        self.tokenizer = Utf8Tokenizer()
        self.api, self.instructions = api, instructions
        self._settled: dict[Request, Sample | EchelonError] = {}  # answers that a batch with an error kept back

    @property
    def asked(self) -> Asked:
        """Answers, retries and tokens so far."""
        return self.client.asked

    @property
    def about(self) -> dict[str, Any]:
        """What answers depend on, plain, for a record's meta."""
        e = self.client.endpoint
        return {
            "url": e.base, "model": e.model, "api": self.api, "instructions": self.instructions,
            "fields": dict(e.fields),
        }  # fmt: skip

    def generate(self, requests: Sequence[Request]) -> list[Sample]:
        """Answer the requests, as many at once as the endpoint allows, in the same order.

        Where one fails, the others are kept until they are asked for again. Raises EngineDown, with the answers that
        were given, if the server fails; EndpointRefusal if it refuses one request; UsageError for forced beginnings
        of a chat and for stop tokens, of which a server does not tell whether they came.
        """
        bodies = {request: self._body(request) for request in requests}
        missing = [request for request in bodies if request not in self._settled]
        if missing:
            self._ask([(request, bodies[request]) for request in missing])
        outcomes = [self._settled[request] for request in requests]
        failures = [one for one in outcomes if isinstance(one, EchelonError)]
        down = next((one for one in failures if isinstance(one, EngineDown)), None)
        if down is None and failures and len(requests) > 1:
            raise failures[0]
        for request in bodies:
            del self._settled[request]
        if down is not None:
            raise EngineDown(str(down), {k: one for k, one in enumerate(outcomes) if isinstance(one, Sample)})
        if failures:
            raise failures[0]
        return [one for one in outcomes if isinstance(one, Sample)]

    def load(self, agent: str, weights: Mapping[str, Tensor]) -> None:
        """Always a UsageError: the weights are the server's."""
        raise UsageError(
            f"the weights of '{self.client.endpoint.model}' at {self.client.endpoint.base} are the server's, and its "
            "texts have neither token ids nor exact log-probs: an endpoint is for evaluation and for collecting data. "
            "To train, let a model in this process speak (echelon train SYSTEM --model PATH)"
        )

    def check(self) -> None:
        """Ask for one token, once and without patience. Raises EngineDown or EndpointRefusal if that fails."""
        request = Request(tuple(self.tokenizer.render([{"role": "user", "content": "Say yes."}])), BYTES, 0)
        path, body = self._body(request)
        self.client.ask(path, body, 0, attempts=1)

    def _body(self, request: Request) -> tuple[str, dict[str, Any]]:
        """Path and body of a request."""
        if request.stop:
            raise UsageError(
                "a program that stops at tokens cannot be played by an endpoint, which does not say what ended a "
                "text; let the tags of its format tell, or let a model in this process speak"
            )
        room = request.max_tokens - len(request.forced)
        told = {
            "model": self.client.endpoint.model,
            "max_tokens": max(1, -(-room // BYTES)),
            "temperature": request.temperature,
            "seed": request.seed & _SEED,
        }
        messages = self.tokenizer.messages(request.context)
        if self.instructions:
            messages.insert(0, {"role": "system", "content": self.instructions})
        if self.api == "completions":
            prompt = messages_text(messages) + self.tokenizer.decode(request.forced)
            return "/completions", {**told, "prompt": prompt, "stop": ["\nuser:", "\nassistant:"]}
        if request.forced:
            raise UsageError(
                "a program that forces the beginning of a turn cannot be played over chat; ask for completions "
                '(api="completions", --endpoint-api completions)'
            )
        return "/chat/completions", {**told, "messages": messages}

    def _ask(self, asked: Sequence[tuple[Request, tuple[str, dict[str, Any]]]]) -> None:
        """Settle requests; once the server is down, those that are left are not asked."""
        down: list[EngineDown] = []

        def settle(one: tuple[Request, tuple[str, dict[str, Any]]], stopped: threading.Event) -> None:
            request, (path, body) = one
            if down:
                self._settled[request] = down[0]
                return
            try:
                answer = self.client.ask(path, body, request.seed, stopped)
                self._settled[request] = self._sample(request, answer["choices"][0])
            except EngineDown as error:
                down.append(error)
                self._settled[request] = error
            except EndpointRefusal as error:
                self._settled[request] = error

        in_threads(settle, asked, self.client.endpoint.at_once)

    def _sample(self, request: Request, choice: Any) -> Sample:
        """A choice of the server as ids: forced, what it says, and <eos> if it came to its end."""
        said = choice.get("message", choice) if isinstance(choice, dict) else None
        text = (said.get("content" if self.api == "chat" else "text") or "") if isinstance(said, dict) else None
        if not isinstance(text, str):
            raise EndpointRefusal(f"{self.client.endpoint.base} gives no text: {str(choice)[:200]}")
        reason = choice.get("finish_reason")
        if reason in ("content_filter", "tool_calls", "function_call"):
            raise EndpointRefusal(f"{self.client.endpoint.base} ends a text by '{reason}', not by its own end")
        room = request.max_tokens - len(request.forced)
        written = self.tokenizer.encode(text.strip())
        end = End.LENGTH if reason == "length" else End.EOS
        if end is End.EOS:
            written.append(self.tokenizer.eos)
        if len(written) > room:
            whole = bytes(written[:room]).decode(errors="ignore")  # not half a character
            written, end = self.tokenizer.encode(whole), End.LENGTH
        ids = (*request.forced, *(written or [self.tokenizer.eos]))
        return Sample(ids, (math.nan,) * len(ids), end, Source.SCORED)


class EndpointScorer:
    """A `Scorer` of the driver over a server's completions that repeat their prompt with log-probs ("echo").

    The server's tokens are not those of the target. A log-prob stands at the last token of the target that its token
    reaches, and 0 at the others, so that sums over the target, or over whole words of the server's, are exact.
    """

    def __init__(self, client: Client, tokenizer: Utf8Tokenizer):
        self.client, self.tokenizer = client, tokenizer

    def score(self, requests: Sequence[ScoreRequest]) -> list[dict[str, np.ndarray]]:
        """Answer the requests, in the same order. Raises UsageError for anything but log-probs."""
        for request in requests:
            if set(request.want) - {"logp"}:
                raise UsageError(
                    f"an endpoint tells log-probs alone, not {', '.join(sorted(set(request.want) - {'logp'}))}; score "
                    "with a model in this process (echelon.language.scorer.Scorer)"
                )
        return in_threads(self._one, requests, self.client.endpoint.at_once)

    def _one(self, request: ScoreRequest, stopped: threading.Event) -> dict[str, np.ndarray]:
        before = messages_text(self.tokenizer.messages(request.context))
        target = self.tokenizer.decode(request.target, control=False)
        body = {"model": self.client.endpoint.model, "prompt": before + target, "max_tokens": 1, "temperature": 0,
                "echo": True, "logprobs": 1}  # fmt: skip
        told = self.client.ask("/completions", body, 0, stopped)["choices"][0].get("logprobs")
        where = f"{self.client.endpoint.base} (model '{self.client.endpoint.model}')"
        try:
            columns = zip(told["text_offset"], told["tokens"], told["token_logprobs"], strict=True)
            tokens = [(int(start), int(start) + len(text), logp) for start, text, logp in columns]
        except (TypeError, KeyError, ValueError, AttributeError):
            raise EndpointRefusal(
                f"{where} does not repeat a prompt with log-probs (echo, logprobs); score with a model in this process"
            ) from None
        first, last = len(before), len(before) + len(target)
        mine = [(start, stop, logp) for start, stop, logp in tokens if stop > first and start < last]
        if not mine or mine[0][0] != first or any(not isinstance(logp, int | float) for _, _, logp in mine):
            raise EndpointRefusal(
                f"{where} has a token across the beginning of a target, or none there: its log-prob cannot be told"
            )
        return {"logp": self._placed(request.target, first, mine)}

    def _placed(self, target: Sequence[int], first: int, tokens: Sequence[tuple[int, int, float]]) -> np.ndarray:
        """[T]: each log-prob at the last of the target's tokens that begins before its end."""
        marks = set(self.tokenizer.special.values())
        plain = [k for k, token in enumerate(target) if token not in marks]
        starts = [start for start, _ in self.tokenizer.offsets([target[k] for k in plain])[1]]
        column = np.zeros(len(target))
        for _, stop, logp in tokens:
            column[plain[int(np.searchsorted(starts, stop - first)) - 1]] += logp
        return column
