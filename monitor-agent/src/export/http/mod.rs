//! The HTTP server: `/metrics`, `/targets/PID/metrics`, `/api/v1/calls`, `/healthz`, `/readyz` and a page for people at
//! `/`.
//!
//! The process is root and peers are untrusted, so everything that a peer can use is bounded (`LIMITS`): connections,
//! the size and time of a request's head, the time to make an answer, the time to take it, and the memory of answers
//! that are not taken yet. What peers do not get because of these limits is counted (`losses.rs`). Bodies of requests
//! are never read. HTTP/1 only, without TLS.

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

/// The data that the server shows. [`ready`](Self::ready) and [`standstill`](Self::standstill) return at once. The other
/// methods may take some milliseconds of CPU time and wait up to about a second. They are called where that delays
/// nobody.
pub trait Backend: Send + Sync + 'static {
    /// Whether everything requested is attached and in place.
    fn ready(&self) -> bool;
    /// Returns how long the rings have not been drained; `None` if all is well.
    fn standstill(&self) -> Option<Duration>;
    /// Returns all families, for `/metrics`.
    fn gather(&self) -> Vec<MetricFamily>;
    /// Returns one target's families, in the form that the process itself would export; `None` if the pid is not a
    /// target.
    fn gather_target(&self, pid: u32) -> Option<Vec<MetricFamily>>;
    /// Returns the slowest and the failed calls that match, as JSON; `None` if no calls are kept.
    fn calls(&self, wish: &Wish) -> Option<String>;
    /// Returns the content of the page.
    fn status(&self) -> Status;
}

/// The content of the page at `/`. Text is escaped when it is rendered.
#[derive(Clone, Debug)]
pub struct Status {
    /// The agent's version.
    pub version: String,
    /// When the agent started.
    pub started: SystemTime,
    /// All targets, in the order of the command line.
    pub targets: Vec<TargetStatus>,
}

/// One target on the page.
#[derive(Clone, Debug)]
pub struct TargetStatus {
    /// The process.
    pub pid: u32,
    /// Its executable, for display.
    pub exe: String,
    /// The frameworks and Go, with their versions: `kitex v0.16.3, go1.26.6`.
    pub framework: String,
    /// The state, in a few words: `attached`, `watched without calls`, `ended`.
    pub state: String,
    /// When counting began, if it has.
    pub since: Option<SystemTime>,
    /// Calls counted so far, and events lost because the ring was full; `None` if no calls are watched.
    pub calls: Option<(u64, u64)>,
    /// The probe sites.
    pub sites: Vec<SiteStatus>,
}

/// One probe site on the page.
#[derive(Clone, Debug)]
pub struct SiteStatus {
    /// The role: `start`, `finish`.
    pub role: String,
    /// The function.
    pub symbol: String,
    /// The offset in the executable's file, in bytes.
    pub offset: u64,
    /// The instruction there.
    pub instruction: String,
    /// The cost class of a hit.
    pub cost: String,
}

/// Limits for one peer, and for all together.
#[derive(Clone, Copy, Debug)]
struct Limits {
    /// Open connections. The next one waits in the kernel's queue until one closes. While no slot is free, because the
    /// last one is taken or reserved for the next connection, each connection closes after its next answer.
    connections: usize,
    /// Answers being made at once. Others wait within the time limit of their request.
    scrapes: usize,
    /// The time until a request's head is complete. Also the time for which a connection may be idle.
    head_time: Duration,
    /// The size of a request's head, in bytes.
    head_size: usize,
    /// The number of lines in a request's head.
    head_lines: usize,
    /// The time to make an answer.
    answer_time: Duration,
    /// The time for which a peer may delay an answer.
    stall_time: Duration,
    /// The bytes of all answers that are made and not completely taken. A single answer may be larger while there is no
    /// other.
    held: u32,
    /// The time for answers in progress when the server stops.
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

/// The size of an answer, in bytes, from which the memory used to make it is worth returning.
const LARGE: usize = 1 << 20;

/// Serves until `shutdown` resolves, then finishes answers in progress and returns within a second. What peers do not
/// get by then is counted in `losses`.
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
    // Fails if there is no connection.
    let _ = stop.send(true);
    // Dropping the set cuts off the connections that are left after the grace period.
    let _ =
        tokio::time::timeout(limits.grace, async { while connections.join_next().await.is_some() {} }).await;
}

/// Accepts the next connection, once there is a slot for it.
async fn accept(listener: &TcpListener, slots: &Arc<Semaphore>) -> (TcpStream, Option<OwnedSemaphorePermit>) {
    // Fails only if the semaphore is closed, which never happens.
    let slot = slots.clone().acquire_owned().await.ok();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return (stream, slot),
            Err(error) => {
                // The peer is gone, or there are no descriptors left. In both cases the next attempt may succeed.
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

/// The memory for answers. Each holds its part until its last byte is in the kernel or its connection has ended.
#[derive(Clone)]
struct Room {
    /// One permit for each byte.
    free: Arc<Semaphore>,
    bytes: u32,
}

impl Room {
    fn of(bytes: u32) -> Self {
        Self { free: Arc::new(Semaphore::new(bytes as usize)), bytes }
    }

    /// Reserves room for an answer, until its last part is dropped.
    fn hold(&self, answer: Vec<u8>) -> Result<Bytes, TryAcquireError> {
        let size = u32::try_from(answer.len()).unwrap_or(u32::MAX).min(self.bytes);
        let room = Arc::clone(&self.free).try_acquire_many_owned(size)?;
        // Not a custom body: hyper drops a body once it has its bytes, long before they are written.
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
    // Digits only: the standard library also accepts `+1`, which is not a pid.
    let Some(pid) = pid.parse().ok().filter(|_| pid.bytes().all(|byte| byte.is_ascii_digit())) else {
        return not_found();
    };
    scrape(&app, &headers, move |backend| backend.gather_target(pid)).await
}

/// The query of `/api/v1/calls`.
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
        // The page shows names of processes. If one ever got through as markup, it could do nothing.
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

/// Makes an answer on a thread of its own, a few at once. The permit is held until the answer is made, not until the
/// request ends, so a peer that hangs up and asks again gains nothing. It does not lose its turn, since it looks the
/// same as a peer that has closed only its half. An answer for which there is no room is dropped.
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
