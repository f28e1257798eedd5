//! Leak of the projection at both sites with three optimizers: the share of the weight's change
//! inside the protected directions after a hundred steps.
//!
//! The reference implementation projects the gradient before the optimizer's step; `Site::Update`
//! projects the update. The weight `[768, 64]` starts at zero and is trained with random gradients
//! at a learning rate of 1e-5. `k` random directions of the 768 are protected. The scales of the
//! gradient entries are either equal or log-normal, with a standard deviation of half a power of
//! ten, as in a network.
//!
//! The rows *OSF* are those of orthogonal subspace fine-tuning (PEFT
//! `src/peft/tuners/osf/utils.py`): of a weight `[768, 768]`, the `k` upper singular vectors are
//! frozen, and the factors of the rest train from its own decomposition, each with AdamW.
//!
//! ```text
//! cargo run --release -p gnsp-optimizer --example leak [PLOT.svg]
//! ```

use std::error::Error;
use std::sync::Arc;

use burn::optim::{AdamWConfig, LionConfig, Optimizer, SgdConfig};
use burn::tensor::{Device, Tensor, TensorData};
use faer::{Mat, MatRef};
use gnsp_optimizer::{
    Basis, GramAccumulator, GramNormalization, Layout, NullSpace, Projected, RankRule, Site,
};
use rand::Rng;
use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};

const FEATURES: usize = 768;
const COLUMNS: usize = 64;
const STEPS: u64 = 100;
const LEARNING_RATE: f64 = 1e-5;
const PROTECTED: [usize; 4] = [8, 32, 77, 154];

fn main() -> Result<(), Box<dyn Error>> {
    let mut rows = Vec::new();
    for (scales, spread) in [("spread", 0.5), ("equal", 0.0)] {
        for (name, site) in [("gradient", Site::Gradient), ("update", Site::Update)] {
            let of = |optimizer: &str, leaks: Vec<f64>| Row {
                label: format!("{optimizer}, {name} projected"),
                scales,
                leaks,
            };
            rows.push(of("SGD", leaks(SgdConfig::new().build(), site, spread)?));
            let adamw = AdamWConfig::new().with_epsilon(1e-8).with_weight_decay(0.0);
            rows.push(of("AdamW", leaks(adamw.build(), site, spread)?));
            rows.push(of("Lion", leaks(LionConfig::new().build(), site, spread)?));
        }
    }
    let plotted = rows.len();
    for (scales, spread) in [("spread", 0.5), ("equal", 0.0)] {
        for (name, site) in [("gradient", Site::Gradient), ("update", Site::Update)] {
            rows.push(Row {
                label: format!("OSF with AdamW, {name} projected"),
                scales,
                leaks: osf_leaks(site, spread)?,
            });
        }
    }
    println!(
        "share of the change inside k of {FEATURES} protected directions, after {STEPS} updates"
    );
    println!("| gradient scales | optimizer | k = 8 | 32 | 77 | 154 |");
    println!("|---|---|---|---|---|---|");
    for row in &rows {
        print!("| {} | {} |", row.scales, row.label);
        row.leaks
            .iter()
            .for_each(|leak| print!(" {} |", number(*leak)));
        println!();
    }
    print!("| – | (a random direction) |");
    PROTECTED
        .iter()
        .for_each(|k| print!(" {} |", number(random_share(*k))));
    println!();
    if let Some(path) = std::env::args().nth(1) {
        std::fs::write(path, plot(&rows[..plotted]))?;
    }
    Ok(())
}

/// Leaks of one optimizer at one site, for each `k`.
struct Row {
    label: String,
    /// Distribution of the gradient scales.
    scales: &'static str,
    leaks: Vec<f64>,
}

/// Formats a leak.
fn number(leak: f64) -> String {
    if leak < 1e-3 {
        return format!("{leak:.0e}");
    }
    format!("{leak:.2}")
}

/// Expected share of a random direction inside `k` of the features.
fn random_share(k: usize) -> f64 {
    (k as f64 / FEATURES as f64).sqrt()
}

/// Draws standard normal numbers (Box and Muller).
fn normal(shape: [usize; 2], rng: &mut ChaCha8Rng) -> Tensor<2> {
    let mut uniform = || rng.random_range(f64::EPSILON..1.0);
    let numbers: Vec<f32> = (0..shape[0] * shape[1])
        .map(|_| {
            let radius = (-2.0 * uniform().ln()).sqrt();
            (radius * (std::f64::consts::TAU * uniform()).cos()) as f32
        })
        .collect();
    Tensor::from_data(TensorData::new(numbers, shape), &Device::default())
}

/// Measures the leak of an optimizer for each `k`.
///
/// `spread` is the standard deviation of the gradient scales, in powers of ten.
fn leaks<O: Optimizer>(inner: O, site: Site, spread: f64) -> Result<Vec<f64>, Box<dyn Error>> {
    PROTECTED
        .iter()
        .map(|k| {
            let mut rng = ChaCha8Rng::seed_from_u64(*k as u64);
            let mut gram = GramAccumulator::new(FEATURES, GramNormalization::PerTask);
            gram.add(normal([*k, FEATURES], &mut rng))?;
            let gram = gram.finish()?;
            let space = Arc::new(NullSpace::from_gram(&gram, RankRule::FixedRank(*k))?);
            let optimizer = Projected::new(inner.clone(), Layout::InputsFirst, space.clone(), site);

            let shape = [FEATURES, COLUMNS];
            let scales = (normal(shape, &mut rng) * (spread * std::f64::consts::LN_10)).exp();
            let mut weight = Tensor::<2>::zeros(shape, &Device::default());
            let mut state = None;
            for _ in 0..STEPS {
                let gradient = normal(shape, &mut rng) * scales.clone();
                (weight, state) = optimizer.step(LEARNING_RATE, weight, gradient, state);
            }
            let change: f32 = weight.clone().square().sum().sqrt().into_scalar();
            Ok(f64::from(space.residual_in_protected(weight) / change))
        })
        .collect()
}

/// Measures the leak of OSF for each `k`: the share of the weight's change in the `k` upper left
/// singular vectors.
fn osf_leaks(site: Site, spread: f64) -> Result<Vec<f64>, Box<dyn Error>> {
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let square = [FEATURES, FEATURES];
    let weight = values(normal(square, &mut rng) / (FEATURES as f64).sqrt());
    let weight = Mat::from_fn(FEATURES, FEATURES, |i, j| {
        f64::from(weight[i * FEATURES + j])
    });
    let svd = weight.thin_svd().map_err(|_| "no decomposition")?;
    let tensor = |rows: usize, columns: usize, value: &dyn Fn(usize, usize) -> f64| {
        let numbers = (0..rows * columns).map(|i| value(i / columns, i % columns) as f32);
        let data = TensorData::new(numbers.collect::<Vec<f32>>(), [rows, columns]);
        Tensor::<2>::from_data(data, &Device::default())
    };
    let leak = |k: usize| -> Result<f64, Box<dyn Error>> {
        let mut rng = ChaCha8Rng::seed_from_u64(k as u64);
        let rest = FEATURES - k;
        let upper = |vectors: MatRef<'_, f64>| {
            let rows = values(tensor(k, FEATURES, &|i, j| vectors[(j, i)]));
            Basis::from_rows(FEATURES, rows).map(|basis| Arc::new(basis.null_space()))
        };
        let (left, right) = (upper(svd.U())?, upper(svd.V())?);
        let adamw = AdamWConfig::new().with_epsilon(1e-8).with_weight_decay(0.0);
        let projected = |layout, space: &Arc<NullSpace>| {
            Projected::new(adamw.build(), layout, space.clone(), site)
        };
        let of_u = projected(Layout::InputsFirst, &left);
        let of_v = projected(Layout::InputsLast { groups: 1 }, &right);
        let of_s = adamw.build();

        let start = [
            tensor(FEATURES, rest, &|i, j| svd.U()[(i, k + j)]),
            tensor(1, rest, &|_, j| svd.S().column_vector()[k + j]),
            tensor(rest, FEATURES, &|i, j| svd.V()[(j, k + i)]),
        ];
        let [mut u, mut s, mut v] = start.clone();
        let (mut u_state, mut s_state, mut v_state) = (None, None, None);
        let scales = (normal(square, &mut rng) * (spread * std::f64::consts::LN_10)).exp();
        for _ in 0..STEPS {
            let gradient = normal(square, &mut rng) * scales.clone();
            let right = gradient.clone().matmul(v.clone().transpose());
            let left = u.clone().transpose().matmul(gradient);
            let of_each = [
                right.clone() * s.clone(),
                (right * u.clone()).sum_dim(0),
                left * s.clone().transpose(),
            ];
            let [du, ds, dv] = of_each;
            (u, u_state) = of_u.step(LEARNING_RATE, u, du, u_state);
            (s, s_state) = of_s.step(LEARNING_RATE, s, ds, s_state);
            (v, v_state) = of_v.step(LEARNING_RATE, v, dv, v_state);
        }
        // The change as a sum of products, because a difference of weights would be rounding.
        let [u0, s0, v0] = start;
        let change = ((u.clone() - u0.clone()) * s.clone()).matmul(v.clone())
            + (u0.clone() * (s - s0.clone())).matmul(v.clone())
            + (u0 * s0).matmul(v - v0);
        let size: f32 = change.clone().square().sum().sqrt().into_scalar();
        Ok(f64::from(left.residual_in_protected(change) / size))
    };
    PROTECTED.iter().map(|k| leak(*k)).collect()
}

fn values(tensor: Tensor<2>) -> Vec<f32> {
    tensor.into_data().iter::<f32>().collect()
}

/// Plots the leak over `k` on a logarithmic axis, as SVG.
fn plot(rows: &[Row]) -> String {
    const COLOURS: [&str; 3] = ["#1f77b4", "#d62728", "#2ca02c"];
    const LOWEST: f64 = -9.0;
    let x = |k: f64| 70.0 + k * 2.7;
    let y = |leak: f64| 40.0 + 300.0 * leak.max(1e-9).log10() / LOWEST;
    let mut marks = String::new();
    for power in (LOWEST as i32..=0).step_by(3) {
        let at = y(10f64.powi(power));
        marks += &format!(
            concat!(
                r##"<line x1="70" x2="500" y1="{at}" y2="{at}" stroke="#ddd"/>"##,
                r#"<text x="62" y="{baseline}" text-anchor="end">10"#,
                r#"<tspan dy="-5" font-size="9">{power}</tspan></text>"#,
            ),
            at = at,
            baseline = at + 4.0,
            power = power,
        );
    }
    for k in PROTECTED {
        let at = x(k as f64);
        marks += &format!(r#"<text x="{at}" y="360" text-anchor="middle">{k}</text>"#);
    }
    let line = |points: &[(f64, f64)], style: &str| {
        let points: Vec<String> = points
            .iter()
            .map(|(x, y)| format!("{x:.1},{y:.1}"))
            .collect();
        format!(
            r#"<polyline points="{}" fill="none" {style}/>"#,
            points.join(" ")
        )
    };
    let key = |i: usize, mark: String, label: &str| {
        let at = 60 + 22 * i;
        format!(r#"<g transform="translate(520 {at})">{mark}<text x="20" y="4">{label}</text></g>"#)
    };
    let random: Vec<(f64, f64)> = (1..=160)
        .map(|k| (x(f64::from(k)), y(random_share(k as usize))))
        .collect();
    let dashes = r##"stroke="#888" stroke-dasharray="4 4""##;
    marks += &line(&random, dashes);
    marks += &key(
        6,
        line(&[(0.0, 0.0), (14.0, 0.0)], dashes),
        "a random direction",
    );
    for (i, row) in rows.iter().filter(|row| row.scales == "spread").enumerate() {
        let colour = COLOURS[i % 3];
        // Filled markers for the gradient site, hollow ones for the update site.
        let fill = if i < 3 { colour } else { "white" };
        let point = |x: f64, y: f64| {
            format!(
                concat!(
                    r#"<circle cx="{x:.1}" cy="{y:.1}" r="4" fill="{fill}" "#,
                    r#"stroke="{colour}" stroke-width="2"/>"#,
                ),
                x = x,
                y = y,
                fill = fill,
                colour = colour,
            )
        };
        let points: Vec<(f64, f64)> = PROTECTED
            .iter()
            .zip(&row.leaks)
            .map(|(k, leak)| (x(*k as f64), y(*leak)))
            .collect();
        marks += &line(&points, &format!(r#"stroke="{colour}" stroke-width="2""#));
        points.iter().for_each(|(x, y)| marks += &point(*x, *y));
        marks += &key(i, point(7.0, 0.0), &row.label);
    }
    format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 720 400" {font}>
<rect width="720" height="400" fill="white"/>
<text x="70" y="22" font-size="15">Share of 100 updates inside the protected directions</text>
<text x="285" y="384" text-anchor="middle">protected directions k, of {FEATURES}</text>
{marks}</svg>
"##,
        font = r#"font-family="sans-serif" font-size="12""#,
    )
}
