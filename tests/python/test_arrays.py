"""Arrays in and out: kinds, shapes, orders and number types; views without a copy; errors of what is no such array."""
import os
import pathlib

import numpy as np
import scipy.sparse
import torch

from harness import folder, main, program, raises
from things import D, F, here, rows, trained
import dlrn

PLACE = here("arrays")
X = rows()
AE = dlrn.AutoEncoder.from_pretrained(trained(PLACE, "reference"))
TOP = dlrn.AutoEncoderTopK.from_pretrained(trained(PLACE, "dl-top_k"))
FEATURES, OUT = AE.encode(X), AE(X)


def test_numpy_in_numpy_out():
    assert isinstance(FEATURES, np.ndarray) and FEATURES.shape == (len(X), F) and FEATURES.dtype == np.float32
    assert isinstance(OUT, np.ndarray) and OUT.shape == X.shape and OUT.dtype == np.float32
    assert (FEATURES > 0).any() and np.isfinite(OUT).all()


def test_torch_in_torch_out():
    f, y = AE.encode(torch.from_numpy(X)), AE(torch.from_numpy(X))
    assert isinstance(f, torch.Tensor) and f.dtype == torch.float32 and isinstance(y, torch.Tensor)
    assert np.array_equal(f.numpy(), FEATURES) and np.array_equal(y.numpy(), OUT)
    y, f = AE(torch.from_numpy(X), output_features=True)
    assert np.array_equal(f.numpy(), FEATURES) and np.array_equal(y.numpy(), OUT)
    assert np.array_equal(AE.decode(f).numpy(), OUT)


def test_a_tensor_that_wants_gradients():
    x = torch.from_numpy(X).requires_grad_()
    raises(ValueError, AE.encode, x, says=["grad", "detach"])  # a result without one would be a trap
    with torch.no_grad():
        assert np.array_equal(AE.encode(x).numpy(), FEATURES)
    assert np.array_equal(AE.encode(x.detach()).numpy(), FEATURES)


def test_any_leading_shape():
    for shape in ((), (1,), (10,), (2, 5), (2, 5, 1), (1, 2, 5, 10)):
        n = int(np.prod(shape))
        x, f, y = X[:n].reshape(*shape, D), FEATURES[:n].reshape(*shape, F), OUT[:n].reshape(*shape, D)
        for of, back in ((np.array, np.asarray), (torch.tensor, lambda a: a.numpy())):
            found = back(AE.encode(of(x)))
            assert found.shape == f.shape, (found.shape, f.shape)
            assert np.array_equal(found, f) and np.array_equal(back(AE.decode(of(f))), y)
            found = AE(of(x), output_features=True)
            assert np.array_equal(back(found[0]), y) and np.array_equal(back(found[1]), f)


def test_no_rows():
    for x in (np.zeros((0, D), "f"), torch.zeros(0, D), np.zeros((3, 0, D), "f")):
        f = AE.encode(x)
        assert tuple(f.shape) == (*x.shape[:-1], F) and tuple(AE.decode(f).shape) == tuple(x.shape)
        assert tuple(AE(x).shape) == tuple(x.shape)
    assert AE.encode(np.zeros((0, D), "f"), sparse=True).shape == (0, F)


def test_orders_and_strides():
    wide = rows(2 * len(X), 3 * D)
    wide[::2, 5:5 + D] = X
    kinds = {"fortran": np.asfortranarray(X), "strided": wide[::2, 5:5 + D], "reversed": X[::-1].copy()[::-1],
             "read-only": X.copy(), "big-endian": X.astype(">f4"), "list": X.tolist(), "matrix": np.matrix(X),
             "unaligned": np.frombuffer(b"x" + X.tobytes(), np.uint8)[1:].view(np.float32).reshape(X.shape)}
    kinds["read-only"].flags.writeable = False
    for name, x in kinds.items():
        assert np.array_equal(np.asarray(AE.encode(x)), FEATURES), name
    t = torch.from_numpy(wide)[::2, 5:5 + D]
    assert not t.is_contiguous() and np.array_equal(AE.encode(t).numpy(), FEATURES)
    t = torch.from_numpy(np.ascontiguousarray(X.T)).T
    assert not t.is_contiguous() and np.array_equal(AE.encode(t).numpy(), FEATURES)


def test_half_precision_in_and_out():
    for kind in (torch.float16, torch.bfloat16, torch.float64):
        x = torch.from_numpy(X).to(kind)
        f, y = AE.encode(x), AE(x)
        assert f.dtype == kind and y.dtype == kind, (kind, f.dtype, y.dtype)
        exact = AE.encode(x.float())
        assert torch.equal(f, exact.to(kind)), kind
        assert torch.equal(y, AE(x.float()).to(kind)), kind
        assert torch.equal(AE.decode(f), AE.decode(f.float()).to(kind)), kind
    for kind in (np.float16, np.float64):
        x = X.astype(kind)
        f = AE.encode(x)
        assert f.dtype == kind and np.array_equal(f, AE.encode(x.astype(np.float32)).astype(kind)), kind


def test_every_bf16_and_f16_number_arrives():
    """All 65536 numbers of a type, one a row, against torch's own conversion: x is seen through an identity."""
    one = dlrn.AutoEncoder(1, 2)
    one.load_state_dict({"bias": np.zeros(1, "f"), "encoder.weight": np.float32([[1], [-1]]),
                         "encoder.bias": np.zeros(2, "f"), "decoder.weight": np.float32([[1, -1]])})
    bits = torch.arange(65536, dtype=torch.int32).to(torch.int16)
    for kind in (torch.bfloat16, torch.float16):
        x = bits.view(kind)[:, None]
        x = x[torch.isfinite(x.float())][:, None]
        back = one(x)
        assert back.dtype == kind and torch.equal(back.float(), x.float()), kind
        assert torch.equal(one.encode(x)[:, 0].float(), x.float().clamp(min=0)[:, 0]), kind


def test_results_are_new_arrays():
    f, g = AE.encode(X), AE.encode(X)
    assert not np.shares_memory(f, g)
    f[:] = 0
    assert np.array_equal(AE.encode(X), FEATURES) and f.flags.writeable and f.flags.c_contiguous
    before = X.copy()
    AE(X), AE.encode(X, sparse=True)
    assert np.array_equal(X, before)


def test_rows_are_borrowed_without_a_copy():
    t = torch.from_numpy(X)
    for x, address in ((X, X.ctypes.data), (t, t.data_ptr()), (X[7:], X[7:].ctypes.data)):
        found = dlrn._core.Rows(x, D, "x")
        assert int(dlrn._core.ffi.cast("uintptr_t", found.pointer)) == address and found.n == len(x)


def test_parameters_are_views():
    ae = dlrn.AutoEncoder.from_pretrained(trained(PLACE, "reference"))
    a, b = np.asarray(ae.encoder.bias), np.asarray(ae.encoder.bias)
    assert np.shares_memory(a, b) and a.shape == (F,)
    f = ae.encode(X)
    a[:] = -1e9
    assert (ae.encode(X) == 0).all() and (f > 0).any(), "a write into a parameter changes what follows"
    assert np.asarray(ae.encoder.weight).shape == (F, D) and np.asarray(ae.decoder.weight).shape == (D, F)
    assert np.asarray(ae.bias).shape == (D,)


def test_views_outlive_the_name_of_their_dictionary():
    ae = dlrn.AutoEncoder.from_pretrained(trained(PLACE, "reference"))
    view, expected = np.asarray(ae.bias), np.array(ae.bias)
    del ae
    for _ in range(20):
        dlrn.AutoEncoder(D, F)
    assert np.array_equal(view, expected)


def test_sparse_codes():
    for ae in (AE, TOP):
        for x in (X, X.reshape(10, 100, D), X[:0], torch.from_numpy(X)):
            sparse, dense = ae.encode(x, sparse=True), np.asarray(ae.encode(x)).reshape(-1, F)
            assert scipy.sparse.issparse(sparse) and sparse.format == "csr" and sparse.dtype == np.float32
            assert sparse.shape == dense.shape and np.array_equal(sparse.toarray(), dense)
            assert sparse.has_sorted_indices and sparse.nnz == np.count_nonzero(dense)
            assert np.array_equal(np.asarray(ae.decode(sparse)), ae.decode(dense))
    sparse = TOP.encode(X, sparse=True)
    assert np.array_equal(TOP.decode(sparse[5:9]), TOP.decode(sparse[5:9].toarray()))
    assert np.array_equal(TOP.decode(sparse.tocsc()), TOP.decode(sparse)), "other sparse kinds are converted"
    wide = sparse.astype(np.float64)
    wide.indices, wide.indptr = wide.indices.astype(np.int64), wide.indptr.astype(np.int64)
    assert np.array_equal(TOP.decode(wide), TOP.decode(sparse))


def test_sparse_codes_with_duplicates_and_in_any_order():
    given = scipy.sparse.csr_matrix((np.float32([1, 2, 3, 4]), [5, 2, 5, 1], [0, 3, 4]), shape=(2, F))
    before = given.copy()
    assert np.abs(TOP.decode(given) - TOP.decode(given.toarray())).max() < 1e-5
    assert np.array_equal(given.data, before.data) and np.array_equal(given.indices, before.indices)


def test_hostile_sparse_codes():
    for change in (lambda s: s.indices.__setitem__(0, F), lambda s: s.indices.__setitem__(0, -1),
                   lambda s: s.indptr.__setitem__(1, -5), lambda s: s.indptr.__setitem__(1, 10**9)):
        sparse = TOP.encode(X[:10], sparse=True)
        change(sparse)
        raises(ValueError, TOP.decode, sparse)
    raises(ValueError, TOP.decode, scipy.sparse.csr_matrix((3, F + 1), dtype=np.float32), says=str(F))


def test_not_finite():
    x = X.copy()
    x[3, 4], x[5, 6] = np.nan, np.inf
    f = AE.encode(x)
    good = np.ones(len(x), bool)
    good[[3, 5]] = False
    assert np.array_equal(f[good], FEATURES[good]), "the other rows are what they were"
    s = TOP.encode(x, sparse=True)
    assert np.array_equal(s[7:].toarray(), TOP.encode(X)[7:])


def test_wrong_width():
    for x in (X[:, 1:], torch.from_numpy(X[:, 1:].copy()), np.zeros((2, 3, D + 1), "f"), np.zeros(D + 2, "f")):
        text = str(raises(ValueError, AE.encode, x, says=[str(D), str(x.shape[-1])]))
        assert "\n" not in text and isinstance(raises(ValueError, AE.encode, x), dlrn.DlrnError), text
    raises(ValueError, AE, X[:, :-1], says=str(D - 1))
    for shape in ((2 * D, D - 1), (D, 2), (6, D // 2)):  # as many numbers as whole rows have
        raises(ValueError, AE.encode, np.zeros(shape, "f"), says=str(shape[-1]))
    raises(ValueError, AE.decode, FEATURES[:, 1:], says=[str(F), str(F - 1)])
    raises(ValueError, AE.encode, np.float32(3))


def test_what_is_no_array_of_floats():
    for x in (None, "text", object(), [[1, 2], [3]], {"a": 1}, np.array(["a"] * D), np.ones(D, complex)):
        raises((TypeError, ValueError), AE.encode, x)
    assert AE.encode(np.ones((2, D), int)).shape == (2, F), "integers are numbers"


def test_a_tensor_elsewhere():
    error = raises((ValueError, TypeError), AE.encode, torch.zeros(2, D, device="meta"))
    assert "meta" in str(error) and "cpu" in str(error).lower(), error


def test_devices_that_are_not_there():
    error = raises((ValueError, NotImplementedError), dlrn.AutoEncoder.from_pretrained, trained(PLACE, "reference"),
                   device="cuda:0")
    assert "cuda" in str(error) and "cpu" in str(error).lower(), error
    dlrn.AutoEncoder.from_pretrained(trained(PLACE, "reference"), device="cpu")
    dlrn.AutoEncoder.from_pretrained(trained(PLACE, "reference"), device=torch.device("cpu"))


def test_paths():
    place = folder("arrays-paths")
    names = ["with blank", "Ünïcode 数", "quote'\"", "percent%s", "-dash"]
    for name in names:
        AE.save(place / (name + ".pt"))
    for name in names:
        path = place / (name + ".pt")
        for form in (str(path), path, os.fsencode(path), pathlib.PurePath(path)):
            assert np.array_equal(dlrn.AutoEncoder.from_pretrained(form).encode(X[:5]), FEATURES[:5]), form
    here = os.getcwd()
    try:
        os.chdir(place)
        assert dlrn.AutoEncoder.from_pretrained("-dash.pt").dict_size == F
    finally:
        os.chdir(here)


def test_paths_that_are_no_dictionary():
    place = folder("arrays-bad")
    error = raises(OSError, dlrn.AutoEncoder.from_pretrained, place / "missing.pt", says="missing.pt")
    assert isinstance(error, dlrn.DlrnError) and isinstance(error, FileNotFoundError | OSError)
    for name, data in (("empty.pt", b""), ("text.pt", b"hello"), ("zeros.safetensors", bytes(100)), ("x.npz", b"PK")):
        (place / name).write_bytes(data)
        error = raises((ValueError, OSError), dlrn.AutoEncoder.from_pretrained, place / name, says=name)
        assert isinstance(error, dlrn.DlrnError), error
    for path in ("", "a\0b", None, 3.5, [], place):
        raises((ValueError, OSError, TypeError), dlrn.AutoEncoder.from_pretrained, path)
    raises(OSError, AE.save, place / "no" / "such" / "folder.pt", says="folder.pt")
    assert not (place / "no").exists()


def test_saved_files_are_read_by_the_program_and_by_torch():
    place = folder("arrays-saved")
    np.save(place / "x.npy", X)
    for suffix in ("pt", "safetensors", "npz"):
        path = place / f"ae.{suffix}"
        AE.save(path)
        assert np.array_equal(dlrn.AutoEncoder.from_pretrained(path).encode(X), FEATURES), suffix
        program("encode", "--dict", path, "--data", place / "x.npy", "--out", place / "f.npy")
        assert np.array_equal(np.load(place / "f.npy"), FEATURES), suffix
    state = torch.load(place / "ae.pt", weights_only=True)
    assert set(state) == set(AE.state_dict())
    for name, value in AE.state_dict().items():
        assert np.array_equal(state[name].numpy(), np.asarray(value)), name


def test_closed_dictionaries():
    ae = dlrn.AutoEncoder.from_pretrained(trained(PLACE, "reference"))
    with ae as again:
        assert again is ae and ae.encode(X[:2]).shape == (2, F)
    error = raises((ValueError, RuntimeError), ae.encode, X[:2])
    assert "closed" in str(error), error
    ae.close()
    ae = dlrn.AutoEncoder.from_pretrained(trained(PLACE, "reference"))
    evaluator = dlrn.Evaluator(ae)
    evaluator.add(X[:2])
    ae.close()
    assert evaluator.histogram()[0].sum() > 0, "an evaluator keeps what it needs"


main(globals())
