"""features.py - what `features` costs beside the model's own pass over the same text, and beside SAEDashboard.

    features.py BUILD [--only NAME] [--rounds N] [--dry]

Run by a Python that has the libraries of `make venv`. Two models: tiny-neox, and a GPT-NeoX of GPT-2 small's shape with
random weights. The text is random token ids, in contexts of 128 that begin with bos. The dictionary is random, with
thresholds for which about 32 features fire on a row, each on a share of its own. Taken in turns, the best of each:

    pass         activations --out /dev/null: the model up to the site, and nothing else
    page         features --out PAGE.html: that pass, the sweep, and a page of at most 1000 features
    json         features --all --json: the same work as SAEDashboard's
    SAEDashboard dashboard_peer.py: SaeVisRunner and the converter for Neuronpedia on the same weights, tokens,
                 and features, 128 at a time, with its cache of activations on the disk; loading not counted. Of
                 the second model's features it gets two batches: all others are counted like the second one,
                 since only the first one runs the model

Times are seconds on the clock, and of the processor (user and system), which other work on the machine disturbs less.
Writes bench/results/features.json and the table of bench/README.md (not with --dry).
"""
import argparse
import json
import os
import pathlib
import subprocess
import sys
import time

import numpy as np
import torch
import transformers

HERE = pathlib.Path(__file__).parent
RECORD, README = HERE / "results" / "features.json", HERE / "README.md"
TINY = HERE.parent / "examples/data/tiny-neox"
CTX_LEN, L0, BEGIN, END = 128, 32, "<!-- features:begin -->\n", "<!-- features:end -->\n"
# name: contexts, features, of those SAEDashboard's, layer of resid_out, rounds
CASES = {"tiny-neox": (1000, 1024, 1024, 3, 2), "gpt-2 small's shape": (64, 6144, 256, 5, 1)}
KINDS = ("pass", "page", "json", "SAEDashboard")


def run(command, out=subprocess.DEVNULL):
    """Seconds on the clock, of the processor, peak of memory in bytes; and its standard output."""
    began = time.perf_counter()
    child = subprocess.Popen([str(c) for c in command], stdout=out, env={**os.environ, "OMP_WAIT_POLICY": "passive"})
    text = child.stdout.read().decode() if child.stdout else ""
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{command[0]} {command[1]}: status {child.returncode}")
    return {"seconds": time.perf_counter() - began, "processor": usage.ru_utime + usage.ru_stime,
            "peak": usage.ru_maxrss * 1024}, text


def model_of(name, at):
    """A folder with the model."""
    if name == "tiny-neox":
        return TINY
    torch.manual_seed(1)
    config = transformers.GPTNeoXConfig(
        vocab_size=50304, hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072,
        max_position_embeddings=1024, rotary_pct=0.25, hidden_act="gelu", bos_token_id=0, eos_token_id=0)
    transformers.GPTNeoXForCausalLM(config).half().save_pretrained(at)
    (at / "tokenizer.json").write_bytes((TINY / "tokenizer.json").read_bytes())
    return at


def write_text(at, contexts):
    tokens = np.random.default_rng(2).integers(1, 2048, (contexts, CTX_LEN))
    tokens[:, 0] = 0
    np.save(at / "tokens.npy", tokens)
    (at / "ids.jsonl").write_text("".join(json.dumps({"input_ids": row.tolist()}) + "\n" for row in tokens))


def write_dictionary(at, features, site):
    """Random atoms of length 1; each feature's bias is a quantile of what it sees on some rows."""
    run([*site, "--out", at / "some.npy", "--ctx-len", 32])
    x = torch.from_numpy(np.load(at / "some.npy"))[:4096]
    g = torch.Generator().manual_seed(3)
    atoms = torch.nn.functional.normalize(torch.randn(features, x.shape[1], generator=g), dim=1)
    bias = x.mean(0)
    shares = torch.logspace(-2.5, 0, features)[torch.randperm(features, generator=g)]
    shares = (shares * L0 / shares.sum()).clamp(max=0.5)
    pre = (x - bias) @ atoms.T
    level = torch.cat([torch.quantile(pre[:, i:i + 1], 1 - shares[i].item(), dim=0) for i in range(features)])
    torch.save({"bias": bias, "encoder.weight": atoms, "encoder.bias": -level,
                "decoder.weight": atoms.T.contiguous()}, at / "ae.pt")


def theirs(command, batches):
    """By its own clock, which begins when the model is loaded; what is left of the batches like the last one."""
    one, text = run(command, subprocess.PIPE)
    own = json.loads(text.splitlines()[-1])
    for clock in ("seconds", "processor"):
        of = own[clock]
        one[clock] = sum(of) + of[-1] * (batches - len(of))
    return one


def best(runs):
    return {key: min(r[key] for r in runs) for key in runs[0]}


def measure(name, build, rounds):
    contexts, features, some, layer, usual = CASES[name]
    at = build / "tmp" / "bench_features"
    at.mkdir(parents=True, exist_ok=True)
    model = model_of(name, at)
    write_text(at, contexts)
    common = ["--model", model, "--text", at / "ids.jsonl", "--tokens-key", "input_ids", "--site", "resid_out",
              "--layer", layer, "--quiet"]
    passes = [build / "dictlearn", "activations", *common]
    ours = [build / "dictlearn", "features", "--dict", at / "ae.pt", *common, "--ctx-len", CTX_LEN, "--rows", "all",
            "--skip-special"]
    write_dictionary(at, features, passes)
    peer = [sys.executable, HERE / "dashboard_peer.py", model, at / "ae.pt", at / "tokens.npy",
            f"blocks.{layer}.hook_resid_post"]
    commands = {"pass": [*passes, "--ctx-len", CTX_LEN, "--out", "/dev/null"],
                "page": [*ours, "--out", at / "page.html"], "json": [*ours, "--all", "--json"]}
    found = {kind: [] for kind in KINDS}
    for _ in range(rounds or usual):
        for kind in KINDS:
            if kind == "SAEDashboard":
                one = theirs([*peer, some, at / "theirs"], features // 128)
            else:
                one, _ = run(commands[kind])
            found[kind].append(one)
            print(f"{name}: {kind}: {one['seconds']:.2f} s, {one['processor']:.2f} s of the processor, "
                  f"{one['peak'] / 1e6:.0f} MB", flush=True)
    row = {kind: best(runs) for kind, runs in found.items()}
    row["page size"] = (at / "page.html").stat().st_size
    return {"name": name, "contexts": contexts, "features": features, "layer": layer, **row}


def ratios(row, clock):
    """The rate of a page beside the model's pass; SAEDashboard's time over ours."""
    return row["pass"][clock] / row["page"][clock], row["SAEDashboard"][clock] / row["json"][clock]


def table(record):
    lines = ["| model, contexts of 128, features | rate of a page beside the model's pass (goal >= 0.7) | "
             "SAEDashboard's time / ours (goal >= 10) | its memory / ours | the page |", "|---|---|---|---|---|"]
    for row in record["rows"]:
        (page, times), (page_clock, times_clock) = ratios(row, "processor"), ratios(row, "seconds")
        ours = row["json"]["peak"]
        lines.append(
            f"| {row['name']}, {row['contexts']}, {row['features']} | {page:.2f} (by the clock {page_clock:.2f}) | "
            f"{times:.1f} (by the clock {times_clock:.1f}) | {row['SAEDashboard']['peak'] / ours:.1f} "
            f"(ours {ours / 1e6:.0f} MB) | {row['page size'] / 1e6:.1f} MB |")
    where = f"{record['machine']}; PyTorch {record['torch']}, SAEDashboard 0.8.0, TransformerLens 3.9.0."
    return "\n".join([f"{where} Ratios of processor time.", "", *lines]) + "\n"


def write_readme(record):
    text = README.read_text(encoding="utf-8")
    start, end = text.index(BEGIN) + len(BEGIN), text.index(END)
    README.write_text(text[:start] + table(record) + text[end:], encoding="utf-8")


def machine():
    model = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "?")
    return f"{model}, {os.cpu_count()} threads"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("build", type=pathlib.Path)
    parser.add_argument("--only", choices=CASES)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--dry", action="store_true")
    o = parser.parse_args()
    names = [o.only] if o.only else list(CASES)
    record = {"machine": machine(), "torch": torch.__version__, "rows": [measure(n, o.build, o.rounds) for n in names]}
    print(table(record))
    if not o.dry:
        RECORD.write_text(json.dumps(record, indent=1) + "\n")
        write_readme(record)


if __name__ == "__main__":
    main()
