"""The oracle: the same training on labelled target images, the ceiling of every comparison."""

from udaseg.methods.source_only import SourceOnly


class Oracle(SourceOnly):
    labelled = "target"


METHOD = Oracle
