#![no_main]

gnsp_fuzz::target!(PICKLE);
