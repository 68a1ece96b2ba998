"""Reads the ``quantization_config`` of a ``config.json``: which tensors it covers, in what format.

* `scheme`: the scheme of a model's published checkpoint.
* `from_config`: the scheme that a ``quantization_config`` says.

Sizes are those of the checkpoint's files. Methods: fp8 and fbgemm_fp8, GPTQ, AWQ, AutoRound,
bitsandbytes, compressed-tensors, NVIDIA ModelOpt, MXFP4 of gpt-oss. Others are refused by name.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Final

from llmcalc.errors import InvalidValueError, UnknownNameError
from llmcalc.formats.blocks import Extra, Format, get, packed_integers
from llmcalc.formats.coverage import EXPERTS, HEAD, Coverage, Rule, Scheme, Uniform
from llmcalc.spec.checkpoint import QuantizedCheckpoint
from llmcalc.spec.model import ModelSpec, check_spec

__all__ = ["from_config", "scheme"]

_FIELD: Final = "quantization_config"


def scheme(spec: ModelSpec) -> Scheme:
    """Return the scheme of the checkpoint that the model's config describes.

    Raises `llmcalc.LlmcalcError` where the config states no format, or one that is not known.
    """
    check_spec(spec)
    stated = spec.checkpoint
    if stated is None:
        raise InvalidValueError(
            "weights", "checkpoint", f"{spec.name} does not state the format of its checkpoint"
        )
    if not isinstance(stated, QuantizedCheckpoint):
        return Uniform(get(stated, "checkpoint"))
    return from_config(json.loads(stated.quantization), spec, wide=stated.wide)


def from_config(
    config: Mapping[str, object], spec: ModelSpec, *, wide: str | None = None
) -> Scheme:
    """Return the scheme that a ``quantization_config`` says for a model.

    `wide` is the format of what is not quantised, the config's ``torch_dtype``. Where it is not
    given, it is what the method's loader takes: float16 for GPTQ, AWQ and bitsandbytes, bfloat16
    otherwise.

    >>> from llmcalc import ModelSpec
    >>> from llmcalc.formats import checkpoint
    >>> spec = ModelSpec.dense(
    ...     name="tiny", num_layers=2, num_query_heads=4, num_kv_heads=2,
    ...     embed_dim=64, inner_dim=128, vocab_size=100,
    ... )
    >>> own = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    >>> checkpoint.from_config(own, spec).format_of(spec.ledger.tensors[2]).name
    'fp8 128x128'
    """
    check_spec(spec)
    if not isinstance(config, Mapping):
        raise InvalidValueError(_FIELD, config, "must be an object")
    method = _method(config)
    read = _METHODS.get(method)
    if read is None:
        raise UnknownNameError(f"{_FIELD}.quant_method", method, _METHODS)
    usual = "fp16" if method in {"gptq", "awq", "bitsandbytes"} else "bf16"
    rest = get(wide or usual, "torch_dtype")
    rules, ignore = read(config, rest)
    return Coverage(
        name=method, wide=rest, rules=rules, ignore=ignore, layers=spec.ledger.layer_numbers
    )


_Read = tuple[tuple[Rule, ...], tuple[str, ...]]


def _method(config: Mapping[str, object]) -> str:
    given = config.get("quant_method")
    if given is None and "quantization" in config:  # ModelOpt's hf_quant_config.json
        given = "modelopt"
    if given is None and ("load_in_4bit" in config or "load_in_8bit" in config):
        given = "bitsandbytes"
    if not isinstance(given, str):
        raise InvalidValueError(f"{_FIELD}.quant_method", given, "must name the method")
    return given.lower()


# Single fields -----------------------------------------------------------------------------


def _integer(config: Mapping[str, object], field: str, default: int | None = None) -> int:
    value = config.get(field, default)
    if type(value) is not int or not -1 <= value <= 2**20:
        raise InvalidValueError(f"{_FIELD}.{field}", value, "must be an integer from -1 to 2**20")
    return value


def _flag(config: Mapping[str, object], field: str, *, default: bool) -> bool:
    value = config.get(field, default)
    if value is None:
        return default
    if type(value) is not bool:
        raise InvalidValueError(f"{_FIELD}.{field}", value, "must be true or false")
    return value


def _modules(config: Mapping[str, object], *fields: str) -> tuple[str, ...] | None:
    """Return the modules that the first given one of the fields lists, `None` without any."""
    for field in fields:
        value = config.get(field)
        if value is None:
            continue
        if not isinstance(value, list | tuple) or not all(isinstance(name, str) for name in value):
            raise InvalidValueError(f"{_FIELD}.{field}", value, "must be a list of modules' names")
        return tuple(value)
    return None


def _group(value: object, field: str = "group_size") -> int | None:
    """Return the columns that share a scale, `None` for all of a row."""
    if value is None or (type(value) is int and value == -1):
        return None
    if type(value) is not int or not 1 <= value <= 2**20:
        raise InvalidValueError(f"{_FIELD}.{field}", value, "must be a number of columns, or -1")
    return value


def _mapping(config: Mapping[str, object], field: str) -> Mapping[str, object]:
    value = config.get(field)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise InvalidValueError(f"{_FIELD}.{field}", value, "must be an object")
    return value


def _everywhere(format: Format) -> tuple[Rule, ...]:
    return (Rule(format=format),)


def _block(value: object, field: str) -> tuple[int, int]:
    pair = value if isinstance(value, list | tuple) else ()
    if len(pair) != 2 or not all(type(side) is int and 1 <= side <= 2**20 for side in pair):
        raise InvalidValueError(f"{_FIELD}.{field}", value, "must be two numbers of elements")
    return pair[0], pair[1]


# Methods -----------------------------------------------------------------------------------


def _fp8(config: Mapping[str, object], _wide: Format) -> _Read:
    """Read ``fp8``: transformers ``integrations/finegrained_fp8.py``, `FP8Linear`."""
    block = config.get("weight_block_size")
    static = config.get("activation_scheme") == "static"
    more = (Extra("input_scale", 4, rows=None, columns=None),) if static else ()
    if block is None:
        name, scales = "fp8 per tensor", Extra("scale", 4, rows=None, columns=None)
    else:
        rows, columns = _block(block, "weight_block_size")
        # UE8M0 scales are powers of two, of which only the exponent is stored.
        size = 1 if config.get("scale_fmt") == "ue8m0" else 4
        name, scales = f"fp8 {rows}x{columns}", Extra("scales", size, rows=rows, columns=columns)
    format = Format(
        name=name,
        block_elements=1,
        block_bytes=1,
        extras=(scales, *more),
        number_format="fp8",
    )
    ignored = _modules(config, "modules_to_not_convert", "ignored_layers") or ()
    experts = config.get("expert_dtype")
    if experts is not None and experts not in ("fp8", "fp4"):
        raise InvalidValueError("expert_dtype", experts, "must be fp4 or fp8")
    # DeepSeek-V4 has its routed experts in 4-bit floats with a scale for 32.
    own = (Rule(format=get("mxfp4"), targets=EXPERTS),) if experts == "fp4" else ()
    return (*own, *_everywhere(format)), (*HEAD, *ignored)


def _fbgemm(config: Mapping[str, object], _wide: Format) -> _Read:
    """Read ``fbgemm_fp8``: transformers ``integrations/fbgemm_fp8.py``: a float32 for each row."""
    format = Format(
        name="fp8 per row",
        block_elements=1,
        block_bytes=1,
        extras=(Extra("scales", 4, rows=1, columns=None),),
        number_format="fp8",
    )
    return _everywhere(format), (*HEAD, *(_modules(config, "modules_to_not_convert") or ()))


def _gptq(config: Mapping[str, object], wide: Format) -> _Read:
    """Read ``gptq``: AutoGPTQ and GPTQModel; ``g_idx`` and zero points are stored always."""
    bits, group = _integer(config, "bits"), _group(config.get("group_size", 128))
    head = _flag(config, "lm_head", default=False)
    format = packed_integers(
        f"int{bits} {_grouping(group)}",
        bits=bits,
        group=group,
        scale_bytes=wide.block_bytes,
        zero_points=True,
        order=True,
    )
    # GPTQModel's `dynamic`: "-:" before a pattern leaves the modules out.
    skipped = []
    for pattern, values in _mapping(config, "dynamic").items():
        if pattern.startswith("-:"):
            skipped.append(f"re:{pattern[2:]}")
        elif values:
            raise InvalidValueError(
                f"{_FIELD}.dynamic", pattern, "other bits for some modules are not read"
            )
    ignored = _modules(config, "modules_to_not_convert") or ()
    return _everywhere(format), (*(() if head else HEAD), *ignored, *skipped)


def _awq(config: Mapping[str, object], wide: Format) -> _Read:
    """Read ``awq``: AutoAWQ ``modules/linear/gemm.py``."""
    bits = _integer(config, "bits" if "bits" in config else "w_bit")
    group = _group(config.get("group_size", config.get("q_group_size", 128)))
    format = packed_integers(
        f"int{bits} {_grouping(group)}",
        bits=bits,
        group=group,
        scale_bytes=wide.block_bytes,
        zero_points=_flag(config, "zero_point", default=True),
    )
    return _everywhere(format), (*HEAD, *(_modules(config, "modules_to_not_convert") or ()))


def _auto_round(config: Mapping[str, object], wide: Format) -> _Read:
    """Read ``auto-round``, which packs as GPTQ or as AWQ do."""
    packing = config.get("packing_format", "auto_round:auto_gptq")
    read = _awq if isinstance(packing, str) and "awq" in packing else _gptq
    return read({**config, "dynamic": None}, wide)


def _bitsandbytes(config: Mapping[str, object], _wide: Format) -> _Read:
    """Read ``bitsandbytes``: transformers `BitsAndBytesConfig`."""
    if _flag(config, "load_in_8bit", default=False) or _flag(
        config, "_load_in_8bit", default=False
    ):
        name = "llm-int8"
    elif _flag(config, "load_in_4bit", default=False) or _flag(
        config, "_load_in_4bit", default=False
    ):
        double = _flag(config, "bnb_4bit_use_double_quant", default=False)
        name = "nf4" if double else "nf4-single"
    else:
        raise InvalidValueError(
            f"{_FIELD}.load_in_4bit", config.get("load_in_4bit"), "4 or 8 bits must be true"
        )
    ignored = _modules(config, "llm_int8_skip_modules")
    return _everywhere(get(name)), (*HEAD, *(ignored or ()))


def _mxfp4(config: Mapping[str, object], _wide: Format) -> _Read:
    """Read ``mxfp4``: the experts' matrices alone, as the checkpoints of gpt-oss have them."""
    rule = Rule(format=get("mxfp4"), targets=EXPERTS)
    return (rule,), (*HEAD, *(_modules(config, "modules_to_not_convert") or ()))


def _modelopt(config: Mapping[str, object], _wide: Format) -> _Read:
    """Read ``modelopt``: NVIDIA TensorRT Model Optimizer's unified checkpoint."""
    inner = _mapping(config, "quantization") or config
    algorithm = inner.get("quant_algo")
    ignored = _modules(inner, "exclude_modules", "ignore") or ()
    inputs = Extra("input_scale", 4, rows=None, columns=None)
    scale = Extra("scale", 4, rows=None, columns=None)
    known = {
        "NVFP4": Format(
            name="nvfp4",
            block_elements=16,
            block_bytes=9,
            block_parts=((1, "scale"), (8, "values")),
            extras=(scale, inputs),
            number_format="fp4",
        ),
        "FP8": Format(
            name="fp8 per tensor",
            block_elements=1,
            block_bytes=1,
            extras=(scale, inputs),
            number_format="fp8",
        ),
        "FP8_PB_WO": get("fp8-block128"),
        "FP8_PER_CHANNEL_PER_TOKEN": get("fp8-channel"),
        "MXFP8": get("mxfp8"),
        "W4A16_MXFP4": get("mxfp4"),
    }
    if not isinstance(algorithm, str):
        raise InvalidValueError(f"{_FIELD}.quant_algo", algorithm, "must name the algorithm")
    if algorithm not in known:
        raise UnknownNameError(f"{_FIELD}.quant_algo", algorithm, known)
    return _everywhere(known[algorithm]), ignored


def _compressed(config: Mapping[str, object], wide: Format) -> _Read:
    """Read ``compressed-tensors``: its ``config_groups``, in order."""
    rules = []
    packing = config.get("format")
    for group in _mapping(config, "config_groups").values():
        if not isinstance(group, Mapping):
            raise InvalidValueError(f"{_FIELD}.config_groups", group, "must hold objects")
        weights = _mapping(group, "weights")
        if not weights:
            continue
        targets = _modules(group, "targets") or ()
        own = group.get("format") or packing
        format = _compressed_format(weights, own, wide, _static_inputs(group))
        rules.append(Rule(format=format, targets=targets))
    if not rules:
        raise InvalidValueError(
            f"{_FIELD}.config_groups", config.get("config_groups"), "must quantise some weights"
        )
    return tuple(rules), _modules(config, "ignore") or ()


def _static_inputs(group: Mapping[str, object]) -> bool:
    inputs = _mapping(group, "input_activations")
    # "local": the scales of groups are computed, that of the tensor is stored (nvfp4).
    return bool(inputs) and inputs.get("dynamic") in {False, None, "local"}


def _compressed_format(
    weights: Mapping[str, object], packing: object, wide: Format, static_inputs: bool
) -> Format:
    """Return the format of one group: compressed-tensors ``compressors/``."""
    bits, kind = _integer(weights, "num_bits"), weights.get("type", "int")
    strategy, group = _strategy(weights)
    inputs = (Extra("input_scale", wide.block_bytes, rows=None, columns=None),)
    more = inputs if static_inputs else ()
    if kind == "float" and bits == 4:
        micro = packing == "mxfp4-pack-quantized" or group == 32
        if micro:
            return get("mxfp4")
        # The inputs' own global scale is stored, too, where they are quantised.
        both = ("scale", "input_scale") if static_inputs else ("scale",)
        return Format(
            name="nvfp4",
            block_elements=16,
            block_bytes=9,
            block_parts=((1, "scale"), (8, "values")),
            extras=tuple(Extra(scale, 4, rows=None, columns=None) for scale in both),
            number_format="fp4",
        )
    if kind == "float" and packing == "mxfp8-quantized":
        return get("mxfp8")
    symmetric = _flag(weights, "symmetric", default=True)
    if packing == "pack-quantized":
        shape = Extra("shape", 2 * 8, rows=None, columns=None)
        order = weights.get("actorder") in {True, "group"}
        return packed_integers(
            f"int{bits} {_grouping(group)}",
            bits=bits,
            group=group,
            scale_bytes=wide.block_bytes,
            zero_points=not symmetric,
            order=order,
            more=(shape, *more),
        )
    if bits not in {4, 8}:
        raise InvalidValueError(f"{_FIELD}.num_bits", bits, "must be 8 where it is not packed")
    rows: int | None = 1
    columns: int | None = None
    if strategy == "tensor":
        rows = None
    elif strategy == "block":
        rows, columns = _block(weights.get("block_structure"), "block_structure")
    elif strategy == "group":
        columns = group
    elif strategy != "channel":
        raise InvalidValueError(
            f"{_FIELD}.strategy", strategy, "must be tensor, channel, group or block"
        )
    # Unpacked values take a byte each; a zero point has the type of the values.
    extras = [Extra("scales", wide.block_bytes, rows=rows, columns=columns)]
    if not symmetric:
        extras.append(Extra("zero_points", 1, rows=rows, columns=columns))
    values = "fp8" if kind == "float" else "int8"
    return Format(
        name=f"{values} {strategy}",
        block_elements=1,
        block_bytes=1,
        extras=(*extras, *more),
        number_format=values,
    )


def _strategy(weights: Mapping[str, object]) -> tuple[object, int | None]:
    """Return what shares a scale, which a group size may say, too."""
    given = weights.get("group_size")
    group = _group(given)
    strategy = weights.get("strategy")
    if strategy is None:
        strategy = "tensor" if given is None else "channel" if group is None else "group"
    return strategy, group if strategy in {"group", "tensor_group"} else None


def _grouping(group: int | None) -> str:
    return "per row" if group is None else f"per {group}"


_METHODS: Final[Mapping[str, Callable[[Mapping[str, object], Format], _Read]]] = {
    "auto-round": _auto_round,
    "awq": _awq,
    "bitsandbytes": _bitsandbytes,
    "compressed-tensors": _compressed,
    "fbgemm_fp8": _fbgemm,
    "fp8": _fp8,
    "gptq": _gptq,
    "modelopt": _modelopt,
    "modelopt_fp4": _modelopt,
    "mxfp4": _mxfp4,
}
