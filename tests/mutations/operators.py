"""Operators: each makes one change to the syntax tree of a function, at the one place that its arguments describe.

A place is described by names that survive a move and a renamed local variable: the called function, the raised class,
and attributes, parameters, keywords and strings. ``mentions`` are names in the changed node; ``within`` are names
around it: of calls, keywords, keys, assigned attributes and the conditions of ``if``.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass

Names = str | tuple[str, ...]


class StaleMutantError(Exception):
    """A name or a place is not found, or is found several times."""


@dataclass(frozen=True)
class Place:
    """A node, where it hangs, and the names around it."""

    node: ast.AST
    parent: ast.AST
    field: str
    index: int | None
    around: frozenset[str]

    def put(self, node: ast.AST) -> None:
        """Replace the node."""
        if self.index is None:
            setattr(self.parent, self.field, node)
        else:
            getattr(self.parent, self.field)[self.index] = node


@dataclass(frozen=True)
class Operator:
    """One change. ``text`` is how the table writes it; ``innermost``: of nested places the innermost counts."""

    text: str
    finds: Callable[[Place], bool]
    change: Callable[[ast.AST], ast.AST]
    innermost: bool = False

    def __str__(self) -> str:
        return self.text

    def apply(self, tree: ast.AST) -> None:
        """Change the tree in place.

        Raises:
            StaleMutantError: There is no such place, or there are several.
        """
        found = [place for place in _places(tree, frozenset()) if self.finds(place)]
        if self.innermost:
            nodes = [place.node for place in found]
            found = [p for p in found if not any(node in nodes for node in ast.walk(p.node) if node is not p.node)]
        if len(found) != 1:
            places = "".join(f"\n  line {getattr(p.node, 'lineno', '?')}: {ast.unparse(p.node)}" for p in found)
            raise StaleMutantError(f"{self.text} finds {len(found)} places instead of one.{places}")
        found[0].put(ast.fix_missing_locations(self.change(found[0].node)))


def drop_call(name: str, *, mentions: Names = (), within: Names = ()) -> Operator:
    """A statement that is only this call goes; in ``with``, the context goes and its block stays."""

    def finds(place: Place) -> bool:
        if isinstance(place.node, ast.withitem):
            return _called(place.node.context_expr) == name
        return isinstance(place.node, ast.Expr) and _called(place.node.value) == name

    def change(node: ast.AST) -> ast.AST:
        if isinstance(node, ast.withitem):
            return ast.withitem(_expression('__import__("contextlib").nullcontext()'), node.optional_vars)
        return ast.Pass()

    return _operator(finds, change, "drop_call", (name,), mentions, within)


def drop_raise(name: str, *, mentions: Names = (), within: Names = ()) -> Operator:
    """``raise`` of this class goes."""

    def finds(place: Place) -> bool:
        error = place.node.exc if isinstance(place.node, ast.Raise) else None
        return name in (_called(error), getattr(error, "id", None))

    return _operator(finds, lambda node: ast.Pass(), "drop_raise", (name,), mentions, within)


def fix_condition(value: bool, *mentions: str, within: Names = ()) -> Operator:
    """The condition of an ``if``, a ternary, a loop or a comprehension is always this value, or an operand of and/or.

    It is the smallest one that has all the names.
    """

    def finds(place: Place) -> bool:
        parent = place.parent
        if isinstance(parent, (ast.If, ast.IfExp, ast.While)):
            return place.field == "test"
        if isinstance(parent, ast.comprehension):
            return place.field == "ifs"
        return isinstance(parent, ast.BoolOp) or (
            isinstance(parent, ast.BinOp) and isinstance(parent.op, (ast.BitAnd, ast.BitOr)) and place.field != "op"
        )

    return _operator(
        finds, lambda node: ast.Constant(value), "fix_condition", (value, *mentions), mentions, within, innermost=True
    )


def replace_constant(old: object, new: object, *, within: Names = ()) -> Operator:
    """Another number, string, boolean or None."""

    def finds(place: Place) -> bool:
        node = place.node
        return isinstance(node, ast.Constant) and type(node.value) is type(old) and node.value == old

    return _operator(finds, lambda node: ast.Constant(new), "replace_constant", (old, new), (), within)


def replace_return(new: str, *, mentions: Names = (), within: Names = ()) -> Operator:
    """Another value is returned: an expression, in which ``_`` is the old value."""

    def change(node: ast.AST) -> ast.AST:
        assert isinstance(node, ast.Return)
        return ast.Return(_expression(new, _=node.value))

    return _operator(
        lambda place: isinstance(place.node, ast.Return), change, "replace_return", (new,), mentions, within
    )


def replace_call(name: str, new: str, *, mentions: Names = (), within: Names = ()) -> Operator:
    """An expression instead of a call: ``_`` is the call, ``_self`` the object of a method, ``_0`` an argument."""

    def change(node: ast.AST) -> ast.AST:
        assert isinstance(node, ast.Call)
        parts = {f"_{index}": argument for index, argument in enumerate(node.args)}
        return _expression(new, _=node, _self=getattr(node.func, "value", None), **parts)

    return _operator(lambda place: _called(place.node) == name, change, "replace_call", (name, new), mentions, within)


def replace_argument(name: str, which: int | str, new: str, *, mentions: Names = (), within: Names = ()) -> Operator:
    """Another argument of a call, by its place or keyword: an expression, in which ``_`` is the old one."""

    def finds(place: Place) -> bool:
        call = place.node
        if not isinstance(call, ast.Call) or _called(call) != name:
            return False
        known = range(len(call.args)) if isinstance(which, int) else [keyword.arg for keyword in call.keywords]
        return which in known

    def change(node: ast.AST) -> ast.AST:
        assert isinstance(node, ast.Call)
        if isinstance(which, int):
            node.args[which] = _expression(new, _=node.args[which])
        else:
            (keyword,) = (keyword for keyword in node.keywords if keyword.arg == which)
            keyword.value = _expression(new, _=keyword.value)
        return node

    return _operator(finds, change, "replace_argument", (name, which, new), mentions, within)


def _operator(
    finds: Callable[[Place], bool],
    change: Callable[[ast.AST], ast.AST],
    kind: str,
    arguments: tuple[object, ...],
    mentions: Names,
    within: Names,
    *,
    innermost: bool = False,
) -> Operator:
    mentioned, around = _tuple(mentions), _tuple(within)
    shown = [repr(argument) for argument in arguments]
    if mentioned and kind != "fix_condition":
        shown.append(f"mentions={mentions!r}")
    if around:
        shown.append(f"within={within!r}")

    def fits(place: Place) -> bool:
        return finds(place) and set(mentioned) <= _names(place.node) and set(around) <= place.around

    return Operator(f"{kind}({', '.join(shown)})", fits, change, innermost)


def _tuple(names: Names) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else names


def _places(node: ast.AST, around: frozenset[str]) -> Iterator[Place]:
    for field, value in ast.iter_fields(node):
        inside = around | _names_around(node, field)
        for index, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if isinstance(child, ast.AST):
                here = inside | _names(node.keys[index]) if isinstance(node, ast.Dict) and field == "values" else inside
                yield Place(child, node, field, index, here)
                yield from _places(child, here)


def _names_around(node: ast.AST, field: str) -> set[str]:
    """The names that ``node`` adds to what surrounds the nodes in its field."""
    if isinstance(node, ast.Call) and field != "func":
        return {_called(node) or ""}
    if isinstance(node, ast.keyword):
        return {node.arg or ""}
    if isinstance(node, ast.If) and field != "test":
        return _names(node.test)
    if isinstance(node, ast.Assign) and field == "value":
        return {name for target in node.targets for name in _names(target)}
    if isinstance(node, (ast.AnnAssign, ast.AugAssign)) and field == "value":
        return _names(node.target)
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        return {node.name}
    return set()


def _names(node: ast.AST | None) -> set[str]:
    """Names, attributes, keywords and strings in a node."""
    found = set()
    for part in () if node is None else ast.walk(node):
        for field in ("id", "attr", "arg", "value"):
            name = getattr(part, field, None)
            if isinstance(name, str):
                found.add(name)
    return found


def _called(node: ast.AST | None) -> str | None:
    """The last part of the called name; of ``f(x)(y)`` it is ``f``."""
    while isinstance(node, ast.Call):
        node = node.func
        if isinstance(node, (ast.Attribute, ast.Name)):
            return node.attr if isinstance(node, ast.Attribute) else node.id
    return None


def _expression(text: str, **parts: ast.AST | None) -> ast.expr:
    """A parsed expression with other nodes in the place of these names."""

    class Fill(ast.NodeTransformer):
        def visit_Name(self, node: ast.Name) -> ast.AST:
            return parts.get(node.id) or node

    body: ast.expr = Fill().visit(ast.parse(text, mode="eval")).body
    return body
