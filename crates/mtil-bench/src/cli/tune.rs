//! `tune`: tuning of methods on `mini-dev`, with the same budget for every method.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicBool},
};

use burn::tensor::Device;
use eyre::{Result, WrapErr, bail};
use mtil_data::files::write_atomically;
use mtil_engine::{
    eval::EvalOptions,
    method::{Candidate, Method, Tuned, TunedMethod, names},
    metrics::MetricsFile,
    run::RunOptions,
};

use super::{
    args::{Selection, TuneArgs},
    checkpoint::{EMBEDDED, LoadedModel, load_model},
    interrupt::stop_flag,
    job::{FingerprintedSuite, Job, SharedSettings},
    planning::plan,
    run::{QUICK, RunResults, execute, file_name_safe, load_method},
    selection::Selected,
};
use crate::device;

/// Selection criterion, as recorded in `tuned.json`.
const CRITERION: &str = "the highest Average on mini-dev: the mean accuracy over all tasks after \
                         every task, of one seed";

/// Learning rates of the candidates of every method with a learning rate.
const LEARNING_RATES: [f64; 5] = [1e-5, 3e-5, 1e-4, 3e-4, 1e-3];
/// Learning rates of the candidates of methods that train adapters.
const ADAPTER_LEARNING_RATES: [f64; 5] = [1e-4, 3e-4, 1e-3, 3e-3, 1e-2];

/// Settings that all candidates share.
struct Tuning<'a> {
    args: &'a TuneArgs,
    model: LoadedModel,
    selected: Selected,
    suite: FingerprintedSuite,
}

/// The run of a candidate.
struct CandidateRun {
    method: String,
    set: Vec<String>,
    job: Job,
}

/// Runs `tune`.
pub fn tune(args: &TuneArgs) -> Result<()> {
    let device = device::parse(&args.device)?;
    let tuning = Tuning::of(args, &device)?;
    if args.plan {
        let runs = tuning.learning_rate_runs()?.into_iter();
        let jobs: Vec<Job> = runs.map(|run| run.job).collect();
        eprintln!("Learning rates only; the other settings need about as many additional runs.");
        return plan(&jobs, &tuning.model.clip, &device, false, false);
    }
    let (tuned, failed) = tuning.choose(&device, &stop_flag())?;
    print!("{}", table(&tuned));
    failed.finish()
}

/// Runs the candidates of every method and writes the chosen settings to `args.out`.
pub fn choose(args: &TuneArgs, device: &Device, stop: &Arc<AtomicBool>) -> Result<Tuned> {
    let (tuned, failed) = Tuning::of(args, device)?.choose(device, stop)?;
    failed.finish()?;
    Ok(tuned)
}

impl<'a> Tuning<'a> {
    fn of(args: &'a TuneArgs, device: &Device) -> Result<Self> {
        let selected = Selection::named(mini_world::DEV_NAME).load(args.quick, args.seed)?;
        Ok(Self {
            args,
            model: load_model(EMBEDDED, &Default::default(), device)?,
            suite: FingerprintedSuite::new(&selected.suite),
            selected,
        })
    }

    /// Returns the runs of every trainable method with each learning rate.
    fn learning_rate_runs(&self) -> Result<Vec<CandidateRun>> {
        let methods: Vec<String> = match self.args.methods.as_slice() {
            [] => names().into_iter().map(str::to_owned).collect(),
            some => some.to_vec(),
        };
        let mut runs = Vec::new();
        for name in &methods {
            if self.method(name, &[])?.trains {
                runs.extend(self.learning_rates(name)?);
            }
        }
        if runs.is_empty() {
            bail!("none of {} trains anything", methods.join(", "));
        }
        Ok(runs)
    }

    /// Returns the chosen settings and the failed runs, which are no candidates.
    fn choose(&self, device: &Device, stop: &Arc<AtomicBool>) -> Result<(Tuned, RunResults)> {
        let args = self.args;
        let first = self.learning_rate_runs()?;
        fs::create_dir_all(&args.out).wrap_err_with(|| {
            format!("cannot create {}; choose another --out", args.out.display())
        })?;
        let options = RunOptions {
            checkpoints: false,
            ..RunOptions::default()
        };
        let mut candidates: BTreeMap<String, Vec<Candidate>> = BTreeMap::new();
        let mut failed = RunResults::default();
        let mut evaluate =
            |title: &str, runs: Vec<CandidateRun>, found: &mut BTreeMap<String, Vec<_>>| {
                eprintln!("{title}: {} runs", runs.len());
                let jobs: Vec<Job> = runs.iter().map(|run| run.job.clone()).collect();
                let parallel = args.parallel.jobs.into();
                let done = execute(&jobs, parallel, &self.model, device, &options, stop)?;
                if done.stopped {
                    return done.finish();
                }
                failed.failures.extend(done.failures);
                for run in &runs {
                    if let Some(candidate) = run.candidate()? {
                        let of_method = found.entry(run.method.clone()).or_default();
                        of_method.push(candidate);
                    }
                }
                Ok::<(), eyre::Report>(())
            };
        evaluate("learning rates", first, &mut candidates)?;
        let second = self.method_settings(&candidates)?;
        evaluate("method-specific settings", second, &mut candidates)?;
        if candidates.is_empty() {
            failed.finish()?;
            bail!("no run of a candidate is complete");
        }
        let tuned = Tuned {
            criterion: CRITERION.to_owned(),
            suite: mini_world::DEV_NAME.to_owned(),
            world: mini_world::WORLD_VERSION,
            seed: args.seed,
            methods: candidates
                .into_iter()
                .map(|(name, candidates)| (name, TunedMethod::best_of(candidates)))
                .collect(),
        };
        let path = args.out.join("tuned.json");
        let json = serde_json::to_string_pretty(&tuned)?;
        write_atomically(&path, format!("{json}\n").as_bytes())
            .wrap_err_with(|| format!("cannot write {}", path.display()))?;
        eprintln!("written: {}", path.display());
        if args.quick {
            eprintln!("note: --quick makes few steps on few images; these choices mean nothing");
        }
        Ok((tuned, failed))
    }

    fn method(&self, name: &str, set: &[String]) -> Result<Method> {
        let mut overrides = Vec::new();
        if self.args.quick {
            overrides.extend(QUICK.map(str::to_owned));
        }
        overrides.extend(set.iter().cloned());
        load_method(
            &format!("{name}{}", Method::PUBLISHED),
            &self.selected,
            &overrides,
        )
    }

    fn candidate_run(&self, name: &str, set: Vec<String>) -> Result<CandidateRun> {
        let common = SharedSettings {
            model: &self.model,
            device: &self.args.device,
            peers: &[],
            evaluation: EvalOptions::default(),
            guard: Vec::new(),
            skip_bad_images: false,
            select: None,
        };
        let folder = file_name_safe(&format!("{name} {}", set.join(" ")));
        let (out, seed): (&Path, u64) = (&self.args.out, self.args.seed);
        let method = self.method(name, &set)?;
        let job = common.job(
            out,
            folder.trim(),
            seed,
            &self.selected,
            &self.suite,
            method,
        );
        Ok(CandidateRun {
            method: name.to_owned(),
            set,
            job,
        })
    }

    /// Returns the runs of a method with each learning rate, or one run if it has none.
    fn learning_rates(&self, name: &str) -> Result<Vec<CandidateRun>> {
        let method = self.method(name, &[])?;
        if method.analytic.is_some() {
            return Ok(vec![self.candidate_run(name, Vec::new())?]);
        }
        let adapters = [
            method.lora.is_some(),
            method.experts.is_some(),
            method.lada.is_some(),
        ];
        let adapters = adapters.contains(&true);
        let rates = if adapters {
            ADAPTER_LEARNING_RATES
        } else {
            LEARNING_RATES
        };
        rates
            .into_iter()
            .map(|lr| {
                let mut set = vec![format!("lr={lr:e}")];
                if method.lr_later.is_some() {
                    set.push(format!("lr_later={lr:e}"));
                }
                self.candidate_run(name, set)
            })
            .collect()
    }

    /// Returns the runs that vary the method-specific settings, one at a time, at the best learning
    /// rate of each method.
    fn method_settings(
        &self,
        found: &BTreeMap<String, Vec<Candidate>>,
    ) -> Result<Vec<CandidateRun>> {
        let mut runs = Vec::new();
        for (name, candidates) in found {
            let best = TunedMethod::best_of(candidates.clone());
            let best = &best.candidates[best.chosen];
            for (key, values) in Method::tuning_grid(name)? {
                for value in values {
                    // A value such as `10x` is a multiple of the learning rate.
                    let value = match (value.strip_suffix('x'), best.lr()) {
                        (Some(times), Some(lr)) => format!("{:e}", times.parse::<f64>()? * lr),
                        _ => value,
                    };
                    let mut set = best.set.clone();
                    set.retain(|text| !text.starts_with(&format!("{key}=")));
                    set.push(format!("{key}={value}"));
                    runs.push(self.candidate_run(name, set)?);
                }
            }
        }
        Ok(runs)
    }
}

impl CandidateRun {
    /// Reads the metrics of the run. There is no candidate if it failed.
    fn candidate(&self) -> Result<Option<Candidate>> {
        let path: PathBuf = self.job.folder.join(MetricsFile::NAME);
        if !path.exists() {
            return Ok(None);
        }
        let metrics = MetricsFile::load(&path)?;
        // Undefined until the run is complete.
        Ok(metrics.average.map(|average| Candidate {
            set: self.set.clone(),
            average,
            transfer: metrics.transfer,
            last: metrics.last,
        }))
    }
}

/// Formats the chosen settings, one line per method.
fn table(tuned: &Tuned) -> String {
    let mut text = String::new();
    for (name, method) in &tuned.methods {
        let chosen = &method.candidates[method.chosen];
        let averages = method.candidates.iter().map(|c| c.average);
        let worst = averages.fold(f64::INFINITY, f64::min);
        text += &format!(
            "{name:18} Average {:5.1} of {} candidates (worst {worst:.1}): {}\n",
            chosen.average,
            method.candidates.len(),
            chosen.set.join(" ")
        );
    }
    text
}
