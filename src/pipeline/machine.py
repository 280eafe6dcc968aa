"""What is no fault of the input: a full disk, a permission withdrawn, a disk that does not answer, memory that is not enough.

`machine_fault` alone decides what is the machine's. All else may be a property of a slide, a patient or a fold, and become a row of a
manifest or a failed fold. A fault of the machine never does: it passes, and the job that met it is to fail and to go on later.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from pipeline.errors import InputError

BLOCK = 1 << 22
SHOWN = 5  # names in a message
AGAIN = "Then run the same command again: what is finished is kept."


class Fault(NamedTuple):
    """A kind of fault: how it is said, what to do, and whether it would meet the other files of a job, too."""

    problem: str
    remedy: str
    everywhere: bool = False


FULL = Fault("the disk is full", "Free space on it (df -h), or move the results to a larger one.", everywhere=True)
QUOTA = Fault("the disk quota is used up", "Free space, or ask for more.", everywhere=True)
READ_ONLY = Fault(
    "the file system is read-only", "Mount it writable; Linux makes it read-only after an error of the disk.", everywhere=True
)
DENIED = Fault("permission is denied", "Give it back (ls -l); on a network disk the ticket may have expired (klist).")
BROKEN = Fault("the disk does not read or write (input/output error)", "Check the disk or its server; the system's log says more (dmesg).")
GONE = Fault("the network disk does not answer", "Mount it again (df -h shows whether it is there).")
LIMITED = Fault("the file would be larger than is allowed", "Raise the limit (ulimit -f), or use another file system.", everywhere=True)
OPEN = Fault("too many files are open", "Raise the limit (ulimit -n).", everywhere=True)
PROCESSES = Fault("no further process can be started", "Raise the limit (ulimit -u), or run fewer jobs at a time.", everywhere=True)
MEMORY = Fault("memory is not enough", "Give the job more (--set-resources RULE:mem_mb=16000), or run fewer jobs at a time (--cores).")
DEVICE = Fault("the memory of the GPU is not enough", "Leave the GPU to this job alone, or lower `batch_size`.", everywhere=True)

KINDS = {
    FULL: (errno.ENOSPC,),
    QUOTA: (errno.EDQUOT,),
    READ_ONLY: (errno.EROFS,),
    DENIED: (errno.EACCES, errno.EPERM, errno.ENOKEY, errno.EKEYEXPIRED, errno.EKEYREVOKED),
    BROKEN: (errno.EIO, errno.EUCLEAN, errno.EBADMSG, errno.ENXIO, errno.ENODEV, errno.ENOMEDIUM),
    GONE: (
        *(errno.ESTALE, errno.ENOTCONN, errno.ESHUTDOWN, errno.EREMOTEIO, errno.ETIMEDOUT, errno.ENOLINK),
        *(errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH),
    ),
    LIMITED: (errno.EFBIG,),
    OPEN: (errno.EMFILE, errno.ENFILE),
    PROCESSES: (errno.EAGAIN,),
    MEMORY: (errno.ENOMEM,),
}
ERRNOS = {number: fault for fault, numbers in KINDS.items() for number in numbers}
# Libraries tell of an error of the system by its number (HDF5, Rust), or by its text alone (OpenSlide, libtiff).
NUMBER = re.compile(r"\b(?:errno = |os error |\[Errno )(\d+)")
SAID = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.EREMOTEIO, errno.EHOSTDOWN)
SAID += (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
TEXTS = {os.strerror(number).lower(): ERRNOS[number] for number in SAID}
TEXTS |= {"cuda out of memory": DEVICE, "can't start new thread": PROCESSES}
# of OpenCV, PyTorch and C++: not "out of memory", which decoders say of damaged streams that claim absurd sizes
TEXTS |= dict.fromkeys(("insufficient memory", "failed to allocate", "can't allocate memory", "bad_alloc"), MEMORY)
NAMED = re.compile(r"\b(?:file)?name = '([^']*)'")  # HDF5
JUDGED = (InputError, LookupError, TypeError, AttributeError)  # their text is ours, or tells of no system call


class MachineError(Exception):
    """Something that passes kept the work from being done: no property of a slide, a patient or a fold.

    everywhere: it would meet the other files of the job, too.

    >>> print(MachineError("permission is denied", path="a.svs", remedy="Give it back."))
    a.svs: permission is denied. Give it back. Then run the same command again: what is finished is kept.
    """

    def __init__(self, problem: str, *, path: str | Path | None = None, remedy: str = "", everywhere: bool = False) -> None:
        self.problem, self.path, self.remedy, self.everywhere = problem, path, remedy, everywhere
        super().__init__(" ".join(filter(None, [self.reason, remedy, AGAIN])))

    @property
    def reason(self) -> str:
        """The message without the remedy."""
        return f"{'' if self.path is None else f'{self.path}: '}{self.problem}."

    def at(self, path: str | Path) -> MachineError:
        """The same fault, at another path."""
        return MachineError(self.problem, path=path, remedy=self.remedy, everywhere=self.everywhere)

    def __reduce__(self) -> tuple[object, ...]:  # it is sent from a child process to its parent
        return _rebuild, (self.problem, self.path, self.remedy, self.everywhere)


def _rebuild(problem: str, path: str | Path | None, remedy: str, everywhere: bool) -> MachineError:
    return MachineError(problem, path=path, remedy=remedy, everywhere=everywhere)


def machine_fault(error: BaseException, path: str | Path | None = None) -> MachineError | None:
    """The fault of the machine that `error` tells of, itself or by what it was raised from; None where there is none.

    path: of the file that was worked on, where the error does not name one.

    >>> print(machine_fault(OSError(24, "Too many open files"), "x.h5"))
    x.h5: too many files are open. Raise the limit (ulimit -n). Then run the same command again: what is finished is kept.
    >>> machine_fault(FileNotFoundError(2, "No such file or directory", "a.svs")) is None
    True
    """
    for link in causes(error):
        if isinstance(link, MachineError):
            return link
        if fault := _fault(link):
            return MachineError(fault.problem, path=_path(link) or path, remedy=fault.remedy, everywhere=fault.everywhere)
    return None


def causes(error: BaseException) -> Iterator[BaseException]:
    """The error, and what it was raised from or while handling."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)


def read_to_end(paths: Iterable[str | Path]) -> None:
    """Read files to their end; raises `MachineError` where the disk does not give their bytes, whatever these are.

    Some decoders take a disk that does not read for damage. Asked for where something is damaged, since it takes as long as copying them.
    """
    for path in paths:
        try:
            with open(path, "rb", buffering=0) as handle:
                while handle.read(BLOCK):
                    pass
        except OSError as error:
            if fault := machine_fault(error, path):
                raise fault from error


class Faults:
    """The faults of the machine that kept some of a job's `units` (slides, patients) from being done, while the others go on."""

    def __init__(self, units: str, total: int) -> None:
        self._units, self._total = units, total
        self._met: dict[str, list[tuple[str, MachineError]]] = {}

    def add(self, name: str, fault: MachineError) -> None:
        """Note that the unit `name` met `fault`."""
        self._met.setdefault(fault.problem, []).append((name, fault))

    def check(self) -> None:
        """Raise one `MachineError` that tells of all that were noted, where there are any."""
        if not self._met:
            return
        problems, remedies = [], []
        for problem, met in self._met.items():
            names = ", ".join([name for name, _ in met[:SHOWN]] + ["…"] * (len(met) > SHOWN))
            place = next((f" at {fault.path}" for _, fault in met if fault.path is not None), "")
            problems.append(f"{len(met)} of {self._total} {self._units} ({names}): {problem}{place}")
            remedies.append(met[0][1].remedy)
        raise MachineError("not done for a cause that passes: " + "; ".join(problems), remedy=" ".join(dict.fromkeys(remedies)))


def _fault(error: BaseException) -> Fault | None:
    if isinstance(error, MemoryError):
        return MEMORY
    if isinstance(error, OSError) and error.errno:
        return ERRNOS.get(error.errno)
    if isinstance(error, JUDGED) or not isinstance(error, Exception):
        return None
    text = str(error)
    if number := NUMBER.search(text):
        return ERRNOS.get(int(number[1]))
    return next((fault for words, fault in TEXTS.items() if words in text.lower()), None)


def _path(error: BaseException) -> str | None:
    """The file that an error names."""
    name = getattr(error, "filename", None)
    if isinstance(name, bytes):
        name = os.fsdecode(name)
    if isinstance(name, str):
        return name
    found = NAMED.search(str(error))
    return found[1] if found else None
