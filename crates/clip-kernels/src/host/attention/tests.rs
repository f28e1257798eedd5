use super::super::reference::{
    self, Inputs, assert_close, assert_gradients, inputs, numbers, wide,
};
use super::*;

const ALL: AttentionNeedsGrad = AttentionNeedsGrad {
    input: true,
    norm: true,
    in_weight: true,
    in_bias: true,
    out_weight: true,
    out_bias: true,
};

fn params(values: &Inputs<f32>) -> AttentionParams<'_> {
    let (in_proj, out_proj) = (
        reference::linear_params(values, 0),
        reference::linear_params(values, 1),
    );
    AttentionParams {
        norm: reference::norm(values),
        in_proj,
        out_proj,
    }
}

fn list(g: &AttentionGradients) -> [&Option<Vec<f32>>; 7] {
    [
        &g.input,
        &g.gamma,
        &g.beta,
        &g.in_weight,
        &g.in_bias,
        &g.out_weight,
        &g.out_bias,
    ]
}

fn random(shape: AttentionShape, bias: bool) -> Inputs<f32> {
    let AttentionShape {
        batch,
        tokens,
        width,
        ..
    } = shape;
    inputs(
        batch * tokens,
        width,
        [3 * width, width],
        bias,
        tokens as u64,
    )
}

fn positions(shape: AttentionShape) -> Vec<usize> {
    (0..shape.batch)
        .map(|i| (i * 5 + 3) % shape.tokens)
        .collect()
}

/// Returns a different tree for each item.
fn tree(shape: AttentionShape) -> Vec<usize> {
    let parent = |item: usize, token: usize| (token * 7 + item * 3) % (token + 1);
    (0..shape.batch)
        .flat_map(|item| (0..shape.tokens).map(move |token| parent(item, token)))
        .collect()
}

fn check(shape: AttentionShape, queries: Queries<'_>, bias: bool) {
    let what = format!("{shape:?} {queries:?} bias {bias}");
    let values = random(shape, bias);
    let params = params(&values);
    let (y, saved) = attention_branch(&values[0], &params, shape, queries, true);
    let dy = numbers(y.len(), 99, 1.0);
    let formula = |values: &Inputs<f64>| reference::attention(shape, queries, values);
    assert_close(
        &y,
        &formula(&std::array::from_fn(|i| wide(&values[i]))),
        3e-6,
        &what,
    );
    let (bare, nothing) = attention_branch(&values[0], &params, shape, queries, false);
    assert!(bare == y && nothing.is_none(), "{what}");
    let back =
        |saved| attention_branch_backward(&values[0], &params, shape, queries, saved, &dy, ALL);
    let gradients = back(saved.as_ref());
    assert_eq!(gradients, back(None), "{what}");
    assert_eq!(gradients, back(saved.as_ref()), "{what}");
    assert_gradients(formula, &values, &dy, list(&gradients), &what);
}

#[test]
fn row_padding_is_not_read() {
    // Scratch rows of a multiple of 128 values are padded, and tests fill scratch memory with NaN.
    let shape = AttentionShape {
        batch: 2,
        tokens: 128,
        width: 128,
        heads: 2,
        causal: false,
    };
    let values = random(shape, true);
    let params = params(&values);
    let tree = tree(shape);
    for queries in [Queries::All, Queries::Tree(&tree)] {
        let (y, saved) = attention_branch(&values[0], &params, shape, queries, true);
        let want = reference::attention(shape, queries, &std::array::from_fn(|i| wide(&values[i])));
        // Sums of 128 numbers round more than the short ones of the tests below.
        assert_close(&y, &want, 1e-5, "width 128");
        let dy = numbers(y.len(), 99, 1.0);
        let back =
            |saved| attention_branch_backward(&values[0], &params, shape, queries, saved, &dy, ALL);
        let gradients = back(saved.as_ref());
        assert_eq!(gradients, back(None));
        for gradient in list(&gradients) {
            assert!(gradient.as_ref().unwrap().iter().all(|g| g.is_finite()));
        }
    }
}

#[test]
fn values_and_gradients_match_the_formula() {
    for batch in [1, 2, 3, 5] {
        for tokens in [1, 2, 7, 17] {
            for (heads, width) in [(1, 5), (3, 12)] {
                for causal in [false, true] {
                    let shape = AttentionShape {
                        batch,
                        tokens,
                        width,
                        heads,
                        causal,
                    };
                    check(shape, Queries::All, batch != 2);
                    check(shape, Queries::At(&positions(shape)), batch != 3);
                    check(shape, Queries::Tree(&tree(shape)), batch != 3);
                }
            }
        }
    }
}

#[test]
fn more_tokens_than_a_block_match_the_formula() {
    for causal in [false, true] {
        let shape = AttentionShape {
            batch: 1,
            tokens: 270,
            width: 4,
            heads: 2,
            causal,
        };
        let values = random(shape, true);
        let (y, _) = attention_branch(&values[0], &params(&values), shape, Queries::All, true);
        let want = reference::attention(
            shape,
            Queries::All,
            &std::array::from_fn(|i| wide(&values[i])),
        );
        assert_close(&y, &want, 3e-6, "y");
        let shape = AttentionShape {
            tokens: 70,
            ..shape
        };
        check(shape, Queries::All, true);
        check(shape, Queries::Tree(&tree(shape)), true);
    }
}

#[test]
fn a_chain_equals_causal_attention() {
    let shape = AttentionShape {
        batch: 2,
        tokens: 40,
        width: 12,
        heads: 3,
        causal: true,
    };
    let values = random(shape, true);
    let chain: Vec<usize> = (0..80).map(|i| (i % 40usize).saturating_sub(1)).collect();
    let run = |queries| attention_branch(&values[0], &params(&values), shape, queries, false).0;
    assert_close(
        &run(Queries::Tree(&chain)),
        &wide(&run(Queries::All)),
        1e-6,
        "y",
    );
}

#[test]
#[should_panic(expected = "a parent stands before its children")]
fn a_child_before_its_parent_panics() {
    let shape = AttentionShape {
        batch: 1,
        tokens: 2,
        width: 4,
        heads: 1,
        causal: true,
    };
    let values = random(shape, true);
    attention_branch(
        &values[0],
        &params(&values),
        shape,
        Queries::Tree(&[1, 1]),
        false,
    );
}

#[test]
fn results_are_equal_within_rounding_for_any_number_of_threads() {
    let shape = AttentionShape {
        batch: 5,
        tokens: 9,
        width: 24,
        heads: 3,
        causal: true,
    };
    let values = random(shape, true);
    let params = params(&values);
    let (at, tree) = (positions(shape), tree(shape));
    for queries in [Queries::All, Queries::At(&at), Queries::Tree(&tree)] {
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .unwrap();
            pool.install(|| {
                let (y, saved) = attention_branch(&values[0], &params, shape, queries, true);
                let back = attention_branch_backward(
                    &values[0],
                    &params,
                    shape,
                    queries,
                    saved.as_ref(),
                    &y,
                    ALL,
                );
                (y, back)
            })
        };
        let one = run(1);
        for threads in [2, 3, 12] {
            let many = run(threads);
            assert_close(&many.0, &wide(&one.0), 1e-6, "y");
            for (many, one) in list(&many.1).into_iter().zip(list(&one.1)) {
                assert_close(
                    many.as_ref().unwrap(),
                    &wide(one.as_ref().unwrap()),
                    3e-6,
                    "gradient",
                );
            }
        }
    }
}

#[test]
fn items_are_independent() {
    let shape = AttentionShape {
        batch: 3,
        tokens: 11,
        width: 12,
        heads: 3,
        causal: true,
    };
    let values = random(shape, true);
    let (y, _) = attention_branch(&values[0], &params(&values), shape, Queries::All, false);
    let single = AttentionShape { batch: 1, ..shape };
    for (x, y) in values[0].chunks(11 * 12).zip(y.chunks(11 * 12)) {
        let (alone, _) = attention_branch(x, &params(&values), single, Queries::All, false);
        assert_close(&alone, &wide(y), 1e-6, "y");
    }
}

#[test]
fn a_selected_query_equals_the_row_of_all_queries() {
    for causal in [false, true] {
        let shape = AttentionShape {
            batch: 4,
            tokens: 6,
            width: 12,
            heads: 3,
            causal,
        };
        let values = random(shape, true);
        let (all, _) = attention_branch(&values[0], &params(&values), shape, Queries::All, false);
        let at = positions(shape);
        let (some, _) =
            attention_branch(&values[0], &params(&values), shape, Queries::At(&at), false);
        for (item, position) in at.into_iter().enumerate() {
            let all = &all[(item * 6 + position) * 12..][..12];
            assert_close(&some[item * 12..][..12], &wide(all), 1e-6, "y");
        }
    }
}

#[test]
fn only_requested_gradients_are_returned() {
    let shape = AttentionShape {
        batch: 2,
        tokens: 5,
        width: 6,
        heads: 2,
        causal: true,
    };
    let values = random(shape, true);
    let params = params(&values);
    let at = positions(shape);
    for queries in [Queries::All, Queries::At(&at)] {
        let (y, saved) = attention_branch(&values[0], &params, shape, queries, true);
        let back = |needs_grad, saved| {
            attention_branch_backward(&values[0], &params, shape, queries, saved, &y, needs_grad)
        };
        let all = back(ALL, saved.as_ref());
        for bits in 0..64 {
            let bit = |i: u32| bits >> i & 1 == 1;
            let flags = [bit(0), bit(1), bit(1), bit(2), bit(3), bit(4), bit(5)];
            let [input, norm, _, in_weight, in_bias, out_weight, out_bias] = flags;
            let needs_grad = AttentionNeedsGrad {
                input,
                norm,
                in_weight,
                in_bias,
                out_weight,
                out_bias,
            };
            for saved in [saved.as_ref(), None] {
                let some = back(needs_grad, saved);
                for ((some, all), needs_grad) in list(&some).into_iter().zip(list(&all)).zip(flags)
                {
                    assert_eq!(
                        some.as_ref(),
                        all.as_ref().filter(|_| needs_grad),
                        "{bits:b}"
                    );
                }
            }
        }
    }
}

#[test]
fn huge_scores_stay_finite() {
    let shape = AttentionShape {
        batch: 2,
        tokens: 40,
        width: 8,
        heads: 2,
        causal: false,
    };
    let mut values = random(shape, true);
    values[3].iter_mut().for_each(|w| *w *= 60.0);
    let (y, saved) = attention_branch(&values[0], &params(&values), shape, Queries::All, true);
    let largest = saved
        .unwrap()
        .softmax_stats
        .iter()
        .fold(0.0, |m: f32, x| m.max(x.max.abs()));
    assert!(largest > 1e4, "the scores reach only {largest}");
    assert!(y.iter().all(|y| y.is_finite()));
}

#[test]
fn nan_stays_in_its_item() {
    let shape = AttentionShape {
        batch: 3,
        tokens: 20,
        width: 8,
        heads: 2,
        causal: false,
    };
    let mut values = random(shape, true);
    values[0][160 + 5] = f32::NAN;
    let (y, _) = attention_branch(&values[0], &params(&values), shape, Queries::All, false);
    for (i, item) in y.chunks(160).enumerate() {
        assert!(item.iter().all(|y| y.is_nan() == (i == 1)));
    }
}
