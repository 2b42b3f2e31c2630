"""One optimiser step: any split, any process, the same gradient; and its errors."""

import os
import signal
from functools import partial

import pytest
import torch
from lm_views import rows_of, texts_of, tiny_lm, tree_of

from echelon.errors import DataError, UsageError
from echelon.language.scorer import Scorer
from echelon.language.update import Term, over_processes, policy_step
from echelon.losses.aggregate import loss_weights
from echelon.losses.kl import kl_estimate
from echelon.losses.surrogate import gspo, log_ratio, ppo_clip
from echelon.spans import Spans

pytest.importorskip("transformers")

WORDS = 50
TEXTS = texts_of(8, WORDS, seed=3)
SEQUENCES = Spans.from_lengths([len(output) for _, output in TEXTS])
N = SEQUENCES.size
DTYPES = {torch.float64: 1e-12, torch.float32: 1e-6}


def columns(dtype=torch.float64, seed=0):
    draw = torch.Generator().manual_seed(seed)
    advantage, old, ref = torch.randn(3, N, generator=draw, dtype=torch.float64).to(dtype)
    return {"advantage": advantage, "old_logp": old / 5 - 4, "ref_logp": ref / 5 - 4}


def terms(dtype=torch.float64, where=None, head=False):
    weight = loss_weights(SEQUENCES, "token-mean", where=where, dtype=dtype)
    found = {
        "policy": Term(lambda c: ppo_clip(c["logp"] - c["old_logp"], c["advantage"]), weight),
        "kl": Term(lambda c: kl_estimate(c["logp"], c["ref_logp"]), 0.1 * weight),
        "entropy": Term(lambda c: -c["entropy"], 0.02 * weight, want=("entropy",)),
    }
    if head:
        found["value"] = Term(lambda c: (c["value"] - c["advantage"]) ** 2, 0.5 * weight, want=("value",))
    return found


def step(view, model=None, dtype=torch.float64, terms_=None, max_norm=None, **options):
    """(report, gradients) of one step of plain gradient descent."""
    model = tiny_lm(WORDS, dtype) if model is None else model
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    report = policy_step(
        Scorer(model), view, terms(dtype) if terms_ is None else terms_, optimiser,
        **{"given": columns(dtype), "max_norm": max_norm} | options,
    )  # fmt: skip
    return report, {name: p.grad for name, p in model.named_parameters()}


def relative(a, b):
    """The distance of two gradients in units of the second."""
    return (sum((a[k] - b[k]).square().sum() for k in b) / sum(b[k].square().sum() for k in b)).sqrt().item()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_split_of_any_view_gives_the_gradient_of_the_whole(dtype):
    model = tiny_lm(WORDS, dtype)
    scored = Scorer(model).score(rows_of(TEXTS), ("logp", "entropy"), grad=True)
    given = columns(dtype) | scored | {"item": torch.arange(N)}
    loss = sum((term.weight * term.loss(given)).sum() for term in terms(dtype).values())
    loss.backward()
    right = {name: p.grad.clone() for name, p in model.named_parameters()}
    splits = []
    for view in (rows_of(TEXTS), tree_of(TEXTS), tree_of(TEXTS, [2, 3, 3])):
        for budget in (1, 36, 60, 4096):
            report, found = step(view, dtype=dtype, budget=budget)
            splits.append(report.batches)
            assert relative(found, right) < DTYPES[dtype]
            assert report.loss == pytest.approx(loss.item(), rel=1e-5 if dtype == torch.float32 else 1e-12)
            assert report.loss == pytest.approx(sum(report.terms.values()))
            assert report.items == N and report.padded >= report.tokens
    assert {1, 2, 8} <= set(splits) and any(3 <= n <= 5 for n in splits)


def test_items_without_weight_are_not_computed_and_leave_the_weights_alone():
    kept = torch.tensor([1, 0, 0, 1, 1, 0, 1, 0], dtype=torch.bool)
    where = SEQUENCES.expand(kept)
    for view in (rows_of(TEXTS), tree_of(TEXTS)):
        masked = {name: Term(term.loss, term.weight * where, term.want) for name, term in terms().items()}
        report, found = step(view, terms_=masked)
        chosen = [text for text, keep in zip(TEXTS, kept.tolist(), strict=True) if keep]
        few = {name: Term(term.loss, term.weight[where], term.want) for name, term in terms().items()}
        _, right = step(rows_of(chosen), terms_=few, given={k: v[where] for k, v in columns().items()})
        assert relative(found, right) < 1e-12
        assert report.items == int(where.sum()) and report.tokens < len(view.ids)
        assert torch.equal(report.columns["logp"].isfinite(), where)


def test_terms_see_only_what_they_weigh():
    given = columns()
    given["advantage"][3] = torch.nan
    where = torch.arange(N) != 3
    found = terms()
    found["policy"] = terms(where=where)["policy"]
    report, gradients = step(rows_of(TEXTS), terms_=found, given=given)
    assert report.items == N and all(g.isfinite().all() for g in gradients.values())


def test_on_fresh_samples_the_ratio_is_one():
    given = {"advantage": columns()["advantage"]}
    policy = {"policy": terms()["policy"]}
    report, found = step(rows_of(TEXTS), terms_=policy, given=given)
    plain = {"policy": Term(lambda c: -c["advantage"] * c["logp"], policy["policy"].weight)}
    _, right = step(rows_of(TEXTS), terms_=plain, given=given)
    assert relative(found, right) < 1e-12
    assert report.loss == pytest.approx(-(policy["policy"].weight * given["advantage"]).sum().item())
    # what the step has scored serves as the old log-probability of the next one
    model = tiny_lm(WORDS, torch.float64)
    torch.testing.assert_close(report.columns["logp"], Scorer(model).score(rows_of(TEXTS))["logp"])


@pytest.mark.parametrize("budget", [1, 36, 4096])
def test_ratios_of_whole_sequences_come_from_a_first_pass(budget):
    given, model = columns(), tiny_lm(WORDS, torch.float64)
    weight = loss_weights(SEQUENCES, "seq-mean-token-mean", dtype=torch.float64)
    now = Scorer(model).score(rows_of(TEXTS), grad=True)["logp"]
    change = log_ratio(now, given["old_logp"])
    (weight * gspo(SEQUENCES, change, given["advantage"], low=0.2, high=0.2)).sum().backward()
    right = {name: p.grad.clone() for name, p in model.named_parameters()}
    given["log_s"] = SEQUENCES.expand(SEQUENCES.reduce(change.detach(), "mean"))

    def loss(c):
        return ppo_clip(c["log_s"] + c["logp"] - c["logp"].detach(), c["advantage"])

    _, found = step(tree_of(TEXTS), terms_={"gspo": Term(loss, weight)}, given=given, budget=budget)
    assert relative(found, right) < 1e-12


def test_values_learn_beside_the_policy():
    model, head = tiny_lm(WORDS, torch.float64), torch.nn.Linear(32, 1, dtype=torch.float64)
    optimiser = torch.optim.AdamW([*model.parameters(), *head.parameters()], lr=1e-2, weight_decay=0)
    scorer, given = Scorer(model, heads={"value": head}), columns()
    errors = []
    for _ in range(20):
        report = policy_step(scorer, tree_of(TEXTS), terms(head=True), optimiser, given=given, budget=40)
        errors.append(report.terms["value"])
    assert errors[-1] < 0.5 * errors[0]
    assert set(report.columns) == {"logp", "entropy", "value"}


def test_a_value_alone_needs_no_vocabulary():
    model, head = tiny_lm(WORDS, torch.float64), torch.nn.Linear(32, 1, dtype=torch.float64)
    found = {"value": terms(head=True)["value"]}
    report = policy_step(
        Scorer(model.get_decoder(), heads={"value": head}), rows_of(TEXTS), found,
        torch.optim.SGD(head.parameters(), lr=0.1), given=columns(),
    )  # fmt: skip
    assert set(report.columns) == {"value"} and head.weight.grad is not None


def test_the_gradient_is_clipped_as_a_whole():
    report, whole = step(rows_of(TEXTS))
    size = sum(g.square().sum() for g in whole.values()).sqrt().item()
    assert report.grad_norm == pytest.approx(size)
    for limit, scale in ((size / 4, 0.25), (size * 4, 1.0)):
        clipped, found = step(rows_of(TEXTS), max_norm=limit)
        assert clipped.grad_norm == pytest.approx(size)
        assert relative(found, {name: scale * g for name, g in whole.items()}) < 1e-5


def weights(model):
    return [p.detach().clone() for p in model.parameters()]


def same(before, model):
    return all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_a_loss_that_is_not_finite_names_its_item_and_moves_nothing():
    given, calls = columns(), SEQUENCES
    given["old_logp"][9] = torch.nan  # a forced token, say, that was left in the loss
    model = tiny_lm(WORDS, torch.float64)
    before = weights(model)
    call = int(calls.ids[9])
    with pytest.raises(DataError, match=rf"'policy' at item 9, of call {call}, is nan \(.*old_logp nan"):
        step(rows_of(TEXTS), model, given=given, calls=calls, budget=20)
    assert same(before, model) and all(p.grad is None for p in model.parameters())
    bad = terms()
    bad["kl"].weight[4] = torch.inf
    with pytest.raises(DataError, match="weight of term 'kl' at item 4 is inf"):
        step(rows_of(TEXTS), model, terms_=bad)
    assert same(before, model)


def test_a_gradient_that_is_not_finite_moves_nothing():
    model = tiny_lm(WORDS, torch.float64)
    before = weights(model)
    root = {"root": Term(lambda c: (c["logp"] - c["logp"].detach()).abs().sqrt(), terms()["policy"].weight)}
    with pytest.raises(DataError, match="gradient's norm is nan"):
        step(rows_of(TEXTS), model, terms_=root)
    assert same(before, model) and all(p.grad is None for p in model.parameters())


def test_without_any_weight_nothing_moves():
    model = tiny_lm(WORDS, torch.float64)
    before = weights(model)
    nothing = {name: Term(term.loss, 0 * term.weight, term.want) for name, term in terms().items()}
    report, _ = step(rows_of(TEXTS), model, terms_=nothing)
    assert same(before, model)
    assert (report.loss, report.grad_norm, report.items, report.batches) == (0, 0, 0, 0)


def test_what_does_not_fit_is_refused():
    view, few = rows_of(TEXTS), rows_of(TEXTS[:3])
    with pytest.raises(UsageError, match="at least one term"):
        step(view, terms_={})
    with pytest.raises(UsageError, match="advantage has shape \\(3,\\)"):
        step(view, given={"advantage": torch.zeros(3)})
    with pytest.raises(UsageError, match="has a weight, but the view does not predict it"):
        step(few)
    short = {"policy": Term(terms()["policy"].loss, torch.ones(2))}
    with pytest.raises(UsageError, match="the weights are of 2 items"):
        step(view, terms_=short, given={})
    scalar = {"policy": Term(lambda c: c["logp"].sum(), terms()["policy"].weight)}
    with pytest.raises(UsageError, match=r"'policy' gave losses of shape \(\)"):
        step(view, terms_=scalar)


def part_of_a_step(rank, folder):
    """What each of two processes does with its texts; the second holds no item that the KL term weighs."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    chosen = (slice(0, 5), slice(5, 8))[rank]
    items = torch.isin(SEQUENCES.ids, torch.arange(8)[chosen])
    mine = {name: Term(term.loss, term.weight[items], term.want) for name, term in uneven().items()}
    given = {name: column[items] for name, column in columns().items()}
    report, found = step(rows_of(TEXTS[chosen]), terms_=mine, given=given, max_norm=0.1, total=over_processes)
    torch.save((report.loss, report.grad_norm, found), folder / f"{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def uneven():
    """The KL term falls on the first text alone."""
    found = terms()
    found["kl"] = Term(found["kl"].loss, found["kl"].weight * (SEQUENCES.ids == 0))
    return found


def fork(body):
    """Start `body` in a child that ends within 60 s; its process id."""
    pid = os.fork()
    if pid == 0:
        signal.alarm(60)
        try:
            body()
        except BaseException as error:
            print(error, flush=True)
            os._exit(1)
        os._exit(0)
    return pid


def test_two_processes_take_the_step_of_one(tmp_path):
    children = [fork(partial(part_of_a_step, rank, tmp_path)) for rank in (0, 1)]
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0]
    report, right = step(rows_of(TEXTS), terms_=uneven(), max_norm=0.1)
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    assert sum(loss for loss, _, _ in parts) == pytest.approx(report.loss)
    for _, norm, found in parts:
        assert norm == pytest.approx(report.grad_norm)
        assert relative(found, right) < 1e-12
