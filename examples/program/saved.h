/* What a run writes of its dictionary: ae.pt, which this program and dictionary_learning open, and
   the files of the recipe's own library. */

/* A dictionary that a trainer is asked for. */
typedef struct trained {
    const dlrn_dictionary *dict;
    dlrn_dictionary *owned; /* to be destroyed, or NULL */
} trained;

/* The dictionary that is saved: with signum an average that the trainer keeps beside its own. */
static dlrn_status trained_open(const dlrn_trainer *t, trained *out) {
    const dlrn_trainer_info info = dlrn_trainer_describe(t);
    out->owned = NULL;
    out->dict = info.dictionary;
    if (info.config->optimiser != DLRN_OPTIMISER_SIGNUM) return DLRN_OK;
    dlrn_status s = dlrn_trainer_finish(t, &out->owned);
    out->dict = out->owned;
    return s;
}

static void trained_close(trained *t) {
    dlrn_dictionary_destroy(t->owned);
}

/* Makes a folder, if it is not there. */
static dlrn_status make_folder(dlrn_context *ctx, const char *path) {
    dlrn_status s = DLRN_OK;
    if (is_first() && mkdir(path, 0777) != 0 && errno != EEXIST)
        s = dlrn_fail(ctx, DLRN_ERR_IO, "%s: cannot make this folder: %s", path, strerror(errno));
    return dlrn_agree(ctx, s);
}

/* Removes the files of a folder, and the folder. */
static void delete_folder(const char *path) {
    char name[4600];
    if (!is_first()) return;
    DIR *dir = opendir(path);
    for (struct dirent *e; dir && (e = readdir(dir)) != NULL;) {
        snprintf(name, sizeof name, "%s/%s", path, e->d_name);
        if (strcmp(e->d_name, ".") && strcmp(e->d_name, "..")) remove(name);
    }
    if (dir) closedir(dir);
    rmdir(path);
}

/* Whether a name is that of a library's config, which goes after the weights: a reader that finds
   it finds the rest. */
static int is_library_config(const char *name) {
    return ends_with(name, ".json") || ends_with(name, ".yaml");
}

/* Moves the files of a folder into another one, over those that are there. */
static dlrn_status move_files(dlrn_context *ctx, const char *from, const char *to) {
    char old_path[4800], new_path[4800];
    for (int configs = 0; configs < 2 && is_first(); configs++) {
        DIR *dir = opendir(from);
        if (!dir)
            return dlrn_fail(ctx, DLRN_ERR_IO, "%s: cannot read this folder: %s", from,
                             strerror(errno));
        for (struct dirent *e; (e = readdir(dir)) != NULL;) {
            if (*e->d_name == '.' || is_library_config(e->d_name) != configs) continue;
            snprintf(old_path, sizeof old_path, "%s/%s", from, e->d_name);
            snprintf(new_path, sizeof new_path, "%s/%s", to, e->d_name);
            if (rename(old_path, new_path) == 0) continue;
            closedir(dir);
            return dlrn_fail(ctx, DLRN_ERR_IO, "%s: cannot be put in place: %s", new_path,
                             strerror(errno));
        }
        closedir(dir);
    }
    return DLRN_OK;
}

#define LIBRARY_PART "library.part" /* a folder in the run's, while its library's files are made */

/* Writes a library's files into a folder, beside others. They are made in a folder of their own
   first, since a library's folder must hold nothing else. Those of a library that calls its config
   as a run does, and those of several files, go into a folder of the library's name; *within is 1
   then. DLRN_ERR_UNSUPPORTED: the library lacks this dictionary, or is not written for. */
static dlrn_status save_for_library(const dlrn_dictionary *dict, const char *folder,
                                    const char *library, int *within, char *note, size_t size) {
    const dlrn_save_options how = {library, 0};
    char part[4400], config[4600], to[4400];
    snprintf(part, sizeof part, "%s/" LIBRARY_PART, folder);
    snprintf(config, sizeof config, "%s/config.json", part);
    delete_folder(part);
    dlrn_status s = make_folder(dict->ctx, part);
    if (s == DLRN_OK) s = dlrn_save_as(dict, part, &how, note, size);
    *within = s == DLRN_OK && (dict->n_parts || dlrn_file_exists(dict->ctx, config) == 1);
    snprintf(to, sizeof to, *within ? "%s/%s" : "%s", folder, library);
    if (s == DLRN_OK) s = ranks_first_of(dict->ctx, s, within);
    if (s == DLRN_OK && *within) s = make_folder(dict->ctx, to);
    if (s == DLRN_OK) s = dlrn_agree(dict->ctx, move_files(dict->ctx, part, to));
    delete_folder(part);
    return s;
}

/* Writes PATH.pt for dictionary_learning; what that has in other numbers alone (a center, a rank by
   norms) is folded in. Its classes have one width, and a dictionary of two is written in their
   layouts; one of several parts is for this program alone. DLRN_ERR_UNSUPPORTED: it has no such
   dictionary. */
static dlrn_status save_learning(const dlrn_dictionary *dict, const char *path) {
    const dlrn_save_options how = {"dictionary_learning", 0};
    char file[4400];
    dlrn_status none = DLRN_OK;
    snprintf(file, sizeof file, "%s.pt", path);
    if (is_first() && dlrn_file_exists(dict->ctx, file) ==
                          2) /* it would go into the folder, where nobody looks */
        none =
            dlrn_fail(dict->ctx, DLRN_ERR_IO, "%s: expected a file to write, found a folder", file);
    none = dlrn_agree(dict->ctx, none);
    if (none != DLRN_OK) return none;
    if (dict->n_parts) return dlrn_save(dict, file);
    dlrn_status s = dlrn_save_as(dict, file, &how, NULL, 0);
    return s == DLRN_ERR_UNSUPPORTED && dict->d_in != dict->d_out && !dict->param[DLRN_SKIP]
               ? dlrn_save(dict, file)
               : s;
}

/* The class of such a file: dictionary_learning calls an AutoEncoder that subtracts nothing by
   another name. */
static const char *learning_class(const dlrn_dictionary *dict) {
    const int is_new = !strcmp(dict->family, "AutoEncoder") && dict->d_in == dict->d_out &&
                       dict->formula.center == DLRN_CENTER_NONE;
    return is_new ? "AutoEncoderNew" : dict->family;
}
