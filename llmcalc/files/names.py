"""What the name of a tensor tells, as published models and GGUF files name theirs.

* `group_of`: the group of a description that it belongs to.
* `layer_of`: the number of its layer.
* `is_beside`: whether it only stands beside a quantised one.
* `ALIKE`: groups that names may not tell apart.
"""

from __future__ import annotations

import re
from typing import Final

__all__ = ["ALIKE", "group_of", "is_beside", "layer_of"]

#: Groups whose modules some models give the same names.
ALIKE: Final = (("attention", "recurrent"), ("feed_forward", "experts"))

#: The number of the layer in a tensor's name.
_LAYER: Final = re.compile(r"(?:layers|h|blocks|block|blk|layer)\.([0-9]{1,6})\.")

#: What tells the group of a tensor, by its name; the first pattern that is found counts.
_GROUPS: Final = tuple(
    (re.compile(pattern), group)
    for pattern, group in (
        (r"(^|\.)(lm_head|embed_out|unembed)\.|^(output|head|decoder)\.", "head"),
        (r"embed_tokens|embed_positions|tok_embeddings|(tokens|positions)_embed\.", "embeddings"),
        (r"(^|\.)(wte|wpe|word_embeddings|embed_in|token_embd|position_embd)\.", "embeddings"),
        (r"^((backbone|rwkv)\.)?embeddings?\.|^transformer\.w\.|llm\.embed\.", "embeddings"),
        (r"(self_attn|attention|attn)\.(\w+\.)*\w*norm", "attention"),
        (r"blk\.\d+\.attn_(q|k|q_a|kv_a)_norm\.", "attention"),
        (r"(mamba|mixer|linear_attn|ssm|temporal_block|recurrent|time_mix)[._]", "recurrent"),
        (r"layers\.\d+\.conv\.", "recurrent"),
        (r"(^|[._])(norm|norm_\w|layernorm|ln|ln\d|ln_\w|\w+_layernorm|\w+norm\w*)\.", "norms"),
        (r"blk\.\d+\.\w*norm", "norms"),
        (r"expert|router|mlp\.gate\.|block_sparse_moe|_exps|_shexp|ffn_gate_inp|moe", "experts"),
        (r"shared_mlp", "experts"),
        (r"e_score_correction|exp_probs_b", "experts"),
        (r"self_attn|attention|attn", "attention"),
        (r"mlp|feed_forward|ffn|\bfc\d?\.|dense_", "feed_forward"),
    )
)

#: Ends of the names of tensors that stand beside quantised ones.
_BESIDE: Final = (
    ".weight_scale", ".weight_scale_inv", ".weight_scale_2", ".input_scale", ".activation_scale",
    ".weight_zero_point", ".input_zero_point", ".weight_g_idx", ".weight_shape",
    ".weight_global_scale", ".input_global_scale", ".scales", ".qzeros", ".g_idx", ".absmax",
    ".quant_map", ".nested_absmax", ".nested_quant_map", ".SCB", ".weight_format", "_scales",
    ".k_scale", ".v_scale",
)  # fmt: skip


def group_of(name: str) -> str:
    """Return the group of a tensor, as far as its name tells, else ``"other"``.

    >>> from llmcalc.files.names import group_of
    >>> group_of("model.layers.0.self_attn.q_proj.weight"), group_of("blk.0.ffn_up.weight")
    ('attention', 'feed_forward')
    """
    for pattern, group in _GROUPS:
        if pattern.search(name[:300]):
            return group
    return "other"


def layer_of(name: str) -> int | None:
    """Return the number of a tensor's layer, `None` for one that is in none.

    >>> from llmcalc.files.names import layer_of
    >>> layer_of("model.layers.12.mlp.up_proj.weight"), layer_of("lm_head.weight")
    (12, None)
    """
    found = _LAYER.search(name)
    return None if found is None else int(found[1])


def is_beside(name: str) -> bool:
    """Whether a tensor is no weight: scales, zero points, an order; or frequencies of positions.

    >>> from llmcalc.files.names import is_beside
    >>> is_beside("model.layers.0.mlp.up_proj.weight_scale"), is_beside("lm_head.weight")
    (True, False)
    """
    return name.endswith(_BESIDE) or ".quant_state." in name or name.startswith("rope_freqs")
