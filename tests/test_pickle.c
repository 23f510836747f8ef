/* test_pickle.c - the pickles of torch's files: every form of tensor that torch writes is read,
   nothing is executed, and what is malformed, out of bounds or out of proportion is refused by
   name. The pickles are made here, opcode by opcode. */
#include "dictlearn.h"
#include "tests/bytes.h"

static bytes b;
static zip z;

static const float numbers[6] = {0, 1, 2, 3, 4, 5};

/* ---- Opcodes ---- */

#define PROTO "\x80\x02"
#define DICT "ccollections\nOrderedDict\n)R"
#define REBUILD "ctorch._utils\n_rebuild_tensor_v2\n"

static void text(const char *s) {
    put_text(&b, "X");
    put_le(&b, strlen(s), 4);
    put_text(&b, s);
}

static void number(int64_t v) { /* in the shortest of its forms */
    if (v >= 0 && v < 256) {
        put_text(&b, "K");
        put_le(&b, (uint64_t)v, 1);
    } else if (v >= INT32_MIN && v <= INT32_MAX) {
        put_text(&b, "J");
        put_le(&b, (uint64_t)v, 4);
    } else {
        put_text(&b, "\x8a\x08");
        put_le(&b, (uint64_t)v, 8);
    }
}

static void numbers_tuple(int n, const int64_t *v) {
    put_text(&b, "(");
    for (int i = 0; i < n; i++) number(v[i]);
    put_text(&b, "t");
}

/* The persistent id of storage `key`, and what turns it into a storage. */
static void storage(const char *type, const char *key, int64_t elements) {
    put_text(&b, "(");
    text("storage");
    put_text(&b, "ctorch\n");
    put_text(&b, type);
    put_text(&b, "\n");
    text(key);
    text("cuda:0"); /* where it was: of no concern */
    number(elements);
    put_text(&b, "tQ");
}

/* A tensor over storage "0" of six floats. */
static void tensor(int64_t offset, int ndim, const int64_t *shape, const int64_t *stride) {
    put_text(&b, REBUILD "(");
    storage("FloatStorage", "0", 6);
    number(offset);
    numbers_tuple(ndim, shape);
    numbers_tuple(ndim, stride);
    put_text(&b, "\x89" DICT "tR");
}

static const int64_t six[1] = {6}, one[1] = {1};

static void begin(void) {
    b.n = 0;
    put_text(&b, PROTO);
}

/* {"x": the tensor that `view` describes}. */
static void begin_x(void) {
    begin();
    put_text(&b, "}");
    text("x");
}

/* ---- Files ---- */

/* A .pt with the pickle in b and storage "0". */
static bytes *pt_of(const char *byteorder) {
    static bytes data;
    memset(&z, 0, sizeof z);
    zip_raw(&z, "archive/data.pkl", &b, 0, b.n, 0, 0);
    data.n = 0;
    if (byteorder) {
        put_text(&data, byteorder);
        zip_add(&z, "archive/byteorder", &data);
        data.n = 0;
    }
    put_floats(&data, numbers, 6);
    for (size_t i = 0; byteorder && *byteorder == 'b' && i < data.n; i += 4)
        patch(&data, i,
              (uint64_t)data.p[i] << 24 | data.p[i + 1] << 16 | data.p[i + 2] << 8 | data.p[i + 3],
              4);
    zip_add(&z, "archive/data/0", &data);
    return zip_done(&z);
}

static bytes *pt(void) {
    return pt_of(NULL);
}

/* Ends {"x": ...} and the pickle. */
static bytes *pt_x(void) {
    put_text(&b, "s.");
    return pt();
}

TEST(reads_a_tensor) {
    begin_x();
    tensor(0, 1, six, one);
    dlrn_archive *a = accept(pt_x());
    CHECK(!strcmp(dlrn_archive_describe(a).format, "pt") && dlrn_archive_describe(a).count == 1);
    expect_numbers(a, "x", NULL, 6);
}

TEST(reads_views) {
    static const int64_t shape[2] = {2, 3}, turned[2] = {3, 2}, strides[2] = {1, 3}, two[1] = {2},
                         step[1] = {2};
    static const int64_t repeated[2] = {2, 4}, none[2] = {0, 0}, overlap[2] = {1, 1};
    static const float windows[6] = {0, 1, 2, 1, 2, 3};
    static const float want[6] = {0, 3, 1, 4, 2, 5}, part[2] = {3, 5},
                       fours[8] = {4, 4, 4, 4, 4, 4, 4, 4};
    begin_x();
    tensor(0, 2, turned, strides);
    expect_numbers(accept(pt_x()), "x", want, 6);
    begin_x();
    tensor(3, 1, two, step);
    expect_numbers(accept(pt_x()), "x", part, 2);
    begin_x();
    tensor(4, 2, repeated, none);
    expect_numbers(accept(pt_x()), "x", fours, 8);
    begin_x();
    tensor(0, 2, shape, overlap); /* each row holds a part of the one before it */
    expect_numbers(accept(pt_x()), "x", windows, 6);
    begin_x();
    tensor(5, 0, shape, shape); /* a scalar */
    expect_numbers(accept(pt_x()), "x", &numbers[5], 1);
    begin_x();
    tensor(6, 1, &(const int64_t){0}, one); /* nothing, behind the end */
    expect_numbers(accept(pt_x()), "x", NULL, 0);
}

TEST(reads_nests) {
    begin();
    put_text(&b, DICT "q\x01(");
    text("model");
    put_text(&b, "}(");
    text("w");
    tensor(0, 1, six, one);
    put_text(&b, "q\x02");
    text("p"); /* a Parameter of the same tensor, from the memo */
    put_text(&b, "ctorch._utils\n_rebuild_parameter\nh\x02\x88" DICT "\x87R");
    put_text(&b, "u");
    text("list");
    put_text(&b, "](h\x02h\x02"
                 "e");
    number(7);
    put_text(&b, "h\x02");
    text("steps");
    number(-70000);
    text("big");
    number((int64_t)1 << 40);
    text("lr");
    put_text(&b, "G\x3f\xb9\x99\x99\x99\x99\x99\x9a"); /* 0.1, and the highest byte first */
    text("tied");
    put_text(&b, "\x88");
    text("name");
    text("pythia");
    text("nothing");
    put_text(&b, "N");
    put_text(&b, "u}");
    text("_metadata");
    put_text(&b, DICT "sb.");
    dlrn_archive *a = accept(pt());
    static const char *const names[] = {"model.w", "model.p", "list.0", "list.1", "7"};
    CHECK(dlrn_archive_describe(a).count == 5);
    for (int i = 0; i < 5; i++)
        CHECK_MSG(dlrn_archive_find(a, names[i]) == i, "%s", dlrn_archive_tensor(a, i)->name);
    CHECK_STR(dlrni_archive_metadata(a, "steps"), "-70000");
    CHECK_STR(dlrni_archive_metadata(a, "big"), "1099511627776");
    CHECK_STR(dlrni_archive_metadata(a, "lr"), "0.1");
    CHECK_STR(dlrni_archive_metadata(a, "tied"), "true");
    CHECK_STR(dlrni_archive_metadata(a, "name"), "pythia");
    CHECK(dlrni_archive_metadata(a, "nothing") == NULL &&
          dlrni_archive_metadata(a, "_metadata") == NULL);
    expect_numbers(a, "list.1", NULL, 6);
}

TEST(reads_other_forms) {
    begin(); /* the tensor alone has no name */
    tensor(0, 1, six, one);
    put_text(&b, ".");
    expect_numbers(accept(pt()), "", NULL, 6);
    b.n = 0; /* protocol 4: frames, short texts, names from the stack, a memo without indices */
    put_text(&b, "\x80\x04\x95");
    put_le(&b, 40, 8);
    put_text(&b, "\x8c\x0b"
                 "collections\x94\x8c\x0bOrderedDict\x94\x93\x94)R\x94\x8c\x01x\x94");
    tensor(0, 1, six, one);
    put_text(&b, "sh\x03" /* the fourth that was remembered is the dictionary */
                 "0.");
    expect_numbers(accept(pt()), "x", NULL, 6);
    begin(); /* OrderedDict([("x", tensor)]) */
    put_text(&b, "ccollections\nOrderedDict\n](");
    text("x");
    tensor(0, 1, six, one);
    put_text(&b, "\x86"
                 "e\x85R.");
    expect_numbers(accept(pt()), "x", NULL, 6);
    begin_x(); /* torch.Size for the sizes */
    put_text(&b, REBUILD "(");
    storage("FloatStorage", "0", 6);
    number(0);
    put_text(&b, "ctorch\nSize\n(K\x06t\x85R(K\x01t\x89" DICT "tR");
    expect_numbers(accept(pt_x()), "x", NULL, 6);
}

/* Numbers that a layout needs, beside the tensors or as tensors of one element. */
TEST(reads_numbers_by_path) {
    static const int64_t four[1] = {4};
    double v = -1;
    begin();
    put_text(&b, "}(");
    text("w");
    tensor(0, 1, four, one);
    text("last");
    tensor(5, 0, four, one);
    text("activation");
    text("TopK");
    text("activation_state_dict");
    put_text(&b, "}(");
    text("k");
    number(32);
    text("postact_fn");
    text("ReLU");
    put_text(&b, "u");
    text("activation.k"); /* a dot in a key is one between keys */
    number(-7);
    text("list");
    put_text(&b, "](G\x3f\xe0");
    put_le(&b, 0, 6);
    put_text(&b, "\x88"
                 "e");
    text("digits");
    text("12");
    text("endless");
    put_text(&b, "G\x7f\xf0");
    put_le(&b, 0, 6);
    put_text(&b, "u.");
    dlrn_archive *a = accept(pt());
    CHECK_STR(dlrni_archive_metadata(a, "activation"), "TopK");
    CHECK_STR(dlrni_archive_metadata(a, "activation_state_dict.postact_fn"), "ReLU");
    CHECK(dlrni_archive_number(a, "activation_state_dict.k", &v) == 1 && v == 32);
    CHECK(dlrni_archive_number(a, "activation.k", &v) == 1 && v == -7);
    CHECK(dlrni_archive_number(a, "last", &v) == 1 && v == 5);
    CHECK(dlrni_archive_number(a, "list.0", &v) == 1 && v == 0.5);
    CHECK(!strcmp(dlrni_archive_metadata(a, "list.0"), "0.5"));
    static const char *const none[] = {"w", "activation", "digits", "list.1", "endless", "k", ""};
    for (size_t i = 0; i < sizeof none / sizeof *none; i++)
        CHECK_MSG(!dlrni_archive_number(a, none[i], &v), "%s is %g", none[i], v);
    dlrn_archive_close(a);
}

/* Attributes of tensors, and values of other kinds beside them, are passed over. */
TEST(reads_past_others) {
    begin();
    put_text(&b, "}(");
    text("x");
    put_text(&b, "ctorch._tensor\n_rebuild_from_type_v2\n(" REBUILD "ctorch\nTensor\n(");
    storage("FloatStorage", "0", 6);
    number(0);
    numbers_tuple(1, six);
    numbers_tuple(1, one);
    put_text(&b, "\x89" DICT "t}");
    text("note");
    text("hello");
    put_text(&b, "stRq\x01");
    text("p");
    put_text(&b, "ctorch._utils\n_rebuild_parameter_with_state\n(h\x01\x88" DICT "}tR");
    text("set");
    put_text(&b, "c__builtin__\nset\n](K\x01K\x02"
                 "e\x85R");
    text("bytes");
    put_text(&b, "c_codecs\nencode\n");
    text("abc");
    text("latin1");
    put_text(&b, "\x86R");
    text("layout");
    put_text(&b, "ctorch.serialization\n_get_layout\n");
    text("torch.strided");
    put_text(&b, "\x85Ru.");
    dlrn_archive *a = accept(pt());
    CHECK(dlrn_archive_describe(a).count == 2 && dlrn_archive_find(a, "p") == 1);
    CHECK(dlrni_archive_metadata(a, "bytes") == NULL);
    expect_numbers(a, "x", NULL, 6);
    begin_x(); /* a lazy minus sign: the numbers in the file are not the tensor's */
    put_text(&b, REBUILD "(");
    storage("FloatStorage", "0", 6);
    number(0);
    numbers_tuple(1, six);
    numbers_tuple(1, one);
    put_text(&b, "\x89" DICT "}");
    text("neg");
    put_text(&b, "\x88stR");
    refuse(pt_x(), DLRN_ERR_UNSUPPORTED, "a tensor marked as negated or conjugated");
}

/* ---- What is refused ---- */

/* A name that is not known gives an object without content. Alone it is refused by name. */
TEST(refuses_names) {
    static const struct {
        const char *pickle, *words;
    } bad[] = {
        {"cos\nsystem\n(tR.", "found an object, 'os.system'; nothing was executed"},
        {"cposix\nsystem\n.", "found an object, 'posix.system'"},
        {"c__builtin__\neval\n)\x81.", "found an object, '__builtin__.eval'"},
        {"cbuiltins\ngetattr\n)R)R}b.", "found an object, 'builtins.getattr'"},
        {"ctorch.nn.modules.linear\nLinear\n)\x81}b.",
         "found an object, 'torch.nn.modules.linear.Linear'"},
        {"ctorch._utils\n_rebuild_sparse_tensor\n)}R.", "expected a name and a tuple"},
        {"ctorch._utils\n_rebuild_sparse_tensor\n)R.",
         "found an object, 'torch._utils._rebuild_sparse_tensor'"},
        {"\x8c\x02os\x8c\x06system\x93)R.", "found an object, 'os.system'"},
        {"](K\x01"
         "ca\nB\n)}\x92"
         "e.",
         "found an object, 'a.B'"},
        {"c\n\n.", "found an object, '.'"},
        {"C\x01x.", "found an object, '.'"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        begin();
        put_text(&b, bad[i].pickle);
        refuse(pt(), strstr(bad[i].words, "found") ? DLRN_ERR_UNSUPPORTED : DLRN_ERR_FORMAT,
               bad[i].words);
        CHECK(!strstr(dlrn_error(ctx), "state_dict"));
    }
    begin(); /* such a name may be the class of a value, too: there is nothing in the file */
    put_text(&b, "ctorch\nfloat32\n.");
    dlrn_archive *a = accept(pt());
    CHECK(dlrn_archive_describe(a).count == 0);
    dlrn_archive_close(a);
}

/* Objects beside the tensors: made in every way that Python has, and passed over. */
TEST(passes_over_objects) {
#define OBJECT(text)                                                                               \
    { text, sizeof(text) - 1 }
    static const struct {
        const char *p;
        size_t n;
    } objects[] = {
        OBJECT("cos\nsystem\nX\4\0\0\0true\x85R"),           /* never called */
        OBJECT("cnumpy\nscalar\ncnumpy\ndtype\n)R}bN\x86R"), /* NumPy's numbers */
        OBJECT("cargparse\nNamespace\n)\x81}X\1\0\0\0kK\3sb"),
        OBJECT("cpathlib\nPosixPath\n)R"),
        OBJECT("ca\nB\n)}\x92}b"),     /* with keywords */
        OBJECT("ca\nList\n)\x81(NNe"), /* lists and dictionaries of their own kind */
        OBJECT("ca\nList\n)\x81Na"),
        OBJECT("ca\nDict\n)\x81NNs"),
        OBJECT("ca\nDict\n)\x81(NNu"),
        OBJECT("cbuiltins\ngetattr\n)R)R"), /* a call of what a call gives */
        OBJECT("cbuiltins\ngetattr\n"),     /* a function */
        OBJECT("\x8f(K\1K\2\x90"),          /* a set, a frozenset */
        OBJECT("(K\1K\2\x91"),
        OBJECT("N(NN1"), /* what Python drops again */
        OBJECT("ccollections\ndefaultdict\nca\nB\n\x85R(X\1\0\0\0tX\1\0\0\0ru"),
        OBJECT("C\3abc"), /* bytes, a bytearray, a long number */
        OBJECT("B\3\0\0\0abc"),
        OBJECT("\x8e\3\0\0\0\0\0\0\0abc"),
        OBJECT("\x96\3\0\0\0\0\0\0\0abc"),
        OBJECT("\x8b\3\0\0\0abc"),
    };
#undef OBJECT
    for (size_t i = 0; i < sizeof objects / sizeof *objects; i++) {
        begin();
        put_text(&b, "}(");
        text("before");
        put(&b, objects[i].p, objects[i].n);
        text("x");
        tensor(0, 1, six, one);
        text("behind");
        put(&b, objects[i].p, objects[i].n);
        put_text(&b, "u.");
        dlrn_archive *a = accept(pt());
        CHECK_MSG(dlrn_archive_describe(a).count == 1 && dlrn_archive_find(a, "x") == 0,
                  "object %d: %d tensors", (int)i, (int)dlrn_archive_describe(a).count);
        expect_numbers(a, "x", NULL, 6);
    }
}

/* Tensors in an object have no names: only its class knows which is which. */
TEST(refuses_modules) {
    begin();
    put_text(&b, "](cmy.code\nSAE\n)\x81}");
    text("weight");
    tensor(0, 1, six, one);
    put_text(&b, "sb}\x86"
                 "e.");
    refuse(pt(), DLRN_ERR_UNSUPPORTED,
           "data.pkl: expected tensors by name, found a pickled module or another object, "
           "'my.code.SAE'; nothing was executed. Save its state_dict() instead");
    begin(); /* a tensor beside it is read, and the class is kept for who misses the others */
    put_text(&b, "}(");
    text("model");
    put_text(&b, "cmy.code\nSAE\n)\x81}");
    text("weight");
    tensor(0, 1, six, one);
    put_text(&b, "sb");
    text("x");
    tensor(0, 1, six, one);
    put_text(&b, "u.");
    dlrn_archive *a = accept(pt());
    CHECK_STR(a->object, "my.code.SAE");
    CHECK(dlrn_archive_describe(a).count == 1);
    expect_numbers(a, "x", NULL, 6);
    dlrn_dictionary *dict = NULL;
    CHECK_STATUS(dlrn_load_memory(ctx, z.file.p, z.file.n, "hostile.file", NULL, &dict),
                 DLRN_ERR_SHAPE);
    CHECK_STR(dlrn_error(ctx), "found no such tensor, but an object 'my.code.SAE', which is not "
                               "read: save its state_dict() instead");
    begin(); /* an object without tensors hides none */
    put_text(&b, "}(");
    text("path");
    put_text(&b, "cpathlib\nPosixPath\n)R");
    text("x");
    tensor(0, 1, six, one);
    put_text(&b, "u.");
    a = accept(pt());
    CHECK(a->object == NULL);
    dlrn_archive_close(a);
}

/* Types that are only listed: who needs such a tensor is told its type. */
TEST(lists_types) {
    static const struct {
        const char *storage, *dtype, *name;
        int64_t elements;
    } types[] = {{"ComplexFloatStorage", NULL, "C64", 3},
                 {"ComplexDoubleStorage", NULL, "C128", 1},
                 {"QInt8Storage", NULL, "QI8", 24},
                 {"UntypedStorage", "float8_e4m3fn", "F8_E4M3", 24},
                 {"UntypedStorage", "float4_e2m1fn_x2", "F4_PAIR", 24},
                 {"UntypedStorage", "complex32", "C32", 6}};
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        for (int more = 0; more < 2; more++) {
            double v;
            float x[64];
            int64_t whole[64];
            begin_x();
            put_text(&b, types[i].dtype ? "ctorch._utils\n_rebuild_tensor_v3\n((" : REBUILD "((");
            text("storage");
            put_text(&b, types[i].dtype ? "ctorch.storage\n" : "ctorch\n");
            put_text(&b, types[i].storage);
            put_text(&b, "\n");
            text("0");
            text("cpu");
            number(types[i].dtype ? 24 : types[i].elements);
            put_text(&b, "tQ");
            number(0);
            numbers_tuple(1, &(const int64_t){types[i].elements + more});
            numbers_tuple(1, one);
            put_text(&b, "\x89" DICT);
            if (types[i].dtype) {
                put_text(&b, "ctorch\n");
                put_text(&b, types[i].dtype);
                put_text(&b, "\n");
            }
            put_text(&b, "tR");
            if (more) {
                refuse(pt_x(), DLRN_ERR_FORMAT, "does not fit its storage");
                continue;
            }
            dlrn_archive *a = accept(pt_x());
            const dlrn_tensor_info *info = dlrn_archive_tensor(a, 0);
            CHECK(info && info->numel == types[i].elements);
            CHECK_STR(dlrn_name(DLRN_NAMES_DTYPE, (int)info->dtype), types[i].name);
            CHECK_STATUS(dlrn_archive_read(a, 0, 0, -1, x), DLRN_ERR_UNSUPPORTED);
            CHECK_STR(dlrn_error(ctx), "tensor 'x': expected F16, BF16, F32 or F64, found ");
            CHECK_STR(dlrn_error(ctx), types[i].name);
            CHECK_STATUS(dlrni_archive_read_i64(a, 0, whole), DLRN_ERR_FORMAT);
            CHECK(!dlrni_archive_number(a, "x", &v));
            dlrn_archive_close(a);
        }
    begin_x(); /* a type without a name here: the tensor is passed over */
    put_text(&b, "ctorch._utils\n_rebuild_tensor_v3\n(");
    storage("FloatStorage", "0", 6);
    number(0);
    numbers_tuple(1, six);
    numbers_tuple(1, one);
    put_text(&b, "\x89" DICT "ctorch\nbits8\ntR");
    refuse(pt_x(), DLRN_ERR_UNSUPPORTED, "found a pickled module or another object, 'torch.bits8'");
    begin_x(); /* and so is one over a storage of such a type */
    put_text(&b, REBUILD "(");
    storage("QUInt4x2Storage", "0", 6);
    put_text(&b, "NNNtR");
    refuse(pt_x(), DLRN_ERR_UNSUPPORTED, "another object, 'torch.QUInt4x2Storage'");
}

TEST(refuses_opcodes) {
    static const char known[] =
        "\x80\x95KMJ\x8a\x8bGN\x88\x89X\x8c\x8dUT\x42\x43\x8e\x96()]}\x8f\x91\x85\x86\x87taesu\x90"
        "qr\x94hjc\x93QR\x81\x92\x62"
        "01.";
    for (int op = 0; op < 256; op++) {
        char words[64];
        if (op && strchr(known, op)) continue;
        unsigned char c = (unsigned char)op;
        begin();
        put(&b, &c, 1);
        put_text(&b, "....");
        snprintf(words, sizeof words,
                 "data.pkl: pickle, byte 2: the opcode 0x%02x is not one of those", (unsigned)op);
        refuse(pt(), DLRN_ERR_UNSUPPORTED, words);
    }
}

TEST(refuses_stacks) {
    static const struct {
        const char *pickle, *words;
    } bad[] = {
        {"", "it ends before its STOP"},
        {".", "it ends without a value"},
        {"(.", "it ends without a value"},
        {"t", "the stack is too short"},
        {"\x85", "the stack is too short"},
        {"N\x86", "the stack is too short"},
        {"(N\x86", "a mark out of place"},
        {"a", "the stack is too short"},
        {"N]a", "expected a container below its items"},
        {"NNa", "expected a container below its items"},
        {"]NNs", "expected a container below its items"},
        {"}Na", "expected a container below its items"},
        {"}(Nu", "expected a container below its items"},
        {"(Ne", "expected a container below its items"},
        {"e", "the stack is too short"},
        {"0", "the stack is too short"},
        {"b", "the stack is too short"},
        {"Nb", "the stack is too short"},
        {"R", "expected a name and a tuple to call it with"},
        {"N)R", "expected a name and a tuple to call it with"},
        {"ctorch\nSize\nNR", "expected a name and a tuple to call it with"},
        {"ctorch\nSize\n)R", "a call without its argument"},
        {"ctorch\nFloatStorage\n)R", "a call of a type"},
        {"ccollections\nOrderedDict\n]N\x85\x85R", "expected a name and a tuple to call it with"},
        {"ccollections\nOrderedDict\n](NNe\x85R", "malformed items of a dictionary"},
        {REBUILD ")R", "malformed arguments of a tensor"},
        {REBUILD "(NNNNtR", "malformed arguments of a tensor"},
        {"ctorch._tensor\n_rebuild_from_type_v2\n)R", "a call of a type"},
        {"ctorch._tensor\n_rebuild_from_type_v2\nq\x01(h\x01N)tR", "a call of a type"},
        {"ctorch._tensor\n_rebuild_from_type_v2\n(NN)tR",
         "expected a name and a tuple to call it with"},
        {"\x81", "expected a class and a tuple to make an object of"},
        {"N)\x81", "expected a class and a tuple to make an object of"},
        {"ca\nB\nN\x81", "expected a class and a tuple to make an object of"},
        {"ca\nB\n(\x81", "expected a class and a tuple to make an object of"},
        {"ca\nB\n)\x92", "expected a class and a tuple to make an object of"},
        {"\x92", "the stack is too short"},
        {"N1", "the stack is too short"},
        {"N\x91", "the stack is too short"},
        {"N\x90", "the stack is too short"},
        {"](N\x90", "expected a container below its items"},
        {"ca\nB\nN\x86R", "expected a name and a tuple to call it with"},
        {"ca\nB\n)R}R", "expected a name and a tuple to call it with"},
        {"C\x05", "a string reaches beyond the end"},
        {"\x96\xff\xff\xff\xff\xff\xff\xff\xff", "a string reaches beyond the end"},
        {"Q", "expected a persistent id of a storage"},
        {"NQ", "expected a persistent id of a storage"},
        {")Q", "expected a persistent id of a storage"},
        {"(NNNNNtQ", "expected a persistent id of a storage"},
        {"q\x01", "expected a value to memoize"},
        {"\x94", "expected a value to memoize"},
        {"h\x01", "an unknown memo index"},
        {"Nq\x01h\x02", "an unknown memo index"},
        {"Nq\x01h\x03", "an unknown memo index"},
        {"Nr\xf0\xff\xff\x7f", "a memo index beyond the bytes read"},
        {"j\xf0\xff\xff\xff", "an unknown memo index"},
        {"K", "the argument of an opcode is cut off"},
        {"M\x01", "the argument of an opcode is cut off"},
        {"G\x01", "a number is cut off"},
        {"\x8a\xff", "a string reaches beyond the end"},
        {"X\xff\xff\xff\xff", "a string reaches beyond the end"},
        {"\x8d\xff\xff\xff\xff\xff\xff\xff\xff", "a string reaches beyond the end"},
        {"cos", "a name is cut off"},
        {"cos\nsystem", "a name is cut off"},
        {"NN\x93", "expected two strings for a name"},
        {"\x80\x01", "a protocol other than 2 to 5"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        begin();
        put_text(&b, bad[i].pickle);
        refuse(pt(), DLRN_ERR_FORMAT, bad[i].words);
        CHECK_STR(dlrn_error(ctx), "hostile.file: data.pkl: pickle, byte");
    }
}

/* Views that leave their storage. */
TEST(refuses_views) {
    static const struct {
        int64_t offset, shape[2], stride[2];
        const char *words;
    } bad[] = {
        {0,
         {7, 1},
         {1, 1},
         "shape [7, 1] at offset 0 does not fit its storage: expected at most 6 elements"},
        {1, {6, 1}, {1, 1}, "shape [6, 1] at offset 1 does not fit its storage"},
        {0, {2, 2}, {5, 1}, "shape [2, 2] at offset 0 does not fit its storage"},
        {6, {1, 1}, {1, 1}, "shape [1, 1] at offset 6 does not fit its storage"},
        {-1, {1, 1}, {1, 1}, "shape [1, 1] at offset -1 does not fit its storage"},
        {5, {2, 1}, {-1, 1}, "shape [2, 1] at offset 5 does not fit its storage"},
        {0, {-1, 1}, {1, 1}, "shape [-1, 1] overflows"},
        {0,
         {99999, 1},
         {0, 1},
         "shape [99999, 1] at offset 0 does not fit its storage"}, /* out of proportion */
        {0, {INT64_MAX, 1}, {0, 1}, "does not fit its storage"},
        {0, {INT64_MAX, 2}, {0, 0}, "overflows"},
        {0, {2, 1}, {INT64_MAX, 1}, "does not fit its storage"},
        {INT64_MAX, {2, 1}, {INT64_MAX, 1}, "does not fit its storage"},
        {INT64_MIN, {1, 1}, {1, 1}, "does not fit its storage"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        begin_x();
        tensor(bad[i].offset, 2, bad[i].shape, bad[i].stride);
        refuse(pt_x(), DLRN_ERR_FORMAT, bad[i].words);
        CHECK_STR(dlrn_error(ctx), "tensor 'x'");
    }
    static const int64_t nine[9] = {1, 1, 1, 1, 1, 1, 1, 1, 1};
    begin_x();
    tensor(0, 9, nine, nine);
    refuse(pt_x(), DLRN_ERR_FORMAT, "malformed arguments of a tensor");
    begin_x(); /* a number of more than 64 bits is none that a size can have */
    put_text(&b, REBUILD "(");
    storage("FloatStorage", "0", 6);
    put_text(&b, "K");
    put_le(&b, 0, 1);
    put_text(&b, "\x8a\x09\x01\x01\x01\x01\x01\x01\x01\x01\x01\x85K\x01\x85tR");
    refuse(pt_x(), DLRN_ERR_FORMAT, "malformed arguments of a tensor");
}

/* A list of sizes that grows after the tensor was made of it. */
TEST(refuses_sizes_that_change) {
    begin_x();
    put_text(&b, REBUILD "(");
    storage("FloatStorage", "0", 6);
    number(0);
    put_text(&b, "](K\x06"
                 "eq\x01K\x01\x85\x89" DICT "tRsh\x01");
    for (int i = 0; i < 9; i++)
        put_text(&b, "K\x01"
                     "a");
    put_text(&b, "0.");
    refuse(pt(), DLRN_ERR_FORMAT, "tensor 'x': malformed sizes");
}

TEST(refuses_storages) {
    static const struct {
        const char *type, *key;
        int64_t elements;
        const char *words;
    } bad[] = {
        {"FloatStorage", "7", 6, "tensor 'x': expected its storage '7' in the file, found none"},
        {"FloatStorage", "", 6, "tensor 'x': expected its storage '' in the file, found none"},
        {"FloatStorage", "../data.pkl", 6,
         "tensor 'x': expected its storage '../data.pkl' in the file, found none"},
        {"FloatStorage", "0", 7, "tensor 'x': expected a storage of 28 bytes, found 24"},
        {"DoubleStorage", "0", 6, "tensor 'x': expected a storage of 48 bytes, found 24"},
        {"FloatStorage", "0", 5,
         "tensor 'x': shape [6] at offset 0 does not fit its storage: expected at most 5"},
        {"FloatStorage", "0", -1, "tensor 'x': expected a storage of"},
        {"FloatStorage", "0", INT64_MAX, "tensor 'x': expected a storage of"},
        {"FloatStorage", "0", INT64_MIN, "tensor 'x': expected a storage of"},
        {"Size", "0", 6, "expected a persistent id of a storage"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        begin_x();
        put_text(&b, REBUILD "(");
        storage(bad[i].type, bad[i].key, bad[i].elements);
        number(0);
        numbers_tuple(1, six);
        numbers_tuple(1, one);
        put_text(&b, "\x89" DICT "tR");
        refuse(pt_x(), DLRN_ERR_FORMAT, bad[i].words);
    }
}

/* ---- Out of proportion ---- */

TEST(refuses_bombs) {
    static const char words[] = "values nested too deep or without end";
    begin(); /* each list holds the one before it twice: 2^60 leaves */
    text("leaf");
    for (int i = 0; i < 60; i++)
        put_text(&b, "q\x01](h\x01h\x01"
                     "e");
    put_text(&b, ".");
    refuse(pt(), DLRN_ERR_FORMAT, words);
    begin(); /* a list that holds itself */
    put_text(&b, "]q\x01h\x01"
                 "a.");
    refuse(pt(), DLRN_ERR_FORMAT, words);
    begin(); /* a dictionary that does, and a tuple in a list that is in the tuple */
    put_text(&b, "}q\x01");
    text("a");
    put_text(&b, "h\x01s.");
    refuse(pt(), DLRN_ERR_FORMAT, words);
    begin();
    put_text(&b, "]q\x01h\x01\x85"
                 "a.");
    refuse(pt(), DLRN_ERR_FORMAT, words);
    begin(); /* deeper than any file of tensors */
    for (int i = 0; i < 100; i++) put_text(&b, "](");
    put_text(&b, "N");
    for (int i = 0; i < 100; i++) put_text(&b, "e");
    put_text(&b, ".");
    refuse(pt(), DLRN_ERR_FORMAT, words);
    static char long_text[20001];
    memset(long_text, 'a', sizeof long_text - 1);
    begin(); /* one text, shared: ten thousand copies of it would not be in proportion to the file
              */
    text(long_text);
    put_text(&b, "q\x01](");
    for (int i = 0; i < 10000; i++) put_text(&b, "h\x01");
    put_text(&b, "e.");
    refuse(pt(), DLRN_ERR_FORMAT, words);
    begin(); /* a name out of measure */
    put_text(&b, "}");
    text(long_text);
    tensor(0, 1, six, one);
    refuse(pt_x(), DLRN_ERR_UNSUPPORTED, "a tensor's name is longer than 1000 bytes");
    begin(); /* the same name by two ways */
    put_text(&b, "}(");
    text("a.b");
    tensor(0, 1, six, one);
    text("a");
    put_text(&b, "}");
    text("b");
    tensor(0, 1, six, one);
    put_text(&b, "su.");
    refuse(pt(), DLRN_ERR_FORMAT, "tensor 'a.b': expected once, found twice");
}

/* A list that dictionaries are made of, over and over: each would hold all of it again. */
TEST(refuses_copies) {
    begin();
    put_text(&b, "ccollections\nOrderedDict\nq\x01](");
    for (int i = 0; i < 1000; i++) put_text(&b, "KaKb\x86");
    put_text(&b, "e\x85q\x02R");
    for (int i = 0; i < 1000; i++) put_text(&b, "h\x01h\x02R");
    put_text(&b, ".");
    refuse(pt(), DLRN_ERR_FORMAT,
           "data.pkl: pickle, byte 5061: dictionaries of more pairs than bytes read");
}

/* One tensor under many names: so are what they unfold to out of proportion, and the names are not.
 */
TEST(refuses_numbers_that_too_many_share) {
    static const int64_t repeated[2] = {64, 6}, strides[2] = {0, 1};
    for (int names = 10; names <= 1000; names *= 100) {
        begin_x();
        tensor(0, 2, repeated, strides);
        put_text(&b, "q\x01s");
        text("many");
        put_text(&b, "](");
        for (int i = 0; i < names; i++) put_text(&b, "h\x01");
        put_text(&b, "es.");
        if (names == 1000) {
            refuse(pt(), DLRN_ERR_FORMAT, "tensor 'many.");
            CHECK_STR(dlrn_error(ctx),
                      "': shares its numbers with too many others: expected at most ");
            continue;
        }
        dlrn_archive *a = accept(pt());
        CHECK(dlrn_archive_describe(a).count == 1 + names &&
              dlrn_archive_tensor(a, names)->numel == 384);
        dlrn_archive_close(a);
    }
}

/* Names that many tensors share a long part of are texts, too. */
TEST(refuses_long_names_of_many) {
    static char long_text[901];
    memset(long_text, 'a', sizeof long_text - 1);
    begin_x();
    tensor(0, 1, six, one);
    put_text(&b, "q\x01s");
    text(long_text);
    put_text(&b, "](");
    for (int i = 0; i < 10000; i++) put_text(&b, "h\x01");
    put_text(&b, "es.");
    refuse(pt(), DLRN_ERR_FORMAT, "values nested too deep or without end");
}

/* A name is one line of an error, whatever it holds; and it leads nowhere. */
TEST(names_are_only_names) {
    begin();
    put_text(&b, "}");
    text("a\n\x1b[31m\x7f\xc2\x9b"
         "1m\xc2\xa0");
    tensor(7, 1, six, one);
    refuse(pt_x(), DLRN_ERR_FORMAT,
           "hostile.file: tensor 'a??[31m???1m\xc2\xa0': shape [6] at offset 7 does not fit");
    CHECK(!strpbrk(dlrn_error(ctx), "\n\x1b\x7f\x9b"));
    begin();
    put_text(&b, "cos\x1b[2J\nsystem\n.");
    refuse(pt(), DLRN_ERR_UNSUPPORTED, "found an object, 'os?[2J.system'");
    static bytes data;
    begin_x();
    tensor(0, 1, six, one);
    put_text(&b, "s.");
    memset(&z, 0, sizeof z);
    zip_add(&z, "../../etc/data.pkl", &b);
    data.n = 0;
    put_floats(&data, numbers, 6);
    zip_add(&z, "../../etc/data/0", &data);
    expect_numbers(accept(zip_done(&z)), "x", NULL, 6);
}

TEST(long_text_is_read) {
    static char long_text[20001];
    memset(long_text, 'a', sizeof long_text - 1);
    begin_x();
    text(long_text);
    dlrn_archive *a = accept(pt_x());
    CHECK(strlen(dlrni_archive_metadata(a, "x")) == 20000);
    dlrn_archive_close(a);
}

/* ---- Damage ---- */

TEST(cut_short) {
    begin_x();
    tensor(0, 1, six, one);
    put_text(&b, "s.");
    for (size_t whole = b.n; b.n-- > 0;) {
        CHECK(b.n < whole);
        refuse(pt(), DLRN_ERR_FORMAT, "data.pkl: pickle, byte");
    }
}

/* Whatever any one byte becomes: an error or a tensor within bounds (the sanitizers watch). */
static void try_every_byte(bytes *file, size_t from, size_t to) {
    int read = 0, refused = 0;
    for (size_t at = from; at < to; at++)
        for (int value = 0; value < 256; value += at % 2 ? 1 : 3) {
            unsigned char before = file->p[at];
            dlrn_archive *a = NULL;
            float x[64];
            int64_t n = 0;
            file->p[at] = (unsigned char)value;
            dlrn_status s = open_bytes(file, &a);
            file->p[at] = before;
            refused += s != DLRN_OK;
            CHECK((s == DLRN_OK) == (a != NULL));
            if (a) n = dlrn_archive_describe(a).count;
            for (int64_t i = 0; i < n; i++) {
                const dlrn_tensor_info *t = dlrn_archive_tensor(a, i);
                if (t->numel > 64) continue;
                CHECK_STATUS(dlrn_archive_read(a, i, 0, -1, x),
                             dlrni_is_float(t->dtype) || t->numel <= 1 ? DLRN_OK
                                                                       : DLRN_ERR_UNSUPPORTED);
            }
            read += s == DLRN_OK;
            dlrn_archive_close(a);
        }
    CHECK(read > 0 && refused > 0);
}

TEST(any_byte_of_a_pickle) {
    begin_x();
    tensor(0, 1, six, one);
    bytes *file = pt_x();
    try_every_byte(file, 46, 46 + b.n);
}

/* ---- Zip around the pickle ---- */

TEST(byteorder) {
    for (int big = 0; big < 2; big++) {
        begin_x();
        tensor(0, 1, six, one);
        put_text(&b, "s.");
        expect_numbers(accept(pt_of(big ? "big" : "little")), "x", NULL, 6);
    }
}

/* Deflate's form for bytes that it cannot shrink: one block, stored. */
static bytes *packed_of(const bytes *data) {
    static bytes packed;
    packed.n = 0;
    put_text(&packed, "\1");
    put_le(&packed, data->n, 2);
    put_le(&packed, ~(uint64_t)data->n, 2);
    put(&packed, data->p, data->n);
    return &packed;
}

/* A .pt that was packed again: by a program that deflates every member. */
TEST(compressed) {
    static bytes data;
    for (int big = 0; big < 2; big++) {
        begin();
        put_text(&b, "](");
        for (int i = 0; i < 2; i++) tensor(0, 1, six, one); /* over one storage */
        put_text(&b, "e.");
        memset(&z, 0, sizeof z);
        zip_raw(&z, "archive/data.pkl", packed_of(&b), 8, b.n, crc_of(b.p, b.n), 0);
        data.n = 0;
        put_text(&data, big ? "big" : "little");
        zip_raw(&z, "archive/byteorder", packed_of(&data), 8, data.n, 0, 0);
        data.n = 0;
        put_floats(&data, numbers, 6);
        for (size_t i = 0; big && i < data.n; i += 4)
            patch(&data, i,
                  (uint64_t)data.p[i] << 24 | data.p[i + 1] << 16 | data.p[i + 2] << 8 |
                      data.p[i + 3],
                  4);
        zip_raw(&z, "archive/data/0", packed_of(&data), 8, 24, 0, 0);
        dlrn_archive *a = accept(zip_done(&z));
        CHECK(dlrn_archive_describe(a).count == 2);
        CHECK(a->entries[0].data == a->entries[1].data); /* unpacked once */
        expect_numbers(a, "1", NULL, 6);
    }
}

/* What does not unpack, to its size or its sum; and a pickle out of proportion. */
TEST(compressed_and_damaged) {
    static bytes data;
    begin_x();
    tensor(0, 1, six, one);
    put_text(&b, "s.");
    for (int damage = 0; damage < 3; damage++) {
        memset(&z, 0, sizeof z);
        zip_raw(&z, "archive/data.pkl", packed_of(&b), 8, b.n + (damage == 0), 0, 0);
        data.n = 0;
        put_floats(&data, numbers, 6);
        zip_raw(&z, "archive/data/0", packed_of(&data), 8, 24 + (damage == 1), damage == 2, 0);
        refuse(zip_done(&z), DLRN_ERR_FORMAT,
               damage == 0   ? "zip: member 'archive/data.pkl' does not unpack to the"
               : damage == 1 ? "zip: member 'archive/data/0' does not unpack to the 25 bytes"
                             : "zip: member 'archive/data/0' is damaged");
    }
    memset(&z, 0, sizeof z);
    zip_raw(&z, "archive/data.pkl", packed_of(&b), 8, 4096, 0, 0);
    refuse(zip_done(&z), DLRN_ERR_UNSUPPORTED, "data.pkl: expected at most twice the file's");
}

/* ---- The older form ---- */

#define MAGIC PROTO "\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."
#define VERSION PROTO "M\xe9\x03."

/* Magic, version, system, the object in `object`, keys, and one storage of `count` floats. */
static bytes *legacy(const bytes *object, const char *key, uint64_t count) {
    b.n = 0;
    put_text(&b, MAGIC VERSION PROTO "}.");
    put(&b, object->p, object->n);
    put_text(&b, PROTO "]");
    text(key);
    put_text(&b, "a.");
    put_le(&b, count, 8);
    put_floats(&b, numbers, 6);
    return &b;
}

TEST(legacy_form) {
    static bytes object;
    begin_x();
    tensor(0, 1, six, one);
    put_text(&b, "s.");
    object = b;
    dlrn_archive *a = accept(legacy(&object, "0", 6));
    CHECK(!strcmp(dlrn_archive_describe(a).format, "pt-legacy"));
    expect_numbers(a, "x", NULL, 6);
    refuse(legacy(&object, "1", 6), DLRN_ERR_FORMAT, "malformed list of storages");
    refuse(legacy(&object, "0", 7), DLRN_ERR_FORMAT,
           "a storage reaches beyond the end of the file");
    refuse(legacy(&object, "0", 0x4000000000000001), DLRN_ERR_FORMAT, "malformed list of storages");
    refuse(legacy(&object, "0", 5), DLRN_ERR_FORMAT,
           "tensor 'x': expected a storage of 24 bytes, found 20");
    bytes *file = legacy(&object, "0", 6);
    for (size_t whole = file->n; --file->n > 2;)
        refuse(file, DLRN_ERR_FORMAT,
               file->n < whole - 24 ? "pickle, byte" : "a storage reaches beyond the end");
    file = legacy(&object, "0", 6);
    patch(file, 5, 0x6d, 1);
    refuse(file, DLRN_ERR_FORMAT, "not torch's magic number: expected a file of torch.save");
    file = legacy(&object, "0", 6);
    patch(file, strlen(MAGIC) + 3, 1000, 2);
    refuse(file, DLRN_ERR_FORMAT, "not version 1001 of torch's older form");
    try_every_byte(legacy(&object, "0", 6), 2, b.n - 24);
}

/* The class of a pickled module, with its source, which is not looked at. */
TEST(legacy_modules) {
    static bytes object;
    begin();
    put_text(&b, "((");
    text("module");
    put_text(&b, "cmy.code\nSAE\n");
    text("/code/sae.py");
    text("import os");
    put_text(&b, "tQ)\x81}");
    text("weight");
    tensor(0, 1, six, one);
    put_text(&b, "sbt.");
    object = b;
    refuse(legacy(&object, "0", 6), DLRN_ERR_UNSUPPORTED,
           "found a pickled module or another object, 'my.code.SAE'");
}

/* A storage that is a part of another: (key, offset, elements) behind the number of elements. */
TEST(legacy_views) {
    static bytes object;
    static const int64_t two[1] = {2};
    static const float want[2] = {4, 5};
    begin_x();
    put_text(&b, REBUILD "((");
    text("storage");
    put_text(&b, "ctorch\nFloatStorage\n");
    text("0");
    text("cpu");
    number(6);
    text("part");
    put_text(&b, "K\x03K\x03\x87tQ");
    number(1);
    numbers_tuple(1, two);
    numbers_tuple(1, one);
    put_text(&b, "\x89" DICT "tRs.");
    object = b;
    expect_numbers(accept(legacy(&object, "0", 6)), "x", want, 2);
}

int main(int argc, char **argv) {
    TEST_BEGIN(argc, argv);
    if (dlrn_context_create(NULL, &ctx) != DLRN_OK) return 1;
    RUN(reads_a_tensor);
    RUN(reads_views);
    RUN(reads_nests);
    RUN(reads_other_forms);
    RUN(reads_numbers_by_path);
    RUN(reads_past_others);
    RUN(refuses_names);
    RUN(passes_over_objects);
    RUN(refuses_modules);
    RUN(lists_types);
    RUN(refuses_opcodes);
    RUN(refuses_stacks);
    RUN(refuses_views);
    RUN(refuses_sizes_that_change);
    RUN(refuses_storages);
    RUN(refuses_bombs);
    RUN(refuses_copies);
    RUN(refuses_numbers_that_too_many_share);
    RUN(refuses_long_names_of_many);
    RUN(names_are_only_names);
    RUN(long_text_is_read);
    RUN(cut_short);
    RUN(any_byte_of_a_pickle);
    RUN(byteorder);
    RUN(compressed);
    RUN(compressed_and_damaged);
    RUN(legacy_form);
    RUN(legacy_modules);
    RUN(legacy_views);
    dlrn_context_destroy(ctx);
    return TEST_END();
}
