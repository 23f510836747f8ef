/* What is written for a library: loaded again it is the same dictionary, in the same bits, or the
   same function where the library has it in other numbers; what it cannot express is refused; and
   nothing is left half-written. That the libraries open it is shown by tests/libraries.py. */
#define DICTLEARN_IMPLEMENTATION
#include "dictlearn.h"
#include "tests/starve.h"

enum { D = 6, F = 10, N = 40, K = 3 };
static dlrn_context *ctx;
static float x[N * D];

/* The folder that is written to. */
static const char *kept_folder(void) {
    return tmp_path("for_a_library");
}

/* The same without the files of earlier tests. */
static const char *fresh_folder(void) {
    static const char *const names[] = {"ae.pt",
                                        "config.json",
                                        "sae_weights.safetensors",
                                        "cfg.json",
                                        "sae.safetensors",
                                        "params.npz",
                                        "config.yaml",
                                        "params.safetensors",
                                        "layer_0.safetensors",
                                        "layer_7.safetensors",
                                        "W_enc_0.safetensors",
                                        "W_enc_1.safetensors",
                                        "W_enc_2.safetensors",
                                        "W_enc_3.safetensors",
                                        "W_dec_0.safetensors",
                                        "W_dec_1.safetensors",
                                        "W_dec_2.safetensors",
                                        "cc_weights.pt",
                                        "model.safetensors"};
    static char path[512];
    char file[600];
    snprintf(path, sizeof path, "%s", kept_folder());
    mkdir(path, 0777);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        snprintf(file, sizeof file, "%s/%s", path, names[i]);
        remove(file);
    }
    return path;
}

static int is_there(const char *folder, const char *name) {
    char file[600];
    snprintf(file, sizeof file, "%s/%s", folder, name);
    return dlrn_file_exists(NULL, file) == 1;
}

static void fill(float *p, int64_t n, float scale) {
    static dlrn_rng rng = {5, 1, 0};
    for (int64_t i = 0; i < n; i++) p[i] = scale * dlrn_rng_normal(&rng);
}

/* A dictionary of a family with numbers in all of its parameters. */
static dlrn_dictionary *make(const char *family, int64_t d_out) {
    dlrn_dictionary *dict = NULL;
    const dlrni_family *row = dlrni_family_named(family);
    CHECK_OK(ctx, dlrni_span_alloc(ctx, row, D, d_out, F, &dict));
    for (int role = 0; role < DLRN_ROLE_COUNT; role++)
        if (dict->param[role])
            fill(dict->param[role], dlrni_role_size(dict, role), role == DLRN_ENCODER ? 1.0f : .5f);
    for (int j = 0; dict->param[DLRN_THRESHOLD] && j < F; j++)
        dict->param[DLRN_THRESHOLD][j] = fabsf(dict->param[DLRN_THRESHOLD][j]) + .05f;
    if (dict->formula.k) dict->formula.k = K;
    if (!strcmp(family, "GroupMax")) dict->formula.k = 5; /* divides F */
    if (dict->formula.gate == DLRN_GATE_JUMP && !dict->param[DLRN_THRESHOLD])
        dict->formula.threshold = 0.25;
    if (!strcmp(family, "MatchingPursuit")) {
        dict->formula.k = 4, dict->formula.threshold = 0.125;
        for (int j = 0; j < F; j++) {
            float *atom = dict->param[DLRN_DECODER] + j * d_out;
            dlrni_scale_numbers(atom, d_out, 1 / dlrni_atom_norm(dict, j));
        }
    }
    if (!strcmp(family, "MatryoshkaBatchTopKSAE")) {
        dict->group_sizes = (int64_t *)dlrn_alloc(ctx, 2, sizeof(int64_t));
        CHECK(dict->group_sizes != NULL);
        dict->n_groups = 2;
        dict->group_sizes[0] = 4, dict->group_sizes[1] = 6;
    }
    return dict;
}

static void add_skip(dlrn_dictionary *dict) {
    CHECK_OK(ctx, dlrni_param_alloc(dict, DLRN_SKIP));
    fill(dict->param[DLRN_SKIP], dlrni_role_size(dict, DLRN_SKIP), .3f);
}

/* The same features and reconstructions. */
static void check_function(const char *what, const dlrn_dictionary *a, const dlrn_dictionary *b) {
    static float f[2][N * F], y[2][N * D * 2];
    CHECK(a->features == b->features && a->d_in == b->d_in && a->d_out == b->d_out);
    CHECK_OK(ctx, dlrn_encode(a, x, N, f[0]));
    CHECK_OK(ctx, dlrn_encode(b, x, N, f[1]));
    check_near(what, f[1], f[0], (int64_t)N * F);
    CHECK_OK(ctx, dlrn_forward(a, x, N, y[0], NULL));
    CHECK_OK(ctx, dlrn_forward(b, x, N, y[1], NULL));
    check_near(what, y[1], y[0], N * a->d_out);
}

static void check_bits(const char *what, const dlrn_dictionary *a, const dlrn_dictionary *b) {
    const dlrn_formula *f = &a->formula, *g = &b->formula;
    CHECK_MSG(!strcmp(a->family, b->family), "%s: %s became %s", what, a->family, b->family);
    CHECK_MSG(f->normalise == g->normalise && f->center == g->center && f->gate == g->gate &&
                  f->select == g->select && f->repeats == g->repeats,
              "%s: another formula", what);
    CHECK_MSG(f->select == DLRN_SELECT_ALL || f->k == g->k, "%s: another k", what);
    for (int role = 0; role < DLRN_ROLE_COUNT; role++) {
        CHECK_MSG(!a->param[role] == !b->param[role], "%s: role %d", what, role);
        if (a->param[role])
            CHECK_MSG(!memcmp(a->param[role], b->param[role],
                              (size_t)dlrni_role_size(a, role) * sizeof(float)),
                      "%s: role %d", what, role);
    }
    CHECK(a->n_groups == b->n_groups);
    for (int64_t i = 0; i < a->n_groups; i++) CHECK(a->group_sizes[i] == b->group_sizes[i]);
}

/* What is done to a dictionary before it is written. */
typedef enum change {
    PLAIN,
    NO_CENTER,  /* nothing is subtracted                         */
    CENTER,     /* the output bias is                            */
    OWN_CENTER, /* a bias of its own is                          */
    SCALES,     /* scale_out is 1 / scale_in                     */
    TWO_SCALES, /* it is not                                     */
    SKIP,       /* with a linear map                             */
    ROW_NORM,   /* rows are normalised                           */
    LAYER_NORM,
    BELOW,       /* some thresholds are below 0                   */
    SIGNED,      /* gate jump_signed                              */
    SIGNED_BELOW /* the same, and some thresholds are below 0     */
} change;

static void apply(dlrn_dictionary *dict, change what) {
    dlrn_formula *f = &dict->formula;
    if (what == NO_CENTER) f->center = DLRN_CENTER_NONE;
    if (what == CENTER) f->center = DLRN_CENTER_OUTPUT_BIAS;
    if (what == OWN_CENTER) {
        f->center = DLRN_CENTER_INPUT_BIAS;
        CHECK_OK(ctx, dlrni_param_alloc(dict, DLRN_INPUT_BIAS));
        fill(dict->param[DLRN_INPUT_BIAS], D, .5f);
    }
    if (what == SCALES) f->scale_in = 1.75, f->scale_out = 1 / 1.75;
    if (what == TWO_SCALES) f->scale_in = 1.75, f->scale_out = 2.5;
    if (what == SKIP) add_skip(dict);
    if (what == ROW_NORM) f->normalise = DLRN_NORMALISE_NORM;
    if (what == LAYER_NORM) f->normalise = DLRN_NORMALISE_LAYER;
    if (what == SIGNED || what == SIGNED_BELOW) f->gate = DLRN_GATE_JUMP_SIGNED;
    if (what == BELOW || what == SIGNED_BELOW)
        for (int j = 0; j < F; j += 3) dict->param[DLRN_THRESHOLD][j] = -.5f;
    dlrn_dictionary_changed(dict);
}

/* Writes into a fresh folder for a library, loads, compares: bits where no note is expected, the
   function otherwise. */
static void round_trip(dlrn_dictionary *dict, const char *library, const char *note) {
    const dlrn_save_options how = {library, 0};
    dlrn_dictionary *back = NULL;
    char what[200], said[256] = "x";
    snprintf(what, sizeof what, "%s for %s", dict->family, library);
    CHECK_OK(ctx, dlrn_save_as(dict, fresh_folder(), &how, said, sizeof said));
    CHECK_MSG(!strcmp(said, note), "%s: noted '%s'", what, said);
    CHECK_OK(ctx, dlrn_load(ctx, kept_folder(), NULL, &back));
    CHECK_MSG(!strcmp(back->layout, library), "%s: read as %s", what, back->layout);
    if (*note)
        check_function(what, dict, back);
    else
        check_bits(what, dict, back);
    dlrn_dictionary_destroy(back);
}

static const char NONE[] = "", MOVED[] = "the center is part of the encoder bias",
                  SCALED[] = "scales are part of the weights",
                  BOTH[] = "scales are part of the weights; the center is part of the encoder bias",
                  EACH[] = "the threshold of all features is written for each",
                  MOVED_EACH[] = "the center is part of the encoder bias; the threshold of all "
                                 "features is written for each",
                  JUMP[] = "ReLU is written as a jump with thresholds 0",
                  MOVED_JUMP[] = "the center is part of the encoder bias; ReLU is written as a "
                                 "jump with thresholds 0",
                  RAISED[] = "thresholds below 0 are written as 0";

typedef struct trip {
    const char *family, *library, *note;
    change with;
    int d_out;
} trip;

TEST(each_library_round_trips) {
    static const trip trips[] = {
        {"AutoEncoder", "dictionary_learning", NONE, PLAIN, D},
        {"AutoEncoder", "dictionary_learning", NONE, NO_CENTER, D}, /* AutoEncoderNew */
        {"AutoEncoder", "dictionary_learning", MOVED, OWN_CENTER, D},
        {"AutoEncoder", "dictionary_learning", SCALED, SCALES, D},
        {"AutoEncoder", "dictionary_learning", BOTH, TWO_SCALES, D},
        {"AutoEncoderTopK", "dictionary_learning", NONE, PLAIN, D},
        {"AutoEncoderTopK", "dictionary_learning", MOVED, NO_CENTER, D},
        {"AutoEncoderTopK", "dictionary_learning", BOTH, TWO_SCALES, D},
        {"BatchTopKSAE", "dictionary_learning", NONE, PLAIN, D},
        {"MatryoshkaBatchTopKSAE", "dictionary_learning", NONE, PLAIN, D},
        {"GatedAutoEncoder", "dictionary_learning", NONE, PLAIN, D},
        {"GatedAutoEncoder", "dictionary_learning", MOVED, NO_CENTER, D},
        {"GatedAutoEncoder", "dictionary_learning", BOTH, TWO_SCALES, D},
        {"JumpReluAutoEncoder", "dictionary_learning", NONE, PLAIN, D},
        {"JumpReluAutoEncoder", "dictionary_learning", NONE, BELOW, D},
        {"JumpReluAutoEncoder", "dictionary_learning", MOVED, CENTER, D},
        {"AutoEncoder", "saelens", NONE, PLAIN, D},
        {"AutoEncoder", "saelens", NONE, NO_CENTER, D},
        {"AutoEncoder", "saelens", NONE, ROW_NORM, D},
        {"AutoEncoder", "saelens", MOVED, OWN_CENTER, D},
        {"AutoEncoder", "saelens", SCALED, SCALES, D},
        {"AutoEncoder", "saelens", BOTH, TWO_SCALES, D},
        {"AutoEncoder", "saelens", NONE, PLAIN, D - 2},
        {"AutoEncoder", "saelens", MOVED, SKIP, D},
        {"AutoEncoder", "saelens", NONE, SKIP, D + 3},
        {"AutoEncoderTopK", "saelens", NONE, LAYER_NORM, D},
        {"AutoEncoderTopK", "saelens", NONE, NO_CENTER, D},
        {"AbsTopK", "saelens", NONE, PLAIN, D},
        {"GatedAutoEncoder", "saelens", NONE, PLAIN, D},
        {"GatedAutoEncoder", "saelens", MOVED, OWN_CENTER, D},
        {"MatchingPursuit", "saelens", NONE, PLAIN, D},
        {"JumpReluAutoEncoder", "saelens", NONE, PLAIN, D},
        {"JumpReluAutoEncoder", "saelens", NONE, BELOW, D},
        {"JumpReluAutoEncoder", "saelens", NONE, PLAIN, D + 1},
        {"JumpReluAutoEncoder", "saelens", NONE, SKIP, D},
        {"BatchTopKSAE", "saelens", EACH, PLAIN, D},
        {"MatryoshkaBatchTopKSAE", "saelens", EACH, NO_CENTER, D},
        {"AutoEncoderTopK", "sparsify", NONE, PLAIN, D},
        {"AutoEncoderTopK", "sparsify", NONE, NO_CENTER, D},
        {"AutoEncoderTopK", "sparsify", NONE, SKIP, D},
        {"AutoEncoderTopK", "sparsify", BOTH, TWO_SCALES, D},
        {"GroupMax", "sparsify", NONE, PLAIN, D},
        {"AutoEncoder", "circuit-tracer", MOVED, PLAIN, D},
        {"AutoEncoder", "circuit-tracer", NONE, NO_CENTER, D},
        {"AutoEncoder", "circuit-tracer", MOVED, SKIP, D},
        {"JumpReluAutoEncoder", "circuit-tracer", NONE, SIGNED, D},
        {"JumpReluAutoEncoder", "circuit-tracer", NONE, SIGNED_BELOW, D},
        {"JumpReluAutoEncoder", "circuit-tracer", RAISED, BELOW, D},
        {"BatchTopKSAE", "circuit-tracer", MOVED_EACH, PLAIN, D},
        {"JumpReluAutoEncoder", "gemma_scope", NONE, PLAIN, D},
        {"JumpReluAutoEncoder", "gemma_scope", NONE, PLAIN, D - 1},
        {"JumpReluAutoEncoder", "gemma_scope", MOVED, CENTER, D},
        {"AutoEncoder", "gemma_scope", MOVED_JUMP, PLAIN, D},
        {"AutoEncoder", "gemma_scope", JUMP, NO_CENTER, D},
        {"JumpReluAutoEncoder", "gemma_scope_2", NONE, PLAIN, D},
        {"JumpReluAutoEncoder", "gemma_scope_2", NONE, SKIP, D},
        {"JumpReluAutoEncoder", "gemma_scope_2", NONE, SKIP, D + 2},
        {"BatchTopKSAE", "gemma_scope_2", MOVED_EACH, PLAIN, D},
        {"AutoEncoder", "llamascopium", NONE, NO_CENTER, D},
        {"AutoEncoder", "llamascopium", BOTH, TWO_SCALES, D},
        {"AutoEncoderTopK", "llamascopium", NONE, NO_CENTER, D},
        {"AutoEncoderTopK", "llamascopium", MOVED, PLAIN, D},
        {"JumpReluAutoEncoder", "llamascopium", SCALED, SCALES, D},
        {"BatchTopKSAE", "llamascopium", MOVED_EACH, PLAIN, D},
        {"Glu", "llamascopium", NONE, PLAIN, D},
    };
    for (size_t i = 0; i < sizeof trips / sizeof *trips; i++) {
        dlrn_dictionary *dict = make(trips[i].family, trips[i].d_out);
        apply(dict, trips[i].with);
        round_trip(dict, trips[i].library, trips[i].note);
        dlrn_dictionary_destroy(dict);
    }
}

/* A jump of the one kind is one of the other from a threshold of 0 on. */
TEST(kinds_of_jumps) {
    dlrn_dictionary *dict = make("JumpReluAutoEncoder", D), *back = NULL;
    const dlrn_save_options tracer = {"circuit-tracer", 0}, saelens = {"saelens", 0};
    CHECK_OK(ctx, dlrn_save_as(dict, fresh_folder(), &tracer, NULL, 0));
    CHECK_OK(ctx, dlrn_load(ctx, kept_folder(), NULL, &back));
    CHECK(back->formula.gate == DLRN_GATE_JUMP_SIGNED);
    check_function("a jump", dict, back);
    CHECK_OK(ctx, dlrn_save_as(back, fresh_folder(), &saelens, NULL, 0));
    dlrn_dictionary_destroy(back);
    CHECK_OK(ctx, dlrn_load(ctx, kept_folder(), NULL, &back));
    check_bits("and back", dict, back);
    dlrn_dictionary_destroy(back);
    dlrn_dictionary_destroy(dict);
}

/* A threshold that training has not set passes all that is positive, in the new form, too. */
TEST(a_threshold_that_was_not_set) {
    dlrn_dictionary *dict = make("BatchTopKSAE", D);
    dict->formula.threshold = -1;
    round_trip(dict, "saelens", EACH);
    round_trip(dict, "circuit-tracer", MOVED_EACH);
    dlrn_dictionary_destroy(dict);
}

static void refused(dlrn_dictionary *dict, const char *library, dlrn_status status,
                    const char *why) {
    const dlrn_save_options how = {library, 0};
    const char *folder = fresh_folder();
    char said[256] = "x";
    CHECK_STATUS(dlrn_save_as(dict, folder, &how, said, sizeof said), status);
    CHECK_STR(dlrn_error(ctx), why);
    CHECK(!*said);
    CHECK(!is_there(folder, "ae.pt") && !is_there(folder, "sae_weights.safetensors") &&
          !is_there(folder, "sae.safetensors") && !is_there(folder, "layer_0.safetensors") &&
          !is_there(folder, "params.npz") && !is_there(folder, "params.safetensors") &&
          !is_there(folder, "config.json") && !is_there(folder, "cfg.json") &&
          !is_there(folder, "config.yaml"));
}

TEST(what_a_library_cannot_express_is_refused) {
    static const trip trips[] = {
        {"AutoEncoder", "sparsify", "sparsify has no place for selection all", PLAIN, D},
        {"AutoEncoderTopK", "gemma_scope", "gemma_scope has no place for selection top_k", PLAIN,
         D},
        {"AutoEncoderTopK", "circuit-tracer", "no place for selection top_k", PLAIN, D},
        {"AutoEncoderTopK", "saelens", "no place for parameter 'skip'", SKIP, D},
        {"AutoEncoderTopK", "saelens", "no place for a d_out that is not d_in", PLAIN, D + 1},
        {"AutoEncoderTopK", "sparsify", "no place for a d_out that is not d_in", PLAIN, D + 1},
        {"AutoEncoderTopK", "sparsify", "no place for normaliser norm", ROW_NORM, D},
        {"AutoEncoder", "saelens", "no place for normaliser norm", ROW_NORM, D + 1},
        {"AutoEncoder", "dictionary_learning", "no place for normaliser layer", LAYER_NORM, D},
        {"AutoEncoder", "dictionary_learning", "no place for parameter 'skip'", SKIP, D},
        {"AutoEncoder", "dictionary_learning", "no place for a d_out that is not d_in", PLAIN,
         D + 1},
        {"AutoEncoder", "circuit-tracer", "no place for a d_out that is not d_in", PLAIN, D + 1},
        {"JumpReluAutoEncoder", "gemma_scope", "no place for parameter 'skip'", SKIP, D},
        {"JumpReluAutoEncoder", "saelens", "no place for gate jump_signed", SIGNED_BELOW, D},
        {"JumpReluAutoEncoder", "gemma_scope_2", "no place for gate jump_signed", SIGNED_BELOW, D},
        {"GatedAutoEncoder", "gemma_scope", "no place for gate gated", PLAIN, D},
        {"AutoEncoder", "ckkissane", "no place for a dictionary of 1 layers", NO_CENTER, D},
        {"GatedAutoEncoder", "llamascopium", "no place for", PLAIN, D},
        {"AbsTopK", "dictionary_learning", "no place for selection abs_top_k", PLAIN, D},
        {"GroupMax", "saelens", "no place for selection group_max", PLAIN, D},
        {"MatchingPursuit", "dictionary_learning", "no place for family MatchingPursuit", PLAIN, D},
        {"MatchingPursuit", "saelens", "no place for family MatchingPursuit", SCALES, D},
        {"Glu", "saelens", "no place for family Glu", PLAIN, D},
        {"Cosine", "saelens", "no place for family Cosine", PLAIN, D},
        {"GatedTopK", "sparsify", "no place for family GatedTopK", PLAIN, D},
    };
    for (size_t i = 0; i < sizeof trips / sizeof *trips; i++) {
        dlrn_dictionary *dict = make(trips[i].family, trips[i].d_out);
        apply(dict, trips[i].with);
        refused(dict, trips[i].library, DLRN_ERR_UNSUPPORTED, trips[i].note);
        dlrn_dictionary_destroy(dict);
    }
}

TEST(other_refusals) {
    dlrn_dictionary *dict = make("AutoEncoderTopK", D), *identity = NULL;
    CHECK_OK(ctx, new_identity(ctx, D, &identity));
    refused(identity, "saelens", DLRN_ERR_UNSUPPORTED, "no place for");
    dlrn_dictionary_destroy(identity);
    refused(dict, "openai", DLRN_ERR_UNSUPPORTED,
            "layout: expected a library to write for (dictionary_learning, saelens, sparsify, "
            "circuit-tracer, gemma_scope, gemma_scope_2, llamascopium, ckkissane or "
            "crosscoder-fork), found openai");
    refused(dict, NULL, DLRN_ERR_UNSUPPORTED, "found none"); /* dict->layout is NULL */
    dict->formula.standardise = DLRN_ON;
    refused(dict, "saelens", DLRN_ERR_UNSUPPORTED, "no place for standardised selections");
    dict->formula.standardise = DLRN_OFF;
    dict->formula.k = 0;
    refused(dict, "saelens", DLRN_ERR_UNSUPPORTED, "no place for a k of 0");
    dict->formula.k = K;
    dict->formula.select = DLRN_SELECT_BATCH_TOP_K;
    refused(dict, "saelens", DLRN_ERR_UNSUPPORTED, "no place for selection batch_top_k");
    dict->formula.select = DLRN_SELECT_TOP_K;
    dict->layers = 2;
    refused(dict, "saelens", DLRN_ERR_UNSUPPORTED, "no place for a dictionary of 2 layers");
    dict->layers = 1;
    dict->param[DLRN_DECODER][3] = (float)NAN;
    refused(dict, "saelens", DLRN_ERR_VALUE, "tensor 'W_dec': element 3: expected a finite number");
    dlrn_dictionary_destroy(dict);
}

/* ---- Where it is written ---- */

static dlrn_status save_to(const dlrn_dictionary *dict, const char *path, const char *library,
                           int64_t layer) {
    const dlrn_save_options how = {library, layer};
    return dlrn_save_as(dict, path, &how, NULL, 0);
}

TEST(files_and_folders) {
    dlrn_dictionary *dict = make("AutoEncoder", D), *back = NULL;
    CHECK_STATUS(save_to(dict, tmp_path("not/there"), "saelens", 0), DLRN_ERR_ARGUMENT);
    CHECK_STR(dlrn_error(ctx), "expected an existing folder for saelens");
    CHECK_STATUS(save_to(dict, tmp_path("a.safetensors"), "saelens", 0), DLRN_ERR_ARGUMENT);
    CHECK_STATUS(save_to(dict, tmp_path("a.npz"), "dictionary_learning", 0), DLRN_ERR_ARGUMENT);
    CHECK_STR(dlrn_error(ctx), "expected an existing folder, or a name ending in .pt for");
    CHECK_STATUS(save_to(dict, fresh_folder(), "saelens", -1), DLRN_ERR_ARGUMENT);
    /* a file: the weights alone, whose class the file states where it must */
    CHECK_OK(ctx, save_to(dict, tmp_path("alone.npz"), "gemma_scope", 0));
    CHECK_OK(ctx, dlrn_load(ctx, tmp_path("alone.npz"), NULL, &back));
    CHECK(!strcmp(back->layout, "gemma_scope"));
    dlrn_dictionary_destroy(back);
    CHECK_OK(ctx, save_to(dict, tmp_path("alone.pt"), "dictionary_learning", 0));
    CHECK_OK(ctx, dlrn_load(ctx, tmp_path("alone.pt"), NULL, &back));
    check_bits("alone.pt", dict, back);
    dlrn_dictionary_destroy(back);
    /* options NULL: the library that it is from */
    CHECK_OK(ctx, save_to(dict, fresh_folder(), "saelens", 0));
    CHECK_OK(ctx, dlrn_load(ctx, kept_folder(), NULL, &back));
    CHECK_OK(ctx, dlrn_save_as(back, fresh_folder(), NULL, NULL, 0));
    CHECK(is_there(kept_folder(), "sae_weights.safetensors"));
    dlrn_dictionary_destroy(back);
    dlrn_dictionary_destroy(dict);
}

/* Layers of one set, in one folder; its config is written once and then left as it is. */
TEST(a_set_of_layers) {
    dlrn_dictionary *dict = make("AutoEncoder", D), *back = NULL;
    const char *folder = fresh_folder();
    char file[600], *bytes = NULL;
    size_t size = 0;
    CHECK_OK(ctx, save_to(dict, folder, "circuit-tracer", 0));
    CHECK(is_there(folder, "layer_0.safetensors") && is_there(folder, "config.yaml"));
    snprintf(file, sizeof file, "%s/config.yaml", folder);
    CHECK_OK(ctx, dlrn_file_read(ctx, file, &bytes, &size));
    CHECK_STR(bytes, "model_kind: transcoder_set\n");
    dlrn_free(ctx, bytes);
    CHECK_OK(ctx, dlrn_file_write(ctx, file, "mine", 4));
    CHECK_OK(ctx, save_to(dict, folder, "circuit-tracer", 7));
    CHECK_OK(ctx, dlrn_file_read(ctx, file, &bytes, &size));
    CHECK(size == 4 && !memcmp(bytes, "mine", 4));
    dlrn_free(ctx, bytes);
    snprintf(file, sizeof file, "%s/layer_7.safetensors", folder);
    CHECK_OK(ctx, dlrn_load(ctx, file, NULL, &back));
    check_function("layer 7", dict, back);
    dlrn_dictionary_destroy(back);
    dlrn_dictionary_destroy(dict);
}

/* A folder with another dictionary would be read as that one; a config that belongs to other files
   is not replaced. */
TEST(folders_of_others) {
    dlrn_dictionary *dict = make("AutoEncoder", D);
    const char *folder = fresh_folder();
    char file[600];
    CHECK_OK(ctx, save_to(dict, folder, "saelens", 0));
    CHECK_OK(ctx, save_to(dict, folder, "saelens", 0)); /* again: its own files */
    CHECK_STATUS(save_to(dict, folder, "dictionary_learning", 0), DLRN_ERR_ARGUMENT);
    CHECK_STR(dlrn_error(ctx),
              "expected a folder without another dictionary, found sae_weights.safetensors");
    CHECK(!is_there(folder, "ae.pt") && !is_there(folder, "config.json"));
    fresh_folder();
    snprintf(file, sizeof file, "%s/config.json", folder);
    CHECK_OK(ctx, dlrn_file_write(ctx, file, "{}", 2));
    CHECK_STATUS(save_to(dict, folder, "dictionary_learning", 0), DLRN_ERR_ARGUMENT);
    CHECK_STR(dlrn_error(ctx), "expected a folder without another config.json, found one");
    CHECK(!is_there(folder, "ae.pt"));
    /* publishers' embeddings are stored scaled, which their path alone says */
    mkdir(tmp_path("embedding"), 0777);
    CHECK_STATUS(save_to(dict, tmp_path("embedding"), "gemma_scope", 0), DLRN_ERR_ARGUMENT);
    CHECK_STR(dlrn_error(ctx), "expected a path without 'embedding/'");
    dlrn_dictionary_destroy(dict);
}

/* ---- Crosscoders ---- */

/* A dictionary whose rows are of two layers, as a recipe for crosscoders has them. */
static dlrn_dictionary *make_crosscoder(const char *family) {
    dlrn_dictionary *dict = make(family, D);
    dict->layers = 2;
    dict->formula.center = DLRN_CENTER_NONE;
    dlrn_dictionary_changed(dict);
    return dict;
}

TEST(crosscoders) {
    static const struct {
        const char *library, *family, *note;
    } trips[] = {{"ckkissane", "AutoEncoder", NONE},
                 {"crosscoder-fork", "AutoEncoder", NONE},
                 {"dictionary_learning", "AutoEncoder", NONE},
                 {"dictionary_learning", "BatchTopKSAE", MOVED}};
    dlrn_dictionary *back = NULL;
    for (size_t i = 0; i < sizeof trips / sizeof *trips; i++) {
        dlrn_dictionary *dict = make_crosscoder(trips[i].family);
        round_trip(dict, trips[i].library, trips[i].note);
        CHECK_OK(ctx, dlrn_load(ctx, kept_folder(), NULL, &back));
        CHECK(back->layers == 2);
        dlrn_dictionary_destroy(back);
        dlrn_dictionary_destroy(dict);
    }
    dlrn_dictionary *dict = make_crosscoder("AutoEncoder");
    refused(dict, "saelens", DLRN_ERR_UNSUPPORTED, "no place for a dictionary of 2 layers");
    dlrn_dictionary_destroy(dict);
}

/* Thresholds that are compared with p times norms are so in the file, in other numbers. */
TEST(crosscoders_of_batch_top_k) {
    static float y[2][N * D];
    dlrn_dictionary *dict = make_crosscoder("BatchTopKSAE"), *back = NULL;
    for (int ranked = 0; ranked < 2; ranked++) {
        dict->formula.rank = ranked ? DLRN_RANK_LAYER_NORMS : DLRN_RANK_VALUE;
        dlrn_dictionary_changed(dict);
        CHECK_OK(ctx, save_to(dict, fresh_folder(), "crosscoder-fork", 0));
        CHECK_OK(ctx, dlrn_load(ctx, kept_folder(), NULL, &back));
        CHECK_OK(ctx, dlrn_forward(dict, x, N, y[0], NULL));
        CHECK_OK(ctx, dlrn_forward(back, x, N, y[1], NULL));
        check_near("x_hat", y[1], y[0], (int64_t)N * D);
        CHECK(back->layers == 2 && back->formula.k == K);
        dlrn_dictionary_destroy(back);
    }
    dlrn_dictionary_destroy(dict);
}

/* ---- Cross-layer transcoders ---- */

enum { LAYERS = 3 };

/* Each layer reads its own D numbers and writes to all layers from it on. */
static dlrn_dictionary *make_set(dlrn_gate gate) {
    dlrn_dictionary *dict = NULL;
    CHECK_OK(ctx, dlrni_dictionary_new(ctx, dlrni_family_named("CrossLayerTranscoder"), LAYERS * D,
                                       LAYERS * D, LAYERS * F, &dict));
    dict->layers = dict->feature_layers = LAYERS;
    CHECK_OK(ctx, dlrni_parts_alloc(dict, LAYERS));
    CHECK_OK(ctx, dlrni_param_alloc(dict, DLRN_OUTPUT_BIAS));
    fill(dict->param[DLRN_OUTPUT_BIAS], LAYERS * D, .5f);
    for (int i = 0; i < LAYERS; i++) {
        dlrn_part *part = &dict->part[i];
        part->in_at = part->out_at = i * D;
        part->feature_at = i * F;
        CHECK_OK(ctx, dlrni_span_alloc(ctx, dlrni_family_named("Layer"), D, (LAYERS - i) * D, F,
                                       &part->dict));
        for (int role = 0; role < DLRN_ROLE_COUNT; role++)
            if (part->dict->param[role])
                fill(part->dict->param[role], dlrni_role_size(part->dict, role), .5f);
        part->dict->formula.gate = gate;
        if (gate == DLRN_GATE_RELU) continue;
        CHECK_OK(ctx, dlrni_param_alloc(part->dict, DLRN_THRESHOLD));
        fill(part->dict->param[DLRN_THRESHOLD], F, .3f); /* of both signs */
    }
    return dict;
}

/* The same features and reconstructions of rows of all layers. */
static void check_set(const char *what, const dlrn_dictionary *a, const dlrn_dictionary *b) {
    enum { ROWS = N / LAYERS };
    static float f[2][ROWS * LAYERS * F], y[2][ROWS * LAYERS * D];
    CHECK(b->n_parts == LAYERS && a->d_in == b->d_in && a->features == b->features);
    for (int i = 0; i < 2; i++) {
        CHECK_OK(ctx, dlrn_encode(i ? b : a, x, ROWS, f[i]));
        CHECK_OK(ctx, dlrn_forward(i ? b : a, x, ROWS, y[i], NULL));
    }
    check_near(what, f[1], f[0], ROWS * LAYERS * F);
    check_near(what, y[1], y[0], ROWS * LAYERS * D);
}

TEST(cross_layer_transcoders) {
    static const struct {
        dlrn_gate gate;
        double in, out;
        const char *note;
    } sets[] = {{DLRN_GATE_RELU, 1, 1, NONE},
                {DLRN_GATE_JUMP_SIGNED, 1, 1, NONE},
                {DLRN_GATE_JUMP, 1, 1, RAISED},
                {DLRN_GATE_RELU, 1.5, 0.75, SCALED}};
    const dlrn_save_options how = {"circuit-tracer", 0};
    char note[256], *bytes = NULL;
    size_t size = 0;
    for (int i = 0; i < 4; i++) {
        dlrn_dictionary *dict = make_set(sets[i].gate), *back = NULL;
        for (int k = 0; k < LAYERS; k++) dict->part[k].dict->formula.scale_in = sets[i].in;
        dict->formula.scale_out = sets[i].out;
        CHECK_OK(ctx, dlrn_save_as(dict, fresh_folder(), &how, note, sizeof note));
        CHECK_MSG(!strcmp(note, sets[i].note), "noted '%s'", note);
        CHECK_OK(ctx, dlrn_load(ctx, kept_folder(), NULL, &back));
        check_set("a set", dict, back);
        for (int k = 0; k < LAYERS && !*note; k++)
            check_bits("a layer", dict->part[k].dict, back->part[k].dict);
        dlrn_dictionary_destroy(back);
        dlrn_dictionary_destroy(dict);
    }
    snprintf(note, sizeof note, "%s/config.yaml", kept_folder());
    CHECK_OK(ctx, dlrn_file_read(ctx, note, &bytes, &size));
    CHECK_STR(bytes, "model_kind: cross_layer_transcoder\n");
    dlrn_free(ctx, bytes);
}

/* Llamascopium's file holds selections, too: of each layer, or of all. */
TEST(cross_layer_transcoders_for_llamascopium) {
    for (int i = 0; i < 5; i++) {
        dlrn_dictionary *dict = make_set(i ? DLRN_GATE_RELU : DLRN_GATE_JUMP), *back = NULL;
        const dlrn_select select = i & 1 ? DLRN_SELECT_TOP_K : DLRN_SELECT_BATCH_TOP_K;
        for (int k = 0; k < LAYERS; k++) {
            dlrn_formula *f = &dict->part[k].dict->formula;
            float *threshold = dict->part[k].dict->param[DLRN_THRESHOLD];
            for (int j = 0; threshold && j < F; j++) threshold[j] = fabsf(threshold[j]);
            f->scale_in = 1.5;
            if (i == 1 || i == 2) f->select = select, f->k = K;
        }
        if (i > 2) dict->formula.select = select, dict->formula.k = 2 * K;
        CHECK_OK(ctx, save_to(dict, fresh_folder(), "llamascopium", 0));
        CHECK_OK(ctx, dlrn_load(ctx, kept_folder(), NULL, &back));
        CHECK_MSG(!strcmp(back->layout, "llamascopium"), "%d: read as %s", i, back->layout);
        check_set("a set for llamascopium", dict, back);
        dlrn_dictionary_destroy(back);
        dlrn_dictionary_destroy(dict);
    }
}

/* A run may have its library's files in a folder of its name, where those of both have one name. */
TEST(a_folder_called_as_a_library) {
    dlrn_dictionary *dict = make("AutoEncoder", D), *back = NULL;
    char folder[600];
    dict->formula.center = DLRN_CENTER_NONE;
    snprintf(folder, sizeof folder, "%s/llamascopium", fresh_folder());
    mkdir(folder, 0777);
    CHECK_OK(ctx, save_to(dict, folder, "llamascopium", 0));
    CHECK_OK(ctx, dlrn_load(ctx, kept_folder(), NULL, &back));
    check_bits("a folder in a folder", dict, back);
    dlrn_dictionary_destroy(back);
    CHECK_OK(ctx, save_to(dict, kept_folder(), "dictionary_learning", 0));
    CHECK_OK(ctx, dlrn_load(ctx, kept_folder(), NULL, &back));
    CHECK_STR(back->layout, "dictionary_learning"); /* its own go first */
    dlrn_dictionary_destroy(back);
    dlrn_dictionary_destroy(dict);
    char file[700];
    snprintf(file, sizeof file, "%s/sae_weights.safetensors", folder);
    remove(file);
    snprintf(file, sizeof file, "%s/config.json", folder);
    remove(file);
    rmdir(folder);
}

/* A ReLU layer among layers with thresholds has thresholds of 0 in the file. */
TEST(layers_of_two_kinds) {
    dlrn_dictionary *dict = make_set(DLRN_GATE_JUMP_SIGNED), *back = NULL;
    dlrn_archive *a = NULL;
    char file[600];
    dict->part[1].dict->formula.gate = DLRN_GATE_RELU;
    dlrn_free(ctx, dict->part[1].dict->param[DLRN_THRESHOLD]);
    dict->part[1].dict->param[DLRN_THRESHOLD] = NULL;
    CHECK_OK(ctx, save_to(dict, fresh_folder(), "circuit-tracer", 0));
    CHECK_OK(ctx, dlrn_load(ctx, kept_folder(), NULL, &back));
    check_set("two kinds", dict, back);
    snprintf(file, sizeof file, "%s/W_enc_1.safetensors", kept_folder());
    CHECK_OK(ctx, dlrn_archive_open(ctx, file, &a)); /* circuit-tracer reads all or none */
    CHECK(dlrn_archive_find(a, "threshold_1") >= 0);
    dlrn_archive_close(a);
    dlrn_dictionary_destroy(back);
    dlrn_dictionary_destroy(dict);
}

TEST(sets_that_are_refused) {
    dlrn_dictionary *dict = make_set(DLRN_GATE_RELU);
    char file[600];
    refused(dict, "saelens", DLRN_ERR_UNSUPPORTED,
            "saelens has no place for this CrossLayerTranscoder of 3 layers");
    CHECK_STATUS(save_to(dict, tmp_path("set.safetensors"), "circuit-tracer", 0),
                 DLRN_ERR_UNSUPPORTED);
    CHECK_STR(dlrn_error(ctx), "no place for this CrossLayerTranscoder of 3 layers in one file");
    CHECK_OK(ctx, dlrn_save(dict, tmp_path("set.pt"))); /* in this library's own layout */
    dict->formula.select = DLRN_SELECT_TOP_K, dict->formula.k = K;
    refused(dict, "circuit-tracer", DLRN_ERR_UNSUPPORTED, "no place for this CrossLayerTranscoder");
    dict->formula.select = DLRN_SELECT_ALL, dict->formula.k = 0;
    dict->part[1].out_at = 0;
    refused(dict, "circuit-tracer", DLRN_ERR_UNSUPPORTED, "no place for this CrossLayerTranscoder");
    dict->part[1].out_at = D;
    dict->part[2].dict->param[DLRN_DECODER][4] = (float)INFINITY;
    CHECK_STATUS(save_to(dict, fresh_folder(), "circuit-tracer", 0), DLRN_ERR_VALUE);
    CHECK_STR(dlrn_error(ctx), "tensor 'W_dec_2': element 4: expected a finite number");
    CHECK(!is_there(kept_folder(), "W_enc_0.safetensors") &&
          !is_there(kept_folder(), "config.yaml"));
    dict->part[2].dict->param[DLRN_DECODER][4] = 1;
    snprintf(file, sizeof file, "%s/W_enc_3.safetensors", fresh_folder());
    CHECK_OK(ctx, dlrn_file_write(ctx, file, "x", 1)); /* of a larger one */
    CHECK_STATUS(save_to(dict, kept_folder(), "circuit-tracer", 0), DLRN_ERR_ARGUMENT);
    CHECK_STR(dlrn_error(ctx), "without another dictionary, found W_enc_3.safetensors");
    dlrn_dictionary_destroy(dict);
}

/* ---- Without memory ---- */

TEST(each_allocation_fails) {
    dlrn_context *all = ctx, *starved = NULL;
    dlrn_context_config cfg = starve_config(1);
    CHECK_STATUS(dlrn_context_create(&cfg, &starved), DLRN_OK);
    ctx = starved;
    static const char *const libraries[] = {"dictionary_learning", "saelens",     "sparsify",
                                            "circuit-tracer",      "gemma_scope", "gemma_scope_2",
                                            "llamascopium",        "ckkissane",   "crosscoder-fork",
                                            "circuit-tracer",      "llamascopium"};
    for (int i = 0; i < 11; i++) {
        const char *library = libraries[i];
        dlrn_dictionary *dict = i > 8    ? make_set(DLRN_GATE_RELU)
                                : i > 6  ? make_crosscoder("AutoEncoder")
                                : i == 2 ? make("AutoEncoderTopK", D)
                                         : make("AutoEncoder", D);
        const char *folder = fresh_folder();
        dlrn_dictionary *back = NULL;
        if (i < 9) apply(dict, TWO_SCALES); /* so that it is copied */
        const int64_t live = starve.live;
        dlrn_status s = DLRN_ERR_MEMORY;
        for (int64_t granted = 0; s != DLRN_OK; granted++) {
            starve.left = granted;
            s = save_to(dict, folder, library, 0);
            starve.left = -1;
            CHECK_MSG(starve.live == live, "%s: allocation %d leaks", library, (int)granted);
            if (s == DLRN_OK) break;
            CHECK_STATUS(s, DLRN_ERR_MEMORY);
            CHECK(!is_there(folder, "config.json") && !is_there(folder, "cfg.json"));
        }
        CHECK_OK(ctx, dlrn_load(ctx, folder, NULL, &back));
        if (i < 9) check_function(library, dict, back);
        if (i > 8) check_set(library, dict, back);
        dlrn_dictionary_destroy(back);
        dlrn_dictionary_destroy(dict);
    }
    dlrn_context_destroy(starved);
    CHECK(starve.live == 0);
    ctx = all;
}

int main(int argc, char **argv) {
    TEST_BEGIN(argc, argv);
    if (dlrn_context_create(NULL, &ctx) != DLRN_OK) return 1;
    fill(x, N * D, 1.0f);
    RUN(each_library_round_trips);
    RUN(kinds_of_jumps);
    RUN(a_threshold_that_was_not_set);
    RUN(what_a_library_cannot_express_is_refused);
    RUN(other_refusals);
    RUN(files_and_folders);
    RUN(a_set_of_layers);
    RUN(folders_of_others);
    RUN(crosscoders);
    RUN(crosscoders_of_batch_top_k);
    RUN(cross_layer_transcoders_for_llamascopium);
    RUN(a_folder_called_as_a_library);
    RUN(cross_layer_transcoders);
    RUN(layers_of_two_kinds);
    RUN(sets_that_are_refused);
    RUN(each_allocation_fails);
    dlrn_context_destroy(ctx);
    return TEST_END();
}
