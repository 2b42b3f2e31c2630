"""The hash of the code behind a result: what changes it, what does not, and how far it reaches."""

from __future__ import annotations

from pathlib import Path

import pytest

from echelon.errors import DataError
from echelon.evidence import codehash
from echelon.systems import index
from echelon.training.codehash import TRAINER, closure, code_hash, code_hashes, digest, module_hash
from echelon.training.language.agent import LanguageAgent
from echelon.training.online.agent import OnlineAgent

MODULE = '''"""What it is."""
import math

class Net:
    """A net."""

    width: int = 3
    """Units."""

    def forward(self, x):
        """Apply."""
        return math.sin(x) + self.width  # why


def claims():
    """What is claimed."""
    return ("first",)
'''

HARMLESS = {
    "comment": ("# why", "# because"),
    "docstring": ("Apply.", "Apply the net.\n\n        Twice."),
    "module docstring": ("What it is.", "What it will be."),
    "doc of a field": ("Units.", "Hidden units."),
    "format": (
        "return math.sin(x) + self.width",
        "return (\n            math.sin(x)\n            + self.width\n        )",
    ),
    "blank lines": ("class Net", "\n\n\nclass Net"),
    "claims": ('("first",)', '("first", "second")'),
}
HARMFUL = {
    "number": ("int = 3", "int = 4"),
    "operator": ("+ self.width", "- self.width"),
    "name": ("math.sin", "math.cos"),
    "string that is used": ("return math", "return 'a' or math"),
    "default": ("self, x", "self, x=1"),
    "new statement": ("return math", "x = x\n        return math"),
}


def hash_of(folder: Path, text: str) -> str:
    file = folder / f"m{len(list(folder.iterdir()))}.py"
    file.write_text(text)
    return module_hash(file)


@pytest.mark.parametrize("edit", HARMLESS)
def test_text_for_people_can_be_edited(edit: str, tmp_path: Path) -> None:
    old, new = HARMLESS[edit]
    assert old in MODULE
    assert hash_of(tmp_path, MODULE) == hash_of(tmp_path, MODULE.replace(old, new))


@pytest.mark.parametrize("edit", HARMFUL)
def test_code_cannot(edit: str, tmp_path: Path) -> None:
    old, new = HARMFUL[edit]
    assert old in MODULE
    assert hash_of(tmp_path, MODULE) != hash_of(tmp_path, MODULE.replace(old, new))


def test_type_checking_blocks_do_not_count_but_their_else_does(tmp_path: Path) -> None:
    plain = "from typing import TYPE_CHECKING\nx = 1\n"
    with_block = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from a import b\nx = 1\n"
    dotted = with_block.replace("if TYPE", "if typing.TYPE")
    with_else = with_block.replace("\nx = 1\n", "\nelse:\n    x = 1\n")
    hashes = [hash_of(tmp_path, text) for text in (plain, with_block, dotted, with_else)]
    assert len(set(hashes)) == 1
    assert hash_of(tmp_path, with_else.replace("x = 1", "x = 2")) != hashes[0]


@pytest.fixture
def package(tmp_path: Path) -> Path:
    files = {
        "__init__.py": "",
        "systems/__init__.py": "",
        "systems/a.py": (
            "from echelon.data import goals\nfrom echelon.nets.mlp import MLP\n\ndef f():\n    import echelon.late\n"
        ),
        "systems/b.py": "from . import a\nfrom ..spans import Spans\n",
        "systems/c.py": "def claims():\n    from echelon import recipes\n    return recipes\n",
        "data/__init__.py": "raise SystemExit",
        "data/goals.py": (
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from echelon import heavy\nimport numpy\n"
        ),
        "nets/__init__.py": "from echelon.nets import mlp\n",
        "nets/mlp.py": "from echelon.nets import Base\n",
        "late.py": (
            "from echelon.evidence import view\nfrom echelon.cli.train import run\nfrom echelon.errors import E\n"
        ),
        "spans.py": "import echelon.systems.b\n",
        "heavy.py": "",
        "recipes.py": "",
        "errors.py": "",
        "table.py": 'WORLDS = {"one": "echelon.spans:One", "none": "echelon.nowhere:X", "words": "see late: soon"}\n',
        "evidence/__init__.py": "",
        "evidence/view.py": "",
        "cli/__init__.py": "",
        "cli/train.py": "",
    }
    root = tmp_path / "echelon"
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def reached(package: Path, root: str) -> set[str]:
    return {name.removeprefix("echelon.") for name in closure([f"echelon.{root}"], package)}


def test_closure_follows_imports_wherever_they_stand(package: Path) -> None:
    # `from echelon.nets import Base` takes a name from the package itself, so its __init__ counts
    assert reached(package, "systems.a") == {"systems.a", "data.goals", "nets.mlp", "nets", "late"}


def test_closure_resolves_relative_imports_and_cycles(package: Path) -> None:
    assert reached(package, "systems.b") == {"systems.b", "spans"} | reached(package, "systems.a")


def test_closure_follows_tables_of_names(package: Path) -> None:
    assert reached(package, "table") == {"table", "spans"} | reached(package, "systems.b")


def test_closure_leaves_out_what_only_claims_use(package: Path) -> None:
    assert reached(package, "systems.c") == {"systems.c"}


def test_closure_refuses_a_root_that_does_not_exist(package: Path) -> None:
    with pytest.raises(DataError, match=r"no module echelon.systems.z"):
        closure(["echelon.systems.z"], package)


SENTENCES = {"language/sentences.py", "language/models.py", "language/words.py"}
"""What a system reads that embeds sentences."""


@pytest.mark.parametrize("system", index.names())
def test_real_systems_depend_on_their_loop_data_and_networks(system: str) -> None:
    module = str(index.rows()[system].module)
    hashes = code_hashes([module, TRAINER])
    family = index.rows()[system].family
    file = module.removeprefix("echelon.").replace(".", "/") + ".py"
    expected = {file, "training/run.py", "training/evaluation.py"}
    if issubclass(index.load(system), LanguageAgent):
        expected |= {"training/language/loop.py", "language/driver.py", "language/sampling.py", "language/scorer.py"}
        expected |= {"language/worlds/textcraft.py", "language/worlds/alfworld.py"}
    elif issubclass(index.load(system), OnlineAgent):
        expected |= {"training/online/loop.py", "hierarchy/runner.py", "hierarchy/level.py"}
    else:
        expected |= {f"training/{family}.py", "data/goals.py", "nets/mlp.py", "hierarchy/level.py"}
    if not issubclass(index.load(system), LanguageAgent):
        read = SENTENCES if system == "ghil-glue" else set()
        assert {name for name in hashes if name.startswith(("language/", "training/language/"))} == read
    assert expected <= set(hashes)
    assert not [name for name in hashes if name.startswith(("evidence/", "cli/"))]
    assert codehash.of_run(system) == code_hash(module) == digest(hashes)


def test_a_hierarchy_depends_on_its_sibling_and_a_baseline_does_not_depend_on_it() -> None:
    assert "systems/offline/hiql.py" in code_hashes(["echelon.systems.offline.ota"])
    assert "systems/offline/ota.py" not in code_hashes(["echelon.systems.offline.hiql"])


def test_no_module_takes_a_name_from_a_package_that_hides_where_it_comes_from() -> None:
    """Only `from package import module` can be followed; a lazy `__init__` would hide a dependency."""
    roots = [str(index.rows()[system].module) for system in index.names()]
    assert [name for name, file in closure([*roots, TRAINER]).items() if file.name == "__init__.py"] == []


def test_results_also_depend_on_their_statistics_and_the_estimator() -> None:
    hashes = codehash.of_result(["hiql", "ota"], ["echelon.claims", __name__])
    assert {"claims.py", "evidence/statistics.py", "systems/offline/ota.py"} <= set(hashes)


def test_changes_are_told_by_module() -> None:
    recorded = {"spans.py": "1", "data/goals.py": "2", "nets/mlp.py": "3"}
    current = {"spans.py": "1", "data/goals.py": "4", "nets/goal.py": "5"}
    assert codehash.changes(recorded, current) == [
        "data/goals.py changed", "nets/goal.py is used now", "nets/mlp.py is no longer used",
    ]  # fmt: skip
    assert codehash.changes(current, current) == []
