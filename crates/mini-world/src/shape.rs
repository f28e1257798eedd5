//! Geometric shapes as signed distance functions in their own coordinates (radius about 1, y down),
//! and their fill styles.

use super::canvas::{Canvas, Rgb, Transform, mix, neon_pixel, scaled};
use super::pattern::{Pattern, Texture};

/// Named shape.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Shape {
    Circle,
    Square,
    Triangle,
    Star,
    Heart,
    Cross,
    Ring,
    Diamond,
    Moon,
    Arrow,
    Hexagon,
    Drop,
}

/// All shapes with their names and plurals. The first ten are the classes of the shape task.
pub(super) const SHAPES: [(Shape, &str, &str); 12] = [
    (Shape::Circle, "circle", "circles"),
    (Shape::Square, "square", "squares"),
    (Shape::Triangle, "triangle", "triangles"),
    (Shape::Star, "star", "stars"),
    (Shape::Heart, "heart", "hearts"),
    (Shape::Cross, "cross", "crosses"),
    (Shape::Ring, "ring", "rings"),
    (Shape::Diamond, "diamond", "diamonds"),
    (Shape::Moon, "moon", "moons"),
    (Shape::Arrow, "arrow", "arrows"),
    (Shape::Hexagon, "hexagon", "hexagons"),
    (Shape::Drop, "drop", "drops"),
];

fn length(x: f32, y: f32) -> f32 {
    (x * x + y * y).sqrt()
}

fn box_distance(x: f32, y: f32, half_width: f32, half_height: f32) -> f32 {
    (x.abs() - half_width).max(y.abs() - half_height)
}

impl Shape {
    /// Returns the signed distance of a point to the edge; near corners, a bound of it.
    pub(super) fn distance(self, x: f32, y: f32) -> f32 {
        let side = x.abs();
        match self {
            Self::Circle => length(x, y) - 0.95,
            Self::Square => box_distance(x, y, 0.8, 0.8),
            // Sides from (0, -1) to (0.95, 0.75).
            Self::Triangle => (y - 0.75).max((1.75 * side - 0.95 * (y + 1.0)) / 1.991),
            Self::Star => {
                // Fold the plane into one tenth: mirror at x = 0 and at the two axes 36 degrees
                // apart.
                let (mut px, mut py) = (side, -y);
                for (nx, ny) in [(0.809_017, -0.587_785), (-0.809_017, -0.587_785)] {
                    let behind = 2.0 * (px * nx + py * ny).max(0.0);
                    px -= behind * nx;
                    py -= behind * ny;
                }
                let px = px.abs();
                // Edge from the tip (0, 1) to the inner corner 36 degrees off at radius 0.45.
                let (cx, cy) = (0.264_5, 0.364_1);
                let (ex, ey) = (cx, cy - 1.0);
                let along = length(ex, ey);
                (-ey * px + ex * (py - 1.0)) / along
            }
            // Two lobes over a wedge that ends at (0, 0.95).
            Self::Heart => {
                let lobe = length(side - 0.47, y + 0.35) - 0.5;
                let wedge = ((1.05 * side + 0.9 * (y - 0.95)) / 1.383).max(-0.3 - y);
                lobe.min(wedge)
            }
            Self::Cross => box_distance(x, y, 0.95, 0.3).min(box_distance(x, y, 0.3, 0.95)),
            Self::Ring => (length(x, y) - 0.72).abs() - 0.25,
            Self::Diamond => (side / 0.65 + y.abs() - 1.0) * 0.545,
            Self::Moon => (length(x, y) - 0.95).max(0.78 - length(x - 0.45, y + 0.1)),
            Self::Arrow => {
                let shaft = box_distance(x + 0.4, y, 0.55, 0.24);
                let head = (-x).max((y.abs() / 0.8 + x - 1.0) * 0.625);
                shaft.min(head)
            }
            Self::Hexagon => (side * 0.866_025 + y.abs() * 0.5).max(y.abs()) - 0.87,
            // A disc with a tip at (0, -1).
            Self::Drop => {
                let tip = ((1.05 * side - 0.6 * (y + 1.0)) / 1.209).max(y - 0.1);
                tip.min(length(x, y - 0.3) - 0.65)
            }
        }
    }
}

/// Fill style of a shape.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Fill {
    /// Filled.
    Solid,
    /// Edge only, with its width in pixels.
    Outline(f32),
    /// Filled, with a dark edge.
    Bordered,
    /// Edge as a neon tube, with its width in pixels and the opacity of the inside.
    Neon(f32, f32),
}

/// Colours, pattern and fill style of a shape.
#[derive(Clone, Copy)]
pub(super) struct Paint {
    pub(super) colour: Rgb,
    /// Second colour of the pattern.
    pub(super) second: Rgb,
    pub(super) pattern: Pattern,
    /// Period of the pattern in pixels.
    pub(super) period: f32,
    pub(super) fill: Fill,
}

/// Draws a shape.
pub(super) fn draw_shape(canvas: &mut Canvas, shape: Shape, transform: &Transform, paint: &Paint) {
    let texture = Texture {
        pattern: paint.pattern,
        period: paint.period,
        seed: 7,
    };
    let body = |u: f32, v: f32| {
        let (x, y) = (u * transform.radius, v * transform.radius);
        mix(paint.colour, paint.second, texture.mask(x, y))
    };
    match paint.fill {
        Fill::Solid => canvas.paint(transform, 1.3, |u, v| shape.distance(u, v), body),
        Fill::Outline(width) => {
            let half = width / 2.0 / transform.radius;
            canvas.paint(
                transform,
                1.3,
                |u, v| (shape.distance(u, v) + half).abs() - half,
                body,
            );
        }
        Fill::Bordered => {
            canvas.paint(
                transform,
                1.3,
                |u, v| shape.distance(u, v),
                |_, _| scaled(paint.colour, 0.25),
            );
            let edge = 1.3 / transform.radius;
            canvas.paint(transform, 1.3, |u, v| shape.distance(u, v) + edge, body);
        }
        Fill::Neon(width, inside) => {
            if inside > 0.0 {
                canvas.map_near(
                    (transform.x, transform.y),
                    transform.radius * 1.3,
                    |x, y, under| {
                        let (u, v) = transform.to_local(x, y);
                        let cover = (0.5 - shape.distance(u, v) * transform.radius).clamp(0.0, 1.0);
                        mix(under, paint.colour, cover * inside)
                    },
                );
            }
            canvas.map_near(
                (transform.x, transform.y),
                transform.radius * 1.3 + 5.0,
                |x, y, under| {
                    let (u, v) = transform.to_local(x, y);
                    let distance = (shape.distance(u, v) * transform.radius).abs();
                    neon_pixel(under, distance, width, paint.colour, 1.0)
                },
            );
        }
    }
}
