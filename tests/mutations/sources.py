"""Finding functions by their qualified name, and tests by their name, wherever their files are."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

from operators import StaleMutantError

#: The distribution of what is not in plugins/.
CORE = "sfkit"

_TEST = re.compile(r"^def (test_\w+)\(", re.MULTILINE)
_NUMBERED = re.compile(r"test_fault_(\d\d(?:_(?:and_)?\d\d)*)(?:_|$)")


def packages(root: Path) -> list[Path]:
    """Folders of the import packages of the core and of all plugins."""
    found = [root / CORE, *root.glob("plugins/*/src/*")]
    return sorted(path for path in found if (path / "__init__.py").is_file())


def module_of(path: Path) -> str:
    """The module's name, from the path of its file from the root of the repository."""
    return path.as_posix().rpartition("src/")[2].removesuffix(".py").replace("/", ".").removesuffix(".__init__")


def distribution_of(path: Path) -> str:
    """The plugin that a path of the repository belongs to, else the core."""
    return path.parts[1] if path.parts[0] == "plugins" else CORE


def faults_of(test: str) -> tuple[int, ...]:
    """The faults whose numbers the name of a test bears."""
    found = _NUMBERED.match(test)
    return tuple(int(number) for number in re.findall(r"\d\d", found[1])) if found else ()


class Functions:
    """The functions and classes of the sources, by their qualified names.

    Args:
        texts: Source texts by path, from the root of the repository.
    """

    def __init__(self, texts: Mapping[Path, str]) -> None:
        self.texts = texts
        self._paths: dict[str, dict[Path, None]] = defaultdict(dict)
        for path, text in texts.items():
            for name, _ in _definitions(ast.parse(text)):
                self._paths[name][path] = None

    @classmethod
    def of(cls, root: Path) -> Functions:
        """Those of the core and of all plugins."""
        paths = sorted(path for package in packages(root) for path in package.rglob("*.py"))
        return cls({path.relative_to(root): path.read_text(encoding="utf-8") for path in paths})

    def find(self, name: str) -> tuple[Path, str]:
        """File and qualified name of the one function or class that a name means.

        Args:
            name: ``Class.method`` or ``function``; in front, where that is not unique, parts of the module's name.

        Raises:
            StaleMutantError: There is none, or there are several.
        """
        words = name.split(".")
        found = [
            (path, qualified)
            for length in range(1, len(words) + 1)
            for qualified in [".".join(words[-length:])]
            for path in self._paths.get(qualified, ())
            if set(words[:-length]) <= set(module_of(path).split("."))
        ]
        if len(found) == 1:
            return found[0]
        if found:
            candidates = ", ".join(f"{module_of(path)}.{qualified}" for path, qualified in found)
            raise StaleMutantError(f"{name} may be {candidates}: put a part of the module's name in front.")
        similar = [
            f"{module_of(path)}.{known}"
            for known, paths in self._paths.items()
            for path in paths
            if known.rpartition(".")[2] == words[-1]
        ]
        raise StaleMutantError(f"There is no {name} in the sources. Similar: {', '.join(similar) or 'nothing'}.")

    def tree(self, name: str) -> tuple[Path, ast.Module, ast.AST]:
        """The file of a function, its fresh syntax tree, and the function in it."""
        path, qualified = self.find(name)
        tree = ast.parse(self.texts[path])
        # The last definition counts, as in Python; earlier ones are overloads and getters.
        return path, tree, [node for known, node in _definitions(tree) if known == qualified][-1]


class Tests:
    """The test functions of some files, by their name."""

    def __init__(self, texts: Mapping[Path, str]) -> None:
        self._files: dict[str, list[Path]] = defaultdict(list)
        for path, text in texts.items():
            for name in _TEST.findall(text):
                self._files[name].append(path)

    @classmethod
    def of(cls, root: Path) -> Tests:
        """Those of the core and of all plugins; paths are relative to ``root``."""
        paths = sorted([*root.glob("tests/**/test_*.py"), *root.glob("plugins/*/tests/**/test_*.py")])
        return cls({path.relative_to(root): path.read_text(encoding="utf-8") for path in paths})

    def find(self, test: str) -> Path:
        """The file of a test, ``test_name`` or ``test_name[case]``.

        Raises:
            StaleMutantError: There is none, or there are several.
        """
        name = test.partition("[")[0]
        found = self._files.get(name, [])
        if len(found) != 1:
            where = ", ".join(map(str, found)) or "nowhere"
            raise StaleMutantError(f"The test {name} must be in one file, and is in: {where}.")
        return found[0]

    def guarded(self) -> set[tuple[int, str]]:
        """Each fault with each distribution whose tests bear its number."""
        return {
            (fault, distribution_of(path))
            for name, paths in self._files.items()
            for path in paths
            for fault in faults_of(name)
        }


def _definitions(node: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.AST]]:
    """Qualified names of all functions and classes, those inside of functions too."""
    for child in ast.iter_child_nodes(node):
        name = prefix
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            name = f"{prefix}{child.name}."
            yield name[:-1], child
        yield from _definitions(child, name)
