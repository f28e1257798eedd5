//! Selection of the library, by processor or environment variable.

use std::{fmt, sync::OnceLock};

/// The environment variable that forces a library: `faer` or `blas`.
pub const VARIABLE: &str = "HOST_GEMM";

/// Environment variables that keep a BLAS from starting threads of its own.
///
/// The threads are Rayon's, and each of them calls the BLAS. Libraries read the variables when they
/// are loaded, before `main`.
pub const SINGLE_THREAD: [(&str, &str); 4] = [
    ("OPENBLAS_NUM_THREADS", "1"),
    ("BLIS_NUM_THREADS", "1"),
    ("MKL_NUM_THREADS", "1"),
    ("OMP_NUM_THREADS", "1"),
];

/// A library of matrix products.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Library {
    /// faer, in Rust.
    Faer,
    /// The system's BLAS.
    Blas,
}

impl fmt::Display for Library {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Faer => "faer",
            Self::Blas => "blas",
        })
    }
}

/// The widest vector instructions of a processor that faer uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Instructions {
    /// 16 values of `f32` at once.
    Avx512,
    /// 8 values of `f32` at once, with fused multiply-add.
    Avx2,
    /// Neither: the baseline instructions of the architecture.
    Portable,
}

impl Instructions {
    /// Detects the instructions of this processor.
    pub fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            if std::arch::is_x86_feature_detected!("avx512f") {
                return Self::Avx512;
            }
            if std::arch::is_x86_feature_detected!("avx2")
                && std::arch::is_x86_feature_detected!("fma")
            {
                return Self::Avx2;
            }
        }
        Self::Portable
    }
}

impl fmt::Display for Instructions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Avx512 => "AVX-512",
            Self::Avx2 => "AVX2",
            Self::Portable => "no AVX2",
        })
    }
}

/// The library in use, and the reason for it.
#[derive(Debug, Clone, PartialEq)]
pub struct Choice {
    /// The library.
    pub library: Library,
    /// The vector instructions of this processor.
    pub instructions: Instructions,
    /// `true` if [`VARIABLE`] named the library.
    pub forced: bool,
    /// Why it is not the requested library, or the default of this processor.
    pub problem: Option<ChoiceError>,
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.library {
            Library::Faer => write!(f, "faer ({})", self.instructions)?,
            Library::Blas => f.write_str("the system's BLAS")?,
        }
        if self.forced {
            write!(f, ", as {VARIABLE} says")?;
        }
        Ok(())
    }
}

/// Reasons for not using a library.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ChoiceError {
    /// [`VARIABLE`] names no library.
    #[error("{VARIABLE}={word} names no library of matrix products: `faer` and `blas` are known")]
    Unknown {
        /// The value of the variable.
        word: String,
    },
    /// [`VARIABLE`] requests the BLAS in a build without the feature `blas`.
    #[error(
        "{VARIABLE}=blas asks for the system's BLAS, which is not compiled in: it is the cargo \
         feature `blas`"
    )]
    NotCompiledIn,
    /// The BLAS computes wrong products.
    #[error(
        "the system's BLAS computes wrong products on this processor: entries are wrong by up to \
         {difference:.1e} of the largest; a newer version may know the processor, or, for \
         OpenBLAS, OPENBLAS_CORETYPE=Haswell help"
    )]
    Wrong {
        /// Largest error of an entry, relative to the largest entry; NaN if an entry is NaN.
        difference: f64,
    },
}

/// Returns the library in use.
///
/// [`VARIABLE`] names it. If the variable is not set, it is faer without the feature `blas`. With
/// the feature it is the BLAS on processors without AVX-512, where OpenBLAS was measured to be
/// faster, and faer on processors with it (`docs/contributing/performance.md`). A BLAS is used only
/// after a check of its products.
///
/// The first call decides for the lifetime of the process: all products of a training step must
/// come from one library.
///
/// # Example
/// ```
/// let choice = host_gemm::choice();
/// println!("{choice}"); // faer (AVX2)
/// if let Some(problem) = &choice.problem {
///     eprintln!("{problem}");
/// }
/// ```
pub fn choice() -> &'static Choice {
    static CHOICE: OnceLock<Choice> = OnceLock::new();
    CHOICE.get_or_init(|| {
        let requested = std::env::var(VARIABLE).ok().filter(|word| !word.is_empty());
        choose(
            requested.as_deref(),
            Instructions::detect(),
            COMPILED_IN,
            check,
        )
    })
}

const COMPILED_IN: bool = cfg!(feature = "blas");

fn choose(
    requested: Option<&str>,
    instructions: Instructions,
    compiled_in: bool,
    check: impl FnOnce() -> Result<(), ChoiceError>,
) -> Choice {
    let faer = |forced, problem| Choice {
        library: Library::Faer,
        instructions,
        forced,
        problem,
    };
    match requested {
        Some("faer") => return faer(true, None),
        Some("blas") if !compiled_in => return faer(false, Some(ChoiceError::NotCompiledIn)),
        Some("blas") => {}
        Some(word) => {
            let word = word.to_owned();
            return faer(false, Some(ChoiceError::Unknown { word }));
        }
        None if !compiled_in || instructions == Instructions::Avx512 => return faer(false, None),
        None => {}
    }
    match check() {
        Ok(()) => Choice {
            library: Library::Blas,
            instructions,
            forced: requested.is_some(),
            problem: None,
        },
        Err(problem) => faer(false, Some(problem)),
    }
}

#[cfg(not(feature = "blas"))]
fn check() -> Result<(), ChoiceError> {
    Err(ChoiceError::NotCompiledIn)
}

/// Compares products of the BLAS with sums in `f64`. Old versions of OpenBLAS compute wrong
/// products on processors that they do not know.
///
/// # Errors
/// [`ChoiceError::Wrong`] if an entry differs by more than rounding.
#[cfg(feature = "blas")]
fn check() -> Result<(), ChoiceError> {
    use faer::{Accum, MatMut, MatRef, Par};

    /// Above the rounding of `f32` sums of this length, below the error of a wrong entry.
    const TOLERANCE: f64 = 1e-5;

    let mut state = 1u32;
    let mut numbers = |count: usize| -> Vec<f32> {
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..count).map(|_| next()).collect()
    };
    // Sizes larger than the blocks of a kernel, and no multiples of its tiles.
    for (m, k, n) in [(37, 53, 29), (149, 517, 203)] {
        let (x, w, old) = (numbers(m * k), numbers(k * n), numbers(m * n));
        let (x_t, w_t) = (numbers(k * m), numbers(n * k));
        let lefts = [
            MatRef::from_row_major_slice(&x, m, k),
            MatRef::from_row_major_slice(&x_t, k, m).transpose(),
        ];
        let rights = [
            MatRef::from_row_major_slice(&w, k, n),
            MatRef::from_row_major_slice(&w_t, n, k).transpose(),
        ];
        for a in lefts {
            for b in rights {
                let mut got = old.clone();
                let output = MatMut::from_row_major_slice_mut(&mut got, m, n);
                crate::blas::product(output, Accum::Add, a, b, 0.5, Par::Seq);
                let expected: Vec<f64> = (0..m * n)
                    .map(|at| {
                        let (i, j) = (at / n, at % n);
                        let terms = (0..k).map(|l| f64::from(a[(i, l)]) * f64::from(b[(l, j)]));
                        f64::from(old[at]) + 0.5 * terms.sum::<f64>()
                    })
                    .collect();
                let scale = expected
                    .iter()
                    .fold(0.0, |largest: f64, x| largest.max(x.abs()));
                let pairs = got.iter().zip(&expected);
                // A maximum that propagates NaN.
                let difference = pairs
                    .map(|(got, expected)| (f64::from(*got) - expected).abs() / scale)
                    .fold(0.0, |largest: f64, x| {
                        if x > largest || x.is_nan() {
                            x
                        } else {
                            largest
                        }
                    });
                if difference.is_nan() || difference > TOLERANCE {
                    return Err(ChoiceError::Wrong { difference });
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variable_takes_precedence_over_processor() {
        let wrong = || ChoiceError::Wrong { difference: 0.5 };
        let right = || Ok(());
        use Instructions::{Avx2, Avx512, Portable};
        // Not compiled in.
        for instructions in [Avx512, Avx2, Portable] {
            let chosen = choose(None, instructions, false, right);
            assert_eq!((chosen.library, chosen.problem), (Library::Faer, None));
        }
        let chosen = choose(Some("blas"), Avx2, false, right);
        assert_eq!(chosen.library, Library::Faer);
        assert_eq!(chosen.problem, Some(ChoiceError::NotCompiledIn));
        // By processor.
        for (instructions, library) in [
            (Avx512, Library::Faer),
            (Avx2, Library::Blas),
            (Portable, Library::Blas),
        ] {
            let chosen = choose(None, instructions, true, right);
            assert_eq!((chosen.library, chosen.forced), (library, false));
        }
        // Forced.
        for (word, library) in [("faer", Library::Faer), ("blas", Library::Blas)] {
            for instructions in [Avx512, Avx2, Portable] {
                let chosen = choose(Some(word), instructions, true, right);
                assert_eq!((chosen.library, chosen.forced), (library, true));
            }
        }
        // A BLAS that computes wrong products is rejected with the reason.
        for requested in [None, Some("blas")] {
            let chosen = choose(requested, Avx2, true, || Err(wrong()));
            assert_eq!(chosen.library, Library::Faer);
            assert_eq!(chosen.problem, Some(wrong()));
        }
        let problem = choose(Some("mkl"), Avx2, true, right).problem;
        assert!(problem.unwrap().to_string().contains("HOST_GEMM=mkl"));
    }

    #[cfg(feature = "blas")]
    #[test]
    fn the_blas_of_this_system_passes_the_check() {
        assert_eq!(check(), Ok(()));
    }
}
