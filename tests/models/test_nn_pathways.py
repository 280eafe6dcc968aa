import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from pipeline.models.survq import PATHWAYS
from pipeline.nn.pathways import GroupedEncoder


def loop(encoder: GroupedEncoder, features: torch.Tensor) -> torch.Tensor:
    """The definition: one network after the other."""
    parts = features.split(list(encoder.sizes), dim=1)
    return torch.stack([encoder.network(g)(x) for g, x in enumerate(parts)], dim=1)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 70), min_size=1, max_size=12), st.integers(1, 3))
def test_all_groups_at_once_equal_the_loop(sizes, batch):
    encoder = GroupedEncoder(sizes, 8, 0.25).eval()
    features = torch.randn(batch, sum(sizes))
    torch.testing.assert_close(encoder(features), loop(encoder, features), atol=1e-6, rtol=1e-5)


def test_gradients_equal_those_of_the_loop():
    sizes = (1, 6, 2, 40, 3)
    encoder = GroupedEncoder(sizes, 8, 0.0).double()
    features = torch.randn(2, sum(sizes), dtype=torch.double)
    target = torch.randn(2, len(sizes), 8, dtype=torch.double)
    (encoder(features) * target).sum().backward()
    start = 0
    for g, size in enumerate(sizes):
        network = encoder.network(g)
        (network(features[:, start : start + size]) * target[:, g]).sum().backward()
        torch.testing.assert_close(encoder.weight_in.grad[encoder.rows(g)], network[0][0].weight.grad.T)
        torch.testing.assert_close(encoder.bias_in.grad[g], network[0][0].bias.grad)
        torch.testing.assert_close(encoder.weight_out.grad[g], network[1][0].weight.grad.T)
        torch.testing.assert_close(encoder.bias_out.grad[g], network[1][0].bias.grad)
        start += size


def test_operations_are_those_of_the_loop():
    sizes = (1, 6, 2, 40, 3, 6, 1)
    encoder, features = GroupedEncoder(sizes, 8, 0.25).eval(), torch.randn(3, sum(sizes))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        encoder(features)
    assert counter.get_total_flops() == 2 * 3 * (sum(sizes) * 8 + len(sizes) * 8 * 8)


class _Products(TorchDispatchMode):
    """Counts the matrix products."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func in {torch.ops.aten.bmm.default, torch.ops.aten.baddbmm.default, torch.ops.aten.addmm.default}
        return func(*args, **(kwargs or {}))


def test_331_networks_are_one_product_a_distinct_size_and_one_for_the_second_layer():
    encoder, features = GroupedEncoder(PATHWAYS, 4, 0.25).eval(), torch.randn(1, sum(PATHWAYS))
    counts = []
    for run in (encoder, lambda x: loop(encoder, x)):
        with _Products() as products, torch.no_grad():
            run(features)
        counts.append(products.count)
    assert counts == [len(set(PATHWAYS)) + 1, 2 * 331]


def test_331_networks_of_the_published_sizes_equal_the_loop():
    encoder, features = GroupedEncoder(PATHWAYS, 256, 0.25).eval(), torch.randn(2, sum(PATHWAYS))
    with torch.no_grad():
        assert float((encoder(features) - loop(encoder, features)).abs().max()) <= 1e-5


def test_every_row_of_the_first_layer_belongs_to_one_group():
    encoder = GroupedEncoder((4, 1, 4, 2), 8, 0.0)
    rows = [row for g in range(4) for row in range(11)[encoder.rows(g)]]
    assert sorted(rows) == list(range(11))
    assert [encoder.columns[row] for row in rows] == list(range(11))


def test_parameters_are_counted_without_padding():
    encoder = GroupedEncoder((1, 199, 8), 256, 0.25)
    assert sum(p.numel() for p in encoder.parameters()) == 208 * 256 + 3 * (256 + 256 * 256 + 256)
    assert set(encoder.state_dict()) == {"weight_in", "bias_in", "weight_out", "bias_out"}


def test_every_group_starts_from_its_own_fan_in():
    encoder = GroupedEncoder((1, 100, 4), 256, 0.25)
    for group, fan_in in enumerate((1, 100, 4)):
        weights = encoder.weight_in[encoder.rows(group)]
        bound = fan_in**-0.5
        assert weights.abs().max() <= bound
        assert weights.abs().max() > 0.95 * bound
    assert encoder.bias_in[1].abs().max() <= 0.1


def test_dropout_acts_in_training_only_and_differs_between_groups():
    encoder = GroupedEncoder((4, 4), 64, 0.5)
    features = torch.ones(1, 8)
    with torch.no_grad():
        for p in (encoder.weight_in, encoder.weight_out):
            p.fill_(0.1)
        encoder.bias_in.zero_()
        encoder.bias_out.zero_()
    assert not torch.equal(encoder(features)[0, 0], encoder(features)[0, 1])
    encoder.eval()
    torch.testing.assert_close(encoder(features)[0, 0], encoder(features)[0, 1])
