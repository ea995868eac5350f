"""The two searches that all fits share: along a line, and by gradient in a few weights."""

from __future__ import annotations

from collections.abc import Callable

import torch


def along(loss: Callable[[float], float], low: float, high: float, rounds: int) -> float:
    """Where between ``low`` and ``high`` a loss with one minimum is least, by golden-section search."""
    ratio = (5.0**0.5 - 1.0) / 2.0
    for _ in range(rounds):
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        low, high = (low, right) if loss(left) < loss(right) else (left, high)
    return (low + high) / 2.0


def minimise(loss: Callable[[], torch.Tensor], weights: list[torch.Tensor], steps: int = 100) -> None:
    """Change ``weights`` to where a smooth loss of them is least, by L-BFGS with a strong Wolfe line search."""
    optimiser = torch.optim.LBFGS(weights, max_iter=steps, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        value = loss()
        value.backward()
        return value

    optimiser.step(closure)
