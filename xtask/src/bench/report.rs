//! From what was measured to tables: medians, differences, ratios, and the document that keeps them.

use super::planning::{Plan, Planning};

/// The most that the agent should add, in units of what two empty programs add.
const AIM: f64 = 1.6;
/// The most that planning should take while nothing of the executable is in memory.
const PLANNING_MS: u32 = 300;
const PLANNING_MIB: u32 = 60;

/// What is at work in the server while it is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Condition {
    /// Nothing.
    Bare,
    /// Two empty programs at the agent's sites.
    Empty,
    /// The agent.
    Agent,
    /// The agent, and a program that reads each call from its event socket.
    Events,
    /// The in-process extension, and nothing attached.
    InProcess,
}

impl Condition {
    pub(super) const ALL: [Self; 5] = [Self::Bare, Self::Empty, Self::Agent, Self::Events, Self::InProcess];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Bare => "bare",
            Self::Empty => "two empty programs at the same sites",
            Self::Agent => "the agent",
            Self::Events => "the agent, and a reader of its events",
            Self::InProcess => "monitor-prometheus in process",
        }
    }
}

/// One measurement of a server under one condition.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Sample {
    /// Microseconds of processor time that the server took for a call.
    pub(super) server_us: f64,
    /// Calls in a second.
    pub(super) rate: f64,
    /// The median duration of a call as the client saw it, in microseconds.
    pub(super) p50_us: f64,
    /// The 99th percentile of it.
    pub(super) p99_us: f64,
}

/// What the agent itself took in one round.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct AgentCost {
    /// Microseconds of its processor time for a call.
    pub(super) cpu_us: f64,
    /// Its resident memory in MiB.
    pub(super) resident_mib: f64,
    /// Kernel memory of its maps in MiB.
    pub(super) maps_mib: f64,
    /// Milliseconds for loading and attaching.
    pub(super) attach_ms: f64,
    /// Milliseconds from its start until it was ready.
    pub(super) ready_ms: f64,
    /// Milliseconds from SIGTERM until it had detached and ended.
    pub(super) end_ms: f64,
}

/// Every condition measured once.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Round {
    samples: [Sample; 5],
    /// What the agent took itself.
    pub(super) agent: AgentCost,
    /// What it took itself with a reader of its events.
    pub(super) events: AgentCost,
}

impl Round {
    pub(super) fn sample(&self, condition: Condition) -> &Sample {
        &self.samples[condition as usize]
    }

    pub(super) fn set(&mut self, condition: Condition, sample: Sample) {
        self.samples[condition as usize] = sample;
    }

    /// What a condition adds to the bare server's time for a call, in microseconds.
    fn added(&self, condition: Condition) -> f64 {
        self.sample(condition).server_us - self.sample(Condition::Bare).server_us
    }
}

/// The middle and the ends of some numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Spread {
    pub(super) median: f64,
    min: f64,
    max: f64,
}

impl Spread {
    /// Of at least one number.
    pub(super) fn of(numbers: impl IntoIterator<Item = f64>) -> Self {
        let mut sorted = numbers.into_iter().collect::<Vec<_>>();
        sorted.sort_by(f64::total_cmp);
        let (middle, last) = (sorted.len() / 2, sorted.len() - 1);
        let median = if sorted.len() % 2 == 1 {
            sorted[middle]
        } else {
            f64::midpoint(sorted[middle - 1], sorted[middle])
        };
        Self { median, min: sorted[0], max: sorted[last] }
    }

    pub(super) fn show(self, digits: usize) -> String {
        let Self { median, min, max } = self;
        format!("{median:.digits$} ({min:.digits$} to {max:.digits$})")
    }
}

/// Where and with what the rounds were measured.
#[derive(Clone, Debug, Default)]
pub(super) struct Setting {
    /// The command that repeats it.
    pub(super) command: String,
    /// The day.
    pub(super) date: String,
    /// The machine in one line.
    pub(super) machine: String,
    /// Releases of what was measured.
    pub(super) versions: String,
    /// Seconds of calls in each measurement.
    pub(super) seconds: u32,
    /// Calls under way at once.
    pub(super) concurrency: u32,
    /// The share of the machine's time that went to others.
    pub(super) others: f64,
    /// The share of the time in which the hypervisor had the processors.
    pub(super) steal: f64,
}

/// All that was measured.
#[derive(Clone, Debug)]
pub(super) struct Report {
    /// At least one.
    pub(super) rounds: Vec<Round>,
    /// Nanoseconds for a call inside two empty programs, as the kernel times them: its own share of the next.
    pub(super) empty_ns: f64,
    /// Nanoseconds for a call inside the agent's programs, as the kernel times them.
    pub(super) programs_ns: f64,
    /// At least one plan of each kind.
    pub(super) planning: Planning,
}

impl Report {
    /// The tables and the ratios, in Markdown.
    pub(super) fn results(&self) -> String {
        format!("{}\n{}\n{}\n{}", self.servers(), self.ratios(), self.agent(), self.planning())
    }

    fn servers(&self) -> String {
        let heads = [
            "at work in the server",
            "server CPU per call, µs",
            "added, µs",
            "calls/s",
            "p50, µs",
            "p99, µs",
        ];
        let mut rows = vec![heads.map(str::to_owned).to_vec()];
        for condition in Condition::ALL {
            let added = match condition {
                Condition::Bare => String::new(),
                _ => self.added(condition).show(2),
            };
            let column = |number: fn(&Sample) -> f64, digits| {
                self.spread(|round| number(round.sample(condition))).show(digits)
            };
            rows.push(vec![
                condition.name().to_owned(),
                column(|sample| sample.server_us, 2),
                added,
                column(|sample| sample.rate, 0),
                column(|sample| sample.p50_us, 0),
                column(|sample| sample.p99_us, 0),
            ]);
        }
        table(&rows)
    }

    fn ratios(&self) -> String {
        let agent = self.added(Condition::Agent).median;
        let to = |condition| ratio(agent, self.added(condition).median);
        let beyond = self.spread(|round| round.added(Condition::Agent) - round.added(Condition::InProcess));
        format!(
            "- The agent adds {} times what two empty programs add (aim: at most {AIM}).\n\
             - The agent adds {} times what the in-process extension adds; the difference is {} µs per call.\n",
            to(Condition::Empty),
            to(Condition::InProcess),
            beyond.show(2),
        )
    }

    fn agent(&self) -> String {
        let row = |what: &str, number: fn(&AgentCost) -> f64, digits| {
            vec![what.to_owned(), self.spread(|round| number(&round.agent)).show(digits)]
        };
        let inside = (self.programs_ns - self.empty_ns) / 1000.0;
        table(&[
            vec!["the agent itself".to_owned(), "median (min to max)".to_owned()],
            row("its own CPU per call, µs", |agent| agent.cpu_us, 2),
            vec![
                "its own CPU per call with a reader of its events, µs".to_owned(),
                self.spread(|round| round.events.cpu_us).show(2),
            ],
            row("its resident memory, MiB", |agent| agent.resident_mib, 1),
            row("kernel memory of its maps, MiB", |agent| agent.maps_mib, 1),
            row("loading and attaching, ms", |agent| agent.attach_ms, 0),
            row("from its start until ready, ms", |agent| agent.ready_ms, 0),
            row("from SIGTERM until detached and ended, ms", |agent| agent.end_ms, 0),
            vec!["inside its eBPF programs per call, µs (one round)".to_owned(), format!("{inside:.2}")],
        ])
    }

    fn planning(&self) -> String {
        let Planning { size_mib, cold, warm } = &self.planning;
        let row = |what: &str, plans: &[Plan]| {
            let column = |number: fn(&Plan) -> f64| Spread::of(plans.iter().map(number)).show(1);
            vec![
                what.to_owned(),
                column(|plan| plan.wall_ms),
                column(|plan| plan.cpu_ms),
                column(|plan| plan.read_mib),
                column(|plan| plan.peak_mib),
            ]
        };
        let head = format!("planning ({size_mib:.1} MiB)");
        let plans = table(&[
            [&head, "time, ms", "CPU, ms", "read from disk, MiB", "peak memory, MiB"]
                .map(str::to_owned)
                .to_vec(),
            row("nothing of the executable in memory", cold),
            row("executable in memory", warm),
        ]);
        format!(
            "{plans}\n- Aim: at most {PLANNING_MS} ms and {PLANNING_MIB} MiB with nothing of it in memory.\n"
        )
    }

    fn added(&self, condition: Condition) -> Spread {
        self.spread(|round| round.added(condition))
    }

    fn spread(&self, number: impl Fn(&Round) -> f64) -> Spread {
        Spread::of(self.rounds.iter().map(number))
    }

    /// The document that keeps the results.
    pub(super) fn document(&self, setting: &Setting) -> String {
        let Setting { command, date, machine, versions, seconds, concurrency, others, steal } = setting;
        let rounds = self.rounds.len();
        let results = self.results();
        let percent = |share: f64| format!("{:.1} %", share * 100.0);
        format!(
            "# What watching costs\n\n\
             Written by `{command}` on {date}.\n\n\
             - Machine: {machine}. During the run, other processes used {} of it and the hypervisor took {}.\n\
             - Versions: {versions}.\n\n\
             ## Results\n\n\
             Medians of {rounds} rounds, and in parentheses the lowest and the highest.\n\n\
             {results}\n\
             ## How it was measured\n\n\
             - A real Kitex server and client over TTHeader with long connections: `Lookup` with a payload of 1 KB, \
               {concurrency} calls under way at all times, {seconds} s per measurement after 0.3 s that are not \
               counted.\n\
             - The server has a processor of its own and `GOMAXPROCS=1`. The client and the agent share another.\n\
             - Each round measures all five conditions, in an order that moves on by one from round to round. One more \
               round comes first and does not count.\n\
             - The first four conditions are measured on one and the same server process, which has no tracer: \
               programs and agent are attached to it and taken away again while it runs. The in-process extension is \
               in a second process of the same executable, which is idle meanwhile.\n\
             - The two empty programs (`r0 = 0; exit`) are at the sites that `monitor-agent inspect` names, with links \
               of the same kind. In the first round the kernel's statistics confirm that each ran once per call.\n\
             - Server CPU is the processor time of the server's process, user and kernel, hits of the probes and their \
               programs included, divided by the calls that the client counted.\n\
             - In each round the agent's counter and the number of durations in its histogram must equal the calls; \
               so must the in-process extension's counter, and the lines that the reader of events got. Otherwise the \
               benchmark fails.\n\
             - The agent is scraped once in a round, after the measurement.\n\
             - The time inside the eBPF programs is the kernel's own (`BPF_ENABLE_STATS`), from the first round, less \
               what the same statistics say of the empty ones.\n\
             - A plan is one run of `monitor-agent inspect --json`, from before its start to its end, on a copy of the \
               servers' executable, which has DWARF. The kernel is made to forget the copy before every other run; of \
               the agent's own file it is not.\n\n\
             ## How to read it\n\n\
             - *Added* is the difference to the bare server of the same round, so that slow changes of the machine \
               cancel out. A difference that is smaller than the spread beside it says nothing.\n\
             - What is added is added to each call, whatever the call does: 3 µs are a fifth of a handler that does \
               nothing, as here, and 1 % of one that takes 300 µs of CPU.\n\
             - Two empty programs are the floor of any monitor that probes these two places: the kernel's own work on \
               a hit, most of it the exception. It differs between machines more than anything else; ratios travel \
               better than microseconds.\n\
             - Calls per second and the durations are those of a machine without a processor to spare: the client \
               shares its own with the agent. They show that nothing breaks under full load, and are no measure of \
               the agent alone.\n",
            percent(*others),
            percent(*steal),
        )
    }
}

/// One number in units of another, where that makes sense.
fn ratio(of: f64, to: f64) -> String {
    if to > 0.0 { format!("{:.2}", of / to) } else { "(not to be told from noise)".to_owned() }
}

/// A table in Markdown, its columns as wide as they need to be; the first row is its head.
pub(super) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width =
        |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths = (0..columns).map(|column| width(column).unwrap_or(0)).collect::<Vec<_>>();
    let mut text = String::new();
    for (number, row) in rows.iter().enumerate() {
        line(&mut text, row, &widths, ' ');
        if number == 0 {
            line(&mut text, &[], &widths, '-');
        }
    }
    text
}

fn line(text: &mut String, cells: &[String], widths: &[usize], fill: char) {
    for (column, width) in widths.iter().enumerate() {
        let cell = cells.get(column).map_or("", String::as_str);
        let padding = width.saturating_sub(cell.chars().count());
        text.push_str("| ");
        text.push_str(cell);
        text.extend(std::iter::repeat_n(fill, padding));
        text.push(' ');
    }
    text.push_str("|\n");
}

/// A number of things, exact up to 2⁵³.
#[allow(clippy::cast_precision_loss, reason = "nothing here comes near 2⁵³")]
pub(super) fn float(number: u64) -> f64 {
    number as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A round in which a call takes the server so long under each condition.
    fn round(server_us: [f64; 5]) -> Round {
        let mut round = Round::default();
        for (condition, server_us) in Condition::ALL.into_iter().zip(server_us) {
            round.set(condition, Sample { server_us, rate: 50_000.0, p50_us: 300.0, p99_us: 900.0 });
        }
        round
    }

    fn report() -> Report {
        let rounds = vec![
            round([14.0, 16.0, 17.0, 17.2, 17.5]),
            round([20.0, 21.5, 22.5, 22.6, 23.5]),
            round([15.0, 17.5, 18.5, 18.9, 18.0]),
        ];
        let plan = |wall_ms| Plan { wall_ms, cpu_ms: 15.0, read_mib: 13.2, peak_mib: 12.5 };
        let planning =
            Planning { size_mib: 28.5, cold: vec![plan(45.0), plan(47.5)], warm: vec![plan(15.0)] };
        Report { rounds, empty_ns: 120.0, programs_ns: 770.0, planning }
    }

    #[test]
    fn medians() {
        assert_eq!(Spread::of([3.0, -1.0, 2.0]), Spread { median: 2.0, min: -1.0, max: 3.0 });
        assert_eq!(Spread::of([4.0, 1.0, 2.0, 8.0]), Spread { median: 3.0, min: 1.0, max: 8.0 });
        assert_eq!(Spread::of([7.0]), Spread { median: 7.0, min: 7.0, max: 7.0 });
        assert_eq!(Spread { median: 2.0, min: -1.0, max: 3.25 }.show(1), "2.0 (-1.0 to 3.2)");
    }

    #[test]
    fn differences_are_taken_within_a_round() {
        // The medians are 15.0, 17.5 and 18.5: their differences would be 2.5 and 3.5.
        let report = report();
        assert_eq!(report.added(Condition::Empty), Spread { median: 2.0, min: 1.5, max: 2.5 });
        assert_eq!(report.added(Condition::Agent), Spread { median: 3.0, min: 2.5, max: 3.5 });
        assert_eq!(report.added(Condition::InProcess), Spread { median: 3.5, min: 3.0, max: 3.5 });
    }

    #[test]
    fn ratios_are_of_what_is_added() {
        let ratios = report().ratios();
        assert!(ratios.contains("adds 1.50 times what two empty"), "{ratios}");
        assert!(ratios.contains("adds 0.86 times what the in-process"), "{ratios}");
        assert!(ratios.contains("the difference is -0.50 (-1.00 to 0.50) µs"), "{ratios}");
        assert_eq!(ratio(1.0, -0.1), "(not to be told from noise)");
    }

    #[test]
    fn results_in_markdown() {
        let results = report().results();
        assert!(
            results.contains("| bare                                  | 15.00 (14.00 to 20.00)  |"),
            "{results}"
        );
        assert!(
            results.contains("inside its eBPF programs per call, µs (one round)    | 0.65 "),
            "{results}"
        );
        assert!(
            results.contains("| nothing of the executable in memory | 46.2 (45.0 to 47.5) |"),
            "{results}"
        );
        assert!(results.contains("| planning (28.5 MiB) "), "{results}");
        let first = results.lines().take(6).map(|line| line.chars().count()).collect::<Vec<_>>();
        assert!(first.windows(2).all(|pair| pair[0] == pair[1]), "{results}");
        assert!(results.lines().nth(1).is_some_and(|line| line.starts_with("| ---")), "{results}");
    }

    #[test]
    fn the_document_holds_setting_and_results() {
        let setting =
            Setting { command: "cargo xtask bench".to_owned(), others: 0.021, ..Setting::default() };
        let document = report().document(&setting);
        assert!(
            document.contains("`cargo xtask bench`") && document.contains("used 2.1 % of it and"),
            "{document}"
        );
        assert!(document.contains(&report().servers()), "{document}");
    }
}
