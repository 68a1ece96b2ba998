"""What to do with a `TinyDecoder`: evaluate it, compare cached with uncached, time it.

* `load_cases`: test cases from a JSON file; `Case` is one.
* `evaluate`: logits against the expected ones of test cases.
* `kv_evaluate`: cached against uncached logits, at every step of a generation.
* `benchmark`: the time of a generation with and without cache, by prompt length.

Each returns a frozen result with ``to_dict()``, for JSON.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import attrs
import torch
from torch import Tensor

from llmcalc.boundary import whole_number
from llmcalc.errors import InvalidValueError
from llmcalc.models.tiny_decoder import TinyDecoder

__all__ = [
    "Benchmark",
    "BenchmarkRow",
    "Case",
    "CaseResult",
    "Evaluation",
    "benchmark",
    "evaluate",
    "kv_evaluate",
    "load_cases",
]

#: A difference counts relative to the largest logit, but never to less than 1.
TOLERANCE: Final = 1e-4


@attrs.frozen(kw_only=True)
class Case:
    """A prompt and the logits it must give: one row for the last token, or one for every token."""

    prompt: tuple[int, ...]
    expected_logits: tuple[tuple[float, ...], ...]
    tolerance: float = TOLERANCE


@attrs.frozen(kw_only=True)
class CaseResult:
    """The worst difference of one case or prompt: max |got - expected| / max(1, max |expected|)."""

    passed: bool
    difference: float
    tolerance: float


@attrs.frozen(kw_only=True)
class Evaluation:
    """The results of all cases."""

    results: tuple[CaseResult, ...]

    @property
    def passed(self) -> int:
        """How many passed."""
        return sum(result.passed for result in self.results)

    @property
    def pass_rate(self) -> float:
        """The share that passed, from 0 to 1."""
        return self.passed / len(self.results)

    @property
    def worst_difference(self) -> float:
        """The largest difference of any case."""
        return max(result.difference for result in self.results)

    def to_dict(self) -> dict[str, Any]:
        """Return the figures for JSON."""
        return {
            "cases": len(self.results),
            "passed": self.passed,
            "pass_rate": self.pass_rate,
            "worst_difference": self.worst_difference,
            "results": [attrs.asdict(result) for result in self.results],
        }


@attrs.frozen(kw_only=True)
class BenchmarkRow:
    """The median seconds of one generation, without and with cache."""

    prompt_length: int
    new_tokens: int
    uncached_seconds: float
    cached_seconds: float

    @property
    def speedup(self) -> float:
        """How many times faster the cache makes it."""
        return self.uncached_seconds / self.cached_seconds


@attrs.frozen(kw_only=True)
class Benchmark:
    """The rows of a benchmark, by prompt length."""

    rows: tuple[BenchmarkRow, ...]
    repeats: int

    def to_dict(self) -> dict[str, Any]:
        """Return the figures for JSON."""
        rows = [attrs.asdict(row) | {"speedup": row.speedup} for row in self.rows]
        return {"repeats": self.repeats, "rows": rows}


def load_cases(path: str | os.PathLike[str]) -> tuple[Case, ...]:
    """Return the test cases in a JSON file.

    The file holds a list of objects with ``prompt`` (token ids), ``expected_logits`` (numbers for
    the last token, or a list of numbers for every token) and, if wanted, ``tolerance``. Raises
    `llmcalc.LlmcalcError`, naming the case and the field, for anything else.
    """
    name = os.fspath(path)
    try:
        with open(name, encoding="utf-8") as file:  # noqa: PTH123
            values = json.load(file)
    except (OSError, ValueError, RecursionError) as problem:
        raise InvalidValueError("path", name, f"cannot be read as JSON: {problem}") from problem
    if not isinstance(values, list) or not values:
        raise InvalidValueError("path", name, "must hold a list of test cases, not empty")
    return tuple(_case(value, f"cases[{index}]") for index, value in enumerate(values))


def _case(value: object, place: str) -> Case:
    if not isinstance(value, dict):
        raise InvalidValueError(place, value, "must be an object")
    unknown = value.keys() - {"prompt", "expected_logits", "tolerance"}
    if unknown:
        raise InvalidValueError(place, sorted(unknown), "fields that a test case does not have")
    prompt, expected = value.get("prompt"), value.get("expected_logits")
    if not isinstance(prompt, list) or not prompt:
        raise InvalidValueError(f"{place}.prompt", prompt, "must be a list of token ids, not empty")
    tokens = tuple(whole_number(token, f"{place}.prompt") for token in prompt)
    if not isinstance(expected, list) or not expected:
        raise InvalidValueError(f"{place}.expected_logits", expected, "must be a list, not empty")
    rows = expected if isinstance(expected[0], list) else [expected]
    if isinstance(expected[0], list) and len(rows) != len(tokens):
        raise InvalidValueError(
            f"{place}.expected_logits",
            len(rows),
            f"must have a row for each of {len(tokens)} tokens",
        )
    for row in rows:
        if not isinstance(row, list) or not all(_is_number(number) for number in row):
            raise InvalidValueError(f"{place}.expected_logits", row, "must be lists of numbers")
        if len(row) != len(rows[0]):
            raise InvalidValueError(
                f"{place}.expected_logits", len(row), f"all rows must have {len(rows[0])} numbers"
            )
    return Case(
        prompt=tokens,
        expected_logits=tuple(tuple(map(float, row)) for row in rows),
        tolerance=_tolerance(value.get("tolerance", TOLERANCE), f"{place}.tolerance"),
    )


def _is_number(value: object) -> bool:
    if isinstance(value, int) and not isinstance(value, bool):
        return abs(value) <= sys.float_info.max  # others have no float
    return isinstance(value, float)


def _tolerance(value: Any, field: str) -> float:
    if not _is_number(value) or not 0 <= value < float("inf"):
        raise InvalidValueError(field, value, "must be a number of at least 0")
    return float(value)


def evaluate(decoder: TinyDecoder, cases: Iterable[Case]) -> Evaluation:
    """Compare the decoder's logits after each prompt with the expected ones.

    >>> import torch
    >>> from llmcalc import ModelSpec
    >>> from llmcalc.models.modes import Case, evaluate
    >>> from llmcalc.models.tiny_decoder import TinyDecoder
    >>> spec = ModelSpec.assignment_decoder(
    ...     vocab_size=10, d_model=8, d_ff=16, num_layers=1, max_seq_len=8
    ... )
    >>> decoder = TinyDecoder(spec).eval()
    >>> expected = decoder(torch.tensor([[1, 2]]))[0].tolist()
    >>> evaluate(decoder, [Case(prompt=(1, 2), expected_logits=expected)]).pass_rate
    1.0
    """
    results = []
    for index, case in enumerate(cases):
        prompt = _prompt(decoder, case.prompt)
        with torch.inference_mode():
            logits = decoder(prompt, last_only=len(case.expected_logits) == 1)[0]
        expected = torch.tensor(case.expected_logits, dtype=torch.float64, device=logits.device)
        if logits.shape != expected.shape:
            raise InvalidValueError(
                f"cases[{index}].expected_logits",
                tuple(expected.shape),
                f"must have the shape of the model's logits {tuple(logits.shape)}",
            )
        results.append(_result(_difference(logits, expected), case.tolerance))
    return _evaluation(results)


def kv_evaluate(
    decoder: TinyDecoder,
    prompts: Iterable[Sequence[int]],
    *,
    new_tokens: int = 20,
    prefill_chunk_size: int | None = None,
    tolerance: float = TOLERANCE,
) -> Evaluation:
    """Compare cached with uncached logits at every step of a greedy generation.

    Each of the `new_tokens` steps after each prompt is compared, not only the prompt's: an error
    in the cache shows when the cache is read.

    >>> from llmcalc import ModelSpec
    >>> from llmcalc.models.modes import kv_evaluate
    >>> from llmcalc.models.tiny_decoder import TinyDecoder
    >>> spec = ModelSpec.assignment_decoder(
    ...     vocab_size=10, d_model=8, d_ff=16, num_layers=1, max_seq_len=32
    ... )
    >>> kv_evaluate(TinyDecoder(spec), [(1, 2, 3)], new_tokens=4).pass_rate
    1.0
    """
    steps = whole_number(new_tokens, "new_tokens", minimum=1)
    most = _tolerance(tolerance, "tolerance")
    results = []
    for prompt in prompts:
        ids = _prompt(decoder, prompt)
        worst = 0.0
        cached = decoder.stream(ids, steps, prefill_chunk_size=prefill_chunk_size)
        for step in cached:
            with torch.inference_mode():
                # The sequence as it stood before this step, all of it computed again.
                expected = decoder(ids, last_only=True)[0, 0]
                ids = torch.cat((ids, step.tokens[:, None]), dim=1)
            worst = max(worst, _difference(step.logits[0], expected))
        results.append(_result(worst, most))
    return _evaluation(results)


def benchmark(
    decoder: TinyDecoder,
    *,
    prompt_lengths: Sequence[int] = (10, 50, 100, 500, 1000),
    new_tokens: int = 20,
    batch: int = 1,
    repeats: int = 5,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> Benchmark:
    """Time greedy generation with and without cache, side by side; medians of `repeats` runs.

    Prompts are drawn from `seed`. The two ways are run in turn, after one run of each that is not
    counted. `progress` is called with a line of text for each prompt length.
    """
    runs = whole_number(repeats, "repeats", minimum=1)
    rows_of_prompt = whole_number(batch, "batch", minimum=1)
    steps = whole_number(new_tokens, "new_tokens", minimum=1)
    limit = decoder.spec.max_positions
    lengths = [whole_number(length, "prompt_lengths", minimum=1) for length in prompt_lengths]
    if not lengths:
        raise InvalidValueError("prompt_lengths", lengths, "must hold at least one length")
    if limit is not None and max(lengths) + steps - 1 > limit:  # the last token is never read
        raise InvalidValueError(
            "prompt_lengths",
            max(lengths),
            f"and {steps} new tokens must be at most {limit} positions",
        )
    generator = torch.Generator().manual_seed(whole_number(seed, "seed"))
    rows = []
    for length in lengths:
        shape = (rows_of_prompt, length)
        ids = torch.randint(decoder.spec.embedding.vocab_size, shape, generator=generator)
        ids = ids.to(_device(decoder))
        seconds: dict[bool, list[float]] = {False: [], True: []}
        for run in range(runs + 1):
            for use_cache, times in seconds.items():
                start = time.perf_counter()
                decoder.generate(ids, steps, use_cache=use_cache).cpu()
                if run:
                    times.append(time.perf_counter() - start)
        row = BenchmarkRow(
            prompt_length=length,
            new_tokens=steps,
            uncached_seconds=statistics.median(seconds[False]),
            cached_seconds=statistics.median(seconds[True]),
        )
        rows.append(row)
        if progress is not None:
            progress(
                f"prompt {length}: {row.uncached_seconds:.4f} s without cache, "
                f"{row.cached_seconds:.4f} s with cache, {row.speedup:.2f}x"
            )
    return Benchmark(rows=tuple(rows), repeats=runs)


def _prompt(decoder: TinyDecoder, prompt: Sequence[int]) -> Tensor:
    """Return the prompt as a batch of one row; refuse tokens that the model does not have."""
    vocabulary = decoder.spec.embedding.vocab_size
    tokens = [whole_number(token, "prompt") for token in prompt]
    if not tokens or max(tokens) >= vocabulary:
        raise InvalidValueError("prompt", tokens, f"must hold token ids below {vocabulary}")
    return torch.tensor([tokens], device=_device(decoder))


def _difference(got: Tensor, expected: Tensor) -> float:
    """Return the largest difference relative to the largest expected logit; nan is infinite."""
    expected = expected.double()
    gap = (got.double() - expected).abs().max() / expected.abs().max().clamp(min=1)
    return float(gap) if bool(gap.isfinite()) else float("inf")


def _result(difference: float, tolerance: float) -> CaseResult:
    return CaseResult(passed=difference <= tolerance, difference=difference, tolerance=tolerance)


def _evaluation(results: list[CaseResult]) -> Evaluation:
    if not results:
        raise InvalidValueError("cases", results, "must not be empty")
    return Evaluation(results=tuple(results))


def _device(decoder: TinyDecoder) -> torch.device:
    return decoder.token_embedding.weight.device
