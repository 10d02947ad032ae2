"""HRDA against its oracles (docs/methods/hrda.md), a version with loops, and its published parameter counts."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from udaseg.errors import UserError
from udaseg.models import build_model
from udaseg.models.heads import FusionHead
from udaseg.models.hrda import HrdaSegmenter, box_mask, fuse, halved
from udaseg.models.segmenter import Fusion, Output
from udaseg.models.stems import with_own_stem
from udaseg.models.windows import averaged, windows
from udaseg.params import Hrda, Model, Size

Block = Callable[..., Model]
MIT_ARGS = {"mlp_ratios": [4, 4, 4, 4], "drop_path_rate": 0.1}


@pytest.fixture
def hrda(block: Block) -> Callable[..., HrdaSegmenter]:
    """`hrda(head="segformer", detail=(48, 32), box_step=16)`: a small network; what `Hrda` has not goes to the model block."""

    def build(detail: tuple[int, int] = (32, 32), classes: int = 5, **changes: Any) -> HrdaSegmenter:
        names = {field.name for field in dataclasses.fields(Hrda)}
        own = {key: changes.pop(key) for key in names & changes.keys()}
        found = build_model(block(hrda=Hrda(Size(*detail), **own), **changes), classes)
        assert isinstance(found, HrdaSegmenter)
        return found

    return build


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def maps(value: float, *shape: int) -> Tensor:
    return torch.full((1, 1, *shape), value, dtype=torch.float64)


BOX = torch.tensor([[16, 16, 48, 48]])  # rows and columns 2 .. 5 of a context grid of 8 cells of 8 pixels


def of_box(attention: float, detail: float) -> tuple[Tensor, Tensor]:
    placed = maps(0.0, 16, 16)
    placed[..., 4:12, 4:12] = detail
    return maps(attention, 8, 8) * box_mask(BOX, (8, 8), 8), placed


def test_hrda_q1_halving_is_the_mean_of_2x2_pixels() -> None:
    image = torch.arange(16.0).view(1, 1, 4, 4)
    assert halved(image).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    large = torch.rand(2, 3, 64, 96)
    torch.testing.assert_close(halved(large), F.interpolate(large, scale_factor=0.5, mode="bilinear"))


def test_hrda_q2_ring_at_the_border_of_the_box() -> None:
    attention, placed = of_box(0.25, 6.0)
    found = fuse(maps(2.0, 8, 8), attention, placed)[0, 0]
    row = [2, 2, 2, 1.875, 2.75, 3, 3, 3, 3, 3, 3, 2.75, 1.875, 2, 2, 2]
    assert found[8].tolist() == row
    assert found[4].tolist() == [2, 2, 2, 1.90625, 2.5625, *[2.75] * 6, 2.5625, 1.90625, 2, 2, 2]
    assert found[3].tolist() == [2, 2, 2, 1.96875, 1.90625, *[1.875] * 6, 1.90625, 1.96875, 2, 2, 2]
    assert torch.equal(found, found.T)  # the box is a square in the middle


def test_base_o14_fusion_of_constants() -> None:
    attention, placed = of_box(0.25, 6.0)
    found = fuse(maps(2.0, 8, 8), attention, placed)[0, 0]
    assert (found[5:11, 5:11] == 3).all()
    outside = torch.ones(16, 16, dtype=torch.bool)
    outside[3:13, 3:13] = False
    assert (found[outside] == 2).all()
    whole = fuse(maps(2.0, 8, 8), maps(0.25, 8, 8), maps(6.0, 16, 16))
    assert (whole == 3).all()  # the teacher and the test have no box, and no ring


def test_hrda_q3_boxes_of_a_seeded_generator(hrda: Callable[..., HrdaSegmenter]) -> None:
    network = hrda(detail=(512, 512))
    draw = np.random.RandomState(0).randint
    found = [network.random_box(draw, (1024, 1024)).tolist() for _ in range(3)]
    assert [box[:2] for box in found] == [[352, 376], [424, 0], [24, 472]]
    assert all(bottom - top == right - left == 512 for top, left, bottom, right in found)
    tops = [int(network.random_box(draw, (1024, 1024))[0]) for _ in range(500)]
    assert min(tops) == 0 and max(tops) == 504  # never 512: the last eight pixels lie in no box

    def none(n: int) -> int:
        raise AssertionError(f"drew of {n}")

    assert network.random_box(none, (512, 512)).tolist() == [0, 0, 512, 512]


def test_hrda_q4_order_of_cluda() -> None:
    attention, placed = of_box(0.25, 6.0)
    columns = torch.arange(8, dtype=torch.float64).expand(1, 1, 8, 8)
    ours = fuse(columns, attention, placed)[0, 0, 8].tolist()
    assert ours == [0, .25, .75, 1.125, 2.5, 3.1875, 3.5625, 3.9375, 4.3125, 4.6875, 5.0625, 5.4375, 5.4375, 6.25, 6.75, 7]  # fmt: skip
    theirs = fuse(columns, attention, placed, enlarged_first=True)[0, 0, 8].tolist()
    assert [i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b] == [3, 4, 11, 12]
    assert [theirs[i] for i in (3, 4, 11, 12)] == [1.171875, 2.546875, 5.390625, 5.390625]
    constant = fuse(maps(2.0, 8, 8), attention, placed), fuse(maps(2.0, 8, 8), attention, placed, enlarged_first=True)
    assert torch.equal(*constant)  # ring included


@pytest.mark.parametrize(
    ("offset", "row", "mask"), [(0, 0, (0, 32)), (8, 1, (0, 32)), (16, 2, (1, 33)), (24, 3, (1, 33)), (504, 63, (31, 63))]
)  # fmt: skip
def test_hrda_q5_deeplabv2_boxes_are_cut_to_cells(offset: int, row: int, mask: tuple[int, int]) -> None:
    box = torch.tensor([[offset, 0, offset + 512, 512]])
    assert (box[:, :1] // 8).tolist() == [[row]]
    rows = box_mask(box, (64, 64), 16)[0, 0, :, 0].nonzero().flatten()
    assert (int(rows.min()), int(rows.max()) + 1) == mask
    aligned = row == 2 * mask[0]  # half of all boxes
    assert aligned == (offset % 16 == 0)


def test_the_released_deeplabv2_shifts_half_of_its_boxes(hrda: Callable[..., HrdaSegmenter]) -> None:
    spec = {"backbone": "resnet10t", "backbone_args": {"output_stride": 8}, "head": "deeplabv2", "dilations": (2, 3)}
    torch.manual_seed(0)
    network = hrda(variant="released", box_step=8, **spec).eval()
    output = network(torch.randn(1, 3, 64, 64), boxes=torch.tensor([8, 0, 40, 32]))
    fusion = output.fusion
    assert fusion is not None
    assert fusion.attention[0, 0, :, 0].nonzero().flatten().tolist() == [0, 1]  # of rows 1/2 .. 5/2
    assert fusion.detail[0, 0, :, 0].nonzero().flatten().tolist() == [1, 2, 3, 4]
    with pytest.raises(UserError, match=r"box_step: found 8, expected a multiple of 16"):
        hrda(variant="paper", box_step=8, **spec)
    assert hrda(variant="paper", box_step=16, **spec).cell == 16


def test_hrda_q6_windows_and_coverage() -> None:
    assert sorted({y for y, _ in windows(1024, 1024, (512, 512), (256, 256))}) == [0, 256, 512]
    assert sorted({y for y, _ in windows(720, 720, (512, 512), (256, 256))}) == [0, 208]
    assert sorted({y for y, _ in windows(1080, 1080, (1024, 1024), (512, 512))}) == [0, 56]
    corners = windows(1024, 1024, (512, 512), (256, 256))
    covered = torch.zeros(1024, 1024)
    for y, x in corners:
        covered[y : y + 512, x : x + 512] += 1
    assert covered[0, 0] == 1 and covered[0, 512] == covered[512, 0] == 2 and (covered[256:768, 256:768] == 4).all()
    numbers = torch.arange(9.0)
    mean = averaged([torch.full((1, 1, 512, 512), float(n)) for n in numbers], corners, (1024, 1024))[0, 0]
    assert mean[0, 0] == 0 and mean[0, 300] == 0.5 and mean[300, 300] == (0 + 1 + 3 + 4) / 4


def of_crop(network: HrdaSegmenter, value: Tensor, detail: Tensor) -> Output:
    """An output with given fused (B, K, h, w) and detail logits, of a box in the upper left corner."""
    height, width = network.detail_window or (0, 0)
    boxes = torch.tensor([0, 0, height, width]).expand(len(value), 4)
    nothing = Fusion(value, torch.zeros_like(value), value)
    return Output(value, [], None, detail=Output(detail, [], None, boxes=boxes), fusion=nothing)


def test_hrda_q8_loss(hrda: Callable[..., HrdaSegmenter]) -> None:
    network = hrda(classes=2)

    def logits(loss: float, side: int) -> Tensor:  # ln(1 + e^d) = loss
        return torch.tensor([0.0, float(np.log(np.expm1(loss)))]).view(1, 2, 1, 1).repeat(1, 1, side, side)

    output, label = of_crop(network, logits(1.0, 16), logits(2.0, 8)), torch.zeros(1, 64, 64, dtype=torch.long)
    assert network.loss(output, label).item() == pytest.approx(1.1)
    fused, detail = network.loss_parts(output, label)
    assert (fused.item(), detail.item()) == pytest.approx((0.9, 0.2))
    assert (0.5 * fused + detail).item() == pytest.approx(0.65)
    # means are over all pixels of image and crop, ignored ones included; weights and labels are those of the crop
    label[:, :16] = 255
    assert [part.item() for part in network.loss_parts(output, label)] == pytest.approx([0.9 * 0.75, 0.2 * 0.5])
    weight = torch.zeros(1, 64, 64)
    weight[:, 16:32, :32] = 0.5
    assert [p.item() for p in network.loss_parts(output, label, weight)] == pytest.approx([0.9 / 16, 0.2 / 4])
    labelled = torch.tensor(48 * 64)  # BCL and PLCA divide by labelled pixels
    assert [p.item() for p in network.loss_parts(output, label, None, labelled)] == pytest.approx([0.9, 0.2])


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_loss_of_the_context_alone_is_an_ablation(hrda: Callable[..., HrdaSegmenter], variant: str) -> None:
    """A9: as released it sees attenuated logits, and the fused loss keeps 0.8."""
    network = hrda(detail=(64, 64), context_weight=0.1, variant=variant).eval()
    images, label = torch.randn(2, 3, 64, 64), torch.randint(0, 5, (2, 64, 64))
    output = network(images, boxes=network.random_box(lambda n: 1 // 0, (64, 64)))
    fused, detail, context = network.loss_parts(output, label)
    assert output.fusion is not None and output.detail is not None
    seen = output.fusion.context * ((1 - output.fusion.attention) if variant == "released" else 1)
    wanted = [
        share * F.cross_entropy(F.interpolate(logits, size=(64, 64), mode="bilinear"), label)
        for share, logits in ((0.8, output.logits), (0.1, output.detail.logits), (0.1, seen))
    ]
    torch.testing.assert_close([fused, detail, context], wanted)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [({"head": "daformer"}, (3_712_275, 530_707, 85_685_990)), ({"head": "daformer", "embedding": 512}, (5_057_811, 530_707, 87_031_526))],
)  # fmt: skip
def test_parameters_of_mit_b5(block: Block, changes: dict[str, Any], parts: tuple[int, int, int]) -> None:
    spec = block(backbone="pvt_v2_b5", backbone_args=MIT_ARGS, width=256, hrda=Hrda(Size(512, 512)), **changes)
    with torch.device("meta"):
        network = build_model(spec, 19)
        weight_head = FusionHead(network.stage_channels, 4, 1, 256, (), 0.1)  # CLUDA's learned weight
    assert isinstance(network, HrdaSegmenter)
    assert (count(network.head), count(network.attention_head), count(network)) == parts
    assert count(network.encoder) == 81_443_008
    assert count(weight_head) == 526_081
    if "embedding" in changes:
        assert count(network) + count(weight_head) == 87_557_607
    assert network.stage_strides == [8, 16, 32, 64] and network.multiple == 8


def test_deeplabv2_weighs_with_a_second_head(block: Block) -> None:
    spec = block(backbone="resnet101c", backbone_args={"output_stride": 8}, head="deeplabv2", dilations=(6, 12))
    with torch.device("meta"):
        network = build_model(dataclasses.replace(spec, hrda=Hrda(Size(512, 512), box_step=16)), 19)
    assert isinstance(network, HrdaSegmenter)
    assert count(network.head) == count(network.attention_head) == 700_454


def in_loops(network: HrdaSegmenter, images: Tensor, box: list[int], y: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """Fused logits and loss of (B, 3, H, W), pixel after pixel; the encoder and the heads are the network's own."""
    top, left, bottom, right = box
    batch, _, height, width = images.shape
    small = torch.stack([images[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)]).mean(dim=0)
    stages, fine = network.encoder(small), network.encoder(images[:, :, top:bottom, left:right])
    context, detail = network.decoded(stages).logits, network.decoded(fine).logits
    attention = network.attention(stages)
    o = network.stride

    def enlarged(grid: Tensor, times: int, i: int, j: int) -> Tensor:
        """Bilinear, half-pixel centres: the value of (B, K, h, w) at cell (i, j) of the grid that many times as fine."""
        places = []
        for k, n in ((i, grid.shape[2]), (j, grid.shape[3])):
            point = min(max((k + 0.5) / times - 0.5, 0), n - 1)
            low = min(int(point), n - 1)
            places.append((low, min(low + 1, n - 1), point - low))
        (a, b, s), (c, d, t) = places
        upper, lower = (
            (1 - t) * grid[:, :, a, c] + t * grid[:, :, a, d],
            (1 - t) * grid[:, :, b, c] + t * grid[:, :, b, d],
        )
        return (1 - s) * upper + s * lower

    gate = torch.zeros_like(attention)
    for i in range(gate.shape[2]):
        for j in range(gate.shape[3]):
            if int(top / (2 * o)) <= i < int(bottom / (2 * o)) and int(left / (2 * o)) <= j < int(right / (2 * o)):
                gate[:, :, i, j] = attention[:, :, i, j]
    rest = (1 - gate) * context
    rows = []
    for i in range(height // o):
        row = []
        for j in range(width // o):
            value = enlarged(rest, 2, i, j)
            k, n = i - top // o, j - left // o
            if 0 <= k < detail.shape[2] and 0 <= n < detail.shape[3]:
                value = value + enlarged(gate, 2, i, j) * detail[:, :, k, n]
            row.append(value)
        rows.append(torch.stack(row, dim=-1))
    fused = torch.stack(rows, dim=-2)

    def mean(logits: Tensor, i0: int, i1: int, j0: int, j1: int) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for i in range(i0, i1):
            for j in range(j0, j1):
                logp = enlarged(logits, o, i - i0, j - j0).log_softmax(dim=1)
                for n in range(batch):
                    if y[n, i, j] != 255:
                        total = total - w[n, i, j] * logp[n, y[n, i, j]]
        return total / (batch * (i1 - i0) * (j1 - j0))

    return fused, 0.9 * mean(fused, 0, height, 0, width) + 0.1 * mean(detail, *(top, bottom, left, right))


@pytest.mark.parametrize("spec", [
    {"head": "segformer", "width": 4},
    {"head": "deeplabv2", "backbone_args": {"output_stride": 8}, "dilations": (2, 3), "variant": "released", "detail": (32, 32)},
])  # fmt: skip
def test_value_and_gradient_equal_a_version_with_loops(
    hrda: Callable[..., HrdaSegmenter], spec: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    network = hrda(**{"detail": (16, 16), "classes": 3} | spec).double().eval()
    side = 32 if spec["head"] == "segformer" else 48
    images = torch.randn(2, 3, side, side + 16, dtype=torch.float64)
    y, w = torch.randint(0, 3, (2, side, side + 16)), torch.rand(2, side, side + 16, dtype=torch.float64)
    y[:, :5] = 255
    detail = network.detail_window or (0, 0)
    box = [8, 16, 8 + detail[0], 16 + detail[1]]
    output = network(images, boxes=torch.tensor(box))
    loss = network.loss(output, y, w)
    found = torch.autograd.grad(loss, list(network.parameters()))
    fused, expected = in_loops(network, images, box, y, w)
    torch.testing.assert_close(output.logits, fused)
    torch.testing.assert_close(loss, expected)
    for gradient, wanted in zip(found, torch.autograd.grad(expected, list(network.parameters())), strict=True):
        torch.testing.assert_close(gradient, wanted)


def test_every_image_may_have_a_box_of_its_own(hrda: Callable[..., HrdaSegmenter]) -> None:
    torch.manual_seed(0)
    network, images = hrda(variant="released").eval(), torch.randn(2, 3, 64, 64)
    shown: list[Tensor] = []
    where = torch.tensor([[0, 32, 32, 64], [16, 8, 48, 40]])

    def choose(logits: Tensor) -> Tensor:
        shown.append(logits)
        return where

    both = network(images, boxes=choose)
    assert both.fusion is not None and both.detail is not None
    torch.testing.assert_close(shown[0], both.fusion.context)
    assert not shown[0].requires_grad
    assert torch.equal(both.detail.boxes, where)
    for i in range(2):
        alone = network(images[i : i + 1], boxes=where[i])
        torch.testing.assert_close(both.logits[i : i + 1], alone.logits)
    y = torch.randint(0, 5, (2, 64, 64))
    each = [network.loss(network(images[i : i + 1], boxes=where[i]), y[i : i + 1]) for i in range(2)]
    torch.testing.assert_close(network.loss(both, y), torch.stack(each).mean())


def moved(network: HrdaSegmenter, boxes: Any) -> int:
    """How often the head's running statistics move in a pass."""
    network.train()(torch.randn(2, 3, 64, 64), boxes=boxes)
    return int(next(m for m in network.head.modules() if isinstance(m, nn.BatchNorm2d)).num_batches_tracked)


def test_running_statistics_of_the_head_move_as_released(hrda: Callable[..., HrdaSegmenter]) -> None:
    box = torch.tensor([0, 0, 32, 32])
    assert moved(hrda(), box) == 2
    assert moved(hrda(), lambda logits: box.expand(2, 4)) == 2
    assert moved(hrda(variant="released"), lambda logits: box.expand(2, 4)) == 3


def test_teacher_sees_all_windows_as_one_batch(
    hrda: Callable[..., HrdaSegmenter], caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    network = hrda(dropout=0.0)
    parts = copy.deepcopy(network)
    parts.p = dataclasses.replace(network.p, windows_at_once=3)  # type: ignore[type-var]
    images = torch.randn(2, 3, 64, 64)
    batches: list[int] = []
    network.encoder.register_forward_pre_hook(lambda _, args: batches.append(len(args[0])))
    with torch.no_grad():
        whole, split = network.train()(images).logits, parts.train()(images).logits
        assert batches == [2, 18]
        assert (whole - split).abs().max() > 1e-4  # other batch statistics, other labels
        torch.testing.assert_close(network.eval()(images).logits, copy.deepcopy(network).eval()(images).logits)
        exact = [copy.deepcopy(network).eval()(image[None]).logits for image in images]
        torch.testing.assert_close(network(images).logits, torch.cat(exact))  # nothing of a batch in evaluation mode
    caplog.clear()
    hrda(windows_at_once=3)
    assert "the result, are other ones" in caplog.text
    assert network(images).detail is None and network(images).logits.shape == (2, 5, 16, 16)


@pytest.mark.parametrize("size", [(64, 64), (97, 61), (33, 47), (20, 24)])
@pytest.mark.parametrize("head", ["deeplabv2", "daformer", "segformer"])
def test_predictions_have_the_size_asked_for(
    hrda: Callable[..., HrdaSegmenter], head: str, size: tuple[int, int]
) -> None:
    args = {"output_stride": 8} if head == "deeplabv2" else {}
    network = hrda(head=head, backbone_args=args, box_step=16).eval()
    with torch.no_grad():
        assert network.predict(torch.randn(1, 3, *size), size).shape == (1, 5, *size)


@pytest.mark.parametrize(
    ("name", "args"),
    [("mobilenetv2_100", {"pad_type": "same", "bn_eps": 1e-3}), ("vit_tiny_patch16_224", {}), ("pvt_v2_b0", {})],
)
def test_other_backbones(hrda: Callable[..., HrdaSegmenter], name: str, args: dict[str, Any]) -> None:
    network = hrda(backbone=name, backbone_args=args)
    images, label = torch.randn(2, 3, 64, 96), torch.randint(0, 5, (2, 64, 96))
    output = network(images, boxes=network.random_box(lambda n: n - 1, (64, 96)))
    assert output.logits.shape == (2, 5, 16, 24) and output.detail is not None and output.decoder is not None
    assert output.detail.logits.shape == (2, 5, 8, 8) and output.decoder.shape[-2:] == (8, 12)
    assert [tuple(s.shape) for s in output.stages] == [tuple(s.shape) for s in network.stages(images)]
    network.loss(output, label).backward()
    assert all(p.grad is not None for p in network.parameters())


def test_a_feature_is_classified_as_in_the_pass(hrda: Callable[..., HrdaSegmenter]) -> None:
    network = hrda().eval()
    output = network(torch.randn(2, 3, 64, 64))
    torch.testing.assert_close(network.classified(output, output.feature), output.logits)
    other = network.classified(output, output.feature + 1)
    assert other.shape == output.logits.shape and not torch.equal(other, output.logits)


def test_a_stem_of_its_own_shares_both_heads(hrda: Callable[..., HrdaSegmenter]) -> None:
    network = hrda()
    other = with_own_stem(network)
    assert isinstance(other, HrdaSegmenter)
    assert other.head is network.head and other.attention_head is network.attention_head
    assert other.encoder is not network.encoder


def test_parameter_names_tell_the_optimizer_what_is_a_head(hrda: Callable[..., HrdaSegmenter]) -> None:
    names = {name.split(".")[0] for name, _ in hrda().named_parameters()}
    assert names == {"encoder", "head", "attention_head"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"detail": (36, 32)}, r"detail: found 36x32, expected multiples of 16"),
        ({"backbone": "resnet10t", "head": "deeplabv2"}, r"expected multiples of 128 \(head deeplabv2 on resnet10t"),
        ({"backbone": "vit_small_patch14_dinov2", "detail": (56, 56)}, r"no whole number of pixels a cell"),
        ({"backbone_args": {"out_indices": [1, 2]}}, r"with 2 stages, expected 4"),
        ({"box_step": 12}, r"box_step: found 12, expected a multiple of 8"),
        ({"box_step": 6, "variant": "released"}, r"box_step: found 6, expected a multiple of 4"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(
    hrda: Callable[..., HrdaSegmenter], changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words) as caught:
        hrda(**changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("size", "words"), [((60, 64), "multiples of 8"), ((64, 24), "smaller than model.hrda.detail")]
)
def test_crops_that_do_not_fit_are_refused(
    hrda: Callable[..., HrdaSegmenter], size: tuple[int, int], words: str
) -> None:
    with pytest.raises(UserError, match=f"here: found .*{words}"):
        hrda().check_crop(size, "here")
    hrda().check_crop((64, 72), "here")
