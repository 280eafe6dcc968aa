"""One fold from files to what is trained: who is held back, what is scaled."""

import numpy as np
import pandas as pd
import pytest

from pipeline.cohort.bags import BagRows, write_bags
from pipeline.cohort.record import Labels
from pipeline.errors import InputError
from pipeline.tables import write_table
from pipeline.training.dataset import RawData, offer
from pipeline.training.fold import inner_split, protocol_of

SURVIVAL, BINARY = (0.0, 1.0, 2.0), (0.0, 12.0)


def labels(event, edges=SURVIVAL) -> Labels:
    event = np.array(event)
    return Labels([f"P{i:02d}" for i in range(len(event))], np.arange(1.0, len(event) + 1), event, np.zeros(len(event), int), edges)


def test_the_inner_split_keeps_the_share_of_events_on_either_side():
    kept, held = inner_split(labels([1] * 20 + [0] * 40), 0.2, seed=1)
    assert (len(held.patients), held.event.sum()) == (12, 4)
    assert sorted([*kept.patients, *held.patients]) == labels([1] * 20 + [0] * 40).patients


@pytest.mark.parametrize(
    "event, share, edges, problem",
    [
        ([1, 1, *[0] * 40], 0.2, SURVIVAL, "with the event to choose the epoch on some of them; found '2 in the training fold"),
        ([1, *[0] * 40], 0.6, SURVIVAL, "with the event to choose the epoch on some of them; found '1 in the training fold"),
        ([0, 0, *[1] * 40], 0.2, BINARY, "without the event to choose the epoch on some of them; found '2 in the training fold"),
    ],
)
def test_too_few_events_to_choose_an_epoch_on_are_refused(event, share, edges, problem):
    """A loss without any event would choose the epoch: for Cox it is 0 throughout, and the first epoch would be kept."""
    with pytest.raises(InputError, match=problem):
        inner_split(labels(event, edges), share, seed=1)


def test_survival_times_need_nobody_without_the_event():
    assert inner_split(labels([1] * 10), 0.2, seed=1)[1].event.sum() == 2


def raw_of(folder, everyone, **parts) -> RawData:
    """What a study of these patients reads from `folder`."""
    write_table(everyone, folder / "patients.tsv")
    write_table(pd.DataFrame({"patient_id": everyone["patient_id"], "fold": 0, "set": "train"}), folder / "splits.tsv")
    files = {name: folder / f"{name}.tsv" for name in ("patients", "splits")} | {"matrix": None, "groups": None, "manifest": None}
    return RawData.read(files | {"bags": parts.pop("bags", {})}, parts)


def test_bags_of_any_kind_are_scaled_on_the_training_fold(tmp_path):
    rng = np.random.default_rng(0)
    patients = np.repeat([f"P{i}" for i in range(6)], 5)
    features = rng.normal(100, 20, (30, 3)).astype(np.float32)
    write_bags(tmp_path / "mri.h5", BagRows(features, patients))
    everyone = pd.DataFrame({"patient_id": sorted(set(patients)), "time": 1.0, "event": 1})
    raw = raw_of(tmp_path, everyone, bags={"mri": tmp_path / "mri.h5"}, modalities=["mri"])
    offered = offer(raw, {"bag_scaling": "zscore", "bins": 4}, everyone[:4])
    trained = np.concatenate([offered.data.bags["mri"].bag(p) for p in everyone.patient_id[:4]])
    np.testing.assert_allclose([trained.mean(0), trained.std(0)], [[0] * 3, [1] * 3], atol=1e-4)
    assert offered.scaling.keys() == {"mri"}
    as_stored = offer(raw, {"bag_scaling": "none", "bins": 4}, everyone[:4])  # the next fold finds nothing of this one
    assert as_stored.data.bags["mri"].bag("P0").mean() > 50


def test_a_table_that_nobody_in_training_has_is_named(tmp_path):
    write_table(pd.DataFrame({"patient_id": ["Z"], "age": ["1"]}), tmp_path / "blood.tsv")
    train = pd.DataFrame({"patient_id": ["A"], "time": [1.0], "event": [1]})
    raw = raw_of(tmp_path, train, modalities=["blood"], tables={"blood": {"file": tmp_path / "blood.tsv"}})
    settings = {"bag_scaling": "none", "bins": 4, "table_scaling": {"blood": {"scaling": "zscore", "impute": "mean"}}}
    with pytest.raises(InputError, match="no patient of the training fold has blood"):
        offer(raw, settings, train)


@pytest.mark.parametrize("epochs, remedy", [(20, "Set training.loss to nll"), (0, "Use logistic or forest")])
def test_a_cox_loss_on_a_label_is_refused_with_what_helps(epochs, remedy):
    """A model that fits itself ignores the study's training block, so that changing the loss there would not help."""
    settings = {"kind": "binary", "endpoint": "y_3y", "training": {}}
    with pytest.raises(InputError) as error:
        protocol_of({"loss": "cox", "epochs": epochs}, settings, "config/models/coxnet.yaml")
    assert str(error.value) == (
        f"the Cox loss needs times, but endpoint 'y_3y' is a binary label. {remedy}, or choose a survival endpoint."
    )
