/* test_ranks.c - one dictionary trained by several ranks, which are threads here (ranks.h), against
   one process. */
#include "dictlearn.h"
#include "tests/test.h"

#include "tests/ranks.h"

/* ---- Creation: each rank has its rows of the one dictionary ---- */

typedef struct created {
    const dlrn_dictionary_desc *desc;
    const char *recipe; /* NULL: dlrn_dictionary_create */
    const dlrn_dictionary *whole;
    int64_t features[RANKS_MAX];
    char error[RANKS_MAX][300];
} created;

/* Whether the rows of this rank are those of the whole, bit for bit. */
static void same_rows(const dlrn_dictionary *part, const dlrn_dictionary *whole, char *error) {
    for (int role = 0; role < DLRN_ROLE_COUNT; role++) {
        if (!part->param[role] != !whole->param[role])
            snprintf(error, 300, "%s is not in both", dlrn_name(DLRN_NAMES_ROLE, role));
        if (!part->param[role]) continue;
        const int64_t n = dlrni_role_size(part, role);
        const int64_t width = dlrni_is_by_feature(role) ? dlrni_role_width(part, role) : 0;
        if (memcmp(part->param[role], whole->param[role] + part->span_at * width,
                   (size_t)n * sizeof(float)) != 0)
            snprintf(error, 300, "%s: %s differs", part->family, dlrn_name(DLRN_NAMES_ROLE, role));
    }
    for (int64_t i = 0; i < part->n_parts; i++)
        same_rows(part->part[i].dict, whole->part[i].dict, error);
}

static void create_body(void *arg, int rank, dlrn_context *ctx) {
    created *c = (created *)arg;
    dlrn_dictionary *dict = NULL;
    dlrn_trainer *trainer = NULL;
    dlrn_status s = DLRN_OK;
    if (c->recipe) {
        dlrn_train_config cfg = dlrn_train_defaults(c->recipe);
        cfg.d_in = c->desc->d_in;
        cfg.features = c->desc->features;
        if (c->desc->layers) cfg.layers = c->desc->layers;
        s = dlrn_trainer_create(ctx, &cfg, NULL, NULL, &trainer);
        if (trainer) dict = trainer->dict;
    } else
        s = dlrn_dictionary_create(ctx, c->desc, &dict);
    if (s != DLRN_OK) snprintf(c->error[rank], 300, "%.290s", dlrn_error(ctx));
    if (dict) {
        c->features[rank] = dict->features;
        same_rows(dict, c->whole, c->error[rank]);
        for (int64_t f = 0; f < dict->features && !dict->n_parts; f++)
            if (dlrni_whole_feature(dict, f) != dict->span_at + f)
                snprintf(c->error[rank], 300, "feature %d has another number", (int)f);
    }
    if (!trainer) dlrn_dictionary_destroy(dict);
    dlrn_trainer_destroy(trainer);
}

/* Creates a dictionary on 1, 2, 3 and 5 ranks, and compares it with that of one process. */
static void check_created(const dlrn_dictionary_desc *desc, const char *recipe) {
    dlrn_context *ctx = test_context(NULL, 1);
    created c = {desc, recipe, NULL, {0}, {{0}}};
    dlrn_dictionary *whole = NULL;
    dlrn_trainer *trainer = NULL;
    if (recipe) {
        dlrn_train_config cfg = dlrn_train_defaults(recipe);
        cfg.d_in = desc->d_in;
        cfg.features = desc->features;
        if (desc->layers) cfg.layers = desc->layers;
        CHECK_OK(ctx, dlrn_trainer_create(ctx, &cfg, NULL, NULL, &trainer));
        whole = trainer->dict;
    } else
        CHECK_OK(ctx, dlrn_dictionary_create(ctx, desc, &whole));
    c.whole = whole;
    for (int ranks = 1; ranks <= 5; ranks += 1 + ranks / 3) {
        ranks_setup setup = {0};
        int64_t features = 0;
        setup.ranks = ranks;
        memset(c.features, 0, sizeof c.features);
        ranks_run(&setup, create_body, &c);
        for (int r = 0; r < ranks; r++) {
            CHECK_MSG(!*c.error[r], "%s, rank %d of %d: %s", desc->family, r, ranks, c.error[r]);
            features += c.features[r];
        }
        CHECK(features == desc->features);
    }
    if (trainer)
        dlrn_trainer_destroy(trainer);
    else
        dlrn_dictionary_destroy(whole);
    dlrn_context_destroy(ctx);
}

TEST(creation) {
    static const char *const names[] = {"AutoEncoder",
                                        "AutoEncoderTopK",
                                        "JumpReluAutoEncoder",
                                        "GatedAutoEncoder",
                                        "GroupMax",
                                        "MatchingPursuit",
                                        "Glu",
                                        "Cosine",
                                        "GatedTopK"};
    dlrn_dictionary_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.d_in = 10;
    desc.seed = 7;
    desc.k = 4;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        desc.family = names[i];
        desc.features = i % 2 ? 300 : 100; /* 7 and 3 groups */
        check_created(&desc, NULL);
    }
    desc.family = "CrossLayerTranscoder";
    desc.features = 3 * 100;
    desc.d_in = 12;
    desc.layers = 3;
    check_created(&desc, NULL);
    check_created(&desc, "clt-jumprelu");
    desc.layers = 0;
    desc.features = 300;
    check_created(&desc, "lc-relu");
    check_created(&desc, "sp-topk");
}

int main(int argc, char **argv) {
    TEST_BEGIN(argc, argv);
    RUN(creation);
    return TEST_END();
}
