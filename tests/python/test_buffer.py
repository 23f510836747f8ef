"""ActivationBuffer: which rows it gives, how often, in which order, and when it ends."""

import json

import numpy as np
from harness import folder, main, raises
from small_models import TEXTS, contexts, model, tokenizer, torch

import dlrn
from dlrn import models
from dlrn.buffer import ActivationBuffer, NNsightActivationBuffer, texts_of

SITE = "gpt_neox.layers.1.mlp"
MANY = [f"{text} {i}" for i in range(40) for text in TEXTS]


def buffer(data, **settings):
    settings = {
        "n_ctxs": 8,
        "ctx_len": 16,
        "refresh_batch_size": 4,
        "out_batch_size": 20,
        **settings,
    }
    return ActivationBuffer(
        data,
        settings.pop("model", model("neox")),
        settings.pop("submodule", SITE),
        tokenizer=settings.pop("tokenizer", tokenizer()),
        **settings,
    )


def expected(texts, ctx_len=16, site=SITE, io="out"):
    """The rows of texts in their order, each context run alone."""
    t = torch()
    ids = [context[:ctx_len] for context in contexts(texts)]
    return t.cat([models.rows_at(model("neox"), site, [context], io) for context in ids])


def position(row, rows):
    """Which row of rows this is."""
    distance = (rows - row).abs().sum(dim=1)
    assert float(distance.min()) < 1e-3
    return int(distance.argmin())


def test_every_row_comes_once_and_none_of_padding():
    t = torch()
    got = t.cat(list(buffer(MANY[:50], seed=1, out_batch_size=10)))
    rows = expected(MANY[:50])
    assert len(rows) - 10 < len(got) <= len(rows)
    # rows of equal beginnings of texts come as often as they are there
    found = np.bincount([position(row, rows) for row in got], minlength=len(rows))
    unique, counts = np.unique(rows.numpy().round(4), axis=0, return_counts=True)
    assert found.sum() == len(got) and (found > 0).sum() >= len(unique) - 10
    assert found.max() <= counts.max()


def test_batches_are_drawn_from_all_of_the_store():
    b = buffer(MANY, seed=1)
    batch = next(b)
    assert batch.shape == (20, 128) and b.activations.shape == (128, 128)
    assert int(b.read.sum()) == 20 and b.read.shape == (128,)
    rows = expected(MANY)
    places = [position(row, rows) for row in batch]
    assert max(places) > 64 and min(places) < 32 and places != sorted(places)


def test_the_store_is_filled_again_below_half():
    b = buffer(MANY, seed=1)
    unread = []
    for _ in range(8):
        next(b)
        unread.append(int((~b.read).sum()))
    assert unread == [108, 88, 68, 48, 108, 88, 68, 48], unread


def test_unread_rows_stay():
    t = torch()
    b = buffer(MANY, seed=1)
    for _ in range(4):
        next(b)
    left = b.activations[~b.read].clone()
    next(b)
    assert t.equal(b.activations[: len(left)], left)


def test_the_end_of_the_data():
    rows = expected(MANY[:9])
    for size in (1, 4, 9, 512):
        b = buffer(iter(MANY[:9]), seed=1, refresh_batch_size=size)
        batches = list(b)
        assert len(batches) == len(rows) // 20 and all(len(batch) == 20 for batch in batches)
        raises(StopIteration, next, b)
        raises(StopIteration, b.text_batch)
    assert list(buffer([])) == []
    assert list(buffer(["", ""])) == []


def test_seeds():
    t = torch()
    for draw in (
        lambda seed: buffer(MANY, seed=seed),
        lambda seed: (t.manual_seed(seed), buffer(MANY))[1],
    ):
        a, b, c = (t.cat([next(x) for x in [draw(seed)] * 3]) for seed in (1, 1, 2))
        assert t.equal(a, b) and not t.equal(a, c)


def test_both_signatures():
    march = ActivationBuffer(
        iter(MANY),
        model("neox"),
        SITE,
        out_feats=128,
        n_ctxs=8.0,
        ctx_len=16,
        in_batch_size=4,
        out_batch_size=20,
        tokenizer=tokenizer(),
        device="cpu",
    )
    assert next(march).shape == (20, 128) and march.in_batch_size == 4
    today = buffer(MANY, d_submodule=128, io="in", remove_bos=True, max_activation_norm_multiple=10)
    assert next(today).shape == (20, 128)
    assert today.config == {
        "d_submodule": 128,
        "io": "in",
        "n_ctxs": 8,
        "ctx_len": 16,
        "refresh_batch_size": 4,
        "out_batch_size": 20,
        "device": "cpu",
    }
    raises(dlrn.ArgumentError, buffer, MANY, d_submodule=64, says="128")
    raises(dlrn.ArgumentError, buffer, MANY, out_batch_size=0, says="out_batch_size")
    raises(dlrn.ArgumentError, buffer, MANY, io="between", says="'in_to_out'")


def test_either_side_and_both():
    t = torch()
    given, returned = (expected(MANY[:9], io=io) for io in ("in", "out"))
    for row in next(buffer(MANY[:9], io="in")):
        position(row, given)
    pairs = next(buffer(MANY[:9], io="in_to_out"))
    stacked = next(buffer(MANY[:9], io="in_and_out"))
    assert stacked.shape == (20, 2, 128)
    for a, b in (pairs, (stacked[:, 0], stacked[:, 1])):
        assert [position(row, given) for row in a] == [position(row, returned) for row in b]
    up = f"{SITE}.dense_h_to_4h"
    a, b = next(buffer(MANY, submodule=up, io="in_to_out"))
    assert a.shape == (20, 128) and b.shape == (20, 512)
    raises(dlrn.ArgumentError, buffer, MANY, submodule=up, io="in_and_out", says="128 and 512")
    assert t.is_grad_enabled() and not a.requires_grad


def test_rows_have_the_model_type():
    t = torch()
    for dtype in ("float16", "bfloat16"):
        b = buffer(MANY, model=model("neox", dtype))
        assert next(b).dtype == getattr(t, dtype)
        assert next(b.source()).dtype == t.float32


def test_tokenized_batches_are_those_of_the_tokenizer():
    encode = tokenizer()
    wanted = encode(MANY[:4], max_length=16, truncation=True)["input_ids"]
    for side in ("right", "left"):
        encode.padding_side = side
        try:
            batch = buffer(MANY).tokenized_batch()
        finally:
            encode.padding_side = "right"
        for ids, mask, row in zip(batch["input_ids"], batch["attention_mask"], wanted):
            assert ids[mask != 0].tolist() == row
            ends = (1, len(row)) if side == "right" else (len(mask) - len(row) + 1, len(mask))
            assert mask.nonzero()[[0, -1]].flatten().tolist() == [ends[0] - 1, ends[1] - 1]
        # its own padding is not in this model's vocabulary
        assert int(batch["input_ids"].max()) < 2048
    b = buffer(MANY)
    assert b.text_batch(2) == MANY[:2] and b.text_batch() == MANY[2:6]
    assert b.tokenized_batch(batch_size=3)["input_ids"].shape[0] == 3


def test_texts_that_are_too_few_are_kept():
    b = buffer(iter(MANY[:3]))
    raises(StopIteration, b.text_batch, 4)
    assert b.text_batch(3) == MANY[:3]


def test_tokens_as_data():
    t = torch()
    ids = [context[:7] for context in contexts(MANY) if len(context) >= 7]
    rows = t.cat([models.rows_at(model("neox"), SITE, [c]) for c in ids])
    b = NNsightActivationBuffer(
        iter(ids),
        model("neox"),
        SITE,
        n_ctxs=8,
        ctx_len=16,
        refresh_batch_size=4,
        out_batch_size=20,
        io="in_and_out",
    )
    for row in next(b)[:, 1]:
        position(row, rows)
    assert b.token_batch(2).shape == (2, 7) and b.text_batch(3).shape == (3, 7)


def test_beginnings_and_long_rows_are_left_out():
    t = torch()
    texts = ["<|endoftext|>" + text for text in MANY[:9]]
    rows = expected(texts)
    starts = expected(["<|endoftext|>"])
    for kept in (
        t.cat(list(buffer(texts, remove_bos=True, out_batch_size=1))),
        t.cat(list(buffer(texts, remove_bos=True).source())),
    ):
        assert len(kept) == len(rows) - 9
        assert float((kept - starts).abs().sum(dim=1).min()) > 1e-2
    norms = rows.norm(dim=1)
    limit = 1.2
    short = rows[norms <= norms.median() * limit]
    assert 0 < len(short) < len(rows)
    kept = t.cat(
        list(buffer(texts, max_activation_norm_multiple=limit, refresh_batch_size=9).source())
    )
    assert kept.shape == short.shape and float((kept - short).abs().max()) < 1e-4

    class NoBos:
        """A tokenizer without a BOS token."""

        bos_token_id, eos_token_id, pad_token_id, padding_side = None, 0, 0, "right"

        def __call__(self, *args, **words):
            return tokenizer()(*args, **words)

    import warnings

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        kept = t.cat(list(buffer(MANY[:9], remove_bos=True, tokenizer=NoBos()).source()))
    assert len(kept) == len(expected(MANY[:9])) - 9 and "no BOS" in str(said[0].message)


def test_source_gives_the_same_rows_in_order_for_every_batch_size():
    t = torch()
    rows = expected(MANY)
    results = [t.cat(list(buffer(MANY, refresh_batch_size=size).source())) for size in (1, 7, 512)]
    assert results[0].shape == rows.shape and results[0].dtype == t.float32
    assert float((results[0] - rows).abs().max()) < 1e-4
    assert all(t.equal(results[0], other) for other in results[1:])
    pairs = list(buffer(MANY, io="in_to_out").source())
    assert t.equal(t.cat([y for _, y in pairs]), results[0])


def test_texts_are_taken_when_they_are_needed():
    import itertools

    taken = itertools.count()
    endless = (f"{MANY[i % 7]} {next(taken)}" for i in itertools.count())
    next(buffer(endless).source())
    assert next(taken) <= 65
    next(buffer(endless))
    assert next(taken) <= 100


def test_source_seeks():
    t = torch()
    whole = t.cat(list(buffer(MANY).source()))
    for settings in ({}, {"max_activation_norm_multiple": 1e9}):
        b = buffer(MANY, **settings)
        source = b.source()
        for place in (0, 5, len(whole) - 3, 1000, 0, len(whole)):
            source.seek(place)
            rest = list(source)
            assert t.equal(t.cat(rest) if rest else whole[:0], whole[place:]), place
    source = buffer(iter(MANY)).source()
    source.seek(7)
    assert t.equal(next(source), whole[7 : source.position])
    raises(dlrn.Unsupported, source.seek, 3, says="once")
    b = buffer(MANY)
    first = b.text_batch(10)
    source = b.source()
    list(source)
    source.seek(0)
    assert len(t.cat(list(source))) == len(whole) - len(expected(first))


def test_files_of_texts():
    here = folder("texts")
    documents = ["One line.", "Two\nlines.", "   indented", "last"]
    (here / "a.txt").write_text("\n" + "\n\n \n".join(documents) + "\n")
    for name in ("b.jsonl", "b.json"):
        (here / name).write_text(
            "\n".join(json.dumps({"text": text, "n": 1}) for text in documents) + "\n"
        )
        assert list(texts_of(here / name)[0]()) == documents
    assert list(texts_of(str(here / "a.txt"))[0]()) == documents
    (here / "c.jsonl").write_text('{"text": "fine"}\n{"words": "no"}\n')
    lines = texts_of(here / "c.jsonl")[0]()
    assert next(lines) == "fine"
    raises(dlrn.FormatError, next, lines, says="line 2")
    assert list(texts_of(here / "b.jsonl", "n")[0]()) == [1] * 4
    raises(dlrn.MissingFile, texts_of, "no such file", says="no such file")
    raises(FileNotFoundError, texts_of, here / "none.txt")
    raises(dlrn.ArgumentError, texts_of, 3, says="found int")
    b = buffer(here / "a.txt", refresh_batch_size=2)
    assert b.text_batch() == documents[:2] and b.text_batch() == documents[2:]
    b.close()
    b = buffer([{"text": text} for text in MANY])
    assert b.text_batch(2) == MANY[:2]
    raises(dlrn.ArgumentError, buffer([1.5]).text_batch, 1, says="found float")


def test_the_library_reads_a_buffer():
    t = torch()
    from dlrn.sources import source_of

    whole = t.cat(list(buffer(MANY).source())).numpy()
    with source_of(buffer(MANY)) as source:
        got = np.concatenate([x.copy() for x, _ in source.batches(100)])
    assert np.array_equal(got, whole)
    with source_of(buffer(MANY, io="in_to_out")) as source:
        assert source.d == 128 and source.d_out == 128
        got = np.concatenate([y.copy() for _, y in source.batches(100)])
    assert np.array_equal(got, whole)


if __name__ == "__main__":
    main(globals())
