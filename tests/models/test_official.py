"""Published checkpoints of every family: imported, the network computes what the authors' computes; all else is refused in one line."""

from __future__ import annotations

import copy
import io
import json
import os
import pickle
import tarfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import official_files as files
import pytest
import torch
import yaml
from official_files import Maker, State
from torch import Tensor

from udaseg import cli, params
from udaseg.artifacts import file_hash
from udaseg.errors import UserError
from udaseg.models.official import import_checkpoint
from udaseg.models.trained import load, read_header
from udaseg.params import Run

RAW = yaml.safe_load((Path(__file__).parents[2] / "params.yaml").read_text())
DLV2 = (6, 12, 18, 24)
MEAN, STD = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def run_of(benchmark: str = "gta2cityscapes") -> Run:
    return params.parse(copy.deepcopy(RAW)).resolve(benchmark, "source_only", 0)


def imported(path: Path, benchmark: str = "gta2cityscapes", **how: str) -> Path:
    out = path.with_name("imported.safetensors")
    said = import_checkpoint(path, run_of(benchmark), out, **how)
    assert said.startswith(f"{out}: ") and f"--benchmark {benchmark}" in said
    return out


def same_logits(path: Path, forward: Callable[[Tensor], Tensor], size: tuple[int, int] = (97, 131)) -> None:
    """The imported network and the authors' on the same photograph, whose sides are no multiples of anything."""
    trained = load(path)
    photograph = torch.randint(0, 256, (1, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))
    with torch.no_grad():
        wanted = forward((photograph / 255 - mean) / std)
        found = trained.student(trained.student.normalise(photograph)).logits
    assert found.shape == wanted.shape
    assert wanted.std() > 0.05, "an oracle that says nothing"
    assert (found - wanted).abs().max() < 1e-4 * wanted.abs().max()


def student(*parts: Callable[..., None], seed: int = 0) -> State:
    maker = Maker(seed)
    for part in parts:
        part(maker)
    return maker.state


@pytest.fixture(scope="module")
def daformer() -> State:
    return student(files.mit, files.daformer)


# --- families -------------------------------------------------------------------------------------------------------


def test_daformer(tmp_path: Path, daformer: State) -> None:
    teacher = student(files.mit, files.daformer, seed=1)
    path = files.write(tmp_path / "latest.pth", files.uda(daformer, teacher))
    out = imported(path)
    same_logits(out, lambda x: files.daformer_logits(daformer, files.mit_maps(daformer, x)))
    header = read_header(out)
    origin = json.loads(header["origin"])
    assert origin["sha256"] == file_hash(path) and origin["file"] == "latest.pth"
    assert (origin["prefix"], origin["network"], origin["family"]) == ("model.", "student", "DAFormer or another on it")
    assert origin["tensors"] == len(daformer)
    assert origin["dropped"] == {"the frozen ImageNet network": len(daformer), "the teacher": len(teacher)}
    assert origin["meta"]["mmcv_version"] == "1.3.7" and len(origin["meta"]["config"]) < 250
    assert header["size"] == "1024x512" and header["classes"].split(",") == list(files.CITYSCAPES)
    model = json.loads(header["model"])
    assert (model["backbone"], model["head"], model["width"]) == ("pvt_v2_b0", "daformer", 256)

    imported(path, network="teacher")
    same_logits(out, lambda x: files.daformer_logits(teacher, files.mit_maps(teacher, x)))
    assert json.loads(read_header(out)["origin"])["prefix"] == "ema_model."


def test_the_archive_of_the_authors_and_a_bare_dictionary(tmp_path: Path, daformer: State) -> None:
    plain = imported(files.write(tmp_path / "latest.pth", files.uda(daformer))).read_bytes()
    packed = tmp_path / "211108_1622_gta2cs_daformer_s0_7f24c.tar.gz"
    with tarfile.open(packed, "w:gz") as archive:
        (tmp_path / "x.json").write_text("{}")
        archive.add(tmp_path / "x.json", "gta2cs/x.json")
        archive.add(tmp_path / "latest.pth", "gta2cs/latest.pth")
    said = import_checkpoint(packed, run_of(), None)
    made = tmp_path / "211108_1622_gta2cs_daformer_s0_7f24c.safetensors"
    assert said.startswith(str(made)) and not list(tmp_path.glob(".import-*"))
    assert load(made).student.state_dict().keys() == load(tmp_path / "imported.safetensors").student.state_dict().keys()
    assert json.loads(read_header(made)["origin"])["sha256"] == file_hash(packed)
    bare = tmp_path / "bare.pth"  # PiPa's are such
    torch.save(OrderedDict((f"module.{k}", v) for k, v in files.uda(daformer).items()), bare)
    once, again = load(imported(bare)).student.state_dict(), load(made).student.state_dict()
    assert all(torch.equal(once[name], again[name]) for name in again)
    assert imported(tmp_path / "latest.pth").read_bytes() == plain  # equal files, equal bytes


def test_a_synthia_file_has_all_19_classes(tmp_path: Path, daformer: State) -> None:
    out = imported(files.write(tmp_path / "a.pth", files.uda(daformer)), "synthia2cityscapes")
    assert load(out).classes.names == files.CITYSCAPES
    maker = Maker()
    files.mit(maker)
    files.daformer(maker, classes=16)
    out = imported(files.write(tmp_path / "b.pth", files.uda(maker.state), CLASSES=None), "synthia2cityscapes")
    assert len(load(out).classes) == 16


def test_daformers_ablation_with_a_plain_fusion(tmp_path: Path) -> None:
    state = student(files.mit, lambda m: files.plain_fusion(m, "decode_head."))
    out = imported(files.write(tmp_path / "a.pth", files.uda(state)))
    same_logits(out, lambda x: files.plain_fusion_logits(state, files.mit_maps(state, x), "decode_head."))
    assert json.loads(read_header(out)["model"])["head"] == "segformer"


def test_sepico(tmp_path: Path, daformer: State) -> None:
    maker = Maker(2)
    maker.state |= daformer
    for k, (outputs, inputs) in enumerate(((64, 512), (256, 64))):
        maker.conv_bn(f"auxiliary_head.convs.{k}", outputs, inputs, 1)
    state = maker.state
    out = imported(files.write(tmp_path / "a.pth", files.uda(state, state, imnet=False)))
    same_logits(out, lambda x: files.daformer_logits(state, files.mit_maps(state, x)))
    origin = json.loads(read_header(out)["origin"])
    assert origin["family"] == "SePiCo" and origin["dropped"] == {"the auxiliary head": 12, "the teacher": len(state)}


def test_pipa_on_daformer(tmp_path: Path, daformer: State) -> None:
    maker = Maker(2)
    maker.state |= daformer
    files.contrast_heads(maker)
    beside = {
        f"{n}.{k}": torch.zeros(2) for n in ("project.0", "project.2", "classifier.0") for k in ("weight", "bias")
    }
    out = imported(files.write(tmp_path / "a.pth", files.uda(maker.state, maker.state, **beside)))
    same_logits(out, lambda x: files.daformer_logits(daformer, files.mit_maps(daformer, x)))
    origin = json.loads(read_header(out)["origin"])
    assert origin["family"] == "PiPa on DAFormer"
    assert origin["dropped"]["PiPa's contrast heads"] == 18 and origin["dropped"]["PiPa's projection of patches"] == 6


@pytest.mark.parametrize("loop", [False, True], ids=["segformer", "daformer-repository"])
def test_segformer(tmp_path: Path, loop: bool) -> None:
    state = student(files.mit, lambda m: files.segformer(m, loop=loop))
    out = imported(files.write(tmp_path / "a.pth", files.uda(state) if loop else state))
    same_logits(out, lambda x: files.segformer_logits(state, files.mit_maps(state, x), loop=loop))
    dropped = json.loads(read_header(out)["origin"])["dropped"]
    assert dropped["a classifier that SegFormer does not use"] == 2


@pytest.mark.parametrize("branches", [2, 4])
def test_deeplab_v2_of_dacs_and_of_sepico(tmp_path: Path, branches: int) -> None:
    state = student(files.resnet_c, lambda m: files.deeplab(m, branches=branches))
    out = imported(files.write(tmp_path / "a.pth", files.uda(state, state) if branches == 2 else state))
    same_logits(out, lambda x: files.deeplab_logits(state, files.resnet_map(state, x), DLV2[:branches]))
    model = json.loads(read_header(out)["model"])
    assert (model["backbone"], model["backbone_args"], model["dilations"]) == (
        "resnet50c",
        {"output_stride": 8},
        list(DLV2[:branches]),
    )


@pytest.mark.parametrize("head", ["segformer", "daformer"])
def test_mmsegmentation_1(tmp_path: Path, head: str) -> None:
    """Its LayerNorms all have 1e-6, the official MiT and timm 1e-5 in some: the forward here has the latter."""
    encoder = student(files.mit)
    decoder = student(files.mmseg_segformer if head == "segformer" else files.daformer, seed=1)
    state = files.mmseg_mit(encoder) | decoder | {"data_preprocessor.mean": torch.zeros(3, 1, 1)}
    path = tmp_path / "iter_40000.pth"
    about = {"seed": np.float64(1.5), "dataset_meta": {"classes": list(files.CITYSCAPES), "palette": [[0, 0, 0]]}}
    torch.save({"meta": about, "state_dict": state, "message_hub": {}, "optimizer": {"state": {}}}, path)  # of mmengine
    out = imported(path)
    logits = files.mmseg_segformer_logits if head == "segformer" else files.daformer_logits
    same_logits(out, lambda x: logits(decoder, files.mit_maps(encoder, x)))
    assert json.loads(read_header(out)["origin"])["meta"] == {"seed": "1.5"}
    assert json.loads(read_header(out)["model"]).get("embedding_norm", False) == (head == "segformer")


def hrda(maker: Maker, embedding: int = 256) -> None:
    files.mit(maker)
    files.daformer(maker, "decode_head.head.", embedding=embedding)
    files.plain_fusion(maker, "decode_head.scale_attention.")


def test_hrda_and_mic(tmp_path: Path) -> None:
    state = student(hrda)
    out = imported(files.write(tmp_path / "a.pth", files.uda(state, state)), "gta2cityscapes-hrda")
    same_logits(out, lambda x: files.hrda_logits(state, x), size=(512, 768))
    header = read_header(out)
    assert json.loads(header["origin"])["family"] == "HRDA or MIC"
    assert (header["size"], json.loads(header["test"])["window"]) == ("2048x1024", "1024x1024")
    assert json.loads(header["model"])["hrda"] == {"detail": "512x512"}


def test_pipa_and_cluda_on_hrda(tmp_path: Path) -> None:
    maker = Maker(3)
    hrda(maker)
    files.contrast_heads(maker)
    out = imported(files.write(tmp_path / "a.pth", files.uda(maker.state, maker.state)), "gta2cityscapes-hrda")
    assert json.loads(read_header(out)["origin"])["family"] == "PiPa on HRDA"
    maker = Maker(4)
    hrda(maker, embedding=512)
    files.plain_fusion(maker, "decode_head.feat_weighter.", classes=1)
    state = maker.state
    out = imported(files.write(tmp_path / "a.pth", files.uda(state)), "gta2cityscapes-hrda")
    same_logits(out, lambda x: files.hrda_logits(state, x, cluda=True), size=(512, 512))
    origin = json.loads(read_header(out)["origin"])
    assert origin["family"] == "CLUDA" and origin["dropped"]["CLUDA's weights of features"] == 16
    assert json.loads(read_header(out)["model"])["embedding"] == 512


def test_hrda_on_deeplab_v2(tmp_path: Path) -> None:
    heads = ("decode_head.head.", "decode_head.scale_attention.")
    state = student(files.resnet_c, *(lambda m, at=at: files.deeplab(m, at) for at in heads))
    out = imported(files.write(tmp_path / "a.pth", files.uda(state)), "gta2cityscapes-dlv2-hrda")
    same_logits(out, lambda x: files.hrda_logits(state, x), size=(512, 512))


def test_two_resolutions_want_a_benchmark_of_two(tmp_path: Path, daformer: State) -> None:
    path = files.write(tmp_path / "a.pth", files.uda(student(hrda)))
    assert "two resolutions (HRDA), gta2cityscapes has one; say --like with" in refusal(path)
    path = files.write(tmp_path / "a.pth", files.uda(daformer))
    assert "one resolution, gta2cityscapes-hrda has two (HRDA)" in refusal(path, "gta2cityscapes-hrda")


# --- refused --------------------------------------------------------------------------------------------------------


def refusal(path: Path, benchmark: str = "gta2cityscapes", **how: str) -> str:
    before = sorted(path.parent.rglob("*"))
    with pytest.raises(UserError) as caught:
        import_checkpoint(path, run_of(benchmark), path.with_name("never.safetensors"), **how)
    assert sorted(path.parent.rglob("*")) == before, "nothing is left"
    assert "\n" not in str(caught.value) and "weights_only" not in str(caught.value)
    return str(caught.value)


class Hostile:
    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, ("owned",)


@pytest.mark.parametrize("form", ["torch", "pickle", "legacy"])
def test_code_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, daformer: State, form: str) -> None:
    monkeypatch.chdir(tmp_path)
    path, content = tmp_path / "a.pth", {"state_dict": {**files.uda(daformer), "x": Hostile()}}
    if form == "pickle":
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "torch")
    said = refusal(path)
    assert "such a file could run code and is not opened" in said or "no readable PyTorch file" in said
    assert form != "torch" or "holds posix.mkdir" in said
    assert not (tmp_path / "owned").exists()


def test_damaged_files(tmp_path: Path, daformer: State) -> None:
    path = files.write(tmp_path / "a.pth", files.uda(daformer, imnet=False))
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], whole[:-9], whole[:70], b"<html>too many downloads</html>" * 99):
        path.write_bytes(content)
        assert f"no readable PyTorch file ({len(content)} bytes)" in refusal(path)
    turned = bytearray(whole)
    turned[len(whole) // 2] ^= 1  # of a weight: PyTorch would read it
    path.write_bytes(turned)
    assert "does not fit its checksum" in refusal(path)
    path.write_bytes(b"")
    assert "an empty file" in refusal(path)
    assert "found nothing at" in refusal(tmp_path / "nothing.pth")
    packed = tmp_path / "a.tar.gz"
    with tarfile.open(packed, "w:gz") as archive:
        member = tarfile.TarInfo("latest.pth")
        member.size = len(whole)
        archive.addfile(member, io.BytesIO(whole))
    packed.write_bytes(packed.read_bytes()[: len(whole) // 2])
    assert "damaged or incomplete archive" in refusal(packed)
    with tarfile.open(packed, "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("log.txt"))
    assert "found the checkpoints none in it" in refusal(packed)
    torch.save({"meta": {}, "state_dict": {}}, path)
    assert "found no tensors" in refusal(path)
    torch.save([1, 2], path)
    assert "found no tensors" in refusal(path)


def test_tensors_that_no_rule_knows(tmp_path: Path, daformer: State) -> None:
    def said(state: State, **how: str) -> str:
        return refusal(files.write(tmp_path / "a.pth", state), **how)

    extra = {**daformer, "decode_head.extra.weight": torch.zeros(2)}
    assert "the tensor decode_head.extra.weight, which no rule knows" in said(files.uda(extra))
    assert "the tensor other.weight, which" in said(files.uda(daformer, **{"other.weight": torch.zeros(2)}))
    renamed = {k.replace("conv_seg", "classifier"): v for k, v in daformer.items()}
    assert "the tensor decode_head.classifier.weight and 1 more" in said(files.uda(renamed))
    for lost in ("backbone.block1.0.attn.q.bias", "decode_head.fuse_layer.bottleneck.bn.weight"):
        lacking = {k: v for k, v in daformer.items() if k != lost}
        assert "found no such tensor, expected shape" in said(files.uda(lacking))
    lacking = {k: v for k, v in daformer.items() if ".block3.1." not in k}
    assert "found (32, (2, 2, 1, 2)) for the width and blocks of a MiT" in said(files.uda(lacking))
    lacking = {k: v for k, v in daformer.items() if "conv_seg" not in k}
    assert "a decoder without its classifier or embedding, expected a whole one" in said(files.uda(lacking))
    shape = daformer | {"decode_head.fuse_layer.bottleneck.conv.weight": torch.zeros(256, 1024, 1, 1)}
    assert "found shape (256, 1024, 1, 1), expected shape (256, 1024, 3, 3)" in said(files.uda(shape))
    both = daformer | {"decode_head.linear_pred.bias": torch.zeros(19)}
    assert "would both become head.classify.bias" in said(files.uda(both))
    assert "found no teacher" in said(files.uda(daformer), network="teacher")
    assert "found one network, expected a teacher beside it" in said(daformer, network="teacher")
    counters = {k: v for k, v in daformer.items() if "num_batches" not in k}  # nothing reads them
    imported(files.write(tmp_path / "b.pth", files.uda(counters)))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("classifier.0.convs.0.0.weight", "PLCA's network: Caffe's ResNet"),
        ("target_conv1.weight", "BCL's network: Caffe's ResNet"),
        ("layer5.conv2d_list.0.weight", "AdaptSegNet line"),
        ("network.encoder.blocks.0.norm1.weight", "a network of VFM-UDA"),
        ("segformer.encoder.block.0.0.layer_norm_1.weight", "a SegFormer of `transformers`"),
        ("decode_head.image_pool.1.conv.weight", "another decoder"),
        ("backbone.block1.0.attn.q.weight", "an encoder without a decoder"),
        ("block1.0.attn.q.weight", "an encoder without a decoder"),
        ("decode_head.queries", "which no rule knows"),
    ],
)
def test_other_networks_are_refused_by_name(tmp_path: Path, name: str, words: str) -> None:
    path = tmp_path / "a.pth"
    torch.save({"state_dict": {name: torch.zeros(2, 2)}}, path)
    assert words in refusal(path)


def test_classes_of_another_benchmark(tmp_path: Path, daformer: State) -> None:
    path = files.write(tmp_path / "a.pth", files.uda(daformer))
    assert "found 19 classes, streets2camvid has 11" in refusal(path, "streets2camvid")
    turned = ("sidewalk", "road", *files.CITYSCAPES[2:])
    path = files.write(tmp_path / "a.pth", files.uda(daformer), CLASSES=turned)
    assert "class 0 is 'sidewalk', that of gta2cityscapes is 'road'" in refusal(path)


def test_a_model_file_of_ours_is_no_published_one(tmp_path: Path, daformer: State) -> None:
    out = imported(files.write(tmp_path / "a.pth", files.uda(daformer)))
    assert "is a model file of udaseg already" in refusal(out)
    with pytest.raises(UserError, match="would replace it; say --out"):
        import_checkpoint(out, run_of(), None)


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys, daformer: State) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(RAW))
    files.write(tmp_path / "a.pth", files.uda(daformer, daformer))
    assert cli.main(["import-checkpoint", "a.pth", "--like", "gta2cityscapes", "--teacher"]) == 0
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith(
        "a.safetensors: DAFormer or another on it, pvt_v2_b0 with head daformer, 19 classes, teacher; "
    )
    assert last == "udaseg evaluate --model a.safetensors --benchmark gta2cityscapes"
    assert cli.main(["import-checkpoint", "a.pth", "--like", "gta2cityscape"]) == 2
