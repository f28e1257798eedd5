//! Creatures composed of parts. Pretraining shows every part with its plain name. The creature task
//! names eight fixed combinations by invented nouns.

use super::canvas::{Canvas, Rgb, Strokes, Transform, scaled};

/// Shape of the body.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Body {
    Round,
    Wide,
    Tall,
    Boxy,
}

/// Appendages of the head.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Crest {
    Horns,
    Antennae,
    Ears,
    Spikes,
}

/// Feet of a creature.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Feet {
    Legs,
    Tentacles,
    Wheel,
}

/// Combination of parts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Build {
    pub(super) body: Body,
    pub(super) eyes: usize,
    pub(super) crest: Crest,
    pub(super) feet: Feet,
}

/// Bodies with their names in captions.
pub(super) const BODIES: [(Body, &str); 4] = [
    (Body::Round, "round"),
    (Body::Wide, "wide"),
    (Body::Tall, "tall"),
    (Body::Boxy, "boxy"),
];
/// Crests with their names in captions.
pub(super) const CRESTS: [(Crest, &str); 4] = [
    (Crest::Horns, "horns"),
    (Crest::Antennae, "antennae"),
    (Crest::Ears, "ears"),
    (Crest::Spikes, "spikes"),
];
/// All feet.
pub(super) const FEET: [Feet; 3] = [Feet::Legs, Feet::Tentacles, Feet::Wheel];

const fn build(body: Body, eyes: usize, crest: Crest, feet: Feet) -> Build {
    Build {
        body,
        eyes,
        crest,
        feet,
    }
}

/// Named species of `mini`: invented nouns that no caption contains. Any two differ in at least two
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

/// Species of `mini-dev`, which pretraining does not show either.
pub(super) const OTHER_SPECIES: [Build; 6] = [
    legs(Body::Wide, 3, Crest::Ears),
    build(Body::Round, 2, Crest::Spikes, Feet::Tentacles),
    legs(Body::Tall, 3, Crest::Antennae),
    build(Body::Boxy, 1, Crest::Antennae, Feet::Tentacles),
    build(Body::Round, 1, Crest::Antennae, Feet::Wheel),
    legs(Body::Wide, 2, Crest::Horns),
];

/// Draws a creature. The radius of the transform is half its height.
pub(super) fn draw_creature(
    canvas: &mut Canvas,
    build: &Build,
    transform: &Transform,
    colour: Rgb,
) {
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
                strokes.polyline(
                    transform,
                    &[(x, bottom - 0.15), (x, 0.95), (x + 0.16 * x.signum(), 0.95)],
                );
            }
        }
        Feet::Tentacles => {
            for step in 0..4 {
                let x = (step as f32 / 1.5 - 1.0) * half_width * 0.75;
                strokes.polyline(
                    transform,
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
            let wheel = transform.to_canvas((0.0, 0.74));
            canvas.disc(wheel, 0.32 * transform.radius, dark);
            canvas.disc(wheel, 0.13 * transform.radius, scaled([1.0; 3], 0.8));
        }
    }
    for side in [-1.0f32, 1.0] {
        let x = side * half_width * 0.5;
        match build.crest {
            Crest::Horns => {
                strokes.polyline(
                    transform,
                    &[
                        (x, top + 0.1),
                        (x + side * 0.25, top - 0.12),
                        (x + side * 0.15, top - 0.38),
                    ],
                );
            }
            Crest::Antennae => {
                strokes.polyline(transform, &[(x * 0.6, top + 0.1), (x * 0.9, top - 0.4)]);
                canvas.disc(
                    transform.to_canvas((x * 0.9, top - 0.42)),
                    0.13 * transform.radius,
                    dark,
                );
            }
            Crest::Ears => canvas.disc(
                transform.to_canvas((x * 1.5, top - 0.02)),
                0.27 * transform.radius,
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
                    strokes.polyline(transform, &points);
                }
            }
        }
    }
    canvas.draw_strokes(&strokes, (transform.radius * 0.13).max(1.1), dark);
    let round = |u: f32, v: f32| {
        ((u * u / (half_width * half_width) + v * v / (half_height * half_height)).sqrt() - 1.0)
            * half_width.min(half_height)
    };
    let boxy = |u: f32, v: f32| (u.abs() - half_width).max(v.abs() - half_height);
    let skin = |_: f32, v: f32| scaled(colour, 1.05 - 0.2 * v);
    if build.body == Body::Boxy {
        canvas.paint(transform, 1.1, boxy, skin);
    } else {
        canvas.paint(transform, 1.1, round, skin);
    }
    let size = if build.eyes == 1 { 0.26 } else { 0.17 };
    for eye in 0..build.eyes {
        let spread = (eye as f32 - (build.eyes as f32 - 1.0) / 2.0) * 0.4;
        // A narrow body has closer eyes.
        let spread = if half_width < 0.5 {
            spread * 0.85
        } else {
            spread
        };
        let centre = transform.to_canvas((spread, -0.08));
        canvas.disc(centre, size * transform.radius, [0.98, 0.98, 0.98]);
        canvas.disc(centre, size * transform.radius * 0.5, [0.05, 0.05, 0.08]);
    }
}
