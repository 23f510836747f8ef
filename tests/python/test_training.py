"""Sources, trainers, trainSAE and evaluate, against the program, dictionary_learning 0.1.0 and plain formulas."""
import collections
import gc
import json
import sys
import threading
import traceback
import types
import warnings

import numpy as np

from harness import folder, main, program, raises, skip
import dlrn
from dlrn import trainers
from dlrn.training import CLASSES

try:
    import torch
except ModuleNotFoundError:
    torch = None

D, F, ROWS = 24, 96, 1200
SMALL = {"activation_dim": D, "dict_size": F, "warmup_steps": 2}
X = np.random.default_rng(3).normal(size=(ROWS, D)).astype(np.float32)
Y = np.random.default_rng(4).normal(size=(ROWS, 10)).astype(np.float32)
#: Settings for each class of dictionary_learning, so short that all of its schedules are passed.
OF_CLASS = {
    "StandardTrainer": {"l1_penalty": 0.02, "sparsity_warmup_steps": 3, "lr": 1e-3},
    "StandardTrainerAprilUpdate": {"l1_penalty": 0.02, "sparsity_warmup_steps": 3, "lr": 1e-3},
    "GatedSAETrainer": {"l1_penalty": 0.02, "sparsity_warmup_steps": 3, "lr": 1e-3},
    "TopKTrainer": {"k": 5, "lr": 1e-3, "threshold_start_step": 3},
    "BatchTopKTrainer": {"k": 5, "lr": 1e-3, "threshold_start_step": 3},
    "MatryoshkaBatchTopKTrainer": {"k": 5, "lr": 1e-3, "threshold_start_step": 3, "group_fractions": [0.25, 0.75]},
    "JumpReluTrainer": {"target_l0": 6.0, "sparsity_warmup_steps": 3, "lr": 1e-3},
    "PAnnealTrainer": {"sparsity_function": "Lp^p", "initial_sparsity_penalty": 0.02, "sparsity_warmup_steps": 3,
                       "anneal_start": 4, "p_end": 0.5, "n_sparsity_updates": 3, "lr": 1e-3},
    "GatedAnnealTrainer": {"initial_sparsity_penalty": 0.02, "sparsity_warmup_steps": 3, "anneal_start": 4,
                           "p_end": 0.5, "n_sparsity_updates": 3, "lr": 1e-3},
}


def batches(x=X, size=100):
    for first in range(0, len(x), size):
        yield x[first:first + size]


def state(dictionary):
    """The parameters as arrays of their own."""
    return {name: np.asarray(value).copy() for name, value in dictionary.state_dict().items()}


def same(a, b, what=""):
    a, b = (part if isinstance(part, dict) else state(part) for part in (a, b))
    assert a.keys() == b.keys(), (what, a.keys(), b.keys())
    for name in a:
        assert np.array_equal(a[name], b[name]), f"{what}: {name} differs"


def read_all(source, size=130):
    """(x, y or None) of all rows of a source."""
    xs, ys = [], []
    for x, y in source.batches(size):
        xs.append(x.copy())
        ys.append(None if y is None else y.copy())
    return np.concatenate(xs), None if ys[0] is None else np.concatenate(ys)


# ---- sources

def kinds_of_data(place):
    """Everything that holds the rows X, as source_of takes it."""
    np.save(place / "x.npy", X)
    for i in range(3):
        np.save(place / f"part{i}.npy", X[400 * i:400 * i + 400])
    wide = np.zeros((ROWS, 2 * D), np.float32)
    wide[:, ::2] = X

    class Buffer:
        def source(self):
            return batches(size=77)

    class Next:
        def __init__(self):
            self.items = batches(size=61)

        def __next__(self):
            return next(self.items)

    yield "f32", X
    yield "any leading shape", X.reshape(4, 300, D)
    yield "f64", X.astype(np.float64)
    yield "not contiguous", wide[:, ::2]
    yield "columns first", np.asfortranarray(X)
    yield "another byte order", X.astype(">f4")
    yield "a path", place / "x.npy"
    yield "text of a path", str(place / "x.npy")
    yield "shards", [place / f"part{i}.npy" for i in range(3)]
    yield "a generator", batches(size=7)
    yield "lists of one", ([x] for x in batches())
    yield "a list", list(batches(size=500))
    yield "items of several dimensions", (x.reshape(2, -1, D) for x in batches(size=60))
    yield "an empty item", iter([X[:50], X[:0], X[50:]])
    yield "a buffer", Buffer()
    yield "__next__ alone", Next()
    if torch is not None:
        yield "a tensor", torch.from_numpy(X)
        yield "a strided tensor", torch.from_numpy(wide)[:, ::2]
        yield "tensors", (torch.from_numpy(x) for x in batches())
        yield "tensors with gradients", (torch.from_numpy(x).requires_grad_() for x in batches())


def test_every_kind_of_data_has_the_same_rows():
    for name, data in kinds_of_data(folder("training-sources")):
        with dlrn.source_of(data, D) as source:
            assert (source.d, source.d_out) == (D, 0), name
            x, y = read_all(source)
            assert y is None and np.array_equal(x, X), name


def test_rows_of_half_the_width():
    half = X.astype(np.float16)
    with dlrn.source_of(half) as source:
        assert np.array_equal(read_all(source)[0], half.astype(np.float32))
    if torch is not None:
        tensor = torch.from_numpy(X).to(torch.bfloat16)
        with dlrn.source_of(tensor) as source:
            assert np.array_equal(read_all(source)[0], tensor.float().numpy())


def test_targets():
    place = folder("training-targets")
    np.save(place / "x.npy", X)
    np.save(place / "y.npy", Y)
    pairs = ((X[i:i + 90], Y[i:i + 90]) for i in range(0, ROWS, 90))
    for name, data in (("arrays", (X, Y)), ("f64", (X.astype(np.float64), Y)), ("pairs", pairs),
                       ("lists of two", ([X[i:i + 90], Y[i:i + 90]] for i in range(0, ROWS, 90))),
                       ("paths", (place / "x.npy", place / "y.npy"))):
        with dlrn.source_of(data) as source:
            assert (source.d, source.d_out) == (D, 10), name
            x, y = read_all(source, 50)
            assert np.array_equal(x, X), name
            assert np.array_equal(y, Y), name


def test_rows_of_several_layers():
    for name, data in (("array", X.reshape(-1, 2, D)), ("items", iter([X[:600].reshape(-1, 2, D), X[600:].reshape(
            -1, 2, D)]))):
        with dlrn.source_of(data, layers=2) as source:
            assert source.d == 2 * D, name
            assert np.array_equal(read_all(source)[0], X.reshape(-1, 2 * D)), name
    for data in (X.reshape(-1, 2, D), X.astype(np.float64).reshape(-1, 2, D)):
        with dlrn.source_of((data, data), layers=2) as source:
            assert (source.d, source.d_out) == (2 * D, 2 * D)
            x, y = read_all(source)
            assert np.array_equal(x, X.reshape(-1, 2 * D)) and np.array_equal(y, x)


def test_an_array_is_not_copied():
    x = X.copy()
    with dlrn.source_of(x) as source:
        x[:] = 7
        assert np.all(read_all(source)[0] == 7)


def test_epochs():
    with dlrn.source_of(X.astype(np.float64), epochs=3) as source:
        assert np.array_equal(read_all(source)[0], np.concatenate([X] * 3))
    with dlrn.source_of(X, epochs=2) as source:
        assert np.array_equal(read_all(source)[0], np.concatenate([X] * 2))


def test_data_that_are_none():
    place = folder("training-no-source")
    np.save(place / "wide.npy", X)
    raises(TypeError, dlrn.source_of, 3, says="iterable")
    raises(TypeError, lambda: read_all(dlrn.source_of(iter(["text"]), D)), says="arrays")
    raises(ValueError, lambda: read_all(dlrn.source_of(iter([X[:, 1:]]), D)), says=[str(D), str(D - 1)])
    raises(ValueError, lambda: read_all(dlrn.source_of(iter([X[:5], (X[:5], Y[:5])]), D)), says="earlier")
    raises(ValueError, lambda: read_all(dlrn.source_of(iter([(X[:5], Y[:4])]), D)), says=["5", "4"])
    raises(ValueError, dlrn.source_of, (X, Y[:-1]), says="number")
    raises(ValueError, dlrn.source_of, X, D + 1, says=str(D + 1))
    for kind in (np.float32, np.float16):
        raises(dlrn.ShapeError, dlrn.source_of, X.astype(kind), D // 2, says=[str(D), str(D // 2)])
    raises(ValueError, dlrn.source_of, iter([]), says="width")
    raises(OSError, dlrn.source_of, place / "none.npy", says="none.npy")
    raises(ValueError, dlrn.Trainer, "dl-top_k", iter([]), says="width")


def a_source_that_fails(after, error):
    for x in list(batches())[:after]:
        yield x
    raise error


def test_an_exception_inside_a_source():
    for shuffle in (None, True):
        for error in (LookupError("lost"), KeyboardInterrupt(), SystemExit(3)):
            more = {"shuffle": shuffle, "batch_size": 100, "capacity": 150, "read_rows": 50} if shuffle else {}
            trainer = dlrn.Trainer("dl-top_k", a_source_that_fails(4, error), k=5, dict_size=F, warmup_steps=1, **more)
            stepped = []
            try:
                for stats in trainer:
                    stepped.append(stats.step)
            except type(error) as caught:
                assert caught is error
                frames = [frame.name for frame in traceback.extract_tb(caught.__traceback__)]
                assert "a_source_that_fails" in frames, frames
            else:
                raise AssertionError("nothing was raised")
            assert stepped == list(range(len(stepped))) and len(stepped) >= 2, (shuffle, stepped)
            # the trainer is as it was
            assert trainer.step_number == len(stepped)
            assert trainer.step(X[:100]).step == len(stepped)


def test_a_source_may_use_other_objects_of_the_package():
    ae = dlrn.AutoEncoder(D, F, seed=1)

    def reconstructions():
        for x in batches():
            yield ae(x)

    trainer = dlrn.Trainer("dl-top_k", reconstructions(), shuffle=True, k=5, dict_size=F, batch_size=150, capacity=300)
    assert trainer.context is not ae.context
    assert [stats.rows for stats in trainer] == [150] * 8


# ---- trainers

def test_every_recipe_makes_a_step():
    for recipe in dlrn.recipes():
        name = recipe["name"]
        settings = dict(SMALL)
        if "layers" in recipe["settings"] and name.startswith(("cc", "clt")):
            settings["layers"] = 2
        if "k" in recipe["settings"]:
            settings["k"] = 6
        trainer = dlrn.Trainer(name, **settings)
        for i in range(2):
            stats = trainer.step(X[:200], X[:200] if "transcoder" in name else None)
            assert stats.step == i and stats.rows == 200 and np.isfinite(stats.loss), (name, stats)
        found = trainer.finish()
        assert found.activation_dim == D and found.dict_size == F, name
        assert np.all(np.isfinite(found(X[:50]))), name


def test_a_map_to_another_width():
    trainer = dlrn.Trainer("sp-transcoder", (X, Y), k=5, dict_size=F, batch_size=300, warmup_steps=1, shuffle=False)
    ae = trainer.train(verbose=False)
    assert ae(X).shape == (ROWS, 10)
    by_hand = dlrn.Trainer("sp-transcoder", activation_dim=D, d_out=10, k=5, dict_size=F, warmup_steps=1)
    for i in range(0, ROWS, 300):
        by_hand.step((X[i:i + 300], Y[i:i + 300]))
    same(ae, by_hand.finish())
    raises(ValueError, by_hand.step, X[:10], Y[:9], says=["10", "9"])
    raises(ValueError, by_hand.step, X[:10], says="y must not be NULL")


def test_the_programs_bits_by_the_names_of_dictionary_learning():
    place = folder("training-bits")
    np.save(place / "x.npy", X)
    for name, settings in OF_CLASS.items():
        trainer = dlrn.Trainer(name, batches(), steps=12, seed=7, **SMALL, **settings)
        ours = trainer.train(verbose=False)
        run = place / name
        run.mkdir()
        (run / "config.json").write_text(json.dumps({"trainer": trainer.config}))
        program("train", "--data", place / "x.npy", "--config", run / "config.json", "--no-shuffle", "--batch-size",
                100, "--quiet", "--save-dir", run / "out")
        same(ours, dlrn.Dictionary.from_pretrained(run / "out"), name)


def test_settings_by_either_name():
    a = dlrn.Trainer("dl-standard", activation_dim=D, dict_size=F, l1_penalty=0.3, resample_steps=None, layer=3)
    b = dlrn.Trainer("dl-standard", d_in=D, features=F, sparsity_penalty=0.3, resample_steps=-1)
    assert a.settings == b.settings and a.settings["sparsity_penalty"] == 0.3
    assert a.config["layer"] == 3
    raises(TypeError, dlrn.Trainer, "dl-top_k", **SMALL, l1_penalty=1, says=["l1_penalty", "auxk_alpha", "clip"])
    raises(TypeError, dlrn.Trainer, "dl-top_k", **SMALL, kk=1, says=["kk", "dl-top_k"])
    raises(TypeError, dlrn.Trainer, "dl-top_k", **SMALL, features=F + 1, says="features")
    raises(TypeError, dlrn.Trainer, "dl-top_k", k=4, says="activation_dim")
    raises(TypeError, dlrn.Trainer, "dl-top_k", **SMALL, k="five", says=["k", "five"])
    raises(ValueError, dlrn.Trainer, "dl-top_k", **SMALL, k=4.5, says="4.5")
    raises(ValueError, dlrn.Trainer, "dl-top_k", **SMALL, k=F + 1, says="k")
    raises(ValueError, dlrn.Trainer, "dl-topk", **SMALL, says=["dl-topk", "dl-top_k"])
    raises(ValueError, dlrn.Trainer, "reference", **SMALL, sparsity="l2", says=["l2", "entropy"])
    raises(ValueError, dlrn.Trainer, "TopKTrainer", **SMALL, k=4, dict_class=dlrn.AutoEncoder, says="AutoEncoderTopK")
    raises(ValueError, dlrn.Trainer, "dl-matryoshka", **SMALL, groups=[0.5, 0.4], says="0.9")
    raises(ValueError, dlrn.Trainer, "PAnnealTrainer", **SMALL, sparsity_queue_length=3, says="10")


def test_defaults_of_the_classes():
    for name, lr, more in (("StandardTrainer", 1e-3, {"sparsity_penalty": 0.1, "sparsity_warmup_steps": 2000}),
                           ("GatedSAETrainer", 5e-5, {"sparsity_penalty": 0.1}),
                           ("TopKTrainer", 2e-4 / (F / 2 ** 14) ** 0.5, {"auxk_alpha": 1 / 32}),
                           ("JumpReluTrainer", 7e-5, {"bandwidth": 1e-3, "target_l0": 20.0}),
                           ("GatedAnnealTrainer", 3e-4, {"sparsity": "power", "p_end": 0.0, "seed": 42}),
                           ("PAnnealTrainer", 1e-3, {"anneal_updates": 10, "anneal_start": 15000})):
        settings = dlrn.Trainer(name, activation_dim=D, dict_size=F).settings
        assert abs(settings["lr"] - lr) < 1e-12 and settings["warmup_steps"] == 1000, (name, settings["lr"])
        for key, value in more.items():
            assert settings[key] == value, (name, key, settings[key])
    lp = dlrn.Trainer("PAnnealTrainer", **SMALL, p_end=0.5).settings
    assert lp["sparsity"] == "lp"
    every = dlrn.Trainer("PAnnealTrainer", **SMALL, anneal_start=4, steps=20, n_sparsity_updates="continuous")
    assert every.settings["anneal_updates"] == 17
    sizes = dlrn.Trainer("MatryoshkaBatchTopKTrainer", activation_dim=D, dict_size=100, group_fractions=[0.333, 0.667])
    assert sizes.settings["groups"] == [33, 67]


def test_the_end_of_the_data_and_of_the_steps():
    trainer = dlrn.Trainer("dl-top_k", batches(), k=5, **SMALL)
    assert len(list(trainer)) == 12 and trainer.step() is None and trainer.step_number == 12
    trainer = dlrn.Trainer("dl-top_k", batches(), k=5, steps=5, **SMALL)
    assert len(list(trainer)) == 5 and trainer.step() is None
    trainer.step(X[:10])
    assert trainer.step_number == 6
    trainer = dlrn.Trainer("dl-top_k", X, k=5, batch_size=500, **SMALL)
    assert [stats.rows for stats in trainer] == [500, 500, 200]
    trainer = dlrn.Trainer("dl-top_k", X, k=5, batch_size=500, epochs=0, **SMALL)
    trainer.train(7, verbose=False)
    assert trainer.step_number == 7
    raises(TypeError, dlrn.Trainer("dl-top_k", k=5, **SMALL).step, says="rows")


def test_what_data_a_step_takes():
    """Batches of an iterable, its rows through the buffer, an array in its order: the same rows, the same bits."""
    settings = {"k": 5, "lr": 1e-3, **SMALL}
    by_hand = dlrn.Trainer("dl-batch_top_k", **settings)
    for x in batches():
        by_hand.step(x)
    for name, data, more in (("items", batches(), {}), ("buffered items", batches(size=64), {"shuffle": False}),
                             ("array", X, {"shuffle": False}), ("f64", X.astype(np.float64), {"shuffle": False})):
        size = {"batch_size": 100} if more else {}
        if name == "buffered items":
            data = dlrn.source_of(data)
        trained = dlrn.Trainer("dl-batch_top_k", data, **settings, **more, **size).train(verbose=False)
        same(trained, by_hand.finish(), name)
    shuffled = dlrn.Trainer("dl-batch_top_k", X, batch_size=100, **settings).train(verbose=False)
    assert not np.array_equal(shuffled.encoder.weight, by_hand.dictionary.encoder.weight)


def test_a_run_that_is_resumed():
    place = folder("training-resumed")
    settings = {"k": 5, "batch_size": 100, "capacity": 400, "read_rows": 100, "seed": 2, **SMALL}
    np.save(place / "x.npy", X)
    for name, data in (("array", X), ("f64", X.astype(np.float64)), ("file", place / "x.npy")):
        whole = dlrn.Trainer("dl-batch_top_k", data, epochs=2, **settings)
        whole.train(verbose=False)
        half = dlrn.Trainer("dl-batch_top_k", data, epochs=2, **settings)
        half.train(9, verbose=False)
        half.save(place / "half.safetensors")
        half.close()
        again = dlrn.Trainer.resume(place / "half.safetensors", data, epochs=2)
        assert again.step_number == 9 and again.settings == whole.settings
        again.train(verbose=False)
        assert again.step_number == whole.step_number == 24, name
        same(again.finish(), whole.finish(), name)
    assert dlrn.Trainer.resume(place / "half.safetensors").settings["batch_rows"] == 100
    # without data, and with another setting
    again = dlrn.Trainer.resume(place / "half.safetensors", lr=0.5)
    assert again.settings["lr"] == 0.5 and again.step(X[:100]).step == 9
    raises(ValueError, dlrn.Trainer.resume, place / "half.safetensors", features=F + 1)
    raises(ValueError, again.save, place / "half.pt", says="safetensors")
    raises(OSError, dlrn.Trainer.resume, place / "none.safetensors", says="none.safetensors")
    (place / "half.safetensors.json").unlink()
    raises(ValueError, dlrn.Trainer.resume, place / "half.safetensors", X, says="batch_size")
    named = trainers.BatchTopKTrainer.resume(place / "half.safetensors", layer=4)
    assert named.config["trainer_class"] == "BatchTopKTrainer" and named.config["layer"] == 4


def test_a_run_on_an_iterable_that_can_seek():
    place = folder("training-seek")

    class Items:
        def __init__(self):
            self.position = 0

        def __iter__(self):
            return self

        def __next__(self):
            if self.position == 2 * ROWS:
                raise StopIteration
            first = self.position % ROWS
            rows = X[first:first + 70]
            self.position += len(rows)
            return rows

        def seek(self, rows):
            self.position = rows

    settings = {"k": 5, "batch_size": 100, "capacity": 400, "read_rows": 90, "shuffle": True, **SMALL}
    whole = dlrn.Trainer("dl-batch_top_k", Items(), **settings)
    whole.train(verbose=False)
    half = dlrn.Trainer("dl-batch_top_k", Items(), **settings)
    half.train(9, verbose=False)
    half.save(place / "half.safetensors")
    again = dlrn.Trainer.resume(place / "half.safetensors", Items())
    again.train(verbose=False)
    assert again.step_number == whole.step_number == 24
    same(again.finish(), whole.finish())


def test_a_step_that_was_stopped_goes_on():
    whole = dlrn.Trainer("dl-top_k", batches(), k=5, **SMALL)
    whole.train(verbose=False)
    stopped = dlrn.Trainer("dl-top_k", batches(), k=5, **SMALL)
    call = stopped.context.call

    def interrupted(function, *arguments):
        stopped.context.call = call
        raise KeyboardInterrupt

    for i in range(12):
        if i % 4 == 3:
            stopped.context.call = interrupted
            raises(KeyboardInterrupt, stopped.step)
        assert stopped.step().step == i
    assert stopped.step() is None
    same(stopped.finish(), whole.finish())


def test_dictionaries_outlive_their_trainer():
    with dlrn.Trainer("dl-top_k", k=5, **SMALL) as trainer:
        trainer.step(X[:200])
        borrowed, copy = trainer.dictionary, trainer.finish()
        weights = borrowed.encoder.weight
        before = np.array(weights)
    raises(ValueError, trainer.step, X, says="closed")
    del trainer
    gc.collect()
    assert np.array_equal(weights, before) and np.array_equal(borrowed.encode(X), copy.encode(X))


def test_the_dictionary_follows_the_steps():
    trainer = dlrn.Trainer("dl-standard", **{**SMALL, "warmup_steps": 0})
    ae = trainer.dictionary
    before = ae(X[:50])
    trainer.step(X[:200])
    after = ae(X[:50])
    assert not np.array_equal(before, after) and np.array_equal(after, trainer.finish()(X[:50]))
    assert trainer.since_fired.shape == (F,)


def test_a_dictionary_to_start_from():
    first = dlrn.AutoEncoderTopK(D, F, k=5, seed=9)
    trainer = dlrn.Trainer("dl-top_k", init=first, k=5)
    assert np.array_equal(trainer.dictionary.encoder.weight, first.encoder.weight)
    raises(dlrn.DlrnError, dlrn.Trainer, "dl-standard", init=first)


def test_trainers_in_threads():
    settings = {"k": 5, "lr": 1e-3, **SMALL}
    alone = [dlrn.Trainer("dl-top_k", batches(), seed=i, **settings).train(verbose=False) for i in range(3)]
    found = [None] * 3

    def work(i):
        found[i] = dlrn.Trainer("dl-top_k", batches(), seed=i, shuffle=False, **settings).train(verbose=False)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(3):
        same(alone[i], found[i], f"thread {i}")


# ---- trainSAE

def test_several_trainers_on_the_same_batches():
    configs = [{"trainer": getattr(trainers, name), "seed": 5, **SMALL, **settings} for name, settings in
               OF_CLASS.items()]
    copies = [dict(config) for config in configs]
    found = dlrn.trainSAE(batches(), trainer_configs=configs, steps=12)
    assert configs == copies, "the caller's configs were changed"
    assert len(found) == len(configs)
    for config, ae in zip(configs, found):
        config = dict(config)
        alone = config.pop("trainer")(**config)
        for x in batches():
            alone.update(0, x)
        same(ae, alone.ae, alone.trainer_class)


def test_the_files_of_trainSAE():
    place = folder("training-files")
    config = {"trainer": "BatchTopKTrainer", "layer": 2, "lm_name": "tiny", "submodule_name": "mlp", "device": "cpu",
              "wandb_name": "run", "steps": 12, **SMALL, **OF_CLASS["BatchTopKTrainer"]}
    data = iter(batches())

    class Named:
        config = {"n_ctxs": 3}

        def __iter__(self):
            return data

    ae = dlrn.trainSAE(Named(), [config], 12, save_dir=place, save_steps=[0, 5], backup_steps=4)
    path = place / "trainer_0"
    assert sorted(p.name for p in path.iterdir()) == ["ae.pt", "backup.safetensors", "backup.safetensors.json",
                                                       "checkpoints", "config.json"]
    assert sorted(p.name for p in (path / "checkpoints").iterdir()) == ["ae_0.pt", "ae_5.pt"]
    same(dlrn.Dictionary.from_pretrained(path), ae)
    loaded, written = dlrn.load_dictionary(path, device="cpu")
    same(loaded, ae)
    assert written["buffer"] == {"n_ctxs": 3}
    expected = {"trainer_class": "BatchTopKTrainer", "dict_class": "BatchTopKSAE", "lr": 1e-3, "steps": 12,
                "auxk_alpha": 1 / 32, "warmup_steps": 2, "decay_start": None, "threshold_beta": 0.999,
                "threshold_start_step": 3, "top_k_aux": D // 2, "seed": 0, "activation_dim": D, "dict_size": F, "k": 5,
                "device": "cpu", "layer": 2, "lm_name": "tiny", "wandb_name": "run_trainer_0", "submodule_name": "mlp"}
    assert written["trainer"] == expected, written["trainer"]
    trainer = dlrn.Trainer("BatchTopKTrainer", **{k: v for k, v in config.items() if k != "trainer"})
    for i, x in enumerate(batches()):
        if i in (0, 5):    # before the step, as dictionary_learning saves them
            file = path / "checkpoints" / f"ae_{i}.pt"
            same(dlrn.BatchTopKSAE.from_pretrained(file), trainer.dictionary, f"step {i}")
        if i == 8:    # the last backup
            again = dlrn.Trainer.resume(path / "backup.safetensors")
            assert again.step_number == 8
            same(again.dictionary, trainer.dictionary, "backup")
        trainer.step(x)


def test_rows_that_are_normalised():
    data = X * 40
    config = {"trainer": "JumpReluTrainer", **SMALL, **OF_CLASS["JumpReluTrainer"]}
    for name in ("StandardTrainer", "JumpReluTrainer", "TopKTrainer", "GatedSAETrainer"):
        config = {"trainer": name, **SMALL, **OF_CLASS[name]}
        place = folder("training-normalised")
        found = dlrn.trainSAE(list(batches(data)), [config], 12, normalize_activations=True, save_dir=place)
        factor = np.sqrt(np.mean([np.mean(np.sum(x.astype(np.float64) ** 2, axis=1)) for x in batches(data)]))
        settings = {k: v for k, v in config.items() if k != "trainer"}
        by_hand = dlrn.Trainer(name, **settings)
        for x in batches(data):
            by_hand.step(x / factor)
        expected = by_hand.finish()
        # of rows as they are; the features are those of divided rows, in their scale
        assert np.allclose(found(data), expected(data / np.float32(factor)) * factor, rtol=1e-3, atol=1e-2), name
        written = json.loads((place / "trainer_0" / "config.json").read_text())
        assert abs(written["trainer"]["norm_factor"] - factor) < 1e-6 * factor
        same(dlrn.Dictionary.from_pretrained(place / "trainer_0"), found)


def test_trainSAE_on_arrays_and_files():
    place = folder("training-arrays")
    np.save(place / "x.npy", X)
    config = {"trainer": "dl-top_k", "k": 5, **SMALL}
    found = [dlrn.trainSAE(data, [config], 6, batch_size=200, shuffle=False) for data in
             (X, place / "x.npy", [x for x in batches(size=200)])]
    same(found[0], found[1])
    same(found[0], found[2])
    shuffled = dlrn.trainSAE(X, [config], 6, batch_size=200)
    assert not np.array_equal(shuffled.encoder.weight, found[0].encoder.weight)
    for data in (X, batches()):
        raises(TypeError, dlrn.trainSAE, data, [config], 6, stepz=3, says="stepz")


def test_heads_of_activations():
    heads = X.reshape(-1, 2, D // 2)
    configs = [{"trainer": "dl-top_k", "k": 5, "activation_dim": D // 2, "dict_size": F, "warmup_steps": 1}] * 2
    found = dlrn.trainSAE([heads[:300], heads[300:]], configs, 2, activations_split_by_head=True)
    for i, ae in enumerate(found):
        alone = dlrn.Trainer("dl-top_k", iter([heads[:300, i], heads[300:, i]]), k=5, dict_size=F, warmup_steps=1)
        same(ae, alone.train(verbose=False), f"head {i}")


def test_trainSAE_of_march_2024():
    place = folder("training-march")
    np.save(place / "x.npy", X)
    ae = dlrn.trainSAE(batches(), D, F, 1e-3, 0.05, warmup_steps=3, save_steps=5, save_dir=place / "ours",
                       log_steps=None, device="cpu", verbose=False)
    assert isinstance(ae, dlrn.AutoEncoder)
    program("train", "--data", place / "x.npy", "--dict-size", F, "--lr", 1e-3, "--sparsity-penalty", 0.05,
            "--warmup-steps", 3, "--no-shuffle", "--batch-size", 100, "--quiet", "--save-dir", place / "theirs")
    same(ae, dlrn.Dictionary.from_pretrained(place / "theirs"))
    same(dlrn.Dictionary.from_pretrained(place / "ours"), ae)
    assert sorted(p.name for p in (place / "ours" / "checkpoints").iterdir()) == ["ae_0.pt", "ae_10.pt", "ae_5.pt"]
    trainer = dlrn.Trainer("reference", **{**SMALL, "warmup_steps": 3}, lr=1e-3, sparsity_penalty=0.05)
    for i, x in enumerate(batches()):
        trainer.step(x)
        if i % 5 == 0:    # after the step
            same(dlrn.AutoEncoder.from_pretrained(place / "ours" / "checkpoints" / f"ae_{i}.pt"), trainer.dictionary)
    more = dlrn.trainSAE(batches(), activation_dim=D, dictionary_size=F, lr=1e-3, sparsity_penalty=0.05, entropy=True,
                         steps=4, resample_steps=2, ghost_threshold=1, verbose=False)
    assert isinstance(more, dlrn.AutoEncoder)
    raises(TypeError, dlrn.trainSAE, says="data")
    raises(TypeError, dlrn.trainSAE, None, [{"trainer": "dl-top_k", "k": 5, **SMALL}], 5, says="None")
    raises(TypeError, dlrn.trainSAE, batches(), [{"k": 3}], 5, says="trainer")


def reference():
    """dictionary_learning, with stand-ins for what its buffers and texts import."""
    placed = [name for name in ("nnsight", "datasets", "zstandard", "wandb") if name not in sys.modules]
    for name in placed:
        sys.modules[name] = module = types.ModuleType(name)
        module.LanguageModel = module.load_dataset = None
    try:
        import dictionary_learning.training as training
        import dictionary_learning.trainers as classes
        import dictionary_learning.trainers.standard as standard
        import dictionary_learning.trainers.matryoshka_batch_top_k as matryoshka
    except ImportError as error:
        skip(f"no {error.name}")
    finally:
        for name in placed:  # transformers asks whether they are installed
            del sys.modules[name]
    found = {name: getattr(classes, name, None) or getattr(standard, name, None) or getattr(matryoshka, name, None)
             for name in CLASSES}
    return training, found


def test_against_dictionary_learnings_own_trainSAE():
    training, classes = reference()
    for normalise in (False, True):
        for name, settings in OF_CLASS.items():
            data, again = ([torch.from_numpy(x * 3) for x in batches()] for _ in "12")    # it writes to them
            words = {"steps": 13, "layer": 0, "lm_name": "none", "device": "cpu", **SMALL, **settings}
            if name == "GatedAnnealTrainer":
                words.pop("submodule_name", None)
            place = folder("training-reference")
            started = {}

            class Kept(classes[name]):
                """Keeps the first weights, and writes itself as the class that it is."""

                def __init__(self, **given):
                    super().__init__(**given)
                    with torch.no_grad():
                        for parameter in self.ae.parameters():
                            if parameter.ndim == 1:
                                parameter += 0.01 * torch.arange(len(parameter)) / len(parameter)
                    torch.save(self.ae.state_dict(), place / "first.pt")
                    started["class"] = self.config["dict_class"]

            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                training.trainSAE(data, [{"trainer": Kept, "seed": 1, **words}], 12, save_dir=str(place / "theirs"),
                                  normalize_activations=normalise, device="cpu")
            first = getattr(dlrn, started["class"]).from_pretrained(place / "first.pt")
            theirs = getattr(dlrn, started["class"]).from_pretrained(place / "theirs" / "trainer_0" / "ae.pt")
            ours = dlrn.trainSAE(again, [{"trainer": name, "init": first, "compat": True, **words}], 12,
                                 normalize_activations=normalise)
            a, b = state(ours), state(theirs)
            for key in a:
                scale = max(np.abs(b[key]).max(), 1e-3)
                far = np.abs(a[key].astype(np.float64) - b[key]).max() / scale
                assert far < (5e-5 if normalise else 5e-6), f"{name}, normalised {normalise}: {key} is {far:.2g} off"


# ---- logging

def test_logs_of_wandb():
    runs = []

    class Run:
        def __init__(self, **words):
            self.words, self.logs, self.finished = words, [], False
            runs.append(self)

        def log(self, values, step=None):
            self.logs.append((step, values))

        def finish(self):
            self.finished = True

    kept = sys.modules.get("wandb")
    sys.modules["wandb"] = types.SimpleNamespace(init=lambda **words: Run(**words))
    try:
        configs = [{"trainer": name, "wandb_name": "w", **SMALL, **OF_CLASS[name]} for name in
                   ("TopKTrainer", "BatchTopKTrainer", "StandardTrainer")]
        dlrn.trainSAE(batches(), configs, 12, use_wandb=True, wandb_entity="e", wandb_project="p", log_steps=5,
                      run_cfg={"note": 1})
        sys.modules["wandb"] = None
        raises(ImportError, dlrn.trainSAE, batches(), configs, 12, use_wandb=True, says="pip install wandb")
    finally:
        if kept is None:
            del sys.modules["wandb"]
        else:
            sys.modules["wandb"] = kept
    assert [run.words["name"] for run in runs] == ["w_trainer_0", "w_trainer_1", "w_trainer_2"]
    for config, run in zip(configs, runs):
        assert run.finished and run.words["project"] == "p" and run.words["config"]["note"] == 1
        assert [step for step, _ in run.logs] == [0, 5, 10]
        trainer = getattr(trainers, config["trainer"])(**{k: v for k, v in config.items() if k != "trainer"})
        for i, x in enumerate(batches()):
            before = trainer.finish()
            stats = trainer.step(x)
            if i % 5:
                continue
            logged = dict(run.logs)[i]
            if config["trainer"] == "BatchTopKTrainer":
                before.formula.gate, before.formula.select = "relu", "batch_top_k"
            rest = x - before(x)
            explained = 1 - rest.var(axis=0, ddof=1).sum() / x.var(axis=0, ddof=1).sum()
            assert abs(logged["frac_variance_explained"] - explained) < 1e-4, (config["trainer"], i)
            assert logged["loss"] == stats.loss and logged["l0"] == stats.l0


# ---- evaluation

def by_formula(ae, x):
    """dictionary_learning's figures of one batch."""
    x = x.astype(np.float64)
    x_hat, f = (part.astype(np.float64) for part in ae(x.astype(np.float32), output_features=True))
    norm = np.linalg.norm
    return {"l2_loss": norm(x - x_hat, axis=-1).mean(), "l1_loss": np.abs(f).sum(axis=-1).mean(),
            "l0": (f != 0).sum(axis=-1).mean(),
            "frac_variance_explained": 1 - (x - x_hat).var(axis=0).sum() / x.var(axis=0).sum(),
            "cossim": ((x * x_hat).sum(axis=-1) / norm(x, axis=-1) / norm(x_hat, axis=-1)).mean(),
            "l2_ratio": (norm(x_hat, axis=-1) / norm(x, axis=-1)).mean(),
            "relative_reconstruction_bias": (x_hat ** 2).sum(axis=-1).mean() / (x * x_hat).sum(axis=-1).mean()}, f


def a_dictionary():
    return dlrn.trainSAE(batches(), D, F, 1e-3, 0.05, warmup_steps=1, log_steps=None, verbose=False)


def test_figures_of_dictionary_learning():
    ae = a_dictionary()
    found = dlrn.evaluate(ae, iter([X[:300], X[300:500], X[500:]]), n_batches=2)
    parts = [by_formula(ae, X[:300]), by_formula(ae, X[300:500])]
    fired = sum((f != 0).sum(axis=0) for _, f in parts)
    expected = {key: (parts[0][0][key] + parts[1][0][key]) / 2 for key in parts[0][0]}
    expected["frac_alive"] = (fired > 0).mean()
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert abs(found[key] - value) < 1e-5 * max(abs(value), 1), (key, found[key], value)
    few = dlrn.evaluate(ae, iter([X[:1], X[1:2]]), n_batches=2)
    assert few["frac_alive"] == (by_formula(ae, X[:2])[1] != 0).any(axis=0).mean()
    normed = dlrn.evaluate(ae, iter([X[:300]]), normalize_batch=True, device="cpu")
    scaled = X[:300] * (D ** 0.5 / np.linalg.norm(X[:300], axis=-1).mean())
    assert abs(normed["l2_loss"] - by_formula(ae, scaled)[0]["l2_loss"]) < 1e-5
    raises(StopIteration, dlrn.evaluate, ae, iter([X]), n_batches=2, says="n_batches")
    raises(ValueError, dlrn.evaluate, ae, iter([X]), n_batches=0, says="n_batches")
    raises(TypeError, dlrn.evaluate, object(), iter([X]), says="object")
    raises(TypeError, dlrn.evaluate, ae, says="rows are missing")
    raises(dlrn.ShapeError, dlrn.evaluate, ae, [np.ones((4, 2 * D), np.float32)], says=str(2 * D))


def test_figures_of_the_library():
    ae, place = a_dictionary(), folder("training-figures")
    np.save(place / "x.npy", X)
    ae.save_as(place / "ae", layout="dictionary_learning")
    told = json.loads(program("eval", "--dict", place / "ae", "--data", place / "x.npy", "--rows", -1, "--json"))
    found = {"array": dlrn.evaluate(ae, X), "path": dlrn.evaluate(ae, place / "x.npy"),
             "list": dlrn.evaluate(ae, list(batches())), "f64": dlrn.evaluate(ae, X.astype(np.float64)),
             "source": dlrn.evaluate(ae, dlrn.source_of(batches())), "pair": dlrn.evaluate(ae, (X, X))}
    fired = (ae.encode(X) != 0).sum(axis=0)
    for name, metrics in found.items():
        assert metrics.rows == ROWS and np.array_equal(metrics.fired, fired), name
        assert metrics.l0 == found["array"].l0 and metrics.saelens.l1 == found["array"].saelens.l1, name
        for key in ("mse_loss", "l2_loss", "variance_explained", "l0", "cosine", "l2_ratio"):
            if key in told:
                assert f"{metrics[key]:.6g}" == f"{told[key]:.6g}", (name, key, metrics[key], told[key])
    assert dict(found["array"])["l0"] == found["array"].l0 and "dead" in found["array"].asdict()
    assert dlrn.evaluate(ae, X, rows=100).rows == 100
    seen = []
    dlrn.evaluate(ae, np.concatenate([X] * 9), progress=seen.append)
    assert seen == [2048, 4096, 6144, 8192, 10240, 9 * ROWS]
    compat = dlrn.evaluate(ae, X, compat=True)
    assert abs(compat.mse_loss - compat.l2_loss ** 2) < 1e-9
    raises(ValueError, dlrn.evaluate, ae, X[:, 1:], says=str(D))
    raises(ValueError, dlrn.evaluate, ae, X, sparsity="l3", says="l3")
    bad = X.copy()
    bad[5, 5] = np.nan
    raises(ValueError, dlrn.evaluate, ae, bad)
    with dlrn.Evaluator(ae) as evaluator:
        evaluator.add(X)
        counts, edges = evaluator.histogram(10)
        assert counts.sum() == (fired > 0).sum() and len(edges) == 11
    figures = dlrn.weight_figures(ae)
    norms = np.linalg.norm(ae.encoder.weight, axis=1)
    assert np.allclose(figures.each["encoder_norm"], norms, rtol=1e-6)
    assert abs(figures["encoder_norm"] - norms.mean()) < 1e-5 * norms.mean()


def test_figures_of_layers():
    trainer = dlrn.Trainer("cc-l1", activation_dim=D, dict_size=F, layers=2, warmup_steps=1)
    trainer.step(X[:200].reshape(-1, 2, D // 2))
    ae = trainer.finish()
    found, rest = dlrn.evaluate(ae, X), (X - np.asarray(ae(X)).reshape(X.shape)).reshape(-1, 2, D // 2)
    assert found.layers == 2 and len(found.layer) == 2
    for layer, part in zip(found.layer, (rest.astype(np.float64) ** 2).sum(axis=2).mean(axis=0)):
        assert abs(layer.mse_loss - part) < 1e-5 * part


def test_the_loss_of_a_model():
    from small_models import TEXTS, model

    import dlrn.models as models

    language_model = model("neox")
    submodule = "gpt_neox.layers.2"
    rows = models.rows_at(language_model, submodule, TEXTS[:2])
    d = int(rows.shape[1])
    trainer = dlrn.Trainer("dl-top_k", iter([rows] * 20), k=16, dict_size=4 * d, warmup_steps=1, lr=3e-3)
    ae = trainer.train(verbose=False)

    class Buffer:
        model, submodule, data = language_model, "gpt_neox.layers.2", iter([rows] * 9)

        def __iter__(self):
            return self

        def __next__(self):
            return next(self.data)

        def text_batch(self, batch_size=None):
            return TEXTS[:batch_size or 4]

    found = dlrn.evaluate(ae, Buffer(), max_len=32, batch_size=3, n_batches=2)
    losses = [float(x) for x in models.loss_recovered(TEXTS[:3], language_model, submodule, ae, max_len=32)]
    for key, value in zip(("loss_original", "loss_reconstructed", "loss_zero"), losses):
        assert abs(found[key] - value) < 1e-6, (key, found[key], value)
    assert abs(found["frac_recovered"] - (losses[1] - losses[2]) / (losses[0] - losses[2])) < 1e-6
    march = dlrn.evaluate(language_model, submodule, ae, Buffer(), max_len=32, batch_size=3, entropy=True)
    assert list(march) == ["mse_loss", "sparsity_loss", "variance_explained", "l0", "percent_alive", "loss_original",
                           "loss_reconstructed", "loss_zero", "percent_recovered"]
    assert abs(march["loss_zero"] - losses[2]) < 1e-6 and march["l0"] == 16


def test_names_of_modules():
    """Imports of dictionary_learning's README and demonstrations, with the first word changed."""
    from dlrn.evaluation import evaluate
    from dlrn.trainers.batch_top_k import BatchTopKSAE, BatchTopKTrainer
    from dlrn.trainers.gated_anneal import GatedAnnealTrainer
    from dlrn.trainers.gdm import GatedSAETrainer
    from dlrn.trainers.jumprelu import JumpReluTrainer
    from dlrn.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE, MatryoshkaBatchTopKTrainer
    from dlrn.trainers.p_anneal import PAnnealTrainer
    from dlrn.trainers.standard import StandardTrainer, StandardTrainerAprilUpdate
    from dlrn.trainers.top_k import AutoEncoderTopK, TopKTrainer
    from dlrn.trainers.trainer import SAETrainer
    from dlrn.training import trainSAE

    assert trainSAE is dlrn.trainSAE and evaluate is dlrn.evaluate
    count = collections.Counter(issubclass(kind, SAETrainer) for kind in (
        BatchTopKTrainer, GatedAnnealTrainer, GatedSAETrainer, JumpReluTrainer, MatryoshkaBatchTopKTrainer,
        PAnnealTrainer, StandardTrainer, StandardTrainerAprilUpdate, TopKTrainer))
    assert count == {True: len(CLASSES)}
    assert (AutoEncoderTopK, BatchTopKSAE, MatryoshkaBatchTopKSAE) == (
        dlrn.AutoEncoderTopK, dlrn.BatchTopKSAE, dlrn.MatryoshkaBatchTopKSAE)
    trainer = TopKTrainer(10, D, F, 5, 0, "none", warmup_steps=1)
    assert trainer.settings["k"] == 5 and trainer.config["lm_name"] == "none"
    raises(TypeError, TopKTrainer, 10, D, F, 5, 0, "none", 7, says="6")
    raises(TypeError, TopKTrainer, 10, D, F, 5, k=3, says="k")

    class Mine(TopKTrainer):
        pass

    ae = trainSAE(batches(), [{"trainer": Mine, "k": 5, **SMALL}], 2, progress=False)
    assert isinstance(ae, AutoEncoderTopK)


main(globals())
