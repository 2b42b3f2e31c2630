"""How this machine computes fastest without computing wrongly: device, matmul kernel, precision, threads, fused steps.

`choose` decides, from a probe that runs once per machine and is remembered; `Runtime.active` puts the decision into
force. It is part of a run's identity: a resumed run hands its record back to `choose` and gets the same kernels.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import platform
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from echelon.errors import UsageError
from echelon.training.adam import Adam

PRECISIONS = ("auto", "float32", "bfloat16")
MATMUL_MODES = ("highest", "high", "medium")
_MIN_GAIN = 1.05  # "medium" has to be this much faster than "highest"
_MAX_ERROR = 1e-3  # of a product of unit normals over 512 terms; true float32 stays near 1e-4, bfloat16 near 0.4
_WIDE = 128 * 128  # numbers of a matrix from which on the matmul mode counts
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # parameters of glibc's mallopt
_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "bf16", "sve")


@dataclass(frozen=True)
class Runtime:
    """A decision about how to compute, with the reasons for it; made by `choose`."""

    device: torch.device
    precision: str
    matmul: str
    threads: int
    cpu: str
    reasons: tuple[str, ...] = ()

    @contextlib.contextmanager
    def active(self) -> Iterator[Runtime]:
        """Set torch's thread count and matmul mode for the body of a `with`, and put back what was there before."""
        _keep_freed_memory()
        threads, matmul = torch.get_num_threads(), torch.get_float32_matmul_precision()
        torch.set_num_threads(self.threads)
        torch.set_float32_matmul_precision(self.matmul)
        try:
            yield self
        finally:
            torch.set_num_threads(threads)
            torch.set_float32_matmul_precision(matmul)

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Context for forward passes: bfloat16 products over float32 weights if that was chosen, else nothing."""
        if self.precision == "bfloat16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return contextlib.nullcontext()

    def adam(
        self,
        params: Iterable[Tensor],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> Adam:
        """Adam with one fused kernel a step; for parameters that it does not take (not floating), the foreach form."""
        params = list(params)
        fused = all(torch.is_floating_point(p) and p.device.type in ("cpu", "cuda") for p in params)
        return Adam(params, lr, betas, eps, fused)

    @contextlib.contextmanager
    def fitting(self, networks: nn.Module) -> Iterator[None]:
        """Within it, products in the mode that suits `networks`: none but narrow layers are faster in "highest".

        Another mode costs some ten microseconds a product, which pays from layers of about 128 x 128 on.
        """
        narrow = all(p.shape[-2:].numel() < _WIDE for p in networks.parameters())
        before = torch.get_float32_matmul_precision()
        if narrow and self.device.type == "cpu":
            torch.set_float32_matmul_precision("highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)

    @torch.no_grad()
    def lerp_(self, targets: Sequence[Tensor], sources: Sequence[Tensor], weight: float) -> None:
        """targets <- (1 - weight) * targets + weight * sources, in one call for all tensors (Polyak averaging)."""
        if targets:
            torch._foreach_lerp_(list(targets), list(sources), weight)

    def describe(self) -> str:
        """One line for a person: what was chosen and why."""
        words = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        choice = f"{self.device}, {words}, {self.precision}, matmul {self.matmul}"
        return f"{choice} ({'; '.join(self.reasons)})" if self.reasons else choice

    def identity(self) -> dict[str, Any]:
        """What has to be equal for two runs to be bit-equal, as far as the machine decides it (plain JSON)."""
        return {
            "torch": str(torch.__version__),
            "cpu": self.cpu,
            "device": str(self.device),
            "gpu": torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else None,
            "threads": self.threads,
            "matmul": self.matmul,
            "precision": self.precision,
        }


def choose(
    device: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
    recorded: Mapping[str, Any] | None = None,
) -> Runtime:
    """Decide how to compute on this machine; changes no setting of torch (see `Runtime.active`).

    Args:
        device: "auto" (CUDA if there is one), "cpu", "cuda", "cuda:1".
        precision: "float32", "bfloat16" (autocast; the weights stay float32), or "auto" = float32 everywhere: bfloat16
            moves results in the third digit, and networks as small as control uses are bound by launches on a GPU.
        threads: for torch's CPU kernels; None = $OMP_NUM_THREADS, else the cores that the load average leaves free.
        recorded: the `identity()` of the run being resumed: its threads, matmul mode and precision are taken over.

    Raises:
        UsageError: an unknown or absent device or precision, or threads < 1.
    """
    place, cpu = _device(device), cpu_class()
    reasons: list[str] = []
    if precision not in PRECISIONS:
        raise UsageError(f"precision '{precision}' is unknown; valid: {', '.join(PRECISIONS)}")
    if threads is not None and threads < 1:
        raise UsageError(f"threads = {threads}: at least one is needed")
    if recorded is not None:
        threads = recorded["threads"] if threads is None else threads
        precision = recorded["precision"] if precision == "auto" else precision
    if threads is None:
        threads, why = _free_threads()
        reasons.append(why)
    if precision == "auto":
        precision = "float32"
    if precision == "bfloat16":
        _require_bfloat16(place)
    if recorded is not None and _same_kernels(recorded, place, cpu):
        matmul = recorded["matmul"]
        reasons.append("as the run was started")
    elif place.type == "cuda":
        matmul = "high"
        reasons.append("TF32 products")
    else:
        matmul, why = _cpu_matmul(cpu)
        reasons.append(why)
    runtime = Runtime(place, precision, matmul, threads, cpu, tuple(reasons))
    return runtime if recorded is None else _compare(runtime, recorded)


def cpu_class() -> str:
    """The processor's model and the instruction sets that decide which kernels run, for example
    "AMD EPYC, family 26 model 2, avx2 avx512f avx512_bf16"."""
    facts = _cpuinfo()
    if not facts:
        return platform.processor() or platform.machine()
    flags = facts.get("flags", facts.get("Features", "")).split()
    parts = [
        facts.get("model name", platform.machine()),
        f"family {facts.get('cpu family', '?')} model {facts.get('model', '?')}",
        " ".join(flag for flag in _FLAGS if flag in flags),
    ]
    return ", ".join(part for part in parts if part)


@dataclass(frozen=True)
class Probe:
    """One measured comparison: seconds of the same product in each mode, largest errors against float64."""

    highest_s: float
    medium_s: float
    highest_error: float
    medium_error: float

    @property
    def mode(self) -> str:
        """The mode to use: "medium" only where it is faster and still float32-accurate."""
        faster = self.highest_s > _MIN_GAIN * self.medium_s
        return "medium" if faster and self.medium_error < _MAX_ERROR else "highest"

    def explain(self) -> str:
        """The decision in words."""
        gain, error = self.highest_s / self.medium_s, self.medium_error
        if self.mode == "medium":
            return f"'medium' is {gain:.1f}x faster here with float32 accuracy, error {error:.0e}"
        if error >= _MAX_ERROR:
            return f"'medium' is not float32 here, error {error:.0e}"
        return f"'medium' is no faster here ({gain:.2f}x)"


def probe_matmul(repeats: int = 15) -> Probe:
    """Time a float32 linear layer (batch 256, 512 to 512, one thread) in modes "highest" and "medium": about 50 ms."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(256, 512, generator=generator)
    w = torch.randn(512, 512, generator=generator)
    exact = x.double() @ w.double().T
    threads, before = torch.get_num_threads(), torch.get_float32_matmul_precision()
    seconds = {"highest": float("inf"), "medium": float("inf")}
    error = dict.fromkeys(seconds, 0.0)
    torch.set_num_threads(1)
    try:
        # The two modes take turns, and the fastest of each counts: another process slows both or neither.
        for _ in range(repeats):
            for mode in seconds:
                torch.set_float32_matmul_precision(mode)
                start = time.perf_counter()
                y = torch.nn.functional.linear(x, w)
                seconds[mode] = min(seconds[mode], time.perf_counter() - start)
                error[mode] = max(error[mode], float((y.double() - exact).abs().max()))
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(before)
    return Probe(seconds["highest"], seconds["medium"], error["highest"], error["medium"])


def free_cores(load: float, cores: int) -> int:
    """Cores that the load average leaves free, at least one."""
    return max(1, min(cores, round(cores - load)))


def _device(name: str) -> torch.device:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device("cuda" if count else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"device '{name}' is unknown; valid: auto, cpu, cuda, cuda:0") from error
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"device '{name}' is not supported; valid: auto, cpu, cuda, cuda:0")
    if device.type == "cuda" and (device.index or 0) >= count:
        raise UsageError(f"device '{name}' is not there: torch {torch.__version__} sees {count} CUDA devices")
    return device


def _free_threads() -> tuple[int, str]:
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    if wanted.isdigit() and int(wanted) > 0:
        return int(wanted), f"OMP_NUM_THREADS={wanted}"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    load = os.getloadavg()[0]
    return free_cores(load, cores), f"{cores} cores at load {load:.1f}"


def _require_bfloat16(device: torch.device) -> None:
    if device.type == "cuda":
        if not torch.cuda.is_bf16_supported(including_emulation=False):
            raise UsageError("this GPU has no bfloat16; use precision float32")
    elif not {"avx512_bf16", "amx_bf16", "bf16"} & set(cpu_class().replace(",", " ").split()):
        raise UsageError("this CPU has no bfloat16 instructions, so bfloat16 would be slower; use precision float32")


def _cpuinfo() -> dict[str, str]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in text.split("\n\n", 1)[0].splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def _cpu_matmul(cpu: str) -> tuple[str, str]:
    """The remembered decision for this CPU and torch, or a probe whose result is then remembered.

    Timing is noisy and a borderline machine could decide differently tomorrow; remembering makes all runs agree. The
    lock makes processes that start together agree too.
    """
    file = cache_file()
    key = f"{cpu} | torch {torch.__version__}"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            known = _read_cache(file)
            if key not in known:
                probe = probe_matmul()
                known[key] = {"matmul": probe.mode, "why": probe.explain()}
                aside = file.with_suffix(".tmp")
                aside.write_text(json.dumps(known, indent=1), encoding="utf-8")
                os.replace(aside, file)
            return known[key]["matmul"], known[key]["why"]
    except OSError:
        # A home that cannot be written: decide for this process alone.
        probe = probe_matmul()
        return probe.mode, probe.explain()


def cache_file() -> Path:
    """Where the probe's decisions are remembered: `echelon/runtime.json` in `$XDG_CACHE_HOME` or `~/.cache`."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "echelon" / "runtime.json"


def _read_cache(file: Path) -> dict[str, dict[str, str]]:
    try:
        known = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(known, dict):
        return {}
    return {
        key: entry
        for key, entry in known.items()
        if isinstance(entry, dict) and entry.get("matmul") in MATMUL_MODES and isinstance(entry.get("why"), str)
    }


def _same_kernels(recorded: Mapping[str, Any], device: torch.device, cpu: str) -> bool:
    """Whether a matmul mode means the same here as where it was recorded."""
    same_place = torch.device(recorded["device"]).type == device.type and recorded["cpu"] == cpu
    return same_place and recorded["torch"] == str(torch.__version__) and recorded["matmul"] in MATMUL_MODES


def _compare(runtime: Runtime, recorded: Mapping[str, Any]) -> Runtime:
    """Add a warning for each part of a recorded identity that this machine cannot give back."""
    now = runtime.identity()
    changed = [
        f"{name} was {recorded[name]}, is {now[name]}"
        for name in now
        if name in recorded and recorded[name] != now[name]
    ]
    if not changed:
        return runtime
    warning = f"not bit-equal to the start of the run: {', '.join(changed)}"
    return Runtime(
        runtime.device, runtime.precision, runtime.matmul, runtime.threads, runtime.cpu, (*runtime.reasons, warning)
    )


def _keep_freed_memory() -> None:
    """Have glibc keep what one step frees for the next: else each step asks the system for zeroed pages again."""
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:  # another system: its allocator stays as it is
        return
    libc.mallopt(_M_MMAP_THRESHOLD, 1 << 25)
    libc.mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)
