import pytest
import torch
from torch import nn

from pipeline.cohort.record import Patient
from pipeline.errors import InputError
from pipeline.models import build_model, load_model_config
from pipeline.models.interface import Inputs
from pipeline.models.reference import forward_flops, parameters, reference_patient
from pipeline.nn.dropout import Dropout


def figures(length, variant=None):
    inputs = Inputs(vectors={"omics": length})
    model = build_model("mlp", inputs, variant)
    return parameters(model), forward_flops(model, reference_patient(inputs, 0))


def test_parameters_and_operations_are_those_of_the_published_network():
    assert figures(4999) == (161_188, 322_240)
    assert figures(4999, "wide")[0] == 1_346_820
    for d, h in ((1, 32), (3062, 32)):
        assert figures(d)[0] == d * h + h + h * h + h + 4 * h + 4


def test_it_is_two_relu_blocks_with_dropout_and_pytorchs_initialisation():
    model = build_model("mlp", Inputs(vectors={"omics": 400}))
    assert [type(m) for block in model.layers for m in block] == [nn.Linear, nn.ReLU, Dropout] * 2
    assert {m.probability for m in model.modules() if isinstance(m, Dropout)} == {0.25}
    first = model.layers[0][0]
    assert first.weight.abs().max() <= 400**-0.5
    assert first.bias.abs().max() > 0


def test_the_default_protocol_is_survpaths():
    training = load_model_config("mlp")["training"]
    expected = {"optimizer": "radam", "lr": 5e-4, "weight_decay": 1e-4, "batch_size": 1, "epochs": 5, "alpha": 0.5, "selection": "last"}
    assert {key: training[key] for key in expected} == expected
    assert (training["schedule"], training["warmup_epochs"], training["sampler"]) == ("cosine_warmup", 1, "balanced")
    assert load_model_config("mlp", "mcat")["training"]["batch_size"] == 32


def test_one_patient_keeps_the_batch_axis_and_any_table_can_be_read():
    model = build_model("mlp", Inputs(vectors={"clinical": 7}), modality="clinical")
    assert model(Patient.of(vectors={"clinical": torch.randn(7)})).logits.shape == (1, 4)


def test_missing_omics_is_never_imputed(inputs, draw):
    with pytest.raises(InputError, match="MLP cannot predict patient 0 of the batch: lacks omics; expected omics"):
        build_model("mlp", inputs)(draw(lacks="omics"))
