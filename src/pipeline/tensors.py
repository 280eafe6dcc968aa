"""What a file of PyTorch declares: its pickle is followed before PyTorch sees it, with nothing in it called and nothing unpacked.

PyTorch believes the pickle: it takes memory for as many numbers as that states, reads on behind a part that holds fewer, and lets a view
of one row stand for ten million.
"""

from __future__ import annotations

import io
import math
import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from pipeline.errors import InputError
from pipeline.files import require_file
from pipeline.limits import check_declared

BYTES = {"Double": 8, "Float": 4, "Half": 2, "Long": 8, "Int": 4, "Short": 2, "BFloat16": 2, "ComplexDouble": 16, "ComplexFloat": 8}
REBUILD = ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3")  # of torch._utils: storage, offset, size, …
MAGIC = 0x1950A86A20F9469CFC6C  # with which a file begins that is no archive
MOST_PICKLE = 2**26  # bytes of a pickle, in which numbers themselves do not lie


class Storage(NamedTuple):
    """Where the numbers of tensors lie: the name of the part of the file, how many they are, and the bytes of one."""

    key: str
    count: int
    size: int


def check_tensors(path: Path) -> None:
    """Raise `InputError` where a .pt file declares more than it holds. What is damaged in another way, PyTorch tells when it loads it."""
    if zipfile.is_zipfile(require_file(path, "file of tensors")):
        _check_archive(path)
    else:
        _check_stream(path)


def _check_archive(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            members = {member.filename: member.file_size for member in archive.infolist()}
            check_declared("the archive", sum(members.values()), path.stat().st_size, path, shape=f"{len(members)} parts")
            name = next((name for name in members if name.split("/")[1:] == ["data.pkl"]), None)
            if name is None or members[name] > MOST_PICKLE:
                return
            declared = _Declared(io.BytesIO(archive.read(name)), path)
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError):
        return
    declared.follow()
    folder = name.removesuffix("data.pkl")
    for storage in declared.storages:
        held, needed = members.get(f"{folder}data/{storage.key}", 0), storage.count * storage.size
        if needed > held:
            raise _lies(path, f"{storage.count:,} numbers, {needed:,} bytes in a part of {held:,}")


def _check_stream(path: Path) -> None:
    with open(path, "rb") as handle:
        declared = _Declared(handle, path)
        if not declared.follow() or declared.value != MAGIC:
            return
        for _ in range(3):  # its version, facts of the machine, and the object
            declared.follow()
    needed, held = sum(storage.count * storage.size for storage in set(declared.storages)), path.stat().st_size
    if needed > held:
        raise _lies(path, f"{needed:,} bytes of numbers in a file of {held:,}")


def _lies(path: Path, found: str) -> InputError:
    return InputError("a tensor declares more than the file holds", file=path, found=found)


class _Anything:
    """Stands for every object that a pickle would make."""

    def __new__(cls, *_: Any, **__: Any) -> _Anything:
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...

    def __setitem__(self, key: Any, value: Any) -> None: ...

    def append(self, value: Any) -> None: ...

    def __iter__(self) -> Iterator[Any]:
        return iter(())


class _Declared(pickle._Unpickler):  # type: ignore[name-defined, misc]  # the one in C takes memory for what a pickle declares
    """Follows a pickle and notes its storages; judges the tensors made of them."""

    def __init__(self, handle: BinaryIO, path: Path) -> None:
        super().__init__(handle)
        self.storages: list[Storage] = []
        self.value: object = None
        self._path = path

    def follow(self) -> bool:
        """Whether one pickle could be followed to its end."""
        try:
            self.value = self.load()
        except InputError:
            raise
        except Exception:  # whatever a damaged pickle makes of it
            return False
        return True

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch._utils" and name in REBUILD:
            return self._tensor
        return name if module.startswith("torch") and name.endswith("Storage") else _Anything

    def persistent_load(self, pid: Any) -> Storage:
        _, kind, key, _, count = pid[:5]
        storage = Storage(str(key), int(count), BYTES.get(str(kind).removesuffix("Storage"), 1))
        self.storages.append(storage)
        return storage

    def _tensor(self, storage: Storage, offset: int, size: tuple[int, ...], *_: Any) -> _Anything:
        declared, held = math.prod(size) * storage.size, storage.count * storage.size
        check_declared("a tensor", declared, held, self._path, shape=list(size))
        return _Anything()
