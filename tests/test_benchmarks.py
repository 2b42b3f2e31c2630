"""The peers of the update benchmark compute what echelon computes; products are taken down as they are; no times."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # pytest does not add the repository's root

from benchmarks import __main__ as report
from benchmarks import offline_update, steps, update
from benchmarks.ports import PlainSampler, port
from echelon.systems import index
from echelon.systems.offline.hecrl import HECRLConfig
from echelon.systems.offline.hilp import HILPConfig
from echelon.systems.offline.recipes import recipe
from echelon.training.runtime import choose

SMALL = replace(steps.SIZES["cpu"], batch=16, hidden=(12, 12), observation=3, transitions=400, stretch=1)
SIZES = {"two layers": SMALL, "three layers": replace(SMALL, hidden=(8, 12, 10))}


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("system", update.SYSTEMS)
def test_port_takes_the_same_steps(system, size):
    runtime = choose("cpu", "float32", 1)
    agent, learner, source = update.build(size, system, runtime, steps.synthetic_store(size, length=50))
    peer = port(agent, size.observation, size.action)
    for step in range(3):
        batch = source.next()
        loss = peer.update(batch)
        metrics = learner.step(step + 1, batch)
        torch.testing.assert_close(loss, metrics[f"loss/{system}"], rtol=1e-4, atol=0)
    after = port(agent, size.observation, size.action)
    for (name, mine), theirs in zip(peer.named_parameters(), after.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


def test_another_loss_is_refused():
    runtime = choose("cpu", "float32", 1)
    agent, learner, source = update.build(SMALL, "hiql", runtime, steps.synthetic_store(SMALL, length=50))
    peer = port(agent, SMALL.observation, SMALL.action)
    with pytest.raises(RuntimeError, match="loss"):
        update.same_loss(learner, lambda batch: 1.01 * peer.loss(batch), source.next())


@pytest.mark.parametrize("system", update.SYSTEMS)
def test_plain_sampler_draws_the_same_batches_in_law(system):
    size = replace(SMALL, batch=4000)
    store = steps.synthetic_store(size, length=20)
    store.columns["observations"][:, 0] = np.arange(store.rows)
    _, _, source = update.build(size, system, choose("cpu", "float32", 1), store)
    plain = PlainSampler(store, source.goals, size.batch, seed=1)
    ours, theirs = ([sampler.next() for _ in range(16)] for sampler in (source, plain))
    assert ours[0].keys() == theirs[0].keys()
    for key, value in ours[0].items():
        mine, peers = (torch.cat([batch[key] for batch in batches]) for batches in (ours, theirs))
        assert value.dtype == theirs[0][key].dtype and mine.shape == peers.shape
        if key.endswith("success"):
            torch.testing.assert_close(mine.mean(), peers.mean(), rtol=0, atol=0.015)
        elif key != "actions":
            # the first observation is the row's number: compare the laws of the distance to the state it belongs to
            rows = torch.cat([batch["observations"] for batch in ours])[:, 0]
            peer_rows = torch.cat([batch["observations"] for batch in theirs])[:, 0]
            shares = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9])
            torch.testing.assert_close(
                (mine[:, 0] - rows).quantile(shares), (peers[:, 0] - peer_rows).quantile(shares), rtol=0.1, atol=1.5
            )


def test_a_row_of_the_table_has_a_cell_for_each_column():
    cells = update.measure(SMALL, "ota", "float32", 1, steps.synthetic_store(SMALL, length=50), rounds=1)
    assert len(cells) == len(update.COLUMNS)
    assert len(steps.table_row(cells, update.COLUMNS)) == sum(update.COLUMNS.values())


# --- every offline system's step


def stepping(name: str, size: steps.Size = SMALL) -> steps.Contestant:
    runtime = choose("cpu", "float32", 1)
    _, learner, source = steps.ready(
        *offline_update.case(name, size), size, runtime, steps.synthetic_store(size, length=50)
    )
    return steps.Contestant(source.next, lambda batch: learner.step(1, batch), runtime.matmul)


@pytest.mark.parametrize("name", [name for name in offline_update.SYSTEMS if name != "hecrl"])
def test_the_products_of_a_step_are_all_of_its_work(name):
    step = stepping(name, replace(SMALL, hidden=(8, 10)))
    products = offline_update.products_of(step)
    assert products.flops == steps.flops(step) > 0
    again = offline_update.Products()
    with again:
        products.again()
    assert again.flops == products.flops and again.operands.keys() == products.operands.keys()
    assert [call[0] for call in again.calls] == [call[0] for call in products.calls]


def test_work_of_cloning_by_hand():
    size = replace(SMALL, hidden=(8, 10))
    products = offline_update.products_of(stepping("gcbc", size))
    layers = [(2 * size.observation, 8), (8, 10), (10, size.action)]
    forward = sum(2 * size.batch * a * b for a, b in layers)
    # backward: as much for weights and as much for inputs, of which the first layer's need none
    assert products.flops == 3 * forward - 2 * size.batch * layers[0][0] * layers[0][1]
    assert len(products.calls) == 3 + 5
    assert all(operand.isfinite().all() for operand in products.operands.values())


def test_operands_keep_shape_strides_and_precision():
    x, w = torch.ones(4, 3, dtype=torch.bfloat16), torch.ones(5, 3, dtype=torch.bfloat16)
    with offline_update.Products() as products:
        torch.addmm(torch.ones(1, 5, dtype=torch.bfloat16).expand(4, 5), x, w.t(), beta=2)
        torch.mm(x, w.t()) + 1
    bias, left, right = products.operands
    assert bias == ((4, 5), (0, 1), torch.bfloat16) and right == ((3, 5), (1, 3), torch.bfloat16)
    assert left == ((4, 3), (3, 1), torch.bfloat16)
    for (shape, stride, dtype), operand in products.operands.items():
        assert (operand.shape, operand.stride(), operand.dtype) == (shape, stride, dtype)
    assert [len(operands) for _, operands, _ in products.calls] == [3, 2]
    assert products.calls[0][2] == {"beta": 2} and products.flops == 2 * 2 * 4 * 3 * 5


@pytest.mark.parametrize("name", ["gcbc", "hecrl"])
def test_rows_of_offline_systems(name):
    size = replace(SMALL, observation=46, action=5)
    cells, spent = offline_update.measure(name, size, steps.synthetic_store(size, length=50), "float32", 1, rounds=2)
    assert len(cells) == len(offline_update.COLUMNS)
    assert len(steps.table_row(cells, offline_update.COLUMNS)) == sum(offline_update.COLUMNS.values())
    # no network this small comes near a bound, so that both have a profile
    assert len(spent.split(", ")) == 6 and ("" in cells) == (name == "hecrl")


def test_a_row_of_a_generative_system():
    """At its recipe's size, beside its own products but no layer of perceptrons."""
    size = offline_update.own_size("gcbc-chunks", "cpu")
    store = steps.synthetic_store(replace(size, transitions=500), length=50)
    system, config = offline_update.case("gcbc-chunks", size)
    assert config == recipe(system.Config, config.env, "cpu") and size.batch == config.batch_size
    cells, _ = offline_update.measure("gcbc-chunks", size, store, "float32", 1, rounds=1)
    assert [bool(cell) for cell in cells] == [True] * 7 + [False, False, True]
    assert offline_update.own_size("gcbc", "cpu") == steps.SIZES["cpu"]
    large, small = (offline_update.own_size("beso", place) for place in ("default", "cpu"))
    assert (large.batch, small.action) == (1024, 5)


def test_every_offline_system_is_timed_at_its_published_settings():
    offline = {slug for slug, place in index.CLASSES.items() if ".offline." in place}
    assert offline == {*offline_update.SYSTEMS, *offline_update.GENERATIVE, *offline_update.UNTIMED}
    _, config = offline_update.case("hecrl", offline_update.ENTITY_SIZES["default"])
    assert config == recipe(HECRLConfig, offline_update.ENTITIES)
    _, small = offline_update.case("hecrl", offline_update.ENTITY_SIZES["cpu"])
    wanted = recipe(HECRLConfig, offline_update.ENTITIES, "cpu")
    assert (small.batch_size, small.diffuser_hidden, small.value_hidden) == (256, (256,) * 4, wanted.value_hidden)
    _, config = offline_update.case("hilp", steps.SIZES["default"])
    assert config == HILPConfig()


def test_unknown_benchmarks_are_refused(capsys):
    assert report.main(["spnas"]) == 2
    assert "spans" in capsys.readouterr().err
