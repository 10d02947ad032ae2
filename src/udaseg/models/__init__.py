"""Segmentation networks: timm encoders, DeepLabV2 and DAFormer heads, pretrained weights and model files."""

from udaseg.models.build import build_model
from udaseg.models.files import load_model_file, load_state, save_model
from udaseg.models.segmenter import Boxes, Output, Segmenter
from udaseg.models.weights import load_encoder_weights

__all__ = [
    "Boxes",
    "Output",
    "Segmenter",
    "build_model",
    "load_encoder_weights",
    "load_model_file",
    "load_state",
    "save_model",
]
