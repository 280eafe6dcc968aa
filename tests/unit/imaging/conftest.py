from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from synthetic_mri import affine, ball, write

SMALL = {  # the class of network that reads slices, small enough for a unit test
    "architecture": "resnet10t",
    "options": {"features_only": True, "out_indices": [2]},
    **{"width": 128, "input_size": 64, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
}


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    """A random ResNet cut after a stage, and the entry of config/encoders.yaml that builds it."""
    import timm
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    model = timm.create_model(SMALL["architecture"], pretrained=False, **SMALL["options"]).eval()
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_file(model.state_dict(), path)
    return model, {**SMALL, "checkpoint": str(path)}


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    """Three patients: one with two sequences on two grids and one mask, one with one sequence, one whose single image is damaged."""
    folder, rng = tmp_path / "mri", np.random.default_rng(0)
    fine, coarse = affine((1, 1, 4), (-30, -30, -30)), affine((1.5, 1.5, 6), (-33, -36, -33))
    noise = rng.gamma(3, 100, (60, 60, 15)).astype(np.float32)
    write(folder / "p1" / "art.nii.gz", noise, fine)
    write(folder / "p1" / "t2.nii.gz", rng.gamma(3, 100, (44, 48, 11)).astype(np.float32), coarse)
    write(folder / "p1" / "mask.nii.gz", ball(noise.shape, fine, (0, 3, 0), 11), fine)
    write(folder / "p2" / "t2.nii", noise[::-1], fine)
    write(folder / "p2" / "mask.nii", ball(noise.shape, fine, (-20, -28, 5), 9), fine)
    write(folder / "p3" / "art.nii.gz", noise, fine)
    write(folder / "p3" / "mask.nii.gz", noise > 900, fine)
    damaged = folder / "p3" / "art.nii.gz"
    damaged.write_bytes(damaged.read_bytes()[:5000])
    rows = [("p1", "art"), ("p1", "t2"), ("p2", "t2"), ("p3", "art")]
    table = pd.DataFrame(rows, columns=["case_id", "sequence"])
    suffix = table["case_id"].map({"p1": ".nii.gz", "p2": ".nii", "p3": ".nii.gz"})
    table["image"] = table["case_id"] + "/" + table["sequence"] + suffix
    table["mask"] = table["case_id"] + "/mask" + suffix
    table.to_csv(folder / "cases.tsv", sep="\t", index=False)
    return folder / "cases.tsv"
