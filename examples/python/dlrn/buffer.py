"""Activations of a language model for training: `ActivationBuffer`.

`next(buffer)` draws rows without replacement from a store of about n_ctxs * ctx_len rows, which is
filled again when fewer than half are unread. `buffer.source()` gives the same rows in the order of
the text, for the library's own buffer, which shuffles them by a seed.
"""

from __future__ import annotations

import itertools
import json
import os
import warnings
from collections import deque
from typing import Any, Callable, Deque, Dict, Iterable, Iterator, List, Mapping, Optional, Tuple

from . import models
from ._core import ArgumentError, FormatError, MissingFile, Unsupported
from .models import BOTH, torch

__all__ = ["ActivationBuffer", "ActivationRows", "NNsightActivationBuffer", "texts_of"]

# Texts that source() takes at a time; fixed, so that its rows do not depend on any batch size.
UNIT = 64


# ---- Texts ---------------------------------------------------------------------------------------


def _has_json(path: str) -> bool:
    """Whether a file begins with a JSON object."""
    with open(path, "rb") as file:
        return file.read(4096).lstrip().startswith(b"{")


def _documents(path: str, _key: str) -> Iterator[str]:
    """The documents of a plain text file, which are separated by blank lines."""
    lines: List[str] = []
    with open(path, encoding="utf-8") as file:
        for line in itertools.chain(file, [""]):
            if line.strip():
                lines.append(line)
            elif lines:
                yield "".join(lines).rstrip("\r\n")
                lines = []


def _json_lines(path: str, key: str) -> Iterator[str]:
    """The texts of a file with one JSON object a line."""
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                text = json.loads(line)[key]
            except (ValueError, KeyError, TypeError):
                raise FormatError(
                    f"{path}: line {number}: expected an object with {key!r}"
                ) from None
            yield text


def texts_of(data: Any, key: str = "text") -> Tuple[Callable[[], Iterator[Any]], bool]:
    """(a function that opens the texts, whether it can be called again for another reading).

    data: an iterable of strings, of mappings with a string at `key`, or of lists of token ids; or
    the path of a .jsonl or of a text file, which is read as it is needed.
    """
    if isinstance(data, (str, os.PathLike)):
        path = os.fspath(data)
        if not os.path.isfile(path):
            raise MissingFile(f"{path[:200]}: no such file; texts come as an iterable or as a path")
        read = _json_lines if path.endswith(".jsonl") or _has_json(path) else _documents
        return lambda: read(path, key), True
    if hasattr(data, "__next__"):
        return lambda: data, False
    if not isinstance(data, Iterable):
        raise ArgumentError(f"data: expected an iterable of texts, found {type(data).__name__}")
    return lambda: iter(data), True


def _text_of(item: Any, key: str) -> Any:
    """The text or the token ids of an item."""
    if isinstance(item, Mapping):
        item = item.get(key)
    if isinstance(item, str) or (hasattr(item, "__len__") and not isinstance(item, (bytes, dict))):
        return item
    raise ArgumentError(f"data: expected texts or lists of ids, found {type(item).__name__}")


# ---- The buffer ----------------------------------------------------------------------------------


class ActivationBuffer:
    """A store of activations at a submodule of a language model, handed out in random batches.

    Args:
        data: texts: an iterable of strings, mappings with a "text" (as datasets gives them) or
            lists of token ids, or the path of a .jsonl or text file.
        model: a Hugging Face model or an nnsight model; see dlrn.models.
        submodule: a module of the model, its dotted name, or an nnsight Envoy.
        d_submodule: the width of a row; None: as the model has it. in_feats and out_feats are the
            same in older calls.
        io: "out" or "in": batches are [out_batch_size, d]. "in_to_out": pairs (in, out) of them.
            "in_and_out": [out_batch_size, 2, d], which wants equal widths.
        n_ctxs: contexts to hold, of ctx_len rows each; the store has n_ctxs * ctx_len rows.
        ctx_len: tokens to which each text is cut.
        refresh_batch_size: texts taken at a time; in_batch_size is the same in older calls.
        out_batch_size: rows in a batch.
        device: where the store lies and batches are.
        remove_bos: leaves out the rows of the beginning-of-sequence token, or of each text's first
            token if the tokenizer has none.
        add_special_tokens: whether the tokenizer adds its special tokens.
        max_activation_norm_multiple: leaves out rows longer than this many times the median over
            the rows of the texts taken together; None: keeps all. Removes attention sinks.
        tokenizer: None: the wrapper's, or the one beside the model.
        seed: of the draws; None: torch's own generator, which torch.manual_seed sets.

    Iteration ends (StopIteration) when the texts have ended and fewer than out_batch_size rows are
    left. Rows have the model's float type.
    """

    def __init__(
        self,
        data: Any,
        model: Any,
        submodule: Any,
        d_submodule: Optional[int] = None,
        io: str = "out",
        n_ctxs: float = 3e4,
        ctx_len: int = 128,
        refresh_batch_size: int = 512,
        out_batch_size: int = 8192,
        device: Any = "cpu",
        remove_bos: bool = False,
        add_special_tokens: bool = True,
        max_activation_norm_multiple: Optional[float] = None,
        *,
        in_batch_size: Optional[int] = None,
        in_feats: Optional[int] = None,
        out_feats: Optional[int] = None,
        tokenizer: Any = None,
        seed: Optional[int] = None,
        text_key: str = "text",
    ) -> None:
        self.io = models.check_io(io)
        self.n_ctxs, self.ctx_len = n_ctxs, ctx_len
        self.refresh_batch_size = in_batch_size or refresh_batch_size
        self.out_batch_size, self.device = out_batch_size, device
        self.remove_bos, self.add_special_tokens = remove_bos, add_special_tokens
        self.remove_high_norm = max_activation_norm_multiple
        self.model, self.submodule = model, submodule
        self.tokenizer = tokenizer
        self._key = text_key
        self._open, self._again = texts_of(data, text_key)
        self.data = self._open()
        self._taken = 0  # from data, those that wait in _pending included
        self._pending: Deque[Any] = deque()
        self._check_sizes()
        self._set_widths(d_submodule, in_feats, out_feats)
        self._set_bos()
        self._generator = None if seed is None else torch.Generator().manual_seed(seed)
        self._start_empty()

    # The name of refresh_batch_size in March 2024.
    in_batch_size = property(lambda self: self.refresh_batch_size)

    def _check_sizes(self) -> None:
        for name in ("n_ctxs", "ctx_len", "refresh_batch_size", "out_batch_size"):
            if not getattr(self, name) >= 1:
                raise ArgumentError(f"{name}: expected at least 1, found {getattr(self, name)}")
        self.activation_buffer_size = int(self.n_ctxs * self.ctx_len)

    def _set_widths(self, d: Optional[int], d_in: Optional[int], d_out: Optional[int]) -> None:
        """Widths as the model has them; those that were stated must be the same."""
        self._widths = models.width_at(self.model, self.submodule, self.io)
        stated = {"in": (d_in or d,), "out": (d_out or d,)}.get(self.io, (d_in or d, d_out or d))
        for found, width in zip(self._widths, stated):
            if width is not None and width != found:
                raise ArgumentError(
                    f"d_submodule: expected {found}, as the model has, found {width}"
                )
        if self.io == "in_and_out" and self._widths[0] != self._widths[1]:
            widths = f"{self._widths[0]} and {self._widths[1]}"
            raise ArgumentError(f"io 'in_and_out' wants equal widths, found {widths}: 'in_to_out'")
        self.d_submodule = self._widths[-1]

    def _set_bos(self) -> None:
        self._bos = None
        if self.remove_bos:
            self._bos = models.tokenizer_of(self.model, self.tokenizer).bos_token_id
            if self._bos is None:
                text = "the tokenizer has no BOS token: remove_bos leaves out first tokens"
                warnings.warn(text, stacklevel=3)

    def _start_empty(self) -> None:
        dtype = models.dtype_of(self.model)
        shapes = (
            [(2, self.d_submodule)] if self.io == "in_and_out" else [(d,) for d in self._widths]
        )
        self._store = [torch.empty(0, *s, dtype=dtype, device=self.device) for s in shapes]
        self._spare: Optional[tuple] = None
        self._filled = self._next = 0
        self._order = torch.empty(0, dtype=torch.long)
        self._ended = False
        self.read = torch.zeros(0, dtype=torch.bool, device=self.device)

    # ---- Texts and tokens

    def _take(self, n: int) -> List[Any]:
        """Up to n texts."""
        items = [self._pending.popleft() for _ in range(min(n, len(self._pending)))]
        fresh = [_text_of(item, self._key) for item in itertools.islice(self.data, n - len(items))]
        self._taken += len(fresh)
        return items + fresh

    def _restart(self, text: int) -> None:
        """Goes back to a text."""
        self.close()
        self.data = self._open()
        self._pending.clear()
        self._taken = sum(1 for _ in itertools.islice(self.data, text))

    def text_batch(self, batch_size: Optional[int] = None) -> List[Any]:
        """The next texts, as many as a batch has; StopIteration if there are fewer."""
        n = batch_size or self.refresh_batch_size
        items = self._take(n)
        if len(items) < n:
            self._pending.extend(items)
            raise StopIteration("End of data stream reached")
        return items

    def _contexts(self, texts: List[Any]) -> List[List[int]]:
        """Texts as ids, each cut to ctx_len."""
        if not texts:
            return []
        return models.contexts_of(
            self.model, texts, self.tokenizer, self.ctx_len, self.add_special_tokens
        )

    def tokenized_batch(self, batch_size: Optional[int] = None) -> Any:
        """The next texts as a tokenizer's result: input_ids and attention_mask [texts, longest],
        padded at the tokenizer's side."""
        return self._tokenize(self.text_batch(batch_size))

    def _tokenize(self, texts: List[Any]) -> Any:
        contexts = self._contexts(texts)
        batch = models.pad(contexts)
        ids, mask = batch["input_ids"], batch["attention_mask"]
        if texts and isinstance(texts[0], str):
            tokenizer = models.tokenizer_of(self.model, self.tokenizer)
            if tokenizer.padding_side == "left":
                for i, context in enumerate(contexts):
                    ids[i], mask[i] = (x[i].roll(x.shape[1] - len(context)) for x in (ids, mask))
            ids[mask == 0] = self._pad_id(tokenizer)
        return models.later("transformers").BatchEncoding(batch).to(self.device)

    def _pad_id(self, tokenizer: Any) -> int:
        """The id of padding, if the model has it."""
        config = getattr(models.torch_module(self.model), "config", None)
        size = getattr(config, "vocab_size", None)
        for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
            if token is not None and (size is None or token < size):
                return int(token)
        return 0

    def token_batch(self, batch_size: Optional[int] = None) -> Any:
        """The next texts as ids alone: [texts, longest]."""
        return self.tokenized_batch(batch_size)["input_ids"]

    # ---- Rows

    def _rows(self, texts: List[Any]) -> tuple:
        """The rows of texts in their order, on the model's device; a tuple as of states_at."""
        contexts = self._contexts(texts)
        on_cpu = models.device_of(self.model).type == "cpu"
        size = models.CONTEXTS if on_cpu else self.refresh_batch_size
        parts: Dict[int, tuple] = {}
        for chosen, batch in models.passes(self.model, contexts, size):
            states = models.states_at(self.model, self.submodule, batch, self.io)
            for row, i in enumerate(chosen):
                parts[i] = tuple(x[row, : len(contexts[i])] for x in states)
        if not parts:
            return ()
        rows = tuple(torch.cat([parts[i][k] for i in sorted(parts)]) for k in range(len(states)))
        keep = self._kept(contexts, rows)
        return rows if keep is None else tuple(x[keep.to(x.device)] for x in rows)

    def _kept(self, contexts: List[List[int]], rows: tuple) -> Any:
        """Which rows stay, as a mask; None: all."""
        keep = None
        if self.remove_bos:
            keep = torch.tensor(_not_bos(contexts, self._bos), dtype=torch.bool)
        if self.remove_high_norm is not None:
            for x in rows:
                norms = x.float().norm(dim=-1).cpu()
                short = norms <= norms.median() * self.remove_high_norm
                keep = short if keep is None else keep & short
        return keep

    def _stored(self, rows: tuple) -> tuple:
        """Rows in the form of the store."""
        rows = (torch.stack(rows, dim=1),) if self.io == "in_and_out" else rows
        return tuple(x.to(store.device, store.dtype) for x, store in zip(rows, self._store))

    def refresh(self) -> None:
        """Keeps the unread rows and fills the store with those of new texts.

        Raises StopIteration if the texts have ended and no row is left.
        """
        self._keep_unread()
        while self._filled < self.activation_buffer_size:
            if self._ended and self._spare is None:
                break
            if self._spare is not None:
                rows, self._spare = self._spare, None
            else:
                texts = self._take(self.refresh_batch_size)
                self._ended = len(texts) < self.refresh_batch_size
                rows = self._rows(texts)
                rows = self._stored(rows) if rows else ()
            if rows:
                self._add(rows)
        self.read = torch.zeros(self._filled, dtype=torch.bool, device=self.device)
        # one permutation serves until the next refresh: no draw looks at the whole store
        self._order = torch.randperm(self._filled, generator=self._generator)
        self._next = 0
        if not self._filled:
            raise StopIteration("End of data stream reached")

    def _keep_unread(self) -> None:
        """Moves the unread rows to the front of a store that has all its room."""
        size, unread = self.activation_buffer_size, ~self.read
        for k, store in enumerate(self._store):
            rows = store[: self._filled][unread]
            if len(store) < size:
                self._store[k] = store.new_empty(size, *store.shape[1:])
            self._store[k][: len(rows)] = rows
        self._filled = int(unread.sum())

    def _add(self, rows: tuple) -> None:
        """Adds rows to the store; those that find no room wait for the next refresh."""
        room = self.activation_buffer_size - self._filled
        n = min(room, len(rows[0]))
        for store, x in zip(self._store, rows):
            store[self._filled : self._filled + n] = x[:n]
        if n < len(rows[0]):
            self._spare = tuple(x[n:].clone() for x in rows)
        self._filled += n

    # ---- Iteration

    def __iter__(self) -> "ActivationBuffer":
        return self

    def __next__(self) -> Any:
        """A batch of rows, drawn uniformly from the unread ones."""
        wanting = len(self._order) - self._next < self.activation_buffer_size // 2
        if wanting and not (self._ended and self._spare is None):
            self.refresh()
        left = len(self._order) - self._next
        if left < self.out_batch_size and self._ended:
            raise StopIteration("End of data stream reached")
        chosen = self._order[self._next : self._next + self.out_batch_size].to(self.device)
        self._next += len(chosen)
        self.read[chosen] = True
        batch = tuple(store[chosen] for store in self._store)
        return batch if self.io == "in_to_out" else batch[0]

    activations = property(lambda self: self._store[0][: self._filled])
    activations_in = property(lambda self: self._store[0][: self._filled])
    activations_out = property(lambda self: self._store[-1][: self._filled])

    @property
    def config(self) -> Dict[str, Any]:
        """The settings, for a config.json."""
        return {
            "d_submodule": self.d_submodule,
            "io": self.io,
            "n_ctxs": self.n_ctxs,
            "ctx_len": self.ctx_len,
            "refresh_batch_size": self.refresh_batch_size,
            "out_batch_size": self.out_batch_size,
            "device": str(self.device),
        }

    def source(self) -> "ActivationRows":
        """The rows in the order of the text, from the next text that this buffer has not read."""
        return ActivationRows(self)

    def close(self) -> None:
        """Closes the file, if the texts come from one."""
        if self._again and hasattr(self.data, "close"):
            self.data.close()


def _not_bos(contexts: List[List[int]], bos: Optional[int]) -> List[bool]:
    """For each token whether it stays; without a BOS token the first of each context goes."""
    if bos is None:
        return [i > 0 for context in contexts for i in range(len(context))]
    return [token != bos for context in contexts for token in context]


class NNsightActivationBuffer(ActivationBuffer):
    """An ActivationBuffer whose data are lists of token ids: batches of texts are tensors."""

    def text_batch(self, batch_size: Optional[int] = None) -> Any:
        return torch.as_tensor(super().text_batch(batch_size), device=self.device)

    def tokenized_batch(self, batch_size: Optional[int] = None) -> Any:
        return self._tokenize(super().text_batch(batch_size))


# ---- Rows in the order of the text ---------------------------------------------------------------


class ActivationRows:
    """The rows of an ActivationBuffer's texts in their order: an iterable of f32 arrays [n, d], or
    of pairs of them where io names both sides.

    Rows do not depend on any batch size: on a CPU they are the same bits in each run on the same
    machine. Rows are read once, unless the texts can be read again: then seek goes anywhere.

    Attributes:
        d: the width of a row; d_out: that of its target, 0 without.
        position: rows given so far.
    """

    def __init__(self, buffer: ActivationBuffer) -> None:
        self._buffer = buffer
        self.d = buffer._widths[0]
        self.d_out = buffer._widths[1] if buffer.io in BOTH else 0
        self.position = 0
        self._skip = 0
        self._first = buffer._taken - len(buffer._pending)

    def __iter__(self) -> "ActivationRows":
        return self

    def __next__(self) -> Any:
        while True:
            texts = self._buffer._take(UNIT)
            if not texts:
                raise StopIteration
            rows = self._read(texts)
            if rows:
                self.position += len(rows[0])
                return rows if self.d_out else rows[0]

    def _read(self, texts: List[Any]) -> tuple:
        """The rows of texts behind those that seek has skipped, f32 on the CPU."""
        buffer = self._buffer
        count = self._count(texts) if self._skip else None
        if count is not None and count <= self._skip:
            self._skip -= count
            self.position += count
            return ()
        rows = tuple(x.to("cpu", torch.float32) for x in buffer._rows(texts))
        skipped = min(self._skip, len(rows[0]) if rows else 0)
        self._skip -= skipped
        self.position += skipped
        return tuple(x[skipped:] for x in rows) if rows and skipped < len(rows[0]) else ()

    def _count(self, texts: List[Any]) -> Optional[int]:
        """How many rows texts give; None where only the model knows."""
        buffer = self._buffer
        if buffer.remove_high_norm is not None:
            return None
        contexts = buffer._contexts(texts)
        if buffer.remove_bos:
            return sum(_not_bos(contexts, buffer._bos))
        return sum(map(len, contexts))

    def seek(self, rows: int) -> None:
        """Goes to a row, counted from the first one that this object gave. Texts that are skipped
        are tokenized, but not run, unless max_activation_norm_multiple is set."""
        buffer = self._buffer
        if rows < self.position:
            if not buffer._again:
                raise Unsupported("data: an iterator gives its texts once; pass a list or a path")
            buffer._restart(self._first)
            self.position = 0
        self._skip = rows - self.position
