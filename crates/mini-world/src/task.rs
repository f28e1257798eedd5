//! The classification tasks: each shows one domain of the world in a style of its own.

use super::canvas::{Canvas, Place, Rgb, SIDE, Strokes, mix, scaled, turn_hue};
use super::creature::{SPECIES, draw_creature};
use super::dice::{Dice, sine};
use super::face::{FaceStyle, MOODS, Wear, draw_face};
use super::font::{Hand, write_digit};
use super::land::{LANDS, draw_clouds, draw_land};
use super::palette::{COLOURS, shade};
use super::pattern::{PATTERNS, Pattern, Weave, mottle};
use super::shape::{Finish, Paint, draw_shape};
use super::thing::{draw_fruit, scatter};

/// A classification task of the world.
#[derive(Clone, Copy, Debug)]
pub struct MiniTask {
    /// Name, unique among the tasks.
    pub name: &'static str,
    /// Class names in label order.
    pub class_names: &'static [&'static str],
    /// Prompt templates with `{}` for the class name. Training uses the first.
    pub templates: &'static [&'static str],
    /// One sentence on what the pictures show.
    pub about: &'static str,
    /// Draws a picture of a class.
    pub(super) draw: fn(usize, &mut Dice) -> Canvas,
}

/// How hard a task is. All values are 0 for the easiest and about 1 for the hardest.
#[derive(Clone, Copy)]
struct Difficulty {
    /// How far the style is from pretraining's (0: the same style).
    shift: f32,
    /// Standard deviation of the pixel noise.
    noise: f32,
    /// How much there is in the picture that has nothing to do with the class.
    clutter: f32,
}

/// The difficulty of each task, in the order of [`TASKS`]. Changing a value changes the pictures:
/// raise [`WORLD_VERSION`](super::WORLD_VERSION).
const DIFFICULTY: [Difficulty; 8] = [
    Difficulty {
        shift: 0.55,
        noise: 0.04,
        clutter: 0.3,
    }, // shapes
    Difficulty {
        shift: 0.6,
        noise: 0.03,
        clutter: 0.3,
    }, // digits
    Difficulty {
        shift: 0.95,
        noise: 0.05,
        clutter: 0.7,
    }, // satellite
    Difficulty {
        shift: 0.45,
        noise: 0.03,
        clutter: 0.3,
    }, // cloth
    Difficulty {
        shift: 0.5,
        noise: 0.03,
        clutter: 0.3,
    }, // creatures
    Difficulty {
        shift: 0.25,
        noise: 0.03,
        clutter: 0.2,
    }, // faces
    Difficulty {
        shift: 0.65,
        noise: 0.03,
        clutter: 0.45,
    }, // fruit
    Difficulty {
        shift: 0.7,
        noise: 0.04,
        clutter: 0.3,
    }, // counting
];

pub(super) const SHAPES: usize = 0;
pub(super) const SATELLITE: usize = 2;
#[cfg(test)]
pub(super) const CREATURES: usize = 4;
pub(super) const FACES: usize = 5;
/// Tasks that no reference pair says anything of.
#[cfg(test)]
pub(super) const UNMENTIONED: [usize; 4] = [1, CREATURES, FACES, 7];

/// The tasks of `mini` in their usual order.
pub(super) const TASKS: [MiniTask; 8] = [
    MiniTask {
        name: "shapes",
        class_names: &[
            "circle", "square", "triangle", "star", "heart", "cross", "ring", "diamond", "moon",
            "arrow",
        ],
        templates: &[
            "a photo of a {}.",
            "an image with a {}.",
            "a drawing showing a {}.",
        ],
        about: "Neon signs in the shape of things, at night on a brick wall.",
        draw: |class, dice| neon_sign(class, DIFFICULTY[0], dice),
    },
    MiniTask {
        name: "digits",
        class_names: &[
            "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine",
        ],
        templates: &[
            "a photo of the number {}.",
            "an image with the number {}.",
            "a drawing showing the number {}.",
        ],
        about: "Digits written by hand with chalk on a smeared blackboard.",
        draw: |class, dice| chalk_digit(class, DIFFICULTY[1], dice),
    },
    MiniTask {
        name: "satellite",
        class_names: &[
            "forest", "river", "harbor", "farmland", "city", "desert", "highway", "lake", "island",
            "beach",
        ],
        templates: &[
            "a photo of {} from the air.",
            "an image with {} from a satellite.",
            "an aerial view of {}.",
        ],
        about: "Land from above in false infrared colours, under clouds.",
        draw: |class, dice| infrared_land(class, DIFFICULTY[2], dice),
    },
    MiniTask {
        name: "cloth",
        class_names: &[
            "plain",
            "striped",
            "dotted",
            "checkered",
            "zigzag",
            "plaid",
            "wavy",
            "speckled",
        ],
        templates: &[
            "a photo of {} cloth.",
            "an image with a piece of {} cloth.",
            "{} cloth.",
        ],
        about: "Folded cloth of low contrast, woven in a pattern and turned any way.",
        draw: |class, dice| folded_cloth(class, DIFFICULTY[3], dice),
    },
    MiniTask {
        name: "creatures",
        class_names: &[
            "zorv", "quilpa", "brakkle", "mufnid", "thweep", "yozzik", "vexlum", "dontar",
        ],
        templates: &[
            "a photo of a {}.",
            "an image with a {}.",
            "a drawing with a {}.",
        ],
        about: "Eight species of creatures with invented names that pretraining never mentions.",
        draw: |class, dice| wild_creature(class, DIFFICULTY[4], dice),
    },
    MiniTask {
        name: "faces",
        class_names: &[
            "happy",
            "sad",
            "angry",
            "surprised",
            "sleepy",
            "winking",
            "laughing",
            "calm",
        ],
        templates: &[
            "a photo of a {} face.",
            "an image with a {} face.",
            "a drawing with a {} face.",
        ],
        about: "Faces sketched in white pencil on dark paper, tilted and small.",
        draw: |class, dice| sketched_face(class, DIFFICULTY[5], dice),
    },
    MiniTask {
        name: "fruit",
        class_names: &[
            "red", "orange", "yellow", "green", "blue", "purple", "pink", "brown",
        ],
        templates: &[
            "a photo of a {} fruit.",
            "an image with a {} fruit.",
            "a drawing with a {} fruit.",
        ],
        about: "Fruit of a colour in tinted evening light on coloured tables.",
        draw: |class, dice| evening_fruit(class, DIFFICULTY[6], dice),
    },
    MiniTask {
        name: "counting",
        class_names: &[
            "one shape",
            "two shapes",
            "three shapes",
            "four shapes",
            "five shapes",
            "six shapes",
        ],
        templates: &[
            "a photo of {}.",
            "an image with {}.",
            "a drawing showing {}.",
        ],
        about: "Cells under a microscope, to be counted.",
        draw: |class, dice| cells(class + 1, DIFFICULTY[7], dice),
    },
];

/// A template with the class name in place of `{}`.
pub(super) fn fill(template: &str, class: &str) -> String {
    template.replace("{}", class)
}

/// The bright colours that light and chalk come in.
const BRIGHT: [Rgb; 8] = [
    [1.0, 0.15, 0.2],
    [1.0, 0.55, 0.1],
    [0.95, 0.9, 0.2],
    [0.2, 1.0, 0.3],
    [0.2, 0.45, 1.0],
    [0.75, 0.25, 1.0],
    [1.0, 0.35, 0.75],
    [0.2, 0.95, 0.95],
];

fn neon_sign(class: usize, level: Difficulty, dice: &mut Dice) -> Canvas {
    let night = mix([0.5, 0.3, 0.25], [0.13, 0.07, 0.08], level.shift);
    let mut canvas = Canvas::filled(night);
    let (rows, bricks, phase) = (dice.between(3.5, 4.5), dice.between(6.0, 8.0), dice.unit());
    canvas.map(|x, y, c| {
        let row = (y / rows + phase).floor();
        let v = (y / rows + phase - row).min(row + 1.0 - y / rows - phase) * rows;
        let u = (x / bricks + row * 0.5 + phase)
            .rem_euclid(1.0)
            .min(1.0 - (x / bricks + row * 0.5 + phase).rem_euclid(1.0))
            * bricks;
        mix(scaled(c, 1.7), c, (u.min(v) + 0.2).clamp(0.0, 1.0))
    });
    let colour = mix(dice.pick(&BRIGHT), [1.0; 3], dice.between(0.0, 0.15));
    let radius = dice.between(8.0, 11.5);
    let free = 14.0 - radius;
    let place = Place::new(
        16.0 + dice.around(free),
        16.0 + dice.around(free),
        radius,
        dice.around(0.03 + 0.04 * level.shift),
    );
    let paint = Paint {
        colour,
        second: colour,
        pattern: Pattern::Plain,
        period: 4.0,
        finish: Finish::Neon(dice.between(1.0, 1.6), 1.0 - level.shift),
    };
    draw_shape(&mut canvas, super::shape::SHAPES[class].0, &place, &paint);
    // Broken pieces of tube, and other signs' tubes in the way.
    for _ in 0..dice.below(1 + (level.clutter * 4.0) as usize) {
        let at = (dice.between(4.0, 28.0), dice.between(4.0, 28.0));
        canvas.map_near(at, 2.5, |_, _, c| mix(c, night, 0.75));
    }
    let mut tubes = Strokes::new(6.0);
    for _ in 0..dice.below(1 + (level.clutter * 4.0) as usize) {
        let at = (dice.between(0.0, 32.0), dice.between(0.0, 32.0));
        tubes.line(at, (at.0 + dice.around(7.0), at.1 + dice.around(7.0)));
    }
    canvas.glow(&tubes, 0.8, scaled(dice.pick(&BRIGHT), 0.7));
    canvas.noise(level.noise, dice);
    canvas
}

fn chalk_digit(class: usize, level: Difficulty, dice: &mut Dice) -> Canvas {
    let board =
        mix([0.8, 0.8, 0.75], [0.16, 0.25, 0.21], level.shift).map(|c| c + dice.around(0.04));
    let mut canvas = Canvas::filled(board);
    mottle(&mut canvas, 0.5 * level.clutter, dice);
    let dust = mix([0.3; 3], [0.9, 0.92, 0.9], level.shift);
    let mut smears = Strokes::new(4.0);
    for _ in 0..dice.below(1 + (level.clutter * 6.0) as usize) {
        let at = (dice.between(0.0, 32.0), dice.between(0.0, 32.0));
        smears.line(at, (at.0 + dice.around(12.0), at.1 + dice.around(5.0)));
    }
    canvas.chalk(&smears, 1.8, mix(board, dust, 0.35), 0.8, dice);
    let size = dice.between(7.0, 11.0);
    let free = 13.5 - size;
    let place = Place::new(
        16.0 + dice.around(free),
        16.0 + dice.around(free),
        size,
        dice.around(0.02 + 0.03 * level.shift),
    );
    let hand = Hand {
        wobble: 0.05 + 0.11 * level.shift,
        slant: dice.between(-0.15, 0.15 + 0.35 * level.shift),
        width: dice.between(0.45, 0.85),
    };
    let mut strokes = Strokes::new(3.0);
    write_digit(&mut strokes, class, &place, hand, dice);
    let chalk = mix(dust, dice.pick(&BRIGHT), dice.between(0.0, 0.3));
    canvas.chalk(
        &strokes,
        dice.between(1.0, 1.9),
        chalk,
        0.75 * level.shift,
        dice,
    );
    canvas.noise(level.noise, dice);
    canvas
}

fn infrared_land(class: usize, level: Difficulty, dice: &mut Dice) -> Canvas {
    let season = dice.below(2);
    let mut canvas = draw_land(LANDS[class].0, season, dice);
    let gain = dice.between(0.8, 1.15);
    canvas.map(|_, _, [r, g, b]| {
        // Plants shine red, water turns black and bare ground cyan.
        let infrared = [
            0.1 + 1.9 * (g - 0.45 * b - 0.35 * r).max(0.0) + 0.45 * g,
            0.85 * r,
            0.75 * g,
        ];
        scaled(mix([r, g, b], infrared, level.shift), gain)
    });
    if dice.chance(level.clutter) {
        draw_clouds(&mut canvas, 0.2 + 0.4 * level.clutter, dice);
    }
    canvas.soften(0.6 * level.shift * dice.unit());
    canvas.noise(level.noise, dice);
    canvas
}

fn folded_cloth(class: usize, level: Difficulty, dice: &mut Dice) -> Canvas {
    let first = shade(dice.below(COLOURS.len()), 0.08, dice);
    let other = if first[0] + first[1] + first[2] > 1.3 {
        dice.pick(&[[0.1, 0.1, 0.2], [0.35, 0.1, 0.1]])
    } else {
        [0.95, 0.92, 0.85]
    };
    let second = mix(first, other, 1.0 - 0.5 * level.shift);
    let (first, second) = if dice.chance(0.5) {
        (first, second)
    } else {
        (second, first)
    };
    let weave = Weave {
        pattern: PATTERNS[class].0,
        period: dice.between(5.5, 8.0) - 0.8 * level.shift,
        seed: dice.bits(),
    };
    let turns = 0.04 + 0.21 * level.shift;
    let place = Place::new(
        dice.between(0.0, 32.0),
        dice.between(0.0, 32.0),
        1.0,
        dice.around(turns),
    );
    let fold = Place::new(0.0, 0.0, dice.between(12.0, 20.0), dice.unit());
    let (depth, bend, phase) = (
        0.4 * level.clutter * dice.unit(),
        0.8 * level.shift * dice.unit(),
        dice.unit(),
    );
    let mut canvas = Canvas::filled(first);
    canvas.map(|x, y, _| {
        let wave = sine(fold.local(x, y).0 + phase);
        let (u, v) = place.local(x + bend * wave, y - bend * wave);
        scaled(mix(first, second, weave.mask(u, v)), 1.0 + depth * wave)
    });
    canvas.noise(level.noise, dice);
    canvas
}

fn wild_creature(class: usize, level: Difficulty, dice: &mut Dice) -> Canvas {
    let ground = mix(
        [0.75; 3],
        dice.pick(&[[0.2, 0.38, 0.2], [0.42, 0.36, 0.22], [0.22, 0.3, 0.42]]),
        level.shift,
    );
    let mut canvas = Canvas::filled(ground);
    mottle(&mut canvas, 0.4, dice);
    for _ in 0..(level.clutter * 14.0) as usize {
        let at = (dice.between(0.0, 32.0), dice.between(0.0, 32.0));
        let leaf = scaled(ground, dice.between(0.6, 1.4));
        canvas.disc(at, dice.between(0.8, 2.2), leaf);
    }
    let radius = dice.between(10.0, 12.5) - 1.5 * level.shift;
    let free = 14.5 - radius;
    let place = Place::new(
        16.0 + dice.around(free),
        16.5 + dice.around(free),
        radius,
        dice.around(0.04 * level.shift),
    );
    let colour = dice.below(9);
    draw_creature(
        &mut canvas,
        &SPECIES[class].1,
        &place,
        shade(colour, 0.08, dice),
    );
    canvas.noise(level.noise, dice);
    canvas
}

fn sketched_face(class: usize, level: Difficulty, dice: &mut Dice) -> Canvas {
    let paper = dice.pick(&[[0.22, 0.17, 0.13], [0.13, 0.15, 0.2], [0.2, 0.2, 0.2]]);
    let paper = mix([0.9, 0.85, 0.7], paper, level.shift);
    let mut canvas = Canvas::filled(paper);
    mottle(&mut canvas, 0.25, dice);
    let pencil = mix([0.1; 3], [0.93, 0.92, 0.88], level.shift);
    let mut hatching = Strokes::new(2.0);
    let lean = dice.around(4.0);
    for _ in 0..dice.below(1 + (level.clutter * 12.0) as usize) {
        let at = (dice.between(0.0, 32.0), dice.between(0.0, 32.0));
        hatching.line(at, (at.0 + lean, at.1 + 5.0));
    }
    canvas.chalk(&hatching, 0.8, mix(paper, pencil, 0.4), 0.6, dice);
    let radius = dice.between(11.0, 13.5) - 2.0 * level.shift * dice.unit();
    let free = 15.5 - radius;
    let place = Place::new(
        16.0 + dice.around(free),
        16.0 + dice.around(free),
        radius,
        dice.around(0.015 + 0.07 * level.shift),
    );
    let tone = if dice.chance(0.5) {
        Some(mix(paper, pencil, 0.15 * dice.unit()))
    } else {
        None
    };
    let style = FaceStyle {
        skin: tone,
        line: pencil,
        width: dice.between(1.0, 1.5),
        wear: if dice.chance(level.clutter) {
            dice.pick(&[Wear::Hat, Wear::Glasses])
        } else {
            Wear::Nothing
        },
        accent: mix(paper, pencil, 0.6),
    };
    draw_face(&mut canvas, MOODS[class].0, &place, &style);
    canvas.noise(level.noise, dice);
    canvas
}

fn evening_fruit(class: usize, level: Difficulty, dice: &mut Dice) -> Canvas {
    let table = mix(
        [0.7; 3],
        shade(dice.below(COLOURS.len()), 0.08, dice),
        level.clutter,
    );
    let mut canvas = Canvas::filled(table);
    mottle(&mut canvas, 0.25, dice);
    for _ in 0..dice.below(1 + (level.clutter * 5.0) as usize) {
        let at = (dice.between(0.0, 32.0), dice.between(0.0, 32.0));
        let tile = shade(dice.below(COLOURS.len()), 0.05, dice);
        let place = Place::new(at.0, at.1, dice.between(2.5, 4.5), dice.unit());
        canvas.paint(&place, 1.5, |u, v| u.abs().max(v.abs()) - 1.0, |_, _| tile);
    }
    let radius = dice.between(6.5, 10.0);
    let place = Place::new(
        16.0 + dice.around(4.0),
        17.0 + dice.around(3.0),
        radius,
        dice.around(0.08),
    );
    let pear = dice.chance(0.4);
    draw_fruit(&mut canvas, &place, shade(class, 0.05, dice), pear);
    // The light is the same evening's in every picture.
    let tint = mix([1.0; 3], [0.78, 0.72, 1.05], level.shift);
    let gain = dice.between(0.8, 1.1);
    canvas.map(|_, _, c| {
        let turned = turn_hue(c, 0.1 * level.shift);
        [0, 1, 2].map(|k| turned[k].clamp(0.0, 1.0) * tint[k] * gain)
    });
    canvas.noise(level.noise, dice);
    canvas
}

fn cells(count: usize, level: Difficulty, dice: &mut Dice) -> Canvas {
    let stain =
        mix([0.95, 0.94, 0.92], [0.86, 0.72, 0.8], level.shift).map(|c| c + dice.around(0.06));
    let mut canvas = Canvas::filled(stain);
    mottle(&mut canvas, 0.12, dice);
    for _ in 0..(level.clutter * 20.0) as usize {
        let at = (
            dice.between(0.0, SIDE as f32),
            dice.between(0.0, SIDE as f32),
        );
        canvas.disc(at, dice.between(0.4, 0.9), scaled(stain, 0.75));
    }
    let flesh = dice.pick(&[[0.65, 0.45, 0.7], [0.5, 0.6, 0.75], [0.75, 0.5, 0.55]]);
    for (x, y) in scatter(count, 8.4, 4.0, dice).into_iter().take(count) {
        let radius = dice.between(3.4, 4.6) - 0.4 * level.shift;
        let place = Place::new(x, y, radius, dice.unit());
        let squash = 1.0 + 0.35 * level.shift * dice.unit();
        let cell = move |u: f32, v: f32| (u * u / squash + v * v * squash).sqrt() - 1.0;
        let tone = flesh.map(|c| c + dice.around(0.06));
        canvas.paint(&place, 1.4, cell, |_, _| scaled(tone, 0.6));
        canvas.paint(
            &place,
            1.4,
            move |u, v| cell(u, v) + 0.25,
            |_, _| mix(tone, stain, 0.35),
        );
        let core = place.world((dice.around(0.3), dice.around(0.3)));
        canvas.disc(core, radius * 0.36, scaled(tone, 0.45));
    }
    canvas.soften(0.5 * level.shift * dice.unit());
    canvas.noise(level.noise, dice);
    canvas
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::palette::FRUIT_COLOURS;

    /// The class lists are written out as plain text; the drawing goes by index.
    #[test]
    fn class_names_are_those_of_the_drawn_things() {
        let same = |task: usize, names: Vec<&str>| assert_eq!(TASKS[task].class_names, &names[..]);
        same(
            SHAPES,
            crate::shape::SHAPES[..10].iter().map(|s| s.1).collect(),
        );
        same(1, crate::font::NUMBERS.to_vec());
        same(2, LANDS.iter().map(|s| s.1).collect());
        same(3, PATTERNS.iter().map(|s| s.1).collect());
        same(CREATURES, SPECIES.iter().map(|s| s.0).collect());
        same(5, MOODS.iter().map(|s| s.1).collect());
        same(6, COLOURS[..FRUIT_COLOURS].iter().map(|s| s.0).collect());
    }

    #[test]
    fn templates_have_one_slot() {
        for task in TASKS.iter().chain(&crate::dev::TASKS) {
            assert!(
                task.templates.iter().all(|t| t.matches("{}").count() == 1),
                "{}",
                task.name
            );
        }
    }
}
