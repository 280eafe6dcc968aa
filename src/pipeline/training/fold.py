"""One fold, from what the cohort offers to predictions of its held-out patients."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from pipeline.cohort.bins import TimeBins
from pipeline.cohort.record import Labels
from pipeline.errors import InputError
from pipeline.machine import machine_fault
from pipeline.models import build_model
from pipeline.nn.hazards import risk_score, survival
from pipeline.seeds import seed_from
from pipeline.tables import write_table
from pipeline.training.artifacts import inputs_to_dict, save_fold
from pipeline.training.cost import training_seconds
from pipeline.training.dataset import Offered, RawData, offer
from pipeline.training.loop import Trainer
from pipeline.training.protocol import Protocol

log = logging.getLogger(__name__)
FILES = ("predictions.tsv", "history.tsv", "model.safetensors", "model.yaml")  # of a fold
HISTORY = ["epoch", "train_loss", "inner_loss", "inner_c_index", "test_c_index"]


def train_fold(*, settings: Mapping[str, Any], fold: int, raw: RawData, folder: Path, code: str, key: str) -> None:
    """Train `settings["model"]` on fold `fold` and write its four files (`FILES`) into `folder`.

    settings: `study.fold_settings`; with `shuffled`, the number of the repetition on permuted labels. raw: what the model reads. key: what
    all of it depends on, by which a checkpoint in the folder is taken up again.
    A fold that cannot be trained (no event, no patient with the modalities, a loss that diverges) still writes its files: empty tables and
    the reason under `failure` in model.yaml, so that the summary lists it instead of losing the model. A fault of the machine is raised.
    """
    facts: dict[str, Any] = {"model": settings["model"], "cohort": settings["name"], "endpoint": settings["endpoint"], "fold": fold}
    control = ("shuffled", settings["shuffled"]) if "shuffled" in settings else ()
    facts |= {"seed": seed_from(settings["name"], settings["model"], fold, settings["seed"], *control), "code": code, "failure": None}
    checkpoint = folder / "checkpoint.pt"
    try:
        run = Fold(settings, fold, raw, facts)
        history = run.train(checkpoint, key)
        predictions, model = run.predict(), run.model
    except InputError as error:
        if fault := machine_fault(error):
            raise fault from error
        log.error("fold %d failed: %s", fold, error)
        facts["failure"] = str(error)
        history, model = [], None
        predictions = pd.DataFrame(columns=["patient_id", "time", "event", "risk"])
    write_table(pd.DataFrame(history, columns=HISTORY), folder / "history.tsv")
    save_fold(folder / "model.safetensors", folder / "model.yaml", model, facts)
    write_table(predictions, folder / "predictions.tsv")
    checkpoint.unlink(missing_ok=True)


class Fold:
    """The parts of one run; `facts` collects what model.yaml will say."""

    def __init__(self, settings: Mapping[str, Any], fold: int, raw: RawData, facts: dict[str, Any]) -> None:
        self.facts, configured = facts, settings["configured"]
        name, _, variant = settings["model"].partition("+")
        options = {**configured["model"], **settings["options"]}
        self.protocol = protocol_of(configured["training"], settings, f"config/models/{name}.yaml")
        if "wsi" in settings["modalities"] and "wsi" not in raw.bags:
            raise InputError("no patient of the cohort has features of slides")
        train, test = raw.sides(fold)
        if "shuffled" in settings:
            train = permute_labels(train, facts["seed"])
        self.bins = self._fit_bins(raw.patients if self.protocol.bins_from == "cohort" else train, settings)
        self.offered: Offered = offer(raw, settings, train)
        inputs = replace(self.offered.inputs, bins=1 if self.protocol.loss == "cox" else self.bins.count)
        torch.manual_seed(seed_from(facts["seed"], "weights"))
        self.model = build_model(name, inputs, variant or None, **options)
        self.train_rows, _ = self._predictable(train)
        self.test, unpredicted = self._predictable(test)
        if not self.train_rows["event"].any():
            raise InputError(
                f"no patient of the training side with an event has what the model needs ({', '.join(settings['modalities'])})"
            )
        facts |= {"modalities": list(settings["modalities"]), "unpredicted": unpredicted, "time_bins": list(self.bins.edges)}
        facts |= {"params": sum(p.numel() for p in self.model.parameters() if p.requires_grad), "inputs": inputs_to_dict(inputs)}
        facts |= {"options": dict(options), "protocol": dict(vars(self.protocol)), "columns": self.offered.columns}
        facts["scaling"] = {modality: scaler.to_dict() for modality, scaler in self.offered.scaling.items()}

    @staticmethod
    def _fit_bins(reference: pd.DataFrame, settings: Mapping[str, Any]) -> TimeBins:
        if settings["kind"] == "binary":
            return TimeBins.window(reference["time"].iloc[0])
        return TimeBins.fit(reference["time"].to_numpy(), reference["event"].to_numpy(), settings["bins"])

    def _predictable(self, rows: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, str]]:
        """The rows the model can work with, and the others with the reason."""
        reasons = {p: self.model.refusal(self.offered.data.modalities(p)) for p in rows["patient_id"]}
        keep = rows["patient_id"].map(reasons).isna()
        return rows[keep].reset_index(drop=True), {p: why for p, why in reasons.items() if why}

    def labels(self, rows: pd.DataFrame) -> Labels:
        """Labels of the rows; test times beyond the training range fall into the end bins."""
        time, event = rows["time"].to_numpy(float), rows["event"].to_numpy(int)
        return Labels(list(rows["patient_id"]), time, event, self.bins.assign(time), self.bins.edges)

    def train(self, checkpoint: Path, key: str) -> list[dict[str, float]]:
        """Fit the model, from `checkpoint` where it is of the same key; returns the history."""
        train, inner = self.labels(self.train_rows), None
        if self.protocol.selection == "inner":
            train, inner = inner_split(train, self.protocol.inner_share, self.facts["seed"])
        trainer = Trainer(self.model, self.offered.data, self.protocol, self.facts["seed"])
        history = trainer.fit(train, inner, self.labels(self.test), checkpoint, key)
        self.trainer = trainer
        self.facts |= {"epochs": len(history), "selection": self.protocol.selection}
        if self.protocol.epochs:
            self.facts["train_seconds"] = training_seconds(
                self.model, self.offered.data, train.patients, len(history), self.protocol.max_patches_train
            )
        else:  # it has fitted itself: its operations are not counted, and what it learnt is in buffers
            self.facts["params"] = sum(values.numel() for values in self.model.state_dict().values())
        return history

    def predict(self) -> pd.DataFrame:
        """One row a test patient the model can predict, sorted by id."""
        rows = self.test.sort_values("patient_id").reset_index(drop=True)
        times = [f"surv_{t:.6g}" for t in self.bins.edges[1:]]
        if rows.empty:
            return pd.DataFrame(columns=["patient_id", "time", "event", "risk", *times])
        logits = self.trainer.predict(list(rows["patient_id"]))
        risk = risk_score(logits).numpy()
        if self.protocol.loss == "cox":
            known = self.labels(self.train_rows)
            fitted = risk_score(self.trainer.predict(known.patients)).numpy()
            curves = breslow(fitted, known.time, known.event, risk, np.array(self.bins.edges[1:]))
        else:
            curves = survival(logits).numpy()
        return pd.concat([rows[["patient_id", "time", "event"]].assign(risk=risk), pd.DataFrame(curves, columns=times)], axis=1)


def protocol_of(configured: Mapping[str, Any], settings: Mapping[str, Any], file: str) -> Protocol:
    """The model's protocol with the study's `training` block over it.

    A model that fits itself (`epochs: 0`) keeps its own. For a binary label the likelihood of its one time bin is the binary
    cross-entropy only with `alpha` 0. Raises `InputError` for a Cox loss on a binary label, which has no times.
    """
    chosen = {**configured, **({} if configured["epochs"] == 0 else settings["training"])}
    if settings["kind"] == "binary":
        if chosen["loss"] == "cox":
            instead = "Set training.loss to nll" if configured["epochs"] else "Use logistic or forest"  # what fits itself keeps its loss
            remedy = f"{instead}, or choose a survival endpoint."
            raise InputError(f"the Cox loss needs times, but endpoint {settings['endpoint']!r} is a binary label", remedy=remedy)
        chosen["alpha"] = 0.0
    return Protocol.of(chosen, file)


def permute_labels(train: pd.DataFrame, seed: int) -> pd.DataFrame:
    """The control: time and event, together, dealt anew among the training patients; whatever is then found is noise."""
    order = np.random.default_rng(seed_from(seed, "shuffled labels")).permutation(len(train))
    return train.assign(**{column: train[column].to_numpy()[order] for column in ("time", "event")})


def inner_split(labels: Labels, share: float, seed: int) -> tuple[Labels, Labels]:
    """Take `share` of the training side away for early stopping, stratified by event.

    Raises `InputError` when that leaves one of the two without an event (binary: or without a patient who has none), as a loss without
    events would then choose the epoch.
    """
    rng = np.random.default_rng(seed_from(seed, "inner"))
    held = np.zeros(len(labels.patients), dtype=bool)
    for value in (0, 1):
        rows = np.flatnonzero(labels.event == value)
        held[rng.permutation(rows)[: round(share * len(rows))]] = True
    for value in (1,) if len(labels.edges) > 2 else (0, 1):
        part = held[labels.event == value]
        if part.all() or not part.any():
            raise InputError(
                f"too few patients with{'' if value else 'out'} the event to choose the epoch on some of them",
                found=f"{len(part)} in the training fold, of whom a share of {share:g} would be held back",
                expected="at least one on either side",
                remedy="Set training.selection to last, or change training.inner_share.",
            )
    return labels.take(np.flatnonzero(~held)), labels.take(np.flatnonzero(held))


def breslow(train_risk: np.ndarray, time: np.ndarray, event: np.ndarray, risk: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """Survival [P, T] of log-risks `risk` at `grid`, by Breslow's baseline hazard of the training side."""
    weight = np.exp(train_risk - train_risk.max())
    jumps = np.array([1.0 / weight[time >= t].sum() for t in time[event == 1]])
    baseline = np.array([jumps[time[event == 1] <= t].sum() for t in grid])
    return np.exp(-np.outer(np.exp(risk - train_risk.max()), baseline))
