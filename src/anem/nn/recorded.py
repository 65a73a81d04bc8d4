"""A computation recorded once and run faster: as machine code on a CPU, as a graph of kernels on a CUDA device.

``torch.compile`` refuses functions that call autograd themselves. For a CPU the backward passes are recorded too (``make_fx``), and what
is compiled is a graph of elementary operations without autograd. Sums come in another order, so results differ from the ordinary ones by
rounding. A CUDA device replays the very kernels, with one launch for hundreds.
"""

from __future__ import annotations

import os
import shutil
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Recorded", "Replayed", "check_compiler", "cpp_compiler", "machine_code", "record"]


def record(function: Callable[..., Sequence[Tensor]], parameters: Mapping[str, Tensor], *inputs: Tensor) -> torch.fx.GraphModule:
    """The graph of ``function(parameters, *inputs)``, a function of the parameters one by one and then the inputs, of these shapes."""
    from torch.fx.experimental.proxy_tensor import make_fx

    graph = make_fx(function)(dict(parameters), *inputs)
    graph.graph.eliminate_dead_code()
    graph.graph.set_codegen(torch.fx.graph.CodeGen())  # flat arguments in place of the dictionary
    graph.recompile()
    return graph


def machine_code(graph: torch.fx.GraphModule, inputs: Sequence[Tensor]) -> Callable[..., Any]:
    """The graph compiled for inputs like these. Takes minutes once, and seconds where Inductor's cache on disk has it from before."""
    import torch._inductor
    from torch._subclasses import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    mode = FakeTensorMode(shape_env=ShapeEnv())  # as torch.compile does; without one the cache on disk is passed by
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # complex numbers (the Fourier transforms) are left as they are
        return torch._inductor.compile(graph, [mode.from_tensor(x, static_shapes=True) for x in inputs])


def cpp_compiler() -> str:
    """The compiler that Inductor calls."""
    return os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")


def check_compiler() -> None:
    """Raise ValueError where there is no C++ compiler."""
    if shutil.which(cpp_compiler()) is None:
        raise ValueError(
            f"compile: wanted a C++ compiler, got no {cpp_compiler()!r} on the path (CXX names another); all runs without, slower"
        )


class Recorded:
    """A function of rows, run as machine code a fixed number of rows at a time.

    Arguments:
        module: takes tensors of the same number of rows and returns such tensors; no row depends on another. Its parameters stay inputs
            of the code, so later changes of them count; everything else it holds must not change.
        rows: of one call of the machine code. What is left over, and would fill less than half of a call, runs as usual.
        after: rows of one shape that run as usual before they are worth compiling for.
    """

    def __init__(self, module: nn.Module, rows: int, after: int) -> None:
        self.module, self.rows, self.after = module, rows, after
        self.seen: dict[tuple, int] = {}
        self.code: dict[tuple, Callable[..., Any]] = {}

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        """The module's results, detached."""
        total = len(inputs[0])
        kind = tuple((x.shape[1:], x.dtype) for x in (*inputs, *self.module.parameters()))
        self.seen[kind] = self.seen.get(kind, 0) + total
        if total <= self.rows // 2 or self.seen[kind] <= self.after:
            return [part.detach() for part in self.module(*inputs)]
        parts = []
        for start in range(0, total, self.rows):
            piece = [x[start : start + self.rows] for x in inputs]
            count = len(piece[0])
            if count <= self.rows // 2:
                parts.append([part.detach() for part in self.module(*piece)])
                continue
            if count < self.rows:
                piece = [torch.cat([x, x[-1:].expand(self.rows - count, *x.shape[1:])]) for x in piece]
            parts.append([part[:count] for part in self._run(kind, piece)])
        return [torch.cat(part) for part in zip(*parts, strict=True)]

    def _run(self, kind: tuple, piece: list[Tensor]) -> Sequence[Tensor]:
        piece = [x.detach().contiguous() for x in piece]
        parameters = {name: p.detach() for name, p in self.module.named_parameters()}
        with torch.no_grad():
            if kind not in self.code:
                self.code[kind] = machine_code(record(self._call, parameters, *piece), [*parameters.values(), *piece])
            return self.code[kind](*parameters.values(), *piece)

    def _call(self, parameters: dict[str, Tensor], *inputs: Tensor) -> list[Tensor]:
        return [part.detach() for part in torch.func.functional_call(self.module, parameters, inputs)]


class Replayed:
    """A function of rows on a CUDA device, replayed as a graph of kernels for numbers of rows that are powers of two.

    Arguments:
        module: as for :class:`Recorded`, its parameters on the device.
        rows: most of one graph, rounded down to a power of two; larger batches are cut up. What fills a graph up to its number of rows
            repeats the last one.
        after: calls for a graph that run as usual before it is made.
    """

    def __init__(self, module: nn.Module, rows: int = 512, after: int = 2) -> None:
        self.module, self.rows, self.after = module, 1 << (rows.bit_length() - 1), after
        self.seen: dict[tuple, int] = {}
        self.graphs: dict[tuple, tuple[torch.cuda.CUDAGraph, list[Tensor], list[Tensor]]] = {}

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        """The module's results, detached, on its device, wherever the inputs are."""
        parts = [self._piece([x[start : start + self.rows] for x in inputs]) for start in range(0, len(inputs[0]), self.rows)]
        return [torch.cat(part) for part in zip(*parts, strict=True)]

    def _piece(self, piece: list[Tensor]) -> list[Tensor]:
        count = len(piece[0])
        full = 1 << (count - 1).bit_length()
        piece = [x.detach() for x in piece]
        weights = tuple(self.module.parameters())  # a graph reads them where they were when it was made
        kind = full, *((x.shape[1:], x.dtype) for x in piece), *((p.data_ptr(), p.dtype) for p in weights)
        device = weights[0].device
        self.seen[kind] = self.seen.get(kind, 0) + 1
        if self.seen[kind] <= self.after:
            return [part.detach() for part in self.module(*(x.to(device) for x in piece))]
        if kind not in self.graphs:
            self.graphs[kind] = self._capture([torch.cat([x, x[-1:].expand(full - count, *x.shape[1:])]).to(device) for x in piece])
        graph, fixed, results = self.graphs[kind]
        for static, new in zip(fixed, piece, strict=True):
            static[:count].copy_(new)
            static[count:].copy_(new[-1:].expand(full - count, *new.shape[1:]))
        graph.replay()
        return [part[:count].clone() for part in results]

    def _capture(self, fixed: list[Tensor]) -> tuple[torch.cuda.CUDAGraph, list[Tensor], list[Tensor]]:
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self.module(*fixed)
        torch.cuda.current_stream().wait_stream(stream)
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            results = [part.detach() for part in self.module(*fixed)]
        return graph, fixed, results
