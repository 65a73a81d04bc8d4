"""How the learned correction of an energy is computed in use: as it stands, by recorded code, or by a copy on another device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from anem.bases import Basis, Mixed
from anem.nn.attached import attached
from anem.nn.recorded import Recorded, Replayed, check_compiler

__all__ = ["Correction", "Evaluator"]

Run = Callable[..., Sequence[Tensor]]


class Evaluator:
    """The correction of a network and its derivatives at inputs from anywhere.

    Arguments:
        network: with ``_correction(rho, logvar, basis, c)``.
        remote: a copy on another device that computes in its place, or None.
        record: what makes a part of it a function run from recorded code, or None.
    """

    def __init__(self, network: Any, remote: Any = None, record: Callable[[nn.Module], Run] | None = None) -> None:
        self.network, self.remote, self.record = network, remote, record
        self.recorded: dict[tuple[str, int], Run] = {}

    @property
    def computing(self) -> Any:
        """The network that computes."""
        return self.network if self.remote is None else self.remote

    def correction(self, basis: Basis, gradients: bool, rho: Tensor, variances: Tensor) -> Sequence[Tensor]:
        """The correction, (B,), and if asked for its gradients in ρ and log λ, (B, C, H, W); detached from the parameters."""
        return self._run(Correction(self.computing, basis, gradients), basis, int(gradients), rho, variances)

    def differentiable(self, basis: Basis, rho: Tensor, logvar: Tensor) -> Tensor:
        """The correction, (B,), twice differentiable in ρ and log λ here, wherever it is computed."""

        def first(rho: Tensor, logvar: Tensor) -> Sequence[Tensor]:
            return self.correction(basis, True, rho, logvar.exp())

        def second(rho: Tensor, logvar: Tensor, *vectors: Tensor) -> Sequence[Tensor]:
            return self._run(_Curvature(self.computing, basis), basis, 2, rho, logvar.exp(), *vectors)

        return attached(rho, logvar, first, second)

    def _run(self, part: nn.Module, basis: Basis, order: int, *inputs: Tensor) -> Sequence[Tensor]:
        """A part of the network that computes, by recorded code where that was asked for and the inputs have one basis."""
        here = inputs[0].device
        if self.record is not None and not isinstance(basis, Mixed):
            key = basis.name, order
            if key not in self.recorded:
                self.recorded[key] = self.record(part)
            return [x.to(here) for x in self.recorded[key](*inputs)]
        if self.remote is None:
            return part(*inputs)
        device = self.computing.offset.device
        return [x.to(here) for x in part(*(x.to(device) for x in inputs))]

    def compile(self, rows: int | None, after: int | None) -> None:
        """From now on by recorded code; see :meth:`anem.EnergyNetwork.compile`."""
        device = self.computing.offset.device.type
        if device == "cpu":
            check_compiler()
        elif device != "cuda":
            raise ValueError(f"compile: wanted a model on the CPU or on CUDA, got one on {device}")
        recorded, default_rows, default_after = (Recorded, 32, 1024) if device == "cpu" else (Replayed, 512, 2)
        rows, after = default_rows if rows is None else rows, default_after if after is None else after
        if rows < 1 or after < 0:
            raise ValueError(f"compile: wanted rows >= 1 and after >= 0, got {rows} and {after}")
        self.record, self.recorded = partial(recorded, rows=rows, after=after), {}


class Correction(nn.Module):
    """A network's correction in one basis as a module of tensors: (B,), and if asked for its gradients in ρ and log λ, (B, C, H, W).

    Arguments:
        create_graph: for gradients that are differentiable in the parameters.
    """

    def __init__(self, network: Any, basis: Basis, gradients: bool, create_graph: bool = False) -> None:
        super().__init__()
        self.network, self.basis, self.gradients, self.create_graph = network, basis, gradients, create_graph

    def forward(self, rho: Tensor, variances: Tensor) -> tuple[Tensor, ...]:
        network, basis, again = self.network, self.basis, self.create_graph
        c = network.statistics.variance_in(basis, *rho.shape[-2:], rho)
        if not self.gradients:
            return (network._correction(rho, variances.log(), basis, c),)
        with torch.enable_grad(), network.unet.scope.inputs_only(again=again):
            leaf = rho.detach().requires_grad_()
            logvar = variances.detach().log().requires_grad_()
            correction = network._correction(leaf, logvar, basis, c)
            return (correction, *torch.autograd.grad(correction.sum(), (leaf, logvar), create_graph=again))


class _Curvature(nn.Module):
    """The Hessian of a network's correction in (ρ, log λ), in one basis, times a vector: its two parts, (B, C, H, W)."""

    def __init__(self, network: Any, basis: Basis) -> None:
        super().__init__()
        self.network, self.basis = network, basis

    def forward(self, rho: Tensor, variances: Tensor, v: Tensor, w: Tensor) -> tuple[Tensor, ...]:
        network, basis = self.network, self.basis
        c = network.statistics.variance_in(basis, *rho.shape[-2:], rho)
        with torch.enable_grad(), network.unet.scope.inputs_only():
            leaves = rho.detach().requires_grad_(), variances.detach().log().requires_grad_()
            correction = network._correction(*leaves, basis, c)
            gradients = torch.autograd.grad(correction.sum(), leaves, create_graph=True)
            return torch.autograd.grad(gradients, leaves, (v, w))
