"""Where a model that also sees or hears keeps its language model.

* `language_model`: the language model's fields in such a configuration.
* `SECTIONS`: the sections that hold them.
* `LANGUAGE_MODELS`: the type of the language model where its section does not name it.
* `FLAT`: types whose files may state the language model's fields without a section.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from llmcalc.errors import InvalidValueError, LlmcalcError
from llmcalc.huggingface.registry import HEADLESS

__all__ = ["FLAT", "LANGUAGE_MODELS", "SECTIONS", "Inner", "language_model"]

#: The sections, the first of them in a configuration holds the language model.
SECTIONS: Final = ("text_config", "llm_config", "language_config", "thinker_config")

#: ``text_config`` in transformers: what its class takes where the section has no ``model_type``.
LANGUAGE_MODELS: Final[dict[str, str]] = {
    "aria": "aria_text",
    "audioflamingo3": "qwen2",
    "aya_vision": "cohere2",
    "blip-2": "opt",
    "cohere2_vision": "cohere2",
    "cohere_compass": "cohere_compass_text",
    "cosmos3_edge": "cosmos3_edge_text",
    "cosmos3_omni": "qwen3_vl_text",
    "deepseek_ocr2": "deepseek_ocr2_text",
    "deepseek_vl": "llama",
    "deepseek_vl_hybrid": "llama",
    "dots3_note": "dots3_note_text",
    "emu3": "emu3_text_model",
    "exaone4_5": "exaone4",
    "fast_vlm": "qwen2",
    "fun_asr_nano": "qwen3",
    "fuyu": "persimmon",
    "gemma3": "gemma3_text",
    "gemma3n": "gemma3n_text",
    "gemma4": "gemma4_text",
    "gemma4_unified": "gemma4_unified_text",
    "glm46v": "glm4v_text",
    "glm4v": "glm4v_text",
    "glm4v_moe": "glm4v_moe_text",
    "glm_ocr": "glm_ocr_text",
    "glmasr": "llama",
    "glmga": "glm4v_text",
    "got_ocr2": "qwen2",
    "granite4_vision": "granite4_vision_text",
    "granite_docling": "granite_docling_text",
    "granite_speech": "granite",
    "granite_speech_plus": "granite",
    "hunyuan_vl": "hunyuan_vl_text",
    "hyperclovax_vision_v2": "hyperclovax",
    "idefics2": "mistral",
    "idefics3": "llama",
    "inkling2": "inkling2_text",
    "inkling_mm_model": "inkling_text",
    "instructblip": "opt",
    "instructblipvideo": "opt",
    "internvl": "qwen2",
    "janus": "llama",
    "jev": "qwen3_5_text",
    "kimi_k25": "deepseek_v3",
    "lfm2_vl": "lfm2",
    "lfm3_vl": "lfm3",
    "lighton_ocr": "qwen3",
    "llama4": "llama4_text",
    "llava": "llama",
    "llava_next": "llama",
    "llava_next_video": "llama",
    "llava_onevision": "qwen2",
    "minicpm_ocr": "qwen3_5_text",
    "minicpmv4_6": "qwen3_5_text",
    "minicpmv4_7": "qwen3_5_text",
    "minimax_m3_vl": "minimax_m3_vl_text",
    "mistral3": "mistral",
    "mllama": "mllama_text_model",
    "molmo2": "molmo2_text",
    "moss_transcribe_diarize": "qwen3",
    "muse_glimmer": "muse_glimmer_text",
    "musicflamingo": "qwen2",
    "nemo_speechlm": "nemotron_h",
    "nemotron_h_omni": "nemotron_h",
    "ovis2": "qwen2",
    "paddleocr_vl": "paddleocr_vl_text",
    "paligemma": "gemma",
    "perception_lm": "llama",
    "pp_chart2table": "qwen2",
    "qianfan_ocr": "qwen3",
    "qwen2_5_omni_thinker": "qwen2_5_omni_text",
    "qwen2_5_vl": "qwen2_5_vl_text",
    "qwen2_audio": "qwen2",
    "qwen2_vl": "qwen2_vl_text",
    "qwen3_5": "qwen3_5_text",
    "qwen3_5_moe": "qwen3_5_moe_text",
    "qwen3_asr": "qwen3",
    "qwen3_omni_moe_thinker": "qwen3_omni_moe_text",
    "qwen3_vl": "qwen3_vl_text",
    "qwen3_vl_moe": "qwen3_vl_moe_text",
    "qwen4_exp": "qwen4_exp_text",
    "shieldgemma2": "gemma3_text",
    "smolvlm": "llama",
    "step3p7": "step3p5",
    "vibevoice": "qwen2",
    "vibevoice_asr": "qwen2",
    "video_llama_3": "qwen2",
    "video_llava": "llama",
    "vipllava": "llama",
    "voxtral": "llama",
}

#: Their older files are those of the language model with the vision part's fields beside.
FLAT: Final[dict[str, str]] = {
    "fuyu": "persimmon",
    # liuhaotian/llava-v1.5-7b and its kin: LlavaConfig is a LlamaConfig, and so on
    "llava": "llama",
    "llava_llama": "llama",
    "llava_mistral": "mistral",
    "llava_qwen": "qwen2",
    # modeling_phi3_v.py in the repository of microsoft/Phi-3-vision-128k-instruct
    "phi3_v": "phi3",
    "qwen2_5_vl": "qwen2_5_vl_text",
    "qwen2_vl": "qwen2_vl_text",
}

_TIED: Final = "tie_word_embeddings"

#: Whether a head is tied is said by the larger model, whose head it is: ``tie_weights`` in
#: ``modeling_utils.py`` asks its configuration. Of these it is tied where the section says so, too
#: (``__post_init__`` in their ``configuration_<type>.py``).
_TIED_BY_EITHER: Final = frozenset(
    (
        "fast_vlm",
        "glm4v",
        "glm4v_moe",
        "glm_ocr",
        "hunyuan_vl",
        "llava",
        "llava_next_video",
        "llava_onevision",
        "minimax_m3_vl",
        "paddleocr_vl",
        "qwen2_5_vl",
        "qwen2_vl",
        "shieldgemma2",
        "video_llama_3",
    )
)

#: Their part is a whole language model, whose section alone says whether its head is tied.
_TIED_BY_SECTION: Final = frozenset(
    ("blip-2", "instructblip", "instructblipvideo", "llama4", "vibevoice")
)

#: Their modules tie no head, whatever is said (no ``_tied_weights_keys``).
_NEVER_TIED: Final = frozenset(
    ("audioflamingo3", "cosmos3_edge", "musicflamingo", "qwen2_audio", "vibevoice_asr", "voxtral")
)

#: What the whole model may state once for all of its parts.
_SHARED: Final = (
    "dtype",
    "torch_dtype",
    "quantization_config",
    "compression_config",
    "mtp_config",
)

#: Parts stand in parts, but not deeper than this.
_DEEPEST: Final = 3


class Inner(NamedTuple):
    """A language model's fields, its type, and the path of the section that holds them."""

    values: Mapping[str, object]
    model_type: str
    path: str


def language_model(
    values: Mapping[str, object], model_type: str, known: Mapping[str, str]
) -> Inner | None:
    """Return the language model of a type that is not itself `known`, `None` where it has none."""
    path = ""
    for _ in range(_DEEPEST):
        named = [(name, values.get(name)) for name in SECTIONS]
        found = next(((name, own) for name, own in named if isinstance(own, Mapping)), None)
        if found is None:
            break
        shared = {field: values[field] for field in _SHARED if field in values}
        wrapper, usual, whole = model_type, LANGUAGE_MODELS.get(model_type), values
        section, values = found
        path += f"{section}."
        for key in values:
            if not isinstance(key, str):
                raise InvalidValueError(path[:-1], key, "must have strings for keys")
        given = values.get("model_type", usual)
        if given is None:
            raise LlmcalcError(f"{path}model_type: is missing; it names the language model's type")
        if not isinstance(given, str):
            raise InvalidValueError(f"{path}model_type", given, "must be a string")
        values, model_type = {**shared, **_with_tie(values, whole, wrapper, given)}, given
        if model_type in known:
            return Inner(values, model_type, path[:-1])
    if model_type in FLAT and "hidden_size" in values:
        return Inner(values, FLAT[model_type], path[:-1])
    return Inner(values, model_type, path[:-1]) if path else None


def _with_tie(
    section: Mapping[str, object], whole: Mapping[str, object], wrapper: str, part: str
) -> dict[str, object]:
    """Return the fields of a section, with what the larger model says of the head.

    Where that says nothing, the section's word is taken, not the default of the larger model's
    class: older files say there alone whether the head is tied. Of a larger model that transformers
    does not have, the section's word goes before.
    """
    said = whole.get(_TIED)
    if wrapper in _NEVER_TIED:
        return {**section, _TIED: False}
    if wrapper in _TIED_BY_SECTION or said is None:
        return {**section}
    if wrapper in _TIED_BY_EITHER and said is False:
        return {**section}
    if wrapper in LANGUAGE_MODELS or part in HEADLESS:
        return {**section, _TIED: said}
    return {_TIED: said, **section}
