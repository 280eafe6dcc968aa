"""The counted operations are those of PyTorch's own counter, of every model that is trained."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from pipeline.models import available_models, build_model, load_model_config
from pipeline.models.reference import reference_patient
from pipeline.models.registry import entry
from pipeline.training.cost import OperationCounter

TRAINED = [name for name in available_models() if load_model_config(name)["training"]["epochs"]]


@pytest.mark.parametrize("name", TRAINED)
def test_the_operations_of_a_model_are_those_that_pytorch_counts(name):
    known = entry(name)
    torch.manual_seed(0)
    model, patient = build_model(name, known.reference).eval(), reference_patient(known.reference, 16 if known.patches else 0)
    ours, theirs = OperationCounter(), FlopCounterMode(display=False)
    with torch.no_grad(), ours:
        model(patient)
    with torch.no_grad(), theirs:
        model(patient)
    assert ours.operations == theirs.get_total_flops() > 0


def test_a_convolution_and_attention_are_counted():
    x = torch.randn(2, 3, 8, 8)
    layers = (torch.nn.Conv2d(3, 6, 3, groups=3), torch.nn.ConvTranspose2d(3, 4, 3))
    query, key, value = torch.randn(2, 4, 5, 8), torch.randn(2, 4, 7, 8), torch.randn(2, 4, 7, 16)
    ours, theirs = OperationCounter(), FlopCounterMode(display=False)
    for counter in (ours, theirs):
        with torch.no_grad(), counter:
            for layer in layers:
                layer(x)
            torch.nn.functional.scaled_dot_product_attention(query, key, value)
    assert ours.operations == theirs.get_total_flops()
