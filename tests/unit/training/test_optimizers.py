"""The optimisers take the steps of PyTorch's classes, bit for bit, and do not import its compiler."""

import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from pipeline.training.optimizers import UPDATES, Optimizer

PYTORCHS = {
    "adam": partial(torch.optim.Adam, fused=True),
    "adamw": partial(torch.optim.AdamW, fused=True),
    "radam": partial(torch.optim.RAdam, decoupled_weight_decay=True),
    "sgd": partial(torch.optim.SGD, momentum=0.9),
}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleList([nn.Linear(5, 7), nn.Linear(7, 1), nn.Linear(5, 1)])


def gradients(model: nn.Module, step: int) -> None:
    """Gradients of step `step`; the last layer has none in every second step."""
    torch.manual_seed(step)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    if step % 2:
        for parameter in model[2].parameters():
            parameter.grad = None


@pytest.mark.parametrize("name", UPDATES)
def test_every_step_has_the_bits_of_pytorchs_class_and_a_saved_state_goes_on(name):
    ours, theirs = network(), network()
    optimizer, reference = Optimizer(name, ours.parameters(), 1e-2, 1e-3), PYTORCHS[name](theirs.parameters(), lr=1e-2, weight_decay=1e-3)
    for step in range(12):
        gradients(ours, step)
        gradients(theirs, step)
        optimizer.lr = reference.param_groups[0]["lr"] = 1e-2 / (step + 1)
        optimizer.step()
        reference.step()
        if step == 6:
            saved = optimizer.state_dict()
            optimizer = Optimizer(name, ours.parameters(), 1e-2, 1e-3)
            optimizer.load_state_dict(saved)
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(mine, other)
    optimizer.zero_grad()
    assert all(parameter.grad is None for parameter in ours.parameters())
    optimizer.step()  # nobody has a gradient: nothing changes
    assert torch.equal(ours[0].weight, theirs[0].weight)


def test_training_imports_no_compiler(tmp_path):
    """A whole fit in a new process, which `torch._dynamo` would cost 1.5 CPU seconds."""
    code = """
import sys
import numpy as np, torch
from pathlib import Path
from pipeline.cohort.loader import CohortData
from pipeline.cohort.record import Labels
from pipeline.models import build_model
from pipeline.models.interface import Inputs
from pipeline.training.cost import training_seconds
from pipeline.training.loop import Trainer
from pipeline.training.protocol import Protocol
ids = [str(i) for i in range(8)]
data = CohortData({"omics": ({p: i for i, p in enumerate(ids)}, np.random.default_rng(0).normal(size=(8, 6)).astype("float32"))})
labels = Labels(ids, np.arange(8.0), np.ones(8, int), np.arange(8) % 4, (0.0, 2.0, 4.0, 6.0, 8.0))
trainer = Trainer(build_model("snn", Inputs(vectors={"omics": 6})), data, Protocol(epochs=2), 1)
trainer.fit(labels, None, labels, Path(sys.argv[1]), "key")
training_seconds(trainer.model, data, ids, 2, None)
sys.exit("torch._dynamo" in sys.modules)
"""
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "checkpoint.pt")],
        check=True,
        env={"PYTHONPATH": str(Path(__file__).parents[3] / "src")},
    )
