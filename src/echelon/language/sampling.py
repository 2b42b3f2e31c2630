"""Sampling from transformers' models, with a decoding loop of its own.

What several requests of a batch begin with is read once; so is what a request shares with an earlier one whose keys and
values are still held, such as the previous turns of its conversation. Texts of like length are read together under a
budget of tokens, finished texts leave the batch, and one uniform a token is inverted through the cumulative
distribution, so that a request gets the same text in any batch, as far as the logits agree.
"""

from __future__ import annotations

import inspect
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from echelon.errors import EchelonError, UsageError, unknown
from echelon.language._packed import PackedLinears, fingerprint
from echelon.language._prefixes import Ids, Node, Piece, PrefixTree, plan
from echelon.language._rows import Rows, attending
from echelon.language.engine import End, Request, Sample, uniforms
from echelon.language.models import LanguageModel

GIB = 1 << 30
_WORTH = 24  # tokens that reading a shared beginning on its own must save: about what one more pass costs
_BLOCK = 256  # tokens of the vocabulary whose probabilities are summed first


@dataclass
class Usage:
    """Tokens since the engine was made."""

    read: int = 0
    """Of contexts and forced beginnings, read by the model."""
    reused: int = 0
    """Of the same, known from an earlier request or shared with another one."""
    padded: int = 0
    """Read in vain, to make texts of a batch equally long."""
    sampled: int = 0
    evicted: int = 0
    """Forgotten for lack of memory."""


class TransformersEngine:
    """An `Engine` over language models that are held in this process.

    models: agent → model; agents may share one. cache: bytes of keys and values kept from one call to the next, for
    each model. rows: bytes of those of a batch; larger batches are split. prefill: most tokens read in one pass.
    packed: on a CPU, multiply by copies of the weights in a faster layout.

    A model that is trained in place is sampled from as it is: the engine notices new weights and forgets what it has
    computed with the old ones (`load(agent, {})` makes sure of it). Log-probs depend neither on the batch nor on what
    is held, up to rounding: 4e-6 in float32 for models of some million parameters, 3e-5 for SmolLM2.
    """

    def __init__(
        self,
        models: Mapping[str, LanguageModel],
        cache: int = GIB,
        rows: int = 2 * GIB,
        prefill: int = 2048,
        packed: bool = True,
    ):
        if not models:
            raise UsageError("an engine needs at least one model")
        if cache < 0 or rows < 1 or prefill < 1:
            raise UsageError(f"cache {cache} must not be negative, rows {rows} and prefill {prefill} must be positive")
        self.usage = Usage()
        samplers = {id(m.model): _Sampler(m, cache, rows, prefill, packed, self.usage) for m in models.values()}
        self._samplers = {agent: samplers[id(m.model)] for agent, m in models.items()}

    def generate(self, requests: Sequence[Request]) -> list[Sample]:
        """Answer the requests, in the same order.

        Log-probs are of the float32 log-softmax of logits / temperature; for greedy texts, of the logits. A text ends,
        too, where the model's window does (LENGTH); a context that fills the window gets no token.
        UsageError for requests that cannot be answered, before anything is sampled.
        """
        of_sampler: defaultdict[_Sampler, list[int]] = defaultdict(list)
        for k, request in enumerate(requests):
            sampler = self._sampler(request.agent)
            sampler.check(request)
            of_sampler[sampler].append(k)
        samples: dict[int, Sample] = {}
        for sampler, ks in of_sampler.items():
            samples |= zip(ks, sampler.generate([requests[k] for k in ks]), strict=True)
        return [samples[k] for k in range(len(requests))]

    def load(self, agent: str, weights: Mapping[str, Tensor]) -> None:
        """Sample with newer weights from now on: names and shapes as in the model's `state_dict`, or some of them."""
        self._sampler(agent).load(weights)

    def forget(self) -> None:
        """Drop all keys, values and packed weights: what follows does not depend on what was sampled before.

        Before weights are trained, this leaves the optimiser's step the memory of what it would make useless.
        """
        for sampler in self._samplers.values():
            sampler.forget()

    def _sampler(self, agent: str) -> _Sampler:
        if agent not in self._samplers:
            raise unknown("agent", agent, self._samplers)
        return self._samplers[agent]


@dataclass(eq=False)
class _Text:
    """A text being sampled."""

    request: Request
    ids: Ids
    """Context and forced tokens."""
    limit: int
    """Tokens that may be sampled."""
    node: Node | None = None
    """Where `ids` end in the tree."""
    sampled: list[int] = field(default_factory=list)
    logp: list[float] = field(default_factory=list)
    end: End | None = None

    def sample(self) -> Sample:
        """The answer, once it has ended."""
        assert self.end is not None
        forced = self.ids[len(self.request.context) :]
        return Sample((*forced, *self.sampled), (*(math.nan for _ in forced), *self.logp), self.end)


class _Sampler:
    """Samples from one model."""

    def __init__(self, language: LanguageModel, cache: int, rows: int, prefill: int, packed: bool, usage: Usage):
        self.language, self.model, self.usage = language, language.model, usage
        self.prefill, self.limit = prefill, rows
        base = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        config = base.config.get_text_config()
        kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
        if kinds or "logits_to_keep" not in inspect.signature(base.forward).parameters:
            raise UsageError(f"{language.name}: models of the type {config.model_type} cannot be sampled from here")
        weight = next(self.model.parameters())
        heads = config.num_attention_heads
        self.rows = Rows(
            config.num_hidden_layers,
            getattr(config, "num_key_value_heads", None) or heads,
            getattr(config, "head_dim", None) or config.hidden_size // heads,
            weight.dtype,
            weight.device,
        )
        self.tree = PrefixTree(cache)
        self.linears = PackedLinears(self.model, packed)
        self.version: tuple[object, ...] = ()
        listed = getattr(base.generation_config, "eos_token_id", None)
        self.ends = {language.tokenizer.eos, *(listed if isinstance(listed, list) else ())}
        self.vocabulary = config.vocab_size

    def check(self, request: Request) -> None:
        """UsageError if the request cannot be answered."""
        ids = (*request.context, *request.forced)
        if not request.context:
            raise UsageError("a context is empty; a text needs at least one token before it, such as BOS")
        if min(ids) < 0 or max(ids) >= self.vocabulary:
            wrong = next(i for i in ids if not 0 <= i < self.vocabulary)
            raise UsageError(f"token {wrong} is not one of the {self.vocabulary} of {self.language.name}")
        if request.max_tokens < 1 or not request.temperature >= 0:
            raise UsageError(
                f"max_tokens {request.max_tokens} must be positive, temperature {request.temperature} not negative"
            )

    def forget(self) -> None:
        """Drop what was computed with the present weights."""
        self.tree.clear()
        self.linears.drop()
        self.version = ()

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Copy weights into the model and forget what was computed with the old ones."""
        self.version = ()
        own = self.model.state_dict()
        for name, weight in weights.items():
            if name not in own:
                raise unknown(f"weight of {self.language.name}", name, own)
            if own[name].shape != weight.shape:
                raise UsageError(f"{name} has the shape {list(own[name].shape)}, not {list(weight.shape)}")
        with torch.no_grad():
            for name, weight in weights.items():
                own[name].copy_(weight)

    def generate(self, requests: Sequence[Request]) -> list[Sample]:
        """Answer the requests, in the same order."""
        texts = [self._text(request) for request in requests]
        if (version := fingerprint(self.model)) != self.version:
            self.tree.clear()
            self.linears.refresh()
            self.version = version
        with attending(self.model), self.linears.used():
            for batch in self._batches([text for text in texts if text.end is None]):
                try:
                    self._sample(batch)
                finally:
                    self.usage.evicted += self.tree.evict()
        return [text.sample() for text in texts]

    def _text(self, request: Request) -> _Text:
        forced = request.forced[: min(request.max_tokens, max(0, self.language.context - len(request.context)))]
        ids = request.context + forced
        limit = min(request.max_tokens - len(forced), self.language.context - len(ids))
        return _Text(request, ids, limit, end=End.LENGTH if limit <= 0 else None)

    def _batches(self, texts: list[_Text]) -> Iterator[list[_Text]]:
        """Texts of like length, as many at a time as memory allows."""
        most = max(1, self.limit // self.rows.bytes_per_token)
        batch: list[_Text] = []
        new = 0
        for text in sorted(texts, key=lambda text: (len(text.ids), text.ids)):
            new = max(new, text.limit)
            if batch and (len(batch) + 1) * (len(text.ids) + new) > most:
                yield batch
                batch, new = [], text.limit
            batch.append(text)
        if batch:
            yield batch

    def _sample(self, texts: list[_Text]) -> None:
        """Sample a batch of texts to their ends."""
        for text in texts:
            text.node = self.tree.insert(text.ids)
        nodes = [text.node for text in texts if text.node is not None]
        known = self._read(nodes)
        logits = torch.stack([known[node] for node in nodes])
        width = max(node.stop for node in nodes)
        most = width + max(text.limit for text in texts) - 1
        self.rows.reserve(len(texts), _wider(width, most), most)
        for row, node in enumerate(nodes):
            self.rows.put(row, node, node.stop, width)
        self.rows.column = width
        mask = self._empty_mask([width - node.stop for node in nodes], most)
        drawn = np.zeros((max(text.limit for text in texts), len(texts)))
        for row, text in enumerate(texts):
            drawn[: text.limit, row] = uniforms(
                text.request.seed, len(text.ids) - len(text.request.context), text.limit
            )
        running = list(texts)
        while running:
            temperatures = [text.request.temperature for text in running]
            tokens, logp = draw(logits, temperatures, drawn[self.rows.column - width, : len(running)])
            self._emit(running, tokens, logp)
            for row in reversed(range(len(running))):
                if running[row].end is not None:
                    self._finish(row, running, tokens, width)
                    drawn[:, row] = drawn[:, len(running)]
                    mask[row] = mask[len(running)]
            if running:
                if self.rows.column == self.rows.columns:
                    self.rows.grow(_wider(self.rows.column, most))
                logits = self._step(running, tokens, mask)

    def _emit(self, running: Sequence[_Text], tokens: Sequence[int], logp: Sequence[float]) -> None:
        """Append a token to each text, and see which texts end with it."""
        self.usage.sampled += len(running)
        for text, token, of_token in zip(running, tokens, logp, strict=True):
            if math.isnan(of_token):
                raise EchelonError(f"{self.language.name}: its logits are not finite; have the weights diverged?")
            text.sampled.append(token)
            text.logp.append(of_token)
            if token in text.request.stop:
                text.end = End.STOP
            elif token in self.ends:
                text.end = End.EOS
            elif len(text.sampled) == text.limit:
                text.end = End.LENGTH

    def _finish(self, row: int, running: list[_Text], tokens: list[int], width: int) -> None:
        """Keep the keys and values of a text that has ended, and put the last row in its place."""
        text = running[row]
        read = tuple(text.sampled[:-1])
        if read and self.tree.limit:
            assert text.node is not None
            end = self.tree.insert(read, below=text.node)
            for node in end.path():
                if node.pending:
                    start = width + node.start - text.node.stop
                    self.tree.fill(node, *self.rows.take(row, start, start + len(node.tokens)))
        self.rows.drop(row)
        last, token = running.pop(), tokens.pop()
        if row < len(running):
            running[row], tokens[row] = last, token

    def _step(self, running: Sequence[_Text], tokens: Sequence[int], mask: Tensor) -> Tensor:
        """Logits [rows, vocabulary] after one more token of each text."""
        device = self.rows.key.device
        ids = torch.tensor(tokens, device=device)[:, None]
        positions = torch.tensor([len(text.ids) + len(text.sampled) - 1 for text in running], device=device)[:, None]
        mask[:, self.rows.column] = 0.0
        seen = mask[: len(running), None, None, : self.rows.columns]
        logits = self._forward(ids, positions, seen, torch.tensor([0], device=device))
        self.rows.column += 1
        return logits[:, 0]

    def _empty_mask(self, padding: Sequence[int], columns: int) -> Tensor:
        """What is added to attention scores [rows, columns]: -inf in columns that are empty, to the left or still."""
        places = torch.arange(columns)[None]
        empty = (places < torch.tensor(padding)[:, None]) | (places >= self.rows.column)
        mask = torch.zeros(empty.shape, dtype=self.rows.key.dtype).masked_fill_(empty, -math.inf)
        return mask.to(self.rows.key.device)

    def _forward(self, ids: Tensor, positions: Tensor, mask: Tensor | None, keep: Tensor) -> Tensor:
        return self.model(
            input_ids=ids,
            position_ids=positions,
            attention_mask=mask,
            past_key_values=self.rows,
            use_cache=True,
            logits_to_keep=keep,
        ).logits

    def _read(self, ends: Sequence[Node]) -> dict[Node, Tensor]:
        """Let the model read all pending nodes above `ends`; for each end, the logits [vocabulary] after it."""
        waves, read = plan(ends, _WORTH)
        wanted: defaultdict[Piece, list[tuple[Node, int]]] = defaultdict(list)
        for end in dict.fromkeys(ends):
            piece, place = read[end]
            wanted[piece].append((end, place))
        before = self.usage.read
        logits: dict[Node, Tensor] = {}
        for pieces in waves:
            for batch in self._passes(pieces):
                logits |= self._read_pieces(batch, wanted)
        self.usage.reused += sum(end.stop for end in ends) - (self.usage.read - before)
        return logits

    def _passes(self, pieces: Sequence[Piece]) -> Iterator[list[Piece]]:
        """Pieces of like length, as many at a time as the budgets of tokens and memory allow."""
        most = max(1, self.limit // self.rows.bytes_per_token)
        batch: list[Piece] = []
        past = 0
        for piece in sorted(pieces, key=lambda piece: len(piece.tokens)):
            count, past = len(batch) + 1, max(past, piece.past)
            if batch and (count * len(piece.tokens) > self.prefill or count * (past + len(piece.tokens)) > most):
                yield batch
                batch, past = [], piece.past
            batch.append(piece)
        if batch:
            yield batch

    def _read_pieces(
        self, pieces: Sequence[Piece], wanted: Mapping[Piece, list[tuple[Node, int]]]
    ) -> dict[Node, Tensor]:
        """Read pieces, one a row, all ending in the last column; logits after the wanted ends among their tokens."""
        past, width = max(piece.past for piece in pieces), max(len(piece.tokens) for piece in pieces)
        self.rows.reserve(len(pieces), past + width, past + width)
        for row, piece in enumerate(pieces):
            self.rows.put(row, piece.above, piece.past, past)
        gaps = [width - len(piece.tokens) for piece in pieces]
        real = sum(len(piece.tokens) for piece in pieces)
        self.usage.read += real
        self.usage.padded += len(pieces) * width - real
        ids = torch.tensor([(0,) * gap + piece.tokens for gap, piece in zip(gaps, pieces, strict=True)])
        lengths = torch.tensor([[piece.past, gap] for gap, piece in zip(gaps, pieces, strict=True)])
        places = {
            end: (row, gaps[row] + place) for row, piece in enumerate(pieces) for end, place in wanted.get(piece, ())
        }
        logits: dict[Node, Tensor] = {}
        for start in range(0, width, self.prefill):
            stop = min(start + self.prefill, width)
            self.rows.column = past + start
            here = {end: (row, place) for end, (row, place) in places.items() if start <= place < stop}
            keep = sorted({place - start for _, place in here.values()}) or [stop - start - 1]
            out = self._forward(*self._inputs(ids, lengths, past, start, stop), torch.tensor(keep, device=ids.device))
            logits |= {end: out[row, keep.index(place - start)] for end, (row, place) in here.items()}
        for row, piece in enumerate(pieces):
            for node in piece.nodes:
                if node.pending:
                    first = past + gaps[row] + node.start - piece.past
                    self.tree.fill(node, *self.rows.take(row, first, first + len(node.tokens)))
        return logits

    def _inputs(self, ids: Tensor, lengths: Tensor, past: int, start: int, stop: int) -> tuple[Tensor, Tensor, Tensor]:
        """Ids, positions and the added mask [rows, 1, stop - start, columns] of tokens start to stop of a pass.

        lengths [rows, 2]: the tokens of the preceding text, which end in column `past`, and the empty columns behind.
        """
        device = self.rows.key.device
        before, gap = lengths[:, :1], lengths[:, 1:]
        columns, queries = torch.arange(self.rows.columns), torch.arange(start, stop)
        filled = ((columns >= past - before) & (columns < past)) | (columns >= past + gap)
        own = columns == past + queries[:, None]  # a query in an empty column sees at least itself
        seen = (filled[:, None] & (columns <= past + queries[:, None])) | own
        mask = torch.zeros(seen.shape, dtype=self.rows.key.dtype).masked_fill_(~seen, -math.inf)[:, None]
        positions = (before + queries - gap).clamp_(min=0)
        return ids[:, start:stop].to(device), positions.to(device), mask.to(device)


def _wider(columns: int, most: int) -> int:
    """Columns to reserve for texts of `columns`: an eighth more, so that widening them costs little each step."""
    return min(most, columns + max(16, columns // 8))


def draw(logits: Tensor, temperatures: Sequence[float], uniform: np.ndarray) -> tuple[list[int], list[float]]:
    """Tokens and log-probs of logits [B, V]: the first token whose cumulative probability exceeds its uniform.

    temperatures: B numbers; 0 means the most likely token, and its log-prob at temperature 1. uniform: float64 [B] in
    [0, 1). Log-probs are NaN where the logits are not finite.
    """
    if any(t not in (0.0, 1.0) for t in temperatures):
        logits = logits.float() / torch.tensor([[t or 1.0] for t in temperatures], device=logits.device)
    probs = torch.softmax(logits, -1, dtype=torch.float32)
    sums = _block_sums(probs)
    tokens = logits.argmax(-1) if 0.0 in temperatures else None
    if any(temperatures):
        drawn = _invert(probs, sums, torch.as_tensor(uniform, device=logits.device))
        warm = torch.tensor([t > 0 for t in temperatures], device=logits.device)
        tokens = drawn if tokens is None else torch.where(warm, drawn, tokens)
    assert tokens is not None
    # torch adds up in float32: with 49 k tokens that is wrong by 1e-5, which the sums in float64 take out again
    logp = probs.gather(1, tokens[:, None])[:, 0].double().log_() - sums.sum(1).log_()
    return tokens.tolist(), logp.float().tolist()


def _block_sums(probs: Tensor) -> Tensor:
    """Sums of the blocks of tokens in each row of probs [B, V]: float64 [B, blocks]."""
    count, rest = divmod(probs.shape[1], _BLOCK)
    sums = probs[:, : count * _BLOCK].unflatten(1, (count, _BLOCK)).sum(-1, dtype=torch.float64)
    if not rest:
        return sums
    return torch.cat([sums, probs[:, -rest:].sum(-1, keepdim=True, dtype=torch.float64)], 1)


def _invert(probs: Tensor, sums: Tensor, uniform: Tensor) -> Tensor:
    """For each row of probs [B, V], the first token whose cumulative share of the row's sum exceeds uniform [B].

    The block of tokens that the uniform falls into is found first, by `sums` [B, blocks], then the token inside it.
    """
    vocabulary = probs.shape[1]
    reached = sums.cumsum(1)
    goal = _below(uniform[:, None] * reached[:, -1:], reached)
    block = torch.searchsorted(reached, goal, right=True).clamp_(max=sums.shape[1] - 1)  # beyond: if sums are NaN
    columns = block * _BLOCK + torch.arange(_BLOCK, device=probs.device)
    inside = probs.gather(1, columns.clamp(max=vocabulary - 1)).double().masked_fill_(columns >= vocabulary, 0.0)
    reached_inside = inside.cumsum(1)
    goal = _below((goal - reached.gather(1, block) + sums.gather(1, block)).clamp_(min=0.0), reached_inside)
    place = torch.searchsorted(reached_inside, goal, right=True)
    return (block * _BLOCK + place)[:, 0].clamp_(max=vocabulary - 1)


def _below(goal: Tensor, reached: Tensor) -> Tensor:
    """`goal` [B, 1], made smaller than the last sum of each row where rounding has made it as large."""
    last = reached[:, -1:]
    return torch.minimum(goal, last.nextafter(last.new_zeros(())))
