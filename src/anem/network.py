"""The learned energy: a normalised base without a network plus a network correction that vanishes at the anchor.

With ρ = B(y − μ), c the data variance in the basis, c̄ its mean, t = c + λ and a = c/t::

    U = s U_G − (1 − s) log Σ_r w_r(Σ) exp(−U_r)           energies of densities that need no training, the share s = s(Σ):
                                                           Gaussian data, U_G = Σ_k ½[ρ_k²/t_k + log 2πt_k], and independent
                                                           pixels of the right distribution, by every round r of
                                                           :mod:`anem.propagation`
      + ½ ⟨ρ/√t (1 + c/λ)^{1/4} √a, B F⟩ + Σ_p α_p e_p     the rest
      + (1 − h) Σ_p g_p b(δ_p + K_p)                       b(x) = x/√(1 + (x/20)²)

F, e and g are outputs of one U-Net, the logits of s and of the weights w and the damping of the propagation linear functions of the
spectral summary of Σ; s is a softmax weight as long as pixels are unknown and 0 in the pixel basis. With ``base = "mixture"`` the densities
are mixed instead, w_G exp(−U_G) inside the sum, and s = 0.
δ_p + K_p is the fluctuation of the energy of pixel p, α_p = 1/(1 + τ_p/Var x). As pixels get known, h goes to 0 and the spectrum is
forgotten, c stands for c^h c̄^{1−h}, and the network is told the basis only as far as it matters (:meth:`EnergyNetwork._apart`), so that
descriptions of the same weak white noise agree. All vanishes as λ → ∞ but U_G, so U is normalised there by construction; in the pixel basis
the first line, the base, is so at all noise levels, exactly. In use U is bounded from below by the base less a little
(:mod:`anem.headroom`).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from anem.bases import Basis, Pixel, coherence
from anem.covariance import Covariance
from anem.energy import EnergyModel, Evaluation, check_observation
from anem.evaluator import Correction, Evaluator
from anem.files import read_model, write_model
from anem.headroom import Headroom
from anem.nn.embedding import SPECTRAL_FEATURES, spectral_features
from anem.nn.unet import UNet, noise_map, padded
from anem.propagation import propagate
from anem.random import check_device
from anem.statistics import DataStatistics

__all__ = ["EnergyNetwork", "NetworkConfig", "TrainingGradients"]

_FORMAT = "anem-energy-3"


@dataclass(frozen=True)
class NetworkConfig:
    """Shape of the network.

    Arguments:
        channels, blocks, attention, stem, embedding, norm, dropout: see :class:`anem.nn.unet.UNet`.
        form: "anchored", the energy of this module; "inner", the paper's ½⟨y, s(y, Σ)⟩ plus one constant fitted after training.
        rounds: of expectation propagation between pixels and coordinates (anchored form only).
        base: what the energies of Gaussian data and of independent pixels make together (anchored form only): "product", their mean,
            with a share that depends on Σ alone; "mixture", the energy of their densities mixed, in which every y is one or the other.
    """

    channels: tuple[int, ...] = (48, 96)
    blocks: tuple[int, ...] = (2, 3)
    attention: tuple[int, ...] = ()
    stem: int = 2
    embedding: int = 32
    norm: int = 0
    dropout: float = 0.0
    form: str = "anchored"
    rounds: int = 3
    base: str = "product"

    def __post_init__(self) -> None:
        if self.form not in ("anchored", "inner"):
            raise ValueError(f"form: wanted 'anchored' or 'inner', got {self.form!r}")
        if self.base not in ("product", "mixture"):
            raise ValueError(f"base: wanted 'product' or 'mixture', got {self.base!r}")
        if len(self.channels) != len(self.blocks):
            raise ValueError(f"blocks: wanted one number a level, {len(self.channels)}, got {len(self.blocks)}")
        least = {"channels": 1, "blocks": 0, "stem": 1, "embedding": 1, "norm": 0, "rounds": 0}
        for name, bound in least.items():
            value = getattr(self, name)
            if not value and isinstance(value, tuple) or min(value if isinstance(value, tuple) else (value,)) < bound:
                raise ValueError(f"{name}: wanted >= {bound}, got {value}")
        if any(level not in range(len(self.channels)) for level in self.attention):
            raise ValueError(f"attention: wanted levels between 0 and {len(self.channels) - 1}, got {self.attention}")
        if self.norm and any(c % self.norm for c in self.channels):
            raise ValueError(f"norm: wanted a divisor of the channels {self.channels}, or 0 for none, got {self.norm}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: wanted a probability below 1, got {self.dropout}")

    @classmethod
    def preset(cls, name: str) -> NetworkConfig:
        """A named shape: "tiny" (tests, 8×8), "small" (CPU) or "paper" (EDM-scale, GPU)."""
        presets = {
            "tiny": cls(channels=(32, 48), blocks=(1, 1), stem=1, embedding=16),
            "small": cls(),
            "paper": cls((128, 256, 256, 256), (4, 4, 4, 4), attention=(2,), stem=1, embedding=128, norm=32, dropout=0.1),
        }
        if name not in presets:
            raise ValueError(f"preset: wanted one of {', '.join(presets)}, got {name!r}")
        return presets[name]

    def unet(self, inputs: int, maps: int, outputs: int) -> UNet:
        """A U-Net of this shape, for so many channels in and out."""
        shape = (self.channels, self.blocks, self.attention, self.stem, self.embedding, self.norm, self.dropout)
        return UNet(inputs, maps, outputs, *shape)

    def override(self, **changes: Any) -> NetworkConfig:
        """The same shape with some fields changed."""
        return replace(self, **changes)


@dataclass(frozen=True, eq=False)
class TrainingGradients:
    """Energy (B,) and its gradients in basis coordinates (B, C, H, W), all differentiable in the parameters."""

    energy: Tensor
    grad_coordinates: Tensor
    grad_logvar: Tensor


def _bounded(x: Tensor, bound: float = 20.0) -> Tensor:
    """x where it is small against ``bound``, and never beyond it."""
    return x * torch.rsqrt(1 + (x / bound).square())


class EnergyNetwork(EnergyModel):
    """U(y, Σ) as described in the module's docstring.

    Arguments:
        config: shape of the network.
        statistics: of the data; they travel with the weights.
    """

    offset: Tensor
    _levels: Tensor
    _nats: Tensor

    def __init__(self, config: NetworkConfig, statistics: DataStatistics) -> None:
        super().__init__()
        self.config = config
        self.statistics = statistics
        colours = len(statistics.mean)
        anchored = config.form == "anchored"
        features = (4 if anchored else 1) * colours
        outputs = colours + 2 if anchored else colours
        self.unet = config.unet(features, 2 * colours, outputs)
        self.damp, self.weigh = nn.Linear(SPECTRAL_FEATURES, 1), nn.Linear(SPECTRAL_FEATURES, config.rounds + 2)
        for layer in (self.damp, self.weigh):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.register_buffer("offset", torch.zeros((), dtype=torch.float64))
        self._windows: dict[tuple, Tensor] = {}
        self._evaluator: Evaluator | None = None
        self._twins: dict[float, EnergyNetwork] = {}
        self.limit: float | None = None
        self._headroom: Headroom | None = None

    @property
    def headroom(self) -> Headroom | None:
        """How far below its base the energy may be; None, as in training: as far as it goes. A new one undoes :meth:`compile`."""
        return self._headroom

    @headroom.setter
    def headroom(self, headroom: Headroom | None) -> None:
        self._headroom, self._evaluator, self._twins = headroom, None, {}
        tables = (None, None) if headroom is None else headroom.tables(self.offset)
        # A copy has its own ones. They are no part of the weights: the card has them.
        self._buffers = {**self._buffers, "_levels": tables[0], "_nats": tables[1]}
        self._non_persistent_buffers_set = {*self._non_persistent_buffers_set, "_levels", "_nats"}

    # Base energy: closed forms in coordinates

    def _base(self, rho: Tensor, variances: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Energy (B,) of the part without a network, and its gradients in ρ and in log λ."""
        t = c + variances
        normaliser = torch.log(2 * math.pi * t) if self.config.form == "anchored" else torch.zeros_like(t)
        energy = 0.5 * (rho.square() / t + normaliser).flatten(1).sum(1)
        grad_logvar = 0.5 * (variances / t) * ((1 if self.config.form == "anchored" else 0) - rho.square() / t)
        return energy + self.offset.to(energy), rho / t, grad_logvar

    # Correction: everything a network has a part in

    def _correction(self, rho: Tensor, logvar: Tensor, basis: Basis, c: Tensor) -> Tensor:
        """U minus the energy of Gaussian data, (B,), differentiable in ρ and log λ."""
        correction, base, alone = self._parts(rho, logvar, basis, c)
        if self.limit is not None and alone is not None:
            most = self.limit * rho[0].numel()
            correction = alone + (correction - alone).clamp(-most, most)
        if self._headroom is not None and base is not None:
            d, t = rho[0].numel(), c + logvar.exp()
            room = self._headroom(logvar, basis, (self._levels, self._nats)).to(base)
            of_noise = -0.5 * (rho.square() / t + torch.log(t) - logvar).flatten(1).sum(1)  # U of the highest density there is
            correction = correction.maximum(base - d * room).maximum(of_noise)
        return correction

    def _parts(self, rho: Tensor, logvar: Tensor, basis: Basis, c: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """What the network says, the base, and independent pixels, (B,) each, less the energy of Gaussian data; nothing is bounded."""
        variances = logvar.exp()
        t = c + variances
        log_ratio = (logvar - c.log()).to(self._dtype)
        summary = spectral_features(log_ratio, basis, self._windows)
        if self.config.form == "inner":
            white = rho * t.rsqrt()
            ratio = basis.pixel_variance(variances).log() - basis.pixel_variance(c.expand_as(t)).log()
            (f,) = self._network([basis.inverse(white)], ratio, summary, (rho.shape[1],))
            return 0.5 * (white * (1 + c / variances).pow(0.25) * basis.forward(f)).flatten(1).sum(1), None, None
        level = c.mean((2, 3), keepdim=True).expand_as(t)
        share = torch.sigmoid(10 * self.damp(summary).to(rho) - 0.6)[:, :, None, None]
        pixels = propagate(rho, variances, level, basis, self.statistics, self.config.rounds, share)
        ratio = pixels.noise / pixels.spread
        scale = pixels.spread.rsqrt()
        # Where pixels are known the spectrum is forgotten, and so is the basis.
        unknown = torch.sigmoid(2 * (ratio.log().mean((1, 2, 3), keepdim=True) + math.log(16)))
        chi = coherence(basis, c)
        spectral = unknown * (1 - 1 / chi)
        apart = self._apart(logvar, unknown).to(summary)
        summary = torch.lerp(spectral_features(log_ratio, Pixel(), self._windows), summary, apart)
        blend = torch.exp(level.log() + spectral * (c.log() - level.log()))
        total, flat = blend + variances, level + variances
        gaussian, independent = (
            0.5 * (rho.square() * (1 / other - 1 / t) + torch.log(other / t)).flatten(1).sum(1) for other in (total, flat)
        )
        base = self._experts(gaussian, independent + pixels.energies, 10 * self.weigh(summary).to(rho), unknown, chi)
        white = rho * total.rsqrt()
        features = [basis.inverse(white), basis.inverse(rho * blend / total) * scale, pixels.posterior * scale, _bounded(pixels.delta / 4)]
        outputs = self._network(features, ratio.log(), summary, (rho.shape[1], 1, 1))
        field, density, gate = (o.to(rho) for o in outputs)
        fluctuation = (1 - spectral) * _bounded(pixels.delta + pixels.divergence)
        local = density[:, 0] / (1 + ratio).mean(1) + gate[:, 0] * fluctuation.sum(1)
        inner = white * (1 + blend / variances).pow(0.25) * (blend / total).sqrt() * basis.forward(field)
        return base + local.flatten(1).sum(1) + 0.5 * inner.flatten(1).sum(1), base, independent + pixels.energies[-1]

    def _experts(self, gaussian: Tensor, rounds: Tensor, logits: Tensor, unknown: Tensor, chi: Tensor) -> Tensor:
        """The energies of Gaussian data, (B,), and of independent pixels by every round, (R, B), as one, (B,).

        Arguments:
            logits: of the weights of all of them, (B, R + 1).
            unknown: how far pixels are, in [0, 1], and chi: the coherence of the data, both (B, ·, 1, 1): what limits a share.
        """
        if self.config.base == "mixture":
            return -torch.logsumexp(torch.log_softmax(logits, 1) - torch.stack([gaussian, *rounds], 1), 1)
        pixels = -torch.logsumexp(torch.log_softmax(logits[:, 1:], 1) - rounds.T, 1)
        largest = unknown.where(chi > 1 + 1e-6, 0.0).amax((1, 2, 3))
        return torch.lerp(pixels, gaussian, largest * torch.sigmoid(logits[:, 0] - logits[:, 1:].logsumexp(1)))

    def _apart(self, logvar: Tensor, unknown: Tensor) -> Tensor:
        """How much it matters in which basis Σ is diagonal, (B, 1) in [0, 1].

        White noise is the same in every basis. Its energy differs only by the base, which knows the spectrum outside pixels, and that is
        forgotten as pixels get known. There the network is told nothing but the noise level of the pixels, as if the basis were pixel.
        """
        uneven = logvar.flatten(2).var(2, correction=0).mean(1, keepdim=True)
        return (4 * uneven + unknown.flatten(1)) / (1 + 4 * uneven)

    @property
    def _dtype(self) -> torch.dtype:
        return self.unet.enter.weight.dtype

    def _network(self, features: list[Tensor], ratio: Tensor, summary: Tensor, split: Sequence[int]) -> Sequence[Tensor]:
        """The U-Net on image-space features and the log noise-to-data ratio."""
        image = torch.cat([f.to(self._dtype) for f in features], 1)
        return padded(self.unet, image, noise_map(ratio).to(self._dtype), summary).split(list(split), 1)

    # Interface

    def _setting(self, cov: Covariance, like: Tensor) -> Tensor:
        return self.statistics.variance_in(cov.basis, cov.shape[-2], cov.shape[-1], like)

    def energy(self, y: Tensor, cov: Covariance) -> Tensor:
        """U(y, Σ) in nats, (B,), differentiable in y, cov.values and the parameters; ValueError for y not finite or not of Σ's shape."""
        check_observation(y, cov, len(self.statistics.mean))
        c = self._setting(cov, y)
        rho = self.statistics.residual(y, cov.basis)
        base = self._base(rho, cov.values, c)[0]
        if torch.is_grad_enabled():
            if self._use.remote is not None:
                return base + self._use.differentiable(cov.basis, rho, cov.values.log())
            return base + self._correction(rho, cov.values.log(), cov.basis, c)
        return base + self._use.correction(cov.basis, False, rho, cov.values)[0]

    def below_base(self, y: Tensor, cov: Covariance) -> Tensor:
        """(U_base − U)/d, (B,), of the energy without a bound; see :mod:`anem.headroom`.

        Raises:
            ValueError: the form without a base.
        """
        rho = self.statistics.residual(y, cov.basis)
        correction, base, _ = self._parts(rho, cov.values.log(), cov.basis, self._setting(cov, y))
        if base is None:
            raise ValueError(f"headroom: wanted the form 'anchored', which has a base, got {self.config.form!r}")
        return (base - correction) / rho[0].numel()

    def differentiable_gradients(self, rho: Tensor, cov: Covariance, create_graph: bool = True) -> TrainingGradients:
        """Energy and both gradients at y = μ + Bᵀρ; with ``create_graph`` differentiable in the parameters, for training."""
        if create_graph:
            correction, grad_rho, grad_logvar = Correction(self, cov.basis, True, True)(rho, cov.values)
        else:
            correction, grad_rho, grad_logvar = self._use.correction(cov.basis, True, rho, cov.values)
        base, base_rho, base_logvar = self._base(rho, cov.values, self._setting(cov, rho))
        return TrainingGradients(base + correction, base_rho + grad_rho, cov.basis.symmetrise(base_logvar + grad_logvar))

    def differentiable_energy(self, rho: Tensor, cov: Covariance) -> Tensor:
        """U(μ + Bᵀρ, Σ) in nats, (B,), differentiable in the parameters, for training; nothing is checked."""
        (correction,) = Correction(self, cov.basis, False)(rho, cov.values)
        return self._base(rho, cov.values, self._setting(cov, rho))[0] + correction

    @property
    def _use(self) -> Evaluator:
        """How this network is evaluated; a copy starts with the ordinary way."""
        if self._evaluator is None:
            self._evaluator = Evaluator(self)
        return self._evaluator

    def compile(self, rows: int | None = None, after: int | None = None) -> None:
        """Evaluate by recorded code from now on where that pays: in batches of one basis, except where autograd follows the energy.

        On the CPU it is machine code: compiling takes up to three minutes for every basis, image size and dtype, with and without
        gradients; calls then take 0.55 to 0.7 of the time. Results differ from the ordinary ones by rounding (about 1e-6 of themselves).
        On a CUDA device it is a graph of the same kernels, made in a second. A copy is not compiled.

        Arguments:
            rows: most images of one call of the recorded code, 32 on the CPU and 512 on CUDA; larger batches are cut up. On the CPU
                smaller rests run as usual.
            after: how much runs as usual before code is made for it: 1024 images on the CPU, 2 calls on CUDA.

        Raises:
            ValueError: no C++ compiler; a model on another kind of device, or with dropout that is switched on.
        """
        if self.training and self.config.dropout:
            raise ValueError("compile: wanted a model in evaluation mode, as its dropout would be recorded")
        self._use.compile(rows, after)
        self._twins = {}

    def compute_on(self, device: torch.device | str) -> None:
        """Run the network on another device from now on, and leave all else where it is: this model, images, covariances, random numbers.

        What is drawn is then what it would be without, up to rounding, whatever the device. The device computes with a copy of the
        weights as they are now. It is for use, not for training: parameters get no gradients. A copy computes where it is itself. If it
        shall be compiled too, that comes after.

        Raises:
            ValueError: a device that is not there; a model in training mode.
        """
        check_device(device)
        if self.training:
            raise ValueError("compute_on: wanted a model in evaluation mode, as the weights elsewhere are a copy")
        self._evaluator, self._twins = Evaluator(self, copy.deepcopy(self).to(device)), {}

    def limited(self, limit: float) -> EnergyNetwork:
        """The same network, weights shared, with an energy at most ``limit`` nats/dim away from that of independent pixels.

        It is for use: it computes where this one does now, is compiled if this one is, and is not saved with its limit.

        Raises:
            ValueError: limit ≤ 0; the form without a base.
        """
        if not limit > 0 or self.config.form != "anchored":
            raise ValueError(f"limit: wanted a number > 0 and the form 'anchored', got {limit} and {self.config.form!r}")
        if limit not in self._twins:
            twin, remote = copy.copy(self), self._use.remote
            twin.limit = limit
            twin._evaluator = Evaluator(twin, None if remote is None else remote.limited(limit), self._use.record)
            self._twins = {limit: twin}
        return self._twins[limit]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_evaluator": None, "_twins": {}}

    def forward(self, y: Tensor, cov: Covariance) -> Evaluation:
        """Energy and both gradients at (y, Σ), detached. κ is built around the base's c/t, so it stays exact where λ ≫ c.

        This is what samplers call: y that is not finite has no energy, NaN, and they judge what that means (a refused proposal, or
        :class:`anem.sample.Diverged`). Another shape than that of Σ is a ValueError.
        """
        check_observation(y, cov, len(self.statistics.mean), finite=False)
        with torch.no_grad():
            basis, variances = cov.basis, cov.values
            rho = self.statistics.residual(y, basis)
            c = self._setting(cov, y)
            base = self._base(rho, variances, c)
            total = self.differentiable_gradients(rho, cov, create_graph=False)
            grad_y = basis.inverse(total.grad_coordinates)
            kappa = None
            if self.config.form == "anchored":
                extra = total.grad_coordinates - base[1]
                extra_logvar = total.grad_logvar - basis.symmetrise(base[2])
                kappa = c / (c + variances) - 2 * extra_logvar - variances * basis.symmetrise(extra * (extra + 2 * base[1]))
            return Evaluation(y, cov, total.energy.detach(), grad_y, total.grad_logvar, kappa)

    # Files

    def save_pretrained(self, folder: str | Path, card: Mapping[str, object] | None = None) -> None:
        """Write ``model.safetensors`` and ``card.json`` into ``folder``, both under temporary names before either takes its place.

        Arguments:
            card: what else the card should say: data, split, steps, figures.
        """
        full = {**(card or {}), "format": _FORMAT, "network": asdict(self.config), "statistics": self.statistics.shape()}
        if self.headroom is not None:
            full["headroom"] = asdict(self.headroom)
        write_model(Path(folder), self, full)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> EnergyNetwork:
        """The model saved in ``folder``, in evaluation mode, its parameters frozen.

        Raises:
            FileNotFoundError: no such files.
            ValueError: a card or weights of another kind of model.
        """

        def build(card: dict[str, Any]) -> EnergyNetwork:
            network = {"base": "mixture"} | card["network"]  # what there was before the field
            model = cls(NetworkConfig(**network), DataStatistics(**card["statistics"]))
            model.headroom = Headroom.of(card["headroom"]) if "headroom" in card else None
            return model

        return read_model(folder, _FORMAT, build)
