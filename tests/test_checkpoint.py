"""A checkpoint is whole or absent: faults of every kind, and exact round trips."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import resource
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from forked import die_at, run_forked
from hypothesis import given
from hypothesis import strategies as st

from echelon.errors import CheckpointError, UsageError
from echelon.training import checkpoint
from echelon.training.checkpoint import RunLock, flatten, latest, load, save, unflatten, write_json
from echelon.training.seeding import random_states, restore_random_states


def contents(step: int) -> tuple[dict[str, torch.Tensor], dict]:
    generator = torch.Generator().manual_seed(step)
    tensors = {"w": torch.randn(5, 7, generator=generator), "generator": generator.get_state()}
    return tensors, {"step": step, "loss": 0.1 * step, "names": ["a", "b"]}


def save_step(run: Path, step: int, keep: int = 2) -> Path:
    return save(run, step, *contents(step), keep=keep)


def assert_is_step(found: checkpoint.Checkpoint | None, step: int) -> None:
    assert found is not None
    tensors, state = contents(step)
    assert found.step == step
    assert found.state == state
    assert found.tensors.keys() == tensors.keys()
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in tensors.items())


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def test_saves_names_prunes_and_points_to_the_latest(tmp_path):
    for step in (5, 10, 15):
        path = save_step(tmp_path, step)
    assert path == tmp_path / "checkpoints" / "step_000000015"
    assert names(tmp_path) == ["latest", "step_000000010", "step_000000015"]
    assert (tmp_path / "checkpoints" / "latest").read_text() == "step_000000015\n"
    assert_is_step(latest(tmp_path), 15)
    assert_is_step(load(tmp_path / "checkpoints" / "step_000000010"), 10)
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["step"] == 15
    assert manifest["torch"] == torch.__version__
    assert manifest["files"]["state.safetensors"]["bytes"] == (path / "state.safetensors").stat().st_size


def test_a_run_without_checkpoints_has_no_latest(tmp_path):
    assert latest(tmp_path) is None
    assert latest(tmp_path / "absent") is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool])
def test_every_kind_of_tensor_comes_back_exactly(tmp_path, dtype):
    base = torch.arange(24).to(dtype).reshape(4, 6)
    tensors = {
        "whole": base,
        "same": base,
        "view": base[1:3],
        "transposed": base.T,
        "scalar": base[1, 1],
        "empty": base[:0],
        "expanded": base[:1].expand(3, 6),
    }
    save(tmp_path, 1, tensors, {})
    found = latest(tmp_path)
    assert found is not None
    for name, tensor in tensors.items():
        assert found.tensors[name].dtype == dtype
        assert torch.equal(found.tensors[name], tensor)
        found.tensors[name].zero_()  # neither mapped read-only nor shared


def test_saving_a_step_again_replaces_it(tmp_path):
    save(tmp_path, 3, {"w": torch.zeros(2)}, {"round": 1})
    save(tmp_path, 3, {"w": torch.ones(2)}, {"round": 2})
    found = latest(tmp_path)
    assert found is not None
    assert found.state == {"round": 2}
    assert names(tmp_path) == ["latest", "step_000000003"]


def test_a_killed_save_leaves_the_previous_or_the_new_checkpoint(tmp_path):
    for again in (False, True):
        new = 2 if again else 3
        for count in range(1, 100):
            run = tmp_path / f"{again}-{count}"
            save_step(run, 1)
            save_step(run, 2)

            def body(run: Path = run, new: int = new, count: int = count) -> None:
                die_at(count)
                save_step(run, new)

            code = run_forked(body)
            found = latest(run)
            assert found is not None
            assert_is_step(found, found.step)
            assert found.step in (2, new)
            assert not found.refused
            save_step(run, 4)
            assert not [name for name in names(run) if name.endswith((".tmp", ".old"))]
            assert_is_step(latest(run), 4)
            if code == 0:
                break
        assert count > 15, "the shim saw too few operations to be counting them"
        assert code == 0


def test_truncated_files_are_refused_by_name_and_the_previous_is_used(tmp_path):
    save_step(tmp_path, 1)
    newest = save_step(tmp_path, 2)
    chosen = random.Random(0)
    for name in ("state.safetensors", "state.json", "manifest.json"):
        whole = (newest / name).read_bytes()
        for length in {0, 1, len(whole) - 1, *(chosen.randrange(len(whole)) for _ in range(8))}:
            (newest / name).write_bytes(whole[:length])
            found = latest(tmp_path)
            assert_is_step(found, 1)
            assert found is not None
            assert len(found.refused) == 1
            assert str(newest / name) in found.refused[0]
        (newest / name).unlink()
        assert_is_step(latest(tmp_path), 1)
        (newest / name).write_bytes(whole)
    assert_is_step(latest(tmp_path), 2)


def test_no_flipped_byte_goes_unnoticed(tmp_path):
    newest = save_step(tmp_path, 2)
    chosen = random.Random(1)
    for name in ("state.safetensors", "state.json", "manifest.json"):
        whole = (newest / name).read_bytes()
        for _ in range(50):
            damaged = bytearray(whole)
            damaged[chosen.randrange(len(whole))] ^= 1 << chosen.randrange(8)
            (newest / name).write_bytes(damaged)
            try:
                found = load(newest)
            except CheckpointError as error:
                assert str(newest / name) in str(error)
            else:  # white space inside the manifest
                assert_is_step(found, 2)
        (newest / name).write_bytes(whole)


def test_when_every_checkpoint_is_damaged_the_run_does_not_start_over_silently(tmp_path):
    for step in (1, 2):
        (save_step(tmp_path, step) / "state.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"(?s)step_000000002.*step_000000001"):
        latest(tmp_path)


def test_a_damaged_later_checkpoint_does_not_crowd_out_the_good_ones(tmp_path):
    save_step(tmp_path, 10)
    (save_step(tmp_path, 20) / "state.json").write_text("{}")
    save_step(tmp_path, 15, keep=1)
    assert names(tmp_path) == ["latest", "step_000000015"]


def seal(path: Path, manifest: dict) -> None:
    """Write a manifest whose own checksum is right, as someone who wants to deceive the reader would."""
    manifest.pop("sha256", None)
    (path / "manifest.json").write_text(json.dumps({**manifest, "sha256": checkpoint._digest_of(manifest)}))


def reseal(path: Path) -> None:
    """Make the manifest agree with files that were exchanged."""
    manifest = json.loads((path / "manifest.json").read_text())
    for name, entry in manifest["files"].items():
        content = (path / name).read_bytes()
        entry.update(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
    seal(path, manifest)


def test_unknown_formats_are_named(tmp_path):
    path = save_step(tmp_path, 1)
    seal(path, {**json.loads((path / "manifest.json").read_text()), "format": 99})
    with pytest.raises(CheckpointError, match="format 99, this echelon reads format 1"):
        load(path)


@pytest.mark.parametrize(
    "wrong",
    [
        {"files": {}},
        {"files": []},
        {"files": {"../../secret": {}}},
        {"files": {"state.safetensors": 1, "state.json": 2}},
        {"files": {"state.safetensors": {}, "state.json": {}}},
        {"step": "1"},
        {"step": None},
    ],
)
def test_a_forged_manifest_is_refused(tmp_path, wrong):
    path = save_step(tmp_path, 1)
    seal(path, {**json.loads((path / "manifest.json").read_text()), **wrong})
    with pytest.raises(CheckpointError, match=str(path)):
        load(path)


def test_forged_contents_are_refused_without_a_crash(tmp_path):
    """Even with matching checksums: headers that lie about offsets, sizes and types, and JSON of every wrong kind."""
    path = save_step(tmp_path, 1)
    whole = (path / "state.safetensors").read_bytes()
    chosen = random.Random(2)
    header = 8 + int.from_bytes(whole[:8], "little")
    for _ in range(300):
        forged = bytearray(whole)
        for _ in range(chosen.randrange(1, 4)):
            forged[chosen.randrange(header)] = chosen.randrange(256)
        (path / "state.safetensors").write_bytes(forged[: chosen.choice([None, None, chosen.randrange(len(whole))])])
        reseal(path)
        with contextlib.suppress(CheckpointError):
            assert all(isinstance(tensor.sum().item(), (int, float)) for tensor in load(path).tensors.values())
    (path / "state.safetensors").write_bytes(whole)
    for text in ("", "[]", "3", "{", "[" * 100_000, '"x"'):
        (path / "state.json").write_text(text)
        reseal(path)
        with pytest.raises(CheckpointError):
            load(path)


def test_a_full_disk_is_reported_and_harms_nothing(tmp_path):
    save_step(tmp_path, 1)
    before = contents(2)[0]

    def body() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        big = torch.zeros(100_000)
        with pytest.raises(CheckpointError, match=r"step_000000002.*MiB are needed.*Earlier checkpoints are intact"):
            save(tmp_path, 2, {**before, "big": big}, {})
        assert names(tmp_path) == ["latest", "step_000000001"]
        assert torch.equal(big, torch.zeros(100_000))

    assert run_forked(body) == 0
    assert_is_step(latest(tmp_path), 1)
    save_step(tmp_path, 2)
    assert_is_step(latest(tmp_path), 2)


def test_a_read_only_directory_is_reported():
    root = Path(tempfile.mkdtemp())
    try:
        run = root / "run"
        save_step(run, 1)
        for path in (root, run, run / "checkpoints"):
            path.chmod(0o555)

        def body() -> None:
            if os.geteuid() == 0:
                os.setuid(65534)
            with pytest.raises(CheckpointError, match=r"Permission denied; .*checkpoints is not writable"):
                save_step(run, 2)
            with pytest.raises(CheckpointError, match="new: Permission denied; choose a writable one"):
                RunLock(root / "new").__enter__()
            assert_is_step(latest(run), 1)

        assert run_forked(body) == 0
    finally:
        for path in (root, run, run / "checkpoints"):
            path.chmod(0o755)
        shutil.rmtree(root)


@pytest.mark.parametrize("state", [{"a": (1, 2)}, {"a": {1: 2}}, {"a": [np.float32(1)]}, {"a": Path("x")}])
def test_states_that_json_would_change_are_refused(tmp_path, state):
    with pytest.raises(CheckpointError, match=r"state\.a"):
        save(tmp_path, 1, {}, state)
    assert not (tmp_path / "checkpoints").exists()


def test_keeping_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(UsageError, match="keep = 0"):
        save(tmp_path, 1, {}, {}, keep=0)


def test_the_lock_refuses_a_second_process_and_names_the_first(tmp_path):
    with RunLock(tmp_path):

        def body() -> None:
            with pytest.raises(UsageError, match=f"process {os.getppid()} is writing the run {tmp_path}"):
                RunLock(tmp_path).__enter__()

        assert run_forked(body) == 0
    with RunLock(tmp_path):
        pass


def test_the_lock_of_a_killed_process_is_free(tmp_path):
    def body() -> None:
        RunLock(tmp_path).__enter__()
        os.kill(os.getpid(), 9)

    assert run_forked(body) == -9
    with RunLock(tmp_path):
        pass


leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(),
    st.lists(st.integers(0, 9), max_size=3).map(torch.tensor),
)
keys = st.one_of(st.text(max_size=3), st.integers(), st.sampled_from(["$tensor", "$tuple", "$items"]))
trees = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(keys, inner, max_size=3),
    ),
    max_leaves=12,
)


def same(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor) or isinstance(b, torch.Tensor):
        return isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) and torch.equal(a, b)
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


@given(trees)
def test_flatten_and_unflatten_are_inverse_through_json(tree):
    tensors, description = flatten(tree, "root")
    assert same(unflatten(tensors, json.loads(json.dumps(description))), tree)


def test_flatten_keeps_tensors_apart_whose_paths_look_alike():
    tree = {"a.b": torch.zeros(1), "a": {"b": torch.ones(1)}, 1: torch.full((1,), 2.0), "1": torch.full((1,), 3.0)}
    assert same(unflatten(*flatten(tree)), tree)


def test_flatten_refuses_what_it_cannot_store():
    with pytest.raises(CheckpointError, match=r"opt\.hook: function"):
        flatten({"hook": lambda: None}, "opt")


def train(model: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        loss = (model(torch.randn(8, 4)) * random.random() * np.random.rand() - np.random.randn()).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def test_a_resumed_training_is_bit_equal(tmp_path):
    def build() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 1))
        return model, torch.optim.Adam(model.parameters(), lr=0.01, fused=True)

    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    model, optimizer = build()
    train(model, optimizer, 5)
    weights, weight_tree = flatten(model.state_dict(), "model")
    moments, moment_tree = flatten(optimizer.state_dict(), "adam")
    generators, generator_tree = flatten(random_states(), "random")
    state = {"model": weight_tree, "adam": moment_tree, "random": generator_tree}
    save(tmp_path, 5, {**weights, **moments, **generators}, state)
    train(model, optimizer, 5)

    resumed, resumed_optimizer = build()
    found = latest(tmp_path)
    assert found is not None
    resumed.load_state_dict(unflatten(found.tensors, found.state["model"]))
    resumed_optimizer.load_state_dict(unflatten(found.tensors, found.state["adam"]))
    restore_random_states(unflatten(found.tensors, found.state["random"]))
    train(resumed, resumed_optimizer, 5)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), resumed.parameters(), strict=True))


def test_json_files_are_replaced_whole(tmp_path):
    file = tmp_path / "result.json"
    write_json(file, {"a": 1})
    for count in range(1, 6):

        def body(count: int = count) -> None:
            die_at(count)
            write_json(file, {"a": 2})

        run_forked(body)
        assert json.loads(file.read_text()) in ({"a": 1}, {"a": 2})
    write_json(file, {"a": 3})
    assert json.loads(file.read_text()) == {"a": 3}
    with pytest.raises(CheckpointError, match="absent"):
        write_json(tmp_path / "absent" / "result.json", {})
