//! The way from Burn's tensors and tape to the host's kernels and back, by Burn's mechanism for
//! custom operations.

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
    Activation, AttentionBranch, LayerNorm, MlpBranch, ObservedMlp, Queries,
    host::{
        self,
        attention::{
            AttentionActivations, AttentionGradients, AttentionParams, AttentionShape,
            AttentionWanted,
        },
        mlp::{MlpActivations, MlpGradients, MlpParams, MlpShape, MlpWanted},
    },
};

pub fn attention_branch(x: Tensor<3>, branch: AttentionBranch, queries: &Queries) -> Tensor<3> {
    let [batch, tokens, width] = x.dims();
    let call = AttentionCall {
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
    Tensor::from_dispatch(<Dispatch as Branches>::attention(
        x.into_dispatch(),
        branch.norm.gamma.into_dispatch(),
        branch.norm.beta.into_dispatch(),
        branch.in_proj.weight.into_dispatch(),
        branch.in_proj.bias.into_dispatch(),
        branch.out_proj.weight.into_dispatch(),
        branch.out_proj.bias.into_dispatch(),
        call,
    ))
}

pub fn mlp_branch(x: Tensor<3>, branch: MlpBranch) -> Tensor<3> {
    let call = MlpCall::new(&x, &branch);
    Tensor::from_dispatch(<Dispatch as Branches>::mlp(
        x.into_dispatch(),
        branch.norm.gamma.into_dispatch(),
        branch.norm.beta.into_dispatch(),
        branch.c_fc.weight.into_dispatch(),
        branch.c_fc.bias.into_dispatch(),
        branch.c_proj.weight.into_dispatch(),
        branch.c_proj.bias.into_dispatch(),
        call,
    ))
}

pub fn observed_mlp_branch(x: Tensor<3>, branch: MlpBranch, read: &Queries) -> ObservedMlp {
    let call = MlpCall::new(&x, &branch);
    let tokens = x.dims()[1];
    let read = match read {
        Queries::All | Queries::Tree(_) => None,
        Queries::At(positions) => {
            let rows = positions.iter().enumerate().map(|(item, position)| {
                assert!(*position < tokens, "position {position} of {tokens}");
                item * tokens + position
            });
            Some(rows.collect::<Vec<_>>())
        }
    };
    let (output, normed, inner) = <Dispatch as Branches>::observed_mlp(
        x.into_dispatch(),
        branch.norm.gamma.into_dispatch(),
        branch.norm.beta.into_dispatch(),
        branch.c_fc.weight.into_dispatch(),
        branch.c_fc.bias.into_dispatch(),
        branch.c_proj.weight.into_dispatch(),
        branch.c_proj.bias.into_dispatch(),
        call,
        read,
    );
    ObservedMlp {
        output: Tensor::from_dispatch(output),
        normed: Tensor::from_dispatch(normed),
        inner: Tensor::from_dispatch(inner),
    }
}

pub fn layer_norm(x: Tensor<3>, norm: LayerNorm) -> Tensor<3> {
    let epsilon = norm.epsilon as f32;
    Tensor::from_dispatch(<Dispatch as Branches>::norm(
        x.into_dispatch(),
        norm.gamma.into_dispatch(),
        norm.beta.into_dispatch(),
        epsilon,
    ))
}

pub fn activate(x: Tensor<3>, activation: Activation) -> Tensor<3> {
    let (device, shape) = (x.device(), x.dims());
    let data = x.into_data();
    let input = match data.as_slice::<f32>() {
        Ok(input) => input,
        Err(error) => unreachable!("only tensors of f32 come here: {error}"),
    };
    let mut output = vec![0.0; input.len()];
    output
        .par_chunks_mut(SPAN)
        .zip(input.par_chunks(SPAN))
        .for_each(|(output, input)| kernel(activation).forward(input, output));
    Tensor::from_data(TensorData::new(output, shape), &device)
}

/// Values that a thread takes at once.
const SPAN: usize = 1 << 14;

fn kernel(activation: Activation) -> host::activation::Activation {
    use host::activation::Activation as Kernel;
    match activation {
        Activation::QuickGelu => Kernel::QuickGelu,
        Activation::Gelu => Kernel::Gelu,
        Activation::GeluTanh => Kernel::GeluTanh,
    }
}

/// What an attention branch is computed with besides its tensors.
#[derive(Debug, Clone)]
pub struct AttentionCall {
    shape: AttentionShape,
    queries: Arc<Queries>,
    epsilon: f32,
}

/// What an MLP branch is computed with besides its tensors.
#[derive(Debug, Clone, Copy)]
pub struct MlpCall {
    shape: MlpShape,
    activation: host::activation::Activation,
    epsilon: f32,
}

/// The operations. Tensors stand in the order input, scale, shift, first weight and bias, second
/// weight and bias.
#[backend_extension(Flex, Autodiff)]
pub trait Branches: Backend {
    #[allow(clippy::too_many_arguments)]
    fn attention(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        in_weight: FloatTensor<Self>,
        in_bias: FloatTensor<Self>,
        out_weight: FloatTensor<Self>,
        out_bias: FloatTensor<Self>,
        call: AttentionCall,
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
        call: MlpCall,
    ) -> FloatTensor<Self>;

    /// The output, of all rows or some, and the inputs of both maps.
    #[allow(clippy::too_many_arguments)]
    fn observed_mlp(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        fc_weight: FloatTensor<Self>,
        fc_bias: FloatTensor<Self>,
        proj_weight: FloatTensor<Self>,
        proj_bias: FloatTensor<Self>,
        call: MlpCall,
        read: Option<Vec<usize>>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);

    /// A layer norm by itself: input, scale, shift.
    fn norm(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        epsilon: f32,
    ) -> FloatTensor<Self>;
}

/// A tensor of the host.
type Host = FloatTensor<Flex>;

/// The values of a contiguous tensor.
fn values(tensor: &Host) -> &[f32] {
    let layout = tensor.layout();
    let start = layout.start_offset();
    &tensor.storage::<f32>()[start..start + layout.num_elements()]
}

fn tensor<const D: usize>(values: Vec<f32>, shape: [usize; D]) -> Host {
    Host::from_data(TensorData::new(values, shape))
}

/// Both branches have a norm and two maps.
struct Inputs([Host; 7]);

impl Inputs {
    fn new(tensors: [Host; 7]) -> Self {
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

    fn first(&self) -> host::LinearParams<'_> {
        self.map(3)
    }

    fn second(&self) -> host::LinearParams<'_> {
        self.map(5)
    }

    fn map(&self, at: usize) -> host::LinearParams<'_> {
        host::LinearParams {
            weight: values(&self.0[at]),
            bias: Some(values(&self.0[at + 1])),
        }
    }
}

impl AttentionCall {
    fn queries(&self) -> host::attention::Queries<'_> {
        match &*self.queries {
            Queries::All => host::attention::Queries::All,
            Queries::At(positions) => host::attention::Queries::At(positions),
            Queries::Tree(tree) => host::attention::Queries::Tree(tree.parents()),
        }
    }

    fn params<'a>(&self, inputs: &'a Inputs) -> AttentionParams<'a> {
        AttentionParams {
            norm: inputs.norm(self.epsilon),
            in_proj: inputs.first(),
            out_proj: inputs.second(),
        }
    }
}

impl Call for AttentionCall {
    type Activations = AttentionActivations;

    fn forward(&self, inputs: &Inputs, keep: bool) -> (Host, Option<AttentionActivations>) {
        let params = self.params(inputs);
        let (y, kept) = host::attention::attention_branch(
            inputs.x(),
            &params,
            self.shape,
            self.queries(),
            keep,
        );
        let tokens = match &*self.queries {
            Queries::All | Queries::Tree(_) => self.shape.tokens,
            Queries::At(_) => 1,
        };
        (
            tensor(y, [self.shape.batch, tokens, self.shape.width]),
            kept,
        )
    }

    fn backward(
        &self,
        inputs: &Inputs,
        kept: Option<&AttentionActivations>,
        dy: &Host,
        wanted: [bool; 7],
    ) -> [Option<Host>; 7] {
        let [input, gamma, beta, in_weight, in_bias, out_weight, out_bias] = wanted;
        let AttentionShape {
            batch,
            tokens,
            width,
            ..
        } = self.shape;
        let gradients: AttentionGradients = host::attention::attention_branch_backward(
            inputs.x(),
            &self.params(inputs),
            self.shape,
            self.queries(),
            kept,
            values(dy),
            AttentionWanted {
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

impl MlpCall {
    fn new(x: &Tensor<3>, branch: &MlpBranch) -> Self {
        let [batch, tokens, width] = x.dims();
        Self {
            shape: MlpShape {
                rows: batch * tokens,
                width,
                hidden: branch.c_fc.weight.dims()[1],
            },
            activation: kernel(branch.activation),
            epsilon: branch.norm.epsilon as f32,
        }
    }

    fn params<'a>(&self, inputs: &'a Inputs) -> MlpParams<'a> {
        MlpParams {
            norm: inputs.norm(self.epsilon),
            fc: inputs.first(),
            activation: self.activation,
            proj: inputs.second(),
        }
    }
}

impl Call for MlpCall {
    type Activations = MlpActivations;

    fn forward(&self, inputs: &Inputs, keep: bool) -> (Host, Option<MlpActivations>) {
        let params = self.params(inputs);
        let (y, kept) = host::mlp::mlp_branch(inputs.x(), &params, self.shape, keep);
        let shape = inputs.0[0].layout().shape().clone();
        (Host::from_data(TensorData::new(y, shape)), kept)
    }

    fn backward(
        &self,
        inputs: &Inputs,
        kept: Option<&MlpActivations>,
        dy: &Host,
        wanted: [bool; 7],
    ) -> [Option<Host>; 7] {
        let [
            input,
            gamma,
            beta,
            fc_weight,
            fc_bias,
            proj_weight,
            proj_bias,
        ] = wanted;
        let MlpShape { width, hidden, .. } = self.shape;
        let gradients: MlpGradients = host::mlp::mlp_branch_backward(
            inputs.x(),
            &self.params(inputs),
            self.shape,
            kept,
            values(dy),
            MlpWanted {
                input,
                norm: gamma || beta,
                fc_weight,
                fc_bias,
                proj_weight,
                proj_bias,
            },
        );
        let shape = inputs.0[0].layout().shape().clone();
        [
            gradients
                .input
                .map(|g| Host::from_data(TensorData::new(g, shape))),
            gradients.gamma.map(|g| tensor(g, [width])),
            gradients.beta.map(|g| tensor(g, [width])),
            gradients.fc_weight.map(|g| tensor(g, [width, hidden])),
            gradients.fc_bias.map(|g| tensor(g, [hidden])),
            gradients.proj_weight.map(|g| tensor(g, [hidden, width])),
            gradients.proj_bias.map(|g| tensor(g, [width])),
        ]
    }
}

impl Branches for Flex {
    fn attention(
        x: Host,
        gamma: Host,
        beta: Host,
        in_weight: Host,
        in_bias: Host,
        out_weight: Host,
        out_bias: Host,
        call: AttentionCall,
    ) -> Host {
        let tensors = [x, gamma, beta, in_weight, in_bias, out_weight, out_bias];
        call.forward(&Inputs::new(tensors), false).0
    }

    fn mlp(
        x: Host,
        gamma: Host,
        beta: Host,
        fc_weight: Host,
        fc_bias: Host,
        proj_weight: Host,
        proj_bias: Host,
        call: MlpCall,
    ) -> Host {
        let tensors = [x, gamma, beta, fc_weight, fc_bias, proj_weight, proj_bias];
        call.forward(&Inputs::new(tensors), false).0
    }

    fn observed_mlp(
        x: Host,
        gamma: Host,
        beta: Host,
        fc_weight: Host,
        fc_bias: Host,
        proj_weight: Host,
        proj_bias: Host,
        call: MlpCall,
        read: Option<Vec<usize>>,
    ) -> (Host, Host, Host) {
        let tensors = [x, gamma, beta, fc_weight, fc_bias, proj_weight, proj_bias];
        let inputs = Inputs::new(tensors);
        let params = call.params(&inputs);
        let seen = host::mlp::mlp_branch_observed(inputs.x(), &params, call.shape, read.as_deref());
        let [batch, tokens, width] = inputs.0[0].layout().shape().dims();
        let outputs = if read.is_some() { 1 } else { tokens };
        (
            tensor(seen.y, [batch, outputs, width]),
            tensor(seen.normal, [batch, tokens, width]),
            tensor(seen.inner, [batch, tokens, call.shape.hidden]),
        )
    }

    fn norm(x: Host, gamma: Host, beta: Host, epsilon: f32) -> Host {
        let [x, gamma, beta] = [x, gamma, beta].map(|t| t.to_contiguous());
        let params = host::LayerNormParams {
            gamma: values(&gamma),
            beta: values(&beta),
            epsilon,
        };
        let y = host::layer_norm::layer_norm(values(&x), params);
        Host::from_data(TensorData::new(y, x.layout().shape().clone()))
    }
}

/// What the tape keeps of a call.
struct Kept<C, A> {
    call: C,
    inputs: Inputs,
    activations: Option<A>,
}

/// On the tape; the clones are handles.
struct State<C, A>(Arc<Kept<C, A>>);

impl<C, A> Clone for State<C, A> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<C, A> fmt::Debug for State<C, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a transformer branch")
    }
}

/// A branch the tape can keep: both are the same to it.
trait Call: Clone + Send + Sync + 'static {
    type Activations: Send + Sync + 'static;
    fn forward(&self, inputs: &Inputs, keep: bool) -> (Host, Option<Self::Activations>);
    fn backward(
        &self,
        inputs: &Inputs,
        kept: Option<&Self::Activations>,
        dy: &Host,
        wanted: [bool; 7],
    ) -> [Option<Host>; 7];
}

struct Branch<C>(std::marker::PhantomData<C>);

impl<C> fmt::Debug for Branch<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Branch")
    }
}

impl<C: Call> Backward<Flex, 7> for Branch<C> {
    type State = State<C, C::Activations>;

    fn backward(
        self,
        ops: Ops<Self::State, 7>,
        grads: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        let dy = grads.consume::<Flex>(&ops.node).to_contiguous();
        let Kept {
            call,
            inputs,
            activations,
        } = &*ops.state.0;
        let wanted = ops.parents.each_ref().map(Option::is_some);
        let gradients = call.backward(inputs, activations.as_ref(), &dy, wanted);
        for (parent, gradient) in ops.parents.into_iter().zip(gradients) {
            if let (Some(parent), Some(gradient)) = (parent, gradient) {
                grads.register::<Flex>(parent.id, gradient);
            }
        }
    }
}

/// Computes a branch, and puts it on the tape where one of its tensors is.
fn taped<C: Call, S: CheckpointStrategy>(
    tensors: [FloatTensor<Autodiff<Flex, S>>; 7],
    call: C,
) -> FloatTensor<Autodiff<Flex, S>> {
    let nodes = tensors.each_ref().map(|t| t.node());
    let inputs = Inputs::new(tensors.map(|t| t.into_primitive()));
    // With gradient checkpointing the branch is computed again from its input.
    let keep = TypeId::of::<S>() != TypeId::of::<BalancedCheckpointing>();
    let branch = Branch::<C>(std::marker::PhantomData);
    match branch.prepare::<S>(nodes).compute_bound().stateful() {
        OpsKind::Tracked(prep) => {
            let (y, activations) = call.forward(&inputs, keep);
            let kept = Kept {
                call,
                inputs,
                activations,
            };
            prep.finish(State(Arc::new(kept)), y)
        }
        OpsKind::UnTracked(prep) => prep.finish(call.forward(&inputs, false).0),
    }
}

impl<S: CheckpointStrategy> Branches for Autodiff<Flex, S> {
    fn attention(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        in_weight: FloatTensor<Self>,
        in_bias: FloatTensor<Self>,
        out_weight: FloatTensor<Self>,
        out_bias: FloatTensor<Self>,
        call: AttentionCall,
    ) -> FloatTensor<Self> {
        let tensors = [x, gamma, beta, in_weight, in_bias, out_weight, out_bias];
        taped::<_, S>(tensors, call)
    }

    fn mlp(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        fc_weight: FloatTensor<Self>,
        fc_bias: FloatTensor<Self>,
        proj_weight: FloatTensor<Self>,
        proj_bias: FloatTensor<Self>,
        call: MlpCall,
    ) -> FloatTensor<Self> {
        let tensors = [x, gamma, beta, fc_weight, fc_bias, proj_weight, proj_bias];
        taped::<_, S>(tensors, call)
    }

    fn observed_mlp(
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: MlpCall,
        _: Option<Vec<usize>>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        unreachable!("a branch that is observed is Burn's own on the tape")
    }

    fn norm(
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: f32,
    ) -> FloatTensor<Self> {
        unreachable!("a layer norm on the tape is Burn's own")
    }
}
