//! Mersenne Twister (MT19937), and the permutations of PyTorch and numpy that draw from it.
//!
//! The published splits use PyTorch's CPU generator, the published reference draws numpy's legacy
//! `RandomState`.
//!
//! - Generator: Matsumoto and Nishimura, "Mersenne Twister", ACM TOMACS 8(1), 1998.
//! - PyTorch: `aten/src/ATen/native/TensorFactories.cpp` (`randperm_cpu`).
//! - numpy: `numpy/random/mtrand.pyx` (`RandomState.shuffle`, `choice`) with
//!   `numpy/random/src/legacy/legacy-distributions.c`.

const SIZE: usize = 624;
const SHIFT: usize = 397;

/// The generator MT19937, seeded with one 32-bit number.
///
/// ```
/// use mtil_data::datasets::mersenne::MersenneTwister;
///
/// let mut generator = MersenneTwister::new(5489);
/// // The 10,000th number, which the C++ standard requires of `std::mt19937`.
/// assert_eq!((0..10_000).map(|_| generator.next_u32()).last(), Some(4_123_659_995));
/// ```
#[derive(Debug, Clone)]
pub struct MersenneTwister {
    state: [u32; SIZE],
    next: usize,
}

impl MersenneTwister {
    /// Seeds the generator as `torch.Generator().manual_seed(seed)` and
    /// `numpy.random.RandomState(seed)` do.
    pub fn new(seed: u32) -> Self {
        let mut state = [seed; SIZE];
        for i in 1..SIZE {
            let last = state[i - 1];
            state[i] = 1_812_433_253u32
                .wrapping_mul(last ^ (last >> 30))
                .wrapping_add(i as u32);
        }
        Self { state, next: SIZE }
    }

    /// Returns the next number, uniform over all 32-bit numbers.
    pub fn next_u32(&mut self) -> u32 {
        if self.next == SIZE {
            self.twist();
        }
        let mut y = self.state[self.next];
        self.next += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9D2C_5680;
        y ^= (y << 15) & 0xEFC6_0000;
        y ^ (y >> 18)
    }

    fn twist(&mut self) {
        for i in 0..SIZE {
            let y = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % SIZE] & 0x7FFF_FFFF);
            let odd = if y & 1 == 1 { 0x9908_B0DF } else { 0 };
            self.state[i] = self.state[(i + SHIFT) % SIZE] ^ (y >> 1) ^ odd;
        }
        self.next = 0;
    }
}

/// Number of items from which on PyTorch no longer draws 32-bit numbers.
const TORCH_LIMIT: usize = u32::MAX as usize / 20;

/// Returns `torch.randperm(n, generator=torch.Generator().manual_seed(seed))` on the CPU.
///
/// # Panics
/// If `n` is at least 214,748,364, where PyTorch uses another algorithm.
pub fn torch_randperm(n: usize, seed: u32) -> Vec<usize> {
    assert!(n < TORCH_LIMIT, "{n} items are too many");
    let mut generator = MersenneTwister::new(seed);
    let mut order: Vec<usize> = (0..n).collect();
    for i in 0..n.saturating_sub(1) {
        let z = generator.next_u32() as usize % (n - i);
        order.swap(i, i + z);
    }
    order
}

/// Returns `numpy.random.RandomState(seed).permutation(n)`.
///
/// # Panics
/// If `n` is above 2³², where numpy uses another algorithm.
pub fn numpy_permutation(n: usize, seed: u32) -> Vec<usize> {
    assert!(n as u64 <= 1 << 32, "{n} items are too many");
    let mut generator = MersenneTwister::new(seed);
    let mut order: Vec<usize> = (0..n).collect();
    for i in (1..n).rev() {
        // Rejection sampling below the next power of two, as numpy's legacy generator does.
        let mask = u32::MAX >> (i as u32).leading_zeros();
        let j = loop {
            let drawn = (generator.next_u32() & mask) as usize;
            if drawn <= i {
                break drawn;
            }
        };
        order.swap(i, j);
    }
    order
}

/// Returns `numpy.random.RandomState(seed).choice(n, count, replace=False)`.
///
/// If `count` exceeds `n`, which numpy rejects, returns a permutation of all `n`.
///
/// # Panics
/// As [`numpy_permutation`].
pub fn numpy_choice(n: usize, count: usize, seed: u32) -> Vec<usize> {
    let mut order = numpy_permutation(n, seed);
    order.truncate(count);
    order
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::Value;
    use sha2::{Digest, Sha256};

    use super::*;

    /// Permutations and draws computed by torch and numpy.
    pub(in super::super) fn golden() -> Value {
        serde_json::from_str(include_str!("../testdata/golden_vectors.json")).unwrap()
    }

    fn hash(order: &[usize]) -> String {
        let bytes: Vec<u8> = order
            .iter()
            .flat_map(|&i| (i as u32).to_le_bytes())
            .collect();
        let digest = Sha256::digest(bytes);
        digest.iter().map(|b| format!("{b:02x}")).collect()
    }

    fn list(value: &Value) -> Vec<usize> {
        serde_json::from_value(value.clone()).unwrap()
    }

    #[test]
    fn first_numbers_are_those_of_the_reference_implementation() {
        // The 10,000th number for the seed 5489, which the C++ standard requires of mt19937.
        let mut generator = MersenneTwister::new(5489);
        let last = (0..10_000).map(|_| generator.next_u32()).last();
        assert_eq!(last, Some(4_123_659_995));
    }

    #[test]
    fn splits_are_those_of_torch() {
        let golden = &golden()["random_split_seed42"];
        assert_eq!(torch_randperm(10, 42), list(&golden["randperm10"]));
        for key in ["Caltech101", "EuroSAT", "SUN397"] {
            let want = &golden[key];
            let order = torch_randperm(want["n"].as_u64().unwrap() as usize, 42);
            let (head, train) = (list(&want["perm_head"]), want["n_train"].as_u64().unwrap());
            let test_head = list(&want["test_head"]);
            assert_eq!(order[..head.len()], head, "{key}");
            assert_eq!(
                order[train as usize..][..test_head.len()],
                test_head,
                "{key}"
            );
            assert_eq!(hash(&order), want["sha256_perm_u32le"], "{key}");
        }
        assert_eq!(torch_randperm(0, 1), [0usize; 0]);
        assert_eq!(torch_randperm(1, 1), [0]);
    }

    #[test]
    fn draws_are_those_of_numpy() {
        let golden = golden();
        for (seed, want) in golden["numpy_choice_small"].as_object().unwrap() {
            let want = list(want);
            assert_eq!(numpy_permutation(10, seed.parse().unwrap()), want);
        }
        let draws = golden["imagenet1k_reference_choice_N1281167"]
            .as_object()
            .unwrap();
        assert_eq!(draws.len(), 11);
        for (key, want) in draws {
            let drawn = numpy_choice(1_281_167, 1000, want["seed"].as_u64().unwrap() as u32);
            let head = list(&want["head"]);
            assert_eq!(drawn[..head.len()], head, "{key}");
            assert_eq!(hash(&drawn), want["sha256_u32le"], "{key}");
        }
    }
}
