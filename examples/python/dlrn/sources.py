"""Rows for training and evaluation, from whatever holds or makes them.

`source_of(data, d)` makes a `Source`: a `dlrn_source` of C that reads

- an array `[.., d]` of NumPy or a torch CPU tensor: f32 that is contiguous is read where it lies, anything else (f16,
  bf16, f64, slices) is converted piece by piece. It can seek, so that a stopped run can be resumed;
- a pair `(x, y)` of arrays: rows and the targets that they are mapped to;
- a path, or a list of paths: `.npy`, `.npz`, `.pt` or `.safetensors`, one sequence of rows, a file open at a time. A
  pair of those: rows and targets;
- an object with `.source()`, such as an `ActivationBuffer`: what that returns;
- any other iterable or iterator whose items are arrays `[rows, d]` (of any leading shape), or pairs of them. One that
  has `position`, the rows it gave, and `seek(rows)` can be resumed, too.

An exception inside an iterable ends the call that wanted rows, and is raised again from there with its traceback.
`StopIteration` is the end of the rows. Ctrl-C is looked for at each read.
"""
from __future__ import annotations

import os
from typing import Any, Iterable, Iterator, Optional, Tuple

import numpy as np

from ._core import ArgumentError, Context, Rows, ShapeError, default_context, error_of, ffi, lib, pointer_to, text

__all__ = ["Source", "source_of"]


def is_array(data: Any) -> bool:
    """Whether data is an array of NumPy or a tensor of torch, of at least one dimension."""
    return hasattr(data, "shape") and hasattr(data, "dtype") and len(data.shape) > 0


def is_path(data: Any) -> bool:
    return isinstance(data, (str, os.PathLike))


def _is_paths(data: Any) -> bool:
    return is_path(data) or (isinstance(data, list) and len(data) > 0 and all(is_path(p) for p in data))


def is_pair(data: Any) -> bool:
    """Whether data is a pair (x, y) of arrays or of paths."""
    return isinstance(data, tuple) and len(data) == 2 and (
        all(is_array(part) for part in data) or all(_is_paths(part) for part in data))


def is_data_set(data: Any) -> bool:
    """Whether data holds all of its rows, and so can be shuffled, repeated and resumed: arrays, paths and sources. The
    others hand out batches."""
    return isinstance(data, Source) or is_array(data) or _is_paths(data) or is_pair(data)


def width_of(x: Any, layers: int = 1) -> int:
    """The width of the rows of an array; with several layers [.., layers, d] is one row."""
    shape = tuple(x.shape)
    if layers > 1 and len(shape) > 2 and shape[-2] == layers:
        return int(shape[-2] * shape[-1])
    return int(shape[-1])


def _count(x: Any, width: int, name: str) -> int:
    """How many rows an array has: its last dimension is width, or its last two make a row."""
    shape = tuple(x.shape)
    if width not in (shape[-1], int(np.prod(shape[-2:]))):
        raise ShapeError(f"{name}: expected shape [..., {width}], found {list(shape)}")
    return int(np.prod(shape)) // max(width, 1)


def flat(x: Any, width: int, name: str) -> Any:
    """An array as [n, width]."""
    return x.reshape(_count(x, width, name), width)


class Source:
    """Rows for a trainer, a buffer or an evaluation, made by `source_of`. d: their width; d_out: that of their targets,
    0 without; rows: of one epoch, 0 where that is not known. Keep it until what reads it is closed; close() or the end
    of a `with` frees what it holds.

    A source gives its rows once: it goes on where the last reader stopped.
    """

    def __init__(self, context: Context, keep: Any = None):
        self.context = context
        self.pointer = ffi.new("dlrn_source *")
        self.keep = keep                         # what C borrows
        self._bridge = _Bridge(context)
        self._handle = ffi.new_handle(self._bridge)
        self._closed = False

    d = property(lambda self: int(self.pointer.d_in))
    d_out = property(lambda self: int(self.pointer.d_out))
    rows = property(lambda self: int(self.pointer.rows))

    def _guard(self, inner) -> "Source":
        """Reads `inner`, a source of C, through Python: there, and only there, a pressed Ctrl-C comes to light."""
        self._bridge.inner = inner
        s = self.pointer
        s.d_in, s.d_out, s.rows, s.positions = inner.d_in, inner.d_out, inner.rows, inner.positions
        s.read, s.error, s.user = _read_guarded, _error_guarded, self._handle
        if inner.seek != ffi.NULL:
            s.position, s.seek = _position_guarded, _seek_guarded
        return self

    def _call(self, reader) -> "Source":
        """Reads `reader`, a Python object with read(max_rows, x, y) and, if it can seek, position and seek."""
        self._bridge.reader = reader
        s = self.pointer
        s.d_in, s.d_out, s.rows = reader.d, reader.d_out, reader.rows
        s.read, s.user = _read, self._handle
        if hasattr(reader, "seek"):
            s.position, s.seek = _position, _seek
        return self

    def read_by(self, context: Context) -> "Source":
        """Says whose calls read from now on: they raise what goes wrong inside."""
        self._bridge.context = context
        return self

    def batches(self, n: int) -> Iterator[Tuple[np.ndarray, Optional[np.ndarray]]]:
        """The rows that are left, at most n at a time, as pairs (x [m, d], y [m, d_out] or None). Arrays are used again
        for the next pair."""
        x = np.empty((n, self.d), np.float32)
        y = np.empty((n, self.d_out), np.float32) if self.d_out else None
        got = ffi.new("int64_t *")
        to_x, to_y = pointer_to(x), ffi.NULL if y is None else pointer_to(y)
        # the source itself, if it is one of C: between two calls Python sees Ctrl-C in any case
        s = self.pointer if self._bridge.inner is None else self._bridge.inner
        self.read_by(self.context)
        while True:
            with self.context.lock:
                status = s.read(s.user, n, to_x, to_y, got)
                if status not in (lib.DLRN_OK, lib.DLRN_END) and self.context.raised.value is None:
                    why = s.error(s.user) if s.error != ffi.NULL else ffi.NULL
                    raise error_of(status, text(why) or "a source failed")
                self.context.check(status)
            if status == lib.DLRN_END:
                return
            yield x[:got[0]], None if y is None else y[:got[0]]

    def close(self) -> None:
        """Frees the source. What reads it must be closed first."""
        if self._closed:
            return
        self._closed = True
        inner, self._bridge.inner, self._bridge.reader, self.keep = self._bridge.inner, None, None, None
        if inner is not None:
            lib.dlrn_source_destroy(inner)

    def __enter__(self) -> "Source":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def __del__(self):
        if hasattr(self, "_closed"):
            self.close()


class _Bridge:
    """What the callbacks of a source need: a reader in Python, or a source of C that is guarded. It does not know its
    Source, so that nothing keeps itself alive."""

    def __init__(self, context: Context):
        self.home = context       # what the source was made with
        self.context = context    # of the call that reads
        self.reader: Any = None
        self.inner: Any = None


# ---- callbacks

def _keep(_kind: Any, error: BaseException, trace: Any) -> int:
    """Keeps what was raised in a callback for the call that wanted the rows; Ctrl-C can strike on any line of one."""
    user = trace.tb_frame.f_locals.get("user") if trace is not None else None
    if user is None:
        return lib.DLRN_ERR_CALLBACK
    return ffi.from_handle(user).context.raised.keep(error.with_traceback(trace))


@ffi.callback("dlrn_status(void *, int64_t, float *, float *, int64_t *)", onerror=_keep)
def _read(user, max_rows, x, y, n):
    n[0] = 0
    n[0] = ffi.from_handle(user).reader.read(max_rows, x, y)
    return lib.DLRN_OK if n[0] else lib.DLRN_END


@ffi.callback("dlrn_status(void *, uint64_t *)", onerror=_keep)
def _position(user, position):
    position[0] = ffi.from_handle(user).reader.position()
    return lib.DLRN_OK


@ffi.callback("dlrn_status(void *, uint64_t)", onerror=_keep)
def _seek(user, position):
    ffi.from_handle(user).reader.seek(position)
    return lib.DLRN_OK


@ffi.callback("dlrn_status(void *, int64_t, float *, float *, int64_t *)", onerror=_keep)
def _read_guarded(user, max_rows, x, y, n):
    n[0] = 0
    bridge = ffi.from_handle(user)
    with bridge.home.lock:
        return bridge.inner.read(bridge.inner.user, max_rows, x, y, n)


@ffi.callback("dlrn_status(void *, uint64_t *)", onerror=_keep)
def _position_guarded(user, position):
    inner = ffi.from_handle(user).inner
    return inner.position(inner.user, position)


@ffi.callback("dlrn_status(void *, uint64_t)", onerror=_keep)
def _seek_guarded(user, position):
    bridge = ffi.from_handle(user)
    with bridge.home.lock:
        return bridge.inner.seek(bridge.inner.user, position)


@ffi.callback("const char *(void *)", onerror=lambda *_: ffi.NULL)
def _error_guarded(user):
    inner = ffi.from_handle(user).inner
    return inner.error(inner.user) if inner.error != ffi.NULL else ffi.NULL


# ---- readers

def _copy(rows: Rows, first: int, n: int, target, at: int, width: int) -> None:
    """Rows [first, first + n) to row `at` of target."""
    ffi.memmove(target + at * width, rows.pointer + first * width, n * width * 4)


def rows_of(x: Any, d: int, name: str) -> Rows:
    """The rows of an array, wherever it is, and whether or not it has gradients."""
    if getattr(getattr(x, "device", None), "type", "cpu") != "cpu":
        x = x.cpu()
    if getattr(x, "requires_grad", False):
        x = x.detach()
    return Rows(x, d, name)


def _checked(x: Any, y: Any, d: int, d_out: int) -> tuple:
    """The rows of an item and those of its target, None where there is none."""
    if (y is None) != (d_out == 0):
        now, before = ("without", "with") if y is None else ("with", "without")
        raise ArgumentError(f"a source gave rows {now} a target, and earlier ones {before}")
    xs = rows_of(x, d, "rows of a source")
    ys = None if y is None else rows_of(y, d_out, "targets of a source")
    if ys is not None and ys.n != xs.n:
        raise ArgumentError(f"a source gave {xs.n} rows with {ys.n} targets")
    return xs, ys


def split_item(item: Any) -> Tuple[Any, Any]:
    """(x, y) of an item of an iterable; y is None without a target. A list of one is what torch's DataLoader gives."""
    if isinstance(item, (tuple, list)) and len(item) in (1, 2) and all(is_array(part) for part in item):
        return item[0], item[1] if len(item) == 2 else None
    if is_array(item):
        return item, None
    raise TypeError(f"expected arrays [rows, d], or pairs (x, y) of them, from a source; found {type(item).__name__}")


class _Pieces:
    """Reads arrays that are not contiguous f32: converted piece by piece."""

    def __init__(self, x: Any, y: Any, d: int, d_out: int, epochs: int):
        self.x, self.y = flat(x, d, "rows"), None if y is None else flat(y, d_out, "targets")
        self.d, self.d_out, self.epochs = d, d_out, epochs
        self.rows = int(self.x.shape[0])
        self.at = 0    # rows read, of all epochs

    def read(self, max_rows: int, x, y) -> int:
        if not self.rows or (self.epochs and self.at >= self.epochs * self.rows):
            return 0
        first = self.at % self.rows
        n = min(max_rows, self.rows - first)
        xs, ys = _checked(self.x[first:first + n], None if self.y is None else self.y[first:first + n],
                          self.d, self.d_out)
        _copy(xs, 0, n, x, 0, self.d)
        if ys is not None:
            _copy(ys, 0, n, y, 0, self.d_out)
        self.at += n
        return n

    def position(self) -> int:
        return self.at

    def seek(self, position: int) -> None:
        self.at = position


class _Items:
    """Reads an iterator of arrays; what is left of an item waits for the next call."""

    rows = 0

    def __init__(self, items: Any, d: Optional[int], d_out: Optional[int], layers: int = 1):
        self.items = items
        self.pending: Any = None    # an item that was taken and not looked at
        self.left: Any = None       # (rows, targets, first that is unread)
        if d is None or d_out is None:
            self.pending = next(items, None)
            if self.pending is None:
                raise ArgumentError("the data have no rows, so that their width is not known: state d")
            x, y = split_item(self.pending)
            d = width_of(x, layers) if d is None else d
            d_out = (0 if y is None else width_of(y, layers)) if d_out is None else d_out
        self.d, self.d_out = d, d_out

    def read(self, max_rows: int, x, y) -> int:
        while self.left is None:
            item, self.pending = self.pending, None
            if item is None:
                item = next(self.items, None)
            if item is None:
                return 0
            xs, ys = _checked(*split_item(item), self.d, self.d_out)
            if xs.n:
                self.left = (xs, ys, 0)
        xs, ys, first = self.left
        n = min(max_rows, xs.n - first)
        _copy(xs, first, n, x, 0, self.d)
        if ys is not None:
            _copy(ys, first, n, y, 0, self.d_out)
        self.left = (xs, ys, first + n) if first + n < xs.n else None
        return n


class _SeekableItems(_Items):
    """The same of an iterator that says how many rows it gave (`position`) and goes to a row (`seek`)."""

    def position(self) -> int:
        waiting = 0 if self.pending is None else int(np.prod(split_item(self.pending)[0].shape)) // self.d
        if self.left is not None:
            waiting += self.left[0].n - self.left[2]
        return int(self.items.position) - waiting

    def seek(self, position: int) -> None:
        self.pending = self.left = None
        self.items.seek(position)


# ---- what a source is made of

def _is_plain(x: Any) -> bool:
    """Whether C can read an array where it lies."""
    if isinstance(x, np.ndarray):
        return x.dtype == np.float32 and x.flags.c_contiguous
    return str(x.dtype) == "torch.float32" and x.is_contiguous() and x.device.type == "cpu"


def _from_arrays(context: Context, x: Any, y: Any, d: int, d_out: int, epochs: int) -> Source:
    source = Source(context, keep=(x, y))
    n = _count(x, d, "rows")
    if y is not None and _count(y, d_out, "targets") != n:
        raise ArgumentError(f"rows of shape {tuple(x.shape)} and targets of shape {tuple(y.shape)} differ in number")
    if not (_is_plain(x) and (y is None or _is_plain(y))):
        return source._call(_Pieces(x, y, d, d_out, epochs))
    xs, ys = _checked(x, y, d, d_out)
    inner = ffi.new("dlrn_source *")
    context.call(lib.dlrn_source_from_array, context.pointer, xs.pointer, ffi.NULL if ys is None else ys.pointer,
                 xs.n, d, d_out, epochs, inner)
    source.keep = (xs, ys, x, y)
    return source._guard(inner)


def _c_paths(paths: Any) -> tuple:
    """(array of C strings or NULL, how many, what keeps them)"""
    if paths is None:
        return ffi.NULL, 0, None
    paths = [paths] if is_path(paths) else paths
    texts = [ffi.new("char[]", os.fsencode(p)) for p in paths]
    array = ffi.new("const char *[]", texts)
    return array, len(texts), (array, texts)


def _from_paths(context: Context, x: Any, y: Any, d: int, d_out: int, epochs: int, tensor: Optional[str],
                bf16_bits: bool) -> Source:
    desc = ffi.new("dlrn_source_desc *")
    desc.paths, desc.n_paths, keep = _c_paths(x)
    desc.target_paths, desc.n_target_paths, keep_targets = _c_paths(y)
    name = ffi.NULL if tensor is None else ffi.new("char[]", tensor.encode())
    desc.tensor, desc.epochs, desc.width, desc.target_width = name, epochs, d, d_out
    if bf16_bits:
        desc.dtype = lib.DLRN_BF16
    inner = ffi.new("dlrn_source *")
    context.call(lib.dlrn_source_open, context.pointer, desc, inner)
    del keep, keep_targets
    return Source(context)._guard(inner)


def source_of(data: Any, d: Optional[int] = None, d_out: Optional[int] = None, *, epochs: int = 1, layers: int = 1,
              tensor: Optional[str] = None, bf16_bits: bool = False, context: Optional[Context] = None) -> Source:
    """A source of rows; see the head of this module for what `data` may be.

    Args:
        d, d_out: the width of rows and of targets; None: as the data say.
        epochs: how many times arrays and files are read; 0: without end.
        layers: [..., layers, d] is one row of layers * d.
        tensor: the name of the tensor to read, if a file holds several.
        bf16_bits: uint16 in files are the bits of bf16 numbers.
        context: whose calls read; None: `default_context()`.
    """
    context = context or default_context()
    if isinstance(data, Source):
        return data
    if hasattr(data, "source") and not is_array(data):
        return source_of(data.source(), d, d_out, epochs=epochs, layers=layers, context=context)
    x, y = data if is_pair(data) else (data, None)
    if is_array(x):
        width = width_of(x, layers) if d is None else d
        return _from_arrays(context, x, y, width, 0 if y is None else d_out or width_of(y, layers), epochs)
    if _is_paths(x):
        return _from_paths(context, x, y, d or 0, d_out or 0, epochs, tensor, bf16_bits)
    items = iterator_of(data)
    kind = _SeekableItems if hasattr(items, "seek") and hasattr(items, "position") else _Items
    if kind is _SeekableItems:
        d = getattr(items, "d", None) if d is None else d
        d_out = getattr(items, "d_out", None) if d_out is None else d_out
    return Source(context)._call(kind(items, d, d_out, layers))


def iterator_of(data: Any) -> Iterator:
    """An iterator over an iterable, or over an object that has __next__ alone."""
    if isinstance(data, Iterable):
        return iter(data)
    if hasattr(data, "__next__"):
        return _Next(data)
    raise TypeError(f"expected arrays, paths or an iterable of arrays [rows, d]; found {type(data).__name__}")


class _Next:
    """An iterator over an object that has __next__ alone."""

    def __init__(self, data: Any):
        self.data = data

    def __iter__(self) -> "_Next":
        return self

    def __next__(self) -> Any:
        return next(self.data)
