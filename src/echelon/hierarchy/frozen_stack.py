"""A trained stack as a world whose action is the command that its top level follows.

Whoever acts in a `FrozenStack` decides where the stack's own master stood: an action is a command (a skill, a goal, an
option), which the frozen levels follow until it ends, and a step is all that happened meanwhile. Rewards come summed,
and `elapsed` says how long it took, so that `Transitions` discounts by the true time.

    skills = FrozenStack(from_gym(envs), agent.levels(explore=False)[1:], Command(Every(10)))
    Runner([manager], skills).collect(100)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import count
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from echelon.errors import EchelonError, UsageError
from echelon.hierarchy.columns import as_array, as_columns, as_tensors, has_nan
from echelon.hierarchy.level import Decision, Level
from echelon.hierarchy.termination import Every, Termination
from echelon.hierarchy.track import START, Track, build_tracks, take
from echelon.hierarchy.world import Reset, Restorable, Step, VectorWorld, World, WorldError, name_of

T = TypeVar("T")
Infos = Sequence[Mapping[str, Any]] | Mapping[str, Any] | None
_MISFITS = (RuntimeError, ValueError, TypeError, KeyError, IndexError, WorldError)


class Command(Level):
    """The place above a frozen stack: holds what is commanded from outside for as long as `termination` says.

    A termination sees what the stack sees, the command, and whether the decision of the stack's top level has just
    ended. A command that moves with the world (a relative goal) is that of a subclass with `advance`.
    """

    def __init__(self, termination: Termination, name: str = "command"):
        self.termination, self.name = termination, name
        self.given: Tensor | None = None

    def decide(self, features: Any, parent: Tensor | None, due: Tensor) -> Decision:
        """What was commanded."""
        assert self.given is not None
        return Decision(self.given[due])


class FrozenStack:
    """The `World` in which `levels` (top first) follow commands in `world`.

    gamma: discount of a time unit in the summed reward; that of the learner above, or 1 for the plain sum.
    bounds: lowest and highest command, if commands are to be clipped.
    generator: for levels that sample; its state is part of the world's.
    device: where the levels compute.
    limit: ticks after which a command that has not ended is an error, in a world without an end of its own.

    Each step begins a new command, and with it all decisions below; memories go on through an episode. In a world that
    can only move all its streams together, commands must end together (`Every`). `infos` are the latest of each key.
    """

    def __init__(
        self,
        world: World,
        levels: Sequence[Level],
        command: Command,
        *,
        gamma: float = 1.0,
        bounds: tuple[Tensor, Tensor] | None = None,
        generator: torch.Generator | None = None,
        device: torch.device | str = "cpu",
        limit: int = 100_000,
    ):
        if not levels:
            raise UsageError("a frozen stack needs at least one level that follows commands")
        if not 0 <= gamma <= 1:
            raise UsageError(f"gamma must be in [0, 1], got {gamma}")
        self.world, self.command, self.gamma, self.bounds = world, command, gamma, bounds
        self.slots, self.agents, self.roles, self.explicit = world.slots, world.agents, world.roles, True
        self.device, self.generator, self.limit = torch.device(device), generator, limit
        self.tracks = build_tracks([command, *levels], world.slots, world.agents, self.device)
        self.inside, self.name = name_of(world), f"the stack in {name_of(world)}"
        self._check()
        for track in self.tracks:
            if generator is not None:
                track.level.generator = generator
            for learned in track.learned:
                learned.generator = generator
        self._limits = None if world.bounds is None else tuple(b.to(self.device) for b in world.bounds)
        self._tried = False  # whether levels and world were seen to fit
        self._rows: dict[str, np.ndarray] = {}  # what each stream saw last
        self._infos: list[dict[str, Any]] = [{} for _ in range(self.slots)]

    def _check(self) -> None:
        world, top = self.world, self.tracks[0]
        if not world.explicit:
            raise UsageError(f"{self.inside} resets itself; a frozen stack needs a world with explicit resets")
        if top.streams != world.slots * world.agents:
            raise UsageError(
                f"level '{self.tracks[1].name}' commands {top.width} of the {world.agents} agents of {self.inside}; a "
                "frozen stack takes a command for each agent"
            )
        if not _independent(world) and type(self.command.termination) is not Every:
            raise UsageError(
                f"{self.inside} moves all its streams together, so commands must last equally long: "
                f"Every(k), not {self.command.termination!r}"
            )

    # ---- the world that a runner sees

    def reset(self, slots: np.ndarray, resets: Sequence[Reset]) -> Mapping[str, np.ndarray]:
        """Start episodes in the given slots; see `World.reset`."""
        seen = as_columns(self.world.reset(slots, resets))
        fresh = np.isin(np.arange(self.slots), slots).repeat(self.agents)
        for slot in slots.tolist():
            self._infos[slot] = {}
        with torch.inference_mode():
            for track in self.tracks:
                track.reset_memory(fresh)
            self._look(seen, fresh)
        return dict(self._rows)

    def step(self, actions: Tensor, active: np.ndarray) -> Step:
        """Follow the commands `actions` [S, ...] in the streams `active`, each until it ends; see `World.step`."""
        moving, streams = active.copy(), len(active)
        self.command.given = actions.to(self.device)
        total = _Total(streams, self.gamma)
        with torch.inference_mode():
            self._begin(moving)
            for tick in count():
                if not moving.any():
                    break
                if tick == self.limit:
                    raise self._endless(moving)
                for track in self.tracks:
                    track.set_active(moving)
                    self._decide(track)
                step = self._fitting(self.tracks[-1], self.world.step, self._executed(), moving)
                total.add(step, moving)
                self._remember(step.infos, moving)
                self._look(as_columns(step.observation), moving)
                moving = moving & ~(total.terminated | total.truncated)
                moving = moving & ~self._over()
        return Step(
            dict(self._rows), total.reward(), total.terminated, total.truncated, total.elapsed, list(self._infos)
        )

    def state_dict(self) -> dict[str, Any] | None:
        """Where all episodes stand; None if the world below cannot tell."""
        inner = self.world.state_dict() if isinstance(self.world, Restorable) else None
        if inner is None:
            return None
        return {
            "world": inner,
            "rows": {name: torch.from_numpy(row.copy()) for name, row in self._rows.items()},
            "memory": [track.memory for track in self.tracks],
            "prior": [track.prior for track in self.tracks],
            "generator": None if self.generator is None else self.generator.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Stand as `state_dict` said."""
        assert isinstance(self.world, Restorable)
        self.world.load_state_dict(state["world"])
        self._rows = {name: row.numpy() for name, row in state["rows"].items()}
        self._infos = [{} for _ in range(self.slots)]
        for track, memory, prior in zip(self.tracks, state["memory"], state["prior"], strict=True):
            track.forget()
            track.memory, track.prior = memory, prior
        if self.generator is not None:
            self.generator.set_state(state["generator"])

    # ---- one tick

    def _begin(self, active: np.ndarray) -> None:
        """Every level of the active streams is to decide, on what it sees with the memory that it had before."""
        obs = self._seen()
        for track in self.tracks:
            if not track.always:
                track.codes = np.where(track.of(active), np.uint8(START), np.uint8(0))
            track.features, _ = self._fitting(track, track.level.observe, track.seen(obs), track.prior)

    def _decide(self, track: Track) -> None:
        """Make a level's due decisions its running ones."""
        rows, mask = track.rows, track.mask
        if track.codes is not None:
            due = (track.codes != 0) & track.active
            if not due.any():
                return
            mask = torch.from_numpy(due).to(self.device)
            rows = None if due.all() else mask.nonzero()[:, 0]
        features, parent = track.features, None if track.parent is None else track.command()
        if rows is not None:
            features, parent = take(features, rows), None if parent is None else parent[rows]
        decision = self._fitting(track, track.level.decide, features, parent, mask)
        if decision.empty is not None and bool(decision.empty.any()):
            raise UsageError(f"level '{track.name}' gives empty decisions, which a frozen stack does not follow")
        if has_nan(decision.action):
            raise EchelonError(f"frozen level '{track.name}' gave an action with NaN in {self.inside}")
        track.hold(decision.action, rows)
        if track.codes is not None:
            track.foresee()

    def _executed(self) -> Tensor:
        """What the world is sent: the bottom level's actions, guarded from the bottom up and within the bounds."""
        bottom = self.tracks[-1]
        proposed = bottom.running.action
        assert proposed is not None
        executed = proposed
        for track in reversed(self.tracks):
            if track.guards:
                executed = track.ungrouped(track.level.guard(track.features, track.grouped(executed), track.running))
        changed = (executed != proposed).reshape(len(executed), -1).any(1).cpu().numpy()
        for track in self.tracks:
            track.running.was_overridden = changed if track.members is None else changed[track.members].any(1)
        if self._limits is None:
            return executed
        low, high = self._limits
        if not self._tried and executed.shape[1:] != low.shape:
            shapes = f"actions of shape {list(executed.shape[1:])}; {self.inside} takes {list(low.shape)}"
            raise UsageError(f"level '{bottom.name}' does not fit {self.inside}: it gives {shapes}")
        return torch.clamp(executed, low, high)

    def _look(self, shown: Mapping[str, Any], moved: np.ndarray) -> None:
        """Show every level what the streams `moved` see now; the others see what they saw."""
        previous = self._seen()
        arrays = {name: as_array(column) for name, column in shown.items()}
        if self._rows and not moved.all():
            for name, row in self._rows.items():
                arrays[name] = np.where(moved.reshape(-1, *[1] * (row.ndim - 1)), arrays[name], row)
        self._rows = arrays
        obs = self._seen()
        for track in self.tracks:
            mine = torch.from_numpy(track.of(moved)).to(self.device)
            before = track.memory
            track.features, memory = self._fitting(track, track.level.observe, track.seen(obs), track.memory)
            track.prior, track.memory = _where(mine, before, track.prior), _where(mine, memory, before)
            if track.moves and track.running.action is not None:
                track.move(track.level.advance(track.running.action, track.seen(obs), track.seen(previous)))

    def _over(self) -> np.ndarray:
        """bool[S]: which commands end with this tick; finds out on the way which decisions below do."""
        for track in reversed(self.tracks):
            if not track.always:
                track.end_by_itself()
        for track in self.tracks:
            if not track.always:
                track.end_with_others(None)
        self._tried = True
        codes = self.tracks[0].codes
        return self.tracks[0].active if codes is None else codes != 0

    def _endless(self, moving: np.ndarray) -> WorldError:
        """The first command that does not end, with its slot."""
        error = EchelonError(
            f"the command of level '{self.command.name}' has not ended after {self.limit} ticks in {self.inside}; let "
            f"it end by {self.command.termination!r} | Every(k), or give the environment a time limit"
        )
        found = WorldError(int(np.flatnonzero(moving)[0]) // self.agents, error)
        found.__cause__ = error
        return found

    def _seen(self) -> dict[str, Tensor]:
        return {name: value.to(self.device) for name, value in as_tensors(self._rows).items()}

    def _remember(self, infos: Infos, moving: np.ndarray) -> None:
        """Keep the latest value of each key, slot by slot."""
        for slot in np.flatnonzero(moving.reshape(self.slots, self.agents).any(1)).tolist():
            self._infos[slot].update(_of_slot(infos, slot, self.slots))

    def _fitting(self, track: Track, ask: Callable[..., T], *arguments: Any) -> T:
        """Ask a level, or the world; while it was not seen to work here, say whose spaces do not fit."""
        try:
            return ask(*arguments)
        except _MISFITS as error:
            if self._tried:
                raise
            shapes = ", ".join(f"'{name}' {list(row.shape[1:])}" for name, row in self._rows.items())
            given = [] if self.command.given is None else list(self.command.given.shape[1:])
            what = f"level '{track.name}' does not fit {self.inside}, which shows {shapes}, and commands {given}"
            raise UsageError(f"{what}: {type(error).__name__}: {error}") from error


class _Total:
    """What a command came to so far: S streams."""

    def __init__(self, streams: int, gamma: float):
        self.gamma = gamma
        self.channels: dict[str, np.ndarray] = {}
        self.elapsed = np.zeros(streams, dtype=np.float32)
        self.terminated, self.truncated = np.zeros(streams, dtype=bool), np.zeros(streams, dtype=bool)
        self.bare = True  # the world gives one reward without a name

    def add(self, step: Step, moving: np.ndarray) -> None:
        """Add a tick of the streams `moving`."""
        self.bare = not isinstance(step.reward, Mapping)
        rewards = {"": step.reward} if not isinstance(step.reward, Mapping) else step.reward
        discount = self.gamma**self.elapsed
        for name, reward in rewards.items():
            earned = self.channels.setdefault(name, np.zeros(len(moving), dtype=np.float32))
            earned[moving] += (discount * as_array(reward))[moving]
        self.elapsed[moving] += 1 if step.elapsed is None else as_array(step.elapsed)[moving]
        self.terminated |= moving & as_array(step.terminated)
        self.truncated |= moving & as_array(step.truncated)

    def reward(self) -> Any:
        """As the world below gives it: one column, or one for each channel."""
        return self.channels[""] if self.bare else self.channels


def _where(rows: Tensor, new: Tensor | None, old: Tensor | None) -> Tensor | None:
    """`new` in the rows (bool) and `old` elsewhere; memories may not be there yet."""
    if new is None or old is None or bool(rows.all()):
        return new
    return torch.where(rows.reshape(-1, *[1] * (new.ndim - 1)), new, old)


def _of_slot(infos: Infos, slot: int, slots: int) -> Mapping[str, Any]:
    """The infos of one slot, from one mapping a slot or one of arrays with a row a slot (or stream: the first one)."""
    if infos is None:
        return {}
    if not isinstance(infos, Mapping):
        return infos[slot]
    columns = {name: as_array(values) for name, values in infos.items() if not isinstance(values, Mapping)}
    rows = {name: column[slot * (len(column) // slots)] for name, column in columns.items()}
    return {name: row for name, row in rows.items() if not name.startswith("_") and rows.get("_" + name, True)}


def _independent(world: World) -> bool:
    """Whether one stream can stand still while others move."""
    if isinstance(world, FrozenStack):
        return _independent(world.world)
    return world.agents == 1 and not isinstance(world, VectorWorld)
