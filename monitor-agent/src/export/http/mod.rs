//! The HTTP server: `/metrics`, `/targets/PID/metrics`, `/api/v1/calls`, `/healthz`, `/readyz` and a page for people
//! at `/`.
//!
//! The process is root and the peer is anybody, so everything a peer can take is bounded (`LIMITS`): connections,
//! the size and time of a request's head, the time to answer, the time to take the answer, and the memory of answers
//! that nobody has taken yet. Whatever a peer does not get for that is counted (`losses.rs`). Bodies of requests are never
//! read. HTTP/1 only, without TLS.

mod connection;
mod listen;
mod losses;
#[cfg(test)]
mod tests;

use std::{
    io::Write,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use axum::{
    Router,
    body::Bytes,
    extract::{Path, Query, State, rejection::QueryRejection},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{Html, IntoResponse, Response},
    routing::get,
};
use flate2::{Compression, write::GzEncoder};
use prometheus::proto::MetricFamily;
use serde::Deserialize;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError, watch},
    task::JoinSet,
};

pub use listen::{Listen, ListenError, bind, parse_listen};
pub use losses::Losses;

use super::{negotiate, page, text};
use crate::{events::Wish, memory, pipeline::Side, threads};

/// What the server shows. Its functions may take some milliseconds of CPU time, and wait for others up to a second or so; they
/// run where that holds nobody up.
pub trait Backend: Send + Sync + 'static {
    /// Whether everything that was asked for is attached and in place.
    fn ready(&self) -> bool;
    /// For how long nothing was taken out of the rings any more; `None` while all is well.
    fn standstill(&self) -> Option<Duration>;
    /// All families, for `/metrics`.
    fn gather(&self) -> Vec<MetricFamily>;
    /// One target's families in the shape that the process itself would export; `None` for a pid that is no target.
    fn gather_target(&self, pid: u32) -> Option<Vec<MetricFamily>>;
    /// The slowest and the failed calls that are wanted, as JSON; `None` when none are kept.
    fn calls(&self, wish: &Wish) -> Option<String>;
    /// What the page tells.
    fn status(&self) -> Status;
}

/// What the page at `/` tells. Text is shown as it is, so nothing in it needs escaping.
#[derive(Clone, Debug)]
pub struct Status {
    /// The agent's version.
    pub version: String,
    /// When the agent started.
    pub started: SystemTime,
    /// Each target, in the order in which they were given.
    pub targets: Vec<TargetStatus>,
}

/// One target on the page.
#[derive(Clone, Debug)]
pub struct TargetStatus {
    /// The process.
    pub pid: u32,
    /// Its executable, for display.
    pub exe: String,
    /// Frameworks and Go with their versions: `kitex v0.16.3, go1.26.6`.
    pub framework: String,
    /// In a few words: `attached`, `watched without calls`, `ended`.
    pub state: String,
    /// When counting began, if it did.
    pub since: Option<SystemTime>,
    /// Calls counted so far, and events that the ring could not take, where calls are watched.
    pub calls: Option<(u64, u64)>,
    /// Where probes are.
    pub sites: Vec<SiteStatus>,
}

/// One probe site on the page.
#[derive(Clone, Debug)]
pub struct SiteStatus {
    /// What it is for: `start`, `finish`.
    pub role: String,
    /// The function.
    pub symbol: String,
    /// Where in the executable's file, in bytes.
    pub offset: u64,
    /// The instruction there.
    pub instruction: String,
    /// What a hit costs, by class.
    pub cost: String,
}

/// What one peer, and all together, may take.
#[derive(Clone, Copy, Debug)]
struct Limits {
    /// Open connections; the next one waits in the kernel's queue until one closes. Once the last place is given away, or
    /// kept for the next one, each connection ends with its next answer.
    connections: usize,
    /// Gatherings at once; others wait within their request's time.
    scrapes: usize,
    /// From the first moment to the end of a request's head, and so also for how long a connection may be idle.
    head_time: Duration,
    /// Bytes of a request's head.
    head_size: usize,
    /// Lines in it.
    head_lines: usize,
    /// For making an answer.
    answer_time: Duration,
    /// For which a peer may keep an answer waiting.
    stall_time: Duration,
    /// Bytes of answers that were made and are not all taken yet, of all peers. An answer that is larger by itself is
    /// given while there is no other.
    held: u32,
    /// For answers under way when the server is stopped.
    grace: Duration,
}

const LIMITS: Limits = Limits {
    connections: 64,
    scrapes: 2,
    head_time: Duration::from_secs(5),
    head_size: 16 * 1024,
    head_lines: 64,
    answer_time: Duration::from_secs(10),
    stall_time: Duration::from_secs(10),
    held: 64 << 20,
    grace: Duration::from_millis(400),
};

/// Making an answer of so many bytes leaves memory behind that is worth giving back.
const LARGE: usize = 1 << 20;

/// Serves until `shutdown` resolves, then lets answers under way be finished and returns within a second. What peers do not
/// get until then is in `losses`.
pub async fn serve(
    listener: TcpListener,
    backend: Arc<dyn Backend>,
    losses: Arc<Losses>,
    shutdown: impl Future<Output = ()>,
) {
    serve_within(LIMITS, listener, backend, losses, shutdown).await;
}

async fn serve_within(
    limits: Limits,
    listener: TcpListener,
    backend: Arc<dyn Backend>,
    losses: Arc<Losses>,
    shutdown: impl Future<Output = ()>,
) {
    let app = Arc::new(App {
        backend,
        losses: Arc::clone(&losses),
        scrapes: Arc::new(Semaphore::new(limits.scrapes)),
        room: Room::of(limits.held),
        stopping: AtomicBool::new(false),
    });
    let router = router(app.clone());
    let slots = Arc::new(Semaphore::new(limits.connections));
    let (stop, stopped) = watch::channel(false);
    let mut connections = JoinSet::new();
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        let (stream, slot) = tokio::select! {
            biased;
            () = &mut shutdown => break,
            Some(_) = connections.join_next() => continue,
            accepted = accept(&listener, &slots) => accepted,
        };
        let connection = connection::run(
            limits,
            stream,
            router.clone(),
            Arc::clone(&losses),
            Arc::clone(&slots),
            stopped.clone(),
        );
        connections.spawn(async move {
            connection.await;
            drop(slot);
        });
    }
    app.stopping.store(true, Ordering::Relaxed);
    drop(listener);
    // Fails if there is no connection to tell.
    let _ = stop.send(true);
    // What is left after the grace is cut off when the set is dropped.
    let _ =
        tokio::time::timeout(limits.grace, async { while connections.join_next().await.is_some() {} }).await;
}

/// The next connection, when there is room for it.
async fn accept(listener: &TcpListener, slots: &Arc<Semaphore>) -> (TcpStream, Option<OwnedSemaphorePermit>) {
    // Fails only when the semaphore is closed, which nobody does.
    let slot = slots.clone().acquire_owned().await.ok();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return (stream, slot),
            Err(error) => {
                // A peer that is gone already, or no descriptors left: either way the next one may fare better.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

struct App {
    backend: Arc<dyn Backend>,
    losses: Arc<Losses>,
    scrapes: Arc<Semaphore>,
    room: Room,
    stopping: AtomicBool,
}

/// Memory for answers, which each has until its last byte is the kernel's or its connection has ended.
#[derive(Clone)]
struct Room {
    /// A permit for each byte.
    free: Arc<Semaphore>,
    bytes: u32,
}

impl Room {
    fn of(bytes: u32) -> Self {
        Self { free: Arc::new(Semaphore::new(bytes as usize)), bytes }
    }

    /// Keeps room for an answer as long as anyone has a part of it.
    fn hold(&self, answer: Vec<u8>) -> Result<Bytes, TryAcquireError> {
        let size = u32::try_from(answer.len()).unwrap_or(u32::MAX).min(self.bytes);
        let room = Arc::clone(&self.free).try_acquire_many_owned(size)?;
        // Not a body of our own: hyper lets go of a body when it has its bytes, long before they are written.
        Ok(Bytes::from_owner(Held { answer, _room: room }))
    }
}

struct Held {
    answer: Vec<u8>,
    _room: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.answer
    }
}

fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/", get(index))
        .route("/metrics", get(metrics))
        .route("/targets/{pid}/metrics", get(target_metrics))
        .route("/api/v1/calls", get(calls))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .fallback(|| async { not_found() })
        .with_state(app)
}

async fn healthz(State(app): State<Arc<App>>) -> Response {
    let Some(gone) = app.backend.standstill() else { return "ok\n".into_response() };
    let seconds = gone.as_secs();
    let text = format!(
        "the agent's loop has not run for {seconds} s: metrics are stale. Is it short of CPU, or does a target's executable \
         lie on a file system that does not answer? Its log may say more.\n"
    );
    (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
}

async fn readyz(State(app): State<Arc<App>>) -> Response {
    if app.stopping.load(Ordering::Relaxed) {
        return (StatusCode::SERVICE_UNAVAILABLE, "stopping\n").into_response();
    }
    if !app.backend.ready() {
        return (StatusCode::SERVICE_UNAVAILABLE, "not attached yet\n").into_response();
    }
    "ready\n".into_response()
}

async fn metrics(State(app): State<Arc<App>>, headers: HeaderMap) -> Response {
    scrape(&app, &headers, |backend| Some(backend.gather())).await
}

async fn target_metrics(
    State(app): State<Arc<App>>,
    Path(pid): Path<String>,
    headers: HeaderMap,
) -> Response {
    // Digits only: what the standard library takes beside them (`+1`) is no pid.
    let Some(pid) = pid.parse().ok().filter(|_| pid.bytes().all(|byte| byte.is_ascii_digit())) else {
        return not_found();
    };
    scrape(&app, &headers, move |backend| backend.gather_target(pid)).await
}

/// Which calls a request wants.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CallsQuery {
    target: Option<u32>,
    side: Option<String>,
    method: Option<String>,
}

impl CallsQuery {
    fn wish(self) -> Option<Wish> {
        let side = match self.side.as_deref() {
            None => None,
            Some("client") => Some(Side::Client),
            Some("server") => Some(Side::Server),
            Some(_) => return None,
        };
        Some(Wish { target: self.target, side, method: self.method })
    }
}

async fn calls(State(app): State<Arc<App>>, query: Result<Query<CallsQuery>, QueryRejection>) -> Response {
    let Some(wish) = query.ok().and_then(|Query(query)| query.wish()) else {
        let text = "give any of target=PID, side=client, side=server, method=NAME\n";
        return (StatusCode::BAD_REQUEST, text).into_response();
    };
    match blocking(&app, move |backend| backend.calls(&wish).map(String::into_bytes)).await {
        Ok(Some(json)) => ([(header::CONTENT_TYPE, "application/json")], json).into_response(),
        Ok(None) => (StatusCode::NOT_FOUND, "no calls are kept; run with --capture.slow N\n").into_response(),
        Err(answer) => answer,
    }
}

async fn scrape(
    app: &App,
    headers: &HeaderMap,
    gather: impl FnOnce(&dyn Backend) -> Option<Vec<MetricFamily>> + Send + 'static,
) -> Response {
    let gzip = negotiate::wants_gzip(headers);
    let body = blocking(app, move |backend| {
        let text = text::encode(&gather(backend)?);
        if text.len() >= LARGE {
            memory::give_back();
        }
        Some(if gzip { compress(&text) } else { text.into_bytes() })
    });
    let body = match body.await {
        Ok(Some(body)) => body,
        Ok(None) => return not_found(),
        Err(answer) => return answer,
    };
    let mut response = body.into_response();
    let headers_out = response.headers_mut();
    headers_out.insert(header::CONTENT_TYPE, HeaderValue::from_static(negotiate::content_type(headers)));
    headers_out.insert(header::VARY, HeaderValue::from_static("accept, accept-encoding"));
    if gzip {
        headers_out.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    response
}

async fn index(State(app): State<Arc<App>>) -> Response {
    let render =
        blocking(&app, |backend| Some(page::render(&backend.status(), SystemTime::now()).into_bytes()));
    let page = match render.await {
        Ok(Some(page)) => page,
        Ok(None) => return not_found(),
        Err(answer) => return answer,
    };
    let headers = [
        // Names of processes are in the page; should one ever get through as markup, it can do nothing.
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
        ),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    (headers, Html(page)).into_response()
}

/// Makes an answer off the server's thread, a few at once. The place is held until it is made, not until the request
/// is done: a peer that hangs up and asks anew gains nothing. Nor does it lose its turn: that it only closed its half can't be told from
/// that. One for which there is no room is thrown away.
async fn blocking(
    app: &App,
    make: impl FnOnce(&dyn Backend) -> Option<Vec<u8>> + Send + 'static,
) -> Result<Option<Bytes>, Response> {
    let failed = |text: &'static str| (StatusCode::INTERNAL_SERVER_ERROR, text).into_response();
    let place = app.scrapes.clone().acquire_owned().await.map_err(|_| failed("stopping\n"))?;
    let (backend, room) = (app.backend.clone(), app.room.clone());
    let making = threads::on_its_own(move || {
        let answer = make(&*backend).map(|answer| room.hold(answer));
        drop(place);
        answer
    });
    let answer = making.await.map_err(|error| {
        tracing::error!(%error, "an answer could not be made");
        losses::count(&app.losses.failed);
        failed("the agent failed to make this answer; its log says more\n")
    })?;
    answer.transpose().map_err(|_| {
        losses::count(&app.losses.no_room);
        let text = "too much waits for peers that do not take it: try again\n";
        (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
    })
}

fn not_found() -> Response {
    (StatusCode::NOT_FOUND, "not found; / lists what is here\n").into_response()
}

fn compress(text: &str) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    // Writing to memory cannot fail.
    let _ = encoder.write_all(text.as_bytes());
    encoder.finish().unwrap_or_default()
}
