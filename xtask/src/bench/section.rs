//! The results of a part of the bench, and where they go: the blocks of docs/overhead.md, its charts, and
//! docs/overhead.json, with which later runs are compared.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use anyhow::{Context as _, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::maps::MapMemory;
use crate::process::{root, say};

const DOCUMENT: &str = "docs/overhead.md";
const NUMBERS: &str = "docs/overhead.json";
/// The part whose numbers all depend on the kernel: its translation of programs, and the memory of maps.
pub(super) const PROGRAMS: &str = "programs";

/// The results of one part.
#[derive(Debug, Default)]
pub(super) struct Section {
    /// The part's name.
    pub(super) part: &'static str,
    /// Blocks of the document, each with its text in Markdown. The first one states the setting.
    pub(super) blocks: Vec<(&'static str, String)>,
    /// Charts by file name.
    pub(super) charts: Vec<(&'static str, String)>,
    /// All results, in machine-readable form.
    pub(super) results: Value,
    /// Figures that are comparable between runs, by name.
    pub(super) figures: BTreeMap<String, f64>,
    /// The share by which a figure may be higher than in an earlier run.
    pub(super) tolerance: f64,
    /// The same for figures with a tolerance of their own.
    pub(super) tolerances: BTreeMap<String, f64>,
    /// Names of figures that are indistinguishable from noise.
    pub(super) noise: BTreeSet<String>,
    /// Kernel memory of maps, with a tolerance and an aim of its own.
    pub(super) maps: Option<MapMemory>,
}

/// Where, when and on what a part was measured.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Setting {
    /// The command that measures it again.
    pub(super) command: String,
    /// The day.
    pub(super) date: String,
    /// The commit of the code; empty in older files.
    #[serde(default)]
    pub(super) commit: String,
    /// The machine in one line.
    pub(super) machine: String,
    /// Releases of the measured software.
    pub(super) versions: String,
    /// The share of the machine's time that other processes used.
    pub(super) others: f64,
    /// The share of the time that the hypervisor took.
    pub(super) steal: f64,
}

impl Setting {
    /// Returns the text of one of the part's blocks. The first one is preceded by the setting.
    fn headed(&self, number: usize, block: &str) -> String {
        if number == 0 { format!("{}\n\n{block}", self.sentence()) } else { block.to_owned() }
    }

    fn sentence(&self) -> String {
        let Self { command, date, commit, machine, versions, others, steal } = self;
        format!(
            "Written by `{command}` on {date}, at commit {commit}: {versions}; on {machine}, of which other processes used {:.1} % \
             meanwhile and the hypervisor took {:.1} %.",
            others * 100.0,
            steal * 100.0
        )
    }

    /// Returns 6 and 18 for a machine with Linux 6.18.44. The third number is a bug-fix release.
    fn kernel(&self) -> Option<(&str, &str)> {
        let (_, release) = self.machine.rsplit_once("Linux ")?;
        let mut numbers = release.split(['.', ' ']);
        Some((numbers.next()?, numbers.next()?))
    }
}

/// A part as stored in JSON.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Kept {
    #[serde(flatten)]
    setting: Setting,
    /// The share by which a figure may be higher in a later run.
    tolerance: f64,
    /// The same for figures with a tolerance of their own.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    tolerances: BTreeMap<String, f64>,
    figures: BTreeMap<String, f64>,
    /// For this run only: later runs are not compared with them.
    #[serde(skip)]
    noise: BTreeSet<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    maps: Option<MapMemory>,
    results: Value,
}

impl Kept {
    /// Returns the share by which a figure may be higher than in an earlier run. That run's tolerance does not count:
    /// the code may have become stricter since.
    fn tolerance_of(&self, figure: &str) -> f64 {
        self.tolerances.get(figure).copied().unwrap_or(self.tolerance)
    }

    /// Whether an earlier run's numbers for the part are not comparable with these because its kernel was different.
    fn is_of_another_kernel(&self, part: &str, then: &Self) -> bool {
        part == PROGRAMS && self.setting.kernel() != then.setting.kernel()
    }

    /// Compares a part's figures with those of an earlier run, which may lack the part.
    fn compare(&self, part: &str, then: Option<&Self>, found: &mut Comparison) {
        let none = BTreeMap::new();
        let then = then.map_or(&none, |then| &then.figures);
        let measured = self.figures.keys().chain(&self.noise);
        for name in measured.filter(|name| !then.contains_key(*name)) {
            found.notes.push(format!("{part}: {name} is not in the baseline"));
        }
        for (name, old) in then {
            if self.noise.contains(name) {
                found.noise += 1;
                found.notes.push(format!("{part}: {name} can't be told from noise"));
                continue;
            }
            let Some(new) = self.figures.get(name) else {
                found.complain(&format!("{part}: {name} is not measured any longer"));
                continue;
            };
            found.compared += 1;
            let limit = old * (1.0 + self.tolerance_of(name));
            if *new > limit {
                found.complain(&format!(
                    "{part}: {name} is {new:.2}, at most {limit:.2} is allowed (it was {old:.2})"
                ));
            }
        }
    }
}

/// The result of a comparison with an earlier run.
#[derive(Debug, Default)]
struct Comparison {
    /// Number of figures that were compared.
    compared: usize,
    /// Number of the earlier run's figures that are indistinguishable from noise this time.
    noise: usize,
    /// Number of parts left out because the earlier run had a different kernel.
    left_out: usize,
    /// What got worse, one per line.
    complaints: String,
    /// What could not be compared.
    notes: Vec<String>,
}

impl Comparison {
    fn complain(&mut self, complaint: &str) {
        self.complaints.push_str(complaint);
        self.complaints.push('\n');
    }

    fn summary(&self) -> String {
        format!("{} figures compared, {} not to be told from noise", self.compared, self.noise)
    }
}

/// All parts by name, as stored in JSON.
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
        let Section { part, results, figures, tolerance, tolerances, noise, maps, .. } = section;
        let kept = Kept {
            setting: setting.clone(),
            tolerance: *tolerance,
            tolerances: tolerances.clone(),
            figures: figures.clone(),
            noise: noise.clone(),
            maps: maps.clone(),
            results: results.clone(),
        };
        self.0.insert((*part).to_owned(), kept);
    }

    /// Fails if a figure is missing or exceeds an earlier run's by more than its tolerance, if maps take more than
    /// the aim, or if nothing can be compared, unless all parts are of another kernel. Reports what can't be
    /// compared.
    pub(super) fn check_against(&self, baseline: &Self) -> Result<()> {
        let found = self.compare(baseline)?;
        for note in &found.notes {
            say(&format!("not compared: {note}"));
        }
        if !found.complaints.is_empty() {
            bail!(
                "worse than the baseline or the aim; if that is meant to be, write a new one with --write:\n{}",
                found.complaints
            );
        }
        if found.left_out > 0 && found.left_out == self.0.len() {
            return Ok(());
        }
        let summary = found.summary();
        ensure!(found.compared > 0, "{summary}: the baseline has nothing else of what was measured");
        say(&format!("{summary}: none has become worse"));
        Ok(())
    }

    fn compare(&self, baseline: &Self) -> Result<Comparison> {
        let mut found = Comparison::default();
        for (part, now) in &self.0 {
            let then = baseline.0.get(part);
            if then.is_some_and(|then| now.is_of_another_kernel(part, then)) {
                found.left_out += 1;
                found.notes.push(format!("{part}: the file has those of another kernel"));
                continue;
            }
            if let Some(maps) = &now.maps {
                let then = then.and_then(|then| then.maps.as_ref());
                found.compared += maps.compare(then, &mut found.complaints)?;
            }
            now.compare(part, then, &mut found);
        }
        Ok(found)
    }
}

/// Writes the blocks, charts and numbers of these parts; keeps the rest of the document.
pub(super) fn write(sections: &[(Section, Setting)]) -> Result<()> {
    let (document, numbers) = (root().join(DOCUMENT), root().join(NUMBERS));
    let mut text =
        fs::read_to_string(&document).with_context(|| format!("cannot read {}", document.display()))?;
    let mut kept = if numbers.exists() { Numbers::read(&numbers)? } else { Numbers::default() };
    for (section, setting) in sections {
        for (number, (name, block)) in section.blocks.iter().enumerate() {
            text = replace(&text, name, &setting.headed(number, block))?;
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

/// Returns the document with a block's text replaced.
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
    use crate::bench::{matrix, sweeps};

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
        // Files without a commit can still be read.
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

    /// Returns the counts of a program, some of which may increase a little and others not at all.
    fn counts(helper_calls: f64, instructions: f64, verified: f64) -> Numbers {
        let figures =
            [("helper calls", helper_calls), ("instructions", instructions), ("verified", verified)];
        let section = Section {
            part: PROGRAMS,
            figures: figures.map(|(name, figure)| (name.to_owned(), figure)).into(),
            tolerance: 0.15,
            tolerances: [("helper calls", 0.0), ("instructions", 0.05)]
                .map(|(name, tolerance)| (name.to_owned(), tolerance))
                .into(),
            ..Section::default()
        };
        let mut numbers = Numbers::default();
        numbers.add(&section, &Setting::default());
        numbers
    }

    #[test]
    fn one_more_call_of_a_helper_is_too_many() {
        let mut baseline = counts(19.0, 3000.0, 100_000.0);
        counts(19.0, 3140.0, 114_000.0).check_against(&baseline).unwrap();
        counts(18.0, 2000.0, 50_000.0).check_against(&baseline).unwrap();
        let complaints = |now: &Numbers, then: &Numbers| now.compare(then).unwrap().complaints;
        let expected = "programs: helper calls is 20.00, at most 19.00 is allowed (it was 19.00)\n";
        assert_eq!(complaints(&counts(20.0, 3000.0, 100_000.0), &baseline), expected);
        assert!(counts(20.0, 3000.0, 100_000.0).check_against(&baseline).is_err());
        // An older baseline, without tolerances of its own, does not relax the check.
        baseline.0.get_mut("programs").unwrap().tolerances.clear();
        assert_eq!(complaints(&counts(20.0, 3000.0, 100_000.0), &baseline), expected);
        let text = complaints(&counts(19.0, 3160.0, 116_000.0), &baseline);
        assert!(text.contains("instructions is 3160.00, at most 3150.00"), "{text}");
        assert!(text.contains("verified is 116000.00, at most 115000.00"), "{text}");
    }

    #[test]
    fn what_cannot_be_compared_is_told_and_does_not_fail() {
        let baseline = numbers(&[("ratio", 2.0), ("gone", 1.0)]);
        let mut now = numbers(&[("ratio", 2.0), ("new", 7.0)]);
        assert!(now.check_against(&baseline).is_err());
        now.0.get_mut("matrix").unwrap().noise.insert("gone".to_owned());
        now.check_against(&baseline).unwrap();
        let found = now.compare(&baseline).unwrap();
        assert_eq!(
            found.notes,
            ["matrix: new is not in the baseline", "matrix: gone can't be told from noise"]
        );
        assert_eq!(found.summary(), "1 figures compared, 1 not to be told from noise");
        assert_eq!(found.complaints, "");
    }

    #[test]
    fn what_is_in_a_part_that_the_baseline_lacks_is_told() {
        let baseline = numbers(&[("ratio", 2.0)]);
        let mut now = numbers(&[("ratio", 2.0)]);
        now.0.extend(counts(19.0, 3000.0, 100_000.0).0);
        now.check_against(&baseline).unwrap();
        let notes = now.compare(&baseline).unwrap().notes;
        let expected = ["helper calls", "instructions", "verified"];
        assert_eq!(notes, expected.map(|name| format!("programs: {name} is not in the baseline")));
    }

    #[test]
    fn where_all_is_noise_nothing_was_compared_and_that_fails() {
        let baseline = numbers(&[("ratio", 2.0), ("another", 1.0)]);
        let mut now = numbers(&[]);
        now.0.get_mut("matrix").unwrap().noise =
            ["ratio", "another", "new"].map(str::to_owned).into_iter().collect();
        let error = now.check_against(&baseline).unwrap_err().to_string();
        assert!(error.starts_with("0 figures compared, 2 not to be told from noise: "), "{error}");
        let notes = now.compare(&baseline).unwrap().notes;
        assert_eq!(notes[0], "matrix: new is not in the baseline");
        assert_eq!(notes.len(), 3, "{notes:?}");
    }

    #[test]
    fn what_is_not_measured_fails() {
        let error = |now: &Numbers, then: &Numbers| now.check_against(then).unwrap_err().to_string();
        let text = error(&numbers(&[]), &numbers(&[("ratio", 2.0)]));
        assert!(text.contains("matrix: ratio is not measured any longer"), "{text}");
        let text = error(&numbers(&[("ratio", 1.0)]), &Numbers::default());
        assert!(text.starts_with("0 figures compared, 0 not to be told from noise: "), "{text}");
    }

    /// Returns the programs, with one figure that never changes.
    fn programs(map_bytes: Option<u64>) -> Numbers {
        let figures = BTreeMap::from([("instructions".to_owned(), 10.0)]);
        let maps = map_bytes.map(|bytes| MapMemory::new(2, BTreeMap::from([("run".to_owned(), bytes)])));
        let section = Section { part: PROGRAMS, figures, maps, ..Section::default() };
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

    fn on(kernel: &str, mut numbers: Numbers) -> Numbers {
        for kept in numbers.0.values_mut() {
            kept.setting.machine = format!("Some CPU, 2 processors, virtual machine, Linux {kernel} x86_64");
        }
        numbers
    }

    #[test]
    fn programs_are_compared_on_the_same_kernel_only() {
        let baseline = on("6.18.44", counts(19.0, 3000.0, 100_000.0));
        let more = counts(20.0, 3000.0, 100_000.0);
        for same in ["6.18.44", "6.18.2", "6.18"] {
            assert!(on(same, more.clone()).check_against(&baseline).is_err(), "{same}");
        }
        for another in ["6.1.0", "6.12.9", "7.18.44"] {
            let now = on(another, more.clone());
            now.check_against(&baseline).unwrap();
            let found = now.compare(&baseline).unwrap();
            assert_eq!(found.notes, ["programs: the file has those of another kernel"], "{another}");
            assert_eq!(found.compared, 0, "{another}");
        }
        // The memory of maps depends on the kernel, too.
        let maps = on("6.18.44", programs(Some(6_000_000)));
        on("6.1.0", programs(Some(12_000_000))).check_against(&maps).unwrap();
    }

    #[test]
    fn other_parts_are_compared_on_any_kernel_and_must_be() {
        let both = |ratio: f64| {
            let mut both = numbers(&[("ratio", ratio)]);
            both.0.extend(counts(19.0, 3000.0, 100_000.0).0);
            both
        };
        let baseline = on("6.18.44", both(2.0));
        let mut now = on("6.1.0", both(2.0));
        now.check_against(&baseline).unwrap();
        assert!(on("6.1.0", both(3.0)).check_against(&baseline).is_err());
        let matrix = now.0.get_mut("matrix").unwrap();
        matrix.figures.clear();
        matrix.noise.insert("ratio".to_owned());
        let error = now.check_against(&baseline).unwrap_err().to_string();
        assert!(error.starts_with("0 figures compared, 1 not to be told from noise: "), "{error}");
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
    fn the_document_says_of_the_matrix_and_the_sweeps_what_the_numbers_are() {
        let document = fs::read_to_string(root().join(DOCUMENT)).unwrap();
        let numbers = Numbers::read(&root().join(NUMBERS)).unwrap();
        let read = "what `cargo xtask bench --write` has written";
        let results = |part: &str| numbers.0[part].results.clone();
        let cells: Vec<matrix::Found> = serde_json::from_value(results("matrix")).expect(read);
        let swept: sweeps::Swept = serde_json::from_value(results("sweeps")).expect(read);
        for section in [matrix::section(&cells), sweeps::section(&swept)] {
            let kept = &numbers.0[section.part];
            for (number, (name, block)) in section.blocks.iter().enumerate() {
                let expected = replace(&document, name, &kept.setting.headed(number, block)).unwrap();
                let differs =
                    expected.lines().zip(document.lines()).find(|(expected, line)| expected != line);
                assert!(expected == document, "{DOCUMENT}, block {name}: {differs:#?}");
            }
            assert!(section.figures.keys().eq(kept.figures.keys()), "{:?}", section.figures);
        }
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
