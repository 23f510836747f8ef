"""TopK SAEs."""
from ..dictionary import AutoEncoderTopK  # noqa: F401
from . import TopKTrainer  # noqa: F401
