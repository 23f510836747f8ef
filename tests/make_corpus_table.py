"""make_corpus_table.py CORPUS - writes tests/corpus.txt: what PyTorch and safetensors read in each file of the corpus.

One line a file or tensor, fields between tabs:
    tensors FILE COUNT
    tensor  FILE NAME DTYPE SHAPE SUM ABS FIRST LAST ORDER
            numbers as f32, summed in f64; ORDER: the sum of i x_i, i from 1; SHAPE as "3,4", "" of a scalar
    error   FILE TEXT                                   what dictlearn.h must say of a file that PyTorch refuses too
"""
import sys
import warnings
from pathlib import Path

import torch
from safetensors.torch import load_file

TYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64",
         torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8",
         torch.uint16: "U16", torch.uint32: "U32", torch.uint64: "U64", torch.bool: "BOOL"}
TAR = "a tar archive, the form of torch before 0.1.10"
NONE = "expected torch (.pt), safetensors, .npz or .npy, found none of them in its"


def read(path):
    if path.suffix == ".safetensors":
        return load_file(path)
    return torch.load(path, weights_only=True, map_location="cpu")


def tensors(value, name=""):
    """(name, tensor) in a nest of dictionaries and lists, names joined with '.'."""
    if isinstance(value, torch.Tensor):
        yield name, value.detach()
        return
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else ()
    for key, item in items:
        yield from tensors(item, f"{name}.{key}" if name else str(key))


def row(file, name, tensor):
    wide = tensor.to(torch.float32).to(torch.float64).flatten()
    ends = (wide[0].item(), wide[-1].item()) if wide.numel() else (0.0, 0.0)
    order = (wide * torch.arange(1, wide.numel() + 1, dtype=torch.float64)).sum().item()
    numbers = (wide.sum().item(), wide.abs().sum().item(), *ends, order)
    shape = ",".join(map(str, tensor.shape))
    return "\t".join(["tensor", file, name, TYPES[tensor.dtype], shape, *(f"{x:.17g}" for x in numbers)])


def lines_of(path, corpus):
    file = path.relative_to(corpus).as_posix()
    try:
        found = list(tensors(read(path)))
    except Exception:  # whatever a broken file raises
        return [f"error\t{file}\t{TAR if path.suffix == '.tar' else NONE}"]
    return [f"tensors\t{file}\t{len(found)}"] + [row(file, name, tensor) for name, tensor in found]


def main():
    corpus = Path(sys.argv[1])
    warnings.simplefilter("ignore")
    files = sorted(path for path in corpus.rglob("*") if path.is_file())
    lines = [line for path in files for line in lines_of(path, corpus)]
    Path(__file__).with_name("corpus.txt").write_text("\n".join(lines) + "\n")
    print(f"{len(files)} files, {len(lines)} lines")


if __name__ == "__main__":
    main()
