"""Posterior samples for images of the caller's own kind: PIL, NumPy or tensors in, the same out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from anem.energy import EnergyModel
from anem.images import ImageKind, from_tensor, to_tensor
from anem.operators import LinearOperator
from anem.sample import Callback, Corrector, Kernel, Restoration, Schedule
from anem.sample import sample_posterior as sample_tensors

__all__ = ["RestoredImages", "sample_posterior"]


@dataclass(frozen=True, eq=False)
class RestoredImages:
    """Posterior samples in the kind of image the caller gave.

    Arguments:
        restoration: the same as tensors (S, B, C, H, W), with network calls, energies and the one-call mean and variance.
        kind: what the caller gave.

    Integers are written as floor(2ᵇ x), clipped. A list or a batch of B images gives B results, a single image one.
    """

    restoration: Restoration
    kind: ImageKind

    @property
    def samples(self) -> Any:
        """The S samples: a leading axis of an array or tensor, or a list."""
        return from_tensor(self.restoration.samples, self.kind)

    @property
    def mean(self) -> Any:
        """Mean of the samples, an estimate of the posterior mean."""
        return from_tensor(self.restoration.mean, self.kind)

    @property
    def std(self) -> Any:
        """Standard deviation of every pixel over the samples, in intensities: float32 arrays, or tensors for a caller with tensors.

        None if there is only one sample.
        """
        std = self.restoration.std
        if std is None:
            return None
        container = "torch" if self.kind.container == "torch" else "numpy"
        # A PIL image of one channel is an array (H, W).
        axis = len(std[0]) > 1 if self.kind.container == "pil" else self.kind.channel_axis
        dtype = self.kind.dtype if self.kind.dtype.is_floating_point else torch.float32
        return from_tensor(std, replace(self.kind, container=container, channel_axis=axis, dtype=dtype))


def sample_posterior(
    model: EnergyModel,
    measurement: Any,
    operator: LinearOperator,
    sigma: float | Tensor,
    *,
    samples: int = 1,
    steps: int | None = None,
    kernel: Kernel | str = "ancestral",
    corrector: Corrector | None = None,
    schedule: Schedule | str | None = None,
    final: str = "denoise",
    seed: int | Sequence[int] = 0,
    chunk: int | None = None,
    callback: Callback | None = None,
) -> RestoredImages:
    """Draw from p(x given m) for m = H x + σ v.

    >>> import anem
    >>> model = anem.load("digits")  # doctest: +SKIP
    >>> hidden = anem.Inpainting.centre_box((28, 28), 14)
    >>> restored = anem.sample_posterior(model, picture, hidden, sigma=0.05, samples=4)  # doctest: +SKIP
    >>> restored.samples[0].save("sample.png")  # doctest: +SKIP

    An image of another size than the model was trained on is answered too, for what that is worth: the commands refuse it.

    Arguments:
        measurement: m: a PIL image, an array (H, W), (H, W, C), (B, H, W) or (B, H, W, C), a tensor (H, W), (C, H, W) or (B, C, H, W), or
            a list of one of these. Integers are 8 or 16 bits; floats are intensities, [0, 1] for a clean image, and may exceed it
            up to ±100.
        operator: H.
        sigma: standard deviation of the noise in m, in intensities: a number, (B,), or a map where the operator allows it.
        samples: S, draws for each image.
        steps: of the path, 50 if None; not beside a schedule that is an object.
        kernel: kind of step: "ancestral", "euler", "bridge", "sde-2m", of one network call each, "sandwich", of four, or one of
            :mod:`anem.sample`. One more call starts the chain.
        corrector: Langevin steps at every level, such as ``MALA(steps=2)``, one network call each.
        schedule: path of Σ: "water-filling" (None), "geometric", "energy", "variance", or one of :mod:`anem.sample`.
        final: "denoise" for samples of x; "noisy" for x + n₀ with the noise at the end of the path, to which the energies belong.
        seed: of image b, seed + b, or one an image. A sample does not depend on what is drawn beside it.
        chunk: most chains at once; None: as memory allows.
        callback: called after every step; see :data:`anem.sample.Callback`.

    Raises:
        ValueError: a measurement of an unknown kind, not finite, or that does not fit model or operator; unusable settings.
    """
    m, kind = to_tensor(measurement, len(model.statistics.mean), bounded=False)
    restoration = sample_tensors(
        model,
        m.to(model.statistics.mean.device),
        operator,
        sigma,
        samples=samples,
        steps=steps,
        kernel=kernel,
        corrector=corrector,
        schedule=schedule,
        final=final,
        seed=seed,
        chunk=chunk,
        callback=callback,
    )
    return RestoredImages(restoration, kind)
