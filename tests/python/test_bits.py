"""The same bits as the program's, on the same rows: encoding, decoding, training and what it logs, evaluation."""
import json

import numpy as np
import torch

import dlrn
from harness import folder, main, program
from things import COMMON, D, F, RECIPES, here, rows, trained

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


def test_training_from_a_source():
    for recipe in RECIPES:
        path = trained(PLACE, recipe)
        for name, data in (("array", X), ("file", PLACE / "x.npy"), ("uneven batches", uneven())):
            ae = dlrn.trainSAE(data, recipe=recipe, shuffle=False, **settings_of(recipe))
            same_state(path, ae, f"{recipe} from {name}")


def uneven():
    sizes = [1, 7, 300, 92, 100, 500]
    ends = np.cumsum(sizes)
    assert ends[-1] == len(X)
    return (X[end - size:end] for size, end in zip(sizes, ends))


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
