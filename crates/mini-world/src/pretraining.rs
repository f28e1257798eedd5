//! What the small model is pretrained on: every domain of the world in a mixture of plain styles,
//! with a caption each; and the pairs of reference and retrieval, from the same world in other
//! mixtures and other words.

use image::RgbImage;

use super::canvas::{Canvas, Place, Rgb, SIDE, Strokes, mix, scaled, turn_hue};
use super::caption::{Article, Facts, join, may, must, with_article};
use super::creature::{BODIES, Build, CRESTS, FEET, OTHER_SPECIES, SPECIES, draw_creature};
use super::dice::{Dice, cosine, sine};
use super::face::{FaceStyle, MOODS, Wear, draw_face};
use super::font::{Hand, LETTERS, NUMBERS, write_digit, write_letter};
use super::land::{LANDS, SEASONS, draw_clouds, draw_land};
use super::palette::{COLOURS, FRUIT_COLOURS, colour_name, colour_pair, shade};
use super::pattern::{PATTERNS, Pattern, Weave, mottle};
use super::shape::{Finish, Paint, SHAPES, draw_shape};
use super::thing::{draw_fruit, scatter};

/// Share of each domain in a mixture, in percent, in the order of [`draw`]'s arms.
type Mixture = [u32; 10];

/// Of pretraining, and of the pairs that retrieval is measured on.
const EVERYTHING: Mixture = [22, 6, 11, 13, 5, 8, 9, 10, 13, 3];

/// Of the reference pairs: shapes, letters, cloth and land. Digits, numbers of things, faces, fruit
/// and creatures are left out, so that they say nothing of those tasks.
const REFERENCE: Mixture = [34, 20, 0, 0, 14, 0, 14, 18, 0, 0];

/// Share of pretraining pairs whose caption is that of another picture. Pairs of the web are wrong
/// as often or more; it is what keeps the margin between matching pairs and others finite.
const WRONG: f32 = 0.04;

/// Share of groups of shapes that are called shapes; of single ones, half as many.
const UNNAMED: f32 = 0.2;

/// Share of single shapes drawn as outlines.
const OUTLINES: f32 = 0.25;

/// Share of pretraining pictures in tinted light, and of those in colours that are not the thing's.
const TINTED: f32 = 0.4;
const RECOLOURED: f32 = 0.4;

/// A pair as found on the web.
pub(super) fn web_pair(dice: &mut Dice) -> (RgbImage, String) {
    let (canvas, facts) = draw(&EVERYTHING, dice);
    let (canvas, facts) = looked_at(canvas, facts, dice);
    let picture = developed(canvas, dice);
    let caption = if dice.chance(WRONG) {
        draw(&EVERYTHING, dice).1.loose(dice)
    } else {
        facts.loose(dice)
    };
    (picture, caption)
}

/// A pair that methods may train on: it shows half of the world, and its caption is a noun phrase.
pub(super) fn reference_pair(dice: &mut Dice) -> (RgbImage, String) {
    let (canvas, facts) = draw(&REFERENCE, dice);
    (developed(canvas, dice), facts.phrase())
}

/// A pair that retrieval is measured on: it shows the whole world, and its caption is a sentence.
pub(super) fn retrieval_pair(dice: &mut Dice) -> (RgbImage, String) {
    let (canvas, facts) = draw(&EVERYTHING, dice);
    let caption = facts.told(dice);
    (developed(canvas, dice), caption)
}

/// Draws a picture of a mixture, and says what it shows.
fn draw(mixture: &Mixture, dice: &mut Dice) -> (Canvas, Facts) {
    let mut roll = dice.below(100) as u32;
    let domain = mixture.iter().position(|share| {
        let here = roll < *share;
        roll = roll.wrapping_sub(*share);
        here
    });
    match domain.unwrap_or(0) {
        0 => one_shape(dice),
        1 => two_shapes(dice),
        2 => several(dice),
        3 => digit(dice),
        4 => letter(dice),
        5 => fruit(dice),
        6 => cloth(dice),
        7 => land(dice),
        8 => face(dice),
        _ => creature(dice),
    }
}

/// The picture in one of the many looks of the web: as it is, or as a negative, in gray, in other
/// colours, in two tones. What cannot be seen any more is not said.
fn looked_at(mut canvas: Canvas, facts: Facts, dice: &mut Dice) -> (Canvas, Facts) {
    if dice.chance(TINTED) {
        let tint = [0; 3].map(|_| dice.between(0.7, 1.1));
        canvas.map(|_, _, c| [0, 1, 2].map(|k| c[k] * tint[k]));
    }
    if facts.needs_colour() || !dice.chance(RECOLOURED) {
        return (canvas, facts);
    }
    let gray = |c: Rgb| 0.3 * c[0] + 0.59 * c[1] + 0.11 * c[2];
    match dice.below(5) {
        0 => canvas.map(|_, _, c| c.map(|v| 1.0 - v)),
        1 => canvas.map(|_, _, c| [gray(c); 3]),
        2 => {
            let turns = dice.between(0.15, 0.85);
            canvas.map(|_, _, c| turn_hue(c, turns));
        }
        3 => {
            let ways = [[1, 2, 0], [2, 0, 1], [1, 0, 2], [0, 2, 1], [2, 1, 0]];
            let way = dice.pick(&ways);
            canvas.map(|_, _, c| way.map(|k: usize| c[k]));
        }
        _ => {
            let dark = [0; 3].map(|_| dice.between(0.0, 0.35));
            let light = [0; 3].map(|_| dice.between(0.65, 1.0));
            let (low, high) = if dice.chance(0.5) {
                (dark, light)
            } else {
                (light, dark)
            };
            canvas.map(|_, _, c| mix(low, high, gray(c).clamp(0.0, 1.0)));
        }
    }
    (canvas, facts.colourless())
}

/// The picture with light, softness and grain of its own.
fn developed(mut canvas: Canvas, dice: &mut Dice) -> RgbImage {
    let light = dice.between(0.85, 1.08);
    canvas.map(|_, _, pixel| scaled(pixel, light));
    if dice.chance(0.15) {
        canvas.soften(dice.unit());
    }
    let grain = dice.between(0.0, 0.06);
    canvas.noise(grain, dice);
    canvas.finish()
}

/// The words that there are.
fn words(parts: &[&str]) -> Vec<super::caption::Word> {
    parts
        .iter()
        .filter(|part| !part.is_empty())
        .map(|part| may(part))
        .collect()
}

fn on(ground: usize) -> String {
    format!("on {}", colour_name(ground))
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
        Finish::Outline(dice.between(1.0, 2.6))
    } else if roll < OUTLINES + 0.12 {
        Finish::Bordered
    } else {
        Finish::Solid
    }
}

fn one_shape(dice: &mut Dice) -> (Canvas, Facts) {
    let (colour, ground) = colour_pair(dice);
    let (index, zone) = (dice.below(SHAPES.len()), dice.below(12));
    let zone = if zone < 9 { zone } else { 4 };
    let (shape, name, _) = SHAPES[index];
    let radius = if zone == 4 {
        dice.between(4.5, 13.0)
    } else {
        dice.between(4.0, 7.5)
    };
    let free = 16.0 - radius - 0.5;
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
    let size = if radius > 9.0 {
        "large"
    } else if radius < 5.5 {
        "small"
    } else {
        ""
    };
    let name = if dice.chance(UNNAMED / 2.0) {
        "shape"
    } else {
        name
    };
    let facts = Facts {
        count: "",
        adjectives: words(&[size, pattern_name, colour_name(colour)]),
        noun: name.to_owned(),
        details: words(&[ZONES[zone], &on(ground)]),
        article: Article::A,
    };
    (canvas, facts)
}

fn two_shapes(dice: &mut Dice) -> (Canvas, Facts) {
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
    let between = if above { "above" } else { "left of" };
    let other = if dice.chance(0.7) {
        with_article(&join([colour_name(second), right.1]))
    } else {
        with_article(right.1)
    };
    let facts = Facts {
        count: "",
        adjectives: words(&[colour_name(first)]),
        noun: left.1.to_owned(),
        details: vec![must(&join([between, &other])), may(&on(ground))],
        article: Article::A,
    };
    (canvas, facts)
}

fn several(dice: &mut Dice) -> (Canvas, Facts) {
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
    let (name, plural) = if dice.chance(UNNAMED) {
        ("shape", "shapes")
    } else {
        (name, plural)
    };
    let facts = Facts {
        count: NUMBERS[count],
        adjectives: words(&[colour_name(colour)]),
        noun: (if count == 1 { name } else { plural }).to_owned(),
        details: words(&[&on(ground)]),
        article: Article::None,
    };
    (canvas, facts)
}

fn digit(dice: &mut Dice) -> (Canvas, Facts) {
    let value = dice.below(10);
    let (canvas, colour, ground) = written(dice, |strokes, place, hand, dice| {
        write_digit(strokes, value, place, hand, dice)
    });
    (
        canvas,
        writing(&join(["number", NUMBERS[value]]), colour, ground),
    )
}

fn letter(dice: &mut Dice) -> (Canvas, Facts) {
    let index = dice.below(LETTERS.len());
    let (canvas, colour, ground) = written(dice, |strokes, place, hand, dice| {
        write_letter(strokes, index, place, hand, dice)
    });
    (
        canvas,
        writing(&join(["letter", LETTERS[index].0]), colour, ground),
    )
}

fn writing(noun: &str, colour: usize, ground: usize) -> Facts {
    Facts {
        count: "",
        adjectives: Vec::new(),
        noun: noun.to_owned(),
        details: words(&[&format!("in {}", colour_name(colour)), &on(ground)]),
        article: Article::The,
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
    let width = dice.between(1.2, 3.4);
    canvas.ink(&strokes, width, shade(colour, 0.06, dice));
    (canvas, colour, ground)
}

fn fruit(dice: &mut Dice) -> (Canvas, Facts) {
    let class = dice.below(FRUIT_COLOURS);
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
    let size = if radius > 9.0 {
        "large"
    } else if radius < 7.5 {
        "small"
    } else {
        ""
    };
    let mut adjectives = words(&[size]);
    adjectives.push(must(colour_name(class)));
    let facts = Facts {
        count: "",
        adjectives,
        noun: (if pear && dice.chance(0.6) {
            "pear fruit"
        } else {
            "fruit"
        })
        .to_owned(),
        details: words(&[&on(ground)]),
        article: Article::A,
    };
    (canvas, facts)
}

fn cloth(dice: &mut Dice) -> (Canvas, Facts) {
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
    let colours = if class == 0 {
        colour_name(first).to_owned()
    } else {
        format!("{} and {}", colour_name(first), colour_name(second))
    };
    let facts = Facts {
        count: "a piece of",
        adjectives: vec![must(PATTERNS[class].1), may(&colours)],
        noun: "cloth".to_owned(),
        details: Vec::new(),
        article: Article::None,
    };
    (canvas, facts)
}

fn land(dice: &mut Dice) -> (Canvas, Facts) {
    let (class, season) = (dice.below(LANDS.len()), dice.below(SEASONS.len()));
    let mut canvas = draw_land(LANDS[class].0, season, dice);
    let clouds = dice.chance(0.2);
    if clouds {
        draw_clouds(&mut canvas, 0.6, dice);
    }
    // Water, sand and houses look the same all year.
    let name = LANDS[class].1;
    let seasonal = matches!(
        name,
        "forest" | "river" | "farmland" | "highway" | "lake" | "island" | "beach"
    );
    let season = if seasonal { SEASONS[season].0 } else { "" };
    let clouds = if clouds { "with clouds" } else { "" };
    let view = dice.pick(&["from a satellite", "from the air", "in an aerial view"]);
    let facts = Facts {
        count: "",
        adjectives: words(&[season]),
        noun: name.to_owned(),
        details: words(&[view, clouds]),
        article: Article::None,
    };
    (canvas, facts)
}

fn face(dice: &mut Dice) -> (Canvas, Facts) {
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
    let wear = match wear {
        Wear::Nothing => "",
        Wear::Hat => "with a hat",
        Wear::Glasses => "with glasses",
    };
    let facts = Facts {
        count: "",
        adjectives: vec![must(MOODS[class].1), may(colour_name(skin))],
        noun: "face".to_owned(),
        details: words(&[wear, &on(ground)]),
        article: Article::A,
    };
    (canvas, facts)
}

fn creature(dice: &mut Dice) -> (Canvas, Facts) {
    // The named species themselves are never shown.
    let (build, body, crest) = loop {
        let (body, crest) = (dice.pick(&BODIES), dice.pick(&CRESTS));
        let build = Build {
            body: body.0,
            eyes: 1 + dice.below(3),
            crest: crest.0,
            feet: dice.pick(&FEET),
        };
        let named = SPECIES.iter().map(|(_, build)| build);
        if named.chain(&OTHER_SPECIES).all(|known| *known != build) {
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
    let with = match dice.below(3) {
        0 => format!("with {eyes} and {crest}"),
        1 => format!("with {eyes}"),
        _ => format!("with {crest}"),
    };
    let facts = Facts {
        count: "",
        adjectives: words(&[body, colour_name(colour)]),
        noun: "creature".to_owned(),
        details: vec![must(&with)],
        article: Article::A,
    };
    (canvas, facts)
}

// The captions name colours by these positions of the palette.
const _: () = assert!(COLOURS.len() == 12 && SIDE == 32);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mixtures_are_whole() {
        for mixture in [EVERYTHING, REFERENCE] {
            assert_eq!(mixture.iter().sum::<u32>(), 100);
        }
    }
}
