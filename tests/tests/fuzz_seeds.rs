//! Property test of all readers of outside bytes: the seeds of the fuzz targets, and mutations of
//! them, neither panic nor exceed the limits.

use std::{
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

use gnsp_tests::readers::{READERS, Reader, Scratch, workspace};
use peak_alloc::PeakAlloc;
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

/// Mutations of each seed.
const MUTATIONS: u64 = 24;
/// Maximum length of a seed.
const MAX_LEN: u64 = 64 << 10;
/// Values that lengths and counts are overwritten with.
const EXTREMES: [u64; 8] = [
    0,
    1,
    0x7f,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    i64::MAX as u64,
    u64::MAX,
];

/// Returns the seeds of a reader, from `fuzz/seeds.txt`.
fn seeds(reader: &str) -> Vec<PathBuf> {
    let list = fs::read_to_string(workspace().join("fuzz/seeds.txt")).unwrap();
    let line = list.lines().find_map(|line| {
        let paths = line.strip_prefix(reader)?.strip_prefix(' ')?;
        Some(paths.to_owned())
    });
    let line = line.unwrap_or_else(|| panic!("fuzz/seeds.txt has no line for {reader}"));
    let mut files = Vec::new();
    for path in line.split_whitespace().map(|path| workspace().join(path)) {
        if path.is_dir() {
            files.extend(
                fs::read_dir(path)
                    .unwrap()
                    .map(|entry| entry.unwrap().path()),
            );
        } else if path.exists() {
            files.push(path);
        }
    }
    files.retain(|path| fs::metadata(path).is_ok_and(|m| m.is_file() && m.len() <= MAX_LEN));
    files.sort();
    assert!(!files.is_empty(), "{reader} has no seeds");
    files
}

/// Returns `seed` with one to four changes.
fn mutated(seed: &[u8], random: &mut ChaCha8Rng) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..random.random_range(1..=4) {
        if bytes.is_empty() {
            break;
        }
        let at = random.random_range(0..bytes.len());
        let end = (at + random.random_range(1..=64)).min(bytes.len());
        match random.random_range(0..6) {
            0 => bytes[at] ^= 1 << random.random_range(0..8),
            1 => bytes[at] = random.random(),
            2 => bytes.truncate(at),
            3 => {
                bytes.drain(at..end);
            }
            4 => {
                let copy = bytes[at..end].to_vec();
                bytes.splice(at..at, copy);
            }
            _ => {
                let value = EXTREMES[random.random_range(0..EXTREMES.len())];
                let width = 1 << random.random_range(0..4);
                let mut value = value.to_le_bytes()[..width].to_vec();
                if random.random() {
                    value.reverse();
                }
                let end = (at + width).min(bytes.len());
                bytes.splice(at..end, value);
            }
        }
    }
    bytes
}

/// Returns whether `reader` accepts an input. An error describes the input that it fails on.
fn check(
    reader: &Reader,
    bytes: &[u8],
    scratch: &Scratch,
    seed: &Path,
    n: u64,
) -> Result<bool, String> {
    let checked = catch_unwind(AssertUnwindSafe(|| reader.check(bytes, scratch)));
    let panic = match checked {
        Ok(accepted) => return Ok(accepted),
        Err(panic) => panic,
    };
    let message = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("no message");
    let seed = seed.file_name().unwrap_or_default().display();
    let input = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{}-{seed}-{n}", reader.name));
    fs::write(&input, bytes).unwrap();
    Err(format!(
        "{}: {message} (input: {})",
        reader.name,
        input.display()
    ))
}

#[test]
fn seeds_and_their_mutations_keep_the_limits() {
    let mut failures = Vec::new();
    for reader in READERS {
        let folder = tempfile::tempdir().unwrap();
        let scratch = Scratch::new(folder.path());
        let mut accepted = false;
        for path in seeds(reader.name) {
            let seed = fs::read(&path).unwrap();
            match check(reader, &seed, &scratch, &path, 0) {
                Ok(this) => accepted |= this,
                Err(failure) => failures.push(failure),
            }
            for n in 1..=MUTATIONS {
                let bytes = mutated(&seed, &mut ChaCha8Rng::seed_from_u64(n));
                failures.extend(check(reader, &bytes, &scratch, &path, n).err());
            }
        }
        // Otherwise mutations of the seeds would not get far.
        assert!(accepted, "{} accepts none of its seeds", reader.name);
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
