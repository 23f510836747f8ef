/* naive.h - a naive step (room naive of dictlearn.h) with the weights and the state of a trainer,
   and back into a dictionary. */
#ifndef DICTLEARN_TESTS_NAIVE_H
#define DICTLEARN_TESTS_NAIVE_H

/* Where number i of a role of a part is in the naive step's matrices, which hold all layers; part
   NULL: the dictionary is plain. */
TEST_UNUSED int64_t naive_index(const dlrni_naive *s, const dlrn_part *part, int role, int64_t i) {
    if (!part) return i;
    const int64_t in = part->dict->d_in, out = part->dict->d_out, f0 = part->feature_at;
    if (role == DLRN_ENCODER) return (f0 + i / in) * s->d_in + part->in_at + i % in;
    if (role == DLRN_DECODER) return (f0 + i / out) * s->d_out + part->out_at + i % out;
    return f0 + i;
}

/* Copies weights: to the naive step (store 0), or rounded to the dictionary. */
TEST_UNUSED void naive_exchange(dlrni_naive *s, dlrn_dictionary *dict, int store) {
    for (int64_t l = -1; l < dict->n_parts; l++) {
        const dlrn_part *part = l < 0 ? NULL : &dict->part[l];
        dlrn_dictionary *of = part ? part->dict : dict;
        for (int role = 0; role < DLRN_ROLE_COUNT; role++)
            for (int64_t i = 0; of->param[role] && i < dlrni_role_size(of, role); i++) {
                double *number = &s->p[role][naive_index(s, part, role, i)];
                if (store)
                    of->param[role][i] = (float)*number;
                else
                    *number = (double)of->param[role][i];
            }
    }
    if (store)
        dict->formula.threshold = s->threshold;
    else
        s->threshold = dict->formula.threshold;
}

/* A naive trainer of n rows with the state of a trainer whose moments are 0. */
TEST_UNUSED dlrni_naive *naive_of(const dlrn_trainer *t, int64_t n) {
    const dlrn_center center = t->dict->formula.center;
    unsigned roles = 0;
    for (int64_t l = -1; l < t->dict->n_parts; l++)
        for (int role = 0; role < DLRN_ROLE_COUNT; role++)
            if ((l < 0 ? t->dict : t->dict->part[l].dict)->param[role]) roles |= 1u << role;
    dlrni_naive *s = dlrni_naive_open(t->ctx, &t->cfg, &t->rules, n, roles);
    CHECK(s != NULL);
    s->parts = t->dict->n_parts ? t->dict->n_parts : 1;
    s->center = center == DLRN_CENTER_OUTPUT_BIAS  ? (int)DLRN_OUTPUT_BIAS
                : center == DLRN_CENTER_INPUT_BIAS ? (int)DLRN_INPUT_BIAS
                                                   : -1;
    for (int64_t c = 0; c < s->d_in; c++) s->scale_in[c] = t->dict->formula.scale_in;
    for (int64_t l = 0; l < t->dict->n_parts; l++)
        for (int64_t c = 0; c < t->dict->part[l].dict->d_in; c++)
            s->scale_in[t->dict->part[l].in_at + c] = t->dict->part[l].dict->formula.scale_in;
    s->scale_out = t->dict->formula.scale_out;
    if (t->has_scales) s->cfg.scale_rows = DLRN_OFF; /* it has them */
    s->step = t->step;
    memcpy(s->silent, t->since_fired, (size_t)s->F * sizeof *s->silent);
    naive_exchange(s, t->dict, 0);
    return s;
}
#endif /* DICTLEARN_TESTS_NAIVE_H */
