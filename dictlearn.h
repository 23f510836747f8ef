/* dictlearn.h - v0.1.0 - sparse autoencoders (dictionary learning) in one C file - MIT licence, at the end

   Do this in ONE .c or .cpp file, and a plain #include everywhere else:

       #define DICTLEARN_IMPLEMENTATION
       #include "dictlearn.h"

   then `cc app.c -lm`. Nothing else is needed; -fopenmp adds threads.
*/
// >>manual
/* MANUAL: written at the end, from what stands below. */

#ifndef DICTLEARN_H
#define DICTLEARN_H

/* ------------------------------------------------------------------------------------------ */
// >>config
/* Define these before the #include. "Everywhere" means: the same in every file that includes the header. */

#include <stddef.h>
#include <stdint.h>

#define DLRN_VERSION_STRING "0.1.0"
#define DLRN_VERSION 100 /* major * 10000 + minor * 100 + patch */

#ifndef DLRN_API
#ifdef DICTLEARN_STATIC
#if defined(__GNUC__)
#define DLRN_API __attribute__((unused)) static
#else
#define DLRN_API static
#endif
#else
#define DLRN_API extern
#endif
#endif

#if defined(__GNUC__) || defined(__clang__)
#define DLRN_CHECK __attribute__((warn_unused_result))
#else
#define DLRN_CHECK
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* ------------------------------------------------------------------------------------------ */
// >>types

/* Every function that can fail returns one of these; the text with file, tensor, expected and found is
   dlrn_error(ctx). */
#define DLRN_STATUS_LIST(X)                                                                                            \
    X(DLRN_OK, "done")                                                                                                 \
    X(DLRN_END, "the source has no more rows")                                                                         \
    X(DLRN_STOPPED, "a callback asked to stop")                                                                        \
    X(DLRN_ERR_ARGUMENT, "an argument is out of range")                                                                \
    X(DLRN_ERR_MEMORY, "out of memory")                                                                                \
    X(DLRN_ERR_IO, "a file cannot be opened, read or written")                                                         \
    X(DLRN_ERR_FORMAT, "a file is malformed")                                                                          \
    X(DLRN_ERR_UNSUPPORTED, "a file is well formed but of a kind that is not supported")                               \
    X(DLRN_ERR_SHAPE, "shapes do not agree")                                                                           \
    X(DLRN_ERR_VALUE, "a number is not finite")                                                                        \
    X(DLRN_ERR_CALLBACK, "a callback failed")

typedef enum dlrn_status {
#define DLRN_STATUS_ENUM(name, text) name,
    DLRN_STATUS_LIST(DLRN_STATUS_ENUM)
#undef DLRN_STATUS_ENUM
        DLRN_STATUS_COUNT
} dlrn_status;

/* Element types on disk and in the buffer: X(name, name in safetensors, bytes). In memory everything is f32. */
#define DLRN_DTYPE_LIST(X)                                                                                             \
    X(DLRN_F32, "F32", 4)                                                                                              \
    X(DLRN_F16, "F16", 2)                                                                                              \
    X(DLRN_BF16, "BF16", 2)                                                                                            \
    X(DLRN_F64, "F64", 8)                                                                                              \
    X(DLRN_I64, "I64", 8)                                                                                              \
    X(DLRN_I32, "I32", 4)                                                                                              \
    X(DLRN_I16, "I16", 2)                                                                                              \
    X(DLRN_I8, "I8", 1)                                                                                                \
    X(DLRN_U64, "U64", 8)                                                                                              \
    X(DLRN_U32, "U32", 4)                                                                                              \
    X(DLRN_U16, "U16", 2)                                                                                              \
    X(DLRN_U8, "U8", 1)                                                                                                \
    X(DLRN_BOOL, "BOOL", 1)

typedef enum dlrn_dtype {
#define DLRN_DTYPE_ENUM(name, text, bytes) name,
    DLRN_DTYPE_LIST(DLRN_DTYPE_ENUM)
#undef DLRN_DTYPE_ENUM
        DLRN_DTYPE_COUNT
} dlrn_dtype;

/* A context carries what a process shares: allocator, threads, kernels, the text of the last error. Calls on
   one context (and on the objects made with it) must not overlap; any number of contexts may run at once. */
typedef struct dlrn_context dlrn_context;

/* Runs body(arg, task, worker) for every task in [0, n_tasks), in any order, on any threads;
   0 <= worker < threads, and no two bodies with the same worker overlap. */
typedef void (*dlrn_parallel_body)(void *arg, int64_t task, int worker);

typedef struct dlrn_context_config {
    int threads;         /* 0: all cores that OpenMP sees; without OpenMP and parallel_for: 1         */
    const char *kernels; /* "auto" | "scalar" | "avx2" | "avx512" | "neon"; DICTLEARN_KERNELS in the
                            environment wins over "auto"                                              */
    void *(*malloc)(size_t size, void *user);           /* all three or none; none: the C library's     */
    void *(*realloc)(void *p, size_t size, void *user); /* (DICTLEARN_MALLOC/REALLOC/FREE if defined)   */
    void (*free)(void *p, void *user);
    void (*log)(void *user, int level, const char *message); /* level 0 note, 1 warning; NULL: silent   */
    void (*parallel_for)(void *user, int64_t n_tasks, dlrn_parallel_body body, void *arg); /* NULL: OpenMP */
    void *user;                                              /* handed to the callbacks above           */
} dlrn_context_config;

/* A view of a matrix of f32: element (i, j) is data[i * stride + j]. Borrowed memory, never freed. */
typedef struct dlrn_tensor {
    float *data;    /* [rows][cols], rows `stride` floats apart */
    int64_t rows, cols, stride;
} dlrn_tensor;

/* Feature activations, compressed by row (CSR): row i holds features col[row_ptr[i] .. row_ptr[i+1]-1],
   ascending, with their values. Zero-initialise, pass to any number of calls, free with dlrn_sparse_free. */
typedef struct dlrn_sparse {
    int64_t rows, cols;       /* n, F                                        */
    int64_t *row_ptr;         /* [rows + 1], owned                           */
    int32_t *col;             /* [row_ptr[rows]] feature index, owned        */
    float *val;               /* [row_ptr[rows]] activation, owned           */
    int64_t row_cap, nnz_cap; /* allocated; private                          */
    dlrn_context *ctx;        /* who allocated; private                      */
} dlrn_sparse;

/* ------------------------------------------------------------------------------------------ */
// >>api-easy

/* Defaults, to be edited before use. 0 never means "default" in a training configuration. */
DLRN_API dlrn_context_config dlrn_context_defaults(void);

/* cfg may be NULL (defaults), is copied. Fails without a context to ask: out of memory, or an unknown or unavailable
   kernel set. */
DLRN_API DLRN_CHECK dlrn_status dlrn_context_create(const dlrn_context_config *cfg, dlrn_context **out);
DLRN_API void dlrn_context_destroy(dlrn_context *ctx); /* NULL is fine; destroy its objects first */

/* The last error's text, "" if none; valid until the next failing call on this context. NULL context: a fixed text. */
DLRN_API const char *dlrn_error(const dlrn_context *ctx);
DLRN_API const char *dlrn_status_name(dlrn_status s); /* "DLRN_ERR_SHAPE" */
DLRN_API const char *dlrn_status_text(dlrn_status s); /* "shapes do not agree" */

/* What was built and what runs: "dictlearn 0.1.0, kernels avx512 of scalar avx2 avx512, 2 threads (OpenMP)". */
DLRN_API const char *dlrn_build_info(dlrn_context *ctx);
DLRN_API const char *dlrn_kernels(const dlrn_context *ctx); /* name of the kernel set in force */
DLRN_API const char *dlrn_kernels_available(int index);     /* 0, 1, ... until NULL: what this CPU can run */
DLRN_API int dlrn_threads(const dlrn_context *ctx);

/* A dictionary: x [n][activation_dim] -> f [n][dict_size] -> x_hat [n][activation_dim].
   The weights may be read and, between calls, written; after writing call dlrn_dictionary_changed(). */
typedef struct dlrn_dictionary dlrn_dictionary;
typedef struct dlrn_family dlrn_family; /* one architecture: its name, forward and backward */

struct dlrn_dictionary {
    dlrn_context *ctx;         /* borrowed                                               */
    const dlrn_family *family; /* which architecture                                     */
    int64_t activation_dim;    /* d                                                      */
    int64_t dict_size;         /* F                                                      */
    float *encoder_weight;     /* [F][d] one row a feature; NULL for an identity         */
    float *encoder_bias;       /* [F]                                                    */
    float *decoder_weight;     /* [F][d] one atom a row (torch's decoder.weight is [d][F]) */
    float *bias;               /* [d] subtracted before encoding, added after decoding   */
};

/* A dictionary from a file (.pt, .safetensors, .npz) or a folder (ae.pt with config.json; trainer_0/; ...), detected
   by content. Owned by the caller. */
DLRN_API DLRN_CHECK dlrn_status dlrn_load(dlrn_context *ctx, const char *path, dlrn_dictionary **out);

/* Writes a dictionary; the format follows path's suffix: .pt (the reference's AutoEncoder.from_pretrained reads it),
   .safetensors, .npz. Atomic: the old file stays until the new one is whole. */
DLRN_API DLRN_CHECK dlrn_status dlrn_save(const dlrn_dictionary *dict, const char *path);

/* A new AutoEncoder with PyTorch's initial distribution: encoder weight and bias U(-1/sqrt(d), 1/sqrt(d)), atoms
   normal and of unit norm, bias 0. Same seed, same bits. */
DLRN_API DLRN_CHECK dlrn_status dlrn_autoencoder_create(dlrn_context *ctx, int64_t activation_dim, int64_t dict_size,
                                                        uint64_t seed, dlrn_dictionary **out);
/* f = x, x_hat = f: the baseline. */
DLRN_API DLRN_CHECK dlrn_status dlrn_identity_create(dlrn_context *ctx, int64_t activation_dim, dlrn_dictionary **out);
DLRN_API DLRN_CHECK dlrn_status dlrn_dictionary_copy(const dlrn_dictionary *dict, dlrn_dictionary **out);
DLRN_API void dlrn_dictionary_destroy(dlrn_dictionary *dict); /* NULL is fine */
DLRN_API void dlrn_dictionary_changed(dlrn_dictionary *dict); /* drops what was derived from the weights */
DLRN_API const char *dlrn_dictionary_family(const dlrn_dictionary *dict); /* "AutoEncoder", "IdentityDict" */

/* f = ReLU(W_e (x - b) + b_e).  x [n][d] borrowed, f [n][F] written. */
DLRN_API DLRN_CHECK dlrn_status dlrn_encode(const dlrn_dictionary *dict, const float *x, int64_t n, float *f);
/* The same, only the non-zero features, as CSR. */
DLRN_API DLRN_CHECK dlrn_status dlrn_encode_sparse(const dlrn_dictionary *dict, const float *x, int64_t n,
                                                   dlrn_sparse *codes);
/* x_hat = W_d f + b.  f [n][F] borrowed, x_hat [n][d] written. */
DLRN_API DLRN_CHECK dlrn_status dlrn_decode(const dlrn_dictionary *dict, const float *f, int64_t n, float *x_hat);
DLRN_API DLRN_CHECK dlrn_status dlrn_decode_sparse(const dlrn_dictionary *dict, const dlrn_sparse *codes, float *x_hat);
/* Reconstruction, and features if codes is not NULL. */
DLRN_API DLRN_CHECK dlrn_status dlrn_forward(const dlrn_dictionary *dict, const float *x, int64_t n, float *x_hat,
                                             dlrn_sparse *codes);
/* Ghost mode of the reference: x_ghost = W_d (exp(f_pre) * mask), no bias; codes (or NULL) are the ordinary features.
   mask [F]: non-zero where dead. Overflow: row i comes out divided by exp(shift[i]), shift[i] = max(0, largest masked
   f_pre of the row), written to shift [n]. */
DLRN_API DLRN_CHECK dlrn_status dlrn_forward_ghost(const dlrn_dictionary *dict, const float *x, int64_t n,
                                                   const unsigned char *mask, float *x_ghost, float *shift,
                                                   dlrn_sparse *codes);
DLRN_API void dlrn_sparse_free(dlrn_sparse *codes); /* NULL is fine; leaves it zeroed */

#ifndef DICTLEARN_NO_TRAINING
/* ------------------------------------------------------------------------------------------ */
// >>api-buffer

/* Where rows come from. All callbacks are trusted; they run on the calling thread.
   read: up to max_rows consecutive rows of x [.][d] (and, if has_target, y [.][d]) are written, *n says how many;
   DLRN_END with *n == 0 when there is nothing left, DLRN_STOPPED or DLRN_ERR_CALLBACK to give up.
   position / seek: an opaque number that leads back to the next row to be read (for resuming); either both or none.
   destroy: called once by whoever owns the source; may be NULL. */
typedef struct dlrn_source {
    int64_t activation_dim;
    int has_target; /* 1: y is another row than x (in_to_out, an MLP stretcher) */
    dlrn_status (*read)(void *user, int64_t max_rows, float *x, float *y, int64_t *n);
    dlrn_status (*position)(void *user, uint64_t *position);
    dlrn_status (*seek)(void *user, uint64_t position);
    const char *(*error)(void *user); /* text for a failed read; may be NULL */
    void (*destroy)(void *user);
    void *user;
} dlrn_source;

/* Rows of an array in memory, borrowed. y may be NULL. epochs: times through it; 0: without end. */
DLRN_API DLRN_CHECK dlrn_status dlrn_source_from_array(dlrn_context *ctx, const float *x, const float *y, int64_t rows,
                                                       int64_t activation_dim, int64_t epochs, dlrn_source *out);
/* Rows of .npy files (f16, f32, f64; C or Fortran order), memory-mapped where the platform can. target may be NULL. */
DLRN_API DLRN_CHECK dlrn_status dlrn_source_from_npy(dlrn_context *ctx, const char *path, const char *target,
                                                     int64_t epochs, dlrn_source *out);
DLRN_API void dlrn_source_destroy(dlrn_source *source); /* calls its destroy, zeroes it */

/* The activation buffer: holds up to `capacity` rows, is refilled from the source when fewer than half are unread, and
   hands out rows drawn uniformly without replacement, O(1) a row. At the end of the source it drains to the last row. */
typedef struct dlrn_buffer_config {
    int64_t n_ctxs;         /* capacity = n_ctxs * ctx_len rows                                  30000 */
    int64_t ctx_len;        /* tokens of a context                                                 128 */
    int64_t in_batch_size;  /* contexts asked of the source at once: in_batch_size * ctx_len rows  512 */
    int64_t out_batch_size; /* rows of a batch                                                    8192 */
    int shuffle;            /* 0: rows in the source's order                                         1 */
    dlrn_dtype store;       /* DLRN_F32, DLRN_F16 or DLRN_BF16                                     F32 */
    uint64_t seed;          /* of the drawing                                                        0 */
} dlrn_buffer_config;

typedef struct dlrn_buffer dlrn_buffer;
DLRN_API dlrn_buffer_config dlrn_buffer_defaults(void);
/* Bytes that a buffer will take for rows of this width: say it before taking it. */
DLRN_API DLRN_CHECK dlrn_status dlrn_buffer_bytes(dlrn_context *ctx, const dlrn_buffer_config *cfg,
                                                  int64_t activation_dim, int has_target, uint64_t *bytes);
/* The source's struct is copied; with owns_source the buffer destroys it. Memory grows as rows come, never beyond. */
DLRN_API DLRN_CHECK dlrn_status dlrn_buffer_create(dlrn_context *ctx, const dlrn_buffer_config *cfg,
                                                   const dlrn_source *source, int owns_source, dlrn_buffer **out);
DLRN_API void dlrn_buffer_destroy(dlrn_buffer *buffer); /* NULL is fine */
/* Next batch: *n rows of x (and y; y == x without a target), borrowed until the next call on this buffer. *n is
   out_batch_size except for the last batch. DLRN_END when drained. */
DLRN_API DLRN_CHECK dlrn_status dlrn_buffer_next(dlrn_buffer *buffer, const float **x, const float **y, int64_t *n);
/* Up to n rows drawn from those held, without consuming them (resampling, evaluation). Copies into x, y (y may be
   NULL). `start` walks through the held rows: pass 0 first, then the sum of what came; *got == 0 at the end. */
DLRN_API DLRN_CHECK dlrn_status dlrn_buffer_peek(dlrn_buffer *buffer, int64_t start, int64_t n, float *x, float *y,
                                                 int64_t *got);
DLRN_API int64_t dlrn_buffer_dim(const dlrn_buffer *buffer);
DLRN_API int dlrn_buffer_has_target(const dlrn_buffer *buffer);
DLRN_API int64_t dlrn_buffer_unread(const dlrn_buffer *buffer);    /* rows held and not yet handed out */
DLRN_API int64_t dlrn_buffer_rows_read(const dlrn_buffer *buffer); /* rows taken from the source so far */

/* ------------------------------------------------------------------------------------------ */
// >>api-train

typedef enum dlrn_loss {
    DLRN_LOSS_NORM,   /* mean_i ||y_i - x_hat_i||      (the reference's "MSE"; its published penalties are for this) */
    DLRN_LOSS_SQUARED /* mean_i ||y_i - x_hat_i||^2 */
} dlrn_loss;

typedef enum dlrn_sparsity {
    DLRN_SPARSITY_L1,     /* mean_i sum_j f_ij */
    DLRN_SPARSITY_ENTROPY /* mean_i -sum_j q_ij log(q_ij + 1e-8), q_i = f_i / (sum f_i + 1e-8) */
} dlrn_sparsity;

typedef struct dlrn_train_config {
    int64_t activation_dim;   /* d; dlrn_train() takes it from the buffer                                  512 */
    int64_t dict_size;        /* F                                                                    16 * 512 */
    double lr;                /* Adam's rate                                                              3e-4 */
    double sparsity_penalty;  /*                                                                          1e-3 */
    dlrn_loss loss;           /*                                                                          NORM */
    dlrn_sparsity sparsity;   /*                                                                            L1 */
    double beta1, beta2, eps; /* Adam                                                         0.9, 0.999, 1e-8 */
    int64_t steps;            /* of a whole run; -1: until the data ends                                    -1 */
    int64_t warmup_steps;     /* rate n / warmup_steps at step n; again after each resampling; 0: none    1000 */
    int64_t resample_steps;   /* every so many steps revive dead features; -1: never                        -1 */
    int64_t resample_rows;    /* rows whose loss is measured for a resampling                           819200 */
    int64_t ghost_threshold;  /* ghost gradients for features silent for more steps than this; -1: never     -1 */
    int64_t log_steps;        /* -1: never                                                                1000 */
    int64_t save_steps;       /* -1: never                                                                  -1 */
    uint64_t seed;            /* of the weights and of resampling                                            0 */
    int compat;               /* 1: the reference's code of March 2024, number for number (see manual)       0 */
} dlrn_train_config;

/* What a step saw. The losses are those of the step's own forward pass, before its update. */
typedef struct dlrn_train_stats {
    int64_t step;         /* of this step, from 0                                                    */
    int64_t rows;         /* of its batch                                                            */
    double loss;          /* mse_loss + sparsity_penalty * sparsity_loss (+ the ghost term)          */
    double mse_loss;      /* as cfg.loss says                                                        */
    double sparsity_loss; /* as cfg.sparsity says, without the penalty                               */
    double ghost_loss;    /* unscaled; 0 without ghost gradients or dead features                    */
    double l0;            /* mean number of active features a row                                    */
    double lr;            /* rate of this step's update                                              */
    int64_t dead;         /* features silent for longer than the resampling or ghost period in force */
    int64_t resampled;    /* features revived after this step                                        */
} dlrn_train_stats;

typedef struct dlrn_trainer dlrn_trainer;
DLRN_API dlrn_train_config dlrn_train_defaults(void);
/* init: weights to start from (copied), or NULL: dlrn_autoencoder_create(seed). buffer: where _step takes its batches
   from, borrowed; NULL if only _step_on is used (then resampling needs calls to _resample_on). */
DLRN_API DLRN_CHECK dlrn_status dlrn_trainer_create(dlrn_context *ctx, const dlrn_train_config *cfg,
                                                    const dlrn_dictionary *init, dlrn_buffer *buffer,
                                                    dlrn_trainer **out);
DLRN_API void dlrn_trainer_destroy(dlrn_trainer *trainer); /* NULL is fine */
/* One step on the buffer's next batch; DLRN_END when it is drained, or after cfg.steps steps. stats may be NULL. */
DLRN_API DLRN_CHECK dlrn_status dlrn_trainer_step(dlrn_trainer *trainer, dlrn_train_stats *stats);
/* One step on these rows: x [n][d], y [n][d] or NULL for x. */
DLRN_API DLRN_CHECK dlrn_status dlrn_trainer_step_on(dlrn_trainer *trainer, const float *x, const float *y, int64_t n,
                                                     dlrn_train_stats *stats);
/* Losses of these rows with the present weights, counting nothing and changing nothing. */
DLRN_API DLRN_CHECK dlrn_status dlrn_trainer_loss(dlrn_trainer *trainer, const float *x, const float *y, int64_t n,
                                                  dlrn_train_stats *stats);
/* Revives the features that are dead now with rows drawn from x, y [n][d]; *resampled (or NULL) says how many. */
DLRN_API DLRN_CHECK dlrn_status dlrn_trainer_resample_on(dlrn_trainer *trainer, const float *x, const float *y,
                                                         int64_t n, int64_t *resampled);
DLRN_API dlrn_dictionary *dlrn_trainer_dictionary(dlrn_trainer *trainer); /* borrowed; lives as long as the trainer */
DLRN_API const dlrn_train_config *dlrn_trainer_config(const dlrn_trainer *trainer);
DLRN_API int64_t dlrn_trainer_steps_done(const dlrn_trainer *trainer);
/* Adam's state and the counters, for tests and tools; borrowed. Moments have the shape of their parameter. */
typedef struct dlrn_trainer_state {
    float *m_bias, *m_encoder_weight, *m_encoder_bias, *m_decoder_weight; /* first moments  */
    float *v_bias, *v_encoder_weight, *v_encoder_bias, *v_decoder_weight; /* second moments */
    int64_t *steps_since_fired; /* [F] steps since the feature was last active               */
} dlrn_trainer_state;
DLRN_API dlrn_trainer_state dlrn_trainer_state_of(dlrn_trainer *trainer);
/* The gradients of the loss at the present weights, nothing changed; each pointer may be NULL. For tests: training
   itself never forms them. Shapes as the parameters; the decoder's before projection. */
typedef struct dlrn_gradients {
    float *bias, *encoder_weight, *encoder_bias, *decoder_weight;
} dlrn_gradients;
DLRN_API DLRN_CHECK dlrn_status dlrn_trainer_gradients(dlrn_trainer *trainer, const float *x, const float *y,
                                                       int64_t n, const dlrn_gradients *out);

/* Everything that is needed to go on with the same bits: weights, moments, counters, configuration, generator, the
   buffer's unread rows and the source's position (where it has one). One file, atomic. */
DLRN_API DLRN_CHECK dlrn_status dlrn_trainer_save(const dlrn_trainer *trainer, const char *path);
/* cfg NULL: the saved configuration. A configuration that contradicts the saved one in d, F or compat is an error. */
DLRN_API DLRN_CHECK dlrn_status dlrn_trainer_resume(dlrn_context *ctx, const char *path, const dlrn_train_config *cfg,
                                                    dlrn_buffer *buffer, dlrn_trainer **out);

/* The whole run: steps until cfg.steps or the end of the data. progress (or NULL) sees every step's figures; returning
   anything but DLRN_OK stops the run (DLRN_STOPPED: the dictionary so far is still given). */
typedef dlrn_status (*dlrn_progress)(void *user, dlrn_trainer *trainer, const dlrn_train_stats *stats);
DLRN_API DLRN_CHECK dlrn_status dlrn_train(dlrn_context *ctx, const dlrn_train_config *cfg, dlrn_buffer *buffer,
                                           dlrn_progress progress, void *user, dlrn_dictionary **out);
/* The configuration as a JSON object (no newline), for config.json; copied into `text`, cut to `size`, always closed
   with 0; returns the length it needs, as snprintf does. */
DLRN_API int64_t dlrn_train_config_json(const dlrn_train_config *cfg, char *text, size_t size);

/* ------------------------------------------------------------------------------------------ */
// >>api-metrics

/* Rates and means over `rows` rows, in one streaming pass. Fractions, not percents. NaN: not measured. */
typedef struct dlrn_metrics {
    int64_t rows;
    double mse_loss;           /* mean ||y - x_hat||^2; compat: the square of the mean norm, as the reference's code has */
    double l2_loss;            /* mean ||y - x_hat||                                                                   */
    double sparsity_loss;      /* mean L1 of f, or entropy                                                             */
    double variance_explained; /* 1 - sum_j var(y - x_hat)_j / sum_j var(y)_j                                          */
    double variance_explained_per_dim; /* mean_j of 1 - var(y - x_hat)_j / var(y)_j over dimensions with variance      */
    double l0;                 /* mean number of non-zero features a row                                               */
    double percent_alive;      /* fraction of features non-zero on at least one row                                    */
    double cosine;             /* mean cos(y, x_hat), rows with a zero vector left out                                 */
    double l2_ratio;           /* mean ||x_hat|| / ||y||                                                               */
    double relative_reconstruction_bias; /* E ||x_hat||^2 / E <y, x_hat>                                               */
    int64_t dead, dense;       /* features that never fire; that fire on more than 10 % of the rows                    */
    /* With a language model: cross-entropy in nats a token, as it is, with the site replaced by its reconstruction,
       with the site set to zero. */
    double loss_original, loss_reconstructed, loss_zero;
    double ce_diff;            /* reconstructed - original                                                             */
    double percent_recovered;  /* (reconstructed - zero) / (original - zero)                                           */
    int64_t documents, tokens; /* of the cross-entropy rows                                                            */
} dlrn_metrics;

/* A change to the activations of a model's sites while it runs. For each watched site the model calls
   edit(user, site, x, out, n): x [n][d] the activations a dictionary would read there (for in_to_out: the MLP's input),
   out [n][d] what the model would go on with, to be overwritten in place. Padding rows are not passed. */
typedef struct dlrn_edit {
    dlrn_status (*edit)(void *user, int site, const float *x, float *out, int64_t n);
    void *user;
} dlrn_edit;

/* A model with a text to be judged on. cross_entropy: mean over all next tokens of all documents; edit NULL: as is.
   It must give the same tokens every time. */
typedef struct dlrn_language_model {
    dlrn_status (*cross_entropy)(void *user, const dlrn_edit *edit, double *nats, int64_t *tokens);
    const char *(*error)(void *user); /* text for a failed call; may be NULL */
    void *user;
    int64_t sites;     /* number of sites it calls edit for */
    int64_t documents; /* for the report */
} dlrn_language_model;

typedef struct dlrn_eval_config {
    int64_t rows;            /* stop after so many; -1: all                          8192 */
    int64_t batch_size;      /* rows at a time; never changes the result              256 */
    dlrn_sparsity sparsity;  /* which sparsity_loss                                    L1 */
    int compat;              /* the reference's formulas of March 2024                  0 */
} dlrn_eval_config;

typedef struct dlrn_evaluator dlrn_evaluator;
DLRN_API dlrn_eval_config dlrn_eval_defaults(void);
/* The easy call: rows from the buffer or source until cfg.rows; CE rows if lm is not NULL. */
DLRN_API DLRN_CHECK dlrn_status dlrn_evaluate(const dlrn_dictionary *dict, const dlrn_eval_config *cfg,
                                              const dlrn_source *source, const dlrn_language_model *lm,
                                              dlrn_metrics *out);
/* The same in pieces: create, add rows as they come, finish. */
DLRN_API DLRN_CHECK dlrn_status dlrn_evaluator_create(const dlrn_dictionary *dict, const dlrn_eval_config *cfg,
                                                      dlrn_evaluator **out);
DLRN_API DLRN_CHECK dlrn_status dlrn_evaluator_add(dlrn_evaluator *e, const float *x, const float *y, int64_t n);
DLRN_API DLRN_CHECK dlrn_status dlrn_evaluator_finish(dlrn_evaluator *e, dlrn_metrics *out); /* CE rows NaN */
DLRN_API const int64_t *dlrn_evaluator_fired(const dlrn_evaluator *e); /* [F] rows on which each feature fired */
DLRN_API void dlrn_evaluator_destroy(dlrn_evaluator *e);
/* CE rows for one or several dictionaries spliced in at once: dicts [lm->sites]. Fills only the CE fields of out. */
DLRN_API DLRN_CHECK dlrn_status dlrn_loss_recovered(dlrn_context *ctx, const dlrn_dictionary *const *dicts,
                                                    const dlrn_language_model *lm, dlrn_metrics *out);
/* Firing frequencies in `bins` log bins from 1e-5 to 1: count [bins]; edge [bins + 1] (or NULL); never-firing features
   are in no bin, those below 1e-5 in the first. */
DLRN_API DLRN_CHECK dlrn_status dlrn_evaluator_histogram(const dlrn_evaluator *e, int bins, double *edge,
                                                         int64_t *count);
#endif /* DICTLEARN_NO_TRAINING */

/* ------------------------------------------------------------------------------------------ */
// >>api-tensor

DLRN_API dlrn_tensor dlrn_view(float *data, int64_t rows, int64_t cols);
/* Rows [first, first + rows) and columns [col, col + cols) of t; out of range gives an empty view (data NULL). */
DLRN_API dlrn_tensor dlrn_slice(dlrn_tensor t, int64_t first, int64_t rows, int64_t col, int64_t cols);
/* An owned matrix of zeros, 64-byte aligned; overflow of rows * cols is caught. */
DLRN_API DLRN_CHECK dlrn_status dlrn_tensor_create(dlrn_context *ctx, int64_t rows, int64_t cols, dlrn_tensor *out);
DLRN_API void dlrn_tensor_free(dlrn_context *ctx, dlrn_tensor *t);

typedef enum dlrn_gemm_op {
    DLRN_NN, /* c [m][n] = a [m][k] b [k][n]   */
    DLRN_NT, /* c [m][n] = a [m][k] b [n][k]^T */
    DLRN_TN  /* c [m][n] = a [k][m]^T b [k][n] */
} dlrn_gemm_op;
/* c = op(a, b) + beta * c, beta 0 or 1 (0: c is not read). Shapes are checked. c must not overlap a or b. */
DLRN_API DLRN_CHECK dlrn_status dlrn_matmul(dlrn_context *ctx, dlrn_gemm_op op, dlrn_tensor a, dlrn_tensor b,
                                            float beta, dlrn_tensor c);
DLRN_API DLRN_CHECK dlrn_status dlrn_gemm(dlrn_context *ctx, dlrn_gemm_op op, int64_t m, int64_t n, int64_t k,
                                          const float *a, int64_t lda, const float *b, int64_t ldb, float beta,
                                          float *c, int64_t ldc);
DLRN_API float dlrn_dot(dlrn_context *ctx, const float *a, const float *b, int64_t n);
DLRN_API float dlrn_norm(dlrn_context *ctx, const float *a, int64_t n); /* Euclidean */
/* y += a * x */
DLRN_API void dlrn_axpy(dlrn_context *ctx, float a, const float *x, float *y, int64_t n);
/* Mean and unbiased variance of each column, Welford; either may be NULL. mean, var [cols]. */
DLRN_API DLRN_CHECK dlrn_status dlrn_mean_var(dlrn_context *ctx, dlrn_tensor t, double *mean, double *var);
/* The k largest of x [n], descending, ties by lower index: index [k], value [k] (or NULL). NaN counts as smallest. */
DLRN_API DLRN_CHECK dlrn_status dlrn_topk(dlrn_context *ctx, const float *x, int64_t n, int64_t k, int64_t *index,
                                          float *value);
/* Runs body over tasks on the context's threads (see dlrn_parallel_body). */
DLRN_API void dlrn_parallel_for(dlrn_context *ctx, int64_t n_tasks, dlrn_parallel_body body, void *arg);

/* Philox4x32-10: number `counter` of stream `stream` of `seed`, without state beyond these three. */
typedef struct dlrn_rng {
    uint64_t seed, stream, counter;
} dlrn_rng;
DLRN_API uint64_t dlrn_rng_u64(dlrn_rng *rng);
DLRN_API float dlrn_rng_uniform(dlrn_rng *rng);               /* [0, 1), 24 bits  */
DLRN_API double dlrn_rng_uniform_f64(dlrn_rng *rng);          /* (0, 1), 53 bits  */
DLRN_API float dlrn_rng_normal(dlrn_rng *rng);                /* Box-Muller       */
DLRN_API uint64_t dlrn_rng_below(dlrn_rng *rng, uint64_t n);  /* [0, n), unbiased */

DLRN_API float dlrn_f16_to_f32(uint16_t h);
DLRN_API uint16_t dlrn_f32_to_f16(float f); /* nearest even, overflow to infinity, NaN stays NaN */
DLRN_API float dlrn_bf16_to_f32(uint16_t h);
DLRN_API uint16_t dlrn_f32_to_bf16(float f);
DLRN_API int64_t dlrn_dtype_size(dlrn_dtype t);
DLRN_API const char *dlrn_dtype_name(dlrn_dtype t); /* "F32" */

/* ------------------------------------------------------------------------------------------ */
// >>api-files

#define DLRN_MAX_DIMS 8
typedef struct dlrn_tensor_info {
    const char *name; /* "encoder.weight", nested dictionaries joined with '.'; owned by the archive */
    dlrn_dtype dtype;
    int ndim;
    int64_t shape[DLRN_MAX_DIMS];
    int64_t numel;
} dlrn_tensor_info;

/* Any file of named tensors: torch .pt (zip or the older form), .safetensors, .npz, .npy (one tensor, named ""); told
   apart by content. A .index.json of a sharded model opens all its shards as one. Read-only; nothing is executed. */
typedef struct dlrn_archive dlrn_archive;
DLRN_API DLRN_CHECK dlrn_status dlrn_archive_open(dlrn_context *ctx, const char *path, dlrn_archive **out);
/* The same from bytes in memory, borrowed; name stands for the path in errors. */
DLRN_API DLRN_CHECK dlrn_status dlrn_archive_open_memory(dlrn_context *ctx, const void *bytes, size_t size,
                                                         const char *name, dlrn_archive **out);
DLRN_API void dlrn_archive_close(dlrn_archive *a); /* NULL is fine */
DLRN_API const char *dlrn_archive_format(const dlrn_archive *a); /* "pt", "pt-legacy", "safetensors", "npz", "npy" */
DLRN_API const char *dlrn_archive_path(const dlrn_archive *a);
DLRN_API int64_t dlrn_archive_count(const dlrn_archive *a);
DLRN_API const dlrn_tensor_info *dlrn_archive_info(const dlrn_archive *a, int64_t index); /* NULL: out of range */
DLRN_API int64_t dlrn_archive_find(const dlrn_archive *a, const char *name);              /* -1: not there */
/* Numbers and strings that a .pt holds beside tensors, and safetensors' __metadata__: text, or NULL. */
DLRN_API const char *dlrn_archive_metadata(const dlrn_archive *a, const char *key);
/* Rows [first, first + rows) (rows = slices of the first dimension; a 0-d tensor is one row) widened to f32 in row-major
   order, strides and offsets honoured. dst holds rows * numel / shape[0] floats. */
DLRN_API DLRN_CHECK dlrn_status dlrn_archive_read_rows(dlrn_archive *a, int64_t index, int64_t first, int64_t rows,
                                                       float *dst);
DLRN_API DLRN_CHECK dlrn_status dlrn_archive_read(dlrn_archive *a, int64_t index, float *dst); /* [numel] */
DLRN_API DLRN_CHECK dlrn_status dlrn_archive_read_i64(dlrn_archive *a, int64_t index, int64_t *dst);

/* A tensor to be written: data in memory of the given type, row-major, borrowed. */
typedef struct dlrn_tensor_out {
    const char *name;
    dlrn_dtype dtype;
    int ndim;
    int64_t shape[DLRN_MAX_DIMS];
    const void *data;
} dlrn_tensor_out;
/* Writes named tensors; the format follows the suffix (.pt .safetensors .npz .npy). metadata: pairs key, value ending
   with NULL, or NULL (safetensors only). Atomic. */
DLRN_API DLRN_CHECK dlrn_status dlrn_archive_write(dlrn_context *ctx, const char *path, const dlrn_tensor_out *tensors,
                                                   int64_t count, const char *const *metadata);

/* A growing .npy of f32 [rows][width], or a CSR .npz that scipy.sparse.load_npz opens: append, then close. "-" writes to
   stdout (.npy only; rows must then be known: rows_total >= 0). abort (or a failed close) leaves nothing behind. */
typedef struct dlrn_writer dlrn_writer;
DLRN_API DLRN_CHECK dlrn_status dlrn_npy_create(dlrn_context *ctx, const char *path, int64_t width, int64_t rows_total,
                                                dlrn_writer **out);
DLRN_API DLRN_CHECK dlrn_status dlrn_npy_append(dlrn_writer *w, const float *x, int64_t rows);
DLRN_API DLRN_CHECK dlrn_status dlrn_csr_create(dlrn_context *ctx, const char *path, int64_t width, dlrn_writer **out);
DLRN_API DLRN_CHECK dlrn_status dlrn_csr_append(dlrn_writer *w, const dlrn_sparse *codes);
DLRN_API DLRN_CHECK dlrn_status dlrn_writer_close(dlrn_writer *w); /* frees w in any case */
DLRN_API void dlrn_writer_abort(dlrn_writer *w);
/* CSR written by the above or by scipy.sparse.save_npz. */
DLRN_API DLRN_CHECK dlrn_status dlrn_csr_load(dlrn_context *ctx, const char *path, dlrn_sparse *out);

/* Whole files. read: *bytes is owned by the caller (dlrn_free), with a 0 byte after its end. write: atomic. */
DLRN_API DLRN_CHECK dlrn_status dlrn_file_read(dlrn_context *ctx, const char *path, char **bytes, size_t *size);
DLRN_API DLRN_CHECK dlrn_status dlrn_file_write(dlrn_context *ctx, const char *path, const void *bytes, size_t size);
DLRN_API int dlrn_file_exists(const char *path); /* 0 no, 1 file, 2 folder */
DLRN_API void dlrn_free(dlrn_context *ctx, void *p);

/* Strict JSON (RFC 8259; duplicate keys are errors; depth <= 64): a tree in one block. Text is copied. */
typedef enum dlrn_json_type { DLRN_JSON_NULL, DLRN_JSON_BOOL, DLRN_JSON_NUMBER, DLRN_JSON_STRING, DLRN_JSON_ARRAY,
                              DLRN_JSON_OBJECT } dlrn_json_type;
typedef struct dlrn_json {       /* one value                                                       */
    dlrn_json_type type;
    const char *key;             /* in an object: its name (UTF-8, may hold 0 bytes: key_len)       */
    const char *text;            /* string: unescaped UTF-8; number: as written; else NULL          */
    int64_t key_len, text_len;
    double number;               /* number: its value; bool: 0 or 1                                 */
    int64_t count;               /* array, object: how many children                                */
    const struct dlrn_json *first, *next; /* first child; next sibling                              */
} dlrn_json;
/* name stands for the file in errors. The result is freed with dlrn_json_free. */
DLRN_API DLRN_CHECK dlrn_status dlrn_json_parse(dlrn_context *ctx, const char *text, size_t size, const char *name,
                                                dlrn_json **out);
DLRN_API void dlrn_json_free(dlrn_context *ctx, dlrn_json *root);
/* Member by path: "trainer.dict_class"; NULL: not there (or object is NULL). */
DLRN_API const dlrn_json *dlrn_json_get(const dlrn_json *object, const char *path);
DLRN_API const char *dlrn_json_text(const dlrn_json *object, const char *path, const char *otherwise);
DLRN_API double dlrn_json_number(const dlrn_json *object, const char *path, double otherwise);

#ifdef __cplusplus
}
#endif
#endif /* DICTLEARN_H */

/* ==========================================================================================
   End of the interface. Stop here unless you want to read the code.
   ========================================================================================== */

#if defined(DICTLEARN_IMPLEMENTATION) && !defined(DLRNI_IMPLEMENTED) && !defined(DLRNI_PASS)
#define DLRNI_IMPLEMENTED

/* ------------------------------------------------------------------------------------------ */
// >>platform
/* Every system header is included here, before the first kernel region changes the target. */

#include <float.h>
#include <limits.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef _OPENMP
#include <omp.h>
#endif

/* DICTLEARN_SIMD 0 leaves the scalar kernels alone; by default every set that the compiler can build is built. */
#ifndef DICTLEARN_SIMD
#define DICTLEARN_SIMD 1
#endif
#if DICTLEARN_SIMD && (defined(__GNUC__) || defined(__clang__)) && (defined(__x86_64__) || defined(__i386__))
#define DLRNI_X86 1
#include <immintrin.h>
#else
#define DLRNI_X86 0
#endif
#if DICTLEARN_SIMD && defined(__aarch64__)
#define DLRNI_NEON 1
#include <arm_neon.h>
#else
#define DLRNI_NEON 0
#endif

/* The name under which the kernel bodies re-include this file; set it if you rename the file. */
#ifndef DICTLEARN_HEADER_NAME
#define DICTLEARN_HEADER_NAME "dictlearn.h"
#endif

#if defined(DICTLEARN_MALLOC) && defined(DICTLEARN_REALLOC) && defined(DICTLEARN_FREE)
#elif !defined(DICTLEARN_MALLOC) && !defined(DICTLEARN_REALLOC) && !defined(DICTLEARN_FREE)
#define DICTLEARN_MALLOC(size) malloc(size)
#define DICTLEARN_REALLOC(p, size) realloc(p, size)
#define DICTLEARN_FREE(p) free(p)
#else
#error "define all of DICTLEARN_MALLOC, DICTLEARN_REALLOC, DICTLEARN_FREE, or none"
#endif

/* Our own mistakes, in debug builds only; never used to check an argument or a file. */
#ifndef DICTLEARN_ASSERT
#ifdef NDEBUG
#define DICTLEARN_ASSERT(c) ((void)0)
#else
#include <assert.h>
#define DICTLEARN_ASSERT(c) assert(c)
#endif
#endif

#if defined(__GNUC__) || defined(__clang__)
#define DLRNI_PRINTF(fmt, args) __attribute__((format(printf, fmt, args)))
#define DLRNI_UNUSED __attribute__((unused))
#else
#define DLRNI_PRINTF(fmt, args)
#define DLRNI_UNUSED
#endif
#define DLRNI_INTERNAL DLRNI_UNUSED static

#ifdef __cplusplus
extern "C" {
#endif

/* ------------------------------------------------------------------------------------------ */
// >>base
/* Three words for three kinds of check: DLRNI_REQUIRE (the caller's mistake: status and text, always on), dlrni_fail
   (a file's or the data's fault: the same), DICTLEARN_ASSERT (our mistake: debug builds). */

typedef struct dlrni_kernel_table dlrni_kernel_table;

struct dlrn_context {
    dlrn_context_config cfg;
    const dlrni_kernel_table *k; /* kernels in force             */
    int threads;                 /* workers of dlrn_parallel_for */
    char error[1024];
    char info[256];
};

DLRNI_INTERNAL DLRNI_PRINTF(3, 4) dlrn_status dlrni_fail(dlrn_context *ctx, dlrn_status s, const char *format, ...) {
    va_list args;
    va_start(args, format);
    vsnprintf(ctx->error, sizeof ctx->error, format, args);
    va_end(args);
    return s;
}

#define DLRNI_REQUIRE(ctx, condition, text)                                                                            \
    do {                                                                                                               \
        if (!(condition)) return dlrni_fail((ctx), DLRN_ERR_ARGUMENT, "%s: %s", __func__, (text));                     \
    } while (0)

/* Passes a failure on. */
#define DLRNI_TRY(call)                                                                                                \
    do {                                                                                                               \
        dlrn_status dlrni_s = (call);                                                                                  \
        if (dlrni_s != DLRN_OK) return dlrni_s;                                                                        \
    } while (0)

DLRNI_INTERNAL void dlrni_log(dlrn_context *ctx, int level, const char *message) {
    if (ctx->cfg.log) ctx->cfg.log(ctx->cfg.user, level, message);
}

/* a + b and a * b of non-negative sizes; 0 if it does not fit (or an operand is negative), else 1. */
DLRNI_INTERNAL int dlrni_add(int64_t a, int64_t b, int64_t *out) {
    if (a < 0 || b < 0 || a > INT64_MAX - b) return 0;
    *out = a + b;
    return 1;
}

DLRNI_INTERNAL int dlrni_mul(int64_t a, int64_t b, int64_t *out) {
    if (a < 0 || b < 0 || (b && a > INT64_MAX / b)) return 0;
    *out = a * b;
    return 1;
}

/* 64-byte aligned blocks over the user's allocator: the raw pointer and the size stand just before the block. */
typedef struct dlrni_block {
    void *raw;
    size_t size;
} dlrni_block;
enum { DLRNI_ALIGN = 64 };

DLRNI_INTERNAL void *dlrni_alloc(dlrn_context *ctx, int64_t count, size_t element) {
    int64_t bytes, total;
    if (!dlrni_mul(count, (int64_t)element, &bytes) ||
        !dlrni_add(bytes, DLRNI_ALIGN + (int64_t)sizeof(dlrni_block), &total) || (uint64_t)total > SIZE_MAX) {
        dlrni_fail(ctx, DLRN_ERR_MEMORY, "a block of %lld x %zu bytes does not fit in memory", (long long)count,
                   element);
        return NULL;
    }
    char *raw = (char *)(ctx->cfg.malloc ? ctx->cfg.malloc((size_t)total, ctx->cfg.user)
                                         : DICTLEARN_MALLOC((size_t)total));
    if (!raw) {
        dlrni_fail(ctx, DLRN_ERR_MEMORY, "out of memory: %lld bytes asked for", (long long)bytes);
        return NULL;
    }
    uintptr_t at = ((uintptr_t)raw + sizeof(dlrni_block) + DLRNI_ALIGN - 1) & ~(uintptr_t)(DLRNI_ALIGN - 1);
    dlrni_block head = {raw, (size_t)bytes};
    memcpy((char *)at - sizeof head, &head, sizeof head);
    return (void *)at;
}

DLRNI_INTERNAL void dlrni_free(dlrn_context *ctx, void *p) {
    if (!p) return;
    dlrni_block head;
    memcpy(&head, (char *)p - sizeof head, sizeof head);
    if (ctx->cfg.free)
        ctx->cfg.free(head.raw, ctx->cfg.user);
    else
        DICTLEARN_FREE(head.raw);
}

DLRNI_INTERNAL void *dlrni_alloc_zero(dlrn_context *ctx, int64_t count, size_t element) {
    void *p = dlrni_alloc(ctx, count, element);
    if (p) memset(p, 0, (size_t)count * element);
    return p;
}

#define DLRNI_NEW(ctx, type, count) ((type *)dlrni_alloc((ctx), (count), sizeof(type)))
#define DLRNI_NEW_ZERO(ctx, type, count) ((type *)dlrni_alloc_zero((ctx), (count), sizeof(type)))

/* Room for `need` elements in the block that the pointer at `slot` names, which holds *cap: grows by half at least; the
   first `used` are kept. 0: no memory (then all is as it was). The pointer is copied, since its type is the caller's. */
DLRNI_INTERNAL int dlrni_grow(dlrn_context *ctx, void *slot, int64_t *cap, int64_t used, int64_t need, size_t element) {
    if (need <= *cap) return 1;
    int64_t wide = *cap <= INT64_MAX / 2 ? *cap + *cap / 2 : need;
    int64_t cap_new = wide > need ? wide : need;
    void *q = dlrni_alloc(ctx, cap_new, element), *p;
    if (!q) return 0;
    memcpy(&p, slot, sizeof p);
    if (used) memcpy(q, p, (size_t)used * element);
    dlrni_free(ctx, p);
    memcpy(slot, &q, sizeof q);
    *cap = cap_new;
    return 1;
}
#define DLRNI_GROW(ctx, pointer, cap, used, need)                                                                      \
    dlrni_grow((ctx), (pointer), (cap), (used), (need), sizeof **(pointer))

DLRN_API const char *dlrn_error(const dlrn_context *ctx) {
    return ctx ? ctx->error : "no context: out of memory, or an unknown kernel set was asked for";
}

DLRN_API const char *dlrn_status_name(dlrn_status s) {
#define DLRNI_STATUS_NAME(name, text) #name,
    static const char *const names[] = {DLRN_STATUS_LIST(DLRNI_STATUS_NAME)};
#undef DLRNI_STATUS_NAME
    return (unsigned)s < DLRN_STATUS_COUNT ? names[s] : "?";
}

DLRN_API const char *dlrn_status_text(dlrn_status s) {
#define DLRNI_STATUS_TEXT(name, text) text,
    static const char *const texts[] = {DLRN_STATUS_LIST(DLRNI_STATUS_TEXT)};
#undef DLRNI_STATUS_TEXT
    return (unsigned)s < DLRN_STATUS_COUNT ? texts[s] : "?";
}

DLRN_API void dlrn_free(dlrn_context *ctx, void *p) {
    dlrni_free(ctx, p);
}

/* ------------------------------------------------------------------------------------------ */
// >>random

/* ------------------------------------------------------------------------------------------ */
// >>half

/* ------------------------------------------------------------------------------------------ */
// >>threads

/* ------------------------------------------------------------------------------------------ */
// >>kernels

/* ------------------------------------------------------------------------------------------ */
// >>context

/* ------------------------------------------------------------------------------------------ */
// >>tensor

/* ------------------------------------------------------------------------------------------ */
// >>gemm

/* ------------------------------------------------------------------------------------------ */
// >>vector

/* ------------------------------------------------------------------------------------------ */
// >>sparse

/* ------------------------------------------------------------------------------------------ */
// >>dictionary

#ifndef DICTLEARN_NO_TRAINING
/* ------------------------------------------------------------------------------------------ */
// >>optimiser

/* ------------------------------------------------------------------------------------------ */
// >>trainer

/* ------------------------------------------------------------------------------------------ */
// >>resampling

/* ------------------------------------------------------------------------------------------ */
// >>buffer

/* ------------------------------------------------------------------------------------------ */
// >>metrics
#endif /* DICTLEARN_NO_TRAINING */

/* ------------------------------------------------------------------------------------------ */
// >>files

/* ------------------------------------------------------------------------------------------ */
// >>json

/* ------------------------------------------------------------------------------------------ */
// >>safetensors

/* ------------------------------------------------------------------------------------------ */
// >>npy

/* ------------------------------------------------------------------------------------------ */
// >>zip

/* ------------------------------------------------------------------------------------------ */
// >>pickle

/* ------------------------------------------------------------------------------------------ */
// >>archive

/* ------------------------------------------------------------------------------------------ */
// >>load

#ifndef DICTLEARN_NO_TRAINING
/* ------------------------------------------------------------------------------------------ */
// >>checkpoint
#endif

#ifdef __cplusplus
}
#endif

/* ------------------------------------------------------------------------------------------ */
// >>undef

#endif /* DICTLEARN_IMPLEMENTATION */

/* ------------------------------------------------------------------------------------------ */
// >>kernel-bodies
#ifdef DLRNI_PASS
#endif /* DLRNI_PASS */

/* ------------------------------------------------------------------------------------------ */
// >>licence
