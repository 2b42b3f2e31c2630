"""Questions to an OpenAI-compatible server over HTTP: limits, patience, and errors that say what to do.

The standard library's client in threads: an answer takes seconds, so that a new connection each costs nothing that
counts. The key is read from an environment variable and appears in no error, record or representation.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import ssl
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

from echelon.errors import EchelonError, UsageError
from echelon.language.engine import EngineDown, uniforms

T = TypeVar("T")
R = TypeVar("R")
PATHS = ("/chat/completions", "/completions")
AGAIN = {408, 409, 425, 429, 500, 502, 503, 504, 529}
"""Statuses after which the same question may be answered."""
LARGEST = 1 << 26  # bytes of an answer
_SHOWN = 300  # characters of a server's message that an error repeats
_REMEDY = {
    400: "the server's own words say what it does not take; Endpoint.fields changes or removes a field",
    401: "export the key as ${key}",
    402: "the account has to be paid for",
    403: "the key in ${key} may not use this model",
    404: "check the URL (most end in /v1) and the model's name",
    405: "check the URL (most end in /v1)",
    429: "ask for fewer at once (now {at_once}), or go on later",
}


class EndpointRefusal(EchelonError):
    """An endpoint answered that it will not serve one request; others may be served."""


@dataclass(frozen=True)
class Endpoint:
    """A server with an OpenAI-compatible interface, and how patiently it is asked."""

    url: str
    """Base of its paths, such as http://localhost:8000/v1."""
    model: str
    """The server's name of the model."""
    key: str = "OPENAI_API_KEY"
    """Environment variable that holds the key; unset: none is sent."""
    at_once: int = 8
    """Requests that are open at the same time, at most."""
    timeout_s: float = 120.0
    """For one answer as a whole."""
    attempts: int = 6
    """For each request, the first included."""
    wait_s: float = 0.5
    """Before the second attempt; doubled for each further one, and shortened at random by up to a half."""
    longest_wait_s: float = 60.0
    """The longest wait, and the longest that a server may ask for (Retry-After)."""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of every request, or others in place of echelon's; None removes one."""

    def __post_init__(self) -> None:
        parts = urllib.parse.urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname or any(c.isspace() for c in self.url):
            raise UsageError(f"'{self.url}' is no endpoint; it begins with http:// or https:// and names a server")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise UsageError(
                f"the endpoint at {parts.hostname} is given with a name, key or query inside its URL, which records "
                f"would keep; give the plain URL and the key in ${self.key}"
            )
        if not self.model:
            raise UsageError(f"which model of {self.url}? Name it as the server does")
        if min(self.at_once, self.attempts) < 1 or min(self.timeout_s, self.longest_wait_s) <= 0 or self.wait_s < 0:
            raise UsageError(
                f"at_once {self.at_once} and attempts {self.attempts} are at least 1, timeout_s {self.timeout_s} and "
                f"longest_wait_s {self.longest_wait_s} positive, wait_s {self.wait_s} not negative"
            )

    @property
    def base(self) -> str:
        """The URL without a slash at its end, nor a path that echelon adds itself."""
        plain = self.url.rstrip("/")
        return next((plain.removesuffix(path) for path in PATHS if plain.endswith(path)), plain)


@dataclass
class Asked:
    """What was asked of an endpoint since its client was made."""

    answers: int = 0
    retries: int = 0
    read: int = 0
    """Tokens of prompts, as the server counts them."""
    written: int = 0
    """Tokens of answers, as the server counts them."""


@dataclass(eq=False)
class _Trouble(Exception):
    """One attempt that failed."""

    what: str
    remedy: str
    again: bool
    """Whether another attempt may help."""
    whole: bool | None = True
    """Whether the server is to blame, not this request alone; None: not this one if it serves others meanwhile."""
    after_s: float = 0.0
    """Seconds that the server asked to wait."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirected POST would lose its body, and may carry the key to another server."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


class Client:
    """Asks one endpoint; safe to share among threads."""

    def __init__(self, endpoint: Endpoint):
        self.endpoint, self.asked = endpoint, Asked()
        self._opener = urllib.request.build_opener(_NoRedirect)
        self._lock = threading.Lock()
        self._not_before = 0.0  # the server's wish, for all threads

    def ask(
        self,
        path: str,
        body: Mapping[str, Any],
        seed: int,
        stopped: threading.Event | None = None,
        attempts: int | None = None,
    ) -> dict[str, Any]:
        """The server's answer to a POST of `body`.

        seed: of the random part of the waits. stopped: set from elsewhere, it ends them: what failed is not asked
        again. attempts: other than the endpoint's.

        Raises EngineDown if the server does not answer as it should after all attempts, or will not serve anybody;
        EndpointRefusal if it does not take this request, or fails in it again and again while it serves others.
        """
        stopped = threading.Event() if stopped is None else stopped
        served = self.asked.answers
        most = self.endpoint.attempts if attempts is None else attempts
        drawn = uniforms(seed, 0, most)
        attempt = 0
        while True:
            attempt += 1
            _pause(stopped, self._not_before - time.monotonic())
            try:
                answer = self._once(path, body)
            except _Trouble as trouble:
                if not trouble.again or attempt == most or stopped.is_set():
                    raise self._error(path, trouble, attempt, self.asked.answers > served) from None
                wait = self._wait(path, trouble, attempt, float(drawn[attempt - 1]))
                with self._lock:
                    self.asked.retries += 1
                    if trouble.after_s:
                        self._not_before = max(self._not_before, time.monotonic() + wait)
                _pause(stopped, wait)
            else:
                self._count(answer)
                return answer

    def _wait(self, path: str, trouble: _Trouble, attempt: int, drawn: float) -> float:
        """Seconds before the next attempt: exponential, less up to a half at random; never less than asked for."""
        longest = self.endpoint.longest_wait_s
        if trouble.after_s > longest:
            wish = _Trouble(
                f"{trouble.what} and asks to wait {trouble.after_s:g} s, more than the {longest:g} s allowed",
                "go on later",
                again=False,
            )
            raise self._error(path, wish, attempt, alive=False)
        return max(trouble.after_s, min(longest, self.endpoint.wait_s * 2 ** (attempt - 1)) * (1 - drawn / 2))

    def _once(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """One attempt."""
        full = {k: v for k, v in {**body, **self.endpoint.fields}.items() if v is not None}
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "echelon"}
        if key := self._key():
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(self.endpoint.base + path, json.dumps(full).encode(), headers, method="POST")
        limit = self.endpoint.timeout_s
        try:
            with self._opener.open(request, timeout=limit) as reply:
                raw = _read(reply, time.monotonic() + limit)
            answer = json.loads(raw)
        except urllib.error.HTTPError as error:
            raise self._refused(error) from None
        except (TimeoutError, urllib.error.URLError, http.client.HTTPException, OSError) as error:
            raise self._unheard(error) from None
        except ValueError:
            remedy = "is something between here and it cutting its answers?"
            raise _Trouble("answers with truncated or invalid JSON", remedy, again=True, whole=None) from None
        if not isinstance(answer, dict) or not isinstance(answer.get("choices"), list) or not answer["choices"]:
            said = self._said(json.dumps(answer))
            raise _Trouble(
                f"gives an answer without choices: {said}", "is it OpenAI-compatible?", again=True, whole=None
            )
        return answer

    def _refused(self, error: urllib.error.HTTPError) -> _Trouble:
        """An answer with a status that is no success."""
        status = error.code
        try:
            text = error.read(1 << 16).decode(errors="replace")
        except (OSError, http.client.HTTPException):
            text = ""
        finally:
            error.close()
        what = f"answers {status} {error.reason}: {self._said(text)}".rstrip(": ")
        if 300 <= status < 400:
            return _Trouble(what, f"give the URL that it points to ({error.headers.get('Location')})", again=False)
        remedy = _REMEDY.get(status, "look at its log" if status >= 500 else _REMEDY[400])
        remedy = remedy.format(key=self.endpoint.key, at_once=self.endpoint.at_once)
        everybody = status in AGAIN or status in (401, 402, 403, 404, 405)
        after = _seconds(error.headers.get("Retry-After"))
        return _Trouble(what, remedy, status in AGAIN, None if status == 500 else everybody, after)

    def _unheard(self, error: Exception) -> _Trouble:
        """No answer, or not all of it."""
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(reason, TimeoutError):
            limit = self.endpoint.timeout_s
            return _Trouble(f"has not answered within {limit:g} s", "allow more time, or ask for fewer at once", True)
        if isinstance(reason, socket.gaierror):
            again = reason.errno == socket.EAI_AGAIN
            return _Trouble(f"is not known here ({reason.strerror})", "check the URL", again)
        if isinstance(reason, ssl.SSLCertVerificationError):
            return _Trouble(
                f"shows a certificate that is not trusted ({reason.verify_message})", "check the URL", False
            )
        if isinstance(reason, ConnectionRefusedError):
            return _Trouble("refuses the connection", "is the server running there?", again=True)
        return _Trouble(f"breaks the connection off ({self._said(repr(reason))})", "look at its log", again=True)

    def _error(self, path: str, trouble: _Trouble, attempts: int, alive: bool) -> EchelonError:
        kind = EngineDown if trouble.whole or (trouble.whole is None and not alive) else EndpointRefusal
        times = f" ({attempts} attempts)" if attempts > 1 else ""
        where = f"{self.endpoint.base}{path} (model '{self.endpoint.model}')"
        return kind(f"{where} {trouble.what}{times}; {trouble.remedy}")

    def _said(self, text: str) -> str:
        """What a server says, on one line, without the key."""
        try:
            error = json.loads(text)["error"]
            text = str(error["message"] if isinstance(error, dict) else error)
        except (ValueError, KeyError, TypeError):
            pass
        if key := self._key():
            text = text.replace(key, f"${self.endpoint.key}")
        text = " ".join(text.split())
        return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"

    def _key(self) -> str:
        return os.environ.get(self.endpoint.key, "").strip()

    def _count(self, answer: Mapping[str, Any]) -> None:
        usage = answer.get("usage")
        told = usage if isinstance(usage, dict) else {}
        with self._lock:
            self.asked.answers += 1
            self.asked.read += _whole(told.get("prompt_tokens"))
            self.asked.written += _whole(told.get("completion_tokens"))


def in_threads(work: Callable[[T, threading.Event], R], items: Sequence[T], at_once: int) -> list[R]:
    """`work` of each item, so many at once, in their order; the first error, an interrupt too, ends the rest.

    The event that `work` gets is set when nobody waits for it any more. Threads do not outlive the process.
    """
    stopped, places = threading.Event(), iter(range(len(items)))
    results: dict[int, R] = {}
    errors: dict[int, BaseException] = {}
    lock = threading.Lock()

    def take() -> None:
        while not stopped.is_set():
            with lock:
                place = next(places, None)
            if place is None:
                return
            try:
                results[place] = work(items[place], stopped)
            except BaseException as error:  # raised again where it is waited for
                errors[place] = error
                stopped.set()

    threads = [threading.Thread(target=take, daemon=True) for _ in range(min(at_once, len(items)))]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        stopped.set()
    if errors:
        raise errors[min(errors)]
    return [results[place] for place in range(len(items))]


def _pause(stopped: threading.Event, seconds: float) -> None:
    if seconds > 0:
        stopped.wait(seconds)


def _read(reply: http.client.HTTPResponse, deadline: float) -> bytes:
    """The whole answer; TimeoutError if it is not there by `deadline`, however steadily it drips."""
    pieces, size = [], 0
    while piece := reply.read1(1 << 16):
        pieces.append(piece)
        size += len(piece)
        if time.monotonic() > deadline:
            raise TimeoutError
        if size > LARGEST:
            raise ValueError("larger than any answer")
    return b"".join(pieces)


def _seconds(header: str | None) -> float:
    """Of a Retry-After header: a number of seconds, or a date; 0 for none that can be read."""
    if header is None:
        return 0.0
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(header).timestamp() - time.time())
    except ValueError:
        return 0.0


def _whole(count: Any) -> int:
    return count if isinstance(count, int) and count > 0 else 0
