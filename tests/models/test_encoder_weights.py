"""Pretrained encoder weights: where they are looked for, how strictly they load, and the official MiT key map."""

import hashlib
import logging
import os
import re
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from transformers import SegformerConfig, SegformerModel

from udaseg.errors import UserError
from udaseg.models import build_model, load_encoder_weights
from udaseg.models.weights import find_weights, mit_to_timm, say

REAL = Path(os.environ.get("UDASEG_MIRROR", "")) / "weights" / "mobilenetv2_100.tf2_imagenet.safetensors"
MOBILENET = {
    "backbone": "mobilenetv2_100",
    "backbone_args": {"pad_type": "same", "bn_eps": 1e-3},
    "mean": (0.5, 0.5, 0.5),
    "std": (0.5, 0.5, 0.5),
    "batch_norm": "eval",
}
MIT_DEPTHS = [2, 2, 2, 2]
MIT_WIDTHS = {"pvt_v2_b0": [32, 64, 160, 256], "pvt_v2_b1": [64, 128, 320, 512]}


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a test reached for the network")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    folder = tmp_path / "mirror" / "weights"
    folder.mkdir(parents=True)
    monkeypatch.setenv("UDASEG_MIRROR", str(folder.parent))
    return folder


# --- the real file -------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not REAL.is_file(), reason=f"no {REAL.name} in the folder UDASEG_MIRROR")
def test_real_mobilenetv2_loads_strictly_and_sees(block, caplog):
    spec = block(**MOBILENET, weights="mobilenetv2_100.tf2_imagenet")
    torch.manual_seed(0)
    model = build_model(spec, 5).eval()
    images = model.normalise(torch.rand(2, 3, 64, 96))
    with torch.no_grad():
        untrained = model.encoder(images)
    say.cache_clear()
    with caplog.at_level(logging.INFO, logger="udaseg"):
        provenance = load_encoder_weights(model, spec, "imagenet")
        load_encoder_weights(build_model(spec, 5), spec, "imagenet")  # as the frozen reference does

    assert Path(provenance["file"]).resolve() == REAL.resolve()
    assert provenance["sha256"] == "9930718f66a8a43d58750c6f3a2f0fa5f53665786226ce4a90ab694ceb3d4a20"
    assert all(name.endswith("num_batches_tracked") for name in provenance["missing"])
    assert {name.split(".")[0] for name in provenance["unexpected"]} == {"classifier", "conv_head", "bn2"}
    assert provenance["matched"] + len(provenance["unexpected"]) == 262
    (line,) = caplog.messages
    assert (
        line
        == "encoder weights: mobilenetv2_100, 255 tensors of mobilenetv2_100.tf2_imagenet.safetensors, sha256 9930718f66a8"
    )
    with caplog.at_level(logging.DEBUG, logger="udaseg"):
        load_encoder_weights(model, spec, "imagenet")
    assert "only in the encoder: 51 batch counters; only in the file: " in caplog.messages[-1]
    assert "classifier.weight" in caplog.messages[-1] and provenance["file"] in caplog.messages[-1]

    plain = timm.create_model("mobilenetv2_100", pad_type="same", bn_eps=1e-3).eval()
    plain.load_state_dict(load_file(REAL), strict=False)
    with torch.no_grad():
        stages = model.encoder(images)
        _, wanted = plain.forward_intermediates(images, indices=(1, 2, 3, 4))
    for ours, theirs, random in zip(stages, wanted, untrained, strict=True):
        torch.testing.assert_close(ours, theirs)
        assert ours.std() > 0.1 and not torch.allclose(ours, random, atol=0.1)
        assert (ours.std(dim=(0, 2, 3)) > 1e-3).float().mean() > 0.9  # hardly any channel is silent


# --- strictness ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "args", "dropped"),
    [
        ("resnet10t", {}, {"fc"}),
        ("pvt_v2_b0", {}, {"head"}),
        ("convnext_atto", {}, {"head"}),
        ("mobilenetv3_small_050", {}, {"conv_head", "norm_head", "classifier"}),
        ("vit_tiny_patch16_224", {"dynamic_img_size": True}, {"norm", "head"}),
        ("swin_tiny_patch4_window7_224", {"strict_img_size": False}, {"norm", "head"}),
        ("efficientvit_b0", {}, {"head"}),
        ("edgenext_xx_small", {}, {"head"}),
    ],
)
def test_timm_classifiers_load_into_the_encoder(block, mirror, name, args, dropped):
    torch.manual_seed(0)
    plain = timm.create_model(name, pretrained=False, **args).eval()
    save_file(plain.state_dict(), mirror / f"{name}.any.safetensors")
    spec = block(backbone=name, backbone_args=args, weights=f"{name}.any")
    model = build_model(spec, 5).eval()
    provenance = load_encoder_weights(model, spec, "imagenet")
    assert provenance["missing"] == []
    assert provenance["matched"] == len(model.encoder.state_dict())
    assert {key.split(".")[0] for key in provenance["unexpected"]} <= dropped
    if hasattr(plain, "forward_intermediates"):
        images = torch.randn(1, 3, 64, 64)
        with torch.no_grad():
            wanted = plain.forward_intermediates(images, intermediates_only=True)[-1]  # NCHW by default
            torch.testing.assert_close(model.encoder(images)[-1], wanted)


def test_buffers_that_the_network_computes_itself_may_be_in_the_file(block, mirror):
    """Published Swin files carry index tables and masks that timm now builds at construction."""
    state = timm.create_model("resnet10t").state_dict()
    state["layer1.0.attn.relative_position_index"] = torch.zeros(4, dtype=torch.int64)
    save_file(state, mirror / "resnet10t.any.safetensors")
    spec = block(weights="resnet10t.any")
    provenance = load_encoder_weights(build_model(spec, 5), spec, "imagenet")
    assert "layer1.0.attn.relative_position_index" in provenance["unexpected"]


def test_the_head_is_untouched(block, mirror):
    save_file(timm.create_model("resnet10t").state_dict(), mirror / "resnet10t.any.safetensors")
    spec = block(weights="resnet10t.any")
    model = build_model(spec, 5)
    before = {k: v.clone() for k, v in model.head.state_dict().items()}
    load_encoder_weights(model, spec, "imagenet")
    assert all(torch.equal(v, before[k]) for k, v in model.head.state_dict().items())


def test_another_architecture_is_refused_with_the_first_tensor(block, mirror):
    save_file(timm.create_model("resnet14t").state_dict(), mirror / "resnet10t.any.safetensors")
    spec = block(weights="resnet10t.any")
    model = build_model(spec, 5)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(
        UserError,
        match=r"resnet10t\.any\.safetensors: tensor layer1\.0\.conv1\.weight: "
        r"found shape \(64, 64, 1, 1\), expected shape \(64, 64, 3, 3\)",
    ):
        load_encoder_weights(model, spec, "imagenet")
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("change", ["lacks", "adds"])
def test_one_lacking_or_additional_tensor_is_refused(block, mirror, change):
    state = timm.create_model("resnet10t").state_dict()
    if change == "lacks":
        del state["layer3.0.bn1.running_var"]
    else:
        state["layer5.0.conv1.weight"] = torch.zeros(1)
    save_file(state, mirror / "resnet10t.any.safetensors")
    spec = block(weights="resnet10t.any")
    name = "layer3.0.bn1.running_var" if change == "lacks" else "layer5.0.conv1.weight"
    with pytest.raises(UserError, match=rf"tensor {re.escape(name)}: found"):
        load_encoder_weights(build_model(spec, 5), spec, "imagenet")


# --- where files are looked for ------------------------------------------------------------------------------------


def test_timm_tags_are_taken_from_the_mirror_before_any_download(block, mirror):
    path = mirror / "resnet10t.c3_in1k.safetensors"
    save_file(timm.create_model("resnet10t").state_dict(), path)
    spec = block(weights="timm:c3_in1k")
    provenance = load_encoder_weights(build_model(spec, 5), spec, "imagenet")
    assert provenance["file"] == str(path)
    assert provenance["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_timm_tags_are_downloaded_when_the_mirror_has_none(block, mirror, tmp_path, monkeypatch):
    save_file(timm.create_model("resnet10t").state_dict(), tmp_path / "model.safetensors")
    asked = []

    def download(repository, name):
        asked.append((repository, name))
        return str(tmp_path / "model.safetensors")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    spec = block(weights="timm:c3_in1k")
    provenance = load_encoder_weights(build_model(spec, 5), spec, "imagenet")
    assert asked == [("timm/resnet10t.c3_in1k", "model.safetensors")]
    assert provenance["matched"] == len(build_model(spec, 5).encoder.state_dict())


def test_a_failed_download_and_an_unknown_tag_say_what_to_do(block, mirror, monkeypatch):
    def offline(*_):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    with pytest.raises(UserError, match=r"could not download timm/resnet10t\.c3_in1k .*no route.*UDASEG_MIRROR"):
        find_weights(block(weights="timm:c3_in1k"))
    with pytest.raises(UserError, match=r"found tag 'in22k', expected one of timm's for resnet10t: c3_in1k"):
        find_weights(block(weights="timm:in22k"))


def test_missing_files_are_named(block, mirror, monkeypatch, tmp_path):
    with pytest.raises(UserError, match=r"expected .*/weights/resnet10t\.mine\.safetensors, found nothing there"):
        find_weights(block(weights="resnet10t.mine"))
    with pytest.raises(UserError, match=r"found nothing at .*gone\.pth, expected"):
        find_weights(block(weights=str(tmp_path / "gone.pth")))
    with pytest.raises(UserError, match=r"found 'imagenet', expected timm:<tag>"):
        find_weights(block(weights="imagenet"))
    with pytest.raises(UserError, match=r"found 'hub:x\.y', expected timm:<tag>"):
        find_weights(block(weights="hub:x.y"))
    monkeypatch.delenv("UDASEG_MIRROR")
    with pytest.raises(UserError, match="found UDASEG_MIRROR unset"):
        find_weights(block(weights="resnet10t.mine"))


def test_broken_files_are_user_errors(block, tmp_path):
    for name, content in (("a.safetensors", b"123"), ("b.pth", b"not a pickle"), ("c.pth", b"")):
        path = tmp_path / name
        path.write_bytes(content)
        spec = block(weights=str(path))
        with pytest.raises(UserError, match=re.escape(name)):
            load_encoder_weights(build_model(spec, 5), spec, "imagenet")
    torch.save({"epoch": 3}, tmp_path / "d.pth")
    spec = block(weights=str(tmp_path / "d.pth"))
    with pytest.raises(UserError, match=r"d\.pth: found no tensors"):
        load_encoder_weights(build_model(spec, 5), spec, "imagenet")


def test_a_random_start_must_be_asked_for(block, caplog):
    spec = block(weights="none")
    model = build_model(spec, 5)
    with pytest.raises(UserError, match=r"model\.weights: found none, expected ImageNet weights for resnet10t"):
        load_encoder_weights(model, spec, "imagenet")
    with pytest.raises(ValueError, match="source_only"):
        load_encoder_weights(model, spec, "source_only")
    with caplog.at_level(logging.INFO, logger="udaseg"):
        assert load_encoder_weights(model, spec, "none")["file"] is None
    assert "resnet10t starts at random" in caplog.text


# --- official MiT names, against the implementation in transformers ------------------------------------


def official_names(reference: SegformerModel) -> dict[str, list[str]]:
    """Official MiT name -> the transformers tensors it is made of (kv = k over v)."""
    tails = {
        "layernorm_before": "norm1",
        "layernorm_after": "norm2",
        "attention.q_proj": "attn.q",
        "attention.k_proj": "attn.kv",
        "attention.v_proj": "attn.kv",
        "attention.o_proj": "attn.proj",
        "attention.sequence_reduction.sequence_reduction": "attn.sr",
        "attention.sequence_reduction.layer_norm": "attn.norm",
    }
    names: dict[str, list[str]] = {}
    for name in reference.state_dict():
        stage, rest = re.fullmatch(r"stages\.(\d)\.(.*)", name).groups()
        body, kind = rest.rsplit(".", 1)
        i = int(stage) + 1
        if body.startswith("patch_embeddings"):
            official = f"patch_embed{i}." + body.split(".")[1].replace("layer_norm", "norm")
        elif body == "layer_norm":
            official = f"norm{i}"
        else:
            _, j, tail = body.split(".", 2)
            official = f"block{i}.{j}." + tails.get(tail, tail)
        names.setdefault(f"{official}.{kind}", []).append(name)  # k comes before v in the module
    return names


def reference_model(backbone: str) -> SegformerModel:
    """transformers' encoder with random weights and the reference's eps (it builds every LayerNorm with 1e-5)."""
    torch.manual_seed(0)
    model = SegformerModel(SegformerConfig(depths=MIT_DEPTHS, hidden_sizes=MIT_WIDTHS[backbone])).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # biases at 0 and scales at 1 would hide a swapped name
                parameter.add_(0.1 * torch.randn_like(parameter))
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.LayerNorm) and ("layernorm_" in name or re.fullmatch(r".*\d\.layer_norm", name)):
            module.eps = 1e-6
    return model


@torch.no_grad()
def compare(reference: SegformerModel, encoder: torch.nn.Module) -> None:
    images = torch.randn(2, 3, 64, 96)
    wanted = reference(images, output_hidden_states=True).hidden_states
    stages = encoder(images)
    assert len(stages) == len(wanted) == 4
    for ours, theirs in zip(stages, wanted, strict=True):
        assert theirs.std() > 0.1
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("wrap", ["plain", "segformer"])
@pytest.mark.parametrize("backbone", MIT_WIDTHS)
def test_official_mit_file_reproduces_transformers(block, tmp_path, backbone, wrap):
    reference = reference_model(backbone)
    source = reference.state_dict()
    state = {name: torch.cat([source[part] for part in parts]) for name, parts in official_names(reference).items()}
    if wrap == "plain":
        content = {**state, "head.weight": torch.zeros(1000, 4), "head.bias": torch.zeros(1000)}
    else:
        decoder = {"decode_head.conv_seg.weight": torch.zeros(19, 4)}
        content = {"state_dict": {**{f"backbone.{name}": value for name, value in state.items()}, **decoder}}
    torch.save(content, tmp_path / "mit.pth")

    spec = block(backbone=backbone, backbone_args={"mlp_ratios": [4, 4, 4, 4]}, weights=str(tmp_path / "mit.pth"))
    model = build_model(spec, 5).eval()
    provenance = load_encoder_weights(model, spec, "imagenet")
    assert provenance["matched"] == len(state) == len(model.encoder.state_dict())
    assert provenance["missing"] == []
    assert {n.split(".")[0] for n in provenance["unexpected"]} == {"head" if wrap == "plain" else "decode_head"}
    compare(reference, model.encoder)


@pytest.mark.parametrize("backbone", MIT_WIDTHS)
def test_our_encoder_goes_back_to_transformers(block, backbone):
    reference = reference_model(backbone)
    torch.manual_seed(1)
    model = build_model(block(backbone=backbone, backbone_args={"mlp_ratios": [4, 4, 4, 4]}), 5).eval()
    ours, target = model.encoder.body.state_dict(), {}
    with torch.no_grad():
        for value in ours.values():
            if value.ndim == 1:
                value.add_(0.1 * torch.randn_like(value))
    for name, parts in official_names(reference).items():
        target.update(zip(parts, ours[mit_to_timm(name)].chunk(len(parts)), strict=True))
    reference.load_state_dict(target)
    compare(reference, model.encoder)


def test_mit_with_other_mlp_ratios_is_refused(block, tmp_path):
    """PVTv2's own ratios (8, 8, 4, 4) make another network of the same names."""
    reference = reference_model("pvt_v2_b0")
    source = reference.state_dict()
    state = {name: torch.cat([source[part] for part in parts]) for name, parts in official_names(reference).items()}
    torch.save(state, tmp_path / "mit.pth")
    spec = block(backbone="pvt_v2_b0", weights=str(tmp_path / "mit.pth"))
    with pytest.raises(UserError, match=r"tensor stages_0.*mlp\.fc1\.weight: found shape \(128, 32\), expected .*256"):
        load_encoder_weights(build_model(spec, 5), spec, "imagenet")


def test_names_outside_the_map_are_not_guessed():
    assert mit_to_timm("head.weight") is None
    assert mit_to_timm("block5.0.norm1.weight") is None
    assert mit_to_timm("norm4.bias") == "stages_3.norm.bias"
    assert mit_to_timm("block2.1.mlp.dwconv.dwconv.weight") == "stages_1.blocks.1.mlp.dwconv.weight"
