from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from pipeline.report.figures import chosen_row

HISTORY = pd.DataFrame({"epoch": [1, 2, 3, 4], "inner_loss": [2.0, 1.0, 1.0, 3.0], "test_c_index": [0.5, np.nan, 0.6, 0.8]})


@pytest.mark.parametrize("selection, row", [("last", 3), ("inner", 1), ("best_val", 3)])
def test_the_marked_epoch_is_the_one_whose_weights_were_used(selection: str, row: int):
    assert chosen_row(SimpleNamespace(failure=None, selection=selection, history=HISTORY)) == row


def test_nothing_is_marked_where_nothing_was_chosen():
    assert chosen_row(SimpleNamespace(failure="out of memory", selection="last", history=HISTORY)) is None
    assert chosen_row(SimpleNamespace(failure=None, selection="last", history=HISTORY[:0])) is None
    unknown = HISTORY.assign(inner_loss=np.nan)
    assert chosen_row(SimpleNamespace(failure=None, selection="inner", history=unknown)) is None
