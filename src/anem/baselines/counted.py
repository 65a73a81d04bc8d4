"""Priors and conditional networks that count their calls: what a restoration costs, whatever its method says of itself."""

from __future__ import annotations

from torch import Tensor

from anem.baselines.conditional import ConditionalNetwork, Model
from anem.covariance import Covariance
from anem.energy import EnergyModel, Evaluation

__all__ = ["Counted", "CountedNetwork", "counted"]


class Counted(EnergyModel):
    """A model that counts calls by image: ``rows`` images were looked at so far."""

    def __init__(self, model: EnergyModel) -> None:
        super().__init__()
        self.model, self.statistics, self.rows = model, model.statistics, 0

    def energy(self, y: Tensor, cov: Covariance) -> Tensor:
        self.rows += len(y)
        return self.model.energy(y, cov)

    def forward(self, y: Tensor, cov: Covariance) -> Evaluation:
        self.rows += len(y)
        return self.model(y, cov)


class CountedNetwork(ConditionalNetwork):
    """A conditional network with the same weights that counts its calls by image, and computes where those weights are."""

    def __init__(self, network: ConditionalNetwork) -> None:
        super().__init__(network.config, network.problem, network.statistics)
        self.load_state_dict(network.state_dict())
        self.device = next(network.parameters()).device
        self.eval().requires_grad_(False).to(self.device)
        self.rows = 0

    def forward(self, seen: Tensor, x: Tensor, level: Tensor) -> Tensor:
        self.rows += len(x)
        return super().forward(seen.to(self.device), x.to(self.device), level.to(self.device)).to(x.device)


def counted(model: Model) -> Counted | CountedNetwork:
    """The same model with a count."""
    return Counted(model) if isinstance(model, EnergyModel) else CountedNetwork(model)
