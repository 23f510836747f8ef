"""The name that dictionary_learning has for the buffer of models without nnsight: ours takes both kinds."""

from .buffer import ActivationBuffer

__all__ = ["ActivationBuffer"]
