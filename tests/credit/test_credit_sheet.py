"""The page about credit: its code runs, its picture is what the rules say, its tables name what there is."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

import echelon.credit
from echelon.credit.turns import gigpo

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/credit.md").read_text()


def test_its_code_runs(capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 2
    for block in blocks:
        exec(compile(block, "docs/credit.md", "exec"), {})
    assert "torch.Size([25])" in capsys.readouterr().out


def test_the_picture_is_up_to_date() -> None:
    sheet = runpy.run_path(str(ROOT / "examples/credit_sheet.py"))
    assert (ROOT / "docs/images/credit.svg").read_text() == sheet["picture"](), (
        "run: python examples/credit_sheet.py docs/images/credit.svg"
    )


def test_the_sheet_names_every_rule() -> None:
    helpers = {"Credit", "baseline", "boundaries", "finite", "normalise", "normalise_levels", "spread", "step_groups"}
    helpers |= {"td_error", "whiten"}
    missing = [name for name in echelon.credit.__all__ if name not in helpers and f"`{name}`" not in PAGE]
    assert not missing
    for name in echelon.credit.__all__:
        assert hasattr(echelon.credit, name)
    assert echelon.credit.gigpo is gigpo
