"""One step's losses and gradients: as autograd computes them, or the same computation recorded once and run faster.

A recording has fixed shapes, so it serves the one mixture of bases it was made with (``noise.stratified``); others run as usual.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from anem.covariance import Covariance
from anem.nn.recorded import check_compiler, machine_code, record
from anem.train.config import TrainConfig

__all__ = ["CapturedStep", "CompiledStep", "LossModule", "fast_step", "record_step"]


class LossModule(nn.Module):
    """The loss as a module's output: a distributed wrapper sees one forward, and its double backward is exact."""

    def __init__(self, model: nn.Module, loss: Callable[..., Any], weight: float) -> None:
        super().__init__()
        self.model, self.loss, self.weight = model, loss, weight

    def forward(self, x: Tensor, cov: Any, noise: Tensor, twin: Any = None) -> tuple[Tensor, Tensor, Tensor]:
        terms = self.loss(self.model, x, cov, noise, self.weight, **({} if twin is None else {"twin": twin}))
        return terms.total, terms.a_dsm.detach(), terms.a_csm.detach()


class CapturedStep:
    """Loss and gradients of one step as a CUDA graph, on fixed memory: hundreds of small kernels then cost one launch."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.name = module, ""

    def __call__(self, x: Tensor, cov: Covariance, noise: Tensor, twin: Covariance | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """The losses; gradients are left in the parameters."""
        if not self.name:
            self._capture(x, cov, noise, twin)
        if cov.basis.name != self.name or x.shape != self.inputs[0].shape:
            return _ordinary(self.module, x, cov, noise, twin)
        for p, grad in self.gradients:
            p.grad = grad
        for static, new in zip(self.inputs, _tensors(x, cov, noise, twin), strict=True):
            static.copy_(new)
        self.graph.replay()
        return self.losses

    def _capture(self, x: Tensor, cov: Covariance, noise: Tensor, twin: Covariance | None) -> None:
        self.name = cov.basis.name
        self.inputs = [t.clone() for t in _tensors(x, cov, noise, twin)]
        static = _arguments(cov, self.inputs)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self.module(*static)[0].backward()
        torch.cuda.current_stream().wait_stream(stream)
        for p in self.module.parameters():
            p.grad = None
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
            self.losses = self.module(*static)
            self.losses[0].backward()
        self.gradients = [(p, p.grad) for p in self.module.parameters()]


class CompiledStep:
    """Loss and gradients of one step as compiled machine code, elementwise operations fused.

    ``torch.compile`` refuses a double backward; here both backward passes are recorded first (:mod:`anem.nn.recorded`), and what is
    compiled is a function without autograd. Sums come in another order: gradients differ from the ordinary ones by rounding.

    Arguments:
        compiler: what makes the recorded graph a function of its flat inputs; None for Inductor, which takes minutes.
    """

    def __init__(self, module: nn.Module, compiler: Callable[..., Callable[..., Any]] | None = None) -> None:
        self.module, self.name = module, ""
        self.compiler = machine_code if compiler is None else compiler

    def __call__(self, x: Tensor, cov: Covariance, noise: Tensor, twin: Covariance | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """The losses; gradients are left in the parameters."""
        if not self.name:
            self.name, self.shape = cov.basis.name, x.shape
            graph, self.trained = record_step(self.module, x, cov, noise, twin)
            self.compiled = self.compiler(graph, self._inputs(x, cov, noise, twin))
        if cov.basis.name != self.name or x.shape != self.shape:
            return _ordinary(self.module, x, cov, noise, twin)
        with torch.no_grad():
            total, a_dsm, a_csm, *gradients = self.compiled(*self._inputs(x, cov, noise, twin))
        parameters = dict(self.module.named_parameters())
        for name, gradient in zip(self.trained, gradients, strict=True):
            parameters[name].grad = gradient
        return total, a_dsm, a_csm

    def _inputs(self, *inputs: Any) -> list[Tensor]:
        return [*(p.detach() for p in self.module.parameters()), *_tensors(*inputs)]


def _tensors(x: Tensor, cov: Covariance, noise: Tensor, twin: Covariance | None) -> list[Tensor]:
    """What a recording takes: x, the variances, the noise, and the variances of the twins if there are any."""
    return [x, cov.values, noise] + ([] if twin is None else [twin.values])


def _arguments(cov: Covariance, tensors: Sequence[Tensor]) -> list[Any]:
    """The arguments of the loss from those tensors, in the basis of ``cov``."""
    x, values, noise, *twin = tensors
    return [x, Covariance(values, cov.basis, check=False), noise, *(Covariance(t, cov.basis, check=False) for t in twin)]


def record_step(
    module: nn.Module, x: Tensor, cov: Covariance, noise: Tensor, twin: Covariance | None = None
) -> tuple[torch.fx.GraphModule, list[str]]:
    """Losses and gradients as one graph of elementary operations, and the names of the parameters that have gradients.

    The graph takes the parameters, x, the variances, the noise and the variances of the twins if any, and returns the three losses and then
    the gradients.
    """
    parameters = {name: p.detach().requires_grad_() for name, p in module.named_parameters()}
    trained: list[str] = []

    def step(parameters: dict[str, Tensor], *tensors: Tensor) -> list[Tensor]:
        losses = torch.func.functional_call(module, parameters, tuple(_arguments(cov, tensors)))
        gradients = torch.autograd.grad(losses[0], list(parameters.values()), allow_unused=True)
        trained[:] = [name for name, g in zip(parameters, gradients, strict=True) if g is not None]
        return [loss.detach() for loss in losses] + [g for g in gradients if g is not None]

    return record(step, parameters, *_tensors(x, cov, noise, twin)), trained


def _ordinary(module: nn.Module, *inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    module.zero_grad(set_to_none=True)
    losses = module(*inputs)
    losses[0].backward()
    return losses


def fast_step(config: TrainConfig, module: nn.Module, device: torch.device) -> CapturedStep | CompiledStep | None:
    """The recorded step that the config asks for and the device can run, or None.

    Raises:
        ValueError: ``compile`` without a C++ compiler, or with dropout, whose random numbers a recording would repeat.
    """
    if config.capture and device.type == "cuda":
        return CapturedStep(module)
    if not config.compile or device.type != "cpu":
        return None
    check_compiler()
    if any(m.p > 0 for m in module.modules() if isinstance(m, nn.Dropout)):
        raise ValueError("compile: wanted a network without dropout")
    return CompiledStep(module)
