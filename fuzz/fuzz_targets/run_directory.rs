#![no_main]

gnsp_fuzz::target!(RUN_DIRECTORY);
