"""A stem of its own for each domain: two networks that share all but their first layers (BCL's released code)."""

from __future__ import annotations

import copy

from udaseg.errors import UserError
from udaseg.models.segmenter import Segmenter


def with_own_stem(network: Segmenter) -> Segmenter:
    """A second network that shares every module with `network` but those up to the end of its first stage: copies.

    For ResNets the copies are the first convolution, its normalisation and layer1.

    Raises:
        UserError: a backbone whose first stage is not a module with a name.
    """
    body = network.encoder.body
    names = [name for name, _ in body.named_modules()]
    first = body.feature_info.module_name()[-len(network.stage_channels)]
    inside = (f"{first}.", f"{first.replace('.', '_')}.")  # timm flattens `stages.0` to `stages_0` for some families
    last = max((i for i, name in enumerate(names) if f"{name}.".startswith(inside)), default=None)
    if last is None:
        raise UserError(f"no module {first!r} ends the first stage of this backbone, so it has no stem to split")
    heads = [module for name, module in network.named_children() if name != "encoder"]
    shared = [*heads, *(body.get_submodule(name) for name in names[last + 1 :])]
    return copy.deepcopy(network, {id(module): module for module in shared})
