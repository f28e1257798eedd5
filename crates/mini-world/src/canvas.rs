//! Floating-point canvas with antialiased painting of signed distance functions, strokes, noise and
//! blur.

use image::RgbImage;

use super::rng::{Rng, cosine, sine};

/// Width and height of every image in pixels.
pub(super) const SIDE: usize = 32;

/// Red, green and blue in 0..1.
pub(super) type Rgb = [f32; 3];

/// Interpolates linearly: `a` at weight 0, `b` at weight 1.
pub(super) fn mix(a: Rgb, b: Rgb, weight: f32) -> Rgb {
    [
        a[0] + (b[0] - a[0]) * weight,
        a[1] + (b[1] - a[1]) * weight,
        a[2] + (b[2] - a[2]) * weight,
    ]
}

/// Returns each channel times `factor`.
pub(super) fn scaled(colour: Rgb, factor: f32) -> Rgb {
    colour.map(|c| c * factor)
}

/// Rotates the hue by `turns` of a circle at constant luma (a rotation in the YIQ colour space).
pub(super) fn rotate_hue(c: Rgb, turns: f32) -> Rgb {
    let (sin, cos) = (sine(turns), cosine(turns));
    let y = 0.299 * c[0] + 0.587 * c[1] + 0.114 * c[2];
    let i = 0.596 * c[0] - 0.274 * c[1] - 0.322 * c[2];
    let q = 0.211 * c[0] - 0.523 * c[1] + 0.312 * c[2];
    let (i, q) = (i * cos - q * sin, i * sin + q * cos);
    [
        y + 0.956 * i + 0.621 * q,
        y - 0.272 * i - 0.647 * q,
        y - 1.106 * i + 1.703 * q,
    ]
}

/// Similarity transform of an object: centre and radius in pixels, and rotation.
#[derive(Clone, Copy)]
pub(super) struct Transform {
    pub(super) x: f32,
    pub(super) y: f32,
    pub(super) radius: f32,
    sin: f32,
    cos: f32,
}

impl Transform {
    /// Returns a transform with a rotation in turns (positive is clockwise).
    pub(super) fn new(x: f32, y: f32, radius: f32, turns: f32) -> Self {
        Self {
            x,
            y,
            radius,
            sin: sine(turns),
            cos: cosine(turns),
        }
    }

    /// Maps canvas pixels to the coordinates of the object, where its radius is 1.
    pub(super) fn to_local(self, x: f32, y: f32) -> (f32, f32) {
        let (x, y) = ((x - self.x) / self.radius, (y - self.y) / self.radius);
        (x * self.cos + y * self.sin, y * self.cos - x * self.sin)
    }

    /// Maps coordinates of the object to canvas pixels.
    pub(super) fn to_canvas(self, (x, y): (f32, f32)) -> (f32, f32) {
        (
            self.x + self.radius * (x * self.cos - y * self.sin),
            self.y + self.radius * (x * self.sin + y * self.cos),
        )
    }
}

/// Image in progress.
pub(super) struct Canvas {
    pixels: [Rgb; SIDE * SIDE],
}

impl Canvas {
    /// Returns a canvas of one colour.
    pub(super) fn filled(colour: Rgb) -> Self {
        Self {
            pixels: [colour; SIDE * SIDE],
        }
    }

    /// Replaces every pixel by a function of its centre and its colour.
    pub(super) fn map(&mut self, mut change: impl FnMut(f32, f32, Rgb) -> Rgb) {
        for (row, line) in self.pixels.chunks_exact_mut(SIDE).enumerate() {
            for (column, pixel) in line.iter_mut().enumerate() {
                *pixel = change(column as f32 + 0.5, row as f32 + 0.5, *pixel);
            }
        }
    }

    /// Like [`map`](Self::map), within `reach` pixels of a point only.
    pub(super) fn map_near(
        &mut self,
        (x, y): (f32, f32),
        reach: f32,
        mut change: impl FnMut(f32, f32, Rgb) -> Rgb,
    ) {
        let (left, right) = pixel_range(x, reach);
        let (top, bottom) = pixel_range(y, reach);
        for row in top..bottom {
            for column in left..right {
                let pixel = &mut self.pixels[row * SIDE + column];
                *pixel = change(column as f32 + 0.5, row as f32 + 0.5, *pixel);
            }
        }
    }

    /// Paints an object given by its signed distance in object coordinates (negative inside),
    /// antialiased over one pixel. `reach` is the radius of a bounding circle in object
    /// coordinates.
    pub(super) fn paint(
        &mut self,
        transform: &Transform,
        reach: f32,
        distance: impl Fn(f32, f32) -> f32,
        colour: impl Fn(f32, f32) -> Rgb,
    ) {
        self.map_near(
            (transform.x, transform.y),
            reach * transform.radius + 1.0,
            |x, y, under| {
                let (u, v) = transform.to_local(x, y);
                let cover = (0.5 - distance(u, v) * transform.radius).clamp(0.0, 1.0);
                if cover > 0.0 {
                    mix(under, colour(u, v), cover)
                } else {
                    under
                }
            },
        );
    }

    /// Paints a disc, in canvas pixels.
    pub(super) fn disc(&mut self, centre: (f32, f32), radius: f32, colour: Rgb) {
        self.map_near(centre, radius + 1.0, |x, y, under| {
            let (dx, dy) = (x - centre.0, y - centre.1);
            let cover = (0.5 + radius - (dx * dx + dy * dy).sqrt()).clamp(0.0, 1.0);
            mix(under, colour, cover)
        });
    }

    /// Draws strokes of `width` pixels.
    pub(super) fn draw_strokes(&mut self, strokes: &Strokes, width: f32, colour: Rgb) {
        for (pixel, distance) in self.pixels.iter_mut().zip(&strokes.distance) {
            let cover = (0.5 + width / 2.0 - distance).clamp(0.0, 1.0);
            if cover > 0.0 {
                *pixel = mix(*pixel, colour, cover);
            }
        }
    }

    /// Draws strokes of `width` pixels like chalk: up to the share `grain` (0..1) of each pixel's
    /// colour is lost at random.
    pub(super) fn draw_chalk(
        &mut self,
        strokes: &Strokes,
        width: f32,
        colour: Rgb,
        grain: f32,
        rng: &mut Rng,
    ) {
        for (pixel, distance) in self.pixels.iter_mut().zip(&strokes.distance) {
            let cover = (0.5 + width / 2.0 - distance).clamp(0.0, 1.0);
            if cover > 0.0 {
                *pixel = mix(*pixel, colour, cover * (1.0 - grain * rng.unit()));
            }
        }
    }

    /// Draws strokes as neon tubes: a bright core of `width` pixels with a halo.
    pub(super) fn draw_neon(&mut self, strokes: &Strokes, width: f32, colour: Rgb) {
        for (pixel, distance) in self.pixels.iter_mut().zip(&strokes.distance) {
            *pixel = neon_pixel(*pixel, *distance, width, colour, 1.0);
        }
    }

    /// Adds noise. `amount` is about the standard deviation of each pixel (0..1), four fifths of it
    /// in brightness and the rest in colour.
    pub(super) fn noise(&mut self, amount: f32, rng: &mut Rng) {
        for pixel in &mut self.pixels {
            let bytes = rng.bits().to_le_bytes().map(|b| f32::from(b) / 127.5 - 1.0);
            let bright = (bytes[0] + bytes[1] + bytes[2] + bytes[3]) * 0.7 * amount;
            for (channel, byte) in pixel.iter_mut().zip(bytes) {
                *channel += bright + byte * amount * 0.6;
            }
        }
    }

    /// Blurs by averaging with the four neighbours. `weight` 0 changes nothing, 1 is the strongest.
    pub(super) fn blur(&mut self, weight: f32) {
        let before = self.pixels;
        let at = |row: usize, column: usize| before[row * SIDE + column];
        for row in 0..SIDE {
            for column in 0..SIDE {
                let (up, down) = (row.saturating_sub(1), (row + 1).min(SIDE - 1));
                let (left, right) = (column.saturating_sub(1), (column + 1).min(SIDE - 1));
                let mut mean = [0.0; 3];
                for near in [
                    at(up, column),
                    at(down, column),
                    at(row, left),
                    at(row, right),
                ] {
                    for (sum, value) in mean.iter_mut().zip(near) {
                        *sum += value / 4.0;
                    }
                }
                self.pixels[row * SIDE + column] = mix(at(row, column), mean, weight * 0.75);
            }
        }
    }

    /// Returns the image with eight bits per channel.
    pub(super) fn into_image(self) -> RgbImage {
        let mut image = RgbImage::new(SIDE as u32, SIDE as u32);
        for (target, pixel) in image.chunks_exact_mut(3).zip(self.pixels) {
            for (byte, channel) in target.iter_mut().zip(pixel) {
                *byte = (channel.clamp(0.0, 1.0) * 255.0 + 0.5) as u8;
            }
        }
        image
    }
}

/// Returns the pixel `under` lit by a neon tube `distance` pixels away.
pub(super) fn neon_pixel(under: Rgb, distance: f32, width: f32, colour: Rgb, power: f32) -> Rgb {
    let outside = (distance - width / 2.0).max(0.0);
    let halo = 0.55 / (1.0 + 0.8 * outside * outside);
    let core = (0.5 - (distance - width / 2.0)).clamp(0.0, 1.0) * power;
    let lit = [0, 1, 2].map(|k| under[k] + colour[k] * halo * power);
    mix(lit, mix(colour, [1.0; 3], 0.35), core)
}

/// Returns the first and one-past-last pixel within `reach` of `centre` along one axis.
fn pixel_range(centre: f32, reach: f32) -> (usize, usize) {
    let low = (centre - reach).floor().clamp(0.0, SIDE as f32) as usize;
    let high = (centre + reach).ceil().clamp(0.0, SIDE as f32) as usize;
    (low, high)
}

/// Distance field of a set of line segments, up to a maximum distance.
pub(super) struct Strokes {
    distance: [f32; SIDE * SIDE],
    reach: f32,
}

impl Strokes {
    /// Returns an empty field. Distances beyond `reach` pixels are not computed.
    pub(super) fn new(reach: f32) -> Self {
        Self {
            distance: [1.0e3; SIDE * SIDE],
            reach,
        }
    }

    /// Adds a segment, in canvas pixels.
    pub(super) fn line(&mut self, a: (f32, f32), b: (f32, f32)) {
        let (dx, dy) = (b.0 - a.0, b.1 - a.1);
        let inverse = 1.0 / (dx * dx + dy * dy).max(1.0e-6);
        let (left, _) = pixel_range(a.0.min(b.0), self.reach);
        let (_, right) = pixel_range(a.0.max(b.0), self.reach);
        let (top, _) = pixel_range(a.1.min(b.1), self.reach);
        let (_, bottom) = pixel_range(a.1.max(b.1), self.reach);
        for row in top..bottom {
            for column in left..right {
                let (px, py) = (column as f32 + 0.5 - a.0, row as f32 + 0.5 - a.1);
                let along = ((px * dx + py * dy) * inverse).clamp(0.0, 1.0);
                let (ex, ey) = (px - along * dx, py - along * dy);
                let distance = (ex * ex + ey * ey).sqrt();
                let kept = &mut self.distance[row * SIDE + column];
                *kept = kept.min(distance);
            }
        }
    }

    /// Adds a polyline given in object coordinates.
    pub(super) fn polyline(&mut self, transform: &Transform, points: &[(f32, f32)]) {
        for pair in points.windows(2) {
            self.line(transform.to_canvas(pair[0]), transform.to_canvas(pair[1]));
        }
    }

    /// Adds a parabolic arc from `(-width, 0)` to `(width, 0)` relative to `centre`, with its
    /// middle `depth` below it, in object coordinates.
    pub(super) fn arc(
        &mut self,
        transform: &Transform,
        centre: (f32, f32),
        width: f32,
        depth: f32,
    ) {
        let points = [-1.0f32, -0.6, -0.2, 0.2, 0.6, 1.0]
            .map(|t| (centre.0 + width * t, centre.1 + depth * (1.0 - t * t)));
        self.polyline(transform, &points);
    }
}
