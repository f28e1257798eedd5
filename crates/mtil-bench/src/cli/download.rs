//! Download of the zoo's weights, with a progress bar.

use clip_model::zoo::{Entry, Fetched, Layout};
use eyre::Result;

/// Looks up a model in the cache, and downloads missing files unless `offline`.
#[cfg(feature = "fetch")]
pub fn fetch(entry: &Entry, offline: bool, layout: Option<Layout>) -> Result<Fetched> {
    let mut options = clip_model::zoo::FetchOptions::from_env()?;
    options.offline |= offline;
    options.layout = layout;
    let mut bar = DownloadBar::new(&entry.name);
    let fetched = clip_model::zoo::fetch(entry, &options, &mut |progress| {
        bar.show(progress.file, progress.done, progress.total);
    });
    bar.clear();
    Ok(fetched?)
}

/// Looks up a model in the cache.
#[cfg(not(feature = "fetch"))]
pub fn fetch(entry: &Entry, _offline: bool, layout: Option<Layout>) -> Result<Fetched> {
    use clip_model::zoo::ZooError;
    match clip_model::zoo::Cache::from_env()?.lookup(entry, layout) {
        Err(e @ ZooError::NotCached { .. }) => Err(eyre::eyre!(
            "{e}\nthis program was built without downloads; build it with the feature `fetch`: \
             cargo install --path crates/mtil-bench --features fetch"
        )),
        other => Ok(other?),
    }
}

/// A progress bar if standard error is a terminal, a line for every tenth of a file otherwise.
#[cfg(feature = "fetch")]
struct DownloadBar {
    name: String,
    bar: indicatif::ProgressBar,
    file: String,
    tenth: u64,
}

#[cfg(feature = "fetch")]
impl DownloadBar {
    fn new(name: &str) -> Self {
        let bar = indicatif::ProgressBar::new_spinner();
        // Hashing gigabytes of cached files takes seconds.
        bar.set_message(format!("{name}: looking in the cache"));
        bar.enable_steady_tick(std::time::Duration::from_millis(200));
        Self {
            name: name.to_owned(),
            bar,
            file: String::new(),
            tenth: 0,
        }
    }

    fn show(&mut self, file: &str, done: u64, total: Option<u64>) {
        if self.file != file {
            file.clone_into(&mut self.file);
            self.tenth = 0;
            let template = match total {
                Some(_) => {
                    "{msg} {bar:20} {decimal_bytes}/{decimal_total_bytes} \
                     {decimal_bytes_per_sec} {eta} left"
                }
                None => "{msg} {decimal_bytes} {decimal_bytes_per_sec}",
            };
            if let Ok(style) = indicatif::ProgressStyle::with_template(template) {
                self.bar.set_style(style);
            }
            self.bar.reset();
            self.bar.set_message(format!("{}: {file}", self.name));
            if self.bar.is_hidden() {
                let size = total.map_or(String::new(), |t| {
                    format!(" ({})", indicatif::DecimalBytes(t))
                });
                eprintln!("{}: fetching {file}{size}", self.name);
            }
        }
        if let Some(total) = total {
            self.bar.set_length(total);
            let tenth = done * 10 / total.max(1);
            if self.bar.is_hidden() && tenth > self.tenth {
                eprintln!("{}: {file} {} %", self.name, tenth * 10);
            }
            self.tenth = self.tenth.max(tenth);
        }
        self.bar.set_position(done);
    }

    fn clear(&self) {
        self.bar.finish_and_clear();
    }
}
