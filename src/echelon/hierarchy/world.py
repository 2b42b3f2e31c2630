"""Batched worlds for the runner, and adapters from gymnasium environments.

A world holds `slots` episodes at a time with `agents` decision makers each; its arrays have one row a stream
(slots × agents, agents of one slot side by side). Episodes start only when the runner says so: no world resets itself,
so the observation after an episode's last step is always its true final one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from torch import Tensor

from echelon.envs.restore import set_state, state_of
from echelon.errors import EchelonError, UsageError
from echelon.hierarchy.columns import as_array

Array = np.ndarray | Tensor
Observation = Mapping[str, Array]


@dataclass(frozen=True)
class Reset:
    """How an episode starts: `seed` and `options` go to the world, `labels` to the episode's record."""

    seed: int | None = None
    options: Mapping[str, Any] | None = None
    labels: Mapping[str, float | int | bool | str] = field(default_factory=dict)


class Step(NamedTuple):
    """What a world answers; all arrays have one row a stream, rows of idle streams are ignored.

    `reward`: float[S], or channel → float[S] (NaN: not scored yet). `elapsed`: float[S] time that passed, if not 1.
    `infos`: one mapping a slot, or one mapping of arrays [S] (or [slots]).
    """

    observation: Observation | Array
    reward: Array | Mapping[str, Array]
    terminated: Array
    truncated: Array
    elapsed: Array | None = None
    infos: Sequence[Mapping[str, Any]] | Mapping[str, Any] | None = None


class World(Protocol):
    """What the runner needs of a world. Returned arrays belong to the caller: a world does not write to them later."""

    slots: int
    agents: int
    roles: Sequence[str]  # one name an agent
    bounds: tuple[Tensor, Tensor] | None  # the executed action is clipped to them
    explicit: bool  # whether `reset` honours seeds and options

    def reset(self, slots: np.ndarray, resets: Sequence[Reset]) -> Observation | Array:
        """Start an episode in each of the given slots; return the observation of all streams."""
        ...

    def step(self, actions: Tensor, active: np.ndarray) -> Step:
        """Execute `actions` [S, ...] in the streams where `active` bool[S]."""
        ...


@runtime_checkable
class Restorable(Protocol):
    """A world whose running episodes can be kept and gone on with."""

    def state_dict(self) -> dict[str, Any] | None:
        """Where all episodes stand, as plain data and tensors; None if that cannot be told."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Stand as `state_dict` said."""
        ...


@runtime_checkable
class Changing(Protocol):
    """A world whose rules may change once it has made so many steps."""

    def stand_at(self, steps: int) -> None:
        """Count as having made so many steps in each slot."""
        ...


def name_of(world: World) -> str:
    """What the world is called in messages: its `name`, or that of its class."""
    return getattr(world, "name", None) or type(world).__name__


def _env_name(env: gymnasium.Env[Any, Any] | VectorEnv) -> str:
    return type(env.unwrapped).__name__ if env.spec is None else env.spec.id


class WorldError(EchelonError):
    """An environment raised; `slot` says in which."""

    def __init__(self, slot: int, error: Exception):
        super().__init__(f"slot {slot}: {type(error).__name__}: {error}")
        self.slot = slot


def from_gym(envs: Sequence[gymnasium.Env], clip: bool = True, dtype: torch.dtype = torch.float32) -> GymWorld:
    """Run several gymnasium environments one after the other, one slot each.

    Seeds and options of each `Reset` go to `env.reset`. Floating observations become `dtype`; with `clip` actions are
    clipped to a `Box` action space.
    """
    return GymWorld(envs, clip, dtype)


def from_vector(env: VectorEnv, clip: bool = True, dtype: torch.dtype = torch.float32) -> VectorWorld:
    """Run a gymnasium vector environment, one slot a sub-environment.

    Autoreset mode DISABLED is what suits (`reset` with a mask, seeds honoured). SAME_STEP works for `Runner.collect`
    with seeds left to the environment. NEXT_STEP is refused: there the step after an episode's end ignores the action,
    so that the record would hold transitions that nobody decided.
    """
    return VectorWorld(env, clip, dtype)


def _bounds(space: gymnasium.Space, clip: bool) -> tuple[Tensor, Tensor] | None:
    if not clip or not isinstance(space, gymnasium.spaces.Box):
        return None
    if not (np.isfinite(space.low).any() or np.isfinite(space.high).any()):
        return None
    return torch.from_numpy(space.low.copy()), torch.from_numpy(space.high.copy())


class GymWorld:
    """See `from_gym`."""

    def __init__(self, envs: Sequence[gymnasium.Env], clip: bool, dtype: torch.dtype):
        if not envs:
            raise UsageError("from_gym needs at least one environment")
        self.envs = list(envs)
        self.slots, self.agents, self.explicit = len(self.envs), 1, True
        self.roles: Sequence[str] = ("agent",)
        self.bounds = _bounds(self.envs[0].action_space, clip)
        self._float = torch.empty(0, dtype=dtype).numpy().dtype
        self._integer_action = isinstance(self.envs[0].action_space, gymnasium.spaces.Discrete)
        self._rows: dict[str, np.ndarray] = {}
        self._plain = False  # a bare array rather than a dict
        self._infos: list[Mapping[str, Any]] = [{} for _ in self.envs]
        self.name = _env_name(self.envs[0])

    def reset(self, slots: np.ndarray, resets: Sequence[Reset]) -> Observation:
        """Reset the given slots one by one; see `World.reset`."""
        first = not self._rows
        rows = {name: array.copy() for name, array in self._rows.items()}
        for slot, reset in zip(slots.tolist(), resets, strict=True):
            options = None if reset.options is None else dict(reset.options)
            try:
                observation, self._infos[slot] = self.envs[slot].reset(seed=reset.seed, options=options)
            except Exception as error:  # whatever an environment raises, the slot belongs in the message
                raise WorldError(slot, error) from error
            if first:
                rows, first = self._allocate(observation), False
            for name, value in (("observation", observation),) if self._plain else observation.items():
                rows[name][slot] = value
        self._rows = rows
        return rows

    def step(self, actions: Tensor, active: np.ndarray) -> Step:
        """Step the active slots one by one; see `World.step`."""
        command = actions.cpu().numpy()
        if self._integer_action:
            command = command.tolist()
        rows = {name: array.copy() for name, array in self._rows.items()}
        plain = rows["observation"] if self._plain else None
        reward = np.zeros(self.slots, dtype=np.float32)
        terminated, truncated = np.zeros(self.slots, dtype=bool), np.zeros(self.slots, dtype=bool)
        infos = self._infos
        slot = 0
        try:
            for slot, env in enumerate(self.envs):
                if not active[slot]:
                    continue
                observation, reward[slot], terminated[slot], truncated[slot], infos[slot] = env.step(command[slot])
                if plain is not None:
                    plain[slot] = observation
                else:
                    for name, value in observation.items():
                        rows[name][slot] = value
        except Exception as error:  # whatever an environment raises, the slot belongs in the message
            raise WorldError(slot, error) from error
        self._rows = rows
        return Step(rows, reward, terminated, truncated, infos=infos)

    def state_dict(self) -> dict[str, Any] | None:
        """Where all episodes stand; None if an environment's state cannot be told."""
        states = [state_of(env) for env in self.envs]
        if any(state is None for state in states):
            return None
        rows = {name: torch.from_numpy(array.copy()) for name, array in self._rows.items()}
        return {"states": states, "rows": rows, "plain": self._plain}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Bring every environment to where it stood."""
        self._rows = {name: rows.numpy() for name, rows in state["rows"].items()}
        self._plain = state["plain"]
        for slot, (env, kept) in enumerate(zip(self.envs, state["states"], strict=True)):
            env.reset()
            set_state(env, kept)
            self._infos[slot] = {}

    def _allocate(self, observation: Any) -> dict[str, np.ndarray]:
        self._plain = not isinstance(observation, Mapping)
        parts = {"observation": observation} if self._plain else observation
        rows = {}
        for name, value in parts.items():
            array = np.asarray(value)
            dtype = self._float if array.dtype.kind == "f" else array.dtype
            rows[name] = np.zeros((self.slots, *array.shape), dtype=dtype)
        return rows


class VectorWorld:
    """See `from_vector`."""

    def __init__(self, env: VectorEnv, clip: bool, dtype: torch.dtype):
        mode = env.metadata.get("autoreset_mode")
        mode = AutoresetMode(mode) if isinstance(mode, str) else mode
        if mode not in (AutoresetMode.DISABLED, AutoresetMode.SAME_STEP):
            raise UsageError(
                f"autoreset mode {getattr(mode, 'name', mode)} of {type(env).__name__} mixes episodes; make it with "
                "autoreset_mode=AutoresetMode.DISABLED (or SAME_STEP, for collect only)"
            )
        self.env, self.explicit = env, mode is AutoresetMode.DISABLED
        self.slots, self.agents, self.name = env.num_envs, 1, _env_name(env)
        self.roles: Sequence[str] = ("agent",)
        self.bounds = _bounds(env.single_action_space, clip)
        self._dtype, self._copies = dtype, bool(getattr(env, "copy", False))
        self._torch = False  # a world that shows tensors is given tensors
        self._begun = False
        self._ended = np.zeros(self.slots, dtype=bool)  # since their last step, and not yet reset
        self._next: Observation = {}  # SAME_STEP: with new episodes begun

    def reset(self, slots: np.ndarray, resets: Sequence[Reset]) -> Observation:
        """Reset the given slots in one call; see `World.reset`."""
        some = self._begun and (self.explicit or bool(self._ended[slots].all()))
        if not some:
            self.env.reset(seed=None)  # a first reset starts every sub-environment
            self._begun = True
        self._ended[slots] = False
        if some and not self.explicit:
            return self._next
        options = dict(_shared_options(resets) or {})
        seeds: list[int | None] = [None] * self.slots
        for slot, reset in zip(slots.tolist(), resets, strict=True):
            seeds[slot] = reset.seed
        if self.explicit:
            options["reset_mask"] = np.isin(np.arange(self.slots), slots)
        observation, _ = self.env.reset(seed=seeds, options=options)  # type: ignore[arg-type]  # lists are legal there
        self._next = self._as_dict(observation)
        return self._next

    def step(self, actions: Tensor, active: np.ndarray) -> Step:
        """Step all sub-environments; see `World.step`."""
        if self.explicit and self._ended.any():  # idle slots are kept alive, what they do is ignored
            self.env.reset(seed=None, options={"reset_mask": self._ended.copy()})
            self._ended[:] = False
        command = actions if self._torch else actions.cpu().numpy()
        observation, reward, terminated, truncated, infos = self.env.step(command)
        self._next = observation = self._as_dict(observation)
        ended = as_array(terminated) | as_array(truncated)
        self._ended |= ended
        if not self.explicit and ended.any():
            observation, infos = self._final(observation, ended, infos), _with_final(infos)
        return Step(observation, reward, terminated, truncated, infos=infos)

    def state_dict(self) -> dict[str, Any] | None:
        """Where all episodes stand; None if the environment cannot tell."""
        if not isinstance(self.env, Restorable):
            return None
        state = self.env.state_dict()
        shown = {name: torch.as_tensor(array).clone() for name, array in self._next.items()}
        mine = {"begun": self._begun, "ended": torch.from_numpy(self._ended.copy()), "torch": self._torch}
        return None if state is None else {"env": state, "next": shown, **mine}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Bring the environment to where it stood."""
        if not isinstance(self.env, Restorable):
            raise UsageError(f"{type(self.env).__name__} cannot be brought to a state; it has no load_state_dict")
        self.env.load_state_dict(state["env"])
        self._next, self._begun, self._torch = state["next"], state["begun"], state["torch"]
        self._ended = state["ended"].numpy().copy()

    def stand_at(self, steps: int) -> None:
        """Begin episodes by the rules of that time, where they change."""
        if isinstance(self.env, Changing):
            self.env.stand_at(steps)

    def _as_dict(self, observation: Any) -> dict[str, Tensor]:
        parts = observation if isinstance(observation, Mapping) else {"observation": observation}
        self._torch = all(isinstance(value, Tensor) for value in parts.values())
        return {name: self._cast(value) for name, value in parts.items()}

    def _cast(self, value: Any) -> Tensor:
        """A tensor of its own, floating values in the type asked for."""
        tensor = torch.as_tensor(value)
        cast = tensor.to(self._dtype) if tensor.is_floating_point() else tensor
        return cast.clone() if cast is tensor and not self._copies else cast

    def _final(self, observation: Observation, ended: np.ndarray, infos: Mapping[str, Any]) -> Observation:
        """SAME_STEP: put the true final observations in place of those of the new episodes."""
        if "final_obs" not in infos:
            raise UsageError(f"{type(self.env).__name__} ended episodes in SAME_STEP mode without infos['final_obs']")
        finals, result = infos["final_obs"], {}
        for name, array in observation.items():
            column = torch.as_tensor(array).clone()
            for slot in np.flatnonzero(ended).tolist():
                value = finals[name][slot] if isinstance(finals, Mapping) else finals[slot]
                value = value[name] if isinstance(value, Mapping) else value
                column[slot] = torch.as_tensor(value)
            result[name] = column
        return result


def _with_final(infos: Mapping[str, Any]) -> dict[str, Any]:
    """SAME_STEP: infos with those of an episode's last step in place of those of the next one's start."""
    merged, final = dict(infos), infos.get("final_info", {})
    for key in final:
        if "_" + key in final:
            seen = as_array(final["_" + key])
            merged[key] = np.where(seen, final[key], merged.get(key, final[key]))
            merged["_" + key] = seen | merged.get("_" + key, False)
    return merged


def _shared_options(resets: Sequence[Reset]) -> dict[str, Any] | None:
    options = resets[0].options
    if any(reset.options != options for reset in resets):
        raise UsageError("a vector environment takes the same options for all episodes started together; use from_gym")
    return None if options is None else dict(options)
