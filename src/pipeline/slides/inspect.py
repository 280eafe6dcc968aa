"""``inspect``: what the slide stages see in a file, and how they would process it."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from pipeline.errors import InputError
from pipeline.machine import MachineError
from pipeline.slides.opening import Slide
from pipeline.slides.patches import PatchSettings, level0_size
from pipeline.slides.provenance import slide_fingerprint
from pipeline.slides.resolution import Resolution, resolve
from pipeline.slides.signatures import recognise
from pipeline.slides.tissue import TissueSettings

HELP = "geometry, resolution, how a slide would be processed, and its problems"
COLUMNS = ["slide_id", "file", "format", "compression", "tile", "width", "height", "downsamples", "mpp", "mpp_source"]
COLUMNS += [
    "objective_power",
    "fingerprint",
    "reading",
    "tissue_level",
    "patch_level",
    "patch_side",
    "patches_at_most",
    "problem",
    "remedy",
]
LABELS = {  # of a block, in its order
    "format": "format",
    "compression": "stored as",
    "size": "size",
    "levels": "levels",
    "resolution": "resolution",
    "objective_power": "objective",
    "fingerprint": "fingerprint",
    "reading": "reading",
    "tissue": "tissue",
    "patches": "patches",
    "problem": "PROBLEM",
    "remedy": "remedy",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    defaults = PatchSettings()
    parser.add_argument("slide", nargs="+", type=Path, help="a slide file of any format")
    parser.add_argument(
        "--target-mpp", type=_positive(float), default=defaults.target_mpp, help="µm of a patch's pixel (default %(default)g)"
    )
    parser.add_argument("--patch-size", type=_positive(int), default=defaults.patch_size, help="pixels a side (default %(default)d)")
    parser.add_argument("--mpp", type=float, help="µm per level-0 pixel, as in the slide table: beats the file")
    parser.add_argument("--tsv", action="store_true", help="one row a slide instead of a block")


def _positive(kind: type) -> Callable[[str], float]:
    def number(text: str) -> float:
        if not 0 < (value := kind(text)) < math.inf:
            raise argparse.ArgumentTypeError(f"{text} is not a positive number")
        return value

    return number


def run(options: argparse.Namespace) -> int:
    """Print a block or a row a slide as it is inspected; 1 if any cannot be processed."""
    settings = PatchSettings(patch_size=options.patch_size, target_mpp=options.target_mpp)
    if options.tsv:
        sys.stdout.write("\t".join(COLUMNS) + "\n")
    failed = False
    for path in options.slide:
        facts = inspect(path, settings, options.mpp)
        failed |= bool(facts.get("problem"))
        sys.stdout.write(_row(facts) if options.tsv else _block(facts))
        sys.stdout.flush()
    return int(failed)


def inspect(path: str | Path, settings: PatchSettings | None = None, mpp: float | None = None) -> dict[str, object]:
    """What is known of one file, by the names in `COLUMNS`; `problem` and `remedy` are there only where it cannot be processed.

    `mpp` is that of the slide table. Pixels are not read, so a broken tile is not found here.
    """
    path, settings = Path(path), settings or PatchSettings()
    facts: dict[str, object] = {"slide_id": path.stem, "file": str(path)}
    try:
        with Slide(path) as slide:
            facts |= _geometry(slide)
            facts["fingerprint"] = slide_fingerprint(path)
            resolution = resolve(slide.properties, path.stem, mpp)
            facts |= {"mpp": resolution.mpp, "mpp_source": resolution.source, "objective_power": resolution.objective_power}
            facts["tissue_level"] = slide.level_for(max(1.0, TissueSettings().mpp / resolution.mpp))
            facts |= _patches(slide, resolution, settings)
    except (InputError, MachineError) as error:
        facts |= {"problem": error.reason, "remedy": error.remedy}
    return facts


def _geometry(slide: Slide) -> dict[str, object]:
    from pipeline.slides.tiles import describe

    width, height = slide.dimensions
    compression, tile = _storage(slide)
    direct, how = describe(slide)
    return {
        **{"format": slide.format, "compression": compression, "tile": tile, "width": width, "height": height},
        "downsamples": ",".join(f"{d:g}" for d in slide.downsamples),
        "reading": f"tiles directly: {how}" if direct else f"whole regions: {how}",
    }


def _storage(slide: Slide) -> tuple[str | None, str | None]:
    """Compression and tile size (``256x256``, ``strips of 8 rows``) of level 0, each None where the file does not tell."""
    tile = [slide.properties.get(f"openslide.level[0].tile-{side}") for side in ("width", "height")]
    size = "x".join(tile) if None not in tile else None  # type: ignore[arg-type]
    kind = recognise(slide.path).kind
    if kind != "TIFF":
        return (kind if slide.format == kind else None), size
    import tifffile

    with tifffile.TiffFile(slide.path) as tiff:
        page = next((page for page in tiff.pages if (page.imagewidth, page.imagelength) == slide.dimensions), tiff.pages[0])
        name = getattr(page.compression, "name", str(page.compression))
        return name, f"{page.tilewidth}x{page.tilelength}" if page.is_tiled else f"strips of {page.rowsperstrip} rows"


def _patches(slide: Slide, resolution: Resolution, settings: PatchSettings) -> dict[str, object]:
    """The level that patches are read from, a patch's side in level-0 pixels, and how many fit into the slide."""
    side = level0_size(settings.patch_size, resolution.mpp, settings, slide.path.stem)
    fit = (slide.dimensions[0] // side) * (slide.dimensions[1] // side)
    if not fit:
        raise InputError(
            "the slide is smaller than one patch",
            slide=slide.path.stem,
            found=f"{slide.dimensions[0]} x {slide.dimensions[1]} pixels",
            expected=f"at least {side} x {side}",
            remedy="Lower `patches.patch_size` or `patches.target_mpp`, or leave out the slide.",
        )
    return {"patch_level": slide.level_for(side / settings.patch_size), "patch_side": side, "patches_at_most": fit}


def _row(facts: Mapping[str, object]) -> str:
    cells = ("" if facts.get(name) is None else " ".join(f"{facts[name]}".split()) for name in COLUMNS)
    return "\t".join(cells) + "\n"


def _block(facts: Mapping[str, object]) -> str:
    """The facts in words, a line each; those that are not known are left out."""
    words = {name: facts[name] for name in facts if facts[name] is not None}
    if "width" in words:
        words["size"] = f"{words['width']} x {words['height']} pixels"
        words["levels"] = f"{str(words['downsamples']).count(',') + 1} (downsamples {words['downsamples'].replace(',', ', ')})"  # type: ignore[attr-defined]
        words["compression"] = ", ".join(str(words[name]) for name in ("compression", "tile") if name in words) or None
    if "mpp" in words:
        words["size"] = f"{words['size']} = {_mm(words['width'], words['mpp'])} x {_mm(words['height'], words['mpp'])} mm"
        words["resolution"] = f"{words['mpp']:.4g} µm per pixel ({words['mpp_source']})"
    if "tissue_level" in words:
        words["tissue"] = f"found on level {words['tissue_level']}"
    if "objective_power" in words:
        words["objective_power"] = f"{words['objective_power']:g}x"
    if "patch_side" in words:
        words["patches"] = f"{words['patch_side']} level-0 pixels a side, read from level {words['patch_level']}"
        words["patches"] += f"; at most {words['patches_at_most']} fit"  # type: ignore[operator]
    lines = [f"  {label:<12} {words[name]}\n" for name, label in LABELS.items() if words.get(name)]
    return f"{words['file']}\n" + "".join(lines)


def _mm(pixels: object, mpp: object) -> str:
    return f"{pixels * mpp / 1000:.1f}"  # type: ignore[operator]
