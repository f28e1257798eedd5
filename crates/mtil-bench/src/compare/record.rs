//! Measurements of a device comparison as data: the source of tables and pages.
//!
//! # File format
//!
//! The file is a [`Comparison`] as JSON. Times are in seconds, memory in bytes, enums in kebab
//! case. It holds the duration of every repetition, so that medians, ranges and ratios can be
//! recomputed. New fields may be added; a change of meaning increments `format`.

use std::collections::HashSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use mtil_data::files::write_atomically;

/// File format of this version.
pub const FORMAT: u32 = 1;

/// Device whose speed and results all others are compared with.
pub const REFERENCE: &str = "flex";

/// An error in reading or writing a comparison.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The file cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The error of the operating system.
        source: std::io::Error,
    },
    /// Not the JSON of a comparison.
    #[error("this is not a comparison of devices: {0}")]
    Json(#[from] serde_json::Error),
    /// The file has another format.
    #[error("the comparison has format {found}, this version reads {FORMAT}; measure again")]
    Format {
        /// The number in the file.
        found: u32,
    },
    /// A value is impossible, or values contradict each other.
    #[error("the comparison is invalid: {0}")]
    Invalid(String),
}

/// Model size, ordered by cost.
///
/// ```
/// use mtil_bench::compare::Size;
///
/// assert_eq!("ViT-B/16".parse(), Ok(Size::VitB16));
/// assert_eq!(Size::VitB16.word(), "vit-b-16");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Size {
    /// A CLIP of a few layers, for small machines and quick checks.
    #[serde(rename = "tiny")]
    Tiny,
    /// CLIP ViT-B/32.
    #[serde(rename = "vit-b-32")]
    VitB32,
    /// CLIP ViT-B/16.
    #[serde(rename = "vit-b-16")]
    VitB16,
    /// CLIP ViT-L/14.
    #[serde(rename = "vit-l-14")]
    VitL14,
}

impl Size {
    /// All sizes, the cheapest first.
    pub const ALL: [Self; 4] = [Self::Tiny, Self::VitB32, Self::VitB16, Self::VitL14];

    /// Returns the name in files and on the command line.
    pub fn word(self) -> &'static str {
        match self {
            Self::Tiny => "tiny",
            Self::VitB32 => "vit-b-32",
            Self::VitB16 => "vit-b-16",
            Self::VitL14 => "vit-l-14",
        }
    }
}

/// Formats the display name: `ViT-B/32`.
impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Tiny => "tiny",
            Self::VitB32 => "ViT-B/32",
            Self::VitB16 => "ViT-B/16",
            Self::VitL14 => "ViT-L/14",
        })
    }
}

impl FromStr for Size {
    type Err = UnknownSize;

    fn from_str(text: &str) -> Result<Self, UnknownSize> {
        let word = text.to_ascii_lowercase().replace('/', "-");
        let found = Self::ALL.into_iter().find(|size| size.word() == word);
        found.ok_or_else(|| UnknownSize(text.to_owned()))
    }
}

/// An unknown model size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "there is no size `{0}`: known are {known}",
    known = Size::ALL.map(Size::word).join(", ")
)]
pub struct UnknownSize(pub String);

/// A timed workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Workload {
    /// Encoding of images without gradients.
    ImageEncoding,
    /// Encoding of class prompts without gradients.
    TextEncoding,
    /// A training step of GNSP: forward and backward pass on task and reference images, losses,
    /// projected optimizer step.
    TrainingStep,
    /// Accumulation of the Gram matrices of the layers' inputs over images.
    GramAccumulation,
    /// Computation of the projectors onto the null spaces of all Gram matrices.
    ProjectorBuild,
    /// The optimizer step with projection, from given gradients.
    ProjectedStep,
    /// Evaluation of a test set: prompts, images, logits.
    Evaluation,
}

impl Workload {
    /// All workloads in display order.
    pub const ALL: [Self; 7] = [
        Self::ImageEncoding,
        Self::TextEncoding,
        Self::TrainingStep,
        Self::GramAccumulation,
        Self::ProjectorBuild,
        Self::ProjectedStep,
        Self::Evaluation,
    ];

    /// Returns the name in files and on the command line.
    pub fn word(self) -> &'static str {
        match self {
            Self::ImageEncoding => "image-encoding",
            Self::TextEncoding => "text-encoding",
            Self::TrainingStep => "training-step",
            Self::GramAccumulation => "gram-accumulation",
            Self::ProjectorBuild => "projector-build",
            Self::ProjectedStep => "projected-step",
            Self::Evaluation => "evaluation",
        }
    }

    /// Returns a description in one sentence.
    pub fn about(self) -> &'static str {
        match self {
            Self::ImageEncoding => "Encoding of images, without gradients.",
            Self::TextEncoding => "Encoding of class prompts, without gradients.",
            Self::TrainingStep => "A training step of GNSP on task and reference images.",
            Self::GramAccumulation => {
                "Once per task: encoding of images while accumulating the Gram matrices."
            }
            Self::ProjectorBuild => {
                "Once per task: computation of the projectors from all Gram matrices."
            }
            Self::ProjectedStep => "The optimizer step with projection, a part of a training step.",
            Self::Evaluation => "Evaluation of a test set: prompts, images, logits.",
        }
    }

    /// Returns the unit of its speed.
    pub fn unit(self) -> Unit {
        match self {
            Self::ImageEncoding | Self::GramAccumulation | Self::Evaluation => {
                Unit::ImagesPerSecond
            }
            Self::TextEncoding => Unit::PromptsPerSecond,
            Self::TrainingStep | Self::ProjectedStep => Unit::StepsPerSecond,
            Self::ProjectorBuild => Unit::Seconds,
        }
    }
}

/// Formats the display name in lower case: `image encoding`.
impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::ImageEncoding => "image encoding",
            Self::TextEncoding => "text encoding",
            Self::TrainingStep => "training step",
            Self::GramAccumulation => "Gram accumulation",
            Self::ProjectorBuild => "projector build",
            Self::ProjectedStep => "projected step",
            Self::Evaluation => "evaluation",
        })
    }
}

/// Unit of a speed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Images per second.
    ImagesPerSecond,
    /// Prompts per second.
    PromptsPerSecond,
    /// Steps per second.
    StepsPerSecond,
    /// Total seconds, for a workload that runs once per task.
    Seconds,
}

impl Unit {
    /// Returns whether a larger number is better.
    pub fn more_is_better(self) -> bool {
        self != Self::Seconds
    }
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::ImagesPerSecond => "images/s",
            Self::PromptsPerSecond => "prompts/s",
            Self::StepsPerSecond => "steps/s",
            Self::Seconds => "seconds",
        })
    }
}

/// All measurements of a call of `device compare`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// [`FORMAT`] of the version that wrote the file.
    pub format: u32,
    /// Machine, date and settings.
    pub facts: Facts,
    /// The devices in display order, including unusable ones.
    pub devices: Vec<DeviceFacts>,
    /// At most one for each device, size and workload; only requested ones.
    pub measurements: Vec<Measurement>,
    /// Training runs replayed on a second device.
    pub replays: Vec<Replay>,
}

/// Machine, date and settings of a comparison.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Facts {
    /// Name of the processor.
    pub cpu: String,
    /// Logical processors available to the process.
    pub processors: usize,
    /// Library of matrix products on the CPU; empty in files of earlier versions.
    #[serde(default)]
    pub products: String,
    /// Memory of the machine, if the operating system reports it.
    pub memory_bytes: Option<u64>,
    /// Operating system and architecture.
    pub system: String,
    /// Version of the program.
    pub version: String,
    /// Commit of the build, if the environment variable `MTIL_BENCH_COMMIT` named it.
    pub commit: Option<String>,
    /// Start of the measurements, ISO 8601.
    pub date: String,
    /// Seed of weights, images and prompts.
    pub seed: u64,
    /// Requested repetitions; the time limit may reduce them.
    pub repetitions: usize,
    /// Time limit of a measurement, if any.
    pub limit_seconds: Option<f64>,
    /// Largest [`Figures::difference`] that counts as equal.
    pub tolerance: f64,
    /// Batch sizes of each model size.
    pub batches: Vec<Batches>,
}

/// Batch sizes of the workloads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Batches {
    /// Model size.
    pub size: Size,
    /// Images per batch, with and without gradients.
    pub images: usize,
    /// Reference images of a training step, in addition to `images`.
    pub reference_images: usize,
    /// Class prompts per batch.
    pub prompts: usize,
    /// Images in the test set of the evaluation.
    pub test_images: usize,
}

/// Properties of a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceFacts {
    /// The value of `--device`.
    pub word: String,
    /// Name of the hardware; empty if unknown.
    pub name: String,
    /// Number format of weights and activations: `f32`, `f16`, `bf16`.
    pub precision: String,
    /// Memory of the device, if known; the machine's is in [`Facts`].
    pub memory_bytes: Option<u64>,
    /// Usability on this machine.
    pub state: DeviceState,
}

/// Usability of a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeviceState {
    /// The device works.
    Usable,
    /// The backend is compiled in but does not work on this machine.
    Unusable {
        /// The reason, and a hint.
        reason: String,
    },
    /// The backend is not in this build.
    NotCompiledIn {
        /// The cargo feature that adds it.
        feature: String,
    },
}

/// Measurement of a workload of a model size on a device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Measurement {
    /// [`DeviceFacts::word`].
    pub device: String,
    /// Model size.
    pub size: Size,
    /// The workload.
    pub work: Workload,
    /// The figures, or why there are none.
    pub outcome: Outcome,
}

/// Outcome of a measurement.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// The workload was measured.
    Measured(Figures),
    /// There are no figures, for this reason.
    Missing(Missing),
}

/// The figures of a measurement.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// Items (images, prompts, steps) per repetition; 1 for [`Unit::Seconds`].
    pub items: u64,
    /// Duration of each repetition after the first call, in seconds. At least one.
    pub seconds: Vec<f64>,
    /// Duration of the first call, which compiles and tunes kernels, in seconds.
    pub first_seconds: Option<f64>,
    /// Peak resident memory of the process at the end of this workload, in bytes. Workloads run in
    /// the order of their memory need.
    pub host_bytes: Option<u64>,
    /// Device memory reserved at the end of this workload, in bytes, if known.
    pub device_bytes: Option<u64>,
    /// `max |a - b| / max |b|` over the results, where b are those of [`REFERENCE`] in f32; `None`
    /// if there are none.
    pub difference: Option<f64>,
}

/// Reason why there are no figures.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Missing {
    /// The memory did not suffice.
    OutOfMemory {
        /// Estimated memory need in bytes, if known.
        needed_bytes: Option<u64>,
        /// Available memory in bytes, if known.
        available_bytes: Option<u64>,
        /// The option that reduces the need: `--batch 16`.
        lowered_by: Option<String>,
    },
    /// A result was NaN or infinite.
    NotFinite {
        /// Description of the results: `image embeddings`.
        what: String,
    },
    /// The workload exceeded the time limit.
    TimeLimit {
        /// The limit in seconds.
        seconds: f64,
    },
    /// Any other failure.
    Failed {
        /// The message of the backend or the worker process.
        reason: String,
    },
}

/// Minimum, median and maximum of several values.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Range {
    /// Minimum.
    pub low: f64,
    /// Median; the mean of the middle two for an even number of values.
    pub median: f64,
    /// Maximum.
    pub high: f64,
}

impl Range {
    /// Returns the range of the values, `None` if there are none.
    fn of(values: impl Iterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = values.collect();
        sorted.sort_by(f64::total_cmp);
        let (low, high) = (*sorted.first()?, *sorted.last()?);
        let n = sorted.len();
        let median = (sorted[(n - 1) / 2] + sorted[n / 2]) / 2.0;
        Some(Self { low, median, high })
    }

    /// Returns whether the two ranges overlap.
    fn overlaps(&self, other: &Self) -> bool {
        self.low <= other.high && other.low <= self.high
    }
}

impl Figures {
    /// Returns the duration of a repetition in seconds. `None` only if there is no repetition,
    /// which [`Comparison::check`] refuses.
    pub fn duration(&self) -> Option<Range> {
        Range::of(self.seconds.iter().copied())
    }

    /// Returns the items per second.
    pub fn rate(&self) -> Option<Range> {
        let Range { low, median, high } = self.duration()?;
        let rate = |seconds: f64| self.items as f64 / seconds;
        // The rate at the median duration, not the median of rates, so that the two agree.
        Some(Range {
            low: rate(high),
            median: rate(median),
            high: rate(low),
        })
    }
}

impl Measurement {
    /// Returns the figures, `None` if it was not measured.
    pub fn figures(&self) -> Option<&Figures> {
        match &self.outcome {
            Outcome::Measured(figures) => Some(figures),
            Outcome::Missing(_) => None,
        }
    }

    /// Returns why there are no figures, `None` if it was measured.
    pub fn missing(&self) -> Option<&Missing> {
        match &self.outcome {
            Outcome::Measured(_) => None,
            Outcome::Missing(missing) => Some(missing),
        }
    }

    /// Returns the speed in the [`Unit`] of the workload.
    pub fn speed(&self) -> Option<Range> {
        match self.work.unit() {
            Unit::Seconds => self.figures()?.duration(),
            _ => self.figures()?.rate(),
        }
    }
}

/// A training run on one device, replayed on another.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Replay {
    /// The device of the original run.
    pub recorded_on: String,
    /// The device of the replay.
    pub replayed_on: String,
    /// Model size.
    pub size: Size,
    /// Training steps of the run.
    pub updates: usize,
    /// Number of training steps compared, from the first. Rounding makes any two runs diverge
    /// eventually.
    pub compared: usize,
    /// Result of the comparison.
    pub outcome: ReplayOutcome,
}

/// Outcome of a replay.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReplayOutcome {
    /// The losses were compared.
    Compared {
        /// Largest `|a - b| / |b|` of the losses of a step, where b is the recorded one.
        difference: f64,
        /// Largest difference that counts as agreement.
        tolerance: f64,
    },
    /// The losses were not compared, for this reason.
    Missing(Missing),
}

impl Replay {
    /// Returns whether the losses agreed, `None` if they were not compared.
    pub fn agreed(&self) -> Option<bool> {
        match self.outcome {
            ReplayOutcome::Compared {
                difference,
                tolerance,
            } => Some(difference <= tolerance),
            ReplayOutcome::Missing(_) => None,
        }
    }
}

/// The fastest device for a workload.
#[derive(Debug, Clone, PartialEq)]
pub struct Best<'a> {
    /// Its measurement.
    pub measurement: &'a Measurement,
    /// Speed relative to [`REFERENCE`]; `None` if that is missing or the fastest.
    pub times_reference: Option<f64>,
    /// Other devices whose range of durations overlaps that of the fastest device.
    pub close: Vec<&'a str>,
    /// True if more than one device was measured.
    pub contested: bool,
}

impl Comparison {
    /// Reads a file and checks it.
    ///
    /// # Errors
    /// [`RecordError`] if the file is unreadable, has another format, or is invalid.
    pub fn load(path: &Path) -> Result<Self, RecordError> {
        let text = std::fs::read_to_string(path).map_err(|source| RecordError::Io {
            path: path.into(),
            source,
        })?;
        Self::from_json(&text)
    }

    /// Checks the comparison and writes it to a file, which is replaced atomically.
    ///
    /// # Errors
    /// [`RecordError`] if the comparison is invalid or the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), RecordError> {
        let text = self.to_json()?;
        write_atomically(path, text.as_bytes()).map_err(|source| RecordError::Io {
            path: path.into(),
            source,
        })
    }

    /// Parses JSON and checks it.
    ///
    /// # Errors
    /// [`RecordError`] if the text has another format or is invalid.
    pub fn from_json(text: &str) -> Result<Self, RecordError> {
        /// The field that all formats share.
        #[derive(Deserialize)]
        struct Head {
            format: u32,
        }
        let head: Head = serde_json::from_str(text)?;
        if head.format != FORMAT {
            return Err(RecordError::Format { found: head.format });
        }
        let comparison: Self = serde_json::from_str(text)?;
        comparison.check()?;
        Ok(comparison)
    }

    /// Checks the comparison and formats it as indented JSON.
    ///
    /// # Errors
    /// [`RecordError::Invalid`], for example for NaN, which JSON cannot represent.
    pub fn to_json(&self) -> Result<String, RecordError> {
        self.check()?;
        let mut text = serde_json::to_string_pretty(self)?;
        text.push('\n');
        Ok(text)
    }

    /// Checks all values: finite and positive durations, known devices, no duplicates.
    ///
    /// # Errors
    /// [`RecordError::Invalid`] names the first invalid value.
    pub fn check(&self) -> Result<(), RecordError> {
        let invalid = |message: String| Err(RecordError::Invalid(message));
        let positive = |v: f64| v.is_finite() && v > 0.0;
        let not_negative = |v: f64| v.is_finite() && v >= 0.0;
        if !not_negative(self.facts.tolerance) {
            return invalid("`tolerance` is not a number of at least 0".into());
        }
        if !self.facts.limit_seconds.is_none_or(positive) {
            return invalid("`limit_seconds` is not a positive number".into());
        }
        let mut words = HashSet::new();
        for device in &self.devices {
            if !words.insert(device.word.as_str()) {
                return invalid(format!("the device `{}` is listed twice", device.word));
            }
        }
        let known = |word: &str| words.contains(word);
        let mut seen = HashSet::new();
        for m in &self.measurements {
            let name = format!("{} of {} on `{}`", m.work, m.size, m.device);
            if !known(&m.device) {
                return invalid(format!("{name}: `devices` lacks this device"));
            }
            if !seen.insert((m.device.as_str(), m.size, m.work)) {
                return invalid(format!("{name} is listed twice"));
            }
            match &m.outcome {
                Outcome::Measured(f) => {
                    if f.items == 0 {
                        return invalid(format!("{name}: `items` is 0"));
                    }
                    if f.seconds.is_empty() {
                        return invalid(format!("{name}: `seconds` has no repetition"));
                    }
                    if !f
                        .seconds
                        .iter()
                        .chain(&f.first_seconds)
                        .all(|v| positive(*v))
                    {
                        return invalid(format!("{name}: a duration is not a positive number"));
                    }
                    if !f.difference.is_none_or(not_negative) {
                        return invalid(format!(
                            "{name}: `difference` is not a number of at least 0"
                        ));
                    }
                }
                Outcome::Missing(missing) => missing.check(&name, positive)?,
            }
        }
        for r in &self.replays {
            let name = format!("the replay of `{}` on `{}`", r.recorded_on, r.replayed_on);
            if let Some(word) = [&r.recorded_on, &r.replayed_on]
                .into_iter()
                .find(|w| !known(w.as_str()))
            {
                return invalid(format!("{name}: `devices` lacks `{word}`"));
            }
            match &r.outcome {
                ReplayOutcome::Compared {
                    difference,
                    tolerance,
                } => {
                    if !not_negative(*difference) || !not_negative(*tolerance) {
                        return invalid(format!(
                            "{name}: `difference` and `tolerance` must be numbers of at least 0"
                        ));
                    }
                }
                ReplayOutcome::Missing(missing) => missing.check(&name, positive)?,
            }
        }
        Ok(())
    }

    /// Returns the properties of a device.
    pub fn device(&self, word: &str) -> Option<&DeviceFacts> {
        self.devices.iter().find(|d| d.word == word)
    }

    /// Returns a measurement, `None` if it was not requested.
    pub fn get(&self, device: &str, size: Size, work: Workload) -> Option<&Measurement> {
        let mut all = self.measurements.iter();
        all.find(|m| m.device == device && m.size == size && m.work == work)
    }

    /// Returns the requested sizes, the cheapest first.
    pub fn sizes(&self) -> Vec<Size> {
        let asked = |s: &Size| self.measurements.iter().any(|m| m.size == *s);
        Size::ALL.into_iter().filter(asked).collect()
    }

    /// Returns the requested workloads in display order: those of a size, or of all sizes.
    pub fn works(&self, size: Option<Size>) -> Vec<Workload> {
        let asked = |w: &Workload| {
            let mut all = self.measurements.iter();
            all.any(|m| m.work == *w && size.is_none_or(|s| s == m.size))
        };
        Workload::ALL.into_iter().filter(asked).collect()
    }

    /// Returns the devices with a measurement or a failure, in display order.
    pub fn tried(&self) -> Vec<&DeviceFacts> {
        let tried = |d: &&DeviceFacts| self.measurements.iter().any(|m| m.device == d.word);
        self.devices.iter().filter(tried).collect()
    }

    /// Returns the devices with at least one measured workload, in display order.
    pub fn measured(&self) -> Vec<&DeviceFacts> {
        let measured = |d: &&DeviceFacts| {
            let mut all = self.measurements.iter();
            all.any(|m| m.device == d.word && m.figures().is_some())
        };
        self.devices.iter().filter(measured).collect()
    }

    /// Returns the speed relative to [`REFERENCE`] at the same workload and size, by the median
    /// time per item: 2 is half the time. 1 for the reference itself, `None` if one of the two is
    /// missing.
    pub fn times_reference(&self, m: &Measurement) -> Option<f64> {
        let reference = self.get(REFERENCE, m.size, m.work)?;
        Some(m.figures()?.rate()?.median / reference.figures()?.rate()?.median)
    }

    /// Returns whether the results equal those of [`REFERENCE`] within [`Facts::tolerance`], `None`
    /// if they were not compared.
    pub fn agrees(&self, m: &Measurement) -> Option<bool> {
        Some(m.figures()?.difference? <= self.facts.tolerance)
    }

    /// Returns the device with the shortest median time of a workload, without devices whose
    /// results differ by more than the tolerance.
    pub fn best(&self, size: Size, work: Workload) -> Option<Best<'_>> {
        let fit: Vec<(&Measurement, Range)> = self
            .measurements
            .iter()
            .filter(|m| m.size == size && m.work == work && self.agrees(m) != Some(false))
            .filter_map(|m| Some((m, m.figures()?.rate()?)))
            .collect();
        // Of equally fast devices the first, so that the answer is unique.
        let (best, range) = fit
            .iter()
            .rev()
            .max_by(|a, b| a.1.median.total_cmp(&b.1.median))?;
        let close = fit
            .iter()
            .filter(|(m, r)| m.device != best.device && r.overlaps(range))
            .map(|(m, _)| m.device.as_str())
            .collect();
        let times_reference = match best.device == REFERENCE {
            true => None,
            false => self.times_reference(best),
        };
        Some(Best {
            measurement: best,
            times_reference,
            close,
            contested: fit.len() > 1,
        })
    }
}

impl Missing {
    fn check(&self, name: &str, positive: impl Fn(f64) -> bool) -> Result<(), RecordError> {
        match self {
            Self::TimeLimit { seconds } if !positive(*seconds) => Err(RecordError::Invalid(
                format!("{name}: the time limit is not a positive number"),
            )),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::fake::{nothing, one_device, three_devices};

    fn figures(m: &mut Measurement) -> &mut Figures {
        match &mut m.outcome {
            Outcome::Measured(figures) => figures,
            Outcome::Missing(missing) => panic!("{missing:?}"),
        }
    }

    #[test]
    fn json_round_trips() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("compare.json");
        for c in [nothing(), one_device(), three_devices()] {
            assert_eq!(Comparison::from_json(&c.to_json().unwrap()).unwrap(), c);
            c.save(&path).unwrap();
            assert_eq!(Comparison::load(&path).unwrap(), c);
        }
    }

    #[test]
    fn field_names_are_stable() {
        let c = three_devices();
        let json: serde_json::Value = serde_json::from_str(&c.to_json().unwrap()).unwrap();
        assert_eq!(json["format"], 1);
        assert_eq!(json["facts"]["batches"][1]["size"], "vit-b-32");
        assert_eq!(json["devices"][0]["state"], "usable");
        assert_eq!(
            json["devices"][4]["state"]["not-compiled-in"]["feature"],
            "ndarray"
        );
        let first = &json["measurements"][0];
        assert_eq!(
            (&first["device"], &first["size"]),
            (&"flex".into(), &"tiny".into())
        );
        assert_eq!(first["work"], "image-encoding");
        assert_eq!(first["outcome"]["measured"]["items"], 64);
        assert_eq!(
            first["outcome"]["measured"]["seconds"]
                .as_array()
                .unwrap()
                .len(),
            5
        );
        let missing: Vec<&serde_json::Value> = json["measurements"]
            .as_array()
            .unwrap()
            .iter()
            .map(|m| &m["outcome"]["missing"])
            .filter(|m| !m.is_null())
            .collect();
        assert_eq!(missing.len(), 4);
        assert_eq!(missing[0]["time-limit"]["seconds"], 120.0);
        assert!(
            missing
                .iter()
                .any(|m| m["out-of-memory"]["lowered_by"] == "--batch 16")
        );
        assert_eq!(json["replays"][0]["outcome"]["compared"]["tolerance"], 1e-3);
        for work in Workload::ALL {
            assert_eq!(serde_json::to_value(work).unwrap(), work.word());
        }
        for size in Size::ALL {
            assert_eq!(serde_json::to_value(size).unwrap(), size.word());
            assert_eq!(size.word().parse(), Ok(size));
            assert_eq!(size.to_string().parse(), Ok(size));
        }
        let message = "huge".parse::<Size>().unwrap_err().to_string();
        assert!(
            message.contains("`huge`") && message.contains("vit-l-14"),
            "{message}"
        );
    }

    #[test]
    fn other_files_are_refused() {
        for text in ["", "[]", "{}", "{\"format\": 1}"] {
            assert!(
                matches!(Comparison::from_json(text), Err(RecordError::Json(_))),
                "{text}"
            );
        }
        let newer = Comparison::from_json("{\"format\": 2, \"unknown\": []}").unwrap_err();
        assert!(matches!(newer, RecordError::Format { found: 2 }), "{newer}");
        let missing = Comparison::load(Path::new("no/such/file.json")).unwrap_err();
        assert!(
            missing.to_string().starts_with("no/such/file.json: "),
            "{missing}"
        );
    }

    #[test]
    fn invalid_values_are_neither_written_nor_read() {
        type Spoil = fn(&mut Comparison);
        let spoils: [(&str, Spoil); 13] = [
            ("duration", |c| {
                figures(&mut c.measurements[0]).seconds[0] = f64::NAN
            }),
            ("duration", |c| {
                figures(&mut c.measurements[0]).seconds[0] = 0.0
            }),
            ("duration", |c| {
                figures(&mut c.measurements[0]).first_seconds = Some(-1.0)
            }),
            ("no repetition", |c| {
                figures(&mut c.measurements[0]).seconds.clear()
            }),
            ("`items` is 0", |c| {
                figures(&mut c.measurements[0]).items = 0
            }),
            ("`difference`", |c| {
                figures(&mut c.measurements[0]).difference = Some(f64::INFINITY);
            }),
            ("lacks this device", |c| {
                c.measurements[0].device = "other".into()
            }),
            ("image encoding of tiny", |c| {
                c.measurements.push(c.measurements[0].clone())
            }),
            ("listed twice", |c| c.devices.push(c.devices[0].clone())),
            ("lacks `other`", |c| {
                c.replays[0].replayed_on = "other".into()
            }),
            ("`tolerance`", |c| c.facts.tolerance = f64::NAN),
            ("`limit_seconds`", |c| c.facts.limit_seconds = Some(0.0)),
            ("must be numbers", |c| {
                c.replays[0].outcome = ReplayOutcome::Compared {
                    difference: f64::NAN,
                    tolerance: 1e-3,
                };
            }),
        ];
        for (word, spoil) in spoils {
            let mut c = three_devices();
            spoil(&mut c);
            let message = c.to_json().unwrap_err().to_string();
            assert!(message.contains(word), "{word}: {message}");
        }
        let text = three_devices().to_json().unwrap();
        let text = text.replacen("\"items\": 64", "\"items\": 0", 1);
        assert!(matches!(
            Comparison::from_json(&text),
            Err(RecordError::Invalid(_))
        ));
    }

    #[test]
    fn medians_ranges_and_rates() {
        let mut f = Figures {
            items: 10,
            seconds: vec![4.0, 1.0, 2.0],
            first_seconds: None,
            host_bytes: None,
            device_bytes: None,
            difference: None,
        };
        let range = |low, median, high| Some(Range { low, median, high });
        assert_eq!(f.duration(), range(1.0, 2.0, 4.0));
        assert_eq!(f.rate(), range(2.5, 5.0, 10.0));
        f.seconds.push(8.0);
        assert_eq!(f.duration(), range(1.0, 3.0, 8.0));
        f.seconds.clear();
        assert_eq!((f.duration(), f.rate()), (None, None));
    }

    #[test]
    fn ratios_compare_the_same_workload_and_size_per_item() {
        let mut c = three_devices();
        let ratio = |c: &Comparison, device: &str, work: Workload| {
            c.times_reference(c.get(device, Size::VitB32, work).unwrap())
        };
        for work in Workload::ALL {
            assert_eq!(ratio(&c, "flex", work), Some(1.0));
            let cuda = ratio(&c, "cuda:0", work).unwrap();
            assert!((cuda - 41.0).abs() < 1e-9, "{work} {cuda}");
        }
        // Twice the items in the same time is twice as fast.
        let same = |m: &&mut Measurement| {
            (m.device.as_str(), m.size, m.work) == ("cuda:0", Size::VitB32, Workload::TextEncoding)
        };
        figures(c.measurements.iter_mut().find(same).unwrap()).items *= 2;
        assert!((ratio(&c, "cuda:0", Workload::TextEncoding).unwrap() - 82.0).abs() < 1e-9);
        // Without the reference's there is no ratio.
        let l14 = c.get("cuda:0", Size::VitL14, Workload::Evaluation).unwrap();
        assert_eq!(c.times_reference(l14), None);
    }

    #[test]
    fn the_best_is_the_fastest_whose_results_agree() {
        let mut c = three_devices();
        let best = c.best(Size::VitB16, Workload::TrainingStep).unwrap();
        assert_eq!(best.measurement.device, "cuda:0");
        assert!((best.times_reference.unwrap() - 41.0).abs() < 1e-9);
        assert!(best.close.is_empty() && best.contested);
        // vulkan:0 is faster there, and wrong.
        let images = c.best(Size::VitB16, Workload::ImageEncoding).unwrap();
        assert_eq!(images.measurement.device, "cuda:0");
        c.facts.tolerance = 0.1;
        let images = c.best(Size::VitB16, Workload::ImageEncoding).unwrap();
        assert_eq!(images.measurement.device, "vulkan:0");
        // Not measured on the fastest device.
        let build = c.best(Size::VitB16, Workload::ProjectorBuild).unwrap();
        assert_eq!(build.measurement.device, "vulkan:0");
        assert_eq!(nothing().best(Size::Tiny, Workload::Evaluation), None);

        let mut c = one_device();
        let alone = c.best(Size::Tiny, Workload::TrainingStep).unwrap();
        assert_eq!((alone.times_reference, alone.contested), (None, false));
        // Equally fast: the reference stays first, the other device is close.
        let mut device = c.devices[0].clone();
        device.word = "ndarray:same".into();
        c.devices.push(device);
        let mut same = c
            .get("flex", Size::Tiny, Workload::TrainingStep)
            .unwrap()
            .clone();
        same.device = "ndarray:same".into();
        c.measurements.push(same);
        let tie = c.best(Size::Tiny, Workload::TrainingStep).unwrap();
        assert_eq!(tie.measurement.device, REFERENCE);
        assert_eq!(tie.close, ["ndarray:same"]);
    }
}
