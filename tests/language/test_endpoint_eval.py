"""A language agent's program with a model behind a server, from the command line."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from small_language import tiny_language
from stand_in import Fault, stand_in

from echelon.cli import main
from echelon.language.endpoint import EndpointEngine
from echelon.language.record import Record
from echelon.systems.agents import recipes
from echelon.systems.agents.grpo import GRPO
from echelon.training.language import served

FLAGS = ["--env", "colours", "--episodes", "2", "--endpoint-model", "m", "--instructions", "Name a colour."]


@pytest.fixture(autouse=True)
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A world of a dozen words, in which no model is loaded."""
    monkeypatch.setitem(recipes.WORLDS, "colours", {"cpu": {"limit": 4}})
    monkeypatch.chdir(tmp_path)
    with tiny_language(tmp_path / "models"):
        yield


def expert(body: dict[str, Any]) -> str:
    """Says what the world asks for, in the task "one" alone."""
    return str(re.findall(r"[a-z]+", body["messages"][1]["content"])[-1])


def test_an_agent_is_played_and_recorded(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with stand_in(expert) as server:
        assert main(["eval", "grpo", *FLAGS, "--endpoint", server.url, "--out", "played", "--json"]) == 0
        row = json.loads(capsys.readouterr().out)
        said = server.bodies[1]["messages"]
        assert main(["eval", "grpo", *FLAGS, "--endpoint", server.url, "--max-tokens", "5"]) == 0
        assert server.bodies[-1]["max_tokens"] == 5
    assert row["tasks"].keys() == {"one", "two"} and sum(row["tasks"]["one"]) == 2
    assert said[0] == {"role": "system", "content": "Name a colour."} and said[1]["role"] == "user"
    record = Record.load(tmp_path / "played/record")
    assert record.meta["endpoint"] == {**row["endpoint"]} and row["endpoint"]["model"] == "m"
    assert "world:" in (tmp_path / "played/record.txt").read_text()
    assert sorted(p.name for p in (tmp_path / "played").iterdir()) == [
        "evaluation.json", "record.json", "record.safetensors", "record.txt",
    ]  # fmt: skip
    text = capsys.readouterr().out
    assert (
        re.search(r"m at http://\S+: \d+ answers \(0 asked for again\), \d+ tokens read", text) and "success %" in text
    )
    assert main(["eval", "grpo", *FLAGS, "--endpoint", server.url, "--out", "played"]) != 0


def test_an_evaluation_that_was_stopped_goes_on(tmp_path: Path) -> None:
    config, down = recipes.recipe(GRPO.Config, "colours", "cpu"), [True]

    def fails(body: dict[str, Any], n: int) -> Fault | None:
        return Fault(502) if down[0] and len(body["messages"]) > 3 else None

    with stand_in(lambda body: "nonsense", fails) as server:
        engine = EndpointEngine(server.endpoint(attempts=1))
        with pytest.raises(Exception, match="502"):
            served.evaluate(GRPO, config, engine, 2, out=tmp_path / "out")
        down[0] = False
        before = sum(len(body["messages"]) == 1 for body in server.bodies)
        row = served.evaluate(GRPO, config, engine, 2, out=tmp_path / "out")
        assert sum(len(body["messages"]) == 1 for body in server.bodies) == before == 4
    assert row["invalid"] == 1.0 and row["success"] == 0.0 and row["turns"] == 4.0


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["grpo", *FLAGS, "--endpoint", "http://127.0.0.1:9/v1"], 1, "refuses the connection; is the server running"),
        (["grpo", *FLAGS, "--endpoint", "localhost:8000"], 2, "begins with http://"),
        (["grpo", "--env", "colours", "--endpoint", "http://127.0.0.1:9/v1"], 2, "which model"),
        (["grpo", *FLAGS[:-2]], 2, "give --endpoint URL, too"),
        (["ota", "--endpoint", "http://127.0.0.1:9/v1", "--endpoint-model", "m"], 2, "no language agent"),
        (["grpoo", *FLAGS, "--endpoint", "http://127.0.0.1:9/v1"], 2, "did you mean grpo"),
        (["grpo", *FLAGS, "--endpoint", "http://h/v1", "--endpoint-fields", "[1]"], 2, "an object is needed"),
    ],
)
def test_a_wrong_word_gives_one_line(
    args: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", *args]) == code
    said = capsys.readouterr()
    assert words in said.err and said.err.count("\n") == 1 and not said.out
