import pytest
import torch
from torch.nn import functional

from pipeline.errors import InputError
from pipeline.nn.clam import ClamEncoder, clustering_loss


def encoder(classes=2, dropout=0.0, activation="none"):
    return ClamEncoder(12, 8, 4, classes, classes, activation=activation, dropout=dropout)


def padded(*lengths):
    mask = torch.arange(max(lengths) + 2) < torch.tensor(lengths)[:, None]
    return torch.randn(len(lengths), max(lengths) + 2, 12) * mask[..., None], mask


def count(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("hidden, gate, outputs, expected", [(64, 32, 2, 70_183), (512, 256, 2, 790_791), (512, 256, 4, 793_869)])
def test_parameters_are_those_of_the_specifications(hidden, gate, outputs, expected):
    assert count(ClamEncoder(1024, hidden, gate, outputs, outputs, activation="relu", dropout=0.25)) == expected


def test_the_vector_is_the_formula_of_the_paper():
    model, (features, mask) = encoder(), padded(7)
    h = model.project[0](features[0, :7])
    v, u = model.pool.project(h).chunk(2, dim=1)
    weights = (model.pool.score(v.tanh() * u.sigmoid())).softmax(dim=0)  # eq. 1
    found = model(features, mask)
    torch.testing.assert_close(found.vector[0], (weights * h).sum(dim=0))  # eq. 2
    torch.testing.assert_close(found.weights[0, :7], weights[:, 0])


def by_hand(model, features, label, samples=8):
    """The instance loss of one unpadded bag [N, 12], by sorting."""
    k = min(samples, len(features) // 2)
    if k == 0:
        return torch.zeros(())
    found = model(features[None], torch.ones(1, len(features), dtype=torch.bool))
    order = found.weights[0].argsort(descending=True)
    head = slice(2 * label, 2 * label + 2)
    logits = model.instance_heads(found.instances[0][torch.cat([order[:k], order[-k:]])])[:, head]
    return functional.cross_entropy(logits, torch.tensor([1] * k + [0] * k))


@pytest.mark.parametrize("classes", [2, 4])
def test_the_instance_loss_is_that_of_each_patient_alone_however_long_the_bag(classes):
    model, lengths = encoder(classes), (1, 2, 5, 13, 40)
    features, mask = padded(*lengths)
    label = torch.tensor([0, 1, 1, 0, classes - 1])
    found = clustering_loss(*model.extremes(model(features, mask), mask, 8), label)
    expected = [by_hand(model, features[row, :n], int(label[row])) for row, n in enumerate(lengths)]
    torch.testing.assert_close(found, torch.stack(expected))
    assert found[0] == 0


def test_padding_is_never_among_the_extremes():
    model, (features, mask) = encoder(), padded(3, 20)
    dirty = torch.where(mask[..., None], features, 1e3)
    label = torch.tensor([0, 1])
    clean, noisy = (clustering_loss(*model.extremes(model(x, mask), mask, 8), label) for x in (features, dirty))
    torch.testing.assert_close(noisy, clean)


def test_only_the_head_of_the_own_class_learns_and_the_choice_of_patches_has_no_gradient():
    model, (features, mask) = encoder(3), padded(9, 20)
    clustering_loss(*model.extremes(model(features, mask), mask, 8), torch.tensor([2, 2])).sum().backward()
    reached = model.instance_heads.weight.grad.unflatten(0, (3, 2)).abs().sum(dim=(1, 2))
    assert reached[2] > 0
    assert (reached[:2] == 0).all()
    assert model.pool.project.weight.grad is None
    assert model.project[0].weight.grad.abs().sum() > 0


def test_a_patient_without_instances_has_a_zero_vector_and_no_instance_loss():
    model = encoder()
    mask = torch.zeros(1, 1, dtype=torch.bool)
    found = model(torch.randn(1, 1, 12), mask)
    assert (found.vector == 0).all()
    assert clustering_loss(*model.extremes(found, mask, 8), torch.tensor([1])) == 0


def test_the_first_layer_has_the_activation_it_is_told():
    features, mask = padded(30)
    assert (encoder(activation="relu")(features, mask).instances >= 0).all()
    assert (encoder(activation="none")(features, mask).instances < 0).any()
    with pytest.raises(InputError, match="activation"):
        encoder(activation="rleu")


def test_dropout_acts_on_instances_and_on_the_gates_in_training_only():
    model, (features, mask) = encoder(dropout=0.5), padded(30)
    assert not torch.equal(model(features, mask).weights, model(features, mask).weights)
    assert (model(features, mask).instances == 0).any()
    model.eval()
    assert torch.equal(model(features, mask).vector, model(features, mask).vector)
