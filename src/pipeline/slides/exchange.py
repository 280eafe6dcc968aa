"""Features and coordinates in the layouts of CLAM and TRIDENT, for the tools that read those.

Both keep one HDF5 file a slide with `features` [N, d] float32 and `coords` [N, 2] level-0 pixels, and say the scale in attributes of
`coords`. CLAM cuts patches from a level of the pyramid: ours are level 0 and `patch_size_level0` pixels wide there, which is the same
region. TRIDENT speaks of magnifications: they are 10 / mpp, unrounded, so that its patches too are the very same regions.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np
import pandas as pd

from pipeline.errors import InputError, nearest
from pipeline.files import atomic, write_text
from pipeline.hdf5 import attributes, open_hdf5
from pipeline.machine import MachineError
from pipeline.slides.contours import read_contours
from pipeline.slides.features import PatchFile, read_features
from pipeline.slides.listing import read_slides
from pipeline.slides.provenance import settings_digest
from pipeline.slides.resolution import MPP_TIMES_POWER
from pipeline.slides.stages.manifests import read_passed

log = logging.getLogger(__name__)

HELP = "write features and coordinates in the layout of CLAM or TRIDENT"
LAYOUT_VERSION = 1  # raised when a file of either layout changes: exports are then made again
SCALE = ("patch_size_level0", "patch_size", "target_mpp", "mpp")


@dataclass(frozen=True)
class EncodedSlide:
    """A slide whose features exist: its own file, the files of the slide stage, and its size (width, height) in level-0 pixels."""

    slide_id: str
    path: Path
    features: Path
    contours: Path
    size: tuple[int, int]


@dataclass
class Export:
    """What an export did: slides `written`, slides `kept` because their files were valid, and why others `failed`, by slide id."""

    written: int = 0
    kept: int = 0
    failed: dict[str, str] = field(default_factory=dict)


Writer = Callable[[Path, PatchFile], object]  # writes the file that it is given the path of


def export_clam(slides_dir: str | Path, encoder: str, out: str | Path, label: str | None = None) -> Export:
    """Export ``results/<cohort>/slides`` to CLAM: h5_files/, pt_files/, patches/ and process_list_autogen.csv under `out`.

    `label` is for the layouts that name the encoder; CLAM does not. Raises `InputError` when there is nothing to export.
    """
    return _export("clam", slides_dir, encoder, Path(out), label)


def export_trident(slides_dir: str | Path, encoder: str, out: str | Path, label: str | None = None) -> Export:
    """Export ``results/<cohort>/slides`` to TRIDENT: a job folder `out` with contours_geojson/ and, under
    ``<mag>x_<px>px_<overlap>px_overlap``, features_<label>/ and patches/.

    `label` is TRIDENT's name of the encoder (``uni_v1`` for our ``uni``; ours by default), by which its slide encoders find the
    features. Raises `InputError` when there is nothing to export.
    """
    return _export("trident", slides_dir, encoder, Path(out), label)


def _export(layout: str, slides_dir: str | Path, encoder: str, out: Path, label: str | None) -> Export:
    slides, outcome = list(_encoded_slides(Path(slides_dir), encoder)), Export()
    for slide in slides:
        try:
            written = _export_slide(layout, slide, out, label or encoder)
        except (InputError, MachineError) as error:
            outcome.failed[slide.slide_id] = str(error)
            continue
        outcome.written, outcome.kept = outcome.written + written, outcome.kept + (not written)
    if layout == "clam":
        names = [slide.slide_id + slide.path.suffix for slide in slides if slide.slide_id not in outcome.failed]
        processed = pd.DataFrame({"slide_id": names, "process": 0, "status": "processed"})
        write_text(out / "process_list_autogen.csv", processed.to_csv(index=False, lineterminator="\n"))
    return outcome


def _encoded_slides(slides_dir: Path, encoder: str) -> Iterator[EncodedSlide]:
    """The slides that passed the features stage, whether or not the cohort is complete."""
    slides, encoded = read_slides(slides_dir / "slides.tsv"), slides_dir / "features" / encoder
    manifests = sorted(encoded.glob("chunk*.tsv"))
    if not manifests:
        known = sorted(p.name for p in (slides_dir / "features").glob("*") if p.is_dir())
        expected = "one of " + ", ".join(known) if known else "a finished chunk of the features stage"
        raise InputError("no features of this encoder", file=encoded, found=encoder, expected=expected, remedy=nearest(encoder, known))
    passed = {slide_id for manifest in manifests for slide_id in read_passed(manifest, []).index}
    sizes: dict[str, tuple[int, int]] = {}
    for manifest in sorted((slides_dir / "tissue").glob("chunk*.tsv")):
        tissue = read_passed(manifest, ["width", "height"])
        sizes |= {s: (int(w), int(h)) for s, w, h in zip(tissue.index, tissue["width"], tissue["height"], strict=True)}
    for slide_id, path in zip(slides["slide_id"], slides["path"], strict=True):
        if slide_id in passed:
            files = encoded / f"{slide_id}.h5", slides_dir / "tissue" / f"{slide_id}.geojson"
            yield EncodedSlide(slide_id, Path(path), *files, sizes.get(slide_id, (0, 0)))


def _export_slide(layout: str, slide: EncodedSlide, out: Path, label: str) -> bool:
    """Write the files of one slide; False when they were valid already.

    The first file holds the digest of what it was made from and is written first; the others are valid when they are no older.
    """
    content = read_features(slide.features)
    attributes = content.attributes
    absent = [name for name in SCALE if name not in attributes] + ["width, height"] * (not all(slide.size))
    if absent:
        remedy = "Features that were made elsewhere are exported by the tool that made them."
        raise InputError("the scale of the patches is not known", file=slide.features, expected=", ".join(absent), remedy=remedy)
    origin = {
        "settings": settings_digest(str(attributes["settings"]), layout, LAYOUT_VERSION, label),
        "slide_fingerprint": str(attributes["slide_fingerprint"]),
    }
    files = LAYOUTS[layout](slide, attributes, out, label, origin)
    first = next(iter(files))
    written = _origin(first)
    if written == origin and all(f.is_file() and f.stat().st_mtime_ns >= first.stat().st_mtime_ns for f in files):
        return False
    stranger = next((f for f in files if f.exists()), None)
    if stranger and "slide_fingerprint" not in written:
        remedy = "Give an empty folder: what another tool made is never overwritten."
        raise InputError("was not written by this export", file=stranger, slide=slide.slide_id, remedy=remedy)
    for path, write in files.items():
        with atomic(path) as temporary:
            write(temporary, content)
    return True


def _origin(path: Path) -> dict[str, object]:
    """From what an exported file was made; nothing of a file that is absent, cannot be read, or that another tool wrote."""
    try:
        with open_hdf5(path) as file:
            return {key: value for key, value in attributes(file).items() if key in ("settings", "slide_fingerprint")}
    except (OSError, InputError):
        return {}


def _clam(slide: EncodedSlide, attributes: Mapping[str, object], out: Path, label: str, origin: Mapping[str, str]) -> dict[Path, Writer]:
    folder, size = out / "patches", np.array(slide.size)
    scale = {"patch_size": int(attributes["patch_size_level0"]), "patch_level": 0, "downsample": (1.0, 1.0)}
    scale |= {"downsampled_level_dim": size, "level_dim": size, "name": slide.slide_id, "save_path": str(folder)}
    return {
        out / "h5_files" / f"{slide.slide_id}.h5": _hdf5(origin, {"features": {}, "coords": {}}, np.int32),
        out / "pt_files" / f"{slide.slide_id}.pt": _tensor,
        folder / f"{slide.slide_id}.h5": _hdf5(origin, {"coords": scale}, np.int64),
    }


def _trident(slide: EncodedSlide, attributes: Mapping[str, object], out: Path, label: str, origin: Mapping[str, str]) -> dict[Path, Writer]:
    pixels, target = int(attributes["patch_size"]), MPP_TIMES_POWER / float(attributes["target_mpp"])
    overlap = max(0, pixels - int(attributes.get("step", pixels)))
    folder = out / f"{target:g}x_{pixels}px_{overlap}px_overlap"
    features = folder / f"features_{label}"
    scale = {"patch_size": pixels, "patch_size_level0": int(attributes["patch_size_level0"])}
    scale |= {"level0_magnification": _whole(MPP_TIMES_POWER / float(attributes["mpp"])), "target_magnification": _whole(target)}
    scale |= {"overlap": overlap, "name": slide.slide_id, "savetodir": str(folder)}
    scale |= {"level0_width": slide.size[0], "level0_height": slide.size[1]}
    made_by = {"name": slide.slide_id, "savetodir": str(features), "encoder": label}
    files = {
        features / f"{slide.slide_id}.h5": _hdf5(origin, {"features": made_by, "coords": scale}, np.int64),
        folder / "patches" / f"{slide.slide_id}_patches.h5": _hdf5(origin, {"coords": scale}, np.int64),
    }
    if slide.contours.is_file():
        files[out / "contours_geojson" / slide.contours.name] = lambda path, _: _copy_contours(slide, path)
    return files


def _copy_contours(slide: EncodedSlide, path: Path) -> None:
    read_contours(slide.contours, slide_id=slide.slide_id)  # raises where they are damaged
    shutil.copyfile(slide.contours, path)


LAYOUTS = {"clam": _clam, "trident": _trident}


def _whole(magnification: float) -> int | float:
    return round(magnification) if abs(magnification - round(magnification)) < 1e-9 else magnification


def _hdf5(origin: Mapping[str, str], sets: Mapping[str, Mapping[str, object]], coords_type: type) -> Writer:
    """Writes the datasets `sets` with their attributes; `origin` goes to the file itself, where no reader looks."""

    def write(path: Path, content: PatchFile) -> None:
        arrays = {"features": (content.features, np.float32), "coords": (content.coords, coords_type)}
        with h5py.File(path, "w") as file:
            for name, attributes in sets.items():
                values, dtype = arrays[name]
                file.create_dataset(name, data=values.astype(dtype)).attrs.update(attributes)
            file.attrs.update(origin)

    return write


def _tensor(path: Path, content: PatchFile) -> None:
    import torch

    torch.save(torch.from_numpy(content.features.astype(np.float32)), path)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--to", required=True, choices=sorted(LAYOUTS), help="the layout")
    parser.add_argument("--encoder", required=True, help="whose features, as in config/encoders.yaml")
    parser.add_argument("--label", help="the encoder's name in the export, e.g. uni_v1 (default: our name)")
    parser.add_argument("slides", type=Path, help="results/<cohort>/slides")
    parser.add_argument("out", type=Path, help="folder to write to")


def run(options: argparse.Namespace) -> int:
    """Export and say how many; 1 when a slide or the whole failed."""
    export = {"clam": export_clam, "trident": export_trident}[options.to]
    try:
        outcome = export(options.slides, options.encoder, options.out, options.label)
    except (InputError, MachineError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stderr.writelines(f"{reason}\n" for reason in outcome.failed.values())
    sys.stdout.write(f"{options.out}: {outcome.written} slides written, {outcome.kept} already there, {len(outcome.failed)} failed\n")
    return int(bool(outcome.failed))
