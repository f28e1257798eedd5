//! Protected directions of adapted weights, kept from task to task.

use std::{collections::BTreeMap, path::Path};

use clip_model::{Clip, ClipModel};
use gnsp_optimizer::{Basis, RankRule};
use rayon::prelude::*;

use super::{
    LoraMechanism,
    decompose::{below_share, columns_as_rows, decompose, part_of},
    parts::{AdaptedWeight, WeightValues},
    passes::{InputMatrix, input_matrices},
    settings::{Lora, PROTECT_KEY, ProtectInputs, ProtectWeights, Side},
};
use crate::{
    error::RunError,
    mechanism::{
        context::{MethodOutline, PhaseProgress, RunContext, TaskContext},
        hooks::Mechanism,
        module_file,
        state::{MechanismState, RunState},
    },
};
use mtil_eval::metrics::Kept;

const FILE: &str = "basis.safetensors";

/// The directions that residual adapters keep off: those of the pretrained weights and those of the
/// inputs of earlier tasks.
pub(crate) struct ProtectedMechanism(pub LoraMechanism);

impl Mechanism for ProtectedMechanism {
    fn key(&self) -> &'static str {
        PROTECT_KEY
    }

    fn check(&self, _: &MethodOutline) -> Result<(), String> {
        Ok(())
    }

    fn load(
        &self,
        folder: &Path,
        _: &RunContext<'_>,
    ) -> Result<Option<Box<dyn MechanismState>>, RunError> {
        let loaded = ProtectedBases::load(folder)?;
        Ok(loaded.map(|bases| Box::new(bases) as Box<dyn MechanismState>))
    }

    fn prepare_task(
        &self,
        task: &TaskContext<'_>,
        state: &mut RunState,
        _: &mut PhaseProgress<'_>,
    ) -> Result<(), RunError> {
        if state.get::<ProtectedBases>().is_none() {
            let (_, pretrained) = self.0.weights(&task.run.checkpoint.model)?;
            state.set(ProtectedBases::of_weights(&self.0.settings, &pretrained)?);
        }
        Ok(())
    }

    fn finish_task(
        &self,
        trained: &ClipModel,
        task: &TaskContext<'_>,
        state: &mut RunState,
        progress: &mut PhaseProgress<'_>,
    ) -> Result<(), RunError> {
        let settings = &self.0.settings;
        let bases = state.get::<ProtectedBases>().cloned();
        let (Some(protect), Some(mut bases)) = (&settings.protect.inputs, bases) else {
            return Ok(());
        };
        let (_, weights) = self.0.weights(trained)?;
        let statistic = protect.statistic;
        let inputs = input_matrices(trained, &weights, statistic, settings, task, progress)?;
        bases.extend(protect, &weights, &inputs, task.index)?;
        state.set(bases);
        Ok(())
    }
}

/// An orthonormal basis for each part of each adapted weight, by the name of the part.
#[derive(Clone, Default)]
pub(super) struct ProtectedBases(BTreeMap<String, Basis>);

/// Returns the name of a part's basis.
fn name(weight: &AdaptedWeight, part: usize) -> String {
    format!("{}.{part}", weight.path)
}

/// Returns the number of protected leading singular vectors for singular values `s`: those whose
/// cumulative share of the energy is below that of the settings.
pub(super) fn protected_count(settings: &ProtectWeights, path: &str, s: &[f64]) -> usize {
    match (settings.energy_of(path), settings.share) {
        (Some(energy), _) => below_share(s, energy),
        (None, share) => (share.unwrap_or(0.0) * s.len() as f64) as usize,
    }
}

impl ProtectedBases {
    /// Creates the bases before the first task, from the pretrained weights.
    ///
    /// # Errors
    /// [`RunError::NotSquare`] if output directions of a weight cannot be input directions.
    pub fn of_weights(settings: &Lora, weights: &[WeightValues]) -> Result<Self, RunError> {
        let of_part = |(weight, values, part): (&AdaptedWeight, &[f32], usize)| {
            let basis = match &settings.protect.weights {
                None => Basis::empty(weight.inputs),
                Some(protect) => leading_vectors(protect, weight, values, part)?,
            };
            Ok((name(weight, part), basis))
        };
        let parts = weights.iter().flat_map(|(weight, values)| {
            (0..weight.parts.len()).map(move |part| (weight, values.as_slice(), part))
        });
        let parts: Vec<_> = parts.collect();
        let bases = parts.into_par_iter().map(of_part);
        Ok(Self(bases.collect::<Result<_, RunError>>()?))
    }

    /// Adds the directions of a task's inputs, from 0.
    pub fn extend(
        &mut self,
        settings: &ProtectInputs,
        weights: &[WeightValues],
        inputs: &BTreeMap<String, InputMatrix>,
        task: usize,
    ) -> Result<(), RunError> {
        let rule = RankRule::ExplainedEnergy(settings.energy_at(task));
        let of_weight = |(weight, _): &WeightValues| {
            let energy = inputs[&weight.path].energy()?;
            let parts = 0..weight.parts.len();
            let extended = parts.map(|part| {
                let name = name(weight, part);
                let extended = self.get(weight, part).extended(&energy, rule)?;
                Ok((name, extended))
            });
            extended.collect::<Result<Vec<_>, RunError>>()
        };
        let extended = weights.par_iter().map(of_weight);
        let extended = extended.collect::<Result<Vec<_>, RunError>>()?;
        self.0.extend(extended.into_iter().flatten());
        Ok(())
    }

    /// Returns the basis of a part.
    pub fn get(&self, weight: &AdaptedWeight, part: usize) -> Basis {
        let found = self.0.get(&name(weight, part)).cloned();
        found.unwrap_or_else(|| Basis::empty(weight.inputs))
    }

    /// Loads the bases from the folder of a state, if it has any.
    pub fn load(folder: &Path) -> Result<Option<Self>, RunError> {
        let path = folder.join(FILE);
        if !path.exists() {
            return Ok(None);
        }
        let bases = module_file::load(&path)?
            .into_iter()
            .map(|(name, (shape, rows))| {
                let features = shape.get(1).copied().unwrap_or(0);
                let basis = Basis::from_rows(features, rows).map_err(|e| RunError::Corrupt {
                    path: path.clone(),
                    reason: format!("`{name}`: {e}"),
                })?;
                Ok((name, basis))
            });
        Ok(Some(Self(bases.collect::<Result<_, RunError>>()?)))
    }
}

impl MechanismState for ProtectedBases {
    fn copy(&self) -> Option<Box<dyn MechanismState>> {
        Some(Box::new(self.clone()))
    }

    fn save(&self, folder: &Path, _: &Clip) -> Result<(), RunError> {
        let named = self.0.iter().map(|(name, basis)| {
            let shape = vec![basis.rank(), basis.features()];
            (name.clone(), (shape, basis.rows().to_vec()))
        });
        module_file::save(&named.collect(), &folder.join(FILE))
    }

    fn bytes(&self, _: &Clip) -> u64 {
        let values: usize = self.0.values().map(|basis| basis.rows().len()).sum();
        4 * values as u64
    }

    fn kept(&self) -> Kept {
        Kept::Statistics
    }
}

/// Returns the leading singular vectors of a part of a weight.
fn leading_vectors(
    settings: &ProtectWeights,
    weight: &AdaptedWeight,
    values: &[f32],
    part: usize,
) -> Result<Basis, RunError> {
    let outputs = weight.parts[part].len();
    if settings.side == Side::Output && weight.inputs != outputs {
        return Err(RunError::NotSquare {
            weight: weight.part_name(part),
            inputs: weight.inputs,
            outputs,
        });
    }
    let found = decompose(&part_of(values, weight, part), weight, part)?;
    let count = protected_count(settings, &weight.path, &found.s);
    let count = count.clamp(1, found.s.len());
    let vectors = match settings.side {
        Side::Input => &found.u,
        Side::Output => &found.v,
    };
    let rows = columns_as_rows(vectors, 0..count);
    Ok(Basis::from_rows(weight.inputs, rows)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(side: Side) -> Lora {
        let mut settings = Lora::default();
        settings.protect.weights = Some(ProtectWeights {
            energy: Some(0.9),
            side,
            ..ProtectWeights::default()
        });
        settings
    }

    fn weight(shape: [usize; 2]) -> WeightValues {
        let values = (0..shape[0] * shape[1]).map(|i| if i == 1 { 3.0 } else { 0.0 });
        let weight = AdaptedWeight::new(&Lora::default(), "text.w", shape);
        (weight, values.collect())
    }

    #[test]
    fn the_sides_of_a_weight_have_other_directions() {
        // The only singular value has the left vector e_0 and the right vector e_1.
        for (side, direction) in [(Side::Input, [1.0, 0.0]), (Side::Output, [0.0, 1.0])] {
            let weights = [weight([2, 2])];
            let bases = ProtectedBases::of_weights(&settings(side), &weights).unwrap();
            let basis = bases.get(&weights[0].0, 0);
            let rows: Vec<f32> = basis.rows().iter().map(|x| x.abs()).collect();
            assert_eq!(rows, direction, "{side:?}");
        }
        let wide = ProtectedBases::of_weights(&settings(Side::Output), &[weight([2, 3])]);
        let error = wide.err().unwrap().to_string();
        assert!(
            error.contains("`text.w`") && error.contains("2 × 3"),
            "{error}"
        );
    }

    #[test]
    fn bases_survive_their_file() {
        let folder = tempfile::tempdir().unwrap();
        let weights = [weight([3, 3])];
        let bases = ProtectedBases::of_weights(&settings(Side::Input), &weights).unwrap();
        assert!(ProtectedBases::load(folder.path()).unwrap().is_none());
        let clip = mini_world::embedded::clip_mini(&burn::tensor::Device::flex()).unwrap();
        bases.save(folder.path(), &clip).unwrap();
        let loaded = ProtectedBases::load(folder.path()).unwrap().unwrap();
        assert_eq!(loaded.0, bases.0);
        assert_eq!(bases.bytes(&clip), 12);
        std::fs::write(folder.path().join(FILE), b"damaged").unwrap();
        assert!(ProtectedBases::load(folder.path()).is_err());
    }
}
