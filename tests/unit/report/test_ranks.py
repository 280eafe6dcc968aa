import re
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.evaluation.comparison import RANK_COLUMNS
from pipeline.report.ranks import cliques, draw_ranks, rank_note, read_ranks
from pipeline.tables import write_table


def table(ranks: list[float], critical: float, folds: int = 5, p: float = 0.01) -> pd.DataFrame:
    rows = [(f"m{number}", rank, folds, p, critical) for number, rank in enumerate(ranks)]
    return pd.DataFrame(rows, columns=list(RANK_COLUMNS))


def test_groups_of_a_known_diagram():
    assert cliques(np.array([1.0, 1.5, 2.2, 4.0]), 1.0) == [(0, 1), (1, 2)]
    assert cliques(np.array([1.0, 2.0]), 1.0) == [], "models differ where they lie the critical difference apart"
    assert cliques(np.array([1.0, 1.2, 1.4]), 1.0) == [(0, 2)]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(4, 40), min_size=1, max_size=12), st.integers(1, 60))
def test_two_models_share_a_bar_exactly_where_their_ranks_are_closer_than_the_critical_difference(quarters: list[int], critical: int):
    ranks = np.sort(quarters) / 4
    groups = cliques(ranks, critical / 4)
    for a, b in combinations(range(len(ranks)), 2):
        assert any(start <= a and b <= end for start, end in groups) == (ranks[b] - ranks[a] < critical / 4)
    assert all(not (s <= start and end <= e) for s, e in groups for start, end in groups if (s, e) != (start, end)), "no bar within another"


def test_the_note_warns_where_folds_are_too_few():
    assert rank_note(table([1.0, 2.0], 0.9)).endswith("with so few folds, ranks hardly separate anything.")
    assert rank_note(table([1.0, 2.0], 1.0)).endswith("No two of 2 models can lie so far apart: with so few folds, ranks separate nothing.")
    calm = rank_note(table([1.0, 2.5, 3.0, 4.0], 0.4, folds=150, p=1e-9))
    assert (
        calm == "Friedman test of equal ranks: p < 0.001. Mean ranks differ where they lie at least 0.40 apart (Nemenyi, 0.05; 150 folds)."
    )
    assert "Friedman" not in rank_note(table([1.0, 2.0], 0.4, p=np.nan))


@pytest.mark.parametrize("models", [2, 5, 40])
def test_every_model_stands_once_in_the_diagram_and_inside_of_it(models: int, tmp_path: Path):
    ranks = np.random.default_rng(models).permutation(np.linspace(1.2, models - 0.2, models)).round(2)
    write_table(table(list(ranks), models / 3), tmp_path / "ranks.tsv")
    draw_ranks(read_ranks(tmp_path / "ranks.tsv"), tmp_path / "ranks.svg")
    svg = (tmp_path / "ranks.svg").read_text()
    texts = re.findall(r"<text[^>]*>([^<]+)</text>", svg)
    for number, rank in enumerate(ranks):
        assert sum(f"{rank:.2f}" in text and f"m{number}" in text.split() for text in texts) == 1
    height = float(re.search(r'height="([\d.]+)pt"', svg)[1])
    assert all(0 <= float(y) <= height for y in re.findall(r'<text [^>]*y="([\d.]+)"', svg))


def test_models_without_a_rank_are_left_out(tmp_path: Path):
    write_table(table([2.0, np.nan, 1.0], 0.5), tmp_path / "ranks.tsv")
    assert list(read_ranks(tmp_path / "ranks.tsv").model) == ["m2", "m0"]
