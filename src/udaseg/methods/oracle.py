"""The oracle: the same training on labelled target images, the ceiling of every comparison."""

from udaseg.methods.source_only import SourceOnlyMethod


class OracleMethod(SourceOnlyMethod):
    labelled = "target"


METHOD = OracleMethod
