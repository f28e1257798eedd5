//! What the small model is pretrained on: every domain of the world in a mixture of plain
//! styles, with a caption each.

use image::RgbImage;

use super::canvas::{Canvas, Place, Rgb, SIDE, Strokes, mix, scaled};
use super::creature::{BODIES, Build, CRESTS, FEET, SPECIES, draw_creature};
use super::dice::{Dice, cosine, sine};
use super::face::{FaceStyle, MOODS, Wear, draw_face};
use super::font::{Hand, LETTERS, NUMBERS, write_digit, write_letter};
use super::land::{LANDS, SEASONS, draw_clouds, draw_land};
use super::palette::{COLOURS, colour_name, colour_pair, shade};
use super::pattern::{PATTERNS, Pattern, Weave};
use super::shape::{Finish, Paint, SHAPES, draw_shape};
use super::task::{self, fill};
use super::thing::{draw_fruit, scatter};

/// How much a caption says.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Detail {
    /// Attributes are dropped at random and the wording varies, task templates included.
    Loose,
    /// Everything the picture was drawn from that a caption can name.
    Full,
}

/// The longest caption, in words.
pub(super) const LONGEST_CAPTION: usize = 12;

/// Share of each domain in the mixture, in percent, in the order of [`draw_pair`]'s arms.
const MIXTURE: [u32; 10] = [26, 8, 10, 12, 6, 8, 8, 10, 8, 4];

/// Probability that a loose caption keeps an attribute.
const KEPT: f32 = 0.6;

/// Probability that a loose caption is a task's template filled in with the class.
const TEMPLATE: f32 = 0.3;

/// The same for single shapes, whose captions have the most else to say.
const SHAPE_TEMPLATE: f32 = 0.15;

/// Share of single shapes drawn as outlines, and as neon tubes (the shape task's style).
const OUTLINES: f32 = 0.14;
const NEON: f32 = 0.02;

/// Draws one captioned picture.
pub(super) fn draw_pair(dice: &mut Dice, detail: Detail) -> (RgbImage, String) {
    let mut roll = dice.below(100) as u32;
    let domain = MIXTURE.iter().position(|share| {
        let here = roll < *share;
        roll = roll.wrapping_sub(*share);
        here
    });
    let mut say = Saying { dice, detail };
    let (mut canvas, caption) = match domain.unwrap_or(0) {
        0 => one_shape(&mut say),
        1 => two_shapes(&mut say),
        2 => several(&mut say),
        3 => digit(&mut say),
        4 => letter(&mut say),
        5 => fruit(&mut say),
        6 => cloth(&mut say),
        7 => land(&mut say),
        8 => face(&mut say),
        _ => creature(&mut say),
    };
    let light = dice.between(0.85, 1.08);
    canvas.map(|_, _, pixel| scaled(pixel, light));
    if dice.chance(0.15) {
        canvas.soften(dice.unit());
    }
    let grain = dice.between(0.0, 0.06);
    canvas.noise(grain, dice);
    (canvas.finish(), caption)
}

/// The caption's side of the random choices.
struct Saying<'a> {
    dice: &'a mut Dice,
    detail: Detail,
}

impl Saying<'_> {
    /// The words, or nothing when a loose caption drops them.
    fn maybe(&mut self, words: &str) -> String {
        if self.detail == Detail::Full || self.dice.chance(KEPT) {
            words.to_owned()
        } else {
            String::new()
        }
    }

    /// Whether to use a task's template instead.
    fn template(&mut self, probability: f32) -> bool {
        self.detail == Detail::Loose && self.dice.chance(probability)
    }

    /// Puts an article and perhaps a lead-in before a noun phrase and joins the parts.
    fn phrase(&mut self, parts: &[&str]) -> String {
        let body = with_article(&join(parts));
        if self.detail == Detail::Full || self.dice.chance(0.55) {
            return body;
        }
        self.lead(body)
    }

    /// Puts a lead-in before the caption if it stays short enough.
    fn lead(&mut self, body: String) -> String {
        let lead = self.dice.pick(&[
            "a photo of",
            "a picture of",
            "a drawing of",
            "there is",
            "an image of",
        ]);
        if body.split(' ').count() + 3 > LONGEST_CAPTION {
            body
        } else {
            format!("{lead} {body}")
        }
    }

    /// A class of a task in one of the task's templates.
    fn prompt(&mut self, task: usize, class: usize) -> String {
        let task = &task::TASKS[task];
        fill(self.dice.pick(task.templates), task.class_names[class])
    }
}

fn join(parts: &[&str]) -> String {
    let mut text = String::new();
    for part in parts.iter().filter(|p| !p.is_empty()) {
        if !text.is_empty() {
            text.push(' ');
        }
        text.push_str(part);
    }
    text
}

fn with_article(phrase: &str) -> String {
    let article = if phrase.starts_with(['a', 'e', 'i', 'o', 'u']) {
        "an"
    } else {
        "a"
    };
    format!("{article} {phrase}")
}

/// A background of about one colour: flat, graded, mottled or in two tones.
pub(super) fn backdrop(colour: Rgb, dice: &mut Dice) -> Canvas {
    let mut canvas = Canvas::filled(colour);
    let turn = dice.unit();
    let (cos, sin) = (cosine(turn), sine(turn));
    let strength = dice.between(0.1, 0.3);
    match dice.below(10) {
        0..5 => {}
        5..7 => canvas.map(|x, y, c| {
            scaled(
                c,
                1.0 + strength * ((x - 16.0) * cos + (y - 16.0) * sin) / 16.0,
            )
        }),
        7..9 => mottle(&mut canvas, strength, dice),
        _ => canvas.map(|x, y, c| {
            if (x - 16.0) * cos + (y - 16.0) * sin > 0.0 {
                scaled(c, 1.0 - strength)
            } else {
                c
            }
        }),
    }
    canvas
}

/// Covers the picture with soft spots of lighter and darker tone.
pub(super) fn mottle(canvas: &mut Canvas, strength: f32, dice: &mut Dice) {
    let (a, b) = (dice.between(0.03, 0.08), dice.between(0.03, 0.08));
    let (pa, pb, skew) = (dice.unit(), dice.unit(), dice.around(0.05));
    canvas.map(|x, y, c| {
        let tone = sine(x * a + y * skew + pa) * sine(y * b - x * skew + pb)
            + 0.4 * sine(x * 0.11 + y * 0.05 + pb) * sine(y * 0.13 - x * 0.03 + pa);
        scaled(c, 1.0 + strength * tone)
    });
}

/// The nine zones of a picture and how captions name them.
const ZONES: [&str; 9] = [
    "at the top left",
    "at the top",
    "at the top right",
    "on the left",
    "in the center",
    "on the right",
    "at the bottom left",
    "at the bottom",
    "at the bottom right",
];

fn finish(dice: &mut Dice) -> Finish {
    let roll = dice.unit();
    if roll < OUTLINES {
        Finish::Outline(dice.between(1.5, 2.6))
    } else if roll < OUTLINES + NEON {
        Finish::Neon(1.3, 0.0)
    } else if roll < OUTLINES + NEON + 0.12 {
        Finish::Bordered
    } else {
        Finish::Solid
    }
}

fn one_shape(say: &mut Saying) -> (Canvas, String) {
    let (colour, ground) = colour_pair(say.dice);
    let (index, zone) = (say.dice.below(SHAPES.len()), say.dice.below(12));
    let zone = if zone < 9 { zone } else { 4 };
    let (shape, name, _) = SHAPES[index];
    let radius = if zone == 4 {
        say.dice.between(4.5, 13.0)
    } else {
        say.dice.between(4.0, 7.5)
    };
    let free = 16.0 - radius - 0.5;
    let dice = &mut *say.dice;
    let (dx, dy) = ((zone % 3) as f32 - 1.0, (zone / 3) as f32 - 1.0);
    let x = 16.0 + dx * free * dice.between(0.8, 1.0) + dice.around(1.2);
    let y = 16.0 + dy * free * dice.between(0.8, 1.0) + dice.around(1.2);
    let finish = finish(dice);
    let plain =
        radius < 6.0 || !matches!(finish, Finish::Solid | Finish::Bordered) || dice.chance(0.45);
    let (pattern, pattern_name) = if plain {
        (Pattern::Plain, "")
    } else {
        PATTERNS[dice.below(PATTERNS.len())]
    };
    let second = shade(ground, 0.05, dice);
    // The pattern's other colour must not be the background's, or the shape dissolves.
    let second = mix(
        second,
        if second[1] > 0.5 {
            [0.05; 3]
        } else {
            [0.97; 3]
        },
        0.7,
    );
    let mut canvas = backdrop(shade(ground, 0.06, dice), dice);
    let paint = Paint {
        colour: shade(colour, 0.06, dice),
        second,
        pattern,
        period: dice.between(4.0, 6.0),
        finish,
    };
    let turns = if dice.chance(0.7) {
        0.0
    } else {
        dice.around(0.05)
    };
    draw_shape(&mut canvas, shape, &Place::new(x, y, radius, turns), &paint);
    let task_like = matches!(finish, Finish::Outline(_) | Finish::Neon(..));
    if index < task::TASKS[task::SHAPES].class_names.len()
        && say.template(if task_like { 0.35 } else { SHAPE_TEMPLATE })
    {
        return (canvas, say.prompt(task::SHAPES, index));
    }
    let size = if radius > 9.0 {
        "large"
    } else if radius < 5.5 {
        "small"
    } else {
        ""
    };
    let (size, pattern_name) = (say.maybe(size), say.maybe(pattern_name));
    let (colour, place) = (say.maybe(colour_name(colour)), say.maybe(ZONES[zone]));
    let ground = say.maybe(&format!("on {}", colour_name(ground)));
    let caption = say.phrase(&[&size, &pattern_name, &colour, name, &place, &ground]);
    (canvas, caption)
}

fn two_shapes(say: &mut Saying) -> (Canvas, String) {
    let dice = &mut *say.dice;
    let (first, ground) = colour_pair(dice);
    let second = loop {
        let (a, b) = colour_pair(dice);
        if b == ground {
            break a;
        }
    };
    let (left, right) = (
        SHAPES[dice.below(SHAPES.len())],
        SHAPES[dice.below(SHAPES.len())],
    );
    let above = dice.chance(0.5);
    let mut canvas = backdrop(shade(ground, 0.06, dice), dice);
    for (order, (shape, colour)) in [(left.0, first), (right.0, second)].into_iter().enumerate() {
        let along = 8.5 + 15.0 * order as f32 + dice.around(1.0);
        let across = 16.0 + dice.around(5.0);
        let (x, y) = if above {
            (across, along)
        } else {
            (along, across)
        };
        let tone = shade(colour, 0.06, dice);
        let paint = Paint {
            colour: tone,
            second: tone,
            pattern: Pattern::Plain,
            period: 4.0,
            finish: finish(dice),
        };
        draw_shape(
            &mut canvas,
            shape,
            &Place::new(x, y, dice.between(4.8, 7.0), 0.0),
            &paint,
        );
    }
    let (a, b) = (
        say.maybe(colour_name(first)),
        say.maybe(colour_name(second)),
    );
    let between = if above { "above" } else { "left of" };
    let other = with_article(&join(&[&b, right.1]));
    let ground = say.maybe(&format!("on {}", colour_name(ground)));
    let caption = say.phrase(&[&a, left.1, between, &other, &ground]);
    (canvas, caption)
}

fn several(say: &mut Saying) -> (Canvas, String) {
    let dice = &mut *say.dice;
    let count = 1 + dice.below(6);
    let (colour, ground) = colour_pair(dice);
    let (shape, name, plural) = SHAPES[dice.below(SHAPES.len())];
    let mut canvas = backdrop(shade(ground, 0.06, dice), dice);
    let radius = dice.between(3.0, 4.2);
    let tone = shade(colour, 0.06, dice);
    let finish = if dice.chance(0.15) {
        Finish::Outline(1.3)
    } else {
        Finish::Solid
    };
    for (x, y) in scatter(count, radius * 2.4, radius + 0.5, dice)
        .into_iter()
        .take(count)
    {
        let paint = Paint {
            colour: tone,
            second: tone,
            pattern: Pattern::Plain,
            period: 4.0,
            finish,
        };
        draw_shape(&mut canvas, shape, &Place::new(x, y, radius, 0.0), &paint);
    }
    if say.template(TEMPLATE) {
        return (canvas, say.prompt(task::COUNTING, count - 1));
    }
    let noun = if count == 1 { name } else { plural };
    let (colour, ground) = (
        say.maybe(colour_name(colour)),
        say.maybe(&format!("on {}", colour_name(ground))),
    );
    let body = join(&[NUMBERS[count], &colour, noun, &ground]);
    let caption = if say.detail == Detail::Loose && say.dice.chance(0.4) {
        say.lead(body)
    } else {
        body
    };
    (canvas, caption)
}

fn digit(say: &mut Saying) -> (Canvas, String) {
    let value = say.dice.below(10);
    let name = NUMBERS[value];
    let (canvas, colour, ground) = written(say.dice, |strokes, place, hand, dice| {
        write_digit(strokes, value, place, hand, dice)
    });
    if say.template(TEMPLATE) {
        return (canvas, say.prompt(task::DIGITS, value));
    }
    let caption = writing_caption(say, "number", name, colour, ground);
    (canvas, caption)
}

fn letter(say: &mut Saying) -> (Canvas, String) {
    let index = say.dice.below(LETTERS.len());
    let (canvas, colour, ground) = written(say.dice, |strokes, place, hand, dice| {
        write_letter(strokes, index, place, hand, dice)
    });
    let caption = writing_caption(say, "letter", LETTERS[index].0, colour, ground);
    (canvas, caption)
}

fn writing_caption(
    say: &mut Saying,
    kind: &str,
    name: &str,
    colour: usize,
    ground: usize,
) -> String {
    let mut colour = say.maybe(colour_name(colour));
    if !colour.is_empty() {
        colour = format!("in {colour}");
    }
    let ground = say.maybe(&format!("on {}", colour_name(ground)));
    let body = join(&["the", kind, name, &colour, &ground]);
    if say.detail == Detail::Loose && say.dice.chance(0.3) {
        say.lead(body)
    } else {
        body
    }
}

/// A picture with one glyph in a neat hand; also the colours of the ink and of the background.
fn written(
    dice: &mut Dice,
    glyph: impl FnOnce(&mut Strokes, &Place, Hand, &mut Dice),
) -> (Canvas, usize, usize) {
    let (colour, ground) = colour_pair(dice);
    let mut canvas = backdrop(shade(ground, 0.06, dice), dice);
    let size = dice.between(7.0, 12.0);
    let free = 15.0 - size;
    let place = Place::new(
        16.0 + dice.around(free),
        16.0 + dice.around(free),
        size,
        dice.around(0.02),
    );
    let mut strokes = Strokes::new(3.5);
    let hand = Hand {
        wobble: 0.04,
        slant: dice.around(0.1),
        width: dice.between(0.5, 0.7),
    };
    glyph(&mut strokes, &place, hand, dice);
    let width = dice.between(1.8, 3.4);
    canvas.ink(&strokes, width, shade(colour, 0.06, dice));
    (canvas, colour, ground)
}

fn fruit(say: &mut Saying) -> (Canvas, String) {
    let dice = &mut *say.dice;
    let class = dice.below(task::TASKS[task::FRUIT].class_names.len());
    let ground = 9 + dice.below(2);
    let mut canvas = backdrop(shade(ground, 0.08, dice), dice);
    let (radius, pear) = (dice.between(6.0, 12.0), dice.chance(0.4));
    let place = Place::new(
        16.0 + dice.around(3.0),
        17.5 + dice.around(2.0),
        radius,
        dice.around(0.04),
    );
    draw_fruit(&mut canvas, &place, shade(class, 0.06, dice), pear);
    if say.template(TEMPLATE) {
        return (canvas, say.prompt(task::FRUIT, class));
    }
    let size = say.maybe(if radius > 9.0 {
        "large"
    } else if radius < 7.5 {
        "small"
    } else {
        ""
    });
    let pear = say.maybe(if pear { "pear" } else { "" });
    let ground = say.maybe(&format!("on {}", colour_name(ground)));
    let caption = say.phrase(&[&size, colour_name(class), &pear, "fruit", &ground]);
    (canvas, caption)
}

fn cloth(say: &mut Saying) -> (Canvas, String) {
    let dice = &mut *say.dice;
    let (first, second) = colour_pair(dice);
    let class = dice.below(PATTERNS.len());
    let weave = Weave {
        pattern: PATTERNS[class].0,
        period: dice.between(5.0, 8.5),
        seed: dice.bits(),
    };
    let place = Place::new(
        dice.between(0.0, 32.0),
        dice.between(0.0, 32.0),
        1.0,
        dice.around(0.04),
    );
    let (a, b) = (shade(first, 0.06, dice), shade(second, 0.06, dice));
    let mut canvas = Canvas::filled(a);
    canvas.map(|x, y, _| {
        let (u, v) = place.local(x, y);
        mix(a, b, weave.mask(u, v))
    });
    if say.template(TEMPLATE) {
        return (canvas, say.prompt(task::CLOTH, class));
    }
    let both = if class == 0 {
        colour_name(first).to_owned()
    } else {
        format!("{} and {}", colour_name(first), colour_name(second))
    };
    let colours = say.maybe(&both);
    let body = join(&["a piece of", PATTERNS[class].1, &colours, "cloth"]);
    (canvas, body)
}

fn land(say: &mut Saying) -> (Canvas, String) {
    let (class, season) = (say.dice.below(LANDS.len()), say.dice.below(SEASONS.len()));
    let mut canvas = draw_land(LANDS[class].0, season, say.dice);
    let clouds = say.dice.chance(0.2);
    if clouds {
        draw_clouds(&mut canvas, 0.6, say.dice);
    }
    if say.template(TEMPLATE) {
        return (canvas, say.prompt(task::SATELLITE, class));
    }
    // Water, sand and houses look the same all year.
    let name = LANDS[class].1;
    let seasonal = matches!(
        name,
        "forest" | "river" | "farmland" | "highway" | "lake" | "island" | "beach"
    );
    let season = say.maybe(if seasonal { SEASONS[season].0 } else { "" });
    let clouds = say.maybe(if clouds { "with clouds" } else { "" });
    let view = if say.detail == Detail::Full {
        "a satellite view of"
    } else {
        say.dice
            .pick(&["a satellite view of", "an aerial photo of", "a view of", ""])
    };
    (canvas, join(&[view, &season, name, &clouds]))
}

fn face(say: &mut Saying) -> (Canvas, String) {
    let dice = &mut *say.dice;
    let class = dice.below(MOODS.len());
    let (mut skin, ground) = colour_pair(dice);
    // Dark skin would hide the dark lines.
    if matches!(colour_name(skin), "black" | "blue" | "purple" | "brown") {
        skin = 2;
    }
    let ground = if ground == skin { 9 } else { ground };
    let mut canvas = backdrop(shade(ground, 0.06, dice), dice);
    let radius = dice.between(10.0, 14.0);
    let free = 15.5 - radius;
    let place = Place::new(
        16.0 + dice.around(free),
        16.0 + dice.around(free),
        radius,
        dice.around(0.015),
    );
    let wear = dice.pick(&[Wear::Nothing, Wear::Nothing, Wear::Hat, Wear::Glasses]);
    let style = FaceStyle {
        skin: Some(shade(skin, 0.06, dice)),
        line: [0.06, 0.05, 0.05],
        width: dice.between(1.3, 2.0),
        wear,
        accent: shade(dice.pick(&[0, 4, 5, 11]), 0.05, dice),
    };
    draw_face(&mut canvas, MOODS[class].0, &place, &style);
    if say.template(TEMPLATE) {
        return (canvas, say.prompt(task::FACES, class));
    }
    let colour = say.maybe(colour_name(skin));
    let wear = say.maybe(match wear {
        Wear::Nothing => "",
        Wear::Hat => "with a hat",
        Wear::Glasses => "with glasses",
    });
    let ground = say.maybe(&format!("on {}", colour_name(ground)));
    let caption = say.phrase(&[MOODS[class].1, &colour, "face", &wear, &ground]);
    (canvas, caption)
}

fn creature(say: &mut Saying) -> (Canvas, String) {
    let dice = &mut *say.dice;
    // The named species themselves are never shown.
    let (build, body, crest) = loop {
        let (body, crest) = (dice.pick(&BODIES), dice.pick(&CRESTS));
        let build = Build {
            body: body.0,
            eyes: 1 + dice.below(3),
            crest: crest.0,
            feet: dice.pick(&FEET),
        };
        if SPECIES.iter().all(|(_, known)| *known != build) {
            break (build, body.1, crest.1);
        }
    };
    let colour = dice.below(9);
    let ground = 9 + dice.below(2);
    let mut canvas = backdrop(shade(ground, 0.08, dice), dice);
    let radius = dice.between(9.5, 12.5);
    let free = 14.5 - radius;
    let place = Place::new(
        16.0 + dice.around(free),
        16.5 + dice.around(free),
        radius,
        0.0,
    );
    draw_creature(&mut canvas, &build, &place, shade(colour, 0.06, dice));
    let eyes = format!(
        "{} {}",
        NUMBERS[build.eyes],
        if build.eyes == 1 { "eye" } else { "eyes" }
    );
    let (body, colour) = (say.maybe(body), say.maybe(colour_name(colour)));
    let with = match (say.detail == Detail::Full, say.dice.below(3)) {
        (true, _) | (_, 0) => format!("with {eyes} and {crest}"),
        (_, 1) => format!("with {eyes}"),
        _ => format!("with {crest}"),
    };
    let caption = say.phrase(&[&body, &colour, "creature", &with]);
    (canvas, caption)
}

// The captions name colours by these positions of the palette.
const _: () = assert!(COLOURS.len() == 12 && SIDE == 32);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mixture_is_whole() {
        assert_eq!(MIXTURE.iter().sum::<u32>(), 100);
    }
}
