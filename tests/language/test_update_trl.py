"""An optimiser step computes what TRL's GRPOTrainer computes, on ragged completions, with a KL penalty, twice."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))  # pytest does not add the repository's root

pytest.importorskip("trl")

from benchmarks import language_step, language_views
from benchmarks.language_equal import alignment, compare


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    language_step.save_tiny(folder, layers=2, width=48)
    return str(folder)


@pytest.mark.parametrize("view", ["rows", "forest"])
def test_two_steps_on_one_batch(path, tmp_path, view):
    head = {"plain_words": 0, "chunk": 64} if view == "forest" else {}
    first, second = compare(path, tmp_path, view, scoring=head, gradient_checkpointing=False)
    assert first.change < 1e-5 and second.change > 0.01
    for found in (first, second):
        assert found.logp < 1e-4 and found.entropy < 1e-4
        assert found.loss < 1e-6
        assert found.gradient < 1e-5


def test_in_bfloat16_the_gradient_points_where_the_peers_does(path, tmp_path):
    ours, theirs = alignment(path, tmp_path)
    assert ours > theirs - 0.005


def test_conversations_share_what_they_should():
    for rewritten, shared in ((False, "paths"), (True, "forest")):
        record = language_views.conversations(rewritten, episodes=2, turns=3)
        assert record.size == 2 * 3 * 32
        assert language_views.cheapest(record, width=256)[0] == shared


def test_a_row_of_the_table_has_a_cell_for_each_column(monkeypatch, path):
    class Done:
        def __init__(self, name, case, steps):
            self.name = name

        def step(self, last):
            return {"step": 2.0, "generate": 1.0, "imports": 1.0, "peak": 200.0}

    monkeypatch.setattr(language_step, "Process", Done)
    case = language_step.Case("tiny", path, True, "float32", "highest", torch.get_num_threads())
    assert len(language_step.measure(case, rounds=2)) == len(language_step.COLUMNS)
