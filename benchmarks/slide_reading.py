"""How fast patches are read, beside the limit and the usual ways, in one run: ``python benchmarks/slide_reading.py SLIDE…``.

Prints a TSV: slide, grid (on or off the tile grid), reader, workers, patches a second, share of the limit, CPU ms a patch. The readers take
turns and the best of the rounds counts. Patches are 256 pixels at 0.5 µm (or `--target-mpp`).

limit      every JPEG tile that a patch touches decoded once by libjpeg-turbo from memory, nothing cut, copied or opened
ours       pipeline.slides.reading, as the workflow reads, without the comparison of levels; `check` with it
scaled     the same, tiles decoded at a half where the target is coarser
openslide  one read_region a patch in row order, RGBA to RGB
trident    that, through a PIL image turned into RGB, as TRIDENT reads
clam       that, and the coordinates from an HDF5 file that is opened for every patch, as CLAM reads
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import openslide
import simplejpeg

from pipeline.slides.opening import Slide
from pipeline.slides.patches import PatchSettings, level0_size
from pipeline.slides.reading import PatchSource, Reading
from pipeline.slides.resolution import resolve
from pipeline.slides.tiles import JPEG, NotServedError, Tiles

SIZE, OFF, BATCH = 256, 100, 32
SLOW = 5  # the peers get a fifth of the patches
ROUNDS, WORKERS = 3, 2


def grid(path: Path, side: int, off: int, patches: int) -> np.ndarray:
    with Slide(path) as slide:
        width, height = slide.dimensions
    columns, rows = np.arange(off, width - side + 1, side), np.arange(off, height - side + 1, side)
    return np.stack(np.meshgrid(columns, rows), -1).reshape(-1, 2).astype(np.int32)[:patches]


def limit(path: Path, coords: np.ndarray, side: int) -> Callable[[int], int] | None:
    """Decodes each tile under the patches once; the bytes are read beforehand."""
    with Slide(path) as slide:
        try:
            tiles = Tiles(slide)
        except NotServedError:
            return None
    level = tiles.levels[0]
    (width, height), touched = level.tile, set()
    for x, y in coords.tolist():
        columns, rows = range(x // width, (x + side - 1) // width + 1), range(y // height, (y + side - 1) // height + 1)
        touched |= {row * level.across + column for row in rows for column in columns}
    file = os.open(path, os.O_RDONLY)
    raw = [os.pread(file, int(level.lengths[i]), int(level.offsets[i])) for i in sorted(touched)]
    os.close(file)
    tiles.close()
    if level.compression == JPEG:
        streams = [level.head + stream[2:] for stream in raw]
        decode = partial(simplejpeg.decode_jpeg, colorspace="RGB")
    else:
        from imagecodecs import jpeg2k_decode as decode

        streams = raw

    def run(workers: int) -> int:
        def part(start: int) -> None:
            for stream in streams[start::workers]:
                decode(stream)

        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(part, range(workers)))
        return len(coords)

    return run


def ours(path: Path, coords: np.ndarray, side: int, method: str = "exact", check: bool = False) -> Callable[[int], int]:
    """Opening and proving are a cost a slide, not a patch: they are printed by themselves, and done here beforehand."""
    ready = [PatchSource(path, coords, side, SIZE, method, check) for _ in range(ROUNDS * WORKERS)]

    def run(workers: int) -> int:
        source = ready.pop()
        with ThreadPoolExecutor(workers) as pool, Reading(pool, lambda: source, 0, len(coords), BATCH, workers + 1) as reading:
            return sum(int(batch.readable.sum()) for batch in reading)

    return run


def through_openslide(path: Path, coords: np.ndarray, side: int, way: str, folder: Path) -> Callable[[int], int]:
    """One read_region a patch, in threads with a handle each."""
    coords, own = coords[: max(64, len(coords) // SLOW)], threading.local()
    file = folder / "coords.h5"
    with h5py.File(file, "w") as stored:
        stored["coords"] = coords

    def read(i: int) -> None:
        if not hasattr(own, "slide"):
            own.slide = openslide.OpenSlide(str(path))
        x, y = coords[i].tolist()
        if way == "clam":
            with h5py.File(file, "r") as stored:
                x, y = (int(v) for v in stored["coords"][i])
        region = own.slide.read_region((x, y), 0, (side, side))
        if way == "openslide":
            np.ascontiguousarray(np.asarray(region)[..., :3])
        else:
            np.asarray(region.convert("RGB"))

    def run(workers: int) -> int:
        def part(start: int) -> None:
            for i in range(start, len(coords), workers):
                read(i)

        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(part, range(workers)))
        return len(coords)

    return run


def measure(path: Path, target_mpp: float, patches: int) -> None:
    with Slide(path) as slide:
        side = level0_size(SIZE, resolve(slide.properties, path.stem).mpp, PatchSettings(target_mpp=target_mpp))
    for name, off in (("on", 0), ("off", OFF)):
        coords = grid(path, side, off, patches * SIZE**2 // side**2)
        with tempfile.TemporaryDirectory() as folder:
            readers = {"limit": limit(path, coords, side), "ours": ours(path, coords, side), "check": ours(path, coords, side, check=True)}
            if side >= 2 * SIZE:
                readers["scaled"] = ours(path, coords, side, "scaled")
            readers |= {way: through_openslide(path, coords, side, way, Path(folder)) for way in ("openslide", "trident", "clam")}
            for count in range(1, WORKERS + 1):
                best = compare({k: r for k, r in readers.items() if r}, count)
                for reader, (rate, cpu) in best.items():
                    share = f"{rate / best['limit'][0]:.3f}" if "limit" in best else ""
                    print(path.name, name, reader, count, f"{rate:.0f}", share, f"{1000 * cpu:.3f}", sep="\t", flush=True)


def compare(readers: dict[str, Callable[[int], int]], workers: int) -> dict[str, tuple[float, float]]:
    """Reader → (patches a second, CPU seconds a patch), the best of the rounds, in which the readers take turns."""
    best: dict[str, tuple[float, float]] = {}
    for _ in range(ROUNDS):
        for name, run in readers.items():
            wall, cpu = time.perf_counter(), time.process_time()
            done = run(workers)
            found = done / (time.perf_counter() - wall), (time.process_time() - cpu) / done
            rate, cost = best.get(name, (0.0, float("inf")))
            best[name] = max(rate, found[0]), min(cost, found[1])
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slide", nargs="+", type=Path)
    parser.add_argument("--target-mpp", type=float, default=0.5)
    parser.add_argument("--patches", type=int, default=5000, help="of 256 level-0 pixels; larger patches are fewer")
    options = parser.parse_args()
    print("slide", "grid", "reader", "workers", "patches_s", "of_limit", "cpu_ms", sep="\t")
    for path in options.slide:
        start = time.perf_counter()
        PatchSource(path, grid(path, SIZE, 0, 2000), SIZE, SIZE).close()
        print(f"# {path.name}: opened and proved against OpenSlide in {time.perf_counter() - start:.2f} s", file=sys.stderr)
        measure(path, options.target_mpp, options.patches)
    print(f"# peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB, imports included", file=sys.stderr)


if __name__ == "__main__":
    main()
