"""The base of the trainers."""
from . import SAETrainer  # noqa: F401
