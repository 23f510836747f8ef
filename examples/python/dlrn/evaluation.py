"""Evaluation: the library's own figures, and `evaluate` as dictionary_learning has it.

    metrics = evaluate(ae, x)                 # x: an array, a path, a source: Metrics, all that the library measures
    figures = evaluate(ae, buffer)            # an iterator or an ActivationBuffer: the dict of dictionary_learning
"""
from __future__ import annotations

from collections import defaultdict
from typing import Any, Callable, Dict, Optional, Tuple, Union

import numpy as np

from ._core import ArgumentError, array_from, ffi, lib, name_of, pointer_to
from ._records import fill, record, words_of
from .dictionary import Dictionary
from .models import later, loss_recovered
from .sources import flat, is_array, is_data_set, iterator_of, rows_of, source_of, split_item

__all__ = ["Evaluator", "LayerMetrics", "Metrics", "WeightFigures", "evaluate", "loss_recovered", "weight_figures"]

_Saelens: Any = record("SaelensMetrics", "dlrn_saelens_metrics")
_Saebench: Any = record("SaebenchMetrics", "dlrn_saebench_metrics")
_Layer: Any = record("LayerMetrics", "dlrn_layer_metrics")


class SaelensMetrics(_Saelens):
    """Figures under the names of SAELens."""


class SaebenchMetrics(_Saebench):
    """Figures under the names of SAEBench."""


class LayerMetrics(_Layer):
    """Figures of one layer of rows that hold several."""


_All: Any = record("Metrics", "dlrn_metrics", saelens=SaelensMetrics, saebench=SaebenchMetrics, fired=Any, layer=list)


class Metrics(_All):
    """Figures of an evaluation: means over `rows` rows; NaN: not measured.

    fired: [F] rows on which each feature fired, an array. layer: a list of LayerMetrics, empty for plain rows. saelens
    and saebench: the same rows in the terms of these libraries.
    """


class Evaluator:
    """Measures a dictionary on rows as they come: add() any number of times, then finish().

    Args:
        batch_size: rows at a time; it never changes the result, unless the dictionary's selection compares rows.
        sparsity: what sparsity_loss measures, "l1" or "entropy".
        compat: formulas of March 2024.
        saelens_batch: rows in a batch of SAELens, for its two figures that are averages over batches.
    """

    def __init__(self, dictionary: Dictionary, *, batch_size: int = 256, sparsity: str = "l1", compat: bool = False,
                 saelens_batch: int = 0):
        self.dictionary, self.context = dictionary, dictionary.context
        cfg = ffi.new("dlrn_eval_config *", lib.dlrn_eval_defaults())
        words = words_of(ffi.typeof("dlrn_sparsity"))
        if sparsity not in words:
            raise ArgumentError(f"sparsity: expected one of {', '.join(words)}; found {sparsity!r}")
        cfg.batch_size, cfg.saelens_batch = batch_size, saelens_batch
        cfg.sparsity, cfg.compat = words[sparsity], int(compat)
        out = ffi.new("dlrn_evaluator **")
        self.context.call(lib.dlrn_evaluator_create, dictionary.pointer, cfg, out)
        kept = (dictionary.pointer, dictionary._owner)    # also after dictionary.close()
        self._evaluator = self.context.own(out[0], lib.dlrn_evaluator_destroy, kept)

    def _open(self):
        if self._evaluator is None:
            raise ArgumentError("this evaluator is closed")
        return self._evaluator

    def add(self, x: Any, y: Any = None) -> int:
        """Adds rows x [.., d] and their targets y [.., d_out], x itself if None. Returns their number."""
        rows = rows_of(x, self.dictionary.activation_dim, "x")
        targets = None if y is None else rows_of(y, self.dictionary.d_out, "y")
        if targets is not None and targets.n != rows.n:
            raise ArgumentError(f"add: {rows.n} rows x, and {targets.n} rows y")
        self.context.call(lib.dlrn_evaluator_add, self._open(), rows.pointer,
                          ffi.NULL if targets is None else targets.pointer, rows.n)
        return rows.n

    def finish(self) -> Metrics:
        """The figures of all rows so far; more may follow."""
        out = ffi.new("dlrn_metrics *")
        self.context.call(lib.dlrn_evaluator_finish, self._open(), out)
        found = fill(Metrics, out[0])
        found.fired = array_from(out.fired, (self.dictionary.dict_size,), self._evaluator, "int64_t").copy()
        found.layer = [fill(LayerMetrics, out.layer[i]) for i in range(out.layers)] if out.layer != ffi.NULL else []
        return found

    def histogram(self, bins: int = 100) -> Tuple[np.ndarray, np.ndarray]:
        """How often features fire: (counts [bins], edges [bins + 1]) in logarithmic bins from 1e-5 to 1. Features that
        never fire are in no bin."""
        counts, edges = ffi.new("int64_t[]", bins), ffi.new("double[]", bins + 1)
        self.context.call(lib.dlrn_evaluator_histogram, self._open(), bins, edges, counts)
        return np.array(list(counts), np.int64), np.array(list(edges))

    def close(self) -> None:
        """Frees the evaluator."""
        self._evaluator = None

    def __enter__(self) -> "Evaluator":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


class WeightFigures(dict):
    """Means over the features, by SAEBench's names; `each` has the figure of every feature, [F], by the same names."""

    each: Dict[str, np.ndarray]


def weight_figures(dictionary: Dictionary) -> WeightFigures:
    """Figures of the weights under SAEBench's names: encoder_norm, decoder_norm, encoder_decoder_cosine_sim,
    max_encoder_cosine_sim, max_decoder_cosine_sim. Takes F^2 (d_in + d_out) multiplications."""
    n, features = lib.DLRN_WEIGHT_COUNT, dictionary.dict_size
    mean, each = ffi.new("double[]", n), np.empty((n, features), np.float32)
    dictionary.context.call(lib.dlrn_weight_figures, dictionary.pointer, mean, pointer_to(each))
    names = [name_of(lib.DLRN_NAMES_WEIGHT, i) for i in range(n)]
    found = WeightFigures(zip(names, mean))
    found.each = dict(zip(names, each))
    return found


def measure(dictionary: Dictionary, x: Any, y: Any = None, *, rows: int = -1, batch_size: int = 256,
            progress: Optional[Callable[[int], Any]] = None, **how: Any) -> Metrics:
    """The library's figures of a dictionary on rows: of an array x (and targets y), a path, a source or any iterable of
    arrays. rows: at most so many, -1: all. progress(rows so far) is called now and then. how: see Evaluator."""
    with Evaluator(dictionary, batch_size=batch_size, **how) as evaluator:
        seen = 0
        for part in _parts(dictionary, (x, y) if y is not None else x):
            for first in range(0, _count(part[0]), _PIECE):
                end = first + _PIECE if rows < 0 else min(first + _PIECE, first + rows - seen)
                if end <= first:
                    return evaluator.finish()
                seen += evaluator.add(*(None if a is None else a[first:end] for a in part))
                if progress is not None:
                    progress(seen)
        return evaluator.finish()


_PIECE = 2048    # rows of one call: in between Python sees Ctrl-C


def _count(x: Any) -> int:
    return int(x.shape[0])


def _parts(dictionary: Dictionary, data: Any) -> Any:
    """Data as pairs (x [n, d_in], y [n, d_out] or None)."""
    d, d_out = dictionary.activation_dim, dictionary.d_out
    if is_array(data) or (isinstance(data, tuple) and len(data) == 2 and is_array(data[0])):
        x, y = split_item(data)
        yield flat(x, d, "rows"), None if y is None else flat(y, d_out, "targets")
    elif is_data_set(data):
        yield from source_of(data, d, context=dictionary.context).batches(_PIECE)
    else:
        for item in iterator_of(data):
            x, y = split_item(item)
            yield flat(x, d, "rows"), None if y is None else flat(y, d_out, "targets")


# ---- as dictionary_learning has it

def _has_text(activations: Any) -> bool:
    """Whether activations come from a model whose loss can be measured."""
    return all(hasattr(activations, name) for name in ("text_batch", "model", "submodule"))


def _normalised(x: Any, d: int) -> np.ndarray:
    """Rows of mean norm sqrt(d)."""
    rows = rows_of(x, d, "x").array
    return rows * np.float32(d ** 0.5 / np.linalg.norm(rows, axis=-1).mean())


def _evaluate_batches(dictionary: Dictionary, activations: Any, max_len: Optional[int] = 128, batch_size: int = 128,
                      io: str = "out", normalize_batch: bool = False, tracer_args: Any = None, device: Any = "cpu",
                      n_batches: int = 1) -> Dict[str, float]:
    """evaluate of today: the figures of each batch, averaged over batches."""
    if n_batches < 1:
        raise ArgumentError(f"n_batches: expected at least 1, found {n_batches}")
    out: Dict[str, float] = defaultdict(float)
    fired = np.zeros(dictionary.dict_size, np.int64)
    items = iterator_of(activations)
    for _ in range(n_batches):
        try:
            x, y = split_item(next(items))
        except StopIteration:
            raise StopIteration("evaluate: the activations end before n_batches; pass more of them, or fewer batches"
                                ) from None
        if normalize_batch:
            x = _normalised(x, dictionary.activation_dim)
        with Evaluator(dictionary) as evaluator:
            evaluator.add(x, y)
            found = evaluator.finish()
        fired += found.fired
        for key, value in (("l2_loss", found.l2_loss), ("l1_loss", found.saelens.l1), ("l0", found.l0),
                           ("frac_variance_explained", found.variance_explained), ("cossim", found.cosine),
                           ("l2_ratio", found.l2_ratio),
                           ("relative_reconstruction_bias", found.relative_reconstruction_bias)):
            out[key] += value / n_batches
        if not _has_text(activations):
            continue
        try:
            texts = activations.text_batch(batch_size=batch_size)
        except StopIteration:
            raise StopIteration(f"evaluate: the loss needs {batch_size} more texts, and the buffer has fewer left; "
                                "pass more of them, or a smaller batch_size") from None
        losses = loss_recovered(texts, activations.model, activations.submodule, dictionary, max_len=max_len,
                                normalize_batch=normalize_batch, io=io, tracer_args=tracer_args,
                                tokenizer=getattr(activations, "tokenizer", None))
        original, reconstructed, zero = (float(loss) for loss in losses)
        for key, value in (("loss_original", original), ("loss_reconstructed", reconstructed), ("loss_zero", zero),
                           ("frac_recovered", (reconstructed - zero) / (original - zero))):
            out[key] += value / n_batches
    out["frac_alive"] = float((fired > 0).mean())
    return dict(out)


def _evaluate_model(model: Any, submodule: Any, dictionary: Dictionary, activations: Any,
                    max_len: Optional[int] = None, batch_size: Optional[int] = None, entropy: bool = False,
                    hist_save_path: Any = None, hist_title: Optional[str] = None, io: str = "out",
                    device: Any = "cpu", *, compat: bool = False) -> Dict[str, float]:
    """evaluate of March 2024: one batch, and the loss on one batch of text."""
    x, y = split_item(next(iterator_of(activations)))
    with Evaluator(dictionary, sparsity="entropy" if entropy else "l1", compat=compat) as evaluator:
        evaluator.add(x, y)
        found = evaluator.finish()
        if hist_save_path is not None:
            _draw_histogram(evaluator, hist_save_path, hist_title)
    out = {"mse_loss": found.mse_loss, "sparsity_loss": found.sparsity_loss,
           "variance_explained": found.variance_explained, "l0": found.l0, "percent_alive": found.share_alive}
    words = {} if batch_size is None else {"batch_size": batch_size}
    losses = loss_recovered(activations.text_batch(**words), model, submodule, dictionary, max_len=max_len, io=io,
                            tokenizer=getattr(activations, "tokenizer", None))
    original, reconstructed, zero = (float(loss) for loss in losses)
    out.update(loss_original=original, loss_reconstructed=reconstructed, loss_zero=zero,
               percent_recovered=(reconstructed - zero) / (original - zero))
    return out


def _draw_histogram(evaluator: Evaluator, path: Any, title: Optional[str]) -> None:
    """Writes a picture of how often features fire."""
    Figure = later("matplotlib.figure", "matplotlib", "pictures of histograms").Figure
    counts, edges = evaluator.histogram(99)
    figure = Figure()
    axes = figure.add_subplot()
    axes.stairs(counts, edges, fill=True)
    axes.set_xscale("log")
    axes.set_title(title or "")
    figure.savefig(path)


def evaluate(*arguments: Any, **settings: Any) -> Union[Metrics, Dict[str, float]]:
    """Measures a dictionary; which figures depends on what holds the rows.

    evaluate(dictionary, x, y=None, rows=-1, batch_size=256, sparsity="l1", compat=False, saelens_batch=0,
    progress=None): x is an array, a path, a list of paths or a source: all rows, all figures of the library, as
    Metrics.

    evaluate(dictionary, activations, max_len=128, batch_size=128, io="out", normalize_batch=False, tracer_args=...,
    device="cpu", n_batches=1), as dictionary_learning has it today: activations is an iterator of batches. A dict with
    l2_loss, l1_loss, l0, frac_variance_explained, cossim, l2_ratio, relative_reconstruction_bias, frac_alive; with an
    ActivationBuffer also loss_original, loss_reconstructed, loss_zero and frac_recovered, on its texts.

    evaluate(model, submodule, dictionary, activations, max_len=None, batch_size=None, entropy=False, ...), that of
    March 2024: mse_loss, sparsity_loss, variance_explained, l0, percent_alive, loss_... and percent_recovered.
    compat=True gives its mse_loss, the square of the mean norm.
    """
    if "submodule" in settings or (arguments and not isinstance(arguments[0], Dictionary)):
        if "submodule" not in settings and len(arguments) < 3:
            raise TypeError(f"evaluate: expected a dictionary of dlrn, found {type(arguments[0]).__name__}")
        return _evaluate_model(*arguments, **settings)
    if len(arguments) < 2 and not (settings.keys() & {"activations", "x"}):
        raise TypeError("evaluate: the rows are missing: evaluate(dictionary, x)")
    data = arguments[1] if len(arguments) > 1 else settings.get("activations", settings.get("x"))
    if is_data_set(data) or ("activations" not in settings and isinstance(data, list)):
        return measure(*arguments, **settings)
    return _evaluate_batches(*arguments, **settings)
