//! DWARF as a second witness: named if it agrees, a refusal if it contradicts, a note if it can't be read.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use monitor_agent::image::Image;
use monitor_tests::{
    agent::{Ended, run_to_end},
    targets::{self, Flavour, Program},
};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(20);
const UNPROVABLE: i32 = 6;
const METADATA: &str = "Go type metadata";
const BOTH: &str = "Go type metadata, DWARF";
const TYPE: &str = "github.com/cloudwego/kitex/pkg/rpcinfo.rpcInfo";

fn inspect(executable: &Path) -> Result<Ended> {
    run_to_end(&["inspect", "--json", "--exe", executable.to_str().context("no UTF-8")?], PATIENCE)
}

/// Returns the report of `inspect` about the framework in an executable that can be watched.
fn framework(executable: &Path) -> Result<Value> {
    let ended = inspect(executable)?;
    ensure!(ended.code == Some(0) && ended.stderr.is_empty(), "{ended:#?}");
    Ok(serde_json::from_str::<Value>(&ended.stdout)?["frameworks"][0].take())
}

/// Returns the offsets of fields by name, each with its value and evidence.
fn fields(framework: &Value) -> Result<BTreeMap<&str, (u64, &str)>> {
    let offsets = framework["offsets"].as_array().context("no offsets")?;
    let entries = offsets.iter().map(|offset| {
        let text = |name: &str| offset[name].as_str().context("no text");
        Ok((text("name")?, (offset["value"].as_u64().context("no value")?, text("evidence")?)))
    });
    let mut fields: BTreeMap<_, _> = entries.collect::<Result<_>>()?;
    fields.retain(|name, _| !name.starts_with("itab(") && !name.starts_with("size of "));
    ensure!(fields.len() > 10, "{framework}");
    Ok(fields)
}

#[test]
fn the_evidence_names_both_where_there_are_both() -> Result<()> {
    for flavour in Flavour::ALL {
        let framework = framework(&Program::Kitex.build(flavour)?)?;
        let expected = if flavour == Flavour::Stripped { METADATA } else { BOTH };
        for (name, (_, evidence)) in fields(&framework)? {
            assert_eq!(evidence, expected, "{flavour:?}: {name}");
        }
        assert_eq!(framework["notes"], serde_json::json!([]), "{flavour:?}");
    }
    Ok(())
}

/// A copy of an executable in which single bytes of the DWARF can be changed.
struct Copy {
    bytes: Vec<u8>,
    path: PathBuf,
}

impl Copy {
    fn new(name: &str) -> Result<Self> {
        let bytes = fs::read(Program::Kitex.build(Flavour::PlainDwarf)?)?;
        Ok(Self { bytes, path: Path::new(env!("CARGO_TARGET_TMPDIR")).join(name) })
    }

    /// Returns the offset of these bytes, which must occur once.
    fn place(&self, bytes: &[u8]) -> Result<usize> {
        let mut found = self.bytes.windows(bytes.len()).enumerate().filter(|(_, window)| *window == bytes);
        let (at, _) = found.next().with_context(|| format!("{bytes:?} is not there"))?;
        ensure!(found.next().is_none(), "{bytes:?} is there twice");
        Ok(at)
    }

    /// Returns the offset of the struct type's name: the name with its terminator, the size, and the kind, which Go
    /// adds.
    fn struct_name(&self, size: u8) -> Result<usize> {
        const STRUCT: u8 = 25;
        self.place(&[TYPE.as_bytes(), &[0, size, STRUCT]].concat())
    }

    fn inspect_with(&self, at: usize, byte: u8) -> Result<Ended> {
        let mut bytes = self.bytes.clone();
        *bytes.get_mut(at).context("the file ends")? = byte;
        fs::write(&self.path, bytes)?;
        let ended = inspect(&self.path);
        fs::remove_file(&self.path)?;
        ended
    }
}

#[test]
fn what_the_dwarf_contradicts_is_refused() -> Result<()> {
    const SIZE: u8 = 80;
    let copy = Copy::new("dwarf-differs")?;
    let framework = framework(&Program::Kitex.build(Flavour::PlainDwarf)?)?;
    let (offset, _) = *fields(&framework)?.get("rpcinfo.rpcInfo.config").context("no field")?;
    let offset = u8::try_from(offset)?;
    let name = copy.struct_name(SIZE)?;

    // The name with its terminator, then the offset.
    let member = [b"config\0", &[offset][..]].concat();
    let behind = copy.bytes[name..].windows(member.len()).position(|window| window == member);
    let offset_at = name + behind.context("no member")? + member.len() - 1;
    let field_at = offset_at - member.len() + 1;
    let size_at = name + TYPE.len() + 1;
    let other = offset + 8;
    for (at, byte, words) in [
        (
            offset_at,
            other,
            format!("offset of {TYPE}.config is {offset} in the Go type metadata and {other} in"),
        ),
        (
            field_at,
            b'C',
            format!("offset of {TYPE}.config is {offset} in the Go type metadata and not there in"),
        ),
        (size_at, SIZE + 8, format!("size of {TYPE} is {SIZE} in the Go type metadata and {} in", SIZE + 8)),
    ] {
        let ended = copy.inspect_with(at, byte)?;
        assert_eq!(ended.code, Some(UNPROVABLE), "{ended:#?}");
        ensure!(ended.stderr.contains(&words) && ended.stdout.contains(&words), "{words}: {ended:#?}");
    }
    Ok(())
}

#[test]
fn dwarf_that_cannot_be_read_is_a_note() -> Result<()> {
    let copy = Copy::new("dwarf-damaged")?;
    let good = framework(&Program::Kitex.build(Flavour::PlainDwarf)?)?;
    // The number before the name is the code of the entry's abbreviation. This code does not exist.
    let ended = copy.inspect_with(copy.struct_name(80)? - 1, 0x7f)?;
    ensure!(ended.code == Some(0) && ended.stderr.is_empty(), "{ended:#?}");
    let damaged = serde_json::from_str::<Value>(&ended.stdout)?["frameworks"][0].take();
    for (name, (value, evidence)) in fields(&damaged)? {
        assert_eq!((value, evidence), (fields(&good)?[name].0, METADATA), "{name}");
    }
    assert_eq!(damaged["sites"], good["sites"]);
    let note = damaged["notes"][0].as_str().context("no note")?;
    ensure!(note.contains("has DWARF that can't be read: invalid abbreviation code"), "{note}");
    Ok(())
}

/// Builds `targets/known` with a release of Go.
fn known(release: &str, flags: &[&str]) -> Result<PathBuf> {
    let executable = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("known-{release}"));
    let mut go = Command::new(targets::go()?);
    go.arg("build").args(["-trimpath", "-buildvcs=false"]).args(flags).arg("-o").arg(&executable).arg(".");
    go.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("targets/known"));
    let status = go.env("GOTOOLCHAIN", release).env("CGO_ENABLED", "0").status()?;
    ensure!(status.success(), "{go:?}: {status}");
    Ok(executable)
}

#[test]
fn every_way_that_go_wrote_dwarf_is_read() -> Result<()> {
    let plain = "-ldflags=-compressdwarf=false";
    let names = BTreeSet::from(["main.known".to_owned(), "main.unknown".to_owned()]);
    for (release, flags) in [
        // DWARF 4, first in `.zdebug_` sections, then in sections with ELF's compression flag.
        ("go1.18.10", &[][..]),
        ("go1.18.10", &[plain]),
        ("go1.20.14", &[]),
        // DWARF 5.
        ("go1.25.5", &[]),
        ("go1.25.5", &[plain]),
        ("local", &["-buildmode=pie"]),
    ] {
        let case = || format!("{release} {flags:?}");
        let image = Image::parse(Box::new(File::open(known(release, flags)?)?)).with_context(case)?;
        let structs = image.dwarf_structs(&names).with_context(case)?.with_context(case)?;
        assert_eq!(structs.len(), 1, "{}", case());
        let known = structs.get("main.known").with_context(case)?;
        let fields: Vec<_> = known.fields.iter().map(|(name, offset)| (&**name, *offset)).collect();
        assert_eq!(fields, [("counts", 24), ("flag", 0), ("name", 8), ("tail", 48)], "{}", case());
        assert_eq!(known.size, 56, "{}", case());
    }
    let stripped = Image::parse(Box::new(File::open(known("local", &["-ldflags=-s -w"])?)?))?;
    ensure!(stripped.dwarf_structs(&names)?.is_none());
    Ok(())
}
