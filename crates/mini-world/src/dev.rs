//! Classification tasks of `mini-dev`, the suite for the choice of hyper-parameters: other domains
//! and styles than those of `mini`.

use super::canvas::{Canvas, Rgb, Strokes, Transform, mix, scaled};
use super::creature::{OTHER_SPECIES, draw_creature};
use super::face::{FaceStyle, MOODS, Wear, draw_face};
use super::font::{Handwriting, write_letter};
use super::land::{LANDS, draw_clouds, draw_land};
use super::palette::{COLOURS, shade};
use super::pattern::{PATTERNS, Pattern, Texture, mottle};
use super::rng::{Rng, sine};
use super::shape::{Fill, Paint, SHAPES, draw_shape};
use super::task::MiniTask;

/// The tasks of `mini-dev` in their default order.
pub(super) const TASKS: [MiniTask; 6] = [
    MiniTask {
        name: "stitches",
        class_names: &["b", "c", "d", "h", "k", "m", "s", "t", "w", "z"],
        templates: &[
            "a photo of the letter {}.",
            "an image with the letter {}.",
            "a drawing showing the letter {}.",
        ],
        about: "Letters sewn on denim with a thread that is missing in places.",
        draw: sewn_letter,
    },
    MiniTask {
        name: "balloons",
        class_names: &["striped", "dotted", "checkered", "zigzag", "plaid", "wavy"],
        templates: &[
            "a photo of a {} circle.",
            "an image with a {} circle.",
            "a drawing showing a {} circle.",
        ],
        about: "Balloons with a pattern before a sky at sunset.",
        draw: balloon,
    },
    MiniTask {
        name: "radar",
        class_names: &[
            "at the top left",
            "at the top right",
            "in the center",
            "at the bottom left",
            "at the bottom right",
        ],
        templates: &[
            "a photo of something {}.",
            "an image with a circle {}.",
            "a drawing with a shape {}.",
        ],
        about: "One object on a green radar screen, to be localized.",
        draw: radar,
    },
    MiniTask {
        name: "kinds",
        class_names: &["plonk", "sibbel", "grath", "oolimp", "drazz", "fennuk"],
        templates: &[
            "a photo of a {}.",
            "an image with a {}.",
            "a drawing with a {}.",
        ],
        about: "Six other kinds of creatures with invented names that pretraining never mentions.",
        draw: creature_in_snow,
    },
    MiniTask {
        name: "dusk",
        class_names: &["green", "dry", "snowy"],
        templates: &[
            "a photo of {} farmland.",
            "an image with a {} forest.",
            "a {} lake from the air.",
        ],
        about: "Land from above in the blue of dusk, to be classified by season.",
        draw: land_at_dusk,
    },
    MiniTask {
        name: "masks",
        class_names: &["a hat", "glasses"],
        templates: &[
            "a photo of a face with {}.",
            "an image with a face with {}.",
            "a drawing with {}.",
        ],
        about: "Masks carved of dark wood, to be classified by accessory.",
        draw: mask,
    },
];

/// Letters of `stitches`, as indices into the font.
const SEWN_LETTERS: [usize; 10] = [0, 1, 2, 5, 6, 8, 12, 13, 16, 19];

fn sewn_letter(class: usize, rng: &mut Rng) -> Canvas {
    let denim = [0.16, 0.24, 0.42].map(|c| c + rng.around(0.04));
    let mut canvas = Canvas::filled(denim);
    let (period, lean) = (rng.between(2.0, 3.0), rng.between(0.6, 1.4));
    canvas.map(|x, y, c| scaled(c, 1.0 + 0.25 * sine((x + lean * y) / period)));
    let mut seams = Strokes::new(3.0);
    for _ in 0..rng.below(3) {
        let y = rng.between(1.0, 31.0);
        seams.line((0.0, y), (32.0, y + rng.around(3.0)));
    }
    canvas.draw_chalk(&seams, 0.8, [0.85, 0.55, 0.2], 0.9, rng);
    let size = rng.between(7.5, 11.0);
    let free = 13.5 - size;
    let transform = Transform::new(
        16.0 + rng.around(free),
        16.0 + rng.around(free),
        size,
        rng.around(0.05),
    );
    let hand = Handwriting {
        wobble: 0.14,
        slant: rng.between(-0.3, 0.3),
        width: rng.between(0.45, 0.85),
    };
    let mut strokes = Strokes::new(3.0);
    write_letter(&mut strokes, SEWN_LETTERS[class], &transform, hand, rng);
    let thread = rng.pick(&[[0.9, 0.85, 0.6], [0.9, 0.4, 0.35], [0.6, 0.85, 0.7]]);
    canvas.draw_chalk(&strokes, rng.between(1.0, 1.7), thread, 1.0, rng);
    canvas.noise(0.04, rng);
    canvas
}

fn balloon(class: usize, rng: &mut Rng) -> Canvas {
    let (low, high): (Rgb, Rgb) = ([0.98, 0.62, 0.35], [0.35, 0.25, 0.55]);
    let mut canvas = Canvas::filled(low);
    canvas.map(|_, y, c| mix(high, c, (y / 32.0).clamp(0.0, 1.0)));
    draw_clouds(&mut canvas, 0.15 + 0.25 * rng.unit(), rng);
    let radius = rng.between(7.0, 12.0);
    let free = 15.0 - radius;
    let transform = Transform::new(
        16.0 + rng.around(free),
        16.0 + rng.around(free),
        radius,
        rng.unit(),
    );
    let first = shade(rng.below(COLOURS.len()), 0.08, rng);
    let light = first[0] + first[1] + first[2] > 1.5;
    let second = mix(
        first,
        if light {
            [0.2, 0.1, 0.15]
        } else {
            [0.95, 0.9, 0.8]
        },
        0.75,
    );
    let texture = Texture {
        // Index 0 is the plain pattern.
        pattern: PATTERNS[class + 1].0,
        period: rng.between(4.5, 7.0),
        seed: rng.bits(),
    };
    canvas.paint(
        &transform,
        1.2,
        |u, v| (u * u + v * v).sqrt() - 1.0,
        |u, v| {
            let tone = mix(first, second, texture.mask(u * radius, v * radius));
            scaled(tone, 1.15 - 0.5 * (u * u + v * v))
        },
    );
    let tint = rng.between(0.75, 1.05);
    canvas.map(|_, _, [r, g, b]| [r * tint, g * tint * 0.92, b * tint * 0.95]);
    canvas.noise(0.03, rng);
    canvas
}

/// Horizontal and vertical positions of the classes of `radar`.
const POSITIONS: [(f32, f32); 5] = [
    (-1.0, -1.0),
    (1.0, -1.0),
    (0.0, 0.0),
    (-1.0, 1.0),
    (1.0, 1.0),
];

fn radar(class: usize, rng: &mut Rng) -> Canvas {
    let screen = [0.02, 0.1, 0.05];
    let mut canvas = Canvas::filled(screen);
    let (turn, width) = (rng.unit(), rng.between(4.0, 6.0));
    canvas.map(|x, y, c| {
        let far = ((x - 16.0).powi(2) + (y - 16.0).powi(2)).sqrt();
        let ring = 1.0 - (far / width).fract().min(1.0 - (far / width).fract()) * 3.0;
        mix(c, [0.08, 0.3, 0.14], ring.clamp(0.0, 1.0) * 0.6)
    });
    let mut beam = Strokes::new(3.0);
    let end = (16.0 + 15.0 * sine(turn), 16.0 + 15.0 * sine(turn + 0.25));
    beam.line((16.0, 16.0), end);
    canvas.draw_neon(&beam, 0.7, [0.1, 0.5, 0.2]);
    for _ in 0..rng.below(8) {
        let at = (rng.between(0.0, 32.0), rng.between(0.0, 32.0));
        canvas.disc(at, rng.between(0.3, 0.7), [0.15, 0.5, 0.25]);
    }
    let radius = rng.between(2.5, 4.5);
    let free = 15.0 - radius;
    let (dx, dy) = POSITIONS[class];
    let transform = Transform::new(
        16.0 + dx * free * rng.between(0.65, 1.0) + rng.around(1.5),
        16.0 + dy * free * rng.between(0.65, 1.0) + rng.around(1.5),
        radius,
        rng.unit(),
    );
    let colour = mix([0.3, 1.0, 0.5], [0.9, 1.0, 0.6], rng.unit());
    let paint = Paint {
        colour,
        second: colour,
        pattern: Pattern::Plain,
        period: 4.0,
        fill: Fill::Solid,
    };
    let shape = SHAPES[rng.below(SHAPES.len())].0;
    draw_shape(&mut canvas, shape, &transform, &paint);
    canvas.blur(0.4 * rng.unit());
    canvas.noise(0.05, rng);
    canvas
}

fn creature_in_snow(class: usize, rng: &mut Rng) -> Canvas {
    let mut canvas = Canvas::filled([0.8, 0.84, 0.9].map(|c| c + rng.around(0.04)));
    mottle(&mut canvas, 0.2, rng);
    let radius = rng.between(9.0, 12.0);
    let free = 14.5 - radius;
    let transform = Transform::new(
        16.0 + rng.around(free),
        16.5 + rng.around(free),
        radius,
        rng.around(0.03),
    );
    let colour = shade(rng.below(9), 0.08, rng);
    draw_creature(
        &mut canvas,
        &OTHER_SPECIES[class],
        &transform,
        mix(colour, [0.6, 0.7, 0.85], 0.3),
    );
    for _ in 0..rng.below(25) {
        let at = (rng.between(0.0, 32.0), rng.between(0.0, 32.0));
        canvas.disc(at, rng.between(0.4, 0.9), [0.98; 3]);
    }
    canvas.noise(0.03, rng);
    canvas
}

fn land_at_dusk(class: usize, rng: &mut Rng) -> Canvas {
    // Water, sand and buildings do not depend on the season.
    let seasonal: Vec<usize> = (0..LANDS.len())
        .filter(|land| matches!(LANDS[*land].1, "forest" | "farmland" | "highway" | "lake"))
        .collect();
    let land = LANDS[rng.pick(&seasonal)].0;
    let mut canvas = draw_land(land, class, rng);
    let (dark, tint) = (rng.between(0.45, 0.7), [0.75, 0.8, 1.35]);
    canvas.map(|_, _, c| [0, 1, 2].map(|k| (c[k] * tint[k] * dark).clamp(0.0, 1.0)));
    for _ in 0..rng.below(6) {
        let at = (rng.between(0.0, 32.0), rng.between(0.0, 32.0));
        canvas.disc(at, rng.between(0.4, 0.8), [1.0, 0.85, 0.5]);
    }
    canvas.blur(0.5 * rng.unit());
    canvas.noise(0.05, rng);
    canvas
}

fn mask(class: usize, rng: &mut Rng) -> Canvas {
    let wall = shade(rng.below(COLOURS.len()), 0.08, rng);
    let mut canvas = Canvas::filled(mix(wall, [0.5; 3], 0.5));
    mottle(&mut canvas, 0.35, rng);
    let wood = rng.pick(&[[0.35, 0.2, 0.1], [0.45, 0.3, 0.18], [0.25, 0.17, 0.14]]);
    let radius = rng.between(9.5, 12.5);
    let free = 15.0 - radius;
    let transform = Transform::new(
        16.0 + rng.around(free),
        16.5 + rng.around(free),
        radius,
        rng.around(0.05),
    );
    let style = FaceStyle {
        skin: Some(wood),
        line: scaled(wood, 1.9),
        width: rng.between(1.1, 1.7),
        wear: [Wear::Hat, Wear::Glasses][class],
        accent: mix(shade(rng.below(9), 0.08, rng), wood, 0.3),
    };
    draw_face(&mut canvas, rng.pick(&MOODS).0, &transform, &style);
    canvas.noise(0.04, rng);
    canvas
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::font::LETTERS;

    #[test]
    fn class_names_match_the_drawn_objects() {
        let sewn: Vec<&str> = SEWN_LETTERS.iter().map(|at| LETTERS[*at].0).collect();
        assert_eq!(TASKS[0].class_names, sewn);
        let patterns: Vec<&str> = PATTERNS[1..7].iter().map(|p| p.1).collect();
        assert_eq!(TASKS[1].class_names, patterns);
        assert_eq!(TASKS[3].class_names.len(), OTHER_SPECIES.len());
        let seasons: Vec<&str> = crate::land::SEASONS.iter().map(|s| s.0).collect();
        assert_eq!(TASKS[4].class_names, seasons);
    }

    #[test]
    fn species_differ_from_those_of_mini() {
        for (at, build) in OTHER_SPECIES.iter().enumerate() {
            assert!(
                crate::creature::SPECIES
                    .iter()
                    .all(|(_, known)| known != build)
            );
            assert!(OTHER_SPECIES[at + 1..].iter().all(|other| other != build));
        }
    }
}
