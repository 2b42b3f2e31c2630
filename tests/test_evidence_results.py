"""Result files: they only grow, they are never half-written, and a changed entry is noticed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echelon.errors import DataError, EchelonError
from echelon.evidence import results

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inside: st.lists(inside) | st.dictionaries(st.text(), inside),
    max_leaves=20,
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return results.path_of(tmp_path / "results", "ota", "beats-hiql")


def test_entries_are_appended_and_read_back(file: Path) -> None:
    assert results.read(file) == []
    first = results.append(file, {"verdict": "supported", "scores": [1.0, 2.5]})
    before = file.read_text()
    second = results.append(file, {"verdict": "inconclusive"})
    assert results.read(file) == [first, second]
    assert first["scores"] == [1.0, 2.5] and first["chain"] != second["chain"]
    document = json.loads(file.read_text())
    assert (document["system"], document["claim"]) == ("ota", "beats-hiql")
    assert before.endswith("\n ]\n}\n") and file.read_text().startswith(before.removesuffix("\n ]\n}\n"))
    assert [path.name for path in file.parent.iterdir()] == ["beats-hiql.json"]


def test_the_same_content_twice_is_two_entries_with_different_checksums(file: Path) -> None:
    results.append(file, {"a": 1})
    results.append(file, {"a": 1})
    assert len({entry["chain"] for entry in results.read(file)}) == 2


def alter(document: dict) -> None:
    document["entries"][0]["verdict"] = "supported"


def remove(document: dict) -> None:
    del document["entries"][0]


def swap(document: dict) -> None:
    document["entries"].reverse()


@pytest.mark.parametrize("damage", [alter, remove, swap])
def test_a_changed_history_is_refused_by_reading_and_by_appending(file: Path, damage) -> None:
    for verdict in ("not supported", "inconclusive", "supported"):
        results.append(file, {"verdict": verdict})
    document = json.loads(file.read_text())
    damage(document)
    file.write_text(json.dumps(document))
    for touch in (lambda: results.read(file), lambda: results.append(file, {"verdict": "supported"})):
        with pytest.raises(DataError, match="entry 0 is not the one that was recorded; restore the file from git"):
            touch()


@pytest.mark.parametrize("text", ["", "[]", '{"entries": [{}]}', '{"entries": 3}'])
def test_other_files_are_refused(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True)
    file.write_text(text)
    with pytest.raises(DataError, match="not a result file"):
        results.read(file)


def test_a_crash_while_writing_leaves_the_old_entries(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results.append(file, {"a": 1})
    before = file.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(EchelonError, match=r"cannot write .*beats-hiql.json: No space left"):
        results.append(file, {"a": 2})
    monkeypatch.undo()
    assert file.read_bytes() == before
    results.append(file, {"a": 3})
    assert [entry["a"] for entry in results.read(file)] == [1, 3]


def test_numbers_that_json_lacks_are_refused(file: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        results.append(file, {"a": float("nan")})
    assert not file.exists()


def test_processes_that_append_at_once_lose_nothing(file: Path) -> None:
    code = "import sys, pathlib\nfrom echelon.evidence import results\n"
    code += "for i in range(20): results.append(pathlib.Path(sys.argv[1]), {'who': sys.argv[2], 'i': i})"
    children = [subprocess.Popen([sys.executable, "-c", code, str(file), who]) for who in "ab"]
    assert [child.wait(60) for child in children] == [0, 0]
    entries = results.read(file)
    assert [[e["i"] for e in entries if e["who"] == who] for who in "ab"] == [list(range(20))] * 2


@given(JSON)
def test_pretty_is_json_of_the_same_value(value: object) -> None:
    assert json.loads(results.pretty(value)) == value


def test_pretty_keeps_numbers_on_a_line_and_breaks_what_is_long() -> None:
    value = {"curve": list(range(1000, 1100)), "short": {"a": 1}, "long": {"text": "x" * 90, "more": "y" * 90}}
    lines = results.pretty(value).splitlines()
    assert len(lines) == 8
    assert lines[1].startswith(' "curve": [1000, 1001') and lines[2] == ' "short": {"a": 1},'


def test_provenance_says_where_and_with_what() -> None:
    facts = results.provenance()
    assert facts["machine"]["cpu"] and facts["machine"]["cores"] >= 1 and facts["machine"]["memory_gib"] > 0
    assert len(facts["load"]) == 3
    assert {"python", "torch", "numpy"} <= set(facts["versions"])
    assert facts["git"] is None or (len(facts["git"]["commit"]) == 40 and facts["git"]["dirty"] in (True, False))
    json.dumps(facts)
