//! Layers that hand their inputs to a recorder.

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

/// A layer whose inputs a [`Recorder`] sees while its model runs within [`Recorder::record`].
///
/// It stands in for the layer in a model: parameters keep their paths and ids, and records of the
/// plain model load. A model needs two changes, and its forward pass none:
///
/// ```diff
/// -    fc: Linear,
/// +    fc: Recorded<Linear>,
/// …
/// -    fc: LinearConfig::new(8, 4).init(device),
/// +    fc: LinearConfig::new(8, 4).init(device).into(),
/// ```
///
/// There are `Linear`, `Conv1d`, `Conv2d` and `Embedding`; [`Deref`] gives the layer and its fields.
/// The weight is recorded, the bias is not (see [`Recorder::bias`]). Outside of
/// [`Recorder::record`] the layer is as fast as the plain one.
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
    /// The plain layer.
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
    /// Applies the layer.
    ///
    /// # Shapes
    ///
    /// - input: `[…, d_input]`
    /// - output: `[…, d_output]`
    pub fn forward<const D: usize>(&self, input: Tensor<D>) -> Tensor<D> {
        hand_over(self.weight.id, |recorder, path| {
            recorder.linear(path, input.clone())
        });
        self.0.forward(input)
    }
}

impl Recorded<Conv1d> {
    /// Applies the layer.
    ///
    /// # Shapes
    ///
    /// - input: `[batch, channels_in, length_in]`
    /// - output: `[batch, channels_out, length_out]`
    pub fn forward(&self, input: Tensor<3>) -> Tensor<3> {
        hand_over(self.weight.id, |recorder, path| {
            recorder.conv1d(path, &self.0, input.clone())
        });
        self.0.forward(input)
    }
}

impl Recorded<Conv2d> {
    /// Applies the layer.
    ///
    /// # Shapes
    ///
    /// - input: `[batch, channels_in, height_in, width_in]`
    /// - output: `[batch, channels_out, height_out, width_out]`
    pub fn forward(&self, input: Tensor<4>) -> Tensor<4> {
        hand_over(self.weight.id, |recorder, path| {
            recorder.conv2d(path, &self.0, input.clone())
        });
        self.0.forward(input)
    }
}

impl Recorded<Embedding> {
    /// Looks tokens up.
    ///
    /// # Shapes
    ///
    /// - input: `[batch, length]`
    /// - output: `[batch, length, d_model]`
    pub fn forward(&self, input: Tensor<2, Int>) -> Tensor<3> {
        hand_over(self.weight.id, |recorder, path| {
            let [vocabulary, _] = self.weight.dims();
            recorder.embedding(path, vocabulary, input.clone())
        });
        self.0.forward(input)
    }
}

/// A recorder at work, and the first error of a layer.
struct Active {
    recorder: Recorder,
    error: Option<GnspError>,
}

thread_local! {
    /// The recorder of the forward pass that this thread is in. Burn runs a forward pass on the
    /// thread that calls it.
    static ACTIVE: RefCell<Option<Active>> = const { RefCell::new(None) };
}

/// Gives inputs to the recorder of this thread, if it wants those of this parameter.
fn hand_over(id: ParamId, record: impl FnOnce(&mut Recorder, &str) -> Result<(), GnspError>) {
    ACTIVE.with_borrow_mut(|active| {
        let Some(Active { recorder, error }) = active else {
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
    /// Give the model on the plain device (`model.valid()`), so that no tape is recorded. Layers of
    /// other modules than the recorder's are ignored. One recorder is at work on a thread at a
    /// time: within `forward`, layers hand their inputs to the innermost.
    ///
    /// # Errors
    ///
    /// The first error of a layer, as of [`linear`](Self::linear). What the other layers saw is
    /// recorded.
    ///
    /// # Panics
    ///
    /// Where `forward` panics; the recorder keeps what it has seen.
    pub fn record<T>(&mut self, forward: impl FnOnce() -> T) -> Result<T, GnspError> {
        /// Ends the recording when it is dropped, after a panic too.
        struct Guard<'a> {
            recorder: &'a mut Recorder,
            error: &'a mut Option<GnspError>,
            outer: Option<Active>,
        }
        impl Drop for Guard<'_> {
            fn drop(&mut self) {
                if let Some(active) = ACTIVE.replace(self.outer.take()) {
                    *self.recorder = active.recorder;
                    *self.error = active.error;
                }
            }
        }

        let idle = Self::new(self.policy(), Default::default());
        let active = Active {
            recorder: std::mem::replace(self, idle),
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

// Written out: the derived implementation would put a name of its own into the paths.
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
    struct Watched {
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

    fn watched(plain: Plain) -> Watched {
        Watched {
            table: plain.table.into(),
            wave: plain.wave.into(),
            image: plain.image.into(),
            head: plain.head.into(),
        }
    }

    impl Watched {
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
        let copy = watched(self::plain()).load_record(plain.clone().into_record());
        let original = watched(plain.clone());
        let answers = |net: &Watched| values(net.forward(tokens()));
        assert_eq!(answers(&copy), answers(&original));
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
    fn what_is_recorded_is_what_is_given_by_hand() {
        let net = watched(plain());
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
    fn errors_and_panics_leave_the_recorder_with_what_it_has() {
        let net = watched(plain());
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
        // Nobody listens outside.
        head(2.0);
        let mut once = memory.recorder(&net);
        once.record(|| head(1.0)).unwrap();
        assert_eq!(recorder.finish().unwrap(), once.finish().unwrap());
    }

    #[test]
    fn an_inner_recorder_hears_its_own_model_and_the_outer_one_goes_on() {
        let (net, other) = (watched(plain()), watched(plain()));
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
