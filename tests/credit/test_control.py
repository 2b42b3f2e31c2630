"""Credit of control hierarchies: channels, set functions, teams with several clocks, hindsight."""

from __future__ import annotations

import math

import pytest
import torch
from checks import doubles
from forests import columns
from hypothesis import given
from hypothesis import strategies as st
from reference import credit_channels as ref
from reference import credit_control as ref_control
from torch import Tensor

from echelon.credit.channels import hamnet, slim
from echelon.credit.joint import continuing_max, joint_decisions
from echelon.credit.relabel import goal_transition, hac_transitions, hindsight_draws, hiro_candidates, hiro_relabel
from echelon.credit.returns import gae, smdp_target
from echelon.credit.sets import marginal_gains, subpo
from echelon.errors import DataError
from echelon.spans import Spans


def assert_close(a: Tensor, b: Tensor, atol: float = 5e-7) -> None:
    torch.testing.assert_close(a, b, atol=atol, rtol=0)


# ---- channels

EPISODE = Spans.from_lengths([3])
REWARD = {"reach": doubles(1, 0, 2), "disc": doubles(0, 0.5, 0), "safe": doubles(0, -10, -1)}
VALUE = {"reach": doubles(0.5, 0.4, 0.3), "disc": doubles(0.1, 0.2, 0.3), "safe": doubles(-2, -3, -1)}


def advantages(scale: float = 1.0) -> dict[str, Tensor]:
    scales = {"reach": 1.0, "disc": 1.0, "safe": scale}
    return {
        name: gae(EPISODE, reward=s * REWARD[name], value=s * VALUE[name], gamma=0.9, lam=0.8).advantage
        for name, s in scales.items()
    }


def test_slim_channels__reconstructed() -> None:
    raw = advantages()
    assert_close(raw["reach"], doubles(1.64768, 1.094, 1.7))
    assert_close(raw["disc"], doubles(0.33488, 0.354, -0.3))
    assert_close(raw["safe"], doubles(-6.388, -7.9, 0))
    credit = slim(raw)
    assert_close(credit.terms["reach"], doubles(0.609543, -1.409915, 0.800372))
    assert_close(credit.terms["disc"], doubles(0.675415, 0.738332, -1.413747))
    assert_close(credit.terms["safe"], doubles(-0.474714, -0.916326, 1.391040))
    assert_close(credit.advantage, doubles(0.810244, -1.587910, 0.777665))
    mixed = slim(raw, weights={"reach": 1, "disc": 0.5, "safe": 2}).advantage
    assert_close(mixed, doubles(-0.002177, -2.873402, 2.875579))


def test_one_critic_of_the_sum_gives_the_opposite_sign__reconstructed() -> None:
    summed = gae(EPISODE, reward=sum(REWARD.values()), value=sum(VALUE.values()), gamma=0.9, lam=0.8).advantage
    assert_close(summed, doubles(-4.40544, -6.452, 1.4))
    assert_close(slim({"all": summed}).advantage, doubles(-0.376745, -0.992113, 1.368859))


def test_slim_does_not_see_a_channel_s_scale__reconstructed() -> None:
    assert_close(slim(advantages(100.0)).advantage, slim(advantages()).advantage, atol=1e-7)
    flat = advantages() | {"disc": doubles(0.1, 0.1, 0.1) + 1e-9 * doubles(1, 2, 3)}
    assert bool((slim(flat).terms["disc"] == 0).all())


def test_hamnet_keeps_relative_scales__code() -> None:
    columns = {"a": doubles(1, 0, 2), "b": doubles(-10, 0, -20)}
    credits = hamnet(columns)
    assert_close(credits["a"].advantage, doubles(0, -0.099504, 0.099504))
    assert_close(credits["b"].advantage, doubles(0, 0.995037, -0.995037))
    ratio, clip = doubles(1.2, 0.9, 1.5), 0.3

    def surrogate(a: Tensor) -> Tensor:
        return a + torch.minimum((ratio - 1) * a, (ratio - 1).clamp(-clip, clip) * a)

    each = torch.stack([surrogate(credit.advantage) for credit in credits.values()])
    assert_close(-each.mean(), doubles(0.092870)[0])
    together = surrogate(credits["a"].advantage + credits["b"].advantage)
    assert_close(-together.mean() / 2, doubles(0.089553)[0])
    constant = hamnet({"a": doubles(3, 3), "b": doubles(1, 1)})
    assert bool((constant["a"].advantage == 0).all())


@given(st.data())
def test_channels_equal_their_naive_references(data: st.DataObject) -> None:
    n = data.draw(st.integers(2, 6))
    channels = {name: columns(data.draw, n) for name in "abc"}
    rows = torch.stack(tuple(channels.values()), -1).tolist()
    expected = torch.tensor(ref.hamnet_normalise(rows), dtype=torch.float64)
    actual = torch.stack([credit.advantage for credit in hamnet(channels).values()], -1)
    assert_close(actual, expected, 1e-9)
    # with gamma 0 and no values the advantages of the channels are their rewards
    groups = [[{"reward": rows, "value": [[0.0] * 3] * n, "terminated": True}]]
    reference = ref.slim_advantage(groups, gamma=0.0, weights=[1.0, 2.0, 0.5])
    mixed = slim(channels, weights={"a": 1.0, "b": 2.0, "c": 0.5})
    assert_close(mixed.advantage, doubles(*reference["advantage"][0][0]), 1e-9)
    assert_close(sum(mixed.terms.values()), mixed.advantage, 1e-12)


def test_a_broken_channel_is_named() -> None:
    with pytest.raises(DataError, match="safe of item 1 is nan"):
        slim({"reach": doubles(0, 1), "safe": doubles(0, math.nan)})


# ---- set functions

LINE = [[s, s + 1] for s in range(6)]  # what a visit to a cell of a line covers


def values_of(trajectory: list[int]) -> Tensor:
    return doubles(*ref.coverage_values(trajectory, LINE, [1.0] * 7))


def test_line_coverage__paper() -> None:
    prefixes = values_of([0, 1, 1, 3])
    assert prefixes.tolist() == [2, 3, 3, 5]
    episode, arguments = Spans.from_lengths([3]), {"value": prefixes[1:], "initial": prefixes[0]}
    assert marginal_gains(episode, **arguments).tolist() == [1, 0, 2]
    assert subpo(episode, **arguments).advantage.tolist() == [3, 2, 2]
    assert subpo(episode, estimator="greedy", **arguments).advantage.tolist() == [1, 0, 2]
    assert subpo(episode, estimator="prefix", **arguments).advantage.tolist() == [3, 3, 5]
    shifted = subpo(episode, baseline=doubles(1, 1, 2), **arguments)
    assert shifted.advantage.tolist() == [2, 1, 0]
    assert_close(sum(shifted.terms.values()), shifted.advantage)


def expected_gradients(draws: int) -> dict[str, Tensor]:
    """Of E[number of distinct draws] under softmax(.2, -.1, .4), by enumeration: the truth and each estimator's."""
    logits = doubles(0.2, -0.1, 0.4).requires_grad_()
    estimators = ("togo", "greedy", "prefix")
    episode = Spans.from_lengths([draws])
    objective, surrogates = torch.zeros(()).double(), dict.fromkeys(estimators, torch.zeros(()).double())
    for index in range(3**draws):
        actions = [index // 3**k % 3 for k in range(draws)]
        log_prob = logits.log_softmax(0)[actions]
        probability = log_prob.sum().exp()
        value = doubles(*[len(set(actions[: k + 1])) for k in range(draws)])
        objective = objective + probability * value[-1]
        for name in estimators:
            weight = subpo(episode, value=value, estimator=name).advantage  # type: ignore[arg-type]
            surrogates[name] = surrogates[name] + probability.detach() * (log_prob * weight).sum()
    gradients = {name: torch.autograd.grad(s, logits, retain_graph=True)[0] for name, s in surrogates.items()}
    return gradients | {"true": torch.autograd.grad(objective, logits)[0], "value": objective.detach()}


def test_only_gains_to_come_give_the_gradient__paper() -> None:
    two, three = expected_gradients(2), expected_gradients(3)
    assert two["value"] == pytest.approx(1.653478988, abs=1e-9)
    assert_close(two["togo"], doubles(0.006033631, 0.04823324, -0.054266871), 1e-9)
    assert three["value"] == pytest.approx(2.084651889, abs=1e-9)
    assert_close(three["togo"], doubles(0.007718543, 0.098430398, -0.106148941), 1e-9)
    for case in (two, three):
        assert_close(case["togo"], case["true"], 1e-12)


def test_greedy_and_prefix_weights_are_myopic__code() -> None:
    two, three = expected_gradients(2), expected_gradients(3)
    assert_close(two["prefix"], doubles(0.003016816, 0.02411662, -0.027133435), 1e-9)
    assert_close(three["prefix"], doubles(0.00558966, 0.05692675, -0.06251642), 5e-9)
    for case in (two, three):
        assert_close(case["greedy"], case["prefix"], 1e-12)


def test_myopic_credit_points_the_wrong_way__paper() -> None:
    episode, q = Spans.from_lengths([2]), 0.5
    left, right = doubles(1, 1), doubles(0, 2)  # F after each action: gains 1 then 0, or 0 then 2
    slopes = {}
    for estimator in ("togo", "greedy", "prefix"):
        a, b = (subpo(episode, value=v, estimator=estimator).advantage[0] for v in (left, right))  # type: ignore[arg-type]
        slopes[estimator] = float(q * (1 - q) * (a - b))
    assert slopes == {"togo": -0.25, "greedy": 0.25, "prefix": 0.25}


@given(st.data())
def test_set_weights_equal_their_naive_reference(data: st.DataObject) -> None:
    trajectories = data.draw(st.lists(st.lists(st.integers(0, 5), min_size=2, max_size=6), min_size=1, max_size=3))
    prefixes = [values_of(trajectory) for trajectory in trajectories]
    episodes = Spans.from_lengths([len(p) - 1 for p in prefixes])
    value, initial = torch.cat([p[1:] for p in prefixes]), torch.stack([p[0] for p in prefixes])
    for estimator in ("togo", "greedy", "prefix"):
        expected = ref.set_weights([p.tolist() for p in prefixes], estimator)
        credit = subpo(episodes, value=value, initial=initial, estimator=estimator)  # type: ignore[arg-type]
        assert_close(credit.advantage, doubles(*[x for row in expected for x in row]))


# ---- teams with several clocks


@given(st.data())
def test_joint_targets_equal_their_naive_reference(data: st.DataObject) -> None:
    ticks, members, options, gamma = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 3)), 2, 0.9
    switch = [[t == 0 or data.draw(st.booleans()) for _ in range(members)] for t in range(ticks)]
    goal: list[list[int]] = []
    for t in range(ticks):
        goal.append([data.draw(st.integers(0, 1)) if switch[t][a] else goal[-1][a] for a in range(members)])
    reward = columns(data.draw, ticks)
    q = columns(data.draw, (ticks + 1) * members * options).reshape(ticks + 1, members, options)
    terminated = data.draw(st.booleans())
    final = [data.draw(st.booleans()) for _ in range(members)]
    expected = ref.joint_targets(reward.tolist(), switch, goal, q.tolist(), gamma, terminated, final)

    starts = torch.tensor(switch)
    joint, due = joint_decisions([Spans.from_starts(column) for column in starts.T.contiguous()])
    assert joint.starts.tolist() == expected["time"]
    assert due.equal(starts[joint.starts])
    due_after = torch.cat([due[1:], torch.tensor([final])])
    held = torch.tensor(goal)[joint.ends]
    chosen = continuing_max(q[joint.ends + 1], held=held, due=due_after)
    done = torch.zeros(joint.n, dtype=torch.bool)
    done[-1] = terminated
    target = smdp_target(joint, reward=reward, next_value=chosen.sum(-1), terminated=done, gamma=gamma)
    assert_close(target, doubles(*expected["target"]))


# ---- hindsight


def test_hiro_relabelling__paper() -> None:
    state, next_state = doubles([0, 0], [0.5, 0]), doubles([0.5, 0], [1, 0.5])
    action, span = doubles([0.5, 0.1], [0.4, 0.4]), Spans.from_lengths([2])
    candidates = doubles([[2, 0]], [[1, 0.5]], [[1, 0.2]])
    goal, scores = hiro_relabel(
        span, state=state, action=action, candidates=candidates, policy=lambda s, g: (0.5 * g).clamp(-1, 1)
    )
    assert_close(scores[:, 0], doubles(-0.27125, -0.03375, -0.05625))
    assert goal.tolist() == [[1, 0.5]]
    moved = goal_transition(goal[0], state[0], next_state[0])
    assert moved.tolist() == [0.5, 0.5]
    assert -moved.norm() == pytest.approx(-0.707107, abs=5e-7)


@given(st.data())
def test_hiro_equals_its_naive_reference(data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    spans, count = Spans.from_lengths(lengths), 3
    path = columns(data.draw, 2 * (spans.size + spans.n)).reshape(-1, 2)
    rows = torch.arange(spans.size) + spans.ids  # every span has one state more than actions
    state, action = path[rows], columns(data.draw, 2 * spans.size).reshape(-1, 2)
    candidates = columns(data.draw, 2 * count * spans.n).reshape(count, spans.n, 2)
    goal, scores = hiro_relabel(
        spans, state=state, action=action, candidates=candidates, policy=lambda s, g: s - 0.5 * g
    )
    for span in range(spans.n):
        items = (spans.ids == span).nonzero()[:, 0]
        states = path[torch.cat([rows[items], rows[items[-1:]] + 1])].tolist()
        predicted = []
        for candidate in candidates[:, span].tolist():
            goals = ref_control.hiro_goals(states, candidate)[:-1]
            predicted.append(
                [[s - 0.5 * g for s, g in zip(*pair, strict=True)] for pair in zip(states[:-1], goals, strict=True)]
            )
        expected = ref_control.hiro_relabel(action[items].tolist(), predicted)
        assert_close(scores[:, span], doubles(*expected["score"]), 1e-9)
        assert goal[span].equal(candidates[expected["choice"], span])


def test_hiro_candidates_are_the_goal_the_way_made_and_draws_around_it() -> None:
    spans, state = Spans.from_lengths([2, 1]), doubles([0, 0], [1, 0], [5, 5])
    next_state, goal = doubles([1, 0], [1, 2], [9, 9]), doubles([3, 3], [0, 0])
    low, high = doubles(-2, -2), doubles(2, 2)
    drawn = hiro_candidates(
        spans, state=state, next_state=next_state, goal=goal, scale=2.0, low=low, high=high, count=500,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert drawn.shape == (502, 2, 2)
    assert drawn[:2].tolist() == [[[2, 2], [0, 0]], [[1, 2], [2, 2]]]
    assert float(drawn.abs().max()) == 2
    inner = drawn[2:, 0, 0]  # around 1, of deviation 1, cut at 2
    assert abs(float((inner < 1).double().mean()) - 0.5) < 0.05


def test_hac_transitions_of_a_missed_subgoal__paper() -> None:
    rows = hac_transitions(
        proposed=doubles([5]), achieved=doubles([3]), goal=doubles([9]), tested=torch.tensor([True]),
        hindsight=torch.tensor([[0]]), threshold=0.5, horizon=3,
    )  # fmt: skip
    assert rows.source.tolist() == [0, 0, 0]
    assert rows.action.tolist() == [[3], [3], [5]]
    assert rows.goal.tolist() == [[9], [3], [9]]
    assert rows.reward.tolist() == [-1, 0, -3]
    assert rows.discount.tolist() == [0.98, 0, 0]


@given(st.data())
def test_hac_equals_its_naive_reference(data: st.DataObject) -> None:
    n, goal = data.draw(st.integers(1, 5)), [1.0, -0.5]
    proposed, achieved = (columns(data.draw, 2 * n).reshape(n, 2) for _ in range(2))
    tested = [data.draw(st.booleans()) for _ in range(n)]
    chosen = data.draw(st.lists(st.integers(0, n - 1), min_size=2, max_size=2))
    steps = [
        {"state": [float(i)], "action": proposed[i].tolist(), "achieved": achieved[i].tolist(), "tested": tested[i]}
        for i in range(n)
    ]
    expected = ref_control.hac_transitions(steps, goal, 4, 0.5, hindsight=chosen)
    rows = hac_transitions(
        proposed=proposed, achieved=achieved, goal=doubles(goal).expand(n, 2), tested=torch.tensor(tested),
        hindsight=torch.tensor([chosen] * n), threshold=0.5, horizon=4,
    )  # fmt: skip
    actual = [
        (int(s), tuple(a), float(r), tuple(g), float(d))
        for s, a, g, r, d in zip(*(column.tolist() for column in rows), strict=True)
    ]
    naive = [
        (int(s[0]), tuple(a), float(r), tuple(g), float(d))
        for kind in expected.values() for s, a, r, _, g, d in kind
    ]  # fmt: skip
    assert sorted(actual) == sorted(naive)


def test_hindsight_draws_stay_in_the_episode_and_hold_its_end() -> None:
    episodes = Spans.from_lengths([4, 1, 3])
    drawn = hindsight_draws(episodes, replays=3, generator=torch.Generator().manual_seed(0))
    assert drawn.shape == (8, 3)
    assert episodes.ids[drawn].equal(episodes.ids[:, None].expand(8, 3))
    assert drawn[:, -1].equal(episodes.ends[episodes.ids])
