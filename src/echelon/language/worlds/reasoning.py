"""Arithmetic questions with a verifier: worlds of one answer, from the generators of the package `reasoning-gym`.

A kind is a family and its difficulty: `chain_sum-4` has four terms. The action is the whole response; what is judged is
the text between the last `<answer>` and `</answer>`. The scripted expert writes one line of arithmetic a step,
`<think> 4 - 1 = 3 ; 3 - 7 = -4 </think> <answer> -4 </answer>`, and can be made to check its steps more often than is
of use, so that there is length to save (HBPO, arXiv 2507.15844), or to stop writing early, so that it costs accuracy.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from echelon.errors import MissingExtra, UsageError
from echelon.language.worlds.world import BaseWorld, Observation, Task, split_seed

FAMILIES: Mapping[str, tuple[int, int]] = {
    "chain_sum": (2, 10),
    "basic_arithmetic": (2, 10),
    "products": (2, 4),
    "gcd": (2, 4),
    "lcm": (2, 3),
    "leg_counting": (2, 10),
}
"""Smallest and largest difficulty: number of terms, factors, numbers or animals."""

MAX_DRAWS = 2000
MAX_SLIPS = 50
_SHARES = ("train", "train", "train", "valid", "test")
_SYMBOLS = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*"}
_INVERSE = {"+": "-", "-": "+"}


class Reasoning(BaseWorld):
    """The world; kinds are `family-difficulty` (see `FAMILIES`).

    A question belongs to exactly one split, by its text: three fifths train, one fifth each valid and test. Where there
    are few questions (`chain_sum-2` with one digit has 200) a split repeats them. `Observation.info` has `family`,
    `difficulty`, `answer` and, after a step, `score`: the verifier's own, which pays a little for some wrong answers;
    the reward is 1 for a score of 1, else 0. `valid` tells whether there was an answer at all.
    """

    name: ClassVar[str] = "reasoning"
    kinds: ClassVar[tuple[str, ...]] = tuple(
        f"{f}-{n}" for f, (low, high) in FAMILIES.items() for n in range(low, high + 1)
    )

    def __init__(self, digits: int = 1, limit: int = 1, redundancy: int = 0, hurry: float = 0.0):
        """Options of the questions and of the expert.

        `digits`: of every number in the sums and products; gcd and lcm are of numbers up to 10^(digits + 1), and there
        are up to 15 of an animal whatever it is. `limit`: answers allowed; above 1, a wrong one may be revised.
        `redundancy`: the expert checks each of its steps up to so many times, a number drawn for each step.
        `hurry`: share of questions of which the expert writes the first steps only, any number of them, perhaps none,
        and works out the rest in its head; its answer is right all the same.
        """
        super().__init__(limit=limit)
        for option, value, least in (("digits", digits, 1), ("redundancy", redundancy, 0)):
            if value < least:
                raise UsageError(f"{option} is {value}; it is at least {least}")
        if not 0 <= hurry <= 1:
            raise UsageError(f"hurry is {hurry}; it is a share, from 0 to 1")
        self.digits, self.redundancy, self.hurry = digits, redundancy, hurry
        self._package = _package()
        self._item: dict[str, Any] = {}
        self._verifier: Any = None

    def expert(self) -> str | None:
        """The whole response, right and checked up to `redundancy` times a step; the same for the same task."""
        return None if self._seen.done else self._solution(None)

    def corrupt(self, action: str, rng: np.random.Generator) -> str:
        """The expert's response with a slip of up to 9 in one step that leads to a wrong answer, or in the answer."""
        size = 0
        for _ in range(MAX_SLIPS):
            size = int(rng.integers(1, 10)) * int(rng.choice((-1, 1)))
            slipped = self._solution((float(rng.random()), size))
            if extract_answer(slipped) != self._item["answer"]:
                return slipped
        written, _, _ = self._solution(None).rpartition("<answer>")
        return f"{written}<answer> {int(self._item['answer']) + abs(size)} </answer>"

    def _start(self, task: Task) -> Observation:
        family, _, number = task.kind.partition("-")
        for draw in range(MAX_DRAWS):
            options = _options(family, int(number), self.digits)
            self._verifier = self._package.create_dataset(
                family, seed=split_seed(task.split, task.seed, draw), size=1, **options
            )
            self._item = self._verifier[0]
            if question_split(self._item["question"]) == task.split:
                text = self._item["question"].strip()
                return Observation(text, state=f"{task.kind} | {text}", info=self._info())
        raise UsageError(f"{task.kind} with digits={self.digits} has no question for the split '{task.split}'")

    def _act(self, action: str) -> Observation:
        answer = extract_answer(action)
        score = 0.0 if answer is None else self._score(answer)
        right = score >= 1.0
        last = len(self._actions) >= self.limit
        text = "Right." if right else "Wrong." if last else "Wrong. Try again."
        info = {**self._info(), "score": score}
        return Observation(
            text, (), f"{self._seen.state} | {text}", float(right), right or last, valid=answer is not None, info=info
        )

    def _info(self) -> dict[str, Any]:
        assert self._task is not None
        family, _, number = self._task.kind.partition("-")
        return {"family": family, "difficulty": int(number), "answer": self._item["answer"]}

    def _score(self, answer: str) -> float:
        try:
            return float(self._verifier.score_answer(answer, self._item))
        except (ArithmeticError, ValueError):  # the verifier compares with numbers such as a signalling NaN
            return 0.0

    def _solution(self, slip: tuple[float, int] | None) -> str:
        assert self._task is not None
        rng = np.random.default_rng(self._task.seed)
        pad = _Pad(self.redundancy, rng)
        answer = self._work(pad)
        if slip is not None:
            where = int(slip[0] * pad.steps)
            pad = _Pad(self.redundancy, np.random.default_rng(self._task.seed), (where, slip[1]))
            answer = self._work(pad)
        lines = pad.lines
        if self.hurry and rng.random() < self.hurry:
            lines = lines[: pad.starts[int(rng.integers(pad.steps))]] if pad.steps else []
        return " ".join(["<think>", *" ; ".join(lines).split(), f"</think> <answer> {answer} </answer>"])

    def _work(self, pad: _Pad) -> int:
        about = self._item["metadata"]
        if "expression" in about:
            return pad.expression(ast.parse(about["expression"], mode="eval").body)
        if "animals" in about:
            return pad.legs(about["animals"], self._package.arithmetic.leg_counting.ANIMALS)
        return pad.multiple(about["numbers"]) if self._info()["family"] == "lcm" else pad.divisor(about["numbers"])


def extract_answer(response: str) -> str | None:
    """The text of the last `<answer>` block after the thinking; None if there is none or the thinking does not end."""
    _, closed, after = response.rpartition("</think>")
    if not closed and "<think>" in response:
        return None
    head, closed, _ = after.rpartition("</answer>")
    _, opened, answer = head.rpartition("<answer>")
    return answer.strip() if closed and opened else None


def question_split(question: str) -> str:
    """The split that a question belongs to, by its text."""
    return _SHARES[hashlib.blake2b(question.encode(), digest_size=8).digest()[0] % len(_SHARES)]


@dataclass
class _Pad:
    """A scratch-pad: arithmetic one step a line, with checks after each step and perhaps one slip."""

    redundancy: int
    rng: np.random.Generator
    slip: tuple[int, int] | None = None
    """(step, error of its result)."""
    lines: list[str] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    """Place of each step's first line."""

    @property
    def steps(self) -> int:
        """Steps so far."""
        return len(self.starts)

    def step(self, left: int, symbol: str, right: int) -> int:
        """Carry out and write one operation; `%` and `/` are of non-negative whole numbers."""
        exact = {"+": left + right, "-": left - right, "*": left * right}
        result = exact[symbol] if symbol in exact else left % right if symbol == "%" else left // right
        if self.slip is not None and self.slip[0] == self.steps:
            result += self.slip[1]
            if symbol in "%/":
                result = abs(result) + (symbol == "/")
        self.starts.append(len(self.lines))
        self.lines.append(f"{left} {symbol} {right} = {result}")
        check = f"{left} {symbol} {right} = {result}"
        if symbol in _INVERSE:
            check = f"{result} {_INVERSE[symbol]} {right} = {left}"
        elif symbol == "/":
            check = f"{result} * {right} = {left}"
        self.lines += [f"check {check}"] * int(self.rng.integers(self.redundancy + 1))
        return result

    def expression(self, node: ast.expr) -> int:
        """Value of sums, differences and products in the order of evaluation."""
        if isinstance(node, ast.Constant) and isinstance(node.value, int):
            return node.value
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            value = self.expression(node.operand)
            return -value if isinstance(node.operand, ast.Constant) else self.step(0, "-", value)
        if isinstance(node, ast.BinOp) and type(node.op) in _SYMBOLS:
            left = self.expression(node.left)
            return self.step(left, _SYMBOLS[type(node.op)], self.expression(node.right))
        raise UsageError(f"the expression holds '{ast.unparse(node)}', which is not a sum, difference or product")

    def divisor(self, numbers: Sequence[int]) -> int:
        """Greatest common divisor by Euclid's algorithm."""
        found = numbers[0]
        for number in numbers[1:]:
            left, right = max(found, number), min(found, number)
            while right:
                left, right = right, self.step(left, "%", right)
            found = left
        return found

    def multiple(self, numbers: Sequence[int]) -> int:
        """Least common multiple: the product divided by the greatest common divisor."""
        found = numbers[0]
        for number in numbers[1:]:
            common = self.divisor([found, number])
            found = self.step(self.step(found, "*", number), "/", common)
        return found

    def legs(self, animals: Mapping[str, int], legs_of: Mapping[str, int]) -> int:
        """Sum of count times legs."""
        total: int | None = None
        for animal, count in animals.items():
            legs = self.step(count, "*", legs_of[animal])
            total = legs if total is None else self.step(total, "+", legs)
        return total or 0


def _options(family: str, difficulty: int, digits: int) -> dict[str, Any]:
    """The generator's settings."""
    if family == "leg_counting":
        return {"min_animals": difficulty, "max_animals": difficulty}
    if family in ("gcd", "lcm"):
        return {"min_numbers": difficulty, "max_numbers": difficulty, "max_value": 10 ** (digits + 1)}
    options: dict[str, Any] = {
        "min_terms": difficulty,
        "max_terms": difficulty,
        "min_digits": digits,
        "max_digits": digits,
    }
    return {**options, "operators": ("+", "-", "*")} if family == "basic_arithmetic" else options


def _package() -> Any:
    try:
        import reasoning_gym
        import reasoning_gym.arithmetic.leg_counting
    except ImportError as error:
        raise MissingExtra("reasoning-gym", "text") from error
    return reasoning_gym
