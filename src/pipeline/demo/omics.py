"""Expression, copy number, mutation and gene sets of the synthetic cohort.

The hidden factor g shifts the member genes of four pathways and nothing else. All other variation comes from noise factors that
have no bearing on the follow-up.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

GENES, CNV_GENES, MUTATION_GENES = 2000, 120, 60
PATHWAYS, PLANTED = 50, 4
PATHWAY_GENES = 900  # genes that occur in a pathway at all; few enough that the pathways overlap
NOISE_FACTORS = 8
FAMILY_SIZES = {
    "Tumor Suppressor Genes": 60,
    "Oncogenes": 110,
    "Protein Kinases": 170,
    "Cell Differentiation Markers": 150,
    "Transcription Factors": 320,
    "Cytokines and Growth Factors": 160,
}
PLANTED_FAMILIES = ("Protein Kinases", "Cytokines and Growth Factors")


@dataclass(frozen=True)
class GeneSets:
    """genes: all G names. pathways, families: name → sorted rows of `genes`. planted: the pathways that follow g."""

    genes: tuple[str, ...]
    pathways: dict[str, np.ndarray]
    families: dict[str, np.ndarray]
    planted: tuple[str, ...]

    @property
    def planted_rows(self) -> np.ndarray:
        return np.unique(np.concatenate([self.pathways[name] for name in self.planted]))


def make_gene_sets(rng: np.random.Generator) -> GeneSets:
    """50 overlapping pathways of 10 to 60 genes, four of them planted, and six overlapping families.

    The planted pathways share genes with each other and with no other pathway; each family of `PLANTED_FAMILIES` contains the
    genes of two of them, so that a model that sees families alone can find g too.
    """
    genes = tuple(f"GENE{i:04d}" for i in range(1, GENES + 1))
    pool = rng.permutation(GENES)[:PATHWAY_GENES]
    names = [f"Synthetic pathway {i:02d}" for i in range(1, PATHWAYS + 1)]
    planted = tuple(sorted(rng.choice(names, PLANTED, replace=False).tolist()))
    pathways, start = {}, 0
    for name in planted:
        size = int(rng.integers(45, 61))
        pathways[name] = np.sort(pool[start : start + size])
        start += size - 4  # the next one shares four genes
    others = pool[start + 4 :]
    for name in sorted(set(names) - set(planted)):
        pathways[name] = np.sort(rng.choice(others, int(rng.integers(10, 61)), replace=False))
    rest = np.setdiff1d(np.arange(GENES), pool[: start + 4])
    families = {name: rng.choice(rest, size, replace=False) for name, size in FAMILY_SIZES.items()}
    for i, name in enumerate(PLANTED_FAMILIES):
        extra = [pathways[p] for p in planted[2 * i : 2 * i + 2]]
        families[name] = np.concatenate([families[name], *extra])
    return GeneSets(genes, {n: pathways[n] for n in names}, {n: np.unique(rows) for n, rows in families.items()}, planted)


def expression(rng: np.random.Generator, g: np.ndarray, sets: GeneSets) -> np.ndarray:
    """[P, G] log2 expression, at least 0: gene level + correlated noise + loading · g in the planted pathways."""
    patients = len(g)
    factors = rng.standard_normal((patients, NOISE_FACTORS))
    loadings = rng.standard_normal((NOISE_FACTORS, GENES)) * (rng.random((NOISE_FACTORS, GENES)) < 0.3) * 0.35
    values = rng.uniform(3, 12, GENES) + factors @ loadings + rng.normal(0, 0.7, (patients, GENES))
    rows = sets.planted_rows
    shift = rng.uniform(0.7, 1.3, len(rows)) * np.where(rng.random(len(rows)) < 0.8, 1, -1)
    values[:, rows] += g[:, None] * shift
    return np.maximum(values, 0).round(4)


def copy_number(rng: np.random.Generator, patients: int) -> np.ndarray:
    """[P, 120] integers from -2 (deep deletion) to 2 (amplification); neighbouring genes change together."""
    walk = rng.standard_normal((patients, CNV_GENES + 4))
    smooth = sum(walk[:, i : i + CNV_GENES] for i in range(5)) / np.sqrt(5)
    return np.digitize(smooth, [-2.0, -1.0, 1.0, 1.9]) - 2


def mutations(rng: np.random.Generator, patients: int) -> np.ndarray:
    """[P, 60] 0/1, each gene with its own frequency between 2 % and 35 %."""
    frequency = rng.uniform(0.02, 0.35, MUTATION_GENES)
    return (rng.random((patients, MUTATION_GENES)) < frequency).astype(int)
