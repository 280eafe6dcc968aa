"""The machine: Python, libraries, decoders, tools, cores, memory, GPU, and whether results can be written."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import tempfile
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from pipeline.amounts import gigabytes
from pipeline.doctor.findings import FAIL, OK, WARN, Check, Finding
from pipeline.files import write_text

PROJECT = Path(__file__).resolve().parents[3] / "pyproject.toml"
OPTIONAL = {"g++": "compiled encoders on a CPU", "conda": "--use-conda", "sbatch": "a SLURM cluster"}
MEMORY = 8e9  # what the features stage asks for
GPU_MEMORY = 4e9


def machine_checks(results: Path) -> list[Check]:
    """Checks that need no cohort; `results` is where the workflow writes."""
    return [
        ("Python", python),
        ("libraries", libraries),
        ("decoders", decoders),
        ("tools", tools),
        ("CPU", processors),
        ("memory", memory),
        ("GPU", graphics),
        ("results", lambda: writing(results)),
    ]


def python(project: Path = PROJECT) -> Iterator[Finding]:
    """The interpreter against `requires-python`."""
    from packaging.specifiers import SpecifierSet

    wanted, found = _project(project).get("requires-python", ""), platform.python_version()
    fits = SpecifierSet(wanted).contains(found, prereleases=True)
    yield Finding(OK if fits else FAIL, "Python", found, "" if fits else f"Use Python {wanted}.")


def libraries(project: Path = PROJECT) -> Iterator[Finding]:
    """Every library that pyproject.toml names, by the version that is installed."""
    from packaging.requirements import Requirement

    stated = map(Requirement, _project(project).get("dependencies") or metadata.requires("slide2surv") or [])
    wanted = [requirement for requirement in stated if requirement.marker is None or requirement.marker.evaluate({"extra": ""})]
    right = 0
    for requirement in wanted:
        try:
            found = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            status, text = FAIL, "is not installed"
        else:
            if requirement.specifier.contains(found, prereleases=True):
                right += 1
                continue
            status, text = WARN, f"{found} is installed, {requirement.specifier} was tested"
        yield Finding(status, requirement.name, text, f"pip install '{requirement}'")
    yield Finding(OK, "libraries", f"{right} of {len(wanted)} as required")


def _project(path: Path) -> dict:
    return tomllib.loads(path.read_text(encoding="utf-8"))["project"] if path.is_file() else {}


def decoders() -> Iterator[Finding]:
    """OpenSlide, and the decoders of JPEG and JPEG 2000 tiles, by decoding one of each."""
    import imagecodecs
    import numpy as np
    import openslide

    yield Finding(OK, "OpenSlide", openslide.__library_version__)
    grey = np.full((16, 16, 3), 128, np.uint8)
    try:
        import simplejpeg

        simplejpeg.decode_jpeg(simplejpeg.encode_jpeg(grey))
        yield Finding(OK, "JPEG", f"simplejpeg {metadata.version('simplejpeg')} (libjpeg-turbo)")
    except Exception as error:
        remedy = "pip install simplejpeg; without it slides are read through OpenSlide, several times slower."
        yield Finding(WARN, "JPEG", f"no libjpeg-turbo ({type(error).__name__}: {error})", remedy)
    imagecodecs.jpeg2k_decode(imagecodecs.jpeg2k_encode(grey))
    yield Finding(OK, "JPEG 2000", imagecodecs.jpeg2k_version())


def tools() -> Iterator[Finding]:
    """Programs that some runs use."""
    found = [name for name in OPTIONAL if shutil.which(name)]
    absent = [f"{name} (only for {use})" for name, use in OPTIONAL.items() if name not in found]
    parts = ["found " + ", ".join(found)] * bool(found) + ["not found " + ", ".join(absent)] * bool(absent)
    yield Finding(OK, "tools", "; ".join(parts))


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processors() -> Iterator[Finding]:
    yield Finding(OK, "CPU", f"{cores()} cores, {platform.machine()}")


def memory(limit: Path = Path("/sys/fs/cgroup/memory.max")) -> Iterator[Finding]:
    """Physical memory, or what the container or job is given of it."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    stated = limit.read_text().strip() if limit.is_file() else "max"
    total = min(total, int(stated)) if stated.isdigit() else total
    few = total < MEMORY
    yield Finding(WARN if few else OK, "memory", gigabytes(total), f"A job of the features stage asks for {gigabytes(MEMORY)}." * few)


def graphics() -> Iterator[Finding]:
    """GPUs that torch can use; a driver that sees more than torch does."""
    import torch

    devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    for device in devices:
        small = device.total_memory < GPU_MEMORY
        text = f"{device.name}, {gigabytes(device.total_memory)}, torch {torch.__version__}"
        yield Finding(WARN if small else OK, "GPU", text, "Lower `slides.batch_size`." * small)
    seen = _driver_sees()
    if seen and not devices:
        built = f"is built for CUDA {torch.version.cuda}" if torch.version.cuda else "is built for CPUs only"
        remedy = "Update the driver, or install the torch that goes with it: encoding runs on the CPU until then."
        yield Finding(WARN, "GPU", f"the driver sees {', '.join(seen)}, but torch {torch.__version__} {built} and sees none", remedy)
    elif not devices:
        yield Finding(OK, "GPU", f"none; torch {torch.__version__} computes on the CPU")


def _driver_sees() -> list[str]:
    """Names of the GPUs by NVIDIA's own tool; none where it is absent or fails."""
    try:
        command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [" driver ".join(cell.strip() for cell in line.split(",")) for line in answer.splitlines() if line.strip()]


def writing(results: Path) -> Iterator[Finding]:
    """Whether a file can be written, flushed and renamed where the results go; nothing is left behind."""
    at = existing(results)
    try:
        with tempfile.TemporaryDirectory(dir=at, prefix=".doctor-") as folder:
            for text in "ab":  # the second replaces the first
                write_text(Path(folder) / "probe", text)
            whole = (Path(folder) / "probe").read_text() == "b"
    except OSError as error:
        yield Finding(
            FAIL, "results", f"{at} cannot be written to ({error.strerror or error})", "Change its permissions, or the working folder."
        )
        return
    free = gigabytes(shutil.disk_usage(at).free)
    if whole:
        yield Finding(OK, "results", f"{at}: files are written and renamed whole; {free} free")
    else:
        yield Finding(FAIL, "results", f"{at}: a renamed file does not have its content", "Use another file system.")


def existing(folder: Path) -> Path:
    """`folder`, or the nearest folder above it that exists."""
    folder = folder.absolute()
    return next(p for p in (folder, *folder.parents) if p.is_dir())
