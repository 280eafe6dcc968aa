"""One self-contained HTML page that shows a study and what it does not show: `write_report`."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from pipeline.evaluation.folds import Fold, read_folds, read_follow_up
from pipeline.evaluation.metrics import logrank
from pipeline.evaluation.summary import is_optimistic, read_summary
from pipeline.files import write_text
from pipeline.identifiers import check_id
from pipeline.report.figures import draw_forest, draw_kaplan_meier, draw_training
from pipeline.report.findings import findings
from pipeline.report.slides import read_manifests, slide_section
from pipeline.tables import numeric, read_table

if TYPE_CHECKING:
    from jinja2 import Template

MAX_OVERLAYS = 24
OVERLAY_SIZE = (300, 220)  # pixels; 24 JPEG thumbnails of it are about 0.4 MB
MAX_REASONS = 60
MAX_IDS = 8


def write_report(
    *,
    cohort: str,
    title: str,
    summary: Path,
    models: Mapping[str, Sequence[Path]],
    patients: Path,
    splits: Path,
    flow: Path,
    excluded: Path,
    output: Path,
    figures: Path,
    manifests: Sequence[Path] = (),
    quality: Path | None = None,
    overlays: Sequence[Path] = (),
    provenance: Mapping[str, object] | None = None,
) -> None:
    """Write the page to `output` and its figures as SVG to the folder `figures` (forest, km-<model>, training-<model>).

    models: model → its fold folders, for every model that ran; those that did not are rows of the summary with a note.
    manifests: ``slides/manifest-<encoder>.tsv``; overlays: ``slides/tissue/<slide>.png``; both may be empty. quality: ``slides/qc.tsv``,
    None where no slide was opened.
    provenance: what the results depend on (version, settings, seeds, digests); nested mappings are flattened.
    """
    table = read_summary(summary).sort_values("c_index", ascending=False, kind="stable", ignore_index=True)
    folds = {model: read_folds([Path(f) for f in folders], patients, splits) for model, folders in models.items()}
    slides = read_manifests(manifests)
    context = {
        "cohort": cohort,
        "title": title,
        "numbers": _key_numbers(patients, splits, slides, table),
        "findings": findings(table),
        "forest": _embed_svg(_forest(table, Path(figures))),
        "rows": [{**row, "optimistic": is_optimistic(row)} for row in table[table.folds.notna()].to_dict("records")],
        "not_run": table[table.folds.isna()].to_dict("records"),
        "cards": [_card(row.model, row, folds[row.model], Path(figures)) for row in table.itertuples() if row.model in folds],
        "flow": _flow(flow),
        "excluded": _excluded(excluded),
        "slides": slide_section(slides, quality),
        "gallery": _gallery(overlays, slides),
        "overlays": len(overlays),
        "provenance": list(_flatten(provenance or {})),
    }
    write_text(output, _template().render(context))


def _template() -> Template:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"c": _decimals, "p": _p_value, "count": _count, "duration": _duration, "signed": _signed}
    return environment.from_string(Path(__file__).with_name("page.html.j2").read_text(encoding="utf-8"))


def _forest(table: pd.DataFrame, folder: Path) -> Path:
    draw_forest(table, folder / "forest.svg")
    return folder / "forest.svg"


def _card(model: str, row: object, folds: list[Fold], folder: Path) -> dict[str, object]:
    check_id(model, "model")
    km, training = folder / f"km-{model}.svg", folder / f"training-{model}.svg"
    draw_kaplan_meier(folds, logrank(folds), km)
    draw_training(folds, training)
    unpredicted = pd.Series([reason for fold in folds for reason in fold.unpredicted.values()], dtype=object).value_counts(sort=False)
    reasons = sorted(unpredicted.items(), key=lambda item: (-item[1], item[0]))
    return {"model": model, "row": row._asdict(), "km": _embed_svg(km), "training": _embed_svg(training), "unpredicted": reasons}


def _key_numbers(patients: Path, splits: Path, slides: pd.DataFrame, table: pd.DataFrame) -> list[tuple[str, str, str]]:
    """(figure, unit, detail) of the strip under the title."""
    follow_up = read_follow_up(patients)
    sets = read_table(splits, ["fold", "set", "patient_id"])
    folds, tested = sets.fold.nunique(), sets.patient_id[sets.set == "test"]
    once = set(tested) == set(follow_up.index) and tested.is_unique
    events, ran = int(follow_up.event.sum()), int(table.folds.notna().sum())
    numbers = [
        (str(len(follow_up)), "patients", f"{follow_up.time.median():.0f} months observed (median)"),
        (str(events), "events", f"{events / max(len(follow_up), 1):.0%} of the patients"),
        (str(folds), "folds", "each patient tested once" if once else f"{tested.nunique()} patients tested"),
        (str(ran), "models evaluated", f"{len(table) - ran} not run"),
    ]
    if len(slides):
        ok = slides[slides.status == "ok"].slide_id.nunique()
        numbers.append((str(ok), "slides used", f"{slides.slide_id.nunique() - ok} excluded"))
    return numbers


def _flow(path: Path) -> list[dict[str, object]]:
    """The flow's steps with `share`, the per cent of the first step's patients that remain."""
    table = read_table(path, ["step", "patients", "dropped", "reason"])
    table[["patients", "dropped"]] = numeric(table, ["patients", "dropped"], path).fillna(0).astype(int)
    first = max(int(table.patients.max()) if len(table) else 1, 1)
    return table.fillna("").assign(share=(100 * table.patients / first).round(1)).to_dict("records")


def _excluded(path: Path) -> dict[str, object]:
    """Slides and patients grouped by kind, stage, reason and remedy, the largest group first."""
    keys = ["kind", "stage", "reason", "remedy"]
    table = read_table(path, [*keys, "id"]).fillna("")
    groups = [(key, sorted(part.id)) for key, part in table.groupby(keys, sort=True)]
    groups.sort(key=lambda group: -len(group[1]))
    rows = [
        dict(zip(keys, key, strict=True)) | {"count": len(ids), "ids": ids[:MAX_IDS], "more": max(len(ids) - MAX_IDS, 0)}
        for key, ids in groups
    ]
    counts = {kind: int((table.kind == kind).sum()) for kind in ("slide", "patient")}
    return {"rows": rows[:MAX_REASONS], "more": max(len(rows) - MAX_REASONS, 0), "counts": counts}


def _gallery(overlays: Sequence[Path], slides: pd.DataFrame) -> list[dict[str, str]]:
    """At most 24 thumbnails with a caption, excluded slides first, then by slide id."""
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
        with Image.open(path) as image:
            small = image.convert("RGB")
            small.thumbnail(OVERLAY_SIZE)
    except (OSError, ValueError, Image.DecompressionBombError):
        return ""
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _embed_svg(path: Path) -> str:
    """As a data URI: an image can run nothing and its ids cannot clash with those of the next figure."""
    return "data:image/svg+xml;base64," + base64.b64encode(path.read_bytes()).decode()


def _flatten(mapping: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in mapping.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        elif isinstance(value, (list, tuple)):
            yield f"{prefix}{key}", ", ".join(map(str, value))
        else:
            yield f"{prefix}{key}", str(value)


def _decimals(value: float, digits: int = 3) -> str:
    return f"{value:.{digits}f}" if np.isfinite(value) else "–"


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−") if np.isfinite(value) else "–"


def _p_value(value: float) -> str:
    if not np.isfinite(value):
        return "–"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _count(value: float) -> str:
    """1234567 → ``1.23 M``; below ten thousand the number itself."""
    if not np.isfinite(value):
        return "–"
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= max(unit, 1e4):
            return f"{value / unit:.3g} {name}"
    return f"{value:.0f}"


def _duration(seconds: float) -> str:
    if not np.isfinite(seconds):
        return "–"
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
