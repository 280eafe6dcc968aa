"""What a job says: to its log file and to the terminal, and how it ends on bad input: with the message, not a traceback."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import InputError
from pipeline.stopping import end_on_sigterm


@contextmanager
def logged(path: str | Path) -> Iterator[None]:
    """Send log records to `path` and to stderr; an `InputError` is logged and ends the process with status 1, SIGTERM with 143."""
    end_on_sigterm()
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    handlers = [logging.FileHandler(path, mode="w", encoding="utf-8"), logging.StreamHandler(sys.stderr)]
    line = "%(asctime)s %(levelname)s %(message)s"
    logging.basicConfig(level=logging.INFO, format=line, datefmt="%H:%M:%S", handlers=handlers, force=True)
    logging.captureWarnings(True)
    try:
        yield
    except InputError as error:
        logging.getLogger("pipeline").error("%s", error)
        sys.exit(1)
    except Exception:
        logging.getLogger("pipeline").exception("unexpected error: please report it together with this log")
        sys.exit(1)
