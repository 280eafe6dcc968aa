"""Slides one after the other in a child process that may crash, hang or be killed without taking the others along.

A damaged slide can bring a decoder written in C to crash or to run for ever, which no `except` catches. The child is watched: when it dies
or falls silent over a slide, a new one tries that slide again, and after the second time the slide is given up and listed. What is the
machine's fault (`pipeline.machine`), a kill among it, is no property of the slide: it is told apart, and the slide is not listed.
"""

from __future__ import annotations

import logging
import multiprocessing
import pickle
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection

from openslide import OpenSlideError

from pipeline.errors import InputError
from pipeline.jobs.forking import die_with_parent, how_it_ended
from pipeline.machine import MEMORY, MachineError, causes, machine_fault, read_to_end
from pipeline.slides.filesets import slide_files
from pipeline.slides.opening import UnreadableRegionError
from pipeline.stopping import GRACE, STATUS

log = logging.getLogger(__name__)

ATTEMPTS = 2
CRASHES = (signal.SIGSEGV, signal.SIGABRT, signal.SIGTRAP, signal.SIGILL, signal.SIGFPE)  # by which a decoder ends over a damaged slide
COPY_AGAIN = "Check that the file was copied whole (size, checksum)."

Process = Callable[[dict], dict[str, object]]


class StopChunkError(Exception):
    """Wraps what is no slide's fault and would meet every slide of the chunk."""


class Failure(dict):
    """Why a slide failed: reason and remedy."""


_parent: list[Connection] = []  # the child's way to its parent
_retries = threading.Event()


def alive() -> None:
    """Say that work on a slide goes on; to be called at least every few minutes of it. Does nothing outside a supervised process."""
    for parent in _parent:
        parent.send(("alive", None))


def is_retry() -> bool:
    """Whether a child died before this one: it should touch no slide but the one whose turn it is, lest the wrong one be blamed."""
    return _retries.is_set()


def supervise(rows: Sequence[dict], process: Process, patience: float) -> Iterator[dict[str, object] | Failure | MachineError]:
    """What `process` makes of every row, in order, computed in a child process (Linux; elsewhere in this one).

    A slide whose process raises is a `Failure`, and so is one over which the child crashed, or said nothing for `patience` seconds, twice.
    For one that met a fault of the machine, or over which the child was killed twice, it is the `MachineError`, and the others go on.
    Raised here is what would meet every slide: the cause of a `StopChunkError`, a full disk.
    """
    done, deaths = 0, 0
    while done < len(rows):
        child, messages = _start(rows[done:], process, deaths > 0)
        try:
            while done < len(rows):
                if not messages.poll(patience):
                    code = None
                    end = f"nothing was heard of it for {patience:g} s"
                    break
                kind, value = messages.recv()
                if kind == "stop":
                    raise value
                if kind == "outcome":
                    yield value
                    done, deaths = done + 1, 0
        except EOFError:
            child.join()
            code = child.exitcode
            end = how_it_ended(code, "a crash of the decoder")
        except SystemExit:  # the job is told to stop: the child keeps what it has done of its slide
            child.terminate()
            child.join(GRACE)
            raise
        finally:
            child.kill()
            child.join()
            messages.close()
        if done < len(rows):
            deaths += 1
            log.warning("slide %s: the process that read it ended (%s)", rows[done]["slide_id"], end)
        if deaths == ATTEMPTS:
            yield _given_up(rows[done], code, end)
            done, deaths = done + 1, 0


def _given_up(row: dict, code: int | None, end: str) -> Failure | MachineError:
    """What becomes of a slide over which the process ended again and again, with exit code `code` (None: it hung).

    A crash is the decoder's. SIGBUS is not, where the disk does not give the bytes of the slide: they are then missing from what was mapped
    into memory. All other signals come from outside: the kernel kills for want of memory, a person or a scheduler for its own reasons.
    """
    if code == -signal.SIGBUS and (fault := _unread(row)):
        return fault
    if code is not None and (code == STATUS or (code < 0 and -code not in (*CRASHES, signal.SIGBUS))):
        remedy = f"{MEMORY.remedy} If it is ended whatever the memory, leave the slide out of the slide table."
        return MachineError(f"reading it was ended {ATTEMPTS} times ({end})", path=row.get("path"), remedy=remedy)
    reason = f"slide {row['slide_id']}: reading it ended the process {ATTEMPTS} times ({end})."
    return Failure(reason=reason, remedy=f"{COPY_AGAIN} If it is whole, give the job more memory or leave the slide out.")


def _start(rows: Sequence[dict], process: Process, retry: bool) -> tuple[multiprocessing.Process, Connection]:
    context = multiprocessing.get_context("fork")  # `process` is a closure; nothing of the parent runs in threads yet
    receiving, sending = context.Pipe(duplex=False)
    child = context.Process(target=_work, args=(rows, process, sending, retry), daemon=True)
    child.start()
    sending.close()  # so that the child's death ends the stream
    return child, receiving


def _work(rows: Sequence[dict], process: Process, parent: Connection, retry: bool) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends us
    die_with_parent()
    _parent.append(parent)
    if retry:
        _retries.set()
    for row in rows:
        kind, value = _outcome(row, process)
        parent.send((kind, value))
        if kind == "stop":
            return


def _outcome(row: dict, process: Process) -> tuple[str, object]:
    try:
        return "outcome", process(row)
    except StopChunkError as error:
        return "stop", _portable(error.__cause__)
    except Exception as error:
        hidden = any(isinstance(link, (UnreadableRegionError, OpenSlideError)) for link in causes(error))
        if fault := machine_fault(error) or (_unread(row) if hidden else None):
            if fault.everywhere:
                return "stop", fault
            return "outcome", fault if fault.path or "path" not in row else fault.at(row["path"])
        return "outcome", _explained(error, row["slide_id"])


def _unread(row: dict) -> MachineError | None:
    """What keeps the bytes of a slide from its decoder, which does not tell it from damage; None where all can be read."""
    try:
        read_to_end(slide_files(row["path"]))
    except (MachineError, OSError) as found:
        return machine_fault(found, row["path"])
    return None


def _portable(error: BaseException | None) -> BaseException:
    """The error, as the machine's where it is, or its text where it cannot be sent to another process."""
    if error and (fault := machine_fault(error)):
        return fault
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error or RuntimeError("no cause")


def _explained(error: Exception, slide_id: str) -> Failure:
    if isinstance(error, InputError):
        return Failure(reason=error.reason, remedy=error.remedy)
    if not isinstance(error, (UnreadableRegionError, OSError)):
        log.exception("slide %s met an error that was not foreseen", slide_id)
    reason = " ".join(f"slide {slide_id}: {type(error).__name__}: {error}".split())
    return Failure(reason=reason, remedy=COPY_AGAIN)
