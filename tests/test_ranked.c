/* formula.rank: gates and selections compare p times the norm of the atom, values stay p. Every
   way to codes gives the bits of plain loops. */
#define DICTLEARN_IMPLEMENTATION
#include "dictlearn.h"
#include "tests/starve.h"
#include "tests/test.h"

enum { N = 70, D = 24, F = 110, K = 5 };

/* Formulas, and what they are called in messages. */
static const struct {
    const char *name, *family;
    dlrn_gate gate;
    dlrn_select select;
    double threshold; /* of all features */
    int log_scale;
} cases[] = {
    {"relu", "AutoEncoder", DLRN_GATE_RELU, DLRN_SELECT_ALL, -1, 0},
    {"top_k", "AutoEncoderTopK", DLRN_GATE_RELU, DLRN_SELECT_TOP_K, -1, 0},
    {"top_k of scaled values", "AutoEncoderTopK", DLRN_GATE_RELU, DLRN_SELECT_TOP_K, -1, 1},
    {"jump", "JumpReluAutoEncoder", DLRN_GATE_JUMP, DLRN_SELECT_ALL, -1, 0},
    {"signed jump", "JumpReluAutoEncoder", DLRN_GATE_JUMP_SIGNED, DLRN_SELECT_ALL, -1, 0},
    {"top_k of a jump", "JumpReluAutoEncoder", DLRN_GATE_JUMP, DLRN_SELECT_TOP_K, -1, 0},
    {"one threshold", "BatchTopKSAE", DLRN_GATE_JUMP, DLRN_SELECT_ALL, 0.7, 0},
    {"one signed threshold", "BatchTopKSAE", DLRN_GATE_JUMP_SIGNED, DLRN_SELECT_ALL, -0.3, 0},
    {"batch_top_k", "AutoEncoderTopK", DLRN_GATE_RELU, DLRN_SELECT_BATCH_TOP_K, -1, 0},
    {"abs_top_k", "AutoEncoderTopK", DLRN_GATE_LINEAR, DLRN_SELECT_ABS_TOP_K, -1, 0},
    {"group_max", "AutoEncoderTopK", DLRN_GATE_RELU, DLRN_SELECT_GROUP_MAX, -1, 0},
    {"top_k of a signed jump", "JumpReluAutoEncoder", DLRN_GATE_JUMP_SIGNED, DLRN_SELECT_TOP_K, -1,
     0}};
enum { CASES = sizeof cases / sizeof *cases };

/* Atoms of many norms, some of none; thresholds around the ranked pre-activations. */
static dlrn_dictionary *ranked(dlrn_context *ctx, int which, dlrn_rank rank) {
    dlrn_dictionary *dict = NULL;
    dlrn_dictionary_desc desc = {cases[which].family, D, 0, F, K, 3, 0};
    dlrn_rng rng = {7, 7, 0};
    if (dlrn_dictionary_create(ctx, &desc, &dict) != DLRN_OK) return NULL;
    dict->formula.gate = cases[which].gate;
    dict->formula.select = cases[which].select;
    dict->formula.threshold = cases[which].threshold;
    if (cases[which].select != DLRN_SELECT_ALL) dict->formula.k = K;
    dict->formula.rank = rank;
    dict->layers = rank == DLRN_RANK_LAYER_NORMS ? 3 : 1;
    for (int64_t j = 0; j < F; j++) {
        const float size = j % 13 == 0 ? 0 : powf(2, 6 * dlrn_rng_uniform(&rng) - 3);
        for (int64_t i = 0; i < D; i++) dict->param[DLRN_DECODER][j * D + i] *= size;
        dict->param[DLRN_ENCODER_BIAS][j] = 0.3f * dlrn_rng_normal(&rng);
        if (dict->param[DLRN_THRESHOLD])
            dict->param[DLRN_THRESHOLD][j] = 0.8f * dlrn_rng_normal(&rng);
    }
    if (cases[which].log_scale) {
        dict->param[DLRN_LOG_SCALE] = (float *)dlrn_alloc(ctx, F, sizeof(float));
        if (!dict->param[DLRN_LOG_SCALE]) {
            dlrn_dictionary_destroy(dict);
            return NULL;
        }
        for (int64_t j = 0; j < F; j++)
            dict->param[DLRN_LOG_SCALE][j] = 0.2f * dlrn_rng_normal(&rng);
    }
    dlrn_dictionary_changed(dict);
    return dict;
}

static void draw(float *x, int64_t n) {
    dlrn_rng rng = {8, 8, 0};
    for (int64_t p = 0; p < n; p++) x[p] = dlrn_rng_normal(&rng);
}

/* The norm by which feature j is ranked. */
static float norm_of(const dlrn_dictionary *dict, int64_t j) {
    const int64_t width = D / dict->layers;
    double norm = 0;
    for (int64_t l = 0; l < dict->layers; l++) {
        const float *atom = dict->param[DLRN_DECODER] + j * D + l * width;
        norm += sqrt((double)dlrn_dot(dict->ctx, atom, atom, width));
    }
    return (float)norm;
}

/* Whether the selection prefers entry a to entry b: values, and where they are. */
static int better(const dlrn_dictionary *dict, float a, int64_t at, float b, int64_t bt) {
    if (dict->formula.select == DLRN_SELECT_ABS_TOP_K) a = fabsf(a), b = fabsf(b);
    return a > b || (a == b && at < bt);
}

/* Whether entry p of q [N][F] is selected. */
static int chosen(const dlrn_dictionary *dict, const float *q, int64_t n, int64_t p) {
    const int64_t row = p / F, j = p % F, width = F / K;
    int64_t from = row * F, to = from + F, wanted = K, before = 0;
    switch (dict->formula.select) {
    case DLRN_SELECT_ALL: return 1;
    case DLRN_SELECT_BATCH_TOP_K: from = 0, to = n * F, wanted = K * n; break;
    case DLRN_SELECT_GROUP_MAX: from += j / width * width, to = from + width, wanted = 1; break;
    default: break;
    }
    for (int64_t o = from; o < to; o++) before += better(dict, q[o], o, q[p], p);
    return before < wanted;
}

/* f [n][F] by plain loops. */
static void encode_plainly(const dlrn_dictionary *dict, const float *x, int64_t n, float *f) {
    static float q[N * F];
    const dlrn_gate gate = dict->formula.gate;
    const float *threshold = dict->param[DLRN_THRESHOLD], *scale = dict->param[DLRN_LOG_SCALE];
    for (int64_t p = 0; p < n * F; p++) {
        const int64_t j = p % F;
        float z[D], floor = gate == DLRN_GATE_RELU ? 0 : (float)dict->formula.threshold;
        for (int64_t i = 0; i < D; i++)
            z[i] = x[p / F * D + i] - (dict->formula.center ? dict->param[DLRN_OUTPUT_BIAS][i] : 0);
        q[p] = norm_of(dict, j) * (dlrn_dot(dict->ctx, z, dict->param[DLRN_ENCODER] + j * D, D) +
                                   dict->param[DLRN_ENCODER_BIAS][j]);
        if (threshold && gate != DLRN_GATE_RELU) floor = threshold[j];
        if (gate == DLRN_GATE_JUMP && floor < 0) floor = 0;
        if (gate != DLRN_GATE_LINEAR && !(q[p] > floor)) q[p] = 0;
    }
    for (int64_t p = 0; p < n * F; p++) {
        const float norm = norm_of(dict, p % F);
        const double s = scale ? exp((double)scale[p % F]) : 1;
        f[p] = norm > 0 && chosen(dict, q, n, p) ? q[p] * (float)(s / (double)norm) : 0;
    }
}

/* Every way to codes of n rows. */
static void compare(const dlrn_dictionary *dict, const float *x, int64_t n, const char *what) {
    static float want[N * F], got[N * F], x_hat[N * D], mine[N * D];
    dlrn_encoder *e = NULL;
    dlrn_sparse codes = {0};
    encode_plainly(dict, x, n, want);
    CHECK_OK(dict->ctx, dlrn_encode(dict, x, n, got));
    for (int64_t p = 0; p < n * F; p++)
        CHECK_MSG(got[p] == want[p], "%s, %d rows: [%d][%d]: expected %.9g, found %.9g", what,
                  (int)n, (int)(p / F), (int)(p % F), (double)want[p], (double)got[p]);
    CHECK_OK(dict->ctx, dlrn_encoder_create(dict, &e));
    for (int round = 0; round < 3; round++) {
        if (round == 1) CHECK_OK(dict->ctx, dlrn_encoder_prepare(e));
        CHECK_OK(dict->ctx, dlrn_encoder_run(e, x, n, got, &codes, x_hat));
        CHECK_MSG(!memcmp(got, want, sizeof(float) * (size_t)(n * F)) || round > 9, "%s", what);
        int64_t p = 0;
        for (int64_t i = 0; i < n * F; i++)
            if (want[i] != 0) {
                CHECK_MSG(codes.col[p] == i % F && codes.val[p] == want[i], "%s", what);
                p++;
            }
        CHECK(codes.row_ptr[n] == p);
    }
    for (int64_t i = 0; i < n; i++) { /* values decode with the atoms as they are */
        memcpy(mine + i * D, dict->param[DLRN_OUTPUT_BIAS], sizeof(float) * D);
        for (int64_t j = 0; j < F; j++)
            for (int64_t c = 0; c < D; c++)
                mine[i * D + c] += want[i * F + j] * dict->param[DLRN_DECODER][j * D + c];
    }
    check_near(what, x_hat, mine, n * D);
    dlrn_sparse_free(&codes);
    dlrn_encoder_destroy(e);
}

TEST(every_way_gives_the_bits_of_plain_loops) {
    static const int64_t counts[] = {1, 7, 31, N};
    static float x[N * D];
    draw(x, N * D);
    for (int which = 0; which < CASES; which++)
        for (int i = 0; test_kernels(i); i++)
            for (int rank = DLRN_RANK_NORM; rank <= DLRN_RANK_LAYER_NORMS; rank++) {
                /* in brief runs a sixteenth of them */
                if (test_brief() && (2 * which + 3 * i + rank) % 16) continue;
                dlrn_context *ctx = test_context(test_kernels(i), 1 + (which + i) % 3);
                dlrn_dictionary *dict = ranked(ctx, which, (dlrn_rank)rank);
                CHECK(dict != NULL);
                for (int c = 0; c < 4; c++) compare(dict, x, counts[c], cases[which].name);
                /* other atoms: the norms follow */
                for (int64_t p = 0; p < F * D; p++)
                    dict->param[DLRN_DECODER][p] *= p / D % 3 == 0 ? 2.0f : 0.5f;
                dlrn_dictionary_changed(dict);
                compare(dict, x, N, cases[which].name);
                dlrn_dictionary_destroy(dict);
                dlrn_context_destroy(ctx);
            }
}

/* An encoder notices that atoms, or the rank alone, have changed. */
TEST(an_encoder_follows_changes) {
    static float x[N * D], want[N * F], got[N * F];
    dlrn_context *ctx = test_context("auto", 2);
    dlrn_dictionary *dict = ranked(ctx, 1, DLRN_RANK_NORM);
    dlrn_encoder *e = NULL;
    draw(x, N * D);
    CHECK_OK(ctx, dlrn_encoder_create(dict, &e));
    for (int round = 0; round < 4; round++) {
        dict->formula.rank = round % 2 ? DLRN_RANK_VALUE : DLRN_RANK_NORM;
        if (round == 2) dict->param[DLRN_DECODER][D] *= 1000;
        dlrn_dictionary_changed(dict);
        CHECK_OK(ctx, dlrn_encode(dict, x, N, want));
        CHECK_OK(ctx, dlrn_encoder_run(e, x, N, got, NULL, NULL));
        CHECK(!memcmp(want, got, sizeof want));
    }
    dlrn_encoder_destroy(e);
    dlrn_dictionary_destroy(dict);
    dlrn_context_destroy(ctx);
}

/* Files do not say what is compared: what is written has the same x_hat, and keeps the values where
   thresholds can take the norms. */
TEST(a_saved_dictionary_has_the_same_output) {
    static float x[N * D], f[N * F], g[N * F], want[N * D], got[N * D];
    static const int saved[] = {0, 1, 3};
    dlrn_context *ctx = test_context("auto", 1);
    draw(x, N * D);
    for (int s = 0; s < 3; s++)
        for (int as = 0; as < 2; as++) {
            const char *path = tmp_path(as ? "ranked.safetensors" : "ranked.npz");
            dlrn_dictionary *dict = ranked(ctx, saved[s], DLRN_RANK_NORM), *loaded = NULL;
            dlrn_load_options options = {0};
            dlrn_save_options target = {0};
            char note[256] = "";
            CHECK(dict != NULL);
            target.layout = "dictionary_learning";
            if (as) path = tmp_path("ranked.pt");
            if (as)
                CHECK_OK(ctx, dlrn_save_as(dict, path, &target, note, sizeof note));
            else
                CHECK_OK(ctx, dlrn_save(dict, path));
            if (as) CHECK_STR(note, "norms of atoms");
            CHECK(dict->formula.rank == DLRN_RANK_NORM);
            CHECK_OK(ctx, dlrn_load(ctx, path, &options, &loaded));
            CHECK(loaded->formula.rank == DLRN_RANK_VALUE);
            CHECK_OK(ctx, dlrn_forward(dict, x, N, want, NULL));
            CHECK_OK(ctx, dlrn_forward(loaded, x, N, got, NULL));
            check_near(cases[saved[s]].name, got, want, N * D);
            CHECK_OK(ctx, dlrn_encode(dict, x, N, f));
            CHECK_OK(ctx, dlrn_encode(loaded, x, N, g));
            for (int64_t p = 0; p < N * F && cases[saved[s]].select == DLRN_SELECT_ALL; p++)
                CHECK(test_close((double)f[p], (double)g[p], 1e-5) || p / D % 13 == 0 ||
                      norm_of(dict, p % F) <= 0);
            dlrn_dictionary_destroy(loaded);
            dlrn_dictionary_destroy(dict);
        }
    dlrn_context_destroy(ctx);
}

/* A selection over several parts compares what the parts rank. */
TEST(parts_are_compared_by_rank) {
    static float x[N * D];
    dlrn_context *ctx = test_context("auto", 2);
    dlrn_dictionary *whole = ranked(ctx, 0, DLRN_RANK_NORM);
    dlrn_dictionary *joined = ranked(ctx, 1, DLRN_RANK_VALUE);
    dlrn_sparse want = {0}, got = {0};
    const int64_t half = F / 2;
    draw(x, N * D);
    /* the same features in two parts, and in a dictionary of one */
    for (int r = 0; r < 2; r++) {
        const int role = r ? DLRN_DECODER : DLRN_ENCODER;
        memcpy(joined->param[role], whole->param[role], sizeof(float) * F * D);
    }
    memcpy(joined->param[DLRN_ENCODER_BIAS], whole->param[DLRN_ENCODER_BIAS], sizeof(float) * F);
    joined->formula.center = DLRN_CENTER_NONE;
    joined->formula.rank = DLRN_RANK_NORM;
    dlrn_dictionary_changed(joined);
    CHECK_OK(ctx, dlrni_parts_alloc(whole, 2));
    for (int i = 0; i < 2; i++) {
        dlrn_dictionary_desc desc = {"AutoEncoder", D, 0, half, 0, 3, 0};
        dlrn_dictionary *part = NULL;
        CHECK_OK(ctx, dlrn_dictionary_create(ctx, &desc, &part));
        memcpy(part->param[DLRN_ENCODER], whole->param[DLRN_ENCODER] + i * half * D,
               sizeof(float) * (size_t)(half * D));
        memcpy(part->param[DLRN_DECODER], whole->param[DLRN_DECODER] + i * half * D,
               sizeof(float) * (size_t)(half * D));
        memcpy(part->param[DLRN_ENCODER_BIAS], whole->param[DLRN_ENCODER_BIAS] + i * half,
               sizeof(float) * (size_t)half);
        dlrn_free(ctx, part->param[DLRN_OUTPUT_BIAS]);
        part->param[DLRN_OUTPUT_BIAS] = NULL;
        part->formula.center = DLRN_CENTER_NONE;
        part->formula.rank = DLRN_RANK_NORM;
        whole->part[i].dict = part;
        whole->part[i].feature_at = i * half;
    }
    whole->formula.center = DLRN_CENTER_NONE;
    whole->formula.select = DLRN_SELECT_TOP_K;
    whole->formula.k = K;
    for (int64_t n = 3; n <= N; n += N - 3) {
        CHECK_OK(ctx, dlrn_encode_sparse(joined, x, n, &want));
        CHECK_OK(ctx, dlrn_encode_sparse(whole, x, n, &got));
        CHECK(want.row_ptr[n] == got.row_ptr[n] && want.row_ptr[n] > n);
        CHECK(!memcmp(want.col, got.col, sizeof *want.col * (size_t)want.row_ptr[n]));
        CHECK(!memcmp(want.val, got.val, sizeof *want.val * (size_t)want.row_ptr[n]));
    }
    dlrn_sparse_free(&want);
    dlrn_sparse_free(&got);
    dlrn_dictionary_destroy(whole);
    dlrn_dictionary_destroy(joined);
    dlrn_context_destroy(ctx);
}

TEST(what_has_no_rank_is_refused) {
    static float x[N * D], f[N * F];
    dlrn_context *ctx = test_context("auto", 1);
    dlrn_dictionary *dict = ranked(ctx, 0, DLRN_RANK_NORM), *same = NULL;
    draw(x, N * D);
    dict->formula.gate = DLRN_GATE_IDENTITY;
    CHECK_STATUS(dlrn_encode(dict, x, 1, f), DLRN_ERR_UNSUPPORTED);
    CHECK_STR(dlrn_error(ctx), "rank: expected value");
    dict->formula.gate = DLRN_GATE_RELU;
    dict->formula.rank = DLRN_RANK_LAYER_NORMS;
    dict->layers = 7;
    CHECK_STATUS(dlrn_encode(dict, x, 1, f), DLRN_ERR_SHAPE);
    CHECK_STR(dlrn_error(ctx), "layers: expected a divisor of d_out 24, found 7");
    CHECK_OK(ctx, new_identity(ctx, D, &same));
    same->formula.rank = DLRN_RANK_NORM;
    CHECK_STATUS(dlrn_encode(same, x, 1, f), DLRN_ERR_UNSUPPORTED);
    dlrn_dictionary_destroy(same);
    dlrn_dictionary_destroy(dict);
    dlrn_context_destroy(ctx);
}

static dlrn_context *starving;
static float starved_x[N * D], starved_f[N * F];

static dlrn_status encode_starving(void) {
    dlrn_dictionary *dict = ranked(starving, 2, DLRN_RANK_NORM);
    if (!dict) return DLRN_ERR_MEMORY;
    dlrn_status s = dlrn_encode(dict, starved_x, N, starved_f);
    if (s == DLRN_OK) s = dlrn_encode(dict, starved_x, 3, starved_f);
    dlrn_dictionary_destroy(dict);
    return s;
}

static dlrn_status save_starving(void) {
    dlrn_dictionary *dict = ranked(starving, 1, DLRN_RANK_NORM);
    if (!dict) return DLRN_ERR_MEMORY;
    dlrn_status s = dlrn_save(dict, tmp_path("starved.npz"));
    dlrn_dictionary_destroy(dict);
    return s;
}

TEST(every_allocation_may_fail) {
    starving = starve_context(2);
    draw(starved_x, N * D);
    starve_all("encode", starving, encode_starving);
    starve_all("save", starving, save_starving);
    dlrn_context_destroy(starving);
}

int main(int argc, char **argv) {
    TEST_BEGIN(argc, argv);
    RUN(every_way_gives_the_bits_of_plain_loops);
    RUN(an_encoder_follows_changes);
    RUN(a_saved_dictionary_has_the_same_output);
    RUN(parts_are_compared_by_rank);
    RUN(what_has_no_rank_is_refused);
    RUN(every_allocation_may_fail);
    return TEST_END();
}
