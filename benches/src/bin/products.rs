//! Matrix products at the shapes of training, by each library of the build.
//!
//! `benches/pytorch/products.py` is the counterpart for the libraries of Python and of the system.
//!
//! ```text
//! cargo build --release -p gnsp-benches --bin products [--features blas]
//! products [--ways flex,faer,blas] [--seconds 0.5]
//! ```
//!
//! It prints a line of JSON for each shape, product and library: `{"shape", "product", "way",
//! "best", "median"}`, in GFLOP/s. The first line is `{"clock_mhz"}`, the measured clock frequency,
//! because virtual machines report a different one.

use std::{error::Error, time::Instant};

use burn::tensor::{Device, Tensor, TensorData};
use clap::Parser;
use faer::{Accum, MatMut, MatRef, Par};
use host_gemm::{Library, gram_lower_by, product_by};
use rayon::prelude::*;
use serde_json::json;

/// The allocator of `mtil-bench`.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Rows, width and hidden width of the first product of an MLP branch.
const SHAPES: [(&str, usize, usize, usize); 5] = [
    ("ViT-B/32, 16 images", 16 * 50, 768, 3072),
    ("ViT-B/16, 8 images", 8 * 197, 768, 3072),
    ("ViT-B/16, 16 images", 16 * 197, 768, 3072),
    ("ViT-L/14, 8 images", 8 * 257, 1024, 4096),
    ("embedded, 64 images", 64 * 17, 128, 512),
];

/// Rows per chunk, as in the kernels.
const CHUNK: usize = 400;

#[derive(Parser)]
struct Cli {
    /// flex: Burn's host backend. faer, blas: called as in the kernels, by each thread for its rows
    #[arg(long, value_delimiter = ',')]
    ways: Vec<String>,
    /// Seconds of each measurement, after a first call
    #[arg(long, default_value_t = 0.5)]
    seconds: f64,
}

/// A product of the training step.
#[derive(Clone, Copy)]
enum Kind {
    Forward,
    InputGradient,
    WeightGradient,
    Gram,
}

impl Kind {
    const ALL: [Self; 4] = [
        Self::Forward,
        Self::InputGradient,
        Self::WeightGradient,
        Self::Gram,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Forward => "X·W",
            Self::InputGradient => "G·Wᵀ",
            Self::WeightGradient => "Xᵀ·G",
            Self::Gram => "XᵀX",
        }
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let cli = Cli::parse();
    let ways = if cli.ways.is_empty() {
        let blas = cfg!(feature = "blas").then_some("blas");
        ["flex", "faer"]
            .into_iter()
            .chain(blas)
            .map(str::to_owned)
            .collect()
    } else {
        cli.ways.clone()
    };
    println!("{}", json!({ "clock_mhz": clock_mhz() }));
    for (shape, rows, width, hidden) in SHAPES {
        let problem = Problem::new(rows, width, hidden);
        for kind in Kind::ALL {
            for way in &ways {
                let seconds = match way.as_str() {
                    "flex" => problem.by_flex(kind, cli.seconds),
                    "faer" => problem.by(Library::Faer, kind, cli.seconds),
                    "blas" if cfg!(feature = "blas") => {
                        problem.by(Library::Blas, kind, cli.seconds)
                    }
                    _ => return Err(format!("there is no way `{way}` in this build").into()),
                };
                // A Gram matrix counts as one triangle, even if a library computes both.
                let operations = match kind {
                    Kind::Gram => rows * hidden * hidden,
                    _ => 2 * rows * width * hidden,
                };
                let rate = |seconds: f64| operations as f64 / seconds / 1e9;
                let line = json!({
                    "shape": shape,
                    "product": kind.name(),
                    "way": way,
                    "best": rate(seconds[0]),
                    "median": rate(seconds[seconds.len() / 2]),
                });
                println!("{line}");
            }
        }
    }
    Ok(())
}

/// Operands of the products.
struct Problem {
    rows: usize,
    width: usize,
    hidden: usize,
    /// `[rows, width]`
    x: Vec<f32>,
    /// `[width, hidden]`
    w: Vec<f32>,
    /// `[rows, hidden]`
    g: Vec<f32>,
}

impl Problem {
    fn new(rows: usize, width: usize, hidden: usize) -> Self {
        let values = |count, seed| {
            let mut state: u32 = seed;
            let mut next = || {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 8) as f32 / (1 << 23) as f32 - 1.0
            };
            (0..count).map(|_| next()).collect::<Vec<f32>>()
        };
        Self {
            rows,
            width,
            hidden,
            x: values(rows * width, 1),
            w: values(width * hidden, 2),
            g: values(rows * hidden, 3),
        }
    }

    /// Returns the sorted seconds of a product by Burn's host backend.
    fn by_flex(&self, kind: Kind, limit: f64) -> Vec<f64> {
        let device = Device::flex();
        let tensor = |values: &[f32], shape: [usize; 2]| {
            Tensor::<2>::from_data(TensorData::new(values.to_vec(), shape), &device)
        };
        let x = tensor(&self.x, [self.rows, self.width]);
        let w = tensor(&self.w, [self.width, self.hidden]);
        let g = tensor(&self.g, [self.rows, self.hidden]);
        timed(limit, || match kind {
            Kind::Forward => x.clone().matmul(w.clone()),
            Kind::InputGradient => g.clone().matmul(w.clone().transpose()),
            Kind::WeightGradient => x.clone().transpose().matmul(g.clone()),
            Kind::Gram => g.clone().transpose().matmul(g.clone()),
        })
    }

    /// Returns the sorted seconds of a product by a library.
    fn by(&self, library: Library, kind: Kind, limit: f64) -> Vec<f64> {
        let Self {
            rows,
            width,
            hidden,
            ..
        } = *self;
        let x = MatRef::from_row_major_slice(&self.x, rows, width);
        let w = MatRef::from_row_major_slice(&self.w, width, hidden);
        let g = MatRef::from_row_major_slice(&self.g, rows, hidden);
        let threads = rayon::current_num_threads();
        let part = rows.div_ceil(threads);
        let chunk = part.div_ceil(part.div_ceil(CHUNK)).next_multiple_of(4);
        match kind {
            Kind::Forward | Kind::InputGradient => {
                let (a, b) = match kind {
                    Kind::Forward => (x, w),
                    _ => (g, w.transpose()),
                };
                let columns = b.ncols();
                let mut output = vec![0.0; rows * columns];
                timed(limit, || {
                    let parts = output.par_chunks_mut(part * columns).with_max_len(1);
                    parts.enumerate().for_each(|(i, output)| {
                        for (j, output) in output.chunks_mut(chunk * columns).enumerate() {
                            let count = output.len() / columns;
                            let a = a.subrows(i * part + j * chunk, count);
                            let output = MatMut::from_row_major_slice_mut(output, count, columns);
                            product_by(library, output, Accum::Replace, a, b, 1.0, Par::Seq);
                        }
                    });
                })
            }
            Kind::WeightGradient => {
                let mut sums = vec![vec![0.0; width * hidden]; threads];
                timed(limit, || {
                    let parts = sums.par_iter_mut().with_max_len(1).enumerate();
                    parts.for_each(|(i, sum)| {
                        let end = rows.min((i + 1) * part);
                        let mut accum = Accum::Replace;
                        for start in (i * part..end).step_by(chunk) {
                            let count = chunk.min(end - start);
                            let (a, b) = (x.subrows(start, count), g.subrows(start, count));
                            let sum = MatMut::from_row_major_slice_mut(sum, width, hidden);
                            product_by(library, sum, accum, a.transpose(), b, 1.0, Par::Seq);
                            accum = Accum::Add;
                        }
                    });
                })
            }
            Kind::Gram => {
                // With padded rows, as in the optimizer.
                let stride = hidden + 16;
                let mut spaced = vec![0.0; rows * stride];
                for (to, from) in spaced.chunks_mut(stride).zip(self.g.chunks(hidden)) {
                    to[..hidden].copy_from_slice(from);
                }
                let g = MatRef::from_row_major_slice(&spaced, rows, stride).subcols(0, hidden);
                let mut square = vec![0.0; hidden * hidden];
                timed(limit, || {
                    let output = MatMut::from_column_major_slice_mut(&mut square, hidden, hidden);
                    gram_lower_by(library, output, g, Par::rayon(0));
                })
            }
        }
    }
}

/// Measures the clock frequency of an x86-64 processor of the last fifteen years, on which an
/// integer multiplication takes three cycles and an exclusive or one.
fn clock_mhz() -> f64 {
    const LINKS: u32 = 20_000_000;
    let factor: u64 = std::hint::black_box(6_364_136_223_846_793_005);
    let seconds = timed(0.5, || {
        // A dependency chain: each operation waits for the one before it.
        let mut state = factor;
        for _ in 0..LINKS {
            state = state.wrapping_mul(factor) ^ 1;
        }
        state
    });
    4.0 * f64::from(LINKS) / seconds[0] / 1e6
}

/// Returns the sorted seconds of at least seven calls after the first one.
fn timed<T>(limit: f64, mut call: impl FnMut() -> T) -> Vec<f64> {
    call();
    let start = Instant::now();
    let mut seconds = Vec::new();
    while seconds.len() < 7 || start.elapsed().as_secs_f64() < limit {
        let start = Instant::now();
        std::hint::black_box(call());
        seconds.push(start.elapsed().as_secs_f64());
    }
    seconds.sort_by(f64::total_cmp);
    seconds
}
