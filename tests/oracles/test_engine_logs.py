"""Serving against engines: what 126 start-up logs printed."""

from __future__ import annotations

import pytest

from scripts import engine_logs
from scripts.engine_logs import Compared

FOUND = engine_logs.compared()


def _rows(group: str, figure: str) -> list[Compared]:
    return [one for one in FOUND if one.group == group and figure in one.figures]


def _misses(figure: str, *, uniform: bool | None = None) -> list[float]:
    return [
        abs(one.miss(figure) or 0.0)
        for one in _rows("controlled", figure)
        if uniform in {None, one.uniform}
    ]


def test_every_row_of_the_data_is_compared_or_says_why_not() -> None:
    assert len(FOUND) == 126
    for one in FOUND:
        assert one.figures or one.model is None or one.row["set"] != "controlled"
    assert sum(bool(one.figures) for one in FOUND) >= 80


def test_every_controlled_row_has_its_weights_and_its_pool() -> None:
    assert len(_rows("controlled", "weights")) == len(_rows("controlled", "pool")) == 48


def test_weights_agree() -> None:
    misses = _misses("weights")
    assert sum(misses) / len(misses) < 0.0005
    assert max(misses) < 0.004


def test_cache_bytes_of_a_token_agree() -> None:
    misses = _misses("token")
    assert len(misses) >= 39
    assert max(misses) < 0.001


def test_concurrency_agrees_for_uniform_models() -> None:
    assert max(_misses("concurrency", uniform=True)) < 0.002


def test_concurrency_agrees_for_models_with_windows() -> None:
    misses = _misses("concurrency", uniform=False)
    assert len(misses) >= 3
    assert max(misses) < 0.001


def test_pools_agree() -> None:
    misses = _misses("pool")
    assert sum(misses) / len(misses) < 0.002
    assert max(misses) < 0.012


@pytest.mark.parametrize(
    "one", [pytest.param(one, id=one.row["id"]) for one in FOUND if one.group != "controlled"]
)
def test_a_field_row_agrees_or_states_the_cause(one: Compared) -> None:
    for figure in one.figures:
        miss = one.miss(figure)
        assert miss is not None
        assert abs(miss) <= 0.02 or one.row["id"] in engine_logs.CAUSES, (figure, miss)


def test_causes_are_of_rows() -> None:
    ids = {one.row["id"] for one in FOUND}
    assert ids >= {*engine_logs.CAUSES, *engine_logs.NOTHING, *engine_logs.RANKS}
    assert {one.row["model"] for one in FOUND} >= {*engine_logs.MODELS, *engine_logs.MULTIMODAL}


def test_the_page_of_engine_logs_is_up_to_date() -> None:
    """Where it is not: ``python -m scripts.engine_logs``."""
    for path, text in engine_logs.files().items():
        assert path.read_text(encoding="utf-8") == text, path
