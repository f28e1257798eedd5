//! Layer wrapper that passes its inputs to the active recorder.

use std::cell::RefCell;
use std::ops::Deref;

use burn::module::{
    Content, Devices, DisplaySettings, Module, ModuleDisplay, ModuleDisplayDefault, ModuleMapper,
    ModuleVisitor, ParamId,
};
use burn::nn::conv::{Conv1d, Conv2d};
use burn::nn::{Embedding, Linear};
use burn::tensor::{Device, Int, Tensor};

use crate::{GnspError, Recorder};

/// Layer whose inputs are recorded while its model runs within [`Recorder::record`].
///
/// It replaces the layer in a model: parameters keep their paths and ids, and records of the plain
/// model load. The forward pass of the model does not change:
///
/// ```diff
/// -    fc: Linear,
/// +    fc: Recorded<Linear>,
/// …
/// -    fc: LinearConfig::new(8, 4).init(device),
/// +    fc: LinearConfig::new(8, 4).init(device).into(),
/// ```
///
/// `Linear`, `Conv1d`, `Conv2d` and `Embedding` have a forward pass. [`Deref`] gives access to the
/// layer and its fields. The inputs of the weight are recorded; biases are not, see
/// [`Recorder::bias`]. Outside [`Recorder::record`] the layer is as fast as the plain one.
///
/// # Example
///
/// ```
/// use burn::module::Module;
/// use burn::nn::{Linear, LinearConfig};
/// use burn::tensor::{Device, Distribution, Tensor};
/// use gnsp_optimizer::{Memory, Policy, Recorded};
///
/// #[derive(Module, Debug)]
/// struct Net {
///     first: Recorded<Linear>,
///     second: Recorded<Linear>,
/// }
///
/// impl Net {
///     fn forward(&self, x: Tensor<2>) -> Tensor<2> {
///         self.second.forward(self.first.forward(x).tanh())
///     }
/// }
///
/// let device = Device::default();
/// let model = Net {
///     first: LinearConfig::new(8, 6).init(&device).into(),
///     second: LinearConfig::new(6, 4).init(&device).into(),
/// };
/// let mut memory = Memory::new(Policy::gnsp_update());
/// let mut recorder = memory.recorder(&model);
/// for _ in 0..3 {
///     let batch = Tensor::<2>::random([16, 8], Distribution::Default, &device);
///     recorder.record(|| model.forward(batch))?;
/// }
/// memory.absorb(recorder)?;
/// assert_eq!(memory.paths().collect::<Vec<_>>(), ["first.weight", "second.weight"]);
/// # Ok::<(), gnsp_optimizer::GnspError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Recorded<L>(L);

impl<L> Recorded<L> {
    /// Returns the plain layer.
    pub fn into_inner(self) -> L {
        self.0
    }
}

impl<L> From<L> for Recorded<L> {
    fn from(layer: L) -> Self {
        Self(layer)
    }
}

impl<L> Deref for Recorded<L> {
    type Target = L;

    fn deref(&self) -> &L {
        &self.0
    }
}

impl Recorded<Linear> {
    /// Applies the layer, and records its input within [`Recorder::record`].
    ///
    /// # Shapes
    ///
    /// - input: `[…, d_input]`
    /// - output: `[…, d_output]`
    pub fn forward<const D: usize>(&self, input: Tensor<D>) -> Tensor<D> {
        record_input(self.weight.id, |recorder, path| {
            recorder.linear(path, input.clone())
        });
        self.0.forward(input)
    }
}

impl Recorded<Conv1d> {
    /// Applies the layer, and records its input within [`Recorder::record`].
    ///
    /// # Shapes
    ///
    /// - input: `[batch, channels_in, length_in]`
    /// - output: `[batch, channels_out, length_out]`
    pub fn forward(&self, input: Tensor<3>) -> Tensor<3> {
        record_input(self.weight.id, |recorder, path| {
            recorder.conv1d(path, &self.0, input.clone())
        });
        self.0.forward(input)
    }
}

impl Recorded<Conv2d> {
    /// Applies the layer, and records its input within [`Recorder::record`].
    ///
    /// # Shapes
    ///
    /// - input: `[batch, channels_in, height_in, width_in]`
    /// - output: `[batch, channels_out, height_out, width_out]`
    pub fn forward(&self, input: Tensor<4>) -> Tensor<4> {
        record_input(self.weight.id, |recorder, path| {
            recorder.conv2d(path, &self.0, input.clone())
        });
        self.0.forward(input)
    }
}

impl Recorded<Embedding> {
    /// Looks up the embeddings of tokens, and records the tokens within [`Recorder::record`].
    ///
    /// # Shapes
    ///
    /// - input: `[batch, length]`
    /// - output: `[batch, length, d_model]`
    pub fn forward(&self, input: Tensor<2, Int>) -> Tensor<3> {
        record_input(self.weight.id, |recorder, path| {
            let [vocabulary, _] = self.weight.dims();
            recorder.embedding(path, vocabulary, input.clone())
        });
        self.0.forward(input)
    }
}

/// The recorder of a forward pass, and the first error of a layer.
struct ActiveRecorder {
    recorder: Recorder,
    error: Option<GnspError>,
}

thread_local! {
    /// The recorder of this thread's current forward pass. Burn runs a forward pass on the calling
    /// thread.
    static ACTIVE: RefCell<Option<ActiveRecorder>> = const { RefCell::new(None) };
}

/// Passes inputs to the active recorder of this thread, if it records this parameter.
fn record_input(id: ParamId, record: impl FnOnce(&mut Recorder, &str) -> Result<(), GnspError>) {
    ACTIVE.with_borrow_mut(|active| {
        let Some(ActiveRecorder { recorder, error }) = active else {
            return;
        };
        let Some(path) = recorder.path(id) else {
            return;
        };
        if let Err(new) = record(recorder, &path) {
            error.get_or_insert(new);
        }
    });
}

impl Recorder {
    /// Runs a forward pass and records the inputs of the model's [`Recorded`] layers.
    ///
    /// Use the model on the inner device (`model.valid()`), so that nothing is recorded on the
    /// autodiff tape. Layers of modules other than the recorder's are ignored. If calls are nested,
    /// layers pass their inputs to the innermost recorder.
    ///
    /// # Errors
    ///
    /// Returns the first error of a layer, see [`linear`](Self::linear). The inputs of the other
    /// layers are recorded.
    ///
    /// # Panics
    ///
    /// Panics if `forward` panics. The recorder keeps the inputs recorded until then.
    pub fn record<T>(&mut self, forward: impl FnOnce() -> T) -> Result<T, GnspError> {
        /// Deactivates the recorder on drop, also after a panic.
        struct Guard<'a> {
            recorder: &'a mut Recorder,
            error: &'a mut Option<GnspError>,
            outer: Option<ActiveRecorder>,
        }
        impl Drop for Guard<'_> {
            fn drop(&mut self) {
                if let Some(active) = ACTIVE.replace(self.outer.take()) {
                    *self.recorder = active.recorder;
                    *self.error = active.error;
                }
            }
        }

        // The thread-local slot owns the recorder during the pass; a placeholder stays behind.
        let placeholder = Self::new(self.policy(), Default::default());
        let active = ActiveRecorder {
            recorder: std::mem::replace(self, placeholder),
            error: None,
        };
        let mut error = None;
        let guard = Guard {
            recorder: self,
            error: &mut error,
            outer: ACTIVE.replace(Some(active)),
        };
        let output = forward();
        drop(guard);
        match error {
            Some(error) => Err(error),
            None => Ok(output),
        }
    }
}

// Not derived: the derived implementation adds a component to the parameter paths.
impl<L: Module> Module for Recorded<L> {
    fn collect_devices(&self, devices: Devices) -> Devices {
        self.0.collect_devices(devices)
    }

    fn fork(self, device: &Device) -> Self {
        Self(self.0.fork(device))
    }

    fn to_device(self, device: &Device) -> Self {
        Self(self.0.to_device(device))
    }

    fn train(self) -> Self {
        Self(self.0.train())
    }

    fn valid(&self) -> Self {
        Self(self.0.valid())
    }

    fn materialize(self) -> Self {
        Self(self.0.materialize())
    }

    fn visit<V: ModuleVisitor>(&self, visitor: &mut V) {
        self.0.visit(visitor);
    }

    fn map<M: ModuleMapper>(self, mapper: &mut M) -> Self {
        Self(self.0.map(mapper))
    }
}

impl<L: Module + ModuleDisplay> ModuleDisplayDefault for Recorded<L> {
    fn content(&self, content: Content) -> Option<Content> {
        ModuleDisplayDefault::content(&self.0, content)
    }

    fn num_params(&self) -> usize {
        Module::num_params(&self.0)
    }
}

impl<L: Module + ModuleDisplay> ModuleDisplay for Recorded<L> {
    fn format(&self, settings: DisplaySettings) -> String {
        self.0.format(settings)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_utils::*;
    use crate::{Memory, Policy};
    use burn::nn::conv::{Conv1dConfig, Conv2dConfig};
    use burn::nn::{EmbeddingConfig, LinearConfig};

    #[derive(Module, Debug)]
    struct Plain {
        table: Embedding,
        wave: Conv1d,
        image: Conv2d,
        head: Linear,
    }

    #[derive(Module, Debug)]
    struct WithRecorded {
        table: Recorded<Embedding>,
        wave: Recorded<Conv1d>,
        image: Recorded<Conv2d>,
        head: Recorded<Linear>,
    }

    fn plain() -> Plain {
        let device = device();
        Plain {
            table: EmbeddingConfig::new(5, 4).init(&device),
            wave: Conv1dConfig::new(4, 4, 3).init(&device),
            image: Conv2dConfig::new([1, 2], [2, 2]).init(&device),
            head: LinearConfig::new(3, 2).init(&device),
        }
    }

    fn with_recorded(plain: Plain) -> WithRecorded {
        WithRecorded {
            table: plain.table.into(),
            wave: plain.wave.into(),
            image: plain.image.into(),
            head: plain.head.into(),
        }
    }

    impl WithRecorded {
        fn forward(&self, tokens: Tensor<2, Int>) -> Tensor<4> {
            let x = self.table.forward(tokens).swap_dims(1, 2);
            let x = self.wave.forward(x).unsqueeze_dim(1);
            self.head.forward(self.image.forward(x))
        }
    }

    fn tokens() -> Tensor<2, Int> {
        Tensor::from_ints([[0, 1, 2, 3, 4, 0], [4, 4, 1, 0, 2, 3]], &device())
    }

    #[test]
    fn paths_and_records_are_those_of_the_plain_model() {
        let plain = plain();
        let copy = with_recorded(self::plain()).load_record(plain.clone().into_record());
        let original = with_recorded(plain.clone());
        let outputs = |net: &WithRecorded| values(net.forward(tokens()));
        assert_eq!(outputs(&copy), outputs(&original));
        let memory = Memory::new(Policy::gnsp());
        let mut recorder = memory.recorder(&original);
        recorder.record(|| original.forward(tokens())).unwrap();
        let paths: Vec<&str> = recorder.paths().collect();
        assert_eq!(
            paths,
            ["head.weight", "image.weight", "table.weight", "wave.weight"]
        );
        // The memory protects the plain model: the paths are the same.
        let mut memory = memory;
        memory.absorb(recorder).unwrap();
        assert_eq!(memory.protection(&plain).unwrap().iter().count(), 4);
    }

    #[test]
    fn recorded_layers_match_explicit_calls() {
        let net = with_recorded(plain());
        let memory = Memory::new(Policy::gnsp());
        let mut seen = memory.recorder(&net);
        seen.record(|| net.forward(tokens())).unwrap();
        let mut given = memory.recorder(&net);
        given.embedding("table.weight", 5, tokens()).unwrap();
        let x = net.table.forward(tokens()).swap_dims(1, 2);
        given.conv1d("wave.weight", &*net.wave, x.clone()).unwrap();
        let x = net.wave.forward(x).unsqueeze_dim(1);
        given
            .conv2d("image.weight", &*net.image, x.clone())
            .unwrap();
        let x = net.image.forward(x);
        given.linear("head.weight", x).unwrap();
        assert_eq!(seen.finish().unwrap(), given.finish().unwrap());
    }

    #[test]
    fn errors_and_panics_keep_earlier_records() {
        let net = with_recorded(plain());
        let memory = Memory::new(Policy::gnsp());
        let mut recorder = memory.recorder(&net);
        let head = |value: f32| {
            net.head
                .forward(Tensor::<2>::full([2, 3], value, &device()))
        };
        recorder.record(|| head(1.0)).unwrap();
        let error = recorder.record(|| (head(f32::NAN), head(f32::INFINITY)));
        assert_eq!(
            error.unwrap_err().to_string(),
            "parameter `head.weight`: the Gram matrix is not finite"
        );
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            recorder.record(|| panic!("in the model"))
        }));
        assert!(panicked.is_err());
        // Not recorded: no recorder is active.
        head(2.0);
        let mut once = memory.recorder(&net);
        once.record(|| head(1.0)).unwrap();
        assert_eq!(recorder.finish().unwrap(), once.finish().unwrap());
    }

    #[test]
    fn nested_recorders_record_their_own_models() {
        let (net, other) = (with_recorded(plain()), with_recorded(plain()));
        let memory = Memory::new(Policy::gnsp());
        let (mut outer, mut inner) = (memory.recorder(&net), memory.recorder(&other));
        let x = random(2, 3, 1.0, 1);
        outer
            .record(|| {
                inner.record(|| other.head.forward(x.clone())).unwrap();
                net.head.forward(x.clone())
            })
            .unwrap();
        let (outer, inner) = (outer.finish().unwrap(), inner.finish().unwrap());
        assert_eq!(outer["head.weight"], inner["head.weight"]);
        assert_eq!((outer.len(), inner.len()), (1, 1));
    }
}
