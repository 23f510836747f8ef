"""What the whole package rests on: the library, contexts, errors, callbacks, and rows of arrays.

Every call that works runs without Python's lock, so that other threads go on. A context has a lock
of its own, since the library allows one call at a time on a context and the objects made with it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import sys
import threading
import weakref
from typing import Any, Callable, List, NoReturn, Optional, Tuple

import numpy as np

from ._abi import ffi

# One name on every system: loaders go by a library's contents, as they do for Python's own modules.
_PATH = os.path.join(os.path.dirname(__file__), "libdictlearn.so")


def _open_library() -> Any:
    """Opens the library beside this file.

    OpenMP reads its settings once, when it is loaded. Threads that wait shall sleep: where other
    programs have the cores, spinning costs ten times the work.
    """
    unset = "OMP_WAIT_POLICY" not in os.environ
    if unset:
        os.environ["OMP_WAIT_POLICY"] = "passive"
    try:
        return ffi.dlopen(_PATH)
    finally:
        if unset:
            del os.environ["OMP_WAIT_POLICY"]


lib: Any = _open_library()


# ---- Errors --------------------------------------------------------------------------------------


class DlrnError(Exception):
    """An error of the library. `status` is its number (lib.DLRN_ERR_...), the text is one line."""

    status: int = -1


class ArgumentError(DlrnError, ValueError):
    """An argument is out of range."""


class OutOfMemory(DlrnError, MemoryError):
    """There is no memory left."""


class FileError(DlrnError, OSError):
    """A file cannot be opened, read or written."""


class MissingFile(FileError, FileNotFoundError):
    """There is nothing at a path."""


class FormatError(DlrnError, ValueError):
    """A file is malformed."""


class Unsupported(DlrnError, NotImplementedError):
    """A file or a dictionary is well formed, but of a kind that this call does not take."""


class ShapeError(DlrnError, ValueError):
    """Shapes do not agree."""


class NotFinite(DlrnError, ValueError):
    """A number is not finite."""


class CallbackError(DlrnError, RuntimeError):
    """A callback failed without an exception of its own."""


class Stopped(DlrnError):
    """A callback asked to stop. After Ctrl-C, KeyboardInterrupt is raised instead."""


_ERRORS = {
    lib.DLRN_STOPPED: Stopped,
    lib.DLRN_ERR_ARGUMENT: ArgumentError,
    lib.DLRN_ERR_MEMORY: OutOfMemory,
    lib.DLRN_ERR_IO: FileError,
    lib.DLRN_ERR_FORMAT: FormatError,
    lib.DLRN_ERR_UNSUPPORTED: Unsupported,
    lib.DLRN_ERR_SHAPE: ShapeError,
    lib.DLRN_ERR_VALUE: NotFinite,
    lib.DLRN_ERR_CALLBACK: CallbackError,
}
for _status, _kind in _ERRORS.items():
    _kind.status = _status  # also of those that are raised in Python


def text(pointer: Any) -> str:
    """A C text as str; "" for NULL."""
    return ffi.string(pointer).decode("utf-8", "replace") if pointer else ""


def name_of(which: int, value: int) -> str:
    """The name of a value of an enumeration: name_of(lib.DLRN_NAMES_GATE, formula.gate)."""
    return text(lib.dlrn_name(which, value))


def value_of(which: int, name: str) -> int:
    """The value of an enumeration with this name; an ArgumentError lists the names that exist."""
    names: List[str] = []
    while name_of(which, len(names)) != "?":
        names.append(name_of(which, len(names)))
    if name not in names:
        raise ArgumentError(f"no value is called {name!r}: there are {', '.join(names)}")
    return names.index(name)


def in_python(message: str) -> str:
    """A message of the library with settings in the place of the program's flags: k=N for --k N."""
    # not within words: the hub's folders in paths are called models--google--gemma
    flag = r"(?<![^\s(])--([a-z-]+)"
    message = re.sub(flag + r" (\w+)", lambda m: f"{_keyword(m.group(1))}={m.group(2)}", message)
    return re.sub(flag, lambda m: _keyword(m.group(1)), message)


def _keyword(flag: str) -> str:
    return flag.replace("-", "_")


def error_of(status: int, message: str) -> DlrnError:
    """The exception for a status."""
    error = _ERRORS.get(status, DlrnError)(message)
    error.status = status
    return error


# ---- Contexts ------------------------------------------------------------------------------------


class _Refused:
    """Stands in the place of a context's lock where no call is possible any more."""

    def __init__(self, reason: str) -> None:
        self.reason = reason

    def __enter__(self) -> NoReturn:
        raise ArgumentError(self.reason)

    def __exit__(self, *_: Any) -> None:
        pass


class _Raised:
    """The exception that a callback has raised, until the call that it stopped has returned."""

    value: Optional[BaseException] = None

    def keep(self, error: BaseException) -> int:
        """Keeps the first exception. Returns the status that ends the call in the right way."""
        if self.value is None:
            self.value = error
        # Ctrl-C is a wish, not a failure: runs that were stopped can go on.
        return int(lib.DLRN_ERR_CALLBACK if isinstance(error, Exception) else lib.DLRN_STOPPED)

    def take(self) -> Optional[BaseException]:
        """The exception, which is forgotten."""
        value, self.value = self.value, None
        return value


class Context:
    """Threads, kernels, and what objects of the library share.

    Args:
        threads: workers; 0: all cores, as OpenMP counts them.
        kernels: the name of a kernel set (`dlrn.kernels()` lists them); None: the best one.

    Calls on one context wait for each other; different contexts run at the same time. It is freed
    when it is closed and the last object made with it is gone. In the child of a fork a context
    goes on with one thread, since OpenMP's threads do not exist there.
    """

    def __init__(self, threads: int = 0, kernels: Optional[str] = None) -> None:
        self.raised = _Raised()
        self.lock: Any = threading.RLock()
        self._handle: Any = _create_context(threads, kernels, self.raised)
        _contexts.add(self)

    @property
    def pointer(self) -> Any:
        """The dlrn_context."""
        if self._handle is None:
            raise ArgumentError("this context is closed")
        return self._handle

    def close(self) -> None:
        """Allows no more calls. Memory that objects still need stays until they are gone."""
        with self.lock:
            self._handle = None
            self.lock = _Refused("this context is closed")

    def __enter__(self) -> "Context":
        return self

    def __exit__(self, *_: Any) -> None:
        if self._handle is not None:
            self.close()

    def check(self, status: int) -> int:
        """Raises the error of a status; call it with the lock held, right after the call.

        An exception that a callback has raised comes first: it is the reason of the status. Returns
        the status otherwise, which is lib.DLRN_OK or lib.DLRN_END.
        """
        if self.raised.value is not None:
            error = self.raised.take()
            assert error is not None
            raise error
        if status == lib.DLRN_OK or status == lib.DLRN_END:
            return status
        if status == lib.DLRN_STOPPED:
            raise error_of(status, "stopped")
        raise error_of(status, in_python(text(lib.dlrn_error(self.pointer))))

    def call(self, function: Any, *arguments: Any) -> int:
        """Calls a function that returns a status, with the lock held, and checks the status."""
        with self.lock:
            return self.check(function(*arguments))

    def own(self, pointer: Any, destroy: Any, *keep: Any) -> Any:
        """A pointer that calls `destroy` when Python drops it. The context and `keep` outlive it."""
        handle = self.pointer

        def release(p: Any, _kept: Any = (handle, keep)) -> None:
            destroy(p)

        return ffi.gc(pointer, release)

    def callback(self, kind: str, function: Callable[..., Any], failed: Any = None) -> Any:
        """A C callback that runs `function`, whose exceptions reach the caller of the library.

        Args:
            kind: its type in C, such as "dlrn_status(*)(void *, int64_t)".
            failed: what it returns after an exception; None: DLRN_STOPPED after Ctrl-C, otherwise
                DLRN_ERR_CALLBACK.
        """
        raised = self.raised

        def keep(_kind: Any, error: BaseException, trace: Any) -> Any:
            status = raised.keep(error.with_traceback(trace))
            return status if failed is None else failed

        return ffi.callback(kind, function, onerror=keep)

    @property
    def threads(self) -> int:
        """The number of workers."""
        return int(lib.dlrn_context_describe(self.pointer).threads)

    @property
    def kernels(self) -> str:
        """The kernel set in use."""
        return text(lib.dlrn_context_describe(self.pointer).kernels)

    def __repr__(self) -> str:
        if self._handle is None:
            return "<dlrn.Context, closed>"
        return f"<dlrn.Context: {text(lib.dlrn_context_describe(self._handle).text)}>"


def _create_context(threads: int, kernels: Optional[str], raised: _Raised) -> Any:
    """A dlrn_context that frees itself. Its stop callback sees Ctrl-C: Python raises it there."""

    def keep(_kind: Any, error: BaseException, trace: Any) -> int:
        raised.keep(error.with_traceback(trace))
        return 1

    stop = ffi.callback("int(*)(void *)", lambda _user: 0, onerror=keep)
    name = ffi.NULL if kernels is None else ffi.new("char[]", kernels.encode())
    config = ffi.new("dlrn_context_config *", {"threads": threads, "kernels": name, "stop": stop})
    out = ffi.new("dlrn_context **")
    status = lib.dlrn_context_create(config, out)
    if status == lib.DLRN_ERR_MEMORY:
        raise error_of(status, "no memory for a context")
    if status != lib.DLRN_OK:
        raise error_of(status, f"no context with {threads} threads and the kernels {kernels!r}")

    def release(context: Any, _kept: Any = stop) -> None:
        lib.dlrn_context_destroy(context)

    return ffi.gc(out[0], release)


_contexts: "weakref.WeakSet[Context]" = weakref.WeakSet()
_default: Optional[Context] = None
_default_lock = threading.Lock()


def default_context() -> Context:
    """The context of all calls that are given no other; made at the first call."""
    global _default
    with _default_lock:
        if _default is None or _default._handle is None:
            _default = Context()
        return _default


def _after_fork() -> None:
    """In the child of a fork: OpenMP runs one thread, and no lock belongs to a thread that is gone.

    libgomp waits for ever for the threads that it had in the parent. With no active levels it
    starts none. What another thread was changing at the fork is lost, so that context is refused.
    """
    global _default, _default_lock
    _default_lock = threading.Lock()
    with contextlib.suppress(AttributeError):
        _openmp.omp_set_max_active_levels(0)
    for context in list(_contexts):
        if isinstance(context.lock, _Refused):
            continue
        if context.lock.acquire(blocking=False):
            context.lock.release()
            continue
        context.lock = _Refused("another thread was using this context when the process forked")
        if context is _default:
            _default = None


if hasattr(os, "register_at_fork"):
    # dlsym also finds the functions of the OpenMP that the library was linked with.
    _openmp = ctypes.CDLL(_PATH)
    os.register_at_fork(after_in_child=_after_fork)


# ---- Rows ----------------------------------------------------------------------------------------


def _is_torch(x: Any) -> bool:
    """Whether x is a torch tensor. torch is never imported for this."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.Tensor)


def _array_of_tensor(x: Any, name: str) -> np.ndarray:
    """A torch tensor as f32, sharing its memory where that is f32 already."""
    torch = sys.modules["torch"]
    if x.device.type != "cpu":
        raise ArgumentError(f"{name} is on {x.device}: dlrn computes on the CPU, pass {name}.cpu()")
    if x.requires_grad and torch.is_grad_enabled():
        raise ArgumentError(
            f"{name} requires grad, and dlrn computes no gradients: pass {name}.detach(), or use "
            "torch.no_grad()"
        )
    if x.layout is not torch.strided or x.is_complex():
        raise ArgumentError(f"{name}: expected a dense tensor of real numbers, found {x.dtype}")
    return x.detach().to(torch.float32).contiguous().numpy()


def array_of(x: Any, name: str = "x") -> np.ndarray:
    """Any array-like as a contiguous f32 array: without a copy if it is one, or a torch tensor
    that is. f16, bf16, f64 and integers are converted at once, on a copy."""
    if _is_torch(x):
        return _array_of_tensor(x, name)
    try:
        array = np.asarray(x)
        if array.dtype.kind in "cOSUMm":
            raise TypeError
        return np.ascontiguousarray(array, dtype=np.float32).reshape(array.shape)
    except (TypeError, ValueError):
        raise ArgumentError(f"{name}: expected an array of real numbers, found {type(x).__name__}") from None


class Rows:
    """The rows of an array-like of shape [..., width], ready for the library.

    Args:
        x: a NumPy array, a torch tensor on the CPU, a list, or what np.asarray takes; f32, f16,
            bf16 or f64, with any leading dimensions, also none.
        width: numbers in a row.
        name: of x in errors.
        layers: of a row, for errors. Where the last dimension is not `width` but the product of the
            last two is ([..., layers, d], [..., heads, d_head]), these two make a row.

    Attributes:
        array: [n, width] f32. It is x's own memory where that is contiguous f32.
        pointer: to it, valid as long as this object.
        n: the number of rows.
        shape: the leading dimensions.
        split: whether the last two dimensions make a row.
        keep: what must stay alive while `pointer` is used.
    """

    __slots__ = ("array", "pointer", "n", "shape", "split", "keep", "_like")

    def __init__(self, x: Any, width: int, name: str = "x", layers: int = 1) -> None:
        array = array_of(x, name)
        shape = array.shape
        self.split = len(shape) > 1 and shape[-1] != width == shape[-2] * shape[-1]
        if not self.split and (not shape or shape[-1] != width):
            parts = f" or [..., {layers}, {width // layers}]" if layers > 1 else ""
            raise ShapeError(f"{name}: expected shape [..., {width}]{parts}, found {list(shape)}")
        self.shape: Tuple[int, ...] = shape[: -2 if self.split else -1]
        # Not -1: NumPy cannot derive the number of rows where there are none.
        self.n = int(np.prod(self.shape, dtype=np.int64))
        self.array = array.reshape(self.n, width)
        self.keep = self.pointer = pointer_to(self.array)
        self._like = x

    def give(self, array: np.ndarray, rows: bool = True) -> Any:
        """Returns a result as the caller gave x: torch for torch, of x's type if that is a float
        type, otherwise f32.

        Args:
            array: f32, [n, ...]; its memory is handed on where x was f32.
            rows: whether the first dimension becomes x's leading ones.
        """
        if rows:
            array = array.reshape(self.shape + array.shape[1:])
        return give_like(self._like, array)


def give_like(x: Any, array: np.ndarray) -> Any:
    """An f32 array in the kind and the float type of x."""
    if _is_torch(x):
        result = sys.modules["torch"].from_numpy(array)
        return result.to(x.dtype) if x.dtype.is_floating_point else result
    dtype = getattr(x, "dtype", None)
    if dtype is None or dtype == np.float32:
        return array
    # ml_dtypes' bfloat16 is of kind "V", and is a float type all the same
    is_float = getattr(dtype, "kind", "") == "f" or str(dtype) == "bfloat16"
    return array.astype(dtype) if is_float else array


def pointer_to(array: np.ndarray, kind: str = "float[]") -> Any:
    """A pointer into a contiguous array, which it keeps alive."""
    return ffi.from_buffer(kind, array)


def array_from(pointer: Any, shape: Tuple[int, ...], owner: Any, kind: str = "float") -> np.ndarray:
    """A view of memory of the library as a NumPy array. It keeps `owner` alive.

    Args:
        pointer: to the first number; owned by `owner`.
        kind: the C type of a number: "float", "int32_t" or "int64_t".
    """
    dtype = {"float": np.float32, "int32_t": np.int32, "int64_t": np.int64}[kind]
    size = int(np.prod(shape, dtype=np.int64))
    if not size:
        return np.zeros(0, dtype).reshape(shape)

    def release(_pointer: Any, _kept: Any = owner) -> None:
        pass

    kept = ffi.gc(ffi.cast(f"{kind} *", pointer), release)
    return np.frombuffer(ffi.buffer(kept, size * np.dtype(dtype).itemsize), dtype).reshape(shape)
