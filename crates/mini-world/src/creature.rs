//! Creatures put together from parts. Pretraining shows every part under its plain name; the
//! creature task names eight fixed combinations with invented nouns.

use super::canvas::{Canvas, Place, Rgb, Strokes, scaled};

/// Outline of the body.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Body {
    Round,
    Wide,
    Tall,
    Boxy,
}

/// What grows on the head.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Crest {
    Horns,
    Antennae,
    Ears,
    Spikes,
}

/// What it stands on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Feet {
    Legs,
    Tentacles,
    Wheel,
}

/// A way to build a creature.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Build {
    pub(super) body: Body,
    pub(super) eyes: usize,
    pub(super) crest: Crest,
    pub(super) feet: Feet,
}

/// The bodies and how captions name them.
pub(super) const BODIES: [(Body, &str); 4] = [
    (Body::Round, "round"),
    (Body::Wide, "wide"),
    (Body::Tall, "tall"),
    (Body::Boxy, "boxy"),
];
/// The crests and how captions name them.
pub(super) const CRESTS: [(Crest, &str); 4] = [
    (Crest::Horns, "horns"),
    (Crest::Antennae, "antennae"),
    (Crest::Ears, "ears"),
    (Crest::Spikes, "spikes"),
];
/// The feet.
pub(super) const FEET: [Feet; 3] = [Feet::Legs, Feet::Tentacles, Feet::Wheel];

const fn build(body: Body, eyes: usize, crest: Crest, feet: Feet) -> Build {
    Build {
        body,
        eyes,
        crest,
        feet,
    }
}

/// The named species: invented nouns that no caption contains. Any two differ in at least two
/// parts.
pub(super) const SPECIES: [(&str, Build); 8] = [
    ("zorv", build(Body::Round, 1, Crest::Horns, Feet::Legs)),
    (
        "quilpa",
        build(Body::Wide, 2, Crest::Antennae, Feet::Tentacles),
    ),
    ("brakkle", build(Body::Boxy, 3, Crest::Horns, Feet::Wheel)),
    ("mufnid", build(Body::Tall, 1, Crest::Ears, Feet::Tentacles)),
    ("thweep", build(Body::Round, 3, Crest::Ears, Feet::Wheel)),
    ("yozzik", build(Body::Boxy, 2, Crest::Spikes, Feet::Legs)),
    ("vexlum", build(Body::Tall, 2, Crest::Horns, Feet::Wheel)),
    ("dontar", build(Body::Wide, 1, Crest::Spikes, Feet::Wheel)),
];

const fn legs(body: Body, eyes: usize, crest: Crest) -> Build {
    build(body, eyes, crest, Feet::Legs)
}

/// The species of `mini-dev`, which pretraining does not show either.
pub(super) const OTHER_SPECIES: [Build; 6] = [
    legs(Body::Wide, 3, Crest::Ears),
    build(Body::Round, 2, Crest::Spikes, Feet::Tentacles),
    legs(Body::Tall, 3, Crest::Antennae),
    build(Body::Boxy, 1, Crest::Antennae, Feet::Tentacles),
    build(Body::Round, 1, Crest::Antennae, Feet::Wheel),
    legs(Body::Wide, 2, Crest::Horns),
];

/// Draws a creature at a place whose radius is half its height.
pub(super) fn draw_creature(canvas: &mut Canvas, build: &Build, place: &Place, colour: Rgb) {
    let dark = scaled(colour, 0.45);
    let (half_width, half_height): (f32, f32) = match build.body {
        Body::Round => (0.58, 0.55),
        Body::Wide => (0.85, 0.42),
        Body::Tall => (0.38, 0.66),
        Body::Boxy => (0.56, 0.5),
    };
    let (top, bottom) = (-half_height, half_height);
    let mut strokes = Strokes::new(3.0);
    match build.feet {
        Feet::Legs => {
            for x in [-0.3f32, 0.3] {
                let x = x.signum() * half_width * 0.55;
                strokes.chain(
                    place,
                    &[(x, bottom - 0.15), (x, 0.95), (x + 0.16 * x.signum(), 0.95)],
                );
            }
        }
        Feet::Tentacles => {
            for step in 0..4 {
                let x = (step as f32 / 1.5 - 1.0) * half_width * 0.75;
                strokes.chain(
                    place,
                    &[
                        (x, bottom - 0.2),
                        (x + 0.12, 0.65),
                        (x - 0.1, 0.82),
                        (x + 0.1, 1.0),
                    ],
                );
            }
        }
        Feet::Wheel => {
            let wheel = place.world((0.0, 0.74));
            canvas.disc(wheel, 0.32 * place.radius, dark);
            canvas.disc(wheel, 0.13 * place.radius, scaled([1.0; 3], 0.8));
        }
    }
    for side in [-1.0f32, 1.0] {
        let x = side * half_width * 0.5;
        match build.crest {
            Crest::Horns => {
                strokes.chain(
                    place,
                    &[
                        (x, top + 0.1),
                        (x + side * 0.25, top - 0.12),
                        (x + side * 0.15, top - 0.38),
                    ],
                );
            }
            Crest::Antennae => {
                strokes.chain(place, &[(x * 0.6, top + 0.1), (x * 0.9, top - 0.4)]);
                canvas.disc(
                    place.world((x * 0.9, top - 0.42)),
                    0.13 * place.radius,
                    dark,
                );
            }
            Crest::Ears => canvas.disc(
                place.world((x * 1.5, top - 0.02)),
                0.27 * place.radius,
                dark,
            ),
            Crest::Spikes => {
                let mut points = [(0.0, 0.0); 7];
                for (step, point) in points.iter_mut().enumerate() {
                    let height = if step % 2 == 0 {
                        top + 0.08
                    } else {
                        top - 0.32
                    };
                    *point = ((step as f32 / 3.0 - 1.0) * half_width * 0.8, height);
                }
                if side > 0.0 {
                    strokes.chain(place, &points);
                }
            }
        }
    }
    canvas.ink(&strokes, (place.radius * 0.13).max(1.1), dark);
    let round = |u: f32, v: f32| {
        ((u * u / (half_width * half_width) + v * v / (half_height * half_height)).sqrt() - 1.0)
            * half_width.min(half_height)
    };
    let boxy = |u: f32, v: f32| (u.abs() - half_width).max(v.abs() - half_height);
    let skin = |_: f32, v: f32| scaled(colour, 1.05 - 0.2 * v);
    if build.body == Body::Boxy {
        canvas.paint(place, 1.1, boxy, skin);
    } else {
        canvas.paint(place, 1.1, round, skin);
    }
    let size = if build.eyes == 1 { 0.26 } else { 0.17 };
    for eye in 0..build.eyes {
        let spread = (eye as f32 - (build.eyes as f32 - 1.0) / 2.0) * 0.4;
        // On a narrow body the eyes sit closer together.
        let spread = if half_width < 0.5 {
            spread * 0.85
        } else {
            spread
        };
        let centre = place.world((spread, -0.08));
        canvas.disc(centre, size * place.radius, [0.98, 0.98, 0.98]);
        canvas.disc(centre, size * place.radius * 0.5, [0.05, 0.05, 0.08]);
    }
}
