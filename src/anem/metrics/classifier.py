"""A small digit classifier: labels of restored digits, and features to compare sets of digits in."""

from __future__ import annotations

import os
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

__all__ = ["DigitClassifier"]

_BUNDLED = Path(__file__).parent.parent / "weights" / "digit_classifier.safetensors"


class DigitClassifier(nn.Module):
    """Three convolutions, 64 features, ten logits; 61 thousand parameters, for grey 28 × 28 images in [0, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 16, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Dropout(0.2),
            nn.Linear(64 * 9, 64),
            nn.ReLU(),
        )
        self.head = nn.Linear(64, 10)

    @classmethod
    def load(cls, path: str | os.PathLike = _BUNDLED) -> DigitClassifier:
        """The trained classifier, in evaluation mode: the bundled one unless a safetensors file is named.

        Raises:
            ValueError: the file is missing or of another network.
        """
        model = cls()
        try:
            model.load_state_dict(load_file(path))
        except (OSError, RuntimeError, SafetensorError) as error:
            raise ValueError(f"{path}: not the weights of a digit classifier: {error}") from None
        return model.requires_grad_(False).eval()

    def features(self, x: Tensor) -> Tensor:
        """The last hidden layer, (B, 64), of digits (B, 1, 28, 28)."""
        if x.shape[1:] != (1, 28, 28):
            raise ValueError(f"x: wanted digits (B, 1, 28, 28), got {tuple(x.shape)}")
        return self.body(x)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, 10) of digits (B, 1, 28, 28)."""
        return self.head(self.features(x))
