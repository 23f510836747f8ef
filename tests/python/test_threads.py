"""Threads, forks and signals: Python's lock is free while the library works, contexts work side by side, the child of
a fork goes on with the same bits, Ctrl-C ends what runs and loses nothing."""
import multiprocessing
import os
import queue
import signal
import subprocess
import sys
import threading

import numpy as np

from harness import BUILD, folder, main, raises
from things import D, F, here, rows, trained
import dlrn

PLACE = here("threads")
X = rows()
PATH = str(trained(PLACE, "dl-top_k"))
AE = dlrn.AutoEncoderTopK.from_pretrained(PATH)
EXPECTED = AE.encode(X)
# One call of the library of some ten milliseconds
WIDE = dlrn.AutoEncoder(64, 4096, seed=1)
WORK = rows(8000, 64)
STEPS = 200


def while_it_works(step, work):
    """Another thread does step() so often while this one calls work() again and again. The lock goes to the other
    thread between two calls, too: so it must take far fewer calls than steps."""
    done, failure = threading.Event(), []

    def others():
        try:
            for _ in range(STEPS):
                step()
        except BaseException as error:
            failure.append(error)
        done.set()

    thread = threading.Thread(target=others)
    thread.start()
    calls = 0
    while not done.is_set():
        work()
        calls += 1
    thread.join()
    assert not failure, failure
    print(f"    {STEPS} steps of another thread during {calls} calls")
    assert calls < STEPS // 4, f"{calls} calls for {STEPS} steps: the lock is held"


def test_the_lock_is_free_during_encode():
    tick = threading.Event()
    while_it_works(lambda: tick.wait(0.0005), lambda: WIDE.encode(WORK))


def test_the_lock_is_free_during_training_and_evaluation():
    tick = threading.Event()
    x = rows(8000)
    trainer = dlrn.Trainer("dl-top_k", activation_dim=D, dict_size=1024, k=4, steps=10**6)
    while_it_works(lambda: tick.wait(0.0005), lambda: trainer.step(x))
    while_it_works(lambda: tick.wait(0.0005), lambda: dlrn.evaluate(WIDE, WORK))


def test_two_contexts_work_side_by_side():
    other = dlrn.AutoEncoderTopK.from_pretrained(PATH, context=dlrn.Context(threads=1))

    def step():
        assert np.array_equal(other.encode(X[:50]), EXPECTED[:50])

    while_it_works(step, lambda: WIDE.encode(WORK))


def test_two_threads_on_one_context_wait_for_each_other():
    failure = []

    def work(first):
        for i in range(first, first + 300):
            n = 1 + i % 700
            if not np.array_equal(AE.encode(X[:n]), EXPECTED[:n]):
                failure.append(i)
            if i % 10 == 0:
                raises(ValueError, AE.encode, X[:, 1:], says=str(D - 1))

    threads = [threading.Thread(target=work, args=(1000 * i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failure, failure


def test_an_exception_goes_to_the_thread_whose_source_raised_it():
    found, both = {}, threading.Barrier(4)

    def work(name):
        """Two of them read their rows from inside the library."""
        def source():
            for i in range(5):
                yield X[:100]
            both.wait(60)  # all raise at the same time
            raise LookupError(name)

        try:
            dlrn.Trainer("reference", data=source(), shuffle=name in "02", dict_size=64).train(verbose=False)
        except BaseException as error:
            found[name] = error

    threads = [threading.Thread(target=work, args=(str(i),)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name, error in found.items():
        assert isinstance(error, LookupError) and str(error) == name, (name, repr(error))
    assert len(found) == 4, found


# ---- fork
FORK = multiprocessing.get_context("fork")


def in_child(function):
    """What function() returns in the child of a fork; an exception there is raised here."""
    answers = FORK.Queue()

    def child():
        try:
            answers.put(function())
        except BaseException as error:
            answers.put(AssertionError(f"in the child: {type(error).__name__}: {error}"))

    process = FORK.Process(target=child)
    process.start()
    try:
        answer = answers.get(timeout=120)
    except queue.Empty:
        process.kill()
        raise AssertionError("the child hangs") from None
    process.join(60)
    assert process.exitcode == 0, f"the child ended with {process.exitcode}"
    if isinstance(answer, AssertionError):
        raise answer
    return answer


def test_a_child_encodes_the_same_bits():
    AE.encode(X)
    found = in_child(lambda: (AE.encode(X), AE(X), AE.encode(X, sparse=True).toarray()))
    for a, b in zip(found, (EXPECTED, AE(X), EXPECTED)):
        assert np.array_equal(a, b)
    assert np.array_equal(AE.encode(X), EXPECTED), "and so does its parent afterwards"


def test_a_child_loads_and_makes_contexts():
    def work():
        with dlrn.Context(threads=2) as context:
            return dlrn.AutoEncoderTopK.from_pretrained(PATH, context=context).encode(X)

    assert np.array_equal(in_child(work), EXPECTED)


def test_a_child_trains_the_same_bits():
    def work():
        trainer = dlrn.Trainer("dl-top_k", activation_dim=D, dict_size=64, k=4, steps=10, warmup_steps=1, seed=5)
        for i in range(3):
            trainer.step(X[100 * i:100 * i + 100])
        return np.array(trainer.dictionary.encode(X))

    assert np.array_equal(in_child(work), work())


def test_a_child_of_a_child():
    assert np.array_equal(in_child(lambda: in_child(lambda: AE.encode(X))), EXPECTED)


def test_a_pool_of_children():
    with FORK.Pool(2) as pool:
        found = pool.map_async(encode_part, range(10)).get(timeout=120)
    assert np.array_equal(np.concatenate(found), EXPECTED)


def encode_part(i):
    return AE.encode(X[100 * i:100 * i + 100])


def test_a_fork_while_another_thread_works():
    """The context that is busy in the parent is refused in the child, or works; it never hangs."""
    stop = threading.Event()

    def others():
        while not stop.is_set():
            WIDE.encode(WORK)

    def work():
        try:
            WIDE.encode(WORK[:10])
            same = np.array_equal(AE.encode(X), EXPECTED)
        except dlrn.DlrnError as error:
            assert "fork" in str(error), error
            same = True
        return same and np.array_equal(dlrn.AutoEncoderTopK.from_pretrained(PATH).encode(X), EXPECTED)

    thread = threading.Thread(target=others)
    thread.start()
    try:
        assert all(in_child(work) for _ in range(5))
    finally:
        stop.set()
        thread.join()


# ---- signals
SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
sys.argv = ["", {build!r}]
import numpy as np
import harness, dlrn
from things import D, rows
x = rows(20000, seed=7)

def batches():
    for i in range({batches}):
        if i == 30:
            print("working", flush=True)
        yield x[100 * (i % 200):100 * (i % 200) + 100]

{body}
"""


def interrupted(body, batches=10**9):
    """A process that runs `body`, and is interrupted as soon as it prints: its exit status and standard error."""
    text = SCRIPT.format(tests=os.path.dirname(__file__), build=str(BUILD), body=body, batches=batches)
    process = subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    late = threading.Timer(120, process.kill)  # whatever it does, this test ends
    late.start()
    for line in process.stdout:
        if line.strip() == "working":
            process.send_signal(signal.SIGINT)
            break
    _, errors = process.communicate()
    late.cancel()
    assert process.returncode != -signal.SIGKILL, "Ctrl-C does not end it"
    return process.returncode, errors


def ended_by_ctrl_c(result):
    status, errors = result
    assert status in (-signal.SIGINT, 130), (status, errors)
    assert errors.strip().endswith("KeyboardInterrupt"), errors


def test_ctrl_c_ends_a_training_with_a_source():
    ended_by_ctrl_c(interrupted("dlrn.trainSAE(batches(), D, 64, 1e-3, 1e-3)"))


def test_ctrl_c_ends_calls_without_a_source():
    for call in ("ae.encode(big)", "dlrn.evaluate(ae, big)", "trainer.step(big)"):
        ended_by_ctrl_c(interrupted(f"""
big = rows(100000)
ae = dlrn.AutoEncoder(D, 4096)
trainer = dlrn.Trainer("dl-top_k", activation_dim=D, dict_size=4096, k=4, steps=10**9)
print("working", flush=True)
while True:
    {call}
"""))


RUN = {"dict_size": 64, "k": 4, "steps": 60, "batch_size": 100, "warmup_steps": 3, "seed": 5}


def whole_run(x):
    with dlrn.Trainer("dl-top_k", data=x, epochs=0, **RUN) as trainer:
        return np.array(trainer.train(verbose=False).encode(X))


def test_a_run_that_ctrl_c_ended_goes_on_with_the_same_bits():
    place = folder("threads-resume")
    ended_by_ctrl_c(interrupted(f"""
trainer = dlrn.Trainer("dl-top_k", data=rows(20000, seed=7), epochs=0, **{RUN!r})
try:
    for stats in trainer:
        if stats.step == 20:
            print("working", flush=True)
            while True:
                dlrn.Trainer("dl-top_k", d_in=D, dict_size=4096, k=4).step(x)
finally:
    trainer.save({str(place / "run.safetensors")!r})
"""))
    x = rows(20000, seed=7)
    with dlrn.Trainer.resume(place / "run.safetensors", data=x, epochs=0) as trainer:
        assert trainer.step_number == 21, trainer.step_number
        found = trainer.train(verbose=False).encode(X)
    assert np.array_equal(found, whole_run(x))


def test_trainSAE_leaves_a_backup_that_goes_on():
    place = folder("threads-backup")
    settings = {name: value for name, value in RUN.items() if name not in ("batch_size", "steps")}
    config = {"trainer": "TopKTrainer", "steps": 60, "layer": 0, "lm_name": "none", **settings}
    ended_by_ctrl_c(interrupted(f"dlrn.trainSAE(batches(), [{config!r}], steps=60, save_dir={str(place)!r}, "
                                "backup_steps=10)\nsignal.pause()".replace("dlrn", "import signal\ndlrn", 1)))
    batches = [rows(20000, seed=7)[100 * i:100 * i + 100] for i in range(60)]
    with dlrn.Trainer.resume(place / "trainer_0" / "backup.safetensors") as trainer:
        first = trainer.step_number
        assert first % 10 == 0 and first >= 20, first
        for x in batches[first:]:
            trainer.step(x)
        found = trainer.finish().encode(X)
    whole = dlrn.trainSAE(iter(batches), [dict(config)], steps=60)
    assert np.array_equal(found, whole.encode(X))


main(globals())
