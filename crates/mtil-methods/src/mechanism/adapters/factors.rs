//! Factored adapters of weights: `scale·A·B` for each part, with a gate or a core between A and B.

use std::ops::Range;

use burn::{
    module::{Module, Param, ParamGroup, Reparameterization, Reparameterizer},
    tensor::{Device, Tensor, TensorData},
};
use clip_model::{ClipModel, parameter_id};

use super::{
    parts::{ADAPTER, AdaptedWeight},
    settings::{AdapterBasis, AdapterTrain, Lora},
};
use crate::mechanism::module_file::NamedTensors;

/// Role of the factors that train, in their names.
pub(super) const PARTS: &str = "parts";
/// Role of the factors whose product is subtracted from the weight.
pub(super) const START: &str = "start";

/// Adapters of the parts of one weight.
#[derive(Module, Debug)]
pub(crate) struct FactoredAdapter {
    parts: Vec<Factors>,
    /// Columns of each part.
    #[module(skip)]
    columns: Vec<Range<usize>>,
    #[module(skip)]
    scale: f64,
}

/// The factors of one part: `A·diag(gate)·core·B`.
#[derive(Module, Debug)]
struct Factors {
    /// `[inputs, rank]`.
    a: Param<Tensor<2>>,
    /// `[1, rank]`.
    gate: Option<Param<Tensor<2>>>,
    /// `[rank, rank]`.
    core: Option<Param<Tensor<2>>>,
    /// `[rank, outputs]`.
    b: Param<Tensor<2>>,
}

impl Factors {
    fn product(&self) -> Tensor<2> {
        let mut a = self.a.val();
        if let Some(gate) = &self.gate {
            a = a * gate.val();
        }
        if let Some(core) = &self.core {
            a = a.matmul(core.val());
        }
        a.matmul(self.b.val())
    }
}

impl FactoredAdapter {
    /// Returns the change of a weight of `outputs` columns.
    ///
    /// # Shapes
    /// - output: `[inputs, outputs]`
    fn delta(&self, outputs: usize) -> Tensor<2> {
        let mut blocks = Vec::with_capacity(self.parts.len());
        let mut end = 0;
        for (factors, columns) in self.parts.iter().zip(&self.columns) {
            let product = factors.product().mul_scalar(self.scale);
            push_zeros(&mut blocks, &product, columns.start - end);
            end = columns.end;
            blocks.push(product);
        }
        let last = blocks[blocks.len() - 1].clone();
        push_zeros(&mut blocks, &last, outputs - end);
        match blocks.len() {
            1 => last,
            _ => Tensor::cat(blocks, 1),
        }
    }
}

/// Adds `count` columns of zeros, like those of `like`.
fn push_zeros(blocks: &mut Vec<Tensor<2>>, like: &Tensor<2>, count: usize) {
    if count > 0 {
        let [rows, _] = like.dims();
        blocks.push(Tensor::zeros([rows, count], &like.device()));
    }
}

impl Reparameterization for FactoredAdapter {
    const NAME: &'static str = "lora";

    fn apply<const D: usize>(&self, base: Tensor<D>) -> Tensor<D> {
        let shape = base.dims();
        base + self.delta(shape[D - 1]).reshape(shape)
    }
}

/// Adds the adapters with the given values to the weights `groups` of `model`, and freezes all
/// other parameters. The product of the factors of the role [`START`], if there are any, is
/// subtracted from the weight, so that it starts as it was. Returns the first missing factor as an
/// error.
pub(super) fn attach(
    model: ClipModel,
    settings: &Lora,
    groups: &[ParamGroup],
    values: &NamedTensors,
) -> Result<ClipModel, String> {
    let mut missing = None;
    let model = model.apply_reparameterization(Factored {
        settings,
        groups,
        values,
        missing: &mut missing,
    });
    match missing {
        Some(name) => Err(name),
        None => Ok(model),
    }
}

struct Factored<'a> {
    settings: &'a Lora,
    groups: &'a [ParamGroup],
    values: &'a NamedTensors,
    missing: &'a mut Option<String>,
}

impl Factored<'_> {
    fn adapter(
        &mut self,
        weight: &AdaptedWeight,
        role: &str,
        on: &Device,
    ) -> Option<FactoredAdapter> {
        let trains = Trains::of(self.settings);
        let trains = if role == PARTS {
            trains
        } else {
            Trains::default()
        };
        let mut parts = Vec::with_capacity(weight.parts.len());
        for part in 0..weight.parts.len() {
            let factor = |name: &str, trains: bool| {
                let name = weight.name(role, part, name);
                let (shape, values) = self.values.get(&name)?;
                let shape = [shape[0], *shape.get(1)?];
                let value = Tensor::from_data(TensorData::new(values.clone(), shape), on);
                Some(Param::initialized(parameter_id(&name), value).set_require_grad(trains))
            };
            let required = |name: &str, trains: bool| {
                factor(name, trains).ok_or_else(|| weight.name(role, part, name))
            };
            match (required("a", trains.a), required("b", trains.b)) {
                (Ok(a), Ok(b)) => parts.push(Factors {
                    a,
                    gate: factor("gate", trains.gate),
                    core: factor("core", trains.core),
                    b,
                }),
                (Err(name), _) | (_, Err(name)) => {
                    self.missing.get_or_insert(name);
                    return None;
                }
            }
        }
        Some(FactoredAdapter {
            parts,
            columns: weight.parts.clone(),
            scale: self.settings.scale(),
        })
    }
}

/// The factors that train.
#[derive(Default)]
struct Trains {
    a: bool,
    gate: bool,
    core: bool,
    b: bool,
}

impl Trains {
    fn of(settings: &Lora) -> Self {
        let train = settings.train;
        Self {
            a: train == AdapterTrain::Both,
            gate: settings.gate.is_some() || settings.basis == AdapterBasis::WeightTail,
            core: train == AdapterTrain::Core,
            b: train != AdapterTrain::Core,
        }
    }
}

impl Reparameterizer for Factored<'_> {
    type Reparam = FactoredAdapter;

    fn reparameterize<const D: usize>(
        &mut self,
        path: &str,
        param: Param<Tensor<D>>,
    ) -> (Param<Tensor<D>>, Option<FactoredAdapter>) {
        let id = param.id;
        let chosen = D == 2 && self.groups.iter().any(|g| g.matches(&id, Some(path)));
        let base = param.base();
        let frozen = param.set_require_grad(false);
        if !chosen {
            return (frozen, None);
        }
        let (dims, device) = (base.dims(), base.device());
        let weight = AdaptedWeight::new(self.settings, path, [dims[0], dims[1]]);
        let Some(adapter) = self.adapter(&weight, PARTS, &device) else {
            return (frozen, None);
        };
        let prefix = format!("{path}{ADAPTER}{START}.");
        let following = self.values.range(prefix.clone()..).next();
        if !following.is_some_and(|(name, _)| name.starts_with(&prefix)) {
            return (frozen, Some(adapter));
        }
        let Some(start) = self.adapter(&weight, START, &device) else {
            return (frozen, None);
        };
        // The adapter starts as the product that is taken off here.
        let start = start.delta(dims[1]).reshape(dims);
        let shifted = frozen.map(|base| base.detach() - start.detach());
        (shifted.set_require_grad(false), Some(adapter))
    }
}

#[cfg(test)]
mod tests {
    use burn::nn::{Linear, LinearConfig};

    use super::*;
    use mtil_eval::eval::to_host;

    fn values(names: &[(&str, [usize; 2])]) -> NamedTensors {
        let of = |(name, shape): &(&str, [usize; 2])| {
            let values = (0..shape[0] * shape[1]).map(|i| ((i * 7 + name.len()) % 5) as f32 - 2.0);
            ((*name).to_owned(), (shape.to_vec(), values.collect()))
        };
        names.iter().map(of).collect()
    }

    fn adapted(settings: &Lora, values: &NamedTensors) -> Linear {
        let device = Device::flex().autodiff();
        let linear = LinearConfig::new(4, 3).with_bias(false).init(&device);
        let mut missing = None;
        let adapted = linear.apply_reparameterization(Factored {
            settings,
            groups: &[ParamGroup::all()],
            values,
            missing: &mut missing,
        });
        assert_eq!(missing, None);
        adapted
    }

    #[test]
    fn merged_and_unmerged_weights_give_the_same_outputs() {
        let settings = Lora {
            rank: 2,
            alpha: 1.0,
            ..Lora::default()
        };
        let values = values(&[
            ("weight.lora.parts.0.a", [4, 2]),
            ("weight.lora.parts.0.b", [2, 3]),
            ("weight.lora.parts.0.gate", [1, 2]),
            ("weight.lora.start.0.a", [4, 2]),
            ("weight.lora.start.0.b", [2, 3]),
        ]);
        let adapted = adapted(&settings, &values);
        let x = Tensor::<2>::from_data([[1.0, -2.0, 0.5, 3.0]], &Device::flex());
        let plain = adapted.valid();
        let unmerged = to_host(plain.forward(x.clone()));
        let merged = plain.materialize();
        for (a, b) in unmerged.iter().zip(to_host(merged.forward(x))) {
            assert!((a - b).abs() <= 1e-6 * a.abs().max(1.0), "{a} {b}");
        }
    }

    #[test]
    fn an_adapter_that_starts_as_a_part_of_the_weight_leaves_it_unchanged() {
        let settings = Lora {
            rank: 2,
            ..Lora::default()
        };
        let mut all = values(&[
            ("weight.lora.parts.0.a", [4, 2]),
            ("weight.lora.parts.0.b", [2, 3]),
        ]);
        for factor in ["a", "b"] {
            let value = all[&format!("weight.lora.parts.0.{factor}")].clone();
            all.insert(format!("weight.lora.start.0.{factor}"), value);
        }
        let adapted = adapted(&settings, &all);
        let delta = &adapted.weight;
        let adapter = delta.reparameterization::<FactoredAdapter>().unwrap();
        let change = adapter.delta(3);
        let before = to_host((delta.base() + change.clone()).inner());
        assert_eq!(before, to_host(delta.val().inner()));
        assert!(!delta.base().is_require_grad());
        assert!(to_host(change.inner()).iter().any(|x| *x != 0.0));
    }

    #[test]
    fn a_gate_of_zero_removes_its_rank() {
        let settings = Lora {
            rank: 2,
            alpha: 2.0,
            ..Lora::default()
        };
        let names = [
            ("weight.lora.parts.0.a", [4, 2]),
            ("weight.lora.parts.0.b", [2, 3]),
            ("weight.lora.parts.0.gate", [1, 2]),
        ];
        let mut with = values(&names);
        with.get_mut(names[2].0).unwrap().1 = vec![0.0, 0.75];
        // The same without the first rank.
        let mut without = with.clone();
        for (name, values) in &mut without {
            if name.ends_with(".a") {
                values.1.iter_mut().step_by(2).for_each(|x| *x = 99.0);
            }
        }
        let delta = |values: &NamedTensors| {
            let adapted = adapted(&settings, values);
            let adapter = adapted.weight.reparameterization::<FactoredAdapter>();
            to_host(adapter.unwrap().delta(3).inner())
        };
        assert_eq!(delta(&with), delta(&without));
        assert!(delta(&with).iter().any(|x| *x != 0.0));
    }
}
