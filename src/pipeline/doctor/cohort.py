"""A cohort: its file, its tables, its slides, the models that will run, and what it will cost."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline import study as studies
from pipeline.doctor import costs
from pipeline.doctor.findings import FAIL, OK, WARN, Check, Finding, examine, some
from pipeline.doctor.intake import Intake, listed_slides
from pipeline.doctor.slides import describe, probe, sample
from pipeline.doctor.weights import Weights
from pipeline.errors import InputError, nearest
from pipeline.slides.encoders.network import EncoderSettings
from pipeline.slides.encoders.table import encoder_spec
from pipeline.slides.foreign import PATIENCE, read_foreign
from pipeline.slides.stages.manifests import FAILED, run_slides
from pipeline.tables import read_table

MRI_ENCODER = "resnet50_cut"  # of bags that state none, as in pipeline.imaging.cases


@dataclass
class Cohort:
    """One cohort under examination; what a check finds out, the next ones use.

    `count`: slides to probe (None: all). `encoder` replaces that of the study.
    """

    name: str
    config: Mapping[str, Any]
    command_line: Mapping[str, Any]
    results: Path
    count: int | None = 50
    encoder: str | None = None
    study: dict[str, Any] | None = None
    weights: Weights | None = None
    probed: pd.DataFrame = field(default_factory=pd.DataFrame)
    refused: set[str] = field(default_factory=set)

    def checks(self) -> Iterator[Check]:
        """In order; those that need the study are left out when its file is unusable."""
        yield "settings", self.settings
        if self.study is not None:
            yield "tables", self.tables
            yield "models", self.models
            yield "encoder", self.mri_weights
            if self.study["slides"].get("features"):
                yield "features", self.features
            elif self.study["synthetic"] or studies.slides_absent(self.study) is None:
                yield "encoder", self.encoder_weights
                yield "slides", self.slides

    def settings(self) -> Iterator[Finding]:
        self.study = studies.load_study(self.config, self.name, self.command_line)
        if self.encoder:
            self.study["slides"]["encoder"] = studies.check_encoder(self.study, self.encoder)
        yield Finding(OK, "settings", f"{self.study['file']} is valid; data in {self.study['data_dir']}")

    def tables(self) -> Iterator[Finding]:
        intake = Intake(self.study)
        yield from intake.findings()
        self.refused = intake.refused

    def models(self) -> Iterator[Finding]:
        study = self.study
        if not study["endpoints"]:
            yield Finding(OK, "models", "none: the cohort has no follow-up, so features are all there will be")
            return
        absent = studies.not_run(study)
        running = [model for model in studies.all_models(study) if model not in {*absent, *self.refused}]
        for model, reason in absent.items():
            yield Finding(WARN, "models", f"{model} {reason}")
        for model in tuple(running):
            for fault in examine([("models", lambda model=model: _settings(study, model))]):
                running.remove(model)
                yield fault
        yield Finding(OK if running else FAIL, "models", f"{', '.join(running) or 'none'} will run")

    def features(self) -> Iterator[Finding]:
        """Features that were made elsewhere: a sample of the files is read."""
        listed, folder = listed_slides(self.study), studies.made_features(self.study)["folder"]
        with tempfile.TemporaryDirectory() as at:  # in a process of its own, as the slides
            manifest = Path(at) / "doctor.tsv"
            run_slides("doctor", sample(listed, self.count), _width, ["width"], manifest, PATIENCE)
            table = read_table(manifest)
        broken, widths = table[table["status"] == FAILED], table["width"].dropna().value_counts()
        text = f"{len(listed)} slides in {folder}, {len(table)} read, {len(table) - len(broken)} without a problem"
        yield Finding(FAIL if len(broken) == len(table) else OK, "features", text)
        if len(broken):
            first = broken.iloc[0]
            yield Finding(WARN, "features", f"{len(broken)} cannot be used: {some(broken['slide_id'])}. {first['reason']}", first["remedy"])
        if len(widths) > 1:
            found = ", ".join(f"{count} of width {width}" for width, count in widths.items())
            yield Finding(WARN, "features", found, "Slides of another width than most are left out: name one encoder's folder.")

    def encoder_weights(self) -> Iterator[Finding]:
        slides = self.study["slides"]
        how = {key: slides[key] for key in ("device", "precision", "batch_size", "threads") if key in slides}
        settings = EncoderSettings(**how, compile=False)  # it takes half a minute
        self.weights = Weights(encoder_spec(slides["encoder"], self.study["encoders"]), settings)
        yield from self.weights.check()

    def mri_weights(self) -> Iterator[Finding]:
        """The encoders of bags that are made from MRI."""
        for source in studies.bag_sources(self.study).values():
            if "manifest" in source and source.get("rows") != "volume":
                yield from Weights(encoder_spec(source.get("encoder", MRI_ENCODER), self.study["encoders"])).check()

    def slides(self) -> Iterator[Finding]:
        """List, probe a sample, measure, and reckon up."""
        study = self.study
        slides = {**study["slides"], "masks": studies.masks(study)}
        table = slides["table"]
        if study["synthetic"] and not (table and Path(studies.data_path(study, table)).is_file()):
            yield Finding(OK, "slides", "are made by the workflow")
            return
        listed = listed_slides(study)
        self.probed = probe(sample(listed, self.count), slides)
        yield from describe(self.probed, len(listed))
        rates = costs.measure(self.probed, slides, self.weights)
        width = self.weights.spec.width if self.weights else 0
        yield from costs.estimate(self.probed, len(listed), rates, slides, width, self.results)


def _width(row: Mapping[str, Any]) -> dict[str, object]:
    return {"width": read_foreign(Path(row["path"])).features.shape[1]}


def _settings(study: Mapping[str, Any], model: str) -> Iterator[Finding]:
    """A finding where the study's `options` or `training` hold what the model does not know: every fold of it would fail."""
    from pipeline.training.fold import protocol_of

    settings = studies.fold_settings(study, model)
    configured = settings["configured"]
    for option in settings["options"]:
        if option not in (known := configured["model"]):
            problem, expected = f"unknown option of {model}", "one of " + ", ".join(known)
            raise InputError(problem, file=study["file"], found=option, expected=expected, remedy=nearest(option, known))
    protocol_of(configured["training"], settings, study["file"])
    yield from ()
