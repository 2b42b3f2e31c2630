"""The sentences of ALFWorld's grammar, parsed once a process.

TextWorld parses a pattern, and each query in it, again whenever a sentence is made, and copies all it refers to for
each symbol: that is most of a step. Here both are parsed once and only references are kept. The grammar's expressions,
such as "o.indefinite + ' ' + o.name", are compiled from their syntax tree: no text is evaluated.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from echelon.language.worlds._alfworld_scenes import library

if TYPE_CHECKING:
    from textworld.logic import Placeholder, Rule, State, Variable


@dataclass(frozen=True)
class Named:
    """What the grammar may say about a thing."""

    id: str
    name: str
    indefinite: str = "a"
    definite: str = "the"

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Scope:
    """What the symbols of a sentence refer to."""

    facts: State
    names: Mapping[str, Named]
    """Identifier to thing."""
    mapping: Mapping[Placeholder, Variable]

    def thing(self, placeholder: str) -> Named:
        """The thing that a placeholder stands for."""
        return next(self.names[its.name] for holder, its in self.mapping.items() if holder.name == placeholder)


class Grammar:
    """The sentences of the package's grammar, parsed once."""

    def __init__(self, text: str):
        from textworld.envs.pddl import logic, textgen

        self._symbols = textgen
        parsed = logic.GameLogic(domain="", grammar=text)
        self._rules = parsed.grammar._rules
        self.actions: Mapping[str, Any] = parsed.actions
        self._queries: dict[str, Rule] = {}
        self._parsed: dict[str, list[Any]] = {}
        self._values: dict[str, Callable[[Scope], str]] = {}

    def text(self, pattern: str, scope: Scope) -> str:
        """The sentence of a pattern such as `#look.feedback#` or `take {o} from {r}`."""
        if pattern not in self._parsed:
            self._parsed[pattern] = self._symbols._parse_and_convert(pattern, rule_name="symbols")
        return self._all(self._parsed[pattern], scope)

    def _all(self, symbols: list[Any], scope: Scope) -> str:
        return "".join(self._one(symbol, scope) for symbol in symbols)

    def _one(self, symbol: Any, scope: Scope) -> str:
        if isinstance(symbol, self._symbols.NonterminalSymbol):
            return self._rule(symbol.symbol, scope)
        if isinstance(symbol, self._symbols.ConditionalSymbol):
            return "".join(self._each(symbol, scope))
        if isinstance(symbol, self._symbols.ListSymbol):
            return self._list(list(self._each(symbol.symbol, scope)), scope)
        if isinstance(symbol, self._symbols.EvalSymbol):
            return self._value(symbol.expression, scope)
        return str(symbol.symbol)

    def _each(self, symbol: Any, scope: Scope) -> Iterator[str]:
        """The symbol's expression once for each solution of its query."""
        for mapping in self._solutions(symbol.given, scope) if symbol.given else [scope.mapping]:
            yield self._one(symbol.expression, Scope(scope.facts, scope.names, mapping))

    def _list(self, parts: list[str], scope: Scope) -> str:
        if not parts:
            return self._rule("list_empty", scope)
        if len(parts) == 1:
            return parts[0]
        comma, last = self._rule("list_separator", scope), self._rule("list_last_separator", scope)
        return comma.join(parts[:-1]) + last + parts[-1]

    def _rule(self, name: str, scope: Scope) -> str:
        """The first production of `name` whose condition holds."""
        for production in self._rules[name]:
            if not production.condition or self._solutions(production.condition, scope):
                return self._all(production.rhs, scope)
        raise ValueError(f"no production of '{name}' applies")

    def _solutions(self, query: str, scope: Scope) -> list[Mapping[Placeholder, Variable]]:
        """What the placeholders of a query may stand for, those of the scope included, in a fixed order."""
        if query not in self._queries:
            from textworld.logic import Rule

            self._queries[query] = Rule.parse_conjunctive_query(query)
        return list(scope.facts.all_assignments(self._queries[query], scope.mapping))

    def _value(self, expression: str, scope: Scope) -> str:
        if expression not in self._values:
            self._values[expression] = compiled(expression)
        return self._values[expression](scope)


def compiled(expression: str) -> Callable[[Scope], str]:
    """A function for an expression of the grammar: names, attributes, texts, `+` and `or`; nothing else is known."""

    def build(node: ast.expr) -> Callable[[Scope], Any]:
        match node:
            case ast.Constant(value=str(text)):
                return lambda scope: text
            case ast.Name(id=name):
                return lambda scope: scope.thing(name)
            case ast.Attribute(value=ast.Name(id=name), attr="id" | "name" | "indefinite" | "definite" as attribute):
                return lambda scope: getattr(scope.thing(name), attribute)
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                first, second = build(left), build(right)
                return lambda scope: first(scope) + second(scope)
            case ast.BoolOp(op=ast.Or(), values=[left, right]):
                first, second = build(left), build(right)
                return lambda scope: first(scope) or second(scope)
        raise ValueError(f"the grammar's expression '{expression}' is of an unknown form")

    function = build(ast.parse(expression.strip(), mode="eval").body)
    return lambda scope: str(function(scope))


@cache
def grammar() -> Grammar:
    """The package's grammar; the goal's sentence is left as the package leaves it and put in later."""
    return Grammar(library().grammar)
