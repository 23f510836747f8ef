"""llama.py BUILD - the program over llama.cpp against Hugging Face transformers.

Small models of random weights (GPT-NeoX, GPT-2, Llama, Qwen2, Qwen3, Gemma 2, Gemma 3, and tiny-neox itself) are
converted to f32 GGUF by llama.cpp's own converter. Token ids, logits, rows at every site and cross-entropies under a
dictionary and under zero ablation are compared with forward hooks. Then quantised files against themselves, sites that
an architecture lacks, and damaged files. LLAMA_CONVERT is the folder of the converter (`make llama-test` sets it).
Closes with `N passed, N failed`.
"""
import json
import logging
import os
import pathlib
import re
import shutil
import struct
import subprocess
import sys
import warnings

os.environ["HF_HUB_OFFLINE"] = os.environ["TQDM_DISABLE"] = "1"
warnings.filterwarnings("ignore")
CONVERT = pathlib.Path(os.environ.get("LLAMA_CONVERT", "build/llama/convert"))
sys.path[:0] = [str(CONVERT), str(CONVERT / "gguf-py")]

import gguf  # noqa: E402
import numpy as np  # noqa: E402
import sentencepiece  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from conversion import ModelBase, ModelType, TextModel, get_model_architecture, get_model_class  # noqa: E402
from tokenizers import Regex, Tokenizer, pre_tokenizers  # noqa: E402

torch.set_grad_enabled(False)
torch.set_num_threads(2)
logging.disable(logging.WARNING)  # the converter tells every tensor
transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

BUILD = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "build/llama-program")
PROGRAM, WORK = BUILD / "dictlearn", BUILD / "tmp" / "llama"
TINY = pathlib.Path("examples/data/tiny-neox")
SITES = ("embed", "attn_in", "attn_z", "attn_out", "mlp_in", "mlp_hidden", "mlp_out", "resid_out")
INPUTS = ("attn_z", "mlp_in", "mlp_hidden")  # what a module reads
CTX_LEN = 40
LIMIT = 1e-4  # of the largest number of an array
OF_CE = 1e-5  # of a cross-entropy, in which rounding averages out
OF_EFFECT = 1e-3  # nats
# llama.cpp looks GELU up in a table of f16 numbers, and knows only the approximation by tanh. In random models most of
# what GELU sees is beyond the table, where it is exact; tiny-neox may be this far from transformers, and this far
# from transformers with GELU rounded likewise: a number between two of the table can go either way, by f16's spacing.
OF_GELU, OF_TABLE = 2e-3, 2**-10
BEYOND = 64
TEXTS = [
    "The river ran slowly past the old mill, and nobody had crossed the bridge since the winter before last.",
    "\u201cNo,\u201d she said; \u201cI'll never see it.\u201d  He counted: 1, 22, 333, 4444.\n\nThen\tnothing.",
    "A",
    "Of all the men that I have known there was but one who would not take money for what he had done in the war; "
    "and he was a fool, as everybody in the village told me when I came there to ask for his house. "
    "\u00c9t\u00e9 \u4e2d\u6587 \U0001f642",
    "She walked home.",
]
passed, failed = 0, 0
worst = {}  # model: {what: distance}, for the table at the end


def report(name, good, detail=""):
    global passed, failed
    passed, failed = passed + bool(good), failed + (not good)
    print(f"{'ok  ' if good else 'FAIL'} {name}{': ' if detail else ''}{detail}", flush=True)


def attempt(*args):
    """Status, standard output and standard error of the program."""
    done = subprocess.run([PROGRAM, *map(str, args)], capture_output=True, timeout=300)
    return done.returncode, done.stdout.decode(), done.stderr.decode().strip()


def run(*args):
    status, out, error = attempt(*args)
    if status:
        raise RuntimeError(f"{args[0]}: status {status}: {error}")
    return out


def apart(found, wanted):
    """Largest difference over the largest number."""
    if found.shape != wanted.shape:
        return float("inf")
    return float(np.abs(found - wanted).max() / max(np.abs(wanted).max(), 1e-30))


# ---- Models, tokenizers, and their conversion

SHAPE = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
         "intermediate_size": 128, "max_position_embeddings": 128, "bos_token_id": 0, "eos_token_id": 0}
GEMMA = {**SHAPE, "vocab_size": 600, "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 16,
         "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|"
# name: config, the pre-tokenizer as llama.cpp calls it, the expression that it stands for
MODELS = {
    "gpt-neox": (transformers.GPTNeoXConfig(**SHAPE, vocab_size=2048, rotary_pct=0.25), "olmo", None),
    "gpt-neox, sequential": (transformers.GPTNeoXConfig(**SHAPE, vocab_size=2048, rotary_pct=0.5,
                                                        use_parallel_residual=False), "olmo", None),
    "gpt-2": (transformers.GPT2Config(vocab_size=2048, n_embd=64, n_layer=3, n_head=4, n_positions=128, n_ctx=128,
                                      bos_token_id=0, eos_token_id=0), "gpt-2", None),
    "llama": (transformers.LlamaConfig(**SHAPE, vocab_size=2048, tie_word_embeddings=False), "llama-bpe",
              ENDINGS + WORDS % "{1,3}"),
    "qwen2": (transformers.Qwen2Config(**SHAPE, vocab_size=2048, tie_word_embeddings=True), "qwen2",
              ENDINGS + WORDS % ""),
    "qwen3": (transformers.Qwen3Config(**SHAPE, vocab_size=2048, head_dim=32, tie_word_embeddings=False), "qwen2",
              ENDINGS + WORDS % ""),
    "gemma 2": (transformers.Gemma2Config(**GEMMA), None, None),
    "gemma 3": (transformers.Gemma3TextConfig(**{**GEMMA, "num_hidden_layers": 7}), None, None),
}
# An architecture without attention and MLP.
MODELS["mamba"] = (transformers.MambaConfig(vocab_size=2048, hidden_size=64, num_hidden_layers=3, bos_token_id=0,
                                            eos_token_id=0, pad_token_id=0), "olmo", None)
HAS = {"mamba": ("embed", "resid_out")}


class RoundedGelu(torch.nn.Module):
    """GELU as llama.cpp has it: a table of f16 numbers, for f16 arguments, between -10 and 10."""

    def forward(self, x):
        y = torch.nn.functional.gelu(x.half().float(), approximate="tanh").half().float()
        return torch.where(x >= 10, x, torch.where(x <= -10, torch.zeros_like(x), y))


def random_model(seed, config):
    torch.manual_seed(seed)
    config._attn_implementation = "eager"
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    gelu = any("GELU" in type(module).__name__ for module in model.modules())
    for name, p in model.named_parameters():  # the initial values are too tame to show a mistake
        if "mixer" not in name or "proj.weight" in name:  # the decay of a state space stays as it is
            p.mul_(8) if p.dim() == 2 else p.add_(0.2 * torch.randn_like(p))
        if gelu and re.search(r"dense_h_to_4h|c_fc|gate_proj", name):
            p.mul_(BEYOND)
        if gelu and re.search(r"dense_4h_to_h\.weight|mlp\.c_proj\.weight|up_proj", name):
            p.div_(BEYOND)
    return model


def byte_tokenizer(folder, expression):
    """tiny-neox's vocabulary and merges, under the pre-tokenizer that the architecture has."""
    tokenizer = Tokenizer.from_file(str(TINY / "tokenizer.json"))
    if expression:
        split = pre_tokenizers.Split(Regex(expression), behavior="isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}))
    return lambda text: tokenizer.encode(text, add_special_tokens=False).ids


def sentencepiece_tokenizer(folder):
    """A SentencePiece model as Gemma's: BPE, bytes for what it does not know, no space in front."""
    lines = pathlib.Path("README.md").read_text(encoding="utf-8").splitlines() + TEXTS
    with open(folder / "tokenizer.model", "wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines), model_writer=file, model_type="bpe", vocab_size=600, byte_fallback=True,
            add_dummy_prefix=False, remove_extra_whitespaces=False, normalization_rule_name="identity", pad_id=0,
            bos_id=1, eos_id=2, unk_id=3, character_coverage=0.99, minloglevel=2)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    return lambda text: processor.encode(text)


def convert(folder, out, pre):
    """What convert_hf_to_gguf.py does. It tells pre-tokenizers by a hash of what a known vocabulary makes of a text,
    and asks whoever converts a new vocabulary to add its name to get_vocab_base_pre: that is done here."""
    TextModel.get_vocab_base_pre = lambda self, tokenizer: pre
    config = ModelBase.load_hparams(folder, False)
    rope = config.get("rope_parameters") or {}
    if "partial_rotary_factor" in rope:  # where transformers 5 keeps what the converter knows by its older name
        config.setdefault("rotary_pct", rope["partial_rotary_factor"])
    kind = get_model_class(get_model_architecture(config, ModelType.TEXT))
    with torch.inference_mode():
        kind(folder, gguf.LlamaFileType.ALL_F32, out, hparams=config).write()


class Case:
    """A model, its GGUF file and its tokenizer."""

    def __init__(self, name, seed, config, pre, expression):
        self.name = name
        self.folder = WORK / name.replace(" ", "_").replace(",", "")
        self.folder.mkdir(parents=True)
        self.gguf = self.folder / "f32.gguf"
        if config is None:
            for file in TINY.iterdir():
                shutil.copy(file, self.folder)
            self.model = transformers.AutoModelForCausalLM.from_pretrained(
                self.folder, dtype=torch.float32, attn_implementation="eager").eval()
        else:
            self.model = random_model(seed, config)
            self.model.save_pretrained(self.folder)
        self.encode = byte_tokenizer(self.folder, expression) if pre else sentencepiece_tokenizer(self.folder)
        convert(self.folder, self.gguf, pre)
        self.texts = self.folder / "texts.jsonl"
        self.texts.write_text("".join(json.dumps({"text": t}) + "\n" for t in TEXTS))
        self.ids = [self.encode(t) for t in TEXTS]
        self.batches = [ids[:CTX_LEN] for ids in self.ids]

    def blocks(self):
        base = self.model.base_model
        return base.h if hasattr(base, "h") else base.layers

    def module(self, site, layer):
        """The module whose output, or for those of INPUTS whose input, the site is."""
        def first(parent, *names):
            return next(getattr(parent, name) for name in names if hasattr(parent, name))

        if site == "embed":
            return self.model.get_input_embeddings()
        block = self.blocks()[layer]
        if site == "resid_out":
            return block
        if site == "attn_in":
            return first(block, "input_layernorm", "ln_1")
        if site in ("mlp_in", "mlp_out"):
            return block.mlp
        if site == "mlp_hidden":
            return first(block.mlp, "down_proj", "dense_4h_to_h", "c_proj")
        attention = first(block, "self_attn", "attention", "attn")
        return attention if site == "attn_out" else first(attention, "o_proj", "dense", "c_proj")

    def norm(self):
        """The final norm."""
        base = self.model.base_model
        return next(getattr(base, n) for n in ("norm", "final_layer_norm", "ln_f", "norm_f") if hasattr(base, n))

    def hook(self, site, layer, change):
        """change(value) is what the site's value becomes."""
        module = self.module(site, layer)
        if site in INPUTS:
            return module.register_forward_pre_hook(lambda _, inputs: (change(inputs[0]), *inputs[1:]))
        return module.register_forward_hook(
            lambda _, inputs, output: (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output))

    def rows(self, site, layer, batches):
        kept = []

        def keep(x):
            kept.append(x.reshape(-1, x.shape[-1]).clone())
            return x

        handle = self.hook(site, layer, keep)
        for ids in batches:
            self.model(torch.tensor([ids]))
        handle.remove()
        return torch.cat(kept).numpy()

    def logits(self, ids):
        return self.model(torch.tensor([ids])).logits[0].numpy()

    def cross_entropy(self, batches, site=None, layer=0, change=None):
        """Mean over all next tokens, with the site's value replaced by change(value)."""
        handle = self.hook(site, layer, change) if site else None
        nats, tokens = 0.0, 0
        for ids in batches:
            if len(ids) > 1:
                logits = self.model(torch.tensor([ids])).logits[0, :-1].double()
                nats += torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="sum").item()
                tokens += len(ids) - 1
        if handle:
            handle.remove()
        return nats / tokens

    def round_gelu(self):
        for block in self.blocks():
            block.mlp.act = RoundedGelu()


# ---- The program beside transformers


def where(case, site, layer):
    return ["--site", site] + (["--layer", layer] if site != "embed" else [])


def text_of(case, *flags):
    return ["--model", case.gguf, "--text", case.texts, "--ctx-len", CTX_LEN, *flags]


def note(case, what, distance, bound=LIMIT):
    """A distance of one kind of numbers: the largest goes into the table."""
    row = worst.setdefault(case.name, {})
    row[what] = max(row.get(what, 0), distance)
    report(f"{case.name}: {what}", distance <= bound, f"{distance:.1e}")


def tokens(case):
    wanted = case.ids
    lines = run("tokenize", "--model", case.gguf, "--text", case.texts, "--json").splitlines()
    found = [json.loads(line) for line in lines]
    report(f"{case.name}: token ids", found == wanted, "" if found == wanted else f"{found}, expected {wanted}")


def split(case, bos=None):
    """The contexts of --long split, each of which begins with bos if there is one."""
    first = [] if bos is None else [bos]
    size = CTX_LEN - len(first)
    return [first + ids[i:i + size] for ids in case.ids for i in range(0, len(ids), size)]


def logits(case, what="logits", bound=LIMIT):
    out = case.folder / "logits.npy"
    run("logits", *text_of(case), "--out", out)
    note(case, what, apart(np.load(out), case.logits(case.batches[0])), bound)


def rows(case, site, layers, batches, *flags, what=None, bound=LIMIT):
    out, distance = case.folder / "x.npy", 0.0
    for layer in layers:
        run("activations", *text_of(case, *flags), *where(case, site, layer), "--out", out, "--quiet")
        distance = max(distance, apart(np.load(out), case.rows(site, layer, batches)))
    note(case, what or site, distance, bound)


def dictionary(case, d, features=160):
    """Random atoms; each feature fires on about a third of the rows. `case` keeps its weights."""
    torch.manual_seed(9)
    atoms = torch.nn.functional.normalize(torch.randn(features, d), dim=1)
    case.state = {"bias": 0.1 * torch.randn(d), "encoder.weight": atoms.clone(),
                  "encoder.bias": torch.full((features,), -0.3), "decoder.weight": atoms.T.clone()}
    path = case.folder / "ae.pt"
    torch.save(case.state, path)
    return path


def encode(state, x):
    return torch.relu((x - state["bias"]) @ state["encoder.weight"].T + state["encoder.bias"])


def reconstruct(state, x):
    return encode(state, x) @ state["decoder.weight"].T + state["bias"]


def evaluate(case, path, site, layer, *flags):
    flags = [*text_of(case, *flags), *where(case, site, layer), "--json", "--quiet"]
    return json.loads(run("eval", "--dict", path, *flags))


def cross_entropies(case, site, layer, batches, *flags, what="CE", bound=OF_CE):
    path = dictionary(case, case.rows(site, layer, batches[:1]).shape[1])
    found = evaluate(case, path, site, layer, *flags)
    wanted = {"loss_original": case.cross_entropy(batches),
              "loss_reconstructed": case.cross_entropy(batches, site, layer, lambda x: reconstruct(case.state, x)),
              "loss_zero": case.cross_entropy(batches, site, layer, torch.zeros_like)}
    note(case, f"{what} at {site}", max(abs(found[k] - v) / v for k, v in wanted.items()), bound)
    # a site at which an edit costs nothing would prove nothing
    cost = min(abs(wanted[k] - wanted["loss_original"]) for k in ("loss_reconstructed", "loss_zero"))
    report(f"{case.name}: editing {site} costs {cost:.4f} nats", cost > 10 * OF_CE * wanted["loss_original"])


def effects(case, layer, everything, bound):
    """`effect` at resid_out under a random dictionary: one feature on all texts, then the strongest of the first text.
    everything: its last layer, behind which the effects are linear, unless the logits are capped."""
    path, ids = dictionary(case, case.rows("resid_out", layer, case.batches[:1]).shape[1]), case.batches[0]
    state = case.state
    f = encode(state, torch.tensor(case.rows("resid_out", layer, [ids])[-1]))
    site = ["--dict", path, *where(case, "resid_out", layer), "--json", "--quiet", "--count"]
    vocab = case.model.config.vocab_size

    def log_p(ids, feature=None):
        def change(x):
            new = x.clone()
            new[:, -1] -= encode(state, x[:, -1])[:, [feature]] * state["decoder.weight"][:, feature]
            return new

        handle = None if feature is None else case.hook("resid_out", layer, change)
        out = torch.log_softmax(torch.tensor(case.logits(ids)[-1]).double(), -1)
        if handle:
            handle.remove()
        return out

    def linear(feature):
        head, norm = case.model.get_output_embeddings().weight, case.norm()
        x = torch.tensor(case.rows("resid_out", layer, [ids])[-1])
        moved = -f[feature] * state["decoder.weight"][:, feature]
        centred = moved - moved.mean() if isinstance(norm, torch.nn.LayerNorm) else moved
        x = x - x.mean() if isinstance(norm, torch.nn.LayerNorm) else x
        eps = getattr(norm, "variance_epsilon", getattr(norm, "eps", 0))
        weight = norm.weight + 1 if "Gemma" in type(norm).__name__ else norm.weight
        delta = (centred * weight) @ head.T / torch.sqrt(x.pow(2).mean() + eps)
        return torch.log_softmax(torch.tensor(case.logits(ids)[-1]).double() + delta.double(), -1)

    if everything:
        found = json.loads(run("effect", *text_of(case, "--documents", 1), *site, 160))
        capped = getattr(case.model.config, "final_logit_softcapping", None) is not None
        report(f"{case.name}: effects behind the last layer are linear", found["method"] == (
            "forward passes" if capped else "linear") and found["forward_passes"] in (1, 1 + len(found["features"])))
        plain, distance = log_p(ids), 0.0
        for row in found["features"]:
            changed = log_p(ids, row["feature"]) if capped else linear(row["feature"])
            distance = max(distance, abs(row["change"] - float((changed - plain)[found["token"]])))
        note(case, "effects, all", distance, bound)
        report(f"{case.name}: all active features", len(found["features"]) == int((f > 0).sum()))
        return
    feature = int(f.argmax())
    found = json.loads(run("effect", *text_of(case), "--feature", feature, *site, vocab))["features"][0]
    wanted = torch.stack([log_p(i, feature) - log_p(i) for i in case.batches]).mean(0)
    changes = {row["token"]: row["change"] for row in found["up"]}
    distance = max(abs(changes[t] - float(wanted[t])) for t in range(len(changes)))
    note(case, f"effect, up to {float(wanted.abs().max()):.2g}", distance, bound)


def lacks(case, site):
    """The error names the site, and those that there are."""
    status, _, error = attempt("activations", *text_of(case), *where(case, site, 1), "--out", case.folder / "x.npy")
    good = status == 1 and "\n" not in error and f"site {site}: " in error and all(s in error for s in HAS[case.name])
    report(f"{case.name}: has no {site}, and says so", good, error)


def graph_nodes(case):
    """tensor:NAME is any node of llama.cpp's graph."""
    x, y = case.folder / "x.npy", case.folder / "y.npy"
    for tensor, site in (("l_out-1", "resid_out"), ("attn_norm-1", "attn_in"), ("ffn_swiglu-1", "mlp_hidden")):
        run("activations", *text_of(case), "--site", f"tensor:{tensor}", "--out", x, "--quiet")
        run("activations", *text_of(case), "--site", site, "--layer", 1, "--out", y, "--quiet")
        report(f"{case.name}: tensor:{tensor} is {site}", np.array_equal(np.load(x), np.load(y)))
    status, _, error = attempt("activations", *text_of(case), "--site", "tensor:none-1", "--out", x)
    report(f"{case.name}: no tensor:none-1", status == 1 and "\n" not in error and "l_out-" in error, error)
    status, _, error = attempt("activations", *text_of(case), "--site", "resid_out", "--layer", 3, "--out", x)
    report(f"{case.name}: no layer 3", status == 1 and "\n" not in error and "from 0 to 2" in error, error)


def engine(case):
    """The engine's own test, in C, on this model."""
    if not (BUILD / "test_llama").exists():
        return
    done = subprocess.run([BUILD / "test_llama"], env={**os.environ, "DLRN_TEST_GGUF": str(case.gguf)},
                          capture_output=True, text=True, timeout=300)
    close = ([""] + done.stdout.splitlines())[-1]
    good = done.returncode == 0 and " 0 failed" in close
    bad = [line for line in (done.stdout + done.stderr).splitlines() if not line.startswith("ok")]
    report(f"{case.name}: test_llama", good, close if good else f"status {done.returncode}: {'; '.join(bad[:3])}")


def check(case):
    tokens(case)
    last = case.model.config.num_hidden_layers - 1
    sites = HAS.get(case.name, SITES)
    bound = LIMIT
    if case.name == "tiny-neox":
        logits(case, "logits, GELU exact", OF_GELU)
        rows(case, "resid_out", [last], case.batches, what="resid_out, GELU exact", bound=OF_GELU)
        case.round_gelu()
        bound = OF_TABLE
    logits(case, bound=bound)
    for site in sites:
        rows(case, site, [0] if site == "embed" else range(last + 1), case.batches, bound=bound)
        cross_entropies(case, site, 1, case.batches)
    cross_entropies(case, "resid_out", last, case.batches)
    effects(case, 1, False, OF_EFFECT)
    effects(case, last, True, OF_EFFECT)
    bos = case.model.config.bos_token_id
    rows(case, "resid_out", [1], split(case), "--long", "split", what="resid_out, split")
    rows(case, "resid_out", [1], split(case, bos), "--long", "split", "--bos", what="resid_out, split, bos")
    cross_entropies(case, "resid_out", 1, split(case, bos), "--long", "split", "--bos", what="CE, split, bos")
    for site in SITES:
        if site not in sites:
            lacks(case, site)
    engine(case)
    if case.name == "llama":
        graph_nodes(case)


# ---- Quantised files


def quantised(source, out, kind, **how):
    """A copy of an f32 file whose matrices are of another type. how: settings of GGUFWriter."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(out, reader.get_field("general.architecture").contents(), **how)
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        element = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), field.types[0], sub_type=element)
    for t in reader.tensors:
        data = t.data.reshape([int(n) for n in reversed(t.shape)])
        if data.ndim == 2 and "embd" not in t.name:
            writer.add_tensor(t.name, gguf.quantize(data, kind), raw_dtype=kind)
        else:
            writer.add_tensor(t.name, np.array(data))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def identity(case):
    folder = case.folder / "identity"
    folder.mkdir(exist_ok=True)
    trainer = {"dict_class": "IdentityDict", "activation_dim": case.model.config.hidden_size}
    (folder / "config.json").write_text(json.dumps({"trainer": trainer}))
    return folder


def against_itself(case):
    """Rows that are read and written back as they were: the same cross-entropy, to the last digit."""
    exact, f32 = case.gguf, None
    for kind in (gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.Q4_1):
        case.gguf = exact
        if kind != gguf.GGMLQuantizationType.F32:
            case.gguf = case.folder / f"{kind.name}.gguf"
            quantised(exact, case.gguf, kind)
        for site in ("embed", "mlp_out", "resid_out"):
            found = evaluate(case, identity(case), site, 1)
            same = found["loss_original"] == found["loss_reconstructed"]
            changes = found["loss_zero"] != found["loss_original"]
            report(f"{case.name}, {kind.name}: {site} written back", same and changes,
                   f"CE {found['loss_original']:.7f}, {found['loss_reconstructed']:.7f}, zero {found['loss_zero']:.7f}")
        f32 = f32 or found["loss_original"]
        moved = abs(found["loss_original"] - f32) / f32
        report(f"{case.name}, {kind.name}: cross-entropy is near that in f32", moved < 0.1, f"{moved:.1e}")
    case.gguf = exact


def weights(path):
    """What inspect lists of a file, and what gguf's own reader does."""
    found = json.loads(run("inspect", path, "--json"))["tensors"]
    wanted = [{"name": t.name, "dtype": t.tensor_type.name.lower(), "shape": [int(n) for n in reversed(t.shape)]}
              for t in gguf.GGUFReader(path).tensors]
    return found, wanted


def in_parts(case):
    """A model in several files: its tensors are listed, and the unembedding is found in one of them."""
    found, wanted = weights(case.gguf)
    report(f"{case.name}: inspect lists the tensors", found == wanted and len(found) > 9, f"{len(found)}")
    quantised(case.gguf, case.folder / "parts.gguf", gguf.GGMLQuantizationType.F32, split_max_tensors=9)
    first = sorted(case.folder.glob("parts-*.gguf"))[0]
    parts, _ = weights(first)
    key = lambda t: t["name"]  # noqa: E731
    report(f"{case.name}: and those of several files", sorted(parts, key=key) == sorted(wanted, key=key))
    layer = case.model.config.num_hidden_layers - 1
    flags = ["--dict", dictionary(case, case.model.config.hidden_size), "--prompt", "She walked home.",
             *where(case, "resid_out", layer), "--json"]
    whole, part = (json.loads(run("effect", "--model", path, *flags)) for path in (case.gguf, first))
    report(f"{case.name}: effects from several files", whole["method"] == "linear" and
           whole["features"] == part["features"] and len(whole["features"]) == 8)


# ---- Files that are not models


def refused(name, path, *words):
    """One line, status 1, no crash; nothing is written."""
    out = WORK / "none.npy"
    rows_of = ["activations", "--site", "resid_out", "--layer", 0, "--out", out]
    for command in (rows_of, ["logits", "--out", out], ["inspect"]):
        flags = [path] if command == ["inspect"] else ["--model", path, "--text", WORK / "one.txt"]
        status, _, error = attempt(*command, *flags)
        good = status == 1 and error.startswith("dictlearn: ") and "\n" not in error and not out.exists()
        good = good and str(path) in error and all(word in error for word in words)
        report(f"{command[0]} of {name}: an error", good, f"status {status}: {error[:300]}")
        out.unlink(missing_ok=True)


def lacks_a_byte(case):
    """A SentencePiece vocabulary without a token for a byte: llama.cpp would end the process."""
    bad = WORK / "bad.gguf"
    bad.write_bytes(case.gguf.read_bytes().replace(b"<0xC3>", b"<0xZZ>"))
    (WORK / "one.txt").write_text(TEXTS[0] + "\n")
    status, _, error = attempt("tokenize", "--model", bad, "--text", WORK / "one.txt")
    report("a byte without a token: an error", status == 1 and "found 1 bytes without" in error, error[:300])


def damaged(case):
    (WORK / "one.txt").write_text(TEXTS[0] + "\n")
    whole = case.gguf.read_bytes()
    bad = WORK / "bad.gguf"

    def of(name, content, *words):
        bad.write_bytes(content)
        refused(name, bad, *words)

    for part in (0, 3, 4, 20, 4000, len(whole) // 2, len(whole) - 1):
        of(f"a file cut to {part} bytes", whole[:part])
    of("a wrong magic", b"GGML" + whole[4:])
    of("a wrong version", whole[:4] + struct.pack("<I", 77) + whole[8:])
    of("a count of 2^60 tensors", whole[:8] + struct.pack("<Q", 1 << 60) + whole[16:])
    of("an unknown architecture", whole.replace(struct.pack("<Q", 5) + b"llama", struct.pack("<Q", 5) + b"lxama"))
    of("a tensor of another name", whole.replace(b"blk.1.ffn_up.weight", b"blk.1.ffn_xx.weight"), "blk.1.ffn_up.weight")
    vocabulary = WORK / "vocabulary.gguf"
    config = ModelBase.load_hparams(case.folder, False)
    kind = get_model_class(get_model_architecture(config, ModelType.TEXT))
    kind(case.folder, gguf.LlamaFileType.ALL_F32, vocabulary, hparams=config).write_vocab()
    for command in ("activations", "logits"):
        site = ["--site", "resid_out", "--layer", 0] if command == "activations" else []
        flags = ["--model", vocabulary, "--text", case.texts, *site, "--out", WORK / "none.npy"]
        status, _, error = attempt(command, *flags)
        good = status == 1 and "\n" not in error and str(vocabulary) in error
        report(f"{command} of a file with a vocabulary alone: an error", good, f"status {status}: {error[:300]}")


def main():
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir(parents=True)
    only = sys.argv[2:]  # names of models
    kept = {}
    for seed, (name, model) in enumerate({"tiny-neox": (None, "olmo", None), **MODELS}.items()):
        if only and name not in only:
            continue
        try:
            kept[name] = Case(name, seed, *model)
            check(kept[name])
        except Exception as error:  # a model that cannot be run is one failure, not the end
            report(name, False, f"{type(error).__name__}: {error}")
    for name in ("llama", "gpt-2", "gemma 2"):
        if name in kept:
            against_itself(kept[name])
    if "llama" in kept:
        in_parts(kept["llama"])
        damaged(kept["llama"])
    if "gemma 2" in kept:
        lacks_a_byte(kept["gemma 2"])
    for name, row in worst.items():
        print(f"{name:22s}", ", ".join(f"{what} {distance:.1e}" for what, distance in row.items()))
    print(f"{passed} passed, {failed} failed")
    return failed != 0


if __name__ == "__main__":
    sys.exit(main())
