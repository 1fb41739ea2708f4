//! The output of `inspect` is stable, as documented, and true: it is compared with Go's own tools and with the DWARF of
//! the same executables.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use monitor_tests::{
    agent::{Agent, Ended, executable, run_command_to_end, run_to_end},
    kernel::BpfObjects,
    process::Process,
    targets::{self, Flavour, Program},
    text::Sites,
};
use serde_json::{Value, json};

use crate::golden;

const MODULE: &str = "github.com/cloudwego/kitex";
const PATIENCE: Duration = Duration::from_secs(20);

fn inspect(args: &[&str]) -> Result<Ended> {
    run_to_end(&[&["inspect"], args].concat(), PATIENCE)
}

fn inspect_json(args: &[&str]) -> Result<Value> {
    let ended = inspect(&[&["--json"], args].concat())?;
    ensure!(ended.code == Some(0) && ended.stderr.is_empty(), "{ended:#?}");
    Ok(serde_json::from_str(&ended.stdout)?)
}

/// Returns the executable of a Kitex target, as a path and as an argument.
fn target(flavour: Flavour) -> Result<(PathBuf, String)> {
    let path = Program::Kitex.build(flavour)?;
    let text = path.to_str().context("no UTF-8")?.to_owned();
    Ok((path, text))
}

fn array<'a>(value: &'a Value, name: &str) -> Result<&'a Vec<Value>> {
    value[name].as_array().with_context(|| format!("no {name}: {value}"))
}

fn text<'a>(value: &'a Value, name: &str) -> Result<&'a str> {
    value[name].as_str().with_context(|| format!("no {name}: {value}"))
}

fn number(value: &Value, name: &str) -> Result<u64> {
    value[name].as_u64().with_context(|| format!("no {name}: {value}"))
}

/// Returns the report without values that depend on the Go release, the build or the machine. Each of these values is
/// checked by another test here.
fn steady_json(mut report: Value) -> Result<String> {
    report["exe"] = json!("EXE");
    report["build_id"] = json!("BUILD_ID");
    report["go_version"] = json!("GO_VERSION");
    for evidence in ["offsets", "variables"] {
        report["go_runtime"][evidence] = json!("EVIDENCE");
    }
    for framework in report["frameworks"].as_array_mut().context("no frameworks")? {
        for site in framework["sites"].as_array_mut().context("no sites")? {
            ensure!(site["file_offset"].is_u64(), "{site}");
            site["file_offset"] = json!("FILE_OFFSET");
        }
        one_witness(framework)?;
        for offset in framework["offsets"].as_array_mut().context("no offsets")? {
            if text(offset, "name")?.starts_with("itab(") {
                ensure!(offset["value"].is_u64(), "{offset}");
                offset["value"] = json!("ADDRESS");
            }
        }
    }
    Ok(serde_json::to_string_pretty(&report)? + "\n")
}

/// Removes DWARF, which not every flavour has, from the evidence. `dwarf.rs` tests where it is required.
fn one_witness(framework: &mut Value) -> Result<()> {
    for offset in framework["offsets"].as_array_mut().context("no offsets")? {
        let evidence = text(offset, "evidence")?;
        offset["evidence"] = json!(evidence.strip_suffix(", DWARF").unwrap_or(evidence));
    }
    Ok(())
}

/// Like [`steady_json`], for the text.
fn steady_text(printed: &str, report: &Value) -> Result<String> {
    let mut steady = String::new();
    for line in printed.lines() {
        let line = line.split_once("  go runtime  ").map_or(line, |_| "  go runtime  EVIDENCE");
        let line = line.replacen(text(report, "exe")?, "EXE", 1);
        let line = line.replacen(text(report, "build_id")?, "BUILD_ID", 1);
        let line = line.replacen(text(report, "go_version")?, "GO_VERSION", 1);
        match line.split_once("0x") {
            Some((before, place)) if line.contains(" at file offset ") || line.contains("itab(") => {
                let behind = place.trim_start_matches(|c: char| c.is_ascii_hexdigit());
                ensure!(place.len() - behind.len() >= 6, "{line}");
                // The width of columns depends on the longest number.
                let before = before.trim_end();
                writeln!(steady, "{before} 0xPLACE{behind}")?;
            }
            _ => writeln!(steady, "{}", line.strip_suffix(", DWARF").unwrap_or(&line))?,
        }
    }
    Ok(steady)
}

#[test]
fn the_report_is_as_it_was() -> Result<()> {
    for flavour in Flavour::ALL {
        let (_, path) = target(flavour)?;
        let report = inspect_json(&["--exe", &path])?;
        assert_eq!(report["exe"], path);
        let printed = inspect(&["--exe", &path])?;
        ensure!(printed.code == Some(0) && printed.stderr.is_empty(), "{printed:#?}");
        golden::check("inspect.txt", &steady_text(&printed.stdout, &report)?)?;
        golden::check("inspect.json", &steady_json(report)?)?;
    }
    Ok(())
}

#[test]
fn a_refusal_is_as_it_was() -> Result<()> {
    let plain = Program::Plain.build(Flavour::Default)?;
    let ended = inspect(&["--json", "--exe", plain.to_str().context("no UTF-8")?])?;
    assert_eq!(ended.code, Some(6));
    golden::check("inspect-plain.json", &steady_json(serde_json::from_str(&ended.stdout)?)?)
}

/// The report of Go's own libraries about an executable with symbols and DWARF (`targets/layout`).
struct Layout(Value);

impl Layout {
    fn of(executable: &Path) -> Result<Self> {
        let mut go = Command::new(targets::go()?);
        go.args(["run", "."]).arg(executable).arg(format!("{MODULE}/"));
        go.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("targets/layout"));
        let output = go.env("GOTOOLCHAIN", "local").stderr(Stdio::inherit()).output()?;
        ensure!(output.status.success(), "{go:?}: {}", output.status);
        Ok(Self(serde_json::from_slice(&output.stdout)?))
    }

    fn symbol(&self, name: &str) -> Result<u64> {
        number(&self.0["symbols"], name)
    }

    /// Returns the value of an offset by its name in `inspect`: `itab(INTERFACE, *TYPE)`, `PACKAGE.TYPE.FIELD` with
    /// packages as in Go's type names, or the size of a map's group.
    fn offset(&self, name: &str) -> Result<u64> {
        if let Some(pair) = name.strip_prefix("itab(").and_then(|rest| rest.strip_suffix(')')) {
            let (interface, concrete) = pair.split_once(", *").context("no pair")?;
            let full = |name: &str| match name {
                "error" | "net.Addr" | "net.TCPAddr" => name.to_owned(),
                _ => format!("{MODULE}/{name}"),
            };
            return self.symbol(&format!("go:itab.*{},{}", full(concrete), full(interface)));
        }
        if let Some(map) = name.strip_prefix("size of an entry group of map") {
            return number(&self.0["sizes"], &format!("noalg.map.group{map}"));
        }
        let (owner, field) = name.rsplit_once('.').context("no field")?;
        let (owner, below) = (owner.to_owned(), format!("/{owner}"));
        let structs = self.0["fields"].as_object().context("no structs")?;
        let mut found = structs.iter().filter(|(name, _)| **name == owner || name.ends_with(&below));
        let (_, fields) = found.next().with_context(|| format!("no struct {owner}"))?;
        ensure!(found.next().is_none(), "several structs {owner}");
        number(fields, field)
    }
}

/// Returns the address at which a file offset is loaded as code, from the program headers.
fn code_address(file: &[u8], offset: u64) -> Result<u64> {
    let bytes = |at: usize, length: usize| file.get(at..at + length).context("the file ends");
    let word = |at| Ok::<_, anyhow::Error>(u64::from_le_bytes(bytes(at, 8)?.try_into()?));
    let start = usize::try_from(word(0x20)?)?;
    let count = u16::from_le_bytes(bytes(0x38, 2)?.try_into()?);
    for header in (0..usize::from(count)).map(|index| start + 56 * index) {
        let [kind, flags] = [0, 4].map(|at| bytes(header + at, 4).map(|word| word[0]));
        let (from, address, length) = (word(header + 8)?, word(header + 16)?, word(header + 32)?);
        // PT_LOAD, and PF_X among the flags.
        if kind? == 1 && flags? & 1 == 1 && (from..from + length).contains(&offset) {
            return Ok(address + (offset - from));
        }
    }
    bail!("offset {offset:#x} is in no segment of code")
}

/// Returns address and instruction of each line that Go's disassembler prints for a function.
fn disassembled(executable: &Path, symbol: &str) -> Result<BTreeMap<u64, String>> {
    let escaped = symbol.replace(['(', ')', '*', '.'], ".");
    let mut go = Command::new(targets::go()?);
    go.args(["tool", "objdump", "-s", &format!("^{escaped}$")]).arg(executable).env("GOTOOLCHAIN", "local");
    let output = go.output()?;
    ensure!(output.status.success(), "{go:?}: {}", output.status);
    // FILE:LINE  ADDRESS  BYTES  INSTRUCTION
    let lines = String::from_utf8(output.stdout)?;
    let instructions = lines.lines().filter_map(|line| {
        let mut words = line.split('\t').map(str::trim).filter(|word| !word.is_empty()).skip(1);
        let address = u64::from_str_radix(words.next()?.strip_prefix("0x")?, 16).ok()?;
        Some((address, words.nth(1)?.to_owned()))
    });
    Ok(instructions.collect())
}

#[test]
fn what_is_called_proven_is_so() -> Result<()> {
    for flavour in [Flavour::Default, Flavour::Pie] {
        let (path, argument) = target(flavour)?;
        let report = inspect_json(&["--exe", &argument])?;
        let layout = Layout::of(&path)?;
        let file = fs::read(&path)?;

        assert_eq!(report["go_version"], layout.0["go_version"]);
        let framework = &report["frameworks"][0];
        assert_eq!(framework["version"], layout.0["modules"][MODULE]);

        for site in array(framework, "sites")? {
            let offset = number(site, "file_offset")?;
            assert_eq!(file[usize::try_from(offset)?], 0x55, "{site}");
            let (symbol, address) = (text(site, "symbol")?, code_address(&file, offset)?);
            let code = disassembled(&path, symbol)?;
            let before: Vec<_> = code.range(..address).map(|(_, instruction)| &**instruction).collect();
            assert_eq!(code.first_key_value().map(|(first, _)| *first), Some(layout.symbol(symbol)?));
            assert_eq!(code.get(&address).map(String::as_str), Some("PUSHQ BP"), "{site}");
            // Only the stack check may come before the site.
            let [.., compare, branch] = before[..] else { bail!("{site}: {before:?}") };
            ensure!(compare.starts_with("CMPQ") && compare.ends_with("0x10(R14)"), "{site}: {before:?}");
            ensure!(branch.starts_with("JBE ") && before.len() <= 3, "{site}: {before:?}");
        }

        let offsets = array(framework, "offsets")?;
        ensure!(offsets.len() > 20, "{framework}");
        for offset in offsets {
            let name = text(offset, "name")?;
            let expected = layout.offset(name).with_context(|| name.to_owned())?;
            assert_eq!(number(offset, "value")?, expected, "{flavour:?}: {name}");
        }
    }
    Ok(())
}

#[test]
fn a_stripped_executable_tells_the_same() -> Result<()> {
    let [whole, stripped] = [Flavour::Default, Flavour::Stripped].map(|flavour| {
        let (path, argument) = target(flavour)?;
        Ok::<_, anyhow::Error>((inspect_json(&["--exe", &argument])?, fs::read(path)?))
    });
    let ((mut whole, whole_file), (stripped, stripped_file)) = (whole?, stripped?);
    one_witness(&mut whole["frameworks"][0])?;
    // The linker leaves out the tables at the end of the file and moves nothing.
    assert_eq!(whole["frameworks"], stripped["frameworks"]);
    assert_ne!(whole["build_id"], stripped["build_id"]);
    for site in array(&stripped["frameworks"][0], "sites")? {
        let at = usize::try_from(number(site, "file_offset")?)?;
        assert_eq!(stripped_file[at - 16..at + 32], whole_file[at - 16..at + 32], "{site}");
    }
    Ok(())
}

#[test]
fn the_build_id_is_the_files() -> Result<()> {
    for flavour in Flavour::ALL {
        let (path, argument) = target(flavour)?;
        let report = inspect_json(&["--exe", &argument])?;
        let build_id = text(&report, "build_id")?;
        let digits =
            build_id.as_bytes().chunks(2).map(|pair| Ok(u8::from_str_radix(std::str::from_utf8(pair)?, 16)?));
        let bytes = digits.collect::<Result<Vec<_>>>()?;
        // The note consists of the lengths of owner and content, the type 3 (NT_GNU_BUILD_ID), the owner, and the
        // content.
        let length = u32::try_from(bytes.len())?;
        let head = [4, length, 3].map(u32::to_le_bytes).concat();
        let note = [&head[..], b"GNU\0", &bytes].concat();
        let file = fs::read(path)?;
        ensure!(
            file.windows(note.len()).any(|window| window == note),
            "{flavour:?}: {build_id} is in no note"
        );
    }
    Ok(())
}

#[test]
fn of_a_process_it_tells_what_is_in_place() -> Result<()> {
    for flavour in [Flavour::Default, Flavour::Pie] {
        let process = Process::start(Program::Kitex, flavour, &["server"])?;
        let pid = process.pid().to_string();
        let (_, path) = target(flavour)?;
        let of_file = inspect_json(&["--exe", &path])?;
        let check = |in_place: bool, words: &str| -> Result<()> {
            let mut report = inspect_json(&["--pid", &pid])?;
            assert_eq!(report["pid"], process.pid());
            let mut total = 0;
            for site in report["frameworks"][0]["sites"].as_array_mut().context("no sites")? {
                let taken = site.as_object_mut().and_then(|site| site.remove("in_place"));
                // The other sites are only probed on request.
                let expected = in_place && site["on_request"] == false;
                assert_eq!(taken, Some(json!(expected)), "{site}");
                total += usize::from(expected == in_place);
            }
            // Everything else equals the report about the file.
            let report = report.as_object_mut().context("no object")?;
            report.remove("pid");
            check_kernel(&report.remove("kernel").context("no kernel")?)?;
            assert_eq!(Some(&*report), of_file.as_object());
            let printed = inspect(&["--pid", &pid])?.stdout;
            ensure!(printed.starts_with(&format!("pid {pid} ({path}): can be watched\n")), "{printed}");
            assert_eq!(printed.matches(words).count(), total, "{printed}");
            Ok(())
        };
        check(false, "no probe in place")?;
        let agent = Agent::attach(&[process.pid()], &[])?;
        check(true, "a probe is in place")?;
        agent.terminate()?;
        check(false, "no probe in place")?;
    }
    Ok(())
}

/// The kernel has all features that the agent uses, since the tests run on it. For the others, there is a reason why
/// they are not used.
fn check_kernel(kernel: &Value) -> Result<()> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    assert_eq!(kernel["release"], release.trim());
    let features = kernel["features"].as_array().context("no features")?;
    for feature in features {
        ensure!(feature["why"].as_str().is_some_and(|why| why.len() > 10), "{feature}");
        // Linux before 5.15 has no perf links, and the agent does without.
        ensure!(feature["used"] == false || feature["present"] == true, "{feature}");
    }
    let present = |name: &str| {
        let feature = features.iter().find(|feature| feature["name"] == name);
        feature.with_context(|| format!("no {name}")).map(|feature| feature["present"] == true)
    };
    assert_eq!(present("kernel types (BTF)")?, Path::new("/sys/kernel/btf/vmlinux").exists());
    // The feature came with this release and was never removed.
    let number = |part: Option<&str>| part.and_then(|part| part.parse::<u32>().ok()).unwrap_or(0);
    let mut parts = release.split(['.', '-']);
    let release = (number(parts.next()), number(parts.next()));
    ensure!(release < (6, 6) || present("multi-uprobe links")?, "{kernel}");
    Ok(())
}

#[test]
fn inspecting_touches_nothing() -> Result<()> {
    let process = Process::kitex(&["server"])?;
    let sites = Sites::of(process.pid())?;
    let agent = Agent::attach(&[process.pid()], &[])?;
    // For a moment, the agent has a probe on itself.
    let measured = |line: &str| line.contains("a hit of a probe").then_some(());
    agent.wait_for_log(PATIENCE, measured)?;
    let before = BpfObjects::now()?;
    inspect_json(&["--pid", &process.pid().to_string()])?;
    // The objects that `inspect` created to test the kernel are gone, and those of the agent are still there.
    BpfObjects::wait_until_back(&before, Duration::from_secs(5))?;
    sites.check_probed()?;
    agent.terminate()?;
    Ok(())
}

#[test]
fn a_reader_that_goes_away_is_no_error() -> Result<()> {
    let (_, path) = target(Flavour::Stripped)?;
    for format in [&["--json"][..], &[]] {
        let mut command = Command::new(executable()?);
        command.args(["inspect", "--exe", &path]).args(format);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        drop(child.stdout.take());
        let output = child.wait_with_output()?;
        assert_eq!((output.status.code(), &*String::from_utf8_lossy(&output.stderr)), (Some(0), ""));
    }
    // A full disk is an error.
    let mut command = Command::new("sh");
    command.args(["-c", r#"exec "$0" inspect --exe "$1" > /dev/full"#]).arg(executable()?).arg(&path);
    let ended = run_command_to_end(&mut command, PATIENCE)?;
    ensure!(ended.code == Some(1) && ended.stderr.contains("can't write to stdout"), "{ended:#?}");
    Ok(())
}

#[test]
fn names_do_not_steer_the_terminal() -> Result<()> {
    let (path, _) = target(Flavour::Stripped)?;
    let directory = std::env::temp_dir().join(format!("monitor inspect {}", std::process::id()));
    fs::create_dir_all(&directory)?;
    let link = directory.join("red\u{1b}[31m\nand ü");
    let missing = directory.join("\u{9b}31m\u{7}");
    std::os::unix::fs::symlink(&path, &link)?;
    let [json, text, failure] =
        [(&["--json"][..], &link), (&[], &link), (&[], &missing)].map(|(args, path)| {
            let mut command = Command::new(executable()?);
            run_command_to_end(command.arg("inspect").args(args).arg("--exe").arg(path), PATIENCE)
        });
    fs::remove_dir_all(&directory)?;
    let report: Value = serde_json::from_str(&json?.stdout)?;
    assert_eq!(report["exe"].as_str(), link.to_str());
    let (text, failure) = (text?.stdout, failure?.stderr);
    ensure!(text.contains(r"red\u{1b}[31m\nand ü: can be watched"), "{text:?}");
    ensure!(failure.contains(r"\u{9b}31m\u{7} does not exist"), "{failure:?}");
    ensure!(!(text + &failure).contains(|c: char| c.is_control() && c != '\n'));
    Ok(())
}
