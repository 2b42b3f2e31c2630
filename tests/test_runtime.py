"""The fast path is chosen once, is as accurate as promised, and is the same for a resumed run."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from forked import run_forked

from echelon.errors import UsageError
from echelon.training import runtime
from echelon.training.runtime import Probe, Runtime, cache_file, choose, cpu_class, free_cores, probe_matmul


@pytest.fixture(autouse=True)
def private_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.mark.parametrize(
    ("highest_s", "medium_s", "medium_error", "mode"),
    [
        (2.2, 1.0, 1e-4, "medium"),
        (1.06, 1.0, 1e-4, "medium"),
        (1.04, 1.0, 1e-4, "highest"),
        (0.5, 1.0, 1e-4, "highest"),
        (9.0, 1.0, 3.6e-1, "highest"),  # bfloat16 in disguise
    ],
)
def test_the_probe_takes_what_is_faster_and_accurate(highest_s, medium_s, medium_error, mode):
    probe = Probe(highest_s, medium_s, 4e-5, medium_error)
    assert probe.mode == mode
    assert ("faster here with float32 accuracy" in probe.explain()) == (mode == "medium")


def test_the_probe_measures_and_leaves_no_trace():
    torch.set_float32_matmul_precision("highest")
    probe = probe_matmul(repeats=2)
    assert probe.highest_s > 0
    assert probe.medium_s > 0
    assert 0 < probe.highest_error < 1e-3
    assert torch.get_float32_matmul_precision() == "highest"


def test_the_chosen_mode_is_float32_accurate_forward_and_backward():
    generator = torch.Generator().manual_seed(3)
    x, w, g = (torch.randn(512, 512, generator=generator) for _ in range(3))
    with choose("cpu").active():
        leaf, weight = x.clone().requires_grad_(), w.clone().requires_grad_()
        y = torch.nn.functional.linear(leaf, weight)
        y.backward(g)
    assert leaf.grad is not None
    assert weight.grad is not None
    for found, exact in (
        (y, x.double() @ w.double().T),
        (leaf.grad, g.double() @ w.double()),
        (weight.grad, g.double().T @ x.double()),
    ):
        assert (found.double() - exact).abs().max() < 1e-3


def test_the_decision_is_remembered_and_shared(monkeypatch):
    chosen = choose("cpu")
    known = json.loads(cache_file().read_text())
    assert [entry["matmul"] for entry in known.values()] == [chosen.matmul]
    assert list(known) == [f"{cpu_class()} | torch {torch.__version__}"]
    monkeypatch.setattr(runtime, "probe_matmul", lambda: pytest.fail("probed again"))
    assert choose("cpu") == chosen
    other = "highest" if chosen.matmul == "medium" else "medium"
    known[next(iter(known))] = {"matmul": other, "why": "because"}
    cache_file().write_text(json.dumps(known))
    assert choose("cpu").matmul == other
    assert "because" in choose("cpu").describe()


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"a": 1}', '{"a": {"matmul": "low", "why": ""}}'])
def test_a_damaged_memory_is_replaced(text):
    cache_file().parent.mkdir(parents=True)
    cache_file().write_text(text)
    assert choose("cpu").matmul in ("highest", "medium")
    assert len(json.loads(cache_file().read_text())) == 1


def test_a_home_that_cannot_be_written_only_costs_the_memory(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert choose("cpu").matmul in ("highest", "medium")


def test_processes_that_start_together_agree(tmp_path, monkeypatch):
    """The probe is made to answer differently in each process: still both write down the same mode."""
    modes = []
    for number, (fast, slow) in enumerate([(1.0, 2.0), (2.0, 1.0)]):

        def body(number: int = number, fast: float = fast, slow: float = slow) -> None:
            monkeypatch.setattr(runtime, "probe_matmul", lambda: Probe(slow, fast, 1e-5, 1e-5))
            (tmp_path / f"mode-{number}").write_text(choose("cpu").matmul)

        assert run_forked(body) == 0
        modes.append((tmp_path / f"mode-{number}").read_text())
    assert modes == ["medium", "medium"]


def identity(**changes: object) -> dict[str, object]:
    return {**choose("cpu").identity(), **changes}


@pytest.mark.parametrize("mode", ["highest", "high", "medium"])
def test_a_resumed_run_computes_as_it_was_started(mode):
    resumed = choose("cpu", recorded=identity(matmul=mode, threads=3))
    assert (resumed.matmul, resumed.threads, resumed.precision) == (mode, 3, "float32")
    assert "as the run was started" in resumed.describe()
    assert "not bit-equal" not in resumed.describe()
    assert resumed.identity() == identity(matmul=mode, threads=3)


def test_a_run_resumed_elsewhere_is_told_what_differs():
    moved = choose("cpu", recorded=identity(cpu="Other CPU", matmul="high"))
    assert moved.matmul == choose("cpu").matmul
    assert "not bit-equal" in moved.describe()
    assert "cpu was Other CPU" in moved.describe()
    assert "threads was 1, is 2" in choose("cpu", threads=2, recorded=identity()).describe()
    moved = choose("cpu", recorded=identity(device="cuda", matmul="high", gpu="H"))
    assert moved.matmul == choose("cpu").matmul
    assert "device was cuda, is cpu" in moved.describe()


def test_the_same_identity_gives_the_same_bits(tmp_path):
    """In two processes, forward, backward and optimiser together."""

    def body(file: Path) -> None:
        with choose("cpu").active() as chosen:
            torch.manual_seed(0)
            layers = torch.nn.Linear(20, 256), torch.nn.GELU(), torch.nn.LayerNorm(256), torch.nn.Linear(256, 3)
            net = torch.nn.Sequential(*layers)
            adam = chosen.adam(net.parameters(), 1e-3)
            for _ in range(5):
                loss = net(torch.randn(256, 20)).square().mean()
                adam.zero_grad()
                loss.backward()
                adam.step()
        file.write_text(" ".join(p.double().sum().item().hex() for p in net.parameters()))

    files = tmp_path / "a", tmp_path / "b"
    for file in files:
        assert run_forked(lambda file=file: body(file)) == 0
    assert files[0].read_text() == files[1].read_text()


def test_settings_hold_inside_and_come_back(monkeypatch):
    torch.set_float32_matmul_precision("highest")
    threads = torch.get_num_threads()
    chosen = Runtime(torch.device("cpu"), "float32", "medium", 2, "x")
    with pytest.raises(ValueError, match="x"), chosen.active():
        assert torch.get_float32_matmul_precision() == "medium"
        assert torch.get_num_threads() == 2
        raise ValueError("x")
    assert torch.get_float32_matmul_precision() == "highest"
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(
    ("load", "cores", "free"),
    [(0.0, 2, 2), (0.4, 2, 2), (1.0, 2, 1), (1.9, 2, 1), (9.0, 2, 1), (3.2, 16, 13), (-1, 4, 4)],
)
def test_threads_leave_the_loaded_cores_alone(load, cores, free):
    assert free_cores(load, cores) == free


def test_threads_come_from_the_request_then_the_environment_then_the_load(monkeypatch):
    assert choose("cpu", threads=5).threads == 5
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert choose("cpu").threads == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "")
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3})
    assert choose("cpu").threads == 4
    assert "4 cores at load 0.0" in choose("cpu").describe()


def test_bfloat16_is_asked_for_and_needs_the_hardware(monkeypatch):
    assert choose("cpu").precision == "float32"
    monkeypatch.setattr(runtime, "cpu_class", lambda: "Some CPU, family 1 model 1, avx2 avx512_bf16")
    chosen = choose("cpu", precision="bfloat16")
    with chosen.autocast():
        y = torch.nn.functional.linear(torch.ones(2, 3), torch.ones(4, 3))
    assert y.dtype == torch.bfloat16
    with choose("cpu").autocast():
        assert torch.nn.functional.linear(torch.ones(2, 3), torch.ones(4, 3)).dtype == torch.float32
    assert choose("cpu", recorded=chosen.identity()).precision == "bfloat16"
    monkeypatch.setattr(runtime, "cpu_class", lambda: "Some CPU, family 1 model 1, avx2")
    with pytest.raises(UsageError, match="use precision float32"):
        choose("cpu", precision="bfloat16")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"device": "tpu7"}, "device 'tpu7'"),
        ({"device": "meta"}, "device 'meta' is not supported"),
        ({"device": "cuda:99"}, "device 'cuda:99' is not there"),
        ({"precision": "float16"}, "precision 'float16' is unknown; valid: auto, float32, bfloat16"),
        ({"threads": 0}, "threads = 0"),
    ],
)
def test_wrong_requests_are_named(wrong, message):
    with pytest.raises(UsageError, match=message):
        choose(**wrong)


def test_adam_is_fused_and_equals_the_textbook():
    weights = [torch.tensor([1.0, -2.0], requires_grad=True), torch.tensor([[0.5]], requires_grad=True)]
    expected = [weight.detach().double().clone() for weight in weights]
    moments = [(torch.zeros_like(e), torch.zeros_like(e)) for e in expected]
    adam = choose("cpu").adam(weights, lr=0.1)
    assert adam.defaults["fused"]
    for step in range(1, 4):
        adam.zero_grad()
        sum((weight**3).sum() for weight in weights).backward()
        adam.step()
        for i, e in enumerate(expected):
            gradient = 3 * e**2
            m = 0.9 * moments[i][0] + 0.1 * gradient
            v = 0.999 * moments[i][1] + 0.001 * gradient**2
            moments[i] = (m, v)
            expected[i] = e - 0.1 * (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)).sqrt() + 1e-8)
    for weight, e in zip(weights, expected, strict=True):
        torch.testing.assert_close(weight.detach().double(), e, rtol=1e-6, atol=1e-6)


def test_adam_falls_back_where_the_fused_kernel_does_not_apply():
    weight = torch.zeros(2, dtype=torch.complex64, requires_grad=True)
    adam = choose("cpu").adam([weight], lr=0.1)
    (weight - 1).abs().square().sum().backward()
    adam.step()
    assert not adam.defaults["fused"]
    assert weight.detach().abs().min() > 0.05


@pytest.mark.parametrize("weight", [0.0, 0.005, 1.0])
def test_lerp_moves_every_target(weight):
    targets = [torch.randn(3, 2), torch.randn(4)]
    sources = [torch.randn(3, 2, requires_grad=True), torch.randn(4, requires_grad=True)]
    expected = [(1 - weight) * t + weight * s.detach() for t, s in zip(targets, sources, strict=True)]
    choose("cpu").lerp_(targets, sources, weight)
    torch.testing.assert_close(targets, expected)
    choose("cpu").lerp_([], [], weight)


def test_the_identity_is_plain_json_and_the_description_one_line():
    chosen = choose("cpu")
    assert json.loads(json.dumps(chosen.identity())) == chosen.identity()
    assert set(chosen.identity()) == {"torch", "cpu", "device", "gpu", "threads", "matmul", "precision"}
    assert "\n" not in chosen.describe()
    assert chosen.describe().startswith("cpu, 1 thread, float32, matmul ")
    assert cpu_class() == cpu_class() != ""


def test_a_machine_without_cpuinfo_still_has_a_class(monkeypatch):
    def absent(self: Path, *rest: object, **named: object) -> str:
        raise FileNotFoundError(self)

    monkeypatch.setattr(Path, "read_text", absent)
    assert cpu_class() != ""


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_takes_tf32_fused_adam_and_bfloat16_on_request():
    chosen = choose()
    assert chosen.device.type == "cuda"
    assert (chosen.matmul, chosen.precision) == ("high", "float32")
    assert chosen.identity()["gpu"] == torch.cuda.get_device_name()
    assert choose(recorded=chosen.identity()).describe().count("not bit-equal") == 0
    weight = torch.randn(64, 64, device="cuda", requires_grad=True)
    adam = chosen.adam([weight], 1e-2)
    assert adam.defaults["fused"]
    with chosen.active(), choose(precision="bfloat16").autocast():
        y = torch.randn(8, 64, device="cuda") @ weight
    assert y.dtype == torch.bfloat16
    y.float().square().sum().backward()
    adam.step()
    chosen.lerp_([torch.zeros_like(weight)], [weight], 0.5)
