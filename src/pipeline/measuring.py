"""What a job took, for a rule that may have no `benchmark:`, as Snakemake's cache may take its place or as it has many parts."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.files import write_text


def used() -> tuple[float, float]:
    """Peak memory in MiB, of this process or of its largest child that has ended, and CPU seconds of all of them."""
    parts = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return max(part.ru_maxrss for part in parts) / 1024, sum(part.ru_utime + part.ru_stime for part in parts)


@contextmanager
def measured(file: Path, before: float = 0.0) -> Iterator[None]:
    """Measure the body and write `file` (``results/<cohort>/benchmarks/<job>.tsv``) in the columns of Snakemake's.

    Wall seconds, CPU seconds of this process since its start and of its children that have ended, with `before` of another process,
    and the peak memory in MiB.
    """
    start = time.monotonic()
    yield
    peak, cpu = used()
    row = f"{time.monotonic() - start:.2f}\t{cpu + before:.2f}\t{peak:.2f}"
    write_text(file, f"s\tcpu_time\tmax_rss\n{row}\n")
