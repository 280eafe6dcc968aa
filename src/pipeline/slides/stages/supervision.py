"""Slides one after the other in a child process that may crash, hang or be killed without taking the others along.

A damaged slide can bring a decoder written in C to crash or to run for ever, which no `except` catches. The child is watched: when it dies
or falls silent over a slide, a new one tries that slide again, and after the second time the slide is given up and listed.
"""

from __future__ import annotations

import errno
import logging
import multiprocessing
import pickle
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection

from pipeline.errors import InputError
from pipeline.jobs.forking import die_with_parent, how_it_ended
from pipeline.slides.opening import UnreadableRegionError
from pipeline.stopping import GRACE

log = logging.getLogger(__name__)

ATTEMPTS = 2
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
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


def supervise(rows: Sequence[dict], process: Process, patience: float) -> Iterator[dict[str, object] | Failure]:
    """What `process` makes of every row, in order, computed in a child process (Linux; elsewhere in this one).

    A slide whose process raises is a `Failure`, and so is one over which the child died, or said nothing for `patience` seconds, twice.
    Raised here is what would meet every slide: the cause of a `StopChunkError`, a lack of memory, a full disk.
    """
    done, deaths = 0, 0
    while done < len(rows):
        child, messages = _start(rows[done:], process, deaths > 0)
        try:
            while done < len(rows):
                if not messages.poll(patience):
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
            end = how_it_ended(child.exitcode, "a crash of the decoder")
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
            reason = f"slide {rows[done]['slide_id']}: reading it ended the process {ATTEMPTS} times ({end})."
            yield Failure(reason=reason, remedy=f"{COPY_AGAIN} If it is whole, give the job more memory or leave the slide out.")
            done, deaths = done + 1, 0


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
    except MemoryError as error:
        return "stop", error
    except Exception as error:
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            return "stop", error
        return "outcome", _explained(error, row["slide_id"])


def _portable(error: BaseException | None) -> BaseException:
    """The error, or its text where it cannot be sent to another process."""
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
