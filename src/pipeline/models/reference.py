"""What a model costs: trainable parameters and operations of one forward pass at a stated input."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pipeline.cohort.record import Patient
from pipeline.models.interface import Inputs


def reference_patient(inputs: Inputs, patches: int | Mapping[str, int], seed: int = 0) -> Patient:
    """One random patient with everything that `inputs` offers; every bag holds `patches` instances, or each as many as it says."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    return Patient.of(
        bags={m: draw(_length(patches, m), width) for m, width in inputs.bags.items()},
        vectors={m: draw(length) for m, length in inputs.vectors.items()},
        groups={g: [draw(n) for n in sizes] for g, sizes in inputs.groups.items()},
    )


def describe(inputs: Inputs, patches: int | Mapping[str, int]) -> str:
    """The input in words, e.g. ``4096 patches × 1024, 6 families (2100 features)``."""
    parts = [f"{_length(patches, m)} patches × {width} ({m})" for m, width in inputs.bags.items()]
    parts += [f"{length} features ({m})" for m, length in inputs.vectors.items()]
    parts += [f"{len(sizes)} {g} of {sum(sizes)} features together" for g, sizes in inputs.groups.items()]
    return ", ".join(parts)


def _length(patches: int | Mapping[str, int], modality: str) -> int:
    return patches if isinstance(patches, int) else patches[modality]


def parameters(model: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


@torch.no_grad()
def forward_flops(model: nn.Module, patient: Patient) -> int:
    """Operations of the matrix products of one forward pass in eval mode, 2 a multiply–add (torch's own counter)."""
    counter = FlopCounterMode(display=False)
    model.eval()
    with counter:
        model(patient)
    return counter.get_total_flops()
