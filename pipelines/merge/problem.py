"""One thing that keeps a merge from being made."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """In which tensor, of which model, what is wrong, and what to do."""

    tensor: str
    """Empty where it is not about one tensor."""
    who: str
    what: str
    do: str

    def __str__(self) -> str:
        return f"{self.who}: {self.tensor + ' ' if self.tensor else ''}{self.what}; {self.do}"
