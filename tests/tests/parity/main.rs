//! Parity with reference implementations and between backends, in a single test binary. A test is
//! named `FILE::TEST`.

mod backends;
mod clip_parity;
mod methods_parity;
mod mtil_golden;
mod zoo_parity;
