/* The program as one of several ranks (build/dictlearn-mpi under mpirun): how ranks begin and end,
   agree on a stop, and share the texts of a model out. Without MPI there is one rank, and all of
   this does nothing.

   Rank 0 alone prints and writes files. The others keep what they would print, in case that they
   fail before the ranks can agree. All ranks need all rows of --data, so each reads its files; sums
   of what they have read are compared. A model's texts are read by every rank, too, and its runs
   are dealt out in turn; the rows are gathered in the order of one process. */

static dlrn_collective ranks; /* of the process; all zero: alone */
static int64_t ranks_own;     /* bytes that this program has passed to it, beside the library */

static int ranks_several(void) {
    return ranks.ranks > 1;
}

/* Whether this rank is the one that prints and writes. */
static int is_first(void) {
    return ranks.rank == 0;
}

#ifdef DICTLEARN_MPI
/* ---- beginning and end */

static int own_errors = -1; /* standard error, where this rank's lines go elsewhere */

/* Prints a line of this rank's own, whatever rank it is. */
static void say_alone(const char *text) {
    char line[700];
    const int n = snprintf(line, sizeof line, "dictlearn: %s\n", text);
    const size_t size = n < (int)sizeof line ? (size_t)n : sizeof line - 1;
    if (write(own_errors >= 0 ? own_errors : 2, line, size) < 0) return;
}

/* mpirun ends all ranks when one has died, by a signal first: what a rank waits for says which. A
   stop by the user ends the same wait within a step or so, as all ranks are told of it. */
static void while_waiting(double seconds, const char *text) {
    static int told;
    char line[600];
    if (told || !stop_asked || seconds < 0.4) return;
    told = 1;
    snprintf(line, sizeof line,
             "%s: told to stop meanwhile; if that rank has died, the last checkpoint is whole",
             text);
    say_alone(line);
}

/* How long a rank waits for another one before it gives up; -1: the user's number is none. */
static double stall_seconds(void) {
    const char *text = getenv("DICTLEARN_STALL_SECONDS");
    char *end = NULL;
    const double value = text ? strtod(text, &end) : 300;
    return !text || (end != text && !*end && value > 0) ? value : -1;
}

/* The threads of a rank, unless the user says: its share of the cores where several ranks of a
   machine may use all of them. mpirun can give each its own, and then they are its own alone. */
static void share_cores(void) {
#ifdef _OPENMP
    MPI_Comm here;
    int count = 1, all = 0, cores = omp_get_num_procs();
    const int online = (int)sysconf(_SC_NPROCESSORS_ONLN);
    MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &here);
    MPI_Comm_size(here, &count);
    MPI_Allreduce(&cores, &all, 1, MPI_INT, MPI_SUM, here);
    MPI_Comm_free(&here);
    if (getenv("OMP_NUM_THREADS") || all <= online) return;
    omp_set_num_threads(online / count > 1 ? online / count : 1);
#endif
}

/* Joins the ranks. 0, or an exit status. */
static int ranks_begin(int *argc, char ***argv) {
    const double stall = stall_seconds();
    if (MPI_Init(argc, argv) != MPI_SUCCESS) return 1;
    if (!mpi_collective(MPI_COMM_WORLD, stall, &ranks)) return 1;
    if (ranks_several()) {
        ((mpi_ranks *)ranks.user)->waiting = while_waiting;
        stop_agreed = 0;
        share_cores();
    }
    if (!is_first()) {
        FILE *kept = tmpfile();
        fflush(stderr);
        own_errors = dup(2);
        if (kept) dup2(fileno(kept), 2);
        if (!freopen("/dev/null", "w", stdout)) return 1;
    }
    if (stall > 0) return 0;
    fprintf(stderr, "dictlearn: DICTLEARN_STALL_SECONDS: expected a number above 0, found %s\n",
            getenv("DICTLEARN_STALL_SECONDS"));
    return 2;
}

/* Prints what this rank has kept. */
static void print_kept(void) {
    char text[4096];
    ssize_t n;
    fflush(stderr);
    if (lseek(2, 0, SEEK_SET) < 0) return; /* no temporary file: it has been printed */
    while ((n = read(2, text, sizeof text)) > 0)
        if (write(own_errors, text, (size_t)n) < 0) return;
}

/* Before there is a context: one exit status for all. Where rank 0 has not failed, the first rank
   that has prints what it had to say. */
static int ranks_agree_status(int status) {
    int all[2], mine[2];
    if (!ranks_several()) return status;
    mine[0] = status ? ranks.ranks - ranks.rank : 0;
    MPI_Allreduce(mine, all, 1, MPI_INT, MPI_MAX, MPI_COMM_WORLD);
    if (!all[0]) return 0;
    mine[1] = status;
    MPI_Bcast(&mine[1], 1, MPI_INT, ranks.ranks - all[0], MPI_COMM_WORLD);
    if (all[0] == mine[0] && !is_first()) print_kept();
    return mine[1];
}

/* Whether all ranks have the same number. */
static int ranks_are_equal(uint64_t value) {
    uint64_t range[2], all[2];
    if (!ranks_several()) return 1;
    range[0] = value, range[1] = ~value;
    MPI_Allreduce(range, all, 2, MPI_UINT64_T, MPI_MAX, MPI_COMM_WORLD);
    return all[0] == ~all[1];
}

/* Ends the process, with one exit status on all ranks. Where a call between the ranks has failed
   MPI cannot be left in order: every rank prints its error, and gives the others a second to print
   theirs before mpirun ends them. */
static int ranks_end(int status) {
    mpi_ranks *m = (mpi_ranks *)ranks.user;
    if (m && m->broken) {
        if (!is_first()) say_alone(m->text);
        fflush(NULL);
        sleep(1);
        _exit(status ? status : 1);
    }
    fflush(NULL);
    if (m) mpi_collective_free(&ranks);
    MPI_Finalize();
    return status;
}
/* Says what rank 0 has sent, and what that was for. */
static void ranks_tell_traffic(dlrn_context *ctx, int quiet) {
    const dlrn_traffic t = dlrn_context_describe(ctx).traffic;
    if (!ranks_several() || !is_first() || quiet) return;
    fprintf(stderr,
            "dictlearn: rank 0 of %d has sent %lld bytes: of the library %lld to be summed, %lld "
            "gathered, %lld broadcast, of the program %lld\n",
            ranks.ranks, (long long)((mpi_ranks *)ranks.user)->sent, (long long)t.reduced,
            (long long)t.gathered, (long long)t.broadcast, (long long)ranks_own);
}
#else
static void ranks_tell_traffic(dlrn_context *ctx, int quiet) {
    (void)ctx, (void)quiet;
}
static int ranks_begin(int *argc, char ***argv) {
    (void)argc, (void)argv;
    return 0;
}
static int ranks_agree_status(int status) {
    return status;
}
static int ranks_are_equal(uint64_t value) {
    (void)value;
    return 1;
}
static int ranks_end(int status) {
    return status;
}
#endif

/* ---- stops */

/* Ranks tell each other of stops at the same places, and hear there what was told at the place
   before, so that no rank waits for it: they stop one place later. */
static struct stop_call {
    int64_t number;
    void *request; /* NULL: none has begun */
} stop_call;

/* Ends the call that has begun. */
static dlrn_status ranks_hear_stop(dlrn_context *ctx) {
    void *request = stop_call.request;
    stop_call.request = NULL;
    const dlrn_status s = request ? ranks.wait(ranks.user, ctx, request) : DLRN_OK;
    if (s == DLRN_OK && request) stop_agreed = (int)stop_call.number;
    return s;
}

static dlrn_status ranks_tell_stop(dlrn_context *ctx) {
    if (!ranks_several() || stop_agreed) return DLRN_OK;
    const dlrn_status s = ranks_hear_stop(ctx);
    if (s != DLRN_OK || stop_agreed) return s;
    stop_call.number = stop_held ? 0 : stop_asked;
    ranks_own += (int64_t)sizeof stop_call.number;
    return ranks.allreduce(ranks.user, ctx, DLRN_REDUCE_MAX, DLRN_I64, &stop_call.number, 1,
                           &stop_call.request);
}

/* ---- what every rank has, in one place */

/* all: the bytes [ranks] of each rank, one after the other. */
static dlrn_status ranks_gather(dlrn_context *ctx, const void *mine, const int64_t *bytes,
                                void *all) {
    ranks_own += bytes[ranks.rank];
    return ranks.allgather(ranks.user, ctx, mine, bytes, all);
}

/* A sum by which other bytes are noticed. */
static uint64_t ranks_sum_of(const void *data, size_t bytes) {
    const unsigned char *p = (const unsigned char *)data;
    uint64_t sum = bytes, word;
    for (; bytes >= sizeof word; bytes -= sizeof word, p += sizeof word) {
        memcpy(&word, p, sizeof word);
        sum = (sum ^ word) * 0x9E3779B97F4A7C15u;
        sum ^= sum >> 29;
    }
    for (; bytes; bytes--) sum = (sum ^ *p++) * 0x9E3779B97F4A7C15u;
    return sum;
}

/* Refuses ranks that do not have the same bytes, such as files of the same name on two machines. */
static dlrn_status ranks_compare(dlrn_context *ctx, const void *data, size_t bytes,
                                 const char *what) {
    const int64_t sum = (int64_t)(ranks_sum_of(data, bytes) >> 1);
    int64_t range[2];
    if (!ranks_several()) return DLRN_OK;
    range[0] = sum, range[1] = -sum;
    ranks_own += (int64_t)sizeof range;
    dlrn_status s = ranks.allreduce(ranks.user, ctx, DLRN_REDUCE_MAX, DLRN_I64, range, 2, NULL);
    if (s != DLRN_OK || range[0] == -range[1]) return s;
    return dlrn_fail(ctx, DLRN_ERR_VALUE, "%s: expected the same on all ranks, found other bytes",
                     what);
}

/* The status of rank 0's work, and a number that came out of it, on all ranks. */
static dlrn_status ranks_first_of(dlrn_context *ctx, dlrn_status s, int *number) {
    s = dlrn_agree(ctx, s);
    if (s != DLRN_OK || !ranks_several()) return s;
    ranks_own += is_first() ? (int64_t)sizeof *number : 0;
    return ranks.broadcast(ranks.user, ctx, 0, number, sizeof *number);
}

/* ---- texts dealt out to the ranks */

/* A run of a shared text. */
typedef struct shared_run {
    uint64_t before, first; /* positions: before the run was made, and of its first row */
    int64_t rows;
} shared_run;

/* What a rank tells of a round. */
typedef struct shared_part {
    int64_t runs, rows, status; /* runs that were made; rows of its own; why the round ended */
    uint64_t sum;               /* of the positions of its runs */
} shared_part;

/* A source around a text source: the ranks run its next runs at once, one each, and gather their
   rows. All ranks hand out the same rows, in the order of the text. */
typedef struct shared_text {
    dlrn_context *ctx;
    dlrn_source inner; /* owned */
    int64_t *left_out; /* rows that do not count are counted here */
    shared_run *run;   /* [ranks + 1] of this round; the last `before` is the position after it */
    shared_part *part; /* [ranks]     */
    int64_t *bytes;    /* [ranks]     */
    int64_t runs, at;  /* run `at` is handed out ... */
    int64_t given;     /* ... up to this row         */
    int64_t row;       /* that one's number among all of the round */
    float *x, *y;      /* rows of the round */
    unsigned char *keep;
    int64_t row_cap;
    dlrn_status failed;
    char error[1024];
} shared_text;

/* Makes the round's runs, of which this rank runs one; its rows: *mine. */
static dlrn_status shared_make(shared_text *t, lm_text_rows *mine) {
    dlrn_status s = DLRN_OK;
    memset(mine, 0, sizeof *mine);
    t->runs = 0;
    for (int r = 0; r < ranks.ranks && s == DLRN_OK; r++) {
        lm_text_rows rows;
        shared_run *run = &t->run[r];
        s = t->inner.position(t->inner.user, &run->before);
        if (s == DLRN_OK) s = lm_text_next(&t->inner, r == ranks.rank, &rows);
        if (s != DLRN_OK) return s;
        if (r == ranks.rank) *mine = rows;
        run->first = rows.position;
        run->rows = rows.rows;
        t->runs = r + 1;
    }
    return t->inner.position(t->inner.user, &t->run[t->runs].before);
}

/* Tells the others how the round went here: *s, which becomes an error where the ranks have other
   texts. Returns the first error of all ranks, or what all returned. */
static dlrn_status shared_settle(shared_text *t, dlrn_status *s, int64_t rows) {
    shared_part mine = {t->runs, rows, *s, ranks_sum_of(t->run, (size_t)t->runs * sizeof *t->run)};
    for (int r = 0; r < ranks.ranks; r++) t->bytes[r] = (int64_t)sizeof mine;
    dlrn_status all = ranks_gather(t->ctx, &mine, t->bytes, t->part);
    if (all != DLRN_OK) return all;
    for (int r = 0; r < ranks.ranks; r++) {
        const shared_part *p = &t->part[r];
        if (p->runs < t->runs) t->runs = p->runs;
        if (all == DLRN_OK && p->status != DLRN_END) all = (dlrn_status)p->status;
    }
    for (int r = 1; r < ranks.ranks && all == DLRN_OK; r++) {
        if (t->part[r].status == t->part->status && t->part[r].sum == t->part->sum) continue;
        t->runs = 0;
        return *s = dlrn_fail(t->ctx, DLRN_ERR_VALUE,
                              "text: expected the same on all ranks, found another one on rank %d",
                              r);
    }
    return all == DLRN_OK ? *s : all;
}

/* Room for the rows of a round. */
static dlrn_status shared_room(shared_text *t, int64_t rows) {
    if (rows <= t->row_cap) return DLRN_OK;
    dlrn_free(t->ctx, t->x);
    dlrn_free(t->ctx, t->y);
    dlrn_free(t->ctx, t->keep);
    t->x = (float *)dlrn_alloc(t->ctx, rows * t->inner.d_in, sizeof *t->x);
    t->y = t->inner.d_out ? (float *)dlrn_alloc(t->ctx, rows * t->inner.d_out, sizeof *t->y) : NULL;
    t->keep = (unsigned char *)dlrn_alloc(t->ctx, rows, 1);
    const int failed = !t->x || !t->keep || (t->inner.d_out && !t->y);
    const dlrn_status s = dlrn_agree(t->ctx, failed ? DLRN_ERR_MEMORY : DLRN_OK);
    t->row_cap = s == DLRN_OK ? rows : 0; /* the same on all ranks */
    return s;
}

/* Gathers what each run has of something, `each` bytes a row. */
static dlrn_status shared_gather(shared_text *t, const void *mine, int64_t each, void *all) {
    for (int r = 0; r < ranks.ranks; r++) t->bytes[r] = r < t->runs ? t->part[r].rows * each : 0;
    return ranks_gather(t->ctx, mine, t->bytes, all);
}

/* The next runs, one of each rank. DLRN_OK also if fewer were made: t->failed tells why. */
static dlrn_status shared_round(shared_text *t) {
    lm_text_rows mine;
    int64_t total = 0;
    t->runs = t->at = t->given = t->row = 0;
    dlrn_status s = ranks_tell_stop(t->ctx);
    if (s != DLRN_OK) return s;
    if (stopping(NULL)) return DLRN_STOPPED;
    s = shared_make(t, &mine);
    t->failed = shared_settle(t, &s, mine.rows);
    if (t->failed == DLRN_ERR_CALLBACK) return t->failed;
    if (t->failed != DLRN_OK && t->failed != DLRN_END) {
        snprintf(t->error, sizeof t->error, "%s", dlrn_error(t->ctx));
        const int own = s != DLRN_OK && s != DLRN_END;
        t->failed = dlrn_agree(t->ctx, own ? dlrn_fail(t->ctx, s, "%s", t->error) : DLRN_OK);
        snprintf(t->error, sizeof t->error, "%s", dlrn_error(t->ctx));
    }
    for (int r = 0; r < t->runs; r++) total += t->part[r].rows;
    if (!t->runs) return t->failed;
    s = shared_room(t, total);
    if (s == DLRN_OK) s = shared_gather(t, mine.x, t->inner.d_in * (int64_t)sizeof(float), t->x);
    if (s == DLRN_OK && t->y)
        s = shared_gather(t, mine.y, t->inner.d_out * (int64_t)sizeof(float), t->y);
    return s == DLRN_OK ? shared_gather(t, mine.keep, 1, t->keep) : s;
}

/* How many rows from the next one on count, up to `max`; those before them that do not are passed.
 */
static int64_t shared_count(shared_text *t, int64_t max) {
    const int64_t left = t->run[t->at].rows - t->given;
    int64_t n = 0, passed = 0;
    while (passed < left && !t->keep[t->row + passed]) passed++;
    while (n < max && passed + n < left && t->keep[t->row + passed + n]) n++;
    *t->left_out += passed;
    t->given += passed;
    t->row += passed;
    return n;
}

static dlrn_status shared_read(void *user, int64_t max_rows, float *x, float *y, int64_t *n) {
    shared_text *t = (shared_text *)user;
    const int64_t d = t->inner.d_in, d_out = t->inner.d_out;
    *n = 0;
    while (*n < max_rows) {
        if (t->at == t->runs) {
            const dlrn_status s = t->failed != DLRN_OK ? t->failed : shared_round(t);
            if (s == DLRN_END || (s != DLRN_OK && *n)) break;
            if (s != DLRN_OK) return s;
        }
        const int64_t k = shared_count(t, max_rows - *n);
        memcpy(x + *n * d, t->x + t->row * d, (size_t)(k * d) * sizeof *x);
        if (y && t->y)
            memcpy(y + *n * d_out, t->y + t->row * d_out, (size_t)(k * d_out) * sizeof *y);
        t->given += k;
        t->row += k;
        *n += k;
        if (t->given < t->run[t->at].rows) continue;
        t->at++;
        t->given = 0;
    }
    return *n || max_rows == 0 ? DLRN_OK : DLRN_END;
}

/* That of one process: the run that holds the next row, and the row within it. */
static dlrn_status shared_position(void *user, uint64_t *position) {
    shared_text *t = (shared_text *)user;
    if (!t->runs) return t->inner.position(t->inner.user, position);
    *position = t->given ? t->run[t->at].first + (uint64_t)t->given : t->run[t->at].before;
    return DLRN_OK;
}

static dlrn_status shared_seek(void *user, uint64_t position) {
    shared_text *t = (shared_text *)user;
    t->runs = t->at = t->given = 0;
    t->failed = DLRN_OK;
    return dlrn_agree(t->ctx, t->inner.seek(t->inner.user, position));
}

static const char *shared_error(void *user) {
    shared_text *t = (shared_text *)user;
    return *t->error ? t->error : dlrn_error(t->ctx);
}

static void shared_destroy(void *user) {
    shared_text *t = (shared_text *)user;
    dlrn_context *ctx = t->ctx;
    dlrn_source_destroy(&t->inner);
    dlrn_free(ctx, t->run);
    dlrn_free(ctx, t->part);
    dlrn_free(ctx, t->bytes);
    dlrn_free(ctx, t->x);
    dlrn_free(ctx, t->y);
    dlrn_free(ctx, t->keep);
    dlrn_free(ctx, t);
}

/* Makes a text source one that the ranks share. left_out: counts rows that do not count. */
static dlrn_status shared_open(dlrn_context *ctx, int64_t *left_out, dlrn_source *source) {
    shared_text *t = (shared_text *)dlrn_alloc(ctx, 1, sizeof *t);
    if (!t) return DLRN_ERR_MEMORY;
    memset(t, 0, sizeof *t);
    t->ctx = ctx;
    t->inner = *source;
    t->left_out = left_out;
    t->run = (shared_run *)dlrn_alloc(ctx, ranks.ranks + 1, sizeof *t->run);
    t->part = (shared_part *)dlrn_alloc(ctx, ranks.ranks, sizeof *t->part);
    t->bytes = (int64_t *)dlrn_alloc(ctx, ranks.ranks, sizeof *t->bytes);
    source->user = t;
    source->collective = 1;
    source->read = shared_read;
    source->position = shared_position;
    source->seek = shared_seek;
    source->error = shared_error;
    source->destroy = shared_destroy;
    return t->run && t->part && t->bytes ? DLRN_OK : DLRN_ERR_MEMORY;
}

/* This rank's documents, whose losses it computes; borrowed. */
static lm_documents ranks_share_documents(const lm_documents *texts) {
    lm_documents own = *texts;
    if (!ranks_several()) return own;
    const int64_t from = texts->count * ranks.rank / ranks.ranks;
    own.count = texts->count * (ranks.rank + 1) / ranks.ranks - from;
    own.start += from;
    return own;
}

/* Rows of a batch, copied as the model reaches the tap. */
typedef struct kept_rows {
    float *x, *y; /* [n][d], [n][d_out]; y NULL: no target */
    int64_t d, d_out, n;
} kept_rows;

static dlrn_status keep_rows(void *user, int tap, const float *x, float *y, int64_t n) {
    kept_rows *k = (kept_rows *)user;
    (void)tap;
    memcpy(k->x, x, (size_t)(n * k->d) * sizeof *x);
    if (k->y) memcpy(k->y, y, (size_t)(n * k->d_out) * sizeof *y);
    return DLRN_OK;
}

static dlrn_status kept_room(dlrn_context *ctx, kept_rows *k) {
    k->x = (float *)dlrn_alloc(ctx, k->n ? k->n * k->d : 1, sizeof *k->x);
    k->y = k->d_out ? (float *)dlrn_alloc(ctx, k->n ? k->n * k->d_out : 1, sizeof *k->y) : NULL;
    return k->x && (k->y || !k->d_out) ? DLRN_OK : DLRN_ERR_MEMORY;
}

static void kept_free(dlrn_context *ctx, kept_rows *k) {
    dlrn_free(ctx, k->x);
    dlrn_free(ctx, k->y);
}

/* Runs batches [count <= ranks], one on each rank, and gathers the rows of all of them in order.
   Free *all also after an error. */
static dlrn_status ranks_run_batches(dlrn_context *ctx, lm_model *m, const lm_tap *tap,
                                     const lm_batch *batch, int count, kept_rows *all) {
    int64_t *bytes = (int64_t *)dlrn_alloc(ctx, ranks.ranks, sizeof *bytes);
    kept_rows own;
    memset(all, 0, sizeof *all);
    all->d = lm_site_width(m, tap->x);
    all->d_out = lm_same_site(&tap->x, &tap->y) ? 0 : lm_site_width(m, tap->y);
    own = *all;
    for (int r = 0; bytes && r < ranks.ranks; r++) {
        const int64_t n = r < count ? batch[r].start[batch[r].sequences] - batch[r].start[0] : 0;
        bytes[r] = n * (int64_t)sizeof(float);
        all->n += n;
        if (r == ranks.rank) own.n = n;
    }
    dlrn_status s = bytes ? kept_room(ctx, all) : DLRN_ERR_MEMORY;
    if (s == DLRN_OK) s = kept_room(ctx, &own);
    if (s == DLRN_OK && own.n) s = lm_run(m, &batch[ranks.rank], tap, 1, keep_rows, &own, 0);
    s = dlrn_agree(ctx, s);
    for (int r = 0; s == DLRN_OK && r < ranks.ranks; r++) bytes[r] *= all->d;
    if (s == DLRN_OK) s = ranks_gather(ctx, own.x, bytes, all->x);
    for (int r = 0; s == DLRN_OK && r < ranks.ranks; r++) bytes[r] = bytes[r] / all->d * all->d_out;
    if (s == DLRN_OK && all->y) s = ranks_gather(ctx, own.y, bytes, all->y);
    kept_free(ctx, &own);
    dlrn_free(ctx, bytes);
    return s;
}
