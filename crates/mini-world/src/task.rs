//! Classification tasks of `mini`: one domain each, in a style of its own.

use super::canvas::{Canvas, Rgb, SIDE, Strokes, Transform, mix, rotate_hue, scaled};
use super::creature::{SPECIES, draw_creature};
use super::face::{FaceStyle, MOODS, Wear, draw_face};
use super::font::{Handwriting, write_digit};
use super::land::{LANDS, draw_clouds, draw_land};
use super::objects::{draw_fruit, scatter};
use super::palette::{COLOURS, shade};
use super::pattern::{PATTERNS, Pattern, Texture, mottle};
use super::rng::{Rng, sine};
use super::shape::{Fill, Paint, draw_shape};

/// Classification task of generated images.
#[derive(Clone, Copy, Debug)]
pub struct MiniTask {
    /// Name, unique among the tasks.
    pub name: &'static str,
    /// Class names in label order.
    pub class_names: &'static [&'static str],
    /// Prompt templates with `{}` for the class name. Training uses the first.
    pub templates: &'static [&'static str],
    /// Description of the images in one sentence.
    pub about: &'static str,
    /// Draws an image of a class.
    pub(super) draw: fn(usize, &mut Rng) -> Canvas,
}

/// Difficulty of a task. All values are 0 for the easiest and about 1 for the hardest.
#[derive(Clone, Copy)]
struct Difficulty {
    /// Domain shift: distance of the style from that of pretraining (0: the same style).
    shift: f32,
    /// Standard deviation of the pixel noise.
    noise: f32,
    /// Amount of content unrelated to the class.
    clutter: f32,
}

/// Difficulty of each task, in the order of [`TASKS`]. Changing a value changes the images: raise
/// [`WORLD_VERSION`](super::WORLD_VERSION).
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
/// Tasks without a mention in the captions of the reference pairs.
#[cfg(test)]
pub(super) const UNMENTIONED: [usize; 4] = [1, CREATURES, FACES, 7];

/// The tasks of `mini` in their default order.
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
        draw: |class, rng| neon_sign(class, DIFFICULTY[0], rng),
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
        draw: |class, rng| chalk_digit(class, DIFFICULTY[1], rng),
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
        draw: |class, rng| infrared_land(class, DIFFICULTY[2], rng),
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
        draw: |class, rng| folded_cloth(class, DIFFICULTY[3], rng),
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
        draw: |class, rng| wild_creature(class, DIFFICULTY[4], rng),
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
        draw: |class, rng| sketched_face(class, DIFFICULTY[5], rng),
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
        draw: |class, rng| evening_fruit(class, DIFFICULTY[6], rng),
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
        draw: |class, rng| cells(class + 1, DIFFICULTY[7], rng),
    },
];

/// Replaces `{}` in a template by the class name.
pub(super) fn fill_template(template: &str, class: &str) -> String {
    template.replace("{}", class)
}

/// Bright colours of light and chalk.
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

fn neon_sign(class: usize, difficulty: Difficulty, rng: &mut Rng) -> Canvas {
    let night = mix([0.5, 0.3, 0.25], [0.13, 0.07, 0.08], difficulty.shift);
    let mut canvas = Canvas::filled(night);
    let (rows, bricks, phase) = (rng.between(3.5, 4.5), rng.between(6.0, 8.0), rng.unit());
    canvas.map(|x, y, c| {
        let row = (y / rows + phase).floor();
        let v = (y / rows + phase - row).min(row + 1.0 - y / rows - phase) * rows;
        let u = (x / bricks + row * 0.5 + phase)
            .rem_euclid(1.0)
            .min(1.0 - (x / bricks + row * 0.5 + phase).rem_euclid(1.0))
            * bricks;
        mix(scaled(c, 1.7), c, (u.min(v) + 0.2).clamp(0.0, 1.0))
    });
    let colour = mix(rng.pick(&BRIGHT), [1.0; 3], rng.between(0.0, 0.15));
    let radius = rng.between(8.0, 11.5);
    let free = 14.0 - radius;
    let transform = Transform::new(
        16.0 + rng.around(free),
        16.0 + rng.around(free),
        radius,
        rng.around(0.03 + 0.04 * difficulty.shift),
    );
    let paint = Paint {
        colour,
        second: colour,
        pattern: Pattern::Plain,
        period: 4.0,
        fill: Fill::Neon(rng.between(1.0, 1.6), 1.0 - difficulty.shift),
    };
    draw_shape(
        &mut canvas,
        super::shape::SHAPES[class].0,
        &transform,
        &paint,
    );
    // Clutter: broken pieces of the tube, and tubes of other signs.
    for _ in 0..rng.below(1 + (difficulty.clutter * 4.0) as usize) {
        let at = (rng.between(4.0, 28.0), rng.between(4.0, 28.0));
        canvas.map_near(at, 2.5, |_, _, c| mix(c, night, 0.75));
    }
    let mut tubes = Strokes::new(6.0);
    for _ in 0..rng.below(1 + (difficulty.clutter * 4.0) as usize) {
        let at = (rng.between(0.0, 32.0), rng.between(0.0, 32.0));
        tubes.line(at, (at.0 + rng.around(7.0), at.1 + rng.around(7.0)));
    }
    canvas.draw_neon(&tubes, 0.8, scaled(rng.pick(&BRIGHT), 0.7));
    canvas.noise(difficulty.noise, rng);
    canvas
}

fn chalk_digit(class: usize, difficulty: Difficulty, rng: &mut Rng) -> Canvas {
    let board =
        mix([0.8, 0.8, 0.75], [0.16, 0.25, 0.21], difficulty.shift).map(|c| c + rng.around(0.04));
    let mut canvas = Canvas::filled(board);
    mottle(&mut canvas, 0.5 * difficulty.clutter, rng);
    let dust = mix([0.3; 3], [0.9, 0.92, 0.9], difficulty.shift);
    let mut smears = Strokes::new(4.0);
    for _ in 0..rng.below(1 + (difficulty.clutter * 6.0) as usize) {
        let at = (rng.between(0.0, 32.0), rng.between(0.0, 32.0));
        smears.line(at, (at.0 + rng.around(12.0), at.1 + rng.around(5.0)));
    }
    canvas.draw_chalk(&smears, 1.8, mix(board, dust, 0.35), 0.8, rng);
    let size = rng.between(7.0, 11.0);
    let free = 13.5 - size;
    let transform = Transform::new(
        16.0 + rng.around(free),
        16.0 + rng.around(free),
        size,
        rng.around(0.02 + 0.03 * difficulty.shift),
    );
    let hand = Handwriting {
        wobble: 0.05 + 0.11 * difficulty.shift,
        slant: rng.between(-0.15, 0.15 + 0.35 * difficulty.shift),
        width: rng.between(0.45, 0.85),
    };
    let mut strokes = Strokes::new(3.0);
    write_digit(&mut strokes, class, &transform, hand, rng);
    let chalk = mix(dust, rng.pick(&BRIGHT), rng.between(0.0, 0.3));
    canvas.draw_chalk(
        &strokes,
        rng.between(1.0, 1.9),
        chalk,
        0.75 * difficulty.shift,
        rng,
    );
    canvas.noise(difficulty.noise, rng);
    canvas
}

fn infrared_land(class: usize, difficulty: Difficulty, rng: &mut Rng) -> Canvas {
    let season = rng.below(2);
    let mut canvas = draw_land(LANDS[class].0, season, rng);
    let gain = rng.between(0.8, 1.15);
    canvas.map(|_, _, [r, g, b]| {
        // False colours: plants red, water black, bare ground cyan.
        let infrared = [
            0.1 + 1.9 * (g - 0.45 * b - 0.35 * r).max(0.0) + 0.45 * g,
            0.85 * r,
            0.75 * g,
        ];
        scaled(mix([r, g, b], infrared, difficulty.shift), gain)
    });
    if rng.chance(difficulty.clutter) {
        draw_clouds(&mut canvas, 0.2 + 0.4 * difficulty.clutter, rng);
    }
    canvas.blur(0.6 * difficulty.shift * rng.unit());
    canvas.noise(difficulty.noise, rng);
    canvas
}

fn folded_cloth(class: usize, difficulty: Difficulty, rng: &mut Rng) -> Canvas {
    let first = shade(rng.below(COLOURS.len()), 0.08, rng);
    let other = if first[0] + first[1] + first[2] > 1.3 {
        rng.pick(&[[0.1, 0.1, 0.2], [0.35, 0.1, 0.1]])
    } else {
        [0.95, 0.92, 0.85]
    };
    let second = mix(first, other, 1.0 - 0.5 * difficulty.shift);
    let (first, second) = if rng.chance(0.5) {
        (first, second)
    } else {
        (second, first)
    };
    let texture = Texture {
        pattern: PATTERNS[class].0,
        period: rng.between(5.5, 8.0) - 0.8 * difficulty.shift,
        seed: rng.bits(),
    };
    let turns = 0.04 + 0.21 * difficulty.shift;
    let transform = Transform::new(
        rng.between(0.0, 32.0),
        rng.between(0.0, 32.0),
        1.0,
        rng.around(turns),
    );
    let fold = Transform::new(0.0, 0.0, rng.between(12.0, 20.0), rng.unit());
    let (depth, bend, phase) = (
        0.4 * difficulty.clutter * rng.unit(),
        0.8 * difficulty.shift * rng.unit(),
        rng.unit(),
    );
    let mut canvas = Canvas::filled(first);
    canvas.map(|x, y, _| {
        let wave = sine(fold.to_local(x, y).0 + phase);
        let (u, v) = transform.to_local(x + bend * wave, y - bend * wave);
        scaled(mix(first, second, texture.mask(u, v)), 1.0 + depth * wave)
    });
    canvas.noise(difficulty.noise, rng);
    canvas
}

fn wild_creature(class: usize, difficulty: Difficulty, rng: &mut Rng) -> Canvas {
    let ground = mix(
        [0.75; 3],
        rng.pick(&[[0.2, 0.38, 0.2], [0.42, 0.36, 0.22], [0.22, 0.3, 0.42]]),
        difficulty.shift,
    );
    let mut canvas = Canvas::filled(ground);
    mottle(&mut canvas, 0.4, rng);
    for _ in 0..(difficulty.clutter * 14.0) as usize {
        let at = (rng.between(0.0, 32.0), rng.between(0.0, 32.0));
        let leaf = scaled(ground, rng.between(0.6, 1.4));
        canvas.disc(at, rng.between(0.8, 2.2), leaf);
    }
    let radius = rng.between(10.0, 12.5) - 1.5 * difficulty.shift;
    let free = 14.5 - radius;
    let transform = Transform::new(
        16.0 + rng.around(free),
        16.5 + rng.around(free),
        radius,
        rng.around(0.04 * difficulty.shift),
    );
    let colour = rng.below(9);
    draw_creature(
        &mut canvas,
        &SPECIES[class].1,
        &transform,
        shade(colour, 0.08, rng),
    );
    canvas.noise(difficulty.noise, rng);
    canvas
}

fn sketched_face(class: usize, difficulty: Difficulty, rng: &mut Rng) -> Canvas {
    let paper = rng.pick(&[[0.22, 0.17, 0.13], [0.13, 0.15, 0.2], [0.2, 0.2, 0.2]]);
    let paper = mix([0.9, 0.85, 0.7], paper, difficulty.shift);
    let mut canvas = Canvas::filled(paper);
    mottle(&mut canvas, 0.25, rng);
    let pencil = mix([0.1; 3], [0.93, 0.92, 0.88], difficulty.shift);
    let mut hatching = Strokes::new(2.0);
    let lean = rng.around(4.0);
    for _ in 0..rng.below(1 + (difficulty.clutter * 12.0) as usize) {
        let at = (rng.between(0.0, 32.0), rng.between(0.0, 32.0));
        hatching.line(at, (at.0 + lean, at.1 + 5.0));
    }
    canvas.draw_chalk(&hatching, 0.8, mix(paper, pencil, 0.4), 0.6, rng);
    let radius = rng.between(11.0, 13.5) - 2.0 * difficulty.shift * rng.unit();
    let free = 15.5 - radius;
    let transform = Transform::new(
        16.0 + rng.around(free),
        16.0 + rng.around(free),
        radius,
        rng.around(0.015 + 0.07 * difficulty.shift),
    );
    let tone = if rng.chance(0.5) {
        Some(mix(paper, pencil, 0.15 * rng.unit()))
    } else {
        None
    };
    let style = FaceStyle {
        skin: tone,
        line: pencil,
        width: rng.between(1.0, 1.5),
        wear: if rng.chance(difficulty.clutter) {
            rng.pick(&[Wear::Hat, Wear::Glasses])
        } else {
            Wear::Nothing
        },
        accent: mix(paper, pencil, 0.6),
    };
    draw_face(&mut canvas, MOODS[class].0, &transform, &style);
    canvas.noise(difficulty.noise, rng);
    canvas
}

fn evening_fruit(class: usize, difficulty: Difficulty, rng: &mut Rng) -> Canvas {
    let table = mix(
        [0.7; 3],
        shade(rng.below(COLOURS.len()), 0.08, rng),
        difficulty.clutter,
    );
    let mut canvas = Canvas::filled(table);
    mottle(&mut canvas, 0.25, rng);
    for _ in 0..rng.below(1 + (difficulty.clutter * 5.0) as usize) {
        let at = (rng.between(0.0, 32.0), rng.between(0.0, 32.0));
        let tile = shade(rng.below(COLOURS.len()), 0.05, rng);
        let transform = Transform::new(at.0, at.1, rng.between(2.5, 4.5), rng.unit());
        canvas.paint(
            &transform,
            1.5,
            |u, v| u.abs().max(v.abs()) - 1.0,
            |_, _| tile,
        );
    }
    let radius = rng.between(6.5, 10.0);
    let transform = Transform::new(
        16.0 + rng.around(4.0),
        17.0 + rng.around(3.0),
        radius,
        rng.around(0.08),
    );
    let pear = rng.chance(0.4);
    draw_fruit(&mut canvas, &transform, shade(class, 0.05, rng), pear);
    // The tint is the same in every image of the task.
    let tint = mix([1.0; 3], [0.78, 0.72, 1.05], difficulty.shift);
    let gain = rng.between(0.8, 1.1);
    canvas.map(|_, _, c| {
        let turned = rotate_hue(c, 0.1 * difficulty.shift);
        [0, 1, 2].map(|k| turned[k].clamp(0.0, 1.0) * tint[k] * gain)
    });
    canvas.noise(difficulty.noise, rng);
    canvas
}

fn cells(count: usize, difficulty: Difficulty, rng: &mut Rng) -> Canvas {
    let stain =
        mix([0.95, 0.94, 0.92], [0.86, 0.72, 0.8], difficulty.shift).map(|c| c + rng.around(0.06));
    let mut canvas = Canvas::filled(stain);
    mottle(&mut canvas, 0.12, rng);
    for _ in 0..(difficulty.clutter * 20.0) as usize {
        let at = (rng.between(0.0, SIDE as f32), rng.between(0.0, SIDE as f32));
        canvas.disc(at, rng.between(0.4, 0.9), scaled(stain, 0.75));
    }
    let flesh = rng.pick(&[[0.65, 0.45, 0.7], [0.5, 0.6, 0.75], [0.75, 0.5, 0.55]]);
    for (x, y) in scatter(count, 8.4, 4.0, rng).into_iter().take(count) {
        let radius = rng.between(3.4, 4.6) - 0.4 * difficulty.shift;
        let transform = Transform::new(x, y, radius, rng.unit());
        let squash = 1.0 + 0.35 * difficulty.shift * rng.unit();
        let cell = move |u: f32, v: f32| (u * u / squash + v * v * squash).sqrt() - 1.0;
        let tone = flesh.map(|c| c + rng.around(0.06));
        canvas.paint(&transform, 1.4, cell, |_, _| scaled(tone, 0.6));
        canvas.paint(
            &transform,
            1.4,
            move |u, v| cell(u, v) + 0.25,
            |_, _| mix(tone, stain, 0.35),
        );
        let core = transform.to_canvas((rng.around(0.3), rng.around(0.3)));
        canvas.disc(core, radius * 0.36, scaled(tone, 0.45));
    }
    canvas.blur(0.5 * difficulty.shift * rng.unit());
    canvas.noise(difficulty.noise, rng);
    canvas
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::palette::FRUIT_COLOURS;

    /// Class names are listed as text, but drawn by index: both must agree.
    #[test]
    fn class_names_match_the_drawn_objects() {
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
    fn templates_have_one_placeholder() {
        for task in TASKS.iter().chain(&crate::dev::TASKS) {
            assert!(
                task.templates.iter().all(|t| t.matches("{}").count() == 1),
                "{}",
                task.name
            );
        }
    }
}
