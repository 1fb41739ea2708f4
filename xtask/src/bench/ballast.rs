//! Executables that are large because they contain much code, like those of real services: types with fields and
//! methods, behind interfaces, that the linker has to keep.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};
use monitor_tests::targets;
use serde_json::json;

use crate::process::{root, run, say};

/// Types in a package.
const TYPES: u32 = 500;

/// Builds the synthetic target with this many more types, each some 1.9 KB in the file.
pub(super) fn build(types: u32) -> Result<PathBuf> {
    let source = root().join("tests/targets/synthetic");
    let directory = root().join(format!("target/ballast/{types}"));
    fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
    // The compiler treats these files as part of the target's own directory.
    let mut overlay = BTreeMap::new();
    let mut add = |name: &str, place: &Path, text: &str| -> Result<()> {
        let file = directory.join(name);
        // Unchanged files are not compiled again.
        if fs::read_to_string(&file).is_ok_and(|old| old == text) {
            overlay.insert(place.to_owned(), file);
            return Ok(());
        }
        fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
        overlay.insert(place.to_owned(), file);
        Ok(())
    };
    let packages = types / TYPES;
    for number in 0..packages {
        let name = format!("b{number}");
        add(&format!("{name}.go"), &source.join(&name).join("b.go"), &package(&name))?;
    }
    add("use.go", &source.join("use.go"), &usage(packages))?;
    let overlay_file = directory.join("overlay.json");
    fs::write(&overlay_file, json!({ "Replace": overlay }).to_string())?;
    let executable = directory.join("synthetic");
    say(&format!("building an executable with {types} types more (a minute or two the first time)"));
    let mut go = Command::new(targets::go()?);
    go.args(["build", "-trimpath", "-buildvcs=false", "-mod=readonly", "-overlay"]).arg(overlay_file);
    go.arg("-o").arg(&executable).arg(".").current_dir(source).env("CGO_ENABLED", "0");
    run(&mut go)?;
    Ok(executable)
}

fn package(name: &str) -> String {
    let mut text = format!("package {name}\n\nimport \"fmt\"\n\nvar All []any\n");
    for number in 0..TYPES {
        let _ = writeln!(
            text,
            "
type T{number} struct {{
	A, B int
	C    string
	D    []byte
	E    map[string]int
}}

func (t *T{number}) Add(x int) int {{
	t.A += x * {number}
	t.B ^= t.A << 3
	t.C += fmt.Sprint(t.B)
	if len(t.D) > x {{
		t.E[t.C] += int(t.D[x])
	}}
	return t.A
}}

func (t *T{number}) String() string {{ return fmt.Sprintf(\"%d %d %s %v %v\", t.A, t.B, t.C, t.D, t.E) }}

func init() {{ All = append(All, &T{number}{{A: {number}}}) }}"
        );
    }
    text
}

/// Returns the file of the main package that uses all types.
fn usage(packages: u32) -> String {
    let mut text = "package main\n\nimport (\n".to_owned();
    for number in 0..packages {
        let _ = writeln!(text, "\t\"synthetic-target/b{number}\"");
    }
    text += ")\n\nfunc init() {\n";
    for number in 0..packages {
        let _ = writeln!(text, "\tballast = append(ballast, b{number}.All...)");
    }
    text += "\tfor _, b := range ballast {\n\t\tb.(interface{ Add(int) int }).Add(0)\n\t}\n}\n";
    text
}
