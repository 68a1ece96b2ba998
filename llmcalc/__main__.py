"""The command line: ``python -m llmcalc``, thin over the library.

* ``fit``: parameters, weights, KV cache and the largest batch, with the working.
* ``step``: the least time of a step on a device, item by item; ``--plot`` draws it.
* ``sweep``: steps for several devices, layouts, formats and workloads.
* ``intensity``: FLOPs, bytes and arithmetic intensity of attention; ``--plot`` draws them.
* ``decoder init``: write random weights of a small decoder.
* ``decoder evaluate``: its logits against the expected ones of test cases.
* ``decoder kv-evaluate``: its cached against its uncached logits, at every step.
* ``decoder benchmark``: the time of a generation with and without cache.
* ``decoder plot``: the picture of a benchmark.

Tables need the extra ``cli``, pictures ``plot``, the decoder ``torch``; ``--json`` needs no table.
Results go to standard output, progress to standard error. The exit status is 0; 1 where a decoder
does not pass its evaluation; 2 for an error, which is one line on standard error.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeAlias

import attrs

from llmcalc import hardware, memory, units
from llmcalc.boundary import whole_number
from llmcalc.errors import InvalidValueError, LlmcalcError, MissingExtraError
from llmcalc.spec import ModelSpec

if TYPE_CHECKING:
    from argparse import _ActionsContainer, _SubParsersAction

    from matplotlib.figure import Figure

    from llmcalc.breakdown import Breakdown
    from llmcalc.models.modes import Benchmark, Evaluation
    from llmcalc.models.tiny_decoder import TinyDecoder

    _Commands: TypeAlias = "_SubParsersAction[_Parser]"

__all__ = ["main"]

_PROGRAM: Final = "python -m llmcalc"
_DISTRIBUTION: Final = "llmcalc-inference"

#: Llama-3-8B, the model of the assignment.
_MODEL: Final = "llama-3-8b"
_MODEL_SIZES: Final = {
    "num_layers": 32,
    "num_query_heads": 32,
    "num_kv_heads": 8,
    "embed_dim": 4096,
    "inner_dim": 14336,
    "vocab_size": 128256,
}
_MEMORY: Final = "80GiB"

#: The decoder of the assignment.
_DECODER_SIZES: Final = {
    "vocab_size": 1000,
    "d_model": 256,
    "d_ff": 1024,
    "num_layers": 2,
    "max_seq_len": 2048,
}

_MEMORY_UNITS: Final = {
    "B": 1,
    "KB": units.KB,
    "MB": units.MB,
    "GB": units.GB,
    "TB": units.TB,
    "KiB": units.KiB,
    "MiB": units.MiB,
    "GiB": units.GiB,
    "TiB": units.TiB,
}

#: Arguments beyond this are mistakes; PyTorch and matplotlib take no larger integers.
_LARGEST: Final = 2**63 - 1

#: The extra that brings each optional package.
_EXTRAS: Final = {
    "matplotlib": "plot",
    "safetensors": "torch",
    "tabulate": "cli",
    "torch": "torch",
}


class _UsageError(LlmcalcError):
    """The command line cannot be understood."""


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are raised, to be printed as one line like any other."""

    def error(self, message: str) -> NoReturn:
        raise _UsageError(f"{message} (see {self.prog} --help)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line with `argv` (by default the process's), and return the exit status.

    0, or 1 where a decoder does not pass its evaluation, or 2 for an error, which is one line on
    standard error. ``--help`` raises `SystemExit`, as `argparse` does.

    >>> from llmcalc.__main__ import main
    >>> main(["fit", "--memory", "80"])
    2
    """
    try:
        return _run(argv)
    except BrokenPipeError:
        # Who reads the output has seen enough, as `head` does.
        return 1
    except OSError as problem:
        place = problem.filename
        text = problem.strerror or str(problem)
        return _fail(text if place is None else f"{os.fsdecode(place)}: {text}")
    except LlmcalcError as problem:
        return _fail(str(problem))
    except ModuleNotFoundError as problem:
        extra = _EXTRAS.get(problem.name or "")
        if extra is None:
            raise
        return _fail(str(MissingExtraError("this command", str(problem.name), extra)))
    except (ArithmeticError, MemoryError) as problem:
        return _fail(f"the sizes are too large: {str(problem) or type(problem).__name__}")


def _run(argv: Sequence[str] | None) -> int:
    """Parse and do; print help where no command is given."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.version:
        from importlib.metadata import version

        _write(f"{_DISTRIBUTION} {version(_DISTRIBUTION)}")
        return 0
    command: Callable[[argparse.Namespace], int] | None = arguments.command
    if command is None:
        _write(arguments.parser.format_help().rstrip("\n"))
        return 0
    return command(arguments)


def _fail(message: str) -> int:
    """Print an error as one line, and return its exit status."""
    sys.stderr.write(f"llmcalc: error: {' '.join(message.split())}\n")
    return 2


def _write(text: str) -> None:
    """Write text and a line end to standard output, now, so that a failure shows here."""
    output = sys.stdout
    try:
        try:
            output.write(text + "\n")
        except UnicodeEncodeError:
            encoding = output.encoding
            output.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")
        output.flush()
    except OSError:
        # What is still buffered would fail again when the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), output.fileno())
        raise


def _write_json(values: Mapping[str, object]) -> None:
    """Write JSON; what is no finite number becomes null, which JSON can say."""
    _write(json.dumps(_finite(values), indent=2, allow_nan=False))


def _finite(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return value


def _table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    from tabulate import tabulate

    return tabulate(
        list(rows), headers=list(headers), disable_numparse=True, stralign="right", numalign="right"
    )


# ---- Arguments ---------------------------------------------------------------------------------


def _integer(text: str) -> int:
    """Return an integer argument of at most 64 bits; the library says what it may be."""
    try:
        number = int(text) if len(text) <= 40 else None
    except ValueError:
        number = None
    if number is None or abs(number) > _LARGEST:
        raise argparse.ArgumentTypeError(f"{_short(text)} is not an integer of at most 2**63 - 1")
    return number


def _seed(text: str) -> int:
    number = _integer(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{number} is not an integer of at least 0")
    return number


def _memory(text: str) -> int:
    """Return the bytes that text such as ``80GiB`` or ``0.5 TB`` says, exactly.

    >>> from llmcalc.__main__ import _memory
    >>> _memory("80GiB"), _memory("1.5 KiB")
    (85899345920, 1536)
    """
    match = re.fullmatch(r"\s*([0-9]{1,18})(?:\.([0-9]{1,18}))?\s*([A-Za-z]*)\s*", text)
    scale = _MEMORY_UNITS.get(match[3]) if match is not None else None
    if match is None or scale is None:
        known = ", ".join(_MEMORY_UNITS)
        raise argparse.ArgumentTypeError(
            f"{_short(text)} is not a number with its unit, such as 80GiB or 80GB; units: {known}"
        )
    decimals = match[2] or ""
    unit: int = 10 ** len(decimals)
    size, rest = divmod(int(match[1] + decimals) * scale, unit)
    if rest or size > _LARGEST:
        raise argparse.ArgumentTypeError(
            f"{_short(text)} is not a whole number of bytes in 63 bits"
        )
    return size


def _short(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:77] + "...")


def _chosen(arguments: argparse.Namespace, names: Iterable[str]) -> dict[str, Any]:
    """Return those of the named arguments that were given."""
    values = {name: getattr(arguments, name) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _refuse(arguments: argparse.Namespace, names: Iterable[str], beside: str) -> None:
    """Refuse arguments that would have no effect beside another one."""
    given = [
        _option(name) for name, value in _chosen(arguments, names).items() if value is not False
    ]
    if given:
        raise _UsageError(f"argument {given[0]}: not allowed with argument {beside}")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog=_PROGRAM,
        description="The arithmetic of large-language-model inference, with the working shown.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    parser.set_defaults(command=None, parser=parser)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    _add_fit(commands)
    _add_step(commands)
    _add_sweep(commands)
    _add_intensity(commands)
    group = commands.add_parser(
        "decoder",
        help="make, check and time a small decoder (extra torch)",
        description="Make, check and time a small decoder in PyTorch, the assignment's by default.",
        allow_abbrev=False,
    )
    group.set_defaults(parser=group)
    _add_decoder(group.add_subparsers(title="commands", metavar="COMMAND"))
    return parser


def _command(
    commands: _Commands,
    name: str,
    command: Callable[[argparse.Namespace], int],
    summary: str,
    more: str = "",
) -> _Parser:
    """Add a command with its ``--json``."""
    text = f"{summary[0].upper()}{summary[1:]}. {more}".strip()
    parser = commands.add_parser(name, help=summary, description=text, allow_abbrev=False)
    parser.set_defaults(command=command)
    parser.add_argument("--json", action="store_true", help="print JSON, all integers exact")
    return parser


def _several(
    parser: _ActionsContainer,
    option: str,
    default: Sequence[int],
    text: str,
    *,
    stated: bool = False,
) -> None:
    """Add an option of one or more integers; where `stated`, the default is the library's."""
    shown = " ".join(map(str, default))
    parser.add_argument(
        option,
        nargs="+",
        type=_integer,
        metavar="N",
        default=None if stated else list(default),
        help=f"{text} (default: {shown})",
    )


def _sizes(parser: _ActionsContainer, sizes: Mapping[str, int]) -> None:
    for name, default in sizes.items():
        parser.add_argument(_option(name), type=_integer, metavar="N", help=f"default: {default}")


# ---- fit ---------------------------------------------------------------------------------------


def _add_fit(commands: _Commands) -> None:
    parser = _command(
        commands,
        "fit",
        _fit,
        "what a model needs, and how many requests fit on a device",
        "Without a model, Llama-3-8B on 80 GiB.",
    )
    _add_model(parser)
    place = parser.add_mutually_exclusive_group()
    place.add_argument(
        "--memory",
        type=_memory,
        metavar="SIZE",
        help=f"memory of each device with its unit, such as 80GiB or 80GB (default: {_MEMORY})",
    )
    place.add_argument("--device", metavar="NAME", help="take the memory of a catalogued device")
    parser.add_argument(
        "--weights", default="bf16", metavar="FORMAT", help="format of weights (default: bf16)"
    )
    parser.add_argument(
        "--kv", default="bf16", metavar="FORMAT", help="format of keys and values (default: bf16)"
    )
    _several(parser, "--tp", [1], "tensor-parallel degrees")
    _several(parser, "--context", [1024, 2048, 4096], "tokens of each request")
    parser.add_argument("--explain", action="store_true", help="show the working of weights, too")


def _add_model(parser: argparse.ArgumentParser) -> None:
    model = parser.add_argument_group("model", "a config.json, or sizes; by default Llama-3-8B")
    model.add_argument("--config", metavar="MODEL", help="config.json, or the folder that holds it")
    _sizes(model, _MODEL_SIZES)
    model.add_argument(
        "--head-dim", type=_integer, metavar="N", help="default: embed-dim / num-query-heads"
    )
    model.add_argument(
        "--assignment",
        action="store_true",
        help="count parameters as the course assignment does, not exactly",
    )


def _model(arguments: argparse.Namespace) -> ModelSpec:
    """Return the model that the arguments describe."""
    if arguments.config is not None:
        _refuse(arguments, [*_MODEL_SIZES, "head_dim", "assignment"], "--config")
        return _load(arguments.config)
    chosen = _chosen(arguments, _MODEL_SIZES)
    name = "model" if chosen or arguments.head_dim is not None else _MODEL
    sizes: dict[str, Any] = {**_MODEL_SIZES, **chosen}
    if arguments.assignment:
        _refuse(arguments, ["head_dim"], "--assignment")
        return ModelSpec.assignment(name=name, **sizes)
    return ModelSpec.dense(name=name, head_dim=arguments.head_dim, **sizes)


def _load(source: str) -> ModelSpec:
    from llmcalc.huggingface import load_model

    return load_model(source)


def _fit(arguments: argparse.Namespace) -> int:
    spec = _model(arguments)
    device = None if arguments.device is None else hardware.get(arguments.device)
    if device is not None:
        size = device.memory_bytes
    else:
        size = _memory(_MEMORY) if arguments.memory is None else arguments.memory
    answers = [
        (degree, _largest_fit(spec, arguments, size, context, degree))
        for degree in arguments.tp
        for context in arguments.context
    ]
    parameters = memory.parameters(spec)
    counting = "the assignment's count" if arguments.assignment else "exact count"
    if arguments.json:
        _write_json(
            {
                "model": spec.name,
                "counting": "assignment" if arguments.assignment else "exact",
                "parameters": parameters.total,
                "max_positions": spec.max_positions,
                "device": None if device is None else device.name,
                "device_memory_bytes": size,
                "weights": arguments.weights,
                "kv": arguments.kv,
                "rows": [_fit_values(degree, answer) for degree, answer in answers],
                "notes": list(spec.notes),
            }
        )
        return 0
    where = "each device" if device is None else f"each {device.name}"
    lines = [
        f"{spec.name}: {units.format_quantity(parameters.total, units.Params)} ({counting})",
        f"{where}: {units.format_quantity(size, units.Bytes)}",
        f"weights in {arguments.weights}, KV cache in {arguments.kv}",
        "",
        _table(
            (
                "tensor parallel",
                "context",
                "parameters",
                "weights GiB/device",
                "KV GiB/request/device",
                "max batch",
            ),
            [
                (
                    str(degree),
                    str(answer.context),
                    units.format_integer(parameters.total),
                    _gib(answer.weight_bytes.total),
                    _gib(answer.cache_bytes.total),
                    _batch_text(answer),
                )
                for degree, answer in answers
            ],
        ),
    ]
    if arguments.explain:
        lines += ["", parameters.explain()]
    for degree, answer in answers:
        lines += ["", f"tensor parallel {degree}, context {answer.context}:"]
        lines += [_working(answer, everything=arguments.explain)]
    lines += ["", *_remarks(spec, arguments.context)]
    _write("\n".join(lines).rstrip())
    return 0


def _largest_fit(
    spec: ModelSpec, arguments: argparse.Namespace, size: int, context: int, degree: int
) -> memory.Fit:
    """Return the fit of the largest batch, or of one request where not even one fits."""
    answer = memory.fit(
        spec,
        device_memory=size,
        context=context,
        weights=arguments.weights,
        kv=arguments.kv,
        tensor_parallel=degree,
    )
    return attrs.evolve(answer, batch=answer.max_batch_size or 1)


def _fit_values(degree: int, answer: memory.Fit) -> dict[str, object]:
    return {
        "tensor_parallel": degree,
        "context": answer.context,
        "weight_bytes": answer.weight_bytes.total,
        "kv_cache_bytes": answer.cache_bytes.total,
        "max_batch_size": answer.max_batch_size,
        "fits": answer.fits,
        "left_bytes": answer.left_bytes,
        "short_bytes": answer.short_bytes,
        "reason": answer.reason,
        "working": {
            "weights": _terms(answer.weight_bytes),
            "kv_cache": _terms(answer.cache_bytes),
        },
    }


def _terms(breakdown: Breakdown[units.Bytes]) -> list[dict[str, object]]:
    return [
        {
            "path": [name for name in term.path if name],
            "factors": [{"value": value, "name": name} for value, name in term.factors],
            "bytes": term.value,
        }
        for term in breakdown.terms
    ]


def _working(answer: memory.Fit, *, everything: bool) -> str:
    """Return the working; the weights' only where `everything` is asked for."""
    text = answer.explain()
    if not everything:
        text = text.removeprefix(answer.weight_bytes.explain()).lstrip("\n")
    return "\n".join("  " + line for line in text.splitlines())


def _batch_text(answer: memory.Fit) -> str:
    if answer.max_batch_size is None:
        return "not limited"
    return units.format_integer(answer.max_batch_size)


def _remarks(spec: ModelSpec, contexts: Iterable[int]) -> list[str]:
    """Say what the reader of a config noted, and which contexts the model was not made for."""
    remarks = [f"note: {note}" for note in spec.notes]
    limit = spec.max_positions
    beyond = [] if limit is None else [str(context) for context in contexts if context > limit]
    if beyond:
        remarks.append(f"note: the model was made for {limit} positions, not {', '.join(beyond)}")
    return remarks


def _gib(size: int) -> str:
    """Return bytes in GiB to three decimals, and small ones to three digits."""
    value = size / units.GiB
    return f"{value:.3f}" if value >= 0.1 or not size else f"{value:.3g}"


# ---- step and sweep ----------------------------------------------------------------------------

#: What ``sweep`` prints of its table.
_SHOWN: Final = (
    *("device", "layout", "weights", "kv", "batch", "new", "past"),
    *("seconds", "bound_seconds", "bound", "tokens_per_second", "needed_bytes", "fits"),
)

_DEVICE: Final = "H100-SXM-80GB"


def _add_step(commands: _Commands) -> None:
    parser = _command(
        commands,
        "step",
        _step,
        "the least time of a step on a device, item by item",
        "By default a decode step of one request with a context of 4096.",
    )
    _add_model(parser)
    parser.add_argument("--device", default=_DEVICE, metavar="NAME", help=f"default: {_DEVICE}")
    for option, default, text in (
        ("--batch", 1, "requests"),
        ("--new", 1, "new tokens of each request"),
        ("--past", 4095, "tokens of each request before these; 0 for a prefill"),
        ("--tp", 1, "tensor-parallel degree"),
    ):
        parser.add_argument(
            option, type=_integer, default=default, metavar="N", help=f"{text} (default: {default})"
        )
    for option, text in (("--weights", "weights"), ("--kv", "keys and values")):
        parser.add_argument(
            option, default="bf16", metavar="FORMAT", help=f"format of {text} (default: bf16)"
        )
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw roofline and times")


def _step(arguments: argparse.Namespace) -> int:
    from llmcalc.roofline import step_time

    spec = _model(arguments)
    step = step_time(
        spec,
        arguments.device,
        batch=arguments.batch,
        new=arguments.new,
        past=arguments.past,
        weights=arguments.weights,
        kv=arguments.kv,
        tensor_parallel=arguments.tp,
    )
    if arguments.plot is not None:
        from llmcalc import plots

        figure = _figure(arguments.plot, (14.0, 5.2))
        left, right = figure.subplots(1, 2)
        plots.roofline(step, ax=left)
        plots.time_breakdown(step, ax=right)
        _save(figure, arguments.plot)
    if arguments.json:
        _write_json(
            {
                "model": spec.name,
                "device": step.device.name,
                **{name: getattr(arguments, name) for name in ("batch", "new", "past")},
                "weights": arguments.weights,
                "kv": arguments.kv,
                "tensor_parallel": arguments.tp,
                "flops": step.flops.total,
                "bytes": step.bytes.total,
                **{
                    name: getattr(step, name)
                    for name in (
                        *("seconds", "bound_seconds", "bound", "compute_seconds"),
                        *("memory_seconds", "communication_seconds", "intensity", "ridge_point"),
                    )
                },
                "items": [
                    {
                        "path": [name for name in item.path if name],
                        "flops": item.flops,
                        "bytes": item.bytes,
                        "seconds": item.seconds,
                        "bound": item.bound,
                    }
                    for item in step.items
                ],
                "notes": list(spec.notes),
            }
        )
        return 0
    remarks = _remarks(spec, [arguments.past + arguments.new])
    _write("\n".join([step.explain(), *remarks]).rstrip())
    return 0


def _add_sweep(commands: _Commands) -> None:
    parser = _command(
        commands,
        "sweep",
        _sweep,
        "steps for several devices, layouts, formats and workloads, as a table",
        "Every device is combined with every degree, format and workload.",
    )
    _add_model(parser)
    parser.add_argument(
        "--device",
        nargs="+",
        default=[_DEVICE],
        metavar="NAME",
        help=f"devices (default: {_DEVICE})",
    )
    _several(parser, "--tp", [1], "tensor-parallel degrees")
    for option, text in (("--weights", "weights"), ("--kv", "keys and values")):
        parser.add_argument(
            option,
            nargs="+",
            default=["bf16"],
            metavar="FORMAT",
            help=f"formats of {text} (default: bf16)",
        )
    _several(parser, "--batch", [1, 8, 32, 128], "requests")
    _several(parser, "--new", [1], "new tokens of each request")
    _several(parser, "--past", [4095], "tokens of each request before these")


def _sweep(arguments: argparse.Namespace) -> int:
    import numpy as np

    from llmcalc.roofline import sweep

    spec = _model(arguments)
    table = sweep(
        spec,
        devices=arguments.device,
        tensor_parallel=arguments.tp,
        weights=arguments.weights,
        kv=arguments.kv,
        batch=np.array(arguments.batch)[:, None, None],
        new=np.array(arguments.new)[:, None],
        past=np.array(arguments.past),
    )
    refused = list(table.refused)
    if arguments.json:
        _write_json(
            {
                "model": spec.name,
                "units": table.units,
                "rows": list(table),
                "refused": refused,
                "notes": [*spec.notes, *table.notes],
            }
        )
        return 0
    headers, *rows = table.select(*_SHOWN).texts()
    lines = [spec.name, "", _table(headers, rows)]
    notes = [f"note: {note}" for note in (*spec.notes, *table.notes)]
    notes += [f"refused: {', '.join(row.values())}" for row in refused]
    _write("\n".join([*lines, *([""] if notes else []), *notes]))
    return 0


# ---- intensity ---------------------------------------------------------------------------------

_ALGORITHMS: Final = ("standard", "flash", "assignment")


def _add_intensity(commands: _Commands) -> None:
    parser = _command(
        commands,
        "intensity",
        _intensity,
        "arithmetic intensity of attention",
        "Prefill at several contexts, decode at several batch sizes.",
    )
    parser.add_argument(
        "--algorithm",
        nargs="+",
        choices=_ALGORITHMS,
        default=["standard"],
        help="how attention moves data; several are compared (default: standard)",
    )
    _several(parser, "--context", [512, 1024, 2048, 4096, 8192], "contexts of the prefills")
    _several(parser, "--batch", [1, 2, 4, 8, 16, 32, 64, 128], "batch sizes of the decode steps")
    for option, default, text in (
        ("--decode-context", 1024, "context of the decode steps"),
        ("--head-dim", 128, "width of a head"),
        ("--element-bytes", 2, "bytes of an element"),
        ("--query-heads", 1, "query heads"),
        ("--kv-heads", 1, "KV heads, which divide the query heads"),
        ("--softmax-flops", 5, "FLOPs of the softmax per score"),
    ):
        parser.add_argument(
            option, type=_integer, default=default, metavar="N", help=f"{text} (default: {default})"
        )
    parser.add_argument(
        "--causal", action="store_true", help="attend positions up to a query's own only"
    )
    parser.add_argument(
        "--shared-kv",
        action=argparse.BooleanOptionalAction,
        help="whether a decoded batch reads one KV cache (default: the algorithm's convention)",
    )
    parser.add_argument("--device", metavar="NAME", help="compare with a device's ridge point")
    parser.add_argument(
        "--format", default="bf16", help="number format of the ridge point (default: bf16)"
    )
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="draw prefill and decode into a picture"
    )


def _intensity(arguments: argparse.Namespace) -> int:
    device = None if arguments.device is None else hardware.get(arguments.device)
    ridge = None if device is None else device.ridge_point(arguments.format)
    rows = [
        _attention(arguments, algorithm, phase, queries=queries, keys=keys, batch=batch)
        for algorithm in dict.fromkeys(arguments.algorithm)
        for phase, queries, keys, batch in (
            *(("prefill", context, context, 1) for context in arguments.context),
            *(("decode", 1, arguments.decode_context, batch) for batch in arguments.batch),
        )
    ]
    if arguments.plot is not None:
        _plot_intensity(arguments, device)
    if arguments.json:
        values = {
            name: getattr(arguments, name)
            for name in (
                *("head_dim", "element_bytes", "query_heads", "kv_heads"),
                *("softmax_flops", "causal", "shared_kv"),
            )
        }
        point = None
        if device is not None:
            point = {"device": device.name, "format": arguments.format, "flop_per_byte": ridge}
        plot = None if arguments.plot is None else str(arguments.plot)
        _write_json({**values, "ridge": point, "rows": rows, "plot": plot})
        return 0
    headers = ["algorithm", "phase", "queries", "keys", "batch", "FLOP", "bytes", "FLOP/byte"]
    bounds: list[list[str]] = [[] for _ in rows]
    if ridge is not None:
        headers.append("bound by")
        bounds = [["memory" if row["intensity"] < ridge else "compute"] for row in rows]
    lines = [
        _table(
            headers,
            [
                [
                    row["algorithm"],
                    row["phase"],
                    *(units.format_integer(row[name]) for name in ("queries", "keys", "batch")),
                    *(units.format_integer(row[name]) for name in ("flops", "bytes")),
                    f"{row['intensity']:.3f}",
                    *bound,
                ]
                for row, bound in zip(rows, bounds, strict=True)
            ],
        )
    ]
    if device is not None:
        lines += ["", f"ridge point of {device.name}, {arguments.format}: {ridge:.1f} FLOP/byte"]
    if arguments.plot is not None:
        lines += ["", f"written: {arguments.plot}"]
    _write("\n".join(lines))
    return 0


def _attention(
    arguments: argparse.Namespace, algorithm: Any, phase: str, **shape: int
) -> dict[str, Any]:
    """Return the figures of one attention call."""
    from llmcalc import roofline

    attention: Any = roofline  # keywords by the mapping, which no overload describes
    heads = {"head_dim": arguments.head_dim, "query_heads": arguments.query_heads}
    work = {"causal": arguments.causal, "softmax_flops": arguments.softmax_flops}
    moved = {
        "kv_heads": arguments.kv_heads,
        "element_bytes": arguments.element_bytes,
        "algorithm": algorithm,
        "shared_kv": arguments.shared_kv,
    }
    return {
        "algorithm": algorithm,
        "phase": phase,
        **shape,
        "flops": attention.attention_flops(**shape, **heads, **work),
        "bytes": attention.attention_bytes(**shape, **heads, **moved, causal=arguments.causal),
        "intensity": attention.attention_intensity(**shape, **heads, **work, **moved),
    }


def _plot_intensity(arguments: argparse.Namespace, device: hardware.DeviceSpec | None) -> None:
    from llmcalc import plots

    figure = _figure(arguments.plot, (14.0, 5.2))
    left, right = figure.subplots(1, 2)
    common: dict[str, Any] = {
        name: getattr(arguments, name)
        for name in (
            "head_dim",
            "element_bytes",
            "query_heads",
            "kv_heads",
            "softmax_flops",
            "format",
        )
    }
    common |= {"algorithm": list(dict.fromkeys(arguments.algorithm)), "device": device}
    plots.prefill_intensity(
        contexts=sorted(arguments.context), causal=arguments.causal, ax=left, **common
    )
    plots.decode_intensity(
        batches=sorted(arguments.batch),
        context=arguments.decode_context,
        shared_kv=arguments.shared_kv,
        ax=right,
        **common,
    )
    _save(figure, arguments.plot)


def _figure(path: Path, size: tuple[float, float]) -> Figure:
    """Return an empty figure; refuse a file that it could not be written to, before any work."""
    from matplotlib import figure as figures

    figure = figures.Figure(figsize=size, layout="constrained")
    kinds = figure.canvas.get_supported_filetypes()
    if _kind(path) not in kinds:
        raise InvalidValueError("plot", str(path), f"must end in one of {', '.join(kinds)}")
    if not path.parent.is_dir():
        raise InvalidValueError("plot", str(path), "must be in a folder that exists")
    return figure


def _save(figure: Figure, path: Path) -> None:
    # The format is named, or matplotlib would add an ending to a name without one.
    figure.savefig(path, format=_kind(path), dpi=150)


def _kind(path: Path) -> str:
    return path.suffix.removeprefix(".").lower() or "png"


# ---- decoder -----------------------------------------------------------------------------------

_PROMPT_LENGTHS: Final = (10, 50, 100, 500, 1000)

#: The arguments of a benchmark that is run; what is not given is left to the library.
_BENCHMARK: Final = ("prompt_lengths", "new_tokens", "batch", "repeats", "seed")

_MOST_THREADS: Final = 1024

_JSON_CASES: Final = (
    'JSON: [{"prompt": [ids], "expected_logits": [last token] or [[every token]], "tolerance": x}]'
)


def _add_decoder(commands: _Commands) -> None:
    init = _command(commands, "init", _guarded(_init), "write random weights to a file")
    init.add_argument("file", metavar="FILE", help="safetensors where it ends so, else a .pt file")
    init.add_argument("--seed", type=_seed, default=0, metavar="N", help="default: 0")
    _add_spec(init)

    evaluate = _command(
        commands,
        "evaluate",
        _guarded(_evaluate),
        "compare logits with the expected ones of test cases",
        "The exit status is 1 where a case fails.",
    )
    evaluate.add_argument("weights", metavar="WEIGHTS", help="a weights file")
    evaluate.add_argument("cases", metavar="CASES", help=_JSON_CASES)
    _add_spec(evaluate)

    compare = _command(
        commands,
        "kv-evaluate",
        _guarded(_kv_evaluate),
        "compare cached with uncached logits, at every step",
        "The exit status is 1 where a prompt fails.",
    )
    compare.add_argument("weights", metavar="WEIGHTS", help="a weights file")
    compare.add_argument(
        "cases", metavar="CASES", nargs="?", help="test cases for prompts (default: random prompts)"
    )
    _several(compare, "--prompt-lengths", (1, 10, 50), "lengths of random prompts", stated=True)
    compare.add_argument("--seed", type=_seed, metavar="N", help="of random prompts (default: 0)")
    for option, text in (
        ("--new-tokens", "steps compared after each prompt (default: 20)"),
        ("--prefill-chunk-size", "read prompts in chunks of this size"),
    ):
        compare.add_argument(option, type=_integer, metavar="N", help=text)
    compare.add_argument(
        "--tolerance", type=float, metavar="X", help="largest relative difference (default: 1e-4)"
    )
    _add_spec(compare)

    bench = _command(
        commands, "benchmark", _guarded(_benchmark), "time generation with and without cache"
    )
    _add_benchmark(bench)

    plot = _command(commands, "plot", _guarded(_plot), "draw a benchmark into a picture")
    plot.add_argument("file", metavar="FILE", type=Path, help="the picture")
    plot.add_argument(
        "--benchmark",
        metavar="JSON",
        help="what `decoder benchmark --json` printed; without, a benchmark is run",
    )
    _add_benchmark(plot)


def _add_spec(parser: _Parser) -> None:
    """Add the arguments that say which decoder it is."""
    sizes = parser.add_argument_group(
        "decoder", "the assignment's, by sizes, or a dense config.json"
    )
    sizes.add_argument("--config", metavar="MODEL", help="config.json, or the folder that holds it")
    _sizes(sizes, _DECODER_SIZES)
    sizes.add_argument("--dtype", choices=("float32", "float64"), help="default: float32")
    sizes.add_argument(
        "--threads", type=_integer, metavar="N", help="threads of PyTorch (default: 1)"
    )


def _add_benchmark(parser: _Parser) -> None:
    """Add the arguments of a benchmark that is run."""
    parser.add_argument(
        "--weights", metavar="WEIGHTS", help="a weights file (default: random weights)"
    )
    _several(parser, "--prompt-lengths", _PROMPT_LENGTHS, "lengths of the prompts", stated=True)
    for option, text in (
        ("--new-tokens", "tokens generated after each prompt (default: 20)"),
        ("--batch", "prompts at a time (default: 1)"),
        ("--repeats", "runs whose median is taken (default: 5)"),
    ):
        parser.add_argument(option, type=_integer, metavar="N", help=text)
    parser.add_argument(
        "--seed", type=_seed, metavar="N", help="of prompts and weights (default: 0)"
    )
    _add_spec(parser)


def _guarded(command: Callable[[argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
    """Return `command` with what PyTorch cannot do, such as allocate, as the library's error."""

    def guarded(arguments: argparse.Namespace) -> int:
        try:
            return command(arguments)
        except RuntimeError as problem:
            reason = str(problem).partition("\n")[0] or type(problem).__name__
            raise LlmcalcError(f"PyTorch: {reason}") from problem

    return guarded


def _decoder(arguments: argparse.Namespace, weights: str | None, seed: int = 0) -> TinyDecoder:
    """Return the decoder that the arguments describe, with its weights or with random ones."""
    import torch

    from llmcalc.models.tiny_decoder import TinyDecoder
    from llmcalc.models.weights import load_weights

    # More threads than free cores make a small model slower, and its times incomparable.
    threads = whole_number(1 if arguments.threads is None else arguments.threads, "threads")
    if not 1 <= threads <= _MOST_THREADS:
        raise InvalidValueError("threads", threads, f"must be from 1 to {_MOST_THREADS}")
    torch.set_num_threads(threads)
    if arguments.config is None:
        spec = ModelSpec.assignment_decoder(**(_DECODER_SIZES | _chosen(arguments, _DECODER_SIZES)))
    else:
        _refuse(arguments, _DECODER_SIZES, "--config")
        spec = _load(arguments.config)
    generator = torch.Generator().manual_seed(seed)
    dtype = getattr(torch, arguments.dtype or "float32")
    decoder = TinyDecoder(spec, dtype=dtype, generator=generator).eval()
    return decoder if weights is None else load_weights(decoder, weights)


def _init(arguments: argparse.Namespace) -> int:
    decoder = _decoder(arguments, None, arguments.seed)
    from llmcalc.models.weights import save_weights

    save_weights(decoder, arguments.file)
    parameters = memory.parameters(decoder.spec).total
    if arguments.json:
        _write_json({"file": arguments.file, "parameters": parameters, "seed": arguments.seed})
    else:
        text = units.format_quantity(parameters, units.Params)
        _write(f"written: {arguments.file} ({text}, seed {arguments.seed})")
    return 0


def _evaluate(arguments: argparse.Namespace) -> int:
    decoder = _decoder(arguments, arguments.weights)
    from llmcalc.models import modes

    return _report(arguments, modes.evaluate(decoder, modes.load_cases(arguments.cases)))


def _kv_evaluate(arguments: argparse.Namespace) -> int:
    if arguments.cases is not None:
        _refuse(arguments, ("prompt_lengths", "seed"), "CASES")
    decoder = _decoder(arguments, arguments.weights)
    from llmcalc.models import modes

    if arguments.cases is None:
        prompts = _random_prompts(
            decoder, arguments.prompt_lengths or (1, 10, 50), arguments.seed or 0
        )
    else:
        prompts = [case.prompt for case in modes.load_cases(arguments.cases)]
    given = _chosen(arguments, ("new_tokens", "prefill_chunk_size", "tolerance"))
    return _report(arguments, modes.kv_evaluate(decoder, prompts, **given))


def _random_prompts(decoder: TinyDecoder, lengths: Iterable[int], seed: int) -> list[Sequence[int]]:
    """Draw one prompt of each length."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    vocabulary = decoder.spec.embedding.vocab_size
    counts = [whole_number(length, "prompt_lengths", minimum=1) for length in lengths]
    return [torch.randint(vocabulary, (count,), generator=generator).tolist() for count in counts]


def _report(arguments: argparse.Namespace, evaluation: Evaluation) -> int:
    """Print an evaluation; the exit status says whether it passed."""
    values = evaluation.to_dict()
    if arguments.json:
        _write_json(values)
    else:
        rows = [
            (
                str(number),
                "pass" if result.passed else "FAIL",
                f"{result.difference:.3g}",
                f"{result.tolerance:.3g}",
            )
            for number, result in enumerate(evaluation.results, start=1)
        ]
        table = _table(("case", "result", "worst difference", "tolerance"), rows)
        _write(
            f"{table}\n\npassed {values['passed']} of {values['cases']} "
            f"({values['pass_rate']:.1%}), worst difference {values['worst_difference']:.3g}"
        )
    return 0 if evaluation.passed == len(evaluation.results) else 1


def _run_benchmark(arguments: argparse.Namespace) -> Benchmark:
    decoder = _decoder(arguments, arguments.weights, arguments.seed or 0)
    from llmcalc.models import modes

    return modes.benchmark(decoder, progress=_progress, **_chosen(arguments, _BENCHMARK))


def _progress(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def _benchmark(arguments: argparse.Namespace) -> int:
    result = _run_benchmark(arguments)
    if arguments.json:
        _write_json(result.to_dict())
        return 0
    rows = [
        (
            str(row.prompt_length),
            str(row.new_tokens),
            f"{row.uncached_seconds:.4f}",
            f"{row.cached_seconds:.4f}",
            f"{row.speedup:.2f}",
        )
        for row in result.rows
    ]
    headers = ("prompt", "new tokens", "without cache s", "with cache s", "speed-up")
    _write(f"{_table(headers, rows)}\n\nmedians of {result.repeats} runs")
    return 0


@attrs.frozen
class _Timing:
    """One row of a benchmark, as a file says it."""

    prompt_length: int
    uncached_seconds: float
    cached_seconds: float


def _plot(arguments: argparse.Namespace) -> int:
    from llmcalc import plots

    figure = _figure(arguments.file, (7.0, 4.6))
    if arguments.benchmark is None:
        values = _run_benchmark(arguments).to_dict()
    else:
        running = (*_BENCHMARK, "weights", "threads", "dtype", "config", *_DECODER_SIZES)
        _refuse(arguments, running, "--benchmark")
        values = _read_benchmark(arguments.benchmark)
    plots.latency(_timings(values["rows"]), ax=figure.subplots())
    _save(figure, arguments.file)
    if arguments.json:
        _write_json({**values, "plot": str(arguments.file)})
    else:
        _write(f"written: {arguments.file}")
    return 0


def _read_benchmark(path: str) -> dict[str, Any]:
    """Return what a benchmark printed as JSON."""
    try:
        values = json.loads(Path(path).read_bytes())
    except (ValueError, RecursionError) as problem:
        raise InvalidValueError(
            "benchmark", path, f"cannot be read as JSON: {problem}"
        ) from problem
    if not isinstance(values, dict) or not isinstance(values.get("rows"), list):
        raise InvalidValueError("benchmark", path, "must hold an object with a list of rows")
    return values


def _timings(rows: Iterable[object]) -> list[_Timing]:
    timings = []
    for index, row in enumerate(rows):
        place = f"rows[{index}]"
        if not isinstance(row, dict):
            raise InvalidValueError(place, row, "must be an object")
        fields = [field.name for field in attrs.fields(_Timing)]
        missing = [name for name in fields if name not in row]
        if missing:
            raise InvalidValueError(place, missing, "fields that are missing")
        timing = _Timing(**{name: row[name] for name in fields})
        whole_number(timing.prompt_length, f"{place}.prompt_length", minimum=1)
        timings.append(timing)
    return timings


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
