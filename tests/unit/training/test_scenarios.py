"""Trained folds on test patients who lack modalities: real models, trained for two epochs on forty patients."""

import dataclasses
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from tests.support.small_cohort import SmallCohort

from pipeline import study as studies
from pipeline.cohort.loader import BagStore, CohortData
from pipeline.errors import InputError
from pipeline.models import build_model
from pipeline.models.interface import Inputs
from pipeline.tables import read_table
from pipeline.training import scenarios
from pipeline.training.fold import train_fold
from pipeline.training.scenarios import COLUMNS, NOT_FINITE, conditions, lost, predict_scenarios, rebuild, without

TAKEN = [{"name": "without wsi", "without": "wsi"}, {"name": "without omics", "without": "omics"}, {"name": "drop 0.4", "drop": 0.4}]
MISSING = {"scenarios": TAKEN, "fill": "native", "draws": 3}
MULTIMODAL = ("mcat", "survq")


class Cohort(SmallCohort):
    """The small cohort, and what its trained models predict."""

    def predict(self, model: str, folders: list[Path] | None = None, **changes) -> pd.DataFrame:
        """``scenarios.tsv`` of the model, read as text with empty cells."""
        output, missing = self.root / "scenarios.tsv", MISSING | changes
        chosen = folders or self.folders(model)
        predict_scenarios(settings=self.settings(model), missing=missing, folds=chosen, files=self.files, output=output)
        return read_table(output, COLUMNS).fillna("")

    def rebuilt(self, model: str):
        folder = self.folders(model)[0]
        return rebuild(self.settings(model), folder, self.raw(model), yaml.safe_load((folder / "model.yaml").read_text()))


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Cohort:
    return Cohort(tmp_path_factory.mktemp("lacking"))


def risks(table: pd.DataFrame) -> dict[tuple[str, str], str]:
    """Of those who have one, as it is written."""
    return {(row.fold, row.patient_id): row.risk for row in table.itertuples() if row.risk}


@pytest.mark.parametrize("fill", ["native", "zeros"])
@pytest.mark.parametrize("model", MULTIMODAL)
def test_patients_who_lose_nothing_have_the_bits_of_the_ordinary_prediction(cohort, model, fill):
    found = cohort.predict(model, scenarios=[{"name": "without clinical", "without": "clinical"}], fill=fill)
    ordinary = [read_table(folder / "predictions.tsv").assign(fold=str(k)) for k, folder in enumerate(cohort.folders(model))]
    assert set(found.lacks) == {"clinical"}
    assert set(found.reason) == {""}
    assert risks(found) == risks(pd.concat(ordinary))


@pytest.mark.parametrize("fill", ["native", "zeros"])
@pytest.mark.parametrize("taken", ["wsi", "omics"])
@pytest.mark.parametrize("model", MULTIMODAL)
def test_what_was_taken_is_not_looked_at(cohort, model, taken, fill):
    """Noise in place of the taken modality changes nothing; in the full record it changes the risks."""
    run, trainer = cohort.rebuilt(model)
    patients = sorted(p for p in run.test.patient_id if run.offered.data.modalities(p) == {"wsi", "omics"})
    data, rng = run.offered.data, np.random.default_rng(0)
    slides = {p: [rng.normal(size=x.shape).astype(x.dtype) for x in arrays] for p, arrays in data.bags["wsi"].slides.items()}
    rows, values = data.vectors["omics"]
    noise = {
        "wsi": dataclasses.replace(data, bags={"wsi": dataclasses.replace(data.bags["wsi"], slides=slides)}),
        "omics": dataclasses.replace(data, vectors={"omics": (rows, rng.normal(size=values.shape).astype(np.float32))}),
    }[taken]

    def predicted(of: CohortData) -> torch.Tensor:
        trainer.data = of
        return trainer.predict(patients)

    assert torch.equal(predicted(without(data, {taken}, fill)), predicted(without(noise, {taken}, fill)))
    assert not torch.allclose(predicted(data), predicted(noise), atol=1e-4)


@pytest.mark.parametrize("taken", ["wsi", "omics"])
@pytest.mark.parametrize("model", MULTIMODAL)
def test_a_native_scenario_is_the_record_without_the_modality(cohort, model, taken):
    run, _ = cohort.rebuilt(model)
    patients = sorted(p for p in run.test.patient_id if run.offered.data.modalities(p) == {"wsi", "omics"})
    run.model.eval()
    with torch.no_grad():
        left_out = run.model(without(run.offered.data, {taken}, "native").batch(patients)).logits
        emptied = run.model(run.offered.data.batch(patients).without(taken)).logits
    torch.testing.assert_close(left_out, emptied, atol=1e-5, rtol=1e-5)


def small_data(lengths: list[int]) -> tuple[CohortData, Inputs]:
    """Patients P0, P1, … of the same genes with bags of the given lengths."""
    rng = np.random.default_rng(1)
    genes = np.repeat(rng.normal(size=(1, 10)).astype(np.float32), len(lengths), axis=0)
    slides = {f"P{i}": [rng.normal(size=(n, 6)).astype(np.float32)] for i, n in enumerate(lengths)}
    rows = {patient: i for i, patient in enumerate(slides)}
    data = CohortData({"omics": (rows, genes)}, {"families": np.arange(10)}, {"wsi": BagStore(6, slides)})
    return data, Inputs(bags={"wsi": 6}, vectors={"omics": 10}, groups={"families": (6, 4)})


def test_zeros_keep_shapes_masks_and_flags():
    data, _ = small_data([3, 5])
    full, zeroed = data.batch(["P0", "P1"]), without(data, {"wsi", "omics"}, "zeros").batch(["P0", "P1"])
    assert torch.equal(zeroed.bags["wsi"].mask, full.bags["wsi"].mask)
    assert zeroed.bags["wsi"].features.shape == full.bags["wsi"].features.shape
    assert not zeroed.bags["wsi"].features.any()
    assert not zeroed.vectors["omics"].any()
    assert not zeroed.groups["families"].any()
    assert all(flags.all() for flags in zeroed.present.values())
    assert full.vectors["omics"].all(), "the data itself is untouched"


def test_a_native_patient_has_neither_the_modality_nor_its_flag():
    data, _ = small_data([3, 5])
    view = without(data, {"omics"}, "native")
    assert (view.modalities("P0"), view.batch(["P0"]).modalities(0)) == ({"wsi"}, {"wsi"})
    assert view.batch(["P0"]).groups == {}
    assert data.modalities("P0") == {"wsi", "omics"}


def test_under_zeros_patients_of_equal_genes_and_bag_length_have_one_risk():
    data, inputs = small_data([5, 5])
    model = build_model("survq", inputs, groups="families", n_query_h=4, n_query_g=3).eval()
    assert len(set(model(without(data, {"wsi"}, "zeros").batch(["P0", "P1"])).logits.sum(1).tolist())) == 1
    assert len(set(model(data.batch(["P0", "P1"])).logits.sum(1).tolist())) == 2


def test_under_zeros_the_length_of_the_bag_does_not_reach_mcat():
    data, inputs = small_data([2, 50])
    model = build_model("mcat", inputs).eval()
    first, second = model(without(data, {"wsi"}, "zeros").batch(["P0", "P1"])).logits
    torch.testing.assert_close(first, second, atol=1e-5, rtol=1e-5)


def test_training_never_takes_anything_away(cohort, tmp_path, monkeypatch):
    def never(*_, **__):
        raise AssertionError("called in training")

    monkeypatch.setattr(scenarios.Zeroed, "batch", never)
    monkeypatch.setattr(scenarios, "without", never)
    monkeypatch.setattr(scenarios, "lost", never)
    train_fold(settings=cohort.settings("mcat"), fold=0, raw=cohort.raw("mcat"), folder=tmp_path, code="test", key="test")
    assert (tmp_path / "predictions.tsv").read_bytes() == (cohort.folders("mcat")[0] / "predictions.tsv").read_bytes()


def test_one_checkpoint_serves_all_scenarios_and_stays_as_it_is(cohort):
    folders = cohort.folders("survq")
    before = {path: path.read_bytes() for folder in folders for path in folder.iterdir()}
    first = cohort.predict("survq")
    assert {path: path.read_bytes() for folder in folders for path in folder.iterdir()} == before
    assert first.equals(cohort.predict("survq")), "and the same bytes come out again"


def test_every_test_patient_has_a_row_in_each_draw(cohort):
    table, splits = cohort.predict("mcat"), read_table(cohort.files["splits"])
    tested = sorted(zip(splits.fold, splits.patient_id, splits.set, strict=True))
    tested = [(fold, patient) for fold, patient, side in tested if side == "test"]
    draws = {key: sorted(zip(part.fold, part.patient_id, strict=True)) for key, part in table.groupby(["scenario", "draw"])}
    assert Counter(scenario for scenario, _ in draws) == {"without wsi": 1, "without omics": 1, "drop 0.4": 3}
    assert all(rows == tested for rows in draws.values())
    assert ((table.risk == "") == (table.reason != "")).all()
    assert set(table.fill) == {"native"}


def test_who_loses_the_only_modality_is_listed_with_the_reason(cohort):
    table = cohort.predict("mcat")
    assert set(table.reason) == {"", "has none of wsi, omics"}
    assert (table.risk[table.scenario == "without omics"] == "").sum() == 5, "those who had genes only"
    assert (table.risk[table.scenario == "without wsi"] == "").sum() == 3, "those who had a slide only"
    for fill in ("native", "zeros"):
        single = cohort.predict("snn", fill=fill)
        assert set(single.reason[single.scenario == "without omics"]) == {"lacks omics"}
        assert (single.reason[single.scenario == "without wsi"] == "lacks omics").sum() == 3


def test_all_models_lose_the_same(cohort):
    keys = ["scenario", "draw", "fold", "patient_id", "lacks"]
    assert cohort.predict("snn")[keys].equals(cohort.predict("mcat")[keys])


def test_a_patient_is_predicted_once_for_what_is_left_of_him(cohort):
    table = cohort.predict("mcat", draws=10)
    table = table[table.risk != ""]
    taken = [";".join(m for m in lacks.split(";") if m != "clinical") for lacks in table.lacks]
    one = table.assign(taken=taken).groupby(["patient_id", "taken"]).risk.nunique()
    assert (one == 1).all()
    assert len(one) < len(table) / 2


def test_a_failed_fold_is_listed(cohort, tmp_path):
    folders = [tmp_path / f"fold{k}" for k in range(2)]
    for source, folder in zip(cohort.folders("snn"), folders, strict=True):
        shutil.copytree(source, folder)
    facts = yaml.safe_load((folders[1] / "model.yaml").read_text())
    (folders[1] / "model.yaml").write_text(yaml.safe_dump(facts | {"failure": "the loss\nbecame nan"}))
    table = cohort.predict("snn", folders)
    assert set(table.reason[table.fold == "1"]) == {"the fold failed: the loss became nan"}
    assert set(table.risk[table.fold == "1"]) == {""}
    assert (table.risk[(table.fold == "0") & (table.scenario == "without wsi")] != "").any()


def test_a_risk_that_is_not_finite_is_said_and_not_dropped(cohort, monkeypatch):
    monkeypatch.setattr(scenarios.Trainer, "predict", lambda self, patients: torch.full((len(patients), 4), torch.nan))
    table = cohort.predict("snn")
    assert set(table.reason[table.scenario == "without wsi"]) == {NOT_FINITE, "lacks omics"}
    assert set(table.risk) == {""}


@pytest.mark.parametrize("change", [{"scaling": {}}, {"columns": {"omics": ["TP53_rnaseq"]}}, {"time_bins": [0.0, 1.0]}])
def test_a_fold_trained_on_other_inputs_is_refused(cohort, tmp_path, change):
    shutil.copytree(cohort.folders("snn")[0], tmp_path / "fold0")
    facts = yaml.safe_load((tmp_path / "fold0/model.yaml").read_text())
    (tmp_path / "fold0/model.yaml").write_text(yaml.safe_dump(facts | change))
    with pytest.raises(InputError, match=f"trained on other inputs than these; found 'another {next(iter(change))}'"):
        cohort.predict("snn", [tmp_path / "fold0"])


@pytest.mark.parametrize("model", ["coxnet+clinical", "rsf"])
def test_a_model_that_fitted_itself_is_restored_from_its_buffers(cohort, model):
    found = cohort.predict(model, scenarios=TAKEN[:1])
    ordinary = [read_table(folder / "predictions.tsv").assign(fold=str(k)) for k, folder in enumerate(cohort.folders(model))]
    assert risks(found) == risks(pd.concat(ordinary))


# --- who loses what ---

OBSERVED = {"wsi", "omics", "clinical"}


def test_somebody_always_keeps_one_modality_and_each_is_kept_as_often():
    kept = Counter(tuple(OBSERVED - lost({"drop": 0.95}, OBSERVED, ("s", 1, 0, f"P{i}", 0))) for i in range(3000))
    assert () not in kept
    alone = [kept[(modality,)] for modality in OBSERVED]
    assert sum(alone) > 2500
    assert max(alone) - min(alone) < 150
    assert lost({"drop": 0.99}, {"omics"}, ("s",)) == frozenset()
    assert lost({"drop": 0.99}, set(), ("s",)) == frozenset()


def test_modalities_are_dropped_independently_with_the_probability():
    many = [f"m{i}" for i in range(8)]  # of eight, the one that is kept hardly counts
    dropped = np.array([[m in lost({"drop": 0.4}, many, (patient, 0)) for m in many] for patient in range(4000)])
    np.testing.assert_allclose(dropped.mean(0), 0.4, atol=0.03)
    assert np.abs(np.corrcoef(dropped.T) - np.eye(8)).max() < 0.06


def test_draws_depend_on_study_fold_patient_draw_and_probability():
    def masks(*key: object, p: float = 0.4) -> list[frozenset[str]]:
        return [lost({"drop": p}, OBSERVED, (*key, f"P{i}", 0)) for i in range(40)]

    ours = masks("study", 1, 0)
    assert ours == masks("study", 1, 0)
    assert all(ours != other for other in (masks("study", 2, 0), masks("study", 1, 1), masks("other", 1, 0), masks("study", 1, 0, p=0.41)))


def test_only_what_a_patient_has_is_taken():
    test = pd.DataFrame({"patient_id": ["A", "B"], "time": [1.0, 2.0], "event": [1, 0], "has_wsi": ["0", "1"], "has_omics": ["1", "1"]})
    rows = conditions(test, TAKEN, 2, ("s", 1, 0))
    assert len(rows) == 2 + 2 + 4
    taken = {(scenario, patient): lacks for scenario, patient, lacks in zip(rows.scenario, rows.patient_id, rows.lacks, strict=True)}
    assert taken[("without wsi", "A")] == frozenset()
    assert taken[("without wsi", "B")] == {"wsi"}
    assert taken[("drop 0.4", "A")] == frozenset()


# --- what a study asks for ---


def asked(cohort: Cohort, **missing) -> dict:
    return studies.missing(cohort.study | {"missing": {"fill": "native", "draws": 10} | missing})


def test_scenarios_are_named_by_what_they_take(cohort):
    found = asked(cohort, scenarios=[{"without": "clinical"}, {"drop": 0.4}])
    assert found["scenarios"] == [{"name": "without clinical", "without": "clinical"}, {"name": "drop 0.4", "drop": 0.4}]


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        ([{"without": "omic"}], r"unknown modality 'omic' under missing.scenarios.*wsi, omics, clinical.*Did you mean 'omics'"),
        ([{"drop": 0.4}, {"drop": 0.40}], "a scenario is listed twice under missing.scenarios; found 'drop 0.4, drop 0.4'"),
        ([], "asks for no scenario of missing modalities.*List some under missing.scenarios"),
    ],
)
def test_scenarios_that_make_no_sense_are_refused(cohort, listed, message):
    with pytest.raises(InputError, match=message):
        asked(cohort, scenarios=listed)
