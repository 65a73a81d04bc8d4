"""Random numbers that can be drawn again, each moved a little, without a change of their law."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["Variates"]


class Variates:
    """A source of uniform and normal numbers; the first axis of every shape is independent cases.

    Arguments:
        generator: of the numbers.
        keep: whether to remember them, for :meth:`moved`.
    """

    def __init__(self, generator: torch.Generator, keep: bool = False) -> None:
        self.generator = generator
        self._kept: list[Tensor] | None = [] if keep else None

    def uniform(self, shape: Sequence[int]) -> Tensor:
        """Independent, in [0, 1)."""
        return self._keep(torch.rand(*shape, generator=self.generator))

    def stratified(self, shape: Sequence[int]) -> Tensor:
        """Uniform in [0, 1), over the n cases one in every n-th of it."""
        strata = torch.randperm(shape[0], generator=self.generator).view(-1, *[1] * (len(shape) - 1))
        return self._keep((strata + torch.rand(*shape, generator=self.generator)) / shape[0])

    def normal(self, shape: Sequence[int]) -> Tensor:
        """Independent, standard normal."""
        return self._keep(torch.randn(*shape, generator=self.generator))

    def moved(self, step: Tensor, generator: torch.Generator) -> Variates:
        """A source of the numbers kept here, in the same order, each moved at random by a step of its case's own in (0, 1], (n,).

        A uniform number goes to a uniform one within ``step`` of it, reflected at the ends; a normal z to √(1 − step²) z + step ξ with ξ
        standard normal. Both moves are reversible: a number and the moved one are exchangeable, and so is all that is made of either.

        Raises:
            ValueError: nothing was kept.
        """
        if self._kept is None:
            raise ValueError("moved: wanted a source that keeps its numbers (keep=True), got one that does not")
        return _Moved(generator, self._kept, step)

    def _keep(self, numbers: Tensor) -> Tensor:
        if self._kept is not None:
            self._kept.append(numbers)
        return numbers


class _Moved(Variates):
    def __init__(self, generator: torch.Generator, kept: Sequence[Tensor], step: Tensor) -> None:
        super().__init__(generator)
        self._before, self._step = iter(kept), step

    def uniform(self, shape: Sequence[int]) -> Tensor:
        before, step = self._next(shape)
        after = (before + step * (2 * torch.rand(*shape, generator=self.generator) - 1)).remainder(2)
        return torch.minimum(after, 2 - after).clamp(max=1 - 2**-24)

    stratified = uniform

    def normal(self, shape: Sequence[int]) -> Tensor:
        before, step = self._next(shape)
        return (1 - step.square()).sqrt() * before + step * torch.randn(*shape, generator=self.generator)

    def _next(self, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The number as it was, and the step."""
        return next(self._before), self._step.view(-1, *[1] * (len(shape) - 1))
