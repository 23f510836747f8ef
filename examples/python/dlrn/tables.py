"""What the library is and knows: version, kernel sets, recipes, and files of tensors."""

from __future__ import annotations

import os
from typing import Any, Dict, List, Optional, Sequence, Union

import numpy as np

from ._core import (
    ArgumentError,
    Context,
    default_context,
    ffi,
    lib,
    name_of,
    pointer_to,
    text,
)

_FORMULA = {
    "center": lib.DLRN_NAMES_CENTER,
    "gate": lib.DLRN_NAMES_GATE,
    "select": lib.DLRN_NAMES_SELECT,
    "rank": lib.DLRN_NAMES_RANK,
}


def _version() -> str:
    """The version of the library that is loaded: the second word of a context's description."""
    with Context(threads=1) as context:
        return text(lib.dlrn_context_describe(context.pointer).text).split()[1].rstrip(",")


version = _version()


def kernels(context: Optional[Context] = None) -> List[str]:
    """The kernel sets that this processor can run, "scalar" first. Results are the same bits."""
    info = lib.dlrn_context_describe((context or default_context()).pointer)
    names: List[str] = []
    while info.available[len(names)]:
        names.append(text(info.available[len(names)]))
    return names


def recipes() -> List[Dict[str, Any]]:
    """How dictionaries can be trained, one dict for each recipe.

    name; family, of the dictionaries that it trains; layout, the library that it is modelled on, or
    None; loss, in words; center, gate, select and rank of its formula; settings, the names of the
    settings that this recipe uses and some other does not; lr, its default rate, or -1 where it
    depends on the number of features.
    """
    found: List[Dict[str, Any]] = []
    while True:
        info = lib.dlrn_recipe(len(found))
        if not info:
            return found
        found.append(_recipe(info))


def _recipe(info: Any) -> Dict[str, Any]:
    settings: List[str] = []
    while info.settings[len(settings)]:
        settings.append(text(info.settings[len(settings)]))
    return {
        "name": text(info.name),
        "family": text(info.family),
        "layout": text(info.layout) or None,
        "loss": text(info.loss),
        "lr": float(lib.dlrn_train_defaults(info.name).lr),
        "settings": settings,
        **{key: name_of(which, getattr(info.formula, key)) for key, which in _FORMULA.items()},
    }


def load_tensors(
    path: Union[str, "os.PathLike[str]"],
    names: Optional[Sequence[str]] = None,
    context: Optional[Context] = None,
) -> Dict[str, np.ndarray]:
    """The tensors of a .pt, .safetensors, .npz or .npy file, or of all shards of a .index.json.

    Nothing in a file is executed. f16, bf16 and f64 become f32. Arrays of integers cannot be read.

    Args:
        names: of the tensors to read; None: all of them. A .npy has one, "".
    """
    context = context or default_context()
    out = ffi.new("dlrn_archive **")
    with context.lock:
        context.check(lib.dlrn_archive_open(context.pointer, os.fsencode(path), out))
        archive = out[0]
        try:
            count = lib.dlrn_archive_describe(archive).count
            infos = [lib.dlrn_archive_tensor(archive, i) for i in range(count)]
            found = {text(info.name): i for i, info in enumerate(infos)}
            for name in names or ():
                if name not in found:
                    raise ArgumentError(f"{os.fspath(path)}: no tensor {name!r}")
            return {
                name: _tensor(context, archive, i, infos[i])
                for name, i in found.items()
                if names is None or name in names
            }
        finally:
            lib.dlrn_archive_close(archive)


def _tensor(context: Context, archive: Any, index: int, info: Any) -> np.ndarray:
    """One tensor of an archive; the lock is held."""
    array = np.empty([info.shape[i] for i in range(info.ndim)], np.float32)
    data = pointer_to(array.reshape(-1))
    context.check(lib.dlrn_archive_read(archive, index, 0, -1, data))
    return array
