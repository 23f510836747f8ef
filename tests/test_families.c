/* Dictionaries of each family as their own library wrote them: loaded, encoded, decoded, saved and
   loaded again. tests/golden/make_families.py made the files and the expected numbers. */
#define DICTLEARN_IMPLEMENTATION
#include "dictlearn.h"
#include "test.h"

enum { MAX = 9 * 40 };

static dlrn_context *ctx;

/* An array of the golden's folder, into to [MAX]; returns how many numbers it has. */
static int64_t read_array(const char *family, const char *name, float *to) {
    char path[256];
    dlrn_archive *a = NULL;
    snprintf(path, sizeof path, "tests/golden/families/%s/%s.npy", family, name);
    CHECK_OK(ctx, dlrn_archive_open(ctx, path, &a));
    int64_t n = dlrn_archive_tensor(a, 0)->numel;
    CHECK(n <= MAX);
    CHECK_OK(ctx, dlrn_archive_read(a, 0, 0, -1, to));
    dlrn_archive_close(a);
    return n;
}

/* Features and reconstruction of one dictionary against the library's. */
static void check_numbers(const dlrn_dictionary *dict, const char *family) {
    static float x[MAX], f[MAX], want[MAX], x_hat[MAX];
    int64_t n = read_array(family, "input", x) / dict->d_in;
    CHECK(read_array(family, "features", want) == n * dict->features);
    CHECK_OK(ctx, dlrn_encode(dict, x, n, f));
    check_near("features", f, want, n * dict->features);
    for (int64_t i = 0; i < n * dict->features; i++) CHECK((f[i] != 0) == (want[i] != 0));
    CHECK(read_array(family, "reconstruction", want) == n * dict->d_out);
    CHECK_OK(ctx, dlrn_forward(dict, x, n, x_hat, NULL));
    check_near("reconstruction", x_hat, want, n * dict->d_out);
    CHECK_OK(ctx, dlrn_decode(dict, f, n, x_hat));
    check_near("decoded", x_hat, want, n * dict->d_out);
}

static void check_family(const char *family) {
    static const char *const names[] = {"family.pt", "family.safetensors", "family.npz"};
    char path[256];
    dlrn_dictionary *dict = NULL, *back = NULL;
    snprintf(path, sizeof path, "tests/golden/families/%s", family);
    CHECK_OK(ctx, dlrn_load(ctx, path, NULL, &dict));
    CHECK(!strcmp(dict->family, family));
    check_numbers(dict, family);
    for (int i = 0; i < 3; i++) {
        CHECK_OK(ctx, dlrn_save(dict, tmp_path(names[i])));
        CHECK_OK(ctx, dlrn_load(ctx, tmp_path(names[i]),
                                &(dlrn_load_options){family, 0, 0, 0, DLRN_OFF}, &back));
        CHECK(back->formula.k == dict->formula.k && !strcmp(back->family, family));
        for (int role = 0; role < DLRN_ROLE_COUNT; role++) {
            CHECK(!back->param[role] == !dict->param[role]);
            if (dict->param[role])
                CHECK(!memcmp(back->param[role], dict->param[role],
                              (size_t)dlrni_role_size(dict, role) * sizeof(float)));
        }
        dlrn_dictionary_destroy(back);
    }
    dlrn_dictionary_destroy(dict);
}

TEST(autoencoder) {
    check_family("AutoEncoder");
}

TEST(top_k) {
    check_family("AutoEncoderTopK");
}

TEST(jump_relu) {
    check_family("JumpReluAutoEncoder");
}

/* A file as dictionary_learning writes it, without its config: the same tensors, no class. */
static void write_top_k(const char *path, const char *const *metadata) {
    static const float floats[12 * 40] = {1};
    static const int32_t k = 3;
    static const float threshold = 0.5f;
    const dlrn_tensor_out t[] = {{"b_dec", DLRN_F32, 1, {12}, floats},
                                 {"k", DLRN_I32, 0, {0}, &k},
                                 {"threshold", DLRN_F32, 0, {0}, &threshold},
                                 {"decoder.weight", DLRN_F32, 2, {12, 40}, floats},
                                 {"encoder.weight", DLRN_F32, 2, {40, 12}, floats},
                                 {"encoder.bias", DLRN_F32, 1, {40}, floats}};
    CHECK_OK(ctx, dlrn_archive_write(ctx, path, t, 6, metadata));
}

/* Two classes have the same tensors: without a config, or a word of the caller, neither is
   taken. */
TEST(what_the_tensors_leave_open_is_an_error) {
    dlrn_dictionary *dict = NULL;
    const char *path = "tests/golden/families/AutoEncoderTopK/ae.pt";
    CHECK_OK(ctx, dlrn_load(ctx, path, NULL, &dict)); /* with its config */
    CHECK_STR(dict->layout, "dictionary_learning");
    dlrn_dictionary_destroy(dict);
    write_top_k(tmp_path("open.npz"), NULL);
    CHECK_STATUS(dlrn_load(ctx, tmp_path("open.npz"), NULL, &dict), DLRN_ERR_UNSUPPORTED);
    CHECK_STR(dlrn_error(ctx), "found those of AutoEncoderTopK and of BatchTopKSAE");
    CHECK_OK(ctx, dlrn_load(ctx, tmp_path("open.npz"),
                            &(dlrn_load_options){"BatchTopKSAE", 0, 0, 0, DLRN_OFF}, &dict));
    CHECK(!strcmp(dict->family, "BatchTopKSAE") && dict->formula.k == 3);
    CHECK(dict->formula.threshold == 0.5 && dict->formula.gate == DLRN_GATE_JUMP);
    dlrn_dictionary_destroy(dict);
    CHECK_STATUS(dlrn_load(ctx, tmp_path("open.npz"),
                           &(dlrn_load_options){"AutoEncoder", 0, 0, 0, DLRN_OFF}, &dict),
                 DLRN_ERR_SHAPE);
    CHECK_STR(dlrn_error(ctx), "expected the tensors of AutoEncoder");
}

/* What dlrn_save writes loads without a config and without a word of the caller, in each format and
   from memory. */
TEST(a_saved_file_states_its_class) {
    static const char *const names[] = {"alone.pt", "alone.safetensors", "alone.npz"};
    static const char *const families[] = {"AutoEncoder", "AutoEncoderTopK", "JumpReluAutoEncoder"};
    for (int i = 0; i < 9; i++) {
        const char *family = families[i / 3], *name = names[i % 3];
        char golden[256], *bytes = NULL;
        size_t size = 0;
        dlrn_dictionary *dict = NULL;
        snprintf(golden, sizeof golden, "tests/golden/families/%s", family);
        CHECK_OK(ctx, dlrn_load(ctx, golden, NULL, &dict));
        CHECK_OK(ctx, dlrn_save(dict, tmp_path(name)));
        dlrn_dictionary_destroy(dict);
        CHECK_OK(ctx, dlrn_load(ctx, tmp_path(name), NULL, &dict));
        CHECK(!strcmp(dict->family, family));
        check_numbers(dict, family);
        dlrn_dictionary_destroy(dict);
        CHECK_OK(ctx, dlrn_file_read(ctx, tmp_path(name), &bytes, &size));
        CHECK_OK(ctx, dlrn_load_memory(ctx, bytes, size, name, NULL, &dict));
        CHECK(!strcmp(dict->family, family));
        dlrn_dictionary_destroy(dict);
        dlrn_free(ctx, bytes);
    }
}

/* The class in a file is not believed against its tensors, and gives way to the caller's. */
TEST(a_stated_class_is_checked) {
    static const char *const wrong[] = {"dict_class", "JumpReluAutoEncoder", NULL};
    static const char *const other[] = {"dict_class", "MyTopK", NULL};
    static const char *const names[] = {"stated.pt", "stated.safetensors", "stated.npz"};
    dlrn_dictionary *dict = NULL;
    for (int i = 0; i < 3; i++) {
        write_top_k(tmp_path(names[i]), wrong);
        CHECK_STATUS(dlrn_load(ctx, tmp_path(names[i]), NULL, &dict), DLRN_ERR_SHAPE);
        CHECK_STR(dlrn_error(ctx), "expected the tensors of JumpReluAutoEncoder, found those of ");
        CHECK_OK(ctx, dlrn_load(ctx, tmp_path(names[i]),
                                &(dlrn_load_options){"AutoEncoderTopK", 0, 0, 0, DLRN_OFF}, &dict));
        dlrn_dictionary_destroy(dict);
        write_top_k(tmp_path(names[i]), other);
        CHECK_STATUS(dlrn_load(ctx, tmp_path(names[i]), NULL, &dict), DLRN_ERR_UNSUPPORTED);
        CHECK_STR(dlrn_error(ctx), ": dict_class: expected AutoEncoder, AutoEncoderTopK, ");
        CHECK_STR(dlrn_error(ctx), "found MyTopK");
    }
}

/* d_out other than d_in: every family saves and loads, with the same results. */
TEST(transcoders_are_saved_and_loaded) {
    static const char *const names[] = {"wide.pt", "wide.safetensors", "wide.npz"};
    static const char *const families[] = {"AutoEncoder", "AutoEncoderTopK", "JumpReluAutoEncoder"};
    enum { N = 40, F = 60 };
    static float x[N * 37], y[N * 37], again[N * 37];
    dlrn_rng rng = {3, 1, 0};
    for (int i = 0; i < N * 37; i++) x[i] = dlrn_rng_normal(&rng);
    for (int i = 0; i < 3 * 3 * 3; i++) {
        static const int widths[][2] = {{37, 5}, {5, 37}, {5, 6}};
        const int in = widths[i / 9][0], out = widths[i / 9][1];
        dlrn_dictionary_desc desc = {families[i % 3], in, out, F, i % 3 == 1 ? 7 : 0, 1, 0};
        char *path = tmp_path(names[i / 3 % 3]);
        dlrn_dictionary *dict = NULL, *back = NULL;
        CHECK_OK(ctx, dlrn_dictionary_create(ctx, &desc, &dict));
        CHECK(dict->formula.center == DLRN_CENTER_NONE); /* the bias has another width than x */
        for (int j = 0; j < out; j++) dict->param[DLRN_OUTPUT_BIAS][j] = dlrn_rng_normal(&rng);
        CHECK_OK(ctx, dlrn_forward(dict, x, N, y, NULL));
        CHECK_OK(ctx, dlrn_save(dict, path));
        CHECK_OK(ctx, dlrn_load(ctx, path, NULL, &back));
        CHECK(back->d_in == in && back->d_out == out && back->features == F);
        CHECK(!strcmp(back->family, desc.family) && back->formula.center == DLRN_CENTER_NONE);
        CHECK_OK(ctx, dlrn_forward(back, x, N, again, NULL));
        CHECK(!memcmp(y, again, (size_t)(N * out) * sizeof *y));
        dlrn_dictionary_destroy(dict);
        dlrn_dictionary_destroy(back);
    }
}

/* A parameter or a formula that the layout cannot express would be lost: it is refused. */
TEST(what_a_file_cannot_hold_is_not_saved) {
    static float skip[36], bias[6];
    dlrn_dictionary_desc desc = {"AutoEncoder", 6, 0, 9, 0, 1, 0};
    dlrn_dictionary *dict = NULL;
    CHECK_OK(ctx, dlrn_dictionary_create(ctx, &desc, &dict));
    const dlrn_formula formula = dict->formula;
    for (int i = 0; i < 7; i++) {
        float **p = dict->param;
        dict->formula = formula;
        p[DLRN_SKIP] = i == 0 ? skip : NULL;
        p[DLRN_INPUT_BIAS] = i == 1 ? bias : NULL;
        dict->borrowed = 1u << DLRN_SKIP | 1u << DLRN_INPUT_BIAS;
        if (i == 2) dict->formula.scale_in = 2;
        if (i == 3) dict->formula.scale_out = 0.5;
        if (i == 4) dict->formula.center = DLRN_CENTER_NONE;
        if (i == 5) dict->formula.select = DLRN_SELECT_TOP_K, dict->formula.k = 2;
        /* AutoEncoderNew is a layout without a center */
        if (i == 4 || i == 6) {
            CHECK_OK(ctx, dlrn_save(dict, tmp_path("held.npz")));
            continue;
        }
        CHECK_STATUS(dlrn_save(dict, tmp_path("held.npz")), DLRN_ERR_UNSUPPORTED);
        CHECK_STR(dlrn_error(ctx), "held.npz: not written: layout AutoEncoder has no place for ");
        CHECK_STR(dlrn_error(ctx), i == 0   ? "parameter 'skip'"
                                   : i == 1 ? "parameter 'input_bias'"
                                   : i == 5 ? "k"
                                            : "a formula that differs from its family's");
    }
    dlrn_dictionary_destroy(dict);
}

/* Whether a stored shape is that of a role: as in memory, transposed, or with a crosscoder's layers
   and widths in place of the row's. A dictionary with attention has F where the role says A. */
static int is_shape_of(const char *shape, const dlrni_role *role) {
    const char same[] = {role->rows == 'A' ? 'F' : role->rows,
                         role->cols == '1'   ? '\0'
                         : role->cols == 'A' ? 'F'
                                             : role->cols,
                         0};
    const char turned[] = {role->cols, role->rows, 0};
    if (!strcmp(shape, same) || (role->cols != '1' && !strcmp(shape, turned))) return 1;
    if (role->cols == '1') return role->rows == 'O' && !strcmp(shape, "MD");
    return !strcmp(shape, "MDF") || !strcmp(shape, "FMD") || !strcmp(shape, "MFD");
}

/* The tables of layouts: a role is stored in a shape of its own, rows end within the array, a role
   stands twice only as an alternative, and a family that is written has all of its roles. */
TEST(layouts_are_consistent) {
    const dlrni_library *library;
    const dlrni_layout *row;
    int rows = 0;
    for (int i = 0; (row = dlrni_layout_at(i, &library)) != NULL; i++) {
        unsigned roles = 0;
        int n = 0;
        rows++;
        for (; n < DLRNI_STORED_MAX && row->tensor[n].name; n++) {
            const dlrni_stored *t = &row->tensor[n];
            if (t->is >= DLRN_ROLE_COUNT) continue;
            CHECK_MSG(is_shape_of(t->shape, &dlrni_role_table[t->is]), "%s: %s: %s", row->name,
                      t->name, t->shape);
            CHECK(!(roles >> t->is & 1) || t[-1].optional == DLRNI_OR_NEXT);
            roles |= 1u << t->is;
        }
        CHECK(n < DLRNI_STORED_MAX);
        if (dlrni_is_written(row))
            CHECK((roles & dlrni_family_named(row->family)->roles) ==
                  dlrni_family_named(row->family)->roles);
    }
    CHECK(rows > 40);
}

/* A dictionary is written in the layout of the library that it names, if that can hold it. */
TEST(a_dictionary_names_its_layout) {
    dlrn_dictionary_desc desc = {"AutoEncoder", 6, 0, 9, 0, 1, 0};
    dlrn_dictionary *dict = NULL;
    const dlrni_library *library;
    const dlrni_layout *row;
    CHECK_OK(ctx, dlrn_dictionary_create(ctx, &desc, &dict));
    CHECK_OK(ctx, dlrni_layout_of(dict, "x.pt", &library, &row));
    CHECK(!strcmp(row->name, "AutoEncoder") && !strcmp(library->name, "dictionary_learning"));
    dict->layout = "connor_rob";
    CHECK_OK(ctx, dlrni_layout_of(dict, "x.pt", &library, &row));
    CHECK(!strcmp(library->name, "connor_rob"));
    dict->formula.center = DLRN_CENTER_NONE; /* which that library does not have */
    CHECK_OK(ctx, dlrni_layout_of(dict, "x.pt", &library, &row));
    CHECK(!strcmp(row->name, "AutoEncoderNew"));
    dlrn_dictionary_destroy(dict);
}

/* A k that no row can have. */
TEST(a_k_out_of_range_is_refused) {
    static const float ks[] = {0, -1, 41, 2.5f, NAN};
    static const float floats[12 * 40] = {0};
    for (size_t i = 0; i < sizeof ks / sizeof *ks; i++) {
        const dlrn_tensor_out t[] = {{"b_dec", DLRN_F32, 1, {12}, floats},
                                     {"k", DLRN_F32, 0, {0}, &ks[i]},
                                     {"decoder.weight", DLRN_F32, 2, {12, 40}, floats},
                                     {"encoder.weight", DLRN_F32, 2, {40, 12}, floats},
                                     {"encoder.bias", DLRN_F32, 1, {40}, floats}};
        dlrn_dictionary *dict = NULL;
        CHECK_OK(ctx, dlrn_archive_write(ctx, tmp_path("k.npz"), t, 5, NULL));
        CHECK_STATUS(dlrn_load(ctx, tmp_path("k.npz"), NULL, &dict), DLRN_ERR_VALUE);
        CHECK_STR(dlrn_error(ctx), "tensor 'k': expected a number from 1 to 40, found");
    }
    dlrn_dictionary_desc desc = {"AutoEncoderTopK", 4, 0, 8, 9, 0, 0};
    dlrn_dictionary *dict = NULL;
    CHECK_STATUS(dlrn_dictionary_create(ctx, &desc, &dict), DLRN_ERR_ARGUMENT);
    CHECK(dict == NULL);
    desc.family = "AutoEncoderTopk";
    CHECK_STATUS(dlrn_dictionary_create(ctx, &desc, &dict), DLRN_ERR_ARGUMENT);
    CHECK_STR(dlrn_error(ctx),
              "family: expected a name such as AutoEncoder, found AutoEncoderTopk");
}

/* A formula may have both thresholds and top-k, though no family has: many rows, which a screen
   would serve, give what one row at a time gives. */
TEST(thresholds_and_top_k_together) {
    enum { D = 32, F = 960, N = 256, K = 20 };
    static float x[N * D], many[N * F], one[F];
    dlrn_dictionary_desc desc = {"JumpReluAutoEncoder", D, 0, F, 0, 5, 0};
    dlrn_dictionary *dict = NULL;
    dlrn_encoder *e = NULL;
    dlrn_rng rng = {1, 1, 0};
    CHECK_OK(ctx, dlrn_dictionary_create(ctx, &desc, &dict));
    dict->formula.select = DLRN_SELECT_TOP_K;
    dict->formula.k = K;
    for (int i = 0; i < N * D; i++) x[i] = dlrn_rng_normal(&rng);
    for (int i = 0; i < F; i++) dict->param[DLRN_THRESHOLD][i] = 0.1f * (float)(i % 20);
    CHECK_OK(ctx, dlrn_encoder_create(dict, &e));
    for (int again = 0; again < 3; again++) {
        int64_t active = 0;
        CHECK_OK(ctx, dlrn_encoder_run(e, x, N, many, NULL, NULL));
        for (int i = 0; i < N; i++) {
            CHECK_OK(ctx, dlrn_encode(dict, x + i * D, 1, one));
            CHECK(!memcmp(one, many + i * F, sizeof one));
            for (int j = 0; j < F; j++) active += one[j] != 0;
        }
        CHECK(active == N * K);
    }
    dlrn_encoder_destroy(e);
    dlrn_dictionary_destroy(dict);
}

/* From memory, parameters lie where the file has them, if they lie there as they are used. */
TEST(weights_are_borrowed_from_memory) {
    dlrn_dictionary *dict = NULL, *copy = NULL;
    char *bytes = NULL;
    size_t size = 0;
    CHECK_OK(ctx, dlrn_load(ctx, "tests/golden/families/JumpReluAutoEncoder", NULL, &dict));
    CHECK_OK(ctx, dlrn_save(dict, tmp_path("flash.safetensors")));
    dlrn_dictionary_destroy(dict);
    CHECK_OK(ctx, dlrn_file_read(ctx, tmp_path("flash.safetensors"), &bytes, &size));
    CHECK_OK(ctx, dlrn_load_memory(ctx, bytes, size, "flash", NULL, &dict));
    const char *atoms = (const char *)dict->param[DLRN_DECODER],
               *own = (const char *)dict->param[0];
    CHECK(atoms >= bytes && atoms < bytes + size); /* W_dec [F][d] is as in memory */
    CHECK(!(own >= bytes && own < bytes + size));  /* W_enc [d][F] is not          */
    check_numbers(dict, "JumpReluAutoEncoder");
    CHECK_OK(ctx, dlrni_dictionary_copy(ctx, dict, &copy));
    CHECK(copy->borrowed == 0 && copy->param[DLRN_DECODER] != dict->param[DLRN_DECODER]);
    dlrn_dictionary_destroy(copy);
    dlrn_dictionary_destroy(dict);
    memset(bytes + size - 16, 0xff, 16); /* NaN: the last tensor's */
    CHECK_STATUS(dlrn_load_memory(ctx, bytes, size, "flash", NULL, &dict), DLRN_ERR_VALUE);
    CHECK_STR(dlrn_error(ctx), "flash: tensor '");
    dlrn_free(ctx, bytes);
}

/* After its first batches an encoder with reused codes takes no memory. */
TEST(an_encoder_allocates_nothing_after_its_first_batches) {
    enum { D = 16, F = 500, N = 300 };
    static const char *const families[] = {"AutoEncoder", "AutoEncoderTopK", "JumpReluAutoEncoder",
                                           "IdentityDict"};
    static float x[N * D], x_hat[N * D];
    for (int with = 0; with < 8; with++) {
        dlrn_context_config cfg = {0};
        dlrn_context *counted = NULL;
        dlrn_dictionary_desc desc = {families[with / 2], D, 0, F, with / 2 == 1 ? 9 : 0, 5, 0};
        dlrn_dictionary *dict = NULL;
        dlrn_encoder *e = NULL;
        dlrn_sparse codes = {0};
        dlrn_rng rng = {7, 7, 0};
        const int64_t rows = with % 2 ? 1 : N;
        cfg.alloc = tally_alloc;
        cfg.release = tally_release;
        CHECK_STATUS(dlrn_context_create(&cfg, &counted), DLRN_OK);
        CHECK_OK(counted, dlrn_dictionary_create(counted, &desc, &dict));
        CHECK_OK(counted, dlrn_encoder_create(dict, &e));
        for (int batch = 0; batch < 20; batch++) {
            int64_t before = tallied;
            for (int64_t p = 0; p < rows * D; p++) x[p] = dlrn_rng_normal(&rng);
            CHECK_OK(counted, dlrn_encoder_run(e, x, rows, NULL, &codes, x_hat));
            CHECK_MSG(batch < 3 || tallied == before, "%s, %d rows, batch %d: %d allocations",
                      desc.family, (int)rows, batch, (int)(tallied - before));
        }
        dlrn_sparse_free(&codes);
        dlrn_encoder_destroy(e);
        dlrn_dictionary_destroy(dict);
        dlrn_context_destroy(counted);
    }
}

/* A linear map of x beside the features, scales of input and output, a bias of the input's own:
   roles and formula together, on a dictionary made by hand, against the formula in double. */
TEST(skip_scales_and_an_input_bias) {
    enum { D = 7, O = 5, F = 20, N = 40 };
    static float x[N * D], f[N * F], x_hat[N * O], skip[O * D], input_bias[D], again[N * O];
    dlrn_dictionary_desc desc = {"AutoEncoder", D, O, F, 0, 3, 0};
    dlrn_dictionary *dict = NULL;
    dlrn_rng rng = {1, 2, 0};
    CHECK_OK(ctx, dlrn_dictionary_create(ctx, &desc, &dict));
    for (int i = 0; i < N * D; i++) x[i] = dlrn_rng_normal(&rng);
    for (int i = 0; i < O * D; i++) skip[i] = dlrn_rng_normal(&rng);
    for (int i = 0; i < D; i++) input_bias[i] = dlrn_rng_normal(&rng);
    dict->param[DLRN_SKIP] = skip;
    dict->param[DLRN_INPUT_BIAS] = input_bias;
    dict->borrowed = 1u << DLRN_SKIP | 1u << DLRN_INPUT_BIAS;
    dict->formula.center = DLRN_CENTER_INPUT_BIAS;
    dict->formula.scale_in = 1.5;
    dict->formula.scale_out = 0.25;
    dlrn_encoder *e = NULL;
    CHECK_OK(ctx, dlrn_encoder_create(dict, &e));
    CHECK_OK(ctx, dlrn_encoder_run(e, x, N, f, NULL, x_hat));
    for (int i = 0; i < N; i++) {
        double pre[F];
        for (int j = 0; j < F; j++) {
            pre[j] = (double)dict->param[DLRN_ENCODER_BIAS][j];
            for (int c = 0; c < D; c++)
                pre[j] += (double)dict->param[DLRN_ENCODER][j * D + c] *
                          (1.5 * (double)x[i * D + c] - (double)input_bias[c]);
            CHECK(fabs((double)f[i * F + j] - fmax(pre[j], 0)) < 1e-5);
        }
        for (int o = 0; o < O; o++) {
            double want = (double)dict->param[DLRN_OUTPUT_BIAS][o];
            for (int j = 0; j < F; j++)
                want += fmax(pre[j], 0) * (double)dict->param[DLRN_DECODER][j * O + o];
            for (int c = 0; c < D; c++)
                want += (double)skip[o * D + c] * 1.5 * (double)x[i * D + c];
            CHECK(fabs((double)x_hat[i * O + o] - 0.25 * want) < 1e-5);
        }
    }
    for (int i = 0; i < N; i++) /* row by row, without lists: the same bits */
        CHECK_OK(ctx, dlrn_encoder_run(e, x + i * D, 1, NULL, NULL, again + i * O));
    CHECK(!memcmp(x_hat, again, sizeof x_hat));
    CHECK_STATUS(dlrn_decode(dict, f, N, x_hat), DLRN_ERR_UNSUPPORTED);
    dlrn_encoder_destroy(e);
    dlrn_dictionary_destroy(dict);
}

int main(int argc, char **argv) {
    TEST_BEGIN(argc, argv);
    if (dlrn_context_create(NULL, &ctx) != DLRN_OK) return 1;
    RUN(autoencoder);
    RUN(top_k);
    RUN(jump_relu);
    RUN(what_the_tensors_leave_open_is_an_error);
    RUN(a_saved_file_states_its_class);
    RUN(a_stated_class_is_checked);
    RUN(transcoders_are_saved_and_loaded);
    RUN(what_a_file_cannot_hold_is_not_saved);
    RUN(layouts_are_consistent);
    RUN(a_dictionary_names_its_layout);
    RUN(a_k_out_of_range_is_refused);
    RUN(thresholds_and_top_k_together);
    RUN(weights_are_borrowed_from_memory);
    RUN(an_encoder_allocates_nothing_after_its_first_batches);
    RUN(skip_scales_and_an_input_bias);
    dlrn_context_destroy(ctx);
    return TEST_END();
}
