//! Backend extension: the fused branches as custom operations on `Flex` and `Autodiff<Flex>`.

use std::{any::TypeId, fmt, sync::Arc};

use burn::{
    backend::{
        Autodiff, Backend, Dispatch, Flex,
        autodiff::{
            checkpoint::{
                base::Checkpointer,
                strategy::{BalancedCheckpointing, CheckpointStrategy},
            },
            grads::Gradients,
            ops::{Backward, Ops, OpsKind},
        },
        backend_extension,
        tensor::FloatTensor,
    },
    tensor::{Tensor, TensorData},
};

use rayon::prelude::*;

use crate::{
    ActivationFunction, AttentionBranch, LayerNormParams, MlpBranch, MlpBranchWithInputs, Queries,
    host::{
        self,
        attention::{
            AttentionActivations, AttentionGradients, AttentionNeedsGrad, AttentionParams,
            AttentionShape,
        },
        mlp::{MlpActivations, MlpGradients, MlpNeedsGrad, MlpParams, MlpShape},
    },
};

pub fn attention_branch(x: Tensor<3>, branch: AttentionBranch, queries: &Queries) -> Tensor<3> {
    let [batch, tokens, width] = x.dims();
    let args = AttentionArgs {
        shape: AttentionShape {
            batch,
            tokens,
            width,
            heads: branch.heads,
            causal: branch.causal,
        },
        queries: Arc::new(queries.clone()),
        epsilon: branch.norm.epsilon as f32,
    };
    Tensor::from_dispatch(<Dispatch as BranchOps>::attention(
        x.into_dispatch(),
        branch.norm.gamma.into_dispatch(),
        branch.norm.beta.into_dispatch(),
        branch.in_proj.weight.into_dispatch(),
        branch.in_proj.bias.into_dispatch(),
        branch.out_proj.weight.into_dispatch(),
        branch.out_proj.bias.into_dispatch(),
        args,
    ))
}

pub fn mlp_branch(x: Tensor<3>, branch: MlpBranch) -> Tensor<3> {
    let args = MlpArgs::new(&x, &branch);
    Tensor::from_dispatch(<Dispatch as BranchOps>::mlp(
        x.into_dispatch(),
        branch.norm.gamma.into_dispatch(),
        branch.norm.beta.into_dispatch(),
        branch.c_fc.weight.into_dispatch(),
        branch.c_fc.bias.into_dispatch(),
        branch.c_proj.weight.into_dispatch(),
        branch.c_proj.bias.into_dispatch(),
        args,
    ))
}

pub fn mlp_branch_with_inputs(
    x: Tensor<3>,
    branch: MlpBranch,
    queries: &Queries,
) -> MlpBranchWithInputs {
    let args = MlpArgs::new(&x, &branch);
    let tokens = x.dims()[1];
    let output_rows = match queries {
        Queries::All | Queries::Tree(_) => None,
        Queries::At(positions) => {
            let rows = positions.iter().enumerate().map(|(item, position)| {
                assert!(*position < tokens, "position {position} of {tokens}");
                item * tokens + position
            });
            Some(rows.collect::<Vec<_>>())
        }
    };
    let (output, c_fc_input, c_proj_input) = <Dispatch as BranchOps>::mlp_with_inputs(
        x.into_dispatch(),
        branch.norm.gamma.into_dispatch(),
        branch.norm.beta.into_dispatch(),
        branch.c_fc.weight.into_dispatch(),
        branch.c_fc.bias.into_dispatch(),
        branch.c_proj.weight.into_dispatch(),
        branch.c_proj.bias.into_dispatch(),
        args,
        output_rows,
    );
    MlpBranchWithInputs {
        output: Tensor::from_dispatch(output),
        c_fc_input: Tensor::from_dispatch(c_fc_input),
        c_proj_input: Tensor::from_dispatch(c_proj_input),
    }
}

pub fn layer_norm(x: Tensor<3>, norm: LayerNormParams) -> Tensor<3> {
    let epsilon = norm.epsilon as f32;
    Tensor::from_dispatch(<Dispatch as BranchOps>::norm(
        x.into_dispatch(),
        norm.gamma.into_dispatch(),
        norm.beta.into_dispatch(),
        epsilon,
    ))
}

pub fn activate(x: Tensor<3>, activation: ActivationFunction) -> Tensor<3> {
    let (device, shape) = (x.device(), x.dims());
    let data = x.into_data();
    let input = match data.as_slice::<f32>() {
        Ok(input) => input,
        Err(error) => unreachable!("the dispatch admits `f32` tensors only: {error}"),
    };
    let mut output = vec![0.0; input.len()];
    output
        .par_chunks_mut(CHUNK)
        .zip(input.par_chunks(CHUNK))
        .for_each(|(output, input)| host_activation(activation).forward(input, output));
    Tensor::from_data(TensorData::new(output, shape), &device)
}

/// Values that a thread processes at once.
const CHUNK: usize = 1 << 14;

fn host_activation(activation: ActivationFunction) -> host::activation::ActivationFunction {
    use host::activation::ActivationFunction as Kernel;
    match activation {
        ActivationFunction::QuickGelu => Kernel::QuickGelu,
        ActivationFunction::Gelu => Kernel::Gelu,
        ActivationFunction::GeluTanh => Kernel::GeluTanh,
    }
}

/// Arguments of an attention branch that are no tensors.
#[derive(Debug, Clone)]
pub struct AttentionArgs {
    shape: AttentionShape,
    queries: Arc<Queries>,
    epsilon: f32,
}

/// Arguments of an MLP branch that are no tensors.
#[derive(Debug, Clone, Copy)]
pub struct MlpArgs {
    shape: MlpShape,
    activation: host::activation::ActivationFunction,
    epsilon: f32,
}

/// Operations of a backend on branches. The order of tensors is input, scale, shift, first weight
/// and bias, second weight and bias.
#[backend_extension(Flex, Autodiff)]
pub trait BranchOps: Backend {
    #[allow(clippy::too_many_arguments)]
    fn attention(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        in_weight: FloatTensor<Self>,
        in_bias: FloatTensor<Self>,
        out_weight: FloatTensor<Self>,
        out_bias: FloatTensor<Self>,
        args: AttentionArgs,
    ) -> FloatTensor<Self>;

    #[allow(clippy::too_many_arguments)]
    fn mlp(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        fc_weight: FloatTensor<Self>,
        fc_bias: FloatTensor<Self>,
        proj_weight: FloatTensor<Self>,
        proj_bias: FloatTensor<Self>,
        args: MlpArgs,
    ) -> FloatTensor<Self>;

    /// Returns the output, of all rows or of `output_rows`, and the inputs of both linear layers.
    #[allow(clippy::too_many_arguments)]
    fn mlp_with_inputs(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        fc_weight: FloatTensor<Self>,
        fc_bias: FloatTensor<Self>,
        proj_weight: FloatTensor<Self>,
        proj_bias: FloatTensor<Self>,
        args: MlpArgs,
        output_rows: Option<Vec<usize>>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);

    /// Layer norm.
    fn norm(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        epsilon: f32,
    ) -> FloatTensor<Self>;
}

/// A tensor of the host backend.
type HostTensor = FloatTensor<Flex>;

/// Returns the values of a contiguous tensor.
fn values(tensor: &HostTensor) -> &[f32] {
    let layout = tensor.layout();
    let start = layout.start_offset();
    &tensor.storage::<f32>()[start..start + layout.num_elements()]
}

fn tensor<const D: usize>(values: Vec<f32>, shape: [usize; D]) -> HostTensor {
    HostTensor::from_data(TensorData::new(values, shape))
}

/// Tensors of a branch, contiguous: input, layer norm and two linear layers.
struct BranchTensors([HostTensor; 7]);

impl BranchTensors {
    fn new(tensors: [HostTensor; 7]) -> Self {
        Self(tensors.map(|t| t.to_contiguous()))
    }

    fn x(&self) -> &[f32] {
        values(&self.0[0])
    }

    fn norm(&self, epsilon: f32) -> host::LayerNormParams<'_> {
        host::LayerNormParams {
            gamma: values(&self.0[1]),
            beta: values(&self.0[2]),
            epsilon,
        }
    }

    fn first_linear(&self) -> host::LinearParams<'_> {
        self.linear(3)
    }

    fn second_linear(&self) -> host::LinearParams<'_> {
        self.linear(5)
    }

    fn linear(&self, index: usize) -> host::LinearParams<'_> {
        host::LinearParams {
            weight: values(&self.0[index]),
            bias: Some(values(&self.0[index + 1])),
        }
    }
}

impl AttentionArgs {
    fn queries(&self) -> host::attention::Queries<'_> {
        match &*self.queries {
            Queries::All => host::attention::Queries::All,
            Queries::At(positions) => host::attention::Queries::At(positions),
            Queries::Tree(tree) => host::attention::Queries::Tree(tree.parents()),
        }
    }

    fn params<'a>(&self, tensors: &'a BranchTensors) -> AttentionParams<'a> {
        AttentionParams {
            norm: tensors.norm(self.epsilon),
            in_proj: tensors.first_linear(),
            out_proj: tensors.second_linear(),
        }
    }
}

impl BranchOp for AttentionArgs {
    type Activations = AttentionActivations;

    fn forward(
        &self,
        tensors: &BranchTensors,
        save: bool,
    ) -> (HostTensor, Option<AttentionActivations>) {
        let params = self.params(tensors);
        let (y, saved) = host::attention::attention_branch(
            tensors.x(),
            &params,
            self.shape,
            self.queries(),
            save,
        );
        let tokens = match &*self.queries {
            Queries::All | Queries::Tree(_) => self.shape.tokens,
            Queries::At(_) => 1,
        };
        (
            tensor(y, [self.shape.batch, tokens, self.shape.width]),
            saved,
        )
    }

    fn backward(
        &self,
        tensors: &BranchTensors,
        saved: Option<&AttentionActivations>,
        dy: &HostTensor,
        needs_grad: [bool; 7],
    ) -> [Option<HostTensor>; 7] {
        let [input, gamma, beta, in_weight, in_bias, out_weight, out_bias] = needs_grad;
        let AttentionShape {
            batch,
            tokens,
            width,
            ..
        } = self.shape;
        let gradients: AttentionGradients = host::attention::attention_branch_backward(
            tensors.x(),
            &self.params(tensors),
            self.shape,
            self.queries(),
            saved,
            values(dy),
            AttentionNeedsGrad {
                input,
                norm: gamma || beta,
                in_weight,
                in_bias,
                out_weight,
                out_bias,
            },
        );
        [
            gradients.input.map(|g| tensor(g, [batch, tokens, width])),
            gradients.gamma.map(|g| tensor(g, [width])),
            gradients.beta.map(|g| tensor(g, [width])),
            gradients.in_weight.map(|g| tensor(g, [width, 3 * width])),
            gradients.in_bias.map(|g| tensor(g, [3 * width])),
            gradients.out_weight.map(|g| tensor(g, [width, width])),
            gradients.out_bias.map(|g| tensor(g, [width])),
        ]
    }
}

impl MlpArgs {
    fn new(x: &Tensor<3>, branch: &MlpBranch) -> Self {
        let [batch, tokens, width] = x.dims();
        Self {
            shape: MlpShape {
                rows: batch * tokens,
                width,
                hidden: branch.c_fc.weight.dims()[1],
            },
            activation: host_activation(branch.activation),
            epsilon: branch.norm.epsilon as f32,
        }
    }

    fn params<'a>(&self, tensors: &'a BranchTensors) -> MlpParams<'a> {
        MlpParams {
            norm: tensors.norm(self.epsilon),
            fc: tensors.first_linear(),
            activation: self.activation,
            proj: tensors.second_linear(),
        }
    }
}

impl BranchOp for MlpArgs {
    type Activations = MlpActivations;

    fn forward(&self, tensors: &BranchTensors, save: bool) -> (HostTensor, Option<MlpActivations>) {
        let params = self.params(tensors);
        let (y, saved) = host::mlp::mlp_branch(tensors.x(), &params, self.shape, save);
        let shape = tensors.0[0].layout().shape().clone();
        (HostTensor::from_data(TensorData::new(y, shape)), saved)
    }

    fn backward(
        &self,
        tensors: &BranchTensors,
        saved: Option<&MlpActivations>,
        dy: &HostTensor,
        needs_grad: [bool; 7],
    ) -> [Option<HostTensor>; 7] {
        let [
            input,
            gamma,
            beta,
            fc_weight,
            fc_bias,
            proj_weight,
            proj_bias,
        ] = needs_grad;
        let MlpShape { width, hidden, .. } = self.shape;
        let gradients: MlpGradients = host::mlp::mlp_branch_backward(
            tensors.x(),
            &self.params(tensors),
            self.shape,
            saved,
            values(dy),
            MlpNeedsGrad {
                input,
                norm: gamma || beta,
                fc_weight,
                fc_bias,
                proj_weight,
                proj_bias,
            },
        );
        let shape = tensors.0[0].layout().shape().clone();
        [
            gradients
                .input
                .map(|g| HostTensor::from_data(TensorData::new(g, shape))),
            gradients.gamma.map(|g| tensor(g, [width])),
            gradients.beta.map(|g| tensor(g, [width])),
            gradients.fc_weight.map(|g| tensor(g, [width, hidden])),
            gradients.fc_bias.map(|g| tensor(g, [hidden])),
            gradients.proj_weight.map(|g| tensor(g, [hidden, width])),
            gradients.proj_bias.map(|g| tensor(g, [width])),
        ]
    }
}

impl BranchOps for Flex {
    fn attention(
        x: HostTensor,
        gamma: HostTensor,
        beta: HostTensor,
        in_weight: HostTensor,
        in_bias: HostTensor,
        out_weight: HostTensor,
        out_bias: HostTensor,
        args: AttentionArgs,
    ) -> HostTensor {
        let tensors = [x, gamma, beta, in_weight, in_bias, out_weight, out_bias];
        args.forward(&BranchTensors::new(tensors), false).0
    }

    fn mlp(
        x: HostTensor,
        gamma: HostTensor,
        beta: HostTensor,
        fc_weight: HostTensor,
        fc_bias: HostTensor,
        proj_weight: HostTensor,
        proj_bias: HostTensor,
        args: MlpArgs,
    ) -> HostTensor {
        let tensors = [x, gamma, beta, fc_weight, fc_bias, proj_weight, proj_bias];
        args.forward(&BranchTensors::new(tensors), false).0
    }

    fn mlp_with_inputs(
        x: HostTensor,
        gamma: HostTensor,
        beta: HostTensor,
        fc_weight: HostTensor,
        fc_bias: HostTensor,
        proj_weight: HostTensor,
        proj_bias: HostTensor,
        args: MlpArgs,
        output_rows: Option<Vec<usize>>,
    ) -> (HostTensor, HostTensor, HostTensor) {
        let tensors = [x, gamma, beta, fc_weight, fc_bias, proj_weight, proj_bias];
        let tensors = BranchTensors::new(tensors);
        let params = args.params(&tensors);
        let outputs = host::mlp::mlp_branch_with_inputs(
            tensors.x(),
            &params,
            args.shape,
            output_rows.as_deref(),
        );
        let [batch, tokens, width] = tensors.0[0].layout().shape().dims();
        let output_tokens = if output_rows.is_some() { 1 } else { tokens };
        (
            tensor(outputs.y, [batch, output_tokens, width]),
            tensor(outputs.fc_input, [batch, tokens, width]),
            tensor(outputs.proj_input, [batch, tokens, args.shape.hidden]),
        )
    }

    fn norm(x: HostTensor, gamma: HostTensor, beta: HostTensor, epsilon: f32) -> HostTensor {
        let [x, gamma, beta] = [x, gamma, beta].map(|t| t.to_contiguous());
        let params = host::LayerNormParams {
            gamma: values(&gamma),
            beta: values(&beta),
            epsilon,
        };
        let y = host::layer_norm::layer_norm(values(&x), params);
        HostTensor::from_data(TensorData::new(y, x.layout().shape().clone()))
    }
}

/// State that the backward pass needs of a branch.
struct SavedBranch<O, A> {
    args: O,
    tensors: BranchTensors,
    activations: Option<A>,
}

/// Shared handle of the saved state on the autodiff graph.
struct State<O, A>(Arc<SavedBranch<O, A>>);

impl<O, A> Clone for State<O, A> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<O, A> fmt::Debug for State<O, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a transformer branch")
    }
}

/// Forward and backward pass of a branch, given its arguments.
trait BranchOp: Clone + Send + Sync + 'static {
    type Activations: Send + Sync + 'static;
    fn forward(
        &self,
        tensors: &BranchTensors,
        save: bool,
    ) -> (HostTensor, Option<Self::Activations>);
    fn backward(
        &self,
        tensors: &BranchTensors,
        saved: Option<&Self::Activations>,
        dy: &HostTensor,
        needs_grad: [bool; 7],
    ) -> [Option<HostTensor>; 7];
}

/// Backward step of a branch on the autodiff graph.
struct BranchBackward<O>(std::marker::PhantomData<O>);

impl<O> fmt::Debug for BranchBackward<O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BranchBackward")
    }
}

impl<O: BranchOp> Backward<Flex, 7> for BranchBackward<O> {
    type State = State<O, O::Activations>;

    fn backward(
        self,
        ops: Ops<Self::State, 7>,
        grads: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        let dy = grads.consume::<Flex>(&ops.node).to_contiguous();
        let SavedBranch {
            args,
            tensors,
            activations,
        } = &*ops.state.0;
        let needs_grad = ops.parents.each_ref().map(Option::is_some);
        let gradients = args.backward(tensors, activations.as_ref(), &dy, needs_grad);
        for (parent, gradient) in ops.parents.into_iter().zip(gradients) {
            if let (Some(parent), Some(gradient)) = (parent, gradient) {
                grads.register::<Flex>(parent.id, gradient);
            }
        }
    }
}

/// Computes a branch, and records it on the autodiff graph if one of its tensors is tracked.
fn forward_tracked<O: BranchOp, S: CheckpointStrategy>(
    tensors: [FloatTensor<Autodiff<Flex, S>>; 7],
    args: O,
) -> FloatTensor<Autodiff<Flex, S>> {
    let nodes = tensors.each_ref().map(|t| t.node());
    let tensors = BranchTensors::new(tensors.map(|t| t.into_primitive()));
    // With gradient checkpointing the backward pass recomputes the branch from its input.
    let save = TypeId::of::<S>() != TypeId::of::<BalancedCheckpointing>();
    let branch = BranchBackward::<O>(std::marker::PhantomData);
    match branch.prepare::<S>(nodes).compute_bound().stateful() {
        OpsKind::Tracked(prep) => {
            let (y, activations) = args.forward(&tensors, save);
            let saved = SavedBranch {
                args,
                tensors,
                activations,
            };
            prep.finish(State(Arc::new(saved)), y)
        }
        OpsKind::UnTracked(prep) => prep.finish(args.forward(&tensors, false).0),
    }
}

impl<S: CheckpointStrategy> BranchOps for Autodiff<Flex, S> {
    fn attention(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        in_weight: FloatTensor<Self>,
        in_bias: FloatTensor<Self>,
        out_weight: FloatTensor<Self>,
        out_bias: FloatTensor<Self>,
        args: AttentionArgs,
    ) -> FloatTensor<Self> {
        let tensors = [x, gamma, beta, in_weight, in_bias, out_weight, out_bias];
        forward_tracked::<_, S>(tensors, args)
    }

    fn mlp(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        fc_weight: FloatTensor<Self>,
        fc_bias: FloatTensor<Self>,
        proj_weight: FloatTensor<Self>,
        proj_bias: FloatTensor<Self>,
        args: MlpArgs,
    ) -> FloatTensor<Self> {
        let tensors = [x, gamma, beta, fc_weight, fc_bias, proj_weight, proj_bias];
        forward_tracked::<_, S>(tensors, args)
    }

    fn mlp_with_inputs(
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: MlpArgs,
        _: Option<Vec<usize>>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        unreachable!("autodiff uses Burn's operations for an MLP branch with tensors")
    }

    fn norm(
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: f32,
    ) -> FloatTensor<Self> {
        unreachable!("autodiff uses Burn's operations for a layer norm")
    }
}
