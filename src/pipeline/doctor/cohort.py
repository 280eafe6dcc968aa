"""A cohort: its file, its tables, its slides, the models that will run, and what it will cost."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline import study as studies
from pipeline.cohort.followup import read_followup
from pipeline.doctor import costs
from pipeline.doctor.findings import FAIL, OK, WARN, Check, Finding, some
from pipeline.doctor.slides import describe, probe, sample
from pipeline.doctor.weights import Weights
from pipeline.errors import InputError, nearest
from pipeline.slides.encoders.network import EncoderSettings
from pipeline.slides.encoders.table import encoder_spec
from pipeline.slides.foreign import PATIENCE, list_foreign, read_foreign
from pipeline.slides.listing import list_slides
from pipeline.slides.stages.manifests import FAILED, run_slides
from pipeline.tables import read_rows, read_table


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

    def checks(self) -> Iterator[Check]:
        """In order; those that need the study are left out when its file is unusable."""
        yield "settings", self.settings
        if self.study is not None:
            yield "tables", self.tables
            yield "models", self.models
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
        """Every table that the study names: there, readable, and with its id column."""
        study = self.study
        if study["synthetic"]:
            yield Finding(OK, "tables", "are made by the workflow")
            return
        if study["endpoints"]:
            yield from _told("follow-up", self._followup)
        plain = [("omics", t["file"], "patient_id") for t in studies.omics_tables(study)]
        plain += [(name, t["file"], t["patient_id"]) for name, t in studies.tables(study).items()]
        plain += [("include", condition["table"], condition["column"]) for condition in studies.included(study)]
        for kind, file, column in plain:
            yield from _told(kind, lambda file=file, column=column: _header(file, column))
        if study["omics"]["groups"]:
            yield from _told("gene groups", lambda: ", ".join(studies.groupings(study)) or "none of the optional ones is there")
        for file in studies.split_files(study):
            if not Path(file).is_file():
                yield Finding(FAIL, "splits", f"{file}: no such file", "Check `splits.file` and `data_dir`.")

    def _followup(self) -> str:
        wanted = studies.endpoint(self.study)
        found = read_followup(**wanted)
        left_out = f", {len(found.excluded)} left out" if len(found.excluded) else ""
        return f"{wanted['file']}: {len(found.patients)} patients{left_out}"

    def models(self) -> Iterator[Finding]:
        study = self.study
        if not study["endpoints"]:
            yield Finding(OK, "models", "none: the cohort has no follow-up, so features are all there will be")
            return
        absent = studies.not_run(study)
        running = [model for model in studies.all_models(study) if model not in absent]
        for model, reason in absent.items():
            yield Finding(WARN, "models", f"{model} {reason}")
        yield Finding(OK if running else FAIL, "models", f"{', '.join(running) or 'none'} will run")

    def features(self) -> Iterator[Finding]:
        """Features that were made elsewhere: a sample of the files is read."""
        slides, made = self.study["slides"], studies.made_features(self.study)
        table = slides["table"] and studies.data_path(self.study, slides["table"])
        folder = made["folder"]
        listed = list_foreign(**made, patient_regex=slides["patient_id_pattern"], table=table)
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

    def slides(self) -> Iterator[Finding]:
        """List, probe a sample, measure, and reckon up."""
        study = self.study
        slides = {**study["slides"], "masks": studies.masks(study)}
        table = slides["table"] and studies.data_path(study, slides["table"])
        if study["synthetic"] and not (table and Path(table).is_file()):
            yield Finding(OK, "slides", "are made by the workflow")
            return
        listed = list_slides(studies.data_path(study, slides["folder"]), slides["pattern"], slides["patient_id_pattern"], table)
        self.probed = probe(sample(listed, self.count), slides)
        yield from describe(self.probed, len(listed))
        rates = costs.measure(self.probed, slides, self.weights)
        width = self.weights.spec.width if self.weights else 0
        yield from costs.estimate(self.probed, len(listed), rates, slides, width, self.results)


def _width(row: Mapping[str, Any]) -> dict[str, object]:
    return {"width": read_foreign(Path(row["path"])).features.shape[1]}


def _told(subject: str, look: Any) -> Iterator[Finding]:
    """What `look` returns, or why it could not."""
    try:
        yield Finding(OK, subject, look())
    except InputError as error:
        yield Finding(FAIL, subject, error.reason, error.remedy)


def _header(file: str, column: str) -> str:
    header = next(iter(read_rows(file)))
    if column not in header:
        raise InputError(f"lacks the column {column!r}", file=file, remedy=nearest(column, header))
    return f"{file}: {len(header) - 1} columns"
