"""What a job took, for a rule that may have no `benchmark:` because Snakemake's cache may take its place."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.files import write_text


@contextmanager
def measured(log: str | Path) -> Iterator[None]:
    """Measure the body and write ``benchmarks/<job>.tsv`` beside the folder of its ``logs/<job>.log``, in the columns of Snakemake's.

    Wall seconds, CPU seconds of this process and of its children that have ended, and the peak memory in MiB of the largest of them.
    """
    log, start = Path(log), time.monotonic()
    yield
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    cpu, peak = sum(u.ru_utime + u.ru_stime for u in used), max(u.ru_maxrss for u in used) / 1024
    row = f"{time.monotonic() - start:.2f}\t{cpu:.2f}\t{peak:.2f}"
    write_text(log.parents[1] / "benchmarks" / f"{log.stem}.tsv", f"s\tcpu_time\tmax_rss\n{row}\n")
