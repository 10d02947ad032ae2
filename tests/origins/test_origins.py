"""Weights from their public origin: TensorFlow Lite read right, the right file or none, and a hint where one is missing."""

from __future__ import annotations

import http.server
import threading
from pathlib import Path

import flatbuffers
import numpy as np
import pytest
from safetensors.numpy import load

from udaseg import cli, origins
from udaseg.origins import mobilenetv2

NAME = "mobilenetv2_100.tf2_imagenet"
G = np.random.default_rng(0)
FULL, DEPTHWISE = G.integers(-127, 128, (6, 3, 2, 4), np.int8), G.integers(-127, 128, (1, 3, 2, 6), np.int8)
BIASES = [G.integers(-9999, 9999, 6, np.int32) for _ in range(2)]
SCALES = [G.random(6, np.float32) for _ in range(2)]
SCALE_IN = np.float32(0.0078431)


def tiny_program() -> bytes:
    """A convolution, a depthwise one and something else, by the schema's field numbers."""
    b = flatbuffers.Builder(0)

    def offsets(items: list[int]) -> int:
        b.StartVector(4, len(items), 4)
        for item in reversed(items):
            b.PrependUOffsetTRelative(item)
        return int(b.EndVector())

    def table(number: int, **slots: int) -> int:
        b.StartObject(number)
        for slot, value in slots.items():
            b.PrependUOffsetTRelativeSlot(int(slot[1:]), value, 0)
        return int(b.EndObject())

    contents = [b"", FULL.tobytes(), BIASES[0].tobytes(), DEPTHWISE.tobytes(), BIASES[1].tobytes()]
    buffers = [table(1, _0=b.CreateByteVector(data)) for data in contents]

    def tensor(shape: tuple[int, ...], kind: int, buffer: int, scale: np.ndarray) -> int:
        quantization = table(7, _2=b.CreateNumpyVector(scale))
        dims = b.CreateNumpyVector(np.array(shape, np.int32))
        b.StartObject(8)
        b.PrependUOffsetTRelativeSlot(0, dims, 0)
        b.PrependInt8Slot(1, kind, 0)
        b.PrependUint32Slot(2, buffer, 0)
        b.PrependUOffsetTRelativeSlot(4, quantization, 0)
        return int(b.EndObject())

    one = np.array([SCALE_IN])
    tensors = [
        tensor((1, 8, 8, 4), 9, 0, one),
        tensor(FULL.shape, 9, 1, SCALES[0]),
        tensor((6,), 2, 2, SCALES[0]),
        tensor(DEPTHWISE.shape, 9, 3, SCALES[1]),
        tensor((6,), 2, 4, SCALES[1]),
    ]

    def operator(code: int, inputs: list[int]) -> int:
        vector = b.CreateNumpyVector(np.array(inputs, np.int32))
        b.StartObject(9)
        b.PrependUint32Slot(0, code, 0)
        b.PrependUOffsetTRelativeSlot(1, vector, 0)
        return int(b.EndObject())

    operators = [operator(2, [0]), operator(0, [0, 1, 2]), operator(1, [0, 3, 4])]
    graph = table(5, _0=offsets(tensors), _3=offsets(operators))
    codes = []
    for code in (mobilenetv2.CONVOLUTION, mobilenetv2.DEPTHWISE, 114):
        b.StartObject(4)
        b.PrependInt8Slot(0, code, 0)
        codes.append(int(b.EndObject()))
    b.Finish(table(8, _1=offsets(codes), _2=offsets([graph]), _4=offsets(buffers)))
    return bytes(b.Output())


def test_convolutions_are_read_in_order_and_in_pytorchs_layout() -> None:
    (w, bias), (dw, dbias) = mobilenetv2.convolutions(tiny_program())
    assert w.shape == (6, 4, 3, 2) and dw.shape == (6, 1, 3, 2)
    assert w[5, 3, 2, 1] == FULL[5, 2, 1, 3] * SCALES[0][5] and dw[4, 0, 2, 1] == DEPTHWISE[0, 2, 1, 4] * SCALES[1][4]
    for found, number, scale in ((bias, BIASES[0], SCALES[0]), (dbias, BIASES[1], SCALES[1])):
        assert found == pytest.approx(number * scale.astype(np.float64) * float(SCALE_IN))


def test_equal_tensors_give_equal_bytes_that_the_library_reads() -> None:
    tensors = {"b": np.arange(6, dtype=np.float32).reshape(2, 3), "a": np.ones(1, np.float32)}
    made = mobilenetv2.safetensors(tensors, {"licence": "x"})
    assert made == mobilenetv2.safetensors(dict(reversed(tensors.items())), {"licence": "x"})
    assert all((load(made)[name] == value).all() for name, value in tensors.items())


def test_every_layer_has_its_statistics_and_timm_its_names() -> None:
    import timm
    from torch import nn

    network = timm.create_model("mobilenetv2_100")
    modules = dict(network.named_modules())
    convolutions = [name for name, module in modules.items() if isinstance(module, nn.Conv2d)]
    norms = [name for name, module in modules.items() if isinstance(module, nn.BatchNorm2d)]
    assert mobilenetv2.layers() == list(zip(convolutions, norms, strict=True))
    channels = sum(modules[name].num_features for name in norms)
    statistics = np.load(mobilenetv2.STATISTICS)
    assert {key: statistics[key].shape for key in statistics} == dict.fromkeys(
        ("mean", "variance", "rounding"), (channels,)
    )


def test_another_file_than_the_origins_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "other.tflite").write_bytes(tiny_program())
    out = tmp_path / "w/made.safetensors"
    words = ["fetch-weights", NAME, "--out", str(out), "--file"]
    assert cli.main([*words, str(tmp_path / "other.tflite")]) == 2
    assert "expected 5d3137241276" in capsys.readouterr().err and not out.exists()
    assert cli.main([*words, str(tmp_path / "nothing.tflite")]) == 2
    assert "nothing.tflite: no such file; without --file" in capsys.readouterr().err
    assert cli.main(["fetch-weights", NAME.replace("100", "101")]) == 2
    assert f"did you mean '{NAME}'?" in capsys.readouterr().err


def test_what_arrives_is_compared_and_a_dead_address_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/there" else 404)
            self.end_headers()
            self.wfile.write(b"the original")

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("UDASEG_MIRROR", raising=False)
    monkeypatch.setattr(mobilenetv2, "converted", lambda original: original + b", converted")
    address = f"http://127.0.0.1:{server.server_port}"
    made = b"the original, converted"

    def origin(path: str, result: bytes) -> origins.Origin:
        return origins.Origin(address + path, origins.sha256(b"the original"), origins.sha256(result), "a test")

    try:
        monkeypatch.setitem(origins.ORIGINS, NAME, origin("/there", made))
        assert cli.main(["fetch-weights", NAME]) == 0
        path = tmp_path / "mirror/weights" / f"{NAME}.safetensors"
        assert path.read_bytes() == made and f"export UDASEG_MIRROR={tmp_path}/mirror" in capsys.readouterr().out
        assert cli.main(["fetch-weights", NAME]) == 0 and "is there already" in capsys.readouterr().out
        path.unlink()
        monkeypatch.setitem(origins.ORIGINS, NAME, origin("/there", b"something else"))
        assert cli.main(["fetch-weights", NAME]) == 2 and not path.exists()
        assert "after conversion, expected" in capsys.readouterr().err
        monkeypatch.setitem(origins.ORIGINS, NAME, origin("/gone", made))
        assert cli.main(["fetch-weights", NAME]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "could not download" in line and "--file FILE" in line
    finally:
        server.shutdown()
        server.server_close()


def test_a_missing_file_is_known_without_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UDASEG_MIRROR", raising=False)
    assert f"found UDASEG_MIRROR unset; `udaseg fetch-weights {NAME}` makes it" in (origins.lacking(NAME) or "")
    monkeypatch.setenv("UDASEG_MIRROR", str(tmp_path))
    assert "found nothing there; `udaseg fetch-weights" in (origins.lacking(NAME) or "")
    assert (origins.lacking("resnet18.mine") or "").endswith("found nothing there")
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / f"{NAME}.safetensors").touch()
    assert [
        origins.lacking(w) for w in (NAME, "none", "timm:in1k", str(tmp_path / "weights" / f"{NAME}.safetensors"))
    ] == [None] * 4
    assert "found nothing there" in (origins.lacking("nowhere/x.pth") or "")
