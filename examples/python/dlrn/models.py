"""Rows from inside a language model, edits there, and what an edit does to the model's loss.

A model is a Hugging Face model, another torch module that takes token ids, or an nnsight model,
whose torch module is used. A submodule is the module, its dotted name ("gpt_neox.layers.3.mlp") or
an nnsight Envoy. `io` says which side of it: "out", what it returns; "in", what it is given;
"in_and_out" or "in_to_out", both, for transcoders. Of a tuple, the first element counts.

Tokens are ids [contexts, tokens], a list of lists of ids, a text, a list of texts, or what a
tokenizer returns. Padding gives no rows. Models run in evaluation mode and without gradients.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import inspect
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

from ._core import ArgumentError, ShapeError

__all__ = ["edited", "find_submodule", "loss_recovered", "rows_at", "tokenizer_of", "torch_module"]

BOTH = ("in_and_out", "in_to_out")
# Contexts in one pass. On two cores 16 contexts of 128 tokens run as fast as any larger batch, and
# their activations stay in the cache. On a GPU, measure again.
CONTEXTS = 16


def later(name: str, package: str = "", what: str = "language models") -> Any:
    """Imports a module that only some functions need; one error says how to get it."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        wanted = package or error.name
        raise ModuleNotFoundError(
            f"{what} need {error.name}: pip install {wanted}", name=error.name
        ) from None


class _Later:
    """A module that is imported when it is first used, so that dlrn itself does not need it."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(later(self._name), attribute)


torch: Any = _Later("torch")


class _Reached(BaseException):
    """Ends a pass at a submodule. No Exception: a model's own handlers must not catch it."""


# ---- Models, submodules, tokenizers --------------------------------------------------------------


def torch_module(model: Any) -> Any:
    """The torch module of a model: itself, or what nnsight has wrapped, with its weights loaded."""
    if isinstance(model, torch.nn.Module):
        return model
    if getattr(model, "dispatched", True) is False:
        # until then nnsight's modules have no weights; older releases use the longer name
        load = getattr(model, "dispatch", None) or model.dispatch_model
        load()
    for name in ("_module", "_model"):
        module = getattr(model, name, None)
        if isinstance(module, torch.nn.Module):
            return module
    raise ArgumentError(
        f"model: expected a torch module or nnsight's, found {type(model).__name__}"
    )


def find_submodule(model: Any, submodule: Any) -> Any:
    """The torch module of a submodule, which is part of the model: a module, a name, an Envoy."""
    root = torch_module(model)
    if isinstance(submodule, str):
        return _by_name(root, submodule.strip("."))
    module = submodule
    if not isinstance(module, torch.nn.Module):
        module = getattr(submodule, "_module", None)
    if not isinstance(module, torch.nn.Module):
        kind = type(submodule).__name__
        raise ArgumentError(f"submodule: expected a module of the model or its name, found {kind}")
    if not any(module is part for part in root.modules()):
        raise ArgumentError(f"submodule: {type(module).__name__} is no part of this model")
    return module


def _by_name(root: Any, name: str) -> Any:
    names = dict(root.named_modules())
    # nnsight calls the model itself "model": model.gpt_neox... there is gpt_neox... here
    for known in (name, name.partition(".")[2] if name.startswith("model.") else name):
        if known in names:
            return names[known]
    near = difflib.get_close_matches(name, names, n=5, cutoff=0.3)
    listed = near or [child for child, _ in root.named_children()]
    raise ArgumentError(
        f"submodule {name!r}: not in {type(root).__name__}; there are {', '.join(listed)}"
    )


def tokenizer_of(model: Any, tokenizer: Any = None) -> Any:
    """The tokenizer that is given, else the wrapper's, else the one that lies beside the model."""
    found = tokenizer if tokenizer is not None else getattr(model, "tokenizer", None)
    if found is not None:
        return found
    path = getattr(torch_module(model), "name_or_path", "")
    if path:
        with contextlib.suppress(Exception):
            return later("transformers").AutoTokenizer.from_pretrained(path)
    raise ArgumentError("no tokenizer is known for this model: pass tokenizer=")


def device_of(model: Any) -> Any:
    """Where a model's inputs belong."""
    return next(torch_module(model).parameters()).device


def dtype_of(model: Any) -> Any:
    """The float type of a model."""
    root = torch_module(model)
    floats = (p.dtype for p in root.parameters() if p.dtype.is_floating_point)
    return getattr(root, "dtype", None) or next(floats)


# ---- Tokens --------------------------------------------------------------------------------------


def pad(contexts: Sequence[Sequence[int]], device: Any = "cpu") -> Dict[str, Any]:
    """Contexts of ids as one batch {"input_ids", "attention_mask"}, each [contexts, longest].

    They are padded on the right, where causal models do not see the padding. Its id is 0, which
    every model has: a tokenizer's own padding may lie beyond the model's vocabulary.
    """
    longest = max((len(context) for context in contexts), default=0)
    ids = torch.zeros(len(contexts), longest, dtype=torch.long)
    mask = torch.zeros(len(contexts), longest, dtype=torch.long)
    for i, context in enumerate(contexts):
        ids[i, : len(context)] = torch.as_tensor(context, dtype=torch.long)
        mask[i, : len(context)] = 1
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}


def _unpadded(batch: Mapping[str, Any]) -> List[List[int]]:
    """The contexts of a tokenizer's result, without their padding."""
    masks = batch.get("attention_mask")
    rows = [list(map(int, row)) for row in batch["input_ids"]]
    if masks is None:
        return rows
    return [[i for i, keep in zip(row, mask) if keep] for row, mask in zip(rows, masks)]


def contexts_of(
    model: Any,
    tokens: Any,
    tokenizer: Any = None,
    max_len: Optional[int] = None,
    add_special_tokens: bool = True,
) -> List[List[int]]:
    """Any form of tokens as lists of ids, each cut to max_len."""
    if isinstance(tokens, str):
        tokens = [tokens]
    if isinstance(tokens, Mapping) or hasattr(tokens, "input_ids"):
        found = _unpadded(tokens)
    elif len(tokens) and isinstance(tokens[0], str):
        encode = tokenizer_of(model, tokenizer)
        words: Dict[str, Any] = {"truncation": True, "max_length": max_len} if max_len else {}
        found = encode(list(tokens), add_special_tokens=add_special_tokens, **words)["input_ids"]
    elif len(tokens) and getattr(tokens[0], "ndim", int(hasattr(tokens[0], "__len__"))) == 0:
        found = [list(map(int, tokens))]
    else:
        found = [list(map(int, row)) for row in tokens]
    return [row[:max_len] for row in found] if max_len else found


def passes(
    model: Any, contexts: Sequence[Sequence[int]], size: int = CONTEXTS
) -> Iterator[Tuple[List[int], Dict[str, Any]]]:
    """Batches of at most `size` contexts of similar lengths: (which contexts, padded batch)."""
    device = device_of(model)
    order = sorted((i for i, c in enumerate(contexts) if len(c)), key=lambda i: len(contexts[i]))
    for first in range(0, len(order), size):
        chosen = order[first : first + size]
        yield chosen, pad([contexts[i] for i in chosen], device)


def _batch_of(model: Any, tokens: Any, tokenizer: Any) -> Dict[str, Any]:
    """One batch on the model's device. Tensors of a tokenizer are used as they were made."""
    device = device_of(model)
    if isinstance(tokens, Mapping) or hasattr(tokens, "input_ids"):
        if isinstance(tokens["input_ids"], torch.Tensor):
            return {k: v.to(device) if hasattr(v, "to") else v for k, v in tokens.items()}
    elif isinstance(tokens, torch.Tensor) and tokens.ndim == 2:
        return {"input_ids": tokens.to(device)}
    return pad(contexts_of(model, tokens, tokenizer), device)


# ---- Passes --------------------------------------------------------------------------------------


@contextlib.contextmanager
def quiet(model: Any) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards each module is as it was."""
    training = [module for module in torch_module(model).modules() if module.training]
    try:
        for module in training:
            module.training = False
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


def run(model: Any, batch: Mapping[str, Any]) -> Any:
    """Runs a model on a batch, without a cache of keys and values where the model has one."""
    root = torch_module(model)
    names = inspect.signature(root.forward).parameters
    open_ended = any(p.kind is p.VAR_KEYWORD for p in names.values())
    if "input_ids" not in names and not open_ended:
        return root(batch["input_ids"])
    # tokenizers hand out token_type_ids for models that do not take them
    words = {k: v for k, v in batch.items() if k in names or (open_ended and k != "token_type_ids")}
    if "use_cache" in names or (open_ended and hasattr(root, "config")):
        words["use_cache"] = False
    return root(**words)


def _first(value: Any) -> Any:
    """The first element of a tuple or of a model's output; a tensor itself."""
    if isinstance(value, (tuple, list)) or hasattr(value, "to_tuple"):
        return value[0]
    return value


def _with_first(value: Any, new: Any) -> Any:
    """The same with another first element."""
    if isinstance(value, (tuple, list)):
        return getattr(value, "_make", type(value))([new, *value[1:]])
    if hasattr(value, "to_tuple"):
        value[next(iter(value))] = new
        return value
    return new


def _input_place(args: tuple, kwargs: Dict[str, Any]) -> Any:
    """Where a module's input is: an index into args or a key of kwargs."""
    for i, value in enumerate(args):
        if isinstance(_first(value), torch.Tensor):
            return i
    for name in ("hidden_states", *kwargs):
        if isinstance(kwargs.get(name), torch.Tensor):
            return name
    raise ShapeError("submodule: it is given no tensor")


def _input_of(args: tuple, kwargs: Dict[str, Any]) -> Any:
    place = _input_place(args, kwargs)
    return _first(args[place]) if isinstance(place, int) else kwargs[place]


def _shaped(x: Any, batch: Optional[Mapping[str, Any]], what: str) -> Any:
    """x as [contexts, tokens, d]; some modules work on [contexts * tokens, d]."""
    if not isinstance(x, torch.Tensor):
        raise ShapeError(f"{what} of the submodule: expected a tensor, found {type(x).__name__}")
    if x.ndim == 3 and (batch is None or x.shape[:2] == batch["input_ids"].shape):
        return x
    if x.ndim == 2 and batch is not None and x.shape[0] == batch["input_ids"].numel():
        return x.reshape(*batch["input_ids"].shape, x.shape[1])
    shape = list(x.shape)
    raise ShapeError(f"{what} of the submodule: expected [contexts, tokens, d], found {shape}")


def check_io(io: str, allowed: Sequence[str] = ("in", "out", *BOTH)) -> str:
    if io not in allowed:
        raise ArgumentError(f"io: expected {', '.join(map(repr, allowed))}, found {io!r}")
    return io


@contextlib.contextmanager
def _hooks(*handles: Any) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def states_at(model: Any, submodule: Any, batch: Mapping[str, Any], io: str = "out") -> tuple:
    """What a submodule is given or returns, [contexts, tokens, d], in a tuple: (out,), (in,) or
    (in, out). The pass ends there: nothing above is computed, for "in" not the submodule either."""
    module = find_submodule(model, submodule)
    found: List[Any] = []

    def before(_module: Any, args: tuple, kwargs: Dict[str, Any]) -> None:
        x = _input_of(args, kwargs)
        if io == "in":
            found.append(x)
            raise _Reached
        found.append(x.clone())  # the submodule may work in place

    def after(_module: Any, _args: tuple, out: Any) -> None:
        found.append(_first(out))
        raise _Reached

    handles = []
    if io != "out":
        handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
    if io != "in":
        handles.append(module.register_forward_hook(after))
    with _hooks(*handles), quiet(model):
        try:
            run(model, batch)
        except _Reached:
            names = (
                ("input",) if io == "in" else ("output",) if io == "out" else ("input", "output")
            )
            return tuple(_shaped(x, batch, name) for x, name in zip(found, names))
    raise ArgumentError("submodule: the model does not run it on these tokens")


def rows_at(model: Any, submodule: Any, tokens: Any, io: str = "out", tokenizer: Any = None) -> Any:
    """The rows at a submodule, in the order of the tokens, without those of padding.

    All contexts run in one pass, which ends at the submodule. Returns a tensor [rows, d] on the
    model's device and in its type; for "in_and_out" and "in_to_out" a pair (in, out).
    """
    check_io(io)
    batch = _batch_of(model, tokens, tokenizer)
    states = states_at(model, submodule, batch, io)
    mask = batch.get("attention_mask")
    keep = torch.ones_like(batch["input_ids"]) if mask is None else mask
    rows = tuple(x[keep.to(x.device) != 0] for x in states)
    return rows if io in BOTH else rows[0]


def width_at(model: Any, submodule: Any, io: str = "out") -> Tuple[int, ...]:
    """The widths of the tensors that states_at returns. Runs one token to find them."""
    states = states_at(model, submodule, pad([[0]], device_of(model)), io)
    return tuple(int(x.shape[-1]) for x in states)


# ---- Edits ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def edited(
    model: Any, submodule: Any, edit: Callable[[Any], Any], io: str = "out"
) -> Iterator[None]:
    """While this lasts, the submodule's output (or input) is replaced by edit(x).

    Args:
        edit: is given a tensor as the model made it, mostly [contexts, tokens, d], and returns the
            new one, which gets the model's type and device.
        io: "out": edit(output) is the output; "in": edit(input) is the input; "in_and_out" or
            "in_to_out": edit(input) is the output, as with a transcoder.

    What runs the model (a call, generate, nnsight's trace) sees the edit. Edits can be nested.
    """
    check_io(io)
    module = find_submodule(model, submodule)
    given: List[Any] = []

    def change_input(_module: Any, args: tuple, kwargs: Dict[str, Any]) -> Any:
        place = _input_place(args, kwargs)
        if isinstance(place, int):
            new = _with_first(args[place], _edit(edit, _first(args[place])))
            return (*args[:place], new, *args[place + 1 :]), kwargs
        return args, {**kwargs, place: _edit(edit, kwargs[place])}

    def keep_input(_module: Any, args: tuple, kwargs: Dict[str, Any]) -> None:
        given.append(_input_of(args, kwargs).clone())

    def change_output(_module: Any, _args: tuple, out: Any) -> Any:
        old = _first(out)
        return _with_first(out, _edit(edit, given.pop() if io in BOTH else old, old))

    handles = []
    if io != "out":
        change = change_input if io == "in" else keep_input
        handles.append(module.register_forward_pre_hook(change, with_kwargs=True))
    if io != "in":
        handles.append(module.register_forward_hook(change_output))
    with _hooks(*handles):
        yield


def _edit(edit: Callable[[Any], Any], x: Any, old: Any = None) -> Any:
    """edit(x) in the place of `old` (or x), whose shape, type and device it gets."""
    old = x if old is None else old
    shape, new = old.shape, edit(x)
    if new is None:
        raise ArgumentError("edit: it returned None instead of the new tensor")
    new = torch.as_tensor(new)
    if new.shape != shape:
        raise ShapeError(f"edit: expected shape {list(shape)}, found {list(new.shape)}")
    return new.to(device=old.device, dtype=old.dtype)


def apply(function: Callable[..., Any], x: Any, like: Any = None, **words: Any) -> Any:
    """A dictionary, or a method of one, on rows that may be of any type and on any device.

    Dictionaries of torch get x in their own type and on their device. All others get f32 on the
    CPU. The results come back to x's device.
    """
    owner = like if like is not None else function
    here = x.detach()
    if isinstance(owner, torch.nn.Module) and next(owner.parameters(), None) is not None:
        here = here.to(next(owner.parameters()))
    else:
        here = here.to("cpu", torch.float32)
    with torch.no_grad():
        result = function(here.contiguous(), **words)
    if isinstance(result, tuple):
        return tuple(part.to(x.device) for part in result)
    return result.to(x.device)


# ---- Loss ----------------------------------------------------------------------------------------


def logits_of(output: Any) -> Any:
    """The logits [contexts, tokens, vocabulary] that a model has returned."""
    logits = getattr(output, "logits", None)
    if logits is None:
        logits = _first(output)
    if hasattr(output, "last_hidden_state") or not isinstance(logits, torch.Tensor):
        raise ArgumentError("model: it gives no logits; load it with AutoModelForCausalLM")
    return logits


def _nats(logits: Any, batch: Mapping[str, Any]) -> Tuple[float, int]:
    """The cross-entropy of all tokens that follow another one, and how many those are."""
    nats, count = 0.0, 0
    for row, ids, mask in zip(logits, batch["input_ids"], batch["attention_mask"]):
        ids = ids[mask != 0].to(row.device)
        # f64 sums: the mean over any number of tokens then has no error of its own
        entropy = torch.nn.functional.cross_entropy
        losses = entropy(row[: len(ids) - 1].float(), ids[1:], reduction="none")
        nats += float(losses.double().sum())
        count += len(ids) - 1
    return nats, count


class _Site:
    """Replaces the rows of one batch at a submodule, real tokens only."""

    def __init__(self, batch: Mapping[str, Any], out_width: int) -> None:
        self.batch, self.out_width = batch, out_width
        self.mask = batch["attention_mask"] != 0

    def zero(self, x: Any) -> Any:
        return x.new_zeros(*x.shape[:-1], self.out_width)

    def replace(self, x: Any, function: Callable[[Any], Any]) -> Any:
        """x with function(rows) in place of its rows."""
        shaped = _shaped(x, self.batch, "input or output")
        mask = self.mask.to(x.device)
        new = shaped.new_zeros(*shaped.shape[:-1], self.out_width)
        if self.out_width == shaped.shape[-1]:
            new.copy_(shaped)
        new[mask] = function(shaped[mask]).to(new.dtype)
        return new.reshape(*x.shape[:-1], self.out_width)


def loss_recovered(
    text: Any,
    model: Any,
    submodule: Any,
    dictionary: Any,
    max_len: Optional[int] = None,
    normalize_batch: bool = False,
    io: str = "out",
    tracer_args: Optional[Mapping[str, Any]] = None,
    *,
    batch_size: int = CONTEXTS,
    tokenizer: Any = None,
) -> Tuple[Any, Any, Any]:
    """The model's loss as it is, with the dictionary's reconstruction in place, and with zeros.

    Args:
        text: texts, or tokens in any form.
        max_len: tokens to which each text is cut; None: as it is.
        normalize_batch: rows are scaled so that the mean norm over all texts is sqrt(d) before they
            are reconstructed, and scaled back.
        io: "out", "in", or for a transcoder "in_and_out" or "in_to_out": the reconstruction from
            the input replaces the output.
        tracer_args: accepted and ignored.
        batch_size: contexts in one pass. The results do not depend on it, except for rounding.

    Returns:
        (loss_original, loss_reconstructed, loss_zero): mean nats per token over all tokens that
        follow another one in their text. f64 tensors without dimensions.
    """
    check_io(io)
    contexts = contexts_of(model, text, tokenizer, max_len)
    batches = [batch for _, batch in passes(model, contexts, batch_size)]
    if not any(len(context) > 1 for context in contexts):
        raise ArgumentError("text: no text has two tokens, so that there is nothing to predict")
    width = width_at(model, submodule, io)
    scale = _scale(model, submodule, batches, io, width[0]) if normalize_batch else 1.0

    def reconstruct(rows: Any) -> Any:
        return apply(dictionary, rows * scale) / scale

    sums, count = [0.0, 0.0, 0.0], 0
    for batch in batches:
        site = _Site(batch, width[-1])
        edits = (None, lambda x: site.replace(x, reconstruct), site.zero)
        for i, edit in enumerate(edits):
            nats, tokens = _loss(model, submodule, batch, edit, io)
            sums[i] += nats
        count += tokens
    losses = torch.tensor(sums, dtype=torch.float64) / count
    return losses[0], losses[1], losses[2]


def _loss(model: Any, submodule: Any, batch: Any, edit: Any, io: str) -> Tuple[float, int]:
    """The summed loss of one batch, with an edit or None."""
    change = edited(model, submodule, edit, io) if edit else contextlib.nullcontext()
    with quiet(model), change:
        return _nats(logits_of(run(model, batch)), batch)


def _scale(model: Any, submodule: Any, batches: Sequence[Any], io: str, width: int) -> float:
    """sqrt(d) / the mean norm of all rows that the dictionary is given."""
    total, count = 0.0, 0
    for batch in batches:
        side = "out" if io == "out" else "in"
        (x,) = states_at(model, submodule, batch, side)
        norms = x[batch["attention_mask"].to(x.device) != 0].float().norm(dim=-1)
        total += float(norms.double().sum())
        count += norms.numel()
    return float(width**0.5 * count / total) if total else 1.0
