"""Matryoshka SAEs."""
from ..dictionary import MatryoshkaBatchTopKSAE  # noqa: F401
from . import MatryoshkaBatchTopKTrainer  # noqa: F401
