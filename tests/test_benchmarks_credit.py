"""The benchmark of credit runs, its loops compute what the rules do, and no rule is missing; nothing is timed."""

import importlib
import inspect
import pkgutil
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # pytest does not add the repository's root

import echelon.credit
from benchmarks import credit as benchmark
from benchmarks.credit_rules import LEVELS, Batch, Size

TINY = Size(groups=3, episodes=4, turns=6, tokens=5)
PAIRS = benchmark.pairs(Batch(TINY))


@pytest.mark.parametrize("pair", PAIRS.values(), ids=list(PAIRS))
@pytest.mark.parametrize("convert", [torch.Tensor.tolist, torch.Tensor.detach], ids=["floats", "tensors"])
def test_loops_agree_with_the_rules(pair, convert):
    torch.testing.assert_close(pair.rule(), torch.tensor(pair.loop(convert)), rtol=1e-4, atol=1e-4)


def test_the_report_has_a_line_for_each_rule():
    lines = list(benchmark.report(TINY, repeats=1, largest=100_000))
    for rules, _ in LEVELS.values():
        for name in rules(Batch(TINY)):
            assert any(line.startswith(f"  {name} ") for line in lines), name


def test_no_rule_is_missing():
    """Every public function that gives a Credit is timed, under its name."""
    timed = {name.replace(",", " ").split()[0] for rules, _ in LEVELS.values() for name in rules(Batch(TINY))}
    for module in pkgutil.iter_modules(echelon.credit.__path__, "echelon.credit."):
        for name, function in inspect.getmembers(importlib.import_module(module.name), inspect.isfunction):
            gives = str(inspect.signature(function).return_annotation)
            if function.__module__ == module.name and name[0] != "_" and "Credit" in gives and name != "total":
                assert name in timed, f"add {name} to benchmarks/credit_rules.py"
