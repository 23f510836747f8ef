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

__all__ = [name for name in dir() if not name.startswith("_")]
