"""Which modules of a package a module imports, directly or through others."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path


def modules_of(package: Path) -> dict[str, Path]:
    """Files of a package by their dotted names."""
    found = {}
    for file in sorted(package.rglob("*.py")):
        parts = file.relative_to(package.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def defines(modules: Mapping[str, Path], name: str) -> str:
    """The module with a class of this name."""
    for module, file in modules.items():
        tree = ast.parse(file.read_text(encoding="utf-8"))
        if any(isinstance(node, ast.ClassDef) and node.name == name for node in tree.body):
            return module
    raise LookupError(f"no module defines the class {name}")


def closure(modules: Mapping[str, Path], start: str) -> set[str]:
    """``start`` and all that it imports, packages around them included.

    Imports inside functions count, those for type checkers alone do not.
    """
    found: set[str] = set()
    waiting = [start]
    while waiting:
        module = waiting.pop()
        if module in found or module not in modules:
            continue
        found.add(module)
        waiting += imports(modules[module].read_text(encoding="utf-8"), module, modules[module].name == "__init__.py")
        if "." in module:
            waiting.append(module.rpartition(".")[0])
    return found


def imports(text: str, module: str, is_package: bool = False) -> set[str]:
    """Dotted names that a module imports; of ``from a import b`` both ``a`` and ``a.b``, which may be no module."""
    found: set[str] = set()
    for node in _running(ast.parse(text)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                around = parts[: len(parts) - node.level + is_package]
                base = ".".join([*around, *([node.module] if node.module else [])])
            found.add(base)
            found.update(f"{base}.{alias.name}" for alias in node.names)
    return found


def _running(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those under ``if TYPE_CHECKING:``."""
    yield node
    for name, value in ast.iter_fields(node):
        if isinstance(node, ast.If) and name == "body" and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from _running(child)
