//! Digits and letters as pen strokes.

use super::canvas::{Strokes, Transform};
use super::rng::Rng;

/// Digits as polylines separated by `;`. Each point is two digits: column 0..4 and row 0..8.
const DIGITS: [&str; 10] = [
    "10 30 42 46 38 18 06 02 10",
    "12 20 28;18 38",
    "02 10 30 42 43 08 48",
    "01 10 30 42 34 14;34 45 46 38 18 07",
    "30 05 45;30 38",
    "40 00 03 33 44 46 38 18 07",
    "41 30 10 02 06 18 38 46 45 34 14 05",
    "00 40 18",
    "10 30 41 43 34 14 03 01 10;14 05 07 18 38 47 45 34",
    "07 18 38 46 42 30 10 02 03 14 34 43",
];

/// Letters with their strokes, encoded like [`DIGITS`].
pub(super) const LETTERS: [(&str, &str); 20] = [
    ("b", "00 08 38 46 45 34 04;00 30 41 43 34"),
    ("c", "41 30 10 02 06 18 38 47"),
    ("d", "00 08 28 46 42 20 00"),
    ("e", "40 00 08 48;04 34"),
    ("f", "40 00 08;04 34"),
    ("h", "00 08;40 48;04 44"),
    ("k", "00 08;40 04 48"),
    ("l", "00 08 48"),
    ("m", "08 00 24 40 48"),
    ("n", "08 00 48 40"),
    ("p", "08 00 30 41 43 34 04"),
    ("r", "08 00 30 41 43 34 04;24 48"),
    ("s", "41 30 10 01 03 14 34 45 47 38 18 07"),
    ("t", "00 40;20 28"),
    ("u", "00 06 18 38 46 40"),
    ("v", "00 28 40"),
    ("w", "00 18 24 38 40"),
    ("x", "00 48;40 08"),
    ("y", "00 24 40;24 28"),
    ("z", "00 40 08 48"),
];

/// Names of digits and counts.
pub(super) const NUMBERS: [&str; 10] = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine",
];

/// Random deformation of a glyph.
#[derive(Clone, Copy)]
pub(super) struct Handwriting {
    /// Maximum displacement of each point, as a share of the glyph's half height.
    pub(super) wobble: f32,
    /// Slant of the top to the right, as a share of the half height.
    pub(super) slant: f32,
    /// Ratio of width to height.
    pub(super) width: f32,
}

/// Adds digit `value` to the strokes.
pub(super) fn write_digit(
    strokes: &mut Strokes,
    value: usize,
    transform: &Transform,
    hand: Handwriting,
    rng: &mut Rng,
) {
    write_glyph(strokes, DIGITS[value], transform, hand, rng);
}

/// Adds letter `index` of [`LETTERS`] to the strokes.
pub(super) fn write_letter(
    strokes: &mut Strokes,
    index: usize,
    transform: &Transform,
    hand: Handwriting,
    rng: &mut Rng,
) {
    write_glyph(strokes, LETTERS[index].1, transform, hand, rng);
}

fn write_glyph(
    strokes: &mut Strokes,
    glyph: &str,
    transform: &Transform,
    hand: Handwriting,
    rng: &mut Rng,
) {
    // One offset per lattice point, so that strokes stay connected.
    let mut offsets = [(0.0f32, 0.0f32); 45];
    for offset in &mut offsets {
        *offset = (rng.around(hand.wobble), rng.around(hand.wobble));
    }
    let point = |column: u8, row: u8| {
        let (dx, dy) = offsets[usize::from(row) * 5 + usize::from(column)];
        let y = f32::from(row) / 4.0 - 1.0 + dy;
        let x = (f32::from(column) / 2.0 - 1.0) * hand.width + dx - hand.slant * y;
        transform.to_canvas((x, y))
    };
    let mut last = None;
    for text in glyph.as_bytes().chunks(3) {
        let current = point(text[0] - b'0', text[1] - b'0');
        if let Some(previous) = last {
            strokes.line(previous, current);
        }
        last = if text.get(2) == Some(&b';') {
            None
        } else {
            Some(current)
        };
    }
}
