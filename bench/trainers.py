"""trainers.py - training steps by the libraries that the recipes come from: dictionary_learning, SAELens, sparsify.

    trainers.py                              answers questions (answers.py)
    trainers.py --rss RECIPE:ROWS:D:F:K      peak memory of training steps, and what they take beyond weights, moments
                                             and the batch

Weights, rows and settings are those of bench/training.h: rates so small that nothing moves, averages of thresholds from
the first step on, 64 active features, of JumpReLU by thresholds.
"""
import importlib.metadata
import json
import sys
import types

# dictionary_learning imports them for its buffers, which are not used here.
for name, member in (("nnsight", "LanguageModel"), ("datasets", "load_dataset"), ("zstandard", "ZstdDecompressor")):
    try:
        __import__(name)
    except ImportError:
        sys.modules[name] = types.ModuleType(name)
        setattr(sys.modules[name], member, object)

import torch  # noqa: E402
import answers  # noqa: E402

ROWS, K, RATE = 4096, 64, 1e-12
FRACTIONS = [1 / 32, 1 / 16, 1 / 8, 1 / 4, 17 / 32]  # of nested groups: dlrn_train_config.n_groups' default


def cut_of(features, k):
    """What k of so many normal numbers exceed."""
    return 2**0.5 * float(torch.erfinv(torch.tensor(1 - 2 * k / features)))


# ---- dictionary_learning
def dl_step(recipe, d, features, k):
    """A function of a batch and the number of its step, for a new trainer."""
    from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
    from dictionary_learning.trainers.jumprelu import JumpReluTrainer
    from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKTrainer
    from dictionary_learning.trainers.top_k import TopKTrainer

    common = {"steps": 10**6, "activation_dim": d, "dict_size": features, "layer": 0, "lm_name": "none", "lr": RATE,
              "warmup_steps": 1, "seed": 0, "device": "cpu"}
    if recipe == "dl-jump_relu":
        trainer = JumpReluTrainer(**common, target_l0=float(k), sparsity_warmup_steps=None)
        with torch.no_grad():
            trainer.ae.W_enc.normal_(0, d**-0.5)
            trainer.ae.threshold.fill_(cut_of(features, k))
    else:
        kinds = {"dl-top_k": TopKTrainer, "dl-batch_top_k": BatchTopKTrainer,
                 "dl-matryoshka": MatryoshkaBatchTopKTrainer}
        groups = {"group_fractions": FRACTIONS} if recipe == "dl-matryoshka" else {}
        trainer = kinds[recipe](**common, **groups, k=k, threshold_start_step=0)
    return trainer.update


# ---- SAELens
def sl_step(recipe, d, features, k):
    import sae_lens
    from sae_lens.config import SAETrainerConfig
    from sae_lens.saes.sae import SAEMetadata
    from sae_lens.training.sae_trainer import SAETrainer

    names = {"sl-topk": "TopK", "sl-batchtopk": "BatchTopK", "sl-jumprelu": "JumpReLU",
             "sl-matryoshka": "MatryoshkaBatchTopK"}
    name = names[recipe] + "TrainingSAE"
    extra = {"l0_coefficient": 1.0} if recipe == "sl-jumprelu" else {"k": k}
    if recipe == "sl-matryoshka":
        ends = [int(sum(FRACTIONS[:i + 1]) * features) for i in range(len(FRACTIONS))]
        extra["matryoshka_widths"] = ends
    cfg = getattr(sae_lens, name + "Config")(d_in=d, d_sae=features, dtype="float32", device="cpu", **extra)
    cfg.metadata = SAEMetadata(model_name="none", hook_name="none")
    sae = getattr(sae_lens, name)(cfg)
    if recipe == "sl-jumprelu":
        with torch.no_grad():
            sae.W_enc.normal_(0, d**-0.5)
            next(p for n, p in sae.named_parameters() if "threshold" in n).fill_(cut_of(features, k))
    settings = SAETrainerConfig(total_training_samples=10**9, train_batch_size_samples=ROWS, lr=RATE, lr_end=RATE,
                                lr_warm_up_steps=0, lr_decay_steps=0)
    trainer = SAETrainer(settings, sae, iter(()))
    return lambda step, x: trainer.step(x)


# ---- sparsify: the loop of its Trainer.fit(), which wants a model
def sp_step(recipe, d, features, k):
    torch.cuda.is_bf16_supported = lambda *a: False
    from schedulefree import ScheduleFreeWrapper
    from sparsify import SparseCoder, SparseCoderConfig
    from sparsify.sign_sgd import SignSGD

    sae = SparseCoder(d, SparseCoderConfig(num_latents=features, k=k), dtype=torch.float32)
    optimiser = ScheduleFreeWrapper(SignSGD([{"params": sae.parameters(), "lr": RATE}]), momentum=0.95)
    optimiser.train()
    since = torch.zeros(features, dtype=torch.long)

    def step(number, x):
        if number == 0:
            sae.b_dec.data = x.mean(0)
        sae.set_decoder_norm_to_unit_norm()
        found = sae(x=x, y=x, dead_mask=None)
        found.fvu.backward()
        sae.remove_gradient_parallel_to_decoder_directions()
        optimiser.step()
        optimiser.zero_grad()
        fired = torch.zeros(features, dtype=torch.bool)
        fired[found.latent_indices.flatten()] = True
        since.add_(len(x))
        since[fired] = 0

    return step


MAKERS = {"dl": ("dictionary_learning", dl_step), "sl": ("SAELens", sl_step), "sp": ("sparsify", sp_step)}


def ask(times, recipe, d, features, first):
    torch.manual_seed(0)
    library, make = MAKERS[recipe[:2]]
    x = torch.randn(ROWS, int(d))
    if not first:
        step = make(recipe, int(d), int(features), K)
        numbers = iter(range(10**6))
        return {library: answers.best(times, lambda: step(next(numbers), x))[0]}
    step = make(recipe, int(d), int(features), K)
    start = answers.clock()
    step(0, x)
    return {library: answers.clock() - start}


def print_rss(text):
    recipe, *sizes = text.split(":")
    rows, d, features, k = map(int, sizes)
    torch.mm(torch.ones(64, 64), torch.ones(64, 64))
    step = MAKERS[recipe[:2]][1](recipe, 8, 64, 4)  # what the first step loads is not its own
    step(0, torch.randn(64, 8))
    before = answers.peak_bytes()
    step = MAKERS[recipe[:2]][1](recipe, d, features, k)
    x = torch.randn(rows, d)
    for number in range(3):
        step(number, x)
    known = 3 * 4 * (2 * d * features + features + d) + 4 * rows * d
    print(json.dumps({"peak": answers.peak_bytes(), "beyond": answers.peak_bytes() - before - known}))


def versions():
    found = {"PyTorch": torch.__version__}
    for name, package in (("dictionary_learning", "dictionary-learning"), ("SAELens", "sae-lens"),
                          ("sparsify", "eai-sparsify")):
        try:
            found[name] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            pass
    return found


def main():
    if sys.argv[1:2] == ["--rss"]:
        print_rss(sys.argv[2])
        return
    answers.serve(versions(), ((r"train\.((?:dl|sl|sp)-\w+)\.d(\d+)\.F(\d+)(\.first)?", ask),), torch.set_num_threads)


if __name__ == "__main__":
    main()
