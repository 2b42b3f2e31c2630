"""The vectorised top-down runner: a stack of levels acts in a batched world, and what happened becomes a `Rollout`.

One tick: decide (top first, streams that are due), guard, step the world, record, observe, terminate (bottom first; a
parent's ending ends its children's spans). Terminations are thus known as soon as the state that they judge is seen.

Deterministic levels in deterministic worlds give the same episodes whatever the number of slots, as far as their
arithmetic does: matrix products may round differently at another batch size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count as counting
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from echelon.errors import EchelonError, UsageError
from echelon.hierarchy.assembly import assemble
from echelon.hierarchy.level import Decision, Level
from echelon.hierarchy.recorder import Empty, Recorder
from echelon.hierarchy.termination import codes as as_codes
from echelon.hierarchy.track import PARENT, START, Track, build_tracks, take
from echelon.hierarchy.world import Reset, Step, World, WorldError
from echelon.rollout import Rollout

OpenSpans = Literal["carried", "bootstrapped"]
_MOST_EMPTY = 100  # empty decisions in a row after which a level is taken to be stuck


class Runner:
    """Runs `levels` (top first) in `world`.

    generator: set as `generator` of every level and learned termination, and the source of the seeds of the episodes that
        `collect` starts (without it those are not seeded). It must live on the levels' device.
    device: where the levels compute; observations are moved there.
    record: True for everything; names of observations to keep only those; False for episode labels alone.
    info_labels: keys of the world's infos whose last value in an episode becomes a label of its streams (NaN if never seen).
    resets: what `collect` starts its n-th episode with, instead of a seed from `generator`.
    policy_id, learner: of each agent of a slot, for the record.

    Streams also carry the labels "return" (per reward channel "return/<channel>" where there are several), "length" and
    "seed" (-1 if none), of the whole episode so far, and those of their `Reset`.
    """

    def __init__(
        self,
        levels: Sequence[Level],
        world: World,
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str = "cpu",
        record: bool | Sequence[str] = True,
        info_labels: Sequence[str] = (),
        resets: Callable[[int], Reset] | None = None,
        policy_id: str | Sequence[str] = "",
        learner: bool | Sequence[bool] = True,
    ):
        self.world, self.generator, self.device = world, generator, torch.device(device)
        self.slots, self.agents = world.slots, world.agents
        self.streams = self.slots * self.agents
        self.tracks = build_tracks(levels, self.slots, self.agents, self.device)
        self.recording = record is not False
        self.recorder = Recorder(self.tracks, self.streams, record)
        self.info_labels = tuple(info_labels)
        self.resets = resets
        self.policy_ids = _per_agent("policy_id", policy_id, self.agents)
        self.learners = _per_agent("learner", learner, self.agents)
        for level in levels:
            level.generator = generator
        for learned in (learned for track in self.tracks for learned in track.learned):
            learned.generator = generator
        self._timed = any(not track.always for track in self.tracks)
        self._moved = any(track.moves for track in self.tracks)
        self._guarded = [track for track in reversed(self.tracks) if track.guards]
        bounds = world.bounds
        self._bounds = None if bounds is None else (bounds[0].to(self.device), bounds[1].to(self.device))
        self._source: Iterator[Reset] | None = None  # None: no episode is running that `collect` could go on with
        self._stop_at: int | None = None
        self._forget()

    # ---- what a person calls

    def collect(self, ticks: int, open_spans: OpenSpans = "carried") -> Rollout:
        """Run every slot for `ticks` ticks, starting new episodes as old ones end, and return the record.

        The next call goes on where this one stopped. Decisions that are open at the end have the end `open`; with
        "carried" they continue in the next batch (begin `carried`), with "bootstrapped" they are over and every level
        decides anew. Either way the streams that go on show their latest observation as the final one.
        """
        if ticks < 1:
            raise UsageError(f"collect runs for at least one tick, not {ticks}")
        if open_spans not in ("carried", "bootstrapped"):
            raise UsageError(f"open_spans is 'carried' or 'bootstrapped', not {open_spans!r}")
        if self._source is None:
            self._restart(self._endless())
        self._run(ticks)
        rollout = self._close_batch(open_spans)
        return rollout

    def episodes(self, resets: Sequence[Reset]) -> Rollout:
        """Run exactly these episodes, each to its end, in the order given over the slots there are.

        The streams of the result are in the order of `resets`. A `collect` that was under way is abandoned.
        """
        if not self.world.explicit:
            raise UsageError(f"{type(self.world).__name__} resets itself; episodes needs a world with explicit resets")
        if not resets:
            raise UsageError("episodes needs at least one Reset")
        if any(set(reset.labels) != set(resets[0].labels) for reset in resets):
            raise UsageError("every Reset needs the same label names")
        self._restart(iter(resets))
        self._run(None)
        self._source = None
        rollout = self._assemble()
        self.recorder.next_batch()
        return rollout

    # ---- episodes

    def _forget(self) -> None:
        self.active = np.zeros(self.streams, dtype=bool)
        self._all_active = False
        self._fresh = np.zeros(self.streams, dtype=bool)  # streams without a decision yet
        self._any_fresh = False
        self.obs: dict[str, Tensor] = {}
        self.slot_reset: list[Reset] = [Reset()] * self.slots
        self._last_info = {key: np.full(self.streams, np.nan, dtype=np.float32) for key in self.info_labels}
        self._returns: dict[str, np.ndarray] = {}
        self._episode_numbers = counting()
        for track in self.tracks:
            track.memory = track.features = track.codes = track.running.action = None
        for log in self.recorder.logs:
            log.carried = None

    def _restart(self, source: Iterator[Reset]) -> None:
        self._forget()
        self.recorder.next_batch()
        self._source = source
        with torch.inference_mode():
            observation = self._begin(np.arange(self.slots))
            self._observe(observation)
            self._terminate()

    def _endless(self) -> Iterator[Reset]:
        for episode in counting():
            if self.resets is not None:
                yield self.resets(episode)
            elif self.generator is None or not self.world.explicit:
                yield Reset()
            else:
                place = self.generator.device
                yield Reset(seed=int(torch.randint(2**31 - 1, (), generator=self.generator, device=place)))

    def _begin(self, slots: np.ndarray) -> Any:
        """Start the next episodes of the source in `slots`, as far as there are any; return the observation of all."""
        assert self._source is not None
        resets = [reset for _, reset in zip(slots, self._source, strict=False)]
        slots = slots[: len(resets)]
        observation = None
        if resets:
            observation = self.world.reset(slots, resets)
            for slot, reset in zip(slots.tolist(), resets, strict=True):
                self.slot_reset[slot] = reset
            numbers = np.array([next(self._episode_numbers) for _ in resets], dtype=np.int64)
            streams = (slots[:, None] * self.agents + np.arange(self.agents)).ravel()
            self.recorder.open(streams, numbers.repeat(self.agents))
            self.active[streams] = self._fresh[streams] = True
            self._any_fresh = True
            for values in (*self._last_info.values(), *self._returns.values()):
                values[streams] = np.nan if values.dtype == np.float32 else 0
        self._activity_changed()
        return observation

    def _activity_changed(self) -> None:
        self._all_active = bool(self.active.all())
        for track in self.tracks:
            track.set_active(self.active)

    def _end(self, step: Step, terminated: np.ndarray, truncated: np.ndarray, ended: np.ndarray) -> Any:
        """Close the streams that ended and start new episodes in slots where all did; return the new observation."""
        streams = np.flatnonzero(ended)
        final = self._rows(as_tensors(step.observation), streams)
        self.recorder.close(streams, terminated[streams], truncated[streams], final, self._labels(streams))
        self.active[streams] = False
        running = self.active.reshape(self.slots, self.agents).any(1)
        slots = np.unique(streams // self.agents)
        slots = slots[~running[slots]]
        observation = None
        if len(slots):
            observation = self._begin(slots)
        else:
            self._activity_changed()
        return step.observation if observation is None else observation

    def _rows(self, obs: Mapping[str, Tensor], streams: np.ndarray) -> dict[str, Tensor]:
        names = obs if self.recorder.observations is None else self.recorder.observations
        rows = torch.from_numpy(streams)
        return {name: obs[name][rows.to(obs[name].device)] for name in names} if self.recording else {}

    def _labels(self, streams: np.ndarray) -> dict[str, np.ndarray]:
        resets = [self.slot_reset[slot] for slot in (streams // self.agents).tolist()]
        seeds = np.array([-1 if reset.seed is None else reset.seed for reset in resets], dtype=np.int64)
        started, row = self.recorder.start[streams], self.recorder.row
        labels: dict[str, np.ndarray] = {"seed": seeds, "length": self.recorder.start_tick[streams] + row - started}
        for channel, values in self._returns.items():
            name = "return" if len(self._returns) == 1 else f"return/{channel}"
            labels[name] = values[streams].astype(np.float32)
        for key, values in self._last_info.items():
            labels[key] = values[streams].copy()
        for name in resets[0].labels:
            if name in labels:
                raise UsageError(f"the label '{name}' of a Reset is the name of a label that the runner writes")
            labels[name] = np.array([reset.labels[name] for reset in resets])
        return labels

    def _close_batch(self, open_spans: OpenSpans) -> Rollout:
        recorder = self.recorder
        streams = np.flatnonzero(self.active & (recorder.start < recorder.row))
        if len(streams):
            none = np.zeros(len(streams), dtype=bool)
            recorder.close(streams, none, none, self._rows(self.obs, streams), self._labels(streams))
        rollout = self._assemble()
        recorder.next_batch()
        if open_spans == "bootstrapped":
            self._fresh |= self.active
            self._any_fresh = True
            for track in self.tracks:
                if track.codes is not None:
                    track.codes[track.active] = START
            for log in recorder.logs:
                log.carried = None
        return rollout

    def _assemble(self) -> Rollout:
        return assemble(self.recorder, self.world.roles, self.policy_ids, self.learners, self.device)

    # ---- the tick

    @torch.inference_mode()
    def _run(self, ticks: int | None) -> None:
        if self.recording:
            self._record_memories(self.active)
        for _ in counting() if ticks is None else range(ticks):
            self._tick()
            if ticks is None and not self.active.any():
                return

    def _tick(self) -> None:
        recorder, recording = self.recorder, self.recording
        for index in range(len(self.tracks)):
            self._decide(index)
        self._fresh_is_over()
        proposed = executed = self.tracks[-1].running.action
        assert executed is not None
        if self._guarded:
            executed = self._guard(executed)
        if self._bounds is not None:
            executed = torch.clamp(executed, *self._bounds)
        if recording:
            recorder.observe(self.obs)
            bottom = self.tracks[-1]
            if not bottom.always or bottom.moves:
                recorder.write("proposed", proposed)
            if executed is not proposed:
                recorder.write("executed", executed)
        try:
            step = self.world.step(executed, self.active)
        except Exception as error:  # whatever a world raises, where it happened belongs in the message
            raise self._raised(error) from error
        self._reward(step)
        recorder.row += 1
        terminated, truncated = as_array(step.terminated), as_array(step.truncated)
        ended = terminated | truncated
        if not self._all_active:
            ended &= self.active
        observation = self._end(step, terminated, truncated, ended) if ended.any() else step.observation
        if self._all_active or self.active.any():
            self._observe(observation)
            self._terminate()

    def _decide(self, index: int) -> None:
        """Ask one level for the decisions that are due and make them its running ones."""
        track, log = self.tracks[index], self.recorder.logs[index]
        if track.always:
            due, rows = None, track.rows
            number = track.streams if rows is None else len(rows)
        else:
            codes = track.codes
            if self.recording:
                log.codes.set(self.recorder.row, codes)
                for buffer, learned in zip(log.learned, track.learned, strict=True):
                    buffer.set(self.recorder.row, self._probability(track, learned.probability))
            due = codes != 0
            number = int(np.count_nonzero(due))
            if number == 0:
                return
            rows = None if number == track.streams else torch.from_numpy(np.flatnonzero(due)).to(self.device)
        features, parent, mask = track.features, track.command(), track.all_due
        if rows is not None:
            features, parent = take(features, rows), None if parent is None else parent[rows]
            mask = torch.zeros_like(mask)
            mask[rows] = True
        decision = track.level.decide(features, parent, mask)
        self._check(track, decision, number, rows)
        if decision.empty is not None and decision.empty.any():
            decision = self._refill(track, log, decision, rows)
        if self.recording:
            log.decided(decision)
        track.hold(decision.action, rows, due)

    def _refill(self, track: Track, log: Any, decision: Decision, rows: Tensor | None) -> Decision:
        """Record the decisions that took no time and ask again in their place, until each stream has one that does."""
        rows = torch.arange(track.streams, device=self.device) if rows is None else rows
        command = track.command()
        parts = [decision.action.clone(), None if decision.log_prob is None else decision.log_prob.clone()]
        values = {name: value.clone() for name, value in decision.values.items()}
        at = torch.arange(len(rows), device=self.device)
        for _ in range(_MOST_EMPTY):
            assert decision.empty is not None
            again = decision.empty.nonzero()[:, 0]
            streams = rows[at[again]]
            done = Decision(*_pick(decision, again))
            if self.recording:
                log.empties.append(Empty(self.recorder.row, streams.cpu().numpy(), done))
            at = at[again]
            mask = torch.zeros_like(track.all_due)
            mask[streams] = True
            parent = None if command is None else command[streams]
            decision = track.level.decide(take(track.features, streams), parent, mask)
            self._check(track, decision, len(at), streams)
            parts[0][at] = decision.action
            if parts[1] is not None:
                parts[1][at] = decision.log_prob
            for name, value in decision.values.items():
                values[name][at] = value
            if decision.empty is None or not decision.empty.any():
                return Decision(parts[0], parts[1], values)
        stuck = self._stream(int(streams[0]), track)
        raise EchelonError(f"level '{track.name}' gave {_MOST_EMPTY} empty decisions in a row in {stuck}")

    def _guard(self, proposed: Tensor) -> Tensor:
        """Let each level override what is executed, the bottom level first: the top has the last word."""
        executed = proposed
        for track in self._guarded:
            grouped = track.grouped(executed)
            answer = track.level.guard(track.features, grouped, track.running)
            if answer is grouped:
                continue
            if answer.shape != grouped.shape:
                raise UsageError(
                    f"guard of level '{track.name}' returned {list(answer.shape)}, not {list(grouped.shape)}"
                )
            executed = track.ungrouped(answer)
        self._check_finite("guarded action", self._guarded[-1], executed, None)
        changed = (executed != proposed).flatten(1).any(1) if executed.ndim > 1 else executed != proposed
        changed = changed.cpu().numpy()
        for track in self.tracks:
            track.running.was_overridden = changed if track.members is None else changed[track.members].any(1)
        return executed

    def _reward(self, step: Step) -> None:
        channels = step.reward if isinstance(step.reward, Mapping) else {"reward": step.reward}
        for channel, reward in channels.items():
            values = as_array(reward)
            if channel not in self._returns:
                self._returns[channel] = np.zeros(self.streams, dtype=np.float64)
            if self._all_active:
                self._returns[channel] += values
            else:
                self._returns[channel][self.active] += values[self.active]
            self.recorder.write("reward/" + channel, values)
        if step.elapsed is not None and self.recording:
            self.recorder.write("elapsed", step.elapsed)
        if self.info_labels and step.infos is not None:
            self._read_infos(step.infos)

    def _read_infos(self, infos: Sequence[Mapping[str, Any]] | Mapping[str, Any]) -> None:
        for key, last in self._last_info.items():
            if isinstance(infos, Mapping):
                if key not in infos:
                    continue
                values = as_array(infos[key]).astype(np.float32)
                seen = as_array(infos.get("_" + key, np.ones(len(values), dtype=bool)))
                if len(values) != self.streams:
                    values, seen = values.repeat(self.agents), seen.repeat(self.agents)
                np.copyto(last, values, where=seen & self.active)
            else:
                for slot, info in enumerate(infos):
                    value = info.get(key)
                    if value is not None:
                        rows = slice(slot * self.agents, (slot + 1) * self.agents)
                        last[rows] = np.where(self.active[rows], value, last[rows])

    def _observe(self, observation: Any) -> None:
        """Show every level what the world looks like now."""
        previous = self.obs
        obs = as_tensors(observation)
        if self.device.type != "cpu":
            obs = {name: value.to(self.device) for name, value in obs.items()}
        self._check_observation(obs)
        self.obs = obs
        for track in self.tracks:
            seen = obs if track.members is None else {name: track.grouped(value) for name, value in obs.items()}
            if self._any_fresh:
                self._reset_memory(track)
            track.prior = track.memory
            track.features, track.memory = track.level.observe(seen, track.memory)
            if track.moves and previous and track.running.action is not None:
                before = {name: track.grouped(value) for name, value in previous.items()}
                track.running.action = track.level.advance(track.running.action, seen, before)
                track.held_is_mine = False
        if self._any_fresh and self.recording and self.recorder.row:
            self._record_memories(self._fresh)

    def _reset_memory(self, track: Track) -> None:
        fresh = self._fresh_of(track)
        start = track.level.start(track.streams)
        if start is None:
            return
        if track.memory is None:
            track.memory = start
            return
        rows = torch.from_numpy(np.flatnonzero(fresh)).to(self.device)
        track.memory = track.memory.index_copy(0, rows, start[rows])

    def _record_memories(self, bottom: np.ndarray) -> None:
        """Keep the memory before the latest observation, of the streams given, as the start of an unroll."""
        for track, log in zip(self.tracks, self.recorder.logs, strict=True):
            if track.prior is not None:
                mask = bottom if track.members is None else bottom[track.members].any(1)
                streams = np.flatnonzero(mask)
                log.memory.append((self.recorder.row, streams, track.prior[torch.from_numpy(streams)].clone()))

    def _terminate(self) -> None:
        """Find out which decisions end now: each level for itself from the bottom, then with their parents from the top."""
        if not self._timed:
            return
        below: Tensor | None = None
        for track in reversed(self.tracks):
            if below is not None and track.below_members is not None:
                below = below[torch.from_numpy(track.below_members).to(self.device)]
            if not track.always:
                track.codes = self._own_codes(track, below)
            below = track.all_due if track.always else torch.from_numpy(track.codes != 0).to(self.device)
        for track in self.tracks:
            if track.always:
                continue
            codes = track.codes
            assert codes is not None
            if track.parent is not None:
                ends = self._parent_ends(track)
                codes[(codes == 0) & ends] = PARENT
            if self._any_fresh:
                codes[self._fresh_of(track)] = START
            if not self._all_active:
                codes[~track.active] = 0

    def _own_codes(self, track: Track, below: Tensor | None) -> np.ndarray:
        for learned in track.learned:
            learned.probability = None
        running = track.running
        if running.action is None:
            return np.zeros(track.streams, dtype=np.uint8)
        running.ticks += 1
        return as_codes(track.level.ends(track.features, running, below), track.streams).copy()

    def _parent_ends(self, track: Track) -> np.ndarray:
        parent = track.parent
        assert parent is not None
        if parent.always:
            return np.ones(track.streams, dtype=bool)
        ends = parent.codes != 0
        return ends if track.parent_index is None else ends[track.parent_index.cpu().numpy()]

    def _probability(self, track: Track, probability: Tensor | None) -> np.ndarray:
        if probability is None:
            return np.full(track.streams, np.nan, dtype=np.float32)
        values = probability.float().cpu().numpy()
        fresh = track.codes == START
        if fresh.any():
            values = np.where(fresh, np.float32(np.nan), values)
        return values

    def _fresh_is_over(self) -> None:
        if self._any_fresh:
            self._fresh[:] = False
            self._any_fresh = False

    def _fresh_of(self, track: Track) -> np.ndarray:
        """Streams of a level whose episode (or batch, when bootstrapped) has just begun."""
        return self._fresh if track.members is None else self._fresh[track.members].any(1)

    # ---- errors

    def _check(self, track: Track, decision: Decision, number: int, rows: Tensor | None) -> None:
        action = decision.action
        if action.ndim == 0 or len(action) != number:
            raise UsageError(
                f"level '{track.name}' was asked for {number} decisions but its action has shape {list(action.shape)}"
            )
        self._check_finite("action", track, action, rows)

    def _check_finite(self, what: str, track: Track, x: Tensor, rows: Tensor | None) -> None:
        if has_nan(x):
            bad = int(torch.isnan(x).flatten(1).any(1).nonzero()[0]) if x.ndim > 1 else int(torch.isnan(x).nonzero()[0])
            stream = bad if rows is None else int(rows[bad])
            raise EchelonError(f"level '{track.name}' gave a {what} with NaN in {self._stream(stream, track)}")

    def _check_observation(self, obs: Mapping[str, Tensor]) -> None:
        for name, value in obs.items():
            if len(value) != self.streams:
                raise UsageError(
                    f"observation '{name}' has shape {list(value.shape)}; the first size is that of the streams, {self.streams}"
                )
            if has_nan(value):
                bad = torch.isnan(value).reshape(self.streams, -1).any(1).cpu().numpy() & self.active
                if bad.any():
                    where = self._stream(int(np.flatnonzero(bad)[0]), self.tracks[-1])
                    raise EchelonError(
                        f"observation '{name}' contains NaN in {where}, seen by level '{self.tracks[-1].name}'"
                    )

    def _raised(self, error: Exception) -> EchelonError:
        slot = getattr(error, "slot", None)
        where = self._stream(slot * self.agents, self.tracks[-1]) if isinstance(error, WorldError) else "some stream"
        bottom = self.tracks[-1].name
        return EchelonError(
            f"the world raised at a step of level '{bottom}' in {where}: {error or type(error).__name__}"
        )

    def _stream(self, stream: int, track: Track) -> str:
        """Where a stream of a level is, in words."""
        if track.members is not None:
            stream = int(track.members[stream][0])
        recorder = self.recorder
        tick = int(recorder.start_tick[stream] + recorder.row - recorder.start[stream])
        slot, agent = divmod(stream, self.agents)
        role = f" ({self.world.roles[agent]})" if self.agents > 1 else ""
        return f"stream {stream}{role}: slot {slot}, episode {int(recorder.episode[stream])}, tick {tick}"


def has_nan(x: Tensor) -> bool:
    """Whether x contains NaN. A product of the vector with itself finds it several times faster than a mask."""
    if not x.is_floating_point():
        return False
    if x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64):
        flat = x.numpy().ravel()
        total = np.dot(flat, flat)
        return bool(total != total)
    return bool(torch.isnan(x).any())


def as_array(x: Any) -> np.ndarray:
    """A numpy view of a column."""
    return x if isinstance(x, np.ndarray) else x.cpu().numpy() if isinstance(x, Tensor) else np.asarray(x)


def as_tensors(observation: Any) -> dict[str, Tensor]:
    """A dict of tensors from what a world shows; a bare array is called "observation"."""
    parts = observation if isinstance(observation, Mapping) else {"observation": observation}
    return {
        name: value if isinstance(value, Tensor) else torch.from_numpy(np.asarray(value))
        for name, value in parts.items()
    }


def _pick(decision: Decision, rows: Tensor) -> tuple[Tensor, Tensor | None, dict[str, Tensor]]:
    log_prob = None if decision.log_prob is None else decision.log_prob[rows]
    return decision.action[rows], log_prob, {name: value[rows] for name, value in decision.values.items()}


def _per_agent(what: str, value: Any, agents: int) -> list[Any]:
    values = [value] * agents if isinstance(value, str | bool) else list(value)
    if len(values) != agents:
        raise UsageError(f"{what} names {len(values)} agents; the world has {agents} in a slot")
    return values
