//! The eBPF object in the kernel: its maps, those of its programs that are wanted, and links from sites to them.

use std::{
    io,
    num::NonZeroU32,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::Path,
    thread,
};

use aya::{
    Ebpf, EbpfError, EbpfLoader, include_bytes_aligned,
    programs::{
        ProgramError, UProbe,
        uprobe::{UProbeAttachLocation, UProbeLink, UProbeScope},
    },
};

use super::{
    BpfError, RunTimes,
    multi::{self, MultiPrograms},
};

/// Built by `cargo xtask ebpf`, kept in the repository: building the agent needs cargo only.
static OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/monitor.bpf.o"));

/// What probes hang on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ProbeLinks {
    /// Multi-uprobe links where the kernel has them, else perf events.
    #[default]
    Best,
    /// A perf event for each site, as before Linux 6.6. To test that, and to compare with.
    Perf,
}

/// The object, loaded.
pub(super) struct Object {
    pub(super) ebpf: Ebpf,
    /// The programs, where multi-uprobe links are used: aya has then loaded none.
    multi: Option<MultiPrograms>,
}

/// From one site or several to a program. The kernel takes its time to take one away.
pub(super) enum Link {
    Multi(OwnedFd),
    Perf(UProbeLink),
}

impl Link {
    /// Takes the probes away, as dropping it does, but all of these side by side.
    pub(super) fn detach_all(links: impl IntoIterator<Item = Self>) {
        thread::scope(|scope| {
            for link in links {
                scope.spawn(move || match link {
                    Self::Multi(link) => drop(link),
                    Self::Perf(link) => drop(link),
                });
            }
        });
    }
}

impl Object {
    /// Loads these programs, with the maps as the loader is told to make them.
    pub(super) fn load(
        loader: &mut EbpfLoader<'_>,
        programs: &[&'static str],
        links: ProbeLinks,
    ) -> Result<Self, EbpfError> {
        let mut ebpf = loader
            // No program asks for a kernel type, and parsing the kernel's takes 30 ms.
            .btf(None)
            .load(OBJECT)?;
        if links == ProbeLinks::Best && multi::works() {
            let multi = MultiPrograms::load(OBJECT, &ebpf, programs)?;
            return Ok(Self { ebpf, multi: Some(multi) });
        }
        for name in programs {
            program(&mut ebpf, name)?.load()?;
        }
        Ok(Self { ebpf, multi: None })
    }

    /// Puts a program at offsets of an executable, for one process only; errors say that this was for an `action`.
    pub(super) fn attach(
        &mut self,
        name: &str,
        exe: &Path,
        pid: u32,
        offsets: &[u64],
        action: &'static str,
    ) -> Result<Vec<Link>, BpfError> {
        let Some(pid) = NonZeroU32::new(pid) else {
            return Err(BpfError::from_io(action, io::ErrorKind::InvalidInput.into()));
        };
        if let Some(multi) = &self.multi {
            let link = multi.attach(name, exe, pid.get(), offsets);
            return link
                .map(|link| vec![Link::Multi(link)])
                .map_err(|error| BpfError::from_io(action, error));
        }
        let failed = |error| BpfError::from_program(action, error);
        let program = program(&mut self.ebpf, name).map_err(failed)?;
        let mut attach = |offset: &u64| {
            let location = UProbeAttachLocation::AbsoluteOffset(*offset);
            let link = program.attach(location, exe, UProbeScope::OneProcess(pid))?;
            program.take_link(link).map(Link::Perf)
        };
        offsets.iter().map(&mut attach).collect::<Result<_, _>>().map_err(failed)
    }

    /// How often a program has run and for how long; zeros if it is not loaded.
    pub(super) fn run_times(&self, name: &str) -> RunTimes {
        self.program(name).map(RunTimes::of).unwrap_or_default()
    }

    /// A loaded program.
    fn program(&self, name: &str) -> Option<BorrowedFd<'_>> {
        if let Some(multi) = &self.multi {
            return multi.get(name).map(OwnedFd::as_fd);
        }
        let program: &UProbe = self.ebpf.program(name)?.try_into().ok()?;
        program.fd().ok().map(|program| program.as_fd())
    }
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut UProbe, ProgramError> {
    let Some(program) = ebpf.program_mut(name) else {
        return Err(ProgramError::InvalidName { name: name.to_owned() });
    };
    program.try_into()
}
