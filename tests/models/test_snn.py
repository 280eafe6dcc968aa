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
    model = build_model("snn", inputs, variant)
    return parameters(model), forward_flops(model, reference_patient(inputs, 0))


@pytest.mark.parametrize("length, count", [(3062, 982_532), (3096, 991_236), (9071, 2_520_836), (123, 230_148)])
def test_parameters_are_those_of_the_published_network(length, count):
    assert figures(length)[0] == count == 256 * length + 198_660


def test_operations_are_those_of_the_published_network():
    assert figures(3062)[1] == 1_963_008
    assert figures(3096)[1] == 1_980_416
    assert figures(4999, "survpath") == (1_346_820, 2_692_608)


def test_every_layer_starts_normal_with_the_right_spread_and_no_bias():
    model = build_model("snn", Inputs(vectors={"omics": 3062}))
    layers = [m for m in model.modules() if isinstance(m, nn.Linear)]
    assert len(layers) == 5
    for layer in layers:
        assert layer.weight.std().item() == pytest.approx(layer.in_features**-0.5, rel=0.05)
        assert (layer.bias == 0).all()


def test_blocks_are_elu_with_alpha_dropout_unless_told_otherwise(inputs):
    kinds = lambda **options: {type(m) for m in build_model("snn", inputs, **options).modules()}  # noqa: E731
    assert {nn.ELU, nn.AlphaDropout} <= kinds()
    assert {nn.SELU, nn.AlphaDropout} <= kinds(activation="selu")
    assert {nn.ReLU, Dropout} <= kinds(activation="relu")
    assert nn.AlphaDropout not in kinds(activation="relu")


def test_any_table_of_the_cohort_can_be_read():
    model = build_model("snn", Inputs(vectors={"clinical": 7}), modality="clinical")
    assert model.modalities == model.requires == ("clinical",)
    assert model(Patient.of(vectors={"clinical": torch.randn(7)})).logits.shape == (1, 4)


def test_missing_omics_is_never_imputed(inputs, draw):
    with pytest.raises(InputError, match="SNN cannot predict patient 0 of the batch: lacks omics; expected omics"):
        build_model("snn", inputs)(draw(lacks="omics"))


@pytest.mark.parametrize(
    "variant, changed",
    [
        ("mcat", {}),
        ("big", {"hidden": [1024, 1024, 1024, 256]}),
        (
            "survpath",
            {"hidden": [256, 256], "optimizer": "radam", "lr": 5e-4, "weight_decay": 1e-4, "alpha": 0.5, "batch_size": 1, "epochs": 5},
        ),
        ("survq", {"optimizer": "adamw", "lr": 5e-4, "weight_decay": 1e-3, "batch_size": 32, "epochs": 50}),
        ("selu", {"activation": "selu"}),
        ("relu", {"activation": "relu"}),
        ("l1_mcat", {"l1_lambda": 1e-4, "l1_per_sample": True, "l1_scope": "all"}),
        ("l1_porpoise", {"l1_lambda": 1e-5, "l1_per_sample": True, "l1_scope": "all"}),
        ("uniform", {"sampler": "uniform"}),
        ("carry", {"carry_remainder": True, "bins_from": "cohort"}),
        ("inner", {"selection": "inner"}),
        ("best_val", {"selection": "best_val"}),
    ],
)
def test_a_preset_is_what_its_source_states(variant, changed):
    settings = load_model_config("snn", variant)
    flat = {**settings["model"], **settings["training"]}
    assert {key: flat[key] for key in changed} == changed


def test_the_default_protocol_is_mcats():
    training = load_model_config("snn")["training"]
    expected = {"optimizer": "adam", "lr": 2e-4, "weight_decay": 1e-5, "batch_size": 32, "epochs": 20, "alpha": 0.0, "selection": "last"}
    assert {key: training[key] for key in expected} == expected
    assert (training["sampler"], training["schedule"], training["l1_lambda"]) == ("balanced", "none", 0.0)
    assert (training["bins_from"], training["carry_remainder"]) == ("train", False)
