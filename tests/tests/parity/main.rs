//! Parity with other programs and between backends, in one binary that is linked once. A test is
//! named `FILE::TEST`.

mod backends;
mod clip_parity;
mod methods_parity;
mod mtil_golden;
mod zoo_parity;
