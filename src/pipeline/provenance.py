"""Which code makes a file: a digest of all that a script imports from this package, over its syntax alone."""

from __future__ import annotations

import ast
import hashlib
from functools import cached_property
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[1]
PACKAGE = __package__.partition(".")[0]
TEMPLATE = ".j2"
PLACES = {"ctx", "kind", "type_comment", "type_ignores"}  # fields of a syntax tree that say nothing more than its other nodes


class Module:
    """One file of Python: what it imports from the package, and a digest of its syntax.

    Comments, docstrings, blank lines and quotes make no difference. A template of its own folder that it names counts.
    """

    def __init__(self, file: Path, root: Path) -> None:
        reading = _Reading()
        reading.spell(ast.parse(file.read_bytes(), str(file)), True)
        digest = hashlib.sha256("\n".join(reading.texts).encode())
        for name in sorted(reading.templates):
            if (template := file.with_name(Path(name).name)).is_file():
                digest.update(template.read_bytes())
        self.digest = digest.hexdigest()  # changes with what the code does
        self.names = frozenset(reading.names)  # all that the file imports, inside functions too, but for what type checkers alone see
        self._root = root

    @cached_property
    def imports(self) -> frozenset[Path]:
        """Files of the package among `names`; importing a module runs those of the packages around it."""
        parts = [name.split(".") for name in self.names if name.partition(".")[0] == PACKAGE]
        return frozenset(file for name in parts for end in range(1, len(name) + 1) if (file := _source(self._root, name[:end])))


class _Reading:
    """One pass over a syntax tree: its nodes written out, the names it imports (a name out of a module may be a module), and templates."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.names: set[str] = set()
        self.templates: set[str] = set()

    def spell(self, node: ast.AST, runs: bool) -> None:
        """Write the node out, fields that are empty left away: versions of Python differ in them. runs: not only type checkers see it."""
        self.texts.append(type(node).__name__)
        if runs and isinstance(node, ast.Import):
            self.names |= {alias.name for alias in node.names}
        elif runs and isinstance(node, ast.ImportFrom) and node.module:
            self.names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.endswith(TEMPLATE):
            self.templates.add(node.value)
        for_types = isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for name in node._fields:
            value = getattr(node, name, None)
            if value is None or value == [] or name in PLACES:
                continue
            self.texts.append(name)
            if isinstance(value, list):
                body = name == "body"
                for part in value[1:] if body and _is_docstring(value[0]) else value:
                    self._part(part, runs and not (for_types and body))
            else:
                self._part(value, runs)

    def _part(self, value: object, runs: bool) -> None:
        if isinstance(value, ast.AST):
            self.spell(value, runs)
        else:
            self.texts.append(repr(value))


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


def _is_docstring(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
