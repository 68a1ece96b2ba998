"""Modules of transformers, built without weights, and what their parameters are for."""

from __future__ import annotations

import inspect
import json
import re
from importlib import import_module
from math import prod
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import llmcalc.huggingface
from llmcalc import ModelSpec, memory
from llmcalc.huggingface.registry import HEADLESS

#: The groups that the library counts under, by what is in a parameter's name; the first that
#: matches decides. Softmax attention and recurrences are one group: hybrids name them alike.
_GROUPS = [
    ("norms", r"\b(lm_head|embeddings)\.norm\b|embed_norm|post_laurel_norm|per_layer_\w+_norm"),
    ("head", r"^(lm_head|head|decoder|output_projection|embed_out|model\.decoder\.project_out)\b"),
    ("embeddings", r"embed_tokens_per_layer"),
    ("other", r"\b(altup|laurel|altup_projections|altup_unembed_projections)\b|\bper_layer_"),
    ("other", r"_hc\.|\bhc_head\b|hyper_connection"),
    ("other", r"residual_scale\.|input_residual|post_attention_residual|input_hidden_states_"),
    ("other", r"(attn|mlp)_sconv\.|_convolution\.|z_L_init|_input\.query|\blinear\."),
    ("norms", r"\b(input|post_attention|post_mlp)_layernorm"),
    ("attention", r"\bcross_attn(\.|_\w+_gate\b)"),
    ("attention", r"\b(self_attn|attn|attention|self_attention|multi_head_attention)\."),
    ("experts", r"\b(experts?|router|shared_experts?|shared_mlp|shared_expert_gate)\b"),
    (
        "experts",
        r"_latent_proj\b|\b(mlp|mixer|feed_forward)\.gate\b|\bmlp\.(expert_bias|bias|activation|\w+put_linear)\b",
    ),
    ("feed_forward", r"\bmixer\.(up_proj|down_proj|act_fn)\b"),
    ("attention", r"\b(mamba|linear_attn|temporal_block|mlstm_layer|conv|mixer)\."),
    ("feed_forward", r"\b(mlps?|ffn|feed_forward|mlp_block|fc[12]|activation_fn)\b"),
    ("other", r"layers\.\*\.act_fn\b"),
    ("norms", r"norm|\b(ln_\w+|ln[12]|pre_ln|norm_f)\b"),
    ("embeddings", r"embed|wte|wpe|project_in|\btransformer\.w\b"),
]


#: A layer's number in the name of a parameter.
_LAYER = re.compile(r"\b(?:layers|h|blocks)\.(\d+)\.")


def group_of(name: str) -> str:
    """Return the group that a parameter of this name counts under."""
    pattern = re.sub(r"\.\d+(?=\.|$)", ".*", name)
    for group, part in _GROUPS:
        if re.search(part, pattern):
            return group
    raise AssertionError(f"no group for {name}")


#: Language models whose larger models tie no head, whatever they say.
NEVER_TIED = {"mllama_text_model", "molmo2_text"}


class LanguageModel(torch.nn.Module):
    """A language model that stands in a larger model, and the head that stands beside it there."""

    def __init__(self, config: Any, *, tied: bool) -> None:
        super().__init__()
        self.config = config
        self.model = _text_class(config)(config)
        self.lm_head = torch.nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if tied and config.model_type not in NEVER_TIED:
            self.lm_head.weight = self.model.embed_tokens.weight

    def forward(self, **arguments: Any) -> Any:
        """Compute the logits, and return what the language model returns."""
        if arguments.get("use_cache") and "past_key_values" not in arguments:
            arguments["past_key_values"] = DynamicCache(config=self.config)
        result = self.model(**arguments)
        self.lm_head(result.last_hidden_state)
        return result


def _text_class(config: Any) -> Any:
    """Return the class of the language model of a configuration."""
    module = import_module(type(config).__module__.replace("configuration_", "modeling_"))
    [found] = [
        kind
        for name, kind in vars(module).items()
        if inspect.isclass(kind)
        and issubclass(kind, PreTrainedModel)
        and kind.__module__ == module.__name__
        and getattr(kind, "config_class", None) is type(config)
        and name.endswith("TextModel")
    ]
    return found


def new_config(model_type: str, arguments: dict[str, Any]) -> Any:
    """Return the configuration object; it says whether a language model's head is tied."""
    config = CONFIG_MAPPING[model_type](**arguments)
    if model_type in HEADLESS:
        folder = Path(llmcalc.huggingface.__file__).parent / "defaults"
        defaults = json.loads((folder / f"{model_type}.json").read_text(encoding="utf-8"))
        usual = defaults["fields"]["tie_word_embeddings"]
        config.tie_word_embeddings = arguments.get("tie_word_embeddings", usual)
    return config


def new_module(config: Any, **options: Any) -> Any:
    """Return the module of a configuration object."""
    if config.model_type not in HEADLESS:
        return AutoModelForCausalLM.from_config(config, **options)  # type: ignore[no-untyped-call]
    for name, value in options.items():
        setattr(config, f"_{name}", value)
    return LanguageModel(config, tied=config.tie_word_embeddings)


def build(model_type: str, arguments: dict[str, Any]) -> tuple[Any, Any]:
    """Return the configuration object and the module, without memory for its weights.

    Raises whatever transformers raises for a configuration that it cannot build.
    """
    config = new_config(model_type, arguments)
    with torch.device("meta"):
        return config, new_module(config)


def module_groups(module: Any) -> tuple[dict[str, int], list[dict[str, int]]]:
    """Return the module's parameters by group: of the whole, and of each layer in order."""
    whole: dict[str, int] = {}
    layers: dict[str, dict[str, int]] = {}
    parameters = dict(module.named_parameters())
    # Doge calls what all tokens share of a mixture by the names of its feed-forward.
    mixture = any(name.endswith("router_gate.weight") for name in parameters)
    for name, weight in parameters.items():
        group = group_of(name)
        if mixture and group == "feed_forward":
            group = "experts"
        found = _LAYER.search(name)
        for groups in (whole, *([layers.setdefault(name[: found.end()], {})] if found else [])):
            groups[group] = groups.get(group, 0) + weight.numel()
    return _filled(whole), [_filled(groups) for groups in layers.values()]


#: A weight that routed experts share out.
_ROUTED = re.compile(
    r"\bexperts\.(?!router|shared|bias)|\bmlp\.\w+put_linear\b|\b(up|down)_embed\b"
)


def active_of_module(config: Any, module: Any) -> int:
    """Count a module's parameters, of routed experts those that one token is routed to."""
    total = 0
    for name, weight in module.named_parameters():
        size = weight.numel()
        if _ROUTED.search(name) and weight.dim() > 1:
            experts, picked = _experts(config), _picked(config, name)
            # DBRX stacks the rows of its experts.
            rows = experts if config.model_type == "dbrx" else weight.shape[0]
            size = size // rows * -(-rows * picked // experts)
        total += size
    return total


def _experts(config: Any) -> int:
    names = ("num_local_experts", "n_routed_experts", "num_experts", "moe_num_experts")
    holder = config.ffn_config if config.model_type == "dbrx" else config
    return next(int(found) for name in names if (found := getattr(holder, name, None)))


def _picked(config: Any, name: str) -> int:
    names = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts")
    if config.model_type == "dbrx":
        return int(config.ffn_config.moe_top_k)
    picked = next(found for name in names if (found := getattr(config, name, None)))
    layer = _LAYER.search(name)
    return int(picked[int(layer[1])] if isinstance(picked, list) and layer else picked)


def spec_groups(spec: ModelSpec) -> tuple[dict[str, int], list[dict[str, int]]]:
    """Return the same of a model, as the library counts it."""
    whole: dict[str, int] = {}
    kinds: dict[str, dict[str, int]] = {}
    terms = memory.parameters(spec).terms
    for tensor, term in zip(spec.ledger.tensors, terms, strict=True):
        group, label, _ = tensor.path
        group = "attention" if group == "recurrent" else group
        whole[group] = whole.get(group, 0) + term.value
        if tensor.times:
            groups = kinds.setdefault(label, {})
            each = term.value // prod(count for count, _ in tensor.times)
            groups[group] = groups.get(group, 0) + each
    layers = [kinds.get(run.label, {}) for run in spec.layers for _ in range(run.count)]
    return _filled(whole), [_filled(groups) for groups in layers]


def _filled(groups: dict[str, int]) -> dict[str, int]:
    return {group: size for group, size in sorted(groups.items()) if size}
