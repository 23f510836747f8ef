"""Dictionaries: load, create, encode, decode, save. The classes have the reference's names."""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
import warnings
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple, Type, Union

import numpy as np

from ._core import (
    ArgumentError,
    Context,
    DlrnError,
    MissingFile,
    OutOfMemory,
    Rows,
    ShapeError,
    Unsupported,
    _is_torch,
    array_from,
    array_of,
    default_context,
    ffi,
    give_like,
    in_python,
    lib,
    name_of,
    pointer_to,
    text,
    value_of,
)
from ._parameters import Parameter, Written, as_torch_does, put
from .models import later

# Rows that one call of the library takes. Between two calls Python looks for Ctrl-C, which should
# take less than a second. Larger pieces are not faster.
_PIECE = 1 << 14

# What torch's classes call their parameters, in the order of their state_dict. A dictionary of
# another class uses the library's own names.
_TOP_K = ("b_dec", "k", "threshold", "decoder.weight", "encoder.weight", "encoder.bias")
_STATE: Dict[str, Sequence[str]] = {
    "AutoEncoder": ("bias", "encoder.weight", "encoder.bias", "decoder.weight"),
    "AutoEncoderNew": ("encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias"),
    "AutoEncoderTopK": _TOP_K,
    "BatchTopKSAE": _TOP_K,
    "MatryoshkaBatchTopKSAE": (
        *("W_enc", "b_enc", "W_dec", "b_dec", "k", "threshold", "group_sizes"),
    ),
    "JumpReluAutoEncoder": ("W_enc", "b_enc", "W_dec", "b_dec", "threshold"),
    "GatedAutoEncoder": (
        *("decoder_bias", "r_mag", "gate_bias", "mag_bias", "encoder.weight", "decoder.weight"),
    ),
}

# Every name of a parameter that a class of the reference has: its role, and whether it lies
# transposed in memory.
_NAMES: Dict[str, Tuple[int, bool]] = {
    "encoder.weight": (lib.DLRN_ENCODER, False),
    "encoder.bias": (lib.DLRN_ENCODER_BIAS, False),
    "decoder.weight": (lib.DLRN_DECODER, True),
    "decoder.bias": (lib.DLRN_OUTPUT_BIAS, False),
    "W_enc": (lib.DLRN_ENCODER, True),
    "b_enc": (lib.DLRN_ENCODER_BIAS, False),
    "W_dec": (lib.DLRN_DECODER, False),
    "b_dec": (lib.DLRN_OUTPUT_BIAS, False),
    "bias": (lib.DLRN_OUTPUT_BIAS, False),
    "decoder_bias": (lib.DLRN_OUTPUT_BIAS, False),
    "r_mag": (lib.DLRN_LOG_SCALE, False),
    "gate_bias": (lib.DLRN_ENCODER_BIAS, False),
    "mag_bias": (lib.DLRN_VALUE_BIAS, False),
    "W_skip": (lib.DLRN_SKIP, False),
}

_ROLES: List[str] = [name_of(lib.DLRN_NAMES_ROLE, role) for role in range(lib.DLRN_ROLE_COUNT)]
_ENUMERATIONS = {
    "normalise": lib.DLRN_NAMES_NORMALISE,
    "center": lib.DLRN_NAMES_CENTER,
    "gate": lib.DLRN_NAMES_GATE,
    "select": lib.DLRN_NAMES_SELECT,
    "rank": lib.DLRN_NAMES_RANK,
}
_FORMULA = [name for name, _ in ffi.typeof("dlrn_formula").fields]


class Linear:
    """The matrix and the bias of one side, as torch.nn.Linear has them."""

    def __init__(self, dictionary: "Dictionary", side: str) -> None:
        # Not __dict__'s way: every attribute that is set is a parameter.
        object.__setattr__(self, "_of", (dictionary, side))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # a copy has no _of yet
            raise AttributeError(name)
        dictionary, side = self._of
        return dictionary._named(f"{side}.{name}")

    def __setattr__(self, name: str, values: Any) -> None:
        dictionary, side = self._of
        dictionary._put(f"{side}.{name}", values)

    def __repr__(self) -> str:
        return f"Linear(weight={list(self.weight.shape)})"


class Formula:
    """All that inference needs besides the parameters: gate, select, k, threshold, scale_in, ...

    Texts are the library's names ("relu", "top_k"). What is set holds from the next call on.
    """

    def __init__(self, dictionary: "Dictionary") -> None:
        object.__setattr__(self, "_dictionary", dictionary)

    def __getattr__(self, name: str) -> Any:
        if name not in _FORMULA:
            raise AttributeError(f"the formula has no {name!r}: it has {', '.join(_FORMULA)}")
        value = getattr(self._dictionary.pointer.formula, name)
        return name_of(_ENUMERATIONS[name], value) if name in _ENUMERATIONS else value

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in _FORMULA:
            raise AttributeError(f"the formula has no {name!r}: it has {', '.join(_FORMULA)}")
        if name in _ENUMERATIONS and isinstance(value, str):
            value = value_of(_ENUMERATIONS[name], value)
        with self._dictionary.context.lock:
            setattr(self._dictionary.pointer.formula, name, value)
            self._dictionary._written.flag = True

    def __dir__(self) -> List[str]:
        return list(_FORMULA)

    def __repr__(self) -> str:
        return "Formula(" + ", ".join(f"{n}={getattr(self, n)!r}" for n in _FORMULA) + ")"


class _Room:
    """Memory for a result of one row for each row of `rows`.

    Attributes:
        array: [n, width] f32, for the library to fill: `out`'s memory where the caller gave that.
    """

    def __init__(self, rows: Rows, width: int, layers: int, out: Any = None) -> None:
        self.rows, self.out = rows, out
        self.tail = (width,) if layers == 1 else (layers, width // layers)
        if out is None:
            self.array = np.empty((rows.n, width), np.float32)
            return
        wrong = "out: expected a contiguous array of float32 that can be written"
        if _is_torch(out) and (out.device.type != "cpu" or not str(out.dtype) == "torch.float32"):
            raise ArgumentError(wrong)
        array = out.detach().numpy() if _is_torch(out) else np.asarray(out)
        if array.dtype != np.float32 or not array.flags.c_contiguous or not array.flags.writeable:
            raise ArgumentError(wrong)
        if array.shape not in (rows.shape + self.tail, rows.shape + (width,)):
            raise ShapeError(
                f"out: expected shape {list(rows.shape + self.tail)}, found {list(array.shape)}"
            )
        self.array = array.reshape(rows.n, width)

    def result(self) -> Any:
        """What the caller gets, when the library has filled the array."""
        if self.out is not None:
            return self.out
        return self.rows.give(self.array.reshape((self.rows.n, *self.tail)))


class Dictionary:
    """A sparse autoencoder: rows x of `activation_dim` numbers, features f of `dict_size`.

    Args:
        activation_dim: the length d of a row.
        dict_size: the number F of features.
        k: features kept per row, in families that keep k; None: 64, or F if that is less.
        d_out: the length of a reconstruction; None: activation_dim.
        layers: rows are [layers, d / layers]; 1: plain.
        seed: of the random weights. The same seed gives the same bits; None: another one each time.
        context: threads and kernels; None: `default_context()`.

    Rows may be NumPy arrays, torch tensors on the CPU or lists, with any leading dimensions;
    results come back in the same kind and float type. Arithmetic is f32. Tensors that require grad
    are refused unless gradients are switched off, since no result here has a gradient.

    Memory is freed with the object, or by `close()` or at the end of a `with` block.
    """

    family = ""

    def __init__(
        self,
        activation_dim: int,
        dict_size: int,
        k: Optional[int] = None,
        *,
        d_out: Optional[int] = None,
        layers: int = 1,
        seed: Optional[int] = None,
        device: Any = None,
        context: Optional[Context] = None,
    ) -> None:
        if not self.family:
            raise ArgumentError("Dictionary is of no family: create an AutoEncoder, ...")
        _check_device(device)
        if seed is None:
            seed = int(np.random.default_rng().integers(1 << 63))
        context = context or default_context()
        family = ffi.new("char[]", self.family.encode())
        described = {"d_in": activation_dim, "d_out": d_out or 0, "features": dict_size}
        desc = ffi.new("dlrn_dictionary_desc *", {**described, "seed": seed, "layers": layers})
        desc.family, desc.k = family, k or 0
        out = ffi.new("dlrn_dictionary **")
        context.call(lib.dlrn_dictionary_create, context.pointer, desc, out)
        self._take(context, context.own(out[0], lib.dlrn_dictionary_destroy))

    def _take(
        self, context: Context, pointer: Any, owner: Any = None, written: Optional[Written] = None
    ) -> None:
        """Makes this object stand for a dlrn_dictionary; `owner` is what keeps it alive."""
        self.context = context
        self._pointer = pointer
        self._owner = owner
        self._encoder: Any = None
        self._written = written or Written(pointer)

    # ---- Loading and saving ----------------------------------------------------------------------

    @classmethod
    def from_pretrained(
        cls,
        path: Union[str, "os.PathLike[str]"],
        k: Optional[int] = None,
        device: Any = None,
        dtype: Any = None,
        *,
        layout: Optional[str] = None,
        norm_scale: float = 0.0,
        threshold: float = 0.0,
        compat: bool = False,
        normalize_decoder: bool = False,
        context: Optional[Context] = None,
    ) -> Any:
        """Loads a dictionary of any layout that the library knows: a file, or a folder with one.

        The result has the class of the file, whichever class you call this on. The class that you
        call it on decides only where the file does not tell.

        Args:
            k: features kept per row, where the file has no k.
            device: None or "cpu".
            dtype: accepted and ignored. Weights are f32, results have x's type.
            layout: the library that wrote the file, or its class, where that cannot be told.
            norm_scale: sqrt(d) / mean norm of the rows, where training scaled them and the file
                does not say by how much.
            threshold: of all features, where the file has none.
            compat: read what other libraries are known to read wrongly as they do.
            normalize_decoder: give atoms unit norm, and scale features accordingly.
        """
        _check_device(device)
        context = context or default_context()
        path = os.fspath(path)
        _check_exists(path)
        options = ffi.new("dlrn_load_options *")
        options.k, options.norm_scale, options.threshold = k or 0, norm_scale, threshold
        options.compat = lib.DLRN_ON if compat else lib.DLRN_OFF
        try:
            pointer = _load(context, path, options, layout)
        except Unsupported as error:
            if layout is not None or cls.__name__ not in _STATE:
                raise
            try:
                pointer = _load(context, path, options, cls.__name__)
            except DlrnError:  # the class does not help: the first error says what does
                raise error from None
        dictionary = dictionary_of(context, pointer)
        if dictionary.note:
            warnings.warn(f"{path}: {dictionary.note}", stacklevel=2)
        if normalize_decoder:
            dictionary.normalize_decoder()
        return dictionary

    def save(self, path: Union[str, "os.PathLike[str]"]) -> None:
        """Writes one file: .pt (torch and dictionary_learning open it), .safetensors or .npz."""
        self._call(lib.dlrn_save, os.fsencode(path))

    def save_as(
        self, path: Union[str, "os.PathLike[str]"], layout: Optional[str] = None, layer: int = 0
    ) -> str:
        """Writes what another library's own loader opens, with its config, into a folder.

        Args:
            path: the folder, which is made if it does not exist.
            layout: "dictionary_learning", "saelens", "sparsify", "circuit-tracer", "gemma_scope",
                "gemma_scope_2", "llamascopium", "ckkissane", "crosscoder-fork"; None: the library
                that the dictionary was loaded from.
            layer: the number in the names of circuit-tracer's files.

        Returns:
            What is written in other numbers than it has here, in words; "": nothing.
        """
        if not os.path.splitext(os.fspath(path))[1]:
            os.makedirs(path, exist_ok=True)
        name = ffi.NULL if layout is None else ffi.new("char[]", layout.encode())
        options = ffi.new("dlrn_save_options *", {"layout": name, "layer": layer})
        note = ffi.new("char[256]")
        self._call(lib.dlrn_save_as, os.fsencode(path), options, note, 256)
        return text(note)

    def close(self) -> None:
        """Frees the dictionary now, unless views of its parameters are still in use."""
        self._encoder = self._pointer = self._owner = None
        self._written = Written(None)

    def __enter__(self) -> "Dictionary":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    # ---- Encoding and decoding -------------------------------------------------------------------

    def encode(self, x: Any, sparse: bool = False, out: Any = None) -> Any:
        """The features of rows.

        Args:
            x: [..., d], or [..., layers, d / layers].
            sparse: True returns the active features alone, as scipy.sparse.csr_matrix [n, F] with
                f32 values, n the number of rows. One of up to 16384 rows is the library's own
                memory, without a copy.
            out: a contiguous f32 array or tensor [..., F] for the result.

        Returns:
            [..., F], or [..., feature_layers, F / feature_layers] where layers have features of
            their own.
        """
        rows = Rows(x, self.activation_dim, "x", self.layers)
        if sparse:
            if out is not None:
                raise ArgumentError("out is for dense features: leave it out with sparse=True")
            return self._run(rows, None, True, None)
        room = _Room(rows, self.dict_size, self.feature_layers, out)
        self._run(rows, room.array, False, None)
        return room.result()

    def decode(self, f: Any, out: Any = None) -> Any:
        """The reconstruction from features.

        Args:
            f: [..., F], [..., feature_layers, F / feature_layers], or a sparse matrix [n, F] of
                SciPy.
            out: a contiguous f32 array or tensor for the result.

        Returns:
            [..., d_out], or [..., layers, d_out / layers]. Unsupported: dictionaries whose
            reconstruction also depends on x (a skip, normalised rows): call them with x instead.
        """
        if hasattr(f, "tocsr"):
            return self._decode_sparse(f.tocsr(), out)
        rows = Rows(f, self.dict_size, "f", self.feature_layers)
        room = _Room(rows, self.d_out, self.layers, out)
        for at, end in self._pieces(rows):
            to = pointer_to(room.array[at:end])
            self._call(lib.dlrn_decode, pointer_to(rows.array[at:end]), end - at, to)
        return room.result()

    def forward(self, x: Any, output_features: Union[bool, str] = False, out: Any = None) -> Any:
        """The reconstruction of rows, in one pass.

        Args:
            x: [..., d], or [..., layers, d / layers].
            output_features: True also returns the features; "sparse" returns them as CSR.
            out: a contiguous f32 array or tensor for the reconstruction.

        Returns:
            x_hat [..., d_out], or (x_hat, f).
        """
        rows = Rows(x, self.activation_dim, "x", self.layers)
        x_hat = _Room(rows, self.d_out, self.layers, out)
        if output_features == "sparse":
            codes = self._run(rows, None, True, x_hat.array)
            return x_hat.result(), codes
        if not output_features:
            self._run(rows, None, False, x_hat.array)
            return x_hat.result()
        f = _Room(rows, self.dict_size, self.feature_layers)
        self._run(rows, f.array, False, x_hat.array)
        return x_hat.result(), f.result()

    __call__ = forward

    def prepare(self) -> "Dictionary":
        """Packs the weights for many calls with few rows. Results are the same bits."""
        self._call(lambda _dict: lib.dlrn_encoder_prepare(self._encoder_now()))
        return self

    def _pieces(self, rows: Rows) -> Iterator[Tuple[int, int]]:
        """The rows of each call. Where rows are compared with each other, all are one call; where
        they are a sequence, each document (of [documents, positions, d]) is one."""
        dictionary = self.pointer
        size = rows.n if _compares_rows(dictionary) else _PIECE
        if dictionary.heads > 0:
            size = rows.shape[-1] if rows.shape else 1
        for at in range(0, rows.n, max(size, 1)):
            yield at, min(at + size, rows.n)

    def _run(
        self, rows: Rows, f: Optional[np.ndarray], sparse: bool, x_hat: Optional[np.ndarray]
    ) -> Any:
        """Encodes into f and x_hat, where they are wanted; returns codes if `sparse`."""
        joined = []
        for at, end in self._pieces(rows):
            codes = _codes(self.context) if sparse else ffi.NULL
            self._call(
                lambda _dict: lib.dlrn_encoder_run(
                    self._encoder_now(),
                    pointer_to(rows.array[at:end]),
                    end - at,
                    ffi.NULL if f is None else pointer_to(f[at:end]),
                    codes,
                    ffi.NULL if x_hat is None else pointer_to(x_hat[at:end]),
                )
            )
            joined.append(codes)
        return _matrix(joined, self.dict_size) if sparse else None

    def _decode_sparse(self, codes: Any, out: Any) -> Any:
        """Decodes a CSR matrix; its arrays are borrowed where they have the library's types."""
        if codes.shape[1] != self.dict_size:
            raise ShapeError(f"f: expected {self.dict_size} columns, found {codes.shape[1]}")
        _check_ends(codes)
        if not codes.has_canonical_format:
            codes = codes.copy()
            codes.sum_duplicates()
        arrays: List[np.ndarray] = [
            np.ascontiguousarray(codes.indptr, np.int64),
            np.ascontiguousarray(codes.indices, np.int32),
            np.ascontiguousarray(codes.data, np.float32),
        ]
        kinds = ("int64_t[]", "int32_t[]", "float[]")
        kept = [pointer_to(array, kind) for array, kind in zip(arrays, kinds)]
        given = ffi.new("dlrn_sparse *", {"rows": codes.shape[0], "cols": codes.shape[1]})
        given.row_ptr, given.col, given.val = kept
        rows = Rows(np.empty((codes.shape[0], 0), np.float32), 0)
        room = _Room(rows, self.d_out, self.layers, out)
        self._call(lib.dlrn_decode_sparse, given, pointer_to(room.array))
        return room.result()

    def _call(self, function: Any, *arguments: Any) -> None:
        """function(dictionary, ...), with the lock held and what was written made known."""
        with self.context.lock:
            pointer = self.pointer
            self._written.tell()
            self.context.check(function(pointer, *arguments))

    def _encoder_now(self) -> Any:
        """The encoder, made at the first call: it keeps its scratch memory from call to call."""
        if self._encoder is None:
            out = ffi.new("dlrn_encoder **")
            self.context.check(lib.dlrn_encoder_create(self.pointer, out))
            kept = (self.pointer, self._owner)
            self._encoder = self.context.own(out[0], lib.dlrn_encoder_destroy, kept)
        return self._encoder

    # ---- Parameters ------------------------------------------------------------------------------

    @property
    def pointer(self) -> Any:
        """The dlrn_dictionary."""
        if self._pointer is None:
            raise ArgumentError("this dictionary is closed")
        return self._pointer

    @property
    def activation_dim(self) -> int:
        """The length d of a row."""
        return int(self.pointer.d_in)

    @property
    def dict_size(self) -> int:
        """The number F of features."""
        return int(self.pointer.features)

    @property
    def d_out(self) -> int:
        """The length of a reconstruction."""
        return int(self.pointer.d_out)

    @property
    def layers(self) -> int:
        """Of rows, which are [layers, d / layers]; 1: plain."""
        return int(self.pointer.layers)

    @property
    def feature_layers(self) -> int:
        """Of features, which are [feature_layers, F / feature_layers]; 1: plain."""
        return int(self.pointer.feature_layers)

    @property
    def layout(self) -> Optional[str]:
        """The library whose layout it was loaded from; None: it was not loaded."""
        return text(self.pointer.layout) or None

    @property
    def class_name(self) -> Optional[str]:
        """That library's name of the class."""
        return text(self.pointer.class_name) or None

    @property
    def note(self) -> str:
        """What its file leaves open, and a reader of its figures must know; "": nothing."""
        return in_python(text(self.pointer.note))

    @property
    def formula(self) -> Formula:
        """Gate, selection, k, threshold, scales: may be set."""
        return Formula(self)

    @property
    def k(self) -> int:
        """Features kept per row; 0: the family keeps no fixed number."""
        return int(self.pointer.formula.k)

    @k.setter
    def k(self, k: Any) -> None:
        self.formula.k = int(k)

    @property
    def threshold(self) -> Any:
        """[F], or one number for all features; -1: not set."""
        if self.pointer.param[lib.DLRN_THRESHOLD]:
            return self.parameter(lib.DLRN_THRESHOLD)
        return float(self.pointer.formula.threshold)

    @threshold.setter
    def threshold(self, values: Any) -> None:
        if self.pointer.param[lib.DLRN_THRESHOLD]:
            put(self.parameter(lib.DLRN_THRESHOLD), values, "threshold")
        else:
            self.formula.threshold = float(values)

    @property
    def group_sizes(self) -> List[int]:
        """Features of each nested group (Matryoshka); empty: there are none."""
        return [int(self.pointer.group_sizes[g]) for g in range(self.pointer.n_groups)]

    @property
    def parts(self) -> List["Dictionary"]:
        """The dictionaries of each layer, in a dictionary of several; empty: plain."""
        part, owner = self.pointer.part, (self.pointer, self._owner)
        return [
            dictionary_of(self.context, part[i].dict, owner, self._written)
            for i in range(self.pointer.n_parts)
        ]

    @property
    def encoder(self) -> Linear:
        """encoder.weight [F, d] and encoder.bias [F], views."""
        return Linear(self, "encoder")

    @property
    def decoder(self) -> Linear:
        """decoder.weight [d, F], a view (atoms are its columns); decoder.bias [d] if it has one."""
        return Linear(self, "decoder")

    def parameter(self, role: int) -> Parameter:
        """A view of a parameter as it lies in memory: parameter(lib.DLRN_DECODER) is [F, d_out].

        The next call computes with what is written to it. It keeps the dictionary alive.
        """
        pointer = self.pointer
        if not 0 <= role < len(_ROLES) or not pointer.param[role]:
            name = _ROLES[role] if 0 <= role < len(_ROLES) else f"role {role}"
            raise AttributeError(f"a {type(self).__name__} has no {name}")
        shape = _shape_of(pointer, role)
        address = int(ffi.cast("uintptr_t", pointer.param[role]))
        root: Any = self._written.roots.get(address)
        if root is None:
            root = array_from(pointer.param[role], shape, (pointer, self._owner)).base
            root = self._written.roots.setdefault(address, root)  # another thread's, if it was first
        self._written.flag = True
        return root.reshape(shape).view(Parameter)

    def _role_of(self, name: str) -> Tuple[int, bool]:
        """The role of a name, and whether the name means its transpose."""
        if name in _NAMES and not (name in _ROLES and self.pointer.param[_ROLES.index(name)]):
            return _NAMES[name]
        if name in _ROLES:
            return _ROLES.index(name), False
        raise AttributeError(f"a {type(self).__name__} has no {name!r}")

    def _named(self, name: str) -> Any:
        """A parameter by the name that torch's classes give it."""
        if name in ("k", "group_sizes", "threshold"):
            return getattr(self, name)
        if name.endswith(".bias") and name not in _STATE.get(type(self).__name__, (name,)):
            return None  # as in torch's Linear without one: the class has it under another name
        role, transposed = self._role_of(name)
        view = self.parameter(role)
        return view.T if transposed else view

    def _put(self, name: str, values: Any) -> None:
        """Sets a parameter by that name."""
        if name in ("k", "threshold"):
            setattr(self, name, values)
        elif name == "group_sizes":
            if [int(v) for v in values] != self.group_sizes:
                raise ArgumentError("group_sizes: they are set when a dictionary is made")
        else:
            put(self._named(name), values, name)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or (name not in _NAMES and name not in _ROLES):
            raise AttributeError(f"{type(self).__name__} has no {name!r}")
        return self._named(name)

    def __setattr__(self, name: str, values: Any) -> None:
        if name in _NAMES or name in _ROLES and name != "threshold":
            self._put(name, values)
        else:
            object.__setattr__(self, name, values)

    def _state_names(self) -> Sequence[str]:
        """The names of a state_dict."""
        known = _STATE.get(type(self).__name__)
        if known is not None:
            return known
        param = self.pointer.param
        names = [name for role, name in enumerate(_ROLES) if param[role]]
        return names + (["k"] if self.k else [])

    def state_dict(self) -> Dict[str, Any]:
        """The parameters under the names of the reference's class, as views.

        They are torch tensors where torch is imported, so that torch.save takes them, otherwise
        NumPy arrays.
        """
        state: Dict[str, Any] = {}
        for name in self._state_names():
            value = self._named(name)
            if not isinstance(value, np.ndarray):
                dtype = {"k": np.int32, "threshold": np.float32}.get(name, np.int64)
                value = np.array(value, dtype)
            state[name] = as_torch_does(value)
        for i, part in enumerate(self.parts):
            state.update({f"parts.{i}.{n}": v for n, v in part.state_dict().items()})
        return state

    def load_state_dict(self, state: Any, strict: bool = True) -> None:
        """Copies parameters from a mapping with the names of `state_dict()`.

        Args:
            strict: whether names that are missing or too many are an error.
        """
        names = list(self.state_dict())
        missing = [name for name in names if name not in state]
        unknown = [name for name in state if name not in names]
        if strict and (missing or unknown):
            raise ArgumentError(f"state_dict: missing {missing}, not known {unknown}")
        parts = self.parts
        for name in names:
            if name in state:
                to, leaf = self, name
                if name.startswith("parts."):
                    _, number, leaf = name.split(".", 2)
                    to = parts[int(number)]
                to._put(leaf, state[name])

    def named_parameters(self) -> Iterator[Tuple[str, Parameter]]:
        """Names and views of all parameters."""
        for name in self._state_names():
            value = self._named(name)
            if isinstance(value, Parameter):
                yield name, value

    def parameters(self) -> Iterator[Parameter]:
        """Views of all parameters."""
        for _, value in self.named_parameters():
            yield value

    def scale_biases(self, scale: float) -> None:
        """Multiplies biases and thresholds: for rows that are `scale` times as large."""
        if self.pointer.param[lib.DLRN_GATE_BIAS]:
            raise Unsupported(f"the features of a {type(self).__name__} do not scale with its rows")
        for part in self.parts:
            part.scale_biases(scale)
        for role in _SCALED:
            if self.pointer.param[role]:
                self.parameter(role)[...] *= np.float32(scale)
        if self.formula.threshold >= 0:
            self.formula.threshold *= scale

    def normalize_decoder(self) -> None:
        """Gives atoms unit norm and multiplies features by the old norm, so that x_hat stays. Atoms
        of norm 0 stay 0. Only where features are a ReLU: elsewhere the selection would change."""
        formula = self.formula
        if (formula.gate, formula.select, self.parts) != ("relu", "all", []):
            raise Unsupported(f"a {type(self).__name__} does not keep its features when scaled")
        atoms = self.parameter(lib.DLRN_DECODER)
        norms = np.linalg.norm(atoms, axis=1)
        norms[norms == 0] = 1
        atoms /= norms[:, None]
        self.parameter(lib.DLRN_ENCODER)[...] *= norms[:, None]
        self.parameter(lib.DLRN_ENCODER_BIAS)[...] *= norms

    # ---- As torch's modules have it --------------------------------------------------------------

    device = "cpu"

    def to(self, *args: Any, **kwargs: Any) -> "Dictionary":
        """Takes "cpu" and types, and returns the dictionary itself. Other devices are refused."""
        for value in (*args, *kwargs.values()):
            if isinstance(value, str) or type(value).__name__ == "device":
                _check_device(value)
        return self

    def eval(self) -> "Dictionary":
        """The dictionary itself."""
        return self

    def train(self, mode: bool = True) -> "Dictionary":
        """The dictionary itself: dictionaries are trained by `Trainer`."""
        return self

    def requires_grad_(self, requires_grad: bool = False) -> "Dictionary":
        """The dictionary itself: nothing here has a gradient."""
        return self

    def cpu(self) -> "Dictionary":
        """The dictionary itself."""
        return self

    def cuda(self, device: Any = None) -> "Dictionary":
        """An error: dlrn computes on the CPU."""
        _check_device(device or "cuda")
        return self

    def __reduce__(self) -> Any:
        raise TypeError("a dictionary cannot be pickled: save(path), then from_pretrained(path)")

    def __repr__(self) -> str:
        name = type(self).__name__
        if self._pointer is None:
            return f"{name}(closed)"
        words = [f"activation_dim={self.activation_dim}", f"dict_size={self.dict_size}"]
        if self.k:
            words.append(f"k={self.k}")
        if self.d_out != self.activation_dim:
            words.append(f"d_out={self.d_out}")
        if self.layers > 1:
            words.append(f"layers={self.layers}")
        if self.layout:
            words.append(f"layout={self.layout!r}")
        return f"{name}({', '.join(words)})"


# What from_pretrained does not pass on to SAELens.
_OPTIONS = (
    *("k", "device", "dtype", "norm_scale", "threshold", "compat", "normalize_decoder", "context"),
)

# The roles that are in the units of a row.
_SCALED = (
    lib.DLRN_ENCODER_BIAS,
    lib.DLRN_OUTPUT_BIAS,
    lib.DLRN_INPUT_BIAS,
    lib.DLRN_VALUE_BIAS,
    lib.DLRN_THRESHOLD,
    lib.DLRN_DECODER_OFFSET,
)


def _check_device(device: Any) -> None:
    """Refuses every device but the CPU."""
    if device is not None and not str(device).startswith("cpu"):
        raise ArgumentError(f"device {device}: dlrn computes on the CPU, leave it out or pass 'cpu'")


def _check_exists(path: str) -> None:
    """Refuses a path with nothing at it. A name of Hugging Face is told how to be downloaded."""
    if os.path.exists(path):
        return
    message = f"{path}: no such file or folder"
    found = re.fullmatch(r"(?:hf://)?([\w-][\w.-]*/[\w.-]+)(/.*)?", path)
    if found:
        repository, inside = found.group(1), (found.group(2) or "").strip("/")
        local = repository.split("/")[1]
        include = f' --include "{inside}*"' if inside else ""
        message += (
            "; a repository of Hugging Face is downloaded first: "
            f"hf download {repository}{include} --local-dir {local}, "
            f"then pass {os.path.join(local, inside) if inside else local!r}"
        )
    raise MissingFile(message)


def _load(context: Context, path: str, options: Any, layout: Optional[str]) -> Any:
    """A dlrn_dictionary that frees itself."""
    name = ffi.NULL if layout is None else ffi.new("char[]", layout.encode())
    options.layout = name
    out = ffi.new("dlrn_dictionary **")
    context.call(lib.dlrn_load, context.pointer, os.fsencode(path), options, out)
    return context.own(out[0], lib.dlrn_dictionary_destroy)


def dictionary_of(
    context: Context, pointer: Any, owner: Any = None, written: Optional[Written] = None
) -> Dictionary:
    """The object of its class for a dlrn_dictionary, which it does not destroy.

    Args:
        pointer: owned (context.own), or borrowed from `owner`, which is then kept alive.
        written: of other objects for the same dictionary or its whole; None: this is the only one.
    """
    name = text(pointer.family)
    if name == "AutoEncoder" and pointer.formula.center == lib.DLRN_CENTER_NONE:
        name = "AutoEncoderNew"
    made: Dictionary = object.__new__(_CLASSES.get(name, Dictionary))
    made._take(context, pointer, owner, written)
    return made


def _shape_of(pointer: Any, role: int) -> Tuple[int, ...]:
    """The shape of a parameter, from the letters of the header's table."""
    sizes = {
        "F": pointer.features,
        "A": pointer.features,
        "I": pointer.d_in,
        "O": pointer.d_out,
        "S": pointer.skip_rows,
        "H": pointer.heads * pointer.head_width,
    }
    letters = _LETTERS[role]
    return tuple(int(sizes[letter]) for letter in letters if letter != "1")


def _letters() -> List[str]:
    """By role, the letters of its rows and columns: "FI"."""
    enumeration = ffi.typeof("dlrn_role").relements
    names = {value: name for name, value in enumeration.items()}
    return [
        chr(getattr(lib, f"{names[role]}_ROWS")) + chr(getattr(lib, f"{names[role]}_COLS"))
        for role in range(lib.DLRN_ROLE_COUNT)
    ]


_LETTERS = _letters()


def _compares_rows(pointer: Any) -> bool:
    """Whether the features of a row depend on the other rows of a call."""
    formula = pointer.formula
    if formula.select == lib.DLRN_SELECT_BATCH_TOP_K or formula.standardise == lib.DLRN_ON:
        return True
    return any(_compares_rows(pointer.part[i].dict) for i in range(pointer.n_parts))


def _codes(context: Context) -> Any:
    """An empty dlrn_sparse that frees what a call fills it with."""
    return context.own(ffi.new("dlrn_sparse *"), lib.dlrn_sparse_free)


def _matrix(pieces: List[Any], width: int) -> Any:
    """Codes as a CSR matrix. One piece is used where it lies; several are copied together."""
    csr_matrix = later("scipy.sparse", "scipy", "sparse codes").csr_matrix
    parts = [_arrays_of(codes) for codes in pieces]
    if len(parts) == 1:
        values, columns, ends = parts[0]
    else:
        values = np.concatenate([p[0] for p in parts] or [np.zeros(0, np.float32)])
        columns = np.concatenate([p[1] for p in parts] or [np.zeros(0, np.int32)])
        counts = np.concatenate([np.diff(p[2]) for p in parts] or [np.zeros(0, np.int64)])
        ends = np.concatenate([[0], np.cumsum(counts)])
    matrix = csr_matrix((values, columns, ends), shape=(len(ends) - 1, width), copy=False)
    matrix.has_sorted_indices = matrix.has_canonical_format = True
    return matrix


def _check_ends(codes: Any) -> None:
    """Refuses a CSR matrix whose indptr leads out of its arrays: SciPy lets anyone write to it."""
    ends, stored = codes.indptr, min(len(codes.indices), len(codes.data))
    ascends = len(ends) == codes.shape[0] + 1 and ends[0] == 0 and (ends[1:] >= ends[:-1]).all()
    if not ascends or ends[-1] > stored:
        raise ArgumentError(f"f: expected an indptr that ascends from 0 to at most {stored}")


def _arrays_of(codes: Any) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values, columns and row ends of codes, views that keep the codes alive."""
    active = codes.row_ptr[codes.rows]
    return (
        array_from(codes.val, (active,), codes),
        array_from(codes.col, (active,), codes, "int32_t"),
        array_from(codes.row_ptr, (codes.rows + 1,), codes, "int64_t"),
    )


# ---- Classes -------------------------------------------------------------------------------------


class AutoEncoder(Dictionary):
    """f = ReLU(E (x - b) + be), x_hat = D f + b."""

    family = "AutoEncoder"


class AutoEncoderNew(Dictionary):
    """f = ReLU(E x + be), x_hat = D f + b: nothing is subtracted from x."""

    family = "AutoEncoder"

    def __init__(self, activation_dim: int, dict_size: int, **settings: Any) -> None:
        super().__init__(activation_dim, dict_size, **settings)
        self.formula.center = "none"
        self.parameter(lib.DLRN_ENCODER_BIAS)[...] = 0
        if self.d_out == self.activation_dim:
            self.parameter(lib.DLRN_ENCODER)[...] = self.parameter(lib.DLRN_DECODER)


class AutoEncoderTopK(Dictionary):
    """The k largest features of each row."""

    family = "AutoEncoderTopK"

    def encode(  # type: ignore[override]
        self,
        x: Any,
        sparse: bool = False,
        out: Any = None,
        *,
        return_topk: bool = False,
        use_threshold: bool = False,
    ) -> Any:
        """The features of rows; see Dictionary.encode.

        Args:
            use_threshold: keep the features above `threshold` instead of the k largest.
            return_topk: also return the k largest values of each row, their features, and all
                features before the selection.
        """
        changed = {"gate": "jump", "select": "all"} if use_threshold else {}
        with _formulas(self, changed):
            f = super().encode(x, sparse, out)
        if not return_topk:
            return f
        with _formulas(self, {"gate": "relu", "select": "all"}):
            relu = super().encode(x)
        array = array_of(relu)
        best = np.argsort(-array, axis=-1, kind="stable")[..., : self.k]
        values = give_like(x, np.take_along_axis(array, best, -1))
        return f, values, as_torch_does(best) if _is_torch(x) else best, relu


class BatchTopKSAE(Dictionary):
    """The features above one threshold, which training with the k n largest of n rows has found."""

    family = "BatchTopKSAE"

    def encode(  # type: ignore[override]
        self,
        x: Any,
        sparse: bool = False,
        out: Any = None,
        *,
        return_active: bool = False,
        use_threshold: bool = True,
    ) -> Any:
        """The features of rows; see Dictionary.encode.

        Args:
            use_threshold: False keeps the k n largest features of the n rows of this call instead.
            return_active: also return which features are active on some row [F], and all features
                before the selection.
        """
        changed = {} if use_threshold else {"gate": "relu", "select": "batch_top_k"}
        with _formulas(self, changed):
            f = super().encode(x, sparse, out)
        if not return_active:
            return f
        with _formulas(self, {"gate": "relu", "select": "all"}):
            relu = super().encode(x)
        return f, f.reshape(-1, self.dict_size).sum(0) > 0, relu


class MatryoshkaBatchTopKSAE(BatchTopKSAE):
    """A BatchTopKSAE whose first groups of features reconstruct on their own.

    Args:
        group_sizes: features of each group; their sum is dict_size.
    """

    family = "MatryoshkaBatchTopKSAE"

    def __init__(
        self,
        activation_dim: int,
        dict_size: int,
        k: Optional[int] = None,
        group_sizes: Sequence[int] = (),
        **settings: Any,
    ) -> None:
        sizes = [int(size) for size in group_sizes] or [dict_size]
        if sum(sizes) != dict_size or min(sizes) < 1:
            raise ArgumentError(f"group_sizes: expected a sum of {dict_size}, found {sizes}")
        super().__init__(activation_dim, dict_size, k, **settings)
        block = lib.dlrn_alloc(self.context.pointer, len(sizes), ffi.sizeof("int64_t"))
        if not block:
            raise OutOfMemory(text(lib.dlrn_error(self.context.pointer)))
        self.pointer.group_sizes = ffi.cast("int64_t *", block)
        self.pointer.n_groups = len(sizes)
        for group, size in enumerate(sizes):
            self.pointer.group_sizes[group] = size


class JumpReluAutoEncoder(Dictionary):
    """Features above a threshold of their own."""

    family = "JumpReluAutoEncoder"

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        path: Union[None, str, "os.PathLike[str]"] = None,
        load_from_sae_lens: bool = False,
        **settings: Any,
    ) -> Any:
        """Loads a dictionary; see Dictionary.from_pretrained.

        Args:
            load_from_sae_lens: True has SAELens fetch its release=, sae_id=, instead of a path.
        """
        if not load_from_sae_lens:
            if path is None:
                raise ArgumentError("from_pretrained: expected a path")
            return super().from_pretrained(path, **settings)
        SAE = later("sae_lens", "sae-lens", "dictionaries that SAELens fetches").SAE
        ours = {k: settings.pop(k) for k in _OPTIONS if k in settings}
        found = SAE.from_pretrained(**settings)
        sae = found[0] if isinstance(found, tuple) else found
        with tempfile.TemporaryDirectory() as folder:
            sae.save_model(folder)
            return super().from_pretrained(folder, **ours)

    def encode(  # type: ignore[override]
        self, x: Any, sparse: bool = False, out: Any = None, *, output_pre_jump: bool = False
    ) -> Any:
        """The features of rows; see Dictionary.encode.

        Args:
            output_pre_jump: also return the pre-activations [..., F].
        """
        f = super().encode(x, sparse, out)
        if not output_pre_jump:
            return f
        with _formulas(self, {"gate": "linear", "select": "all"}):
            return f, super().encode(x)


class GatedAutoEncoder(Dictionary):
    """A gate decides which features are active, a second scale and bias what they are."""

    family = "GatedAutoEncoder"


class IdentityDict(Dictionary):
    """The baseline: f and x_hat are x itself."""

    family = "IdentityDict"

    def __init__(self, activation_dim: int, **settings: Any) -> None:
        super().__init__(activation_dim, activation_dim, **settings)


class GroupMax(Dictionary):
    """The largest feature of each of k groups (sparsify)."""

    family = "GroupMax"


class AbsTopK(Dictionary):
    """The k features of each row with the largest absolute values."""

    family = "AbsTopK"


class MatchingPursuit(Dictionary):
    """Features are picked one after another, each for what the ones before it leave (SAELens)."""

    family = "MatchingPursuit"


class Glu(Dictionary):
    """A second encoder gates the first (Llamascopium)."""

    family = "Glu"


class Cosine(Dictionary):
    """Pre-activations are cosines (latentsae)."""

    family = "Cosine"


class GatedTopK(Dictionary):
    """The k largest of gated features (latentsae)."""

    family = "GatedTopK"


class Temporal(Dictionary):
    """Attention to earlier rows predicts a part of each row (SAELens): rows [documents, positions,
    d] are sequences. It is loaded, encodes and reconstructs."""

    family = "Temporal"


class CrossLayerTranscoder(Dictionary):
    """Features of each layer write to that layer and the ones above it; rows are [layers, d]."""

    family = "CrossLayerTranscoder"


class Crosscoder(Dictionary):
    """Each layer's features read all layers and write to their own (Llamascopium); is loaded."""

    family = "Crosscoder"


_CLASSES: Dict[str, Type[Dictionary]] = {
    made.__name__: made
    for made in globals().copy().values()
    if isinstance(made, type) and issubclass(made, Dictionary)
}


@contextlib.contextmanager
def _formulas(dictionary: Dictionary, changed: Dict[str, Any]) -> Iterator[None]:
    """Another gate or selection for some calls; what was there comes back afterwards."""
    formula = dictionary.formula
    with dictionary.context.lock:
        before = {name: getattr(formula, name) for name in changed}
        try:
            for name, value in changed.items():
                setattr(formula, name, value)
            yield
        finally:
            for name, value in before.items():
                setattr(formula, name, value)


def load_dictionary(
    path: Union[str, "os.PathLike[str]"], device: Any = None, **settings: Any
) -> Tuple[Any, Dict[str, Any]]:
    """The dictionary of a folder, and its config.json as a dict; settings as in from_pretrained."""
    dictionary = Dictionary.from_pretrained(path, device=device, **settings)
    file, config = ffi.new("char[4096]"), ffi.new("char[4096]")
    context = dictionary.context
    found = os.fsencode(os.fspath(path))
    context.call(lib.dlrn_find_dictionary, context.pointer, found, file, config, 4096)
    if not text(config).endswith(".json"):
        return dictionary, {}
    with open(ffi.string(config), encoding="utf-8") as opened:
        return dictionary, json.load(opened)
