"""Where the official code, run beside ours, gave other numbers: each with its value (rows K1 to K7 of docs/methods)."""

from __future__ import annotations

import copy
import dataclasses
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from steps import BLOCKS, RAW, built, from_scratch, with_head
from torch import Tensor

from tiny_project import ROOT, Project
from udaseg import params
from udaseg.classes import IGNORE, NAMES, class_space
from udaseg.comparison import published, tables
from udaseg.errors import UserError
from udaseg.evaluation import confusion, scores
from udaseg.losses import bcl
from udaseg.methods.bcl import BclMethod
from udaseg.methods.plca import PlcaMethod
from udaseg.methods.step import augment
from udaseg.params import Params
from udaseg.recipes.self_training import Blur, Jitter


def test_k1_entropy_of_bcl() -> None:
    """z = (0, ln 2, ln 4): p = 1/7, 2/7, 4/7."""
    z = torch.tensor([0.0, math.log(2), math.log(4)], dtype=torch.float64).view(1, 3, 1, 1)
    p = torch.tensor([1, 2, 4], dtype=torch.float64) / 7
    assert bcl.entropy(z).item() == pytest.approx(0.95570, abs=5e-6)
    assert bcl.entropy(z, twice=True).item() == pytest.approx(1.01954, abs=5e-6)
    assert bcl.entropy(z, twice=True).item() == pytest.approx(
        math.log(sum(math.exp(x) for x in p)) - 21 / 49, abs=1e-12
    )
    maps = torch.randn(2, 5, 3, 4, dtype=torch.float64)
    loops = [
        -(torch.log_softmax(maps[b, :, y, x].softmax(0), 0) * maps[b, :, y, x].softmax(0)).sum()
        for b in range(2) for y in range(3) for x in range(4)
    ]  # fmt: skip
    assert bcl.entropy(maps, twice=True).item() == pytest.approx(torch.stack(loops).mean().item(), abs=1e-12)


@pytest.mark.parametrize(("scale", "ratio"), [(6.0, 1.7), (1.0, 4.0)])
def test_k1_the_released_gradient_is_smaller(scale: float, ratio: float) -> None:
    """The gradient of the true entropy over it, by the scale of normal logits."""
    found = []
    for twice in (False, True):
        z = (scale * torch.randn(1, 19, 64, 64, generator=torch.Generator().manual_seed(0))).requires_grad_()
        bcl.entropy(z, twice=twice).backward()
        assert z.grad is not None
        found.append(z.grad.norm().item())
    assert found[0] / found[1] == pytest.approx(ratio, rel=0.1)


@pytest.mark.parametrize(("method", "twice"), [("bcl", False), ("bcl-released", True)])
def test_k1_only_the_released_variant_has_it(
    method: str, twice: bool, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    from_scratch(project).set(f"methods/{method}", BLOCKS[method] | {"split_stem": False, "init": "none"})
    method_ = built(project, method, BclMethod)
    seen: list[bool] = []
    monkeypatch.setattr(bcl, "entropy", lambda logits, *, twice: seen.append(twice) or logits.sum())
    output = method_.student(torch.zeros(1, 3, 32, 48))
    method_.entropy(output, torch.zeros(1, 32, 48, dtype=torch.long))
    assert seen == [twice]


def test_k2_terrain_truck_and_train_are_errors_of_what_is_predicted_there() -> None:
    """16 classes against labels of 19: pixels of the other three are false positives, and beside it the easier form."""
    space = class_space("cityscapes16")
    lut = space.lut(NAMES, other=len(space))
    assert [NAMES[k] for k in range(19) if lut[k] == 16] == ["terrain", "truck", "train"]
    assert lut[IGNORE] == IGNORE and space.lut(NAMES)[NAMES.index("truck")] == IGNORE
    bus, car, vegetation = (space.names.index(name) for name in ("bus", "car", "vegetation"))
    label = torch.tensor([[bus] * 4 + [16] * 4 + [car] * 4 + [IGNORE] * 4]).view(1, 4, 4)
    found = torch.tensor([[bus] * 8 + [car] * 4 + [bus] * 4]).view(1, 4, 4)
    matrix = confusion.empty(16)
    confusion.update(matrix, found, label)
    report, easier = scores.report(matrix, space), scores.report(confusion.without_others(matrix), space)
    assert report["iou"] == {"car": 100.0, "bus": 50.0} and report["miou"] == report["miou16"] == 75.0
    assert easier["iou"] == {"car": 100.0, "bus": 100.0} and easier["miou16"] == 100.0
    assert report["pixels"] == 12 and easier["pixels"] == 8
    assert report["pixel_accuracy"] == pytest.approx(100 * 8 / 12, abs=1e-3)
    miou, accuracy = scores.by_image(confusion.by_image(found, label, 16))[0].tolist()
    assert (miou, accuracy) == (pytest.approx(0.75), pytest.approx(8 / 12))
    assert vegetation not in found


def test_k2_against_loops_over_classes() -> None:
    space = class_space("cityscapes13")
    rng = np.random.default_rng(0)
    values, found = rng.integers(0, 20, (2, 9, 7)), torch.from_numpy(rng.integers(0, 13, (2, 9, 7)))
    label = torch.from_numpy(space.lut(NAMES, other=13)[np.where(values == 19, 255, values)])
    matrix = confusion.empty(13)
    confusion.update(matrix, found, label)
    scored = label != IGNORE
    expected = []
    for c in range(13):
        hit = ((found == c) & (label == c)).sum()
        expected.append((hit / (((found == c) & scored) | (label == c)).sum()).item())
    assert scores.iou(matrix).tolist() == pytest.approx(expected, abs=1e-7)


def test_k2_a_published_number_says_which_form_it_has() -> None:
    benchmarks = params.load(ROOT / "params.yaml").benchmarks
    for method, easier in (("plca", True), ("sepico", False), ("pipa", False)):
        found = published.lookup(method, "synthia2cityscapes", benchmarks["synthia2cityscapes"])
        assert found is not None and found["ignoring"] is easier, method
        notes: list[str] = []
        tables.paper(found, "cityscapes/val", notes)
        assert ("column `ignored`" in notes[0]) is easier


@pytest.fixture(scope="module")
def photographs() -> list[Tensor]:
    mirror = Path(os.environ.get("UDASEG_MIRROR", ROOT.parent / "shared"), "data/camvid/images")
    files = sorted(mirror.glob("*/*.jpg"))[::20]
    if not files:  # a checkout without the mirror: textures of the same spread
        rng = np.random.default_rng(0)
        small = [Image.fromarray(rng.integers(0, 256, (18, 24, 3), dtype=np.uint8)) for _ in range(36)]
    else:
        small = [Image.open(file).convert("RGB") for file in files]
    images = [np.array(image.resize((120, 90), Image.Resampling.BILINEAR)) for image in small]
    return [torch.from_numpy(image).permute(2, 0, 1).float() / 255 for image in images]


def rms(images: list[Tensor], definition: Callable[..., Tensor], strength: tuple[float, ...]) -> tuple[float, float]:
    """Mean RMS change of an image, and the spread of the shift of its mean."""
    change, shift = [], []
    for k, image in enumerate(images):
        for draw in range(8):
            out = definition(image, np.random.default_rng([k, draw]), strength)
            change.append((out - image).square().mean().sqrt().item())
            shift.append((out.mean() - image.mean()).item())
    return float(np.mean(change)), float(np.std(shift))


@pytest.mark.parametrize(
    ("strength", "torchvision", "kornia"),
    [
        ((0.2,) * 4, 0.053, 0.115),
        ((0.2, 0.0, 0.0, 0.0), 0.041, 0.086),
        ((0.0, 0.2, 0.0, 0.0), 0.022, 0.042),
        ((0.0, 0.0, 0.2, 0.0), 0.0025, 0.0038),
    ],
)
def test_k3_how_much_the_jitter_changes_photographs(
    strength: tuple[float, ...], torchvision: float, kornia: float, photographs: list[Tensor]
) -> None:
    assert rms(photographs, augment.colour_jitter, strength)[0] == pytest.approx(torchvision, rel=0.25)
    assert rms(photographs, augment.kornia_jitter, strength)[0] == pytest.approx(kornia, rel=0.25)


def test_k3_how_far_the_jitter_moves_the_mean_and_that_hue_is_equal(photographs: list[Tensor]) -> None:
    assert rms(photographs, augment.colour_jitter, (0.2,) * 4)[1] == pytest.approx(0.041, rel=0.2)
    assert rms(photographs, augment.kornia_jitter, (0.2,) * 4)[1] == pytest.approx(0.118, rel=0.2)
    hue = (0.0, 0.0, 0.0, 0.2)
    assert rms(photographs, augment.colour_jitter, hue) == pytest.approx(
        rms(photographs, augment.kornia_jitter, hue), rel=1e-6
    )


def test_k3_brightness_adds_and_contrast_multiplies_about_zero() -> None:
    image = torch.full((3, 4, 4), 0.5)
    image[0] = 0.9

    class Fixed:
        """A generator that draws the upper end of every range, and keeps the order."""

        def uniform(self, low: float, high: float) -> float:
            return high

        def permutation(self, n: int) -> range:
            return range(n)

    out = augment.kornia_jitter(image, Fixed(), (0.2, 0.0, 0.0, 0.0))  # type: ignore[arg-type]
    torch.testing.assert_close(out[:, 0, 0], torch.tensor([1.0, 0.7, 0.7]))
    out = augment.kornia_jitter(image, Fixed(), (0.0, 0.2, 0.0, 0.0))  # type: ignore[arg-type]
    torch.testing.assert_close(out[:, 0, 0], torch.tensor([1.0, 0.6, 0.6]))
    out = augment.kornia_jitter(image, Fixed(), (0.0, 0.0, 0.2, 0.0))  # type: ignore[arg-type]
    torch.testing.assert_close(out[:, 0, 0], torch.tensor([0.9, 0.42, 0.42]))  # S 4/9 becomes 8/15


def test_k3_every_recipe_says_kornia_and_the_default_keeps_old_hashes() -> None:
    for name, block in BLOCKS.items():
        if "jitter" in block:
            assert block["jitter"]["definition"] == "kornia", name
    assert Jitter(0.8, 0.2).definition == "torchvision"
    assert (
        run_with(definition="torchvision").hash == run_with(definition=None).hash != run_with(definition="kornia").hash
    )
    with pytest.raises(
        UserError, match=r"jitter\.definition: found 'cornia', expected kornia or torchvision; did you mean 'kornia'"
    ):
        run_with(definition="cornia")
    images, gates = torch.rand(1, 3, 8, 8), [np.random.default_rng(0), np.random.default_rng(0)]
    outs = [
        augment.strong_augment(images, gate, [np.random.default_rng(1)], Jitter(1.0, 0.2, kind), Blur(0.0, (0.1, 1.0)))
        for gate, kind in zip(gates, ("kornia", "torchvision"), strict=True)
    ]
    assert not torch.equal(*outs)


def run_with(definition: str | None) -> params.Run:
    raw: dict[str, Any] = copy.deepcopy(RAW)
    raw["methods"]["self_training"]["jitter"] = {"p": 0.8, "strength": 0.2} | (
        {"definition": definition} if definition else {}
    )
    return params.parse(raw).resolve("camvid_day2dusk", "self_training", 0)


def native(method: str) -> params.Run:
    p: Params = params.load(ROOT / "params.yaml")
    return dataclasses.replace(p, run=dataclasses.replace(p.run, protocol="native"), known={}).resolve(
        "gta2cityscapes", method, 0
    )


def test_k4_native_pipa_warms_up_for_1500_steps_and_averages_with_0_999() -> None:
    run = native("pipa")
    assert run.train.steps == 60000 and run.train.precision == "fp32"
    assert round(run.train.schedule.warmup * run.train.steps) == 1500
    assert 1 - 1 / (run.method.teacher_horizon * run.train.steps) == pytest.approx(0.999, abs=1e-9)
    assert run.method.rare_class_temperature == 0.1
    matched = params.load(ROOT / "params.yaml").resolve("gta2cityscapes", "pipa", 0)
    assert (matched.method.teacher_horizon, matched.method.rare_class_temperature) == (0.025, 0.01)


def test_k4_native_keys_are_checked() -> None:
    raw = copy.deepcopy(RAW)
    raw["methods"]["pipa"]["native"] = {"teacher_horizn": 0.1}
    with pytest.raises(
        UserError, match=r"methods\.pipa\.native: unknown key 'teacher_horizn'; did you mean 'teacher_horizon'"
    ):
        params.parse(raw)


@pytest.mark.parametrize(("method", "biased"), [("plca", True), ("plca-released", False)])
def test_k5_the_released_plca_head_has_no_bias(method: str, biased: bool, project: Project) -> None:
    from_scratch(project).set(f"methods/{method}", BLOCKS[method])
    with_head(project, "deeplabv2", [1, 2])
    parameters = built(project, method, PlcaMethod).named_parameters()
    biases = [value for name, value in parameters if name.startswith("student.head") and name.endswith("bias")]
    assert len(biases) == 2 and all(bias.requires_grad is biased for bias in biases)
    assert all(not bias.any() for bias in biases)


def test_k7_native_self_training_is_fp32() -> None:
    assert RAW["benchmarks"]["gta2cityscapes"]["train"]["precision"] == "bf16"
    for method in ("self_training", "self_training-dacs"):
        assert native(method).train.precision == "fp32"
