"""CPU and GPU hours, memory and disk of every rule's jobs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import study as studies
from pipeline.amounts import slide_files
from pipeline.plan.measured import Measured, own_stages, slide_stage
from pipeline.plan.rates import Rates
from pipeline.plan.size import Size
from pipeline.plan.training import Training
from pipeline.slides.encoders.table import encoder_spec

HANDCRAFTED = "stain_texture"
FLOAT32 = 4
FOREIGN_WIDTH = 1024  # features made elsewhere: theirs is not known before they are read (our choice)


@dataclass(frozen=True)
class Stage:
    """The jobs of a rule: CPU and GPU seconds of all together, the seconds of the longest, GB of the largest, bytes that they leave.

    start: CPU seconds of starting them, within `cpu`. threads: of a job. slowest: the model of the longest job. known: the cohorts that it
    was measured on, or "assumed".
    """

    rule: str
    jobs: int
    cpu: float
    longest: float
    peak_gb: float
    gpu: float = 0.0
    disk: float = 0.0
    start: float = 0.0
    threads: int = 1
    slowest: str = ""
    known: str = "assumed"

    def wall(self, cores: int, gpus: int) -> float:
        """Seconds with so many of both, the rule by itself."""
        return max(self.cpu / min(cores, self.jobs * self.threads), self.gpu / max(1, min(gpus, self.jobs)), self.longest)


class Costs:
    """Reckons the stages of one study; `gpus`: whether there is any decides where a network encodes."""

    def __init__(self, study: Mapping[str, Any], size: Size, rates: Rates, results: Path, gpus: int = 0) -> None:
        self.study, self.size, self.rates, self.results = study, size, rates, results
        self.encoder = study["slides"]["encoder"]
        self.takes_gpu = self.encoder != HANDCRAFTED and not study["slides"]["features"] and study["slides"]["device"] != "cpu"
        self.on_gpu = self.takes_gpu and gpus > 0
        self.own = own_stages(results)
        self.training = Training(study, size, rates, self.own)

    def stages(self, jobs: Mapping[str, int]) -> Iterator[Stage]:
        """One a rule of `jobs` (of `count_jobs`), in its order."""
        slides = {"tissue": self.tissue, "patches": self.patches, "features": self.features}
        for rule, count in jobs.items():
            if rule in slides:
                yield slides[rule](count)
            elif rule in ("train_fold", "train_shuffled", "predict_scenarios", "evaluate"):
                yield self._models(rule, count)
            else:
                yield self._other(rule, count)

    def tissue(self, jobs: int) -> Stage:
        grid = self.study["slides"]["patches"]
        step = (grid.get("step") or grid["patch_size"]) * grid["target_mpp"] / 1000
        each = self.rates.of("slides.tissue_s_mm2") * self.size.patches * step**2
        return self._slides("tissue", jobs, each, disk=self.size.slides * slide_files(0, 1, 0))

    def patches(self, jobs: int) -> Stage:
        return self._slides("patches", jobs, self.rates.of("slides.patches_s"), disk=0.0)

    def features(self, jobs: int) -> Stage:
        slides, patches = self.study["slides"], self.size.all_patches
        made = slides["features"] is not None
        width = FOREIGN_WIDTH if made else encoder_spec(self.encoder, self.study["encoders"]).width
        measured = slide_stage(self.results, "features", self.encoder)
        if measured and measured.on_gpu != self.on_gpu:
            measured = None
        start = self.rates.of("start_up.slides")
        if measured:
            cpu, gpu = measured.each(start), measured.each(start, by_wall=True) * self.on_gpu
        elif made:
            cpu, gpu = self.rates.of("slides.patches_s") / max(self.size.patches, 1), 0.0
        else:
            cpu, gpu = self._patch()
        threads = 1 if made else max(slides["threads"], slides["readers"])
        busy = patches * (gpu if self.on_gpu else cpu / threads)
        return self._stage(
            "features",
            jobs,
            patches * cpu,
            start,
            measured,
            gpu=patches * gpu,
            longest=busy / jobs + start,
            peak_gb=self.rates.of("peak_gb.features"),
            disk=slide_files(patches, 0, width),
            threads=threads,
        )

    def _patch(self) -> tuple[float, float]:
        """CPU and GPU seconds of a patch, read and encoded; a GPU encodes while the readers read."""
        slides = self.study["slides"]
        pixels = (slides["patches"]["patch_size"] / 256) ** 2
        if self.encoder == HANDCRAFTED:
            return self.rates.of("encoders.handcrafted_s") * pixels, 0.0
        read, work = pixels / self.rates.of("slides.reading_rate"), self.rates.gflop(self.encoder)
        if self.on_gpu:
            return read, max(work / self.rates.of("encoders.gpu_gflops"), read / slides["readers"])
        return read + work / self.rates.of("encoders.cpu_gflops"), 0.0

    def _slides(self, rule: str, jobs: int, each: float, disk: float) -> Stage:
        measured, start = slide_stage(self.results, rule), self.rates.of("start_up.slides")
        work = self.size.slides * (measured.each(start) if measured else each)
        return self._stage(
            rule, jobs, work, start, measured, longest=work / jobs + start, peak_gb=self.rates.of("peak_gb.slides"), disk=disk
        )

    @staticmethod
    def _stage(rule: str, jobs: int, work: float, start: float, measured: Measured | None, *, peak_gb: float, **more: Any) -> Stage:
        known = f"measured on {', '.join(measured.cohorts)}" if measured else "assumed"
        peak = measured.peak_gb if measured and math.isfinite(measured.peak_gb) else peak_gb
        return Stage(rule, jobs, work + jobs * start, peak_gb=peak, start=jobs * start, known=known, **more)

    def _models(self, rule: str, jobs: int) -> Stage:
        """A stage with jobs for every model, which differ."""
        models = studies.models_to_run(self.study)
        found = [self.training.job(rule, model) for model in models]
        each, folds, disk = jobs / len(models), self._folds(rule), 0.0
        if rule.startswith("train_"):
            disk = folds * sum(self.training.figures(model)["parameters"] for model in models) * 1e6 * FLOAT32
        measured = sum(job.measured for job in found)
        some = f", {measured} of {len(models)} models" * (measured < len(models))
        known = f"measured on {self.results.name}{some}" if measured else "assumed"
        started = [job.seconds * folds if job.measured else job.start * each + (job.seconds - job.start) * folds for job in found]
        longest, slowest = max(zip((job.seconds for job in found), models, strict=True))
        peak, threads = max(job.peak_gb for job in found), max(1, round(folds / each))  # a fold each, while cores idle
        start = each * sum(job.start for job in found)
        return Stage(rule, jobs, sum(started), longest, peak, disk=disk, start=start, slowest=slowest, known=known, threads=threads)

    def _folds(self, rule: str) -> int:
        """What a model's jobs of the rule have to do: folds to train, or the one thing that the rule does."""
        repetitions = {"train_fold": 1, "train_shuffled": self.study["controls"]["shuffled_labels"]}
        return studies.fold_count(self.study) * repetitions[rule] if rule in repetitions else 1

    def _other(self, rule: str, jobs: int) -> Stage:
        parts = [done for stage, done in self.own.items() if stage.split()[0] == rule]
        peak = self.rates.of("peak_gb.other")
        if not parts:
            each = self.rates.of("other_job")
            return Stage(rule, jobs, jobs * each, each, peak)
        each = sum(part.cpu_seconds for part in parts) / sum(part.jobs for part in parts)
        return Stage(rule, jobs, jobs * each, each, max(part.peak_gb for part in parts), known=f"measured on {self.results.name}")
