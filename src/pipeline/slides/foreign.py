"""Features that another tool made: CLAM's, TRIDENT's, or any folder of .h5 or .pt files, brought into our own format.

Facts that the layouts share: one file a slide, named by the slide; HDF5 with `features` [N, d] and `coords` [N, 2] (sometimes with
a leading axis of 1), or a .pt file with a tensor [N, d]. CLAM keeps the scale in patches/<slide>.h5, TRIDENT beside the coordinates.
"""

from __future__ import annotations

import logging
import pickle
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.errors import InputError
from pipeline.slides.features import PatchFile, read_coords, read_features, read_made, write_features
from pipeline.slides.listing import list_slides
from pipeline.slides.provenance import code_of, fingerprint, settings_digest
from pipeline.slides.sealing import sealed_checksum
from pipeline.slides.stages.manifests import FAILED, OK, OUTCOME, run_slides
from pipeline.tables import read_table, write_table
from pipeline.tensors import check_tensors

log = logging.getLogger(__name__)

FORMATS = ("auto", "clam", "trident", "h5", "pt")
COLUMNS = ["patches", "unreadable", "width", "checksum"]
PATIENCE = 300.0  # seconds for one file: on some damage HDF5 never returns
REMEDY = "Extract the features of this slide again with the tool that made them, or take the slide out of the list."
MAGNIFICATIONS = ("level0_magnification", "target_magnification")


def list_foreign(
    folder: str | Path,
    format: str = "auto",
    encoder: str | None = None,
    patient_regex: str = r"(.+)",
    table: str | Path | None = None,
) -> pd.DataFrame:
    """The slides that have features under `folder`, as `list_slides`: slide_id, patient_id, path (of the features), mpp.

    `format`: ``clam`` (a folder with h5_files/ or pt_files/), ``trident`` (a job folder, or the features_<encoder> in it; `encoder`
    picks one of several), ``h5`` or ``pt`` (a folder of such files), ``auto``. Where both kinds exist, the .h5 file is taken.
    The slide id is the file's name without its suffix. With `table` (slide_id, patient_id) only its slides, one without features too:
    it fails alone later. Raises `InputError` for another format, no file, or as `list_slides`.
    """
    folder = Path(folder)
    places = _places(folder, format, encoder)
    found = [list_slides(at, f"*{suffix}", patient_regex) for at, suffix in places if any(at.glob(f"*{suffix}"))]
    if not found:
        expected = " or ".join(f"{at / '*'}{suffix}" for at, suffix in places)
        remedy = "Check `slides.features.folder` and `slides.features.format`."
        raise InputError("no features found", file=folder, expected=expected, remedy=remedy)
    files = pd.concat(found).drop_duplicates("slide_id")
    if table is not None:
        slides = list_slides(folder, places[0][1], table=table)
        known = dict(zip(files["slide_id"], files["path"], strict=True))
        slides["path"] = [known.get(slide, str(places[0][0] / f"{slide}{places[0][1]}")) for slide in slides["slide_id"]]
        return slides
    return files.sort_values("slide_id", ignore_index=True)


def _places(folder: Path, format: str, encoder: str | None) -> list[tuple[Path, str]]:
    """Folders and suffixes where features are looked for, the preferred first."""
    if format not in FORMATS:
        raise InputError("no such format of features", column="slides.features.format", found=format, expected=", ".join(FORMATS))
    if not folder.is_dir():
        raise InputError("no such folder of features", file=folder, remedy="Check `slides.features.folder` and `data_dir`.")
    if format == "auto":
        format = _recognised(folder)
    if format == "clam":
        return [(folder / "h5_files", ".h5"), (folder / "pt_files", ".pt")]
    if format == "trident":
        at = _trident_features(folder, encoder)
        return [(at, ".h5"), (at, ".pt")]
    return [(folder, f".{format}")]


def _recognised(folder: Path) -> str:
    if any((folder / name).is_dir() for name in ("h5_files", "pt_files")):
        return "clam"
    if folder.name.startswith("features_") or _feature_folders(folder):
        return "trident"
    return "h5" if any(folder.glob("*.h5")) else "pt"


def _feature_folders(folder: Path) -> list[Path]:
    return sorted(p for glob in ("features_*", "*/features_*") for p in folder.glob(glob) if p.is_dir())


def _trident_features(folder: Path, encoder: str | None) -> Path:
    """The one folder of patch features of a TRIDENT job."""
    if folder.name.startswith("features_"):
        return folder
    known = _feature_folders(folder)
    chosen = [p for p in known if p.name == f"features_{encoder}"] or known
    if len(chosen) == 1:
        return chosen[0]
    found = ", ".join(str(p.relative_to(folder)) for p in chosen) or None
    remedy = "Name the one that is wanted in `slides.features.folder`."
    raise InputError("not one folder of features", file=folder, found=found, expected="one folder features_<encoder>", remedy=remedy)


def import_chunk(slides: pd.DataFrame, folder: str | Path, manifest: str | Path, encoder: str, *, width: int | None = None) -> None:
    """Convert the foreign features of every row of `slides` (slide_id, path) into `folder`, and write the manifest.

    One float16 file a slide as the features stage writes it; its attributes name the source's file, its format and fingerprint, `encoder`
    (a label) and the patch size where the source tells it. A file that cannot be used fails that slide alone: unreadable, cut off,
    of another shape, without a patch, with a value that is not finite, a pickle of something else (never executed), or of another
    width than `width` (None = that of most slides of the chunk).
    """
    folder = Path(folder)

    def process(row: dict) -> dict[str, object]:
        path, target = Path(row["path"]), folder / f"{row['slide_id']}.h5"
        if not path.is_file():
            raise InputError("no such file of features", file=path, slide=row["slide_id"], remedy="Add it, or take the slide out.")
        origin = {
            "settings": settings_digest("import", encoder, [fingerprint(p) for p in foreign_files(path)[1:]]),
            "slide_fingerprint": fingerprint(path),
            "code": code_of("pipeline.slides.foreign"),
        }
        made = read_made(target, **origin)
        if not made:
            made = read_foreign(path)
            attributes = {"source": path.name, "source_format": _format_of(path, made), **_scale(made.attributes)}
            with _told_of(path):
                write_features(target, made.features, made.coords, {**attributes, "encoder": encoder, "unreadable": 0, **origin})
        patches, found = made.features.shape
        return {"patches": patches, "unreadable": 0, "width": found, "checksum": sealed_checksum(target)}

    run_slides(f"import ({encoder})", slides, process, COLUMNS, manifest, PATIENCE, files=foreign_files)
    _refuse_other_widths(Path(manifest), width)


def read_foreign(path: Path) -> PatchFile:
    """Features [N, d] with N > 0 as another tool wrote them; coordinates and attributes where it or a file beside it tells them.

    Raises `InputError` for anything else.
    """
    with _told_of(path):
        return _with_scale(_read(path), foreign_files(path)[1:])


def _refuse_other_widths(manifest: Path, width: int | None) -> None:
    """Fail the slides of another width: only when all are known can the odd ones be told from the rest."""
    table = read_table(manifest, [*OUTCOME, *COLUMNS])
    passed = table["status"] == OK
    widths = table.loc[passed, "width"].astype(float)
    if not len(widths):
        return
    expected = width or widths.mode().iloc[0]
    for at, found in widths[widths != expected].items():
        error = InputError(
            "the features have another width" + ("" if width else " than those of most slides"),
            slide=table.at[at, "slide_id"],
            found=f"{found:g}",
            expected=f"{expected:g}",
            remedy="Were they made with another encoder? " + REMEDY,
        )
        log.warning("%s", error.reason)
        table.loc[at, ["status", "reason", "remedy"]] = [FAILED, error.reason, error.remedy]
        table.loc[at, COLUMNS] = np.nan
    write_table(table, manifest)


def foreign_files(path: Path) -> tuple[Path, ...]:
    """A file of features, and those that may hold its coordinates by CLAM's and TRIDENT's folders."""
    above, name = path.parent.parent, f"{path.stem}.h5"
    places = [path.with_name(name), above / "h5_files" / name, above / "patches" / name, above / "patches" / f"{path.stem}_patches.h5"]
    return path, *(p for p in places if p != path and p.is_file())


@contextmanager
def _told_of(path: Path) -> Iterator[None]:
    """Errors as `InputError` about `path`, with the remedy for a file that is not ours."""
    try:
        yield
    except InputError as error:
        parts = {"row": error.row, "found": error.found, "expected": error.expected}
        raise InputError(error.problem, file=path, **parts, remedy=REMEDY) from error
    except (RuntimeError, KeyError, ValueError, TypeError, AttributeError) as error:  # what h5py raises for damage within a file
        raise InputError(f"cannot be read ({type(error).__name__}: {error})", file=path, remedy=REMEDY) from error


def _read(path: Path) -> PatchFile:
    content = _read_tensor(path) if path.suffix == ".pt" else read_features(path)
    if not np.issubdtype(content.features.dtype, np.floating) and not np.issubdtype(content.features.dtype, np.integer):
        raise InputError("the features are no numbers", file=path, found=content.features.dtype, expected="floating point")
    if not content.features.size:
        raise InputError("has no patch", file=path, found=list(content.features.shape), expected="[N, d]")
    return content


def _read_tensor(path: Path) -> PatchFile:
    """A .pt file: a tensor or array, or a mapping with `features` and perhaps `coords`; nothing that it may hide is executed."""
    import torch

    check_tensors(path)
    try:
        with torch.serialization.safe_globals(_array_parts()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a pickle protocol
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        refused = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"is a pickle of something other than a tensor ({refused[1]})" if refused else "is damaged, or no tensor,"
        raise InputError(f"{what} and was not loaded", file=path) from error
    except Exception as error:  # what a damaged archive raises is torch's choice
        first = str(error).splitlines()[0] if str(error) else ""
        raise InputError(f"cannot be read as a tensor ({type(error).__name__}: {first})", file=path) from error
    parts = content if isinstance(content, Mapping) else {"features": content}
    arrays = {name: _array(parts[name], path) for name in ("features", "coords") if name in parts}
    if "features" not in arrays:
        found = ", ".join(map(str, list(parts)[:5]))
        raise InputError("has no features", file=path, found=found, expected="a tensor [N, d]")
    coords = arrays.get("coords")
    return PatchFile(None if coords is None else coords.astype(np.int32), arrays["features"])


def _array(value: object, path: Path) -> np.ndarray:
    import torch

    if isinstance(value, torch.Tensor):
        value = (value.detach().float() if value.dtype == torch.bfloat16 else value.detach()).numpy()
    if not isinstance(value, np.ndarray):
        raise InputError("holds no tensor", file=path, found=type(value).__name__, expected="a tensor [N, d]")
    if value.ndim != 2 and not (value.ndim == 3 and len(value) == 1):
        raise InputError("the tensor has another shape", file=path, found=list(value.shape), expected="[N, d]")
    return value.reshape(-1, value.shape[-1])


def _array_parts() -> list[object]:
    """What torch needs to know to load a numpy array, which TRIDENT puts into its .pt files; none of it executes anything."""
    rebuild = np._core.multiarray._reconstruct if hasattr(np, "_core") else np.core.multiarray._reconstruct
    names = [(rebuild, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")]
    return [*names, np.ndarray, np.dtype, *{type(np.dtype(code)) for code in "efdil"}]


def _with_scale(content: PatchFile, beside: Sequence[Path]) -> PatchFile:
    """`content` with coordinates and attributes of the first file beside it that belongs to it: as many rows, and no others."""
    if content.coords is not None and "patch_size" in content.attributes:
        return content
    for path in beside:
        try:
            found = read_coords(path)
        except InputError as error:
            log.warning("%s", error.reason)
            continue
        if len(found.coords) != len(content.features):
            log.warning("%s has %d rows, the features %d: not used", path, len(found.coords), len(content.features))
        elif content.coords is None or np.array_equal(found.coords, content.coords):
            content = PatchFile(found.coords, content.features, {**found.attributes, **content.attributes})
    return content


def _format_of(path: Path, content: PatchFile) -> str:
    if "slide_fingerprint" in content.attributes:
        return "slide2surv"
    if "patch_size_level0" in content.attributes:
        return "trident"
    return "clam" if "patch_level" in content.attributes or path.parent.name in ("h5_files", "pt_files") else path.suffix[1:]


def _scale(attributes: Mapping[str, object]) -> dict[str, object]:
    """What the source tells of the patches' size; nothing where it makes no sense. TRIDENT's magnifications are classes (all of
    0.3–0.6 µm are its 20x), so no mpp is derived from them."""
    try:
        size = int(attributes["patch_size"])
        downsample = float(np.ravel(attributes.get("downsample", 1.0))[0]) * float(attributes.get("custom_downsample", 1))
        level0 = int(attributes.get("patch_size_level0", round(size * downsample)))
        return {"patch_size": size, "patch_size_level0": level0} | {k: float(attributes[k]) for k in MAGNIFICATIONS if k in attributes}
    except (KeyError, TypeError, ValueError, IndexError):
        return {}
