"""Figures of a benchmark, each drawn by a function of its own from files."""

NAMES = ("gain", "iou_bars", "iou_heatmap", "published", "confusion", "curves", "tsne", "compactness", "qualitative")
