"""Episodes of a training that are written down: which, whole, at what cost in numbers (none), and resumed."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from echelon.credit.returns import gae
from echelon.hierarchy.diagnostics import VALUE
from echelon.rollout import Ragged, Rollout
from echelon.systems import index
from echelon.training import checkpoint, run
from echelon.training.agent import Batch
from echelon.training.online import recording
from echelon.training.online.agent import AFTER, BONUS, EXPECTED
from echelon.training.online.conformance import check_resume, forget_after
from echelon.training.online.recording import Recording

PPO: dict[str, Any] = {
    "env": "CartPole-v1", "slots": 3, "ticks": 16, "minibatch": 16, "epochs": 1, "hidden": (6,), "updates": 12,
    "eval_every": 4, "eval_episodes": 2, "checkpoint_every": 6, "log_every": 4,
}  # fmt: skip


def trained(folder: Path, system: str = "flat-ppo", **settings: Any) -> tuple[Path, list[Rollout]]:
    """A small run, and every record that it learned from."""
    seen: list[Rollout] = []

    class Watched(index.load(system)):  # type: ignore[misc]
        def learn(self, rollout: Rollout) -> Iterator[Batch]:
            seen.append(rollout)
            return super().learn(rollout)

    config = Watched.Config(**{**PPO, **settings})
    done = run.train(Watched, config, folder / "run", device="cpu", threads=1, say=lambda line: None)
    assert done is not None
    return done, seen


def records(folder: Path) -> dict[int, Rollout]:
    """What was written down of the training, by update."""
    files = sorted((folder / "rollouts").glob("trained_*.safetensors"))
    return {int(f.stem.removeprefix("trained_")): Rollout.load(f.with_suffix("")) for f in files}


def columns(rollout: Rollout, episode: int) -> dict[str, torch.Tensor]:
    """What happened in one episode."""
    mine = rollout.streams.episode[rollout.stream] == episode
    found = {name: getattr(rollout, name)[mine] for name in ("tick", "executed", "proposed")}
    found |= {f"reward {name}": column[mine] for name, column in rollout.reward.items()}
    found |= {name: column[mine] for name, column in rollout.observation.items() if not isinstance(column, Ragged)}
    for level, d in rollout.decisions.items():
        rows = (rollout.streams.episode[d.stream] == episode).nonzero()[:, 0]
        rows = rows[torch.argsort(d.start[rows])]
        found |= {f"{level} action": d.action[rows], f"{level} length": (d.stop - d.start)[rows]}
        found |= {f"{level} log_prob": d.log_prob[rows], f"{level} end": d.end[rows]}
    return found


def test_one_of_so_many_in_blocks_and_one_between_evaluations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "SHARE", 5)
    path, seen = trained(tmp_path)
    whole, found = Rollout.cat(seen), records(path)
    assert list(found) == [4, 8, 12]
    told = [int(n) for r in found.values() for n in r.streams.episode]
    over = whole.streams.episode[whole.streams.terminated | whole.streams.truncated].tolist()
    blocks = {n for n in over if n // 3 % 5 == 2}
    assert len(set(told)) == len(told) and len(blocks) >= 4 and blocks <= set(told), "each episode once"
    assert len(set(told) - blocks) <= 3, "and one more where an evaluation would have none"
    assert all(len(r.streams) for r in found.values())
    for rollout in found.values():
        ended = rollout.streams.terminated | rollout.streams.truncated
        assert bool(ended.all()) and bool((rollout.streams.start_tick == 0).all()), "whole episodes"
        for episode in rollout.streams.episode.tolist():
            one, other = columns(rollout, episode), columns(whole, episode)
            assert all(torch.equal(one[name], other[name]) or one[name].isnan().all() for name in other)


def test_writing_down_changes_no_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_it, _ = trained(tmp_path / "with", "ppoc", options=2)
    monkeypatch.setattr(Recording, "add", lambda self, agent, rollout, last: None)
    without, _ = trained(tmp_path / "without", "ppoc", options=2)
    assert records(with_it) and not records(without)
    one, other = checkpoint.latest(with_it), checkpoint.latest(without)
    assert one is not None and other is not None and one.tensors.keys() == other.tensors.keys()
    torch.testing.assert_close(one.tensors, other.tensors, rtol=0, atol=0, equal_nan=True)
    rows = [(folder / "episodes.jsonl").read_text() for folder in (with_it, without)]
    assert rows[0] == rows[1]


@pytest.mark.parametrize("long", [False, True])
def test_a_resumed_run_writes_the_same(tmp_path: Path, long: bool) -> None:
    """Stopped in the middle of episodes that are followed; `long` ones outlive an evaluation."""
    settings = {**PPO, "env": "Pendulum-v1", "limit": 90} if long else PPO
    cls = index.load("flat-ppo")
    assert check_resume(cls, cls.Config(**settings), tmp_path, stop=7).exact
    kept = checkpoint.load(tmp_path / "continued" / "checkpoints" / "step_000000007")
    assert kept.state["recording"]["open"] and bool(kept.state["recording"]["followed"]) == long
    for file in sorted((tmp_path / "continued" / "rollouts").glob("trained_*")):
        assert file.read_bytes() == (tmp_path / "resumed" / "rollouts" / file.name).read_bytes(), file.name
    assert {f.stem for f in (tmp_path / "continued" / "rollouts").glob("open_*")} <= {"open_000000007"}


def test_a_checkpoint_of_before_and_a_lost_file_go_on(tmp_path: Path) -> None:
    path, _ = trained(tmp_path, checkpoint_every=7)
    for change in ("old", "lost"):
        copy = tmp_path / change
        shutil.copytree(path, copy)
        forget_after(copy, 7)
        state = copy / "checkpoints" / "step_000000007" / "state.json"
        if change == "lost":
            for file in (copy / "rollouts").glob("open_*"):
                file.unlink()
        else:
            document = json.loads(state.read_text())
            del document["recording"]
            checkpoint.save(copy, 7, checkpoint.load(state.parent).tensors, document)
        cls = index.load("flat-ppo")
        config = dataclasses.replace(cls.Config(**PPO), checkpoint_every=7)
        assert run.train(cls, config, copy, device="cpu", threads=1, say=lambda line: None) is not None
        assert list(records(copy)) == [4, 8, 12]
        one, other = checkpoint.latest(path), checkpoint.latest(copy)
        assert one is not None and other is not None
        torch.testing.assert_close(one.tensors, other.tensors, rtol=0, atol=0, equal_nan=True)


def test_what_is_kept_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Episodes that hardly end: followed up to the bound, and written as far as they went."""
    monkeypatch.setattr(recording, "MOST", 400)
    path, _ = trained(tmp_path, env="Pendulum-v1", limit=10_000)
    size = 16 * 3 * 4 * 3  # an iteration's observations, in bytes
    for rollout in records(path).values():
        told = rollout.observation["observation"]
        assert isinstance(told, torch.Tensor) and told.numel() * 4 <= 2 * 400 + size
        assert not bool((rollout.streams.terminated | rollout.streams.truncated).any())
    assert list(records(path)) == [4, 8, 12], "one is told of each, in part"


# ---- what is expected in them


@pytest.mark.parametrize("system", ["flat-ppo", "ppoc", "feudal"])
def test_values_are_noted_in_greedy_and_training_episodes(tmp_path: Path, system: str) -> None:
    """With those of what came last, and their advantages are the ones that are learned from."""
    cls, known = index.load(system), {**PPO, "limit": 30}
    if system == "feudal":
        known = {name: x for name, x in known.items() if name not in ("minibatch", "epochs", "hidden")}
        known |= {"hidden": 6, "size": 4, "radius": 2, "horizon": 3, "embedding": 2}
    config = cls.Config(**known)
    path = run.train(cls, config, tmp_path / "run", device="cpu", threads=1, say=lambda line: None)
    assert path is not None
    agent, _ = run.load_agent(cls, path)
    for name in ("step_000000012", "trained_000000012"):
        rollout = Rollout.load(path / "rollouts" / name)
        for level, d in rollout.decisions.items():
            assert (VALUE in d.values) != (EXPECTED in d.values), "noted by the level, or afterwards"
            assert bool(d.values.get(VALUE, d.values.get(EXPECTED)).isfinite().all()), (name, level)
            assert bool(torch.as_tensor(rollout.streams.labels[AFTER + level]).isfinite().all())
            assert (BONUS in d.values) == (system == "feudal" and level == "action")
    if system != "feudal":
        with torch.no_grad():
            trained = agent.credited(greedy := Rollout.load(path / "rollouts" / "step_000000012"))
        d, labels = greedy.decisions["action"], greedy.streams.labels
        after = torch.where(greedy.streams.terminated, 0, torch.as_tensor(labels[AFTER + "action"]))
        exact = gae(
            greedy.spans["stream"], reward=greedy.reward_sum(), value=d.values[EXPECTED][torch.argsort(d.start)],
            gamma=0.99, lam=0.95, final_value=after,
        )  # fmt: skip
        if system == "flat-ppo":
            torch.testing.assert_close(trained["advantage"], exact.advantage)
        assert greedy.meta["credit"]["action"] == {"gamma": 0.99, "lam": 0.95}
