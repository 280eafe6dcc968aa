"""Which code makes a file: a digest of all that a script imports from this package, over its syntax alone."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[1]
PACKAGE = __package__.partition(".")[0]
PLACES = {"ctx", "kind", "type_comment", "type_ignores"}  # fields of a syntax tree that say nothing more than its other nodes


class Module:
    """One file of Python: what it imports from the package, and a digest of its syntax.

    Comments, docstrings, blank lines and quotes make no difference. Data files of its own folder that it names (a template, say) count.
    """

    def __init__(self, file: Path, root: Path) -> None:
        self._tree, self._file, self._root = ast.parse(file.read_bytes(), str(file)), file, root

    @cached_property
    def digest(self) -> str:
        """Hex digits that change with what the code does."""
        texts: list[str] = []
        _spell(self._tree, texts)
        digest = hashlib.sha256("\n".join(texts).encode())
        for name in sorted({node.value for node in ast.walk(self._tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}):
            if name.endswith(".j2") and (data := self._file.with_name(Path(name).name)).is_file():
                digest.update(data.read_bytes())
        return digest.hexdigest()

    @cached_property
    def names(self) -> frozenset[str]:
        """All that the file imports, inside functions too, but for what type checkers alone see."""
        return frozenset(_imported(self._tree))

    @cached_property
    def imports(self) -> frozenset[Path]:
        """Files of the package among them; importing a module runs those of the packages around it."""
        parts = [name.split(".") for name in self.names if name.partition(".")[0] == PACKAGE]
        return frozenset(file for name in parts for end in range(1, len(name) + 1) if (file := _source(self._root, name[:end])))


class Code:
    """The package's files below `root`, each read once, and again when it was edited."""

    def __init__(self, root: Path = SOURCE) -> None:
        self._root = root
        self._modules: dict[Path, tuple[tuple[int, int], Module]] = {}

    def closure(self, *entries: str | Path) -> set[Path]:
        """All files that `entries` (paths of scripts, or dotted names of modules) run, themselves among them.

        Raises `FileNotFoundError` for a module that is none.
        """
        todo, found = [self._entry(entry) for entry in entries], set()
        while todo:
            file = todo.pop()
            if file not in found:
                found.add(file)
                todo += self._module(file).imports
        return found

    def imported(self, *entries: str | Path) -> set[str]:
        """Top-level modules, of Python or of others, that the closure imports."""
        return {name.partition(".")[0] for file in self.closure(*entries) for name in self._module(file).names} - {PACKAGE}

    def version(self, *entries: str | Path, within: str = "") -> str:
        """Twelve hex digits that change with the code of any file of the closure, and with nothing else.

        within: only files of that room of the package, by its dotted name.
        """
        room = self._root.joinpath(*within.split("."))
        files = [file for file in self.closure(*entries) if not within or file.is_relative_to(room)]
        lines = (f"{self._name(file)} {self._module(file).digest}" for file in files)
        return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()[:12]

    def _entry(self, entry: str | Path) -> Path:
        if isinstance(entry, Path):
            return entry
        if file := _source(self._root, entry.split(".")):
            return file
        raise FileNotFoundError(f"no module {entry} below {self._root}")

    def _module(self, file: Path) -> Module:
        state = file.stat()
        read = (state.st_size, state.st_mtime_ns)
        if file not in self._modules or self._modules[file][0] != read:
            self._modules[file] = read, Module(file, self._root)
        return self._modules[file][1]

    def _name(self, file: Path) -> str:
        """The file's place in the package, or a script's name: the same wherever the repository lies."""
        return file.relative_to(self._root).as_posix() if file.is_relative_to(self._root) else file.name


CODE = Code()


def code_version(*entries: str | Path, within: str = "") -> str:
    """`Code.version` of this package.

    >>> len(code_version("pipeline.errors"))
    12
    """
    return CODE.version(*entries, within=within)


def _source(root: Path, name: list[str]) -> Path | None:
    """The file of a module by the parts of its name; None for what is defined inside a module."""
    path = root.joinpath(*name)
    return next((file for file in (path / "__init__.py", path.with_suffix(".py")) if file.is_file()), None)


def _imported(tree: ast.AST) -> Iterator[str]:
    """Names of `Module.names`; a name out of a module may be a module."""
    todo = [tree]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            todo += node.orelse
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        todo += ast.iter_child_nodes(node)


def _spell(node: ast.AST, texts: list[str]) -> None:
    """Write the tree out, fields that are empty left away: versions of Python differ in them."""
    texts.append(type(node).__name__)
    for name in node._fields:
        value = getattr(node, name, None)
        if value is None or value == [] or name in PLACES:
            continue
        texts.append(name)
        if isinstance(value, list):
            for part in value[1:] if name == "body" and _is_docstring(value[0]) else value:
                _spell(part, texts) if isinstance(part, ast.AST) else texts.append(repr(part))
        elif isinstance(value, ast.AST):
            _spell(value, texts)
        else:
            texts.append(repr(value))


def _is_docstring(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
