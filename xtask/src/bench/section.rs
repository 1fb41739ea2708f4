//! What a part of the bench has found, and where that goes: the blocks of docs/overhead.md, the charts beside it, and
//! docs/overhead.json, which a later run is compared with.

use std::{collections::BTreeMap, fmt::Write as _, fs, path::Path};

use anyhow::{Context as _, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::maps::MapMemory;
use crate::process::{root, say};

const DOCUMENT: &str = "docs/overhead.md";
const NUMBERS: &str = "docs/overhead.json";

/// What one part has found.
#[derive(Debug, Default)]
pub(super) struct Section {
    /// The part's name.
    pub(super) part: &'static str,
    /// Blocks of the document, each with its text in Markdown. The first begins with where it was measured.
    pub(super) blocks: Vec<(&'static str, String)>,
    /// Charts, each with the name of its file.
    pub(super) charts: Vec<(&'static str, String)>,
    /// Everything, for programs.
    pub(super) results: Value,
    /// Figures that are comparable between runs, each with its name.
    pub(super) figures: BTreeMap<String, f64>,
    /// By what share a figure may be higher than in an earlier run.
    pub(super) tolerance: f64,
    /// Kernel memory of maps, which has a tolerance and an aim of its own.
    pub(super) maps: Option<MapMemory>,
}

/// Where and with what a part was measured.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Setting {
    /// The command that repeats it.
    pub(super) command: String,
    /// The day.
    pub(super) date: String,
    /// The commit of the code; empty in what was written before that was noted.
    #[serde(default)]
    pub(super) commit: String,
    /// The machine in one line.
    pub(super) machine: String,
    /// Releases of what was measured.
    pub(super) versions: String,
    /// The share of the machine's time that went to others.
    pub(super) others: f64,
    /// The share of the time in which the hypervisor had the processors.
    pub(super) steal: f64,
}

impl Setting {
    fn sentence(&self) -> String {
        let Self { command, date, commit, machine, versions, others, steal } = self;
        format!(
            "Written by `{command}` on {date}, at commit {commit}: {versions}; on {machine}, of which other processes used {:.1} % \
             meanwhile and the hypervisor took {:.1} %.",
            others * 100.0,
            steal * 100.0
        )
    }
}

/// A part as it is kept in JSON.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Kept {
    #[serde(flatten)]
    setting: Setting,
    /// The share by which a figure may be higher in another run.
    tolerance: f64,
    figures: BTreeMap<String, f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    maps: Option<MapMemory>,
    results: Value,
}

/// All parts by name, as they are kept in JSON.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Numbers(BTreeMap<String, Kept>);

impl Numbers {
    pub(super) fn read(file: &Path) -> Result<Self> {
        let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        serde_json::from_str(&text).with_context(|| format!("{} is not written by the bench", file.display()))
    }

    pub(super) fn write(&self, file: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)? + "\n";
        fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
    }

    pub(super) fn add(&mut self, section: &Section, setting: &Setting) {
        let Section { part, results, figures, tolerance, maps, .. } = section;
        let kept = Kept {
            setting: setting.clone(),
            tolerance: *tolerance,
            figures: figures.clone(),
            maps: maps.clone(),
            results: results.clone(),
        };
        self.0.insert((*part).to_owned(), kept);
    }

    /// Fails when a figure of these is higher than in an earlier run by more than that allows, or is there no longer, and when
    /// maps take more than was aimed at.
    pub(super) fn check_against(&self, baseline: &Self) -> Result<()> {
        let mut compared = 0;
        let mut complaints = String::new();
        for (part, now) in &self.0 {
            let then = baseline.0.get(part);
            if let Some(maps) = &now.maps {
                compared += maps.compare(then.and_then(|then| then.maps.as_ref()), &mut complaints)?;
            }
            let Some(then) = then else { continue };
            for (name, old) in &then.figures {
                compared += 1;
                let limit = old * (1.0 + then.tolerance);
                match now.figures.get(name) {
                    None => writeln!(complaints, "{part}: {name} is not measured any longer")?,
                    Some(new) if *new > limit => {
                        writeln!(
                            complaints,
                            "{part}: {name} is {new:.2}, at most {limit:.2} is allowed (it was {old:.2})"
                        )?;
                    }
                    Some(_) => {}
                }
            }
        }
        ensure!(compared > 0, "the baseline has nothing of what was measured");
        if !complaints.is_empty() {
            bail!(
                "worse than the baseline or the aim; if that is meant to be, write a new one with --write:\n{complaints}"
            );
        }
        say(&format!("{compared} figures are no worse than in the baseline"));
        Ok(())
    }
}

/// Writes blocks, charts and numbers of some parts; the rest of the document stays as it is.
pub(super) fn write(sections: &[(Section, Setting)]) -> Result<()> {
    let (document, numbers) = (root().join(DOCUMENT), root().join(NUMBERS));
    let mut text =
        fs::read_to_string(&document).with_context(|| format!("cannot read {}", document.display()))?;
    let mut kept = if numbers.exists() { Numbers::read(&numbers)? } else { Numbers::default() };
    for (section, setting) in sections {
        for (number, (name, block)) in section.blocks.iter().enumerate() {
            let sentence = if number == 0 { setting.sentence() + "\n\n" } else { String::new() };
            text = replace(&text, name, &format!("{sentence}{block}"))?;
        }
        for (file, chart) in &section.charts {
            fs::write(root().join("docs").join(file), chart)
                .with_context(|| format!("cannot write {file}"))?;
        }
        kept.add(section, setting);
    }
    fs::write(&document, text).with_context(|| format!("cannot write {}", document.display()))?;
    kept.write(&numbers)?;
    say(&format!("written: {DOCUMENT}, {NUMBERS}"));
    Ok(())
}

/// The document with another text between the marks of a block.
fn replace(document: &str, block: &str, text: &str) -> Result<String> {
    let (begin, end) = (format!("<!-- bench: {block} -->\n"), "<!-- bench: end -->");
    let parts =
        document.split_once(&begin).and_then(|(before, rest)| Some((before, rest.split_once(end)?.1)));
    let (before, after) = parts.with_context(|| format!("{DOCUMENT} has no block `{}`", begin.trim_end()))?;
    Ok(format!("{before}{begin}\n{}\n\n{end}{after}", text.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(figures: &[(&str, f64)]) -> Numbers {
        let figures = figures.iter().map(|(name, figure)| ((*name).to_owned(), *figure)).collect();
        let section = Section { part: "matrix", figures, tolerance: 0.1, ..Section::default() };
        let mut numbers = Numbers::default();
        numbers.add(&section, &Setting::default());
        numbers
    }

    #[test]
    fn who_reads_a_block_sees_which_code_was_measured_and_how() {
        let setting = Setting {
            command: "cargo xtask bench --write".to_owned(),
            date: "2026-11-27".to_owned(),
            commit: "abc1234".to_owned(),
            ..Setting::default()
        };
        let text = setting.sentence();
        let expected = "Written by `cargo xtask bench --write` on 2026-11-27, at commit abc1234: ";
        assert!(text.starts_with(expected), "{text}");
        // What was written before commits were noted can be read.
        let mut old = serde_json::to_value(&setting).unwrap();
        old.as_object_mut().unwrap().remove("commit");
        assert_eq!(serde_json::from_value::<Setting>(old).unwrap().commit, "");
    }

    #[test]
    fn what_is_between_the_marks_is_replaced_and_nothing_else() {
        let document = "# A\n<!-- bench: a -->\nold\n<!-- bench: end -->\nkept\n<!-- bench: b -->\nx\n<!-- bench: end -->\n";
        let once = replace(document, "a", "new\n").unwrap();
        let expected = "# A\n<!-- bench: a -->\n\nnew\n\n<!-- bench: end -->\nkept\n<!-- bench: b -->\nx\n<!-- bench: end -->\n";
        assert_eq!(once, expected);
        assert_eq!(replace(&once, "a", "new").unwrap(), once);
        assert!(replace(&once, "c", "").is_err());
    }

    #[test]
    fn a_figure_may_be_lower_and_a_little_higher() {
        let baseline = numbers(&[("ratio", 2.0)]);
        numbers(&[("ratio", 0.5)]).check_against(&baseline).unwrap();
        numbers(&[("ratio", 2.19), ("another", 7.0)]).check_against(&baseline).unwrap();
        let error = numbers(&[("ratio", 2.3)]).check_against(&baseline).unwrap_err().to_string();
        assert!(error.contains("ratio is 2.30, at most 2.20 is allowed (it was 2.00)"), "{error}");
    }

    #[test]
    fn what_is_not_measured_fails() {
        assert!(numbers(&[]).check_against(&numbers(&[("ratio", 2.0)])).is_err());
        assert!(numbers(&[("ratio", 1.0)]).check_against(&Numbers::default()).is_err());
    }

    /// The programs, of which one figure never changes.
    fn programs(map_bytes: Option<u64>) -> Numbers {
        let figures = BTreeMap::from([("instructions".to_owned(), 10.0)]);
        let maps = map_bytes.map(|bytes| MapMemory::new(2, BTreeMap::from([("run".to_owned(), bytes)])));
        let section = Section { part: "programs", figures, maps, ..Section::default() };
        let mut numbers = Numbers::default();
        numbers.add(&section, &Setting::default());
        numbers
    }

    #[test]
    fn maps_that_take_more_fail_and_so_does_a_baseline_without_them() {
        let now = programs(Some(7_000_000));
        now.check_against(&programs(Some(7_000_000))).unwrap();
        let error = now.check_against(&programs(Some(6_000_000))).unwrap_err().to_string();
        assert!(error.contains("have 7000000 bytes, at most 6120000 are allowed"), "{error}");
        for without in [programs(None), numbers(&[("ratio", 1.0)])] {
            let error = now.check_against(&without).unwrap_err().to_string();
            assert!(error.contains("--only programs --write"), "{error}");
        }
    }

    #[test]
    fn numbers_are_read_as_they_were_written() {
        let file = root().join(format!("target/numbers-{}.json", std::process::id()));
        let mut written = numbers(&[("ratio", 2.5)]);
        written.0.extend(programs(Some(7_000_000)).0);
        written.write(&file).unwrap();
        let read = Numbers::read(&file).unwrap();
        fs::remove_file(&file).unwrap();
        assert_eq!(read.0["matrix"].figures["ratio"].to_bits(), 2.5_f64.to_bits());
        assert!(read.0["matrix"].maps.is_none());
        written.check_against(&read).unwrap();
    }

    #[test]
    fn the_document_has_a_place_for_everything() {
        let document = fs::read_to_string(root().join(DOCUMENT)).unwrap();
        for block in [
            "matrix", "service", "agent", "planning", "sweeps", "stalls", "pipeline", "programs", "steps",
            "scrapes",
        ] {
            replace(&document, block, "").unwrap();
        }
    }
}
