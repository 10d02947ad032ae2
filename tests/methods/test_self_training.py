"""The self-training step as a whole, on a student whose outputs are known."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from steps import batch, built, from_scratch
from torch import nn

from tiny_project import Project
from udaseg.methods.base import Averaged, Batch, Host, Losses, Term
from udaseg.methods.self_training import SelfTrainingMethod
from udaseg.methods.step.imagenet import distance_to


@pytest.fixture
def method(project: Project) -> SelfTrainingMethod:
    from_scratch(project, border={"top": 0.25, "bottom": 0.0})
    project.set("methods/self_training/jitter", {"p": 0.0, "strength": 0.2})
    project.set("methods/self_training/blur", {"p": 0.0, "sigma": [0.15, 1.15]})
    return built(project, "self_training", SelfTrainingMethod)


def test_mix_pastes_half_of_the_classes_with_weight_one(method: SelfTrainingMethod) -> None:
    b = batch()
    assert b.target is not None
    b.pseudo, b.weight = pseudo, q = method.pseudo_labels(b)
    image, label, weight = method.mix(b, 0)
    for i in range(2):
        pasted = (image[i] == b.image[i]).all(dim=0)
        assert len(b.label[i][pasted].unique()) == 3  # of 0, 1, 2, 3 and ignore
        assert (image[i][:, ~pasted] == b.target[i][:, ~pasted]).all()
        assert (label[i][pasted] == b.label[i][pasted]).all() and (label[i][~pasted] == pseudo[i][~pasted]).all()
        assert (weight[i][pasted] == 1).all() and (weight[i][~pasted] == q[i][~pasted]).all()
        assert (q[i, :8] == 0).all() and len(q[i, 8:].unique()) == 1
    again = method.mix(b, 0)
    assert all(torch.equal(x, y) for x, y in zip(again, (image, label, weight), strict=True))


def test_teacher_uses_batch_statistics_and_nothing_random() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout2d(0.5))
    teacher = Averaged(net, 0.025, 1000).train()
    assert teacher.module[1].training and not teacher.module[2].training  # type: ignore[index]
    x = torch.randn(4, 3, 5, 5)
    one, two = teacher.module(x), teacher.module(x)
    assert torch.equal(one, two) and one.mean(dim=(0, 2, 3)).abs().max() < 1e-5
    before = {k: v.clone() for k, v in teacher.module.state_dict().items()}
    net[1].running_mean += 5
    with torch.no_grad():
        net[0].weight += 1
    teacher.update(net, 1)
    after = teacher.module.state_dict()
    torch.testing.assert_close(after["0.weight"], before["0.weight"] + 0.5)
    assert torch.equal(after["1.running_mean"], before["1.running_mean"])  # buffers are the teacher's own


class Counting(Term):
    """A term that notes what it is shown."""

    seen: list[str]

    def before(self, batch: Batch, step: int, host: Host) -> None:
        assert not torch.is_grad_enabled() and batch.pseudo is not None and batch.weight is not None
        self.seen = ["before"]

    def on_source(self, batch, output, step) -> Losses:  # type: ignore[no-untyped-def]
        self.seen.append("source")
        return {"counting_source": output.logits.mean() ** 2}

    def on_mixed(self, batch, output, label, weight, step) -> Losses:  # type: ignore[no-untyped-def]
        assert label.shape == weight.shape == (2, 32, 48)
        self.seen.append("mixed")
        return {"counting_mixed": output.logits.mean() ** 2}

    def own_passes(self, batch: Batch, step: int, host: Host) -> Iterator[Losses]:
        self.seen.append("own")
        yield {"counting_own": torch.zeros((), requires_grad=True)}

    def after_step(self, step: int) -> None:
        self.seen.append("after")


def test_terms_are_called_in_order(method: SelfTrainingMethod) -> None:
    term = Counting(method.student, method.run)
    method.terms["counting"] = term
    passes = [sorted(losses) for losses in method.losses(batch(), 0)]
    method.after_step(0)
    assert passes == [["counting_source", "source"], ["counting_own"], ["counting_mixed", "mixed"]]
    assert term.seen == ["before", "source", "own", "mixed", "after"]


def test_feature_distance_needs_imagenet_and_is_not_saved(project: Project) -> None:
    import timm
    from safetensors.torch import save_file

    save_file(timm.create_model("test_resnet").state_dict(), "test_resnet.safetensors")
    project.set("benchmarks/streets/init", {"default": "imagenet"})
    project.set("benchmarks/streets/model/weights", "test_resnet.safetensors")
    found = built(project, "self_training", SelfTrainingMethod)
    assert not any("frozen" in name for name in found.state_dict())
    b = batch()
    b.label[:] = 13  # cars everywhere: every cell counts
    first = next(iter(found.losses(b, 0)))
    assert set(first) == {"source", "feature_distance"}
    assert first["feature_distance"].item() > 0 and first["feature_distance"].requires_grad
    source = found.student.normalise(b.image)
    unmoved = found.frozen[0](source)
    same = distance_to(found.frozen[0], source, unmoved, b.label, found.is_thing, found.p.feature_distance_ratio)
    assert same.item() == 0
