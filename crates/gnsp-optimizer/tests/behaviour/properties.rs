//! Property tests of projectors for random spectra.

use burn::tensor::{Device, Tensor, TensorData};
use faer::Mat;
use gnsp_optimizer::*;
use proptest::prelude::*;
use rand::Rng;
use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};

/// Creates a Gram matrix with eigenvalues `spectrum` and random eigenvectors.
fn gram_of(features: usize, spectrum: &[f64], seed: u64) -> Gram {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let random = Mat::from_fn(features, features, |_, _| rng.random_range(-1.0..1.0));
    let q = random.qr().compute_Q();
    let scaled = Mat::from_fn(features, features, |i, j| {
        q[(i, j)] * spectrum.get(j).copied().unwrap_or(0.0)
    });
    let matrix = &scaled * q.transpose();
    let values = (0..features * features).map(|i| matrix[(i / features, i % features)] as f32);
    // Rounding errors can make a diagonal entry of a singular matrix negative.
    let values = values
        .enumerate()
        .map(|(i, x)| {
            if i / features == i % features {
                x.max(0.0)
            } else {
                x
            }
        })
        .collect();
    Gram::from_matrix(features, values).unwrap()
}

fn rule() -> impl Strategy<Value = RankRule> {
    prop_oneof![
        (0.001..0.999f64).prop_map(RankRule::TailShare),
        (0.001..0.999f64).prop_map(RankRule::ExplainedEnergy),
        (1.0..1e4f64).prop_map(RankRule::RatioToSmallest),
        (0usize..4).prop_map(RankRule::FixedRank),
    ]
}

fn eye(n: usize) -> Tensor<2> {
    Tensor::eye(n, &Device::default())
}

fn values(x: Tensor<2>) -> Vec<f32> {
    x.into_data().try_into_vec().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 200,
        failure_persistence: None,
        ..Default::default()
    })]

    /// Rank-deficient, all-zero and full-rank matrices, of one feature and of many, at tiny and
    /// huge scales, with every rule, strength and solver.
    #[test]
    fn every_spectrum_has_a_projector(
        features in 1usize..140,
        rank in 0usize..140,
        exponent in 0.0..3.0f64,
        magnitude in -30i32..30,
        rule in rule(),
        alpha in prop::option::of(0.0..20.0f64),
        solver in prop_oneof![
            Just(Solver::Auto),
            Just(Solver::Full),
            Just(Solver::Partial),
            Just(Solver::Device),
        ],
        seed in any::<u64>(),
    ) {
        let rank = rank.min(features);
        let spectrum: Vec<f64> = (1..=rank)
            .map(|j| 10f64.powi(magnitude) * (j as f64).powf(-exponent))
            .collect();
        let gram = gram_of(features, &spectrum, seed);
        let strength = alpha.map_or(Strength::Hard, Strength::Scaled);
        let policy = Policy::default().with_rank(rule).with_strength(strength).with_solver(solver);
        let space = NullSpace::from_policy(&gram, &policy, &Device::default());
        if let RankRule::FixedRank(k) = rule && k > features {
            let refused = matches!(space, Err(GnspError::RankTooLarge { .. }));
            prop_assert!(refused);
            return Ok(());
        }
        let space = space.unwrap();
        prop_assert_eq!(space.free() + space.rank(), features);
        if gram.norm() == 0.0 && !matches!(rule, RankRule::FixedRank(_)) {
            prop_assert_eq!(space.rank(), 0);
        }
        let once = values(space.project(eye(features)));
        let twice = values(space.project(space.project(eye(features))));
        for i in 0..features {
            for j in 0..features {
                let (a, b) = (once[i * features + j], once[j * features + i]);
                prop_assert!(a.is_finite());
                prop_assert!((a - b).abs() <= 1e-6, "not symmetric: {} {}", a, b);
                if strength == Strength::Hard {
                    let again = twice[i * features + j];
                    prop_assert!((a - again).abs() <= 1e-6, "not idempotent: {} {}", a, again);
                }
            }
        }
        // A contraction; with hard protection its image is orthogonal to the protected directions.
        let waves: Vec<f32> = (0..features * 2).map(|i| (i as f32 * 1.7).sin()).collect();
        let data = TensorData::new(waves, [features, 2]);
        let x = Tensor::<2>::from_data(data, &Device::default());
        let norm = |x: &Tensor<2>| x.clone().square().sum().sqrt().into_scalar::<f32>();
        let projected = space.project(x.clone());
        prop_assert!(norm(&projected) <= 1.00001 * norm(&x));
        if strength == Strength::Hard {
            let leak = space.residual_in_protected(projected.clone());
            prop_assert!(leak <= 1e-6 * norm(&projected) + 1e-12, "leak {}", leak);
        }
    }
}
