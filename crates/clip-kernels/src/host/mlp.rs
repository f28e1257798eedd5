//! The MLP branch of a pre-norm block: `y = x + W₂·act(W₁·LN(x) + b₁) + b₂`, and its gradients.
//!
//! A chunk of rows goes through the whole branch while it is in the cache. The forward pass saves
//! the input of the activation for the backward pass, which recomputes the layer norm and the
//! activation: that costs less than loading them.

use faer::{Accum, MatRef, Par};

use super::{
    LayerNormParams, LinearParams,
    activation::ActivationFunction,
    buffers::{Scratch, ScratchRows, copy, zeros},
    layer_norm::{ParamsGradient, normalize_row, normalize_row_backward, row_moments},
    parts::{self, Parts},
    product::{chunks, largest_chunk, linear, matrix, matrix_mut, parallelism, product},
    simd::{AddTo, dispatch},
};

/// Sizes of an MLP branch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MlpShape {
    /// Number of rows: items times tokens.
    pub rows: usize,
    /// Width of the residual stream.
    pub width: usize,
    /// Width between the linear layers.
    pub hidden: usize,
}

/// Parameters of an MLP branch.
#[derive(Clone, Copy, Debug)]
pub struct MlpParams<'a> {
    /// The layer norm before the first linear layer.
    pub norm: LayerNormParams<'a>,
    /// The first linear layer, `[width, hidden]`.
    pub fc: LinearParams<'a>,
    /// The activation between the linear layers.
    pub activation: ActivationFunction,
    /// The second linear layer, `[hidden, width]`.
    pub proj: LinearParams<'a>,
}

/// Activations that the forward pass saves for the backward pass.
#[derive(Clone, Debug, PartialEq)]
pub struct MlpActivations {
    /// The input of the activation, `[rows, hidden]`.
    pub pre_activation: Vec<f32>,
}

/// The gradients to compute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MlpNeedsGrad {
    /// Of the input of the branch.
    pub input: bool,
    /// Of both parameters of the layer norm.
    pub norm: bool,
    /// Of the weight of the first linear layer.
    pub fc_weight: bool,
    /// Of the bias of the first linear layer.
    pub fc_bias: bool,
    /// Of the weight of the second linear layer.
    pub proj_weight: bool,
    /// Of the bias of the second linear layer.
    pub proj_bias: bool,
}

/// Gradients of an MLP branch; `None` unless requested.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MlpGradients {
    /// Of the input, `[rows, width]`.
    pub input: Option<Vec<f32>>,
    /// Of the scale of the layer norm, `[width]`.
    pub gamma: Option<Vec<f32>>,
    /// Of the shift of the layer norm, `[width]`.
    pub beta: Option<Vec<f32>>,
    /// Of the weight of the first linear layer, `[width, hidden]`.
    pub fc_weight: Option<Vec<f32>>,
    /// Of the bias of the first linear layer, `[hidden]`.
    pub fc_bias: Option<Vec<f32>>,
    /// Of the weight of the second linear layer, `[hidden, width]`.
    pub proj_weight: Option<Vec<f32>>,
    /// Of the bias of the second linear layer, `[width]`.
    pub proj_bias: Option<Vec<f32>>,
}

impl MlpNeedsGrad {
    /// Returns `true` if the gradient has to pass the activation.
    fn before_activation(&self) -> bool {
        self.fc_weight || self.fc_bias || self.before_fc()
    }

    /// Returns `true` if the gradient has to pass the first linear layer.
    fn before_fc(&self) -> bool {
        self.input || self.norm
    }
}

/// Gradients of the parameters, summed over rows.
struct ParameterSums {
    norm: ParamsGradient,
    fc_weight: Vec<f32>,
    fc_bias: Vec<f32>,
    proj_weight: Vec<f32>,
    proj_bias: Vec<f32>,
}

impl ParameterSums {
    /// Returns zeros for the requested gradients and nothing for the others.
    fn zeros(shape: MlpShape, needs_grad: MlpNeedsGrad) -> Self {
        let (width, hidden) = (shape.width, shape.hidden);
        let zeros_if = |requested: bool, len| vec![0.0f32; if requested { len } else { 0 }];
        Self {
            norm: ParamsGradient::new(width),
            fc_weight: zeros_if(needs_grad.fc_weight, width * hidden),
            fc_bias: zeros_if(needs_grad.fc_bias, hidden),
            proj_weight: zeros_if(needs_grad.proj_weight, hidden * width),
            proj_bias: zeros_if(needs_grad.proj_bias, width),
        }
    }
}

/// The output of an MLP branch, and the inputs of its linear layers.
#[derive(Clone, Debug, PartialEq)]
pub struct MlpWithInputs {
    /// The output, `[rows, width]`, or the selected rows of it.
    pub y: Vec<f32>,
    /// The input of the first linear layer, `[rows, width]`.
    pub fc_input: Vec<f32>,
    /// The input of the second linear layer, `[rows, hidden]`.
    pub proj_input: Vec<f32>,
}

/// Computes the branch, and returns its activations too if `save` is set.
///
/// # Shapes
/// - `x`: `[rows, width]`
/// - output: `[rows, width]`
///
/// # Panics
/// If a length does not match the shape.
pub fn mlp_branch(
    x: &[f32],
    params: &MlpParams<'_>,
    shape: MlpShape,
    save: bool,
) -> (Vec<f32>, Option<MlpActivations>) {
    let requested = Requested {
        pre_activation: save,
        y: true,
        ..Requested::default()
    };
    let outputs = forward(x, params, shape, requested);
    let pre_activation = outputs.pre_activation;
    (outputs.y, save.then_some(MlpActivations { pre_activation }))
}

/// Computes the branch, and also returns the inputs of its linear layers.
///
/// `output_rows` restricts the output to these rows; the inputs are those of all rows.
///
/// # Shapes
/// - `x`: `[rows, width]`
/// - output: `[rows, width]`, or `[output rows, width]`
///
/// # Panics
/// If a length does not match the shape, or an output row is out of range.
pub fn mlp_branch_with_inputs(
    x: &[f32],
    params: &MlpParams<'_>,
    shape: MlpShape,
    output_rows: Option<&[usize]>,
) -> MlpWithInputs {
    let requested = Requested {
        fc_input: true,
        proj_input: true,
        y: output_rows.is_none(),
        ..Requested::default()
    };
    let Outputs {
        mut y,
        fc_input,
        proj_input,
        ..
    } = forward(x, params, shape, requested);
    if let Some(output_rows) = output_rows {
        let MlpShape { width, hidden, .. } = shape;
        y = vec![0.0; output_rows.len() * width];
        let mut selected = ScratchRows::new(output_rows.len(), hidden);
        for (i, (row, y)) in output_rows
            .iter()
            .zip(y.chunks_exact_mut(width))
            .enumerate()
        {
            selected
                .row_mut(i)
                .copy_from_slice(&proj_input[row * hidden..][..hidden]);
            y.copy_from_slice(&x[row * width..][..width]);
        }
        let par = parallelism(parts::threads());
        let selected = selected.first_rows(output_rows.len());
        params.add_proj(&mut y, selected, shape, par);
    }
    MlpWithInputs {
        y,
        fc_input,
        proj_input,
    }
}

/// The values that the forward pass returns.
#[derive(Clone, Copy, Default)]
struct Requested {
    pre_activation: bool,
    fc_input: bool,
    proj_input: bool,
    y: bool,
}

/// Values of the forward pass; those not requested are empty.
struct Outputs {
    /// The input of the activation, `[rows, hidden]`.
    pre_activation: Vec<f32>,
    /// The input of the first linear layer, `[rows, width]`.
    fc_input: Vec<f32>,
    /// The input of the second linear layer, `[rows, hidden]`.
    proj_input: Vec<f32>,
    /// The output, `[rows, width]`.
    y: Vec<f32>,
}

fn forward(x: &[f32], params: &MlpParams<'_>, shape: MlpShape, requested: Requested) -> Outputs {
    params.check(x, shape);
    let MlpShape {
        rows,
        width,
        hidden,
    } = shape;
    let (w1, _) = params.weights(shape);
    // Buffers that are not requested have rows of no width.
    let width_if = |requested: bool, width: usize| if requested { width } else { 0 };
    let pre_activation_width = width_if(requested.pre_activation, hidden);
    let fc_input_width = width_if(requested.fc_input, width);
    let proj_input_width = width_if(requested.proj_input, hidden);
    let y_width = width_if(requested.y, width);
    let mut outputs = Outputs {
        pre_activation: zeros(rows * pre_activation_width),
        fc_input: zeros(rows * fc_input_width),
        proj_input: zeros(rows * proj_input_width),
        y: zeros(rows * y_width),
    };
    let parts = Parts::of_rows(rows, false);
    let tasks = parts
        .ranges
        .iter()
        .zip(parts.split(&mut outputs.pre_activation, pre_activation_width))
        .zip(parts.split(&mut outputs.fc_input, fc_input_width))
        .zip(parts.split(&mut outputs.proj_input, proj_input_width))
        .zip(parts.split(&mut outputs.y, y_width))
        .collect();
    parts::run(tasks, |((((range, saved), fc_inputs), proj_inputs), y)| {
        let par = parallelism(parts.threads);
        let size = largest_chunk(range.len());
        let mut normed = ScratchRows::new(size, width);
        let mut activated = ScratchRows::new(size, hidden);
        let mut scratch = Scratch::new(width_if(!requested.pre_activation, size * hidden));
        for chunk in chunks(range.len()) {
            let count = chunk.len();
            let x = &x[(range.start + chunk.start) * width..][..count * width];
            let pre_activation = if requested.pre_activation {
                &mut saved[chunk.start * hidden..chunk.end * hidden]
            } else {
                &mut scratch[..count * hidden]
            };
            for (i, x) in x.chunks_exact(width).enumerate() {
                normalize_row(params.norm, x, normed.row_mut(i));
            }
            let bias = params.fc.bias;
            linear(pre_activation, normed.first_rows(count), w1, bias, par);
            for (i, pre_activation) in pre_activation.chunks_exact(hidden).enumerate() {
                params
                    .activation
                    .forward(pre_activation, activated.row_mut(i));
            }
            let rows = &mut fc_inputs[chunk.start * fc_input_width..chunk.end * fc_input_width];
            for (i, row) in rows.chunks_exact_mut(width).enumerate() {
                row.copy_from_slice(normed.row(i));
            }
            let rows =
                &mut proj_inputs[chunk.start * proj_input_width..chunk.end * proj_input_width];
            for (i, row) in rows.chunks_exact_mut(hidden).enumerate() {
                row.copy_from_slice(activated.row(i));
            }
            if requested.y {
                let y = &mut y[chunk.start * width..chunk.end * width];
                y.copy_from_slice(x);
                params.add_proj(y, activated.first_rows(count), shape, par);
            }
        }
    });
    outputs
}

/// Computes the gradients at `x`, given the gradient `dy` of the output of [`mlp_branch`].
///
/// Without `saved` the activations are recomputed; the result is the same.
///
/// # Shapes
/// - `x`: `[rows, width]`
/// - `dy`: `[rows, width]`
///
/// # Panics
/// If a length does not match the shape.
pub fn mlp_branch_backward(
    x: &[f32],
    params: &MlpParams<'_>,
    shape: MlpShape,
    saved: Option<&MlpActivations>,
    dy: &[f32],
    needs_grad: MlpNeedsGrad,
) -> MlpGradients {
    params.check(x, shape);
    assert_eq!(x.len(), dy.len());
    let MlpShape {
        rows,
        width,
        hidden,
    } = shape;
    assert!(saved.is_none_or(|saved| saved.pre_activation.len() == rows * hidden));
    let mut dx = if needs_grad.input {
        copy(dy)
    } else {
        Vec::new()
    };
    // A reduction over rows is partitioned independently of the number of threads.
    let reduces = needs_grad.norm
        || needs_grad.fc_weight
        || needs_grad.fc_bias
        || needs_grad.proj_weight
        || needs_grad.proj_bias;
    let parts = Parts::of_rows(rows, reduces);
    let tasks = parts
        .ranges
        .iter()
        .zip(parts.split(&mut dx, if needs_grad.input { width } else { 0 }))
        .collect();
    let sums = parts::run(tasks, |(range, dx)| {
        let (from, to) = (range.start * width, range.end * width);
        let part = RowsBackward {
            x: &x[from..to],
            dy: &dy[from..to],
            saved: saved
                .map(|saved| &saved.pre_activation[range.start * hidden..range.end * hidden]),
            params,
            shape: MlpShape {
                rows: range.len(),
                ..shape
            },
            needs_grad,
            par: parallelism(parts.threads),
        };
        part.run(dx)
    });
    let mut gradients = MlpGradients {
        input: needs_grad.input.then_some(dx),
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
    let total = |needs_grad: bool, parts| if needs_grad { parts::sum(parts) } else { None };
    gradients.gamma = total(needs_grad.norm, gamma);
    gradients.beta = total(needs_grad.norm, beta);
    gradients.fc_weight = total(needs_grad.fc_weight, fc_weight);
    gradients.fc_bias = total(needs_grad.fc_bias, fc_bias);
    gradients.proj_weight = total(needs_grad.proj_weight, proj_weight);
    gradients.proj_bias = total(needs_grad.proj_bias, proj_bias);
    gradients
}

/// Backward pass of one part of the rows.
struct RowsBackward<'a> {
    x: &'a [f32],
    dy: &'a [f32],
    saved: Option<&'a [f32]>,
    params: &'a MlpParams<'a>,
    shape: MlpShape,
    needs_grad: MlpNeedsGrad,
    par: Par,
}

impl RowsBackward<'_> {
    /// Adds the gradient of the input to `dx`, and returns those of the parameters.
    fn run(&self, dx: &mut [f32]) -> ParameterSums {
        let Self {
            x,
            dy,
            saved,
            params,
            shape,
            needs_grad,
            par,
        } = *self;
        let MlpShape {
            rows,
            width,
            hidden,
        } = shape;
        let (w1, w2) = params.weights(shape);
        let size = largest_chunk(rows);
        let mut sums = ParameterSums::zeros(shape, needs_grad);
        let needs_pre_activation = needs_grad.proj_weight || needs_grad.before_activation();
        let recomputes = saved.is_none() && needs_pre_activation;
        let mut scratch = Scratch::new(if recomputes { size * hidden } else { 0 });
        let mut normed = ScratchRows::new(size, width);
        let mut activated = ScratchRows::new(size, hidden);
        let mut dh = ScratchRows::new(size, hidden);
        for chunk in chunks(rows) {
            let count = chunk.len();
            let range = chunk.start * width..chunk.end * width;
            let (x, dy) = (&x[range.clone()], &dy[range.clone()]);
            if needs_grad.proj_bias {
                add_rows(&mut sums.proj_bias, dy);
            }
            if !needs_pre_activation {
                continue;
            }
            if saved.is_none() || needs_grad.fc_weight {
                for (i, x) in x.chunks_exact(width).enumerate() {
                    normalize_row(params.norm, x, normed.row_mut(i));
                }
            }
            let pre_activation = match saved {
                Some(saved) => &saved[chunk.start * hidden..chunk.end * hidden],
                None => {
                    let pre_activation = &mut scratch[..count * hidden];
                    let bias = params.fc.bias;
                    linear(pre_activation, normed.first_rows(count), w1, bias, par);
                    &*pre_activation
                }
            };
            let dy = matrix(dy, count, width);
            // `dh` becomes the gradient of the output of the activation, then that of its input.
            if needs_grad.before_activation() {
                let (to, transposed) = (dh.first_rows_mut(count), w2.transpose());
                product(to, Accum::Replace, dy, transposed, 1.0, par);
                for (i, pre_activation) in pre_activation.chunks_exact(hidden).enumerate() {
                    let (activated, dh) = (activated.row_mut(i), dh.row_mut(i));
                    params.activation.backward(pre_activation, activated, dh);
                    if needs_grad.fc_bias {
                        add_rows(&mut sums.fc_bias, dh);
                    }
                }
            } else {
                for (i, pre_activation) in pre_activation.chunks_exact(hidden).enumerate() {
                    params
                        .activation
                        .forward(pre_activation, activated.row_mut(i));
                }
            }
            if needs_grad.proj_weight {
                let sum = matrix_mut(&mut sums.proj_weight, hidden, width);
                product(
                    sum,
                    Accum::Add,
                    activated.first_rows(count).transpose(),
                    dy,
                    1.0,
                    par,
                );
            }
            if needs_grad.fc_weight {
                let sum = matrix_mut(&mut sums.fc_weight, width, hidden);
                let (normed, dh) = (normed.first_rows(count), dh.first_rows(count));
                product(sum, Accum::Add, normed.transpose(), dh, 1.0, par);
            }
            if needs_grad.before_fc() {
                let dx = match needs_grad.input {
                    true => &mut dx[range],
                    false => &mut [],
                };
                let dh = dh.first_rows(count);
                self.input_backward(x, dh, &mut normed, dx, &mut sums.norm);
            }
        }
        sums
    }

    /// Adds the gradient of the rows `x` to `dx` and those of the layer norm to `sums`, given the
    /// gradient `dh` of the first linear layer's output. Overwrites `normed`.
    fn input_backward(
        &self,
        x: &[f32],
        dh: MatRef<'_, f32>,
        normed: &mut ScratchRows,
        dx: &mut [f32],
        sums: &mut ParamsGradient,
    ) {
        let (params, needs_grad, width) = (self.params, self.needs_grad, self.shape.width);
        let (w1, _) = params.weights(self.shape);
        product(
            normed.first_rows_mut(dh.nrows()),
            Accum::Replace,
            dh,
            w1.transpose(),
            1.0,
            self.par,
        );
        for (i, x) in x.chunks_exact(width).enumerate() {
            let moments = row_moments(params.norm, x);
            if needs_grad.input {
                let dx = &mut dx[i * width..][..width];
                normalize_row_backward(params.norm.gamma, moments, x, normed.row(i), dx);
            }
            if needs_grad.norm {
                sums.add(moments, x, normed.row(i));
            }
        }
    }
}

/// Adds every row of `rows` to `total`.
fn add_rows(total: &mut [f32], rows: &[f32]) {
    for row in rows.chunks_exact(total.len()) {
        dispatch(AddTo { total, row });
    }
}

impl<'a> MlpParams<'a> {
    /// Returns the weights of both linear layers.
    fn weights(&self, shape: MlpShape) -> (MatRef<'a, f32>, MatRef<'a, f32>) {
        let MlpShape { width, hidden, .. } = shape;
        (
            matrix(self.fc.weight, width, hidden),
            matrix(self.proj.weight, hidden, width),
        )
    }

    /// Adds the second linear layer of `activated`, `[rows, hidden]`, to `y`, `[rows, width]`.
    fn add_proj(&self, y: &mut [f32], activated: MatRef<'_, f32>, shape: MlpShape, par: Par) {
        let (rows, width) = (activated.nrows(), shape.width);
        if let Some(bias) = self.proj.bias {
            for row in y.chunks_exact_mut(width) {
                dispatch(AddTo {
                    total: row,
                    row: bias,
                });
            }
        }
        let (_, w2) = self.weights(shape);
        product(
            matrix_mut(y, rows, width),
            Accum::Add,
            activated,
            w2,
            1.0,
            par,
        );
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

    const ALL: MlpNeedsGrad = MlpNeedsGrad {
        input: true,
        norm: true,
        fc_weight: true,
        fc_bias: true,
        proj_weight: true,
        proj_bias: true,
    };

    fn params(values: &Inputs<f32>, activation: ActivationFunction) -> MlpParams<'_> {
        let (fc, proj) = (
            reference::linear_params(values, 0),
            reference::linear_params(values, 1),
        );
        MlpParams {
            norm: reference::norm(values),
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

    fn check(shape: MlpShape, activation: ActivationFunction, bias: bool) {
        let what = format!("{shape:?} {activation:?} bias {bias}");
        let MlpShape {
            rows,
            width,
            hidden,
        } = shape;
        let values = inputs(rows, width, [hidden, hidden], bias, rows as u64);
        let params = params(&values, activation);
        let dy = numbers(rows * width, 99, 1.0);
        let (y, saved) = mlp_branch(&values[0], &params, shape, true);
        let formula = |values: &Inputs<f64>| reference::mlp(activation, shape, values);
        assert_close(
            &y,
            &formula(&std::array::from_fn(|i| wide(&values[i]))),
            3e-6,
            &what,
        );
        let (bare, nothing) = mlp_branch(&values[0], &params, shape, false);
        assert!(bare == y && nothing.is_none(), "{what}");
        let outputs = mlp_branch_with_inputs(&values[0], &params, shape, None);
        assert!(outputs.y == y, "{what}");
        assert_inputs(
            &outputs,
            &params,
            &saved.as_ref().unwrap().pre_activation,
            shape,
            &what,
        );
        let output_rows: Vec<usize> = (0..rows).step_by(3).collect();
        let some = mlp_branch_with_inputs(&values[0], &params, shape, Some(&output_rows));
        assert!(some.fc_input == outputs.fc_input && some.proj_input == outputs.proj_input);
        let rows_of_y = output_rows
            .iter()
            .flat_map(|row| &y[row * width..][..width]);
        let rows_of_y: Vec<f32> = rows_of_y.copied().collect();
        assert_close(&some.y, &wide(&rows_of_y), 3e-6, &what);
        let back = |saved| mlp_branch_backward(&values[0], &params, shape, saved, &dy, ALL);
        let gradients = back(saved.as_ref());
        assert_eq!(gradients, back(None), "{what}");
        assert_eq!(gradients, back(saved.as_ref()), "{what}");
        assert_gradients(formula, &values, &dy, list(&gradients), &what);
    }

    /// Asserts that the inputs of the linear layers are those of the formula.
    fn assert_inputs(
        outputs: &MlpWithInputs,
        params: &MlpParams<'_>,
        pre_activation: &[f32],
        shape: MlpShape,
        what: &str,
    ) {
        let MlpShape { width, hidden, .. } = shape;
        let mut want = vec![0.0; pre_activation.len()];
        params.activation.forward(pre_activation, &mut want);
        assert_close(&outputs.proj_input, &wide(&want), 1e-6, what);
        let rows = outputs
            .fc_input
            .chunks(width)
            .zip(pre_activation.chunks(hidden));
        for (input, pre_activation) in rows {
            let mut want: Vec<f64> = match params.fc.bias {
                Some(bias) => wide(bias),
                None => vec![0.0; hidden],
            };
            for (x, weights) in input.iter().zip(params.fc.weight.chunks(hidden)) {
                for (want, weight) in want.iter_mut().zip(weights) {
                    *want += f64::from(*x) * f64::from(*weight);
                }
            }
            assert_close(pre_activation, &want, 1e-5, what);
        }
    }

    #[test]
    fn row_padding_is_not_read() {
        // Scratch rows of a multiple of 128 values are padded, and tests fill scratch memory with
        // NaN.
        let (rows, width, hidden) = (37, 128, 256);
        let shape = MlpShape {
            rows,
            width,
            hidden,
        };
        let values = inputs(rows, width, [hidden, hidden], true, 1);
        let params = params(&values, ActivationFunction::QuickGelu);
        let (y, saved) = mlp_branch(&values[0], &params, shape, true);
        let want = reference::mlp(
            ActivationFunction::QuickGelu,
            shape,
            &std::array::from_fn(|i| wide(&values[i])),
        );
        assert_close(&y, &want, 3e-6, "width 128");
        let dy = numbers(rows * width, 99, 1.0);
        let back = |saved| mlp_branch_backward(&values[0], &params, shape, saved, &dy, ALL);
        let gradients = back(saved.as_ref());
        assert_eq!(gradients, back(None));
        for gradient in list(&gradients) {
            assert!(gradient.as_ref().unwrap().iter().all(|g| g.is_finite()));
        }
    }

    #[test]
    fn values_and_gradients_match_the_formula() {
        for activation in [
            ActivationFunction::QuickGelu,
            ActivationFunction::GeluTanh,
            ActivationFunction::Gelu,
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
            ActivationFunction::QuickGelu,
            true,
        );
    }

    #[test]
    fn results_are_equal_within_rounding_for_any_number_of_threads() {
        let shape = MlpShape {
            rows: 70,
            width: 24,
            hidden: 96,
        };
        let values = inputs(shape.rows, 24, [96, 96], true, 5);
        let params = params(&values, ActivationFunction::QuickGelu);
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .unwrap();
            pool.install(|| {
                let (y, saved) = mlp_branch(&values[0], &params, shape, true);
                (
                    y,
                    mlp_branch_backward(
                        &values[0],
                        &params,
                        shape,
                        saved.as_ref(),
                        &values[0],
                        ALL,
                    ),
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
    fn only_requested_gradients_are_returned() {
        let shape = MlpShape {
            rows: 10,
            width: 6,
            hidden: 20,
        };
        let values = inputs(10, 6, [20, 20], true, 3);
        let params = params(&values, ActivationFunction::Gelu);
        let (_, saved) = mlp_branch(&values[0], &params, shape, true);
        let back = |needs_grad, saved| {
            mlp_branch_backward(&values[0], &params, shape, saved, &values[0], needs_grad)
        };
        let all = back(ALL, saved.as_ref());
        for bits in 0..64 {
            let bit = |i: u32| bits >> i & 1 == 1;
            let flags = [bit(0), bit(1), bit(1), bit(2), bit(3), bit(4), bit(5)];
            let [input, norm, _, fc_weight, fc_bias, proj_weight, proj_bias] = flags;
            let needs_grad = MlpNeedsGrad {
                input,
                norm,
                fc_weight,
                fc_bias,
                proj_weight,
                proj_bias,
            };
            for saved in [saved.as_ref(), None] {
                let some = back(needs_grad, saved);
                for ((some, all), needs_grad) in list(&some).into_iter().zip(list(&all)).zip(flags)
                {
                    assert_eq!(
                        some.as_ref(),
                        all.as_ref().filter(|_| needs_grad),
                        "{bits:b}"
                    );
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
        let mut values = inputs(40, 8, [32, 32], true, 3);
        values[0][3 * 8 + 1] = f32::NAN;
        let (y, _) = mlp_branch(
            &values[0],
            &params(&values, ActivationFunction::QuickGelu),
            shape,
            false,
        );
        for (i, row) in y.chunks(8).enumerate() {
            assert!(row.iter().all(|x| x.is_nan() == (i == 3)));
        }
    }
}
