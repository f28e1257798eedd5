//! `tune`: settings chosen on `mini-dev`, with the same budget for every method.

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
    checkpoint::{EMBEDDED, Loaded, load_model},
    job::{Common, Fingerprinted, Job},
    planning::plan,
    run::{QUICK, execute, load_method, safe, stop_on_interrupt},
    selection::Selected,
};
use crate::device;

/// What a candidate is chosen by.
const CRITERION: &str = "the highest Average on mini-dev: the mean accuracy over all tasks after every task, of one seed";

/// Learning rates that every method which has one is tried with.
const RATES: [f64; 5] = [1e-5, 3e-5, 1e-4, 3e-4, 1e-3];
/// The same for what is trained beside frozen weights.
const RATES_OF_ADAPTERS: [f64; 5] = [1e-4, 3e-4, 1e-3, 3e-3, 1e-2];

/// What all candidates share.
struct Tuning<'a> {
    args: &'a TuneArgs,
    model: Loaded,
    selected: Selected,
    suite: Fingerprinted,
}

/// A candidate on its way.
struct Trial {
    method: String,
    set: Vec<String>,
    job: Job,
}

/// `tune`.
pub fn tune(args: &TuneArgs) -> Result<()> {
    let device = device::parse(&args.device)?;
    let tuning = Tuning::of(args, &device)?;
    if args.plan {
        let jobs: Vec<Job> = tuning.first()?.into_iter().map(|trial| trial.job).collect();
        eprintln!("The learning rates alone; other settings take about as many runs again.");
        return plan(&jobs, &tuning.model.clip, &device, false, false);
    }
    let tuned = tuning.choose(&device, &stop_on_interrupt()?)?;
    print!("{}", table(&tuned));
    Ok(())
}

/// Tries the candidates of every method and writes the choices to `args.out`.
pub fn choose(args: &TuneArgs, device: &Device, stop: &Arc<AtomicBool>) -> Result<Tuned> {
    Tuning::of(args, device)?.choose(device, stop)
}

impl<'a> Tuning<'a> {
    fn of(args: &'a TuneArgs, device: &Device) -> Result<Self> {
        let selected = Selection::named(mini_world::DEV_NAME).load(args.quick, args.seed)?;
        Ok(Self {
            args,
            model: load_model(EMBEDDED, &Default::default(), device)?,
            suite: Fingerprinted::new(&selected.suite),
            selected,
        })
    }

    /// Every method that trains, with each learning rate.
    fn first(&self) -> Result<Vec<Trial>> {
        let methods: Vec<String> = match self.args.methods.as_slice() {
            [] => names().into_iter().map(str::to_owned).collect(),
            some => some.to_vec(),
        };
        let mut first = Vec::new();
        for name in &methods {
            if self.method(name, &[])?.trains {
                first.extend(self.rates(name)?);
            }
        }
        if first.is_empty() {
            bail!("none of {} trains anything", methods.join(", "));
        }
        Ok(first)
    }

    fn choose(&self, device: &Device, stop: &Arc<AtomicBool>) -> Result<Tuned> {
        let args = self.args;
        let first = self.first()?;
        fs::create_dir_all(&args.out).wrap_err_with(|| {
            format!("cannot create {}; choose another --out", args.out.display())
        })?;
        let options = RunOptions {
            checkpoints: false,
            ..RunOptions::default()
        };
        let mut candidates: BTreeMap<String, Vec<Candidate>> = BTreeMap::new();
        let try_out = |what: &str, trials: Vec<Trial>, found: &mut BTreeMap<String, Vec<_>>| {
            eprintln!("{what}: {} runs", trials.len());
            let jobs: Vec<Job> = trials.iter().map(|trial| trial.job.clone()).collect();
            let parallel = args.jobs as usize;
            execute(&jobs, parallel, &self.model, device, &options, stop)?.finish()?;
            for trial in &trials {
                let of_method = found.entry(trial.method.clone()).or_default();
                of_method.push(trial.found()?);
            }
            Ok::<(), eyre::Report>(())
        };
        try_out("learning rates", first, &mut candidates)?;
        let own = self.own_settings(&candidates)?;
        try_out("settings of their own", own, &mut candidates)?;
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
            eprintln!("note: --quick makes few updates on few images; these choices mean nothing");
        }
        Ok(tuned)
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

    fn trial(&self, name: &str, set: Vec<String>) -> Result<Trial> {
        let common = Common {
            model: &self.model,
            device: &self.args.device,
            peers: &[],
            evaluation: EvalOptions::default(),
            guard: Vec::new(),
            skip_bad_images: false,
            select: None,
        };
        let folder = safe(&format!("{name} {}", set.join(" ")));
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
        Ok(Trial {
            method: name.to_owned(),
            set,
            job,
        })
    }

    /// A method with each learning rate, or once where it has none.
    fn rates(&self, name: &str) -> Result<Vec<Trial>> {
        let method = self.method(name, &[])?;
        if method.analytic.is_some() {
            return Ok(vec![self.trial(name, Vec::new())?]);
        }
        let adapters = method.lora.is_some() || method.experts.is_some();
        let rates = if adapters { RATES_OF_ADAPTERS } else { RATES };
        rates
            .into_iter()
            .map(|lr| {
                let mut set = vec![format!("lr={lr:e}")];
                if method.lr_later.is_some() {
                    set.push(format!("lr_later={lr:e}"));
                }
                self.trial(name, set)
            })
            .collect()
    }

    /// At the best learning rate of each method, the other values of its own settings, one at a
    /// time.
    fn own_settings(&self, found: &BTreeMap<String, Vec<Candidate>>) -> Result<Vec<Trial>> {
        let mut trials = Vec::new();
        for (name, candidates) in found {
            let best = TunedMethod::best_of(candidates.clone());
            let best = &best.candidates[best.chosen];
            for (key, values) in Method::own_settings(name)? {
                for value in values {
                    let value = match (value.strip_suffix('x'), best.lr()) {
                        (Some(times), Some(lr)) => format!("{:e}", times.parse::<f64>()? * lr),
                        _ => value,
                    };
                    let mut set = best.set.clone();
                    set.retain(|text| !text.starts_with(&format!("{key}=")));
                    set.push(format!("{key}={value}"));
                    trials.push(self.trial(name, set)?);
                }
            }
        }
        Ok(trials)
    }
}

impl Trial {
    fn found(&self) -> Result<Candidate> {
        let path: PathBuf = self.job.folder.join(MetricsFile::NAME);
        let metrics = MetricsFile::load(&path)?;
        let Some(average) = metrics.average else {
            bail!("{} has no Average", path.display());
        };
        Ok(Candidate {
            set: self.set.clone(),
            average,
            transfer: metrics.transfer,
            last: metrics.last,
        })
    }
}

/// What was tried and chosen, a line each method.
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
