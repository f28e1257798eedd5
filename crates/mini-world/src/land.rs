//! Aerial images of land.

use super::canvas::{Canvas, Rgb, mix, scaled};
use super::rng::{Rng, cosine, sine};

/// Land cover class.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Land {
    Forest,
    River,
    Harbor,
    Farmland,
    City,
    Desert,
    Highway,
    Lake,
    Island,
    Beach,
}

/// All land cover classes with their names, in the order of the satellite task's classes.
pub(super) const LANDS: [(Land, &str); 10] = [
    (Land::Forest, "forest"),
    (Land::River, "river"),
    (Land::Harbor, "harbor"),
    (Land::Farmland, "farmland"),
    (Land::City, "city"),
    (Land::Desert, "desert"),
    (Land::Highway, "highway"),
    (Land::Lake, "lake"),
    (Land::Island, "island"),
    (Land::Beach, "beach"),
];

/// Seasons: name, colour of plants and colour of soil.
pub(super) const SEASONS: [(&str, Rgb, Rgb); 3] = [
    ("green", [0.24, 0.46, 0.18], [0.45, 0.42, 0.24]),
    ("dry", [0.52, 0.47, 0.22], [0.68, 0.55, 0.34]),
    ("snowy", [0.72, 0.77, 0.78], [0.88, 0.89, 0.90]),
];

const WATER: Rgb = [0.12, 0.30, 0.52];
const SAND: Rgb = [0.86, 0.77, 0.55];

/// Value noise in -1..1: smooth interpolation of random values on a lattice.
struct ValueNoise {
    values: [f32; 100],
    cell: f32,
}

impl ValueNoise {
    fn new(cell: f32, rng: &mut Rng) -> Self {
        Self {
            values: std::array::from_fn(|_| rng.around(1.0)),
            cell,
        }
    }

    fn at(&self, x: f32, y: f32) -> f32 {
        let (u, v) = ((x / self.cell).max(0.0), (y / self.cell).max(0.0));
        let (cu, cv) = (u as usize % 10, v as usize % 10);
        let (fu, fv) = (u - u.floor(), v - v.floor());
        let (fu, fv) = (fu * fu * (3.0 - 2.0 * fu), fv * fv * (3.0 - 2.0 * fv));
        let get = |i: usize, j: usize| self.values[(j % 10) * 10 + i % 10];
        let top = get(cu, cv) + (get(cu + 1, cv) - get(cu, cv)) * fu;
        let bottom = get(cu, cv + 1) + (get(cu + 1, cv + 1) - get(cu, cv + 1)) * fu;
        top + (bottom - top) * fv
    }
}

/// Draws an aerial image. `season` is an index into [`SEASONS`].
pub(super) fn draw_land(land: Land, season: usize, rng: &mut Rng) -> Canvas {
    let (_, plants, soil) = SEASONS[season];
    let plants = plants.map(|c| c + rng.around(0.05));
    let soil = soil.map(|c| c + rng.around(0.05));
    let water = WATER.map(|c| c + rng.around(0.06));
    let mut canvas = Canvas::filled(plants);
    let broad = ValueNoise::new(rng.between(7.0, 11.0), rng);
    let fine = ValueNoise::new(3.4, rng);
    // Coordinates along and across a random direction.
    let turn = rng.unit();
    let (cos, sin) = (cosine(turn), sine(turn));
    let along = move |x: f32, y: f32| (x - 16.0) * cos + (y - 16.0) * sin;
    let across = move |x: f32, y: f32| (y - 16.0) * cos - (x - 16.0) * sin;
    let phase = rng.unit();
    let offset = rng.around(4.0);
    let ground = |x: f32, y: f32| mix(plants, soil, (0.35 + 0.5 * broad.at(x, y)).clamp(0.0, 1.0));
    match land {
        Land::Forest => {
            canvas.map(|x, y, _| scaled(plants, 0.72 + 0.12 * broad.at(x, y)));
            for _ in 0..70 {
                let crown = (rng.between(0.0, 32.0), rng.between(0.0, 32.0));
                let radius = rng.between(1.2, 2.3);
                canvas.disc((crown.0 + 0.7, crown.1 + 0.8), radius, scaled(plants, 0.42));
                canvas.disc(crown, radius * 0.8, scaled(plants, rng.between(0.75, 1.05)));
            }
        }
        Land::River => {
            let width = rng.between(2.2, 4.2);
            let (bend, wave) = (rng.between(2.0, 5.0), rng.between(0.025, 0.05));
            canvas.map(|x, y, _| {
                let middle = bend * sine(along(x, y) * wave + phase) + offset;
                let edge = (across(x, y) - middle).abs() - width;
                let bank = mix(
                    ground(x, y),
                    scaled(soil, 0.8),
                    (1.5 - edge * 0.7).clamp(0.0, 1.0) * 0.6,
                );
                mix(bank, water, (0.5 - edge).clamp(0.0, 1.0))
            });
        }
        Land::Harbor => {
            let shore = rng.between(6.0, 9.0);
            canvas.map(|x, y, _| {
                let depth = across(x, y) + shore;
                let pier = (along(x, y) * 0.125 + phase).rem_euclid(1.0) < 0.26 && depth < 15.0;
                let sea = scaled(water, 1.0 + 0.12 * fine.at(x, y));
                if pier {
                    [0.62, 0.60, 0.58]
                } else {
                    mix([0.66, 0.63, 0.60], sea, (0.5 + depth).clamp(0.0, 1.0))
                }
            });
            for _ in 0..9 {
                let (a, c) = (rng.around(15.0), rng.between(-4.0, 14.0));
                let boat = (16.0 + a * cos - c * sin, 16.0 + a * sin + c * cos);
                canvas.disc(boat, rng.between(0.8, 1.3), [0.97, 0.97, 0.97]);
            }
        }
        Land::Farmland => {
            let (w, h) = (rng.between(7.0, 11.0), rng.between(6.0, 9.0));
            let fields: [Rgb; 5] = [
                scaled(plants, 1.15),
                scaled(plants, 0.8),
                mix(plants, [0.85, 0.78, 0.35], 0.7),
                soil,
                scaled(soil, 0.72),
            ];
            let mut crop = [0usize; 64];
            for choice in &mut crop {
                *choice = rng.below(fields.len());
            }
            canvas.map(|x, y, _| {
                let (u, v) = ((along(x, y) + 40.0) / w, (across(x, y) + 40.0) / h);
                let (i, j) = (u.floor(), v.floor());
                let kind = crop[((i as i32 & 7) + 8 * (j as i32 & 7)) as usize];
                let furrow = if kind % 2 == 0 {
                    sine(v * h / 2.6)
                } else {
                    sine(u * w / 2.6)
                };
                let edge = ((u - i).min(1.0 - u + i) * w).min((v - j).min(1.0 - v + j) * h);
                let field = scaled(fields[kind], 1.0 + 0.1 * furrow);
                mix(scaled(plants, 0.5), field, (edge + 0.2).clamp(0.0, 1.0))
            });
        }
        Land::City => {
            let block = rng.between(5.5, 8.0);
            let mut roofs = [[0.0; 3]; 64];
            for roof in &mut roofs {
                let level = rng.between(0.35, 0.85);
                *roof = if rng.chance(0.25) {
                    [level, level * 0.6, level * 0.5]
                } else {
                    [level, level, level * 1.03]
                };
            }
            canvas.map(|x, y, _| {
                let (u, v) = ((along(x, y) + 40.0) / block, (across(x, y) + 40.0) / block);
                let (fu, fv) = (u - u.floor(), v - v.floor());
                let edge = fu.min(1.0 - fu).min(fv.min(1.0 - fv)) * block - 0.9;
                // Two roofs per block.
                let half = i32::from(fu > 0.5);
                let index = ((u as i32 * 2 + half) & 7) + 8 * (v as i32 & 7);
                mix(
                    [0.25, 0.25, 0.27],
                    roofs[index as usize],
                    (0.5 + edge).clamp(0.0, 1.0),
                )
            });
        }
        Land::Desert => {
            let sand = SAND.map(|c| c + rng.around(0.06));
            let wave = rng.between(0.1, 0.17);
            canvas.map(|x, y, _| {
                let dune = sine(across(x, y) * wave + 0.35 * broad.at(x, y) + phase);
                let light = if dune > 0.3 { 1.06 } else { 0.86 + 0.14 * dune };
                scaled(sand, light + 0.04 * fine.at(x, y))
            });
        }
        Land::Highway => {
            let width = rng.between(2.4, 3.4);
            let crossing = rng.chance(0.4);
            canvas.map(|x, y, _| {
                let road = |d: f32, along: f32, under: Rgb| {
                    let lane = mix(
                        under,
                        [0.33, 0.33, 0.35],
                        (0.5 + width - d.abs()).clamp(0.0, 1.0),
                    );
                    let dash = (along * 0.25).rem_euclid(1.0) < 0.6;
                    if dash {
                        mix(lane, [0.95, 0.93, 0.85], (0.9 - d.abs()).clamp(0.0, 1.0))
                    } else {
                        lane
                    }
                };
                let (a, c) = (along(x, y), across(x, y));
                let mut pixel = ground(x, y);
                if crossing {
                    pixel = road(a + offset, c, pixel);
                }
                road(c - offset, a, pixel)
            });
        }
        Land::Lake | Land::Island => {
            let (cx, cy) = (16.0 + rng.around(3.0), 16.0 + rng.around(3.0));
            let (radius, oval) = (rng.between(7.5, 10.5), rng.between(0.8, 1.25));
            canvas.map(|x, y, _| {
                let (dx, dy) = ((x - cx) * oval, (y - cy) / oval);
                let edge = (dx * dx + dy * dy).sqrt() - radius - 3.0 * broad.at(x, y);
                if land == Land::Lake {
                    mix(
                        ground(x, y),
                        scaled(water, 1.0 + 0.05 * fine.at(x, y)),
                        (0.5 - edge).clamp(0.0, 1.0),
                    )
                } else {
                    let sea = mix(
                        water,
                        [0.2, 0.55, 0.65],
                        (1.0 - edge * 0.25).clamp(0.0, 1.0),
                    );
                    let shore = mix(sea, SAND, (0.5 - edge).clamp(0.0, 1.0));
                    mix(shore, ground(x, y), (-1.8 - edge).clamp(0.0, 1.0))
                }
            });
        }
        Land::Beach => {
            let (bend, wave) = (rng.between(0.5, 2.0), rng.between(0.02, 0.05));
            let strip = rng.between(5.0, 8.0);
            canvas.map(|x, y, _| {
                let line = across(x, y) - offset - bend * sine(along(x, y) * wave + phase);
                let foam = (1.3 - (line - 0.8).abs()).clamp(0.0, 1.0);
                let sea = mix(scaled(water, 1.25), water, (line * 0.12).clamp(0.0, 1.0));
                let dry = mix(
                    ground(x, y),
                    scaled(SAND, 1.0 + 0.05 * fine.at(x, y)),
                    (line + strip).clamp(0.0, 1.0),
                );
                mix(
                    mix(dry, sea, (0.5 + line).clamp(0.0, 1.0)),
                    [0.96, 0.97, 0.97],
                    foam,
                )
            });
        }
    }
    canvas
}

/// Draws clouds over the image. `cover` is their density in 0..1.
pub(super) fn draw_clouds(canvas: &mut Canvas, cover: f32, rng: &mut Rng) {
    let field = ValueNoise::new(rng.between(8.0, 12.0), rng);
    let fringe = ValueNoise::new(3.6, rng);
    canvas.map(|x, y, under| {
        let density = (field.at(x, y) + 0.35 * fringe.at(x, y) + cover - 0.75) * 2.5;
        mix(under, [0.95, 0.96, 0.98], density.clamp(0.0, 0.95))
    });
}
