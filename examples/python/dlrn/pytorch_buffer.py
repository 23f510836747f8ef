"""The ActivationBuffer for models without nnsight; here there is one for both."""

from .buffer import ActivationBuffer as ActivationBuffer
