//! Matrix products and Gram matrices by either library.

use faer::linalg::matmul::{
    matmul,
    triangular::{self, BlockStructure},
};
use faer::{Accum, MatMut, MatRef, Par};

use crate::{Library, choice};

/// Computes `output = factor · a·b`, or `output += factor · a·b` with [`Accum::Add`], by the
/// library in use.
///
/// Matrices may have any strides.
///
/// # Shapes
/// - `output`: `[m, n]`
/// - `a`: `[m, k]`
/// - `b`: `[k, n]`
///
/// # Panics
/// If the shapes do not match.
///
/// # Example
/// ```
/// use faer::{Accum, MatMut, MatRef, Par};
///
/// let (a, b) = ([1.0, 2.0, 3.0, 4.0], [1.0, 0.0, 0.0, 1.0]);
/// let matrix = |values| MatRef::from_row_major_slice(values, 2, 2);
/// let mut output = [0.0; 4];
/// let target = MatMut::from_row_major_slice_mut(&mut output, 2, 2);
/// host_gemm::product(target, Accum::Replace, matrix(&a), matrix(&b), 1.0, Par::Seq);
/// assert_eq!(output, a);
/// ```
pub fn product(
    output: MatMut<'_, f32>,
    accum: Accum,
    a: MatRef<'_, f32>,
    b: MatRef<'_, f32>,
    factor: f32,
    par: Par,
) {
    product_by(choice().library, output, accum, a, b, factor, par);
}

/// Computes [`product`] by `library`. Faer replaces a BLAS that is not compiled in.
///
/// # Shapes
/// - `output`: `[m, n]`
/// - `a`: `[m, k]`
/// - `b`: `[k, n]`
///
/// # Panics
/// If the shapes do not match.
pub fn product_by(
    library: Library,
    output: MatMut<'_, f32>,
    accum: Accum,
    a: MatRef<'_, f32>,
    b: MatRef<'_, f32>,
    factor: f32,
    par: Par,
) {
    match library {
        #[cfg(feature = "blas")]
        Library::Blas => crate::blas::product(output, accum, a, b, factor, par),
        _ => {
            // faer cuts the sums of a product with a vector by the number of threads, and only
            // those.
            let is_vector = output.nrows() == 1 || output.ncols() == 1;
            let par = if is_vector { Par::Seq } else { par };
            matmul(output, accum, a, b, factor, par);
        }
    }
}

/// Computes the lower triangle of the Gram matrix `xᵀx`, with its diagonal, by the library in use.
///
/// The values of `output` above the diagonal are unspecified.
///
/// # Shapes
/// - `output`: `[n, n]`
/// - `x`: `[m, n]`
///
/// # Panics
/// If the shapes do not match.
///
/// # Example
/// ```
/// use faer::{MatMut, MatRef, Par};
///
/// let x = [1.0, 2.0, 3.0, 4.0];
/// let mut gram = [0.0; 4];
/// let output = MatMut::from_row_major_slice_mut(&mut gram, 2, 2);
/// host_gemm::gram_lower(output, MatRef::from_row_major_slice(&x, 2, 2), Par::Seq);
/// assert_eq!([gram[0], gram[2], gram[3]], [10.0, 14.0, 20.0]);
/// ```
pub fn gram_lower(output: MatMut<'_, f32>, x: MatRef<'_, f32>, par: Par) {
    gram_lower_by(choice().library, output, x, par);
}

/// Computes [`gram_lower`] by `library`. Faer replaces a BLAS that is not compiled in.
///
/// # Shapes
/// - `output`: `[n, n]`
/// - `x`: `[m, n]`
///
/// # Panics
/// If the shapes do not match.
pub fn gram_lower_by(library: Library, output: MatMut<'_, f32>, x: MatRef<'_, f32>, par: Par) {
    match library {
        #[cfg(feature = "blas")]
        Library::Blas => crate::blas::gram_lower(output, x, par),
        _ => triangular::matmul(
            output,
            BlockStructure::TriangularLower,
            Accum::Replace,
            x.transpose(),
            BlockStructure::Rectangular,
            x,
            BlockStructure::Rectangular,
            1.0,
            par,
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the libraries of this build.
    fn libraries() -> Vec<Library> {
        let blas = cfg!(feature = "blas").then_some(Library::Blas);
        [Library::Faer].into_iter().chain(blas).collect()
    }

    fn values(count: usize, seed: u32) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..count).map(|_| next()).collect()
    }

    fn on_threads<T: Send>(threads: usize, f: impl FnOnce() -> T + Send) -> T {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        pool.unwrap().install(f)
    }

    fn assert_close(got: f32, expected: f64, scale: f64) {
        let error = (f64::from(got) - expected).abs();
        assert!(error <= 1e-6 * scale, "{got} instead of {expected}");
    }

    #[test]
    fn products_of_any_layout_match_the_definition() {
        // Rows of both inputs are padded, and each is given in both layouts.
        for (m, k, n) in [
            (1, 1, 1),
            (3, 5, 2),
            (40, 17, 300),
            (300, 64, 33),
            (5, 0, 4),
        ] {
            let (x, w) = (values(m * (k + 3), 1), values(k * (n + 2), 2));
            let (x_t, w_t) = (values(k * (m + 1), 3), values(n * (k + 4), 4));
            let lefts = [
                MatRef::from_row_major_slice(&x, m, k + 3).subcols(0, k),
                MatRef::from_row_major_slice(&x_t, k, m + 1)
                    .subcols(0, m)
                    .transpose(),
            ];
            let rights = [
                MatRef::from_row_major_slice(&w, k, n + 2).subcols(0, n),
                MatRef::from_row_major_slice(&w_t, n, k + 4)
                    .subcols(0, k)
                    .transpose(),
            ];
            let old = values(m * n, 5);
            for library in libraries() {
                for (a, b) in lefts
                    .iter()
                    .flat_map(|a| rights.iter().map(move |b| (*a, *b)))
                {
                    for (accum, par, threads) in [
                        (Accum::Replace, Par::Seq, 1),
                        (Accum::Add, Par::Seq, 1),
                        (Accum::Add, Par::rayon(0), 3),
                    ] {
                        let mut got = old.clone();
                        on_threads(threads, || {
                            let output = MatMut::from_row_major_slice_mut(&mut got, m, n);
                            product_by(library, output, accum, a, b, 0.5, par);
                        });
                        for at in 0..m * n {
                            let (i, j) = (at / n, at % n);
                            let terms = (0..k).map(|l| f64::from(a[(i, l)]) * f64::from(b[(l, j)]));
                            let kept = match accum {
                                Accum::Add => f64::from(old[at]),
                                Accum::Replace => 0.0,
                            };
                            assert_close(got[at], kept + 0.5 * terms.sum::<f64>(), k as f64 + 1.0);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn gram_lower_matches_the_definition() {
        let (m, n) = (50, 300);
        let x = values(m * (n + 16), 1);
        let x = MatRef::from_row_major_slice(&x, m, n + 16).subcols(0, n);
        for library in libraries() {
            for (par, threads) in [(Par::Seq, 1), (Par::rayon(0), 2)] {
                let mut got = vec![f32::NAN; n * n];
                on_threads(threads, || {
                    let output = MatMut::from_column_major_slice_mut(&mut got, n, n);
                    gram_lower_by(library, output, x, par);
                });
                for column in 0..n {
                    for row in column..n {
                        let terms =
                            (0..m).map(|l| f64::from(x[(l, row)]) * f64::from(x[(l, column)]));
                        assert_close(got[column * n + row], terms.sum(), m as f64);
                    }
                }
            }
        }
    }

    #[test]
    fn bits_of_a_product_are_independent_of_threads() {
        let shapes = [
            (1, 512, 512),
            (1, 96, 1040),
            (512, 512, 1),
            (2, 700, 384),
            (65, 96, 384),
            (544, 128, 512),
        ];
        for (m, k, n) in shapes {
            let (x, w) = (values(m * k, 1), values(k * n, 2));
            let a = MatRef::from_row_major_slice(&x, m, k);
            let transposed = MatRef::from_column_major_slice(&x, m, k);
            for (a, accum) in [(a, Accum::Replace), (transposed, Accum::Add)] {
                let b = MatRef::from_row_major_slice(&w, k, n);
                let run = |threads| {
                    on_threads(threads, || {
                        let mut output = values(m * n, 3);
                        let target = MatMut::from_row_major_slice_mut(&mut output, m, n);
                        product_by(Library::Faer, target, accum, a, b, 1.0, Par::rayon(0));
                        output
                    })
                };
                let one = run(1);
                for threads in [2, 3, 8] {
                    assert!(run(threads) == one, "{m}, {k}, {n}: {threads} threads");
                }
            }
        }
    }

    #[test]
    fn bits_of_a_gram_matrix_are_independent_of_threads() {
        for (m, n) in [(70, 96), (2000, 300), (6304, 768), (1576, 1536)] {
            let x = values(m * n, 1);
            let x = MatRef::from_row_major_slice(&x, m, n);
            let gram = |threads| {
                on_threads(threads, || {
                    let mut gram = vec![0.0; n * n];
                    let target = MatMut::from_column_major_slice_mut(&mut gram, n, n);
                    gram_lower_by(Library::Faer, target, x, Par::rayon(0));
                    let lower = (0..n).flat_map(|j| (j..n).map(move |i| j * n + i));
                    lower.map(|at| gram[at]).collect::<Vec<f32>>()
                })
            };
            let one = gram(1);
            for threads in [2, 3, 8] {
                assert!(gram(threads) == one, "{m} rows of {n}, {threads} threads");
            }
        }
    }

    #[cfg(feature = "blas")]
    #[test]
    fn bits_of_the_blas_are_independent_of_threads() {
        let (m, k, n) = (310, 70, 600);
        let (x, w) = (values(m * k, 1), values(k * n, 2));
        let a = MatRef::from_row_major_slice(&x, m, k);
        let b = MatRef::from_row_major_slice(&w, k, n);
        let results = |threads| {
            on_threads(threads, || {
                let (mut output, mut gram) = (vec![0.0; m * n], vec![0.0; n * n]);
                let target = MatMut::from_row_major_slice_mut(&mut output, m, n);
                product_by(
                    Library::Blas,
                    target,
                    Accum::Replace,
                    a,
                    b,
                    1.0,
                    Par::rayon(0),
                );
                let target = MatMut::from_column_major_slice_mut(&mut gram, n, n);
                gram_lower_by(Library::Blas, target, b, Par::rayon(0));
                (output, gram)
            })
        };
        let two = results(2);
        for threads in [3, 8] {
            assert_eq!(results(threads), two);
        }
    }
}
