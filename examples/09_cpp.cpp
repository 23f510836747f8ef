/* 09_cpp.cpp - the same in C++: train, save, load, encode, evaluate. Nothing is freed by hand, and
   what fails throws.

       c++ -std=c++11 -O2 -fopenmp -I. examples/09_cpp.cpp -o cpp
       ./cpp */
#include <array>
#include <cstdio>
#include <vector>
#define DICTLEARN_IMPLEMENTATION
#include "dictlearn.hpp"

enum { DIM = 32, DIRECTIONS = 96, ROWS = 20000, FEATURES = 192, STEPS = 600 };

/* [ROWS][DIM]: each row is a sum of three of 96 directions. */
static std::vector<float> make_rows() {
    std::vector<float> x(ROWS * DIM);
    dlrn_rng rng = {1, 0, 0};
    for (std::size_t i = 0; i < x.size(); i += DIM)
        for (int k = 0; k < 3; k++) {
            dlrn_rng direction = {2, dlrn_rng_below(&rng, DIRECTIONS), 0};
            for (std::size_t c = 0; c < DIM; c++) x[i + c] += dlrn_rng_normal(&direction);
        }
    return x;
}

static dlrn::Dictionary train(const dlrn::Context &ctx, const std::vector<float> &x) {
    dlrn_train_config cfg = dlrn_train_defaults("dl-batch_top_k");
    cfg.d_in = DIM, cfg.features = FEATURES, cfg.k = 3, cfg.steps = STEPS;
    cfg.lr = 3e-3, cfg.warmup_steps = 50, cfg.decay_start = 500, cfg.threshold_start_step = 100;
    cfg.buffer.capacity = ROWS, cfg.buffer.batch_rows = 512;

    const int64_t epochs = 0; // without end
    dlrn::Source source = dlrn::Source::array(ctx, x, DIM, epochs);
    dlrn::Buffer buffer = dlrn::Buffer::create(ctx, cfg.buffer, source, DLRN_BORROWED);
    dlrn::Trainer trainer = dlrn::Trainer::create(ctx, cfg, nullptr, buffer);
    dlrn_train_stats stats;
    while (trainer.step(&stats))
        if (stats.step % 150 == 0)
            std::printf("step %3d  loss %7.3f  L0 %.2f\n", int(stats.step), stats.loss, stats.l0);
    return dlrn::Trainer::finish(trainer);
}

/* The features of one row, as codes. */
static void print_row(dlrn::Encoder encoder, const std::vector<float> &x) {
    dlrn::Codes codes;
    std::array<float, DIM> x_hat;
    encoder.run({x.data(), DIM}, {}, codes.get(), x_hat);
    for (int64_t k = 0; k < codes->row_ptr[1]; k++)
        std::printf("feature %d: %.2f\n", int(codes->col[k]), double(codes->val[k]));
    std::printf("x begins with %.2f, x_hat with %.2f\n", double(x[0]), double(x_hat[0]));
}

int main() try {
    std::vector<float> x = make_rows();
    dlrn::Context ctx = dlrn::Context::create();
    train(ctx, x).save("cpp.pt");

    dlrn::Dictionary sae = dlrn::Dictionary::load(ctx, "cpp.pt", nullptr);
    std::remove("cpp.pt");
    print_row(dlrn::Encoder::create(*sae), x);

    dlrn::Evaluator evaluator = dlrn::Evaluator::create(*sae, nullptr);
    evaluator.add(x);
    dlrn_metrics m = evaluator.finish();
    std::printf("variance explained %.1f %%, L0 %.2f, alive %.1f %%\n", 100 * m.variance_explained,
                m.l0, 100 * m.share_alive);

    dlrn::Dictionary::load(ctx, "none.pt", nullptr); // throws
} catch (const dlrn::Error &e) {
    std::printf("%s\n", e.what());
    return e.status != DLRN_ERR_IO;
}
