"""Metrics that resume, signals, progress lines, and runs launched side by side."""

from __future__ import annotations

import builtins
import io
import json
import os
import re
import signal
import sys
import threading
import time

import pytest
import torch
from forked import run_forked
from hypothesis import given
from hypothesis import strategies as st

from echelon.errors import DataError, EchelonError, MissingExtra, UsageError
from echelon.training import progress as progress_module
from echelon.training.interrupt import Interrupt
from echelon.training.launch import Task, parse_seeds, run_many
from echelon.training.metrics import JsonLines, MetricsWriter, as_floats, check_finite, read_jsonl
from echelon.training.progress import Progress, format_rate, format_seconds

# --- metrics ---


def test_a_line_has_step_time_kind_and_numbers(tmp_path):
    with MetricsWriter(tmp_path) as metrics:
        returned = metrics.write(3, "train", {"loss/v": torch.tensor(0.5, requires_grad=True), "n": 7, "x": 1.25})
    assert returned == {"loss/v": 0.5, "n": 7.0, "x": 1.25}
    (row,) = read_jsonl(tmp_path / "metrics.jsonl")
    assert row.pop("time_s") >= 0
    assert row == {"step": 3, "kind": "train", "loss/v": 0.5, "n": 7.0, "x": 1.25}


def test_lines_are_readable_while_the_run_goes_on(tmp_path):
    with MetricsWriter(tmp_path) as metrics:
        metrics.write(1, "train", {"loss": 1.0})
        assert len(read_jsonl(tmp_path / "metrics.jsonl")) == 1


def test_tensors_of_mixed_types_keep_their_values_and_order():
    values = {"b": torch.tensor(2**40), "a": 0.1, "c": torch.tensor(0.1), "d": torch.tensor(True)}
    floats = as_floats(values)
    assert list(floats) == ["b", "a", "c", "d"]
    assert floats == {"b": float(2**40), "a": 0.1, "c": float(torch.tensor(0.1)), "d": 1.0}
    assert as_floats({}) == {}
    with pytest.raises(EchelonError, match=r"'c' must be one number, not a tensor of shape \(2,\)"):
        as_floats({"c": torch.zeros(2)})


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["loss/value", "critic_loss", "grad_norm"])
def test_a_non_finite_loss_stops_the_run_with_its_name_and_step(tmp_path, name, bad):
    with MetricsWriter(tmp_path) as metrics, pytest.raises(EchelonError, match=f"'{name}' became {bad} at step 12"):
        metrics.write(12, "train", {name: torch.tensor(bad), "value/mean": 1.0})
    assert read_jsonl(tmp_path / "metrics.jsonl")[0][name] is None
    with pytest.raises(EchelonError, match="step 12"):
        check_finite(12, {name: bad})


def test_other_metrics_may_be_undefined_and_become_null(tmp_path):
    with MetricsWriter(tmp_path) as metrics:
        metrics.write(1, "eval", {"length/of_successes": float("nan")})
    assert read_jsonl(tmp_path / "metrics.jsonl")[0]["length/of_successes"] is None


def test_a_resumed_run_has_no_gap_and_no_duplicate(tmp_path):
    file = tmp_path / "metrics.jsonl"
    with MetricsWriter(tmp_path) as metrics:
        for step in range(1, 8):
            metrics.write(step, "train", {"loss": 1.0 / step})
        metrics.flush()
    whole = file.read_bytes()
    last = len(whole.splitlines()[-1]) + 1
    for cut in (0, 1, last - 1, last, last + 3):
        file.write_bytes(whole[: len(whole) - cut])
        with MetricsWriter(tmp_path) as metrics:
            metrics.truncate_after(5)
            for step in (6, 7):
                metrics.write(step, "train", {"loss": 1.0 / step})
        rows = read_jsonl(file)
        assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6, 7]
        assert [row["loss"] for row in rows] == [1.0 / step for step in range(1, 8)]
        assert [row["time_s"] for row in rows] == sorted(row["time_s"] for row in rows)


def test_resuming_keeps_earlier_lines_as_they_are(tmp_path):
    with JsonLines(tmp_path / "evaluations.jsonl") as lines:
        lines.append({"step": 1, "success": 0.1, "tasks": {"task1": [1, 0]}})
        lines.append({"step": 2, "success": float("nan"), "tasks": {"task1": [0, 0]}})
    before = (tmp_path / "evaluations.jsonl").read_bytes()
    with JsonLines(tmp_path / "evaluations.jsonl") as lines:
        rows = lines.truncate_after(2)
    assert (tmp_path / "evaluations.jsonl").read_bytes() == before
    assert rows == read_jsonl(tmp_path / "evaluations.jsonl")
    assert rows[1] == {"step": 2, "success": None, "tasks": {"task1": [0, 0]}}


@given(st.lists(st.integers(0, 9), max_size=8), st.integers(0, 9), st.integers(0, 12))
def test_truncation_keeps_exactly_the_steps_up_to_the_checkpoint(tmp_path_factory, steps, last, cut):
    file = tmp_path_factory.mktemp("lines") / "x.jsonl"
    text = "".join(json.dumps({"step": step}) + "\n" for step in steps)
    text = text[: max(0, len(text) - cut)]
    file.write_text(text)
    with JsonLines(file) as lines:
        kept = lines.truncate_after(last)
    whole = steps[: text.count("\n")]
    assert [row["step"] for row in kept] == [row["step"] for row in read_jsonl(file)] == [s for s in whole if s <= last]


@pytest.mark.parametrize("line", ["{", "[1]", '{"loss": 1}', '{"step": "a"}', '{"step": true}'])
def test_a_damaged_line_in_the_middle_is_named(tmp_path, line):
    file = tmp_path / "metrics.jsonl"
    file.write_text(f'{{"step": 1}}\n{line}\n{{"step": 3}}\n')
    with pytest.raises(DataError, match=re.escape(f"{file}, line 2")):
        read_jsonl(file)
    with pytest.raises(DataError, match=r"absent\.jsonl"):
        read_jsonl(tmp_path / "absent.jsonl")


def test_tensorboard_is_written_when_asked_and_not_before(tmp_path, monkeypatch):
    with MetricsWriter(tmp_path / "plain") as metrics:
        metrics.write(1, "train", {"loss": 1.0})
    assert [path.name for path in (tmp_path / "plain").iterdir()] == ["metrics.jsonl"]
    imported = builtins.__import__

    def without(name: str, *rest: object, **named: object) -> object:
        if name.startswith("torch.utils.tensorboard"):
            raise ImportError(name)
        return imported(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtra, match=r"pip install \"echelon\[viz\]\""):
        MetricsWriter(tmp_path / "board", tensorboard=True)


def test_tensorboard_holds_the_numbers_once_after_a_resume(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for steps, first in (((1, 2, 3), 0), ((3, 4), 2)):
        with MetricsWriter(tmp_path, tensorboard=True) as metrics:
            metrics.truncate_after(first)
            for step in steps:
                metrics.write(step, "train", {"loss/v": step / 2})
            metrics.flush()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("train/loss/v")
    assert [(event.step, event.value) for event in events] == [(1, 0.5), (2, 1.0), (3, 1.5), (4, 2.0)]


# --- interrupt ---


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_the_second_stops(number, capfd):
    before = signal.getsignal(number)
    with Interrupt() as interrupt:
        assert not interrupt.requested
        os.kill(os.getpid(), number)
        assert interrupt.requested
        assert interrupt.signal == number
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
            time.sleep(1)
    assert signal.getsignal(number) is before
    assert capfd.readouterr().err.count("saving, then stopping; press again to stop at once") == 1


def test_handlers_come_back_after_an_error():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(ValueError, match="x"), Interrupt():
        raise ValueError("x")
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_in_another_thread_it_does_nothing():
    seen = []

    def body() -> None:
        with Interrupt() as interrupt:
            seen.append((interrupt.requested, signal.getsignal(signal.SIGINT)))

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert seen == [(False, before)]


def test_a_signalled_loop_saves_before_it_stops(tmp_path):
    def body() -> None:
        with Interrupt() as interrupt:
            for step in range(1000):
                if step == 3:
                    os.kill(os.getpid(), signal.SIGTERM)
                if interrupt.requested:
                    (tmp_path / "saved").write_text(str(step))
                    os._exit(7)

    assert run_forked(body) == 7
    assert (tmp_path / "saved").read_text() == "3"


# --- progress ---


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.now = 100.0
        monkeypatch.setattr(progress_module.time, "monotonic", lambda: self.now)


def test_plain_lines_are_rare_and_tell_rate_and_time_left(monkeypatch):
    clock = Clock(monkeypatch)
    out = io.StringIO()
    with Progress(1000, "hiql", start=200, stream=out) as progress:
        for step in range(201, 601):
            clock.now += 1 / 16
            progress.update(step, {"loss/v": 0.123456})
    lines = out.getvalue().splitlines()
    assert len(lines) == 3  # after 10 s, after 20 s, and at the end after 25 s
    assert lines[0] == "hiql: 360/1000 (36 %)  16 updates/s  10 s elapsed  40 s left  loss/v 0.1235"
    assert lines[2] == "hiql: 600/1000 (60 %)  16 updates/s  25 s elapsed  25 s left  loss/v 0.1235"


def test_the_rate_follows_a_change_and_the_time_left_counts_pauses(monkeypatch):
    clock = Clock(monkeypatch)
    progress = Progress(3000, "x", stream=io.StringIO(), every_s=1.0)
    step = 0
    for rate, seconds in ((10, 100), (20, 50)):
        for _ in range(seconds):
            clock.now += 1.0
            step += rate
            progress.update(step)
    assert step == 2000
    assert progress.details() == "20 updates/s  2 min 30 s elapsed  1 min 15 s left"


def test_a_terminal_gets_one_live_bar(monkeypatch):
    clock = Clock(monkeypatch)

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    out = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "150")
    with Progress(100, "hiql [on] maze", stream=out) as progress:
        for step in range(1, 101):
            clock.now += 0.1
            progress.update(step, {"loss": 1.0})
        progress.note("evaluating")
        progress.print("[task1] done")
    text = out.getvalue()
    assert "hiql [on] maze" in text
    assert "100/100" in text
    assert "10 updates/s" in text
    assert "evaluating" in text
    assert "[task1] done" in text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (3599, "59 min 59 s"),
        (7620, "2 h 07 min"),
        (273600, "3 d 04 h"),
    ],
)
def test_durations_read_well(seconds, text):
    assert format_seconds(seconds) == text


@pytest.mark.parametrize(
    ("rate", "text"), [(52.34, "52.3 updates/s"), (0.5, "30 updates/min"), (1 / 1200, "3 updates/h"), (0.0, "")]
)
def test_rates_read_well(rate, text):
    assert format_rate(rate, "updates") == text


def test_zero_steps_of_work_is_no_division_by_zero():
    out = io.StringIO()
    with Progress(0, "nothing", stream=out) as progress:
        progress.update(0)
    assert out.getvalue().startswith("nothing: 0/0")


# --- launch ---


@pytest.mark.parametrize(
    ("text", "seeds"),
    [("7", (7,)), ("0-3", (0, 1, 2, 3)), ("0,2,5-6", (0, 2, 5, 6)), ("3,1,1-2", (3, 1, 2)), (" 4 , 6 - 7 ", (4, 6, 7))],
)
def test_seeds_are_parsed(text, seeds):
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "a", "1,", "1--2", "-1", "1.5", "3-1", "0-99999999", "0x1", "²"])
def test_bad_seeds_are_refused_with_the_text(text):
    with pytest.raises(UsageError, match=re.escape(f"seeds '{text}'")):
        parse_seeds(text)


def python(code: str) -> list[str]:
    return [sys.executable, "-S", "-c", code]


def test_tasks_run_with_one_thread_each_and_log_to_their_files(tmp_path):
    code = "import os; print(os.environ['OMP_NUM_THREADS'], os.environ['OMP_WAIT_POLICY'])"
    tasks = [Task(f"seed-{k}", python(f"{code}; print({k})"), tmp_path / "logs" / f"{k}.log") for k in range(3)]
    outcomes = run_many(tasks, jobs=2)
    assert [(outcome.task.name, outcome.code) for outcome in outcomes] == [("seed-0", 0), ("seed-1", 0), ("seed-2", 0)]
    assert [task.log.read_text() for task in tasks] == [f"1 PASSIVE\n{k}\n" for k in range(3)]


def test_at_most_jobs_tasks_run_at_once(tmp_path):
    code = f"""
import os, time
place = {str(tmp_path)!r}
open(f'{{place}}/r{{os.getpid()}}', 'w').close()
print(len([n for n in os.listdir(place) if n.startswith('r')]))
time.sleep(0.1)
os.remove(f'{{place}}/r{{os.getpid()}}')
"""
    tasks = [Task(str(k), python(code), tmp_path / f"log-{k}") for k in range(5)]
    run_many(tasks, jobs=2)
    assert all(int(task.log.read_text()) <= 2 for task in tasks)


def test_the_first_failure_is_shown_with_its_log_and_the_others_finish(tmp_path, capfd):
    done = tmp_path / "done"
    tasks = [
        Task("seed-0", python("print('starting'); raise SystemExit('the cause')"), tmp_path / "0.log"),
        Task("seed-1", python(f"open({str(done)!r}, 'w')"), tmp_path / "1.log"),
        Task("seed-2", python("import os; os.kill(os.getpid(), 9)"), tmp_path / "2.log"),
        Task("seed-3", [str(tmp_path / "no-such-program")], tmp_path / "3.log"),
    ]
    with pytest.raises(EchelonError) as caught:
        run_many(tasks, jobs=1, label="seeds")
    message = str(caught.value)
    assert "3 of 4 seeds failed: seed-0, seed-2, seed-3." in message
    assert "seed-0 ended with exit code 1" in message
    assert "  | starting" in message
    assert "  | the cause" in message
    assert done.exists()
    shown = capfd.readouterr().err
    assert shown.count("the cause") == 1
    assert "seed-2: failed" in shown
    assert "cannot start" in (tmp_path / "3.log").read_text()


def test_an_interrupt_is_passed_on_once_and_waited_for(tmp_path):
    child = """
import signal, sys, time
count = 0
def handle(number, frame):
    global count
    count += 1
signal.signal(signal.SIGINT, handle)
print('ready')
for _ in range(2000):
    if count:
        break
    time.sleep(0.01)
time.sleep(0.5)
print('signals', count)
"""
    tasks = [Task(str(k), python(child), tmp_path / f"{k}.log") for k in range(3)]

    def body() -> None:
        def press() -> None:
            while not all((tmp_path / f"{k}.log").exists() and "ready" in tasks[k].log.read_text() for k in range(2)):
                time.sleep(0.02)
            os.kill(os.getpid(), signal.SIGINT)

        threading.Thread(target=press, daemon=True).start()
        with pytest.raises(KeyboardInterrupt):
            run_many(tasks, jobs=2)
        assert [tasks[k].log.read_text() for k in range(2)] == ["ready\nsignals 1\n"] * 2
        assert not tasks[2].log.exists()

    assert run_forked(body) == 0


def test_a_second_interrupt_kills_the_children(tmp_path):
    child = "import os, signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); print(os.getpid()); time.sleep(20)"
    task = Task("stubborn", python(child), tmp_path / "log")

    def body() -> None:
        def press() -> None:
            while not (task.log.exists() and task.log.read_text().endswith("\n")):
                time.sleep(0.02)
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.5)

        threading.Thread(target=press, daemon=True).start()
        with pytest.raises(KeyboardInterrupt):
            run_many([task], jobs=1)
        with pytest.raises(ProcessLookupError):
            os.kill(int(task.log.read_text()), 0)

    assert run_forked(body) == 0


def test_the_progress_line_tells_who_runs_and_how_far(tmp_path, capfd):
    task = Task("seed-0", python("import time; time.sleep(0.4)"), tmp_path / "log", fraction=lambda: 0.42)
    run_many([task], jobs=1, label="seeds")
    assert "seeds: 1/1 (100 %)" in capfd.readouterr().err


def test_bad_requests_are_refused(tmp_path):
    task = Task("a", ["true"], tmp_path / "log")
    with pytest.raises(UsageError, match="jobs = 0"):
        run_many([task], jobs=0)
    with pytest.raises(UsageError, match="same name: a, a"):
        run_many([task, task], jobs=1)
    (tmp_path / "file").write_text("")
    with pytest.raises(EchelonError, match="cannot write the log"):
        run_many([Task("a", ["true"], tmp_path / "file" / "log")], jobs=1)
    assert run_many([], jobs=1) == []
