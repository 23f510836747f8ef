"""Gated SAEs with p-annealing."""
from ..dictionary import GatedAutoEncoder  # noqa: F401
from . import GatedAnnealTrainer  # noqa: F401
