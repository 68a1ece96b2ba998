"""Comparisons: a start-up log against what is computed, as it is shown.

* `Comparison`: one term: printed, computed and their difference.
* `Reconciliation`: the terms, the identities, and which term explains the gap.
"""

from __future__ import annotations

import attrs

from llmcalc.described import Described
from llmcalc.errors import InvalidValueError
from llmcalc.serving.budgets import Budget
from llmcalc.serving.figures import Identity
from llmcalc.serving.logs import EngineLog
from llmcalc.units import GiB

__all__ = ["Comparison", "Reconciliation"]


@attrs.frozen(kw_only=True, repr=False, eq=False)
class Comparison(Described):
    """One term: what the log prints and what is computed, each `None` where it is not known.

    `unit` is ``"bytes"``, ``"tokens"``, ``"blocks"``, ``"requests"`` or ``"bytes a token"``.
    `within` is how far the printed figure is rounded. `note` says what the computed figure rests
    on, or why there is none.
    """

    term: str
    unit: str
    printed: float | None
    computed: float | None
    within: float = 0.0
    note: str = ""

    @property
    def difference(self) -> float | None:
        """Computed less printed."""
        if self.printed is None or self.computed is None:
            return None
        return self.computed - self.printed

    @property
    def relative(self) -> float | None:
        """The difference as a share of what is printed."""
        difference = self.difference
        return difference / self.printed if difference is not None and self.printed else None

    @property
    def agrees(self) -> bool | None:
        """Whether the difference is within the printed rounding; `None` where there is none."""
        difference = self.difference
        return None if difference is None else abs(difference) <= self.within + 1e-9

    def cells(self) -> tuple[str, str, str, str]:
        """Return the term's row as text: printed, computed, difference and share."""
        share = "" if self.relative is None else f"{_signed(100 * self.relative, '+')} %"
        return (
            _text(self.printed, self.unit),
            _text(self.computed, self.unit),
            _text(self.difference, self.unit, sign="+"),
            share,
        )


@attrs.frozen(kw_only=True, repr=False, eq=False)
class Reconciliation(Described):
    """A start-up log against a model: `comparisons` term by term, and what contradicts what.

    `identities` are those between printed figures, and between printed figures and the model.
    ``bool(reconciliation)`` is whether none of them is broken.
    """

    log: EngineLog
    model: str
    engine: str
    comparisons: tuple[Comparison, ...]
    identities: tuple[Identity, ...]
    budget: Budget | None

    def __bool__(self) -> bool:
        return not self.broken

    def __repr__(self) -> str:
        return f"<Reconciliation of {self.engine} with {self.model}: {self.explanation}>"

    def __getitem__(self, term: str) -> Comparison:
        for comparison in self.comparisons:
            if comparison.term == term:
                return comparison
        known = ", ".join(comparison.term for comparison in self.comparisons)
        raise InvalidValueError("term", term, f"must be one of {known}")

    @property
    def broken(self) -> tuple[Identity, ...]:
        """The identities that do not hold: figures that no start of this model prints together."""
        return tuple(identity for identity in self.identities if not identity.holds)

    @property
    def gap(self) -> Comparison | None:
        """The term that explains most of the pool's difference; `None` where there is none."""
        parts = [
            comparison
            for comparison in self.comparisons
            if comparison.term in _POOL_TERMS and comparison.difference is not None
        ]
        pool = next((one for one in self.comparisons if one.term == "pool"), None)
        if pool is not None and pool.agrees:
            return None
        far = [part for part in parts if not part.agrees]
        return max(far, key=lambda part: abs(part.difference or 0), default=None)

    @property
    def explanation(self) -> str:
        """One sentence: whether the log is consistent, and which term explains the gap."""
        if self.broken:
            return "inconsistent: " + "; ".join(map(str, self.broken))
        pool = next((one for one in self.comparisons if one.term == "pool"), None)
        gap = self.gap
        if gap is not None and gap.difference is not None:
            what = f"{gap.term} is computed {gap.cells()[2]}"
            if pool is not None and pool.difference is not None:
                return f"{what}, which explains most of the pool's {pool.cells()[2]}"
            return what
        if pool is not None and pool.agrees:
            return "the pool is what is computed, to the printed digits"
        if pool is not None and pool.difference is not None:
            return f"the pool is computed {pool.cells()[2]}; each of its terms agrees"
        return "no figure contradicts another"

    def explain(self) -> str:
        """Return the table of terms, the broken identities and the explanation."""
        header = ("term", "printed", "computed", "difference", "")
        rows = [header, *((one.term, *one.cells()) for one in self.comparisons)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
        lines = [f"{self.model}: {self.log.engine} {self.log.version or ''} as {self.engine}"]
        if self.log.starts > 1:
            lines.append(f"start {self.log.start} of the {self.log.starts} in the log")
        lines += [
            "  ".join(
                cell.rjust(width) if n else cell.ljust(width)
                for n, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        ]
        lines += [f"{one.term}: {one.note}" for one in self.comparisons if one.note]
        lines.append(self.explanation)
        return "\n".join(lines)


#: The terms whose sum is the pool.
_POOL_TERMS = frozenset({"requested", "weights", "activation", "non-torch", "graphs"})


def _text(value: float | None, unit: str, sign: str = "") -> str:
    if value is None:
        return ""
    if unit == "bytes":
        return f"{_signed(value / GiB, sign)} GiB"
    if unit in {"requests", "bytes a token"}:
        return _signed(value, sign)
    return f"{round(value):{sign},}".replace(",", " ")


def _signed(value: float, sign: str) -> str:
    """Return two decimals, in groups of three digits; what rounds to 0 has no sign."""
    text = f"{value:{sign},.2f}".replace(",", " ")
    return text.lstrip("+-") if not float(text.replace(" ", "")) else text
