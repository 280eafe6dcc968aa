"""Small inputs for tests of models: what a cohort offers, one patient of it, batches with padding and with absent modalities."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch

from pipeline.cohort.record import Bag, Patient
from pipeline.models.interface import Inputs

WIDTH = 24
FAMILIES, PATHWAYS = (5, 9, 3, 12, 1, 7), (1, 4, 17, 2, 6)


@pytest.fixture(scope="session")
def inputs() -> Inputs:
    return Inputs(bags={"wsi": WIDTH}, vectors={"omics": 11}, groups={"families": FAMILIES, "pathways": PATHWAYS})


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def draw(inputs: Inputs) -> Callable[..., Patient]:
    """draw(patches=…, lacks=…): one random patient of `inputs`."""

    def one(patches: int = 13, lacks: str = "") -> Patient:
        wsi = {"wsi": torch.randn(patches, WIDTH)} if lacks != "wsi" else {}
        omics = lacks != "omics"
        vectors = {"omics": torch.randn(11)} if omics else {}
        groups = {name: [torch.randn(n) for n in sizes] for name, sizes in inputs.groups.items()} if omics else {}
        return Patient.of(bags=wsi, vectors=vectors, groups=groups)

    return one


@pytest.fixture
def stack(inputs: Inputs) -> Callable[[Sequence[Patient]], Patient]:
    """stack(patients): the padded batch of single patients, absent modalities as the record defines them."""

    def together(patients: Sequence[Patient]) -> Patient:
        longest = max([p.bags["wsi"].features.shape[1] for p in patients if "wsi" in p.bags], default=1) + 2
        features, mask = torch.zeros(len(patients), longest, WIDTH), torch.zeros(len(patients), longest, dtype=torch.bool)
        for row, patient in enumerate(patients):
            if "wsi" in patient.bags:
                bag = patient.bags["wsi"].features[0]
                features[row, : len(bag)], mask[row, : len(bag)] = bag, True
        zeros = {name: torch.zeros(1, sum(sizes)) for name, sizes in inputs.groups.items()}
        return Patient(
            bags={"wsi": Bag(features, mask)},
            vectors={"omics": torch.cat([p.vectors.get("omics", torch.zeros(1, 11)) for p in patients])},
            groups={name: torch.cat([p.groups.get(name, zeros[name]) for p in patients]) for name in zeros},
            present={m: torch.cat([p.has(m) for p in patients]) for m in ("wsi", "omics")},
        )

    return together
