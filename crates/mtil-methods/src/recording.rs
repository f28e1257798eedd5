//! Recording of the layer inputs of an image tower into a [`Recorder`].

use burn::{
    module::{ParamGroup, ParamId},
    tensor::Tensor,
};
use clip_model::Observer;
use gnsp_optimizer::{GnspError, Recorder};

/// Observer of a tower that passes layer inputs to a recorder. It keeps the first error until
/// [`check`](Self::check) returns it.
///
/// ```no_run
/// use burn::tensor::Tensor;
/// use clip_model::ClipModel;
/// use gnsp_optimizer::{GnspError, Memory, Policy};
/// use mtil_methods::recording::InputRecorder;
///
/// # fn example(model: &ClipModel, pixels: Tensor<4>) -> Result<(), GnspError> {
/// let mut memory = Memory::new(Policy::gnsp());
/// let mut inputs = InputRecorder::new(memory.recorder(model));
/// model.encode_image_observed(pixels, &mut inputs);
/// memory.absorb(inputs.finish()?)?;
/// # Ok(())
/// # }
/// ```
pub struct InputRecorder {
    recorder: Recorder,
    all_tokens: bool,
    wanted: Option<Vec<ParamGroup>>,
    failed: Option<GnspError>,
}

impl InputRecorder {
    /// Records the inputs of every linear layer.
    pub fn new(recorder: Recorder) -> Self {
        Self {
            recorder,
            all_tokens: false,
            wanted: None,
            failed: None,
        }
    }

    /// Also records all tokens of the last block, not its class token alone.
    pub fn with_all_tokens(mut self, all: bool) -> Self {
        self.all_tokens = all;
        self
    }

    /// Records only parameters whose path matches one of `patterns` (regular expressions).
    pub fn only(mut self, patterns: &[String]) -> Self {
        let groups = patterns.iter().map(ParamGroup::from_regex);
        self.wanted = Some(groups.filter_map(Result::ok).collect());
        self
    }

    /// Checks for an error since the last call.
    ///
    /// # Errors
    /// The first [`GnspError`] since the last call.
    pub fn check(&mut self) -> Result<(), GnspError> {
        self.failed.take().map_or(Ok(()), Err)
    }

    /// Returns the recorder with all recorded inputs.
    ///
    /// # Errors
    /// The first [`GnspError`] that [`check`](Self::check) has not returned yet.
    pub fn finish(mut self) -> Result<Recorder, GnspError> {
        self.check()?;
        Ok(self.recorder)
    }
}

impl Observer for InputRecorder {
    fn wants_all_tokens(&self) -> bool {
        self.all_tokens
    }

    fn linear_input(&mut self, parameter: &str, rows: Tensor<2>) {
        let id = ParamId::from(0);
        if let Some(wanted) = &self.wanted
            && !wanted.iter().any(|g| g.matches(&id, Some(parameter)))
        {
            return;
        }
        if let Err(error) = self.recorder.linear(parameter, rows) {
            self.failed.get_or_insert(error);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::module::{Module, Param};
    use burn::tensor::Device;
    use gnsp_optimizer::{Memory, Policy};

    #[derive(Module, Debug)]
    struct Pair {
        image: Param<Tensor<2>>,
        text: Param<Tensor<2>>,
    }

    #[test]
    fn records_what_is_wanted_and_keeps_the_first_error() {
        let matrix = |rows, value: f32| Tensor::<2>::full([rows, 3], value, &Device::flex());
        let model = Pair {
            image: Param::from_tensor(matrix(3, 0.0)),
            text: Param::from_tensor(matrix(3, 0.0)),
        };
        let rows = |value| matrix(2, value);
        let mut memory = Memory::new(Policy::gnsp());
        let recorder = memory.recorder(&model);
        let mut wanted = InputRecorder::new(recorder.clone()).only(&["^image$".to_owned()]);
        wanted.linear_input("image", rows(1.0));
        wanted.linear_input("text", rows(f32::NAN));
        memory.absorb(wanted.finish().unwrap()).unwrap();
        assert_eq!(memory.paths().collect::<Vec<_>>(), ["image"]);

        let mut all = InputRecorder::new(recorder);
        all.linear_input("image", rows(f32::NAN));
        all.linear_input("text", rows(f32::NAN));
        let error = all.check().unwrap_err().to_string();
        assert!(error.contains("image"), "{error}");
        assert!(all.finish().is_ok(), "the error was asked for");
    }
}
