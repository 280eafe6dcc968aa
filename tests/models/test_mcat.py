import pytest
import torch

from pipeline.cohort.record import Patient
from pipeline.errors import InputError
from pipeline.models import build_model
from pipeline.models.interface import Inputs
from pipeline.models.reference import forward_flops, parameters, reference_patient

SIZES = (100, 200, 300, 400, 500, 600)


def reference(sizes=SIZES):
    return Inputs(bags={"wsi": 1024}, groups={"families": sizes})


def count(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    "sizes, fusion, expected",
    [
        (SIZES, "concat", 4_161_286),
        (SIZES, "bilinear", 4_360_390),
        ((94, 334, 521, 468, 1495, 479), "concat", 4_491_782),
        ((3, 24, 21, 22, 65, 15), "concat", 3_662_086),
    ],
)
def test_parameters_are_those_of_the_published_network(sizes, fusion, expected):
    assert parameters(build_model("mcat", reference(sizes), fusion=fusion)) == expected


def test_every_part_has_its_published_size():
    model = build_model("mcat", reference())
    branch = model.path_branch
    parts = [model.patches, model.coattention, branch.encoder, branch.pool, branch.rho, model.fusion, model.head, model.genes]
    expected = [262_400, 263_168, 1_054_208, 131_841, 65_792, 197_120, 1_028, 256 * sum(SIZES) + 6 * 66_048]
    assert [count(part) for part in parts] == expected


@pytest.mark.parametrize("fusion, expected", [("concat", 3_278_954_496), ("bilinear", 3_279_354_498)])
def test_operations_of_the_plain_form_are_those_of_the_published_network(fusion, expected):
    model = build_model("mcat", reference(), fusion=fusion, folded=False)
    assert forward_flops(model, reference_patient(reference(), 4096)) == expected


def test_folding_removes_a_third_of_the_operations_and_changes_nothing(inputs, draw, stack):
    patient = reference_patient(reference(), 4096)
    model = build_model("mcat", reference()).eval()
    folded, operations = model(patient), forward_flops(model, patient)
    model.coattention.folded = False
    plain = model(patient)
    assert operations < 0.68 * forward_flops(model, patient)
    torch.testing.assert_close(folded.logits, plain.logits, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(folded.attention["coattention_scores"], plain.attention["coattention_scores"], atol=1e-5, rtol=1e-4)


def test_the_coattention_map_is_the_softmax_of_the_raw_scores(inputs, draw, stack):
    attention = build_model("mcat", inputs).eval()(stack([draw(9), draw(13)])).attention
    assert attention["coattention"].shape == attention["coattention_scores"].shape == (2, 6, 15)
    torch.testing.assert_close(attention["coattention_scores"].softmax(-1), attention["coattention"])
    assert torch.isneginf(attention["coattention_scores"][0, :, 9:]).all()


def test_a_missing_modality_equals_zeros_after_preprocessing(inputs, draw):
    model, patient = build_model("mcat", inputs).eval(), draw(13)
    zero_bag = Patient.of(bags={"wsi": torch.zeros(13, 24)}, groups={"families": patient.groups["families"][0].split([5, 9, 3, 12, 1, 7])})
    torch.testing.assert_close(model(patient.without("wsi")).logits, model(zero_bag).logits)
    zero_genes = Patient.of(
        bags={"wsi": patient.bags["wsi"].features[0]}, groups={"families": [torch.zeros(n) for n in (5, 9, 3, 12, 1, 7)]}
    )
    torch.testing.assert_close(model(patient.without("omics")).logits, model(zero_genes).logits)


def test_without_slides_neither_patches_nor_their_number_matter(inputs, draw):
    model, genes = build_model("mcat", inputs).eval(), draw(13)
    fewer = Patient(bags=draw(4).bags, vectors=genes.vectors, groups=genes.groups, present=genes.present)
    torch.testing.assert_close(model(fewer.without("wsi")).logits, model(genes.without("wsi")).logits)


def test_learned_placeholders_are_used_and_learn_only_from_patients_who_lack_something(inputs, draw, stack):
    model = build_model("mcat", inputs, "learned")
    assert parameters(model) == parameters(build_model("mcat", inputs)) + 6 * 256 + 2 * 256
    model(stack([draw(), draw()])).logits.sum().backward()
    assert all((model.get_parameter(n).grad == 0).all() for n in ("absent_genes", "absent_omic", "absent_path"))
    model(stack([draw(), draw(lacks="omics"), draw(lacks="wsi")])).logits.sum().backward()
    assert all((model.get_parameter(n).grad != 0).any() for n in ("absent_genes", "absent_omic", "absent_path"))


def test_refusing_incomplete_patients_names_what_they_lack(inputs, draw):
    model = build_model("mcat", inputs, "refuse")
    assert model.requires == ("wsi", "omics")
    with pytest.raises(InputError, match="MCAT cannot predict patient 0 of the batch: lacks omics; expected wsi and omics"):
        model(draw(lacks="omics"))


def test_a_single_branch_allocates_nothing_for_the_other(inputs, draw):
    omic = build_model("mcat", Inputs(groups={"families": (5, 9, 3, 12, 1, 7)}), "omic_branch")
    assert omic.modalities == ("omics",)
    assert omic(draw(lacks="wsi")).logits.shape == (1, 4)
    path = build_model("mcat", inputs, "path_branch")
    assert not any(n.startswith(("omic_branch", "fusion")) for n, _ in path.named_parameters())


def test_the_coattention_starts_like_torchs_multihead_attention():
    torch.manual_seed(1)
    ours = build_model("mcat", reference()).coattention
    theirs = torch.nn.MultiheadAttention(256, 1)
    assert ours.query.weight.abs().max().item() == pytest.approx(theirs.in_proj_weight.abs().max().item(), rel=1e-3)
    assert all((layer.bias == 0).all() for layer in (ours.query, ours.key, ours.value, ours.output))
