"""The page about language agents: its code runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs/language.md"


def test_its_code_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    exec(compile(block, "docs/language.md", "exec"), {})
    assert "SpanTree(group[2]" in capsys.readouterr().out
