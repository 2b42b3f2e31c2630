"""TextWorld's games: what a kind means to the package, and compiled games, made once and kept by their content.

A game is made by the package's generator and its bundled Inform compiler, which takes some seconds, so that it is kept
in `games_dir()`. Its folder is named by a hash of all that the game depends on and appears when it is complete;
processes that want the same game at the same time wait for the first.
"""

from __future__ import annotations

import fcntl
import hashlib
import itertools
import json
import os
import re
import shutil
import tempfile
from dataclasses import asdict, dataclass
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

from echelon.errors import MissingExtra, UsageError
from echelon.language.worlds.world import split_seed

FILE = "game.z8"
FORMAT = 1
"""Of the folders; changes when the same recipe would make another game."""
LEVELS = tuple(100 * group + length for group in range(3) for length in range(1, 31))
"""Levels of the coin collector: tens and units are the rooms on the way; 100 and 200 add dead ends at each room."""
REWARDS = ("dense", "balanced", "sparse")
SKILLS = tuple(
    "+".join(["recipe" + str(recipe), *extra])
    for recipe in range(1, 6)
    for extra in (
        [*([f"take{take}"] if take else []), *([f"go{go}"] if go > 1 else []), *chosen]
        for take in range(recipe + 1)
        for go in (1, 6, 9, 12)
        for chosen in itertools.chain.from_iterable(
            itertools.combinations(("open", "cook", "cut"), count) for count in range(4)
        )
    )
)
"""Skills that a cooking game may need, named as the package names them: `recipe2+take2+go6+open+cook+cut`."""

_MAX_DRAWS = 200
_PARTS = ("map", "objects", "quest", "grammar")
_LOCKS = 16


@dataclass(frozen=True)
class Recipe:
    """All that a game depends on."""

    challenge: str
    settings: dict[str, Any]
    objective: str | None
    """What the game tells of its goal at the start; None for what the package writes."""
    seed: int
    version: str
    """Of the package."""
    format: int = FORMAT

    @property
    def key(self) -> str:
        """Name of the game's folder."""
        return hashlib.blake2b(json.dumps(asdict(self), sort_keys=True).encode(), digest_size=12).hexdigest()


def recipe(kind: str, seed: int, split: str, detailed: bool) -> Recipe:
    """The game of a kind, a seed and a split; `detailed`: the objective of coin and simple games is a walkthrough."""
    challenge, _, rest = kind.partition("-")
    objective = None
    settings: dict[str, Any]
    if challenge == "coin":
        name, settings = "tw-coin_collector", {"level": int(rest)}
        objective = None if detailed else "There is a coin in one of the rooms. Find it and take it!"
    elif challenge == "simple":
        goal = "detailed" if detailed else "brief"
        name, settings = "tw-simple", {"rewards": rest, "goal": goal, "test": split == "test"}
    else:
        name, settings = "tw-cooking", {"split": split, "recipe_seed": 0, "drop": False, **_skills(rest)}
    return Recipe(name, settings, objective, seed, _version())


def games_dir() -> Path:
    """Folder of the compiled games: `$ECHELON_GAMES`, else `~/.cache/echelon/textworld`."""
    return Path(os.environ.get("ECHELON_GAMES") or Path.home() / ".cache" / "echelon" / "textworld").expanduser()


def compiled(game: Recipe) -> Path:
    """The file of a compiled game, about 0.4 MB with what belongs to it; it is made if it is not there yet.

    Raises `UsageError` where the folder cannot be written or the package cannot make such a game.
    """
    root = games_dir()
    file = root / game.key / FILE
    if file.is_file():
        return file
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = (root / f".lock-{int(game.key[:2], 16) % _LOCKS}").open("w")
    except OSError as error:
        raise UsageError(f"{root} cannot be written ({error}): export ECHELON_GAMES=/a/folder/of/yours") from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # a second process waits here, then finds the game made
        if not file.is_file():
            draft = Path(tempfile.mkdtemp(prefix=f".{game.key}.", dir=root))
            try:
                _write(game, draft / FILE)
                shutil.rmtree(file.parent, ignore_errors=True)
                draft.rename(file.parent)
            finally:
                shutil.rmtree(draft, ignore_errors=True)
    return file


def _write(recipe: Recipe, file: Path) -> None:
    """Make and compile a game; the files are on the disk when this returns."""
    generator = package("textworld.generator")
    game, options = _made(recipe)
    options.path, options.force_recompile = str(file), True
    generator.compile_game(game, options)
    file.with_suffix(".ni").unlink(missing_ok=True)  # the source
    for written in (*file.parent.iterdir(), file.parent):
        descriptor = os.open(written, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def _made(recipe: Recipe) -> tuple[Any, Any]:
    """A game and its options. Some draws have no game, as where a food that cannot be cut is to be cut: draw again."""
    textworld, make = package("textworld"), package("textworld.challenges").CHALLENGES[recipe.challenge][1]
    for draw in range(_MAX_DRAWS):
        options = textworld.GameOptions()
        options.seeds = {part: split_seed("train", recipe.seed, part, draw) % 2**32 for part in _PARTS}
        try:
            game = make(dict(recipe.settings), options)
        except (ValueError, AssertionError):
            continue
        if recipe.objective is not None:
            game.objective = recipe.objective
        return game, options
    raise UsageError(f"TextWorld makes no game of {recipe.challenge} with {recipe.settings}; choose another kind")


def _skills(names: str) -> dict[str, Any]:
    """`recipe2+take1+cut` as settings."""
    found: dict[str, Any] = {"recipe": 1, "take": 0, "go": 1, "open": False, "cook": False, "cut": False}
    for name in names.split("+"):
        match = re.fullmatch(r"([a-z]+)(\d*)", name)
        assert match is not None
        found[match[1]] = int(match[2]) if match[2] else True
    return found


def _version() -> str:
    try:
        return metadata.version("textworld")
    except metadata.PackageNotFoundError as error:
        raise MissingExtra("textworld", "text") from error


def package(module: str) -> Any:
    """A module of TextWorld."""
    try:
        return import_module(module)
    except ImportError as error:
        raise MissingExtra("textworld", "text") from error
