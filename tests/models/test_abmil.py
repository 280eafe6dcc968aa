from dataclasses import replace

import pytest
import torch
from torch import nn

from pipeline.errors import InputError
from pipeline.models import build_model
from pipeline.models.interface import Inputs
from pipeline.models.reference import forward_flops, parameters, reference_patient

REFERENCE = Inputs(bags={"wsi": 1024}, vectors={"omics": 3096})


@pytest.mark.parametrize(
    "variant, count",
    [("mcat", 920_069), ("porpoise", 789_765), ("survpath", 461_061), ("concat", 1_975_813), ("bilinear", 2_174_917)],
)
def test_parameters_are_those_of_the_published_presets(variant, count):
    assert parameters(build_model("abmil", REFERENCE, variant)) == count


@pytest.mark.parametrize("bins", [1, 4])
def test_the_preset_of_haf_has_its_encoder_and_a_linear_head(bins):
    model = build_model("abmil", Inputs(bags={"wsi": 1024}, bins=bins), "haf")
    assert parameters(model) == 69_793 + 64 * bins + bins


@pytest.mark.parametrize("variant, flops", [("mcat", 6_449_006_592), ("porpoise", 6_448_746_496), ("survpath", 3_225_552_896)])
def test_operations_of_4096_patches_are_those_of_the_published_presets(variant, flops):
    model = build_model("abmil", REFERENCE, variant)
    assert forward_flops(model, reference_patient(REFERENCE, 4096)) == flops


def test_attention_is_returned_and_its_bias_is_the_only_parameter_that_cannot_learn(inputs, draw):
    model = build_model("abmil", inputs).eval()
    output = model(draw(13))
    assert output.attention["wsi"].shape == (1, 13)
    output.logits.sum().backward()
    assert float(model.pool.score.bias.grad.abs()) < 1e-7


def test_porpoise_starts_xavier_normal_in_both_halves_of_the_attention():
    model = build_model("abmil", REFERENCE, "porpoise")
    values, gates = model.pool.project.weight.chunk(2)
    expected = (2 / (512 + 256)) ** 0.5
    assert values.std().item() == pytest.approx(expected, rel=0.02)
    assert gates.std().item() == pytest.approx(expected, rel=0.02)
    assert all((m.bias == 0).all() for m in model.modules() if isinstance(m, nn.Linear))


def test_without_masking_padding_takes_its_share_as_in_survpaths_code(inputs, draw, stack):
    model, patient = build_model("abmil", inputs, "unmasked").eval(), draw(9)
    padded = stack([patient, draw(13)])
    assert not torch.allclose(model(padded).logits[0], model(patient).logits[0], atol=1e-4)
    assert (model(padded).attention["wsi"][0, 9:] > 0).all()


@pytest.mark.parametrize("variant, lacks", [(None, "wsi"), ("concat", "wsi"), ("concat", "omics"), ("bilinear", "omics")])
def test_a_missing_modality_is_an_explicit_error(inputs, draw, variant, lacks):
    with pytest.raises(InputError, match=f"ABMIL cannot predict patient 0 of the batch: lacks {lacks}"):
        build_model("abmil", inputs, variant)(draw(lacks=lacks))


@pytest.mark.parametrize("fusion", ["concat", "bilinear"])
def test_the_fused_model_reads_both_modalities(inputs, draw, fusion):
    model, patient = build_model("abmil", inputs, fusion).eval(), draw()
    changed = replace(patient, vectors={"omics": torch.randn(1, 11)})
    assert not torch.allclose(model(changed).logits, model(patient).logits)
    assert not torch.allclose(model(replace(patient, bags=draw().bags)).logits, model(patient).logits)
