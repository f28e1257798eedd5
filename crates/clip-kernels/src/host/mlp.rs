//! The MLP branch of a pre-norm block: `y = x + W₂·act(W₁·LN(x) + b₁) + b₂`, and its gradients.
//!
//! A chunk of rows goes through the whole branch while it is in the cache. What the backward pass
//! needs of the forward pass is the input of the activation; the layer norm and the activation are
//! computed again, which costs less than fetching them.

use faer::{Accum, MatRef, Par};

use super::{
    LayerNormParams, LinearParams,
    activation::Activation,
    buffers::{Rows, Scratch, copy, zeros},
    layer_norm::{ParamsGradient, row, row_backward, row_moments},
    parts::{self, Parts},
    product::{affine, chunks, largest_chunk, matrix, matrix_mut, on, product},
    simd::{AddTo, dispatch},
};

/// The sizes of an MLP branch over `rows` rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MlpShape {
    /// Items times tokens.
    pub rows: usize,
    /// The width of the residual stream.
    pub width: usize,
    /// The width between the two products.
    pub hidden: usize,
}

/// The parameters of an MLP branch.
#[derive(Clone, Copy, Debug)]
pub struct MlpParams<'a> {
    /// The layer norm before the first product.
    pub norm: LayerNormParams<'a>,
    /// The first product, `[width, hidden]`.
    pub fc: LinearParams<'a>,
    /// Between the products.
    pub activation: Activation,
    /// The second product, `[hidden, width]`.
    pub proj: LinearParams<'a>,
}

/// What the forward pass keeps for the backward pass.
#[derive(Clone, Debug, PartialEq)]
pub struct MlpActivations {
    /// The input of the activation, `[rows, hidden]`.
    pub hidden: Vec<f32>,
}

/// The gradients that are wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MlpWanted {
    /// Of the input of the branch.
    pub input: bool,
    /// Of both parameters of the layer norm.
    pub norm: bool,
    /// Of the weight of the first product.
    pub fc_weight: bool,
    /// Of the bias of the first product.
    pub fc_bias: bool,
    /// Of the weight of the second product.
    pub proj_weight: bool,
    /// Of the bias of the second product.
    pub proj_bias: bool,
}

/// The gradients that were wanted, each in the shape of what it belongs to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MlpGradients {
    /// `[rows, width]`
    pub input: Option<Vec<f32>>,
    /// `[width]`
    pub gamma: Option<Vec<f32>>,
    /// `[width]`
    pub beta: Option<Vec<f32>>,
    /// `[width, hidden]`
    pub fc_weight: Option<Vec<f32>>,
    /// `[hidden]`
    pub fc_bias: Option<Vec<f32>>,
    /// `[hidden, width]`
    pub proj_weight: Option<Vec<f32>>,
    /// `[width]`
    pub proj_bias: Option<Vec<f32>>,
}

impl MlpWanted {
    /// Whether the gradient goes back beyond the activation.
    fn beyond_activation(&self) -> bool {
        self.fc_weight || self.fc_bias || self.beyond_fc()
    }

    /// Whether the gradient goes back beyond the first product.
    fn beyond_fc(&self) -> bool {
        self.input || self.norm
    }
}

/// Gradients of parameters, summed over rows.
struct Sums {
    norm: ParamsGradient,
    fc_weight: Vec<f32>,
    fc_bias: Vec<f32>,
    proj_weight: Vec<f32>,
    proj_bias: Vec<f32>,
}

/// The output of an MLP branch, and the inputs of its two products.
#[derive(Clone, Debug, PartialEq)]
pub struct MlpObserved {
    /// `[rows, width]`, or only the rows that are read.
    pub y: Vec<f32>,
    /// What the layer norm makes of `x`, `[rows, width]`.
    pub normal: Vec<f32>,
    /// After the activation, `[rows, hidden]`.
    pub inner: Vec<f32>,
}

/// The branch on `x`, `[rows, width]`; the activations too with `keep`.
///
/// # Panics
/// When a length does not fit the shape.
pub fn mlp_branch(
    x: &[f32],
    params: &MlpParams<'_>,
    shape: MlpShape,
    keep: bool,
) -> (Vec<f32>, Option<MlpActivations>) {
    let give = Give {
        before: keep,
        y: true,
        ..Give::default()
    };
    let given = forward(x, params, shape, give);
    let hidden = given.before;
    (given.y, keep.then_some(MlpActivations { hidden }))
}

/// The branch on `x`, `[rows, width]`, with what its products see. Of the output only the rows
/// `read`, if that is given; the products see them all.
///
/// # Panics
/// When a length does not fit the shape, or a row that is read is not there.
pub fn mlp_branch_observed(
    x: &[f32],
    params: &MlpParams<'_>,
    shape: MlpShape,
    read: Option<&[usize]>,
) -> MlpObserved {
    let give = Give {
        normal: true,
        inner: true,
        y: read.is_none(),
        ..Give::default()
    };
    let Given {
        mut y,
        normal,
        inner,
        ..
    } = forward(x, params, shape, give);
    if let Some(read) = read {
        let MlpShape { width, hidden, .. } = shape;
        y = vec![0.0; read.len() * width];
        let mut some = Rows::new(read.len(), hidden);
        for (i, (row, y)) in read.iter().zip(y.chunks_exact_mut(width)).enumerate() {
            some.row_mut(i)
                .copy_from_slice(&inner[row * hidden..][..hidden]);
            y.copy_from_slice(&x[row * width..][..width]);
        }
        let par = on(parts::threads());
        params.add_second(&mut y, some.first(read.len()), shape, par);
    }
    MlpObserved { y, normal, inner }
}

/// Which values the forward pass gives.
#[derive(Clone, Copy, Default)]
struct Give {
    before: bool,
    normal: bool,
    inner: bool,
    y: bool,
}

/// Those that were wanted; the others are empty.
struct Given {
    /// The input of the activation, `[rows, hidden]`.
    before: Vec<f32>,
    /// The input of the first product, `[rows, width]`.
    normal: Vec<f32>,
    /// The input of the second product, `[rows, hidden]`.
    inner: Vec<f32>,
    /// The output, `[rows, width]`.
    y: Vec<f32>,
}

fn forward(x: &[f32], params: &MlpParams<'_>, shape: MlpShape, give: Give) -> Given {
    params.check(x, shape);
    let MlpShape {
        rows,
        width,
        hidden,
    } = shape;
    let (w1, _) = params.weights(shape);
    let wide = |wanted: bool, width: usize| if wanted { width } else { 0 };
    let [before_width, inner_width] = [give.before, give.inner].map(|wanted| wide(wanted, hidden));
    let [normal_width, y_width] = [give.normal, give.y].map(|wanted| wide(wanted, width));
    let mut given = Given {
        before: zeros(rows * before_width),
        normal: zeros(rows * normal_width),
        inner: zeros(rows * inner_width),
        y: zeros(rows * y_width),
    };
    let parts = Parts::of_rows(rows, false);
    let tasks = parts
        .ranges
        .iter()
        .zip(parts.split(&mut given.before, before_width))
        .zip(parts.split(&mut given.normal, normal_width))
        .zip(parts.split(&mut given.inner, inner_width))
        .zip(parts.split(&mut given.y, y_width))
        .collect();
    parts::run(tasks, |((((range, kept), normals), inners), y)| {
        let par = on(parts.threads);
        let size = largest_chunk(range.len());
        let mut normal = Rows::new(size, width);
        let mut inner = Rows::new(size, hidden);
        let mut outer = Scratch::new(wide(!give.before, size * hidden));
        for chunk in chunks(range.len()) {
            let count = chunk.len();
            let x = &x[(range.start + chunk.start) * width..][..count * width];
            let before = if give.before {
                &mut kept[chunk.start * hidden..chunk.end * hidden]
            } else {
                &mut outer[..count * hidden]
            };
            for (i, x) in x.chunks_exact(width).enumerate() {
                row(params.norm, x, normal.row_mut(i));
            }
            affine(before, normal.first(count), w1, params.fc.bias, par);
            for (i, before) in before.chunks_exact(hidden).enumerate() {
                params.activation.forward(before, inner.row_mut(i));
            }
            let shown = &mut normals[chunk.start * normal_width..chunk.end * normal_width];
            for (i, shown) in shown.chunks_exact_mut(width).enumerate() {
                shown.copy_from_slice(normal.row(i));
            }
            let shown = &mut inners[chunk.start * inner_width..chunk.end * inner_width];
            for (i, shown) in shown.chunks_exact_mut(hidden).enumerate() {
                shown.copy_from_slice(inner.row(i));
            }
            if give.y {
                let y = &mut y[chunk.start * width..chunk.end * width];
                y.copy_from_slice(x);
                params.add_second(y, inner.first(count), shape, par);
            }
        }
    });
    given
}

/// The gradients at `x`, given the gradient `dy` of the output of [`mlp_branch`]. Without `kept`
/// the activations are computed again; the result is the same.
///
/// # Panics
/// When a length does not fit the shape.
pub fn mlp_branch_backward(
    x: &[f32],
    params: &MlpParams<'_>,
    shape: MlpShape,
    kept: Option<&MlpActivations>,
    dy: &[f32],
    wanted: MlpWanted,
) -> MlpGradients {
    params.check(x, shape);
    assert_eq!(x.len(), dy.len());
    let MlpShape {
        rows,
        width,
        hidden,
    } = shape;
    assert!(kept.is_none_or(|kept| kept.hidden.len() == rows * hidden));
    let mut dx = if wanted.input { copy(dy) } else { Vec::new() };
    let sums =
        wanted.norm || wanted.fc_weight || wanted.fc_bias || wanted.proj_weight || wanted.proj_bias;
    let parts = Parts::of_rows(rows, sums);
    let tasks = parts
        .ranges
        .iter()
        .zip(parts.split(&mut dx, if wanted.input { width } else { 0 }))
        .collect();
    let sums = parts::run(tasks, |(range, dx)| {
        let (from, to) = (range.start * width, range.end * width);
        let part = Part {
            x: &x[from..to],
            dy: &dy[from..to],
            kept: kept.map(|kept| &kept.hidden[range.start * hidden..range.end * hidden]),
            params,
            shape: MlpShape {
                rows: range.len(),
                ..shape
            },
            wanted,
            par: on(parts.threads),
        };
        part.backward(dx)
    });
    let mut gradients = MlpGradients {
        input: wanted.input.then_some(dx),
        ..MlpGradients::default()
    };
    let (mut gamma, mut beta) = (Vec::new(), Vec::new());
    let (mut fc_weight, mut fc_bias) = (Vec::new(), Vec::new());
    let (mut proj_weight, mut proj_bias) = (Vec::new(), Vec::new());
    for sums in sums {
        gamma.push(sums.norm.gamma);
        beta.push(sums.norm.beta);
        fc_weight.push(sums.fc_weight);
        fc_bias.push(sums.fc_bias);
        proj_weight.push(sums.proj_weight);
        proj_bias.push(sums.proj_bias);
    }
    let total = |wanted: bool, parts| if wanted { parts::total(parts) } else { None };
    gradients.gamma = total(wanted.norm, gamma);
    gradients.beta = total(wanted.norm, beta);
    gradients.fc_weight = total(wanted.fc_weight, fc_weight);
    gradients.fc_bias = total(wanted.fc_bias, fc_bias);
    gradients.proj_weight = total(wanted.proj_weight, proj_weight);
    gradients.proj_bias = total(wanted.proj_bias, proj_bias);
    gradients
}

/// A part of the rows on its way back.
struct Part<'a> {
    x: &'a [f32],
    dy: &'a [f32],
    kept: Option<&'a [f32]>,
    params: &'a MlpParams<'a>,
    shape: MlpShape,
    wanted: MlpWanted,
    par: Par,
}

impl Part<'_> {
    /// Adds to `dx`, and sums what belongs to the parameters.
    fn backward(&self, dx: &mut [f32]) -> Sums {
        let Self {
            x,
            dy,
            kept,
            params,
            shape,
            wanted,
            par,
        } = *self;
        let MlpShape {
            rows,
            width,
            hidden,
        } = shape;
        let (w1, w2) = params.weights(shape);
        let size = largest_chunk(rows);
        let sum = |wanted: bool, len| vec![0.0f32; if wanted { len } else { 0 }];
        let mut sums = Sums {
            norm: ParamsGradient::new(width),
            fc_weight: sum(wanted.fc_weight, width * hidden),
            fc_bias: sum(wanted.fc_bias, hidden),
            proj_weight: sum(wanted.proj_weight, hidden * width),
            proj_bias: sum(wanted.proj_bias, width),
        };
        let needs_before = wanted.proj_weight || wanted.beyond_activation();
        let again = kept.is_none() && needs_before;
        let mut outer = Scratch::new(if again { size * hidden } else { 0 });
        let mut normal = Rows::new(size, width);
        let mut after = Rows::new(size, hidden);
        let mut slope = Rows::new(size, hidden);
        for chunk in chunks(rows) {
            let count = chunk.len();
            let range = chunk.start * width..chunk.end * width;
            let (x, dy) = (&x[range.clone()], &dy[range.clone()]);
            if wanted.proj_bias {
                add_rows(&mut sums.proj_bias, dy);
            }
            if !needs_before {
                continue;
            }
            if kept.is_none() || wanted.fc_weight {
                for (i, x) in x.chunks_exact(width).enumerate() {
                    row(params.norm, x, normal.row_mut(i));
                }
            }
            let before = match kept {
                Some(kept) => &kept[chunk.start * hidden..chunk.end * hidden],
                None => {
                    let before = &mut outer[..count * hidden];
                    affine(before, normal.first(count), w1, params.fc.bias, par);
                    &*before
                }
            };
            let dy = matrix(dy, count, width);
            if wanted.beyond_activation() {
                let (to, back) = (slope.first_mut(count), w2.transpose());
                product(to, Accum::Replace, dy, back, 1.0, par);
                for (i, before) in before.chunks_exact(hidden).enumerate() {
                    let (after, slope) = (after.row_mut(i), slope.row_mut(i));
                    params.activation.backward(before, after, slope);
                    if wanted.fc_bias {
                        add_rows(&mut sums.fc_bias, slope);
                    }
                }
            } else {
                for (i, before) in before.chunks_exact(hidden).enumerate() {
                    params.activation.forward(before, after.row_mut(i));
                }
            }
            if wanted.proj_weight {
                let sum = matrix_mut(&mut sums.proj_weight, hidden, width);
                product(
                    sum,
                    Accum::Add,
                    after.first(count).transpose(),
                    dy,
                    1.0,
                    par,
                );
            }
            if wanted.fc_weight {
                let sum = matrix_mut(&mut sums.fc_weight, width, hidden);
                let (normal, slope) = (normal.first(count), slope.first(count));
                product(sum, Accum::Add, normal.transpose(), slope, 1.0, par);
            }
            if wanted.beyond_fc() {
                let dx = match wanted.input {
                    true => &mut dx[range],
                    false => &mut [],
                };
                self.to_input(x, slope.first(count), &mut normal, dx, &mut sums.norm);
            }
        }
        sums
    }

    /// From the gradient of the first map's output, `slope`, to that of the rows `x`.
    fn to_input(
        &self,
        x: &[f32],
        slope: MatRef<'_, f32>,
        normal: &mut Rows,
        dx: &mut [f32],
        sums: &mut ParamsGradient,
    ) {
        let (params, wanted, width) = (self.params, self.wanted, self.shape.width);
        let (w1, _) = params.weights(self.shape);
        product(
            normal.first_mut(slope.nrows()),
            Accum::Replace,
            slope,
            w1.transpose(),
            1.0,
            self.par,
        );
        for (i, x) in x.chunks_exact(width).enumerate() {
            let moments = row_moments(params.norm, x);
            if wanted.input {
                let dx = &mut dx[i * width..][..width];
                row_backward(params.norm.gamma, moments, x, normal.row(i), dx);
            }
            if wanted.norm {
                sums.add(moments, x, normal.row(i));
            }
        }
    }
}

/// Adds rows of the length of `total` to it.
fn add_rows(total: &mut [f32], rows: &[f32]) {
    for row in rows.chunks_exact(total.len()) {
        dispatch(AddTo { total, row });
    }
}

impl<'a> MlpParams<'a> {
    fn weights(&self, shape: MlpShape) -> (MatRef<'a, f32>, MatRef<'a, f32>) {
        let MlpShape { width, hidden, .. } = shape;
        (
            matrix(self.fc.weight, width, hidden),
            matrix(self.proj.weight, hidden, width),
        )
    }

    /// Adds the second map of `inner`, `[rows, hidden]`, to `y`, `[rows, width]`.
    fn add_second(&self, y: &mut [f32], inner: MatRef<'_, f32>, shape: MlpShape, par: Par) {
        let (rows, width) = (inner.nrows(), shape.width);
        if let Some(bias) = self.proj.bias {
            for row in y.chunks_exact_mut(width) {
                dispatch(AddTo {
                    total: row,
                    row: bias,
                });
            }
        }
        let (_, w2) = self.weights(shape);
        product(matrix_mut(y, rows, width), Accum::Add, inner, w2, 1.0, par);
    }

    fn check(&self, x: &[f32], shape: MlpShape) {
        let MlpShape {
            rows,
            width,
            hidden,
        } = shape;
        assert!(width > 0 && hidden > 0, "no width may be zero");
        assert_eq!(x.len(), rows * width);
        assert_eq!(self.norm.gamma.len(), width);
        assert_eq!(self.norm.beta.len(), width);
        assert_eq!(self.fc.weight.len(), width * hidden);
        assert_eq!(self.proj.weight.len(), hidden * width);
        assert!(self.fc.bias.is_none_or(|bias| bias.len() == hidden));
        assert!(self.proj.bias.is_none_or(|bias| bias.len() == width));
    }
}

#[cfg(test)]
mod tests {
    use super::super::reference::{
        self, Inputs, assert_close, assert_gradients, inputs, numbers, wide,
    };
    use super::*;

    const ALL: MlpWanted = MlpWanted {
        input: true,
        norm: true,
        fc_weight: true,
        fc_bias: true,
        proj_weight: true,
        proj_bias: true,
    };

    fn params(of: &Inputs<f32>, activation: Activation) -> MlpParams<'_> {
        let (fc, proj) = (reference::product(of, 0), reference::product(of, 1));
        MlpParams {
            norm: reference::norm(of),
            fc,
            activation,
            proj,
        }
    }

    fn list(g: &MlpGradients) -> [&Option<Vec<f32>>; 7] {
        [
            &g.input,
            &g.gamma,
            &g.beta,
            &g.fc_weight,
            &g.fc_bias,
            &g.proj_weight,
            &g.proj_bias,
        ]
    }

    fn check(shape: MlpShape, activation: Activation, bias: bool) {
        let what = format!("{shape:?} {activation:?} bias {bias}");
        let MlpShape {
            rows,
            width,
            hidden,
        } = shape;
        let of = inputs(rows, width, [hidden, hidden], bias, rows as u64);
        let params = params(&of, activation);
        let dy = numbers(rows * width, 99, 1.0);
        let (y, kept) = mlp_branch(&of[0], &params, shape, true);
        let formula = |of: &Inputs<f64>| reference::mlp(activation, shape, of);
        assert_close(
            &y,
            &formula(&std::array::from_fn(|i| wide(&of[i]))),
            3e-6,
            &what,
        );
        let (bare, nothing) = mlp_branch(&of[0], &params, shape, false);
        assert!(bare == y && nothing.is_none(), "{what}");
        let seen = mlp_branch_observed(&of[0], &params, shape, None);
        assert!(seen.y == y, "{what}");
        assert_observed(&seen, &params, &kept.as_ref().unwrap().hidden, shape, &what);
        let read: Vec<usize> = (0..rows).step_by(3).collect();
        let some = mlp_branch_observed(&of[0], &params, shape, Some(&read));
        assert!(some.normal == seen.normal && some.inner == seen.inner);
        let rows_of_y = read.iter().flat_map(|row| &y[row * width..][..width]);
        let rows_of_y: Vec<f32> = rows_of_y.copied().collect();
        assert_close(&some.y, &wide(&rows_of_y), 3e-6, &what);
        let back = |kept| mlp_branch_backward(&of[0], &params, shape, kept, &dy, ALL);
        let gradients = back(kept.as_ref());
        assert_eq!(gradients, back(None), "{what}");
        assert_eq!(gradients, back(kept.as_ref()), "{what}");
        assert_gradients(formula, &of, &dy, list(&gradients), &what);
    }

    /// The second product's input is the activation of the first one's output.
    fn assert_observed(
        seen: &MlpObserved,
        params: &MlpParams<'_>,
        before: &[f32],
        shape: MlpShape,
        what: &str,
    ) {
        let MlpShape { width, hidden, .. } = shape;
        let mut want = vec![0.0; before.len()];
        params.activation.forward(before, &mut want);
        assert_close(&seen.inner, &wide(&want), 1e-6, what);
        let rows = seen.normal.chunks(width).zip(before.chunks(hidden));
        for (normal, before) in rows {
            let mut want: Vec<f64> = match params.fc.bias {
                Some(bias) => wide(bias),
                None => vec![0.0; hidden],
            };
            for (x, weights) in normal.iter().zip(params.fc.weight.chunks(hidden)) {
                for (want, weight) in want.iter_mut().zip(weights) {
                    *want += f64::from(*x) * f64::from(*weight);
                }
            }
            assert_close(before, &want, 1e-5, what);
        }
    }

    #[test]
    fn the_room_between_rows_is_not_read() {
        // At multiples of 128 rows of scratch memory have room between them, and tests fill it with
        // NaN.
        let (rows, width, hidden) = (37, 128, 256);
        let shape = MlpShape {
            rows,
            width,
            hidden,
        };
        let of = inputs(rows, width, [hidden, hidden], true, 1);
        let params = params(&of, Activation::QuickGelu);
        let (y, kept) = mlp_branch(&of[0], &params, shape, true);
        let want = reference::mlp(
            Activation::QuickGelu,
            shape,
            &std::array::from_fn(|i| wide(&of[i])),
        );
        assert_close(&y, &want, 3e-6, "width 128");
        let dy = numbers(rows * width, 99, 1.0);
        let back = |kept| mlp_branch_backward(&of[0], &params, shape, kept, &dy, ALL);
        let gradients = back(kept.as_ref());
        assert_eq!(gradients, back(None));
        for gradient in list(&gradients) {
            assert!(gradient.as_ref().unwrap().iter().all(|g| g.is_finite()));
        }
    }

    #[test]
    fn values_and_gradients_are_those_of_the_formula() {
        for activation in [
            Activation::QuickGelu,
            Activation::GeluTanh,
            Activation::Gelu,
        ] {
            for (i, rows) in [1, 2, 5, 21, 34, 85].into_iter().enumerate() {
                for (width, hidden) in [(5, 7), (16, 50)] {
                    check(
                        MlpShape {
                            rows,
                            width,
                            hidden,
                        },
                        activation,
                        i % 2 == 0,
                    );
                }
            }
        }
        // More rows than a chunk holds.
        check(
            MlpShape {
                rows: 600,
                width: 4,
                hidden: 9,
            },
            Activation::QuickGelu,
            true,
        );
    }

    #[test]
    fn any_number_of_threads_gives_the_same_within_rounding() {
        let shape = MlpShape {
            rows: 70,
            width: 24,
            hidden: 96,
        };
        let of = inputs(shape.rows, 24, [96, 96], true, 5);
        let params = params(&of, Activation::QuickGelu);
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .unwrap();
            pool.install(|| {
                let (y, kept) = mlp_branch(&of[0], &params, shape, true);
                (
                    y,
                    mlp_branch_backward(&of[0], &params, shape, kept.as_ref(), &of[0], ALL),
                )
            })
        };
        let one = run(1);
        for threads in [2, 3, 12] {
            let many = run(threads);
            assert_close(&many.0, &wide(&one.0), 1e-6, "y");
            for (many, one) in list(&many.1).into_iter().zip(list(&one.1)) {
                assert_close(
                    many.as_ref().unwrap(),
                    &wide(one.as_ref().unwrap()),
                    3e-6,
                    "gradient",
                );
            }
        }
    }

    #[test]
    fn only_what_is_wanted_is_given() {
        let shape = MlpShape {
            rows: 10,
            width: 6,
            hidden: 20,
        };
        let of = inputs(10, 6, [20, 20], true, 3);
        let params = params(&of, Activation::Gelu);
        let (_, kept) = mlp_branch(&of[0], &params, shape, true);
        let back = |wanted, kept| mlp_branch_backward(&of[0], &params, shape, kept, &of[0], wanted);
        let all = back(ALL, kept.as_ref());
        for bits in 0..64 {
            let bit = |i: u32| bits >> i & 1 == 1;
            let flags = [bit(0), bit(1), bit(1), bit(2), bit(3), bit(4), bit(5)];
            let [input, norm, _, fc_weight, fc_bias, proj_weight, proj_bias] = flags;
            let wanted = MlpWanted {
                input,
                norm,
                fc_weight,
                fc_bias,
                proj_weight,
                proj_bias,
            };
            for kept in [kept.as_ref(), None] {
                let some = back(wanted, kept);
                for ((some, all), wanted) in list(&some).into_iter().zip(list(&all)).zip(flags) {
                    assert_eq!(some.as_ref(), all.as_ref().filter(|_| wanted), "{bits:b}");
                }
            }
        }
    }

    #[test]
    fn nan_stays_in_its_row() {
        let shape = MlpShape {
            rows: 40,
            width: 8,
            hidden: 32,
        };
        let mut of = inputs(40, 8, [32, 32], true, 3);
        of[0][3 * 8 + 1] = f32::NAN;
        let (y, _) = mlp_branch(&of[0], &params(&of, Activation::QuickGelu), shape, false);
        for (i, row) in y.chunks(8).enumerate() {
            assert!(row.iter().all(|x| x.is_nan() == (i == 3)));
        }
    }
}
