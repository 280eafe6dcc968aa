"""The tables of a cohort, read, joined and split as the workflow will do it, in a folder that is thrown away afterwards."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline import study as studies
from pipeline.cohort.followup import read_followup
from pipeline.cohort.patients import build_cohort
from pipeline.cohort.splits import build_splits
from pipeline.cohort.vectors import read_vectors
from pipeline.doctor.findings import FAIL, OK, WARN, Check, Finding, examine, some
from pipeline.errors import InputError, nearest
from pipeline.slides.foreign import list_foreign
from pipeline.slides.listing import list_slides
from pipeline.tables import read_rows, read_table, write_table

PLAUSIBLE_MONTHS = (6, 600)  # of the longest follow-up: else the unit is probably another (our choice)
FEW_EVENTS = 5  # in a test fold, with which its figure means little (our choice)


def listed_slides(study: Mapping[str, Any]) -> pd.DataFrame | None:
    """The slides of the study, or the features made elsewhere, as `list_slides`; None when it has none."""
    if studies.slides_absent(study) is not None:
        return None
    slides, made = study["slides"], studies.made_features(study)
    table = slides["table"] and studies.data_path(study, slides["table"])
    if made:
        return list_foreign(**made, patient_regex=slides["patient_id_pattern"], table=table)
    return list_slides(studies.data_path(study, slides["folder"]), slides["pattern"], slides["patient_id_pattern"], table)


class Intake:
    """The rules `omics_matrix`, `gene_groups`, `bags`, `patients`, `splits` of one study, and the set-up of each model's first fold.

    refused: models that could not be set up; filled by `findings`.
    """

    def __init__(self, study: Mapping[str, Any]) -> None:
        self.study = study
        self.refused: set[str] = set()
        self.folder = Path()
        self.files: dict[str, Any] = {"matrix": None, "groups": None, "manifest": None, "bags": {}}

    def findings(self) -> Iterator[Finding]:
        """What each table holds; then, where all can be read and there is follow-up, who is joined and split how, and which model fails.

        Slides, of which only the list is known yet, are taken for usable. Bags of MRI are not made: their files are looked for.
        Models that need one of the two are not set up.
        """
        if self.study["synthetic"]:
            yield Finding(OK, "tables", "are made by the workflow")
            return
        with tempfile.TemporaryDirectory(prefix="doctor-") as folder:
            self.folder, whole = Path(folder), True
            for finding in examine(self.readings()):
                whole &= finding.status != FAIL
                yield finding
            if whole and self.study["endpoints"]:
                yield from examine(self.joining())

    def readings(self) -> Iterator[Check]:
        if self.study["endpoints"]:
            yield "follow-up", self.followup
        if self.study["omics"]["tables"]:
            yield "omics", self.omics
        if self.study["omics"]["tables"] or self.study["omics"]["groups"]:
            yield "gene groups", self.groups
        for name, spec in studies.tables(self.study).items():
            yield name, lambda name=name, spec=spec: _vectors(name, spec)
        for name, source in studies.bag_sources(self.study).items():
            yield name, lambda name=name, source=source: self.bag(name, source)
        for file in studies.split_files(self.study):
            yield "splits", lambda file=file: _present(file, "Check `splits.file`, `folds`, `first` and `data_dir`.")

    def joining(self) -> Iterator[Check]:
        if not studies.modalities(self.study):  # that no model can run is told with the models
            return
        try:
            slides = listed_slides(self.study)
        except InputError:  # what is wrong with them is told by the checks of slides
            return
        yield "patients", lambda: self.patients(slides)
        if (self.folder / "patients.tsv").is_file():
            yield "splits", self.splits
        if (self.folder / "splits.tsv").is_file():
            yield "models", self.set_up

    def followup(self) -> Iterator[Finding]:
        wanted = studies.endpoint(self.study)
        found = read_followup(**wanted)
        patients, events = found.patients, int(found.patients["event"].sum())
        left_out = f", {len(found.excluded)} left out" if len(found.excluded) else ""
        if studies.kind(self.study) == "binary":
            yield Finding(OK, "follow-up", f"{wanted['file']}: {len(patients)} patients, {events} with label 1{left_out}")
            return
        longest, median = patients["time"].max(), patients["time"].median()
        span = f"followed for up to {longest:,.1f} months (median {median:,.1f})"
        yield Finding(OK, "follow-up", f"{wanted['file']}: {len(patients)} patients, {events} events, {span}{left_out}")
        if not PLAUSIBLE_MONTHS[0] <= longest <= PLAUSIBLE_MONTHS[1]:
            text = f"the longest follow-up is {longest:,.1f} months ({longest / 12:,.1f} years)"
            yield Finding(WARN, "follow-up", text, f"Is the column {wanted['time']!r} in {wanted['unit']}? See `unit` of the endpoint.")

    def omics(self) -> Iterator[Finding]:
        from pipeline.omics.matrix import build_matrix

        specs = studies.omics_tables(self.study)
        faults = list(examine(("omics", lambda spec=spec: _has_column(spec)) for spec in specs))
        yield from faults  # the header of each, before the first one that has none ends it all
        if faults:
            return
        matrix, report = self.folder / "omics.h5", self.folder / "tables.tsv"
        build_matrix(specs, matrix, report)
        self.files["matrix"] = matrix
        for row in read_table(report).fillna("").to_dict("records"):
            unit = f"{row['unit']} ({row['source']})" if row["unit"] != row["source"] else "of unknown unit, kept as they are"
            change = f", made {row['transform']}" if row["transform"] != "none" else ""
            text = f"{row['file']}: {row['patients']} patients, {row['features']} {row['kind']} features, {unit}{change}"
            known = row["unit"] != "unknown"
            yield Finding(OK if known else WARN, "omics", text, "" if known else "State `unit`, so that counts and TPM become logarithms.")

    def groups(self) -> Iterator[Finding]:
        from pipeline.omics.groups import build_groups

        groupings = studies.groupings(self.study)
        if not groupings and self.study["omics"]["groups"]:
            yield Finding(OK, "gene groups", "none of the optional ones is there")
        if self.files["matrix"] is None:
            return
        self.files["groups"] = self.folder / "groups.tsv"
        written = self.files["groups"], self.folder / "coverage.tsv"
        kept, coverage = build_groups(self.files["matrix"], groupings, *written, studies.aliases(self.study))
        for name, rows in coverage.groupby("grouping", sort=False):
            stays = rows["group"].isin(kept.loc[kept["grouping"] == name, "group"])
            share = f"{100 * rows['found'].sum() / max(1, rows['genes'].sum()):.0f} % of their genes are measured"
            left = f": {some(rows.loc[~stays, 'group'])} have too few" if not stays.all() else ""
            yield Finding(OK if stays.all() else WARN, "gene groups", f"{name}: {stays.sum()} of {len(rows)} groups, {share}{left}")

    def bag(self, name: str, source: Mapping[str, Any]) -> Iterator[Finding]:
        if "manifest" in source:
            yield from _mri(name, source)
            return
        from pipeline.cohort.bags import import_bags, read_bags

        output = self.folder / f"{name}.h5"
        import_bags(source["file"], output, **{key: source[key] for key in ("patient_id", "features") if key in source})
        self.files["bags"][name] = output
        sizes = [len(bag) for bag in read_bags(output).values()]
        yield Finding(OK, name, f"{source['file']}: {len(sizes)} patients with {min(sizes)} to {max(sizes)} instances")

    def patients(self, slides: pd.DataFrame | None) -> Iterator[Finding]:
        manifest = None
        if slides is not None:
            manifest = self.folder / "manifest.tsv"
            write_table(slides[["slide_id", "patient_id"]].assign(status="ok", stage="", reason="", remedy=""), manifest)
        cohort = build_cohort(
            studies.endpoint(self.study),
            **{name: self.folder / f"{name}.tsv" for name in ("patients", "flow", "excluded")},
            omics=self.files["matrix"],
            manifest=manifest,
            vectors=studies.tables(self.study),
            bags=self.files["bags"],
            include=studies.included(self.study),
            min_share=self.study["min_share"],
        )
        having = {
            column.removeprefix("has_"): int(cohort.patients[column].sum()) for column in cohort.patients if column.startswith("has_")
        }
        yield Finding(OK, "patients", f"{len(cohort.patients)}: " + ", ".join(f"{count} with {name}" for name, count in having.items()))

    def splits(self) -> Iterator[Finding]:
        patients, scheme = self.folder / "patients.tsv", studies.splits(self.study)
        splits = build_splits(patients, scheme, self.folder / "splits.tsv", self.study["seed"])
        table = read_table(patients)
        tested = splits[splits["set"] == "test"].merge(table[["patient_id", "event"]], on="patient_id")
        sizes = tested.groupby("fold").size()
        counts = pd.crosstab(tested["fold"], tested["event"].astype(int))
        labels = [1, 0] if studies.kind(self.study) == "binary" else [1]
        rarest = min(counts[labels].min())
        never = len(table) - tested["patient_id"].nunique()
        text = f"{scheme['method']}, {len(sizes)} folds: {_span(sizes)} patients tested, {_span(counts[1])} with event"
        yield Finding(OK, "splits", text + (f"; {never} are tested in no fold" if never else ""))
        if rarest < FEW_EVENTS:
            who = "of the rarer label" if len(labels) > 1 else "with event"
            remedy = "Fewer folds or another endpoint would tell more: figures of so few pairs are chance."
            yield Finding(WARN, "splits", f"patients {who} in the smallest test fold: {rarest}", remedy)

    def set_up(self) -> Iterator[Finding]:
        """The first fold of each model whose modalities are at hand, up to its training: what it lacks, every fold would lack."""
        at_hand = {*studies.tables(self.study), *self.files["bags"], *(["omics"] if self.files["matrix"] else [])}
        files = {**self.files, **{name: self.folder / f"{name}.tsv" for name in ("patients", "splits")}}
        try:
            models = studies.models_to_run(self.study)
        except InputError:  # told with the models
            return
        for model in models:
            settings = studies.fold_settings(self.study, model)
            if at_hand.issuperset(settings["modalities"]):
                for fault in examine([("models", lambda settings=settings: _begun(settings, files))]):
                    self.refused.add(model)
                    yield replace(fault, text=f"{model}: {fault.text}")


def _begun(settings: Mapping[str, Any], files: Mapping[str, Any]) -> Sequence[Finding]:
    from pipeline.training.dataset import RawData
    from pipeline.training.fold import Fold

    Fold(settings, 0, RawData.read(files, settings), {"seed": settings["seed"]})
    return ()


def _vectors(name: str, spec: Mapping[str, Any]) -> Iterator[Finding]:
    """A further table; where no columns are listed, with what is not read of it."""
    found = read_vectors(**spec)
    table = read_table(spec["file"], patient_id=spec["patient_id"]).drop(columns="patient_id")
    read = {*found.columns, *(column.partition("=")[0] for column in found.columns)}
    empty = f", {len(found.empty)} more without any value" if found.empty else ""
    unread = [column for column in table if column not in read and not spec.get("columns")]
    left = f"; text of many values is not read: {some(unread)}" if unread else ""
    yield Finding(OK, name, f"{spec['file']}: {len(found.patients)} patients, {len(found.columns)} features{empty}{left}")


def _mri(name: str, source: Mapping[str, Any]) -> Iterator[Finding]:
    from pipeline.imaging.manifest import read_cases

    cases = read_cases(source["manifest"], patient_id=source["patient_id"], sequences=source.get("sequences"))
    pairs = [pair for found in cases.patients.values() for pair in found.values()]
    absent = sorted({str(path) for pair in pairs for path in (pair.image, pair.mask) if not path.is_file()})
    text = f"{source['manifest']}: {len(cases.patients)} patients, {len(pairs)} images of {', '.join(cases.sequences)}"
    yield Finding(OK, name, text)
    if absent:
        yield Finding(WARN, name, f"{len(absent)} files are absent: {some(absent)}", "Paths count from the folder of the table.")


def _has_column(spec: Mapping[str, Any]) -> Sequence[Finding]:
    header = next(iter(read_rows(spec["file"])))
    column = spec.get("patient_id", "patient_id")
    if column in header:
        return ()
    raise InputError(f"lacks the column {column!r}", file=spec["file"], remedy=nearest(column, header))


def _present(file: str, remedy: str) -> Sequence[Finding]:
    if not Path(file).is_file():
        raise InputError("no such file", file=file, remedy=remedy)
    return ()


def _span(counts: pd.Series) -> str:
    low, high = counts.min(), counts.max()
    return f"{low}" if low == high else f"{low}–{high}"
