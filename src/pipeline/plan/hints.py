"""Whether `slides.chunks` suits the work, and which number would."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from pipeline.amounts import duration
from pipeline.plan.costs import Stage

LONG = 12 * 3600.0  # seconds of a chunk; what a kill or a queue's limit can take away
GOAL = LONG / 2  # chunks differ in size, since a slide's follows from its name
SHARE = 0.05  # of the work that start-up may cost
WASTE = 600.0  # CPU seconds of start-up that nobody minds
CHUNKED = ("tissue", "patches", "features")


def chunk_hint(stages: Sequence[Stage], slurm_job: float) -> Iterator[str]:
    """What to write for `slides.chunks`: more where a chunk is too long, fewer where start-up is too much of the work.

    slurm_job: CPU seconds of submitting a job, counted as start-up.
    """
    found = [stage for stage in stages if stage.rule in CHUNKED]
    if not found:
        return
    chunks, longest = found[0].jobs, max(stage.longest for stage in found)
    start = sum(stage.start for stage in found) + slurm_job * chunks * len(found)
    work = sum(stage.cpu + stage.gpu - stage.start for stage in found)
    if longest > LONG:
        better = math.ceil(chunks * longest / GOAL)
        few = f"slides.chunks {chunks} is few: a chunk takes {duration(longest)}."
        yield f"{few} With slides.chunks: {better} it takes about {duration(GOAL)}."
    elif start > max(SHARE * work, WASTE):
        better = max(1, math.floor(chunks * SHARE * work / start))
        many = f"slides.chunks {chunks} is many: starting its jobs takes {duration(start)}, the work {duration(work)}."
        yield f"{many} slides.chunks: {better} would do."
