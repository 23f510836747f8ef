"""python.py - trainSAE of the Python package beside dictionary_learning's own, end to end: the same trainers and
settings on the same rows, and on the same model and text, in one process, in turns.

    python.py BUILD [--cpu-time] [--rounds N] [--steps N] [--d D] [--features F] [CASE...]

Prints JSON: versions, and a row for each case (a trainer's name, or "model"). A row's ratio is the package's time as a
multiple of the program's for the same training, which has no Python in it; its peer is dictionary_learning, with its
time as a multiple of the package's. Times are the best of the rounds, of whole calls: making the dictionary, training,
saving.

dictionary_learning's buffer wants an nnsight of 2024, which wants a torch of 2024. Its rows come from transformers and
a hook here; all else of the buffer is its own.
"""
import argparse
import contextlib
import importlib.metadata
import importlib.util
import io
import itertools
import json
import os
import pathlib
import resource
import subprocess
import sys
import time
import types

ROOT = pathlib.Path(__file__).resolve().parent.parent
# dictionary_learning imports these for what is not used here; nobody else shall take them for the real ones.
STANDING_IN = {"nnsight": "LanguageModel", "datasets": "load_dataset", "zstandard": "ZstdDecompressor", "wandb": "init"}
STANDING_IN = {name: member for name, member in STANDING_IN.items() if not importlib.util.find_spec(name)}
for name, member in STANDING_IN.items():
    sys.modules[name] = types.ModuleType(name)
    setattr(sys.modules[name], member, object)

import numpy as np  # noqa: E402
import torch  # noqa: E402
from dictionary_learning.buffer import ActivationBuffer  # noqa: E402
from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer  # noqa: E402
from dictionary_learning.trainers.jumprelu import JumpReluTrainer  # noqa: E402
from dictionary_learning.trainers.standard import StandardTrainer  # noqa: E402
from dictionary_learning.trainers.top_k import TopKTrainer  # noqa: E402
from dictionary_learning.training import trainSAE as their_trainSAE  # noqa: E402

for name in STANDING_IN:
    del sys.modules[name]

MODEL, LAYER = ROOT / "examples" / "data" / "tiny-neox", 3
ROWS, K = 4096, 64
# Each trainer's recipe, and its settings beyond those that all have.
TRAINERS = {"TopKTrainer": ("dl-top_k", {"k": K}), "BatchTopKTrainer": ("dl-batch_top_k", {"k": K}),
            "JumpReluTrainer": ("dl-jump_relu", {"target_l0": float(K), "sparsity_warmup_steps": None}),
            "StandardTrainer": ("dl-standard", {"l1_penalty": 0.1, "sparsity_warmup_steps": None})}


THEIRS = {trainer.__name__: trainer for trainer in (BatchTopKTrainer, JumpReluTrainer, StandardTrainer, TopKTrainer)}


def our_trainer(name):
    import dlrn.trainers

    return getattr(dlrn.trainers, name)


def their_buffer(data, model, submodule, tokenizer, **words):
    class Stop(Exception):
        pass

    class Buffer(ActivationBuffer):
        def refresh(self):
            """The library's, with the model's run in its middle."""
            unread = self.activations[~self.read]
            found, count = [unread], len(unread)
            while count < self.activation_buffer_size:
                rows = self.rows_of(self.text_batch())[:self.activation_buffer_size - count]
                found.append(rows)
                count += len(rows)
            self.activations = torch.cat(found)
            self.read = torch.zeros(count, dtype=torch.bool)

        def rows_of(self, texts):
            tokens = tokenizer(texts, return_tensors="pt", max_length=self.ctx_len, padding=True, truncation=True)
            kept = []

            def hook(_module, _inputs, output):
                kept.append(output[0] if isinstance(output, tuple) else output)
                raise Stop

            handle = submodule.register_forward_hook(hook)
            with torch.no_grad(), contextlib.suppress(Stop):
                model(**tokens)
            handle.remove()
            return kept[0][tokens["attention_mask"] != 0]

    return Buffer(data, model, submodule, **words)


def config_of(trainer, name, d, features, steps):
    return {"trainer": trainer, "activation_dim": d, "dict_size": features, "steps": steps, "warmup_steps": 1,
            "layer": LAYER, "lm_name": MODEL.name, "device": "cpu", "seed": 0, **TRAINERS[name][1]}


def processor_time():
    """Of this process and of those that have ended, on all cores as if they had shared it evenly."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used) / torch.get_num_threads()


def timed(function, clock):
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        began = clock()
        function()
        return clock() - began


def in_turns(arguments, *functions):
    """The best time of each: one after the other, so many rounds."""
    clock = processor_time if arguments.cpu_time else time.perf_counter
    times = [[timed(function, clock) for function in functions] for _ in range(arguments.rounds)]
    return [min(column) for column in zip(*times)]


class Bench:
    def __init__(self, arguments):
        self.arguments, self.tmp = arguments, arguments.build / "tmp" / "bench-python"
        self.tmp.mkdir(parents=True, exist_ok=True)

    def program(self, *flags):
        command = [self.arguments.build / "dictlearn", "train", "--quiet", "--save-dir", self.tmp / "program",
                   "--warmup-steps", "1", *map(str, flags)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stderr)

    def row(self, name, ours, theirs, programs, **parameters):
        row = {"name": name, "ratio": round(ours / programs, 4), "unit": "times the program", "better": "lower",
               "parameters": {"threads": torch.get_num_threads(), **parameters}, "seconds": round(ours, 6),
               "peers": {"dictionary_learning": {"seconds": round(theirs, 6), "times_ours": round(theirs / ours, 2)}},
               "peers_goal": 5}
        print(f"{name:42} {row['ratio']:6.2f} times the program, {ours:.2f} s; "
              f"dictionary_learning {theirs / ours:.1f} times ours", file=sys.stderr, flush=True)
        return row

    def rows(self, name):
        import dlrn

        d, features, steps = self.arguments.d, self.arguments.features, self.arguments.steps
        x = np.random.default_rng(0).standard_normal((steps * ROWS, d), dtype=np.float32)
        np.save(self.tmp / "x.npy", x)
        # the library asks for one batch more than it trains on
        batches = [torch.from_numpy(x[i:i + ROWS]) for i in range(0, len(x), ROWS)] + [torch.zeros(1, d)]
        flags = ["--" + key.replace("_", "-") + "=" + str(value) for key, value in TRAINERS[name][1].items()
                 if value is not None and key in ("k", "target_l0")]

        def run(train, trainer, folder, **words):
            train(data=batches, trainer_configs=[config_of(trainer, name, d, features, steps)], steps=steps,
                  save_dir=str(self.tmp / folder), device="cpu", **words)

        ours, theirs, programs = in_turns(
            self.arguments, lambda: run(dlrn.trainSAE, our_trainer(name), "ours"),
            lambda: run(their_trainSAE, THEIRS[name], "theirs"),
            lambda: self.program("--data", self.tmp / "x.npy", "--no-shuffle", "--recipe", TRAINERS[name][0],
                                 "--batch-size", ROWS, "--steps", steps, "--dict-size", features, *flags))
        return self.row(f"python.{name}.d{d}.F{features}", ours, theirs, programs, rows=ROWS, d=d, F=features,
                        steps=steps)

    def model(self):
        import dlrn
        from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

        model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(MODEL / "tokenizer.json"), pad_token="<|endoftext|>")
        text = (ROOT / "dictlearn.h").read_text()
        pieces = [text[i:i + 600] for i in range(0, len(text), 600)]
        with open(self.tmp / "text.jsonl", "w") as file:
            file.writelines(json.dumps({"text": piece}) + "\n" for piece in pieces * 4)
        site, d, name = model.gpt_neox.layers[LAYER], model.config.hidden_size, "BatchTopKTrainer"
        shape = {"n_ctxs": 640, "ctx_len": 128, "out_batch_size": ROWS}
        steps = 5 * self.arguments.steps

        def theirs():
            buffer = their_buffer(itertools.cycle(pieces), model, site, tokenizer, d_submodule=d, device="cpu",
                                  refresh_batch_size=64, **shape)
            their_trainSAE(data=buffer, trainer_configs=[config_of(THEIRS[name], name, d, 16 * d, steps)], steps=steps,
                           save_dir=str(self.tmp / "theirs"), device="cpu")

        def ours():
            buffer = dlrn.ActivationBuffer(itertools.cycle(pieces), model, site, d_submodule=d, tokenizer=tokenizer,
                                           in_batch_size=64, **shape)
            dlrn.trainSAE(data=buffer, trainer_configs=[config_of(our_trainer(name), name, d, 16 * d, steps)],
                          steps=steps, save_dir=str(self.tmp / "ours"), device="cpu")

        def program():
            self.program("--model", MODEL, "--text", self.tmp / "text.jsonl", "--site", "resid_out", "--layer", LAYER,
                         "--recipe", "dl-batch_top_k", "--k", K, "--dict-size", 16 * d, "--steps", steps, "--n-ctxs",
                         640, "--ctx-len", 128, "--in-batch-size", 64, "--batch-size", ROWS)

        return self.row(f"python.model.d{d}.F{16 * d}", *in_turns(self.arguments, ours, theirs, program),
                        rows=ROWS, d=d, F=16 * d, steps=steps)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("build", type=pathlib.Path)
    parser.add_argument("cases", nargs="*", default=[*TRAINERS, "model"])
    for flag, value in (("rounds", 3), ("steps", 8), ("d", 512), ("features", 16384)):
        parser.add_argument("--" + flag, type=int, default=value)
    parser.add_argument("--cpu-time", action="store_true")
    arguments = parser.parse_intermixed_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    sys.path.insert(0, str(arguments.build / "python"))
    bench = Bench(arguments)
    rows = [bench.model() if case == "model" else bench.rows(case) for case in arguments.cases]
    versions = {"PyTorch": torch.__version__, "dictionary_learning": importlib.metadata.version("dictionary-learning"),
                "transformers": importlib.metadata.version("transformers")}
    print(json.dumps({"peers": versions, "rows": rows}))


if __name__ == "__main__":
    main()
