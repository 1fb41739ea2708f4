//! End-to-end tests with real probes on real processes. They are one program, which is linked once and builds each
//! target once. `planning.rs` is a separate program.

mod accounting;
mod bad_environment;
mod bad_flags;
mod bad_input;
mod budget;
mod cli;
mod clocks;
mod collectors;
mod demo;
mod docs;
mod dwarf;
mod economy;
mod event_socket;
mod events;
mod exact;
mod golden;
mod goruntime;
mod grpc;
mod harmless;
mod held;
mod inspect;
mod isolation;
mod kernels;
mod life;
mod limits;
mod links;
mod matrix;
mod midload;
mod native;
mod native_ends;
mod otlp;
mod preemption;
mod privileges;
mod promql;
mod reads;
mod schema;
mod selection;
mod spec_check;
mod spec_schema;
mod specs;
mod strange;
mod targets;
mod types;
mod watchers;

use std::{collections::BTreeSet, fs, path::Path};

use anyhow::Result;

/// A file that is missing in the list of modules is not compiled, and its tests would never run.
#[test]
fn every_file_is_here() -> Result<()> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let files = fs::read_dir(directory)?
        .map(|entry| Ok(entry?.path().file_stem().unwrap_or_default().to_string_lossy().into_owned()))
        .collect::<Result<BTreeSet<_>>>()?;
    let named =
        include_str!("main.rs").lines().filter_map(|line| line.strip_prefix("mod ")?.strip_suffix(';'));
    let named: BTreeSet<_> =
        named.map(str::to_owned).chain(["main".to_owned(), "planning".to_owned()]).collect();
    assert_eq!(named, files);
    Ok(())
}
