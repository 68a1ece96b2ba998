"""Muse Glimmer: its language model, with gated attention and norms without parameters."""

from __future__ import annotations

import attrs

from llmcalc.errors import InvalidValueError
from llmcalc.huggingface.config import Config
from llmcalc.huggingface.reading import (
    FULL,
    SLIDING,
    assemble,
    attention,
    biases,
    each_once,
    feed_forward,
    rms_norm,
    rotary,
    window_kinds,
    window_span,
)
from llmcalc.spec.model import Block, Layer, ModelSpec
from llmcalc.spec.parts import Embedding
from llmcalc.spec.spans import Full, Span

__all__ = ["muse_glimmer"]


def muse_glimmer(config: Config, name: str) -> ModelSpec:
    """Read the language model of a Muse Glimmer: the last and every fourth before it are full.

    Layers whose ``layer_rope_theta`` is zero have no positions
    (``models/muse_glimmer/configuration_muse_glimmer.py``, ``modeling_muse_glimmer.py``).
    """
    norm, layers = rms_norm(config), config.num_layers()
    plain = attrs.evolve(norm, elementwise=False)
    after = rms_norm(config, "post_norm_eps")
    usual = [index % 4 == (layers - 1) % 4 for index in range(layers)]
    kinds = window_kinds(config, lambda index: not usual[index])
    turned = _turned(config, usual)
    spans: dict[str, Span] = {FULL: Full(), SLIDING: window_span(config)}
    width = config.size("head_dim")
    inner = feed_forward(config, activation_field="hidden_activation")

    def layer(plan: tuple[str, bool]) -> Layer:
        kind, has_positions = plan
        mixer = attention(
            config,
            width=width,
            span=spans[kind],
            positions=rotary(config) if has_positions else None,
            query_norm=plain,
            key_norm=plain,
            output_gate="element",
            **biases(config),
        )
        blocks = (Block(part=part, norm=norm, post_norm=after) for part in (mixer, inner))
        return Layer(blocks=tuple(blocks))

    return assemble(
        config,
        name,
        each_once(zip(kinds, turned, strict=True), layer),
        final_norm=norm,
        embedding=Embedding(vocab_size=config.required_size("vocab_size"), norm=plain),
    )


def _turned(config: Config, full: list[bool]) -> list[bool]:
    """Return which layers have rotary positions: by default those that are not usually full."""
    thetas = config.get("layer_rope_theta")
    if thetas is None:
        return [not is_full for is_full in full]
    if (
        not isinstance(thetas, list | tuple)
        or len(thetas) != len(full)
        or not all(type(theta) is int or type(theta) is float for theta in thetas)
    ):
        raise InvalidValueError("layer_rope_theta", thetas, f"must be {len(full)} numbers")
    return [bool(theta) for theta in thetas]
