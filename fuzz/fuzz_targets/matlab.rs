#![no_main]

gnsp_fuzz::target!(MATLAB);
