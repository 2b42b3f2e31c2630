"""MoCapAct against numbers by hand and a naive reference: weights, divergence, loss, frames; the transfer's levels."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import offline_mocapact as reference
from small_runs import synthetic_store, tiny_world
from torch import Tensor

from echelon.data.clips import ClipSource
from echelon.data.store import Store, write_store
from echelon.envs.spaces import Spaces
from echelon.errors import DataError, UsageError
from echelon.hierarchy.latents import DecodeLevel
from echelon.losses.weights import exponential_weights, mean_one_offset
from echelon.nets.latents import LatentEncoder, prior_kl
from echelon.systems import index
from echelon.systems.offline.mocapact import ClipRun, MoCapAct, MoCapActConfig, gaussian_log_prob, row_weights
from echelon.systems.online.mocapact_transfer import MoCapActTransfer, steps_to_half
from echelon.systems.online.scratch_ppo import ScratchPPO
from echelon.training.agent import DataSpec, build_agent
from echelon.training.runtime import choose
from echelon.training.stages import StageResult

SMALL: dict[str, Any] = {"latent": 3, "encoder_hidden": (6, 5), "decoder_hidden": (7, 4), "sequence": 4, "frames": 2}


def exact(**changes: Any) -> MoCapAct:
    """A small agent in float64."""
    config = MoCapActConfig(**SMALL | {"batch_size": 5} | changes)
    agent = build_agent(MoCapAct, config, DataSpec(2, 3)).double()
    with torch.no_grad():
        for p in agent.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()), dtype=p.dtype))
    return agent


def clip_store(folder: Path, episodes: int = 3, length: int = 9) -> Store:
    """Random columns such as those of clips; row r of an episode has the frame 100 e + r in its references."""
    draw = np.random.default_rng(3)
    rows = episodes * (length + 1)
    at = np.arange(rows)
    columns = {
        "observations": draw.standard_normal((rows, 2)),
        "actions": draw.uniform(-1, 1, (rows, 3)),
        "mean_actions": draw.uniform(-1, 1, (rows, 3)),
        "references": np.stack([at // (length + 1) * 100 + at % (length + 1), draw.standard_normal(rows)], 1),
        "values": draw.uniform(5, 10, rows),
        "advantages": draw.uniform(-9, 0, rows),
        "clip_returns": np.repeat(draw.uniform(0, 1, episodes), length + 1),
    }
    floats = {name: column.astype(np.float32) for name, column in columns.items()}
    piece = floats | {"terminals": at % (length + 1) == length}
    return Store.open(write_store(folder, [piece], rows, {"name": folder.name}, "drawn"))


# --- by hand


@pytest.mark.parametrize(
    ("scores", "temperature", "offset", "expected"),
    [
        ((0.5, 0.7, 0.9), 0.2, 0.761799, (0.270092, 0.734185, 1.995723)),
        ((-1.0, 0.0, 3.0), 8.0, 0.85285, (0.793258, 0.89888, 1.307862)),
        ((10.0, 12.0, 8.0), 4.0, 10.32663, (0.921588, 1.519441, 0.558971)),
    ],
)
def test_weights_by_hand(
    scores: tuple[float, ...], temperature: float, offset: float, expected: tuple[float, ...]
) -> None:
    x = torch.tensor(scores, dtype=torch.float64)
    assert float(mean_one_offset(x, temperature)) == pytest.approx(offset, abs=1e-5)
    found = exponential_weights(x, temperature)
    assert found.tolist() == pytest.approx(expected, abs=1e-5) and float(found.mean()) == pytest.approx(1)
    assert exponential_weights(x, temperature, 1.0).tolist() == pytest.approx([min(w, 1.0) for w in expected], abs=1e-5)


def test_divergence_and_loss_by_hand() -> None:
    mean, std, before = (torch.tensor(x, dtype=torch.float64) for x in ((0.2, -0.1), (0.5, 0.8), (1.0, -1.0)))
    assert float(prior_kl(mean, std, before, 0.0)) == pytest.approx(0.386291, abs=1e-6)
    assert float(prior_kl(mean, std, before, 0.95)) == pytest.approx(8.742234, abs=1e-6)
    likely = gaussian_log_prob(torch.tensor([0.1, 0.2]) - torch.tensor([0.0, 0.3]), 0.1)
    assert float(likely) == pytest.approx(1.767293, abs=1e-5)
    assert float(0.1 * prior_kl(mean, std, before, 0.0) - likely) == pytest.approx(-1.728664, abs=1e-5)


def test_one_step_by_hand_through_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """An encoder that always says mean (.2, -.1) and std (.5, .8), and a decoder that always says (0, .3)."""
    agent = build_agent(MoCapAct, MoCapActConfig(latent=2, encoder_hidden=(2,), decoder_hidden=(2,)), DataSpec(1, 2))
    with torch.no_grad():
        for p in agent.parameters():
            p.zero_()
        agent.encoder.layers[-1].bias.copy_(torch.tensor([0.2, -0.1, math.log(0.5), math.log(0.8)]))
        agent.decoder.mlp.layers[-1].bias.copy_(torch.tensor([0.0, 0.3]))
    one = torch.ones(1, 1)
    batch = {
        "states": one[..., None],
        "frames": torch.ones(1, 1, 5),
        "means": torch.tensor([[[0.1, 0.2]]]),
        "real": one,
        "weights": one,
        "start": torch.tensor([[1.0, -1.0]]),
        "noise": torch.randn(1, 1, 2),
    }
    assert float(agent.loss(batch)[0]) == pytest.approx(-1.728664, abs=1e-5)


# --- against the reference


scores = st.lists(st.floats(-30, 30), min_size=1, max_size=20)


@given(scores, st.floats(0.2, 20))
def test_weights_are_those_of_plain_sums(x: list[float], temperature: float) -> None:
    found = exponential_weights(torch.tensor(x, dtype=torch.float64), temperature)
    assert np.allclose(found.numpy(), reference.weights(np.array(x), temperature), rtol=1e-9)
    assert float(found.mean()) == pytest.approx(1)
    shifted = exponential_weights(torch.tensor(x, dtype=torch.float64) + 3, temperature)
    assert np.allclose(found.numpy(), shifted.numpy())


@given(st.integers(0, 10_000), st.floats(0, 0.98))
def test_the_divergence_is_that_of_two_gaussians(seed: int, rho: float) -> None:
    draw = np.random.default_rng(seed)
    mean, before = draw.standard_normal((2, 4))
    std = draw.uniform(0.05, 3, 4)
    found = prior_kl(*(torch.from_numpy(x) for x in (mean, std, before)), rho)
    assert float(found) == pytest.approx(reference.kl(mean, std, before, rho), rel=1e-9)
    scale = np.full(4, math.sqrt(1 - rho**2))
    assert float(prior_kl(*(torch.from_numpy(x) for x in (rho * before, scale, before)), rho)) == pytest.approx(
        0, abs=1e-9
    )


def layers_of(agent: MoCapAct) -> dict[str, Any]:
    """Encoder and decoder as the reference takes them."""
    e, d = agent.encoder, agent.decoder.mlp
    first = {"weight": torch.cat([e.look.weight, e.recall.weight], 1), "bias": e.look.bias}
    decoder = [{"weight": layer.weight, "bias": layer.bias} for layer in d.layers]
    for layer, norm in zip(decoder, d.norms, strict=False):
        layer |= {"norm_weight": norm.weight, "norm_bias": norm.bias}
    encoder = [first, *({"weight": layer.weight, "bias": layer.bias} for layer in e.layers)]
    plain = lambda layers: [{k: v.detach().numpy() for k, v in layer.items()} for layer in layers]  # noqa: E731
    return {"encoder": plain(encoder), "decoder": plain(decoder)}


@pytest.mark.parametrize(("rho", "beta"), [(0.0, 0.1), (0.95, 0.3)])
def test_the_loss_and_its_gradients_are_those_of_the_reference(tmp_path: Path, rho: float, beta: float) -> None:
    agent = exact(rho=rho, beta=beta)
    batch = agent.prepare(sequences(clip_store(tmp_path / "clips"), agent.config))
    found, _ = agent.loss(batch)
    states, frames = (batch[name].transpose(0, 1) for name in ("states", "frames"))
    seen = torch.cat([agent.decoder.norm(states), agent.frames(frames)], -1).numpy()
    rows = {name: batch[name].transpose(0, 1).numpy() for name in ("means", "real", "weights", "noise")}
    rows |= {"seen": seen, "states": agent.decoder.norm(states).numpy(), "start": batch["start"].numpy()}
    hyper = {"rho": rho, "beta": beta, "std": 0.1}
    assert float(found) == pytest.approx(reference.loss(layers_of(agent), rows, hyper), rel=1e-9)
    assert 0 < float(rows["real"].mean()) < 1, "some sequences are to end with their episode"
    found.backward()
    for p in (agent.encoder.recall.weight, agent.encoder.layers[0].weight, agent.decoder.mlp.layers[0].bias):
        assert p.grad is not None
        place = np.unravel_index(int(p.grad.abs().argmax()), p.shape)
        values = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                p[place] += step
                values.append(reference.loss(layers_of(agent), rows, hyper))
                p[place] -= step
        assert float(p.grad[place]) == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-4)


@settings(max_examples=15)
@given(st.integers(1, 6), st.integers(1, 4), st.sampled_from([(3,), (4, 2), (3, 5, 2)]), st.integers(0, 99))
def test_along_a_sequence_is_step_by_step_and_so_are_the_gradients(
    steps: int, batch: int, hidden: tuple[int, ...], seed: int
) -> None:
    torch.manual_seed(seed)
    encoder = LatentEncoder(4, hidden, 2).double()
    with torch.no_grad():
        encoder.layers[-1].weight.mul_(30)  # standard deviations reach their bounds
    x, noise = torch.randn(steps, batch, 4).double().requires_grad_(), torch.randn(steps, batch, 2).double()
    start = torch.randn(batch, 2).double().requires_grad_()
    fused = encoder(x, start, noise)
    z, naive = start, []
    for t in range(steps):
        mean, std = encoder.step(x[t], z)
        naive.append((mean, std, mean + std * noise[t], z))
        z = naive[-1][2]
    parts = [torch.stack(column) for column in zip(*naive, strict=True)]
    mix = [torch.randn_like(part) for part in parts]
    inputs = [x, start, *encoder.parameters()]
    grads = [
        torch.autograd.grad(sum((m * p).sum() for m, p in zip(mix, found, strict=True)), inputs)  # type: ignore[arg-type]
        for found in (fused, parts)
    ]
    for one, other in zip((*fused, *grads[0]), (*parts, *grads[1]), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


# --- data


def sequences(store: Store, config: MoCapActConfig) -> dict[str, Tensor]:
    """The first batch of a run, in float64."""
    batch = ClipRun.batches(config, store, choose("cpu", "float32", 1)).next()
    return {name: x.double() if x.is_floating_point() else x for name, x in batch.items()}


def test_frames_are_those_of_the_clip_and_repeat_at_its_end(tmp_path: Path) -> None:
    store = clip_store(tmp_path / "clips")
    agent = exact()
    drawn = sequences(store, agent.config)
    batch = agent.prepare(drawn)
    rows = [store.episode(e) for e in range(store.episodes)]
    ended = 0
    for b, (states, real) in enumerate(zip(drawn["observations"].numpy(), drawn["real"], strict=True)):
        number = drawn["references"][b, 0, 0].item()
        episode, first = rows[int(number // 100)], int(number % 100)
        length = len(episode["terminals"]) - 1  # an episode's last observation is no transition
        for t in range(agent.config.sequence):
            assert bool(real[t]) == (first + t < length)
            if not real[t]:
                ended += 1
                continue
            clip = episode["references"][:length].astype(np.float64)
            expected = reference.frames(clip, episode["observations"].astype(np.float64), first + t, 2)
            assert np.allclose(batch["frames"][t, b], expected)
            assert np.allclose(batch["means"][t, b], episode["mean_actions"][first + t])
            assert np.allclose(states[t], episode["observations"][first + t])
    assert ended


@pytest.mark.parametrize("weighting", ["cwr", "awr", "rwr"])
def test_rows_are_weighted_with_mean_one_over_the_transitions(tmp_path: Path, weighting: Any) -> None:
    store = clip_store(tmp_path / "clips")
    config = MoCapActConfig(**SMALL, weighting=weighting)
    found = row_weights(store, config).numpy()
    columns, real = store.columns, ~store.columns["terminals"]
    score = {
        "cwr": columns["clip_returns"],
        "awr": columns["advantages"],
        "rwr": columns["values"].astype(float) + columns["advantages"],
    }[weighting]
    expected = reference.weights(np.asarray(score[real], float), {"cwr": 0.2, "awr": 8.0, "rwr": 4.0}[weighting])
    assert np.allclose(found[real], expected, rtol=1e-5) and found[real].mean() == pytest.approx(1, rel=1e-5)
    capped = row_weights(store, dataclasses.replace(config, weight_cap=1.2, temperature=0.5)).numpy()[real]
    warm = reference.weights(np.asarray(score[real], float), 0.5)
    assert np.allclose(capped, np.minimum(warm, 1.2), rtol=1e-5)
    batch = ClipRun.batches(config, store, choose("cpu", "float32", 1)).next()
    assert set(np.unique(batch["weights"])) <= set(np.unique(found))


def test_weights_without_their_columns_are_refused(tmp_path: Path) -> None:
    store = synthetic_store(tmp_path / "walks")
    with pytest.raises(DataError, match="weighting cwr needs the column 'clip_returns'; 'walks' has actions"):
        row_weights(store, MoCapActConfig(weighting="cwr"))
    with tiny_world(store):
        config = MoCapActConfig(**SMALL, batch_size=4)
        source = ClipRun.batches(config, store, choose("cpu", "float32", 1))
        assert isinstance(source, ClipSource) and "weights" not in source.next()


def test_a_config_that_makes_no_sense_is_refused_by_name() -> None:
    for wrong in ({"rho": 1.0}, {"weighting": "ppo"}, {"temperature": 0.0}, {"encoder_hidden": ()}, {"latent": 0}):
        with pytest.raises(UsageError, match=f"mocapact: {next(iter(wrong))} must be"):
            MoCapActConfig(**wrong)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="cap must be positive"):
        exponential_weights(torch.zeros(3), 1.0, 0.0)


# --- acting


def test_the_latent_before_is_remembered_and_zero_at_first() -> None:
    agent = exact()
    level = agent.levels()[0]
    s = torch.randn(2, 2, dtype=torch.float64)
    shown = torch.randn(2, 6, dtype=torch.float64)  # three frames, of which two are read
    features, memory = level.observe({"observation": s, "reference": shown}, level.start(2).double())
    seen = torch.cat([agent.decoder.norm(s), agent.frames(shown[:, :4] - s.repeat(1, 2))], -1)
    mean, _ = agent.encoder.step(seen, torch.zeros(2, 3, dtype=torch.float64))
    assert torch.equal(features["latent"], mean) and torch.equal(memory, mean)
    again, _ = level.observe({"observation": s, "reference": shown}, memory)
    assert torch.equal(again["latent"], agent.encoder.step(seen, mean)[0])
    goal, _ = level.observe({"observation": s, "goal": shown[:, :2]}, memory)
    held, _ = level.observe({"observation": s, "reference": shown[:, [0, 1, 0, 1]]}, memory)
    assert torch.equal(goal["latent"], held["latent"])
    with pytest.raises(ValueError, match="sizes differ: 2 numbers of frames are shown, the encoder reads 4"):
        level.observe({"observation": s, "reference": shown[:, :2]}, memory)


def test_a_decoder_needs_a_latent() -> None:
    with pytest.raises(UsageError, match="level 'action' decodes latents"):
        DecodeLevel(lambda s, z: z).decide({"observation": torch.zeros(1, 2)}, None, torch.ones(1, dtype=torch.bool))


# --- transfer


def test_the_transfer_takes_over_the_decoder_and_acts_within_bounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (index.load("mocapact"), index.load("mocapact-transfer")) == (MoCapAct, MoCapActTransfer)
    config = MoCapActTransfer.Config(hidden=(5,), latent=3, encoder_hidden=(6,), decoder_hidden=(7,))
    spaces = Spaces({"observation": (2,), "task": (1,)}, {}, None, (-1.0,) * 3, (0.5,) * 3)
    agent = build_agent(MoCapActTransfer, config, spaces)
    learned = build_agent(MoCapAct, config.distil_stage(), DataSpec(2, 3))
    with torch.no_grad():
        for p in learned.parameters():
            p.add_(1.0)
    monkeypatch.setattr("echelon.training.run.load_agent", lambda cls, path: (learned, 7))
    agent.build_on([StageResult("distil", tmp_path, {})])
    assert all(torch.equal(a, b) for a, b in zip(agent.decoder.parameters(), learned.decoder.parameters(), strict=True))
    assert not any(p.requires_grad for p in agent.decoder.parameters())
    moved = {id(p) for update in agent.updates() for module in update.modules for p in module.parameters()}
    assert moved.isdisjoint({id(p) for p in agent.decoder.parameters()})
    assert agent.actor.log_std.exp().tolist() == pytest.approx([2.5] * 3)
    policy, below = agent.levels(explore=True)
    assert (policy.name, below.name) == ("latent", "action")
    seen = {"observation": torch.randn(4, 2), "task": torch.randn(4, 1)}
    due = torch.ones(4, dtype=torch.bool)
    latent = 9 * torch.randn(4, 3)
    action = below.decide(seen, latent, due).action
    expected = agent.decoder(seen["observation"], latent.clamp(-3, 3)).clamp(-1.0, 0.5)
    assert torch.equal(action, expected)
    said = policy.decide(seen, None, due)
    assert said.action.shape == (4, 3) and said.log_prob is not None and set(said.values) == {"value"}


def test_states_of_other_sizes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = MoCapActTransfer.Config(hidden=(5,), latent=3, encoder_hidden=(6,), decoder_hidden=(7,))
    agent = build_agent(MoCapActTransfer, config, Spaces({"observation": (2,)}, {}, None, (-1.0,), (1.0,)))
    learned = build_agent(MoCapAct, config.distil_stage(), DataSpec(4, 1))
    monkeypatch.setattr("echelon.training.run.load_agent", lambda cls, path: (learned, 7))
    with pytest.raises(UsageError, match="states of metaworld-experts-v0 have 4 numbers, those of metaworld-door"):
        agent.build_on([StageResult("distil", tmp_path, {})])


def test_steps_until_half_of_the_episodes_succeed(tmp_path: Path) -> None:
    outcomes = [0, 1, 0, 0, 1, 1, 0, 1]
    rows = [{"step": k, "success": done, "environment_steps": 1000 * (k + 1)} for k, done in enumerate(outcomes)]
    (tmp_path / "episodes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = SimpleNamespace(path=tmp_path)
    assert float(steps_to_half(run, window=2)) == -2  # the first two: one of them
    assert float(steps_to_half(run, window=4)) == -5  # episodes 1 to 4: two of them
    assert float(steps_to_half(run, window=3)) == -6
    assert float(steps_to_half(run, window=9)) == -8, "never: all of it"
    (tmp_path / "episodes.jsonl").write_text('{"step": 0, "success": null, "environment_steps": 5}\n')
    with pytest.raises(DataError, match="no training episodes that tell"):
        steps_to_half(run)


def test_a_chosen_deviation_is_where_it_begins() -> None:
    spaces = Spaces({"observation": (2,)}, {}, None, (-1.0,), (1.0,))
    assert build_agent(ScratchPPO, ScratchPPO.Config(), spaces).actor.log_std.exp().item() == pytest.approx(0.5)
    with pytest.raises(UsageError, match="ppo-scratch: initial_std must be positive, got 0"):
        ScratchPPO.Config(initial_std=0.0)
    with pytest.raises(UsageError, match="acts with vectors of numbers; the environment has 3 actions"):
        ScratchPPO(ScratchPPO.Config(), Spaces({"observation": (2,)}, {}, 3))
