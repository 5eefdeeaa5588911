"""What can be counted in a source file."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

_SILENT = {
    tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER,
}  # fmt: skip
#: Comments for tools, which explain nothing.
_FOR_TOOLS = re.compile(r"#\s*(type: ignore|noqa|fmt:|pragma:|ruff:|mypy:)")
#: ``(b, v, 3, h, w)``, ``()``, ``(*)`` (any shape, as torch writes it), or (in a sentence) ``b v h w`` in backticks.
_SHAPE = re.compile(r"``\(\s*\*?\s*\)``|``\(?(?:[\w.+*/ -]|\([^()]*\))+,[^`]*\)?``|``\w+(?: [\w()]+)+``")
_TENSOR = re.compile(r"^(torch\.)?Tensor( \| None)?$")

Function = ast.FunctionDef | ast.AsyncFunctionDef


class Source:
    """One Python file."""

    def __init__(self, text: str, name: str = "") -> None:
        self.text, self.name = text, name
        self.tree = ast.parse(text)

    @classmethod
    def read(cls, file: Path, root: Path) -> Source:
        """The file, with its name from ``root`` on."""
        return cls(file.read_text(encoding="utf-8"), file.relative_to(root).as_posix())

    @cached_property
    def tokens(self) -> list[tokenize.TokenInfo]:
        """All tokens."""
        return list(tokenize.generate_tokens(io.StringIO(self.text).readline))

    @property
    def physical_lines(self) -> int:
        """All lines."""
        return len(self.text.splitlines())

    @property
    def code_lines(self) -> int:
        """Lines without blanks, comments and docstrings."""
        lines: set[int] = set()
        for token in self.tokens:
            if token.type not in _SILENT:
                lines.update(range(token.start[0], token.end[0] + 1))
        for docstring in self._docstrings():
            lines.difference_update(range(docstring.lineno, (docstring.end_lineno or 0) + 1))
        return len(lines)

    @property
    def anys(self) -> int:
        """How often ``Any`` is used; its import is not a use."""
        imports = {
            line
            for node in ast.walk(self.tree)
            if isinstance(node, ast.Import | ast.ImportFrom)
            for line in range(node.lineno, (node.end_lineno or 0) + 1)
        }
        return sum(token.string == "Any" and token.start[0] not in imports for token in self.tokens)

    @property
    def comments(self) -> int:
        """Lines that are a comment, and say something to a reader."""
        return sum(
            token.type == tokenize.COMMENT
            and token.line.lstrip().startswith("#")
            and not _FOR_TOOLS.match(token.string)
            for token in self.tokens
        )

    def functions(self) -> Iterator[tuple[str, Function]]:
        """Every function with its qualified name, nested ones too."""
        yield from _functions(self.tree, ())

    def long_functions(self, limit: int, without_signature: tuple[str, ...] = ()) -> list[str]:
        """Names of functions of more lines, with the number; of some only what follows the docstring counts."""
        found = []
        for name, function in self.functions():
            first = function.lineno
            if name in without_signature:
                first = function.body[1 if ast.get_docstring(function) else 0].lineno
            lines = (function.end_lineno or 0) - first + 1
            if lines > limit:
                found.append(f"{self.name}:{name} ({lines})")
        return found

    def functions_of_tensors(self) -> list[tuple[str, bool]]:
        """Each function with a parameter that is a tensor, and whether its docstring states a shape."""
        return [
            (f"{self.name}:{name}", bool(_SHAPE.search(ast.get_docstring(function) or "")))
            for name, function in self.functions()
            if any(_TENSOR.match(ast.unparse(annotation)) for annotation in _annotations(function))
        ]

    def _docstrings(self) -> Iterator[ast.Expr]:
        for node in ast.walk(self.tree):
            documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            if documented and ast.get_docstring(node) is not None:
                yield node.body[0]


def _functions(node: ast.AST, names: tuple[str, ...]) -> Iterator[tuple[str, Function]]:
    for child in ast.iter_child_nodes(node):
        inner = names
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            inner = (*names, child.name)
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield ".".join(inner), child
        yield from _functions(child, inner)


def _annotations(function: Function) -> list[ast.expr]:
    arguments = function.args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    every += [one for one in (arguments.vararg, arguments.kwarg) if one]
    return [one.annotation for one in every if one.annotation]
