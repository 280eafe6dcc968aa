import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipeline.errors import InputError
from pipeline.evaluation.comparison import PAIR_COLUMNS
from pipeline.report.comparison import MAX_PAIRS, against, draw_matrix, oriented, pair_rows, read_comparison
from pipeline.tables import write_table


def pairs_of(models: list[str], figures: dict[str, float]) -> pd.DataFrame:
    """Every pair of `models` with the difference of their figures; p falls with the difference."""
    rows = []
    for at, a in enumerate(models):
        for b in models[at + 1 :]:
            difference = figures[a] - figures[b]
            p = max(0.0, 0.3 - abs(difference))
            rows.append((a, b, 5, 100, difference, difference - 0.05, difference + 0.02, p, 10 * difference, p, p, ""))
    return pd.DataFrame(rows, columns=list(PAIR_COLUMNS))


FIGURES = {"low": 0.5, "high": 0.8, "middle": 0.65}
PAIRS = pairs_of(["low", "high", "middle"], FIGURES)


def test_turning_a_pair_turns_its_signs_and_its_interval_and_twice_is_the_same():
    turned = oriented(PAIRS, np.array([True, False, False]))
    first = turned.iloc[0]
    assert (first.model_a, first.model_b) == ("high", "low")
    assert (first.difference, first.ci_low, first.ci_high, first.t) == pytest.approx((0.3, 0.28, 0.35, 3.0))
    assert turned.iloc[1:].equals(PAIRS.iloc[1:])
    back = oriented(turned, np.array([True, False, False]))
    pd.testing.assert_frame_equal(back, PAIRS)


def test_the_better_model_comes_first_and_the_surest_pair_too():
    rows, more = pair_rows(PAIRS)
    assert [(row["model_a"], row["model_b"]) for row in rows] == [("high", "low"), ("middle", "low"), ("high", "middle")] or more == 0
    assert [row["p_holm"] for row in rows] == sorted(row["p_holm"] for row in rows)
    assert all(row["difference"] > 0 and row["ci_low"] < row["difference"] < row["ci_high"] for row in rows)


def test_pairs_beyond_forty_are_counted_and_those_without_a_test_come_last():
    models = [f"m{number:02d}" for number in range(10)]
    table = pairs_of(models, {model: 0.5 + 0.03 * number for number, model in enumerate(models)})
    table.loc[table.index[-1], ["p_holm", "p_t", "t"]] = np.nan
    rows, more = pair_rows(table)
    assert (len(rows), more) == (MAX_PAIRS, 45 - MAX_PAIRS)
    assert not any(np.isnan(row["p_holm"]) for row in rows)


def test_pairs_with_the_reference_are_model_minus_reference():
    held = against(PAIRS, "middle").set_index("model_a")
    assert set(held.model_b) == {"middle"}
    assert held.difference.to_dict() == pytest.approx({"low": -0.15, "high": 0.15})


def test_a_damaged_figure_is_told_with_its_row(tmp_path: Path):
    write_table(PAIRS.astype(object).assign(p_holm=["0.1", "none?", "0.2"]), tmp_path / "comparison.tsv")
    with pytest.raises(InputError, match=r"comparison\.tsv, row 3, column 'p_holm'.*found 'none\?'"):
        read_comparison(tmp_path / "comparison.tsv")


def test_the_matrix_holds_every_pair_once_best_model_first(tmp_path: Path):
    write_table(PAIRS, tmp_path / "comparison.tsv")
    pairs = read_comparison(tmp_path / "comparison.tsv")
    draw_matrix(pairs, ["high", "middle", "low"], tmp_path / "matrix.svg")
    texts = re.findall(r"<text[^>]*>([^<]+)</text>", (tmp_path / "matrix.svg").read_text())
    assert sorted(text for text in texts if text[0] in "+−") == ["+0.150", "+0.150", "+0.300 ●"]
    first = (tmp_path / "matrix.svg").read_bytes()
    draw_matrix(pairs[::-1], ["high", "middle", "low"], tmp_path / "again.svg")
    assert sorted(re.findall(rb"<text.*", first)) == sorted(re.findall(rb"<text.*", (tmp_path / "again.svg").read_bytes()))


@pytest.mark.parametrize("count", [5, 20])
def test_the_matrix_fits_the_page(count: int, tmp_path: Path):
    models = [f"model{number:02d}+with_a_variant" for number in range(count)]
    draw_matrix(pairs_of(models, dict.fromkeys(models, 0.5)), models, tmp_path / "matrix.svg")
    width = float(re.search(r'width="([\d.]+)pt"', (tmp_path / "matrix.svg").read_text())[1])
    assert width <= 12 * 72
