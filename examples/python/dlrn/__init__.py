"""Sparse autoencoders (dictionary learning) on the CPU: dictlearn.h for Python."""

from ._core import (
    ArgumentError,
    CallbackError,
    Context,
    DlrnError,
    FileError,
    FormatError,
    MissingFile,
    NotFinite,
    OutOfMemory,
    ShapeError,
    Stopped,
    Unsupported,
    default_context,
)
from .dictionary import (
    AbsTopK,
    AutoEncoder,
    AutoEncoderNew,
    AutoEncoderTopK,
    BatchTopKSAE,
    Cosine,
    Crosscoder,
    CrossLayerTranscoder,
    Dictionary,
    GatedAutoEncoder,
    GatedTopK,
    Glu,
    GroupMax,
    IdentityDict,
    JumpReluAutoEncoder,
    MatchingPursuit,
    MatryoshkaBatchTopKSAE,
    Temporal,
    load_dictionary,
)
from . import interp, utils
from .buffer import ActivationBuffer, NNsightActivationBuffer
from .evaluation import Evaluator, Metrics, evaluate, weight_figures
from .models import edited, rows_at
from .sources import Source, source_of
from .tables import kernels, load_tensors, recipes, version
from .training import Trainer, trainSAE

__version__ = version

# Written out for type checkers, which do not run this file.
__all__ = [
    "AbsTopK",
    "ActivationBuffer",
    "ArgumentError",
    "AutoEncoder",
    "AutoEncoderNew",
    "AutoEncoderTopK",
    "BatchTopKSAE",
    "CallbackError",
    "Context",
    "Cosine",
    "Crosscoder",
    "CrossLayerTranscoder",
    "default_context",
    "Dictionary",
    "DlrnError",
    "edited",
    "evaluate",
    "Evaluator",
    "FileError",
    "FormatError",
    "GatedAutoEncoder",
    "GatedTopK",
    "Glu",
    "GroupMax",
    "IdentityDict",
    "JumpReluAutoEncoder",
    "kernels",
    "load_dictionary",
    "load_tensors",
    "MatchingPursuit",
    "MatryoshkaBatchTopKSAE",
    "Metrics",
    "MissingFile",
    "NNsightActivationBuffer",
    "NotFinite",
    "OutOfMemory",
    "recipes",
    "rows_at",
    "ShapeError",
    "Source",
    "source_of",
    "Stopped",
    "Temporal",
    "Trainer",
    "trainSAE",
    "Unsupported",
    "version",
    "weight_figures",
]
