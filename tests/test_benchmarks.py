"""The peers of the update benchmark compute what echelon computes; nothing is timed."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # pytest does not add the repository's root

from benchmarks import __main__ as report
from benchmarks import update
from benchmarks.ports import PlainSampler, port
from echelon.training.runtime import choose

SMALL = replace(update.SIZES["cpu"], batch=16, hidden=(12, 12), observation=3, transitions=400, stretch=1)
SIZES = {"two layers": SMALL, "three layers": replace(SMALL, hidden=(8, 12, 10))}


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("system", update.SYSTEMS)
def test_port_takes_the_same_steps(system, size):
    runtime = choose("cpu", "float32", 1)
    agent, learner, source = update.build(size, system, runtime, update.synthetic_store(size, length=50))
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
    agent, learner, source = update.build(SMALL, "hiql", runtime, update.synthetic_store(SMALL, length=50))
    peer = port(agent, SMALL.observation, SMALL.action)
    with pytest.raises(RuntimeError, match="loss"):
        update.same_loss(learner, lambda batch: 1.01 * peer.loss(batch), source.next())


@pytest.mark.parametrize("system", update.SYSTEMS)
def test_plain_sampler_draws_the_same_batches_in_law(system):
    size = replace(SMALL, batch=4000)
    store = update.synthetic_store(size, length=20)
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
    cells = update.measure(SMALL, "ota", "float32", 1, update.synthetic_store(SMALL, length=50), rounds=1)
    assert len(cells) == len(update.COLUMNS)
    assert len(update.table_row(cells)) == sum(update.COLUMNS.values())


def test_unknown_benchmarks_are_refused(capsys):
    assert report.main(["spnas"]) == 2
    assert "spans" in capsys.readouterr().err
