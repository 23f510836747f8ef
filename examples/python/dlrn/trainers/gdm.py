"""Gated SAEs."""
from ..dictionary import GatedAutoEncoder  # noqa: F401
from . import GatedSAETrainer  # noqa: F401
