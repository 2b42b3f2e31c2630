"""Orders of four subtasks: demonstrations of them, which are kept for testing, and what the test environment judges."""

import numpy as np
import pytest

from echelon.envs import orders
from echelon.envs.catalog import parse
from echelon.envs.collect import make, shards_of
from echelon.envs.ogbench import make_env
from echelon.training.evaluation import Evaluator

START = {
    "privileged/drawer_pos": np.array([0.0]),
    "privileged/window_pos": np.array([0.0]),
    "button_states": np.array([0, 0]),
}
DONE = [{"privileged/drawer_pos": np.array([-0.16])}, {"privileged/window_pos": np.array([0.2])}]


def told(drawer=False, window=False, left=False, right=False):
    buttons = {"button_states": np.array([int(right), int(left)])}
    return START | (DONE[0] if drawer else {}) | (DONE[1] if window else {}) | buttons


def test_every_order_is_unseen_in_one_partition():
    parts = [orders.unseen(p) for p in range(3)]
    assert sorted(sum(parts, ())) == list(range(24)) and {len(p) for p in parts} == {8}
    assert parts == [orders.unseen(p) for p in range(3)]
    assert len(set(orders.ORDERS)) == 24 and orders.ORDERS[0] == (0, 2, 4, 5) and orders.ORDERS[23] == (5, 4, 2, 0)


def test_progress_counts_what_is_done_in_its_turn():
    order = (0, 2, 4, 5)  # drawer, window, left, right
    progress = orders.Progress(order, START)
    for now, completed, over in (
        (told(), 0, False),
        (told(drawer=True), 1, False),
        (told(), 1, False),  # what was done stays done
        (told(window=True, left=True), 3, False),  # at once: whose turn it is comes first
        (told(left=False, right=True), 4, True),
    ):
        progress.see(now)
        assert (progress.completed, progress.over) == (completed, over)
    wrong = orders.Progress(order, START)
    wrong.see(told(drawer=True))
    wrong.see(told(drawer=True, left=True))
    assert (wrong.completed, wrong.over) == (1, True)
    wrong.see(told(drawer=True, left=True, window=True))
    assert wrong.completed == 1


def test_demonstrations_have_their_order_and_lengths(tmp_path, monkeypatch):
    info = parse("scene-orders-v0@2")
    assert [(s.split, s.start, s.stop) for s in shards_of(info)] == [("train", 0, 2), ("val", 240, 241)]
    source = orders.OrdersCollector(parse("scene-orders-v0"))
    episode = source.episode(3, 31)
    again = source.episode(3, 31)
    source.close()
    assert all(np.array_equal(episode[name], again[name]) for name in episode)
    assert set(episode["orders"]) == {7} and episode["terminals"].nonzero()[0].tolist() == [len(episode["orders"]) - 1]
    changes = np.flatnonzero(np.diff(episode["instructions"])) + 1
    assert tuple(episode["instructions"][[0, *changes]]) == orders.ORDERS[7] and changes.min() > 20
    assert episode["observations"].shape == (len(episode["orders"]), 40) and 100 < len(episode["orders"]) <= 201
    first, last = episode["observations"][0], episode["observations"][-1]
    assert first[[28, 32]].tolist() == [1, 1] and last[[29, 33]].tolist() == [1, 1]
    assert episode["button_states"][-1].tolist() == [1, 1] and not episode["actions"][-1].any()


def test_episodes_of_different_lengths_make_a_set(tmp_path, monkeypatch):
    lengths = iter((3, 5, 4))

    class Short:
        def __init__(self, info):
            pass

        def episode(self, seed, index):
            rows = next(lengths)
            columns = {name: np.zeros((rows, 2), np.float32) for name in ("observations", "actions")}
            return columns | {"terminals": np.arange(rows) == rows - 1}

        def close(self):
            pass

    def here(info, seed, folder, shards, jobs, progress):
        for shard in shards:
            found = [Short(info).episode(seed, k) for k in range(shard.start, shard.stop)]
            np.savez(folder / shard.file, **{n: np.concatenate([e[n] for e in found]) for n in found[0]})

    monkeypatch.setattr("echelon.envs.collect.collect", here)
    from echelon.data.store import Store

    store = Store.open(make("scene-orders-v0@2", root=tmp_path, progress=False))
    assert store.lengths.tolist() == [2, 4] and store.validation().lengths.tolist() == [3]
    assert store.manifest["source"].startswith("collected by echelon; no released")


def test_the_test_environment_asks_for_orders_and_judges():
    env = make_env("scene-orders-v0")
    assert len(env.facts.tasks) == 24 and env.facts.tasks[23] == "task24_right_left_window_drawer"
    seen, info = env.reset(seed=4, options={"task_id": 24})
    assert info["task_id"] == 24 and env.observation_space.contains(seen) and seen["order"].argmax() == 23
    assert seen["goal"][[28, 29, 32, 33]].tolist() == [0, 1, 0, 1]
    simulator = env.simulator
    simulator._cur_button_states[0] = 1  # the right one; it locks nothing
    _, _, terminated, _, outcome = env.step(np.zeros(5))
    assert not terminated and outcome == {"success": False, "completion": 0.25}
    assert simulator.model.joint("drawer_slide").damping[0] == 2.0
    simulator.data.joint("window_slide").qpos[0] = 0.2
    _, reward, terminated, _, outcome = env.step(np.zeros(5))
    assert terminated and reward == 0 and outcome == {"success": False, "completion": 0.25}
    seen, _ = env.reset(seed=5, options={"task_id": 1})
    assert np.abs(seen["observation"][[36, 38]]).max() < 0.2 and seen["observation"][[28, 32]].tolist() == [1, 1]
    env.close()


def test_evaluations_record_completion(monkeypatch):
    class Labels:
        labels = {"task": [1, 2, 1], "completion": [0.25, 1.0, 0.5]}  # noqa: RUF012

    class Rollout:
        streams = Labels

    evaluator = Evaluator("scene-orders-v0", 1, 0, slots=1)
    assert len(evaluator.tasks) == 24
    evaluator.tasks = range(1, 3)
    assert evaluator._by_task(Rollout, "completion") == {"task1": [0.25, 0.5], "task2": [1.0]}


@pytest.mark.parametrize("name", ["scene-play-v0", "pointmaze-large-stitch-v0"])
def test_other_environments_have_no_measures(name):
    assert Evaluator(name, 1, 0, slots=1).facts.measures == ()
