"""Contrastive unsupervised domain adaptation of semantic segmentation, and the baselines it stands on."""

__version__ = "0.1.0"
