"""Networks: geometry on any backbone and size, heads against plain re-implementations, normalisation, BatchNorm."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from udaseg.errors import UserError
from udaseg.models import build_model
from udaseg.models.heads import DeepLabV2Head, FusionHead, sum_of_branches

SURVEY = [
    ("resnet10t", {}),
    ("resnet10t", {"output_stride": 32}),
    ("pvt_v2_b0", {"mlp_ratios": [4, 4, 4, 4]}),
    ("mobilenetv2_100", {"pad_type": "same", "bn_eps": 1e-3}),
    ("mobilenetv3_small_100", {}),
    ("efficientvit_b0", {}),
    ("convnext_atto", {}),
    ("edgenext_xx_small", {}),
    ("poolformer_s12", {}),
    ("swin_tiny_patch4_window7_224", {"strict_img_size": False}),  # maps come as NHWC
    ("vit_tiny_patch16_224", {}),  # one stride throughout
]


@pytest.mark.parametrize("size", [(64, 96), (97, 61)])
@pytest.mark.parametrize(("name", "args"), SURVEY)
def test_every_backbone_trains_with_the_daformer_head_at_any_size(block, name, args, size):
    model = build_model(block(backbone=name, backbone_args=args), 5)
    images = torch.randn(2, 3, *size)
    label = torch.randint(0, 5, (2, *size))
    output = model(images)
    assert [s.shape[1] for s in output.stages] == model.stage_channels
    for stage, stride in zip(output.stages, model.stage_strides, strict=True):
        assert all(abs(m - s / stride) <= 1 for m, s in zip(stage.shape[-2:], size, strict=True))
    assert output.logits.shape[1] == 5
    assert output.decoder is not None and output.decoder.shape[1] == model.decoder_channels == 16
    assert output.decoder.shape[-2:] == output.logits.shape[-2:]
    assert all(abs(m - s / 4) <= 8 for m, s in zip(output.logits.shape[-2:], size, strict=True))
    assert output.detail is None
    model.loss(output, label).backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("size", [(64, 64), (97, 61), (33, 47)])
@pytest.mark.parametrize("head", ["deeplabv2", "daformer", "segformer"])
def test_predictions_have_the_size_asked_for(block, head, size):
    model = build_model(block(head=head), 5).eval()
    with torch.no_grad():
        assert model.predict(torch.randn(1, 3, *size), size).shape == (1, 5, *size)
        assert model.predict(torch.randn(1, 3, *size), (120, 70)).shape == (1, 5, 120, 70)


def test_deeplabv2_works_at_stride_8_of_a_bottleneck_resnet(block):
    spec = block(backbone="resnet26", backbone_args={"output_stride": 8}, head="deeplabv2", dilations=(6, 12))
    model = build_model(spec, 5)
    output = model(torch.randn(1, 3, 64, 96))
    assert output.logits.shape == (1, 5, 8, 12)
    assert [s.shape[-2:] for s in output.stages] == [(16, 24), (8, 12), (8, 12), (8, 12)]
    assert output.decoder is None and model.decoder_channels is None


def test_plain_vit_takes_evenly_spaced_blocks_and_resizes_to_its_patch_size(block):
    model = build_model(block(backbone="vit_tiny_patch16_224"), 5).eval()
    assert list(model.encoder.body.feature_info.out_indices) == [2, 5, 8, 11]
    images = torch.randn(1, 3, 60, 50)
    resized = F.interpolate(images, size=(64, 64), mode="bilinear", align_corners=False)
    with torch.no_grad():
        output, wanted = model(images), model(resized)
    assert [s.shape[-2:] for s in output.stages] == [(4, 4)] * 4
    assert output.logits.shape[-2:] == (16, 16)  # the head works at about stride 4
    assert torch.equal(output.logits, wanted.logits)


def test_channels_last_maps_are_permuted(block):
    model = build_model(block(backbone="swin_tiny_patch4_window7_224", backbone_args={"strict_img_size": False}), 5)
    model.eval()
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        ours, raw = model.encoder(images), model.encoder.body(images)
    assert all(torch.equal(a, b.permute(0, 3, 1, 2)) for a, b in zip(ours, raw, strict=True))


def test_parameter_names_begin_with_encoder_or_head(block):
    model = build_model(block(), 5)
    assert {name.split(".")[0] for name in model.state_dict()} == {"encoder", "head"}
    assert not any("norm" in name for name, _ in model.head.named_parameters())


def bn(x, state, name):
    mean, var, weight, bias = (
        state[f"{name}.bn.{key}"].view(1, -1, 1, 1) for key in ("running_mean", "running_var", "weight", "bias")
    )
    return torch.relu((x - mean) / torch.sqrt(var + 1e-5) * weight + bias)


@pytest.mark.parametrize("dilations", [(6, 12, 18), ()])
def test_fusion_head_equals_section_5_2(dilations):
    torch.manual_seed(0)
    head = FusionHead([3, 4, 5, 6], 4, 7, 8, dilations, 0.1).double().eval()
    with torch.no_grad():
        for name, value in head.state_dict().items():
            if value.is_floating_point():
                value.copy_(torch.rand_like(value) + 0.5 if "running_var" in name else torch.randn_like(value))
    p = head.state_dict()
    stages = [torch.randn(2, c, 32 >> i, 24 >> i, dtype=torch.float64) for i, c in enumerate((3, 4, 5, 6))]
    with torch.no_grad():
        logits, fused = head(stages)

    maps = []
    for i, stage in enumerate(stages):  # step 1: a linear layer per pixel, then bilinear upsampling
        pixels = stage.flatten(2).transpose(1, 2) @ p[f"embed.{i}.weight"].flatten(1).T + p[f"embed.{i}.bias"]
        embedded = pixels.transpose(1, 2).unflatten(2, stage.shape[-2:])
        maps.append(F.interpolate(embedded, size=(32, 24), mode="bilinear", align_corners=False))
    x = torch.cat(maps, dim=1)
    if dilations:  # steps 2 and 3
        branches = [bn(F.conv2d(x, p["fuse.branches.0.conv.weight"]), p, "fuse.branches.0")]
        for i, d in enumerate(dilations, start=1):
            name = f"fuse.branches.{i}"
            y = bn(F.conv2d(x, p[f"{name}.0.conv.weight"], padding=d, dilation=d, groups=32), p, f"{name}.0")
            branches.append(bn(F.conv2d(y, p[f"{name}.1.conv.weight"]), p, f"{name}.1"))
        y = F.conv2d(torch.cat(branches, dim=1), p["fuse.bottleneck.conv.weight"], padding=1)
        x = bn(y, p, "fuse.bottleneck")
    else:
        x = bn(F.conv2d(x, p["fuse.conv.weight"]), p, "fuse")
    wanted = torch.einsum("kc,bchw->bkhw", p["classify.weight"].flatten(1), x) + p["classify.bias"].view(1, -1, 1, 1)
    torch.testing.assert_close(fused, x)
    torch.testing.assert_close(logits, wanted)


def test_fusion_head_drops_whole_channels_after_the_decoder_map():
    torch.manual_seed(0)
    head = FusionHead([3, 4], 4, 7, 8, (1,), 0.5).train()
    kept = []
    head.classify.register_forward_pre_hook(lambda _, args: kept.append(args[0]))
    _, fused = head([torch.randn(2, 3, 8, 8), torch.randn(2, 4, 4, 4)])
    ratio = kept[0].abs().sum((2, 3)) / fused.abs().sum((2, 3)).clamp_min(1e-12)
    assert set(ratio.round(decimals=3).flatten().tolist()) == {0.0, 2.0}


def test_deeplabv2_head_is_the_plain_sum_of_dilated_taps():
    torch.manual_seed(0)
    head = DeepLabV2Head(4, 3, (2, 3)).double()
    x = torch.randn(2, 4, 9, 7, dtype=torch.float64)
    wanted = torch.zeros(2, 3, 9, 7, dtype=torch.float64)
    for conv, d in zip(head.branches, (2, 3), strict=True):
        padded = F.pad(x, (d, d, d, d))
        wanted += conv.bias.view(1, -1, 1, 1)
        for i in range(3):
            for j in range(3):
                tap = padded[:, :, i * d : i * d + 9, j * d : j * d + 7]
                wanted += torch.einsum("kc,bchw->bkhw", conv.weight[:, :, i, j], tap)
    torch.testing.assert_close(sum_of_branches(head.branch_maps(x)), wanted)


@pytest.mark.parametrize("head", ["deeplabv2", "daformer", "segformer"])
def test_a_feature_is_classified_as_in_the_pass(block, head):
    torch.manual_seed(0)
    model = build_model(block(backbone="resnet10t", head=head, width=8, dilations=(2, 3)), 5).eval()
    output = model(torch.randn(2, 3, 32, 64))
    feature = output.feature
    assert feature.shape[1] == model.feature_channels
    torch.testing.assert_close(model.classify(feature), output.logits)
    if head == "deeplabv2":
        assert output.branches.shape[1] == 10
        torch.testing.assert_close(sum(output.branches.chunk(2, dim=1)), output.logits)
    else:
        assert output.branches is None


def test_initialisation(block):
    """Sections 5.1 (encoder), 5.2 and 5.4 (classifiers: normal, std 0.01)."""
    torch.manual_seed(0)
    spec = block(backbone="pvt_v2_b0", backbone_args={"mlp_ratios": [4, 4, 4, 4]}, width=256)
    model = build_model(spec, 19)
    assert model.head.classify.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert not model.head.classify.bias.any()
    linear = model.encoder.body.stages_3.blocks[0].mlp.fc1
    assert linear.weight.std().item() == pytest.approx(0.02, rel=0.05)
    conv = model.encoder.body.stages_3.downsample.proj
    assert conv.weight.std().item() == pytest.approx(math.sqrt(2 / (9 * 256)), rel=0.05)
    branch = DeepLabV2Head(512, 19, (6, 12)).branches[1]
    assert branch.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert not branch.bias.any()


def test_normalise_takes_bytes_and_unit_range(block):
    model = build_model(block(), 5)
    images = torch.randint(0, 256, (2, 3, 4, 5), dtype=torch.uint8)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    wanted = (images.float() / 255 - mean) / std
    torch.testing.assert_close(model.normalise(images), wanted)
    torch.testing.assert_close(model.normalise(images.float() / 255), wanted)
    assert "mean" not in model.state_dict() and "std" not in model.state_dict()


def test_base_o8_loss_averages_over_ignored_pixels_too(block):
    model = build_model(block(), 2)
    output = model(torch.randn(2, 3, 32, 32))
    logits_KN = torch.tensor([[2.0, 0, 1, 3], [0, 1, 1, -1]])
    output.logits = logits_KN.view(1, 2, 2, 2)
    label = torch.tensor([0, 1, 255, 1]).view(1, 2, 2)
    assert model.loss(output, label).item() == pytest.approx(1.11458492, abs=1e-6)
    weight = torch.tensor([1, 0.5, 1, 0.5]).view(1, 2, 2)
    assert model.loss(output, label, weight).item() == pytest.approx(0.57315844, abs=1e-6)


def test_loss_upsamples_half_precision_logits_in_single_precision(block):
    model = build_model(block(), 5)
    label = torch.randint(0, 5, (1, 64, 64))
    output = model(torch.randn(1, 3, 64, 64))
    output.logits = output.logits.bfloat16()
    loss = model.loss(output, label)
    enlarged = F.interpolate(output.logits.float(), size=(64, 64), mode="bilinear", align_corners=False)
    torch.testing.assert_close(loss, F.cross_entropy(enlarged, label))


def statistics(module):
    return [m.running_mean.clone() for m in module.modules() if isinstance(m, nn.BatchNorm2d)]


@pytest.mark.parametrize("batch_norm", ["eval", "train"])
def test_encoder_statistics_stay_only_with_batch_norm_eval(block, batch_norm):
    model = build_model(block(batch_norm=batch_norm), 5)
    for module in model.encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)  # timm closes residual branches at the start, which stops their gradients
    model.eval()
    model.train()
    encoder, head = statistics(model.encoder), statistics(model.head)
    output = model(torch.randn(2, 3, 64, 64) * 3 + 1)
    model.loss(output, torch.randint(0, 5, (2, 64, 64))).backward()
    same = [torch.equal(a, b) for a, b in zip(encoder, statistics(model.encoder), strict=True)]
    assert all(same) if batch_norm == "eval" else not any(same)
    assert not any(torch.equal(a, b) for a, b in zip(head, statistics(model.head), strict=True))
    affine = [m.weight for m in model.encoder.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(w.requires_grad and w.grad is not None and w.grad.any() for w in affine)
    assert copy.deepcopy(model).train().encoder.body.bn1.training == (batch_norm == "train")


def test_errors_name_found_expected_and_action(block):
    with pytest.raises(UserError, match=r"found 'resnet101x', expected a timm model name.*nearest: .*resnet101"):
        build_model(block(backbone="resnet101x"), 5)
    with pytest.raises(UserError, match=r"found 'resnet50\.a1_in1k', expected a timm model name without a tag"):
        build_model(block(backbone="resnet50.a1_in1k"), 5)
    with pytest.raises(UserError, match=r"model\.backbone_args: .*pvt_v2_b0 does not take.*colour"):
        build_model(block(backbone="pvt_v2_b0", backbone_args={"colour": 1}), 5)
    with pytest.raises(UserError, match=r"found 'fcn', expected one of deeplabv2, daformer, segformer"):
        build_model(block(head="fcn"), 5)
    with pytest.raises(UserError, match=r"model\.dilations: found none"):
        build_model(block(dilations=()), 5)
    with pytest.raises(UserError, match=r"found 'frozen', expected train or eval"):
        build_model(block(batch_norm="frozen"), 5)
