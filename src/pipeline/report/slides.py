"""The report's sections on slides: what was used, where the resolution is known from, which to look at, and the tissue found."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from pipeline.machine import machine_fault
from pipeline.tables import numeric, read_table

LAID = "tissue and patches"  # the row of the stages before an encoder
MAX_SUSPECTS = 50
MAX_OVERLAYS = 24
OVERLAY_SIZE = (300, 220)  # pixels; 24 JPEG thumbnails of it are about 0.4 MB
NUMBERS = ["patches", "tissue_mm2"]
SHARED = ["slide_id", "status", "mpp_source", *NUMBERS]


def read_manifests(manifests: Sequence[Path]) -> pd.DataFrame:
    """All manifests below each other with the encoder's name (from the file name) as a column."""
    columns = [*SHARED, "mpp"]
    tables = [_read(path, columns).assign(encoder=Path(path).stem.removeprefix("manifest-")) for path in manifests]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=[*columns, "encoder"])


def _read(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    table = read_table(path, columns)
    table[NUMBERS] = numeric(table, NUMBERS, path)
    return table


def slide_section(manifests: pd.DataFrame, quality: Path | None) -> dict[str, object]:
    """What the section shows: `rows` (one for ``slides/qc.tsv``, one an encoder) and the `suspects` of ``slides/qc.tsv``.

    A suspect is a slide that failed or has a flag: at most 50, those that failed first. `of`, `flags`: how many slides there are, and how
    many suspects by flag. Without `quality` (features made elsewhere) there are none.
    """
    section: dict[str, object] = {"rows": [], "suspects": [], "more": 0, "of": 0, "flags": []}
    rows = [_row(encoder, part) for encoder, part in manifests.groupby("encoder", sort=True)]
    if quality is not None:
        table = _read(quality, [*SHARED, "stage", "reason", "flags"])
        rows.insert(0, _row(LAID, table))
        section |= _suspects(table)
    return section | {"rows": rows}


def _row(stage: str, slides: pd.DataFrame) -> dict[str, object]:
    """Slides used and failed, and of those used the tissue, the patches, and how often each source gave the resolution."""
    used = slides[slides.status == "ok"]
    sources = used.mpp_source.fillna("unknown").value_counts().sort_index()
    return {
        "stage": stage,
        "used": len(used),
        "failed": len(slides) - len(used),
        "tissue_mm2": used.tissue_mm2.sum(min_count=1),  # features made elsewhere do not tell it
        "patches": used.patches.sum(),
        "resolution": ", ".join(f"{source} ({count})" for source, count in sources.items()),
    }


def _suspects(table: pd.DataFrame) -> dict[str, object]:
    table = table.fillna({"flags": "", "reason": "", "stage": ""}).assign(failed=table.status != "ok")
    found = table[table.failed | (table["flags"] != "")].sort_values(["failed", "slide_id"], ascending=[False, True], kind="stable")
    counts = found["flags"][found["flags"] != ""].str.split(";").explode().value_counts(sort=False)
    flags = [("failed", int(found.failed.sum()))] * bool(found.failed.any())
    flags += sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    rows = [
        {"slide": row.slide_id, "flags": [f"failed: {row.stage}"] if row.failed else row.flags.split(";"), "reason": row.reason}
        for row in found[:MAX_SUSPECTS].itertuples()
    ]
    return {"suspects": rows, "more": max(len(found) - MAX_SUSPECTS, 0), "of": len(table), "flags": flags}


def gallery(overlays: Sequence[Path], slides: pd.DataFrame) -> list[dict[str, str]]:
    """At most 24 thumbnails (`image`: a data URI, empty where unreadable) with a caption, excluded slides first, then by slide id.

    overlays: ``slides/tissue/<slide>.png``; slides: of `read_manifests`.
    """
    known = {row.slide_id: row for row in slides.itertuples()}

    def order(path: Path) -> tuple[bool, str]:
        row = known.get(path.stem)
        return (row is None or row.status == "ok", path.stem)

    chosen = sorted(map(Path, overlays), key=order)[:MAX_OVERLAYS]
    return [{"slide": path.stem, "image": _thumbnail(path), **_caption(known.get(path.stem))} for path in chosen]


def _caption(row: object | None) -> dict[str, str]:
    if row is None:
        return {"status": "unknown", "facts": "not in a manifest"}
    units = {"tissue_mm2": "mm² tissue", "mpp": "µm/px"}
    facts = [f"{float(getattr(row, column)):.3g} {unit}" for column, unit in units.items() if pd.notna(getattr(row, column))]
    return {"status": str(row.status), "facts": " · ".join(facts)}


def _thumbnail(path: Path) -> str:
    """A JPEG data URI, or an empty string where the image cannot be read (the page says so)."""
    from PIL import Image

    try:
        with Image.open(path, formats=["PNG"]) as image:
            small = image.convert("RGB")
            small.thumbnail(OVERLAY_SIZE)
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        if fault := machine_fault(error, path):
            raise fault from error
        return ""
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
