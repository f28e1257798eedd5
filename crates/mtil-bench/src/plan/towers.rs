//! MACs of the two towers of a CLIP, and their parameters.
//!
//! Of a pre-norm block of width `d`, hidden width `m`, on `n` tokens of which `q` are computed (`q
//! = n`, or 1 where only the pooled token is):
//!
//! | product | MACs forward |
//! |---|---|
//! | query and output projection | `2·q·d²` |
//! | key and value projection | `2·n·d²` |
//! | scores and weighted sum | `2·q·n·d` |
//! | MLP | `2·q·d·m` |
//!
//! Backward, a linear map costs its forward MACs once for the gradient of its weight and once for
//! that of its input; a product of two activations costs them once for each. A gradient that
//! nothing needs is not computed.

use serde::{Deserialize, Serialize};

use super::work::PlanError;

/// The shape of a CLIP with a vision transformer. Both towers have biases everywhere but in the
/// patch embedding and the two final projections (openai/CLIP `clip/model.py:206-347`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Towers {
    /// Side of an image in pixels.
    pub image_side: usize,
    /// Side of a patch in pixels.
    pub patch: usize,
    /// Width of the image tower.
    pub vision_width: usize,
    /// Blocks of the image tower.
    pub vision_layers: usize,
    /// Attention heads of the image tower.
    pub vision_heads: usize,
    /// Hidden width of its MLPs.
    pub vision_mlp: usize,
    /// Width of the text tower.
    pub text_width: usize,
    /// Blocks of the text tower.
    pub text_layers: usize,
    /// Attention heads of the text tower.
    pub text_heads: usize,
    /// Hidden width of its MLPs.
    pub text_mlp: usize,
    /// Positions of the text tower.
    pub context: usize,
    /// Tokens of the vocabulary.
    pub vocab: usize,
    /// Width of the joint space.
    pub embed: usize,
}

/// What of the last block is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LastBlock {
    /// All tokens, as in the published code.
    AllTokens,
    /// Only the token that is pooled; exact, since nothing else reaches the output.
    PooledToken,
}

/// What of the image tower trains.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ImagePart {
    /// Nothing.
    Nothing,
    /// The two weights of every MLP, and the final projection (GNSP
    /// `src/models/finetune_gnsp.py:112-121`).
    MlpAndProj,
    /// Everything.
    All,
}

/// A weight whose gradient is projected: `features` inputs, `columns` outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Projected {
    /// Rows and columns of its Gram matrix.
    pub features: usize,
    /// Columns that are projected.
    pub columns: usize,
}

/// The blocks of one tower on one input.
struct Blocks {
    layers: usize,
    width: f64,
    mlp: f64,
    tokens: f64,
    last: LastBlock,
}

struct BlockMacs {
    linear: f64,
    products: f64,
    mlp: f64,
}

impl Blocks {
    fn each(&self) -> impl Iterator<Item = (usize, BlockMacs)> {
        let (n, d) = (self.tokens, self.width);
        (0..self.layers).map(move |i| {
            let pooled = self.last == LastBlock::PooledToken && i + 1 == self.layers;
            let q = if pooled { 1.0 } else { n };
            let macs = BlockMacs {
                linear: 2.0 * (q + n) * d * d,
                products: 2.0 * q * n * d,
                mlp: 2.0 * q * d * self.mlp,
            };
            (i, macs)
        })
    }

    fn forward(&self) -> f64 {
        self.each()
            .map(|(_, b)| b.linear + b.products + b.mlp)
            .sum()
    }

    /// With nothing but the MLPs' weights training: below the first block's MLP no gradient is
    /// needed, not even that of its own input.
    fn backward_mlp(&self) -> f64 {
        self.each()
            .map(|(i, b)| match i {
                0 => b.mlp + b.mlp / 2.0,
                _ => 2.0 * b.mlp + b.linear + 2.0 * b.products,
            })
            .sum()
    }
}

impl Towers {
    /// CLIP ViT-B/16 of OpenAI.
    pub fn vit_b_16() -> Self {
        Self {
            image_side: 224,
            patch: 16,
            vision_width: 768,
            vision_layers: 12,
            vision_heads: 12,
            vision_mlp: 3072,
            text_width: 512,
            text_layers: 12,
            text_heads: 8,
            text_mlp: 2048,
            context: 77,
            vocab: 49408,
            embed: 512,
        }
    }

    /// Checks that the shape is one.
    ///
    /// # Errors
    /// [`PlanError::Zero`] naming the field, [`PlanError::Patch`] when an image is no grid of
    /// patches.
    pub fn check(&self) -> Result<(), PlanError> {
        for (field, value) in [
            ("image_side", self.image_side),
            ("patch", self.patch),
            ("vision_width", self.vision_width),
            ("vision_layers", self.vision_layers),
            ("vision_heads", self.vision_heads),
            ("vision_mlp", self.vision_mlp),
            ("text_width", self.text_width),
            ("text_layers", self.text_layers),
            ("text_heads", self.text_heads),
            ("text_mlp", self.text_mlp),
            ("context", self.context),
            ("vocab", self.vocab),
            ("embed", self.embed),
        ] {
            if value == 0 {
                return Err(PlanError::Zero(field));
            }
        }
        if !self.image_side.is_multiple_of(self.patch) {
            return Err(PlanError::Patch {
                side: self.image_side,
                patch: self.patch,
            });
        }
        Ok(())
    }

    /// Tokens of an image: its patches and the class token.
    pub fn image_tokens(&self) -> usize {
        (self.image_side / self.patch).pow(2) + 1
    }

    fn image_blocks(&self, last: LastBlock) -> Blocks {
        Blocks {
            layers: self.vision_layers,
            width: self.vision_width as f64,
            mlp: self.vision_mlp as f64,
            tokens: self.image_tokens() as f64,
            last,
        }
    }

    fn text_blocks(&self, tokens: usize, last: LastBlock) -> Blocks {
        Blocks {
            layers: self.text_layers,
            width: self.text_width as f64,
            mlp: self.text_mlp as f64,
            tokens: tokens as f64,
            last,
        }
    }

    /// Patch embedding: `(n − 1)·3·p²·d`.
    fn embedding(&self) -> f64 {
        let patch = 3 * self.patch * self.patch;
        (self.image_tokens() - 1) as f64 * patch as f64 * self.vision_width as f64
    }

    fn image_proj(&self) -> f64 {
        self.vision_width as f64 * self.embed as f64
    }

    /// MACs of one image forward: patch embedding, blocks, final projection `d·e`.
    pub fn image_forward(&self, last: LastBlock) -> f64 {
        self.embedding() + self.image_blocks(last).forward() + self.image_proj()
    }

    /// MACs of one image backward. All: twice the forward ones without the gradient of the pixels.
    pub fn image_backward(&self, part: ImagePart, last: LastBlock) -> f64 {
        match part {
            ImagePart::Nothing => 0.0,
            ImagePart::MlpAndProj => {
                self.image_blocks(last).backward_mlp() + 2.0 * self.image_proj()
            }
            ImagePart::All => 2.0 * self.image_forward(last) - self.embedding(),
        }
    }

    /// MACs of one text of `tokens` positions forward: blocks, final projection `w·e`. The whole
    /// square of scores is counted, half of which the causal mask hides.
    pub fn text_forward(&self, tokens: usize, last: LastBlock) -> f64 {
        self.text_blocks(tokens, last).forward() + self.text_width as f64 * self.embed as f64
    }

    /// MACs of one text backward with everything training: twice the forward ones (the embeddings
    /// train, so the first block's input needs its gradient).
    pub fn text_backward(&self, tokens: usize, last: LastBlock) -> f64 {
        2.0 * self.text_forward(tokens, last)
    }

    /// The weights that null-space methods project: both of every MLP, and the final projection.
    pub fn projected(&self) -> Vec<Projected> {
        let (d, m) = (self.vision_width, self.vision_mlp);
        let weight = |features, columns| Projected { features, columns };
        let mut all = Vec::with_capacity(2 * self.vision_layers + 1);
        for _ in 0..self.vision_layers {
            all.extend([weight(d, m), weight(m, d)]);
        }
        all.push(weight(d, self.embed));
        all
    }

    /// MACs of one image's Gram matrices `XᵀX`: `rows·n²` each, or `rows·n(n+1)/2` where only one
    /// triangle is computed. The rows are the image's tokens; one for the final projection, and for
    /// the last block where only its pooled token is remembered.
    pub fn gram_products(&self, last: LastBlock, triangle: bool) -> f64 {
        let entries = |n: usize| {
            let n = n as f64;
            if triangle { n * (n + 1.0) / 2.0 } else { n * n }
        };
        let block = entries(self.vision_width) + entries(self.vision_mlp);
        let tokens = self.image_tokens() as f64;
        let last_tokens = match last {
            LastBlock::AllTokens => tokens,
            LastBlock::PooledToken => 1.0,
        };
        ((self.vision_layers - 1) as f64 * tokens + last_tokens) * block
            + entries(self.vision_width)
    }

    /// Numbers in all Gram matrices: `n(n+1)/2` of each where only a triangle is kept, else `n²`.
    pub fn gram_values(&self, triangle: bool) -> u64 {
        let entries = |p: &Projected| {
            let n = p.features as u64;
            if triangle { n * (n + 1) / 2 } else { n * n }
        };
        self.projected().iter().map(entries).sum()
    }

    /// Parameters of the image tower.
    pub fn image_parameters(&self) -> u64 {
        let (d, p) = (self.vision_width as u64, self.patch as u64);
        let positions = self.image_tokens() as u64;
        3 * p * p * d
            + d
            + positions * d
            + 4 * d
            + self.vision_layers as u64 * block_parameters(d, self.vision_mlp as u64)
            + d * self.embed as u64
    }

    /// Parameters of the text tower.
    pub fn text_parameters(&self) -> u64 {
        let w = self.text_width as u64;
        (self.vocab + self.context) as u64 * w
            + self.text_layers as u64 * block_parameters(w, self.text_mlp as u64)
            + 2 * w
            + w * self.embed as u64
    }

    /// Parameters of both towers and the logit scale.
    pub fn parameters(&self) -> u64 {
        self.image_parameters() + self.text_parameters() + 1
    }

    /// Parameters that train. The logit scale never does (GNSP `src/models/finetune_gnsp.py:173`).
    pub fn trainable(&self, image: ImagePart, text: bool) -> u64 {
        let image = match image {
            ImagePart::Nothing => 0,
            ImagePart::MlpAndProj => self
                .projected()
                .iter()
                .map(|p| (p.features * p.columns) as u64)
                .sum(),
            ImagePart::All => self.image_parameters(),
        };
        image + if text { self.text_parameters() } else { 0 }
    }
}

/// Attention `4d² + 4d`, MLP `2dm + m + d`, two normalisations `4d`.
fn block_parameters(d: u64, m: u64) -> u64 {
    4 * d * d + 4 * d + 2 * d * m + m + d + 4 * d
}

#[cfg(test)]
mod tests {
    use super::*;
    use LastBlock::{AllTokens, PooledToken};

    fn giga(x: f64) -> f64 {
        (x / 1e6).round() / 1e3
    }

    #[test]
    fn macs_of_vit_b_16_are_those_of_a_flop_counter() {
        let t = Towers::vit_b_16();
        // PyTorch's FlopCounterMode on the published module: 17.5635 and 2.9798 G forward.
        assert_eq!(t.image_forward(AllTokens), 17_563_453_440.0);
        assert_eq!(t.text_forward(77, AllTokens), 2_979_770_368.0);
        assert_eq!(giga(t.image_backward(ImagePart::All, AllTokens)), 35.011);
        let mlp = t.image_backward(ImagePart::MlpAndProj, AllTokens);
        assert_eq!(giga(mlp), 28.270);
        // Forward and backward: 52.93 and 46.16 G, of which the fused attention's second
        // computation of the scores is 12 and 11 blocks of 197²·768.
        let scores = 197.0 * 197.0 * 768.0;
        let all = t.image_forward(AllTokens) + t.image_backward(ImagePart::All, AllTokens);
        assert_eq!(((all + 12.0 * scores) / 1e7).round(), 5293.0);
        let part = t.image_forward(AllTokens) + mlp;
        assert_eq!(((part + 11.0 * scores) / 1e7).round(), 4616.0);
        assert_eq!(t.image_backward(ImagePart::Nothing, AllTokens), 0.0);
        assert_eq!(giga(t.gram_products(AllTokens, false)), 23.704);
    }

    #[test]
    fn the_pooled_token_saves_what_does_not_reach_the_output() {
        let t = Towers::vit_b_16();
        let saved = t.image_forward(AllTokens) - t.image_forward(PooledToken);
        // 196 tokens of query, output projection, attention and MLP.
        let (d, m) = (768.0, 3072.0);
        let expected = 196.0 * (2.0 * d * d + 2.0 * 197.0 * d + 2.0 * d * m);
        assert_eq!(saved, expected);
        assert_eq!(giga(saved), 1.215);
        let part = ImagePart::MlpAndProj;
        let saved = t.image_backward(part, AllTokens) - t.image_backward(part, PooledToken);
        let expected = 196.0 * (2.0 * d * d + 4.0 * 197.0 * d + 4.0 * d * m);
        assert_eq!(saved, expected);
        assert!(t.text_forward(13, PooledToken) < t.text_forward(13, AllTokens));
        // 13 tokens instead of 77: 0.49 G.
        assert_eq!((t.text_forward(13, AllTokens) / 1e7).round(), 49.0);
        let rows = t.gram_products(AllTokens, false) - t.gram_products(PooledToken, false);
        assert_eq!(rows, 196.0 * (d * d + m * m));
        let half = t.gram_products(AllTokens, true) / t.gram_products(AllTokens, false);
        assert!((half - 0.5).abs() < 1e-3, "{half}");
    }

    #[test]
    fn parameters_are_those_of_the_published_models() {
        let b16 = Towers::vit_b_16();
        assert_eq!(b16.parameters(), 149_620_737);
        assert_eq!(b16.image_parameters(), 86_192_640);
        assert_eq!(b16.trainable(ImagePart::All, true), 149_620_736);
        assert_eq!(b16.trainable(ImagePart::MlpAndProj, false), 57_016_320);
        assert_eq!(b16.trainable(ImagePart::Nothing, false), 0);
        assert_eq!(b16.gram_values(false), 120_913_920);
        assert_eq!(
            b16.gram_values(true),
            13 * 768 * 769 / 2 + 12 * 3072 * 3073 / 2
        );
        let l14 = Towers {
            patch: 14,
            vision_width: 1024,
            vision_layers: 24,
            vision_heads: 16,
            vision_mlp: 4096,
            text_width: 768,
            text_heads: 12,
            text_mlp: 3072,
            embed: 768,
            ..b16
        };
        assert_eq!(l14.parameters(), 427_616_513);
        assert_eq!(l14.image_parameters(), 303_966_208);
        assert_eq!(l14.image_tokens(), 257);
    }

    #[test]
    fn shapes_that_are_none_are_refused() {
        let good = Towers::vit_b_16();
        good.check().unwrap();
        let none = Towers {
            text_mlp: 0,
            ..good
        };
        assert!(none.check().unwrap_err().to_string().contains("text_mlp"));
        let torn = Towers { patch: 15, ..good };
        assert!(torn.check().unwrap_err().to_string().contains("15"));
    }
}
