import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipeline.errors import InputError
from pipeline.evaluation.calibration import COLUMNS
from pipeline.report.calibration import MAX_PANELS, draw_calibration, read_calibration
from pipeline.tables import write_table

GROUPS = [(time, group, 20, group / 5, group / 5, group / 5 - 0.1, group / 5 + 0.1) for time in (12.0, 24.0) for group in (3, 1, 2)]


def written(path: Path, rows: list[tuple]) -> Path:
    write_table(pd.DataFrame(rows, columns=list(COLUMNS)), path)
    return path


def texts(path: Path) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]+)</text>", path.read_text())


def test_groups_without_an_observed_value_are_left_out_and_order_does_not_matter(tmp_path: Path):
    known = read_calibration(written(tmp_path / "a.tsv", [*GROUPS, (24.0, 4, 20, 0.9, np.nan, np.nan, np.nan)]))
    assert list(zip(known.time, known.group, strict=True)) == [(t, g) for t in (12, 24) for g in (1, 2, 3)]
    assert known.equals(read_calibration(written(tmp_path / "b.tsv", GROUPS[::-1])))


def test_a_panel_a_time_and_no_more_than_fit(tmp_path: Path):
    draw_calibration(read_calibration(written(tmp_path / "a.tsv", GROUPS)), tmp_path / "a.svg")
    assert {"At 12 months", "At 24 months", "Observed survival", "Predicted survival"} <= set(texts(tmp_path / "a.svg"))
    many = [(float(time), *row[1:]) for time in range(1, 9) for row in GROUPS[:3]]
    draw_calibration(read_calibration(written(tmp_path / "b.tsv", many)), tmp_path / "b.svg")
    assert sum(text.startswith("At ") for text in texts(tmp_path / "b.svg")) == MAX_PANELS


def test_a_label_has_probabilities_in_place_of_survival(tmp_path: Path):
    draw_calibration(read_calibration(written(tmp_path / "a.tsv", GROUPS[:3])), tmp_path / "a.svg", kind="binary")
    assert {"Observed probability of the event", "Predicted probability of the event"} <= set(texts(tmp_path / "a.svg"))
    assert not any("months" in text for text in texts(tmp_path / "a.svg"))


def test_an_interval_that_does_not_hold_its_point_is_drawn_all_the_same(tmp_path: Path):
    """Kaplan–Meier intervals of an empty group are missing, those at 0 and 1 touch the point."""
    rows = [(12.0, 1, 3, 0.2, 1.0, 1.0, 1.0), (12.0, 2, 3, 0.4, 0.5, np.nan, np.nan)]
    draw_calibration(read_calibration(written(tmp_path / "a.tsv", rows)), tmp_path / "a.svg")
    assert "nan" not in (tmp_path / "a.svg").read_text().lower()


def test_a_damaged_figure_is_told_with_its_row(tmp_path: Path):
    with pytest.raises(InputError, match=r"row 2, column 'observed'.*found 'much'"):
        read_calibration(written(tmp_path / "a.tsv", [(12.0, 1, 20, 0.2, "much", 0.1, 0.3)]))
