//! Reference formulas in double precision, and checks of gradients against finite differences.

use super::{
    LayerNormParams, LinearParams,
    activation::ActivationFunction,
    attention::{AttentionShape, Queries},
    mlp::MlpShape,
};

/// Returns pseudo-random numbers in `(-size, size)`.
pub(super) fn numbers(count: usize, seed: u64, size: f32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..count)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            ((state >> 40) as f32 / (1u64 << 23) as f32 - 1.0) * size
        })
        .collect()
}

pub(super) fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|x| f64::from(*x)).collect()
}

/// Computes the error function by its Taylor series, or, for large arguments, by a continued
/// fraction of its complement.
fn erf(x: f64) -> f64 {
    if x.abs() < 3.0 {
        let (mut term, mut sum) = (x, x);
        let mut n = 0.0;
        while term.abs() > 1e-18 {
            n += 1.0;
            term *= -x * x / n;
            sum += term / (2.0 * n + 1.0);
        }
        return sum * std::f64::consts::FRAC_2_SQRT_PI;
    }
    let mut fraction = 0.0;
    for n in (1..60).rev() {
        fraction = f64::from(n) / 2.0 / (x.abs() + fraction);
    }
    let tail = (-x * x).exp() / (x.abs() + fraction) * std::f64::consts::FRAC_2_SQRT_PI / 2.0;
    x.signum() * (1.0 - tail)
}

fn value(kind: ActivationFunction, x: f64) -> f64 {
    match kind {
        ActivationFunction::QuickGelu => x / (1.0 + (-1.702 * x).exp()),
        ActivationFunction::GeluTanh => {
            let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
            0.5 * x * (1.0 + u.tanh())
        }
        ActivationFunction::Gelu => 0.5 * x * (1.0 + erf(x / std::f64::consts::SQRT_2)),
    }
}

/// Returns the value, and the derivative by a five-point stencil.
pub(super) fn activation(kind: ActivationFunction, x: f64) -> (f64, f64) {
    let value = |x| value(kind, x);
    let h = 1e-4;
    let derivative = (8.0 * (value(x + h) - value(x - h)) - value(x + 2.0 * h)
        + value(x - 2.0 * h))
        / (12.0 * h);
    (value(x), derivative)
}

pub(super) fn layer_norm(x: &[f64], gamma: &[f64], beta: &[f64], epsilon: f64) -> Vec<f64> {
    let width = gamma.len();
    let mut y = Vec::new();
    for row in x.chunks(width) {
        let mean = row.iter().sum::<f64>() / width as f64;
        let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / width as f64;
        for i in 0..width {
            y.push((row[i] - mean) / (variance + epsilon).sqrt() * gamma[i] + beta[i]);
        }
    }
    y
}

fn linear(x: &[f64], weight: &[f64], bias: &[f64], outputs: usize) -> Vec<f64> {
    let inputs = weight.len() / outputs;
    let mut y = Vec::new();
    for row in x.chunks(inputs) {
        for j in 0..outputs {
            let sum: f64 = (0..inputs).map(|i| row[i] * weight[i * outputs + j]).sum();
            y.push(sum + bias.get(j).copied().unwrap_or(0.0));
        }
    }
    y
}

/// Input and parameters of a branch: x, γ, β, W₁, b₁, W₂, b₂. Absent biases are empty.
pub(super) type Inputs<T> = [Vec<T>; 7];

/// Returns random inputs of a branch over `rows` rows. `inner` is the output width of the first
/// linear layer, and the input width of the second.
pub(super) fn inputs(
    rows: usize,
    width: usize,
    inner: [usize; 2],
    bias: bool,
    seed: u64,
) -> Inputs<f32> {
    let len = |bias: bool, count: usize| if bias { count } else { 0 };
    let mut gamma = numbers(width, seed + 2, 0.5);
    gamma.iter_mut().for_each(|x| *x += 1.0);
    [
        numbers(rows * width, seed + 1, 2.0),
        gamma,
        numbers(width, seed + 3, 0.5),
        numbers(width * inner[0], seed + 4, 1.0),
        numbers(len(bias, inner[0]), seed + 5, 0.5),
        numbers(inner[1] * width, seed + 6, 1.0),
        numbers(len(bias, width), seed + 7, 0.5),
    ]
}

pub(super) const EPSILON: f32 = 1e-3;

pub(super) fn norm(inputs: &Inputs<f32>) -> LayerNormParams<'_> {
    LayerNormParams {
        gamma: &inputs[1],
        beta: &inputs[2],
        epsilon: EPSILON,
    }
}

/// Returns the first linear layer for `index` 0, the second for 1.
pub(super) fn linear_params(inputs: &Inputs<f32>, index: usize) -> LinearParams<'_> {
    let (weight, bias) = (&inputs[3 + 2 * index], &inputs[4 + 2 * index]);
    LinearParams {
        weight,
        bias: (!bias.is_empty()).then_some(bias),
    }
}

pub(super) fn mlp(kind: ActivationFunction, shape: MlpShape, inputs: &Inputs<f64>) -> Vec<f64> {
    let [x, gamma, beta, w1, b1, w2, b2] = inputs;
    let mut inner = linear(
        &layer_norm(x, gamma, beta, f64::from(EPSILON)),
        w1,
        b1,
        shape.hidden,
    );
    inner.iter_mut().for_each(|x| *x = value(kind, *x));
    let branch = linear(&inner, w2, b2, shape.width);
    x.iter().zip(branch).map(|(x, y)| x + y).collect()
}

pub(super) fn attention(
    shape: AttentionShape,
    queries: Queries<'_>,
    inputs: &Inputs<f64>,
) -> Vec<f64> {
    let AttentionShape {
        batch,
        tokens,
        width,
        heads,
        causal,
    } = shape;
    let [x, gamma, beta, w1, b1, w2, b2] = inputs;
    let qkv = linear(
        &layer_norm(x, gamma, beta, f64::from(EPSILON)),
        w1,
        b1,
        3 * width,
    );
    let size = width / heads;
    let mut y = Vec::new();
    for item in 0..batch {
        let positions = match queries {
            Queries::All | Queries::Tree(_) => (0..tokens).collect(),
            Queries::At(positions) => vec![positions[item]],
        };
        for position in positions {
            let at = |token: usize, part: usize, i: usize| {
                qkv[((item * tokens + token) * 3 + part) * width + i]
            };
            let mut attended: Vec<usize> =
                (0..if causal { position + 1 } else { tokens }).collect();
            if let Queries::Tree(parents) = queries {
                attended = vec![position];
                while parents[item * tokens + attended[attended.len() - 1]]
                    != attended[attended.len() - 1]
                {
                    attended.push(parents[item * tokens + attended[attended.len() - 1]]);
                }
            }
            let mut context = vec![0.0; width];
            for head in 0..heads {
                let columns = head * size..(head + 1) * size;
                let scores: Vec<f64> = attended
                    .iter()
                    .map(|t| {
                        let dot: f64 = columns
                            .clone()
                            .map(|i| at(position, 0, i) * at(*t, 1, i))
                            .sum();
                        dot / (size as f64).sqrt()
                    })
                    .collect();
                let largest = scores.iter().copied().fold(f64::MIN, f64::max);
                let total: f64 = scores.iter().map(|s| (s - largest).exp()).sum();
                for i in columns {
                    context[i] = scores
                        .iter()
                        .zip(&attended)
                        .map(|(score, t)| (score - largest).exp() / total * at(*t, 2, i))
                        .sum();
                }
            }
            let row = &x[(item * tokens + position) * width..][..width];
            let branch = linear(&context, w2, b2, width);
            y.extend(row.iter().zip(branch).map(|(x, y)| x + y));
        }
    }
    y
}

/// Asserts that `ours` equals `want` within `tolerance` of its largest entry.
#[track_caller]
pub(super) fn assert_close(ours: &[f32], want: &[f64], tolerance: f64, what: &str) {
    assert_eq!(ours.len(), want.len(), "{what}");
    let largest = want.iter().fold(1e-3, |m: f64, x| m.max(x.abs()));
    for (i, (ours, want)) in ours.iter().zip(want).enumerate() {
        let error = (f64::from(*ours) - want).abs() / largest;
        assert!(
            error < tolerance,
            "{what}[{i}]: {ours} instead of {want}, off by {error:e}"
        );
    }
}

/// Asserts that gradients equal the finite differences of `f` weighted by `dy`, at up to 12 entries
/// of each input.
#[track_caller]
pub(super) fn assert_gradients(
    f: impl Fn(&Inputs<f64>) -> Vec<f64>,
    at: &Inputs<f32>,
    dy: &[f32],
    gradients: [&Option<Vec<f32>>; 7],
    what: &str,
) {
    let at: Inputs<f64> = std::array::from_fn(|i| wide(&at[i]));
    let loss = |inputs: &Inputs<f64>| -> f64 {
        f(inputs)
            .iter()
            .zip(dy)
            .map(|(y, g)| y * f64::from(*g))
            .sum()
    };
    for input in 0..7 {
        let count = at[input].len();
        let Some(gradient) = gradients[input] else {
            panic!("{what}: gradient {input} is missing");
        };
        if count == 0 {
            continue;
        }
        assert_eq!(gradient.len(), count, "{what}: gradient {input}");
        let largest = gradient
            .iter()
            .fold(1e-2, |m: f64, x| m.max(f64::from(x.abs())));
        for entry in (0..count).step_by(count.div_ceil(12)).chain([count - 1]) {
            let mut moved = at.clone();
            let h = 1e-4;
            let mut shift = |h: f64| {
                moved[input][entry] = at[input][entry] + h;
                loss(&moved)
            };
            let want =
                (8.0 * (shift(h) - shift(-h)) - shift(2.0 * h) + shift(-2.0 * h)) / (12.0 * h);
            let error = (f64::from(gradient[entry]) - want).abs() / largest;
            let ours = gradient[entry];
            assert!(
                error < 2e-5,
                "{what}: gradient {input}[{entry}]: {ours} instead of {want}, off by {error:e}"
            );
        }
    }
}
