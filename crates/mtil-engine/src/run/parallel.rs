//! Data-parallel training: the images of an update spread over several devices.
//!
//! As Burn's own strategy for several devices (`burn-train` `learner/supervised/strategies/multi`):
//! a replica of the model on each device, gradients brought together on the first, where the
//! optimizer with its projectors makes the step. What differs is that a contrastive loss needs the
//! features of the whole batch, so these are gathered first, the loss is computed once, and the
//! gradient of each feature goes back to the device it came from, as in open_clip's
//! `gather_features` with gradients (`open_clip/loss.py`). The gradients are therefore those of one
//! device with the same batch, but for the order of sums.

use std::ops::Range;

use burn::{
    module::Module,
    optim::{GradientsAccumulator, GradientsParams},
    tensor::{Device, FloatDType, Gradients, Tensor},
};
use clip_model::ClipModel;

/// The features of a batch whose parts were computed on several devices, waiting for their
/// gradients.
pub(super) struct Gathered {
    /// `[images, e]` on the first device; the loss is computed from this.
    pub features: Tensor<2>,
    parts: Vec<Part>,
}

struct Part {
    rows: Range<usize>,
    replica: ClipModel,
    features: Tensor<2>,
}

/// The features of `pixels`, not normalised: one part of the batch for each of `devices`, of which
/// the model's is the first.
pub(super) fn encode_images(model: &ClipModel, pixels: Tensor<4>, devices: &[Device]) -> Gathered {
    let images = pixels.dims()[0];
    let count = devices.len().clamp(1, images);
    let part = |i: usize, device: &Device| {
        let rows = i * images / count..(i + 1) * images / count;
        let replica = match i {
            0 => model.clone(),
            _ => model.clone().fork(device),
        };
        let own = pixels.clone().slice(rows.clone());
        let own = match i {
            0 => own,
            _ => Tensor::from_data(own.inner().into_data(), device),
        };
        let features = replica.encode_image(own).cast(FloatDType::F32);
        Part {
            rows,
            replica,
            features,
        }
    };
    let parts = each(devices[..count].iter().enumerate().collect(), |(i, d)| {
        part(i, d)
    });
    let first = &devices[0];
    let values = parts
        .iter()
        .map(|part| {
            part.features
                .clone()
                .inner()
                .to_device(&first.clone().inner())
        })
        .collect();
    let values = Tensor::cat(values, 0);
    Gathered {
        features: Tensor::from_data(values.into_data(), first).require_grad(),
        parts,
    }
}

impl Gathered {
    /// The gradients of the parameters, given those of the loss; `model` is the one on the first
    /// device.
    pub fn gradients(self, gradients: &mut Gradients, model: &ClipModel) -> GradientsParams {
        let own = GradientsParams::from_module(gradients, model);
        let Some(of_features) = self.features.grad_remove(gradients) else {
            return own;
        };
        let first = model.device();
        let parts = each(self.parts, |part| {
            let device = part.features.device();
            let gradient = of_features.clone().slice(part.rows);
            let gradient = Tensor::from_data(gradient.into_data(), &device);
            let back = (part.features * gradient).sum().backward();
            GradientsParams::from_grads(back, &part.replica)
                .to_device(&first.clone().inner(), model)
        });
        let mut sum = GradientsAccumulator::new();
        sum.accumulate(model, own);
        for part in parts {
            sum.accumulate(model, part);
        }
        sum.grads()
    }
}

/// `f` on every item, the first on this thread and each other one on a thread of its own; the
/// results are in the order of the items.
fn each<T: Send, R: Send>(items: Vec<T>, f: impl Fn(T) -> R + Sync) -> Vec<R> {
    std::thread::scope(|scope| {
        let f = &f;
        let mut items = items.into_iter();
        let first = items.next();
        let threads: Vec<_> = items.map(|item| scope.spawn(move || f(item))).collect();
        // This thread may belong to the pool, and should not only wait.
        let first = first.map(f);
        let others = threads.into_iter().map(|thread| {
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        first.into_iter().chain(others).collect()
    })
}
