import math

import pytest
import torch
from torch.nn import functional

from pipeline.nn.alignment import contrast, discriminability, singular_emphasis, spectrum, unit


def units(*shape, dtype=torch.float64):
    return functional.normalize(torch.randn(*shape, dtype=dtype), dim=-1)


def emphasis(vectors, tau=0.1, observed=None):
    observed = torch.full((len(vectors),), vectors.shape[1]) if observed is None else observed
    return singular_emphasis(spectrum(vectors).values, observed, tau)


@pytest.mark.parametrize("tau, expected", [(0.1, 1.949e-11), (0.5, 0.0298), (1.0, 0.3547)])
def test_seven_equal_vectors_have_the_closed_form_of_one_direction(tau, expected):
    found = float(emphasis(units(3, 1, 128).expand(-1, 7, -1), tau))
    assert found == pytest.approx(math.log1p(6 * math.exp(-math.sqrt(7) / tau)), rel=1e-3)
    assert found == pytest.approx(expected, rel=2e-2)


@pytest.mark.parametrize("tau", [0.1, 1.0])
def test_seven_orthogonal_vectors_have_no_direction(tau):
    assert float(emphasis(torch.eye(7, 128, dtype=torch.float64)[None], tau)) == pytest.approx(math.log(7))


def test_one_vector_has_nothing_to_align():
    vectors = torch.zeros(1, 7, 128)
    vectors[0, 3] = units(128, dtype=torch.float32)
    assert emphasis(vectors, observed=torch.tensor([1])) == 0


def test_the_squares_of_the_singular_values_add_up_to_the_number_of_unit_vectors():
    torch.testing.assert_close(spectrum(units(4, 5, 16)).values.square().sum(dim=1), torch.full((4,), 5.0, dtype=torch.float64))


def test_identical_directions_cannot_be_told_apart_and_orthogonal_ones_can():
    assert float(discriminability(units(1, 9).expand(8, -1), 0.1)) == pytest.approx(math.log(8))
    orthogonal = float(discriminability(torch.eye(8, 9, dtype=torch.float64), 0.5))
    assert orthogonal == pytest.approx(math.log1p(7 * math.exp(-2)))


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-9)])
def test_values_and_direction_are_those_of_a_singular_value_decomposition(dtype, tolerance):
    vectors = torch.randn(6, 7, 32, dtype=dtype)
    left, values, _ = torch.linalg.svd(vectors.transpose(1, 2), full_matrices=False)
    found = spectrum(vectors)
    torch.testing.assert_close(found.values, values, atol=tolerance, rtol=tolerance)
    cosine = (found.direction * left[:, :, 0]).sum(dim=1).abs()
    torch.testing.assert_close(cosine, torch.ones_like(cosine), atol=tolerance, rtol=0)
    assert ((found.direction * vectors.sum(dim=1)).sum(dim=1) >= 0).all()


def test_a_vector_of_zeros_adds_a_singular_value_of_zero_and_changes_nothing_else():
    vectors = units(3, 4, 16)
    more = torch.cat([vectors[:, :2], torch.zeros(3, 2, 16, dtype=torch.float64), vectors[:, 2:]], dim=1)
    short, long = spectrum(vectors), spectrum(more)
    torch.testing.assert_close(long.values[:, :4], short.values)
    assert (long.values[:, 4:] <= 1e-5).all()
    torch.testing.assert_close(long.direction, short.direction)


def test_the_order_of_the_modalities_does_not_matter():
    vectors = units(5, 6, 16)
    first, other = spectrum(vectors), spectrum(vectors[:, torch.randperm(6)])
    torch.testing.assert_close(first.values, other.values)
    torch.testing.assert_close(first.direction, other.direction)


def two_at_an_obtuse_angle():
    """Their first direction is their difference, orthogonal to their sum: no sign is closer to it."""
    first, second = units(4, 16), units(4, 16)
    second = -second * (first * second).sum(dim=1, keepdim=True).sign()
    return torch.stack([first, second, torch.zeros(4, 16)], dim=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_sign_is_defined_where_the_first_direction_is_orthogonal_to_the_sum(dtype):
    vectors = two_at_an_obtuse_angle().to(dtype)
    found = spectrum(vectors).direction
    assert ((found * vectors.sum(dim=1)).sum(dim=1).abs() < 1e-6).all()
    torch.testing.assert_close(spectrum(vectors[:, [1, 2, 0]]).direction, found)
    assert (found.gather(1, found.abs().argmax(dim=1, keepdim=True)) > 0).all()


@pytest.mark.parametrize("case", [lambda: units(4, 5, 16), two_at_an_obtuse_angle])
def test_the_sign_that_the_decomposition_happens_to_return_does_not_matter(case, monkeypatch):
    vectors, decompose = case(), torch.linalg.eigh
    before = spectrum(vectors)
    monkeypatch.setattr(torch.linalg, "eigh", lambda gram: (decompose(gram)[0], -decompose(gram)[1]))
    after = spectrum(vectors)
    torch.testing.assert_close(after.values, before.values)
    torch.testing.assert_close(after.direction, before.direction)


def test_gradients_are_those_of_finite_differences():
    vectors = units(2, 4, 6).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: spectrum(v).values, vectors)
    assert torch.autograd.gradcheck(lambda v: spectrum(v).direction, vectors)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("case", ["one absent", "two absent", "two equal", "one left", "none left", "all equal", "orthogonal"])
def test_gradients_are_finite_where_eigenvalues_coincide(case, half):
    vectors = units(4, 5, 16, dtype=torch.float32)
    absent = {"one absent": [2], "two absent": [1, 4], "one left": [0, 1, 2, 4], "none left": [0, 1, 2, 3, 4]}.get(case, [])
    vectors[:, absent] = 0
    if case == "two equal":
        vectors[:, 1] = vectors[:, 0]
    if case == "all equal":
        vectors = vectors[:, :1].expand(-1, 5, -1).clone()
    if case == "orthogonal":
        vectors = torch.eye(5, 16).expand(4, -1, -1).clone()
    vectors = vectors.to(torch.bfloat16 if half else torch.float32).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
        found = spectrum(unit(vectors))
        assert found.values.dtype == found.direction.dtype == torch.float32
        observed = torch.full((4,), 5 - len(absent))
        (singular_emphasis(found.values, observed, 0.1) + discriminability(found.direction, 0.1)).backward()
    assert vectors.grad.abs().max() < 100
    assert (vectors.grad[:, absent].abs() < 1e-5).all()


def test_two_equal_among_others_have_the_gradient_of_finite_differences():
    vectors = units(2, 4, 6)
    vectors[:, 1] = vectors[:, 0]  # λ₄ = 0, whose root has no slope: it is clamped
    vectors.requires_grad_()
    assert torch.autograd.gradcheck(lambda v: spectrum(v).values[:, :3], vectors)
    assert torch.autograd.gradcheck(lambda v: spectrum(v).direction, vectors)


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-22, 1e-20, 1e-12])
def test_vectors_too_short_to_have_a_direction_do_no_harm(scale):
    vectors = (torch.randn(2, 5, 8) * scale).requires_grad_()
    for found in (spectrum(vectors), spectrum(unit(vectors))):
        (found.values.sum() + found.direction.sum()).backward()
        assert found.values.isfinite().all()
        assert found.direction.isfinite().all()
        assert vectors.grad.isfinite().all()


def test_what_is_not_a_number_stays_so_and_raises_nothing():
    vectors = torch.randn(2, 5, 8)
    vectors[0, 0, 0] = torch.nan
    found = spectrum(vectors)
    assert found.values[0].isnan().all()
    assert found.values[1].isfinite().all()


def test_lowering_the_emphasis_brings_the_vectors_together():
    free = torch.randn(8, 4, 16).requires_grad_()
    optimizer = torch.optim.Adam([free], lr=0.2)
    for _ in range(40):
        optimizer.zero_grad()
        emphasis(functional.normalize(free, dim=-1), 0.5).backward()
        optimizer.step()
    shares = spectrum(functional.normalize(free, dim=-1)).values.square() / 4
    assert shares[:, 0].min() > 0.98


def test_the_contrast_is_symmetric_and_that_of_clip():
    first, second = units(6, 16), units(6, 16)
    similarity, at = first @ second.T / 0.07, torch.arange(6)
    expected = (functional.cross_entropy(similarity, at) + functional.cross_entropy(similarity.T, at)) / 2
    torch.testing.assert_close(contrast(first, second, 0.07), expected)
    torch.testing.assert_close(contrast(second, first, 0.07), expected)


def test_equal_embeddings_of_all_patients_cost_the_logarithm_of_their_number():
    same = units(1, 16).expand(6, -1)
    assert float(contrast(same, same, 0.07)) == pytest.approx(math.log(6))
