//! Data-parallel training: the images of a training step are split over several devices.
//!
//! This follows Burn's own strategy for several devices (`burn-train`
//! `learner/supervised/strategies/multi`): each device has a replica of the model, and the
//! gradients are summed on the first device, where the optimizer with its projectors does the step.
//! The difference is that a contrastive loss needs the features of the whole batch. They are
//! gathered first, the loss is computed once, and the gradient of each feature returns to its
//! device, as in open_clip's `gather_features` with gradients (`open_clip/loss.py`). The gradients
//! therefore equal those of one device with the same batch, up to the order of sums.

use std::ops::Range;

use burn::{
    module::Module,
    optim::{GradientsAccumulator, GradientsParams},
    tensor::{Device, FloatDType, Gradients, Tensor},
};
use clip_model::ClipModel;

/// Features of a batch gathered from several devices, with the graphs for their gradients.
pub(super) struct GatheredFeatures {
    /// Features `[images, width]` on the first device, the input of the loss.
    pub features: Tensor<2>,
    parts: Vec<DevicePart>,
}

struct DevicePart {
    rows: Range<usize>,
    replica: ClipModel,
    features: Tensor<2>,
}

/// Encodes `pixels`, one part of the batch on each of `devices`; the model's device is the first.
/// Features are not normalised.
///
/// # Shapes
/// - pixels: `[images, 3, side, side]`
pub(super) fn encode_images(
    model: &ClipModel,
    pixels: Tensor<4>,
    devices: &[Device],
) -> GatheredFeatures {
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
        DevicePart {
            rows,
            replica,
            features,
        }
    };
    let parts = map_in_threads(devices[..count].iter().enumerate().collect(), |(i, d)| {
        part(i, d)
    });
    // The gathered features are a leaf of the graph on the first device; its gradient is sent back
    // to the parts.
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
    GatheredFeatures {
        features: Tensor::from_data(values.into_data(), first).require_grad(),
        parts,
    }
}

impl GatheredFeatures {
    /// Returns the gradients of the parameters, given those of the loss. `model` is the one on the
    /// first device.
    pub fn gradients(self, gradients: &mut Gradients, model: &ClipModel) -> GradientsParams {
        let own = GradientsParams::from_module(gradients, model);
        let Some(of_features) = self.features.grad_remove(gradients) else {
            return own;
        };
        let first = model.device();
        let parts = map_in_threads(self.parts, |part| {
            let device = part.features.device();
            let gradient = of_features.clone().slice(part.rows);
            let gradient = Tensor::from_data(gradient.into_data(), &device);
            // The gradient of Σ f·g with respect to the weights is the vector-Jacobian product of
            // g.
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

/// Applies `f` to every item: the first on this thread, each other on a thread of its own. Results
/// are in the order of the items.
fn map_in_threads<T: Send, R: Send>(items: Vec<T>, f: impl Fn(T) -> R + Sync) -> Vec<R> {
    std::thread::scope(|scope| {
        let f = &f;
        let mut items = items.into_iter();
        let first = items.next();
        let threads: Vec<_> = items.map(|item| scope.spawn(move || f(item))).collect();
        // This thread may belong to the thread pool, which must not lose it to waiting.
        let first = first.map(f);
        let others = threads.into_iter().map(|thread| {
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        first.into_iter().chain(others).collect()
    })
}
