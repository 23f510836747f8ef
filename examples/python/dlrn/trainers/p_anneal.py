"""SAEs with p-annealing."""
from ..dictionary import AutoEncoder  # noqa: F401
from . import PAnnealTrainer  # noqa: F401
