/* Trains a dictionary on several processes, over any MPI:

       mpicc -O2 -fopenmp -I. examples/12_mpi.c -o 12_mpi -lm
       mpirun -np 2 ./12_mpi

   Each rank holds its span of the features: weights, moments and work. All ranks see the same rows
   and make the same calls; what is printed and saved is that of one process, but for the order in
   which the reconstruction is summed. */
#include <stdio.h>

#define DICTLEARN_IMPLEMENTATION
#include "dictlearn.h"
#include "mpi.h" /* examples/mpi.h, beside this file */

enum { ROWS = 20000, DIM = 32, FEATURES = 256 };

/* Rows that are the same on every rank: sums of three of 64 directions. Yours come from files. */
static void make_rows(float *x) {
    static float direction[64][DIM];
    uint32_t r = 1;
    for (int i = 0; i < 64 * DIM; i++) {
        r = r * 1664525u + 1013904223u;
        direction[i / DIM][i % DIM] = (float)(r >> 8) / (float)(1 << 24) - 0.5F;
    }
    for (int i = 0; i < ROWS; i++) {
        for (int j = 0; j < DIM; j++) x[i * DIM + j] = 0;
        for (int k = 0; k < 3; k++) {
            r = r * 1664525u + 1013904223u;
            for (int j = 0; j < DIM; j++) x[i * DIM + j] += direction[r >> 26][j];
        }
    }
}

/* Trains on the rows and saves; rank 0 prints. */
static dlrn_status train(dlrn_context *ctx, const float *x, int first) {
    dlrn_source source;
    dlrn_buffer *buffer = NULL;
    dlrn_trainer *trainer = NULL;
    dlrn_train_stats stats = {0};
    dlrn_buffer_config how = dlrn_buffer_defaults();
    dlrn_train_config cfg = dlrn_train_defaults("dl-top_k");
    how.capacity = ROWS;
    how.batch_rows = 512;
    cfg.d_in = DIM;
    cfg.features = FEATURES;
    cfg.k = 3;
    cfg.steps = 200;
    cfg.lr = 3e-3;
    /* a source is opened by each rank alone: if one fails, all must know */
    dlrn_status s =
        dlrn_agree(ctx, dlrn_source_from_array(ctx, x, NULL, ROWS, DIM, 0, 10, &source));
    if (s == DLRN_OK) s = dlrn_buffer_create(ctx, &how, &source, DLRN_OWNED, &buffer);
    if (s == DLRN_OK) s = dlrn_trainer_create(ctx, &cfg, NULL, buffer, &trainer);
    while (s == DLRN_OK && (s = dlrn_trainer_step(trainer, &stats)) == DLRN_OK)
        if (first && stats.step % 50 == 0)
            printf("step %d: loss %.4f\n", (int)stats.step, stats.loss);
    if (s == DLRN_END) s = dlrn_save(dlrn_trainer_describe(trainer).dictionary, "ae.safetensors");
    dlrn_trainer_destroy(trainer);
    dlrn_buffer_destroy(buffer);
    return s;
}

int main(int argc, char **argv) {
    static float x[ROWS * DIM];
    dlrn_context_config cfg = {0};
    dlrn_context *ctx;
    MPI_Init(&argc, &argv);
    if (!mpi_collective(MPI_COMM_WORLD, 60, &cfg.collective)) return 1;
    if (dlrn_context_create(&cfg, &ctx) != DLRN_OK) return 1;
    const int first = cfg.collective.rank == 0;
    make_rows(x);
    const dlrn_status s = train(ctx, x, first);
    /* the same status on all ranks, unless one has died or stalled: then each says so */
    if (s != DLRN_OK && (first || s == DLRN_ERR_CALLBACK))
        fprintf(stderr, "12_mpi: %s\n", dlrn_error(ctx));
    if (s == DLRN_ERR_CALLBACK) MPI_Abort(MPI_COMM_WORLD, 1);
    const dlrn_traffic t = dlrn_context_describe(ctx).traffic;
    if (first) printf("summed over the ranks: %.1f MB\n", (double)t.reduced / 1e6);
    dlrn_context_destroy(ctx);
    mpi_collective_free(&cfg.collective);
    MPI_Finalize();
    return s != DLRN_OK;
}
