#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| monitor_agent::fuzzing::symbol(data));
