"""Parameters of dictionaries: views of the library's memory that NumPy and torch both take."""

from __future__ import annotations

import sys
import weakref
from typing import Any, Dict, Optional, Tuple

import numpy as np

from ._core import ShapeError, _is_torch, lib


class Parameter(np.ndarray):
    """A view of a dictionary's weights, f32. The dictionary computes with what is written to it.

    It is a NumPy array that also has what code for torch's parameters uses: torch's functions take
    it, and `p.data = x` copies x into it.
    """

    @property  # type: ignore[override]
    def data(self) -> "Parameter":
        """The parameter itself, as torch's `data` is."""
        return self

    @data.setter
    def data(self, values: Any) -> None:
        put(self, values, "data")

    @property
    def requires_grad(self) -> bool:
        """False: nothing here has a gradient."""
        return False

    def clone(self) -> Any:
        """A copy: a torch tensor where torch is imported, otherwise an array."""
        return as_torch_does(np.array(self))

    def detach(self) -> "Parameter":
        """The parameter itself."""
        return self

    cpu = detach
    float = detach

    def numpy(self) -> np.ndarray:
        """The same memory as a plain array."""
        return self.view(np.ndarray)

    @classmethod
    def __torch_function__(
        cls, function: Any, _types: Any, args: Any = (), kwargs: Optional[dict] = None
    ) -> Any:
        """torch calls this for its functions on a Parameter: they get a tensor on its memory."""
        return function(*_tensors(args), **{k: _tensors(v) for k, v in (kwargs or {}).items()})


def _tensors(value: Any) -> Any:
    """The same value with tensors in the place of parameters, in tuples and lists, too."""
    if isinstance(value, Parameter):
        return sys.modules["torch"].from_numpy(value.view(np.ndarray))
    if isinstance(value, (tuple, list)):
        return type(value)(_tensors(v) for v in value)
    return value


def as_torch_does(array: np.ndarray) -> Any:
    """A torch tensor on the array's memory if torch is imported, otherwise the array itself."""
    torch = sys.modules.get("torch")
    return array if torch is None else torch.from_numpy(array.view(np.ndarray))


def put(parameter: np.ndarray, values: Any, name: str) -> None:
    """Copies values of the same shape into a parameter."""
    if _is_torch(values):
        values = values.detach().cpu().to(sys.modules["torch"].float32).numpy()
    array = np.asarray(values, dtype=np.float32)
    if array.shape != parameter.shape:
        raise ShapeError(
            f"{name}: expected shape {list(parameter.shape)}, found {list(array.shape)}"
        )
    parameter[...] = array


class Written:
    """Whether parameters may have been written to since the last call of the library.

    All objects for one dlrn_dictionary and its parts share one of these: what is written through
    any of them, the calls of all of them must see.
    """

    def __init__(self, pointer: Any) -> None:
        self.pointer = pointer
        self.flag = False
        # By address: what all views of that memory, also torch's, have at their root.
        self.roots: "weakref.WeakValueDictionary[int, np.ndarray]" = weakref.WeakValueDictionary()

    def tell(self) -> None:
        """Tells the library. A view that is still in use may be written to until the next call."""
        if self.flag:
            lib.dlrn_dictionary_changed(self.pointer)
        self.flag = len(self.roots) > 0
