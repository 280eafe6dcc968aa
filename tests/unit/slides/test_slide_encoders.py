from __future__ import annotations

import threading
import time

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import InputError
from pipeline.slides.encoders import stain_texture
from pipeline.slides.encoders.network import COMPILE_FROM, IN_FLIGHT, EncoderSettings, deal, load_encoder
from pipeline.slides.encoders.table import TABLE, encoder_spec

PATCHES = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), dtype=np.uint8)
TINY = {  # the same class of network as UNI, small enough for a unit test
    "architecture": "vit_tiny_patch16_224",
    "options": {"img_size": 64, "depth": 2, "init_values": 1.0e-5, "num_classes": 0, "dynamic_img_size": True},
    **{"width": 192, "input_size": 64, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "unused": ["head."]},
}
CONVOLUTIONS = {"architecture": "resnet10t", "options": {"features_only": True, "out_indices": [2]}, "width": 128, "input_size": 64}


def network(name: str, **options: object):
    import timm
    import torch

    torch.manual_seed(0)
    return timm.create_model(name, pretrained=False, **options).eval()


def randomise_statistics(model) -> None:
    """A fresh BatchNorm changes nothing; this one does."""
    import torch

    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for values, low in (
                (module.running_mean, -0.5),
                (module.running_var, 0.5),
                (module.weight.data, 0.5),
                (module.bias.data, -0.5),
            ):
                values.uniform_(low, low + 1)


def normalised(patches: np.ndarray, spec: dict) -> object:
    import torch

    mean, std = (torch.tensor(spec.get(key, default)).view(1, 3, 1, 1) for key, default in (("mean", [0.0] * 3), ("std", [1.0] * 3)))
    return (torch.from_numpy(patches).permute(0, 3, 1, 2) / 255 - mean) / std


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A random vit_tiny, and an entry of the table for it with its checkpoint."""
    from safetensors.torch import save_file

    model = network("vit_tiny_patch16_224", **TINY["options"])
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_file(model.state_dict(), path)
    return model, {**TINY, "checkpoint": str(path)}


@pytest.fixture(scope="module")
def convolutions(tmp_path_factory):
    """A random small ResNet cut after a stage, and an entry of the table for it."""
    from safetensors.torch import save_file

    model = network("resnet10t", **CONVOLUTIONS["options"])
    randomise_statistics(model)
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_file(model.state_dict(), path)
    return model, {**CONVOLUTIONS, "checkpoint": str(path)}


def load(entry: dict, **how: object):
    return load_encoder(encoder_spec("mine", {"mine": entry}), EncoderSettings(**{"device": "cpu", **how}))


def test_an_encoder_is_added_by_yaml_alone(tiny):
    import torch

    model, entry = tiny
    text = yaml.safe_dump({"encoders": {"our_vit": {**entry, "licence": "ours"}}})
    found = load_encoder(encoder_spec("our_vit", yaml.safe_load(text)["encoders"]), EncoderSettings("cpu", batch_size=2)).encode(PATCHES)
    with torch.no_grad():
        expected = model(normalised(PATCHES, TINY)).numpy()
    assert found.shape == (5, 192)
    assert found.dtype == np.float32
    assert np.allclose(found, expected, atol=1e-4)


def test_patches_of_another_size_are_resized(tiny):
    encoder = load(tiny[1])
    flat = np.full((1, 96, 96, 3), 180, np.uint8)
    assert np.allclose(encoder.encode(flat), encoder.encode(flat[:, :64, :64]), atol=1e-4)
    assert encoder.encode(flat[:0]).shape == (0, 192)


def test_the_middle_is_cut_after_resizing(tiny):
    entry = {**tiny[1], "resize": 80, "interpolation": "bicubic"}
    large = np.random.default_rng(1).integers(0, 256, (2, 80, 80, 3), dtype=np.uint8)
    assert np.array_equal(load(entry).encode(large), load(tiny[1]).encode(large[:, 8:72, 8:72]))


@pytest.mark.parametrize("method", ["bilinear", "bicubic"])
def test_resizing_agrees_with_pillow(tiny, method):
    import cv2
    import torch
    from PIL import Image

    large = cv2.GaussianBlur(np.random.default_rng(2).integers(0, 256, (80, 80, 3), dtype=np.uint8), (0, 0), 1)
    (replica,) = load({**tiny[1], "interpolation": method, "mean": [0.0] * 3, "std": [1.0] * 3}).replicas
    ours = replica._prepare(torch.from_numpy(large[None]))[0].permute(1, 2, 0).numpy() * 255
    theirs = np.asarray(Image.fromarray(large).resize((64, 64), Image.Resampling[method.upper()]))
    assert np.abs(ours - theirs).max() < 1.1  # Pillow rounds after each direction


def test_tokens_are_pooled_without_registers(tmp_path):
    import torch
    from safetensors.torch import save_file

    options = {**TINY["options"], "reg_tokens": 4, "global_pool": ""}
    model = network("vit_tiny_patch16_224", **options)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    entry = {**TINY, "options": options, "checkpoint": str(tmp_path / "w.safetensors"), "pooling": "class_and_mean", "width": 384}
    with torch.no_grad():
        tokens = model(normalised(PATCHES, TINY)).numpy()
    assert tokens.shape == (5, 1 + 4 + 16, 192)
    assert np.allclose(load(entry).encode(PATCHES), np.concatenate([tokens[:, 0], tokens[:, 5:].mean(1)], axis=1), atol=1e-4)


def test_resnet50_is_cut_after_its_third_stage(tmp_path):
    import torch

    full = network("resnet50")
    randomise_statistics(full)
    torch.save(full.state_dict(), tmp_path / "resnet50.pth")
    spec = encoder_spec("resnet50_cut", {"resnet50_cut": {"checkpoint": str(tmp_path / "resnet50.pth"), "input_size": 64}})
    found = load_encoder(spec, EncoderSettings("cpu", batch_size=2)).encode(PATCHES[:2])
    images = normalised(PATCHES[:2], {"mean": spec.mean, "std": spec.std})
    with torch.no_grad():
        maps = full.layer3(full.layer2(full.layer1(full.maxpool(full.act1(full.bn1(full.conv1(images)))))))
    assert found.shape == (2, 1024)
    assert np.allclose(found, maps.mean((2, 3)).numpy(), rtol=1e-4, atol=1e-4)


def test_every_batchnorm_of_a_resnet_is_folded_and_nothing_changes(convolutions):
    import torch

    from pipeline.slides.encoders.rewriting import fold_batchnorm

    model, entry = convolutions
    folded = fold_batchnorm(model)
    assert not [m for m in folded.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    with torch.no_grad():
        (before,), (after,) = model(normalised(PATCHES, entry)), folded(normalised(PATCHES, entry))
    assert (before - after).abs().max() < 1e-5 * before.abs().max()
    assert np.allclose(load(entry).encode(PATCHES), before.mean((2, 3)).numpy(), rtol=1e-4, atol=1e-5)


def test_a_batchnorm_is_not_folded_where_the_convolution_has_another_reader():
    import torch
    from torch import nn

    from pipeline.slides.encoders.rewriting import fold_batchnorm

    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn, self.twice = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            maps = self.conv(x)
            return self.bn(maps) + maps if x.ndim else self.twice(maps)

    class Untraceable(Branching):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.bn(self.conv(x)) if x.sum() > 0 else x

    for model in (Branching().eval(), Untraceable().eval()):
        randomise_statistics(model)
        x = torch.rand(2, 3, 4, 4)
        assert torch.equal(fold_batchnorm(model)(x), model(x))


@pytest.mark.parametrize("kind", ["tiny", "convolutions"])
@pytest.mark.parametrize("devices", ["cpu", ["cpu", "cpu"]])
def test_a_patch_has_the_same_bits_whatever_its_place_company_and_device(request, kind, devices):
    entry = request.getfixturevalue(kind)[1]
    alone = np.concatenate([load(entry, batch_size=4).encode(patch[None]) for patch in PATCHES])
    encoder = load(entry, batch_size=4, device=devices)
    assert encoder.in_flight == 2 * len(encoder.replicas) == (2 if devices == "cpu" else 4)
    order = [3, 1, 4, 0, 2]
    assert np.array_equal(encoder.encode(PATCHES), alone)
    assert np.array_equal(encoder.encode(PATCHES[order]), alone[order])
    batches = [PATCHES[:3], PATCHES[3:3], PATCHES[3:], PATCHES]  # smaller, empty, larger than the batch size
    for found, expected in zip(encoder.encode_all(iter(batches)), [alone[:3], alone[3:3], alone[3:], alone], strict=True):
        assert np.array_equal(found, expected)


def test_a_batch_that_does_not_fit_is_halved_until_it_does(tiny, monkeypatch, caplog):
    import torch

    encoder = load(tiny[1], batch_size=5)
    (replica,), expected = encoder.replicas, encoder.encode(PATCHES)
    forward, sizes = replica._forward, []

    def small_memory(patches: np.ndarray) -> np.ndarray:
        sizes.append(len(patches))
        if len(patches) > 1:
            raise torch.OutOfMemoryError
        return forward(patches)

    monkeypatch.setattr(replica, "_forward", small_memory)
    assert np.allclose(encoder.encode(PATCHES), expected, atol=1e-5)
    assert sizes[:3] == [5, 2, 1]
    assert encoder.batch_size == encoder.describe()["batch_size"] == 1
    assert "out of memory on cpu: batches of 2 from here on" in caplog.text
    monkeypatch.setattr(replica, "_forward", lambda patches: (_ for _ in ()).throw(torch.OutOfMemoryError()))
    with pytest.raises(torch.OutOfMemoryError):
        encoder.encode(PATCHES)


def test_one_lack_of_memory_halves_the_batches_once(tiny, monkeypatch):
    import torch

    encoder = load(tiny[1], batch_size=4)
    (replica,), expected = encoder.replicas, encoder.encode(PATCHES)
    forward, errors = replica._forward, iter([torch.OutOfMemoryError()])

    def once(patches: np.ndarray) -> np.ndarray:
        for error in errors:
            raise error
        return forward(patches)

    monkeypatch.setattr(replica, "_forward", once)
    assert np.allclose(encoder.encode(PATCHES), expected, atol=1e-5)
    assert encoder.batch_size == 2


def test_what_fits_is_a_power_of_two_of_seven_tenths_of_the_memory():
    from pipeline.slides.encoders.replica import fitting_batch_size

    gib = 1 << 30
    assert fitting_batch_size(3 * gib, 11 * gib, 100 * gib) == 64  # 1 GiB an image, room for 70
    assert fitting_batch_size(3 * gib, 11 * gib, 90 * gib) == 32
    assert fitting_batch_size(3 * gib, 11 * gib, gib) == 1
    assert fitting_batch_size(gib, gib, gib) == 256


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 3), max_size=12), st.integers(1, 3), st.integers(1, 2))
def test_dealt_batches_come_back_in_order_and_few_are_held(delays, workers, threads):
    held, most, lock = 0, 0, threading.Lock()

    def batches():
        nonlocal held, most
        for number, delay in enumerate(delays):
            with lock:
                held += 1
                most = max(most, held)
            yield np.array([number, delay])

    def work(batch: np.ndarray) -> np.ndarray:
        time.sleep(batch[1] / 1000)
        return batch[:1]

    found = []
    for result in deal(batches(), [work] * workers, threads):
        with lock:
            held -= 1
        found.append(int(result[0]))
    assert found == list(range(len(delays)))
    assert most <= IN_FLIGHT * workers


def test_reading_goes_on_while_a_batch_is_encoded():
    encoding, read = threading.Event(), threading.Event()

    def batches():
        yield np.zeros(1)
        assert encoding.wait(10)
        read.set()
        yield np.zeros(1)

    def work(batch: np.ndarray) -> np.ndarray:
        encoding.set()
        assert read.wait(10)  # the first batch ends only when the second has been read
        return batch

    assert len(list(deal(batches(), [work]))) == 2


def test_errors_of_reading_and_of_encoding_are_passed_on():
    before = threading.active_count()

    def broken():
        yield np.zeros(1)
        raise OSError("tile")

    def fails(batch: np.ndarray) -> np.ndarray:
        raise InputError("no shape")

    with pytest.raises(OSError, match="tile"):
        list(deal(broken(), [np.copy, np.copy]))
    with pytest.raises(InputError, match="no shape"):
        list(deal(iter([np.zeros(1)] * 9), [np.copy, fails]))
    abandoned = deal(iter([np.zeros(1)] * 9), [np.copy])
    next(abandoned)
    abandoned.close()
    assert threading.active_count() == before  # no thread is left behind


def test_the_handcrafted_encoder_gives_the_same_in_any_number_of_threads():
    spec = encoder_spec("stain_texture")
    expected = stain_texture.describe(PATCHES)
    for threads in (1, 3):
        encoder = load_encoder(spec, EncoderSettings(threads=threads))
        assert np.array_equal(encoder.encode(PATCHES), expected)
        assert np.array_equal(np.concatenate(list(encoder.encode_all([PATCHES[:2], PATCHES[2:]]))), expected)
        assert (encoder.width, encoder.describe()) == (82, {})


def test_what_the_last_digits_depend_on_is_described(tiny):
    import torch

    found = load(tiny[1], threads=2).describe()
    kind = f"cpu {torch.backends.cpu.get_cpu_capability()}"
    assert found == {"device": kind, "precision": "float32", "compiled": False, "batch_size": 32, "threads": 2}


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"device": "cuda:77"}, r"column 'device': no such device; found 'cuda:77', expected auto, or of cpu"),
        ({"device": "gpu"}, r"column 'device': no such device; found 'gpu'"),
        ({"device": ["cpu", "mps"]}, r"column 'device': no such device; found 'mps'"),
        ({"device": []}, r"column 'device': names no device"),
        ({"precision": "bfloat"}, r"column 'precision': unknown precision; found 'bfloat'.* Did you mean 'bfloat16'\?"),
        ({"precision": "float16"}, r"column 'precision': the CPU lacks the precision; found 'float16', expected auto or float32\. Set the"),
        ({"batch_size": 0}, r"column 'batch_size': not a batch size; found '0', expected auto or a whole number from 1"),
        ({"batch_size": "large"}, r"column 'batch_size': not a batch size; found 'large'"),
    ],
)
def test_settings_that_the_machine_cannot_follow_are_named(tiny, how, message):
    with pytest.raises(InputError, match=message):
        load(tiny[1], **how)


def test_bfloat16_needs_a_cpu_that_has_it(tiny, monkeypatch):
    import torch

    capabilities = torch.cpu.get_capabilities() | {"avx512_bf16": False, "amx_bf16": False}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    with pytest.raises(InputError, match="the CPU lacks the precision; found 'bfloat16'"):
        load(tiny[1], precision="bfloat16")
    capabilities["avx512_bf16"] = True
    encoder = load(tiny[1], precision="bfloat16")
    exact = load(tiny[1]).encode(PATCHES)
    assert encoder.describe()["precision"] == "bfloat16"
    assert 0 < np.abs(encoder.encode(PATCHES) - exact).max() < 0.1


def test_a_network_is_compiled_when_the_whole_job_earns_it_back(tiny, monkeypatch):
    from pipeline.slides.encoders import replica

    monkeypatch.setattr(replica, "compile_network", lambda network, example: network)
    for how, expected in (
        ({}, False),
        ({"patches": COMPILE_FROM - 1}, False),
        ({"patches": COMPILE_FROM}, True),
        ({"patches": COMPILE_FROM, "compile": False}, False),
        ({"compile": True}, True),
    ):
        assert load(tiny[1], **how).describe()["compiled"] is expected
    assert load({**tiny[1], "input_size": None}, compile=True).describe()["compiled"] is False


@pytest.fixture
def own_cache(monkeypatch, tmp_path):
    """A compiler cache of its own, so that a test compiles whatever was compiled before."""
    import torch

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    torch._dynamo.reset()


@pytest.mark.slow
def test_a_compiled_network_gives_the_same_features_and_compiles_once(convolutions, own_cache):
    import torch

    plain, compiled = load(convolutions[1], batch_size=4), load(convolutions[1], batch_size=4, compile=True)
    assert compiled.describe()["compiled"] is True
    expected = plain.encode(PATCHES)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    found = np.concatenate(list(compiled.encode_all([PATCHES[:2], PATCHES, PATCHES[:1]])))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs
    assert np.allclose(found, np.concatenate([expected[:2], expected, expected[:1]]), rtol=1e-4, atol=1e-6)
    assert np.array_equal(found[:2], found[2:4])
    assert np.array_equal(compiled.encode(PATCHES[::-1])[::-1], found[2:7])


@pytest.mark.slow
def test_without_a_compiler_the_network_runs_as_it_is(convolutions, own_cache, monkeypatch, caplog):
    import torch._inductor.config

    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", ("no-such-compiler",))
    encoder = load(convolutions[1], batch_size=4, compile=True)
    assert encoder.describe()["compiled"] is False
    assert "the network cannot be compiled and runs as it is, slower" in caplog.text
    assert np.array_equal(encoder.encode(PATCHES), load(convolutions[1], batch_size=4).encode(PATCHES))


@pytest.mark.slow
def test_a_random_checkpoint_of_the_uni_architecture_goes_through_the_real_loader(tmp_path):
    import torch

    spec = encoder_spec("uni")
    model = network(spec.architecture, **spec.options)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    encoder = load_encoder(encoder_spec("uni", {"uni": {"checkpoint": str(tmp_path / "pytorch_model.bin")}}), EncoderSettings("cpu", 1))
    assert encoder.encode(PATCHES[:1]).shape == (1, 1024)


def test_a_misspelt_encoder_key_or_choice_gets_the_nearest_name():
    with pytest.raises(InputError, match=r"no such encoder; found 'resnet50_cutt'.* Did you mean 'resnet50_cut'\?"):
        encoder_spec("resnet50_cutt")
    with pytest.raises(InputError, match=r"unknown key of encoder 'uni'; found 'checkpont'. Did you mean 'checkpoint'\?"):
        encoder_spec("uni", {"uni": {"checkpont": "x"}})
    with pytest.raises(InputError, match="encoder 'mine' lacks 'architecture'"):
        encoder_spec("mine", {"mine": {"width": 3}})
    with pytest.raises(InputError, match=r"unknown pooling of encoder 'uni'; found 'class_mean', expected network or class_and_mean\."):
        encoder_spec("uni", {"uni": {"pooling": "class_mean"}})


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in yaml.safe_load(TABLE.read_text()) if name != "stain_texture"])
def test_the_architecture_of_an_entry_has_its_width(name):
    import torch

    from pipeline.slides.encoders.replica import Pooled, _create

    spec = encoder_spec(name)
    with torch.device("meta"):  # shapes without numbers
        found = Pooled(_create(spec).eval(), spec.pooling)(torch.zeros(2, 3, spec.input_size, spec.input_size))
    assert tuple(found.shape) == (2, spec.width)


def test_every_entry_of_the_table_reads_and_tells_its_licence_and_access():
    names = list(yaml.safe_load(TABLE.read_text()))
    specs = [encoder_spec(name) for name in names]
    assert all(spec.licence and spec.access and spec.width > 0 for spec in specs)
    assert len({spec.digest() for spec in specs}) == len(specs)
    assert all((spec.patch_size is None) == (spec.mpp is None) for spec in specs)


def test_the_digests_of_entries_stay_what_they_were():
    digests = {name: encoder_spec(name).digest() for name in ("stain_texture", "resnet50_cut", "resnet50", "vit_large_patch16_224", "uni")}
    assert digests == {
        "stain_texture": "de50a4e8c357a0bf",
        "resnet50_cut": "2f4c59e4a18db5cc",
        "resnet50": "5d8582e333a85c97",
        "vit_large_patch16_224": "c5936a8e9a15ec35",
        "uni": "81bf33717e92540d",
    }


def test_the_digest_follows_the_weights_not_their_place_nor_the_notes(tiny, tmp_path):
    entry = tiny[1]
    with open(entry["checkpoint"], "rb") as original:
        (tmp_path / "copy.safetensors").write_bytes(original.read())
    (tmp_path / "other.safetensors").write_bytes(b"other")

    def digest(**change: object) -> str:
        return encoder_spec("mine", {"mine": {**entry, **change}}).digest()

    assert digest() == digest(checkpoint=str(tmp_path / "copy.safetensors"))
    assert {digest(licence="other"), digest(access="gated"), digest(patch_size=224), digest(mpp=0.5)} == {digest()}
    assert {digest(pooling="network"), digest(interpolation="bilinear"), digest(resize=None)} == {digest()}
    changes = [{"checkpoint": str(tmp_path / "other.safetensors")}, {"input_size": 32}, {"mean": [0.5] * 3}, {"resize": 80}]
    changes += [{"pooling": "class_and_mean"}, {"interpolation": "bicubic"}]
    assert len({digest(), *(digest(**change) for change in changes)}) == 7
