/* dictlearn.h - v0.2.0 - sparse autoencoders (dictionary learning) in one C file. MIT licence.

   In ONE .c or .cpp file write

       #define DICTLEARN_IMPLEMENTATION
       #include "dictlearn.h"

   and in all others only the #include. Build with `cc app.c -lm`; nothing else is needed. -fopenmp
   adds threads.
*/
// >>manual
/*
   The file is divided into sections called rooms. To jump to one, search for its tag, for example
   >>threads.

   >>manual         this: quick start, words, training, formula, options, memory, threads, speed,
                    errors, trust, limits, compat, names in Python, words of the code, how to add a
                    family, layout, recipe or kernel set
   >>config         linkage, version
   >>types          status codes, element types, context, tensor, sparse codes
   >>api-context    contexts, errors
   >>api-dictionary roles, formula, dictionaries; load, save
   >>api-encode     encoders; encode, decode
   >>api-buffer     sources of rows, the activation buffer
   >>api-train      configuration, trainer, checkpoints, the whole run in one call
   >>api-metrics    evaluation with and without a language model
   >>api-tensor     matrices, products, threads, random numbers
   >>api-files      archives of tensors, .npy and CSR writers, streams, whole files, JSON
   -                end of the interface
   >>platform       compilers, system headers, allocator
   >>base           checks, errors, allocation, growth, min and max
   >>random         counter-based generator
   >>numbers        element types, half floats, finite numbers, CRC-32
   >>threads        one loop over tasks
   >>kernels        the table of kernels, the sets, which sets this processor can run
   >>context        creation, description
   >>matrix         views, dense products, transposition, dot, norm, axpy, top-k
   >>sparse         codes by row (CSR)
   >>dictionary     roles, families, creation
   >>screen         the bound that rules features out
   >>candidates     lists of the features above a floor, screened or dense
   >>select         top-k of each row
   >>decode         the sum of active atoms, bias, skip
   >>encode         the encoder object and the easy calls
   >>encoders       families with an encoder of their own
   >>bytes          cursor, byte order, UTF-8, growing text, a table of names
   >>files          files of the C library or of the host: reading, atomic writing, spools
   >>json           strict JSON reader, the one writer
   >>archive        named tensors in the bytes of a file
   >>safetensors    read, write
   >>npy            .npy read, write
   >>inflate        the decoder of zip's and gzip's compressed data
   >>stream         a file's bytes one after another, decompressed from gzip
   >>zip            stored and ZIP64 archives; .npz read, write
   >>pickle         the restricted pickle machine
   >>torch          .pt of today and from before 1.6: read, write
   >>formats        opens any format, and sharded models
   >>writers        growing .npy, CSR and plain files; CSR read
   >>layouts        how dictionaries are stored: one table row per layout
   >>load           reads and writes dictionaries
   >>naive          a training step as plain loops: for readers, and as the tests' reference
   >>source         rows of arrays in memory and in files, a filter
   >>buffer         the activation buffer
   >>training       states of a trainer, work space, what a recipe is
   >>optimiser      Adam with unit-norm atoms, rates
   >>sums           sums of gathered rows
   >>loss           lists, reconstruction, errors
   >>auxiliary      auxiliary losses that revive dead features: ghosts, AuxK
   >>backward       gradients and update in one visit
   >>recipes        how families are trained: one code block and one table entry per recipe
   >>settings       configuration: defaults, checks, JSON
   >>resampling     reviving dead features
   >>trainer        the whole step; the whole run
   >>checkpoint     saves and resumes trainers
   >>metrics        streaming evaluation
   >>splice         loss recovered, the whole evaluation
   >>undef          undefines private macros
   >>kernel-bodies  the kernels, compiled once per instruction set
   >>licence        MIT

   ---- QUICK START --------------------------------------------------------------------------------

   Train a dictionary on rows in memory and save it. Copy this into app.c and build it with
   `cc -O2 -fopenmp app.c -lm`:

   ```c
   #include <stdio.h>
   #define DICTLEARN_IMPLEMENTATION
   #include "dictlearn.h"

   enum { ROWS = 4096, DIM = 32 };
   static float x[ROWS * DIM]; // [ROWS][DIM]: the activations of your model

   int main(void) {
       dlrn_rng rng = {1, 0, 0};
       for (int i = 0; i < ROWS * DIM; i++) x[i] = dlrn_rng_normal(&rng);

       dlrn_context *ctx = NULL;
       dlrn_dictionary *ae = NULL;
       dlrn_source rows = {0};
       dlrn_status s = dlrn_context_create(NULL, &ctx);
       if (!s) s = dlrn_source_from_array(ctx, x, NULL, ROWS, DIM, 0, 4, &rows); // 4 epochs

       dlrn_train_config cfg = dlrn_train_defaults(NULL);
       cfg.features = 4 * DIM, cfg.warmup_steps = 10, cfg.sparsity_penalty = 0.05;
       cfg.buffer.capacity = ROWS, cfg.buffer.read_rows = 1024, cfg.buffer.batch_rows = 512;
       if (!s) s = dlrn_train(ctx, &cfg, &rows, NULL, NULL, &ae);
       if (!s) s = dlrn_save(ae, "my_dictionary.pt"); // PyTorch opens it, too
       if (s) fprintf(stderr, "%s\n", dlrn_error(ctx));

       dlrn_dictionary_destroy(ae);
       dlrn_source_destroy(&rows);
       dlrn_context_destroy(ctx);
       return s != DLRN_OK;
   }
   ```

   Load a dictionary and print the features of a row. Files written by torch.save load the same way.
   The path names a file, or a folder that contains ae.pt and config.json:

   ```c
   #include <stdio.h>
   #define DICTLEARN_IMPLEMENTATION
   #include "dictlearn.h"

   int main(int argc, char **argv) {
       dlrn_context *ctx = NULL;
       dlrn_dictionary *ae = NULL;
       dlrn_sparse codes = {0};
       float x[32] = {1, -2, 3}, x_hat[32]; // one row
       dlrn_status s = dlrn_context_create(NULL, &ctx);
       if (!s) s = dlrn_load(ctx, argc > 1 ? argv[1] : "my_dictionary.pt", NULL, &ae);
       if (!s && ae->d_in != 32)
           s = dlrn_fail(ctx, DLRN_ERR_SHAPE, "expected rows of 32, found %d", (int)ae->d_in);
       if (!s) s = dlrn_forward(ae, x, 1, x_hat, &codes);
       for (int64_t k = 0; !s && k < codes.row_ptr[1]; k++)
           printf("feature %d: %g\n", (int)codes.col[k], (double)codes.val[k]);
       if (s) fprintf(stderr, "%s\n", dlrn_error(ctx));
       dlrn_sparse_free(&codes);
       dlrn_dictionary_destroy(ae);
       dlrn_context_destroy(ctx);
       return s != DLRN_OK;
   }
   ```

   examples/ has one program for each way of using the library.

   ---- WORDS --------------------------------------------------------------------------------------

   activation x    one row of `d_in` (d) floats: what a model computes at a site for one token
   feature f       one of the `features` (F) numbers that encode a row; off where it is 0, otherwise
                   active
   pre-activation  a feature's value before the gate and the selection (see FORMULA AND FAMILIES)
   dictionary      a sparse autoencoder: the parameters that encode and decode, and its formula
   atom            what a feature adds to the reconstruction: a row of the decoder, of unit norm
   codes           the active features of some rows, as dlrn_sparse (CSR)
   x_hat           the reconstruction: bias plus the active atoms, each times its feature
   L0              the mean number of active features per row
   dead, alive     dead: has not fired for a stated number of steps or rows; alive: any other
   dense           a feature that fires on more than a tenth of the rows
   source          callbacks that deliver rows in order
   buffer          holds rows of a source and hands them out shuffled
   batch           the rows of one training step
   site            a place in the model: embed, attn_in, attn_z, attn_out, mlp_in, mlp_hidden,
                   mlp_out or resid_out
   target y        the row to reconstruct where that is not x (a transcoder; the reference calls the
                   mode in_to_out). It may have another width, d_out
   reference       the Python project dictionary_learning as of March 2024
   compat          the setting that reproduces the reference's code where that code differs from the
                   reference's documentation

   ---- THREE TIERS --------------------------------------------------------------------------------

   Each tier is built on the next; use the first that does what you need.
   1. Easy calls: dlrn_load, dlrn_forward, dlrn_encode, dlrn_decode, dlrn_train, dlrn_evaluate.
   2. Objects that your program drives: dlrn_encoder (reuses its memory from call to call),
      dlrn_buffer, dlrn_trainer (step by step; can be saved and resumed), dlrn_evaluator (rows as
      they come).
   3. Parts: products of matrices, random numbers, tensor files, .npy, CSR, JSON: for a model runner
      or a tool of your own.

   ---- TRAINING -----------------------------------------------------------------------------------

   A recipe says how a dictionary is trained. dlrn_train_defaults(recipe) returns the recipe's
   defaults; NULL means "reference".

   recipe        family               modelled on
   reference     AutoEncoder          trainSAE of March 2024: L1 or entropy, ghosts, resampling
   dl-top_k      AutoEncoderTopK      dictionary_learning 0.1.0: k active per row, AuxK
   dl-jump_relu  JumpReluAutoEncoder  dictionary_learning 0.1.0: penalty (L0 / target_l0 - 1)^2

   What to set for the reference, the most important first:
   - sparsity_penalty: more penalty, lower L0. Useful values span a factor of about 6; where they
     lie depends on how large the rows are and on the loss, so try some values in short runs. For
     example, resid_out of layer 3 of examples/data/tiny-neox (d 128, F 1024, default loss):
         penalty              0.05    0.09    0.13    0.2     0.4
         L0                   172     57      26      10      1, and most features die
         variance explained   97.7 %  92.1 %  86.3 %  72.3 %  0 %
   - features: 8 to 64 times d.
   - lr: the default 3e-4 suits d 512; small dictionaries take 1e-3 to 3e-3.
   - buffer.capacity: the number of rows read before the first step, by default 3.84 million. Lower
     it to start sooner and to take less memory.
   - resample_steps or ghost_threshold, if many features die: evaluate to see how many did.
   During the run, watch L0 and the loss in dlrn_train_stats. After the run, call dlrn_evaluate on
   rows that were not trained on: look at variance explained, dead features and, with a language
   model, the share of cross-entropy recovered.

   ---- FORMULA AND FAMILIES -----------------------------------------------------------------------

       p     = ENCODER (scale_in x - center) + ENCODER_BIAS
       f     = select(gate(p))
       x_hat = scale_out (f DECODER + OUTPUT_BIAS + SKIP scale_in x)

   Words in capitals are the dictionary's parameters: dict->param[DLRN_ENCODER] and so on. A family
   has all of those below or none (IdentityDict). SKIP is NULL unless you set it: its term is then
   left out. scale_in, center, gate, select and scale_out are fields of dict->formula.

   family               parameters                        center       gate      select
   AutoEncoder          ENCODER, ENCODER_BIAS, DECODER,   OUTPUT_BIAS  ReLU      all
                        OUTPUT_BIAS
   AutoEncoderTopK      the same                          OUTPUT_BIAS  ReLU      k largest of a row
   JumpReluAutoEncoder  the same, and THRESHOLD           none         jump      all
   IdentityDict         none (f = x: the baseline)        none         identity  all

   ReLU: max(p, 0). Jump: p if p > max(threshold, 0), else 0. Where d_out is not d_in, the center is
   none in every family. Every family can be loaded, used to encode, evaluated and saved; all but
   IdentityDict, which has no weights, can be trained. Files of other known classes are refused,
   with an error that names the class.

   A file holds the parameters and k. You may set other fields of the formula, or the parameters
   SKIP and INPUT_BIAS, to encode and to decode; dlrn_save then refuses.

   ---- OPTIONS ------------------------------------------------------------------------------------

   macro                     define it    what it does
   DICTLEARN_IMPLEMENTATION  in one file  this file contains the code
   DICTLEARN_STATIC          with code    all functions are static: a private copy for this file, no
                                          external symbols
   DICTLEARN_NO_TRAINING     everywhere   no buffer, trainer or metrics; loading, encoding, decoding
                                          and saving remain
   DICTLEARN_NO_STDIO        with code    no FILE, no disk, no POSIX or Windows headers; paths go to
                                          the dlrn_io of the context, and fail without one
   DICTLEARN_VSNPRINTF       with code    replaces vsnprintf(text, size, format, args); with
                                          DICTLEARN_NO_STDIO too, <stdio.h> is not included
   DICTLEARN_SIMD            with code    0: only the scalar kernels. Default 1: all that the
                                          compiler supports
   DICTLEARN_CBLAS           with code    dlrn_matmul() calls cblas_sgemm() of <cblas.h>; link your
                                          BLAS, which then determines the exact result bits and the
                                          number of threads. Training does not use it
   DICTLEARN_HEADER_NAME     with code    "new_name.h", if you rename this file: it includes itself
   DICTLEARN_MALLOC, _FREE   with code    both or neither: malloc(size), free(p)
   DICTLEARN_ASSERT          with code    assert(condition); it checks the library's own invariants,
                                          never arguments or files
   DLRN_API                  everywhere   linkage of the public functions, for a DLL
   NDEBUG                    with code    removes the assertions
   -fopenmp                  with code    threads by OpenMP; without it one thread, or your
                                          parallel_for

   "Everywhere": the same in every file that includes the header. "With code": in the file that
   defines DICTLEARN_IMPLEMENTATION. No macro changes the layout of a struct.

   The environment variable DICTLEARN_KERNELS=NAME picks the kernel set of every context that does
   not name one itself. dlrn_context_describe() returns the sets that this processor can run,
   and the one in use.

   ---- MEMORY AND OWNERSHIP -----------------------------------------------------------------------

   Three words are used throughout. Borrowed: the object remains the caller's, and must stay valid
   during the call (or as long as the comment says). Copied: the caller may change or free it right
   after the call. Owned: it is yours; pass it to the matching _destroy, _free or _close, or a
   plain block to dlrn_free; all of them accept NULL. After a failure an `out` pointer is NULL, and
   there is nothing to free.

   Objects belong to the context that made them. Destroy them first, the context last. Parameters of
   a dictionary are plain arrays: read them at any time; after writing to them call
   dlrn_dictionary_changed().

   Memory comes from the context's allocator, in blocks aligned to 64 bytes, except for files that
   the system maps and the C library's own buffers. Training never forms the dense [rows][F] matrix
   of features, except for the last rows of a resampling's sample, fewer than 32. A trainer holds
   the weights, two moments for each, the codes of a batch and a little scratch memory; recipes that
   clip gradients (dl-top_k, dl-jump_relu) also hold one gradient for each weight. Before you create
   a buffer, dlrn_buffer_bytes() returns how much memory it will take: 7.9 GB with the defaults
   (3.84 million rows), d 512 and f32, half of that with DLRN_BF16. dlrn_encode() fills an array of
   n * F floats; dlrn_encode_sparse() stores only active features. If you reuse an encoder and its
   codes, it stops allocating after its first batches. Rows in files (dlrn_source_open) pass
   through: shards of 100 GB take a few MB. What a growing file cannot hold yet, such as codes
   before they are counted, waits in a temporary file, in the folder that TMPDIR names or else
   beside the target.

   ---- THREADS ------------------------------------------------------------------------------------

   Each context has its own thread count. Its loops run on OpenMP's threads or, if it has one, on
   the host's through `parallel_for`. Calls on one context and on its objects must not overlap.
   Different contexts share nothing and may run at the same time. Callbacks (source, language model,
   progress, stop) run on the thread that made the call.

   Short loops stay on the calling thread. On a shared machine set OMP_WAIT_POLICY=passive (the
   command-line program and the makefile do): OpenMP threads otherwise spin while they wait for one
   another, and a small step can take 10 times as long.

   ---- SPEED --------------------------------------------------------------------------------------

   The cost of a step is dominated by the encoder's product: 2 * rows * d * F operations. Nearly all
   of its results are negative. The product is therefore first computed in the cheapest format that
   the processor offers (int8, bf16, int16, or f32 in another order), with a rigorous error bound.
   Features that are certainly off are dropped; the rest, the candidates, are recomputed in f32. If
   too many features survive, as in a new dictionary, f32 is used directly. The previous batch
   decides; the results are the same bits either way. Decoding and the gradients touch only active
   features: their cost grows with L0, not with F. (Adam still visits every weight.) For many calls
   with few rows, dlrn_encoder_prepare() keeps the encoder's weights in low precision.

   `make bench` measures your machine, as fractions of the hardware's limits; bench/README.md has a
   table. A plain `cc -O2` is enough: kernels for each instruction set are compiled by attributes
   and chosen at run time.

   ---- DETERMINISM AND NUMERICS -------------------------------------------------------------------

   The same inputs, configuration and seed give the same bits, for any number of threads, with or
   without OpenMP, and with any set of kernels. The order of every sum is set by the shapes of
   arrays (room kernels), never by threads or by tasks that end early. Fused multiply-adds are used
   in the same places in all sets. Random numbers are Philox4x32-10: a function of seed, stream and
   counter, so drawing from one stream never affects another. A run that was stopped and resumed
   from its checkpoint gives the same bits as one that was not, if the source can seek. Between
   compilers and C libraries the last bits may differ: log, cos, exp and pow (new weights, entropy,
   Adam's corrections) come from the C library. With -march= flags add -ffp-contract=off; otherwise
   the compiler may contract a * b + c and change the last bits.

   -ffast-math is an #error: it would remove the checks for NaN and infinity. Weights, moments and
   thresholds are f32; losses and metrics are summed in f64. f16, bf16 and f64 in files are
   converted to f32 when they are read; dictionaries are saved as f32.

   ---- ERRORS -------------------------------------------------------------------------------------

   Every function that can fail returns a dlrn_status, or NULL if it allocates or looks something
   up. 0 (DLRN_OK) means success, and compilers warn if it is ignored. dlrn_error(ctx) returns one
   line with the file, the tensor, what was expected and what was found; it stays valid until the
   next failure on that context. DLRN_END and DLRN_STOPPED are answers, not failures. The header
   never prints, exits or aborts. dlrn_context_create() has no context to report to: it returns
   DLRN_ERR_MEMORY, or DLRN_ERR_ARGUMENT for an unknown kernel set, a negative number of threads, an
   incomplete allocator or an incomplete dlrn_io.

   ---- WHAT IS TRUSTED ----------------------------------------------------------------------------

   Files are never trusted. Every size, offset, count and shape is checked against the file before
   memory is taken or read, and the memory taken is proportional to the file's size. The pickle
   reader accepts a whitelist of opcodes and names, enough to describe tensors. It imports, calls
   and executes nothing; any other opcode or name is an error that names the opcode and its offset.
   Sizes and shapes of arguments are checked; most pointers are not. Rows from a source are checked,
   too: their count, and that all numbers are finite (an error, unless dlrn_source_finite() filters
   them). Otherwise callbacks are trusted, and so are the pointers in a configuration or a
   descriptor. Files must not be modified while they are open. SECURITY.md lists the limits and says
   how to report a bug.

   ---- LIMITS -------------------------------------------------------------------------------------

   One machine, its CPU; no GPU. f32 arithmetic. Up to 2^31 - 1 features. Which families load and
   train: see FORMULA AND FAMILIES. The header does not run language models: examples/lm/ does, for
   GPT-NeoX and Pythia. Your own model needs two callbacks: a source of rows, and a cross-entropy
   with an intervention (examples/03_own_model.c). The library downloads
   nothing; examples/pretrained_dictionary_downloader.sh is a separate script.

   ---- COMPAT -------------------------------------------------------------------------------------

   Where the reference's code differs from its documentation or from the papers it cites, the
   default follows the documentation. `compat = DLRN_ON` in dlrn_train_config and dlrn_eval_config
   reproduces the code of March 2024, number for number. Checkpoints, config.json and reports say
   which of the two made them.

   matter            default                                compat
   resampling        a dead feature gets the direction of   no weight changes (the reference
                     a row, drawn by squared loss; its      assigns to a copy); only Adam's
                     encoder row has 0.2 x the mean norm    moments of dead encoder rows and their
                     of the living features' encoder rows;  biases become 0
                     its bias and moments become 0
   first resampling  after step resample_steps              after step 0, then every resample_steps
                                                            steps
   dead              silent for at least half a period      silent for more than half a period
   counting          each step counts once                  a logged step counts twice
   logged figures    of the step's own forward pass         of a second pass, at the new weights
   mse_loss of an    mean ||y - x_hat||^2                   (mean ||y - x_hat||)^2
   evaluation

   In both modes the loss of the recipe reference is the mean L2 distance (not its square) plus the
   penalty, because the published penalties were tuned for it. DLRN_LOSS_SQUARED is available; it
   needs other penalties.

   Five more differences hold in both modes. Ghost gradients cannot overflow. An atom of norm 0
   stays 0 (in the reference it becomes NaN). warmup_steps 0 means no warm-up. The buffer is drained
   to the last row (in the reference up to half of it is lost). A resumed run restores moments,
   counters and unread rows (in the reference only weights are saved).

   ---- COMING FROM dictionary_learning ------------------------------------------------------------

   AutoEncoder(d, F)                   dlrn_dictionary_create(ctx, &desc, &ae)
   AutoEncoder.from_pretrained(path)   dlrn_load(ctx, path, NULL, &ae)       a file, or its folder
   t.save(ae.state_dict(), path)       dlrn_save(ae, path)                   .pt, .safetensors, .npz
   IdentityDict(d)                     dlrn_dictionary_create, desc.family "IdentityDict"
   ae.encode(x)                        dlrn_encode, dlrn_encode_sparse
   ae.decode(f)                        dlrn_decode, dlrn_decode_sparse
   ae(x), ae(x, output_features=True)  dlrn_forward(ae, x, n, x_hat, NULL or &codes)
   ae.encoder.weight                   ae->param[DLRN_ENCODER]       [F][d]
   ae.encoder.bias                     ae->param[DLRN_ENCODER_BIAS]  [F]
   ae.decoder.weight                   ae->param[DLRN_DECODER]       [F][d], transposed
   ae.bias                             ae->param[DLRN_OUTPUT_BIAS]   [d]
   ActivationBuffer(data, model, ...)  dlrn_source, and cfg.buffer or dlrn_buffer_create
     n_ctxs, ctx_len                   capacity = n_ctxs * ctx_len rows
     in_batch_size, out_batch_size     read_rows = in_batch_size * ctx_len, batch_rows
   buffer io="in" | "out"              which rows the source delivers
   buffer io="in_to_out"               a source with a target: d_out is not 0
   trainSAE(buffer, ...)               dlrn_train; or dlrn_trainer_create, _step, _save, _resume
     lr, sparsity_penalty, steps,      fields of the same names in dlrn_train_config, same defaults
     warmup_steps, resample_steps,
     ghost_threshold, log_steps,
     save_steps
     entropy=True                      cfg.sparsity = DLRN_SPARSITY_ENTROPY
     save_dir                          dlrn_trainer_save and dlrn_save in the progress callback
   sae_loss(...)                       inside the step; its terms are fields of dlrn_train_stats
   ConstrainedAdam                     inside the step; dlrn_trainer_describe() returns the moments
   resample_neurons                    cfg.resample_steps
   evaluate(model, ae, buffer)         dlrn_evaluate(ae, &cfg, &source, &lm or NULL, ..., &metrics)
   loss_recovered(...)                 dlrn_loss_recovered, for one or several sites at once

   ---- FOR READERS OF THE CODE --------------------------------------------------------------------

   The path of a row through training, and the room of each stage. Start with room naive: the same
   step as plain loops.

       source -> buffer -> candidates -> select -> loss: x_hat, e = x_hat - y
                           lists: p > floor  f       |
                 optimiser <- backward <-------------'     auxiliary: dead features
                 new weights  sums of gathered rows        trainer: the order, and the states

   For drawings, see room candidates (lists, groups and waves) and room training (the states of a
   trainer).
   Words of the code, one meaning each:

   role        which parameter: DLRN_ENCODER, DLRN_DECODER, ...
   family      a name, a set of roles, a default formula
   formula     all that inference needs besides the parameters, as data
   layout      how a family's tensors are named and shaped in a file
   recipe      how a dictionary is trained
   pre         a pre-activation
   floor       the value that a pre must exceed to count: 0, its threshold, or the row's k-th best
               so far
   screen      a product in low precision that rules features out, with a bound that proves it
   candidate   a feature that the screen could not rule out on a row: recomputed in f32
   group       48 features (DLRNI_GROUP), the unit of encoding
   stretch     2048 rows of a batch (DLRNI_STRETCH)
   block       64 rows of a batch (DLRNI_BLOCK), decoded together
   list        the active entries of one group on one stretch, by row
   wave        the groups whose lists are in memory at one time
   slab        some blocks of rows that one task decodes
   cut         the worst entry that top-k keeps in a row
   visit       a task's pass over some groups: their entries, sorted by feature, and the sums of
               their gradients
   tile        the rows x features that one kernel call computes
   panel       columns of a matrix packed for a product: [k][48]
   task        one call of a body of dlrn_parallel_for; no two tasks write to the same memory

   ---- HOW TO ADD ---------------------------------------------------------------------------------

   A family of parts that exist: two table rows, dlrni_family_table (room dictionary: roles,
   formula, first values) and dlrni_layout_table (room layouts: its files). It then loads, saves,
   encodes, decodes and evaluates. Training needs a recipe (below). What a family may need beyond
   that:
   - A new parameter: a line of DLRN_ROLE_LIST (room api-dictionary). Allocation, copies, moments,
     checkpoints and the checks of files follow. First values: dlrni_start_feature, or
     dlrn_dictionary_create if it has no row for each feature. Its gradient: if it is one number for
     each feature, a recipe's `slopes`; if it is a matrix of F rows, dlrni_visit_stretch (room
     backward), which sums those of encoder and decoder; otherwise dlrni_bias_gradients and the loop
     over roles in dlrni_backward, which know the output bias and the center. What a revived feature
     starts with: dlrni_revive (room resampling).
   - A new center: dlrn_center, dlrni_center_of (room candidates), its gradient in
     dlrni_bias_gradients (room backward) and, where it needs equal widths, dlrni_formula_of (room
     dictionary).
   - A new gate: dlrn_gate, and two functions in room screen: dlrni_thresholds, the floor that a
     pre-activation must exceed, and dlrni_value_of, the value of one that does. Kernels, screens
     and lists need no change. For training, the recipe's `value` and `slopes`; if floors are
     trained, dlrni_update_view (room trainer), which lowers them to estimate their gradient. A gate
     without an encoder is like the identity's (dlrni_collect_identity, dlrni_encode_few).
   - A new selection: dlrn_select, dlrni_selects (room candidates), room select for many rows and
     dlrni_few_select (room encode) for few. A screen holds if at most one of a feature's floors is
     not 0 (dlrni_screenable).
   - The program's words for a new center or gate: put_formula in examples/program/recipes.h.

   A layout: a row of dlrni_layout_table. Shapes are in the letters of DLRN_ROLE_LIST and say how
   each tensor is stored ("IF": transposed; with O, files of transcoders fit, too). The first row of
   a family is the one that dlrn_save writes, unless dict->layout names another. If two rows have
   the same tensors, files of either state their class, and load with it alone. Where needed: a
   number that is not a parameter, DLRNI_IS_... with dlrni_read_number and dlrni_number_to_file
   (room load); a file name, dlrni_folder_files (and no longer in dlrni_other_folder_table); a key
   of a config, dlrni_config_key_table.

   A recipe: a block in room recipes and a row of dlrni_recipe_table. It fills in what differs from
   the reference: defaults, penalty and its slope, an auxiliary loss (room auxiliary), what happens
   after a step; and its words: the loss, and the settings that it uses, which the program reads. A
   new setting is a field of dlrn_train_config, a line of the list in room settings with its range,
   its default if that is not 0, and a flag of the program.

   A kernel set: a block in room kernel-bodies, whose head lists what a block must have, and a row
   of dlrni_sets (room kernels). Another kind of processor also needs a macro like DLRNI_X86 (room
   platform). Kernels are shared; the tests compare every set with the scalar one, bit for bit.
*/

#ifndef DICTLEARN_H
#define DICTLEARN_H

/* ------------------------------------------------------------------------------------------ */
// >>config
/* Linkage and version. The macros that you may define are listed in the manual, under OPTIONS. */

#include <stddef.h>
#include <stdint.h>

#define DLRN_VERSION_STRING "0.2.0"
#define DLRN_VERSION 200 /* major * 10000 + minor * 100 + patch */

/* DICTLEARN_STATIC may be defined for a whole project. In a file without the implementation nothing
   can be static: compilers would warn of each function that is declared and never defined. */
#ifndef DLRN_API
#if !defined(DICTLEARN_STATIC)
#define DLRN_API extern
#elif !defined(DICTLEARN_IMPLEMENTATION)
#define DLRN_API extern
#define DLRNI_NOT_STATIC
#elif defined(__GNUC__)
#define DLRN_API __attribute__((unused)) static
#else
#define DLRN_API static
#endif
#endif

#if defined(__GNUC__) || defined(__clang__)
#define DLRN_CHECK __attribute__((warn_unused_result))
#define DLRN_PRINTF(fmt, args) __attribute__((format(printf, fmt, args)))
#else
#define DLRN_CHECK
#define DLRN_PRINTF(fmt, args)
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* ------------------------------------------------------------------------------------------ */
// >>types

/* These rules hold for all declarations, which mention only exceptions to them.
   NULL      Pointers must not be NULL unless the declaration says what NULL means. Every _destroy,
             _free, _close and _abort accepts NULL.
   shapes    x [n][d] is n rows of d numbers, row by row. F is the number of features. A negative n
             is DLRN_ERR_ARGUMENT.
   memory    Inputs are borrowed for the call; texts and configurations are copied. What a call
             creates (`out`) belongs to the caller, who destroys it before its context. A pointer
             that is returned as const is borrowed from the object. After a failure *out is NULL.
   errors    Any call that returns a status may return DLRN_ERR_MEMORY, and DLRN_ERR_ARGUMENT for
             arguments out of range. dlrn_error(ctx) gives the message.
   verbs     Objects: _create, _destroy. Files: _open or _create, _close. Plain blocks of memory:
             _alloc, _read or _parse, then dlrn_free(). _describe returns what an object is and
             holds, as a struct; its pointers are borrowed.
   threads   One call at a time on a context and the objects made with it. Functions that take
             neither (dlrn_name, dlrn_recipe, all _defaults, dlrn_view, dlrn_rng_...) may be called
             from any thread at any time. */

/* Every function that can fail returns one of these. dlrn_error(ctx) gives the message: the file or
   function, what was expected and what was found. */
#define DLRN_STATUS_LIST(X)                                                                        \
    X(DLRN_OK, "done")                                                                             \
    X(DLRN_END, "the source has no more rows")                                                     \
    X(DLRN_STOPPED, "a callback asked to stop")                                                    \
    X(DLRN_ERR_ARGUMENT, "an argument is out of range")                                            \
    X(DLRN_ERR_MEMORY, "out of memory")                                                            \
    X(DLRN_ERR_IO, "a file cannot be opened, read or written")                                     \
    X(DLRN_ERR_FORMAT, "a file is malformed")                                                      \
    X(DLRN_ERR_UNSUPPORTED, "a file is well formed but of a kind that is not supported")           \
    X(DLRN_ERR_SHAPE, "shapes do not agree")                                                       \
    X(DLRN_ERR_VALUE, "a number is not finite")                                                    \
    X(DLRN_ERR_CALLBACK, "a callback failed")

typedef enum dlrn_status {
#define DLRN_STATUS_ENUM(name, text) name,
    DLRN_STATUS_LIST(DLRN_STATUS_ENUM)
#undef DLRN_STATUS_ENUM
        DLRN_STATUS_COUNT
} dlrn_status;

/* Element types of files and of the buffer's store: X(name, name in safetensors, bytes, code in
   .npy, name of torch's storage, name of torch's dtype). "" means that the format has no such type.
   Rows, codes and parameters in memory are always f32. */
#define DLRN_DTYPE_LIST(X)                                                                         \
    X(DLRN_F32, "F32", 4, "f4", "Float", "float32")                                                \
    X(DLRN_F16, "F16", 2, "f2", "Half", "float16")                                                 \
    X(DLRN_BF16, "BF16", 2, "", "BFloat16", "bfloat16")                                            \
    X(DLRN_F64, "F64", 8, "f8", "Double", "float64")                                               \
    X(DLRN_I64, "I64", 8, "i8", "Long", "int64")                                                   \
    X(DLRN_I32, "I32", 4, "i4", "Int", "int32")                                                    \
    X(DLRN_I16, "I16", 2, "i2", "Short", "int16")                                                  \
    X(DLRN_I8, "I8", 1, "i1", "Char", "int8")                                                      \
    X(DLRN_U64, "U64", 8, "u8", "", "uint64")                                                      \
    X(DLRN_U32, "U32", 4, "u4", "", "uint32")                                                      \
    X(DLRN_U16, "U16", 2, "u2", "", "uint16")                                                      \
    X(DLRN_U8, "U8", 1, "u1", "Byte", "uint8")                                                     \
    X(DLRN_BOOL, "BOOL", 1, "b1", "Bool", "bool")

typedef enum dlrn_dtype {
#define DLRN_DTYPE_ENUM(name, text, bytes, npy, storage, torch) name,
    DLRN_DTYPE_LIST(DLRN_DTYPE_ENUM)
#undef DLRN_DTYPE_ENUM
        DLRN_DTYPE_COUNT
} dlrn_dtype;

/* A setting that is on or off. */
typedef enum dlrn_switch { DLRN_OFF, DLRN_ON } dlrn_switch;

/* A context holds what objects share: allocator, threads, kernels, files, the last error. Calls on
   one context and on the objects made with it must not overlap; any number of contexts may be used
   at the same time. */
typedef struct dlrn_context dlrn_context;

/* The body of a loop. dlrn_parallel_for, or the host's parallel_for, calls it once for each task in
   [0, n_tasks), in any order, on any thread. worker is in [0, threads); the host must not run two
   calls with the same worker at the same time. */
typedef void (*dlrn_parallel_body)(void *arg, int64_t task, int worker);

/* Files of a host: an archive in memory, a browser's storage, a test. Every file that a call on the
   context reads or writes goes through these callbacks; a path is passed on unchanged. Set the
   first five, or none. A callback that fails calls dlrn_fail(ctx, DLRN_ERR_IO, ...) with the
   reason, and returns what dlrn_fail returned. An object keeps at most four files open (a CSR
   writer: its file and three temporary ones). */
typedef struct dlrn_io {
    /* Opens a file for reading, from its start. If `writing` is set, creates a new file, which is
       invisible until it is closed with `keep`. */
    dlrn_status (*open_file)(void *user, dlrn_context *ctx, const char *path, int writing,
                             void **file);
    /* Reads up to `size` bytes. *got: how many; 0 only at the end of the file. */
    dlrn_status (*read_file)(void *user, dlrn_context *ctx, void *file, void *bytes, size_t size,
                             size_t *got);
    /* Writes all `size` bytes or fails. */
    dlrn_status (*write_file)(void *user, dlrn_context *ctx, void *file, const void *bytes,
                              size_t size);
    /* Closes and frees the file, even on failure. keep 1: publish what was written under its
       path, atomically, so that it survives a power cut. keep 0: discard it, and leave any older
       file at that path in place. Files that were read are closed with keep 0. */
    dlrn_status (*close_file)(void *user, dlrn_context *ctx, void *file, int keep);
    /* What is at a path: 0 nothing, 1 a file, 2 a folder. */
    int (*file_exists)(void *user, const char *path);
    /* These two may be NULL. Without them, a .npy whose number of rows is not known in advance, and
       CSR codes, are collected in memory.
       rewind_file: goes back to the start; returns 0 if it cannot.
       temporary_file: a file that can be written, rewound and read back, and that vanishes when it
       is closed; `path` names the file that it is for. */
    int (*rewind_file)(void *user, void *file);
    dlrn_status (*temporary_file)(void *user, dlrn_context *ctx, const char *path, void **file);
    void *user; /* passed to each callback; must outlive the context */
} dlrn_io;

/* How to make a context. All zero is the default. */
typedef struct dlrn_context_config {
    int threads;         /* workers. 0: all cores that OpenMP sees, or 1 without OpenMP */
    const char *kernels; /* name of a kernel set (dlrn_context_info lists them). NULL or "auto": the
                            environment variable DICTLEARN_KERNELS, or else the best set that this
                            processor can run */
    /* The allocator. Set both or neither (NULL: DICTLEARN_MALLOC and DICTLEARN_FREE, by default
       malloc and free). alloc returns a block of `size` bytes, aligned as malloc() aligns, or NULL
       if there is no memory. Both are called on the thread that made the call. */
    void *(*alloc)(void *user, size_t size);
    void (*release)(void *user, void *p);
    /* Runs body(arg, task, worker) for all tasks, and returns when they are done; set `threads` to
       the number of its workers. NULL: OpenMP, or the calling thread. */
    void (*parallel_for)(void *user, int64_t n_tasks, dlrn_parallel_body body, void *arg);
    /* Asked now and then during a resampling, which may take minutes. If it returns anything but 0,
       the call ends with DLRN_STOPPED. NULL: a resampling is never stopped. */
    int (*stop)(void *user);
    void *user; /* passed to the callbacks above; must outlive the context */
    dlrn_io io; /* all zero: the C library's files, or none with DICTLEARN_NO_STDIO */
} dlrn_context_config;

/* What a context runs on. Its pointers are valid as long as the context. */
typedef struct dlrn_context_info {
    const char *kernels;          /* the kernel set in use                                    */
    const char *const *available; /* the sets that this processor can run, scalar first; NULL
                                     after the last                                           */
    int threads;                  /* workers of dlrn_parallel_for                             */
    const char *text; /* "dictlearn 0.2.0, kernels avx512 of scalar avx2 avx512, 2 threads
                         (OpenMP)" */
} dlrn_context_info;

/* A matrix of f32: element (i, j) is data[i * stride + j]. It is a view of your memory (dlrn_view)
   or owns a block (dlrn_tensor_alloc). */
typedef struct dlrn_tensor {
    float *data; /* [rows][cols], rows `stride` floats apart */
    int64_t rows, cols, stride;
} dlrn_tensor;

/* Feature activations, compressed by row (CSR). Row i holds the features col[k] with the values
   val[k], for k from row_ptr[i] to row_ptr[i + 1] - 1; columns ascend. Zero-initialise it and pass
   it to any number of calls, which reuse its memory. Free it with dlrn_sparse_free before you
   destroy the context that last filled it. */
typedef struct dlrn_sparse {
    int64_t rows, cols;       /* n, F                                        */
    int64_t *row_ptr;         /* [rows + 1], owned                           */
    int32_t *col;             /* [row_ptr[rows]] feature, owned              */
    float *val;               /* [row_ptr[rows]] its value, owned            */
    int64_t row_cap, nnz_cap; /* private: what is allocated                  */
    dlrn_context *ctx;        /* private: the context that allocated it      */
} dlrn_sparse;

/* ------------------------------------------------------------------------------------------ */
// >>api-context

/* Creates a context. config NULL: all zero. If this fails there is no context to hold a message;
   the status is DLRN_ERR_MEMORY, or DLRN_ERR_ARGUMENT for a kernel set that is unknown or that this
   processor cannot run, a negative number of threads, an allocator with only one of its functions,
   or a dlrn_io that lacks one of the first five. */
DLRN_API DLRN_CHECK dlrn_status dlrn_context_create(const dlrn_context_config *config,
                                                    dlrn_context **out);
/* Destroys a context. Destroy the objects made with it first. */
DLRN_API void dlrn_context_destroy(dlrn_context *ctx);
/* The kernels and threads of a context. */
DLRN_API dlrn_context_info dlrn_context_describe(const dlrn_context *ctx);

/* The message of the last error, one line of UTF-8; "" if there was none. Valid until the next call
   on this context that fails. ctx NULL: a fixed text, for a context that could not be created. */
DLRN_API const char *dlrn_error(const dlrn_context *ctx);
/* Sets the message, for callbacks and programs of your own: formats it as printf does, makes it one
   line of at most 1023 bytes, and returns s. */
DLRN_API DLRN_PRINTF(3, 4) dlrn_status
    dlrn_fail(dlrn_context *ctx, dlrn_status s, const char *format, ...);

/* The enumerations whose values have names. Beside each, an example. */
typedef enum dlrn_names {
    DLRN_NAMES_STATUS, /* "shapes do not agree": a text; the others are the names used in files */
    DLRN_NAMES_DTYPE,  /* "F32" */
    DLRN_NAMES_ROLE,   /* "encoder_weight" */
    DLRN_NAMES_NORMALISE, /* "layer" */
    DLRN_NAMES_CENTER,    /* "output_bias" */
    DLRN_NAMES_GATE,      /* "relu" */
    DLRN_NAMES_SELECT,    /* "top_k" */
#ifndef DICTLEARN_NO_TRAINING
    DLRN_NAMES_LOSS,    /* "norm" */
    DLRN_NAMES_SPARSITY /* "l1" */
#endif
} dlrn_names;
/* The name of a value, a string literal: dlrn_name(DLRN_NAMES_DTYPE, DLRN_F32) is "F32". "?" if
   there is no such value. */
DLRN_API const char *dlrn_name(dlrn_names which, int value);

/* ------------------------------------------------------------------------------------------ */
// >>api-dictionary

/* A dictionary's parameters, by role: X(role, name, rows, columns), f32, row by row. F: features,
   I: d_in, O: d_out, S: skip_rows. Which of them a dictionary has depends on its family; absent
   ones are NULL. */
#define DLRN_ROLE_LIST(X)                                                                          \
    X(DLRN_ENCODER, "encoder_weight", 'F', 'I') /* one row per feature                    */       \
    X(DLRN_ENCODER_BIAS, "encoder_bias", 'F', '1')                                                 \
    X(DLRN_DECODER, "decoder_weight", 'F', 'O')    /* one atom per row                       */    \
    X(DLRN_OUTPUT_BIAS, "bias", 'O', '1')          /* added to the sum of atoms              */    \
    X(DLRN_INPUT_BIAS, "input_bias", 'I', '1')     /* a center that is not the output bias   */    \
    X(DLRN_THRESHOLD, "threshold", 'F', '1')       /* of the gates "jump" and "jump_signed"  */    \
    X(DLRN_SKIP, "skip", 'S', 'I')                 /* a linear map of x, added to x_hat      */    \
    X(DLRN_LOG_SCALE, "log_scale", 'F', '1')       /* a value is exp(log_scale) times that   */    \
    X(DLRN_VALUE_BIAS, "value_bias", 'F', '1')     /* gate "gated": added to the value       */    \
    X(DLRN_GATE_ENCODER, "gate_encoder", 'F', 'I') /* a second encoder (few families)     */       \
    X(DLRN_GATE_BIAS, "gate_bias", 'F', '1')       /* its bias                            */

typedef enum dlrn_role {
#define DLRN_ROLE_ENUM(role, name, rows, cols) role,
    DLRN_ROLE_LIST(DLRN_ROLE_ENUM)
#undef DLRN_ROLE_ENUM
        DLRN_ROLE_COUNT
} dlrn_role;

/* What happens to each row of x first, and is undone on x_hat: X(value, name). The lists below have
   the same form. For rows of several layers each layer counts as a row. */
#define DLRN_NORMALISE_LIST(X)                                                                     \
    X(DLRN_NORMALISE_NONE, "none")                                                                 \
    X(DLRN_NORMALISE_NORM, "norm") /* x sqrt(d) / ||x||                                 */         \
    X(DLRN_NORMALISE_LAYER,                                                                        \
      "layer") /* (x - mean) / (std + 1e-5); std of d - 1; x_hat: * std + mean */

/* What is subtracted from scale_in * x before the encoder. */
#define DLRN_CENTER_LIST(X)                                                                        \
    X(DLRN_CENTER_NONE, "none")                                                                    \
    X(DLRN_CENTER_OUTPUT_BIAS, "output_bias") /* the same bias that is added to x_hat */           \
    X(DLRN_CENTER_INPUT_BIAS, "input_bias")

/* The value f of a feature with pre-activation p. The threshold is the parameter, or for all
   features formula.threshold where there is no such parameter. */
#define DLRN_GATE_LIST(X)                                                                          \
    X(DLRN_GATE_RELU, "relu")               /* p if p > 0, otherwise 0                 */          \
    X(DLRN_GATE_JUMP, "jump")               /* p if p > max(threshold, 0), otherwise 0 */          \
    X(DLRN_GATE_JUMP_SIGNED, "jump_signed") /* p if p > threshold, also a negative p   */          \
    X(DLRN_GATE_GATED, "gated") /* v = exp(LOG_SCALE) (p - ENCODER_BIAS) + VALUE_BIAS if p > 0   \
                                     and v > 0, otherwise 0 */ \
    X(DLRN_GATE_LINEAR, "linear")     /* p, whatever its sign                    */                \
    X(DLRN_GATE_IDENTITY, "identity") /* x itself: there is no encoder           */

/* Which features are kept. Among equal ones, those with the lower index. */
#define DLRN_SELECT_LIST(X)                                                                        \
    X(DLRN_SELECT_ALL, "all")                                                                      \
    X(DLRN_SELECT_TOP_K, "top_k")         /* the k largest of a row                          */    \
    X(DLRN_SELECT_ABS_TOP_K, "abs_top_k") /* the k largest of a row by absolute value        */    \
    X(DLRN_SELECT_GROUP_MAX, "group_max") /* the largest of each of k groups of F / k        */    \
    X(DLRN_SELECT_BATCH_TOP_K, "batch_top_k") /* the k n largest of the n rows of one call */

#define DLRN_VALUE(value, name) value,
typedef enum dlrn_normalise { DLRN_NORMALISE_LIST(DLRN_VALUE) } dlrn_normalise;
typedef enum dlrn_center { DLRN_CENTER_LIST(DLRN_VALUE) } dlrn_center;
typedef enum dlrn_gate { DLRN_GATE_LIST(DLRN_VALUE) } dlrn_gate;
typedef enum dlrn_select { DLRN_SELECT_LIST(DLRN_VALUE) } dlrn_select;
#undef DLRN_VALUE

/* All that inference needs besides the parameters, as plain data. In words: normalise and scale x,
   subtract the center, multiply by the encoder rows, gate, select, add up the atoms.
       z = scale_in normalise(x)
       p = ENCODER (z - center) + ENCODER_BIAS       f = exp(LOG_SCALE) select(gate(p))
       x_hat = undo_normalise(scale_out (f DECODER + OUTPUT_BIAS + SKIP z)) */
typedef struct dlrn_formula {
    dlrn_normalise normalise;
    dlrn_center center;
    dlrn_gate gate;
    dlrn_select select;
    int64_t k;        /* features that the selections by k keep; otherwise 0                  */
    double threshold; /* gates jump and jump_signed: of all features, where there is no parameter
                         DLRN_THRESHOLD. Top-k: running mean, over training, of the smallest value
                         kept in a row; kept for files. -1: not known                         */
    double scale_in, scale_out; /* 1 unless a file or the caller says otherwise               */
    dlrn_switch standardise; /* ON: selections compare (p - mean) / (std + 1e-6), by feature, over
                                   the rows of one call                                       */
    dlrn_switch repeats;     /* MatchingPursuit: ON: a feature may be picked again; OFF: that ends
                            the row                                                           */
} dlrn_formula;

typedef struct dlrn_dictionary dlrn_dictionary;

/* A part of a dictionary of several layers: a dictionary of its own on a window of each row. It
   reads x[in_at .. in_at + d_in), writes features[feature_at ..), and adds to x_hat[out_at ..). */
typedef struct dlrn_part {
    dlrn_dictionary *dict; /* owned */
    int64_t in_at, out_at, feature_at;
} dlrn_part;

/* A dictionary: x [n][d_in] -> f [n][features] -> x_hat [n][d_out]. Read the fields at any time.
   Between calls you may write to the parameters that the dictionary owns, and to its formula; call
   dlrn_dictionary_changed() afterwards.
   A crosscoder's row holds the activations of several layers or models one after another: d_in is
   layers * d. If it has one set of features for all, it is a plain dictionary on such rows. A
   cross-layer transcoder, and a crosscoder with features of its own for each layer, has `parts`:
   then only DLRN_OUTPUT_BIAS is set here, and the parts hold the rest. */
struct dlrn_dictionary {
    dlrn_context *ctx;             /* borrowed                                           */
    const char *family;            /* "AutoEncoder", "AutoEncoderTopK", ...; static      */
    int64_t d_in, d_out, features; /* features is F                                      */
    float *param[DLRN_ROLE_COUNT]; /* by role, shapes as above; NULL where the family has no
                                      such parameter */
    dlrn_formula formula;   /* with parts: `select` is over all features of a row; the parts' own
                               formulas come first */
    int64_t skip_rows;      /* SKIP is [skip_rows][d_in] and adds to the first skip_rows of x_hat */
    int64_t layers;         /* of x and x_hat: rows are [layers][d_in / layers]; 1: plain         */
    int64_t feature_layers; /* features are [feature_layers][features / feature_layers]; 1: plain */
    int64_t n_parts;        /* 0: plain                                                           */
    dlrn_part *part;        /* [n_parts], owned                                                   */
    int64_t *group_sizes;   /* [n_groups] features of each nested group (Matryoshka), or NULL     */
    int64_t n_groups;
    const char *layout; /* the library whose layout it was loaded from (static), or NULL          */
    char note[256];     /* what the file leaves open and a reader must know; "": nothing          */
    unsigned borrowed;  /* private: bit r is set if param[r] is borrowed */
    int64_t version;    /* private: counts changes                       */
};

/* Describes a new dictionary. Zero-initialise it, then set what differs. */
typedef struct dlrn_dictionary_desc {
    const char *family;  /* NULL: "AutoEncoder"; any name of the manual's table of families.
                            "IdentityDict" has neither parameters nor `features`                  */
    int64_t d_in, d_out; /* widths of x and x_hat; d_out 0: the same as d_in                      */
    int64_t features;    /* F, from 1 to 2^31 - 1                                                 */
    int64_t k;           /* AutoEncoderTopK: features kept per row, from 1 to F; 0: 64            */
    uint64_t seed;       /* the same seed gives the same bits, for any number of threads          */
} dlrn_dictionary_desc;

/* Creates a dictionary with random weights: atoms drawn from a normal distribution and scaled to
   unit norm, output bias 0. In an AutoEncoder, encoder and encoder bias are uniform in
   +-1/sqrt(d_in), as PyTorch draws them. In the other families the encoder starts as a copy of the
   decoder (where d_in = d_out), with biases 0 and thresholds 0.001, as in dictionary_learning
   0.1.0. DLRN_ERR_ARGUMENT: an unknown family, or a size or k out of range. */
DLRN_API DLRN_CHECK dlrn_status dlrn_dictionary_create(dlrn_context *ctx,
                                                       const dlrn_dictionary_desc *desc,
                                                       dlrn_dictionary **out);
DLRN_API void dlrn_dictionary_destroy(dlrn_dictionary *dict);
/* Call this after you write to parameters: encoders then discard what they derived from the old
   ones. */
DLRN_API void dlrn_dictionary_changed(dlrn_dictionary *dict);

/* What a file does not say. Zero-initialise it, then set what an error or a note asks for. */
typedef struct dlrn_load_options {
    const char *layout; /* the library that wrote the file ("saelens", ...: the manual's table of
                           layouts), or the class ("AutoEncoderTopK"); NULL: recognised           */
    int64_t k;         /* features kept per row; 0: as the file says                              */
    double norm_scale; /* what x was multiplied with in training; 0: as the file says             */
    double threshold;  /* of all features, where the file has none; 0: as the file says           */
} dlrn_load_options;

/* Reads a dictionary from a file (.pt, .safetensors, .npz), or from a folder that contains one
   (ae.pt and config.json, ...). The format is recognised by content, the layout by the names and
   shapes of the tensors and by the config beside the file. Nothing is guessed: if several layouts
   fit, or a number is missing, the error says which, and which option states it. options: NULL for
   none. Names of tensors may have a prefix ("module.", "state_dict.", ...) if the file holds only
   one dictionary. In the folder of a run, the one trainer_N is read; several are an error.
   DLRN_ERR_IO; _FORMAT: malformed; _UNSUPPORTED: another library's layout, or several that fit;
   _SHAPE: tensors that do not fit each other or the config; _VALUE: a weight that is not finite. */
DLRN_API DLRN_CHECK dlrn_status dlrn_load(dlrn_context *ctx, const char *path,
                                          const dlrn_load_options *options, dlrn_dictionary **out);
/* The same from the bytes of a file in memory. `name` takes the place of the path in errors.
   Parameters are borrowed where the file holds them as aligned f32 in the order that this library
   uses; the others are copied. So keep `bytes` until the dictionary is destroyed, and do not write
   to its parameters. */
DLRN_API DLRN_CHECK dlrn_status dlrn_load_memory(dlrn_context *ctx, const void *bytes, size_t size,
                                                 const char *name, const dlrn_load_options *options,
                                                 dlrn_dictionary **out);
/* Copies the path of the file that dlrn_load would read for `path` (a file or a folder) into file
   [size], and that of its config into config [size]; "" for one that does not exist. DLRN_ERR_IO:
   there is neither; _ARGUMENT: a path longer than `size` allows; _UNSUPPORTED: the folder is
   another library's, and `file` names its weights, or it holds several dictionaries (trainer_0,
   trainer_1, ...), and `file` is "". */
DLRN_API DLRN_CHECK dlrn_status dlrn_find_dictionary(dlrn_context *ctx, const char *path,
                                                     char *file, char *config, size_t size);
/* Writes a dictionary, as f32: in the layout that dict->layout names if that is one of its family,
   otherwise in the family's first. The path's suffix sets the format: .pt (opens in
   dictionary_learning and with torch.load(weights_only=True)), .safetensors, .npz. Atomic: an older
   file stays until the new one is complete; a pipe or device is written to directly.
   DLRN_ERR_ARGUMENT: another suffix; _VALUE: a weight that is not finite; _UNSUPPORTED: parameters
   or a formula that the layout cannot hold, or an identity, which has no weights; _IO. */
DLRN_API DLRN_CHECK dlrn_status dlrn_save(const dlrn_dictionary *dict, const char *path);

/* ------------------------------------------------------------------------------------------ */
// >>api-encode

/* An encoder owns scratch memory and adapts to how dense the data is. After its first batches it
   allocates nothing, if the caller reuses the codes. The dictionary is borrowed and must outlive
   it. */
typedef struct dlrn_encoder dlrn_encoder;
DLRN_API DLRN_CHECK dlrn_status dlrn_encoder_create(const dlrn_dictionary *dict,
                                                    dlrn_encoder **out);
DLRN_API void dlrn_encoder_destroy(dlrn_encoder *e);
/* Packs the weights into the low-precision format of SPEED, which takes a quarter to a half of
   their bytes. Calls with few rows are then faster: one row of 512 x 32768 takes 0.39 times as long
   with avx512vnni, 0.75 times with avx512bf16. Does nothing where that would not pay. The results
   are the same bits. After dlrn_dictionary_changed() the next call packs again. */
DLRN_API DLRN_CHECK dlrn_status dlrn_encoder_prepare(dlrn_encoder *e);
/* Encodes x [n][d_in]. Each result may be NULL if it is not wanted: f [n][F], all features; codes,
   the active ones as CSR (earlier contents are replaced); x_hat [n][d_out], the reconstruction. x
   is not checked: a NaN in a row shows up in the results of that row alone. */
DLRN_API DLRN_CHECK dlrn_status dlrn_encoder_run(dlrn_encoder *e, const float *x, int64_t n,
                                                 float *f, dlrn_sparse *codes, float *x_hat);

/* Easy calls: each creates and discards an encoder. x [n][d_in], f [n][F]. */
DLRN_API DLRN_CHECK dlrn_status dlrn_encode(const dlrn_dictionary *dict, const float *x, int64_t n,
                                            float *f);
DLRN_API DLRN_CHECK dlrn_status dlrn_encode_sparse(const dlrn_dictionary *dict, const float *x,
                                                   int64_t n, dlrn_sparse *codes);
/* Reconstructs x [n][d_in] as x_hat [n][d_out]. codes: also returns the active features; or
   NULL. */
DLRN_API DLRN_CHECK dlrn_status dlrn_forward(const dlrn_dictionary *dict, const float *x, int64_t n,
                                             float *x_hat, dlrn_sparse *codes);
/* x_hat [n][d_out] from f [n][F], or x_hat [codes->rows][d_out] from codes with cols = F.
   DLRN_ERR_UNSUPPORTED: a dictionary with a skip, whose output also depends on x; _SHAPE or
   _ARGUMENT: codes that do not fit the dictionary. */
DLRN_API DLRN_CHECK dlrn_status dlrn_decode(const dlrn_dictionary *dict, const float *f, int64_t n,
                                            float *x_hat);
DLRN_API DLRN_CHECK dlrn_status dlrn_decode_sparse(const dlrn_dictionary *dict,
                                                   const dlrn_sparse *codes, float *x_hat);
/* Frees codes and leaves them zeroed, ready for use. */
DLRN_API void dlrn_sparse_free(dlrn_sparse *codes);

#ifndef DICTLEARN_NO_TRAINING
/* ------------------------------------------------------------------------------------------ */
// >>api-buffer

/* Where rows come from. The callbacks run on the thread that made the call. The number of rows that
   read returns is checked, and so is that all of them are finite.
   read      Writes up to max_rows consecutive rows to x [max_rows][d_in] and, with a target, to
             y [max_rows][d_out]. *n: how many, at least 1 with DLRN_OK. Returns DLRN_END with *n 0
             when no row is left, DLRN_STOPPED to stop the run, DLRN_ERR_CALLBACK on failure. After
             DLRN_STOPPED buffers and trainers are intact: save them, or call again.
   position  Writes a number that identifies the next row.
   seek      Goes back to such a position. It serves to resume a run: set both or neither (NULL).
   error     The reason why read failed; may be NULL.
   destroy   Called once, by the source's owner; may be NULL. */
typedef struct dlrn_source {
    int64_t d_in;  /* length of a row x                                               */
    int64_t d_out; /* length of its target y; 0: no target, x itself is reconstructed */
    dlrn_status (*read)(void *user, int64_t max_rows, float *x, float *y, int64_t *n);
    dlrn_status (*position)(void *user, uint64_t *position);
    dlrn_status (*seek)(void *user, uint64_t position);
    const char *(*error)(void *user);
    void (*destroy)(void *user);
    void *user;        /* passed to each callback                                          */
    int64_t rows;      /* of one epoch, at most; 0: not known                              */
    int64_t positions; /* consecutive rows that are one document; 0: not known, or they differ */
} dlrn_source;

/* Whether an object destroys the source that it is given. The struct is copied in both cases. */
typedef enum dlrn_ownership {
    DLRN_BORROWED, /* no: destroy it yourself, after the object                        */
    DLRN_OWNED     /* yes, in the object's _destroy; not if its _create fails          */
} dlrn_ownership;

/* A source of arrays in memory, which are borrowed until it is destroyed: x [rows][d_in], and the
   targets y [rows][d_out], or NULL and d_out 0. epochs: how many times the rows are read; 0:
   without end. */
DLRN_API DLRN_CHECK dlrn_status dlrn_source_from_array(dlrn_context *ctx, const float *x,
                                                       const float *y, int64_t rows, int64_t d_in,
                                                       int64_t d_out, int64_t epochs,
                                                       dlrn_source *out);
/* Which files a source reads, and how. Borrowed for the call. */
typedef struct dlrn_source_desc {
    const char *const *paths; /* [n_paths] .npy, .npz, .pt or .safetensors; "-": standard input */
    int64_t n_paths;          /* several files (shards) are one sequence of rows, in this order */
    const char *const *target_paths; /* [n_target_paths] the same for y; NULL: no target */
    int64_t n_target_paths;
    const char *tensor; /* its name in each file; NULL: the only one of floats that has rows */
    dlrn_dtype dtype;   /* DLRN_BF16: U16 holds the bits of bf16 numbers. 0: as the files say */
    int64_t epochs;     /* how many times the rows are read; 0: without end */
} dlrn_source_desc;

/* A source of arrays in files: f16, bf16 (in .npy: V2), f32 or f64, of two or more dimensions. The
   last one is d; the others number the rows. If they are [documents, positions, d], `positions` is
   set. One file is open at a time, mapped where that is possible; otherwise a .npy is read as a
   stream. Memory does not grow with the files, which must not change while the source is open. A
   pipe holds a .npy in C order; it is read once (epochs 1), and seek only goes forward.
   DLRN_ERR_IO, _FORMAT; _UNSUPPORTED: integers; _SHAPE: files that do not agree. */
DLRN_API DLRN_CHECK dlrn_status dlrn_source_open(dlrn_context *ctx, const dlrn_source_desc *desc,
                                                 dlrn_source *out);
/* A filter: leaves out the rows of `source` whose x or y holds a number that is not finite.
   *skipped counts them (may be NULL; must outlive the filter). Reading fails with DLRN_ERR_VALUE
   after a million such rows one after another. Positions (of the callback, not of documents) are
   those of `source`. `out` may be `source`. */
DLRN_API DLRN_CHECK dlrn_status dlrn_source_finite(dlrn_context *ctx, const dlrn_source *source,
                                                   dlrn_ownership ownership, int64_t *skipped,
                                                   dlrn_source *out);
/* Calls the source's destroy, if there is one, and zeroes the struct. */
DLRN_API void dlrn_source_destroy(dlrn_source *source);

/* The activation buffer holds up to `capacity` rows. It is refilled from the source when fewer than
   half are unread, and hands out rows drawn uniformly without replacement, in constant time per
   row. At the end of the source it hands out all rows that it still holds. With shuffle OFF it
   hands out rows in the source's order and holds only a batch, or the sample of a resampling. The
   last column: defaults. */
typedef struct dlrn_buffer_config {
    int64_t capacity;    /* rows that it can hold                                      3840000 */
    int64_t read_rows;   /* rows requested from the source in one call                   65536 */
    int64_t batch_rows;  /* rows per batch                                                8192 */
    dlrn_switch shuffle; /* OFF: rows in the source's order                                 ON */
    dlrn_dtype store;    /* type in memory: DLRN_F32, DLRN_F16 or DLRN_BF16                F32 */
    uint64_t seed;       /* of the shuffle                                                   0 */
} dlrn_buffer_config;

/* The state of a buffer. */
typedef struct dlrn_buffer_info {
    int64_t d_in, d_out; /* the source's; d_out is 0 without a target         */
    int64_t capacity;    /* in rows                                           */
    int64_t unread;      /* rows held and not yet handed out                  */
    int64_t rows_read;   /* rows read from the source so far                  */
    uint64_t max_bytes;  /* the most memory that it may take, dlrn_buffer_bytes */
} dlrn_buffer_info;

typedef struct dlrn_buffer dlrn_buffer;
/* The defaults above. */
DLRN_API dlrn_buffer_config dlrn_buffer_defaults(void);
/* An upper bound on the bytes that a buffer for such rows takes. d_out 0: no target. */
DLRN_API DLRN_CHECK dlrn_status dlrn_buffer_bytes(dlrn_context *ctx, const dlrn_buffer_config *cfg,
                                                  int64_t d_in, int64_t d_out, uint64_t *bytes);
/* Creates a buffer. Its memory grows as rows arrive, up to dlrn_buffer_bytes(). It must not be used
   by two trainers at the same time. */
DLRN_API DLRN_CHECK dlrn_status dlrn_buffer_create(dlrn_context *ctx, const dlrn_buffer_config *cfg,
                                                   const dlrn_source *source,
                                                   dlrn_ownership ownership, dlrn_buffer **out);
DLRN_API void dlrn_buffer_destroy(dlrn_buffer *buffer);
/* The next batch: x [*n][d_in] and y [*n][d_out] (y == x without a target), borrowed until the next
   call on this buffer. *n is batch_rows, except that the last batch may be smaller. DLRN_END: no
   row is left. Errors of the source are passed on; DLRN_ERR_VALUE: a row that is not finite, or
   that the stored type cannot hold. A call that failed may be repeated. */
DLRN_API DLRN_CHECK dlrn_status dlrn_buffer_next(dlrn_buffer *buffer, const float **x,
                                                 const float **y, int64_t *n);
/* What a buffer is and holds. */
DLRN_API dlrn_buffer_info dlrn_buffer_describe(const dlrn_buffer *buffer);
/* Discards the unread rows; the next batch consists of rows that follow them in the source. A
   checkpoint holds all unread rows, so it is small afterwards. */
DLRN_API void dlrn_buffer_clear(dlrn_buffer *buffer);

/* ------------------------------------------------------------------------------------------ */
// >>api-train

/* The reconstruction loss. The reference calls the norm "MSE"; its published penalties were tuned
   for it. */
#define DLRN_LOSS_LIST(X)                                                                          \
    X(DLRN_LOSS_NORM, "norm")       /* mean_i ||y_i - x_hat_i||   */                               \
    X(DLRN_LOSS_SQUARED, "squared") /* mean_i ||y_i - x_hat_i||^2 */

/* The penalty, a mean over rows i; q_ij = f_ij / (sum_j f_ij + 1e-8). */
#define DLRN_SPARSITY_LIST(X)                                                                      \
    X(DLRN_SPARSITY_L1, "l1")           /* mean_i sum_j f_ij                     */                \
    X(DLRN_SPARSITY_ENTROPY, "entropy") /* mean_i -sum_j q_ij log(q_ij + 1e-8)   */

#define DLRN_VALUE(value, name) value,
typedef enum dlrn_loss { DLRN_LOSS_LIST(DLRN_VALUE) } dlrn_loss;
typedef enum dlrn_sparsity { DLRN_SPARSITY_LIST(DLRN_VALUE) } dlrn_sparsity;
#undef DLRN_VALUE

/* How to train. Start from dlrn_train_defaults(recipe) and change what you want. The last column
   shows the defaults of the recipe "reference". Periods are in steps; -1 means never. */
typedef struct dlrn_train_config {
    const char *recipe;      /* a name that dlrn_recipe() lists; NULL: "reference"              */
    int64_t d_in;            /* length of a row x; dlrn_train() takes the source's          512 */
    int64_t d_out;           /* length of its target; 0: as d_in                              0 */
    int64_t features;        /* F                                                      16 * 512 */
    double lr;               /* Adam's rate. -1: derived from F, if the recipe has a rule
                                (dlrn_recipe_info.lr)                                      3e-4 */
    double sparsity_penalty; /* weight of the penalty                                      1e-3 */
    dlrn_loss loss;          /*                                                            NORM */
    dlrn_sparsity sparsity;  /*                                                              L1 */
    double beta1, beta2;     /* Adam                                                 0.9, 0.999 */
    double eps;              /* Adam                                                       1e-8 */
    int64_t steps;           /* of a whole run; -1: until the data ends                      -1 */
    int64_t warmup_steps;   /* linear ramp of lr over this many steps, restarted at each multiple of
                                resample_steps, where the rate is 0; 0: no ramp            1000 */
    int64_t decay_start;    /* from this step on, lr falls linearly to 0 at `steps`         -1 */
    int64_t resample_steps; /* dead features are revived after each multiple of this        -1 */
    int64_t resample_rows;  /* rows sampled from the buffer to choose replacements      819200 */
    int64_t ghost_threshold; /* ghost gradients for features silent for more steps than this -1 */
    int64_t log_steps;       /* for your progress callback (the program logs then). The library uses
                                it only with compat, where a logged step counts twice      1000 */
    int64_t save_steps;      /* for your progress callback (the program saves then); the library
                                only stores it                                               -1 */
    uint64_t seed;           /* of the weights and of resampling                              0 */
    dlrn_switch compat;      /* ON: the reference's code of March 2024, number for number   OFF */
    /* Settings that only some recipes use (dlrn_recipe_info.settings); do not change those that
       your recipe does not use. */
    double clip;                   /* largest norm of the whole gradient; 0: no limit         0 */
    int64_t sparsity_warmup_steps; /* linear ramp of the penalty's weight; 0: no ramp         0 */
    int64_t k;                     /* features kept per row                                   0 */
    double auxk_alpha;             /* weight of the auxiliary loss of dead features           0 */
    int64_t auxk;                  /* dead features that this loss keeps per row; 0: d_in / 2 0 */
    int64_t dead_rows;             /* a feature is dead after this many rows without firing  -1 */
    double threshold_beta;         /* mean of the smallest kept value: weight of its past     0 */
    int64_t threshold_start_step;  /* mean of the smallest kept value: begins after this step -1 */
    double target_l0;              /* active features per row that training aims for. dl-jump_relu:
                                      in the penalty. reference: steers the weight of the penalty
                                      during the warm-up, at least for 1000 steps; 0: off     0 */
    double bandwidth;              /* width of the window around a threshold in which its gradient
                                      is estimated                                            0 */
    dlrn_buffer_config buffer;     /* for dlrn_train(), which creates a buffer of its own       */
} dlrn_train_config;

/* The figures of one step. Losses are those of its forward pass, before the update. */
typedef struct dlrn_train_stats {
    int64_t step;               /* the number of this step, from 0                          */
    int64_t rows;               /* rows of its batch                                        */
    double loss;                /* what the step minimised: the sum of the three below, with
                                   their weights                                            */
    double reconstruction_loss; /* as cfg.loss says                                         */
    double sparsity_loss;       /* as cfg.sparsity or the recipe says, without its weight   */
    double auxiliary_loss;      /* ghosts or AuxK, without its weight; 0: no dead features  */
    double l0;                  /* mean number of active features per row                   */
    double lr;                  /* rate of this step's update                               */
    double penalty;             /* weight of sparsity_loss in this step, steered or ramped  */
    int64_t dead;               /* features silent for the recipe's period (or since the run
                                   began); without a period: on this batch                  */
    int64_t resampled;          /* features revived after this step                         */
} dlrn_train_stats;

typedef struct dlrn_trainer dlrn_trainer;
/* The defaults of a recipe; NULL: "reference". An unknown name gives the reference's, and an error
   of dlrn_trainer_create. */
DLRN_API dlrn_train_config dlrn_train_defaults(const char *recipe);

/* A recipe in words. */
typedef struct dlrn_recipe_info {
    const char *name;            /* "dl-top_k"                                                   */
    const char *family;          /* of the dictionaries that it trains                           */
    const char *loss;            /* what a step minimises, and where that comes from             */
    const dlrn_formula *formula; /* of the family; its k is cfg.k                                */
    double lr;                   /* a rate of -1 becomes this / sqrt(features / 16384); 0: the
                                    recipe has no such rule, and -1 is an error                  */
    const char *const *settings; /* names of the fields of dlrn_train_config that this recipe uses
                                    and some other does not; NULL after the last                 */
} dlrn_recipe_info;
/* Recipe number `index`, from 0; NULL after the last. Never freed. */
DLRN_API const dlrn_recipe_info *dlrn_recipe(int index);

/* Creates a trainer. init: the weights to start from, copied (the dictionary may belong to any
   context); NULL: random ones, by cfg.seed. buffer: where _step takes its batches from; borrowed,
   and must outlive the trainer. It may be NULL if you only call _step_on; a resampling then draws
   from the rows of its step. DLRN_ERR_ARGUMENT: a setting that is out of range, by name; _SHAPE:
   sizes that do not agree; _UNSUPPORTED: init is of a family, or has a skip or a scale, that the
   recipe cannot train. dl-jump_relu also needs target_l0 and bandwidth above 0; its first step
   checks that. */
DLRN_API DLRN_CHECK dlrn_status dlrn_trainer_create(dlrn_context *ctx, const dlrn_train_config *cfg,
                                                    const dlrn_dictionary *init,
                                                    dlrn_buffer *buffer, dlrn_trainer **out);
DLRN_API void dlrn_trainer_destroy(dlrn_trainer *trainer);
/* One step on the buffer's next batch. stats may be NULL. DLRN_END: no batch is left, or cfg.steps
   are done. An error before the update, such as DLRN_ERR_VALUE for a loss that is not finite,
   leaves the trainer as it was; the next call takes the next batch.
   After DLRN_ERR_MEMORY or DLRN_STOPPED, call it again before any other call on the buffer: the
   result is as if it had not been interrupted. If a resampling fails for another reason, it is
   given up: the error is returned once, the step counts, and the next call takes the next batch.
   If memory runs out while weights are being written (possible where the codes of a batch exceed
   128 MB, or with ghosts and more than 4096 dead features), the trainer is broken: _step, _step_on
   and _save fail from then on. Resume from a checkpoint. */
DLRN_API DLRN_CHECK dlrn_status dlrn_trainer_step(dlrn_trainer *trainer, dlrn_train_stats *stats);
/* The same on these rows: x [n][d_in] and y [n][d_out], n from 1 to 2^24. y NULL: the target is x.
   After DLRN_ERR_MEMORY or DLRN_STOPPED pass the same arrays again; once the weights have been
   updated, other rows are refused until the step is finished. cfg.steps does not apply. */
DLRN_API DLRN_CHECK dlrn_status dlrn_trainer_step_on(dlrn_trainer *trainer, const float *x,
                                                     const float *y, int64_t n,
                                                     dlrn_train_stats *stats);
/* Parts of a trainer's state, borrowed from it. Moments have the shape of their parameter, and are
   NULL where the dictionary has no such parameter. */
typedef struct dlrn_trainer_info {
    const dlrn_train_config *config; /* as given, with lr, d_out and k filled in               */
    dlrn_dictionary *dictionary;     /* being trained. Between steps you may read it, encode with
                                        it and save it                                         */
    int64_t steps;                   /* number of steps done                                   */
    float *m[DLRN_ROLE_COUNT], *v[DLRN_ROLE_COUNT]; /* Adam's moments, by role                */
    int64_t *since_fired; /* [F] steps since the feature was last active, or rows if the recipe
                             counts rows (cfg.dead_rows)                                     */
    int broken; /* 1: a step failed while it was writing the weights. Some have moved, others have
                   not: do not use the dictionary, and do not save it                        */
} dlrn_trainer_info;
/* The state of a trainer; pointers are valid until it is destroyed. */
DLRN_API dlrn_trainer_info dlrn_trainer_describe(const dlrn_trainer *trainer);
/* Writes a checkpoint: all that is needed to go on with the same bits, that is weights, moments,
   counters, configuration, the buffer's unread rows and the source's position (if it has one).
   Writes one file atomically; its name must end in .safetensors. While it runs it takes as much
   memory again as the unread rows. DLRN_ERR_VALUE: weights that are not finite; the older file
   stays, since it may be the last good one. DLRN_ERR_ARGUMENT: another name, a broken trainer, or a
   step that was interrupted before its update. */
DLRN_API DLRN_CHECK dlrn_status dlrn_trainer_save(const dlrn_trainer *trainer, const char *path);
/* Creates a trainer from a checkpoint. cfg NULL: the saved configuration; another one must agree
   with it in recipe, d_in, d_out, F, k and compat. buffer: new, borrowed; the saved rows are put
   into it, and its source is moved to the saved position. It may be NULL if you only call _step_on;
   saved rows, and a resampling that was interrupted, are then dropped. DLRN_ERR_FORMAT: not a
   checkpoint; _SHAPE, _VALUE, _ARGUMENT: what does not fit. */
DLRN_API DLRN_CHECK dlrn_status dlrn_trainer_resume(dlrn_context *ctx, const char *path,
                                                    const dlrn_train_config *cfg,
                                                    dlrn_buffer *buffer, dlrn_trainer **out);

/* The whole run: passes the rows of `source` (borrowed) through a buffer, as cfg.buffer says, and
   makes steps until cfg.steps or the end of the data. d_in and d_out are the source's. progress (or
   NULL) is called after every step; any status but DLRN_OK ends the run. DLRN_END from progress
   ends it with DLRN_OK. After DLRN_STOPPED *out is the dictionary so far; after an error it is
   NULL: to keep what was learnt, save it in progress. */
typedef dlrn_status (*dlrn_progress)(void *user, dlrn_trainer *trainer,
                                     const dlrn_train_stats *stats);
DLRN_API DLRN_CHECK dlrn_status dlrn_train(dlrn_context *ctx, const dlrn_train_config *cfg,
                                           const dlrn_source *source, dlrn_progress progress,
                                           void *user, dlrn_dictionary **out);
/* Writes the configuration as a JSON object without newlines, for config.json; an lr of -1 is
   replaced by the rate that it stands for. Like snprintf: text [size] is cut to size and ends in a
   0; returns the length of the whole text. */
DLRN_API int64_t dlrn_train_config_json(const dlrn_train_config *cfg, char *text, size_t size);

/* ------------------------------------------------------------------------------------------ */
// >>api-metrics

/* Figures of an evaluation: means over `rows` rows, in one streaming pass, summed in f64. Shares
   are fractions of 1. NaN: not measured. */
typedef struct dlrn_metrics {
    int64_t rows;         /* rows measured                                                      */
    double mse_loss;      /* mean ||y - x_hat||^2; compat: the square of the mean norm          */
    double l2_loss;       /* mean ||y - x_hat||                                                 */
    double sparsity_loss; /* as cfg.sparsity says: mean L1 of f, or entropy                     */
    double variance_explained;         /* 1 - sum_j var(y - x_hat)_j / sum_j var(y)_j         */
    double variance_explained_per_dim; /* mean_j of 1 - var(y - x_hat)_j / var(y)_j, over the
                                          dimensions j that vary                               */
    double l0;          /* mean number of active features per row                             */
    double share_alive; /* share of the features that are active on at least one row          */
    double cosine;      /* mean cos(y, x_hat), over rows where neither is 0                   */
    double l2_ratio;    /* mean ||x_hat|| / ||y||, over rows where y is not 0                 */
    double relative_reconstruction_bias; /* mean ||x_hat||^2 / mean <y, x_hat>; 1: unbiased   */
    int64_t dead, dense;  /* features that never fire; that fire on more than 10 % of the rows  */
    const int64_t *fired; /* [F] rows on which each feature fired, borrowed from the evaluator;
                             NULL after dlrn_evaluate                                          */
    /* With a language model: cross-entropy in nats per token, of the unchanged model, with the site
       replaced by its reconstruction, and with the site set to zero. */
    double loss_original, loss_reconstructed, loss_zero;
    double ce_diff;            /* reconstructed - original                       */
    double share_recovered;    /* (reconstructed - zero) / (original - zero)     */
    int64_t documents, tokens; /* that the cross-entropies cover                 */
} dlrn_metrics;

/* A change to the activations of a model while it runs. For each site in [0, sites) the model calls
   edit(user, site, x, out, n), with any number of rows n at a time. x [n][d_in]: what a dictionary
   reads there (for in_to_out the MLP's input). out [n][d_out]: what the model continues with; edit
   overwrites it. The model must not pass padding rows. */
typedef struct dlrn_edit {
    dlrn_status (*edit)(void *user, int site, const float *x, float *out, int64_t n);
    void *user;
} dlrn_edit;

/* A model and the documents that it is measured on. cross_entropy runs the model on all documents:
   *nats is the mean over all next tokens, *tokens their number. edit NULL: the unchanged model. The
   tokens must be the same in every call. Called on the thread that made the call. */
typedef struct dlrn_language_model {
    dlrn_status (*cross_entropy)(void *user, const dlrn_edit *edit, double *nats, int64_t *tokens);
    const char *(*error)(void *user); /* the reason why a call failed; may be NULL */
    void *user;                       /* passed to each callback                   */
    int64_t sites;                    /* number of sites that it calls edit for    */
    int64_t documents;                /* copied to dlrn_metrics.documents          */
} dlrn_language_model;

/* How to evaluate. The last column: defaults. */
typedef struct dlrn_eval_config {
    int64_t rows;           /* rows to measure; -1: all                             8192 */
    int64_t batch_size;     /* rows at a time; never changes the result              256 */
    dlrn_sparsity sparsity; /* what sparsity_loss measures                            L1 */
    dlrn_switch compat;     /* ON: the reference's formulas of March 2024            OFF */
} dlrn_eval_config;

typedef struct dlrn_evaluator dlrn_evaluator;
/* The defaults above. */
DLRN_API dlrn_eval_config dlrn_eval_defaults(void);
/* Called after each batch with the rows counted so far. Any status but DLRN_OK ends the evaluation
   with that status. */
typedef dlrn_status (*dlrn_eval_progress)(void *user, int64_t rows);
/* The easy call: reads cfg.rows rows of `source`, or all that it has. cfg NULL: the defaults. lm
   NULL: no cross-entropies; otherwise a model of one site. progress may be NULL. After DLRN_STOPPED
   `out` holds the figures of the rows so far, without cross-entropies. DLRN_ERR_SHAPE: the source
   does not fit the dictionary; _VALUE: a row that is not finite; _CALLBACK. */
DLRN_API DLRN_CHECK dlrn_status dlrn_evaluate(
    const dlrn_dictionary *dict, const dlrn_eval_config *cfg, const dlrn_source *source,
    const dlrn_language_model *lm, dlrn_eval_progress progress, void *user, dlrn_metrics *out);
/* The same in pieces: create, add rows as they come, finish. cfg NULL: the defaults; cfg.rows does
   not apply. dict is borrowed until the evaluator is destroyed. */
DLRN_API DLRN_CHECK dlrn_status dlrn_evaluator_create(const dlrn_dictionary *dict,
                                                      const dlrn_eval_config *cfg,
                                                      dlrn_evaluator **out);
/* Adds rows x [n][d_in], y [n][d_out]; y NULL: the target is x. After its first batches an
   evaluator allocates nothing. If a call with at most batch_size rows fails, none is counted, and
   it may be repeated. If a larger call fails after some of its rows were counted, the evaluator
   refuses to go on. */
DLRN_API DLRN_CHECK dlrn_status dlrn_evaluator_add(dlrn_evaluator *e, const float *x,
                                                   const float *y, int64_t n);
/* The figures of all rows so far; the cross-entropies are NaN. More rows may follow. out->fired is
   valid until the evaluator is destroyed. DLRN_ERR_ARGUMENT: no rows were added. */
DLRN_API DLRN_CHECK dlrn_status dlrn_evaluator_finish(dlrn_evaluator *e, dlrn_metrics *out);
DLRN_API void dlrn_evaluator_destroy(dlrn_evaluator *e);
/* Cross-entropies with dictionaries spliced in at all sites: dicts [lm->sites]. Sets only the
   language-model fields of *out. DLRN_ERR_VALUE: a cross-entropy that is not finite; _CALLBACK. */
DLRN_API DLRN_CHECK dlrn_status dlrn_loss_recovered(dlrn_context *ctx,
                                                    const dlrn_dictionary *const *dicts,
                                                    const dlrn_language_model *lm,
                                                    dlrn_metrics *out);
/* A histogram of firing frequencies: count [bins] features in logarithmic bins from 1e-5 to 1. edge
   [bins + 1]: their bounds, or NULL. Features that never fire are in no bin, those that fire on
   less than 1e-5 of the rows in the first. */
DLRN_API DLRN_CHECK dlrn_status dlrn_evaluator_histogram(const dlrn_evaluator *e, int bins,
                                                         double *edge, int64_t *count);
#endif /* DICTLEARN_NO_TRAINING */

/* ------------------------------------------------------------------------------------------ */
// >>api-tensor

/* Describes a matrix that you own: rows of `cols` floats, `stride` floats apart. `data` is const so
   that it can also describe operands; the result of a product needs memory that you may write
   to. */
DLRN_API dlrn_tensor dlrn_view(const float *data, int64_t rows, int64_t cols, int64_t stride);
/* Allocates a matrix of zeros, aligned to 64 bytes; free its data with dlrn_free. DLRN_ERR_MEMORY
   also if rows * cols overflows. */
DLRN_API DLRN_CHECK dlrn_status dlrn_tensor_alloc(dlrn_context *ctx, int64_t rows, int64_t cols,
                                                  dlrn_tensor *out);

typedef enum dlrn_matmul_op {
    DLRN_NN, /* c [m][n] = a [m][k] b [k][n]   */
    DLRN_NT, /* c [m][n] = a [m][k] b [n][k]^T */
    DLRN_TN  /* c [m][n] = a [k][m]^T b [k][n] */
} dlrn_matmul_op;
/* c = op(a, b) + beta * c, with beta 0 (c is not read) or 1. c must not overlap a or b.
   work NULL: runs on the context's threads, with memory from its allocator. Otherwise runs on the
   calling thread alone, with work [DLRN_MATMUL_WORK] (aligned to 64 bytes) as its only memory: for
   products inside a body of dlrn_parallel_for, with a `work` for each worker. Both give the same
   bits, unless DICTLEARN_CBLAS computes the products whose `work` is NULL. DLRN_ERR_SHAPE: shapes
   that do not agree. */
enum { DLRN_MATMUL_WORK = 512 * 48 };
DLRN_API DLRN_CHECK dlrn_status dlrn_matmul(dlrn_context *ctx, dlrn_matmul_op op, dlrn_tensor a,
                                            dlrn_tensor b, float beta, dlrn_tensor c, float *work);
/* The next three take vectors of n numbers, give the same bits with every kernel set, and may be
   called inside a body of dlrn_parallel_for.
   The scalar product of a and b: */
DLRN_API float dlrn_dot(dlrn_context *ctx, const float *a, const float *b, int64_t n);
/* The Euclidean length of a: */
DLRN_API float dlrn_norm(dlrn_context *ctx, const float *a, int64_t n);
/* y += a * x: */
DLRN_API void dlrn_axpy(dlrn_context *ctx, float a, const float *x, float *y, int64_t n);
/* The k largest of x [n], in descending order; among equal ones, the lower index comes first. index
   [k], value [k] (or NULL). NaN counts as smaller than any number. k from 0 to n. */
DLRN_API DLRN_CHECK dlrn_status dlrn_topk(dlrn_context *ctx, const float *x, int64_t n, int64_t k,
                                          int64_t *index, float *value);
/* Runs a loop on the context's threads: body(arg, task, worker) for each task (see
   dlrn_parallel_body). Returns when all are done. Must not be called inside a body. */
DLRN_API void dlrn_parallel_for(dlrn_context *ctx, int64_t n_tasks, dlrn_parallel_body body,
                                void *arg);

/* Random numbers, Philox4x32-10 (Salmon et al., 2011): number `counter` of stream `stream` of
   `seed`. These three are the whole state, so streams are independent. A drawing adds 1 to the
   counter; _below may draw again. Each thread needs a dlrn_rng of its own. */
typedef struct dlrn_rng {
    uint64_t seed, stream, counter;
} dlrn_rng;
DLRN_API float dlrn_rng_uniform(dlrn_rng *rng);              /* [0, 1), 24 bits  */
DLRN_API double dlrn_rng_uniform_f64(dlrn_rng *rng);         /* (0, 1), 52 bits  */
DLRN_API float dlrn_rng_normal(dlrn_rng *rng);               /* mean 0, variance 1 */
DLRN_API uint64_t dlrn_rng_below(dlrn_rng *rng, uint64_t n); /* [0, n), unbiased */

/* ------------------------------------------------------------------------------------------ */
// >>api-files

/* Paths are UTF-8, or what the system's fopen takes; "-" is standard input or output. Files are not
   trusted: sizes and offsets are checked before memory is allocated. Any call here may return
   DLRN_ERR_IO; readers also DLRN_ERR_FORMAT and DLRN_ERR_UNSUPPORTED. */

/* ---- Archives of tensors ---- */

#define DLRN_MAX_DIMS 8
/* A tensor of an archive. */
typedef struct dlrn_tensor_info {
    const char *name; /* "encoder.weight"; nested dictionaries are joined with '.' */
    dlrn_dtype dtype;
    int ndim;                     /* 0: one number */
    int64_t shape[DLRN_MAX_DIMS]; /* [ndim]        */
    int64_t numel;                /* their product */
} dlrn_tensor_info;

/* A file of named tensors, opened for reading: torch .pt (zip, or the form before 1.6),
   .safetensors, .npz, .npy (one tensor, named ""). The format is recognised by content, not by
   name; a path that ends in .index.json opens all shards of a model as one archive. Nothing in a
   file is executed. The file is mapped into memory where possible, and must not change while it is
   open. */
typedef struct dlrn_archive dlrn_archive;

/* Opens an archive and checks its structure, and the CRCs of a zip. DLRN_ERR_UNSUPPORTED: a type,
   or an opcode of a pickle, that is not supported. */
DLRN_API DLRN_CHECK dlrn_status dlrn_archive_open(dlrn_context *ctx, const char *path,
                                                  dlrn_archive **out);
/* The same from bytes in memory, which are borrowed until the archive is closed. `name` takes the
   place of the path in errors. */
DLRN_API DLRN_CHECK dlrn_status dlrn_archive_open_memory(dlrn_context *ctx, const void *bytes,
                                                         size_t size, const char *name,
                                                         dlrn_archive **out);
DLRN_API void dlrn_archive_close(dlrn_archive *a);

/* What an archive is; its pointers are borrowed until it is closed. */
typedef struct dlrn_archive_info {
    const char *path;   /* or the name that dlrn_archive_open_memory was given          */
    const char *format; /* "pt", "pt-legacy", "safetensors", "npz", "npy", or "sharded" */
    int64_t count;      /* of tensors                                                   */
} dlrn_archive_info;
DLRN_API dlrn_archive_info dlrn_archive_describe(const dlrn_archive *a);
/* The tensor at an index in [0, count), borrowed until the archive is closed; NULL for any other
   index. */
DLRN_API const dlrn_tensor_info *dlrn_archive_tensor(const dlrn_archive *a, int64_t index);
/* The index of the tensor with this name; -1 if there is none. */
DLRN_API int64_t dlrn_archive_find(const dlrn_archive *a, const char *name);

/* Reads rows [first, first + rows) of a tensor, that is, slices of its first dimension, into dst
   [rows][numel / shape[0]]: row-major f32, from f16, bf16, f32 or f64 of any strides and byte
   order; a single number from any type. rows -1: up to the last row; with first 0, the whole
   tensor. A tensor without dimensions is one row. DLRN_ERR_ARGUMENT: rows out of range;
   _UNSUPPORTED: integers. */
DLRN_API DLRN_CHECK dlrn_status dlrn_archive_read(dlrn_archive *a, int64_t index, int64_t first,
                                                  int64_t rows, float *dst);

/* A tensor to write. */
typedef struct dlrn_tensor_out {
    const char *name;
    dlrn_dtype dtype;             /* of data                         */
    int ndim;                     /* 0: one number                   */
    int64_t shape[DLRN_MAX_DIMS]; /* [ndim]                          */
    const void *data;             /* row-major, borrowed for the call */
} dlrn_tensor_out;

/* Writes `count` named tensors in the format of the path's suffix: .pt, .safetensors, .npz, or .npy
   (one tensor, without its name). metadata is NULL, or an array of key, text, key, text, ..., NULL.
   .safetensors keeps it; .pt and .npz keep texts of one line, up to 64 KB in all, in the zip's
   comment; .npy keeps none. Atomic: see dlrn_file_write. DLRN_ERR_ARGUMENT: another suffix;
   _UNSUPPORTED: a type that the format does not have. */
DLRN_API DLRN_CHECK dlrn_status dlrn_archive_write(dlrn_context *ctx, const char *path,
                                                   const dlrn_tensor_out *tensors, int64_t count,
                                                   const char *const *metadata);

/* ---- Files that grow ---- */

/* A file that is written piece by piece: create, append any number of times, close. It appears
   under its name, complete, only on closing; a pipe receives each piece at once. After an append
   has failed, later ones and close fail as well. */
typedef struct dlrn_writer dlrn_writer;

/* Rows of f32 as .npy [rows][width]. rows_total: how many rows will come; closing fails if there
   were more or fewer. -1: not known. Rows written to a pipe are then held in a temporary file until
   the writer is closed, because the header states their number. */
DLRN_API DLRN_CHECK dlrn_status dlrn_npy_create(dlrn_context *ctx, const char *path, int64_t width,
                                                int64_t rows_total, dlrn_writer **out);
/* Appends x [rows][width]. */
DLRN_API DLRN_CHECK dlrn_status dlrn_npy_append(dlrn_writer *w, const float *x, int64_t rows);

/* Codes [rows][width] as a CSR .npz that scipy.sparse.load_npz opens. They are held in temporary
   files until the writer is closed. */
DLRN_API DLRN_CHECK dlrn_status dlrn_csr_create(dlrn_context *ctx, const char *path, int64_t width,
                                                dlrn_writer **out);
/* Appends the rows of codes, whose cols must be width. */
DLRN_API DLRN_CHECK dlrn_status dlrn_csr_append(dlrn_writer *w, const dlrn_sparse *codes);

/* A file of arbitrary bytes. */
DLRN_API DLRN_CHECK dlrn_status dlrn_file_create(dlrn_context *ctx, const char *path,
                                                 dlrn_writer **out);
/* Appends bytes [size]. */
DLRN_API DLRN_CHECK dlrn_status dlrn_file_append(dlrn_writer *w, const void *bytes, size_t size);

/* Completes the file and frees w. On failure, too, w is freed, and no new file is left; an older
   one stays. Check the result: only a file that was closed without error is there. */
DLRN_API DLRN_CHECK dlrn_status dlrn_writer_close(dlrn_writer *w);
/* Discards what was written and frees w; an older file of that name stays. */
DLRN_API void dlrn_writer_abort(dlrn_writer *w);

/* Reads codes from an archive that dlrn_csr_create or scipy.sparse.save_npz wrote, and sorts the
   columns of each row. Zero-initialise *out before the first call; free it with dlrn_sparse_free.
   On failure it is empty. DLRN_ERR_FORMAT: indices that are not integers within the shape. */
DLRN_API DLRN_CHECK dlrn_status dlrn_csr_read(dlrn_archive *a, dlrn_sparse *out);

/* ---- Streams ---- */

/* The bytes of a file from its start, of any length and in little memory; "-" is standard input.
   gzip is decompressed: it is recognised by its first bytes, not by its name; several members in
   one file are read one after another; checksums and lengths are checked. If the data is cut short
   or damaged, the good bytes come first, then DLRN_ERR_FORMAT. */
typedef struct dlrn_stream dlrn_stream;

/* Opens a stream; path is copied. */
DLRN_API DLRN_CHECK dlrn_status dlrn_stream_open(dlrn_context *ctx, const char *path,
                                                 dlrn_stream **out);
/* Reads up to `size` bytes. *got: how many; 0 only at the end. */
DLRN_API DLRN_CHECK dlrn_status dlrn_stream_read(dlrn_stream *s, void *bytes, size_t size,
                                                 size_t *got);
/* The number of bytes read so far, after decompression. */
DLRN_API uint64_t dlrn_stream_position(const dlrn_stream *s);
/* Goes to a position (see dlrn_stream_position); if the file is compressed or cannot seek, by
   reading up to it. DLRN_END: the file ends before it. DLRN_ERR_IO also for standard input, which
   cannot go back. */
DLRN_API DLRN_CHECK dlrn_status dlrn_stream_seek(dlrn_stream *s, uint64_t position);
DLRN_API void dlrn_stream_close(dlrn_stream *s);

/* ---- Whole files, memory ---- */

/* Reads a whole file: bytes [size], followed by a 0 that size does not count. Free it with
   dlrn_free. */
DLRN_API DLRN_CHECK dlrn_status dlrn_file_read(dlrn_context *ctx, const char *path, char **bytes,
                                               size_t *size);
/* Writes a whole file. Like every call here that writes, it is atomic: an older file stays until
   the new one is complete and on the disk. (Outside POSIX, the older file is first renamed; a
   process that is killed between two renames leaves it beside its name.) A symbolic link stays; the
   file that it points to is replaced. A pipe or device is written to directly. */
DLRN_API DLRN_CHECK dlrn_status dlrn_file_write(dlrn_context *ctx, const char *path,
                                                const void *bytes, size_t size);
/* What is at a path: 0 nothing, 1 a file, 2 a folder. ctx NULL: the C library's files. */
DLRN_API int dlrn_file_exists(dlrn_context *ctx, const char *path);

/* Allocates count * size bytes from the context's allocator, aligned to 64 bytes, not cleared.
   Returns NULL and sets dlrn_error(ctx) if there is no memory or the product overflows. */
DLRN_API void *dlrn_alloc(dlrn_context *ctx, int64_t count, size_t size);
/* Frees a block from dlrn_alloc, dlrn_tensor_alloc (its data), dlrn_file_read or dlrn_json_parse;
   p may be NULL. */
DLRN_API void dlrn_free(dlrn_context *ctx, void *p);

/* ---- JSON ---- */

typedef enum dlrn_json_type {
    DLRN_JSON_NULL,
    DLRN_JSON_BOOL,
    DLRN_JSON_NUMBER,
    DLRN_JSON_STRING,
    DLRN_JSON_ARRAY,
    DLRN_JSON_OBJECT
} dlrn_json_type;

/* One value of a JSON tree. Keys and texts may contain 0 bytes, so their lengths are given. */
typedef struct dlrn_json {
    dlrn_json_type type;
    const char *key;  /* of a member of an object, UTF-8; otherwise NULL                     */
    const char *text; /* string: UTF-8, escapes resolved; number: as written; otherwise NULL */
    int64_t key_len, text_len;            /* in bytes                                        */
    double number;                        /* number: its value; bool: 0 or 1                 */
    int64_t count;                        /* array, object: number of children               */
    const struct dlrn_json *first, *next; /* first child, next sibling, or NULL              */
} dlrn_json;

/* Parses text [size]: strict JSON (RFC 8259), and the numbers NaN, Infinity and -Infinity as Python
   writes them. The same key twice in one object, and nesting beyond 64, are errors. The tree is one
   block with its own copy of the text; free its root with dlrn_free. `name` takes the place of the
   path in errors. */
DLRN_API DLRN_CHECK dlrn_status dlrn_json_parse(dlrn_context *ctx, const char *text, size_t size,
                                                const char *name, dlrn_json **out);
/* A member by its path, such as "trainer.dict_class". Returns NULL if there is none, or if object
   is NULL. */
DLRN_API const dlrn_json *dlrn_json_get(const dlrn_json *object, const char *path);
/* The text or the number of a member; returns `otherwise` if there is none, or if it is of another
   type. A bool is the number 0 or 1. */
DLRN_API const char *dlrn_json_text(const dlrn_json *object, const char *path,
                                    const char *otherwise);
DLRN_API double dlrn_json_number(const dlrn_json *object, const char *path, double otherwise);

#ifdef __cplusplus
}
#endif
#endif /* DICTLEARN_H */

/* ==========================================================================================
   End of the interface. Stop here unless you want to read the code.
   ========================================================================================== */

#if defined(DICTLEARN_IMPLEMENTATION) && !defined(DLRNI_IMPLEMENTED)
#define DLRNI_IMPLEMENTED
#ifdef DLRNI_NOT_STATIC
#error                                                                                             \
    "with DICTLEARN_STATIC, define DICTLEARN_IMPLEMENTATION before a file's first #include of this"
#endif

/* ------------------------------------------------------------------------------------------ */
// >>platform
/* Compilers, system headers, the allocator. Every system header is included here, before the first
   kernel set changes the target that the compiler compiles for. */

/* Under these flags a compiler assumes that no number is a NaN or an infinity, and drops the checks
   for them. The library promises these checks. It promises the same bits everywhere, too, and these
   flags allow sums in any order. */
#if defined(__FAST_MATH__) || (defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__ > 0)
#error "dictlearn.h: compile this file without -ffast-math, -Ofast and -ffinite-math-only"
#endif

#include <float.h>
#include <limits.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#if !defined(DICTLEARN_NO_STDIO) || !defined(DICTLEARN_VSNPRINTF)
#include <stdio.h> /* without files it is still needed for vsnprintf */
#endif

#ifdef _OPENMP
#include <omp.h>
#endif
#ifdef DICTLEARN_CBLAS
#include <cblas.h>
#endif

/* All formatted text goes through this macro: error messages, JSON, names. A host without stdio can
   put its own formatter here. */
#ifndef DICTLEARN_VSNPRINTF
#define DICTLEARN_VSNPRINTF(text, size, format, args) vsnprintf(text, size, format, args)
#endif

/* On POSIX systems room files maps what it reads and syncs what it writes. Elsewhere it does with
   the C library; Windows adds the process number, which makes names of temporary files unique. */
#if !defined(DICTLEARN_NO_STDIO) && (defined(__unix__) || defined(__APPLE__))
#define DLRNI_POSIX 1
#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#else
#define DLRNI_POSIX 0
#ifndef DICTLEARN_NO_STDIO
#include <errno.h>
#ifdef _WIN32
#include <process.h>
#include <sys/stat.h>
#endif
#endif
#endif

/* By default every kernel set is compiled that the compiler can compile, and the processor decides
   at run time which one is used. DICTLEARN_SIMD 0 compiles only the scalar set: for a small object,
   or for a compiler that fails on intrinsics. MSVC gets only the scalar set, too: it cannot compile
   one function for another processor (DLRNI_TARGET_BEGIN). */
#ifndef DICTLEARN_SIMD
#define DICTLEARN_SIMD 1
#endif
#if DICTLEARN_SIMD && (defined(__GNUC__) || defined(__clang__)) &&                                 \
    (defined(__x86_64__) || defined(__i386__))
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

/* This file includes itself to compile the kernels once for each set (room kernel-bodies). Set this
   if you rename the file. */
#ifndef DICTLEARN_HEADER_NAME
#define DICTLEARN_HEADER_NAME "dictlearn.h"
#endif

/* The default allocator of contexts that bring none. Memory from one malloc must go to its own
   free, so that half a pair is refused. */
#if !defined(DICTLEARN_MALLOC) && !defined(DICTLEARN_FREE)
#define DICTLEARN_MALLOC(size) malloc(size)
#define DICTLEARN_FREE(p) free(p)
#elif !defined(DICTLEARN_MALLOC) || !defined(DICTLEARN_FREE)
#error "define both DICTLEARN_MALLOC and DICTLEARN_FREE, or neither"
#endif

/* Finds our own mistakes, in debug builds only. Arguments and files are checked in all builds, by
   the macros of room base. */
#ifndef DICTLEARN_ASSERT
#ifdef NDEBUG
#define DICTLEARN_ASSERT(c) ((void)0)
#else
#include <assert.h>
#define DICTLEARN_ASSERT(c) assert(c)
#endif
#endif

/* Every private function has internal linkage, and may be unused: options leave out its callers. */
#if defined(__GNUC__) || defined(__clang__)
#define DLRNI_UNUSED __attribute__((unused))
#else
#define DLRNI_UNUSED
#endif
#define DLRNI_INTERNAL DLRNI_UNUSED static
/* For a function whose loops become fast only when the compiler knows a constant argument: inlining
   is then not left to its judgement. */
#if defined(__GNUC__) || defined(__clang__)
#define DLRNI_INLINE __attribute__((always_inline, unused)) static inline
#else
#define DLRNI_INLINE static inline
#endif

/* Before a loop of fixed length over registers. At -O2 gcc 12 does not unroll such loops, and an
   array that is indexed in a loop stays in memory. Measured on Zen 4, product of 2048 x 2048 x 512,
   AVX-512, two threads: 64 GFLOPS without, 180 with. 16 covers the longest such loop, a square of
   16 vectors in the transpose. */
#if defined(__clang__)
#define DLRNI_UNROLL _Pragma("unroll")
#elif defined(__GNUC__)
#define DLRNI_UNROLL _Pragma("GCC unroll 16")
#else
#define DLRNI_UNROLL
#endif

/* Around code that runs once per file or per run, and around the scalar kernels where there are
   others. It is half of the code, and optimising it less saves a third of the compile time at -O2
   (measured on a loaded machine with gcc 12: from 9 s to 6 s; "Os" compiles slower than "O1").
   Loops over weights stay outside: CRC, inflate, reading elements. Builds at -O0 or for size do
   not change. */
#if defined(__clang__) && defined(__OPTIMIZE__)
#define DLRNI_COLD_BEGIN _Pragma("clang attribute push(__attribute__((cold)), apply_to = function)")
#define DLRNI_COLD_END _Pragma("clang attribute pop")
#elif defined(__GNUC__) && defined(__OPTIMIZE__) && !defined(__OPTIMIZE_SIZE__)
#define DLRNI_COLD_BEGIN _Pragma("GCC push_options") _Pragma("GCC optimize (\"O1\")")
#define DLRNI_COLD_END _Pragma("GCC pop_options")
#else
#define DLRNI_COLD_BEGIN
#define DLRNI_COLD_END
#endif

/* DLRNI_PREFETCH: into the first cache, for data used within a few dozen instructions. _FAR: into
   the second cache only. It can wait for more lines at a time than the first, and what the first
   holds is not displaced. Both are hints and never fault. */
#if defined(__GNUC__) || defined(__clang__)
#define DLRNI_PREFETCH(p) __builtin_prefetch(p)
#define DLRNI_PREFETCH_FAR(p) __builtin_prefetch(p, 0, 2)
#else
#define DLRNI_PREFETCH(p) ((void)(p))
#define DLRNI_PREFETCH_FAR(p) ((void)(p))
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* ------------------------------------------------------------------------------------------ */
// >>base
/* There are three kinds of check:
     DLRNI_REQUIRE      the caller's mistake: a status, and a text that names the function
     dlrn_fail          a fault of a file or of the data: a status, and a text that names the place
     DICTLEARN_ASSERT   our own mistake: checked in debug builds only */

typedef struct dlrni_kernel_table dlrni_kernel_table;
typedef struct dlrni_screen dlrni_screen;

/* A kernel set (room kernels) and the screens that go with it, the cheapest first. */
typedef struct dlrni_set {
    const char *name;
    const dlrni_kernel_table *k;
    const dlrni_screen *screen[2]; /* NULL: none */
} dlrni_set;

/* dlrn_context_describe hands out the names of the sets, so a context stores them; a declaration
   next to dlrni_sets fails to compile when the table outgrows this. */
enum { DLRNI_SETS_MAX = 15 };

struct dlrn_context {
    dlrn_context_config cfg;
    dlrni_set set;               /* in force                     */
    const dlrni_kernel_table *k; /* its kernels                  */
    int threads;                 /* workers of dlrn_parallel_for */
    char error[1024]; /* of the last failure; needs no memory when memory has run out    */
    char text
        [512]; /* of dlrn_context_describe: version, sets, threads in one line                    */
    const char *names[DLRNI_SETS_MAX + 1]; /* of the sets that this processor can run, then NULL */
};

/* Where a text is too long, its middle is dropped: the path is at the start, and what is wrong at
   the end. A text may quote names from a hostile file. Those may hold control sequences
   that a terminal would obey, so control characters become '?'. */
DLRN_API dlrn_status dlrn_fail(dlrn_context *ctx, dlrn_status s, const char *format, ...) {
    enum { HEAD = 256 };
    char text[8192]; /* the longest path and the message */
    const size_t longest = sizeof ctx->error - 1;
    va_list args;
    va_start(args, format);
    (void)DICTLEARN_VSNPRINTF(text, sizeof text, format, args);
    va_end(args);
    size_t n = strlen(text);
    if (n <= longest) {
        memcpy(ctx->error, text, n + 1);
    } else {
        memcpy(ctx->error, text, HEAD);
        memcpy(ctx->error + HEAD, "...", 3);
        memcpy(ctx->error + HEAD + 3, text + n - (longest - HEAD - 3), longest - HEAD - 2);
    }
    for (unsigned char *c = (unsigned char *)ctx->error; *c; c++) {
        int is_c1 = *c == 0xC2 && c[1] >= 0x80 && c[1] < 0xA0; /* U+0080 to U+009F in UTF-8 */
        if (is_c1) *c++ = '?';
        if (is_c1 || *c < 32 || *c == 127) *c = '?';
    }
    return s;
}

/* snprintf through the host's DICTLEARN_VSNPRINTF. */
DLRNI_INTERNAL DLRN_PRINTF(3, 4) int dlrni_print(char *out, size_t size, const char *format, ...) {
    va_list args;
    va_start(args, format);
    int n = DICTLEARN_VSNPRINTF(out, size, format, args);
    va_end(args);
    return n;
}

/* The caller's mistake: returns DLRN_ERR_ARGUMENT, with `place` before the text. Public functions
   name themselves; private ones name what the caller knows: a public function, a setting, a
   file. */
#define DLRNI_REQUIRE_IN(ctx, place, condition, text)                                              \
    do {                                                                                           \
        if (!(condition)) return dlrn_fail((ctx), DLRN_ERR_ARGUMENT, "%s: %s", (place), (text));   \
    } while (0)
#define DLRNI_REQUIRE(ctx, condition, text) DLRNI_REQUIRE_IN(ctx, __func__, condition, text)

/* Returns a failure to the caller. Only for places that own nothing yet: it frees nothing. */
#define DLRNI_TRY(call)                                                                            \
    do {                                                                                           \
        dlrn_status dlrni_s = (call);                                                              \
        if (dlrni_s != DLRN_OK) return dlrni_s;                                                    \
    } while (0)

/* a / b rounded up, a >= 0; a + b - 1 could overflow. */
DLRNI_INTERNAL int64_t dlrni_ceil_div(int64_t a, int64_t b) {
    return a / b + (a % b > 0);
}

DLRNI_INTERNAL int64_t dlrni_min(int64_t a, int64_t b) {
    return a < b ? a : b;
}

DLRNI_INTERNAL int64_t dlrni_max(int64_t a, int64_t b) {
    return a > b ? a : b;
}

/* a + b and a * b of sizes, which often come from a file. Return 0 if an operand is negative or the
   result does not fit, and leave *out alone. */
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

/* Blocks of the host's allocator, aligned to a cache line: a vector that straddles two lines takes
   twice as long to load. The pointer that must be released lies just before the block.

       raw              block (a multiple of 64)
       | unused | raw | the caller's bytes ... | */
enum { DLRNI_ALIGN = 64, DLRNI_BLOCK_MORE = DLRNI_ALIGN + (int)sizeof(void *) };

/* The host's allocator. The parentheses around the fields keep a host's function-like macros called
   alloc or release (as leak checkers define them) from expanding here. */
DLRNI_INTERNAL void *dlrni_host_alloc(const dlrn_context_config *cfg, size_t size) {
    return cfg->alloc ? (cfg->alloc)(cfg->user, size) : DICTLEARN_MALLOC(size);
}

DLRNI_INTERNAL void dlrni_host_release(const dlrn_context_config *cfg, void *p) {
    if (cfg->release)
        (cfg->release)(cfg->user, p);
    else
        DICTLEARN_FREE(p);
}

/* count and size often come from a file, so their product is checked before any memory is taken. */
DLRN_API void *dlrn_alloc(dlrn_context *ctx, int64_t count, size_t size) {
    int64_t bytes, total;
    if (!dlrni_mul(count, (int64_t)size, &bytes) || !dlrni_add(bytes, DLRNI_BLOCK_MORE, &total) ||
        (uint64_t)total > SIZE_MAX) { /* a 32-bit system */
        dlrn_fail(ctx, DLRN_ERR_MEMORY, "a block of %lld x %lld bytes does not fit in memory",
                  (long long)count, (long long)size);
        return NULL;
    }
    char *raw = (char *)dlrni_host_alloc(&ctx->cfg, (size_t)total);
    if (!raw) {
        dlrn_fail(ctx, DLRN_ERR_MEMORY, "out of memory: %lld bytes asked for", (long long)bytes);
        return NULL;
    }
    uintptr_t at = ((uintptr_t)raw + DLRNI_BLOCK_MORE - 1) & ~(uintptr_t)(DLRNI_ALIGN - 1);
    memcpy((char *)at - sizeof raw, &raw, sizeof raw);
    return (void *)at;
}

/* The allocator gets its own pointer back. */
DLRN_API void dlrn_free(dlrn_context *ctx, void *p) {
    if (!p) return;
    void *raw;
    memcpy(&raw, (char *)p - sizeof raw, sizeof raw);
    dlrni_host_release(&ctx->cfg, raw);
}

/* memset and not the host's calloc, which the hooks do not have. */
DLRNI_INTERNAL void *dlrni_alloc_zero(dlrn_context *ctx, int64_t count, size_t element) {
    void *p = dlrn_alloc(ctx, count, element);
    if (p) memset(p, 0, (size_t)count * element);
    return p;
}

/* The cast makes the result fit C++, too. NULL: out of memory, and the context has the text. */
#define DLRNI_NEW(ctx, type, count) ((type *)dlrn_alloc((ctx), (count), sizeof(type)))
#define DLRNI_NEW_ZERO(ctx, type, count) ((type *)dlrni_alloc_zero((ctx), (count), sizeof(type)))

/* Ensures that the array whose pointer is stored at `slot` has room for `need` elements; *cap is
   how many fit now. It grows by half at least, so that n appends copy O(n) elements, and keeps its
   first `used` elements. Returns 0 if memory runs out; nothing has changed then. `slot` is a T **.
   It is passed as void * and read by memcpy, because a void ** must not alias a T **. */
DLRNI_INTERNAL int dlrni_grow(dlrn_context *ctx, void *slot, int64_t *cap, int64_t used,
                              int64_t need, size_t element) {
    if (need <= *cap) return 1;
    int64_t wide = *cap <= INT64_MAX / 2 ? *cap + *cap / 2 : need;
    int64_t cap_new = wide > need ? wide : need;
    void *q = dlrn_alloc(ctx, cap_new, element), *p;
    if (!q) return 0;
    memcpy(&p, slot, sizeof p);
    if (used) memcpy(q, p, (size_t)used * element);
    dlrn_free(ctx, p);
    memcpy(slot, &q, sizeof q);
    *cap = cap_new;
    return 1;
}
#define DLRNI_GROW(ctx, pointer, cap, used, need)                                                  \
    dlrni_grow((ctx), (pointer), (cap), (used), (need), sizeof **(pointer))

/* Rounds a pointer inside a block of scratch up to a cache line. */
DLRNI_INTERNAL float *dlrni_aligned(float *p) {
    return (float *)(((uintptr_t)p + DLRNI_ALIGN - 1) & ~(uintptr_t)(DLRNI_ALIGN - 1));
}

/* NULL: dlrn_context_create failed, and only its status tells why. */
DLRN_API const char *dlrn_error(const dlrn_context *ctx) {
    return ctx ? ctx->error : "no context: out of memory, or a wrong configuration";
}

/* Names stand in the lists that make the enumerations, so that none can be forgotten here. Any
   number may come: from a callback, or from a caller in C. */
DLRN_API const char *dlrn_name(dlrn_names which, int value) {
#define DLRNI_TEXT(name, text) text,
#define DLRNI_ROLE_TEXT(name, text, rows, cols) text,
#define DLRNI_DTYPE_TEXT(name, text, bytes, npy, storage, torch) text,
#define DLRNI_NAMES(names, list)                                                                   \
    case names: {                                                                                  \
        static const char *const texts[] = {list};                                                 \
        text = texts;                                                                              \
        count = sizeof texts / sizeof *texts;                                                      \
        break;                                                                                     \
    }
    const char *const *text = NULL;
    size_t count = 0;
    switch (which) {
        DLRNI_NAMES(DLRN_NAMES_STATUS, DLRN_STATUS_LIST(DLRNI_TEXT))
        DLRNI_NAMES(DLRN_NAMES_DTYPE, DLRN_DTYPE_LIST(DLRNI_DTYPE_TEXT))
        DLRNI_NAMES(DLRN_NAMES_ROLE, DLRN_ROLE_LIST(DLRNI_ROLE_TEXT))
        DLRNI_NAMES(DLRN_NAMES_NORMALISE, DLRN_NORMALISE_LIST(DLRNI_TEXT))
        DLRNI_NAMES(DLRN_NAMES_CENTER, DLRN_CENTER_LIST(DLRNI_TEXT))
        DLRNI_NAMES(DLRN_NAMES_GATE, DLRN_GATE_LIST(DLRNI_TEXT))
        DLRNI_NAMES(DLRN_NAMES_SELECT, DLRN_SELECT_LIST(DLRNI_TEXT))
#ifndef DICTLEARN_NO_TRAINING
        DLRNI_NAMES(DLRN_NAMES_LOSS, DLRN_LOSS_LIST(DLRNI_TEXT))
        DLRNI_NAMES(DLRN_NAMES_SPARSITY, DLRN_SPARSITY_LIST(DLRNI_TEXT))
#endif
    }
#undef DLRNI_TEXT
#undef DLRNI_ROLE_TEXT
#undef DLRNI_DTYPE_TEXT
#undef DLRNI_NAMES
    return value >= 0 && (size_t)value < count ? text[value] : "?";
}

/* Reports that a callback failed. Its text may be this context's own last error, so it is copied
   before the new error overwrites it. */
DLRNI_INTERNAL dlrn_status dlrni_callback_error(dlrn_context *ctx, dlrn_status s, const char *who,
                                                const char *text) {
    char copy[sizeof ctx->error - 64];
    size_t n = text ? strlen(text) : 0;
    if (n >= sizeof copy) n = sizeof copy - 1;
    if (n) memcpy(copy, text, n);
    copy[n] = 0;
    return dlrn_fail(ctx, s, "%s failed: %s", who, n ? copy : dlrn_name(DLRN_NAMES_STATUS, (int)s));
}

/* ------------------------------------------------------------------------------------------ */
// >>random
/* Philox4x32-10 (Salmon et al., Parallel random numbers: as easy as 1, 2, 3, 2011): ten rounds over
   a 128-bit counter {counter, stream} under a 64-bit key, the seed. Number n of a stream is a
   function of (seed, stream, n) alone, so that threads, checkpoints and the order of calls cannot
   change it. The multipliers and the key's increments are those of the paper; a test compares with
   the published vector. */

typedef struct dlrni_philox {
    uint64_t lo, hi;
} dlrni_philox;

/* Two 64-bit numbers. A round multiplies words 2 and 0. The low halves of the products become words
   1 and 3; the high halves, mixed with the old words 1 and 3 and the key, become words 0 and 2. */
DLRNI_INTERNAL dlrni_philox dlrni_philox_block(uint64_t seed, uint64_t stream, uint64_t counter) {
    uint32_t c[4] = {(uint32_t)counter, (uint32_t)(counter >> 32), (uint32_t)stream,
                     (uint32_t)(stream >> 32)};
    uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    for (int round = 0; round < 10; round++) {
        uint64_t a = (uint64_t)0xD2511F53u * c[0], b = (uint64_t)0xCD9E8D57u * c[2];
        uint32_t n0 = (uint32_t)(b >> 32) ^ c[1] ^ key[0], n2 = (uint32_t)(a >> 32) ^ c[3] ^ key[1];
        c[0] = n0;
        c[1] = (uint32_t)b;
        c[2] = n2;
        c[3] = (uint32_t)a;
        key[0] += 0x9E3779B9u; /* 2^32 times the golden ratio's fraction */
        key[1] += 0xBB67AE85u; /* 2^32 times (sqrt(3) - 1)               */
    }
    dlrni_philox out = {(uint64_t)c[1] << 32 | c[0], (uint64_t)c[3] << 32 | c[2]};
    return out;
}

/* Uses half of a block, so that one number is one step of the counter, whatever its type. */
DLRNI_INTERNAL uint64_t dlrni_rng_u64(dlrn_rng *rng) {
    return dlrni_philox_block(rng->seed, rng->stream, rng->counter++).lo;
}

/* [0, 1): 24 bits, all that a float can hold without rounding up to 1. */
DLRN_API float dlrn_rng_uniform(dlrn_rng *rng) {
    return (float)(dlrni_rng_u64(rng) >> 40) * (1.0f / 16777216.0f);
}

/* (0, 1): the middle of one of 2^52 cells, so that log() never sees 0. */
DLRNI_INTERNAL double dlrni_open_unit(uint64_t u) {
    return ((double)(u >> 12) + 0.5) * (1.0 / 4503599627370496.0);
}

DLRN_API double dlrn_rng_uniform_f64(dlrn_rng *rng) {
    return dlrni_open_unit(dlrni_rng_u64(rng));
}

/* One normal number a block: its two halves are the radius and the angle of Box-Muller. It is
   computed in double: C libraries differ in the last bits, and rounding to float hides nearly all
   of these differences. */
DLRN_API float dlrn_rng_normal(dlrn_rng *rng) {
    dlrni_philox b = dlrni_philox_block(rng->seed, rng->stream, rng->counter++);
    double radius = sqrt(-2.0 * log(dlrni_open_unit(b.lo)));
    return (float)(radius * cos(6.283185307179586 * dlrni_open_unit(b.hi)));
}

/* The remainder alone would favour small numbers, because n rarely divides 2^64. Numbers from the
   incomplete last run of n are drawn again. */
DLRN_API uint64_t dlrn_rng_below(dlrn_rng *rng, uint64_t n) {
    if (n == 0 || n == 1) return 0;
    uint64_t u;
    do u = dlrni_rng_u64(rng);
    while (u > UINT64_MAX - n &&
           u >= UINT64_MAX - UINT64_MAX % n); /* mostly skipped: a division is slow */
    return u % n;
}

/* ------------------------------------------------------------------------------------------ */
// >>numbers
/* Element types, half floats, tests for finite numbers, CRC-32. Every result is exact, or rounded
   as IEEE 754 says, and so the same everywhere. */

/* memcpy is the only way between a float and its bits that both C and C++ define; compilers make
   one move of it. */
DLRNI_INTERNAL float dlrni_float_of_bits(uint32_t u) {
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

DLRNI_INTERNAL uint32_t dlrni_bits_of_float(float f) {
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return u;
}

/* a b + c, rounded once, as every vector unit does it; the canonical sums depend on that. mingw's
   fmaf() rounds twice, because it computes in long double. There the sum is formed in f64 and
   rounded to odd: an inexact sum gets a last bit of 1. The spare bits make the rounding to f32 the
   correct one (Boldo and Melquiond, Emulation of FMA and correctly rounded sums, 2008). */
DLRNI_INTERNAL float dlrni_fma(float a, float b, float c) {
#ifdef __MINGW32__
    double product = (double)a * (double)b, sum = product + (double)c; /* the product is exact */
    double part = sum - product, error = (product - (sum - part)) + ((double)c - part); /* exact */
    uint64_t u;
    memcpy(&u, &sum, sizeof u);
    if ((error > 0 || error < 0) && !(u & 1)) u += (error > 0) == (sum > 0) ? 1 : UINT64_MAX;
    memcpy(&sum, &u, sizeof sum);
    return (float)sum;
#else
    return fmaf(a, b, c);
#endif
}

/* 5 bits of exponent (bias 15) become 8 (bias 127), 10 of fraction 23. Every f16 is an f32. */
DLRNI_INTERNAL float dlrni_f16_to_f32(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, exponent = h >> 10 & 31u, fraction = h & 1023u;
    if (exponent == 31) return dlrni_float_of_bits(sign | 0x7f800000u | fraction << 13);
    if (exponent) return dlrni_float_of_bits(sign | (exponent + 112) << 23 | fraction << 13);
    float tiny = (float)fraction * (1.0f / 16777216.0f); /* subnormal: exact in f32 */
    return dlrni_float_of_bits(sign | dlrni_bits_of_float(tiny));
}

/* Rounds to nearest even, as IEEE 754, torch and numpy do. */
DLRNI_INTERNAL uint16_t dlrni_f32_to_f16(float f) {
    uint32_t u = dlrni_bits_of_float(f), sign = u >> 16 & 0x8000u, a = u & 0x7fffffffu;
    if (a > 0x7f800000u)
        return (uint16_t)(sign | 0x7e00u); /* NaN                                   */
    if (a >= 0x477ff000u)
        return (uint16_t)(sign | 0x7c00u); /* rounds to 2^16 or more: infinity      */
    if (a < 0x38800000u) { /* below 2^-14: adding 0.5 rounds to a multiple of 2^-24 */
        float shifted = dlrni_float_of_bits(a) + 0.5f;
        return (uint16_t)(sign | (dlrni_bits_of_float(shifted) - 0x3f000000u));
    }
    a += 0xfffu + (a >> 13 & 1u); /* nearest, ties to even */
    return (uint16_t)(sign | (a - 0x38000000u) >> 13);
}

/* bf16 is the upper half of an f32. */
DLRNI_INTERNAL float dlrni_bf16_to_f32(uint16_t h) {
    return dlrni_float_of_bits((uint32_t)h << 16);
}

/* Rounds to nearest even: adds just under half of the last bit, and the rest of it where that bit
   is odd. A carry into the exponent is right: the next power of two, or infinity. */
DLRNI_INTERNAL uint16_t dlrni_f32_to_bf16(float f) {
    uint32_t u = dlrni_bits_of_float(f);
    if ((u & 0x7fffffffu) > 0x7f800000u) return (uint16_t)(u >> 16 | 0x40u); /* NaN stays NaN */
    return (uint16_t)((u + 0x7fffu + (u >> 16 & 1u)) >> 16);
}

/* The index of the first of n numbers whose magnitude, as bits, is greater than `max`; n if there
   is none. Bits of magnitudes compare as the magnitudes do, and NaN is greater than all. Sixteen at
   a time without a branch, which compilers turn into vectors. Measured on Zen 4, rows of 512: 2.2
   times as fast as one by one. */
DLRNI_INTERNAL int64_t dlrni_first_beyond(const float *x, int64_t n, uint32_t max) {
    int64_t at = 0;
    for (; n - at >= 16; at += 16) {
        int32_t a[16], any = 0;
        memcpy(a, x + at, sizeof a);
        for (int i = 0; i < 16; i++) any |= (int32_t)max - (a[i] & 0x7fffffff); /* sign */
        if (any < 0) break;
    }
    while (at < n && (dlrni_bits_of_float(x[at]) & 0x7fffffffu) <= max) at++;
    return at;
}

/* The index of the first of n numbers that is not finite; n if all are. Every array of numbers from
   outside is checked with this: one NaN would reach all weights within a few steps. */
DLRNI_INTERNAL int64_t dlrni_first_not_finite(const float *x, int64_t n) {
    return dlrni_first_beyond(x, n, 0x7f7fffffu); /* the bits of FLT_MAX */
}

/* Widens n numbers of two bytes, at any address. bf16 goes sixteen at a time, as above. Measured on
   Zen 4, rows of 512: 4.9 times as fast as one by one. The oracle of the sets' own kernels. */
DLRNI_INTERNAL void dlrni_widen_plain(dlrn_dtype type, const char *from, float *to, int64_t n) {
    int64_t at = 0;
    for (; type == DLRN_BF16 && n - at >= 16; at += 16) {
        uint16_t h[16];
        uint32_t u[16];
        memcpy(h, from + 2 * at, sizeof h);
        for (int i = 0; i < 16; i++) u[i] = (uint32_t)h[i] << 16;
        memcpy(to + at, u, sizeof u);
    }
    for (; at < n; at++) {
        uint16_t h;
        memcpy(&h, from + 2 * at, sizeof h);
        to[at] = type == DLRN_F16 ? dlrni_f16_to_f32(h) : dlrni_bf16_to_f32(h);
    }
}

/* Moves the state of a CRC-32 on by four bits. Zip files keep this sum of each member. The
   polynomial is 0xedb88320, bits reflected; the table holds its multiples by all four-bit numbers.
   A table of 16 can be read off and checked by eye, and is a constant. */
DLRNI_INTERNAL uint32_t dlrni_crc_step(uint32_t crc) {
    static const uint32_t table[16] = {0x00000000u, 0x1db71064u, 0x3b6e20c8u, 0x26d930acu,
                                       0x76dc4190u, 0x6b6b51f4u, 0x4db26158u, 0x5005713cu,
                                       0xedb88320u, 0xf00f9344u, 0xd6d6a3e8u, 0xcb61b38cu,
                                       0x9b64c2b0u, 0x86d3d2d4u, 0xa00ae278u, 0xbdbdf21cu};
    return crc >> 4 ^ table[crc & 15];
}

/* Long runs go eight bytes at a time, because a whole file is summed when it is opened: t[k][b] is
   what byte b leaves k bytes further on. The tables are made anew each time, because static ones
   would have to be guarded from other threads. They have 2,048 entries, so runs below 16 KB do
   without. */
DLRNI_INTERNAL uint32_t dlrni_crc32(uint32_t crc, const unsigned char *p, uint64_t n) {
    crc = ~crc;
    if (n >= 16384) {
        uint32_t t[8][256];
        for (uint32_t i = 0; i < 256; i++) t[0][i] = dlrni_crc_step(dlrni_crc_step(i));
        for (int k = 1; k < 8; k++)
            for (uint32_t i = 0; i < 256; i++) t[k][i] = t[k - 1][i] >> 8 ^ t[0][t[k - 1][i] & 255];
        for (; n >= 8; n -= 8, p += 8) {
            crc ^= p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
            crc = t[7][crc & 255] ^ t[6][crc >> 8 & 255] ^ t[5][crc >> 16 & 255] ^ t[4][crc >> 24] ^
                  t[3][p[4]] ^ t[2][p[5]] ^ t[1][p[6]] ^ t[0][p[7]];
        }
    }
    for (; n; n--) crc = dlrni_crc_step(dlrni_crc_step(crc ^ *p++));
    return ~crc;
}

/* Bytes of an element; 0 for a number that is no type, which may come from a caller. */
DLRNI_INTERNAL int64_t dlrni_dtype_size(dlrn_dtype t) {
#define DLRNI_DTYPE_SIZE(name, text, bytes, npy, storage, torch) bytes,
    static const signed char sizes[] = {DLRN_DTYPE_LIST(DLRNI_DTYPE_SIZE)};
#undef DLRNI_DTYPE_SIZE
    return (unsigned)t < DLRN_DTYPE_COUNT ? sizes[t] : 0;
}

/* Short, because errors need it often. */
DLRNI_INTERNAL const char *dlrni_type_name(dlrn_dtype t) {
    return dlrn_name(DLRN_NAMES_DTYPE, (int)t);
}

/* ------------------------------------------------------------------------------------------ */
// >>threads
/* Threads belong to OpenMP or to the host's parallel_for. The order of every sum is set by the
   shapes of arrays; where the number of threads has a say in how work is cut into tasks, no sum
   crosses tasks. So the number of threads never changes a result. */

/* Tasks are handed out one by one, because their costs differ: features fire unevenly, and other
   programs may slow one core. */

DLRN_API void dlrn_parallel_for(dlrn_context *ctx, int64_t n_tasks, dlrn_parallel_body body,
                                void *arg) {
    if (ctx->cfg.parallel_for) {
        ctx->cfg.parallel_for(ctx->cfg.user, n_tasks, body, arg);
        return;
    }
#ifdef _OPENMP
    if (ctx->threads > 1 && n_tasks > 1) {
#pragma omp parallel for schedule(dynamic, 1) num_threads(ctx->threads)
        for (int64_t task = 0; task < n_tasks; task++) body(arg, task, omp_get_thread_num());
        return;
    }
#endif
    for (int64_t task = 0; task < n_tasks; task++) body(arg, task, 0);
}

/* Loops that are estimated to take less than this, in ns on one core, stay on the calling thread.
   By default OpenMP's threads spin while they wait for one another. Where other programs want the
   cores, too, a thread that has been descheduled keeps the rest waiting for a whole time slice, at
   the end of every loop. Measured on two cores under a load of 8: examples/02_train_from_array.c,
   whose loops are short, took 36 to 48 s without this bound, takes 7 s with it, and 6 s on one
   thread. On an idle machine sharing such loops may pay; neither that loss nor the effect on `make
   bench` has been measured. The long loops are far above the bound: the encoding of 2048 rows, d
   512, F 8192 is estimated at 0.5 s. To set it for another machine, time that example with
   OMP_NUM_THREADS=1 and 2, idle and under load, and compare `make bench` before and after. */
#ifndef DLRNI_SERIAL_NS
#define DLRNI_SERIAL_NS 300000.0
#endif

/* dlrn_parallel_for for a loop that may be too short to be shared. ns: a rough estimate of all of
   it on one core, 1 for a number that is moved and 1 for 16 multiply-adds. It is only compared with
   the bound, so a rough figure is enough. Results never depend on it. */
DLRNI_INTERNAL void dlrni_parallel_for(dlrn_context *ctx, int64_t n_tasks, double ns,
                                       dlrn_parallel_body body, void *arg) {
    if (ns < DLRNI_SERIAL_NS)
        for (int64_t task = 0; task < n_tasks; task++) body(arg, task, 0);
    else
        dlrn_parallel_for(ctx, n_tasks, body, arg);
}

/* Such an estimate: rows of `each` numbers, moved or multiplied 16 times. In double, since the
   product of three sizes may not fit. */
DLRNI_INTERNAL double dlrni_ns(int64_t rows, int64_t each) {
    return (double)rows * (double)each;
}

/* The default number of threads; OMP_NUM_THREADS is respected. */
DLRNI_INTERNAL int dlrni_all_cores(void) {
#ifdef _OPENMP
    return omp_get_max_threads();
#else
    return 1;
#endif
}

/* ------------------------------------------------------------------------------------------ */
// >>kernels
/* There is one table of kernels for each instruction set ("set"). A set is one block in the room
   kernel-bodies and one row of dlrni_sets below. A set for another kind of processor also needs a
   macro like DLRNI_X86 (room platform), which says whether the compiler can compile it.

   All sets give the same bits, because the order of every sum is fixed ("canonical"). A vector has
   16 lanes in every set, whatever the processor's registers hold. The sum of a dot product:

       a b   0 .. 15 | 16 .. 31 | 32 .. 47 | ...   lane l = a[l] b[l] + a[l+16] b[l+16] + ...,
                                                   one fused multiply-add after the other
       lanes 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15
             +8: lanes l and l + 8 are added       8 sums
             +4: l and l + 4                       4
             +2: l and l + 2                       2
             +1: l and l + 1                       the result

   The last vector is filled up with zeros. Every other sum is one chain of fused multiply-adds in
   the order of the index that is summed over. 16 lanes are one register of AVX-512; narrower sets
   use two or four registers, which also hides some of a multiply-add's latency. */

/* Adam's numbers for one step, computed in double and rounded to f32 once, as torch does. */
typedef struct dlrni_adam {
    float one_minus_beta1, beta2, one_minus_beta2;
    float step_size;            /* lr / (1 - beta1^t) */
    float root_bias_correction; /* sqrt(1 - beta2^t)  */
    float eps;
} dlrni_adam;

struct dlrni_kernel_table {
    /* sum_i a_i b_i in the canonical order */
    float (*dot)(const float *a, const float *b, int64_t n);
    /* out [count]: the same for x [n] and rows idx[0], idx[1], ... of base */
    void (*dots)(const float *x, int64_t n, const float *base, int64_t ld, const int32_t *idx,
                 int64_t count, float *out);
    /* c [m][n] = a [m][k] b [n][k]^T: every element is a canonical dot */
    void (*dots_nt)(int64_t m, int64_t n, int64_t k, const float *a, int64_t lda, const float *b,
                    int64_t ldb, float *c, int64_t ldc);
    /* c [m][n] = a panel (+ c if beta), a(i, p) = a[i * row + p * col], panel [k][DLRNI_GROUP], n
       <= DLRNI_GROUP; sums over p in order, starting from c */
    void (*outer)(int64_t m, int64_t n, int64_t k, const float *a, int64_t row, int64_t col,
                  const float *panel, int beta, float *c, int64_t ldc);
    /* to [16][16], rows ld_to words apart = the transpose of from [16][16]; words of 4 bytes,
       whatever they hold */
    void (*transpose)(const float *from, int64_t ld_from, float *to, int64_t ld_to);
    /* out [n] += sum_p coef[p] * base[idx[p] * ld ..], p in order */
    void (*gather_axpy)(float *out, int64_t n, const float *base, int64_t ld, const int32_t *idx,
                        const float *coef, int64_t count);
    /* the same for rows `first`, first + 1, ... that were packed to lie in the first cache: it
       prefetches nothing */
    void (*gather_near)(float *out, int64_t n, const float *base, int64_t ld, int32_t first,
                        const int32_t *idx, const float *coef, int64_t count);
    /* Lists the pre-activations f + bias [n], n <= DLRNI_GROUP, above max(threshold, row_floor),
       and NaN, which must not vanish: val the value, key first + index. Returns how many. threshold
       may be NULL. key and val have room for DLRNI_GROUP, all of which may be written. */
    int64_t (*collect)(const float *f, const float *bias, const float *threshold, float row_floor,
                       int64_t n, int32_t first, int32_t *key, float *val);
    void (*axpy)(float a, const float *x, float *y, int64_t n);       /* y += a x        */
    void (*scale)(float *y, float a, int64_t n);                      /* y *= a          */
    void (*sub)(const float *a, const float *b, float *y, int64_t n); /* y = a - b       */
    void (*exp_shift)(float *y, float shift, int64_t n); /* y = exp(y - shift), y <= shift   */
    /* Adam on n numbers: w, m (first moment), v (second) updated from the gradient g */
    void (*adam)(float *w, float *m, float *v, const float *g, int64_t n, const dlrni_adam *a);
    /* to [n] = from [n], f16 or bf16 (two bytes each, of any alignment), exactly */
    void (*widen)(dlrn_dtype type, const char *from, float *to, int64_t n);
    /* CRC-32 as zip has it: crc is that of the bytes before p [n], 0 at the start */
    uint32_t (*crc32)(uint32_t crc, const unsigned char *p, uint64_t n);
};

/* A row's factors in the inequality by which a screen drops a feature (room screen). Its comment
   names the number of the feature that it is multiplied by. */
typedef struct dlrni_screen_row {
    float unit;    /* of the feature's bias          */
    float error;   /* of the feature's rounded norm  */
    float norm;    /* of the feature's error         */
    float floor;   /* of the feature's 1 / scale     */
    int32_t shift; /* added to a sum of integers     */
} dlrni_screen_row;

/* How far rounding moved a row x to x^. Room screen makes the factors from it. */
typedef struct dlrni_rounding {
    float full, rounded, error; /* ||x||^2, ||x^||^2, ||x - x^||^2, each to within a part in 2^10 */
    float scale;                /* x^ = scale * the integers                                     */
    int32_t sum;                /* of the integers                                               */
} dlrni_rounding;

/* A cheaper format for the dense product, which only rules features out (room screen).

   The costs decide whether a screen or the dense product is taken, never a result. They are times
   of a tile in the first two caches, in units of a multiply-add at the f32 peak of the same
   vectors:

                        int8   bf16   int16 (AVX-512)   int16 (AVX2)   f32
     in the table       0.27   0.53   0.72              0.72           1.00   measured on Zen 4
     another processor  0.26   1.99   1.01              0.71           1.01   a Xeon with AMX

   int8 does 4 multiply-adds per instruction, at 94 % of its peak: 1 / (4 x 0.94). bf16 does 2,
   which gives 0.53 likewise. int16 needs two instructions for two. On that Xeon vdpbf16ps is slow,
   so its bf16 screen costs more than the dense product. To measure elsewhere: time `tile` on 64
   rows of d 512, one thread, in turns with a loop of independent multiply-adds. `make bench` (rows
   step) with each DICTLEARN_KERNELS shows whether the choice is right. */
struct dlrni_screen {
    const char *name;
    int rows;   /* of a tile                                                     */
    int size;   /* bytes of an element                                           */
    int packed; /* elements of a feature that lie side by side in a panel        */
    int sums;   /* 1: the products are summed in f32; 0: exactly, in integers    */
    float cost; /* of an element of the product; 1: at the peak of f32 (see above) */
    /* out [n] = x [n] rounded; unsigned_: out is 128 more, as one side of an integer product must
       be */
    void (*round)(const float *x, int64_t n, int unsigned_, void *out, dlrni_rounding *r);
    /* mask [rows]: bit j is 0 if feature j of the panel is certainly off on that row. x [rows], ld
       bytes apart; coef [4][DLRNI_GROUP]: the features' factors (room screen) */
    void (*tile)(const void *panel, const void *x, int64_t ld, int64_t steps, const float *coef,
                 const dlrni_screen_row *row, uint64_t *mask);
};

/* DLRNI_LANES: lanes of a vector. DLRNI_GROUP: features of a group, columns of a packed panel. 48
   are three vectors; with eight rows they take 24 of AVX-512's 32 registers for sums and leave
   eight for operands. DLRNI_SCREEN_ROWS: the largest tile of any screen, for which arrays have
   room. Macros, because C++20 deprecates arithmetic between two enumerations. */
#define DLRNI_LANES 16
#define DLRNI_GROUP 48
#define DLRNI_SCREEN_ROWS 8

/* Compiles the functions between the two for a processor with these features. The rest of the file
   keeps the compiler's own target, so that a plain build has all sets. clang takes an attribute,
   gcc a pragma. A system header must not be included in between: its functions would get the
   target, too. */
#define DLRNI_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define DLRNI_TARGET_BEGIN(features)                                                               \
    DLRNI_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define DLRNI_TARGET_END _Pragma("clang attribute pop")
#else
#define DLRNI_TARGET_BEGIN(features) _Pragma("GCC push_options") DLRNI_PRAGMA(GCC target(features))
#define DLRNI_TARGET_END _Pragma("GCC pop_options")
#endif

/* The sets' blocks, at the end of this file. */
#define DLRNI_COMPILE_SETS
#include DICTLEARN_HEADER_NAME
#undef DLRNI_COMPILE_SETS

/* The sets, from the slowest to the fastest; "auto" takes the last one that runs. `runs` says
   whether this processor and its system can run the set: the compilers' builtin also checks that
   the system saves the registers. At most three screens are listed, the cheapest first. A screen
   whose own `runs` returns 0 is skipped; the first two that remain are used. The scalar set screens
   nothing: it is the oracle of the tests. */
typedef struct dlrni_set_row {
    const char *name;
    int (*runs)(void);
    const dlrni_kernel_table *k;
    struct {
        const dlrni_screen *screen;
        int (*runs)(void); /* NULL: wherever the set runs */
    } choice[3];
} dlrni_set_row;

static const dlrni_set_row dlrni_sets[] = {
    {"scalar", dlrni_scalar_runs, &dlrni_scalar_kernels, {{NULL, NULL}}},
#if DLRNI_X86
    {"avx2",
     dlrni_avx2_runs,
     &dlrni_avx2_kernels,
     {{&dlrni_avx2_screen_int16, NULL}, {&dlrni_avx2_screen_f32, NULL}}},
    {"avx512",
     dlrni_avx512_runs,
     &dlrni_avx512_kernels,
     {{&dlrni_avx512_screen_int16, NULL}, {&dlrni_avx512_screen_f32, NULL}}},
    {"avx512bf16",
     dlrni_avx512bf16_runs,
     &dlrni_avx512_kernels,
     {{&dlrni_avx512bf16_screen, NULL}, {&dlrni_avx512_screen_int16, NULL}}},
    {"avx512vnni",
     dlrni_avx512vnni_runs,
     &dlrni_avx512_kernels,
     {{&dlrni_avx512vnni_screen, NULL},
      {&dlrni_avx512bf16_screen, dlrni_avx512bf16_runs},
      {&dlrni_avx512_screen_int16, NULL}}},
#endif
#if DLRNI_NEON
    {"neon", dlrni_neon_runs, &dlrni_neon_kernels, {{&dlrni_neon_screen_f32, NULL}}},
#endif
};
enum { DLRNI_SETS = sizeof dlrni_sets / sizeof dlrni_sets[0] };
/* Fails to compile when a context has no room for their names. */
typedef char dlrni_sets_fit[(int)DLRNI_SETS <= (int)DLRNI_SETS_MAX ? 1 : -1];

/* Set number `index` of those that can run here; returns 0 beyond the last. */
DLRNI_INTERNAL int dlrni_kernel_set(int index, dlrni_set *set) {
    int i = 0, n = 0;
    for (; i < (int)DLRNI_SETS; i++)
        if (dlrni_sets[i].runs() && index-- == 0) break;
    if (i == (int)DLRNI_SETS) return 0;
    const dlrni_set_row *row = &dlrni_sets[i];
    memset(set, 0, sizeof *set);
    set->name = row->name;
    set->k = row->k;
    for (int c = 0; c < 3 && n < 2; c++)
        if (row->choice[c].screen && (!row->choice[c].runs || row->choice[c].runs()))
            set->screen[n++] = row->choice[c].screen;
    return 1;
}

/* The set of that name. NULL and "auto" take the environment's DICTLEARN_KERNELS, so that one build
   can be tested with every set; without that, the last set that can run. Returns 0 for an unknown
   name: a test that names a set must not silently run another. */
DLRNI_INTERNAL int dlrni_kernel_choice(const char *name, dlrni_set *found) {
    if (!name || !strcmp(name, "auto")) name = getenv("DICTLEARN_KERNELS");
    int any = !name || !*name || !strcmp(name, "auto"), ok = 0;
    dlrni_set set;
    for (int i = 0; dlrni_kernel_set(i, &set); i++)
        if (any || !strcmp(set.name, name)) {
            *found = set;
            ok = 1;
        }
    return ok;
}

/* ------------------------------------------------------------------------------------------ */
// >>context
/* A context is configuration, a kernel set and the last error. It is one block of memory: its
   creation gives a whole context or only a status, because there is no context yet that could hold
   a text. */

/* Appends to a text in a buffer of `size` bytes, *used of them taken; cuts what does not fit. */
DLRNI_INTERNAL DLRN_PRINTF(4, 5) void dlrni_print_more(char *text, size_t size, size_t *used,
                                                       const char *format, ...) {
    va_list args;
    va_start(args, format);
    int n = DICTLEARN_VSNPRINTF(text + *used, size - *used, format, args);
    va_end(args);
    if (n > 0) *used = (size_t)n < size - *used ? *used + (size_t)n : size - 1;
}

/* Fills in what dlrn_context_describe returns: the names of the sets that can run here, and one
   line for logs and bug reports, which shows the set, the threads and who runs them. */
DLRNI_INTERNAL void dlrni_describe(dlrn_context *ctx) {
#ifdef _OPENMP /* slow runs are often builds that lack -fopenmp: the line must show it */
    const char *threading = ctx->cfg.parallel_for ? "the host's" : "OpenMP";
#else
    const char *threading = ctx->cfg.parallel_for ? "the host's" : "no OpenMP";
#endif
    const size_t size = sizeof ctx->text;
    size_t used = 0;
    dlrni_set set;
    dlrni_print_more(ctx->text, size, &used, "dictlearn %s, kernels %s of", DLRN_VERSION_STRING,
                     ctx->set.name);
    for (int i = 0; i < DLRNI_SETS_MAX && dlrni_kernel_set(i, &set); i++) {
        ctx->names[i] = set.name;
        dlrni_print_more(ctx->text, size, &used, " %s", set.name);
    }
    dlrni_print_more(ctx->text, size, &used, ", %d thread%s (%s)", ctx->threads,
                     ctx->threads == 1 ? "" : "s", threading);
}

/* Callbacks that belong together must be set together. Memory of one allocator must not reach
   another's release, and a file that was opened by the host must not be read by the C library. */
DLRNI_INTERNAL int dlrni_config_is_whole(const dlrn_context_config *cfg) {
    const dlrn_io *io = &cfg->io;
    int files = (io->open_file != NULL) + (io->read_file != NULL) + (io->write_file != NULL) +
                (io->close_file != NULL) + (io->file_exists != NULL);
    return !cfg->alloc == !cfg->release && (files == 0 || files == 5);
}

/* The set is chosen once: later changes of DICTLEARN_KERNELS affect only later contexts. */
DLRN_API dlrn_status dlrn_context_create(const dlrn_context_config *config, dlrn_context **out) {
    dlrn_context_config cfg;
    dlrni_set set;
    memset(&cfg, 0, sizeof cfg);
    if (config) cfg = *config; /* NULL: all defaults */
    *out = NULL;               /* dlrn_error(NULL) has a text for this case */
    if (!dlrni_kernel_choice(cfg.kernels, &set) || cfg.threads < 0 || !dlrni_config_is_whole(&cfg))
        return DLRN_ERR_ARGUMENT;
    dlrn_context *ctx = (dlrn_context *)dlrni_host_alloc(&cfg, sizeof *ctx);
    if (!ctx) return DLRN_ERR_MEMORY; /* directly from the hook: dlrn_alloc needs a context */
    memset(ctx, 0, sizeof *ctx);
    ctx->cfg = cfg;
    ctx->cfg.kernels = set.name; /* a literal: the caller's string need not live on */
    ctx->set = set;
    ctx->k = set.k; /* a copy: every kernel call goes through it */
    ctx->threads = cfg.threads ? cfg.threads : dlrni_all_cores();
#ifndef _OPENMP
    if (!cfg.parallel_for) ctx->threads = 1; /* scratch is sized by threads: none for absent ones */
#endif
    dlrni_describe(ctx);
    *out = ctx;
    return DLRN_OK;
}

/* Frees nothing but the context: its objects use its allocator and must be gone before. */
DLRN_API void dlrn_context_destroy(dlrn_context *ctx) {
    if (!ctx) return;
    dlrn_context_config cfg = ctx->cfg; /* the allocator outlives the context that names it */
    dlrni_host_release(&cfg, ctx);
}

/* The texts are the context's own, so that the caller frees nothing. */
DLRN_API dlrn_context_info dlrn_context_describe(const dlrn_context *ctx) {
    dlrn_context_info info = {ctx->set.name, ctx->names, ctx->threads, ctx->text};
    return info;
}

/* ------------------------------------------------------------------------------------------ */
// >>matrix
/* Matrices and what is done with them: products, transposition, dot, norm, top-k. A tensor is a
   view: a pointer, two sizes and a stride. */

/* Views of constant data are needed everywhere, and C has no const tensor: the cast through
   uintptr_t drops const without a warning. Functions that write to a tensor say so. */

DLRN_API dlrn_tensor dlrn_view(const float *data, int64_t rows, int64_t cols, int64_t stride) {
    dlrn_tensor t = {(float *)(uintptr_t)data, rows, cols, stride};
    return t;
}

/* Zeroed, so that a sum can start at once and no uninitialised number is ever saved. */
DLRN_API dlrn_status dlrn_tensor_alloc(dlrn_context *ctx, int64_t rows, int64_t cols,
                                       dlrn_tensor *out) {
    int64_t n;
    memset(out, 0, sizeof *out);
    DLRNI_REQUIRE(ctx, rows >= 0 && cols >= 0, "rows and cols must not be negative");
    if (!dlrni_mul(rows, cols, &n))
        return dlrn_fail(ctx, DLRN_ERR_MEMORY, "a tensor of %lld x %lld does not fit in memory",
                         (long long)rows, (long long)cols);
    float *data = DLRNI_NEW_ZERO(ctx, float, n);
    if (!data) return DLRN_ERR_MEMORY;
    *out = dlrn_view(data, rows, cols, cols);
    return DLRN_OK;
}

/* ---- Products ----

   Dense products. A task computes a block of c: up to 1024 rows, up to 8 panels of 48 columns. It
   walks the depth in slices of 512:

            depth                        8 panels of 48
         +--------+--------+         +----+----+ ... +----+
     a   | slice  |        |     b   |    |    |     |    |  slice
         | copied |        |         +----+----+ ... +----+
         +--------+--------+         packed one at a time; all rows of the slice pass by it

   The rows of a are copied close together. Rows a power of two apart share their cache sets and
   would evict one another. A packed panel is read in one run from the second cache. Measured on Zen
   4, two cores, as a share of the peak, 2048 x 8192 x 512: NT 0.92, NN 0.90, TN 0.90; without the
   copy, TN 0.74. With 256 rows a task and slices of 128, packing and starting a tile weigh more:
   0.80, 0.78, 0.76. To measure elsewhere: `make bench`, rows gemm. A panel (depth x 48 x 4 = 96 KB)
   must leave most of the second cache free; the copied rows take 2 MB at the most. */

enum {
    DLRNI_GEMM_ROWS = 1024,    /* of a task at the most: share the packing of a panel          */
    DLRNI_GEMM_ROWS_MIN = 128, /* below, packing a panel costs too much beside its product     */
    DLRNI_GEMM_PANELS = 8,     /* of a task: share the copied rows; 4 to 8: TN 0.80 to 0.83   */
    DLRNI_GEMM_DEPTH =
        DLRN_MATMUL_WORK / DLRNI_GROUP, /* of a slice: a panel fills the work space */
    DLRNI_GEMM_STRIDE = DLRNI_GEMM_DEPTH + DLRNI_LANES /* of copied rows: no power of two */
};

/* c [m][n] = op(a, b) (+ c), cut into blocks_m x blocks_n tasks. NN, NT and TN differ only in how a
   and b are packed; one kernel computes all three. */
typedef struct dlrni_gemm_job {
    const dlrni_kernel_table *k;
    dlrn_matmul_op op;
    int64_t m, n, depth, lda, ldb, ldc; /* depth: the index that is summed over               */
    const float *a, *b;
    float *c;
    int beta;
    int64_t rows, blocks_m, blocks_n; /* rows of a task; blocks of rows, of columns           */
    int copies_a;                     /* whether a task copies its rows of a                  */
    float *work;                      /* [workers][work_size]: a panel, then the copied rows  */
    int64_t work_size;
} dlrni_gemm_job;

/* to [cols][rows] = from [rows][cols] transposed, on this thread. It works in squares of 16 x 16,
   so that each cache line is read once, and whole; the edges go number by number. */
DLRNI_INTERNAL void dlrni_transpose_here(const dlrni_kernel_table *k, const float *from,
                                         int64_t ld_from, int64_t rows, int64_t cols, float *to,
                                         int64_t ld_to) {
    int64_t whole_rows = rows / DLRNI_LANES * DLRNI_LANES, /* in squares */
        whole_cols = cols / DLRNI_LANES * DLRNI_LANES;
    for (int64_t r = 0; r < whole_rows; r += DLRNI_LANES)
        for (int64_t c = 0; c < whole_cols; c += DLRNI_LANES)
            k->transpose(from + r * ld_from + c, ld_from, to + c * ld_to + r, ld_to);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = r < whole_rows ? whole_cols : 0; c < cols; c++)
            to[c * ld_to + r] = from[r * ld_from + c];
}

/* Tasks take columns of `from`, which are whole rows of `to`: no two tasks write to one cache line
   (where rows of `to` are whole lines). */
typedef struct dlrni_transpose_job {
    const dlrni_kernel_table *k; /* its transpose moves a square of 16 x 16 */
    const float *from;
    int64_t ld_from, rows, cols;
    float *to;
    int64_t ld_to;
} dlrni_transpose_job;
enum { DLRNI_TRANSPOSE_COLS = 64 }; /* of a task: four cache lines of each row of `from` */

DLRNI_INTERNAL void dlrni_transpose_task(void *arg, int64_t task, int worker) {
    const dlrni_transpose_job *j = (const dlrni_transpose_job *)arg;
    int64_t c = task * DLRNI_TRANSPOSE_COLS, cols = dlrni_min(DLRNI_TRANSPOSE_COLS, j->cols - c);
    (void)worker;
    dlrni_transpose_here(j->k, j->from + c, j->ld_from, j->rows, cols, j->to + c * j->ld_to,
                         j->ld_to);
}

/* The same on all threads. Any words of 4 bytes may be transposed, not only floats: kernels move
   them without arithmetic, which could change a signalling NaN. from and to must not overlap. */
DLRNI_INTERNAL void dlrni_transpose(dlrn_context *ctx, const float *from, int64_t ld_from,
                                    int64_t rows, int64_t cols, float *to, int64_t ld_to) {
    dlrni_transpose_job job = {ctx->k, from, ld_from, rows, cols, to, ld_to};
    dlrni_parallel_for(ctx, dlrni_ceil_div(cols, DLRNI_TRANSPOSE_COLS), dlrni_ns(rows, cols),
                       dlrni_transpose_task, &job);
}

/* panel [depth][DLRNI_GROUP] = b transposed, b [n][depth]. Rows that b lacks become zeros: kernels
   always compute whole panels, and must not read memory that was never written. */
DLRNI_INTERNAL void dlrni_pack_rows(const dlrni_kernel_table *k, const float *b, int64_t ldb,
                                    int64_t n, int64_t depth, float *panel) {
    dlrni_transpose_here(k, b, ldb, n, depth, panel, DLRNI_GROUP);
    for (int64_t p = 0; p < depth && n < DLRNI_GROUP; p++)
        memset(panel + p * DLRNI_GROUP + n, 0, (size_t)(DLRNI_GROUP - n) * sizeof(float));
}

/* panel [depth][DLRNI_GROUP] = b [depth][n]; columns that b lacks become zeros. Rows are prefetched
   16 ahead: each is too short for the processor to predict where the next one lies. Measured on Zen
   4, 2048 x 512 x 8192, NN: 0.74 to 0.82 of the peak. */
DLRNI_INTERNAL void dlrni_pack_cols(const float *b, int64_t ldb, int64_t n, int64_t depth,
                                    float *panel) {
    enum { AHEAD = 16 };
    for (int64_t p = 0; p < depth; p++) {
        for (int64_t q = 0; q < DLRNI_GROUP && p + AHEAD < depth; q += DLRNI_LANES)
            DLRNI_PREFETCH_FAR(b + (p + AHEAD) * ldb + q);
        memcpy(panel + p * DLRNI_GROUP, b + p * ldb, (size_t)n * sizeof(float));
        memset(panel + p * DLRNI_GROUP + n, 0, (size_t)(DLRNI_GROUP - n) * sizeof(float));
    }
}

/* a [m][depth] = rows i0, i0 + 1, ... and columns p, p + 1, ... of the product's left side. With TN
   it is transposed on the way, so that the kernel always walks along rows. */
DLRNI_INTERNAL void dlrni_pack_left(const dlrni_gemm_job *j, int64_t i0, int64_t m, int64_t p,
                                    int64_t depth, float *a) {
    if (j->op == DLRN_TN)
        dlrni_transpose_here(j->k, j->a + p * j->lda + i0, j->lda, depth, m, a, DLRNI_GEMM_STRIDE);
    for (int64_t i = 0; i < m && j->op != DLRN_TN; i++)
        memcpy(a + i * DLRNI_GEMM_STRIDE, j->a + (i0 + i) * j->lda + p, (size_t)depth * sizeof *a);
}

/* Task: one block of c. Successive tasks keep the block of the larger operand, which is then still
   in the cache: `down` walks through the rows of c first, else through its columns. The sums of an
   element go through the depth in order, slice after slice, starting from c, so that the size of a
   slice does not change a bit. */
DLRNI_INTERNAL void dlrni_gemm_block(void *arg, int64_t task, int worker) {
    const dlrni_gemm_job *j = (const dlrni_gemm_job *)arg;
    const int down = j->m < j->n;
    int64_t i0 = (down ? task % j->blocks_m : task / j->blocks_n) * j->rows,
            m = dlrni_min(j->rows, j->m - i0);
    int64_t j0 = (down ? task / j->blocks_m : task % j->blocks_n) * DLRNI_GEMM_PANELS * DLRNI_GROUP;
    int64_t j1 = dlrni_min(j0 + DLRNI_GEMM_PANELS * DLRNI_GROUP, j->n);
    int64_t row = j->op == DLRN_TN ? 1 : j->lda, col = j->op == DLRN_TN ? j->lda : 1;
    float *c = j->c + i0 * j->ldc, *panel = j->work + worker * j->work_size;
    float *copy = j->copies_a ? panel + DLRN_MATMUL_WORK : NULL;
    if (copy) row = DLRNI_GEMM_STRIDE, col = 1;
    for (int64_t i = 0; i < m && !j->beta && !j->depth; i++) /* a sum of nothing is 0 */
        memset(c + i * j->ldc + j0, 0, (size_t)(j1 - j0) * sizeof *c);
    for (int64_t p = 0; p < j->depth; p += DLRNI_GEMM_DEPTH) {
        int64_t depth = dlrni_min(DLRNI_GEMM_DEPTH, j->depth - p);
        const float *a = copy ? copy : j->a + i0 * row + p * col;
        if (copy) dlrni_pack_left(j, i0, m, p, depth, copy);
        for (int64_t at = j0; at < j1; at += DLRNI_GROUP) {
            int64_t n = dlrni_min(DLRNI_GROUP, j1 - at);
            if (j->op == DLRN_NT)
                dlrni_pack_rows(j->k, j->b + at * j->ldb + p, j->ldb, n, depth, panel);
            else
                dlrni_pack_cols(j->b + p * j->ldb + at, j->ldb, n, depth, panel);
            /* from the second slice on, c holds the sums so far */
            j->k->outer(m, n, depth, a, row, col, panel, j->beta || p, c + at, j->ldc);
        }
    }
}

/* A matrix may be empty. Its rows must not overlap, or tasks would write to the same numbers. */
DLRNI_INTERNAL int dlrni_tensor_is_sound(dlrn_tensor t) {
    return t.rows >= 0 && t.cols >= 0 && t.stride >= t.cols;
}

/* Says which matrix is wrong and shows all three shapes: the usual mistake is a wrong `op`. beta
   other than 0 and 1 would round once more and give other bits than a chain of multiply-adds. */
DLRNI_INTERNAL dlrn_status dlrni_matmul_check(dlrn_context *ctx, dlrn_matmul_op op, dlrn_tensor a,
                                              dlrn_tensor b, float beta, dlrn_tensor c) {
    const int64_t m = op == DLRN_TN ? a.cols : a.rows, k = op == DLRN_TN ? a.rows : a.cols;
    const int64_t n = op == DLRN_NT ? b.rows : b.cols, k_of_b = op == DLRN_NT ? b.cols : b.rows;
    const dlrn_tensor *all[] = {&a, &b, &c}; /* "abc"[i] names them in the error */
    DLRNI_REQUIRE_IN(ctx, "dlrn_matmul", op == DLRN_NN || op == DLRN_NT || op == DLRN_TN,
                     "unknown operation");
    DLRNI_REQUIRE_IN(ctx, "dlrn_matmul", beta == 0.0f || beta == 1.0f, "beta must be 0 or 1");
    for (int i = 0; i < 3; i++)
        if (!dlrni_tensor_is_sound(*all[i]))
            return dlrn_fail(ctx, DLRN_ERR_ARGUMENT,
                             "dlrn_matmul: %c: expected rows, cols >= 0 and stride >= cols, "
                             "found [%lld][%lld], stride %lld",
                             "abc"[i], (long long)all[i] -> rows, (long long)all[i] -> cols,
                             (long long)all[i] -> stride);
    if (k != k_of_b || c.rows != m || c.cols != n)
        return dlrn_fail(ctx, DLRN_ERR_SHAPE,
                         "dlrn_matmul: a [%lld][%lld], b [%lld][%lld], c [%lld][%lld] do not fit",
                         (long long)a.rows, (long long)a.cols, (long long)b.rows, (long long)b.cols,
                         (long long)c.rows, (long long)c.cols);
    return DLRN_OK;
}

/* Cuts the product into tasks: the largest blocks that still give four tasks a thread, because the
   last task to end decides how long all take. */
DLRNI_INTERNAL void dlrni_gemm_plan(dlrni_gemm_job *job, int threads) {
    job->blocks_n = dlrni_ceil_div(job->n, DLRNI_GEMM_PANELS * DLRNI_GROUP);
    job->rows = DLRNI_GEMM_ROWS;
    while (job->rows > DLRNI_GEMM_ROWS_MIN &&
           dlrni_ceil_div(job->m, job->rows) * job->blocks_n < 4 * threads)
        job->rows /= 2;
    job->blocks_m = dlrni_ceil_div(job->m, job->rows);
}

/* On the context's threads. Every thread has a panel and a copy of its rows of a, which are
   allocated anew each time: a product is long, and a context keeps no scratch. */
DLRNI_INTERNAL dlrn_status dlrni_gemm_parallel(dlrn_context *ctx, dlrni_gemm_job *job) {
    dlrni_gemm_plan(job, ctx->threads);
    job->copies_a = 1;
    job->work_size = DLRN_MATMUL_WORK + dlrni_min(job->m, job->rows) * DLRNI_GEMM_STRIDE;
    job->work = DLRNI_NEW(ctx, float, ctx->threads * job->work_size);
    if (!job->work) return DLRN_ERR_MEMORY;
    dlrni_parallel_for(ctx, job->blocks_m * job->blocks_n,
                       dlrni_ns(job->m, job->n) * (double)job->depth / 16, dlrni_gemm_block, job);
    dlrn_free(ctx, job->work);
    return DLRN_OK;
}

/* On this thread alone, in the caller's `work`, which holds a panel and no copy of a: for the small
   products of a language model's attention, inside a task. */
DLRNI_INTERNAL void dlrni_gemm_serial(dlrni_gemm_job *job, float *work) {
    dlrni_gemm_plan(job, 1);
    job->work = work;
    job->work_size = DLRN_MATMUL_WORK;
    for (int64_t task = 0; task < job->blocks_m * job->blocks_n; task++)
        dlrni_gemm_block(job, task, 0);
}

#ifdef DICTLEARN_CBLAS
/* Returns 0 where BLAS cannot do it: its sizes are int, and it refuses empty matrices. */
DLRNI_INTERNAL int dlrni_gemm_blas(const dlrni_gemm_job *j) {
    const int64_t size[] = {j->m, j->n, j->depth, j->lda, j->ldb, j->ldc};
    for (int i = 0; i < 6; i++)
        if (size[i] < 1 || size[i] > INT32_MAX) return 0;
    cblas_sgemm(CblasRowMajor, j->op == DLRN_TN ? CblasTrans : CblasNoTrans,
                j->op == DLRN_NT ? CblasTrans : CblasNoTrans, (int)j->m, (int)j->n, (int)j->depth,
                1.0f, j->a, (int)j->lda, j->b, (int)j->ldb, j->beta ? 1.0f : 0.0f, j->c,
                (int)j->ldc);
    return 1;
}
#endif

/* Training and encoding do not come here: they call the kernels. So a BLAS changes the bits of a
   host's own products only. */
DLRN_API dlrn_status dlrn_matmul(dlrn_context *ctx, dlrn_matmul_op op, dlrn_tensor a, dlrn_tensor b,
                                 float beta, dlrn_tensor c, float *work) {
    dlrni_gemm_job job;
    DLRNI_TRY(dlrni_matmul_check(ctx, op, a, b, beta, c));
    memset(&job, 0, sizeof job);
    job.k = ctx->k;
    job.op = op;
    job.m = c.rows;
    job.n = c.cols;
    job.depth = op == DLRN_TN ? a.rows : a.cols;
    job.a = a.data;
    job.lda = a.stride;
    job.b = b.data;
    job.ldb = b.stride;
    job.c = c.data;
    job.ldc = c.stride;
    job.beta = beta != 0.0f;
    if (work) { /* also with a BLAS, whose threads must not start inside a task */
        dlrni_gemm_serial(&job, work);
        return DLRN_OK;
    }
#ifdef DICTLEARN_CBLAS
    if (dlrni_gemm_blas(&job)) return DLRN_OK;
#endif
    return dlrni_gemm_parallel(ctx, &job);
}

/* ---- Vectors ----

   Public forms of the kernels, for a host's own loops. They stay on the calling thread, so they may
   be called inside a task. */

/* The canonical dot product, the same bits in every set. */
DLRN_API float dlrn_dot(dlrn_context *ctx, const float *a, const float *b, int64_t n) {
    return ctx->k->dot(a, b, n);
}

/* In f32 the sum of squares overflows for numbers beyond 1e19, and loses those below 1e-19. Then it
   is formed again in double, which holds the square of every float. The lower bound is far above
   the smallest f32, so that squares which underflow are too small to matter. */
DLRN_API float dlrn_norm(dlrn_context *ctx, const float *a, int64_t n) {
    float square = ctx->k->dot(a, a, n);
    if (square > 1e-30f && square <= FLT_MAX) return sqrtf(square);
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += (double)a[i] * (double)a[i];
    return (float)sqrt(sum);
}

/* y += a x, each element one fused multiply-add. */
DLRN_API void dlrn_axpy(dlrn_context *ctx, float a, const float *x, float *y, int64_t n) {
    ctx->k->axpy(a, x, y, n);
}

/* Whether element i belongs after element j in descending order: smaller, or equal and later; NaN
   last. A total order: ties cannot make the result depend on the algorithm. */
DLRNI_INTERNAL int dlrni_ranks_after(const float *x, int64_t i, int64_t j) {
    int nan_i = x[i] != x[i], nan_j = x[j] != x[j];
    if (nan_i != nan_j) return nan_i;
    return x[i] < x[j] || (!(x[i] > x[j]) && i > j);
}

/* Restores the heap index [n] below `at`. The element that ranks last is on top: it is the one that
   a better element replaces. */
DLRNI_INTERNAL void dlrni_sift_down(const float *x, int64_t *index, int64_t n, int64_t at) {
    for (;;) {
        int64_t child = 2 * at + 1;
        if (child >= n) return;
        /* of two children, the one that ranks later must become the parent of the other */
        if (child + 1 < n && dlrni_ranks_after(x, index[child + 1], index[child])) child++;
        if (!dlrni_ranks_after(x, index[child], index[at])) return;
        int64_t swap = index[at];
        index[at] = index[child];
        index[child] = swap;
        at = child;
    }
}

/* Keeps the k best so far in a heap, then sorts it by taking its top away. O(n log k) at the worst;
   O(n) where few elements enter the heap. */
DLRN_API dlrn_status dlrn_topk(dlrn_context *ctx, const float *x, int64_t n, int64_t k,
                               int64_t *index, float *value) {
    DLRNI_REQUIRE(ctx, k >= 0 && k <= n, "k must be in [0, n]");
    for (int64_t i = 0; i < k; i++) index[i] = i;
    for (int64_t i = k / 2 - 1; i >= 0; i--) dlrni_sift_down(x, index, k, i);
    for (int64_t i = k; i < n && k > 0; i++) {
        if (dlrni_ranks_after(x, i, index[0])) continue;
        index[0] = i;
        dlrni_sift_down(x, index, k, 0);
    }
    for (int64_t last = k - 1; last > 0; last--) {
        int64_t top = index[0];
        index[0] = index[last];
        index[last] = top;
        dlrni_sift_down(x, index, last, 0);
    }
    for (int64_t i = 0; value && i < k; i++) value[i] = x[index[i]];
    return DLRN_OK;
}

/* ------------------------------------------------------------------------------------------ */
// >>sparse
/* Codes by row (CSR): col and val hold the entries of row 0, then those of row 1, ...; row_ptr[i]
   is where row i begins. A caller starts with a zeroed struct and reuses it, so that a loop over
   batches stops allocating after the largest one. */

/* Codes that were never filled have no context, and nothing to free. */
DLRN_API void dlrn_sparse_free(dlrn_sparse *codes) {
    if (!codes) return;
    if (codes->ctx) {
        dlrn_free(codes->ctx, codes->row_ptr);
        dlrn_free(codes->ctx, codes->col);
        dlrn_free(codes->ctx, codes->val);
    }
    memset(codes, 0, sizeof *codes);
}

/* Ensures room for rows + 1 row pointers and nnz entries, and keeps the contents. col and val grow
   one after the other. nnz_cap is set last: if only col could grow, the codes stay usable at their
   old size. */
DLRNI_INTERNAL dlrn_status dlrni_sparse_reserve(dlrn_context *ctx, dlrn_sparse *codes, int64_t rows,
                                                int64_t nnz) {
    int64_t used = codes->row_ptr ? codes->row_ptr[codes->rows] : 0, cap = codes->nnz_cap;
    int64_t pointers = codes->row_ptr ? codes->rows + 1 : 0;
    codes->ctx = ctx;
    if (nnz > cap) nnz += nnz / 4; /* batches differ: a slightly larger one should fit, too */
    if (!DLRNI_GROW(ctx, &codes->row_ptr, &codes->row_cap, pointers, rows + 1))
        return DLRN_ERR_MEMORY;
    if (!DLRNI_GROW(ctx, &codes->col, &cap, used, nnz)) return DLRN_ERR_MEMORY;
    if (!DLRNI_GROW(ctx, &codes->val, &codes->nnz_cap, used, cap)) return DLRN_ERR_MEMORY;
    return DLRN_OK;
}

/* Empties codes for a matrix of `cols` columns whose rows are to be appended. */
DLRNI_INTERNAL dlrn_status dlrni_sparse_begin(dlrn_context *ctx, dlrn_sparse *codes, int64_t cols) {
    if (codes->ctx != ctx) dlrn_sparse_free(codes); /* its blocks are of another allocator */
    codes->rows = 0;
    codes->cols = cols;
    if (codes->row_ptr) codes->row_ptr[0] = 0;
    DLRNI_TRY(dlrni_sparse_reserve(ctx, codes, 0, 0));
    codes->row_ptr[0] = 0;
    return DLRN_OK;
}

/* Rows are compressed in two passes, count and fill, because a row's place depends on all rows
   before it. Each pass shares rows among threads. */
typedef struct dlrni_compress_job {
    const float *f;         /* [n][cols] */
    int64_t n, cols, first; /* first: row of codes that row 0 of f becomes */
    dlrn_sparse *codes;
} dlrni_compress_job;

/* Task: how many entries a row has, stored where the sum over rows will make a pointer of it. */
DLRNI_INTERNAL void dlrni_count_row(void *arg, int64_t row, int worker) {
    const dlrni_compress_job *j = (const dlrni_compress_job *)arg;
    const float *f = j->f + row * j->cols;
    int64_t n = 0;
    (void)worker;
    for (int64_t c = 0; c < j->cols; c++) n += f[c] != 0.0f; /* a NaN counts: it must not vanish */
    j->codes->row_ptr[j->first + row + 1] = n;
}

/* Task: the entries of a row, with the same test as above, or they would not fit. */
DLRNI_INTERNAL void dlrni_fill_row(void *arg, int64_t row, int worker) {
    const dlrni_compress_job *j = (const dlrni_compress_job *)arg;
    const float *f = j->f + row * j->cols;
    int64_t at = j->codes->row_ptr[j->first + row];
    (void)worker;
    for (int64_t c = 0; c < j->cols; c++)
        if (f[c] != 0.0f) {
            j->codes->col[at] = (int32_t)c;
            j->codes->val[at++] = f[c];
        }
}

/* Appends the non-zeros of f [n][codes->cols]. codes->rows grows last, so that a failure leaves the
   rows that were there. */
DLRNI_INTERNAL dlrn_status dlrni_sparse_append(dlrn_context *ctx, dlrn_sparse *codes,
                                               const float *f, int64_t n) {
    dlrni_compress_job job = {f, n, codes->cols, codes->rows, codes};
    DLRNI_TRY(dlrni_sparse_reserve(ctx, codes, codes->rows + n, codes->nnz_cap));
    dlrni_parallel_for(ctx, n, dlrni_ns(n, codes->cols), dlrni_count_row, &job);
    int64_t *p = codes->row_ptr + codes->rows;
    for (int64_t i = 0; i < n; i++) p[i + 1] += p[i]; /* counts become pointers */
    DLRNI_TRY(dlrni_sparse_reserve(ctx, codes, codes->rows + n, codes->row_ptr[codes->rows + n]));
    dlrni_parallel_for(ctx, n, dlrni_ns(n, codes->cols), dlrni_fill_row, &job);
    codes->rows += n;
    return DLRN_OK;
}

/* ------------------------------------------------------------------------------------------ */
// >>dictionary
/* A dictionary is three things: parameters by role, a formula (plain data: how the parameters turn
   x into f and f into x_hat), and the name of its family. Work on every parameter (allocate, copy,
   check) is a loop over roles, so that a new role needs no new code for it. */

/* The size that a letter of DLRN_ROLE_LIST stands for. */
DLRNI_INTERNAL int64_t dlrni_extent(const dlrn_dictionary *dict, char letter) {
    /* '1' and all others: a single number */
    return letter == 'F'   ? dict->features
           : letter == 'I' ? dict->d_in
           : letter == 'O' ? dict->d_out
           : letter == 'S' ? dict->skip_rows
                           : 1;
}

/* A row of DLRN_ROLE_LIST as data, for the loops over roles. */
typedef struct dlrni_role {
    const char *name; /* in checkpoints and in errors */
    char rows, cols;  /* F, I, O, S or 1              */
} dlrni_role;

#define DLRNI_ROLE(role, name, rows, cols) {name, rows, cols},
static const dlrni_role dlrni_role_table[DLRN_ROLE_COUNT] = {DLRN_ROLE_LIST(DLRNI_ROLE)};
#undef DLRNI_ROLE

/* How many numbers a role has in this dictionary. The product cannot overflow: dlrni_check_sizes
   has tried it. */
DLRNI_INTERNAL int64_t dlrni_role_size(const dlrn_dictionary *dict, int role) {
    return dlrni_extent(dict, dlrni_role_table[role].rows) *
           dlrni_extent(dict, dlrni_role_table[role].cols);
}

/* How new weights are drawn. TORCH: as dictionary_learning's AutoEncoder does. TIED: as its TopK
   and JumpReLU classes do; an encoder that starts as the decoder's transpose leaves fewer features
   dead (Gao et al., 2024). */
typedef enum dlrni_start {
    DLRNI_START_TORCH, /* encoder and its bias U(-1/sqrt(d), 1/sqrt(d)), as torch.nn.Linear */
    DLRNI_START_TIED   /* encoder = decoder, biases 0                                       */
} dlrni_start;

/* The encoder of a family that has its own: pre-activations f [n][F] from the rows z - center, xc
   [n][d_in], which it may overwrite. */
typedef dlrn_status (*dlrni_own_encoder)(const dlrn_dictionary *dict, float *xc, int64_t n,
                                         float *f);

/* What a family is by default. A loaded dictionary may have another k or threshold. */
typedef struct dlrni_family {
    const char *name;
    unsigned roles; /* a set: DLRNI_BIT(role) | ... */
    dlrni_start start;
    double threshold; /* of new features, where the family has thresholds */
    dlrn_formula formula;
    dlrni_own_encoder encode; /* NULL: p = ENCODER (z - center) + ENCODER_BIAS */
} dlrni_family;

/* Sets of roles are bits of an unsigned number. */
#define DLRNI_BIT(role) (1u << (role))
/* One affine map in and one out: what most families have. */
#define DLRNI_AFFINE                                                                               \
    (DLRNI_BIT(DLRN_ENCODER) | DLRNI_BIT(DLRN_ENCODER_BIAS) | DLRNI_BIT(DLRN_DECODER) |            \
     DLRNI_BIT(DLRN_OUTPUT_BIAS))

/* A formula as most families have it. */
#define DLRNI_FORMULA(center, gate, select, k)                                                     \
    { DLRN_NORMALISE_NONE, center, gate, select, k, -1, 1, 1, DLRN_OFF, DLRN_OFF }

/* Encoders of families that have their own (room encoders). */
DLRNI_INTERNAL dlrn_status dlrni_encode_pursuit(const dlrn_dictionary *dict, float *xc, int64_t n,
                                                float *f);
DLRNI_INTERNAL dlrn_status dlrni_encode_glu(const dlrn_dictionary *dict, float *xc, int64_t n,
                                            float *f);
DLRNI_INTERNAL dlrn_status dlrni_encode_cosine(const dlrn_dictionary *dict, float *xc, int64_t n,
                                               float *f);
DLRNI_INTERNAL dlrn_status dlrni_encode_gated_top_k(const dlrn_dictionary *dict, float *xc,
                                                    int64_t n, float *f);

/* Names are those of dictionary_learning's classes, where it has the family. */
static const dlrni_family dlrni_family_table[] = {
    /* f = ReLU(W_e (x - b) + b_e), x_hat = W_d f + b */
    {"AutoEncoder", DLRNI_AFFINE, DLRNI_START_TORCH, 0,
     DLRNI_FORMULA(DLRN_CENTER_OUTPUT_BIAS, DLRN_GATE_RELU, DLRN_SELECT_ALL, 0), NULL},
    /* f = the k largest of ReLU(W_e (x - b) + b_e) in each row, x_hat = W_d f + b
       (Gao et al., "Scaling and evaluating sparse autoencoders", 2024) */
    {"AutoEncoderTopK", DLRNI_AFFINE, DLRNI_START_TIED, 0,
     DLRNI_FORMULA(DLRN_CENTER_OUTPUT_BIAS, DLRN_GATE_RELU, DLRN_SELECT_TOP_K, 64), NULL},
    /* f = p where p > max(threshold, 0), p = W_e x + b_e; x_hat = W_d f + b
       (Rajamanoharan et al., "Jumping ahead", 2024) */
    {"JumpReluAutoEncoder", DLRNI_AFFINE | DLRNI_BIT(DLRN_THRESHOLD), DLRNI_START_TIED, 0.001,
     DLRNI_FORMULA(DLRN_CENTER_NONE, DLRN_GATE_JUMP, DLRN_SELECT_ALL, 0), NULL},
    /* f = p where p > max(threshold, 0), one threshold for all; trained with the k n largest of a
       batch of n rows (Bussmann et al., "BatchTopK sparse autoencoders", 2024) */
    {"BatchTopKSAE", DLRNI_AFFINE, DLRNI_START_TIED, 0,
     DLRNI_FORMULA(DLRN_CENTER_OUTPUT_BIAS, DLRN_GATE_JUMP, DLRN_SELECT_ALL, 64), NULL},
    /* the same; trained so that the first group_sizes also reconstruct
       (Bussmann et al., "Learning multi-level features with Matryoshka SAEs", 2025) */
    {"MatryoshkaBatchTopKSAE", DLRNI_AFFINE, DLRNI_START_TIED, 0,
     DLRNI_FORMULA(DLRN_CENTER_OUTPUT_BIAS, DLRN_GATE_JUMP, DLRN_SELECT_ALL, 64), NULL},
    /* f = max(e^s (p - b_e) + b_v, 0) where p > 0, p = W_e (x - b) + b_e
       (Rajamanoharan et al., "Improving dictionary learning with gated SAEs", 2024) */
    {"GatedAutoEncoder", DLRNI_AFFINE | DLRNI_BIT(DLRN_LOG_SCALE) | DLRNI_BIT(DLRN_VALUE_BIAS),
     DLRNI_START_TIED, 0,
     DLRNI_FORMULA(DLRN_CENTER_OUTPUT_BIAS, DLRN_GATE_GATED, DLRN_SELECT_ALL, 0), NULL},
    /* f = the k of largest size of W_e (x - b) + b_e in each row, with their signs (SAELens) */
    {"AbsTopK", DLRNI_AFFINE, DLRNI_START_TIED, 0,
     DLRNI_FORMULA(DLRN_CENTER_OUTPUT_BIAS, DLRN_GATE_LINEAR, DLRN_SELECT_ABS_TOP_K, 64), NULL},
    /* f = the largest of ReLU(W_e (x - b) + b_e) in each of k groups (sparsify) */
    {"GroupMax", DLRNI_AFFINE, DLRNI_START_TIED, 0,
     DLRNI_FORMULA(DLRN_CENTER_OUTPUT_BIAS, DLRN_GATE_RELU, DLRN_SELECT_GROUP_MAX, 64), NULL},
    /* the atom that fits the rest of x best, again and again (SAELens) */
    {"MatchingPursuit", DLRNI_BIT(DLRN_DECODER) | DLRNI_BIT(DLRN_OUTPUT_BIAS), DLRNI_START_TIED, 0,
     DLRNI_FORMULA(DLRN_CENTER_OUTPUT_BIAS, DLRN_GATE_RELU, DLRN_SELECT_ALL, 0),
     dlrni_encode_pursuit},
    /* p = (W_e x + b_e) sigmoid(W_g x + b_g), f = ReLU(p) (Llamascopium's glu encoder) */
    {"Glu", DLRNI_AFFINE | DLRNI_BIT(DLRN_GATE_ENCODER) | DLRNI_BIT(DLRN_GATE_BIAS),
     DLRNI_START_TIED, 0, DLRNI_FORMULA(DLRN_CENTER_NONE, DLRN_GATE_RELU, DLRN_SELECT_ALL, 0),
     dlrni_encode_glu},
    /* p = cos(x - b, w) |x - b|^sigmoid(b_g) + b_e, f = the k largest of ReLU(p) (latentsae) */
    {"Cosine", DLRNI_AFFINE | DLRNI_BIT(DLRN_GATE_BIAS), DLRNI_START_TIED, 0,
     DLRNI_FORMULA(DLRN_CENTER_OUTPUT_BIAS, DLRN_GATE_RELU, DLRN_SELECT_TOP_K, 64),
     dlrni_encode_cosine},
    /* f = ReLU(m sigmoid(g)) where g is among the k largest, g = W_g (x - b) + b_g,
       m = W_e (x - b) (latentsae's gated variant) */
    {"GatedTopK",
     DLRNI_BIT(DLRN_ENCODER) | DLRNI_BIT(DLRN_DECODER) | DLRNI_BIT(DLRN_OUTPUT_BIAS) |
         DLRNI_BIT(DLRN_GATE_ENCODER) | DLRNI_BIT(DLRN_GATE_BIAS),
     DLRNI_START_TIED, 0,
     DLRNI_FORMULA(DLRN_CENTER_OUTPUT_BIAS, DLRN_GATE_RELU, DLRN_SELECT_TOP_K, 64),
     dlrni_encode_gated_top_k},
    /* f = x, x_hat = f: the baseline, to which evaluations of a language model are compared. The
       gate passes negative numbers, too, and no parameter is read. */
    {"IdentityDict", 0, DLRNI_START_TORCH, 0,
     DLRNI_FORMULA(DLRN_CENTER_NONE, DLRN_GATE_IDENTITY, DLRN_SELECT_ALL, 0), NULL},
};
enum { DLRNI_FAMILIES = sizeof dlrni_family_table / sizeof *dlrni_family_table };

/* The family called `name`; NULL: there is none. */
DLRNI_INTERNAL const dlrni_family *dlrni_family_named(const char *name) {
    for (int i = 0; i < DLRNI_FAMILIES; i++)
        if (!strcmp(dlrni_family_table[i].name, name)) return &dlrni_family_table[i];
    return NULL;
}

/* The family's own encoder; NULL: the formula's. */
DLRNI_INTERNAL dlrni_own_encoder dlrni_own_encode(const dlrn_dictionary *dict) {
    const dlrni_family *family = dlrni_family_named(dict->family);
    return family ? family->encode : NULL;
}

/* The formula of a new or loaded dictionary, by its widths: with d_out other than d_in (a
   transcoder) the output bias has not the width of x, so nothing is subtracted. */
DLRNI_INTERNAL dlrn_formula dlrni_formula_of(const dlrni_family *family,
                                             const dlrn_dictionary *dict) {
    dlrn_formula formula = family->formula;
    if (formula.center == DLRN_CENTER_OUTPUT_BIAS && dict->d_in != dict->d_out)
        formula.center = DLRN_CENTER_NONE;
    return formula;
}

/* ---- Allocation ---- */

/* Parameters that lie in the caller's bytes (dlrn_load_memory) are not freed. Parts have no
   parts. */
DLRN_API void dlrn_dictionary_destroy(dlrn_dictionary *dict) {
    if (!dict) return;
    for (int64_t i = 0; i < dict->n_parts; i++) dlrn_dictionary_destroy(dict->part[i].dict);
    dlrn_free(dict->ctx, dict->part);
    dlrn_free(dict->ctx, dict->group_sizes);
    for (int role = 0; role < DLRN_ROLE_COUNT; role++)
        if (!(dict->borrowed & DLRNI_BIT(role))) dlrn_free(dict->ctx, dict->param[role]);
    dlrn_free(dict->ctx, dict);
}

/* Encoders compare the count with that of the weights they packed. */
DLRN_API void dlrn_dictionary_changed(dlrn_dictionary *dict) {
    dict->version++;
}

/* What the rest relies on: sizes are positive, a feature fits an int32_t column, and the bytes of
   each role fit an int64_t. */
DLRNI_INTERNAL dlrn_status dlrni_check_sizes(dlrn_context *ctx, const dlrni_family *family,
                                             const dlrn_dictionary *dict) {
    const char *place = "a new dictionary"; /* created, loaded or to be trained */
    int64_t n;
    DLRNI_REQUIRE_IN(ctx, place, dict->d_in > 0 && dict->d_out > 0,
                     "d_in and d_out must be positive");
    DLRNI_REQUIRE_IN(ctx, place, dict->features > 0 && dict->features <= INT32_MAX,
                     "features must be between 1 and 2^31 - 1");
    DLRNI_REQUIRE_IN(ctx, place, family->roles || dict->d_in == dict->d_out,
                     "an identity has d_out equal to d_in");
    for (int role = 0; role < DLRN_ROLE_COUNT; role++)
        if (!dlrni_mul(dlrni_extent(dict, dlrni_role_table[role].rows),
                       dlrni_extent(dict, dlrni_role_table[role].cols), &n) ||
            n > INT64_MAX / 8)
            return dlrn_fail(ctx, DLRN_ERR_MEMORY,
                             "a dictionary of %lld features of %lld does not fit in memory",
                             (long long)dict->features, (long long)dict->d_in);
    return DLRN_OK;
}

/* A dictionary of this family, without parameters. d_out 0 means d_in. An identity has as many
   features as inputs, so `features` is not used there. */
DLRNI_INTERNAL dlrn_status dlrni_dictionary_new(dlrn_context *ctx, const dlrni_family *family,
                                                int64_t d_in, int64_t d_out, int64_t features,
                                                dlrn_dictionary **out) {
    dlrn_dictionary *dict = DLRNI_NEW_ZERO(ctx, dlrn_dictionary, 1);
    *out = NULL;
    if (!dict) return DLRN_ERR_MEMORY;
    dict->ctx = ctx;
    dict->family = family->name;
    dict->d_in = d_in;
    /* checks come after, when the defaults are in */
    dict->d_out = d_out ? d_out : d_in;
    dict->skip_rows = dict->d_out;
    dict->layers = dict->feature_layers = 1;
    dict->features = family->roles ? features : d_in;
    /* a copy: loading and training change k and threshold */
    dict->formula = dlrni_formula_of(family, dict);
    dlrn_status s = dlrni_check_sizes(ctx, family, dict);
    if (s == DLRN_OK)
        *out = dict;
    else
        dlrn_free(ctx, dict);
    return s;
}

/* Memory for one role; its numbers are not set. */
DLRNI_INTERNAL dlrn_status dlrni_param_alloc(dlrn_dictionary *dict, int role) {
    dict->param[role] = DLRNI_NEW(dict->ctx, float, dlrni_role_size(dict, role));
    return dict->param[role] ? DLRN_OK : DLRN_ERR_MEMORY;
}

/* The same with memory for all roles of the family. */
DLRNI_INTERNAL dlrn_status dlrni_dictionary_alloc(dlrn_context *ctx, const dlrni_family *family,
                                                  int64_t d_in, int64_t d_out, int64_t features,
                                                  dlrn_dictionary **out) {
    DLRNI_TRY(dlrni_dictionary_new(ctx, family, d_in, d_out, features, out));
    dlrn_status s = DLRN_OK;
    for (int role = 0; role < DLRN_ROLE_COUNT && s == DLRN_OK; role++)
        if (family->roles & DLRNI_BIT(role)) s = dlrni_param_alloc(*out, role);
    if (s == DLRN_OK) return s;
    dlrn_dictionary_destroy(*out);
    *out = NULL;
    return s;
}

/* ---- New weights ---- */

/* Drawing all features of a new dictionary, one task each, from the streams 0 .. F - 1 of seed. */
typedef struct dlrni_start_job {
    dlrn_dictionary *dict;
    const dlrni_family *family;
    uint64_t seed;
} dlrni_start_job;

/* Task: draws encoder row j, its bias and atom j from a random stream of their own, so that neither
   the number of threads nor F changes what a feature starts from. The order of the draws is fixed,
   also where a tied start overwrites them: an AutoEncoder has the bits of version 0.1. */
DLRNI_INTERNAL void dlrni_start_feature(void *arg, int64_t j, int worker) {
    const dlrni_start_job *job = (const dlrni_start_job *)arg;
    dlrn_dictionary *dict = job->dict;
    const dlrni_kernel_table *k = dict->ctx->k;
    const int tied = job->family->start == DLRNI_START_TIED;
    int64_t d = dict->d_in, d_out = dict->d_out;
    float *encoder = dict->param[DLRN_ENCODER], *atom = dict->param[DLRN_DECODER] + j * d_out;
    float *second = dict->param[DLRN_GATE_ENCODER], bound = 1.0f / sqrtf((float)d), bias;
    dlrn_rng rng = {job->seed, (uint64_t)j, 0};
    (void)worker;
    if (encoder) encoder += j * d;
    for (int64_t i = 0; encoder && i < d; i++)
        encoder[i] = bound * (2.0f * dlrn_rng_uniform(&rng) - 1.0f);
    bias = bound * (2.0f * dlrn_rng_uniform(&rng) - 1.0f);
    for (int64_t i = 0; i < d_out; i++) atom[i] = dlrn_rng_normal(&rng);
    for (int64_t i = 0; second && i < d; i++)
        second[j * d + i] = bound * (2.0f * dlrn_rng_uniform(&rng) - 1.0f);
    /* atoms start at unit norm, and training keeps them there */
    float norm = sqrtf(k->dot(atom, atom, d_out));
    /* d_out draws of exactly 0 do not happen, but a division by 0 must not */
    if (norm > 0) k->scale(atom, 1.0f / norm, d_out);
    /* a transcoder's atoms have another width than its encoder's rows: those stay as drawn */
    if (encoder && tied && d == d_out) memcpy(encoder, atom, (size_t)d * sizeof *encoder);
    for (int role = 0; role < DLRN_ROLE_COUNT; role++) {
        const dlrni_role *shape = &dlrni_role_table[role];
        if (!dict->param[role] || shape->rows != 'F' || shape->cols != '1') continue;
        dict->param[role][j] = role == DLRN_THRESHOLD               ? (float)job->family->threshold
                               : role == DLRN_ENCODER_BIAS && !tied ? bias
                                                                    : 0;
    }
}

/* Top-k keeps one feature at least, and at most all. */
DLRNI_INTERNAL dlrn_status dlrni_check_k(dlrn_context *ctx, int64_t k, int64_t features) {
    if (k >= 1 && k <= features) return DLRN_OK;
    return dlrn_fail(ctx, DLRN_ERR_ARGUMENT, "k: expected a number from 1 to %lld, found %lld",
                     (long long)features, (long long)k);
}

/* What a selection needs: k from 1 to F, and groups of one size. */
DLRNI_INTERNAL dlrn_status dlrni_check_select(dlrn_context *ctx, const dlrn_formula *formula,
                                              int64_t features) {
    if (formula->select == DLRN_SELECT_ALL) return DLRN_OK;
    DLRNI_TRY(dlrni_check_k(ctx, formula->k, features));
    if (formula->select == DLRN_SELECT_GROUP_MAX && features % formula->k)
        return dlrn_fail(
            ctx, DLRN_ERR_ARGUMENT,
            "k: expected a divisor of %lld, the number of features, found %lld: groups "
            "have one size",
            (long long)features, (long long)formula->k);
    if (formula->select == DLRN_SELECT_GROUP_MAX && formula->standardise)
        return dlrn_fail(ctx, DLRN_ERR_UNSUPPORTED,
                         "standardise: expected a selection by rank, found group_max");
    return DLRN_OK;
}

DLRN_API dlrn_status dlrn_dictionary_create(dlrn_context *ctx, const dlrn_dictionary_desc *desc,
                                            dlrn_dictionary **out) {
    const char *name = desc->family ? desc->family : dlrni_family_table[0].name;
    const dlrni_family *family = dlrni_family_named(name);
    *out = NULL;
    if (!family)
        return dlrn_fail(ctx, DLRN_ERR_ARGUMENT, "family: expected a name such as %s, found %.80s",
                         dlrni_family_table[0].name, name);
    /* k is checked before weights are drawn, which may take seconds */
    int64_t k = desc->k ? desc->k : family->formula.k;
    DLRNI_TRY(dlrni_dictionary_alloc(ctx, family, desc->d_in, desc->d_out, desc->features, out));
    /* families that keep k; and a pursuit, whose k limits its steps */
    if (family->formula.k || family->encode) (*out)->formula.k = k;
    dlrn_status s = family->formula.k ? dlrni_check_k(ctx, k, (*out)->features) : DLRN_OK;
    if (s == DLRN_OK) s = dlrni_check_select(ctx, &(*out)->formula, (*out)->features);
    if (s != DLRN_OK) {
        dlrn_dictionary_destroy(*out);
        *out = NULL;
        return s;
    }
    /* an identity has nothing to draw */
    if (!family->roles) return DLRN_OK;
    dlrni_start_job job = {*out, family, desc->seed};
    /* one row for all features, so no task owns it */
    memset((*out)->param[DLRN_OUTPUT_BIAS], 0, (size_t)(*out)->d_out * sizeof(float));
    dlrn_parallel_for(ctx, (*out)->features, dlrni_start_feature, &job);
    return DLRN_OK;
}

DLRNI_INTERNAL dlrn_status dlrni_dictionary_copy(dlrn_context *ctx, const dlrn_dictionary *dict,
                                                 dlrn_dictionary **out);

/* Copies what a dictionary holds beside its sizes and formula: parameters, group sizes, parts. */
DLRNI_INTERNAL dlrn_status dlrni_copy_contents(const dlrn_dictionary *from, dlrn_dictionary *to) {
    dlrn_context *ctx = to->ctx;
    for (int role = 0; role < DLRN_ROLE_COUNT; role++) {
        /* roles that the family lacks stay NULL */
        if (!from->param[role]) continue;
        DLRNI_TRY(dlrni_param_alloc(to, role));
        memcpy(to->param[role], from->param[role],
               (size_t)dlrni_role_size(from, role) * sizeof(float));
    }
    if (from->n_groups) {
        if (!(to->group_sizes = DLRNI_NEW(ctx, int64_t, from->n_groups))) return DLRN_ERR_MEMORY;
        to->n_groups = from->n_groups;
        memcpy(to->group_sizes, from->group_sizes, (size_t)to->n_groups * sizeof *to->group_sizes);
    }
    if (from->n_parts && !(to->part = DLRNI_NEW_ZERO(ctx, dlrn_part, from->n_parts)))
        return DLRN_ERR_MEMORY;
    to->n_parts = from->n_parts;
    for (int64_t i = 0; i < from->n_parts; i++) {
        to->part[i] = from->part[i];
        /* NULL first: after a failure only copies are destroyed */
        to->part[i].dict = NULL;
        DLRNI_TRY(dlrni_dictionary_copy(ctx, from->part[i].dict, &to->part[i].dict));
    }
    return DLRN_OK;
}

/* A copy that owns all its parameters, also those that `dict` borrows. dict may belong to another
   context; the copy belongs to ctx. */
DLRNI_INTERNAL dlrn_status dlrni_dictionary_copy(dlrn_context *ctx, const dlrn_dictionary *dict,
                                                 dlrn_dictionary **out) {
    DLRNI_TRY(dlrni_dictionary_new(ctx, dlrni_family_named(dict->family), dict->d_in, dict->d_out,
                                   dict->features, out));
    dlrn_dictionary *to = *out;
    /* not the family's: k may have been set since */
    to->formula = dict->formula;
    to->skip_rows = dict->skip_rows;
    to->layers = dict->layers;
    to->feature_layers = dict->feature_layers;
    to->layout = dict->layout;
    memcpy(to->note, dict->note, sizeof to->note);
    dlrn_status s = dlrni_copy_contents(dict, to);
    if (s == DLRN_OK) return s;
    dlrn_dictionary_destroy(to);
    *out = NULL;
    return s;
}

/* ------------------------------------------------------------------------------------------ */
// >>screen
/* The product of rows and features in a cheaper format. It only has to say which features are
   certainly off; the few that it cannot rule out, the candidates, are recomputed in f32, in the
   canonical order. So a screen never changes a bit.

   A feature is off on a row if its pre-activation is not above its floor t: 0, the feature's
   threshold, or what the row's k-th best has already reached. Write x^, w^ for the rounded vectors,
   s_x and s_w for their scales, q for the exact product of their integers:
       |w.x - w^.x^| <= |w - w^| |x| + |w^| |x - x^|,   w^.x^ = s_x s_w q.
   The canonical f32 sum differs from w.x by at most g |w| |x|, g = (d / 16 + 16) 2^-24; a screen
   that sums in f32 adds d 2^-24. Rounding is monotonic, so fl(sum + b) <= t if sum + b <= t. With
   the feature's floor t_w and the row's floor t_x a feature may be dropped if
       q + (b - t_w) / (s_x s_w) - t_x / (s_x s_w)
         + (|x - x^| / s_x) (|w^| / s_w) + (|x| / s_x) ((|w - w^| + g |w|) / s_w) <= 0.
   (At most one of t_w and t_x is not 0: dlrni_screen_panel. t_w may be below 0, where t_x is 0. So
   their sum is the floor that holds.) Each term after q is a factor of the row times a
   factor of the feature. Each is rounded up by 2^-9 of its size or more, the one with t_x towards
   0: this covers the rounding of the norms (d <= 2^15) and of the inequality. Where a norm is not 0
   but below 1e-12, underflow could hide something: the terms are set to infinity, and a sum that is
   NaN keeps the feature. */

enum {
    DLRNI_SCREEN_DIM = 1 << 15, /* wider rows are not screened: integer sums stay below 2^31  */
    DLRNI_SCREEN_MIN = 32,      /* smallest number of rows for which lists and packing pay    */
    DLRNI_SCREEN_TERMS = 4      /* numbers of a feature: bias, rounded norm, error, 1 / scale */
};

DLRNI_INTERNAL int64_t dlrni_round_up(int64_t n, int64_t to) {
    return dlrni_ceil_div(n, to) * to;
}

/* Bytes of a rounded row of d numbers: whole cache lines, so that tiles never read a partial cache
   line. The padding is zeros, which change no sum. */
DLRNI_INTERNAL int64_t dlrni_screen_width(const dlrni_screen *s, int64_t d) {
    return dlrni_round_up(d * s->size, 64);
}

/* A norm from its square in f32, rounded up: 2^-9 covers the error of a sum of 2^15 squares. */
DLRNI_INTERNAL double dlrni_norm_above(float square) {
    return sqrt((double)square) * (1 + 1.0 / 512);
}

/* Whether norms and products of a vector are safe from underflow; a zero vector is. Overflow gives
   infinite norms, which is safe. */
DLRNI_INTERNAL int dlrni_in_range(const dlrni_rounding *r, const float *x, int64_t n) {
    if (r->full >= 1e-24f) return 1;
    for (int64_t i = 0; i < n; i++)
        if (!(x[i] == 0)) return 0;
    return 1;
}

/* Rounds one row of x and notes its side of the inequality. The row's floor starts at 0. */
DLRNI_INTERNAL void dlrni_screen_row_of(const dlrni_screen *s, const float *x, int64_t d, void *out,
                                        int64_t width, dlrni_screen_row *row) {
    dlrni_rounding r;
    memset((char *)out + d * s->size, 0, (size_t)(width - d * s->size));
    s->round(x, d, 0, out, &r);
    row->unit = 1 / r.scale;
    row->error = (float)(dlrni_norm_above(r.error) / (double)r.scale);
    row->norm = (float)(dlrni_norm_above(r.full) / (double)r.scale);
    row->shift = -128 * r.sum;
    row->floor = 0;
    if (!dlrni_in_range(&r, x, d)) row->error = row->norm = INFINITY;
}

/* The row's floor in the screen's scaled form: -t_x / s_x, rounded towards 0. */
DLRNI_INTERNAL void dlrni_screen_set_floor(dlrni_screen_row *row, float floor) {
    row->floor = (float)(-(double)floor * (double)row->unit * (1 - 1.0 / 512));
}

/* A feature's side of the inequality: column j of coef [DLRNI_SCREEN_TERMS][DLRNI_GROUP]. `above`
   is bias - floor. */
DLRNI_INTERNAL void dlrni_screen_feature(const dlrni_screen *s, const dlrni_rounding *r, int64_t d,
                                         int ok, double above, float *coef) {
    double slack = ((double)(s->sums ? d : 0) + (double)d / 16 + 16) / 16777216; /* g, 2^24 */
    double scale = (double)r->scale, unit = above / scale, full = dlrni_norm_above(r->full);
    coef[0] = (float)(unit + fabs(unit) / 512);          /* bias less floor, rounded up */
    if (above > 0 && coef[0] < 1e-20f) coef[0] = 1e-20f; /* the division may have lost it */
    coef[DLRNI_GROUP] = (float)(dlrni_norm_above(r->rounded) / scale);
    coef[2 * DLRNI_GROUP] = (float)((dlrni_norm_above(r->error) + slack * full) / scale);
    coef[3 * DLRNI_GROUP] = (float)(1 / scale * (1 - 1.0 / 512));
    if (!ok || !(fabs(unit) <= 1e30)) coef[DLRNI_GROUP] = coef[2 * DLRNI_GROUP] = INFINITY;
}

/* ---- Gates ----
   A gate is two things, and encoding, decoding and training know no others. Its floors: a feature
   is computed and listed where its pre-activation is above max(threshold, floor of the row). Its
   value, where it is listed. */

/* A dictionary's gate, ready for the loops. */
typedef struct dlrni_gating {
    const float *threshold; /* [F] floors of features that have their own; NULL: none do          */
    float min_floor;        /* floor of a row that has none of its own: 0; a threshold of all
                               features; -infinity if thresholds alone decide                     */
    const float *scale;     /* [F] exp(LOG_SCALE); NULL: a value is its pre-activation            */
    const float *bias;      /* [F] gate "gated": what is subtracted before the scale; else NULL   */
    const float *offset;    /* [F] gate "gated": VALUE_BIAS, added after it; NULL: none           */
    float *derived;         /* [2][F] owned: the scales, then the floors of the gate "gated"      */
    int64_t derived_cap, known; /* known: version + 1 of the dictionary that they are made from   */
    dlrn_gate of;               /* the gate that they are made for                                */
} dlrni_gating;

/* The larger of a feature's threshold and its row's floor. */
DLRNI_INTERNAL float dlrni_floor_of(const float *threshold, int64_t feature, float row_floor) {
    return threshold && threshold[feature] > row_floor ? threshold[feature] : row_floor;
}

/* The value of a gated feature: an affine map of p. In double, so that its only rounding is the
   last one. A NaN is not <= and stays. */
DLRNI_INTERNAL float dlrni_gated_value(const dlrni_gating *g, int64_t feature, float pre) {
    double value = (double)g->scale[feature] * ((double)pre - (double)g->bias[feature]);
    if (g->offset) value += (double)g->offset[feature];
    return value <= 0 ? 0 : (float)value;
}

/* The value of a feature whose pre-activation is above its floor. */
DLRNI_INLINE float dlrni_value_of(const dlrni_gating *g, int64_t feature, float pre) {
    if (!g->scale) return pre;
    return g->bias ? dlrni_gated_value(g, feature, pre) : g->scale[feature] * pre;
}

/* The value of any feature. A NaN is not <= and stays, to be seen. */
DLRNI_INTERNAL float dlrni_gate_value(const dlrni_gating *g, int64_t feature, float pre) {
    return pre <= dlrni_floor_of(g->threshold, feature, g->min_floor)
               ? 0
               : dlrni_value_of(g, feature, pre);
}

/* The floor of a gated feature: the largest pre-activation p >= 0 whose value is not positive. The
   value does not fall as p grows, and positive floats are in the order of their bits: 31 halvings
   find it, and an entry is listed exactly where its value is positive. */
DLRNI_INTERNAL float dlrni_gated_floor(const dlrni_gating *g, int64_t feature) {
    uint32_t off = 0, on = 0x7f800000u; /* 0 is off; infinity need not be on */
    float floor;
    while (on - off > 1) {
        uint32_t middle = off + (on - off) / 2;
        memcpy(&floor, &middle, sizeof floor);
        if (dlrni_gated_value(g, feature, floor) == 0)
            off = middle;
        else
            on = middle;
    }
    memcpy(&floor, &off, sizeof floor);
    return floor;
}

/* What follows from the parameters: made anew when the dictionary has changed. */
DLRNI_INTERNAL dlrn_status dlrni_gating_derive(dlrni_gating *g, const dlrn_dictionary *dict) {
    const int64_t F = dict->features;
    const float *log_scale = dict->param[DLRN_LOG_SCALE];
    if (g->known == dict->version + 1 && g->of == dict->formula.gate) return DLRN_OK;
    if (!DLRNI_GROW(dict->ctx, &g->derived, &g->derived_cap, 0, 2 * F)) return DLRN_ERR_MEMORY;
    for (int64_t f = 0; f < F; f++)
        g->derived[f] = log_scale ? (float)exp((double)log_scale[f]) : 1;
    g->scale = g->derived;
    g->bias = dict->param[DLRN_ENCODER_BIAS];
    g->offset = dict->param[DLRN_VALUE_BIAS];
    for (int64_t f = 0; f < F && dict->formula.gate == DLRN_GATE_GATED; f++)
        g->derived[F + f] = dlrni_gated_floor(g, f);
    g->known = dict->version + 1;
    g->of = dict->formula.gate;
    return DLRN_OK;
}

/* Readies a gate for a batch. unscaled: values come without LOG_SCALE, as selections compare
   them. */
DLRNI_INTERNAL dlrn_status dlrni_gating_begin(dlrni_gating *g, const dlrn_dictionary *dict,
                                              int unscaled) {
    const dlrn_formula *formula = &dict->formula;
    const int gated = formula->gate == DLRN_GATE_GATED;
    const int jumps = formula->gate == DLRN_GATE_JUMP || formula->gate == DLRN_GATE_JUMP_SIGNED;
    const int is_signed =
        formula->gate == DLRN_GATE_JUMP_SIGNED || formula->gate == DLRN_GATE_LINEAR;
    const int scaled = dict->param[DLRN_LOG_SCALE] && !unscaled;
    if (gated || scaled) DLRNI_TRY(dlrni_gating_derive(g, dict));
    g->scale = gated || scaled ? g->derived : NULL;
    g->bias = gated ? dict->param[DLRN_ENCODER_BIAS] : NULL;
    g->offset = gated ? dict->param[DLRN_VALUE_BIAS] : NULL;
    g->threshold = jumps ? dict->param[DLRN_THRESHOLD] : gated ? g->derived + dict->features : NULL;
    g->min_floor = is_signed ? -INFINITY : 0;
    /* one threshold for all is a floor of every row: no array */
    if (jumps && !g->threshold && (float)formula->threshold > g->min_floor)
        g->min_floor = (float)formula->threshold;
    return DLRN_OK;
}

/* ---- Packing ---- */

/* Whether floors of rows rise above the gate's during a batch (room select). */
DLRNI_INTERNAL int dlrni_raises_floors(const dlrn_dictionary *dict) {
    return dict->formula.select == DLRN_SELECT_TOP_K && !dict->formula.standardise &&
           (dict->formula.gate == DLRN_GATE_RELU || dict->formula.gate == DLRN_GATE_JUMP);
}

/* Packs features f0 .. f0 + n: panel [width / (size * packed)][DLRNI_GROUP][packed]; part
   [DLRNI_GROUP][width] is scratch for their rounded rows. Where rows have floors, features must
   not: they are added up. Thresholds are then left to the recomputation. */
DLRNI_INTERNAL void dlrni_screen_panel(const dlrni_screen *s, const dlrn_dictionary *dict,
                                       const dlrni_gating *gate, int64_t f0, int64_t n,
                                       int64_t width, unsigned char *part, unsigned char *panel,
                                       float *coef) {
    const int by_row = dlrni_raises_floors(dict);
    int64_t d = dict->d_in;
    memset(part, 0, (size_t)(DLRNI_GROUP * width));
    memset(coef, 0, DLRNI_SCREEN_TERMS * DLRNI_GROUP * sizeof *coef);
    for (int64_t j = 0; j < n; j++) {
        const float *w = dict->param[DLRN_ENCODER] + (f0 + j) * d;
        float floor = by_row ? 0 : dlrni_floor_of(gate->threshold, f0 + j, gate->min_floor);
        double above = (double)dict->param[DLRN_ENCODER_BIAS][f0 + j] - (double)floor;
        dlrni_rounding r;
        s->round(w, d, 1, part + j * width, &r);
        dlrni_screen_feature(s, &r, d, dlrni_in_range(&r, w, d), above, coef + j);
    }
    DICTLEARN_ASSERT(s->size * s->packed == 4);
    dlrni_pack_rows(dict->ctx->k, (const float *)(const void *)part, width / 4, DLRNI_GROUP,
                    width / 4, (float *)(void *)panel); /* words of four bytes, as floats */
}

/* All panels of a dictionary, in one block with this head. */
typedef struct dlrni_prepared {
    const dlrni_screen *screen;
    int64_t width;
    unsigned char *panels; /* [groups] of DLRNI_GROUP * width bytes     */
    float *coef;           /* [groups][DLRNI_SCREEN_TERMS][DLRNI_GROUP] */
} dlrni_prepared;

/* Packing all groups of a dictionary, one task each. */
typedef struct dlrni_prepare_job {
    const dlrn_dictionary *dict;
    const dlrni_gating *gate;
    dlrni_prepared *ready;
    unsigned char *parts; /* [threads] of DLRNI_GROUP * width bytes */
} dlrni_prepare_job;

/* Task: the panel of one group. */
DLRNI_INTERNAL void dlrni_prepare_group(void *arg, int64_t group, int worker) {
    const dlrni_prepare_job *j = (const dlrni_prepare_job *)arg;
    int64_t f0 = group * DLRNI_GROUP, bytes = DLRNI_GROUP * j->ready->width;
    dlrni_screen_panel(j->ready->screen, j->dict, j->gate, f0,
                       dlrni_min(DLRNI_GROUP, j->dict->features - f0), j->ready->width,
                       j->parts + worker * bytes, j->ready->panels + group * bytes,
                       j->ready->coef + group * DLRNI_SCREEN_TERMS * DLRNI_GROUP);
}

/* Whether a screen can serve this dictionary: the family has no encoder of its own, integer sums of
   its rows stay below 2^31, and most features are off, by a floor of the gate or of the row. */
DLRNI_INTERNAL int dlrni_screenable(const dlrn_dictionary *dict) {
    const dlrn_formula *formula = &dict->formula;
    return dict->param[DLRN_ENCODER] != NULL && dict->d_in <= DLRNI_SCREEN_DIM &&
           !dlrni_own_encode(dict) && formula->gate != DLRN_GATE_IDENTITY &&
           formula->gate != DLRN_GATE_LINEAR && formula->select != DLRN_SELECT_ABS_TOP_K &&
           !formula->standardise;
}

/* All features packed for the processor's first screen; *out NULL where that would not pay. */
DLRNI_INTERNAL dlrn_status dlrni_prepare_panels(const dlrn_dictionary *dict,
                                                const dlrni_gating *gate, dlrni_prepared **out) {
    dlrn_context *ctx = dict->ctx;
    const dlrni_screen *screen = ctx->set.screen[0];
    const int64_t d = dict->d_in, groups = dlrni_ceil_div(dict->features, DLRNI_GROUP);
    const float max_cost = 0.6f; /* A tile costs as much for one row as for eight. Relative to f32,
                                    one row of 512 x 32768 takes 1.2 with int16 (cost 0.72) and 0.39
                                    with int8 (cost 0.27), on Zen 4. */
    *out = NULL;
    if (!screen || screen->cost > max_cost || !dlrni_screenable(dict)) return DLRN_OK;
    const int64_t width = dlrni_screen_width(screen, d), bytes = DLRNI_GROUP * width;
    const int64_t coefs = DLRNI_SCREEN_TERMS * DLRNI_GROUP * (int64_t)sizeof(float);
    const int64_t head = dlrni_round_up(sizeof(dlrni_prepared), 64);
    unsigned char *block = DLRNI_NEW(ctx, unsigned char, head + groups * (bytes + coefs));
    unsigned char *parts = DLRNI_NEW(ctx, unsigned char, ctx->threads *bytes);
    dlrni_prepare_job job = {dict, gate, (dlrni_prepared *)(void *)block, parts};
    if (!block || !parts) {
        dlrn_free(ctx, block);
        dlrn_free(ctx, parts);
        return DLRN_ERR_MEMORY;
    }
    job.ready->screen = screen;
    job.ready->width = width;
    job.ready->panels = block + head;
    job.ready->coef = (float *)(void *)(block + head + groups * bytes);
    dlrn_parallel_for(ctx, groups, dlrni_prepare_group, &job);
    dlrn_free(ctx, parts);
    *out = job.ready;
    return DLRN_OK;
}

/* ------------------------------------------------------------------------------------------ */
// >>candidates
/* The features of many rows, without a matrix [n][F]. Rows go in stretches, features in groups. The
   entries of one group on one stretch are a list, by row and then by feature:

             group 0       group 1       group 2   ...     (48 features each)
            +-------------+-------------+-------------+
   stretch  | list        | list        | list        |    2048 rows
      0     |   block 0   |             |             |      of 64 rows each: start[b] says where
            |   block 1   |             |             |      the entries of block b begin
            |   ...       |             |             |
            +-------------+-------------+-------------+
   stretch  | list        | list        | list        |
      1     |             |             |             |
            +-------------+-------------+-------------+
             '----- a wave: the groups whose lists are in hand: first .. first + wave -----'

   An entry is (row, feature, pre-activation) with pre above the floor (room screen). There are two
   ways to the same lists, bit for bit:
     dense     computes each tile of rows and features, and drops what does not exceed the floor;
     screened  computes the candidates that a screen names.
   A full list only counts further entries; it is then enlarged and rebuilt. */

enum {
    DLRNI_GROUP_SHIFT = 6, /* a key is row << shift | feature in its group             */
    DLRNI_BLOCK = 64,      /* rows that are decoded together                           */
    DLRNI_STRETCH = 2048,  /* rows of a list: as many as stay in the third cache       */
    DLRNI_STRETCH_BLOCKS = DLRNI_STRETCH / DLRNI_BLOCK,
    DLRNI_SHARE = 4, /* at most this many groups per task: their rows stay in the second cache */
    DLRNI_BATCH_MAX = 1 << 24,   /* rows: row << shift must fit in 31 bits                */
    DLRNI_NEAR_BYTES = 480 << 10 /* features of a task, in f32 and packed: half of a second cache of
                                    1 MB (Zen 4); smaller caches want less                */
};

/* The entries of one group on one stretch; those of its block of rows b begin at start[b]. */
typedef struct dlrni_list {
    int32_t *key; /* [key_cap] row of the batch << DLRNI_GROUP_SHIFT | feature of the group */
    float *val;   /* [val_cap] pre-activation, for most recipes also the value              */
    int64_t key_cap, val_cap, count, candidates;
    int whole; /* 0: the list is incomplete; count is the room it needs */
    int32_t start[DLRNI_STRETCH_BLOCKS + 1];
} dlrni_list;

/* A key holds row and feature in one number, so that a list has two arrays and not three. Sorted
   keys are sorted by row, then by feature. */
DLRNI_INTERNAL int64_t dlrni_key_row(int32_t key) {
    return key >> DLRNI_GROUP_SHIFT;
}

DLRNI_INTERNAL int64_t dlrni_key_feature(int32_t key) { /* in its group */
    return key & ((1 << DLRNI_GROUP_SHIFT) - 1);
}

/* Where a row's selection ends: an entry stays if its pre-activation is above `value`, or equal to
   it and its feature is at most `feature`. */
typedef struct dlrni_cut {
    float value;
    int32_t feature;
} dlrni_cut;

/* Rows being encoded, and their features. Order of calls: dlrni_encoding_init once; for each batch
   _begin, then _load for each wave (selection included), then _learn; _free at the end. */
typedef struct dlrni_encoding {
    const dlrn_dictionary *dict;
    int64_t n, stretches, groups; /* rows; stretches of them; groups of the dictionary            */
    float *xc;                    /* [n][d_in] input of the encoder, borrowed                     */
    const dlrni_screen *screen;   /* NULL: dense                                                  */
    const dlrni_prepared *ready;  /* panels for this screen, or NULL: packed as they are needed   */
    unsigned char *rounded;       /* [n] rows of `width` bytes: xc in the screen's format         */
    dlrni_screen_row *row;        /* [n]                                                          */
    int64_t width;
    dlrni_list *lists;      /* [stretches][groups]                                                */
    int64_t first, wave;    /* groups in hand: first .. first + wave; first -1: none              */
    int64_t share;          /* groups of a task                                                   */
    unsigned char *scratch; /* [threads][scratch_bytes]                                           */
    double active;          /* share of features active in the last batch; -1: not known          */
    double let_through[2];  /* share of candidates, for each screen of the context; -1: not known */
    dlrni_gating gate;
    int unscaled;    /* 1: values come without LOG_SCALE                                   */
    float *floor;    /* [n] floor of each row, where rows have one (selection); or NULL    */
    dlrni_cut *best; /* [n][k] heap of the best entries of a row, the worst on top; or, for
                               DLRN_SELECT_GROUP_MAX, the best of each group                      */
    int32_t *kept;   /* [n] how many of them there are                                     */
    int cut_known;   /* 1: every row's cut is final                                        */
    int64_t scratch_bytes, scratch_cap, rounded_cap, row_cap, lists_cap;
    int64_t floor_cap, best_cap, kept_cap;
} dlrni_encoding;

/* Nothing is known of the data yet (-1): the first batch works with guesses
   (dlrni_choose_screen). */
DLRNI_INTERNAL void dlrni_encoding_init(dlrni_encoding *c, const dlrn_dictionary *dict) {
    memset(c, 0, sizeof *c);
    c->dict = dict;
    c->groups = dlrni_ceil_div(dict->features, DLRNI_GROUP);
    c->active = c->let_through[0] = c->let_through[1] = -1;
}

/* Frees all lists that were ever made: a shorter batch keeps those of a longer one. */
DLRNI_INTERNAL void dlrni_encoding_free(dlrni_encoding *c) {
    /* never begun: nothing is owned */
    if (!c->dict) return;
    dlrn_context *ctx = c->dict->ctx;
    for (int64_t i = 0; i < c->lists_cap; i++) {
        dlrn_free(ctx, c->lists[i].key);
        dlrn_free(ctx, c->lists[i].val);
    }
    void *blocks[] = {c->lists, c->rounded, c->row,  c->scratch,
                      c->floor, c->best,    c->kept, c->gate.derived};
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++) dlrn_free(ctx, blocks[i]);
    memset(c, 0, sizeof *c);
}

/* Whether the lists of a batch are cut by a selection within each row (room select). */
DLRNI_INTERNAL int dlrni_selects(const dlrn_dictionary *dict) {
    const dlrn_formula *f = &dict->formula;
    return (f->select == DLRN_SELECT_TOP_K || f->select == DLRN_SELECT_ABS_TOP_K ||
            f->select == DLRN_SELECT_GROUP_MAX) &&
           (f->gate == DLRN_GATE_RELU || f->gate == DLRN_GATE_JUMP ||
            f->gate == DLRN_GATE_LINEAR) &&
           !f->standardise && !dlrni_own_encode(dict);
}

/* Whether the selection works on the finished codes of a call (dlrni_select_codes): it compares
   rows; or the gate's values are not the lists' (gated), or an inactive feature, which no list
   holds, may rank above an active one (jump_signed, identity). */
DLRNI_INTERNAL int dlrni_selects_late(const dlrn_dictionary *dict) {
    return dict->formula.select != DLRN_SELECT_ALL && !dlrni_selects(dict);
}

/* ---- Input: x, normalised, scaled and centred ---- */

/* The vector that a formula subtracts from x [d_in]; NULL: none. */
DLRNI_INTERNAL const float *dlrni_center_of(const dlrn_dictionary *dict) {
    return dict->formula.center == DLRN_CENTER_OUTPUT_BIAS  ? dict->param[DLRN_OUTPUT_BIAS]
           : dict->formula.center == DLRN_CENTER_INPUT_BIAS ? dict->param[DLRN_INPUT_BIAS]
                                                            : NULL;
}

/* How a row (or one layer of it) is normalised: z = in (x - mean), undone by x_hat = out z + mean.
   A row of zeros has no norm: it stays as it is, and so does its x_hat. */
typedef struct dlrni_measure {
    float mean;
    double in, out;
} dlrni_measure;

/* The sums are of doubles, number by number: O(d), beside O(F d) for the encoder. */
DLRNI_INTERNAL dlrni_measure dlrni_measure_of(const dlrn_dictionary *dict, const float *x,
                                              int64_t d) {
    dlrni_measure m = {0, 1, 1};
    double sum = 0, square = 0;
    if (dict->formula.normalise == DLRN_NORMALISE_NORM) {
        float norm = dlrn_norm(dict->ctx, x, d);
        if (norm > 0 || norm != norm) m.in = sqrt((double)d) / (double)norm, m.out = 1 / m.in;
    } else if (dict->formula.normalise == DLRN_NORMALISE_LAYER) {
        for (int64_t i = 0; i < d; i++) sum += (double)x[i];
        m.mean = (float)(sum / (double)d);
        for (int64_t i = 0; i < d; i++)
            square += ((double)x[i] - sum / (double)d) * ((double)x[i] - sum / (double)d);
        m.out = d > 1 ? sqrt(square / (double)(d - 1)) : 0; /* unbiased */
        m.in = 1 / (m.out + 1e-5);
    }
    return m;
}

/* Rows x [n][d_in] on their way to xc, a task each block. */
typedef struct dlrni_input_job {
    const dlrn_dictionary *dict;
    const float *x, *center; /* center [d_in], or NULL */
    float *xc;               /* [n][d_in] */
    int64_t n;
} dlrni_input_job;

/* z [d_in] = scale_in normalise(x). Returns where it is: a row that stays the same is not copied,
   since the copy would be half of the work. */
DLRNI_INTERNAL const float *dlrni_scale_row(const dlrn_dictionary *dict, const float *x, float *z) {
    const dlrn_formula *formula = &dict->formula;
    const int64_t d = dict->d_in, width = d / dict->layers;
    const float scale = (float)formula->scale_in;
    if (formula->normalise == DLRN_NORMALISE_NONE) {
        /* not `scale != 1`: compilers warn of comparing floats */
        if (!(scale < 1 || scale > 1)) return x;
        memcpy(z, x, (size_t)d * sizeof *z);
        dict->ctx->k->scale(z, scale, d);
        return z;
    }
    for (int64_t at = 0; at < d; at += width) {
        const dlrni_measure m = dlrni_measure_of(dict, x + at, width);
        const float in = (float)(formula->scale_in * m.in);
        for (int64_t i = at; i < at + width; i++) z[i] = (x[i] - m.mean) * in;
    }
    return z;
}

/* Task: a block of rows, xc = scale_in normalise(x) - center. */
DLRNI_INTERNAL void dlrni_input_block(void *arg, int64_t block, int worker) {
    const dlrni_input_job *j = (const dlrni_input_job *)arg;
    int64_t d = j->dict->d_in, end = dlrni_min((block + 1) * DLRNI_BLOCK, j->n);
    (void)worker;
    for (int64_t i = block * DLRNI_BLOCK; i < end; i++) {
        float *xc = j->xc + i * d;
        const float *z = dlrni_scale_row(j->dict, j->x + i * d, xc);
        if (j->center)
            j->dict->ctx->k->sub(z, j->center, xc, d);
        else if (z != xc)
            memcpy(xc, z, (size_t)d * sizeof *xc);
    }
}

/* xc [n][d_in] = scale_in normalise(x) - center: what the encoder's rows are multiplied with. x may
   be xc. */
DLRNI_INTERNAL void dlrni_input_less(const dlrn_dictionary *dict, const float *x,
                                     const float *center, int64_t n, float *xc) {
    dlrni_input_job job = {dict, x, center, xc, n};
    dlrni_parallel_for(dict->ctx, dlrni_ceil_div(n, DLRNI_BLOCK), dlrni_ns(n, dict->d_in),
                       dlrni_input_block, &job);
}

/* The same with the formula's center. */
DLRNI_INTERNAL void dlrni_input(const dlrn_dictionary *dict, const float *x, int64_t n, float *xc) {
    dlrni_input_less(dict, x, dlrni_center_of(dict), n, xc);
}

/* ---- Lists ---- */

/* A worker's own scratch: tasks share nothing that is written. */
DLRNI_INTERNAL unsigned char *dlrni_scratch(const dlrni_encoding *c, int worker) {
    return c->scratch + worker * c->scratch_bytes;
}

/* Room for that many bytes per worker; earlier contents are lost. */
DLRNI_INTERNAL dlrn_status dlrni_need_scratch(dlrni_encoding *c, int64_t bytes) {
    dlrn_context *ctx = c->dict->ctx;
    int64_t all;
    c->scratch_bytes = dlrni_round_up(bytes, 64);
    if (!dlrni_mul(c->scratch_bytes, ctx->threads, &all) ||
        !DLRNI_GROW(ctx, &c->scratch, &c->scratch_cap, 0, all))
        return DLRN_ERR_MEMORY;
    return DLRN_OK;
}

/* Features of a group: DLRNI_GROUP; the last may have fewer. */
DLRNI_INTERNAL int64_t dlrni_group_width(const dlrni_encoding *c, int64_t group) {
    return dlrni_min(DLRNI_GROUP, c->dict->features - group * DLRNI_GROUP);
}

/* The position of the lowest bit; mask is not 0. */
DLRNI_INTERNAL int dlrni_lowest_bit(uint64_t mask) {
#if defined(__GNUC__) || defined(__clang__)
    return __builtin_ctzll(mask);
#else
    int bit = 0;
    while (!(mask >> bit & 1)) bit++;
    return bit;
#endif
}

/* Whether n more entries fit. If not, the list only counts from now on: the count says how much
   room the next attempt needs. */
DLRNI_INTERNAL int dlrni_list_room(dlrni_list *list, int64_t n) {
    list->whole =
        list->whole && list->count + n <= list->key_cap && list->count + n <= list->val_cap;
    if (!list->whole) list->count += n;
    return list->whole;
}

/* Whether floors and selection compare sizes: |pre|. */
DLRNI_INTERNAL int dlrni_by_size(const dlrni_encoding *c) {
    return c->dict->formula.select == DLRN_SELECT_ABS_TOP_K && dlrni_selects(c->dict);
}

/* The floor that all features of a row share; a feature's own threshold may raise it. */
DLRNI_INTERNAL float dlrni_row_floor(const dlrni_encoding *c, int64_t row) {
    return c->floor ? c->floor[row] : c->gate.min_floor;
}

/* One group while its list is made: features packed for the screen. */
typedef struct dlrni_packed_group {
    dlrni_list *list;
    int64_t f0;
    uint64_t valid; /* bits of the features that there are */
    unsigned char *packed;
    float *coef; /* [DLRNI_SCREEN_TERMS][DLRNI_GROUP] */
} dlrni_packed_group;

/* Bytes of scratch for n packed groups and the rows that they are packed from. */
DLRNI_INTERNAL int64_t dlrni_packed_bytes(const dlrni_encoding *c, int64_t n) {
    const int64_t coefs = DLRNI_SCREEN_TERMS * DLRNI_GROUP * (int64_t)sizeof(float);
    return n * (DLRNI_GROUP * c->width + coefs) + DLRNI_GROUP * c->width;
}

/* Writes the features whose bits are set, ascending; returns how many. Bit 0 is feature f0. */
DLRNI_INTERNAL int64_t dlrni_features_of(uint64_t mask, int64_t f0, int32_t *feature) {
    int64_t n = 0;
    for (; mask; mask &= mask - 1) feature[n++] = (int32_t)f0 + dlrni_lowest_bit(mask);
    return n;
}

/* Computes the candidates of n groups on one row, in f32 and the canonical order: mask [n], spaced
   DLRNI_SCREEN_ROWS apart. One call of the kernel takes the candidates of all groups, since a few
   at a time would leave it idle. Each entry is written, and the count says whether it stays: a
   branch here would be mispredicted. A NaN passes every floor, since it must show. */
DLRNI_INTERNAL void dlrni_recompute(const dlrni_encoding *c, const dlrni_packed_group *group,
                                    int64_t n, int64_t row, const uint64_t *mask) {
    const dlrn_dictionary *dict = c->dict;
    const float *threshold = c->gate.threshold;
    int32_t feature[DLRNI_SHARE * DLRNI_GROUP];
    float sum[DLRNI_SHARE * DLRNI_GROUP], row_floor = dlrni_row_floor(c, row);
    int64_t d = dict->d_in, count = 0, p = 0, end[DLRNI_SHARE];
    for (int64_t g = 0; g < n; end[g++] = count)
        count += dlrni_features_of(mask[g * DLRNI_SCREEN_ROWS] & group[g].valid, group[g].f0,
                                   feature + count);
    dict->ctx->k->dots(c->xc + row * d, d, dict->param[DLRN_ENCODER], d, feature, count, sum);
    for (int64_t g = 0; g < n; g++) {
        dlrni_list *list = group[g].list;
        list->candidates += end[g] - p;
        /* full: this group's entries are counted, not written */
        if (!dlrni_list_room(list, end[g] - p)) p = end[g];
        for (; p < end[g]; p++) {
            float pre = sum[p] + dict->param[DLRN_ENCODER_BIAS][feature[p]];
            list->key[list->count] =
                (int32_t)(row << DLRNI_GROUP_SHIFT | (feature[p] - group[g].f0));
            list->val[list->count] = pre;
            list->count += !(pre <= dlrni_floor_of(threshold, feature[p], row_floor));
        }
    }
}

/* Packs those of n groups whose lists must be made, or takes their prepared panels; returns how
   many. Scratch: the rows of the group being packed, n panels, n sets of coefficients. */
DLRNI_INTERNAL int64_t dlrni_pack_groups(const dlrni_encoding *c, dlrni_list *lists, int64_t n,
                                         int64_t group, unsigned char *scratch,
                                         dlrni_packed_group *out) {
    int64_t count = 0, packed = DLRNI_GROUP * c->width, coefs = DLRNI_SCREEN_TERMS * DLRNI_GROUP;
    for (int64_t g = 0; g < n; g++) {
        if (lists[g].whole) continue;
        int64_t width = dlrni_group_width(c, group + g);
        dlrni_packed_group *p = &out[count++];
        p->list = &lists[g];
        p->list->whole = 1;
        p->f0 = (group + g) * DLRNI_GROUP;
        p->valid = ((uint64_t)1 << width) - 1;
        if (c->ready) {
            p->packed = c->ready->panels + (group + g) * packed;
            p->coef = c->ready->coef + (group + g) * coefs;
            continue;
        }
        p->packed = scratch + packed * (1 + g);
        p->coef = (float *)(void *)(scratch + packed * (1 + n)) + g * coefs;
        dlrni_screen_panel(c->screen, c->dict, &c->gate, p->f0, width, c->width, scratch, p->packed,
                           p->coef);
    }
    return count;
}

/* The lists of n groups on rows r0 .. r1, screened. Tiles of all groups are computed before the
   next rows, so that a row is fetched once. */
DLRNI_INTERNAL void dlrni_list_screened(const dlrni_encoding *c, dlrni_list *lists, int64_t n,
                                        int64_t group, int64_t r0, int64_t r1,
                                        unsigned char *scratch) {
    const dlrni_screen *s = c->screen;
    dlrni_packed_group in[DLRNI_SHARE];
    uint64_t mask[DLRNI_SHARE][DLRNI_SCREEN_ROWS];
    int64_t count = dlrni_pack_groups(c, lists, n, group, scratch, in);
    for (int64_t i = r0; i < r1; i += s->rows) {
        for (int64_t g = 0; g < count; g++)
            s->tile(in[g].packed, c->rounded + i * c->width, c->width, c->width / 4, in[g].coef,
                    c->row + i, mask[g]);
        for (int64_t r = 0; r < dlrni_min(s->rows, r1 - i); r++) {
            for (int64_t g = 0; g < count && (i + r - r0) % DLRNI_BLOCK == 0; g++)
                in[g].list->start[(i + r - r0) / DLRNI_BLOCK] = (int32_t)in[g].list->count;
            dlrni_recompute(c, in, count, i + r, &mask[0][r]);
        }
    }
}

/* pre [n][f1 - f0], rows ld apart = W_e xc without the bias, for features f0 .. f1, at most a
   group. One row uses kernel dots: a tile of the product would compute several. */
DLRNI_INTERNAL void dlrni_dense_tile(const dlrn_dictionary *dict, const float *xc, int64_t n,
                                     int64_t f0, int64_t f1, float *pre, int64_t ld) {
    int64_t d = dict->d_in;
    const dlrni_kernel_table *k = dict->ctx->k;
    const float *encoder = dict->param[DLRN_ENCODER];
    if (n > 1) {
        k->dots_nt(n, f1 - f0, d, xc, d, encoder + f0 * d, d, pre, ld);
        return;
    }
    int32_t feature[DLRNI_GROUP];
    for (int64_t j = f0; j < f1; j++) feature[j - f0] = (int32_t)j;
    k->dots(xc, d, encoder, d, feature, f1 - f0, pre);
}

/* Drops the entries from `first` on whose size is not above the floor of their row. */
DLRNI_INTERNAL void dlrni_drop_small(dlrni_list *list, int64_t first, float floor) {
    int64_t to = first;
    for (int64_t p = first; p < list->count; p++) {
        list->key[to] = list->key[p];
        list->val[to] = list->val[p];
        to += !(fabsf(list->val[p]) <= floor); /* true for a NaN */
    }
    list->count = to;
}

/* Appends what exceeds the floors in a tile pre [rows][width], whose first row is `first`. Without
   room, the kernel writes to the stack and only its count is used; dlrni_list_room has added a
   whole group, which is subtracted again. A selection by size has floors of its own. */
DLRNI_INTERNAL void dlrni_collect_tile(const dlrni_encoding *c, dlrni_list *list, const float *pre,
                                       int64_t rows, int64_t width, int64_t first, int64_t f0) {
    const dlrni_kernel_table *k = c->dict->ctx->k;
    const float *bias = c->dict->param[DLRN_ENCODER_BIAS] + f0, *threshold = c->gate.threshold;
    const int by_size = dlrni_by_size(c);
    int32_t key[DLRNI_GROUP];
    float val[DLRNI_GROUP];
    if (threshold) threshold += f0;
    for (int64_t i = 0; i < rows; i++, pre += width) {
        int32_t at = (int32_t)((first + i) << DLRNI_GROUP_SHIFT);
        int64_t before = list->count;
        float row_floor = by_size ? c->gate.min_floor : dlrni_row_floor(c, first + i);
        if (dlrni_list_room(list, DLRNI_GROUP)) {
            list->count += k->collect(pre, bias, threshold, row_floor, width, at,
                                      list->key + list->count, list->val + list->count);
            if (by_size) dlrni_drop_small(list, before, dlrni_row_floor(c, first + i));
        } else
            list->count +=
                k->collect(pre, bias, threshold, row_floor, width, at, key, val) - DLRNI_GROUP;
    }
}

/* The same for an identity, whose features are the inputs that are not 0, negative ones too. */
DLRNI_INTERNAL void dlrni_collect_identity(const dlrni_encoding *c, dlrni_list *list, int64_t f0,
                                           int64_t width, int64_t first, int64_t rows) {
    for (int64_t i = first; i < first + rows; i++) {
        const float *x = c->xc + i * c->dict->d_in + f0;
        if (!dlrni_list_room(list, width)) continue;
        for (int64_t j = 0; j < width; j++) {
            list->key[list->count] = (int32_t)(i << DLRNI_GROUP_SHIFT | j);
            list->val[list->count] = x[j];
            list->count += x[j] != 0;
        }
    }
}

/* The list of one group on rows r0 .. r1, dense: block by block. */
DLRNI_INTERNAL void dlrni_list_dense(const dlrni_encoding *c, dlrni_list *list, int64_t group,
                                     int64_t r0, int64_t r1, float *tile) {
    const dlrn_dictionary *dict = c->dict;
    int64_t d = dict->d_in, f0 = group * DLRNI_GROUP, width = dlrni_group_width(c, group);
    if (list->whole) return;
    list->whole = 1;
    for (int64_t i = r0; i < r1; i += DLRNI_BLOCK) {
        int64_t rows = dlrni_min(DLRNI_BLOCK, r1 - i);
        /* entries of the block begin here */
        list->start[(i - r0) / DLRNI_BLOCK] = (int32_t)list->count;
        if (dict->formula.gate == DLRN_GATE_IDENTITY) {
            dlrni_collect_identity(c, list, f0, width, i, rows);
            continue;
        }
        dlrni_dense_tile(dict, c->xc + i * d, rows, f0, f0 + width, tile, width);
        dlrni_collect_tile(c, list, tile, rows, width, i, f0);
    }
}

/* Task: the lists of a few groups on one stretch. Tasks of one stretch follow each other, so that
   its rows stay in the third cache. */
DLRNI_INTERNAL void dlrni_list_task(void *arg, int64_t task, int worker) {
    dlrni_encoding *c = (dlrni_encoding *)arg;
    int64_t tasks = dlrni_ceil_div(c->wave, c->share), stretch = task / tasks;
    int64_t at = task % tasks * c->share, group = c->first + at;
    int64_t r0 = stretch * DLRNI_STRETCH, r1 = dlrni_min(r0 + DLRNI_STRETCH, c->n);
    int64_t n = dlrni_min(c->share, c->wave - at);
    dlrni_list *lists = &c->lists[stretch * c->groups + group];
    for (int64_t g = 0; g < n; g++)
        if (!lists[g].whole) lists[g].count = lists[g].candidates = 0;
    if (c->screen) dlrni_list_screened(c, lists, n, group, r0, r1, dlrni_scratch(c, worker));
    for (int64_t g = 0; g < n && !c->screen; g++)
        dlrni_list_dense(c, &lists[g], group + g, r0, r1,
                         (float *)(void *)dlrni_scratch(c, worker));
    for (int64_t g = 0; g < n; g++) /* blocks after the last row are empty */
        for (int64_t b = dlrni_ceil_div(r1 - r0, DLRNI_BLOCK); b <= DLRNI_STRETCH_BLOCKS; b++)
            lists[g].start[b] = (int32_t)lists[g].count;
}

/* Task: a block of rows in the screen's format, each with its side of the inequality. */
DLRNI_INTERNAL void dlrni_screen_block(void *arg, int64_t block, int worker) {
    dlrni_encoding *c = (dlrni_encoding *)arg;
    int64_t d = c->dict->d_in, end = dlrni_min((block + 1) * DLRNI_BLOCK, c->n);
    (void)worker;
    for (int64_t i = block * DLRNI_BLOCK; i < end; i++)
        dlrni_screen_row_of(c->screen, c->xc + i * d, d, c->rounded + i * c->width, c->width,
                            c->row + i);
}

/* Rounds all rows for the screen, once for all groups. */
DLRNI_INTERNAL dlrn_status dlrni_encoding_round(dlrni_encoding *c) {
    dlrn_context *ctx = c->dict->ctx;
    const int64_t beyond = DLRNI_SCREEN_ROWS; /* the last tile reads rows after the last */
    if (!DLRNI_GROW(ctx, &c->rounded, &c->rounded_cap, 0, (c->n + beyond) * c->width) ||
        !DLRNI_GROW(ctx, &c->row, &c->row_cap, 0, c->n + beyond))
        return DLRN_ERR_MEMORY;
    /* zeros, so that no result depends on what the memory held */
    memset(c->rounded + c->n * c->width, 0, (size_t)(beyond * c->width));
    memset(c->row + c->n, 0, (size_t)beyond * sizeof *c->row);
    dlrni_parallel_for(ctx, dlrni_ceil_div(c->n, DLRNI_BLOCK), dlrni_ns(c->n, c->dict->d_in),
                       dlrni_screen_block, c);
    return DLRN_OK;
}

/* The cheapest way for rows like those seen last; NULL: dense. Costs are relative to the dense
   product at the peak of f32. A screen that was not taken slowly forgets what it let through, so
   that it is tried again. */
DLRNI_INTERNAL const dlrni_screen *dlrni_choose_screen(dlrni_encoding *c, int64_t n) {
    /* Costs are per element of the product (Zen 4, 2048 x 512 x 8192): the dense way 1.35,
       recomputing a candidate 4, since its row comes from the second cache. To measure another
       machine, force each way and compare the encoder's rows of `make bench`. */
    const double dense = 1.35, recompute = 4;
    const double few = 0.03;        /* active: assumed until something is known                  */
    const double slack = 1.5;       /* candidates of an active feature, as seen with int8        */
    const double forget = 1.0 / 64; /* per batch                                                 */
    const dlrni_screen *best = NULL;
    double min = dense;
    if (!dlrni_screenable(c->dict) || n < DLRNI_SCREEN_MIN) return NULL;
    for (int i = 0; i < 2; i++) {
        const dlrni_screen *s = c->dict->ctx->set.screen[i];
        double expected = c->active >= 0 ? slack * c->active : few;
        if (!s) continue;
        /* drift towards what its format lets through at best */
        if (c->let_through[i] >= 0) c->let_through[i] += (expected - c->let_through[i]) * forget;
        double share = c->let_through[i] >= 0 ? c->let_through[i] : expected;
        double cost = (double)s->cost + recompute * share;
        if (cost >= min) continue;
        best = s;
        min = cost;
    }
    return best;
}

/* Begins a batch xc [n][d_in], which is borrowed until the next batch begins. Lists of earlier
   batches keep their memory; new ones must be zero before they are grown. */
DLRNI_INTERNAL dlrn_status dlrni_encoding_begin(dlrni_encoding *c, float *xc, int64_t n) {
    dlrn_context *ctx = c->dict->ctx;
    int64_t used = c->lists_cap, lists;
    DLRNI_TRY(dlrni_gating_begin(&c->gate, c->dict, c->unscaled));
    if (!dlrni_selects(c->dict)) { /* floors of an earlier formula */
        dlrn_free(ctx, c->floor);
        c->floor = NULL;
        c->floor_cap = 0;
    }
    c->xc = xc;
    c->n = n;
    c->first = -1;
    /* cuts of the old rows are void */
    c->cut_known = 0;
    c->stretches = dlrni_ceil_div(n, DLRNI_STRETCH);
    lists = c->groups * c->stretches;
    /* existing lists keep their arrays */
    if (!DLRNI_GROW(ctx, &c->lists, &c->lists_cap, used, lists)) return DLRN_ERR_MEMORY;
    if (c->lists_cap > used)
        memset(c->lists + used, 0, (size_t)(c->lists_cap - used) * sizeof *c->lists);
    c->screen = dlrni_choose_screen(c, n);
    c->width = c->screen ? dlrni_screen_width(c->screen, c->dict->d_in) : 0;
    /* panels are of one format only */
    if (c->ready && c->ready->screen != c->screen) c->ready = NULL;
    return c->screen ? dlrni_encoding_round(c) : DLRN_OK;
}

/* Grows a list to `entries`; its first `kept` entries stay. */
DLRNI_INTERNAL int dlrni_list_grow(dlrn_context *ctx, dlrni_list *list, int64_t kept,
                                   int64_t entries) {
    return DLRNI_GROW(ctx, &list->key, &list->key_cap, kept, entries) &&
           DLRNI_GROW(ctx, &list->val, &list->val_cap, kept, entries);
}

/* Room for the first batch, whose density is unknown, so that it need not be encoded twice.
   `share`: of the features, how many may be active. */
DLRNI_INTERNAL dlrn_status dlrni_first_room(dlrni_encoding *c, double share) {
    int64_t all = dlrni_min(c->n, DLRNI_STRETCH) * DLRNI_GROUP;
    int64_t entries = (int64_t)(share * (double)all) + DLRNI_GROUP;
    for (int64_t s = 0; s < c->stretches; s++)
        for (int64_t g = c->first; g < c->first + c->wave; g++)
            if (!dlrni_list_grow(c->dict->ctx, &c->lists[s * c->groups + g], 0, entries))
                return DLRN_ERR_MEMORY;
    return DLRN_OK;
}

/* Where a list did not fit, or barely did, makes room for twice what it needs: batches differ, and
   one like this should allocate nothing. *missing: how many lists must be rebuilt. */
DLRNI_INTERNAL dlrn_status dlrni_make_room(dlrni_encoding *c, int64_t *missing) {
    dlrn_context *ctx = c->dict->ctx;
    const int64_t row = DLRNI_GROUP; /* space is reserved as if all of a row were active */
    /* all rows of a stretch in full, and one appended */
    const int64_t max = (DLRNI_STRETCH + 1) * row;
    *missing = 0;
    for (int64_t s = 0; s < c->stretches; s++)
        for (int64_t g = c->first; g < c->first + c->wave; g++) {
            dlrni_list *list = &c->lists[s * c->groups + g];
            int64_t need = list->count + row, cap = dlrni_min(list->key_cap, list->val_cap);
            /* a quarter is free: the next batch will also fit */
            if (list->whole && need <= cap / 4 * 3) continue;
            if (!dlrni_list_grow(ctx, list, list->whole ? list->count : 0,
                                 dlrni_min(2 * need, max)))
                return DLRN_ERR_MEMORY;
            *missing += !list->whole;
        }
    return DLRN_OK;
}

/* Entries of the lists in hand, or how many there would be with enough room. */
DLRNI_INTERNAL int64_t dlrni_wave_entries(const dlrni_encoding *c) {
    int64_t total = 0;
    for (int64_t s = 0; s < c->stretches; s++)
        for (int64_t g = c->first; g < c->first + c->wave; g++)
            total += c->lists[s * c->groups + g].count;
    return total;
}

/* Candidates of the lists in hand: how well the screen does (dlrni_encoding_learn). */
DLRNI_INTERNAL int64_t dlrni_wave_candidates(const dlrni_encoding *c) {
    int64_t total = 0;
    for (int64_t s = 0; s < c->stretches; s++)
        for (int64_t g = c->first; g < c->first + c->wave; g++)
            total += c->lists[s * c->groups + g].candidates;
    return total;
}

/* The lists of groups first .. first + wave, before selection. If they hold more than `budget`
   entries, the wave shrinks to a number of groups that fits even if all features are active. */
DLRNI_INTERNAL dlrn_status dlrni_make_lists(dlrni_encoding *c, int64_t first, int64_t wave,
                                            int64_t budget) {
    dlrn_context *ctx = c->dict->ctx;
    int64_t missing = 1, tile = DLRNI_BLOCK * DLRNI_GROUP * (int64_t)sizeof(float);
    c->first = first;
    c->wave = dlrni_min(wave, c->groups - first);
    c->share =
        dlrni_min(DLRNI_NEAR_BYTES / (DLRNI_GROUP * (c->width + 4 * c->dict->d_in)), DLRNI_SHARE);
    /* at least eight tasks per thread, so that the slowest one does not hold up the rest */
    c->share = dlrni_max(dlrni_min(c->share, c->stretches * c->wave / (8 * ctx->threads)), 1);
    DLRNI_TRY(dlrni_need_scratch(c, c->screen ? dlrni_packed_bytes(c, c->share) : tile));
    /* more than the 3 % of dlrni_choose_screen, on purpose: too much room costs less than a
       second pass */
    if (c->screen && c->active < 0) DLRNI_TRY(dlrni_first_room(c, 0.05));
    for (int64_t s = 0; s < c->stretches; s++)
        for (int64_t g = first; g < first + c->wave; g++) c->lists[s * c->groups + g].whole = 0;
    while (missing) {
        dlrni_parallel_for(ctx, c->stretches * dlrni_ceil_div(c->wave, c->share),
                           dlrni_ns(c->n, c->wave * DLRNI_GROUP) * (double)c->dict->d_in / 16,
                           dlrni_list_task, c);
        /* the groups after the new end are made by a later call, in the same memory */
        if (dlrni_wave_entries(c) > budget)
            c->wave = dlrni_min(c->wave, dlrni_max(budget / (c->n * DLRNI_GROUP), 1));
        DLRNI_TRY(dlrni_make_room(c, &missing));
    }
    return DLRN_OK;
}

/* After a whole batch: its shares are the guess for the next one. */
DLRNI_INTERNAL void dlrni_encoding_learn(dlrni_encoding *c, int64_t active, int64_t candidates) {
    double all = (double)c->n * (double)c->dict->features;
    c->active = (double)active / all;
    for (int i = 0; i < 2; i++)
        if (c->screen && c->screen == c->dict->ctx->set.screen[i])
            c->let_through[i] = (double)candidates / all;
}

/* ---- Lists by row ---- */

/* Counts the entries of a block of rows, at [DLRNI_BLOCK + 1]: at[i] is where row i starts; the
   caller sets at[0]. */
DLRNI_INTERNAL void dlrni_block_count(const dlrni_encoding *c, int64_t block, int64_t *at) {
    int64_t s = block / DLRNI_STRETCH_BLOCKS, b = block % DLRNI_STRETCH_BLOCKS;
    /* counts are stored one place to the right of their row */
    for (int64_t i = 1; i <= DLRNI_BLOCK; i++) at[i] = 0;
    for (int64_t g = c->first; g < c->first + c->wave; g++) {
        const dlrni_list *list = &c->lists[s * c->groups + g];
        for (int32_t p = list->start[b]; p < list->start[b + 1]; p++)
            at[dlrni_key_row(list->key[p]) % DLRNI_BLOCK + 1]++;
    }
    /* counts become starts */
    for (int64_t i = 0; i < DLRNI_BLOCK; i++) at[i + 1] += at[i];
}

/* Writes the entries of a block to where `at` of dlrni_block_count says. Lists are visited by
   group, so that features ascend within a row. */
DLRNI_INTERNAL void dlrni_block_fill(const dlrni_encoding *c, int64_t block, const int64_t *at,
                                     int32_t *col, float *val) {
    int64_t s = block / DLRNI_STRETCH_BLOCKS, b = block % DLRNI_STRETCH_BLOCKS, to[DLRNI_BLOCK];
    memcpy(to, at, sizeof to);
    for (int64_t g = c->first; g < c->first + c->wave; g++) {
        const dlrni_list *list = &c->lists[s * c->groups + g];
        for (int32_t p = list->start[b]; p < list->start[b + 1]; p++) {
            /* each row is filled from its start */
            int64_t q = to[dlrni_key_row(list->key[p]) % DLRNI_BLOCK]++;
            col[q] = (int32_t)(g * DLRNI_GROUP + dlrni_key_feature(list->key[p]));
            val[q] = list->val[p];
        }
    }
    /* a second pass where values are not pre-activations, so that the first has no branch */
    for (int64_t q = at[0]; c->gate.scale && q < at[DLRNI_BLOCK]; q++)
        val[q] = dlrni_value_of(&c->gate, col[q], val[q]);
}

/* The largest number of entries of a block of rows: how long a slab's arrays must be. */
DLRNI_INTERNAL int64_t dlrni_block_max(const dlrni_encoding *c) {
    int64_t max = 0;
    for (int64_t s = 0; s < c->stretches; s++)
        for (int64_t b = 0; b < DLRNI_STRETCH_BLOCKS; b++) {
            int64_t n = 0;
            for (int64_t g = c->first; g < c->first + c->wave; g++) {
                const dlrni_list *list = &c->lists[s * c->groups + g];
                n += list->start[b + 1] - list->start[b];
            }
            max = dlrni_max(max, n);
        }
    return max;
}

/* ------------------------------------------------------------------------------------------ */
// >>select
/* Top-k: each row keeps its k best entries; among equals, the lower feature. (By size the best are
   those with the largest |pre|. Of groups, each keeps its best.) Groups are
   encoded in ascending order, in rounds. After each round the worst of a row's k best so far is a
   floor for the rest: a later feature must exceed it, since an equal one would lose to the lower
   index. So the screen rules out nearly all features that cannot be chosen. The result, a cut for
   each row, depends neither on the rounds nor on the screen. */

/* Whether a is worse than b: smaller, or equal with a higher feature. A NaN is better than all, so
   that it is chosen and seen. No two entries of a row are equal, so the order is total. */
DLRNI_INTERNAL int dlrni_is_worse(const dlrni_cut *a, const dlrni_cut *b) {
    /* only a NaN differs from itself */
    int nan_a = a->value != a->value, nan_b = b->value != b->value;
    if (nan_a != nan_b) return nan_b;
    return a->value < b->value || (!(a->value > b->value) && a->feature > b->feature);
}

/* Whether the best of each group is chosen, not the best of a row. */
DLRNI_INTERNAL int dlrni_by_group(const dlrni_encoding *c) {
    return c->dict->formula.select == DLRN_SELECT_GROUP_MAX;
}

/* Restores a heap [n], the worst entry on top, after its top has changed. */
DLRNI_INTERNAL void dlrni_heap_down(dlrni_cut *heap, int64_t n) {
    for (int64_t at = 0, child; (child = 2 * at + 1) < n; at = child) {
        /* the worse child must be above the other */
        if (child + 1 < n && dlrni_is_worse(&heap[child + 1], &heap[child])) child++;
        /* in order again */
        if (!dlrni_is_worse(&heap[child], &heap[at])) return;
        dlrni_cut swap = heap[at];
        heap[at] = heap[child];
        heap[child] = swap;
    }
}

/* Restores the heap after an entry was added at its end, `at`. */
DLRNI_INTERNAL void dlrni_heap_up(dlrni_cut *heap, int64_t at) {
    for (int64_t parent; at > 0; at = parent) {
        parent = (at - 1) / 2;
        if (!dlrni_is_worse(&heap[at], &heap[parent])) return;
        dlrni_cut swap = heap[at];
        heap[at] = heap[parent];
        heap[parent] = swap;
    }
}

/* Keeps (feature, value) in heap [k] if it is among the k best of the row so far. O(log k), and a
   single comparison for most entries of a long row. */
DLRNI_INTERNAL void dlrni_keep_best(dlrni_cut *heap, int32_t *kept, int64_t k, int32_t feature,
                                    float value) {
    dlrni_cut entry = {value, feature};
    if (*kept < k) {
        heap[*kept] = entry;
        dlrni_heap_up(heap, (*kept)++);
        /* better than the worst of k: takes its place */
    } else if (dlrni_is_worse(&heap[0], &entry)) {
        heap[0] = entry;
        dlrni_heap_down(heap, k);
    }
}

/* The same for groups of `width` features: best [k] has a place for each, which starts at 0. */
DLRNI_INTERNAL void dlrni_keep_group_best(dlrni_cut *best, int64_t width, int32_t feature,
                                          float value) {
    dlrni_cut entry = {value, feature}, *to = &best[feature / width];
    if (dlrni_is_worse(to, &entry)) *to = entry;
}

/* Task: puts the entries in hand of a block of rows into the rows' heaps. A full heap raises the
   row's floor, also in the screen's units. */
DLRNI_INTERNAL void dlrni_select_block(void *arg, int64_t block, int worker) {
    dlrni_encoding *c = (dlrni_encoding *)arg;
    int64_t s = block / DLRNI_STRETCH_BLOCKS, b = block % DLRNI_STRETCH_BLOCKS,
            k = c->dict->formula.k;
    const int by_size = dlrni_by_size(c), by_group = dlrni_by_group(c);
    (void)worker;
    for (int64_t g = c->first; g < c->first + c->wave; g++) {
        const dlrni_list *list = &c->lists[s * c->groups + g];
        for (int32_t p = list->start[b]; p < list->start[b + 1]; p++) {
            int64_t row = dlrni_key_row(list->key[p]);
            int32_t feature = (int32_t)(g * DLRNI_GROUP + dlrni_key_feature(list->key[p]));
            float rank = by_size ? fabsf(list->val[p]) : list->val[p];
            if (by_group)
                dlrni_keep_group_best(c->best + row * k, c->dict->features / k, feature, rank);
            else
                dlrni_keep_best(c->best + row * k, c->kept + row, k, feature, rank);
        }
    }
    for (int64_t i = block * DLRNI_BLOCK; i < dlrni_min((block + 1) * DLRNI_BLOCK, c->n); i++) {
        /* fewer than k so far: anything above 0 is still chosen */
        if (c->kept[i] < k) continue;
        float worst = c->best[i * k].value;
        c->floor[i] = worst != worst ? INFINITY : worst; /* k NaNs: nothing is better */
        if (c->screen) dlrni_screen_set_floor(c->row + i, c->floor[i]);
    }
}

/* Whether an entry is among the chosen ones of its row: if the heap is not full, all are chosen. */
DLRNI_INTERNAL int dlrni_is_chosen(const dlrni_encoding *c, int64_t row, int32_t feature,
                                   float value) {
    int64_t k = c->dict->formula.k;
    dlrni_cut entry = {value, feature};
    return c->kept[row] < k || !dlrni_is_worse(&entry, &c->best[row * k]);
}

/* Whether an entry of a list stays in the codes: its feature is chosen, and its value is not 0. */
DLRNI_INTERNAL int dlrni_stays(const dlrni_encoding *c, int64_t row, int32_t feature, float pre) {
    int64_t k = c->dict->formula.k;
    if (!(dlrni_value_of(&c->gate, feature, pre) != 0)) return 0;
    if (!c->cut_known) return 1;
    if (dlrni_by_group(c))
        return c->best[row * k + feature / (c->dict->features / k)].feature == feature;
    return dlrni_is_chosen(c, row, feature, dlrni_by_size(c) ? fabsf(pre) : pre);
}

/* Task: drops the entries that do not stay from one list, in place. `count` never overtakes `p`,
   so nothing is overwritten before it is read. */
DLRNI_INTERNAL void dlrni_drop_task(void *arg, int64_t task, int worker) {
    dlrni_encoding *c = (dlrni_encoding *)arg;
    int64_t s = task / c->wave, g = c->first + task % c->wave, count = 0;
    dlrni_list *list = &c->lists[s * c->groups + g];
    int32_t p = 0;
    (void)worker;
    for (int64_t b = 0; b < DLRNI_STRETCH_BLOCKS; b++) {
        int32_t end = list->start[b + 1];
        list->start[b] = (int32_t)count;
        for (; p < end; p++) {
            list->key[count] = list->key[p];
            list->val[count] = list->val[p];
            /* copied first, counted if chosen: no branch */
            count += dlrni_stays(c, dlrni_key_row(list->key[p]),
                                 (int32_t)(g * DLRNI_GROUP + dlrni_key_feature(list->key[p])),
                                 list->val[p]);
        }
    }
    /* the end of the last block */
    list->start[DLRNI_STRETCH_BLOCKS] = (int32_t)count;
    list->count = count;
}

/* Empty heaps, the gate's floors. Memory is O(n k), not O(n F). */
DLRNI_INTERNAL dlrn_status dlrni_select_begin(dlrni_encoding *c) {
    dlrn_context *ctx = c->dict->ctx;
    int64_t size;
    if (!dlrni_mul(c->n, c->dict->formula.k, &size) ||
        !DLRNI_GROW(ctx, &c->best, &c->best_cap, 0, size) ||
        !DLRNI_GROW(ctx, &c->kept, &c->kept_cap, 0, c->n) ||
        !DLRNI_GROW(ctx, &c->floor, &c->floor_cap, 0, c->n))
        return DLRN_ERR_MEMORY;
    const dlrni_cut none = {0, INT32_MAX}; /* of a group without a positive feature */
    memset(c->kept, 0, (size_t)c->n * sizeof *c->kept);
    for (int64_t i = 0; i < size && dlrni_by_group(c); i++) c->best[i] = none;
    /* until k entries are found the gate's floor holds; a size has no sign, and 0 is not active */
    const float floor = dlrni_by_size(c) ? 0 : c->gate.min_floor;
    for (int64_t i = 0; i < c->n; i++) {
        c->floor[i] = floor;
        if (c->screen) dlrni_screen_set_floor(c->row + i, dlrni_raises_floors(c->dict) ? floor : 0);
    }
    return DLRN_OK;
}

/* One past the last group of the round that begins with `first`: a 16th, then a quarter, then all.
   A short first round sets a floor early, where no row has one yet; more rounds would cost more
   loops over tasks than they save. With 512 x 32768 and k 64, 3 % of the first 16th and 0.8 % of
   the rest reach the heaps. */
DLRNI_INTERNAL int64_t dlrni_round_end(const dlrni_encoding *c, int64_t first) {
    int64_t sixteenth = dlrni_ceil_div(c->groups, 16), quarter = dlrni_ceil_div(c->groups, 4);
    return first < sixteenth ? sixteenth : first < quarter ? quarter : c->groups;
}

/* Finds the cut of every row, by rounds over all groups. *in_hand: 1 if the lists of all groups fit
   together into the budget, so none must be rebuilt. */
DLRNI_INTERNAL dlrn_status dlrni_find_cuts(dlrni_encoding *c, int64_t budget, int *in_hand) {
    int64_t used = 0;
    *in_hand = 1;
    DLRNI_TRY(dlrni_select_begin(c));
    /* a budget that is too small makes more rounds, not another result */
    for (int64_t first = 0; first < c->groups; first += c->wave) {
        DLRNI_TRY(dlrni_make_lists(c, first, dlrni_round_end(c, first) - first, budget));
        dlrn_parallel_for(c->dict->ctx, dlrni_ceil_div(c->n, DLRNI_BLOCK), dlrni_select_block, c);
        used += dlrni_wave_entries(c);
        *in_hand = *in_hand && used <= budget;
    }
    c->cut_known = 1;
    /* Lists made from now on must hold the chosen entries. The cut itself equals the floor, so the
       floor is lowered by one ulp. */
    for (int64_t i = 0; i < c->n; i++) {
        if (c->kept[i] < c->dict->formula.k) continue;
        c->floor[i] = nextafterf(c->floor[i], -INFINITY);
        if (c->screen) dlrni_screen_set_floor(c->row + i, c->floor[i]);
    }
    return DLRN_OK;
}

/* Candidates and selection together: the lists of groups first .. first + wave, holding the chosen
   entries. c->wave may come out smaller (dlrni_make_lists). The cuts are found once for a batch;
   later waves only use them. */
DLRNI_INTERNAL dlrn_status dlrni_encoding_load(dlrni_encoding *c, int64_t first, int64_t wave,
                                               int64_t budget) {
    int in_hand = 0;
    if (!dlrni_selects(c->dict)) return dlrni_make_lists(c, first, wave, budget);
    if (!c->cut_known) DLRNI_TRY(dlrni_find_cuts(c, budget, &in_hand));
    /* the rounds have left the lists of all groups: use them */
    if (in_hand && first == 0 && wave >= c->groups) {
        c->first = 0;
        c->wave = c->groups;
    } else
        DLRNI_TRY(dlrni_make_lists(c, first, wave, budget));
    /* needed even after the rounds: their lists hold all that passed an early floor */
    dlrn_parallel_for(c->dict->ctx, c->stretches * c->wave, dlrni_drop_task, c);
    return DLRN_OK;
}

/* ---- Selections over codes ----
   The same selections on finished codes: for those that compare the rows of a whole call (a batch's
   best, standardised ranks), for gates whose lists do not hold what is compared, and for a
   dictionary of several parts, whose codes are joined first. A feature without an entry is 0 and
   takes part: it ranks above a negative one. So the result is that of the dense vectors. */

/* Features are chosen by their rank: the value, or for DLRN_SELECT_ABS_TOP_K its size. */
typedef struct dlrni_choice {
    const dlrn_formula *formula;
    dlrn_sparse *codes;
    double *mean, *spread; /* [cols] of each feature over the rows; NULL: ranks are values   */
    uint32_t *key;         /* [cols] ranks of a row                                          */
    uint32_t cut;          /* chosen: ranks above it, and the first `ties` of those equal    */
    int64_t ties;
} dlrni_choice;

enum { DLRNI_KEY_BITS = 11 }; /* looked at in one pass: 2048 counters stay in the first cache */
#define DLRNI_KEY_ZERO 0x80000000u /* the key of 0 */

/* A number whose order is that of the floats. A NaN comes above all, so that it is chosen and seen;
   -0 is 0. */
DLRNI_INTERNAL uint32_t dlrni_rank_key(float rank) {
    uint32_t bits;
    if (rank != rank) return UINT32_MAX;
    if (rank == 0) return DLRNI_KEY_ZERO;
    memcpy(&bits, &rank, sizeof bits);
    return bits >> 31 ? ~bits : bits | DLRNI_KEY_ZERO;
}

/* The rank of a value of feature c. */
DLRNI_INTERNAL uint32_t dlrni_key_of(const dlrni_choice *j, int64_t c, float value) {
    float rank = j->mean ? (float)(((double)value - j->mean[c]) / j->spread[c]) : value;
    return dlrni_rank_key(j->formula->select == DLRN_SELECT_ABS_TOP_K ? fabsf(rank) : rank);
}

/* Ranks of the row with the entries at .. end, to j->key: of its entries, or of all columns where a
   0 has a rank of its own. Returns how many; *zeros: columns that are 0 and not among them. */
DLRNI_INTERNAL int64_t dlrni_row_keys(const dlrni_choice *j, int64_t at, int64_t end,
                                      int64_t *zeros) {
    const dlrn_sparse *codes = j->codes;
    *zeros = j->mean ? 0 : codes->cols - (end - at);
    for (int64_t p = at; p < end && !j->mean; p++)
        j->key[p - at] = dlrni_key_of(j, codes->col[p], codes->val[p]);
    for (int64_t c = 0; c < codes->cols && j->mean; c++) {
        const int has = at < end && codes->col[at] == c;
        j->key[c] = dlrni_key_of(j, c, has ? codes->val[at] : 0);
        at += has;
    }
    return j->mean ? codes->cols : end - at;
}

/* Finds the cut that chooses m features of `rows` rows, whose entries begin at ptr [rows + 1]. The
   m-th best key is found from its highest bits to its lowest, with one pass over all keys for each
   part: no sort, and no copy of the keys. With fewer than m, all are chosen. */
DLRNI_INTERNAL void dlrni_find_choice(dlrni_choice *j, const int64_t *ptr, int64_t rows,
                                      int64_t m) {
    int64_t count[1 << DLRNI_KEY_BITS], zeros;
    uint32_t known = 0; /* the bits of `cut` that are found */
    j->cut = 0;
    for (int shift = 32 - DLRNI_KEY_BITS; known != UINT32_MAX;
         shift = shift > DLRNI_KEY_BITS ? shift - DLRNI_KEY_BITS : 0) {
        memset(count, 0, sizeof count);
        for (int64_t i = 0; i < rows; i++) {
            int64_t n = dlrni_row_keys(j, ptr[i], ptr[i + 1], &zeros);
            for (int64_t q = 0; q < n; q++)
                if ((j->key[q] & known) == j->cut) count[(j->key[q] & ~known) >> shift]++;
            if ((DLRNI_KEY_ZERO & known) == j->cut)
                count[(DLRNI_KEY_ZERO & ~known) >> shift] += zeros;
        }
        uint32_t part = UINT32_MAX & ~known;
        part >>= shift;
        for (; part > 0 && count[part] < m; part--) m -= count[part];
        j->cut |= part << shift;
        known = shift ? UINT32_MAX << shift : UINT32_MAX;
    }
    j->ties = m;
}

/* Moves the chosen entries of the row at .. end to `to` and after; returns where they end. An entry
   of 0 is not active. */
DLRNI_INTERNAL int64_t dlrni_keep_chosen(dlrni_choice *j, int64_t at, int64_t end, int64_t to) {
    dlrn_sparse *codes = j->codes;
    int64_t zeros, n = dlrni_row_keys(j, at, end, &zeros);
    for (int64_t q = 0; q < n; q++) {
        int chosen = j->key[q] > j->cut || (j->key[q] == j->cut && j->ties-- > 0);
        /* ranks of all columns: one without an entry may be chosen, and stays 0 */
        if (j->mean && (at == end || codes->col[at] != q)) continue;
        if (chosen && codes->val[at] != 0) {
            codes->col[to] = codes->col[at];
            codes->val[to++] = codes->val[at];
        }
        at++;
    }
    return to;
}

/* The same for DLRN_SELECT_GROUP_MAX: of each group of `width` columns the best entry, if it is
   positive. */
DLRNI_INTERNAL int64_t dlrni_keep_group_max(dlrn_sparse *codes, int64_t at, int64_t end, int64_t to,
                                            int64_t width) {
    const int64_t start = to;
    for (; at < end; at++) {
        const dlrni_cut entry = {codes->val[at], codes->col[at]};
        if (entry.value <= 0) continue;
        if (to > start && codes->col[to - 1] / width == entry.feature / width) {
            const dlrni_cut best = {codes->val[to - 1], codes->col[to - 1]};
            if (!dlrni_is_worse(&best, &entry)) continue;
            to--; /* the group's better entry takes the place */
        }
        codes->col[to] = entry.feature;
        codes->val[to++] = entry.value;
    }
    return to;
}

/* Mean and deviation of each feature over all rows, as decode-clt has them: unbiased, plus 1e-6.
   Columns without an entry count as 0. A single row has no deviation: its ranks are its values. */
DLRNI_INTERNAL void dlrni_standardise(dlrni_choice *j) {
    const dlrn_sparse *codes = j->codes;
    const int64_t cols = codes->cols, nnz = codes->row_ptr[codes->rows];
    const double n = (double)codes->rows;
    for (int64_t c = 0; c < cols; c++) j->mean[c] = 0, j->spread[c] = n > 1 ? 0 : 1;
    if (!(n > 1)) return;
    for (int64_t p = 0; p < nnz; p++) {
        j->mean[codes->col[p]] += (double)codes->val[p] / n;
        j->spread[codes->col[p]]++; /* entries, for now */
    }
    /* what the zeros add to the sum of squares */
    for (int64_t c = 0; c < cols; c++) j->spread[c] = (n - j->spread[c]) * j->mean[c] * j->mean[c];
    for (int64_t p = 0; p < nnz; p++) {
        double off = (double)codes->val[p] - j->mean[codes->col[p]];
        j->spread[codes->col[p]] += off * off;
    }
    for (int64_t c = 0; c < cols; c++) j->spread[c] = sqrt(j->spread[c] / (n - 1)) + 1e-6;
}

/* What the loops rely on. A caller may have set the formula or a parameter. */
DLRNI_INTERNAL dlrn_status dlrni_check_formula(const dlrn_dictionary *dict) {
    const dlrn_formula *f = &dict->formula;
    DLRNI_TRY(dlrni_check_select(dict->ctx, f, dict->features));
    if (f->gate != DLRN_GATE_IDENTITY && !dlrni_own_encode(dict) &&
        (!dict->param[DLRN_ENCODER] || !dict->param[DLRN_ENCODER_BIAS]))
        return dlrn_fail(dict->ctx, DLRN_ERR_UNSUPPORTED, "%s: expected an encoder, found none",
                         dict->family);
    if (f->normalise &&
        (dict->layers < 1 || dict->d_in % dict->layers || dict->d_out % dict->layers))
        return dlrn_fail(dict->ctx, DLRN_ERR_SHAPE,
                         "layers: expected a divisor of d_in %lld and of d_out %lld, found %lld",
                         (long long)dict->d_in, (long long)dict->d_out, (long long)dict->layers);
    return DLRN_OK;
}

/* Applies a formula's selection to the codes of all rows of a call, in place. The codes hold the
   values of the gate before DLRN_LOG_SCALE (dlrni_encode_unscaled), with columns that ascend; of
   several parts, those of all parts. Entries of 0 are dropped. Takes O(cols) memory. */
DLRNI_INTERNAL dlrn_status dlrni_select_codes(dlrn_context *ctx, const dlrn_formula *formula,
                                              dlrn_sparse *codes) {
    dlrni_choice j = {formula, codes, NULL, NULL, NULL, 0, 0};
    const int64_t cols = codes->cols, rows = codes->rows;
    const int whole = formula->select == DLRN_SELECT_BATCH_TOP_K;
    int64_t m = formula->k, at = 0, to = 0;
    if (formula->select == DLRN_SELECT_ALL || rows == 0) return DLRN_OK;
    DLRNI_TRY(dlrni_check_select(ctx, formula, cols));
    if (whole && !dlrni_mul(m, rows, &m)) m = INT64_MAX;
    j.key = DLRNI_NEW(ctx, uint32_t, cols);
    double *stats = formula->standardise ? DLRNI_NEW(ctx, double, 2 * cols) : NULL;
    if (!j.key || (formula->standardise && !stats)) {
        dlrn_free(ctx, j.key);
        dlrn_free(ctx, stats);
        return DLRN_ERR_MEMORY;
    }
    if (stats) {
        j.mean = stats;
        j.spread = stats + cols;
        dlrni_standardise(&j);
    }
    if (whole) dlrni_find_choice(&j, codes->row_ptr, rows, m);
    for (int64_t i = 0; i < rows; i++) {
        const int64_t row[2] = {at, codes->row_ptr[i + 1]};
        if (formula->select == DLRN_SELECT_GROUP_MAX)
            to = dlrni_keep_group_max(codes, at, row[1], to, cols / formula->k);
        else {
            if (!whole) dlrni_find_choice(&j, row, 1, m);
            to = dlrni_keep_chosen(&j, at, row[1], to);
        }
        at = row[1];
        codes->row_ptr[i + 1] = to;
    }
    dlrn_free(ctx, j.key);
    dlrn_free(ctx, stats);
    return DLRN_OK;
}

/* ------------------------------------------------------------------------------------------ */
// >>decode
/* x_hat = scale_out (sum of the atoms of the active features + bias + skip z), and then what was done
   to normalise x is undone. Only the atoms of active features are read. The order of the sum is
   fixed: the bias first, then the atoms by feature, then the skip. */

/* Rows to decode, one task each. */
typedef struct dlrni_decode_job {
    const dlrn_dictionary *dict;
    const dlrn_sparse *codes;
    const float *x; /* [rows][d_in], or NULL: nothing depends on x                        */
    const float *z; /* [rows][d_in] what the skip multiplies, times z_scale; NULL: no skip */
    float z_scale;
    float *x_hat; /* [rows][d_out] */
} dlrni_decode_job;

/* x_hat [d_out] of x [d_in], as if x had not been normalised: layer by layer, as in the input. */
DLRNI_INTERNAL void dlrni_undo_normalise(const dlrn_dictionary *dict, const float *x,
                                         float *x_hat) {
    const int64_t in = dict->d_in / dict->layers, out = dict->d_out / dict->layers;
    for (int64_t layer = 0; layer < dict->layers; layer++, x += in, x_hat += out) {
        const dlrni_measure m = dlrni_measure_of(dict, x, in);
        dict->ctx->k->scale(x_hat, (float)m.out, out);
        for (int64_t o = 0; o < out; o++) x_hat[o] += m.mean;
    }
}

/* The atoms of codes' row i, added to x_hat [d_out]. */
DLRNI_INTERNAL void dlrni_add_atoms(const dlrn_dictionary *dict, const dlrn_sparse *c, int64_t i,
                                    float *x_hat) {
    int64_t at = c->row_ptr[i], n = c->row_ptr[i + 1] - at, d = dict->d_out;
    if (n)
        dict->ctx->k->gather_axpy(x_hat, d, dict->param[DLRN_DECODER], d, c->col + at, c->val + at,
                                  n);
}

/* Task: one row. Tasks write disjoint rows and read shared atoms. */
DLRNI_INTERNAL void dlrni_decode_task(void *arg, int64_t i, int worker) {
    const dlrni_decode_job *j = (const dlrni_decode_job *)arg;
    const dlrn_dictionary *dict = j->dict;
    const dlrni_kernel_table *k = dict->ctx->k;
    const dlrn_sparse *c = j->codes;
    int64_t d = dict->d_out;
    float *x_hat = j->x_hat + i * d, scale = (float)dict->formula.scale_out;
    (void)worker;
    if (!dict->param[DLRN_DECODER]) { /* an identity */
        /* its features are the numbers of x: put them back */
        memset(x_hat, 0, (size_t)d * sizeof *x_hat);
        for (int64_t p = c->row_ptr[i]; p < c->row_ptr[i + 1]; p++) x_hat[c->col[p]] = c->val[p];
    } else {
        /* the sum starts with the bias: no separate pass to add it */
        memcpy(x_hat, dict->param[DLRN_OUTPUT_BIAS], (size_t)d * sizeof *x_hat);
        dlrni_add_atoms(dict, c, i, x_hat);
        for (int64_t o = 0; j->z && o < dict->skip_rows; o++)
            x_hat[o] += j->z_scale * k->dot(dict->param[DLRN_SKIP] + o * dict->d_in,
                                            j->z + i * dict->d_in, dict->d_in);
        /* not `scale != 1`: compilers warn of comparing floats */
        if (scale < 1 || scale > 1) k->scale(x_hat, scale, d);
    }
    if (j->x && dict->formula.normalise) dlrni_undo_normalise(dict, j->x + i * dict->d_in, x_hat);
}

/* x_hat [rows][d_out] from codes whose indices are known to be in range: they were made here, or
   have been checked. x [rows][d_in] is read if there is a skip or a normalisation; z [rows][d_in]
   holds the normalised rows if there are both (dlrni_needs_z); otherwise NULL. */
DLRNI_INTERNAL void dlrni_decode_rows(const dlrn_dictionary *dict, const dlrn_sparse *codes,
                                      const float *x, const float *z, float *x_hat) {
    dlrni_decode_job job = {dict, codes, x, z, 1, x_hat};
    if (!z) {
        job.z = dict->param[DLRN_SKIP] ? x : NULL;
        job.z_scale = (float)dict->formula.scale_in;
    }
    /* an estimate of the work: atoms added, and one row written */
    dlrni_parallel_for(dict->ctx, codes->rows,
                       dlrni_ns(codes->row_ptr[codes->rows] / 16 + codes->rows, dict->d_out),
                       dlrni_decode_task, &job);
}

/* Whether decoding needs the normalised rows themselves: a skip multiplies them. */
DLRNI_INTERNAL int dlrni_needs_z(const dlrn_dictionary *dict) {
    return dict->param[DLRN_SKIP] && dict->formula.normalise;
}

/* With a skip or normalised rows, the output also depends on x, which codes do not hold. */
DLRNI_INTERNAL dlrn_status dlrni_check_decodes(const dlrn_dictionary *dict) {
    if (!dict->param[DLRN_SKIP] && !dict->formula.normalise) return DLRN_OK;
    return dlrn_fail(dict->ctx, DLRN_ERR_UNSUPPORTED,
                     "decode: this %s %s: call dlrn_encoder_run, "
                     "which has x",
                     dict->family,
                     dict->param[DLRN_SKIP] ? "adds a linear map of x to its output"
                                            : "normalises x, and undoes that on its output");
}

/* Codes come from the caller or from a file: an index out of range would read out of bounds. */
DLRN_API dlrn_status dlrn_decode_sparse(const dlrn_dictionary *dict, const dlrn_sparse *codes,
                                        float *x_hat) {
    DLRNI_TRY(dlrni_check_decodes(dict));
    /* codes of another dictionary, most likely */
    if (codes->cols != dict->features)
        return dlrn_fail(dict->ctx, DLRN_ERR_SHAPE,
                         "dlrn_decode_sparse: expected codes of %lld features, found %lld",
                         (long long)dict->features, (long long)codes->cols);
    /* one cheap pass; columns may be in any order */
    for (int64_t p = 0; p < codes->row_ptr[codes->rows]; p++)
        DLRNI_REQUIRE(dict->ctx, codes->col[p] >= 0 && codes->col[p] < codes->cols,
                      "a feature index is out of range");
    dlrni_decode_rows(dict, codes, NULL, NULL, x_hat);
    return DLRN_OK;
}

/* f becomes codes, 256 rows at a time, so that the copy stays small; zeros cost only the test. */
DLRN_API dlrn_status dlrn_decode(const dlrn_dictionary *dict, const float *f, int64_t n,
                                 float *x_hat) {
    int64_t F = dict->features, block = dlrni_min(n, 256);
    dlrn_sparse codes;
    dlrn_status s = DLRN_OK;
    memset(&codes, 0, sizeof codes);
    DLRNI_TRY(dlrni_check_decodes(dict));
    DLRNI_REQUIRE(dict->ctx, n >= 0, "n must not be negative");
    for (int64_t i = 0; s == DLRN_OK && i < n; i += block) {
        int64_t rows = dlrni_min(block, n - i);
        /* empties the codes and keeps their memory */
        s = dlrni_sparse_begin(dict->ctx, &codes, F);
        /* skips zeros, keeps NaN */
        if (s == DLRN_OK) s = dlrni_sparse_append(dict->ctx, &codes, f + i * F, rows);
        if (s == DLRN_OK) dlrni_decode_rows(dict, &codes, NULL, NULL, x_hat + i * dict->d_out);
    }
    dlrn_sparse_free(&codes);
    return s;
}

/* ------------------------------------------------------------------------------------------ */
// >>encode
/* The encoder object, and the easy calls on top of it. It owns the scratch of all stages and what
   they have learned of the data, so that calls after the first few allocate nothing.

   Two paths give the same bits. Few rows (below DLRNI_SCREEN_MIN) are computed into f [n][F]:
   packing features for a screen, or making lists, would cost more than it saves. Many rows go
   through lists (room candidates), a stretch at a time. */

/* Everything here is reused from call to call; *_cap is how much an array holds. */
struct dlrn_encoder {
    const dlrn_dictionary *dict; /* borrowed                                              */
    dlrni_encoding c;
    int64_t version;          /* of the dictionary, when the panels below were packed     */
    int wanted;               /* 1: prepared panels are wanted                            */
    dlrni_prepared *prepared; /* or NULL                                                  */
    float *xc;                /* [rows][d_in]                                             */
    float *f;                 /* [few rows][F], for few rows when f is not requested      */
    float *z;                 /* [rows][d_in] normalised rows, for a skip (dlrni_needs_z) */
    dlrn_sparse codes;        /* when the caller wants none, but x_hat or a selection     */
    int64_t xc_cap, f_cap, z_cap;
    dlrni_cut *heap; /* [k], for few rows */
    int64_t heap_cap;
};

/* Allocates the object alone: scratch comes with the first rows, when sizes are known. */
DLRN_API dlrn_status dlrn_encoder_create(const dlrn_dictionary *dict, dlrn_encoder **out) {
    dlrn_encoder *e = DLRNI_NEW_ZERO(dict->ctx, dlrn_encoder, 1);
    *out = e;
    if (!e) return DLRN_ERR_MEMORY;
    e->dict = dict;
    e->version = dict->version;
    dlrni_encoding_init(&e->c, dict);
    return DLRN_OK;
}

/* Frees what an encoder owns, not the encoder: dlrni_run_once has it on the stack. */
DLRNI_INTERNAL void dlrni_encoder_clear(dlrn_encoder *e) {
    dlrn_context *ctx = e->dict->ctx;
    /* safe on an encoder that has never run: all is zero then */
    dlrni_encoding_free(&e->c);
    dlrn_sparse_free(&e->codes);
    dlrn_free(ctx, e->prepared);
    dlrn_free(ctx, e->xc);
    dlrn_free(ctx, e->f);
    dlrn_free(ctx, e->z);
    dlrn_free(ctx, e->heap);
}

/* The dictionary must still be there: its context frees the memory. */
DLRN_API void dlrn_encoder_destroy(dlrn_encoder *e) {
    if (!e) return;
    dlrni_encoder_clear(e);
    dlrn_free(e->dict->ctx, e);
}

/* The old panels go first, so that two sets are never held. If packing runs out of memory, later
   calls do without panels. */
DLRN_API dlrn_status dlrn_encoder_prepare(dlrn_encoder *e) {
    dlrn_free(e->dict->ctx, e->prepared);
    e->c.ready = NULL;
    e->version = e->dict->version;
    e->wanted = 1;
    e->prepared = NULL;
    DLRNI_TRY(dlrni_gating_begin(&e->c.gate, e->dict, e->c.unscaled));
    return dlrni_prepare_panels(e->dict, &e->c.gate, &e->prepared);
}

/* One batch of rows on its way to the caller: f [n][F], and codes from row `first` on; either may
   be NULL. */
typedef struct dlrni_encode_job {
    dlrn_encoder *e;
    float *f;
    dlrn_sparse *codes;
    int64_t first;
} dlrni_encode_job;

/* Task: writes a block of rows to f [n][F], zeros included. Tasks are blocks and not groups: a row
   of f is then written by one thread. */
DLRNI_INTERNAL void dlrni_spread_block(void *arg, int64_t block, int worker) {
    const dlrni_encode_job *j = (const dlrni_encode_job *)arg;
    const dlrni_encoding *c = &j->e->c;
    int64_t s = block / DLRNI_STRETCH_BLOCKS, b = block % DLRNI_STRETCH_BLOCKS,
            F = c->dict->features;
    int64_t r0 = block * DLRNI_BLOCK, rows = dlrni_min(DLRNI_BLOCK, c->n - r0);
    (void)worker;
    /* f is mostly zeros: clear, then write the few */
    memset(j->f + r0 * F, 0, (size_t)(rows * F) * sizeof *j->f);
    for (int64_t g = 0; g < c->groups; g++) {
        const dlrni_list *list = &c->lists[s * c->groups + g];
        for (int32_t p = list->start[b]; p < list->start[b + 1]; p++) {
            int64_t feature = g * DLRNI_GROUP + dlrni_key_feature(list->key[p]);
            j->f[dlrni_key_row(list->key[p]) * F + feature] =
                dlrni_value_of(&c->gate, feature, list->val[p]);
        }
    }
}

/* Task: counts the entries of a block's rows into row_ptr, one place to the right: the sums over
   rows then turn counts into starts. */
DLRNI_INTERNAL void dlrni_csr_count_block(void *arg, int64_t block, int worker) {
    const dlrni_encode_job *j = (const dlrni_encode_job *)arg;
    int64_t at[DLRNI_BLOCK + 1] = {0}, i0 = block * DLRNI_BLOCK;
    int64_t *n = j->codes->row_ptr + j->first + 1;
    (void)worker;
    dlrni_block_count(&j->e->c, block, at);
    for (int64_t i = 0; i < DLRNI_BLOCK && i0 + i < j->e->c.n; i++) n[i0 + i] = at[i + 1] - at[i];
}

/* Task: writes a block's entries to where row_ptr says, so that blocks need not wait for each
   other. */
DLRNI_INTERNAL void dlrni_csr_fill_block(void *arg, int64_t block, int worker) {
    const dlrni_encode_job *j = (const dlrni_encode_job *)arg;
    int64_t at[DLRNI_BLOCK + 1];
    (void)worker;
    /* counting again is cheaper than keeping the counts of all blocks */
    at[0] = j->codes->row_ptr[j->first + block * DLRNI_BLOCK];
    dlrni_block_count(&j->e->c, block, at);
    dlrni_block_fill(&j->e->c, block, at, j->codes->col, j->codes->val);
}

/* Appends the features of the rows in hand to codes: count in parallel, sum, grow once, fill in
   parallel. */
DLRNI_INTERNAL dlrn_status dlrni_append_codes(dlrni_encode_job *j) {
    dlrn_context *ctx = j->e->dict->ctx;
    int64_t n = j->e->c.n, blocks = dlrni_ceil_div(n, DLRNI_BLOCK), *p;
    j->first = j->codes->rows;
    DLRNI_TRY(dlrni_sparse_reserve(ctx, j->codes, j->first + n, j->codes->nnz_cap));
    dlrni_parallel_for(ctx, blocks, dlrni_ns(4, dlrni_wave_entries(&j->e->c)),
                       dlrni_csr_count_block, j);
    /* after growing, which may have moved the array */
    p = j->codes->row_ptr + j->first;
    /* counts become starts */
    for (int64_t i = 0; i < n; i++) p[i + 1] += p[i];
    /* now the number of entries is known */
    DLRNI_TRY(dlrni_sparse_reserve(ctx, j->codes, j->first + n, p[n]));
    dlrni_parallel_for(ctx, blocks, dlrni_ns(4, dlrni_wave_entries(&j->e->c)), dlrni_csr_fill_block,
                       j);
    j->codes->rows += n;
    return DLRN_OK;
}

/* ---- Few rows: dense in f, without lists ---- */

/* Task: the features of a group on all rows, into f [n][F]. The canonical sum first, then the bias,
   as in dlrni_recompute: the same bits. */
DLRNI_INTERNAL void dlrni_few_dense(void *arg, int64_t group, int worker) {
    const dlrni_encode_job *j = (const dlrni_encode_job *)arg;
    const dlrni_encoding *c = &j->e->c;
    const dlrn_dictionary *dict = c->dict;
    int64_t f0 = group * DLRNI_GROUP, f1 = f0 + dlrni_group_width(c, group), F = dict->features;
    (void)worker;
    dlrni_dense_tile(dict, c->xc, c->n, f0, f1, j->f + f0, F);
    for (int64_t i = 0; i < c->n; i++)
        for (int64_t q = f0; q < f1; q++) {
            float pre = j->f[i * F + q] + dict->param[DLRN_ENCODER_BIAS][q];
            j->f[i * F + q] = dlrni_gate_value(&c->gate, q, pre);
        }
}

/* Task: the same with the group's prepared panel: the screen names the candidates, the others are
   0. */
DLRNI_INTERNAL void dlrni_few_screened(void *arg, int64_t group, int worker) {
    const dlrni_encode_job *j = (const dlrni_encode_job *)arg;
    const dlrni_encoding *c = &j->e->c;
    const dlrn_dictionary *dict = c->dict;
    const int64_t d = dict->d_in, f0 = group * DLRNI_GROUP, width = dlrni_group_width(c, group);
    const unsigned char *panel = c->ready->panels + group * DLRNI_GROUP * c->width;
    const float *coef = c->ready->coef + group * DLRNI_SCREEN_TERMS * DLRNI_GROUP;
    uint64_t mask[DLRNI_SCREEN_ROWS];
    (void)worker;
    for (int64_t i = 0; i < c->n; i++) {
        int32_t feature[DLRNI_GROUP];
        float sum[DLRNI_GROUP], *f = j->f + i * dict->features;
        /* a tile takes several rows at the price of one */
        if (i % c->screen->rows == 0)
            c->screen->tile(panel, c->rounded + i * c->width, c->width, c->width / 4, coef,
                            c->row + i, mask);
        /* the last group's panel has columns without a feature */
        uint64_t on = mask[i % c->screen->rows] & (((uint64_t)1 << width) - 1);
        int64_t n = dlrni_features_of(on, f0, feature);
        dict->ctx->k->dots(c->xc + i * d, d, dict->param[DLRN_ENCODER], d, feature, n, sum);
        memset(f + f0, 0, (size_t)width * sizeof *f);
        for (int64_t p = 0; p < n; p++) {
            float pre = sum[p] + dict->param[DLRN_ENCODER_BIAS][feature[p]];
            f[feature[p]] = dlrni_gate_value(&c->gate, feature[p], pre);
        }
    }
}

/* Keeps the k best of each row of f [n][F], the rest becomes 0. heap [k]; a row with fewer than k
   active features keeps them all. */
DLRNI_INTERNAL void dlrni_few_select(const dlrn_dictionary *dict, float *f, int64_t n,
                                     dlrni_cut *heap) {
    int64_t F = dict->features, k = dict->formula.k;
    for (int64_t i = 0; i < n; i++, f += F) {
        int32_t kept = 0;
        for (int64_t j = 0; j < F; j++) /* 0 is not active, and never chosen */
            if (f[j] != 0) dlrni_keep_best(heap, &kept, k, (int32_t)j, f[j]);
        /* heap[0] is the worst that stays */
        for (int64_t j = 0; kept == k && j < F; j++) {
            dlrni_cut entry = {f[j], (int32_t)j};
            if (f[j] != 0 && dlrni_is_worse(&entry, &heap[0])) f[j] = 0;
        }
    }
}

/* Whether few rows may do without lists: what is not selected later is all that the gate lets pass,
   or the largest of positive pre-activations. */
DLRNI_INTERNAL int dlrni_few_suffices(const dlrn_dictionary *dict) {
    return !dlrni_selects(dict) || (dlrni_raises_floors(dict) && !dict->param[DLRN_LOG_SCALE]);
}

/* n < DLRNI_SCREEN_MIN rows through all stages. f [n][F] is the caller's, or the encoder's if only
   codes are wanted. The screen is used if its panels are prepared: then it costs nothing to set
   up. */
DLRNI_INTERNAL dlrn_status dlrni_encode_few(dlrni_encode_job *j, const float *x, int64_t n) {
    dlrn_encoder *e = j->e;
    dlrni_encoding *c = &e->c;
    const dlrn_dictionary *dict = e->dict;
    dlrn_context *ctx = dict->ctx;
    float *f = j->f;
    int64_t heap = dlrni_selects(dict) ? dict->formula.k : 0;
    if (!DLRNI_GROW(ctx, &e->xc, &e->xc_cap, 0, n * dict->d_in) ||
        !DLRNI_GROW(ctx, &e->heap, &e->heap_cap, 0, heap) ||
        (!f && !DLRNI_GROW(ctx, &e->f, &e->f_cap, 0, n * dict->features)))
        return DLRN_ERR_MEMORY;
    DLRNI_TRY(dlrni_gating_begin(&c->gate, dict, c->unscaled));
    /* dense in any case: selection and codes start from it */
    if (!f) j->f = e->f;
    /* the caller's x is not written to */
    dlrni_input(dict, x, n, e->xc);
    c->xc = e->xc;
    c->n = n;
    c->ready = e->prepared;
    c->screen = c->ready ? c->ready->screen : NULL;
    c->width = c->ready ? c->ready->width : 0;
    /* rows in the screen's format, as the panels are */
    if (c->ready) DLRNI_TRY(dlrni_encoding_round(c));
    /* no gate: f is the input, also where that is negative */
    if (dict->formula.gate == DLRN_GATE_IDENTITY)
        memcpy(j->f, c->xc, (size_t)(n * dict->features) * sizeof *j->f);
    else
        dlrni_parallel_for(ctx, c->groups, dlrni_ns(dict->features, dict->d_in) * (double)n / 4,
                           c->ready ? dlrni_few_screened : dlrni_few_dense, j);
    /* after all groups: a cut needs the whole row */
    if (heap) dlrni_few_select(dict, j->f, n, e->heap);
    /* codes from the dense f: with few rows a look at all F is cheap */
    dlrn_status s = j->codes ? dlrni_sparse_append(ctx, j->codes, j->f, n) : DLRN_OK;
    j->f = f;
    return s;
}

/* ---- Many rows ---- */

/* Rows at a time: a stretch, or fewer where the lists would exceed 8 M entries (64 MB). The density
   of the last batch is used, with half as much again to spare; before the first, all features count
   as active. */
DLRNI_INTERNAL int64_t dlrni_rows_at_once(const dlrni_encoding *c, int64_t left) {
    double row = (c->active >= 0 ? 1.5 * c->active + 0.001 : 1) * (double)c->dict->features;
    /* whole blocks; 0.001 keeps the division safe where nothing was active */
    int64_t rows = dlrni_min((int64_t)((8 << 20) / row), DLRNI_STRETCH) / DLRNI_BLOCK * DLRNI_BLOCK;
    return dlrni_min(left, dlrni_max(rows, DLRNI_BLOCK));
}

/* Whether lists may hold entries of value 0, which are not active. */
DLRNI_INTERNAL int dlrni_may_list_zeros(const dlrni_encoding *c) {
    return c->gate.min_floor < 0 || (c->gate.scale && !c->gate.bias);
}

/* Rows x [n][d_in], at most a stretch, through all stages. All groups are one wave: the lists of a
   stretch fit into memory. */
DLRNI_INTERNAL dlrn_status dlrni_encode_stretch(dlrni_encode_job *j, const float *x, int64_t n) {
    dlrn_encoder *e = j->e;
    dlrni_encoding *c = &e->c;
    dlrn_context *ctx = e->dict->ctx;
    dlrni_input(e->dict, x, n, e->xc);
    c->ready = e->prepared;
    DLRNI_TRY(dlrni_encoding_begin(c, e->xc, n));
    DLRNI_TRY(dlrni_encoding_load(c, 0, c->groups, INT64_MAX));
    /* a signed gate passes zeros, and a small scale may make one */
    if (!dlrni_selects(e->dict) && dlrni_may_list_zeros(c))
        dlrn_parallel_for(ctx, c->stretches * c->wave, dlrni_drop_task, c);
    /* learned before an error of the caller's memory can end the call */
    dlrni_encoding_learn(c, dlrni_wave_entries(c), dlrni_wave_candidates(c));
    if (j->codes) DLRNI_TRY(dlrni_append_codes(j));
    if (j->f)
        dlrni_parallel_for(ctx, dlrni_ceil_div(n, DLRNI_BLOCK), dlrni_ns(n, e->dict->features),
                           dlrni_spread_block, j);
    return DLRN_OK;
}

/* ---- Families with an encoder of their own: dense in f, a block of rows at a time ---- */

/* Rows x [n][d_in]: the family's block computes all features of a few rows; gate and codes follow
   as for others. The selection comes after all rows (dlrni_selects_late). */
DLRNI_INTERNAL dlrn_status dlrni_encode_own(dlrni_encode_job *j, const float *x, int64_t n) {
    dlrn_encoder *e = j->e;
    const dlrn_dictionary *dict = e->dict;
    const int64_t F = dict->features, block = dlrni_min(n, DLRNI_BLOCK);
    dlrni_gating *gate = &e->c.gate;
    if (!DLRNI_GROW(dict->ctx, &e->xc, &e->xc_cap, 0, block * dict->d_in) ||
        (!j->f && !DLRNI_GROW(dict->ctx, &e->f, &e->f_cap, 0, block * F)))
        return DLRN_ERR_MEMORY;
    DLRNI_TRY(dlrni_gating_begin(gate, dict, e->c.unscaled));
    for (int64_t i = 0; i < n; i += block) {
        const int64_t rows = dlrni_min(block, n - i);
        float *f = j->f ? j->f + i * F : e->f;
        dlrni_input(dict, x + i * dict->d_in, rows, e->xc);
        DLRNI_TRY(dlrni_own_encode(dict)(dict, e->xc, rows, f));
        for (int64_t p = 0; p < rows * F; p++) f[p] = dlrni_gate_value(gate, p % F, f[p]);
        if (j->codes) DLRNI_TRY(dlrni_sparse_append(dict->ctx, j->codes, f, rows));
    }
    return DLRN_OK;
}

/* x [n][d_in] by the path that suits n. Batches after the first use what the first has shown. */
DLRNI_INTERNAL dlrn_status dlrni_encode_rows(dlrn_encoder *e, const float *x, int64_t n, float *f,
                                             dlrn_sparse *codes) {
    dlrni_encode_job j = {e, f, codes, 0};
    const dlrn_dictionary *dict = e->dict;
    int64_t rows;
    /* codes are empty then, f and x_hat stay as they are */
    if (n == 0) return DLRN_OK;
    if (dlrni_own_encode(dict)) return dlrni_encode_own(&j, x, n);
    if (n < DLRNI_SCREEN_MIN && dlrni_few_suffices(dict)) return dlrni_encode_few(&j, x, n);
    /* one stretch of input is held, however many rows come */
    if (!DLRNI_GROW(dict->ctx, &e->xc, &e->xc_cap, 0, dlrni_min(n, DLRNI_STRETCH) * dict->d_in))
        return DLRN_ERR_MEMORY;
    for (int64_t i = 0; i < n; i += rows) {
        /* anew for each batch: the first has shown how dense the rows are */
        rows = dlrni_rows_at_once(&e->c, n - i);
        DLRNI_TRY(dlrni_encode_stretch(&j, x + i * dict->d_in, rows));
        /* codes need no such step: they are appended to */
        if (j.f) j.f += rows * dict->features;
    }
    return DLRN_OK;
}

/* Multiplies the codes by exp(LOG_SCALE), where a selection came before it: the columns feature_at
   .. feature_at + F, which are this dictionary's. Products of 0 are dropped. */
DLRNI_INTERNAL void dlrni_scale_codes(const dlrn_dictionary *dict, int64_t feature_at,
                                      dlrn_sparse *codes) {
    const float *log_scale = dict->param[DLRN_LOG_SCALE];
    int64_t to = 0, p = 0;
    if (!log_scale || dict->formula.gate == DLRN_GATE_GATED) return; /* gated: in the value */
    for (int64_t i = 0; i < codes->rows; i++) {
        for (const int64_t end = codes->row_ptr[i + 1]; p < end; p++) {
            int64_t feature = codes->col[p] - feature_at;
            float value = codes->val[p];
            if (feature >= 0 && feature < dict->features)
                value *= (float)exp((double)log_scale[feature]);
            codes->col[to] = codes->col[p];
            codes->val[to] = value;
            to += value != 0;
        }
        codes->row_ptr[i + 1] = to;
    }
}

/* f [rows][F] = the codes. */
DLRNI_INTERNAL void dlrni_spread_codes(const dlrn_sparse *codes, float *f) {
    memset(f, 0, (size_t)(codes->rows * codes->cols) * sizeof *f);
    for (int64_t i = 0; i < codes->rows; i++)
        for (int64_t p = codes->row_ptr[i]; p < codes->row_ptr[i + 1]; p++)
            f[i * codes->cols + codes->col[p]] = codes->val[p];
}

/* Codes of x [n][d_in] after the dictionary's own selection, but before LOG_SCALE: what a selection
   over several parts compares. dlrni_scale_codes comes after it. */
DLRNI_INTERNAL dlrn_status dlrni_encode_unscaled(dlrn_encoder *e, const float *x, int64_t n,
                                                 dlrn_sparse *codes) {
    const dlrn_dictionary *dict = e->dict;
    DLRNI_TRY(dlrni_check_formula(dict));
    /* panels of old weights would be wrong */
    if (e->wanted && e->version != dict->version) DLRNI_TRY(dlrn_encoder_prepare(e));
    DLRNI_TRY(dlrni_sparse_begin(dict->ctx, codes, dict->features));
    e->c.unscaled = 1;
    dlrn_status s = dlrni_encode_rows(e, x, n, NULL, codes);
    e->c.unscaled = 0;
    if (s != DLRN_OK || !dlrni_selects_late(dict)) return s;
    return dlrni_select_codes(dict->ctx, &dict->formula, codes);
}

/* Codes and f, either of which may be NULL. */
DLRNI_INTERNAL dlrn_status dlrni_encode_call(dlrn_encoder *e, const float *x, int64_t n, float *f,
                                             dlrn_sparse *codes) {
    const dlrn_dictionary *dict = e->dict;
    DLRNI_TRY(dlrni_check_formula(dict));
    /* panels of old weights would be wrong */
    if (e->wanted && e->version != dict->version) DLRNI_TRY(dlrn_encoder_prepare(e));
    if (dlrni_selects_late(dict)) {
        if (!codes) codes = &e->codes;
        DLRNI_TRY(dlrni_encode_unscaled(e, x, n, codes));
        dlrni_scale_codes(dict, 0, codes);
        if (f) dlrni_spread_codes(codes, f);
        return DLRN_OK;
    }
    /* empties them; their memory is reused */
    if (codes) DLRNI_TRY(dlrni_sparse_begin(dict->ctx, codes, dict->features));
    return dlrni_encode_rows(e, x, n, f, codes);
}

/* x_hat is decoded from codes, so without codes from the caller the encoder's own take them. */
DLRN_API dlrn_status dlrn_encoder_run(dlrn_encoder *e, const float *x, int64_t n, float *f,
                                      dlrn_sparse *codes, float *x_hat) {
    const dlrn_dictionary *dict = e->dict;
    DLRNI_REQUIRE(dict->ctx, n >= 0, "n must not be negative");
    if (x_hat && !codes) codes = &e->codes;
    DLRNI_TRY(dlrni_encode_call(e, x, n, f, codes));
    if (!x_hat) return DLRN_OK;
    const int needs_z = dlrni_needs_z(dict);
    if (needs_z) {
        if (!DLRNI_GROW(dict->ctx, &e->z, &e->z_cap, 0, n * dict->d_in)) return DLRN_ERR_MEMORY;
        dlrni_input_less(dict, x, NULL, n, e->z);
    }
    dlrni_decode_rows(dict, codes, x, needs_z ? e->z : NULL, x_hat);
    return DLRN_OK;
}

/* One call with an encoder of its own, on the stack. What it learns is lost: many calls want a
   dlrn_encoder. */
DLRNI_INTERNAL dlrn_status dlrni_run_once(const dlrn_dictionary *dict, const float *x, int64_t n,
                                          float *f, dlrn_sparse *codes, float *x_hat) {
    dlrn_encoder e;
    memset(&e, 0, sizeof e);
    e.dict = dict;
    e.version = dict->version;
    dlrni_encoding_init(&e.c, dict);
    /* `prepared` is NULL: packing pays over many calls only */
    dlrn_status s = dlrn_encoder_run(&e, x, n, f, codes, x_hat);
    dlrni_encoder_clear(&e);
    return s;
}

/* The easy calls differ in which results they leave out. */
DLRN_API dlrn_status dlrn_encode(const dlrn_dictionary *dict, const float *x, int64_t n, float *f) {
    return dlrni_run_once(dict, x, n, f, NULL, NULL);
}

DLRN_API dlrn_status dlrn_encode_sparse(const dlrn_dictionary *dict, const float *x, int64_t n,
                                        dlrn_sparse *codes) {
    return dlrni_run_once(dict, x, n, NULL, codes, NULL);
}

DLRN_API dlrn_status dlrn_forward(const dlrn_dictionary *dict, const float *x, int64_t n,
                                  float *x_hat, dlrn_sparse *codes) {
    return dlrni_run_once(dict, x, n, NULL, codes, x_hat);
}

/* ------------------------------------------------------------------------------------------ */
// >>encoders
/* Families with an encoder of their own, one block each. A block computes the pre-activations of
   all features for a few rows, f [n][F]; gate, selection, codes and decoding are those of all
   families. There is no screen: each is as fast as the dense product. n is at most a block. */

/* Rows to encode, one task for each row or for each group of features. */
typedef struct dlrni_own_job {
    const dlrn_dictionary *dict;
    float *xc; /* [n][d_in] */
    int64_t n;
    float *f;        /* [n][F] */
    dlrni_cut *heap; /* [n][k], or NULL */
} dlrni_own_job;

/* One task for each group of features. */
DLRNI_INTERNAL void dlrni_each_group(dlrni_own_job *j, dlrn_parallel_body body) {
    const dlrn_dictionary *dict = j->dict;
    dlrni_parallel_for(dict->ctx, dlrni_ceil_div(dict->features, DLRNI_GROUP),
                       dlrni_ns(dict->features, dict->d_in) * (double)j->n / 4, body, j);
}

/* sum [n][F], columns f0 .. f1 = rows f0 .. f1 of `weights` times each row; ld apart. */
DLRNI_INTERNAL void dlrni_own_tile(const dlrni_own_job *j, const float *weights, int64_t f0,
                                   int64_t f1, float *sum, int64_t ld) {
    const int64_t d = j->dict->d_in;
    j->dict->ctx->k->dots_nt(j->n, f1 - f0, d, j->xc, d, weights + f0 * d, d, sum, ld);
}

/* exp(-x) may be infinite: its inverse is then 0. */
DLRNI_INTERNAL double dlrni_sigmoid(double x) {
    return 1 / (1 + exp(-x));
}

/* ---- MatchingPursuit ----
   The atom with the largest product with the rest r of a row takes its share: f_i += r.d_i, r -=
   (r.d_i) d_i. A row ends when no product is positive, when an atom is picked again (unless
   formula.repeats), when |r| < formula.threshold, or after formula.k steps (0: d_in). */

/* The atom with the largest product with r; of equal ones the first. -1: none is positive. A NaN is
   taken, to be seen. */
DLRNI_INTERNAL int64_t dlrni_best_atom(const dlrn_dictionary *dict, const float *r,
                                       float *product) {
    const int64_t d = dict->d_out;
    float sum[DLRNI_GROUP];
    int32_t feature[DLRNI_GROUP];
    int64_t best = -1;
    *product = 0;
    for (int64_t f0 = 0; f0 < dict->features; f0 += DLRNI_GROUP) {
        const int64_t n = dlrni_min(DLRNI_GROUP, dict->features - f0);
        for (int64_t q = 0; q < n; q++) feature[q] = (int32_t)(f0 + q);
        dict->ctx->k->dots(r, d, dict->param[DLRN_DECODER], d, feature, n, sum);
        for (int64_t q = 0; q < n; q++) {
            if (sum[q] <= *product || *product != *product) continue;
            *product = sum[q];
            best = f0 + q;
        }
    }
    return best;
}

/* Task: one row. xc becomes the rest. */
DLRNI_INTERNAL void dlrni_pursue_row(void *arg, int64_t i, int worker) {
    const dlrni_own_job *j = (const dlrni_own_job *)arg;
    const dlrn_dictionary *dict = j->dict;
    const dlrn_formula *formula = &dict->formula;
    const int64_t d = dict->d_out, steps = formula->k ? formula->k : d;
    float *r = j->xc + i * d, *f = j->f + i * dict->features, product;
    (void)worker;
    memset(f, 0, (size_t)dict->features * sizeof *f);
    for (int64_t step = 0; step < steps; step++) {
        const int64_t best = dlrni_best_atom(dict, r, &product);
        if (best < 0) return;
        const int again = f[best] != 0;
        f[best] += product;
        dict->ctx->k->axpy(-product, dict->param[DLRN_DECODER] + best * d, r, d);
        if (again && !formula->repeats) return;
        if (product != product || (double)dlrn_norm(dict->ctx, r, d) < formula->threshold) return;
    }
}

DLRNI_INTERNAL dlrn_status dlrni_encode_pursuit(const dlrn_dictionary *dict, float *xc, int64_t n,
                                                float *f) {
    dlrni_own_job job = {dict, xc, n, f, NULL};
    if (dict->d_in != dict->d_out)
        return dlrn_fail(dict->ctx, DLRN_ERR_SHAPE, "%s: expected d_out %lld, as d_in, found %lld",
                         dict->family, (long long)dict->d_in, (long long)dict->d_out);
    dlrn_parallel_for(dict->ctx, n, dlrni_pursue_row, &job);
    return DLRN_OK;
}

/* ---- Glu ----
   p = (ENCODER z + ENCODER_BIAS) sigmoid(GATE_ENCODER z + GATE_BIAS). */

/* Task: a group of features. */
DLRNI_INTERNAL void dlrni_glu_group(void *arg, int64_t group, int worker) {
    const dlrni_own_job *j = (const dlrni_own_job *)arg;
    const dlrn_dictionary *dict = j->dict;
    const int64_t F = dict->features, f0 = group * DLRNI_GROUP, f1 = dlrni_min(f0 + DLRNI_GROUP, F);
    float gate[DLRNI_BLOCK * DLRNI_GROUP];
    (void)worker;
    dlrni_own_tile(j, dict->param[DLRN_ENCODER], f0, f1, j->f + f0, F);
    dlrni_own_tile(j, dict->param[DLRN_GATE_ENCODER], f0, f1, gate, DLRNI_GROUP);
    for (int64_t i = 0; i < j->n; i++)
        for (int64_t q = f0; q < f1; q++) {
            float pre = j->f[i * F + q] + dict->param[DLRN_ENCODER_BIAS][q];
            float g = gate[i * DLRNI_GROUP + q - f0] + dict->param[DLRN_GATE_BIAS][q];
            j->f[i * F + q] = (float)((double)pre * dlrni_sigmoid((double)g));
        }
}

DLRNI_INTERNAL dlrn_status dlrni_encode_glu(const dlrn_dictionary *dict, float *xc, int64_t n,
                                            float *f) {
    dlrni_own_job job = {dict, xc, n, f, NULL};
    dlrni_each_group(&job, dlrni_glu_group);
    return DLRN_OK;
}

/* ---- Cosine ----
   p = cos(x', w_i) |x'|^sigmoid(GATE_BIAS_i) + ENCODER_BIAS_i. A row of zeros has no direction: its
   cosines count as 0. */

/* Task: a group of features. */
DLRNI_INTERNAL void dlrni_cosine_group(void *arg, int64_t group, int worker) {
    const dlrni_own_job *j = (const dlrni_own_job *)arg;
    const dlrn_dictionary *dict = j->dict;
    const int64_t d = dict->d_in, F = dict->features, f0 = group * DLRNI_GROUP,
                  f1 = dlrni_min(f0 + DLRNI_GROUP, F);
    double power[DLRNI_GROUP], norm[DLRNI_GROUP];
    (void)worker;
    dlrni_own_tile(j, dict->param[DLRN_ENCODER], f0, f1, j->f + f0, F);
    for (int64_t q = f0; q < f1; q++) {
        power[q - f0] = dlrni_sigmoid((double)dict->param[DLRN_GATE_BIAS][q]) - 1;
        norm[q - f0] = (double)dlrn_norm(dict->ctx, dict->param[DLRN_ENCODER] + q * d, d);
    }
    for (int64_t i = 0; i < j->n; i++) {
        const double size = (double)dlrn_norm(dict->ctx, j->xc + i * d, d);
        for (int64_t q = f0; q < f1; q++) {
            double score = (double)j->f[i * F + q];
            if (size > 0 && norm[q - f0] > 0) score *= pow(size, power[q - f0]) / norm[q - f0];
            j->f[i * F + q] = (float)(score + (double)dict->param[DLRN_ENCODER_BIAS][q]);
        }
    }
}

DLRNI_INTERNAL dlrn_status dlrni_encode_cosine(const dlrn_dictionary *dict, float *xc, int64_t n,
                                               float *f) {
    dlrni_own_job job = {dict, xc, n, f, NULL};
    dlrni_each_group(&job, dlrni_cosine_group);
    return DLRN_OK;
}

/* ---- GatedTopK ----
   The k features with the largest g = GATE_ENCODER x' + GATE_BIAS are m sigmoid(g), m = ENCODER x';
   the others are 0. */

/* Task: g of a group of features. */
DLRNI_INTERNAL void dlrni_gate_logits_group(void *arg, int64_t group, int worker) {
    const dlrni_own_job *j = (const dlrni_own_job *)arg;
    const dlrn_dictionary *dict = j->dict;
    const int64_t F = dict->features, f0 = group * DLRNI_GROUP, f1 = dlrni_min(f0 + DLRNI_GROUP, F);
    (void)worker;
    dlrni_own_tile(j, dict->param[DLRN_GATE_ENCODER], f0, f1, j->f + f0, F);
    for (int64_t i = 0; i < j->n; i++)
        for (int64_t q = f0; q < f1; q++) j->f[i * F + q] += dict->param[DLRN_GATE_BIAS][q];
}

/* Task: the features of one row whose g is chosen. */
DLRNI_INTERNAL void dlrni_gated_top_k_row(void *arg, int64_t i, int worker) {
    const dlrni_own_job *j = (const dlrni_own_job *)arg;
    const dlrn_dictionary *dict = j->dict;
    const int64_t F = dict->features, d = dict->d_in, k = dict->formula.k;
    float *f = j->f + i * F;
    dlrni_cut *heap = j->heap + i * k;
    int32_t kept = 0;
    (void)worker;
    for (int64_t q = 0; q < F; q++) dlrni_keep_best(heap, &kept, k, (int32_t)q, f[q]);
    memset(f, 0, (size_t)F * sizeof *f);
    for (int32_t p = 0; p < kept; p++) {
        float m;
        dict->ctx->k->dots(j->xc + i * d, d, dict->param[DLRN_ENCODER], d, &heap[p].feature, 1, &m);
        f[heap[p].feature] = (float)((double)m * dlrni_sigmoid((double)heap[p].value));
    }
}

DLRNI_INTERNAL dlrn_status dlrni_encode_gated_top_k(const dlrn_dictionary *dict, float *xc,
                                                    int64_t n, float *f) {
    dlrni_own_job job = {dict, xc, n, f, NULL};
    if (!(job.heap = DLRNI_NEW(dict->ctx, dlrni_cut, n * dict->formula.k))) return DLRN_ERR_MEMORY;
    dlrni_each_group(&job, dlrni_gate_logits_group);
    dlrn_parallel_for(dict->ctx, n, dlrni_gated_top_k_row, &job);
    dlrn_free(dict->ctx, job.heap);
    return DLRN_OK;
}

/* ------------------------------------------------------------------------------------------ */
// >>bytes
/* What every reader and writer of files needs: a cursor that cannot leave its bytes, numbers in
   the byte order of a file, UTF-8, text that grows, and a table of names.

   From this room to >>writers one rule holds: a file is an opponent. For any bytes, reading ends,
   in memory in proportion to the file's size, without a read outside of its bytes, and with
   DLRN_OK or an error that names the file and the place in it. So each length is
   taken through a cursor, each product of sizes is checked, each count is bounded by the bytes that
   would be needed for it, and each place where one byte may stand for many (deflate, strides of 0,
   values that are shared, hash tables) has a bound, with its reason beside it. The fuzzers in
   tests/fuzz check this rule. */

/* ---- Reading bytes that are not trusted ---- */

/* The only way through the bytes of a file. dlrni_take returns the next n bytes and steps over
   them, or returns NULL and stays where it is if fewer than n are left. */
typedef struct dlrni_cursor {
    const unsigned char *p, *end;
} dlrni_cursor;

/* n is 64 bits wide and compared before it is added: no length in a file can overflow the
   pointer. */
DLRNI_INTERNAL const unsigned char *dlrni_take(dlrni_cursor *c, uint64_t n) {
    if (n > (uint64_t)(c->end - c->p)) return NULL;
    const unsigned char *at = c->p;
    c->p += n;
    return at;
}

/* Does this machine store numbers with the low byte first, as the files do? */
DLRNI_INTERNAL int dlrni_little_endian(void) {
    const uint16_t one = 1;
    return *(const unsigned char *)&one;
}

/* An unsigned number of n <= 8 bytes, low byte first. Byte by byte, because a field may lie at any
   address, and some processors trap on an unaligned load. */
DLRNI_INTERNAL uint64_t dlrni_le(const unsigned char *p, int n) {
    uint64_t v = 0;
    while (n-- > 0) v = v << 8 | p[n];
    return v;
}

/* The same, high byte first. */
DLRNI_INTERNAL uint64_t dlrni_from_be(const unsigned char *p, int n) {
    uint64_t v = 0;
    for (int i = 0; i < n; i++) v = v << 8 | p[i];
    return v;
}

/* Stores the low n bytes of v, low byte first. */
DLRNI_INTERNAL void dlrni_put_le(unsigned char *p, uint64_t v, int n) {
    for (int i = 0; i < n; i++) p[i] = (unsigned char)(v >> 8 * i);
}

/* ---- UTF-8 ---- */

/* Appends code point c and returns the end. */
DLRNI_INTERNAL char *dlrni_utf8_put(char *to, uint32_t c) {
    if (c < 0x80) {
        *to++ = (char)c;
    } else if (c < 0x800) {
        *to++ = (char)(0xC0 | c >> 6);
        *to++ = (char)(0x80 | (c & 63));
    } else if (c < 0x10000) {
        *to++ = (char)(0xE0 | c >> 12);
        *to++ = (char)(0x80 | (c >> 6 & 63));
        *to++ = (char)(0x80 | (c & 63));
    } else {
        *to++ = (char)(0xF0 | c >> 18);
        *to++ = (char)(0x80 | (c >> 12 & 63));
        *to++ = (char)(0x80 | (c >> 6 & 63));
        *to++ = (char)(0x80 | (c & 63));
    }
    return to;
}

/* Length in bytes of the character at p; 0 if it is malformed (overlong, a surrogate, beyond
   U+10FFFF, or cut off). Strict, because Python and JSON libraries are: a name that they refuse is
   one that nobody could look up, and an overlong form would be a second spelling of the same
   name. */
DLRNI_INTERNAL int dlrni_utf8_length(const char *p, const char *end) {
    const unsigned char *u = (const unsigned char *)p;
    int64_t left = end - p;
    if (u[0] < 0x80) return 1;
    if (u[0] < 0xC2 || u[0] > 0xF4) return 0;
    int n = u[0] < 0xE0 ? 2 : u[0] < 0xF0 ? 3 : 4;
    if (left < n) return 0;
    for (int i = 1; i < n; i++)
        if ((u[i] & 0xC0) != 0x80) return 0;
    if ((u[0] == 0xE0 && u[1] < 0xA0) || (u[0] == 0xED && u[1] > 0x9F)) return 0;
    if ((u[0] == 0xF0 && u[1] < 0x90) || (u[0] == 0xF4 && u[1] > 0x8F)) return 0;
    return n;
}

/* Is a text closed with a 0 valid UTF-8? ASCII is. */
DLRNI_INTERNAL int dlrni_is_utf8(const char *text) {
    const char *end = text + strlen(text);
    for (int n; text < end; text += n)
        if (!(n = dlrni_utf8_length(text, end))) return 0;
    return 1;
}

/* Does a path end like this? Case counts. */
DLRNI_INTERNAL int dlrni_has_suffix(const char *path, const char *suffix) {
    size_t n = strlen(path), m = strlen(suffix);
    return n >= m && !strcmp(path + n - m, suffix);
}

/* ---- Bytes that grow ---- */

/* An output buffer, always closed with a 0. It grows in ctx's memory; with ctx NULL, p is a text
   of the caller's of cap bytes, which takes what fits while len counts on, as snprintf does. */
typedef struct dlrni_bytes {
    dlrn_context *ctx;
    char *p;
    int64_t len, cap;
    int failed; /* no memory: nothing more is added */
} dlrni_bytes;

/* Appends n bytes and closes them with a 0. The first failure to grow sticks, so that callers
   append without checks and look at `failed` once. */
DLRNI_INTERNAL void dlrni_bytes_add(dlrni_bytes *b, const void *bytes, int64_t n) {
    int64_t fits = n;
    if (b->ctx && (b->failed || !DLRNI_GROW(b->ctx, &b->p, &b->cap, b->len, b->len + n + 1))) {
        b->failed = 1;
        return;
    }
    if (!b->ctx) fits = dlrni_min(n, b->cap - 1 - b->len);
    if (fits > 0) memcpy(b->p + b->len, bytes, (size_t)fits);
    b->len += n;
    if (b->cap) b->p[dlrni_min(b->len, b->cap - 1)] = 0;
}

/* Appends a text without its 0. */
DLRNI_INTERNAL void dlrni_bytes_text(dlrni_bytes *b, const char *text) {
    dlrni_bytes_add(b, text, (int64_t)strlen(text));
}

/* ---- A table of names ---- */

/* FNV-1a, with a start that the author of a file cannot know (the table's address) and a final
   mix: otherwise a file could choose names that all fall into one place, and make each search
   linear. */
DLRNI_INTERNAL uint64_t dlrni_hash(const void *start, const char *p, int64_t n) {
    uint64_t h = 14695981039346656037u ^ (uint64_t)(uintptr_t)start * 0x9E3779B97F4A7C15u;
    for (int64_t i = 0; i < n; i++) h = (h ^ (unsigned char)p[i]) * 1099511628211u;
    h = (h ^ h >> 32) * 0xD6E8FEB86659FD93u;
    return h ^ h >> 32;
}

/* Maps names to numbers: open addressing, at most half full. The names are borrowed. All zero is
   an empty table; free `slot` at the end. */
typedef struct dlrni_lookup_slot {
    const char *text; /* NULL: free */
    int64_t len, value;
} dlrni_lookup_slot;

typedef struct dlrni_lookup {
    dlrni_lookup_slot *slot; /* [size], size a power of two */
    int64_t size, count;
} dlrni_lookup;

/* The slot that holds a name, or the free one where it would go. */
DLRNI_INTERNAL dlrni_lookup_slot *dlrni_lookup_place(const dlrni_lookup *t, const char *text,
                                                     int64_t len) {
    int64_t at = (int64_t)(dlrni_hash(t->slot, text, len) & (uint64_t)(t->size - 1));
    while (t->slot[at].text &&
           (t->slot[at].len != len || memcmp(t->slot[at].text, text, (size_t)len)))
        at = (at + 1) & (t->size - 1);
    return &t->slot[at];
}

/* The number of a name; -1 if it is not in the table. */
DLRNI_INTERNAL int64_t dlrni_lookup_find(const dlrni_lookup *t, const char *text, int64_t len) {
    const dlrni_lookup_slot *slot = t->count ? dlrni_lookup_place(t, text, len) : NULL;
    return slot && slot->text ? slot->value : -1;
}

/* Adds a name; a name that is there keeps its number. 0: no memory. Twice the size at each step, so
   that n names cost O(n). */
DLRNI_INTERNAL int dlrni_lookup_add(dlrn_context *ctx, dlrni_lookup *t, const char *text,
                                    int64_t len, int64_t value) {
    if (2 * (t->count + 1) > t->size) {
        dlrni_lookup wide = {NULL, t->size ? 2 * t->size : 16, t->count};
        if (!(wide.slot = DLRNI_NEW_ZERO(ctx, dlrni_lookup_slot, wide.size))) return 0;
        for (int64_t i = 0; i < t->size; i++)
            if (t->slot[i].text)
                *dlrni_lookup_place(&wide, t->slot[i].text, t->slot[i].len) = t->slot[i];
        dlrn_free(ctx, t->slot);
        *t = wide;
    }
    dlrni_lookup_slot *slot = dlrni_lookup_place(t, text, len);
    if (slot->text) return 1;
    slot->text = text;
    slot->len = len;
    slot->value = value;
    t->count++;
    return 1;
}

/* ------------------------------------------------------------------------------------------ */
// >>files
/* Four parts: the C library's files as a dlrn_io; reading (a whole file, or a map of it); writing
   (a sink that keeps the first error); a spool for data that must wait. The last three use only
   the callbacks of dlrn_io, so they work on a host's own files, too.

      reading   dlrn_file_read   ->  open_file, read_file ..., close_file(keep 0)
                dlrni_map_open   ->  mmap, or dlrn_file_read
      writing   dlrni_sink       ->  open_file(writing), write_file ..., close_file(keep)
      waiting   dlrni_spool      ->  temporary_file, write_file ..., rewind_file, read_file ... */

/* ---- The C library's files ----

   A file is written under a temporary name beside its target. Closing flushes it to the disk and
   renames it, which replaces the target in one step: readers see the old file or the new one.

      sae.pt                 the old file, until the end
      sae.pt.PID-ADDRESS.tmp the new one, while it is written: beside the old one, because a rename
                             cannot cross from one file system to another

   A process that is killed leaves the temporary file, and the old one whole. Outside POSIX rename()
   may not replace a file. Then it takes two steps (dlrni_rename_over), and a process that is killed
   between them leaves the old file under the name sae.pt.PID-ADDRESS.tmp.old. */

#if DLRNI_POSIX && !defined(__cplusplus)
/* Whether the system headers declare these depends on -std and on the feature macros
   (_POSIX_C_SOURCE, _XOPEN_SOURCE) that the host sets. They are in the C library in any case, and
   C allows a second declaration. C++ compilers always declare them. */
#if defined(__GNUC__) || defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wredundant-decls"
#endif
extern int fileno(FILE *);
extern int fseeko(FILE *, off_t, int);
extern off_t ftello(FILE *);
extern int fsync(int);
extern FILE *fdopen(int, const char *);
extern int fchmod(int, mode_t);
extern int madvise(void *, size_t, int);
extern ssize_t readlink(const char *, char *, size_t);
#if defined(__GNUC__) || defined(__clang__)
#pragma GCC diagnostic pop
#endif
#endif

DLRNI_COLD_BEGIN

#ifndef DICTLEARN_NO_STDIO

/* One open file. Its three names share one block, which begins at `path`. */
typedef struct dlrni_stdio {
    FILE *f;
    char *path;      /* the name used in errors                                           */
    char *target;    /* the file to replace, with symbolic links resolved                 */
    char *temporary; /* the name it has while it is written; NULL: it is written in place */
    int rewinds;     /* 0: what is written leaves at once (a pipe)                        */
} dlrni_stdio;

/* Reports errno. Call it right after the function that failed: fclose and free may change errno. */
DLRNI_INTERNAL dlrn_status dlrni_stdio_error(dlrn_context *ctx, const char *path,
                                             const char *what) {
    return dlrn_fail(ctx, DLRN_ERR_IO, "%s: cannot %s: %s", path, what, strerror(errno));
}

/* 0 nothing, 1 a file, 2 a folder: a path given to a loader may be either. Where there is neither
   stat nor _stat64, fopen is all that C has: a path that opens counts as a file. */
DLRNI_INTERNAL int dlrni_stdio_exists(void *user, const char *path) {
    (void)user;
#if DLRNI_POSIX
    struct stat st;
    if (stat(path, &st)) return 0;
    return S_ISDIR(st.st_mode) ? 2 : 1;
#elif defined(_WIN32)
    struct _stat64 st;
    char bare[4096]; /* without trailing separators, which _stat64 does not accept */
    size_t n = strlen(path);
    while (n > 1 && (path[n - 1] == '/' || path[n - 1] == '\\') && path[n - 2] != ':') n--;
    if (n >= sizeof bare) return 0;
    memcpy(bare, path, n);
    bare[n] = 0;
    if (_stat64(bare, &st)) return 0;
    return st.st_mode & _S_IFDIR ? 2 : 1;
#else
    FILE *f = fopen(path, "rb");
    if (f) fclose(f);
    return f != NULL;
#endif
}

/* Pipes and devices (/dev/stdout) are written to directly: a rename would replace them. Run by
   root, it would leave a regular file named /dev/null. */
DLRNI_INTERNAL int dlrni_is_device(const char *path) {
#if DLRNI_POSIX
    struct stat st;
    return stat(path, &st) == 0 && !S_ISREG(st.st_mode) && !S_ISDIR(st.st_mode);
#else
    (void)path;
    return 0;
#endif
}

/* Copies path to out with symbolic links resolved; the last one may point to a file that does not
   exist yet. A rename would replace the link, and leave the file that it points to as it was. 0:
   the result is too long, or the links form a cycle (Linux, too, stops after 40). */
DLRNI_INTERNAL int dlrni_follow(const char *path, char *out, size_t size) {
    size_t n = strlen(path);
    if (n >= size) return 0;
    memcpy(out, path, n + 1);
#if DLRNI_POSIX
    /* a link may point to a link: the file at the end is replaced, not a link */
    for (int links = 0; links < 40; links++) {
        /* readlink cuts a long target without an error; it fills `to` then, and is refused below */
        char to[4096];
        ssize_t got = readlink(out, to, sizeof to);
        if (got < 0) return 1; /* not a link */
        const char *slash = strrchr(out, '/');
        /* a relative link starts from the folder of the link */
        size_t folder = got && *to != '/' && slash ? (size_t)(slash - out) + 1 : 0;
        if (folder + (size_t)got >= size) return 0;
        memcpy(out + folder, to, (size_t)got);
        out[folder + (size_t)got] = 0;
    }
    return 0;
#else
    return 1;
#endif
}

/* Gives the new file the permissions of the file that it replaces, but no set-user-id bits, which
   were granted to other content. A failure leaves the default permissions. */
DLRNI_INTERNAL void dlrni_keep_mode(const dlrni_stdio *file) {
#if DLRNI_POSIX
    struct stat st;
    if (file->temporary && stat(file->target, &st) == 0)
        (void)!fchmod(fileno(file->f), st.st_mode & 0777);
#else
    (void)file;
#endif
}

/* A name beside target that no other process and no other writer of this process uses: two writers
   have different addresses. Such a file can only be left from a killed process, and is
   overwritten. */
DLRNI_INTERNAL void dlrni_temporary_name(const dlrni_stdio *file, char *out, size_t size) {
    long id = 0;
#if DLRNI_POSIX
    id = (long)getpid();
#elif defined(_WIN32)
    id = (long)_getpid();
#endif
    dlrni_print(out, size, "%s.%ld-%llx.tmp", file->target, id,
                (unsigned long long)(uintptr_t)file);
}

/* Opens a file to write: standard output for "-", a pipe or device in place, any other file under a
   temporary name. The three names lie in one block, so that closing frees one. The caller frees it
   after an error. */
DLRNI_INTERNAL dlrn_status dlrni_stdio_open_write(dlrn_context *ctx, dlrni_stdio *file,
                                                  const char *path) {
    enum { SUFFIX = 64 }; /* room for ".PID-ADDRESS.tmp": 42 bytes with a PID of 20 digits */
    char target[4096] = "";
    int is_output = !strcmp(path, "-"), in_place = is_output || dlrni_is_device(path);
    if (!in_place && !dlrni_follow(path, target, sizeof target))
        return dlrn_fail(ctx, DLRN_ERR_IO,
                         "%s: the path is too long, or its symbolic links form a cycle", path);
    const char *name = is_output ? "standard output" : path;
    size_t n = strlen(name) + 1, k = strlen(target) + 1;
    file->path = DLRNI_NEW(ctx, char, (int64_t)(n + 2 * k + SUFFIX));
    if (!file->path) return DLRN_ERR_MEMORY;
    memcpy(file->path, name, n);
    /* there is nothing to open, and no target to replace */
    if (is_output) {
        file->f = stdout;
        return DLRN_OK;
    }
    if (!in_place) {
        file->target = file->path + n;
        file->temporary = file->target + k;
        file->rewinds = 1;
        memcpy(file->target, target, k);
        dlrni_temporary_name(file, file->temporary, k + SUFFIX - 1);
    }
    file->f = fopen(file->temporary ? file->temporary : path, "wb");
    if (!file->f) return dlrni_stdio_error(ctx, path, "create it");
    dlrni_keep_mode(file);
    return DLRN_OK;
}

/* Sets the name used in errors, prefix and path joined: "-" or a nameless file would tell the user
   nothing. */
DLRNI_INTERNAL dlrn_status dlrni_stdio_set_name(dlrn_context *ctx, dlrni_stdio *file,
                                                const char *prefix, const char *path) {
    size_t n = strlen(prefix) + strlen(path) + 1;
    file->path = DLRNI_NEW(ctx, char, (int64_t)n);
    if (file->path) dlrni_print(file->path, n, "%s%s", prefix, path);
    return file->path ? DLRN_OK : DLRN_ERR_MEMORY;
}

/* Opens a file to read; "-" is standard input. Pipes are opened in the same way: nothing here
   seeks. */
DLRNI_INTERNAL dlrn_status dlrni_stdio_open_read(dlrn_context *ctx, dlrni_stdio *file,
                                                 const char *path) {
    int is_standard = !strcmp(path, "-");
    DLRNI_TRY(dlrni_stdio_set_name(ctx, file, "", is_standard ? "standard input" : path));
    file->f = is_standard ? stdin : fopen(path, "rb");
    return file->f ? DLRN_OK : dlrni_stdio_error(ctx, path, "open it");
}

/* The folder of a spool: TMPDIR, where the environment names one; else that of the target, whose
   disk has to take the same bytes in any case; /tmp for a pipe. Not where tmpfile puts it: /tmp is
   often small. 0: the name is too long. */
DLRNI_INTERNAL int dlrni_spool_folder(const char *path, char *out, size_t size) {
    const char *chosen = getenv("TMPDIR"), *slash = strrchr(path, '/');
    int n = slash ? (int)(slash - path) : 1; /* "." */
    if (chosen && *chosen) return dlrni_print(out, size, "%s", chosen) < (int)size;
    if (!strcmp(path, "-") || dlrni_is_device(path))
        return dlrni_print(out, size, "/tmp") < (int)size;
    return dlrni_print(out, size, "%.*s", n ? n : 1, slash ? path : ".") < (int)size;
}

/* Opens a file without a name, whose bytes the system frees when it is closed, also when the
   process is killed. Errors name its folder, which may be full. O_EXCL: in a folder that others
   write to, nobody can have put a link there. */
DLRNI_INTERNAL dlrn_status dlrni_stdio_open_temporary(dlrn_context *ctx, dlrni_stdio *file,
                                                      const char *path) {
    file->rewinds = 1;
#if DLRNI_POSIX
    char folder[4096], prefix[4200], name[4200];
    if (!dlrni_spool_folder(path, folder, sizeof folder))
        return dlrn_fail(ctx, DLRN_ERR_IO, "%s: the path of its temporary file is too long", path);
    dlrni_print(prefix, sizeof prefix, "a temporary file in %s for ", folder);
    DLRNI_TRY(
        dlrni_stdio_set_name(ctx, file, prefix, strcmp(path, "-") ? path : "standard output"));
    dlrni_print(name, sizeof name, "%s/dictlearn.%ld-%llx.tmp", folder, (long)getpid(),
                (unsigned long long)(uintptr_t)file);
    int fd = open(name, O_RDWR | O_CREAT | O_EXCL, 0600);
    if (fd < 0) return dlrni_stdio_error(ctx, file->path, "open it");
    file->f = fdopen(fd, "w+b");
    if (!file->f) close(fd);
    remove(name);
#else
    DLRNI_TRY(dlrni_stdio_set_name(ctx, file, "a temporary file for ", path));
    file->f = tmpfile();
#endif
    return file->f ? DLRN_OK : dlrni_stdio_error(ctx, file->path, "open it");
}

/* Allocates a file and opens it in one of the three ways above. One place to free both blocks if
   that fails. */
DLRNI_INTERNAL dlrn_status dlrni_stdio_new(dlrn_context *ctx, const char *path, void **out,
                                           dlrn_status (*opener)(dlrn_context *, dlrni_stdio *,
                                                                 const char *)) {
    dlrni_stdio *file = DLRNI_NEW_ZERO(ctx, dlrni_stdio, 1);
    if (!file) return DLRN_ERR_MEMORY;
    dlrn_status s = opener(ctx, file, path);
    if (s == DLRN_OK) {
        *out = file;
        return DLRN_OK;
    }
    dlrn_free(ctx, file->path);
    dlrn_free(ctx, file);
    return s;
}

/* dlrn_io.open_file. fopen can open a folder on some systems, and fails only at the first read:
   it is refused here, by name. */
DLRNI_INTERNAL dlrn_status dlrni_stdio_open(void *user, dlrn_context *ctx, const char *path,
                                            int writing, void **out) {
    if (strcmp(path, "-") && dlrni_stdio_exists(user, path) == 2)
        return dlrn_fail(ctx, DLRN_ERR_IO, "%s: expected a file%s, found a folder", path,
                         writing ? " to write" : "");
    return dlrni_stdio_new(ctx, path, out,
                           writing ? dlrni_stdio_open_write : dlrni_stdio_open_read);
}

/* dlrn_io.temporary_file: for a spool. */
DLRNI_INTERNAL dlrn_status dlrni_stdio_temporary(void *user, dlrn_context *ctx, const char *path,
                                                 void **out) {
    (void)user;
    return dlrni_stdio_new(ctx, path, out, dlrni_stdio_open_temporary);
}

/* dlrn_io.read_file. A short read is an error only if ferror says so. Otherwise the file has ended,
   or more will come through the pipe; the next read shows which. */
DLRNI_INTERNAL dlrn_status dlrni_stdio_read(void *user, dlrn_context *ctx, void *file, void *bytes,
                                            size_t size, size_t *got) {
    const dlrni_stdio *from = (const dlrni_stdio *)file;
    (void)user;
    *got = fread(bytes, 1, size, from->f);
    return *got || !ferror(from->f) ? DLRN_OK : dlrni_stdio_error(ctx, from->path, "read it");
}

/* dlrn_io.write_file. Success may only mean that the bytes are buffered: a full disk can show at
   the flush, so closing checks, too. */
DLRNI_INTERNAL dlrn_status dlrni_stdio_write(void *user, dlrn_context *ctx, void *file,
                                             const void *bytes, size_t size) {
    const dlrni_stdio *to = (const dlrni_stdio *)file;
    (void)user;
    return fwrite(bytes, 1, size, to->f) == size ? DLRN_OK
                                                 : dlrni_stdio_error(ctx, to->path, "write it");
}

/* dlrn_io.rewind_file. A device may accept fseek and not honour it, so only files that we created
   under a temporary name are rewound. */
DLRNI_INTERNAL int dlrni_stdio_rewind(void *user, void *file) {
    const dlrni_stdio *it = (const dlrni_stdio *)file;
    (void)user;
    return it->rewinds && fseek(it->f, 0, SEEK_SET) == 0;
}

/* A rename survives a power cut only once the folder is flushed, too. Errors are ignored: some file
   systems cannot flush a folder. A folder beyond 4096 bytes is left alone: the system would not
   open it, either. */
DLRNI_INTERNAL void dlrni_sync_folder(const char *path) {
#if DLRNI_POSIX
    const char *slash = strrchr(path, '/');
    char folder[4096] = ".";
    size_t n = slash ? (size_t)(slash - path) : 0;
    if (slash && n < sizeof folder) {
        memcpy(folder, n ? path : "/", n ? n : 1);
        folder[n ? n : 1] = 0;
    }
    int fd = open(folder, O_RDONLY);
    if (fd >= 0) {
        /* no result: some file systems refuse it */
        fsync(fd);
        close(fd);
    }
#else
    (void)path;
#endif
}

/* Flushes a file's bytes to the disk; not 0 is an error. Without fsync a power cut after the rename
   could leave the new name with no content. A pipe is not on a disk, and fsync refuses it. */
DLRNI_INTERNAL int dlrni_stdio_flush(const dlrni_stdio *file) {
    /* to the system first, then to the disk */
    if (fflush(file->f)) return 1;
#if DLRNI_POSIX
    return file->temporary && fsync(fileno(file->f)) != 0;
#else
    return 0;
#endif
}

/* Renames a file to a name that may be taken, where rename() refuses to replace a file, as it does
   on Windows. The old file is moved aside and moved back if the new one cannot take its place, so
   that one of the two always remains. Returns 0 on success. */
DLRNI_INTERNAL int dlrni_rename_over(const char *from, const char *to) {
    char aside[4096];
    /* nothing was there, or rename() does replace files */
    if (rename(from, to) == 0) return 0;
    if (dlrni_print(aside, sizeof aside, "%s.old", from) >= (int)sizeof aside) return 1;
    if (rename(to, aside)) return 1;
    if (rename(from, to) == 0) {
        remove(aside);
        return 0;
    }
    /* the error of the rename above matters, not that of this one */
    return rename(aside, to), 1;
}

/* Closes a file. keep: the temporary file takes the target's place. Otherwise, or after an error,
   it is removed and the target stays in place. The order matters: flush, so that the content is on
   the disk before its name; close, because Windows cannot rename an open file; rename; flush the
   folder. Standard output stays open for the host. */
DLRNI_INTERNAL dlrn_status dlrni_stdio_close(void *user, dlrn_context *ctx, void *file, int keep) {
    dlrni_stdio *o = (dlrni_stdio *)file;
    (void)user;
    dlrn_status s = DLRN_OK;
    /* dropped files are not flushed: their bytes are of no use */
    if (keep && dlrni_stdio_flush(o)) s = dlrni_stdio_error(ctx, o->path, "write it");
    int is_standard = o->f == stdout || o->f == stdin;
    if (!is_standard && fclose(o->f) && keep && s == DLRN_OK)
        s = dlrni_stdio_error(ctx, o->path, "write it");
    /* from here on: does the new file take its place? */
    keep = keep && s == DLRN_OK;
    /* POSIX: rename() replaces the target at once */
    if (o->temporary && keep &&
        (DLRNI_POSIX ? rename(o->temporary, o->target)
                     : dlrni_rename_over(o->temporary, o->target)))
        s = dlrni_stdio_error(ctx, o->path, "put it in place");
    if (o->temporary && keep && s == DLRN_OK) dlrni_sync_folder(o->target);
    /* the target has not been touched */
    if (o->temporary && (!keep || s != DLRN_OK)) remove(o->temporary);
    dlrn_free(ctx, o->path);
    dlrn_free(ctx, o);
    return s;
}

/* In the order of dlrn_io: C++ has designated initialisers only since C++20. */
static const dlrn_io dlrni_default_io = {
    dlrni_stdio_open,   dlrni_stdio_read,   dlrni_stdio_write,     dlrni_stdio_close,
    dlrni_stdio_exists, dlrni_stdio_rewind, dlrni_stdio_temporary, NULL};
#else

/* DICTLEARN_NO_STDIO and a context without callbacks: every file is refused, with a text that says
   what is missing. The other callbacks are never reached, since no file is ever open. */
DLRNI_INTERNAL dlrn_status dlrni_absent_open(void *user, dlrn_context *ctx, const char *path,
                                             int writing, void **out) {
    (void)user, (void)writing, (void)out;
    return dlrn_fail(ctx, DLRN_ERR_IO,
                     "%s: there are no files: DICTLEARN_NO_STDIO, and a context without io", path);
}

/* Nothing exists, so that a loader reports the path that it was given. */
DLRNI_INTERNAL int dlrni_absent_exists(void *user, const char *path) {
    (void)user, (void)path;
    return 0;
}

static const dlrn_io dlrni_default_io = {dlrni_absent_open,   NULL, NULL, NULL,
                                         dlrni_absent_exists, NULL, NULL, NULL};
#endif

/* The callbacks of a context: the host's, or the C library's. open_file decides for all: callbacks
   of two systems could not share a file. ctx may be NULL. */
DLRNI_INTERNAL const dlrn_io *dlrni_io_of(const dlrn_context *ctx) {
    return ctx && ctx->cfg.io.open_file ? &ctx->cfg.io : &dlrni_default_io;
}

/* ---- Reading ---- */

/* Advice only: the file can be gone before it is opened, and opening reports that. No error is set,
   because callers try several names. */
DLRN_API int dlrn_file_exists(dlrn_context *ctx, const char *path) {
    const dlrn_io *io = dlrni_io_of(ctx);
    return io->file_exists(io->user, path);
}

/* Goes to a place in a file of the C library's that is read, or to its end if that comes first, and
   gives its size. 0: it is a host's file, or a pipe. */
DLRNI_INTERNAL int dlrni_file_seek(const dlrn_context *ctx, void *file, uint64_t position,
                                   uint64_t *size) {
#if DLRNI_POSIX
    const dlrni_stdio *from = (const dlrni_stdio *)file;
    if (dlrni_io_of(ctx) != &dlrni_default_io || fseeko(from->f, 0, SEEK_END)) return 0;
    const off_t end = ftello(from->f);
    if (end < 0) return 0;
    *size = (uint64_t)end;
    return fseeko(from->f, position < *size ? (off_t)position : end, SEEK_SET) == 0;
#else
    (void)ctx, (void)file, (void)position, (void)size;
    return 0; /* fseek has 32 bits on some systems */
#endif
}

/* Reads to the end in growing blocks, and does not ask for the size first: a pipe has none, and
   files of /proc say 0. A read of 0 bytes is the end. After an error there is nothing to free. */
DLRN_API dlrn_status dlrn_file_read(dlrn_context *ctx, const char *path, char **bytes,
                                    size_t *size) {
    enum { BLOCK = 65536 }; /* for each read: what a pipe of Linux holds; 1 byte is for the 0 */
    const dlrn_io *io = dlrni_io_of(ctx);
    void *file;
    char *p = NULL;
    int64_t cap = 0, used = 0;
    size_t got = 1;
    *bytes = NULL;
    *size = 0;
    DLRNI_TRY(io->open_file(io->user, ctx, path, 0, &file));
    dlrn_status s = DLRN_OK;
    while (s == DLRN_OK && got) {
        s = DLRNI_GROW(ctx, &p, &cap, used, used + BLOCK) ? DLRN_OK : DLRN_ERR_MEMORY;
        if (s == DLRN_OK)
            s = io->read_file(io->user, ctx, file, p + used, (size_t)(cap - used - 1), &got);
        if (s == DLRN_OK) used += (int64_t)got;
    }
    (void)!io->close_file(io->user, ctx, file, 0);
    if (s != DLRN_OK) {
        dlrn_free(ctx, p);
        return s;
    }
    p[used] = 0;
    *bytes = p;
    *size = (size_t)used;
    return DLRN_OK;
}

/* Asks the kernel for 2 MB pages in a block, where they fit. Fewer page faults: a dictionary of
   134 MB loads 1.7 times as fast. Fewer address translations: batches of 8192 random rows of 2 KB
   out of 2 GB are drawn 1.7 times as fast. */
DLRNI_INTERNAL void dlrni_huge_pages(void *p, int64_t size) {
#if DLRNI_POSIX && defined(__linux__)
    const uintptr_t page = (uintptr_t)2 << 20, from = ((uintptr_t)p + page - 1) & ~(page - 1);
    const uintptr_t to = ((uintptr_t)p + (uintptr_t)size) & ~(page - 1);
    enum { hugepage = 14 }; /* MADV_HUGEPAGE */
    /* a host may have switched huge pages off: then nothing changes */
    if (from < to) (void)madvise((char *)p + (from - (uintptr_t)p), (size_t)(to - from), hugepage);
#else
    (void)p, (void)size;
#endif
}

/* The bytes of a file, read-only, and how to give them back: a map is unmapped, a block is
   freed. */
typedef struct dlrni_file_map {
    const unsigned char *p;
    size_t size;
    void *owned; /* the block that the file was read into; NULL: it is mapped */
} dlrni_file_map;

/* Unmaps, or frees the block. Safe on a map that was never opened, all zero. Mapped bytes are const
   for everyone else; munmap takes them without const. */
DLRNI_INTERNAL void dlrni_map_close(dlrn_context *ctx, dlrni_file_map *m) {
#if DLRNI_POSIX
    if (m->p && !m->owned && m->size) munmap((void *)(uintptr_t)m->p, m->size);
#endif
    dlrn_free(ctx, m->owned);
    memset(m, 0, sizeof *m);
}

/* Maps a file; 0 where that is not possible: files of a host's dlrn_io, pipes, systems without
   mmap, file systems that refuse to map, a limit on the address space (ulimit -v). Mapping costs no
   memory of ours and reads only the pages that are used. The file must not shrink meanwhile: access
   beyond its new end ends the process. */
DLRNI_INTERNAL int dlrni_map_file(dlrn_context *ctx, const char *path, dlrni_file_map *m) {
    memset(m, 0, sizeof *m);
#if DLRNI_POSIX
    struct stat st;
    /* a pipe can be opened only once, so only a regular file is opened here */
    int is_file = strcmp(path, "-") && stat(path, &st) == 0 && S_ISREG(st.st_mode);
    int fd = !ctx->cfg.io.open_file && is_file ? open(path, O_RDONLY) : -1;
    void *p = MAP_FAILED;
    /* once more, from the open file: the path may name another file by now. mmap refuses 0 bytes;
       a 32-bit system cannot map a file larger than its address space */
    if (fd >= 0 && fstat(fd, &st) == 0 && st.st_size > 0 && (uint64_t)st.st_size <= SIZE_MAX)
        p = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (fd >= 0) close(fd); /* the map holds the file */
    if (p == MAP_FAILED) return 0;
    m->p = (const unsigned char *)p;
    m->size = (size_t)st.st_size;
    return 1;
#else
    (void)ctx, (void)path;
    return 0;
#endif
}

/* Maps a file, or reads it whole where it cannot be mapped. */
DLRNI_INTERNAL dlrn_status dlrni_map_open(dlrn_context *ctx, const char *path, dlrni_file_map *m) {
    char *bytes;
    if (dlrni_map_file(ctx, path, m)) return DLRN_OK;
    DLRNI_TRY(dlrn_file_read(ctx, path, &bytes, &m->size));
    m->owned = bytes;
    m->p = (const unsigned char *)bytes;
    return DLRN_OK;
}

/* Tells the system that the bytes [from, to) of a map are done with, so that a file that is read
   through once does not fill the process's memory. They stay in the system's cache, and are mapped
   again if they are read again. In whole blocks of 64 KB, which is a multiple of any page; what is
   left over goes with the next call, which begins at the value returned. */
DLRNI_INTERNAL size_t dlrni_map_drop(const dlrni_file_map *m, size_t from, size_t to) {
    enum { BLOCK = 1 << 16 };
    const size_t begin = from / BLOCK * BLOCK, end = to / BLOCK * BLOCK;
    if (m->owned || end <= begin) return from;
#if DLRNI_POSIX && defined(__linux__)
    enum { dontneed = 4 }; /* MADV_DONTNEED: advice, so its result says nothing */
    (void)madvise((char *)(uintptr_t)(m->p + begin), end - begin, dontneed);
#endif
    return end;
}

/* Reads `size` bytes, or all that are left at the end. A file may return less at each call, so it
   is called until `size` are there: callers split the bytes into elements, and half an element
   would be lost. */
DLRNI_INTERNAL dlrn_status dlrni_read_full(dlrn_context *ctx, void *file, void *bytes, size_t size,
                                           size_t *got) {
    const dlrn_io *io = dlrni_io_of(ctx);
    *got = 0;
    for (size_t n = 1; n && *got < size; *got += n)
        DLRNI_TRY(
            io->read_file(io->user, ctx, file, (unsigned char *)bytes + *got, size - *got, &n));
    return DLRN_OK;
}

/* ---- Writing ---- */

/* A file being written. After the first error nothing more is written; closing reports it. So a
   writer of a format is a plain list of writes, and checks once. */
typedef struct dlrni_sink {
    dlrn_context *ctx;
    void *file;
    uint64_t at;  /* bytes written                              */
    uint32_t crc; /* of the bytes since the owner set it to 0   */
    dlrn_status status;
} dlrni_sink;

/* Opens a new file; nothing is visible until dlrni_sink_close. All zero but for the context: no
   bytes, no error. */
DLRNI_INTERNAL dlrn_status dlrni_sink_open(dlrn_context *ctx, const char *path, dlrni_sink *o) {
    const dlrn_io *io = dlrni_io_of(ctx);
    memset(o, 0, sizeof *o);
    o->ctx = ctx;
    return io->open_file(io->user, ctx, path, 1, &o->file);
}

/* Writes n bytes and adds them to the CRC, which only zip reads: it is cheap next to the disk. n
   may exceed 4 GB: one call writes a tensor. */
DLRNI_INTERNAL void dlrni_sink_write(dlrni_sink *o, const void *bytes, uint64_t n) {
    const dlrn_io *io = dlrni_io_of(o->ctx);
    if (o->status != DLRN_OK || !n) return;
    o->crc = o->ctx->k->crc32(o->crc, (const unsigned char *)bytes, n);
    o->at += n;
    o->status = io->write_file(io->user, o->ctx, o->file, bytes, (size_t)n);
}

/* Padding, up to 64 bytes at a time: the alignment of a zip member is 64. */
DLRNI_INTERNAL void dlrni_sink_zeros(dlrni_sink *o, uint64_t n) {
    static const unsigned char zeros[64] = {0};
    for (uint64_t step; n; n -= step) {
        step = n < sizeof zeros ? n : sizeof zeros;
        dlrni_sink_write(o, zeros, step);
    }
}

/* Goes back to the start, so that the next bytes overwrite the first; 0 if the file cannot, such as
   a pipe. For a .npy, whose header holds a number of rows that is known only at the end. */
DLRNI_INTERNAL int dlrni_sink_rewind(dlrni_sink *o) {
    const dlrn_io *io = dlrni_io_of(o->ctx);
    return io->rewind_file && io->rewind_file(io->user, o->file);
}

/* Sets the first error; later ones are its consequences, and would hide the cause. */
DLRNI_INTERNAL void dlrni_sink_fail(dlrni_sink *o, dlrn_status s) {
    if (o->status == DLRN_OK) o->status = s;
}

/* Puts the file in place, or drops it after an error. It is closed in both cases. An error of
   closing counts only if none came before: the first one names the cause. */
DLRNI_INTERNAL dlrn_status dlrni_sink_close(dlrni_sink *o) {
    const dlrn_io *io = dlrni_io_of(o->ctx);
    dlrn_status s = io->close_file(io->user, o->ctx, o->file, o->status == DLRN_OK);
    dlrni_sink_fail(o, s);
    return o->status;
}

/* Open, write, close. The first error is reported by the last step, which also drops the file. */
DLRN_API dlrn_status dlrn_file_write(dlrn_context *ctx, const char *path, const void *bytes,
                                     size_t size) {
    dlrni_sink o;
    DLRNI_TRY(dlrni_sink_open(ctx, path, &o));
    dlrni_sink_write(&o, bytes, size);
    return dlrni_sink_close(&o);
}

/* ---- A spool ---- */

/* Bytes that must wait until a number before them in the file is known. They are kept in a
   temporary file, because codes of a large run are larger than memory, or in memory if the dlrn_io
   has no temporary files. */
typedef struct dlrni_spool {
    void *file; /* NULL: in memory */
    dlrni_bytes memory;
    int64_t at; /* bytes of `memory` that were read back */
    int is_open;
} dlrni_spool;

/* path names the file that the spool is for, in errors. A host whose files cannot be rewound could
   not read a temporary one back, so memory is used for it, too. */
DLRNI_INTERNAL dlrn_status dlrni_spool_open(dlrn_context *ctx, const char *path,
                                            dlrni_spool *spool) {
    const dlrn_io *io = dlrni_io_of(ctx);
    memset(spool, 0, sizeof *spool);
    spool->memory.ctx = ctx;
    spool->is_open = 1;
    return io->temporary_file && io->rewind_file
               ? io->temporary_file(io->user, ctx, path, &spool->file)
               : DLRN_OK;
}

/* Appends bytes; none at all is not an error, and `bytes` may be NULL then. */
DLRNI_INTERNAL dlrn_status dlrni_spool_add(dlrni_spool *spool, const void *bytes, size_t size) {
    dlrn_context *ctx = spool->memory.ctx;
    const dlrn_io *io = dlrni_io_of(ctx);
    if (!size) return DLRN_OK;
    if (spool->file) return io->write_file(io->user, ctx, spool->file, bytes, size);
    dlrni_bytes_add(&spool->memory, bytes, (int64_t)size);
    return spool->memory.failed ? DLRN_ERR_MEMORY : DLRN_OK;
}

/* Goes back to the start, to read. Everything is added before anything is read, so one position is
   enough. */
DLRNI_INTERNAL dlrn_status dlrni_spool_rewind(dlrni_spool *spool, const char *path) {
    dlrn_context *ctx = spool->memory.ctx;
    const dlrn_io *io = dlrni_io_of(ctx);
    spool->at = 0;
    if (!spool->file || io->rewind_file(io->user, spool->file)) return DLRN_OK;
    return dlrn_fail(ctx, DLRN_ERR_IO, "a temporary file for %s: cannot go back to its start",
                     path);
}

/* Reads `size` bytes, or all that are left at the end. */
DLRNI_INTERNAL dlrn_status dlrni_spool_fill(dlrni_spool *spool, unsigned char *bytes, size_t size,
                                            size_t *got) {
    if (spool->file) return dlrni_read_full(spool->memory.ctx, spool->file, bytes, size, got);
    /* in memory the end is known */
    *got = (size_t)dlrni_min((int64_t)size, spool->memory.len - spool->at);
    if (*got) memcpy(bytes, spool->memory.p + spool->at, *got);
    spool->at += (int64_t)*got;
    return DLRN_OK;
}

/* Safe on a spool that was never opened, all zero. The temporary file is not kept, so an error of
   closing it changes nothing. */
DLRNI_INTERNAL void dlrni_spool_free(dlrni_spool *spool) {
    dlrn_context *ctx = spool->memory.ctx;
    if (!spool->is_open) return;
    if (spool->file)
        (void)!dlrni_io_of(ctx)->close_file(dlrni_io_of(ctx)->user, ctx, spool->file, 0);
    dlrn_free(ctx, spool->memory.p);
    spool->is_open = 0;
}

/* ------------------------------------------------------------------------------------------ */
// >>json
/* A strict reader (RFC 8259), and the one writer that everything here uses. JSON is the header of a
   .safetensors, the index of a sharded model, and the configuration beside a dictionary.

   Strict, because two readers that mend a broken text mend it in two ways: a file that was checked
   with one library must not mean something else here. So there are no comments, no trailing
   commas, no equal keys, and every string is UTF-8. One thing more than the RFC has is read: the
   numbers NaN, Infinity and -Infinity, which mean the same to everyone who reads them. */

/* ---- Numbers as text, in any locale ---- */

/* strtod with a decimal point, although the host's locale may want another character. The text is
   changed for the call and restored. The caller has checked the grammar, so the first point is the
   decimal point. sample is what printf makes of 0.5, "0,5" in a German locale: its second byte. */
DLRNI_INTERNAL double dlrni_number(char *text) {
    char sample[16], *point = strchr(text, '.');
    dlrni_print(sample, sizeof sample, "%.1f", 0.5);
    if (point) *point = sample[1];
    double value = strtod(text, NULL);
    if (point) *point = '.';
    return value;
}

/* The shorter of 15 or 17 digits that strtod reads back as the same number, with a decimal point in
   any locale. 17 digits always suffice; 15 keep 0.1 as 0.1. It is compared before the comma is
   replaced, in the locale that strtod expects. Infinity and NaN never come here from JSON; from a
   pickle they are written as printf does. */
DLRNI_INTERNAL void dlrni_real_text(double value, char *text, size_t size) {
    dlrni_print(text, size, "%.15g", value);
    double back = strtod(text, NULL);
    /* a NaN compares false, and stays as printed */
    if (back < value || back > value) dlrni_print(text, size, "%.17g", value);
    for (char *c = text; *c; c++)
        if (*c == ',') *c = '.';
}

/* ---- The reader ----

   A tree of values in one block. There is at most one value more than there are commas and opening
   brackets, and no string grows when it is unescaped, so the block's size is known before the text
   is parsed, and is in proportion to it: first the values, then the bytes of all texts.

      {"a": [1, "b"]}     4 values at most: 1 + 1 comma + 2 brackets

      | object | array a | number 1 | string "b" | a 0 1 0 b 0 ... |
        root     nodes -> one after another        text ->

   A text of N commas needs about 75 bytes for each, which is the price of a tree without a second
   allocation, and of freeing it with one call. */

/* Where the reader is in the text, and how much of the block is in use. */
typedef struct dlrni_json_reader {
    dlrn_context *ctx;
    const char *name, *start, *p, *end;
    dlrn_json *nodes; /* next free value */
    char *text;       /* next free byte  */
    int depth;
} dlrni_json_reader;

/* Values nest on the C stack, and "[[[[..." costs an attacker a byte a level. 64 levels take about
   10 KB of stack; files of models have 5 or so. */
enum { DLRNI_JSON_DEPTH = 64 };

/* The line is counted only here: parsing a good text does not pay for it. The byte is given, too,
   because most JSON that machines write is one line. */
DLRNI_INTERNAL dlrn_status dlrni_json_error(dlrni_json_reader *r, const char *what) {
    int64_t line = 1;
    for (const char *q = r->start; q < r->p; q++) line += *q == '\n';
    return dlrn_fail(r->ctx, DLRN_ERR_FORMAT, "%s: JSON, line %lld, byte %lld: %s", r->name,
                     (long long)line, (long long)(r->p - r->start), what);
}

/* Steps over blanks; JSON has these four and no comments. isspace would take more, by the
   locale. */
DLRNI_INTERNAL void dlrni_json_space(dlrni_json_reader *r) {
    while (r->p < r->end && (*r->p == ' ' || *r->p == '\t' || *r->p == '\n' || *r->p == '\r'))
        r->p++;
}

/* Four hexadecimal digits; the caller has checked that four bytes are there. strtoul would accept a
   sign, blanks and "0x". */
DLRNI_INTERNAL int dlrni_hex4(const char *p, uint32_t *out) {
    uint32_t v = 0;
    for (int i = 0; i < 4; i++) {
        char c = p[i];
        if (c >= '0' && c <= '9')
            v = v << 4 | (uint32_t)(c - '0');
        else if ((c | 32) >= 'a' && (c | 32) <= 'f')
            v = v << 4 | (uint32_t)((c | 32) - 'a' + 10);
        else
            return 0;
    }
    *out = v;
    return 1;
}

/* One escape; the backslash has been read. \u gives a UTF-16 unit: beyond U+FFFF two of them make
   one character. A unit without its partner has no UTF-8, and is refused. */
DLRNI_INTERNAL dlrn_status dlrni_json_escape(dlrni_json_reader *r) {
    static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
    if (r->p >= r->end) return dlrni_json_error(r, "the text ends inside a string");
    const char *at = *r->p ? strchr(from, *r->p) : NULL; /* strchr would find the final 0 */
    if (at) {
        *r->text++ = to[at - from];
        r->p++;
        return DLRN_OK;
    }
    uint32_t c, low;
    if (*r->p != 'u' || r->end - r->p < 5 || !dlrni_hex4(r->p + 1, &c))
        return dlrni_json_error(r, "unknown escape");
    r->p += 5;
    if (c >= 0xD800 && c < 0xE000) { /* a high surrogate: a low one must follow */
        /* a low one must not come first; its six bytes must be there */
        if (c >= 0xDC00 || r->end - r->p < 6 || r->p[0] != '\\' || r->p[1] != 'u' ||
            !dlrni_hex4(r->p + 2, &low) || low < 0xDC00 || low > 0xDFFF)
            return dlrni_json_error(r, "a surrogate without its partner");
        c = 0x10000 + ((c - 0xD800) << 10) + (low - 0xDC00);
        r->p += 6;
    }
    r->text = dlrni_utf8_put(r->text, c);
    return DLRN_OK;
}

/* Reads a string to r->text and closes it with a 0. There is room: an escape is at least as long as
   the bytes it stands for (\u and four digits give three bytes, a pair of them four), and the
   quotes leave room for the 0. \u0000 puts a 0 into the text itself, so *len counts. Tabs and
   newlines must be escaped: RFC 8259, section 7. */
DLRNI_INTERNAL dlrn_status dlrni_json_string(dlrni_json_reader *r, const char **text,
                                             int64_t *len) {
    char *first = r->text;
    if (r->p >= r->end || *r->p != '"') return dlrni_json_error(r, "expected a string");
    for (r->p++; r->p < r->end && *r->p != '"';) {
        if (*r->p == '\\') {
            r->p++;
            DLRNI_TRY(dlrni_json_escape(r));
            continue;
        }
        int n = dlrni_utf8_length(r->p, r->end);
        if (!n) return dlrni_json_error(r, "a string is not UTF-8");
        if ((unsigned char)*r->p < 0x20)
            return dlrni_json_error(r, "a control character in a string");
        /* all n bytes are there: dlrni_utf8_length has looked at them */
        while (n-- > 0) *r->text++ = *r->p++;
    }
    if (r->p >= r->end) return dlrni_json_error(r, "the text ends inside a string");
    r->p++;
    *text = first;
    *len = r->text - first;
    *r->text++ = 0;
    return DLRN_OK;
}

/* Steps over digits and returns how many there were. JSON wants at least one in each of the three
   places where digits stand. */
DLRNI_INTERNAL int64_t dlrni_json_digits(dlrni_json_reader *r) {
    const char *from = r->p;
    while (r->p < r->end && *r->p >= '0' && *r->p <= '9') r->p++;
    return r->p - from;
}

/* Checks the grammar first: strtod alone would accept hexadecimal, "inf", "+1" and "1.". The text
   is kept, since a double rounds integers beyond 2^53 (see dlrni_json_unsigned). There is room for
   the 0 after it: see dlrn_json_parse. */
DLRNI_INTERNAL dlrn_status dlrni_json_number_value(dlrni_json_reader *r, dlrn_json *v) {
    const char *from = r->p;
    if (*r->p == '-') r->p++;
    /* "007" is refused: some readers take it for octal */
    int zero = r->p < r->end && *r->p == '0';
    int64_t digits = dlrni_json_digits(r);
    int bad = !digits || (zero && digits > 1);
    if (!bad && r->p < r->end && *r->p == '.') {
        r->p++;
        bad = !dlrni_json_digits(r);
    }
    if (!bad && r->p < r->end && (*r->p | 32) == 'e') {
        r->p++;
        if (r->p < r->end && (*r->p == '+' || *r->p == '-')) r->p++;
        bad = !dlrni_json_digits(r);
    }
    if (bad) return dlrni_json_error(r, "malformed number");
    v->type = DLRN_JSON_NUMBER;
    v->text = r->text;
    v->text_len = r->p - from;
    memcpy(r->text, from, (size_t)v->text_len);
    r->text[v->text_len] = 0;
    v->number = dlrni_number(r->text);
    r->text += v->text_len + 1;
    return DLRN_OK;
}

/* Steps over a word, if it comes next. What follows it is checked by the caller, who wants a comma
   or a bracket: "nullx" is refused there. */
DLRNI_INTERNAL int dlrni_json_word(dlrni_json_reader *r, const char *word) {
    size_t n = strlen(word);
    if ((size_t)(r->end - r->p) < n || memcmp(r->p, word, n)) return 0;
    r->p += n;
    return 1;
}

/* NaN, Infinity and -Infinity: Python's json module writes them, so they are in configurations and
   texts that people have. The number is what they say; whoever needs a finite one refuses it, as
   it would refuse 1e999. */
DLRNI_INTERNAL int dlrni_json_not_finite(dlrni_json_reader *r, dlrn_json *v) {
    static const char *const words[3] = {"NaN", "Infinity", "-Infinity"};
    static const double values[3] = {(double)NAN, (double)INFINITY, -(double)INFINITY};
    for (int i = 0; i < 3; i++) {
        if (!dlrni_json_word(r, words[i])) continue;
        v->type = DLRN_JSON_NUMBER;
        v->number = values[i];
        v->text = r->text;
        v->text_len = (int64_t)strlen(words[i]);
        memcpy(r->text, words[i], (size_t)v->text_len + 1);
        r->text += v->text_len + 1;
        return 1;
    }
    return 0;
}

/* Refuses an object with two members of the same key: readers disagree about which one counts. A
   table, not pairs: a header of 100 MB can hold millions of keys. It lasts only for the check,
   because one tree needs few look-ups. */
DLRNI_INTERNAL dlrn_status dlrni_json_unique(dlrni_json_reader *r, const dlrn_json *object) {
    dlrni_lookup keys = {NULL, 0, 0};
    dlrn_status s = DLRN_OK;
    for (const dlrn_json *m = object->first; m && s == DLRN_OK; m = m->next) {
        if (dlrni_lookup_find(&keys, m->key, m->key_len) >= 0)
            s = dlrn_fail(r->ctx, DLRN_ERR_FORMAT,
                          "%s: JSON: key \"%.60s\": expected once in an object, found twice",
                          r->name, m->key);
        else if (!dlrni_lookup_add(r->ctx, &keys, m->key, m->key_len, 0))
            s = DLRN_ERR_MEMORY;
    }
    dlrn_free(r->ctx, keys.slot);
    return s;
}

/* Values contain values, so each of these two functions calls the other. */
DLRNI_INTERNAL dlrn_status dlrni_json_value(dlrni_json_reader *r, dlrn_json *v);

/* Reads the members of an object or the elements of an array; the opening bracket has been read.
   Each child takes one node, which its comma or its bracket was counted for. `link` is where the
   next child is entered: children form a list in the order of the text. An error leaves depth as it
   is, since nothing is read after it. */
DLRNI_INTERNAL dlrn_status dlrni_json_children(dlrni_json_reader *r, dlrn_json *v, char close) {
    const dlrn_json **link = &v->first;
    if (++r->depth > DLRNI_JSON_DEPTH) return dlrni_json_error(r, "nested deeper than 64");
    for (;;) {
        dlrni_json_space(r);
        /* only an empty container closes here: "[1,]" is refused below */
        if (r->p < r->end && *r->p == close && !v->count) break;
        dlrn_json *child = r->nodes++;
        memset(child, 0, sizeof *child);
        if (close == '}') {
            DLRNI_TRY(dlrni_json_string(r, &child->key, &child->key_len));
            dlrni_json_space(r);
            if (r->p >= r->end || *r->p != ':') return dlrni_json_error(r, "expected ':'");
            r->p++;
        }
        DLRNI_TRY(dlrni_json_value(r, child));
        *link = child;
        link = &child->next;
        v->count++;
        dlrni_json_space(r);
        if (r->p < r->end && *r->p == close) break;
        if (r->p >= r->end || *r->p != ',')
            return dlrni_json_error(r, "expected ',' or the closing bracket");
        r->p++;
        dlrni_json_space(r);
        if (r->p < r->end && *r->p == close)
            return dlrni_json_error(r, "a comma before the closing bracket");
    }
    r->p++;
    r->depth--;
    return close == '}' ? dlrni_json_unique(r, v) : DLRN_OK;
}

/* Reads one value of any kind, which its first byte shows. The nodes are zero but for what is set
   here, so "false" needs no more than its type. */
DLRNI_INTERNAL dlrn_status dlrni_json_value(dlrni_json_reader *r, dlrn_json *v) {
    dlrni_json_space(r);
    if (r->p >= r->end) return dlrni_json_error(r, "the text ends where a value is expected");
    char c = *r->p;
    if (c == '{' || c == '[') {
        v->type = c == '{' ? DLRN_JSON_OBJECT : DLRN_JSON_ARRAY;
        r->p++;
        return dlrni_json_children(r, v, c == '{' ? '}' : ']');
    }
    if (c == '"') {
        v->type = DLRN_JSON_STRING;
        return dlrni_json_string(r, &v->text, &v->text_len);
    }
    if (dlrni_json_not_finite(r, v)) return DLRN_OK;
    if (c == '-' || (c >= '0' && c <= '9')) return dlrni_json_number_value(r, v);
    v->type = DLRN_JSON_BOOL;
    if (dlrni_json_word(r, "true")) {
        v->number = 1;
        return DLRN_OK;
    }
    if (dlrni_json_word(r, "false")) return DLRN_OK;
    v->type = DLRN_JSON_NULL;
    return dlrni_json_word(r, "null") ? DLRN_OK : dlrni_json_error(r, "expected a value");
}

/* Counts the nodes, allocates the block, parses. Commas and brackets inside strings are counted,
   too: a little too much memory is better than a second parser. A byte order mark is refused by the
   grammar. */
DLRN_API dlrn_status dlrn_json_parse(dlrn_context *ctx, const char *text, size_t size,
                                     const char *name, dlrn_json **out) {
    int64_t nodes = 1, bytes, total;
    *out = NULL;
    for (size_t i = 0; i < size; i++) nodes += text[i] == ',' || text[i] == '[' || text[i] == '{';
    /* + 2: a 0 after the key and after the text of each value; a number has no quotes to spare */
    if (!dlrni_mul(nodes, (int64_t)sizeof(dlrn_json) + 2, &bytes) ||
        !dlrni_add(bytes, (int64_t)size, &total))
        return dlrn_fail(ctx, DLRN_ERR_MEMORY, "%s: JSON too large", name);
    /* one block: dlrn_alloc aligns it for the nodes, and texts need no alignment */
    dlrn_json *root = (dlrn_json *)dlrn_alloc(ctx, total, 1);
    if (!root) return DLRN_ERR_MEMORY;
    dlrni_json_reader r = {ctx, name, text, text, text + size, root + 1, (char *)(root + nodes), 0};
    memset(root, 0, sizeof *root);
    dlrn_status s = dlrni_json_value(&r, root);
    if (s == DLRN_OK) {
        dlrni_json_space(&r);
        if (r.p < r.end) s = dlrni_json_error(&r, "unexpected text after the value");
    }
    if (s != DLRN_OK) {
        dlrn_free(ctx, root);
        return s;
    }
    *out = root;
    return DLRN_OK;
}

/* ---- Getting values ---- */

/* Linear in the members of each object on the path, which is enough: configurations have a hundred
   members, and large objects are walked, not searched. A key that holds '.' cannot be reached,
   except by walking. */
DLRN_API const dlrn_json *dlrn_json_get(const dlrn_json *object, const char *path) {
    while (object && *path) {
        size_t n = strcspn(path, ".");
        const dlrn_json *m = object->type == DLRN_JSON_OBJECT ? object->first : NULL;
        /* keys may hold 0 bytes: their lengths are compared first */
        while (m && !((size_t)m->key_len == n && !memcmp(m->key, path, n))) m = m->next;
        object = m;
        path += n + (path[n] == '.');
    }
    return object;
}

/* A text may hold a 0 byte, written as \u0000, and then seems to end early: compare strlen with
   text_len where that matters. */
DLRN_API const char *dlrn_json_text(const dlrn_json *object, const char *path,
                                    const char *otherwise) {
    const dlrn_json *v = dlrn_json_get(object, path);
    return v && v->type == DLRN_JSON_STRING ? v->text : otherwise;
}

/* Bools count, since configurations of Python write flags as true, as 1, or as 1.0. */
DLRN_API double dlrn_json_number(const dlrn_json *object, const char *path, double otherwise) {
    const dlrn_json *v = dlrn_json_get(object, path);
    return v && (v->type == DLRN_JSON_NUMBER || v->type == DLRN_JSON_BOOL) ? v->number : otherwise;
}

/* A whole number in [0, 2^53], which a double holds exactly, written without point or exponent.
   "1e3" and "2.0" are refused: the reference reader of safetensors takes integers only. */
DLRNI_INTERNAL int dlrni_json_size(const dlrn_json *v, int64_t *out) {
    if (!v || v->type != DLRN_JSON_NUMBER || !(v->number >= 0 && v->number <= 9007199254740992.0))
        return 0;
    *out = (int64_t)v->number;
    return (double)*out == v->number && !strpbrk(v->text, ".eE-");
}

/* A whole number of an object, exact beyond 2^53; 0: missing, or not a whole number. Read from the
   text, since counters and seeds have 64 bits. The test before each step keeps the sum from
   wrapping around, so that no other number passes for the right one. */
DLRNI_INTERNAL int dlrni_json_unsigned(const dlrn_json *object, const char *name, uint64_t *out) {
    const dlrn_json *value = dlrn_json_get(object, name);
    uint64_t sum = 0;
    if (!value || value->type != DLRN_JSON_NUMBER || !*value->text) return 0;
    for (const char *c = value->text; *c; c++) {
        if (*c < '0' || *c > '9' || sum > (UINT64_MAX - (uint64_t)(*c - '0')) / 10) return 0;
        sum = sum * 10 + (uint64_t)(*c - '0');
    }
    *out = sum;
    return 1;
}

/* The same for a signed number: -1, which stands for "none", or from 0. Other negative numbers have
   no meaning in our files. */
DLRNI_INTERNAL int dlrni_json_signed(const dlrn_json *object, const char *name, int64_t *out) {
    const dlrn_json *value = dlrn_json_get(object, name);
    uint64_t u;
    if (value && value->type == DLRN_JSON_NUMBER && !strcmp(value->text, "-1")) {
        *out = -1;
        return 1;
    }
    if (!dlrni_json_unsigned(object, name, &u) || u > INT64_MAX) return 0;
    *out = (int64_t)u;
    return 1;
}

/* A number of an object; 0: missing, or not a number. No bools, unlike dlrn_json_number: these
   values are read back exactly, and a bool in their place is an error of the file. */
DLRNI_INTERNAL int dlrni_json_real(const dlrn_json *object, const char *name, double *out) {
    const dlrn_json *value = dlrn_json_get(object, name);
    if (!value || value->type != DLRN_JSON_NUMBER) return 0;
    *out = value->number;
    return 1;
}

/* ---- The writer ----

   dlrni_json_open '{' or '[', values, dlrni_json_close. Each value takes the key that it has in an
   object; in an array, and outside of both, key is NULL. Commas are set here. The text grows in a
   context's memory, or is cut to a text of the caller's (see dlrni_bytes): check out.failed, or
   compare out.len with the size.

      open(NULL, "{")  put_signed("k", 32)  open("shape", "[")  put_signed(NULL, 2)  close("]")
      {                "k":32                ,"shape":[           2                    ] */

/* A text in the making. Nothing fails before the end: see dlrni_bytes. */
typedef struct dlrni_json_writer {
    dlrni_bytes out;
    const char *comma, *colon; /* "," ":" for machines, ", " ": " for people */
    int separate;              /* a comma comes before the next value        */
} dlrni_json_writer;

/* Writes to memory of ctx, without blanks: for files, which machines read. */
DLRNI_INTERNAL dlrni_json_writer dlrni_json_to_memory(dlrn_context *ctx) {
    dlrni_json_writer w = {{ctx, NULL, 0, 0, 0}, ",", ":", 0};
    return w;
}

/* Writes to a text of the caller's, with a blank after each comma and colon: for a line on the
   screen. Like snprintf, it never writes beyond `size`. */
DLRNI_INTERNAL dlrni_json_writer dlrni_json_to_text(char *text, size_t size) {
    dlrni_json_writer w = {{NULL, text, 0, (int64_t)size, 0}, ", ", ": ", 0};
    return w;
}

/* Text, which must be UTF-8, as a JSON string. Only what must be escaped is: quotes, backslashes,
   and control characters, which could otherwise reach a terminal. */
DLRNI_INTERNAL void dlrni_json_quote(dlrni_json_writer *w, const char *s) {
    char escape[8];
    dlrni_bytes_add(&w->out, "\"", 1);
    for (; *s; s++) {
        if (*s == '"' || *s == '\\') dlrni_bytes_add(&w->out, "\\", 1);
        if ((unsigned char)*s >= 0x20) {
            dlrni_bytes_add(&w->out, s, 1);
        } else {
            dlrni_print(escape, sizeof escape, "\\u%04x", (unsigned)(unsigned char)*s);
            dlrni_bytes_text(&w->out, escape);
        }
    }
    dlrni_bytes_add(&w->out, "\"", 1);
}

/* A value that is text already, with the comma and the key before it. Every other function of the
   writer comes through here, so commas have one place. */
DLRNI_INTERNAL void dlrni_json_put(dlrni_json_writer *w, const char *key, const char *value) {
    if (w->separate) dlrni_bytes_text(&w->out, w->comma);
    if (key) dlrni_json_quote(w, key);
    if (key) dlrni_bytes_text(&w->out, w->colon);
    dlrni_bytes_text(&w->out, value);
    w->separate = 1;
}

/* Begins an object "{" or array "[" ... No comma comes before its first value. */
DLRNI_INTERNAL void dlrni_json_open(dlrni_json_writer *w, const char *key, const char *bracket) {
    dlrni_json_put(w, key, bracket);
    w->separate = 0;
}

/* ... and ends it. There is no stack: the caller gives the bracket that it opened. */
DLRNI_INTERNAL void dlrni_json_close(dlrni_json_writer *w, const char *bracket) {
    dlrni_bytes_text(&w->out, bracket);
    w->separate = 1;
}

/* An empty value first, for the comma and the key; then the quoted text. */
DLRNI_INTERNAL void dlrni_json_put_text(dlrni_json_writer *w, const char *key, const char *text) {
    dlrni_json_put(w, key, "");
    dlrni_json_quote(w, text);
}

/* 32 bytes hold a sign and 19 digits, with no locale: %lld groups nothing. */
DLRNI_INTERNAL void dlrni_json_put_signed(dlrni_json_writer *w, const char *key, int64_t v) {
    char text[32];
    dlrni_print(text, sizeof text, "%lld", (long long)v);
    dlrni_json_put(w, key, text);
}

DLRNI_INTERNAL void dlrni_json_put_unsigned(dlrni_json_writer *w, const char *key, uint64_t v) {
    char text[32];
    dlrni_print(text, sizeof text, "%llu", (unsigned long long)v);
    dlrni_json_put(w, key, text);
}

/* JSON has no infinity and no NaN: they are written as null. 40 bytes hold 17 digits, sign, point
   and exponent. */
DLRNI_INTERNAL void dlrni_json_put_real(dlrni_json_writer *w, const char *key, double v) {
    char text[40] = "null";
    /* false for a NaN, too */
    if (v >= -DBL_MAX && v <= DBL_MAX) dlrni_real_text(v, text, sizeof text);
    dlrni_json_put(w, key, text);
}

DLRNI_INTERNAL void dlrni_json_put_bool(dlrni_json_writer *w, const char *key, int v) {
    dlrni_json_put(w, key, v ? "true" : "false");
}

/* ------------------------------------------------------------------------------------------ */
// >>archive
/* An archive is a list of named tensors that lie somewhere in the bytes of a file. Each format has
   a room of its own, which finds them there and calls dlrni_archive_add. That checks that a tensor
   lies within its storage; from then on no read can leave the file's bytes.

      bytes of the file  ->  safetensors, npy, zip + pickle  ->  dlrni_archive_add  ->  entries
                             offsets, shapes, strides:           the one check          read at
                             claims of the file                                         any time

   Nothing is converted on opening. A .safetensors of 10 GB is listed at once: only tensors that are
   read cost time.

   An element at index (i, j, ...) is at data + size * (offset + i * stride[0] + j * stride[1] ...),
   so transposed and sliced tensors are read where they are. For W.T of shape [2, 3], saved by torch
   without a copy, the storage holds W, [3, 2], and the strides are 1 and 2:

      storage   w00 w01 w10 w11 w20 w21
      W.T       w00     w10     w20          row 0: offset 0, step 2
                    w01     w11     w21      row 1: offset 1, step 2 */

/* What the formats call an element type: a column each of DLRN_DTYPE_LIST. An empty text: the
   format has no such type, as .npy has no bf16. */
typedef struct dlrni_dtype_names {
    const char *safetensors, *npy, *torch_storage, *torch;
} dlrni_dtype_names;

static const dlrni_dtype_names dlrni_dtypes[DLRN_DTYPE_COUNT] = {
#define DLRNI_DTYPE_ROW(name, text, bytes, npy, storage, torch) {text, npy, storage, torch},
    DLRN_DTYPE_LIST(DLRNI_DTYPE_ROW)
#undef DLRNI_DTYPE_ROW
};

/* A tensor of a file. A program sees the first member only. */
typedef struct dlrni_entry {
    dlrn_tensor_info info;
    const unsigned char *data;     /* the storage, in the file's bytes or in a block     */
    int64_t offset;                /* of the first element, in elements                  */
    int64_t stride[DLRN_MAX_DIMS]; /* in elements, never negative; 0 repeats an element  */
    int swap;                      /* elements are stored high byte first                */
} dlrni_entry;

/* Something beside the tensors, as text: a number of a checkpoint, the name of a layout. */
typedef struct dlrni_note {
    char *key, *value;
} dlrni_note;

/* A file of tensors, opened. */
struct dlrn_archive {
    dlrn_context *ctx;
    char *path;
    const char *format;   /* "pt", "npz" ...: a literal                           */
    dlrni_file_map map;   /* the file's bytes                                     */
    int borrowed;         /* the map's bytes are the caller's                     */
    int shapes_only;      /* no CRC is compared: no tensor will be read           */
    dlrni_entry *entries; /* [count], in the file's order                         */
    int64_t count, cap;
    dlrni_lookup names; /* name -> index of entries                             */
    dlrni_note *notes;  /* [n_notes] what a file holds beside tensors           */
    int64_t n_notes, note_cap;
    void **blocks; /* [n_blocks] names and unpacked members, freed with it */
    int64_t n_blocks, block_cap;
    dlrn_archive **shards; /* [n_shards] files that this index names; entries     */
    int64_t n_shards;      /* then point into their maps                          */
};

/* A block that lives as long as the archive. The list grows first: a block that could not be listed
   would leak. */
DLRNI_INTERNAL void *dlrni_archive_block(dlrn_archive *a, int64_t size) {
    if (!DLRNI_GROW(a->ctx, &a->blocks, &a->block_cap, a->n_blocks, a->n_blocks + 1)) return NULL;
    void *p = dlrn_alloc(a->ctx, size, 1);
    if (p) a->blocks[a->n_blocks++] = p;
    return p;
}

/* A copy of a text, closed with a 0, that lives as long as the archive. Copied, because what was
   parsed is freed after opening, and names in a zip or a pickle have no 0 after them. */
DLRNI_INTERNAL char *dlrni_archive_text(dlrn_archive *a, const char *text, int64_t len) {
    char *copy = (char *)dlrni_archive_block(a, len + 1);
    if (!copy) return NULL;
    memcpy(copy, text, (size_t)len);
    copy[len] = 0;
    return copy;
}

/* Keeps a key and its text. Equal keys are kept, and the first one is found: a note is never worth
   refusing a file. */
DLRNI_INTERNAL dlrn_status dlrni_archive_annotate(dlrn_archive *a, const char *key, int64_t key_len,
                                                  const char *value, int64_t value_len) {
    char *k = dlrni_archive_text(a, key, key_len), *v = dlrni_archive_text(a, value, value_len);
    if (!k || !v || !DLRNI_GROW(a->ctx, &a->notes, &a->note_cap, a->n_notes, a->n_notes + 1))
        return DLRN_ERR_MEMORY;
    a->notes[a->n_notes].key = k;
    a->notes[a->n_notes++].value = v;
    return DLRN_OK;
}

/* What dlrni_archive_annotate kept under a key: numbers and texts beside the tensors of a .pt,
   texts of an .npz, the comment of both, the __metadata__ of safetensors. NULL: nothing. Linear: a
   file has a few dozen, and few are looked up. */
DLRNI_INTERNAL const char *dlrni_archive_metadata(const dlrn_archive *a, const char *key) {
    for (int64_t i = 0; i < a->n_notes; i++)
        if (!strcmp(a->notes[i].key, key)) return a->notes[i].value;
    return NULL;
}

/* Adds an entry whose name lives as long as the archive. A name that is there twice is refused: two
   readers would take two different tensors. */
DLRNI_INTERNAL dlrn_status dlrni_archive_adopt(dlrn_archive *a, const dlrni_entry *e) {
    int64_t len = (int64_t)strlen(e->info.name);
    if (dlrni_lookup_find(&a->names, e->info.name, len) >= 0)
        return dlrn_fail(a->ctx, DLRN_ERR_FORMAT, "%s: tensor '%s': expected once, found twice",
                         a->path, e->info.name);
    if (!DLRNI_GROW(a->ctx, &a->entries, &a->cap, a->count, a->count + 1) ||
        !dlrni_lookup_add(a->ctx, &a->names, e->info.name, len, a->count))
        return DLRN_ERR_MEMORY;
    a->entries[a->count++] = *e;
    return DLRN_OK;
}

/* "2, 3": as Python shows a shape, for errors and for the header of a .npy. */
DLRNI_INTERNAL void dlrni_shape_text(const int64_t *shape, int ndim, char *text, size_t size) {
    size_t at = 0;
    text[0] = 0;
    for (int i = 0; i < ndim && at < size; i++)
        at +=
            (size_t)dlrni_print(text + at, size - at, "%s%lld", i ? ", " : "", (long long)shape[i]);
}

/* The number of elements. 0: a negative size, or a product that overflows. With a 0 among the sizes
   the others may be anything, since numpy and torch save such tensors: [0, 2^62] is empty, and must
   not count as an overflow. */
DLRNI_INTERNAL int dlrni_numel(const int64_t *shape, int ndim, int64_t *out) {
    int fits = 1, none = 0;
    *out = 1;
    for (int i = 0; i < ndim; i++) {
        if (shape[i] < 0) return 0;
        none |= shape[i] == 0;
        fits &= dlrni_mul(*out, shape[i], out);
    }
    if (none) *out = 0;
    return fits || none;
}

/* The index of the last element of a tensor that has elements; -1: a negative stride, or it
   overflows. Without negative strides this is the greatest index, so one comparison checks all
   elements. torch has no negative strides; numpy's are gone once an array is saved. */
DLRNI_INTERNAL int64_t dlrni_last_element(const dlrni_entry *e) {
    int64_t last = e->offset, span;
    for (int i = 0; i < e->info.ndim; i++)
        if (e->stride[i] < 0 || !dlrni_mul(e->stride[i], e->info.shape[i] - 1, &span) ||
            !dlrni_add(last, span, &last))
            return -1;
    return e->offset < 0 ? -1 : last;
}

/* Adds a tensor that lies in `bytes` bytes of storage. e holds dtype, ndim, shape, and storage,
   offset, stride and swap; dlrni_dense_strides sets the strides of a tensor without gaps. The name
   is copied; two tensors of one name are an error.

   A stride of 0 is fine: torch writes it for a tensor that was expanded. But it lets a few bytes
   stand for any number of elements, and a caller allocates them all, so no tensor may have more
   elements than its storage, or the file, has bytes.

   A 0 byte in a name is refused, because names are C texts from here on: "w\0a" and "w\0b" would be
   one. */
DLRNI_INTERNAL dlrn_status dlrni_archive_add(dlrn_archive *a, const char *name, int64_t name_len,
                                             const dlrni_entry *source, uint64_t bytes) {
    dlrni_entry e = *source;
    int len = (int)name_len;
    char text[128];
    dlrni_shape_text(e.info.shape, e.info.ndim, text, sizeof text);
    if (!dlrni_numel(e.info.shape, e.info.ndim, &e.info.numel))
        return dlrn_fail(a->ctx, DLRN_ERR_FORMAT, "%s: tensor '%.*s': shape [%s] overflows",
                         a->path, len, name, text);
    uint64_t held = bytes / (uint64_t)dlrni_dtype_size(e.info.dtype);
    uint64_t max = held > a->map.size ? held : a->map.size;
    int64_t last = e.info.numel ? dlrni_last_element(&e) : 0;
    if (e.offset < 0 || last < 0 || (e.info.numel && (uint64_t)last >= held) ||
        (uint64_t)e.info.numel > max)
        return dlrn_fail(a->ctx, DLRN_ERR_FORMAT,
                         "%s: tensor '%.*s': shape [%s] at offset %lld does not fit its storage: "
                         "expected at most %llu elements",
                         a->path, len, name, text, (long long)e.offset, (unsigned long long)held);
    if (name_len && memchr(name, 0, (size_t)name_len))
        return dlrn_fail(a->ctx, DLRN_ERR_FORMAT, "%s: tensor '%.*s': a 0 byte in its name",
                         a->path, len, name);
    e.info.name = dlrni_archive_text(a, name, name_len);
    return e.info.name ? dlrni_archive_adopt(a, &e) : DLRN_ERR_MEMORY;
}

/* Strides of a tensor without gaps, its last dimension (or its first, for Fortran) varying fastest.
   An overflow gives 0: dlrni_archive_add then finds that the shape overflows, and reports it in one
   place for all formats. */
DLRNI_INTERNAL void dlrni_dense_strides(dlrni_entry *e, int first_fastest) {
    int64_t step = 1;
    for (int i = 0; i < e->info.ndim; i++) {
        int d = first_fastest ? i : e->info.ndim - 1 - i;
        e->stride[d] = step;
        if (!dlrni_mul(step, e->info.shape[d], &step)) step = 0;
    }
}

DLRNI_COLD_END
/* ---- Reading elements ---- */

/* All other types are integers or bools, which may stand for an index, or for a weight that was
   quantised: without its scale the number means nothing. */
DLRNI_INTERNAL int dlrni_is_float(dlrn_dtype type) {
    return type == DLRN_F32 || type == DLRN_F16 || type == DLRN_BF16 || type == DLRN_F64;
}

/* The bits of one element, which may lie at any address: a zip aligns its members as it likes. */
DLRNI_INTERNAL uint64_t dlrni_element_bits(const unsigned char *p, int size, int swap) {
    return swap ? dlrni_from_be(p, size) : dlrni_le(p, size);
}

/* An integer of `size` bytes; signed types are extended to 64 bits, by way of the type of their
   width. A U64 from 2^63 on comes out negative, and is then refused where indices are checked. */
DLRNI_INTERNAL int64_t dlrni_element_integer(uint64_t u, dlrn_dtype type) {
    switch (type) {
    case DLRN_I32: return (int32_t)(uint32_t)u;
    case DLRN_I16: return (int16_t)(uint16_t)u;
    case DLRN_I8: return (int8_t)(uint8_t)u;
    default: return (int64_t)u;
    }
}

/* An element of any type as a double; integers beyond 2^53 are rounded. F64 stays exact here, and
   is rounded to f32 once, by the caller. */
DLRNI_INTERNAL double dlrni_element_real(uint64_t u, dlrn_dtype type) {
    double value;
    switch (type) {
    case DLRN_F32: return (double)dlrni_float_of_bits((uint32_t)u);
    case DLRN_F16: return (double)dlrni_f16_to_f32((uint16_t)u);
    case DLRN_BF16: return (double)dlrni_bf16_to_f32((uint16_t)u);
    case DLRN_F64: memcpy(&value, &u, sizeof value); return value;
    case DLRN_U64: return (double)u;
    default: return (double)dlrni_element_integer(u, type);
    }
}

/* Reads n elements, `step` elements apart, from index `first` on: to f32, or, with dst NULL, to
   integers. f32 and 16-bit floats of this machine's byte order without gaps, which is nearly every
   file, go at the speed of memory; the loop is several times slower. */
DLRNI_INTERNAL void dlrni_entry_run(const dlrn_context *ctx, const dlrni_entry *e, int64_t first,
                                    int64_t n, int64_t step, float *dst, int64_t *integers) {
    const dlrn_dtype type = e->info.dtype;
    const int64_t size = dlrni_dtype_size(type);
    const unsigned char *p = e->data + first * size;
    if (dst && step == 1 && !e->swap && dlrni_little_endian()) {
        if (type == DLRN_F32) memcpy(dst, p, (size_t)n * sizeof *dst);
        if (type == DLRN_F16 || type == DLRN_BF16) ctx->k->widen(type, (const char *)p, dst, n);
        if (type == DLRN_F32 || type == DLRN_F16 || type == DLRN_BF16) return;
    }
    for (int64_t i = 0; i < n; i++, p += step * size) {
        uint64_t u = dlrni_element_bits(p, (int)size, e->swap);
        if (dst)
            dst[i] = (float)dlrni_element_real(u, type);
        else
            integers[i] = dlrni_element_integer(u, type);
    }
}

/* Does the tensor lie row by row without gaps? Then any stretch of its elements is one run. The
   stride of a dimension of size 1 is never used. */
DLRNI_INTERNAL int dlrni_is_dense(const dlrni_entry *e) {
    int64_t step = 1;
    for (int i = e->info.ndim - 1; i >= 0; step *= e->info.shape[i], i--)
        if (e->info.shape[i] != 1 && e->stride[i] != step) return 0;
    return 1;
}

/* Reads rows [first, first + rows) of a tensor seen as a matrix: a row runs along the last
   dimension, and the others, in row-major order, number the rows. The tensor has elements and two
   dimensions or more, so no product here can overflow: dlrni_archive_add has multiplied them. */
DLRNI_INTERNAL void dlrni_entry_rows(const dlrn_context *ctx, const dlrni_entry *e, int64_t first,
                                     int64_t rows, float *dst, int64_t *integers) {
    const int last = e->info.ndim - 1;
    const int64_t cols = e->info.shape[last];
    int64_t at[DLRN_MAX_DIMS] = {0}, left = first;
    if (dlrni_is_dense(e)) {
        dlrni_entry_run(ctx, e, e->offset + first * cols, rows * cols, 1, dst, integers);
        return;
    }
    for (int i = last - 1; i >= 0; left /= e->info.shape[i], i--) at[i] = left % e->info.shape[i];
    for (int64_t r = 0; r < rows; r++) {
        int64_t from = e->offset; /* summed anew for each row: cheap beside the row */
        for (int i = 0; i < last; i++) from += at[i] * e->stride[i];
        dlrni_entry_run(ctx, e, from, cols, e->stride[last], dst ? dst + r * cols : NULL,
                        integers ? integers + r * cols : NULL);
        /* the next index, like an odometer */
        for (int i = last - 1; i >= 0 && ++at[i] == e->info.shape[i]; i--) at[i] = 0;
    }
}

/* Reads slices [first, first + rows) of the first dimension, row-major. A tensor of one dimension
   is one run of its rows; a tensor without dimensions is one element. */
DLRNI_INTERNAL void dlrni_entry_read(const dlrn_context *ctx, const dlrni_entry *e, int64_t first,
                                     int64_t rows, float *dst, int64_t *integers) {
    const int n = e->info.ndim;
    int64_t each = 1; /* rows of the matrix in a slice */
    for (int i = 1; i < n - 1; i++) each *= e->info.shape[i];
    if (n > 1)
        dlrni_entry_rows(ctx, e, first * each, rows * each, dst, integers);
    else
        dlrni_entry_run(ctx, e, e->offset + (n ? first * e->stride[0] : 0), n ? rows : 1,
                        n ? e->stride[0] : 1, dst, integers);
}

/* Refuses integers where floats mean something: quantised weights, or the bits of bf16 numbers in
   an array of uint16, would load as whole numbers without an error. A single number is read from
   any type: k and steps are integers by nature. */
DLRNI_INTERNAL dlrn_status dlrni_expect_floats(const dlrn_archive *a, const dlrni_entry *e) {
    if (dlrni_is_float(e->info.dtype) || e->info.numel <= 1) return DLRN_OK;
    return dlrn_fail(a->ctx, DLRN_ERR_UNSUPPORTED,
                     "%s: tensor '%s': expected F16, BF16, F32 or F64, found %s", a->path,
                     e->info.name, dlrni_type_name(e->info.dtype));
}

/* rows <= all - first, and not first + rows <= all, which could overflow. An empty tensor is not
   read: its other sizes may be beyond any bound. */
DLRN_API dlrn_status dlrn_archive_read(dlrn_archive *a, int64_t index, int64_t first, int64_t rows,
                                       float *dst) {
    DLRNI_REQUIRE(a->ctx, index >= 0 && index < a->count, "no such tensor");
    const dlrni_entry *e = &a->entries[index];
    int64_t all = e->info.ndim ? e->info.shape[0] : 1;
    if (rows == -1 && first >= 0) rows = all - first;
    DLRNI_REQUIRE(a->ctx, first >= 0 && rows >= 0 && first <= all && rows <= all - first,
                  "rows out of range");
    DLRNI_TRY(dlrni_expect_floats(a, e));
    if (e->info.numel) dlrni_entry_read(a->ctx, e, first, rows, dst, NULL);
    return DLRN_OK;
}

/* Reads a tensor of integers or bools without rounding. Numbers of other types are refused rather
   than truncated. An index that went through f32 would be wrong beyond 2^24. */
DLRNI_INTERNAL dlrn_status dlrni_archive_read_i64(dlrn_archive *a, int64_t index, int64_t *dst) {
    DLRNI_REQUIRE_IN(a->ctx, a->path, index >= 0 && index < a->count, "no such tensor");
    const dlrni_entry *e = &a->entries[index];
    if (dlrni_is_float(e->info.dtype))
        return dlrn_fail(a->ctx, DLRN_ERR_FORMAT, "%s: tensor '%s': expected integers, found %s",
                         a->path, e->info.name, dlrni_type_name(e->info.dtype));
    if (e->info.numel)
        dlrni_entry_read(a->ctx, e, 0, e->info.ndim ? e->info.shape[0] : 1, NULL, dst);
    return DLRN_OK;
}

/* ---- The archive as an object ---- */
DLRNI_COLD_BEGIN

/* An empty archive; format "?" until its reader is known, so that errors can name it at any
   time. */
DLRNI_INTERNAL dlrn_status dlrni_archive_new(dlrn_context *ctx, const char *path,
                                             dlrn_archive **out) {
    dlrn_archive *a = DLRNI_NEW_ZERO(ctx, dlrn_archive, 1);
    *out = NULL;
    if (!a) return DLRN_ERR_MEMORY;
    a->ctx = ctx;
    a->format = "?";
    a->path = DLRNI_NEW(ctx, char, (int64_t)strlen(path) + 1);
    if (!a->path) {
        dlrn_free(ctx, a);
        return DLRN_ERR_MEMORY;
    }
    memcpy(a->path, path, strlen(path) + 1);
    *out = a;
    return DLRN_OK;
}

/* The shards of an index belong to it: its entries and their names point into them. Any part may be
   missing: this also frees an archive whose opening failed half-way. */
DLRN_API void dlrn_archive_close(dlrn_archive *a) {
    if (!a) return;
    dlrn_context *ctx = a->ctx;
    for (int64_t i = 0; i < a->n_shards; i++) dlrn_archive_close(a->shards[i]);
    for (int64_t i = 0; i < a->n_blocks; i++) dlrn_free(ctx, a->blocks[i]);
    if (!a->borrowed) dlrni_map_close(ctx, &a->map);
    dlrn_free(ctx, a->shards);
    dlrn_free(ctx, a->blocks);
    dlrn_free(ctx, a->notes);
    dlrn_free(ctx, a->entries);
    dlrn_free(ctx, a->names.slot);
    dlrn_free(ctx, a->path);
    dlrn_free(ctx, a);
}

DLRN_API dlrn_archive_info dlrn_archive_describe(const dlrn_archive *a) {
    dlrn_archive_info info = {a->path, a->format, a->count};
    return info;
}

/* Out of range is not an error: callers pass the result of dlrn_archive_find. */
DLRN_API const dlrn_tensor_info *dlrn_archive_tensor(const dlrn_archive *a, int64_t index) {
    return index >= 0 && index < a->count ? &a->entries[index].info : NULL;
}

DLRN_API int64_t dlrn_archive_find(const dlrn_archive *a, const char *name) {
    return dlrni_lookup_find(&a->names, name, (int64_t)strlen(name));
}

/* ---- Writing elements ---- */

/* Elements and bytes of a tensor to be written. Checked before a byte is written: these sizes come
   from the caller, and become offsets in the file. */
DLRNI_INTERNAL dlrn_status dlrni_tensor_bytes(dlrn_context *ctx, const dlrn_tensor_out *t,
                                              int64_t *numel, int64_t *bytes) {
    if ((unsigned)t->dtype >= DLRN_DTYPE_COUNT)
        return dlrn_fail(ctx, DLRN_ERR_ARGUMENT, "tensor '%s' to be written: unknown type %d",
                         t->name, (int)t->dtype);
    if (t->ndim >= 0 && t->ndim <= DLRN_MAX_DIMS && dlrni_numel(t->shape, t->ndim, numel) &&
        dlrni_mul(*numel, dlrni_dtype_size(t->dtype), bytes))
        return DLRN_OK;
    return dlrn_fail(ctx, DLRN_ERR_ARGUMENT, "tensor '%s' to be written: malformed shape", t->name);
}

/* Writes elements low byte first, on any machine: every format here is read as such. dlrni_from_be
   reads an element of this machine, which is high byte first where this loop runs. */
DLRNI_INTERNAL void dlrni_sink_elements(dlrni_sink *o, const void *data, int64_t numel,
                                        dlrn_dtype dtype) {
    const int size = (int)dlrni_dtype_size(dtype);
    const unsigned char *p = (const unsigned char *)data;
    if (dlrni_little_endian() || size == 1) {
        dlrni_sink_write(o, data, (uint64_t)numel * (uint64_t)size);
        return;
    }
    for (int64_t i = 0; i < numel; i++, p += size) {
        unsigned char raw[8];
        dlrni_put_le(raw, dlrni_from_be(p, size), size);
        dlrni_sink_write(o, raw, (uint64_t)size);
    }
}

/* ------------------------------------------------------------------------------------------ */
// >>safetensors
/* .safetensors:

      8 bytes    N, low byte first
      N bytes    JSON: {"NAME": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, ...,
                        "__metadata__": {"key": "text", ...}}
      the rest   the data; offsets count from here

   Each tensor of the JSON points into the data, counted from the end of the header:

      |N = 120 | {"a": ... [0, 24]}, "b": ... [24, 32]}   pad | a: 24 bytes         | b: 8   |
      0        8                                             128                   152      160

   The data must be covered without gap or overlap. Then the size of the file follows from its
   header, and no byte can hold what no reader reports. Tensors may come in any order in the JSON;
   the Python library writes them by type, widest first, and then by name. */

/* Bytes of JSON. The first 8 bytes of any file could claim a header of 2^64; the reference reader
   has a bound of 100 MB for the same reason. A model of 10,000 tensors needs 1 MB. */
enum { DLRNI_SAFETENSORS_MAX = 100 << 20 };

/* Reads dtype, shape and data_offsets of one tensor; messages name it. Sizes go through
   dlrni_json_size: whole, not negative, and exact in a double. Types that we do not read, such as
   F8_E4M3, are reported as unsupported, since the file is good. */
DLRNI_INTERNAL dlrn_status dlrni_safetensors_parse(dlrn_archive *a, const dlrn_json *t,
                                                   dlrni_entry *e, int64_t *begin, int64_t *end) {
    const char *dtype = dlrn_json_text(t, "dtype", "");
    const dlrn_json *shape = dlrn_json_get(t, "shape"), *offsets = dlrn_json_get(t, "data_offsets");
    int type = 0; /* a dozen names: no table is needed */
    while (type < DLRN_DTYPE_COUNT && strcmp(dtype, dlrni_dtypes[type].safetensors)) type++;
    if (type == DLRN_DTYPE_COUNT)
        return dlrn_fail(a->ctx, DLRN_ERR_UNSUPPORTED, "%s: tensor '%s': unsupported dtype '%.20s'",
                         a->path, t->key, dtype);
    /* a shape of [] is one number */
    if (!shape || shape->type != DLRN_JSON_ARRAY || !offsets || offsets->type != DLRN_JSON_ARRAY ||
        offsets->count != 2 || shape->count > DLRN_MAX_DIMS)
        return dlrn_fail(a->ctx, DLRN_ERR_FORMAT,
                         "%s: tensor '%s': expected a shape of at most %d sizes and two "
                         "data_offsets",
                         a->path, t->key, DLRN_MAX_DIMS);
    /* count == 2: both values are there */
    int good = dlrni_json_size(offsets->first, begin) &&
               dlrni_json_size(offsets->first->next, end) && *begin <= *end;
    for (const dlrn_json *v = shape->first; v && good; v = v->next)
        good = dlrni_json_size(v, &e->info.shape[e->info.ndim++]);
    e->info.dtype = (dlrn_dtype)type;
    if (good) return DLRN_OK;
    return dlrn_fail(a->ctx, DLRN_ERR_FORMAT, "%s: tensor '%s': malformed shape or data_offsets",
                     a->path, t->key);
}

/* Adds a tensor whose bytes must be exactly those that its shape needs. More would be bytes that
   nobody reads, and fewer would be read from the next tensor. need is computed with checks, so a
   shape that overflows cannot come out as the right number. */
DLRNI_INTERNAL dlrn_status dlrni_safetensors_tensor(dlrn_archive *a, const dlrn_json *t,
                                                    dlrni_cursor data) {
    dlrni_entry e;
    int64_t begin = 0, end = 0, need = 0;
    memset(&e, 0, sizeof e);
    DLRNI_TRY(dlrni_safetensors_parse(a, t, &e, &begin, &end));
    if (!dlrni_numel(e.info.shape, e.info.ndim, &need) ||
        !dlrni_mul(need, dlrni_dtype_size(e.info.dtype), &need))
        return dlrn_fail(a->ctx, DLRN_ERR_FORMAT,
                         "%s: tensor '%s': malformed shape or data_offsets", a->path, t->key);
    /* begin <= end was checked, so begin is within the data, too */
    if (end > data.end - data.p || end - begin != need)
        return dlrn_fail(a->ctx, DLRN_ERR_FORMAT,
                         "%s: tensor '%s': expected %lld bytes within the file's %lld bytes of "
                         "data, found data_offsets [%lld, %lld]",
                         a->path, t->key, (long long)need, (long long)(data.end - data.p),
                         (long long)begin, (long long)end);
    e.data = data.p + begin;
    dlrni_dense_strides(&e, 0);
    return dlrni_archive_add(a, t->key, t->key_len, &e, (uint64_t)(end - begin));
}

/* The bytes of one tensor, counted from the start of the data. */
typedef struct dlrni_range {
    int64_t begin, end;
} dlrni_range;

/* By begin, then by end: an empty tensor comes before the one that starts at the same byte.
   Otherwise a good file with an empty tensor would look like an overlap. */
DLRNI_INTERNAL int dlrni_range_order(const void *a, const void *b) {
    const dlrni_range *x = (const dlrni_range *)a, *y = (const dlrni_range *)b;
    if (x->begin != y->begin) return x->begin < y->begin ? -1 : 1;
    return x->end < y->end ? -1 : x->end > y->end;
}

/* Checks that the tensors cover the data without gap or overlap: bytes that nobody reads could hide
   anything. Sorted, because the JSON may list them in any order. Then each must begin where the one
   before ended: a gap and an overlap are one test. So a file cannot be a safetensors for one
   program and something else, in the gaps, for another. */
DLRNI_INTERNAL dlrn_status dlrni_safetensors_cover(dlrn_archive *a, const unsigned char *data,
                                                   int64_t size) {
    dlrni_range *r = DLRNI_NEW(a->ctx, dlrni_range, a->count); /* 16 bytes a tensor */
    int64_t at = 0;
    if (!r) return DLRN_ERR_MEMORY;
    for (int64_t i = 0; i < a->count; i++) {
        /* the entry is checked, so its bytes are numel times the size of its type */
        r[i].begin = a->entries[i].data - data;
        r[i].end =
            r[i].begin + a->entries[i].info.numel * dlrni_dtype_size(a->entries[i].info.dtype);
    }
    /* equal ranges may change places: they are both empty, or an overlap */
    qsort(r, (size_t)a->count, sizeof *r, dlrni_range_order);
    int64_t n = 0;
    for (; n < a->count && r[n].begin == at; n++) at = r[n].end;
    dlrn_free(a->ctx, r);
    if (n == a->count && at == size) return DLRN_OK;
    return dlrn_fail(a->ctx, DLRN_ERR_FORMAT,
                     "%s: the tensors leave a gap or overlap at byte %lld of %lld of the data",
                     a->path, (long long)at, (long long)size);
}

/* Adds the tensors and notes of a header. A value of __metadata__ that is not a text is ignored,
   although the reference reader refuses it: notes are never needed to read a tensor. Whether the
   data is covered is known when all tensors are. */
DLRNI_INTERNAL dlrn_status dlrni_safetensors_header(dlrn_archive *a, const dlrn_json *root,
                                                    dlrni_cursor data) {
    if (root->type != DLRN_JSON_OBJECT)
        return dlrn_fail(a->ctx, DLRN_ERR_FORMAT, "%s: expected a JSON object as header", a->path);
    for (const dlrn_json *t = root->first; t; t = t->next) {
        if (strcmp(t->key, "__metadata__")) {
            DLRNI_TRY(dlrni_safetensors_tensor(a, t, data));
            continue;
        }
        /* "format": "pt" is the usual one */
        for (const dlrn_json *m = t->first; m; m = m->next)
            if (m->type == DLRN_JSON_STRING)
                DLRNI_TRY(dlrni_archive_annotate(a, m->key, m->key_len, m->text, m->text_len));
    }
    return dlrni_safetensors_cover(a, data.p, data.end - data.p);
}

/* The header's length comes from the file, so it is bounded before it is used, and the cursor
   refuses one beyond the end. The tree of the JSON is freed at the end: entries keep copies of
   their names. A download that was cut fails here or in dlrni_safetensors_cover, and not when a
   tensor is read. */
DLRNI_INTERNAL dlrn_status dlrni_safetensors_open(dlrn_archive *a) {
    dlrni_cursor c = {a->map.p, a->map.p + a->map.size};
    const unsigned char *head = dlrni_take(&c, 8), *text = NULL;
    uint64_t size = head ? dlrni_le(head, 8) : 0;
    dlrn_json *root;
    /* both bounds: the cursor alone would take a header of any size from a large file */
    if (head && size <= DLRNI_SAFETENSORS_MAX) text = dlrni_take(&c, size);
    if (!text)
        return dlrn_fail(a->ctx, DLRN_ERR_FORMAT,
                         "%s: expected a safetensors header of at most 100 MiB within the file's "
                         "%llu bytes, found one of %llu bytes",
                         a->path, (unsigned long long)a->map.size, (unsigned long long)size);
    a->format = "safetensors";
    DLRNI_TRY(dlrn_json_parse(a->ctx, (const char *)text, (size_t)size, a->path, &root));
    dlrn_status s = dlrni_safetensors_header(a, root, c);
    dlrn_free(a->ctx, root);
    return s;
}

/* ---- Writing ---- */

/* Refuses what the header cannot express: text that is not UTF-8, a tensor named __metadata__, and
   sizes beyond 2^53 (possible in an empty tensor), which JSON readers round. Otherwise the file
   would be written, and refused by every reader later, when it is needed. */
DLRNI_INTERNAL dlrn_status dlrni_safetensors_fit(dlrn_context *ctx, const dlrn_tensor_out *tensors,
                                                 int64_t count, const char *const *metadata) {
    for (const dlrn_tensor_out *t = tensors; t < tensors + count; t++) {
        if (!dlrni_is_utf8(t->name) || !strcmp(t->name, "__metadata__"))
            return dlrn_fail(
                ctx, DLRN_ERR_ARGUMENT,
                "tensor '%.200s' to be written: expected a name in UTF-8 other than __metadata__",
                t->name);
        for (int i = 0; i < t->ndim && i < DLRN_MAX_DIMS; i++)
            if (t->shape[i] > (int64_t)1 << 53)
                return dlrn_fail(ctx, DLRN_ERR_ARGUMENT,
                                 "tensor '%s' to be written: malformed shape", t->name);
    }
    for (; metadata && *metadata; metadata++)
        if (!dlrni_is_utf8(*metadata))
            return dlrn_fail(ctx, DLRN_ERR_ARGUMENT,
                             "metadata '%.200s' to be written: expected UTF-8", *metadata);
    return DLRN_OK;
}

/* The header, padded with blanks so that the data starts at a multiple of 8. An error is reported
   through the sink. The reference writer pads to 8, too, so that F64 can be mapped where it lies.
   Tensors keep the order of the caller. */
DLRNI_INTERNAL void dlrni_safetensors_json(dlrni_sink *o, dlrni_json_writer *w,
                                           const dlrn_tensor_out *tensors, int64_t count,
                                           const char *const *metadata) {
    int64_t at = 0, numel = 0, bytes = 0;
    dlrni_json_open(w, NULL, "{");
    if (metadata && metadata[0]) {
        /* first, as the reference writer has it */
        dlrni_json_open(w, "__metadata__", "{");
        for (int i = 0; metadata[i]; i += 2) dlrni_json_put_text(w, metadata[i], metadata[i + 1]);
        dlrni_json_close(w, "}");
    }
    for (int64_t i = 0; i < count; i++, at += bytes) {
        const dlrn_tensor_out *t = &tensors[i];
        dlrni_sink_fail(o, dlrni_tensor_bytes(o->ctx, t, &numel, &bytes));
        if (o->status != DLRN_OK) break;
        dlrni_json_open(w, t->name, "{");
        dlrni_json_put_text(w, "dtype", dlrni_dtypes[t->dtype].safetensors);
        dlrni_json_open(w, "shape", "[");
        for (int d = 0; d < t->ndim; d++) dlrni_json_put_signed(w, NULL, t->shape[d]);
        dlrni_json_close(w, "]");
        dlrni_json_open(w, "data_offsets", "[");
        dlrni_json_put_signed(w, NULL, at);
        /* cannot overflow: the tensors are all in memory */
        dlrni_json_put_signed(w, NULL, at + bytes);
        dlrni_json_close(w, "]");
        dlrni_json_close(w, "}");
    }
    dlrni_json_close(w, "}");
    while (w->out.len % 8 && !w->out.failed) dlrni_bytes_add(&w->out, " ", 1);
    if (w->out.failed) dlrni_sink_fail(o, DLRN_ERR_MEMORY);
}

/* The header needs all offsets, which follow from the shapes: no second pass over the data. The
   sizes are computed a second time for the data, which is cheaper than keeping them. */
DLRNI_INTERNAL dlrn_status dlrni_safetensors_write(dlrni_sink *o, const dlrn_tensor_out *tensors,
                                                   int64_t count, const char *const *metadata) {
    dlrni_json_writer w = dlrni_json_to_memory(o->ctx);
    unsigned char head[8];
    /* every check comes before the first byte: a pipe cannot take it back */
    dlrni_sink_fail(o, dlrni_safetensors_fit(o->ctx, tensors, count, metadata));
    if (o->status != DLRN_OK) return o->status;
    dlrni_safetensors_json(o, &w, tensors, count, metadata);
    dlrni_put_le(head, (uint64_t)w.out.len, 8);
    dlrni_sink_write(o, head, 8);
    dlrni_sink_write(o, w.out.p, (uint64_t)w.out.len);
    dlrn_free(o->ctx, w.out.p);
    /* in the order of the header: there is no padding between tensors */
    for (int64_t i = 0; i < count && o->status == DLRN_OK; i++) {
        int64_t numel = 0, bytes;
        dlrni_sink_fail(o, dlrni_tensor_bytes(o->ctx, &tensors[i], &numel, &bytes));
        if (o->status == DLRN_OK) dlrni_sink_elements(o, tensors[i].data, numel, tensors[i].dtype);
    }
    return o->status;
}

/* ------------------------------------------------------------------------------------------ */
// >>npy
/* .npy:

      \x93NUMPY  major minor   8 bytes: magic and version, 1.0 to 3.x
      length                   of the text: 2 bytes in version 1, 4 bytes later, low byte first
      text                     a Python dictionary, padded with blanks, closed with a newline:
                               {'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }
      data                     without gaps; the first dimension varies fastest for Fortran order

   descr is byte order ('<' low byte first, '>' high byte first, '|' single bytes), kind and size.
   The text is searched for its three keys; it is not parsed as Python. numpy.save writes them in
   this order; other writers need not. Objects, 'O', are a pickle in place of the data: their type
   is not a number, so they are refused, and nothing of them is run. */

enum {
    DLRNI_NPY_TEXT_MAX = 4096, /* bytes of text read; numpy writes 118 for any array of numbers */
    DLRNI_NPY_HEAD = 128       /* bytes that we write before the data: always the same, so that the
                                  number of rows can be filled in at the end */
};

/* What the text of a header says. */
typedef struct dlrni_npy_head {
    dlrn_dtype dtype;
    int ndim, fortran, swap;
    int text; /* 'S' or 'U': bytes or UTF-32 instead of numbers */
    int64_t shape[DLRN_MAX_DIMS];
} dlrni_npy_head;

/* The value that follows a key; NULL: no such key. The first occurrence counts. A text could hold a
   key inside a value, but then it is not a type that we read, and the worst is a wrong shape, which
   is checked against the data. */
DLRNI_INTERNAL const char *dlrni_npy_field(const char *text, const char *key) {
    const char *at = strstr(text, key);
    if (!at) return NULL;
    at += strlen(key);
    while (*at == ' ') at++;
    if (*at != ':') return NULL;
    for (at++; *at == ' ';) at++;
    return at;
}

/* Reads descr; 0: not a number type. All types that we read have two characters, such as f4; then
   the quote must close, so that "f4x" is refused. '=', the order of the machine that wrote the
   file, is taken for low byte first, as nearly all machines have it; numpy never writes it. V2, two
   bytes of no known meaning, is how numpy saves the bf16 of ml_dtypes (JAX). Texts are noted for
   dlrni_arrays_text. */
DLRNI_INTERNAL int dlrni_npy_dtype(const char *descr, dlrni_npy_head *h) {
    if (descr[0] != '\'' || !descr[1] || !strchr("<>|=", descr[1])) return 0;
    h->swap = descr[1] == '>';
    h->text = descr[2] == 'S' || (descr[2] == 'U' && !h->swap) ? descr[2] : 0;
    for (int i = 0; i < DLRN_DTYPE_COUNT; i++)
        if (*dlrni_dtypes[i].npy && !strncmp(descr + 2, dlrni_dtypes[i].npy, 2) &&
            descr[4] == '\'') {
            h->dtype = (dlrn_dtype)i;
            return 1;
        }
    h->dtype = DLRN_BF16;
    return !strncmp(descr + 2, "V2'", 3);
}

/* "(3, 4)", "(3,)" or "()". Python wants a comma after a single size. Each digit is added with a
   check: sizes of any length stand in a text. */
DLRNI_INTERNAL int dlrni_npy_shape(const char *at, dlrni_npy_head *h) {
    if (*at++ != '(') return 0;
    for (h->ndim = 0;;) {
        while (*at == ' ' || *at == ',') at++;
        if (*at == ')') return 1;
        if (*at < '0' || *at > '9' || h->ndim == DLRN_MAX_DIMS) return 0;
        int64_t n = 0;
        for (; *at >= '0' && *at <= '9'; at++)
            if (!dlrni_mul(n, 10, &n) || !dlrni_add(n, *at - '0', &n)) return 0;
        h->shape[h->ndim++] = n;
    }
}

/* Reads the header at c and leaves c at the data. `what` names the file or member in errors. The
   text is copied, because it has no 0 at its end, and strstr would run into the data. */
DLRNI_INTERNAL dlrn_status dlrni_npy_parse(dlrn_context *ctx, const char *what, dlrni_cursor *c,
                                           dlrni_npy_head *h) {
    char text[DLRNI_NPY_TEXT_MAX];
    const unsigned char *magic = dlrni_take(c, 8), *raw;
    const int width = magic && magic[6] >= 2 ? 4 : 2;
    const unsigned char *length = magic ? dlrni_take(c, (uint64_t)width) : NULL;
    uint64_t n = length ? dlrni_le(length, width) : 0;
    if (!length || memcmp(magic, "\x93NUMPY", 6) || magic[6] < 1 || magic[6] > 3 ||
        n >= sizeof text || !(raw = dlrni_take(c, n)))
        return dlrn_fail(ctx, DLRN_ERR_FORMAT,
                         "%s: expected a .npy header, found a truncated one or none", what);
    memcpy(text, raw, (size_t)n); /* n < sizeof text: one byte is left for the 0 */
    text[n] = 0;
    const char *descr = dlrni_npy_field(text, "'descr'"),
               *order = dlrni_npy_field(text, "'fortran_order'"),
               *shape = dlrni_npy_field(text, "'shape'");
    if (!descr || !order || !shape || (strncmp(order, "True", 4) && strncmp(order, "False", 5)) ||
        !dlrni_npy_shape(shape, h))
        return dlrn_fail(ctx, DLRN_ERR_FORMAT,
                         "%s: malformed .npy header: expected descr, fortran_order and shape",
                         what);
    h->fortran = *order == 'T';
    if (dlrni_npy_dtype(descr, h)) return DLRN_OK;
    /* show the name, or the list of fields of a structure */
    size_t shown = *descr == '\'' ? strcspn(descr + 1, "'") + 2 : strcspn(descr, "}");
    return dlrn_fail(
        ctx, DLRN_ERR_UNSUPPORTED,
        "%s: unsupported dtype %.*s: expected a float (bf16 as V2), an integer or a bool", what,
        (int)dlrni_min((int64_t)shown, 24), descr);
}

/* Adds the array whose header is at c. All bytes after the header are its storage; more than its
   shape needs are accepted, as numpy does when it reads arrays one after another from a file. */
DLRNI_INTERNAL dlrn_status dlrni_npy_add(dlrn_archive *a, const char *what, const char *name,
                                         int64_t name_len, dlrni_cursor c) {
    dlrni_npy_head h;
    dlrni_entry e;
    memset(&h, 0, sizeof h);
    memset(&e, 0, sizeof e);
    DLRNI_TRY(dlrni_npy_parse(a->ctx, what, &c, &h));
    e.info.dtype = h.dtype;
    e.info.ndim = h.ndim;
    memcpy(e.info.shape, h.shape, sizeof h.shape);
    e.data = c.p;
    e.swap = h.swap;
    dlrni_dense_strides(&e, h.fortran);
    return dlrni_archive_add(a, name, name_len, &e, (uint64_t)(c.end - c.p));
}

/* A .npy is an archive of one tensor without a name. */
DLRNI_INTERNAL dlrn_status dlrni_npy_archive(dlrn_archive *a) {
    dlrni_cursor c = {a->map.p, a->map.p + a->map.size};
    a->format = "npy";
    return dlrni_npy_add(a, a->path, "", 0, c);
}

/* ---- Writing ---- */

/* The 128 bytes before the data. descr NULL: that of t's type. 128, not the least multiple of 64:
   the header of 0 rows must have room for any number of rows, which is written over it at the end.
   A shape of eight large sizes would not fit; numpy needs a longer header for it, and we refuse
   it. */
DLRNI_INTERNAL dlrn_status dlrni_npy_header(dlrn_context *ctx, const dlrn_tensor_out *t,
                                            const char *descr, unsigned char *head) {
    enum { BEFORE = 10, SHAPE_MAX = 60 }; /* so that the text cannot outgrow its 118 bytes */
    char shape[80], code[4], text[2 * DLRNI_NPY_HEAD];
    dlrni_print(code, sizeof code, "%c%s", dlrni_dtype_size(t->dtype) == 1 ? '|' : '<',
                dlrni_dtypes[t->dtype].npy);
    dlrni_shape_text(t->shape, t->ndim, shape, sizeof shape);
    if ((!descr && !code[1]) || strlen(shape) > SHAPE_MAX)
        return dlrn_fail(ctx, DLRN_ERR_UNSUPPORTED,
                         "tensor '%s': .npy has no type %s, or no room for its shape", t->name,
                         dlrni_type_name(t->dtype));
    dlrni_print(text, sizeof text, "{'descr': '%s', 'fortran_order': False, 'shape': (%s%s), }",
                descr ? descr : code, shape, t->ndim == 1 ? "," : "");
    memset(head, ' ', DLRNI_NPY_HEAD);
    memcpy(head, "\x93NUMPY\x01\x00", 8);
    dlrni_put_le(head + 8, (uint64_t)DLRNI_NPY_HEAD - BEFORE, 2);
    memcpy(head + BEFORE, text, strlen(text));
    head[DLRNI_NPY_HEAD - 1] = '\n';
    return DLRN_OK;
}

/* Header and data of one array; errors go to the sink. Nothing is written before both checks, so
   that a refused tensor leaves no half header. */
DLRNI_INTERNAL dlrn_status dlrni_npy_write(dlrni_sink *o, const dlrn_tensor_out *t) {
    unsigned char head[DLRNI_NPY_HEAD];
    int64_t numel = 0, bytes = 0;
    dlrni_sink_fail(o, dlrni_tensor_bytes(o->ctx, t, &numel, &bytes));
    if (o->status == DLRN_OK) dlrni_sink_fail(o, dlrni_npy_header(o->ctx, t, NULL, head));
    if (o->status != DLRN_OK) return o->status;
    dlrni_sink_write(o, head, sizeof head);
    dlrni_sink_elements(o, t->data, numel, t->dtype);
    return o->status;
}

DLRNI_COLD_END
/* ------------------------------------------------------------------------------------------ */
// >>inflate
/* Inflate (RFC 1951): numpy.savez_compressed and scipy.sparse.save_npz deflate their members, and
   gzip is inflate with a header and a sum. One decoder for both: it stops when its output is full
   and goes on from there, and it asks for further input through a callback. For a member of a zip,
   all of the input and all of the output are in memory, and one call does it.

      deflated data   block, block, ..., the last one
      block           1 bit: is it the last?   2 bits: its kind
                      0 stored     length, its complement, bytes
                      1 fixed      symbols in a code that both sides know
                      2 dynamic    the code itself, then symbols in it
      symbol          0 to 255     a byte
                      256          the end of the block
                      257 to 285   a copy: `length` bytes from `distance` bytes back

   An attacker controls every bit. Each turn of a loop takes at least one bit, or writes one byte of
   an output whose size is fixed, so decoding ends. Bits beyond the end are 0 and are counted, which
   saves a check of every read: dlrni_bits_bad is looked at before anything is written. */

/* Bits, low bit first. Past the end they are made up, as 0: the last `past` bits of `hold`. */
typedef struct dlrni_bits {
    const unsigned char *p, *end;
    void (*refill)(void *user); /* sets p and end to further input; p == end: there is none. Or
                                   NULL: all of the input is there already */
    void *user;
    uint64_t hold;   /* `count` bits that were read and not used */
    int count, past; /* past only grows */
} dlrni_bits;

/* Have bits been used that the input does not have? Then all that it had are used, so this stays
   true. */
DLRNI_INTERNAL int dlrni_bits_bad(const dlrni_bits *b) {
    return b->past > b->count;
}

/* Ensures that hold has n <= 32 bits; it never has more than 32 + 7. */
DLRNI_INTERNAL void dlrni_bits_need(dlrni_bits *b, int n) {
    while (b->count < n) {
        if (b->p == b->end && b->refill) (b->refill)(b->user);
        if (b->p < b->end)
            b->hold |= (uint64_t)*b->p++ << b->count;
        else
            b->past += 8;
        b->count += 8;
    }
}

/* Steps over n bits that hold has. */
DLRNI_INTERNAL void dlrni_bits_drop(dlrni_bits *b, int n) {
    b->hold >>= n;
    b->count -= n;
}

/* The next n <= 32 bits as a number. With n 0 nothing is read, which happens for short copies. */
DLRNI_INTERNAL uint32_t dlrni_bits_get(dlrni_bits *b, int n) {
    dlrni_bits_need(b, n);
    uint32_t v = (uint32_t)(b->hold & (((uint64_t)1 << n) - 1));
    dlrni_bits_drop(b, n);
    return v;
}

/* Codes of one length are consecutive numbers, so a code is known by how many symbols have each
   length and by the symbols in the order of their codes. RFC 1951 has at most 15 bits to a code and
   288 symbols to an alphabet. Most symbols have short codes: `quick` gives for the next 9 bits
   (zlib's choice) the symbol and, in its low 4 bits, how long its code is; 0: longer than 9. */
enum { DLRNI_QUICK = 9 };
typedef struct dlrni_huffman {
    uint16_t count[16], symbol[288], quick[1 << DLRNI_QUICK];
} dlrni_huffman;

/* Enters the codes of up to 9 bits into `quick`. A code is written from its high bit on, and read
   low bit first, so its bits are reversed; whatever follows them gives the same symbol. */
DLRNI_INTERNAL void dlrni_huffman_quick(dlrni_huffman *h) {
    int code = 0, index = 0;
    for (int len = 1; len <= DLRNI_QUICK; len++) {
        for (int i = 0; i < h->count[len]; i++, code++, index++) {
            int reversed = 0;
            for (int bit = 0; bit < len; bit++) reversed |= (code >> bit & 1) << (len - 1 - bit);
            for (int at = reversed; at < 1 << DLRNI_QUICK; at += 1 << len)
                h->quick[at] = (uint16_t)(h->symbol[index] << 4 | len);
        }
        code <<= 1;
    }
}

/* Builds the code with these lengths; 0: there are more codes of a length than bits allow, and two
   symbols would have the same bits. Fewer are accepted, as zlib does for a single distance: bits
   without a symbol are then an error where they occur. `left` counts the codes of the present
   length that are free. */
DLRNI_INTERNAL int dlrni_huffman_build(dlrni_huffman *h, const unsigned char *length, int n) {
    uint16_t offset[16] = {0};
    int left = 1;
    memset(h, 0, sizeof *h);
    for (int i = 0; i < n; i++) h->count[length[i]]++;
    h->count[0] = 0;
    for (int len = 1; len < 16; len++) {
        left = 2 * left - h->count[len];
        if (left < 0) return 0;
        if (len < 15) offset[len + 1] = (uint16_t)(offset[len] + h->count[len]);
    }
    for (int i = 0; i < n; i++)
        if (length[i]) h->symbol[offset[length[i]]++] = (uint16_t)i;
    dlrni_huffman_quick(h);
    return 1;
}

/* The next symbol; -1: no code has these bits. Codes of `len` bits are first, first + 1, ..., and
   their symbols begin at `index`: so a code is complete as soon as it is below first + count. index
   stays within the symbols, because the build has refused counts that are too large. */
DLRNI_INTERNAL int dlrni_huffman_get(dlrni_bits *b, const dlrni_huffman *h) {
    int code = 0, first = 0, index = 0;
    dlrni_bits_need(b, 15);
    int quick = h->quick[b->hold & ((1 << DLRNI_QUICK) - 1)];
    if (quick) {
        dlrni_bits_drop(b, quick & 15);
        return quick >> 4;
    }
    for (int len = 1; len < 16; len++) {
        code |= (int)dlrni_bits_get(b, 1);
        if (code - h->count[len] < first) return h->symbol[index + (code - first)];
        index += h->count[len];
        first = (first + h->count[len]) << 1;
        code <<= 1;
    }
    return -1;
}

/* A decoder between two calls. */
typedef enum dlrni_inflate_state {
    DLRNI_AT_BLOCK,  /* a block begins here, or the data ends */
    DLRNI_IN_STORED, /* `left` bytes of it are to come        */
    DLRNI_IN_CODED   /* first `left` bytes of a copy          */
} dlrni_inflate_state;

typedef struct dlrni_unpacking {
    dlrni_bits in;
    unsigned char *out; /* [size]; copies reach back to out[0] */
    int64_t at, size;   /* bytes that are written; room        */
    dlrni_inflate_state state;
    int last;           /* this block is the last one       */
    int64_t left, back; /* back 0: the byte `literal`       */
    unsigned char literal;
    dlrni_huffman literals, distances;
} dlrni_unpacking;

/* What a call came to. */
enum { DLRNI_MALFORMED = -1, DLRNI_ENDED, DLRNI_FULL };

/* Reads the two codes of a dynamic block. Their lengths are themselves coded: 0 to 15 a length, 16
   repeats the last one, 17 and 18 repeat 0. `order` puts the lengths that are seldom used last,
   where the encoder leaves them out. More than 286 and 30 symbols could be claimed, but have no
   meaning; 320 lengths hold both. A repeat may go on from the first code into the second, but not
   beyond, and not before the first length. 0: malformed. */
DLRNI_INTERNAL int dlrni_inflate_codes(dlrni_bits *b, dlrni_huffman *literal,
                                       dlrni_huffman *distance) {
    static const unsigned char order[19] = {16, 17, 18, 0, 8,  7, 9,  6, 10, 5,
                                            11, 4,  12, 3, 13, 2, 14, 1, 15};
    unsigned char length[320] = {0}, sizes[19] = {0};
    int n_literal = (int)dlrni_bits_get(b, 5) + 257, n_distance = (int)dlrni_bits_get(b, 5) + 1;
    int n_small = (int)dlrni_bits_get(b, 4) + 4;
    for (int i = 0; i < n_small; i++) sizes[order[i]] = (unsigned char)dlrni_bits_get(b, 3);
    if (n_literal > 286 || n_distance > 30 || !dlrni_huffman_build(literal, sizes, 19)) return 0;
    for (int i = 0; i < n_literal + n_distance;) {
        int symbol = dlrni_huffman_get(b, literal), times = 1, value = symbol;
        if (symbol < 0 || symbol > 18 || (symbol == 16 && !i)) return 0;
        if (symbol == 16) value = length[i - 1], times = 3 + (int)dlrni_bits_get(b, 2);
        if (symbol == 17) value = 0, times = 3 + (int)dlrni_bits_get(b, 3);
        if (symbol == 18) value = 0, times = 11 + (int)dlrni_bits_get(b, 7);
        if (i + times > n_literal + n_distance || dlrni_bits_bad(b)) return 0;
        while (times--) length[i++] = (unsigned char)value;
    }
    return dlrni_huffman_build(literal, length, n_literal) &&
           dlrni_huffman_build(distance, length + n_literal, n_distance);
}

/* The two codes of a fixed block (RFC 1951, 3.2.6). Symbols 286 and 287 take part in the code and
   are never used. Distances 30 and 31 are left out, so that their bits give -1. Both codes are
   within the bits, so building them cannot fail. */
DLRNI_INTERNAL void dlrni_inflate_fixed(dlrni_huffman *literal, dlrni_huffman *distance) {
    unsigned char length[288];
    for (int i = 0; i < 288; i++)
        length[i] = (unsigned char)(i < 144 ? 8 : i < 256 ? 9 : i < 280 ? 7 : 8);
    dlrni_huffman_build(literal, length, 288);
    memset(length, 5, 30);
    dlrni_huffman_build(distance, length, 30);
}

/* Begins a block; 0: malformed. A stored one pads to a byte and gives its length and the
   complement of that. Damaged data seldom has the right complement, so most of it is caught
   here. */
DLRNI_INTERNAL int dlrni_inflate_begin(dlrni_unpacking *z) {
    z->last = (int)dlrni_bits_get(&z->in, 1);
    uint32_t kind = dlrni_bits_get(&z->in, 2);
    z->state = kind ? DLRNI_IN_CODED : DLRNI_IN_STORED;
    z->left = 0;
    if (kind == 0) {
        dlrni_bits_drop(&z->in, z->in.count & 7);
        z->left = (int64_t)dlrni_bits_get(&z->in, 16);
        uint32_t complement = dlrni_bits_get(&z->in, 16);
        return (complement ^ 0xFFFF) == (uint32_t)z->left && !dlrni_bits_bad(&z->in);
    }
    if (kind == 1) dlrni_inflate_fixed(&z->literals, &z->distances);
    return kind == 1 || (kind == 2 && dlrni_inflate_codes(&z->in, &z->literals, &z->distances));
}

/* Goes on with a stored block. Whole bytes may be in `hold` already. */
DLRNI_INTERNAL int dlrni_inflate_stored(dlrni_unpacking *z) {
    dlrni_bits *b = &z->in;
    while (z->left) {
        if (z->at == z->size) return DLRNI_FULL;
        if (b->count || b->p == b->end) {
            z->out[z->at++] = (unsigned char)dlrni_bits_get(b, 8);
            z->left--;
            if (dlrni_bits_bad(b)) return DLRNI_MALFORMED;
            continue;
        }
        int64_t n = dlrni_min(z->left, dlrni_min(b->end - b->p, z->size - z->at));
        memcpy(z->out + z->at, b->p, (size_t)n);
        b->p += n, z->at += n, z->left -= n;
    }
    return DLRNI_ENDED;
}

/* Reads the rest of a copy, whose length symbol has been read; 0: malformed. A copy from before
   the output would read memory that is not ours: back > at. The tables are the RFC's: the first
   length and distance of each symbol, and the number of bits added to it; 258 has a symbol of its
   own. */
DLRNI_INTERNAL int dlrni_inflate_copy(dlrni_unpacking *z, int symbol) {
    static const unsigned short base[29] = {3,  4,  5,  6,   7,   8,   9,   10,  11, 13,
                                            15, 17, 19, 23,  27,  31,  35,  43,  51, 59,
                                            67, 83, 99, 115, 131, 163, 195, 227, 258};
    static const unsigned char extra[29] = {0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2,
                                            2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 0};
    static const unsigned short reach[30] = {
        1,   2,   3,   4,   5,   7,    9,    13,   17,   25,   33,   49,   65,    97,    129,
        193, 257, 385, 513, 769, 1025, 1537, 2049, 3073, 4097, 6145, 8193, 12289, 16385, 24577};
    if (symbol > 285) return 0;
    z->left = base[symbol - 257] + (int64_t)dlrni_bits_get(&z->in, extra[symbol - 257]);
    int code = dlrni_huffman_get(&z->in, &z->distances);
    if (code < 0 || code > 29) return 0;
    z->back = reach[code] + (int64_t)dlrni_bits_get(&z->in, code < 4 ? 0 : code / 2 - 1);
    return z->back <= z->at && !dlrni_bits_bad(&z->in);
}

/* Goes on with literals and copies, up to the end of a block. A copy may overlap its own output,
   which repeats the last `back` bytes: runs are coded so, and memcpy will not do. A literal for
   which there is no room waits as a copy of one byte. */
DLRNI_INTERNAL int dlrni_inflate_symbols(dlrni_unpacking *z) {
    for (;;) {
        unsigned char *out = z->out + z->at;
        int64_t n = dlrni_min(z->left, z->size - z->at);
        for (int64_t i = 0; i < n; i++) out[i] = z->back ? out[i - z->back] : z->literal;
        z->at += n, z->left -= n;
        if (z->left) return DLRNI_FULL;
        int symbol = dlrni_huffman_get(&z->in, &z->literals);
        if (symbol < 0 || dlrni_bits_bad(&z->in)) return DLRNI_MALFORMED;
        if (symbol == 256) return DLRNI_ENDED;
        if (symbol < 256 && z->at < z->size) {
            z->out[z->at++] = (unsigned char)symbol;
        } else if (symbol < 256) {
            z->left = 1, z->back = 0;
            z->literal = (unsigned char)symbol;
        } else if (!dlrni_inflate_copy(z, symbol)) {
            return DLRNI_MALFORMED;
        }
    }
}

/* Decodes until the output is full, the data ends or is malformed. FULL means that a further byte
   was there; the next call, with room, goes on with it. */
DLRNI_INTERNAL int dlrni_inflate_more(dlrni_unpacking *z) {
    for (;;) {
        int end = DLRNI_ENDED;
        if (z->state == DLRNI_AT_BLOCK) {
            if (z->last) return DLRNI_ENDED;
            if (!dlrni_inflate_begin(z)) return DLRNI_MALFORMED;
        } else {
            end = z->state == DLRNI_IN_STORED ? dlrni_inflate_stored(z) : dlrni_inflate_symbols(z);
            if (end != DLRNI_ENDED) return end;
            z->state = DLRNI_AT_BLOCK;
        }
    }
}

/* Unpacks exactly `size` bytes; 0: the data is malformed, or gives more or fewer. An output that is
   too short would leave bytes unset, for a tensor to read. Input after the last block is ignored,
   as zlib does. */
DLRNI_INTERNAL int dlrni_inflate(const unsigned char *in, uint64_t packed, unsigned char *out,
                                 int64_t size) {
    dlrni_unpacking z;
    memset(&z, 0, sizeof z);
    z.in.p = in;
    z.in.end = in + packed;
    z.out = out;
    z.size = size;
    return dlrni_inflate_more(&z) == DLRNI_ENDED && z.at == size;
}

/* ------------------------------------------------------------------------------------------ */
// >>stream
DLRNI_COLD_BEGIN
/* The bytes of a file, one after another, in memory that does not depend on its length. gzip (RFC
   1952) is decompressed on the way:

      file     member, member, ..., perhaps zeros (tapes pad with them)
      member   header: 1F 8B 8, flags, time, two bytes; extra field, name, comment, sum by the flags
               deflated data
               CRC-32 and length modulo 2^32 of its output

   The output goes to a window of twice 32 KB, since copies reach back 32 KB. When it is full, its
   second half moves to the front. A position counts bytes that were handed out. To go back in
   compressed data, the file is read again from its start. */

enum { DLRNI_WINDOW = 32768 };

struct dlrn_stream {
    dlrn_context *ctx;
    char *path;        /* stored at the end of this block */
    void *file;        /* NULL: reopening it failed */
    int told, gzip;    /* told 1: the first bytes have been read, so `gzip` is known */
    int members;       /* gzip: 1 once a member has begun */
    int in_member;     /* 1: within a member's data, not in a header or at the end */
    dlrn_status read;  /* of the last read of the file */
    char wrong[120];   /* gzip: what is wrong after the bytes of the window; "": nothing */
    uint64_t position; /* bytes handed out */
    uint64_t length;   /* of the member, so far */
    uint32_t crc;
    int64_t given;     /* bytes of the window that were handed out */
    dlrni_unpacking z; /* z.in: bytes read from the file and not used yet, also without gzip */
    unsigned char in[DLRNI_WINDOW], window[2 * DLRNI_WINDOW];
};

/* For errors, where "-" would be unclear. */
DLRNI_INTERNAL const char *dlrni_stream_name(const dlrn_stream *s) {
    return strcmp(s->path, "-") ? s->path : "standard input";
}

/* Reads the next bytes of the file into `in`, after the `keep` bytes that are already there. */
DLRNI_INTERNAL void dlrni_stream_fill(dlrn_stream *s, size_t keep) {
    const dlrn_io *io = dlrni_io_of(s->ctx);
    size_t got = 0;
    s->read = io->read_file(io->user, s->ctx, s->file, s->in + keep, sizeof s->in - keep, &got);
    s->z.in.p = s->in;
    s->z.in.end = s->in + keep + (s->read == DLRN_OK ? got : 0);
}

/* dlrni_bits.refill. After an error the data appears to end; dlrni_gunzip then checks `read`. */
DLRNI_INTERNAL void dlrni_stream_refill(void *user) {
    dlrni_stream_fill((dlrn_stream *)user, 0);
}

/* Opens the file, again or for the first time, at its start. */
DLRNI_INTERNAL dlrn_status dlrni_stream_start(dlrn_stream *s) {
    const dlrn_io *io = dlrni_io_of(s->ctx);
    void *old = s->file;
    s->file = NULL;
    if (old) (void)!io->close_file(io->user, s->ctx, old, 0);
    memset(&s->z, 0, sizeof s->z);
    s->z.in.p = s->z.in.end = s->in;
    s->z.in.refill = dlrni_stream_refill;
    s->z.in.user = s;
    s->z.out = s->window;
    s->z.size = sizeof s->window;
    s->told = s->gzip = s->members = s->in_member = 0;
    s->read = DLRN_OK;
    s->wrong[0] = 0;
    s->position = 0;
    s->given = 0;
    return io->open_file(io->user, s->ctx, s->path, 0, &s->file);
}

DLRN_API dlrn_status dlrn_stream_open(dlrn_context *ctx, const char *path, dlrn_stream **out) {
    const size_t n = strlen(path) + 1;
    *out = NULL;
    dlrn_stream *s = (dlrn_stream *)dlrn_alloc(ctx, (int64_t)(sizeof *s + n), 1);
    if (!s) return DLRN_ERR_MEMORY;
    s->ctx = ctx;
    s->file = NULL;
    s->path = (char *)(s + 1);
    memcpy(s->path, path, n);
    dlrn_status status = dlrni_stream_start(s);
    if (status == DLRN_OK)
        *out = s;
    else
        dlrn_free(ctx, s);
    return status;
}

DLRN_API void dlrn_stream_close(dlrn_stream *s) {
    if (!s) return;
    const dlrn_io *io = dlrni_io_of(s->ctx);
    if (s->file) (void)!io->close_file(io->user, s->ctx, s->file, 0);
    dlrn_free(s->ctx, s);
}

/* Recognises gzip by its first three bytes: 1F 8B, and 8 for deflate, the only method. No text
   starts with them. A read may return fewer bytes. After an error of reading, another call
   continues. */
DLRNI_INTERNAL dlrn_status dlrni_stream_tell(dlrn_stream *s) {
    static const unsigned char magic[3] = {0x1F, 0x8B, 8};
    size_t have = (size_t)(s->z.in.end - s->in), before = have + 1;
    while (have < sizeof magic && have != before) {
        before = have;
        dlrni_stream_fill(s, have);
        if (s->read != DLRN_OK) return s->read;
        have = (size_t)(s->z.in.end - s->in);
    }
    s->gzip = have >= sizeof magic && !memcmp(s->in, magic, sizeof magic);
    s->told = 1;
    return DLRN_OK;
}

/* Keeps what is wrong with compressed data, for when the good bytes are handed out. */
DLRNI_INTERNAL void dlrni_gzip_wrong(dlrn_stream *s, const char *what) {
    dlrni_print(s->wrong, sizeof s->wrong, "%s",
                dlrni_bits_bad(&s->z.in) ? "it ends within the compressed data: it was cut short"
                                         : what);
}

/* Skips bytes up to a 0, or n of them. */
DLRNI_INTERNAL void dlrni_gzip_skip(dlrni_bits *b, int to_zero, uint32_t n) {
    while ((to_zero || n--) && !dlrni_bits_bad(b))
        if (!dlrni_bits_get(b, 8) && to_zero) return;
}

/* Reads the header of a member. 0: there is none, or it is wrong, which `wrong` says. */
DLRNI_INTERNAL int dlrni_gzip_begin(dlrn_stream *s) {
    enum { SUM = 2, EXTRA = 4, NAME = 8, COMMENT = 16, RESERVED = 0xE0 }; /* flags */
    dlrni_bits *b = &s->z.in;
    uint32_t first = 0;
    dlrni_bits_drop(b, b->count & 7);
    while (!first) {
        dlrni_bits_need(b, 8);
        if (b->past >= b->count) return 0; /* the end of the file */
        first = dlrni_bits_get(b, 8);
        if (!s->members) break;
    }
    if (first != 0x1F || dlrni_bits_get(b, 8) != 0x8B || dlrni_bits_get(b, 8) != 8) {
        dlrni_print(s->wrong, sizeof s->wrong,
                    "after the compressed data: expected its end or more of it, found other bytes");
        return 0;
    }
    uint32_t flags = dlrni_bits_get(b, 8);
    dlrni_gzip_skip(b, 0, 6);
    if (flags & EXTRA) dlrni_gzip_skip(b, 0, dlrni_bits_get(b, 16));
    if (flags & NAME) dlrni_gzip_skip(b, 1, 0);
    if (flags & COMMENT) dlrni_gzip_skip(b, 1, 0);
    if (flags & SUM) dlrni_gzip_skip(b, 0, 2);
    if (flags & RESERVED || dlrni_bits_bad(b)) {
        dlrni_gzip_wrong(s, "its header has flags of no known meaning");
        return 0;
    }
    s->members = s->in_member = 1;
    s->z.state = DLRNI_AT_BLOCK;
    s->z.last = 0;
    s->z.at = s->given = 0; /* copies must not reach into the previous member */
    s->crc = 0;
    s->length = 0;
    return 1;
}

/* Compares the checksum and the length at a member's end with its output. */
DLRNI_INTERNAL void dlrni_gzip_check(dlrn_stream *s) {
    dlrni_bits *b = &s->z.in;
    char what[100];
    dlrni_bits_drop(b, b->count & 7);
    uint32_t crc = dlrni_bits_get(b, 32), length = dlrni_bits_get(b, 32);
    s->in_member = 0;
    if (crc == s->crc && length == (uint32_t)s->length && !dlrni_bits_bad(b)) return;
    dlrni_print(what, sizeof what, "expected the sum %08lx of %lu bytes, found %08lx of %lu",
                (unsigned long)crc, (unsigned long)length, (unsigned long)s->crc,
                (unsigned long)(uint32_t)s->length);
    dlrni_gzip_wrong(s, what);
}

/* Decompresses the next bytes into the window, whose bytes were all handed out; no bytes: the end.
   What precedes damaged data is still handed out. */
DLRNI_INTERNAL dlrn_status dlrni_gunzip(dlrn_stream *s) {
    while (s->given == s->z.at && !s->wrong[0] && (s->in_member || dlrni_gzip_begin(s))) {
        if (s->z.at == s->z.size) {
            memmove(s->window, s->window + DLRNI_WINDOW, DLRNI_WINDOW);
            s->z.at = s->given = DLRNI_WINDOW;
        }
        const int64_t before = s->z.at;
        int end = dlrni_inflate_more(&s->z);
        s->crc = s->ctx->k->crc32(s->crc, s->window + before, (uint64_t)(s->z.at - before));
        s->length += (uint64_t)(s->z.at - before);
        if (end == DLRNI_MALFORMED) dlrni_gzip_wrong(s, "the compressed data is damaged");
        if (end == DLRNI_ENDED) dlrni_gzip_check(s);
    }
    if (s->read != DLRN_OK) return s->read;
    if (s->given == s->z.at && s->wrong[0])
        return dlrn_fail(s->ctx, DLRN_ERR_FORMAT, "%s: gzip: %s", dlrni_stream_name(s), s->wrong);
    return DLRN_OK;
}

DLRN_API dlrn_status dlrn_stream_read(dlrn_stream *s, void *bytes, size_t size, size_t *got) {
    const dlrn_io *io = dlrni_io_of(s->ctx);
    *got = 0;
    if (!s->file || !size)
        return size ? dlrn_fail(s->ctx, DLRN_ERR_IO, "%s: is not open", dlrni_stream_name(s))
                    : DLRN_OK;
    if (!s->told) DLRNI_TRY(dlrni_stream_tell(s));
    if (s->gzip && s->given == s->z.at) DLRNI_TRY(dlrni_gunzip(s));
    dlrni_bits *in = &s->z.in;
    const unsigned char *from = s->gzip ? s->window + s->given : in->p;
    int64_t there = s->gzip ? s->z.at - s->given : in->end - in->p;
    if (there) {
        *got = (size_t)there < size ? (size_t)there : size;
        memcpy(bytes, from, *got);
        if (s->gzip)
            s->given += (int64_t)*got;
        else
            in->p += *got;
    } else if (!s->gzip) {
        DLRNI_TRY(io->read_file(io->user, s->ctx, s->file, bytes, size, got));
    }
    s->position += *got;
    return DLRN_OK;
}

DLRN_API uint64_t dlrn_stream_position(const dlrn_stream *s) {
    return s->position;
}

/* Seeks if the file is the C library's and can seek. Any other is read up to the position; if that
   lies before the present one, from the start. */
DLRN_API dlrn_status dlrn_stream_seek(dlrn_stream *s, uint64_t position) {
    unsigned char passed[4096];
    uint64_t size = 0;
    if (s->file && !s->told) DLRNI_TRY(dlrni_stream_tell(s));
    if (s->file && !s->gzip && strcmp(s->path, "-") &&
        dlrni_file_seek(s->ctx, s->file, position, &size)) {
        s->z.in.p = s->z.in.end = s->in;
        s->position = position < size ? position : size;
        return position > size ? DLRN_END : DLRN_OK;
    }
    if (position < s->position && !strcmp(s->path, "-"))
        return dlrn_fail(s->ctx, DLRN_ERR_IO, "standard input: cannot go back");
    if (position < s->position || !s->file) DLRNI_TRY(dlrni_stream_start(s));
    for (size_t got = 1; s->position < position;) {
        uint64_t left = position - s->position;
        DLRNI_TRY(
            dlrn_stream_read(s, passed, left < sizeof passed ? (size_t)left : sizeof passed, &got));
        if (!got) return DLRN_END;
    }
    return DLRN_OK;
}
DLRNI_COLD_END

/* ------------------------------------------------------------------------------------------ */
// >>zip
DLRNI_COLD_BEGIN
/* Zip, of which .pt and .npz are made. A file is read from its end:

      +-> local header, name, extra, data        each member; its CRC and sizes may follow the data
      |   ...
      |+> central header, name, extra, comment   each member again: the directory
      +|- offset of the local header
       |  ...
       |  [end record of 64 bits] <--+           where a number does not fit; by torch, always
       |  [its locator] -------------+
       +- end record, comment

   Since members are found by offsets, the two lists can differ: a reader that walks the members and
   a reader that walks the directory would find different files in one. The directory is
   authoritative here, as for torch and Python, and the local headers must agree with it. Stored
   members are used where they lie. Deflated ones are unpacked, at most to the size in the
   directory. CRCs are checked on opening, except a CRC of 0: torch writes 0 where it was told not
   to compute it. */

/* The records, each as an enum of its fields: DLRNI_FIELD(offset, width in bytes). */
#define DLRNI_FIELD(offset, width) ((offset)*16 + (width))

enum { /* before each member */
       DLRNI_LOCAL_MAGIC = DLRNI_FIELD(0, 4),
       DLRNI_LOCAL_VERSION = DLRNI_FIELD(4, 2), /* needed to read it: 20, or 45 with 64-bit sizes */
       DLRNI_LOCAL_FLAGS = DLRNI_FIELD(6, 2),
       DLRNI_LOCAL_METHOD = DLRNI_FIELD(8, 2),
       DLRNI_LOCAL_DATE = DLRNI_FIELD(12, 2),
       DLRNI_LOCAL_PACKED = DLRNI_FIELD(18, 4), /* bytes in the file */
       DLRNI_LOCAL_SIZE = DLRNI_FIELD(22, 4),   /* bytes unpacked    */
       DLRNI_LOCAL_NAME_LENGTH = DLRNI_FIELD(26, 2),
       DLRNI_LOCAL_EXTRA_LENGTH = DLRNI_FIELD(28, 2),
       DLRNI_LOCAL_BYTES = 30
};

enum { /* after the data of a member whose sizes were not known before; sizes of 4 or 8 bytes */
       DLRNI_AFTER_MAGIC = DLRNI_FIELD(0, 4),
       DLRNI_AFTER_CRC = DLRNI_FIELD(4, 4),
       DLRNI_AFTER_PACKED = DLRNI_FIELD(8, 4),
       DLRNI_AFTER_SIZE = DLRNI_FIELD(12, 4),
       DLRNI_AFTER_BYTES = 16,
       DLRNI_AFTER64_PACKED = DLRNI_FIELD(8, 8),
       DLRNI_AFTER64_SIZE = DLRNI_FIELD(16, 8),
       DLRNI_AFTER64_BYTES = 24
};

enum { /* a member in the directory */
       DLRNI_CENTRAL_MAGIC = DLRNI_FIELD(0, 4),
       DLRNI_CENTRAL_MADE_BY = DLRNI_FIELD(4, 2),
       DLRNI_CENTRAL_VERSION = DLRNI_FIELD(6, 2),
       DLRNI_CENTRAL_FLAGS = DLRNI_FIELD(8, 2),
       DLRNI_CENTRAL_METHOD = DLRNI_FIELD(10, 2),
       DLRNI_CENTRAL_DATE = DLRNI_FIELD(14, 2),
       DLRNI_CENTRAL_CRC = DLRNI_FIELD(16, 4),
       DLRNI_CENTRAL_PACKED = DLRNI_FIELD(20, 4),
       DLRNI_CENTRAL_SIZE = DLRNI_FIELD(24, 4),
       DLRNI_CENTRAL_NAME_LENGTH = DLRNI_FIELD(28, 2),
       DLRNI_CENTRAL_EXTRA_LENGTH = DLRNI_FIELD(30, 2),
       DLRNI_CENTRAL_COMMENT_LENGTH = DLRNI_FIELD(32, 2),
       DLRNI_CENTRAL_OFFSET = DLRNI_FIELD(42, 4), /* of the local header */
       DLRNI_CENTRAL_BYTES = 46
};

enum { /* a block of the extra bytes; kind 1 holds those of size, packed, offset that are all ones
          in the header, 8 bytes each */
       DLRNI_EXTRA_KIND = DLRNI_FIELD(0, 2),
       DLRNI_EXTRA_LENGTH = DLRNI_FIELD(2, 2),
       DLRNI_EXTRA_FIRST = DLRNI_FIELD(4, 8),
       DLRNI_EXTRA_SECOND = DLRNI_FIELD(12, 8),
       DLRNI_EXTRA_THIRD = DLRNI_FIELD(20, 8),
       DLRNI_EXTRA_BYTES = 4,
       DLRNI_EXTRA_KIND_64 = 1,
       DLRNI_EXTRA_KIND_PADDING = 0x4246 /* "FB", as torch names it */
};

enum { /* the end of the file */
       DLRNI_END_MAGIC = DLRNI_FIELD(0, 4),
       DLRNI_END_COUNT_HERE = DLRNI_FIELD(8, 2), /* members, on this disk and in all */
       DLRNI_END_COUNT = DLRNI_FIELD(10, 2),
       DLRNI_END_SIZE = DLRNI_FIELD(12, 4),   /* of the directory */
       DLRNI_END_OFFSET = DLRNI_FIELD(16, 4), /* of the directory */
       DLRNI_END_COMMENT_LENGTH = DLRNI_FIELD(20, 2),
       DLRNI_END_BYTES = 22
};

enum { /* the end record of 64 bits */
       DLRNI_END64_MAGIC = DLRNI_FIELD(0, 4),
       DLRNI_END64_LENGTH = DLRNI_FIELD(4, 8), /* bytes after this field */
       DLRNI_END64_MADE_BY = DLRNI_FIELD(12, 2),
       DLRNI_END64_VERSION = DLRNI_FIELD(14, 2),
       DLRNI_END64_COUNT_HERE = DLRNI_FIELD(24, 8),
       DLRNI_END64_COUNT = DLRNI_FIELD(32, 8),
       DLRNI_END64_SIZE = DLRNI_FIELD(40, 8),
       DLRNI_END64_OFFSET = DLRNI_FIELD(48, 8),
       DLRNI_END64_BYTES = 56
};

enum { /* and where it is: just before the end record */
       DLRNI_LOCATOR_MAGIC = DLRNI_FIELD(0, 4),
       DLRNI_LOCATOR_OFFSET = DLRNI_FIELD(8, 8),
       DLRNI_LOCATOR_DISKS = DLRNI_FIELD(16, 4),
       DLRNI_LOCATOR_BYTES = 20
};

#undef DLRNI_FIELD

/* A 16- or 32-bit field of all ones, UINT16_MAX or UINT32_MAX: see the 64-bit field instead. */
enum {
    DLRNI_MAGIC_LOCAL = 0x04034b50, /* "PK\3\4", and so on */
    DLRNI_MAGIC_AFTER = 0x08074b50,
    DLRNI_MAGIC_CENTRAL = 0x02014b50,
    DLRNI_MAGIC_END = 0x06054b50,
    DLRNI_MAGIC_END64 = 0x06064b50,
    DLRNI_MAGIC_LOCATOR = 0x07064b50,
    DLRNI_ZIP_STORED = 0,
    DLRNI_ZIP_DEFLATED = 8,
    DLRNI_FLAG_ENCRYPTED = 1,
    DLRNI_FLAG_AFTER = 1 << 3, /* CRC and sizes follow the data */
    DLRNI_FLAG_UTF8 = 1 << 11, /* the name is UTF-8             */
    DLRNI_VERSION_20 = 20,     /* plain                         */
    DLRNI_VERSION_45 = 45      /* with 64-bit fields            */
};

/* A field of a record, by its enum above. The enums stand for a struct, whose padding and byte
   order C leaves open. */
DLRNI_INTERNAL uint64_t dlrni_field(const unsigned char *record, int field) {
    return dlrni_le(record + field / 16, field % 16);
}

/* Sets a field. A value that is too wide is cut: callers choose the 64-bit form first. */
DLRNI_INTERNAL void dlrni_set_field(unsigned char *record, int field, uint64_t v) {
    dlrni_put_le(record + field / 16, v, field % 16);
}

/* A file in the zip. Its bytes stay in the file: most members are stored. */
typedef struct dlrni_member {
    const char *name; /* not closed with a 0 */
    int64_t name_len;
    const unsigned char *data;
    uint64_t size;   /* unpacked               */
    uint64_t packed; /* bytes at data          */
    uint32_t crc;    /* of the unpacked bytes  */
    int method;      /* stored or deflated     */
} dlrni_member;

/* The directory of a zip while it is read. */
typedef struct dlrni_zip {
    dlrni_member *m; /* [n] in the directory's order */
    int64_t n, cap;
    dlrni_lookup names; /* name -> index of m */
    uint64_t packed;    /* of all members     */
} dlrni_zip;

/* For errors of the zip as a whole; those of one member name it. */
DLRNI_INTERNAL dlrn_status dlrni_zip_error(dlrn_archive *a, const char *what) {
    return dlrn_fail(a->ctx, DLRN_ERR_FORMAT, "%s: zip: %s", a->path, what);
}

/* ---- Reading ---- */

/* Reads the end record of 64 bits, if there is one for the end record at p + end. torch always
   writes it, Python only where a number does not fit. The 20 bytes where its locator would be may,
   by chance, be the end of a member's name, so a locator counts only if it points to a record. 0:
   the end record needs one and there is none. The locator's offset is any number, so it is compared
   before it is added. */
DLRNI_INTERNAL int dlrni_zip_end64(const unsigned char *p, uint64_t size, uint64_t end,
                                   uint64_t *at, uint64_t *bytes, uint64_t *count) {
    if (end < DLRNI_LOCATOR_BYTES) return 1;
    const unsigned char *locator = p + end - DLRNI_LOCATOR_BYTES;
    if (dlrni_field(locator, DLRNI_LOCATOR_MAGIC) != DLRNI_MAGIC_LOCATOR) return 1;
    uint64_t where = dlrni_field(locator, DLRNI_LOCATOR_OFFSET);
    if (where > size || size - where < DLRNI_END64_BYTES ||
        dlrni_field(p + where, DLRNI_END64_MAGIC) != DLRNI_MAGIC_END64)
        return *count != UINT16_MAX && *bytes != UINT32_MAX && *at != UINT32_MAX;
    *count = dlrni_field(p + where, DLRNI_END64_COUNT);
    *bytes = dlrni_field(p + where, DLRNI_END64_SIZE);
    *at = dlrni_field(p + where, DLRNI_END64_OFFSET);
    return 1;
}

/* Finds the end record. A zip has no length at its start, and a comment of up to 65535 bytes may
   follow the record, which is searched backwards over it. The last magic counts, as in Python's
   zipfile. 0: there is none in the file. */
DLRNI_INTERNAL int dlrni_zip_find_end(const unsigned char *p, uint64_t size, uint64_t *end) {
    const uint64_t record = DLRNI_END_BYTES, reach = record + UINT16_MAX; /* + a comment */
    if (size < record) return 0;
    uint64_t floor = size > reach ? size - reach : 0;
    *end = size - record;
    while (dlrni_field(p + *end, DLRNI_END_MAGIC) != DLRNI_MAGIC_END)
        if ((*end)-- == floor) return 0;
    return 1;
}

/* Finds the directory: its place, bytes and members. 0: there is none in the file. */
DLRNI_INTERNAL int dlrni_zip_end(const unsigned char *p, uint64_t size, uint64_t *at,
                                 uint64_t *bytes, uint64_t *count) {
    uint64_t end;
    if (!dlrni_zip_find_end(p, size, &end)) return 0;
    *count = dlrni_field(p + end, DLRNI_END_COUNT);
    *bytes = dlrni_field(p + end, DLRNI_END_SIZE);
    *at = dlrni_field(p + end, DLRNI_END_OFFSET);
    return dlrni_zip_end64(p, size, end, at, bytes, count) && *at <= size && *bytes <= size - *at;
}

/* Replaces sizes and offset that are all ones by those in the extra block of kind 1, which holds
   them in this order, and only those. 0: a block is cut off. Other kinds are stepped over: padding,
   times, owners. */
DLRNI_INTERNAL int dlrni_zip_extra(dlrni_cursor extra, uint64_t *size, uint64_t *packed,
                                   uint64_t *offset) {
    uint64_t *fields[3] = {size, packed, offset};
    const unsigned char *head;
    while ((head = dlrni_take(&extra, DLRNI_EXTRA_BYTES)) != NULL) {
        const uint64_t length = dlrni_field(head, DLRNI_EXTRA_LENGTH);
        const unsigned char *body = dlrni_take(&extra, length);
        if (!body) return 0;
        if (dlrni_field(head, DLRNI_EXTRA_KIND) != DLRNI_EXTRA_KIND_64) continue;
        dlrni_cursor c = {body, body + length};
        for (int i = 0; i < 3; i++) {
            if (*fields[i] != UINT32_MAX) continue;
            const unsigned char *v = dlrni_take(&c, 8);
            if (!v) return 0;
            *fields[i] = dlrni_le(v, 8);
        }
    }
    return 1;
}

/* Compares a member's bytes with its CRC. It finds damage, such as a download that was cut; it is
   no defence, since an attacker computes it, too. A CRC of 0 is not checked: torch writes it after
   set_crc32_options(False). The pages of a member of many GB are dropped once they are summed. */
DLRNI_INTERNAL dlrn_status dlrni_member_check(dlrn_archive *a, const dlrni_member *m,
                                              const unsigned char *p) {
    const uint64_t piece = (uint64_t)64 << 20; /* smaller members, such as weights, stay mapped */
    const int is_mapped = p == m->data;
    uint32_t crc = 0;
    if (!m->crc || a->shapes_only) return DLRN_OK;
    for (uint64_t at = 0, n; at < m->size; at += n) {
        n = m->size - at < piece ? m->size - at : piece;
        crc = a->ctx->k->crc32(crc, p + at, n);
        if (is_mapped && n == piece && !a->borrowed) {
            const size_t from = (size_t)(p - a->map.p) + (size_t)at;
            (void)dlrni_map_drop(&a->map, from, from + (size_t)n);
        }
    }
    if (crc == m->crc) return DLRN_OK;
    return dlrn_fail(a->ctx, DLRN_ERR_FORMAT,
                     "%s: zip: member '%.*s' is damaged: its CRC-32 is not %08lx", a->path,
                     (int)m->name_len, m->name, (unsigned long)m->crc);
}

/* Finds the data of a member after its local header, which must agree with the directory. Its
   sizes and CRC are not compared, since writers that stream leave them 0. The length of its extra
   bytes is its own: torch pads here, and not in the directory. */
DLRNI_INTERNAL dlrn_status dlrni_zip_local(dlrn_archive *a, uint64_t offset, dlrni_member *m) {
    /* one text for all: which field differs is of no use to a reader of the error */
    static const char disagree[] = "a local header does not agree with the central directory";
    dlrni_cursor file = {a->map.p, a->map.p + a->map.size};
    const uint64_t name_len = (uint64_t)m->name_len;
    const unsigned char *local, *name;
    if (!dlrni_take(&file, offset) || !(local = dlrni_take(&file, DLRNI_LOCAL_BYTES)) ||
        dlrni_field(local, DLRNI_LOCAL_MAGIC) != DLRNI_MAGIC_LOCAL ||
        dlrni_field(local, DLRNI_LOCAL_NAME_LENGTH) != name_len ||
        dlrni_field(local, DLRNI_LOCAL_METHOD) != (uint64_t)m->method)
        return dlrni_zip_error(a, disagree);
    name = dlrni_take(&file, name_len);
    if (!name || memcmp(name, m->name, (size_t)name_len) ||
        !dlrni_take(&file, dlrni_field(local, DLRNI_LOCAL_EXTRA_LENGTH)))
        return dlrni_zip_error(a, disagree);
    m->data = file.p;
    return dlrni_take(&file, m->packed)
               ? DLRN_OK
               : dlrni_zip_error(a, "a member reaches beyond the end of the file");
}

/* Reads one member of the directory: name, sizes, CRC, method and the local header's offset. A
   stored member has one size: a second one could let a tensor reach into the next member. Encrypted
   members and methods such as LZMA are named in the error, since the file may well be good. */
DLRNI_INTERNAL dlrn_status dlrni_zip_central(dlrn_archive *a, dlrni_cursor *c, dlrni_member *m,
                                             uint64_t *offset) {
    const unsigned char *h = dlrni_take(c, DLRNI_CENTRAL_BYTES), *name, *extra;
    if (!h || dlrni_field(h, DLRNI_CENTRAL_MAGIC) != DLRNI_MAGIC_CENTRAL)
        return dlrni_zip_error(a, "malformed central directory");
    const uint64_t name_len = dlrni_field(h, DLRNI_CENTRAL_NAME_LENGTH);
    const uint64_t extra_len = dlrni_field(h, DLRNI_CENTRAL_EXTRA_LENGTH);
    m->packed = dlrni_field(h, DLRNI_CENTRAL_PACKED);
    m->size = dlrni_field(h, DLRNI_CENTRAL_SIZE);
    m->crc = (uint32_t)dlrni_field(h, DLRNI_CENTRAL_CRC);
    m->method = (int)dlrni_field(h, DLRNI_CENTRAL_METHOD);
    *offset = dlrni_field(h, DLRNI_CENTRAL_OFFSET);
    if (!(name = dlrni_take(c, name_len)) || !(extra = dlrni_take(c, extra_len)) ||
        !dlrni_take(c, dlrni_field(h, DLRNI_CENTRAL_COMMENT_LENGTH)))
        return dlrni_zip_error(a, "the central directory is cut off");
    m->name = (const char *)name;
    m->name_len = (int64_t)name_len;
    dlrni_cursor e = {extra, extra + extra_len};
    if (!dlrni_zip_extra(e, &m->size, &m->packed, offset))
        return dlrni_zip_error(a, "malformed 64-bit sizes");
    if (m->method == DLRNI_ZIP_STORED && m->size != m->packed)
        return dlrni_zip_error(a, "a stored member whose packed size is not its size");
    if (!(dlrni_field(h, DLRNI_CENTRAL_FLAGS) & DLRNI_FLAG_ENCRYPTED) &&
        (m->method == DLRNI_ZIP_STORED || m->method == DLRNI_ZIP_DEFLATED))
        return DLRN_OK;
    return dlrn_fail(a->ctx, DLRN_ERR_UNSUPPORTED,
                     "%s: zip: member '%.*s' is encrypted or of compression method %d, "
                     "expected stored or deflated",
                     a->path, (int)m->name_len, m->name, m->method);
}

/* Adds the next member of the directory to the list. Members that overlap are refused: they would
   let a small file unpack to the square of its size. The sum of all packed sizes is enough to find
   that out: members that do not overlap fit into the file. */
DLRNI_INTERNAL dlrn_status dlrni_zip_entry(dlrn_archive *a, dlrni_cursor *c, dlrni_zip *z) {
    dlrni_member m;
    uint64_t offset = 0;
    memset(&m, 0, sizeof m);
    DLRNI_TRY(dlrni_zip_central(a, c, &m, &offset));
    DLRNI_TRY(dlrni_zip_local(a, offset, &m));
    /* each term is at most the size of the file, so the sum cannot overflow before it is refused */
    if ((z->packed += m.packed) > a->map.size) return dlrni_zip_error(a, "members overlap");
    if (dlrni_lookup_find(&z->names, m.name, m.name_len) >= 0)
        return dlrn_fail(a->ctx, DLRN_ERR_FORMAT,
                         "%s: zip: member '%.*s': expected once, found twice", a->path,
                         (int)m.name_len, m.name);
    if (m.method == DLRNI_ZIP_STORED) DLRNI_TRY(dlrni_member_check(a, &m, m.data));
    if (!DLRNI_GROW(a->ctx, &z->m, &z->cap, z->n, z->n + 1) ||
        !dlrni_lookup_add(a->ctx, &z->names, m.name, m.name_len, z->n))
        return DLRN_ERR_MEMORY;
    z->m[z->n++] = m;
    return DLRN_OK;
}

/* Lists the members of a zip. The caller frees z->m and z->names.slot, also after an error. Each
   member needs a central header, so a count beyond the directory's bytes is refused before the
   loop: it has 64 bits, and comes from the file. */
DLRNI_INTERNAL dlrn_status dlrni_zip_list(dlrn_archive *a, dlrni_zip *z) {
    uint64_t at, bytes, count;
    if (!dlrni_zip_end(a->map.p, a->map.size, &at, &bytes, &count))
        return dlrni_zip_error(a, "no central directory");
    /* divided, because a product could overflow */
    if (count > bytes / DLRNI_CENTRAL_BYTES)
        return dlrni_zip_error(a, "more members than the central directory has room for");
    dlrni_cursor c = {a->map.p + at, a->map.p + at + bytes};
    for (uint64_t i = 0; i < count; i++) DLRNI_TRY(dlrni_zip_entry(a, &c, z));
    return DLRN_OK;
}

/* Keeps the lines KEY=TEXT of the zip's comment as notes (dlrni_zip_comment wrote them). Other
   lines are ignored: a comment may be anything. */
DLRNI_INTERNAL dlrn_status dlrni_zip_notes(dlrn_archive *a) {
    uint64_t end;
    if (!dlrni_zip_find_end(a->map.p, a->map.size, &end)) return DLRN_OK;
    const char *p = (const char *)a->map.p + end + DLRNI_END_BYTES;
    /* the declared length may exceed the file */
    uint64_t left = a->map.size - end - DLRNI_END_BYTES,
             declared = dlrni_field(a->map.p + end, DLRNI_END_COMMENT_LENGTH);
    if (left > declared) left = declared;
    while (left) {
        const char *line = (const char *)memchr(p, '\n', (size_t)left);
        int64_t n = line ? line - p : (int64_t)left;
        const char *sign = (const char *)memchr(p, '=', (size_t)n);
        if (sign) DLRNI_TRY(dlrni_archive_annotate(a, p, sign - p, sign + 1, p + n - sign - 1));
        /* the line and its end */
        n += line != NULL;
        p += n;
        left -= (uint64_t)n;
    }
    return DLRN_OK;
}

/* The bytes of a member: in the file, or unpacked into a block of the archive. Deflate shrinks at
   most 1032 times (258 bytes from 2 bits), which bounds the memory that a small file can claim. It
   is unpacked whole, to the size in the directory, since a tensor may be read from any row. */
DLRNI_INTERNAL dlrn_status dlrni_member_bytes(dlrn_archive *a, const dlrni_member *m,
                                              const unsigned char **p) {
    enum { DEFLATE_MAX = 1032 };
    *p = m->data;
    if (m->method == DLRNI_ZIP_STORED) return DLRN_OK;
    if (m->size / DEFLATE_MAX > m->packed)
        return dlrni_zip_error(a, "a member claims to unpack to more than deflate can give");
    unsigned char *out = (unsigned char *)dlrni_archive_block(a, (int64_t)m->size + 1);
    if (!out) return DLRN_ERR_MEMORY;
    *p = out;
    if (dlrni_inflate(m->data, m->packed, out, (int64_t)m->size))
        return dlrni_member_check(a, m, out);
    return dlrn_fail(a->ctx, DLRN_ERR_FORMAT,
                     "%s: zip: member '%.*s' does not unpack to the %llu bytes declared", a->path,
                     (int)m->name_len, m->name, (unsigned long long)m->size);
}

/* ---- Reading .npz ---- */

/* A text without dimensions ("|S3", "<U3"), such as scipy's 'format', is kept as a note: *is_text.
   numpy writes str as UTF-32, of which the low bytes are kept: the texts that are looked up are
   ASCII. Both kinds are padded with 0. '.npy' is 4 bytes, which the caller has seen. */
DLRNI_INTERNAL dlrn_status dlrni_arrays_text(dlrn_archive *a, const char *what,
                                             const dlrni_member *m, dlrni_cursor c, int *is_text) {
    dlrni_npy_head h;
    memset(&h, 0, sizeof h);
    dlrn_status s = dlrni_npy_parse(a->ctx, what, &c, &h);
    if (s != DLRN_ERR_UNSUPPORTED || h.ndim || !h.text) return s;
    int64_t step = h.text == 'U' ? 4 : 1, n = 0, len = (c.end - c.p) / step;
    char *value = (char *)dlrni_archive_block(a, len + 1);
    if (!value) return DLRN_ERR_MEMORY;
    while (n < len && c.p[n * step]) value[n] = (char)c.p[n * step], n++;
    *is_text = 1;
    return dlrni_archive_annotate(a, m->name, m->name_len - 4, value, n);
}

/* Does a member's name end like this? The folder before it differs: torch names it after the file
   that it saved, or "archive". */
DLRNI_INTERNAL int dlrni_member_ends(const dlrni_member *m, const char *suffix) {
    int64_t n = (int64_t)strlen(suffix);
    return m->name_len >= n && !memcmp(m->name + m->name_len - n, suffix, (size_t)n);
}

/* Member NAME.npy is the tensor NAME; other members are ignored, as numpy does. numpy writes one
   member for each array; a README that someone added does no harm. An array of texts or objects is
   an error, not a gap: a caller would not find out that it is missing. */
DLRNI_INTERNAL dlrn_status dlrni_arrays_open(dlrn_archive *a, const dlrni_zip *z) {
    a->format = "npz";
    for (int64_t i = 0; i < z->n; i++) {
        const dlrni_member *m = &z->m[i];
        const unsigned char *p;
        if (!dlrni_member_ends(m, ".npy")) continue;
        DLRNI_TRY(dlrni_member_bytes(a, m, &p));
        dlrni_cursor c = {p, p + m->size};
        char what[512];
        dlrni_print(what, sizeof what, "%.400s: %.*s", a->path, (int)dlrni_min(m->name_len, 100),
                    m->name);
        int is_text = 0;
        DLRNI_TRY(dlrni_arrays_text(a, what, m, c, &is_text));
        if (!is_text) DLRNI_TRY(dlrni_npy_add(a, what, m->name, m->name_len - 4, c));
    }
    return DLRN_OK;
}

/* ---- Writing ----

   Members are stored, and their data starts at multiples of 64, as in torch's own files, so that it
   can be mapped. The same tensors give the same bytes: the date is always 1 January 1980. The file
   is written from its first byte to its last, since it may go to a pipe: what is known late comes
   late, a CRC after its data and the directory after all members. */

/* A zip that is being written. Only one member is open at a time. */
typedef struct dlrni_zip_writer {
    dlrni_sink *o;
    dlrni_bytes directory;  /* written at the end                            */
    dlrni_bytes comment;    /* written after it                              */
    uint64_t start, header; /* of the open member: its data, its local header */
    int flags;              /* of the open member                            */
    int64_t members;
    char name[256];
} dlrni_zip_writer;

/* The date's bits: 7 of year - 1980, 4 of the month, 5 of the day. A name has at most 255 bytes,
   which is what file systems allow, should somebody unpack the file. Cache lines have 64 bytes, and
   torch aligns to them. */
enum { DLRNI_ZIP_ALIGN = 64, DLRNI_ZIP_DATE = 0x21, DLRNI_ZIP_NAME_MAX = 255 };

/* Begins a zip in a sink; dlrni_zip_close ends it in any case, and frees the directory. All errors
   are in the sink. */
DLRNI_INTERNAL dlrni_zip_writer dlrni_zip_to(dlrni_sink *o) {
    dlrni_zip_writer z;
    memset(&z, 0, sizeof z);
    z.o = o;
    z.directory.ctx = z.comment.ctx = o->ctx;
    return z;
}

/* Adds metadata to the comment, a line KEY=TEXT for each pair. A pair that does not fit is left
   out: one with a line break, a key with '=', or what would exceed the 65535 bytes of a comment. */
DLRNI_INTERNAL void dlrni_zip_comment(dlrni_zip_writer *z, const char *const *metadata) {
    for (; metadata && *metadata; metadata += 2) {
        const char *key = metadata[0], *text = metadata[1];
        if (strpbrk(key, "=\n") || strchr(text, '\n') ||
            strlen(key) + strlen(text) + 2 > UINT16_MAX - (uint64_t)z->comment.len)
            continue;
        dlrni_bytes_text(&z->comment, key);
        dlrni_bytes_text(&z->comment, "=");
        dlrni_bytes_text(&z->comment, text);
        dlrni_bytes_text(&z->comment, "\n");
    }
}

/* The bytes between a member's name and its data: 64-bit sizes, filled in by the record after the
   data, for a large member; then padding, as an extra block of torch's kind. Readers step over
   kinds that they do not know. The 64-bit sizes are 0 here, since the flag says that they follow;
   but the block must be there, or readers would take the record after the data for the narrow
   one. */
DLRNI_INTERNAL void dlrni_zip_write_gap(dlrni_zip_writer *z, int wide, uint64_t padding) {
    unsigned char sizes[DLRNI_EXTRA_BYTES + 16] = {0}, pad[DLRNI_EXTRA_BYTES];
    dlrni_set_field(sizes, DLRNI_EXTRA_KIND, DLRNI_EXTRA_KIND_64);
    dlrni_set_field(sizes, DLRNI_EXTRA_LENGTH, sizeof sizes - DLRNI_EXTRA_BYTES);
    if (wide) dlrni_sink_write(z->o, sizes, sizeof sizes);
    dlrni_set_field(pad, DLRNI_EXTRA_KIND, DLRNI_EXTRA_KIND_PADDING);
    dlrni_set_field(pad, DLRNI_EXTRA_LENGTH, padding);
    dlrni_sink_write(z->o, pad, sizeof pad);
    dlrni_sink_zeros(z->o, padding);
}

/* Opens a member of `size` bytes; its CRC is written after the data. A name beyond ASCII is marked
   as UTF-8: readers take it for code page 437 otherwise. The size is a promise, which decides on 32
   or 64 bits before the data comes; the sizes in the records are counted. 4 is the header of the
   padding block, which is always there. */
DLRNI_INTERNAL void dlrni_zip_start_member(dlrni_zip_writer *z, const char *name, uint64_t size) {
    unsigned char h[DLRNI_LOCAL_BYTES] = {0};
    const int wide = size >= UINT32_MAX;
    dlrni_print(z->name, sizeof z->name, "%s", name);
    z->header = z->o->at;
    z->flags = DLRNI_FLAG_AFTER;
    for (const char *c = z->name; *c; c++)
        if ((unsigned char)*c >= 0x80 && dlrni_is_utf8(z->name)) z->flags |= DLRNI_FLAG_UTF8;
    const uint64_t n = strlen(z->name), extra = (wide ? DLRNI_EXTRA_BYTES + 16 : 0) + 4;
    const uint64_t data = z->header + sizeof h + n + extra; /* without padding */
    const uint64_t padding = (DLRNI_ZIP_ALIGN - data % DLRNI_ZIP_ALIGN) % DLRNI_ZIP_ALIGN;
    dlrni_set_field(h, DLRNI_LOCAL_MAGIC, DLRNI_MAGIC_LOCAL);
    dlrni_set_field(h, DLRNI_LOCAL_VERSION, wide ? DLRNI_VERSION_45 : DLRNI_VERSION_20);
    dlrni_set_field(h, DLRNI_LOCAL_FLAGS, (uint64_t)z->flags);
    dlrni_set_field(h, DLRNI_LOCAL_DATE, DLRNI_ZIP_DATE);
    dlrni_set_field(h, DLRNI_LOCAL_PACKED, wide ? UINT32_MAX : 0);
    dlrni_set_field(h, DLRNI_LOCAL_SIZE, wide ? UINT32_MAX : 0);
    dlrni_set_field(h, DLRNI_LOCAL_NAME_LENGTH, n);
    dlrni_set_field(h, DLRNI_LOCAL_EXTRA_LENGTH, extra + padding);
    dlrni_sink_write(z->o, h, sizeof h);
    dlrni_sink_write(z->o, z->name, n);
    dlrni_zip_write_gap(z, wide, padding);
    z->start = z->o->at;
    z->o->crc = 0;
}

/* Adds the open member, whose size is known now, to the directory. With one number beyond 32 bits
   all three go to the extra block, in the order that the format demands: one case fewer to test.
   Packed and unpacked size are the same. */
DLRNI_INTERNAL void dlrni_zip_list_member(dlrni_zip_writer *z, uint64_t size) {
    unsigned char h[DLRNI_CENTRAL_BYTES] = {0}, extra[DLRNI_EXTRA_BYTES + 24] = {0};
    const uint64_t n = strlen(z->name);
    /* the header counts, too: a small member may begin beyond 4 GB */
    const int wide = size >= UINT32_MAX || z->header >= UINT32_MAX;
    const uint64_t shown = wide ? UINT32_MAX : size;
    dlrni_set_field(h, DLRNI_CENTRAL_MAGIC, DLRNI_MAGIC_CENTRAL);
    dlrni_set_field(h, DLRNI_CENTRAL_MADE_BY, DLRNI_VERSION_45);
    dlrni_set_field(h, DLRNI_CENTRAL_VERSION, wide ? DLRNI_VERSION_45 : DLRNI_VERSION_20);
    dlrni_set_field(h, DLRNI_CENTRAL_FLAGS, (uint64_t)z->flags);
    dlrni_set_field(h, DLRNI_CENTRAL_DATE, DLRNI_ZIP_DATE);
    dlrni_set_field(h, DLRNI_CENTRAL_CRC, z->o->crc);
    dlrni_set_field(h, DLRNI_CENTRAL_PACKED, shown);
    dlrni_set_field(h, DLRNI_CENTRAL_SIZE, shown);
    dlrni_set_field(h, DLRNI_CENTRAL_NAME_LENGTH, n);
    dlrni_set_field(h, DLRNI_CENTRAL_EXTRA_LENGTH, wide ? sizeof extra : 0);
    dlrni_set_field(h, DLRNI_CENTRAL_OFFSET, wide ? UINT32_MAX : z->header);
    dlrni_set_field(extra, DLRNI_EXTRA_KIND, DLRNI_EXTRA_KIND_64);
    dlrni_set_field(extra, DLRNI_EXTRA_LENGTH, sizeof extra - DLRNI_EXTRA_BYTES);
    dlrni_set_field(extra, DLRNI_EXTRA_FIRST, size);
    dlrni_set_field(extra, DLRNI_EXTRA_SECOND, size);
    dlrni_set_field(extra, DLRNI_EXTRA_THIRD, z->header);
    dlrni_bytes_add(&z->directory, h, sizeof h);
    dlrni_bytes_add(&z->directory, z->name, (int64_t)n);
    if (wide) dlrni_bytes_add(&z->directory, extra, sizeof extra);
    z->members++;
}

/* Closes the open member: CRC and sizes after its data, with the magic that the standard leaves
   optional. Python writes it, too. */
DLRNI_INTERNAL void dlrni_zip_end_member(dlrni_zip_writer *z) {
    unsigned char d[DLRNI_AFTER64_BYTES];
    const uint64_t size = z->o->at - z->start;
    const int wide = size >= UINT32_MAX;
    dlrni_zip_list_member(z, size); /* first: the sink's CRC goes on counting */
    dlrni_set_field(d, DLRNI_AFTER_MAGIC, DLRNI_MAGIC_AFTER);
    dlrni_set_field(d, DLRNI_AFTER_CRC, z->o->crc);
    dlrni_set_field(d, wide ? DLRNI_AFTER64_PACKED : DLRNI_AFTER_PACKED, size);
    dlrni_set_field(d, wide ? DLRNI_AFTER64_SIZE : DLRNI_AFTER_SIZE, size);
    dlrni_sink_write(z->o, d, wide ? DLRNI_AFTER64_BYTES : DLRNI_AFTER_BYTES);
}

/* A member of bytes in memory, for which everything is known at once. */
DLRNI_INTERNAL void dlrni_zip_add(dlrni_zip_writer *z, const char *name, const void *bytes,
                                  uint64_t size) {
    dlrni_zip_start_member(z, name, size);
    dlrni_sink_write(z->o, bytes, size);
    dlrni_zip_end_member(z);
}

/* The 64-bit end record and its locator, for a directory at `at` of `size` bytes. The length leaves
   out the magic and itself, 12 bytes. There is one disk, always. */
DLRNI_INTERNAL void dlrni_zip_write_end64(dlrni_zip_writer *z, uint64_t at, uint64_t size) {
    unsigned char e[DLRNI_END64_BYTES] = {0}, locator[DLRNI_LOCATOR_BYTES] = {0};
    dlrni_set_field(e, DLRNI_END64_MAGIC, DLRNI_MAGIC_END64);
    dlrni_set_field(e, DLRNI_END64_LENGTH, DLRNI_END64_BYTES - 12);
    dlrni_set_field(e, DLRNI_END64_MADE_BY, DLRNI_VERSION_45);
    dlrni_set_field(e, DLRNI_END64_VERSION, DLRNI_VERSION_45);
    dlrni_set_field(e, DLRNI_END64_COUNT_HERE, (uint64_t)z->members);
    dlrni_set_field(e, DLRNI_END64_COUNT, (uint64_t)z->members);
    dlrni_set_field(e, DLRNI_END64_SIZE, size);
    dlrni_set_field(e, DLRNI_END64_OFFSET, at);
    dlrni_set_field(locator, DLRNI_LOCATOR_MAGIC, DLRNI_MAGIC_LOCATOR);
    dlrni_set_field(locator, DLRNI_LOCATOR_OFFSET, at + size);
    dlrni_set_field(locator, DLRNI_LOCATOR_DISKS, 1);
    dlrni_sink_write(z->o, e, sizeof e);
    dlrni_sink_write(z->o, locator, sizeof locator);
}

/* Writes the directory and the end record, in their 64-bit form where a number needs it. All ones
   in the end record send readers to the 64-bit record. The end record itself is always there: it is
   what every reader looks for. */
DLRNI_INTERNAL dlrn_status dlrni_zip_close(dlrni_zip_writer *z) {
    unsigned char e[DLRNI_END_BYTES] = {0};
    const uint64_t at = z->o->at, size = (uint64_t)z->directory.len, n = (uint64_t)z->members;
    /* >=, since all ones mean "see the 64-bit record" */
    const int wide = at >= UINT32_MAX || size >= UINT32_MAX || n >= UINT16_MAX;
    if (z->directory.failed || z->comment.failed) dlrni_sink_fail(z->o, DLRN_ERR_MEMORY);
    dlrni_sink_write(z->o, z->directory.p, size);
    dlrn_free(z->o->ctx, z->directory.p);
    if (wide) dlrni_zip_write_end64(z, at, size);
    dlrni_set_field(e, DLRNI_END_MAGIC, DLRNI_MAGIC_END);
    dlrni_set_field(e, DLRNI_END_COUNT_HERE, wide ? UINT16_MAX : n);
    dlrni_set_field(e, DLRNI_END_COUNT, wide ? UINT16_MAX : n);
    dlrni_set_field(e, DLRNI_END_SIZE, wide ? UINT32_MAX : size);
    dlrni_set_field(e, DLRNI_END_OFFSET, wide ? UINT32_MAX : at);
    dlrni_set_field(e, DLRNI_END_COMMENT_LENGTH, (uint64_t)z->comment.len);
    dlrni_sink_write(z->o, e, sizeof e);
    if (z->comment.len) dlrni_sink_write(z->o, z->comment.p, (uint64_t)z->comment.len);
    dlrn_free(z->o->ctx, z->comment.p);
    return z->o->status;
}

/* .npz: a zip of .npy. One member for each array, as numpy.savez does, which adds the suffix to the
   name, too. */
DLRNI_INTERNAL dlrn_status dlrni_arrays_write(dlrni_sink *o, const dlrn_tensor_out *tensors,
                                              int64_t count, const char *const *metadata) {
    dlrni_zip_writer z = dlrni_zip_to(o);
    dlrni_zip_comment(&z, metadata);
    for (int64_t i = 0; i < count && o->status == DLRN_OK; i++) {
        char name[DLRNI_ZIP_NAME_MAX + 1];
        int64_t numel, bytes = 0;
        dlrni_sink_fail(o, dlrni_tensor_bytes(o->ctx, &tensors[i], &numel, &bytes));
        if (o->status != DLRN_OK) break;
        if (dlrni_print(name, sizeof name, "%s.npy", tensors[i].name) > DLRNI_ZIP_NAME_MAX) {
            o->status =
                dlrn_fail(o->ctx, DLRN_ERR_ARGUMENT,
                          "tensor '%.40s...': its name is too long for an .npz", tensors[i].name);
            break;
        }
        dlrni_zip_start_member(&z, name, (uint64_t)bytes + DLRNI_NPY_HEAD);
        dlrni_npy_write(o, &tensors[i]);
        dlrni_zip_end_member(&z);
    }
    return dlrni_zip_close(&z);
}

/* ------------------------------------------------------------------------------------------ */
// >>pickle
/* A restricted pickle machine. Python's pickle is a program for a stack machine that can call any
   function. This one knows the opcodes that files of tensors use, protocols 2 to 5, and the few
   names below; it calls nothing. What torch's functions would return is built as a plain value.

   A value is a node of an arena, freed as a whole. Each opcode makes at most two nodes, so memory
   stays in proportion to the bytes read.

   {"w": a tensor of 6 numbers} as torch saves it, and the stack after each step, top at the right:

      PROTO 2 EMPTY_DICT                                   {}
      BINUNICODE "w"                                       {} "w"
      GLOBAL torch._utils _rebuild_tensor_v2               {} "w" name
      MARK MARK "storage" GLOBAL torch FloatStorage ...    {} "w" name mark mark "storage" type ...
      TUPLE                                                {} "w" name mark (id of a storage)
      BINPERSID                                            {} "w" name mark storage
      0 (6,) (1,) ... TUPLE                                {} "w" name (storage, 0, (6,), ...)
      REDUCE                                               {} "w" tensor
      SETITEM STOP                                         {"w": tensor}

   BINPUT, after nearly every value, gives it a number in the memo, by which BINGET pushes it again:
   layers that share a weight share the value. Two or more items are set at once: MARK before the
   first key, SETITEMS after the last value.

   What Python would do with a hostile file, and what happens here:

      GLOBAL os system, REDUCE         a shell command is run    the name is refused
      a list that holds itself         an endless object         the walk has a bound on its depth
      a tuple of a tuple of a ...,     2^n values from n bytes   the walk has a bound on its work
         each twice, by the memo
      LONG_BINPUT 2^32 - 1             a memo of 34 GB           the index is refused
      BINUNICODE8 2^63                 an error                  the cursor refuses the length */

/* The kinds of values that files of tensors hold, and the mark, which lies on the stack among
   them. */
typedef enum dlrni_py_kind {
    DLRNI_PY_NONE,
    DLRNI_PY_BOOL,
    DLRNI_PY_INT,
    DLRNI_PY_FLOAT,
    DLRNI_PY_STRING, /* text, bytes, or an integer beyond 64 bits */
    DLRNI_PY_TUPLE,
    DLRNI_PY_LIST,
    DLRNI_PY_DICT,
    DLRNI_PY_LINK, /* a place in a tuple, list or dictionary */
    DLRNI_PY_NAME, /* a function or type */
    DLRNI_PY_STORAGE,
    DLRNI_PY_TENSOR,
    DLRNI_PY_MARK
} dlrni_py_kind;

/* What REDUCE makes of a call of a name. A call is a closed list of cases: no name leads to
   code. */
typedef enum dlrni_callee {
    DLRNI_CALL_REFUSED,   /* a type                                          */
    DLRNI_CALL_TENSOR,    /* (storage, offset, size, stride, ...)            */
    DLRNI_CALL_TENSOR_V3, /* the same, with the element type at 6            */
    DLRNI_CALL_TYPED,     /* (function, type, arguments, attributes)         */
    DLRNI_CALL_FIRST,     /* the first argument                              */
    DLRNI_CALL_PAIRS,     /* a dictionary of pairs                           */
    DLRNI_CALL_NONE       /* a value that holds no tensors: replaced by None */
} dlrni_callee;

/* A text that is borrowed from the file: strings cost no memory of ours. */
typedef struct dlrni_span {
    const char *p; /* not closed with a 0 */
    int64_t len;
} dlrni_span;

/* A value. `kind` says which member of the union holds, and is checked before each use, since the
   file decides it. */
typedef struct dlrni_py_value dlrni_py_value;
struct dlrni_py_value {
    dlrni_py_kind kind;
    union {
        int64_t integer; /* BOOL, INT */
        double real;     /* FLOAT     */
        dlrni_span text; /* STRING: in the file's bytes */
        struct {
            dlrni_py_value *first, *last; /* links; DICT: key, value, key, value ... */
            int64_t count;
        } items; /* TUPLE, LIST, DICT */
        struct {
            dlrni_py_value *item, *next;
        } link; /* LINK */
        struct {
            dlrni_callee callee;
            dlrn_dtype dtype; /* of a storage type or dtype; else DLRN_DTYPE_COUNT */
        } name;               /* NAME */
        struct {
            dlrni_span key; /* names the member that holds its bytes */
            int64_t elements, view_offset;
            dlrn_dtype dtype;
        } storage; /* STORAGE; view_offset: elements before it, in files from before 1.6 */
        struct {
            const dlrni_py_value *storage, *shape, *stride; /* shape, stride: tuples of INT */
            int64_t offset;
            dlrn_dtype dtype;
        } tensor; /* TENSOR */
    } as;
};

/* The machine: what is read, the stack, the memo, and the arena that owns every value. */
typedef struct dlrni_pickle {
    dlrn_archive *a;
    const char *what; /* file and member, for errors */
    const unsigned char *start;
    dlrni_cursor c;
    dlrni_py_value **stack, **memo, **chunks;
    int64_t depth, stack_cap, memos, memo_cap;
    int64_t n_chunks, chunk_cap, in_chunk; /* the arena: chunks, and values used in the last one */
    int64_t pairs;                         /* that were copied from lists into dictionaries      */
    int done;                              /* STOP was read                                      */
    dlrni_py_value *result;
} dlrni_pickle;

/* Values that are allocated together, about 12 KB: values must not move, since others point to
   them, so the arena cannot grow as one array. */
enum { DLRNI_PICKLE_CHUNK = 256 };

/* The position is the number of bytes read so far, as in pickletools.dis. */
DLRNI_INTERNAL dlrn_status dlrni_pickle_error(dlrni_pickle *p, const char *what) {
    return dlrn_fail(p->a->ctx, DLRN_ERR_FORMAT, "%s: pickle, byte %lld: %s", p->what,
                     (long long)(p->c.p - p->start), what);
}

/* ---- Values and the stack ---- */

/* A value of the arena, all zero but for its kind; NULL: no memory. A new chunk is begun when the
   next value needs it: in_chunk is 0 with no chunk, and with a full one. */
DLRNI_INTERNAL dlrni_py_value *dlrni_pickle_new(dlrni_pickle *p, dlrni_py_kind kind) {
    if (p->in_chunk == 0) {
        if (!DLRNI_GROW(p->a->ctx, &p->chunks, &p->chunk_cap, p->n_chunks, p->n_chunks + 1))
            return NULL;
        dlrni_py_value *chunk = DLRNI_NEW_ZERO(p->a->ctx, dlrni_py_value, DLRNI_PICKLE_CHUNK);
        if (!chunk) return NULL;
        p->chunks[p->n_chunks++] = chunk;
    }
    dlrni_py_value *v = &p->chunks[p->n_chunks - 1][p->in_chunk];
    p->in_chunk = (p->in_chunk + 1) % DLRNI_PICKLE_CHUNK;
    v->kind = kind;
    return v;
}

/* v NULL: no memory for it. So callers push what dlrni_pickle_new returns, and check once. The
   stack has no bound of its own: each entry has cost a byte of the file. */
DLRNI_INTERNAL dlrn_status dlrni_pickle_push(dlrni_pickle *p, dlrni_py_value *v) {
    if (!v || !DLRNI_GROW(p->a->ctx, &p->stack, &p->stack_cap, p->depth, p->depth + 1))
        return DLRN_ERR_MEMORY;
    p->stack[p->depth++] = v;
    return DLRN_OK;
}

/* A value without content: None, a mark, an empty container. */
DLRNI_INTERNAL dlrn_status dlrni_pickle_push_empty(dlrni_pickle *p, dlrni_py_kind kind) {
    return dlrni_pickle_push(p, dlrni_pickle_new(p, kind));
}

/* INT or BOOL. */
DLRNI_INTERNAL dlrn_status dlrni_pickle_push_int(dlrni_pickle *p, dlrni_py_kind kind, int64_t n) {
    dlrni_py_value *v = dlrni_pickle_new(p, kind);
    if (v) v->as.integer = n;
    return dlrni_pickle_push(p, v);
}

/* The next len bytes as a string. They are not checked for UTF-8: Python 2 wrote bytes, and names
   are compared, not shown. */
DLRNI_INTERNAL dlrn_status dlrni_pickle_push_text(dlrni_pickle *p, uint64_t len) {
    const unsigned char *text = dlrni_take(&p->c, len);
    if (!text) return dlrni_pickle_error(p, "a string reaches beyond the end");
    dlrni_py_value *v = dlrni_pickle_new(p, DLRNI_PY_STRING);
    if (v) v->as.text.p = (const char *)text, v->as.text.len = (int64_t)len;
    return dlrni_pickle_push(p, v);
}

/* NULL: the stack is empty, or a mark is on top, which is no value and must not be taken for
   one. */
DLRNI_INTERNAL dlrni_py_value *dlrni_pickle_pop(dlrni_pickle *p) {
    return p->depth && p->stack[p->depth - 1]->kind != DLRNI_PY_MARK ? p->stack[--p->depth] : NULL;
}

/* Drops the value on top; below it at least `below` must be left. That is for BUILD, which sets the
   state of the object below: we ignore the state, but not a missing object. */
DLRNI_INTERNAL dlrn_status dlrni_pickle_drop(dlrni_pickle *p, int64_t below) {
    return dlrni_pickle_pop(p) && p->depth >= below
               ? DLRN_OK
               : dlrni_pickle_error(p, "the stack is too short");
}

/* Equality with a text closed by a 0. A 0 byte inside s makes the lengths differ. */
DLRNI_INTERNAL int dlrni_span_is(dlrni_span s, const char *text) {
    return (size_t)s.len == strlen(text) && !memcmp(s.p, text, (size_t)s.len);
}

/* ---- Tuples, lists, dictionaries ---- */

/* A container holds links, because one value can be in several containers: with one `next` in the
   value itself, those would run into each other. */
DLRNI_INTERNAL dlrn_status dlrni_pickle_append(dlrni_pickle *p, dlrni_py_value *to,
                                               dlrni_py_value *item) {
    dlrni_py_value *link = dlrni_pickle_new(p, DLRNI_PY_LINK);
    if (!link) return DLRN_ERR_MEMORY;
    link->as.link.item = item;
    if (to->as.items.last)
        to->as.items.last->as.link.next = link;
    else
        to->as.items.first = link;
    to->as.items.last = link;
    to->as.items.count++;
    return DLRN_OK;
}

/* torch writes sizes as a tuple, or as torch.Size of one; other programs write a list. */
DLRNI_INTERNAL int dlrni_pickle_is_sequence(const dlrni_py_value *v) {
    return v && (v->kind == DLRNI_PY_TUPLE || v->kind == DLRNI_PY_LIST);
}

/* The item of a tuple or list; NULL: there is none, or v is something else. Linear, for the few
   arguments of a call. */
DLRNI_INTERNAL dlrni_py_value *dlrni_pickle_item(const dlrni_py_value *v, int64_t index) {
    if (!dlrni_pickle_is_sequence(v)) return NULL;
    const dlrni_py_value *link = v->as.items.first;
    while (link && index-- > 0) link = link->as.link.next;
    return link ? link->as.link.item : NULL;
}

/* Moves the top `count` values into a container; -1: those above the mark, which goes, too. A mark
   among the values would mean that an opcode of fixed width reaches across it, which no writer
   does. */
DLRNI_INTERNAL dlrn_status dlrni_pickle_move(dlrni_pickle *p, dlrni_py_value *to, int64_t count) {
    int64_t from = p->depth - count, keep = from;
    if (count < 0) {
        for (from = p->depth; from > 0 && p->stack[from - 1]->kind != DLRNI_PY_MARK;) from--;
        keep = from - 1;
    }
    if (!to) return DLRN_ERR_MEMORY;
    if (keep < 0) return dlrni_pickle_error(p, "the stack is too short");
    for (int64_t i = from; i < p->depth; i++) {
        if (p->stack[i]->kind == DLRNI_PY_MARK) return dlrni_pickle_error(p, "a mark out of place");
        DLRNI_TRY(dlrni_pickle_append(p, to, p->stack[i]));
    }
    p->depth = keep;
    return DLRN_OK;
}

/* TUPLE, TUPLE1, TUPLE2, TUPLE3: protocol 2 has short forms for the tuples that are met most. */
DLRNI_INTERNAL dlrn_status dlrni_pickle_tuple(dlrni_pickle *p, int64_t count) {
    dlrni_py_value *t = dlrni_pickle_new(p, DLRNI_PY_TUPLE);
    DLRNI_TRY(dlrni_pickle_move(p, t, count));
    return dlrni_pickle_push(p, t);
}

/* APPEND, APPENDS, SETITEM, SETITEMS: the values go into the container below them. They are taken
   off first: the container is the value below the mark. A dictionary keeps equal keys here,
   although Python would keep the last: two tensors of one name are refused when they are added. */
DLRNI_INTERNAL dlrn_status dlrni_pickle_extend(dlrni_pickle *p, dlrni_py_kind kind, int64_t count) {
    dlrni_py_value items;
    memset(&items, 0, sizeof items);
    DLRNI_TRY(dlrni_pickle_move(p, &items, count));
    dlrni_py_value *to = p->depth ? p->stack[p->depth - 1] : NULL;
    if (!to || to->kind != kind || (kind == DLRNI_PY_DICT && items.as.items.count % 2))
        return dlrni_pickle_error(p, "expected a container below its items");
    for (const dlrni_py_value *l = items.as.items.first; l; l = l->as.link.next)
        DLRNI_TRY(dlrni_pickle_append(p, to, l->as.link.item));
    return DLRN_OK;
}

/* BINPUT, LONG_BINPUT, MEMOIZE. Python numbers its memo without gaps, so an index beyond the bytes
   read is only there to claim memory. Numbers may be skipped, and are NULL. */
DLRNI_INTERNAL dlrn_status dlrni_pickle_memoize(dlrni_pickle *p, uint64_t index) {
    if (!p->depth) return dlrni_pickle_error(p, "expected a value to memoize");
    if (index > (uint64_t)(p->c.p - p->start))
        return dlrni_pickle_error(p, "a memo index beyond the bytes read");
    int64_t old = p->memos, need = (int64_t)index + 1;
    if (!DLRNI_GROW(p->a->ctx, &p->memo, &p->memo_cap, old, need)) return DLRN_ERR_MEMORY;
    for (; p->memos < need; p->memos++) p->memo[p->memos] = NULL;
    p->memo[index] = p->stack[p->depth - 1];
    return DLRN_OK;
}

/* BINGET, LONG_BINGET: pushes a value again, by its number. It is the same value, not a copy: this
   is where sharing, and every bomb, comes from. */
DLRNI_INTERNAL dlrn_status dlrni_pickle_recall(dlrni_pickle *p, uint64_t index) {
    if (index >= (uint64_t)p->memos || !p->memo[index])
        return dlrni_pickle_error(p, "an unknown memo index");
    return dlrni_pickle_push(p, p->memo[index]);
}

/* ---- Names ---- */

/* The element type of torch.FloatStorage, torch.float32 and so on; DLRN_DTYPE_COUNT: the name is
   not a type of elements. UntypedStorage is bytes: with _rebuild_tensor_v3 the type stands in the
   call. */
DLRNI_INTERNAL dlrn_dtype dlrni_torch_dtype(dlrni_span module, dlrni_span name) {
    char storage[32];
    if (dlrni_span_is(module, "torch.storage") && dlrni_span_is(name, "UntypedStorage"))
        return DLRN_U8;
    for (int i = 0; i < DLRN_DTYPE_COUNT && dlrni_span_is(module, "torch"); i++) {
        const dlrni_dtype_names *d = &dlrni_dtypes[i];
        dlrni_print(storage, sizeof storage, "%sStorage", d->torch_storage);
        if (dlrni_span_is(name, d->torch) || (*d->torch_storage && dlrni_span_is(name, storage)))
            return (dlrn_dtype)i;
    }
    return DLRN_DTYPE_COUNT;
}

/* Every name that a pickle may use, and what a call of it gives: those that
   torch.load(weights_only=True) takes and a file of tensors needs. Protocol 2 says __builtin__ for
   builtins; _codecs.encode is how protocol 2 writes bytes. A type, such as
   torch.nn.parameter.Parameter, may be an argument, but is not called. */
static const struct {
    const char *module, *name;
    dlrni_callee callee;
} dlrni_pickle_known[] = {{"collections", "OrderedDict", DLRNI_CALL_PAIRS},
                          {"torch._utils", "_rebuild_tensor", DLRNI_CALL_TENSOR},
                          {"torch._utils", "_rebuild_tensor_v2", DLRNI_CALL_TENSOR},
                          {"torch._utils", "_rebuild_tensor_v3", DLRNI_CALL_TENSOR_V3},
                          {"torch._utils", "_rebuild_parameter", DLRNI_CALL_FIRST},
                          {"torch._utils", "_rebuild_parameter_with_state", DLRNI_CALL_FIRST},
                          {"torch._tensor", "_rebuild_from_type_v2", DLRNI_CALL_TYPED},
                          {"torch", "Size", DLRNI_CALL_FIRST},
                          {"torch", "device", DLRNI_CALL_FIRST},
                          {"torch", "Tensor", DLRNI_CALL_REFUSED},
                          {"torch.nn.parameter", "Parameter", DLRNI_CALL_REFUSED},
                          {"torch.nn.parameter", "Buffer", DLRNI_CALL_REFUSED},
                          {"__builtin__", "set", DLRNI_CALL_NONE},
                          {"builtins", "set", DLRNI_CALL_NONE},
                          {"__builtin__", "complex", DLRNI_CALL_NONE},
                          {"builtins", "complex", DLRNI_CALL_NONE},
                          {"__builtin__", "bytes", DLRNI_CALL_NONE},
                          {"builtins", "bytes", DLRNI_CALL_NONE},
                          {"_codecs", "encode", DLRNI_CALL_NONE},
                          {"collections", "Counter", DLRNI_CALL_NONE},
                          {"torch.serialization", "_get_layout", DLRNI_CALL_NONE}};

/* Pushes a name, if it is one that files of tensors need; every other one is refused. The error
   shows the name, which tells a harmless file from an attack, and 200 bytes of it at most. */
DLRNI_INTERNAL dlrn_status dlrni_pickle_name(dlrni_pickle *p, dlrni_span module, dlrni_span name) {
    const size_t count = sizeof dlrni_pickle_known / sizeof *dlrni_pickle_known;
    const dlrn_dtype dtype = dlrni_torch_dtype(module, name);
    size_t i = 0;
    while (i < count && !(dlrni_span_is(module, dlrni_pickle_known[i].module) &&
                          dlrni_span_is(name, dlrni_pickle_known[i].name)))
        i++;
    if (i == count && dtype == DLRN_DTYPE_COUNT)
        return dlrn_fail(p->a->ctx, DLRN_ERR_UNSUPPORTED,
                         "%s: pickle, byte %lld: the name '%.*s.%.*s' is not one of those that a "
                         "file of tensors needs; nothing was executed. A whole module cannot be "
                         "read: save ae.state_dict() instead",
                         p->what, (long long)(p->c.p - p->start), (int)dlrni_min(module.len, 200),
                         module.p, (int)dlrni_min(name.len, 200), name.p);
    dlrni_py_value *v = dlrni_pickle_new(p, DLRNI_PY_NAME);
    if (v) v->as.name.callee = i < count ? dlrni_pickle_known[i].callee : DLRNI_CALL_REFUSED;
    if (v) v->as.name.dtype = dtype;
    return dlrni_pickle_push(p, v);
}

/* A line of an older opcode, without its newline; p NULL: there is none. Protocol 2 took GLOBAL
   over from the textual protocols. */
DLRNI_INTERNAL dlrni_span dlrni_pickle_line(dlrni_pickle *p) {
    dlrni_span line = {(const char *)p->c.p, 0};
    const size_t left = (size_t)(p->c.end - p->c.p);
    const char *end = left ? (const char *)memchr(line.p, '\n', left) : NULL;
    line.len = end ? end - line.p : 0;
    if (!end) line.p = NULL;
    if (end) (void)dlrni_take(&p->c, (uint64_t)line.len + 1);
    return line;
}

/* GLOBAL: module and name as lines. */
DLRNI_INTERNAL dlrn_status dlrni_pickle_global(dlrni_pickle *p) {
    dlrni_span module = dlrni_pickle_line(p), name = module;
    if (module.p) name = dlrni_pickle_line(p);
    if (!name.p) return dlrni_pickle_error(p, "a name is cut off");
    return dlrni_pickle_name(p, module, name);
}

/* STACK_GLOBAL, from protocol 4 on: module and name as strings on the stack. They may come from the
   memo, so a scan of the file for bad names would not find them. */
DLRNI_INTERNAL dlrn_status dlrni_pickle_stack_global(dlrni_pickle *p) {
    const dlrni_py_value *name = dlrni_pickle_pop(p), *module = dlrni_pickle_pop(p);
    if (!name || !module || name->kind != DLRNI_PY_STRING || module->kind != DLRNI_PY_STRING)
        return dlrni_pickle_error(p, "expected two strings for a name");
    return dlrni_pickle_name(p, module->as.text, name->as.text);
}

/* ---- Calls ---- */

/* A tuple of sizes; 0: it is not one, or has more than DLRN_MAX_DIMS. Their sign and size do not
   matter yet: dlrni_archive_add looks at those. */
DLRNI_INTERNAL int dlrni_pickle_sizes(const dlrni_py_value *v, int64_t *out, int *ndim) {
    int n = 0;
    if (!dlrni_pickle_is_sequence(v) || v->as.items.count > DLRN_MAX_DIMS) return 0;
    for (const dlrni_py_value *l = v->as.items.first; l; l = l->as.link.next) {
        if (l->as.link.item->kind != DLRNI_PY_INT) return 0;
        out[n++] = l->as.link.item->as.integer;
    }
    *ndim = n;
    return 1;
}

/* _rebuild_tensor, _v2, _v3: (storage, offset, size, stride, requires_grad, hooks, ...). The next
   argument is, in v2, a dictionary of bits (negated, conjugated), and in v3 the element type.
   Arguments by position, as in torch/_utils.py; further ones are ignored, because newer versions
   add some. requires_grad and hooks say nothing about the numbers. A negated tensor would be read
   with the wrong sign, so it is refused. */
DLRNI_INTERNAL dlrn_status dlrni_pickle_tensor(dlrni_pickle *p, const dlrni_py_value *args,
                                               int is_v3) {
    enum { STORAGE, OFFSET, SHAPE, STRIDE, EXTRA = 6 };
    const dlrni_py_value *storage = dlrni_pickle_item(args, STORAGE);
    const dlrni_py_value *offset = dlrni_pickle_item(args, OFFSET);
    const dlrni_py_value *extra = dlrni_pickle_item(args, EXTRA);
    dlrni_py_value *t = dlrni_pickle_new(p, DLRNI_PY_TENSOR);
    int64_t ignored[DLRN_MAX_DIMS];
    int ndim, strides;
    if (!t) return DLRN_ERR_MEMORY;
    t->as.tensor.shape = dlrni_pickle_item(args, SHAPE);
    t->as.tensor.stride = dlrni_pickle_item(args, STRIDE);
    if (!storage || storage->kind != DLRNI_PY_STORAGE || !offset || offset->kind != DLRNI_PY_INT ||
        !dlrni_pickle_sizes(t->as.tensor.shape, ignored, &ndim) ||
        !dlrni_pickle_sizes(t->as.tensor.stride, ignored, &strides) || strides != ndim)
        return dlrni_pickle_error(p, "malformed arguments of a tensor");
    t->as.tensor.storage = storage;
    t->as.tensor.offset = offset->as.integer;
    t->as.tensor.dtype = storage->as.storage.dtype;
    if (!is_v3 && extra && extra->kind == DLRNI_PY_DICT && extra->as.items.count)
        return dlrn_fail(p->a->ctx, DLRN_ERR_UNSUPPORTED,
                         "%s: pickle, byte %lld: a tensor marked as negated or conjugated: save a "
                         "copy of it, made with torch.resolve_neg",
                         p->what, (long long)(p->c.p - p->start));
    if (is_v3 && extra && extra->kind == DLRNI_PY_NAME) t->as.tensor.dtype = extra->as.name.dtype;
    if (is_v3 &&
        (!extra || extra->kind != DLRNI_PY_NAME || extra->as.name.dtype == DLRN_DTYPE_COUNT))
        return dlrni_pickle_error(p, "a tensor of unknown dtype");
    return dlrni_pickle_push(p, t);
}

/* OrderedDict([(key, value), ...]), as Python 2 writes one; Python 3 calls it without arguments,
   and SETITEMS follows. The pairs are copied, and a list that is shared could be copied any number
   of times, so no more pairs than bytes read are copied. */
DLRNI_INTERNAL dlrn_status dlrni_pickle_pairs(dlrni_pickle *p, const dlrni_py_value *args) {
    dlrni_py_value *dict = dlrni_pickle_new(p, DLRNI_PY_DICT);
    const dlrni_py_value *pairs = dlrni_pickle_item(args, 0), *l = NULL;
    if (!dict) return DLRN_ERR_MEMORY;
    if (pairs && pairs->kind == DLRNI_PY_LIST) l = pairs->as.items.first;
    for (; l; l = l->as.link.next) {
        dlrni_py_value *key = dlrni_pickle_item(l->as.link.item, 0);
        dlrni_py_value *value = dlrni_pickle_item(l->as.link.item, 1);
        if (!key || !value) return dlrni_pickle_error(p, "malformed items of a dictionary");
        if (++p->pairs > p->c.p - p->start)
            return dlrni_pickle_error(p, "dictionaries of more pairs than bytes read");
        DLRNI_TRY(dlrni_pickle_append(p, dict, key));
        DLRNI_TRY(dlrni_pickle_append(p, dict, value));
    }
    return dlrni_pickle_push(p, dict);
}

/* REDUCE: the value that a call would return. CALL_FIRST gives its first argument: a parameter is
   its tensor, torch.Size its sizes, a device its name. */
DLRNI_INTERNAL dlrn_status dlrni_pickle_reduce(dlrni_pickle *p) {
    const dlrni_py_value *args = dlrni_pickle_pop(p), *callee = dlrni_pickle_pop(p);
    if (callee && callee->kind == DLRNI_PY_NAME && callee->as.name.callee == DLRNI_CALL_TYPED &&
        dlrni_pickle_item(args, 2)) { /* a tensor with attributes: make the plain one */
        callee = dlrni_pickle_item(args, 0);
        args = dlrni_pickle_item(args, 2);
    }
    if (!args || args->kind != DLRNI_PY_TUPLE || !callee || callee->kind != DLRNI_PY_NAME)
        return dlrni_pickle_error(p, "expected a name and a tuple to call it with");
    switch (callee->as.name.callee) {
    case DLRNI_CALL_PAIRS: return dlrni_pickle_pairs(p, args);
    case DLRNI_CALL_TENSOR: return dlrni_pickle_tensor(p, args, 0);
    case DLRNI_CALL_TENSOR_V3: return dlrni_pickle_tensor(p, args, 1);
    case DLRNI_CALL_NONE: return dlrni_pickle_push_empty(p, DLRNI_PY_NONE);
    case DLRNI_CALL_FIRST: break;
    default: return dlrni_pickle_error(p, "a call of a type");
    }
    dlrni_py_value *first = dlrni_pickle_item(args, 0); /* the tensor, the sizes, the device */
    return first ? dlrni_pickle_push(p, first)
                 : dlrni_pickle_error(p, "a call without its argument");
}

/* BINPERSID: ('storage', type, key, location, elements[, view]). The view of older files is (key,
   offset, elements) of a part of the storage. A persistent id names something outside of the
   pickle, which the reader must bring. Key and number of elements are only claims until the walk
   finds the storage. The location, "cpu" or "cuda:0", says where it was. */
DLRNI_INTERNAL dlrn_status dlrni_pickle_storage(dlrni_pickle *p) {
    enum { ID_WORD, ID_TYPE, ID_KEY, ID_LOCATION, ID_ELEMENTS, ID_VIEW };
    const dlrni_py_value *id = dlrni_pickle_pop(p), *view = dlrni_pickle_item(id, ID_VIEW);
    const dlrni_py_value *word = dlrni_pickle_item(id, ID_WORD),
                         *type = dlrni_pickle_item(id, ID_TYPE);
    const dlrni_py_value *key = dlrni_pickle_item(id, ID_KEY),
                         *n = dlrni_pickle_item(id, ID_ELEMENTS);
    dlrni_py_value *s = dlrni_pickle_new(p, DLRNI_PY_STORAGE);
    if (!s) return DLRN_ERR_MEMORY;
    if (!word || word->kind != DLRNI_PY_STRING || !dlrni_span_is(word->as.text, "storage") ||
        !type || type->kind != DLRNI_PY_NAME || type->as.name.dtype == DLRN_DTYPE_COUNT || !key ||
        key->kind != DLRNI_PY_STRING || !n || n->kind != DLRNI_PY_INT)
        return dlrni_pickle_error(p, "expected a persistent id of a storage");
    s->as.storage.key = key->as.text;
    s->as.storage.elements = n->as.integer;
    s->as.storage.dtype = type->as.name.dtype;
    if (view && view->kind == DLRNI_PY_TUPLE) {
        const dlrni_py_value *offset = dlrni_pickle_item(view, 1);
        if (!offset || offset->kind != DLRNI_PY_INT)
            return dlrni_pickle_error(p, "malformed view of a storage");
        s->as.storage.view_offset = offset->as.integer;
    }
    return dlrni_pickle_push(p, s);
}

/* ---- The opcodes ---- */

/* LONG1: a signed number of `size` bytes, low byte first, as many as it needs. Only torch's magic
   number has more than 64 bits; it is kept as its bytes. A size of 0 is the number 0. */
DLRNI_INTERNAL dlrn_status dlrni_pickle_long(dlrni_pickle *p, uint64_t size) {
    if (size > 8) return dlrni_pickle_push_text(p, size);
    const unsigned char *v = dlrni_take(&p->c, size);
    if (!v) return dlrni_pickle_error(p, "a number is cut off");
    uint64_t u = dlrni_le(v, (int)size);
    if (size && size < 8 && (v[size - 1] & 0x80)) u |= ~(uint64_t)0 << 8 * size;
    return dlrni_pickle_push_int(p, DLRNI_PY_INT, (int64_t)u);
}

/* BINFLOAT: a double, high byte first, unlike all other numbers here. Checkpoints hold learning
   rates and scales in this form. */
DLRNI_INTERNAL dlrn_status dlrni_pickle_float(dlrni_pickle *p) {
    const unsigned char *raw = dlrni_take(&p->c, 8);
    if (!raw) return dlrni_pickle_error(p, "a number is cut off");
    const uint64_t u = dlrni_from_be(raw, 8);
    dlrni_py_value *v = dlrni_pickle_new(p, DLRNI_PY_FLOAT);
    if (v) memcpy(&v->as.real, &u, sizeof u);
    return dlrni_pickle_push(p, v);
}

/* torch writes protocol 2; 5 is the newest (Python 3.8); 0 and 1 are another, textual form. */
DLRNI_INTERNAL dlrn_status dlrni_pickle_protocol(dlrni_pickle *p, uint64_t n) {
    return n >= 2 && n <= 5 ? DLRN_OK : dlrni_pickle_error(p, "a protocol other than 2 to 5");
}

/* The value on top is the result. Values left below it are dropped with the arena, as Python drops
   them. */
DLRNI_INTERNAL dlrn_status dlrni_pickle_stop(dlrni_pickle *p) {
    p->done = 1;
    p->result = dlrni_pickle_pop(p);
    return p->result ? DLRN_OK : dlrni_pickle_error(p, "it ends without a value");
}

/* The whole machine: X(name, code, bytes of its argument n, what it does to machine p). BUILD sets
   attributes of an object, such as a state dict's _metadata: they are dropped. FRAME announces how
   many bytes to read at once, which is of no use in memory. Opcodes that are missing: INST, OBJ,
   NEWOBJ, EXT, which make objects; LONG4, sets, bytes arrays, which no file of tensors has; and the
   textual ones of protocols 0 and 1. */
#define DLRNI_OPCODE_LIST(X)                                                                       \
    X(PROTO, 0x80, 1, dlrni_pickle_protocol(p, n))                                                 \
    X(FRAME, 0x95, 8, DLRN_OK)                                                                     \
    X(STOP, '.', 0, dlrni_pickle_stop(p))                                                          \
    X(MARK, '(', 0, dlrni_pickle_push_empty(p, DLRNI_PY_MARK))                                     \
    X(POP, '0', 0, dlrni_pickle_drop(p, 0))                                                        \
    X(BUILD, 'b', 0, dlrni_pickle_drop(p, 1))                                                      \
    X(NONE, 'N', 0, dlrni_pickle_push_empty(p, DLRNI_PY_NONE))                                     \
    X(NEWTRUE, 0x88, 0, dlrni_pickle_push_int(p, DLRNI_PY_BOOL, 1))                                \
    X(NEWFALSE, 0x89, 0, dlrni_pickle_push_int(p, DLRNI_PY_BOOL, 0))                               \
    X(BININT, 'J', 4, dlrni_pickle_push_int(p, DLRNI_PY_INT, (int32_t)(uint32_t)n))                \
    X(BININT1, 'K', 1, dlrni_pickle_push_int(p, DLRNI_PY_INT, (int64_t)n))                         \
    X(BININT2, 'M', 2, dlrni_pickle_push_int(p, DLRNI_PY_INT, (int64_t)n))                         \
    X(LONG1, 0x8a, 1, dlrni_pickle_long(p, n))                                                     \
    X(BINFLOAT, 'G', 0, dlrni_pickle_float(p))                                                     \
    X(BINSTRING, 'T', 4, dlrni_pickle_push_text(p, n))                                             \
    X(SHORT_BINSTRING, 'U', 1, dlrni_pickle_push_text(p, n))                                       \
    X(BINUNICODE, 'X', 4, dlrni_pickle_push_text(p, n))                                            \
    X(SHORT_BINUNICODE, 0x8c, 1, dlrni_pickle_push_text(p, n))                                     \
    X(BINUNICODE8, 0x8d, 8, dlrni_pickle_push_text(p, n))                                          \
    X(EMPTY_TUPLE, ')', 0, dlrni_pickle_push_empty(p, DLRNI_PY_TUPLE))                             \
    X(EMPTY_LIST, ']', 0, dlrni_pickle_push_empty(p, DLRNI_PY_LIST))                               \
    X(EMPTY_DICT, '}', 0, dlrni_pickle_push_empty(p, DLRNI_PY_DICT))                               \
    X(TUPLE, 't', 0, dlrni_pickle_tuple(p, -1))                                                    \
    X(TUPLE1, 0x85, 0, dlrni_pickle_tuple(p, 1))                                                   \
    X(TUPLE2, 0x86, 0, dlrni_pickle_tuple(p, 2))                                                   \
    X(TUPLE3, 0x87, 0, dlrni_pickle_tuple(p, 3))                                                   \
    X(APPEND, 'a', 0, dlrni_pickle_extend(p, DLRNI_PY_LIST, 1))                                    \
    X(APPENDS, 'e', 0, dlrni_pickle_extend(p, DLRNI_PY_LIST, -1))                                  \
    X(SETITEM, 's', 0, dlrni_pickle_extend(p, DLRNI_PY_DICT, 2))                                   \
    X(SETITEMS, 'u', 0, dlrni_pickle_extend(p, DLRNI_PY_DICT, -1))                                 \
    X(BINPUT, 'q', 1, dlrni_pickle_memoize(p, n))                                                  \
    X(LONG_BINPUT, 'r', 4, dlrni_pickle_memoize(p, n))                                             \
    X(MEMOIZE, 0x94, 0, dlrni_pickle_memoize(p, (uint64_t)p->memos))                               \
    X(BINGET, 'h', 1, dlrni_pickle_recall(p, n))                                                   \
    X(LONG_BINGET, 'j', 4, dlrni_pickle_recall(p, n))                                              \
    X(GLOBAL, 'c', 0, dlrni_pickle_global(p))                                                      \
    X(STACK_GLOBAL, 0x93, 0, dlrni_pickle_stack_global(p))                                         \
    X(BINPERSID, 'Q', 0, dlrni_pickle_storage(p))                                                  \
    X(REDUCE, 'R', 0, dlrni_pickle_reduce(p))

enum {
#define DLRNI_OPCODE_ENUM(name, code, bytes, action) DLRNI_OP_##name = code,
    DLRNI_OPCODE_LIST(DLRNI_OPCODE_ENUM)
#undef DLRNI_OPCODE_ENUM
        DLRNI_OP_COUNT = 256
};

/* Bytes of an opcode's argument; -1: unknown. Known from the opcode alone, so that the argument is
   taken in one place, with one check. */
DLRNI_INTERNAL int dlrni_opcode_bytes(int op) {
#define DLRNI_OPCODE_BYTES(name, code, bytes, action)                                              \
    case code: return bytes;
    switch (op) {
        DLRNI_OPCODE_LIST(DLRNI_OPCODE_BYTES)
    default: return -1;
    }
#undef DLRNI_OPCODE_BYTES
}

/* Runs one opcode; its argument has been read. Unknown opcodes do not come here. */
DLRNI_INTERNAL dlrn_status dlrni_pickle_act(dlrni_pickle *p, int op, uint64_t n) {
#define DLRNI_OPCODE_ACTION(name, code, bytes, action)                                             \
    case code: return action;
    switch (op) {
        DLRNI_OPCODE_LIST(DLRNI_OPCODE_ACTION)
    default: return DLRN_OK;
    }
#undef DLRNI_OPCODE_ACTION
}

/* Reads one opcode with its argument, and runs it. An unknown opcode ends the reading: its argument
   has no known length, so nothing after it would be understood. */
DLRNI_INTERNAL dlrn_status dlrni_pickle_next(dlrni_pickle *p) {
    const unsigned char *op = dlrni_take(&p->c, 1), *v;
    if (!op) return dlrni_pickle_error(p, "it ends before its STOP");
    const int bytes = dlrni_opcode_bytes(*op);
    if (bytes < 0)
        return dlrn_fail(p->a->ctx, DLRN_ERR_UNSUPPORTED,
                         "%s: pickle, byte %lld: the opcode 0x%02x is not one of those "
                         "that a file of tensors needs",
                         p->what, (long long)(op - p->start), (unsigned)*op);
    if (!(v = dlrni_take(&p->c, (uint64_t)bytes)))
        return dlrni_pickle_error(p, "the argument of an opcode is cut off");
    return dlrni_pickle_act(p, *op, dlrni_le(v, bytes));
}

/* Runs one pickle and leaves the cursor after its STOP. Files from before torch 1.6 run five on
   one machine: the memo and the stack begin anew, and the arena stays, because the last pickles
   need values of those before. */
DLRNI_INTERNAL dlrn_status dlrni_pickle_run(dlrni_pickle *p) {
    p->start = p->c.p;
    p->depth = p->memos = p->pairs = 0;
    for (p->done = 0; !p->done;) DLRNI_TRY(dlrni_pickle_next(p));
    return DLRN_OK;
}

/* Values, stack and memo. Texts are in the file, or in the archive's blocks. */
DLRNI_INTERNAL void dlrni_pickle_free(dlrni_pickle *p) {
    for (int64_t i = 0; i < p->n_chunks; i++) dlrn_free(p->a->ctx, p->chunks[i]);
    dlrn_free(p->a->ctx, p->chunks);
    dlrn_free(p->a->ctx, p->stack);
    dlrn_free(p->a->ctx, p->memo);
}

/* ------------------------------------------------------------------------------------------ */
// >>torch
/* .pt, as torch.save writes it. Since version 1.6 it is a zip:

      STEM/data.pkl     the object as a pickle; a tensor is a call with (storage, offset, size,
                        stride), a storage the persistent id ("storage", type, KEY, "cpu", elements)
      STEM/byteorder    "little" or "big"; missing in older files, which are little
      STEM/data/KEY     the bytes of each storage
      STEM/version      "3\n"

   Newer versions add members that we do not need (.format_version, .data/serialization_id).

   Two tensors may view one storage, as a tied decoder does, so numbers lie in the file once:

      data.pkl    "encoder"  ->  tensor, storage "0", offset 0, [3, 2], strides 2, 1 --+
                  "decoder"  ->  tensor, storage "0", offset 0, [2, 3], strides 1, 2 --+--> data/0
                  "bias"     ->  tensor, storage "1", offset 0, [3],    stride 1    ------> data/1

   Before 1.6 it was five pickles in a row, and the storages after them:

      | magic | 1001 | system | object | ["0", "1"] | n, n elements of "0" | n, n elements of "1" |

   n takes 8 bytes. The types of the elements are only in the object: without it, nobody can tell
   where a storage ends. */

/* Where the bytes of a storage are, in either container: the member named prefix + key. */
typedef struct dlrni_storages {
    const dlrni_member *m;
    const dlrni_lookup *names;
    char prefix[512]; /* zip: "STEM/data/" */
    int swap;         /* elements are stored high byte first */
    int exact;        /* a storage ends where the pickle says, although its member may go on */
} dlrni_storages;

/* NULL: not in the file. The key comes from the pickle. It is looked up among the members of this
   file and never used as a path, so "../x" finds nothing. */
DLRNI_INTERNAL const dlrni_member *dlrni_find_storage(const dlrni_storages *s, dlrni_span key) {
    char name[1024];
    const size_t n = strlen(s->prefix), len = (size_t)key.len;
    /* torch numbers its keys, so a longer one is no name of a member */
    if (len > sizeof name - n) return NULL;
    memcpy(name, s->prefix, n);
    memcpy(name + n, key.p, len);
    int64_t at = dlrni_lookup_find(s->names, name, (int64_t)(n + len));
    return at < 0 ? NULL : &s->m[at];
}

/* ---- From the value to tensors ---- */

/* A pickle can refer to one value many times, so a small file can describe a tree without end:

      a = [tensor]   b = [a, a]   c = [b, b]   ...   a few bytes more, twice as many tensors

   Three bounds, and that of dlrni_walk_value, keep what is made of it in proportion to the file. */
enum {
    DLRNI_TORCH_DEPTH = 64,      /* containers in containers: they nest on the C stack         */
    DLRNI_TORCH_NAME_MAX = 1000, /* bytes of a tensor's name, its path in the object           */
    DLRNI_TORCH_SHARED = 64      /* numbers in all tensors for each byte of the file: that many
                                    layers of one byte each may share a storage                 */
};

/* The way from a value to its tensors. The name is one buffer, which grows and shrinks with the
   path. */
typedef struct dlrni_walk {
    dlrn_archive *a;
    const dlrni_storages *storages;
    char name[DLRNI_TORCH_NAME_MAX + 1]; /* path of the value: "layers.0.weight" */
    int depth;
    int64_t work, work_max; /* see dlrni_walk_value */
    int64_t numbers;        /* in the tensors so far */
} dlrni_walk;

/* Finds the bytes of a tensor's storage, which must hold what the pickle claims: *bytes. The member
   may be longer than the claim: then only what is claimed counts (exact), since torch reads no
   more. Deflated storages are refused: torch never writes them, and one could unpack to 1032 times
   the file. */
DLRNI_INTERNAL dlrn_status dlrni_walk_storage(const dlrni_walk *w, const dlrni_py_value *storage,
                                              int64_t len, const unsigned char **data,
                                              uint64_t *bytes) {
    const dlrni_member *m = dlrni_find_storage(w->storages, storage->as.storage.key);
    const int64_t size = dlrni_dtype_size(storage->as.storage.dtype);
    int64_t need = 0;
    if (!m)
        return dlrn_fail(w->a->ctx, DLRN_ERR_FORMAT,
                         "%s: tensor '%.*s': expected its storage '%.*s' in the file, found none",
                         w->a->path, (int)len, w->name,
                         (int)dlrni_min(storage->as.storage.key.len, 64),
                         storage->as.storage.key.p);
    if (m->method != DLRNI_ZIP_STORED)
        return dlrn_fail(w->a->ctx, DLRN_ERR_UNSUPPORTED,
                         "%s: tensor '%.*s': expected a stored member, found a deflated one",
                         w->a->path, (int)len, w->name);
    if (!dlrni_mul(storage->as.storage.elements, size, &need) || (uint64_t)need > m->size)
        return dlrn_fail(w->a->ctx, DLRN_ERR_FORMAT,
                         "%s: tensor '%.*s': expected a storage of %lld bytes, found %llu",
                         w->a->path, (int)len, w->name, (long long)need,
                         (unsigned long long)m->size);
    *data = m->data;
    *bytes = w->storages->exact ? (uint64_t)need : m->size;
    return DLRN_OK;
}

/* Adds a tensor under the path so far. Each tensor lies within its storage, but many may share one:
   a reader that makes an array of each would need memory that the file never had. So their numbers
   are summed up, and bounded. */
DLRNI_INTERNAL dlrn_status dlrni_walk_tensor(dlrni_walk *w, const dlrni_py_value *t, int64_t len) {
    dlrn_archive *a = w->a;
    const dlrni_py_value *storage = t->as.tensor.storage;
    const int64_t max = DLRNI_TORCH_SHARED * (int64_t)a->map.size;
    uint64_t bytes = 0;
    int strides = 0;
    dlrni_entry e;
    memset(&e, 0, sizeof e);
    DLRNI_TRY(dlrni_walk_storage(w, storage, len, &e.data, &bytes));
    /* checked again: a list of sizes may have grown since the call that used it */
    if (!dlrni_pickle_sizes(t->as.tensor.shape, e.info.shape, &e.info.ndim) ||
        !dlrni_pickle_sizes(t->as.tensor.stride, e.stride, &strides) || strides != e.info.ndim)
        return dlrn_fail(a->ctx, DLRN_ERR_FORMAT, "%s: tensor '%.*s': malformed sizes", a->path,
                         (int)len, w->name);
    e.info.dtype = t->as.tensor.dtype;
    e.offset = t->as.tensor.offset;
    e.swap = w->storages->swap;
    /* both are claims: their sum may overflow */
    if (storage->as.storage.view_offset &&
        !dlrni_add(e.offset, storage->as.storage.view_offset, &e.offset))
        e.offset = -1; /* dlrni_archive_add refuses it, and says so */
    DLRNI_TRY(dlrni_archive_add(a, w->name, len, &e, bytes));
    w->numbers += a->entries[a->count - 1].info.numel;
    /* the numbers of this tensor count, however few bytes they share */
    if (w->numbers <= max) return DLRN_OK;
    return dlrn_fail(a->ctx, DLRN_ERR_FORMAT,
                     "%s: tensor '%.*s': shares its numbers with too many others: expected at most "
                     "%lld in all, found %lld",
                     a->path, (int)len, w->name, (long long)max, (long long)w->numbers);
}

/* Values lie in containers, so walking a value and walking its items call each other. */
DLRNI_INTERNAL dlrn_status dlrni_walk_value(dlrni_walk *w, const dlrni_py_value *v, int64_t len);

/* Walks one item of a container: its key, or its index, is appended to the path, "layers" then "0"
   then "weight". Keys of other kinds are named by their place. The caller's length of the path
   stays, so that the next item overwrites this one. The path is measured before it is written: a
   key is as long as its file likes. */
DLRNI_INTERNAL dlrn_status dlrni_walk_child(dlrni_walk *w, const dlrni_py_value *key, int64_t index,
                                            const dlrni_py_value *item, int64_t len) {
    char number[32];
    dlrni_span part = {number, 0};
    /* {0: tensor} is named by its number, as a list would be */
    if (key && key->kind == DLRNI_PY_INT) index = key->as.integer;
    part.len = dlrni_print(number, sizeof number, "%lld", (long long)index);
    if (key && key->kind == DLRNI_PY_STRING) part = key->as.text;
    if (len + (len > 0) + part.len > DLRNI_TORCH_NAME_MAX)
        return dlrn_fail(w->a->ctx, DLRN_ERR_UNSUPPORTED,
                         "%s: a tensor's name is longer than %d bytes", w->a->path,
                         DLRNI_TORCH_NAME_MAX);
    if (len) w->name[len++] = '.';
    memcpy(w->name + len, part.p, (size_t)part.len);
    return dlrni_walk_value(w, item, len + part.len);
}

/* A dictionary's links are key, value, key, value; a list's items are named by their index. Order
   is kept: a list of layers is read in the order in which it was saved. */
DLRNI_INTERNAL dlrn_status dlrni_walk_items(dlrni_walk *w, const dlrni_py_value *v, int64_t len) {
    int64_t index = 0;
    for (const dlrni_py_value *l = v->as.items.first; l; l = l->as.link.next, index++) {
        const dlrni_py_value *key = NULL;
        if (v->kind == DLRNI_PY_DICT) {
            key = l->as.link.item;
            l = l->as.link.next; /* there are as many values as keys */
        }
        DLRNI_TRY(dlrni_walk_child(w, key, index, l->as.link.item, len));
    }
    return DLRN_OK;
}

/* Walks a value and what it holds: tensors become entries, numbers and texts notes. `work` counts
   about the memory that each takes, in values of the arena: an entry four, a note two, and more for
   a long name or text. work_max is that of the values read, plus the file. A shared tree is walked
   once for each time that it is reached, until the work runs out. None, names and storages without
   a tensor hold nothing that we need. */
DLRNI_INTERNAL dlrn_status dlrni_walk_value(dlrni_walk *w, const dlrni_py_value *v, int64_t len) {
    char text[64];
    const int64_t text_len = v->kind == DLRNI_PY_STRING ? v->as.text.len : 0;
    w->work += (v->kind == DLRNI_PY_TENSOR ? 4 : 2) + len / 16 + text_len;
    /* honest files nest 5 levels or so: state, layers, a layer, its weights */
    if (w->work > w->work_max || w->depth >= DLRNI_TORCH_DEPTH)
        return dlrn_fail(w->a->ctx, DLRN_ERR_FORMAT,
                         "%s: pickle: values nested too deep or without end", w->a->path);
    switch (v->kind) {
    case DLRNI_PY_TENSOR: return dlrni_walk_tensor(w, v, len);
    case DLRNI_PY_DICT:
    case DLRNI_PY_LIST:
    case DLRNI_PY_TUPLE: {
        w->depth++;
        dlrn_status s = dlrni_walk_items(w, v, len);
        w->depth--;
        return s;
    }
    case DLRNI_PY_STRING: return dlrni_archive_annotate(w->a, w->name, len, v->as.text.p, text_len);
    case DLRNI_PY_INT: dlrni_print(text, sizeof text, "%lld", (long long)v->as.integer); break;
    case DLRNI_PY_BOOL: dlrni_print(text, sizeof text, v->as.integer ? "true" : "false"); break;
    case DLRNI_PY_FLOAT: dlrni_real_text(v->as.real, text, sizeof text); break;
    default: return DLRN_OK;
    }
    return dlrni_archive_annotate(w->a, w->name, len, text, (int64_t)strlen(text));
}

/* Walks the result of a pickle. The work is bounded by 4 for each value read: an honest file
   reaches a value twice or so (shared layers, an optimiser that keeps the weights), never as often
   as a bomb. */
DLRNI_INTERNAL dlrn_status dlrni_walk_pickle(dlrni_pickle *p, const dlrni_storages *storages) {
    dlrni_walk w;
    memset(&w, 0, sizeof w);
    w.a = p->a;
    w.storages = storages;
    w.work_max = 4 * p->n_chunks * DLRNI_PICKLE_CHUNK + (int64_t)p->a->map.size;
    return dlrni_walk_value(&w, p->result, 0);
}

/* ---- The two containers ---- */

/* Runs data.pkl, and finds the storages beside it in the zip. STEM is the folder of data.pkl, and
   is bounded so that STEM and a member's name fit in prefix. data.pkl must be stored, since strings
   of the pickle are used where they lie, for as long as the archive is open. byteorder is compared
   as 3 bytes: anything but "big" is little, as in files that have no such member. */
DLRNI_INTERNAL dlrn_status dlrni_pt_open(dlrn_archive *a, const dlrni_zip *z,
                                         const dlrni_member *pkl) {
    dlrni_storages s = {z->m, &z->names, "", 0, 1};
    dlrni_pickle p;
    char what[512];
    const int stem = (int)pkl->name_len - (int)strlen("data.pkl");
    a->format = "pt";
    if (pkl->method != DLRNI_ZIP_STORED)
        return dlrn_fail(a->ctx, DLRN_ERR_UNSUPPORTED,
                         "%s: data.pkl: expected a stored member, found a deflated one", a->path);
    if (stem > 400)
        return dlrn_fail(a->ctx, DLRN_ERR_UNSUPPORTED, "%s: zip: names longer than 400 bytes",
                         a->path);
    dlrni_print(s.prefix, sizeof s.prefix, "%.*sbyteorder", stem, pkl->name);
    int64_t order = dlrni_lookup_find(&z->names, s.prefix, (int64_t)strlen(s.prefix));
    /* a member of 3 bytes that lies in the file, since compressed ones cannot be compared */
    s.swap = order >= 0 && z->m[order].packed == 3 && !memcmp(z->m[order].data, "big", 3);
    dlrni_print(s.prefix, sizeof s.prefix, "%.*sdata/", stem, pkl->name);
    memset(&p, 0, sizeof p);
    dlrni_print(what, sizeof what, "%.400s: data.pkl", a->path);
    p.a = a;
    p.what = what;
    p.c.p = pkl->data;
    p.c.end = pkl->data + pkl->size;
    dlrn_status st = dlrni_pickle_run(&p);
    if (st == DLRN_OK) st = dlrni_walk_pickle(&p, &s);
    dlrni_pickle_free(&p);
    return st;
}

/* A file from before 1.6 while it is read. Its storages are listed as if they were members of a
   zip, so that the walk is the same for both. */
typedef struct dlrni_legacy {
    dlrni_pickle p;
    dlrni_member *m; /* [n] a storage each */
    int64_t n;
    dlrni_lookup names; /* key -> index of m                                                  */
    dlrni_lookup types; /* key -> index of a value of the arena that says the type of storage */
} dlrni_legacy;

/* The value at an index of the arena. It stands for a pointer: tables of names hold numbers. */
DLRNI_INTERNAL const dlrni_py_value *dlrni_legacy_value(const dlrni_legacy *l, int64_t index) {
    return &l->p.chunks[index / DLRNI_PICKLE_CHUNK][index % DLRNI_PICKLE_CHUNK];
}

/* The list of storages does not say their types: those are in the arena. All of it is searched,
   since a storage may belong to no tensor that is left. Of two types for one key the first
   counts. */
DLRNI_INTERNAL dlrn_status dlrni_legacy_types(dlrni_legacy *l) {
    for (int64_t i = 0; i < l->p.n_chunks * DLRNI_PICKLE_CHUNK; i++) {
        const dlrni_py_value *v = dlrni_legacy_value(l, i);
        if (v->kind == DLRNI_PY_STORAGE &&
            !dlrni_lookup_add(l->p.a->ctx, &l->types, v->as.storage.key.p, v->as.storage.key.len,
                              i))
            return DLRN_ERR_MEMORY;
    }
    return DLRN_OK;
}

/* Reads the next storage: 8 bytes of its number of elements, and the elements. The number is a
   claim: negative or too large, it overflows or reaches beyond the end. */
DLRNI_INTERNAL dlrn_status dlrni_legacy_storage(dlrni_legacy *l, const dlrni_py_value *key) {
    dlrni_pickle *p = &l->p;
    int64_t type = -1, bytes = 0;
    const unsigned char *head = dlrni_take(&p->c, 8);
    if (key->kind == DLRNI_PY_STRING)
        type = dlrni_lookup_find(&l->types, key->as.text.p, key->as.text.len);
    if (type < 0 || !head ||
        !dlrni_mul((int64_t)dlrni_le(head, 8),
                   dlrni_dtype_size(dlrni_legacy_value(l, type)->as.storage.dtype), &bytes))
        return dlrni_pickle_error(p, "malformed list of storages");
    dlrni_member *m = &l->m[l->n];
    memset(m, 0, sizeof *m);
    m->name = key->as.text.p;
    m->name_len = key->as.text.len;
    m->data = p->c.p;
    m->size = m->packed = (uint64_t)bytes;
    if (!dlrni_take(&p->c, m->size))
        return dlrni_pickle_error(p, "a storage reaches beyond the end of the file");
    if (!dlrni_lookup_add(p->a->ctx, &l->names, m->name, m->name_len, l->n)) return DLRN_ERR_MEMORY;
    l->n++;
    return DLRN_OK;
}

/* The five pickles, then the storages. Each result is checked before the next pickle is run, so
   that a pickle that is not torch's is refused at once. The object stays in the arena while the
   keys are read. */
DLRNI_INTERNAL dlrn_status dlrni_legacy_run(dlrni_legacy *l) {
    /* torch never wrote another version */
    enum { VERSION = 1001 };
    /* 0x1950a86a20f9469cfc6c, low byte first: a number that no other program would write */
    static const char magic[] = "\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19";
    dlrni_pickle *p = &l->p;
    DLRNI_TRY(dlrni_pickle_run(p));
    if (p->result->kind != DLRNI_PY_STRING || !dlrni_span_is(p->result->as.text, magic))
        return dlrni_pickle_error(p, "not torch's magic number");
    DLRNI_TRY(dlrni_pickle_run(p));
    if (p->result->kind != DLRNI_PY_INT || p->result->as.integer != VERSION)
        return dlrni_pickle_error(p, "not version 1001 of torch's older form");
    DLRNI_TRY(dlrni_pickle_run(p)); /* the system: sizes of C types, which torch ignores, too */
    DLRNI_TRY(dlrni_pickle_run(p));
    dlrni_py_value *object = p->result;
    DLRNI_TRY(dlrni_pickle_run(p));
    const dlrni_py_value *keys = p->result;
    /* a list, in the order of the storages in the file */
    if (keys->kind != DLRNI_PY_LIST) return dlrni_pickle_error(p, "expected the list of storages");
    l->m = DLRNI_NEW(p->a->ctx, dlrni_member, keys->as.items.count);
    if (!l->m) return DLRN_ERR_MEMORY;
    DLRNI_TRY(dlrni_legacy_types(l));
    for (const dlrni_py_value *k = keys->as.items.first; k; k = k->as.link.next)
        DLRNI_TRY(dlrni_legacy_storage(l, k->as.link.item));
    dlrni_storages s = {l->m, &l->names, "", 0, 0};
    p->result = object;
    return dlrni_walk_pickle(p, &s);
}

/* The whole file is one run of pickles and storages. A pickle that is not torch's comes here, too,
   and is refused by its magic number. */
DLRNI_INTERNAL dlrn_status dlrni_legacy_open(dlrn_archive *a) {
    dlrni_legacy l;
    memset(&l, 0, sizeof l);
    a->format = "pt-legacy";
    l.p.a = a;
    l.p.what = a->path;
    l.p.c.p = a->map.p;
    l.p.c.end = a->map.p + a->map.size;
    dlrn_status s = dlrni_legacy_run(&l);
    dlrn_free(a->ctx, l.m);
    dlrn_free(a->ctx, l.names.slot);
    dlrn_free(a->ctx, l.types.slot);
    dlrni_pickle_free(&l.p);
    return s;
}

/* ---- Writing ----

   The same file as torch.save(state_dict): every torch since 1.6 loads it, also with
   weights_only=True. Each tensor has a storage of its own. No memo is written: nothing is used
   twice, and the pickle is longer by a few names only. */

/* Appends opcodes, by their names. */
#define DLRNI_TORCH_OPS(b, ...)                                                                    \
    do {                                                                                           \
        static const unsigned char dlrni_ops[] = {__VA_ARGS__};                                    \
        dlrni_bytes_add((b), dlrni_ops, sizeof dlrni_ops);                                         \
    } while (0)

/* BINUNICODE: length in 4 bytes, UTF-8. A name that is not UTF-8 would be refused by Python. */
DLRNI_INTERNAL void dlrni_torch_put_text(dlrni_bytes *b, const char *s) {
    unsigned char head[5] = {DLRNI_OP_BINUNICODE};
    dlrni_put_le(head + 1, strlen(s), 4);
    dlrni_bytes_add(b, head, sizeof head);
    dlrni_bytes_text(b, s);
}

/* LONG1 of 8 bytes for all integers: longer than needed for small ones, and the same code for all.
   torch reads either. */
DLRNI_INTERNAL void dlrni_torch_put_int(dlrni_bytes *b, int64_t v) {
    unsigned char raw[10] = {DLRNI_OP_LONG1, 8};
    dlrni_put_le(raw + 2, (uint64_t)v, 8);
    dlrni_bytes_add(b, raw, sizeof raw);
}

/* GLOBAL: module and name joined by a newline, and one at the end. */
DLRNI_INTERNAL void dlrni_torch_put_name(dlrni_bytes *b, const char *name) {
    DLRNI_TORCH_OPS(b, DLRNI_OP_GLOBAL);
    dlrni_bytes_text(b, name);
    dlrni_bytes_add(b, "\n", 1);
}

/* OrderedDict(): the state dict, and the hooks of each tensor, of which there are none. */
DLRNI_INTERNAL void dlrni_torch_put_dict(dlrni_bytes *b) {
    dlrni_torch_put_name(b, "collections\nOrderedDict");
    DLRNI_TORCH_OPS(b, DLRNI_OP_EMPTY_TUPLE, DLRNI_OP_REDUCE);
}

/* Name and value of one tensor: _rebuild_tensor_v2(storage, 0, shape, stride, False,
   OrderedDict()), its storage under the key `index`. The location is "cpu": torch would look for a
   device that this machine may not have. False is requires_grad. */
DLRNI_INTERNAL void dlrni_torch_put_tensor(dlrni_bytes *b, const dlrn_tensor_out *t, int64_t index,
                                           int64_t numel) {
    char key[32], type[64];
    dlrni_entry e;
    memset(&e, 0, sizeof e);
    e.info.ndim = t->ndim;
    memcpy(e.info.shape, t->shape, sizeof t->shape);
    dlrni_dense_strides(&e, 0);
    dlrni_print(key, sizeof key, "%lld", (long long)index);
    dlrni_print(type, sizeof type, "torch\n%sStorage", dlrni_dtypes[t->dtype].torch_storage);
    dlrni_torch_put_text(b, t->name);
    dlrni_torch_put_name(b, "torch._utils\n_rebuild_tensor_v2");
    DLRNI_TORCH_OPS(b, DLRNI_OP_MARK, DLRNI_OP_MARK); /* the arguments, the storage's id */
    dlrni_torch_put_text(b, "storage");
    dlrni_torch_put_name(b, type);
    dlrni_torch_put_text(b, key);
    dlrni_torch_put_text(b, "cpu");
    dlrni_torch_put_int(b, numel);
    DLRNI_TORCH_OPS(b, DLRNI_OP_TUPLE, DLRNI_OP_BINPERSID, DLRNI_OP_BININT1, 0, DLRNI_OP_MARK);
    for (int d = 0; d < t->ndim; d++) dlrni_torch_put_int(b, t->shape[d]);
    DLRNI_TORCH_OPS(b, DLRNI_OP_TUPLE, DLRNI_OP_MARK);
    for (int d = 0; d < t->ndim; d++) dlrni_torch_put_int(b, e.stride[d]);
    DLRNI_TORCH_OPS(b, DLRNI_OP_TUPLE, DLRNI_OP_NEWFALSE);
    dlrni_torch_put_dict(b);
    DLRNI_TORCH_OPS(b, DLRNI_OP_TUPLE, DLRNI_OP_REDUCE);
}

/* data.pkl: an OrderedDict of tensors, each on a storage of its own, in protocol 2. The bound on
   names is the reader's: what is written here can be read here. torch has no storages of unsigned
   types beyond 8 bits. */
DLRNI_INTERNAL dlrn_status dlrni_pt_pickle(dlrni_bytes *b, const dlrn_tensor_out *tensors,
                                           int64_t count) {
    DLRNI_TORCH_OPS(b, DLRNI_OP_PROTO, 2);
    dlrni_torch_put_dict(b);
    DLRNI_TORCH_OPS(b, DLRNI_OP_MARK);
    for (int64_t i = 0; i < count; i++) {
        const dlrn_tensor_out *t = &tensors[i];
        int64_t numel, bytes;
        DLRNI_TRY(dlrni_tensor_bytes(b->ctx, t, &numel, &bytes));
        if (strlen(t->name) > DLRNI_TORCH_NAME_MAX)
            return dlrn_fail(b->ctx, DLRN_ERR_ARGUMENT,
                             "tensor '%.40s...': its name is too long for a .pt", t->name);
        if (!*dlrni_dtypes[t->dtype].torch_storage)
            return dlrn_fail(b->ctx, DLRN_ERR_UNSUPPORTED,
                             "tensor '%s': a .pt has no storage of type %s", t->name,
                             dlrni_type_name(t->dtype));
        dlrni_torch_put_tensor(b, t, i, numel);
    }
    DLRNI_TORCH_OPS(b, DLRNI_OP_SETITEMS, DLRNI_OP_STOP);
    return b->failed ? DLRN_ERR_MEMORY : DLRN_OK;
}

/* Members in torch's order, in the folder "archive", which torch takes where it does not know a
   file's name. The data follows its pickle, so that a pipe is enough. The elements are written low
   byte first on every machine, hence "little". */
DLRNI_INTERNAL dlrn_status dlrni_pt_write(dlrni_sink *o, const dlrn_tensor_out *tensors,
                                          int64_t count, const char *const *metadata) {
    dlrni_zip_writer z = dlrni_zip_to(o);
    dlrni_zip_comment(&z, metadata);
    dlrni_bytes pickle = {o->ctx, NULL, 0, 0, 0};
    o->status = dlrni_pt_pickle(&pickle, tensors, count);
    dlrni_zip_add(&z, "archive/data.pkl", pickle.p, (uint64_t)pickle.len);
    dlrn_free(o->ctx, pickle.p);
    dlrni_zip_add(&z, "archive/byteorder", "little", 6);
    for (int64_t i = 0; i < count && o->status == DLRN_OK; i++) {
        char name[64];
        int64_t numel = 0, bytes = 0;
        dlrni_sink_fail(o, dlrni_tensor_bytes(o->ctx, &tensors[i], &numel, &bytes));
        if (o->status != DLRN_OK) break;
        dlrni_print(name, sizeof name, "archive/data/%lld", (long long)i);
        dlrni_zip_start_member(&z, name, (uint64_t)bytes);
        dlrni_sink_elements(o, tensors[i].data, numel, tensors[i].dtype);
        dlrni_zip_end_member(&z);
    }
    dlrni_zip_add(&z, "archive/version", "3\n", 2);
    return dlrni_zip_close(&z);
}

/* ------------------------------------------------------------------------------------------ */
// >>formats
/* The one way into all formats. A file is recognised by its first bytes, never by its name: a .bin
   from the hub may be any of them. Only the index of a sharded model, which is plain JSON, is known
   by its suffix .index.json.

      93 "NUMPY"              .npy
      "PK" 3 4, "PK" 5 6      zip: data.pkl inside, .pt; else .npz ("PK" 5 6: without members)
      8 bytes, then "{"       .safetensors
      80 02 .. 80 05          pickle, protocols 2 to 5: .pt from before torch 1.6 */

/* A .pt or .npz, depending on its members. data.pkl decides first: a .pt may hold .npy files that a
   program added. Other zips, such as a packed folder, are refused. The list of members is
   freed here; entries point into the map, not into it. */
DLRNI_INTERNAL dlrn_status dlrni_zip_open(dlrn_archive *a) {
    dlrni_zip z;
    memset(&z, 0, sizeof z);
    dlrn_status s = dlrni_zip_list(a, &z);
    if (s == DLRN_OK) s = dlrni_zip_notes(a);
    const dlrni_member *pkl = NULL, *npy = NULL;
    for (int64_t i = 0; i < z.n && s == DLRN_OK; i++) {
        /* "/": torch puts everything into a folder */
        if (dlrni_member_ends(&z.m[i], "/data.pkl")) pkl = &z.m[i];
        if (dlrni_member_ends(&z.m[i], ".npy")) npy = &z.m[i];
    }
    if (s == DLRN_OK && pkl)
        s = dlrni_pt_open(a, &z, pkl);
    else if (s == DLRN_OK && (npy || !z.n)) /* without members: an .npz of no arrays */
        s = dlrni_arrays_open(a, &z);
    else if (s == DLRN_OK)
        s = dlrn_fail(a->ctx, DLRN_ERR_UNSUPPORTED,
                      "%s: a zip without data.pkl (torch) and without .npy members (numpy)",
                      a->path);
    dlrn_free(a->ctx, z.m);
    dlrn_free(a->ctx, z.names.slot);
    return s;
}

/* What people have in place of weights, by its first bytes, with what to do. */
typedef struct dlrni_foreign {
    const char *begins, *what;
} dlrni_foreign;
static const dlrni_foreign dlrni_foreign_table[] = {
    {"version https://git-lfs", "a git-LFS pointer: git lfs pull fetches the file"},
    {"<!DOCTYPE", "an HTML page: the download went wrong"},
    {"<html", "an HTML page: the download went wrong"},
    {"\x1F\x8B", "gzip: decompress it first"},
    {"\x28\xB5\x2F\xFD", "zstd: decompress it first"},
    {"\x89HDF", "HDF5"},
    {"GGUF", "GGUF"},
    {"PAR1", "Parquet"},
    {NULL, NULL},
};

/* The error for a file of no format that is read. */
DLRNI_INTERNAL dlrn_status dlrni_refuse_foreign(dlrn_archive *a) {
    const dlrni_foreign *f = dlrni_foreign_table;
    for (; f->what; f++)
        if (a->map.size >= strlen(f->begins) && !memcmp(a->map.p, f->begins, strlen(f->begins)))
            return dlrn_fail(a->ctx, DLRN_ERR_FORMAT,
                             "%s: expected torch (.pt), safetensors, .npz or .npy, found %s",
                             a->path, f->what);
    return dlrn_fail(a->ctx, DLRN_ERR_FORMAT,
                     "%s: expected torch (.pt), safetensors, .npz or .npy, found none of them "
                     "in its %llu bytes",
                     a->path, (unsigned long long)a->map.size);
}

/* Tells the format by the first bytes: .npy and zip have a magic; safetensors has '{' after its
   length; a pickle begins with its protocol. safetensors comes after the magics, since it has none.
   An old tar is named, since users do meet it. */
DLRNI_INTERNAL dlrn_status dlrni_archive_detect(dlrn_archive *a) {
    const unsigned char *p = a->map.p;
    uint64_t n = a->map.size;
    if (n >= 6 && !memcmp(p, "\x93NUMPY", 6)) return dlrni_npy_archive(a);
    if (n >= 4 && (!memcmp(p, "PK\3\4", 4) || !memcmp(p, "PK\5\6", 4))) return dlrni_zip_open(a);
    if (n >= 9 && p[8] == '{') return dlrni_safetensors_open(a);
    if (n >= 2 && p[0] == DLRNI_OP_PROTO && p[1] >= 2 && p[1] <= 5) return dlrni_legacy_open(a);
    if (n >= 262 && !memcmp(p + 257, "ustar", 5))
        return dlrn_fail(a->ctx, DLRN_ERR_UNSUPPORTED,
                         "%s: a tar archive, the form of torch before 0.1.10: load and save "
                         "it again with a newer torch",
                         a->path);
    return dlrni_refuse_foreign(a);
}

/* Hands a to the caller, or closes it after an error. Closing keeps the error text: it is in the
   context. */
DLRNI_INTERNAL dlrn_status dlrni_archive_done(dlrn_archive *a, dlrn_status s, dlrn_archive **out) {
    if (s != DLRN_OK) {
        dlrn_archive_close(a);
        a = NULL;
    }
    *out = a;
    return s;
}

/* Never an index: its shards would be files, and bytes from a network must not open any. */
DLRN_API dlrn_status dlrn_archive_open_memory(dlrn_context *ctx, const void *bytes, size_t size,
                                              const char *name, dlrn_archive **out) {
    dlrn_archive *a;
    *out = NULL;
    DLRNI_TRY(dlrni_archive_new(ctx, name, &a));
    a->map.p = (const unsigned char *)bytes;
    a->map.size = size;
    /* the caller keeps the bytes, and closing must not free them */
    a->borrowed = 1;
    return dlrni_archive_done(a, dlrni_archive_detect(a), out);
}

/* ---- Sharded models ----

   Models beyond a few GB come in several files, and an index that says which tensor is where:

      model.safetensors.index.json        {"weight_map": {"wte": "model-00001-of-00002.safetensors",
                                                          "ln_f": "model-00002-of-00002..."}}
      model-00001-of-00002.safetensors    wte
      model-00002-of-00002.safetensors    ln_f */

/* Joins the folder of `path` and a name into out [size]. 0: too long, or the name would leave the
   folder. An index from the hub must not make us open /etc/passwd, or a file of the folder above.
   On Windows a colon names a drive or a stream. */
DLRNI_INTERNAL int dlrni_sibling(const char *path, const char *name, char *out, size_t size) {
    const char *slash = strrchr(path, '/');
    int n = slash ? (int)(slash - path) + 1 : 0;
    if (!*name || strpbrk(name, DLRNI_POSIX ? "/" : "/\\:")) return 0;
    return dlrni_print(out, size, "%.*s%s", n, path, name) < (int)size;
}

/* Opens each file that weight_map names, once, and adds its tensors. A shard is found by its path
   among those that are open: there are a few dozen. It is counted only when it is open, since
   closing goes by the count. Tensors of a shard that the index does not name are left out. */
DLRNI_INTERNAL dlrn_status dlrni_open_shards(dlrn_archive *a, const dlrn_json *map) {
    char path[4096]; /* the longest that Linux opens */
    a->shards = DLRNI_NEW_ZERO(a->ctx, dlrn_archive *, map->count);
    if (!a->shards) return DLRN_ERR_MEMORY;
    for (const dlrn_json *m = map->first; m; m = m->next) {
        if (m->type != DLRN_JSON_STRING ||
            dlrni_has_suffix(m->text, ".index.json") || /* an index in an index could be a cycle */
            !dlrni_sibling(a->path, m->text, path, sizeof path))
            return dlrn_fail(a->ctx, DLRN_ERR_FORMAT,
                             "%s: weight_map: tensor '%s': expected a file of the same folder",
                             a->path, m->key);
        int64_t i = 0;
        while (i < a->n_shards && strcmp(a->shards[i]->path, path)) i++;
        /* not open yet */
        if (i == a->n_shards) {
            DLRNI_TRY(dlrn_archive_open(a->ctx, path, &a->shards[i]));
            a->n_shards++;
        }
        /* the index may be of another version of the model */
        int64_t at = dlrn_archive_find(a->shards[i], m->key);
        if (at < 0)
            return dlrn_fail(a->ctx, DLRN_ERR_FORMAT, "%s: expected tensor '%s', as %s says", path,
                             m->key, a->path);
        DLRNI_TRY(dlrni_archive_adopt(a, &a->shards[i]->entries[at]));
    }
    return DLRN_OK;
}

/* {"metadata": ..., "weight_map": {"TENSOR": "FILE", ...}}, as transformers writes it. metadata
   holds the total size, which nobody needs. */
DLRNI_INTERNAL dlrn_status dlrni_index_open(dlrn_archive *a) {
    dlrn_json *root;
    DLRNI_TRY(dlrn_json_parse(a->ctx, (const char *)a->map.p, a->map.size, a->path, &root));
    const dlrn_json *map = dlrn_json_get(root, "weight_map");
    a->format = "sharded";
    dlrn_status s =
        map && map->type == DLRN_JSON_OBJECT
            ? dlrni_open_shards(a, map)
            : dlrn_fail(a->ctx, DLRN_ERR_FORMAT, "%s: expected an object weight_map", a->path);
    dlrn_free(a->ctx, root);
    return s;
}

/* The map belongs to the archive before it is parsed, so that closing frees it after an error. One
   place for the error: everything that failed half-way is closed by dlrni_archive_done. */
DLRNI_INTERNAL dlrn_status dlrni_archive_open_as(dlrn_context *ctx, const char *path,
                                                 int shapes_only, dlrn_archive **out) {
    dlrn_archive *a;
    *out = NULL;
    DLRNI_TRY(dlrni_archive_new(ctx, path, &a));
    a->shapes_only = shapes_only;
    dlrn_status s = dlrni_map_open(ctx, path, &a->map);
    if (s == DLRN_OK)
        s = dlrni_has_suffix(path, ".index.json") ? dlrni_index_open(a) : dlrni_archive_detect(a);
    return dlrni_archive_done(a, s, out);
}

DLRN_API dlrn_status dlrn_archive_open(dlrn_context *ctx, const char *path, dlrn_archive **out) {
    return dlrni_archive_open_as(ctx, path, 0, out);
}

/* ---- Writing ---- */

/* Refuses two tensors, or two keys of metadata, of one name: neither could be read back. Before the
   file is created. Metadata is a list of pairs, closed with NULL. A table for each kind: a tensor
   and a note may have one name. */
DLRNI_INTERNAL dlrn_status dlrni_check_unique(dlrn_context *ctx, const dlrn_tensor_out *tensors,
                                              int64_t count, const char *const *metadata) {
    dlrni_lookup seen[2] = {{NULL, 0, 0}, {NULL, 0, 0}}; /* of tensors, of metadata */
    dlrn_status s = DLRN_OK;
    for (int kind = 0; kind < 2; kind++) {
        for (int64_t i = 0; s == DLRN_OK && (kind ? metadata && metadata[2 * i] : i < count); i++) {
            const char *name = kind ? metadata[2 * i] : tensors[i].name;
            const int64_t len = (int64_t)strlen(name);
            if (dlrni_lookup_find(&seen[kind], name, len) >= 0)
                s = dlrn_fail(ctx, DLRN_ERR_ARGUMENT,
                              "%s '%s' to be written: expected once, found twice",
                              kind ? "metadata" : "tensor", name);
            else if (!dlrni_lookup_add(ctx, &seen[kind], name, len, i))
                s = DLRN_ERR_MEMORY;
        }
        dlrn_free(ctx, seen[kind].slot);
    }
    return s;
}

/* Formats are told apart by suffix here, because there is nothing else to go by. The arguments are
   checked before the file is opened, so that a wrong suffix leaves no trace. */
DLRN_API dlrn_status dlrn_archive_write(dlrn_context *ctx, const char *path,
                                        const dlrn_tensor_out *tensors, int64_t count,
                                        const char *const *metadata) {
    dlrni_sink o;
    int pt = dlrni_has_suffix(path, ".pt"), st = dlrni_has_suffix(path, ".safetensors");
    int npz = dlrni_has_suffix(path, ".npz"), npy = dlrni_has_suffix(path, ".npy");
    if (!pt && !st && !npz && !npy)
        return dlrn_fail(ctx, DLRN_ERR_ARGUMENT,
                         "%s: expected a name ending in .pt, .safetensors, .npz or .npy", path);
    DLRNI_REQUIRE(ctx, !npy || count == 1, "a .npy holds one tensor");
    DLRNI_TRY(dlrni_check_unique(ctx, tensors, count, metadata));
    DLRNI_TRY(dlrni_sink_open(ctx, path, &o));
    /* a writer that fails leaves its error in the sink, and closing drops the file */
    if (st) o.status = dlrni_safetensors_write(&o, tensors, count, metadata);
    if (pt) o.status = dlrni_pt_write(&o, tensors, count, metadata);
    if (npz) o.status = dlrni_arrays_write(&o, tensors, count, metadata);
    if (npy) o.status = dlrni_npy_write(&o, tensors);
    return dlrni_sink_close(&o);
}

/* ------------------------------------------------------------------------------------------ */
// >>writers
/* Files that grow: rows as .npy, codes as a CSR .npz, plain bytes. Both array formats hold the
   number of rows before the rows. It is filled in at the end where the file can be rewound; on the
   way to a pipe, and for CSR, whose three arrays grow at once, rows wait in spools.

      .npy, a file        header of 0 rows, rows ...;   at the end the header over the first one
      .npy, rows known    header, rows ...
      .npy, a pipe        spool: rows ...;              at the end the header, then the spool
      .npz, CSR           3 spools;                     at the end the zip, an array at a time
      bytes               bytes ...

   So memory does not grow with the number of rows: the codes of a large run are larger than it.

   CSR as scipy.sparse.save_npz writes it, a matrix of 3 rows and 5 columns with 4 entries:

      shape    [3, 5]
      indptr   [0, 2, 2, 4]   the entries of row i are indptr[i] to indptr[i + 1] - 1
      indices  [1, 4, 0, 3]   the column of each entry
      data     [.5, 2, 1, 3]  its value
      format   "csr" */

/* A writer of one kind refuses the calls of another. */
typedef enum dlrni_writer_kind {
    DLRNI_WRITES_NPY,
    DLRNI_WRITES_CSR,
    DLRNI_WRITES_BYTES
} dlrni_writer_kind;

/* The spools of a CSR writer; .npy uses the first. */
enum { DLRNI_CSR_INDPTR, DLRNI_CSR_INDICES, DLRNI_CSR_DATA, DLRNI_CSR_PARTS };

/* A file that grows. `o` is where its bytes go in the end, `part` where they wait. */
struct dlrn_writer {
    dlrn_context *ctx;
    dlrni_sink o;
    dlrni_writer_kind kind;
    int64_t width, rows, rows_total, nnz; /* rows_total < 0: not known */
    dlrni_spool part[DLRNI_CSR_PARTS];    /* .npy: part[0] holds the rows, if it is open */
    char *path;                           /* for errors */
};

/* A writer without a file. path is copied for later errors. Both blocks are allocated before either
   is checked, so that one place frees them. */
DLRNI_INTERNAL dlrn_status dlrni_writer_new(dlrn_context *ctx, const char *path,
                                            dlrni_writer_kind kind, int64_t width,
                                            dlrn_writer **out) {
    *out = NULL;
    DLRNI_REQUIRE_IN(ctx, path, width > 0, "width must be positive");
    dlrn_writer *w = DLRNI_NEW_ZERO(ctx, dlrn_writer, 1);
    char *copy = DLRNI_NEW(ctx, char, (int64_t)strlen(path) + 1);
    if (!w || !copy) {
        dlrn_free(ctx, w);
        dlrn_free(ctx, copy);
        return DLRN_ERR_MEMORY;
    }
    memcpy(copy, path, strlen(path) + 1);
    w->ctx = ctx;
    w->path = copy;
    w->kind = kind;
    w->width = width;
    *out = w;
    return DLRN_OK;
}

/* Everything but the file, which is closed before, because closing has an error to report. */
DLRNI_INTERNAL void dlrni_writer_free(dlrn_writer *w) {
    for (int i = 0; i < 3; i++) dlrni_spool_free(&w->part[i]);
    dlrn_free(w->ctx, w->path);
    dlrn_free(w->ctx, w);
}

/* The header of a .npy of `rows` rows, always 128 bytes, so that it can be written over the first
   one. The path stands for a name in errors. */
DLRNI_INTERNAL void dlrni_writer_header(dlrn_writer *w, int64_t rows) {
    unsigned char head[DLRNI_NPY_HEAD];
    dlrn_tensor_out t = {w->path, DLRN_F32, 2, {rows, w->width}, NULL};
    dlrni_sink_fail(&w->o, dlrni_npy_header(w->ctx, &t, NULL, head));
    dlrni_sink_write(&w->o, head, sizeof head);
}

/* Opens the file and the spools; on failure frees the writer, and drops the file. Whether a .npy
   needs a spool is found out by trying to rewind the empty file: a pipe says no. */
DLRNI_INTERNAL dlrn_status dlrni_writer_open(dlrn_writer **out) {
    dlrn_writer *w = *out;
    dlrn_status s = dlrni_sink_open(w->ctx, w->path, &w->o);
    if (s == DLRN_OK) {
        /* how many spools */
        int parts = w->kind == DLRNI_WRITES_CSR ? DLRNI_CSR_PARTS : 0;
        if (w->kind == DLRNI_WRITES_NPY && w->rows_total < 0) parts = !dlrni_sink_rewind(&w->o);
        for (int i = 0; i < parts && s == DLRN_OK; i++)
            s = dlrni_spool_open(w->ctx, w->path, &w->part[i]);
        if (s == DLRN_OK) return DLRN_OK;
        /* the first error, so that closing drops the file */
        w->o.status = s;
        (void)!dlrni_sink_close(&w->o);
    }
    dlrni_writer_free(w);
    *out = NULL;
    return s;
}

/* ---- Appending ---- */

/* A file that can be rewound gets a header of 0 rows now, and its final one when it is closed. If
   the program is killed between, nothing shows: the file has its temporary name. */
DLRN_API dlrn_status dlrn_npy_create(dlrn_context *ctx, const char *path, int64_t width,
                                     int64_t rows_total, dlrn_writer **out) {
    DLRNI_TRY(dlrni_writer_new(ctx, path, DLRNI_WRITES_NPY, width, out));
    (*out)->rows_total = rows_total;
    DLRNI_TRY(dlrni_writer_open(out));
    /* a pipe whose number of rows is known gets its header now, and needs no spool */
    if (!(*out)->part[0].is_open) dlrni_writer_header(*out, rows_total < 0 ? 0 : rows_total);
    return DLRN_OK;
}

/* Appends to a spool, unless an error came before: the parts must stay of one length. */
DLRNI_INTERNAL void dlrni_writer_defer(dlrn_writer *w, int part, const void *bytes, size_t size) {
    if (w->o.status == DLRN_OK) w->o.status = dlrni_spool_add(&w->part[part], bytes, size);
}

/* After an error the status is returned again: nothing more is written, and a loop may check at its
   end. A spool keeps the bytes of this machine; they are put in order when they are copied. */
DLRN_API dlrn_status dlrn_npy_append(dlrn_writer *w, const float *x, int64_t rows) {
    DLRNI_REQUIRE(w->ctx, w->kind == DLRNI_WRITES_NPY && rows >= 0,
                  "not a writer of .npy, or a negative number of rows");
    w->rows += rows;
    if (w->part[0].is_open)
        dlrni_writer_defer(w, 0, x, (size_t)(rows * w->width) * sizeof *x);
    else
        dlrni_sink_elements(&w->o, x, rows * w->width, DLRN_F32);
    return w->o.status;
}

/* Nothing goes to the file before it is closed: the first array needs the number of all entries. */
DLRN_API dlrn_status dlrn_csr_create(dlrn_context *ctx, const char *path, int64_t width,
                                     dlrn_writer **out) {
    DLRNI_TRY(dlrni_writer_new(ctx, path, DLRNI_WRITES_CSR, width, out));
    return dlrni_writer_open(out);
}

/* indptr goes on from the rows before: each batch counts from 0. The first 0 of indptr is written
   at the end, so that an empty file has it, too. */
DLRN_API dlrn_status dlrn_csr_append(dlrn_writer *w, const dlrn_sparse *codes) {
    DLRNI_REQUIRE(w->ctx, w->kind == DLRNI_WRITES_CSR && codes->cols == w->width,
                  "not a writer of CSR, or codes of another width");
    /* codes come from this library: they are trusted */
    size_t nnz = (size_t)codes->row_ptr[codes->rows];
    for (int64_t i = 0; i < codes->rows; i++) {
        /* each batch counts from 0, the file from its first row */
        int64_t end = w->nnz + codes->row_ptr[i + 1];
        dlrni_writer_defer(w, 0, &end, sizeof end);
    }
    dlrni_writer_defer(w, 1, codes->col, nnz * sizeof *codes->col);
    dlrni_writer_defer(w, 2, codes->val, nnz * sizeof *codes->val);
    w->rows += codes->rows;
    w->nnz += (int64_t)nnz;
    return w->o.status;
}

/* For texts and JSON lines that grow, with the same promise: the whole file or none. */
DLRN_API dlrn_status dlrn_file_create(dlrn_context *ctx, const char *path, dlrn_writer **out) {
    DLRNI_TRY(dlrni_writer_new(ctx, path, DLRNI_WRITES_BYTES, 1, out));
    return dlrni_writer_open(out);
}

/* Straight to the sink: nothing before the bytes depends on them. */
DLRN_API dlrn_status dlrn_file_append(dlrn_writer *w, const void *bytes, size_t size) {
    DLRNI_REQUIRE(w->ctx, w->kind == DLRNI_WRITES_BYTES, "not a writer of bytes");
    dlrni_sink_write(&w->o, bytes, size);
    return w->o.status;
}

/* ---- Closing ---- */

/* Copies what waited in a spool to the file. A block is a multiple of any element's size, and
   dlrni_spool_fill gives full blocks until the last: no element is cut. */
DLRNI_INTERNAL void dlrni_writer_copy(dlrn_writer *w, int part, dlrn_dtype dtype) {
    unsigned char block[4096]; /* small: it lies on the stack */
    size_t got = 1;
    dlrn_status s = dlrni_spool_rewind(&w->part[part], w->path);
    while (s == DLRN_OK && got && w->o.status == DLRN_OK) {
        s = dlrni_spool_fill(&w->part[part], block, sizeof block, &got);
        if (s == DLRN_OK)
            dlrni_sink_elements(&w->o, block, (int64_t)got / dlrni_dtype_size(dtype), dtype);
    }
    dlrni_sink_fail(&w->o, s);
}

/* Writes one array of n elements from its spool. indptr begins with a 0 that is not in it. All bits
   of a 0 are 0, in either byte order. */
DLRNI_INTERNAL void dlrni_csr_member(dlrn_writer *w, dlrni_zip_writer *z, int part,
                                     const char *name, dlrn_dtype dtype, int64_t n) {
    static const int64_t zero = 0;
    unsigned char head[DLRNI_NPY_HEAD];
    dlrn_tensor_out t = {name, dtype, 1, {n}, NULL};
    dlrni_sink_fail(&w->o, dlrni_npy_header(w->ctx, &t, NULL, head));
    dlrni_zip_start_member(z, name, (uint64_t)(n * dlrni_dtype_size(dtype)) + sizeof head);
    dlrni_sink_write(&w->o, head, sizeof head);
    /* row 0 begins at entry 0 */
    if (part == DLRNI_CSR_INDPTR) dlrni_sink_write(&w->o, &zero, sizeof zero);
    dlrni_writer_copy(w, part, dtype);
    dlrni_zip_end_member(z);
}

/* Writes the members in scipy's order: indices, indptr, format, shape, data. scipy finds them by
   name; the order only makes our file look like its own. "format" is an array without dimensions,
   of 3 bytes, for which U8 stands in: the type is in the text of the header alone. indptr has 64
   bits, since a run can have more than 2^31 entries. */
DLRNI_INTERNAL dlrn_status dlrni_csr_assemble(dlrn_writer *w) {
    dlrni_zip_writer z = dlrni_zip_to(&w->o);
    unsigned char head[DLRNI_NPY_HEAD + 3];
    int64_t shape[2] = {w->rows, w->width};
    dlrn_tensor_out format = {"format", DLRN_U8, 0, {0}, NULL};
    dlrn_tensor_out size = {"shape", DLRN_I64, 1, {2}, shape};
    dlrni_csr_member(w, &z, DLRNI_CSR_INDICES, "indices.npy", DLRN_I32, w->nnz);
    dlrni_csr_member(w, &z, DLRNI_CSR_INDPTR, "indptr.npy", DLRN_I64, w->rows + 1);
    dlrni_sink_fail(&w->o, dlrni_npy_header(w->ctx, &format, "|S3", head));
    /* the data of an array of one text of 3 bytes */
    memcpy(head + DLRNI_NPY_HEAD, "csr", 3);
    dlrni_zip_add(&z, "format.npy", head, sizeof head);
    dlrni_zip_start_member(&z, "shape.npy", DLRNI_NPY_HEAD + sizeof shape);
    dlrni_npy_write(&w->o, &size);
    dlrni_zip_end_member(&z);
    dlrni_csr_member(w, &z, DLRNI_CSR_DATA, "data.npy", DLRN_F32, w->nnz);
    dlrni_zip_close(&z);
    return dlrni_sink_close(&w->o);
}

/* Checks the number of rows that was announced, or fills it in. A file with fewer rows than its
   header says would be refused by numpy, one with more would lose them, so neither is put in
   place. */
DLRNI_INTERNAL void dlrni_npy_finish(dlrn_writer *w) {
    if (w->rows_total >= 0 && w->rows != w->rows_total && w->o.status == DLRN_OK)
        w->o.status =
            dlrn_fail(w->ctx, DLRN_ERR_ARGUMENT, "%s: expected the %lld rows announced, found %lld",
                      w->path, (long long)w->rows_total, (long long)w->rows);
    /* the header was right from the start */
    if (w->rows_total >= 0) return;
    if (!w->part[0].is_open && w->o.status == DLRN_OK && !dlrni_sink_rewind(&w->o))
        w->o.status = dlrn_fail(w->ctx, DLRN_ERR_IO, "%s: cannot go back to its start", w->path);
    dlrni_writer_header(w, w->rows);
    /* a pipe: the rows have waited for their number */
    if (w->part[0].is_open) dlrni_writer_copy(w, 0, DLRN_F32);
}

/* Each kind completes its file; dlrni_sink_close then publishes or drops it. The writer is freed
   even after an error: there is nothing to try again. */
DLRN_API dlrn_status dlrn_writer_close(dlrn_writer *w) {
    dlrn_status s;
    if (!w) return DLRN_OK;
    /* bytes have nothing to complete */
    if (w->kind == DLRNI_WRITES_NPY) dlrni_npy_finish(w);
    if (w->kind == DLRNI_WRITES_CSR)
        s = dlrni_csr_assemble(w);
    else
        s = dlrni_sink_close(&w->o);
    dlrni_writer_free(w);
    return s;
}

/* For a caller that gives up: there is no error to report. */
DLRN_API void dlrn_writer_abort(dlrn_writer *w) {
    if (!w) return;
    w->o.status = DLRN_STOPPED; /* closing then drops the file */
    (void)!dlrni_sink_close(&w->o);
    dlrni_writer_free(w);
}

/* ---- Reading CSR ----

   scipy.sparse writes what it was given: indices of 32 or 64 bits, in any order, and values of any
   type. Every index that a product with these codes would use is checked here, once. */

/* Finds an array of one dimension, and of integers where they are wanted. Values may be of any
   type. Rounding an index would point to another feature without an error. */
DLRNI_INTERNAL dlrn_status dlrni_csr_find(dlrn_archive *a, const char *name, int is_real,
                                          int64_t *index, int64_t *n) {
    *index = dlrn_archive_find(a, name);
    const dlrn_tensor_info *info = dlrn_archive_tensor(a, *index);
    if (!info || info->ndim != 1)
        return dlrn_fail(a->ctx, DLRN_ERR_FORMAT,
                         "%s: expected '%s' of one dimension, as scipy.sparse.save_npz writes it",
                         a->path, name);
    if (!is_real && dlrni_is_float(info->dtype))
        return dlrn_fail(a->ctx, DLRN_ERR_FORMAT, "%s: tensor '%s': expected integers, found %s",
                         a->path, name, dlrni_type_name(info->dtype));
    *n = info->numel;
    return DLRN_OK;
}

/* Row pointers must go from 0 to nnz and never down. Then every pointer between is in range, and
   row i has row_ptr[i + 1] - row_ptr[i] entries, never fewer than 0. */
DLRNI_INTERNAL dlrn_status dlrni_csr_check(dlrn_archive *a, const dlrn_sparse *c, int64_t nnz) {
    if (c->row_ptr[0] != 0 || c->row_ptr[c->rows] != nnz)
        return dlrn_fail(a->ctx, DLRN_ERR_FORMAT, "%s: indptr: expected 0 to %lld", a->path,
                         (long long)nnz);
    for (int64_t i = 0; i < c->rows; i++)
        if (c->row_ptr[i + 1] < c->row_ptr[i])
            return dlrn_fail(a->ctx, DLRN_ERR_FORMAT,
                             "%s: indptr: row %lld: expected at least the value before, found less",
                             a->path, (long long)i);
    return DLRN_OK;
}

/* Reads the column indices, and checks each: it chooses the atom that decoding adds. They come as
   64 bits, since a cut to 32 could turn a wrong index into a good one. */
DLRNI_INTERNAL dlrn_status dlrni_csr_columns(dlrn_archive *a, int64_t index, int64_t nnz,
                                             dlrn_sparse *c) {
    int64_t *wide = DLRNI_NEW(a->ctx, int64_t, nnz);
    if (!wide) return DLRN_ERR_MEMORY;
    dlrn_status s = dlrni_archive_read_i64(a, index, wide);
    for (int64_t p = 0; p < nnz && s == DLRN_OK; p++) {
        /* cut to 32 bits, and only used if the check below finds it in range */
        c->col[p] = (int32_t)wide[p];
        if (wide[p] < 0 || wide[p] >= c->cols)
            s = dlrn_fail(a->ctx, DLRN_ERR_FORMAT,
                          "%s: indices: entry %lld: expected [0, %lld), found %lld", a->path,
                          (long long)p, (long long)c->cols, (long long)wide[p]);
    }
    dlrn_free(a->ctx, wide);
    return s;
}

/* Column and value are sorted together. */
typedef struct dlrni_csr_entry {
    int32_t col;
    float val;
} dlrni_csr_entry;

/* For qsort. Compared, not subtracted: a difference of two int32 can overflow. */
DLRNI_INTERNAL int dlrni_csr_order(const void *a, const void *b) {
    const dlrni_csr_entry *x = (const dlrni_csr_entry *)a, *y = (const dlrni_csr_entry *)b;
    return x->col < y->col ? -1 : x->col > y->col;
}

/* Sorts the n entries of a row by column: scipy leaves them in any order, and adds up entries that
   it finds twice, so two programs could differ about those. Most rows are sorted already, and cost
   one pass without memory. */
DLRNI_INTERNAL dlrn_status dlrni_csr_sort_row(dlrn_archive *a, int64_t row, int64_t n, int32_t *col,
                                              float *val) {
    int64_t p = 1;
    while (p < n && col[p - 1] < col[p]) p++;
    /* ascending already, which also rules out equal columns */
    if (p >= n) return DLRN_OK;
    dlrni_csr_entry *entries = DLRNI_NEW(a->ctx, dlrni_csr_entry, n);
    if (!entries) return DLRN_ERR_MEMORY;
    for (p = 0; p < n; p++) entries[p].col = col[p], entries[p].val = val[p];
    qsort(entries, (size_t)n, sizeof *entries, dlrni_csr_order);
    for (p = 0; p < n; p++) col[p] = entries[p].col, val[p] = entries[p].val;
    dlrn_free(a->ctx, entries);
    /* sorted now, so equal columns are neighbours */
    for (p = 1; p < n; p++)
        if (col[p] == col[p - 1])
            return dlrn_fail(a->ctx, DLRN_ERR_FORMAT,
                             "%s: indices: row %lld: expected column %d once, found it twice",
                             a->path, (long long)row, (int)col[p]);
    return DLRN_OK;
}

/* Sorts the rows that need it: everything that reads codes may rely on ascending columns. */
DLRNI_INTERNAL dlrn_status dlrni_csr_sort(dlrn_archive *a, dlrn_sparse *c) {
    for (int64_t i = 0; i < c->rows; i++) {
        int64_t from = c->row_ptr[i], n = c->row_ptr[i + 1] - from;
        if (n > 1) DLRNI_TRY(dlrni_csr_sort_row(a, i, n, c->col + from, c->val + from));
    }
    return DLRN_OK;
}

/* Reads the four arrays into out, checked: sizes agree, pointers never fall, columns are in range
   and not repeated. The order matters: sizes before memory is taken, pointers and columns before
   rows are sorted by them. Columns have 32 bits here. A matrix without a format is taken for csr;
   the checks refuse most others, but not a square csc. */
DLRNI_INTERNAL dlrn_status dlrni_csr_fill(dlrn_archive *a, dlrn_sparse *out) {
    enum { SHAPE, INDPTR, INDICES, DATA, ARRAYS };
    static const char *const names[ARRAYS] = {"shape", "indptr", "indices", "data"};
    int64_t at[ARRAYS], n[ARRAYS], shape[2] = {-1, -1};
    const char *format = dlrni_archive_metadata(a, "format");
    if (format && strcmp(format, "csr"))
        return dlrn_fail(a->ctx, DLRN_ERR_UNSUPPORTED,
                         "%s: expected a matrix of format csr, found '%.20s'", a->path, format);
    for (int i = 0; i < ARRAYS; i++)
        DLRNI_TRY(dlrni_csr_find(a, names[i], i == DATA, &at[i], &n[i]));
    /* -1 stays where the shape has not two sizes, and is refused */
    if (n[SHAPE] == 2) DLRNI_TRY(dlrni_archive_read_i64(a, at[SHAPE], shape));
    /* n[INDPTR] - 1, and not shape[0] + 1, which could overflow */
    if (shape[0] < 0 || n[INDPTR] < 1 || n[INDPTR] - 1 != shape[0] || n[INDICES] != n[DATA] ||
        shape[1] < 0 || shape[1] > INT32_MAX)
        return dlrn_fail(a->ctx, DLRN_ERR_FORMAT,
                         "%s: the sizes of shape, indptr, indices and data do not agree", a->path);
    DLRNI_TRY(dlrni_sparse_begin(a->ctx, out, shape[1]));
    /* both counts are those of arrays that are in the file, so the memory is in proportion to it */
    DLRNI_TRY(dlrni_sparse_reserve(a->ctx, out, shape[0], n[INDICES]));
    out->rows = shape[0];
    DLRNI_TRY(dlrni_archive_read_i64(a, at[INDPTR], out->row_ptr));
    DLRNI_TRY(dlrn_archive_read(a, at[DATA], 0, -1, out->val));
    DLRNI_TRY(dlrni_csr_columns(a, at[INDICES], n[INDICES], out));
    DLRNI_TRY(dlrni_csr_check(a, out, n[INDICES]));
    return dlrni_csr_sort(a, out);
}

/* All or nothing: after an error the codes read so far are freed. */
DLRN_API dlrn_status dlrn_csr_read(dlrn_archive *a, dlrn_sparse *out) {
    dlrn_status s = dlrni_csr_fill(a, out);
    if (s != DLRN_OK) dlrn_sparse_free(out);
    return s;
}

/* ------------------------------------------------------------------------------------------ */
// >>layouts
/* How dictionaries are stored: one table row per layout, used for reading and for writing. A row
   names the tensors, what each of them is, and its shape in the file, in the letters of
   DLRN_ROLE_LIST: "FI" is [F][d_in]; "IF" is [d_in][F], transposed relative to memory; "" is a
   single number. The letters are those of the role, so a row also holds transcoders, whose d_out is
   not d_in. Layouts that this version cannot read are in the table too: otherwise they would be
   loaded as another family and give wrong features without an error. */

/* Kinds of stored tensor besides the roles: k and the mean smallest value kept (both go to the
   formula, see dlrni_read_number), or the sign of a refused layout. */
enum { DLRNI_IS_K = DLRN_ROLE_COUNT, DLRNI_IS_LAST_THRESHOLD, DLRNI_IS_SIGN };

/* One tensor of a layout. Files are written in the order of the row. */
typedef struct dlrni_stored {
    int is; /* a role, or one of the above; DLRNI_IS_SIGN: the layout is known by it alone */
    const char *name;
    const char *shape;
    int optional; /* 1: may be absent when reading */
} dlrni_stored;

/* Tensors of a row: every role once, k, the threshold, and the empty entry that ends the row. */
enum { DLRNI_STORED_MAX = DLRN_ROLE_COUNT + 3 };

/* One layout. dlrn_save writes a family in its first row, unless the dictionary's `layout` names
   another row of that family. A row ends at the first tensor without a name. */
typedef struct dlrni_layout {
    const char *name;   /* as users know it: the class of the library that writes it */
    const char *family; /* NULL: refused                                             */
    dlrni_stored tensor[DLRNI_STORED_MAX];
} dlrni_layout;

static const dlrni_layout dlrni_layout_table[] = {
    /* dictionary_learning 0.1.0; AutoEncoder is the same in the version of March 2024 */
    {"AutoEncoder",
     "AutoEncoder",
     {{DLRN_OUTPUT_BIAS, "bias", "O", 0},
      {DLRN_ENCODER, "encoder.weight", "FI", 0},
      {DLRN_ENCODER_BIAS, "encoder.bias", "F", 0},
      {DLRN_DECODER, "decoder.weight", "OF", 0}}},
    {"AutoEncoderTopK",
     "AutoEncoderTopK",
     {{DLRN_OUTPUT_BIAS, "b_dec", "O", 0},
      {DLRNI_IS_K, "k", "", 0},
      {DLRNI_IS_LAST_THRESHOLD, "threshold", "", 1},
      {DLRN_DECODER, "decoder.weight", "OF", 0},
      {DLRN_ENCODER, "encoder.weight", "FI", 0},
      {DLRN_ENCODER_BIAS, "encoder.bias", "F", 0}}},
    /* the same names and shapes in Gemma Scope's params.npz */
    {"JumpReluAutoEncoder",
     "JumpReluAutoEncoder",
     {{DLRN_ENCODER, "W_enc", "IF", 0},
      {DLRN_ENCODER_BIAS, "b_enc", "F", 0},
      {DLRN_DECODER, "W_dec", "FO", 0},
      {DLRN_OUTPUT_BIAS, "b_dec", "O", 0},
      {DLRN_THRESHOLD, "threshold", "F", 0}}},

    /* Refused. The first has the same tensors as AutoEncoderTopK: only a stated class tells them
       apart. The others list only a sign, the name of one tensor. The order matters: a sign that
       several layouts share comes last. */
    {"BatchTopKSAE",
     NULL,
     {{DLRN_OUTPUT_BIAS, "b_dec", "O", 0},
      {DLRNI_IS_K, "k", "", 0},
      {DLRNI_IS_LAST_THRESHOLD, "threshold", "", 0},
      {DLRN_DECODER, "decoder.weight", "OF", 0},
      {DLRN_ENCODER, "encoder.weight", "FI", 0},
      {DLRN_ENCODER_BIAS, "encoder.bias", "F", 0}}},
    {"GatedAutoEncoder", NULL, {{DLRNI_IS_SIGN, "r_mag", "F", 0}}},
    {"a gated SAELens dictionary", NULL, {{DLRNI_IS_SIGN, "b_gate", "F", 0}}},
    {"MatryoshkaBatchTopKSAE", NULL, {{DLRNI_IS_SIGN, "group_sizes", "", 0}}},
    {"AutoEncoderTopK or BatchTopKSAE", NULL, {{DLRNI_IS_SIGN, "k", "", 0}}},
    {"an OpenAI autoencoder", NULL, {{DLRNI_IS_SIGN, "pre_bias", "I", 0}}},
    {"JumpReluAutoEncoder", NULL, {{DLRNI_IS_SIGN, "threshold", "F", 0}}},
    {"AutoEncoderNew", NULL, {{DLRNI_IS_SIGN, "decoder.bias", "I", 0}}},
    {"a SAELens dictionary", NULL, {{DLRNI_IS_SIGN, "W_enc", "IF", 0}}},
    {"a Goodfire autoencoder", NULL, {{DLRNI_IS_SIGN, "encoder_linear.weight", "FI", 0}}},
    {"an EleutherAI sparsify dictionary", NULL, {{DLRNI_IS_SIGN, "W_dec", "FI", 0}}},
};
enum { DLRNI_LAYOUTS = sizeof dlrni_layout_table / sizeof *dlrni_layout_table };

/* Prefixes of all names in a file that are tried first: none, or that of a backup of a training
   run, in which the dictionary is one part among others. See dlrni_find_prefix for the others. */
static const char *const dlrni_prefix_table[] = {"", "ae."};
enum {
    DLRNI_PREFIXES = sizeof dlrni_prefix_table / sizeof *dlrni_prefix_table,
    DLRNI_PREFIX_MAX = 256 /* with its 0; wrapped modules and nested dicts use far less */
};

/* The files of a dictionary in a folder, each with its config. The first that exists is taken;
   params.npz is Gemma Scope's. The config of a path that names a file is DLRNI_CONFIG_FILE beside
   it. */
#define DLRNI_CONFIG_FILE "config.json"
static const char *const dlrni_folder_files[][2] = {{"ae.pt", DLRNI_CONFIG_FILE},
                                                    {"ae.safetensors", DLRNI_CONFIG_FILE},
                                                    {"ae.npz", DLRNI_CONFIG_FILE},
                                                    {"params.npz", DLRNI_CONFIG_FILE}};
enum { DLRNI_FOLDER_FILES = sizeof dlrni_folder_files / sizeof *dlrni_folder_files };

/* A run of dictionary_learning's trainSAE: a folder for each trainer that it was given, counted
   from 0. Folders are tried by name, since a dlrn_io cannot list them; 100 is more than any sweep
   that we know. */
enum { DLRNI_TRAINERS = 100 };
#define DLRNI_TRAINER_FILE "%s/trainer_%d/%s"

/* Folders that other libraries write and this version cannot load: the weights, a file beside them
   that tells whose they are ("": their name is enough), and what the error calls them. */
typedef struct dlrni_other_folder {
    const char *weights, *beside, *name;
} dlrni_other_folder;

#define DLRNI_CFG_FILE "cfg.json" /* what SAELens, sparsify and others call a config */
static const dlrni_other_folder dlrni_other_folder_table[] = {
    {"sae_weights.safetensors", DLRNI_CFG_FILE, "a SAELens dictionary"},
    {"sae_weights.safetensors", DLRNI_CONFIG_FILE, "a Llamascopium dictionary"},
    {"sae.safetensors", DLRNI_CFG_FILE, "an EleutherAI sparsify dictionary"},
    {"params.safetensors", DLRNI_CONFIG_FILE, "a Gemma Scope 2 dictionary"},
    {"params.safetensors", "", "a Gemma Scope 2 dictionary"},
    {"checkpoints/final.safetensors", "hyperparams.json", "a Llama Scope dictionary"},
    {"cc_weights.pt", DLRNI_CFG_FILE, "a crosscoder"},
    {"W_enc_0.safetensors", "W_dec_0.safetensors", "a circuit-tracer cross-layer transcoder"},
    {"layer_0.safetensors", "", "a circuit-tracer set of transcoders"},
    {"layer0.sae.pt", "", "a Qwen Scope dictionary"},
};
enum { DLRNI_OTHER_FOLDERS = sizeof dlrni_other_folder_table / sizeof *dlrni_other_folder_table };

/* What a config may state about a dictionary: at the top, or in its "trainer" part, where
   dictionary_learning puts it. */
typedef struct dlrni_config_key {
    const char *key;
    dlrn_json_type type;
    char extent; /* F, I or O: a size that must agree with the tensors; 0: not a size */
} dlrni_config_key;

/* The keys that the code names; the rest of the table is only checked. The class is also a text
   that a dictionary's own file may hold (dlrni_load_archive). */
#define DLRNI_CLASS_KEY "dict_class"
#define DLRNI_WIDTH_KEY "activation_dim"
static const dlrni_config_key dlrni_config_key_table[] = {
    {DLRNI_CLASS_KEY, DLRN_JSON_STRING, 0},
    {DLRNI_WIDTH_KEY, DLRN_JSON_NUMBER, 'I'},
    {"dict_size", DLRN_JSON_NUMBER, 'F'},
};
enum { DLRNI_CONFIG_KEYS = sizeof dlrni_config_key_table / sizeof *dlrni_config_key_table };

/* Whether a row lists all tensors of a layout; else it is known by a sign and refused. */
DLRNI_INTERNAL int dlrni_is_whole_layout(const dlrni_layout *layout) {
    return layout->tensor[0].is != DLRNI_IS_SIGN;
}

/* The layout called `name` that can be read; NULL: there is none. */
DLRNI_INTERNAL const dlrni_layout *dlrni_layout_named(const char *name) {
    for (int i = 0; i < DLRNI_LAYOUTS; i++)
        if (dlrni_layout_table[i].family && !strcmp(dlrni_layout_table[i].name, name))
            return &dlrni_layout_table[i];
    return NULL;
}

/* The layout in which a dictionary is written: the one that it names, if that is of its family,
   otherwise the first of its family. NULL: the family has none. */
DLRNI_INTERNAL const dlrni_layout *dlrni_layout_of(const dlrn_dictionary *dict) {
    const dlrni_layout *named = dict->layout ? dlrni_layout_named(dict->layout) : NULL;
    if (named && !strcmp(named->family, dict->family)) return named;
    for (int i = 0; i < DLRNI_LAYOUTS; i++)
        if (dlrni_layout_table[i].family && !strcmp(dlrni_layout_table[i].family, dict->family))
            return &dlrni_layout_table[i];
    return NULL;
}

/* Whether a layout has a tensor of that name, optional or not. */
DLRNI_INTERNAL int dlrni_layout_has(const dlrni_layout *layout, const char *name) {
    for (const dlrni_stored *t = layout->tensor; t->name; t++)
        if (!strcmp(t->name, name)) return 1;
    return 0;
}

/* Whether the tensors of a layout would also fit another row: then its files must state a class. */
DLRNI_INTERNAL int dlrni_is_ambiguous(const dlrni_layout *layout) {
    for (int i = 0; i < DLRNI_LAYOUTS; i++) {
        const dlrni_layout *row = &dlrni_layout_table[i];
        const dlrni_stored *t = row->tensor;
        if (row == layout || !dlrni_is_whole_layout(row)) continue;
        while (t->name && (t->optional || dlrni_layout_has(layout, t->name))) t++;
        if (!t->name) return 1;
    }
    return 0;
}

/* Names of the layouts that can be read, as "A, B or C", for errors. */
DLRNI_INTERNAL void dlrni_readable_layouts(char *text, size_t size) {
    int left = 0, at = 0;
    for (int i = 0; i < DLRNI_LAYOUTS; i++) left += dlrni_layout_table[i].family != NULL;
    for (int i = 0; i < DLRNI_LAYOUTS && at < (int)size; i++) {
        if (!dlrni_layout_table[i].family) continue;
        left--;
        at += dlrni_print(text + at, size - (size_t)at, "%s%s", dlrni_layout_table[i].name,
                          left > 1    ? ", "
                          : left == 1 ? " or "
                                      : "");
    }
}

/* ------------------------------------------------------------------------------------------ */
// >>load
/* Dictionaries from and to files. Loading goes in steps, each with its own errors:
     find     the file and the config beside it;
     choose   the layout: what the caller states, else the config, else the file, else the tensors'
              names;
     match    each tensor of the layout's row: name and shape, and the sizes they agree on;
     read     into memory, transposed where the layout says so, refusing NaN and infinity;
     compare  the sizes that the config states.
   Files are not trusted, and a mistake must show: every step reports what it does not expect. */

/* An archive whose dictionary is being read. */
typedef struct dlrni_loading {
    dlrn_archive *a;
    const dlrni_layout *layout;
    char prefix[DLRNI_PREFIX_MAX];   /* of all names: dlrni_find_prefix                    */
    int64_t F, I, O;                 /* sizes: features, d_in, d_out; -1: not known yet    */
    int borrow;                      /* 1: parameters may stay where they lie              */
    int64_t index[DLRNI_STORED_MAX]; /* of the row's tensors in the archive; -1: not there */
} dlrni_loading;

/* The index of a tensor of the row in the archive; -1: it is not there. */
DLRNI_INTERNAL int64_t dlrni_find_stored(const dlrni_loading *l, const char *name) {
    char full[DLRNI_PREFIX_MAX + 64];
    /* names of the table are short; a name that was cut would not be found */
    dlrni_print(full, sizeof full, "%s%s", l->prefix, name);
    return dlrn_archive_find(l->a, full);
}

/* Whether all tensors that a row must have are there. Shapes are not compared: a wrong shape is an
   error about that tensor, not another layout. */
DLRNI_INTERNAL int dlrni_layout_fits(const dlrni_loading *l, const dlrni_layout *layout) {
    for (const dlrni_stored *t = layout->tensor; t->name; t++)
        /* optional tensors do not distinguish layouts */
        if (!t->optional && dlrni_find_stored(l, t->name) < 0) return 0;
    return 1;
}

/* The first refused layout whose sign is present, and not a tensor of `known` (which may be NULL);
   NULL: there is none. */
DLRNI_INTERNAL const dlrni_layout *dlrni_refused_layout(const dlrni_loading *l,
                                                        const dlrni_layout *known) {
    for (int i = 0; i < DLRNI_LAYOUTS; i++) {
        const dlrni_layout *row = &dlrni_layout_table[i];
        if (dlrni_is_whole_layout(row) || !dlrni_layout_fits(l, row)) continue;
        /* a known layout may contain the sign of a refused one */
        if (!known || !dlrni_layout_has(known, row->tensor[0].name)) return row;
    }
    return NULL;
}

/* Chooses the layout by the tensors alone: one row fits, or none does (l->layout NULL), and two are
   an error, since the wrong family would give wrong features without one. any = 1: of two rows,
   take the first, which is only wanted for an error's text. */
DLRNI_INTERNAL dlrn_status dlrni_detect_layout(dlrni_loading *l, int any) {
    const dlrni_layout *found = NULL;
    for (int i = 0; i < DLRNI_LAYOUTS; i++) {
        const dlrni_layout *row = &dlrni_layout_table[i];
        if (!dlrni_is_whole_layout(row) || !dlrni_layout_fits(l, row)) continue;
        /* two fit, and either serves for the text */
        if (found && any) break;
        if (found)
            return dlrn_fail(l->a->ctx, DLRN_ERR_UNSUPPORTED,
                             "%s: expected tensors of one layout, found those of %s and of %s: a "
                             "%s with %s beside it, or the layout's name, must say which",
                             l->a->path, found->name, row->name, DLRNI_CONFIG_FILE,
                             DLRNI_CLASS_KEY);
        found = row;
    }
    l->layout = found;
    return DLRN_OK;
}

/* Whether the encoder of any layout is there, under the prefix. */
DLRNI_INTERNAL int dlrni_has_encoder(const dlrni_loading *l) {
    for (int i = 0; i < DLRNI_LAYOUTS; i++)
        for (const dlrni_stored *t = dlrni_layout_table[i].tensor; t->name; t++)
            if (t->is == DLRN_ENCODER && dlrni_find_stored(l, t->name) >= 0) return 1;
    return 0;
}

/* Whether a dictionary is there under the prefix: all tensors of a layout, or an encoder beside the
   sign of a refused one. */
DLRNI_INTERNAL int dlrni_has_dictionary(const dlrni_loading *l) {
    int i = 0;
    while (i < DLRNI_LAYOUTS && !dlrni_layout_fits(l, &dlrni_layout_table[i])) i++;
    return i < DLRNI_LAYOUTS && dlrni_has_encoder(l);
}

/* If `name` is that of a layout's encoder after "PREFIX.", copies the prefix with its point. 0: it
   is not, or the prefix is too long. */
DLRNI_INTERNAL int dlrni_prefix_of(const char *name, char prefix[DLRNI_PREFIX_MAX]) {
    const size_t len = strlen(name);
    for (int i = 0; i < DLRNI_LAYOUTS; i++)
        for (const dlrni_stored *t = dlrni_layout_table[i].tensor; t->name; t++) {
            const size_t n = strlen(t->name);
            if (t->is != DLRN_ENCODER || len <= n || len - n >= DLRNI_PREFIX_MAX) continue;
            if (name[len - n - 1] != '.' || strcmp(name + len - n, t->name)) continue;
            memcpy(prefix, name, len - n);
            prefix[len - n] = 0;
            return 1;
        }
    return 0;
}

/* Finds the prefix of the dictionary's names. First those of dlrni_prefix_table; then any, since a
   wrapped module adds "module." or "_orig_mod.", a dict around the tensors its key ("state_dict."),
   a list its index ("0."), and they combine. Two dictionaries under such prefixes are an error:
   nothing says which is meant. Where none is whole: the prefix of the first encoder, so that the
   error names the tensor that is missing. */
DLRNI_INTERNAL dlrn_status dlrni_find_prefix(dlrni_loading *l) {
    char found[DLRNI_PREFIX_MAX] = "";
    int whole = 0;
    for (int p = 0; p < DLRNI_PREFIXES; p++) {
        dlrni_print(l->prefix, sizeof l->prefix, "%s", dlrni_prefix_table[p]);
        if (dlrni_has_dictionary(l)) return DLRN_OK;
    }
    *l->prefix = 0;
    int known = dlrni_has_encoder(l); /* a part of a dictionary, without a prefix */
    for (int64_t i = 0; i < l->a->count; i++) {
        if (!dlrni_prefix_of(l->a->entries[i].info.name, l->prefix)) continue;
        const int is_whole = dlrni_has_dictionary(l);
        /* a layout may have a name that ends like another's encoder: the same prefix twice */
        if (is_whole && whole && strcmp(found, l->prefix))
            return dlrn_fail(l->a->ctx, DLRN_ERR_UNSUPPORTED,
                             "%s: expected one dictionary, found two, under '%s' and under '%s': "
                             "save one of them alone",
                             l->a->path, found, l->prefix);
        if (is_whole ? !whole : !known) memcpy(found, l->prefix, sizeof found);
        whole |= is_whole;
        known = 1;
    }
    memcpy(l->prefix, found, sizeof found);
    return DLRN_OK;
}

/* Chooses the layout: `wanted`, which the caller, the config or the file states (NULL: nothing), or
   the one that the tensors show. If these differ, or the tensors are those of a refused layout, the
   error names both. */
DLRNI_INTERNAL dlrn_status dlrni_choose_layout(dlrni_loading *l, const dlrni_layout *wanted) {
    const dlrni_layout *refused;
    char known[256];
    DLRNI_TRY(dlrni_find_prefix(l));
    if (wanted && dlrni_layout_fits(l, wanted))
        l->layout = wanted;
    else
        DLRNI_TRY(dlrni_detect_layout(l, wanted != NULL));
    /* the file is sound, but not what it is said to be */
    if (wanted && l->layout && l->layout->family && l->layout != wanted)
        return dlrn_fail(l->a->ctx, DLRN_ERR_SHAPE,
                         "%s: expected the tensors of %s, found those of %s", l->a->path,
                         wanted->name, l->layout->name);
    refused = dlrni_refused_layout(l, l->layout);
    if (!refused && l->layout && l->layout->family) return DLRN_OK;
    /* a whole row without a family: recognised, not readable */
    if (!refused) refused = l->layout;
    dlrni_readable_layouts(known, sizeof known);
    if (refused)
        return dlrn_fail(l->a->ctx, DLRN_ERR_UNSUPPORTED,
                         "%s: expected %s, found the tensors of %s", l->a->path,
                         wanted ? wanted->name : known, refused->name);
    /* Nothing fits: matching the wanted row, or the most common one, will name the tensor that is
       missing or misshapen, which helps more than "unknown layout". */
    l->layout = wanted ? wanted : &dlrni_layout_table[0];
    return DLRN_OK;
}

/* The size that a letter stands for; -1 until known. */
DLRNI_INTERNAL int64_t *dlrni_size_of(dlrni_loading *l, char letter) {
    return letter == 'F' ? &l->F : letter == 'O' ? &l->O : &l->I;
}

/* "[F, d]" for errors, with numbers where they are known. */
DLRNI_INTERNAL void dlrni_wanted_shape(dlrni_loading *l, const char *shape, char *text,
                                       size_t size) {
    int at = dlrni_print(text, size, "[");
    for (const char *c = shape; *c; c++) {
        const char *comma = c[1] ? ", " : "";
        /* unknown sizes keep their letter */
        int64_t n = *dlrni_size_of(l, *c);
        at += n < 0
                  ? dlrni_print(text + at, size - (size_t)at, "%s%s", *c == 'F' ? "F" : "d", comma)
                  : dlrni_print(text + at, size - (size_t)at, "%lld%s", (long long)n, comma);
    }
    dlrni_print(text + at, size - (size_t)at, "]");
}

/* Finds one tensor of the row and checks its shape. Sizes that are not known yet are taken from it;
   the others must agree. A single number may also be stored as [1]. */
DLRNI_INTERNAL dlrn_status dlrni_match_tensor(dlrni_loading *l, const dlrni_stored *t,
                                              int64_t *index) {
    char want[64], found[80] = "no such tensor";
    const int ndim = (int)strlen(t->shape);
    *index = dlrni_find_stored(l, t->name);
    /* absent, and that is allowed */
    if (*index < 0 && t->optional) return DLRN_OK;
    const dlrn_tensor_info *info = dlrn_archive_tensor(l->a, *index);
    /* first compare all sizes, then take them: a wrong shape must not set sizes */
    int same = info && (info->ndim == ndim || (!ndim && info->numel == 1));
    for (int i = 0; same && i < ndim; i++) {
        int64_t n = *dlrni_size_of(l, t->shape[i]);
        same = n < 0 || info->shape[i] == n;
    }
    if (same) {
        /* now known, for this tensor and those after it */
        for (int i = 0; i < ndim; i++) *dlrni_size_of(l, t->shape[i]) = info->shape[i];
        return DLRN_OK;
    }
    if (info) {
        char shape[64];
        dlrni_shape_text(info->shape, info->ndim, shape, sizeof shape);
        dlrni_print(found, sizeof found, "[%s]", shape);
    }
    /* the error shows both shapes, with the sizes that are known */
    dlrni_wanted_shape(l, t->shape, want, sizeof want);
    return dlrn_fail(l->a->ctx, DLRN_ERR_SHAPE, "%s: tensor '%s%s': expected shape %s, found %s",
                     l->a->path, l->prefix, t->name, want, found);
}

/* The encoder sets F and d_in, so its shape must make sense without the others. */
DLRNI_INTERNAL dlrn_status dlrni_match_encoder(dlrni_loading *l, const dlrni_stored *t,
                                               int64_t *index) {
    DLRNI_TRY(dlrni_match_tensor(l, t, index));
    /* a column index is an int32_t */
    if (l->F >= 1 && l->I >= 1 && l->F <= INT32_MAX) return DLRN_OK;
    return dlrn_fail(l->a->ctx, DLRN_ERR_SHAPE,
                     "%s: tensor '%s%s': expected a shape without 0, found [%lld, %lld]",
                     l->a->path, l->prefix, t->name, (long long)*dlrni_size_of(l, t->shape[0]),
                     (long long)*dlrni_size_of(l, t->shape[1]));
}

/* d_out: the width on which all tensors with the letter O agree; d_in if they do not. A
   transcoder's file is consistent; if one tensor of another file is misshapen, the error should
   name that one. */
DLRNI_INTERNAL int64_t dlrni_output_width(const dlrni_loading *l) {
    int64_t width = -1;
    for (const dlrni_stored *t = l->layout->tensor; t->name; t++) {
        const char *letter = strchr(t->shape, 'O');
        if (!letter) continue;
        const dlrn_tensor_info *info = dlrn_archive_tensor(l->a, dlrni_find_stored(l, t->name));
        if (!info || info->ndim != (int)strlen(t->shape)) return l->I;
        int64_t n = info->shape[letter - t->shape];
        if (n < 1 || (width >= 0 && n != width)) return l->I;
        width = n;
    }
    return width < 0 ? l->I : width;
}

/* Finds all tensors of the row. The encoder first: if sizes disagree, the error is about the other
   tensor, whose expected shape then shows numbers. */
DLRNI_INTERNAL dlrn_status dlrni_match_layout(dlrni_loading *l) {
    const dlrni_stored *t = l->layout->tensor;
    /* sizes come from the tensors alone */
    l->F = l->I = l->O = -1;
    for (int i = 0; t[i].name; i++)
        if (t[i].is == DLRN_ENCODER) DLRNI_TRY(dlrni_match_encoder(l, &t[i], &l->index[i]));
    l->O = dlrni_output_width(l);
    for (int i = 0; t[i].name; i++) /* by now all sizes are known */
        if (t[i].is != DLRN_ENCODER) DLRNI_TRY(dlrni_match_tensor(l, &t[i], &l->index[i]));
    return DLRN_OK;
}

/* ---- Reading tensors ---- */

/* w [n] are the elements of a tensor from `first` on, all of which must be finite: a NaN in a
   weight would silence or poison every row. */
DLRNI_INTERNAL dlrn_status dlrni_check_weights(dlrn_archive *a, const char *name, const float *w,
                                               int64_t first, int64_t n) {
    int64_t i = dlrni_first_not_finite(w, n);
    if (i == n) return DLRN_OK;
    return dlrn_fail(a->ctx, DLRN_ERR_VALUE,
                     "%s: tensor '%s': element %lld: expected a finite number, found %g", a->path,
                     name, (long long)(first + i), (double)w[i]);
}

enum {
    DLRNI_READ_PIECE = 1 << 16, /* elements of a task: so that the overhead is negligible */
    DLRNI_READ_COLUMNS = 64     /* columns of a task: four squares of a cache line each */
};

/* A tensor that is stored in the file as f32: n numbers in the order of memory, or [rows][cols]
   whose columns are the rows in memory. */
typedef struct dlrni_read_job {
    const unsigned char *from;
    float *to;
    int64_t n, rows, cols; /* cols 0: no transpose */
    int64_t *bad;          /* [tasks] 1: found a number that is not finite */
} dlrni_read_job;

/* Task: copies a piece of a tensor, 4096 numbers at a time (16 KB), so that the check finds them in
   the first cache. A borrowed tensor is only checked. */
DLRNI_INTERNAL void dlrni_read_piece(void *arg, int64_t task, int worker) {
    const dlrni_read_job *j = (const dlrni_read_job *)arg;
    const int64_t end = dlrni_min((task + 1) * DLRNI_READ_PIECE, j->n);
    (void)worker;
    j->bad[task] = 0;
    for (int64_t i = task * DLRNI_READ_PIECE; i < end; i += 4096) {
        const int64_t n = dlrni_min(4096, end - i);
        /* equal if the tensor is borrowed: nothing to copy */
        if (j->from != (const unsigned char *)j->to)
            memcpy(j->to + i, j->from + i * 4, (size_t)n * 4);
        j->bad[task] |= dlrni_first_not_finite(j->to + i, n) < n;
    }
}

/* Task: some columns of the file as rows in memory, by squares of 16, so that a cache line is read
   once and written once (134 MB load 3 times as fast as by 16 whole rows of the file at a time). */
DLRNI_INTERNAL void dlrni_read_columns(void *arg, int64_t task, int worker) {
    const dlrni_read_job *j = (const dlrni_read_job *)arg;
    const int64_t end = dlrni_min((task + 1) * DLRNI_READ_COLUMNS, j->cols);
    /* 1 KB: stays in the first cache, whatever the strides on both sides */
    float square[16][16];
    (void)worker;
    j->bad[task] = 0;
    for (int64_t r = 0; r < j->rows; r += 16)
        for (int64_t f = task * DLRNI_READ_COLUMNS; f < end; f += 16) {
            const int64_t rows = dlrni_min(16, j->rows - r), n = dlrni_min(16, end - f);
            for (int64_t i = 0; i < rows; i++) {
                /* memcpy: the file's bytes need not be aligned */
                memcpy(square[i], j->from + ((r + i) * j->cols + f) * 4, (size_t)n * 4);
                j->bad[task] |= dlrni_first_not_finite(square[i], n) < n;
            }
            /* out in the order of memory, a cache line at a time */
            for (int64_t c = 0; c < n; c++)
                for (int64_t i = 0; i < rows; i++) j->to[(f + c) * j->rows + r + i] = square[i][c];
        }
}

/* The bytes of a tensor that the file stores as native f32, row by row; with by_columns, column by
   column (torch saves a transposed view that way). Otherwise NULL. */
DLRNI_INTERNAL const unsigned char *dlrni_entry_plain(const dlrni_entry *e, int by_columns) {
    int64_t step = 1;
    /* other types and byte orders need a conversion */
    if (e->info.dtype != DLRN_F32 || e->swap || !dlrni_little_endian()) return NULL;
    /* strides count elements; the innermost must be 1 */
    if (by_columns && (e->info.ndim != 2 || e->stride[0] != 1 || e->stride[1] != e->info.shape[0]))
        return NULL;
    for (int i = e->info.ndim - 1; i >= 0 && !by_columns; step *= e->info.shape[i], i--)
        if (e->stride[i] != step) return NULL;
    return e->data + e->offset * 4;
}

/* Runs a read in tasks. Tasks only note that a number is not finite; the first one is then searched
   for in order, so that the error names the same element for any number of threads. */
DLRNI_INTERNAL dlrn_status dlrni_read_plain(dlrn_archive *a, const char *name,
                                            const dlrni_read_job *job) {
    dlrni_read_job j = *job;
    int64_t tasks = j.cols ? dlrni_ceil_div(j.cols, DLRNI_READ_COLUMNS)
                           : dlrni_ceil_div(j.n, DLRNI_READ_PIECE),
            bad = 0;
    /* a place for each task: no two write to the same */
    if (!(j.bad = DLRNI_NEW(a->ctx, int64_t, tasks))) return DLRN_ERR_MEMORY;
    dlrn_parallel_for(a->ctx, tasks, j.cols ? dlrni_read_columns : dlrni_read_piece, &j);
    for (int64_t i = 0; i < tasks; i++) bad |= j.bad[i];
    dlrn_free(a->ctx, j.bad);
    for (int64_t i = 0; bad && i < j.n; i++) {
        float w;
        memcpy(&w, j.from + i * 4, sizeof w);
        /* fails at the first one, which a task has seen */
        DLRNI_TRY(dlrni_check_weights(a, name, &w, i, 1));
    }
    return DLRN_OK;
}

/* A tensor of another type or order, read through its strides: [rows][cols], transposed if
   requested (`turn`). 16 rows at a time: no second copy of the matrix. */
DLRNI_INTERNAL dlrn_status dlrni_read_strided(dlrn_archive *a, int64_t index, const char *name,
                                              int turn, float *to) {
    const dlrn_tensor_info *info = dlrn_archive_tensor(a, index);
    /* the archive's own reader knows strides and types */
    if (!turn) {
        DLRNI_TRY(dlrn_archive_read(a, index, 0, -1, to));
        return dlrni_check_weights(a, name, to, 0, info->numel);
    }
    /* 16 floats are a cache line of the result */
    int64_t rows = info->shape[0], cols = info->shape[1], step = dlrni_min(16, rows);
    float *part = DLRNI_NEW(a->ctx, float, step *cols);
    dlrn_status s = part ? DLRN_OK : DLRN_ERR_MEMORY;
    for (int64_t r = 0; r < rows && s == DLRN_OK; r += step) {
        int64_t n = dlrni_min(step, rows - r);
        /* converts to f32 */
        s = dlrn_archive_read(a, index, r, n, part);
        if (s == DLRN_OK) s = dlrni_check_weights(a, name, part, r * cols, n * cols);
        for (int64_t j = 0; j < cols && s == DLRN_OK; j++)
            for (int64_t i = 0; i < n; i++) to[j * rows + r + i] = part[i * cols + j];
    }
    dlrn_free(a->ctx, part);
    return s;
}

/* Whether a matrix is stored transposed relative to memory: its first letter is not that of the
   role's rows. */
DLRNI_INTERNAL int dlrni_is_turned(const dlrni_stored *t) {
    return strlen(t->shape) == 2 && t->shape[0] != dlrni_role_table[t->is].rows;
}

/* Reads one parameter: borrowed where that is wanted and possible, else into memory of its own. The
   fastest way that fits: as in memory, by columns, through strides. */
DLRNI_INTERNAL dlrn_status dlrni_read_param(dlrni_loading *l, const dlrni_stored *t, int64_t index,
                                            dlrn_dictionary *dict) {
    const dlrni_entry *e = &l->a->entries[index];
    /* the row says how it should lie; the strides say how it does */
    const int turn = dlrni_is_turned(t), matrix = e->info.ndim == 2;
    /* NumPy and torch store either rows or columns without gaps */
    const unsigned char *by_rows = dlrni_entry_plain(e, 0);
    const unsigned char *by_columns = matrix ? dlrni_entry_plain(e, 1) : NULL;
    const unsigned char *same = turn ? by_columns : by_rows; /* as in memory */
    dlrni_read_job job = {same, NULL, e->info.numel, 0, 0, NULL};
    if (l->borrow && same && (uintptr_t)same % sizeof(float) == 0) {
        memcpy(&dict->param[t->is], &same, sizeof same); /* read only: dlrn_load_memory */
        /* not freed with the dictionary */
        dict->borrowed |= DLRNI_BIT(t->is);
    } else {
        DLRNI_TRY(dlrni_param_alloc(dict, t->is));
        /* rows of the encoder are read in random order: fewer TLB misses */
        if (matrix) dlrni_huge_pages(dict->param[t->is], e->info.numel * 4);
    }
    job.to = dict->param[t->is];
    if (same) return dlrni_read_plain(l->a, e->info.name, &job);
    /* the other way round than in memory: transpose on the way */
    job.from = turn ? by_rows : by_columns;
    job.rows = e->info.shape[turn ? 0 : 1];
    job.cols = e->info.shape[turn ? 1 : 0];
    if (job.from) return dlrni_read_plain(l->a, e->info.name, &job);
    return dlrni_read_strided(l->a, index, e->info.name, turn, job.to);
}

/* Reads a number that belongs to the formula. k comes as any type, so it must be checked: a whole
   number, in range. The threshold of training is only kept. */
DLRNI_INTERNAL dlrn_status dlrni_read_number(dlrni_loading *l, const dlrni_stored *t, int64_t index,
                                             dlrn_dictionary *dict) {
    float value;
    /* one number, as dlrni_match_tensor has checked */
    DLRNI_TRY(dlrn_archive_read(l->a, index, 0, -1, &value));
    if (t->is == DLRNI_IS_LAST_THRESHOLD) {
        /* kept so that saving writes it back */
        dict->formula.threshold = (double)value;
        return dlrni_check_weights(l->a, l->a->entries[index].info.name, &value, 0, 1);
    }
    /* exact in f32 up to 2^24, far beyond any k in use */
    if (value >= 1 && (double)value <= (double)dict->features && value == floorf(value)) {
        dict->formula.k = (int64_t)value;
        return DLRN_OK;
    }
    return dlrn_fail(l->a->ctx, DLRN_ERR_VALUE,
                     "%s: tensor '%s%s': expected a number from 1 to %lld, found %g", l->a->path,
                     l->prefix, t->name, (long long)dict->features, (double)value);
}

/* The dictionary of an archive in the layout that has been matched. Nothing is left behind if a
   tensor fails. */
DLRNI_INTERNAL dlrn_status dlrni_read_dictionary(dlrni_loading *l, dlrn_dictionary **out) {
    DLRNI_TRY(dlrni_dictionary_new(l->a->ctx, dlrni_family_named(l->layout->family), l->I, l->O,
                                   l->F, out));
    (*out)->layout = l->layout->name;
    dlrn_status s = DLRN_OK;
    for (int i = 0; l->layout->tensor[i].name && s == DLRN_OK; i++) {
        const dlrni_stored *t = &l->layout->tensor[i];
        /* optional, and not there: the formula's default stays */
        if (l->index[i] < 0) continue;
        /* a role goes to a parameter, the rest to the formula */
        s = t->is < DLRN_ROLE_COUNT ? dlrni_read_param(l, t, l->index[i], *out)
                                    : dlrni_read_number(l, t, l->index[i], *out);
    }
    if (s == DLRN_OK) return s;
    dlrn_dictionary_destroy(*out);
    *out = NULL;
    return s;
}

/* The layout that a name means. `key` is where the name was found (an argument, a config's key),
   for errors. NULL and DLRN_OK if name is NULL. */
DLRNI_INTERNAL dlrn_status dlrni_resolve_layout(dlrn_context *ctx, const char *path,
                                                const char *key, const char *name,
                                                const dlrni_layout **out) {
    char known[256];
    *out = name ? dlrni_layout_named(name) : NULL;
    if (!name || *out) return DLRN_OK;
    /* a refused layout's name is an error like an unknown one */
    dlrni_readable_layouts(known, sizeof known);
    return dlrn_fail(ctx, DLRN_ERR_UNSUPPORTED, "%s: %s: expected %s, found %.80s", path, key,
                     known, name);
}

/* Loads from an open archive. `wanted` NULL: the file's own class decides, or else the tensors.
   borrow 1: the archive's bytes outlive the dictionary. */
DLRNI_INTERNAL dlrn_status dlrni_load_archive(dlrn_archive *a, const dlrni_layout *wanted,
                                              int borrow, dlrn_dictionary **out) {
    dlrni_loading l = {a, NULL, "", -1, -1, -1, borrow, {0}};
    *out = NULL;
    /* dlrn_save states the class where tensors alone would leave it open */
    if (!wanted)
        DLRNI_TRY(dlrni_resolve_layout(a->ctx, a->path, DLRNI_CLASS_KEY,
                                       dlrni_archive_metadata(a, DLRNI_CLASS_KEY), &wanted));
    /* all checks of names and shapes come before memory is allocated */
    DLRNI_TRY(dlrni_choose_layout(&l, wanted));
    DLRNI_TRY(dlrni_match_layout(&l));
    return dlrni_read_dictionary(&l, out);
}

/* ---- The config beside a file ---- */

/* Member `key` of a config's "trainer" part, or of its top; `full` is its path, for errors. null
   counts as absent, since Python writes None that way. */
DLRNI_INTERNAL const dlrn_json *dlrni_config_value(const dlrn_json *root, const char *key,
                                                   char full[64]) {
    dlrni_print(full, 64, "trainer.%s", key);
    const dlrn_json *value = dlrn_json_get(root, full);
    /* the trainer's part first: it is about this dictionary, the top about the run */
    if (value && value->type != DLRN_JSON_NULL) return value;
    dlrni_print(full, 64, "%s", key);
    value = dlrn_json_get(root, key);
    return value && value->type != DLRN_JSON_NULL ? value : NULL;
}

/* A key of the wrong type is an error, so that none is overlooked. Both places are checked, also
   the one that is not used. */
DLRNI_INTERNAL dlrn_status dlrni_check_config_types(dlrn_context *ctx, const char *path,
                                                    const dlrn_json *root) {
    /* in the order of dlrn_json_type */
    static const char *const kinds[] = {"null",   "true or false", "a number",
                                        "a text", "a list",        "an object"};
    static const char *const parts[] = {"", "trainer."};
    for (int i = 0; i < 2 * DLRNI_CONFIG_KEYS; i++) {
        const dlrni_config_key *key = &dlrni_config_key_table[i / 2];
        char full[64];
        dlrni_print(full, sizeof full, "%s%s", parts[i % 2], key->key);
        const dlrn_json *v = dlrn_json_get(root, full);
        /* absent, right, or None */
        if (!v || v->type == key->type || v->type == DLRN_JSON_NULL) continue;
        /* a text in quotes, so that "8" and 8 can be distinguished */
        const char *quote = v->type == DLRN_JSON_STRING ? "\"" : "";
        return dlrn_fail(ctx, DLRN_ERR_FORMAT, "%s: %s: expected %s, found %s%.80s%s", path, full,
                         kinds[key->type], quote, v->text ? v->text : kinds[v->type], quote);
    }
    return DLRN_OK;
}

/* The sizes that a config states must be those of the tensors; otherwise the config belongs to
   another file. */
DLRNI_INTERNAL dlrn_status dlrni_check_config_sizes(dlrn_context *ctx, const char *path,
                                                    const dlrn_json *root,
                                                    const dlrn_dictionary *dict) {
    static const char *const parts[] = {"", "trainer."};
    for (int i = 0; i < 2 * DLRNI_CONFIG_KEYS; i++) {
        const dlrni_config_key *key = &dlrni_config_key_table[i / 2];
        char full[64];
        /* not a size */
        if (!key->extent) continue;
        double have = (double)dlrni_extent(dict, key->extent);
        dlrni_print(full, sizeof full, "%s%s", parts[i % 2], key->key);
        /* a key that is absent agrees */
        double said = dlrn_json_number(root, full, have);
        if (!(said >= have && said <= have)) /* NaN, too */
            return dlrn_fail(ctx, DLRN_ERR_SHAPE,
                             "%s: %s: expected %lld as in the tensors, found %g", path, full,
                             (long long)have, said);
    }
    return DLRN_OK;
}

/* A dictionary without weights: its width is in the config alone, as a double, so it is checked to
   be a whole number. */
DLRNI_INTERNAL dlrn_status dlrni_load_identity(dlrn_context *ctx, const char *path,
                                               const dlrn_json *root, dlrn_dictionary **out) {
    char full[64];
    /* absent counts as 0, which fails below */
    const dlrn_json *value = dlrni_config_value(root, DLRNI_WIDTH_KEY, full);
    double d = value ? value->number : 0;
    dlrn_dictionary_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.family = "IdentityDict";
    /* written so that a NaN fails */
    if (!(d >= 1) || d > INT32_MAX || d > floor(d))
        return dlrn_fail(ctx, DLRN_ERR_VALUE, "%s: %s: expected a size from 1, found %g", path,
                         full, d);
    desc.d_in = (int64_t)d;
    return dlrn_dictionary_create(ctx, &desc, out);
}

/* ---- Finding and loading ---- */

/* "ae.pt, ae.safetensors or ...", for errors, from the table. */
DLRNI_INTERNAL void dlrni_file_names(char *text, size_t size) {
    int at = 0;
    for (int i = 0; i < DLRNI_FOLDER_FILES && at < (int)size; i++)
        at += dlrni_print(text + at, size - (size_t)at, "%s%s", dlrni_folder_files[i][0],
                          i + 2 < DLRNI_FOLDER_FILES    ? ", "
                          : i + 2 == DLRNI_FOLDER_FILES ? " or "
                                                        : "");
}

/* Looks for a dictionary in a run's folders of trainers. One is taken. Of several, none: they
   differ in their settings, and a wrong one would show in no error. */
DLRNI_INTERNAL dlrn_status dlrni_find_trainer(dlrn_context *ctx, const char *path, char *file,
                                              char *config, size_t size) {
    char names[128];
    int found = 0, first = 0, at = 0;
    for (int i = 0; i < DLRNI_TRAINERS; i++) {
        dlrni_print(file, size, DLRNI_TRAINER_FILE, path, i, dlrni_folder_files[0][0]);
        if (dlrn_file_exists(ctx, file) != 1) continue;
        if (!found) first = i;
        /* four names are enough to see what they are */
        if (found < 4)
            at += dlrni_print(names + at, sizeof names - (size_t)at, "%strainer_%d",
                              found ? ", " : "", i);
        found++;
    }
    *file = 0;
    if (found > 1)
        return dlrn_fail(ctx, DLRN_ERR_UNSUPPORTED,
                         "%s: expected one dictionary, found %d: %s%s; name one of these folders",
                         path, found, names, found > 4 ? ", ..." : "");
    if (!found) return DLRN_OK;
    dlrni_print(file, size, DLRNI_TRAINER_FILE, path, first, dlrni_folder_files[0][0]);
    dlrni_print(config, size, DLRNI_TRAINER_FILE, path, first, dlrni_folder_files[0][1]);
    return DLRN_OK;
}

/* Joins a folder and a file's name. Whether there is such a file. */
DLRNI_INTERNAL int dlrni_is_in_folder(dlrn_context *ctx, const char *path, const char *name,
                                      char *file, size_t size) {
    /* a path that was cut is another one */
    return dlrni_print(file, size, "%s/%s", path, name) < (int)size &&
           dlrn_file_exists(ctx, file) == 1;
}

/* Refuses a folder of another library by name; file: its weights. DLRN_OK: it is no such folder. */
DLRNI_INTERNAL dlrn_status dlrni_refuse_folder(dlrn_context *ctx, const char *path, char *file,
                                               size_t size) {
    char known[256];
    for (int i = 0; i < DLRNI_OTHER_FOLDERS; i++) {
        const dlrni_other_folder *row = &dlrni_other_folder_table[i];
        if (*row->beside && !dlrni_is_in_folder(ctx, path, row->beside, file, size)) continue;
        /* second, so that `file` is the weights */
        if (!dlrni_is_in_folder(ctx, path, row->weights, file, size)) continue;
        dlrni_readable_layouts(known, sizeof known);
        return dlrn_fail(ctx, DLRN_ERR_UNSUPPORTED,
                         "%s: expected %s, found %s%s%s, %s: not supported yet", path, known,
                         *row->beside ? row->beside : row->weights, *row->beside ? " and " : "",
                         *row->beside ? row->weights : "", row->name);
    }
    *file = 0;
    return DLRN_OK;
}

/* Looks in a folder: its own files, those of trainers, those of other libraries. */
DLRNI_INTERNAL dlrn_status dlrni_search_folder(dlrn_context *ctx, const char *path, char *file,
                                               char *config, size_t size) {
    for (int i = 0; i < DLRNI_FOLDER_FILES; i++) {
        dlrni_print(config, size, "%s/%s", path, dlrni_folder_files[i][1]);
        /* a folder of that name does not count */
        if (dlrni_is_in_folder(ctx, path, dlrni_folder_files[i][0], file, size)) return DLRN_OK;
    }
    DLRNI_TRY(dlrni_find_trainer(ctx, path, file, config, size));
    return *file ? DLRN_OK : dlrni_refuse_folder(ctx, path, file, size);
}

/* A folder without weights is found by its config: an identity has nothing else. */
DLRN_API dlrn_status dlrn_find_dictionary(dlrn_context *ctx, const char *path, char *file,
                                          char *config, size_t size) {
    int kind = dlrn_file_exists(ctx, path);
    char names[256];
    /* empty texts: nothing found yet */
    *file = *config = 0;
    /* room for the longest name in a folder */
    if (strlen(path) + strlen("/trainer_99/" DLRNI_CONFIG_FILE) + 1 > size)
        return dlrn_fail(ctx, DLRN_ERR_ARGUMENT, "%s: the path is too long", path);
    /* a wrong path is the likeliest error: say it first */
    if (kind == 0) return dlrn_fail(ctx, DLRN_ERR_IO, "%s: no such file or folder", path);
    if (kind == 2) DLRNI_TRY(dlrni_search_folder(ctx, path, file, config, size));
    /* a file is taken as it is named; its folder may hold a config */
    if (kind == 1) {
        dlrni_print(file, size, "%s", path);
        if (!dlrni_sibling(path, DLRNI_CONFIG_FILE, config, size)) *config = 0;
    }
    /* a config is optional */
    if (*config && dlrn_file_exists(ctx, config) != 1) *config = 0;
    if (*file || *config) return DLRN_OK;
    dlrni_file_names(names, sizeof names);
    return dlrn_fail(ctx, DLRN_ERR_IO, "%s: expected %s in this folder, found none", path, names);
}

/* Loads `file` ("": there is none) with what its config states; root NULL: there is no config. The
   caller's layout takes precedence over the config's. */
DLRNI_INTERNAL dlrn_status dlrni_load_with(dlrn_context *ctx, const char *file, const char *config,
                                           const dlrn_json *root, const char *layout,
                                           dlrn_dictionary **out) {
    dlrn_archive *a;
    const dlrni_layout *wanted;
    char full[64], names[256];
    /* before any of its values is used */
    if (root) DLRNI_TRY(dlrni_check_config_types(ctx, config, root));
    const dlrn_json *value = root ? dlrni_config_value(root, DLRNI_CLASS_KEY, full) : NULL;
    /* a text: its type has been checked */
    const char *name = value ? value->text : NULL;
    /* the one class without tensors: no layout can recognise it */
    if (name && !strcmp(name, "IdentityDict")) {
        /* with tensors beside it, the class is wrong */
        if (!*file) return dlrni_load_identity(ctx, config, root, out);
        dlrni_readable_layouts(names, sizeof names);
        return dlrn_fail(ctx, DLRN_ERR_VALUE, "%s: %s: expected %s, as %s has weights, found %s",
                         config, full, names, file, name);
    }
    if (layout)
        DLRNI_TRY(dlrni_resolve_layout(ctx, file, "layout", layout, &wanted));
    else
        DLRNI_TRY(dlrni_resolve_layout(ctx, config, DLRNI_CLASS_KEY, name, &wanted));
    dlrni_file_names(names, sizeof names);
    if (!*file)
        return dlrn_fail(ctx, DLRN_ERR_IO, "%s: expected %s beside it, found none", config, names);
    DLRNI_TRY(dlrn_archive_open(ctx, file, &a));
    dlrn_status s = dlrni_load_archive(a, wanted, 0, out);
    dlrn_archive_close(a);
    /* last, because only the tensors give the true sizes */
    if (s == DLRN_OK && root) s = dlrni_check_config_sizes(ctx, config, root, *out);
    if (s == DLRN_OK) return s;
    dlrn_dictionary_destroy(*out);
    *out = NULL;
    return s;
}

/* The config is read whole before the file is opened: what it says decides how the file is read. */
DLRN_API dlrn_status dlrn_load(dlrn_context *ctx, const char *path,
                               const dlrn_load_options *options, dlrn_dictionary **out) {
    const char *layout = options ? options->layout : NULL;
    char file[4096], config[4096], *text = NULL;
    size_t size = 0;
    dlrn_json *root = NULL;
    *out = NULL;
    DLRNI_TRY(dlrn_find_dictionary(ctx, path, file, config, sizeof file));
    dlrn_status s = *config ? dlrn_file_read(ctx, config, &text, &size) : DLRN_OK;
    /* a config that is not JSON is an error: it might name the layout */
    if (s == DLRN_OK && *config) s = dlrn_json_parse(ctx, text, size, config, &root);
    if (s == DLRN_OK) s = dlrni_load_with(ctx, file, config, root, layout, out);
    /* also after an error: both may be NULL */
    dlrn_free(ctx, root);
    dlrn_free(ctx, text);
    return s;
}

/* There is no config beside bytes in memory, so the bytes or `layout` must determine the class. The
   archive is closed; parameters point into `bytes`, not into it. */
DLRN_API dlrn_status dlrn_load_memory(dlrn_context *ctx, const void *bytes, size_t size,
                                      const char *name, const dlrn_load_options *options,
                                      dlrn_dictionary **out) {
    const char *layout = options ? options->layout : NULL;
    dlrn_archive *a;
    const dlrni_layout *wanted;
    *out = NULL;
    /* before the bytes are read: a misspelt name is reported at once */
    DLRNI_TRY(dlrni_resolve_layout(ctx, name, "layout", layout, &wanted));
    DLRNI_TRY(dlrn_archive_open_memory(ctx, bytes, size, name, &a));
    /* borrows: the bytes are the caller's, and stay */
    dlrn_status s = dlrni_load_archive(a, wanted, 1, out);
    dlrn_archive_close(a);
    return s;
}

/* ---- Saving ---- */

/* A file that could not be loaded again must not replace what may be the last good one. */
DLRNI_INTERNAL dlrn_status dlrni_check_stored(dlrn_context *ctx, const char *path,
                                              const dlrn_tensor_out *t) {
    const float *w = (const float *)t->data;
    int64_t n = 1;
    /* integers are always finite */
    if (t->dtype != DLRN_F32) return DLRN_OK;
    /* cannot overflow: the tensor is in memory */
    for (int i = 0; i < t->ndim; i++) n *= t->shape[i];
    int64_t i = dlrni_first_not_finite(w, n);
    if (i == n) return DLRN_OK;
    return dlrn_fail(ctx, DLRN_ERR_VALUE,
                     "%s: not written: tensor '%s': element %lld: expected a finite number, found "
                     "%g",
                     path, t->name, (long long)i, (double)w[i]);
}

/* The same for all parameters, under the names of their roles, for checkpoints. */
DLRNI_INTERNAL dlrn_status dlrni_check_savable(const dlrn_dictionary *dict, const char *path) {
    for (int role = 0; role < DLRN_ROLE_COUNT; role++) {
        dlrn_tensor_out t;
        memset(&t, 0, sizeof t);
        t.name = dlrni_role_table[role].name;
        t.dtype = DLRN_F32;
        /* its shape does not matter here, only its count */
        t.ndim = 1;
        t.shape[0] = dict->param[role] ? dlrni_role_size(dict, role) : 0;
        t.data = dict->param[role];
        DLRNI_TRY(dlrni_check_stored(dict->ctx, path, &t));
    }
    return DLRN_OK;
}

/* A number of the formula as a file stores it. */
typedef union dlrni_file_number {
    int32_t i; /* k is at most F, which fits */
    float f;
} dlrni_file_number;

/* The other direction of dlrni_read_number: sets the number, its type and where it is. */
DLRNI_INTERNAL void dlrni_number_to_file(const dlrn_formula *formula, int is, dlrni_file_number *to,
                                         dlrn_tensor_out *t) {
    if (is == DLRNI_IS_K) {
        t->dtype = DLRN_I32;
        to->i = (int32_t)formula->k;
    } else
        to->f = (float)formula->threshold;
    t->data = to;
}

/* The tensors of a dictionary as a layout stores them. */
typedef struct dlrni_saving {
    dlrn_tensor_out tensor[DLRNI_STORED_MAX];
    float *turned[DLRNI_STORED_MAX];            /* owned copies, or NULL */
    dlrni_file_number number[DLRNI_STORED_MAX]; /* tensors are written from memory */
    int64_t count;
} dlrni_saving;

/* Refuses a dictionary that would not be the same when it is loaded again: one with a parameter or
   a formula that the layout has no place for. A caller may have set either. */
DLRNI_INTERNAL dlrn_status dlrni_check_layout_holds(const dlrn_dictionary *dict, const char *path,
                                                    const dlrni_layout *layout) {
    const dlrn_formula *f = &dict->formula;
    const dlrn_formula loaded = dlrni_formula_of(dlrni_family_named(dict->family), dict);
    for (int role = 0; role < DLRN_ROLE_COUNT; role++) {
        const dlrni_stored *t = layout->tensor;
        while (t->name && t->is != role) t++;
        if (dict->param[role] && !t->name)
            return dlrn_fail(dict->ctx, DLRN_ERR_UNSUPPORTED,
                             "%s: not written: layout %s has no place for parameter '%s'", path,
                             layout->name, dlrni_role_table[role].name);
    }
    if (f->center == loaded.center && f->gate == loaded.gate && f->select == loaded.select &&
        !(f->scale_in < 1 || f->scale_in > 1 || f->scale_out < 1 || f->scale_out > 1))
        return DLRN_OK;
    return dlrn_fail(dict->ctx, DLRN_ERR_UNSUPPORTED,
                     "%s: not written: layout %s has no place for a formula that differs from its "
                     "family's",
                     path, layout->name);
}

/* Adds one tensor of the row: borrowed from the dictionary, or a transposed copy. */
DLRNI_INTERNAL dlrn_status dlrni_add_stored(const dlrn_dictionary *dict, const dlrni_stored *t,
                                            dlrni_saving *s) {
    dlrn_context *ctx = dict->ctx;
    dlrn_tensor_out *to = &s->tensor[s->count];
    to->name = t->name;
    to->dtype = DLRN_F32;
    to->ndim = (int)strlen(t->shape);
    for (int i = 0; i < to->ndim; i++) to->shape[i] = dlrni_extent(dict, t->shape[i]);
    /* borrowed until the archive is written */
    if (t->is < DLRN_ROLE_COUNT)
        to->data = dict->param[t->is];
    else
        dlrni_number_to_file(&dict->formula, t->is, &s->number[s->count], to);
    /* archives are written in row order, so a transposed copy is needed */
    if (t->is < DLRN_ROLE_COUNT && dlrni_is_turned(t)) {
        float *turned = DLRNI_NEW(ctx, float, dlrni_role_size(dict, t->is));
        /* noted before the check, so that dlrn_save frees it in any case */
        s->turned[s->count] = turned;
        if (!turned) return DLRN_ERR_MEMORY;
        /* shape in memory: the file's, transposed */
        const int64_t rows = to->shape[1], cols = to->shape[0];
        dlrni_transpose(ctx, dict->param[t->is], cols, rows, cols, turned, rows);
        to->data = turned;
    }
    s->count++;
    return DLRN_OK;
}

/* All tensors are checked before the file is created. Copies are freed on every way out. */
DLRN_API dlrn_status dlrn_save(const dlrn_dictionary *dict, const char *path) {
    dlrn_context *ctx = dict->ctx;
    const dlrni_layout *layout = dlrni_layout_of(dict);
    dlrni_saving saving;
    /* only an identity has no layout */
    if (!layout)
        return dlrn_fail(ctx, DLRN_ERR_UNSUPPORTED, "%s: an %s has no weights to save", path,
                         dict->family);
    /* not .npy, which holds a single tensor */
    if (!dlrni_has_suffix(path, ".pt") && !dlrni_has_suffix(path, ".safetensors") &&
        !dlrni_has_suffix(path, ".npz"))
        return dlrn_fail(ctx, DLRN_ERR_ARGUMENT,
                         "%s: expected a name ending in .pt, .safetensors or .npz", path);
    DLRNI_TRY(dlrni_check_layout_holds(dict, path, layout));
    /* a copy that was not made is NULL, and may be freed */
    memset(&saving, 0, sizeof saving);
    const char *const stated[] = {DLRNI_CLASS_KEY, layout->name, NULL};
    dlrn_status s = DLRN_OK;
    for (int i = 0; layout->tensor[i].name && s == DLRN_OK; i++)
        s = dlrni_add_stored(dict, &layout->tensor[i], &saving);
    /* no file is touched before all tensors have passed */
    for (int64_t i = 0; i < saving.count && s == DLRN_OK; i++)
        s = dlrni_check_stored(ctx, path, &saving.tensor[i]);
    /* the tensors leave the class open, and there may be no config beside the file */
    if (s == DLRN_OK)
        s = dlrn_archive_write(ctx, path, saving.tensor, saving.count,
                               dlrni_is_ambiguous(layout) ? stated : NULL);
    for (int i = 0; i < DLRNI_STORED_MAX; i++) dlrn_free(ctx, saving.turned[i]);
    return s;
}

DLRNI_COLD_END
#ifndef DICTLEARN_NO_TRAINING
/* ------------------------------------------------------------------------------------------ */
// >>naive
/* The algorithm, written to be read: a step of the recipe reference, in double, with plain loops
   and every number in memory. The rooms after this one do the same with lists of active features,
   in f32, and in parallel. Compiled for the tests only: they compare this step with finite
   differences and with PyTorch, and the trainer with this step. */
#ifdef DICTLEARN_NAIVE_STEP

/* trainSAE's constant, which avoids 0 / 0 and log(0). */
static const double dlrni_naive_eps = 1e-8;

/* Parameters, gradients and moments by role. The caller owns all arrays. */
typedef struct dlrni_naive {
    int64_t n, d_in, d_out, F;  /* rows x [n][d_in], targets y [n][d_out]; F features          */
    double *p[DLRN_ROLE_COUNT]; /* encoder [F][d_in], decoder [F][d_out], and the biases       */
    double *g[DLRN_ROLE_COUNT], *m[DLRN_ROLE_COUNT], *v[DLRN_ROLE_COUNT];
    int center;              /* role of the bias that is subtracted from x; -1: none        */
    int squared, entropy;    /* 1: the squared distance; entropy in place of the L1 norm    */
    double penalty, lr;      /* weight of the sparsity loss; Adam's rate at this step       */
    int64_t ghost_threshold; /* features silent for more steps are dead; -1: none           */
    int64_t *silent;         /* [F] steps since the feature was last active                 */
    int64_t step;            /* steps done                                                  */
    double *pre, *f, *e;     /* [n][F] pre-activations, features; [n][d_out] x_hat - y      */
    double *ghost, *r;       /* [n][d_out] output of the dead, and the residual they aim at */
    double *scale, ratio;    /* [n] of the output of the dead; weight of their loss         */
    double reconstruction, sparsity, auxiliary; /* the terms of the loss, without weights      */
} dlrni_naive;

/* Uses the counters before this step, as the reference does. */
DLRNI_INTERNAL int dlrni_naive_is_dead(const dlrni_naive *s, int64_t j) {
    return s->ghost_threshold >= 0 && s->silent[j] > s->ghost_threshold;
}

DLRNI_INTERNAL double dlrni_naive_length(const double *a, int64_t d) {
    double square = 0;
    for (int64_t c = 0; c < d; c++) square += a[c] * a[c];
    return sqrt(square);
}

/* Row i: f = ReLU(W_e (x - b) + b_e), e = f W_d + bias - y. The output of the dead
   features is exp(pre) W_d. */
DLRNI_INTERNAL void dlrni_naive_forward(dlrni_naive *s, int64_t i, const double *x,
                                        const double *y) {
    const double *b = s->center < 0 ? NULL : s->p[s->center];
    double *e = s->e + i * s->d_out, *ghost = s->ghost + i * s->d_out;
    for (int64_t c = 0; c < s->d_out; c++) {
        e[c] = s->p[DLRN_OUTPUT_BIAS][c] - y[c];
        ghost[c] = 0;
    }
    for (int64_t j = 0; j < s->F; j++) {
        const double *row = s->p[DLRN_ENCODER] + j * s->d_in;
        const double *atom = s->p[DLRN_DECODER] + j * s->d_out;
        double pre = s->p[DLRN_ENCODER_BIAS][j];
        for (int64_t c = 0; c < s->d_in; c++) pre += row[c] * (x[c] - (b ? b[c] : 0));
        double f = pre > 0 ? pre : 0, dead = dlrni_naive_is_dead(s, j) ? exp(pre) : 0;
        for (int64_t c = 0; c < s->d_out; c++) {
            e[c] += f * atom[c];
            ghost[c] += dead * atom[c];
        }
        s->pre[i * s->F + j] = pre;
        s->f[i * s->F + j] = f;
    }
}

/* L1 norm of the features f [F] of a row, or the entropy of q = f / (sum f + eps). */
DLRNI_INTERNAL double dlrni_naive_sparsity(const dlrni_naive *s, const double *f) {
    double sum = 0, entropy = 0;
    for (int64_t j = 0; j < s->F; j++) sum += f[j];
    for (int64_t j = 0; j < s->F; j++) {
        double q = f[j] / (sum + dlrni_naive_eps);
        entropy -= q * log(q + dlrni_naive_eps);
    }
    return s->entropy ? entropy : sum;
}

/* The loss of x and y, and its terms. `again` 1 keeps the ghosts' residual, scale and ratio of the
   last call: the gradient treats them as constants, so finite differences must do so too. */
DLRNI_INTERNAL double dlrni_naive_loss(dlrni_naive *s, const double *x, const double *y,
                                       int again) {
    const int64_t d = s->d_out;
    int dead = 0;
    s->reconstruction = s->sparsity = s->auxiliary = 0;
    for (int64_t j = 0; j < s->F; j++) dead |= dlrni_naive_is_dead(s, j);
    for (int64_t i = 0; i < s->n; i++) {
        dlrni_naive_forward(s, i, x + i * s->d_in, y + i * d);
        double norm = dlrni_naive_length(s->e + i * d, d), square = 0;
        s->reconstruction += (s->squared ? norm * norm : norm) / (double)s->n;
        s->sparsity += dlrni_naive_sparsity(s, s->f + i * s->F) / (double)s->n;
        if (!again) { /* scales the output to half of the residual's length */
            double own = dlrni_naive_length(s->ghost + i * d, d);
            s->scale[i] = norm / (2 * own + dlrni_naive_eps);
            for (int64_t c = 0; c < d; c++) s->r[i * d + c] = -s->e[i * d + c];
        }
        for (int64_t c = i * d; c < (i + 1) * d; c++)
            square += pow(s->scale[i] * s->ghost[c] - s->r[c], 2);
        if (dead) s->auxiliary += sqrt(square) / (double)s->n;
    }
    /* makes it as large as the reconstruction loss */
    if (!again) s->ratio = s->reconstruction / (s->auxiliary + dlrni_naive_eps);
    return s->reconstruction + s->penalty * s->sparsity + s->ratio * s->auxiliary;
}

/* The derivative of dlrni_naive_sparsity with respect to an active feature j. With h(q) = -log(q +
   eps) - q / (q + eps) and the mean H = sum_k q_k h(q_k): (h(q_j) - H) / (sum f + eps). */
DLRNI_INTERNAL double dlrni_naive_slope(const dlrni_naive *s, const double *f, int64_t j) {
    double sum = dlrni_naive_eps, mean = 0, own = 0;
    for (int64_t k = 0; k < s->F; k++) sum += f[k];
    for (int64_t k = 0; k < s->F; k++) {
        double q = f[k] / sum, h = -log(q + dlrni_naive_eps) - q / (q + dlrni_naive_eps);
        mean += q * h;
        if (k == j) own = h;
    }
    return s->entropy ? (own - mean) / sum : 1;
}

/* Adds what row i and feature j contribute to the gradients. `toward` [d_out] is the derivative of
   the loss with respect to x_hat, `dead` [d_out] that with respect to the output of the dead
   features. */
DLRNI_INTERNAL void dlrni_naive_chain(dlrni_naive *s, int64_t i, int64_t j, const double *x,
                                      const double *toward, const double *dead) {
    const double *atom = s->p[DLRN_DECODER] + j * s->d_out, *f = s->f + i * s->F;
    double ghost = dlrni_naive_is_dead(s, j) ? exp(s->pre[i * s->F + j]) : 0;
    double slope = f[j] > 0 ? s->penalty * dlrni_naive_slope(s, f, j) / (double)s->n : 0;
    for (int64_t c = 0; c < s->d_out; c++) {
        s->g[DLRN_DECODER][j * s->d_out + c] += f[j] * toward[c] + ghost * dead[c];
        /* ReLU passes no gradient to a feature that is off; exp is its own derivative */
        slope += (f[j] > 0 ? toward[c] * atom[c] : 0) + ghost * dead[c] * atom[c];
    }
    s->g[DLRN_ENCODER_BIAS][j] += slope;
    for (int64_t c = 0; c < s->d_in; c++) {
        const double b = s->center < 0 ? 0 : s->p[s->center][c];
        s->g[DLRN_ENCODER][j * s->d_in + c] += slope * (x[c] - b);
        if (s->center >= 0) s->g[s->center][c] -= slope * s->p[DLRN_ENCODER][j * s->d_in + c];
    }
}

/* How many numbers a role has. */
DLRNI_INTERNAL int64_t dlrni_naive_size(const dlrni_naive *s, int role) {
    return role == DLRN_ENCODER        ? s->F * s->d_in
           : role == DLRN_DECODER      ? s->F * s->d_out
           : role == DLRN_ENCODER_BIAS ? s->F
           : role == DLRN_OUTPUT_BIAS  ? s->d_out
                                       : s->d_in;
}

/* The gradients of dlrni_naive_loss, which must have been called. toward, dead [d_out] are
   scratch. */
DLRNI_INTERNAL void dlrni_naive_gradients(dlrni_naive *s, const double *x, double *toward,
                                          double *dead) {
    const int64_t d = s->d_out;
    for (int role = 0; role < DLRN_ROLE_COUNT; role++)
        for (int64_t c = 0; s->g[role] && c < dlrni_naive_size(s, role); c++) s->g[role][c] = 0;
    for (int64_t i = 0; i < s->n; i++) {
        double norm = dlrni_naive_length(s->e + i * d, d), length;
        for (int64_t c = 0; c < d; c++)
            dead[c] = s->scale[i] * s->ghost[i * d + c] - s->r[i * d + c];
        length = dlrni_naive_length(dead, d);
        for (int64_t c = 0; c < d; c++) {
            /* the derivative of |e| is e / |e|; at 0 it has none */
            double by = s->squared ? 2 : norm > 0 ? 1 / norm : 0;
            toward[c] = by * s->e[i * d + c] / (double)s->n;
            by = length > 0 ? s->ratio * s->scale[i] / length : 0;
            dead[c] *= by / (double)s->n;
            s->g[DLRN_OUTPUT_BIAS][c] += toward[c];
        }
        for (int64_t j = 0; j < s->F; j++)
            dlrni_naive_chain(s, i, j, x + i * s->d_in, toward, dead);
    }
}

/* An atom's gradient without its part along the atom, before Adam; afterwards (g NULL) the atom is
   scaled to length 1. A zero atom stays 0. */
DLRNI_INTERNAL void dlrni_naive_atom(double *atom, double *g, int64_t d) {
    double length = dlrni_naive_length(atom, d), dot = 0;
    for (int64_t c = 0; c < d && g; c++) dot += atom[c] * g[c];
    for (int64_t c = 0; c < d && length > 0; c++) {
        if (g)
            g[c] -= dot / (length * length) * atom[c];
        else
            atom[c] /= length;
    }
}

/* Adam's update of number i of a role. Its corrections count steps from 1. */
DLRNI_INTERNAL void dlrni_naive_adam(dlrni_naive *s, int role, int64_t i) {
    double g = s->g[role][i], *m = &s->m[role][i], *v = &s->v[role][i];
    *m = 0.9 * *m + 0.1 * g;
    *v = 0.999 * *v + 0.001 * g * g;
    double mean = *m / (1 - pow(0.9, (double)s->step));
    double square = *v / (1 - pow(0.999, (double)s->step));
    s->p[role][i] -= s->lr * mean / (sqrt(square) + 1e-8);
}

/* One step; returns the loss before it. toward, dead [d_out] are scratch. */
DLRNI_INTERNAL double dlrni_naive_step(dlrni_naive *s, const double *x, const double *y,
                                       double *toward, double *dead) {
    const int64_t d = s->d_out;
    double loss = dlrni_naive_loss(s, x, y, 0);
    dlrni_naive_gradients(s, x, toward, dead);
    for (int64_t j = 0; j < s->F; j++)
        dlrni_naive_atom(s->p[DLRN_DECODER] + j * d, s->g[DLRN_DECODER] + j * d, d);
    s->step++;
    for (int role = 0; role < DLRN_ROLE_COUNT; role++)
        for (int64_t i = 0; s->g[role] && i < dlrni_naive_size(s, role); i++)
            dlrni_naive_adam(s, role, i);
    for (int64_t j = 0; j < s->F; j++) {
        dlrni_naive_atom(s->p[DLRN_DECODER] + j * d, NULL, d);
        s->silent[j]++;
        for (int64_t i = 0; i < s->n; i++)
            if (s->f[i * s->F + j] > 0) s->silent[j] = 0;
    }
    return loss;
}
#endif /* DICTLEARN_NAIVE_STEP */

/* ------------------------------------------------------------------------------------------ */
// >>source
/* Sources of rows: arrays in memory or in files, and a filter for rows that are not finite. A
   source is a struct of callbacks, so that the buffer and the evaluator need not know where rows
   come from. The two kinds here have a position, so a run that reads from them can be resumed.

   Files are a series: one matrix, whose rows go on from file to file. All are looked at when the
   source is opened (the shapes must agree, and the number of rows is then known), but only one is
   open at a time:

      x1.npy [1000, d]   x2.safetensors [8, 512, d]   x10.npz [300, d]
      rows 0 ... 999     1000 ... 5095                5096 ... 5395

   A file is read in one of two ways. Mapped: as an archive of any format; rows are copied out of
   the map, and its pages are dropped behind them. As a stream, where it cannot be mapped: only a
   .npy in C order, whose rows lie in the file as they are read; standard input is one. */

/* ---- Files of rows ---- */

enum { DLRNI_RAW_BYTES = 1 << 16 }; /* of a stream, before they are converted to f32 */

/* One file of a series. */
typedef struct dlrni_shard {
    const char *path; /* in the series' block of names */
    int64_t rows;
} dlrni_shard;

/* Files that are read as one matrix [rows][cols], and the one that is open. */
typedef struct dlrni_series {
    dlrn_context *ctx;
    dlrni_shard *shard; /* [n] */
    int64_t n;
    char *names;  /* all paths, and the tensor's name */
    char *tensor; /* NULL: the only one of floats     */
    dlrn_dtype dtype;
    int64_t rows, cols, positions;

    int64_t current;      /* the shard that is open; -1: none                  */
    dlrni_entry entry;    /* its tensor                                        */
    dlrn_archive *file;   /* it is mapped, or was read whole; or ...           */
    void *stream;         /* ... it is read through                            */
    int64_t at;           /* of a stream: the next row                         */
    size_t dropped;       /* of a map: pages before this byte are dropped      */
    unsigned char *raw;   /* [DLRNI_RAW_BYTES], allocated by the first stream  */
    unsigned char *whole; /* a pipe that had to be read whole: `file` is it  */
    int drained;          /* a pipe was opened, and cannot be once more        */
} dlrni_series;

/* A path as errors name it. */
DLRNI_INTERNAL const char *dlrni_path_text(const char *path) {
    return strcmp(path, "-") ? path : "standard input";
}

/* Can this path be opened only once? */
DLRNI_INTERNAL int dlrni_is_pipe(const dlrn_context *ctx, const char *path) {
    if (!strcmp(path, "-")) return 1;
#ifdef DICTLEARN_NO_STDIO
    (void)ctx;
    return 0;
#else
    return !ctx->cfg.io.open_file && dlrni_is_device(path);
#endif
}

/* Is a tensor one of rows of activations, with U16 taken for bf16 where the caller says so? */
DLRNI_INTERNAL int dlrni_holds_rows(const dlrni_series *s, const dlrn_tensor_info *t) {
    return t->ndim >= 2 &&
           (dlrni_is_float(t->dtype) || (s->dtype == DLRN_BF16 && t->dtype == DLRN_U16));
}

/* Names and shapes of an archive's tensors, as an error lists them: those of rows, or all. */
DLRNI_INTERNAL void dlrni_list_tensors(const dlrni_series *s, const dlrn_archive *a, int all,
                                       char *text, size_t size) {
    size_t at = 0;
    dlrni_print(text, size, "none");
    for (int64_t i = 0, n = 0; i < a->count && at < size; i++) {
        const dlrn_tensor_info *t = &a->entries[i].info;
        char shape[128];
        if (!all && !dlrni_holds_rows(s, t)) continue;
        dlrni_shape_text(t->shape, t->ndim, shape, sizeof shape);
        at += (size_t)dlrni_print(text + at, size - at, "%s%s %s [%s]", n++ ? ", " : "", t->name,
                                  dlrni_type_name(t->dtype), shape);
    }
}

/* The tensor that is meant: by its name, or the only one that can be. A file of one tensor is taken
   at its word, so that the error says what is wrong with it. */
DLRNI_INTERNAL dlrn_status dlrni_choose_tensor(const dlrni_series *s, const dlrn_archive *a,
                                               int64_t *index) {
    char list[512];
    int64_t fit = 0;
    *index = s->tensor ? dlrn_archive_find(a, s->tensor) : a->count == 1 ? 0 : -1;
    for (int64_t i = 0; i < a->count && !s->tensor && a->count > 1; i++)
        if (dlrni_holds_rows(s, &a->entries[i].info)) fit++, *index = i;
    if (*index >= 0 && fit < 2) return DLRN_OK;
    dlrni_list_tensors(s, a, fit == 0, list, sizeof list);
    if (s->tensor)
        return dlrn_fail(s->ctx, DLRN_ERR_ARGUMENT, "%s: expected tensor '%s', found %s", a->path,
                         s->tensor, strcmp(a->format, "npy") ? list : "a .npy, which has no names");
    if (fit)
        return dlrn_fail(s->ctx, DLRN_ERR_ARGUMENT,
                         "%s: expected the name of one of its %lld tensors: %s", a->path,
                         (long long)fit, list);
    return dlrn_fail(s->ctx, DLRN_ERR_SHAPE,
                     "%s: expected a tensor of floats of two or more dimensions, found %s", a->path,
                     list);
}

/* Refuses a type that is not one of floats, with a word on bf16: many save its bits as integers. */
DLRNI_INTERNAL dlrn_status dlrni_check_row_type(const dlrni_series *s, const char *path,
                                                const dlrni_entry *e) {
    const dlrn_dtype type = e->info.dtype;
    if (s->dtype == DLRN_BF16 && (type == DLRN_BF16 || type == DLRN_U16)) return DLRN_OK;
    if (s->dtype != DLRN_BF16 && dlrni_is_float(type)) return DLRN_OK;
    return dlrn_fail(s->ctx, DLRN_ERR_UNSUPPORTED, "%s: tensor '%s': expected %s, found %s%s", path,
                     e->info.name,
                     s->dtype == DLRN_BF16 ? "BF16, or its bits as U16" : "F16, BF16, F32 or F64",
                     dlrni_type_name(type),
                     type == DLRN_U16 ? ": U16 is read as bf16 only if the caller says so "
                                        "(dtype bf16)"
                                      : "");
}

/* Checks that a tensor is a matrix of floats that fits the files before it, and notes its sizes. A
   tensor without rows may claim any width, and buffers are sized by it, so that is bounded. */
DLRNI_INTERNAL dlrn_status dlrni_check_shard(dlrni_series *s, int64_t i, dlrni_entry *e) {
    const dlrn_tensor_info *t = &e->info;
    const char *path = dlrni_path_text(s->shard[i].path);
    char shape[128];
    DLRNI_TRY(dlrni_check_row_type(s, path, e));
    dlrni_shape_text(t->shape, t->ndim, shape, sizeof shape);
    if (t->ndim < 2)
        return dlrn_fail(s->ctx, DLRN_ERR_SHAPE,
                         "%s: expected an array [rows, width] or [..., width], found [%s]", path,
                         shape);
    const int64_t cols = t->shape[t->ndim - 1], positions = t->ndim > 2 ? t->shape[t->ndim - 2] : 0;
    if (cols < 1 || cols > INT32_MAX)
        return dlrn_fail(s->ctx, DLRN_ERR_SHAPE, "%s: expected rows of 1 to %d numbers, found %lld",
                         path, INT32_MAX, (long long)cols);
    if (s->cols && cols != s->cols)
        return dlrn_fail(s->ctx, DLRN_ERR_SHAPE,
                         "%s: expected rows of %lld numbers as in %s, found %lld", path,
                         (long long)s->cols, dlrni_path_text(s->shard[0].path), (long long)cols);
    /* documents of two lengths: where one begins is then not known */
    s->positions = s->cols && s->positions != positions ? 0 : positions;
    s->cols = cols;
    s->shard[i].rows = t->numel / cols;
    if (t->dtype == DLRN_U16) e->info.dtype = DLRN_BF16;
    return DLRN_OK;
}

/* Closes the file that is open, if any. */
DLRNI_INTERNAL void dlrni_series_close_file(dlrni_series *s) {
    const dlrn_io *io = dlrni_io_of(s->ctx);
    if (s->stream) (void)!io->close_file(io->user, s->ctx, s->stream, 0);
    dlrn_archive_close(s->file);
    dlrn_free(s->ctx, s->whole);
    s->stream = NULL;
    s->file = NULL;
    s->whole = NULL;
    s->current = -1;
}

/* The first bytes of a stream: a magic, and the header of a .npy. */
typedef struct dlrni_pipe_start {
    unsigned char bytes[12 + (size_t)DLRNI_NPY_TEXT_MAX];
    size_t n;
} dlrni_pipe_start;

/* Reads the header of a .npy from a stream, up to its data. *is_npy 0: it is of another format, and
   an archive may know it. */
DLRNI_INTERNAL dlrn_status dlrni_stream_head(dlrni_series *s, const char *what,
                                             dlrni_pipe_start *start, dlrni_npy_head *h,
                                             int *is_npy) {
    enum { FIRST = 12 }; /* magic, version, and a length of 4 bytes, or of 2 and 2 of the text */
    unsigned char *head = start->bytes;
    size_t more = 0;
    DLRNI_TRY(dlrni_read_full(s->ctx, s->stream, head, FIRST, &start->n));
    *is_npy = start->n >= 6 && !memcmp(head, "\x93NUMPY", 6);
    if (!*is_npy) return DLRN_OK;
    if (start->n == FIRST) {
        const uint64_t text = head[6] >= 2 ? dlrni_le(head + 8, 4) : dlrni_le(head + 8, 2) - 2;
        /* a longer text is refused by the parser: it is cut off */
        if (text <= DLRNI_NPY_TEXT_MAX)
            DLRNI_TRY(dlrni_read_full(s->ctx, s->stream, head + FIRST, (size_t)text, &more));
    }
    start->n += more;
    dlrni_cursor c = {head, head + start->n};
    return dlrni_npy_parse(s->ctx, what, &c, h);
}

/* Reads the rest of a pipe into memory: its format (or Fortran order) needs all of it at once. What
   is of no format is refused by its first bytes, since it may have no end. */
DLRNI_INTERNAL dlrn_status dlrni_pipe_whole(dlrni_series *s, const char *what,
                                            const dlrni_pipe_start *start) {
    const unsigned char *p = start->bytes;
    int64_t cap = 0, n = (int64_t)start->n;
    size_t got = 1;
    const int known = n >= 12 && (!memcmp(p, "\x93NUMPY", 6) || !memcmp(p, "PK", 2) ||
                                  p[8] == '{' || p[0] == DLRNI_OP_PROTO);
    if (!known)
        return dlrn_fail(s->ctx, DLRN_ERR_FORMAT,
                         "%s: expected .npy, .npz, torch (.pt) or safetensors, found none of them",
                         what);
    if (!DLRNI_GROW(s->ctx, &s->whole, &cap, 0, n + 1)) return DLRN_ERR_MEMORY;
    memcpy(s->whole, start->bytes, start->n);
    for (; got; n += (int64_t)got) {
        if (!DLRNI_GROW(s->ctx, &s->whole, &cap, n, n + DLRNI_RAW_BYTES)) return DLRN_ERR_MEMORY;
        DLRNI_TRY(dlrni_read_full(s->ctx, s->stream, s->whole + n, DLRNI_RAW_BYTES, &got));
    }
    (void)!dlrni_io_of(s->ctx)->close_file(dlrni_io_of(s->ctx)->user, s->ctx, s->stream, 0);
    s->stream = NULL; /* rows come from s->file */
    return dlrn_archive_open_memory(s->ctx, s->whole, (size_t)n, what, &s->file);
}

/* Takes the sizes of a .npy in C order, whose rows follow in the stream. */
DLRNI_INTERNAL dlrn_status dlrni_stream_npy(dlrni_series *s, const char *what,
                                            const dlrni_npy_head *h) {
    dlrni_entry *e = &s->entry;
    memset(e, 0, sizeof *e);
    e->info.name = "";
    e->info.dtype = h->dtype;
    e->info.ndim = h->ndim;
    memcpy(e->info.shape, h->shape, sizeof h->shape);
    e->swap = h->swap;
    s->at = 0;
    if (dlrni_numel(h->shape, h->ndim, &e->info.numel)) return DLRN_OK;
    return dlrn_fail(s->ctx, DLRN_ERR_FORMAT, "%s: its shape overflows", what);
}

/* Opens a shard as a stream. *opened 0: it is not a .npy in C order, and may be opened as an
   archive, which reads it whole: s->file for a pipe, which cannot be opened twice. */
DLRNI_INTERNAL dlrn_status dlrni_open_stream(dlrni_series *s, int64_t i, int *opened) {
    const dlrn_io *io = dlrni_io_of(s->ctx);
    const char *path = s->shard[i].path, *what = dlrni_path_text(path);
    const int is_pipe = dlrni_is_pipe(s->ctx, path);
    dlrni_pipe_start start;
    dlrni_npy_head h;
    memset(&h, 0, sizeof h);
    *opened = 0;
    if (s->drained)
        return dlrn_fail(s->ctx, DLRN_ERR_IO, "%s: a pipe is read once: cannot go back", what);
    s->drained = is_pipe;
    if (!s->raw && !(s->raw = DLRNI_NEW(s->ctx, unsigned char, DLRNI_RAW_BYTES)))
        return DLRN_ERR_MEMORY;
    DLRNI_TRY(io->open_file(io->user, s->ctx, path, 0, &s->stream));
    DLRNI_TRY(dlrni_stream_head(s, what, &start, &h, opened));
    if (*opened && (!h.fortran || h.ndim < 2)) return dlrni_stream_npy(s, what, &h);
    *opened = 0;
    if (is_pipe) return dlrni_pipe_whole(s, what, &start);
    dlrni_series_close_file(s);
    return DLRN_OK;
}

/* Opens shard i, checks it and notes its rows. shapes_only: it will be closed without a row being
   read. On failure nothing is open. */
DLRNI_INTERNAL dlrn_status dlrni_shard_open(dlrni_series *s, int64_t i, int shapes_only) {
    const char *path = s->shard[i].path;
    dlrni_file_map map;
    int64_t index = 0;
    int opened = 0;
    dlrni_series_close_file(s);
    const int maps = !dlrni_is_pipe(s->ctx, path) && dlrni_map_file(s->ctx, path, &map);
    if (maps) dlrni_map_close(s->ctx, &map); /* it is mapped again by the archive */
    dlrn_status st = maps ? DLRN_OK : dlrni_open_stream(s, i, &opened);
    if (st == DLRN_OK && opened && s->tensor)
        st = dlrn_fail(s->ctx, DLRN_ERR_ARGUMENT,
                       "%s: expected tensor '%s', found a .npy, which has no names",
                       dlrni_path_text(path), s->tensor);
    if (st == DLRN_OK && !opened) {
        if (!s->file) st = dlrni_archive_open_as(s->ctx, path, shapes_only, &s->file);
        if (st == DLRN_OK) st = dlrni_choose_tensor(s, s->file, &index);
        if (st == DLRN_OK) s->entry = s->file->entries[index];
    }
    if (st == DLRN_OK) st = dlrni_check_shard(s, i, &s->entry);
    if (st == DLRN_OK)
        s->current = i;
    else
        dlrni_series_close_file(s);
    s->dropped = 0;
    return st;
}

/* Opens each file in turn, so that the sizes are known and agree before the first row is read. The
   last one stays open: it is the only one, as a rule, and a pipe cannot be opened again. */
DLRNI_INTERNAL dlrn_status dlrni_measure_series(dlrni_series *s) {
    for (int64_t i = 0; i < s->n; i++) {
        DLRNI_TRY(dlrni_shard_open(s, i, s->n > 1));
        if (!dlrni_add(s->rows, s->shard[i].rows, &s->rows))
            return dlrn_fail(s->ctx, DLRN_ERR_SHAPE, "%s: too many rows", s->shard[i].path);
    }
    if (s->n > 1) dlrni_series_close_file(s); /* without their CRCs */
    return DLRN_OK;
}

/* Frees all; safe on a series that was never opened, all zero. */
DLRNI_INTERNAL void dlrni_series_close(dlrni_series *s) {
    if (!s->ctx) return;
    dlrni_series_close_file(s);
    dlrn_free(s->ctx, s->shard);
    dlrn_free(s->ctx, s->names);
    dlrn_free(s->ctx, s->raw);
    memset(s, 0, sizeof *s);
}

/* Copies the names and measures the files. On failure the caller closes the series. */
DLRNI_INTERNAL dlrn_status dlrni_series_open(dlrn_context *ctx, const dlrn_source_desc *desc,
                                             const char *const *paths, int64_t n, dlrni_series *s) {
    int64_t bytes = desc->tensor ? (int64_t)strlen(desc->tensor) + 1 : 1;
    for (int64_t i = 0; i < n; i++) bytes += (int64_t)strlen(paths[i]) + 1;
    s->ctx = ctx;
    s->current = -1;
    s->dtype = desc->dtype;
    s->shard = DLRNI_NEW_ZERO(ctx, dlrni_shard, n);
    s->names = s->shard ? DLRNI_NEW(ctx, char, bytes) : NULL;
    if (!s->names) return DLRN_ERR_MEMORY;
    char *to = s->names;
    for (int64_t i = 0; i <= n; i++) {
        const char *name = i < n ? paths[i] : desc->tensor;
        if (!name) break;
        memcpy(to, name, strlen(name) + 1);
        if (i < n)
            s->shard[i].path = to;
        else
            s->tensor = to;
        to += strlen(name) + 1;
    }
    s->n = n;
    return dlrni_measure_series(s);
}

/* Moves a stream on to a row by reading over the rows between. A row before it needs the file from
   its start. */
DLRNI_INTERNAL dlrn_status dlrni_stream_skip(dlrni_series *s, int64_t row) {
    const int64_t size = s->cols * dlrni_dtype_size(s->entry.info.dtype);
    if (row < s->at) DLRNI_TRY(dlrni_shard_open(s, s->current, 0));
    for (int64_t left = (row - s->at) * size; left > 0;) {
        size_t got, want = (size_t)dlrni_min(left, DLRNI_RAW_BYTES);
        DLRNI_TRY(dlrni_read_full(s->ctx, s->stream, s->raw, want, &got));
        if (got < want) break; /* reading the row will find the end, too */
        left -= (int64_t)got;
    }
    s->at = row;
    return DLRN_OK;
}

/* Reads n elements of a stream to dst as f32; *done is less only at its end. f32 needs no
   conversion, and goes straight to dst. */
DLRNI_INTERNAL dlrn_status dlrni_stream_elements(dlrni_series *s, int64_t n, float *dst,
                                                 int64_t *done) {
    const int64_t size = dlrni_dtype_size(s->entry.info.dtype);
    size_t got = 1;
    *done = 0;
    if (s->entry.info.dtype == DLRN_F32 && !s->entry.swap && dlrni_little_endian()) {
        DLRNI_TRY(dlrni_read_full(s->ctx, s->stream, dst, (size_t)(n * size), &got));
        *done = (int64_t)got / size;
        return DLRN_OK;
    }
    s->entry.data = s->raw;
    for (; got && *done < n; *done += (int64_t)got / size) {
        const int64_t want = dlrni_min(n - *done, DLRNI_RAW_BYTES / size);
        DLRNI_TRY(dlrni_read_full(s->ctx, s->stream, s->raw, (size_t)(want * size), &got));
        dlrni_entry_run(s->ctx, &s->entry, 0, (int64_t)got / size, 1, dst + *done, NULL);
    }
    return DLRN_OK;
}

/* Reads rows [row, row + n) of a stream; *got is less only where it ends before the rows that its
   header announces. After an error nobody knows where it stands, so it is closed: a file can be
   opened again, a pipe cannot. */
DLRNI_INTERNAL dlrn_status dlrni_stream_rows(dlrni_series *s, int64_t row, int64_t n, float *dst,
                                             int64_t *got) {
    int64_t done = 0;
    dlrn_status st = dlrni_stream_skip(s, row);
    if (st == DLRN_OK) st = dlrni_stream_elements(s, n * s->cols, dst, &done);
    if (st != DLRN_OK) dlrni_series_close_file(s);
    *got = done / s->cols;
    s->at += *got;
    return st;
}

/* Reads rows from a file that is mapped, and drops the pages before `end`, where they lie in order.
   4 MB at a time: a system call for each batch of rows would show. */
DLRNI_INTERNAL void dlrni_map_rows(dlrni_series *s, int64_t row, int64_t n, float *dst) {
    const dlrni_entry *e = &s->entry;
    const dlrni_file_map *m = &s->file->map;
    const uintptr_t base = (uintptr_t)m->p, at = (uintptr_t)e->data - base;
    const size_t size = (size_t)s->cols * (size_t)dlrni_dtype_size(e->info.dtype);
    dlrni_entry_rows(s->ctx, e, row, n, dst, NULL);
    /* unpacked members, the shards of an index and a pipe that was read whole lie elsewhere */
    if (!dlrni_is_dense(e) || at >= m->size || s->file->borrowed) return;
    const size_t begin = at + (size_t)row * size, end = begin + (size_t)n * size;
    if (begin < s->dropped) s->dropped = begin; /* read once more, in a later epoch */
    if (end - s->dropped >= (size_t)4 << 20) s->dropped = dlrni_map_drop(m, s->dropped, end);
}

/* Opens the shard again that was measured, if another one is open. */
DLRNI_INTERNAL dlrn_status dlrni_enter_shard(dlrni_series *s, int64_t i) {
    const int64_t rows = s->shard[i].rows;
    if (s->current == i) return DLRN_OK;
    DLRNI_TRY(dlrni_shard_open(s, i, 0));
    if (s->shard[i].rows == rows) return DLRN_OK;
    s->shard[i].rows = rows;
    return dlrn_fail(s->ctx, DLRN_ERR_SHAPE, "%s: expected %lld rows as before, found another file",
                     s->shard[i].path, (long long)rows);
}

/* Reads rows [row, row + n), over the bounds of files. *got is less only where a stream ends before
   its time: rows that came are handed out first, and the next call reports it. */
DLRNI_INTERNAL dlrn_status dlrni_series_read(dlrni_series *s, int64_t row, int64_t n, float *dst,
                                             int64_t *got) {
    for (*got = 0; *got < n;) {
        int64_t i = 0, first = row + *got, read;
        while (first >= s->shard[i].rows) first -= s->shard[i++].rows;
        DLRNI_TRY(dlrni_enter_shard(s, i));
        const int64_t count = dlrni_min(n - *got, s->shard[i].rows - first);
        float *to = dst + *got * s->cols;
        if (s->stream)
            DLRNI_TRY(dlrni_stream_rows(s, first, count, to, &read));
        else
            dlrni_map_rows(s, first, read = count, to);
        *got += read;
        if (read == count) continue;
        return *got ? DLRN_OK
                    : dlrn_fail(s->ctx, DLRN_ERR_FORMAT,
                                "%s: expected %lld rows, as its header says, found %lld",
                                dlrni_path_text(s->shard[i].path), (long long)s->shard[i].rows,
                                (long long)s->at);
    }
    return DLRN_OK;
}

/* ---- A source of either kind ---- */

/* One struct for both kinds: they differ only in how a row is fetched. */
typedef struct dlrni_array_source {
    dlrn_context *ctx;          /* for memory and for error texts */
    const float *x, *y;         /* [rows][d_in], [rows][d_out] in memory, borrowed, or ... */
    dlrni_series files, target; /* ... in files                                            */
    int64_t rows, d_in, d_out;  /* d_out 0: no target                                      */
    int64_t epochs, at;         /* at: rows given so far, over all epochs                  */
} dlrni_array_source;

/* Gives at most the rest of the current epoch; the next call begins the next one. */
DLRNI_INTERNAL dlrn_status dlrni_array_read(void *user, int64_t max_rows, float *x, float *y,
                                            int64_t *n) {
    dlrni_array_source *s = (dlrni_array_source *)user;
    /* no rows: the remainder would divide by 0 */
    int64_t row = s->rows ? s->at % s->rows : 0, count = dlrni_min(max_rows, s->rows - row);
    *n = 0;
    /* epochs 0: forever */
    if (!s->rows || (s->epochs && s->at / s->rows >= s->epochs)) return DLRN_END;
    /* rows in memory are copied, not lent: the reader may write into its copy */
    if (s->x) {
        memcpy(x, s->x + row * s->d_in, (size_t)(count * s->d_in) * sizeof *x);
        if (s->y) memcpy(y, s->y + row * s->d_out, (size_t)(count * s->d_out) * sizeof *y);
    } else {
        DLRNI_TRY(dlrni_series_read(&s->files, row, count, x, &count));
        if (s->target.n) DLRNI_TRY(dlrni_series_read(&s->target, row, count, y, &count));
    }
    /* counted only once both files are read: a failed call can be repeated */
    s->at += count;
    *n = count;
    return DLRN_OK;
}

/* Positions count rows over all epochs: a resumed run goes on in the middle of an epoch. */
DLRNI_INTERNAL dlrn_status dlrni_array_position(void *user, uint64_t *position) {
    *position = (uint64_t)((dlrni_array_source *)user)->at;
    return DLRN_OK;
}

/* Refuses a position beyond the last row: the run was saved with a longer source. */
DLRNI_INTERNAL dlrn_status dlrni_array_seek(void *user, uint64_t position) {
    dlrni_array_source *s = (dlrni_array_source *)user;
    int64_t end = INT64_MAX / 4, rows; /* counting on from there would overflow */
    /* a product that overflows is larger than `end` anyway */
    if (s->epochs && dlrni_mul(s->rows, s->epochs, &rows)) end = dlrni_min(end, rows);
    if (position > (uint64_t)end)
        return dlrn_fail(s->ctx, DLRN_ERR_ARGUMENT,
                         "%s: position %llu: expected at most %lld, the end of its rows",
                         s->files.n ? dlrni_path_text(s->files.shard[0].path) : "an array",
                         (unsigned long long)position, (long long)end);
    /* within an epoch, too: the next read begins at this row */
    s->at = (int64_t)position;
    return DLRN_OK;
}

/* The readers have already put their message into the context. */
DLRNI_INTERNAL const char *dlrni_array_error(void *user) {
    return ((dlrni_array_source *)user)->ctx->error;
}

/* Closes what was opened; arrays in memory are the caller's. */
DLRNI_INTERNAL void dlrni_array_destroy(void *user) {
    dlrni_array_source *s = (dlrni_array_source *)user;
    dlrni_series_close(&s->files);
    dlrni_series_close(&s->target);
    dlrn_free(s->ctx, s);
}

/* Sets up the callbacks that both kinds share; the caller then says where the rows are. */
DLRNI_INTERNAL dlrni_array_source *dlrni_array_source_new(dlrn_context *ctx, int64_t epochs,
                                                          dlrn_source *out) {
    dlrni_array_source *s = DLRNI_NEW_ZERO(ctx, dlrni_array_source, 1);
    if (!s) return NULL;
    s->ctx = ctx;
    s->epochs = epochs;
    out->read = dlrni_array_read;
    out->position = dlrni_array_position;
    out->seek = dlrni_array_seek;
    out->error = dlrni_array_error;
    /* set before anything can fail, so that dlrn_source_destroy cleans up */
    out->destroy = dlrni_array_destroy;
    out->user = s;
    return s;
}

DLRN_API dlrn_status dlrn_source_from_array(dlrn_context *ctx, const float *x, const float *y,
                                            int64_t rows, int64_t d_in, int64_t d_out,
                                            int64_t epochs, dlrn_source *out) {
    memset(out, 0, sizeof *out);
    DLRNI_REQUIRE(ctx, x && rows >= 0 && d_in > 0 && epochs >= 0,
                  "x is NULL or a size is negative");
    /* otherwise a forgotten y would train an autoencoder without a word */
    DLRNI_REQUIRE(ctx, y ? d_out > 0 : d_out == 0, "d_out is the width of y: 0 if y is NULL");
    dlrni_array_source *s = dlrni_array_source_new(ctx, epochs, out);
    /* the arrays are borrowed: they may be larger than memory could hold twice */
    if (!s) return DLRN_ERR_MEMORY;
    s->x = x;
    s->y = y;
    s->rows = out->rows = rows;
    s->d_in = out->d_in = d_in;
    s->d_out = out->d_out = d_out;
    return DLRN_OK;
}

/* A pipe comes once, and in order: it can be neither one of several files nor read in epochs, and
   standard input cannot be both x and y. */
DLRNI_INTERNAL dlrn_status dlrni_check_pipes(dlrn_context *ctx, const dlrn_source_desc *desc) {
    const int64_t n = desc->n_paths, all = n + desc->n_target_paths;
    int standard = 0;
    for (int64_t i = 0; i < all; i++) {
        const char *path = i < n ? desc->paths[i] : desc->target_paths[i - n];
        const char *what = dlrni_path_text(path);
        if (!dlrni_is_pipe(ctx, path)) continue;
        standard += !strcmp(path, "-");
        if ((i < n ? n : desc->n_target_paths) > 1)
            return dlrn_fail(ctx, DLRN_ERR_ARGUMENT,
                             "%s: expected a pipe alone, found it beside "
                             "other files",
                             what);
        if (desc->epochs != 1)
            return dlrn_fail(ctx, DLRN_ERR_ARGUMENT,
                             "%s: a pipe can be read once: expected 1 epoch, found %lld", what,
                             (long long)desc->epochs);
        if (standard > 1)
            return dlrn_fail(ctx, DLRN_ERR_ARGUMENT,
                             "%s: expected rows or their targets, found both", what);
    }
    return DLRN_OK;
}

/* Row i of x belongs to row i of y, so their numbers of rows must agree; their widths and files may
   differ. */
DLRNI_INTERNAL dlrn_status dlrni_open_files(dlrn_context *ctx, const dlrn_source_desc *desc,
                                            dlrni_array_source *s) {
    DLRNI_TRY(dlrni_check_pipes(ctx, desc));
    DLRNI_TRY(dlrni_series_open(ctx, desc, desc->paths, desc->n_paths, &s->files));
    if (desc->n_target_paths)
        DLRNI_TRY(
            dlrni_series_open(ctx, desc, desc->target_paths, desc->n_target_paths, &s->target));
    if (desc->n_target_paths && s->files.rows != s->target.rows)
        /* named by the target: x was opened first and is taken as right */
        return dlrn_fail(ctx, DLRN_ERR_SHAPE, "%s: expected %lld rows as in %s, found %lld",
                         dlrni_path_text(desc->target_paths[0]), (long long)s->files.rows,
                         dlrni_path_text(desc->paths[0]), (long long)s->target.rows);
    s->rows = s->files.rows;
    s->d_in = s->files.cols;
    s->d_out = s->target.cols;
    return DLRN_OK;
}

DLRN_API dlrn_status dlrn_source_open(dlrn_context *ctx, const dlrn_source_desc *desc,
                                      dlrn_source *out) {
    memset(out, 0, sizeof *out);
    DLRNI_REQUIRE(ctx, desc->paths && desc->n_paths > 0, "expected at least one path");
    DLRNI_REQUIRE(ctx, desc->target_paths ? desc->n_target_paths > 0 : !desc->n_target_paths,
                  "n_target_paths does not fit target_paths");
    DLRNI_REQUIRE(ctx, !desc->dtype || desc->dtype == DLRN_BF16, "dtype is 0 or DLRN_BF16");
    DLRNI_REQUIRE(ctx, desc->epochs >= 0, "epochs must not be negative");
    dlrni_array_source *s = dlrni_array_source_new(ctx, desc->epochs, out);
    if (!s) return DLRN_ERR_MEMORY;
    dlrn_status st = dlrni_open_files(ctx, desc, s);
    if (st == DLRN_OK) {
        /* known only now: the files say how wide their rows are */
        out->d_in = s->d_in;
        out->d_out = s->d_out;
        out->rows = s->rows;
        out->positions = s->files.positions;
    } else
        /* also closes the files that did open */
        dlrn_source_destroy(out);
    return st;
}

/* ---- The filter ----
   One NaN in a batch makes every weight NaN. Long runs would rather lose a row than stop. */

/* So many rows dropped without a good one between them are an error: the data is broken, and an
   endless source would keep the caller waiting forever. */
enum { DLRNI_MAX_SKIPPED = 1000000 };

typedef struct dlrni_finite_source {
    dlrn_context *ctx; /* for memory */
    dlrn_source inner; /* a copy of the struct; the object behind it is shared */
    int owns_inner;    /* 1: destroys it */
    int64_t dropped;   /* since the last row that was finite */
    int64_t *skipped;  /* the caller's counter, borrowed, or NULL */
} dlrni_finite_source;

/* Works on the bits of the numbers: one comparison covers NaN and infinity. */
DLRNI_INTERNAL int dlrni_all_finite(const float *x, int64_t n) {
    return dlrni_first_not_finite(x, n) == n;
}

/* Moves the rows of x [n][d] and y [n][d_out] whose numbers are all finite to the front; returns
   how many. d_out 0: no y. A row is dropped whole: x and y stay a pair. */
DLRNI_INTERNAL int64_t dlrni_keep_finite(int64_t n, int64_t d, int64_t d_out, float *x, float *y) {
    int64_t kept = 0;
    /* the usual case: nothing to move */
    if (dlrni_all_finite(x, n * d) && dlrni_all_finite(y, n * d_out)) return n;
    for (int64_t i = 0; i < n; i++) {
        const float *from = d_out ? y + i * d_out : NULL; /* y must be finite, too */
        if (!dlrni_all_finite(x + i * d, d) || !dlrni_all_finite(from, d_out)) continue;
        memmove(x + kept * d, x + i * d, (size_t)d * sizeof *x);
        if (from) memmove(y + kept * d_out, from, (size_t)d_out * sizeof *y);
        kept++;
    }
    return kept;
}

/* Reads on until at least one row is left: the caller would take 0 rows for an error. */
DLRNI_INTERNAL dlrn_status dlrni_finite_read(void *user, int64_t max_rows, float *x, float *y,
                                             int64_t *n) {
    dlrni_finite_source *s = (dlrni_finite_source *)user;
    dlrn_source *in = &s->inner;
    for (;;) {
        DLRNI_TRY(in->read(in->user, max_rows, x, y, n));
        if (*n <= 0 || *n > max_rows) return DLRN_OK; /* the caller refuses this */
        int64_t kept = dlrni_keep_finite(*n, in->d_in, in->d_out, x, y);
        s->dropped = kept ? 0 : s->dropped + *n;
        /* counts rows of good batches, too; `dropped` only those since the last good row */
        if (s->skipped) *s->skipped += *n - kept;
        *n = kept;
        if (kept) return DLRN_OK;
        if (s->dropped >= DLRNI_MAX_SKIPPED) return DLRN_ERR_VALUE;
    }
}

/* The inner position is enough: after a resume the same rows are dropped again. */
DLRNI_INTERNAL dlrn_status dlrni_finite_position(void *user, uint64_t *position) {
    dlrni_finite_source *s = (dlrni_finite_source *)user;
    return s->inner.position(s->inner.user, position);
}

/* Called only where the inner source can seek: dlrn_source_finite sets it. */
DLRNI_INTERNAL dlrn_status dlrni_finite_seek(void *user, uint64_t position) {
    dlrni_finite_source *s = (dlrni_finite_source *)user;
    return s->inner.seek(s->inner.user, position);
}

/* The filter's own error comes first: the inner source has none then. */
DLRNI_INTERNAL const char *dlrni_finite_error(void *user) {
    dlrni_finite_source *s = (dlrni_finite_source *)user;
    if (s->dropped >= DLRNI_MAX_SKIPPED)
        return "expected finite rows, found a million in a row that are not";
    return s->inner.error ? s->inner.error(s->inner.user) : NULL;
}

/* A borrowed inner source stays open: its owner may go on reading. */
DLRNI_INTERNAL void dlrni_finite_destroy(void *user) {
    dlrni_finite_source *s = (dlrni_finite_source *)user;
    if (s->owns_inner) dlrn_source_destroy(&s->inner);
    dlrn_free(s->ctx, s);
}

DLRN_API dlrn_status dlrn_source_finite(dlrn_context *ctx, const dlrn_source *source,
                                        dlrn_ownership ownership, int64_t *skipped,
                                        dlrn_source *out) {
    const dlrn_source inner = *source; /* out may be the same struct: it then stays on failure */
    if (out != source) memset(out, 0, sizeof *out);
    DLRNI_REQUIRE(ctx, inner.read && inner.d_in > 0, "the source has no read callback or no width");
    dlrni_finite_source *s = DLRNI_NEW_ZERO(ctx, dlrni_finite_source, 1);
    if (!s) return DLRN_ERR_MEMORY;
    memset(out, 0, sizeof *out);
    /* the fields of *out come last: with out == source they overwrite it */
    s->ctx = ctx;
    s->inner = inner;
    s->owns_inner = ownership == DLRN_OWNED;
    s->skipped = skipped;
    if (skipped) *skipped = 0; /* the caller need not */
    out->d_in = inner.d_in;
    out->d_out = inner.d_out;
    out->rows = inner.rows;
    out->read = dlrni_finite_read;
    /* without these the filter must not promise them either */
    if (inner.position) out->position = dlrni_finite_position;
    if (inner.seek) out->seek = dlrni_finite_seek;
    out->error = dlrni_finite_error;
    out->destroy = dlrni_finite_destroy;
    out->user = s;
    return DLRN_OK;
}

/* Reads up to `want` rows: DLRN_OK with 1 to `want` of them, DLRN_END, or an error with the text of
   the source. */
DLRNI_INTERNAL dlrn_status dlrni_source_read(dlrn_context *ctx, const dlrn_source *source,
                                             int64_t want, float *x, float *y, int64_t *n) {
    *n = 0;
    dlrn_status s = source->read(source->user, want, x, y, n);
    if (s == DLRN_END) return s;
    if (s != DLRN_OK)
        return dlrni_callback_error(ctx, s, "the source",
                                    source->error ? source->error(source->user) : NULL);
    if (*n > 0 && *n <= want) return DLRN_OK;
    /* more have overrun x; none without DLRN_END would be asked for forever */
    return dlrn_fail(ctx, DLRN_ERR_CALLBACK, "the source: expected 1 to %lld rows, found %lld",
                     (long long)want, (long long)*n);
}

DLRN_API void dlrn_source_destroy(dlrn_source *source) {
    if (!source) return;
    /* a source on the stack may have nothing to destroy */
    if (source->destroy) source->destroy(source->user);
    /* a second destroy does nothing */
    memset(source, 0, sizeof *source);
}

/* ------------------------------------------------------------------------------------------ */
// >>buffer
/* A shuffled store of rows, like ActivationBuffer of dictionary_learning: it is filled, drawn from
   at random, and refilled when it is half empty. Neighbouring rows of a source come from the same
   text, so that a batch of neighbours would be a biased sample.

   Rows lie in slots. Slots are allocated in segments as they are needed: growing moves nothing, and
   memory never exceeds dlrn_buffer_bytes. A ring lists all slots: from `head` on
   those of the unread rows, in their logical order, then the vacant ones. A draw swaps a random
   entry with the last unread one, which then counts as vacant: constant time per row. Without
   shuffling, rows leave at the head. The draw depends only on the logical order and the generator,
   never on slots: a resumed buffer has other slots and gives the same batches. */

/* Rows per copying task, and random entries that a draw prefetches together: enough to hide the
   latency of memory, few enough to balance the threads. */
enum { DLRNI_COPY_ROWS = 64 };

struct dlrn_buffer {
    dlrn_context *ctx;
    dlrn_buffer_config cfg; /* as given */
    dlrn_source source;
    int owns_source;   /* 1: the buffer destroys it                                   */
    int ended;         /* 1: the source has no more rows                              */
    int filling;       /* 1: a refill has begun and not ended: the source stopped     */
    int64_t d[2];      /* lengths of a row x, y; y 0: no target                       */
    int shift;         /* a segment is 1 << shift rows                                */
    int64_t segments;  /* allocated so far                                           */
    int64_t used;      /* slots in the ring: these have held a row                   */
    int64_t head;      /* entry of the first unread row; 0 with shuffling            */
    int64_t unread;    /* rows held and not given out yet                            */
    int64_t rows_read; /* rows taken from the source so far                         */
    /* A checkpoint that follows a failed read stores the position before it: a run that is resumed
       with a filter then loses only the bad rows, not all that came with them. */
    int goes_back;       /* 1: the last read failed, and began at refused_at            */
    uint64_t refused_at; /* position of the source                                      */
    int64_t refused;     /* its rows, which rows_read counts                            */
    /* Each segment holds its piece of the ring [n], x [n][d] and, with a target, y [n][d], of type
       cfg.store; n is 1 << shift, less in the last. */
    char **segment;
    float *out[2]; /* [batch_rows][d] the batch handed out: x, y                   */
    float *in[2];  /* [chunk][d] rows just read                                    */
    dlrn_rng rng;  /* saved in checkpoints, so that the draws continue        */
};

/* What a checkpoint keeps of a buffer: everything that decides which rows come next. */
typedef struct dlrni_buffer_state {
    void *rows_of[2]; /* x, y: unread rows in logical order, as stored; y NULL without a target;
                         owned */
    int64_t rows;     /* unread */
    dlrn_dtype store; /* must be the buffer's: rows are copied as bytes */
    dlrn_rng rng;
    uint64_t source_position;                /* of the next row; only with has_position           */
    int has_position, source_ended, filling; /* 0 or 1 */
    int64_t rows_read;                       /* so that errors name the right row  */
} dlrni_buffer_state;

DLRN_API dlrn_buffer_config dlrn_buffer_defaults(void) {
    /* the reference's: 30000 contexts of 128 tokens, read 512 contexts at a time */
    dlrn_buffer_config cfg = {30000 * 128, 512 * 128, 8192, DLRN_ON, DLRN_F32, 0};
    return cfg;
}

/* A batch must fit into the buffer, or it would never become complete. */
DLRNI_INTERNAL dlrn_status dlrni_check_buffer_config(dlrn_context *ctx,
                                                     const dlrn_buffer_config *cfg) {
    const int64_t counts[] = {cfg->capacity, cfg->read_rows, cfg->batch_rows};
    static const char *const names[] = {"capacity", "read_rows", "batch_rows"};
    for (int i = 0; i < 3; i++)
        if (counts[i] < 1)
            return dlrn_fail(ctx, DLRN_ERR_ARGUMENT,
                             "dlrn_buffer_config: %s: expected a number from 1, found %lld",
                             names[i], (long long)counts[i]);
    if (cfg->store != DLRN_F32 && cfg->store != DLRN_F16 && cfg->store != DLRN_BF16)
        return dlrn_fail(ctx, DLRN_ERR_ARGUMENT,
                         "dlrn_buffer_config: store: expected F32, F16 or BF16, found type %d",
                         (int)cfg->store);
    if (cfg->capacity >= cfg->batch_rows) return DLRN_OK;
    return dlrn_fail(ctx, DLRN_ERR_ARGUMENT,
                     "a buffer of %lld rows (capacity) cannot give batches of %lld (batch_rows)",
                     (long long)cfg->capacity, (long long)cfg->batch_rows);
}

/* Rows requested from the source at a time. */
DLRNI_INTERNAL int64_t dlrni_buffer_chunk(const dlrn_buffer_config *cfg) {
    return dlrni_min(cfg->read_rows, cfg->capacity);
}

/* Segments have at least 1024 rows, and otherwise between a 64th and a 32nd of the capacity: small
   enough to allocate on demand, large enough for huge pages. A power of two, so that a slot's
   segment is a shift. */
DLRNI_INTERNAL int dlrni_segment_shift(int64_t capacity) {
    int shift = 10;
    while (capacity >> shift >= 64) shift++;
    return shift;
}

/* Segments of a full buffer: the table of pointers is allocated once, at its final size. */
DLRNI_INTERNAL int64_t dlrni_segment_count(const dlrn_buffer_config *cfg) {
    return dlrni_ceil_div(cfg->capacity, (int64_t)1 << dlrni_segment_shift(cfg->capacity));
}

DLRN_API dlrn_status dlrn_buffer_bytes(dlrn_context *ctx, const dlrn_buffer_config *cfg,
                                       int64_t d_in, int64_t d_out, uint64_t *bytes) {
    /* an allocation takes this much more than its size */
    const int64_t block = DLRNI_BLOCK_MORE;
    int64_t row, stored, moving, total;
    DLRNI_TRY(dlrni_check_buffer_config(ctx, cfg));
    DLRNI_REQUIRE(ctx, d_in > 0 && d_out >= 0, "d_in must be positive, d_out not negative");
    int64_t segments = dlrni_segment_count(cfg);
    /* every sum and product is checked: the sizes are the caller's */
    int fits =
        dlrni_add(d_in, d_out, &row) && dlrni_mul(row, dlrni_dtype_size(cfg->store), &stored) &&
        dlrni_add(stored, (int64_t)sizeof(int64_t), &stored) &&
        dlrni_mul(stored, cfg->capacity, &stored) &&
        dlrni_add(dlrni_buffer_chunk(cfg), cfg->batch_rows, &moving) &&
        dlrni_mul(moving, row, &moving) && dlrni_mul(moving, (int64_t)sizeof(float), &moving) &&
        dlrni_add(stored, moving, &total) &&
        dlrni_add(total, segments * (block + (int64_t)sizeof(char *)), &total) &&
        dlrni_add(total, 6 * block + (int64_t)sizeof(dlrn_buffer), &total);
    /* the 6 blocks: the table of segments, four staging arrays, the struct */
    DLRNI_REQUIRE(ctx, fits, "the buffer's size overflows");
    *bytes = (uint64_t)total;
    return DLRN_OK;
}

DLRN_API void dlrn_buffer_destroy(dlrn_buffer *b) {
    if (!b) return;
    if (b->owns_source) dlrn_source_destroy(&b->source);
    for (int64_t i = 0; i < b->segments; i++) dlrn_free(b->ctx, b->segment[i]);
    dlrn_free(b->ctx, b->segment);
    /* out[1] and in[1] are NULL without a target */
    for (int i = 0; i < 2; i++) {
        dlrn_free(b->ctx, b->out[i]);
        dlrn_free(b->ctx, b->in[i]);
    }
    dlrn_free(b->ctx, b);
}

/* Everything but the rows: a run that stops early never pays for a full buffer. */
DLRNI_INTERNAL dlrn_status dlrni_buffer_alloc(dlrn_buffer *b) {
    const int64_t chunk = dlrni_buffer_chunk(&b->cfg);
    b->segment = DLRNI_NEW_ZERO(b->ctx, char *, dlrni_segment_count(&b->cfg));
    int whole = b->segment != NULL;
    for (int i = 0; i < 2 && b->d[i]; i++) {
        b->in[i] = DLRNI_NEW(b->ctx, float, chunk * b->d[i]);
        b->out[i] = DLRNI_NEW(b->ctx, float, b->cfg.batch_rows * b->d[i]);
        whole = whole && b->in[i] && b->out[i];
    }
    /* the caller destroys the buffer, and with it what was allocated */
    return whole ? DLRN_OK : DLRN_ERR_MEMORY;
}

DLRN_API dlrn_status dlrn_buffer_create(dlrn_context *ctx, const dlrn_buffer_config *cfg,
                                        const dlrn_source *source, dlrn_ownership ownership,
                                        dlrn_buffer **out) {
    uint64_t bytes;
    *out = NULL;
    DLRNI_TRY(dlrni_check_buffer_config(ctx, cfg));
    DLRNI_REQUIRE(ctx, source->read && source->d_in > 0 && source->d_out >= 0,
                  "the source has no read callback or no width");
    DLRNI_TRY(
        dlrn_buffer_bytes(ctx, cfg, source->d_in, source->d_out, &bytes)); /* no size overflows */
    dlrn_buffer *b = DLRNI_NEW_ZERO(ctx, dlrn_buffer, 1);
    if (!b) return DLRN_ERR_MEMORY;
    b->ctx = ctx;
    b->cfg = *cfg;
    b->source = *source;
    b->d[0] = source->d_in;
    b->d[1] = source->d_out;
    b->shift = dlrni_segment_shift(cfg->capacity); /* fixed: it decides where slots lie */
    b->rng.seed = cfg->seed;
    b->rng.stream = UINT64_MAX; /* apart from the streams that make weights */
    dlrn_status s = dlrni_buffer_alloc(b);
    /* not yet owned: this leaves the source open */
    if (s != DLRN_OK) {
        dlrn_buffer_destroy(b);
        return s;
    }
    /* only now: on failure the source stays the caller's */
    b->owns_source = ownership == DLRN_OWNED;
    *out = b;
    return DLRN_OK;
}

/* Floats from [n] to the stored type. Not a kernel: each row comes in once, and its source is
   slower than this. */
DLRNI_INTERNAL void dlrni_narrow_stored(dlrn_dtype type, const float *from, char *to, int64_t n) {
    if (type == DLRN_F32) {
        memcpy(to, from, (size_t)n * sizeof *from);
        return;
    }
    for (int64_t i = 0; i < n; i++) {
        uint16_t h = type == DLRN_F16 ? dlrni_f32_to_f16(from[i]) : dlrni_f32_to_bf16(from[i]);
        memcpy(to + 2 * i, &h, sizeof h);
    }
}

/* The way back is a kernel: every batch goes through it, and it must keep up with memory. */
DLRNI_INTERNAL void dlrni_widen_stored(const dlrn_context *ctx, dlrn_dtype type, const char *from,
                                       float *to, int64_t n) {
    if (type == DLRN_F32)
        memcpy(to, from, (size_t)n * sizeof *to);
    else
        ctx->k->widen(type, from, to, n);
}

/* Bytes of a stored row x (which 0) or y (1); without a target y has none. */
DLRNI_INTERNAL int64_t dlrni_row_bytes(const dlrn_buffer *b, int which) {
    return b->d[which] * dlrni_dtype_size(b->cfg.store);
}

/* The last segment is cut off at the capacity, so that memory is what was announced. */
DLRNI_INTERNAL int64_t dlrni_segment_rows(const dlrn_buffer *b, int64_t segment) {
    return dlrni_min((int64_t)1 << b->shift, b->cfg.capacity - (segment << b->shift));
}

/* Entry `at` of the ring. Its pieces lie at the heads of the segments, so that it grows with
   them. */
DLRNI_INTERNAL int64_t *dlrni_slot_entry(const dlrn_buffer *b, int64_t at) {
    int64_t *entries = (int64_t *)(void *)b->segment[at >> b->shift];
    return entries + (at & (((int64_t)1 << b->shift) - 1));
}

/* Ring entry i, counted from the head: the slot of unread row i, or, after the unread ones, a
   vacant slot. */
DLRNI_INTERNAL int64_t *dlrni_buffer_slot(const dlrn_buffer *b, int64_t i) {
    int64_t at = b->head + i;
    /* with head 0 the ring may still grow at its end, so it must not wrap */
    return dlrni_slot_entry(b, b->head && at >= b->used ? at - b->used : at);
}

/* Where the row x (which 0) or y (1) of a slot is stored. A segment holds its piece of the ring,
   then all x, then all y: a batch without targets never touches y. */
DLRNI_INTERNAL char *dlrni_stored_row(const dlrn_buffer *b, int64_t slot, int which) {
    int64_t segment = slot >> b->shift, n = dlrni_segment_rows(b, segment);
    int64_t at = slot - (segment << b->shift);
    char *x = b->segment[segment] + n * (int64_t)sizeof(int64_t);
    return which ? x + n * dlrni_row_bytes(b, 0) + at * dlrni_row_bytes(b, 1)
                 : x + at * dlrni_row_bytes(b, 0);
}

/* Allocates segments until there is room for `rows` rows. On failure those that were made stay: the
   next call adds only the rest. */
DLRNI_INTERNAL dlrn_status dlrni_buffer_reserve(dlrn_buffer *b, int64_t rows) {
    int64_t row = dlrni_row_bytes(b, 0) + dlrni_row_bytes(b, 1) + (int64_t)sizeof(int64_t);
    for (; b->segments << b->shift < rows; b->segments++) {
        /* no overflow: dlrn_buffer_create has summed all segments */
        int64_t bytes = row * dlrni_segment_rows(b, b->segments);
        char *segment = DLRNI_NEW(b->ctx, char, bytes);
        if (!segment) return DLRN_ERR_MEMORY;
        dlrni_huge_pages(segment, bytes); /* random rows miss the TLB otherwise */
        b->segment[b->segments] = segment;
    }
    return DLRN_OK;
}

/* A copy of rows out of the buffer: row i is row index[i] of the logical order, or row first + i *
   step. */
typedef struct dlrni_rows_job {
    const dlrn_buffer *b;
    const int64_t *index; /* [rows] or NULL                            */
    int64_t first, step, rows;
    float *out[2]; /* x, y [rows][d], widened; y NULL: not wanted      */
} dlrni_rows_job;

/* Where row i of the job is stored. Without a target, y is x. */
DLRNI_INTERNAL const char *dlrni_job_row(const dlrni_rows_job *j, int64_t i, int which) {
    int64_t at = j->index ? j->index[i] : j->first + i * j->step;
    return dlrni_stored_row(j->b, *dlrni_buffer_slot(j->b, at), which && j->b->d[1]);
}

/* Widens one row x or y, and prefetches as much of the row at `next` (or NULL) as it copies: the
   two streams of memory run side by side. */
DLRNI_INTERNAL void dlrni_copy_stored(const dlrn_buffer *b, int which, const char *row,
                                      const char *next, float *out) {
    const dlrn_dtype store = b->cfg.store;
    const int64_t size = dlrni_dtype_size(store), d = b->d[which && b->d[1]];
    DICTLEARN_ASSERT(size > 0); /* for static analysers: the division is safe */
    /* 4 cache lines: the copy hides the prefetch, and the prefetch does not get ahead of it */
    const int64_t piece = 256 / size;
    for (int64_t at = 0; at < d; at += piece) {
        const int64_t n = dlrni_min(piece, d - at);
        for (int64_t k = 0; next && k < n * size; k += DLRNI_ALIGN)
            DLRNI_PREFETCH_FAR(next + at * size + k);
        dlrni_widen_stored(b->ctx, store, row + at * size, out + at, n);
    }
}

/* Task: some rows. The next 16 KB are always prefetched: rows lie anywhere, and the processor
   cannot predict where. Measured on Zen 4, batches of 8192 rows of 2 KB out of 1 GB: 2.1 times as
   fast. On another machine, vary the 16384. */
DLRNI_INTERNAL void dlrni_rows_task(void *arg, int64_t task, int worker) {
    const dlrni_rows_job *j = (const dlrni_rows_job *)arg;
    const int64_t from = task * DLRNI_COPY_ROWS, to = dlrni_min(from + DLRNI_COPY_ROWS, j->rows);
    const int64_t bytes = dlrni_row_bytes(j->b, 0);
    DICTLEARN_ASSERT(bytes > 0);
    const int64_t ahead = dlrni_max(dlrni_min(16384 / bytes, 16), 1);
    (void)worker;
    /* the first rows of the task: no row before them has prefetched them */
    for (int64_t i = from; i < dlrni_min(from + ahead, to); i++)
        for (int k = 0; k < 2 && j->out[k]; k++) {
            const char *row = dlrni_job_row(j, i, k);
            const int64_t size = dlrni_row_bytes(j->b, k && j->b->d[1]);
            for (int64_t at = 0; at < size; at += DLRNI_ALIGN) DLRNI_PREFETCH_FAR(row + at);
        }
    for (int64_t i = from; i < to; i++)
        for (int k = 0; k < 2 && j->out[k]; k++) {
            const char *next = i + ahead < to ? dlrni_job_row(j, i + ahead, k) : NULL;
            int64_t d = j->b->d[k && j->b->d[1]];
            dlrni_copy_stored(j->b, k, dlrni_job_row(j, i, k), next, j->out[k] + i * d);
        }
}

/* The cast removes const: the body of a parallel loop takes void *. */
DLRNI_INTERNAL void dlrni_copy_out(const dlrni_rows_job *job) {
    dlrn_parallel_for(job->b->ctx, dlrni_ceil_div(job->rows, DLRNI_COPY_ROWS), dlrni_rows_task,
                      (void *)(uintptr_t)job);
}

/* Copies the unread rows index [rows] to x [rows][d_in], y [rows][d_out] (without a target y is x)
   and leaves them unread: a resampling only looks at them. */
DLRNI_INTERNAL void dlrni_buffer_copy(const dlrn_buffer *b, const int64_t *index, int64_t rows,
                                      float *x, float *y) {
    dlrni_rows_job job = {b, index, 0, 0, rows, {x, y}};
    dlrni_copy_out(&job);
}

/* A row that is not finite would poison every weight. The error names its place in the stream, so
   that the caller can find it. x [rows][d]; `first`: rows before these. */
DLRNI_INTERNAL dlrn_status dlrni_check_finite(dlrn_context *ctx, const float *x, int64_t rows,
                                              int64_t d, int64_t first, const char *what) {
    int64_t i = dlrni_first_not_finite(x, rows * d);
    if (i == rows * d) return DLRN_OK;
    return dlrn_fail(ctx, DLRN_ERR_VALUE,
                     "%s row %lld, column %lld: expected a finite number, found %g", what,
                     (long long)(first + i / d), (long long)(i % d), (double)x[i]);
}

/* Refuses rows that have come in if they are not finite, or would not be once they are stored. In
   f16 65519 still rounds down; 65520, half a step above the largest number, rounds to infinity.
   bf16 has the same rule. */
DLRNI_INTERNAL dlrn_status dlrni_check_storable(const dlrn_buffer *b, int which, int64_t rows) {
    static const uint32_t max[] = {0x7f7fffffu, 0x477fefffu, 0x7f7f7fffu}; /* f32, f16, bf16 */
    static const char *const names[] = {"source: x,", "source: y,"};
    const float *x = b->in[which];
    int64_t d = b->d[which], n = rows * d, i = dlrni_first_beyond(x, n, max[b->cfg.store]);
    if (i == n) return DLRN_OK;
    DLRNI_TRY(dlrni_check_finite(b->ctx, x, rows, d, b->rows_read, names[which]));
    return dlrn_fail(b->ctx, DLRN_ERR_VALUE,
                     "%s row %lld, column %lld: %g is too large to be stored as %s", names[which],
                     (long long)(b->rows_read + i / d), (long long)(i % d), (double)x[i],
                     dlrni_type_name(b->cfg.store));
}

/* Reads up to `want` rows from the source into b->in; at its end, sets b->ended and *n = 0. A
   source may return fewer rows than requested. */
DLRNI_INTERNAL dlrn_status dlrni_buffer_receive(dlrn_buffer *b, int64_t want, int64_t *n) {
    dlrn_source *src = &b->source;
    b->refused = 0;
    b->goes_back =
        src->position && src->seek && src->position(src->user, &b->refused_at) == DLRN_OK;
    dlrn_status s = dlrni_source_read(b->ctx, src, want, b->in[0], b->in[1], n);
    /* after a stop the source still has its rows: there is nothing to repeat */
    if (s == DLRN_END || s == DLRN_STOPPED) b->goes_back = 0;
    if (s == DLRN_END) {
        b->ended = 1;
        *n = 0;
        return DLRN_OK;
    }
    if (s != DLRN_OK) return s;
    for (int i = 0; s == DLRN_OK && i < 2 && b->d[i]; i++) s = dlrni_check_storable(b, i, *n);
    /* refused rows count: the next error still names the right row */
    b->rows_read += *n;
    if (s == DLRN_OK)
        b->goes_back = 0;
    else
        b->refused = *n;
    return s;
}

/* Reverses ring entries from .. to: three of these rotate the ring without memory. */
DLRNI_INTERNAL void dlrni_reverse_entries(dlrn_buffer *b, int64_t from, int64_t to) {
    for (to--; from < to; from++, to--) {
        /* the pieces of the ring are not contiguous, so that each entry is looked up */
        int64_t *first = dlrni_slot_entry(b, from), *last = dlrni_slot_entry(b, to), keep = *first;
        *first = *last;
        *last = keep;
    }
}

/* Rotates the ring so that the head is entry 0: it can grow only at its end. */
DLRNI_INTERNAL void dlrni_rotate_ring(dlrn_buffer *b) {
    dlrni_reverse_entries(b, 0, b->head);
    dlrni_reverse_entries(b, b->head, b->used);
    dlrni_reverse_entries(b, 0, b->used);
    b->head = 0;
}

/* Puts n received rows into vacant slots, at the end of the logical order. */
DLRNI_INTERNAL void dlrni_buffer_store(dlrn_buffer *b, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        if (b->unread == b->used && b->head) dlrni_rotate_ring(b);
        int64_t *slot = dlrni_buffer_slot(b, b->unread);
        /* no vacant slot: a new one, which follows the last */
        if (b->unread++ == b->used) *slot = b->used++;
        for (int k = 0; k < 2 && b->d[k]; k++)
            dlrni_narrow_stored(b->cfg.store, b->in[k] + i * b->d[k], dlrni_stored_row(b, *slot, k),
                                b->d[k]);
    }
}

/* Reads rows until `goal` are unread or the source ends. After an error the next call continues
   from there: a source that fails once changes no batch. */
DLRNI_INTERNAL dlrn_status dlrni_buffer_read(dlrn_buffer *b, int64_t goal) {
    while (!b->ended && b->unread < goal) {
        int64_t n, want = dlrni_min(dlrni_buffer_chunk(&b->cfg), goal - b->unread);
        /* memory first: rows that have come must not be lost */
        DLRNI_TRY(dlrni_buffer_reserve(b, b->unread + want));
        DLRNI_TRY(dlrni_buffer_receive(b, want, &n));
        dlrni_buffer_store(b, n);
    }
    return DLRN_OK;
}

/* Refills when fewer than half of the rows (or than a batch) are unread, as the reference does:
   below that, a batch is no longer well mixed. In the source's order nothing is mixed, so only a
   batch is read. */
DLRNI_INTERNAL dlrn_status dlrni_buffer_refill(dlrn_buffer *b) {
    const dlrn_buffer_config *cfg = &b->cfg;
    int64_t low = cfg->shuffle ? dlrni_max(cfg->capacity / 2, cfg->batch_rows) : cfg->batch_rows;
    if (b->unread >= low && !b->filling) return DLRN_OK;
    /* an interrupted refill must end at the same row, or the draws would differ */
    b->filling = 1;
    DLRNI_TRY(dlrni_buffer_read(b, cfg->shuffle ? cfg->capacity : cfg->batch_rows));
    b->filling = 0;
    return DLRN_OK;
}

/* Makes rows available for a resampling. In the source's order only a batch is held, so this reads
   ahead; the order of the batches does not change. */
DLRNI_INTERNAL dlrn_status dlrni_buffer_read_ahead(dlrn_buffer *b, int64_t rows) {
    DLRNI_TRY(dlrni_buffer_refill(b));
    return b->cfg.shuffle ? DLRN_OK : dlrni_buffer_read(b, dlrni_min(rows, b->cfg.capacity));
}

/* Draws `rows` rows without replacement. Each is swapped with the last unread entry and so
   becomes vacant: the drawn ones follow the unread ones, the last drawn first. A block of random
   entries is found and prefetched before any is used. */
DLRNI_INTERNAL void dlrni_buffer_draw(dlrn_buffer *b, int64_t rows) {
    int64_t *at[DLRNI_COPY_ROWS];
    while (rows) {
        int64_t n = dlrni_min(rows, DLRNI_COPY_ROWS);
        for (int64_t i = 0; i < n; i++) {
            at[i] =
                dlrni_buffer_slot(b, (int64_t)dlrn_rng_below(&b->rng, (uint64_t)(b->unread - i)));
            DLRNI_PREFETCH(at[i]);
        }
        for (int64_t i = 0; i < n; i++) {
            /* an entry drawn twice in a block still works: its slot has been swapped by then */
            int64_t *last = dlrni_buffer_slot(b, --b->unread), slot = *at[i];
            *at[i] = *last;
            *last = slot;
        }
        rows -= n;
    }
}

DLRN_API dlrn_status dlrn_buffer_next(dlrn_buffer *b, const float **x, const float **y,
                                      int64_t *n) {
    *x = *y = NULL;
    *n = 0;
    DLRNI_TRY(dlrni_buffer_refill(b));
    if (!b->unread) return DLRN_END;
    int64_t rows = dlrni_min(b->cfg.batch_rows, b->unread);
    dlrni_rows_job job = {b, NULL, 0, 1, rows, {b->out[0], b->out[1]}};
    if (b->cfg.shuffle) {
        dlrni_buffer_draw(b, rows);
        /* in the order of drawing, which is backwards here */
        job.first = b->unread + rows - 1;
        job.step = -1;
    }
    dlrni_copy_out(&job);
    /* only after the copy: the rows were found by the old head */
    if (!b->cfg.shuffle) {
        b->unread -= rows;
        b->head = b->head + rows < b->used ? b->head + rows : b->head + rows - b->used;
    }
    *x = b->out[0];
    /* an autoencoder predicts its input */
    *y = b->out[1] ? b->out[1] : b->out[0];
    *n = rows;
    return DLRN_OK;
}

DLRN_API void dlrn_buffer_clear(dlrn_buffer *b) {
    b->unread = 0; /* as if they had been handed out */
}

DLRN_API dlrn_buffer_info dlrn_buffer_describe(const dlrn_buffer *b) {
    dlrn_buffer_info info;
    info.d_in = b->d[0];
    info.d_out = b->d[1];
    info.capacity = b->cfg.capacity;
    info.unread = b->unread;
    info.rows_read = b->rows_read;
    if (dlrn_buffer_bytes(b->ctx, &b->cfg, b->d[0], b->d[1], &info.max_bytes) != DLRN_OK)
        info.max_bytes = 0; /* cannot happen: dlrn_buffer_create has computed it */
    return info;
}

/* ---- For checkpoints ---- */

/* May be called on a state that is only partly filled. */
DLRNI_INTERNAL void dlrni_buffer_state_free(dlrn_context *ctx, dlrni_buffer_state *state) {
    for (int k = 0; k < 2; k++) {
        dlrn_free(ctx, state->rows_of[k]);
        state->rows_of[k] = NULL;
    }
}

/* The unread rows x (0) or y (1) in their logical order, in the stored type; NULL: no memory. Slots
   are not kept, so that a resumed buffer may be laid out anew. */
DLRNI_INTERNAL char *dlrni_buffer_gather(const dlrn_buffer *b, int which) {
    int64_t bytes = dlrni_row_bytes(b, which);
    char *rows = DLRNI_NEW(b->ctx, char, b->unread *bytes);
    for (int64_t i = 0; rows && i < b->unread; i++)
        memcpy(rows + i * bytes, dlrni_stored_row(b, *dlrni_buffer_slot(b, i), which),
               (size_t)bytes);
    return rows;
}

/* Copies what a checkpoint keeps. The caller frees the state, on failure too. */
DLRNI_INTERNAL dlrn_status dlrni_buffer_export(const dlrn_buffer *b, dlrni_buffer_state *state) {
    memset(state, 0, sizeof *state);
    for (int k = 0; k < 2 && b->d[k]; k++)
        if (!(state->rows_of[k] = dlrni_buffer_gather(b, k))) return DLRN_ERR_MEMORY;
    state->rows = b->unread;
    state->store = b->cfg.store;
    state->rng = b->rng;
    state->source_ended = b->ended;
    state->filling = b->filling;
    state->rows_read = b->rows_read - (b->goes_back ? b->refused : 0);
    /* a position is of use only if the source can also return to it */
    state->has_position = b->source.position != NULL && b->source.seek != NULL;
    if (!state->has_position) return DLRN_OK;
    state->source_position = b->refused_at;
    if (b->goes_back) return DLRN_OK;
    dlrn_status s = b->source.position(b->source.user, &state->source_position);
    if (s == DLRN_OK) return s;
    return dlrni_callback_error(b->ctx, s, "the source, asked for its position,",
                                b->source.error ? b->source.error(b->source.user) : NULL);
}

/* Whether a saved state fits this buffer: stored type, target, number of rows. Otherwise training
   would silently continue on other rows. */
DLRNI_INTERNAL dlrn_status dlrni_check_buffer_state(const dlrn_buffer *b,
                                                    const dlrni_buffer_state *state) {
    int targets = state->rows_of[1] != NULL;
    if (state->store != b->cfg.store || (state->rows && targets != (b->d[1] > 0)))
        return dlrn_fail(b->ctx, DLRN_ERR_ARGUMENT, "expected rows of %s%s, found %s%s",
                         dlrni_type_name(b->cfg.store), b->d[1] ? " with a target" : "",
                         dlrni_type_name(state->store), targets ? " with a target" : "");
    if (state->rows <= b->cfg.capacity) return DLRN_OK;
    return dlrn_fail(b->ctx, DLRN_ERR_SHAPE, "expected at most the buffer's %lld rows, found %lld",
                     (long long)b->cfg.capacity, (long long)state->rows);
}

/* Moves the source to its saved position: the rows after it have not been read. */
DLRNI_INTERNAL dlrn_status dlrni_buffer_seek(dlrn_buffer *b, uint64_t position) {
    const dlrn_source *from = &b->source;
    /* the error states the position */
    char who[64];
    if (!from->seek)
        return dlrn_fail(b->ctx, DLRN_ERR_ARGUMENT,
                         "expected a source that can go to position %llu, found one without seek",
                         (unsigned long long)position);
    dlrni_print(who, sizeof who, "the source, on its way to %llu,", (unsigned long long)position);
    dlrn_status s = from->seek(from->user, position);
    if (s == DLRN_OK) return s;
    return dlrni_callback_error(b->ctx, s, who, from->error ? from->error(from->user) : NULL);
}

/* Restores a saved state; rows are copied. All checks come first, so a refused state changes
   nothing. */
DLRNI_INTERNAL dlrn_status dlrni_buffer_import(dlrn_buffer *b, const dlrni_buffer_state *state) {
    DLRNI_TRY(dlrni_check_buffer_state(b, state));
    if (state->has_position) DLRNI_TRY(dlrni_buffer_seek(b, state->source_position));
    b->unread = b->used = b->head = 0; /* its present rows are dropped */
    b->goes_back = 0;
    DLRNI_TRY(dlrni_buffer_reserve(b, state->rows));
    for (int64_t i = 0; i < state->rows; i++) {
        *dlrni_slot_entry(b, i) = i; /* slots in logical order */
        for (int k = 0; k < 2 && b->d[k]; k++) {
            int64_t bytes = dlrni_row_bytes(b, k);
            memcpy(dlrni_stored_row(b, i, k), (const char *)state->rows_of[k] + i * bytes,
                   (size_t)bytes);
        }
    }
    b->unread = b->used = state->rows;
    b->rng = state->rng;
    /* the source may have more rows now, such as another epoch; otherwise it ends again */
    b->ended = state->source_ended && !state->has_position;
    b->filling = state->filling;
    b->rows_read = state->rows_read;
    return DLRN_OK;
}

/* ------------------------------------------------------------------------------------------ */
// >>training
/* What the rooms of training share: the states of a trainer, its work space, and what a recipe is.

   A step, without a matrix [n][F] of features:
     1. loss: the rows are encoded into lists (room candidates), wave after wave; usually one wave
        holds all groups. Each block of rows collects its entries from the lists and adds up their
        atoms to x_hat. The derivative of the loss with respect to x_hat_i is c_i e_i, with
        e = x_hat - y: one factor per row.
     2. backward: each wave again (encoded again if there are several). A task sorts the lists of
        some groups by feature, sums the gradients of its features and updates them with Adam, all
        in one visit.
     3. counters, resampling, the reference's log.
   Sums run over ascending rows or features, for any number of waves and threads.

   The states of a trainer:

              batch taken       weights being written      written
       READY ------------> TAKEN ------------> UPDATING ------------+
         ^                 | ^ |                   |                |
         |   another error | | | no memory, rows   | any error      v
         +-----------------+ +-+ of the buffer     v           RESAMPLING --+ no memory,
         |                                      BROKEN          |   |   ^---+ stopped
         |                another error         (final)         |   v
         +------------------------------------------------------+ LOGGING --+ no memory
         |                                                          |   ^---+
         +----------------------------------------------------------+
              done, or another error
   RESAMPLING and LOGGING are passed through at once where neither is due. In TAKEN, RESAMPLING and
   LOGGING the next call finishes the step; other rows are refused. */

typedef enum dlrni_stage {
    DLRNI_READY,
    DLRNI_TAKEN,
    DLRNI_UPDATING,
    DLRNI_RESAMPLING,
    DLRNI_LOGGING,
    DLRNI_BROKEN
} dlrni_stage;

/* A run: that many stretches are summed in f32, and the runs are then added in order. One running
   sum over 65,536 similar rows is off by 3e-4, sums of 8192 rows by a tenth of that. Batches of up
   to 8192 rows, the default, are one run. */
enum { DLRNI_RUN = 4 };

/* Entries per wave, of 8 bytes each: 128 MB. They hold the lists of a default batch (8192 rows) in
   one wave while at most 2048 features per row are active; training soon has fewer. */
#define DLRNI_LIST_BUDGET ((int64_t)16 << 20)

/* Above this share of active features, several groups or blocks go through the rows together. It
   chooses between two ways to the same bits; to tune it, time steps at shares around it. */
#define DLRNI_DENSE 0.1

/* All arrays with one entry per row of the batch, in one block of memory. */
typedef struct dlrni_batch {
    int64_t n, cap;     /* rows; capacity in rows                                    */
    const float *y;     /* [n][d_out] borrowed                                       */
    float *xc;          /* [n][d_in] input of the encoder; the block's first array   */
    float *e;           /* [n][d_out] x_hat, then x_hat - y                          */
    double *error;      /* [n] a row's share of the reconstruction loss              */
    double *total;      /* [n] sum of the row's features                             */
    double *sparse;     /* [n] a row's share of the sparsity loss                    */
    double *mean_slope; /* [n] entropy: the mean of its slope h_j under q_j      */
    float *c;           /* [n] the derivative with respect to x_hat_i is c_i e_i */
    int32_t *number;    /* [n] 0, 1, 2, ...                                      */
} dlrni_batch;

/* What the auxiliary pass (room auxiliary) keeps per row. */
typedef struct dlrni_aux_row {
    float level;     /* ghosts: shift of the exponent; AuxK: value of the last feature kept   */
    int32_t feature; /* AuxK: the last feature kept among equal values                        */
    float factor;    /* the derivative with respect to the row's output is factor * aux.e     */
    double error;    /* the row's share of the auxiliary loss                                 */
} dlrni_aux_row;

/* The dead features of a batch: an auxiliary loss lets them predict what the others left over. */
typedef struct dlrni_aux {
    int64_t count;       /* number of dead features that have an auxiliary loss           */
    int32_t *dead;       /* [F] these features, ascending                                 */
    float *e;            /* [n][d_out] their output, then its distance from the residual  */
    dlrni_aux_row *row;  /* [n]                                                        */
    int64_t first, sums; /* dead [first .. first + sums) have their sums in memory         */
    float *grad;         /* by groups of 48: atoms' [..][d_out], encoder rows' [..][d_in] */
    double *bias_grad;   /* [DLRNI_AUX_SUMS]                                           */
    int64_t e_cap, row_cap;
} dlrni_aux;

/* What a step needs besides weights and moments; kept from one step to the next. */
typedef struct dlrni_work {
    dlrni_batch batch;
    dlrni_aux aux;
    dlrn_dictionary view; /* the trainer's, as the lists see it (with lowered thresholds)  */
    dlrni_encoding codes; /* the features of the batch                                    */
    int64_t *silent;      /* [F] since_fired, this batch counted                          */
    int64_t wave;         /* groups per wave                                              */
    int64_t budget;       /* most entries per wave                                        */
    int64_t nnz;          /* active features of the last batch; -1: not known             */
    int64_t candidates;   /* of the last batch                                            */
    int64_t slab;         /* blocks of rows per task                                      */
    int64_t slab_max;     /* most entries per slab                                        */
    float *center_part;   /* [groups][d_in] a group's part of the gradient of the bias
                             that is subtracted                                           */
    float *center_grad;   /* [d_in]                                                       */
    float *output_grad;   /* [d_out] gradient of the output bias; [d_out] of one run      */
    double penalty_slope; /* a penalty on the whole batch: its derivative by L0           */
    float *lowered;       /* [F] thresholds less half a bandwidth, or NULL                */
    float *gradient[DLRN_ROLE_COUNT]; /* shaped like the parameters; only for recipes that clip */
} dlrni_work;

typedef struct dlrni_recipe dlrni_recipe;

struct dlrn_trainer {
    dlrn_context *ctx;
    dlrn_train_config cfg;
    const dlrni_recipe *recipe;
    dlrn_dictionary *dict; /* owned                                                       */
    dlrn_buffer *buffer;   /* borrowed, or NULL                                           */
    float *m[DLRN_ROLE_COUNT], *v[DLRN_ROLE_COUNT];
    int64_t *since_fired;
    int64_t step; /* steps done                                                           */
    dlrni_work w;
    dlrni_stage stage;
    const float *x, *y;    /* rows of the unfinished step, borrowed from the buffer or    */
    int64_t n;             /* from the caller of step_on; 0: there are none               */
    int from_buffer;       /* 1: they are the buffer's                                    */
    dlrn_train_stats last; /* figures of the last step whose update is done               */
    struct {
        double factor; /* of cfg.sparsity_penalty; 1 without a target for L0          */
        double off;    /* log of L0 over its target, at the last step                 */
    } steering;
};

/* The features of a few groups during a visit: their sums so far, and their entries on the present
   stretch, sorted by feature. */
typedef struct dlrni_visit {
    int64_t group, groups, f0, width; /* groups, and their features f0 .. f0 + width           */
    float *sum[DLRN_ROLE_COUNT];      /* [width][d] gradients of atoms and of encoder rows     */
    float *run[DLRN_ROLE_COUNT];      /* the same over one run of rows                         */
    double *scalar[DLRN_ROLE_COUNT];  /* [width] gradients of roles with one number a feature  */
    int64_t *at;                      /* [width + 1] where each feature's entries start        */
    int32_t *row;                     /* rows of the batch, ascending within a feature         */
    float *val, *coef, *slope; /* pre-activation; derivative by the atom is coef g; derivative
                                  by the pre-activation, before that the product <e, atom>     */
    int64_t rows;              /* of the present stretch                                       */
} dlrni_visit;

/* An auxiliary loss: the dead features predict what the others left over. The pass is the same for
   all (room auxiliary); these five functions say how they differ. */
typedef struct dlrni_auxiliary {
    int (*is_dead)(const dlrn_trainer *t, int64_t feature);
    /* pre [count]: the pre-activations of all dead features on one row. Keeps what `activate`
       needs, and turns them into values. */
    void (*begin_row)(dlrn_trainer *t, int64_t row, float *pre);
    /* f [n]: pre-activations of some dead features on a row; becomes their values, and df [n] their
       derivatives. */
    void (*activate)(const dlrn_trainer *t, int64_t row, const int32_t *feature, int64_t n,
                     float *f, float *df);
    void (*end_row)(dlrn_trainer *t, int64_t row); /* aux.e: output -> distance; the row's error */
    void (*finish)(dlrn_trainer *t, dlrn_train_stats *stats); /* the loss; every row's factor   */
} dlrni_auxiliary;

/* A recipe: how a family is trained. One block (room recipes) and one row of the table. In
   brackets: what a NULL hook means. */
struct dlrni_recipe {
    dlrn_recipe_info info;
    void (*defaults)(dlrn_train_config *cfg); /* [the reference's]                             */
    int counts_rows;                          /* since_fired counts rows, not steps            */
    /* Before the loss of step 0; may set the output bias, and nothing else. [nothing] */
    dlrn_status (*first_batch)(dlrn_trainer *t, const float *x, const float *y, int64_t n);
    /* The value of a feature whose pre-activation is in a list. [the pre-activation] */
    float (*value)(const dlrn_trainer *t, int64_t feature, float pre);
    /* Sets stats->sparsity_loss and adds it, with its weight, to stats->loss. [no penalty] */
    dlrn_status (*penalty)(dlrn_trainer *t, dlrn_train_stats *stats);
    /* For the entries of feature j of a visit: reads val and slope = <e, atom>; sets coef and
       slope, and adds to the sums of the roles with one number a feature; the penalty included.
       [dlrni_visit_slopes] */
    void (*slopes)(const dlrn_trainer *t, dlrni_visit *v, int64_t j);
    const dlrni_auxiliary *auxiliary; /* [none] */
    void (*after_step)(
        dlrn_trainer *t); /* weights are new, lists are those of the step [nothing] */
};

/* BROKEN is final: some weights have moved, others have not, and nothing records which. */
DLRNI_INTERNAL dlrn_status dlrni_check_broken(const dlrn_trainer *t) {
    if (t->stage != DLRNI_BROKEN) return DLRN_OK;
    return dlrn_fail(t->ctx, DLRN_ERR_ARGUMENT,
                     "step %lld failed while it was writing the weights: this trainer cannot go "
                     "on; resume from a checkpoint",
                     (long long)t->step);
}

/* The number of the unfinished step. Once updated, it is already counted. */
DLRNI_INTERNAL int64_t dlrni_unfinished_step(const dlrn_trainer *t) {
    return t->step - (t->stage != DLRNI_TAKEN);
}

/* The call that finishes the unfinished step, for error texts. */
DLRNI_INTERNAL const char *dlrni_finishing_call(const dlrn_trainer *t) {
    return t->from_buffer ? "a call of dlrn_trainer_step"
                          : "a call of dlrn_trainer_step_on with the same rows";
}

/* ------------------------------------------------------------------------------------------ */
// >>optimiser
/* Adam (Kingma and Ba, 2015) with atoms of unit norm, like ConstrainedAdam of dictionary_learning.
   With longer atoms the features, and so the L1 penalty, could shrink without any change of the
   output. So the part of an atom's gradient along the atom is removed, Adam moves the atom, and the
   atom is scaled back to length 1. A zero atom has no direction: it is neither projected nor
   divided. */

/* The numbers that are the same for every weight of one update, rounded to f32 once, as
   torch.optim.Adam does. `updates` counts from 1. */
DLRNI_INTERNAL dlrni_adam dlrni_adam_at(const dlrn_train_config *cfg, double lr, int64_t updates) {
    dlrni_adam a;
    a.one_minus_beta1 = (float)(1.0 - cfg->beta1);
    a.beta2 = (float)cfg->beta2;
    a.one_minus_beta2 = (float)(1.0 - cfg->beta2);
    a.step_size = (float)(lr / (1.0 - pow(cfg->beta1, (double)updates)));
    a.root_bias_correction = (float)sqrt(1.0 - pow(cfg->beta2, (double)updates));
    a.eps = (float)cfg->eps;
    return a;
}

/* The learning rate at step n. Warm-up: a linear ramp from 0, at the start and again at each
   multiple of resample_steps. The step that ends with the resampling therefore has rate 0, as in
   the reference, and the ramp then helps revived features, whose moments are 0. Decay: a line to 0
   at the end. Where both apply, the smaller rate is used. */
DLRNI_INTERNAL double dlrni_learning_rate(const dlrn_train_config *cfg, int64_t n) {
    int64_t since = cfg->resample_steps > 0 ? n % cfg->resample_steps : n;
    double lr =
        since < cfg->warmup_steps ? cfg->lr * ((double)since / (double)cfg->warmup_steps) : cfg->lr;
    if (cfg->decay_start < 0 || n < cfg->decay_start) return lr;
    if (n >= cfg->steps) return 0; /* a caller of step_on may go on */
    double falling = cfg->lr * ((double)(cfg->steps - n) / (double)(cfg->steps - cfg->decay_start));
    return falling < lr ? falling : lr;
}

/* The weight of the penalty at the present step. A warm-up keeps features alive until they mean
   something (recipe dl-jump_relu). */
DLRNI_INTERNAL double dlrni_penalty_weight(const dlrn_trainer *t) {
    const dlrn_train_config *cfg = &t->cfg;
    double weight = cfg->sparsity_penalty * t->steering.factor;
    return t->step < cfg->sparsity_warmup_steps
               ? weight * ((double)t->step / (double)cfg->sparsity_warmup_steps)
               : weight;
}

/* The right penalty is not known in advance: it depends on how large the activations are, and the
   useful range is narrow. So a target for L0 steers it during the warm-up. Each step changes the
   penalty by at most 2 %, in the direction of log(L0 / target). L0 follows the penalty late, the
   more so while the learning rate is still small; looking 20 steps ahead along its trend keeps it
   from overshooting. Afterwards the penalty is fixed, and L0 goes on falling by a tenth or two.
   Measured on two sites of the demo's model, with warm-ups of 300 and 1000 steps: gains of 0.01 and
   less do not reach the target in 1000 steps from 1e-3, the default; without the look ahead L0
   swings between half and twice the target. */
/* The shortest steering: shorter warm-ups left L0 at a third of the target. */
enum { DLRNI_STEERING_STEPS = 1000 };

DLRNI_INTERNAL void dlrni_steer_penalty(dlrn_trainer *t) {
    const double gain = 0.02, ahead = 20, target = t->cfg.target_l0;
    int64_t last = dlrni_max(t->cfg.warmup_steps, t->cfg.sparsity_warmup_steps);
    if (!(target > 0) || t->step >= dlrni_max(last, DLRNI_STEERING_STEPS)) return;
    /* + 0.1: finite even where nothing is active */
    double off = log(((double)t->w.nnz / (double)t->w.batch.n + 0.1) / (target + 0.1));
    double change = off + (t->step ? ahead * (off - t->steering.off) : 0);
    change = change > 1 ? 1 : change < -1 ? -1 : change;
    t->steering.off = off;
    t->steering.factor *= exp(gain * change);
}

/* grad -= <grad, p> p, where p = atom / |atom|: [d] each. */
DLRNI_INTERNAL void dlrni_project(const dlrni_kernel_table *k, const float *atom, float *grad,
                                  int64_t d) {
    float square = k->dot(atom, atom, d);
    if (square > 0) k->axpy(-(k->dot(grad, atom, d) / square), atom, grad, d);
}

/* atom [d] becomes atom / |atom|. */
DLRNI_INTERNAL void dlrni_normalise(const dlrni_kernel_table *k, float *atom, int64_t d) {
    float norm = sqrtf(k->dot(atom, atom, d));
    if (norm > 0) k->scale(atom, 1.0f / norm, d);
}

/* Roles with one row or one number per feature: the task that sums a feature's gradients also
   updates it, while they are in the cache. */
DLRNI_INTERNAL int dlrni_is_by_feature(int role) {
    return dlrni_role_table[role].rows == 'F';
}

/* How many numbers of a role belong to one feature. */
DLRNI_INTERNAL int64_t dlrni_role_width(const dlrn_dictionary *dict, int role) {
    return dlrni_extent(dict, dlrni_role_table[role].cols);
}

/* Adam's update of n numbers of a role, from number `at` on; grad [n]. */
DLRNI_INTERNAL void dlrni_adam_move(dlrn_trainer *t, const dlrni_adam *adam, int role, int64_t at,
                                    const float *grad, int64_t n) {
    t->ctx->k->adam(t->dict->param[role] + at, t->m[role] + at, t->v[role] + at, grad, n, adam);
}

/* Updates one feature in one role; grad [d] is overwritten. `projected` 1: grad is already
   projected, since clipping measures projected gradients. */
DLRNI_INTERNAL void dlrni_update_role(dlrn_trainer *t, const dlrni_adam *adam, int role, int64_t f,
                                      float *grad, int projected) {
    int64_t d = dlrni_role_width(t->dict, role);
    float *w = t->dict->param[role] + f * d;
    if (role == DLRN_DECODER && !projected) dlrni_project(t->ctx->k, w, grad, d);
    dlrni_adam_move(t, adam, role, f * d, grad, d);
    if (role == DLRN_DECODER) dlrni_normalise(t->ctx->k, w, d);
}

/* ------------------------------------------------------------------------------------------ */
// >>sums
/* Sums of gathered rows, for several outputs at a time. The trainer needs them forward (for each
   row the sum of its features' atoms) and backward (for each feature the sum of its rows). They
   take most of a step's time. */

enum {
    /* 24 x 256 floats are 24 KB, which leaves room for the output in a first cache of 32 KB. They
       are packed, since rows a power of two apart would compete for a few of its sets. On a
       processor with another first cache, vary both. */
    DLRNI_SUMS_ROWS = 24,
    DLRNI_SUMS_COLUMNS = 256,
    DLRNI_VISIT_GROUPS =
        8, /* most groups that go through the rows together: each loaded row serves all */
    DLRNI_OUTPUTS = DLRNI_VISIT_GROUPS * DLRNI_GROUP /* most sums at a time */
};

/* out [n_out][d]: row o is increased by the sum of coef[p] * base[idx[p]] over start[o] <= p <
   start[o + 1], p in order. Within an output idx ascends, from `first` to first + rows. If the
   lists are long enough for outputs to share rows, a few rows serve all outputs while they are in
   the first cache. */
typedef struct dlrni_sums {
    int64_t n_out;        /* at most DLRNI_OUTPUTS                        */
    int64_t d;            /* width of base and of out                     */
    int64_t first, rows;  /* the rows of base that may occur              */
    const int64_t *start; /* [n_out + 1]                                  */
    const int32_t *idx;   /* which row of base */
} dlrni_sums;

/* In how many rows of base an output has `entries` entries, on average: a measure of how much
   outputs share. */
DLRNI_INTERNAL int64_t dlrni_sums_chunk(const dlrni_sums *g, double entries) {
    double all = (double)(g->start[g->n_out] - g->start[0]);
    double chunk = all > 0 ? entries * (double)g->n_out * (double)g->rows / all : (double)g->rows;
    return chunk < (double)g->rows ? dlrni_max((int64_t)chunk, 1) : g->rows;
}

/* from[o] becomes to[o], and to[o] the first entry whose row is not below `end`: the outputs walk
   through the chunks side by side. */
DLRNI_INTERNAL void dlrni_sums_advance(const dlrni_sums *g, int64_t end, int64_t *from,
                                       int64_t *to) {
    for (int64_t o = 0; o < g->n_out; o++) {
        from[o] = to[o];
        while (to[o] < g->start[o + 1] && g->idx[to[o]] < end) to[o]++;
    }
}

/* Prefetches a part of the next chunk, one part per output, so that all of it is near when the last
   output is done. */
DLRNI_INTERNAL void dlrni_sums_prefetch(const dlrni_sums *g, const float *base, int64_t r0,
                                        int64_t col, int64_t o) {
    const int64_t row = DLRNI_SUMS_COLUMNS / DLRNI_LANES, lines = DLRNI_SUMS_ROWS * row;
    int64_t part = dlrni_ceil_div(lines, g->n_out);
    for (int64_t i = o * part; i < dlrni_min((o + 1) * part, lines); i++) {
        int64_t r = r0 + i / row, c = col + i % row * DLRNI_LANES;
        if (r < g->first + g->rows && c < g->d) DLRNI_PREFETCH(base + r * g->d + c);
    }
}

/* Packs one chunk of rows, and adds it to all outputs: output o has its entries from[o] ..
   to[o]. */
DLRNI_INTERNAL void dlrni_sums_chunk_add(const dlrni_kernel_table *k, const dlrni_sums *g,
                                         const float *base, const float *coef, float *out,
                                         int64_t r0, int64_t rows, const int64_t *from,
                                         const int64_t *to) {
    float room[DLRNI_SUMS_ROWS * DLRNI_SUMS_COLUMNS + DLRNI_LANES];
    float *packed = dlrni_aligned(room);
    int64_t d = g->d;
    for (int64_t j = 0; j < d; j += DLRNI_SUMS_COLUMNS) {
        int64_t width = dlrni_min(DLRNI_SUMS_COLUMNS, d - j), next = j + DLRNI_SUMS_COLUMNS;
        for (int64_t r = 0; r < rows; r++)
            memcpy(packed + r * width, base + (r0 + r) * d + j, (size_t)width * sizeof *packed);
        for (int64_t o = 0; o < g->n_out; o++) {
            if (next < d)
                dlrni_sums_prefetch(g, base, r0, next, o);
            else
                dlrni_sums_prefetch(g, base, r0 + DLRNI_SUMS_ROWS, 0, o);
            k->gather_near(out + o * d + j, width, packed, width, (int32_t)r0, g->idx + from[o],
                           coef + from[o], to[o] - from[o]);
        }
    }
}

/* Two ways to the same bits: each output gathers its own rows, or packed chunks of rows serve all.
   Either way an output adds its rows in ascending order. */
DLRNI_INTERNAL void dlrni_sums_add(const dlrni_kernel_table *k, const dlrni_sums *g,
                                   const float *base, const float *coef, float *out) {
    int64_t from[DLRNI_OUTPUTS], to[DLRNI_OUTPUTS], d = g->d;
    /* packing pays if an output uses about 4 of the 24 packed rows, on average (Zen 4). To tune it,
       time both ways near the density where they are equal. */
    if (dlrni_sums_chunk(g, 4) > DLRNI_SUMS_ROWS) { /* sparse: every output walks alone */
        for (int64_t o = 0; o < g->n_out; o++) {
            int64_t p = g->start[o];
            k->gather_axpy(out + o * d, d, base, d, g->idx + p, coef + p, g->start[o + 1] - p);
        }
        return;
    }
    memcpy(to, g->start, (size_t)g->n_out * sizeof *to);
    for (int64_t r0 = g->first, end = g->first + g->rows; r0 < end; r0 += DLRNI_SUMS_ROWS) {
        int64_t rows = dlrni_min(DLRNI_SUMS_ROWS, end - r0);
        dlrni_sums_advance(g, r0 + rows, from, to);
        dlrni_sums_chunk_add(k, g, base, coef, out, r0, rows, from, to);
    }
}

/* ------------------------------------------------------------------------------------------ */
// >>loss
/* From rows to losses: lists, x_hat, the error e and its factor c. The penalty is the recipe's. The
   features are never stored as a matrix [n][F]: with 1 % active, that is a hundred times the
   work. */

/* How many groups fit the budget of a wave even if all their features are active on all rows. */
DLRNI_INTERNAL int64_t dlrni_dense_wave(const dlrni_work *w) {
    int64_t groups = dlrni_max(w->budget / (w->batch.n * DLRNI_GROUP), 1);
    return dlrni_min(groups, w->codes.groups);
}

/* Encodes the wave that begins with group `first`, unless its lists are still in memory: with one
   wave, backward reuses those of the forward pass. w->wave shrinks if the lists turn out too
   long. */
DLRNI_INTERNAL dlrn_status dlrni_load_wave(dlrn_trainer *t, int64_t first) {
    dlrni_work *w = &t->w;
    if (w->codes.first == first) return DLRN_OK;
    DLRNI_TRY(dlrni_encoding_load(&w->codes, first, w->wave, w->budget));
    /* the last wave may be short: its size says nothing about the others */
    if (first + w->codes.wave < w->codes.groups) w->wave = w->codes.wave;
    return DLRN_OK;
}

/* The features of a few blocks of rows, sorted by row, in the scratch of a worker. */
typedef struct dlrni_slab {
    int64_t i0, rows, at[DLRNI_OUTPUTS + 1]; /* row i0 + i has the entries at[i] .. at[i + 1] */
    int32_t *col;                            /* [at[rows]] feature, ascending within a row */
    float *val;                              /* [at[rows]] value of the feature */
} dlrni_slab;

/* Collects the entries of a slab from the lists of the wave in memory. Lists are by feature,
   x_hat is by row: this is where they are transposed. */
DLRNI_INTERNAL dlrni_slab dlrni_slab_of(const dlrn_trainer *t, int64_t task, int worker) {
    const dlrni_work *w = &t->w;
    dlrni_slab b;
    b.i0 = task * w->slab * DLRNI_BLOCK;
    b.rows = dlrni_min(w->slab * DLRNI_BLOCK, w->batch.n - b.i0);
    /* values first, then features: both have 4 bytes, so one count sizes the scratch */
    b.val = (float *)(void *)dlrni_scratch(&w->codes, worker);
    b.col = (int32_t *)(void *)(b.val + w->slab_max);
    b.at[0] = 0;
    for (int64_t i = 0; i < b.rows; i += DLRNI_BLOCK) {
        dlrni_block_count(&w->codes, (b.i0 + i) / DLRNI_BLOCK, b.at + i);
        dlrni_block_fill(&w->codes, (b.i0 + i) / DLRNI_BLOCK, b.at + i, b.col, b.val);
    }
    /* lists hold pre-activations; most recipes use them as values */
    for (int64_t p = 0; t->recipe->value && p < b.at[b.rows]; p++)
        b.val[p] = t->recipe->value(t, b.col[p], b.val[p]);
    return b;
}

/* Runs body over the slabs of rows, with scratch for dlrni_slab_of. Where many features are active,
   a slab is 4 blocks tall, so that more rows share each atom. */
DLRNI_INTERNAL dlrn_status dlrni_each_slab(dlrn_trainer *t, dlrn_parallel_body body) {
    dlrni_work *w = &t->w;
    /* entries if all features were active */
    double all = (double)w->batch.n * (double)(w->codes.wave * DLRNI_GROUP);
    w->slab = (double)dlrni_wave_entries(&w->codes) > DLRNI_DENSE * all ? 4 : 1;
    w->slab_max = w->slab * dlrni_block_max(&w->codes);
    DLRNI_TRY(dlrni_need_scratch(&w->codes, 2 * w->slab_max * (int64_t)sizeof(float)));
    dlrn_parallel_for(t->ctx, dlrni_ceil_div(w->batch.n, w->slab * DLRNI_BLOCK), body, t);
    return DLRN_OK;
}

/* e [d_out] = x_hat - y of row i, its loss, and c: the derivative by x_hat is 2 e / n for the
   squared distance, e / (n |e|) for the distance. */
DLRNI_INTERNAL void dlrni_error_row(dlrn_trainer *t, int64_t i) {
    dlrni_batch *b = &t->w.batch;
    int64_t d = t->dict->d_out;
    double n = (double)b->n;
    float *e = b->e + i * d;
    t->ctx->k->sub(e, b->y + i * d, e, d);
    double square = (double)t->ctx->k->dot(e, e, d), norm = sqrt(square);
    int squared = t->cfg.loss == DLRN_LOSS_SQUARED;
    b->error[i] = squared ? square : norm;
    /* the distance has no derivative at 0; 0 moves nothing */
    b->c[i] = (float)(squared ? 2.0 / n : norm > 0 ? 1.0 / (n * norm) : 0.0);
}

/* Task: adds a wave's atoms to x_hat of a slab of rows. The first wave starts from the output bias,
   the last one ends with the errors. */
DLRNI_INTERNAL void dlrni_decode_slab(void *arg, int64_t task, int worker) {
    dlrn_trainer *t = (dlrn_trainer *)arg;
    dlrni_batch *batch = &t->w.batch;
    const dlrni_encoding *c = &t->w.codes;
    int64_t d = t->dict->d_out, f0 = c->first * DLRNI_GROUP;
    /* the last group may be short */
    int64_t features = dlrni_min(c->wave * DLRNI_GROUP, t->dict->features - f0);
    dlrni_slab b = dlrni_slab_of(t, task, worker);
    float *e = batch->e + b.i0 * d;
    if (c->first == 0)
        for (int64_t i = 0; i < b.rows; i++) {
            memcpy(e + i * d, t->dict->param[DLRN_OUTPUT_BIAS], (size_t)d * sizeof *e);
            batch->total[b.i0 + i] = 0;
        }
    /* e holds x_hat until the last wave: saves an array */
    dlrni_sums g = {b.rows, d, f0, features, b.at, b.col};
    dlrni_sums_add(t->ctx->k, &g, t->dict->param[DLRN_DECODER], b.val, e);
    /* the sum of a row is in ascending features, wave by wave: independent of the waves */
    for (int64_t i = 0; i < b.rows; i++)
        for (int64_t p = b.at[i]; p < b.at[i + 1]; p++) batch->total[b.i0 + i] += (double)b.val[p];
    /* x_hat is complete */
    if (c->first + c->wave == c->groups)
        for (int64_t i = 0; i < b.rows; i++) dlrni_error_row(t, b.i0 + i);
}

/* Updates w->silent from the wave in memory; the trainer's own counters change only when the step
   succeeds. Values of 0 do not count as active: a recipe may keep such entries in its lists. */
DLRNI_INTERNAL void dlrni_count_wave(dlrn_trainer *t) {
    dlrni_work *w = &t->w;
    const dlrni_encoding *c = &w->codes;
    int64_t f0 = c->first * DLRNI_GROUP, off = 0;
    int64_t f1 = dlrni_min(f0 + c->wave * DLRNI_GROUP, t->dict->features);
    /* what a silent batch adds */
    int64_t more = t->recipe->counts_rows ? w->batch.n : 1;
    /* first count all as silent on this batch; the lists then correct that */
    for (int64_t f = f0; f < f1; f++) w->silent[f] = t->since_fired[f] + more;
    for (int64_t s = 0; s < c->stretches; s++)
        for (int64_t g = c->first; g < c->first + c->wave; g++) {
            const dlrni_list *list = &c->lists[s * c->groups + g];
            for (int64_t p = 0; p < list->count; p++) {
                int64_t f = g * DLRNI_GROUP + dlrni_key_feature(list->key[p]);
                /* dl-jump_relu: an entry just below its threshold */
                if (t->recipe->value && !(t->recipe->value(t, f, list->val[p]) != 0))
                    off++;
                else
                    w->silent[f] = 0;
            }
        }
    w->nnz += dlrni_wave_entries(c) - off;
    w->candidates += dlrni_wave_candidates(c);
}

/* x_hat and errors of all rows, wave after wave, and the sums over each row's features. */
DLRNI_INTERNAL dlrn_status dlrni_reconstruct(dlrn_trainer *t) {
    dlrni_work *w = &t->w;
    /* assume lists as long as the last batch's; if they fit, one wave holds all */
    w->wave = w->nnz > w->budget ? dlrni_dense_wave(w) : w->codes.groups;
    DLRNI_TRY(dlrni_encoding_begin(&w->codes, w->batch.xc, w->batch.n));
    w->nnz = w->candidates = 0;
    for (int64_t first = 0; first < w->codes.groups; first += w->wave) {
        DLRNI_TRY(dlrni_load_wave(t, first));
        dlrni_count_wave(t);
        DLRNI_TRY(dlrni_each_slab(t, dlrni_decode_slab));
    }
    /* the next batch chooses its screen by this one */
    dlrni_encoding_learn(&w->codes, w->nnz, w->candidates);
    return DLRN_OK;
}

/* ---- The batch ---- */

/* The next array of a block of memory: n elements of `bytes` each, from byte *at of `base` on. *at
   moves on to the next cache line, so that two tasks never write to the same one. base NULL: only
   counts. */
DLRNI_INTERNAL void *dlrni_carve(char *base, int64_t *at, int64_t n, int64_t bytes) {
    int64_t from = *at;
    *at += dlrni_round_up(n * bytes, DLRNI_ALIGN);
    return base ? base + from : NULL;
}

/* Makes room for n rows. One block for all arrays: one place where memory can run out, one pointer
   to free (xc). Its contents are lost. */
DLRNI_INTERNAL dlrn_status dlrni_batch_room(dlrn_trainer *t, int64_t n) {
    const int64_t arrays = 8;
    dlrni_batch *b = &t->w.batch;
    const int64_t in = t->dict->d_in * (int64_t)sizeof(float);
    const int64_t out = t->dict->d_out * (int64_t)sizeof(float);
    const int64_t wide = sizeof(double), narrow = sizeof(float);
    int64_t bytes, at = 0;
    b->n = n;
    /* batches of a run have one size: it allocates once */
    if (n <= b->cap) return DLRN_OK;
    /* checked, since n comes from the caller */
    if (!dlrni_mul(in + out + 4 * wide + 2 * narrow, n, &bytes) ||
        !dlrni_add(bytes, arrays * DLRNI_ALIGN, &bytes))
        return dlrn_fail(t->ctx, DLRN_ERR_MEMORY, "a batch of %lld rows does not fit in memory",
                         (long long)n);
    char *base = DLRNI_NEW(t->ctx, char, bytes);
    if (!base) return DLRN_ERR_MEMORY;
    dlrn_free(t->ctx, b->xc);
    /* from here on nothing can fail */
    b->cap = n;
    b->xc = (float *)dlrni_carve(base, &at, n, in);
    b->e = (float *)dlrni_carve(base, &at, n, out);
    b->error = (double *)dlrni_carve(base, &at, n, wide);
    b->total = (double *)dlrni_carve(base, &at, n, wide);
    b->sparse = (double *)dlrni_carve(base, &at, n, wide);
    b->mean_slope = (double *)dlrni_carve(base, &at, n, wide);
    b->c = (float *)dlrni_carve(base, &at, n, narrow);
    b->number = (int32_t *)dlrni_carve(base, &at, n, narrow);
    /* lets a sum over all rows use the kernel for gathered rows */
    for (int64_t i = 0; i < n; i++) b->number[i] = (int32_t)i;
    return DLRN_OK;
}

/* Fails with the first number of x [n][d] that is not finite. The squared length of a row finds it
   cheaply; if that overflows, the row is checked number by number, and may pass. */
DLRNI_INTERNAL dlrn_status dlrni_check_rows(dlrn_trainer *t, const char *name, const float *x,
                                            int64_t n, int64_t d) {
    for (int64_t i = 0; i < n; i++) {
        /* also false for NaN */
        if (t->ctx->k->dot(x + i * d, x + i * d, d) <= FLT_MAX) continue;
        for (int64_t c = 0; c < d; c++)
            if (!(fabsf(x[i * d + c]) <= FLT_MAX))
                return dlrn_fail(t->ctx, DLRN_ERR_VALUE,
                                 "step %lld: %s [%lld][%lld]: expected a finite number, found %g",
                                 (long long)t->step, name, (long long)i, (long long)c,
                                 (double)x[i * d + c]);
    }
    return DLRN_OK;
}

/* Whether x [n][d_in] and y [n][d_out] (NULL: x) can be a batch. Checked before anything is
   written: a bad row costs the step, not the weights. */
DLRNI_INTERNAL dlrn_status dlrni_check_batch(dlrn_trainer *t, const float *x, const float *y,
                                             int64_t n) {
    const char *place = t->from_buffer ? "dlrn_trainer_step" : "dlrn_trainer_step_on";
    DLRNI_REQUIRE_IN(t->ctx, place, x, "x must not be NULL");
    DLRNI_REQUIRE_IN(t->ctx, place, n > 0 && n <= DLRNI_BATCH_MAX,
                     "a batch has between 1 and 2^24 rows");
    DLRNI_REQUIRE_IN(t->ctx, place, y || t->dict->d_out == t->dict->d_in,
                     "y must not be NULL where d_out is not d_in");
    DLRNI_TRY(dlrni_check_rows(t, "x", x, n, t->dict->d_in));
    return y && y != x ? dlrni_check_rows(t, "y", y, n, t->dict->d_out) : DLRN_OK;
}

/* Mean of a [n], summed in order on one thread: the same bits for any number of threads. */
DLRNI_INTERNAL double dlrni_mean(const double *a, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += a[i];
    return sum / (double)n;
}

/* Whether a feature that has been silent for `silent` steps (or rows) is dead. With resampling: for
   at least half of the period; compat: for more than half, as the reference has it. Otherwise by
   the threshold of the auxiliary loss. */
DLRNI_INTERNAL int dlrni_is_dead(const dlrn_trainer *t, int64_t silent) {
    const dlrn_train_config *cfg = &t->cfg;
    /* AuxK counts rows, so that the period does not depend on the batch size */
    if (t->recipe->counts_rows) return cfg->dead_rows >= 0 && silent >= cfg->dead_rows;
    if (cfg->resample_steps > 0)
        return cfg->compat ? 2 * silent > cfg->resample_steps : 2 * silent >= cfg->resample_steps;
    return cfg->ghost_threshold >= 0 && silent > cfg->ghost_threshold;
}

/* The number of dead features that every run reports. Without a period these are the features that
   fire on no row of the batch, as in an evaluation. A run shorter than the period counts from its
   start, so that a run whose features have all died does not report 0. */
DLRNI_INTERNAL int64_t dlrni_count_dead(const dlrn_trainer *t) {
    const dlrn_train_config *cfg = &t->cfg;
    int64_t count = 0, period = 1;
    if (cfg->resample_steps > 0)
        period = cfg->resample_steps / 2 + (cfg->compat || cfg->resample_steps % 2);
    else if (cfg->ghost_threshold >= 0)
        period = cfg->ghost_threshold + 1;
    period = dlrni_min(period, t->step + 1);
    for (int64_t f = 0; f < t->dict->features; f++)
        count +=
            t->recipe->counts_rows ? dlrni_is_dead(t, t->w.silent[f]) : t->w.silent[f] >= period;
    return count;
}

/* ------------------------------------------------------------------------------------------ */
// >>auxiliary
/* A dead feature is never active, so the loss has no gradient for it. An auxiliary loss makes the
   dead features, and only them, predict the residual y - x_hat. All of them are computed on all
   rows, densely; the rest of the step stays sparse. The pass below is the same for every such loss.
   The blocks at the end of this room define a value, its distance from the residual, and the loss.

   Forward goes by rows: all dead features on a block of rows. Backward goes by groups of dead
   features and by blocks of rows: a block serves all products with a group while it is in the
   second cache. With one feature at a time, a step with 10 % dead features would take 3.4 times as
   long as one without (Zen 4). The sums are added to those of the lists when the lists are
   done. */

enum {
    DLRNI_AUX_ROWS = 128, /* rows per block; with d = 512, xc and e take 512 KB: a second cache  */
    DLRNI_AUX_SUMS = 4096 /* dead features whose sums are kept: bounds the memory, 4 (d_in + d_out)
                             bytes for each                                                     */
};

/* Copies the rows row [count] of a matrix [.][d] into to [count][d]: kernels need them
   contiguous. */
DLRNI_INTERNAL void dlrni_collect_rows(const float *from, const int32_t *row, int64_t count,
                                       int64_t d, float *to) {
    for (int64_t p = 0; p < count; p++)
        memcpy(to + p * d, from + row[p] * d, (size_t)d * sizeof *to);
}

/* Pre-activations of dead features: pre [rows][count], rows ld apart, from xc [rows][d_in], the
   copied encoder rows [count][d_in] and the biases. */
DLRNI_INTERNAL void dlrni_aux_pre(const dlrn_dictionary *dict, const float *xc, int64_t rows,
                                  const float *encoder, const int32_t *feature, int64_t count,
                                  float *pre, int64_t ld) {
    int64_t d = dict->d_in;
    dict->ctx->k->dots_nt(rows, count, d, xc, d, encoder, d, pre, ld);
    for (int64_t i = 0; i < rows; i++)
        for (int64_t p = 0; p < count; p++)
            pre[i * ld + p] += dict->param[DLRN_ENCODER_BIAS][feature[p]];
}

/* out [rows][d_out] = f [rows][count] times the dead features' atoms, which are packed panel by
   panel, since they are scattered over the decoder. */
DLRNI_INTERNAL void dlrni_aux_decode(const dlrn_trainer *t, const float *f, int64_t rows,
                                     float *panel, float *out) {
    const dlrni_aux *a = &t->w.aux;
    int64_t d = t->dict->d_out;
    for (int64_t j = 0; j < d; j += DLRNI_GROUP)
        for (int64_t p = 0; p < a->count; p += DLRNI_GEMM_DEPTH) {
            int64_t depth = dlrni_min(DLRNI_GEMM_DEPTH, a->count - p);
            int64_t width = dlrni_min(DLRNI_GROUP, d - j);
            for (int64_t q = 0; q < depth; q++)
                dlrni_pack_cols(t->dict->param[DLRN_DECODER] + a->dead[p + q] * d + j, d, width, 1,
                                panel + q * DLRNI_GROUP);
            /* p > 0: adds to earlier panels */
            t->ctx->k->outer(rows, width, depth, f + p, a->count, 1, panel, p > 0, out + j, d);
        }
}

/* Rows per task: as many as keep the values of all dead features within 4 MB, so that a worker's
   scratch is bounded for any number of them. */
DLRNI_INTERNAL int64_t dlrni_aux_block(const dlrni_aux *a) {
    return dlrni_max(dlrni_min((1 << 20) / a->count, DLRNI_AUX_ROWS), 8);
}

/* Bytes of scratch per task: one size for forward and backward, so that a step grows it once. */
DLRNI_INTERNAL int64_t dlrni_aux_scratch(const dlrn_trainer *t) {
    int64_t in = DLRNI_GROUP * t->dict->d_in, out = DLRNI_GROUP * t->dict->d_out;
    int64_t panel = DLRNI_GEMM_DEPTH * DLRNI_GROUP;
    int64_t forward = dlrni_aux_block(&t->w.aux) * t->w.aux.count;
    int64_t backward = in + 2 * out + 3 * DLRNI_AUX_ROWS * DLRNI_GROUP;
    return (in + panel + dlrni_max(forward, backward)) * (int64_t)sizeof(float);
}

/* Task, forward: some rows against all dead features, in three steps: pre-activations, output,
   distance. */
DLRNI_INTERNAL void dlrni_aux_rows_task(void *arg, int64_t block, int worker) {
    dlrn_trainer *t = (dlrn_trainer *)arg;
    dlrni_aux *a = &t->w.aux;
    int64_t d = t->dict->d_in, d_out = t->dict->d_out, max = dlrni_aux_block(a), r0 = block * max;
    int64_t rows = dlrni_min(max, t->w.batch.n - r0);
    float *panel = (float *)(void *)dlrni_scratch(&t->w.codes, worker);
    float *encoder = panel + DLRNI_GEMM_DEPTH * DLRNI_GROUP, *f = encoder + DLRNI_GROUP * d;
    for (int64_t p = 0; p < a->count; p += DLRNI_GROUP) {
        /* a group at a time: the copies of its encoder rows stay in the second cache */
        int64_t count = dlrni_min(DLRNI_GROUP, a->count - p);
        dlrni_collect_rows(t->dict->param[DLRN_ENCODER], a->dead + p, count, d, encoder);
        dlrni_aux_pre(t->dict, t->w.batch.xc + r0 * d, rows, encoder, a->dead + p, count, f + p,
                      a->count);
    }
    /* the values replace the pre-activations in place */
    for (int64_t i = 0; i < rows; i++) t->recipe->auxiliary->begin_row(t, r0 + i, f + i * a->count);
    dlrni_aux_decode(t, f, rows, panel, a->e + r0 * d_out);
    for (int64_t i = 0; i < rows; i++) t->recipe->auxiliary->end_row(t, r0 + i);
}

/* Allocates the memory of the pass when a feature first dies: many runs never need it. */
DLRNI_INTERNAL dlrn_status dlrni_aux_room(dlrn_trainer *t) {
    dlrni_aux *a = &t->w.aux;
    int64_t d = t->dict->d_in + t->dict->d_out, n = t->w.batch.n;
    int64_t max = dlrni_min(DLRNI_AUX_SUMS, t->dict->features);
    /* sized for the worst case at once: the number of dead features changes at every step */
    if (!a->grad && !(a->grad = DLRNI_NEW(t->ctx, float, max *d))) return DLRN_ERR_MEMORY;
    if (!a->bias_grad && !(a->bias_grad = DLRNI_NEW(t->ctx, double, max))) return DLRN_ERR_MEMORY;
    if (!DLRNI_GROW(t->ctx, &a->e, &a->e_cap, 0, n * t->dict->d_out) ||
        !DLRNI_GROW(t->ctx, &a->row, &a->row_cap, 0, n))
        return DLRN_ERR_MEMORY;
    return dlrni_need_scratch(&t->w.codes, dlrni_aux_scratch(t));
}

/* The auxiliary loss of the batch, after its reconstruction, which leaves the residual in batch.e:
   adds to stats->loss and sets each row's factor for backward. */
DLRNI_INTERNAL dlrn_status dlrni_aux_forward(dlrn_trainer *t, dlrn_train_stats *stats) {
    const dlrni_auxiliary *block = t->recipe->auxiliary;
    dlrni_aux *a = &t->w.aux;
    /* 0: backward has nothing to add */
    a->count = a->sums = 0;
    for (int64_t f = 0; block && f < t->dict->features; f++)
        if (block->is_dead(t, f)) a->dead[a->count++] = (int32_t)f;
    if (!a->count) return DLRN_OK; /* the usual case */
    DLRNI_TRY(dlrni_aux_room(t));
    dlrn_parallel_for(t->ctx, dlrni_ceil_div(t->w.batch.n, dlrni_aux_block(a)), dlrni_aux_rows_task,
                      t);
    block->finish(t, stats);
    return DLRN_OK;
}

/* ---- Backward ---- */

/* A group of dead features, over blocks of rows. The forward values are computed again, since
   [n][dead] would be too large to keep. */
typedef struct dlrni_aux_group {
    const int32_t *feature; /* [count] ascending */
    int64_t count;
    float *panel, *encoder, *atom;   /* [DLRNI_GEMM_DEPTH][DLRNI_GROUP]; copied rows [count][d]  */
    float *f, *df, *slope;           /* [rows][DLRNI_GROUP] values, derivatives, <aux.e, atom>   */
    float *atom_grad, *encoder_grad; /* [count][d_out], [count][d_in]                          */
    double *bias_grad;               /* [count]                                                */
} dlrni_aux_group;

/* grad [count][d] += c [rows][DLRNI_GROUP]^T g [rows][d]: the gradients of all features of a group
   in one product. */
DLRNI_INTERNAL void dlrni_aux_outer(const dlrni_kernel_table *k, const dlrni_aux_group *h,
                                    const float *c, const float *g, int64_t rows, int64_t d,
                                    float *grad) {
    for (int64_t j = 0; j < d; j += DLRNI_GROUP) {
        int64_t width = dlrni_min(DLRNI_GROUP, d - j);
        dlrni_pack_cols(g + j, d, width, rows, h->panel);
        k->outer(h->count, width, rows, c, 1, DLRNI_GROUP, h->panel, 1, grad + j, d);
    }
}

/* Adds a block of rows to the sums of a group. With v = aux.e and the row's factor: atom += f
   factor v, slope = <v, atom> df factor, encoder row += slope xc, bias += slope. */
DLRNI_INTERNAL void dlrni_aux_group_rows(const dlrn_trainer *t, dlrni_aux_group *h, int64_t r0,
                                         int64_t rows) {
    const dlrni_aux *a = &t->w.aux;
    const dlrni_kernel_table *k = t->ctx->k;
    int64_t d = t->dict->d_in, d_out = t->dict->d_out;
    const float *xc = t->w.batch.xc + r0 * d, *e = a->e + r0 * d_out;
    dlrni_aux_pre(t->dict, xc, rows, h->encoder, h->feature, h->count, h->f, DLRNI_GROUP);
    k->dots_nt(rows, h->count, d_out, e, d_out, h->atom, d_out, h->slope, DLRNI_GROUP);
    for (int64_t i = 0; i < rows; i++) {
        float *f = h->f + i * DLRNI_GROUP, *df = h->df + i * DLRNI_GROUP;
        float *slope = h->slope + i * DLRNI_GROUP, factor = a->row[r0 + i].factor;
        t->recipe->auxiliary->activate(t, r0 + i, h->feature, h->count, f, df);
        for (int64_t p = 0; p < h->count; p++) {
            f[p] *= factor;
            slope[p] *= df[p] * factor;
            h->bias_grad[p] += (double)slope[p];
        }
    }
    dlrni_aux_outer(k, h, h->f, e, rows, d_out, h->atom_grad);
    dlrni_aux_outer(k, h, h->slope, xc, rows, d, h->encoder_grad);
}

/* Writes the sums of one run of rows, r0 .. end, to grad: atoms [count][d_out], then encoder rows
   [count][d_in]. */
DLRNI_INTERNAL void dlrni_aux_group_run(const dlrn_trainer *t, dlrni_aux_group *h, int64_t r0,
                                        int64_t end, float *grad) {
    int64_t d = t->dict->d_in, d_out = t->dict->d_out;
    h->atom_grad = grad;
    h->encoder_grad = grad + h->count * d_out;
    memset(grad, 0, (size_t)(h->count * (d + d_out)) * sizeof *grad);
    for (; r0 < end; r0 += DLRNI_AUX_ROWS)
        dlrni_aux_group_rows(t, h, r0, dlrni_min(DLRNI_AUX_ROWS, end - r0));
}

/* Task, backward: the sums of one group of dead features over all rows, run by run (DLRNI_RUN). No
   other task writes to its sums, and rows ascend: the same bits for any number of threads. */
DLRNI_INTERNAL void dlrni_aux_group_task(void *arg, int64_t task, int worker) {
    const dlrn_trainer *t = (const dlrn_trainer *)arg;
    const dlrni_aux *a = &t->w.aux;
    const int64_t n = t->w.batch.n, run = (int64_t)DLRNI_RUN * DLRNI_STRETCH;
    int64_t d = t->dict->d_in, d_out = t->dict->d_out, at = task * DLRNI_GROUP;
    float *sum = a->grad + at * (d + d_out), *part;
    dlrni_aux_group h;
    h.feature = a->dead + a->first + at;
    h.count = dlrni_min(DLRNI_GROUP, a->sums - at);
    h.panel = (float *)(void *)dlrni_scratch(&t->w.codes, worker);
    h.encoder = h.panel + DLRNI_GEMM_DEPTH * DLRNI_GROUP;
    h.atom = h.encoder + DLRNI_GROUP * d;
    h.f = h.atom + DLRNI_GROUP * d_out;
    h.df = h.f + DLRNI_AUX_ROWS * DLRNI_GROUP;
    h.slope = h.df + DLRNI_AUX_ROWS * DLRNI_GROUP;
    part = h.slope + DLRNI_AUX_ROWS * DLRNI_GROUP;
    h.bias_grad = a->bias_grad + at;
    memset(h.bias_grad, 0, (size_t)h.count * sizeof(double));
    dlrni_collect_rows(t->dict->param[DLRN_ENCODER], h.feature, h.count, d, h.encoder);
    dlrni_collect_rows(t->dict->param[DLRN_DECODER], h.feature, h.count, d_out, h.atom);
    /* the first run needs no second array */
    dlrni_aux_group_run(t, &h, 0, dlrni_min(run, n), sum);
    for (int64_t r0 = run; r0 < n; r0 += run) {
        dlrni_aux_group_run(t, &h, r0, dlrni_min(r0 + run, n), part);
        t->ctx->k->axpy(1.0f, part, sum, h.count * (d + d_out));
    }
}

/* The index of the first dead feature that is not below f (binary search). */
DLRNI_INTERNAL int64_t dlrni_dead_from(const dlrni_aux *a, int64_t f) {
    int64_t from = 0, end = a->count;
    while (from < end) {
        int64_t middle = from + (end - from) / 2;
        if (a->dead[middle] < f)
            from = middle + 1;
        else
            end = middle;
    }
    return from;
}

/* Forms the sums of the dead features among groups `group` .. *end. If there are more than
   DLRNI_AUX_SUMS, *end is lowered to the group where they stop fitting. */
DLRNI_INTERNAL dlrn_status dlrni_aux_sums(dlrn_trainer *t, int64_t group, int64_t *end) {
    dlrni_aux *a = &t->w.aux;
    int64_t last = group; /* only whole groups: a visit needs all sums of its group */
    a->first = dlrni_dead_from(a, group * DLRNI_GROUP);
    a->sums = 0;
    for (; last < *end; last++) {
        int64_t next = dlrni_dead_from(a, (last + 1) * DLRNI_GROUP) - a->first;
        /* a single group always fits, so that the caller makes progress */
        if (next > DLRNI_AUX_SUMS) break;
        a->sums = next;
    }
    *end = last;
    if (!a->sums) return DLRN_OK;
    DLRNI_TRY(dlrni_need_scratch(&t->w.codes, dlrni_aux_scratch(t)));
    dlrn_parallel_for(t->ctx, dlrni_ceil_div(a->sums, DLRNI_GROUP), dlrni_aux_group_task, t);
    return DLRN_OK;
}

/* Adds the auxiliary sums of feature f, if it is dead, to those of its lists: atom [d_out], encoder
   [d_in]. Adam then sees one gradient. */
DLRNI_INTERNAL void dlrni_aux_add(const dlrn_trainer *t, int64_t f, float *atom, float *encoder,
                                  double *bias) {
    const dlrni_aux *a = &t->w.aux;
    int64_t d = t->dict->d_in, d_out = t->dict->d_out, at = dlrni_dead_from(a, f) - a->first;
    if (at < 0 || at >= a->sums || a->dead[a->first + at] != f) return;
    /* the layout that dlrni_aux_group_task wrote */
    int64_t group = at / DLRNI_GROUP * DLRNI_GROUP, count = dlrni_min(DLRNI_GROUP, a->sums - group);
    const float *atoms = a->grad + group * (d + d_out), *encoders = atoms + count * d_out;
    t->ctx->k->axpy(1.0f, atoms + (at - group) * d_out, atom, d_out);
    t->ctx->k->axpy(1.0f, encoders + (at - group) * d, encoder, d);
    *bias += a->bias_grad[at];
}

/* ---- Ghost gradients (Jermyn and Templeton, "Ghost grads", 2024) ----
   A feature is dead if it was silent for more than ghost_threshold steps before this one. If it
   fires in this batch, it gets both gradients. The dead features predict the residual r = y - x_hat
   through exp(pre), which has a gradient where ReLU has none: X = sum_j exp(pre_j) a_j, scaled to
   half of r's length. exp can overflow. With the row's shift m = max(0, largest pre),
   X = exp(m) X' and X' stays finite; the scale |r| / (2 |X| + eps) becomes
   |r| / (2 |X'| + eps exp(-m)). Loss: the mean distance between r and
   the scaled X, times the ratio of the reconstruction loss to it. The gradient treats scale, r and
   ratio as constants. */
/* as in trainSAE: avoids a division by 0 on a row without a residual */
static const double dlrni_ghost_eps = 1e-8;

/* Uses the counters before this step, as the reference does. */
DLRNI_INTERNAL int dlrni_ghost_is_dead(const dlrn_trainer *t, int64_t f) {
    return t->cfg.ghost_threshold >= 0 && t->since_fired[f] > t->cfg.ghost_threshold;
}

/* Finds the shift m of row i, and turns pre [count] into exp(pre - m). */
DLRNI_INTERNAL void dlrni_ghost_begin_row(dlrn_trainer *t, int64_t i, float *pre) {
    dlrni_aux *a = &t->w.aux;
    float max = 0;
    for (int64_t p = 0; p < a->count; p++) max = pre[p] > max ? pre[p] : max;
    t->ctx->k->exp_shift(pre, max, a->count);
    a->row[i].level = max;
}

/* exp is its own derivative. The row's shift was found over all dead features, not only these n. */
DLRNI_INTERNAL void dlrni_ghost_activate(const dlrn_trainer *t, int64_t i, const int32_t *feature,
                                         int64_t n, float *f, float *df) {
    (void)feature;
    t->ctx->k->exp_shift(f, t->w.aux.row[i].level, n);
    memcpy(df, f, (size_t)n * sizeof *df);
}

/* The difference v = s X' - r [d_out] and the row's loss |v|. factor holds the scale s until
   dlrni_ghost_finish. */
DLRNI_INTERNAL void dlrni_ghost_end_row(dlrn_trainer *t, int64_t i) {
    const dlrni_kernel_table *k = t->ctx->k;
    dlrni_aux_row *row = &t->w.aux.row[i];
    int64_t d = t->dict->d_out;
    float *v = t->w.aux.e + i * d, *e = t->w.batch.e + i * d;
    double length = sqrt((double)k->dot(e, e, d)), own = sqrt((double)k->dot(v, v, d));
    float s = (float)(length / (2 * own + dlrni_ghost_eps * exp(-(double)row->level)));
    k->scale(v, s, d);
    k->axpy(1.0f, e, v, d); /* - r = e */
    row->factor = s;
    row->error = sqrt((double)k->dot(v, v, d));
}

/* Mean of the rows' errors, in order. */
DLRNI_INTERNAL double dlrni_aux_mean_error(const dlrn_trainer *t) {
    int64_t n = t->w.batch.n;
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += t->w.aux.row[i].error;
    return sum / (double)n;
}

/* The ratio makes the ghost loss as large as the reconstruction loss, so that neither outweighs
   the other. The factor of row i: ratio * s / (n |v|), the derivative of a mean of distances. */
DLRNI_INTERNAL void dlrni_ghost_finish(dlrn_trainer *t, dlrn_train_stats *stats) {
    double n = (double)t->w.batch.n;
    stats->auxiliary_loss = dlrni_aux_mean_error(t);
    double ratio = stats->reconstruction_loss / (stats->auxiliary_loss + dlrni_ghost_eps);
    stats->loss += stats->auxiliary_loss * ratio;
    for (int64_t i = 0; i < t->w.batch.n; i++) {
        dlrni_aux_row *row = &t->w.aux.row[i];
        double by = ratio * (double)row->factor / (n * row->error);
        /* at distance 0 there is no direction */
        row->factor = row->error > 0 ? (float)by : 0.0f;
    }
}

static const dlrni_auxiliary dlrni_ghosts = {dlrni_ghost_is_dead, dlrni_ghost_begin_row,
                                             dlrni_ghost_activate, dlrni_ghost_end_row,
                                             dlrni_ghost_finish};

/* ---- AuxK (Gao et al., "Scaling and evaluating sparse autoencoders", 2024; as in
   dictionary_learning 0.1.0) ----
   A feature is dead if it was silent on the last dead_rows rows, this batch included. Each row
   keeps the auxk largest ReLU(pre) among the dead features. Their output X predicts the residual r.
   Loss: auxk_alpha mean |r - X|^2 / mean |r - mean r|^2; the gradient treats r as a constant. */
DLRNI_INTERNAL int dlrni_auxk_is_dead(const dlrn_trainer *t, int64_t f) {
    return t->cfg.auxk_alpha > 0 && dlrni_is_dead(t, t->w.silent[f]);
}

/* The k-th largest of pre [n] if it is above 0, otherwise 0. Positive floats are ordered like their
   bits, so the answer is found bit by bit from the top: 31 passes, and no memory. */
DLRNI_INTERNAL float dlrni_kth_largest(const float *pre, int64_t n, int64_t k) {
    uint32_t bits = 0;
    for (int bit = 30; bit >= 0; bit--) {
        float at = dlrni_float_of_bits(bits | (uint32_t)1 << bit);
        int64_t count = 0;
        for (int64_t p = 0; p < n; p++) count += pre[p] >= at;
        if (count >= k) bits |= (uint32_t)1 << bit;
    }
    return dlrni_float_of_bits(bits);
}

/* Whether a row keeps a feature. Among equal values it keeps those up to row->feature, so that
   there are exactly k. */
DLRNI_INTERNAL int dlrni_auxk_keeps(const dlrni_aux_row *row, int32_t feature, float pre) {
    return pre > row->level || (pre > 0 && pre >= row->level && feature <= row->feature);
}

/* Finds the last feature that row i keeps, and sets the others of pre [count] to 0. */
DLRNI_INTERNAL void dlrni_auxk_begin_row(dlrn_trainer *t, int64_t i, float *pre) {
    const dlrni_aux *a = &t->w.aux;
    dlrni_aux_row *row = &t->w.aux.row[i];
    /* d_in / 2 is the paper's choice, "a power of two close to d / 2" */
    int64_t k = dlrni_min(t->cfg.auxk ? t->cfg.auxk : dlrni_max(t->cfg.d_in / 2, 1), a->count);
    row->level = dlrni_kth_largest(pre, a->count, k);
    row->feature = -1;
    /* those above the level are certain; what is left of k goes to the equal ones, in order */
    for (int64_t p = 0; p < a->count; p++) k -= pre[p] > row->level;
    for (int64_t p = 0; p < a->count && k > 0; p++) {
        /* without ==, which -Wfloat-equal reports */
        if (pre[p] < row->level || pre[p] > row->level) continue;
        row->feature = a->dead[p];
        k--;
    }
    for (int64_t p = 0; p < a->count; p++)
        if (!dlrni_auxk_keeps(row, a->dead[p], pre[p])) pre[p] = 0;
}

/* ReLU and selection: the derivative is 1 where a feature is kept, otherwise 0. */
DLRNI_INTERNAL void dlrni_auxk_activate(const dlrn_trainer *t, int64_t i, const int32_t *feature,
                                        int64_t n, float *f, float *df) {
    for (int64_t p = 0; p < n; p++) {
        int keeps = dlrni_auxk_keeps(&t->w.aux.row[i], feature[p], f[p]);
        if (!keeps) f[p] = 0;
        df[p] = (float)keeps;
    }
}

/* The difference X - r of row i, and its squared length. */
DLRNI_INTERNAL void dlrni_auxk_end_row(dlrn_trainer *t, int64_t i) {
    int64_t d = t->dict->d_out;
    float *v = t->w.aux.e + i * d;
    t->ctx->k->axpy(1.0f, t->w.batch.e + i * d, v, d); /* X - r, r = - e */
    t->w.aux.row[i].error = (double)t->ctx->k->dot(v, v, d);
}

/* mean_i |e_i - mean e|^2 of e [n][d]. Some columns at a time, so that the sums fit on the stack
   and a row is read in whole cache lines. */
DLRNI_INTERNAL double dlrni_residual_variance(const float *e, int64_t n, int64_t d) {
    double sum = 0, mean[DLRNI_GROUP], square[DLRNI_GROUP];
    for (int64_t c = 0; c < d; c += DLRNI_GROUP) {
        int64_t width = dlrni_min(DLRNI_GROUP, d - c);
        memset(mean, 0, sizeof mean);
        memset(square, 0, sizeof square);
        for (int64_t i = 0; i < n; i++)
            for (int64_t j = 0; j < width; j++) mean[j] += (double)e[i * d + c + j] / (double)n;
        for (int64_t i = 0; i < n; i++)
            for (int64_t j = 0; j < width; j++) {
                /* two passes: the one-pass formula cancels where the mean is large */
                double off = (double)e[i * d + c + j] - mean[j];
                square[j] += off * off;
            }
        for (int64_t j = 0; j < width; j++) sum += square[j] / (double)n;
    }
    return sum;
}

/* The loss is relative to the variance of the residuals, so that auxk_alpha means the same for all
   data. Every row has the same factor. Residuals without variance give no loss. */
DLRNI_INTERNAL void dlrni_auxk_finish(dlrn_trainer *t, dlrn_train_stats *stats) {
    int64_t n = t->w.batch.n;
    double variance = dlrni_residual_variance(t->w.batch.e, n, t->dict->d_out);
    double factor = variance > 0 ? 2 * t->cfg.auxk_alpha / ((double)n * variance) : 0;
    stats->auxiliary_loss = variance > 0 ? dlrni_aux_mean_error(t) / variance : 0;
    stats->loss += t->cfg.auxk_alpha * stats->auxiliary_loss;
    for (int64_t i = 0; i < n; i++) t->w.aux.row[i].factor = (float)factor;
}

static const dlrni_auxiliary dlrni_auxk = {dlrni_auxk_is_dead, dlrni_auxk_begin_row,
                                           dlrni_auxk_activate, dlrni_auxk_end_row,
                                           dlrni_auxk_finish};

/* ------------------------------------------------------------------------------------------ */
// >>backward
/* Gradients, and the update in the same visit: a task sums the gradients of a few groups and
   updates them with Adam while they are in the cache. (Recipes that clip keep all gradients and
   update in a second pass: dlrni_backward_clipped.) The chain rule, for row i and feature j with
   value f and pre-activation p: the atom gets c_i f e_i; the derivative with respect to p is
   s = c_i <e_i, atom>, plus the penalty's; the encoder row gets s xc_i, its bias s. */

/* Sorts the list of the visit's group g by feature (a counting sort, stable: rows still ascend),
   after the entries of the groups before it. */
DLRNI_INTERNAL void dlrni_visit_sort(dlrni_visit *v, int64_t g, const dlrni_list *list) {
    int64_t to[DLRNI_GROUP], *at = v->at + g * DLRNI_GROUP;
    int64_t width = dlrni_min(DLRNI_GROUP, v->width - g * DLRNI_GROUP);
    /* at[0] is where the previous group ended */
    memset(at + 1, 0, (size_t)width * sizeof *at);
    for (int64_t p = 0; p < list->count; p++) at[dlrni_key_feature(list->key[p]) + 1]++;
    for (int64_t j = 0; j < width; j++) {
        to[j] = at[j];
        at[j + 1] += at[j];
    }
    for (int64_t p = 0; p < list->count; p++) {
        /* `to` advances; `at` stays, as the index of the sorted entries */
        int64_t q = to[dlrni_key_feature(list->key[p])]++;
        v->row[q] = (int32_t)dlrni_key_row(list->key[p]);
        v->val[q] = list->val[p];
    }
}

/* slope[p] = <e of the entry's row, atom> for all entries. Where many features are active, all
   products of a few rows and a group are formed and the wanted ones taken: the tile keeps both
   operands in registers. With half of the features active this is a third faster (Zen 4). */
DLRNI_INTERNAL void dlrni_visit_dots(const dlrn_trainer *t, dlrni_visit *v, const dlrni_sums *g) {
    /* a tile of 32 x 48 floats is 6 KB: it stays in the first cache */
    enum { ROWS = 32 };
    int64_t d = t->dict->d_out, from[DLRNI_OUTPUTS], to[DLRNI_OUTPUTS];
    const float *atom = t->dict->param[DLRN_DECODER] + v->f0 * d, *e = t->w.batch.e;
    float tile[ROWS * DLRNI_GROUP];
    /* Zen 4: the tile is faster if an output has 4 entries among 12 rows. To tune this, time both
       ways at densities from 0.1 to 0.5. */
    if (dlrni_sums_chunk(g, 4) > 12) {
        for (int64_t j = 0; j < g->n_out; j++)
            t->ctx->k->dots(atom + j * d, d, e, d, v->row + v->at[j], v->at[j + 1] - v->at[j],
                            v->slope + v->at[j]);
        return;
    }
    memcpy(to, g->start, (size_t)g->n_out * sizeof *to);
    for (int64_t r0 = g->first, end = g->first + g->rows; r0 < end; r0 += ROWS) {
        int64_t rows = dlrni_min(ROWS, end - r0);
        dlrni_sums_advance(g, r0 + rows, from, to);
        for (int64_t j0 = 0; j0 < g->n_out; j0 += DLRNI_GROUP) {
            int64_t width = dlrni_min(DLRNI_GROUP, g->n_out - j0);
            t->ctx->k->dots_nt(rows, width, d, e + r0 * d, d, atom + j0 * d, d, tile, DLRNI_GROUP);
            for (int64_t j = 0; j < width; j++)
                for (int64_t p = from[j0 + j]; p < to[j0 + j]; p++)
                    /* the entries of output j0 + j on these rows, from .. to */
                    v->slope[p] = tile[(v->row[p] - r0) * DLRNI_GROUP + j];
        }
    }
}

/* coef and slope of the entries of feature j of the visit, for recipes in which a value is its
   pre-activation and there is no penalty. */
DLRNI_INTERNAL void dlrni_visit_slopes(const dlrn_trainer *t, dlrni_visit *v, int64_t j) {
    const float *c = t->w.batch.c;
    /* in double: it is a sum over all rows of the batch */
    double *bias = v->scalar[DLRN_ENCODER_BIAS];
    for (int64_t p = v->at[j]; p < v->at[j + 1]; p++) {
        v->coef[p] = v->val[p] * c[v->row[p]];
        v->slope[p] = c[v->row[p]] * v->slope[p];
        bias[j] += (double)v->slope[p];
    }
}

/* Adds the sums of one run to those of earlier runs, and clears them for the next. Why there are
   runs: DLRNI_RUN. */
DLRNI_INTERNAL void dlrni_visit_end_run(const dlrn_trainer *t, dlrni_visit *v) {
    for (int role = 0; role < DLRN_ROLE_COUNT; role++) {
        /* one run in the batch: run and sum are the same array */
        if (!v->sum[role] || v->sum[role] == v->run[role]) continue;
        int64_t n = v->width * dlrni_role_width(t->dict, role);
        t->ctx->k->axpy(1.0f, v->run[role], v->sum[role], n);
        memset(v->run[role], 0, (size_t)n * sizeof(float));
    }
}

/* Adds a stretch of rows to the sums of the visit. */
DLRNI_INTERNAL void dlrni_visit_stretch(const dlrn_trainer *t, dlrni_visit *v, int64_t stretch) {
    const dlrni_encoding *c = &t->w.codes;
    const dlrni_batch *b = &t->w.batch;
    int64_t first = stretch * DLRNI_STRETCH;
    v->rows = dlrni_min(DLRNI_STRETCH, b->n - first);
    /* the sort of the lists below fills v->at and v->row */
    dlrni_sums out = {v->width, t->dict->d_out, first, v->rows, v->at, v->row}, in = out;
    in.d = t->dict->d_in;
    v->at[0] = 0;
    for (int64_t i = 0; i < v->groups; i++)
        dlrni_visit_sort(v, i, &c->lists[stretch * c->groups + v->group + i]);
    dlrni_visit_dots(t, v, &out);
    for (int64_t j = 0; j < v->width; j++) {
        /* after the products, from which the slopes are computed */
        if (t->recipe->slopes)
            t->recipe->slopes(t, v, j);
        else
            dlrni_visit_slopes(t, v, j);
    }
    /* atoms are sums of rows of e, encoder rows sums of rows of xc, over the same entries */
    dlrni_sums_add(t->ctx->k, &out, b->e, v->coef, v->run[DLRN_DECODER]);
    dlrni_sums_add(t->ctx->k, &in, b->xc, v->slope, v->run[DLRN_ENCODER]);
    /* counted in stretches, so runs do not depend on threads or waves */
    if (stretch % DLRNI_RUN == DLRNI_RUN - 1) dlrni_visit_end_run(t, v);
}

/* The purpose of a pass over the waves: the step (adam), or only the gradients (out). */
typedef struct dlrni_update {
    dlrn_trainer *t;
    const dlrni_adam *adam; /* NULL: the weights stay */
    float *const *out;      /* by role, each of its parameter's shape; NULL: not wanted */
    int64_t first, end;     /* the groups whose tasks run now: first .. end */
    int64_t groups;         /* per task                     */
    int64_t entries;        /* most entries of a task on one stretch         */
} dlrni_update;

/* Whether the batch has several runs, which then need an array beside the sum. */
DLRNI_INTERNAL int dlrni_has_runs(const dlrni_encoding *c) {
    return c->stretches > DLRNI_RUN;
}

/* Carves the arrays of a visit from scratch, and returns their bytes. base NULL: only counts, so
   that one function knows the layout. */
DLRNI_INTERNAL int64_t dlrni_visit_carve(const dlrni_update *u, char *base, dlrni_visit *v) {
    const dlrn_dictionary *dict = u->t->dict;
    const int64_t max = u->groups * DLRNI_GROUP, narrow = sizeof(float);
    int64_t at = 0;
    for (int role = 0; role < DLRN_ROLE_COUNT; role++) {
        int64_t d = dlrni_role_width(dict, role);
        v->sum[role] = v->run[role] = NULL;
        v->scalar[role] = NULL;
        /* biases that belong to no feature have their own sums (dlrni_bias_gradients) */
        if (!dict->param[role] || !dlrni_is_by_feature(role)) continue;
        if (dlrni_role_table[role].cols == '1') {
            v->scalar[role] = (double *)dlrni_carve(base, &at, max, sizeof(double));
            continue;
        }
        v->sum[role] = v->run[role] = (float *)dlrni_carve(base, &at, max * d, narrow);
        if (dlrni_has_runs(&u->t->w.codes))
            v->run[role] = (float *)dlrni_carve(base, &at, max * d, narrow);
    }
    v->at = (int64_t *)dlrni_carve(base, &at, max + 1, sizeof(int64_t));
    /* one per entry; last, since the parts before have the same size on every stretch */
    v->row = (int32_t *)dlrni_carve(base, &at, u->entries, narrow);
    v->val = (float *)dlrni_carve(base, &at, u->entries, narrow);
    v->coef = (float *)dlrni_carve(base, &at, u->entries, narrow);
    v->slope = (float *)dlrni_carve(base, &at, u->entries, narrow);
    return at;
}

/* A visit of up to u->groups groups from `group` on. Its arrays lie in the worker's scratch, its
   sums are 0. */
DLRNI_INTERNAL dlrni_visit dlrni_visit_begin(const dlrni_update *u, int64_t group,
                                             unsigned char *scratch) {
    const dlrn_dictionary *dict = u->t->dict;
    dlrni_visit v;
    dlrni_visit_carve(u, (char *)scratch, &v);
    v.group = group;
    v.groups = dlrni_min(u->groups, u->end - group); /* the last task may have fewer */
    v.f0 = group * DLRNI_GROUP;
    v.width = dlrni_min(v.groups * DLRNI_GROUP, dict->features - v.f0);
    v.rows = 0; /* set by each stretch */
    for (int role = 0; role < DLRN_ROLE_COUNT; role++) {
        size_t n = (size_t)(v.width * dlrni_role_width(dict, role));
        if (v.scalar[role]) memset(v.scalar[role], 0, n * sizeof(double));
        if (v.sum[role]) memset(v.sum[role], 0, n * sizeof(float));
        /* not twice if they are one array */
        if (v.run[role] != v.sum[role]) memset(v.run[role], 0, n * sizeof(float));
    }
    return v;
}

/* The gradient of feature j of the visit in one role, or NULL. A single number was summed in double
   and is rounded into *number. */
DLRNI_INTERNAL float *dlrni_visit_gradient(const dlrn_trainer *t, const dlrni_visit *v, int role,
                                           int64_t j, float *number) {
    if (v->sum[role]) return v->sum[role] + j * dlrni_role_width(t->dict, role);
    if (!v->scalar[role]) return NULL;
    /* Adam's kernel takes floats */
    *number = (float)v->scalar[role][j];
    return number;
}

/* Feature j, whose sums are complete: updates its weights, or copies its gradients to out. */
DLRNI_INTERNAL void dlrni_visit_end_feature(const dlrni_update *u, dlrni_visit *v, int64_t j) {
    dlrn_trainer *t = u->t;
    int64_t f = v->f0 + j;
    for (int role = 0; role < DLRN_ROLE_COUNT; role++) {
        float number, *grad = dlrni_visit_gradient(t, v, role, j, &number);
        int64_t d = dlrni_role_width(t->dict, role);
        if (grad && u->adam) dlrni_update_role(t, u->adam, role, f, grad, 0);
        if (grad && u->out && u->out[role])
            memcpy(u->out[role] + f * d, grad, (size_t)d * sizeof *grad);
    }
}

/* Ends a visit, whose sums are complete. First each group's part of the gradient of the center:
   - sum_j slope_j w_j, with the weights before the update, and the slopes' sum over rows, which is
   the gradient of the encoder bias. The parts are added later in order, so that tasks and threads
   do not matter. */
DLRNI_INTERNAL void dlrni_visit_end(const dlrni_update *u, dlrni_visit *v) {
    dlrn_trainer *t = u->t;
    const dlrn_dictionary *dict = t->dict;
    double *bias = v->scalar[DLRN_ENCODER_BIAS];
    int64_t d = dict->d_in, d_out = dict->d_out;
    for (int64_t g = 0; g < v->groups; g++) {
        /* a part for each group, so that tasks never write to the same one */
        float *part = t->w.center_part + (v->group + g) * d;
        int64_t end = dlrni_min((g + 1) * DLRNI_GROUP, v->width);
        memset(part, 0, (size_t)d * sizeof *part);
        for (int64_t j = g * DLRNI_GROUP; j < end; j++) {
            /* before anything uses the sums */
            if (t->w.aux.sums)
                dlrni_aux_add(t, v->f0 + j, v->sum[DLRN_DECODER] + j * d_out,
                              v->sum[DLRN_ENCODER] + j * d, &bias[j]);
            /* no center: nothing to learn */
            if (dlrni_center_of(dict))
                t->ctx->k->axpy(-(float)bias[j], dict->param[DLRN_ENCODER] + (v->f0 + j) * d, part,
                                d);
            dlrni_visit_end_feature(u, v, j);
        }
    }
}

/* Task: a few groups, through all stretches of rows in order. */
DLRNI_INTERNAL void dlrni_update_groups(void *arg, int64_t task, int worker) {
    const dlrni_update *u = (const dlrni_update *)arg;
    const dlrni_encoding *c = &u->t->w.codes;
    dlrni_visit v = dlrni_visit_begin(u, u->first + task * u->groups, dlrni_scratch(c, worker));
    for (int64_t s = 0; s < c->stretches; s++) dlrni_visit_stretch(u->t, &v, s);
    /* the last run may be short */
    dlrni_visit_end_run(u->t, &v);
    dlrni_visit_end(u, &v);
}

/* The most entries that any task has on a stretch: sizes the scratch. */
DLRNI_INTERNAL int64_t dlrni_update_max(const dlrni_update *u) {
    const dlrni_encoding *c = &u->t->w.codes;
    int64_t max = 0;
    for (int64_t s = 0; s < c->stretches; s++) /* divided as the tasks will be */
        for (int64_t g = u->first; g < u->end; g += u->groups) {
            int64_t n = 0;
            for (int64_t i = g; i < dlrni_min(g + u->groups, u->end); i++)
                n += c->lists[s * c->groups + i].count;
            max = dlrni_max(max, n);
        }
    return max;
}

/* One wave of the step: as many groups at a time as the auxiliary sums have room for.
   Several groups go through the rows together if the rows do not stay in a cache from one group to
   the next (several stretches), or if each group uses nearly all of them. */
DLRNI_INTERNAL dlrn_status dlrni_update_wave(dlrni_update *u, int64_t first) {
    dlrn_trainer *t = u->t;
    dlrni_encoding *c = &t->w.codes;
    dlrni_visit count; /* only measured */
    DLRNI_TRY(dlrni_load_wave(t, first));
    /* at least 4 tasks per thread, so that a long one does not leave the others idle */
    int64_t part = dlrni_max(c->wave / (4 * t->ctx->threads), 1);
    int together = c->stretches > 1 || c->active > DLRNI_DENSE;
    u->groups = together ? dlrni_min(DLRNI_VISIT_GROUPS, part) : 1;
    for (u->first = first; u->first < first + c->wave; u->first = u->end) {
        /* what is wanted; the auxiliary sums may lower it */
        u->end = first + c->wave;
        DLRNI_TRY(dlrni_aux_sums(t, u->first, &u->end));
        u->entries = dlrni_update_max(u);
        DLRNI_TRY(dlrni_need_scratch(c, dlrni_visit_carve(u, NULL, &count)));
        /* all memory is there. From here on, an interruption would leave the weights half
           updated */
        if (u->adam) t->stage = DLRNI_UPDATING;
        dlrn_parallel_for(t->ctx, dlrni_ceil_div(u->end - u->first, u->groups), dlrni_update_groups,
                          u);
    }
    return DLRN_OK;
}

/* sum_i c_i e_i [d_out], run by run: the gradient of the output bias. */
DLRNI_INTERNAL void dlrni_output_gradient(dlrn_trainer *t) {
    const dlrni_batch *b = &t->w.batch;
    const int64_t d = t->dict->d_out, run = (int64_t)DLRNI_RUN * DLRNI_STRETCH;
    float *sum = t->w.output_grad, *part = sum + d;
    memset(sum, 0, (size_t)d * sizeof *sum);
    for (int64_t i = 0; i < b->n; i += run) {
        int64_t n = dlrni_min(run, b->n - i);
        /* the first run needs no second array */
        float *to = i ? part : sum;
        if (i) memset(part, 0, (size_t)d * sizeof *part);
        t->ctx->k->gather_axpy(to, d, b->e, d, b->number + i, b->c + i, n);
        if (i) t->ctx->k->axpy(1.0f, part, sum, d);
    }
}

/* The gradients of the biases that belong to no feature. Output bias: sum_i c_i e_i. Center:
   - sum_j (sum_i slope_ij) w_j, one product with a vector; the chain rule row by row would need one
   with a matrix. An output bias that is also the center gets both. */
DLRNI_INTERNAL void dlrni_bias_gradients(dlrn_trainer *t) {
    dlrni_work *w = &t->w;
    const dlrni_kernel_table *k = t->ctx->k;
    int64_t d = t->dict->d_in;
    int tied = t->dict->formula.center == DLRN_CENTER_OUTPUT_BIAS;
    float *center = tied ? w->output_grad : w->center_grad;
    dlrni_output_gradient(t);
    /* tied: output_grad already holds the other part */
    if (!tied) memset(center, 0, (size_t)d * sizeof *center);
    for (int64_t g = 0; g < w->codes.groups && dlrni_center_of(t->dict); g++)
        k->axpy(1.0f, w->center_part + g * d, center, d);
}

/* Everything after the loss: the update (adam), or the gradients to out (by role; NULL: not
   wanted). Waves come in the same order as in the forward pass. */
DLRNI_INTERNAL dlrn_status dlrni_backward(dlrn_trainer *t, const dlrni_adam *adam,
                                          float *const *out) {
    dlrni_work *w = &t->w;
    dlrni_update u = {t, adam, out, 0, 0, 1, 0}; /* each wave sets its own groups and entries */
    for (int64_t first = 0; first < w->codes.groups; first += w->wave)
        DLRNI_TRY(dlrni_update_wave(&u, first));
    dlrni_bias_gradients(t);
    for (int role = 0; role < DLRN_ROLE_COUNT; role++) {
        /* features were updated in their visit */
        if (!t->dict->param[role] || dlrni_is_by_feature(role)) continue;
        /* of the roles that are not by feature, output and input bias are trained; a skip is
           refused (dlrni_check_trainable) */
        const float *grad = role == DLRN_OUTPUT_BIAS ? w->output_grad : w->center_grad;
        int64_t n = dlrni_role_size(t->dict, role);
        if (adam) dlrni_adam_move(t, adam, role, 0, grad, n);
        if (out && out[role]) memcpy(out[role], grad, (size_t)n * sizeof *grad);
    }
    if (adam) dlrn_dictionary_changed(t->dict); /* encoders drop their copies */
    return DLRN_OK;
}

/* ---- The update from stored gradients, for recipes that limit their norm ----
   The norm is known only when all gradients are known. So they are kept, and a second pass updates
   the weights: this costs memory for one more set of parameters. */

/* Two passes over the features with one task body: measure, then update. */
typedef struct dlrni_apply {
    dlrn_trainer *t;
    const dlrni_adam *adam;
    float factor;   /* of all gradients                                                     */
    double *square; /* [features] squared length of a feature's gradients; NULL: the update */
} dlrni_apply;

/* Task, one group of features: with `square`, projects the atoms' gradients and measures all;
   without it, updates the weights. */
DLRNI_INTERNAL void dlrni_apply_group(void *arg, int64_t group, int worker) {
    const dlrni_apply *a = (const dlrni_apply *)arg;
    dlrn_trainer *t = a->t;
    const dlrni_kernel_table *k = t->ctx->k;
    int64_t end = dlrni_min((group + 1) * DLRNI_GROUP, t->dict->features);
    (void)worker;
    for (int64_t f = group * DLRNI_GROUP; f < end; f++)
        for (int role = 0; role < DLRN_ROLE_COUNT; role++) {
            int64_t d = dlrni_role_width(t->dict, role);
            if (!t->dict->param[role] || !dlrni_is_by_feature(role)) continue;
            float *grad = t->w.gradient[role] + f * d;
            if (a->square) {
                /* first, as in dictionary_learning: the part along the atom must not use up the
                   limit */
                if (role == DLRN_DECODER) dlrni_project(k, t->dict->param[role] + f * d, grad, d);
                a->square[f] += (double)k->dot(grad, grad, d);
            } else {
                k->scale(grad, a->factor, d);
                /* projected by the first pass */
                dlrni_update_role(t, a->adam, role, f, grad, 1);
            }
        }
}

/* Backward for a recipe that clips. All gradients, projected, are scaled so that together they are
   no longer than cfg.clip, as torch.nn.utils.clip_grad_norm_ does; then comes Adam. All
   memory is allocated before anything is written. */
DLRNI_INTERNAL dlrn_status dlrni_backward_clipped(dlrn_trainer *t, const dlrni_adam *adam) {
    int64_t F = t->dict->features, groups = dlrni_ceil_div(F, DLRNI_GROUP);
    /* one per feature, not per thread: summed in order below */
    double *square = DLRNI_NEW_ZERO(t->ctx, double, F), sum = 0;
    dlrni_apply job = {t, adam, 1, square};
    dlrn_status s = square ? dlrni_backward(t, NULL, t->w.gradient) : DLRN_ERR_MEMORY;
    if (s == DLRN_OK) dlrn_parallel_for(t->ctx, groups, dlrni_apply_group, &job);
    /* feature by feature, in order: the same norm for any number of threads */
    for (int64_t f = 0; s == DLRN_OK && f < F; f++) sum += square[f];
    dlrn_free(t->ctx, square);
    if (s != DLRN_OK) return s;
    for (int role = 0; role < DLRN_ROLE_COUNT; role++) {
        if (!t->dict->param[role] || dlrni_is_by_feature(role)) continue;
        int64_t n = dlrni_role_size(t->dict, role);
        sum += (double)t->ctx->k->dot(t->w.gradient[role], t->w.gradient[role], n);
    }
    /* 1e-6 as in torch */
    const double factor = t->cfg.clip / (sqrt(sum) + 1e-6);
    job.factor = factor < 1 ? (float)factor : 1;
    /* the second pass updates */
    job.square = NULL;
    t->stage = DLRNI_UPDATING;
    dlrn_parallel_for(t->ctx, groups, dlrni_apply_group, &job);
    for (int role = 0; role < DLRN_ROLE_COUNT; role++) {
        if (!t->dict->param[role] || dlrni_is_by_feature(role)) continue;
        int64_t n = dlrni_role_size(t->dict, role);
        t->ctx->k->scale(t->w.gradient[role], job.factor, n);
        dlrni_adam_move(t, adam, role, 0, t->w.gradient[role], n);
    }
    dlrn_dictionary_changed(t->dict);
    return DLRN_OK;
}

/* ------------------------------------------------------------------------------------------ */
// >>recipes
/* How families are trained: one block each, and one row of the table at the end. The manual says
   what else a new recipe may need (HOW TO ADD). */

/* ---- reference: trainSAE of March 2024, ReLU with an L1 or entropy penalty, ghosts ----
   Entropy of a row: q = f / (sum f + eps), H = -sum q log(q + eps). Its derivative with respect to
   f_k is (h_k - T) / (sum f + eps) with h_k = -log(q_k + eps) - q_k / (q_k + eps), T = sum_j h_j
   q_j. */
/* the constant of the reference: it keeps log(0) and 0 / 0 away */
static const double dlrni_entropy_eps = 1e-8;

/* h in the formula above, at q = f / (sum f + eps). */
DLRNI_INTERNAL double dlrni_entropy_slope(double q) {
    return -log(q + dlrni_entropy_eps) - q / (q + dlrni_entropy_eps);
}

/* Task: adds the wave in memory to the entropy and to T of a slab of rows. */
DLRNI_INTERNAL void dlrni_entropy_slab(void *arg, int64_t task, int worker) {
    dlrn_trainer *t = (dlrn_trainer *)arg;
    dlrni_batch *batch = &t->w.batch;
    dlrni_slab b = dlrni_slab_of(t, task, worker);
    for (int64_t i = 0; i < b.rows; i++) {
        double *sparse = &batch->sparse[b.i0 + i], *mean = &batch->mean_slope[b.i0 + i];
        /* the first wave starts the sums, the others add */
        if (t->w.codes.first == 0) *sparse = *mean = 0;
        for (int64_t p = b.at[i]; p < b.at[i + 1]; p++) {
            double q = (double)b.val[p] / (batch->total[b.i0 + i] + dlrni_entropy_eps);
            *sparse -= q * log(q + dlrni_entropy_eps);
            *mean += q * dlrni_entropy_slope(q);
        }
    }
}

/* The mean L1 norm, or the mean entropy. The entropy takes a second pass over the waves, since it
   needs the sum of each row's features first. */
DLRNI_INTERNAL dlrn_status dlrni_reference_penalty(dlrn_trainer *t, dlrn_train_stats *stats) {
    dlrni_work *w = &t->w;
    dlrni_batch *b = &w->batch;
    int entropy = t->cfg.sparsity == DLRN_SPARSITY_ENTROPY;
    if (!entropy) memcpy(b->sparse, b->total, (size_t)b->n * sizeof *b->sparse);
    for (int64_t first = 0; entropy && first < w->codes.groups; first += w->wave) {
        DLRNI_TRY(dlrni_load_wave(t, first));
        DLRNI_TRY(dlrni_each_slab(t, dlrni_entropy_slab));
    }
    stats->sparsity_loss = dlrni_mean(b->sparse, b->n);
    stats->loss += dlrni_penalty_weight(t) * stats->sparsity_loss;
    return DLRN_OK;
}

/* The derivative of the penalty with respect to a value f of row i. `weight` is already divided by
   the number of rows. */
DLRNI_INTERNAL double dlrni_sparsity_slope(const dlrn_trainer *t, double weight, int64_t i,
                                           float f) {
    const dlrni_batch *b = &t->w.batch;
    if (t->cfg.sparsity == DLRN_SPARSITY_L1) return weight;
    double sum = b->total[i] + dlrni_entropy_eps;
    return weight * (dlrni_entropy_slope((double)f / sum) - b->mean_slope[i]) / sum;
}

/* Like dlrni_visit_slopes, plus the penalty: where f > 0, f is the pre-activation, and so are the
   derivatives. */
DLRNI_INTERNAL void dlrni_reference_slopes(const dlrn_trainer *t, dlrni_visit *v, int64_t j) {
    const double weight = dlrni_penalty_weight(t) / (double)t->w.batch.n;
    const float *c = t->w.batch.c;
    double *bias = v->scalar[DLRN_ENCODER_BIAS];
    for (int64_t p = v->at[j]; p < v->at[j + 1]; p++) {
        int64_t i = v->row[p];
        v->coef[p] = v->val[p] * c[i];
        v->slope[p] = c[i] * v->slope[p] + (float)dlrni_sparsity_slope(t, weight, i, v->val[p]);
        bias[j] += (double)v->slope[p];
    }
}

/* ---- dl-top_k: TopKTrainer of dictionary_learning 0.1.0 ----
   Squared distance, no penalty, AuxK. Before the first step the output bias becomes the geometric
   median of the batch. The mean threshold follows the smallest value that a row keeps. It is
   saved because dictionary_learning can encode by it instead of by selection.
   Two deliberate differences: a row that keeps nothing does not count in that mean (there
   dictionary_learning takes infinity), and k is not filled up with features at 0 (it picks
   arbitrary ones and counts them as active). */
DLRNI_INTERNAL void dlrni_top_k_defaults(dlrn_train_config *cfg) {
    cfg->lr = -1;              /* derived from the number of features (dlrn_recipe_info) */
    cfg->sparsity_penalty = 0; /* k limits L0 */
    cfg->loss = DLRN_LOSS_SQUARED;
    cfg->clip = 1; /* gradients are clipped to norm 1 */
    cfg->k = 64;
    cfg->auxk_alpha = 1.0 / 32; /* Gao et al., 2024 */
    cfg->dead_rows = 10000000;  /* the same: 10 million tokens */
    cfg->threshold_beta = 0.999;
    cfg->threshold_start_step = 1000; /* the first values are not typical */
}

/* One round of Weiszfeld's algorithm (1937): to [d] = the mean of y [n][d], weighted by 1 /
   distance from `from` [d]. Returns how far the median moved. A row at distance 0 is left out,
   since its weight would be infinite. */
DLRNI_INTERNAL double dlrni_median_round(const float *y, int64_t n, int64_t d, const double *from,
                                         double *to) {
    double all = 0, moved = 0;
    memset(to, 0, (size_t)d * sizeof *to);
    for (int64_t i = 0; i < n; i++) {
        double square = 0;
        for (int64_t c = 0; c < d; c++)
            square += ((double)y[i * d + c] - from[c]) * ((double)y[i * d + c] - from[c]);
        if (!(square > 0)) continue;
        all += 1 / sqrt(square);
        for (int64_t c = 0; c < d; c++) to[c] += (double)y[i * d + c] / sqrt(square);
    }
    for (int64_t c = 0; c < d; c++) {
        to[c] = all > 0 ? to[c] / all : from[c];
        moved += (to[c] - from[c]) * (to[c] - from[c]);
    }
    return sqrt(moved);
}

/* The geometric median: unlike the mean, a few huge rows do not move it far. At most 100 rounds, or
   until it moves by less than 1e-5: dictionary_learning's numbers. */
DLRNI_INTERNAL dlrn_status dlrni_top_k_first_batch(dlrn_trainer *t, const float *x, const float *y,
                                                   int64_t n) {
    int64_t d = t->dict->d_out;
    /* this comes before the loss, which also checks it */
    DLRNI_TRY(dlrni_check_batch(t, x, y, n));
    double *at = DLRNI_NEW_ZERO(t->ctx, double, 2 * d);
    if (!at) return DLRN_ERR_MEMORY;
    double *next = at + d; /* only now: NULL + d is undefined */
    if (!y) y = x;
    /* starts from the mean */
    for (int64_t i = 0; i < n * d; i++) at[i % d] += (double)y[i] / (double)n;
    for (int round = 0; round < 100; round++) {
        double moved = dlrni_median_round(y, n, d, at, next);
        memcpy(at, next, (size_t)d * sizeof *at);
        if (moved < 1e-5) break;
    }
    for (int64_t c = 0; c < d; c++) t->dict->param[DLRN_OUTPUT_BIAS][c] = (float)at[c];
    dlrn_dictionary_changed(t->dict);
    dlrn_free(t->ctx, at);
    return DLRN_OK;
}

/* The moving average of the smallest kept value. It starts with the first mean, not with 0: a
   threshold below 0 means "none yet". */
DLRNI_INTERNAL void dlrni_top_k_after_step(dlrn_trainer *t) {
    const dlrni_encoding *c = &t->w.codes;
    double *threshold = &t->dict->formula.threshold, sum = 0, beta = t->cfg.threshold_beta;
    int64_t rows = 0, k = t->dict->formula.k;
    if (t->cfg.threshold_start_step < 0 || t->step <= t->cfg.threshold_start_step) return;
    for (int64_t i = 0; i < c->n; i++) {
        /* a row without a positive pre-activation */
        if (!c->kept[i]) continue;
        sum += (double)c->best[i * k].value; /* on top of the heap: the smallest */
        rows++;
    }
    if (!rows) return;
    sum /= (double)rows;
    *threshold = *threshold < 0 ? sum : beta * *threshold + (1 - beta) * sum;
}

/* ---- dl-jump_relu: JumpReluTrainer of dictionary_learning 0.1.0 ----
   f = p where p > threshold, otherwise 0. Squared distance, and the penalty (L0 / target_l0 - 1)^2.
   The derivative of a step function is useless. That with respect to a threshold t is estimated
   from the entries within half a bandwidth e of t (Rajamanoharan et al., "Jumping ahead", 2024):
   df/dt = - t / e, and dL0/dt = - 1 / e for each entry with |f - t| < e / 2. dictionary_learning
   tests f there, not p, so that all inactive entries (f = 0) count while |t| < e / 2. The penalty
   moves only thresholds. In training, but not afterwards, a threshold below 0 passes negative
   values. */
DLRNI_INTERNAL void dlrni_jump_relu_defaults(dlrn_train_config *cfg) {
    cfg->lr = 7e-5;
    cfg->beta1 = 0; /* the paper trains without momentum */
    cfg->loss = DLRN_LOSS_SQUARED;
    cfg->clip = 1;
    cfg->sparsity_penalty = 1;
    cfg->sparsity_warmup_steps = 2000;
    cfg->target_l0 = 20;
    cfg->bandwidth = 0.001; /* the paper's, for data of unit scale */
}

/* The lists reach half a bandwidth below the threshold, for its gradient; there the value is 0. */
DLRNI_INTERNAL float dlrni_jump_relu_value(const dlrn_trainer *t, int64_t feature, float pre) {
    return pre > t->dict->param[DLRN_THRESHOLD][feature] ? pre : 0;
}

/* L0 is a mean over the batch, so that the penalty's slope is one number for all entries. */
DLRNI_INTERNAL dlrn_status dlrni_jump_relu_penalty(dlrn_trainer *t, dlrn_train_stats *stats) {
    const dlrn_train_config *cfg = &t->cfg;
    DLRNI_REQUIRE_IN(t->ctx, "dlrn_train_config", cfg->target_l0 > 0 && cfg->bandwidth > 0,
                     "dl-jump_relu: target_l0 and bandwidth must be positive");
    double off = stats->l0 / cfg->target_l0 - 1, weight = dlrni_penalty_weight(t);
    stats->sparsity_loss = off * off;
    stats->loss += weight * stats->sparsity_loss;
    t->w.penalty_slope = weight * 2 * off / cfg->target_l0 / (double)t->w.batch.n;
    return DLRN_OK;
}

/* `off`: the rows of the stretch on which the feature is 0. They are in no list, but count while
   |t| < e / 2. */
DLRNI_INTERNAL void dlrni_jump_relu_slopes(const dlrn_trainer *t, dlrni_visit *v, int64_t j) {
    const float threshold = t->dict->param[DLRN_THRESHOLD][v->f0 + j], *c = t->w.batch.c;
    const double width = t->cfg.bandwidth, level = (double)threshold;
    double by_f = 0, counted = 0, bias = 0;
    int64_t off = v->rows;
    for (int64_t p = v->at[j]; p < v->at[j + 1]; p++) {
        float pre = v->val[p], slope = c[v->row[p]] * v->slope[p];
        int within = fabs((double)pre - level) < width / 2;
        int on = pre > threshold;
        /* on or off: the estimate uses both sides */
        if (within) by_f += (double)slope;
        counted += within && on;
        off -= on;
        v->coef[p] = on ? pre * c[v->row[p]] : 0;
        v->slope[p] = on ? slope : 0;
        bias += (double)v->slope[p];
    }
    if (fabs(level) < width / 2) counted += (double)off;
    v->scalar[DLRN_ENCODER_BIAS][j] += bias;
    v->scalar[DLRN_THRESHOLD][j] -= (level * by_f + t->w.penalty_slope * counted) / width;
}

/* ---- The table. The first row is the default: version 0.1 had no other ---- */

/* The names of the settings that a recipe uses and some other one does not. */
static const char *const dlrni_reference_settings[] = {
    "sparsity_penalty",
    "sparsity_warmup_steps",
    "target_l0",
    "ghost_threshold",
    "sparsity",
    "compat",
    NULL,
};
static const char *const dlrni_top_k_settings[] = {
    "k", "auxk_alpha", "auxk", "dead_rows", "threshold_beta", "threshold_start_step", NULL,
};
static const char *const dlrni_jump_relu_settings[] = {
    "sparsity_penalty", "sparsity_warmup_steps", "target_l0", "bandwidth", NULL,
};

static const dlrni_recipe dlrni_recipe_table[] = {
    {{"reference", "AutoEncoder",
      "mean ||x - x_hat|| + sparsity_penalty * mean L1 of f (trainSAE of March 2024)",
      &dlrni_family_table[0].formula, 0, dlrni_reference_settings},
     NULL,
     0,
     NULL,
     NULL,
     dlrni_reference_penalty,
     dlrni_reference_slopes,
     &dlrni_ghosts,
     dlrni_steer_penalty},
    /* the rate: dictionary_learning's scaling law, from Gao et al.: 2e-4 at 2^14 features */
    {{"dl-top_k", "AutoEncoderTopK",
      "mean ||x - x_hat||^2 + auxk_alpha * AuxK of dead features (TopKTrainer of "
      "dictionary_learning 0.1.0)",
      &dlrni_family_table[1].formula, 2e-4, dlrni_top_k_settings},
     dlrni_top_k_defaults,
     1,
     dlrni_top_k_first_batch,
     NULL,
     NULL,
     NULL,
     &dlrni_auxk,
     dlrni_top_k_after_step},
    {{"dl-jump_relu", "JumpReluAutoEncoder",
      "mean ||x - x_hat||^2 + sparsity_penalty * (L0 / target_l0 - 1)^2 (JumpReluTrainer of "
      "dictionary_learning 0.1.0)",
      &dlrni_family_table[2].formula, 0, dlrni_jump_relu_settings},
     dlrni_jump_relu_defaults,
     0,
     NULL,
     dlrni_jump_relu_value,
     dlrni_jump_relu_penalty,
     dlrni_jump_relu_slopes,
     NULL,
     NULL},
};
enum { DLRNI_RECIPES = sizeof dlrni_recipe_table / sizeof *dlrni_recipe_table };

/* NULL stands for the first; an unknown name gives NULL. */
DLRNI_INTERNAL const dlrni_recipe *dlrni_recipe_named(const char *name) {
    for (int i = 0; i < DLRNI_RECIPES; i++)
        if (!name || !strcmp(dlrni_recipe_table[i].info.name, name)) return &dlrni_recipe_table[i];
    return NULL;
}

DLRN_API const dlrn_recipe_info *dlrn_recipe(int index) {
    return index >= 0 && index < DLRNI_RECIPES ? &dlrni_recipe_table[index].info : NULL;
}

/* ------------------------------------------------------------------------------------------ */
// >>settings
DLRNI_COLD_BEGIN
/* The configuration of a trainer: its defaults, checks and text. One list of settings serves all of
   them and the checkpoint, so that a new setting cannot be missing from a file. */

/* The defaults of trainSAE of March 2024, with the settings of other recipes off; a recipe then
   sets its own. */
DLRN_API dlrn_train_config dlrn_train_defaults(const char *recipe) {
    const dlrni_recipe *r = dlrni_recipe_named(recipe);
    dlrn_train_config cfg;
    memset(&cfg, 0, sizeof cfg);
    /* an unknown name is kept: the error of dlrn_trainer_create names it */
    cfg.recipe = r ? r->info.name : recipe;
    cfg.d_in = 512;
    cfg.features = 16 * 512; /* 16 atoms per dimension */
    cfg.lr = 3e-4;
    cfg.sparsity_penalty = 1e-3;
    cfg.loss = DLRN_LOSS_NORM; /* the distance, not its square */
    cfg.sparsity = DLRN_SPARSITY_L1;
    cfg.beta1 = 0.9;
    cfg.beta2 = 0.999;
    cfg.eps = 1e-8;
    cfg.steps = -1;          /* until the source ends */
    cfg.warmup_steps = 1000; /* Adam's second moments are poor estimates at first */
    cfg.decay_start = -1;    /* off: with a constant rate a run may always be continued */
    cfg.resample_steps = -1; /* off */
    /* 100 batches: enough badly reconstructed rows for thousands of dead features */
    cfg.resample_rows = 819200;
    cfg.ghost_threshold = -1; /* off: ghosts take time, and not every run needs them */
    cfg.log_steps = 1000;     /* with compat, logging changes the run (dlrni_stage_logging) */
    cfg.save_steps = -1;      /* for callers: a trainer never saves itself */
    cfg.dead_rows = -1;
    cfg.threshold_start_step = -1;
    cfg.buffer = dlrn_buffer_defaults();
    if (r && r->defaults) r->defaults(&cfg); /* last: a recipe overrides */
    return cfg;
}

/* The numbers of a configuration: X(field, key, condition, what is expected). `v` is the value as a
   double: conditions on integers stay exact below 2^53. The first two lists are in all
   files, those of version 0.1 included; the MORE lists only in later ones. The keys are part of the
   file format, so they keep the old names. */
/* 0 would divide by 0 in "every n steps" */
#define DLRNI_PERIOD(v) ((v) == -1 || (v) > 0)
#define DLRNI_NEVER "a number from 1, or -1 for never"
/* false for NaN; larger numbers would be infinite in f32 */
#define DLRNI_REAL(v) (fabs(v) <= (double)FLT_MAX)
#define DLRNI_CONFIG_INTEGERS(X)                                                                   \
    X(d_in, "activation_dim", v > 0, "a number from 1")                                            \
    X(features, "dict_size", v > 0 && v <= INT32_MAX, "a number from 1 below 2^31")                \
    X(steps, "steps", v >= -1, "a number, or -1 for all rows")                                     \
    X(warmup_steps, "warmup_steps", v >= 0, "a number from 0")                                     \
    X(resample_steps, "resample_steps", DLRNI_PERIOD(v) && v <= 4e18, DLRNI_NEVER)                 \
    X(resample_rows, "resample_rows", v > 0, "a number from 1")                                    \
    X(ghost_threshold, "ghost_threshold", v >= -1, "a number from 0, or -1 for never")             \
    X(log_steps, "log_steps", DLRNI_PERIOD(v), DLRNI_NEVER)                                        \
    X(save_steps, "save_steps", DLRNI_PERIOD(v), DLRNI_NEVER)
#define DLRNI_CONFIG_REALS(X)                                                                      \
    X(lr, "lr", v >= 0 && DLRNI_REAL(v), "a finite number from 0")                                 \
    X(sparsity_penalty, "sparsity_penalty", DLRNI_REAL(v), "a finite number")                      \
    X(beta1, "beta1", v >= 0 && v < 1, "a number from 0 below 1")                                  \
    X(beta2, "beta2", v >= 0 && v < 1, "a number from 0 below 1")                                  \
    X(eps, "eps", DLRNI_REAL(v) && (float)v > 0, "a finite number above 0")
#define DLRNI_CONFIG_MORE_INTEGERS(X)                                                              \
    X(d_out, "d_out", v >= 0, "a number from 0")                                                   \
    X(decay_start, "decay_start", v >= -1 && (v < 0 || v < (double)cfg->steps),                    \
      "-1 for never, or a step before the last, `steps`")                                          \
    X(sparsity_warmup_steps, "sparsity_warmup_steps", v >= 0, "a number from 0")                   \
    X(k, "k", v >= 0, "a number from 0")                                                           \
    X(auxk, "auxk", v >= 0, "a number from 0")                                                     \
    X(dead_rows, "dead_rows", v >= -1, "a number from 0, or -1 for never")                         \
    X(threshold_start_step, "threshold_start_step", v >= -1, "a number, or -1 for never")
#define DLRNI_CONFIG_MORE_REALS(X)                                                                 \
    X(clip, "clip", v >= 0 && DLRNI_REAL(v), "a finite number from 0")                             \
    X(auxk_alpha, "auxk_alpha", v >= 0 && DLRNI_REAL(v), "a finite number from 0")                 \
    X(threshold_beta, "threshold_beta", v >= 0 && v < 1, "a number from 0 below 1")                \
    X(target_l0, "target_l0", v >= 0 && DLRNI_REAL(v), "a finite number from 0")                   \
    X(bandwidth, "bandwidth", v >= 0 && DLRNI_REAL(v), "a finite number from 0")

/* Checks that each setting is within its range. Settings from a checkpoint are checked here as
   well: files are not trusted. */
DLRNI_INTERNAL dlrn_status dlrni_check_numbers(dlrn_context *ctx, const dlrn_train_config *cfg) {
#define DLRNI_CHECK_NUMBER(field, key, condition, wanted)                                          \
    {                                                                                              \
        const double v = (double)cfg->field;                                                       \
        if (!(condition))                                                                          \
            return dlrn_fail(ctx, DLRN_ERR_ARGUMENT,                                               \
                             "dlrn_train_config: " key ": expected %s, found %g", wanted, v);      \
    }
    DLRNI_CONFIG_INTEGERS(DLRNI_CHECK_NUMBER)
    DLRNI_CONFIG_REALS(DLRNI_CHECK_NUMBER)
    DLRNI_CONFIG_MORE_INTEGERS(DLRNI_CHECK_NUMBER)
    DLRNI_CONFIG_MORE_REALS(DLRNI_CHECK_NUMBER)
#undef DLRNI_CHECK_NUMBER
    /* enumerations: a C caller may pass any int */
    if (cfg->loss != DLRN_LOSS_NORM && cfg->loss != DLRN_LOSS_SQUARED)
        return dlrn_fail(ctx, DLRN_ERR_ARGUMENT,
                         "dlrn_train_config: loss: expected a DLRN_LOSS_, found %d",
                         (int)cfg->loss);
    if (cfg->sparsity != DLRN_SPARSITY_L1 && cfg->sparsity != DLRN_SPARSITY_ENTROPY)
        return dlrn_fail(ctx, DLRN_ERR_ARGUMENT,
                         "dlrn_train_config: sparsity: expected a DLRN_SPARSITY_, found %d",
                         (int)cfg->sparsity);
    if (cfg->compat != DLRN_OFF && cfg->compat != DLRN_ON)
        return dlrn_fail(ctx, DLRN_ERR_ARGUMENT,
                         "dlrn_train_config: compat: expected DLRN_OFF or DLRN_ON, found %d",
                         (int)cfg->compat);
    return DLRN_OK;
}

/* The rate that lr means: -1 becomes one that falls with the square root of the number of features,
   if the recipe has such a rule. */
DLRNI_INTERNAL double dlrni_settled_rate(const dlrn_train_config *cfg, const dlrni_recipe *recipe) {
    /* lr == -1, without the warning of -Wfloat-equal */
    int derived = !(cfg->lr > -1) && !(cfg->lr < -1);
    return derived && recipe && recipe->info.lr > 0
               ? recipe->info.lr / sqrt((double)cfg->features / 16384)
               : cfg->lr;
}

/* Checks a configuration and fills in what follows from the rest: the recipe's name, d_out, a
   derived learning rate. Settling it again changes nothing. */
DLRNI_INTERNAL dlrn_status dlrni_settle_config(dlrn_context *ctx, dlrn_train_config *cfg,
                                               const dlrni_recipe **recipe) {
    *recipe = dlrni_recipe_named(cfg->recipe);
    if (!*recipe)
        return dlrn_fail(ctx, DLRN_ERR_ARGUMENT,
                         "dlrn_train_config: recipe: expected a name such as %s, found %.80s",
                         dlrni_recipe_table[0].info.name, cfg->recipe);
    /* the table's own string: the caller's may be gone later */
    cfg->recipe = (*recipe)->info.name;
    cfg->lr = dlrni_settled_rate(cfg, *recipe);
    DLRNI_TRY(dlrni_check_numbers(ctx, cfg));
    /* only after the check: a negative width must not be copied */
    if (!cfg->d_out) cfg->d_out = cfg->d_in;
    return DLRN_OK;
}

/* ---- As text ----
   For checkpoints and for the config.json beside a dictionary. */

DLRN_API int64_t dlrn_train_config_json(const dlrn_train_config *cfg, char *text, size_t size) {
    dlrni_json_writer w = dlrni_json_to_text(text, size);
    dlrni_json_open(&w, NULL, "{");
#define DLRNI_PUT_INTEGER(field, key, condition, wanted) dlrni_json_put_signed(&w, key, cfg->field);
#define DLRNI_PUT_REAL(field, key, condition, wanted) dlrni_json_put_real(&w, key, settled.field);
    dlrn_train_config settled = *cfg;
    settled.lr = dlrni_settled_rate(cfg, dlrni_recipe_named(cfg->recipe));
    DLRNI_CONFIG_INTEGERS(DLRNI_PUT_INTEGER)
    DLRNI_CONFIG_REALS(DLRNI_PUT_REAL)
    DLRNI_CONFIG_MORE_INTEGERS(DLRNI_PUT_INTEGER)
    DLRNI_CONFIG_MORE_REALS(DLRNI_PUT_REAL)
#undef DLRNI_PUT_INTEGER
#undef DLRNI_PUT_REAL
    /* a name and not a number: recipes may be reordered */
    dlrni_json_put_text(&w, "recipe", cfg->recipe ? cfg->recipe : dlrni_recipe_table[0].info.name);
    dlrni_json_put_text(&w, "loss", dlrn_name(DLRN_NAMES_LOSS, (int)cfg->loss));
    dlrni_json_put_text(&w, "sparsity", dlrn_name(DLRN_NAMES_SPARSITY, (int)cfg->sparsity));
    dlrni_json_put_unsigned(&w, "seed", cfg->seed);
    dlrni_json_put_bool(&w, "compat", cfg->compat == DLRN_ON);
    dlrni_json_close(&w, "}");
    /* of the whole text, even if it was cut: the caller learns what size it needs */
    return w.out.len;
}

DLRNI_COLD_END
/* ------------------------------------------------------------------------------------------ */
// >>resampling
/* A feature that stays silent learns nothing. Every resample_steps, each dead feature gets the
   direction of a row that is reconstructed badly (Bricken et al., "Towards Monosemanticity", 2023).
   1. Sample: resample_rows of the rows that the buffer holds (all if there are fewer), drawn
      without replacement by seed and step. Their losses are measured.
   2. Draw: one row of the sample for each dead feature, without replacement, with a probability
      proportional to its squared distance |y - x_hat|^2.
   3. Revive: the atom becomes the drawn output y, normalised (not centred). The encoder row becomes
      the drawn input minus the center, scaled to 0.2 of the mean norm of the living features'
      encoder rows. The encoder bias and Adam's moments of the feature become 0.
   If no feature is alive, the mean is over all encoder rows; if that is 0, it counts as 1. Rows
   whose y or centred input is 0 give no direction and are never drawn. If there are fewer rows than
   dead features, the remaining features stay as they are. */

/* Rows whose losses are measured at a time: enough for the encoder's tiles, and few enough that a
   stop is noticed within milliseconds. */
enum { DLRNI_SAMPLE_ROWS = 256 };

/* Where rows come from: arrays of the caller, or a sample of a buffer. */
typedef struct dlrni_sample {
    const float *x, *y;  /* [n][d_in], [n][d_out]; NULL: the buffer                     */
    int64_t n;           /* rows                                                        */
    dlrn_buffer *buffer; /* borrowed */
    int64_t *index;      /* [n] which of the buffer's unread rows, ascending; owned     */
    float *bx, *by;      /* [DLRNI_SAMPLE_ROWS][d] copies of some of them; owned        */
} dlrni_sample;

/* Frees what dlrni_sample_buffer allocated, even if it failed. */
DLRNI_INTERNAL void dlrni_sample_free(dlrn_context *ctx, dlrni_sample *r) {
    dlrn_free(ctx, r->index);
    dlrn_free(ctx, r->bx);
    dlrn_free(ctx, r->by);
}

/* Rows start .. start + n of the sample: x [n][d_in], y [n][d_out]. Those of a buffer are copied
   to bx and by, since they may be stored as f16 and are scattered. */
DLRNI_INTERNAL void dlrni_sample_rows(const dlrni_sample *r, const dlrn_trainer *t, int64_t start,
                                      int64_t n, const float **x, const float **y) {
    *x = r->bx;
    *y = r->by;
    if (r->x) {
        /* no copy: the caller's rows are f32 */
        *x = r->x + start * t->dict->d_in;
        *y = r->y + start * t->dict->d_out;
    } else
        dlrni_buffer_copy(r->buffer, r->index + start, n, r->bx, r->by);
}

/* The stream of random numbers of this step's draw. Bit 63 keeps it apart from the streams that
   make the first weights, numbered by feature from 0. A resumed run draws the same rows at the same
   step. */
DLRNI_INTERNAL uint64_t dlrni_draw_stream(const dlrn_trainer *t) {
    return (uint64_t)1 << 63 | (uint64_t)t->step;
}

/* Draws up to `want` of the buffer's unread rows (Knuth, algorithm S): row i is taken with
   probability (still wanted) / (still to come), so that in one pass every subset has the same
   chance. */
DLRNI_INTERNAL dlrn_status dlrni_sample_buffer(dlrn_trainer *t, int64_t want, dlrni_sample *r) {
    /* bit 62: another stream than that of the draw by weight */
    dlrn_rng rng = {t->cfg.seed, dlrni_draw_stream(t) | (uint64_t)1 << 62, 0};
    int64_t held, taken = 0;
    r->buffer = t->buffer;
    DLRNI_TRY(dlrni_buffer_read_ahead(t->buffer, want));
    held = t->buffer->unread; /* after the refill, which may read */
    r->n = dlrni_min(want, held);
    r->index = DLRNI_NEW(t->ctx, int64_t, r->n);
    r->bx = DLRNI_NEW(t->ctx, float, DLRNI_SAMPLE_ROWS * t->dict->d_in);
    r->by = DLRNI_NEW(t->ctx, float, DLRNI_SAMPLE_ROWS * t->dict->d_out);
    if (!r->index || !r->bx || !r->by) return DLRN_ERR_MEMORY;
    for (int64_t i = 0; i < held && taken < r->n; i++)
        if ((int64_t)dlrn_rng_below(&rng, (uint64_t)(held - i)) < r->n - taken)
            /* ascending: the copies go through the buffer once */
            r->index[taken++] = i;
    return DLRN_OK;
}

/* xc [d_in] = what the encoder sees of the row x [d_in]: the same code as in a batch. */
DLRNI_INTERNAL void dlrni_input_row(const dlrn_dictionary *dict, const float *x, float *xc) {
    dlrni_input_job job = {dict, x, dlrni_center_of(dict), xc, 1};
    dlrni_input_block(&job, 0, 0);
}

/* loss [n] = squared distance of each row; 0 where a row gives no direction. xc [d_in] and x_hat
   [n][d_out] are scratch. */
DLRNI_INTERNAL dlrn_status dlrni_row_losses(dlrn_trainer *t, dlrn_encoder *encoder, const float *x,
                                            const float *y, int64_t n, float *xc, float *x_hat,
                                            float *loss) {
    const dlrni_kernel_table *k = t->ctx->k;
    int64_t d = t->dict->d_in, d_out = t->dict->d_out;
    DLRNI_TRY(dlrn_encoder_run(encoder, x, n, NULL, NULL, x_hat));
    for (int64_t i = 0; i < n; i++) {
        float *e = x_hat + i * d_out;
        k->sub(y + i * d_out, e, e, d_out);
        loss[i] = k->dot(e, e, d_out);
        /* one infinite weight would win every draw */
        if (!(loss[i] <= FLT_MAX))
            return dlrn_fail(t->ctx, DLRN_ERR_VALUE,
                             "resampling after step %lld: a row's loss: expected a finite number, "
                             "found %g",
                             (long long)t->step - 1, (double)loss[i]);
        dlrni_input_row(t->dict, x + i * d, xc);
        if (!(k->dot(xc, xc, d) > 0) || !(k->dot(y + i * d_out, y + i * d_out, d_out) > 0))
            loss[i] = 0;
    }
    return DLRN_OK;
}

/* The losses [n] of all rows of a sample, DLRNI_SAMPLE_ROWS at a time: the only long part of a
   resampling, so this is where `stop` is called. */
DLRNI_INTERNAL dlrn_status dlrni_sample_losses(dlrn_trainer *t, const dlrni_sample *r,
                                               float *loss) {
    int64_t d = t->dict->d_in, d_out = t->dict->d_out;
    dlrn_encoder *encoder = NULL;
    float *x_hat = DLRNI_NEW(t->ctx, float, DLRNI_SAMPLE_ROWS *d_out + d);
    dlrn_status s = x_hat ? dlrn_encoder_create(t->dict, &encoder) : DLRN_ERR_MEMORY;
    for (int64_t i = 0; s == DLRN_OK && i < r->n; i += DLRNI_SAMPLE_ROWS) {
        int64_t n = dlrni_min(DLRNI_SAMPLE_ROWS, r->n - i);
        const float *x, *y;
        if (t->ctx->cfg.stop && t->ctx->cfg.stop(t->ctx->cfg.user))
            s = dlrn_fail(t->ctx, DLRN_STOPPED, "a resampling was stopped");
        if (s != DLRN_OK) break;
        dlrni_sample_rows(r, t, i, n, &x, &y);
        s = dlrni_row_losses(t, encoder, x, y, n, x_hat + DLRNI_SAMPLE_ROWS * d_out, x_hat,
                             loss + i);
    }
    dlrn_encoder_destroy(encoder);
    dlrn_free(t->ctx, x_hat);
    return s;
}

/* Draws up to k of n rows without replacement, by weight: row i gets the key -E_i / w_i with E_i
   exponential, and the largest keys win (Efraimidis and Spirakis, 2006). This is one pass and a
   top-k; drawing one row after another would sum the weights k times. weight [n] is overwritten by
   the keys; drawn [k] is in the order of drawing; *count: how many, since rows of weight 0 are
   never drawn. */
DLRNI_INTERNAL dlrn_status dlrni_draw_rows(dlrn_trainer *t, float *weight, int64_t n, int64_t k,
                                           int64_t *drawn, int64_t *count) {
    const uint64_t stream = dlrni_draw_stream(t);
    float max = 0;
    int64_t usable = 0;
    for (int64_t i = 0; i < n; i++) max = weight[i] > max ? weight[i] : max;
    for (int64_t i = 0; i < n; i++) {
        double u = dlrni_open_unit(dlrni_philox_block(t->cfg.seed, stream, (uint64_t)i).lo);
        /* relative to the largest: keys of tiny losses do not overflow */
        double part = weight[i] > 0 ? (double)weight[i] / (double)max : 0;
        double key = part > 0 ? log(u) / part : -HUGE_VAL;
        int use = key >= -(double)FLT_MAX;
        weight[i] = use ? (float)key : -FLT_MAX;
        usable += use;
    }
    *count = dlrni_min(k, usable);
    return dlrn_topk(t->ctx, weight, n, *count, drawn, NULL);
}

/* Length of encoder row j. */
DLRNI_INTERNAL double dlrni_encoder_norm(const dlrn_trainer *t, int64_t j) {
    int64_t d = t->dict->d_in;
    const float *row = t->dict->param[DLRN_ENCODER] + j * d;
    return sqrt((double)t->ctx->k->dot(row, row, d));
}

/* Mean norm of the encoder rows of living features; dead [n_dead] is ascending. A revived feature
   that is much longer than the others would be active on every row. */
DLRNI_INTERNAL double dlrni_living_norm(const dlrn_trainer *t, const int32_t *dead,
                                        int64_t n_dead) {
    int64_t F = t->dict->features, next = 0;
    double sum = 0;
    for (int64_t j = 0; j < F; j++) {
        /* all dead: the mean is over all rows */
        if (n_dead < F && next < n_dead && dead[next] == j)
            next++;
        else
            sum += dlrni_encoder_norm(t, j);
    }
    double mean = sum / (double)(F - next);
    return mean > 0 ? mean : 1.0;
}

/* Sets Adam's moments of feature j to 0: they belong to the old direction. atom_too: also those of
   the atom, which the reference leaves (compat). */
DLRNI_INTERNAL void dlrni_zero_moments(dlrn_trainer *t, int64_t j, int atom_too) {
    for (int role = 0; role < DLRN_ROLE_COUNT; role++) {
        int64_t d = dlrni_role_width(t->dict, role);
        if (!t->m[role] || !dlrni_is_by_feature(role)) continue;
        if (role == DLRN_DECODER && !atom_too) continue;
        memset(t->m[role] + j * d, 0, (size_t)d * sizeof(float));
        memset(t->v[role] + j * d, 0, (size_t)d * sizeof(float));
    }
}

/* Restarts feature j from the row x [d_in], y [d_out]; its encoder row gets the length `norm`. */
DLRNI_INTERNAL void dlrni_revive(dlrn_trainer *t, int64_t j, const float *x, const float *y,
                                 double norm) {
    const dlrni_kernel_table *k = t->ctx->k;
    int64_t d = t->dict->d_in, d_out = t->dict->d_out;
    float *atom = t->dict->param[DLRN_DECODER] + j * d_out;
    float *encoder = t->dict->param[DLRN_ENCODER] + j * d;
    memcpy(atom, y, (size_t)d_out * sizeof *atom); /* y is no part of the weights: no overlap */
    dlrni_normalise(k, atom, d_out);
    dlrni_input_row(t->dict, x, encoder);
    k->scale(encoder, (float)(norm / sqrt((double)k->dot(encoder, encoder, d))), d);
    t->dict->param[DLRN_ENCODER_BIAS][j] = 0;
    /* a threshold that has outgrown all pre-activations would keep it dead */
    if (t->dict->param[DLRN_THRESHOLD])
        t->dict->param[DLRN_THRESHOLD][j] = (float)dlrni_family_named(t->dict->family)->threshold;
    dlrni_zero_moments(t, j, 1);
    t->since_fired[j] = 0; /* it gets a full period */
}

/* Restarts the dead features [n_dead] from rows of the sample. Nothing changes until all losses are
   measured, so that an error leaves the weights as they were. */
DLRNI_INTERNAL dlrn_status dlrni_resample_rows(dlrn_trainer *t, const dlrni_sample *r,
                                               const int32_t *dead, int64_t n_dead,
                                               int64_t *resampled) {
    int64_t count = 0, max = dlrni_min(r->n, n_dead);
    float *loss = DLRNI_NEW(t->ctx, float, r->n);
    int64_t *drawn = DLRNI_NEW(t->ctx, int64_t, max);
    dlrn_status s = loss && drawn ? dlrni_sample_losses(t, r, loss) : DLRN_ERR_MEMORY;
    double norm = 0.2 * dlrni_living_norm(t, dead, n_dead);
    if (s == DLRN_OK) s = dlrni_draw_rows(t, loss, r->n, max, drawn, &count);
    for (int64_t p = 0; s == DLRN_OK && p < count; p++) {
        const float *x, *y;
        /* one row: bx and by have room for more */
        dlrni_sample_rows(r, t, drawn[p], 1, &x, &y);
        dlrni_revive(t, dead[p], x, y, norm);
        ++*resampled;
    }
    dlrn_free(t->ctx, loss);
    dlrn_free(t->ctx, drawn);
    /* even after an error: encoders drop their copies */
    dlrn_dictionary_changed(t->dict);
    return s;
}

/* Lists the features that the counters call dead, in aux.dead, which is free between steps; returns
   how many. */
DLRNI_INTERNAL int64_t dlrni_list_dead(dlrn_trainer *t) {
    int64_t n = 0;
    for (int64_t f = 0; f < t->dict->features; f++)
        if (dlrni_is_dead(t, t->since_fired[f])) t->w.aux.dead[n++] = (int32_t)f;
    return n;
}

/* What the code of March 2024 does: by mistake it writes the new weights to a copy, so that only
   the moments of dead encoder rows change. Returns the number that it reports. */
DLRNI_INTERNAL int64_t dlrni_resample_compat(dlrn_trainer *t) {
    int64_t n_dead = dlrni_list_dead(t);
    for (int64_t p = 0; p < n_dead; p++) dlrni_zero_moments(t, t->w.aux.dead[p], 0);
    return n_dead;
}

/* Revives the features that are dead now: from the caller's rows x [n][d_in], y [n][d_out], or, if
   x is NULL, from a sample of the buffer. */
DLRNI_INTERNAL dlrn_status dlrni_resample(dlrn_trainer *t, const float *x, const float *y,
                                          int64_t n, int64_t *resampled) {
    dlrni_sample rows = {x, y ? y : x, n, NULL, NULL, NULL, NULL};
    *resampled = 0;
    if (t->cfg.compat) {
        *resampled = dlrni_resample_compat(t);
        return DLRN_OK;
    }
    int64_t n_dead = dlrni_list_dead(t);
    if (!n_dead) return DLRN_OK; /* nothing to measure */
    dlrn_status s = x ? DLRN_OK : dlrni_sample_buffer(t, t->cfg.resample_rows, &rows);
    if (s == DLRN_OK) s = dlrni_resample_rows(t, &rows, t->w.aux.dead, n_dead, resampled);
    dlrni_sample_free(t->ctx, &rows);
    return s;
}

/* ------------------------------------------------------------------------------------------ */
// >>trainer
/* The step as a whole, and the object that performs it. For its states see room training. A trainer
   allocates when it is created and in its first steps; later steps allocate next to nothing unless
   a batch grows. */

DLRN_API void dlrn_trainer_destroy(dlrn_trainer *t) {
    if (!t) return; /* so that failed creations need no test */
    dlrni_work *w = &t->w;
    for (int role = 0; role < DLRN_ROLE_COUNT; role++) {
        dlrn_free(t->ctx, t->m[role]);
        dlrn_free(t->ctx, t->v[role]);
        dlrn_free(t->ctx, w->gradient[role]);
    }
    /* every pointer is NULL until it is allocated, so that a half-made trainer can be destroyed */
    void *blocks[] = {t->since_fired, w->silent,  w->center_part, w->center_grad,
                      w->output_grad, w->lowered, w->batch.xc,    w->aux.dead,
                      w->aux.e,       w->aux.row, w->aux.grad,    w->aux.bias_grad};
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++) dlrn_free(t->ctx, blocks[i]);
    dlrni_encoding_free(&w->codes);
    /* NULL if dlrn_train has handed it over */
    dlrn_dictionary_destroy(t->dict);
    dlrn_free(t->ctx, t);
}

/* Moments, and gradients if the recipe clips: the size of the parameter. */
DLRNI_INTERNAL dlrn_status dlrni_trainer_alloc_role(dlrn_trainer *t, int role) {
    int64_t n = dlrni_role_size(t->dict, role);
    if (!t->dict->param[role]) return DLRN_OK; /* the family has no such parameter */
    if (!(t->m[role] = DLRNI_NEW_ZERO(t->ctx, float, n))) return DLRN_ERR_MEMORY;
    if (!(t->v[role] = DLRNI_NEW_ZERO(t->ctx, float, n))) return DLRN_ERR_MEMORY;
    if (!(t->cfg.clip > 0)) return DLRN_OK;
    t->w.gradient[role] = DLRNI_NEW(t->ctx, float, n);
    return t->w.gradient[role] ? DLRN_OK : DLRN_ERR_MEMORY;
}

/* Everything whose size does not depend on the batch: a run that cannot fit fails before its first
   step. */
DLRNI_INTERNAL dlrn_status dlrni_trainer_alloc(dlrn_trainer *t) {
    dlrn_context *ctx = t->ctx;
    dlrni_work *w = &t->w;
    int64_t d = t->dict->d_in, F = t->dict->features;
    /* a shallow copy: it borrows the weights */
    w->view = *t->dict;
    dlrni_encoding_init(&w->codes, &w->view);
    w->budget = DLRNI_LIST_BUDGET;
    /* no batch yet: the first wave holds all groups */
    w->nnz = -1;
    /* whatever fails, dlrn_trainer_destroy frees the rest */
    for (int role = 0; role < DLRN_ROLE_COUNT; role++) DLRNI_TRY(dlrni_trainer_alloc_role(t, role));
    /* 0: every feature gets a full period before it counts as dead */
    t->since_fired = DLRNI_NEW_ZERO(ctx, int64_t, F);
    w->silent = DLRNI_NEW_ZERO(ctx, int64_t, F);
    w->aux.dead = DLRNI_NEW(ctx, int32_t, F);
    /* the gradient, and the sum of one run */
    w->output_grad = DLRNI_NEW(ctx, float, 2 * t->dict->d_out);
    w->center_grad = DLRNI_NEW(ctx, float, d);
    /* a part for each group, so that tasks need no lock */
    w->center_part = DLRNI_NEW(ctx, float, w->codes.groups *d);
    /* only families with thresholds have lowered ones */
    if (t->dict->param[DLRN_THRESHOLD] && !(w->lowered = DLRNI_NEW(ctx, float, F)))
        return DLRN_ERR_MEMORY;
    return t->since_fired && w->silent && w->aux.dead && w->output_grad && w->center_grad &&
                   w->center_part
               ? DLRN_OK
               : DLRN_ERR_MEMORY;
}

/* A formula that differs from its family's, or a parameter that the family lacks, has no gradient
   here. Those of a center and of scale_in do. */
DLRNI_INTERNAL dlrn_status dlrni_check_trainable_formula(dlrn_context *ctx,
                                                         const dlrn_dictionary *init) {
    const dlrni_family *family = dlrni_family_named(init->family);
    const dlrn_formula *f = &init->formula;
    const char *found = f->normalise                          ? "normalised rows"
                        : f->gate != family->formula.gate     ? "another gate"
                        : f->select != family->formula.select ? "another selection"
                        : f->standardise                      ? "standardised ranks"
                        : init->n_parts                       ? "parts"
                                                              : NULL;
    const unsigned optional = DLRNI_BIT(DLRN_INPUT_BIAS) | DLRNI_BIT(DLRN_SKIP);
    for (int role = 0; role < DLRN_ROLE_COUNT && !found; role++)
        if (!(optional & DLRNI_BIT(role)) &&
            !init->param[role] != !(family->roles & DLRNI_BIT(role)))
            found = dlrni_role_table[role].name;
    if (!found) return DLRN_OK;
    return dlrn_fail(ctx, DLRN_ERR_UNSUPPORTED,
                     "dlrn_trainer_create: expected the formula and the parameters of family %s, "
                     "found a dictionary that differs: %s",
                     init->family, found);
}

/* Whether the dictionary `init` can be trained with this configuration. A recipe's formulas hold
   for one family only. */
DLRNI_INTERNAL dlrn_status dlrni_check_trainable(dlrn_context *ctx, const dlrn_train_config *cfg,
                                                 const dlrni_recipe *recipe,
                                                 const dlrn_dictionary *init) {
    if (strcmp(init->family, recipe->info.family))
        /* families differ in their roles: moments and gradients would not fit */
        return dlrn_fail(ctx, DLRN_ERR_UNSUPPORTED,
                         "dlrn_trainer_create: recipe %s: expected a dictionary of family %s, "
                         "found %s",
                         recipe->info.name, recipe->info.family, init->family);
    DLRNI_TRY(dlrni_check_trainable_formula(ctx, init));
    /* dictionaries of other libraries may have either; backward has no gradient for them */
    double scale = init->formula.scale_out;
    if (init->param[DLRN_SKIP] || scale < 1 || scale > 1)
        return dlrn_fail(ctx, DLRN_ERR_UNSUPPORTED,
                         "dlrn_trainer_create: expected a dictionary without a skip and with "
                         "scale_out 1, found %s skip and scale_out %g",
                         init->param[DLRN_SKIP] ? "a" : "no", scale);
    if (init->d_in == cfg->d_in && init->d_out == cfg->d_out && init->features == cfg->features)
        return DLRN_OK;
    return dlrn_fail(ctx, DLRN_ERR_SHAPE,
                     "dlrn_trainer_create: expected a dictionary of %lld x %lld (output %lld), "
                     "found %lld x %lld (output %lld)",
                     (long long)cfg->d_in, (long long)cfg->features, (long long)cfg->d_out,
                     (long long)init->d_in, (long long)init->features, (long long)init->d_out);
}

/* Whether a buffer (or NULL) gives rows of the widths that are trained. Without a target y is x. */
DLRNI_INTERNAL dlrn_status dlrni_check_buffer(dlrn_context *ctx, const dlrn_train_config *cfg,
                                              const dlrn_buffer *buffer) {
    const dlrn_source *src = buffer ? &buffer->source : NULL;
    int64_t d_out = src && src->d_out ? src->d_out : cfg->d_in;
    /* no buffer: the rows come with each call of dlrn_trainer_step_on */
    if (!src || (src->d_in == cfg->d_in && d_out == cfg->d_out)) return DLRN_OK;
    return dlrn_fail(ctx, DLRN_ERR_SHAPE,
                     "dlrn_trainer_create: expected rows of %lld with targets of %lld, found a "
                     "buffer of %lld with %lld",
                     (long long)cfg->d_in, (long long)cfg->d_out, (long long)src->d_in,
                     (long long)d_out);
}

/* The dictionary that training starts from: a copy of `init`, or random weights by the seed. */
DLRNI_INTERNAL dlrn_status dlrni_first_weights(dlrn_context *ctx, const dlrn_train_config *cfg,
                                               const dlrni_recipe *recipe,
                                               const dlrn_dictionary *init, dlrn_dictionary **out) {
    dlrn_dictionary_desc desc;
    memset(&desc, 0, sizeof desc); /* zeroes fields that later versions add */
    desc.family = recipe->info.family;
    desc.d_in = cfg->d_in;
    desc.d_out = cfg->d_out;
    desc.features = cfg->features;
    desc.k = cfg->k;
    desc.seed = cfg->seed;
    if (!init) return dlrn_dictionary_create(ctx, &desc, out);
    DLRNI_TRY(dlrni_dictionary_copy(ctx, init, out));
    /* the configuration's k replaces the dictionary's */
    if (!dlrni_selects(*out)) return DLRN_OK;
    (*out)->formula.k = cfg->k;
    /* dlrn_dictionary_create checks it for a new one */
    dlrn_status s = dlrni_check_k(ctx, cfg->k, cfg->features);
    if (s == DLRN_OK) return s;
    dlrn_dictionary_destroy(*out);
    *out = NULL;
    return s;
}

/* Creates a trainer around *dict, which it then owns: *dict becomes NULL. If it fails before that,
   *dict stays the caller's. Creating and resuming both end here, so that both check. */
DLRNI_INTERNAL dlrn_status dlrni_trainer_new(dlrn_context *ctx, const dlrn_train_config *config,
                                             dlrn_dictionary **dict, dlrn_buffer *buffer,
                                             dlrn_trainer **out) {
    dlrn_train_config cfg = *config;
    const dlrni_recipe *recipe;
    DLRNI_TRY(dlrni_settle_config(ctx, &cfg, &recipe));
    DLRNI_TRY(dlrni_check_trainable(ctx, &cfg, recipe, *dict));
    DLRNI_TRY(dlrni_check_buffer(ctx, &cfg, buffer));
    dlrn_trainer *t = DLRNI_NEW_ZERO(ctx, dlrn_trainer, 1);
    if (!t) return DLRN_ERR_MEMORY;
    t->ctx = ctx;
    t->cfg = cfg;
    t->recipe = recipe;
    t->buffer = buffer; /* borrowed: a second run may follow on the same buffer */
    t->steering.factor = 1;
    t->dict = *dict;
    *dict = NULL;
    dlrn_status s = dlrni_trainer_alloc(t);
    if (s == DLRN_OK)
        *out = t;
    else
        dlrn_trainer_destroy(t);
    return s;
}

DLRN_API dlrn_status dlrn_trainer_create(dlrn_context *ctx, const dlrn_train_config *config,
                                         const dlrn_dictionary *init, dlrn_buffer *buffer,
                                         dlrn_trainer **out) {
    dlrn_train_config cfg = *config;
    const dlrni_recipe *recipe;
    dlrn_dictionary *dict = NULL;
    *out = NULL; /* a caller may destroy it in any case */
    DLRNI_TRY(dlrni_settle_config(ctx, &cfg, &recipe));
    /* checked again later; here it avoids copying a large dictionary for nothing */
    if (init) DLRNI_TRY(dlrni_check_trainable(ctx, &cfg, recipe, init));
    DLRNI_TRY(dlrni_check_buffer(ctx, &cfg, buffer));
    DLRNI_TRY(dlrni_first_weights(ctx, &cfg, recipe, init, &dict));
    /* a family that does not select has k 0 */
    cfg.k = dict->formula.k;
    dlrn_status s = dlrni_trainer_new(ctx, &cfg, &dict, buffer, out);
    /* NULL unless dlrni_trainer_new failed before it took it */
    dlrn_dictionary_destroy(dict);
    return s;
}

/* ---- The step ----
   The order matters for the counters: ghosts use those before the step; AuxK, the statistics and
   resampling those after it. */

/* The dictionary as the lists see it. With a bandwidth, they reach half of it below each threshold,
   even below 0: the threshold's gradient is estimated from those entries. */
DLRNI_INTERNAL void dlrni_update_view(dlrn_trainer *t) {
    dlrni_work *w = &t->w;
    w->view = *t->dict;
    if (!w->lowered) return; /* no thresholds */
    for (int64_t f = 0; f < t->dict->features; f++)
        /* at every step, since thresholds move; F subtractions */
        w->lowered[f] = t->dict->param[DLRN_THRESHOLD][f] - (float)(t->cfg.bandwidth / 2);
    w->view.param[DLRN_THRESHOLD] = w->lowered;
    /* lists usually end at 0 */
    w->view.formula.gate = DLRN_GATE_JUMP_SIGNED;
}

/* The losses of a batch at the present weights. Changes only the work space, so that a failed step
   can be repeated. */
DLRNI_INTERNAL dlrn_status dlrni_forward_loss(dlrn_trainer *t, const float *x, const float *y,
                                              int64_t n, dlrn_train_stats *stats) {
    dlrni_work *w = &t->w;
    memset(stats, 0, sizeof *stats);
    DLRNI_TRY(dlrni_check_batch(t, x, y, n));
    /* first: if memory runs out here, nothing is lost */
    DLRNI_TRY(dlrni_batch_room(t, n));
    w->batch.y = y ? y : x;
    dlrni_update_view(t);
    /* once for all waves, and kept for the gradients */
    dlrni_input(t->dict, x, n, w->batch.xc);
    DLRNI_TRY(dlrni_reconstruct(t));
    stats->step = t->step; /* counted from 0 */
    stats->rows = n;
    /* for the update, and for the caller */
    stats->lr = dlrni_learning_rate(&t->cfg, t->step);
    stats->reconstruction_loss = dlrni_mean(w->batch.error, n);
    stats->loss = stats->reconstruction_loss;
    /* active features of a mean row */
    stats->l0 = (double)w->nnz / (double)n;
    /* after l0, from which dl-jump_relu's penalty is computed */
    if (t->recipe->penalty) {
        stats->penalty = dlrni_penalty_weight(t);
        DLRNI_TRY(t->recipe->penalty(t, stats));
    }
    /* for the caller only: the auxiliary loss has its own rule */
    stats->dead = dlrni_count_dead(t);
    /* last: it is scaled by the reconstruction loss */
    DLRNI_TRY(dlrni_aux_forward(t, stats));
    /* before the update: NaN or infinity would spread to every weight */
    if (fabs(stats->loss) <= DBL_MAX) return DLRN_OK;
    return dlrn_fail(t->ctx, DLRN_ERR_VALUE,
                     "step %lld: the loss is not finite; the weights are those before it",
                     (long long)t->step);
}

/* Commits the counters of the batch, only now: a failed step must not count. */
DLRNI_INTERNAL void dlrni_count_batch(dlrn_trainer *t) {
    memcpy(t->since_fired, t->w.silent, (size_t)t->dict->features * sizeof *t->since_fired);
}

/* The losses of the step's batch, after the recipe's preparation in step 0. If either fails, the
   output bias is restored: a failed step changes nothing. */
DLRNI_INTERNAL dlrn_status dlrni_stage_loss(dlrn_trainer *t, dlrn_train_stats *stats) {
    /* gradients come later: their room is free until then */
    float *bias = t->dict->param[DLRN_OUTPUT_BIAS], *before = t->w.output_grad;
    const size_t size = (size_t)t->dict->d_out * sizeof *bias;
    if (t->step > 0 || !t->recipe->first_batch)
        return dlrni_forward_loss(t, t->x, t->y, t->n, stats);
    memcpy(before, bias, size);
    dlrn_status s = t->recipe->first_batch(t, t->x, t->y, t->n);
    if (s == DLRN_OK) s = dlrni_forward_loss(t, t->x, t->y, t->n, stats);
    if (s == DLRN_OK) return s;
    memcpy(bias, before, size);
    dlrn_dictionary_changed(t->dict);
    return s;
}

/* TAKEN -> UPDATING -> RESAMPLING: loss, gradients, update, counters. */
DLRNI_INTERNAL dlrn_status dlrni_stage_update(dlrn_trainer *t) {
    /* on the stack: t->last keeps the figures of the last complete step */
    dlrn_train_stats stats;
    DLRNI_TRY(dlrni_stage_loss(t, &stats));
    /* Adam's corrections count updates from 1, the schedules steps from 0 */
    dlrni_adam adam = dlrni_adam_at(&t->cfg, stats.lr, t->step + 1);
    if (t->cfg.clip > 0)
        DLRNI_TRY(dlrni_backward_clipped(t, &adam));
    else
        DLRNI_TRY(dlrni_backward(t, &adam, NULL));
    dlrni_count_batch(t);
    /* t->step is still the number of this step */
    if (t->recipe->after_step) t->recipe->after_step(t);
    t->last = stats;
    /* only now: error texts before this name this step */
    t->step++;
    t->stage = DLRNI_RESAMPLING;
    return DLRN_OK;
}

/* Whether something that happens every `period` steps is due after `step`; period -1: never. */
DLRNI_INTERNAL int dlrni_is_due(int64_t step, int64_t period) {
    return period > 0 && step % period == 0;
}

/* The resampling that is due after a step: from the buffer, or, without one, from the rows of the
   step. A resumed step has no rows; without a buffer it revives nothing. */
DLRNI_INTERNAL dlrn_status dlrni_resample_step(dlrn_trainer *t) {
    int64_t *resampled = &t->last.resampled;
    if (t->buffer || t->cfg.compat) return dlrni_resample(t, NULL, NULL, 0, resampled);
    return t->n ? dlrni_resample(t, t->x, t->y, t->n, resampled) : DLRN_OK;
}

/* RESAMPLING -> LOGGING. After step 0 there is no history of silence; only the reference resamples
   there. */
DLRNI_INTERNAL dlrn_status dlrni_stage_resampling(dlrn_trainer *t) {
    const dlrn_train_config *cfg = &t->cfg;
    int64_t step = t->step - 1; /* the step just made */
    if (dlrni_is_due(step, cfg->resample_steps) && (step > 0 || cfg->compat))
        DLRNI_TRY(dlrni_resample_step(t));
    t->stage = DLRNI_LOGGING;
    return DLRN_OK;
}

/* LOGGING -> READY. With compat: the reference logs by a second pass over the batch with the new
   weights, and that pass counts the batch again. Without it the run would find different features
   dead. */
DLRNI_INTERNAL dlrn_status dlrni_stage_logging(dlrn_trainer *t) {
    /* a resumed step has no rows in memory: it is not logged */
    if (t->cfg.compat && t->n && dlrni_is_due(t->step - 1, t->cfg.log_steps)) {
        dlrn_train_stats now;
        DLRNI_TRY(dlrni_forward_loss(t, t->x, t->y, t->n, &now));
        dlrni_count_batch(t);
        /* figures of the step, not of the second pass */
        now.step = t->last.step;
        now.lr = t->last.lr;
        now.resampled = t->last.resampled;
        t->last = now; /* the caller gets the figures that the reference logs */
    }
    t->stage = DLRNI_READY;
    return DLRN_OK;
}

/* The state after an error. A batch of the buffer is kept if memory ran out, since the buffer has
   given it away; a caller still has its own. A resampling is repeated if memory ran out or a
   callback stopped it, a log only if memory ran out. After any other error they are given up: the
   same rows would give the same error, and the trainer, and every checkpoint of it, could never go
   on. */
DLRNI_INTERNAL dlrni_stage dlrni_stage_after(const dlrn_trainer *t, dlrn_status s) {
    /* the only error that may go away on a retry with the same rows */
    int again = s == DLRN_ERR_MEMORY;
    if (t->stage == DLRNI_UPDATING) return DLRNI_BROKEN; /* some weights have moved */
    if (t->stage == DLRNI_TAKEN && !(again && t->from_buffer)) return DLRNI_READY;
    if (t->stage == DLRNI_RESAMPLING && !again && s != DLRN_STOPPED) return DLRNI_READY;
    if (t->stage == DLRNI_LOGGING && !again) return DLRNI_READY;
    return t->stage;
}

/* Runs the remaining stages of the step. Each sets the next one, so that a later call continues
   where this one ended. */
DLRNI_INTERNAL dlrn_status dlrni_go_on(dlrn_trainer *t, dlrn_train_stats *stats) {
    dlrn_status s = DLRN_OK;
    if (t->stage == DLRNI_TAKEN) s = dlrni_stage_update(t);
    if (s == DLRN_OK && t->stage == DLRNI_RESAMPLING) s = dlrni_stage_resampling(t);
    if (s == DLRN_OK && t->stage == DLRNI_LOGGING) s = dlrni_stage_logging(t);
    if (s != DLRN_OK) t->stage = dlrni_stage_after(t, s);
    if (t->stage == DLRNI_READY) t->n = 0; /* rows of the caller are not kept */
    /* only when the step is complete */
    if (s == DLRN_OK && stats) *stats = t->last;
    return s;
}

/* Refuses rows while another step is unfinished: silently ignoring them would lose a batch. */
DLRNI_INTERNAL dlrn_status dlrni_refuse_rows(const dlrn_trainer *t) {
    return dlrn_fail(t->ctx, DLRN_ERR_ARGUMENT,
                     "step %lld is not finished: expected %s, found other rows",
                     (long long)dlrni_unfinished_step(t), dlrni_finishing_call(t));
}

DLRN_API dlrn_status dlrn_trainer_step_on(dlrn_trainer *t, const float *x, const float *y,
                                          int64_t n, dlrn_train_stats *stats) {
    DLRNI_TRY(dlrni_check_broken(t));
    if (t->stage != DLRNI_READY) /* the same pointers: the same step again */
        return !t->from_buffer && x == t->x && y == t->y && n == t->n ? dlrni_go_on(t, stats)
                                                                      : dlrni_refuse_rows(t);
    t->x = x;
    t->y = y;
    t->n = n;
    t->from_buffer = 0; /* after an error the caller must pass the rows again */
    t->stage = DLRNI_TAKEN;
    return dlrni_go_on(t, stats);
}

DLRN_API dlrn_status dlrn_trainer_step(dlrn_trainer *t, dlrn_train_stats *stats) {
    DLRNI_TRY(dlrni_check_broken(t));
    /* without one, rows come through dlrn_trainer_step_on */
    DLRNI_REQUIRE(t->ctx, t->buffer, "this trainer was made without a buffer");
    if (t->stage == DLRNI_READY) {
        /* an unfinished last step does not come here, so it is still completed */
        if (t->cfg.steps >= 0 && t->step >= t->cfg.steps) return DLRN_END;
        /* if the source fails, the trainer stays READY */
        DLRNI_TRY(dlrn_buffer_next(t->buffer, &t->x, &t->y, &t->n));
        t->from_buffer = 1;
        t->stage = DLRNI_TAKEN;
    }
    return t->from_buffer ? dlrni_go_on(t, stats) : dlrni_refuse_rows(t);
}

/* The gradients of the loss at the present weights, for the tests. out [DLRN_ROLE_COUNT]: each NULL
   or shaped like its parameter; the decoder's before the part along each atom is removed. Changes
   no weight. */
DLRNI_INTERNAL dlrn_status dlrni_trainer_gradients(dlrn_trainer *t, const float *x, const float *y,
                                                   int64_t n, float *const *out) {
    dlrn_train_stats stats;
    DLRNI_TRY(dlrni_forward_loss(t, x, y, n, &stats));
    /* without adam: the weights, moments and counters stay */
    return dlrni_backward(t, NULL, out);
}

DLRN_API dlrn_trainer_info dlrn_trainer_describe(const dlrn_trainer *t) {
    dlrn_trainer_info s;
    s.config = &t->cfg;
    s.dictionary = t->dict;
    s.steps = t->step;
    s.since_fired = t->since_fired;
    s.broken = t->stage == DLRNI_BROKEN;
    /* the pointers, not the moments */
    memcpy(s.m, t->m, sizeof s.m);
    memcpy(s.v, t->v, sizeof s.v);
    return s;
}

/* ---- The whole run ----
   The loop consists of public calls: a program that needs another loop writes its own. */

/* Steps until one of them, or the callback, returns something other than DLRN_OK; DLRN_END is the
   usual end. */
DLRNI_INTERNAL dlrn_status dlrni_run(dlrn_trainer *t, dlrn_progress progress, void *user) {
    for (;;) {
        dlrn_train_stats stats;
        DLRNI_TRY(dlrn_trainer_step(t, &stats));
        if (progress) DLRNI_TRY(progress(user, t, &stats));
    }
}

DLRN_API dlrn_status dlrn_train(dlrn_context *ctx, const dlrn_train_config *config,
                                const dlrn_source *source, dlrn_progress progress, void *user,
                                dlrn_dictionary **out) {
    dlrn_train_config cfg = *config;
    dlrn_buffer *buffer;
    dlrn_trainer *t = NULL;
    *out = NULL;
    DLRNI_REQUIRE(ctx, source, "source must not be NULL");
    /* the widths are the source's */
    cfg.d_in = source->d_in;
    cfg.d_out = source->d_out;
    DLRNI_TRY(dlrn_buffer_create(ctx, &cfg.buffer, source, DLRN_BORROWED, &buffer));
    dlrn_status s = dlrn_trainer_create(ctx, &cfg, NULL, buffer, &t);
    if (s == DLRN_OK) s = dlrni_run(t, progress, user);
    /* all steps, or all rows */
    if (s == DLRN_END) s = DLRN_OK;
    /* a run that was stopped has a usable dictionary */
    if (s == DLRN_OK || (s == DLRN_STOPPED && t)) {
        /* no copy, which would double the memory */
        *out = t->dict; /* handed over */
        t->dict = NULL;
    }
    dlrn_trainer_destroy(t);
    dlrn_buffer_destroy(buffer);
    return s;
}

/* ------------------------------------------------------------------------------------------ */
// >>checkpoint
DLRNI_COLD_BEGIN
/* A trainer in one archive. Tensors, bit for bit: parameters (shaped as in memory), moments,
   counters, the buffer's unread rows. Metadata: configuration, formula, step, the buffer's numbers.
   A resumed run makes the same steps, bit for bit, as one that was never interrupted. The random
   numbers of a resampling are a function of seed and step, so no other generator is saved.

   Files of version 0.1 lack "formula" and the settings that came later. For them the family's
   formula and the recipe's defaults hold. */

/* changes only if older versions would misread a file */
#define DLRNI_CHECKPOINT_FORMAT "dictlearn checkpoint 1"
/* three for each role, the counters, the buffer's x and y */
enum { DLRNI_CHECKPOINT_TENSORS = 3 * DLRN_ROLE_COUNT + 3 };

/* The f32 tensors of a trainer: parameter, first and second moments of each role. Saving and
   resuming share this list, so that they cannot disagree. */
typedef struct dlrni_checkpoint_floats {
    /* what a file must hold: name, type, shape */
    dlrn_tensor_out tensor[3 * DLRN_ROLE_COUNT];
    float *data[3 * DLRN_ROLE_COUNT];   /* the same memory, not const: resuming fills it */
    char name[3 * DLRN_ROLE_COUNT][32]; /* the tensors point to these */
    int count;                          /* of the roles that the dictionary has */
} dlrni_checkpoint_floats;

/* Fills the list. Names are the role's, with the prefix m. or v. for moments. */
DLRNI_INTERNAL void dlrni_checkpoint_list(const dlrn_trainer *t, dlrni_checkpoint_floats *out) {
    static const char *const prefix[3] = {"", "m.", "v."};
    memset(out, 0, sizeof *out);
    for (int role = 0; role < DLRN_ROLE_COUNT; role++) {
        float *data[3] = {t->dict->param[role], t->m[role], t->v[role]};
        /* no parameter, no moments */
        for (int part = 0; part < 3 && data[0]; part++) {
            int i = out->count++;
            dlrni_print(out->name[i], sizeof out->name[i], "%s%s", prefix[part],
                        dlrni_role_table[role].name);
            out->data[i] = data[part];
            out->tensor[i].name = out->name[i];
            out->tensor[i].data = data[part];
            out->tensor[i].dtype = DLRN_F32;
            out->tensor[i].ndim = dlrni_role_table[role].cols == '1' ? 1 : 2;
            out->tensor[i].shape[0] = dlrni_extent(t->dict, dlrni_role_table[role].rows);
            if (out->tensor[i].ndim == 2)
                out->tensor[i].shape[1] = dlrni_extent(t->dict, dlrni_role_table[role].cols);
        }
    }
}

/* The counters. Their unit is in their name (steps, or rows if the recipe counts rows), so that no
   file is read in the wrong unit. */
DLRNI_INTERNAL dlrn_tensor_out dlrni_checkpoint_counters(const dlrn_trainer *t) {
    dlrn_tensor_out out;
    memset(&out, 0, sizeof out);
    out.name = t->recipe->counts_rows ? "rows_since_fired" : "steps_since_fired";
    out.dtype = DLRN_I64; /* a run may see more than 2^31 rows */
    out.ndim = 1;
    out.shape[0] = t->cfg.features;
    out.data = t->since_fired; /* borrowed */
    return out;
}

/* The buffer's unread rows x (which 0) or y (1), in the stored type: half the size where they are
   f16 or bf16. */
DLRNI_INTERNAL dlrn_tensor_out dlrni_checkpoint_rows(const dlrn_buffer *b, int which,
                                                     const dlrni_buffer_state *state) {
    dlrn_tensor_out out;
    memset(&out, 0, sizeof out);
    out.name = which ? "buffer.y" : "buffer.x";
    out.dtype = state->store; /* as stored: nothing is rounded again */
    out.ndim = 2;
    out.shape[0] = state->rows;
    /* a file may hold y for a buffer without a target: the check of the state reports that */
    out.shape[1] = which && b->d[1] ? b->d[1] : b->d[0];
    out.data = state->rows_of[which];
    return out;
}

/* The numbers of a buffer's state; its rows are tensors. */
DLRNI_INTERNAL void dlrni_put_buffer_state(dlrni_json_writer *w, const dlrni_buffer_state *b) {
    dlrni_json_open(w, NULL, "{");
    dlrni_json_put_signed(w, "rows", b->rows); /* sizes the tensors when they are read */
    dlrni_json_put_text(w, "store", dlrni_type_name(b->store)); /* must be the resuming buffer's */
    /* 64-bit integers, written as such: a double would lose bits */
    dlrni_json_put_unsigned(w, "seed", b->rng.seed);
    dlrni_json_put_unsigned(w, "stream", b->rng.stream);
    dlrni_json_put_unsigned(w, "counter", b->rng.counter);
    dlrni_json_put_bool(w, "has_position", b->has_position);
    dlrni_json_put_unsigned(w, "position", b->source_position); /* 0 without a position */
    dlrni_json_put_bool(w, "ended", b->source_ended); /* matters for sources without a position */
    /* an interrupted refill must end at the same row */
    dlrni_json_put_bool(w, "filling", b->filling);
    /* so that errors name the right row */
    dlrni_json_put_signed(w, "rows_read", b->rows_read);
    dlrni_json_close(w, "}");
}

/* The figures of a step whose resampling is not done, under the names that version 0.1 gave them: a
   program that resumes there still gets the statistics of the whole step. */
#define DLRNI_STATS_INTEGERS(X) X(step, "step") X(rows, "rows") X(dead, "dead")
#define DLRNI_STATS_REALS(X)                                                                       \
    X(loss, "loss")                                                                                \
    X(reconstruction_loss, "mse_loss")                                                             \
    X(sparsity_loss, "sparsity_loss")                                                              \
    X(auxiliary_loss, "ghost_loss")                                                                \
    X(l0, "l0")                                                                                    \
    X(lr, "lr")

/* The state of the steered penalty. */
DLRNI_INTERNAL void dlrni_put_steering(dlrni_json_writer *w, const dlrn_trainer *t) {
    dlrni_json_open(w, NULL, "{");
    dlrni_json_put_real(w, "factor", t->steering.factor);
    dlrni_json_put_real(w, "off", t->steering.off);
    dlrni_json_close(w, "}");
}

/* Kept for the step that the resumed trainer finishes. */
DLRNI_INTERNAL void dlrni_put_stats(dlrni_json_writer *w, const dlrn_train_stats *stats) {
    dlrni_json_open(w, NULL, "{");
#define DLRNI_PUT_INTEGER(field, key) dlrni_json_put_signed(w, key, stats->field);
#define DLRNI_PUT_REAL(field, key) dlrni_json_put_real(w, key, stats->field);
    DLRNI_STATS_INTEGERS(DLRNI_PUT_INTEGER)
    DLRNI_STATS_REALS(DLRNI_PUT_REAL)
#undef DLRNI_PUT_INTEGER
#undef DLRNI_PUT_REAL
    dlrni_json_put_real(w, "sparsity_penalty", stats->penalty);
    /* read by version 0.1 */
    dlrni_json_put_signed(w, "resampled", 0);
    dlrni_json_close(w, "}");
}

/* A formula's numbers, one list for writing and reading: X(field), integers and reals. */
#define DLRNI_FORMULA_INTEGERS(X) X(center) X(gate) X(select) X(k)
#define DLRNI_FORMULA_REALS(X) X(threshold) X(scale_in) X(scale_out)

/* Enumerations as their numbers, which therefore never change. */
DLRNI_INTERNAL void dlrni_put_formula(dlrni_json_writer *w, const dlrn_dictionary *dict) {
    dlrni_json_open(w, NULL, "{");
#define DLRNI_PUT_INTEGER(field) dlrni_json_put_signed(w, #field, (int64_t)dict->formula.field);
#define DLRNI_PUT_REAL(field) dlrni_json_put_real(w, #field, dict->formula.field);
    DLRNI_FORMULA_REALS(DLRNI_PUT_REAL)
    DLRNI_FORMULA_INTEGERS(DLRNI_PUT_INTEGER)
#undef DLRNI_PUT_INTEGER
#undef DLRNI_PUT_REAL
    /* for readers of the file; a resume takes the configuration's */
    dlrni_json_put_signed(w, "d_out", dict->d_out);
    dlrni_json_close(w, "}");
}

/* Whether a trainer can be saved now. A checkpoint has no place for the rows of an unfinished step.
   A resampling takes its rows from the buffer, so it can be saved. */
DLRNI_INTERNAL dlrn_status dlrni_check_saving(const dlrn_trainer *t, const char *path) {
    if (!dlrni_has_suffix(path, ".safetensors")) /* other forms have no metadata */
        return dlrn_fail(t->ctx, DLRN_ERR_ARGUMENT, "%s: expected a name ending in .safetensors",
                         path);
    DLRNI_TRY(dlrni_check_broken(t));
    /* a checkpoint must be resumable: no infinite weights */
    DLRNI_TRY(dlrni_check_savable(t->dict, path));
    if (t->stage == DLRNI_READY || t->stage == DLRNI_RESAMPLING) return DLRN_OK;
    return dlrn_fail(t->ctx, DLRN_ERR_ARGUMENT,
                     "%s: not written: step %lld is not finished: expected %s first", path,
                     (long long)dlrni_unfinished_step(t), dlrni_finishing_call(t));
}

/* The texts of a checkpoint's metadata. Their lengths are bounded: numbers and short words only. */
typedef struct dlrni_checkpoint_texts {
    char config[2048];    /* the settings */
    char formula[512];    /* room for every number at full precision */
    char step[32];        /* an int64 in decimal */
    char buffer[512];     /* without its rows */
    char unfinished[512]; /* figures of the last step */
    char steering[128];   /* of the penalty */
} dlrni_checkpoint_texts;

/* Gathers tensors and metadata, and writes them; state NULL: without a buffer. The tensors point to
   the trainer's memory: nothing is copied. An empty buffer has no tensors, so that there
   is less to check. The configuration is written as settled, so that a later version's defaults
   change nothing. The archive appears as a whole or not at all: a crash during the write leaves the
   last checkpoint.
   `metadata`: up to 8 pairs of key and text, closed by NULL. Six are always there. "buffer":
   only for a trainer with a buffer. "unfinished": the step is done, but its resampling is not;
   nothing else records that. */
DLRNI_INTERNAL dlrn_status dlrni_write_checkpoint(const dlrn_trainer *t, const char *path,
                                                  const dlrni_buffer_state *state) {
    dlrni_checkpoint_floats list;
    dlrni_checkpoint_texts at;
    dlrn_tensor_out tensors[DLRNI_CHECKPOINT_TENSORS];
    dlrni_json_writer formula = dlrni_json_to_text(at.formula, sizeof at.formula);
    dlrni_json_writer buffer = dlrni_json_to_text(at.buffer, sizeof at.buffer);
    dlrni_json_writer unfinished = dlrni_json_to_text(at.unfinished, sizeof at.unfinished);
    dlrni_json_writer steering = dlrni_json_to_text(at.steering, sizeof at.steering);
    const char *metadata[19] = {"format",  DLRNI_CHECKPOINT_FORMAT,
                                "made_by", "dictlearn " DLRN_VERSION_STRING,
                                "family",  t->dict->family,
                                "formula", at.formula,
                                "config",  at.config,
                                "step",    at.step};
    int pairs = 12, count; /* pairs: entries taken so far */
    dlrni_checkpoint_list(t, &list);
    memcpy(tensors, list.tensor, sizeof list.tensor);
    count = list.count;
    tensors[count++] = dlrni_checkpoint_counters(t);
    for (int k = 0; state && state->rows && k < 2 && state->rows_of[k]; k++)
        tensors[count++] = dlrni_checkpoint_rows(t->buffer, k, state);
    dlrn_train_config_json(&t->cfg, at.config, sizeof at.config);
    dlrni_put_formula(&formula, t->dict);
    dlrni_put_stats(&unfinished, &t->last);
    dlrni_print(at.step, sizeof at.step, "%lld", (long long)t->step);
    if (state) {
        dlrni_put_buffer_state(&buffer, state);
        metadata[pairs++] = "buffer";
        metadata[pairs++] = at.buffer;
    }
    if (t->stage == DLRNI_RESAMPLING) {
        metadata[pairs++] = "unfinished";
        metadata[pairs++] = at.unfinished;
    }
    if (t->cfg.target_l0 > 0) {
        dlrni_put_steering(&steering, t);
        metadata[pairs++] = "steering";
        metadata[pairs++] = at.steering;
    }
    return dlrn_archive_write(t->ctx, path, tensors, count, metadata);
}

DLRN_API dlrn_status dlrn_trainer_save(const dlrn_trainer *t, const char *path) {
    dlrni_buffer_state state;
    DLRNI_TRY(dlrni_check_saving(t, path));
    /* rows of step_on are the caller's */
    if (!t->buffer) return dlrni_write_checkpoint(t, path, NULL);
    /* a copy in logical order: takes as much memory again as the unread rows */
    dlrn_status s = dlrni_buffer_export(t->buffer, &state);
    /* the state is freed either way */
    if (s == DLRN_OK) s = dlrni_write_checkpoint(t, path, &state);
    dlrni_buffer_state_free(t->ctx, &state);
    return s;
}

/* ---- Reading ----
   A checkpoint may be damaged, truncated or hostile, like any file. Everything is checked before it
   is used, and sizes before memory is allocated. */

/* The error for an entry that is missing or has the wrong type: one text, since for a reader both
   mean that the file is not a checkpoint. */
DLRNI_INTERNAL dlrn_status dlrni_checkpoint_lacks(dlrn_archive *a, dlrn_context *ctx,
                                                  const char *what) {
    return dlrn_fail(ctx, DLRN_ERR_FORMAT,
                     "%s: not a checkpoint of a trainer: \"%s\" is missing or malformed", a->path,
                     what);
}

/* Adds the path to an error of a function that does not know the file. `error` may be the context's
   own text, so it is copied first. */
DLRNI_INTERNAL dlrn_status dlrni_fail_in(dlrn_context *ctx, dlrn_status s, const char *path,
                                         const char *where, const char *error) {
    char text[512];
    dlrni_print(text, sizeof text, "%.500s", error);
    return dlrn_fail(ctx, s, "%s: not a checkpoint for this trainer: %s: %s", path, where, text);
}

/* Which of two words is the value of `key` in a JSON object: 0, 1, or -1 for neither. */
DLRNI_INTERNAL int dlrni_which_word(const dlrn_json *json, const char *key, const char *first,
                                    const char *second) {
    const char *word = dlrn_json_text(json, key, "");
    return !strcmp(word, first) ? 0 : !strcmp(word, second) ? 1 : -1;
}

/* The settings that are numbers. Those of version 0.1 must be there: a default in place of a lost
   one would silently change the run. A later one may be missing, from a file that is older than it;
   the recipe's default, which *cfg holds already, then applies. */
DLRNI_INTERNAL dlrn_status dlrni_read_settings(dlrn_context *ctx, dlrn_archive *a,
                                               const dlrn_json *json, dlrn_train_config *cfg) {
#define DLRNI_READ_INTEGER(field, key, condition, wanted)                                          \
    if (!dlrni_json_signed(json, key, &cfg->field))                                                \
        return dlrni_checkpoint_lacks(a, ctx, "config." key);
#define DLRNI_READ_REAL(field, key, condition, wanted)                                             \
    if (!dlrni_json_real(json, key, &cfg->field))                                                  \
        return dlrni_checkpoint_lacks(a, ctx, "config." key);
#define DLRNI_READ_NEWER_INTEGER(field, key, condition, wanted)                                    \
    if (dlrn_json_get(json, key)) DLRNI_READ_INTEGER(field, key, condition, wanted)
#define DLRNI_READ_NEWER_REAL(field, key, condition, wanted)                                       \
    if (dlrn_json_get(json, key)) DLRNI_READ_REAL(field, key, condition, wanted)
    DLRNI_CONFIG_INTEGERS(DLRNI_READ_INTEGER)
    DLRNI_CONFIG_REALS(DLRNI_READ_REAL)
    DLRNI_CONFIG_MORE_INTEGERS(DLRNI_READ_NEWER_INTEGER)
    DLRNI_CONFIG_MORE_REALS(DLRNI_READ_NEWER_REAL)
#undef DLRNI_READ_INTEGER
#undef DLRNI_READ_REAL
#undef DLRNI_READ_NEWER_INTEGER
#undef DLRNI_READ_NEWER_REAL
    return DLRN_OK;
}

/* The other settings: words, a boolean, and the seed, which needs all 64 bits. */
DLRNI_INTERNAL dlrn_status dlrni_read_choices(dlrn_context *ctx, dlrn_archive *a,
                                              const dlrn_json *json, dlrn_train_config *cfg) {
    const dlrn_json *compat = dlrn_json_get(json, "compat");
    int loss = dlrni_which_word(json, "loss", "norm", "squared");
    int sparsity = dlrni_which_word(json, "sparsity", "l1", "entropy");
    if (loss < 0) return dlrni_checkpoint_lacks(a, ctx, "config.loss");
    if (sparsity < 0) return dlrni_checkpoint_lacks(a, ctx, "config.sparsity");
    if (!compat || compat->type != DLRN_JSON_BOOL)
        return dlrni_checkpoint_lacks(a, ctx, "config.compat");
    if (!dlrni_json_unsigned(json, "seed", &cfg->seed))
        return dlrni_checkpoint_lacks(a, ctx, "config.seed");
    cfg->loss = loss ? DLRN_LOSS_SQUARED : DLRN_LOSS_NORM;
    cfg->sparsity = sparsity ? DLRN_SPARSITY_ENTROPY : DLRN_SPARSITY_L1;
    cfg->compat = compat->number > 0 ? DLRN_ON : DLRN_OFF; /* booleans are 0 and 1 there */
    return DLRN_OK;
}

/* All settings. One out of range is refused as from a caller (dlrni_settle_config), but the error
   names the file. */
DLRNI_INTERNAL dlrn_status dlrni_read_config(dlrn_context *ctx, dlrn_archive *a,
                                             const dlrn_json *json, dlrn_train_config *cfg) {
    const char *name = dlrn_json_text(json, "recipe", NULL); /* version 0.1 had only one */
    const dlrni_recipe *recipe = dlrni_recipe_named(name);
    if (!recipe)
        return dlrn_fail(ctx, DLRN_ERR_UNSUPPORTED,
                         "%s: config.recipe: expected a name such as %s, found %.80s", a->path,
                         dlrni_recipe_table[0].info.name, name);
    *cfg = dlrn_train_defaults(recipe->info.name);
    DLRNI_TRY(dlrni_read_settings(ctx, a, json, cfg));
    DLRNI_TRY(dlrni_read_choices(ctx, a, json, cfg));
    if (dlrni_settle_config(ctx, cfg, &recipe) == DLRN_OK) return DLRN_OK;
    const char *colon = strchr(dlrn_error(ctx), ':'); /* after the name of the struct */
    return dlrni_fail_in(ctx, DLRN_ERR_FORMAT, a->path, "config",
                         colon ? colon + 2 : dlrn_error(ctx));
}

/* The formula of the file. k and the mean threshold are part of a trainer's state; the center was
   fixed when the run began. */
DLRNI_INTERNAL dlrn_status dlrni_read_formula(dlrn_context *ctx, dlrn_archive *a,
                                              const dlrn_json *json, dlrn_formula *f) {
    /* read as integers and checked before they become enumerations */
    int64_t center, gate, select, k;
#define DLRNI_READ_INTEGER(field)                                                                  \
    if (!dlrni_json_signed(json, #field, &field))                                                  \
        return dlrni_checkpoint_lacks(a, ctx, "formula." #field);
#define DLRNI_READ_REAL(field)                                                                     \
    if (!dlrni_json_real(json, #field, &f->field))                                                 \
        return dlrni_checkpoint_lacks(a, ctx, "formula." #field);
    DLRNI_FORMULA_INTEGERS(DLRNI_READ_INTEGER)
    DLRNI_FORMULA_REALS(DLRNI_READ_REAL)
#undef DLRNI_READ_INTEGER
#undef DLRNI_READ_REAL
    /* *f is the family's formula so far: gate and selection cannot differ from it */
    if (gate != (int64_t)f->gate || select != (int64_t)f->select || center < 0 ||
        center > DLRN_CENTER_INPUT_BIAS || !(f->scale_out >= 1 && f->scale_out <= 1))
        return dlrn_fail(ctx, DLRN_ERR_FORMAT,
                         "%s: formula: expected gate %d, select %d, a center from 0 to %d and "
                         "scale_out 1, found %lld, %lld, %lld and %g",
                         a->path, (int)f->gate, (int)f->select, (int)DLRN_CENTER_INPUT_BIAS,
                         (long long)gate, (long long)select, (long long)center, f->scale_out);
    f->center = (dlrn_center)center;
    /* the caller checks it against the number of features */
    f->k = k;
    return DLRN_OK;
}

/* Parses the text under a key of the metadata. No such key: DLRN_OK and NULL. */
DLRNI_INTERNAL dlrn_status dlrni_metadata_json(dlrn_context *ctx, dlrn_archive *a, const char *key,
                                               dlrn_json **out) {
    const char *text = dlrni_archive_metadata(a, key);
    *out = NULL; /* no such key */
    return text ? dlrn_json_parse(ctx, text, strlen(text), a->path, out) : DLRN_OK;
}

/* The state of the steered penalty; a run without a target has none. */
DLRNI_INTERNAL dlrn_status dlrni_read_steering(dlrn_trainer *t, dlrn_archive *a) {
    dlrn_json *json;
    DLRNI_TRY(dlrni_metadata_json(t->ctx, a, "steering", &json));
    int good = !json || (dlrni_json_real(json, "factor", &t->steering.factor) &&
                         dlrni_json_real(json, "off", &t->steering.off));
    dlrn_free(t->ctx, json);
    return good && t->steering.factor > 0 ? DLRN_OK : dlrni_checkpoint_lacks(a, t->ctx, "steering");
}

/* The figures of a step whose resampling is not done. */
DLRNI_INTERNAL dlrn_status dlrni_read_unfinished(dlrn_trainer *t, dlrn_archive *a,
                                                 const dlrn_json *json) {
#define DLRNI_READ_INTEGER(field, key)                                                             \
    if (!dlrni_json_signed(json, key, &t->last.field))                                             \
        return dlrni_checkpoint_lacks(a, t->ctx, "unfinished." key);
#define DLRNI_READ_REAL(field, key)                                                                \
    if (!dlrni_json_real(json, key, &t->last.field))                                               \
        return dlrni_checkpoint_lacks(a, t->ctx, "unfinished." key);
    DLRNI_STATS_INTEGERS(DLRNI_READ_INTEGER)
    DLRNI_STATS_REALS(DLRNI_READ_REAL)
#undef DLRNI_READ_INTEGER
#undef DLRNI_READ_REAL
    /* version 0.1 has no weight of the penalty */
    (void)dlrni_json_real(json, "sparsity_penalty", &t->last.penalty);
    /* the step is counted before its resampling begins */
    if (t->step < 1) return dlrni_checkpoint_lacks(a, t->ctx, "unfinished");
    if (!t->buffer) return DLRN_OK; /* without rows there is nothing to resample from */
    t->from_buffer = 1;
    /* the next dlrn_trainer_step finishes that step */
    t->stage = DLRNI_RESAMPLING;
    return DLRN_OK;
}

/* Finds the tensor with the name, type and shape of `want`: *where. Otherwise an error that says
   what was expected and what was found. */
DLRNI_INTERNAL dlrn_status dlrni_checkpoint_find(dlrn_context *ctx, dlrn_archive *a,
                                                 const dlrn_tensor_out *want, int64_t *where) {
    *where = dlrn_archive_find(a, want->name); /* -1: there is none */
    /* a lost tensor, or another program's file */
    if (*where < 0) return dlrni_checkpoint_lacks(a, ctx, want->name);
    const dlrn_tensor_info *info = dlrn_archive_tensor(a, *where);
    char wanted[128], found[128];
    int same = info->dtype == want->dtype && info->ndim == want->ndim;
    /* ndim is equal here, so shape[i] exists in both */
    for (int i = 0; same && i < want->ndim; i++) same = info->shape[i] == want->shape[i];
    if (same) return DLRN_OK;
    dlrni_shape_text(want->shape, want->ndim, wanted, sizeof wanted);
    dlrni_shape_text(info->shape, info->ndim, found, sizeof found);
    return dlrn_fail(ctx, DLRN_ERR_SHAPE, "%s: tensor '%s': expected %s [%s], found %s [%s]",
                     a->path, want->name, dlrni_type_name(want->dtype), wanted,
                     dlrni_type_name(info->dtype), found);
}

/* Checks the two large tensors before memory is allocated: a small file cannot claim a dictionary
   of terabytes. */
DLRNI_INTERNAL dlrn_status dlrni_checkpoint_size(dlrn_context *ctx, dlrn_archive *a,
                                                 const dlrn_train_config *cfg) {
    /* every family has both */
    static const int roles[2] = {DLRN_ENCODER, DLRN_DECODER};
    for (int i = 0; i < 2; i++) {
        dlrn_tensor_out want;
        int64_t where;
        memset(&want, 0, sizeof want);
        want.name = dlrni_role_table[roles[i]].name;
        want.dtype = DLRN_F32;
        want.ndim = 2;
        want.shape[0] = cfg->features;
        want.shape[1] = i ? cfg->d_out : cfg->d_in;
        DLRNI_TRY(dlrni_checkpoint_find(ctx, a, &want, &where));
    }
    return DLRN_OK;
}

/* Moments [n] may be infinite, if the run overflowed, and stay so. They may not be NaN; a second
   moment, a mean of squares, may not be negative: Adam takes its root. */
DLRNI_INTERNAL dlrn_status dlrni_check_moments(dlrn_archive *a, const char *name, const float *w,
                                               int64_t n) {
    const float lowest = *name == 'v' ? 0 : -HUGE_VALF;
    for (int64_t i = 0; i < n; i++)
        if (!(w[i] >= lowest))
            return dlrn_fail(a->ctx, DLRN_ERR_VALUE,
                             "%s: tensor '%s': element %lld: expected a number%s, found %g",
                             a->path, name, (long long)i, *name == 'v' ? " from 0" : "",
                             (double)w[i]);
    return DLRN_OK;
}

/* Reads into the trainer's own memory, tensor by tensor. Parameters must be finite; moments must be
   numbers. */
DLRNI_INTERNAL dlrn_status dlrni_read_floats(dlrn_trainer *t, dlrn_archive *a) {
    dlrni_checkpoint_floats list;
    int64_t where;
    dlrni_checkpoint_list(t, &list);
    for (int i = 0; i < list.count; i++) {
        DLRNI_TRY(dlrni_checkpoint_find(t->ctx, a, &list.tensor[i], &where));
        /* the shape was compared: it fits */
        DLRNI_TRY(dlrn_archive_read(a, where, 0, -1, list.data[i]));
        const int64_t n = dlrn_archive_tensor(a, where)->numel;
        /* only moments have a point in their name */
        if (strchr(list.name[i], '.'))
            DLRNI_TRY(dlrni_check_moments(a, list.name[i], list.data[i], n));
        else
            DLRNI_TRY(dlrni_check_weights(a, list.name[i], list.data[i], 0, n));
    }
    return DLRN_OK;
}

/* Refuses counters that no run can reach: they would overflow later. */
DLRNI_INTERNAL dlrn_status dlrni_read_counters(dlrn_trainer *t, dlrn_archive *a) {
    dlrn_tensor_out counters = dlrni_checkpoint_counters(t);
    int64_t where;
    DLRNI_TRY(dlrni_checkpoint_find(t->ctx, a, &counters, &where));
    /* as integers: a float would round large counts */
    DLRNI_TRY(dlrni_archive_read_i64(a, where, t->since_fired));
    for (int64_t f = 0; f < t->dict->features; f++)
        if (t->since_fired[f] < 0 || t->since_fired[f] > INT64_MAX / 4)
            return dlrni_checkpoint_lacks(a, t->ctx, counters.name);
    return DLRN_OK;
}

/* The number of steps done: only digits, and too few to overflow. strtoll would also accept signs,
   blanks and text after the number. */
DLRNI_INTERNAL dlrn_status dlrni_read_step(dlrn_trainer *t, dlrn_archive *a) {
    const char *step = dlrni_archive_metadata(a, "step");
    uint64_t done = 0;
    for (const char *c = step; c && *c; c++) {
        if (*c < '0' || *c > '9' || done > INT64_MAX / 100)
            return dlrni_checkpoint_lacks(a, t->ctx, "step");
        done = done * 10 + (uint64_t)(*c - '0');
    }
    /* an empty text is not a number */
    if (!step || !*step) return dlrni_checkpoint_lacks(a, t->ctx, "step");
    t->step = (int64_t)done; /* below 2^63 by the test above */
    return DLRN_OK;
}

/* All tensors but the buffer's, and the number of steps done. */
DLRNI_INTERNAL dlrn_status dlrni_read_state(dlrn_trainer *t, dlrn_archive *a) {
    DLRNI_TRY(dlrni_read_floats(t, a));
    DLRNI_TRY(dlrni_read_counters(t, a));
    dlrn_dictionary_changed(t->dict); /* its parameters were written */
    return dlrni_read_step(t, a);
}

/* The unread rows x (which 0) or y (1), in the stored type; *b owns them. They are widened by the
   reader and narrowed again: f16 and bf16 come back bit for bit. */
DLRNI_INTERNAL dlrn_status dlrni_read_rows(dlrn_trainer *t, dlrn_archive *a, int which,
                                           dlrni_buffer_state *b) {
    dlrn_tensor_out want = dlrni_checkpoint_rows(t->buffer, which, b);
    int64_t where;
    DLRNI_TRY(dlrni_checkpoint_find(t->ctx, a, &want, &where));
    int64_t n = dlrn_archive_tensor(a, where)->numel;
    /* n is the tensor's size in the file: memory follows the file, not a claim */
    float *wide = DLRNI_NEW(t->ctx, float, n);
    b->rows_of[which] = wide; /* at once: the caller frees the state even after an error */
    /* from here on freed with *b */
    if (!wide) return DLRN_ERR_MEMORY;
    DLRNI_TRY(dlrn_archive_read(a, where, 0, -1, wide));
    /* like the rows that a source delivers */
    DLRNI_TRY(dlrni_check_weights(a, want.name, wide, 0, n));
    for (int64_t i = 0; b->store != DLRN_F32 && i < n; i++) { /* in place: 2 bytes for 4 */
        uint16_t h = b->store == DLRN_F16 ? dlrni_f32_to_f16(wide[i]) : dlrni_f32_to_bf16(wide[i]);
        memcpy((char *)wide + 2 * i, &h, sizeof h);
    }
    return DLRN_OK;
}

/* The numbers of the buffer's state. A number that is missing or out of range makes the checkpoint
   malformed. */
DLRNI_INTERNAL dlrn_status dlrni_read_buffer_state(dlrn_trainer *t, dlrn_archive *a,
                                                   const dlrn_json *json, dlrni_buffer_state *b) {
    /* an unknown type fails the comparison below */
    const char *store = dlrn_json_text(json, "store", "");
    memset(b, 0, sizeof *b);
    for (int type = DLRN_F32; type <= DLRN_BF16; type++) /* those that a buffer can store */
        if (!strcmp(store, dlrni_type_name((dlrn_dtype)type))) b->store = (dlrn_dtype)type;
    if (strcmp(store, dlrni_type_name(b->store)) || !dlrni_json_signed(json, "rows", &b->rows) ||
        b->rows < 0 || !dlrni_json_unsigned(json, "seed", &b->rng.seed) ||
        !dlrni_json_unsigned(json, "stream", &b->rng.stream) ||
        !dlrni_json_unsigned(json, "counter", &b->rng.counter) ||
        !dlrni_json_unsigned(json, "position", &b->source_position) ||
        !dlrni_json_signed(json, "rows_read", &b->rows_read) || b->rows_read < 0 ||
        b->rows_read > INT64_MAX / 4)
        return dlrni_checkpoint_lacks(a, t->ctx, "buffer");
    /* booleans: a missing one is false */
    b->has_position = dlrn_json_number(json, "has_position", 0) > 0;
    b->source_ended = dlrn_json_number(json, "ended", 0) > 0;
    b->filling = dlrn_json_number(json, "filling", 0) > 0;
    return DLRN_OK;
}

/* Reads rows and numbers, and gives them to the buffer, which checks them against itself. */
DLRNI_INTERNAL dlrn_status dlrni_resume_buffer(dlrn_trainer *t, dlrn_archive *a,
                                               const dlrn_json *json) {
    dlrni_buffer_state b;
    DLRNI_TRY(dlrni_read_buffer_state(t, a, json, &b));
    /* only one side may have targets: the check of the state reports that */
    const int targets = t->buffer->d[1] > 0 || dlrn_archive_find(a, "buffer.y") >= 0;
    /* an empty buffer has no tensors */
    dlrn_status s = b.rows ? dlrni_read_rows(t, a, 0, &b) : DLRN_OK;
    if (b.rows && s == DLRN_OK && targets) s = dlrni_read_rows(t, a, 1, &b);
    if (s == DLRN_OK) {
        s = dlrni_buffer_import(t->buffer, &b);
        /* lack of memory is not the file's fault */
        if (s != DLRN_OK && s != DLRN_ERR_MEMORY)
            dlrni_fail_in(t->ctx, s, a->path, "buffer", dlrn_error(t->ctx));
    }
    dlrni_buffer_state_free(t->ctx, &b);
    return s;
}

/* Checks the settings that must not change when a run goes on: shapes, recipe, k, compat. Others,
   such as the learning rate or the number of steps, may. */
DLRNI_INTERNAL dlrn_status dlrni_check_given(dlrn_context *ctx, dlrn_archive *a,
                                             const dlrn_train_config *cfg,
                                             const dlrn_train_config *given) {
    const char *path = a->path, *recipe = given->recipe ? given->recipe : "reference";
    /* it may not be settled yet: apply its defaults */
    int64_t d_out = given->d_out ? given->d_out : given->d_in;
    /* "expected" is what the caller gave, "found" what the file holds */
    if (given->d_in != cfg->d_in || given->features != cfg->features || d_out != cfg->d_out)
        return dlrn_fail(ctx, DLRN_ERR_SHAPE,
                         "%s: expected a trainer of %lld x %lld (output %lld), found %lld x %lld "
                         "(output %lld)",
                         path, (long long)given->d_in, (long long)given->features, (long long)d_out,
                         (long long)cfg->d_in, (long long)cfg->features, (long long)cfg->d_out);
    if (strcmp(recipe, cfg->recipe))
        return dlrn_fail(ctx, DLRN_ERR_ARGUMENT, "%s: expected recipe %.80s, found %.80s", path,
                         recipe, cfg->recipe);
    /* 0: the run's own; a recipe that does not select always saves 0 */
    if (given->k && cfg->k && given->k != cfg->k)
        return dlrn_fail(ctx, DLRN_ERR_ARGUMENT, "%s: expected k %lld, found %lld", path,
                         (long long)given->k, (long long)cfg->k);
    if (given->compat != cfg->compat)
        return dlrn_fail(ctx, DLRN_ERR_ARGUMENT, "%s: expected compat %d, found %d", path,
                         (int)given->compat, (int)cfg->compat);
    return DLRN_OK;
}

/* The settings of the file, checked. Those that the caller gives replace them. */
DLRNI_INTERNAL dlrn_status dlrni_checkpoint_config(dlrn_context *ctx, dlrn_archive *a,
                                                   const dlrn_train_config *given,
                                                   dlrn_train_config *cfg) {
    const char *format = dlrni_archive_metadata(a, "format");
    dlrn_json *json;
    /* first, so that any other safetensors file gets this error */
    if (!format || strcmp(format, DLRNI_CHECKPOINT_FORMAT))
        return dlrni_checkpoint_lacks(a, ctx, "format");
    DLRNI_TRY(dlrni_metadata_json(ctx, a, "config", &json));
    dlrn_status s = dlrni_read_config(ctx, a, json, cfg);
    /* json may be NULL */
    dlrn_free(ctx, json);
    if (s != DLRN_OK) return s;
    /* NULL: the saved settings */
    if (given) DLRNI_TRY(dlrni_check_given(ctx, a, cfg, given));
    /* by the file's settings: the given ones agree with them */
    DLRNI_TRY(dlrni_checkpoint_size(ctx, a, cfg));
    if (!given) return DLRN_OK;
    const int64_t k = cfg->k;
    *cfg = *given;
    cfg->k = k; /* the caller may have left it 0 */
    return DLRN_OK;
}

/* The dictionary of a checkpoint: family, formula and roles. Its parameters are read later. */
DLRNI_INTERNAL dlrn_status dlrni_checkpoint_dictionary(dlrn_context *ctx, dlrn_archive *a,
                                                       const dlrn_train_config *cfg,
                                                       dlrn_dictionary **out) {
    const dlrni_recipe *recipe = dlrni_recipe_named(cfg->recipe);
    const char *family = dlrni_archive_metadata(a, "family");
    dlrn_json *json;
    DICTLEARN_ASSERT(recipe != NULL); /* the configuration has been checked */
    /* a recipe trains one family: a file that names another was edited */
    if (family && strcmp(family, recipe->info.family))
        return dlrn_fail(ctx, DLRN_ERR_FORMAT, "%s: family: expected %s for recipe %s, found %.80s",
                         a->path, recipe->info.family, recipe->info.name, family);
    /* without random weights: drawing what the file replaces would take seconds */
    DLRNI_TRY(dlrni_dictionary_alloc(ctx, dlrni_family_named(recipe->info.family), cfg->d_in,
                                     cfg->d_out, cfg->features, out));
    if (dlrni_selects(*out)) (*out)->formula.k = cfg->k;
    dlrn_status s = dlrni_metadata_json(ctx, a, "formula", &json);
    if (s == DLRN_OK && json) s = dlrni_read_formula(ctx, a, json, &(*out)->formula);
    dlrn_free(ctx, json);
    if (s == DLRN_OK && dlrni_selects(*out)) /* k comes from the file */
        s = dlrni_check_k(ctx, (*out)->formula.k, (*out)->features);
    /* optional in its family: the formula says whether the run has it */
    if (s == DLRN_OK && (*out)->formula.center == DLRN_CENTER_INPUT_BIAS &&
        !(*out)->param[DLRN_INPUT_BIAS])
        s = dlrni_param_alloc(*out, DLRN_INPUT_BIAS);
    return s;
}

/* Everything but the configuration and the dictionary's formula. */
DLRNI_INTERNAL dlrn_status dlrni_read_trainer(dlrn_trainer *t, dlrn_archive *a) {
    dlrn_json *json;
    DLRNI_TRY(dlrni_read_state(t, a));
    DLRNI_TRY(dlrni_read_steering(t, a));
    DLRNI_TRY(dlrni_metadata_json(t->ctx, a, "unfinished", &json));
    dlrn_status s = json ? dlrni_read_unfinished(t, a, json) : DLRN_OK;
    dlrn_free(t->ctx, json);
    /* a checkpoint with a buffer may be resumed without one, with the caller's own rows */
    if (!t->buffer || s != DLRN_OK) return s;
    DLRNI_TRY(dlrni_metadata_json(t->ctx, a, "buffer", &json));
    if (json) s = dlrni_resume_buffer(t, a, json); /* none: the given one starts */
    dlrn_free(t->ctx, json);
    return s;
}

/* Settings, dictionary, trainer, state: each needs the one before. After an error *out may be half
   read; the caller destroys it. */
DLRNI_INTERNAL dlrn_status dlrni_resume_from(dlrn_context *ctx, dlrn_archive *a,
                                             const dlrn_train_config *given, dlrn_buffer *buffer,
                                             dlrn_trainer **out) {
    dlrn_train_config cfg;
    dlrn_dictionary *dict = NULL;
    DLRNI_TRY(dlrni_checkpoint_config(ctx, a, given, &cfg));
    dlrn_status s = dlrni_checkpoint_dictionary(ctx, a, &cfg, &dict);
    if (s == DLRN_OK) s = dlrni_trainer_new(ctx, &cfg, &dict, buffer, out);
    dlrn_dictionary_destroy(dict); /* NULL once the trainer has it */
    return s == DLRN_OK ? dlrni_read_trainer(*out, a) : s;
}

DLRN_API dlrn_status dlrn_trainer_resume(dlrn_context *ctx, const char *path,
                                         const dlrn_train_config *cfg, dlrn_buffer *buffer,
                                         dlrn_trainer **out) {
    dlrn_archive *a;
    *out = NULL;
    /* any archive opens here; the format is checked next */
    DLRNI_TRY(dlrn_archive_open(ctx, path, &a));
    dlrn_status s = dlrni_resume_from(ctx, a, cfg, buffer, out);
    dlrn_archive_close(a);
    if (s == DLRN_OK) return s;
    dlrn_trainer_destroy(*out); /* half read, or NULL */
    *out = NULL;
    return s;
}

DLRNI_COLD_END
/* ------------------------------------------------------------------------------------------ */
// >>metrics
/* One pass over the rows, one after another: the results do not depend on how the rows are divided
   into batches. Means and variances by Welford's update, in double: a source may be too large to
   read twice, and the one-pass formula E x^2 - (E x)^2 cancels. The metrics are those of evaluate()
   in dictionary_learning and of the SAE literature; dlrn_metrics defines each. */

struct dlrn_evaluator {
    dlrn_context *ctx;
    const dlrn_dictionary *dict; /* borrowed */
    dlrn_eval_config cfg;
    dlrn_encoder *encoder;              /* reused: later batches allocate nothing */
    int64_t rows, nnz, cosines, ratios; /* rows, active features, rows with a cosine, a ratio  */
    double *mean_y, *var_y;             /* [d_out] mean and sum of squared deviations of y ... */
    double *mean_r, *var_r;             /* ... and of y - x_hat                                */
    int64_t *fired;                     /* [F] rows on which each feature is not 0             */
    double squared, norm, sparsity, cosine, ratio, dot, norm2_x_hat; /* sums over rows         */
    dlrn_sparse codes; /* features of the last batch */
    float *x_hat;      /* [batch_size][d_out] */
    int partly;        /* 1: rows of a call that failed are counted */
};

DLRN_API dlrn_eval_config dlrn_eval_defaults(void) {
    dlrn_eval_config cfg = {8192, 256, DLRN_SPARSITY_L1, DLRN_OFF};
    return cfg;
}

DLRN_API void dlrn_evaluator_destroy(dlrn_evaluator *e) {
    if (!e) return;
    dlrn_encoder_destroy(e->encoder);
    /* with var_y, mean_r and var_r: one block */
    dlrn_free(e->ctx, e->mean_y);
    dlrn_free(e->ctx, e->fired);
    dlrn_free(e->ctx, e->x_hat);
    dlrn_sparse_free(&e->codes);
    dlrn_free(e->ctx, e);
}

/* One block for the four vectors of d_out doubles; the counters start at 0. An error leaves what
   was allocated to dlrn_evaluator_destroy. */
DLRNI_INTERNAL dlrn_status dlrni_evaluator_alloc(dlrn_evaluator *e) {
    int64_t d = e->dict->d_out;
    e->mean_y = DLRNI_NEW_ZERO(e->ctx, double, 4 * d);
    e->fired = DLRNI_NEW_ZERO(e->ctx, int64_t, e->dict->features);
    e->x_hat = DLRNI_NEW(e->ctx, float, e->cfg.batch_size *d);
    if (!e->mean_y || !e->fired || !e->x_hat) return DLRN_ERR_MEMORY;
    e->var_y = e->mean_y + d;
    e->mean_r = e->var_y + d;
    e->var_r = e->mean_r + d;
    return dlrn_encoder_create(e->dict, &e->encoder);
}

DLRN_API dlrn_status dlrn_evaluator_create(const dlrn_dictionary *dict, const dlrn_eval_config *cfg,
                                           dlrn_evaluator **out) {
    /* errors go where the dictionary's go */
    dlrn_context *ctx = dict->ctx;
    const dlrn_eval_config defaults = dlrn_eval_defaults();
    int64_t floats;
    *out = NULL;
    /* NULL: the defaults */
    if (!cfg) cfg = &defaults;
    DLRNI_REQUIRE(ctx, cfg->batch_size > 0 && cfg->rows >= -1,
                  "batch_size must be positive, rows -1 or more");
    /* the sizes of x, y and x_hat below must not overflow */
    if (!dlrni_mul(cfg->batch_size, dlrni_max(dict->d_in, dict->d_out), &floats))
        return dlrn_fail(ctx, DLRN_ERR_MEMORY, "batches of %lld rows do not fit in memory",
                         (long long)cfg->batch_size);
    dlrn_evaluator *e = DLRNI_NEW_ZERO(ctx, dlrn_evaluator, 1);
    if (!e) return DLRN_ERR_MEMORY;
    e->ctx = ctx;
    /* borrowed: it must not change while it is measured */
    e->dict = dict;
    e->cfg = *cfg;
    /* complete or NULL */
    dlrn_status s = dlrni_evaluator_alloc(e);
    if (s == DLRN_OK)
        *out = e;
    else
        dlrn_evaluator_destroy(e);
    return s;
}

/* Adds one value: `count` is the number of values with it. *square is the sum of squared deviations
   from the mean so far (Welford, 1962). */
DLRNI_INTERNAL void dlrni_welford(double *mean, double *square, double x, int64_t count) {
    double off = x - *mean;
    *mean += off / (double)count;
    *square += off * (x - *mean);
}

/* L1 norm or entropy of the active features val [n] of one row, like the penalty of the
   reference. */
DLRNI_INTERNAL double dlrni_row_sparsity(const dlrn_evaluator *e, const float *val, int64_t n) {
    double sum = 0, entropy = 0;
    for (int64_t p = 0; p < n; p++) sum += fabs((double)val[p]);
    if (e->cfg.sparsity == DLRN_SPARSITY_L1) return sum;
    for (int64_t p = 0; p < n && sum > 0; p++) {
        /* magnitudes: an identity's features may be negative */
        double q = fabs((double)val[p]) / (sum + dlrni_entropy_eps);
        entropy -= q * log(q + dlrni_entropy_eps);
    }
    return entropy;
}

/* Adds one row, y [d_out] and x_hat [d_out], with its n active features, to all sums. */
DLRNI_INTERNAL void dlrni_measure_row(dlrn_evaluator *e, const float *y, const float *x_hat,
                                      const int32_t *col, const float *val, int64_t n) {
    int64_t d = e->dict->d_out, count = ++e->rows;
    /* y.y, x_hat.x_hat, y.x_hat, r.r */
    double yy = 0, hh = 0, yh = 0, rr = 0;
    for (int64_t j = 0; j < d; j++) {
        double a = (double)y[j], h = (double)x_hat[j], r = a - h;
        yy += a * a;
        hh += h * h;
        yh += a * h;
        rr += r * r;
        dlrni_welford(&e->mean_y[j], &e->var_y[j], a, count);
        dlrni_welford(&e->mean_r[j], &e->var_r[j], r, count);
    }
    /* the distance and its square are different losses: both are reported */
    e->squared += rr;
    e->norm += sqrt(rr);
    e->dot += yh;
    e->norm2_x_hat += hh;
    /* a row of zeros has no direction: it counts in no ratio and no cosine */
    e->ratios += yy > 0;
    e->cosines += yy > 0 && hh > 0;
    /* |x_hat| / |y|: below 1 where the L1 penalty shrinks features */
    if (yy > 0) e->ratio += sqrt(hh / yy);
    if (yy > 0 && hh > 0) e->cosine += yh / sqrt(yy * hh);
    e->sparsity += dlrni_row_sparsity(e, val, n);
    e->nnz += n;
    /* n is small: features are sparse */
    for (int64_t p = 0; p < n; p++) e->fired[col[p]]++;
}

/* Measures x [rows][d_in], y [rows][d_out], at most a batch. After an error no row of them is
   counted: everything that can fail comes first. */
DLRNI_INTERNAL dlrn_status dlrni_measure_batch(dlrn_evaluator *e, const float *x, const float *y,
                                               int64_t rows) {
    int64_t d = e->dict->d_out;
    DLRNI_TRY(dlrn_encoder_run(e->encoder, x, rows, NULL, &e->codes, e->x_hat));
    /* weights may overflow on an unusual row; the mean would be lost */
    DLRNI_TRY(dlrni_check_finite(e->ctx, e->x_hat, rows, d, e->rows, "evaluation: x_hat,"));
    for (int64_t i = 0; i < rows; i++) {
        /* CSR: the active features of row i */
        int64_t at = e->codes.row_ptr[i];
        dlrni_measure_row(e, y + i * d, e->x_hat + i * d, e->codes.col + at, e->codes.val + at,
                          e->codes.row_ptr[i + 1] - at);
    }
    return DLRN_OK;
}

/* If a call failed half-way, some of its rows are counted, and repeating it would count them twice.
   So the evaluator refuses to go on. */
DLRNI_INTERNAL dlrn_status dlrni_check_evaluator(const dlrn_evaluator *e) {
    if (!e->partly) return DLRN_OK;
    return dlrn_fail(e->ctx, DLRN_ERR_ARGUMENT,
                     "evaluation: a call failed after some of its rows, up to row %lld, had been "
                     "counted: start again with a new evaluator",
                     (long long)e->rows - 1);
}

DLRN_API dlrn_status dlrn_evaluator_add(dlrn_evaluator *e, const float *x, const float *y,
                                        int64_t n) {
    int64_t d = e->dict->d_in, d_out = e->dict->d_out, batch = e->cfg.batch_size;
    DLRNI_REQUIRE(e->ctx, n >= 0 && (x || !n), "x must not be NULL, n not negative");
    DLRNI_REQUIRE(e->ctx, y || d == d_out, "y must not be NULL where d_out is not d_in");
    /* an autoencoder is measured against its input */
    if (!y) y = x;
    DLRNI_TRY(dlrni_check_evaluator(e));
    /* all rows, before the first is counted */
    DLRNI_TRY(dlrni_check_finite(e->ctx, x, n, d, e->rows, "evaluation: x,"));
    DLRNI_TRY(dlrni_check_finite(e->ctx, y, n, d_out, e->rows, "evaluation: y,"));
    for (int64_t first = 0; first < n; first += batch) {
        int64_t rows = dlrni_min(batch, n - first);
        dlrn_status s = dlrni_measure_batch(e, x + first * d, y + first * d_out, rows);
        /* an error in the first batch leaves no trace */
        e->partly = s != DLRN_OK && first > 0;
        if (s != DLRN_OK) return s;
    }
    return DLRN_OK;
}

/* 1 - residual variance / variance, in the two forms of the literature: of the sums over dimensions
   (large dimensions dominate), and as a mean over the dimensions that vary (all count the same). */
DLRNI_INTERNAL void dlrni_variance_explained(const dlrn_evaluator *e, dlrn_metrics *out) {
    double y = 0, r = 0, each = 0;
    int64_t varying = 0;
    for (int64_t j = 0; j < e->dict->d_out; j++) {
        /* sums of squared deviations: the factor 1 / n cancels */
        y += e->var_y[j];
        r += e->var_r[j];
        /* a constant dimension has nothing to explain */
        if (!(e->var_y[j] > 0)) continue;
        each += 1 - e->var_r[j] / e->var_y[j];
        varying++;
    }
    out->variance_explained = y > 0 ? 1 - r / y : (double)NAN;
    out->variance_explained_per_dim = varying ? each / (double)varying : (double)NAN;
}

/* Marks the figures that need a language model as not measured: 0 would look like a result. */
DLRNI_INTERNAL void dlrni_no_cross_entropy(dlrn_metrics *out) {
    out->loss_original = out->loss_reconstructed = out->loss_zero = (double)NAN;
    out->ce_diff = out->share_recovered = (double)NAN;
    out->documents = out->tokens = 0;
}

DLRN_API dlrn_status dlrn_evaluator_finish(dlrn_evaluator *e, dlrn_metrics *out) {
    /* all means are over rows */
    double n = (double)e->rows;
    int64_t F = e->dict->features, alive = 0;
    memset(out, 0, sizeof *out);
    /* first, so that *out is defined even after an error */
    dlrni_no_cross_entropy(out);
    DLRNI_TRY(dlrni_check_evaluator(e));
    DLRNI_REQUIRE(e->ctx, e->rows > 0, "no rows were added");
    out->rows = e->rows; /* counts, then means over rows */
    out->fired = e->fired;
    out->l2_loss = e->norm / n;
    /* compat: the reference squares the mean distance */
    out->mse_loss = e->cfg.compat ? out->l2_loss * out->l2_loss : e->squared / n;
    out->sparsity_loss = e->sparsity / n;
    out->l0 = (double)e->nnz / n;
    /* NAN: no row had a direction */
    out->cosine = e->cosines ? e->cosine / (double)e->cosines : (double)NAN;
    out->l2_ratio = e->ratios ? e->ratio / (double)e->ratios : (double)NAN;
    /* Rajamanoharan et al., "Gated SAEs", 2024: E |x_hat|^2 / E <x_hat, y>; 1 is unbiased */
    out->relative_reconstruction_bias =
        e->dot < 0 || e->dot > 0 ? e->norm2_x_hat / e->dot : (double)NAN;
    for (int64_t f = 0; f < F; f++) {
        alive += e->fired[f] > 0;
        /* active on more than a tenth of the rows: the usual bound for a dense feature */
        out->dense += (double)e->fired[f] > 0.1 * n;
    }
    /* dead: never active on these rows; training has its own rule */
    out->dead = F - alive;
    out->share_alive = (double)alive / (double)F;
    dlrni_variance_explained(e, out);
    return DLRN_OK;
}

/* The lower edge of bin b; the bins are equal in log10, from 1e-5 to 1. As 1 / 10^(5 - ...), since
   pow(10, n) is exact for whole n > 0, while pow(10, -n) may be rounded. */
DLRNI_INTERNAL double dlrni_bin_edge(int64_t b, int bins) {
    return 1 / pow(10, 5 - 5.0 * (double)b / bins);
}

/* The bin of a frequency in (0, 1]. Near an edge the logarithm may be off by one, so the edges
   decide. */
DLRNI_INTERNAL int64_t dlrni_bin_of(double frequency, int bins) {
    int64_t b = (int64_t)floor((log10(frequency) + 5) / 5 * bins);
    /* below 1e-5: the first bin; 1 itself: the last */
    b = dlrni_max(0, dlrni_min(bins - 1, b));
    if (b > 0 && frequency < dlrni_bin_edge(b, bins)) return b - 1;
    return b < bins - 1 && frequency >= dlrni_bin_edge(b + 1, bins) ? b + 1 : b;
}

DLRN_API dlrn_status dlrn_evaluator_histogram(const dlrn_evaluator *e, int bins, double *edge,
                                              int64_t *count) {
    DLRNI_REQUIRE(e->ctx, bins > 0 && e->rows > 0, "needs at least one bin and one row");
    memset(count, 0, (size_t)bins * sizeof *count);
    /* bins + 1 edges; NULL: not wanted */
    for (int b = 0; edge && b <= bins; b++) edge[b] = dlrni_bin_edge(b, bins);
    for (int64_t f = 0; f < e->dict->features; f++) /* dead features have no logarithm */
        if (e->fired[f]) count[dlrni_bin_of((double)e->fired[f] / (double)e->rows, bins)]++;
    return DLRN_OK;
}

/* What one call of dlrn_evaluate needs: an evaluator, and arrays for the rows. */
typedef struct dlrni_evaluation {
    dlrn_evaluator *e;
    const dlrn_source *source; /* borrowed */
    dlrn_eval_progress progress;
    void *user;   /* the progress callback's */
    float *x, *y; /* [batch_size][d]; y NULL: no target */
} dlrni_evaluation;

/* Reads and measures a batch at a time, until cfg.rows are measured or the source ends. */
DLRNI_INTERNAL dlrn_status dlrni_measure_source(const dlrni_evaluation *j) {
    dlrn_evaluator *e = j->e;
    for (;;) {
        int64_t batch = e->cfg.batch_size, n = 0;
        /* never beyond the limit */
        int64_t want = e->cfg.rows < 0 ? batch : dlrni_min(batch, e->cfg.rows - e->rows);
        /* enough rows */
        if (want <= 0) return DLRN_OK;
        dlrn_status s = dlrni_source_read(e->ctx, j->source, want, j->x, j->y, &n);
        if (s != DLRN_OK) return s == DLRN_END ? DLRN_OK : s;
        DLRNI_TRY(dlrn_evaluator_add(e, j->x, j->y, n));
        /* may stop the evaluation */
        if (j->progress) DLRNI_TRY(j->progress(j->user, e->rows));
    }
}

/* Whether a source gives rows of the dictionary's widths; without a target y is x. */
DLRNI_INTERNAL dlrn_status dlrni_check_eval_source(const dlrn_dictionary *dict,
                                                   const dlrn_source *source) {
    /* no target: the width of x */
    int64_t d_out = source->d_out ? source->d_out : source->d_in;
    if (source->d_in == dict->d_in && d_out == dict->d_out) return DLRN_OK;
    return dlrn_fail(dict->ctx, DLRN_ERR_SHAPE,
                     "dlrn_evaluate: expected rows of width %lld with targets of %lld, as the "
                     "dictionary has, found %lld with %lld",
                     (long long)dict->d_in, (long long)dict->d_out, (long long)source->d_in,
                     (long long)d_out);
}

/* ------------------------------------------------------------------------------------------ */
// >>splice
/* Cross-entropy of a language model with dictionaries spliced in, and the whole evaluation. Even a
   small error may lose what the model needs; only the model's own loss shows that. The model is a
   callback: this library contains none. */

/* The dictionaries of a model's sites (places where it lets activations be replaced). */
typedef struct dlrni_splice {
    dlrn_context *ctx;                   /* for errors */
    const dlrn_dictionary *const *dicts; /* [sites] borrowed */
    dlrn_encoder **encoders;             /* [sites] owned: scratch lasts for the whole pass */
    int64_t sites;
} dlrni_splice;

/* A model must edit only the sites that it has announced: the number becomes an index. */
DLRNI_INTERNAL dlrn_status dlrni_check_site(const dlrni_splice *s, int site) {
    if (site >= 0 && site < s->sites) return DLRN_OK;
    return dlrn_fail(s->ctx, DLRN_ERR_CALLBACK, "the model edits site %d of %lld", site,
                     (long long)s->sites);
}

/* Edit callback: out [n][d_out] = the reconstruction of x [n][d_in] at a site. */
DLRNI_INTERNAL dlrn_status dlrni_splice_edit(void *user, int site, const float *x, float *out,
                                             int64_t n) {
    const dlrni_splice *s = (const dlrni_splice *)user;
    DLRNI_TRY(dlrni_check_site(s, site));
    return dlrn_encoder_run(s->encoders[site], x, n, NULL, NULL, out);
}

/* Edit callback: out [n][d_out] = 0. Its loss is that of a useless dictionary, the zero of
   share_recovered. */
DLRNI_INTERNAL dlrn_status dlrni_zero_edit(void *user, int site, const float *x, float *out,
                                           int64_t n) {
    const dlrni_splice *s = (const dlrni_splice *)user;
    (void)x;
    DLRNI_TRY(dlrni_check_site(s, site));
    /* all bits 0 is 0.0f */
    memset(out, 0, (size_t)(n * s->dicts[site]->d_out) * sizeof *out);
    return DLRN_OK;
}

/* One pass of the model: *nats per token, over *tokens. */
DLRNI_INTERNAL dlrn_status dlrni_cross_entropy(dlrn_context *ctx, const dlrn_language_model *lm,
                                               const dlrn_edit *edit, double *nats,
                                               int64_t *tokens) {
    ctx->error[0] = 0; /* an old message must not pass for the model's */
    dlrn_status s = lm->cross_entropy(lm->user, edit, nats, tokens);
    /* NaN would spread to every figure below */
    if (s == DLRN_OK && !(fabs(*nats) <= DBL_MAX))
        return dlrn_fail(ctx, DLRN_ERR_CALLBACK,
                         "the language model: expected a finite cross-entropy, found %g", *nats);
    if (s == DLRN_OK) return s;
    return dlrni_callback_error(ctx, s, "the language model",
                                lm->error       ? lm->error(lm->user)
                                : ctx->error[0] ? ctx->error
                                                : NULL);
}

/* The three passes of the model: unchanged, with the reconstructions, with zeros. */
DLRNI_INTERNAL dlrn_status dlrni_three_passes(dlrni_splice *splice, const dlrn_language_model *lm,
                                              dlrn_metrics *out) {
    dlrn_edit reconstruct = {dlrni_splice_edit, splice}, zero = {dlrni_zero_edit, splice};
    dlrn_context *ctx = splice->ctx;
    int64_t tokens = 0;
    DLRNI_TRY(dlrni_cross_entropy(ctx, lm, NULL, &out->loss_original, &out->tokens));
    DLRNI_TRY(dlrni_cross_entropy(ctx, lm, &reconstruct, &out->loss_reconstructed, &tokens));
    /* the third pass is skipped if the second already disagrees */
    if (tokens == out->tokens)
        DLRNI_TRY(dlrni_cross_entropy(ctx, lm, &zero, &out->loss_zero, &tokens));
    /* losses over different tokens cannot be compared */
    if (tokens != out->tokens)
        return dlrn_fail(ctx, DLRN_ERR_CALLBACK,
                         "the language model: expected %lld tokens as before, found %lld",
                         (long long)out->tokens, (long long)tokens);
    /* what there is to recover; 0 if the site has no effect */
    double whole = out->loss_original - out->loss_zero;
    out->documents = lm->documents; /* as the model says */
    out->ce_diff = out->loss_reconstructed - out->loss_original;
    out->share_recovered =
        whole < 0 || whole > 0 ? (out->loss_reconstructed - out->loss_zero) / whole : (double)NAN;
    return DLRN_OK;
}

DLRN_API dlrn_status dlrn_loss_recovered(dlrn_context *ctx, const dlrn_dictionary *const *dicts,
                                         const dlrn_language_model *lm, dlrn_metrics *out) {
    dlrni_splice splice = {ctx, dicts, NULL, lm->sites};
    /* defined even after an error; the other metrics stay */
    dlrni_no_cross_entropy(out);
    DLRNI_REQUIRE(ctx, lm->sites > 0, "the language model has no sites");
    splice.encoders = DLRNI_NEW_ZERO(ctx, dlrn_encoder *, lm->sites);
    dlrn_status s = splice.encoders ? DLRN_OK : DLRN_ERR_MEMORY;
    for (int64_t i = 0; s == DLRN_OK && i < lm->sites; i++)
        s = dlrn_encoder_create(dicts[i], &splice.encoders[i]);
    if (s == DLRN_OK) s = dlrni_three_passes(&splice, lm, out);
    /* those not made are NULL */
    for (int64_t i = 0; splice.encoders && i < lm->sites; i++)
        dlrn_encoder_destroy(splice.encoders[i]);
    dlrn_free(ctx, splice.encoders);
    return s;
}

DLRN_API dlrn_status dlrn_evaluate(const dlrn_dictionary *dict, const dlrn_eval_config *cfg,
                                   const dlrn_source *source, const dlrn_language_model *lm,
                                   dlrn_eval_progress progress, void *user, dlrn_metrics *out) {
    dlrn_context *ctx = dict->ctx;
    dlrni_evaluation j = {NULL, source, progress, user, NULL, NULL};
    /* the rows of one source belong to one site */
    DLRNI_REQUIRE(ctx, !lm || lm->sites == 1,
                  "a model of several sites is for dlrn_loss_recovered");
    DLRNI_TRY(dlrni_check_eval_source(dict, source));
    /* also checks cfg */
    DLRNI_TRY(dlrn_evaluator_create(dict, cfg, &j.e));
    j.x = DLRNI_NEW(ctx, float, j.e->cfg.batch_size * dict->d_in);
    /* without a target the evaluator takes x */
    j.y = source->d_out ? DLRNI_NEW(ctx, float, j.e->cfg.batch_size * dict->d_out) : NULL;
    dlrn_status s = j.x && (j.y || !source->d_out) ? dlrni_measure_source(&j) : DLRN_ERR_MEMORY;
    int stopped = s == DLRN_STOPPED && j.e->rows > 0; /* what was measured is still reported */
    if (s == DLRN_OK || stopped) {
        /* fails if there were no rows */
        dlrn_status end = dlrn_evaluator_finish(j.e, out);
        out->fired = NULL; /* the evaluator's, which ends here */
        if (s == DLRN_OK) s = end;
    }
    dlrn_free(ctx, j.x);
    dlrn_free(ctx, j.y);
    dlrn_evaluator_destroy(j.e);
    /* last: it takes longest, and the rest is valid without it */
    return s == DLRN_OK && lm ? dlrn_loss_recovered(ctx, &dict, lm, out) : s;
}
#endif /* DICTLEARN_NO_TRAINING */

#ifdef __cplusplus
}
#endif

/* ------------------------------------------------------------------------------------------ */
// >>undef
/* Nothing private is left behind; DLRNI_IMPLEMENTED stays, so that a second inclusion is empty. */
#undef DLRNI_AFFINE
#undef DLRNI_BIT
#undef DLRNI_CHECKPOINT_FORMAT
#undef DLRNI_CLASS_KEY
#undef DLRNI_CFG_FILE
#undef DLRNI_CONFIG_FILE
#undef DLRNI_TRAINER_FILE
#undef DLRNI_WIDTH_KEY
#undef DLRNI_FORMULA_REALS
#undef DLRNI_FORMULA_INTEGERS
#undef DLRNI_CONFIG_MORE_REALS
#undef DLRNI_CONFIG_MORE_INTEGERS
#undef DLRNI_REAL
#undef DLRNI_NEVER
#undef DLRNI_PERIOD
#undef DLRNI_CONFIG_INTEGERS
#undef DLRNI_CONFIG_REALS
#undef DLRNI_GROUP
#undef DLRNI_GROW
#undef DLRNI_INLINE
#undef DLRNI_INTERNAL
#undef DLRNI_COLD_BEGIN
#undef DLRNI_COLD_END
#undef DLRNI_DENSE
#undef DLRNI_LANES
#undef DLRNI_LIST_BUDGET
#undef DLRNI_NEON
#undef DLRNI_NEW
#undef DLRNI_NEW_ZERO
#undef DLRNI_OPCODE_LIST
#undef DLRNI_POSIX
#undef DLRNI_PRAGMA
#undef DLRNI_PREFETCH
#undef DLRNI_PREFETCH_FAR
#undef DLRNI_REQUIRE
#undef DLRNI_REQUIRE_IN
#undef DLRNI_SCREEN_ROWS
#undef DLRNI_STATS_INTEGERS
#undef DLRNI_STATS_REALS
#undef DLRNI_SERIAL_NS
#undef DLRNI_TARGET_BEGIN
#undef DLRNI_TARGET_END
#undef DLRNI_TORCH_OPS
#undef DLRNI_TRY
#undef DLRNI_UNROLL
#undef DLRNI_UNUSED
#undef DLRNI_X86

#endif /* DICTLEARN_IMPLEMENTATION */

/* ------------------------------------------------------------------------------------------ */
// >>kernel-bodies
/* This file includes itself, because the preprocessor cannot loop:

     room kernels       defines DLRNI_COMPILE_SETS and includes this file: the blocks below are
                        compiled
     each set's block   defines DLRNI_COMPILE_BODIES and includes it again: the kernels at the end
                        of this room are compiled under the set's names

   There is one block for each kernel set. It has, in this order:

     NAME_runs()           whether the processor can run it
     DLRNI_TARGET_BEGIN    the instructions that it is compiled for
     DLRNI_K(name)         puts the set's name before a name: all names below are written with it
     tile sizes            an enum of the five sizes explained below
     v16                   a type of 64 bytes that holds 16 floats. A vector type without a size,
                           as SVE has, must be wrapped in an array of floats
     operations            see the next table
     what it has           the DLRNI_HAS and DLRNI_OWN macros of the table after that
     DLRNI_COMPILE_BODIES  the inclusion that compiles the kernels from the text at the end of this
                           room, which is the same for all sets
     screens of its own    the cheap products that only this set has (bf16, int8)

   Operations, all of them required. a, b and c are v16; "NaN in a stays" and the order of sum4 are
   part of the bits that sets share.

     set1(x), load(p), store(p, a)      one float in all lanes; 16 floats at any address
     add, minus, mul, div (a, b)        lane by lane, rounded to nearest
     max(a, b)                          the larger; a NaN in a stays
     sqrt(a)                            rounded to nearest
     fma(a, b, c)                       a b + c, rounded once
     pow2(a)                            2^a for whole a, -127 <= a <= 127
     on(a)                              bit l: lane l is above 0, or a NaN
     sum4(a [4], out [4])               the canonical tree (room kernels) of four vectors
     transpose(from, ld, to, ld)        16 x 16 words of 4 bytes, whatever they hold

   Macros that say what else a block has:

     DLRNI_HAS_SCREENS  nothing else is needed: the f32 screen is compiled, too
     DLRNI_HAS_INT16    words (a v16 of 32-bit integers), load_words, set_words, add_dot,
                        float_of_words and store_int16: the int16 screen is compiled, too
     DLRNI_HAS_F16      widen_f16(from, to, n)
     DLRNI_OWN_CRC32    the name of a function like dlrni_crc32 (room numbers)
     DLRNI_OWN_COLLECT  collect, in place of the common one

   Checks at the start of the common text fail to compile where a size does not fit; tests/test_core
   compares every kernel of every set with the scalar one, bit for bit.

   Tile sizes. A fused multiply-add takes about four cycles, and one or two can start in each. So up
   to eight sums must be under way, and each operand that is loaded should serve many of them. A
   tile takes as many sums as fit into the registers beside their operands:

     nt_rows, nt_cols   dots_nt: rows of a, rows of b; a sum is one v16
     outer_rows         outer and the screens: rows of a, at most DLRNI_SCREEN_ROWS
     outer_vectors      outer: v16s of the panel's columns, 1 or 3
     gather_vectors     gather_axpy: v16s of the output that stay in registers

   To measure another size, change it and compare `make bench`, rows gemm and step. No size changes
   a bit: each sum has its own order. The scalar set is the oracle: plain loops and dlrni_fma(). */
#if defined(DLRNI_COMPILE_SETS) && !defined(DLRNI_COMPILE_BODIES)

/* ---- scalar ----

   Every operation is a loop over 16 lanes: what the other sets must reproduce, bit for bit. */

DLRNI_INTERNAL int dlrni_scalar_runs(void) {
    return 1;
}

/* With vector units at hand the oracle runs in tests alone. */
#if DLRNI_X86 || DLRNI_NEON
DLRNI_COLD_BEGIN
#endif
#define DLRNI_K(name) dlrni_scalar_##name /* no target: whatever the file is compiled for */
/* Small tiles: without registers for the sums a larger one only spills more. */
enum {
    DLRNI_K(nt_rows) = 2,
    DLRNI_K(nt_cols) = 2,
    DLRNI_K(outer_rows) = 1,
    DLRNI_K(outer_vectors) = 1,
    DLRNI_K(gather_vectors) = 4
};
typedef struct DLRNI_K(v16) {
    float l[DLRNI_LANES];
} DLRNI_K(v16);

DLRNI_INTERNAL DLRNI_K(v16) DLRNI_K(set1)(float a) {
    DLRNI_K(v16) r;
    for (int i = 0; i < DLRNI_LANES; i++) r.l[i] = a;
    return r;
}
DLRNI_INTERNAL DLRNI_K(v16) DLRNI_K(load)(const float *p) {
    DLRNI_K(v16) r;
    memcpy(r.l, p, sizeof r.l);
    return r;
}
DLRNI_INTERNAL void DLRNI_K(store)(float *p, DLRNI_K(v16) a) {
    memcpy(p, a.l, sizeof a.l);
}
/* An operation on two vectors, lane by lane. */
#define DLRNI_LANEWISE(name, expression)                                                           \
    DLRNI_INTERNAL DLRNI_K(v16) DLRNI_K(name)(DLRNI_K(v16) a, DLRNI_K(v16) b) {                    \
        for (int i = 0; i < DLRNI_LANES; i++) a.l[i] = expression;                                 \
        return a;                                                                                  \
    }
DLRNI_LANEWISE(add, a.l[i] + b.l[i])
DLRNI_LANEWISE(minus, a.l[i] - b.l[i])
DLRNI_LANEWISE(mul, a.l[i] * b.l[i])
DLRNI_LANEWISE(div, a.l[i] / b.l[i])
DLRNI_LANEWISE(max, b.l[i] > a.l[i] ? b.l[i] : a.l[i]) /* a NaN in a stays */
#undef DLRNI_LANEWISE
/* 2^a for whole a, -127 <= a <= 127, by writing the exponent's bits: biased by 127. For -127 they
   are all 0, which is the number 0. */
DLRNI_INTERNAL DLRNI_K(v16) DLRNI_K(pow2)(DLRNI_K(v16) a) {
    for (int i = 0; i < DLRNI_LANES; i++) /* to convert a NaN to an integer is undefined in C */
        a.l[i] =
            a.l[i] >= -127 ? dlrni_float_of_bits((uint32_t)((int32_t)a.l[i] + 127) << 23) : a.l[i];
    return a;
}
/* sqrtf and division are rounded correctly everywhere, by IEEE 754: the sets need no tricks to
   agree. */
DLRNI_INTERNAL DLRNI_K(v16) DLRNI_K(sqrt)(DLRNI_K(v16) a) {
    for (int i = 0; i < DLRNI_LANES; i++) a.l[i] = sqrtf(a.l[i]);
    return a;
}
/* Never a b + c: that would round twice where a compiler does not fuse it. */
DLRNI_INTERNAL DLRNI_K(v16) DLRNI_K(fma)(DLRNI_K(v16) a, DLRNI_K(v16) b, DLRNI_K(v16) c) {
    for (int i = 0; i < DLRNI_LANES; i++) c.l[i] = dlrni_fma(a.l[i], b.l[i], c.l[i]);
    return c;
}
/* Bit l: lane l is above zero, or a NaN. A screen must not drop what it could not compare. */
DLRNI_INTERNAL uint32_t DLRNI_K(on)(DLRNI_K(v16) a) {
    uint32_t mask = 0;
    for (int i = 0; i < DLRNI_LANES; i++) mask |= (uint32_t) !(a.l[i] <= 0) << i;
    return mask;
}
/* The canonical tree over the lanes (room kernels), for four vectors at once: vector units need
   fewer additions for four trees together than one by one. */
DLRNI_INTERNAL void DLRNI_K(sum4)(const DLRNI_K(v16) *a, float *out) {
    for (int v = 0; v < 4; v++) {
        float t[DLRNI_LANES];
        memcpy(t, a[v].l, sizeof t);
        for (int half = DLRNI_LANES / 2; half > 0; half /= 2) /* +8, +4, +2, +1 */
            for (int i = 0; i < half; i++) t[i] += t[i + half];
        out[v] = t[0];
    }
}

/* memcpy, not assignment: some processors change a signalling NaN when it passes as a float. */
DLRNI_INTERNAL void DLRNI_K(transpose)(const float *from, int64_t ld_from, float *to,
                                       int64_t ld_to) {
    for (int i = 0; i < DLRNI_LANES; i++)
        for (int j = 0; j < DLRNI_LANES; j++)
            memcpy(to + j * ld_to + i, from + i * ld_from + j, sizeof *to);
}

#define DLRNI_COMPILE_BODIES /* without DLRNI_HAS_SCREENS: the oracle has none */
#include DICTLEARN_HEADER_NAME
#undef DLRNI_COMPILE_BODIES
#undef DLRNI_K
#if DLRNI_X86 || DLRNI_NEON
DLRNI_COLD_END
#endif

#if DLRNI_X86
/* ---- CRC-32, for all x86 sets ---- */

DLRNI_TARGET_BEGIN("pclmul,sse4.1") /* not AVX2: the sets call it as a plain function */

/* CRC-32 by carry-less products (Gopal et al., Fast CRC computation using PCLMULQDQ, 2009). A CRC
   is the remainder of a polynomial over GF(2). So 16 bytes may be moved 64 bytes on and added (XOR)
   to the 16 bytes there, if they are multiplied by the remainder of x^(8 * 64) first. Each half of
   the 16 bytes takes one product, 64 by 64 bits. Measured on Zen 4 with 134 MB: 6 times as fast as
   the tables for eight bytes at a time in room numbers. */

/* x moved to `next` and added to it; `by` holds the remainders for x's two halves. */
DLRNI_INTERNAL __m128i dlrni_crc_fold(__m128i x, __m128i by, __m128i next) {
    return _mm_xor_si128(
        next, _mm_xor_si128(_mm_clmulepi64_si128(x, by, 0x00), _mm_clmulepi64_si128(x, by, 0x11)));
}

/* n >= 64 bytes, a multiple of 16, become 16 bytes with the same CRC; crc is the state before them.
   Four runs of 16 bytes are under way, because a product takes several cycles and one can start in
   each. */
DLRNI_INTERNAL void dlrni_crc_shrink(uint32_t crc, const unsigned char *p, uint64_t n,
                                     unsigned char *out) {
    /* remainders, bits reflected: for low halves of x^(512 + 32) and x^(128 + 32), for high halves
       of x^(512 - 32) and x^(128 - 32) */
    const __m128i by_64 = _mm_set_epi64x(0x1c6e41596, 0x154442bd4),
                  by_16 = _mm_set_epi64x(0x0ccaa009e, 0x1751997d0);
    const __m128i *at = (const __m128i *)(const void *)p;
    __m128i x[4];
    for (int i = 0; i < 4; i++) x[i] = _mm_loadu_si128(at + i);
    x[0] = _mm_xor_si128(x[0], _mm_cvtsi32_si128((int)crc)); /* the state enters the first bytes */
    for (at += 4, n -= 64; n >= 64; at += 4, n -= 64) {
        x[0] = dlrni_crc_fold(x[0], by_64, _mm_loadu_si128(at));
        x[1] = dlrni_crc_fold(x[1], by_64, _mm_loadu_si128(at + 1));
        x[2] = dlrni_crc_fold(x[2], by_64, _mm_loadu_si128(at + 2));
        x[3] = dlrni_crc_fold(x[3], by_64, _mm_loadu_si128(at + 3));
    }
    for (int i = 1; i < 4; i++) x[0] = dlrni_crc_fold(x[0], by_16, x[i]); /* four runs to one */
    /* what is left, fewer than 64 bytes */
    for (; n; at++, n -= 16) x[0] = dlrni_crc_fold(x[0], by_16, _mm_loadu_si128(at));
    _mm_storeu_si128((__m128i *)(void *)out, x[0]);
}

/* The last 16 bytes and the rest go through the tables, which also reduce to 32 bits. */
DLRNI_INTERNAL uint32_t dlrni_crc32_folded(uint32_t crc, const unsigned char *p, uint64_t n) {
    if (n >= 64) {
        const uint64_t whole = n & ~(uint64_t)15; /* a multiple of 16 */
        unsigned char left[16];
        dlrni_crc_shrink(~crc, p, whole, left);
        crc = dlrni_crc32(UINT32_MAX, left, sizeof left); /* ~0: a state of 0 */
        p += whole;
        n -= whole;
    }
    return dlrni_crc32(crc, p, n);
}
DLRNI_TARGET_END

/* ---- avx2 ----

   16 registers of 8 floats; a v16 is two of them. */

/* Nearly every processor with AVX2 has FMA and PCLMUL, but a virtual machine may hide them. */
DLRNI_INTERNAL int dlrni_avx2_runs(void) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __builtin_cpu_supports("pclmul");
}

DLRNI_TARGET_BEGIN("avx2,fma,pclmul")
#define DLRNI_K(name) dlrni_avx2_##name
/* Registers: nt 12 sums, 4 of a; outer 12 sums, 2 of the panel, 1 broadcast; gather 8 sums.
   Measured on Zen 4, two threads: nt of 2 x 3 makes 92 GFLOPS; with four rows, as AVX-512 has it,
   56. */
enum {
    DLRNI_K(nt_rows) = 2,
    DLRNI_K(nt_cols) = 3,
    DLRNI_K(outer_rows) = 6,
    DLRNI_K(outer_vectors) = 1,
    DLRNI_K(gather_vectors) = 4
};
typedef struct DLRNI_K(v16) {
    __m256 lo, hi; /* lanes 0 to 7, 8 to 15 */
} DLRNI_K(v16);

/* A function, because C++ has no compound literals. */
DLRNI_INTERNAL DLRNI_K(v16) DLRNI_K(pair)(__m256 lo, __m256 hi) {
    DLRNI_K(v16) r;
    r.lo = lo;
    r.hi = hi;
    return r;
}
DLRNI_INTERNAL DLRNI_K(v16) DLRNI_K(set1)(float a) {
    return DLRNI_K(pair)(_mm256_set1_ps(a), _mm256_set1_ps(a));
}
DLRNI_INTERNAL DLRNI_K(v16) DLRNI_K(load)(const float *p) {
    return DLRNI_K(pair)(_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8));
}
DLRNI_INTERNAL void DLRNI_K(store)(float *p, DLRNI_K(v16) a) {
    _mm256_storeu_ps(p, a.lo);
    _mm256_storeu_ps(p + 8, a.hi);
}
#define DLRNI_LANEWISE(name, operation)                                                            \
    DLRNI_INTERNAL DLRNI_K(v16) DLRNI_K(name)(DLRNI_K(v16) a, DLRNI_K(v16) b) {                    \
        return DLRNI_K(pair)(operation(a.lo, b.lo), operation(a.hi, b.hi));                        \
    }
DLRNI_LANEWISE(add, _mm256_add_ps)
DLRNI_LANEWISE(minus, _mm256_sub_ps)
DLRNI_LANEWISE(mul, _mm256_mul_ps)
DLRNI_LANEWISE(div, _mm256_div_ps)
#undef DLRNI_LANEWISE
/* The instruction returns its second operand where one is a NaN: a NaN in a stays. */
DLRNI_INTERNAL DLRNI_K(v16) DLRNI_K(max)(DLRNI_K(v16) a, DLRNI_K(v16) b) {
    return DLRNI_K(pair)(_mm256_max_ps(b.lo, a.lo), _mm256_max_ps(b.hi, a.hi));
}
/* A NaN becomes the smallest integer here, and 1 at the end. exp multiplies that by a sum that is
   NaN, so it does not get lost. */
DLRNI_INTERNAL DLRNI_K(v16) DLRNI_K(pow2)(DLRNI_K(v16) a) {
    const __m256i bias = _mm256_set1_epi32(127);
    __m256i lo = _mm256_add_epi32(_mm256_cvtps_epi32(a.lo), bias),
            hi = _mm256_add_epi32(_mm256_cvtps_epi32(a.hi), bias);
    return DLRNI_K(pair)(_mm256_castsi256_ps(_mm256_slli_epi32(lo, 23)),
                         _mm256_castsi256_ps(_mm256_slli_epi32(hi, 23)));
}
DLRNI_INTERNAL DLRNI_K(v16) DLRNI_K(sqrt)(DLRNI_K(v16) a) {
    return DLRNI_K(pair)(_mm256_sqrt_ps(a.lo), _mm256_sqrt_ps(a.hi));
}
DLRNI_INTERNAL DLRNI_K(v16) DLRNI_K(fma)(DLRNI_K(v16) a, DLRNI_K(v16) b, DLRNI_K(v16) c) {
    return DLRNI_K(pair)(_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi));
}
/* _CMP_NLE_UQ: not less or equal, true for a NaN. */
DLRNI_INTERNAL uint32_t DLRNI_K(on)(DLRNI_K(v16) a) {
    const __m256 zero = _mm256_setzero_ps();
    return (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps(a.lo, zero, _CMP_NLE_UQ)) |
           (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps(a.hi, zero, _CMP_NLE_UQ)) << 8;
}
/* A, B, C, D: the four vectors after the first step of the tree. AB and CD have made the second
   step, t the third. */
DLRNI_INTERNAL void DLRNI_K(sum4)(const DLRNI_K(v16) *a, float *out) {
    __m256 A = _mm256_add_ps(a[0].lo, a[0].hi),
           B = _mm256_add_ps(a[1].lo, a[1].hi); /* +8: lanes l and l + 8 */
    __m256 C = _mm256_add_ps(a[2].lo, a[2].hi), D = _mm256_add_ps(a[3].lo, a[3].hi);
    __m256 AB = /* +4: A A A A B B B B; 0x20 takes the lower halves, 0x31 the upper ones */
        _mm256_add_ps(_mm256_permute2f128_ps(A, B, 0x20), _mm256_permute2f128_ps(A, B, 0x31));
    __m256 CD =
        _mm256_add_ps(_mm256_permute2f128_ps(C, D, 0x20), _mm256_permute2f128_ps(C, D, 0x31));
    __m256 t = _mm256_add_ps(_mm256_shuffle_ps(AB, CD, 0x44),
                             _mm256_shuffle_ps(AB, CD, 0xEE)); /* +2: A A C C B B D D */
    float lanes[8];
    _mm256_storeu_ps(lanes, _mm256_add_ps(t, _mm256_permute_ps(t, 0xB1))); /* +1 */
    out[0] = lanes[0];
    out[1] = lanes[4];
    out[2] = lanes[2];
    out[3] = lanes[6];
}

/* Four squares of 8 x 8, since eight registers hold one. Of rows a, b, c, ..., columns 0, 1, ...:

     loaded          a0 a1 a2 a3 | a4 a5 a6 a7
     unpack          a0 b0 a1 b1 | a4 b4 a5 b5     pairs of two rows
     shuffle         a0 b0 c0 d0 | a4 b4 c4 d4     fours of four rows
     permute         a0 b0 c0 d0 | e0 f0 g0 h0     a column of eight rows */
DLRNI_INTERNAL void DLRNI_K(transpose)(const float *from, int64_t ld_from, float *to,
                                       int64_t ld_to) {
    for (int square = 0; square < 4; square++) {
        const float *f = from + square / 2 * 8 * ld_from + square % 2 * 8;
        float *t = to + square % 2 * 8 * ld_to + square / 2 * 8; /* the mirrored place */
        __m256 a[8], b[8];
        DLRNI_UNROLL
        for (int i = 0; i < 8; i++) a[i] = _mm256_loadu_ps(f + i * ld_from);
        /* pairs */
        DLRNI_UNROLL
        for (int i = 0; i < 8; i += 2) {
            b[i] = _mm256_unpacklo_ps(a[i], a[i + 1]);
            b[i + 1] = _mm256_unpackhi_ps(a[i], a[i + 1]);
        }
        /* fours */
        DLRNI_UNROLL
        for (int i = 0; i < 8; i += 4) {
            a[i] = _mm256_shuffle_ps(b[i], b[i + 2], 0x44);         /* columns 0, 4 */
            a[i + 1] = _mm256_shuffle_ps(b[i], b[i + 2], 0xEE);     /* 1, 5 */
            a[i + 2] = _mm256_shuffle_ps(b[i + 1], b[i + 3], 0x44); /* 2, 6 */
            a[i + 3] = _mm256_shuffle_ps(b[i + 1], b[i + 3], 0xEE); /* 3, 7 */
        }
        /* columns */
        DLRNI_UNROLL
        for (int i = 0; i < 4; i++) {
            _mm256_storeu_ps(t + i * ld_to, _mm256_permute2f128_ps(a[i], a[i + 4], 0x20));
            _mm256_storeu_ps(t + (i + 4) * ld_to, _mm256_permute2f128_ps(a[i], a[i + 4], 0x31));
        }
    }
}

/* Words for the int16 screen: 16 of 32 bits, each a sum, or two int16 side by side. */
typedef struct DLRNI_K(words) {
    __m256i lo, hi;
} DLRNI_K(words);

/* From any address. The cast by way of void * keeps compilers from warning about alignment. */
DLRNI_INTERNAL DLRNI_K(words) DLRNI_K(load_words)(const unsigned char *p) {
    DLRNI_K(words) r;
    r.lo = _mm256_loadu_si256((const __m256i *)(const void *)p);
    r.hi = _mm256_loadu_si256((const __m256i *)(const void *)(p + 32));
    return r;
}
DLRNI_INTERNAL DLRNI_K(words) DLRNI_K(set_words)(int32_t a) {
    DLRNI_K(words) r;
    r.lo = r.hi = _mm256_set1_epi32(a);
    return r;
}
/* sum + a b, word by word, where the product of two pairs of int16 is their dot product. In
   assembly, because gcc 12 reorders the builtins: it forms all products first and spills the sums
   (a third of the speed). Two instructions for two multiply-adds: this is why int16 costs 0.72, not
   0.5. */
#define DLRNI_ADD_DOT(sum, a, b, t)                                                                \
    __asm__("vpmaddwd %3, %2, %1\n\tvpaddd %1, %0, %0" : "+x"(sum), "=&x"(t) : "x"(a), "x"(b))
DLRNI_INTERNAL DLRNI_K(words)
    DLRNI_K(add_dot)(DLRNI_K(words) sum, DLRNI_K(words) a, DLRNI_K(words) b) {
    __m256i t;
    DLRNI_ADD_DOT(sum.lo, a.lo, b.lo, t); /* t: a register for the product */
    DLRNI_ADD_DOT(sum.hi, a.hi, b.hi, t);
    return sum;
}
#undef DLRNI_ADD_DOT
/* Rounds sums above 2^24, by less than the margins in room screen. */
DLRNI_INTERNAL DLRNI_K(v16) DLRNI_K(float_of_words)(DLRNI_K(words) a) {
    return DLRNI_K(pair)(_mm256_cvtepi32_ps(a.lo), _mm256_cvtepi32_ps(a.hi));
}
/* Stores whole numbers as int16; numbers that do not fit, and NaN, become -32768 or 32767. packs
   works on halves of the register, so that the quarters come out as 0 2 1 3. */
DLRNI_INTERNAL void DLRNI_K(store_int16)(unsigned char *p, DLRNI_K(v16) a) {
    __m256i both = _mm256_packs_epi32(_mm256_cvtps_epi32(a.lo), _mm256_cvtps_epi32(a.hi));
    _mm256_storeu_si256((__m256i *)(void *)p,
                        _mm256_permute4x64_epi64(both, 0xD8)); /* back in order */
}

/* f16 to f32 on eight lanes. Exponent and fraction move up 13 bits, and the exponent's bias changes
   from 15 to 127: + 112. The exponent of infinity and NaN, 31, must become 255: + 112 once more. A
   subnormal has no leading 1: it is read with the exponent of 2^-14, as if it had one, and 2^-14 is
   subtracted again, exactly. Not the processor's own conversion: that is a further flag (F16C), and
   it changes signalling NaN. Measured on Zen 4, rows of 512: 13 times as fast as one by one. */
DLRNI_INTERNAL void DLRNI_K(widen_f16)(const char *from, float *to, int64_t n) {
    const __m256i bias = _mm256_set1_epi32(112 << 23), one = _mm256_set1_epi32(1 << 23);
    const __m256 smallest = _mm256_castsi256_ps(_mm256_set1_epi32(113 << 23)); /* 2^-14 */
    int64_t at = 0;
    for (; n - at >= 8; at += 8) {
        __m256i h = /* eight f16, one in each word */
            _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(const void *)(from + 2 * at)));
        __m256i sign = _mm256_slli_epi32(_mm256_and_si256(h, _mm256_set1_epi32(0x8000)), 16);
        __m256i a = _mm256_slli_epi32(_mm256_and_si256(h, _mm256_set1_epi32(0x7fff)), 13);
        __m256i top = _mm256_cmpgt_epi32(a, _mm256_set1_epi32((31 << 23) - 1)); /* infinity, NaN */
        __m256i tiny = _mm256_cmpgt_epi32(one, a);                              /* subnormal     */
        a = _mm256_add_epi32(a, _mm256_add_epi32(bias, _mm256_and_si256(bias, top))); /* + 112 */
        __m256 exact = _mm256_sub_ps(_mm256_castsi256_ps(_mm256_add_epi32(a, one)), smallest);
        __m256 u = _mm256_blendv_ps(_mm256_castsi256_ps(a), exact, _mm256_castsi256_ps(tiny));
        _mm256_storeu_ps(to + at, _mm256_or_ps(u, _mm256_castsi256_ps(sign)));
    }
    dlrni_widen_plain(DLRN_F16, from + 2 * at, to + at, n - at); /* the rest, fewer than eight */
}

#define DLRNI_HAS_SCREENS /* f32 */
#define DLRNI_HAS_INT16   /* and int16, cheaper */
#define DLRNI_HAS_F16     /* widen_f16 */
#define DLRNI_OWN_CRC32 dlrni_crc32_folded
#define DLRNI_COMPILE_BODIES
#include DICTLEARN_HEADER_NAME
#undef DLRNI_COMPILE_BODIES
#undef DLRNI_HAS_SCREENS
#undef DLRNI_HAS_INT16
#undef DLRNI_HAS_F16
#undef DLRNI_OWN_CRC32
#undef DLRNI_K
DLRNI_TARGET_END

/* ---- avx512 ----

   32 registers of 16 floats; a v16 is one of them. */

/* The four parts of AVX-512 that the code uses. Skylake-SP and later have them all; Xeon Phi does
   not. */
DLRNI_INTERNAL int dlrni_avx512_runs(void) {
    return dlrni_avx2_runs() && __builtin_cpu_supports("avx512f") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl");
}

DLRNI_TARGET_BEGIN("avx512f,avx512dq,avx512bw,avx512vl,fma,pclmul")
#define DLRNI_K(name) dlrni_avx512_##name
/* Registers: nt 24 sums, 4 of a, 1 of b; outer 24 sums, 3 of the panel, 1 broadcast; gather 16
   sums. */
enum {
    DLRNI_K(nt_rows) = 4,
    DLRNI_K(nt_cols) = 6,
    DLRNI_K(outer_rows) = 8,
    DLRNI_K(outer_vectors) = 3,
    DLRNI_K(gather_vectors) = 16
};
typedef __m512 DLRNI_K(v16);

/* Why so many intrinsics here have a mask of all lanes (maskz): without one, gcc 12 implements them
   with _mm512_undefined_ps(), and then warns about that. The instructions are the same. */
DLRNI_INTERNAL DLRNI_K(v16) DLRNI_K(set1)(float a) {
    return _mm512_set1_ps(a);
}
DLRNI_INTERNAL DLRNI_K(v16) DLRNI_K(load)(const float *p) {
    return _mm512_loadu_ps(p);
}
DLRNI_INTERNAL void DLRNI_K(store)(float *p, DLRNI_K(v16) a) {
    _mm512_storeu_ps(p, a);
}
#define DLRNI_LANEWISE(name, operation)                                                            \
    DLRNI_INTERNAL DLRNI_K(v16) DLRNI_K(name)(DLRNI_K(v16) a, DLRNI_K(v16) b) {                    \
        return operation(a, b);                                                                    \
    }
DLRNI_LANEWISE(add, _mm512_add_ps)
DLRNI_LANEWISE(minus, _mm512_sub_ps)
DLRNI_LANEWISE(mul, _mm512_mul_ps)
DLRNI_LANEWISE(div, _mm512_div_ps)
#undef DLRNI_LANEWISE
DLRNI_INTERNAL DLRNI_K(v16) DLRNI_K(max)(DLRNI_K(v16) a, DLRNI_K(v16) b) { /* a NaN in a stays */
    return _mm512_maskz_max_ps((__mmask16)0xFFFF, b, a);
}
/* A NaN gives 1, as in avx2. */
DLRNI_INTERNAL DLRNI_K(v16) DLRNI_K(pow2)(DLRNI_K(v16) a) {
    __m512i n =
        _mm512_add_epi32(_mm512_maskz_cvtps_epi32((__mmask16)0xFFFF, a), _mm512_set1_epi32(127));
    return _mm512_castsi512_ps(_mm512_maskz_slli_epi32((__mmask16)0xFFFF, n, 23));
}
DLRNI_INTERNAL DLRNI_K(v16) DLRNI_K(sqrt)(DLRNI_K(v16) a) {
    return _mm512_maskz_sqrt_ps((__mmask16)0xFFFF, a);
}
DLRNI_INTERNAL DLRNI_K(v16) DLRNI_K(fma)(DLRNI_K(v16) a, DLRNI_K(v16) b, DLRNI_K(v16) c) {
    return _mm512_fmadd_ps(a, b, c);
}
/* True for a NaN, as in avx2. */
DLRNI_INTERNAL uint32_t DLRNI_K(on)(DLRNI_K(v16) a) {
    return _mm512_cmp_ps_mask(a, _mm512_setzero_ps(), _CMP_NLE_UQ);
}
/* Quarters of four lanes: two of a, then two of b. 0x44 takes 0 1, 0xEE 2 3, 0x88 0 2, 0xDD 1 3. */
#define DLRNI_SHUFFLE(a, b, order) _mm512_maskz_shuffle_f32x4((__mmask16)0xFFFF, a, b, order)
/* The same tree as in avx2, with half of the shuffles: four vectors end in the lanes of one. */
DLRNI_INTERNAL void DLRNI_K(sum4)(const DLRNI_K(v16) *a, float *out) {
    __m512 AB = _mm512_add_ps(DLRNI_SHUFFLE(a[0], a[1], 0x44),
                              DLRNI_SHUFFLE(a[0], a[1], 0xEE)); /* +8: A, B: 8 lanes each */
    __m512 CD = _mm512_add_ps(DLRNI_SHUFFLE(a[2], a[3], 0x44), DLRNI_SHUFFLE(a[2], a[3], 0xEE));
    __m512 t = _mm512_add_ps(DLRNI_SHUFFLE(AB, CD, 0x88),
                             DLRNI_SHUFFLE(AB, CD, 0xDD)); /* +4: A, B, C, D: 4 lanes each */
    t = _mm512_add_ps(t, _mm512_maskz_permute_ps((__mmask16)0xFFFF, t, 0x4E)); /* +2 */
    t = _mm512_add_ps(t, _mm512_maskz_permute_ps((__mmask16)0xFFFF, t, 0xB1)); /* +1 */
    t = _mm512_maskz_compress_ps((__mmask16)0x1111, t); /* lanes 0, 4, 8, 12 */
    _mm_storeu_ps(out, _mm512_maskz_extractf32x4_ps((__mmask8)0xF, t, 0));
}
/* The square of 16 x 16 in 16 registers. As in avx2, pairs and fours of rows are interleaved. Then
   quarter q of a[i] holds column 4 q + i of four rows, and two rounds of DLRNI_SHUFFLE collect a
   column of 16 rows: the first takes even or odd quarters, the second one half of these. */
#define DLRNI_PAIRS(lo_hi, a, b) _mm512_maskz_unpack##lo_hi##_ps((__mmask16)0xFFFF, a, b)
#define DLRNI_FOURS(lo_hi, a, b)                                                                   \
    _mm512_castpd_ps(                                                                              \
        _mm512_maskz_unpack##lo_hi##_pd((__mmask8)0xFF, _mm512_castps_pd(a), _mm512_castps_pd(b)))
DLRNI_INTERNAL void DLRNI_K(transpose)(const float *from, int64_t ld_from, float *to,
                                       int64_t ld_to) {
    __m512 a[16], b[16];
    /* rows */
    DLRNI_UNROLL
    for (int i = 0; i < 16; i++) a[i] = _mm512_loadu_ps(from + i * ld_from);
    /* pairs */
    DLRNI_UNROLL
    for (int i = 0; i < 16; i += 2) {
        b[i] = DLRNI_PAIRS(lo, a[i], a[i + 1]);
        b[i + 1] = DLRNI_PAIRS(hi, a[i], a[i + 1]);
    }
    /* fours */
    DLRNI_UNROLL
    for (int i = 0; i < 16; i += 4) {
        a[i] = DLRNI_FOURS(lo, b[i], b[i + 2]);
        a[i + 1] = DLRNI_FOURS(hi, b[i], b[i + 2]);
        a[i + 2] = DLRNI_FOURS(lo, b[i + 1], b[i + 3]);
        a[i + 3] = DLRNI_FOURS(hi, b[i + 1], b[i + 3]);
    }
    /* columns */
    DLRNI_UNROLL
    for (int i = 0; i < 4; i++) {
        __m512 even0 = DLRNI_SHUFFLE(a[i], a[i + 4], 0x88), /* columns i, i + 8 */
            even1 = DLRNI_SHUFFLE(a[i + 8], a[i + 12], 0x88);
        __m512 odd0 = DLRNI_SHUFFLE(a[i], a[i + 4], 0xDD), /* columns i + 4, i + 12 */
            odd1 = DLRNI_SHUFFLE(a[i + 8], a[i + 12], 0xDD);
        _mm512_storeu_ps(to + i * ld_to, DLRNI_SHUFFLE(even0, even1, 0x88));
        _mm512_storeu_ps(to + (i + 4) * ld_to, DLRNI_SHUFFLE(odd0, odd1, 0x88));
        _mm512_storeu_ps(to + (i + 8) * ld_to, DLRNI_SHUFFLE(even0, even1, 0xDD));
        _mm512_storeu_ps(to + (i + 12) * ld_to, DLRNI_SHUFFLE(odd0, odd1, 0xDD));
    }
}
#undef DLRNI_PAIRS
#undef DLRNI_FOURS
#undef DLRNI_SHUFFLE

/* Words for the int16 screen, and add_dot in assembly for the same reason: see avx2. */
typedef __m512i DLRNI_K(words);

DLRNI_INTERNAL DLRNI_K(words) DLRNI_K(load_words)(const unsigned char *p) {
    return _mm512_loadu_si512(p);
}
DLRNI_INTERNAL DLRNI_K(words) DLRNI_K(set_words)(int32_t a) {
    return _mm512_set1_epi32(a);
}
DLRNI_INTERNAL DLRNI_K(words)
    DLRNI_K(add_dot)(DLRNI_K(words) sum, DLRNI_K(words) a, DLRNI_K(words) b) {
    __m512i t;
    __asm__("vpmaddwd %3, %2, %1\n\tvpaddd %1, %0, %0" : "+v"(sum), "=&v"(t) : "v"(a), "v"(b));
    return sum;
}
DLRNI_INTERNAL DLRNI_K(v16) DLRNI_K(float_of_words)(DLRNI_K(words) a) {
    return _mm512_maskz_cvtepi32_ps((__mmask16)0xFFFF, a);
}
/* An instruction that saturates and keeps the order: no shuffle as in avx2. */
DLRNI_INTERNAL void DLRNI_K(store_int16)(unsigned char *p, DLRNI_K(v16) a) {
    _mm256_storeu_si256((__m256i *)(void *)p,
                        _mm512_maskz_cvtsepi32_epi16(
                            (__mmask16)0xFFFF, _mm512_maskz_cvtps_epi32((__mmask16)0xFFFF, a)));
}

/* f16 by the processor's own conversion. It would change a signalling NaN, so rows with any NaN are
   done again by the plain loop. Measured on Zen 4, rows of 512: 49 times as fast as that. */
DLRNI_INTERNAL void DLRNI_K(widen_f16)(const char *from, float *to, int64_t n) {
    const __m256i magnitude = _mm256_set1_epi16(0x7fff), infinity = _mm256_set1_epi16(0x7c00);
    __m256i nan = _mm256_setzero_si256();
    int64_t at = 0;
    for (; n - at >= 16; at += 16) {
        __m256i h = _mm256_loadu_si256((const __m256i *)(const void *)(from + 2 * at));
        nan = _mm256_or_si256(nan, _mm256_cmpgt_epi16(_mm256_and_si256(h, magnitude), infinity));
        _mm512_storeu_ps(to + at, _mm512_maskz_cvtph_ps((__mmask16)0xFFFF, h));
    }
    if (_mm256_movemask_epi8(nan)) at = 0;                       /* from the start */
    dlrni_widen_plain(DLRN_F16, from + 2 * at, to + at, n - at); /* the rest, or all */
}

#define DLRNI_HAS_SCREENS /* f32 */
#define DLRNI_HAS_INT16   /* and int16, cheaper */
#define DLRNI_HAS_F16     /* widen_f16 */
#define DLRNI_OWN_CRC32 dlrni_crc32_folded
#define DLRNI_OWN_COLLECT /* compress is an instruction */
/* A mask of the first n lanes, or of all: masked loads and stores touch no memory after a row. */
DLRNI_INTERNAL __mmask16 DLRNI_K(first_lanes)(int64_t n) {
    return (__mmask16)(n >= DLRNI_LANES ? 0xFFFF : (1 << n) - 1);
}

/* The lanes that stay are compressed to the front, and their indices likewise. Stores are of 16
   lanes: count is at most j, so that they end within DLRNI_GROUP. */
DLRNI_INTERNAL int64_t DLRNI_K(collect)(const float *f, const float *bias, const float *threshold,
                                        float row_floor, int64_t n, int32_t first, int32_t *key,
                                        float *val) {
    int64_t count = 0;
    const __m512 floor_of_row = _mm512_set1_ps(row_floor);
    for (int64_t j = 0; j < n; j += DLRNI_LANES) {
        const __mmask16 part = DLRNI_K(first_lanes)(n - j);
        __m512 pre = _mm512_maskz_add_ps(part, _mm512_maskz_loadu_ps(part, f + j),
                                         _mm512_maskz_loadu_ps(part, bias + j));
        __m512 floor = threshold ? _mm512_maskz_max_ps(part, floor_of_row,
                                                       _mm512_maskz_loadu_ps(part, threshold + j))
                                 : floor_of_row;
        __m512i index = _mm512_add_epi32(
            _mm512_set1_epi32(first + (int32_t)j),
            _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
        __mmask16 on = _mm512_mask_cmp_ps_mask(part, pre, floor, _CMP_NLE_UQ); /* or NaN */
        _mm512_storeu_ps(val + count, _mm512_maskz_compress_ps(on, pre));
        _mm512_storeu_si512(key + count, _mm512_maskz_compress_epi32(on, index));
        count += __builtin_popcount(on); /* of 16 lanes */
    }
    return count;
}

#define DLRNI_COMPILE_BODIES
#include DICTLEARN_HEADER_NAME
#undef DLRNI_COMPILE_BODIES
#undef DLRNI_HAS_SCREENS
#undef DLRNI_HAS_INT16
#undef DLRNI_HAS_F16
#undef DLRNI_OWN_CRC32
#undef DLRNI_OWN_COLLECT
#undef DLRNI_K
DLRNI_TARGET_END

/* ---- avx512bf16: the kernels of avx512 and a screen ----

   bf16 has the exponents of f32, so rows need no scale: scale is 1. */

/* Cooper Lake, Sapphire Rapids and Zen 4 were the first to have it. */
DLRNI_INTERNAL int dlrni_avx512bf16_runs(void) {
    return dlrni_avx512_runs() && __builtin_cpu_supports("avx512bf16");
}

DLRNI_TARGET_BEGIN("avx512f,avx512dq,avx512bw,avx512vl,fma,pclmul,avx512bf16")
/* vcvtneps2bf16 rounds to nearest even and takes subnormals as zero; the difference counts as
   error. */
DLRNI_INTERNAL void dlrni_avx512bf16_round(const float *x, int64_t n, int unsigned_, void *out,
                                           dlrni_rounding *r) {
    __m512 full = _mm512_setzero_ps(), rounded = full, error = full;
    (void)unsigned_; /* signed on both sides */
    for (int64_t p = 0; p < n; p += DLRNI_LANES) {
        __mmask16 part = dlrni_avx512_first_lanes(n - p);
        __m512 a = _mm512_maskz_loadu_ps(part, x + p);
        __m256i half = (__m256i)_mm512_cvtneps_pbh(a);
        __m512i wide = _mm512_maskz_cvtepu16_epi32((__mmask16)0xFFFF, half);
        /* back in f32, to see what was lost */
        __m512 back = _mm512_castsi512_ps(_mm512_maskz_slli_epi32((__mmask16)0xFFFF, wide, 16));
        __m512 off = _mm512_sub_ps(a, back);
        full = _mm512_fmadd_ps(a, a, full); /* squares of norms, in 16 sums */
        rounded = _mm512_fmadd_ps(back, back, rounded);
        error = _mm512_fmadd_ps(off, off, error);
        _mm256_mask_storeu_epi16((uint16_t *)out + p, part, half);
    }
    const __m512 sums[4] = {full, rounded, error, error}; /* sum4 wants four */
    float squares[4];
    dlrni_avx512_sum4(sums, squares);
    r->full = squares[0];
    r->rounded = squares[1];
    r->error = squares[2];
    r->scale = 1;
    r->sum = 0; /* only int8 has a shift to undo */
}

/* vdpbf16ps in assembly: the builtin's type crashes clang 16 (in its pass VectorCombine), and gcc
   12 spills the sums around the builtin, as it does around vpdpbusd below. */
#define DLRNI_DPBF16(sum, a, b) __asm__("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b))
/* 8 rows x 3 vectors of sums in 24 registers. A word of the panel holds two numbers of one feature;
   two numbers of a row, as one word, are broadcast to meet them. */
DLRNI_INTERNAL void dlrni_avx512bf16_tile(const void *panel, const void *x, int64_t ld,
                                          int64_t steps, const float *coef,
                                          const dlrni_screen_row *row, uint64_t *mask) {
    const unsigned char *w = (const unsigned char *)panel, *at = (const unsigned char *)x;
    __m512 s[8][3];
    DLRNI_UNROLL
    for (int i = 0; i < 8; i++) {
        DLRNI_UNROLL
        for (int v = 0; v < 3; v++) s[i][v] = _mm512_setzero_ps();
    }
    for (int64_t p = 0; p < steps; p++, w += 4 * DLRNI_GROUP, at += 4) { /* a word of each */
        __m512i w0 = _mm512_loadu_si512(w), w1 = _mm512_loadu_si512(w + 64),
                w2 = _mm512_loadu_si512(w + 128);
        DLRNI_UNROLL
        for (int i = 0; i < 8; i++) {
            int32_t two; /* as an integer, which the compiler broadcasts from memory */
            memcpy(&two, at + i * ld, sizeof two);
            __m512i b = _mm512_set1_epi32(two);
            DLRNI_DPBF16(s[i][0], w0, b);
            DLRNI_DPBF16(s[i][1], w1, b);
            DLRNI_DPBF16(s[i][2], w2, b);
        }
    }
    DLRNI_UNROLL
    for (int i = 0; i < 8; i++) mask[i] = dlrni_avx512_screen_mask(s[i], coef, row + i);
}

#undef DLRNI_DPBF16

/* 8 rows, 2 bytes, 2 in a word, f32 sums; for its cost see struct dlrni_screen. */
static const dlrni_screen dlrni_avx512bf16_screen = {
    "bf16", 8, 2, 2, 1, 0.53f, dlrni_avx512bf16_round, dlrni_avx512bf16_tile};
DLRNI_TARGET_END

/* ---- avx512vnni: the kernels of avx512 and a screen ----

   vpdpbusd multiplies unsigned by signed bytes, four of each a lane, and adds them to a sum of 32
   bits, exactly. Features are the unsigned side: q + 128. A row x then gives w.x + 128 sum(x), and
   the tile starts at `shift` = -128 sum(x) to undo that. d <= 2^15 keeps the sums below 2^31: 255 *
   127 * d. */

/* Cascade Lake and Zen 4 were the first to have it. */
DLRNI_INTERNAL int dlrni_avx512vnni_runs(void) {
    return dlrni_avx512_runs() && __builtin_cpu_supports("avx512vnni");
}

DLRNI_TARGET_BEGIN("avx512f,avx512dq,avx512bw,avx512vl,fma,pclmul,avx512vnni")
/* The scale of a row for int8, by which its largest magnitude becomes 127. Zeros have no largest
   and take the scale 1. */
DLRNI_INTERNAL float dlrni_avx512vnni_scale(const float *x, int64_t n) {
    __m512 top = _mm512_setzero_ps();
    float lane[DLRNI_LANES], largest = 0;
    for (int64_t p = 0; p < n; p += DLRNI_LANES) {
        __mmask16 part = dlrni_avx512_first_lanes(n - p);
        top = _mm512_maskz_max_ps((__mmask16)0xFFFF, top,
                                  _mm512_abs_ps(_mm512_maskz_loadu_ps(part, x + p)));
    }
    _mm512_storeu_ps(lane, top);
    for (int i = 0; i < DLRNI_LANES; i++) largest = fmaxf(largest, lane[i]);
    return largest > 0 ? largest / 127.0f : 1.0f;
}

/* int8 with one scale a row. A NaN or an infinity converts to INT_MIN, which would overflow the
   sums, and is made -127; the norms keep it, so the screen drops nothing. */
DLRNI_INTERNAL void dlrni_avx512vnni_round(const float *x, int64_t n, int unsigned_, void *out,
                                           dlrni_rounding *r) {
    const __m512i flip = _mm512_set1_epi32(unsigned_ ? 128 : 0);
    __m512 full = _mm512_setzero_ps(), rounded = full, error = full;
    __m512i sum = _mm512_setzero_si512();
    float squares[4];
    int32_t part_sum[DLRNI_LANES];
    const float scale = dlrni_avx512vnni_scale(x, n);
    const __m512 s = _mm512_set1_ps(scale), inverse = _mm512_set1_ps(1.0f / scale);
    for (int64_t p = 0; p < n; p += DLRNI_LANES) {
        __mmask16 part = dlrni_avx512_first_lanes(n - p);
        __m512 a = _mm512_maskz_loadu_ps(part, x + p);
        __m512i q = _mm512_maskz_cvtps_epi32((__mmask16)0xFFFF, _mm512_mul_ps(a, inverse));
        q = _mm512_maskz_max_epi32((__mmask16)0xFFFF, q, _mm512_set1_epi32(-127)); /* not INT_MIN */
        __m512 back = _mm512_maskz_cvtepi32_ps((__mmask16)0xFFFF, q), /* without its scale */
            off = _mm512_fnmadd_ps(s, back, a);
        full = _mm512_fmadd_ps(a, a, full); /* squares of norms, in 16 sums */
        rounded = _mm512_fmadd_ps(back, back, rounded);
        error = _mm512_fmadd_ps(off, off, error);
        sum = _mm512_add_epi32(sum, q);
        _mm_mask_storeu_epi8(
            (unsigned char *)out + p, part,
            _mm512_maskz_cvtepi32_epi8((__mmask16)0xFFFF, _mm512_add_epi32(q, flip)));
    }
    const __m512 sums[4] = {full, rounded, error, error}; /* sum4 wants four */
    dlrni_avx512_sum4(sums, squares);
    r->full = squares[0];
    r->rounded = scale * scale * squares[1]; /* the sum was of integers */
    r->error = squares[2];
    r->scale = scale;
    r->sum = 0;
    _mm512_storeu_si512(part_sum, sum);
    for (int i = 0; i < DLRNI_LANES; i++) r->sum += part_sum[i];
}

/* vpdpbusd in assembly: around the builtin gcc 12 copies and spills the sums. Measured on Zen 4: 44
   % of the instruction's peak with the builtin, 94 % this way. */
#define DLRNI_DPBUSD(sum, a, b) __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b))
/* As the tile of bf16, with four numbers of one feature a word, and sums that start at the row's
   shift. They become floats only at the end. */
DLRNI_INTERNAL void dlrni_avx512vnni_tile(const void *panel, const void *x, int64_t ld,
                                          int64_t steps, const float *coef,
                                          const dlrni_screen_row *row, uint64_t *mask) {
    const unsigned char *w = (const unsigned char *)panel, *at = (const unsigned char *)x;
    __m512i s[8][3];
    DLRNI_UNROLL
    for (int i = 0; i < 8; i++) {
        DLRNI_UNROLL
        for (int v = 0; v < 3; v++) s[i][v] = _mm512_set1_epi32(row[i].shift);
    }
    for (int64_t p = 0; p < steps; p++, w += 4 * DLRNI_GROUP, at += 4) { /* a word of each */
        __m512i w0 = _mm512_loadu_si512(w), w1 = _mm512_loadu_si512(w + 64),
                w2 = _mm512_loadu_si512(w + 128);
        DLRNI_UNROLL
        for (int i = 0; i < 8; i++) {
            int32_t four; /* of a row */
            memcpy(&four, at + i * ld, sizeof four);
            __m512i b = _mm512_set1_epi32(four);
            DLRNI_DPBUSD(s[i][0], w0, b);
            DLRNI_DPBUSD(s[i][1], w1, b);
            DLRNI_DPBUSD(s[i][2], w2, b);
        }
    }
    DLRNI_UNROLL
    for (int i = 0; i < 8; i++) {
        __m512 sum[3];
        DLRNI_UNROLL
        for (int v = 0; v < 3; v++) sum[v] = _mm512_maskz_cvtepi32_ps((__mmask16)0xFFFF, s[i][v]);
        mask[i] = dlrni_avx512_screen_mask(sum, coef, row + i);
    }
}
#undef DLRNI_DPBUSD

/* 8 rows, 1 byte, 4 in a word, exact sums; for its cost see struct dlrni_screen. */
static const dlrni_screen dlrni_avx512vnni_screen = {
    "int8", 8, 1, 4, 0, 0.27f, dlrni_avx512vnni_round, dlrni_avx512vnni_tile};
DLRNI_TARGET_END

#endif /* DLRNI_X86 */

#if DLRNI_NEON
/* ---- neon ----

   32 registers of 4 floats; a v16 is four of them. Written against the manual and run under
   emulation; nobody has measured it on a processor of its own. */

/* Every aarch64 processor has it. */
DLRNI_INTERNAL int dlrni_neon_runs(void) {
    return 1;
}

#define DLRNI_K(name) dlrni_neon_##name
/* Registers: nt 24 sums, 8 of a; outer 24 sums, 4 of the panel, 1 broadcast; gather 16 sums. */
enum {
    DLRNI_K(nt_rows) = 2,
    DLRNI_K(nt_cols) = 3,
    DLRNI_K(outer_rows) = 6,
    DLRNI_K(outer_vectors) = 1,
    DLRNI_K(gather_vectors) = 4
};
typedef struct DLRNI_K(v16) {
    float32x4_t q[4]; /* lanes 0 to 3, 4 to 7, ... */
} DLRNI_K(v16);

DLRNI_INTERNAL DLRNI_K(v16) DLRNI_K(set1)(float a) {
    DLRNI_K(v16) r;
    DLRNI_UNROLL
    for (int i = 0; i < 4; i++) r.q[i] = vdupq_n_f32(a);
    return r;
}
DLRNI_INTERNAL DLRNI_K(v16) DLRNI_K(load)(const float *p) {
    DLRNI_K(v16) r;
    DLRNI_UNROLL
    for (int i = 0; i < 4; i++) r.q[i] = vld1q_f32(p + 4 * i);
    return r;
}
DLRNI_INTERNAL void DLRNI_K(store)(float *p, DLRNI_K(v16) a) {
    DLRNI_UNROLL
    for (int i = 0; i < 4; i++) vst1q_f32(p + 4 * i, a.q[i]);
}
#define DLRNI_LANEWISE(name, expression)                                                           \
    DLRNI_INTERNAL DLRNI_K(v16) DLRNI_K(name)(DLRNI_K(v16) a, DLRNI_K(v16) b) {                    \
        DLRNI_UNROLL                                                                               \
        for (int i = 0; i < 4; i++) a.q[i] = expression;                                           \
        return a;                                                                                  \
    }
DLRNI_LANEWISE(add, vaddq_f32(a.q[i], b.q[i]))
DLRNI_LANEWISE(minus, vsubq_f32(a.q[i], b.q[i]))
DLRNI_LANEWISE(mul, vmulq_f32(a.q[i], b.q[i]))
DLRNI_LANEWISE(div, vdivq_f32(a.q[i], b.q[i]))
/* Not vmaxq: it returns NaN where b is one, and the other sets return a. */
DLRNI_LANEWISE(max, vbslq_f32(vcgtq_f32(b.q[i], a.q[i]), b.q[i], a.q[i])) /* a NaN in a stays */
#undef DLRNI_LANEWISE
/* A NaN converts to 0 and gives 1; exp's sum is a NaN then, so it is not lost. */
DLRNI_INTERNAL DLRNI_K(v16) DLRNI_K(pow2)(DLRNI_K(v16) a) {
    DLRNI_UNROLL
    for (int i = 0; i < 4; i++)
        a.q[i] = vreinterpretq_f32_s32(
            vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(a.q[i]), vdupq_n_s32(127)), 23));
    return a;
}
DLRNI_INTERNAL DLRNI_K(v16) DLRNI_K(sqrt)(DLRNI_K(v16) a) {
    DLRNI_UNROLL
    for (int i = 0; i < 4; i++) a.q[i] = vsqrtq_f32(a.q[i]);
    return a;
}
DLRNI_INTERNAL DLRNI_K(v16) DLRNI_K(fma)(DLRNI_K(v16) a, DLRNI_K(v16) b, DLRNI_K(v16) c) {
    DLRNI_UNROLL
    for (int i = 0; i < 4; i++)
        c.q[i] = vfmaq_f32(c.q[i], a.q[i], b.q[i]); /* the sum comes first */
    return c;
}
/* NEON has no mask of lanes: each lane that is on keeps its own bit, and the bits are added. */
DLRNI_INTERNAL uint32_t DLRNI_K(on)(DLRNI_K(v16) a) {
    static const uint32_t bit[4] = {1, 2, 4, 8};
    uint32_t mask = 0;
    for (int i = 0; i < 4; i++)
        mask |= vaddvq_u32(vbicq_u32(vld1q_u32(bit), vcleq_f32(a.q[i], vdupq_n_f32(0.0f))))
                << 4 * i;
    return mask;
}
/* The four vectors one after the other: that the shuffles of avx2 would pay here is not known. */
DLRNI_INTERNAL void DLRNI_K(sum4)(const DLRNI_K(v16) *a, float *out) {
    for (int v = 0; v < 4; v++) {
        float32x4_t lo = vaddq_f32(a[v].q[0], a[v].q[2]),
                    hi = vaddq_f32(a[v].q[1], a[v].q[3]);            /* +8 */
        float32x4_t t = vaddq_f32(lo, hi);                           /* +4 */
        float32x2_t u = vadd_f32(vget_low_f32(t), vget_high_f32(t)); /* +2 */
        out[v] = vget_lane_f32(u, 0) + vget_lane_f32(u, 1);          /* +1 */
    }
}
/* 16 squares of 4 x 4. */
DLRNI_INTERNAL void DLRNI_K(transpose)(const float *from, int64_t ld_from, float *to,
                                       int64_t ld_to) {
    for (int i = 0; i < DLRNI_LANES; i += 4)
        for (int j = 0; j < DLRNI_LANES; j += 4) {
            float32x4x4_t square; /* the load splits rows of four words into columns */
            float part[16];
            for (int r = 0; r < 4; r++) /* a square of rows */
                memcpy(part + 4 * r, from + (i + r) * ld_from + j, 4 * sizeof *part);
            square = vld4q_f32(part);
            for (int r = 0; r < 4; r++) vst1q_f32(to + (j + r) * ld_to + i, square.val[r]);
        }
}

/* Without DLRNI_HAS_F16 and DLRNI_OWN_CRC32: the plain loops have not been measured here. */

#define DLRNI_HAS_SCREENS /* f32 only: int16 and int8 are not written for NEON */
#define DLRNI_COMPILE_BODIES
#include DICTLEARN_HEADER_NAME
#undef DLRNI_COMPILE_BODIES
#undef DLRNI_HAS_SCREENS
#undef DLRNI_K

#endif /* DLRNI_NEON */

#endif /* the blocks */

#ifdef DLRNI_COMPILE_BODIES
/* ---- The kernels, the same text for all sets ----

   They differ between sets only in tile sizes, and so give the same bits. Leading dimensions (ld)
   and strides are in floats. */

/* Fail to compile where a set's sizes do not fit: a v16 is 16 floats; the vectors of a panel are
   covered by whole tiles; the arrays for masks have room for a tile's rows. */
typedef char DLRNI_K(v16_holds_16_floats)[sizeof(DLRNI_K(v16)) == DLRNI_LANES * 4 ? 1 : -1];
typedef char DLRNI_K(outer_vectors_divide_a_group)
    [DLRNI_GROUP / DLRNI_LANES % (int)DLRNI_K(outer_vectors) == 0 ? 1 : -1];
typedef char DLRNI_K(outer_rows_fit_a_mask)[(int)DLRNI_K(outer_rows) <= DLRNI_SCREEN_ROWS ? 1 : -1];

/* Part of a vector, n < 16 lanes: the others read as zero and are not written. Zeros add nothing to
   a sum. The detour through memory costs little: only the last vector of a row takes it. */
DLRNI_INTERNAL DLRNI_K(v16) DLRNI_K(load_part)(const float *p, int64_t n) {
    float t[DLRNI_LANES] = {0};
    memcpy(t, p, (size_t)n * sizeof *t);
    return DLRNI_K(load)(t);
}
DLRNI_INTERNAL void DLRNI_K(store_part)(float *p, DLRNI_K(v16) a, int64_t n) {
    float t[DLRNI_LANES];
    DLRNI_K(store)(t, a);
    memcpy(p, t, (size_t)n * sizeof *t);
}

/* One sum, as the canonical order has it; its latency is the price. dots and dots_nt form several
   sums at a time and are used wherever there is more than one product. s[1] to s[3] only fill up
   sum4. */
DLRNI_INTERNAL float DLRNI_K(dot)(const float *a, const float *b, int64_t n) {
    DLRNI_K(v16) s[4];
    float out[4];
    DLRNI_UNROLL
    for (int i = 0; i < 4; i++) s[i] = DLRNI_K(set1)(0);
    int64_t p = 0; /* the whole vectors, then the rest */
    for (; p + DLRNI_LANES <= n; p += DLRNI_LANES)
        s[0] = DLRNI_K(fma)(DLRNI_K(load)(a + p), DLRNI_K(load)(b + p), s[0]);
    if (p < n)
        s[0] =
            DLRNI_K(fma)(DLRNI_K(load_part)(a + p, n - p), DLRNI_K(load_part)(b + p, n - p), s[0]);
    DLRNI_K(sum4)(s, out);
    return out[0];
}

/* Four sums at a time hide the latency of the additions. The next four rows are prefetched
   meanwhile. They lie anywhere, and each is too short for the processor to predict where reading
   goes on. Measured on Zen 4, one row of x, d 512, F 32768, as a share of the read bandwidth: 0.69
   without, 0.94 with, and 0.76 with prefetches into the first cache. To measure elsewhere: `make
   bench`, rows encode. */
DLRNI_INTERNAL void DLRNI_K(dots)(const float *x, int64_t n, const float *base, int64_t ld,
                                  const int32_t *idx, int64_t count, float *out) {
    enum { ROWS = 4 };
    for (int64_t q = 0; q < count; q += ROWS) {
        DLRNI_K(v16) s[ROWS];
        const float *row[ROWS], *next[ROWS]; /* next: only prefetched */
        float sum[ROWS];
        int64_t p = 0;
        DLRNI_UNROLL
        for (int i = 0; i < ROWS; i++) {
            row[i] = base + idx[dlrni_min(q + i, count - 1)] * ld; /* the last one repeats */
            next[i] = base + idx[dlrni_min(q + ROWS + i, count - 1)] * ld;
            s[i] = DLRNI_K(set1)(0);
        }
        for (; p + DLRNI_LANES <= n; p += DLRNI_LANES) {
            DLRNI_K(v16) a = DLRNI_K(load)(x + p);
            DLRNI_UNROLL
            for (int i = 0; i < ROWS; i++) {
                DLRNI_PREFETCH_FAR(next[i] + p);
                s[i] = DLRNI_K(fma)(DLRNI_K(load)(row[i] + p), a, s[i]);
            }
        }
        for (int i = 0; i < ROWS && p < n; i++)
            s[i] = DLRNI_K(fma)(DLRNI_K(load_part)(row[i] + p, n - p),
                                DLRNI_K(load_part)(x + p, n - p), s[i]);
        DLRNI_K(sum4)(s, sum);
        memcpy(out + q, sum,
               (size_t)dlrni_min(ROWS, count - q) * sizeof *out); /* without repeats */
    }
}

/* A tile of nt_rows rows of a by nt_cols rows of b, with all sums in registers. Both operands are
   read along their rows, so that nothing is packed. A row beyond the edge repeats the last one, so
   that the loops keep their fixed length; its sums are not stored. */
DLRNI_INTERNAL void DLRNI_K(nt_tile)(int64_t m, int64_t n, int64_t k, const float *a, int64_t lda,
                                     const float *b, int64_t ldb, float *c, int64_t ldc) {
    enum { ROWS = DLRNI_K(nt_rows), COLS = DLRNI_K(nt_cols), SUMS = (ROWS * COLS + 3) / 4 * 4 };
    DLRNI_K(v16) s[SUMS], x[ROWS];
    const float *row[ROWS], *col[COLS]; /* rows of a; rows of b, columns of c */
    float out[SUMS];
    DLRNI_UNROLL
    for (int i = 0; i < ROWS; i++) row[i] = a + (i < m ? i : m - 1) * lda;
    DLRNI_UNROLL
    for (int j = 0; j < COLS; j++) col[j] = b + (j < n ? j : n - 1) * ldb;
    DLRNI_UNROLL /* also those that only fill up sum4 */
    for (int i = 0; i < SUMS; i++) s[i] = DLRNI_K(set1)(0);
    int64_t p = 0; /* the whole vectors, then the rest */
    for (; p + DLRNI_LANES <= k; p += DLRNI_LANES) {
        DLRNI_UNROLL
        for (int i = 0; i < ROWS; i++) x[i] = DLRNI_K(load)(row[i] + p);
        DLRNI_UNROLL
        for (int j = 0; j < COLS; j++) {
            DLRNI_K(v16) w = DLRNI_K(load)(col[j] + p);
            DLRNI_UNROLL
            for (int i = 0; i < ROWS; i++) s[j * ROWS + i] = DLRNI_K(fma)(x[i], w, s[j * ROWS + i]);
        }
    }
    if (p < k) { /* the same once more, so that the loop above has no test */
        DLRNI_UNROLL
        for (int i = 0; i < ROWS; i++) x[i] = DLRNI_K(load_part)(row[i] + p, k - p);
        DLRNI_UNROLL
        for (int j = 0; j < COLS; j++) {
            DLRNI_K(v16) w = DLRNI_K(load_part)(col[j] + p, k - p);
            DLRNI_UNROLL
            for (int i = 0; i < ROWS; i++) s[j * ROWS + i] = DLRNI_K(fma)(x[i], w, s[j * ROWS + i]);
        }
    }
    DLRNI_UNROLL
    for (int i = 0; i < SUMS; i += 4) DLRNI_K(sum4)(s + i, out + i);
    for (int j = 0; j < COLS && j < n; j++) /* what c has */
        for (int i = 0; i < ROWS && i < m; i++) c[i * ldc + j] = out[j * ROWS + i];
}

/* Tiles go down the rows of a first: the few rows of b stay in the first cache meanwhile. */
DLRNI_INTERNAL void DLRNI_K(dots_nt)(int64_t m, int64_t n, int64_t k, const float *a, int64_t lda,
                                     const float *b, int64_t ldb, float *c, int64_t ldc) {
    for (int64_t j = 0; j < n; j += DLRNI_K(nt_cols))
        for (int64_t i = 0; i < m; i += DLRNI_K(nt_rows))
            DLRNI_K(nt_tile)(m - i, n - j, k, a + i * lda, lda, b + j * ldb, ldb, c + i * ldc + j,
                             ldc);
}

/* A tile of outer_rows rows by outer_vectors vectors of columns, with all sums in registers:

                          w0   w1   w2      a row of the panel, step p of the depth
         a(0, p)        s00  s01  s02
         a(1, p)        s10  s11  s12       s_iv += a(i, p) w_v
         ...

   A step loads each vector of the panel once and broadcasts each row's number once: with AVX-512,
   11 loads for 24 multiply-adds; with AVX2, 8 for 12. Loads must be fewer than multiply-adds, since
   a core does about as many of each. The sums start from c (beta) or from 0. In the second case
   nothing has read c yet, so its lines are prefetched before they are written. Where a has fewer
   rows, the last one repeats. */
DLRNI_INTERNAL void DLRNI_K(outer_tile)(int64_t m, int64_t k, const float *a, int64_t row,
                                        int64_t col, const float *panel, int beta, float *c,
                                        int64_t ldc) {
    enum { ROWS = DLRNI_K(outer_rows), VECTORS = DLRNI_K(outer_vectors) };
    DLRNI_K(v16) s[ROWS][VECTORS], w[VECTORS];
    const float *x[ROWS];
    DLRNI_UNROLL
    for (int i = 0; i < ROWS; i++) {
        x[i] = a + (i < m ? i : m - 1) * row;
        DLRNI_UNROLL
        for (int v = 0; v < VECTORS; v++) {
            float *at = c + i * ldc + v * DLRNI_LANES; /* c has whole tiles: see outer */
            if (!beta) DLRNI_PREFETCH(at);
            s[i][v] = beta ? DLRNI_K(load)(at) : DLRNI_K(set1)(0);
        }
    }
    for (int64_t p = 0; p < k; p++) { /* one chain of multiply-adds for each element, p in order */
        DLRNI_UNROLL
        for (int v = 0; v < VECTORS; v++)
            w[v] = DLRNI_K(load)(panel + p * DLRNI_GROUP + v * DLRNI_LANES);
        DLRNI_UNROLL
        for (int i = 0; i < ROWS; i++) {
            DLRNI_K(v16) b = DLRNI_K(set1)(x[i][p * col]); /* by rows or by columns of a */
            DLRNI_UNROLL
            for (int v = 0; v < VECTORS; v++) s[i][v] = DLRNI_K(fma)(b, w[v], s[i][v]);
        }
    }
    DLRNI_UNROLL
    for (int i = 0; i < ROWS; i++) {
        DLRNI_UNROLL
        for (int v = 0; v < VECTORS; v++) DLRNI_K(store)(c + i * ldc + v * DLRNI_LANES, s[i][v]);
    }
}

/* A tile's rows by all columns of the panel: one tile with AVX-512, three with the other sets. */
DLRNI_INTERNAL void DLRNI_K(outer_tiles)(int64_t m, int64_t k, const float *a, int64_t row,
                                         int64_t col, const float *panel, int beta, float *c,
                                         int64_t ldc) {
    for (int64_t j = 0; j < DLRNI_GROUP; j += DLRNI_K(outer_vectors) *DLRNI_LANES)
        DLRNI_K(outer_tile)(m, k, a, row, col, panel + j, beta, c + j, ldc);
}

/* c [m][n]. A tile that reaches beyond the edge of c is computed in a whole tile of scratch, and
   its part is copied: so the tile has no tests inside. The copied sums are the same, since they
   start from the same c. */
DLRNI_INTERNAL void DLRNI_K(outer)(int64_t m, int64_t n, int64_t k, const float *a, int64_t row,
                                   int64_t col, const float *panel, int beta, float *c,
                                   int64_t ldc) {
    enum { ROWS = DLRNI_K(outer_rows) };
    for (int64_t i = 0; i < m; i += ROWS, a += ROWS * row, c += ROWS * ldc) {
        int64_t rows = dlrni_min(ROWS, m - i);
        if (rows == ROWS && n == DLRNI_GROUP) {
            DLRNI_K(outer_tiles)(rows, k, a, row, col, panel, beta, c, ldc);
            continue;
        }
        float whole[ROWS * DLRNI_GROUP] = {0};     /* the start of the sums without beta, too */
        for (int64_t r = 0; r < rows && beta; r++) /* n of 48 columns */
            memcpy(whole + r * DLRNI_GROUP, c + r * ldc, (size_t)n * sizeof *c);
        DLRNI_K(outer_tiles)(rows, k, a, row, col, panel, 1, whole, DLRNI_GROUP);
        for (int64_t r = 0; r < rows; r++)
            memcpy(c + r * ldc, whole + r * DLRNI_GROUP, (size_t)n * sizeof *c);
    }
}

/* A step of gather_axpy and gather_near: the sums of VECTORS vectors of the output stay in
   registers while all rows are added. FETCH: rows that lie far are prefetched four rows ahead. Rows
   in the first cache are not: a prefetch takes the place of a load and would halve their rate. */
#define DLRNI_GATHER(VECTORS, FETCH)                                                               \
    for (; j + VECTORS * DLRNI_LANES <= n; j += VECTORS * DLRNI_LANES) {                           \
        DLRNI_K(v16) s[VECTORS];                                                                   \
        DLRNI_UNROLL                                                                               \
        for (int v = 0; v < VECTORS; v++) s[v] = DLRNI_K(load)(out + j + v * DLRNI_LANES);         \
        for (int64_t p = 0; p < count; p++) {                                                      \
            const float *x = base + (idx[p] - first) * ld + j;                                     \
            DLRNI_K(v16) a = DLRNI_K(set1)(coef[p]);                                               \
            FETCH(VECTORS)                                                                         \
            DLRNI_UNROLL                                                                           \
            for (int v = 0; v < VECTORS; v++)                                                      \
                s[v] = DLRNI_K(fma)(a, DLRNI_K(load)(x + v * DLRNI_LANES), s[v]);                  \
        }                                                                                          \
        DLRNI_UNROLL                                                                               \
        for (int v = 0; v < VECTORS; v++) DLRNI_K(store)(out + j + v * DLRNI_LANES, s[v]);         \
    }
#define DLRNI_FETCH_AHEAD(VECTORS)                                                                 \
    const float *next = base + (idx[dlrni_min(p + 4, count - 1)] - first) * ld + j;                \
    DLRNI_UNROLL                                                                                   \
    for (int v = 0; v < VECTORS; v++) DLRNI_PREFETCH(next + v * DLRNI_LANES);
#define DLRNI_FETCH_NOTHING(VECTORS)
/* As many vectors at a time as the set's registers allow, then four, then one. The list of indices
   is read again for each, so few passes are better. */
DLRNI_INTERNAL void DLRNI_K(gather_near)(float *out, int64_t n, const float *base, int64_t ld,
                                         int32_t first, const int32_t *idx, const float *coef,
                                         int64_t count) {
    enum { MANY = DLRNI_K(gather_vectors) };
    int64_t j = 0; /* all steps advance it */
    DLRNI_GATHER(MANY, DLRNI_FETCH_NOTHING)
    DLRNI_GATHER(4, DLRNI_FETCH_NOTHING)
    for (; j < n; j += DLRNI_LANES) {
        int64_t part = dlrni_min(n - j, DLRNI_LANES);
        DLRNI_K(v16) s = DLRNI_K(load_part)(out + j, part);
        for (int64_t p = 0; p < count; p++)
            s = DLRNI_K(fma)(DLRNI_K(set1)(coef[p]),
                             DLRNI_K(load_part)(base + (idx[p] - first) * ld + j, part), s);
        DLRNI_K(store_part)(out + j, s, part);
    }
}

/* Columns after the last wide step are few, and go without prefetching. */
DLRNI_INTERNAL void DLRNI_K(gather_axpy)(float *out, int64_t n, const float *base, int64_t ld,
                                         const int32_t *idx, const float *coef, int64_t count) {
    enum { MANY = DLRNI_K(gather_vectors), first = 0 };
    int64_t j = 0;
    DLRNI_GATHER(MANY, DLRNI_FETCH_AHEAD)
    DLRNI_K(gather_near)(out + j, n - j, base + j, ld, 0, idx, coef, count);
}
#undef DLRNI_FETCH_AHEAD /* the next set defines them anew */
#undef DLRNI_FETCH_NOTHING
#undef DLRNI_GATHER

#ifndef DLRNI_OWN_COLLECT
/* Every entry is written, and only those that stay advance `count`: which ones do cannot be
   predicted, so that a branch would often be taken wrongly. A NaN stays, because an error must not
   vanish. */
DLRNI_INTERNAL int64_t DLRNI_K(collect)(const float *f, const float *bias, const float *threshold,
                                        float row_floor, int64_t n, int32_t first, int32_t *key,
                                        float *val) {
    int64_t count = 0;
    for (int64_t j = 0; j < n; j++) {
        const float pre = f[j] + bias[j];
        const float floor = threshold && threshold[j] > row_floor ? threshold[j] : row_floor;
        key[count] = first + (int32_t)j; /* overwritten, unless it stays */
        val[count] = pre;
        count += !(pre <= floor); /* true for a NaN */
    }
    return count;
}
#endif /* DLRNI_OWN_COLLECT */

/* ---- Loops over numbers one by one ----

   Each is a function of one vector (its name ends in _n), which DLRNI_SWEEP runs. */

/* The first n lanes, or all 16. Where n is the constant 16, the compiler removes the test. */
DLRNI_INLINE DLRNI_K(v16) DLRNI_K(load_n)(const float *p, int64_t n) {
    return n < DLRNI_LANES ? DLRNI_K(load_part)(p, n) : DLRNI_K(load)(p);
}
DLRNI_INLINE void DLRNI_K(store_n)(float *p, DLRNI_K(v16) a, int64_t n) {
    if (n < DLRNI_LANES)
        DLRNI_K(store_part)(p, a, n);
    else
        DLRNI_K(store)(p, a);
}

/* Runs a statement for each vector of `total` numbers. The statement sees p, where the vector
   begins, and part, how many lanes it has. It is compiled twice: for the whole vectors, where part
   is the constant 16, and for the rest. */
#define DLRNI_SWEEP(total, statement)                                                              \
    do {                                                                                           \
        int64_t p = 0;                                                                             \
        for (; p + DLRNI_LANES <= (total); p += DLRNI_LANES) {                                     \
            enum { part = DLRNI_LANES };                                                           \
            statement;                                                                             \
        }                                                                                          \
        if (p < (total)) {                                                                         \
            const int64_t part = (total)-p;                                                        \
            statement;                                                                             \
        }                                                                                          \
    } while (0)

/* One multiply-add per element: the same bits as gather_axpy with one row. */
DLRNI_INLINE void DLRNI_K(axpy_n)(DLRNI_K(v16) a, const float *x, float *y, int64_t n) {
    DLRNI_K(store_n)(y, DLRNI_K(fma)(a, DLRNI_K(load_n)(x, n), DLRNI_K(load_n)(y, n)), n);
}
DLRNI_INTERNAL void DLRNI_K(axpy)(float a, const float *x, float *y, int64_t n) {
    const DLRNI_K(v16) all = DLRNI_K(set1)(a);
    DLRNI_SWEEP(n, DLRNI_K(axpy_n)(all, x + p, y + p, part));
}

DLRNI_INLINE void DLRNI_K(scale_n)(float *y, DLRNI_K(v16) a, int64_t n) {
    DLRNI_K(store_n)(y, DLRNI_K(mul)(a, DLRNI_K(load_n)(y, n)), n);
}
DLRNI_INTERNAL void DLRNI_K(scale)(float *y, float a, int64_t n) {
    const DLRNI_K(v16) all = DLRNI_K(set1)(a);
    DLRNI_SWEEP(n, DLRNI_K(scale_n)(y + p, all, part));
}

/* y may be a or b: both are loaded before a vector is stored. */
DLRNI_INLINE void DLRNI_K(sub_n)(const float *a, const float *b, float *y, int64_t n) {
    DLRNI_K(store_n)(y, DLRNI_K(minus)(DLRNI_K(load_n)(a, n), DLRNI_K(load_n)(b, n)), n);
}
DLRNI_INTERNAL void DLRNI_K(sub)(const float *a, const float *b, float *y, int64_t n) {
    DLRNI_SWEEP(n, DLRNI_K(sub_n)(a + p, b + p, y + p, part));
}

/* exp(x) = 2^n e^r with n = x / log 2, rounded, so that |r| <= log(2) / 2. e^r is its Taylor series
   up to r^7. The result is within 2 units of the last place, and 0 below about e^-87. The library's
   expf is not used: its last bits differ between systems. */
DLRNI_INTERNAL DLRNI_K(v16) DLRNI_K(exp)(DLRNI_K(v16) x) {
    static const float term[] = {1.0f / 5040, 1.0f / 720, 1.0f / 120, 1.0f / 24,
                                 1.0f / 6,    1.0f / 2,   1,          1}; /* 1 / 7! to 1 / 0! */
    /* 1.5 * 2^23: floats of this size are whole numbers, so that adding it rounds to one, to
       nearest even, in every set alike */
    const DLRNI_K(v16) magic = DLRNI_K(set1)(12582912.0f);
    x = DLRNI_K(max)(x, DLRNI_K(set1)(-88.0f)); /* n >= -127: see pow2 */
    DLRNI_K(v16) n = DLRNI_K(minus)(DLRNI_K(fma)(x, DLRNI_K(set1)(1.44269504f), magic), magic);
    /* r = x - n log 2. log 2 is split: n times its upper part, 355 / 512, is exact (Cody, Waite) */
    DLRNI_K(v16) r = DLRNI_K(fma)(n, DLRNI_K(set1)(-0.693359375f), x);
    r = DLRNI_K(fma)(n, DLRNI_K(set1)(2.12194440e-4f), r);
    DLRNI_K(v16) sum = DLRNI_K(set1)(term[0]); /* e^r, from its smallest term on (Horner) */
    for (int i = 1; i < 8; i++) sum = DLRNI_K(fma)(sum, r, DLRNI_K(set1)(term[i]));
    return DLRNI_K(mul)(sum, DLRNI_K(pow2)(n));
}

/* A rest of lanes is computed with zeros, whose results are not stored. */
DLRNI_INLINE void DLRNI_K(exp_n)(float *y, DLRNI_K(v16) shift, int64_t n) {
    DLRNI_K(store_n)(y, DLRNI_K(exp)(DLRNI_K(minus)(DLRNI_K(load_n)(y, n), shift)), n);
}
DLRNI_INTERNAL void DLRNI_K(exp_shift)(float *y, float shift, int64_t n) {
    const DLRNI_K(v16) all = DLRNI_K(set1)(shift); /* y <= shift: no result exceeds 1 */
    DLRNI_SWEEP(n, DLRNI_K(exp_n)(y + p, all, part));
}

/* Adam (Kingma and Ba, 2015) with torch's order of operations, so that runs can be compared with
   those of the reference:

     m = lerp(m, g, 1 - beta1), v = beta2 v + (1 - beta2) g g,
     w -= step_size m / (sqrt(v) / root_bias_correction + eps)

   torch's lerp goes from the nearer end: with t = 1 - beta1, m + t (g - m) where t < 0.5, and g +
   (t - 1)(g - m) where it is not. */
typedef struct DLRNI_K(adam_vectors) {
    DLRNI_K(v16) weight, beta2, one_minus_beta2, step, root, eps; /* weight: of the lerp */
    int from_gradient; /* which end the lerp starts from */
} DLRNI_K(adam_vectors);

/* 1 / root is not stored instead: torch divides, and a multiplication rounds otherwise. */
DLRNI_INLINE void DLRNI_K(adam_n)(float *w, float *m, float *v, const float *g,
                                  const DLRNI_K(adam_vectors) *c, int64_t n) {
    const DLRNI_K(v16) grad = DLRNI_K(load_n)(g, n), m0 = DLRNI_K(load_n)(m, n);
    const DLRNI_K(v16) from = c->from_gradient ? grad : m0; /* the lerp's nearer end */
    const DLRNI_K(v16) m1 = DLRNI_K(fma)(c->weight, DLRNI_K(minus)(grad, m0), from);
    const DLRNI_K(v16) v1 = DLRNI_K(fma)(DLRNI_K(mul)(c->one_minus_beta2, grad), grad,
                                         DLRNI_K(mul)(c->beta2, DLRNI_K(load_n)(v, n)));
    const DLRNI_K(v16) below = DLRNI_K(add)(DLRNI_K(div)(DLRNI_K(sqrt)(v1), c->root), c->eps);
    const DLRNI_K(v16) w1 = DLRNI_K(fma)(c->step, DLRNI_K(div)(m1, below), DLRNI_K(load_n)(w, n));
    DLRNI_K(store_n)(m, m1, n);
    DLRNI_K(store_n)(v, v1, n);
    DLRNI_K(store_n)(w, w1, n);
}

DLRNI_INTERNAL void DLRNI_K(adam)(float *w, float *m, float *v, const float *g, int64_t n,
                                  const dlrni_adam *a) {
    const float t = a->one_minus_beta1;
    DLRNI_K(adam_vectors) c;
    c.from_gradient = !(t < 0.5f); /* beta1 of at most 0.5: recipe dl-jump_relu has 0 */
    c.weight = DLRNI_K(set1)(c.from_gradient ? t - 1 : t);
    c.beta2 = DLRNI_K(set1)(a->beta2);
    c.one_minus_beta2 = DLRNI_K(set1)(a->one_minus_beta2);
    c.step = DLRNI_K(set1)(-a->step_size); /* w + (-step) q: one fused multiply-add */
    c.root = DLRNI_K(set1)(a->root_bias_correction);
    c.eps = DLRNI_K(set1)(a->eps);
    DLRNI_SWEEP(n,
                DLRNI_K(adam_n)(w + p, m + p, v + p, g + p, &c, part)); /* four arrays, one pass */
}

/* bf16 is left to the plain loop, which compilers turn into vectors. */
DLRNI_INTERNAL void DLRNI_K(widen)(dlrn_dtype type, const char *from, float *to, int64_t n) {
#ifdef DLRNI_HAS_F16
    if (type == DLRN_F16) {
        DLRNI_K(widen_f16)(from, to, n);
        return;
    }
#endif
    dlrni_widen_plain(type, from, to, n);
}

DLRNI_INTERNAL uint32_t DLRNI_K(crc32)(uint32_t crc, const unsigned char *p, uint64_t n) {
#ifdef DLRNI_OWN_CRC32
    return DLRNI_OWN_CRC32(crc, p, n);
#else
    return dlrni_crc32(crc, p, n);
#endif
}

/* In the order of struct dlrni_kernel_table. */
static const dlrni_kernel_table DLRNI_K(kernels) = {
    DLRNI_K(dot),       DLRNI_K(dots),        DLRNI_K(dots_nt),     DLRNI_K(outer),
    DLRNI_K(transpose), DLRNI_K(gather_axpy), DLRNI_K(gather_near), DLRNI_K(collect),
    DLRNI_K(axpy),      DLRNI_K(scale),       DLRNI_K(sub),         DLRNI_K(exp_shift),
    DLRNI_K(adam),      DLRNI_K(widen),       DLRNI_K(crc32),
};

/* ---- Screens ----

   A screen has a function that rounds a row, and a tile that multiplies some rows with a panel of
   features and compares. Room screen has the inequality and its proof.

     a word of 4 bytes    f32: one number   int16, bf16: two   int8: four numbers of one feature
     panel [steps][48]    words of 48 features side by side
     x [rows][ld bytes]   rounded rows; a tile broadcasts one word of each row a step */

/* Adds the four terms to each of a row's sums. Bit j of the result: the total is above 0, or a NaN,
   so that feature j stays a candidate. coef [4][DLRNI_GROUP] are the features' factors. A row needs
   four multiply-adds here, after d / packed of them in the tile. */
DLRNI_INTERNAL uint64_t DLRNI_K(screen_mask)(const DLRNI_K(v16) sum[3], const float *coef,
                                             const dlrni_screen_row *row) {
    uint64_t mask = 0;
    DLRNI_UNROLL
    for (int v = 0; v < 3; v++) {
        const float *at = coef + v * DLRNI_LANES;
        /* of the feature: bias less threshold; rounded norm; error; 1 / scale */
        DLRNI_K(v16) t = DLRNI_K(fma)(DLRNI_K(set1)(row->unit), DLRNI_K(load)(at), sum[v]);
        t = DLRNI_K(fma)(DLRNI_K(set1)(row->error), DLRNI_K(load)(at + DLRNI_GROUP), t);
        t = DLRNI_K(fma)(DLRNI_K(set1)(row->norm), DLRNI_K(load)(at + 2 * DLRNI_GROUP), t);
        t = DLRNI_K(fma)(DLRNI_K(set1)(row->floor), DLRNI_K(load)(at + 3 * DLRNI_GROUP), t);
        mask |= (uint64_t)DLRNI_K(on)(t) << v * DLRNI_LANES; /* 48 bits */
    }
    return mask;
}

#ifdef DLRNI_HAS_SCREENS
/* f32: nothing is rounded. The tile sums in another order than the canonical one; room screen
   allows for that. It can pay because the dense way takes 1.35 times the product alone (room
   candidates). */
DLRNI_INTERNAL void DLRNI_K(round_f32)(const float *x, int64_t n, int unsigned_, void *out,
                                       dlrni_rounding *r) {
    (void)unsigned_; /* all formats but int8 are signed on both sides */
    memcpy(out, x, (size_t)n * sizeof *x);
    r->full = r->rounded = DLRNI_K(dot)(x, x, n);
    r->error = 0; /* x^ is x */
    r->scale = 1;
    r->sum = 0;
}

/* The masks of a tile from its sums [outer_rows][DLRNI_GROUP]. The sums pass through memory: with
   AVX2 they do not fit into the registers beside the factors. */
DLRNI_INTERNAL void DLRNI_K(screen_masks)(const float *sum, const float *coef,
                                          const dlrni_screen_row *row, uint64_t *mask) {
    for (int i = 0; i < DLRNI_K(outer_rows); i++, sum += DLRNI_GROUP) {
        DLRNI_K(v16) s[3];
        DLRNI_UNROLL
        for (int v = 0; v < 3; v++) s[v] = DLRNI_K(load)(sum + v * DLRNI_LANES);
        mask[i] = DLRNI_K(screen_mask)(s, coef, row + i);
    }
}

/* The tile of outer, whose columns are features. */
DLRNI_INTERNAL void DLRNI_K(tile_f32)(const void *panel, const void *x, int64_t ld, int64_t steps,
                                      const float *coef, const dlrni_screen_row *row,
                                      uint64_t *mask) {
    float sum[DLRNI_K(outer_rows) *DLRNI_GROUP];
    DLRNI_K(outer_tiles)(DLRNI_K(outer_rows), steps, (const float *)x, ld / (int64_t)sizeof(float),
                         1, (const float *)panel, 0, sum, DLRNI_GROUP);
    DLRNI_K(screen_masks)(sum, coef, row, mask);
}

/* outer_rows rows, 4 bytes, 1 in a word, f32 sums; the unit of cost: see struct dlrni_screen. */
static const dlrni_screen DLRNI_K(screen_f32) = {
    "f32", DLRNI_K(outer_rows), 4, 1, 1, 1.0f, DLRNI_K(round_f32), DLRNI_K(tile_f32)};
#endif /* DLRNI_HAS_SCREENS */

#ifdef DLRNI_HAS_INT16
/* int16 with one scale per row, by which its norm becomes 46000 or its largest magnitude 32767,
   whichever needs the larger scale. Rounding adds at most sqrt(d) / 2 to a norm: 91 for d = 2^15.
   So no sum of products of two rows, in any order, exceeds (46000 + 91)^2 < 2^31 (Cauchy and
   Schwarz). */
DLRNI_INTERNAL void DLRNI_K(round_int16)(const float *x, int64_t n, int unsigned_, void *out,
                                         dlrni_rounding *r) {
    const DLRNI_K(v16) zero = DLRNI_K(set1)(0),
                       magic = DLRNI_K(set1)(12582912.0f); /* 1.5 * 2^23 rounds, as in exp */
    DLRNI_K(v16) rounded = zero, error = zero, top = zero;
    float largest = 0, squares[4], lane[DLRNI_LANES];
    int64_t p = 0;
    (void)unsigned_;
    for (; p + DLRNI_LANES <= n; p += DLRNI_LANES) { /* the first pass finds the largest */
        DLRNI_K(v16) a = DLRNI_K(load)(x + p);
        top = DLRNI_K(max)(DLRNI_K(max)(a, DLRNI_K(minus)(zero, a)), top); /* |a| */
    }
    DLRNI_K(store)(lane, top);
    for (int i = 0; i < DLRNI_LANES; i++) largest = fmaxf(largest, lane[i]);
    for (; p < n; p++) largest = fmaxf(largest, fabsf(x[p]));
    r->full = DLRNI_K(dot)(x, x, n);
    r->scale = fmaxf(sqrtf(r->full) / 46000.0f, largest / 32767.0f);
    if (!(r->scale > 0)) r->scale = 1; /* a row of zeros */
    const DLRNI_K(v16) inverse = DLRNI_K(set1)(1 / r->scale), scale = DLRNI_K(set1)(-r->scale);
    for (p = 0; p < n; p += DLRNI_LANES) { /* the second pass rounds */
        int64_t part = dlrni_min(DLRNI_LANES, n - p);
        unsigned char whole[DLRNI_LANES * 2]; /* the last vector may be longer than the row */
        DLRNI_K(v16) a = DLRNI_K(load_n)(x + p, part);
        DLRNI_K(v16) q = DLRNI_K(minus)(DLRNI_K(fma)(a, inverse, magic), magic),
                     off = DLRNI_K(fma)(scale, q, a); /* a - scale q */
        rounded = DLRNI_K(fma)(q, q, rounded);
        error = DLRNI_K(fma)(off, off, error);
        DLRNI_K(store_int16)(whole, q);
        memcpy((unsigned char *)out + 2 * p, whole, (size_t)part * 2);
    }
    DLRNI_K(v16) both[4] = {rounded, error, zero, zero};
    DLRNI_K(sum4)(both, squares);
    r->rounded = r->scale * r->scale * squares[0]; /* the sum was of integers */
    r->error = squares[1];
    r->sum = 0; /* signed on both sides: no shift to undo */
}

/* outer_rows rows by 48 features, in as many passes as the registers need: one with AVX-512, three
   with the narrower sets. */
DLRNI_INTERNAL void DLRNI_K(tile_int16)(const void *panel, const void *x, int64_t ld, int64_t steps,
                                        const float *coef, const dlrni_screen_row *row,
                                        uint64_t *mask) {
    enum { ROWS = DLRNI_K(outer_rows), VECTORS = DLRNI_K(outer_vectors) };
    float sum[ROWS * DLRNI_GROUP]; /* exact integers until they are stored here */
    for (int first = 0; first < 3; first += VECTORS) {
        const unsigned char *w = (const unsigned char *)panel + first * 64,
                            *at = (const unsigned char *)x; /* 64 bytes: a vector of words */
        DLRNI_K(words) s[ROWS][VECTORS], a[VECTORS];
        DLRNI_UNROLL
        for (int i = 0; i < ROWS; i++) {
            DLRNI_UNROLL
            for (int v = 0; v < VECTORS; v++) s[i][v] = DLRNI_K(set_words)(0);
        }
        for (int64_t p = 0; p < steps; p++, w += 4 * DLRNI_GROUP, at += 4) {
            DLRNI_UNROLL
            for (int v = 0; v < VECTORS; v++) a[v] = DLRNI_K(load_words)(w + v * 64);
            DLRNI_UNROLL
            for (int i = 0; i < ROWS; i++) {
                int32_t two; /* numbers of a row */
                memcpy(&two, at + i * ld, sizeof two);
                DLRNI_K(words) b = DLRNI_K(set_words)(two);
                DLRNI_UNROLL
                for (int v = 0; v < VECTORS; v++) s[i][v] = DLRNI_K(add_dot)(s[i][v], a[v], b);
            }
        }
        /* floats from here on */
        DLRNI_UNROLL
        for (int i = 0; i < ROWS; i++) {
            DLRNI_UNROLL
            for (int v = 0; v < VECTORS; v++)
                DLRNI_K(store)(sum + i * DLRNI_GROUP + (first + v) * DLRNI_LANES,
                               DLRNI_K(float_of_words)(s[i][v]));
        }
    }
    DLRNI_K(screen_masks)(sum, coef, row, mask);
}

/* outer_rows rows, 2 bytes, 2 in a word, exact sums; for its cost see struct dlrni_screen. */
static const dlrni_screen DLRNI_K(screen_int16) = {
    "int16", DLRNI_K(outer_rows), 2, 2, 0, 0.72f, DLRNI_K(round_int16), DLRNI_K(tile_int16)};
#endif /* DLRNI_HAS_INT16 */
#undef DLRNI_SWEEP
#endif /* DLRNI_COMPILE_BODIES */

/* ------------------------------------------------------------------------------------------ */
// >>licence
/*
   MIT License

   Copyright (c) 2026 dictlearn.h contributors

   Permission is hereby granted, free of charge, to any person obtaining a copy of this software
   and associated documentation files (the "Software"), to deal in the Software without
   restriction, including without limitation the rights to use, copy, modify, merge, publish,
   distribute, sublicense, and/or sell copies of the Software, and to permit persons to whom the
   Software is furnished to do so, subject to the following conditions:

   The above copyright notice and this permission notice shall be included in all copies or
   substantial portions of the Software.

   THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING
   BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND
   NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM,
   DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
   OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
*/
