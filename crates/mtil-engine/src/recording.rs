//! What the layers of an image tower see, into a [`Recorder`].

use burn::{
    module::{ParamGroup, ParamId},
    tensor::Tensor,
};
use clip_model::Observer;
use gnsp_optimizer::{RecordError, Recorder};

/// Hands what a tower shows to a recorder, and keeps the first error until it is asked for.
pub struct InputRecorder {
    recorder: Recorder,
    all_tokens: bool,
    wanted: Option<Vec<ParamGroup>>,
    failed: Option<RecordError>,
}

impl InputRecorder {
    /// Records the inputs of every layer that is shown.
    pub fn new(recorder: Recorder) -> Self {
        Self {
            recorder,
            all_tokens: false,
            wanted: None,
            failed: None,
        }
    }

    /// With all tokens of the last block too, not its class token alone.
    pub fn with_all_tokens(mut self, all: bool) -> Self {
        self.all_tokens = all;
        self
    }

    /// Only parameters whose path one of `patterns` (regular expressions) matches.
    pub fn only(mut self, patterns: &[String]) -> Self {
        let groups = patterns.iter().map(ParamGroup::from_regex);
        self.wanted = Some(groups.filter_map(Result::ok).collect());
        self
    }

    /// # Errors
    /// The first [`RecordError`] since the last call.
    pub fn check(&mut self) -> Result<(), RecordError> {
        self.failed.take().map_or(Ok(()), Err)
    }

    /// The recorder, with everything that was shown.
    ///
    /// # Errors
    /// The first [`RecordError`] that was not asked for yet.
    pub fn finish(mut self) -> Result<Recorder, RecordError> {
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
    use burn::tensor::Device;
    use gnsp_optimizer::Policy;

    #[test]
    fn records_what_is_wanted_and_keeps_the_first_error() {
        let rows = |value: f32| Tensor::<2>::full([2, 3], value, &Device::flex());
        let recorder = || Recorder::new(&Policy::gnsp());
        let mut wanted = InputRecorder::new(recorder()).only(&["^visual\\.proj$".to_owned()]);
        wanted.linear_input("visual.proj", rows(1.0));
        wanted.linear_input("text.proj", rows(f32::NAN));
        let mut memory = gnsp_optimizer::Memory::new();
        memory.absorb(wanted.finish().unwrap()).unwrap();
        assert_eq!(memory.paths().collect::<Vec<_>>(), ["visual.proj"]);

        let mut all = InputRecorder::new(recorder());
        all.linear_input("first", rows(f32::NAN));
        all.linear_input("second", rows(f32::NAN));
        let error = all.check().unwrap_err().to_string();
        assert!(error.contains("first"), "{error}");
        assert!(all.finish().is_ok(), "the error was asked for");
    }
}
