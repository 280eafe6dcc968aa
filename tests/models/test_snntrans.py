import pytest
import torch
from torch import nn

from pipeline.cohort.record import Patient
from pipeline.errors import InputError
from pipeline.models import build_model
from pipeline.models.interface import Inputs
from pipeline.models.reference import forward_flops, parameters, reference_patient

REFERENCE = (100, 200, 300, 400, 500, 600)
BLCA = (94, 334, 521, 468, 1495, 479)


def offered(sizes):
    return Inputs(groups={"families": tuple(sizes)})


def patient(features):
    """One patient from his groups."""
    return Patient.of(groups={"families": features})


@pytest.mark.parametrize(
    "sizes, variant, count",
    [
        (REFERENCE, None, 1_461_508),
        (BLCA, None, 1_792_004),
        ((94, 334, 521, 468, 1496, 479), None, 1_792_260),
        (REFERENCE, "nystrom", 1_462_036),
        (BLCA, "nystrom", 1_792_532),
        (REFERENCE, "transmil", 1_462_036 + 22_016),
    ],
)
def test_parameters_are_those_of_the_specification(sizes, variant, count):
    assert parameters(build_model("snntrans", offered(sizes), variant)) == count


def test_operations_are_those_of_the_specification():
    inputs = offered(REFERENCE)
    flops = {v: forward_flops(build_model("snntrans", inputs, v), reference_patient(inputs, 0)) for v in (None, "nystrom")}
    assert flops[None] == pytest.approx(9.3e6, rel=0.01)
    # The published form does everything for 128 tokens, of which 121 are zeros, and multiplies the three factors from left to right.
    # Ours has one token of weight 121 in their place: the same function (test_nn_self_attention.py).
    square, narrow = 2 * 8 * 128**3, 2 * 8 * 128 * 128 * 32
    layer = 2 * 128 * 256 * (768 + 33 + 256) + 6 * 4 * square + square + 5 * narrow
    encoders = 2 * (sum(REFERENCE) * 256 + 6 * 256 * 256)
    assert encoders + 2 * layer == pytest.approx(1.902e9, rel=5e-4)
    assert flops["nystrom"] == pytest.approx(10.3e6, rel=0.01)


def test_exchanging_two_groups_with_their_encoders_changes_nothing():
    sizes, order = (5, 9, 3), [2, 0, 1]
    model = build_model("snntrans", offered(sizes)).eval()
    other = build_model("snntrans", offered([sizes[i] for i in order])).eval()
    weights = model.state_dict()
    moved = {}
    for name, value in weights.items():
        parts = name.split(".")
        if parts[0] == "encoders":
            parts[1] = str(order.index(int(parts[1])))
        moved[".".join(parts)] = value
    other.load_state_dict(moved)
    features = [torch.randn(n) for n in sizes]
    torch.testing.assert_close(other(patient([features[i] for i in order])).logits, model(patient(features)).logits)


@pytest.mark.parametrize("attention", ["full", "nystrom"])
@pytest.mark.parametrize("gap", [0, 1, 3])
def test_a_group_without_any_gene_is_masked(attention, gap):
    sizes = [5, 9, 3]
    whole = build_model("snntrans", offered(sizes), attention=attention).eval()
    holed = build_model("snntrans", offered([*sizes[:gap], 0, *sizes[gap:]]), attention=attention).eval()
    weights = {}
    for name, value in whole.state_dict().items():
        parts = name.split(".")
        if parts[0] == "encoders" and int(parts[1]) >= gap:
            parts[1] = str(int(parts[1]) + 1)
        weights[".".join(parts)] = value
    holed.load_state_dict(weights)
    features = [torch.randn(n) for n in sizes]
    empty = patient([*features[:gap], torch.zeros(0), *features[gap:]])
    if attention == "full":  # the others are what they would be if the group did not exist
        torch.testing.assert_close(holed(empty).logits, whole(patient(features)).logits)
    assert torch.isfinite(holed(empty).logits).all()


def test_with_a_position_encoding_an_empty_group_leaves_its_place_on_the_grid_empty():
    model = build_model("snntrans", offered([5, 0, 3]), "transmil").eval()
    seen = []
    model.position.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model(patient([torch.randn(5), torch.zeros(0), torch.randn(3)]))
    assert seen[0].shape == (1, 5, 256)  # the class token, three groups, and the first of them again to fill the square
    assert [bool(token.any()) for token in seen[0][0]] == [True, True, False, True, True]


def test_the_encoders_start_as_told(inputs):
    torch.manual_seed(0)
    normal = build_model("snntrans", offered((900,)), "self_normalising").encoders[0]
    first = next(m for m in normal.modules() if isinstance(m, nn.Linear))
    assert first.weight.std().item() == pytest.approx(900**-0.5, rel=0.05)
    assert not first.bias.any()
    with pytest.raises(InputError, match=r"option 'init'; found 'selfnormalising', .* Did you mean 'self_normalising'\?"):
        build_model("snntrans", inputs, init="selfnormalising")
    with pytest.raises(InputError, match=r"option 'attention'; found 'nystroem', .* Did you mean 'nystrom'\?"):
        build_model("snntrans", inputs, attention="nystroem")


def test_missing_omics_is_never_imputed(inputs, draw):
    with pytest.raises(InputError, match="SNNTrans cannot predict patient 0 of the batch: lacks omics"):
        build_model("snntrans", inputs)(draw(lacks="omics"))
