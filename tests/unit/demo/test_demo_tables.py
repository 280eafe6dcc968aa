import numpy as np
import pandas as pd
import pytest
from sksurv.metrics import concordance_index_censored

from pipeline.demo.plan import make_plan, permutation, slide_ids
from pipeline.demo.tables import write_tables
from pipeline.errors import InputError
from pipeline.files import sha256
from pipeline.tables import read_table

FILES = ["clinical.tsv", "cnv.tsv", "expression.tsv.gz", "families.tsv", "mutation.tsv", "pathways.gmt", "slides.tsv", "truth.tsv"]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cohort")
    write_tables(folder)
    return folder


@pytest.fixture(scope="module")
def null_cohort(tmp_path_factory):
    folder = tmp_path_factory.mktemp("null")
    write_tables(folder, null=True)
    return folder


def table(folder, name):
    frame = read_table(folder / name, patient_id="patient_id").set_index("patient_id")
    return frame.astype({column: float for column in frame.columns if column != "site"})


def gene_sets(folder):
    rows = [line.split("\t") for line in (folder / "pathways.gmt").read_text().splitlines()]
    return {name: (note, genes) for name, note, *genes in rows}


def c_index(follow_up, score):
    return concordance_index_censored(follow_up["event"].astype(bool), follow_up["time_months"], score)[0]


def test_the_folder_holds_the_promised_files_and_nothing_else(cohort):
    assert sorted(path.name for path in cohort.iterdir()) == FILES


def test_the_same_arguments_give_the_same_bytes(cohort, tmp_path):
    write_tables(tmp_path)
    assert {n: sha256(tmp_path / n) for n in FILES} == {n: sha256(cohort / n) for n in FILES}


def test_another_seed_gives_another_cohort(cohort, tmp_path):
    write_tables(tmp_path, seed=2)
    assert all(sha256(tmp_path / n) != sha256(cohort / n) for n in FILES)


def test_clinical_table_holds_plausible_patients(cohort):
    clinical = table(cohort, "clinical.tsv")
    assert list(clinical.columns) == ["age", "sex", "stage", "site", "time_months", "event"]
    assert len(clinical) == 80
    assert set(clinical["sex"]) == set(clinical["event"]) == {0, 1}
    assert set(clinical["stage"]) == {1, 2, 3, 4}
    assert clinical["age"].between(25, 90).all()
    assert clinical["time_months"].between(1, 120).all()
    assert 0.60 <= clinical["event"].mean() <= 0.65


@pytest.mark.parametrize(("name", "genes", "values"), [("cnv.tsv", 120, range(-2, 3)), ("mutation.tsv", 60, range(2))])
def test_counted_tables_hold_their_values(cohort, name, genes, values):
    frame = table(cohort, name)
    assert frame.shape == (74, genes)
    assert set(np.unique(frame)) == set(values)


def test_expression_is_log2_of_two_thousand_genes_in_an_order_of_its_own(cohort):
    expression, clinical = table(cohort, "expression.tsv.gz"), table(cohort, "clinical.tsv")
    assert expression.shape == (74, 2000)
    assert expression.to_numpy().min() >= 0
    assert expression.to_numpy().max() < 20
    present = [patient for patient in clinical.index if patient in expression.index]
    assert sorted(present) == sorted(expression.index)
    assert list(expression.index) != present


def test_six_patients_lack_slides_six_others_lack_all_omics_and_five_have_two_slides(cohort):
    everyone = set(table(cohort, "clinical.tsv").index)
    slides = read_table(cohort / "slides.tsv", ["slide_id", "patient_id", "file"])
    omics = [set(table(cohort, name).index) for name in ("expression.tsv.gz", "cnv.tsv", "mutation.tsv")]
    assert omics[0] == omics[1] == omics[2]
    no_slides, no_omics = everyone - set(slides["patient_id"]), everyone - omics[0]
    assert len(no_slides) == len(no_omics) == 6
    assert not no_slides & no_omics
    assert slides["patient_id"].value_counts().value_counts().to_dict() == {1: 69, 2: 5}
    assert set(slides["patient_id"]) <= everyone
    assert slides["slide_id"].tolist() == slide_ids()
    assert (slides["file"] == "slides/" + slides["slide_id"] + ".svs").all()


def test_families_and_pathways_overlap_and_name_measured_genes(cohort):
    genes = set(table(cohort, "expression.tsv.gz").columns)
    families = read_table(cohort / "families.tsv", ["family", "gene"])
    assert list(families["family"].unique()) == [
        "Tumor Suppressor Genes",
        "Oncogenes",
        "Protein Kinases",
        "Cell Differentiation Markers",
        "Transcription Factors",
        "Cytokines and Growth Factors",
    ]
    assert not families.duplicated().any()
    assert families["gene"].duplicated().any()
    pathways = gene_sets(cohort)
    assert len(pathways) == 50
    assert all(10 <= len(members) <= 60 and len(set(members)) == len(members) for _, members in pathways.values())
    listed = [gene for _, members in pathways.values() for gene in members]
    assert len(set(listed)) < len(listed)
    assert set(listed) | set(families["gene"]) <= genes


def test_g_shows_in_four_pathways_and_nowhere_else(cohort):
    g = table(cohort, "truth.tsv")["g"]
    expression = table(cohort, "expression.tsv.gz")
    strength = expression.corrwith(g.reindex(expression.index)).abs()
    pathways = gene_sets(cohort)
    planted = {name for name, (note, _) in pathways.items() if note == "follows the hidden factor g"}
    means = {name: strength[members].mean() for name, (_, members) in pathways.items()}
    assert len(planted) == 4
    assert min(means[name] for name in planted) > 0.6
    assert max(means[name] for name in set(pathways) - planted) < 0.2
    members = {gene for name in planted for gene in pathways[name][1]}
    for name in ("cnv.tsv", "mutation.tsv"):
        frame = table(cohort, name)
        assert frame.corrwith(g.reindex(frame.index)).abs().mean() < 0.15
    assert strength.drop(list(members)).mean() < 0.15


def test_m_leaves_no_trace_in_the_molecular_tables(cohort):
    m = table(cohort, "truth.tsv")["m"]
    for name in ("expression.tsv.gz", "cnv.tsv", "mutation.tsv"):
        frame = table(cohort, name)
        assert frame.corrwith(m.reindex(frame.index)).abs().mean() < 0.15


def test_planted_factors_reach_their_c_index(cohort):
    truth, clinical = table(cohort, "truth.tsv"), table(cohort, "clinical.tsv")
    assert truth.index.equals(clinical.index)
    assert c_index(clinical, truth["m"]) == pytest.approx(0.70, abs=0.03)
    assert c_index(clinical, truth["g"]) == pytest.approx(0.70, abs=0.03)
    assert c_index(clinical, truth["m"] + truth["g"]) == pytest.approx(0.80, abs=0.03)
    assert c_index(clinical, truth["eta"]) == pytest.approx(0.84, abs=0.02)


@pytest.mark.parametrize("seed", range(1, 6))
def test_large_cohorts_of_any_seed_reach_the_same_c_index(seed):
    plan = make_plan(1000, seed)
    follow_up = {"event": plan.event, "time_months": plan.time}
    assert c_index(follow_up, plan.m) == pytest.approx(0.71, abs=0.03)
    assert c_index(follow_up, plan.g) == pytest.approx(0.71, abs=0.03)
    assert c_index(follow_up, plan.eta) == pytest.approx(0.835, abs=0.02)


def test_factors_are_standardised_and_uncorrelated():
    plan = make_plan(30, seed=9)
    assert np.cov([plan.m, plan.g], ddof=0) == pytest.approx(np.eye(2), abs=1e-12)
    assert plan.m.mean() == pytest.approx(0)


def test_null_cohort_differs_in_follow_up_alone(cohort, null_cohort):
    assert [n for n in FILES if sha256(cohort / n) != sha256(null_cohort / n)] == ["clinical.tsv"]
    real, null = table(cohort, "clinical.tsv"), table(null_cohort, "clinical.tsv")
    pairs = ["time_months", "event"]
    pd.testing.assert_frame_equal(real.drop(columns=pairs), null.drop(columns=pairs))
    assert sorted(map(tuple, real[pairs].to_numpy())) == sorted(map(tuple, null[pairs].to_numpy()))
    assert sorted(permutation(80, 1)) == list(range(80))


def test_null_cohort_hides_no_truth(cohort, null_cohort):
    """One permutation of 49 events leaves a C-index of 0.5 ± 0.05 (standard deviation) by chance; over many it is 0.5."""
    truth, real = table(cohort, "truth.tsv"), table(cohort, "clinical.tsv")
    shuffled = table(null_cohort, "clinical.tsv")
    for factor in ("m", "g", "eta"):
        assert c_index(shuffled, truth[factor]) == pytest.approx(0.5, abs=0.1)
    pairs = ["time_months", "event"]
    many = [real.assign(**dict(zip(pairs, real[pairs].to_numpy()[permutation(80, seed)].T, strict=True))) for seed in range(200)]
    assert np.mean([c_index(one, truth["eta"]) for one in many]) == pytest.approx(0.5, abs=0.015)


def test_too_few_patients_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"too few patients for a synthetic cohort; found '5', expected 24 or more\."):
        write_tables(tmp_path, patients=5)


def test_smallest_cohort_still_has_every_kind_of_patient():
    plan = make_plan(24, seed=3)
    assert (~plan.has_slides).sum() == (~plan.has_omics).sum() == plan.two_slides.sum() == 2
    assert sorted(slide.defect for slide in plan.slides if slide.defect) == ["no scale", "truncated"]
