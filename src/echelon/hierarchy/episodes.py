"""Which episode each slot of a world is in: starts them, follows their returns and infos, labels them in the end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch

from echelon.errors import UsageError
from echelon.hierarchy.columns import as_array
from echelon.hierarchy.recorder import Recorder
from echelon.hierarchy.world import Reset, Step, World


class Episodes:
    """The episodes that are running, one row a stream in every array.

    `active`: the stream acts. `fresh`: it has not decided yet in its episode. Episode numbers are unique in one object.
    """

    def __init__(self, world: World, recorder: Recorder, info_labels: Sequence[str]):
        self.world, self.recorder = world, recorder
        self.slots, self.agents = world.slots, world.agents
        self.streams = world.slots * world.agents
        self.begun = 0
        """Episodes begun so far; the next one has this number."""
        self._info_labels = tuple(info_labels)
        self.source: Iterator[Reset] | None = None
        self.forget()

    def forget(self) -> None:
        """Abandon all episodes."""
        self.source = None
        self.active, self.all_active = np.zeros(self.streams, dtype=bool), False
        self.fresh, self.any_fresh = np.zeros(self.streams, dtype=bool), False
        self._resets = [Reset()] * self.slots
        self._label_names: set[str] | None = None
        self._returns: dict[str, np.ndarray] = {}
        self._channels: tuple[str, ...] | None = None
        self._infos = {key: np.full(self.streams, np.nan) for key in self._info_labels}

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps, as plain data and tensors."""
        return {
            "begun": self.begun,
            "active": torch.from_numpy(self.active.copy()),
            "fresh": torch.from_numpy(self.fresh.copy()),
            "resets": [
                {"seed": r.seed, "options": None if r.options is None else dict(r.options), "labels": dict(r.labels)}
                for r in self._resets
            ],
            "returns": {name: torch.from_numpy(values.copy()) for name, values in self._returns.items()},
            "channels": None if self._channels is None else list(self._channels),
            "infos": {name: torch.from_numpy(values.copy()) for name, values in self._infos.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any], source: Iterator[Reset]) -> None:
        """Go on from `state_dict`; `source` gives the episodes that come."""
        self.begun, self.source = state["begun"], source
        self.active, self.fresh = state["active"].numpy(), state["fresh"].numpy()
        self.all_active, self.any_fresh = bool(self.active.all()), bool(self.fresh.any())
        self._resets = [Reset(r["seed"], r["options"], r["labels"]) for r in state["resets"]]
        self._label_names = set(self._resets[0].labels) if self._resets else None
        self._returns = {name: values.numpy() for name, values in state["returns"].items()}
        self._channels = None if state["channels"] is None else tuple(state["channels"])
        self._infos = {name: values.numpy() for name, values in state["infos"].items()}

    def begin(self, slots: np.ndarray) -> Any:
        """Start the next episodes of the source in `slots`, as far as it has any.

        Returns the observation of all streams, None if nothing was started.
        """
        assert self.source is not None
        resets = list(islice(self.source, len(slots)))
        if not resets:
            return None
        slots = slots[: len(resets)]
        observation = self.world.reset(slots, resets)
        for slot, reset in zip(slots.tolist(), resets, strict=True):
            self._resets[slot] = reset
            self._label_names = set(reset.labels) if self._label_names is None else self._label_names
            if self._label_names != set(reset.labels):
                raise UsageError(
                    f"every Reset needs the same labels; {sorted(self._label_names)} before, now {sorted(reset.labels)}"
                )
        numbers = np.arange(self.begun, self.begun + len(slots))
        self.begun += len(slots)
        streams = (slots[:, None] * self.agents + np.arange(self.agents)).ravel()
        self.recorder.open(streams, numbers.repeat(self.agents))
        self.active[streams] = self.fresh[streams] = self.any_fresh = True
        self.all_active = bool(self.active.all())
        for values in self._returns.values():
            values[streams] = 0
        for values in self._infos.values():
            values[streams] = np.nan
        return observation

    def finish(self, streams: np.ndarray) -> np.ndarray:
        """Streams stop acting; return the slots in which now none acts."""
        self.active[streams] = self.all_active = False
        slots = np.unique(streams // self.agents)
        return slots[~self.active.reshape(self.slots, self.agents)[slots].any(1)]

    def follow(self, step: Step) -> dict[str, np.ndarray]:
        """Add up the rewards of a step and read its infos; return the rewards by channel."""
        reward = step.reward
        if type(reward) is np.ndarray or not isinstance(reward, Mapping):
            rewards = {"reward": as_array(reward)}
        else:
            rewards = {name: as_array(channel) for name, channel in reward.items()}
        if self._channels is None:
            self._returns = {name: np.zeros(self.streams) for name in rewards}
            self._channels = (*rewards, "elapsed time") if step.elapsed is not None else (*rewards,)
        if len(rewards) + (step.elapsed is not None) != len(self._channels) or rewards.keys() != self._returns.keys():
            now = (*rewards, "elapsed time") if step.elapsed is not None else (*rewards,)
            raise UsageError(f"the world gave the columns {self._channels} before, {now} now; it must give all always")
        for name, channel in rewards.items():
            self._returns[name] += channel
        if self._infos and step.infos is not None:
            self._read(step.infos)
        return rewards

    def _read(self, infos: Sequence[Mapping[str, Any]] | Mapping[str, Any]) -> None:
        for key, last in self._infos.items():
            if isinstance(infos, Mapping):
                if key in infos:
                    values = as_array(infos[key]).astype(float)
                    seen = as_array(infos.get("_" + key, np.ones(len(values), dtype=bool)))
                    repeat = self.streams // len(values)  # an entry a slot, or one a stream
                    np.copyto(last, values.repeat(repeat), where=seen.repeat(repeat) & self.active)
                continue
            for slot, info in enumerate(infos):
                if key in info:
                    rows = slice(slot * self.agents, (slot + 1) * self.agents)
                    np.copyto(last[rows], float(info[key]), where=self.active[rows])

    def labels(self, streams: np.ndarray) -> dict[str, np.ndarray]:
        """The labels of `streams` as they stand."""
        resets = [self._resets[slot] for slot in (streams // self.agents).tolist()]
        labels = {
            "seed": np.array([-1 if reset.seed is None else reset.seed for reset in resets], dtype=np.int64),
            "length": self.recorder.ticks(streams),
        }
        labels["return"] = sum(self._returns.values(), start=np.zeros(self.streams))[streams]
        if len(self._returns) > 1:
            labels |= {f"return/{channel}": values[streams] for channel, values in self._returns.items()}
        for key, values in self._infos.items():
            labels[key] = values[streams]
        for name in resets[0].labels if resets else ():
            if name in labels:
                raise UsageError(f"a Reset carries the label '{name}', which the runner writes itself")
            labels[name] = np.array([reset.labels[name] for reset in resets])
        return labels
