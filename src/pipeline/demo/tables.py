"""Write the tables of the synthetic cohort."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.demo import omics
from pipeline.demo.plan import Plan, make_plan, permutation
from pipeline.files import write_text
from pipeline.seeds import seed_from
from pipeline.tables import write_table

SITES = ("East", "North", "West")


def write_tables(folder: Path, *, patients: int = 80, seed: int = 1, null: bool = False) -> None:
    """Write the cohort's tables into `folder`; the same arguments give the same bytes.

    ``clinical.tsv``: patient_id, age (years), sex (0/1), stage (1-4), site, time_months, event (0/1). ``expression.tsv.gz``: log2.
    ``cnv.tsv``: -2 … 2. ``mutation.tsv``: 0/1. ``families.tsv``: family, gene. ``pathways.gmt``. ``slides.tsv``: slide_id, patient_id,
    file (relative to `folder`, made by `write_slides`). ``truth.tsv``: the hidden factors; never an input of a model.
    The rows of the molecular tables are in orders of their own. With `null` the (time, event) pairs are permuted over the
    patients and all else stays the same. Raises `InputError` for fewer than 24 patients.
    """
    plan = make_plan(patients, seed)
    folder = Path(folder)
    write_table(_clinical(plan, null), folder / "clinical.tsv")
    write_table(_truth(plan), folder / "truth.tsv")
    _write_omics(plan, folder)
    slides = [(slide.slide_id, slide.patient_id, slide.file) for slide in plan.slides]
    write_table(pd.DataFrame(slides, columns=["slide_id", "patient_id", "file"]), folder / "slides.tsv")


def _clinical(plan: Plan, null: bool) -> pd.DataFrame:
    n = len(plan.patient_ids)
    rng = np.random.default_rng(seed_from("demo clinical", plan.seed))
    order = permutation(n, plan.seed) if null else np.arange(n)
    return pd.DataFrame(
        {
            "patient_id": plan.patient_ids,
            "age": plan.age.astype(int),
            "sex": rng.integers(0, 2, n),
            "stage": rng.choice([1, 2, 3, 4], n, p=[0.2, 0.3, 0.3, 0.2]),
            "site": rng.choice(SITES, n),
            "time_months": plan.time[order],
            "event": plan.event[order],
        }
    )


def _truth(plan: Plan) -> pd.DataFrame:
    return pd.DataFrame({"patient_id": plan.patient_ids, "m": plan.m, "g": plan.g, "eta": plan.eta})


def _write_omics(plan: Plan, folder: Path) -> None:
    rng = np.random.default_rng(seed_from("demo omics", plan.seed))
    n = len(plan.patient_ids)
    sets = omics.make_gene_sets(rng)
    genes = np.array(sets.genes)
    cnv_genes, mutation_genes = (np.sort(rng.choice(genes, size, replace=False)) for size in (omics.CNV_GENES, omics.MUTATION_GENES))
    tables = {
        "expression.tsv.gz": (genes, omics.expression(rng, plan.g, sets)),
        "cnv.tsv": (cnv_genes, omics.copy_number(rng, n)),
        "mutation.tsv": (mutation_genes, omics.mutations(rng, n)),
    }
    for name, (columns, values) in tables.items():
        rows = rng.permutation(np.flatnonzero(plan.has_omics))
        table = pd.DataFrame(values[rows], columns=columns)
        table.insert(0, "patient_id", np.array(plan.patient_ids)[rows])
        write_table(table, folder / name)
    pairs = [(family, gene) for family, rows in sets.families.items() for gene in genes[rows]]
    write_table(pd.DataFrame(pairs, columns=["family", "gene"]), folder / "families.tsv")
    lines = []
    for name, rows in sets.pathways.items():
        note = "follows the hidden factor g" if name in sets.planted else "unrelated to risk"
        lines.append("\t".join([name, note, *genes[rows]]))
    write_text(folder / "pathways.gmt", "\n".join(lines) + "\n")
