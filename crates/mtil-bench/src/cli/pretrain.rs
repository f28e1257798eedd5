//! `pretrain`: pretraining of the embedded model.

use clip_model::Dtype;
use eyre::Result;
use indicatif::{ProgressBar, ProgressStyle};

use super::{args::PretrainArgs, interrupt::stop_flag};
use crate::{
    device,
    pretrain::{PretrainOptions, pretrain as train},
};

/// Runs `pretrain`.
pub fn pretrain(args: &PretrainArgs) -> Result<()> {
    let device = device::parse(&args.device)?;
    let options = PretrainOptions {
        seed: args.seed,
        steps: args.steps,
        batch: args.batch,
        lr: args.lr,
        gap_step: args.steps * 3 / 4,
        ..PretrainOptions::EMBEDDED
    };
    let stop = stop_flag();
    let bar = ProgressBar::new(options.steps as u64);
    bar.set_style(ProgressStyle::with_template(
        "pretraining {bar:20} {pos}/{len} {msg} {eta} left",
    )?);
    let every = (options.steps / 30).max(1);
    let (mut sum, mut count) = (0.0, 0);
    let checkpoint = train(&options, &device, &stop, &mut |step, loss, scale| {
        sum += loss;
        count += 1;
        bar.set_position(step as u64);
        if step % every == 0 || step == 1 {
            let message = format!("loss {:.3}, logit scale {scale:.1}", sum / count as f32);
            if bar.is_hidden() {
                eprintln!("step {step} of {}: {message}", options.steps);
            }
            bar.set_message(message);
            (sum, count) = (0.0, 0);
        }
    })?;
    bar.finish_and_clear();
    // In half precision, because the file is part of the repository.
    checkpoint.save(&args.out, Dtype::F16)?;
    eprintln!(
        "wrote {} ({} parameters)",
        args.out.display(),
        checkpoint.config.parameters()
    );
    Ok(())
}
