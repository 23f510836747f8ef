"""Texts, folders of runs and submodules, under the names that dictionary_learning's `utils` has."""

from __future__ import annotations

import io
import json
import os
from typing import Any, Iterator, List, Union

from ._core import ArgumentError
from .dictionary import load_dictionary
from .models import torch_module

__all__ = [
    "get_nested_folders",
    "get_submodule",
    "hf_dataset_to_generator",
    "load_dictionary",
    "zst_to_generator",
]


def hf_dataset_to_generator(
    dataset_name: str, split: str = "train", streaming: bool = True
) -> Iterator[str]:
    """The texts ("text") of a data set of the Hugging Face hub, one after the other. Needs datasets."""
    try:
        from datasets import load_dataset
    except ImportError:
        raise ImportError("data sets of the hub need datasets: pip install datasets") from None
    return (item["text"] for item in load_dataset(dataset_name, split=split, streaming=streaming))


def zst_to_generator(data_path: Union[str, "os.PathLike[str]"]) -> Iterator[str]:
    """The texts ("text") of a .jsonl.zst file. Needs zstandard."""
    try:
        import zstandard
    except ImportError:
        raise ImportError(".zst files need zstandard: pip install zstandard") from None
    file = zstandard.ZstdDecompressor().stream_reader(open(data_path, "rb"), closefd=True)
    return (json.loads(line)["text"] for line in io.TextIOWrapper(file, encoding="utf-8"))


def get_nested_folders(path: Union[str, "os.PathLike[str]"]) -> List[str]:
    """The folders below a path, itself included, that hold an ae.pt, in the order of their names."""
    return sorted(folder for folder, _, files in os.walk(path) if "ae.pt" in files)


def get_submodule(model: Any, layer: int) -> Any:
    """The module of a layer of a language model: its output is the residual stream after it."""
    root = torch_module(model)
    for name in ("gpt_neox.layers", "model.layers", "transformer.h", "model.decoder.layers"):
        layers: Any = root
        for part in name.split("."):
            layers = getattr(layers, part, None)
        if layers is not None:
            return layers[layer]
    raise ArgumentError(
        f"the layers of a {type(root).__name__} have no usual name: pass one of its modules"
    )
