use super::*;
use crate::test_utils::*;
use crate::{GramAccumulator, GramNormalization, Policy};
use burn::nn::{Linear, LinearConfig};

/// The two tasks of `tests/reference/projector.py`.
fn tasks() -> (Gram, Gram) {
    let mut first = GramAccumulator::new(3, GramNormalization::PerBatchAndTask);
    first.add(grid(4, 3, 1.0, 0.7)).unwrap();
    first.add(grid(2, 3, 30.0, 1.1)).unwrap();
    let second = gram_of(grid(5, 3, 2.0, 2.9));
    (first.finish().unwrap(), second)
}

fn empty() -> Memory {
    Memory::new(Policy::default().with_rank(RankRule::ExplainedEnergy(0.9)))
}

fn absorb(memory: &mut Memory, path: &str, gram: Gram, history: History) {
    try_absorb(memory, path, gram, history).unwrap();
}

fn try_absorb(
    memory: &mut Memory,
    path: &str,
    gram: Gram,
    history: History,
) -> Result<(), GnspError> {
    let layout = if gram.is_diagonal() {
        Layout::Embedding
    } else {
        Layout::InputsFirst
    };
    let recorded = TaskGram {
        layout,
        gram,
        history,
    };
    memory.absorb_gram(path, recorded)
}

fn two_parameters() -> Memory {
    let (first, second) = tasks();
    let mut memory = empty();
    absorb(&mut memory, "b.weight", first, History::Sum);
    absorb(&mut memory, "b.weight", second, History::Sum);
    absorb(
        &mut memory,
        "a.weight",
        random_gram(9, 7, 1),
        History::Renormalize,
    );
    memory
}

#[test]
fn histories_match_numpy() {
    let (first, second) = tasks();
    let mut memory = empty();
    for gram in [&first, &second] {
        absorb(&mut memory, "sum", gram.clone(), History::Sum);
    }
    assert_close(
        &memory.gram("sum").unwrap().dense(),
        &[
            0.855744183,
            0.121486801,
            0.30105834,
            0.121486801,
            0.818765466,
            -0.207154544,
            0.30105834,
            -0.207154544,
            0.619402909,
        ],
        1e-6,
    );
    // The first task has norm 1, so with two tasks both rules agree. The third task shows the
    // difference.
    for gram in [&first, &second, &second] {
        absorb(
            &mut memory,
            "renormalized",
            gram.clone(),
            History::Renormalize,
        );
    }
    assert_close(
        &memory.gram("renormalized").unwrap().dense(),
        &[
            0.926925296,
            -0.243202415,
            0.510346456,
            -0.243202415,
            0.913305955,
            -0.488051796,
            0.510346456,
            -0.488051796,
            0.796450942,
        ],
        1e-6,
    );
    assert_eq!((memory.tasks(), memory.len()), (3, 2));
}

#[test]
fn a_forgetting_factor_discounts_older_tasks() {
    let (first, second) = tasks();
    let mut memory = empty();
    for gram in [&first, &second] {
        absorb(&mut memory, "w", gram.clone(), History::Decay(0.25));
    }
    let expected = first.scaled(0.25).plus(&second).unwrap();
    assert_eq!(memory.gram("w"), Some(&expected));
    for bad in [0.0, 1.01, f64::NAN] {
        let error = try_absorb(&mut memory, "w", tasks().0, History::Decay(bad));
        assert!(matches!(error, Err(GnspError::Decay(_))), "{bad}");
    }
}

#[test]
fn a_gram_that_does_not_fit_changes_nothing() {
    let mut memory = two_parameters();
    let error = try_absorb(&mut memory, "b.weight", random_gram(3, 4, 0), History::Sum);
    let error = error.unwrap_err().to_string();
    assert!(
        error.contains("b.weight") && error.contains("4 features"),
        "{error}"
    );
    let other = try_absorb(&mut memory, "b.weight", tasks().0, History::Renormalize);
    assert!(matches!(other, Err(GnspError::History { .. })));
    let huge = Gram::from_matrix(3, vec![f32::MAX; 9]).unwrap();
    absorb(&mut memory, "huge", huge.clone(), History::Sum);
    let overflow = try_absorb(&mut memory, "huge", huge, History::Sum);
    assert!(matches!(overflow, Err(GnspError::Parameter { .. })));
    memory.entries.remove("huge");
    assert_eq!(memory, two_parameters());
    // The second parameter of a recorder does not fit: the first is not absorbed either.
    let shapes: [(&str, &[usize]); 2] = [("a.new", &[3, 2]), ("b.weight", &[4, 2])];
    let mut recorder = Recorder::new(&Policy::default(), ModulePaths::of_shapes(&shapes));
    recorder.linear("a.new", random(4, 3, 1.0, 1)).unwrap();
    recorder.linear("b.weight", random(4, 4, 1.0, 1)).unwrap();
    assert!(memory.absorb(recorder).is_err());
    assert_eq!(memory, two_parameters());
}

/// The dense projector of a growing basis.
fn projector(memory: &Memory, path: &str) -> Vec<f32> {
    let Content::Directions(directions) = &memory.entries[path].content else {
        panic!("{path} has no directions");
    };
    crate::NullSpace::from_directions(directions.features, &directions.groups).dense()
}

/// Two tasks of `gpm` in `tests/reference/projector.py`.
#[test]
fn a_growing_basis_matches_the_published_algorithm() {
    let mut memory = empty();
    let mut ranks = Vec::new();
    for rows in [
        grid(9, 6, 1.0, 0.37) + grid(9, 6, 0.5, 1.9),
        grid(7, 6, 1.0, 0.83) + grid(7, 6, 0.2, 2.6),
    ] {
        absorb(&mut memory, "w", gram_of(rows), History::Basis);
        let Content::Directions(directions) = &memory.entries["w"].content else {
            panic!("a basis has directions");
        };
        ranks.push(directions.rank(0));
    }
    assert_eq!(ranks, GPM_RANKS);
    assert_close(&projector(&memory, "w"), &GPM_PROJECTOR, 2e-6);
    assert_eq!(memory.bytes(), 4 * 6 * ranks[1]);
}

#[test]
fn a_basis_grows_only_by_what_it_does_not_explain() {
    let mut memory = empty();
    let gram = gram_of(random(3, 8, 1.0, 1));
    absorb(&mut memory, "w", gram.clone(), History::Basis);
    let once = memory.clone();
    absorb(&mut memory, "w", gram, History::Basis);
    assert_eq!(
        memory.entries["w"].content, once.entries["w"].content,
        "nothing new was seen"
    );
    assert_eq!(memory.tasks(), 2);
    let before = memory.policy().clone();
    let ratio = before.clone().with_rank(RankRule::RatioToSmallest(2.0));
    memory.set_policy(ratio).unwrap();
    let error = try_absorb(&mut memory, "w", random_gram(4, 8, 2), History::Basis);
    let error = error.unwrap_err().to_string();
    assert!(
        error.starts_with("parameter `w`: a growing basis needs"),
        "{error}"
    );
    memory.set_policy(before).unwrap();
    // One-hot inputs: rows are added and never dropped.
    let counts = |counts: &[f32]| Gram::from_diagonal(counts.to_vec()).unwrap();
    absorb(
        &mut memory,
        "e",
        counts(&[9.0, 1.0, 0.0, 0.0]),
        History::Basis,
    );
    absorb(
        &mut memory,
        "e",
        counts(&[0.5, 0.0, 9.0, 0.6]),
        History::Basis,
    );
    assert_eq!(memory.gram("e").unwrap().packed(), [1.0, 0.0, 1.0, 0.0]);
}

#[test]
fn memories_of_two_machines_are_merged() {
    let (first, second) = tasks();
    let mut left = empty();
    let mut right = empty();
    absorb(&mut left, "sum", first.clone(), History::Sum);
    absorb(&mut right, "sum", second.clone(), History::Sum);
    absorb(
        &mut left,
        "norm",
        first.clone().scaled(3.0),
        History::Renormalize,
    );
    absorb(
        &mut right,
        "norm",
        second.clone().scaled(5.0),
        History::Renormalize,
    );
    absorb(
        &mut left,
        "basis",
        gram_of(random(2, 8, 1.0, 1)),
        History::Basis,
    );
    absorb(
        &mut right,
        "basis",
        gram_of(random(2, 8, 1.0, 2)),
        History::Basis,
    );
    absorb(&mut right, "alone", first.clone(), History::Sum);
    left.merge(&right).unwrap();
    assert_eq!(left.len(), 4);
    let both = first.clone().plus(&second).unwrap();
    assert_eq!(left.gram("sum"), Some(&both));
    assert_close(left.gram("norm").unwrap().packed(), both.packed(), 1e-6);
    assert_eq!(left.gram("alone"), Some(&first));
    assert_eq!(left.tasks(), 2);
    let Content::Directions(basis) = &left.entries["basis"].content else {
        panic!("a basis has directions");
    };
    assert_eq!(basis.rank(0), 4);
    let before = left.clone();
    let mut other = empty();
    absorb(&mut other, "sum", random_gram(3, 4, 0), History::Sum);
    assert!(left.merge(&other).is_err());
    let mut other = empty();
    absorb(&mut other, "sum", first, History::Basis);
    assert!(left.merge(&other).is_err());
    assert_eq!(left, before);
}

fn gradients(model: &Linear, x: Tensor<2>) -> GradientsParams {
    let output = model.forward(x.autodiff()).sum();
    GradientsParams::from_grads(output.backward(), model)
}

#[test]
fn gradients_are_stored_as_directions() {
    let model = LinearConfig::new(4, 2).init(&device().autodiff());
    let group = ParamGroup::from_path("weight");
    let mut memory = empty();
    for (seed, expected) in [(1, 1), (2, 1), (1, 0)] {
        let gradients = gradients(&model, random(3, 4, 1.0, seed));
        let added = memory.absorb_gradients(&model, &group, &gradients).unwrap();
        assert_eq!(added, expected, "seed {seed}");
    }
    let zero = gradients(&model, Tensor::zeros([3, 4], &device()));
    assert_eq!(memory.absorb_gradients(&model, &group, &zero).unwrap(), 0);
    let Content::Directions(directions) = &memory.entries["weight"].content else {
        panic!("gradients are directions");
    };
    assert_eq!((directions.rank(0), directions.features), (2, 8));
    let before = memory.clone();
    let bad = gradients(&model, Tensor::full([3, 4], f32::NAN, &device()));
    let error = memory.absorb_gradients(&model, &group, &bad).unwrap_err();
    assert_eq!(error.to_string(), "the gradient of `weight` is not finite");
    assert_eq!(memory, before);
    // Inputs and gradients of one parameter do not mix.
    let error = try_absorb(&mut memory, "weight", random_gram(3, 4, 0), History::Basis);
    assert!(matches!(error, Err(GnspError::History { .. })));
}

/// Ranks after each task, and the projector after the second.
const GPM_RANKS: [usize; 2] = [3, 5];
const GPM_PROJECTOR: [f32; 36] = [
    0.0342930707,
    -0.0909454778,
    0.0919552421,
    -0.0808757475,
    0.0874237485,
    -0.0469724513,
    -0.0909454778,
    0.241188081,
    -0.243865984,
    0.214483082,
    -0.231848429,
    0.124571289,
    0.0919552421,
    -0.243865984,
    0.246573619,
    -0.21686448,
    0.234422634,
    -0.1259544,
    -0.0808757475,
    0.214483082,
    -0.21686448,
    0.190734933,
    -0.206177542,
    0.110778418,
    0.0874237485,
    -0.231848429,
    0.234422634,
    -0.206177542,
    0.222870441,
    -0.11974745,
    -0.0469724513,
    0.124571289,
    -0.1259544,
    0.110778418,
    -0.11974745,
    0.0643398545,
];

#[test]
fn the_policy_must_match_the_stored_tasks() {
    let model = LinearConfig::new(3, 2).init(&device());
    let mut memory = Memory::new(Policy::gnsp());
    let mut recorder = memory.recorder(&model);
    recorder.linear("weight", random(4, 3, 1.0, 1)).unwrap();
    // An empty memory accepts any policy.
    memory.set_policy(Policy::gpm()).unwrap();
    memory.set_policy(Policy::gnsp()).unwrap();
    memory.absorb(recorder).unwrap();
    let softer = Policy::gnsp_update().with_rank(RankRule::TailShare(0.05));
    memory.set_policy(softer.clone()).unwrap();
    for (other, field) in [
        (
            Policy::gnsp().with_normalization(GramNormalization::None),
            "normalization",
        ),
        (Policy::gnsp().with_history(History::Basis), "history"),
    ] {
        let error = memory.set_policy(other.clone()).unwrap_err();
        assert!(
            matches!(&error, GnspError::OtherPolicy { field: f, .. } if *f == field),
            "{error}"
        );
        assert_eq!(memory.policy(), &softer);
    }
    let mut other =
        Memory::new(Policy::gnsp().with_normalization(GramNormalization::None)).recorder(&model);
    other.linear("weight", random(4, 3, 1.0, 2)).unwrap();
    let before = memory.clone();
    assert!(memory.absorb(other).is_err());
    assert_eq!(memory, before);
}
