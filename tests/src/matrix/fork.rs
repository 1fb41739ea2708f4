//! Makes forks of frameworks, either under another import path or with structs that no release has.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};

use super::Framework;

/// The import path of a framework.
pub(super) fn path_of(framework: Framework) -> &'static str {
    match framework {
        Framework::Kitex => "github.com/cloudwego/kitex",
        Framework::Grpc => "google.golang.org/grpc",
    }
}

/// The import path of a framework's renamed fork.
fn fork_of(framework: Framework) -> &'static str {
    match framework {
        Framework::Kitex => "example.com/rpc/fork/kitex",
        Framework::Grpc => "example.com/rpc/fork/grpc",
    }
}

/// The changes in the altered fork of Kitex: a file, a text that occurs in it once, and its replacement.
const ALTERATIONS: &[(&str, &str, &str)] = &[
    (
        "pkg/rpcinfo/rpcinfo.go",
        "\tfrom       EndpointInfo\n\tto         EndpointInfo\n\tinvocation Invocation\n",
        "\tadded      [3]uint64\n\tinvocation Invocation\n\tto         EndpointInfo\n\tfrom       EndpointInfo\n",
    ),
    (
        "pkg/rpcinfo/rpcinfo_inline.go",
        "type inlineRPCInfo struct {\n",
        "type inlineRPCInfo struct {\n\tadded [40]byte\n",
    ),
    (
        "pkg/rpcinfo/endpointInfo.go",
        "\tserviceName string\n\tmethod      string\n",
        "\tmethod      string\n\tadded       map[string]string\n\tserviceName string\n",
    ),
    (
        "pkg/rpcinfo/remoteinfo/remoteInfo.go",
        "\tserviceName string\n\tmethod      string\n\ttags        map[string]string\n",
        "\ttags        map[string]string\n\tadded       []string\n\tmethod      string\n\tserviceName string\n",
    ),
    (
        "pkg/rpcinfo/invocation.go",
        "\tmethodInfo    serviceinfo.MethodInfo\n",
        "\tadded         [5]int32\n\tmethodInfo    serviceinfo.MethodInfo\n",
    ),
    ("pkg/rpcinfo/rpcstats.go", "type rpcStats struct {\n", "type rpcStats struct {\n\tadded [9]uint64\n"),
    ("pkg/rpcinfo/rpcconfig.go", "type rpcConfig struct {\n", "type rpcConfig struct {\n\tadded [2]string\n"),
];

/// The module that all programs use, in a directory beside theirs.
const COMMON: &str = "steer";

/// Copies the program to `to`, with the `go.mod` of a release, and the module that it uses beside it.
pub(super) fn copy_program(program: &Path, modfile: &Path, to: &Path) -> Result<()> {
    copy_go(program, to)?;
    fs::copy(modfile, to.join("go.mod"))?;
    fs::copy(modfile.with_extension("sum"), to.join("go.sum"))?;
    let (common, beside) = (program.with_file_name(COMMON), to.with_file_name(COMMON));
    copy_go(&common, &beside)?;
    fs::copy(common.join("go.mod"), beside.join("go.mod"))?;
    Ok(())
}

/// Makes `to` a directory that has only the Go sources of `from`.
fn copy_go(from: &Path, to: &Path) -> Result<()> {
    clear(to)?;
    for entry in fs::read_dir(from)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "go") {
            fs::copy(&path, to.join(path.file_name().context("a file without a name")?))?;
        }
    }
    Ok(())
}

/// Copies a framework to `fork` under another import path, and makes the copied program use it.
pub(super) fn rename(
    framework: Framework,
    module: &Path,
    fork: &Path,
    program: &Path,
    release: &str,
) -> Result<()> {
    clear(fork)?;
    copy_module(module, fork)?;
    for directory in [fork, program] {
        for path in files(directory)? {
            rename_in(framework, &path, release)?;
        }
    }
    append(&program.join("go.mod"), &format!("\nreplace {} => {}\n", fork_of(framework), fork.display()))
}

/// Like [`rename`], with Kitex altered under its own import path.
pub(super) fn alter(kitex: &Path, fork: &Path, program: &Path) -> Result<()> {
    clear(fork)?;
    copy_module(kitex, fork)?;
    for (file, before, after) in ALTERATIONS {
        replace(&fork.join(file), before, after)?;
    }
    let path = path_of(Framework::Kitex);
    append(&program.join("go.mod"), &format!("\nreplace {path} => {}\n", fork.display()))
}

fn clear(directory: &Path) -> Result<()> {
    if directory.exists() {
        fs::remove_dir_all(directory)?;
    }
    Ok(fs::create_dir_all(directory)?)
}

/// Copies Go sources and the files that they embed. Unlike the module cache, the copy is writable.
fn copy_module(from: &Path, to: &Path) -> Result<()> {
    for path in files(from)? {
        let copy = to.join(path.strip_prefix(from)?);
        fs::create_dir_all(copy.parent().context("a file without a directory")?)?;
        fs::write(&copy, fs::read(&path)?)?;
    }
    Ok(())
}

/// Lists all files below a directory except tests.
fn files(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut rest = vec![directory.to_owned()];
    while let Some(directory) = rest.pop() {
        for entry in fs::read_dir(&directory)? {
            let path = entry?.path();
            if path.is_dir() {
                rest.push(path);
            } else if !path.to_string_lossy().ends_with("_test.go") {
                found.push(path);
            }
        }
    }
    Ok(found)
}

/// Renames a framework in a Go source or a `go.mod`. The `go.mod` keeps the release that the fork was made from.
fn rename_in(framework: Framework, path: &Path, release: &str) -> Result<()> {
    let (before, after) = (path_of(framework), fork_of(framework));
    let is_mod = path.file_name().is_some_and(|name| name == "go.mod");
    if !is_mod && path.extension().is_none_or(|extension| extension != "go") {
        return Ok(());
    }
    let text = fs::read_to_string(path)?;
    // The path of another module may have this path as a prefix.
    let mut renamed = text.clone();
    for end in ['"', '/'] {
        renamed = renamed.replace(&format!("\"{before}{end}"), &format!("\"{after}{end}"));
    }
    if is_mod {
        renamed = renamed
            .replace(&format!("module {before}\n"), &format!("module {after}\n"))
            .replace(&format!("{before} {release}\n"), &format!("{after} {release}\n"));
    }
    if renamed != text {
        fs::write(path, renamed)?;
    }
    Ok(())
}

fn replace(path: &Path, before: &str, after: &str) -> Result<()> {
    let text = fs::read_to_string(path)?;
    ensure!(text.matches(before).count() == 1, "{} has not the text to alter: {before}", path.display());
    Ok(fs::write(path, text.replace(before, after))?)
}

fn append(path: &Path, text: &str) -> Result<()> {
    let before = fs::read_to_string(path)?;
    Ok(fs::write(path, before + text)?)
}
