import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import tables
from pipeline.cohort.patients import build_cohort
from pipeline.errors import InputError
from pipeline.omics.matrix import build_matrix

FOLLOWUP = [("P1", "10", "1"), ("P2", "20", "0"), ("P3", "", "1"), ("P4", "5", "1"), ("P5", "6", "0")]
OMICS = ["P1", "P3", "P5", "X9"]
SLIDES = [("S1", "P1", "ok"), ("S0", "P1", "ok"), ("S2", "P2", "ok"), ("S4", "P4", "failed"), ("S5", "P5", "failed"), ("S9", "X9", "ok")]


def inputs(folder, followup=FOLLOWUP, omics=OMICS, slides=SLIDES):
    options = {"patients": folder / "patients.tsv", "flow": folder / "flow.tsv", "excluded": folder / "excluded.tsv"}
    tables.write_table(pd.DataFrame(followup, columns=["patient_id", "os", "dead"]), folder / "followup.tsv")
    if omics is not None:
        tables.write_table(pd.DataFrame({"patient_id": omics, "A": 1.5}), folder / "rna.tsv")
        build_matrix([{"file": folder / "rna.tsv", "kind": "rnaseq"}], folder / "omics.h5")
        options["omics"] = folder / "omics.h5"
    if slides is not None:
        manifest = pd.DataFrame(slides, columns=["slide_id", "patient_id", "status"])
        failed = manifest["status"] == "failed"
        manifest["stage"], manifest["reason"] = failed.map({True: "tissue", False: ""}), failed.map({True: "cannot be opened", False: ""})
        manifest["remedy"] = failed.map({True: "Copy it again.", False: ""})
        tables.write_table(manifest, folder / "manifest.tsv")
        options["manifest"] = folder / "manifest.tsv"
    return {"file": folder / "followup.tsv", "time": "os", "event": "dead"}, options


def test_the_cohort_holds_everyone_with_follow_up_and_a_modality(tmp_path):
    followup, options = inputs(tmp_path)
    build_cohort(followup, **options)
    assert (tmp_path / "patients.tsv").read_text() == (
        "patient_id\ttime\tevent\thas_wsi\thas_omics\tslides\nP1\t10\t1\t1\t1\tS0;S1\nP2\t20\t0\t1\t0\tS2\nP5\t6\t0\t0\t1\t\n"
    )


def test_the_flow_adds_up(tmp_path):
    followup, options = inputs(tmp_path)
    flow = build_cohort(followup, **options).flow
    assert flow.to_numpy().tolist() == [
        ["in the follow-up table", 5, 0, ""],
        ["with usable follow-up", 4, 1, "time or event missing"],
        ["with at least one modality", 3, 1, "no usable wsi or omics"],
    ]
    assert (flow["patients"].shift() - flow["dropped"]).iloc[1:].tolist() == flow["patients"].iloc[1:].tolist()


def test_everything_left_out_is_listed_with_stage_reason_and_remedy(tmp_path):
    followup, options = inputs(tmp_path)
    build_cohort(followup, **options)
    text = (tmp_path / "excluded.tsv").read_text().replace(f"{tmp_path}/", "")
    assert text == (
        "kind\tid\tstage\treason\tremedy\n"
        "slide\tS4\ttissue\tcannot be opened\tCopy it again.\n"
        "slide\tS5\ttissue\tcannot be opened\tCopy it again.\n"
        "patient\tP3\tfollow-up\tfollowup.tsv, row 4, column 'os': cell is empty; expected months of follow-up.\t"
        "Fill in the cell to include the patient.\n"
        "patient\tP4\tcohort\t1 of 1 listed slides failed, no omics\tMend or add data of the patient.\n"
        "patient\tX9\tcohort\thas data but is not in the follow-up table\tAdd the patient to the follow-up table.\n"
    )


def test_a_cohort_without_slides_and_one_without_omics(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    followup, options = inputs(tmp_path / "a", slides=None)
    cohort = build_cohort(followup, **options)
    assert list(cohort.patients.columns) == ["patient_id", "time", "event", "has_omics", "slides"]
    assert cohort.patients["patient_id"].tolist() == ["P1", "P5"]
    followup, options = inputs(tmp_path / "b", omics=None)
    cohort = build_cohort(followup, **options)
    assert list(cohort.patients.columns) == ["patient_id", "time", "event", "has_wsi", "slides"]
    assert cohort.patients["patient_id"].tolist() == ["P1", "P2"]


def test_vector_tables_are_modalities_of_their_own(tmp_path):
    followup, options = inputs(tmp_path, omics=None, slides=None)
    (tmp_path / "blood.tsv").write_text("id\thb\nP4\t12\nP2\t\nP1\t9\n")
    cohort = build_cohort(followup, **options, vectors={"blood": {"file": tmp_path / "blood.tsv", "patient_id": "id"}})
    assert cohort.patients[["patient_id", "has_blood"]].to_numpy().tolist() == [["P1", 1], ["P4", 1]]


def test_nothing_excluded_still_writes_the_table(tmp_path):
    followup, options = inputs(tmp_path, followup=FOLLOWUP[:1], omics=["P1"], slides=None)
    build_cohort(followup, **options)
    assert (tmp_path / "excluded.tsv").read_text() == "kind\tid\tstage\treason\tremedy\n"


def test_a_cohort_that_shrinks_too_far_stops_with_the_list(tmp_path):
    slides = [(f"S{i}", f"P{i}", "ok" if i == 1 else "failed") for i in (1, 2, 4, 5)]
    followup, options = inputs(tmp_path, omics=None, slides=slides)
    with pytest.raises(InputError) as error:
        build_cohort(followup, **options)
    assert str(error.value).replace(f"{tmp_path}/", "") == (
        "too few patients are left: slide S2 (tissue): cannot be opened | slide S4 (tissue): cannot be opened | "
        "slide S5 (tissue): cannot be opened | patient P3 (follow-up): followup.tsv, row 4, column 'os': cell is empty; expected "
        "months of follow-up | patient P2 (cohort): 1 of 1 listed slides failed | patient P4 (cohort): 1 of 1 listed slides "
        "failed | patient P5 (cohort): 1 of 1 listed slides failed; found '1 patients, 25 % of those with data', expected at least 50 % "
        "(`min_share`). Mend what is listed in excluded.tsv, or lower `min_share`."
    )
    assert "S4" in (tmp_path / "excluded.tsv").read_text()
    assert not (tmp_path / "patients.tsv").exists()
    assert len(build_cohort(followup, **options, min_share=0.25).patients) == 1


def test_patients_without_any_listed_data_do_not_count_as_shrinking(tmp_path):
    followup, options = inputs(tmp_path, followup=[(f"P{i}", "1", "1") for i in range(50)], omics=["P1", "P2"], slides=None)
    assert build_cohort(followup, **options).share == 1


def test_ids_that_never_meet_are_shown_side_by_side(tmp_path):
    followup, options = inputs(tmp_path, omics=["P1-01A", "P2-01A"], slides=None)
    with pytest.raises(InputError) as error:
        build_cohort(followup, **options)
    assert str(error.value) == (
        "the follow-up table and the data have no patient in common; found 'data of P1-01A, P2-01A', expected ids such as P1, P2, P3, …. "
        "Use the same patient ids in every table (TCGA: the first 12 characters of the barcode)."
    )


def test_a_slide_listed_twice_is_an_error(tmp_path):
    followup, options = inputs(tmp_path, slides=[("S1", "P1", "ok"), ("S1", "P2", "ok")])
    with pytest.raises(InputError, match=r"row 3, column 'slide_id': slide appears twice; found 'S1'"):
        build_cohort(followup, **options)


@settings(max_examples=10, deadline=None)
@given(st.permutations(FOLLOWUP), st.permutations(OMICS), st.permutations(SLIDES))
def test_the_order_of_rows_changes_no_byte(tmp_path_factory, followup, omics, slides):
    texts = []
    for rows in ((FOLLOWUP, OMICS, SLIDES), (followup, omics, slides)):
        folder = tmp_path_factory.mktemp("cohort")
        table, options = inputs(folder, *rows)
        build_cohort(table, **options)
        patients, flow, excluded = ((folder / f"{name}.tsv").read_text() for name in ("patients", "flow", "excluded"))
        texts.append((patients, flow, [line.split("row")[0].replace(str(folder), "") for line in excluded.splitlines()]))
    assert texts[0] == texts[1]
