"""The same bits as the program's, on the same rows: encoding, decoding, training and what it logs, evaluation."""
import json
import warnings

import numpy as np
import torch

from harness import folder, main, program
from things import COMMON, D, F, RECIPES, flags, here, rows, trained
import dlrn

warnings.filterwarnings("ignore", message=".*threshold")  # of runs that are too short to set one
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
        same_state(path, trainer.finish(), recipe)
        for line in logged(path):
            found = stats[line["step"]]
            for key, value in line.items():
                ours = getattr(found, {"mse_loss": "reconstruction_loss", "ghost_loss": "auxiliary_loss",
                                       "sparsity_penalty": "penalty"}.get(key, key), None)
                if ours is not None and key != "k":
                    assert f"{ours:.9g}" == f"{value:.9g}", (recipe, line["step"], key, ours, value)


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
    names = {"percent_alive": "share_alive"}
    for recipe in RECIPES:
        path = trained(PLACE, recipe)
        theirs = json.loads(program("eval", "--dict", path, "--data", PLACE / "x.npy", "--json"))
        ae = dlrn.Dictionary.from_pretrained(path)
        for data in (X, torch.from_numpy(X), PLACE / "x.npy"):
            ours, compared = dlrn.evaluate(ae, data), 0
            for part in ("", "saelens", "saebench"):
                found, wanted = (getattr(ours, part), theirs[part]) if part else (ours, theirs)
                for key, value in wanted.items():
                    mine = getattr(found, names.get(key, key), None)
                    if isinstance(value, float) and isinstance(mine, (int, float)):
                        assert f"{mine:.9g}" == f"{value:.9g}", (recipe, key, mine, value)
                        compared += 1
            assert compared >= 16, (compared, theirs)
        assert ours.fired.sum() == np.count_nonzero(ae.encode(X))


main(globals())
