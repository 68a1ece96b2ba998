"""Write llmcalc/huggingface/catalogue.json: the shapes of models that people ask for by name.

    python scripts/catalogue.py

It takes the published configurations in tests/data/real_models.jsonl, leaves out the fields that
say nothing about the shape, and adds the models below: those that differ from one of these in a
few sizes, and other names of one.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final, NamedTuple

ROOT: Final = Path(__file__).parent.parent
TARGET: Final = ROOT / "llmcalc" / "huggingface" / "catalogue.json"

#: Fields of training, tokenization, generation and bookkeeping.
LEFT_OUT: Final = frozenset(
    (
        "_name_or_path", "architectures", "attention_dropout", "attn_pdrop", "auto_map",
        "aux_loss_alpha", "bos_token_id", "embd_pdrop", "eos_token_id", "ep_size",
        "hidden_dropout", "hidden_dropout_prob", "initializer_factor", "initializer_range",
        "layerdrop", "output_router_logits", "pad_token_id", "pretraining_tp", "resid_pdrop",
        "router_aux_loss_coef", "seq_aux", "sep_token_id", "transformers_version",
        "unk_token_id", "use_cache",
    )
)  # fmt: skip

#: Entries of the file that stand for the same shape under the name people use.
RENAMED: Final = {
    "google/gemma-3-4b-it (text_config)": "google/gemma-3-4b-it",
}


def _compressed(kind: str, layout: str) -> dict[str, Any]:
    """Return what llm-compressor writes for 8-bit weights with a scale for each channel."""
    shared = {"num_bits": 8, "type": kind, "symmetric": True}
    return {
        "quant_method": "compressed-tensors",
        "format": layout,
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {**shared, "strategy": "channel", "dynamic": False},
                "input_activations": {**shared, "strategy": "token", "dynamic": True},
            }
        },
        "ignore": ["lm_head"],
    }


#: What llm-compressor writes for 4-bit weights in groups of 128 with 16-bit activations.
_PACKED_INT4: Final[dict[str, Any]] = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {
                "num_bits": 4, "type": "int", "symmetric": True, "strategy": "group",
                "group_size": 128, "actorder": "weight",
            },
        }
    },
    "ignore": ["lm_head"],
}  # fmt: skip

#: What the makers of Qwen state of their own quantised files.
_FP8_BLOCKS: Final[dict[str, Any]] = {
    "quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3",
    "weight_block_size": [128, 128],
}  # fmt: skip
_AWQ: Final[dict[str, Any]] = {
    "quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm",
    "modules_to_not_convert": None,
}  # fmt: skip
_GPTQ: Final[dict[str, Any]] = {
    "quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True, "desc_act": False,
}  # fmt: skip

#: Files that say how they are quantised in ``hf_quant_config.json`` alone: the config that is kept
#: says no more than that they are, so that nobody takes them for wide ones.
ELSEWHERE: Final = (
    "nvidia/GLM-5-NVFP4",
    "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-NVFP4",
    "nvidia/NVIDIA-Nemotron-3-Ultra-550B-A55B-NVFP4",
)

#: Where a shape is read from.
_PRESETS: Final = (
    "github.com/mlc-ai/mlc-llm@79d603f085f50500e9509fa01785ffa7ecfaaa93 "
    "python/mlc_llm/model/model_preset.py"
)
_CONFIGS: Final = (
    "github.com/ai-dynamo/aiconfigurator@095f58a51c4ca8e61b66ec108d86f223f8d559ce "
    "aic-core/src/aiconfigurator_core/model_configs"
)


class Shape(NamedTuple):
    """A published shape, and its source."""

    config: dict[str, Any]
    source: str = "the published sizes"


def _nas(layers: str) -> list[dict[str, Any]]:
    """Return the blocks of a searched model, from its KV groups and feed-forward factors."""
    blocks: list[dict[str, Any]] = []
    for pair in layers.split():
        group, _, factor = pair.partition("/")
        attention = {"no_op": True} if group == "-" else {"n_heads_in_group": int(group)}
        blocks.append({"attention": attention, "ffn": {"ffn_mult": float(factor)}})
    return blocks


_NEMOTRON_SUPER: Final = (
    "8/2.625 8/5.25 8/5.25 8/5.25 8/5.25 8/5.25 -/2.625 -/2.625 8/5.25 8/5.25 8/5.25 "
    "-/3.28125 8/5.25 8/5.25 8/5.25 8/5.25 8/5.25 8/5.25 8/5.25 8/5.25 8/5.25 8/5.25 8/5.25 "
    "8/5.25 8/5.25 8/5.25 8/5.25 8/5.25 8/5.25 8/5.25 8/5.25 8/5.25 8/5.25 8/5.25 8/5.25 "
    "8/5.25 8/5.25 8/5.25 8/5.25 8/5.25 8/5.25 8/5.25 -/1.3125 -/2.625 -/2.625 -/1.3125 "
    "-/5.25 -/1.3125 -/2.625 -/1.3125 -/1.3125 -/1.3125 8/5.25 -/1.3125 -/1 -/1 -/1.3125 -/1 "
    "-/1 -/1 -/1.3125 -/1.3125 -/0.5 -/0.5 -/1 -/1 -/0.5 -/0.5 -/1 -/0.5 -/0.5 8/5.25 8/5.25 "
    "8/5.25 8/5.25 8/5.25 8/5.25 8/5.25 8/5.25 8/5.25 "
)

_EXAONE: Final = {
    "model_type": "exaone", "activation_function": "silu", "hidden_size": 4096,
    "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8,
    "num_layers": 32, "vocab_size": 102400, "tie_word_embeddings": False,
    "layer_norm_epsilon": 1e-05,
}  # fmt: skip
_INTERNLM: Final = {
    "model_type": "internlm2", "bias": False, "hidden_size": 4096, "intermediate_size": 14336,
    "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
    "vocab_size": 92544, "max_position_embeddings": 32768, "rope_theta": 1000000,
    "tie_word_embeddings": False, "rms_norm_eps": 1e-05,
}  # fmt: skip
_QWEN: Final = {
    "model_type": "qwen", "hidden_size": 4096, "intermediate_size": 22016, "kv_channels": 128,
    "num_attention_heads": 32, "num_hidden_layers": 32, "vocab_size": 151936, "no_bias": True,
    "seq_length": 8192, "max_position_embeddings": 8192, "tie_word_embeddings": False,
    "layer_norm_epsilon": 1e-06,
}  # fmt: skip
_CHATGLM: Final = {
    "model_type": "chatglm", "add_bias_linear": False, "add_qkv_bias": True, "hidden_size": 4096,
    "ffn_hidden_size": 13696, "kv_channels": 128, "multi_query_attention": True,
    "multi_query_group_num": 2, "num_attention_heads": 32, "num_layers": 28,
    "padded_vocab_size": 65024, "post_layer_norm": True, "rmsnorm": True, "seq_length": 8192,
    "tie_word_embeddings": False, "layernorm_epsilon": 1e-05,
}  # fmt: skip
_BAICHUAN: Final = {
    "model_type": "baichuan", "hidden_size": 4096, "intermediate_size": 11008,
    "max_position_embeddings": 4096, "num_attention_heads": 32, "num_hidden_layers": 32,
    "vocab_size": 125696, "tie_word_embeddings": False, "rms_norm_eps": 1e-06,
}  # fmt: skip
_LING: Final = {
    "model_type": "bailing_moe", "first_k_dense_replace": 1, "head_dim": 128, "hidden_size": 2048,
    "intermediate_size": 5120, "moe_intermediate_size": 512,
    "moe_router_enable_expert_bias": True, "moe_shared_expert_intermediate_size": 512,
    "num_attention_heads": 16, "num_experts": 256, "num_experts_per_tok": 8,
    "num_hidden_layers": 20, "num_key_value_heads": 4, "num_shared_experts": 1,
    "partial_rotary_factor": 0.5, "rope_theta": 600000, "tie_word_embeddings": False,
    "use_bias": False, "use_qk_norm": True, "use_qkv_bias": False, "vocab_size": 157184,
    "max_position_embeddings": 32768,
}  # fmt: skip
_MINIMAX: Final = {
    "model_type": "minimax_m1", "attn_type_list": [0, 0, 0, 0, 0, 0, 0, 1] * 10, "head_dim": 128,
    "hidden_act": "silu", "hidden_size": 6144, "intermediate_size": 9216,
    "max_position_embeddings": 10240000, "num_attention_heads": 64, "num_experts_per_tok": 2,
    "num_hidden_layers": 80, "num_key_value_heads": 8, "num_local_experts": 32,
    "rope_theta": 10000000, "rotary_dim": 64, "shared_intermediate_size": 0,
    "sliding_window": None, "tie_word_embeddings": False, "vocab_size": 200064,
}  # fmt: skip
_QWEN2_5_VL: Final = {
    "model_type": "qwen2_5_vl", "hidden_size": 3584, "intermediate_size": 18944,
    "max_position_embeddings": 128000, "max_window_layers": 28, "num_attention_heads": 28,
    "num_hidden_layers": 28, "num_key_value_heads": 4, "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0, "sliding_window": 32768, "use_sliding_window": False,
    "tie_word_embeddings": False, "vocab_size": 152064,
}  # fmt: skip
_QWEN3_VL: Final = {
    "head_dim": 128, "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 12288,
    "max_position_embeddings": 262144, "model_type": "qwen3_vl_text", "num_attention_heads": 32,
    "num_hidden_layers": 36, "num_key_value_heads": 8, "rope_theta": 5000000,
    "vocab_size": 151936,
}  # fmt: skip
_QWEN3_VL_MOE: Final = {
    "decoder_sparse_step": 1, "head_dim": 128, "hidden_act": "silu", "hidden_size": 2048,
    "intermediate_size": 6144, "max_position_embeddings": 262144, "mlp_only_layers": [],
    "model_type": "qwen3_vl_moe_text", "moe_intermediate_size": 768, "num_attention_heads": 32,
    "num_experts": 128, "num_experts_per_tok": 8, "num_hidden_layers": 48,
    "num_key_value_heads": 4, "rope_theta": 5000000, "vocab_size": 151936,
}  # fmt: skip


def _qwen3_vl(text: dict[str, Any], *, tied: bool = False) -> dict[str, Any]:
    wrapper = text["model_type"].removesuffix("_text")
    return {"model_type": wrapper, "tie_word_embeddings": tied, "text_config": text}


#: Models that no row of the file is near to: the published shape.
SHAPES: Final[dict[str, Shape]] = {
    "ibm-granite/granite-3.1-8b-instruct": Shape({
        "model_type": "granite", "hidden_size": 4096, "intermediate_size": 12800,
        "num_attention_heads": 32, "num_hidden_layers": 40, "num_key_value_heads": 8,
        "vocab_size": 49155, "max_position_embeddings": 131072, "rope_theta": 5000000.0,
        "tie_word_embeddings": True,
    }),
    "ibm-granite/granite-3.1-3b-a800m-instruct": Shape({
        "model_type": "granitemoe", "hidden_size": 1536, "intermediate_size": 512,
        "num_attention_heads": 24, "num_hidden_layers": 32, "num_key_value_heads": 8,
        "num_local_experts": 40, "num_experts_per_tok": 8, "vocab_size": 49155,
        "max_position_embeddings": 131072, "tie_word_embeddings": True,
    }),
    "microsoft/phi-2": Shape({
        "model_type": "phi", "hidden_size": 2560, "intermediate_size": 10240,
        "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 32,
        "vocab_size": 51200, "max_position_embeddings": 2048, "partial_rotary_factor": 0.4,
    }),
    "microsoft/Phi-3.5-MoE-instruct": Shape({
        "model_type": "phimoe", "hidden_size": 4096, "intermediate_size": 6400,
        "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
        "num_local_experts": 16, "num_experts_per_tok": 2, "vocab_size": 32064,
        "max_position_embeddings": 131072, "attention_bias": True, "lm_head_bias": True,
    }),
    "allenai/OLMoE-1B-7B-0924": Shape({
        "model_type": "olmoe", "hidden_size": 2048, "intermediate_size": 1024,
        "num_attention_heads": 16, "num_hidden_layers": 16, "num_key_value_heads": 16,
        "num_experts": 64, "num_experts_per_tok": 8, "vocab_size": 50304,
        "max_position_embeddings": 4096,
    }),
    "CohereForAI/c4ai-command-r-v01": Shape({
        "model_type": "cohere", "hidden_size": 8192, "intermediate_size": 22528,
        "num_attention_heads": 64, "num_hidden_layers": 40, "num_key_value_heads": 64,
        "vocab_size": 256000, "max_position_embeddings": 131072,
    }),
    "internlm/internlm2_5-7b": Shape(
        _INTERNLM, source=f'{_PRESETS} ["internlm2_5_7b"]'
    ),
    "internlm/internlm2_5-20b": Shape(
        {**_INTERNLM, "hidden_size": 6144, "intermediate_size": 16384, "num_hidden_layers": 48,
         "num_attention_heads": 48},
    ),
    "internlm/internlm2_5-1_8b": Shape(
        {**_INTERNLM, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 24,
         "num_attention_heads": 16},
    ),
    "baichuan-inc/Baichuan2-7B-Base": Shape(
        _BAICHUAN, source=f'{_PRESETS} ["baichuan"]'
    ),
    "baichuan-inc/Baichuan-7B": Shape({**_BAICHUAN, "vocab_size": 64000}),
    "Qwen/Qwen-7B": Shape(_QWEN),
    "Qwen/Qwen-1_8B": Shape(
        {**_QWEN, "hidden_size": 2048, "intermediate_size": 11008, "num_attention_heads": 16,
         "num_hidden_layers": 24},
        source=f'{_PRESETS} ["qwen"]',
    ),
    "THUDM/chatglm3-6b": Shape(_CHATGLM, source=f'{_PRESETS} ["chatglm"]'),
    "THUDM/glm-4-9b": Shape(
        {**_CHATGLM, "num_layers": 40, "padded_vocab_size": 151552},
    ),
    "THUDM/chatglm-6b": Shape(
        {"model_type": "chatglm", "hidden_size": 4096, "inner_hidden_size": 16384,
         "layernorm_epsilon": 1e-05, "max_sequence_length": 2048, "num_attention_heads": 32,
         "num_layers": 28, "position_encoding_2d": True, "vocab_size": 130528},
    ),
    "openbmb/MiniCPM-2B-sft-bf16": Shape(
        {"model_type": "minicpm", "hidden_size": 2304, "intermediate_size": 5760,
         "max_position_embeddings": 4096, "num_attention_heads": 36, "num_hidden_layers": 40,
         "num_key_value_heads": 36, "vocab_size": 122753, "tie_word_embeddings": True},
        source=f'{_PRESETS} ["minicpm_2b"]',
    ),
    "deepseek-ai/deepseek-moe-16b-base": Shape(
        {"model_type": "deepseek", "first_k_dense_replace": 1, "hidden_size": 2048,
         "intermediate_size": 10944, "max_position_embeddings": 4096,
         "moe_intermediate_size": 1408, "moe_layer_freq": 1, "n_routed_experts": 64,
         "n_shared_experts": 2, "num_attention_heads": 16, "num_experts_per_tok": 6,
         "num_hidden_layers": 28, "num_key_value_heads": 16, "vocab_size": 102400,
         "tie_word_embeddings": False},
        source=f'{_PRESETS} ["deepseek"]',
    ),
    "XiaomiMiMo/MiMo-7B-Base": Shape(
        {"model_type": "mimo", "attention_bias": True, "head_dim": 128, "hidden_size": 4096,
         "intermediate_size": 11008, "max_position_embeddings": 32768, "max_window_layers": 32,
         "num_attention_heads": 32, "num_hidden_layers": 36, "num_key_value_heads": 8,
         "num_nextn_predict_layers": 1, "rope_theta": 640000, "sliding_window": 32768,
         "tie_word_embeddings": False, "use_sliding_window": False, "vocab_size": 151680},
        f"{_CONFIGS}/XiaomiMiMo--MiMo-7B-Base_config.json",
    ),
    "microsoft/Phi-3-small-8k-instruct": Shape(
        {"model_type": "phi3small", "ff_intermediate_size": 14336, "hidden_act": "gegelu",
         "hidden_size": 4096, "max_position_embeddings": 8192, "num_attention_heads": 32,
         "num_hidden_layers": 32, "num_key_value_heads": 8, "vocab_size": 100352},
    ),
    "LGAI-EXAONE/EXAONE-3.0-7.8B-Instruct": Shape(
        {**_EXAONE, "max_position_embeddings": 4096, "rope_theta": 500000.0}
    ),
    "LGAI-EXAONE/EXAONE-3.5-7.8B-Instruct": Shape(
        {**_EXAONE, "max_position_embeddings": 32768, "rope_theta": 1000000.0}
    ),
    "LGAI-EXAONE/EXAONE-3.5-2.4B-Instruct": Shape(
        {**_EXAONE, "hidden_size": 2560, "intermediate_size": 7168, "num_layers": 30,
         "head_dim": 80, "tie_word_embeddings": True, "max_position_embeddings": 32768,
         "rope_theta": 1000000.0},
    ),
    "nvidia/Llama-3_3-Nemotron-Super-49B-v1": Shape(
        {"model_type": "nemotron-nas", "hidden_size": 8192, "num_attention_heads": 64,
         "num_hidden_layers": 80, "vocab_size": 128256, "max_position_embeddings": 131072,
         "rope_theta": 500000.0, "tie_word_embeddings": False,
         "block_configs": _nas(_NEMOTRON_SUPER)},
        source=f"{_CONFIGS}/nvidia--Llama-3_3-Nemotron-Super-49B-v1_config.json",
    ),
    "MiniMaxAI/MiniMax-M1-80k": Shape(_MINIMAX),
    "MiniMaxAI/MiniMax-Text-01": Shape({**_MINIMAX, "model_type": "minimax_text_01"}),
    "inclusionAI/Ling-mini-2.0": Shape(_LING),
    "inclusionAI/Ling-flash-2.0": Shape(
        {**_LING, "hidden_size": 4096, "intermediate_size": 9216, "moe_intermediate_size": 1024,
         "moe_shared_expert_intermediate_size": 1024, "num_attention_heads": 32,
         "num_hidden_layers": 32},
    ),
    "inclusionAI/Ling-1T": Shape(
        {**_LING, "first_k_dense_replace": 4, "hidden_size": 8192, "intermediate_size": 18432,
         "moe_intermediate_size": 2048, "moe_shared_expert_intermediate_size": 2048,
         "num_attention_heads": 64, "num_hidden_layers": 80, "num_key_value_heads": 8},
    ),
    "inclusionAI/Ling-lite-1.5": Shape(
        {"model_type": "bailing_moe", "first_k_dense_replace": 0, "hidden_size": 2048,
         "intermediate_size": 1408, "max_position_embeddings": 32768,
         "moe_intermediate_size": 1408, "num_attention_heads": 16, "num_experts": 64,
         "num_experts_per_tok": 6, "num_hidden_layers": 28, "num_key_value_heads": 4,
         "num_shared_experts": 2, "rope_theta": 600000, "tie_word_embeddings": False,
         "use_bias": False, "use_qkv_bias": False, "vocab_size": 126464},
    ),
    # The language models of models that also see.
    "Qwen/Qwen2.5-VL-7B-Instruct": Shape(_QWEN2_5_VL),
    "Qwen/Qwen2.5-VL-3B-Instruct": Shape(
        {**_QWEN2_5_VL, "hidden_size": 2048, "intermediate_size": 11008,
         "num_attention_heads": 16, "num_hidden_layers": 36, "num_key_value_heads": 2,
         "max_window_layers": 70, "tie_word_embeddings": True, "vocab_size": 151936},
    ),
    "Qwen/Qwen2.5-VL-72B-Instruct": Shape(
        {**_QWEN2_5_VL, "hidden_size": 8192, "intermediate_size": 29568,
         "num_attention_heads": 64, "num_hidden_layers": 80, "num_key_value_heads": 8,
         "max_window_layers": 80},
    ),
    "Qwen/Qwen3-VL-2B-Instruct": Shape(
        _qwen3_vl(
            {**_QWEN3_VL, "hidden_size": 2048, "intermediate_size": 6144,
             "num_attention_heads": 16, "num_hidden_layers": 28},
            tied=True,
        ),
        source=f"{_CONFIGS}/Qwen--Qwen3-VL-2B-Instruct_config.json",
    ),
    "Qwen/Qwen3-VL-4B-Instruct": Shape(
        _qwen3_vl({**_QWEN3_VL, "hidden_size": 2560, "intermediate_size": 9728}, tied=True),
        source=f"{_CONFIGS}/Qwen--Qwen3-VL-4B-Instruct_config.json",
    ),
    "Qwen/Qwen3-VL-8B-Instruct": Shape(
        _qwen3_vl(_QWEN3_VL), source=f"{_CONFIGS}/Qwen--Qwen3-VL-8B-Instruct_config.json"
    ),
    "Qwen/Qwen3-VL-32B-Instruct": Shape(
        _qwen3_vl({**_QWEN3_VL, "hidden_size": 5120, "intermediate_size": 25600,
                   "num_attention_heads": 64, "num_hidden_layers": 64}),
        source=f"{_CONFIGS}/Qwen--Qwen3-VL-32B-Instruct_config.json",
    ),
    "Qwen/Qwen3-VL-30B-A3B-Instruct": Shape(
        _qwen3_vl(_QWEN3_VL_MOE),
        source=f"{_CONFIGS}/Qwen--Qwen3-VL-30B-A3B-Instruct_config.json",
    ),
    "Qwen/Qwen3-VL-235B-A22B-Instruct": Shape(
        _qwen3_vl({**_QWEN3_VL_MOE, "hidden_size": 4096, "intermediate_size": 12288,
                   "moe_intermediate_size": 1536, "num_attention_heads": 64,
                   "num_hidden_layers": 94}),
        source=f"{_CONFIGS}/Qwen--Qwen3-VL-235B-A22B-Instruct_config.json",
    ),
}  # fmt: skip

#: Models that differ from another one in these fields.
VARIANTS: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "Qwen/Qwen3-30B-A3B": ("Qwen/Qwen3-30B-A3B-FP8", {"quantization_config": None}),
    "Qwen/Qwen3-235B-A22B": (
        "Qwen/Qwen3-235B-A22B-FP8", {"quantization_config": None},
    ),
    "meta-llama/Llama-2-7b-hf": (
        "huggyllama/llama-13b",
        {"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32,
         "num_hidden_layers": 32, "num_key_value_heads": 32, "max_position_embeddings": 4096},
    ),
    "meta-llama/Llama-2-13b-hf": (
        "huggyllama/llama-13b", {"max_position_embeddings": 4096},
    ),
    "meta-llama/Llama-2-70b-hf": (
        "huggyllama/llama-65b",
        {"intermediate_size": 28672, "num_key_value_heads": 8, "max_position_embeddings": 4096},
    ),
    "meta-llama/Llama-3.2-3B": (
        "meta-llama/Llama-3.2-1B",
        {"hidden_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 24,
         "head_dim": 128},
    ),
    "meta-llama/Llama-3.3-70B-Instruct": ("meta-llama/Meta-Llama-3.1-70B", {}),
    "Qwen/Qwen2.5-0.5B": (
        "Qwen/Qwen2.5-7B",
        {"hidden_size": 896, "intermediate_size": 4864, "num_attention_heads": 14,
         "num_hidden_layers": 24, "num_key_value_heads": 2, "vocab_size": 151936,
         "tie_word_embeddings": True, "max_position_embeddings": 32768},
    ),
    "Qwen/Qwen2.5-1.5B": (
        "Qwen/Qwen2.5-7B",
        {"hidden_size": 1536, "intermediate_size": 8960, "num_attention_heads": 12,
         "num_hidden_layers": 28, "num_key_value_heads": 2, "vocab_size": 151936,
         "tie_word_embeddings": True},
    ),
    "Qwen/Qwen2.5-3B": (
        "Qwen/Qwen2.5-7B",
        {"hidden_size": 2048, "intermediate_size": 11008, "num_attention_heads": 16,
         "num_hidden_layers": 36, "num_key_value_heads": 2, "vocab_size": 151936,
         "tie_word_embeddings": True, "max_position_embeddings": 32768},
    ),
    "Qwen/Qwen2.5-14B": (
        "Qwen/Qwen2.5-7B",
        {"hidden_size": 5120, "intermediate_size": 13824, "num_attention_heads": 40,
         "num_hidden_layers": 48, "num_key_value_heads": 8},
    ),
    "Qwen/Qwen2.5-32B": (
        "Qwen/Qwen2.5-7B",
        {"hidden_size": 5120, "intermediate_size": 27648, "num_attention_heads": 40,
         "num_hidden_layers": 64, "num_key_value_heads": 8},
    ),
    "Qwen/QwQ-32B": (
        "Qwen/Qwen2.5-7B",
        {"hidden_size": 5120, "intermediate_size": 27648, "num_attention_heads": 40,
         "num_hidden_layers": 64, "num_key_value_heads": 8, "max_position_embeddings": 40960},
    ),
    "Qwen/Qwen3-8B": (
        "Qwen/Qwen3-4B",
        {"hidden_size": 4096, "intermediate_size": 12288, "tie_word_embeddings": False},
    ),
    "Qwen/Qwen3-14B": (
        "Qwen/Qwen3-4B",
        {"hidden_size": 5120, "intermediate_size": 17408, "num_attention_heads": 40,
         "num_hidden_layers": 40, "tie_word_embeddings": False},
    ),
    "Qwen/Qwen3-32B": (
        "Qwen/Qwen3-4B",
        {"hidden_size": 5120, "intermediate_size": 25600, "num_attention_heads": 64,
         "num_hidden_layers": 64, "tie_word_embeddings": False},
    ),
    "google/gemma-2-2b": (
        "google/gemma-2-9b",
        {"hidden_size": 2304, "intermediate_size": 9216, "num_attention_heads": 8,
         "num_hidden_layers": 26, "num_key_value_heads": 4},
    ),
    "google/gemma-2-27b": (
        "google/gemma-2-9b",
        {"hidden_size": 4608, "intermediate_size": 36864, "num_attention_heads": 32,
         "num_hidden_layers": 46, "num_key_value_heads": 16, "head_dim": 128},
    ),
    "openai/gpt-oss-20b": (
        "openai/gpt-oss-120b",
        {"num_hidden_layers": 24, "num_local_experts": 32,
         "layer_types": ["sliding_attention", "full_attention"] * 12},
    ),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-14B": (
        "Qwen/Qwen2.5-7B",
        {"hidden_size": 5120, "intermediate_size": 13824, "num_attention_heads": 40,
         "num_hidden_layers": 48, "num_key_value_heads": 8, "max_position_embeddings": 131072},
    ),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-32B": (
        "Qwen/Qwen2.5-7B",
        {"hidden_size": 5120, "intermediate_size": 27648, "num_attention_heads": 40,
         "num_hidden_layers": 64, "num_key_value_heads": 8, "max_position_embeddings": 131072},
    ),
    "deepseek-ai/DeepSeek-V2-Lite-Chat": (
        "deepseek-ai/DeepSeek-V2-Lite", {"max_position_embeddings": 163840},
    ),
    "deepseek-ai/deepseek-coder-6.7b-instruct": (
        "deepseek-ai/deepseek-coder-33b-base",
        {"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32,
         "num_hidden_layers": 32, "num_key_value_heads": 32, "max_position_embeddings": 16384},
    ),
    "facebook/opt-6.7b": (
        "facebook/opt-1.3b",
        {"hidden_size": 4096, "word_embed_proj_dim": 4096, "ffn_dim": 16384,
         "num_hidden_layers": 32},
    ),
    "google/gemma-3-12b-it": (
        "google/gemma-3-4b-it",
        {"hidden_size": 3840, "intermediate_size": 15360, "num_attention_heads": 16,
         "num_hidden_layers": 48, "num_key_value_heads": 8},
    ),
    "ibm-granite/granite-3.1-2b-instruct": ("ibm-granite/granite-3.1-8b-instruct",
        {"hidden_size": 2048, "intermediate_size": 8192},
    ),
    # The language models of two that also read images.
    "ibm-granite/granite-vision-3.3-2b": (
        "ibm-granite/granite-3.1-2b-instruct", {"vocab_size": 49156},
    ),
    "mistralai/Mistral-Small-3.2-24B-Instruct-2506": (
        "mistralai/Mistral-Small-24B-Base-2501", {"max_position_embeddings": 131072},
    ),
    "moonshotai/Kimi-Dev-72B": (
        "Qwen/Qwen2.5-72B", {"max_position_embeddings": 131072},
    ),
    "nvidia/Llama-3.3-70B-Instruct-FP8": (
        "meta-llama/Meta-Llama-3.1-70B",
        {"quantization_config": {"quant_method": "modelopt", "quant_algo": "FP8",
                                 "kv_cache_quant_algo": "FP8", "exclude_modules": ["lm_head"]}},
    ),
    "Qwen/Qwen1.5-7B-Chat": (
        "Qwen/Qwen1.5-1.8B-Chat",
        {"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32,
         "num_hidden_layers": 32, "num_key_value_heads": 32, "tie_word_embeddings": False,
         "max_position_embeddings": 32768},
    ),
    "Qwen/Qwen3-Coder-30B-A3B-Instruct-FP8": (
        "Qwen/Qwen3-30B-A3B-FP8", {"max_position_embeddings": 262144},
    ),
    "RedHatAI/Llama-3.3-70B-Instruct-FP8-dynamic": (
        "meta-llama/Meta-Llama-3.1-70B",
        {"quantization_config": _compressed("float", "float-quantized")},
    ),
    "RedHatAI/Meta-Llama-3.1-8B-Instruct-quantized.w8a8": (
        "meta-llama/Llama-3.1-8B",
        {"quantization_config": _compressed("int", "int-quantized")},
    ),
    "RedHatAI/Qwen2.5-7B-Instruct-FP8-dynamic": (
        "Qwen/Qwen2.5-7B",
        {"quantization_config": _compressed("float", "float-quantized")},
    ),
    "RedHatAI/Qwen2.5-7B-Instruct-quantized.w8a8": (
        "Qwen/Qwen2.5-7B",
        {"quantization_config": _compressed("int", "int-quantized")},
    ),
    "mistralai/Mistral-7B-Instruct-v0.2": (
        "mistralai/Mistral-7B-v0.3", {"vocab_size": 32000},
    ),
    "mistralai/Codestral-22B-v0.1": (
        "mistralai/Mistral-7B-v0.3",
        {"hidden_size": 6144, "intermediate_size": 16384, "num_attention_heads": 48,
         "num_hidden_layers": 56},
    ),
    "mistralai/Mistral-Large-Instruct-2407": (
        "mistralai/Mistral-7B-v0.3",
        {"hidden_size": 12288, "intermediate_size": 28672, "num_attention_heads": 96,
         "num_hidden_layers": 88, "max_position_embeddings": 131072},
    ),
    "google/gemma-3-27b-it": (
        "google/gemma-3-4b-it",
        {"hidden_size": 5376, "intermediate_size": 21504, "num_attention_heads": 32,
         "num_hidden_layers": 62, "num_key_value_heads": 16, "head_dim": 128},
    ),
    "ibm-granite/granite-3.1-1b-a400m-instruct": (
        "ibm-granite/granite-3.1-3b-a800m-instruct",
        {"hidden_size": 1024, "num_attention_heads": 16, "num_hidden_layers": 24,
         "num_local_experts": 32},
    ),
    "microsoft/Phi-3-medium-4k-instruct": (
        "microsoft/Phi-3-mini-4k-instruct",
        {"hidden_size": 5120, "intermediate_size": 17920, "num_attention_heads": 40,
         "num_hidden_layers": 40, "num_key_value_heads": 10},
    ),
    "microsoft/Phi-3.5-mini-instruct": (
        "microsoft/Phi-3-mini-4k-instruct",
        {"max_position_embeddings": 131072, "sliding_window": 262144},
    ),
    "01-ai/Yi-1.5-9B-Chat": (
        "01-ai/Yi-34B",
        {"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32,
         "num_hidden_layers": 48, "num_key_value_heads": 4},
    ),
    "codellama/CodeLlama-13b-hf": (
        "codellama/CodeLlama-7b-hf",
        {"hidden_size": 5120, "intermediate_size": 13824, "num_attention_heads": 40,
         "num_hidden_layers": 40, "num_key_value_heads": 40},
    ),
    "codellama/CodeLlama-34b-Instruct-hf": (
        "codellama/CodeLlama-7b-hf",
        {"hidden_size": 8192, "intermediate_size": 22016, "num_attention_heads": 64,
         "num_hidden_layers": 48, "num_key_value_heads": 8, "vocab_size": 32000},
    ),
    "facebook/opt-13b": (
        "facebook/opt-6.7b",
        {"hidden_size": 5120, "word_embed_proj_dim": 5120, "ffn_dim": 20480,
         "num_attention_heads": 40, "num_hidden_layers": 40},
    ),
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": (
        "01-ai/Yi-34B",
        {"hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 32,
         "num_hidden_layers": 24, "num_key_value_heads": 32, "vocab_size": 49152,
         "max_position_embeddings": 8192, "tie_word_embeddings": True},
    ),
    "tiiuae/Falcon3-7B-Instruct": (
        "01-ai/Yi-34B",
        {"hidden_size": 3072, "intermediate_size": 23040, "num_attention_heads": 12,
         "num_hidden_layers": 28, "num_key_value_heads": 4, "head_dim": 256,
         "vocab_size": 131072, "max_position_embeddings": 32768},
    ),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": (
        "Qwen/Qwen2.5-1.5B", {"tie_word_embeddings": False},
    ),
    "deepseek-ai/DeepSeek-V3.2-Exp": (
        "deepseek-ai/DeepSeek-V3",
        {"model_type": "deepseek_v32", "index_n_heads": 64, "index_head_dim": 128,
         "index_topk": 2048},
    ),
    "zai-org/GLM-4.6": ("zai-org/GLM-4.5", {"max_position_embeddings": 202752}),
    # Attention and the first and last layer stay wide.
    "meta-llama/Llama-3.1-405B-Instruct-FP8": (
        "meta-llama/Meta-Llama-3.1-405B",
        {"quantization_config": {
            "quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0,
            "modules_to_not_convert": [
                "lm_head", "model.layers.0", "model.layers.125", "self_attn"],
        }},
    ),
    "Qwen/Qwen2.5-7B-Instruct-AWQ": ("Qwen/Qwen2.5-7B", {"quantization_config": _AWQ}),
    "Qwen/Qwen2.5-7B-Instruct-GPTQ-Int4": ("Qwen/Qwen2.5-7B", {"quantization_config": _GPTQ}),
    "Qwen/Qwen2.5-14B-Instruct-AWQ": ("Qwen/Qwen2.5-14B", {"quantization_config": _AWQ}),
    "Qwen/Qwen2.5-32B-Instruct-AWQ": ("Qwen/Qwen2.5-32B", {"quantization_config": _AWQ}),
    "Qwen/Qwen3-4B-Instruct-2507": ("Qwen/Qwen3-4B", {"max_position_embeddings": 262144}),
    "Qwen/Qwen3-8B-FP8": ("Qwen/Qwen3-8B", {"quantization_config": _FP8_BLOCKS}),
    "Qwen/Qwen3-14B-FP8": ("Qwen/Qwen3-14B", {"quantization_config": _FP8_BLOCKS}),
    "Qwen/Qwen3-32B-FP8": ("Qwen/Qwen3-32B", {"quantization_config": _FP8_BLOCKS}),
    "Qwen/Qwen3-8B-AWQ": ("Qwen/Qwen3-8B", {"quantization_config": _AWQ}),
    "Qwen/Qwen3-14B-AWQ": ("Qwen/Qwen3-14B", {"quantization_config": _AWQ}),
    "Qwen/Qwen3-32B-AWQ": ("Qwen/Qwen3-32B", {"quantization_config": _AWQ}),
    "Qwen/Qwen3-30B-A3B-GPTQ-Int4": ("Qwen/Qwen3-30B-A3B", {"quantization_config": _GPTQ}),
    "Qwen/Qwen3-30B-A3B-Instruct-2507": (
        "Qwen/Qwen3-30B-A3B", {"max_position_embeddings": 262144},
    ),
    "Qwen/Qwen3-30B-A3B-Instruct-2507-FP8": (
        "Qwen/Qwen3-30B-A3B-FP8", {"max_position_embeddings": 262144},
    ),
    "Qwen/Qwen3-235B-A22B-Instruct-2507": (
        "Qwen/Qwen3-235B-A22B", {"max_position_embeddings": 262144},
    ),
    "Qwen/Qwen3-235B-A22B-Instruct-2507-FP8": (
        "Qwen/Qwen3-235B-A22B-FP8", {"max_position_embeddings": 262144},
    ),
    "RedHatAI/Meta-Llama-3.1-8B-Instruct-FP8-dynamic": (
        "meta-llama/Llama-3.1-8B",
        {"quantization_config": _compressed("float", "float-quantized")},
    ),
    "RedHatAI/Meta-Llama-3.1-8B-Instruct-quantized.w4a16": (
        "meta-llama/Llama-3.1-8B", {"quantization_config": _PACKED_INT4},
    ),
    "RedHatAI/Llama-3.3-70B-Instruct-quantized.w8a8": (
        "meta-llama/Meta-Llama-3.1-70B",
        {"quantization_config": _compressed("int", "int-quantized")},
    ),
    "RedHatAI/Llama-3.3-70B-Instruct-quantized.w4a16": (
        "meta-llama/Meta-Llama-3.1-70B", {"quantization_config": _PACKED_INT4},
    ),
    "RedHatAI/Qwen2.5-7B-Instruct-quantized.w4a16": (
        "Qwen/Qwen2.5-7B", {"quantization_config": _PACKED_INT4},
    ),
    "RedHatAI/Qwen3-8B-FP8-dynamic": (
        "Qwen/Qwen3-8B", {"quantization_config": _compressed("float", "float-quantized")},
    ),
    "RedHatAI/Qwen3-32B-FP8-dynamic": (
        "Qwen/Qwen3-32B", {"quantization_config": _compressed("float", "float-quantized")},
    ),
    "RedHatAI/phi-4-FP8-dynamic": (
        "microsoft/phi-4", {"quantization_config": _compressed("float", "float-quantized")},
    ),
    "RedHatAI/phi-4-quantized.w8a8": (
        "microsoft/phi-4", {"quantization_config": _compressed("int", "int-quantized")},
    ),
    "hugging-quants/Meta-Llama-3.1-8B-Instruct-AWQ-INT4": (
        "meta-llama/Llama-3.1-8B", {"quantization_config": _AWQ},
    ),
    "hugging-quants/Meta-Llama-3.1-70B-Instruct-AWQ-INT4": (
        "meta-llama/Meta-Llama-3.1-70B", {"quantization_config": _AWQ},
    ),
    "TheBloke/Mistral-7B-Instruct-v0.2-AWQ": (
        "mistralai/Mistral-7B-Instruct-v0.2", {"quantization_config": _AWQ},
    ),
    "TheBloke/Llama-2-7B-Chat-AWQ": (
        "meta-llama/Llama-2-7b-hf", {"quantization_config": _AWQ},
    ),
    "openai-community/gpt2-medium": (
        "openai-community/gpt2-large", {"n_embd": 1024, "n_head": 16, "n_layer": 24},
    ),
}  # fmt: skip

#: What a published total counts.
_BUFFERS: Final = "parameters and buffers"
_MODULES: Final = "parameters and modules that predict further tokens"
_ALL: Final = "parameters, buffers and modules that predict further tokens"
_COPIES: Final = f"{_ALL}, with copies of the embedding and the head"
_SCALES: Final = "parameters and scales of blocks"

#: Files in which totals are printed.
_PUBLIC: Final = "a public file on GitHub: "
_CALFLOPS: Final = (
    "github.com/MrYxJ/calculate-flops.pytorch@086d419f3b7b6913b79e288dc8b8c92a03279341 README.md, "
    "table of models"
)
_KERAS: Final = "github.com/keras-team/keras-hub"
_PRINTED: Final = f"{_PUBLIC}what chatllm.cpp prints for the model"
_API: Final = f"{_PUBLIC}KNOWN_MODELS, 'HF Hub API 2026-09-25: ... safetensors.total'"
_KVFIT: Final = f"{_PUBLIC}kvfit build_registry.py, 'exact params from HF safetensors'"
_MIXTURES: Final = f"{_PUBLIC}table of MoE base models, total_params from HF"
_TOGETHER: Final = f"{_PUBLIC}together model_param_count"
_METADATA: Final = f"{_PUBLIC}get_model_sizes, from get_safetensors_metadata of huggingface_hub"
_CARD: Final = f"{_PUBLIC}model card with 'Num parameters ... (safetensors metadata)'"
_REGISTRY: Final = (
    f"{_PUBLIC}model registry, total_parameters with 'total_parameters_source: safetensors'"
)
_LLAMA_CPP: Final = f"{_PUBLIC}n_params of llama.cpp"
_CALCULATOR: Final = f"{_PUBLIC}paramCount in a calculator's list of models"
_ROTARY: Final = "; the Hub's total also counts the rotary frequencies in the files: "


class Total(NamedTuple):
    """A total that was published, the file that prints it, and what it counts."""

    total: int
    source: str
    counts: str = "parameters"


#: The totals of models that are no row of the file. Each was read in the file that is described; a
#: model of which no file was found that prints one has none.
TOTALS: Final[dict[str, Total]] = {
    "01-ai/Yi-1.5-9B-Chat": Total(
        8829407232, f"{_REGISTRY} (01-ai/Yi-1.5-9B-Chat-16K: same shape)"
    ),
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": Total(1711376384, _API),
    "LGAI-EXAONE/EXAONE-3.0-7.8B-Instruct": Total(
        7818448896,
        f"{_PUBLIC}report on EXAONE-3.5-7.8B-Instruct in MLX, model parameters (same shape)",
    ),
    "LGAI-EXAONE/EXAONE-3.5-7.8B-Instruct": Total(
        7818448896, f"{_PUBLIC}report on EXAONE-3.5-7.8B-Instruct in MLX, model parameters"
    ),
    "MiniMaxAI/MiniMax-M1-80k": Total(456089655296, _MIXTURES),
    "MiniMaxAI/MiniMax-Text-01": Total(
        456089655296, f"{_MIXTURES} (MiniMaxAI/MiniMax-M1-80k: same shape)"
    ),
    "Qwen/QwQ-32B": Total(32763876352, f"{_METADATA} (Qwen/Qwen2.5-32B-Instruct: same shape)"),
    "Qwen/Qwen-1_8B": Total(1836828672, f"{_CARD} (Qwen/Qwen1.5-1.8B: same shape)"),
    "Qwen/Qwen-7B": Total(7721324544, _CALFLOPS),
    "Qwen/Qwen1.5-7B-Chat": Total(7721324544, f"{_CALFLOPS} (Qwen-7B: same shape)"),
    "Qwen/Qwen2.5-0.5B": Total(494032768, f"{_API} (Qwen/Qwen2.5-0.5B-Instruct: same shape)"),
    "Qwen/Qwen2.5-1.5B": Total(1543714304, f"{_API} (Qwen/Qwen2.5-1.5B-Instruct: same shape)"),
    "Qwen/Qwen2.5-3B": Total(3085938688, f"{_API} (Qwen/Qwen2.5-3B-Instruct: same shape)"),
    "Qwen/Qwen2.5-14B": Total(
        14770033664, f"{_LLAMA_CPP} for Qwen2.5-Coder-14B-Instruct (same shape)"
    ),
    "Qwen/Qwen2.5-32B": Total(32763876352, f"{_METADATA} (Qwen/Qwen2.5-32B-Instruct: same shape)"),
    "Qwen/Qwen3-8B": Total(8190735360, _API),
    "Qwen/Qwen3-14B": Total(
        14768307200,
        f"{_KERAS}@1df65dab96fb417c6df011c25802017109e96c66 "
        "keras_hub/src/models/qwen3/qwen3_presets.py",
    ),
    "Qwen/Qwen3-32B": Total(32762123264, _API),
    "Qwen/Qwen3-4B-Instruct-2507": Total(4022468096, _API),
    "Qwen/Qwen3-30B-A3B": Total(30532122624, _MIXTURES),
    "Qwen/Qwen3-30B-A3B-Instruct-2507": Total(30532122624, _MIXTURES),
    "Qwen/Qwen3-30B-A3B-Instruct-2507-FP8": Total(30533947392, _MIXTURES, _SCALES),
    "Qwen/Qwen3-Coder-30B-A3B-Instruct-FP8": Total(30533947392, _MIXTURES, _SCALES),
    "Qwen/Qwen3-235B-A22B": Total(235093634560, _MIXTURES),
    "Qwen/Qwen3-235B-A22B-Instruct-2507": Total(235093634560, _MIXTURES),
    "Qwen/Qwen3-235B-A22B-Instruct-2507-FP8": Total(235107904512, _MIXTURES, _SCALES),
    "Qwen/Qwen3-VL-30B-A3B-Instruct": Total(30532122624, f"{_LLAMA_CPP}, the language model alone"),
    "THUDM/chatglm-6b": Total(6173286400, _CALFLOPS),
    "THUDM/chatglm3-6b": Total(6243584000, _CALFLOPS),
    "THUDM/glm-4-9b": Total(9399951360, _PRINTED),
    "XiaomiMiMo/MiMo-7B-Base": Total(7833409536, _CALCULATOR, _MODULES),
    "allenai/OLMoE-1B-7B-0924": Total(
        6919161856, f"{_PUBLIC}elements in the headers of the checkpoint's safetensors files"
    ),
    "baichuan-inc/Baichuan-7B": Total(7000559616, _CALFLOPS),
    "codellama/CodeLlama-13b-hf": Total(13016028160, _TOGETHER),
    "codellama/CodeLlama-34b-Instruct-hf": Total(
        33743970304,
        f"{_PUBLIC}list of models of together.ai, num_parameters "
        "(Phind/Phind-CodeLlama-34B-Python-v1: same shape)",
    ),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": Total(
        1777088000, f"{_PUBLIC}original_param_num of DeepSeek-R1-Distill-Qwen-1.5B"
    ),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-14B": Total(
        14770033664, f"{_PUBLIC}parameters that ollama states of deepseek-r1:14b"
    ),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-32B": Total(
        32763876352, f"{_PUBLIC}list of models of a fine-tuning service, paramCount"
    ),
    "deepseek-ai/DeepSeek-V2-Lite-Chat": Total(15706484224, _MIXTURES),
    "deepseek-ai/DeepSeek-V3.2-Exp": Total(
        685396921376, _MIXTURES, f"{_COPIES}, and scales of blocks"
    ),
    "deepseek-ai/deepseek-coder-6.7b-instruct": Total(6740512768, _REGISTRY),
    "deepseek-ai/deepseek-moe-16b-base": Total(16375728128, _MIXTURES),
    "facebook/opt-6.7b": Total(
        6658473984, f"{_PUBLIC}sizes of models, 'exact from profiling' (opt-6.7b)"
    ),
    "facebook/opt-13b": Total(
        12853473280, f"{_PUBLIC}elements of the 644 tensors of OPT-13B in a benchmark of kernels"
    ),
    "google/gemma-2-2b": Total(2614341888, f"{_API} (google/gemma-2-2b-it: same shape)"),
    "google/gemma-2-27b": Total(27227128320, _KVFIT),
    "google/gemma-3-12b-it": Total(11766034176, f"{_LLAMA_CPP}, the language model alone"),
    "google/gemma-3-27b-it": Total(27009346304, f"{_LLAMA_CPP}, the language model alone"),
    "ibm-granite/granite-3.1-1b-a400m-instruct": Total(
        1334628352, f"{_PUBLIC}parameters of a loaded GraniteMoe model of the same shape"
    ),
    "ibm-granite/granite-3.1-2b-instruct": Total(
        2533531648, f"{_PUBLIC}table of repositories of the Hub with their parameters"
    ),
    "ibm-granite/granite-3.1-3b-a800m-instruct": Total(
        3298793472,
        f"{_PUBLIC}list of guard models, params (granite-guardian-3.2-3b-a800m: same shape)",
    ),
    "ibm-granite/granite-3.1-8b-instruct": Total(8170848256, _CARD),
    "inclusionAI/Ling-1T": Total(999705328640, _MIXTURES, _BUFFERS),
    "inclusionAI/Ling-flash-2.0": Total(102889705216, _MIXTURES, _BUFFERS),
    "inclusionAI/Ling-mini-2.0": Total(16255643392, _MIXTURES, _BUFFERS),
    "internlm/internlm2_5-1_8b": Total(1889110016, f"{_METADATA} (the chat model: same shape)"),
    "internlm/internlm2_5-20b": Total(19861149696, f"{_METADATA} (the chat model: same shape)"),
    "internlm/internlm2_5-7b": Total(7737708544, f"{_METADATA} (the chat model: same shape)"),
    "meta-llama/Llama-2-7b-hf": Total(6738415616, f"{_TOGETHER}{_ROTARY}6738417664"),
    "meta-llama/Llama-2-13b-hf": Total(13015864320, f"{_TOGETHER}{_ROTARY}13015866880"),
    "meta-llama/Llama-2-70b-hf": Total(68976648192, f"{_TOGETHER}{_ROTARY}68976653312"),
    "meta-llama/Llama-3.2-3B": Total(
        3212749824, f"{_API} (meta-llama/Llama-3.2-3B-Instruct: same shape)"
    ),
    "meta-llama/Llama-3.3-70B-Instruct": Total(70553706496, _API),
    "microsoft/Phi-3-medium-4k-instruct": Total(
        13960238080, f"{_PUBLIC}model_size of unsloth/Phi-3-medium-4k-instruct"
    ),
    "microsoft/Phi-3.5-MoE-instruct": Total(
        41873153344, f"{_PUBLIC}digest of a comparison of Phi-3.5-mini and Phi-3.5-MoE"
    ),
    "microsoft/Phi-3.5-mini-instruct": Total(3821079552, _API),
    "microsoft/phi-2": Total(2779683840, _REGISTRY),
    "mistralai/Codestral-22B-v0.1": Total(
        22247282688, f"{_PUBLIC}frozen parameters when Codestral-22B is tuned with LoRA"
    ),
    "mistralai/Mistral-7B-Instruct-v0.2": Total(
        7241732096,
        f"{_KERAS}@0e1444fdfbc088d2e736a43927f4719a30becd19 "
        "keras_hub/src/models/mistral/mistral_presets.py",
    ),
    "mistralai/Mistral-Large-Instruct-2407": Total(
        122610069504,
        f"{_PUBLIC}'exact dense parameter count' that its author took from the configuration of "
        "Mistral-Large-Instruct-2411 (same shape)",
    ),
    "mistralai/Mistral-Small-3.2-24B-Instruct-2506": Total(
        23572403200, f"{_LLAMA_CPP} for Devstral-Small-2-24B (same shape), the language model alone"
    ),
    "moonshotai/Kimi-Dev-72B": Total(
        72706203648, f"{_KVFIT} (Qwen/Qwen2.5-72B-Instruct: same shape)"
    ),
    "nvidia/Llama-3_3-Nemotron-Super-49B-v1": Total(
        49867145216, f"{_PUBLIC}notes on the checkpoint, 'confirmed size', bf16 parameters"
    ),
    "openai-community/gpt2-medium": Total(354823168, f"{_PUBLIC}MODEL_NTP constants"),
    "openai/gpt-oss-20b": Total(20914757184, _API),
    "openbmb/MiniCPM-2B-sft-bf16": Total(2724880896, _PRINTED),
    "tiiuae/Falcon3-7B-Instruct": Total(
        7455550464, f"{_PUBLIC}model_parameters of falcon3-7b-instruct, held against its manifest"
    ),
    "zai-org/GLM-4.6": Total(356785898816, _MIXTURES, _ALL),
}

#: Further names of a model: of the same shape, or short.
ALIASES: Final[dict[str, tuple[str, ...]]] = {
    "meta-llama/Meta-Llama-3-8B": (
        "meta-llama/Meta-Llama-3-8B-Instruct", "meta-llama/Llama-3-8B", "llama-3-8b",
    ),
    "meta-llama/Meta-Llama-3-70B": (
        "meta-llama/Meta-Llama-3-70B-Instruct", "meta-llama/Llama-3-70B", "llama-3-70b",
    ),
    "meta-llama/Llama-3.1-405B-Instruct-FP8": (
        "meta-llama/Meta-Llama-3.1-405B-Instruct-FP8", "meta-llama/Llama-3.1-405B-FP8",
    ),
    "meta-llama/Llama-3.1-8B": (
        "deepseek-ai/DeepSeek-R1-Distill-Llama-8B", "NousResearch/Meta-Llama-3.1-8B-Instruct",
        "meta-llama/Llama-3.1-8B-Instruct",
        "meta-llama/Meta-Llama-3.1-8B-Instruct",
        "meta-llama/Meta-Llama-3.1-8B",
    ),
    "meta-llama/Meta-Llama-3.1-70B": (
        "meta-llama/Llama-3.1-70B", "meta-llama/Llama-3.1-70B-Instruct",
        "meta-llama/Meta-Llama-3.1-70B-Instruct", "llama-3.1-70b",
        "nvidia/Llama-3.1-Nemotron-70B-Instruct-HF", "deepseek-ai/DeepSeek-R1-Distill-Llama-70B",
    ),
    "meta-llama/Meta-Llama-3.1-405B": (
        "meta-llama/Llama-3.1-405B", "meta-llama/Llama-3.1-405B-Instruct", "llama-3.1-405b",
        "meta-llama/Meta-Llama-3.1-405B-Instruct",
    ),
    "meta-llama/Llama-3.2-1B": ("meta-llama/Llama-3.2-1B-Instruct",),
    "meta-llama/Llama-3.2-3B": ("meta-llama/Llama-3.2-3B-Instruct",),
    "meta-llama/Llama-3.3-70B-Instruct": ("llama-3.3-70b",),
    "meta-llama/Llama-2-7b-hf": (
        "meta-llama/Llama-2-7b-chat-hf", "llama-2-7b", "lmsys/vicuna-7b-v1.5",
    ),
    "meta-llama/Llama-2-13b-hf": ("meta-llama/Llama-2-13b-chat-hf", "llama-2-13b"),
    "meta-llama/Llama-2-70b-hf": ("meta-llama/Llama-2-70b-chat-hf", "llama-2-70b"),
    "mistralai/Mistral-7B-v0.1": ("mistralai/Mistral-7B-Instruct-v0.1",),
    "mistralai/Mistral-7B-v0.3": ("mistralai/Mistral-7B-Instruct-v0.3", "mistral-7b"),
    "mistralai/Mixtral-8x7B-v0.1": ("mistralai/Mixtral-8x7B-Instruct-v0.1", "mixtral-8x7b"),
    "mistralai/Mixtral-8x22B-v0.1": ("mixtral-8x22b",),
    "mistralai/Mistral-Nemo-Base-2407": (
        "mistralai/Mistral-Nemo-Instruct-2407", "mistral-nemo",
    ),
    "mistralai/Mistral-Small-24B-Base-2501": (
        "mistralai/Mistral-Small-24B-Instruct-2501", "mistral-small-24b",
    ),
    "google/gemma-3-12b-it": ("google/gemma-3-12b-pt", "gemma-3-12b"),
    "ibm-granite/granite-3.1-2b-instruct": ("ibm-granite/granite-3.1-2b-base",),
    "ibm-granite/granite-3.1-8b-instruct": (
        "ibm-granite/granite-3.1-8b-base", "ibm-granite/granite-3.2-8b-instruct",
    ),
    "mistralai/Mistral-Small-3.2-24B-Instruct-2506": (
        "mistralai/Mistral-Small-3.1-24B-Instruct-2503",
    ),
    "microsoft/Phi-3.5-mini-instruct": ("microsoft/Phi-3-mini-128k-instruct",),
    "deepseek-ai/DeepSeek-V2-Lite-Chat": ("deepseek-ai/DeepSeek-Coder-V2-Lite-Instruct",),
    "Qwen/Qwen3-Next-80B-A3B-Instruct": ("Qwen/Qwen3-Next-80B-A3B-Thinking",),
    "Qwen/Qwen3-30B-A3B-Instruct-2507": (
        "Qwen/Qwen3-30B-A3B-Thinking-2507", "Qwen/Qwen3-Coder-30B-A3B-Instruct",
    ),
    "Qwen/Qwen3-4B-Instruct-2507": ("Qwen/Qwen3-4B-Thinking-2507",),
    "Qwen/Qwen2.5-0.5B": ("Qwen/Qwen2.5-0.5B-Instruct",),
    "Qwen/Qwen2.5-1.5B": ("Qwen/Qwen2.5-1.5B-Instruct",),
    "Qwen/Qwen2.5-3B": ("Qwen/Qwen2.5-3B-Instruct",),
    "Qwen/Qwen2.5-7B": (
        "Qwen/Qwen2.5-7B-Instruct", "Qwen/Qwen2.5-Coder-7B-Instruct", "Qwen/Qwen2-7B-Instruct",
        "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B",
    ),
    "Qwen/Qwen2.5-14B": ("Qwen/Qwen2.5-14B-Instruct",),
    "Qwen/Qwen2.5-32B": ("Qwen/Qwen2.5-32B-Instruct", "Qwen/Qwen2.5-Coder-32B-Instruct"),
    "Qwen/Qwen2.5-72B": ("Qwen/Qwen2.5-72B-Instruct", "Qwen/Qwen2-72B-Instruct"),
    "google/gemma-2-9b": ("google/gemma-2-9b-it",),
    "google/gemma-2-2b": ("google/gemma-2-2b-it",),
    "google/gemma-2-27b": ("google/gemma-2-27b-it",),
    "google/gemma-3-1b-it": ("google/gemma-3-1b-pt", "gemma-3-1b"),
    "google/gemma-3-4b-it": ("google/gemma-3-4b-pt", "gemma-3-4b"),
    "openai-community/gpt2": ("gpt2",),
    "openai-community/gpt2-medium": ("gpt2-medium",),
    "openai-community/gpt2-large": ("gpt2-large",),
    "openai-community/gpt2-xl": ("gpt2-xl",),
    "deepseek-ai/DeepSeek-V3": (
        "deepseek-ai/DeepSeek-V3-0324", "deepseek-ai/DeepSeek-V3-Base", "deepseek-ai/DeepSeek-V3.1",
    ),
    "deepseek-ai/DeepSeek-R1": ("deepseek-ai/DeepSeek-R1-0528",),
    "moonshotai/Kimi-K2-Instruct": ("moonshotai/Kimi-K2-Base", "kimi-k2"),
    "microsoft/Phi-4-mini-instruct": ("phi-4-mini",),
    "microsoft/Phi-3-mini-4k-instruct": ("phi-3-mini",),
    "baichuan-inc/Baichuan2-7B-Base": ("baichuan-inc/Baichuan2-7B-Chat",),
    "deepseek-ai/deepseek-moe-16b-base": ("deepseek-ai/deepseek-moe-16b-chat",),
    "inclusionAI/Ling-1T": ("inclusionAI/Ring-1T",),
    "inclusionAI/Ling-flash-2.0": ("inclusionAI/Ring-flash-2.0",),
    "inclusionAI/Ling-mini-2.0": ("inclusionAI/Ring-mini-2.0",),
    "internlm/internlm2_5-1_8b": ("internlm/internlm2_5-1_8b-chat",),
    "internlm/internlm2_5-20b": ("internlm/internlm2_5-20b-chat",),
    "internlm/internlm2_5-7b": ("internlm/internlm2_5-7b-chat", "internlm/internlm2-7b"),
    "MiniMaxAI/MiniMax-M1-80k": ("MiniMaxAI/MiniMax-M1-40k",),
    "Qwen/Qwen-7B": ("Qwen/Qwen-7B-Chat",),
    "Qwen/Qwen-1_8B": ("Qwen/Qwen-1_8B-Chat",),
    "THUDM/chatglm3-6b": ("THUDM/chatglm2-6b",),
    "THUDM/glm-4-9b": ("THUDM/glm-4-9b-chat",),
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": ("tinyllama-1.1b", "tinyllama"),
}  # fmt: skip


def shape(config: dict[str, Any]) -> dict[str, Any]:
    """Return the fields that matter."""
    kept = {key: value for key, value in config.items() if key not in LEFT_OUT}
    return dict(sorted(kept.items()))


def published_total(check: dict[str, Any]) -> dict[str, Any]:
    """Return the exact total that was published, its source and what it counts."""
    counts = {
        "n_params": "parameters",
        "n_params_with_tied_head_counted": "parameters and the tied head once more",
        "n_params_plus_persistent_buffers": _BUFFERS,
        "n_params+buffers+mtp": _ALL,
        "n_params+buffers+mtp+copies": _COPIES,
        "n_params+buffers+mtp+block_scales": f"{_ALL}, and scales of blocks",
        "n_params+block_scales": _SCALES,
    }
    if check.get("matched_as") in counts:
        counted, total, source = check["matched_as"], check["published"], check["published_source"]
    elif "without_mtp_matched_as" in check:  # of the same model without its extra modules
        counted, total = check["without_mtp_matched_as"], check["published_without_mtp"]
        source = check["published_without_mtp_source"]
    else:
        return {}
    return _published(Total(total, source, counts[counted]))


def _published(known: Total | None) -> dict[str, Any]:
    """Return the entries for a total that was published."""
    if known is None:
        return {}
    return {
        "published": known.total,
        "published_source": known.source,
        "published_counts": known.counts,
    }


def main() -> None:
    """Write the catalogue."""
    models: dict[str, dict[str, Any]] = {}
    lines = (ROOT / "tests" / "data" / "real_models.jsonl").read_text().splitlines()
    for row in map(json.loads, lines):
        name = RENAMED.get(row["model_id"], row["model_id"])
        models[name] = {
            "source": row["config_source"],
            **published_total(row["published_check"]),
            "config": shape(row["config"]),
        }
    # The same model under two names.
    del models["meta-llama/Meta-Llama-3.1-8B"]
    for name in ELSEWHERE:
        models[name]["config"]["quantization_config"] = {"quant_method": "modelopt"}
    for name, known in SHAPES.items():
        models[name] = {
            "source": known.source,
            **_published(TOTALS.get(name)),
            "config": dict(sorted(known.config.items())),
        }
    for name, (like, changes) in VARIANTS.items():
        config = models[like]["config"]
        models[name] = {
            "source": f"the published sizes; other fields as {like}",
            **_published(TOTALS.get(name)),
            "config": dict(sorted((config | changes).items())),
        }
    for name, aliases in ALIASES.items():
        models[name]["aliases"] = list(aliases)
    lines = [f"{json.dumps(name)}: {json.dumps(models[name])}" for name in sorted(models)]
    TARGET.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
