"""What a config states of the published weights.

* `QuantizedCheckpoint`: a checkpoint whose ``config.json`` has a ``quantization_config``.
"""

from __future__ import annotations

import attrs

from llmcalc.boundary import instance_of
from llmcalc.described import Described

__all__ = ["QuantizedCheckpoint"]


@attrs.frozen(kw_only=True, repr=False, eq=False)
class QuantizedCheckpoint(Described):
    """A checkpoint with a ``quantization_config``, which `llmcalc.schemes` reads when asked.

    `wide` is the format of what is not quantised, `None` where the config does not state it.
    `quantization` is the ``quantization_config`` as JSON text.

    >>> from llmcalc.spec import QuantizedCheckpoint
    >>> QuantizedCheckpoint(wide="bf16", quantization='{"quant_method": "fp8"}').wide
    'bf16'
    """

    wide: str | None = attrs.field(validator=attrs.validators.optional(instance_of(str)))
    quantization: str = attrs.field(validator=instance_of(str))
