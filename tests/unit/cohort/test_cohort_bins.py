import os
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.cohort.bins import TimeBins
from pipeline.cohort.followup import read_followup
from pipeline.errors import InputError

REAL = os.environ.get("SLIDE2SURV_REALDATA")


def test_edges_are_quartiles_of_the_event_times_and_the_ends_cover_all_training_patients():
    time = np.array([1, 2, 3, 4, 5, 0.5, 40])
    event = np.array([1, 1, 1, 1, 1, 0, 0])
    assert TimeBins.fit(time, event, 4).edges == (0.5 - 1e-6, 2, 3, 4, 40 + 1e-6)


def test_bins_are_closed_on_the_left_and_clip_what_lies_outside():
    bins = TimeBins((1.0, 2.0, 3.0, 4.0))
    assert bins.assign(np.array([0, 1, 1.999, 2, 3, 4, 99])).tolist() == [0, 0, 0, 1, 2, 2, 2]
    assert bins.count == 3


def test_coinciding_edges_are_merged():
    bins = TimeBins.fit(np.array([1, 1, 1, 1, 5, 9]), np.ones(6), 4)
    assert bins.edges == (1 - 1e-6, 4, 9 + 1e-6)


@pytest.mark.parametrize(
    ("time", "event", "bins", "message"),
    [
        (
            [1, 2],
            [0, 0],
            4,
            "no training patient has an event, so there are no time bins; found '2 patients, 0 events', expected at least 2 events at "
            "different times. Use fewer folds, another endpoint, or more patients.",
        ),
        (
            [3, 3, 9],
            [1, 1, 0],
            4,
            "fewer than two time bins remain after merging equal edges; found '2 events at 1 different times, 4 bins asked for', expected "
            "at least 2 bins. Set `bins` to 2 or more, or use an endpoint with more events.",
        ),
    ],
)
def test_a_fold_that_gives_no_bins_is_an_error(time, event, bins, message):
    with pytest.raises(InputError) as error:
        TimeBins.fit(np.array(time), np.array(event), bins)
    assert str(error.value) == message


times = st.lists(st.floats(0, 300), min_size=6, max_size=40, unique=True)


@settings(max_examples=40, deadline=None)
@given(times, st.integers(2, 5), st.randoms(use_true_random=False))
def test_every_training_time_lies_in_its_bin_whatever_the_order(values, count, random):
    time = np.array(values)
    event = np.arange(len(time)) % 2
    try:
        bins = TimeBins.fit(time, event, count)
    except InputError:
        return  # times closer than floats can part
    assigned, edges = bins.assign(time), np.array(bins.edges)
    assert np.all(np.diff(edges) > 0)
    assert np.all((edges[assigned] <= time) & (time < edges[assigned + 1]))
    order = list(range(len(time)))
    random.shuffle(order)
    assert TimeBins.fit(time[order], event[order], count) == bins


def test_bins_survive_yaml_to_the_bit():
    bins = TimeBins.fit(np.array([0.1, 1 / 3, 2.7, 9.9, 12]), np.ones(5), 3)
    assert TimeBins.from_dict(yaml.safe_load(yaml.safe_dump(bins.to_dict()))) == bins


@pytest.mark.realdata
@pytest.mark.skipif(not REAL or not Path(REAL).is_dir(), reason="SLIDE2SURV_REALDATA does not name the folder of real data")
@pytest.mark.parametrize(
    ("cohort", "edges", "counts"), [("blca", [8.2, 13.8, 21.7], [62, 70, 88, 139]), ("coadread", [10.2, 16.5, 28.6], [31, 71, 88, 108])]
)
def test_the_published_edges_and_counts_of_disease_specific_survival(cohort, edges, counts):
    patients = read_followup(f"{REAL}/tcga_survpath/{cohort}/clinical.tsv", time="dss_months", event="dss_event").patients
    bins = TimeBins.fit(patients["time"].to_numpy(), patients["event"].to_numpy())
    np.testing.assert_allclose(bins.edges[1:-1], edges, atol=0.05)
    assert np.bincount(bins.assign(patients["time"].to_numpy())).tolist() == counts
