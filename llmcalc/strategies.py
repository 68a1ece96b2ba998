"""Hypothesis strategies for specs, for this library's tests and for yours (extra ``strategies``).

* `dense_specs`: dense decoders over all options of `ModelSpec.dense`.
"""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from llmcalc.spec.model import ModelSpec

__all__ = ["dense_specs"]


@st.composite
def dense_specs(
    draw: st.DrawFn,
    *,
    max_layers: int = 3,
    max_kv_heads: int = 4,
    max_group: int = 4,
    max_head_dim: int = 16,
    max_inner: int = 48,
    max_vocab: int = 64,
    max_positions: int = 256,
) -> ModelSpec:
    """Draw a dense decoder; every option of `ModelSpec.dense` may take every value.

    The arguments bound the sizes, so that the decoder can be built and run.

    >>> from hypothesis import given
    >>> from llmcalc import memory
    >>> from llmcalc.strategies import dense_specs
    >>> @given(dense_specs(max_layers=2))
    ... def test_has_parameters(spec):
    ...     assert memory.parameters(spec).total > 0
    >>> test_has_parameters()
    """
    kv_heads = draw(st.integers(1, max_kv_heads))
    heads = kv_heads * draw(st.integers(1, max_group))
    positions = draw(st.sampled_from(["rotary", "learned", "none"]))
    step = 2 if positions == "rotary" else 1
    head_dim = step * draw(st.integers(1, max(1, max_head_dim // step)))
    output = draw(st.booleans())
    free_width = draw(st.booleans()) and output
    width = draw(st.integers(1, heads * max_head_dim)) if free_width else heads * head_dim
    limited = positions == "learned" or draw(st.booleans())
    options: dict[str, Any] = {
        "gated": draw(st.booleans()),
        "activation": draw(st.sampled_from(["relu", "silu", "gelu", "gelu_tanh"])),
        "norm": draw(st.sampled_from(["rms", "layer", None])),
        "positions": positions,
        "max_positions": max_positions if limited else None,
        "query_key_value_bias": draw(st.booleans()),
        "attention_output": output,
        "attention_output_bias": output and draw(st.booleans()),
        "feed_forward_bias": draw(st.booleans()),
        "tied_head": draw(st.booleans()),
        "head_bias": draw(st.booleans()),
    }
    return ModelSpec.dense(
        name="drawn",
        num_layers=draw(st.integers(1, max_layers)),
        num_query_heads=heads,
        num_kv_heads=kv_heads,
        embed_dim=width,
        head_dim=head_dim,
        inner_dim=draw(st.integers(1, max_inner)),
        vocab_size=draw(st.integers(2, max_vocab)),
        **options,
    )
