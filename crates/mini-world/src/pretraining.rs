//! Image-caption pairs for pretraining, reference and retrieval.
//!
//! Pretraining shows every domain in plain styles. Reference and retrieval pairs use the same
//! domains, with other mixture weights and other forms of captions.

use image::RgbImage;

use super::canvas::{Canvas, Rgb, SIDE, Strokes, Transform, mix, rotate_hue, scaled};
use super::caption::{Article, Description, join, optional, required, with_article};
use super::creature::{BODIES, Build, CRESTS, FEET, OTHER_SPECIES, SPECIES, draw_creature};
use super::face::{FaceStyle, MOODS, Wear, draw_face};
use super::font::{Handwriting, LETTERS, NUMBERS, write_digit, write_letter};
use super::land::{LANDS, SEASONS, draw_clouds, draw_land};
use super::objects::{draw_fruit, scatter};
use super::palette::{COLOURS, FRUIT_COLOURS, colour_name, colour_pair, shade};
use super::pattern::{PATTERNS, Pattern, Texture, mottle};
use super::rng::{Rng, cosine, sine};
use super::shape::{Fill, Paint, SHAPES, draw_shape};

/// Mixture weights of the domains in percent, in the order of [`draw`]'s arms.
type Mixture = [u32; 10];

/// Mixture of the pretraining pairs and of the retrieval pairs.
const ALL_DOMAINS: Mixture = [22, 6, 11, 13, 5, 8, 9, 10, 13, 3];

/// Mixture of the reference pairs: shapes, letters, cloth and land. Digits, counts, faces, fruit
/// and creatures are excluded, so that the pairs contain no information on those tasks.
const REFERENCE: Mixture = [34, 20, 0, 0, 14, 0, 14, 18, 0, 0];

/// Share of pretraining pairs with the caption of another image. Web data has at least as many
/// mismatched pairs. They keep the margin between matching and other pairs finite.
const MISMATCHED: f32 = 0.04;

/// Share of groups of shapes with the generic noun "shapes". For single shapes it is half as large.
const GENERIC_NOUN: f32 = 0.2;

/// Share of single shapes drawn as outlines.
const OUTLINED: f32 = 0.25;

/// Share of pretraining images with tinted light, and with changed colours.
const TINTED: f32 = 0.4;
const RECOLOURED: f32 = 0.4;

/// Returns a pair in the style of web data.
pub(super) fn web_pair(rng: &mut Rng) -> (RgbImage, String) {
    let (canvas, description) = draw(&ALL_DOMAINS, rng);
    let (canvas, description) = augment_colours(canvas, description, rng);
    let image = add_camera_effects(canvas, rng);
    let caption = if rng.chance(MISMATCHED) {
        draw(&ALL_DOMAINS, rng).1.web_caption(rng)
    } else {
        description.web_caption(rng)
    };
    (image, caption)
}

/// Returns a reference pair for training: half of the domains, captioned by a noun phrase.
pub(super) fn reference_pair(rng: &mut Rng) -> (RgbImage, String) {
    let (canvas, description) = draw(&REFERENCE, rng);
    (add_camera_effects(canvas, rng), description.phrase())
}

/// Returns a held-out pair for retrieval: all domains, captioned by a sentence.
pub(super) fn retrieval_pair(rng: &mut Rng) -> (RgbImage, String) {
    let (canvas, description) = draw(&ALL_DOMAINS, rng);
    let caption = description.partial_sentence(rng);
    (add_camera_effects(canvas, rng), caption)
}

/// Draws an image of a mixture, with its description.
fn draw(mixture: &Mixture, rng: &mut Rng) -> (Canvas, Description) {
    let mut roll = rng.below(100) as u32;
    let domain = mixture.iter().position(|share| {
        let here = roll < *share;
        roll = roll.wrapping_sub(*share);
        here
    });
    match domain.unwrap_or(0) {
        0 => one_shape(rng),
        1 => two_shapes(rng),
        2 => many_shapes(rng),
        3 => digit(rng),
        4 => letter(rng),
        5 => fruit(rng),
        6 => cloth(rng),
        7 => land(rng),
        8 => face(rng),
        _ => creature(rng),
    }
}

/// Augments the colours of an image: unchanged, negative, grayscale, rotated hue, permuted channels
/// or two tones. Colours that are no longer visible are removed from the description.
fn augment_colours(
    mut canvas: Canvas,
    description: Description,
    rng: &mut Rng,
) -> (Canvas, Description) {
    if rng.chance(TINTED) {
        let tint = [0; 3].map(|_| rng.between(0.7, 1.1));
        canvas.map(|_, _, c| [0, 1, 2].map(|k| c[k] * tint[k]));
    }
    if description.requires_colour() || !rng.chance(RECOLOURED) {
        return (canvas, description);
    }
    let gray = |c: Rgb| 0.3 * c[0] + 0.59 * c[1] + 0.11 * c[2];
    match rng.below(5) {
        0 => canvas.map(|_, _, c| c.map(|v| 1.0 - v)),
        1 => canvas.map(|_, _, c| [gray(c); 3]),
        2 => {
            let turns = rng.between(0.15, 0.85);
            canvas.map(|_, _, c| rotate_hue(c, turns));
        }
        3 => {
            let ways = [[1, 2, 0], [2, 0, 1], [1, 0, 2], [0, 2, 1], [2, 1, 0]];
            let way = rng.pick(&ways);
            canvas.map(|_, _, c| way.map(|k: usize| c[k]));
        }
        _ => {
            let dark = [0; 3].map(|_| rng.between(0.0, 0.35));
            let light = [0; 3].map(|_| rng.between(0.65, 1.0));
            let (low, high) = if rng.chance(0.5) {
                (dark, light)
            } else {
                (light, dark)
            };
            canvas.map(|_, _, c| mix(low, high, gray(c).clamp(0.0, 1.0)));
        }
    }
    (canvas, description.without_colours())
}

/// Applies random brightness, blur and noise.
fn add_camera_effects(mut canvas: Canvas, rng: &mut Rng) -> RgbImage {
    let light = rng.between(0.85, 1.08);
    canvas.map(|_, _, pixel| scaled(pixel, light));
    if rng.chance(0.15) {
        canvas.blur(rng.unit());
    }
    let grain = rng.between(0.0, 0.06);
    canvas.noise(grain, rng);
    canvas.into_image()
}

/// Returns the non-empty parts as optional ones.
fn optional_parts(parts: &[&str]) -> Vec<super::caption::Part> {
    parts
        .iter()
        .filter(|part| !part.is_empty())
        .map(|part| optional(part))
        .collect()
}

fn on_ground(ground: usize) -> String {
    format!("on {}", colour_name(ground))
}

/// Draws a background of about one colour: flat, with a gradient, mottled or in two tones.
pub(super) fn backdrop(colour: Rgb, rng: &mut Rng) -> Canvas {
    let mut canvas = Canvas::filled(colour);
    let turn = rng.unit();
    let (cos, sin) = (cosine(turn), sine(turn));
    let strength = rng.between(0.1, 0.3);
    match rng.below(10) {
        0..5 => {}
        5..7 => canvas.map(|x, y, c| {
            scaled(
                c,
                1.0 + strength * ((x - 16.0) * cos + (y - 16.0) * sin) / 16.0,
            )
        }),
        7..9 => mottle(&mut canvas, strength, rng),
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

/// The nine zones of an image, as named in captions.
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

fn random_fill(rng: &mut Rng) -> Fill {
    let roll = rng.unit();
    if roll < OUTLINED {
        Fill::Outline(rng.between(1.0, 2.6))
    } else if roll < OUTLINED + 0.12 {
        Fill::Bordered
    } else {
        Fill::Solid
    }
}

fn one_shape(rng: &mut Rng) -> (Canvas, Description) {
    let (colour, ground) = colour_pair(rng);
    let (index, zone) = (rng.below(SHAPES.len()), rng.below(12));
    let zone = if zone < 9 { zone } else { 4 };
    let (shape, name, _) = SHAPES[index];
    let radius = if zone == 4 {
        rng.between(4.5, 13.0)
    } else {
        rng.between(4.0, 7.5)
    };
    let free = 16.0 - radius - 0.5;
    let (dx, dy) = ((zone % 3) as f32 - 1.0, (zone / 3) as f32 - 1.0);
    let x = 16.0 + dx * free * rng.between(0.8, 1.0) + rng.around(1.2);
    let y = 16.0 + dy * free * rng.between(0.8, 1.0) + rng.around(1.2);
    let fill = random_fill(rng);
    let plain = radius < 6.0 || !matches!(fill, Fill::Solid | Fill::Bordered) || rng.chance(0.45);
    let (pattern, pattern_name) = if plain {
        (Pattern::Plain, "")
    } else {
        PATTERNS[rng.below(PATTERNS.len())]
    };
    let second = shade(ground, 0.05, rng);
    // The second colour must differ from the background, or the shape is not visible.
    let second = mix(
        second,
        if second[1] > 0.5 {
            [0.05; 3]
        } else {
            [0.97; 3]
        },
        0.7,
    );
    let mut canvas = backdrop(shade(ground, 0.06, rng), rng);
    let paint = Paint {
        colour: shade(colour, 0.06, rng),
        second,
        pattern,
        period: rng.between(4.0, 6.0),
        fill,
    };
    let turns = if rng.chance(0.7) {
        0.0
    } else {
        rng.around(0.05)
    };
    draw_shape(
        &mut canvas,
        shape,
        &Transform::new(x, y, radius, turns),
        &paint,
    );
    let size = if radius > 9.0 {
        "large"
    } else if radius < 5.5 {
        "small"
    } else {
        ""
    };
    let name = if rng.chance(GENERIC_NOUN / 2.0) {
        "shape"
    } else {
        name
    };
    let description = Description {
        count: "",
        adjectives: optional_parts(&[size, pattern_name, colour_name(colour)]),
        noun: name.to_owned(),
        details: optional_parts(&[ZONES[zone], &on_ground(ground)]),
        article: Article::A,
    };
    (canvas, description)
}

fn two_shapes(rng: &mut Rng) -> (Canvas, Description) {
    let (first, ground) = colour_pair(rng);
    let second = loop {
        let (a, b) = colour_pair(rng);
        if b == ground {
            break a;
        }
    };
    let (left, right) = (
        SHAPES[rng.below(SHAPES.len())],
        SHAPES[rng.below(SHAPES.len())],
    );
    let above = rng.chance(0.5);
    let mut canvas = backdrop(shade(ground, 0.06, rng), rng);
    for (order, (shape, colour)) in [(left.0, first), (right.0, second)].into_iter().enumerate() {
        let along = 8.5 + 15.0 * order as f32 + rng.around(1.0);
        let across = 16.0 + rng.around(5.0);
        let (x, y) = if above {
            (across, along)
        } else {
            (along, across)
        };
        let tone = shade(colour, 0.06, rng);
        let paint = Paint {
            colour: tone,
            second: tone,
            pattern: Pattern::Plain,
            period: 4.0,
            fill: random_fill(rng),
        };
        draw_shape(
            &mut canvas,
            shape,
            &Transform::new(x, y, rng.between(4.8, 7.0), 0.0),
            &paint,
        );
    }
    let between = if above { "above" } else { "left of" };
    let other = if rng.chance(0.7) {
        with_article(&join([colour_name(second), right.1]))
    } else {
        with_article(right.1)
    };
    let description = Description {
        count: "",
        adjectives: optional_parts(&[colour_name(first)]),
        noun: left.1.to_owned(),
        details: vec![
            required(&join([between, &other])),
            optional(&on_ground(ground)),
        ],
        article: Article::A,
    };
    (canvas, description)
}

fn many_shapes(rng: &mut Rng) -> (Canvas, Description) {
    let count = 1 + rng.below(6);
    let (colour, ground) = colour_pair(rng);
    let (shape, name, plural) = SHAPES[rng.below(SHAPES.len())];
    let mut canvas = backdrop(shade(ground, 0.06, rng), rng);
    let radius = rng.between(3.0, 4.2);
    let tone = shade(colour, 0.06, rng);
    let fill = if rng.chance(0.15) {
        Fill::Outline(1.3)
    } else {
        Fill::Solid
    };
    for (x, y) in scatter(count, radius * 2.4, radius + 0.5, rng)
        .into_iter()
        .take(count)
    {
        let paint = Paint {
            colour: tone,
            second: tone,
            pattern: Pattern::Plain,
            period: 4.0,
            fill,
        };
        draw_shape(
            &mut canvas,
            shape,
            &Transform::new(x, y, radius, 0.0),
            &paint,
        );
    }
    let (name, plural) = if rng.chance(GENERIC_NOUN) {
        ("shape", "shapes")
    } else {
        (name, plural)
    };
    let description = Description {
        count: NUMBERS[count],
        adjectives: optional_parts(&[colour_name(colour)]),
        noun: (if count == 1 { name } else { plural }).to_owned(),
        details: optional_parts(&[&on_ground(ground)]),
        article: Article::None,
    };
    (canvas, description)
}

fn digit(rng: &mut Rng) -> (Canvas, Description) {
    let value = rng.below(10);
    let (canvas, colour, ground) = draw_glyph(rng, |strokes, transform, hand, rng| {
        write_digit(strokes, value, transform, hand, rng)
    });
    (
        canvas,
        describe_glyph(&join(["number", NUMBERS[value]]), colour, ground),
    )
}

fn letter(rng: &mut Rng) -> (Canvas, Description) {
    let index = rng.below(LETTERS.len());
    let (canvas, colour, ground) = draw_glyph(rng, |strokes, transform, hand, rng| {
        write_letter(strokes, index, transform, hand, rng)
    });
    (
        canvas,
        describe_glyph(&join(["letter", LETTERS[index].0]), colour, ground),
    )
}

fn describe_glyph(noun: &str, colour: usize, ground: usize) -> Description {
    Description {
        count: "",
        adjectives: Vec::new(),
        noun: noun.to_owned(),
        details: optional_parts(&[&format!("in {}", colour_name(colour)), &on_ground(ground)]),
        article: Article::The,
    }
}

/// Draws one glyph with little deformation. Returns the colours of ink and background too.
fn draw_glyph(
    rng: &mut Rng,
    glyph: impl FnOnce(&mut Strokes, &Transform, Handwriting, &mut Rng),
) -> (Canvas, usize, usize) {
    let (colour, ground) = colour_pair(rng);
    let mut canvas = backdrop(shade(ground, 0.06, rng), rng);
    let size = rng.between(7.0, 12.0);
    let free = 15.0 - size;
    let transform = Transform::new(
        16.0 + rng.around(free),
        16.0 + rng.around(free),
        size,
        rng.around(0.02),
    );
    let mut strokes = Strokes::new(3.5);
    let hand = Handwriting {
        wobble: 0.04,
        slant: rng.around(0.1),
        width: rng.between(0.5, 0.7),
    };
    glyph(&mut strokes, &transform, hand, rng);
    let width = rng.between(1.2, 3.4);
    canvas.draw_strokes(&strokes, width, shade(colour, 0.06, rng));
    (canvas, colour, ground)
}

fn fruit(rng: &mut Rng) -> (Canvas, Description) {
    let class = rng.below(FRUIT_COLOURS);
    let ground = 9 + rng.below(2);
    let mut canvas = backdrop(shade(ground, 0.08, rng), rng);
    let (radius, pear) = (rng.between(6.0, 12.0), rng.chance(0.4));
    let transform = Transform::new(
        16.0 + rng.around(3.0),
        17.5 + rng.around(2.0),
        radius,
        rng.around(0.04),
    );
    draw_fruit(&mut canvas, &transform, shade(class, 0.06, rng), pear);
    let size = if radius > 9.0 {
        "large"
    } else if radius < 7.5 {
        "small"
    } else {
        ""
    };
    let mut adjectives = optional_parts(&[size]);
    adjectives.push(required(colour_name(class)));
    let description = Description {
        count: "",
        adjectives,
        noun: (if pear && rng.chance(0.6) {
            "pear fruit"
        } else {
            "fruit"
        })
        .to_owned(),
        details: optional_parts(&[&on_ground(ground)]),
        article: Article::A,
    };
    (canvas, description)
}

fn cloth(rng: &mut Rng) -> (Canvas, Description) {
    let (first, second) = colour_pair(rng);
    let class = rng.below(PATTERNS.len());
    let texture = Texture {
        pattern: PATTERNS[class].0,
        period: rng.between(5.0, 8.5),
        seed: rng.bits(),
    };
    let transform = Transform::new(
        rng.between(0.0, 32.0),
        rng.between(0.0, 32.0),
        1.0,
        rng.around(0.04),
    );
    let (a, b) = (shade(first, 0.06, rng), shade(second, 0.06, rng));
    let mut canvas = Canvas::filled(a);
    canvas.map(|x, y, _| {
        let (u, v) = transform.to_local(x, y);
        mix(a, b, texture.mask(u, v))
    });
    let colours = if class == 0 {
        colour_name(first).to_owned()
    } else {
        format!("{} and {}", colour_name(first), colour_name(second))
    };
    let description = Description {
        count: "a piece of",
        adjectives: vec![required(PATTERNS[class].1), optional(&colours)],
        noun: "cloth".to_owned(),
        details: Vec::new(),
        article: Article::None,
    };
    (canvas, description)
}

fn land(rng: &mut Rng) -> (Canvas, Description) {
    let (class, season) = (rng.below(LANDS.len()), rng.below(SEASONS.len()));
    let mut canvas = draw_land(LANDS[class].0, season, rng);
    let clouds = rng.chance(0.2);
    if clouds {
        draw_clouds(&mut canvas, 0.6, rng);
    }
    // Water, sand and buildings do not depend on the season.
    let name = LANDS[class].1;
    let seasonal = matches!(
        name,
        "forest" | "river" | "farmland" | "highway" | "lake" | "island" | "beach"
    );
    let season = if seasonal { SEASONS[season].0 } else { "" };
    let clouds = if clouds { "with clouds" } else { "" };
    let view = rng.pick(&["from a satellite", "from the air", "in an aerial view"]);
    let description = Description {
        count: "",
        adjectives: optional_parts(&[season]),
        noun: name.to_owned(),
        details: optional_parts(&[view, clouds]),
        article: Article::None,
    };
    (canvas, description)
}

fn face(rng: &mut Rng) -> (Canvas, Description) {
    let class = rng.below(MOODS.len());
    let (mut skin, ground) = colour_pair(rng);
    // Dark skin would hide the dark lines.
    if matches!(colour_name(skin), "black" | "blue" | "purple" | "brown") {
        skin = 2;
    }
    let ground = if ground == skin { 9 } else { ground };
    let mut canvas = backdrop(shade(ground, 0.06, rng), rng);
    let radius = rng.between(10.0, 14.0);
    let free = 15.5 - radius;
    let transform = Transform::new(
        16.0 + rng.around(free),
        16.0 + rng.around(free),
        radius,
        rng.around(0.015),
    );
    let wear = rng.pick(&[Wear::Nothing, Wear::Nothing, Wear::Hat, Wear::Glasses]);
    let style = FaceStyle {
        skin: Some(shade(skin, 0.06, rng)),
        line: [0.06, 0.05, 0.05],
        width: rng.between(1.3, 2.0),
        wear,
        accent: shade(rng.pick(&[0, 4, 5, 11]), 0.05, rng),
    };
    draw_face(&mut canvas, MOODS[class].0, &transform, &style);
    let wear = match wear {
        Wear::Nothing => "",
        Wear::Hat => "with a hat",
        Wear::Glasses => "with glasses",
    };
    let description = Description {
        count: "",
        adjectives: vec![required(MOODS[class].1), optional(colour_name(skin))],
        noun: "face".to_owned(),
        details: optional_parts(&[wear, &on_ground(ground)]),
        article: Article::A,
    };
    (canvas, description)
}

fn creature(rng: &mut Rng) -> (Canvas, Description) {
    // The named species are never shown.
    let (build, body, crest) = loop {
        let (body, crest) = (rng.pick(&BODIES), rng.pick(&CRESTS));
        let build = Build {
            body: body.0,
            eyes: 1 + rng.below(3),
            crest: crest.0,
            feet: rng.pick(&FEET),
        };
        let named = SPECIES.iter().map(|(_, build)| build);
        if named.chain(&OTHER_SPECIES).all(|known| *known != build) {
            break (build, body.1, crest.1);
        }
    };
    let colour = rng.below(9);
    let ground = 9 + rng.below(2);
    let mut canvas = backdrop(shade(ground, 0.08, rng), rng);
    let radius = rng.between(9.5, 12.5);
    let free = 14.5 - radius;
    let transform = Transform::new(
        16.0 + rng.around(free),
        16.5 + rng.around(free),
        radius,
        0.0,
    );
    draw_creature(&mut canvas, &build, &transform, shade(colour, 0.06, rng));
    let eyes = format!(
        "{} {}",
        NUMBERS[build.eyes],
        if build.eyes == 1 { "eye" } else { "eyes" }
    );
    let with = match rng.below(3) {
        0 => format!("with {eyes} and {crest}"),
        1 => format!("with {eyes}"),
        _ => format!("with {crest}"),
    };
    let description = Description {
        count: "",
        adjectives: optional_parts(&[body, colour_name(colour)]),
        noun: "creature".to_owned(),
        details: vec![required(&with)],
        article: Article::A,
    };
    (canvas, description)
}

// Captions name colours by their index in the palette.
const _: () = assert!(COLOURS.len() == 12 && SIDE == 32);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mixtures_sum_to_100() {
        for mixture in [ALL_DOMAINS, REFERENCE] {
            assert_eq!(mixture.iter().sum::<u32>(), 100);
        }
    }
}
