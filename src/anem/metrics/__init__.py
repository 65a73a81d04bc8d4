"""How good restorations are: distances to the truth, between sets of images, to the measurement, between samples, with intervals.

Nothing here needs torchvision. Weights of the perceptual networks come from a directory that the caller names (``make data`` fills
``data/``); the digit classifier's are bundled.
"""

from anem.metrics.classifier import DigitClassifier
from anem.metrics.distributions import Inception, frechet_distance, kernel_distance
from anem.metrics.intervals import Interval, Statistic, bootstrap, kernel_statistic, kernel_within, mean_statistic
from anem.metrics.perceptual import DISTS, LPIPS
from anem.metrics.pixels import consistency, diversity, psnr, ssim

__all__ = [
    "DISTS",
    "LPIPS",
    "DigitClassifier",
    "Inception",
    "Interval",
    "Statistic",
    "bootstrap",
    "consistency",
    "diversity",
    "frechet_distance",
    "kernel_distance",
    "kernel_statistic",
    "kernel_within",
    "mean_statistic",
    "psnr",
    "ssim",
]
