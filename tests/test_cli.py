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
    "value of a flag": (["data", "make", "pointmaze-medium-navigate-v0", "--jobs", "two"], "--jobs"),
    "stray word": (["doctor", "now"], "'now'"),
}


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
