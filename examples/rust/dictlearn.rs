//! dictlearn.h for Rust: the declarations in C's names, and below them wrappers that are safe. No
//! crates: rustc alone, and an object of the implementation (main.rs shows the command).
//!
//! Objects borrow what they need, so the compiler sees to it that a context outlives them. They
//! stay on one thread, since calls on one context must not overlap. Errors have the library's text.
#![allow(non_camel_case_types, dead_code)]
use std::ffi::{CStr, CString};
use std::fmt;
use std::marker::PhantomData;
use std::os::raw::{c_char, c_int};
use std::ptr;

/// Declares structs, functions and numbers of the header, and `c_check`, which states the same in
/// C: a file that compiles only if the header agrees. tests/test_rust.sh compiles it.
macro_rules! c_interface {
    (opaque $($opaque:ident)*;
     enums $($enum:ident)*;
     numbers $($number:ident = $value:literal)*;
     structs { $($(#[$on:meta])* $name:ident { $($see:vis $field:ident: $type:ty,)* })* }
     functions { $($fn:ident($($arg:ident: $at:ty),*) $(-> $ret:ty)?;)* }) => {
        $(pub enum $opaque {})*
        $(pub type $enum = c_int;)*
        $(pub const $number: c_int = $value;)*
        $(#[repr(C)] $(#[$on])* pub struct $name { $($see $field: $type,)* })*
        extern "C" { $(fn $fn($($arg: $at),*) $(-> $ret)?;)* }

        pub fn c_check() -> String {
            let mut c = String::from("#include <stddef.h>\n#include \"dictlearn.h\"\n");
            let mut holds = |what: String| c += &format!("_Static_assert({}, \"\");\n", what);
            $(holds(format!("{} == {}", stringify!($number), $value));)*
            $(holds(format!("sizeof({}) == {}", stringify!($enum), std::mem::size_of::<$enum>()));)*
            $({
                let name = stringify!($name);
                holds(format!("sizeof({}) == {}", name, std::mem::size_of::<$name>()));
                let whole = std::mem::MaybeUninit::<$name>::uninit();
                let start = whole.as_ptr();
                $(
                    let at = unsafe { ptr::addr_of!((*start).$field) };
                    let (field, type_) = (stringify!($field), stringify!($type));
                    let offset = at as usize - start as usize;
                    holds(format!("offsetof({}, {}) == {}", name, field, offset));
                    let one = format!("(({} *)0)->{}", name, field);
                    holds(format!("sizeof({}) == {}", one, size_behind(at)));
                    if !type_.starts_with('[') {
                        let type_ = in_c(type_, "");
                        holds(format!("_Generic({}, {}: 1, default: 0)", one, type_));
                    }
                )*
            })*
            $({
                let arguments: &[String] = &[$(in_c(stringify!($at), stringify!($arg))),*];
                let declared = format!("{}({})", stringify!($fn), arguments.join(", "));
                let returns = [$(stringify!($ret),)? "c_void"][0];
                c += &format!("{};\n", in_c(returns, &declared));
            })*
            c
        }
    };
}

fn size_behind<T>(_: *const T) -> usize {
    std::mem::size_of::<T>()
}

/// The declaration in C of a name of this type.
fn in_c(rust: &str, name: &str) -> String {
    let rust = rust.trim().replace("* ", "*");
    if let Some(to) = rust.strip_prefix("*mut ") {
        return in_c(to, &format!("*{}", name));
    }
    if let Some(to) = rust.strip_prefix("*const ") {
        return match to.starts_with('*') {
            true => in_c(to, &format!("const *{}", name)),
            false => format!("const {}", in_c(to, &format!("*{}", name))),
        };
    }
    let base = match rust.as_str() {
        "i64" => "int64_t",
        "u64" => "uint64_t",
        "i32" => "int32_t",
        "c_int" => "int",
        "u32" => "unsigned",
        "f32" => "float",
        "f64" => "double",
        "usize" => "size_t",
        "c_char" => "char",
        "c_void" => "void",
        other => other,
    };
    format!("{} {}", base, name)
}

c_interface! {
    opaque dlrn_context dlrn_context_config dlrn_encoder dlrn_buffer dlrn_trainer;
    enums dlrn_status dlrn_normalise dlrn_center dlrn_gate dlrn_select dlrn_rank dlrn_switch
        dlrn_loss dlrn_sparsity dlrn_optimiser dlrn_schedule dlrn_dtype;
    numbers
        DLRN_OK = 0
        DLRN_ERR_ARGUMENT = 3
        DLRN_ERR_IO = 5
        DLRN_ERR_SHAPE = 8
        DLRN_DECODER = 2
        DLRN_ROLE_COUNT = 18
        DLRN_GROUPS_MAX = 16;
    structs {
        dlrn_sparse {
            rows: i64,
            cols: i64,
            row_ptr: *mut i64,
            col: *mut i32,
            val: *mut f32,
            row_cap: i64,
            nnz_cap: i64,
            ctx: *mut dlrn_context,
        }
        dlrn_formula {
            pub normalise: dlrn_normalise,
            pub center: dlrn_center,
            pub gate: dlrn_gate,
            pub select: dlrn_select,
            pub k: i64,
            pub threshold: f64,
            pub scale_in: f64,
            pub scale_out: f64,
            pub standardise: dlrn_switch,
            pub repeats: dlrn_switch,
            pub rank: dlrn_rank,
        }
        dlrn_part {
            dict: *mut dlrn_dictionary,
            in_at: i64,
            out_at: i64,
            feature_at: i64,
        }
        dlrn_dictionary {
            ctx: *mut dlrn_context,
            family: *const c_char,
            d_in: i64,
            d_out: i64,
            features: i64,
            param: [*mut f32; 18],
            formula: dlrn_formula,
            skip_rows: i64,
            heads: i64,
            head_width: i64,
            layers: i64,
            feature_layers: i64,
            n_parts: i64,
            part: *mut dlrn_part,
            group_sizes: *mut i64,
            n_groups: i64,
            span_at: i64,
            span_of: i64,
            layout: *const c_char,
            class_name: *const c_char,
            note: [c_char; 256],
            borrowed: u32,
            version: i64,
        }
        dlrn_load_options {
            layout: *const c_char,
            k: i64,
            norm_scale: f64,
            threshold: f64,
            compat: dlrn_switch,
        }
        #[derive(Clone, Copy)]
        dlrn_buffer_config {
            pub capacity: i64,
            pub read_rows: i64,
            pub batch_rows: i64,
            pub shuffle: dlrn_switch,
            pub store: dlrn_dtype,
            pub seed: u64,
        }
        #[derive(Clone, Copy)]
        dlrn_train_config {
            recipe: *const c_char, // not public: it must outlive the struct
            pub d_in: i64,
            pub d_out: i64,
            pub layers: i64,
            pub features: i64,
            pub lr: f64,
            pub sparsity_penalty: f64,
            pub loss: dlrn_loss,
            pub sparsity: dlrn_sparsity,
            pub beta1: f64,
            pub beta2: f64,
            pub eps: f64,
            pub steps: i64,
            pub warmup_steps: i64,
            pub decay_start: i64,
            pub resample_steps: i64,
            pub resample_rows: i64,
            pub ghost_threshold: i64,
            pub log_steps: i64,
            pub save_steps: i64,
            pub seed: u64,
            pub compat: dlrn_switch,
            pub clip: f64,
            pub sparsity_warmup_steps: i64,
            pub k: i64,
            pub k_fraction: f64,
            pub k_anneal_steps: i64,
            pub k_start: i64,
            pub auxk_alpha: f64,
            pub auxk: i64,
            pub auxk_by_group: dlrn_switch,
            pub multi_top_k: dlrn_switch,
            pub dead_rows: i64,
            pub dead_steps: i64,
            pub threshold_beta: f64,
            pub threshold_start_step: i64,
            pub target_l0: f64,
            pub bandwidth: f64,
            pub pre_act: f64,
            pub rescale: dlrn_switch,
            pub center: dlrn_switch,
            pub skip: dlrn_switch,
            pub scale_rows: dlrn_switch,
            pub n_groups: i64,
            pub groups: [i64; 16],
            pub group_weights: [f64; 16],
            pub p_start: f64,
            pub p_end: f64,
            pub anneal_start: i64,
            pub anneal_end: i64,
            pub anneal_updates: i64,
            pub optimiser: dlrn_optimiser,
            pub lr_schedule: dlrn_schedule,
            pub lr_end: f64,
            pub lr_cycles: i64,
            pub threshold_lr: f64,
            pub atom_norm: f64,
            pub new_threshold: f64,
            pub buffer: dlrn_buffer_config,
        }
        #[derive(Clone, Copy)]
        dlrn_train_stats {
            pub step: i64,
            pub rows: i64,
            pub loss: f64,
            pub reconstruction_loss: f64,
            pub sparsity_loss: f64,
            pub auxiliary_loss: f64,
            pub pre_act_loss: f64,
            pub multi_top_k_loss: f64,
            pub k: i64,
            pub l0: f64,
            pub lr: f64,
            pub penalty: f64,
            pub dead: i64,
            pub resampled: i64,
        }
        dlrn_rng {
            pub seed: u64,
            pub stream: u64,
            pub counter: u64,
        }
    }
    functions {
        dlrn_context_create(config: *const dlrn_context_config, out: *mut *mut dlrn_context)
            -> dlrn_status;
        dlrn_context_destroy(ctx: *mut dlrn_context);
        dlrn_error(ctx: *const dlrn_context) -> *const c_char;
        dlrn_load(ctx: *mut dlrn_context, path: *const c_char, options: *const dlrn_load_options,
            out: *mut *mut dlrn_dictionary) -> dlrn_status;
        dlrn_save(dict: *const dlrn_dictionary, path: *const c_char) -> dlrn_status;
        dlrn_dictionary_destroy(dict: *mut dlrn_dictionary);
        dlrn_encoder_create(dict: *const dlrn_dictionary, out: *mut *mut dlrn_encoder)
            -> dlrn_status;
        dlrn_encoder_destroy(e: *mut dlrn_encoder);
        dlrn_encoder_run(e: *mut dlrn_encoder, x: *const f32, n: i64, f: *mut f32,
            codes: *mut dlrn_sparse, x_hat: *mut f32) -> dlrn_status;
        dlrn_sparse_free(codes: *mut dlrn_sparse);
        dlrn_train_defaults(recipe: *const c_char) -> dlrn_train_config;
        dlrn_trainer_create(ctx: *mut dlrn_context, cfg: *const dlrn_train_config,
            init: *const dlrn_dictionary, buffer: *mut dlrn_buffer, out: *mut *mut dlrn_trainer)
            -> dlrn_status;
        dlrn_trainer_destroy(trainer: *mut dlrn_trainer);
        dlrn_trainer_step_on(trainer: *mut dlrn_trainer, x: *const f32, y: *const f32, n: i64,
            stats: *mut dlrn_train_stats) -> dlrn_status;
        dlrn_trainer_finish(trainer: *const dlrn_trainer, out: *mut *mut dlrn_dictionary)
            -> dlrn_status;
        dlrn_rng_normal(rng: *mut dlrn_rng) -> f32;
        dlrn_rng_below(rng: *mut dlrn_rng, n: u64) -> u64;
    }
}

/// What failed, in the library's words.
#[derive(Debug)]
pub struct Error {
    pub status: dlrn_status,
    pub text: String,
}
pub type Result<T> = std::result::Result<T, Error>;

impl fmt::Display for Error {
    fn fmt(&self, to: &mut fmt::Formatter) -> fmt::Result {
        to.write_str(&self.text)
    }
}
impl std::error::Error for Error {}

fn fails<T>(status: dlrn_status, text: String) -> Result<T> {
    Err(Error { status, text })
}

fn c_text(text: &str) -> Result<CString> {
    CString::new(text).or_else(|_| fails(DLRN_ERR_ARGUMENT, format!("a 0 byte in {:?}", text)))
}

/// The number of rows of this width.
fn rows(x: &[f32], width: i64) -> Result<i64> {
    let n = x.len() as i64;
    if n % width == 0 {
        return Ok(n / width);
    }
    fails(DLRN_ERR_SHAPE, format!("expected rows of {}, found {} numbers", width, n))
}

/// What objects share.
pub struct Context(*mut dlrn_context);

impl Context {
    pub fn new() -> Result<Context> {
        let mut ctx = Context(ptr::null_mut());
        let status = unsafe { dlrn_context_create(ptr::null(), &mut ctx.0) };
        ctx.check(status).map(|_| ctx)
    }

    fn check(&self, status: dlrn_status) -> Result<()> {
        if status == DLRN_OK {
            return Ok(());
        }
        let text = unsafe { CStr::from_ptr(dlrn_error(self.0)) };
        fails(status, text.to_string_lossy().into_owned())
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        unsafe { dlrn_context_destroy(self.0) }
    }
}

pub struct Dictionary<'c> {
    ctx: &'c Context,
    raw: *mut dlrn_dictionary,
}

impl<'c> Dictionary<'c> {
    pub fn load(ctx: &'c Context, path: &str) -> Result<Dictionary<'c>> {
        let path = c_text(path)?;
        let mut raw = ptr::null_mut();
        ctx.check(unsafe { dlrn_load(ctx.0, path.as_ptr(), ptr::null(), &mut raw) })?;
        Ok(Dictionary { ctx, raw })
    }

    pub fn save(&self, path: &str) -> Result<()> {
        let path = c_text(path)?;
        self.ctx.check(unsafe { dlrn_save(self.raw, path.as_ptr()) })
    }

    fn get(&self) -> &dlrn_dictionary {
        unsafe { &*self.raw }
    }

    pub fn d_in(&self) -> i64 {
        self.get().d_in
    }

    pub fn features(&self) -> i64 {
        self.get().features
    }

    pub fn formula(&self) -> &dlrn_formula {
        &self.get().formula
    }

    pub fn family(&self) -> &str {
        unsafe { CStr::from_ptr(self.get().family) }.to_str().unwrap_or("?")
    }
}

impl Drop for Dictionary<'_> {
    fn drop(&mut self) {
        unsafe { dlrn_dictionary_destroy(self.raw) }
    }
}

/// The active features of rows.
pub struct Codes<'c> {
    raw: dlrn_sparse,
    ctx: PhantomData<&'c Context>, // whose memory they hold
}

impl Codes<'_> {
    pub fn rows(&self) -> usize {
        self.raw.rows as usize
    }

    /// The features of a row, ascending, and their values.
    pub fn row(&self, row: usize) -> (&[i32], &[f32]) {
        assert!(row < self.rows(), "row {} of {}", row, self.rows());
        unsafe {
            let at = *self.raw.row_ptr.add(row) as usize;
            let n = *self.raw.row_ptr.add(row + 1) as usize - at;
            if n == 0 {
                return (&[], &[]); // there may be no array at all
            }
            let columns = std::slice::from_raw_parts(self.raw.col.add(at), n);
            (columns, std::slice::from_raw_parts(self.raw.val.add(at), n))
        }
    }
}

impl Drop for Codes<'_> {
    fn drop(&mut self) {
        unsafe { dlrn_sparse_free(&mut self.raw) }
    }
}

/// Encodes with memory that it keeps from call to call.
pub struct Encoder<'d> {
    dict: &'d Dictionary<'d>,
    raw: *mut dlrn_encoder,
}

impl<'d> Encoder<'d> {
    pub fn new(dict: &'d Dictionary<'d>) -> Result<Encoder<'d>> {
        let mut raw = ptr::null_mut();
        dict.ctx.check(unsafe { dlrn_encoder_create(dict.raw, &mut raw) })?;
        Ok(Encoder { dict, raw })
    }

    /// The codes of x [n][d_in] and its reconstruction [n][d_out].
    pub fn run(&mut self, x: &[f32]) -> Result<(Codes<'d>, Vec<f32>)> {
        let dict = self.dict.get();
        let n = rows(x, dict.d_in)?;
        let mut codes = Codes { raw: unsafe { std::mem::zeroed() }, ctx: PhantomData };
        let mut x_hat = vec![0.0; (n * dict.d_out) as usize];
        let (from, to, f) = (x.as_ptr(), x_hat.as_mut_ptr(), ptr::null_mut());
        let status = unsafe { dlrn_encoder_run(self.raw, from, n, f, &mut codes.raw, to) };
        self.dict.ctx.check(status).map(|_| (codes, x_hat))
    }
}

impl Drop for Encoder<'_> {
    fn drop(&mut self) {
        unsafe { dlrn_encoder_destroy(self.raw) }
    }
}

/// The defaults of a recipe ("dl-top_k").
pub fn defaults(recipe: &str) -> Result<dlrn_train_config> {
    let name = c_text(recipe)?;
    let config = unsafe { dlrn_train_defaults(name.as_ptr()) };
    if config.recipe == name.as_ptr() {
        // of a recipe that it knows, it returns a name of its own
        return fails(DLRN_ERR_ARGUMENT, format!("no recipe '{}'", recipe));
    }
    Ok(config)
}

pub struct Trainer<'c> {
    ctx: &'c Context,
    d_in: i64,
    raw: *mut dlrn_trainer,
}

impl<'c> Trainer<'c> {
    pub fn new(ctx: &'c Context, config: &dlrn_train_config) -> Result<Trainer<'c>> {
        let (mut raw, init, buffer) = (ptr::null_mut(), ptr::null(), ptr::null_mut());
        ctx.check(unsafe { dlrn_trainer_create(ctx.0, config, init, buffer, &mut raw) })?;
        Ok(Trainer { ctx, d_in: config.d_in, raw })
    }

    /// One step on x [n][d_in], to reconstruct x.
    pub fn step(&mut self, x: &[f32]) -> Result<dlrn_train_stats> {
        let n = rows(x, self.d_in)?;
        let mut stats: dlrn_train_stats = unsafe { std::mem::zeroed() };
        let status =
            unsafe { dlrn_trainer_step_on(self.raw, x.as_ptr(), ptr::null(), n, &mut stats) };
        self.ctx.check(status).map(|_| stats)
    }

    /// What it has trained so far.
    pub fn dictionary(&self) -> Result<Dictionary<'c>> {
        let mut raw = ptr::null_mut();
        self.ctx.check(unsafe { dlrn_trainer_finish(self.raw, &mut raw) })?;
        Ok(Dictionary { ctx: self.ctx, raw })
    }
}

impl Drop for Trainer<'_> {
    fn drop(&mut self) {
        unsafe { dlrn_trainer_destroy(self.raw) }
    }
}

impl dlrn_rng {
    pub fn normal(&mut self) -> f32 {
        unsafe { dlrn_rng_normal(self) }
    }

    pub fn below(&mut self, n: u64) -> u64 {
        unsafe { dlrn_rng_below(self, n) }
    }
}
