//! Faces with facial expressions.

use super::canvas::{Canvas, Rgb, Strokes, Transform};

/// Facial expression.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Mood {
    Happy,
    Sad,
    Angry,
    Surprised,
    Sleepy,
    Winking,
    Laughing,
    Calm,
}

/// All moods with their names, in the order of the face task's classes.
pub(super) const MOODS: [(Mood, &str); 8] = [
    (Mood::Happy, "happy"),
    (Mood::Sad, "sad"),
    (Mood::Angry, "angry"),
    (Mood::Surprised, "surprised"),
    (Mood::Sleepy, "sleepy"),
    (Mood::Winking, "winking"),
    (Mood::Laughing, "laughing"),
    (Mood::Calm, "calm"),
];

/// Accessory of a face.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Wear {
    Nothing,
    Hat,
    Glasses,
}

/// Drawing style of a face.
#[derive(Clone, Copy)]
pub(super) struct FaceStyle {
    /// Colour of the skin; `None` for an unfilled head.
    pub(super) skin: Option<Rgb>,
    pub(super) line: Rgb,
    /// Width of the lines in pixels.
    pub(super) width: f32,
    pub(super) wear: Wear,
    pub(super) accent: Rgb,
}

/// Draws a face. The radius of the transform is that of the head.
pub(super) fn draw_face(canvas: &mut Canvas, mood: Mood, transform: &Transform, style: &FaceStyle) {
    if let Some(skin) = style.skin {
        canvas.paint(
            transform,
            1.1,
            |u, v| (u * u + v * v).sqrt() - 1.0,
            |_, _| skin,
        );
    }
    let mut strokes = Strokes::new(style.width + 1.0);
    let mut head = [(0.0, 0.0); 21];
    for (step, point) in head.iter_mut().enumerate() {
        let turns = step as f32 / 20.0;
        *point = (super::rng::cosine(turns), super::rng::sine(turns));
    }
    strokes.polyline(transform, &head);
    let dot = |canvas: &mut Canvas, x: f32, y: f32, size: f32, colour: Rgb| {
        canvas.disc(transform.to_canvas((x, y)), size * transform.radius, colour);
    };
    let (eye, brow) = (0.38, -0.25);
    // White of an eye; dark if the lines are white.
    let white = if style.line[1] > 0.5 {
        [0.1; 3]
    } else {
        [0.96; 3]
    };
    for side in [-1.0f32, 1.0] {
        let x = side * eye;
        match mood {
            Mood::Surprised => {
                dot(canvas, x, brow - 0.05, 0.26, style.line);
                dot(canvas, x, brow - 0.05, 0.15, white);
            }
            Mood::Sleepy => strokes.arc(transform, (x, brow), 0.22, 0.12),
            Mood::Laughing => {
                strokes.polyline(
                    transform,
                    &[
                        (x - 0.2, brow + 0.1),
                        (x, brow - 0.2),
                        (x + 0.2, brow + 0.1),
                    ],
                );
            }
            Mood::Winking if side > 0.0 => {
                strokes.polyline(transform, &[(x - 0.22, brow), (x + 0.22, brow)])
            }
            _ => dot(canvas, x, brow, 0.14, style.line),
        }
        match mood {
            Mood::Angry => strokes.polyline(
                transform,
                &[
                    (x - side * 0.25, brow - 0.12),
                    (x + side * 0.25, brow - 0.45),
                ],
            ),
            Mood::Sad => strokes.polyline(
                transform,
                &[
                    (x - side * 0.22, brow - 0.48),
                    (x + side * 0.25, brow - 0.28),
                ],
            ),
            _ => {}
        }
    }
    match mood {
        Mood::Happy | Mood::Winking => strokes.arc(transform, (0.0, 0.28), 0.5, 0.34),
        Mood::Sad => strokes.arc(transform, (0.0, 0.68), 0.42, -0.34),
        Mood::Angry => strokes.arc(transform, (0.0, 0.6), 0.36, -0.14),
        Mood::Surprised => dot(canvas, 0.0, 0.5, 0.24, style.line),
        Mood::Sleepy => dot(canvas, 0.08, 0.48, 0.11, style.line),
        Mood::Calm => strokes.polyline(transform, &[(-0.4, 0.46), (0.4, 0.46)]),
        Mood::Laughing => {
            let mouth = |u: f32, v: f32| {
                (((u * u) / 0.3 + (v - 0.18) * (v - 0.18) / 0.34).sqrt() - 1.0) * 0.5
            };
            canvas.paint(
                transform,
                1.1,
                |u, v| mouth(u, v).max(0.18 - v),
                |_, _| style.line,
            );
        }
    }
    canvas.draw_strokes(&strokes, style.width, style.line);
    match style.wear {
        Wear::Nothing => {}
        Wear::Hat => {
            let brim = |u: f32, v: f32| {
                ((u.abs() - 0.95).max((v + 0.68).abs() - 0.11))
                    .min((u.abs() - 0.6).max((v + 0.95).abs() - 0.3))
            };
            canvas.paint(transform, 1.5, brim, |_, _| style.accent);
        }
        Wear::Glasses => {
            for side in [-1.0f32, 1.0] {
                let rim = |u: f32, v: f32| {
                    let (du, dv) = (u - side * eye, v - brow);
                    ((du * du + dv * dv).sqrt() - 0.33).abs() - 0.05
                };
                canvas.paint(transform, 1.1, rim, |_, _| style.accent);
            }
        }
    }
}
