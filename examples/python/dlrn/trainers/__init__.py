"""The trainers of dictionary_learning by their names: each is a Trainer of the recipe that makes the same steps, with
the same defaults. They are what a config of trainSAE has as "trainer"; modules of the same names as there export them
with the dictionaries that they train."""
from __future__ import annotations

from typing import Any

from ..training import CLASSES, Trainer


class SAETrainer(Trainer):
    """A trainer of dictionary_learning. Settings go by name or in the order of its signature; layer, lm_name,
    submodule_name, device and wandb_name are labels for config.json."""

    def __init__(self, *arguments: Any, **settings: Any):
        known = next((kind.__name__ for kind in type(self).__mro__ if kind.__name__ in CLASSES), None)
        if known is None:
            raise TypeError(f"{type(self).__name__}: use one of {', '.join(CLASSES)}, or Trainer with a recipe")
        positional = CLASSES[known].positional
        if len(arguments) > len(positional):
            raise TypeError(f"{type(self).__name__}: at most {len(positional)} arguments have a place")
        for name, value in zip(positional, arguments):
            if name in settings:
                raise TypeError(f"{type(self).__name__}: {name} is given twice")
            settings[name] = value
        super().__init__(known, **settings)


class StandardTrainer(SAETrainer):
    """L1 penalty, atoms of unit norm (recipe dl-standard)."""


class StandardTrainerAprilUpdate(SAETrainer):
    """L1 weighted by the norms of atoms, which are free (recipe dl-april)."""


class GatedSAETrainer(SAETrainer):
    """Gated SAE (recipe dl-gated)."""


class TopKTrainer(SAETrainer):
    """The k largest features of a row (recipe dl-top_k)."""


class BatchTopKTrainer(SAETrainer):
    """The k n largest features of a batch of n rows (recipe dl-batch_top_k)."""


class MatryoshkaBatchTopKTrainer(SAETrainer):
    """BatchTopK with nested groups of features (recipe dl-matryoshka)."""


class JumpReluTrainer(SAETrainer):
    """Learnt thresholds, a penalty on L0 (recipe dl-jump_relu)."""


class PAnnealTrainer(SAETrainer):
    """A penalty by the power p of features, p falling (recipe dl-p_anneal)."""


class GatedAnnealTrainer(SAETrainer):
    """The gated SAE with a falling p (recipe dl-gated_anneal)."""


__all__ = ["SAETrainer", *CLASSES]
