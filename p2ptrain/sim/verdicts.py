"""What a checker says: which invariant, on how many facts, and what speaks against it.

A verdict on no facts has shown nothing; whoever reads verdicts looks at ``facts`` too.
Refused: raising at the first problem. The second one often tells more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Sequence

Invariant: TypeAlias = Literal["I1", "I2", "I3", "I4", "I5", "I6"]

SHOWN_PROBLEMS = 8
"""Problems kept in a verdict: the first ones tell, the rest follow from them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What one checker found. ``facts``: how many things it looked at."""

    invariant: Invariant
    facts: int
    problems: tuple[str, ...]

    @property
    def holds(self) -> bool:
        """Whether nothing spoke against the invariant."""
        return not self.problems


def verdict(invariant: Invariant, facts: int, problems: Sequence[str]) -> Verdict:
    """The verdict on ``problems``, the first ones of them."""
    shown = list(problems[:SHOWN_PROBLEMS])
    if len(problems) > len(shown):
        shown.append(f"and {len(problems) - len(shown)} more")
    return Verdict(invariant=invariant, facts=facts, problems=tuple(shown))
