/* test_cpp.cpp - the C++ interface: what is freed and when, moves, spans, errors with exceptions
   and without. test_cpp.sh compiles it with each compiler and standard. All memory of a context
   passes through its allocator here, so that blocks that are not returned show. */
#include "../examples/dictlearn.hpp"
#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>
#if __cplusplus >= 202002L
#include <span>
#endif

enum { D = 8, F = 24, N = 64 };
static int passed, failed, blocks;

static void check(bool ok, const char *what) {
    if (ok)
        passed++;
    else
        failed++, std::printf("FAIL %s\n", what);
}

static void *get_block(void *, std::size_t size) { return blocks++, std::malloc(size); }
static void put_block(void *, void *p) {
    if (p) blocks--, std::free(p);
}

/* The value of a call that must succeed, with exceptions and without. */
#ifdef DICTLEARN_NO_EXCEPTIONS
template <class T> static T take(dlrn::Result<T> &&r) {
    if (!r) std::printf("FAIL status %d\n", r.status), std::exit(1);
    return std::move(r.value);
}
#else
template <class T> static T take(T &&value) { return std::move(value); }
#endif

/* Whether a call fails with this status, and the text of the context begins so. */
template <class Call>
static bool fails(const dlrn::Context &ctx, dlrn_status wanted, const char *text, Call call) {
    dlrn_status found = DLRN_OK;
    std::string said;
#ifdef DICTLEARN_NO_EXCEPTIONS
    auto result = call();
    found = result.status, said = ctx.error();
#else
    try {
        call();
    } catch (const dlrn::Error &e) { found = e.status, said = e.what(); }
    if (said != ctx.error()) return false;
#endif
    if (found == wanted && said.find(text) != std::string::npos) return true;
    std::printf("status %d, '%s'\n", found, said.c_str());
    return false;
}

static dlrn::Context new_context() {
    dlrn_context_config config = dlrn_context_config();
    config.threads = 1, config.alloc = get_block, config.release = put_block;
    return take(dlrn::Context::create(config));
}

static dlrn::Dictionary new_dictionary(const dlrn::Context &ctx) {
    dlrn_dictionary_desc desc = dlrn_dictionary_desc();
    desc.d_in = D, desc.features = F, desc.seed = 3;
    return take(dlrn::Dictionary::create(ctx, desc));
}

static std::vector<float> new_rows() {
    std::vector<float> x(N * D);
    dlrn_rng rng = {1, 0, 0};
    for (float &each : x) each = dlrn_rng_normal(&rng);
    return x;
}

static void test_moves() {
    dlrn::Context ctx, first = new_context();
    dlrn::Dictionary moved, sae = new_dictionary(first);
    std::vector<float> x = new_rows(), f(N * F);
    {
        dlrn::Encoder encoder = take(dlrn::Encoder::create(*sae));
        ctx = std::move(first);
        moved = std::move(sae);
        take(encoder.run(x, f, nullptr, {}));
    }
    check(!first && !sae && ctx && moved, "what was moved from is null");
    const int before = blocks;
    moved = new_dictionary(ctx);
    check(moved->features == F && blocks == before, "an assignment frees what was there");
    static_assert(!std::is_copy_constructible<dlrn::Dictionary>::value, "objects are not copied");
    static_assert(!std::is_copy_assignable<dlrn::Codes>::value, "nor assigned");
    static_assert(std::is_nothrow_move_constructible<dlrn::Trainer>::value, "moves do not throw");
}

static void test_spans() {
    dlrn::Context ctx = new_context();
    dlrn::Dictionary sae = new_dictionary(ctx);
    dlrn::Encoder encoder = take(dlrn::Encoder::create(*sae));
    const std::vector<float> x = new_rows();
    std::vector<float> wanted(N * F), f(N * F), one(F);
    check(dlrn_encode(sae.get(), x.data(), N, wanted.data()) == DLRN_OK, "encodes in C");
    take(encoder.run(x, f, nullptr, {}));
    check(f == wanted, "vectors");
    float plain[D];
    std::array<float, F> array;
    std::memcpy(plain, x.data(), sizeof plain);
    take(encoder.run(plain, array, nullptr, {}));
    check(!std::memcmp(array.data(), wanted.data(), sizeof array), "arrays");
    take(encoder.run({x.data() + D, D}, one, nullptr, {}));
    check(!std::memcmp(one.data(), wanted.data() + F, sizeof array), "pointer and size");
#if __cplusplus >= 202002L
    std::span<const float> all = x;
    std::span<float> out = array;
    take(encoder.run(all.subspan(D, D), out, nullptr, {}));
    check(!std::memcmp(array.data(), wanted.data() + F, sizeof array), "std::span");
#endif
    dlrn::Codes codes;
    std::vector<float> x_hat(N * D), again(N * D);
    take(encoder.run(x, {}, codes.get(), x_hat));
    take(sae.call(dlrn_decode_sparse, codes, again.data()));
    check(again == x_hat, "codes");
}

static void test_errors() {
    dlrn::Context ctx = new_context();
    dlrn::Dictionary sae = new_dictionary(ctx);
    dlrn::Encoder encoder = take(dlrn::Encoder::create(*sae));
    std::vector<float> x = new_rows(), f(N * F), x_hat(N * D);
    check(fails(ctx, DLRN_ERR_IO, "no/such.pt",
                [&] { return dlrn::Dictionary::load(ctx, "no/such.pt", nullptr); }),
          "a file that is not there");
    check(fails(ctx, DLRN_ERR_SHAPE, "expected 7 rows of 8, found 63 numbers",
                [&] {
                    return encoder.run({x.data(), 63}, f, nullptr, x_hat);
                }),
          "a part of a row");
    check(fails(ctx, DLRN_ERR_SHAPE, "expected 63 rows of 24, found 1536 numbers",
                [&] {
                    return encoder.run({x.data(), 63 * D}, f, nullptr, {});
                }),
          "features of other rows");
    check(fails(ctx, DLRN_ERR_SHAPE, "expected 64 rows of 8, found 8 numbers",
                [&] {
                    return encoder.run(x, {}, nullptr, {x_hat.data(), D});
                }),
          "no room for x_hat");
    check(fails(ctx, DLRN_ERR_SHAPE, "expected 73 rows of 7",
                [&] { return dlrn::Source::array(ctx, x, 7, 1); }),
          "a source of another width");
    check(fails(ctx, DLRN_ERR_SHAPE, "", [&] { return dlrn::Source::array(ctx, x, 0, 1); }),
          "a source of no width");
    dlrn::Evaluator evaluator = take(dlrn::Evaluator::create(*sae, nullptr));
    check(fails(ctx, DLRN_ERR_SHAPE, "expected 0 rows of 8, found 3 numbers",
                [&] {
                    return evaluator.add({x.data(), 3});
                }),
          "rows of another width");
    check(fails(ctx, DLRN_ERR_ARGUMENT, "", [&] { return evaluator.finish(); }), "no rows");
    dlrn_context_config config = dlrn_context_config();
    config.kernels = "none";
    dlrn::Context none;
    check(fails(none, DLRN_ERR_ARGUMENT, "", [&] { return dlrn::Context::create(config); }),
          "no context, but a text");
    take(encoder.run({}, {}, nullptr, {})); // no rows
}

/* An object of the caller whose constructor fails after its members were made. */
struct Model {
    dlrn::Context ctx;
    dlrn::Dictionary sae;
    dlrn::Encoder encoder;
    dlrn::Codes codes;
    Model() : ctx(new_context()), sae(new_dictionary(ctx)), encoder() {
        std::vector<float> x = new_rows();
        encoder = take(dlrn::Encoder::create(*sae));
        take(encoder.run(x, {}, codes.get(), {}));
#ifndef DICTLEARN_NO_EXCEPTIONS
        sae.save("no/such/folder.pt");
#endif
    }
};

static void test_constructor() {
#ifdef DICTLEARN_NO_EXCEPTIONS
    Model model;
    check(!model.sae.save("no/such/folder.pt"), "a failure is false");
#else
    bool caught = false;
    try {
        Model model;
    } catch (const std::exception &) { caught = true; }
    check(caught, "a constructor throws");
#endif
}

static void test_training(const char *path) {
    dlrn::Context ctx = new_context();
    const std::vector<float> x = new_rows();
    dlrn_train_config cfg = dlrn_train_defaults("dl-top_k");
    cfg.d_in = D, cfg.features = F, cfg.k = 3, cfg.steps = 10, cfg.lr = 1e-3;
    cfg.warmup_steps = 0, cfg.buffer.capacity = N, cfg.buffer.batch_rows = 16;
    dlrn::Source rows = take(dlrn::Source::array(ctx, x, D, 0));
    dlrn::Dictionary easy = take(dlrn::Trainer::train(ctx, cfg, rows, nullptr, nullptr));

    dlrn::Source again = take(dlrn::Source::array(ctx, x, D, 0));
    dlrn::Buffer buffer = take(dlrn::Buffer::create(ctx, cfg.buffer, again, DLRN_BORROWED));
    dlrn::Trainer trainer = take(dlrn::Trainer::create(ctx, cfg, nullptr, buffer));
    dlrn_train_stats stats = dlrn_train_stats();
    while (take(trainer.step(&stats))) {}
    check(stats.step == 9, "steps end as the configuration says");
    dlrn::Dictionary sae = take(dlrn::Trainer::finish(trainer));
    check(!std::memcmp(sae->param[DLRN_DECODER], easy->param[DLRN_DECODER], sizeof(float) * D * F),
          "step by step and in one call: the same bits");
    check(trainer.dictionary().features == F, "the dictionary while it trains");
    take(trainer.call(dlrn_trainer_save, path));
    dlrn::Source third = take(dlrn::Source::array(ctx, x, D, 0));
    dlrn::Buffer fresh = take(dlrn::Buffer::create(ctx, cfg.buffer, third, DLRN_BORROWED));
    dlrn::Trainer resumed = take(dlrn::Trainer::resume(ctx, path, nullptr, fresh));
    check(!take(resumed.step()), "a resumed run has ended, too");

    dlrn::Evaluator evaluator = take(dlrn::Evaluator::create(*sae, nullptr));
    take(evaluator.add(x));
    dlrn_metrics m = take(evaluator.finish());
    check(m.rows == N && m.l0 <= 3, "an evaluation");
}

int main(int argc, char **argv) {
    std::string state = argc > 1 ? argv[1] : "build/tmp/test_cpp.safetensors";
    test_moves();
    test_spans();
    test_errors();
    test_constructor();
    test_training(state.c_str());
    std::remove(state.c_str());
    check(blocks == 0, "all memory was returned");
    std::printf("%d passed, %d failed\n", passed, failed);
    return failed != 0;
}
