//! What is at work in a server while it is measured.

/// One of the things that a server is measured with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Condition {
    /// Nothing.
    Bare,
    /// Empty programs at the agent's sites.
    Empty,
    /// The same, attached by perf events: what tools pay that know no other way.
    EmptyByPerfEvents,
    /// The agent.
    Agent(Mode),
    /// The in-process library, and nothing attached.
    InProcess,
    /// Another tool, by its place among those that were given.
    Peer(usize),
}

/// How the agent runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// As it is by default.
    Plain,
    /// With a program that reads each call from its event socket.
    Events,
    /// With durations of a sample of the calls.
    Economy,
    /// With each read of the server's memory asked of the kernel.
    Asking,
    /// With its probes at the functions' first instructions, where other tools put theirs.
    Naive,
}

impl Condition {
    /// All that a Kitex server can be measured with, but peers.
    pub(super) const ALL: [Self; 9] = [
        Self::Bare,
        Self::Empty,
        Self::Agent(Mode::Plain),
        Self::Agent(Mode::Economy),
        Self::Agent(Mode::Events),
        Self::Agent(Mode::Asking),
        Self::Agent(Mode::Naive),
        Self::InProcess,
        Self::EmptyByPerfEvents,
    ];

    /// A short name without spaces; not of peers, which have names of their own.
    pub(super) fn key(self) -> &'static str {
        match self {
            Self::Bare => "bare",
            Self::Empty => "empty",
            Self::EmptyByPerfEvents => "empty_by_perf_events",
            Self::Agent(Mode::Plain) => "agent",
            Self::Agent(Mode::Events) => "events",
            Self::Agent(Mode::Economy) => "economy",
            Self::Agent(Mode::Asking) => "asking",
            Self::Agent(Mode::Naive) => "naive",
            Self::InProcess => "in_process",
            Self::Peer(_) => "peer",
        }
    }
}

impl Mode {
    /// Arguments of `run`, beside those that all modes have.
    pub(super) fn args(self) -> &'static [&'static str] {
        match self {
            Self::Plain | Self::Events => &[],
            Self::Economy => &["--latency", "economy"],
            Self::Asking => &["--reads", "kernel"],
            Self::Naive => &["--sites", "naive"],
        }
    }

    /// Whether it counts each call once.
    pub(super) fn counts_all(self) -> bool {
        self != Self::Naive
    }

    /// Whether it has the duration of each call.
    pub(super) fn times_all(self) -> bool {
        matches!(self, Self::Plain | Self::Events | Self::Asking)
    }
}
