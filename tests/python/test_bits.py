"""The same bits as the program's, on the same rows: encoding, decoding, training and what it logs, evaluation."""
import json

import numpy as np
import torch

from harness import folder, main, program
from things import COMMON, D, F, RECIPES, flags, here, rows, trained
import dlrn

PLACE = here("bits")
X = rows()


def test_encode_and_decode():
    for recipe in RECIPES:
        path = trained(PLACE, recipe)
        for command, out in (("encode", "f.npy"), ("reconstruct", "y.npy")):
            program(command, "--dict", path, "--data", PLACE / "x.npy", "--out", PLACE / out)
        f, y = np.load(PLACE / "f.npy"), np.load(PLACE / "y.npy")
        ae = dlrn.Dictionary.from_pretrained(path)
        assert np.array_equal(ae.encode(X), f), recipe
        assert np.array_equal(ae(X), y), recipe
        assert np.array_equal(ae.encode(X, sparse=True).toarray(), f), recipe
        np.save(PLACE / "f.npy", f)
        program("decode", "--dict", path, "--data", PLACE / "f.npy", "--out", PLACE / "y.npy")
        assert np.array_equal(ae.decode(f), np.load(PLACE / "y.npy")), recipe
        ae.close()


def test_parameters():
    for recipe in RECIPES:
        path = trained(PLACE, recipe)
        ae = dlrn.Dictionary.from_pretrained(path)
        state = torch.load(path / "ae.pt", weights_only=True)
        for name, value in ae.state_dict().items():
            assert np.array_equal(np.asarray(value), state[name].numpy()), (recipe, name)


def settings_of(recipe):
    return {"activation_dim": D, "dict_size": F, **COMMON, **RECIPES[recipe]}


def logged(path):
    return [json.loads(line) for line in (path / "log.jsonl").read_text().splitlines()]


def same_state(path, dictionary, what):
    again = folder("bits-saved") / "ae.pt"
    dictionary.save(again)
    ours, theirs = (torch.load(p, weights_only=True) for p in (again, path / "ae.pt"))
    assert set(ours) == set(theirs), (what, set(ours) ^ set(theirs))
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), f"{what}: {name} differs"


def test_training_step_by_step():
    for recipe in RECIPES:
        path = trained(PLACE, recipe)
        trainer = dlrn.Trainer(recipe, **settings_of(recipe))
        stats = [trainer.step(X[100 * i:100 * i + 100]) for i in range(COMMON["steps"])]
        same_state(path, trainer.dictionary, recipe)
        for line in logged(path):
            found = stats[line["step"]]
            for key in ("loss", "mse_loss", "sparsity_loss", "l0", "lr"):
                value = float(getattr(found, key))
                assert f"{value:.6g}" == f"{line[key]:.6g}", (recipe, line["step"], key, value, line[key])


def test_training_from_data():
    for recipe in RECIPES:
        path = trained(PLACE, recipe)
        batches = [X[i:i + 100] for i in range(0, len(X), 100)]
        for name, data in (("array", X), ("tensor", torch.from_numpy(X)), ("file", PLACE / "x.npy"),
                           ("batches", iter(batches)), ("tensors", (torch.from_numpy(x) for x in batches))):
            with dlrn.Trainer(recipe, data=data, shuffle=False, **settings_of(recipe)) as trainer:
                same_state(path, trainer.train(verbose=False), f"{recipe} from {name}")


def test_training_from_a_shuffled_array():
    """The program's buffer and ours are one: the same rows come in the same order."""
    for recipe in ("reference", "dl-batch_top_k"):
        path = folder("bits-shuffled") / "run"
        settings = {**COMMON, **RECIPES[recipe]}
        program("train", "--data", PLACE / "x.npy", "--recipe", recipe, "--dict-size", F, "--quiet", "--save-dir", path,
                *flags(settings))
        with dlrn.Trainer(recipe, data=X, **settings_of(recipe)) as trainer:
            same_state(path, trainer.train(verbose=False), f"{recipe} from a shuffled array")


def test_trainSAE_of_both_signatures():
    settings = {"lr": 3e-4, "warmup_steps": 2, "steps": 8}
    batches = [X[i:i + 100] for i in range(0, len(X), 100)]
    path = folder("bits-trainSAE") / "run"
    program("train", "--data", PLACE / "x.npy", "--dict-size", F, "--quiet", "--save-dir", path, "--no-shuffle",
            "--batch-size", 100, "--sparsity-penalty", 1e-3, *flags(settings))
    same_state(path, dlrn.trainSAE(iter(batches), D, F, 3e-4, 1e-3, steps=8, warmup_steps=2, verbose=False), "2024")
    path = trained(PLACE, "dl-top_k")
    config = {"trainer": "TopKTrainer", "layer": 0, "lm_name": "none", **settings_of("dl-top_k")}
    del config["batch_size"]
    config["steps"] = 8
    found = dlrn.trainSAE(data=iter(batches), trainer_configs=[config], steps=8)
    same_state(path, found, "today")


def test_evaluation():
    for recipe in RECIPES:
        path = trained(PLACE, recipe)
        theirs = json.loads(program("eval", "--dict", path, "--data", PLACE / "x.npy", "--json"))
        ours = dlrn.evaluate(dlrn.Dictionary.from_pretrained(path), X)
        shared = {key: value for key, value in theirs.items() if isinstance(value, float) and key in ours}
        assert len(shared) >= 4, (list(theirs), list(ours))
        for key, value in shared.items():
            assert f"{ours[key]:.6g}" == f"{value:.6g}", (recipe, key, ours[key], value)


main(globals())
