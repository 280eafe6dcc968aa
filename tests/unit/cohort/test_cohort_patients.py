import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import tables
from pipeline.cohort.bags import import_bags
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
        ["wsi: matched with follow-up", 2, 3, "1 not in the follow-up table, 2 without a usable slide"],
        ["omics: matched with follow-up", 3, 1, "1 not in the follow-up table"],
    ]
    steps = flow.iloc[:3]
    assert (steps["patients"].shift() - steps["dropped"]).iloc[1:].tolist() == steps["patients"].iloc[1:].tolist()


def test_the_flow_is_told_to_the_log(tmp_path, caplog):
    followup, options = inputs(tmp_path)
    with caplog.at_level("INFO"):
        build_cohort(followup, **options)
    told = next(record.getMessage() for record in caplog.records if record.getMessage().startswith("cohort flow"))
    assert told.splitlines() == [
        "cohort flow:                                patients  dropped  reason",
        "in the follow-up table                5        0",
        "with usable follow-up                 4        1  time or event missing",
        "with at least one modality            3        1  no usable wsi or omics",
        "wsi: matched with follow-up           2        3  1 not in the follow-up table, 2 without a usable slide",
        "omics: matched with follow-up         3        1  1 not in the follow-up table",
    ]


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
    assert cohort.flow.iloc[-1].tolist() == ["blood: matched with follow-up", 2, 1, "1 without any value"]


def test_bags_are_modalities_of_their_own(tmp_path):
    followup, options = inputs(tmp_path, omics=None, slides=None)
    np.savez(tmp_path / "tma.npz", features=np.ones((3, 4), np.float32), patient_id=np.array(["P4", "P1", "P1"]))
    import_bags(tmp_path / "tma.npz", tmp_path / "tma.h5")
    cohort = build_cohort(followup, **options, bags={"tma": tmp_path / "tma.h5"})
    assert cohort.patients[["patient_id", "has_tma"]].to_numpy().tolist() == [["P1", 1], ["P4", 1]]


def test_a_row_without_any_value_is_somebody_all_the_same(tmp_path):
    followup, options = inputs(tmp_path, omics=None, slides=None)
    (tmp_path / "blood.tsv").write_text("patient_id\thb\nP4\t12\nP2\t\nX7\t\n")
    cohort = build_cohort(followup, **options, vectors={"blood": {"file": tmp_path / "blood.tsv"}})
    assert cohort.flow.iloc[-1].tolist() == ["blood: matched with follow-up", 1, 2, "1 not in the follow-up table, 1 without any value"]
    assert {"P2", "X7"} <= set(cohort.excluded["id"])


def conditions(folder):
    (folder / "who.tsv").write_text("case\tstained\tcentre\nP1\t1\tA\nP2\t0\tA\nP4\t1\tB\nP5\t\tA\n")
    return [
        {"table": folder / "who.tsv", "column": name, "values": [value], "patient_id": "case"}
        for name, value in (("stained", 1), ("centre", "A"))
    ]


def test_a_study_may_be_restricted_to_some_patients(tmp_path):
    followup, options = inputs(tmp_path, omics=["P1", "P2", "P5"], slides=None)
    stained, centre = conditions(tmp_path)
    cohort = build_cohort(followup, **options, include=[stained, centre])
    assert cohort.patients["patient_id"].tolist() == ["P1"]
    assert cohort.flow.iloc[2:4].to_numpy().tolist() == [
        ["with stained = 1", 2, 2, "not stained = 1"],
        ["with centre = A", 1, 1, "not centre = A"],
    ]
    excluded = cohort.excluded.set_index("id")
    assert excluded["reason"].drop("P3").to_dict() == {"P2": "stained is 0", "P5": "stained is an empty cell", "P4": "centre is B"}
    assert set(excluded.drop("P3")["stage"]) == {"include"}
    assert cohort.share == 1  # nobody of them was lost to a fault


def test_a_condition_that_nobody_meets_is_named(tmp_path):
    followup, options = inputs(tmp_path, slides=None)
    stained, centre = conditions(tmp_path)
    with pytest.raises(InputError) as error:
        build_cohort(followup, **options, include=[{**centre, "values": ["C"]}])
    assert str(error.value).replace(f"{tmp_path}/", "") == (
        "who.tsv, column 'centre': no patient has this value of `include`; found 'C', expected a value of the column."
    )
    (tmp_path / "who.tsv").write_text("case\tstained\nQ1\t1\n")
    with pytest.raises(InputError) as error:
        build_cohort(followup, **options, include=[stained])
    assert str(error.value).replace(f"{tmp_path}/", "") == (
        "who.tsv, column 'stained': nobody of the follow-up table meets the condition; expected 1."
    )


def test_who_is_left_out_by_definition_does_not_count_as_lost(tmp_path):
    people = [(f"P{i}", "10", "1" if i < 3 else "-1") for i in range(10)]
    followup, options = inputs(tmp_path, followup=people, omics=[f"P{i}" for i in range(10)], slides=None)
    cohort = build_cohort({"file": followup["file"], "kind": "binary", "label": "dead", "exclude_values": ["-1"]}, **options)
    assert (len(cohort.patients), cohort.share, len(cohort.excluded)) == (3, 1, 7)


def test_nothing_excluded_still_writes_the_table(tmp_path):
    followup, options = inputs(tmp_path, followup=FOLLOWUP[:1], omics=["P1"], slides=None)
    build_cohort(followup, **options)
    assert (tmp_path / "excluded.tsv").read_text() == "kind\tid\tstage\treason\tremedy\n"


def test_a_cohort_that_shrinks_too_far_stops_with_the_list(tmp_path):
    slides = [("S0", "P1", "ok"), ("S3", "P1", "ok"), *((f"S{i}", f"P{i}", "ok" if i == 1 else "failed") for i in (1, 2, 4, 5))]
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


def test_a_cohort_of_which_most_slides_fail_stops_with_the_reasons_although_its_patients_stay(tmp_path):
    """Everybody has genes, so that no patient is lost; the slides of people outside the study do not count."""
    slides = [(f"S{i}", f"P{i}", "ok" if i == 1 else "failed") for i in (1, 2, 4, 5)] + [(f"T{i}", f"X{i}", "ok") for i in range(9)]
    followup, options = inputs(tmp_path, omics=["P1", "P2", "P4", "P5"], slides=slides)
    manifest = tables.read_table(options["manifest"])
    known = {"S2": "/data/S2.svs: no resolution; found 'x'.", "S4": "slide S4: no resolution.", "S5": "/data/S5.svs: is empty."}
    tables.write_table(manifest.assign(reason=manifest["slide_id"].map(known)), options["manifest"])
    with pytest.raises(InputError) as error:
        build_cohort(followup, **options)
    assert str(error.value) == (
        "too few slides could be used: 2 × tissue: no resolution | 1 × tissue: is empty; found '1 of 4 slides of the patients with "
        "follow-up', expected at least 50 % (`min_share`). Mend what is listed in excluded.tsv, or lower `min_share`."
    )
    assert "S4" in (tmp_path / "excluded.tsv").read_text()
    assert not (tmp_path / "patients.tsv").exists()
    assert len(build_cohort(followup, **options, min_share=0.25).patients) == 4


def test_patients_without_any_listed_data_do_not_count_as_shrinking(tmp_path):
    followup, options = inputs(tmp_path, followup=[(f"P{i}", "1", "1") for i in range(50)], omics=["P1", "P2"], slides=None)
    assert build_cohort(followup, **options).share == 1


def test_ids_that_never_meet_are_shown_side_by_side(tmp_path):
    followup, options = inputs(tmp_path, omics=["P1-01A", "P2-01A"], slides=None)
    with pytest.raises(InputError) as error:
        build_cohort(followup, **options)
    assert str(error.value) == (
        "the follow-up table and omics have no patient in common; found 'data of P1-01A, P2-01A', expected ids such as P1, P2, P3, …. "
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


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["", "3", "40"]), st.sampled_from(["0", "1", ""])), min_size=3, max_size=8),
    st.sets(st.integers(0, 9)),
    st.sets(st.integers(0, 9)),
)
def test_everybody_is_in_the_cohort_or_listed_as_excluded_exactly_once(tmp_path_factory, people, measured, empty):
    folder = tmp_path_factory.mktemp("cohort")
    people = [("P8", "40", "1"), *((f"P{i}", time, event) for i, (time, event) in enumerate(people))]
    followup, options = inputs(folder, followup=people, omics=sorted({"P8", *(f"P{i}" for i in measured)}), slides=None)
    (folder / "blood.tsv").write_text("patient_id\thb\nP8\t1\n" + "".join(f"P{i}\t\n" for i in sorted(empty - {8})))
    window = {**followup, "kind": "binary", "within": 12}
    cohort = build_cohort(window, **options, vectors={"blood": {"file": folder / "blood.tsv"}}, min_share=0)
    everybody = {patient for patient, _, _ in people} | {f"P{i}" for i in measured | empty}
    assert sorted([*cohort.patients["patient_id"], *cohort.excluded["id"]]) == sorted(everybody)


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("label", "patients", "positive"), [("y_3y", 430, 84), ("y_4y", 367, 91), ("y_5y", 302, 101), ("y_status", 620, 110)]
)
def test_hancock_restricted_to_the_listed_images_has_the_published_counts(realdata, tmp_path, label, patients, positive):
    folder = realdata / "hancock"
    cohort = build_cohort(
        {"file": folder / "labels.tsv", "kind": "binary", "label": label, "exclude_values": ["-1"]},
        patients=tmp_path / "patients.tsv",
        flow=tmp_path / "flow.tsv",
        excluded=tmp_path / "excluded.tsv",
        vectors={name: {"file": folder / f"{name}.tsv"} for name in ("clinical", "blood")},
        include=[
            {"table": folder / "image_availability_clam_hancock.tsv", "column": f"{x}_uni_listed", "values": ["1"]} for x in ("wsi", "tma")
        ],
    )
    assert (len(cohort.patients), cohort.patients["event"].sum(), cohort.share) == (patients, positive, 1)
    assert len(cohort.patients) + cohort.excluded["id"].nunique() == 763


@pytest.mark.realdata
def test_gbmlgg_is_restricted_to_patients_with_omics(realdata, tmp_path):
    table = realdata / "pathomic_gbmlgg/patients.tsv"
    cohort = build_cohort(
        {"file": table, "time": "time_days", "event": "event", "unit": "days"},
        patients=tmp_path / "patients.tsv",
        flow=tmp_path / "flow.tsv",
        excluded=tmp_path / "excluded.tsv",
        vectors={"clinical": {"file": table, "columns": ["grade", "n_roi"], "categorical": ["grade"]}},
        include=[{"table": table, "column": "has_omic320", "values": ["1"]}],
    )
    assert len(cohort.patients) == 502
