"""The vectorised top-down runner: a stack of levels acts in a batched world, and what happened becomes a `Rollout`.

One tick: decide (top first, the streams that are due), guard, step the world, record, observe, terminate (bottom first;
then a parent's ending ends its children's spans). Whether a decision ends is thus known as soon as the state that tells
is seen, and a batch never leaves it open.

Deterministic levels in deterministic worlds give the same episodes whatever the number of slots, as far as their
arithmetic does: matrix products may round differently at another batch size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from echelon.errors import EchelonError, UsageError
from echelon.hierarchy.assembly import assemble
from echelon.hierarchy.columns import as_array, as_columns, as_tensors, has_nan, nan_rows
from echelon.hierarchy.episodes import Episodes
from echelon.hierarchy.level import Decision, Level
from echelon.hierarchy.recorder import Carried, Empty, LevelLog, Recorder
from echelon.hierarchy.track import Track, build_tracks, probability_of_end, take
from echelon.hierarchy.world import Reset, World, WorldError, name_of
from echelon.rollout import Rollout

OpenSpans = Literal["carried", "bootstrapped"]
_MOST_EMPTY = 100  # empty decisions in a row after which a level is taken to be stuck
_CHECKED = 64  # ticks between looks at the length of episodes that are to end


class Runner:
    """Runs `levels` (top first) in `world`.

    generator: set as `generator` of every level and learned termination, and the source of the seeds of the episodes
        that `collect` starts (without it they are not seeded). It must live on the levels' device.
    device: where the levels compute; observations are moved there, and the rollouts are.
    record: True for everything; names of observations to keep only those; False for rewards and episode labels alone.
    info_labels: keys of the world's infos whose last value in an episode becomes a label of its streams (NaN if never
        seen).
    resets: what `collect` starts its n-th episode with, instead of a seed from `generator`.
    policy_id, learner: of each agent of a slot, for the record.
    longest: ticks after which `episodes` takes an episode to be endless.

    Streams carry the labels of their `Reset` and, for the whole episode so far, "return" (of several reward channels
    their sum, beside "return/<channel>"; NaN with unscored rewards), "length" and "seed" (-1 if none).
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
        longest: int = 1_000_000,
    ):
        self.world, self.generator, self.resets, self.device = world, generator, resets, torch.device(device)
        self._elsewhere = self.device.type != "cpu"
        self.agents, self.streams, self.longest = world.agents, world.slots * world.agents, longest
        self.tracks = build_tracks(levels, world.slots, world.agents, self.device)
        self.recorder = Recorder(self.tracks, self.streams, record)
        self._levels = list(zip(self.tracks, self.recorder.logs, strict=True))
        self.running = Episodes(world, self.recorder, info_labels)
        self._collected = 0  # episodes that `collect` has started
        self._skipped = 0  # those that a run before this one had started
        self._shown: Mapping[str, Tensor | np.ndarray] = {}  # what the world shows, as it came
        self._obs: dict[str, Tensor] = {}  # the same for the levels
        self._cast = (
            tuple(world.roles),
            _per_agent("policy_id", policy_id, self.agents),
            _per_agent("learner", learner, self.agents),
        )
        if generator is not None:
            for track in self.tracks:
                track.level.generator = generator
                for learned in track.learned:
                    learned.generator = generator
        self._timed = [track for track in self.tracks if not track.always]
        self._guards = [track for track in reversed(self.tracks) if track.guards]
        low_high = world.bounds
        self._bounds = None if low_high is None else (low_high[0].to(self.device), low_high[1].to(self.device))
        self._changes = bool(self._guards) or low_high is not None  # what is proposed may not be what is executed

    # ---- what a person calls

    def collect(self, ticks: int, open_spans: OpenSpans = "carried") -> Rollout:
        """Run every slot for `ticks` ticks, starting new episodes as old ones end, and return the record.

        The next call goes on where this one stopped. Decisions that are open at the end have the end OPEN. With
        "carried" they go on in the next batch: begin CARRIED, action, log_prob and values as they were decided. With
        "bootstrapped" they are over and every level decides anew. Either way, a stream that goes on has its latest
        observation as the final one, to bootstrap from.
        """
        if ticks < 1:
            raise UsageError(f"collect runs for at least one tick, not {ticks}")
        if open_spans not in ("carried", "bootstrapped"):
            raise UsageError(f"open_spans is 'carried' or 'bootstrapped', not {open_spans!r}")
        if self.running.source is None:
            self._restart(self._endless(self._skipped))
        self._run(ticks)
        return self._batch(open_spans)

    def episodes(self, resets: Sequence[Reset]) -> Rollout:
        """Run exactly these episodes, each to its end, in the order given over the slots there are.

        The streams of the result are in the order of `resets`. A `collect` that was under way is abandoned.
        """
        if not self.world.explicit:
            raise UsageError(
                f"{type(self.world).__name__} resets itself; episodes() needs a world with explicit resets"
            )
        if not resets:
            raise UsageError("episodes() needs at least one Reset")
        self._restart(iter(resets))
        self._run(None)
        rollout = self._batch("bootstrapped")
        self.running.forget()
        return rollout

    # ---- between batches

    def refresh(self) -> None:
        """Look at the latest observation again, with levels whose networks have changed since."""
        if not self._obs:
            return
        with self._acting():
            for track in self.tracks:
                seen = self._obs if track.members is None else track.seen(self._obs)
                track.features, track.memory = track.level.observe(seen, track.prior)

    def state_dict(self) -> dict[str, Any]:
        """What `collect` goes on from after a batch, decisions in the middle of their spans included.

        Plain data and tensors. The state of the world itself is the caller's to keep.
        """
        return {
            "collected": self._collected,
            "generator": None if self.generator is None else self.generator.get_state(),
            "shown": {name: torch.as_tensor(value).clone() for name, value in self._shown.items()},
            "episodes": self.running.state_dict(),
            "start_tick": torch.from_numpy(self.recorder.start_tick.copy()),
            "episode": torch.from_numpy(self.recorder.episode.copy()),
            "tracks": [track.state_dict() for track in self.tracks],
            "carried": [None if log.carried is None else log.carried.state_dict() for log in self.recorder.logs],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`, in a world that stands where it stood then."""
        self.recorder.next_batch()
        self._collected = state["collected"]
        if self.generator is not None:
            self.generator.set_state(state["generator"])
        self.running.load_state_dict(state["episodes"], self._endless(self._collected))
        self.recorder.start_tick, self.recorder.episode = state["start_tick"].numpy(), state["episode"].numpy()
        for (track, log), kept, carried in zip(self._levels, state["tracks"], state["carried"], strict=True):
            track.load_state_dict(kept, self.running.active)
            if carried is not None:
                log.resume(Carried.load(carried))
            else:
                log.carried = None
        self._shown = state["shown"]
        self._obs = {name: value.to(self.device) for name, value in as_tensors(self._shown).items()}
        self.refresh()

    def skip_episodes(self, state: Mapping[str, Any]) -> None:
        """In place of `load_state_dict`, for a world that cannot be brought back: new episodes, the next in line."""
        self._skipped, self.running.begun = state["collected"], state["episodes"]["begun"]
        if self.generator is not None:
            self.generator.set_state(state["generator"])

    # ---- batches

    def _endless(self, first: int) -> Iterator[Reset]:
        for episode in count(first):
            self._collected = episode + 1
            if self.resets is not None:
                yield self.resets(episode)
            elif self.generator is None or not self.world.explicit:
                yield Reset()
            else:
                place = self.generator.device
                yield Reset(seed=int(torch.randint(2**31 - 1, (), generator=self.generator, device=place)))

    @contextmanager
    def _acting(self) -> Iterator[None]:
        """Act without gradients; if anything raises, half a tick is recorded: the next call starts over."""
        try:
            with torch.inference_mode():
                yield
        except BaseException:
            self.running.forget()
            raise

    def _restart(self, source: Iterator[Reset]) -> None:
        """Abandon what is running and start episodes from `source`."""
        self.recorder.next_batch()
        self.running.forget()
        self.running.source = source
        self._obs = {}
        for track, log in self._levels:
            track.forget()
            log.carried = None
        with self._acting():
            observation = self.running.begin(np.arange(self.world.slots))
            self._activity_changed()
            self._observe(observation)
            self._terminate()

    def _run(self, ticks: int | None) -> None:
        """Run for a number of ticks, or until no episode is left."""
        with self._acting():
            if self.recorder.on:
                self._remember(self.running.active)
            for tick in count() if ticks is None else range(ticks):
                self._tick()
                if ticks is None:
                    if not self.running.active.any():
                        return
                    if tick % _CHECKED == 0:
                        self._check_length()

    def _batch(self, open_spans: OpenSpans) -> Rollout:
        """Turn what was recorded into a rollout and begin the next batch."""
        recorder, running = self.recorder, self.running
        streams = np.flatnonzero(running.active & (recorder.start < recorder.row))
        if len(streams):
            ended = np.zeros(len(streams), dtype=bool)
            recorder.close(streams, ended, ended, as_tensors(self._shown), running.labels(streams))
        rollout = assemble(recorder, *self._cast, self.device)
        recorder.next_batch()
        if open_spans == "bootstrapped":
            running.fresh |= running.active
            running.any_fresh = True
            for track, log in self._levels:
                log.carried = None
                track.begin_anew()
        return rollout

    def _activity_changed(self) -> None:
        for track in self.tracks:
            track.set_active(self.running.active)

    # ---- the tick

    def _tick(self) -> None:
        recorder, running, bottom = self.recorder, self.running, self.tracks[-1]
        for track, log in self._levels:
            if track.codes is not track.nothing:
                self._decide(track, log)
        if running.any_fresh:
            running.fresh[:] = running.any_fresh = False
        proposed = bottom.running.action
        assert proposed is not None
        executed = self._guard(proposed) if self._guards else proposed
        if self._bounds is not None:
            executed = torch.clamp(executed, *self._bounds)
        if recorder.on:
            recorder.observe(self._shown)
            if not bottom.always or bottom.moves:
                recorder.write("proposed", proposed)
            if self._changes:
                recorder.write("executed", executed)
        try:
            step = self.world.step(executed, running.active)
        except Exception as error:  # whatever a world raises, the place where it happened belongs in the message
            raise self._raised(error) from error
        for channel, reward in running.follow(step).items():
            recorder.write("reward/" + channel, reward)
        if step.elapsed is not None:
            recorder.write("elapsed", step.elapsed)
        recorder.row += 1
        terminated, truncated = as_array(step.terminated), as_array(step.truncated)
        ended = terminated | truncated
        if not running.all_active:
            ended &= running.active
        observation: Any = step.observation
        if np.count_nonzero(ended):  # several times faster than any()
            observation = self._end(np.flatnonzero(ended), terminated, truncated, observation)
        if running.all_active or running.active.any():
            self._observe(observation)
            if self._timed:
                self._terminate()

    def _end(self, streams: np.ndarray, terminated: np.ndarray, truncated: np.ndarray, observation: Any) -> Any:
        """Close streams and start new episodes where all of a slot's have ended; return what is to be seen next."""
        running, final = self.running, as_columns(observation)
        self._check_observation(final)
        labels = running.labels(streams)
        self.recorder.close(streams, terminated[streams], truncated[streams], as_tensors(final), labels)
        slots = running.finish(streams)
        begun = running.begin(slots) if len(slots) else None
        self._activity_changed()
        return observation if begun is None else begun

    def _decide(self, track: Track, log: LevelLog) -> None:
        """Ask a level for the decisions that are due and make them its running ones."""
        codes, recording = track.codes, self.recorder.on
        if codes is None:
            rows, mask = track.rows, track.mask
        else:
            if recording:
                log.codes.set(self.recorder.row, codes)
                for buffer, learned in zip(log.learned, track.learned, strict=True):
                    buffer.set(self.recorder.row, probability_of_end(codes, learned.probability))
            number = np.count_nonzero(codes)
            if number == 0:
                return
            rows, mask = None, track.everyone
            if number < track.streams:
                mask = torch.from_numpy(codes != 0).to(self.device)
                rows = mask.nonzero()[:, 0]
        features, parent = track.features, None if track.parent is None else track.command()
        if rows is not None:
            features, parent = take(features, rows), None if parent is None else parent[rows]
        decision = track.level.decide(features, parent, mask)
        self._check_decision(track, decision, rows)
        if decision.empty is not None and decision.empty.any():
            decision = self._ask_again(track, log, decision, track.everyone.nonzero()[:, 0] if rows is None else rows)
        if recording:
            log.decided(decision)
        track.hold(decision.action, rows)
        if codes is not None:
            track.foresee()

    def _ask_again(self, track: Track, log: LevelLog, decision: Decision, rows: Tensor) -> Decision:
        """Record the decisions of `rows` that took no time and replace them, until every stream has one that does."""
        merged = decision.take(torch.arange(len(rows), device=self.device))
        places, command = torch.arange(len(rows), device=self.device), track.command()
        for _ in range(_MOST_EMPTY):
            assert decision.empty is not None
            again = decision.empty.nonzero()[:, 0]
            if not len(again):
                return merged
            places = places[again]
            streams = rows[places]
            if self.recorder.on:
                log.empties.append(Empty(self.recorder.row, streams.cpu().numpy(), decision.take(again)))
            mask = torch.zeros_like(track.everyone)
            mask[streams] = True
            parent = None if command is None else command[streams]
            decision = track.level.decide(take(track.features, streams), parent, mask)
            self._check_decision(track, decision, streams)
            if decision.empty is None:
                decision = decision._replace(empty=torch.zeros(len(places), dtype=torch.bool, device=self.device))
            merged.action[places] = decision.action
            if merged.log_prob is not None and decision.log_prob is not None:
                merged.log_prob[places] = decision.log_prob
            for name, value in decision.values.items():
                merged.values[name][places] = value
        where = self._place(int(streams[0]), track)
        raise EchelonError(f"level '{track.name}' gave {_MOST_EMPTY} empty decisions in a row in {where}")

    def _guard(self, proposed: Tensor) -> Tensor:
        """Let levels override what is executed, from the bottom up: the top has the last word."""
        executed = proposed
        for track in self._guards:
            grouped = track.grouped(executed)
            answer = track.level.guard(track.features, grouped, track.running)
            if answer is grouped:
                continue
            if answer.shape != grouped.shape:
                shapes = f"{list(answer.shape)}, not {list(grouped.shape)}"
                raise UsageError(f"guard of level '{track.name}' returned shape {shapes}")
            if has_nan(answer):
                self._raise_nan("a guarded action", track, answer, None)
            executed = track.ungrouped(answer)
        changed = (executed != proposed).reshape(self.streams, -1).any(1).cpu().numpy()
        for track in self.tracks:
            track.running.was_overridden = changed if track.members is None else changed[track.members].any(1)
        return executed

    def _observe(self, observation: Any) -> None:
        """Show every level what the world looks like now, and let held decisions move with it."""
        previous, shown = self._obs, as_columns(observation)
        self._check_observation(shown)
        obs = as_tensors(shown)
        if self._elsewhere:
            obs = {name: value.to(self.device) for name, value in obs.items()}
        self._shown, self._obs = shown, obs
        any_fresh = self.running.any_fresh
        for track in self.tracks:
            seen = obs if track.members is None else track.seen(obs)
            if any_fresh:
                track.reset_memory(self.running.fresh)
            track.prior = track.memory
            track.features, track.memory = track.level.observe(seen, track.memory)
            if track.moves and track.running.action is not None:
                track.move(track.level.advance(track.running.action, seen, track.seen(previous)))
        if any_fresh and self.recorder.on and self.recorder.row:
            self._remember(self.running.fresh)

    def _remember(self, streams: np.ndarray) -> None:
        """Record the memory before the latest observation: an unroll of `streams` (bool[S]) starts here."""
        for track, log in self._levels:
            if track.prior is not None:
                mine = np.flatnonzero(track.of(streams))
                log.memory.append((self.recorder.row, mine, track.prior[torch.from_numpy(mine).to(self.device)]))

    def _terminate(self) -> None:
        """Find out which decisions end: each level for itself from the bottom, then from the top with their parents."""
        fresh = self.running.fresh if self.running.any_fresh else None
        for track in reversed(self._timed):
            track.end_by_itself()
            for learned in track.learned:
                if learned.probability is not None and has_nan(learned.probability):
                    self._raise_nan("a probability of ending", track, learned.probability, None)
        for track in self._timed:
            track.end_with_others(fresh)

    # ---- errors

    def _check_decision(self, track: Track, decision: Decision, rows: Tensor | None) -> None:
        action, number = decision.action, track.streams if rows is None else rows.shape[0]
        shape = action.shape
        if not shape or shape[0] != number:
            raise UsageError(f"level '{track.name}' was asked for {number} actions and gave shape {list(shape)}")
        if has_nan(action):
            self._raise_nan("an action", track, action, rows)
        if track.level.within is not None:
            self._check_within(track, action, rows, track.level.within)

    def _check_within(self, track: Track, action: Tensor, rows: Tensor | None, within: tuple[Any, Any]) -> None:
        low, high = (torch.as_tensor(bound).to(action) for bound in within)
        bad = np.flatnonzero(((action < low) | (action > high)).reshape(len(action), -1).any(1).cpu().numpy())
        if len(bad):
            space = f"from {low.tolist()} to {high.tolist()}"
            self._refuse(f"{action[int(bad[0])].tolist()}, outside of its space {space},", track, bad, rows)

    def _check_length(self) -> None:
        """Raise if an episode that should end has gone on for too long; names who has held a decision longest."""
        streams = np.flatnonzero(self.running.active)
        for stream in streams[self.recorder.ticks(streams) >= self.longest].tolist():
            held = [int(track.running.ticks[track.of_bottom[stream]]) for track in self.tracks]
            track = self.tracks[int(np.argmax(held))]
            raise EchelonError(
                f"the episode does not end: level '{track.name}' has held its decision for {max(held)} ticks in "
                f"{self._place(stream, self.tracks[-1])}; give the environment a time limit"
            )

    def _raise_nan(self, what: str, track: Track, x: Tensor, rows: Tensor | None) -> None:
        self._refuse(f"{what} with NaN", track, np.flatnonzero(nan_rows(x)), rows)

    def _refuse(self, what: str, track: Track, bad: np.ndarray, rows: Tensor | None) -> None:
        """Raise, unless the rows `bad` (of the streams `rows`, None: all) are of idle streams only."""
        for row in bad.tolist():
            stream = row if rows is None else int(rows[row])
            if track.active[stream]:
                raise EchelonError(f"level '{track.name}' gave {what} in {self._place(stream, track)}")

    def _check_observation(self, obs: Mapping[str, Tensor | np.ndarray]) -> None:
        for name, value in obs.items():
            if value.shape[0] != self.streams:
                shape = list(value.shape)
                raise UsageError(f"observation '{name}' has shape {shape}; the world has {self.streams} streams")
            if has_nan(value):
                for stream in np.flatnonzero(nan_rows(value) & self.running.active).tolist():
                    bottom = self.tracks[-1]
                    where = self._place(stream, bottom)
                    raise EchelonError(f"observation '{name}', seen by level '{bottom.name}', contains NaN in {where}")

    def _raised(self, error: Exception) -> EchelonError:
        bottom = self.tracks[-1]
        where, cause = f"some stream of {name_of(self.world)}", error
        if isinstance(error, WorldError) and isinstance(error.__cause__, Exception):
            where, cause = self._place(error.slot * self.agents, bottom), error.__cause__
        what = f"{type(cause).__name__}: {cause}"
        return EchelonError(f"the world raised on an action of level '{bottom.name}' in {where}: {what}")

    def _place(self, stream: int, track: Track) -> str:
        """Where a stream of a level is, in words."""
        if track.members is not None:
            stream = int(track.members[stream][0])
        slot, agent = divmod(stream, self.agents)
        role = f" ({self.world.roles[agent]})" if self.agents > 1 else ""
        tick = int(self.recorder.ticks(np.array([stream]))[0])
        episode, world = int(self.recorder.episode[stream]), name_of(self.world)
        return f"stream {stream}{role}: slot {slot}, episode {episode}, tick {tick} of {world}"


def _per_agent(what: str, value: Any, agents: int) -> list[Any]:
    values = [value] * agents if isinstance(value, str | bool) else list(value)
    if len(values) != agents:
        raise UsageError(f"{what} names {len(values)} agents; the world has {agents} in a slot")
    return values
