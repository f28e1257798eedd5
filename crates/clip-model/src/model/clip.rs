//! The model: two towers and a temperature.

use std::ops::Range;

use burn::{
    module::{Module, ModuleMapper, Param},
    tensor::{Device, FloatDType, Int, Tensor, TensorData},
};

use super::{
    ImageTower, Observer, TextTower,
    host::{encode_parts, is_host, parts},
    init::SeededInit,
    params::{Builder, ParamSource, visit_shapes},
    prefix_tree::{PrefixTree, alphabetical, different_beginnings, plant},
};
use crate::{config::ClipConfig, error::CheckpointError, tokenizer::TokenBatch};

/// A CLIP model: two towers and a temperature.
///
/// To train a model that was loaded on a plain device, put it on the tape with [`train`](Module::train); `fork` to an autodiff device
/// leaves its parameters untrained. Frozen parameters (`freeze_group`) and whatever only they reach are off the tape.
#[derive(Module, Debug)]
pub struct ClipModel {
    /// The image tower.
    pub visual: ImageTower,
    /// The text tower.
    pub text: TextTower,
    /// `[1]`, the logarithm of the factor on the cosine similarities.
    pub logit_scale: Param<Tensor<1>>,
    /// `[1]`, added to the logits; only models trained with the sigmoid loss have it.
    pub logit_bias: Option<Param<Tensor<1>>>,
}

impl ClipConfig {
    /// A randomly initialised model on `device`, the same for the same `seed`.
    pub fn init(&self, seed: u64, device: &Device) -> ClipModel {
        ClipModel::build(self, &mut SeededInit::new(self, seed), device)
            .expect("the generator has a value for every parameter")
    }

    /// A model on `device` whose parameters are zero, to be filled or only looked at. On a host device it takes no memory
    /// until it is written to.
    pub fn init_zeros(&self, device: &Device) -> ClipModel {
        ClipModel::build(self, &mut Zeros, device).expect("there are zeros for every parameter")
    }
}

/// Zeros, from memory that the operating system does not touch before it is written to.
struct Zeros;

impl ParamSource for Zeros {
    fn values(&mut self, _path: &str, shape: &[usize]) -> Result<Vec<f32>, CheckpointError> {
        Ok(vec![0.0; shape.iter().product()])
    }
}

impl ClipModel {
    pub(crate) fn build(
        config: &ClipConfig,
        source: &mut dyn ParamSource,
        device: &Device,
    ) -> Result<Self, CheckpointError> {
        let mut builder = Builder { source, device };
        Ok(Self {
            visual: ImageTower::build(&mut builder, config)?,
            text: TextTower::build(&mut builder, config)?,
            logit_scale: builder.param("logit_scale", [1])?,
            logit_bias: config
                .logit_bias_init
                .map(|_| builder.param("logit_bias", [1]))
                .transpose()?,
        })
    }

    /// Image features, not normalised.
    ///
    /// # Shapes
    /// - `pixels`: `[batch, 3, side, side]`, as [`Preprocess::to_tensor`](crate::Preprocess::to_tensor) makes them
    /// - output: `[batch, e]`
    ///
    /// # Panics
    /// If the pixels have another shape.
    pub fn encode_image(&self, pixels: Tensor<4>) -> Tensor<2> {
        let batch = pixels.dims()[0];
        if batch < 2 || !is_host(&pixels.device()) || !is_host(&self.device()) {
            return self.encode_image_observed(pixels, &mut ());
        }
        encode_parts(parts(batch), |part| {
            let pixels = pixels.clone().narrow(0, part.start, part.len());
            self.encode_image_observed(pixels, &mut ())
        })
    }

    /// Like [`encode_image`](Self::encode_image); `observer` sees the input of each linear map of the
    /// MLPs and of the projection on the way, and may add to the blocks.
    ///
    /// # Panics
    /// If the pixels have another shape.
    pub fn encode_image_observed<O: Observer>(
        &self,
        pixels: Tensor<4>,
        observer: &mut O,
    ) -> Tensor<2> {
        let dtype = self.logit_scale.val().dtype();
        let pixels = if pixels.dtype() == dtype {
            pixels
        } else {
            pixels.cast(dtype)
        };
        self.visual.forward(pixels, observer)
    }

    /// Text features `[rows, e]`, not normalised.
    ///
    /// What rows have in common at their beginning is computed once where the tower is causal and that is worth it; otherwise rows of
    /// about the same length are computed together, so that none pays for the longest one. The results are the same.
    ///
    /// # Panics
    /// If a row is longer than the context or holds an id outside the vocabulary, or there is no row.
    pub fn encode_text(&self, tokens: &TokenBatch) -> Tensor<2> {
        let rows: Vec<&[u32]> = tokens.ids.iter().map(Vec::as_slice).collect();
        let lengths: Vec<usize> = rows.iter().map(|row| self.text.needed(row)).collect();
        match self.in_trees(&rows, &lengths) {
            Some(features) => features,
            None => self.in_rows(&rows, &lengths),
        }
    }

    /// Like [`encode_text`](Self::encode_text), but every row by itself, whatever it has in common with others: for comparing the two ways.
    ///
    /// # Panics
    /// As [`encode_text`](Self::encode_text).
    pub fn encode_text_apart(&self, tokens: &TokenBatch) -> Tensor<2> {
        let rows: Vec<&[u32]> = tokens.ids.iter().map(Vec::as_slice).collect();
        let lengths: Vec<usize> = rows.iter().map(|row| self.text.needed(row)).collect();
        self.in_rows(&rows, &lengths)
    }

    /// The features of rows that share much of their beginnings.
    fn in_trees(&self, rows: &[&[u32]], lengths: &[usize]) -> Option<Tensor<2>> {
        let fits = |row: &&[u32]| row.len() <= self.text.context();
        if !self.text.is_causal() || rows.len() < 2 || !rows.iter().all(fits) {
            return None;
        }
        // An empty row is filled up by the other way.
        let read = rows.iter().zip(lengths);
        let texts: Vec<&[u32]> = read
            .map(|(row, length)| row.get(..*length))
            .collect::<Option<_>>()?;
        let order = alphabetical(&texts);
        let nodes = different_beginnings(&texts, &order);
        if nodes * 5 > lengths.iter().sum::<usize>() * 4 {
            return None;
        }
        let host = is_host(&self.device());
        let threads = if host {
            rayon::current_num_threads()
        } else {
            1
        };
        let most = nodes.div_ceil(threads).clamp(SMALLEST_TREE, LARGEST_TREE);
        let trees = plant(&texts, &order, most);
        let encode = |trees: &[PrefixTree]| self.text.forward_trees(trees);
        let features = if host {
            encode_parts(trees.iter().collect(), |tree| {
                encode(std::slice::from_ref(tree))
            })
        } else {
            Tensor::cat(trees.chunks(TREES_AT_ONCE).map(encode).collect(), 0)
        };
        Some(self.back_in_order(features, &order))
    }

    /// The features of rows in groups of about the same length.
    fn in_rows(&self, rows: &[&[u32]], lengths: &[usize]) -> Tensor<2> {
        let (order, mut groups) = by_length(lengths);
        let host = is_host(&self.device());
        if host {
            groups = groups
                .into_iter()
                .flat_map(|group| {
                    let start = group.start;
                    let shift = move |part: Range<usize>| start + part.start..start + part.end;
                    parts(group.len()).into_iter().map(shift)
                })
                .collect();
        }
        if groups.len() <= 1 {
            return self.text.forward(rows, &mut ());
        }
        let encode = |group: Range<usize>| {
            let rows: Vec<_> = order[group].iter().map(|row| rows[*row]).collect();
            self.text.forward(&rows, &mut ())
        };
        let features = if host {
            encode_parts(groups, encode)
        } else {
            Tensor::cat(groups.into_iter().map(encode).collect(), 0)
        };
        self.back_in_order(features, &order)
    }

    /// Undoes an order of the rows.
    fn back_in_order(&self, features: Tensor<2>, order: &[usize]) -> Tensor<2> {
        let mut place = vec![0_i64; order.len()];
        for (at, row) in order.iter().enumerate() {
            place[*row] = at as i64;
        }
        let place = Tensor::<1, Int>::from_data(
            TensorData::new(place, [order.len()]),
            &self.text.positional_embedding.val().device(),
        );
        features.select(0, place)
    }

    /// Like [`encode_text`](Self::encode_text), all rows together; `observer` sees the input of each linear map of the
    /// MLPs on the way, and may add to the blocks.
    ///
    /// # Panics
    /// As [`encode_text`](Self::encode_text).
    pub fn encode_text_observed<O: Observer>(
        &self,
        tokens: &TokenBatch,
        observer: &mut O,
    ) -> Tensor<2> {
        let rows: Vec<&[u32]> = tokens.ids.iter().map(Vec::as_slice).collect();
        self.text.forward(&rows, observer)
    }

    /// The factor on cosine similarities, `exp(logit_scale)`, shape `[1]`.
    pub fn scale(&self) -> Tensor<1> {
        self.logit_scale.val().exp()
    }

    /// The same model with its parameters, and so its activations and its features, in another number format. For inference:
    /// optimizers want 32 bits. Layer norms still sum in 32 bits.
    pub fn to_dtype(self, dtype: FloatDType) -> Self {
        self.map(&mut Cast(dtype))
    }

    /// Number of parameters; the running statistics of batch norms are none.
    pub fn num_parameters(&self) -> usize {
        let mut count = 0;
        visit_shapes(self, &mut |path, shape| {
            if !path.ends_with("running_mean") && !path.ends_with("running_var") {
                count += shape.iter().product::<usize>();
            }
        });
        count
    }

    /// The device the parameters are on.
    pub fn device(&self) -> Device {
        self.logit_scale.val().device()
    }
}

/// Changes the number format of every parameter.
struct Cast(FloatDType);

impl ModuleMapper for Cast {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        param.map(|value| value.cast(self.0))
    }
}

/// Divides each row of `x [rows, e]` by its L2 norm, without an epsilon, as the reference does.
pub fn normalize(x: Tensor<2>) -> Tensor<2> {
    let norm = x.clone().square().sum_dim(1).sqrt();
    x / norm
}

/// An order of the rows by length, the longest first, and the stretches of it that are computed together: each is at most
/// [`LARGEST_GROUP`] rows, and a new one begins where the rows have become a fifth shorter and there are enough of them.
fn by_length(lengths: &[usize]) -> (Vec<usize>, Vec<Range<usize>>) {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|row| std::cmp::Reverse(lengths[*row]));
    let mut groups: Vec<Range<usize>> = Vec::new();
    for (at, row) in order.iter().enumerate() {
        match groups.last_mut() {
            Some(group) => {
                let longest = lengths[order[group.start]];
                let full = group.len() >= LARGEST_GROUP;
                let shorter = group.len() >= SMALLEST_GROUP && lengths[*row] * 5 <= longest * 4;
                if full || shorter {
                    groups.push(at..at + 1);
                } else {
                    group.end = at + 1;
                }
            }
            None => groups.push(at..at + 1),
        }
    }
    (order, groups)
}

/// More rows at once bring no speed and take memory.
const LARGEST_GROUP: usize = 128;

/// Fewer rows at once leave the machine idle.
const SMALLEST_GROUP: usize = 8;

/// Larger trees share hardly more, and their attention, which computes the scores of all pairs of nodes, costs more.
const LARGEST_TREE: usize = 256;

/// Smaller ones share little, and make small products.
const SMALLEST_TREE: usize = 64;

/// Trees that go through an accelerator, or onto a tape, together.
const TREES_AT_ONCE: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_grouped_by_length() {
        let lengths = [vec![5; 20], vec![20; 3], vec![18; 9], vec![6; 10]].concat();
        let (order, groups) = by_length(&lengths);
        let mut seen = order.clone();
        seen.sort_unstable();
        assert_eq!(seen, (0..lengths.len()).collect::<Vec<_>>());
        assert_eq!(groups, [0..12, 12..42]);
        assert_eq!(by_length(&[7; 300]).1, [0..128, 128..256, 256..300]);
        assert!(by_length(&[]).1.is_empty());
    }
}
