"""Which patients go through a model together: bags are padded to the longest of a pass, so a pass holds patients of like length."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def cut_passes(lengths: Sequence[int], patients: int, instances: int, cost: int) -> list[np.ndarray]:
    """Lay out patients by length, and cut where the padding of a pass would cost more than another pass.

    lengths: instances in each patient's longest bag. patients, instances: what a pass may hold at most, padding included; a longer bag is
    a pass of its own. cost: what a pass costs beside its instances, in instances.

    Returns the row numbers of each pass, longest bags first, patients of equal length in their order. The sum over all passes of padded
    instances and `cost` is the least that there is for patients in this order.

    >>> [rows.tolist() for rows in cut_passes([10, 900, 12, 880, 11], patients=32, instances=4096, cost=100)]
    [[1, 3], [2, 4, 0]]
    """
    counts = np.asarray(lengths, dtype=np.int64)
    order = np.argsort(-counts, kind="stable")
    longest = counts[order]
    # of the first i patients: what they cost at least, and where their last pass begins
    least, first = np.zeros(len(order) + 1), np.zeros(len(order) + 1, dtype=np.int64)
    for end in range(1, len(order) + 1):
        begins = np.arange(max(0, end - patients), end)
        padded = longest[begins] * (end - begins)
        total = np.where((padded <= instances) | (end - begins == 1), least[begins] + padded + cost, np.inf)
        least[end], first[end] = total.min(), begins[total.argmin()]
    passes, end = [], len(order)
    while end:
        passes.append(order[first[end] : end])
        end = first[end]
    return passes[::-1]


def whole_passes(lengths: Sequence[int], patients: int, instances: int | None) -> list[np.ndarray]:
    """Row numbers of passes of `patients` in their order, fewer only where they would hold more than `instances`, padding included.

    >>> [rows.tolist() for rows in whole_passes([1, 9, 2, 2, 2], patients=4, instances=20)]
    [[0, 1], [2, 3, 4]]
    """
    passes: list[list[int]] = []
    longest = 0
    for row, length in enumerate(lengths):
        longest = max(longest, length)
        full = passes and (len(passes[-1]) == patients or (instances is not None and longest * (len(passes[-1]) + 1) > instances))
        if full or not passes:
            passes.append([])
            longest = length
        passes[-1].append(row)
    return [np.array(rows) for rows in passes]
