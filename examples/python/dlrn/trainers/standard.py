"""Standard SAEs."""
from ..dictionary import AutoEncoder  # noqa: F401
from . import StandardTrainer, StandardTrainerAprilUpdate  # noqa: F401
