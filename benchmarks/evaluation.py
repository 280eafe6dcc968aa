"""What the evaluation of a large study costs: 10,000 patients, 40 models, 5 folds, 1,000 bootstrap replicates, in one process.

``PYTHONPATH=src OMP_NUM_THREADS=1 python benchmarks/evaluation.py``. Prints a TSV: what, seconds by the wall and of the CPU, CPU
seconds of the plain way and their ratio to ours. The plain way calls scikit-survival and lifelines for one fold of one model, with
a Python loop over a few replicates, and is multiplied up to the whole study.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from pipeline.evaluation.comparison import compare_models
from pipeline.evaluation.folds import Fold, read_folds
from pipeline.evaluation.metrics import horizon, median_split, survival_at, time_grid
from pipeline.evaluation.model import evaluate_model
from pipeline.tables import write_table

EDGES = np.array([12.0, 24.0, 48.0, 130.0])
PLAIN_REPLICATES = 20


def write_study(root: Path, patients: int, models: int, folds: int) -> dict[str, list[Path]]:
    """A cohort of exponential times, about half of them censored, and models that see the hazard through noise."""
    rng = np.random.default_rng(0)
    hazard = rng.normal(size=patients)
    death, censored = rng.exponential(40 * np.exp(-hazard)), rng.uniform(5, 120, patients)
    table = pd.DataFrame({"patient_id": [f"P{i:05d}" for i in range(patients)]})
    table["time"], table["event"] = np.round(np.minimum(death, censored), 1) + 0.1, (death <= censored).astype(int)
    fold = np.arange(patients) % folds
    sets = [pd.DataFrame({"fold": k, "patient_id": table.patient_id, "set": np.where(fold == k, "test", "train")}) for k in range(folds)]
    write_table(table, root / "patients.tsv")
    write_table(pd.concat(sets), root / "splits.tsv")
    folders: dict[str, list[Path]] = {}
    settings = yaml.safe_dump(
        {"failure": None, "unpredicted": {}, "params": 1, "train_seconds": 1, "selection": "last", "modalities": ["omics"]}
    )
    for model in range(models):
        risk = hazard + rng.normal(size=patients)
        columns = {f"surv_{edge:g}": np.exp(-edge / 40 * np.exp(np.clip(risk, -3, 3))) for edge in EDGES}
        predictions = table.assign(risk=risk, **columns)
        for k in range(folds):
            folder = root / f"model{model:02d}" / f"fold{k}"
            write_table(predictions[fold == k], folder / "predictions.tsv")
            history = {"epoch": range(1, 21), "train_loss": 1.0, "inner_c_index": np.nan, "test_c_index": rng.uniform(0.5, 0.8, 20)}
            write_table(pd.DataFrame(history), folder / "history.tsv")
            (folder / "model.yaml").write_text(settings)
            folders.setdefault(f"model{model:02d}", []).append(folder)
    return folders


def plain_way(fold: Fold) -> tuple[float, float]:
    """(CPU seconds of the metrics of one fold, of one bootstrap replicate) with the libraries."""
    from lifelines import CoxPHFitter
    from lifelines.statistics import logrank_test
    from sksurv import metrics
    from sksurv.util import Surv

    test, end, times = fold.test, horizon(fold.train), time_grid(fold)
    inside = test.time <= end
    train, truncated = (
        Surv.from_arrays(fold.train.event, fold.train.time),
        Surv.from_arrays(test.event & inside, np.minimum(test.time, end)),
    )
    duration, event, high = median_split([fold])

    def figures() -> None:
        metrics.concordance_index_censored(test.event, test.time, fold.risk)
        metrics.concordance_index_ipcw(train, truncated, fold.risk)
        metrics.integrated_brier_score(train, truncated, survival_at(fold, times), times)
        metrics.cumulative_dynamic_auc(train, truncated, fold.risk, times)
        logrank_test(duration[high], duration[~high], event[high], event[~high])
        CoxPHFitter().fit(pd.DataFrame({"time": duration, "event": event, "high": high.astype(float)}), "time", "event")

    def replicates() -> None:
        rng = np.random.default_rng(0)
        for _ in range(PLAIN_REPLICATES):
            drawn = rng.integers(0, len(test.time), len(test.time))
            metrics.concordance_index_censored(test.event[drawn], test.time[drawn], fold.risk[drawn])

    return seconds(figures)[1], seconds(replicates)[1] / PLAIN_REPLICATES


def seconds(run: Callable[[], object]) -> tuple[float, float]:
    """Wall time and CPU time of one call."""
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - wall, time.process_time() - cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, value in (("patients", 10_000), ("models", 40), ("folds", 5), ("replicates", 1000)):
        parser.add_argument(f"--{name}", type=int, default=value)
    size = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        folders = write_study(root, size.patients, size.models, size.folds)
        tables = {"cohort": "benchmark", "patients": root / "patients.tsv", "splits": root / "splits.tsv"}
        options = {**tables, "bootstrap": size.replicates, "seed": 1}

        def evaluate() -> None:
            for model, paths in folders.items():
                output = {"output": root / model / "evaluation.tsv", "calibration": root / model / "calibration.tsv"}
                evaluate_model(model=model, endpoint="os", folds=paths, **output, **options)

        took = {"evaluation": seconds(evaluate)}
        output = {"output": root / "comparison.tsv", "ranks": root / "ranks.tsv"}
        took["comparison"] = seconds(lambda: compare_models(folders=folders, **output, **options))
        figures, replicate = plain_way(read_folds(next(iter(folders.values()))[:1], tables["patients"], tables["splits"])[0])
        runs = size.models * size.folds
        plain = {"evaluation": runs * (figures + size.replicates * replicate), "comparison": runs * size.replicates * replicate}
    took["together"] = tuple(map(sum, zip(*took.values(), strict=True)))
    plain["together"] = sum(plain.values())
    print("what\tseconds\tCPU seconds\tplain way, CPU seconds\tratio")
    for name, (wall, cpu) in took.items():
        print(f"{name}\t{wall:.1f}\t{cpu:.1f}\t{plain[name]:.0f}\t{plain[name] / cpu:.0f}")


if __name__ == "__main__":
    main()
