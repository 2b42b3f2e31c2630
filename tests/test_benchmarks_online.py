"""The benchmark beside Stable-Baselines3: runs that may be stepped by hand, turns, its table; no times."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # pytest does not add the repository's root

from benchmarks import online_peer
from echelon.errors import MissingExtra
from echelon.systems.online.flat_ppo import FlatPPO
from echelon.training.runtime import choose

SMALL = FlatPPO.Config(env="chain", slots=2, ticks=8, minibatch=8, epochs=2, hidden=(4,))


class Peer:
    """Counts the steps that it is asked for, and the modes of products in which it is."""

    def __init__(self):
        self.steps, self.modes = [], []

    def learn(self, steps, reset_num_timesteps=True):
        self.steps.append(steps)
        self.modes.append(torch.get_float32_matmul_precision())


def test_a_run_is_stepped_by_hand_and_leaves_nothing_behind():
    with online_peer.ours(SMALL, choose("cpu", "float32", 1)) as run:
        online_peer.iterate(run, 3)
        assert (run.step, run.gradient_steps) == (3, 3 * 2 * 2)
        folder = run.directory
        assert (folder / "episodes.jsonl").exists()
    assert not folder.exists()


def test_both_take_turns_of_the_same_steps():
    peer, before = Peer(), torch.get_float32_matmul_precision()
    found = online_peer.speed(lambda seed: (SMALL, peer), iterations=2, turns=2)
    mode = choose("cpu", "float32", 1).matmul
    warm = max(1, 2 * online_peer.START // SMALL.steps) * SMALL.steps
    assert peer.steps == [warm, *[2 * SMALL.steps] * 4]
    assert peer.modes[1:] == ["highest", mode] * 2 and torch.get_float32_matmul_precision() == before
    assert len(found) == 6 and all(number > 0 for number in found)


def test_without_the_peer_it_says_what_to_install(monkeypatch):
    def absent():
        raise MissingExtra("stable-baselines3", "peers")

    monkeypatch.setattr(online_peer, "peers", absent)
    with pytest.raises(SystemExit, match=r"online_peer: .*peers"):
        online_peer.main(["--turns", "0"])
