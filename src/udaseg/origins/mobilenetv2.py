"""The ImageNet weights `mobilenetv2_100.tf2_imagenet` from Google's MobileNetV2 for 8-bit devices (TensorFlow Lite).

The original stores 8-bit weights, one scale for each output channel, with batch normalisation folded into the convolutions.

* weights = q * scale, bias = q * input scale * weight scale, in PyTorch's order under timm's names;
* batch normalisation is unfolded: with the mean m and variance v of a convolution's output, running_mean = m, running_var = v,
  weight = sqrt(v + eps), bias = folded bias + m, eps = 1e-3, so that in evaluation mode the network's function stays the same. m and v
  were measured on 600 random crops of 25 ordinary photographs from the same origin, and lie in mobilenetv2_statistics.npz (there
  `rounding`, in units of the last place: the first conversion took the root of v before v was rounded);
* the background class (index 0 of 1001) is dropped.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np

EPS = np.float32(1e-3)
STATISTICS = Path(__file__).with_name("mobilenetv2_statistics.npz")
# In the order in which the file was first written: its bytes are what runs are signed with.
METADATA = {
    **{"pad_type": "same", "architecture": "mobilenetv2_100", "mean": "0.5,0.5,0.5", "licence": "Apache-2.0"},
    **{"bn_eps": "1e-3", "std": "0.5,0.5,0.5"},
}
CONVOLUTION, DEPTHWISE = 3, 4  # builtin operators of TensorFlow Lite
TYPES = {0: "<f4", 2: "<i4", 9: "i1"}


def converted(original: bytes) -> bytes:
    """A safetensors file of the original."""
    statistics = np.load(STATISTICS)
    tensors: dict[str, np.ndarray] = {}
    first = 0
    *features, classifier = convolutions(original)
    for (name, norm), (weight, bias) in zip(layers(), features, strict=True):
        part = slice(first, first := first + len(bias))
        mean, variance = statistics["mean"][part], statistics["variance"][part]
        tensors[f"{name}.weight"] = weight
        tensors[f"{norm}.weight"] = (np.sqrt(variance + EPS).view("<i4") + statistics["rounding"][part]).view("<f4")
        tensors[f"{norm}.bias"] = bias.astype(np.float32) + mean
        tensors[f"{norm}.running_mean"], tensors[f"{norm}.running_var"] = mean, variance
    weight, bias = classifier
    tensors["classifier.weight"] = weight[1:, :, 0, 0]
    tensors["classifier.bias"] = bias[1:].astype(np.float32)
    return safetensors(tensors, METADATA)


def layers() -> list[tuple[str, str]]:
    """timm's names of the convolutions in the order in which they run, each with its normalisation."""
    found = [("conv_stem", "bn1"), ("blocks.0.0.conv_dw", "blocks.0.0.bn1"), ("blocks.0.0.conv_pw", "blocks.0.0.bn2")]
    for stage, blocks in enumerate((2, 3, 4, 3, 3, 1), 1):
        for k in range(blocks):
            here = f"blocks.{stage}.{k}"
            found += [(f"{here}.conv_{kind}", f"{here}.bn{n}") for n, kind in enumerate(("pw", "dw", "pwl"), 1)]
    return [*found, ("conv_head", "bn2")]


def safetensors(tensors: dict[str, np.ndarray], metadata: dict[str, str]) -> bytes:
    """The format of that name, written by hand so that equal tensors give equal bytes."""
    header: dict[str, object] = {"__metadata__": metadata}
    data = bytearray()
    for name in sorted(tensors):
        begin = len(data)
        data += np.ascontiguousarray(tensors[name], "<f4").tobytes()
        header[name] = {"dtype": "F32", "shape": list(tensors[name].shape), "data_offsets": [begin, len(data)]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + bytes(data)


# --- TensorFlow Lite, as much of it as is needed ----------------------------------------------------------------------


class Table:
    """A FlatBuffers table: fields are found through its list of offsets, by their number in the schema."""

    def __init__(self, data: bytes, place: int) -> None:
        self.data, self.place = data, place
        self.fields = place - struct.unpack_from("<i", data, place)[0]
        self.size = struct.unpack_from("<H", data, self.fields)[0]

    def at(self, field: int) -> int | None:
        entry = 4 + 2 * field
        offset = struct.unpack_from("<H", self.data, self.fields + entry)[0] if entry < self.size else 0
        return self.place + offset if offset else None

    def number(self, field: int, kind: str = "<I") -> int:
        place = self.at(field)
        return 0 if place is None else int(struct.unpack_from(kind, self.data, place)[0])

    def vector(self, field: int) -> tuple[int, int]:
        """Where it begins, and how many there are."""
        place = self.at(field)
        if place is None:
            return 0, 0
        place += struct.unpack_from("<I", self.data, place)[0]
        return place + 4, struct.unpack_from("<I", self.data, place)[0]

    def table(self, field: int) -> Table:
        place = self.at(field)
        assert place is not None
        return Table(self.data, place + struct.unpack_from("<I", self.data, place)[0])

    def tables(self, field: int) -> list[Table]:
        begin, number = self.vector(field)
        places = range(begin, begin + 4 * number, 4)
        return [Table(self.data, place + struct.unpack_from("<I", self.data, place)[0]) for place in places]

    def array(self, field: int, kind: str) -> np.ndarray:
        begin, number = self.vector(field)
        return np.frombuffer(self.data, kind, number, begin)


def convolutions(data: bytes) -> list[tuple[np.ndarray, np.ndarray]]:
    """(out, in, height, width) float32 weights and (out,) float64 bias of every convolution, in the order in which they run."""
    model = Table(data, struct.unpack_from("<I", data)[0])
    codes = [code.number(0, "<b") for code in model.tables(1)]
    graph, buffers = model.tables(2)[0], model.tables(4)
    tensors = graph.tables(0)

    def values(tensor: Table) -> np.ndarray:
        raw = buffers[tensor.number(2)].array(0, "u1").tobytes()
        return np.frombuffer(raw, TYPES[tensor.number(1, "<b")]).reshape(tensor.array(0, "<i4"))

    found = []
    for operator in graph.tables(3):
        kind = codes[operator.number(0)]
        if kind not in (CONVOLUTION, DEPTHWISE):
            continue
        image, weight, bias = (tensors[k] for k in operator.array(1, "<i4"))
        scale, of_image = (tensor.table(4).array(2, "<f4") for tensor in (weight, image))
        q = values(weight).astype(np.float32)
        if kind == CONVOLUTION:  # out, height, width, in
            w = (q * scale[:, None, None, None]).transpose(0, 3, 1, 2)
        else:  # 1, height, width, out
            w = (q * scale)[0].transpose(2, 0, 1)[:, None]
        found.append((w, values(bias) * (of_image.astype(np.float64) * scale.astype(np.float64))))
    return found
