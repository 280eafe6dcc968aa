"""Which column names smell of an outcome or a split: no such column may become a feature (specs: SNN, label leaks).

The public loaders of this field choose features by column position and so train on `train`, `censorship` or the
survival time itself; here a column is refused by its name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from pipeline.errors import InputError

# One of these words is enough. A model's released prediction is an outcome too: it was fitted on the labels …
_OUTCOME = re.compile(
    r"events?|vital|\w*surviv\w*|\w*censor\w*|\w*death\w*|dead|deceased|died|alive|mortality|exitus|expired|recurrence|relapse|progression"
    r"|(os|dss|css|pfi|pfs|dfi|dfs|rfs|mfs|dmfs)(times?|months?|days?|years?|status|events?)?"
    r"|labels?|outcome|train|splits?|risks?|hazards?|predict(ion|ions|ed)"
)
# … these are harmless in company (`smoking_status`, `time_to_surgery`) and suspect alone or among themselves (`time_months`, `y_3y`) …
_AMBIGUOUS = re.compile(
    r"times?|status|months?|days?|years?|to|last|lost|follow|up|followup|contact|information|test|val|sets?|folds?|is|efs|y|\d+[ym]|targets?"
)
# … and these say it together: cBioPortal's and GDC's follow-up fields, and who has which data.
_PHRASE = re.compile(r"\b(disease|progress|metastasis) free\b|\b(neoplasm|tumou?r|cancer) status\b|^has (wsi|slides?|omics?\d*)$")
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")  # VitalStatus
_GENES = ("SET", "EFS")  # symbols of genes that would be suspect words


def label_like(column: str) -> bool:
    """Whether a column name says outcome, prediction or split.

    >>> [label_like(c) for c in ("OS.time", "survival_months", "time", "train", "smoking_status", "TIMELESS", "OS9")]
    [True, True, True, True, False, False, False]
    """
    words = [word for word in re.split(r"[^a-z0-9]+", _CAMEL.sub(" ", column).lower()) if word and not word.isdigit()]
    if column in _GENES or not words:
        return False
    return any(map(_OUTCOME.fullmatch, words)) or all(map(_AMBIGUOUS.fullmatch, words)) or bool(_PHRASE.search(" ".join(words)))


def refuse_labels(columns: Iterable[str], file: str | Path) -> None:
    """Raise `InputError` at the first column of `file` that would carry an outcome or a split into the features."""
    for column in columns:
        if label_like(column):
            raise InputError(
                "looks like an outcome or a split and is refused as a feature",
                file=file,
                column=column,
                expected="features only",
                remedy="Remove the column from the table or list the feature columns; if it truly is a feature, rename it.",
            )
