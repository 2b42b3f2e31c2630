"""Whatever stops a training, resuming it gives, bit for bit, the run that nothing stopped.

Real processes are killed, interrupted and handed damaged files, and what they leave on the disk is compared with an
uninterrupted run: every tensor of the last checkpoint, every line of metrics, every evaluation and its rollouts.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fork_server import SCRIPT, Child, Fault, Server
from small_runs import assert_same, outcome

from echelon.envs.collect import make
from echelon.training import checkpoint
from echelon.training.metrics import read_jsonl

pytestmark = [
    pytest.mark.timeout(1800),  # busy machines: many processes, none of which is waited for in vain
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes through /proc"),
]
UPDATES, SAVE_EVERY = 150, 10
CONFIG: dict[str, Any] = {
    "system": "ota",
    "config": {
        "env": "pointmaze-medium-stitch-v0",
        "transitions": 600,
        "updates": UPDATES,
        "batch_size": 8,
        "actor_hidden": [8],
        "value_hidden": [8],
        "eval_every": 60,
        "eval_episodes": 1,
        "log_every": 1,
        "checkpoint_every": SAVE_EVERY,
    },
}
NEXT = "echelon.data.source:OfflineSource.next"
SAVE = "echelon.training.checkpoint:save"
EVALUATE = "echelon.training.evaluation:Evaluator.run"
ROLLOUT = "echelon.columns:save"
JSON = "echelon.training.checkpoint:write_json"


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the data set and the configuration."""
    folder = tmp_path_factory.mktemp("runs")
    make(CONFIG["config"]["env"], jobs=1, episodes=3, root=folder / "data", progress=False)
    (folder / "ota.json").write_text(json.dumps(CONFIG))
    return folder


def environment(room: Path) -> dict[str, str]:
    """What the processes see: the data set, an empty cache, one thread."""
    return {"ECHELON_DATA": str(room / "data"), "XDG_CACHE_HOME": str(room / "cache"), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def reference(room: Path) -> dict[str, Any]:
    """What a run amounts to that one process did from beginning to end, undisturbed."""
    command = [sys.executable, SCRIPT, "train", "--config", room / "ota.json", "--out", room / "whole"]
    done = subprocess.run(command, env={**os.environ, **environment(room)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return outcome(room / "whole")


@pytest.fixture(scope="module")
def server(room: Path) -> Iterator[Server]:
    """Where the other processes come from."""
    with Server(room / "logs", environment(room)) as found:
        yield found


def go_on(server: Server, room: Path, directory: Path, fault: Fault | None = None) -> Child:
    """Resume the run in `directory`, or start it if it has not begun."""
    if (directory / "config.json").exists():
        return server.run("resume", directory, fault=fault)
    return server.run("train", "--config", room / "ota.json", "--out", directory, fault=fault)


def finish(server: Server, room: Path, directory: Path, reference: dict[str, Any]) -> Child:
    """Let the run in `directory` come to its end and compare it with the reference."""
    child = go_on(server, room, directory)
    assert child.code == 0, child.err
    assert_same(reference, outcome(directory))
    steps = [row["step"] for row in read_jsonl(directory / "metrics.jsonl") if row["kind"] == "train"]
    assert steps == list(range(1, UPDATES + 1)), "a gap or a duplicate"
    leftovers = [path for path in directory.rglob("*") if path.name.endswith((".tmp", ".old"))]
    assert not leftovers
    return child


def state(child: Child) -> str:
    """The kernel's letter for what a process does: T stopped, Z ended, and others."""
    return Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[0]


def snapshot(directory: Path) -> dict[str, tuple[int, bytes]]:
    """Every file below `directory` with its time of change and contents."""
    files = [path for path in directory.rglob("*") if path.is_file()]
    return {str(path.relative_to(directory)): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


# --- killed


def faults() -> list[Fault]:
    """Kills at random instants: between two batches, in evaluations, while checkpoints and rollouts are written."""
    chance = random.Random(20)
    draw = chance.randint
    found: list[Fault] = [{"in": NEXT, "call": draw(1, 55), "when": {"calls": draw(1, 4000)}} for _ in range(9)]
    found += [{"in": EVALUATE, "call": 1, "when": {"calls": draw(1, 9000)}} for _ in range(3)]
    found += [{"in": SAVE, "call": draw(1, 3), "when": {"operations": draw(1, 24)}} for _ in range(8)]
    found += [{"in": SAVE, "call": draw(1, 3), "when": {"written": share}} for share in (0.0, 0.5, 0.99)]
    found += [{"in": ROLLOUT, "call": 1, "when": {"operations": draw(1, 8)}} for _ in range(2)]
    chance.shuffle(found)
    return found


def test_killed_again_and_again_it_ends_like_the_undisturbed_run(
    server: Server, room: Path, reference: dict[str, Any]
) -> None:
    kills, saves_hit, runs, lives = 0, 0, 1, 0
    directory = room / "killed-1"
    for fault in faults():
        child = go_on(server, room, directory, fault)
        if child.code == 0:  # the end came before the fault
            assert_same(reference, outcome(directory))
        else:
            assert child.code == -signal.SIGKILL, child.err
            kills, lives = kills + 1, lives + 1
            saves_hit += fault["in"] == SAVE
            found = checkpoint.latest(directory)
            assert found is None or not found.refused, "a kill never leaves a damaged checkpoint under a step's name"
        if child.code == 0 or lives == 6:
            finish(server, room, directory, reference)
            runs, lives = runs + 1, 0
            directory = room / f"killed-{runs}"
    finish(server, room, directory, reference)
    assert kills >= 20 and saves_hit >= 5, (kills, saves_hit)


def test_killed_from_outside_it_ends_like_the_undisturbed_run(
    server: Server, room: Path, reference: dict[str, Any]
) -> None:
    directory, chance = room / "shot", random.Random(4)
    metrics = directory / "metrics.jsonl"
    for lines in sorted(chance.sample(range(1, UPDATES - 20), 4)):
        command = (
            ("resume", directory) if metrics.exists() else ("train", "--config", room / "ota.json", "--out", directory)
        )
        child = server.start(*command)
        while not (metrics.exists() and metrics.read_bytes().count(b"\n") >= lines) and state(child) != "Z":
            time.sleep(0.002)
        time.sleep(chance.random() * 0.02)
        os.kill(child.pid, signal.SIGKILL)
        assert child.wait() in (-signal.SIGKILL, 0), child.err
    finish(server, room, directory, reference)


def test_killed_at_every_instant_of_its_start_it_starts_again(
    server: Server, room: Path, reference: dict[str, Any]
) -> None:
    """Before the first checkpoint there is nothing to resume; the same command has to begin anew, not to refuse."""
    directory = room / "early"
    for operation in range(1, 12, 2):  # opening, flushing and renaming config.json, then identity.json
        child = server.run(
            *("train", "--config", room / "ota.json", "--out", directory),
            fault={"in": JSON, "call": 1, "when": {"operations": operation}},
        )
        assert child.code == -signal.SIGKILL, (operation, child.code, child.err)
        assert not (directory / "metrics.jsonl").exists()
    finish(server, room, directory, reference)


def test_killed_at_its_end_it_writes_the_result(server: Server, room: Path, reference: dict[str, Any]) -> None:
    directory = room / "late"
    for operation in (1, 4):
        child = go_on(
            server,
            room,
            directory,
            {"in": "echelon.training.run:_finish", "call": 1, "when": {"operations": operation}},
        )
        assert child.code == -signal.SIGKILL, child.err
        assert not (directory / "result.json").exists()
    finish(server, room, directory, reference)


# --- damaged files


@pytest.fixture(scope="module")
def killed(server: Server, room: Path) -> Path:
    """A run that was killed at update 38: its checkpoints are those of steps 20 and 30."""
    directory = room / "killed"
    child = go_on(server, room, directory, {"in": NEXT, "call": 38, "when": {"signals": ["SIGKILL"]}})
    assert child.code == -signal.SIGKILL, child.err
    return directory


@pytest.mark.parametrize(
    ("name", "damage"),
    [("state.safetensors", "cut"), ("state.safetensors", "flip"), ("state.json", "flip"), ("manifest.json", "cut")],
)
def test_a_damaged_checkpoint_is_refused_by_name_and_the_one_before_is_used(
    server: Server, room: Path, reference: dict[str, Any], killed: Path, name: str, damage: str
) -> None:
    directory = room / f"{name}-{damage}"
    shutil.copytree(killed, directory)
    file = directory / "checkpoints" / "step_000000030" / name
    whole = bytearray(file.read_bytes())
    if damage == "cut":
        file.write_bytes(whole[: len(whole) // 2])
    else:
        whole[len(whole) // 2] ^= 4
        file.write_bytes(whole)
    child = finish(server, room, directory, reference)
    refusal = next(line for line in child.out.splitlines() if line.startswith("refused: "))
    assert str(file) in refusal and refusal.endswith("using step_000000020")
    assert "resumed at step 20" in child.out


def test_without_a_whole_checkpoint_it_says_so_and_touches_nothing(server: Server, room: Path, killed: Path) -> None:
    directory = room / "ruined"
    shutil.copytree(killed, directory)
    for step in (20, 30):
        (directory / "checkpoints" / f"step_{step:09d}" / "state.json").write_text("{}")
    before = snapshot(directory)
    child = server.run("resume", directory)
    assert child.code == 1
    assert child.err.count("\n") == 1 and child.err.startswith("echelon: no checkpoint of ")
    assert "step_000000020" in child.err and "step_000000030" in child.err
    assert {**before, ".lock": None} == {**snapshot(directory), ".lock": None}


# --- stopped on purpose


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_saves_and_says_how_to_go_on(server: Server, room: Path, reference: dict[str, Any], name: str) -> None:
    directory = room / name
    child = go_on(server, room, directory, {"in": NEXT, "call": 37, "when": {"signals": [name]}})
    assert child.code == 130
    assert f"stopped at step 37; continue with: echelon resume {directory}" in child.out
    assert f"{name}: saving, then stopping" in child.err
    found = checkpoint.latest(directory)
    assert found is not None and found.step == 37
    child = finish(server, room, directory, reference)
    assert "resumed at step 37" in child.out


def test_a_second_signal_stops_at_once_and_loses_nothing(server: Server, room: Path, reference: dict[str, Any]) -> None:
    directory = room / "impatient"
    child = go_on(server, room, directory, {"in": NEXT, "call": 37, "when": {"signals": ["SIGINT", "SIGTERM"]}})
    assert child.code == 130, child.err
    assert "echelon: interrupted; the same command again goes on where this one stopped" in child.err
    assert "Traceback" not in child.err
    finish(server, room, directory, reference)


# --- one directory, one run


def test_a_second_process_is_refused_in_one_line(server: Server, room: Path, reference: dict[str, Any]) -> None:
    directory = room / "shared"
    first = server.start(
        *("train", "--config", room / "ota.json", "--out", directory),
        fault={"in": NEXT, "call": 25, "when": {"signals": ["SIGSTOP"]}},
    )
    while state(first) not in ("T", "Z"):
        time.sleep(0.01)
    before = snapshot(directory)
    for command in (("resume", directory), ("train", "--config", room / "ota.json", "--out", directory)):
        second = server.run(*command)
        assert second.code == 2
        assert second.err == (
            f"echelon: process {first.pid} is writing the run {directory}; "
            "wait for it, stop it, or choose another directory\n"
        )
    assert snapshot(directory) == before
    os.kill(first.pid, signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    finish(server, room, directory, reference)


def test_a_directory_of_something_else_is_refused_and_left_alone(server: Server, room: Path, killed: Path) -> None:
    other = room / "other.json"
    other.write_text(json.dumps({**CONFIG, "config": {**CONFIG["config"], "lr": 1e-3, "seed": 4}}))
    (room / "notes").mkdir(exist_ok=True)
    (room / "notes" / "thesis.txt").write_text("chapter 1")
    for directory, reason in (
        (killed, f"{killed} holds a run of another configuration (different: lr, seed)"),
        (room / "notes", f"{room / 'notes'} is not empty and holds no run"),
    ):
        before = snapshot(directory)
        child = server.run("train", "--config", other, "--out", directory)
        assert (child.code, child.out, child.err.count("\n")) == (2, "", 1)
        assert reason in child.err
        assert snapshot(directory) == before


def test_a_finished_run_is_left_as_it_is(server: Server, room: Path, reference: dict[str, Any]) -> None:
    directory = room / "whole"
    before = {name: entry for name, entry in snapshot(directory).items() if name != ".lock"}
    for command in (("resume", directory), ("train", "--config", room / "ota.json", "--out", directory)):
        child = server.run(*command)
        assert child.code == 0, child.err
        assert f"{directory} is finished already" in child.out
    assert {name: entry for name, entry in snapshot(directory).items() if name != ".lock"} == before


def test_the_plain_commands_do_the_same(server: Server, room: Path, tmp_path: Path) -> None:
    """`python -m echelon`, killed and resumed, learns what an undisturbed run does (whose episodes are shorter)."""
    short = {**CONFIG, "config": {**CONFIG["config"], "updates": 25, "eval_every": 25}}
    file, one, other = tmp_path / "short.json", tmp_path / "one", tmp_path / "other"
    file.write_text(json.dumps(short))
    echelon, outside = [sys.executable, "-m", "echelon"], {**os.environ, **environment(room)}
    metrics = one / "metrics.jsonl"
    start = [*echelon, "train", "--config", file, "--out", one]
    with subprocess.Popen(start, env=outside, stderr=subprocess.DEVNULL) as first:
        while not (metrics.exists() and metrics.read_bytes().count(b"\n") >= 15) and first.poll() is None:
            time.sleep(0.002)
        first.kill()
    done = subprocess.run([*echelon, "resume", one], env=outside, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert server.run("train", "--config", file, "--out", other).code == 0
    evaluated = ("rollout", "evaluation", "result", "metrics 25")  # the line after those of the 25 updates
    learnt, expected = (
        {name: part for name, part in outcome(run).items() if not name.startswith(evaluated)} for run in (one, other)
    )
    assert_same(learnt, expected)
