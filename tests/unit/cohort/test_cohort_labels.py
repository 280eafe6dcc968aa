import gzip

import pytest

from pipeline.cohort.labels import label_like, refuse_labels
from pipeline.errors import InputError


@pytest.mark.parametrize(
    "name",
    [
        "smoking_status",
        "resection_status",
        "hpv_association_p16",
        "time_to_surgery",
        "age_at_initial_diagnosis",
        "age_years",
        "blood_test",
        "mcv",
        "grade",
        "is_female",
        "tumor_free_margin_mm",
        "has_metastasis",
        "SmokingStatus",
        "BloodTest",
        "C1orf112",
        "target_volume",
        "SET",
        "EFS",
        "EFS_rnaseq",
        "SET_cnv",
        "x",
    ],
)
def test_features_are_not_taken_for_outcomes(name):
    assert not label_like(name)


@pytest.mark.parametrize(
    "name",
    [
        "status",
        "time_months",
        "fold",
        "set",
        "is_test",
        "days_to_last_information",
        "rfs_event",
        "y",
        "y_3y",
        "y_3y_os",
        "y_status",
        "label_5y",
        "efs_months",
        "pf_split_01",
        "Censorship",
        "is_alive",
        "PFI.time.1",
        "gpdbn_released_risk",
        "predicted_class",
        "has_omic320",
        "has_wsi",
        "last_contact_days_to",
        "Disease Free (Months)",
        "Progress Free Survival (Months)",
        "tumor_status",
        "person_neoplasm_cancer_status",
        "Overall Survival Status",
        "VitalStatus",
        "OverallSurvival",
        "timeToEvent",
        "FollowUpMonths",
        "isDead",
        "deathstatus",
        "osmonths",
        "mortality_30d",
    ],
)
def test_outcomes_splits_and_predictions_of_public_tables_are_recognised(name):
    assert label_like(name)


def test_the_first_suspect_column_is_named():
    with pytest.raises(InputError, match=r"^t.tsv, column 'os_months': looks like an outcome or a split and is refused as a feature"):
        refuse_labels(["age", "os_months", "event"], "t.tsv")


KIRC_TIMES = ["time_months", "event", "dss_months", "dss_event", "pfs_months", "pfs_event"]
GLIOMA = ["time_months", "time_days", "event", "has_omic320"]
HANCOCK = [
    *("survival_status", "survival_status_with_cause", "days_to_last_information", "recurrence", "days_to_recurrence"),
    *("rfs_event", "days_to_rfs_event", "os_event", "dss_event", "y_status"),
    *(f"y_{years}y{cause}" for years in range(1, 6) for cause in ("", "_os")),
]
LABELS = {
    "gpdbn_brca/brca1015.tsv": ["time_months", "event", "fold", "gpdbn_released_risk"],
    "gpdbn_brca/brca345.tsv": ["time_months", "event", "fold", "label_5y"],
    "hancock/labels.tsv": HANCOCK,
    "pathomic_gbmlgg/patients.tsv": [*GLIOMA, *(f"{kind}_split_{k:02d}" for kind in ("pnas", "mc15") for k in range(1, 16))],
    "pathomic_gbmlgg/omic320_pnas1_test.tsv": ["time_months", "event"],
    "pathomic_kirc/patients.tsv": [*KIRC_TIMES, *(f"pf_split_{k:02d}" for k in range(1, 16))],
}


def expected_labels(path: str) -> list[str]:
    """What a person would refuse of a table of the real data."""
    folder, _, name = path.rpartition("/")
    if name.startswith("splits_"):
        return ["split"] if folder.startswith("tcga_mcat") else ["set"]
    if name == "clinical.tsv" and folder.startswith("tcga_mcat"):
        return ["os_months", "event"]
    if name == "clinical.tsv" and folder.startswith("tcga_survpath"):
        return [f"{kind}_{what}" for kind in ("os", "dss", "pfi") for what in ("months", "event")]
    return LABELS.get(path, [])


@pytest.mark.realdata
def test_of_every_real_table_exactly_the_labels_are_refused(realdata):
    checked = 0
    for file in sorted(realdata.rglob("*.tsv*")):
        with (gzip.open if file.suffix == ".gz" else open)(file, "rt") as handle:
            header = handle.readline().rstrip("\n").split("\t")
        assert [name for name in header if label_like(name)] == expected_labels(file.relative_to(realdata).as_posix()), file
        checked += len(header)
    assert checked > 10_000
