//! Adapted weights and their parts: a fused attention projection is up to three weights.

use std::ops::Range;

use burn::{
    module::{Module, ModuleVisitor, Param, ParamGroup},
    tensor::Tensor,
};
use clip_model::ClipModel;

use super::settings::{AttentionPart, Lora};
use mtil_eval::eval::to_host;

/// Separates the path of a weight from the names of its adapter's factors.
pub(super) const ADAPTER: &str = ".lora.";

/// A fused projection of an attention, whose columns are queries, keys and values.
const FUSED: &str = ".attn.in_proj.weight";

/// A weight with adapters.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct AdaptedWeight {
    /// Path of the weight.
    pub path: String,
    /// Rows: the features of its inputs.
    pub inputs: usize,
    /// Columns: the features of its outputs.
    pub outputs: usize,
    /// The columns of each part with an adapter, in order.
    pub parts: Vec<Range<usize>>,
}

impl AdaptedWeight {
    /// Returns the parts of a weight of this shape.
    pub fn new(settings: &Lora, path: &str, [inputs, outputs]: [usize; 2]) -> Self {
        let parts = match &settings.attention {
            Some(adapted) if path.ends_with(FUSED) => {
                let third = outputs / 3;
                let mut adapted = adapted.clone();
                adapted.sort_unstable();
                adapted.dedup();
                let index = |part: &AttentionPart| *part as usize;
                let parts = adapted.iter().map(index);
                parts.map(|i| i * third..(i + 1) * third).collect()
            }
            _ => std::iter::once(0..outputs).collect(),
        };
        Self {
            path: path.to_owned(),
            inputs,
            outputs,
            parts,
        }
    }

    /// Returns the name of a factor of a part: what the factor is for, the part, and the factor.
    pub fn name(&self, role: &str, part: usize, factor: &str) -> String {
        factor_name(&self.path, role, part, factor)
    }

    /// Returns the name of a part in messages and files.
    pub fn part_name(&self, part: usize) -> String {
        match self.parts[part] == (0..self.outputs) {
            true => self.path.clone(),
            false => {
                let third = ["query", "key", "value"];
                let at = self.parts[part].start * 3 / self.outputs;
                format!("{} ({})", self.path, third[at])
            }
        }
    }
}

/// As [`AdaptedWeight::name`], for the weight at `path`.
pub(super) fn factor_name(path: &str, role: &str, part: usize, factor: &str) -> String {
    format!("{path}{ADAPTER}{role}.{part}.{factor}")
}

/// A weight with adapters and its values, row-major `[inputs, outputs]`.
pub(super) type WeightValues = (AdaptedWeight, Vec<f32>);

/// Returns the adapted weights of `model`, in the order of the model.
pub(super) fn adapted_weights(
    model: &ClipModel,
    settings: &Lora,
    groups: &[ParamGroup],
) -> Vec<WeightValues> {
    struct Collect<'a> {
        settings: &'a Lora,
        groups: &'a [ParamGroup],
        stack: Vec<String>,
        found: Vec<WeightValues>,
    }
    impl ModuleVisitor for Collect<'_> {
        fn enter_module(&mut self, name: &str, _: &str) {
            self.stack.push(name.to_owned());
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.stack.pop();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let path = self.stack.join(".");
            if D != 2
                || !self
                    .groups
                    .iter()
                    .any(|g| g.matches(&param.id, Some(&path)))
            {
                return;
            }
            let value = param.base();
            let dims = value.dims();
            let weight = AdaptedWeight::new(self.settings, &path, [dims[0], dims[1]]);
            self.found.push((weight, to_host(value.inner())));
        }
    }
    let mut collect = Collect {
        settings,
        groups,
        stack: Vec::new(),
        found: Vec::new(),
    };
    model.visit(&mut collect);
    collect.found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fused_projection_has_the_named_parts() {
        let mut settings = Lora::default();
        let of = |settings: &Lora, path: &str| AdaptedWeight::new(settings, path, [4, 12]);
        let fused = "text.blocks.0.attn.in_proj.weight";
        let whole = |weight: &AdaptedWeight| {
            assert_eq!(weight.parts.len(), 1);
            assert_eq!(weight.parts[0], 0..12);
        };
        whole(&of(&settings, fused));
        assert_eq!(of(&settings, fused).part_name(0), fused);
        settings.attention = Some(vec![AttentionPart::Value, AttentionPart::Key]);
        let parts = of(&settings, fused);
        assert_eq!(parts.parts, [4..8, 8..12]);
        assert_eq!(parts.part_name(0), format!("{fused} (key)"));
        assert_eq!(parts.part_name(1), format!("{fused} (value)"));
        assert_eq!(
            parts.name("start", 1, "a"),
            format!("{fused}.lora.start.1.a")
        );
        whole(&of(&settings, "text.blocks.0.mlp.c_fc.weight"));
    }
}
