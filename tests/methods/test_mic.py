"""MIC: its masks, whose images with which labels and weights it shows, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from steps import BLOCKS, batch, built, built_with_term, content, from_scratch, history, launch, run_of, train
from torch import Tensor

from tiny_project import ROOT, Project
from udaseg import params, ranks
from udaseg.errors import UserError
from udaseg.methods import create
from udaseg.methods.base import Batch
from udaseg.methods.mic import MicTerm, kept, mask_grid
from udaseg.methods.self_training import SelfTrainingMethod
from udaseg.models import build_model
from udaseg.recipes import papers


def with_mic(project: Project, name: str = "mic", recipe: dict[str, Any] | None = None, **block: Any) -> Project:
    known = BLOCKS[name]
    project.raw["methods"][name] = {
        **known,
        "native": {},
        **(recipe or {}),
        "mic": {**known["mic"], "block": 8, **block},
    }
    return from_scratch(project)


def term_of(project: Project, **block: Any) -> tuple[SelfTrainingMethod, MicTerm]:
    return built_with_term(with_mic(project, **block), "mic", MicTerm)


def labelled(method: SelfTrainingMethod, q: Tensor | None = None) -> Batch:
    """The batch with pseudo-labels, as the term finds it."""
    b = batch()
    b.pseudo, b.weight = method.pseudo_labels(b)
    if q is not None:
        b.weight = q[:, None, None].expand_as(b.weight)
    return b


def test_mic_q7_mask_grid() -> None:
    assert mask_grid((1024, 512), 64) == (16, 8) and mask_grid((512, 512), 32) == (16, 16)
    assert mask_grid((1120, 1120), 64) == (18, 18)  # 17.5 goes to the even number
    assert mask_grid((1056, 1056), 64) == (16, 16)  # 16.5 too


def test_base_o15_kept_squares() -> None:
    drawn = torch.tensor([[[0.496, 0.768, 0.088, 0.132], [0.307, 0.634, 0.490, 0.896]]])
    found = kept(drawn, 0.7, (4, 8))
    assert found[0, ::2, ::2].tolist() == [[0, 1, 0, 0], [0, 0, 0, 1]]
    assert (found[0, :2, 2:4] == 1).all() and found.sum() == 2 * 4
    assert kept(torch.tensor([[[0.7]]]), 0.7, (2, 2)).sum() == 0  # the comparison is strict


def test_masks_belong_to_pairs(project: Project) -> None:
    _, term = term_of(project, block=4)
    found = term.masks([6, 7], (32, 48))
    assert found.shape == (2, 32, 48) and set(found.unique().tolist()) == {0.0, 1.0}
    assert not torch.equal(found[0], found[1])
    assert torch.equal(term.masks([7], (32, 48))[0], found[1])  # whatever else is in the batch
    squares = found[:, ::4, ::4]
    assert torch.equal(squares.repeat_interleave(4, dim=1).repeat_interleave(4, dim=2), found)
    many = term.masks(list(range(200)), (32, 48))
    assert abs(many.mean().item() - 0.3) < 0.01
    assert term_of(project, ratio=0.0)[1].masks([6], (32, 48)).min() == 1


def test_mic_q9_separate_takes_a_source_and_a_target_image(project: Project) -> None:
    method, term = term_of(project, mode="separate")
    b = labelled(method, torch.tensor([0.4, 0.9]))
    assert b.target is not None and b.pseudo is not None
    image, label, weight = term.images(b, 0, method)
    assert torch.equal(image, torch.stack([b.image[0], b.target[0]]))  # no augmentation
    assert torch.equal(label, torch.stack([b.label[0], b.pseudo[0]]))
    assert weight is not None and (weight[0] == 1).all() and (weight[1] == 0.4).all()


@pytest.mark.parametrize("border", [0.0, 0.25])
def test_released_q_counts_both_target_images(project: Project, border: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Image 1 of the batch is unused, but counts in q. The border has weight 0 on target images alone."""
    with_mic(project, recipe={"variant": "released"}, mode="separate")
    project.set("benchmarks/streets/train/border", {"top": border, "bottom": 0.0})
    method, term = built_with_term(project, "mic", MicTerm)
    sure = torch.zeros(2, 19, 32, 48)
    sure[0, 3], sure[1, 4, :, :24] = 1.0, 1.0
    monkeypatch.setattr(method, "teacher_probabilities", lambda *_: sure)
    _, label, weight = term.images(labelled(method), 0, method)
    rows = round(border * 32)
    assert weight is not None and (weight[0] == 1).all()
    assert (weight[1, rows:] == 0.75).all() and not weight[1, :rows].any() and (label[1] == 3).all()


def test_target_images_have_the_teacher_s_labels_and_weights_before_mixing(project: Project) -> None:
    """A10: HRDA's own code overwrites the weights while it mixes."""
    method, term = term_of(project, mode="separatetrg")
    b = labelled(method, torch.tensor([0.25, 0.75]))
    before = b.weight.clone() if b.weight is not None else None
    method.mix(b, 0)
    image, label, weight = term.images(b, 0, method)
    assert image is b.target and label is b.pseudo
    assert before is not None and weight is not None and torch.equal(weight, before)


def test_source_images_have_their_labels_and_no_weights(project: Project) -> None:
    method, term = term_of(project, mode="separatesrc")
    image, label, weight = term.images(b := labelled(method), 0, method)
    assert image is b.image and label is b.label and weight is None


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_augmentation_has_gates_of_its_own(project: Project, variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A8: as released one blur and one order of changes serve all images."""
    from udaseg.methods.step import augment

    with_mic(project, recipe={"variant": variant, "jitter": BLOCKS["mic"]["jitter"], "blur": BLOCKS["mic"]["blur"]})
    method, term = built_with_term(project, "mic", MicTerm)
    blurred: list[Tensor] = []
    real = augment.gaussian_blur
    monkeypatch.setattr(augment, "gaussian_blur", lambda x, sigma, n: blurred.append(sigma) or real(x, sigma, n))
    b, states = labelled(method), set()
    assert b.target is not None
    for step in range(24):
        number = len(blurred)
        ours = not torch.equal(term.images(b, step, method)[0], b.target)
        own = len(blurred) > number
        number = len(blurred)
        method.strong(b.target, "mixed", b, step)
        states.add((ours, own, len(blurred) > number))
        if own:
            first, second = blurred[number - 1].tolist()
            assert (first == second) == (variant == "released")
    assert {(own, others) for _, own, others in states} == {(a, c) for a in (False, True) for c in (False, True)}


def test_what_is_masked_has_the_mean_colour(project: Project) -> None:
    method, term = term_of(project, mode="separatetrg")
    shown: list[Tensor] = []
    method.student.register_forward_pre_hook(lambda _, args: shown.append(args[0]))
    (losses,) = term.own_passes(b := labelled(method), 3, method)
    assert b.target is not None
    mask = term.masks(b.index, (32, 48))
    torch.testing.assert_close(shown[0], method.student.normalise(b.target) * mask[:, None])
    method.eval()
    (losses,) = term.own_passes(b, 3, method)
    assert b.pseudo is not None
    expected = method.student.loss(method.student(shown[0]), b.pseudo, b.weight)
    torch.testing.assert_close(losses["mic"], expected)


@pytest.mark.parametrize(("variant", "expected"), [("released", 0.65), ("paper", 0.55)])
def test_weight_of_the_loss_on_two_resolutions(
    project: Project, variant: str, expected: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A7, oracle q8: as released only the fused part is weighted."""
    with_mic(project, recipe={"variant": variant}, weight=0.5)
    method, term = built_with_term(project, "mic", MicTerm)
    parts = [torch.tensor(0.9), torch.tensor(0.2)]
    monkeypatch.setattr(method.student, "loss_parts", lambda *_: parts)
    (losses,) = term.own_passes(labelled(method), 0, method)
    assert losses["mic"].item() == pytest.approx(expected)


def test_teacher_without_memory_is_the_student_of_before(project: Project) -> None:
    method, term = term_of(project, teacher="student", mode="separatetrg")
    assert term.own_teacher is not None
    with torch.no_grad():
        for p in method.student.parameters():
            p.add_(0.05 * torch.randn_like(p))
    b = labelled(method)
    _, label, weight = term.images(b, 7, method)
    for mine, students in zip(term.own_teacher.module.parameters(), method.student.parameters(), strict=True):
        assert torch.equal(mine, students)
    method.teacher.update(method.student, 0)
    expected, _ = method.pseudo_labels(b)
    assert torch.equal(label, expected) and b.pseudo is not None and not torch.equal(label, b.pseudo)
    assert weight is not None and weight.shape == label.shape


def test_without_confidence_all_labels_count_alike(project: Project) -> None:
    with_mic(project, confidence=False, mode="separatetrg")
    project.set("benchmarks/streets/train/border", {"top": 0.25, "bottom": 0.0})
    method, term = built_with_term(project, "mic", MicTerm)
    _, _, weight = term.images(labelled(method), 0, method)
    assert weight is not None and (weight[:, 8:] == 1).all() and not weight[:, :8].any()


@pytest.mark.parametrize("name", ["mic", "mic-released", "mic-student", "mic-night", "mic-pipa", "mic-sepico"])
def test_trains_and_resumes_with_the_same_bits(
    make_project: Callable[[str], Project], train_until: Callable[[Project, str, int], None], name: str
) -> None:
    found = []
    for stopped in (False, True):
        project = with_mic(make_project(f"stopped{stopped}"), name)
        from_scratch(project, steps=4, log_every=4)
        if stopped:
            train_until(project, name, 2)
        found.append(content(folder := train(project, name)))
    assert found[0] == found[1]
    names = set(history(folder)[-1])
    assert "mic" in names and all(any(key.startswith(term) for key in names) for term in BLOCKS[name]["terms"])


def on_all_ranks(project: Project) -> list[dict[str, Tensor]]:
    """Losses and gradients of one step of the same global batch, for each mode."""
    found = []
    for mode in ("separatetrgaug", "separatetrg", "separatesrc"):
        with_mic(project, recipe={"variant": "released"}, mode=mode)
        project.set("benchmarks/streets/model/dropout", 0.0)
        run = run_of(project, "mic")
        torch.manual_seed(0)
        method = ranks.use_global_batch(create(run, build_model(run.benchmark.model, len(run.classes)))).train()
        b, mine = batch(), slice(ranks.rank() * 2 // ranks.world(), (ranks.rank() + 1) * 2 // ranks.world())
        assert b.target is not None and isinstance(method, SelfTrainingMethod)
        values = {}
        for losses in method.losses(Batch(b.index[mine], b.image[mine], b.label[mine], b.target[mine]), 0):
            torch.stack(list(losses.values())).sum().backward()
            values |= {key: ranks.total(value.detach()) / ranks.world() for key, value in losses.items()}
        trained = {key: p for key, p in method.named_parameters() if p.grad is not None}
        ranks.average_gradients(list(trained.values()))
        found.append({**values, **{key: p.grad for key, p in trained.items() if p.grad is not None}})
    return found


SCRIPT = """
import torch
from pathlib import Path
from test_mic import Project, on_all_ranks
from udaseg import ranks
ranks.join(torch.device("cpu"))
folder = Path(f"rank{ranks.rank()}")
folder.mkdir()
torch.save(on_all_ranks(Project(folder, RAW)), folder / "found.pt")
ranks.leave()
"""


def test_two_ranks_have_losses_and_gradients_of_one(project: Project) -> None:
    (project.folder / "script.py").write_text(SCRIPT.replace("RAW)", f"{project.raw!r})"))
    launch(project, 2, "script.py")
    two = torch.load(project.folder / "rank0/found.pt", weights_only=True)
    for one, both in zip(on_all_ranks(project), two, strict=True):
        assert one.keys() == both.keys() >= {"mic"}
        for name, value in one.items():
            torch.testing.assert_close(both[name], value, rtol=1e-3, atol=1e-5, msg=lambda t, n=name: f"{n}: {t}")


def test_it_contrasts_nothing_so_that_the_twin_keeps_it() -> None:
    assert not papers()["mic"].contrasts
    p = params.load(ROOT / "params.yaml")
    for name, twin in (("mic-pipa", "mic"), ("mic-sepico", "mic-sepico_off")):
        run, other = (p.resolve("streets", method, 0) for method in (name, twin))
        assert run.uncontrasted == other.uncontrasted and run.hash != other.hash
        assert run.method.contrasts and not other.method.contrasts


@pytest.mark.parametrize(
    ("block", "words"),
    [
        ({"block": 33}, ["mic.block: found 33", "48x32", "no mask is larger than the image"]),
        ({"block": 0}, ["mic.block: found 0"]),
        ({"ratio": 1.0}, ["mic.ratio: found 1.0"]),
        ({"weight": -1.0}, ["mic.weight: found -1.0"]),
        ({"mode": "seperate"}, ["'seperate'", "did you mean 'separate'"]),
    ],
)
def test_bad_values_stop_before_training(project: Project, block: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        term_of(project, **block)
    assert all(word in str(caught.value) for word in words) and "\n" not in str(caught.value)


def test_half_of_an_odd_batch_is_refused(project: Project) -> None:
    with_mic(project, mode="separate")
    project.set("benchmarks/streets/train/accumulate", 2)
    with pytest.raises(UserError, match=r"found 1 pairs in each pass .*or mode separatetrg"):
        built(project, "mic", SelfTrainingMethod)
