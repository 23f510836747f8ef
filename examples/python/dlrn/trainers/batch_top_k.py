"""BatchTopK SAEs."""
from ..dictionary import BatchTopKSAE  # noqa: F401
from . import BatchTopKTrainer  # noqa: F401
