"""Helpers under the names of dictionary_learning: texts, folders of dictionaries, submodules."""

from __future__ import annotations

import io
import json
import os
from typing import Any, Iterator, List

from . import models
from .dictionary import load_dictionary

__all__ = ["get_nested_folders", "get_submodule", "hf_dataset_to_generator"]
__all__ += ["load_dictionary", "zst_to_generator"]


def hf_dataset_to_generator(
    dataset_name: str, split: str = "train", streaming: bool = True
) -> Iterator[str]:
    """The texts of a data set of the Hugging Face hub. Needs the package datasets."""
    datasets = models.later("datasets", what="data sets of the hub")
    rows = datasets.load_dataset(dataset_name, split=split, streaming=streaming)
    return (row["text"] for row in rows)


def zst_to_generator(data_path: str) -> Iterator[str]:
    """The texts of a .jsonl.zst file. Needs the package zstandard."""
    zstandard = models.later("zstandard", what="files of zstd")
    with open(data_path, "rb") as file:
        stream = zstandard.ZstdDecompressor().stream_reader(file)
        for line in io.TextIOWrapper(stream, encoding="utf-8"):
            yield json.loads(line)["text"]


def get_nested_folders(path: str) -> List[str]:
    """All folders at or below a path that hold an ae.pt, in the order of their names."""
    return sorted(folder for folder, _, files in os.walk(path) if "ae.pt" in files)


def get_submodule(model: Any, layer: int) -> Any:
    """A layer of a model, whose output is the residual stream after it."""
    root = models.torch_module(model)
    stacks = ("gpt_neox.layers", "model.layers", "transformer.h", "model.language_model.layers")
    for name in (*stacks, "model.decoder.layers"):
        try:
            return root.get_submodule(f"{name}.{layer}")
        except AttributeError:
            pass
    raise models.ArgumentError(f"{type(root).__name__}: its layers are not where others have them")
