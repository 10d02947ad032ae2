"""Oracle o17: parameters and map sizes of the published networks (docs/models.md), on the meta device."""

import pytest
import torch
from torch import nn

from udaseg.models import Segmenter, build_model
from udaseg.models.backbones import Encoder

MIT = {  # encoder, with DAFormer head for 19 classes
    0: (3_319_392, 6_900_595),
    1: (13_151_424, 16_863_699),
    2: (24_196_288, 27_908_563),
    3: (44_072_128, 47_784_403),
    4: (60_842_688, 64_554_963),
    5: (81_443_008, 85_155_283),
}
MIT_ARGS = {"mlp_ratios": [4, 4, 4, 4], "drop_path_rate": 0.1}


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def build(spec) -> Segmenter:
    with torch.device("meta"):
        return build_model(spec, 19)


@pytest.mark.parametrize("variant", MIT)
def test_base_o17_mit_with_daformer_head(block, variant):
    model = build(block(backbone=f"pvt_v2_b{variant}", backbone_args=MIT_ARGS, width=256))
    assert (count(model.encoder), count(model)) == MIT[variant]
    if variant > 0:
        assert count(model.head) == 3_712_275
    channels = [32, 64, 160, 256] if variant == 0 else [64, 128, 320, 512]
    assert model.stage_channels == channels
    assert model.stage_strides == [4, 8, 16, 32]
    assert model.decoder_channels == 256


@pytest.mark.parametrize("variant", [1, 5])
def test_base_o17_segformer_256_head(block, variant):
    model = build(block(backbone=f"pvt_v2_b{variant}", backbone_args=MIT_ARGS, width=256, head="segformer"))
    assert count(model.head) == 530_707


@pytest.mark.parametrize(("dilations", "expected"), [((6, 12), 700_454), ((6, 12, 18, 24), 1_400_908)])
def test_base_o17_deeplabv2_head_on_resnet101c(block, dilations, expected):
    model = build(
        block(backbone="resnet101c", backbone_args={"output_stride": 8}, head="deeplabv2", dilations=dilations)
    )
    assert count(model.head) == expected
    assert round(count(model.encoder) / 1e6, 2) == 42.52
    if dilations == (6, 12):
        assert round(count(model) / 1e6, 2) == 43.22
    assert model.stage_channels == [256, 512, 1024, 2048]
    assert model.stage_strides == [4, 8, 8, 8]
    assert model.decoder_channels is None


def test_resnet101c_strides_and_dilations_block_by_block():
    """Section 5.4: stage strides (1,2,1,1), dilations (1,1,2,4), the first block of stages 3 and 4 contracted."""
    with torch.device("meta"):
        body = Encoder("resnet101c", {"output_stride": 8}).body
    stem = [m for m in body.conv1 if isinstance(m, nn.Conv2d)]
    assert [(m.kernel_size, m.stride, m.out_channels) for m in stem] == [
        ((3, 3), (2, 2), 32),
        ((3, 3), (1, 1), 32),
        ((3, 3), (1, 1), 64),
    ]
    assert (body.maxpool.kernel_size, body.maxpool.stride) == (3, 2)
    depths, strides = (3, 4, 23, 3), (1, 2, 1, 1)
    first, rest = (1, 1, 1, 2), (1, 1, 2, 4)
    for stage, layer in enumerate((body.layer1, body.layer2, body.layer3, body.layer4)):
        assert len(layer) == depths[stage]
        for index, unit in enumerate(layer):
            dilation = first[stage] if index == 0 else rest[stage]
            stride = strides[stage] if index == 0 else 1
            assert unit.conv1.stride == unit.conv3.stride == (1, 1)  # the stride sits on the 3x3 convolution
            assert unit.conv2.stride == (stride, stride)
            assert unit.conv2.dilation == unit.conv2.padding == (dilation, dilation)


@pytest.mark.parametrize("variant", [0, 5])
def test_mit_layer_norm_eps_and_drop_path(variant):
    """Section 5.1: eps 1e-6 in blocks and after stages, 1e-5 elsewhere; DropPath linear from 0 to 0.1."""
    with torch.device("meta"):
        body = Encoder(f"pvt_v2_b{variant}", MIT_ARGS).body
    norms = {name: m.eps for name, m in body.named_modules() if isinstance(m, nn.LayerNorm)}
    loose = {name for name in norms if "patch_embed" in name or "downsample" in name or "attn.norm" in name}
    assert all(norms[name] == 1e-5 for name in loose)
    assert all(eps == 1e-6 for name, eps in norms.items() if name not in loose)
    blocks = [m for name, m in body.named_modules() if name.split(".")[-1].isdigit() and hasattr(m, "drop_path1")]
    rates = [getattr(b.drop_path1, "drop_prob", 0.0) for b in blocks]
    assert rates == pytest.approx(torch.linspace(0, 0.1, len(blocks), device="cpu").tolist())
    assert rates == [getattr(b.drop_path2, "drop_prob", 0.0) for b in blocks]


@pytest.mark.parametrize(
    ("name", "args", "millions", "strides", "channels"),
    [
        ("resnet101", {"output_stride": 8}, 42.50, [4, 8, 8, 8], [256, 512, 1024, 2048]),
        ("resnet50", {"output_stride": 8}, 23.51, [4, 8, 8, 8], [256, 512, 1024, 2048]),
        ("convnext_tiny", {}, 27.82, [4, 8, 16, 32], [96, 192, 384, 768]),
        ("pvt_v2_b0", {}, 3.41, [4, 8, 16, 32], [32, 64, 160, 256]),
        ("pvt_v2_b2", {}, 24.85, [4, 8, 16, 32], [64, 128, 320, 512]),
        ("vit_small_patch14_dinov2", {}, 22.06, [14] * 4, [384] * 4),
        ("caformer_s18", {}, 23.24, [4, 8, 16, 32], [64, 128, 320, 512]),
        ("efficientvit_b0", {}, 0.68, [4, 8, 16, 32], [16, 32, 64, 128]),
        ("mobilenetv3_small_100", {}, 0.93, [4, 8, 16, 32], [16, 24, 48, 576]),
        ("mobilenetv2_100", {"pad_type": "same", "bn_eps": 1e-3}, 1.81, [4, 8, 16, 32], [24, 32, 96, 320]),
    ],
)
def test_survey_of_section_5_3(name, args, millions, strides, channels):
    with torch.device("meta"):
        encoder = Encoder(name, args)
    assert round(count(encoder) / 1e6, 2) == millions
    assert encoder.strides == strides
    assert encoder.channels == channels
