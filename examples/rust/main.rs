//! A dictionary from Rust: train it for some steps, save it, load it, encode rows.
//!
//!     cc -O2 -fopenmp -x c -DDICTLEARN_IMPLEMENTATION -c dictlearn.h -o dictlearn.o
//!     rustc -O examples/rust/main.rs -o rust_example -C link-args="dictlearn.o -fopenmp -lm -lgcc"
//!     ./rust_example
//!     ./rust_example DICTIONARY       a file or folder that the library reads
//!
//! `make rust` builds it as build/rust_example.
mod dictlearn;
use dictlearn::{defaults, dlrn_rng, Context, Dictionary, Encoder, Result, Trainer};

const DIM: usize = 32;
const BATCH: usize = 512;
const PATH: &str = "rust.safetensors";

/// Rows that are sums of three of 96 directions.
fn make_rows(n: usize, rng: &mut dlrn_rng) -> Vec<f32> {
    let mut x = vec![0.0; n * DIM];
    for row in x.chunks_mut(DIM) {
        for _ in 0..3 {
            let mut direction = dlrn_rng { seed: 2, stream: rng.below(96), counter: 0 };
            row.iter_mut().for_each(|c| *c += direction.normal());
        }
    }
    x
}

fn train(ctx: &Context) -> Result<Dictionary<'_>> {
    let mut config = defaults("dl-top_k")?;
    config.d_in = DIM as i64;
    config.features = 192;
    config.k = 3;
    config.lr = 3e-3;
    config.warmup_steps = 20;
    let mut trainer = Trainer::new(ctx, &config)?;
    let mut rng = dlrn_rng { seed: 1, stream: 0, counter: 0 };
    for step in 0..300 {
        let stats = trainer.step(&make_rows(BATCH, &mut rng))?;
        if step % 100 == 0 {
            println!("step {:3}  loss {:7.3}  L0 {:.2}", stats.step, stats.loss, stats.l0);
        }
    }
    trainer.dictionary()
}

/// Encodes some rows, and prints the features of the first.
fn encode(dict: &Dictionary) -> Result<()> {
    println!("{}: {} -> {} features", dict.family(), dict.d_in(), dict.features());
    let mut rng = dlrn_rng { seed: 7, stream: 0, counter: 0 };
    let x: Vec<f32> = (0..64 * dict.d_in()).map(|_| rng.normal()).collect();
    let (codes, x_hat) = Encoder::new(dict)?.run(&x)?;
    let (features, values) = codes.row(0);
    for (feature, value) in features.iter().zip(values).take(5) {
        println!("feature {}: {:.2}", feature, value);
    }
    println!("{} rows, x begins with {:.2}, x_hat with {:.2}", codes.rows(), x[0], x_hat[0]);
    Ok(())
}

fn run(path: Option<&String>) -> Result<()> {
    let ctx = Context::new()?;
    if path.is_none() {
        train(&ctx)?.save(PATH)?;
    }
    let dict = Dictionary::load(&ctx, path.map_or(PATH, |p| p))?;
    if path.is_none() {
        let _ = std::fs::remove_file(PATH);
    }
    encode(&dict)
}

fn main() {
    let argument = std::env::args().nth(1);
    if argument.as_deref() == Some("--c-check") {
        print!("{}", dictlearn::c_check());
    } else if let Err(e) = run(argument.as_ref()) {
        eprintln!("{}", e);
        std::process::exit(1);
    }
}
