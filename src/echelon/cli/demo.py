"""`echelon demo`: from nothing to a report in minutes: data, a hierarchy beside a flat baseline, pictures."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from echelon.cli import runs, show
from echelon.cli.arguments import parse

if TYPE_CHECKING:
    from echelon.training.config import Config

ENV = "pointmaze-medium-navigate-v0"
SYSTEMS = ("ota", "gcivl")
QUICK: dict[str, Any] = {
    "updates": 20,
    "batch_size": 32,
    "transitions": 2_000,
    "eval_every": 10,
    "eval_episodes": 1,
    "log_every": 5,
    "actor_hidden": (16, 16),
    "value_hidden": (16, 16),
}


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Make a data set, train OTA and the flat GCIVL with the same networks, batches and updates, and write a report.

    Stopped, the same command goes on; finished, it shows the report again.
    """

    out: Path = Path("runs/demo")
    """Folder of the runs and the report."""
    seeds: str = "0"
    """Seeds of each system, such as 0-2."""
    jobs: int = 2
    """Processes that train at a time, of one thread each."""
    quick: bool = False
    """A few updates only: shows that everything works, and teaches nothing."""
    json: bool = False
    """Print the results as JSON; messages go to stderr."""


def run(args: list[str]) -> int:
    """Run the demo."""
    options = parse(Demo, args, "demo")
    from echelon.evidence import compare
    from echelon.evidence.train import one_per_seed, train_all
    from echelon.evidence.view.page import view
    from echelon.evidence.view.picture import picture
    from echelon.training.launch import parse_seeds

    seeds = parse_seeds(options.seeds)
    configs = [config for system in SYSTEMS for config in one_per_seed(configuration(system, options.quick), seeds)]
    with runs.messages(options.json):
        print(f"OTA (two levels) and GCIVL (flat) on {ENV}: {configs[0].updates:,} updates each, seeds {options.seeds}")
        trained = [run.path for run in train_all(configs, options.out, options.jobs).values()]
    folders = list(dict.fromkeys(directory.parent for directory in trained))
    comparison = compare.of_runs(folders[::-1])  # the baseline first: differences are to the first
    files = {
        "report": str(view(folders, options.out / "report.html")),
        "picture": str(picture(folders, options.out / "demo.svg")),
    }
    if options.json:
        show.as_json({**compare.document(comparison), **files})
        return 0
    runs.show_results(trained, as_json=False)
    print()
    print(show.table(*compare.table(comparison)))
    print("\n" + "\n".join(f"{name}: {Path(file).resolve()}" for name, file in files.items()))
    return 0


def configuration(system: str, quick: bool) -> Config:
    """The demo's configuration of a system; `quick` takes a second and learns nothing."""
    from echelon.systems import launch

    config = launch.recipe(system, ENV, "demo")
    return dataclasses.replace(config, **QUICK) if quick else config
