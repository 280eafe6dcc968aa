"""One self-contained HTML page that shows a study and what it does not show: `write_report`."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from pipeline.evaluation.folds import Fold, folds_of, read_cohort
from pipeline.evaluation.summary import is_optimistic, read_summary
from pipeline.files import write_text
from pipeline.identifiers import check_id
from pipeline.report.calibration import draw_calibration, read_calibration
from pipeline.report.cohort import excluded_groups, flow_steps, key_numbers, molecular_tables
from pipeline.report.comparison import draw_matrix, pair_rows, read_comparison
from pipeline.report.figures import draw_forest, draw_kaplan_meier, draw_training
from pipeline.report.findings import failed_folds, findings
from pipeline.report.ranks import draw_ranks, rank_note, read_ranks
from pipeline.report.resources import resource_section
from pipeline.report.scenarios import draw_drops, draw_losses, probabilities, read_scenarios, scenario_groups
from pipeline.report.slides import gallery, read_manifests, slide_section

if TYPE_CHECKING:
    from jinja2 import Template

MEASURES = {"survival": "C-index", "binary": "AUC"}
MATRIX_FROM = 5  # fewer models have so few pairs that the table says it all
LONG_TABLE = 40  # rows of a table that opens by a click
OPEN_CARDS = 8  # in a larger study every model's section opens by a click


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
    kind: str = "survival",
    reference: str | None = None,
    comparison: Path | None = None,
    ranks: Path | None = None,
    calibration: Mapping[str, Path] | None = None,
    omics_tables: Path | None = None,
    scenarios: Path | None = None,
    resources: Path | None = None,
) -> None:
    """Write the page to `output` and its figures as SVG to the folder `figures`.

    The figures are forest, ranks, differences, missing, missing-drops, km-<model>, calibration-<model>, training-<model>, each where there
    is something to draw.
    models: model → its fold folders, for every model that ran; those that did not are rows of the summary with a note.
    manifests: ``slides/manifest-<encoder>.tsv``; overlays: ``slides/tissue/<slide>.png``; both may be empty. quality: ``slides/qc.tsv``,
    None where no slide was opened.
    provenance: what the results depend on (version, settings, seeds, digests); nested mappings are flattened.
    kind: of the endpoint, ``survival`` or ``binary``: the C-index of a binary label is its AUC and is called so.
    reference: the clinical model that the others are held against. comparison, ranks: ``comparison.tsv`` and ``ranks.tsv``.
    calibration: model → its ``calibration.tsv``. omics_tables: ``omics/tables.tsv``. scenarios: ``scenarios.tsv``,
    None where the study takes no modality away. resources: ``resources.tsv``.
    Raises `InputError` when a file is unusable.
    """
    table = read_summary(summary).sort_values("c_index", ascending=False, kind="stable", ignore_index=True)
    members = read_cohort(patients, splits)
    folds = {model: folds_of(folders, members) for model, folders in models.items()}
    slides = read_manifests(manifests)
    pairs = read_comparison(comparison) if comparison else None
    cards, molecular = _Cards(Path(figures), kind, folds, calibration or {}), molecular_tables(omics_tables)
    known = bool(np.isfinite(table.c_index).any())
    context = {
        "cohort": cohort,
        "title": title,
        "kind": kind,
        "measure": MEASURES[kind],
        "reference": reference,
        "numbers": key_numbers(members, slides, table, kind),
        "findings": findings(table, measure=MEASURES[kind], reference=reference, pairs=pairs, molecular=molecular),
        "forest": cards.draw("forest", draw_forest, table, measure=MEASURES[kind], reference=reference) if known else "",
        "rows": [cards.row(row) for row in table[table.folds.notna()].to_dict("records")],
        "shuffled": bool(table.noise_floor.notna().any()),
        "digests": sorted(set(table.splits[table.splits != ""])),
        "compared": _compared(pairs, ranks, table, cards),
        "missing": _missing(scenarios, table, cards),
        "not_run": table[table.folds.isna()].to_dict("records"),
        "cards": [cards.card(row) for row in table.to_dict("records") if row["model"] in folds],
        "folded": len(folds) > OPEN_CARDS,
        "flow": flow_steps(flow),
        "molecular": molecular,
        "excluded": excluded_groups(excluded),
        "slides": slide_section(slides, quality),
        "gallery": gallery(overlays, slides),
        "overlays": len(overlays),
        "resources": resource_section(resources),
        "long": LONG_TABLE,
        "provenance": list(_flatten(provenance or {})),
    }
    write_text(output, _template().render(context))


def _template() -> Template:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"c": _decimals, "p": _p_value, "count": _count, "duration": _duration, "signed": _signed}
    return environment.from_string(Path(__file__).with_name("page.html.j2").read_text(encoding="utf-8"))


class _Cards:
    """Draws a study's figures into `folder` and hands them out embedded, with what the page says of each model."""

    def __init__(self, folder: Path, kind: str, folds: Mapping[str, list[Fold]], calibration: Mapping[str, Path]) -> None:
        self.folder, self.kind, self.folds, self.calibration = folder, kind, folds, calibration

    def draw(self, name: str, draw: Callable, *arguments: object, **options: object) -> str:
        path = self.folder / f"{name}.svg"
        draw(*arguments, path, **options)
        return _embed_svg(path)

    def row(self, row: dict[str, object]) -> dict[str, object]:
        return row | {"optimistic": is_optimistic(row), "epochs": self._epochs(row["model"])}

    def _epochs(self, model: str) -> bool:
        """Whether the model was trained epoch by epoch, so that there was one to choose (a Cox regression is not)."""
        return any(len(fold.history) > 1 for fold in self.folds.get(model, []))

    def card(self, row: dict[str, object]) -> dict[str, object]:
        model = check_id(row["model"], "model")
        folds = self.folds[model]
        unpredicted = pd.Series([reason for fold in folds for reason in fold.unpredicted.values()], dtype=object).value_counts(sort=False)
        reasons = sorted(unpredicted.items(), key=lambda item: (-item[1], item[0]))
        failed = failed_folds(str(row["failed_folds"]))
        return {"model": model, "row": row, "failed": failed, "images": list(self._images(model, row)), "unpredicted": reasons}

    def _images(self, model: str, row: dict[str, object]) -> Iterator[dict[str, str]]:
        if not row["patients"]:
            return
        if self.kind == "survival":
            image = self.draw(f"km-{model}", draw_kaplan_meier, self.folds[model], _separation(row))
            yield {"image": image, "alt": f"Kaplan–Meier curves of the high-risk and low-risk halves, {model}"}
        if self._epochs(model):
            image = self.draw(f"training-{model}", draw_training, self.folds[model], measure=MEASURES[self.kind])
            yield {"image": image, "alt": f"Training loss and test {MEASURES[self.kind]} by epoch, {model}"}
        groups = read_calibration(self.calibration[model]) if model in self.calibration else []
        if len(groups):
            image = self.draw(f"calibration-{model}", draw_calibration, groups, kind=self.kind)
            yield {"image": image, "alt": f"Predicted against observed by groups of patients, {model}"}


def _separation(row: Mapping[str, object]) -> str:
    """Log-rank p and hazard ratio of the risk halves, or why there is none."""
    if not np.isfinite(row["logrank_p"]):
        reasons = [note.removeprefix("logrank_p: ") for note in str(row["note"]).split("; ") if note.startswith("logrank_p: ")]
        return f"log-rank: {reasons[0] if reasons else 'not computed'}"
    text = "log-rank p < 0.001" if row["logrank_p"] < 0.001 else f"log-rank p = {row['logrank_p']:.2g}"
    if not np.isfinite(row["hazard_ratio"]):
        return text
    return f"{text}\nHR {row['hazard_ratio']:.2f} [{row['hazard_ratio_ci_low']:.2f}, {row['hazard_ratio_ci_high']:.2f}]"


def _compared(pairs: pd.DataFrame | None, ranks: Path | None, table: pd.DataFrame, cards: _Cards) -> dict[str, object] | None:
    """The section on models against each other; None where fewer than two were compared."""
    if pairs is None or pairs.empty:
        return None
    rows, more = pair_rows(pairs)
    section: dict[str, object] = {"rows": rows, "more": more, "matrix": "", "ranks": "", "note": ""}
    models = [model for model in table.model if model in {*pairs.model_a, *pairs.model_b}]
    if len(models) >= MATRIX_FROM:
        section["matrix"] = cards.draw("differences", draw_matrix, pairs, models)
    ranked = read_ranks(ranks) if ranks else []
    if len(ranked) > 1:
        section |= {"ranks": cards.draw("ranks", draw_ranks, ranked), "note": rank_note(ranked)}
    return section


def _missing(scenarios: Path | None, table: pd.DataFrame, cards: _Cards) -> dict[str, object] | None:
    """The section on patients who lack modalities; None where the study has no such scenario."""
    if scenarios is None:
        return None
    rows, measure = read_scenarios(scenarios), MEASURES[cards.kind]
    models, drops = [model for model in table.model if model in set(rows.model)], probabilities(rows)
    section: dict[str, object] = {"groups": scenario_groups(rows), "zeros": "zeros" in set(rows.fill), "losses": "", "drops": ""}
    if len(drops) < 2 or any(scenario.startswith("without ") for scenario in rows.scenario):
        section["losses"] = cards.draw("missing", draw_losses, rows, models, measure=measure)
    if len(drops) > 1:
        section["drops"] = cards.draw("missing-drops", draw_drops, rows, models, measure=measure)
    return section


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
    return f"{round(value, 3) + 0.0:+.3f}".replace("-", "−") if np.isfinite(value) else "–"  # + 0.0: no minus before zero


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
