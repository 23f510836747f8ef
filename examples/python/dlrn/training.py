"""Training: `Trainer`, one step at a time or a whole run, and `trainSAE` as dictionary_learning has it.

    trainer = Trainer("dl-batch_top_k", data=x, k=32, dict_size=4096, steps=10_000, batch_size=2048)
    for stats in trainer:
        print(stats.step, stats.loss, stats.l0)
    ae = trainer.finish()

How rows reach a step. Arrays, files and sources (`sources.source_of`) go through the library's buffer: shuffled, in
batches of `batch_size`. An iterable hands out batches: each item is one step, as given. `shuffle=True` sends its rows
through the buffer, too; `shuffle=False` takes those of arrays and files in their order. `step(x)` takes rows of your
own loop.

A trainer has a context of its own unless it is given one, so that trainers in several threads run at the same time, and
that a source may use other objects of this package.
"""
from __future__ import annotations

import json
import os
import tempfile
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple, Union, overload

import numpy as np

from ._core import ArgumentError, Context, OutOfMemory, array_from, ffi, lib, text
from ._parameters import Written
from ._records import fill, record
from ._settings import ALIASES, RECIPES, change_config, is_setting, make_config, read_buffer, read_config, resolve
from .dictionary import Dictionary, dictionary_of
from .models import later
from .sources import Source, is_data_set, iterator_of, rows_of, source_of, split_item, width_of

__all__ = ["Trainer", "TrainStats", "trainSAE"]

_Stats: Any = record("TrainStats", "dlrn_train_stats", mse_loss=property(lambda stats: stats.reconstruction_loss))


class TrainStats(_Stats):
    """The figures of one step; losses are those of its forward pass, before the update.

    step: its number, from 0; rows; loss: the sum of the five below, with their weights; reconstruction_loss,
    sparsity_loss, auxiliary_loss, pre_act_loss, multi_top_k_loss; k; l0: mean number of active features; lr; penalty:
    weight of sparsity_loss; dead; resampled. mse_loss: reconstruction_loss, as the program's log calls it.
    """


#: What a trainer is told about the model; config.json has it, and no step depends on it.
LABELS = ("layer", "lm_name", "submodule_name", "device", "wandb_name", "dict_class")


# ---- the trainers of dictionary_learning, as data

class _Class:
    """A trainer of dictionary_learning: its recipe, its defaults where they are not the recipe's, and the keys of its
    config beyond those that all have."""

    def __init__(self, recipe: str, dict_class: str, keys: str, positional: str = "", **defaults: Any):
        self.recipe, self.dict_class, self.defaults = recipe, dict_class, defaults
        self.keys = keys.split()
        self.positional = ["steps", "activation_dim", "dict_size", *positional.split(), "layer", "lm_name"]

    def complete(self, name: str, settings: Dict[str, Any]) -> Dict[str, Any]:
        """The settings with the defaults of the class."""
        if name == "PAnnealTrainer" and settings.get("p_end") and not settings.get("sparsity"):
            # With its default p_end 0 the root 1/p has no end; at p 1, where it starts, the two are the same.
            settings = {"sparsity_function": "Lp", **settings}
        return {**self.defaults, **settings}


_TOP_K = "auxk_alpha warmup_steps decay_start threshold_beta threshold_start_step top_k_aux k"
_PENALTY = "l1_penalty warmup_steps sparsity_warmup_steps decay_start"
_ANNEAL = ("sparsity_function sparsity_penalty p_start p_end anneal_start sparsity_queue_length n_sparsity_updates "
           "warmup_steps sparsity_warmup_steps decay_start resample_steps")
CLASSES = {
    "StandardTrainer": _Class("dl-standard", "AutoEncoder", _PENALTY + " resample_steps"),
    "StandardTrainerAprilUpdate": _Class("dl-april", "AutoEncoder", _PENALTY),
    "GatedSAETrainer": _Class("dl-gated", "GatedAutoEncoder", _PENALTY),
    "TopKTrainer": _Class("dl-top_k", "AutoEncoderTopK", _TOP_K, "k", lr=None),
    "BatchTopKTrainer": _Class("dl-batch_top_k", "BatchTopKSAE", _TOP_K, "k", lr=None),
    "MatryoshkaBatchTopKTrainer": _Class("dl-matryoshka", "MatryoshkaBatchTopKSAE",
                                         _TOP_K + " group_fractions group_weights group_sizes", "k", lr=None),
    "JumpReluTrainer": _Class("dl-jump_relu", "JumpReluAutoEncoder",
                              "bandwidth sparsity_penalty warmup_steps sparsity_warmup_steps decay_start target_l0"),
    "PAnnealTrainer": _Class("dl-p_anneal", "AutoEncoder", _ANNEAL, seed=42, p_end=0),
    "GatedAnnealTrainer": _Class("dl-gated_anneal", "GatedAutoEncoder", _ANNEAL, seed=42, lr=3e-4, p_end=0,
                                 sparsity_function="Lp^p"),
}
_QUEUE = 10    # sparsity_queue_length: the only one that the library knows


def _labels_of(settings: Dict[str, Any]) -> Tuple[Dict[str, Any], Dict[str, Any]]:
    """(labels, the other settings)"""
    labels = {name: settings[name] for name in LABELS if name in settings}
    rest = {name: value for name, value in settings.items() if name not in LABELS}
    if rest.pop("sparsity_queue_length", _QUEUE) != _QUEUE:
        raise ArgumentError(f"sparsity_queue_length: only {_QUEUE} is supported")
    return labels, rest


def _check_dict_class(recipe: str, wanted: Any) -> None:
    """A recipe trains one class of dictionaries; another one that is asked for is an error."""
    name = wanted if isinstance(wanted, str) else getattr(wanted, "__name__", None)
    family = RECIPES[recipe]["family"]
    if wanted is not None and name not in (family, "Dictionary"):
        raise ArgumentError(f"dict_class: recipe '{recipe}' trains {family}, not {name}")


# ---- the data of a trainer

class _Data:
    """Where a trainer's rows come from: a source behind a buffer of C, or an iterator whose items are batches."""

    def __init__(self, context: Context, d: Optional[int], d_out: int):
        self.context, self.d, self.d_out = context, d, d_out
        self.source: Optional[Source] = None
        self.buffer: Any = None
        self.items: Any = None
        self.endless = False
        self._first: Any = None    # an item that was taken to see its width

    def open(self, cfg) -> None:
        """Makes the buffer, as cfg.buffer says."""
        if self.source is None:
            return
        if self.endless and self.source.rows:    # more than all rows would hold copies of them
            cfg.buffer.capacity = min(cfg.buffer.capacity, max(self.source.rows, cfg.buffer.batch_rows))
        out = ffi.new("dlrn_buffer **")
        self.context.call(lib.dlrn_buffer_create, self.context.pointer, ffi.addressof(cfg[0], "buffer"),
                          self.source.read_by(self.context).pointer, lib.DLRN_BORROWED, out)
        self.buffer = self.context.own(out[0], lib.dlrn_buffer_destroy, self.source)

    def next(self) -> Any:
        """The next item of the iterator as (x, y); None at the end."""
        item, self._first = self._first, None
        if item is None:
            item = next(self.items, None)
        return None if item is None else split_item(item)

    def next_batch(self) -> Any:
        """The next batch as (x, y), y None without a target; None at the end. What a buffer gives is a view, valid
        until the next call."""
        if self.buffer is None:
            return self.next()
        assert self.d is not None    # a buffer's source knows it
        x, y, n = ffi.new("const float **"), ffi.new("const float **"), ffi.new("int64_t *")
        if self.context.call(lib.dlrn_buffer_next, self.buffer, x, y, n) == lib.DLRN_END:
            return None
        rows = array_from(x[0], (int(n[0]), self.d), self.buffer)
        return rows, array_from(y[0], (int(n[0]), self.d_out), self.buffer) if self.d_out else None


def _open(data: Any, given: Dict[str, Any], context: Context, epochs: int) -> Optional[_Data]:
    """The data of a trainer with these settings; None without."""
    if data is None:
        return None
    layers = int(given.get("layers") or 1)
    if is_data_set(data) or given.get("shuffle"):
        source = source_of(data, given.get("d_in"), given.get("d_out") or None, epochs=epochs, layers=layers,
                           context=context)
        made = _Data(context, source.d, source.d_out)
        made.source, made.endless = source, epochs == 0 and "capacity" not in given
        return made
    made = _Data(context, given.get("d_in"), int(given.get("d_out") or 0))
    made.items = iterator_of(data)
    made._first = next(made.items, None)
    if made._first is None and made.d is None:
        raise ArgumentError("the data have no rows, so that their width is not known: state activation_dim")
    if made._first is not None:
        x, y = split_item(made._first)
        made.d = made.d or width_of(x, layers)
        made.d_out = made.d_out or (0 if y is None else width_of(y, layers))
    return made


# ---- one trainer

class Trainer:
    """Trains one dictionary.

    Args:
        recipe: a name of `dlrn.recipes()`, or a trainer of dictionary_learning ("BatchTopKTrainer"), whose defaults
            then hold.
        data: where step() without rows takes them from; see the head of this module.
        init: a Dictionary to start from, copied; None: random weights by `seed`.
        shuffle: whether rows go through the buffer in random order; None: those of arrays and files do.
        epochs: passes over arrays and files; 0: without end.
        context: where to compute; None: one of its own.
        settings: fields of `dlrn_train_config` by their names (d_in, features, k, lr, ...) or by those of
            dictionary_learning (activation_dim, dict_size, l1_penalty, ...), and of its buffer (batch_size, capacity,
            read_rows, store, buffer_seed). A name that the recipe does not use is a TypeError that lists those that
            it does. layer, lm_name, submodule_name, device and wandb_name are labels for config.json.

    Use it as a context manager, or close() it; a dictionary of it that is still in use stays valid.
    """

    def __init__(self, recipe: str = "dl-batch_top_k", data: Any = None, *, init: Optional[Dictionary] = None,
                 shuffle: Optional[bool] = None, epochs: int = 1, context: Optional[Context] = None, **settings: Any):
        self._reference = CLASSES.get(recipe)
        self.trainer_class = recipe if self._reference else None
        if self._reference:
            settings = self._reference.complete(recipe, settings)
            recipe = self._reference.recipe
        self.labels, settings = _labels_of(settings)
        given = resolve(recipe, settings)
        _check_dict_class(recipe, self.labels.get("dict_class"))
        self.context = context or Context()
        if init is not None:
            given.setdefault("features", init.dict_size)
        if shuffle is not None:
            given["shuffle"] = shuffle
        self._data = _open(data, given, self.context, epochs)
        width = self._data.d if self._data else None if init is None else init.activation_dim
        cfg, keep = make_config(recipe, given, width, self._data.d_out if self._data else 0)
        self._begin(cfg, keep, init)

    def _begin(self, cfg, keep, init: Optional[Dictionary]) -> None:
        """Makes the trainer of C."""
        if self._data:
            self._data.open(cfg)
        out = ffi.new("dlrn_trainer **")
        self.context.call(lib.dlrn_trainer_create, self.context.pointer, cfg,
                          ffi.NULL if init is None else init.pointer, self._buffer, out)
        self._own(out[0])
        del keep

    @property
    def _buffer(self):
        return self._data.buffer if self._data and self._data.buffer is not None else ffi.NULL

    def _own(self, trainer) -> None:
        self._trainer = self.context.own(trainer, lib.dlrn_trainer_destroy, self._data)
        self._written = Written(self._describe().dictionary)
        self._stats = ffi.new("dlrn_train_stats *")
        self._held: Any = None    # rows of a step that was interrupted

    def _describe(self):
        if self._trainer is None:
            raise ArgumentError("this trainer is closed")
        return lib.dlrn_trainer_describe(self._trainer)

    # ---- steps

    def step(self, x: Any = None, y: Any = None) -> Optional[TrainStats]:
        """One step.

        Args:
            x: rows [..., d_in], or a pair (x, y); None: the next batch of the trainer's data.
            y: their targets [..., d_out]; None: x itself.

        Returns:
            Its figures; None when no batch is left, or `steps` are done. `steps` does not end a loop that passes rows.
            After Ctrl-C inside a step the next call goes on with it.
        """
        info = self._describe()
        if x is None and self._held is None:
            if not self._data:
                raise TypeError("step() needs rows: this trainer was made without data")
            if 0 <= info.config.steps <= info.steps:
                return None
            if self._data.buffer is not None:
                status = self.context.call(lib.dlrn_trainer_step, self._trainer, self._stats)
                return None if status == lib.DLRN_END else fill(TrainStats, self._stats)
            item = self._data.next()
            if item is None:
                return None
            x, y = item
        if x is None:
            rows, targets = self._held
        else:
            x, y = (x if isinstance(x, tuple) else (x, y))
            rows = rows_of(x, int(info.config.d_in), "x")
            targets = None if y is None else rows_of(y, int(info.config.d_out), "y")
        if targets is not None and targets.n != rows.n:
            raise ArgumentError(f"step: {rows.n} rows x, and {targets.n} rows y")
        return self._step_on(rows, targets)

    def _step_on(self, rows, targets) -> TrainStats:
        self._held = None
        try:
            self.context.call(lib.dlrn_trainer_step_on, self._trainer, rows.pointer,
                              ffi.NULL if targets is None else targets.pointer, rows.n, self._stats)
        except (KeyboardInterrupt, OutOfMemory):
            self._held = rows, targets    # the library wants the same rows again
            raise
        return fill(TrainStats, self._stats)

    def __iter__(self) -> Iterator[TrainStats]:
        """Steps on the trainer's data until their end, or until `steps`."""
        while True:
            stats = self.step()
            if stats is None:
                return
            yield stats

    def train(self, steps: Optional[int] = None, *, verbose: bool = True, wandb: Any = None,
              on_step: Optional[Callable[["Trainer", TrainStats], Any]] = None) -> Dictionary:
        """Steps on the trainer's data until their end, or until the settings' `steps`; returns finish().

        Args:
            steps: so many more at most.
            verbose: shows a bar of tqdm, if that is installed.
            wandb: a run of wandb, or True for a new one; figures are logged every log_steps.
            on_step: called after each step with the trainer and its figures.
        """
        run = _wandb_run(self.config, {}) if wandb is True else wandb
        every = max(int(self._describe().config.log_steps), 1)
        total = steps if steps is not None else self.settings["steps"]
        bar = _progress(total if total >= 0 else None, verbose)
        try:
            while steps is None or steps > 0:
                stats = self.step()
                if stats is None:
                    break
                if run is not None and stats.step % every == 0:
                    run.log(_log_of(stats), step=stats.step)
                if on_step is not None:
                    on_step(self, stats)
                bar(stats)
                steps = None if steps is None else steps - 1
        finally:
            bar(None)
            if wandb is True:
                run.finish()
        return self.finish()

    # ---- what there is

    @property
    def step_number(self) -> int:
        """The number of steps done."""
        return int(self._describe().steps)

    @property
    def dictionary(self) -> Dictionary:
        """The dictionary that is being trained, not a copy: read it and encode with it between steps. Training writes
        to it; finish() gives the one to keep."""
        return dictionary_of(self.context, self._describe().dictionary, self._trainer, self._written)

    ae = dictionary

    @property
    def settings(self) -> Dict[str, Any]:
        """All settings by the names of `dlrn_train_config`, with lr, d_out and k filled in."""
        return read_config(self._describe().config)

    @property
    def config(self) -> Dict[str, Any]:
        """The settings as dictionary_learning's trainer of the same name has them in config.json; of a recipe without
        one, `settings`, the labels (layer, lm_name, ...) and the class of the dictionary."""
        settings = self.settings
        names = {"dict_class": RECIPES[settings["recipe"]]["family"], "activation_dim": settings["d_in"],
                 "dict_size": settings["features"]}
        labels = {name: _plain(value) for name, value in self.labels.items() if name != "dict_class"}
        if not self._reference:
            return {**names, **settings, **labels}
        keys = ["lr", "steps", "seed", *self._reference.keys]
        found = {"trainer_class": self.trainer_class, **names, **{key: _reference(key, settings) for key in keys}}
        return {**found, **{name: labels.get(name) for name in LABELS if name != "dict_class"}}

    @property
    def since_fired(self) -> np.ndarray:
        """[features] steps since each feature was last active; rows, if the recipe counts those. Not a copy."""
        info = self._describe()
        return array_from(info.since_fired, (int(info.config.features),), self._trainer, "int64_t")

    def finish(self) -> Dictionary:
        """The dictionary that the run leaves, a copy: the trained one, or with the optimiser signum the average that it
        keeps beside it."""
        self._describe()
        out = ffi.new("dlrn_dictionary **")
        self.context.call(lib.dlrn_trainer_finish, self._trainer, out)
        return dictionary_of(self.context, self.context.own(out[0], lib.dlrn_dictionary_destroy))

    # ---- checkpoints

    def save(self, path: Union[str, os.PathLike]) -> None:
        """Writes a checkpoint, a .safetensors file: weights, moments, counters, settings, the unread rows of the buffer
        and the position of the data. resume() goes on from it with the same bits. A file of the same name and .json
        has what the library does not keep: the settings of the buffer, the labels, the class of the trainer."""
        cfg = self._describe().config
        kept = {"buffer": read_buffer(cfg), "buffered": self._buffer != ffi.NULL, "trainer_class": self.trainer_class,
                "labels": {name: _plain(value) for name, value in self.labels.items()}}
        self.context.call(lib.dlrn_trainer_save, self._trainer, ffi.new("char[]", os.fsencode(path)))
        _write_json(os.fspath(path) + ".json", kept)

    @classmethod
    def resume(cls, path: Union[str, os.PathLike], data: Any = None, *, epochs: int = 1,
               context: Optional[Context] = None, **settings: Any) -> "Trainer":
        """The trainer of a checkpoint.

        Args:
            data: the same again. Arrays and files go on where the run stopped, and so do the rows that the buffer held.
                An iterable cannot go back, unless it has `position` and `seek`: pass one that goes on.
            settings: those that differ; recipe, d_in, d_out, features, k and compat must not. A checkpoint of the
                program has no file beside it: state batch_size, capacity and read_rows as they were.
        """
        self = Trainer.__new__(cls)
        self.context = context or Context()
        file, out = ffi.new("char[]", os.fsencode(path)), ffi.new("dlrn_trainer **")
        self._data = None
        # The settings come first: a buffer needs them, and the trainer needs a buffer.
        self.context.call(lib.dlrn_trainer_resume, self.context.pointer, file, ffi.NULL, ffi.NULL, out)
        self._own(out[0])
        kept = _read_json(os.fspath(path) + ".json")
        self.labels, settings = _labels_of(settings)
        self.labels = {**kept.get("labels", {}), **self.labels}
        self.trainer_class = kept.get("trainer_class") if cls is Trainer else cls.__name__
        self._reference = CLASSES.get(self.trainer_class or "")
        if data is None and not settings and not kept:
            return self
        cfg = ffi.new("dlrn_train_config *", self._describe().config[0])
        given = resolve(ffi.string(cfg.recipe).decode(), settings)
        change_config(cfg, {**kept.get("buffer", {}), **given})
        how = {"d_in": int(cfg.d_in), **given, "layers": int(cfg.layers)}
        self._data = _open(data, {**how, "shuffle": True} if kept.get("buffered") else how, self.context, epochs)
        if self._data and self._data.source and not kept and "batch_rows" not in given:
            path = os.fspath(path)
            raise ArgumentError(f"{path}: no file .json beside it says how rows were batched: state batch_size")
        if self._data:
            self._data.open(cfg)
        self.context.call(lib.dlrn_trainer_resume, self.context.pointer, file, cfg, self._buffer, out)
        self._own(out[0])
        return self

    # ---- the end

    def close(self) -> None:
        """Frees the trainer; a dictionary that is still borrowed from it keeps the memory until it is gone."""
        self._trainer = self._held = self._data = None

    def __enter__(self) -> "Trainer":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    # ---- names of dictionary_learning

    def update(self, step: int, activations: Any) -> float:
        """A step on these rows; returns its loss. `step` is what the trainer counts itself."""
        stats = self.step(activations)
        return 0.0 if stats is None else stats.loss

    def get_logging_parameters(self) -> Dict[str, Any]:
        """dead_features and effective_l0 of the last step."""
        return {"dead_features": int(self._stats.dead), "effective_l0": float(self._stats.l0)}


# ---- what is shown, logged and written

def _plain(value: Any) -> Any:
    """A label as JSON can have it."""
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


#: Keys of dictionary_learning's configs that are written None where the library has -1.
_OFF = ("decay_start", "resample_steps", "steps")


def _reference(key: str, settings: Dict[str, Any]) -> Any:
    """The value of a key of dictionary_learning's config.json."""
    if key == "sparsity_function":
        return "Lp" if settings["sparsity"] == "lp" else "Lp^p"
    if key == "sparsity_queue_length":
        return _QUEUE
    if key == "top_k_aux":
        return settings["auxk"] or settings["d_in"] // 2
    sizes = settings["groups"]
    if key == "group_fractions":
        return [size / settings["features"] for size in sizes]
    if key == "group_weights" and not any(settings["group_weights"]):
        return [1 / len(sizes)] * len(sizes)
    value = settings[ALIASES.get(key, key)]
    return None if key in _OFF and value == -1 else value


def _log_of(stats: TrainStats) -> Dict[str, float]:
    """The figures of a step under the names that dictionary_learning logs."""
    return {"l0": stats.l0, "loss": stats.loss, "l2_loss": stats.reconstruction_loss,
            "mse_loss": stats.reconstruction_loss, "sparsity_loss": stats.sparsity_loss,
            "auxk_loss": stats.auxiliary_loss, "dead_features": stats.dead, "effective_l0": stats.k or stats.l0,
            "lr": stats.lr}


def _progress(total: Optional[int], wanted: bool, what: str = "training") -> Callable[[Any], None]:
    """A function that shows a step's figures in a bar of tqdm; None closes it. Without tqdm it shows nothing."""
    try:
        if not wanted:
            raise ImportError
        from tqdm import tqdm
    except ImportError:
        return lambda stats: None
    bar = tqdm(total=total, desc=what)

    def show(stats: Any) -> None:
        if stats is None:
            bar.close()
            return
        bar.update(1)
        if isinstance(stats, TrainStats):
            bar.set_postfix(loss=f"{stats.loss:.4g}", l0=f"{stats.l0:.1f}", refresh=False)

    return show


def _wandb_run(config: Dict[str, Any], more: Dict[str, Any], **names: Any) -> Any:
    """A new run of wandb, beside others of this process."""
    wandb = later("wandb", "wandb", "logs of runs")
    return wandb.init(config={**config, **more}, name=config.get("wandb_name"), reinit="create_new",
                      **{key: value or None for key, value in names.items()})


def _variance_explained(trainer: Trainer, x: np.ndarray, y: Optional[np.ndarray]) -> float:
    """The share of the variance of a batch that the dictionary explains, as it is before a step, with the selection
    that the step makes."""
    from .evaluation import Evaluator

    ae = trainer.finish()
    if text(ae.pointer.family) in ("BatchTopKSAE", "MatryoshkaBatchTopKSAE"):
        ae.formula.gate, ae.formula.select = "relu", "batch_top_k"
    with Evaluator(ae, batch_size=max(int(x.shape[0]), 1)) as evaluator:
        evaluator.add(x, y)
        return evaluator.finish().variance_explained


# ---- trainSAE

@overload
def trainSAE(data: Any, trainer_configs: Sequence[Dict[str, Any]], steps: int, use_wandb: bool = False,
             wandb_entity: str = "", wandb_project: str = "", save_steps: Optional[List[int]] = None,
             save_dir: Optional[str] = None, log_steps: Optional[int] = None, activations_split_by_head: bool = False,
             transcoder: bool = False, run_cfg: Dict[str, Any] = {}, normalize_activations: bool = False,
             verbose: bool = False, device: str = "cpu", autocast_dtype: Any = None,
             backup_steps: Optional[int] = None, **more: Any) -> Union[Dictionary, List[Dictionary]]: ...


@overload
def trainSAE(activations: Any, activation_dim: Optional[int], dictionary_size: int, lr: float,
             sparsity_penalty: float, entropy: bool = False, steps: Optional[int] = None, warmup_steps: int = 1000,
             resample_steps: Optional[int] = None, ghost_threshold: Optional[int] = None,
             save_steps: Optional[int] = None, save_dir: Optional[str] = None, log_steps: Optional[int] = 1000,
             device: str = "cpu", **more: Any) -> Dictionary: ...


def trainSAE(*arguments: Any, **settings: Any) -> Any:
    """Trains dictionaries, by either signature of dictionary_learning.

    trainSAE(data, trainer_configs, steps, ...), that of today. All trainers train on the same batches.

    Args:
        data: an ActivationBuffer, or any iterable of arrays [rows, d] or of pairs of them, each a batch as it is; or an
            array, a path or a list of paths, which are shuffled. For those: batch_size, epochs, shuffle, capacity.
        trainer_configs: dicts with "trainer", a class of `dlrn.trainers` or its name or a recipe, and its settings.
        save_dir: gets trainer_0, trainer_1, ... with ae.pt and config.json, checkpoints/ae_STEP.pt from before each
            step of save_steps, and every backup_steps steps backup.safetensors, from which Trainer.resume goes on.
        normalize_activations: rows are divided by the root of their mean squared norm, measured on the first batches.
            What is saved and returned takes rows as they are.
        activations_split_by_head: rows are [.., heads, d_head]; trainer i trains on head i.
        verbose: prints figures every log_steps. progress: shows a bar of tqdm, if that is installed.
        device, autocast_dtype, transcoder: accepted and ignored. Everything is computed in f32 on the CPU, and pairs
            (x, y) train a transcoder.

    Returns:
        The dictionary, or a list of them where there are several configs.

    trainSAE(activations, activation_dim, dictionary_size, lr, sparsity_penalty, ...), that of March 2024: the recipe
    "reference"; returns the AutoEncoder. compat=True computes as the code of then did. save_dir gets
    checkpoints/ae_STEP.pt from after every save_steps steps, and in the end ae.pt and config.json.
    """
    names = ("data", "activations", "buffer")
    named = [name for name in names if name in settings]
    if len(arguments) and named:
        raise TypeError(f"trainSAE: the rows are given twice, in place and as {named[0]}")
    if not arguments:
        if not named:
            raise TypeError("trainSAE: the rows are missing: pass `data`")
        arguments = (settings.pop(named[0]),)
    configs = settings.get("trainer_configs", arguments[1] if len(arguments) > 1 else None)
    if isinstance(configs, (list, tuple)):
        return _train_configs(*arguments, **settings)
    return _train_one(*arguments, **settings)


def _train_one(activations: Any, activation_dim: Optional[int] = None, dictionary_size: Optional[int] = None,
               lr: float = 3e-4, sparsity_penalty: float = 1e-3, entropy: bool = False, steps: Optional[int] = None,
               warmup_steps: int = 1000, resample_steps: Optional[int] = None, ghost_threshold: Optional[int] = None,
               save_steps: Optional[int] = None, save_dir: Optional[str] = None, log_steps: Optional[int] = 1000,
               device: str = "cpu", *, verbose: bool = True, progress: bool = True, **more: Any) -> Dictionary:
    """trainSAE of March 2024."""
    trainer = Trainer("reference", activations, activation_dim=activation_dim, dict_size=dictionary_size, lr=lr,
                      sparsity_penalty=sparsity_penalty, entropy=entropy, steps=steps, warmup_steps=warmup_steps,
                      resample_steps=resample_steps, ghost_threshold=ghost_threshold, save_steps=save_steps,
                      log_steps=log_steps, device=device, **more)

    def on_step(trainer: Trainer, stats: TrainStats) -> None:
        if log_steps and stats.step % log_steps == 0 and verbose:
            print(f"step {stats.step}: reconstruction loss {stats.reconstruction_loss:.6g}, "
                  f"sparsity loss {stats.sparsity_loss:.6g}, L0 {stats.l0:.1f}")
        if save_steps and save_dir is not None and stats.step % save_steps == 0:
            _save_checkpoint(trainer.dictionary, save_dir, stats.step)

    with trainer:
        ae = trainer.train(verbose=verbose and progress, on_step=on_step)
        if save_dir is not None:
            os.makedirs(save_dir, exist_ok=True)
            _save_run(ae, save_dir, {"trainer": {**trainer.config, "device": device}})
    return ae


def _save_checkpoint(ae: Dictionary, folder: Union[str, os.PathLike], step: int) -> None:
    path = os.path.join(folder, "checkpoints")
    os.makedirs(path, exist_ok=True)
    ae.save(os.path.join(path, f"ae_{step}.pt"))


def _write_json(path: str, value: Any) -> None:
    """Writes a config; an older one stays until the new one is complete."""
    with open(path + ".partial", "w", encoding="utf-8") as file:
        json.dump(value, file, indent=4, default=str)
    os.replace(path + ".partial", path)


def _save_run(ae: Dictionary, folder: Union[str, os.PathLike], config: Dict[str, Any]) -> None:
    """ae.pt and config.json: the library writes both, so that they agree, and the settings of the run are added. It
    does so beside them: where a config is already, it would refuse to write weights that are not of that config."""
    with tempfile.TemporaryDirectory(dir=folder, prefix=".partial") as beside:
        ae.save_as(beside, layout="dictionary_learning")
        with open(os.path.join(beside, "config.json"), encoding="utf-8") as file:
            written = json.load(file)
        os.replace(os.path.join(beside, "ae.pt"), os.path.join(folder, "ae.pt"))
    trainer = {**config.get("trainer", {}), **written.get("trainer", {})}
    _write_json(os.path.join(folder, "config.json"), {**config, **written, "trainer": trainer})


def _read_json(path: str) -> Dict[str, Any]:
    """A file that _write_json wrote; empty if there is none."""
    if not os.path.exists(path):
        return {}
    with open(path, encoding="utf-8") as file:
        return json.load(file)


class _Run:
    """One of the trainers of trainSAE, and where it writes."""

    def __init__(self, index: int, config: Dict[str, Any], width: Optional[int], d_out: int, save_dir: Any,
                 context: Context):
        settings = dict(config)
        if "trainer" not in settings:
            raise TypeError(f"trainer_configs[{index}] has no 'trainer'")
        trainer = settings.pop("trainer")
        if settings.get("wandb_name"):
            settings["wandb_name"] = f"{settings['wandb_name']}_trainer_{index}"
        if width is not None and not any(name in settings for name in ("d_in", "activation_dim")):
            settings["activation_dim"] = width
        if d_out and "d_out" not in settings:
            settings["d_out"] = d_out
        if isinstance(trainer, type) and issubclass(trainer, Trainer) and trainer is not Trainer:
            self.trainer = trainer(context=context, **settings)
        else:    # a name, or the class of that name in dictionary_learning itself
            name = trainer if isinstance(trainer, str) else getattr(trainer, "__name__", str(trainer))
            self.trainer = Trainer(name, context=context, **settings)
        self.folder = None if save_dir is None else os.path.join(save_dir, f"trainer_{index}")
        self.wandb: Any = None

    def finish(self, norm_factor: Optional[float]) -> Dictionary:
        """The dictionary for rows as they are."""
        ae = self.trainer.finish()
        if norm_factor is not None:
            ae.scale_biases(norm_factor)
        return ae


def _norm_factor(batches: Iterator[Any], steps: int = 100) -> float:
    """The root of the mean squared norm of rows, a mean over batches. As dictionary_learning does it: over steps + 1
    batches, of which one more is taken."""
    total, count = 0.0, 0
    for step, (x, _) in enumerate(batches):
        if step > steps:
            break
        rows = rows_of(x, width_of(x), "x").array
        total += float(np.einsum("ij,ij->", rows, rows, dtype=np.float64)) / max(rows.shape[0], 1)
        count += 1
    if not count:
        raise ArgumentError("normalize_activations: the data have no rows")
    return float(np.sqrt(total / count))


def _batches_of(data: Optional[_Data]) -> Iterator[Any]:
    while data is not None:
        item = data.next_batch()
        if item is None:
            return
        yield item


def _head_of(item: Tuple[Any, Any], head: Optional[int]) -> Tuple[Any, Any]:
    """The rows of one head of an item [.., heads, d_head], or the item."""
    if head is None:
        return item
    return tuple(None if part is None else part[..., head, :] for part in item)  # type: ignore[return-value]


def _train_configs(data: Any, trainer_configs: Sequence[Dict[str, Any]], steps: Optional[int] = None,
                   use_wandb: bool = False, wandb_entity: str = "", wandb_project: str = "",
                   save_steps: Optional[Sequence[int]] = None, save_dir: Any = None, log_steps: Optional[int] = None,
                   activations_split_by_head: bool = False, transcoder: bool = False,
                   run_cfg: Optional[Dict[str, Any]] = None, normalize_activations: bool = False,
                   verbose: bool = False, device: Any = "cpu", autocast_dtype: Any = None,
                   backup_steps: Optional[int] = None, *, batch_size: int = 8192, epochs: int = 1,
                   shuffle: Optional[bool] = None, progress: bool = True, context: Optional[Context] = None,
                   **buffer: Any) -> Union[Dictionary, List[Dictionary]]:
    """trainSAE of today."""
    for name in buffer:
        if not is_setting(name):
            raise TypeError(f"trainSAE: there is no argument '{name}'")
    context = context or Context()
    given = {"shuffle": shuffle, **buffer}

    def opened() -> _Data:
        made = _open(data, given, context, epochs)
        if made is None:
            raise TypeError("trainSAE: expected rows, found None")
        if made.source is not None:
            cfg, _keep = make_config("reference", {**given, "batch_rows": batch_size, "d_in": made.d}, None)
            made.open(cfg)
        return made

    rows = opened()
    heads = activations_split_by_head
    runs = [_Run(i, config, None if heads else rows.d, rows.d_out, save_dir, context)
            for i, config in enumerate(trainer_configs)]
    factor = None
    if normalize_activations:
        factor = _norm_factor(_batches_of(rows))
        # an iterator goes on behind what was measured, anything else begins again
        rows = opened() if not hasattr(data, "__next__") else rows
    more = {} if factor is None else {"norm_factor": factor}
    about = getattr(data, "config", None)
    configs = [{"trainer": {**run.trainer.config, **more}, **({"buffer": about} if isinstance(about, dict) else {})}
               for run in runs]
    for run, config in zip(runs, configs):
        if run.folder is not None:
            os.makedirs(run.folder, exist_ok=True)
            _write_json(os.path.join(run.folder, "config.json"), config)
        if use_wandb:
            run.wandb = _wandb_run(config["trainer"], run_cfg or {}, entity=wandb_entity, project=wandb_project)
    every = log_steps if log_steps and (use_wandb or verbose) else 0
    bar = _progress(steps, progress)
    try:
        for step, item in enumerate(_batches_of(rows)):
            if factor is not None:
                item = tuple(None if part is None else part / factor for part in item)
            for head, run in enumerate(runs):
                x, y = _head_of(item, head if heads else None)
                shows = every > 0 and step % every == 0
                _one_step(run, step, x, y, shows, verbose, save_steps or (), backup_steps, factor)
            bar(step)
            if steps is not None and step + 1 >= steps:
                break
    finally:
        bar(None)
        for run in runs:
            if run.wandb is not None:
                run.wandb.finish()
    found = [run.finish(factor) for run in runs]
    for run, ae, config in zip(runs, found, configs):
        if run.folder is not None:
            _save_run(ae, run.folder, config)
        run.trainer.close()
    return found[0] if len(found) == 1 else found


def _one_step(run: _Run, step: int, x: Any, y: Any, shows: bool, verbose: bool, save_steps: Sequence[int],
              backup_steps: Optional[int], factor: Optional[float]) -> None:
    """What trainSAE does with one batch and one trainer: saves, logs, steps. Figures are those before the update."""
    if run.folder is not None and step in save_steps:
        _save_checkpoint(run.finish(factor), run.folder, step)
    if run.folder is not None and backup_steps and step % backup_steps == 0:
        run.trainer.save(os.path.join(run.folder, "backup.safetensors"))
    explained = _variance_explained(run.trainer, x, y) if shows else None
    stats = run.trainer.step(x, y)
    if stats is None or not shows:
        return
    if verbose:
        print(f"Step {step}: L0 = {stats.l0}, frac_variance_explained = {explained}")
    if run.wandb is not None:
        run.wandb.log({"frac_variance_explained": explained, **_log_of(stats)}, step=step)
