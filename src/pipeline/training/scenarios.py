"""What the trained folds of a model predict for patients who lack modalities: nothing is trained again, only test patients change.

Two fills. ``native``: the patient really lacks the modality, and the model does what its own options say of that. ``zeros``: zeros of
the same shape after scaling, and no flag tells the model (the protocol of AdaMHF's missing-modality tables, and of its public code).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeline.cohort.loader import MEMORY_MB, CohortData
from pipeline.cohort.record import Bag, Patient
from pipeline.errors import InputError
from pipeline.nn.hazards import risk_score
from pipeline.seeds import seed_from
from pipeline.tables import write_table
from pipeline.training.artifacts import load_weights, read_description
from pipeline.training.dataset import RawData
from pipeline.training.fold import Fold
from pipeline.training.loop import Trainer

COLUMNS = ["scenario", "fill", "draw", "fold", "patient_id", "lacks", "time", "event", "risk", "reason"]
FITTED = ("inputs", "options", "time_bins", "columns", "scaling")  # of model.yaml: what must be the same when the fold is rebuilt
NOT_FINITE = "the risk is not a finite number"


def predict_scenarios(
    *,
    settings: Mapping[str, Any],
    missing: Mapping[str, Any],
    folds: Sequence[Path],
    files: Mapping[str, Any],
    output: Path,
    memory_mb: float = MEMORY_MB,
) -> None:
    """Predict the test patients of every trained fold under every scenario and write one table.

    settings: `study.fold_settings`; missing: `study.missing`; folds: folders with ``model.safetensors`` and ``model.yaml``; files and
    memory_mb: as for `RawData.read`. Output: scenario, fill, draw, fold, patient_id, lacks (what was taken, `;`-separated), time, event,
    risk, and where there is no risk the reason. Every test patient of a fold has a row in each draw of each scenario, those of a failed
    fold too.
    Raises `InputError` when a rebuilt fold is not the one that was trained.
    """
    raw = RawData.read(files, settings, memory_mb)
    table = pd.concat([predict_fold(settings, missing, Path(folder), raw) for folder in folds])
    order = {scenario["name"]: at for at, scenario in enumerate(missing["scenarios"])}
    table = table.assign(at=table["scenario"].map(order)).sort_values(["at", "draw", "fold", "patient_id"], kind="stable")
    table = table.assign(fill=missing["fill"], lacks=[";".join(sorted(lacks)) for lacks in table["lacks"]])
    write_table(table[COLUMNS], output)


def predict_fold(settings: Mapping[str, Any], missing: Mapping[str, Any], folder: Path, raw: RawData) -> pd.DataFrame:
    """The rows of one fold, `lacks` as sets.

    What a model says of a patient depends on what is left of him alone, so that he is predicted once for each such remainder, not
    once a draw; patients of whom the same was taken go through the model together.
    """
    trained = read_description(folder / "model.yaml")
    _, test = raw.sides(trained["fold"])
    rows = conditions(test, missing["scenarios"], missing["draws"], (settings["name"], settings["seed"], trained["fold"]))
    if trained["failure"]:
        return rows.assign(risk=np.nan, reason="the fold failed: " + " ".join(trained["failure"].split()))
    run, trainer = rebuild(settings, folder, raw, trained)
    keys = [(patient, lacks & set(run.model.modalities)) for patient, lacks in zip(rows["patient_id"], rows["lacks"], strict=True)]
    found: dict[tuple[str, frozenset[str]], tuple[float, str | None]] = {}
    for taken in sorted({taken for _, taken in keys}, key=sorted):
        trainer.data = without(run.offered.data, taken, missing["fill"])
        reasons = {p: _refusal(run, p, taken, missing["fill"]) for p in sorted({p for p, other in keys if other == taken})}
        known = [patient for patient, reason in reasons.items() if reason is None]
        risks = risk_score(trainer.predict(known)).tolist() if known else []
        found |= {(patient, taken): (np.nan, reason) for patient, reason in reasons.items()}
        found |= {(p, taken): (r, None) if np.isfinite(r) else (np.nan, NOT_FINITE) for p, r in zip(known, risks, strict=True)}
    risk, reason = zip(*(found[key] for key in keys), strict=True)
    return rows.assign(risk=risk, reason=reason)


def rebuild(settings: Mapping[str, Any], folder: Path, raw: RawData, trained: Mapping[str, Any]) -> tuple[Fold, Trainer]:
    """The fold of `folder` with its trained weights and its data, from what `trained` (its ``model.yaml``) says.

    Raises `InputError` when scaling, columns, time bins, options or the shapes of the inputs are no longer those of the training.
    """
    run = Fold(settings, trained["fold"], raw, {"seed": trained["seed"]})
    changed = [name for name in FITTED if run.facts[name] != trained[name]]
    if changed:
        raise InputError(
            "the fold was trained on other inputs than these",
            file=folder / "model.yaml",
            found=f"another {', '.join(changed)}",
            remedy="Delete the model's folds_*.tsv and run again.",
        )
    load_weights(run.model, folder / "model.safetensors")
    return run, Trainer(run.model, run.offered.data, run.protocol, trained["seed"])


def conditions(test: pd.DataFrame, scenarios: Sequence[Mapping[str, Any]], draws: int, key: tuple[object, ...]) -> pd.DataFrame:
    """Who lacks what: a row a scenario, draw and patient of `test` (of patients.tsv), with what is taken from him as a set.

    draws: of scenarios that draw. key: what the draws depend on beside patient, probability and number of the draw: study, seed, fold.
    The model is not among them, so that all models lose the same.
    """
    has = [column for column in test if column.startswith("has_")]
    observed = [{column.removeprefix("has_") for column in has if str(row[column]) == "1"} for _, row in test[has].iterrows()]

    def rows() -> Iterator[tuple[Any, ...]]:
        for scenario in scenarios:
            for draw in range(draws if "drop" in scenario else 1):
                for patient, owns, time, event in zip(test["patient_id"], observed, test["time"], test["event"], strict=True):
                    yield scenario["name"], draw, key[-1], patient, lost(scenario, owns, (*key, patient, draw)), time, event

    return pd.DataFrame(rows(), columns=["scenario", "draw", "fold", "patient_id", "lacks", "time", "event"])


def lost(scenario: Mapping[str, Any], observed: Collection[str], key: tuple[object, ...]) -> frozenset[str]:
    """What a patient who has the modalities `observed` loses.

    ``without``: that modality. ``drop``: each modality independently with that probability; of one who would lose all, one is kept,
    each with the same chance. The numbers behind it follow from `key`, the probability and the name of the modality.
    """
    if "without" in scenario:
        return frozenset({scenario["without"]} & set(observed))
    chance = {modality: seed_from(*key, scenario["drop"], modality) / 2**31 for modality in sorted(observed)}
    dropped = {modality for modality, value in chance.items() if value < scenario["drop"]}
    if len(dropped) == len(chance) and chance:
        dropped.remove(max(chance, key=chance.__getitem__))
    return frozenset(dropped)


def without(data: CohortData, taken: Collection[str], fill: str) -> CohortData:
    """A view of `data` in which every patient lacks the modalities `taken` (``native``) or has zeros in their place (``zeros``)."""
    if fill == "zeros":
        return Zeroed(**vars(data), taken=frozenset(taken))
    vectors = {modality: vector for modality, vector in data.vectors.items() if modality not in taken}
    return replace(data, vectors=vectors, bags={modality: store for modality, store in data.bags.items() if modality not in taken})


@dataclass
class Zeroed(CohortData):
    """The same patients, with zeros for what was `taken`: all shapes, masks and flags stay, bags keep their number of instances."""

    taken: frozenset[str] = frozenset()

    def batch(self, *arguments: Any, **options: Any) -> Patient:
        record = super().batch(*arguments, **options)
        emptied = record
        for modality in sorted(self.taken):
            emptied = emptied.without(modality)
        bags = {modality: Bag(bag.features, record.bags[modality].mask) for modality, bag in emptied.bags.items()}
        return replace(emptied, bags=bags, present=record.present)


def _refusal(run: Fold, patient: str, taken: Collection[str], fill: str) -> str | None:
    """Why the patient has no prediction; zeros are a modality to the model, unless they are all that he would have."""
    observed = run.offered.data.modalities(patient)
    left = observed - set(taken)
    zeros = fill == "zeros" and left & set(run.model.modalities)
    return run.model.refusal(observed if zeros else left)
