"""GHIL-Glue: worked examples, losses and a proposal against a derivation, slices, derangements, selection, levels."""

from __future__ import annotations

import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import offline_ghil_glue as reference
from small_runs import SENTENCES, TinyWorld, open_run, small, synthetic_store, tiny_world
from test_offline_losses import assert_slope
from torch import Tensor

from echelon.errors import UsageError
from echelon.hierarchy.planning.select import Judgement, select
from echelon.hierarchy.runner import Runner
from echelon.hierarchy.world import Reset, from_gym
from echelon.systems import index
from echelon.systems.offline import told_apart
from echelon.systems.offline.ghil_glue import GHILGlue, GHILGlueConfig, disturbed, filter_loss
from echelon.systems.offline.judged import deranged, judged_pairs, slices
from echelon.training.agent import DataSpec

B, K, OBS, ACT = 10, 3, 3, 2
SMALL = {"words": "one-hot", "chunk": K, "generator_hidden": (9, 7), "filter_hidden": (8,), "policy_hidden": (10,),
         "generator_steps": 5, "policy_steps": 4, "batch_size": B}  # fmt: skip


def t(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def agent_of(**changes) -> GHILGlue:
    torch.manual_seed(3)
    agent = GHILGlue(GHILGlueConfig(**SMALL | changes), DataSpec(OBS, ACT)).double()
    with torch.no_grad():  # away from special points
        for p in agent.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return agent


def batch_of(seed: int = 5, rows: int = B) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    names = ("pair_states", "pair_later", "step_states", "step_targets")
    batch = {name: torch.randn(rows, OBS, generator=g, dtype=torch.float64) for name in names}
    for name in ("pair", "step"):
        batch[f"{name}_instructions"] = torch.randint(SENTENCES, (rows,), generator=g)
    batch |= {name: torch.randn(rows, n, OBS, generator=g, dtype=torch.float64)
              for name, n in (("observations", K), ("goals", 1))}  # fmt: skip
    batch["actions"] = torch.rand(rows, K, ACT, generator=g, dtype=torch.float64) * 2 - 1
    batch["real"] = torch.arange(K) < torch.randint(1, K + 1, (rows, 1), generator=g)
    return batch


# --- worked examples


@pytest.mark.parametrize(("batch", "sizes"), [(256, [128, 51, 51, 26]), (10, [5, 2, 2, 1])])
def test_sizes_of_slices_of_the_worked_example(batch, sizes):
    assert [len(range(batch)[part]) for part in slices(batch)] == sizes == reference.sizes(batch)


def test_cross_entropy_of_the_worked_example():
    logits, labels = t(2, -1, 0.5, 0), t(1, 0, 0, 1)
    assert float(filter_loss(logits, labels)) == pytest.approx(0.526853, abs=1e-6)
    assert logits.sigmoid().tolist() == pytest.approx([0.880797, 0.268941, 0.622459, 0.5], abs=1e-6)
    assert reference.cross_entropy(logits.numpy(), labels.numpy()) == pytest.approx(0.526853, abs=1e-6)


def test_what_does_not_count_is_left_out_of_the_mean():
    logits, labels = t(2, -1, 50, 0.5, 0), t(1, 0, 0, 0, 1)
    counted = torch.tensor([True, True, False, True, True])
    assert float(filter_loss(logits, labels, counted)) == pytest.approx(0.526853, abs=1e-6)
    assert float(filter_loss(logits, labels, torch.zeros(5, dtype=torch.bool))) == 0


def test_the_first_of_the_best_candidates_is_chosen():
    scores = t(0.2, 0.9, 0.9, 0.1)[None]
    choice = select(torch.arange(4.0)[None, :, None], torch.zeros(1, 1), Judgement(scores, t(-math.inf)))
    assert choice.chosen.tolist() == [[1]] and choice.aim.tolist() == [[1.0]]


def test_the_first_reversed_row_of_the_worked_example():
    states, later = torch.arange(256.0)[:, None], 1000 + torch.arange(256.0)[:, None]
    words, same = torch.arange(256) % 7, (torch.arange(51), torch.arange(26))
    s, g, told, labels = judged_pairs(states, later, words, *same)
    row = 128 + 51
    assert (float(s[row]), float(g[row]), int(told[row]), float(labels[row])) == (1000 + row, row, row % 7, 0)
    assert int(labels.sum()) == 128 and labels[:128].all()


# --- slices and derangements


@given(st.integers(0, 700))
def test_slices_partition_the_batch(batch):
    rows = [i for part in slices(batch) for i in range(batch)[part]]
    assert rows == list(range(batch))
    assert [len(range(batch)[part]) for part in slices(batch)] == reference.sizes(batch)


@given(st.integers(1, 40), st.integers(0, 100))
def test_pairs_are_presented_as_the_reference_does(batch, seed):
    g = torch.Generator().manual_seed(seed)
    states, later = (torch.randn(batch, 2, generator=g) for _ in range(2))
    words = torch.randint(4, (batch,), generator=g)
    _, n, _, m = reference.sizes(batch)
    sources = (torch.randperm(n, generator=g), torch.randperm(m, generator=g))
    found = judged_pairs(states, later, words, *sources)
    pairs = list(zip(states.tolist(), later.tolist(), words.tolist(), strict=True))
    expected = reference.presented(pairs, *(source.tolist() for source in sources))
    assert list(zip(*(x.tolist() for x in found), strict=True)) == expected
    assert torch.equal(words, torch.as_tensor([word for *_, word in pairs])), "the batch itself stays as it was"


@given(st.lists(st.integers(0, 5), max_size=40), st.integers(0, 50))
def test_derangements_give_every_row_another_sentence_where_that_can_be(words, seed):
    keys = torch.tensor(words, dtype=torch.int64)
    source = deranged(keys, torch.Generator().manual_seed(seed))
    assert sorted(source.tolist()) == list(range(len(words))), "a permutation"
    other = int((keys[source] != keys).sum())
    most = max((words.count(word) for word in words), default=0)
    # k of n rows are equal, the other n - k are their only partners
    assert other == (len(words) if 2 * most <= len(words) else 2 * (len(words) - most))
    if 2 * most <= len(words):
        assert (source != torch.arange(len(words))).all(), "no fixed point"


def test_derangements_use_every_other_sentence():
    keys, g = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3]), torch.Generator().manual_seed(0)
    seen = torch.zeros(4, 4)
    for _ in range(400):
        seen.index_put_((keys, keys[deranged(keys, g)]), torch.ones(8), accumulate=True)
    assert seen.diagonal().tolist() == [0] * 4
    assert float(seen[~torch.eye(4, dtype=torch.bool)].min()) > 150


def test_rows_without_another_sentence_do_not_count():
    batch = batch_of()
    batch["pair_instructions"][:] = 2
    _, sentence, _, goal = slices(B)
    counted = agent_of().prepare(batch)["counted"]
    wanted = torch.ones(B, dtype=torch.bool)
    wanted[sentence], wanted[goal] = False, False
    assert torch.equal(counted, wanted)
    released = agent_of(negatives="permuted").prepare(batch)
    assert released["counted"].all() and int(released["labels"].sum()) == 5
    batch["pair_instructions"][sentence] = torch.tensor([2, 3])
    made = agent_of().prepare(batch)
    assert made["counted"][sentence].all()
    assert made["judged_words"][sentence].argmax(1).tolist() == [3, 2]


# --- losses


@pytest.mark.parametrize("changes", [{}, {"desync": False, "negatives": "permuted", "sentence_drop": 0.5}])
def test_losses_and_gradients_equal_the_reference(changes):
    agent = agent_of(**changes)
    prepared = agent.prepare(batch_of())
    arrays = {name: x.numpy() for name, x in prepared.items()}
    hyper = dataclasses.asdict(agent.config)

    def expected(name: str) -> float:
        return reference.losses({n: p.detach().numpy() for n, p in agent.named_parameters()}, arrays, hyper)[name]

    assert [update.name for update in agent.updates()] == ["generator", "filter", "policy"]
    for update in agent.updates():
        loss, _ = update.loss(prepared)
        assert float(loss.detach()) == pytest.approx(expected(update.name), rel=1e-6)
        agent.zero_grad()
        loss.backward()
        own = {id(p) for module in update.modules for p in module.parameters()}
        assert all((p.grad is not None) == (id(p) in own) for p in agent.parameters())
        moved = [p for p in agent.parameters() if id(p) in own]
        assert_slope(moved, lambda name=update.name: expected(name))


def test_a_proposal_equals_the_reference():
    agent = agent_of(guidance=1.7)
    agent.prepare(batch_of(9, 50))
    state, told = torch.randn(1, OBS, dtype=torch.float64), agent.sentences[3:4]
    found = agent.propose(state, told, 2, torch.Generator().manual_seed(4))
    g = torch.Generator().manual_seed(4)
    noise = [torch.randn(2, OBS, generator=g, dtype=torch.float64).numpy() for _ in range(5)]
    w = {name: p.detach().numpy() for name, p in agent.named_parameters()}
    for k in range(2):
        expected = reference.proposal(
            w, agent.states(state)[0].numpy(), told[0].numpy(), [x[k] for x in noise], 5, 1.7, agent.states.clip
        )
        assert found[0, k].numpy() == pytest.approx(expected, rel=1e-5, abs=1e-6)  # steps are told in float32


def test_states_and_goals_are_disturbed_alike_or_each_by_itself():
    """Of policy and classifier: the difference of what they see says whether the draws were the same."""
    batch = batch_of(rows=4000)
    batch["goals"] = batch["observations"][:, :1]
    for desync in (True, False):
        agent = agent_of(desync=desync, jitter=0.3, feature_drop=0.25)
        made = agent.prepare(batch)
        s, g = made["chunk_condition"].split(OBS, 1)
        assert torch.equal(s, g) == (not desync)
        clean = agent.states(batch["observations"][:, 0])
        assert float((s == 0).double().mean()) == pytest.approx(0.25, abs=0.02)
        noise = (s - clean)[s != 0]
        assert (float(noise.mean()), float(noise.std())) == pytest.approx((0, 0.3), abs=0.01)
        both = (s != 0) & (g != 0)
        correlation = float(np.corrcoef((s - clean)[both], (g - clean)[both])[0, 1])
        assert correlation == pytest.approx(0 if desync else 1, abs=0.05)
        a, b = made["judged"], made["judged_goals"]
        assert abs(float(np.corrcoef((a == 0).flatten(), (b == 0).flatten())[0, 1])) < 0.05


def test_a_disturbance_by_hand():
    found = disturbed(t(1, 2, 3), t(1, -1, 2), torch.tensor([True, False, True]), 0.5)
    assert found.tolist() == [1.5, 0, 4]


def test_sentences_are_left_out_as_often_as_asked_for():
    agent = agent_of(sentence_drop=0.3)
    told = agent.prepare(batch_of(rows=4000))["step_condition"][:, OBS:]
    assert float((told.abs().sum(1) == 0).double().mean()) == pytest.approx(0.3, abs=0.03)


def test_the_rate_rises_and_falls():
    agent = agent_of(updates=100, warmup=10)
    rates = [agent.warmed(step) for step in range(1, 101)]
    assert rates[0] == pytest.approx(0.1, abs=1e-3) and max(rates) == pytest.approx(1, abs=0.03)
    assert rates.index(max(rates)) == 9 and rates[50] == pytest.approx(0.5, abs=1e-9) and 0 < rates[-1] < 1e-3


# --- acting


def plan(agent: GHILGlue, begun: bool = False, previous: float = 7.0, rows: int = 2):
    state, told = torch.zeros(rows, OBS, dtype=torch.float64), agent.sentences[:rows]
    before = torch.full((rows, OBS), previous, dtype=torch.float64)
    return agent.plan(state, told, before, torch.full((rows,), begun), torch.Generator().manual_seed(0))


def judging(monkeypatch, agent: GHILGlue, *logits: float) -> None:
    """The candidates are 0, 1, 2, ... and are judged so."""
    shown = torch.arange(float(len(logits)), dtype=torch.float64)[None, :, None].expand(2, -1, OBS)
    monkeypatch.setattr(agent, "propose", lambda s, told, n, generator: shown[:, :n])
    monkeypatch.setattr(agent, "logits", lambda s, g, told: t(*logits)[g[..., 0].long()])


def test_the_candidate_that_is_judged_best_is_aimed_at(monkeypatch):
    agent = agent_of()
    judging(monkeypatch, agent, 0.2, 0.9, 0.9, 0.1)
    aim, values = plan(agent)
    assert aim.tolist() == [[1.0] * OBS] * 2
    assert values["logit"].tolist() == pytest.approx([0.9, 0.9]) and values["kept"].tolist() == [0, 0]


def test_of_one_candidate_nothing_is_judged_and_random_takes_any(monkeypatch):
    raw = agent_of(candidates=1, least_logit=5.0)
    judging(monkeypatch, raw, -3.0, 1.0)
    assert plan(raw, begun=True)[0].tolist() == [[0.0] * OBS] * 2
    agent = agent_of(selection="random", least_logit=5.0)
    judging(monkeypatch, agent, 0.2, 0.9, 0.9, 0.1)
    g, state = torch.Generator().manual_seed(0), torch.zeros(2, OBS, dtype=torch.float64)
    took = [
        agent.plan(state, agent.sentences[:2], state, torch.ones(2) > 0, g)[0][:, 0].int().tolist() for _ in range(200)
    ]
    counts = np.bincount([first for first, _ in took], minlength=4)
    assert counts.min() > 30 and all(first == second for first, second in took), "rows share their draws"


def test_the_previous_subgoal_is_kept_where_all_are_judged_low(monkeypatch):
    agent = agent_of(least_logit=0.5)
    judging(monkeypatch, agent, 0.2, 0.4, 0.1, 0.3)
    aim, values = plan(agent, begun=True)
    assert aim.tolist() == [[7.0] * OBS] * 2 and values["kept"].tolist() == [1, 1]
    assert plan(agent, begun=False)[0].tolist() == [[1.0] * OBS] * 2, "there is none yet"
    judging(monkeypatch, agent, 0.2, 0.5, 0.1, 0.3)
    assert plan(agent, begun=True)[0].tolist() == [[1.0] * OBS] * 2


def test_subgoals_and_chunks_are_held_and_played():
    torch.manual_seed(0)
    agent = GHILGlue(GHILGlueConfig(**SMALL | {"hold_steps": 4, "chunk": 2}), DataSpec(OBS, ACT))
    world = from_gym([TinyWorld() for _ in range(2)])
    record = Runner(agent.levels(), world, info_labels=("success",)).episodes(
        [Reset(seed=k, options={"task_id": k + 1}, labels={"task": k}) for k in range(2)]
    )
    for name, held in (("subgoal", 4), ("chunk", 2), ("play", 1)):
        decisions = record.decisions[name]
        lengths = decisions.stop - decisions.start
        assert int(lengths.max()) == held, name
    assert set(record.decisions["subgoal"].values) >= {"logit", "kept"}


def test_a_world_that_says_nothing_is_refused():
    (level, *_) = agent_of().levels()
    with pytest.raises(UsageError, match="observation, goal asks for nothing in words; use scene-told-v0"):
        level.observe({"observation": torch.zeros(1, OBS), "goal": torch.zeros(1, OBS)}, level.start(1))
    with pytest.raises(UsageError, match="'pointmaze-medium-navigate-v0' asks for nothing in words"):
        GHILGlue(GHILGlueConfig(env="pointmaze-medium-navigate-v0", words="one-hot"), DataSpec(OBS, ACT))


def test_senseless_options_are_refused_by_name():
    with pytest.raises(UsageError, match="guidance must be 1 where no sentence is ever left out"):
        GHILGlueConfig(guidance=2.0, sentence_drop=0.0)
    with pytest.raises(UsageError, match="filter_far must be above filter_near"):
        GHILGlueConfig(filter_far=16)
    with pytest.raises(UsageError, match="selection must be one of filter, random"):
        GHILGlueConfig(selection="best")


# --- what its claims measure


def test_area_under_the_curve_of_a_worked_example():
    """2 beats 1 and 0, 1 ties with 1 and beats 0: (2 + 1.5) / 4."""
    assert told_apart.auc(t(2, 1), t(1, 0)) == pytest.approx(3.5 / 4)
    with pytest.raises(UsageError, match="got 2 and 0"):
        told_apart.auc(t(2, 1), t())


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=20), st.lists(st.integers(-3, 3), min_size=1, max_size=20))
def test_area_under_the_curve_counts_pairs(right, wrong):
    wins = [1.0 if a > b else 0.5 if a == b else 0.0 for a in right for b in wrong]
    assert told_apart.auc(t(*right), t(*wrong)) == pytest.approx(sum(wins) / len(wins), abs=1e-12)


def test_a_perfect_judge_and_a_perfect_policy_have_full_scores(tmp_path, monkeypatch):
    store = synthetic_store(tmp_path / "walks")
    with tiny_world(store):
        agent = open_run(GHILGlue, small(GHILGlue, words="one-hot"), store, tmp_path).agent
    batch = batch_of(rows=400)
    batch["until"] = torch.arange(400) % 3
    monkeypatch.setattr(told_apart, "held_out", lambda agent: batch)
    named, words = agent.states(batch["pair_states"])[:, 0], batch["pair_instructions"]

    def knows(s: Tensor, g: Tensor, told: Tensor) -> Tensor:
        return ((s[:, 0] == named) & (told.argmax(1) == words)).double()

    monkeypatch.setattr(agent, "logits", knows)
    run = SimpleNamespace(agent=lambda: agent)
    assert float(told_apart.told_apart(run, "reverse")) == 100
    with pytest.raises(UsageError, match="no kind 'colour'"):
        told_apart.told_apart(run, "colour")
    monkeypatch.setattr(agent, "act", lambda s, g, generator: batch["actions"][batch["until"] > 0])
    assert float(told_apart.real_goals(run)) == pytest.approx(100)
    mean = batch["actions"][batch["until"] > 0][batch["real"][batch["until"] > 0]].mean(0)
    monkeypatch.setattr(agent, "act", lambda s, g, generator: mean.expand(len(s), K, ACT))
    assert float(told_apart.real_goals(run)) == pytest.approx(0, abs=1e-9)


def test_it_is_known_by_its_name():
    assert index.load("ghil-glue") is GHILGlue
