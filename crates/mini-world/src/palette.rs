//! Named colours.

use super::canvas::Rgb;
use super::rng::Rng;

/// The named colours.
pub(super) const COLOURS: [(&str, Rgb); 12] = [
    ("red", [0.85, 0.12, 0.12]),
    ("orange", [0.96, 0.53, 0.08]),
    ("yellow", [0.95, 0.88, 0.15]),
    ("green", [0.13, 0.62, 0.20]),
    ("blue", [0.14, 0.28, 0.86]),
    ("purple", [0.52, 0.16, 0.68]),
    ("pink", [0.98, 0.58, 0.75]),
    ("brown", [0.47, 0.28, 0.13]),
    ("cyan", [0.20, 0.80, 0.85]),
    ("white", [0.95, 0.95, 0.93]),
    ("gray", [0.52, 0.52, 0.54]),
    ("black", [0.07, 0.07, 0.08]),
];

/// Number of colours of fruit: the first ones of [`COLOURS`].
pub(super) const FRUIT_COLOURS: usize = 8;

/// Returns the name of a colour.
pub(super) fn colour_name(index: usize) -> &'static str {
    COLOURS[index].0
}

/// Returns a random shade of a colour: each channel within `spread` of the named one.
pub(super) fn shade(index: usize, spread: f32, rng: &mut Rng) -> Rgb {
    COLOURS[index]
        .1
        .map(|c| (c + rng.around(spread)).clamp(0.0, 1.0))
}

/// Returns two colours of sufficient contrast.
pub(super) fn colour_pair(rng: &mut Rng) -> (usize, usize) {
    let first = rng.below(COLOURS.len());
    loop {
        let second = rng.below(COLOURS.len());
        let (a, b) = (COLOURS[first].1, COLOURS[second].1);
        let apart: f32 = a.iter().zip(b).map(|(x, y)| (x - y).abs()).sum();
        if apart > 0.55 {
            return (first, second);
        }
    }
}
