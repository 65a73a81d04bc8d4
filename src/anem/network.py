"""The learned energy: an exactly normalised base plus a network correction that vanishes at the anchor.

With ρ = B(y − μ), c the data variance in the basis, t = c + λ and a = c/t,

    U = Σ_k ½[ρ_k²/t_k + log 2πt_k]                             exact for Gaussian data; t_k = c_k^{1−h} c̄^h + λ_k
      + Σ_p [(1 + g_p) s_p (δ_p + K(τ_p)) − K(τ̄_p)]             single pixels are not Gaussian
      + Σ_k a_k ψ_k(Σ)                                          what that does to the mean
      + ½ ⟨ρ/√t (1 + c/λ)^{1/4} √a, B F⟩ + Σ_p α_p e_p          the rest

h(Σ) ∈ (0, 1) goes to 1 as pixels become known, see :meth:`EnergyNetwork._tempered`. F, e and g are outputs of one U-Net, ψ of a small
network that sees Σ alone (:class:`~anem.nn.embedding.CovarianceConstant`).
δ_p = −log p_mix(m; τ) + log p_Gauss(m; τ) compares a scalar mixture with a Gaussian prior for pixel p, both seen through a scalar
observation of that pixel (see :class:`PixelObservations`); −K(τ) is its mean, s the share of independent pixels and τ̄ the noise that
stands for all of Σ. The gate g scales the fluctuation alone: scaling the mean with it would make it a lever for the constant, which is ψ's.
In the pixel basis m = y, τ = τ̄ = λ, s = 1, and U with g = ψ = F = e = 0 is the exact energy of independent mixture pixels.
α_p = 1/(1 + τ/Var x). δ + K, K, α and √a vanish as λ → ∞, so U is normalised there by construction.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn.functional import pad

from anem.covariance import Basis, Covariance, Pixel, coherence
from anem.energy import EnergyModel, Evaluation
from anem.nn.embedding import SPECTRAL_FEATURES, CovarianceConstant, coordinate_features, spectral_features
from anem.nn.unet import UNet
from anem.statistics import DataStatistics

__all__ = ["EnergyNetwork", "NetworkConfig", "TrainingGradients"]

_FORMAT = "anem-energy-2"
_POWER = 1 / 3


@dataclass(frozen=True)
class NetworkConfig:
    """Shape of the network.

    Arguments:
        channels, blocks, attention, stem, embedding, norm, dropout: see :class:`anem.nn.unet.UNet`.
        constant: hidden channels of the network ψ of Σ alone, 0 for none (anchored form only).
        form: "anchored", the energy of this module; "inner", the paper's ½⟨y, s(y, Σ)⟩ plus one constant fitted after training.
        marginal: use the pixel marginals δ (anchored form only).
    """

    channels: tuple[int, ...] = (48, 96)
    blocks: tuple[int, ...] = (2, 3)
    attention: tuple[int, ...] = ()
    stem: int = 2
    embedding: int = 32
    norm: int = 0
    dropout: float = 0.0
    constant: int = 48
    form: str = "anchored"
    marginal: bool = True

    def __post_init__(self) -> None:
        if self.form not in ("anchored", "inner"):
            raise ValueError(f"form: wanted 'anchored' or 'inner', got {self.form!r}")
        if len(self.channels) != len(self.blocks):
            raise ValueError(f"blocks: wanted one number a level, {len(self.channels)}, got {len(self.blocks)}")

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

    def override(self, **changes: Any) -> NetworkConfig:
        """The same shape with some fields changed."""
        return replace(self, **changes)


@dataclass(frozen=True, eq=False)
class TrainingGradients:
    """Energy (B,) and its gradients in basis coordinates (B, C, H, W), all differentiable in the parameters."""

    energy: Tensor
    grad_coordinates: Tensor
    grad_logvar: Tensor


@dataclass(frozen=True, eq=False)
class PixelObservations:
    """What (y, Σ) says about each pixel on its own: m = x + N(0, τ), (B, C, H, W) each.

    Arguments:
        shift: m − μ. noise: τ.
        share: independent pixel observations per pixel; the mean-field sum over pixels counts fluctuations this much.
        likely: noise variance τ̄ that stands for all of Σ in the mean of δ.
        spread: variance of x about μ.
    """

    shift: Tensor
    noise: Tensor
    share: Tensor
    likely: Tensor
    spread: Tensor


class EnergyNetwork(EnergyModel):
    """U(y, Σ) as described in the module's docstring.

    Arguments:
        config: shape of the network.
        statistics: of the data; they travel with the weights.
    """

    offset: Tensor

    def __init__(self, config: NetworkConfig, statistics: DataStatistics) -> None:
        super().__init__()
        self.config = config
        self.statistics = statistics
        colours = len(statistics.mean)
        anchored = config.form == "anchored"
        features = (2 + 2 * config.marginal if anchored else 1) * colours
        outputs = colours + 2 if anchored else colours
        self.unet = UNet(
            features,
            2 * colours,
            outputs,
            config.channels,
            config.blocks,
            config.attention,
            config.stem,
            config.embedding,
            config.norm,
            config.dropout,
        )
        self.constant = CovarianceConstant(colours, config.constant, self.unet.scope) if anchored and config.constant else None
        self.temper = nn.Linear(SPECTRAL_FEATURES, 1)
        nn.init.zeros_(self.temper.weight)
        nn.init.constant_(self.temper.bias, -2 * math.log(4))
        self.register_buffer("offset", torch.zeros((), dtype=torch.float64))
        self._windows: dict[tuple, Tensor] = {}

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
        """U minus the base energy, (B,), differentiable in ρ and log λ."""
        variances = logvar.exp()
        t = c + variances
        a = c / t
        log_ratio = (logvar - c.log()).to(self._dtype)
        summary = spectral_features(log_ratio, basis, self._windows)
        if self.config.form == "inner":
            white = rho * t.rsqrt()
            ratio = basis.pixel_variance(variances).log() - basis.pixel_variance(c.expand_as(t)).log()
            (f,) = self._network([basis.inverse(white)], ratio, summary, (rho.shape[1],))
            return 0.5 * (white * (1 + c / variances).pow(0.25) * basis.forward(f)).flatten(1).sum(1)
        pixels = self._pixel_observations(rho, variances, c, basis)
        ratio = pixels.noise / pixels.spread
        scale = pixels.spread.rsqrt()
        apart = self._apart(logvar, ratio)
        as_pixel = spectral_features(log_ratio, Pixel(), self._windows)
        summary = torch.lerp(as_pixel, summary, apart.to(summary))
        flat, tempering = self._tempered(rho, variances, c, ratio, summary)
        white = rho * flat.rsqrt()
        features = [basis.inverse(white), basis.inverse(rho * a) * scale]
        energy = tempering
        if self.constant is not None:
            where = coordinate_features(basis, *rho.shape[-2:], log_ratio, self._windows)
            energy = energy + apart[:, 0] * (a * self.constant(log_ratio, where, summary).to(rho)).flatten(1).sum(1)
        fluctuation: Tensor | None = None
        if self.config.marginal:
            fluctuation, mean, posterior = self._marginals(pixels, rho)
            features += [posterior * scale, (fluctuation + mean) / 4]
            energy = energy + mean.flatten(1).sum(1)
        outputs = self._network(features, ratio.log(), summary, (rho.shape[1], 1, 1))
        field, density, gate = (o.to(rho) for o in outputs)
        local = density[:, 0] / (1 + ratio).mean(1)
        if fluctuation is not None:
            local = local + (1 + gate[:, 0]) * fluctuation.sum(1)
        inner = white * (1 + c / variances).pow(0.25) * a.sqrt() * basis.forward(field)
        return energy + local.flatten(1).sum(1) + 0.5 * inner.flatten(1).sum(1)

    def _pixel_observations(self, rho: Tensor, variances: Tensor, c: Tensor, basis: Basis) -> PixelObservations:
        """See :class:`PixelObservations`. In the pixel basis, and for white noise of small variance, it is (y − μ, λ, 1, λ).

        There are two candidates: y itself with its own noise diag Σ, and what the Gaussian base says after borrowing from correlated
        pixels, which has variance v against w explained and amounts to noise v(v + w)/w. Their errors are independent between pixels only
        as far as their covariances V are diagonal there: ‖V‖²_F/‖diag V‖² pixels err together. The better one, counted so, wins.
        """
        each = c * variances / (c + variances)
        v, w = basis.pixel_variance(each), basis.pixel_variance(c * c / (c + variances))
        own, borrowed = basis.pixel_variance(variances), v * (v + w) / w
        apart, together = coherence(basis, variances).log(), coherence(basis, each).log()
        q = torch.sigmoid(2 * (borrowed.log() + together - own.log() - apart))
        noise = torch.exp(borrowed.log() + q * (own.log() - borrowed.log()))
        share = torch.exp(-together + q * (together - apart))
        shift = basis.inverse(rho * c / (c + variances)) * (1 - q) * (v + w) / w + basis.inverse(rho) * q
        # How well a pixel is known when most coordinates are: a power mean of the error spectrum, which neither a few lost frequencies nor
        # a few perfect ones dominate. 1/τ̄ = 1/M(each) − 1/M(c) is λ in pixels, and infinite where nothing is observed.
        power = c.pow(_POWER)
        unknown = basis.pixel_variance(power.expand_as(each))
        gained = basis.pixel_variance(power * -torch.expm1(-_POWER * torch.log1p(c / variances)))
        likely = unknown.pow(1 / _POWER) / torch.expm1(-torch.log1p(-gained / unknown) / _POWER)
        return PixelObservations(shift, noise, share, likely, v + w)

    def _marginals(self, pixels: PixelObservations, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """s (δ + K(τ)), −K(τ̄), and the posterior mean of each pixel minus μ, (B, C, H, W) each."""
        marginal, centre = self.statistics.marginal, self.statistics.mean_image(like)
        log_p, posterior = marginal(centre + pixels.shift, pixels.noise)
        wide = pixels.spread + pixels.noise
        delta = -0.5 * (torch.log(2 * math.pi * wide) + pixels.shift.square() / wide) - log_p
        centred = delta + marginal.divergence(pixels.noise)
        return pixels.share * centred, -marginal.divergence(pixels.likely), posterior - centre

    def _apart(self, logvar: Tensor, ratio: Tensor) -> Tensor:
        """How much it matters in which basis Σ is diagonal, (B, 1) in [0, 1].

        White noise is the same in every basis. Its energy differs only by the base, which knows the spectrum outside pixels, and that is
        forgotten as noise gets small. There the network is told nothing but the noise level of the pixels, as if the basis were pixel.
        """
        uneven = logvar.flatten(2).var(2, correction=0).mean(1, keepdim=True)
        known = -ratio.log().flatten(1).mean(1, keepdim=True)
        return 1 - torch.sigmoid(2 * known - 2 * math.log(4)) / (1 + 4 * uneven)

    def _tempered(self, rho: Tensor, variances: Tensor, c: Tensor, ratio: Tensor, summary: Tensor) -> tuple[Tensor, Tensor]:
        """t_h = c^{1−h} c̄^h + λ, and the Gaussian base energy with t_h in place of t minus the one with t, (B,).

        Where noise is small, the pixel marginals already say most of what the spectrum says, and counting both is wrong by nats per
        pixel; h, a function of Σ alone, fades the spectrum out there. Both energies are exactly normalised.
        """
        known = -ratio.log().flatten(1).mean(1, keepdim=True)
        h = torch.sigmoid(2 * known + self.temper(summary).to(known))[:, :, None, None]
        t = c + variances
        flat = torch.exp(c.log() + h * (c.mean((2, 3), keepdim=True).log() - c.log())) + variances
        difference = 0.5 * (rho.square() * (1 / flat - 1 / t) + torch.log(flat / t))
        return flat, difference.flatten(1).sum(1)

    @property
    def _dtype(self) -> torch.dtype:
        return self.unet.enter.weight.dtype

    def _network(self, features: list[Tensor], ratio: Tensor, summary: Tensor, split: Sequence[int]) -> Sequence[Tensor]:
        """The U-Net on image-space features and the log noise-to-data ratio, padded to a size it can halve."""
        dtype = self._dtype
        height, width = ratio.shape[-2:]
        extra = (0, -width % self.unet.multiple, 0, -height % self.unet.multiple)
        noise_map = torch.cat([ratio / 8, torch.sigmoid(-ratio)], 1).to(dtype)
        image = torch.cat([f.to(dtype) for f in features], 1)
        if any(extra):
            noise_map, image = pad(noise_map, extra), pad(image, extra)
        return self.unet(image, noise_map, summary)[..., :height, :width].split(list(split), 1)

    # Interface

    def _setting(self, cov: Covariance, like: Tensor) -> Tensor:
        return self.statistics.variance_in(cov.basis, cov.shape[-2], cov.shape[-1], like)

    def energy(self, y: Tensor, cov: Covariance) -> Tensor:
        """U(y, Σ) in nats, (B,), differentiable in y, cov.values and the parameters."""
        c = self._setting(cov, y)
        rho = self.statistics.residual(y, cov.basis)
        return self._base(rho, cov.values, c)[0] + self._correction(rho, cov.values.log(), cov.basis, c)

    def differentiable_gradients(self, rho: Tensor, cov: Covariance, create_graph: bool = True) -> TrainingGradients:
        """Energy and both gradients at y = μ + Bᵀρ; with ``create_graph`` differentiable in the parameters, for training."""
        c = self._setting(cov, rho)
        with torch.enable_grad(), self.unet.scope.inputs_only():
            leaf = rho.detach().requires_grad_()
            logvar = cov.values.detach().log().requires_grad_()
            correction = self._correction(leaf, logvar, cov.basis, c)
            grad_rho, grad_logvar = torch.autograd.grad(correction.sum(), (leaf, logvar), create_graph=create_graph)
        base, base_rho, base_logvar = self._base(rho, cov.values, c)
        return TrainingGradients(base + correction, base_rho + grad_rho, cov.basis.symmetrise(base_logvar + grad_logvar))

    def forward(self, y: Tensor, cov: Covariance) -> Evaluation:
        """Energy and both gradients at (y, Σ), detached. κ is built around the base's c/t, so it stays exact where λ ≫ c."""
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
        """Write ``model.safetensors`` and ``card.json`` into ``folder``, each under a temporary name first.

        Arguments:
            card: what else the card should say: data, split, steps, figures.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        _, height, width = self.statistics.spectrum.shape
        shape = {"channels": len(self.statistics.mean), "height": height, "width": width, "dct": list(self.statistics.dct)}
        full = {**(card or {}), "format": _FORMAT, "network": asdict(self.config), "statistics": shape}
        tensors = {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}
        for name, data in (("model.safetensors", save(tensors)), ("card.json", json.dumps(full, indent=1).encode())):
            temporary = folder / f".{name}.tmp"
            try:
                temporary.write_bytes(data)
                temporary.replace(folder / name)
            finally:
                temporary.unlink(missing_ok=True)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> EnergyNetwork:
        """The model saved in ``folder``.

        Raises:
            FileNotFoundError: no such files.
            ValueError: a card or weights of another kind of model.
        """
        folder = Path(folder)
        try:
            card = json.loads((folder / "card.json").read_text())
            if card.get("format") != _FORMAT:
                raise ValueError(f"its card says format {card.get('format')!r}, wanted {_FORMAT!r}")
            network: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in card["network"].items()}
            model = cls(NetworkConfig(**network), DataStatistics(**card["statistics"]))
            model.load_state_dict(load((folder / "model.safetensors").read_bytes()))
        except FileNotFoundError:
            raise
        except (AttributeError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
            raise ValueError(f"{folder}: not a model of this package: {' '.join(str(error).split())[:200]}") from None
        return model
