//! Checks lines of the event stream against `docs/events.schema.json`.

use std::{fs, path::Path};

use anyhow::{Result, anyhow, ensure};
use serde_json::Value;

/// Fails unless every line matches `docs/events.schema.json`.
pub(crate) fn check_schema(lines: &[Value]) -> Result<()> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("docs/events.schema.json");
    let schema: Value = serde_json::from_slice(&fs::read(path)?)?;
    let validator = jsonschema::validator_for(&schema)?;
    for line in lines {
        validator.validate(line).map_err(|error| anyhow!("{line}: {error}"))?;
    }
    ensure!(!lines.is_empty(), "no lines: this shows nothing");
    // A schema that accepts anything would prove nothing.
    let mut other = lines[0].clone();
    other["nonsense"] = 1.into();
    ensure!(!validator.is_valid(&other), "the schema takes {other}");
    Ok(())
}
