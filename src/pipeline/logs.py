"""What a job says: to its log file and to the terminal, and how it ends on bad input: with the message, not a traceback."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import InputError
from pipeline.jobs.run import follow
from pipeline.machine import machine_fault
from pipeline.stopping import end_on_sigterm

LINE, CLOCK = "%(asctime)s %(levelname)s {}%(message)s", "%H:%M:%S"


@contextmanager
def logged(path: str | Path) -> Iterator[None]:
    """Send log records to `path` and to stderr; bad input or a fault of the machine is logged and ends the process with status 1.

    SIGTERM ends it with 143, and so does the end of the run that the job belongs to (`jobs.run`).
    """
    end_on_sigterm()
    logging.basicConfig(level=logging.INFO, format=LINE.format(""), datefmt=CLOCK, force=True)
    logging.captureWarnings(True)
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(path, mode="w", encoding="utf-8")
        handler.setFormatter(logging.getLogger().handlers[0].formatter)
        logging.getLogger().addHandler(handler)
        follow()
        yield
    except Exception as error:
        if told := machine_fault(error) or (error if isinstance(error, InputError) else None):
            logging.getLogger("pipeline").error("%s", told)
        else:
            logging.getLogger("pipeline").exception("unexpected error: please report it together with this log")
        sys.exit(1)


def name_lines(name: str) -> None:
    """From now on every line of this process's log begins with `name`."""
    for handler in logging.getLogger().handlers:
        handler.setFormatter(logging.Formatter(LINE.format(f"{name}: "), CLOCK))
