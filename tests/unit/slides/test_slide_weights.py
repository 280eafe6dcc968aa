from __future__ import annotations

import pickle
import re

import numpy as np
import pytest

from pipeline.errors import InputError
from pipeline.files import sha256
from pipeline.slides.encoders.network import EncoderSettings, load_encoder
from pipeline.slides.encoders.table import encoder_spec

CPU = EncoderSettings("cpu", batch_size=2)
PATCHES = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
TINY = {  # the same class of network as UNI, small enough for a unit test
    "architecture": "vit_tiny_patch16_224",
    "options": {"img_size": 64, "depth": 2, "init_values": 1.0e-5, "num_classes": 0},
    **{"width": 192, "input_size": 64, "unused": ["head."]},
}
REGISTERS = {**TINY["options"], "reg_tokens": 4, "no_embed_class": True}
GATED = {**TINY["options"], "mlp_ratio": 5.3334, "act_layer": "silu"}


def spec(**changes: object):
    return encoder_spec("mine", {"mine": {**TINY, **changes}})


def network(**options: object):
    import timm
    import torch

    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", **{**TINY["options"], **options}).eval()
    for weight in model.state_dict().values():  # fresh networks have zero biases, which hide a mistake
        weight.add_(torch.randn_like(weight), alpha=0.1)
    return model


def named_as_in_transformers(state: dict, *, dinov2: bool, gated: bool) -> dict:
    """The checkpoint that the ViT or Dinov2 class of `transformers` would write for the weights of a timm network."""
    names = {"norm1": "norm1" if dinov2 else "layernorm_before", "norm2": "norm2" if dinov2 else "layernorm_after"}
    names |= {"attn.proj": "attention.output.dense", "ls1.gamma": "layer_scale1.lambda1", "ls2.gamma": "layer_scale2.lambda1"}
    inner = ("mlp.weights_in", "mlp.weights_out") if gated else ("mlp.fc1", "mlp.fc2") if dinov2 else ("intermediate.dense", "output.dense")
    names |= {"mlp.fc1": inner[0], "mlp.fc2": inner[1]}
    top = {"cls_token": "cls_token", "reg_token": "register_tokens", "pos_embed": "position_embeddings"}
    top |= {f"patch_embed.proj.{kind}": f"patch_embeddings.projection.{kind}" for kind in ("weight", "bias")}
    found = {"embeddings.mask_token": state["cls_token"][0]} if dinov2 else {}
    for name, value in state.items():
        if match := re.match(r"blocks\.(\d+)\.(.+)", name):
            layer, rest = f"encoder.layer.{match[1]}.", match[2]
            if rest.startswith("attn.qkv."):
                for part, rows in zip(("query", "key", "value"), value.chunk(3), strict=True):
                    found[f"{layer}attention.attention.{part}.{rest[9:]}"] = rows.clone()
            else:
                key = rest if rest in names else rest.rpartition(".")[0]
                found[layer + names[key] + rest[len(key) :]] = value
        else:
            found["embeddings." + top[name] if name in top else name.replace("norm.", "layernorm.")] = value
    if "reg_token" in state:
        import torch

        class_position = torch.randn_like(state["cls_token"])
        found["embeddings.cls_token"] = state["cls_token"] - class_position
        found["embeddings.position_embeddings"] = torch.cat([class_position, state["pos_embed"]], dim=1)
    return found


@pytest.mark.parametrize(
    ("options", "dinov2"),
    [({**TINY["options"], "init_values": None}, False), (TINY["options"], True), (REGISTERS, True), ({**REGISTERS, **GATED}, True)],
    ids=["vit", "dinov2", "registers", "swiglu"],
)
def test_a_checkpoint_of_transformers_gives_the_features_of_its_network(tmp_path, options, dinov2):
    import timm
    import torch

    gated = "act_layer" in options
    model = network(**options, **({"mlp_layer": timm.layers.SwiGLUPacked} if gated else {}))
    path = tmp_path / "pytorch_model.bin"
    torch.save(named_as_in_transformers(model.state_dict(), dinov2=dinov2, gated=gated), path)
    entry = {**options, **({"mlp_layer": "SwiGLUPacked"} if gated else {})}
    found = load_encoder(spec(options=entry, checkpoint=str(path)), CPU).encode(PATCHES)
    with torch.no_grad():
        expected = model(torch.from_numpy(PATCHES).permute(0, 3, 1, 2) / 255).numpy()
    assert np.abs(expected[0] - expected[1]).max() > 0.01
    assert np.allclose(found, expected, atol=1e-5)


def test_query_key_and_value_are_stacked_in_this_order():
    import torch

    from pipeline.slides.encoders.weights import timm_names

    parts = {"value": 3.0, "query": 1.0, "key": 2.0}
    state = {
        f"encoder.layer.7.attention.attention.{part}.{kind}": torch.full((2,), x)
        for part, x in parts.items()
        for kind in ("weight", "bias")
    }
    found = timm_names({"embeddings.patch_embeddings.projection.weight": torch.zeros(1), **state})
    assert set(found) == {"patch_embed.proj.weight", "blocks.7.attn.qkv.weight", "blocks.7.attn.qkv.bias"}
    assert found["blocks.7.attn.qkv.bias"].tolist() == [1, 1, 2, 2, 3, 3]


def test_names_of_timm_and_unknown_names_stay_as_they_are():
    import torch

    from pipeline.slides.encoders.weights import timm_names

    plain = {"cls_token": torch.zeros(1), "blocks.0.norm1.weight": torch.zeros(1)}
    assert timm_names(plain) == plain
    assert "pooler.dense.weight" in timm_names(
        {"embeddings.patch_embeddings.projection.weight": torch.zeros(1), "pooler.dense.weight": torch.zeros(1)}
    )


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    import torch

    path = tmp_path_factory.mktemp("weights") / "pytorch_model.bin"
    torch.save({**network().state_dict(), "head.weight": torch.zeros(3, 192), "head.bias": torch.zeros(3)}, path)
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"options": {"img_size": 64, "depth": 2, "num_classes": 0}},
            "has weights that are unknown to vit_tiny_patch16_224; found '4, first blocks.0.ls1",
        ),
        ({"options": {**TINY["options"], "num_classes": 7}, "unused": []}, "has weights of another shape to vit_tiny_patch16_224"),
        ({"options": {**TINY["options"], "reg_tokens": 4}}, "lacks weights to vit_tiny_patch16_224; found '1, first reg_token'"),
        ({"architecture": "vit_tiny_patch16_242"}, r"no such network; found 'vit_tiny_patch16_242'. Did you mean 'vit_tiny_patch16_224'\?"),
        ({"options": {**TINY["options"], "dept": 3}}, "timm refuses the options .*dept"),
        ({"width": 100}, r"output has another shape; found '\[2, 192\]', expected \[2, 100\]"),
    ],
)
def test_weights_that_do_not_fit_are_named(checkpoint, change, message):
    with pytest.raises(InputError, match=message):
        load_encoder(spec(checkpoint=str(checkpoint), **change), CPU).encode(PATCHES)


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
            load_encoder(spec(checkpoint=str(path)), CPU)
    assert "executed" not in capsys.readouterr().out


def test_an_absent_checkpoint_and_another_checkpoint_are_named(tmp_path):
    absent = encoder_spec("uni", {"uni": {"checkpoint": str(tmp_path / "absent.bin")}})
    for act in (absent.digest, lambda: load_encoder(absent, CPU)):
        with pytest.raises(InputError, match=r"absent.bin: encoder 'uni': no such checkpoint"):
            act()
    (tmp_path / "w.bin").write_bytes(b"x")
    with pytest.raises(InputError, match="not the expected checkpoint"):
        load_encoder(encoder_spec("uni", {"uni": {"checkpoint": str(tmp_path / "w.bin"), "sha256": "0" * 64}}), CPU)


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """The hub without a network, with an empty cache of its own."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_without_weights_and_network_the_message_says_how_to_get_them(offline):
    with pytest.raises(InputError) as error:
        load_encoder(encoder_spec("uni"), CPU)
    local = "ive a local checkpoint in config/config.yaml: `encoders: {uni: {checkpoint: /path/to/pytorch_model.bin}}`."
    assert str(error.value).startswith(
        "encoder 'uni': the weights could not be fetched from hf-hub:MahmoodLab/UNI (LocalEntryNotFoundError: "
    )
    assert error.value.remedy == (
        "The weights are gated: ask for access on the page of MahmoodLab/UNI, set HF_TOKEN to a token of your account, or g" + local
    )
    with pytest.raises(InputError) as error:
        load_encoder(encoder_spec("resnet50"), CPU)
    assert error.value.remedy == "G" + local.replace("uni", "resnet50")
    with pytest.raises(InputError, match=r"encoder 'mine' has neither a checkpoint nor a source of weights\. Give a local"):
        load_encoder(spec(), CPU)


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("source", ["lab/tiny", "lab/tiny@v1"])
def test_weights_that_the_hub_has_kept_need_no_network(offline, checkpoint, file, source):
    import torch
    from safetensors.torch import save_file

    folder = offline / "models--lab--tiny"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / (source.partition("@")[2] or "main")).write_text("0" * 40)
    (folder / "snapshots" / ("0" * 40)).mkdir(parents=True)
    kept = folder / "snapshots" / ("0" * 40) / file
    state = torch.load(checkpoint, weights_only=True)
    save_file(state, kept) if file.endswith("safetensors") else torch.save(state, kept)
    found = load_encoder(spec(source=source), CPU).encode(PATCHES)
    assert np.array_equal(found, load_encoder(spec(checkpoint=str(checkpoint)), CPU).encode(PATCHES))


def test_half_precision_weights_of_a_wrapped_checkpoint_are_read(tmp_path, checkpoint):
    import torch

    state = {f"module.{name}": value.half() for name, value in torch.load(checkpoint, weights_only=True).items()}
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "wrapped.pth")
    path = tmp_path / "wrapped.pth"
    found = load_encoder(spec(checkpoint=str(path), sha256=sha256(path)), CPU).encode(PATCHES)
    assert np.allclose(found, load_encoder(spec(checkpoint=str(checkpoint)), CPU).encode(PATCHES), atol=0.01)
