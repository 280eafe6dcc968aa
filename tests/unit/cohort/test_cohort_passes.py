"""Passes hold patients of like length, at the least cost of padding and passes together."""

from functools import cache

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.cohort.passes import cut_passes

lengths = st.lists(st.integers(0, 60), min_size=1, max_size=9)


def costs(counts: list[int], passes: list[np.ndarray], cost: int) -> int:
    return sum(max(counts[i] for i in rows) * len(rows) + cost for rows in passes)


def best(counts: list[int], patients: int, instances: int, cost: int) -> int:
    """By trying every cut of the patients sorted by length."""
    longest = sorted(counts, reverse=True)

    @cache
    def from_here(start: int) -> int:
        if start == len(longest):
            return 0
        sizes = [n for n in range(1, min(patients, len(longest) - start) + 1) if n == 1 or n * longest[start] <= instances]
        return min(n * longest[start] + cost + from_here(start + n) for n in sizes)

    return from_here(0)


@settings(max_examples=60)
@given(counts=lengths, patients=st.integers(1, 5), instances=st.integers(1, 150), cost=st.integers(0, 40))
def test_every_patient_is_in_one_pass_and_no_cut_is_cheaper(counts, patients, instances, cost):
    passes = cut_passes(counts, patients, instances, cost)
    assert sorted(np.concatenate(passes).tolist()) == list(range(len(counts)))
    for rows in passes:
        assert len(rows) <= patients
        assert len(rows) == 1 or len(rows) * max(counts[i] for i in rows) <= instances
    assert costs(counts, passes, cost) == best(counts, patients, instances, cost)


def test_unequal_bags_are_hardly_padded_and_equal_ones_stay_together():
    rng = np.random.default_rng(0)
    counts = np.minimum(rng.lognormal(np.log(1500), 1.0, 30), 4000).astype(int)
    passes = cut_passes(counts, 32, 8_000, 512)
    assert costs(list(counts), passes, 0) < 1.12 * counts.sum()
    assert len(passes) < 20
    assert len(cut_passes([65] * 32, 32, 8_000, 512)) == 1
    assert [rows.tolist() for rows in cut_passes([0] * 5, 3, 8_000, 512)] in ([[0, 1, 2], [3, 4]], [[0, 1], [2, 3, 4]])


def test_a_bag_that_no_pass_holds_goes_alone():
    assert [rows.tolist() for rows in cut_passes([5, 100, 5], 32, 20, 1)] == [[1], [0, 2]]
