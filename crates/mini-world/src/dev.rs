//! The tasks of `mini-dev`, on which settings are chosen: other domains than those of `mini`, in
//! other styles, from the same world.

use super::canvas::{Canvas, Place, Rgb, Strokes, mix, scaled};
use super::creature::{OTHER_SPECIES, draw_creature};
use super::dice::{Dice, sine};
use super::face::{FaceStyle, MOODS, Wear, draw_face};
use super::font::{Hand, write_letter};
use super::land::{LANDS, draw_clouds, draw_land};
use super::palette::{COLOURS, shade};
use super::pattern::{PATTERNS, Pattern, Weave, mottle};
use super::shape::{Finish, Paint, SHAPES, draw_shape};
use super::task::MiniTask;

/// In their usual order.
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
        about: "One thing on a green radar screen, to be located.",
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
        about: "Land from above in the blue of dusk, to be told by its season.",
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
        about: "Masks carved of dark wood, to be told by what they wear.",
        draw: mask,
    },
];

/// The letters of `stitches` as places in the font.
const SEWN: [usize; 10] = [0, 1, 2, 5, 6, 8, 12, 13, 16, 19];

fn sewn_letter(class: usize, dice: &mut Dice) -> Canvas {
    let denim = [0.16, 0.24, 0.42].map(|c| c + dice.around(0.04));
    let mut canvas = Canvas::filled(denim);
    let (period, lean) = (dice.between(2.0, 3.0), dice.between(0.6, 1.4));
    canvas.map(|x, y, c| scaled(c, 1.0 + 0.25 * sine((x + lean * y) / period)));
    let mut seams = Strokes::new(3.0);
    for _ in 0..dice.below(3) {
        let y = dice.between(1.0, 31.0);
        seams.line((0.0, y), (32.0, y + dice.around(3.0)));
    }
    canvas.chalk(&seams, 0.8, [0.85, 0.55, 0.2], 0.9, dice);
    let size = dice.between(7.5, 11.0);
    let free = 13.5 - size;
    let place = Place::new(
        16.0 + dice.around(free),
        16.0 + dice.around(free),
        size,
        dice.around(0.05),
    );
    let hand = Hand {
        wobble: 0.14,
        slant: dice.between(-0.3, 0.3),
        width: dice.between(0.45, 0.85),
    };
    let mut strokes = Strokes::new(3.0);
    write_letter(&mut strokes, SEWN[class], &place, hand, dice);
    let thread = dice.pick(&[[0.9, 0.85, 0.6], [0.9, 0.4, 0.35], [0.6, 0.85, 0.7]]);
    canvas.chalk(&strokes, dice.between(1.0, 1.7), thread, 1.0, dice);
    canvas.noise(0.04, dice);
    canvas
}

fn balloon(class: usize, dice: &mut Dice) -> Canvas {
    let (low, high): (Rgb, Rgb) = ([0.98, 0.62, 0.35], [0.35, 0.25, 0.55]);
    let mut canvas = Canvas::filled(low);
    canvas.map(|_, y, c| mix(high, c, (y / 32.0).clamp(0.0, 1.0)));
    draw_clouds(&mut canvas, 0.15 + 0.25 * dice.unit(), dice);
    let radius = dice.between(7.0, 12.0);
    let free = 15.0 - radius;
    let place = Place::new(
        16.0 + dice.around(free),
        16.0 + dice.around(free),
        radius,
        dice.unit(),
    );
    let first = shade(dice.below(COLOURS.len()), 0.08, dice);
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
    let weave = Weave {
        // Behind the plain one.
        pattern: PATTERNS[class + 1].0,
        period: dice.between(4.5, 7.0),
        seed: dice.bits(),
    };
    canvas.paint(
        &place,
        1.2,
        |u, v| (u * u + v * v).sqrt() - 1.0,
        |u, v| {
            let tone = mix(first, second, weave.mask(u * radius, v * radius));
            scaled(tone, 1.15 - 0.5 * (u * u + v * v))
        },
    );
    let tint = dice.between(0.75, 1.05);
    canvas.map(|_, _, [r, g, b]| [r * tint, g * tint * 0.92, b * tint * 0.95]);
    canvas.noise(0.03, dice);
    canvas
}

/// Columns and rows of the classes of `radar`.
const PLACES: [(f32, f32); 5] = [
    (-1.0, -1.0),
    (1.0, -1.0),
    (0.0, 0.0),
    (-1.0, 1.0),
    (1.0, 1.0),
];

fn radar(class: usize, dice: &mut Dice) -> Canvas {
    let screen = [0.02, 0.1, 0.05];
    let mut canvas = Canvas::filled(screen);
    let (turn, width) = (dice.unit(), dice.between(4.0, 6.0));
    canvas.map(|x, y, c| {
        let far = ((x - 16.0).powi(2) + (y - 16.0).powi(2)).sqrt();
        let ring = 1.0 - (far / width).fract().min(1.0 - (far / width).fract()) * 3.0;
        mix(c, [0.08, 0.3, 0.14], ring.clamp(0.0, 1.0) * 0.6)
    });
    let mut beam = Strokes::new(3.0);
    let end = (16.0 + 15.0 * sine(turn), 16.0 + 15.0 * sine(turn + 0.25));
    beam.line((16.0, 16.0), end);
    canvas.glow(&beam, 0.7, [0.1, 0.5, 0.2]);
    for _ in 0..dice.below(8) {
        let at = (dice.between(0.0, 32.0), dice.between(0.0, 32.0));
        canvas.disc(at, dice.between(0.3, 0.7), [0.15, 0.5, 0.25]);
    }
    let radius = dice.between(2.5, 4.5);
    let free = 15.0 - radius;
    let (dx, dy) = PLACES[class];
    let place = Place::new(
        16.0 + dx * free * dice.between(0.65, 1.0) + dice.around(1.5),
        16.0 + dy * free * dice.between(0.65, 1.0) + dice.around(1.5),
        radius,
        dice.unit(),
    );
    let colour = mix([0.3, 1.0, 0.5], [0.9, 1.0, 0.6], dice.unit());
    let paint = Paint {
        colour,
        second: colour,
        pattern: Pattern::Plain,
        period: 4.0,
        finish: Finish::Solid,
    };
    let shape = SHAPES[dice.below(SHAPES.len())].0;
    draw_shape(&mut canvas, shape, &place, &paint);
    canvas.soften(0.4 * dice.unit());
    canvas.noise(0.05, dice);
    canvas
}

fn creature_in_snow(class: usize, dice: &mut Dice) -> Canvas {
    let mut canvas = Canvas::filled([0.8, 0.84, 0.9].map(|c| c + dice.around(0.04)));
    mottle(&mut canvas, 0.2, dice);
    let radius = dice.between(9.0, 12.0);
    let free = 14.5 - radius;
    let place = Place::new(
        16.0 + dice.around(free),
        16.5 + dice.around(free),
        radius,
        dice.around(0.03),
    );
    let colour = shade(dice.below(9), 0.08, dice);
    draw_creature(
        &mut canvas,
        &OTHER_SPECIES[class],
        &place,
        mix(colour, [0.6, 0.7, 0.85], 0.3),
    );
    for _ in 0..dice.below(25) {
        let at = (dice.between(0.0, 32.0), dice.between(0.0, 32.0));
        canvas.disc(at, dice.between(0.4, 0.9), [0.98; 3]);
    }
    canvas.noise(0.03, dice);
    canvas
}

fn land_at_dusk(class: usize, dice: &mut Dice) -> Canvas {
    // Water, sand and houses look the same all year.
    let seasonal: Vec<usize> = (0..LANDS.len())
        .filter(|land| matches!(LANDS[*land].1, "forest" | "farmland" | "highway" | "lake"))
        .collect();
    let land = LANDS[dice.pick(&seasonal)].0;
    let mut canvas = draw_land(land, class, dice);
    let (dark, tint) = (dice.between(0.45, 0.7), [0.75, 0.8, 1.35]);
    canvas.map(|_, _, c| [0, 1, 2].map(|k| (c[k] * tint[k] * dark).clamp(0.0, 1.0)));
    for _ in 0..dice.below(6) {
        let at = (dice.between(0.0, 32.0), dice.between(0.0, 32.0));
        canvas.disc(at, dice.between(0.4, 0.8), [1.0, 0.85, 0.5]);
    }
    canvas.soften(0.5 * dice.unit());
    canvas.noise(0.05, dice);
    canvas
}

fn mask(class: usize, dice: &mut Dice) -> Canvas {
    let wall = shade(dice.below(COLOURS.len()), 0.08, dice);
    let mut canvas = Canvas::filled(mix(wall, [0.5; 3], 0.5));
    mottle(&mut canvas, 0.35, dice);
    let wood = dice.pick(&[[0.35, 0.2, 0.1], [0.45, 0.3, 0.18], [0.25, 0.17, 0.14]]);
    let radius = dice.between(9.5, 12.5);
    let free = 15.0 - radius;
    let place = Place::new(
        16.0 + dice.around(free),
        16.5 + dice.around(free),
        radius,
        dice.around(0.05),
    );
    let style = FaceStyle {
        skin: Some(wood),
        line: scaled(wood, 1.9),
        width: dice.between(1.1, 1.7),
        wear: [Wear::Hat, Wear::Glasses][class],
        accent: mix(shade(dice.below(9), 0.08, dice), wood, 0.3),
    };
    draw_face(&mut canvas, dice.pick(&MOODS).0, &place, &style);
    canvas.noise(0.04, dice);
    canvas
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::font::LETTERS;

    #[test]
    fn class_names_are_those_of_the_drawn_things() {
        let sewn: Vec<&str> = SEWN.iter().map(|at| LETTERS[*at].0).collect();
        assert_eq!(TASKS[0].class_names, sewn);
        let patterns: Vec<&str> = PATTERNS[1..7].iter().map(|p| p.1).collect();
        assert_eq!(TASKS[1].class_names, patterns);
        assert_eq!(TASKS[3].class_names.len(), OTHER_SPECIES.len());
        let seasons: Vec<&str> = crate::land::SEASONS.iter().map(|s| s.0).collect();
        assert_eq!(TASKS[4].class_names, seasons);
    }

    #[test]
    fn its_species_are_those_of_no_other_suite() {
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
