//! The conditions under which a server is measured.

/// What is active in, or attached to, the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Condition {
    /// Nothing.
    Bare,
    /// Empty programs at the agent's sites.
    Empty,
    /// The same, attached by perf events: the cost for tools that know no other way.
    EmptyByPerfEvents,
    /// The agent.
    Agent(Mode),
    /// The in-process library, with nothing attached.
    InProcess,
    /// Another tool, by its index among the given ones.
    Peer(usize),
}

/// How the agent runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// With its defaults.
    Plain,
    /// With a reader of all calls at its event socket.
    Events,
    /// With durations of a sample of the calls.
    Economy,
    /// With the kernel's helper for each read of the server's memory.
    Asking,
    /// With reads by the server's page tables wherever these work.
    Tables,
    /// With its probes at the functions' first instructions, like other tools.
    Naive,
}

impl Condition {
    /// All conditions for a Kitex server, except peers.
    pub(super) const ALL: [Self; 10] = [
        Self::Bare,
        Self::Empty,
        Self::Agent(Mode::Plain),
        Self::Agent(Mode::Economy),
        Self::Agent(Mode::Events),
        Self::Agent(Mode::Asking),
        Self::Agent(Mode::Tables),
        Self::Agent(Mode::Naive),
        Self::InProcess,
        Self::EmptyByPerfEvents,
    ];

    /// Returns a short name without spaces. Peers have names of their own instead.
    pub(super) fn key(self) -> &'static str {
        match self {
            Self::Bare => "bare",
            Self::Empty => "empty",
            Self::EmptyByPerfEvents => "empty_by_perf_events",
            Self::Agent(Mode::Plain) => "agent",
            Self::Agent(Mode::Events) => "events",
            Self::Agent(Mode::Economy) => "economy",
            Self::Agent(Mode::Asking) => "asking",
            Self::Agent(Mode::Tables) => "tables",
            Self::Agent(Mode::Naive) => "naive",
            Self::InProcess => "in_process",
            Self::Peer(_) => "peer",
        }
    }
}

impl Mode {
    /// Returns arguments of `run` in addition to those common to all modes.
    pub(super) fn args(self) -> &'static [&'static str] {
        match self {
            Self::Plain | Self::Events => &[],
            Self::Economy => &["--latency", "economy"],
            Self::Asking => &["--reads", "kernel"],
            Self::Tables => &["--reads", "tables"],
            Self::Naive => &["--sites", "naive"],
        }
    }

    /// Whether each call is counted once.
    pub(super) fn counts_all(self) -> bool {
        self != Self::Naive
    }

    /// Whether the duration of each call is recorded.
    pub(super) fn times_all(self) -> bool {
        matches!(self, Self::Plain | Self::Events | Self::Asking | Self::Tables)
    }
}
