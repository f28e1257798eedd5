//! What was measured, as data: the file that tables and pages are made from.
//!
//! # The file
//!
//! [`Comparison`] as JSON. Times are seconds, memory is bytes, enums are words in kebab case. A
//! repetition is kept as it was timed, so medians, ranges and ratios can be computed anew. Fields
//! may be added; a change of meaning raises `format`.

use std::collections::HashSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use mtil_data::files::write_atomically;

/// The format of the file written by this version.
pub const FORMAT: u32 = 1;

/// The device that all others are compared with, in speed and in numbers.
pub const REFERENCE: &str = "flex";

/// Why a comparison cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The file cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// Not the JSON of a comparison.
    #[error("this is not a comparison of devices: {0}")]
    Json(#[from] serde_json::Error),
    /// Written by a version whose file means something else.
    #[error("the comparison has format {found}, this version reads {FORMAT}; measure again")]
    Format {
        /// The number in the file.
        found: u32,
    },
    /// A value that cannot be, or values that contradict each other.
    #[error("the comparison makes no sense: {0}")]
    Invalid(String),
}

/// A model to measure with. In the order of their cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Size {
    /// A CLIP of a few layers, for a machine or a moment too small for the others.
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
    /// All, the cheapest first.
    pub const ALL: [Self; 4] = [Self::Tiny, Self::VitB32, Self::VitB16, Self::VitL14];

    /// The word in files and on the command line.
    pub fn word(self) -> &'static str {
        match self {
            Self::Tiny => "tiny",
            Self::VitB32 => "vit-b-32",
            Self::VitB16 => "vit-b-16",
            Self::VitL14 => "vit-l-14",
        }
    }
}

/// The name for people: `ViT-B/32`.
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

/// No size has this name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no size `{0}`: known are {known}", known = Size::ALL.map(Size::word).join(", "))]
pub struct UnknownSize(pub String);

/// What is timed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Work {
    /// Images through the image tower, without gradients.
    ImageEncoding,
    /// Class prompts through the text tower, without gradients.
    TextEncoding,
    /// A whole update of GNSP: forward and backward on task and reference images, losses, projected
    /// step.
    TrainingStep,
    /// The forward pass over reference images that sums up the Gram matrices of the layers' inputs.
    GramAccumulation,
    /// From all Gram matrices to the projectors onto their null spaces.
    ProjectorBuild,
    /// The optimizer's step with projection, from given gradients.
    ProjectedStep,
    /// The evaluation of a test set: its prompts, its images, the accuracy.
    Evaluation,
}

impl Work {
    /// All, in the order in which they are shown.
    pub const ALL: [Self; 7] = [
        Self::ImageEncoding,
        Self::TextEncoding,
        Self::TrainingStep,
        Self::GramAccumulation,
        Self::ProjectorBuild,
        Self::ProjectedStep,
        Self::Evaluation,
    ];

    /// The word in files.
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

    /// What it is, in one sentence.
    pub fn about(self) -> &'static str {
        match self {
            Self::ImageEncoding => "Images through the image tower, without gradients.",
            Self::TextEncoding => "Class prompts through the text tower, without gradients.",
            Self::TrainingStep => "A whole update of GNSP on task and reference images.",
            Self::GramAccumulation => {
                "Once a task: images through the model, summing up the Gram matrices."
            }
            Self::ProjectorBuild => "Once a task: from all Gram matrices to the projectors.",
            Self::ProjectedStep => {
                "The part of an update that is the optimizer’s step with projection."
            }
            Self::Evaluation => {
                "A test set from start to end: its prompts, its images, the accuracy."
            }
        }
    }

    /// What its speed is counted in.
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

/// The name for people, in lower case: `image encoding`.
impl fmt::Display for Work {
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

/// What a speed is counted in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Images in a second.
    ImagesPerSecond,
    /// Prompts in a second.
    PromptsPerSecond,
    /// Updates in a second.
    StepsPerSecond,
    /// Seconds for the whole, where it is done once and not in a row.
    Seconds,
}

impl Unit {
    /// Whether a larger number is better.
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

/// Everything that one call of the command measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// [`FORMAT`] of the version that wrote it.
    pub format: u32,
    /// Where, when and how.
    pub facts: Facts,
    /// The devices, those that could not be used among them, in the order in which they are shown.
    pub devices: Vec<DeviceFacts>,
    /// At most one for each device, size and work. What was not asked for is not in it.
    pub measurements: Vec<Measurement>,
    /// Training runs done on two devices.
    pub replays: Vec<Replay>,
}

/// Where, when and how it was measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Facts {
    /// Name of the processor.
    pub cpu: String,
    /// Logical processors that the process may use.
    pub processors: usize,
    /// What computes matrix products on the CPU; empty in records of earlier versions.
    #[serde(default)]
    pub products: String,
    /// Memory of the machine, where the operating system tells.
    pub memory_bytes: Option<u64>,
    /// Operating system and architecture.
    pub system: String,
    /// Version of the program.
    pub version: String,
    /// Commit it was built from, if the environment of the build named it: `MTIL_BENCH_COMMIT`.
    pub commit: Option<String>,
    /// When the measuring began, ISO 8601.
    pub date: String,
    /// Seed of weights, images and prompts.
    pub seed: u64,
    /// Repetitions asked for; a time limit may leave fewer.
    pub repetitions: usize,
    /// Longest time for one measurement, where there was a limit.
    pub limit_seconds: Option<f64>,
    /// Largest [`Figures::difference`] that counts as the same result.
    pub tolerance: f64,
    /// How much work a call was, for each size measured.
    pub batches: Vec<Batches>,
}

/// How much work one call was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Batches {
    /// Of which size.
    pub size: Size,
    /// Images encoded at once, with and without gradients.
    pub images: usize,
    /// Reference images in a training step, beside `images`.
    pub reference_images: usize,
    /// Class prompts encoded at once.
    pub prompts: usize,
    /// Images in the test set of the evaluation.
    pub test_images: usize,
}

/// A device and whether it could be used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceFacts {
    /// What is written after `--device`.
    pub word: String,
    /// The hardware's name; empty where unknown.
    pub name: String,
    /// Number format of weights and activations: `f32`, `f16`, `bf16`.
    pub precision: String,
    /// Its own memory, where known; the machine's is in [`Facts`].
    pub memory_bytes: Option<u64>,
    /// Whether it could be used.
    pub state: DeviceState,
}

/// Whether a device could be used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeviceState {
    /// It works.
    Usable,
    /// It is compiled in but does not work on this machine.
    Unusable {
        /// Why, and what to do.
        reason: String,
    },
    /// The backend is not in this build.
    NotCompiledIn {
        /// The cargo feature that adds it.
        feature: String,
    },
}

/// One work of one size on one device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Measurement {
    /// [`DeviceFacts::word`].
    pub device: String,
    /// Of which size.
    pub size: Size,
    /// What was timed.
    pub work: Work,
    /// What came out.
    pub outcome: Outcome,
}

/// What came out of a measurement.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// The figures.
    Measured(Figures),
    /// There are none, and why.
    Missing(Missing),
}

/// The figures of a measurement.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// How many of the unit's items (images, prompts, steps) one repetition was; 1 for a
    /// [`Unit::Seconds`].
    pub items: u64,
    /// Duration of each repetition after the first call, in seconds. At least one.
    pub seconds: Vec<f64>,
    /// Duration of the first call, which compiles kernels and tries out variants, in seconds.
    pub first_seconds: Option<f64>,
    /// Peak resident memory of the process, up to the end of this work, in bytes: works come in the
    /// order of what they need.
    pub host_bytes: Option<u64>,
    /// Memory on the device that is held at the end of this work, in bytes, where known.
    pub device_bytes: Option<u64>,
    /// `max |a - b| / max |b|` over the results, b those of [`REFERENCE`] in f32; none where there
    /// were none to compare with.
    pub difference: Option<f64>,
}

/// Why there are no figures.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Missing {
    /// The memory did not suffice.
    OutOfMemory {
        /// What it takes, in bytes, where known.
        needed_bytes: Option<u64>,
        /// What there was, in bytes, where known.
        available_bytes: Option<u64>,
        /// The option that lowers the need, as one writes it: `--batch 16`.
        lowered_by: Option<String>,
    },
    /// A result was not a number, or infinite.
    NotFinite {
        /// Which: `image embeddings`.
        what: String,
    },
    /// It was not done within the time limit.
    TimeLimit {
        /// The limit, in seconds.
        seconds: f64,
    },
    /// It failed otherwise.
    Failed {
        /// What the backend said.
        reason: String,
    },
}

/// The lowest, the middle and the highest of several values.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Range {
    /// Lowest.
    pub low: f64,
    /// Median; the mean of the middle two of an even number.
    pub median: f64,
    /// Highest.
    pub high: f64,
}

impl Range {
    /// Of at least one value.
    fn of(values: impl Iterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = values.collect();
        sorted.sort_by(f64::total_cmp);
        let (low, high) = (*sorted.first()?, *sorted.last()?);
        let n = sorted.len();
        let median = (sorted[(n - 1) / 2] + sorted[n / 2]) / 2.0;
        Some(Self { low, median, high })
    }

    /// Whether the two have a value in common.
    fn overlaps(&self, other: &Self) -> bool {
        self.low <= other.high && other.low <= self.high
    }
}

impl Figures {
    /// Duration of a repetition, in seconds. None only if there is no repetition, which
    /// [`Comparison::check`] refuses.
    pub fn duration(&self) -> Option<Range> {
        Range::of(self.seconds.iter().copied())
    }

    /// Items in a second.
    pub fn rate(&self) -> Option<Range> {
        let Range { low, median, high } = self.duration()?;
        let rate = |seconds: f64| self.items as f64 / seconds;
        // At the median time, not the median of rates, so that the two shown belong together.
        Some(Range {
            low: rate(high),
            median: rate(median),
            high: rate(low),
        })
    }
}

impl Measurement {
    /// The figures, if it was measured.
    pub fn figures(&self) -> Option<&Figures> {
        match &self.outcome {
            Outcome::Measured(figures) => Some(figures),
            Outcome::Missing(_) => None,
        }
    }

    /// Why there are no figures, if so.
    pub fn missing(&self) -> Option<&Missing> {
        match &self.outcome {
            Outcome::Measured(_) => None,
            Outcome::Missing(missing) => Some(missing),
        }
    }

    /// The speed in the work's [`Unit`].
    pub fn speed(&self) -> Option<Range> {
        match self.work.unit() {
            Unit::Seconds => self.figures()?.duration(),
            _ => self.figures()?.rate(),
        }
    }
}

/// A training run on one device, and the same again on another.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Replay {
    /// The device of the run.
    pub recorded_on: String,
    /// The device that did it again.
    pub replayed_on: String,
    /// Of which size.
    pub size: Size,
    /// Updates of the run.
    pub updates: usize,
    /// How many of the first updates were compared. Rounding makes any two runs part in the end.
    pub compared: usize,
    /// What came out.
    pub outcome: ReplayOutcome,
}

/// What came out of a replay.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReplayOutcome {
    /// The losses were compared.
    Compared {
        /// Largest `|a - b| / |b|` of the losses of an update, b the recorded one.
        difference: f64,
        /// The largest that counts as agreement.
        tolerance: f64,
    },
    /// They were not, and why.
    Missing(Missing),
}

impl Replay {
    /// Whether the losses agreed; none where they were not compared.
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

/// The fastest device for a work.
#[derive(Debug, Clone, PartialEq)]
pub struct Best<'a> {
    /// Its measurement.
    pub measurement: &'a Measurement,
    /// How many times as fast as [`REFERENCE`]; none where that is missing or is the fastest.
    pub times_reference: Option<f64>,
    /// Other devices some repetition of which was as fast as some of the fastest device's.
    pub close: Vec<&'a str>,
    /// Whether there was another device to be faster than.
    pub contested: bool,
}

impl Comparison {
    /// Reads a file and checks it.
    ///
    /// # Errors
    /// [`RecordError`]: unreadable, not JSON of this format, or senseless.
    pub fn load(path: &Path) -> Result<Self, RecordError> {
        let text = std::fs::read_to_string(path).map_err(|source| RecordError::Io {
            path: path.into(),
            source,
        })?;
        Self::from_json(&text)
    }

    /// Checks it and writes a file, replaced atomically.
    ///
    /// # Errors
    /// [`RecordError`]: senseless, or the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), RecordError> {
        let text = self.to_json()?;
        write_atomically(path, text.as_bytes()).map_err(|source| RecordError::Io {
            path: path.into(),
            source,
        })
    }

    /// Reads JSON and checks it.
    ///
    /// # Errors
    /// [`RecordError`]: not JSON of this format, or senseless.
    pub fn from_json(text: &str) -> Result<Self, RecordError> {
        /// The one field that all formats share.
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

    /// Checks it and writes it as indented JSON.
    ///
    /// # Errors
    /// [`RecordError::Invalid`]; JSON has no word for what is not a number.
    pub fn to_json(&self) -> Result<String, RecordError> {
        self.check()?;
        let mut text = serde_json::to_string_pretty(self)?;
        text.push('\n');
        Ok(text)
    }

    /// Whether all values can be: finite and positive durations, known devices, nothing twice.
    ///
    /// # Errors
    /// [`RecordError::Invalid`], naming the first that cannot.
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
                return invalid(format!("{name} is there twice"));
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

    /// What is known of a device.
    pub fn device(&self, word: &str) -> Option<&DeviceFacts> {
        self.devices.iter().find(|d| d.word == word)
    }

    /// A measurement, if it was asked for.
    pub fn get(&self, device: &str, size: Size, work: Work) -> Option<&Measurement> {
        let mut all = self.measurements.iter();
        all.find(|m| m.device == device && m.size == size && m.work == work)
    }

    /// The sizes that something was asked for, the cheapest first.
    pub fn sizes(&self) -> Vec<Size> {
        let asked = |s: &Size| self.measurements.iter().any(|m| m.size == *s);
        Size::ALL.into_iter().filter(asked).collect()
    }

    /// The works that were asked for, in their order; of one size or, with none, of any.
    pub fn works(&self, size: Option<Size>) -> Vec<Work> {
        let asked = |w: &Work| {
            let mut all = self.measurements.iter();
            all.any(|m| m.work == *w && size.is_none_or(|s| s == m.size))
        };
        Work::ALL.into_iter().filter(asked).collect()
    }

    /// The devices with measurements or failures of them, in their order.
    pub fn tried(&self) -> Vec<&DeviceFacts> {
        let tried = |d: &&DeviceFacts| self.measurements.iter().any(|m| m.device == d.word);
        self.devices.iter().filter(tried).collect()
    }

    /// The devices with at least one figure, in their order.
    pub fn measured(&self) -> Vec<&DeviceFacts> {
        let measured = |d: &&DeviceFacts| {
            let mut all = self.measurements.iter();
            all.any(|m| m.device == d.word && m.figures().is_some())
        };
        self.devices.iter().filter(measured).collect()
    }

    /// How many times as fast as [`REFERENCE`] at the same work and size, by median times of an
    /// item: 2 is half the time. 1 for the reference itself, none where one of the two is missing.
    pub fn times_reference(&self, m: &Measurement) -> Option<f64> {
        let reference = self.get(REFERENCE, m.size, m.work)?;
        Some(m.figures()?.rate()?.median / reference.figures()?.rate()?.median)
    }

    /// Whether the results are those of [`REFERENCE`] within [`Facts::tolerance`]; none where they
    /// were not compared.
    pub fn agrees(&self, m: &Measurement) -> Option<bool> {
        Some(m.figures()?.difference? <= self.facts.tolerance)
    }

    /// The device that does a work in the least median time. One whose results differ by more than
    /// the tolerance is passed over.
    pub fn best(&self, size: Size, work: Work) -> Option<Best<'_>> {
        let fit: Vec<(&Measurement, Range)> = self
            .measurements
            .iter()
            .filter(|m| m.size == size && m.work == work && self.agrees(m) != Some(false))
            .filter_map(|m| Some((m, m.figures()?.rate()?)))
            .collect();
        // Of equals the first, so that a file gives one answer.
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
    fn json_comes_back_the_same() {
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
        for work in Work::ALL {
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
    fn senseless_values_are_neither_written_nor_read() {
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
            ("there twice", |c| {
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
    fn ratios_are_of_the_same_work_and_size_for_one_item() {
        let mut c = three_devices();
        let ratio = |c: &Comparison, device: &str, work: Work| {
            c.times_reference(c.get(device, Size::VitB32, work).unwrap())
        };
        for work in Work::ALL {
            assert_eq!(ratio(&c, "flex", work), Some(1.0));
            let cuda = ratio(&c, "cuda:0", work).unwrap();
            assert!((cuda - 41.0).abs() < 1e-9, "{work} {cuda}");
        }
        // Twice the items in the same time is twice as fast.
        let same = |m: &&mut Measurement| {
            (m.device.as_str(), m.size, m.work) == ("cuda:0", Size::VitB32, Work::TextEncoding)
        };
        figures(c.measurements.iter_mut().find(same).unwrap()).items *= 2;
        assert!((ratio(&c, "cuda:0", Work::TextEncoding).unwrap() - 82.0).abs() < 1e-9);
        // Without the reference's there is no ratio.
        let l14 = c.get("cuda:0", Size::VitL14, Work::Evaluation).unwrap();
        assert_eq!(c.times_reference(l14), None);
    }

    #[test]
    fn the_best_is_the_fastest_whose_results_agree() {
        let mut c = three_devices();
        let best = c.best(Size::VitB16, Work::TrainingStep).unwrap();
        assert_eq!(best.measurement.device, "cuda:0");
        assert!((best.times_reference.unwrap() - 41.0).abs() < 1e-9);
        assert!(best.close.is_empty() && best.contested);
        // vulkan:0 is faster there, and wrong.
        let images = c.best(Size::VitB16, Work::ImageEncoding).unwrap();
        assert_eq!(images.measurement.device, "cuda:0");
        c.facts.tolerance = 0.1;
        let images = c.best(Size::VitB16, Work::ImageEncoding).unwrap();
        assert_eq!(images.measurement.device, "vulkan:0");
        // Not measured on the fastest device.
        let build = c.best(Size::VitB16, Work::ProjectorBuild).unwrap();
        assert_eq!(build.measurement.device, "vulkan:0");
        assert_eq!(nothing().best(Size::Tiny, Work::Evaluation), None);

        let mut c = one_device();
        let alone = c.best(Size::Tiny, Work::TrainingStep).unwrap();
        assert_eq!((alone.times_reference, alone.contested), (None, false));
        // As fast as can be told apart: the reference stays ahead, the other is named.
        let mut device = c.devices[0].clone();
        device.word = "ndarray:same".into();
        c.devices.push(device);
        let mut same = c
            .get("flex", Size::Tiny, Work::TrainingStep)
            .unwrap()
            .clone();
        same.device = "ndarray:same".into();
        c.measurements.push(same);
        let tie = c.best(Size::Tiny, Work::TrainingStep).unwrap();
        assert_eq!(tie.measurement.device, REFERENCE);
        assert_eq!(tie.close, ["ndarray:same"]);
    }
}
