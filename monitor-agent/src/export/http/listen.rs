//! Listen addresses: `HOST:PORT`, `:PORT`, `[v6]:PORT`.

use std::{
    fmt, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use socket2::{Domain, Protocol, Socket, Type};
use thiserror::Error;
use tokio::net::TcpListener;

use crate::{descriptors::advice_on_system, threads};

/// The most connections that wait to be accepted.
const BACKLOG: i32 = 1024;

/// An address to listen on, as the user wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    /// A name, or an address without brackets; `None` means all addresses of the machine.
    host: Option<String>,
    port: u16,
}

impl Default for Listen {
    /// The default address of `run`.
    fn default() -> Self {
        Self { host: Some("127.0.0.1".to_owned()), port: 9790 }
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            None => write!(f, ":{}", self.port),
            Some(host) if host.contains(':') => write!(f, "[{host}]:{}", self.port),
            Some(host) => write!(f, "{host}:{}", self.port),
        }
    }
}

/// Why the server can't listen.
#[derive(Debug, Error)]
pub enum ListenError {
    /// The text is not an address: wrong usage.
    #[error("{text:?} is no address to listen on: {reason}. It is HOST:PORT, :PORT or [IPV6]:PORT")]
    Syntax {
        /// What was given.
        text: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The name can't be resolved.
    #[error("cannot listen on {listen}: its name cannot be resolved: {source}")]
    Resolve {
        /// What was given.
        listen: Listen,
        /// The resolver's error.
        source: io::Error,
    },
    /// The address is in use.
    #[error("cannot listen on {0}: the address is in use; `ss -ltnp` shows by whom, port 0 takes a free one")]
    InUse(SocketAddr),
    /// The machine has no such address.
    #[error("cannot listen on {0}: no interface of this machine has that address")]
    NotHere(SocketAddr),
    /// The port is below the limit for unprivileged users.
    #[error("not permitted to listen on {0}: take a port from 1024 on, or run with CAP_NET_BIND_SERVICE")]
    Permission(SocketAddr),
    /// Any other error of the operating system.
    #[error("cannot listen on {addr}: {source}{}", advice_on_system(source))]
    Io {
        /// The address.
        addr: SocketAddr,
        /// The system's error.
        source: io::Error,
    },
}

/// Parses an address to listen on, without resolving its name.
pub fn parse_listen(text: &str) -> Result<Listen, ListenError> {
    let wrong = |reason| ListenError::Syntax { text: text.to_owned(), reason };
    let (host, port) = text.rsplit_once(':').ok_or_else(|| wrong("it has no port"))?;
    if port.is_empty() || !port.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(wrong("what follows the last colon is no port number"));
    }
    let port = port.parse().map_err(|_| wrong("the port is above 65535"))?;
    if host.is_empty() {
        return Ok(Listen { host: None, port });
    }
    let host = match host.strip_prefix('[') {
        Some(rest) => {
            let address = rest.strip_suffix(']').ok_or_else(|| wrong("a bracket is not closed"))?;
            let (number, zone) = address.split_once('%').unwrap_or((address, "lo"));
            if number.parse::<Ipv6Addr>().is_err() || !is_name(zone) {
                return Err(wrong("there is no IPv6 address inside the brackets"));
            }
            address
        }
        None if host.contains(':') => return Err(wrong("an IPv6 address needs brackets around it")),
        None if is_name(host) => host,
        None => return Err(wrong("it has characters that no host name has")),
    };
    Ok(Listen { host: Some(host.to_owned()), port })
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
}

/// Starts to listen. For port 0, the socket's own address has the port that was chosen.
///
/// If a name has several addresses, one is used, IPv4 before IPv6, as in Go programs. `:PORT` means all addresses, IPv6
/// and IPv4.
pub async fn bind(listen: &Listen) -> Result<TcpListener, ListenError> {
    let Some(host) = &listen.host else {
        let everywhere = |ip: IpAddr| SocketAddr::new(ip, listen.port);
        let both = everywhere(Ipv6Addr::UNSPECIFIED.into());
        return match listen_on_both(both).map_err(|source| explain(both, source)) {
            Err(ListenError::NotHere(_)) => bind_to(everywhere(Ipv4Addr::UNSPECIFIED.into())).await,
            bound => bound,
        };
    };
    let unresolved = |source| ListenError::Resolve { listen: listen.clone(), source };
    let addresses: Vec<_> = threads::look_up(host, listen.port).await.map_err(unresolved)?.collect();
    let first = addresses.iter().find(|address| address.is_ipv4()).or(addresses.first());
    let first = first.ok_or_else(|| unresolved(io::ErrorKind::NotFound.into()))?;
    bind_to(*first).await
}

/// Listens on an IPv6 address for IPv4 too, whatever the system's default is (`net.ipv6.bindv6only`).
fn listen_on_both(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::IPV6, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_only_v6(false)?;
    // As tokio does: old connections of an agent that has ended do not block the address.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

async fn bind_to(addr: SocketAddr) -> Result<TcpListener, ListenError> {
    TcpListener::bind(addr).await.map_err(|source| explain(addr, source))
}

fn explain(addr: SocketAddr, source: io::Error) -> ListenError {
    match source.kind() {
        io::ErrorKind::AddrInUse => ListenError::InUse(addr),
        io::ErrorKind::AddrNotAvailable => ListenError::NotHere(addr),
        io::ErrorKind::PermissionDenied => ListenError::Permission(addr),
        // A kernel without IPv6 has no IPv6 address.
        _ if source.raw_os_error() == Some(libc::EAFNOSUPPORT) => ListenError::NotHere(addr),
        _ => ListenError::Io { addr, source },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_written_alike() {
        for text in [
            "127.0.0.1:9790",
            "localhost:0",
            ":9790",
            "[::1]:9790",
            "[::]:65535",
            "[fe80::1%eth0]:80",
            "a-host.example_1:1",
        ] {
            assert_eq!(parse_listen(text).expect(text).to_string(), text);
        }
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for text in [
            "",
            "9790",
            "localhost",
            ":",
            "localhost:",
            "::1:9790",
            "[::1]",
            "[::1:9790",
            "[localhost]:1",
            "[]:1",
            "[::1%]:1",
            ":65536",
            ":-1",
            ":+1",
            ":http",
            "a b:1",
            "http://localhost:9790",
            "unix:/run/a:1",
            "[::1]x:1",
            "ü:1",
            ":1 ",
        ] {
            let error = parse_listen(text).expect_err(text);
            assert!(matches!(error, ListenError::Syntax { .. }), "{text}: {error}");
        }
    }

    async fn bind_text(text: &str) -> Result<TcpListener, ListenError> {
        bind(&parse_listen(text).expect(text)).await
    }

    #[tokio::test]
    async fn errors_tell_what_is_the_matter() {
        let listener = bind_text("localhost:0").await.expect("a free port");
        let taken = listener.local_addr().expect("an address");
        assert!(taken.is_ipv4() && taken.port() != 0);
        assert!(
            matches!(bind_text(&taken.to_string()).await, Err(ListenError::InUse(addr)) if addr == taken)
        );
        // A block reserved for documentation.
        assert!(matches!(bind_text("192.0.2.1:0").await, Err(ListenError::NotHere(_))));
        assert!(matches!(bind_text("no-such-host.invalid:0").await, Err(ListenError::Resolve { .. })));
    }

    #[tokio::test]
    async fn a_port_alone_is_every_address() {
        let listener = bind_text(":0").await.expect("a free port");
        let port = listener.local_addr().expect("an address").port();
        tokio::net::TcpStream::connect(("127.0.0.1", port)).await.expect("IPv4 gets there");
    }

    /// In a network namespace of its own, so that the system's setting changes for nobody else.
    #[test]
    fn a_port_alone_is_every_address_whatever_the_system_says() {
        let only_v6 = || {
            // SAFETY: changes only this thread's network namespace, and the thread ends soon.
            if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
                return None;
            }
            std::fs::write("/proc/sys/net/ipv6/bindv6only", "1").ok()?;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
            let listener = runtime.block_on(bind_text(":0")).expect("a free port");
            socket2::SockRef::from(&listener).only_v6().ok()
        };
        match std::thread::spawn(only_v6).join().expect("no panic") {
            Some(only_v6) => assert!(!only_v6),
            None => eprintln!("left out: not permitted, or no IPv6"),
        }
    }
}
