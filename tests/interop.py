"""interop.py BUILD - files and numbers against PyTorch, safetensors, NumPy and SciPy: dictionaries that they save are
read by BUILD/dictlearn, what it writes is read by them, and both compute the same. Closes with `N passed, N failed`.
"""
import io
import json
import os
import pathlib
import shutil
import subprocess
import sys
import threading
import types
import zipfile
from collections import OrderedDict

import numpy as np
import scipy.sparse
import torch
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(pathlib.Path(__file__).parent / "golden"))
from reference import AutoEncoder  # noqa: E402

# dictionary_learning 0.1.0 imports these for its buffers and texts; its classes and its loader use none of them
for name, member in (("nnsight", "LanguageModel"), ("datasets", "load_dataset"), ("zstandard", "ZstdDecompressor")):
    sys.modules[name] = types.ModuleType(name)
    setattr(sys.modules[name], member, object)
import dictionary_learning.dictionary as dl  # noqa: E402
from dictionary_learning.trainers.batch_top_k import BatchTopKSAE  # noqa: E402
from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE  # noqa: E402
from dictionary_learning.trainers.top_k import AutoEncoderTopK  # noqa: E402
from dictionary_learning.utils import load_dictionary  # noqa: E402

BUILD = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "build")
HERE = BUILD / "tmp" / "interop"
D, F, ROWS = 24, 40, 33
NAMES = ["bias", "encoder.weight", "encoder.bias", "decoder.weight"]
CASES = []


def case(function):
    CASES.append(function)
    return function


def dictlearn(*args, stdin=None, status=0):
    """Runs the program; its standard output, or with status 1 its error line."""
    run = subprocess.run([BUILD / "dictlearn", *map(str, args)], input=stdin, capture_output=True)
    assert run.returncode == status, f"{args}: status {run.returncode}: {run.stderr.decode()}"
    return run.stdout if status == 0 else run.stderr.decode()


def check_equal(found, wanted, what):
    found, wanted = np.asarray(found), np.asarray(wanted)
    assert found.shape == wanted.shape, f"{what}: shape {found.shape}, expected {wanted.shape}"
    assert np.array_equal(found, wanted), f"{what}: differs by {np.abs(found - wanted).max()}"


def check_close(found, wanted, what, limit=1e-5):
    found, wanted = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
    assert found.shape == wanted.shape, f"{what}: shape {found.shape}, expected {wanted.shape}"
    worst = np.abs(found - wanted).max() / max(1e-30, np.abs(wanted).max())
    assert worst <= limit, f"{what}: off by {worst:.3g} of the largest value"


def make_dictionary():
    torch.manual_seed(1)
    ae = AutoEncoder(D, F)
    with torch.no_grad():
        ae.bias.copy_(torch.randn(D) / 4)
    return ae


AE = make_dictionary()
X = np.random.default_rng(2).standard_normal((ROWS, D)).astype(np.float32)


def state():
    return OrderedDict((name, t.detach().clone()) for name, t in AE.state_dict().items())


# ---- what others save


def check_reads(path, wanted=None):
    """The program sees the four tensors of `wanted` (any dtype) in path: sizes, values bit for bit, features."""
    wanted = {k: v.float() for k, v in (wanted or state()).items()}
    told = json.loads(dictlearn("inspect", path, "--json"))
    assert (told["activation_dim"], told["dict_size"], told["family"]) == (D, F, "AutoEncoder"), told
    dictlearn("convert", path, HERE / "read.safetensors")
    found = load_file(HERE / "read.safetensors")
    for name in NAMES:
        check_equal(found[name], wanted[name], f"{path}: {name}")
    ae = AutoEncoder(D, F)
    ae.load_state_dict(wanted)
    np.save(HERE / "x.npy", X)
    dictlearn("encode", "--dict", path, "--data", HERE / "x.npy", "--out", HERE / "f.npy")
    with torch.no_grad():
        check_close(np.load(HERE / "f.npy"), ae.encode(torch.from_numpy(X)), f"{path}: features")


def as_type(dtype):
    return OrderedDict((k, v.to(dtype)) for k, v in state().items())


@case
def torch_zip_and_legacy_in_every_type():
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        for new in (True, False):
            path = HERE / f"{str(dtype)[6:]}_{'zip' if new else 'legacy'}.pt"
            torch.save(as_type(dtype), path, _use_new_zipfile_serialization=new)
            check_reads(path, as_type(dtype))


def views():
    """The same numbers as strided views: a transpose, steps and offsets in larger tensors, one shared storage."""
    s = state()
    flat = torch.cat([t.flatten() for t in s.values()])
    wide = torch.randn(2 * F, D + 3)
    wide[1::2, 2:-1] = s["encoder.weight"]
    strided = OrderedDict(s, **{"encoder.weight": wide[1::2, 2:-1],
                                "decoder.weight": s["decoder.weight"].t().contiguous().t(),
                                "bias": torch.stack([s["bias"], s["bias"]], 1)[:, 1]})
    parts = torch.split(flat, [t.numel() for t in s.values()])
    shared = OrderedDict((k, p.view(t.shape)) for (k, t), p in zip(s.items(), parts))
    return {"strided": strided, "shared": shared}


@case
def torch_views_and_shared_storages():
    for name, tensors in views().items():
        for new in (True, False):
            path = HERE / f"{name}_{new}.pt"
            torch.save(tensors, path, _use_new_zipfile_serialization=new)
            check_reads(path)


@case
def torch_modules_and_parameters():
    torch.save(AE.state_dict(), HERE / "module.pt")
    check_reads(HERE / "module.pt")
    torch.save(dict(AE.named_parameters()), HERE / "parameters.pt")
    check_reads(HERE / "parameters.pt")
    adam = torch.optim.Adam(AE.parameters())
    backup = {"ae": AE.state_dict(), "step": 3, "optimizer": adam.state_dict(), "config": {"lr": 1e-3, "wandb": None}}
    torch.save(backup, HERE / "backup.pt")
    check_reads(HERE / "backup.pt")


@case
def torch_protocols():
    for protocol in (2, 3, 4, 5):
        for new in (True, False):
            path = HERE / f"protocol_{protocol}_{new}.pt"
            torch.save(state(), path, pickle_protocol=protocol, _use_new_zipfile_serialization=new)
            check_reads(path)


@case
def torch_values_beside_tensors():
    tensors = dict(AE.named_parameters())
    tensors["bias"].note = "a parameter with an attribute"
    tensors["encoder.bias"] = tensors["encoder.bias"].detach().clone()
    tensors["encoder.bias"].note = "a tensor with an attribute"
    others = {"dtype": torch.float32, "device": torch.device("cpu"), "size": torch.Size([1, 2]), "names": {"a", "b"},
              "bytes": b"abc", "number": 1j, "large": 2**100, "layout": torch.strided, "list": [None, (1.5, True)]}
    for new in (True, False):
        path = HERE / f"beside_{new}.pt"
        torch.save({**tensors, "others": others}, path, _use_new_zipfile_serialization=new)
        check_reads(path)
    del tensors["bias"].note


@case
def torch_repeated_elements():
    tensors = OrderedDict(state(), bias=torch.full((1,), 0.25).expand(D))
    torch.save(tensors, HERE / "expanded.pt")
    check_reads(HERE / "expanded.pt", tensors)


@case
def torch_lazy_sign_is_refused():
    negated = torch.complex(torch.zeros(D), state()["bias"]).conj().imag
    assert negated.is_neg()
    torch.save(OrderedDict(state(), bias=negated), HERE / "negated.pt")
    said = dictlearn("convert", HERE / "negated.pt", HERE / "never.pt", status=1)
    assert "a tensor marked as negated or conjugated" in said, said


@case
def torch_without_sums():
    torch.serialization.set_crc32_options(False)
    torch.save(state(), HERE / "nosums.pt")
    torch.serialization.set_crc32_options(True)
    check_reads(HERE / "nosums.pt")


@case
def torch_whole_module_is_refused():
    torch.save(AE, HERE / "pickled.pt")
    said = dictlearn("convert", HERE / "pickled.pt", HERE / "never.pt", status=1)
    assert "a pickled module or another object, 'reference.AutoEncoder'" in said and said.count("\n") == 1, said
    assert "Save its state_dict() instead" in said, said
    assert not (HERE / "never.pt").exists()


@case
def torch_wrapped_state_dicts():
    compiled = {"_orig_mod." + name: value for name, value in state().items()}
    around = {"list": [state()], "dict": {"epoch": 3, "model": state(), "optimizer": {"state": {0: state()["bias"]}}},
              "ddp": torch.nn.DataParallel(AE).state_dict(), "nested": {"state_dict": {"module": compiled}}}
    for name, value in around.items():
        for new in (True, False):
            path = HERE / f"{name}_{new}.pt"
            torch.save(value, path, _use_new_zipfile_serialization=new)
            check_reads(path)
    torch.save({"model": state(), "ema": state()}, HERE / "two.pt")
    said = dictlearn("convert", HERE / "two.pt", HERE / "never.pt", status=1)
    assert "found two, under 'model.' and under 'ema.'" in said, said


@case
def torch_damage_is_told():
    torch.save(state(), HERE / "whole.pt")
    damaged = bytearray((HERE / "whole.pt").read_bytes())
    damaged[len(damaged) // 2] ^= 4
    (HERE / "damaged.pt").write_bytes(damaged)
    said = dictlearn("convert", HERE / "damaged.pt", HERE / "never.pt", status=1)
    assert "is damaged: its CRC-32 is not" in said, said


@case
def safetensors_and_numpy():
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        save_file(dict(as_type(dtype)), HERE / "saved.safetensors", metadata={"format": "pt"})
        check_reads(HERE / "saved.safetensors", as_type(dtype))
    arrays = {name: t.numpy() for name, t in state().items()}
    np.savez(HERE / "plain.npz", **arrays)
    check_reads(HERE / "plain.npz")
    np.savez_compressed(HERE / "packed.npz", format="AutoEncoder", **arrays)
    check_reads(HERE / "packed.npz")
    np.savez(HERE / "mixed.npz", **{name: np.asfortranarray(a).astype(">f8") for name, a in arrays.items()})
    check_reads(HERE / "mixed.npz")


# ---- what we write


@case
def written_pt_in_torch():
    torch.save(state(), HERE / "from.pt")
    dictlearn("convert", HERE / "from.pt", HERE / "to.pt")
    for mapped in (False, True):
        found = torch.load(HERE / "to.pt", weights_only=True, mmap=mapped)
        assert isinstance(found, OrderedDict) and list(found) == NAMES, list(found)
        for name in NAMES:
            assert found[name].dtype == torch.float32 and found[name].is_contiguous()
            check_equal(found[name], state()[name], name)
        AutoEncoder(D, F).load_state_dict(found, strict=True)
    with zipfile.ZipFile(HERE / "to.pt") as z:
        assert z.testzip() is None


@case
def written_safetensors_and_npz():
    torch.save(state(), HERE / "from.pt")
    dictlearn("convert", HERE / "from.pt", HERE / "to.safetensors")
    dictlearn("convert", HERE / "from.pt", HERE / "to.npz")
    tensors, arrays = load_file(HERE / "to.safetensors"), np.load(HERE / "to.npz")
    assert sorted(tensors) == sorted(arrays) == sorted(NAMES)
    for name in NAMES:
        check_equal(tensors[name], state()[name], name)
        check_equal(arrays[name], state()[name], name)
    with zipfile.ZipFile(HERE / "to.npz") as z:
        assert z.testzip() is None


def there_and_back(first, last):
    dictlearn("convert", first, last)
    return pathlib.Path(last).read_bytes()


@case
def conversions_lose_nothing():
    torch.save(state(), HERE / "from.pt")
    wanted = there_and_back(HERE / "from.pt", HERE / "a.pt")
    there_and_back(HERE / "a.pt", HERE / "b.npz")
    there_and_back(HERE / "b.npz", HERE / "c.safetensors")
    assert there_and_back(HERE / "c.safetensors", HERE / "d.pt") == wanted


# ---- numbers


def saved_dictionary():
    torch.save(state(), HERE / "ae.pt")
    return HERE / "ae.pt"


def features():
    with torch.no_grad():
        return AE.encode(torch.from_numpy(X))


def rebuilt(f):
    with torch.no_grad():
        return AE.decode(torch.as_tensor(np.asarray(f, np.float32)))


@case
def encode_decode_reconstruct():
    ae, out = saved_dictionary(), HERE / "out.npy"
    forms = {"f4": X, "f2": X.astype("f2"), "f8": X.astype("f8"), "fortran": np.asfortranarray(X),
             "big-endian": X.astype(">f4")}
    for name, x in forms.items():
        np.save(HERE / "x.npy", x)
        with torch.no_grad():
            f = AE.encode(torch.from_numpy(x.astype("<f4")))
        dictlearn("encode", "--dict", ae, "--data", HERE / "x.npy", "--out", out)
        found = np.load(out)
        assert found.dtype == np.float32 and found.flags.c_contiguous
        check_close(found, f, f"{name}: encode")
        dictlearn("reconstruct", "--dict", ae, "--data", HERE / "x.npy", "--out", out)
        check_close(np.load(out), rebuilt(f), f"{name}: reconstruct")
    np.save(HERE / "f.npy", features().numpy())
    dictlearn("decode", "--dict", ae, "--data", HERE / "f.npy", "--out", out)
    check_close(np.load(out), rebuilt(features()), "decode")


@case
def sparse_features_in_scipy():
    ae, out = saved_dictionary(), HERE / "f.npz"
    np.save(HERE / "x.npy", X)
    dictlearn("encode", "--dict", ae, "--data", HERE / "x.npy", "--out", out, "--sparse")
    found = scipy.sparse.load_npz(out)
    assert found.format == "csr" and found.dtype == np.float32 and found.has_sorted_indices
    found.check_format(full_check=True)
    check_close(found.toarray(), features(), "sparse features")
    assert found.nnz == int((features() > 0).sum())
    with zipfile.ZipFile(out) as z:
        assert z.testzip() is None
    dictlearn("decode", "--dict", ae, "--data", out, "--out", HERE / "out.npy")
    check_close(np.load(HERE / "out.npy"), rebuilt(features()), "decode of our own")


def shuffled(codes):
    """The same matrix, the entries of a row in another order."""
    for begin, end in zip(codes.indptr, codes.indptr[1:]):
        codes.indices[begin:end] = codes.indices[begin:end][::-1]
        codes.data[begin:end] = codes.data[begin:end][::-1]
    codes.has_sorted_indices = False
    return codes


@case
def scipy_matrices_are_decoded():
    ae, path = saved_dictionary(), HERE / "s.npz"
    f = features().numpy()
    wide = scipy.sparse.csr_matrix(f.astype("f8"))
    wide.indices, wide.indptr = wide.indices.astype("i8"), wide.indptr.astype("i8")
    forms = {"f4": scipy.sparse.csr_matrix(f), "i8 and f8": wide, "array": scipy.sparse.csr_array(f),
             "shuffled": shuffled(scipy.sparse.csr_matrix(f))}
    for name, matrix in forms.items():
        for compressed in (False, True):
            scipy.sparse.save_npz(path, matrix, compressed=compressed)
            dictlearn("decode", "--dict", ae, "--data", path, "--out", HERE / "out.npy")
            check_close(np.load(HERE / "out.npy"), rebuilt(f), f"{name}, compressed {compressed}")
    for form in ("csc", "coo", "bsr"):
        scipy.sparse.save_npz(path, forms["f4"].asformat(form))
        said = dictlearn("decode", "--dict", ae, "--data", path, "--out", HERE / "never.npy", status=1)
        assert f"s.npz: expected a matrix of format csr, found '{form}'" in said, said
    scipy.sparse.save_npz(path, scipy.sparse.csr_matrix(np.ones((2, F + 1), np.float32)))
    said = dictlearn("decode", "--dict", ae, "--data", path, "--out", HERE / "never.npy", status=1)
    assert "s.npz" in said and str(F) in said and str(F + 1) in said, said
    assert not (HERE / "never.npy").exists()


# ---- pipes


def npy_bytes(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


@case
def standard_input_and_output():
    ae = saved_dictionary()
    piped = dictlearn("encode", "--dict", ae, "--data", "-", "--out", "-", stdin=npy_bytes(X))
    check_close(np.load(io.BytesIO(piped)), features(), "encode")
    piped = dictlearn("decode", "--dict", ae, "--data", "-", "--out", "-", stdin=piped)
    check_close(np.load(io.BytesIO(piped)), rebuilt(features()), "decode")
    piped = dictlearn("reconstruct", "--dict", ae, "--data", "-", "--out", "-", stdin=npy_bytes(np.asfortranarray(X)))
    check_close(np.load(io.BytesIO(piped)), rebuilt(features()), "reconstruct")
    cut = npy_bytes(X)[:-1]
    said = dictlearn("encode", "--dict", ae, "--data", "-", "--out", HERE / "never.npy", stdin=cut, status=1)
    assert "standard input" in said, said


@case
def named_pipes():
    """A dictionary and rows through FIFOs, which can be opened only once."""
    pipes = {HERE / "d.fifo": saved_dictionary().read_bytes(), HERE / "x.fifo": npy_bytes(X)}
    for path in pipes:
        os.mkfifo(path)
    writers = [threading.Thread(target=path.write_bytes, args=(data,)) for path, data in pipes.items()]
    for w in writers:
        w.start()
    dictlearn("encode", "--dict", HERE / "d.fifo", "--data", HERE / "x.fifo", "--out", HERE / "f.npy")
    for w in writers:
        w.join()
    for path in pipes:
        path.unlink()
    check_close(np.load(HERE / "f.npy"), features(), "encode")


# ---- training


@case
def checkpoints_in_torch():
    run = HERE / "run"
    np.save(HERE / "rows.npy", np.random.default_rng(3).standard_normal((512, D)).astype(np.float32))
    dictlearn("train", "--data", HERE / "rows.npy", "--dict-size", F, "--steps", 8, "--batch-size", 64, "--n-ctxs", 4,
              "--save-steps", 4, "--log-steps", 2, "--warmup-steps", 2, "--save-dir", run, "--quiet")
    files = [run / "ae.pt", *sorted((run / "checkpoints").glob("ae_*.pt"))]
    assert len(files) >= 2, files
    for path in files:
        ae = AutoEncoder(D, F)
        ae.load_state_dict(torch.load(path, weights_only=True), strict=True)
        check_close(ae.decoder.weight.detach().norm(dim=0), np.ones(F), f"{path}: norms of the atoms")
    config = json.loads((run / "config.json").read_text())
    config = config.get("trainer", config)
    assert (config["dict_class"], config["activation_dim"], config["dict_size"]) == ("AutoEncoder", D, F), config
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [r["step"] for r in log] == sorted(r["step"] for r in log) and all(r["loss"] > 0 for r in log), log
    load_file(run / "state.safetensors")
    (HERE / "sweep").mkdir()
    shutil.copytree(run, HERE / "sweep" / "trainer_0")
    np.save(HERE / "x.npy", X)
    for d in (run, HERE / "sweep", run / "ae.pt"):
        dictlearn("encode", "--dict", d, "--data", HERE / "x.npy", "--out", HERE / "f.npy")
        ae = AutoEncoder(D, F)
        ae.load_state_dict(torch.load(run / "ae.pt", weights_only=True))
        with torch.no_grad():
            check_close(np.load(HERE / "f.npy"), ae.encode(torch.from_numpy(X)), f"{d}: features")


# ---- dictionary_learning 0.1.0


K = 7
RECIPES = {"reference": dl.AutoEncoder, "dl-top_k": AutoEncoderTopK, "dl-jump_relu": dl.JumpReluAutoEncoder}


def check_same(path, theirs, what, *flags):
    """Features and reconstructions of the program are those of the library's object."""
    np.save(HERE / "x.npy", X)
    with torch.no_grad():
        f, x_hat = theirs.encode(torch.from_numpy(X)), theirs(torch.from_numpy(X))
    for command, wanted in (("encode", f), ("reconstruct", x_hat)):
        dictlearn(command, "--dict", path, "--data", HERE / "x.npy", "--out", HERE / "out.npy", *flags)
        check_close(np.load(HERE / "out.npy"), wanted, f"{what}: {command}", 3e-6)
    assert 0 < int((f > 0).sum()) < f.numel(), f"{what}: all features are off or on"


@case
def dictionary_learning_opens_what_recipes_train():
    np.save(HERE / "rows.npy", np.random.default_rng(3).standard_normal((512, D)).astype(np.float32))
    for recipe, kind in RECIPES.items():
        run = HERE / recipe
        k = ["--k", K] if recipe == "dl-top_k" else []
        dictlearn("train", "--data", HERE / "rows.npy", "--dict-size", F, "--steps", 8, "--batch-size", 64, "--n-ctxs",
                  4, "--warmup-steps", 2, "--lr", 0.01, "--recipe", recipe, "--save-dir", run, "--quiet", *k)
        theirs, config = load_dictionary(str(run), "cpu")
        assert type(theirs) is kind and config["settings"]["recipe"] == recipe, type(theirs)
        check_same(run, theirs, recipe)
        strict = kind(D, F, K) if k else kind(D, F)
        strict.load_state_dict(torch.load(run / "ae.pt", weights_only=True), strict=True)
        check_same(run, strict, f"{recipe}, strictly")
        check_same(run, kind.from_pretrained(run / "ae.pt"), f"{recipe}, the file alone")


def drawn(ae):
    """Normal numbers in all parameters; thresholds that about half of the features pass."""
    with torch.no_grad():
        for name, p in ae.named_parameters():
            p.copy_(torch.randn(p.shape) * (0.2 if p.ndim == 1 else 1 / D**0.5))
            if name == "threshold":
                p.abs_()
    return ae


@case
def dictionary_learning_saves_what_we_read():
    torch.manual_seed(4)
    made = (dl.AutoEncoder(D, F), AutoEncoderTopK(D, F, K), dl.JumpReluAutoEncoder(D, F), dl.GatedAutoEncoder(D, F),
            BatchTopKSAE(D, F, K), MatryoshkaBatchTopKSAE(D, F, K, [8, 12, 20]))
    for ae in map(drawn, made):
        kind = type(ae).__name__
        folder, alone = HERE / "theirs" / kind, HERE / f"{kind}.pt"
        folder.mkdir(parents=True)
        trainer = {"dict_class": kind, "activation_dim": D, "dict_size": F, "k": K}
        (folder / "config.json").write_text(json.dumps({"trainer": trainer}))
        for path in (folder / "ae.pt", alone):
            torch.save(ae.state_dict(), path)
        check_same(folder, ae, kind)
        check_same(alone, ae, f"{kind}, the file alone", "--layout", kind)
        told = json.loads(dictlearn("inspect", folder, "--json"))
        assert (told["family"], told["layout"]) == (kind, "dictionary_learning"), told
        assert told["formula"].get("k", K) == K, told
        dictlearn("convert", folder, HERE / "again.pt")
        again = torch.load(HERE / "again.pt", weights_only=True)
        assert list(again) == list(ae.state_dict()), list(again)
        for name, t in ae.state_dict().items():
            assert again[name].dtype == t.dtype, f"{kind}: {name}: {again[name].dtype}"
            check_equal(again[name], t, f"{kind}: {name}")


def main():
    shutil.rmtree(HERE, ignore_errors=True)
    HERE.mkdir(parents=True)
    passed = failed = 0
    for function in CASES:
        try:
            function()
            passed += 1
            print(f"ok   {function.__name__}")
        except Exception as error:  # a failed check, or a library that could not read what we wrote
            failed += 1
            print(f"FAIL {function.__name__}: {type(error).__name__}: {error}")
    print(f"{passed} passed, {failed} failed")
    return failed != 0


if __name__ == "__main__":
    sys.exit(main())
