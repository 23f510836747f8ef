"""Dictionaries and what they rest on: files of every library, state dicts, formulas, the extras of the reference's
classes, results in given memory, Ctrl-C in the middle of a call, what is built."""
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
import types
import warnings

import numpy as np
import torch

from harness import BUILD, ROOT, folder, main, raises
from things import D, F, here, rows, trained
import dlrn
from dlrn._core import ffi, lib

sys.path.insert(0, str(ROOT / "tests" / "golden"))
import pack_layouts  # noqa: E402

PLACE = here("core")
X = rows()
CLASSES = {dlrn.AutoEncoder: {}, dlrn.AutoEncoderNew: {}, dlrn.AutoEncoderTopK: {"k": 5}, dlrn.BatchTopKSAE: {"k": 5},
           dlrn.MatryoshkaBatchTopKSAE: {"k": 5, "group_sizes": [16, 80]}, dlrn.JumpReluAutoEncoder: {},
           dlrn.GatedAutoEncoder: {}}


def of(kind, **settings):
    return kind(D, F, **CLASSES[kind], **{"seed": 3, **settings})


def off(ours, theirs):
    """The largest difference as a share of the largest number."""
    ours, theirs = np.asarray(ours, np.float64).reshape(-1), np.asarray(theirs, np.float64).reshape(-1)
    assert ours.size == theirs.size, (ours.size, theirs.size)
    return np.abs(ours - theirs).max() / np.abs(theirs).max()


# ---- files of every library
GOLDENS = folder("core-goldens")


def unpack():
    """The packed dictionaries as files."""
    if not any(GOLDENS.iterdir()):
        for name, data in pack_layouts.unpack().items():
            (GOLDENS / name).parent.mkdir(parents=True, exist_ok=True)
            (GOLDENS / name).write_bytes(data)


def golden_lines():
    """(name, layout, family, settings, outcome, text) of each line of layouts.txt that holds."""
    for line in (ROOT / "tests" / "golden" / "layouts.txt").read_text().splitlines():
        if line and not line.startswith("#") and " # " not in line:
            name, layout, family, options, outcome = line.split(None, 4)
            settings = {} if options == "-" else dict(part.split("=") for part in options.split(","))
            kinds = {"layout": str, "k": int, "norm_scale": float, "threshold": float}
            kind, _, told = outcome.partition(" ")
            yield name, layout, family, {k: kinds[k](v) for k, v in settings.items()}, kind, told.strip()


def test_files_of_every_library():
    unpack()
    loaded = 0
    for name, layout, family, settings, outcome, told in golden_lines():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if outcome == "refused":
                error = raises(dlrn.DlrnError, dlrn.AutoEncoder.from_pretrained, GOLDENS / name, **settings)
                assert "--" not in str(error), f"{name}: {error}"
                continue
            ae = dlrn.AutoEncoder.from_pretrained(GOLDENS / name, **settings)
        assert (ae.layout, text_of(ae)) == (layout, family), (name, ae)
        at = GOLDENS / (told if outcome == "as" else name.split("/")[0])
        x, limit = np.load(GOLDENS / name.split("/")[0] / "input.npy"), 1e-2 if outcome == "bf16" else 3e-6
        x_hat, f = ae(x, output_features=True)
        assert off(f, np.load(at / "features.npy")) <= limit, name
        assert off(x_hat, np.load(at / "reconstruction.npy")) <= limit, name
        assert np.array_equal(ae.encode(x, sparse=True).toarray(), f.reshape(-1, ae.dict_size)), name
        assert ae.state_dict() and repr(ae), name
        loaded += 1
    print(f"    {loaded} dictionaries")
    assert loaded > 90


def test_sequences():
    """Rows of a Temporal dictionary attend to earlier ones of their document, and to no other's."""
    unpack()
    ae = dlrn.AutoEncoder.from_pretrained(GOLDENS / "sl_temporal")
    x = rows(30, 16)
    both = ae(np.stack([x[:15], x[15:]]))
    assert np.array_equal(both[0], ae(x[:15])) and np.array_equal(both[1], ae(x[15:]))
    assert not np.array_equal(both.reshape(30, 16), ae(x))


def text_of(ae):
    return ffi.string(ae.pointer.family).decode()


def test_notes_are_warnings():
    unpack()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ae = dlrn.BatchTopKSAE.from_pretrained(GOLDENS / "dl_batchtopk_unset")
    assert len(caught) == 1 and "threshold=T" in str(caught[0].message), [str(c.message) for c in caught]
    assert ae.note and caught[0].filename == __file__


def test_the_asked_class_tells_what_a_file_does_not():
    for kind in (dlrn.AutoEncoderTopK, dlrn.BatchTopKSAE):
        path = PLACE / "bare.pt"
        state = of(kind).state_dict()
        state["threshold"] = torch.tensor(0.5)
        torch.save(state, path)
        raises(NotImplementedError, dlrn.AutoEncoder.from_pretrained, path, says="layout=")
        assert type(kind.from_pretrained(path)) is kind


def test_a_name_of_hugging_face_says_how_to_download_it():
    name = "google/gemma-scope-2b-pt-res/layer_12/width_16k/average_l0_82"
    error = raises(FileNotFoundError, dlrn.AutoEncoder.from_pretrained, name)
    assert "hf download google/gemma-scope-2b-pt-res --include" in str(error), error
    error = raises(FileNotFoundError, dlrn.AutoEncoder.from_pretrained, "./no/such.pt")
    assert "hf download" not in str(error), error


def test_sae_lens_fetches():
    """SAELens is asked for a release, and what it returns is read as it saves it."""
    unpack()
    asked = {}

    class SAE:
        @staticmethod
        def from_pretrained(**settings):
            asked.update(settings)
            return SAE()

        def save_model(self, path):
            for name in ("sae_weights.safetensors", "cfg.json"):
                shutil.copy(GOLDENS / "sl_jumprelu" / name, path)

    sys.modules["sae_lens"] = types.SimpleNamespace(SAE=SAE)
    try:
        ae = dlrn.JumpReluAutoEncoder.from_pretrained(load_from_sae_lens=True, release="a", sae_id="b", device="cpu")
    finally:
        del sys.modules["sae_lens"]
    assert asked == {"release": "a", "sae_id": "b"} and ae.layout == "saelens"
    x = np.load(GOLDENS / "sl_jumprelu" / "input.npy")
    assert off(ae.encode(x), np.load(GOLDENS / "sl_jumprelu" / "features.npy")) < 3e-6


def test_load_dictionary():
    ae, config = dlrn.load_dictionary(str(trained(PLACE, "dl-top_k")), device="cpu")
    assert type(ae) is dlrn.AutoEncoderTopK and config["trainer"]["dict_class"] == "AutoEncoderTopK"
    assert config == json.loads((trained(PLACE, "dl-top_k") / "config.json").read_text())


def test_tensors_of_files():
    state = of(dlrn.AutoEncoder).state_dict()
    for name in ("tensors.pt", "tensors.npz"):
        of(dlrn.AutoEncoder).save(PLACE / name)
        found = dlrn.load_tensors(PLACE / name)
        assert list(found) == list(state), list(found)
        assert all(np.array_equal(found[n], state[n]) for n in state)
    assert list(dlrn.load_tensors(PLACE / "tensors.pt", names=["bias"])) == ["bias"]
    raises(ValueError, dlrn.load_tensors, PLACE / "tensors.pt", names=["no such"], says="no such")
    np.save(PLACE / "ints.npy", np.arange(3))
    raises(NotImplementedError, dlrn.load_tensors, PLACE / "ints.npy")


# ---- parameters
def test_state_dicts_are_those_of_files():
    for kind in CLASSES:
        ae, other = of(kind), of(kind, seed=4)
        path = PLACE / "state.pt"
        ae.save(path)
        file = torch.load(path, weights_only=True)
        state = ae.state_dict()
        assert list(state) == list(file), (kind, list(state), list(file))
        for name, value in file.items():
            assert isinstance(state[name], torch.Tensor) and torch.equal(state[name], value), (kind, name)
            assert state[name].dtype == value.dtype, (kind, name, state[name].dtype, value.dtype)
        assert not np.array_equal(other.encode(X), ae.encode(X))
        other.load_state_dict(file)
        assert np.array_equal(other.encode(X), ae.encode(X)), kind
        wrong = {**file, "more": torch.zeros(1)}
        raises(ValueError, other.load_state_dict, wrong, says="more")
        other.load_state_dict(wrong, strict=False)
        del wrong["more"], wrong[next(iter(file))]
        raises(ValueError, other.load_state_dict, wrong, says=next(iter(file)))


def test_state_dict_of_parts():
    a, b = (dlrn.CrossLayerTranscoder(16, 64, layers=2, seed=seed) for seed in (1, 2))
    x = rows(20, 16)
    assert a(x).shape == (20, 2, 8) and a.encode(x).shape == (20, 2, 32)
    assert np.array_equal(a(x), a(x.reshape(20, 2, 8))) and np.array_equal(a.decode(a.encode(x)), a(x))
    b.load_state_dict(a.state_dict())
    assert np.array_equal(a(x), b(x))
    part, expected = b.parts[1], b.parts[1].encode(x[:, 8:])
    del b
    for _ in range(20):
        dlrn.CrossLayerTranscoder(16, 64, layers=2)
    assert np.array_equal(part.encode(x[:, 8:]), expected), "a part keeps its dictionary"


def test_names_mean_the_same_memory():
    for kind in CLASSES:
        ae = of(kind)
        assert np.shares_memory(ae.encoder.weight, ae.W_enc) and ae.W_enc.shape == (D, F)
        assert np.shares_memory(ae.decoder.weight, ae.W_dec) and ae.W_dec.shape == (F, D)
        assert np.array_equal(ae.W_enc, np.asarray(ae.encoder.weight).T)
        assert ae.activation_dim == D and ae.dict_size == F
        assert len(list(ae.parameters())) == len(dict(ae.named_parameters()))
    assert of(dlrn.AutoEncoder).decoder.bias is None and of(dlrn.GatedAutoEncoder).encoder.bias is None
    raises(AttributeError, lambda: of(dlrn.AutoEncoder).r_mag, says="AutoEncoder has no")
    assert of(dlrn.MatryoshkaBatchTopKSAE).group_sizes == [16, 80]
    raises(ValueError, dlrn.MatryoshkaBatchTopKSAE, D, F, 5, [1, 2], says=str(F))


def test_messages_name_settings_and_leave_paths_alone():
    said = dlrn._core.in_python("models--google--gemma/x.npz: give --norm-scale S (--k N)")
    assert said == "models--google--gemma/x.npz: give norm_scale=S (k=N)"


def test_what_is_set_is_used():
    ae, expected = of(dlrn.AutoEncoder), of(dlrn.AutoEncoder, seed=4)
    ae.encode(X)  # an encoder that has seen the old weights
    ae.encoder.weight = torch.nn.Parameter(torch.tensor(expected.encoder.weight))
    ae.encoder.bias.data = torch.tensor(expected.encoder.bias)
    ae.decoder.weight.data[...] = expected.decoder.weight
    ae.bias = expected.bias.tolist()
    assert np.array_equal(ae(X), expected(X))
    kept = ae.encoder.bias[3:]
    before = ae.encode(X)
    kept -= 100
    assert np.array_equal(ae.encode(X)[:, :3], before[:, :3]) and not ae.encode(X)[:, 3:].any()
    tensor = torch.from_numpy(np.asarray(ae.encoder.bias))
    del kept
    tensor[3:] += 100
    assert np.allclose(ae.encode(X), before, atol=1e-3), "a tensor on the memory writes to it, too"
    raises(ValueError, setattr, ae, "bias", np.zeros(D + 1), says=[str(D), str(D + 1)])
    raises(ValueError, setattr, ae.encoder, "weight", np.zeros((D, F)))


def test_what_is_written_reaches_packed_weights():
    """prepare() keeps the weights in another form, which must follow them."""
    ae, plain = (dlrn.AutoEncoder(256, 4096, seed=1) for _ in range(2))
    x = rows(1, 256)
    ae.prepare().encode(x)
    for _ in range(2):
        ae.encoder.weight[...] *= -1  # a view of a moment
        plain.encoder.weight[...] *= -1
        assert np.array_equal(ae.encode(x), plain.encode(x))
    kept = ae.encoder.weight
    ae.encode(x)
    kept *= -2  # one that was handed out before the last call
    plain.encoder.weight[...] *= -2
    assert np.array_equal(ae.encode(x), plain.encode(x))
    kept *= -1  # one that is gone before the next call
    del kept
    plain.encoder.weight[...] *= -1
    assert np.array_equal(ae.encode(x), plain.encode(x))


def test_what_is_written_through_another_object_is_seen():
    whole, plain = (dlrn.CrossLayerTranscoder(2 * 256, 2 * 4096, layers=2, seed=0) for _ in range(2))
    x = rows(1, 512)
    whole.prepare().encode(x)
    for dictionary in (whole, plain):
        dictionary.parts[0].parameter(lib.DLRN_ENCODER)[...] *= -1
    assert np.array_equal(whole.encode(x), plain.encode(x))
    trainer = dlrn.Trainer("dl-standard", d_in=256, features=4096, steps=2, seed=1)
    one, other, x = trainer.dictionary, trainer.dictionary, rows(1, 256)
    one.prepare().encode(x)
    other.encoder.weight[...] *= -1
    assert np.array_equal(one.encode(x), trainer.dictionary.encode(x))


def test_parameters_in_torch():
    ae = of(dlrn.AutoEncoder)
    x = torch.from_numpy(X)
    f = torch.relu((x - ae.bias) @ ae.encoder.weight.T + ae.encoder.bias)
    assert isinstance(f, torch.Tensor) and torch.allclose(f, ae.encode(x), atol=1e-5)
    assert torch.allclose(torch.nn.functional.linear(f, ae.decoder.weight, ae.bias), ae(x), atol=1e-5)
    assert torch.cat([ae.bias, ae.bias]).shape == (2 * D,)
    assert torch.equal(ae.bias.clone(), torch.zeros(D))


def test_formulas():
    ae = of(dlrn.AutoEncoder)
    expected = np.asarray(ae.encode(X))
    assert (ae.formula.gate, ae.formula.select, ae.formula.center) == ("relu", "all", "output_bias")
    ae.formula.select, ae.formula.k = "top_k", 3
    assert (np.count_nonzero(ae.encode(X), axis=1) <= 3).all() and ae.k == 3
    ae.formula.select, ae.formula.k = "all", 0
    assert np.array_equal(ae.encode(X), expected)
    error = raises(ValueError, setattr, ae.formula, "gate", "no such", says=["no such", "relu", "jump"])
    assert isinstance(error, dlrn.DlrnError)
    raises(AttributeError, lambda: ae.formula.gates, says="gate")
    raises(AttributeError, setattr, ae.formula, "gates", 1)
    assert "select='all'" in repr(ae.formula)


def test_scaled_biases_and_unit_atoms():
    for kind in CLASSES:
        ae = of(kind)
        for p in ae.parameters():
            p[...] += np.float32(0.01) * np.arange(p.size, dtype=np.float32).reshape(p.shape) % 0.3
        if ae.formula.threshold < 0:
            ae.formula.threshold = 0.25
        before = ae(X)
        ae.scale_biases(4.0)
        assert np.allclose(ae(4 * X), 4 * before, rtol=1e-4, atol=1e-3), kind
    ae = of(dlrn.AutoEncoder)
    ae.decoder.weight[:, 5] *= 3
    ae.decoder.weight[:, 6] = 0
    before, f = ae(X), np.array(ae.encode(X))
    ae.normalize_decoder()
    assert not ae.W_dec[6].any(), "an atom of norm 0 stays 0"
    assert np.allclose(ae(X), before, atol=1e-4) and np.allclose(ae.encode(X)[:, 5], 3 * f[:, 5], atol=1e-4)
    assert np.allclose(np.delete(np.linalg.norm(ae.W_dec, axis=1), 6), 1, atol=1e-6)
    raises(NotImplementedError, of(dlrn.AutoEncoderTopK).normalize_decoder, says="AutoEncoderTopK")


# ---- the extras of the reference's classes
def test_top_k_extras():
    ae = of(dlrn.AutoEncoderTopK)
    f, values, index, relu = ae.encode(X, return_topk=True)
    assert np.array_equal(f, ae.encode(X)) and values.shape == index.shape == (len(X), 5)
    assert np.array_equal(np.take_along_axis(relu, index, -1), values) and (relu >= 0).all()
    ae.threshold = 0.5
    f = ae.encode(X, use_threshold=True)
    assert np.array_equal(f, np.where(relu > 0.5, relu, 0)) and not np.array_equal(f, ae.encode(X))
    f, values, index, relu = ae.encode(torch.from_numpy(X), return_topk=True)
    assert torch.equal(relu.gather(-1, index), values)
    half = ae.encode(torch.from_numpy(X).bfloat16(), return_topk=True)
    assert [part.dtype for part in half] == [torch.bfloat16, torch.bfloat16, torch.int64, torch.bfloat16]
    context = dlrn.Context(threads=1)
    ae = of(dlrn.AutoEncoderTopK, context=context)
    ae.close()
    raises(ValueError, ae.encode, X, use_threshold=True, says="closed")
    free = []
    thread = threading.Thread(target=lambda: free.append(context.lock.acquire(timeout=1)))
    thread.start()
    thread.join()
    assert free == [True], "an error leaves no lock behind"


def test_batch_top_k_extras():
    for kind in (dlrn.BatchTopKSAE, dlrn.MatryoshkaBatchTopKSAE):
        ae = of(kind)
        ae.threshold = 0.75
        f, active, relu = ae.encode(torch.from_numpy(X), return_active=True)
        assert torch.equal(f, relu * (relu > 0.75)) and torch.equal(active, f.sum(0) > 0)
        f = ae.encode(X, use_threshold=False)
        assert np.count_nonzero(f) == 5 * len(X)
        assert np.array_equal(ae.encode(X), np.asarray(ae.encode(torch.from_numpy(X)))), "it is as it was"


def test_jump_relu_extras():
    ae = of(dlrn.JumpReluAutoEncoder)
    f, pre = ae.encode(X, output_pre_jump=True)
    assert np.array_equal(f, np.where(pre > ae.threshold, pre, 0)) and (pre < 0).any()


def test_identity():
    ae = dlrn.IdentityDict(D)
    x_hat, f = ae(X, output_features=True)
    assert np.array_equal(x_hat, X) and np.array_equal(f, X) and ae.dict_size == D


def test_results_in_given_memory():
    ae = of(dlrn.AutoEncoder)
    f, x_hat, tensor = np.empty((10, 100, F), "f"), np.empty((1000, D), "f"), torch.empty(1000, F)
    assert ae.encode(X.reshape(10, 100, D), out=f) is f and np.array_equal(f.reshape(-1, F), ae.encode(X))
    assert ae.encode(X, out=tensor) is tensor and np.array_equal(tensor, ae.encode(X))
    assert ae(X, out=x_hat) is x_hat and np.array_equal(x_hat, ae(X))
    assert ae.decode(tensor, out=x_hat) is x_hat and np.array_equal(x_hat, ae(X))
    for bad in (np.empty((1000, F)), np.empty((1000, 2 * F), "f")[:, ::2], np.empty((F, 1000), "f")):
        raises(ValueError, ae.encode, X, out=bad, says="out")
    fixed = np.empty((1000, F), "f")
    fixed.flags.writeable = False
    raises(ValueError, ae.encode, X, out=fixed, says="out")
    raises(ValueError, ae.encode, X, sparse=True, out=f, says="out")


def test_calls_in_pieces():
    """More rows than one call of the library takes."""
    x = rows(40000)
    ae = of(dlrn.AutoEncoder)
    f = ae.encode(x)
    for at in (0, 16380, 32767, 39990):
        assert np.array_equal(f[at:at + 10], ae.encode(x[at:at + 10])), at
    sparse = ae.encode(x, sparse=True)
    assert np.array_equal(sparse.toarray(), f) and np.array_equal(ae.decode(sparse), ae.decode(f))
    top = of(dlrn.BatchTopKSAE)
    f, _, relu = top.encode(x, use_threshold=False, return_active=True)
    assert np.count_nonzero(f) == 5 * len(x)
    assert f[f > 0].min() >= relu[f == 0].max(), "rows that compete are one call"


def test_sparse_codes_are_not_copied():
    codes = of(dlrn.AutoEncoder).encode(X, sparse=True)
    for array in (codes.data, codes.indices):
        while isinstance(array, np.ndarray):
            assert not array.flags.owndata
            array = array.base
    x_hat, again = of(dlrn.AutoEncoder)(X, output_features="sparse")
    assert np.array_equal(again.toarray(), codes.toarray()) and x_hat.shape == X.shape


def test_seeds():
    a, b, c = dlrn.AutoEncoder(D, F, seed=1), dlrn.AutoEncoder(D, F, seed=1), dlrn.AutoEncoder(D, F)
    assert np.array_equal(a.encoder.weight, b.encoder.weight)
    assert not np.array_equal(a.encoder.weight, c.encoder.weight)
    raises(ValueError, dlrn.AutoEncoder, 0, 5)
    raises(ValueError, dlrn.Dictionary, D, F, says="AutoEncoder")


def test_as_modules_are():
    ae = of(dlrn.AutoEncoder)
    for same in (ae.eval(), ae.train(), ae.to("cpu"), ae.to(torch.device("cpu")), ae.to(torch.float32), ae.cpu(),
                 ae.to(device="cpu", dtype=torch.float32), ae.requires_grad_(False)):
        assert same is ae
    for call in (lambda: ae.to("cuda:0"), lambda: ae.to(torch.device("cuda")), ae.cuda):
        raises(ValueError, call, says="CPU")
    import pickle
    raises(TypeError, pickle.dumps, ae, says="from_pretrained")


def test_the_examples_of_the_readme():
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "examples" / "python" / "README.md").read_text(), re.M | re.S)
    assert len(blocks) == 4
    done = subprocess.run([sys.executable, "-c", "\n".join(blocks)], cwd=folder("core-readme"), capture_output=True,
                          text=True, env={**os.environ, "PYTHONPATH": str(BUILD / "python")})
    assert done.returncode == 0, done.stderr
    assert re.search(r"^L0 \d+\.\d, variance explained 0\.\d\d$", done.stdout, re.M), done.stdout


# ---- what it rests on
def test_recipes_and_kernels():
    found = {r["name"]: r for r in dlrn.recipes()}
    assert len(found) > 25 and found["dl-top_k"]["family"] == "AutoEncoderTopK" and "k" in found["dl-top_k"]["settings"]
    assert found["reference"]["lr"] == 3e-4 and found["dl-top_k"]["select"] == "top_k"
    assert dlrn.kernels()[0] == "scalar" and dlrn.default_context().kernels in dlrn.kernels()
    assert dlrn.version in (ROOT / "dictlearn.h").read_text() and dlrn.__version__ == dlrn.version


def test_only_the_interface_is_exported():
    listed = subprocess.run(["nm", "-D", "--defined-only", BUILD / "libdictlearn.so"], capture_output=True, text=True)
    names = {line.split()[-1] for line in listed.stdout.splitlines()}
    assert len(names) > 90 and all(name.startswith("dlrn_") for name in names), sorted(names)[:5]
    for name in names:
        assert getattr(lib, name), f"{name} is not declared"


def test_all_names_are_listed():
    listed = {n for n in dir(dlrn) if not n.startswith("_") and not isinstance(getattr(dlrn, n), types.ModuleType)}
    assert set(dlrn.__all__) == listed, set(dlrn.__all__) ^ listed


def test_shapes_of_parameters():
    ae = dlrn.Glu(D, F, seed=1)
    x = rows(5)
    assert ae.state_dict()["gate_encoder"].shape == (F, D) and ae.gate_bias.shape == (F,)
    assert not np.shares_memory(ae.gate_bias, ae.encoder.bias)
    assert ae.encode(x).shape == (5, F)


def ctrl_c(body):
    """A process that is interrupted half a second after it prints; its output and its errors."""
    code = f"""
import sys, time
sys.path.insert(0, {str(BUILD / "python")!r})
import numpy as np, dlrn
from dlrn._core import ffi, lib
context = dlrn.default_context()
{body}
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "working\n", process.stderr.read()
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    try:
        out, errors = process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        process.kill()
        raise AssertionError("Ctrl-C does not end it") from None
    assert process.returncode == 0, errors
    return out.split()


def test_ctrl_c_in_one_long_call():
    """Ended from inside by the context's stop callback; the context works afterwards."""
    took, after = ctrl_c("""
ae = dlrn.AutoEncoder(64, 200000)
mean = ffi.new("double[]", lib.DLRN_WEIGHT_COUNT)
print("working", flush=True)
began = time.process_time()  # others may have the cores
try:
    context.call(lib.dlrn_weight_figures, ae.pointer, mean, ffi.NULL)
    print("it ended too soon")
except KeyboardInterrupt:
    print(time.process_time() - began, ae.encode(np.zeros((2, 64))).shape[0])
""")
    assert float(took) < 5 and after == "2", took


def test_ctrl_c_in_encode():
    took, after = ctrl_c("""
ae = dlrn.AutoEncoder(512, 2048)
x = np.random.default_rng(0).standard_normal((1 << 16, 512), dtype=np.float32)
f = np.zeros((len(x), 2048), np.float32)
print("working", flush=True)
began = time.process_time()  # others may have the cores
try:
    while True: ae.encode(x, out=f)
except KeyboardInterrupt:
    print(time.process_time() - began, np.array_equal(f[:9], ae.encode(x[:9])))
""")
    assert float(took) < 5 and after == "True", took


def test_exceptions_of_callbacks():
    context = dlrn.Context(threads=1)

    def read(_user, _max_rows, _x, _y, _n):
        raise LookupError("from inside")

    source = ffi.new("dlrn_source *", {"d_in": D})
    source.read = called = context.callback("dlrn_status(*)(void *, int64_t, float *, float *, int64_t *)", read)
    ae, out = dlrn.AutoEncoder(D, F, context=context), ffi.new("dlrn_metrics *")
    for _ in range(3):
        error = raises(LookupError, context.call, lib.dlrn_evaluate, ae.pointer, ffi.NULL, source, ffi.NULL, ffi.NULL,
                       ffi.NULL, out, says="from inside")
        assert traceback.extract_tb(error.__traceback__)[-1].name == "read", "it says where it was raised"
        assert ae.encode(X[:3]).shape == (3, F), "the exception is raised once"
    assert called


def test_a_call_inside_a_callback():
    context = dlrn.Context()
    ae, other = dlrn.AutoEncoder(D, F, context=context), dlrn.AutoEncoder(D, F, context=context)
    seen = []

    def read(_user, max_rows, x, _y, n):
        n[0] = min(max_rows, 50)
        np.frombuffer(ffi.buffer(x, 50 * D * 4), np.float32).reshape(50, D)[...] = X[:50]
        seen.append(other.encode(X[:5]).shape)
        return lib.DLRN_OK if len(seen) < 4 else lib.DLRN_END

    def short(*args):
        status = read(*args)
        if status == lib.DLRN_END:
            args[-1][0] = 0
        return status

    source = ffi.new("dlrn_source *", {"d_in": D})
    source.read = called = context.callback("dlrn_status(*)(void *, int64_t, float *, float *, int64_t *)", short)
    out = ffi.new("dlrn_metrics *")
    context.call(lib.dlrn_evaluate, ae.pointer, ffi.NULL, source, ffi.NULL, ffi.NULL, ffi.NULL, out)
    assert out.rows == 150 and seen == [(5, F)] * 4 and called


def test_a_closed_context_keeps_what_is_in_use():
    context = dlrn.Context(threads=1)
    ae = dlrn.AutoEncoder(D, F, context=context)
    view, codes = ae.bias, ae.encode(X, sparse=True)
    expected = codes.copy()
    context.close()
    raises(ValueError, ae.encode, X, says="closed")
    raises(ValueError, dlrn.AutoEncoder, D, F, context=context, says="closed")
    del ae, context
    assert np.array_equal(view, np.zeros(D)) and (codes != expected).nnz == 0


def test_a_context_that_was_busy_at_a_fork_is_refused():
    context = dlrn.Context(threads=1)
    ae = dlrn.AutoEncoder(D, F, context=context)
    held, free = threading.Event(), threading.Event()

    def hold():
        with context.lock:
            held.set()
            free.wait(30)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(30)
    child = os.fork()
    if not child:
        try:
            raises(ValueError, ae.encode, X, says="fork")
            assert of(dlrn.AutoEncoder).encode(X).shape == (len(X), F)
            os._exit(0)
        finally:
            os._exit(1)
    free.set()
    thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert ae.encode(X).shape == (len(X), F), "the parent goes on"


main(globals())
