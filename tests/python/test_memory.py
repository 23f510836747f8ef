"""A hundred thousand calls without a leak: what malloc has handed out, and the process's resident memory, stay what
they are after the first calls; objects are freed when the last name of them goes."""
import ctypes
import gc
import sys
import weakref

import numpy as np
import torch

from harness import main, skip
from things import D, here, rows, trained
import dlrn

PLACE = here("memory")
X = rows()
PATH = str(trained(PLACE, "dl-top_k"))
AE = dlrn.AutoEncoderTopK.from_pretrained(PATH)
SPARE = 192 * 1024  # what caches of Python and of malloc take from time to time


class Mallinfo(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks",
                                                     "fsmblks", "uordblks", "fordblks", "keepcost")]


def in_use():
    """(bytes that malloc has handed out, resident bytes)"""
    gc.collect()
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallinfo2"):
        skip("no mallinfo2: glibc 2.33 has it")
    libc.mallinfo2.restype = Mallinfo
    info = libc.mallinfo2()
    with open("/proc/self/statm") as file:
        resident = int(file.read().split()[1]) * 4096
    return info.uordblks + info.hblkhd, resident


def flat(work, times):
    """Runs work() so often: what is in use afterwards is what was."""
    for _ in range(max(times // 20, 3)):
        work()
    before, resident = in_use()
    for _ in range(times):
        work()
    after, resident_after = in_use()
    lost, grown = after - before, resident_after - resident
    print(f"    {times} calls: {lost} bytes of malloc, {grown} resident")
    assert lost < SPARE, f"{lost} bytes more are in use after {times} calls"
    assert grown < 8 << 20, f"{grown} resident bytes more after {times} calls"


def test_100000_calls():
    x, f = X[:1], AE.encode(X[:1])
    sparse = AE.encode(X[:3], sparse=True)

    def work():
        AE.encode(x)
        AE.decode(f)
        AE(x)
        AE.encode(x, sparse=True)
        AE.decode(sparse)

    flat(work, 20000)


def test_calls_with_tensors():
    x, half = torch.from_numpy(X[:4]), torch.from_numpy(X[:4]).bfloat16()

    def work():
        AE(x, output_features=True)
        AE.decode(AE.encode(half))

    flat(work, 5000)


def test_large_results():
    x = rows(8000)
    flat(lambda: (AE.encode(x), AE.encode(x, sparse=True), AE(x)), 10)


def test_errors():
    wrong = X[:, 1:]

    def work():
        for call in (lambda: AE.encode(wrong), lambda: AE.decode(wrong), lambda: AE.encode("text"),
                     lambda: dlrn.AutoEncoder.from_pretrained("/no/such/file.pt"),
                     lambda: dlrn.AutoEncoder.from_pretrained(__file__)):
            try:
                call()
            except dlrn.DlrnError:
                continue
            raise AssertionError("no error")

    flat(work, 1000)


def test_dictionaries():
    def work():
        ae = dlrn.AutoEncoderTopK.from_pretrained(PATH)
        ae.encode(X[:2])
        np.asarray(ae.encoder.weight).sum()
        dlrn.AutoEncoder(D, 64)

    flat(work, 300)


def test_contexts():
    def work():
        with dlrn.Context(threads=1) as context:
            ae = dlrn.AutoEncoderTopK.from_pretrained(PATH, context=context)
            ae.encode(X[:2])

    flat(work, 500)


def test_trainers():
    def work():
        trainer = dlrn.Trainer("dl-top_k", activation_dim=D, dict_size=64, k=4, steps=10, warmup_steps=1)
        trainer.step(X[:32])
        trainer.step(X[32:64])
        trainer.dictionary.encode(X[:1])

    flat(work, 200)


def test_training_and_evaluation():
    def batches():
        for i in range(4):
            yield X[100 * i:100 * i + 100]

    def broken():
        yield X[:100]
        raise RuntimeError("broken")

    def work():
        ae = dlrn.trainSAE(batches(), D, 64, 1e-3, 1e-3, warmup_steps=1, steps=4)
        dlrn.evaluate(ae, batches())
        try:
            dlrn.trainSAE(broken(), D, 64, 1e-3, 1e-3, warmup_steps=1, steps=4)
        except RuntimeError:
            return
        raise AssertionError("no error")

    flat(work, 60)


def destroyed(kind, make):
    """How many times the library's destructor of this kind runs while make() is called and its result dropped."""
    calls = []
    core = dlrn._core
    real = getattr(core.lib, f"dlrn_{kind}_destroy")

    class Counting:
        def __getattr__(self, name):
            found = getattr(core_lib, name)
            if name != f"dlrn_{kind}_destroy":
                return found

            def destroy(pointer):
                calls.append(pointer)
                real(pointer)

            return destroy

    core_lib, users = core.lib, [m for n, m in sys.modules.items() if n.split(".")[0] == "dlrn" and hasattr(m, "lib")]
    for module in users:
        module.lib = Counting()
    try:
        made = make()
        assert not calls, "it is destroyed while it is in use"
        del made
        gc.collect()
    finally:
        for module in users:
            module.lib = core_lib
    return len(calls)


def test_the_destructors_run():
    assert destroyed("dictionary", lambda: dlrn.AutoEncoderTopK.from_pretrained(PATH)) == 1
    assert destroyed("context", lambda: dlrn.Context(threads=1)) == 1
    assert destroyed("trainer", lambda: dlrn.Trainer("dl-top_k", activation_dim=D, dict_size=64, k=4)) == 1
    context = dlrn.Context(threads=1)
    ae = dlrn.AutoEncoderTopK.from_pretrained(PATH, context=context)
    alive = weakref.ref(context)
    del context
    ae.encode(X[:2])  # the context is kept by what needs it
    del ae
    gc.collect()
    assert alive() is None, "nothing keeps a context alive"


def test_objects_go_without_the_collector():
    gc.disable()
    try:
        for make in (lambda: dlrn.AutoEncoderTopK.from_pretrained(PATH), lambda: dlrn.Context(threads=1),
                     lambda: dlrn.Trainer("dl-top_k", activation_dim=D, dict_size=64, k=4)):
            made = make()
            alive = weakref.ref(made)
            del made
            assert alive() is None, "a cycle keeps it"
    finally:
        gc.enable()


main(globals())
