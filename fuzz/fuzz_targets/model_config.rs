#![no_main]

gnsp_fuzz::target!(MODEL_CONFIG);
