"""The driver on a real model: sampled texts, probes and the trainer's own scores fit together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from driving import LEVELS, assert_same
from odd_worlds import make, task

from echelon.language.driver import Driver, Phase, Settings, Start, TextScorer
from echelon.language.engine import End
from echelon.language.labels import Format, Slot
from echelon.language.program import gather
from echelon.language.record import Use
from echelon.language.views import forest, rows

pytest.importorskip("transformers")
FORMAT = Format((Slot(("plan",)), Slot(("act",))))
TAGS = [f"<{slash}{tag}>" for tag in FORMAT.tags for slash in ("", "/")]
CORPUS = ["look at digits 0 1 2 3 4 5 6 7 8 9", "a b c d e f z", "yes no", "user: what now?"]


@pytest.fixture(scope="module")
def language() -> Any:
    """A model of 60 words with uneven distributions."""
    from echelon.language.models import language_model, tiny
    from echelon.language.words import WordTokenizer

    words = WordTokenizer.build(CORPUS, tags=TAGS)
    model = tiny(words.size, layers=2, width=32, context=256)
    with torch.no_grad():
        for weight in model.parameters():
            weight *= 6 if weight.ndim == 2 else 1
    return language_model(model, words)


async def act(task: Any, world: Any, lm: Any, log: Any) -> list[float]:
    """A conversation that grows, with two candidates scored at every turn."""
    seen, ids, chances = await world.reset(task), [], []
    while not seen.done:
        message = [{"role": "user", "content": f"look at digits {' '.join(filter(str.isdigit, seen.text))}"}]
        ids += lm.tokenizer.follow(message) if ids else lm.tokenizer.render(message)
        yes, no = await gather(*(lm.score(ids, answer, want=("logp", "entropy")) for answer in ("yes", "a no")))
        chances.append(float(yes["logp"].sum() - no["logp"].sum()))
        reply = await lm(ids, max_tokens=8, forced="<plan>", labels=[FORMAT.channel("block", lm.tokenizer)])
        ids += reply.ids
        if reply.end is not End.EOS:
            ids.append(lm.tokenizer.eos)
        seen = await world.step(FORMAT.parse(reply.text).get("act") or reply.text)
        log.turn(seen)
    return chances


def run(language: Any, batch: int, journal: Path | None = None, cache: int = 0) -> Phase:
    from echelon.language.sampling import TransformersEngine
    from echelon.language.scorer import Scorer

    engine = TransformersEngine({"policy": language}, cache=cache)
    scorer = TextScorer({"policy": Scorer(language.model)})
    settings = Settings(batch=batch, max_tokens=8, context=language.context)
    with Driver(engine, language.tokenizer, settings, scorer=scorer, make=make) as driver:
        begun = [Start(i, i // 2, task(i // 2)) for i in range(6)]
        phase = driver.rollout(act, begun, levels=LEVELS, journal=journal)
    assert not phase.faults
    return phase


def test_what_was_sampled_is_what_the_trainer_scores(language: Any) -> None:
    from echelon.language.scorer import Scorer

    phase = run(language, 64)
    record = phase.record
    acted = record.calls.use == Use.ACTED
    assert int(acted.sum()) == sum(map(len, phase.results.values())) >= 12
    chosen = acted.nonzero()[:, 0]
    items = record.items_of(chosen)
    scored = Scorer(language.model).score(forest(record, chosen), ("logp",))["logp"]
    sampled = record.behaviour[items]
    torch.testing.assert_close(scored[sampled], record.items.logp[items][sampled], atol=2e-5, rtol=0)
    assert bool((~sampled).any()) and record.labels == ("block",)
    first = [int(record.first[call]) for call in chosen.tolist()]
    assert record.items.label["block"][first].tolist() == [0] * len(first)
    chances = [chance for uid in range(6) for chance in phase.results[uid]]
    probes = (~acted).nonzero()[:, 0]
    logp = Scorer(language.model).score(rows(record, probes), ("logp",))["logp"]
    sums = torch.stack([part.sum() for part in logp.split(record.length[probes].tolist())]).reshape(-1, 2)
    torch.testing.assert_close(sums[:, 0] - sums[:, 1], torch.tensor(chances), atol=2e-5, rtol=0)


def test_batches_agree_up_to_rounding(language: Any) -> None:
    whole, single = run(language, 64).record, run(language, 1, cache=1 << 24).record
    assert single.token.tolist() == whole.token.tolist()
    torch.testing.assert_close(single.items.logp, whole.items.logp, atol=2e-5, rtol=0, equal_nan=True)


def test_a_journal_makes_a_real_model_resume_bit_for_bit(language: Any, tmp_path: Path) -> None:
    path = tmp_path / "journal"
    whole = run(language, 4, path)
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join(lines[:6]) + b"\n")
    resumed = run(language, 4, path)
    assert 0 < resumed.progress.replayed < resumed.progress.calls + int((whole.record.calls.use == Use.PROBE).sum())
    assert path.read_bytes().split(b"\n") == lines
    assert_same(resumed.record, whole.record)
    assert resumed.results == whole.results


def test_scores_of_several_kinds_and_sizes(language: Any) -> None:
    from echelon.language._play import ScoreRequest
    from echelon.language.scorer import Scorer

    texts = TextScorer({"policy": Scorer(language.model)})
    words = language.tokenizer
    one = ScoreRequest(tuple(words.encode("look at")), tuple(words.encode("a b c")), ("logp", "hidden:0"))
    two = ScoreRequest(tuple(words.encode("look")), tuple(words.encode("at a")), ("argmax",))
    same = ScoreRequest(one.context, one.target[:1], one.want)
    answers = texts.score([one, two, same])
    assert [{name: a.shape for name, a in answer.items()} for answer in answers] == [
        {"logp": (3,), "hidden:0": (3, 32)},
        {"argmax": (2,)},
        {"logp": (1,), "hidden:0": (1, 32)},
    ]
    assert answers[2]["logp"][0] == pytest.approx(answers[0]["logp"][0], abs=1e-5)
    ids = torch.tensor([[*one.context, *one.target]])
    with torch.no_grad():
        logits = language.model(ids).logits.log_softmax(-1)[0, len(one.context) - 1 : -1]
    expected = logits.gather(1, torch.tensor(one.target)[:, None])[:, 0]
    torch.testing.assert_close(torch.from_numpy(answers[0]["logp"]), expected, atol=1e-5, rtol=0)
    with pytest.raises(Exception, match="unknown agent 'judge'"):
        texts.score([ScoreRequest((1,), (2,), agent="judge")])
