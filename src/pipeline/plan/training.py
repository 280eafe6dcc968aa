"""What the jobs of a model cost: training a fold, predicting scenarios, evaluating."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from pipeline import study as studies
from pipeline.models.registry import load_model_config
from pipeline.plan.measured import Measured
from pipeline.plan.rates import Rates
from pipeline.plan.size import Size

STAGES = {  # of `pipeline.report.resources`, by rule
    "train_fold": "train {}",
    "train_shuffled": "train {}, permuted labels",
    "predict_scenarios": "predict_scenarios {}",
    "evaluate": "evaluate {}",
}
# Patients of a step where a model states none, and what a pass holds at most and costs on a CPU, in patches (pipeline.training.protocol)
BATCH, PASS, PASS_COST = 32, 8_000, 512


@dataclass(frozen=True)
class Job:
    """CPU seconds of a job, of training those of one fold; the start-up within them, GB of memory, and whether an earlier run told."""

    seconds: float
    start: float
    peak_gb: float
    measured: bool = False


class Training:
    """Costs of the models of one study; `own`: what the cohort's earlier run took (`measured.own_stages`)."""

    def __init__(self, study: Mapping[str, Any], size: Size, rates: Rates, own: Mapping[str, Measured]) -> None:
        self.study, self.size, self.rates, self.own = study, size, rates, own
        self.tested = size.patients * _test_share(study)

    def job(self, rule: str, model: str) -> Job:
        """A job of `rule` for `model`: as an earlier run of this cohort took it, else by the rates."""
        start = self.rates.of("start_up.analysis" if rule == "evaluate" else "start_up.training")
        done = self.own.get(STAGES[rule].format(model))
        if done is None and rule == "train_shuffled":  # the same on other labels
            done = self.own.get(STAGES["train_fold"].format(model))
        if done is not None:
            return Job(done.cpu_seconds / done.jobs, start, done.peak_gb if math.isfinite(done.peak_gb) else 0.0, measured=True)
        if rule == "evaluate":
            replicates = self.study["evaluation"]["bootstrap"] / 1000
            work = self.rates.of("evaluation.patient_s") * self.size.patients * replicates
            return Job(start + work, start, self.rates.of("peak_gb.other"))
        return self._network(rule, model, start)

    def _network(self, rule: str, model: str, start: float) -> Job:
        protocol, figures, patches = self.protocol(model), self.figures(model), self._patches(model)
        bag, shown = (min(patches, protocol.get(f"max_patches_{of}") or math.inf) for of in ("train", "eval"))
        together = _together(protocol, bag)
        peak = figures["peak_gb"][0] + figures["peak_gb"][1] * together * bag / 1000
        predict = figures["predict"][0] / _together(protocol, shown) + figures["predict"][1] * shown / 1000
        if rule == "predict_scenarios":
            scenarios, draws = self.study["missing"]["scenarios"], self.study["missing"]["draws"]
            times = 1 + sum(draws if "drop" in scenario else 1 for scenario in scenarios)
            return Job(start + times * studies.fold_count(self.study) * self.tested * predict, start, peak)
        trained = self.size.patients - self.tested
        if protocol["epochs"] == 0:
            return Job(start + self.rates.of("training.fit_s") * trained, start, peak)
        step = figures["step"][0] / together + figures["step"][1] * bag / 1000
        return Job(start + protocol["epochs"] * (trained * step + self.tested * predict), start, peak)

    def protocol(self, model: str) -> dict[str, Any]:
        """The model's `training` block with the study's over it, as `pipeline.training.fold` takes it."""
        configured = _configured(model, self.study["name"])
        return configured | (self.study["training"] if configured["epochs"] else {})

    def figures(self, model: str) -> dict[str, Any]:
        """What `Rates.model` says of it."""
        return self.rates.model(model.partition("+")[0], fitted=self.protocol(model)["epochs"] == 0)

    def _patches(self, model: str) -> float:
        """Patches of a patient; none for a model that reads no slides."""
        return self.size.all_patches / max(self.size.patients, 1) if "wsi" in studies.model_needs(self.study, model) else 0.0


@cache
def _configured(model: str, preset: str) -> dict[str, Any]:
    """The `training` block of the model's file, read once a process. Not to be changed."""
    name, _, variant = model.partition("+")
    return load_model_config(name, variant or None, preset=preset)["training"]


def _together(protocol: Mapping[str, Any], patches: float) -> float:
    """Patients of a pass: those of a step, as far as their patches fit one and their bags are alike.

    Bags of n patients that are laid out by length differ by some 2.5 × the median ÷ n from the next (lognormal, σ = 1); a group of g wastes
    about g²/2 such differences, which pays up to the cost of a pass.
    """
    patients = protocol.get("batch_size", BATCH)
    if not patches:
        return patients
    fit = max(1.0, (protocol.get("max_patches_pass") or PASS) / patches)
    return min(patients, fit, max(1.0, math.sqrt(0.8 * PASS_COST * patients / patches)))


def _test_share(study: Mapping[str, Any]) -> float:
    """Share of the patients that a fold tests; imported lists are taken for an even deal."""
    scheme = study["splits"]
    return scheme["test_share"] if scheme["scheme"] == "monte_carlo" or scheme["folds"] == 1 else 1 / scheme["folds"]
