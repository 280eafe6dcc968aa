"""The state between two epochs, from which a killed run goes on to the bit-identical result.

An epoch's random numbers depend on (seed, epoch) alone, so no generator state has to be kept.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from pipeline.files import atomic
from pipeline.machine import machine_fault
from pipeline.tensors import check_tensors

log = logging.getLogger(__name__)


def save_checkpoint(path: Path, state: dict[str, Any], key: str) -> None:
    """Write `state` (tensors and plain values) atomically; `key` says which run it belongs to."""
    with atomic(path) as temporary, open(temporary, "wb") as handle:  # PyTorch's own writing tells of no cause
        torch.save({"key": key, **state}, handle)


def load_checkpoint(path: Path, key: str) -> dict[str, Any] | None:
    """The state saved under the same `key`, or None: absent, of other settings, or spoilt (then said in the log)."""
    if not path.is_file():
        return None
    try:
        check_tensors(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
        found = state.get("key")
    except Exception as error:  # what a damaged archive raises is torch's choice
        if fault := machine_fault(error, path):
            raise fault from error
        log.warning("%s cannot be read (%s): training starts from the first epoch", path, error)
        return None
    if found != key:
        log.warning("%s belongs to other settings or code: training starts from the first epoch", path)
        return None
    return state
