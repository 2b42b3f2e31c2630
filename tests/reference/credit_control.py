"""Naive references of credit in classic hierarchies, vector rewards, set-function rewards and asynchronous teams.

Plain floats and lists, index by index, written from the published formulas; nothing derives from code under test.
Rules of one stream take equally long lists over its steps; forests and episodes are as in `credit_base`, with a list of
channels in place of each number where a rule has several rewards. `CASES[rule]` is hand-derived.
"""

import math
from collections.abc import Sequence
from typing import Any

from .credit_control_cases import CASES as CASES

Vector = Sequence[float]
Forest = list[list[dict[str, Any]]]
Transition = tuple[Any, Any, float, Any, Any, float]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _variance(values: Sequence[float], ddof: int) -> float:
    mean = _mean(values)
    return sum((v - mean) ** 2 for v in values) / (len(values) - ddof)


def _dot(a: Vector, b: Vector) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def _minus(a: Vector, b: Vector) -> list[float]:
    return [x - y for x, y in zip(a, b, strict=True)]


def _norm(a: Vector) -> float:
    return math.sqrt(_dot(a, a))


def _clip(x: float, low: float, high: float) -> float:
    return min(max(x, low), high)


# --- options ----------------------------------------------------------------------------------------------------------


def smdp_q_update(
    q: float, rewards: Vector, q_next: Vector, gamma: float = 0.99, alpha: float = 0.5, terminated: bool = False
) -> dict[str, float]:
    """Q += alpha [sum_i gamma^i r_i + gamma^k (1-d) max Q(s',.) - Q] over the option's k steps (Sutton et al. 1999)."""
    target = sum(gamma**i * r for i, r in enumerate(rewards))
    if not terminated:
        target += gamma ** len(rewards) * max(q_next)
    return {"target": target, "q": q + alpha * (target - q)}


def continuation_value(q_next: Vector, option: int, beta: float, cost: float = 0.0) -> float:
    """U(s',w) = (1-beta) Q(s',w) + beta (max Q(s',.) - cost); without a deliberation cost by default."""
    return (1 - beta) * q_next[option] + beta * (max(q_next) - cost)


def intra_option_update(
    q: Vector,
    reward: float,
    q_next: Vector,
    beta: Vector,
    weight: Vector,
    gamma: float = 0.99,
    alpha: float = 0.5,
    terminated: bool = False,
) -> dict[str, list[float]]:
    """For every option w: Q(s,w) += alpha weight_w [r + gamma (1-d) U(s',w) - Q(s,w)] (Sutton, Precup, Singh 1999).

    weight_w is 1 or 0 (does w agree with the action taken?) for deterministic options, else pi_w(a|s) / mu(a|s); the
    source leaves open whether a ratio scales the step or the target, here it scales the step. beta_w is taken at s'.
    """
    target, updated = [], []
    for w in range(len(q)):
        follow = 0.0 if terminated else gamma * continuation_value(q_next, w, beta[w])
        target.append(reward + follow)
        updated.append(q[w] + alpha * weight[w] * (target[w] - q[w]))
    return {"target": target, "q": updated}


def interrupts(q: Vector, option: int) -> bool:
    """Stop the option where Q(s,w) < max_w' Q(s,w')."""
    return q[option] < max(q)


def option_critic_target(
    reward: Vector,
    option: Sequence[int],
    q_next: Sequence[Vector],
    beta_next: Vector,
    done: Sequence[bool],
    gamma: float = 0.99,
    cost: float = 0.0,
) -> list[float]:
    """y_t = r_t + gamma (1-d_t) [(1-beta) Q'(s_{t+1},w_t) + beta (max Q'(s_{t+1},.) - cost)] (arXiv 1609.05140).

    q_next is the target network at the states entered, beta_next the termination of the option in use there.
    """
    out = []
    for t in range(len(reward)):
        follow = 0.0 if done[t] else gamma * continuation_value(q_next[t], option[t], beta_next[t], cost)
        out.append(reward[t] + follow)
    return out


def option_critic_policy_loss(
    logp: Vector, target: Vector, q: Vector, entropy: Vector, entropy_coef: float = 0.01
) -> list[float]:
    """-log pi(a|s,w) (y - Q(s,w)) - c H per step; the weight y - Q carries no gradient."""
    return [-logp[t] * (target[t] - q[t]) - entropy_coef * entropy[t] for t in range(len(logp))]


def termination_loss(
    beta: Vector, q: Sequence[Vector], option: Sequence[int], done: Sequence[bool], xi: float = 0.01
) -> dict[str, list[float]]:
    """beta(s,w) (Q(s,w) - max Q(s,.) + xi)(1-d) per step; `weight` is its gradient in beta, the bracket being constant.

    xi is the published margin, or the deliberation cost eta (arXiv 1709.04571). In theory s is the state entered.
    """
    weight = [0.0 if done[t] else q[t][option[t]] - max(q[t]) + xi for t in range(len(beta))]
    return {"loss": [b * w for b, w in zip(beta, weight, strict=True)], "weight": weight}


def deliberation_reward(
    reward: Vector, ended: Sequence[bool], episode_end: Sequence[bool], cost: float = 0.1
) -> list[float]:
    """r_t - cost where an option terminated at step t, except where the episode ended (arXiv 1709.04571)."""
    return [reward[t] - (cost if ended[t] and not episode_end[t] else 0.0) for t in range(len(reward))]


def ppoc_gae(
    reward: Vector,
    value: Vector,
    ended: Sequence[bool],
    done: Sequence[bool],
    cost: float = 0.0,
    gamma: float = 0.99,
    lam: float = 0.95,
) -> list[float]:
    """GAE over the stream V(s_t, w_t) across switches, with r_t - cost where the option ended (arXiv 1712.00004).

    `value` has one entry more than `reward`; done[t] cuts both the bootstrap and the trace after step t.
    """
    paid = deliberation_reward(reward, ended, done, cost)
    out = []
    for t in range(len(reward)):
        total, weight = 0.0, 1.0
        for j in range(t, len(reward)):
            follow = 0.0 if done[j] else gamma * value[j + 1]
            total += weight * (paid[j] + follow - value[j])
            if done[j]:
                break
            weight *= gamma * lam
        out.append(total)
    return out


def normalise_per_option(advantage: Vector, option: Sequence[int], ddof: int = 0, eps: float = 1e-8) -> list[float]:
    """(A - mean) / (std + eps) within the samples of each option; a lone sample gets 0. Kind of spread: our choice."""
    out = []
    for a, w in zip(advantage, option, strict=True):
        mine = [b for b, v in zip(advantage, option, strict=True) if v == w]
        out.append((a - _mean(mine)) / (math.sqrt(_variance(mine, ddof)) + eps) if len(mine) > 1 else 0.0)
    return out


def ppoc_termination_weight(value: Vector, option: int, pi_omega: Vector, cost: float = 0.0) -> float:
    """d loss / d beta = V(s',w) - sum_w' pi_Omega(w'|s') V(s',w') + cost (arXiv 1712.00004)."""
    return value[option] - _dot(pi_omega, value) + cost


def dac_arrival(beta: float, pi_omega: Vector, previous: int) -> list[float]:
    """p(w | w_prev, s) = (1-beta) 1[w = w_prev] + beta pi_Omega(w|s) for every w (arXiv 1904.12691)."""
    return [(1 - beta) * (w == previous) + beta * pi_omega[w] for w in range(len(pi_omega))]


def dac_high_value(beta: float, pi_omega: Vector, value: Vector, previous: int) -> float:
    """V_high(s, w_prev) = sum_w p(w | w_prev, s) V_low(s, w) (arXiv 1904.12691)."""
    return _dot(dac_arrival(beta, pi_omega, previous), value)


# --- goals ------------------------------------------------------------------------------------------------------------


def _cosine(a: Vector, b: Vector, eps: float = 1e-8) -> float:
    return _dot(a, b) / (_norm(a) * _norm(b) + eps)


def feudal_intrinsic(
    states: Sequence[Vector], goals: Sequence[Vector], c: int = 10, divisor: str = "c", eps: float = 1e-8
) -> list[float]:
    """r_t = (1/c) sum_{i=1}^{c} cos(s_t - s_{t-i}, g_{t-i}) (arXiv 1703.01161); 0 at t = 0.

    The first c steps have fewer terms; whether 1/c stays is not said: divisor='c' keeps it, 'available' counts them.
    """
    out = []
    for t in range(len(states)):
        terms = [_cosine(_minus(states[t], states[t - i]), goals[t - i], eps) for i in range(1, c + 1) if i <= t]
        out.append(sum(terms) / (c if divisor == "c" else max(len(terms), 1)))
    return out


def feudal_manager(
    returns: Vector, values: Vector, states: Sequence[Vector], goals: Sequence[Vector], c: int = 10, eps: float = 1e-8
) -> dict[str, list[float]]:
    """Advantage R_t - V_t; loss -(R_t - V_t) cos(s_{t+c} - s_t, g_t) (arXiv 1703.01161).

    Steps without a state c steps later are left open by the source; here they have no loss (0).
    """
    advantage = _minus(returns, values)
    loss = []
    for t in range(len(returns)):
        inside = t + c < len(states)
        loss.append(-advantage[t] * _cosine(_minus(states[t + c], states[t]), goals[t], eps) if inside else 0.0)
    return {"advantage": advantage, "loss": loss}


def feudal_worker(returns: Vector, intrinsic_returns: Vector, values: Vector, alpha: float = 0.5) -> list[float]:
    """A_t = R_t + alpha R^I_t - V_t (arXiv 1703.01161)."""
    return [returns[t] + alpha * intrinsic_returns[t] - values[t] for t in range(len(returns))]


def hiro_goals(states: Sequence[Vector], goal: Vector) -> list[list[float]]:
    """g_0 = goal, g_{i+1} = s_i + g_i - s_{i+1}: the goal in force at every state (arXiv 1805.08296)."""
    out = [list(goal)]
    for i in range(len(states) - 1):
        out.append([states[i][d] + out[i][d] - states[i + 1][d] for d in range(len(goal))])
    return out


def hiro_low_reward(states: Sequence[Vector], goals: Sequence[Vector]) -> list[float]:
    """r_i = -|s_i + g_i - s_{i+1}| (arXiv 1805.08296); goals[i] is the one in force at s_i."""
    out = []
    for i in range(len(states) - 1):
        out.append(-_norm([states[i][d] + goals[i][d] - states[i + 1][d] for d in range(len(goals[i]))]))
    return out


def hiro_high_reward(rewards: Vector, c: int = 10, scale: float = 0.1) -> list[float]:
    """scale * (undiscounted sum of the rewards of every block of c steps); the last block may be shorter."""
    return [scale * sum(rewards[t : t + c]) for t in range(0, len(rewards), c)]


def hiro_candidates(
    goal: Vector, start: Vector, end: Vector, samples: Sequence[Vector], low: Vector, high: Vector
) -> list[list[float]]:
    """Original goal, s_{t+c} - s_t, then the samples drawn around it; every one clipped to the goal box."""
    raw = [list(goal), _minus(end, start), *[list(s) for s in samples]]
    return [[_clip(g[d], low[d], high[d]) for d in range(len(g))] for g in raw]


def hiro_relabel(actions: Sequence[Vector], predicted: Sequence[Sequence[Vector]]) -> dict[str, Any]:
    """score = -0.5 sum_i |a_i - mu(s_i, g_i)|^2 per candidate, the first best is chosen (arXiv 1805.08296).

    predicted[candidate][i] is the low policy's mean at s_i for the goal in force there (`hiro_goals`).
    """
    scores = []
    for means in predicted:
        scores.append(-0.5 * sum(_norm(_minus(actions[i], means[i])) ** 2 for i in range(len(actions))))
    return {"score": scores, "choice": scores.index(max(scores))}


def hac_transitions(
    steps: Sequence[dict[str, Any]],
    goal: Vector,
    horizon: int,
    threshold: float,
    gamma: float = 0.98,
    hindsight: Sequence[int] = (),
) -> dict[str, list[Transition]]:
    """(state, action, reward, next, goal, discount) of one level (arXiv 1712.00948).

    Step: state, action (the proposed subgoal), achieved (the state reached), tested. action: what was reached replaces
    a missed subgoal. test: a missed subgoal that was tested pays -horizon with discount 0. her: all action transitions
    again for the goals achieved at the given step numbers. Reward -1 and gamma; 0 and discount 0 once the goal is
    reached. Reached means within the threshold in every coordinate.
    """

    def reached(a: Vector, b: Vector) -> bool:
        return all(abs(x - y) <= threshold for x, y in zip(a, b, strict=True))

    def made(step: dict[str, Any], towards: Vector) -> Transition:
        action = step["action"] if reached(step["achieved"], step["action"]) else step["achieved"]
        hit = reached(step["achieved"], towards)
        return (step["state"], action, 0.0 if hit else -1.0, step["achieved"], towards, 0.0 if hit else gamma)

    test: list[Transition] = []
    for s in steps:
        if s["tested"] and not reached(s["achieved"], s["action"]):
            test.append((s["state"], s["action"], -float(horizon), s["achieved"], goal, 0.0))
    her = [made(s, steps[k]["achieved"]) for k in hindsight for s in steps]
    return {"action": [made(s, goal) for s in steps], "test": test, "her": her}


def hac_bounded_q(x: float, horizon: int, q_init: float = -0.067) -> float:
    """Q = -H sigmoid(x + offset), offset = -log(-H / q_init - 1), so that Q(0) = q_init."""
    offset = -math.log(-horizon / q_init - 1)
    return -horizon / (1 + math.exp(-(x + offset)))


# --- skills -----------------------------------------------------------------------------------------------------------


def diayn_reward(probabilities: Sequence[Vector], skill: Sequence[int]) -> list[float]:
    """log q(z|s') - log p(z), p uniform over the n skills (arXiv 1802.06070)."""
    return [math.log(q[z]) - math.log(1 / len(q)) for q, z in zip(probabilities, skill, strict=True)]


def hsd_reward(reward: Vector, decoder: Vector, alpha: float) -> list[float]:
    """alpha r + (1-alpha) log p(z|segment) (arXiv 1912.03558)."""
    return [alpha * r + (1 - alpha) * math.log(p) for r, p in zip(reward, decoder, strict=True)]


def dads_reward(logq: float, others: Vector, bound: float = 50.0) -> float:
    """log(L+1) - log(1 + sum_i exp(clip(log q(s'|s,z_i) - log q(s'|s,z), +-bound))) (arXiv 1907.01657)."""
    total = 1.0
    for other in others:
        total += math.exp(_clip(other - logq, -bound, bound))
    return math.log(len(others) + 1) - math.log(total)


def directional_reward(phi_next: Vector, phi: Vector, skill: Vector) -> float:
    """(phi(x') - phi(x)) . z (arXiv 2202.00914)."""
    return _dot(_minus(phi_next, phi), skill)


# --- subtasks ---------------------------------------------------------------------------------------------------------


def hdqn_meta_target(rewards: Vector, q_next: Vector, gamma: float = 0.975, terminated: bool = False) -> float:
    """Undiscounted sum over the goal's duration + gamma max Q2(s',.) whatever the duration (arXiv 1604.06057)."""
    return sum(rewards) + (0.0 if terminated else gamma * max(q_next))


def maxq_value(task: str, children: dict[str, list[str]], completion: dict[str, Vector], primitive: Any) -> float:
    """V(i,s) = E r for a primitive, else max_a [V(a,s) + C(i,s,a)] at one state (arXiv cs/9905014)."""
    if task not in children:
        return float(primitive[task])
    options = children[task]
    return max(maxq_value(a, children, completion, primitive) + completion[task][k] for k, a in enumerate(options))


def maxq_0_update(c: float, value_next: float, steps: int, gamma: float = 0.9, alpha: float = 0.5) -> float:
    """C(i,s,a) <- (1-alpha) C + alpha gamma^N V(i,s'); V is 0 where i has ended (arXiv cs/9905014)."""
    return (1 - alpha) * c + alpha * gamma**steps * value_next


def maxq_q_update(
    c: float,
    c_pseudo: float,
    c_next: Vector,
    c_pseudo_next: Vector,
    value_next: Vector,
    pseudo_reward: float,
    steps: int,
    gamma: float = 0.9,
    alpha: float = 0.5,
) -> dict[str, float]:
    """a* = argmax [C~(s',a) + V(a,s')]; C~ <- mix with gamma^N (R~ + C~(s',a*) + V), C <- gamma^N (C(s',a*) + V).

    Lists over the children at s' (arXiv cs/9905014). Empty lists: the subtask has ended there, only R~ remains.
    """
    scores = [a + b for a, b in zip(c_pseudo_next, value_next, strict=True)]
    inner = outer = 0.0
    if scores:
        best = scores.index(max(scores))
        inner, outer = scores[best], c_next[best] + value_next[best]
    return {
        "c": (1 - alpha) * c + alpha * gamma**steps * outer,
        "c_pseudo": (1 - alpha) * c_pseudo + alpha * gamma**steps * (pseudo_reward + inner),
    }


# --- a manager in imagination -----------------------------------------------------------------------------------------


def cosine_max(goal: Vector, feature: Vector) -> float:
    """g.f / max(|g|, |f|)^2 (arXiv 2206.04114)."""
    return _dot(goal, feature) / max(_norm(goal), _norm(feature)) ** 2


def manager_blocks(rewards: Vector, cont: Vector, k: int = 8) -> dict[str, list[float]]:
    """Block reward = mean over its K steps of (product of continues so far in the block) * reward (arXiv 2206.04114).

    rewards[t] enters state t+1, cont[t] belongs to state t (one more entry). A block's products use cont[0..K-1] of the
    block, its own continue cont[1..K]; the first state's continue is kept in front.
    """
    out, keep = [], [float(cont[0])]
    for start in range(0, len(rewards), k):
        total, weight, block = 0.0, 1.0, 1.0
        for t in range(start, start + k):
            weight *= cont[t]
            block *= cont[t + 1]
            total += weight * rewards[t]
        out.append(total / k)
        keep.append(block)
    return {"reward": out, "cont": keep}


def worker_blocks(length: int, k: int = 8) -> dict[str, list[list[int]]]:
    """Blocks of K+1 states with a shared boundary; every state of a block, the last too, has the goal of its first.

    `length` counts states, one more than a multiple of K (arXiv 2206.04114).
    """
    starts = range(0, length - 1, k)
    return {"state": [list(range(s, s + k + 1)) for s in starts], "goal": [[s] * (k + 1) for s in starts]}


def imagined_lambda_return(
    rewards: Vector, values: Vector, cont: Vector, gamma: float = 0.99, lam: float = 0.95
) -> list[float]:
    """R_t = sum over n of the mixture (1-lam) lam^(n-1) of n-step returns, discount gamma cont[t+1] (arXiv 2206.04114).

    rewards[t] enters state t+1; values and cont have one entry more.
    """
    out = []
    for t in range(len(rewards)):
        total, paid, discount, left = 0.0, 0.0, 1.0, len(rewards) - t
        for n in range(1, left + 1):
            paid += discount * rewards[t + n - 1]
            discount *= gamma * cont[t + n]
            share = lam ** (n - 1) * (1.0 if n == left else 1 - lam)
            total += share * (paid + discount * values[t + n])
        out.append(total)
    return out
