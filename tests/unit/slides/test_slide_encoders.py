from __future__ import annotations

import pickle

import numpy as np
import pytest

from pipeline.errors import InputError
from pipeline.files import sha256
from pipeline.slides.encoders.network import load_encoder
from pipeline.slides.encoders.table import TABLE, encoder_spec

PATCHES = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), dtype=np.uint8)
TINY = {  # the same class of network as UNI, small enough for a unit test
    "architecture": "vit_tiny_patch16_224",
    "options": {"img_size": 64, "depth": 2, "init_values": 1.0e-5, "num_classes": 0, "dynamic_img_size": True},
    **{"width": 192, "input_size": 64, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "unused": ["head."]},
}


def network(name: str, **options: object):
    import timm
    import torch

    torch.manual_seed(0)
    return timm.create_model(name, pretrained=False, **options).eval()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A random vit_tiny and its checkpoints: .bin, .safetensors, and a wrapped one with the prefix of DataParallel."""
    import torch
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("weights")
    model = network("vit_tiny_patch16_224", **TINY["options"])
    state = model.state_dict()
    torch.save({**state, "head.weight": torch.zeros(3, 192), "head.bias": torch.zeros(3)}, folder / "pytorch_model.bin")
    torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}}, folder / "wrapped.pth")
    save_file(state, folder / "model.safetensors")
    return model, folder


@pytest.mark.parametrize("file", ["pytorch_model.bin", "wrapped.pth", "model.safetensors"])
def test_a_local_checkpoint_gives_the_features_of_its_network(tiny, file):
    import torch

    model, folder = tiny
    spec = encoder_spec("mine", {"mine": {**TINY, "checkpoint": str(folder / file), "sha256": sha256(folder / file)}})
    found = load_encoder(spec, "cpu", batch_size=2).encode(PATCHES)
    mean, std = (torch.tensor(TINY[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        expected = model((torch.from_numpy(PATCHES).permute(0, 3, 1, 2) / 255 - mean) / std).numpy()
    assert found.shape == (5, 192)
    assert found.dtype == np.float32
    assert np.allclose(found, expected, atol=1e-4)


def test_patches_of_another_size_are_resized(tiny):
    _, folder = tiny
    encoder = load_encoder(encoder_spec("mine", {"mine": {**TINY, "checkpoint": str(folder / "model.safetensors")}}), "cpu")
    flat = np.full((1, 96, 96, 3), 180, np.uint8)
    assert np.allclose(encoder.encode(flat), encoder.encode(flat[:, :64, :64]), atol=1e-4)
    assert encoder.encode(flat[:0]).shape == (0, 192)


def test_a_batch_that_does_not_fit_is_halved_until_it_does(tiny, monkeypatch):
    import torch

    _, folder = tiny
    encoder = load_encoder(encoder_spec("mine", {"mine": {**TINY, "checkpoint": str(folder / "model.safetensors")}}), "cpu", batch_size=5)
    expected, forward, sizes = encoder.encode(PATCHES), encoder._forward, []

    def small_memory(patches):
        sizes.append(len(patches))
        if len(patches) > 1:
            raise torch.OutOfMemoryError
        return forward(patches)

    monkeypatch.setattr(encoder, "_forward", small_memory)
    assert np.allclose(encoder.encode(PATCHES), expected, atol=1e-5)
    assert sizes[:3] == [5, 2, 1]
    assert encoder.batch_size == 1


def test_resnet50_is_cut_after_its_third_stage(tmp_path):
    import torch

    full = network("resnet50")
    torch.save(full.state_dict(), tmp_path / "resnet50.pth")
    encoder = load_encoder(
        encoder_spec("resnet50_cut", {"resnet50_cut": {"checkpoint": str(tmp_path / "resnet50.pth"), "input_size": 64}}), "cpu"
    )
    found = encoder.encode(PATCHES[:2])
    images = torch.from_numpy(PATCHES[:2]).permute(0, 3, 1, 2) / 255
    images = (images - torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)) / torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
    with torch.no_grad():
        maps = full.layer3(full.layer2(full.layer1(full.maxpool(full.act1(full.bn1(full.conv1(images)))))))
    assert found.shape == (2, 1024)
    assert np.allclose(found, maps.mean((2, 3)).numpy(), atol=1e-4)


@pytest.mark.slow
def test_a_random_checkpoint_of_the_uni_architecture_goes_through_the_real_loader(tmp_path):
    import torch

    spec = encoder_spec("uni")
    model = network(spec.architecture, **spec.options)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    encoder = load_encoder(encoder_spec("uni", {"uni": {"checkpoint": str(tmp_path / "pytorch_model.bin")}}), "cpu")
    assert encoder.encode(PATCHES[:1]).shape == (1, 1024)


def test_without_weights_and_network_the_message_says_how_to_give_a_checkpoint(monkeypatch):
    import huggingface_hub.constants
    import timm

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(timm, "create_model", lambda *a, **k: (_ for _ in ()).throw(OSError("no network")))
    with pytest.raises(InputError) as error:
        load_encoder(encoder_spec("uni"), "cpu")
    assert str(error.value) == (
        "encoder 'uni': the weights could not be fetched from hf-hub:MahmoodLab/UNI (OSError: no network). "
        "Give a local checkpoint in config/config.yaml: `encoders: {uni: {checkpoint: /path/to/pytorch_model.bin}}`."
    )


def test_an_absent_checkpoint_and_another_checkpoint_are_named(tmp_path):
    absent = encoder_spec("uni", {"uni": {"checkpoint": str(tmp_path / "absent.bin")}})
    for act in (absent.digest, lambda: load_encoder(absent, "cpu")):
        with pytest.raises(InputError, match=r"absent.bin: encoder 'uni': no such checkpoint"):
            act()
    (tmp_path / "w.bin").write_bytes(b"x")
    with pytest.raises(InputError, match="not the expected checkpoint"):
        load_encoder(encoder_spec("uni", {"uni": {"checkpoint": str(tmp_path / "w.bin"), "sha256": "0" * 64}}), "cpu")


class Evil:
    def __reduce__(self):
        return (print, ("executed",))


def test_a_checkpoint_that_is_none_or_hides_code_is_refused(tmp_path, capsys):
    import torch

    torch.save({"weights": Evil()}, tmp_path / "evil.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Evil(), protocol=2))
    torch.save([1, 2], tmp_path / "list.pth")
    for name in ("noise.pth", "noise.safetensors", "empty.bin"):
        (tmp_path / name).write_bytes(b"" if name.startswith("empty") else b"no checkpoint at all")
    for path in sorted(tmp_path.iterdir()):
        with pytest.raises(InputError, match=path.name):
            load_encoder(encoder_spec("mine", {"mine": {**TINY, "checkpoint": str(path)}}), "cpu")
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"options": {"img_size": 64, "depth": 2, "num_classes": 0}},
            "has weights that are unknown to vit_tiny_patch16_224; found '4, first blocks.0.ls1",
        ),
        ({"options": {**TINY["options"], "num_classes": 7}, "unused": []}, "has weights of another shape to vit_tiny_patch16_224"),
        ({"options": {**TINY["options"], "reg_tokens": 4}}, "lacks weights to vit_tiny_patch16_224; found '1, first reg_token'"),
        ({"width": 100}, r"output has another shape; found '\[5, 192\]', expected \[5, 100\]"),
    ],
)
def test_weights_that_do_not_fit_are_named(tiny, change, message):
    _, folder = tiny
    spec = encoder_spec("mine", {"mine": {**TINY, "checkpoint": str(folder / "pytorch_model.bin"), **change}})
    with pytest.raises(InputError, match=message):
        load_encoder(spec, "cpu").encode(PATCHES)


def test_a_misspelt_encoder_or_key_gets_the_nearest_name():
    with pytest.raises(InputError, match=r"no such encoder; found 'resnet50_cutt'.* Did you mean 'resnet50_cut'\?"):
        encoder_spec("resnet50_cutt")
    with pytest.raises(InputError, match=r"unknown key of encoder 'uni'; found 'checkpont'. Did you mean 'checkpoint'\?"):
        encoder_spec("uni", {"uni": {"checkpont": "x"}})
    with pytest.raises(InputError, match="encoder 'mine' lacks 'architecture'"):
        encoder_spec("mine", {"mine": {"width": 3}})


def test_every_entry_of_the_table_reads_and_tells_its_licence():
    import yaml

    names = list(yaml.safe_load(TABLE.read_text()))
    assert {"stain_texture", "resnet50_cut", "resnet50", "vit_large_patch16_224", "uni"} <= set(names)
    specs = [encoder_spec(name) for name in names]
    assert all(spec.licence and spec.width > 0 for spec in specs)
    assert len({spec.digest() for spec in specs}) == len(specs)


def test_the_digest_follows_the_weights_not_their_place(tiny, tmp_path):
    _, folder = tiny
    spec = {**TINY, "checkpoint": str(folder / "model.safetensors")}
    (tmp_path / "copy.safetensors").write_bytes((folder / "model.safetensors").read_bytes())

    def digest(**change):
        return encoder_spec("mine", {"mine": {**spec, **change}}).digest()

    assert digest() == digest(checkpoint=str(tmp_path / "copy.safetensors")) == digest(licence="other")
    assert len({digest(), digest(checkpoint=str(folder / "wrapped.pth")), digest(input_size=32), digest(mean=[0.5] * 3)}) == 4
