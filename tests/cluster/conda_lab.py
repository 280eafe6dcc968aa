"""A conda without the internet: a local channel of the packages that the tests run with, and a `conda` that installs from it.

`build` packs the interpreter, the Python distributions of this environment that the environment files ask for, and a wheel of PyTorch
for the CPU, under their names on conda-forge. Run as a script, this file is the command `conda` as far as Snakemake calls it; solver and
installer are those of rattler. All is written below one folder, caches too.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import platform
import re
import sys
import tarfile
import zipfile
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import rattler
import yaml

CHANNEL, SUBDIR, VERSION = "conda-forge", "linux-64", "25.1.0"  # VERSION: of the conda that Snakemake is to believe in
XY = ".".join(platform.python_version_tuple()[:2])
LIBRARY = f"lib/python{XY}"
SITE = f"{LIBRARY}/site-packages"
TORCH = "2.13.0"
CONDA_NAMES = {  # of distributions whose name on conda-forge is another one
    "torch": "pytorch",
    "opencv-python-headless": "py-opencv",
    "openslide-bin": "openslide",
    "matplotlib": "matplotlib-base",
    "huggingface-hub": "huggingface_hub",
}
NOT_RUN = ("torch/include/", "torch/test/", "torch/bin/test_")  # most files of PyTorch's wheel: headers and its own tests
EMPTY = {  # stand-ins: nothing but a name, a version and what they depend on
    "pytorch-cpu": (TORCH, [f"pytorch {TORCH}"]),
    "pytorch-gpu": (TORCH, [f"pytorch {TORCH}"]),
    "torchvision": ("0.28.0", ["pytorch 2.13.*"]),  # its wheel for the CPU is not to be had everywhere, and the demo imports none
}
ACTIVATE = """
PATH="${PATH#"${CONDA_PREFIX:-/nowhere}/bin:"}"
export CONDA_PREFIX="$1" PATH="$1/bin:$PATH"
"""


class File(NamedTuple):
    """A file of a package: its bytes, or the name that it links to."""

    path: str
    content: bytes | str
    mode: int = 0o644


def build(lab: Path, env_files: Iterable[Path], wheel: Path) -> None:
    """Make the channel and ``bin/conda``, ``bin/activate`` in `lab`; `wheel` is PyTorch's, of version `TORCH` for the CPU."""
    folder = lab / "channels" / CHANNEL / SUBDIR
    folder.mkdir(parents=True)
    _pack(folder, "python", platform.python_version(), [], _interpreter())
    with zipfile.ZipFile(wheel) as archive:
        described = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        needs = metadata.PathDistribution(zipfile.Path(archive, described).parent).requires or []
        _pack(folder, "pytorch", TORCH, _depends(needs), _of_wheel(archive))
    for name, (version, depends) in EMPTY.items():
        _pack(folder, name, version, depends, [])
    for distribution in _wanted(env_files, needs):
        depends = [*_depends(distribution.requires or []), *(["openslide"] if distribution.name == "openslide-python" else [])]
        _pack(folder, conda_name(distribution.name), distribution.version, depends, _of_distribution(distribution))
    asyncio.run(rattler.index.index_fs(folder.parent, force=True))
    (lab / "bin").mkdir()
    (lab / "bin/activate").write_text(ACTIVATE)
    (lab / "bin/conda").write_text(f'#!/bin/sh\nexec "{sys.executable}" -I "{Path(__file__).resolve()}" "{lab}" "$@"\n')
    (lab / "bin/conda").chmod(0o755)


def conda_name(distribution: str) -> str:
    """The name on conda-forge of a distribution of the Python index."""
    name = re.sub(r"[-_.]+", "-", distribution).lower()
    return CONDA_NAMES.get(name, name)


def _interpreter() -> Iterator[File]:
    """The base of this Python; where it is linked to a shared libpython, that one is still found at its old place."""
    base, leave = Path(sys.base_prefix), {"site-packages", "test", "idlelib", "ensurepip", "turtledemo", "__pycache__"}
    yield File(f"bin/python{XY}", (base / f"bin/python{XY}").read_bytes(), 0o755)
    yield from (File(f"bin/{name}", f"python{XY}") for name in ("python", "python3"))
    for parent, folders, names in os.walk(base / LIBRARY):
        folders[:] = [folder for folder in folders if folder not in leave and not folder.startswith("config-")]
        yield from (File(str((Path(parent) / name).relative_to(base)), (Path(parent) / name).read_bytes()) for name in names)


def _of_wheel(archive: zipfile.ZipFile) -> Iterator[File]:
    for info in archive.infolist():
        if not info.is_dir() and not info.filename.startswith(NOT_RUN):
            yield File(f"{SITE}/{info.filename}", archive.read(info), info.external_attr >> 16 & 0o777)


def _of_distribution(distribution: metadata.Distribution) -> Iterator[File]:
    """Its files in site-packages; scripts and compiled files are left out."""
    for path in distribution.files or []:
        if path.parts[0] != ".." and path.suffix != ".pyc":
            yield File(f"{SITE}/{path}", path.read_binary())


def _wanted(env_files: Iterable[Path], requirements: Iterable[str]) -> list[metadata.Distribution]:
    """The installed distributions that `env_files` name or `requirements` asks for, and all that those depend on."""
    installed = {conda_name(distribution.name): distribution for distribution in metadata.distributions()}
    named = [dependency for file in env_files for dependency in yaml.safe_load(file.read_text())["dependencies"]]
    ask, found = [*named, *_depends(requirements)], {}
    while ask:
        name = re.split(r"[ =<>!~]", ask.pop(), maxsplit=1)[0]
        if name in installed and name not in found and name not in EMPTY and name != "pytorch":
            found[name] = installed[name]
            ask += _depends(installed[name].requires or []) + (["openslide"] if name == "openslide-python" else [])
    return list(found.values())


def _depends(requirements: Iterable[str]) -> list[str]:
    """Requirements of Python distributions in conda's words, those of extras and other platforms left out."""
    from packaging.requirements import Requirement

    parsed = [Requirement(text) for text in requirements]
    kept = [r for r in parsed if r.marker is None or r.marker.evaluate({"extra": ""})]
    return [f"python {XY}.*", *(f"{conda_name(r.name)} {r.specifier}".strip() for r in kept)]


def _pack(folder: Path, name: str, version: str, depends: list[str], files: Iterable[File]) -> None:
    """Write one package in the format .conda: a zip of two tars, what is in it and the files."""
    stem, paths, content = f"{name}-{version}-lab_0", [], io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        for file in files:
            _add(tar, file)
            paths.append({"_path": file.path, "path_type": "softlink" if isinstance(file.content, str) else "hardlink"})
    index = {"name": name, "version": version, "build": "lab_0", "build_number": 0, "depends": depends, "subdir": SUBDIR}
    about = io.BytesIO()
    with tarfile.open(fileobj=about, mode="w") as tar:
        for path, document in (("index", index), ("paths", {"paths": paths, "paths_version": 1})):
            _add(tar, File(f"info/{path}.json", json.dumps(document).encode()))
    with zipfile.ZipFile(folder / f"{stem}.conda", "w") as archive:
        archive.writestr("metadata.json", json.dumps({"conda_pkg_format_version": 2}))
        archive.writestr(f"pkg-{stem}.tar.zst", _zstd(content))
        archive.writestr(f"info-{stem}.tar.zst", _zstd(about))


def _zstd(buffer: io.BytesIO) -> bytes:
    from imagecodecs import zstd_encode

    return zstd_encode(buffer.getbuffer(), level=1)


def _add(tar: tarfile.TarFile, file: File) -> None:
    info = tarfile.TarInfo(file.path)
    if isinstance(file.content, str):
        info.type, info.linkname = tarfile.SYMTYPE, file.content
        tar.addfile(info)
    else:
        info.size, info.mode = len(file.content), file.mode
        tar.addfile(info, io.BytesIO(file.content))


async def solve(lab: Path, env_file: Path) -> list[rattler.RepoDataRecord]:
    """The packages that fulfil an environment file; raises `rattler.exceptions.SolverError` where none do."""
    document = yaml.safe_load(env_file.read_text())
    channels = [rattler.Channel((lab / "channels" / name).as_uri()) for name in document["channels"] if name != "nodefaults"]
    gateway = rattler.Gateway(cache_dir=lab / "cache")
    return await rattler.solve(channels, document["dependencies"], gateway, [SUBDIR], virtual_packages=rattler.VirtualPackage.detect())


async def _create(lab: Path, env_file: Path, prefix: Path) -> None:
    records = await solve(lab, env_file)
    await rattler.install(records, prefix, cache_dir=lab / "cache", show_progress=False)


def main(lab: Path, arguments: list[str]) -> None:
    """The calls that Snakemake makes, and no other."""
    match arguments:
        case ["--version"]:
            print("conda", VERSION)
        case ["info", "--json"]:
            print(json.dumps({"conda_prefix": str(lab), "platform": SUBDIR}))
        case ["config", "--get", "channel_priority", "--json"]:
            print(json.dumps({"get": {"channel_priority": "strict"}}))
        case ["env", "create", *_, "--file", env_file, "--prefix", prefix]:
            asyncio.run(_create(lab, Path(env_file), Path(prefix)))
        case ["clean", *_]:
            pass  # what was unpacked stays for the next environment
        case _:
            sys.exit(f"the conda of the tests does not know: {arguments}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
    sys.stdout.flush()
    os._exit(0)  # threads of rattler may outlive `asyncio.run`, and one that does aborts an interpreter that shuts down
