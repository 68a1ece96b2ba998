"""HRM: two stacks of layers, each gone through several times."""

from __future__ import annotations

from collections.abc import Iterator

import attrs

from llmcalc.huggingface.config import Config
from llmcalc.huggingface.reading import assemble, attention, biases, feed_forward, pre_norm, rotary
from llmcalc.spec.axes import Axis
from llmcalc.spec.items import Scale
from llmcalc.spec.ledger import Entry
from llmcalc.spec.model import Layer, ModelSpec
from llmcalc.spec.parts import Norm

__all__ = ["hrm_text"]


def hrm_text(config: Config, name: str) -> ModelSpec:
    """Read an HRM: two stacks of layers, each gone through several times.

    A saved config gives the layers of all uses, and those of a stack in
    ``num_layers_per_stack``. Source: ``models/hrm_text/configuration_hrm_text.py``,
    ``modeling_hrm_text.py``.
    """
    config.ignore("num_hidden_layers")
    stack = config.get("num_layers_per_stack")
    layers = config.num_layers("num_hidden_layers" if stack is None else "num_layers_per_stack")
    high, low = config.size("H_cycles"), config.size("L_cycles")
    norm = Norm(kind="rms", elementwise=False, eps=config.number("rms_norm_eps"))
    bias = config.flag("attention_bias")
    parts = (
        attention(
            config,
            num_kv_heads=config.required_size("num_attention_heads"),
            positions=rotary(config),
            output_gate="element",
            gate_bias=bias,
            **biases(config),
        ),
        feed_forward(config, bias=config.flag("mlp_bias")),
    )
    blocks = pre_norm(norm, *parts).blocks
    lower, upper = (Layer(blocks=blocks, uses=uses) for uses in (high * low, high))
    return assemble(
        config,
        name,
        [lower] * layers + [upper] * layers,
        final_norm=norm,
        beside=(_FirstState(),),
    )


@attrs.frozen
class _FirstState:
    """The state that the lower stack of an HRM begins with."""

    def entries(self, embed: Axis) -> Iterator[Entry]:
        """Emit the vector."""
        yield Entry(("other", ""), None, Scale(name="first_state", axes=(embed,)))
