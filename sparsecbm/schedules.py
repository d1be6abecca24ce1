"""How density falls over training steps."""

from __future__ import annotations

from dataclasses import dataclass

from sparsecbm.recipe import Shape


@dataclass(frozen=True, slots=True)
class Schedule:
    """Density over training steps: 1 until ``start``, ``density`` from ``end`` on.

    Between, with p the share of the way from ``start`` to ``end``, it is d + (1 - d)(1 - p)³ for "cubic"
    (Zhu & Gupta 2017, equation 1) and d + (1 - d)(1 - p) for "linear" (Tan et al. 2024, SparseCBM).
    """

    start: int
    end: int
    density: float
    shape: Shape = "cubic"

    def at(self, step: int) -> float:
        """Share of units or weights to keep at a step."""
        if step >= self.end:
            return self.density
        left = 1.0 - max(0, step - self.start) / (self.end - self.start)
        return self.density + (1.0 - self.density) * (left**3 if self.shape == "cubic" else left)
