"""anem: Anisotropic Normalized Energy Models for image restoration."""

__version__ = "0.1.0"
