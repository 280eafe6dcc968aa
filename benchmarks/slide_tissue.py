"""Tissue and coordinates of a slide, in one run beside CLAM's: ``python benchmarks/slide_tissue.py [--clam FOLDER] SLIDE…``.

Prints a TSV: slide, what, wall seconds, CPU seconds (children included), patches, ratio of the wall times to ours. Each opens the slide
itself; they take turns and the best of the rounds counts. FOLDER is a checkout of CLAM, whose own functions are then run with the preset
that it ships for TCGA; without it only ours is timed.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from pipeline.slides.opening import Slide
from pipeline.slides.patches import PatchSettings, lay_patches
from pipeline.slides.resolution import resolve
from pipeline.slides.tissue import find_tissue


def ours(path: Path) -> int:
    with Slide(path) as slide:
        mpp = resolve(slide.properties, path.stem).mpp
        tissue = find_tissue(slide, mpp)
        return len(lay_patches(tissue.polygons, slide.dimensions, mpp, PatchSettings())[0])


def clam(folder: Path) -> Callable[[Path], int]:
    """CLAM's segmentation and patching, level 0, 256 pixels at 20x (512 at 40x), preset tcga.csv."""
    sys.path.insert(0, str(folder))
    import h5py
    from wsi_core.WholeSlideImage import WholeSlideImage

    def run(path: Path) -> int:
        with contextlib.redirect_stdout(io.StringIO()), tempfile.TemporaryDirectory() as out:
            slide = WholeSlideImage(str(path))
            level = slide.getOpenSlide().get_best_level_for_downsample(64)
            areas = {"a_t": 16, "a_h": 4, "max_n_holes": 8}
            slide.segmentTissue(seg_level=level, sthresh=8, mthresh=7, close=4, use_otsu=False, filter_params=areas)
            size = 256 if resolve(dict(slide.getOpenSlide().properties), path.stem).mpp > 0.4 else 512
            slide.process_contours(out, patch_level=0, patch_size=size, step_size=size, use_padding=True, contour_fn="four_pt")
            with h5py.File(next(Path(out).glob("*.h5")), "r") as file:
                return len(file["coords"])

    return run


def cpu() -> float:
    return sum(u.ru_utime + u.ru_stime for u in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slide", nargs="+", type=Path)
    parser.add_argument("--clam", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    ways = {"ours": ours} | ({"clam": clam(options.clam)} if options.clam else {})
    print("slide", "what", "wall_s", "cpu_s", "patches", "of_ours", sep="\t")
    for path in options.slide:
        best: dict[str, tuple[float, float, int]] = {}
        for _ in range(options.rounds):
            for name, way in ways.items():
                wall, used = time.perf_counter(), cpu()
                patches = way(path)
                best[name] = min(best.get(name, (float("inf"), 0.0, 0)), (time.perf_counter() - wall, cpu() - used, patches))
        for name, (wall, used, patches) in best.items():
            print(path.name, name, f"{wall:.3f}", f"{used:.3f}", patches, f"{wall / best['ours'][0]:.2f}", sep="\t")


if __name__ == "__main__":
    main()
