/* What the program prints and writes: progress, text of files, JSON, whole files. */

/* ---- progress, on standard error */

static int told_on_terminal; /* a line of progress stands there without its end */

/* Prints a line of progress; on a terminal it replaces the one before. */
static DLRN_PRINTF(1, 2) void tell(const char *format, ...) {
    va_list args;
    int terminal = isatty(2);
    va_start(args, format);
    if (terminal) fputs("\r\033[K", stderr);
    vfprintf(stderr, format, args);
    if (!terminal) fputc('\n', stderr);
    told_on_terminal = terminal;
    va_end(args);
}

/* Leaves the last line of progress on the terminal. */
static void tell_end(void) {
    if (told_on_terminal) fputc('\n', stderr);
    told_on_terminal = 0;
}

/* A time as people say it. */
static const char *time_text(double s, char *text, size_t size) {
    if (s < 120)
        snprintf(text, size, "%.0f s", s);
    else if (s < 7200)
        snprintf(text, size, "%.0f min", s / 60);
    else
        snprintf(text, size, "%.1f h", s / 3600);
    return text;
}

/* ---- text out of files. Terminals obey control characters and turn text around, so no such
   character is printed as it is. */

static int is_control(uint32_t c) {
    return c < 32 || (c >= 127 && c < 160);
}

/* Control characters, and those that turn the direction of the text around them. */
static int is_unsafe(uint32_t c) {
    return is_control(c) || c == 0x61C || c == 0x200E || c == 0x200F ||
           (c >= 0x202A && c <= 0x202E) || (c >= 0x2066 && c <= 0x2069);
}

/* Prints bytes for people, on one line: line ends as a sign, tabs as a space, other unsafe
   characters as a question mark, what is not UTF-8 as U+FFFD. Returns the number of characters. */
static int put_text(FILE *f, const char *s, int64_t n) {
    int shown = 0;
    for (int64_t i = 0, length; i < n; i += length, shown++) {
        uint32_t c;
        length = bpe_char(s + i, n - i, &c);
        if (c >= BPE_RAW)
            fputs("\xEF\xBF\xBD", f);
        else if (c == '\n')
            fputs("\xE2\x8F\x8E", f);
        else if (is_unsafe(c))
            fputc(c == '\t' || c == '\r' ? ' ' : '?', f);
        else
            fwrite(s + i, 1, (size_t)length, f);
    }
    return shown;
}

/* Prints bytes as a JSON string; what is not UTF-8 (a character cut in two) becomes U+FFFD. */
static void put_quoted(FILE *f, const char *s, int64_t n) {
    fputc('"', f);
    for (int64_t i = 0, length; i < n; i += length) {
        uint32_t c;
        length = bpe_char(s + i, n - i, &c);
        if (c >= BPE_RAW)
            fputs("\\ufffd", f);
        else if (c == '"' || c == '\\')
            fprintf(f, "\\%c", (char)c);
        else if (c == '\n')
            fputs("\\n", f);
        else if (is_unsafe(c))
            fprintf(f, "\\u%04x", (unsigned)c);
        else
            fwrite(s + i, 1, (size_t)length, f);
    }
    fputc('"', f);
}

/* ---- JSON. Commas and keys are put here; key NULL: an element of a list, or the outermost value.
   */

typedef struct json_writer {
    FILE *f;
    int more; /* 1: the next value follows another one in its object or list */
} json_writer;

/* Begins a value: comma and key. */
static void json_key(json_writer *j, const char *key) {
    if (j->more) fputs(", ", j->f);
    if (key) fprintf(j->f, "\"%s\": ", key);
    j->more = 1;
}

/* Begins an object '{' or a list '['. */
static void json_open(json_writer *j, const char *key, char bracket) {
    json_key(j, key);
    fputc(bracket, j->f);
    j->more = 0;
}

static void json_close(json_writer *j, char bracket) {
    fputc(bracket, j->f);
    j->more = 1;
}

static void json_int(json_writer *j, const char *key, int64_t value) {
    json_key(j, key);
    fprintf(j->f, "%lld", (long long)value);
}

/* With so many significant digits; JSON has neither NaN nor infinities: null. */
static void json_real(json_writer *j, const char *key, int digits, double value) {
    json_key(j, key);
    if (value - value == 0)
        fprintf(j->f, "%.*g", digits, value);
    else
        fputs("null", j->f);
}

static void json_bool(json_writer *j, const char *key, int value) {
    json_key(j, key);
    fputs(value ? "true" : "false", j->f);
}

static void json_bytes(json_writer *j, const char *key, const char *s, int64_t n) {
    json_key(j, key);
    put_quoted(j->f, s, n);
}

static void json_text(json_writer *j, const char *key, const char *s) {
    json_bytes(j, key, s, (int64_t)strlen(s));
}

/* ---- a file printed into memory, so that the library writes it: whole or not at all */

typedef struct page {
    FILE *f;
    char *text;
    size_t size;
} page;

static dlrn_status page_open(dlrn_context *ctx, page *p) {
    memset(p, 0, sizeof *p);
    p->f = open_memstream(&p->text, &p->size);
    return p->f ? DLRN_OK : dlrn_fail(ctx, DLRN_ERR_MEMORY, "out of memory");
}

/* Ends the printing: text [size], closed with a 0. Freed with page_free. */
static dlrn_status page_end(dlrn_context *ctx, page *p) {
    int bad = ferror(p->f) != 0;
    bad |= fclose(p->f) != 0;
    return bad ? dlrn_fail(ctx, DLRN_ERR_MEMORY, "out of memory") : DLRN_OK;
}

static void page_free(page *p) {
    free(p->text);
    p->text = NULL;
}

/* Publishes what a writer has been given, or discards it if the command failed. */
static dlrn_status close_writer(dlrn_writer *w, dlrn_status s) {
    if (s == DLRN_OK) return dlrn_writer_close(w);
    dlrn_writer_abort(w);
    return s;
}

/* ---- names of files */

static int ends_with(const char *text, const char *end) {
    size_t n = strlen(text), k = strlen(end);
    return n >= k && !strcmp(text + n - k, end);
}

/* 0, or 2 if the suffix promises another format than the one written. No suffix, a device and a
   pipe are fine. */
static int check_suffix(const char *command_name, const char *path, const char *suffix,
                        const char *other) {
    const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
    struct stat st;
    if (ends_with(path, suffix) || (*other && ends_with(path, other)) || !strchr(name, '.'))
        return 0;
    if (stat(path, &st) == 0 && !S_ISREG(st.st_mode)) return 0;
    fprintf(stderr, "dictlearn: %s: expected a name ending in %s%s%s: see dictlearn %s --help\n",
            path, suffix, *other ? " or " : "", other, command_name);
    return 2;
}

/* Makes a folder and its parents. *had: how many bytes of the path were there before. */
static dlrn_status make_folders(dlrn_context *ctx, const char *path, size_t *had) {
    char part[4096];
    size_t n = strlen(path);
    *had = n;
    if (n >= sizeof part - 64)
        return dlrn_fail(ctx, DLRN_ERR_ARGUMENT, "%s: the path is too long", path);
    for (size_t i = 1; i <= n; i++) {
        if (path[i] != '/' && path[i]) continue;
        memcpy(part, path, i);
        part[i] = 0;
        if (mkdir(part, 0777) == 0) {
            *had = *had < i ? *had : i - 1;
            continue;
        }
        int why = errno;
        if (dlrn_file_exists(ctx, part) != 2)
            return dlrn_fail(ctx, DLRN_ERR_IO, "%s: cannot make this folder: %s", part,
                             strerror(why));
    }
    if (access(path, W_OK) == 0) return DLRN_OK;
    return dlrn_fail(ctx, DLRN_ERR_IO, "%s: cannot write into this folder: %s", path,
                     strerror(errno));
}

/* Removes the folders that were made, as far as they are empty. */
static void unmake_folders(const char *path, size_t had) {
    char part[4096];
    for (size_t n = strlen(path); n > had && n < sizeof part; n--) {
        if (path[n] != '/' && path[n]) continue;
        memcpy(part, path, n);
        part[n] = 0;
        if (rmdir(part) != 0) return;
    }
}
