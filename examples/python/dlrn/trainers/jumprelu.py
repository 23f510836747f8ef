"""JumpReLU SAEs."""
from ..dictionary import JumpReluAutoEncoder  # noqa: F401
from . import JumpReluTrainer  # noqa: F401
