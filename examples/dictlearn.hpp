/* dictlearn.hpp - dictlearn.h for C++11 and later: objects that free themselves, arrays whose sizes
   are checked, errors as exceptions. Objects move and are not copied. Declare what an object uses
   before it, the context first. `a...` are the arguments in C but the last, the result: objects and
   structs themselves, not addresses. Other functions: object.call(function, a...), or C with
   object.get(). Callbacks must not throw. With DICTLEARN_NO_EXCEPTIONS calls return a Result: it is
   false after a failure, and context.error() is the text. DICTLEARN_STATIC has no C++ interface. */
#ifndef DICTLEARN_HPP
#define DICTLEARN_HPP
#include "dictlearn.h"
#include <memory>
#include <stdexcept>
#if !defined(__cpp_exceptions) && !defined(_CPPUNWIND) && !defined(DICTLEARN_NO_EXCEPTIONS)
#define DICTLEARN_NO_EXCEPTIONS
#endif
namespace dlrn {
struct Done {}; // the value of a call that has no other
#ifdef DICTLEARN_NO_EXCEPTIONS
inline namespace results { // a program may have files of both kinds
template <class T> struct Result {
    dlrn_status status;
    T value;
    explicit operator bool() const { return status == DLRN_OK; }
};
template <class T = Done> Result<T> done(dlrn_context *, dlrn_status s, T &&value = T()) {
    return {s, std::move(value)};
}
#else
inline namespace exceptions {
struct Error : std::runtime_error {
    dlrn_status status;
    Error(dlrn_status s, const char *text) : std::runtime_error(text), status(s) {}
};
template <class T> using Result = T;
template <class T = Done> T done(dlrn_context *ctx, dlrn_status s, T &&value = T()) {
    if (s != DLRN_OK) throw Error(s, dlrn_error(ctx)); // the caller's object frees what was made
    return std::move(value);
}
#endif

/* Numbers of the caller: pointer and size, an array, a vector, a std::span; {}: none. */
template <class T> struct Span {
    T *data;
    int64_t size;
    Span() : Span(nullptr, 0) {}
    Span(T *p, std::size_t n) : data(n ? p : nullptr), size(int64_t(n)) {}
    template <std::size_t N> Span(T (&array)[N]) : Span(array, N) {}
    template <class C, class = decltype(std::declval<C &>().data())>
    Span(C &&of) : Span(of.data(), of.size()) {}
    int64_t rows(int64_t width) const { return size / (width > 0 ? width : 1); }
    dlrn_status fits(dlrn_context *ctx, int64_t n, int64_t width) const {
        if (!data || size == n * width) return DLRN_OK;
        return dlrn_fail(ctx, DLRN_ERR_SHAPE, "expected %.0f rows of %.0f, found %.0f numbers",
                         double(n), double(width), double(size));
    }
};
/* An argument as C takes it: of an object its pointer, of a struct its address. */
template <class T> auto arg(const T &object, int) -> decltype(object.get()) { return object.get(); }
template <class T, class = int T::*> const T *arg(const T &plain, long) { return &plain; }
template <class T> T arg(T value, ...) { return value; }
template <class T, void (*destroy)(T *)> struct Handle : std::unique_ptr<T, void (*)(T *)> {
    dlrn_context *ctx = nullptr;
    const dlrn_dictionary *dict = nullptr; // that an encoder or an evaluator works with
    explicit Handle(T *p = nullptr) : Handle::unique_ptr(p, destroy) {}
    void made_by(const dlrn_dictionary &d) { ctx = d.ctx, dict = &d; }
    template <class C> void made_by(const C &maker) { ctx = maker.ctx; }
    template <class F, class... A> Result<Done> call(F function, const A &...a) const {
        return done(ctx, function(this->get(), arg(a, 0)...));
    }
};
/* Defines name(first, a...), which returns an X that `function` makes. */
#define DLRN_MAKES(X, name, function)                                                              \
    template <class First, class... A> static Result<X> name(const First &first, const A &...a) {  \
        X made;                                                                                    \
        X::pointer p = nullptr;                                                                    \
        dlrn_status s = function(arg(first, 0), arg(a, 0)..., &p);                                 \
        made.reset(p), made.made_by(first);                                                        \
        return done(first.ctx, s, std::move(made));                                                \
    }

struct Context : Handle<dlrn_context, dlrn_context_destroy> {
    static Result<Context> create(const dlrn_context_config &config = dlrn_context_config()) {
        Context made;
        dlrn_status s = dlrn_context_create(&config, &made.ctx);
        made.reset(made.ctx);
        return done(made.ctx, s, std::move(made));
    }
    const char *error() const { return dlrn_error(ctx); }
};
struct Dictionary : Handle<dlrn_dictionary, dlrn_dictionary_destroy> {
    DLRN_MAKES(Dictionary, create, dlrn_dictionary_create)
    DLRN_MAKES(Dictionary, load, dlrn_load)
    Result<Done> save(const char *path) const { return call(dlrn_save, path); }
};
inline void free_codes(dlrn_sparse *p) { dlrn_sparse_free(p), delete p; }
struct Codes : Handle<dlrn_sparse, free_codes> {
    Codes() : Handle(new dlrn_sparse()) {}
};
struct Encoder : Handle<dlrn_encoder, dlrn_encoder_destroy> {
    DLRN_MAKES(Encoder, create, dlrn_encoder_create)
    Result<Done> run(Span<const float> x, Span<float> f, dlrn_sparse *codes, Span<float> x_hat) {
        const int64_t n = x.rows(dict->d_in);
        dlrn_status s = x.fits(ctx, n, dict->d_in);
        if (!s) s = f.fits(ctx, n, dict->features);
        if (!s) s = x_hat.fits(ctx, n, dict->d_out);
        return done(ctx, s ? s : dlrn_encoder_run(get(), x.data, n, f.data, codes, x_hat.data));
    }
};
#ifndef DICTLEARN_NO_TRAINING
inline void free_source(dlrn_source *p) { dlrn_source_destroy(p), delete p; }
struct Source : Handle<dlrn_source, free_source> { // fill *source for callbacks of your own
    Source() : Handle(new dlrn_source()) {}
    static Result<Source> array(const Context &c, Span<const float> x, int64_t d, int64_t epochs) {
        Source made;
        const int64_t n = x.rows(d);
        dlrn_status s = x.fits(c.ctx, n, d);
        if (!s) s = dlrn_source_from_array(c.ctx, x.data, nullptr, n, d, 0, epochs, made.get());
        return done(c.ctx, s, std::move(made));
    }
};
struct Buffer : Handle<dlrn_buffer, dlrn_buffer_destroy> {
    DLRN_MAKES(Buffer, create, dlrn_buffer_create)
};
struct Trainer : Handle<dlrn_trainer, dlrn_trainer_destroy> {
    DLRN_MAKES(Trainer, create, dlrn_trainer_create)
    DLRN_MAKES(Trainer, resume, dlrn_trainer_resume)
    DLRN_MAKES(Dictionary, finish, dlrn_trainer_finish)
    DLRN_MAKES(Dictionary, train, dlrn_train)
    const dlrn_dictionary &dictionary() const { return *dlrn_trainer_describe(get()).dictionary; }
    Result<bool> step(dlrn_train_stats *stats = nullptr) { // false: no batch is left
        dlrn_status s = dlrn_trainer_step(get(), stats);
        return done(ctx, s == DLRN_END ? DLRN_OK : s, s == DLRN_OK);
    }
};
struct Evaluator : Handle<dlrn_evaluator, dlrn_evaluator_destroy> {
    DLRN_MAKES(Evaluator, create, dlrn_evaluator_create)
    Result<Done> add(Span<const float> x) {
        const int64_t n = x.rows(dict->d_in);
        dlrn_status s = x.fits(ctx, n, dict->d_in);
        return done(ctx, s ? s : dlrn_evaluator_add(get(), x.data, nullptr, n));
    }
    Result<dlrn_metrics> finish() {
        dlrn_metrics m = dlrn_metrics();
        return done(ctx, dlrn_evaluator_finish(get(), &m), std::move(m));
    }
};
#endif
} // namespace
} // namespace dlrn
#endif
