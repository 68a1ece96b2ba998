"""Configurations of any model type, altered at random by what their fields are.

The fields, their kinds and their defaults are those of transformers' own configuration classes.
Sizes are small and even, layers few. Not every alteration is a model: what transformers refuses
is for the caller to pass over.
"""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Callable
from random import Random
from typing import Any

from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from llmcalc.huggingface.registry import HEADLESS
from tests.truth import rows

TINY = {row["model_type"]: row["config"] for row in rows("tiny_measured")}

#: Sizes of a small language model of those that stand in larger models; a type has some of them.
_SMALL = {
    "vocab_size": 160, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    "moe_intermediate_size": 32, "num_experts": 8, "n_routed_experts": 8,
    "num_experts_per_tok": 2, "share_expert_dim": 40, "max_position_embeddings": 128,
    "max_window_layers": 2, "pad_token_id": 0, "additional_vocab_size": 4,
}  # fmt: skip
_SECTIONS = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2]}
_HALF = {**_SECTIONS, "partial_rotary_factor": 0.5, "mrope_section": [2, 1, 1]}
_WINDOW: dict[str, Any] = {"sliding_window": 8, "rope_parameters": _SECTIONS}

#: What else they need to run: sections of rotary positions for images, lists of layers, windows.
_NEEDED: dict[str, dict[str, Any]] = {
    "cosmos3_edge_text": {"rope_parameters": _SECTIONS},
    "deepseek_ocr2_text": {"mlp_layer_types": ["dense", "sparse", "sparse", "dense"]},
    "glm4v_moe_text": {"rope_parameters": _HALF},
    "glm4v_text": {"rope_parameters": _SECTIONS},
    "glm_ocr_text": {"rope_parameters": _SECTIONS},
    "hunyuan_vl_text": {"rope_parameters": _SECTIONS},
    "mllama_text_model": {"cross_attention_layers": [1, 3]},
    "muse_glimmer_text": {"sliding_window": 8},
    "paddleocr_vl_text": {"rope_parameters": _SECTIONS},
    "qwen2_5_omni_text": _WINDOW,
    "qwen2_5_vl_text": _WINDOW,
    "qwen2_vl_text": _WINDOW,
    "step3p5": {"sliding_window": 8},
}


def small(model_type: str) -> dict[str, Any]:
    """Return arguments for a small language model of a type that stands in larger models."""
    fields = fields_of(model_type)
    sizes = {name: size for name, size in _SMALL.items() if name in fields}
    return copy.deepcopy({**sizes, **_NEEDED.get(model_type, {})})


#: Fields that change no shape, or that transformers alone decides.
_UNTOUCHED = re.compile(
    r"token_id|dropout|pdrop|eps\b|epsilon|range|init|theta|soft_?cap|multiplier|scaling|scale|"
    r"rope_param|use_cache|layerdrop|pretraining_tp|factor|aux_loss|jitter|residual_alpha|router_z|"
    r"std|clip|summary|return_|output_hid|output_att|output_router|is_encoder|chunk_size_feed|"
    r"label|architectures|dtype|transformers_version|problem_type|cross_attention|is_decoder|"
    r"time_step_(min|max|floor|limit)|linear_(dt|a_log|allow)|kda_|use_mamba|use_associative|"
    r"kernel$|mode$|mtp_|_id$|seed|slow_but_exact|_fp32|inference|reorder|norm_topk|rescale|"
    r"classifier|temperature|alpha|attn_temp|float32|weight_on_input|mem_eff|logits_to_keep|"
    r"scoring_func|selection_fn|combination|topk_method|pooling|prefix_lm|bp_cycles|"
    r"original_max|log_scaling|capacity|safe_gate|_limit|embedding_fraction|dim_model_base|"
    r"norm_type|ssm_cache|nextn|number_of_conv|chain_hidden|sparsity_pattern|prefill_chunk|"
    r"ngram_vocab|split_ngram|divisible_by|expert_sink"
)

#: Fields that a type reads as one of a few words.
_WORDS: dict[str, list[Any]] = {
    "gating": [True, False, "per-head", "per-element"],
    "output_gate_type": [None, "swish", "sigmoid"],
    "position_embedding_type": [None, "rope", "nope"],
    "qk_norm_type": ["qwen3", "olmo"],
    "weight_mode": ["single", "fused"],
    "num_ln_in_parallel_attn": [None, 1, 2],
    "time_step_rank": ["auto", 3, 8],
    "mamba_dt_rank": ["auto", 3, 8],
    "use_bidirectional_attention": [None],
    "ffn_round_up_to_multiple_of": [1, 8, 64],
    "altup_active_idx": [0, 1],
    "altup_num_inputs": [2, 3, 4],
    "intermediate_multiple_size": [1, 2, 4],
    "swiglu_limit": [7.0],
}

_ACTIVATIONS = ["silu", "gelu", "relu", "gelu_pytorch_tanh", "relu2", "xielu", "prelu"]
_ACTIVATION_FIELD = re.compile(r"act$|activation$|activation_function$|afn$")

#: The kinds of layers in a list, where the class's default does not show all of them.
_KINDS: dict[tuple[str, str], list[str]] = {
    ("layer_types", "cohere_compass_text"): ["full_attention", "sliding_attention"],
    ("layer_types", "deepseek_v4"): [
        "sliding_attention",
        "compressed_sparse_attention",
        "heavily_compressed_attention",
    ],
    ("layer_types", "minimax_m3_vl_text"): ["full_attention", "minimax_m3_sparse"],
    ("layer_types", "muse_glimmer_text"): ["full_attention", "sliding_attention"],
    ("layer_types", "qwen2_5_omni_text"): ["full_attention", "sliding_attention"],
    ("layer_types", "qwen2_5_vl_text"): ["full_attention", "sliding_attention"],
    ("layer_types", "qwen2_vl_text"): ["full_attention", "sliding_attention"],
    ("layer_types", "step3p5"): ["full_attention", "sliding_attention"],
    ("layer_types", "zaya"): ["hybrid", "hybrid_sliding"],
    ("layer_types", "lfm3"): ["conv", "full_attention", "sliding_attention"],
    ("layer_types", "lfm2_moe"): ["conv", "full_attention"],
    ("layer_types", "minimax"): ["full_attention", "linear_attention"],
    ("layer_types", "granitemoehybrid"): ["full_attention", "linear_attention"],
    ("mlp_layer_types", "deepseek_v4"): ["hash_moe", "moe"],
    ("layers_block_type", "nemotron_h"): ["mamba", "attention", "moe", "mlp"],
    ("layers_block_type", "zamba"): ["mamba", "hybrid"],
    ("layers_block_type", "zamba2"): ["mamba", "hybrid"],
    ("block_types", "recurrent_gemma"): ["recurrent", "attention"],
}

_LAYERS = {"num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_blocks"}
_HEADS = {"num_attention_heads", "n_head", "n_heads", "attention_heads", "num_heads"}
_WIDTH = {"hidden_size", "n_embd", "d_model", "embedding_dim"}
_KV_HEADS = {"num_key_value_heads", "num_kv_heads"}
_POSITIONS = {"max_position_embeddings", "n_positions", "max_seq_len", "context_length", "n_ctx"}


def fields_of(model_type: str) -> dict[str, tuple[str, Any]]:
    """Return the kind and the default of every field of the configuration class."""
    result = {}
    for field in dataclasses.fields(CONFIG_MAPPING[model_type]):
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        if default is not dataclasses.MISSING and not field.name.startswith("_"):
            result[field.name] = (str(field.type), default)
    if model_type in HEADLESS:
        result["tie_word_embeddings"] = ("bool", False)
    return result


def altered(model_type: str, rng: Random, *, tiny: bool) -> dict[str, Any]:
    """Return arguments for the configuration class: class defaults or a `tiny` model's, altered."""
    fields = fields_of(model_type)
    whole = small(model_type) if model_type in HEADLESS else TINY[model_type]
    base = copy.deepcopy(whole) if tiny else {}
    base.pop("model_type", None)
    draw = _Draw(model_type, rng, fields, base)
    for name, (kind, default) in fields.items():
        draw.alter(name, kind, base.get(name, default))
    _pick_few(draw)
    if draw.fields.get("pad_token_id", ("", None))[1] is not None:
        draw.values["pad_token_id"] = 0
    change = _CONSTRAINTS.get(model_type)
    if change is not None:
        change(draw)
    return draw.values


class _Draw:
    """The values drawn so far, and how a field is drawn."""

    def __init__(
        self, model_type: str, rng: Random, fields: dict[str, Any], base: dict[str, Any]
    ) -> None:
        self.model_type, self.rng, self.fields, self.base = model_type, rng, fields, base
        self.layers = rng.choice([1, 2, 3, 4, 5, 6, 8])
        self.kv_heads = rng.choice([1, 2, 3, 4])
        self.heads = self.kv_heads * rng.choice([1, 2, 3])
        self.width = self.heads * 4 * rng.randint(1, 6)
        self.experts = rng.choice([4, 6, 8])
        # A saved file has lists for the layers it has, and lists of what is derived from them.
        self.values = {
            name: value
            for name, value in base.items()
            if name in fields and not (isinstance(value, list) and value)
        }

    def alter(self, name: str, kind: str, value: Any) -> None:  # noqa: PLR0912  # one per kind
        rng = self.rng
        if name in _LAYERS:
            self.values[name] = self.layers
        elif name in _HEADS:
            self.values[name] = self.heads
        elif name in _WIDTH:
            self.values[name] = self.width
        elif name in _KV_HEADS:
            some = [self.kv_heads, self.kv_heads, self.heads, None]
            self.values[name] = rng.choice(some if value is None else some[:3])
        elif name in _POSITIONS:
            self.values[name] = rng.randint(20, 99)
        elif _UNTOUCHED.search(name):
            pass
        elif name in _WORDS:
            self.values[name] = rng.choice([value, *_WORDS[name]])
        elif "bool" in kind and isinstance(value, bool | None):
            self._flag(name, kind, value)
        elif _ACTIVATION_FIELD.search(name) and isinstance(value, str):
            if rng.random() < 0.3:
                self.values[name] = rng.choice(_ACTIVATIONS)
        elif name == "head_dim":
            if rng.random() < 0.6:
                self.values[name] = 2 * rng.randint(2, 12)
            elif "None" in kind and rng.random() < 0.3:
                self.values[name] = None
        elif "list" in kind or "tuple" in kind:
            listed = self._list(name, kind)
            if listed is not None or "None" in kind:
                self.values[name] = listed
        elif "int" in kind and rng.random() < 0.6:
            if value is None or (
                "None" in kind and rng.random() < 0.15 and self.fields[name][1] is None
            ):
                if value is not None:
                    self.values[name] = None
                elif rng.random() < 0.4:
                    self._number(name)
            else:
                self._number(name)

    def _flag(self, name: str, kind: str, value: bool | None) -> None:
        if self.rng.random() < 0.4:
            self.values[name] = not value

    def _number(self, name: str) -> None:
        value = self.number(name)
        if value is not None:
            self.values[name] = value

    def number(self, name: str) -> int | None:
        """Draw a number by what its name says that it counts."""
        rng = self.rng
        for pattern, low, high, step in _NUMBERS:
            if re.search(pattern, name):
                if step < 0:
                    return None
                return step * rng.randint(low, high)
        return rng.randint(1, 4)

    def some(self) -> list[int]:
        """Draw some of the layers."""
        return sorted(self.rng.sample(range(self.layers), self.rng.randint(0, self.layers)))

    def each(self, words: list[Any]) -> list[Any]:
        """Draw a word for each layer."""
        return [self.rng.choice(words) for _ in range(self.layers)]

    def _list(self, name: str, kind: str) -> Any:
        rng = self.rng
        if rng.random() < 0.4:
            return None
        given = _KINDS.get((name, self.model_type))
        if given:
            return self.each(given)
        draws: dict[str, Callable[[], Any]] = {
            "layer_types": lambda: self.each(self._layer_types()),
            "mlp_layer_types": lambda: self.each(["dense", "sparse"]),
            "indexer_types": lambda: ["full", *self.each(["full", "shared"])[1:]],
            "no_rope_layers": lambda: self.each([0, 1]),
            "num_attention_heads_per_layer": lambda: [
                self.values["num_key_value_heads"] * n for n in self.each([1, 2, 3])
            ],
            "cross_attention_layers": self.some,
            "mlp_only_layers": self.some,
            "moe_layers": self.some,
            "attn_layer_indices": self.some,
            "full_attn_idxs": self.some,
            "local_layer_ids": self.some,
            "moe_topk": lambda: self._one_or_each(name),
            "intermediate_size": lambda: self._one_or_each(name),
        }
        return draws[name]() if name in draws else None

    def _one_or_each(self, name: str) -> Any:
        """Draw one number, or one for each layer."""
        numbers = [self.number(name) for _ in range(self.layers)]
        return numbers if self.rng.random() < 0.5 else numbers[0]

    def _layer_types(self) -> list[str]:
        default = CONFIG_MAPPING[self.model_type]()
        kinds = set(default.layer_types)
        if kinds & {"full_attention", "sliding_attention"} and "sliding_window" in self.fields:
            kinds |= {"full_attention", "sliding_attention"}
        if "indexed_attention" in kinds and kinds <= {"indexed_attention", "full_attention"}:
            kinds = {"indexed_attention"}
        return sorted(kinds)


#: How a number is drawn: the first pattern found in its name gives the smallest and the largest
#: multiple of a step. A negative step leaves it to the type.
_NUMBERS: list[tuple[str, int, int, int]] = [
    (r"^index_topk|indexer_|topk_group|n_group", 0, 0, -1),
    (r"top_?k|per_tok|moe_k$", 1, 3, 1),
    (r"shared_experts$", 0, 2, 1),
    (r"experts$|expert_num$", 2, 4, 2),
    (r"n_groups|ngroups|o_groups|mem_blocks", 1, 2, 1),
    (r"first_k|num_dense_layers|max_window_layers|start_index", 0, 6, 1),
    (r"end_index", -1, 6, 1),
    (r"shared_layers", 0, 0, -1),
    (r"vocab", 5, 75, 4),
    (r"rotary_dim", 2, 2, 1),
    (r"interval|period|step$|pattern|every_n|group_size", 1, 4, 1),
    (r"offset", 0, 0, -1),
    (r"conv|kernel|cca_time|d_conv|L_cache", 2, 5, 1),
    (r"window|local_attention|chunk|block_size|extent", 3, 40, 1),
    (r"expand", 1, 3, 1),
    (r"size|dim|rank|width|ffn|inner|dff|state|channels|d_rel|head$|ssm|multiple_of", 1, 16, 4),
    (r"heads", 1, 4, 1),
]

_Change = Callable[[_Draw], None]


def _groups(draw: _Draw) -> None:
    """Groups of experts: not more of them picked than there are."""
    groups = draw.rng.choice([1, 2])
    draw.values |= {"n_group": groups, "topk_group": draw.rng.randint(1, groups)}


def _own_head_dim(draw: _Draw) -> None:
    """Heads that together are as wide as the model."""
    draw.values["head_dim"] = draw.width // draw.heads


def _even_heads(draw: _Draw) -> None:
    """An even number of KV heads."""
    draw.values |= {"num_key_value_heads": 2, "num_attention_heads": 4, "hidden_size": 48}


def _mamba(heads: str, size: str, groups: str, expand: str, width: str | None = None) -> _Change:
    """Heads that together are as wide as the inner layer; groups that divide them."""

    def change(draw: _Draw) -> None:
        factor, number = draw.rng.choice([1, 2, 3]), draw.rng.choice([2, 4])
        inner = factor * draw.width
        draw.values |= {expand: factor, heads: number, size: inner // number}
        draw.values[groups] = draw.rng.choice([1, 2])
        if width is not None:
            draw.values[width] = inner

    return change


def _delta(draw: _Draw) -> None:
    """As many value heads as key heads, or a multiple."""
    keys = draw.rng.choice([1, 2, 3])
    draw.values |= {
        "linear_num_key_heads": keys,
        "linear_num_value_heads": keys * draw.rng.choice([1, 2]),
    }


def _jamba(draw: _Draw) -> None:
    for name in ("attn_layer", "expert_layer"):
        period = draw.rng.randint(1, 4)
        offset = draw.rng.randint(0, period - 1)
        draw.values |= {f"{name}_period": period, f"{name}_offset": offset}


def _shared_caches(draw: _Draw) -> None:
    """Layers whose caches are read by later ones, in lists that have each kind among the first."""
    kinds = draw.values.get("layer_types")
    shared = draw.rng.randint(0, draw.layers - 1)
    own = draw.layers - shared
    if kinds is None:
        shared = 0 if draw.layers <= 5 else draw.rng.randint(0, 1)
    elif not set(kinds) <= set(kinds[:own]):
        shared = 0
    draw.values["num_kv_shared_layers"] = shared


def _gemma3n(draw: _Draw) -> None:
    _shared_caches(draw)
    draw.values["altup_active_idx"] = 0


def _gemma4(draw: _Draw) -> None:
    _shared_caches(draw)
    rng = draw.rng
    if "enable_moe_block" in draw.fields:
        some = rng.random() < 0.5
        draw.values |= {
            "enable_moe_block": some,
            "num_experts": 4 if some else None,
            "top_k_experts": rng.randint(1, 3) if some else None,
            "moe_intermediate_size": 4 * rng.randint(1, 9) if some else None,
        }
        draw.values["hidden_size_per_layer_input"] = rng.choice([0, 8, 12])
    if rng.random() < 0.4:
        draw.values["per_layer_config"] = {
            str(layer): rng.choice([{"head_dim": 4}, {"num_key_value_heads": 1}])
            for layer in draw.some()
        }


def _dbrx(draw: _Draw) -> None:
    rng = draw.rng
    draw.values["tie_word_embeddings"] = False
    draw.values["attn_config"] = {
        "kv_n_heads": draw.kv_heads, "rope_theta": 10000.0, "clip_qkv": 8.0,
    }  # fmt: skip
    draw.values["ffn_config"] = {
        "hidden_size": draw.width,
        "ffn_hidden_size": 4 * rng.randint(1, 20),
        "moe_num_experts": draw.experts,
        "moe_top_k": rng.randint(1, 3),
    }


def _dots3(draw: _Draw) -> None:
    rng = draw.rng
    draw.values |= {"n_shared_experts": rng.randint(1, 2), "num_key_value_heads": draw.heads}
    draw.values |= {"index_head_dim": 16, "qk_rope_head_dim": rng.choice([4, 8, 16])}


def _local_heads(draw: _Draw) -> None:
    """KV heads of layers with a window that divide their query heads."""
    kv_heads = draw.rng.choice([1, 2, 3])
    draw.values |= {
        "swa_num_key_value_heads": kv_heads,
        "swa_num_attention_heads": kv_heads * draw.rng.choice([1, 2, 3]),
    }


def _mimo(draw: _Draw) -> None:
    draw.values["num_key_value_heads"] = draw.kv_heads
    draw.values["num_attention_heads"] = 2 * draw.heads


def _compass(draw: _Draw) -> None:
    each = {"rope_type": "default", "rope_theta": 10000.0}
    kinds = ("full_attention", "sliding_attention")
    draw.values["rope_parameters"] = {kind: dict(each) for kind in kinds}


def _gpt_neo(draw: _Draw) -> None:
    half, rest = divmod(draw.layers, 2)
    kinds: list[Any] = [[["global", "local"], half], [["local"], rest]]
    draw.values["attention_types"] = [pair for pair in kinds if pair[1]]


def _internlm3(draw: _Draw) -> None:
    bias = draw.rng.random() < 0.5
    draw.values |= {"attention_bias": bias, "mlp_bias": bias}


def _longcat(draw: _Draw) -> None:
    draw.values.pop("qk_head_dim", None)


def _phimoe(draw: _Draw) -> None:
    """Two experts a token, which is what the router picks whatever the field says."""
    draw.values["num_experts_per_tok"] = 2


def _qwen4(draw: _Draw) -> None:
    rng = draw.rng
    _delta(draw)
    draw.values |= {
        "hc_count": rng.randint(2, 4),
        "indexer_n_heads": rng.randint(1, 4),
        "indexer_kv_heads": 1,
        "indexer_budget": 8,
        "indexer_compress_ratio": rng.choice([2, 4]),
        "output_gate_type": rng.choice([None, "silu", "sigmoid"]),
        "head_dim": 16,
        "indexer_head_dim": rng.choice([16, 20, 32]),
    }


def _recurrent_gemma(draw: _Draw) -> None:
    draw.values["lru_width"] = draw.rng.choice([None, draw.heads * 4 * draw.rng.randint(1, 5)])


def _divided_kinds(draw: _Draw) -> None:
    """Lists of layers that transformers wants to be given."""
    kinds = ["conv", "full_attention"]
    draw.values["layer_types"] = draw.values.get("layer_types") or draw.each(kinds)


def _step(draw: _Draw) -> None:
    """Heads of layers with a window that the KV heads divide."""
    number = draw.rng.choice([None, 1, 2, 3])
    kv_heads = draw.values["num_key_value_heads"]
    draw.values["num_sliding_attention_heads"] = number and number * kv_heads


def _zaya(draw: _Draw) -> None:
    draw.values |= {"sliding_window": draw.rng.randint(3, 30), "num_experts_per_tok": 1}


def _zamba2(draw: _Draw) -> None:
    factor, number = draw.rng.choice([1, 2]), draw.rng.choice([2, 4])
    draw.values |= {
        "mamba_expand": factor,
        "n_mamba_heads": number,
        "mamba_ngroups": draw.rng.choice([1, 2]),
        "layers_block_type": draw.each(["mamba", "hybrid"]),
    }


_SSD = _mamba("mamba_n_heads", "mamba_d_head", "mamba_n_groups", "mamba_expand")

#: What must agree in the fields of a type for its module to be able to run.
_CONSTRAINTS: dict[str, _Change] = {
    "bamba": _SSD,
    "bitnet": _own_head_dim,
    "cohere_compass_text": _compass,
    "dbrx": _dbrx,
    "diffllama": _even_heads,
    "dots3_note_text": _dots3,
    "falcon_h1": _mamba(
        "mamba_n_heads", "mamba_d_head", "mamba_n_groups", "mamba_expand", "mamba_d_ssm"
    ),
    "gemma3n_text": _gemma3n,
    "gemma4_text": _gemma4,
    "gemma4_unified_text": _gemma4,
    "gpt_neo": _gpt_neo,
    "granitemoehybrid": _SSD,
    "helium": _own_head_dim,
    "inkling2_text": _local_heads,
    "inkling_text": _local_heads,
    "internlm3": _internlm3,
    "jamba": _jamba,
    "lfm2_moe": _divided_kinds,
    "longcat_flash": _longcat,
    "mamba2": _mamba("num_heads", "head_dim", "n_groups", "expand"),
    "mimo_v2_flash": _mimo,
    "nemotron_h": _mamba("mamba_num_heads", "mamba_head_dim", "n_groups", "expand"),
    "olmo_hybrid": _delta,
    "phimoe": _phimoe,
    "qwen3_5_moe_text": _delta,
    "qwen3_5_text": _delta,
    "qwen3_next": _delta,
    "qwen4_exp_text": _qwen4,
    "recurrent_gemma": _recurrent_gemma,
    "step3p5": _step,
    "zamba2": _zamba2,
    "zaya": _zaya,
}

_PICKED = {"num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k"}
_EXPERTS = {"num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"}


def _pick_few(draw: _Draw) -> None:
    """Let a token be routed to no more experts than there are."""
    rng = draw.rng
    for name in _EXPERTS & draw.fields.keys():
        if draw.fields[name][1] is not None:
            draw.values[name] = draw.experts
    for name in _PICKED & draw.fields.keys():
        if not isinstance(draw.values.get(name), list):
            draw.values[name] = rng.randint(1, 3)
    if "n_group" in draw.fields:
        _groups(draw)
    # An activation with parameters has them in shared experts of no width, too.
    if draw.values.get("n_shared_experts") == 0:
        draw.values.pop("hidden_act", None)
