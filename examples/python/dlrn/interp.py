"""What a feature stands for: its effect on the next token, where it is active, a map of them all.

    feature_effect(model, submodule, ae, 17, "The river ran")     which next tokens depend on it
    examine_dimension(model, submodule, buffer, ae, dim_idx=17)   contexts and tokens that excite it
    feature_umap(ae)                                              a picture of all features

Models, submodules and tokens are taken in any form that dlrn.models knows.
"""

from __future__ import annotations

import contextlib
import html
import random
from collections import defaultdict
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple, Union

import numpy as np

from . import models
from .models import torch

__all__ = ["Context", "FeatureProfile", "TopContexts", "examine_dimension"]
__all__ += ["feature_effect", "feature_umap"]

# Rows whose features lie in memory at one time where a dictionary gives no sparse codes.
_PIECE = 256


# ---- The effect of a feature ---------------------------------------------------------------------


class _Ablation:
    """The edits of feature_effect for one batch: features of each context's last token set to 0."""

    def __init__(
        self, dictionary: Any, feature: Any, batch: Dict[str, Any], residual: bool
    ) -> None:
        self.dictionary, self.residual = dictionary, residual
        self.features = [feature] if np.ndim(feature) == 0 else list(feature)
        self.mask = batch["attention_mask"] != 0
        self.last = self.mask.sum(dim=1) - 1
        self.each = torch.arange(len(self.last), device=self.last.device)

    def reconstructed(self, x: Any) -> Any:
        """x with all of its rows reconstructed."""
        new = x.clone()
        new[self.mask] = models.apply(self.dictionary, x[self.mask]).to(x.dtype)
        return new

    def ablated(self, x: Any) -> Any:
        """x without the features at each last token."""
        new = x.clone() if self.residual or self.dictionary is None else self.reconstructed(x)
        rows = x[self.each, self.last]
        new[self.each, self.last] = self._without(rows).to(x.dtype)
        return new

    def _without(self, rows: Any) -> Any:
        """Rows [n, d] without the features; with the dictionary's error where that is kept."""
        dictionary = self.dictionary
        if dictionary is None:
            rows = rows.clone()
            rows[:, self.features] = 0
            return rows
        x_hat, f = models.apply(dictionary, rows, output_features=True)
        error = rows.to(x_hat.dtype) - x_hat
        f[:, self.features] = 0
        x_hat = models.apply(dictionary.decode, f, like=dictionary)
        return x_hat + error if self.residual else x_hat


def _log_probabilities(model: Any, submodule: Any, batch: Any, edit: Any, last: Any) -> Any:
    """log p of the token after each context, [contexts, vocabulary], with an edit or None."""
    change = models.edited(model, submodule, edit) if edit else contextlib.nullcontext()
    with models.quiet(model), change:
        logits = models.logits_of(models.run(model, batch))
    each = torch.arange(len(last), device=logits.device)
    return torch.log_softmax(logits[each, last.to(logits.device)].float(), dim=-1)


def feature_effect(
    model: Any,
    submodule: Any,
    dictionary: Any,
    feature: Union[int, Sequence[int]],
    inputs: Any,
    max_length: int = 128,
    add_residual: bool = True,
    k: int = 10,
    largest: bool = True,
    *,
    tokenizer: Any = None,
) -> Tuple[Any, Any]:
    """The next tokens that lose most when a feature is removed at the last token of each input.

    Args:
        dictionary: ours or one of torch; None: `feature` is a coordinate of the activations.
        feature: its number, or several, which are removed together.
        inputs: a text, texts, or tokens in any form, each cut to max_length tokens.
        add_residual: True keeps the dictionary's error, so that nothing but the feature changes.
            False compares reconstructions with and without it.
        k: tokens to return; largest=False: those that gain most.

    Returns:
        (tokens [k], log p(token) minus log p(token) without the feature [k]), means over inputs.
    """
    contexts = models.contexts_of(model, inputs, tokenizer, max_length)
    total, count = 0.0, 0
    for _, batch in models.passes(model, contexts):
        ablation = _Ablation(dictionary, feature, batch, add_residual)
        plain = None if add_residual or dictionary is None else ablation.reconstructed
        clean = _log_probabilities(model, submodule, batch, plain, ablation.last)
        changed = _log_probabilities(model, submodule, batch, ablation.ablated, ablation.last)
        total = total + (clean - changed).sum(dim=0)
        count += len(clean)
    if not count:
        raise models.ArgumentError("inputs: there are no tokens")
    top, tokens = torch.topk(total / count, k=k, largest=largest)
    return tokens, top


# ---- Where a feature is active -------------------------------------------------------------------


class Context(NamedTuple):
    """A text up to the token where the feature is active: its tokens and its activation there."""

    tokens: List[str]
    activations: List[float]


class TopContexts(List[Context]):
    """Contexts, the most active first. Notebooks show them with colours; print, as lines."""

    def __str__(self) -> str:
        lines = (f"{c.activations[-1]:10.4f}  {''.join(c.tokens)!r}" for c in self)
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """By circuitsvis, if it is installed."""
        with contextlib.suppress(ImportError):
            from circuitsvis.activations import text_neuron_activations

            values = [torch.tensor(c.activations)[:, None, None] for c in self]
            return str(text_neuron_activations([c.tokens for c in self], values))
        return "".join(f"<p>{_coloured(context)}</p>" for context in self)


def _coloured(context: Context) -> str:
    top = max(map(abs, context.activations)) or 1.0
    spans = []
    for token, value in zip(context.tokens, context.activations):
        style = f"background: rgba(255, 140, 0, {abs(value) / top:.2f})"
        spans.append(f'<span style="{style}" title="{value:.4f}">{html.escape(token)}</span>')
    return "".join(spans)


class FeatureProfile(NamedTuple):
    """What examine_dimension returns."""

    top_contexts: TopContexts
    top_tokens: List[Tuple[str, float]]
    top_affected: List[Tuple[str, float]]


def _one_feature(dictionary: Any, rows: Any, feature: int) -> Any:
    """One feature on rows [n, d], as [n]. No more than a piece's features are in memory."""
    if dictionary is None:
        return rows[:, feature].float()
    if hasattr(dictionary, "formula"):
        with contextlib.suppress(ModuleNotFoundError):
            codes = dictionary.encode(rows.to("cpu", torch.float32), sparse=True)
            return torch.from_numpy(codes[:, [feature]].toarray()[:, 0])
    pieces = (
        models.apply(dictionary.encode, rows[at : at + _PIECE], like=dictionary)[:, feature]
        for at in range(0, len(rows), _PIECE)
    )
    return torch.cat([piece.float() for piece in pieces])


def _activations(
    model: Any, submodule: Any, dictionary: Any, contexts: List[List[int]], feature: int
) -> List[List[float]]:
    """The feature at each token of each context."""
    found: List[List[float]] = [[] for _ in contexts]
    for chosen, batch in models.passes(model, contexts):
        (states,) = models.states_at(model, submodule, batch)
        mask = batch["attention_mask"].to(states.device) != 0
        values = _one_feature(dictionary, states[mask], feature).tolist()
        at = 0
        for i in chosen:
            found[i] = values[at : at + len(contexts[i])]
            at += len(contexts[i])
    return found


def _top_tokens(contexts: List[List[int]], values: List[List[float]], k: int) -> list:
    """[(token, mean activation)] of the k tokens with the highest means."""
    sums: Dict[int, List[float]] = defaultdict(lambda: [0.0, 0.0])
    for ids, row in zip(contexts, values):
        for token, value in zip(ids, row):
            sums[token][0] += value
            sums[token][1] += 1.0
    means = [(token, total / count) for token, (total, count) in sums.items()]
    return sorted(means, key=lambda pair: -pair[1])[:k]


def examine_dimension(
    model: Any,
    submodule: Any,
    buffer: Any,
    dictionary: Any = None,
    max_length: int = 128,
    n_inputs: int = 512,
    dim_idx: Optional[int] = None,
    k: int = 30,
    *,
    tokenizer: Any = None,
) -> FeatureProfile:
    """The contexts and tokens on which a feature is most active, and the tokens that it affects.

    Args:
        buffer: an ActivationBuffer, whose next n_inputs texts are read.
        dictionary: None: dim_idx is a coordinate of the activations.
        dim_idx: the feature; None: a random one.
        k: contexts and tokens of each list.

    Padding counts nowhere. top_contexts: the k most active tokens, each with the tokens before it;
    top_tokens: by mean activation; top_affected: feature_effect on those contexts.
    """
    if tokenizer is None:
        tokenizer = getattr(buffer, "tokenizer", None)
    words = models.tokenizer_of(model, tokenizer)
    contexts = models.contexts_of(model, buffer.tokenized_batch(batch_size=n_inputs))
    contexts = [context[:max_length] for context in contexts if context]
    if dim_idx is None:
        dim_idx = random.randrange(_dimensions(model, submodule, dictionary))
    values = _activations(model, submodule, dictionary, contexts, dim_idx)

    places = [(i, j) for i, row in enumerate(values) for j in range(len(row))]
    places.sort(key=lambda place: -values[place[0]][place[1]])
    chosen = [(contexts[i][: j + 1], values[i][: j + 1]) for i, j in places[:k]]
    top_contexts = TopContexts(Context([words.decode([t]) for t in ids], a) for ids, a in chosen)
    top_tokens = [(words.decode([t]), mean) for t, mean in _top_tokens(contexts, values, k)]
    inputs = [ids for ids, _ in chosen]
    affected = feature_effect(model, submodule, dictionary, dim_idx, inputs, max_length, k=k)
    top_affected = [(words.decode([t]), d) for t, d in zip(*(x.tolist() for x in affected))]
    return FeatureProfile(top_contexts, top_tokens, top_affected)


def _dimensions(model: Any, submodule: Any, dictionary: Any) -> int:
    """How many features, or coordinates, there are to choose from."""
    if dictionary is not None:
        return int(dictionary.dict_size)
    return models.width_at(model, submodule)[0]


# ---- A map of all features -----------------------------------------------------------------------


def feature_umap(
    dictionary: Any,
    weight: str = "decoder",
    n_neighbors: int = 15,
    metric: str = "cosine",
    min_dist: float = 0.05,
    n_components: int = 2,
    feat_idxs: Union[None, int, Sequence[int]] = None,
) -> Any:
    """A plotly figure with a point for each feature, similar ones close to each other.

    Args:
        weight: which vectors are compared, "decoder" or "encoder".
        n_neighbors, metric, min_dist, n_components: of UMAP; n_components is 2 or 3.
        feat_idxs: features drawn in red, the others in blue.

    Needs umap-learn and plotly.
    """
    if n_components not in (2, 3):
        raise models.ArgumentError(f"n_components: expected 2 or 3, found {n_components}")
    if weight not in ("decoder", "encoder"):
        raise models.ArgumentError(f"weight: expected 'decoder' or 'encoder', found {weight!r}")
    packages = "umap-learn plotly"
    umap = models.later("umap", packages, "maps of features")
    express = models.later("plotly.express", packages, "maps of features")
    reducer = umap.UMAP(
        n_neighbors=n_neighbors, metric=metric, min_dist=min_dist, n_components=n_components
    )
    points = reducer.fit_transform(_vectors(dictionary, weight))
    axes = {name: points[:, i] for i, name in zip(range(n_components), "xyz")}
    colours = None
    if feat_idxs is not None:
        chosen = set(np.atleast_1d(feat_idxs).tolist())
        colours = ["red" if i in chosen else "blue" for i in range(len(points))]
    draw = express.scatter if n_components == 2 else express.scatter_3d
    return draw(**axes, hover_name=list(range(len(points))), color=colours)


def _vectors(dictionary: Any, weight: str) -> np.ndarray:
    """One vector for each feature, [F, d]."""
    matrix = getattr(dictionary, weight).weight
    if hasattr(matrix, "detach"):
        matrix = matrix.detach().cpu().float().numpy()
    return np.asarray(matrix) if weight == "encoder" else np.asarray(matrix).T
