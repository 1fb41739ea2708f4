//! The server over loopback, byte by byte.

use std::{
    io::Read,
    net::SocketAddr,
    sync::atomic::{AtomicUsize, Ordering::SeqCst},
    time::Instant,
};

use flate2::read::GzDecoder;
use prometheus::proto::{Counter, Metric, MetricType};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::oneshot,
    task::JoinHandle,
};

use super::*;
use crate::threads::testing::without_threads;

/// A backend that answers with as much as a test wants, as slowly as it wants.
#[derive(Default)]
struct Sample {
    ready: AtomicBool,
    stands_still: AtomicBool,
    series: usize,
    takes: Duration,
    gathering: AtomicUsize,
    most: AtomicUsize,
}

impl Sample {
    fn families(&self) -> Vec<MetricFamily> {
        let now = self.gathering.fetch_add(1, SeqCst) + 1;
        self.most.fetch_max(now, SeqCst);
        std::thread::sleep(self.takes);
        self.gathering.fetch_sub(1, SeqCst);
        (0..self.series.max(1)).map(|number| family(&format!("sample_{number:06}_total"))).collect()
    }
}

fn family(name: &str) -> MetricFamily {
    let mut counter = Counter::default();
    counter.set_value(1e6);
    let mut metric = Metric::default();
    metric.set_counter(counter);
    let mut family = MetricFamily::default();
    family.set_name(name.to_owned());
    family.set_help("A sample.".to_owned());
    family.set_field_type(MetricType::COUNTER);
    family.set_metric(vec![metric]);
    family
}

impl Backend for Sample {
    fn ready(&self) -> bool {
        self.ready.load(SeqCst)
    }

    fn standstill(&self) -> Option<Duration> {
        self.stands_still.load(SeqCst).then(|| Duration::from_millis(12_345))
    }

    fn gather(&self) -> Vec<MetricFamily> {
        self.families()
    }

    fn calls(&self, wish: &Wish) -> Option<String> {
        (wish.target != Some(13)).then(|| format!("{wish:?}"))
    }

    fn gather_target(&self, pid: u32) -> Option<Vec<MetricFamily>> {
        assert_ne!(pid, 13, "this one panics");
        (pid == 42).then(|| vec![family("only_total")])
    }

    fn status(&self) -> Status {
        Status { version: "0.0.0".to_owned(), started: SystemTime::now(), targets: vec![] }
    }
}

const TEXT: &str =
    "# HELP sample_000000_total A sample.\n# TYPE sample_000000_total counter\nsample_000000_total 1e+06\n";

struct Server {
    addr: SocketAddr,
    backend: Arc<Sample>,
    losses: Arc<Losses>,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

impl Server {
    async fn start(limits: Limits, backend: Sample) -> Self {
        let listener = bind(&parse_listen("127.0.0.1:0").expect("an address")).await.expect("a free port");
        let addr = listener.local_addr().expect("an address");
        let backend = Arc::new(backend);
        let losses = Arc::<Losses>::default();
        let (stop, stopped) = oneshot::channel::<()>();
        let shutdown = async { drop(stopped.await) };
        let task =
            tokio::spawn(serve_within(limits, listener, backend.clone(), Arc::clone(&losses), shutdown));
        Self { addr, backend, losses, stop: Some(stop), task }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.addr).await.expect("the server listens")
    }

    /// Sends one request on a new connection. Returns the whole answer.
    async fn ask(&self, request: &[u8]) -> Answer {
        let mut stream = self.connect().await;
        // The server may answer and close before it has read everything.
        let _ = stream.write_all(request).await;
        read_answer(&mut stream).await
    }

    async fn get(&self, path: &str) -> Answer {
        self.ask(format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes()).await
    }

    /// Returns what peers did not get, by reason.
    fn lost(&self) -> Vec<(&'static str, u64)> {
        let all = [self.losses.connections_cut(), self.losses.requests_refused()].concat();
        all.into_iter().filter(|(_, count)| *count > 0).collect()
    }

    /// Waits until these losses are counted, and no others: a peer may see its connection end before the loss is
    /// counted.
    async fn has_lost(&self, expected: &[(&'static str, u64)]) {
        let begin = Instant::now();
        while self.lost() != expected {
            assert!(begin.elapsed() < Duration::from_secs(5), "{:?}, not {expected:?}", self.lost());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

#[derive(Debug)]
struct Answer {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(": ")?;
            key.eq_ignore_ascii_case(name).then_some(value)
        })
    }

    fn text(&self) -> &str {
        str::from_utf8(&self.body).expect("text")
    }
}

/// Reads until the server closes. The status is 0 if nothing came.
async fn read_answer(stream: &mut TcpStream) -> Answer {
    let mut bytes = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut bytes));
    // A reset after an answer counts as its end.
    let _ = read.await.expect("the server closes the connection");
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n").map_or(bytes.len(), |at| at + 4);
    let body = bytes.split_off(end);
    let head = String::from_utf8(bytes).expect("a head is text");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    Answer { status, head, body }
}

/// Reads until `end` has come, on a connection that stays open.
async fn read_until(stream: &mut TcpStream, end: &str) -> String {
    let mut text = String::new();
    while !text.ends_with(end) {
        let mut part = [0; 1024];
        let read = tokio::time::timeout(Duration::from_secs(5), stream.read(&mut part));
        let length = read.await.expect("an answer in time").expect("a connection");
        assert_ne!(length, 0, "closed after {text:?}");
        text.push_str(str::from_utf8(&part[..length]).expect("text"));
    }
    text
}

#[tokio::test]
async fn metrics_are_text_as_promhttp_gives_it() {
    let server = Server::start(LIMITS, Sample::default()).await;
    let answer = server.get("/metrics").await;
    assert_eq!((answer.status, answer.text()), (200, TEXT));
    let content_type = "text/plain; version=0.0.4; charset=utf-8; escaping=underscores";
    assert_eq!(answer.header("content-type"), Some(content_type));
    assert_eq!(answer.header("content-encoding"), None);
    assert_eq!(answer.header("content-length"), Some(TEXT.len().to_string().as_str()));
    let asked_for_more = b"GET /metrics HTTP/1.1\r\nHost: x\r\nAccept: application/openmetrics-text;version=1.0.0,\
                           application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited\
                           \r\nConnection: close\r\n\r\n";
    let answer = server.ask(asked_for_more).await;
    assert_eq!((answer.header("content-type"), answer.text()), (Some(content_type), TEXT));
}

#[tokio::test]
async fn metrics_are_compressed_for_those_who_like_it() {
    let server = Server::start(LIMITS, Sample { series: 2000, ..Sample::default() }).await;
    let plain = server.get("/metrics").await;
    let request =
        b"GET /metrics HTTP/1.1\r\nHost: x\r\nAccept-Encoding: gzip;q=0.8\r\nConnection: close\r\n\r\n";
    let answer = server.ask(request).await;
    assert_eq!(answer.header("content-encoding"), Some("gzip"));
    assert!(answer.body.len() * 4 < plain.body.len());
    let mut text = Vec::new();
    GzDecoder::new(answer.body.as_slice()).read_to_end(&mut text).expect("gzip");
    assert!(text == plain.body && text.len() > 100_000);
    let request =
        b"GET /metrics HTTP/1.1\r\nHost: x\r\nAccept-Encoding: gzip;q=0\r\nConnection: close\r\n\r\n";
    assert_eq!(server.ask(request).await.body, plain.body);
}

#[tokio::test]
async fn targets_have_their_own_metrics() {
    let server = Server::start(LIMITS, Sample::default()).await;
    assert!(server.get("/targets/42/metrics").await.text().contains("\nonly_total 1e+06\n"));
    for path in [
        "/targets/43/metrics",
        "/targets/+42/metrics",
        "/targets/x/metrics",
        "/targets//metrics",
        "/targets/99999999999/metrics",
        "/targets/42",
        "/targets/4%32/metrics/x",
    ] {
        assert_eq!(server.get(path).await.status, 404, "{path}");
    }
}

#[tokio::test]
async fn calls_are_chosen_by_their_query() {
    let server = Server::start(LIMITS, Sample::default()).await;
    let all = server.get("/api/v1/calls").await;
    assert_eq!((all.status, all.header("content-type")), (200, Some("application/json")));
    assert_eq!(all.text(), format!("{:?}", Wish::default()));
    let some = server.get("/api/v1/calls?target=7&side=server&method=A%20b").await;
    let wish = Wish { target: Some(7), side: Some(Side::Server), method: Some("A b".to_owned()) };
    assert_eq!(some.text(), format!("{wish:?}"));
    for query in ["colour=red", "target=-1", "side=both", "target=1&target=2"] {
        let answer = server.get(&format!("/api/v1/calls?{query}")).await;
        assert_eq!(answer.status, 400, "{query}");
        assert!(answer.text().contains("method=NAME"), "{query}");
    }
    assert_eq!(server.get("/api/v1/calls?target=13").await.status, 404);
}

#[tokio::test]
async fn head_is_get_without_the_body() {
    let server = Server::start(LIMITS, Sample::default()).await;
    for path in ["/", "/metrics", "/healthz"] {
        let get = server.get(path).await;
        let request = format!("HEAD {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        let head = server.ask(request.as_bytes()).await;
        assert_eq!((head.status, head.body.len()), (200, 0), "{path}");
        for name in ["content-type", "content-length"] {
            assert_eq!(head.header(name), get.header(name), "{path} {name}");
        }
    }
}

#[tokio::test]
async fn other_methods_and_other_paths_are_refused() {
    let server = Server::start(LIMITS, Sample::default()).await;
    for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW"] {
        for path in ["/", "/metrics", "/targets/42/metrics", "/healthz", "/readyz"] {
            let request = format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
            let answer = server.ask(request.as_bytes()).await;
            assert_eq!((answer.status, answer.header("allow")), (405, Some("GET,HEAD")), "{method} {path}");
        }
    }
    for path in [
        "/metric",
        "/metrics/",
        "//",
        "/../etc/passwd",
        "/targets",
        "/%00",
        "/%ff",
        "/?",
        "/metrics?name[]=x",
    ] {
        let found = path.split('?').next().is_some_and(|path| path == "/" || path == "/metrics");
        assert_eq!(server.get(path).await.status, if found { 200 } else { 404 }, "{path}");
    }
}

#[tokio::test]
async fn odd_requests_do_no_harm() {
    let server =
        Server::start(Limits { head_time: Duration::from_millis(300), ..LIMITS }, Sample::default()).await;
    let long = format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "a".repeat(100_000));
    let wide = format!("GET /metrics HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "a".repeat(100_000));
    let many = format!("GET /metrics HTTP/1.1\r\nHost: x\r\n{}\r\n", "X: y\r\n".repeat(100));
    let requests: [(&[u8], &[u16]); 16] = [
        (long.as_bytes(), &[414, 431, 0]),
        (wide.as_bytes(), &[431, 0]),
        (many.as_bytes(), &[431, 0]),
        (b"\r\n\r\n\r\n", &[0, 400]),
        (b"GET\r\n\r\n", &[400]),
        (b"GET /metrics\r\n\r\n", &[400]),
        (b"GET /metrics HTTP/9.9\r\n\r\n", &[400]),
        (b"GET /metrics HTTP/1.1\r\nHost x\r\n\r\n", &[400]),
        (b"GET /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: a\r\n\r\n", &[400]),
        (b"GET /metrics HTTP/1.0\r\n\r\n", &[200]),
        (b"GET http://elsewhere/metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", &[200]),
        (b"CONNECT elsewhere:443 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", &[404, 405]),
        (b"OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", &[404, 405]),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &[0, 400]),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\xff\xfe", &[400]),
        (b"GET /targets/13/metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", &[500]),
    ];
    for (request, expected) in requests {
        let status = server.ask(request).await.status;
        let shown = request[..request.len().min(60)].escape_ascii();
        assert!(expected.contains(&status), "{shown}: {status}");
    }
    assert_eq!(server.get("/healthz").await.text(), "ok\n");
}

#[tokio::test]
async fn a_body_is_not_waited_for() {
    let server = Server::start(LIMITS, Sample::default()).await;
    let begin = Instant::now();
    for request in [
        "POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n",
        "GET /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n",
        "GET /metrics HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n",
        "POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\nExpect: 100-continue\r\n\r\n",
    ] {
        let answer = server.ask(request.as_bytes()).await;
        assert!([200, 405].contains(&answer.status), "{request}: {answer:?}");
    }
    assert!(begin.elapsed() < Duration::from_secs(4), "the connections were closed at once");
}

#[tokio::test]
async fn slow_heads_and_idle_connections_are_cut() {
    let limits = Limits { head_time: Duration::from_millis(400), ..LIMITS };
    let server = Server::start(limits, Sample::default()).await;
    // No byte at all.
    let begin = Instant::now();
    read_answer(&mut server.connect().await).await;
    assert!((0.3..3.0).contains(&begin.elapsed().as_secs_f64()));
    // A byte now and then.
    let begin = Instant::now();
    let mut stream = server.connect().await;
    for byte in b"GET /metrics HTTP/1.1\r\nHost: x\r\n".iter().cycle() {
        if stream.write_all(&[*byte]).await.is_err() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!((0.3..3.0).contains(&begin.elapsed().as_secs_f64()));
    // Idle after an answer.
    let mut stream = server.connect().await;
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("a connection");
    read_until(&mut stream, "ok\n").await;
    let begin = Instant::now();
    assert_eq!(read_answer(&mut stream).await.status, 0);
    assert!((0.3..3.0).contains(&begin.elapsed().as_secs_f64()));
    // Only one of the connections had begun a request.
    server.has_lost(&[("head_too_slow", 1)]).await;
}

/// The start of the next request is already buffered behind the first one.
#[tokio::test]
async fn a_slow_head_behind_an_answer_is_counted() {
    let limits = Limits { head_time: Duration::from_millis(400), ..LIMITS };
    let server = Server::start(limits, Sample::default()).await;
    let mut stream = server.connect().await;
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\nGET /heal").await.expect("a connection");
    assert_eq!(read_answer(&mut stream).await.status, 200);
    server.has_lost(&[("head_too_slow", 1)]).await;
}

#[tokio::test]
async fn what_peers_do_not_get_is_counted_by_reason() {
    let server = Server::start(LIMITS, Sample::default()).await;
    let zeros = [server.losses.connections_cut(), server.losses.requests_refused()].concat();
    assert!(zeros.len() == 7 && zeros.iter().all(|(_, count)| *count == 0), "{zeros:?}");
    let wide = format!("GET /metrics HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "a".repeat(100_000));
    let many = format!("GET /metrics HTTP/1.1\r\nHost: x\r\n{}\r\n", "X: y\r\n".repeat(100));
    let requests: [&[u8]; 5] = [
        wide.as_bytes(),
        many.as_bytes(),
        b"GET\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\nHost x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\xff\xfe",
    ];
    for request in requests {
        server.ask(request).await;
    }
    assert_eq!(server.get("/targets/13/metrics").await.status, 500);
    // An error status is an answer too, and the peer itself ends the connection.
    assert_eq!(server.get("/nowhere").await.status, 404);
    let mut leaving = server.connect().await;
    leaving.write_all(b"GET /metr").await.expect("a connection");
    leaving.shutdown().await.expect("a connection");
    assert_eq!(read_answer(&mut leaving).await.status, 0);
    server.has_lost(&[("head_too_large", 2), ("malformed", 3), ("failed", 1)]).await;
}

#[tokio::test]
async fn connections_are_kept_for_the_next_request() {
    let server = Server::start(LIMITS, Sample::default()).await;
    let mut stream = server.connect().await;
    for _ in 0..3 {
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("a connection");
        read_until(&mut stream, TEXT).await;
    }
}

#[tokio::test]
async fn a_peer_that_does_not_read_is_cut() {
    let limits = Limits { stall_time: Duration::from_millis(400), connections: 1, ..LIMITS };
    // More than the sockets' buffers hold.
    let server = Server::start(limits, Sample { series: 200_000, ..Sample::default() }).await;
    for (closes_its_half, times) in [(false, 1), (true, 2)] {
        let mut stuck = server.connect().await;
        stuck.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("a connection");
        if closes_its_half {
            stuck.shutdown().await.expect("a connection");
        }
        // The only slot becomes free again.
        let answer = tokio::time::timeout(Duration::from_secs(10), server.get("/healthz")).await;
        assert_eq!(answer.expect("the place is free in time").status, 200);
        server.has_lost(&[("answer_not_taken", times)]).await;
        drop(stuck);
    }
}

#[tokio::test]
async fn answers_that_nobody_takes_leave_no_room_for_others() {
    // Room for one answer, and more than the sockets' buffers hold.
    let limits = Limits { held: 30 << 20, ..LIMITS };
    let server = Server::start(limits, Sample { series: 200_000, ..Sample::default() }).await;
    let mut stuck = server.connect().await;
    stuck.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("a connection");
    tokio::time::timeout(Duration::from_secs(10), stuck.readable())
        .await
        .expect("an answer in time")
        .expect("a connection");
    let refused = server.get("/metrics").await;
    assert_eq!((refused.status, refused.text().contains("try again")), (503, true), "{refused:?}");
    assert_eq!(server.get("/healthz").await.status, 200);
    assert_eq!(server.get("/targets/42/metrics").await.status, 200);
    drop(stuck);
    let (begin, mut times) = (Instant::now(), 1);
    while server.get("/metrics").await.status != 200 {
        assert!(begin.elapsed() < Duration::from_secs(8), "the room does not become free");
        times += 1;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    server.has_lost(&[("no_room", times)]).await;
}

#[tokio::test]
async fn an_answer_larger_than_the_room_is_given_alone() {
    let server = Server::start(Limits { held: 10, ..LIMITS }, Sample::default()).await;
    for _ in 0..3 {
        assert_eq!(server.get("/metrics").await.text(), TEXT);
    }
}

#[tokio::test]
async fn one_connection_too_many_waits() {
    let limits = Limits { head_time: Duration::from_secs(30), ..LIMITS };
    let server = Server::start(limits, Sample::default()).await;
    let mut open = Vec::new();
    for _ in 0..LIMITS.connections {
        open.push(server.connect().await);
    }
    let mut next = server.connect().await;
    next.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        .await
        .expect("the queue takes it");
    let early = tokio::time::timeout(Duration::from_millis(200), next.readable()).await;
    assert!(early.is_err(), "the {}th connection was served", LIMITS.connections + 1);
    open.pop();
    assert_eq!(read_answer(&mut next).await.status, 200);
}

/// Peers that keep asking are never idle for long.
#[tokio::test]
async fn polite_peers_do_not_keep_all_places() {
    let server = Server::start(LIMITS, Sample::default()).await;
    let mut polite = JoinSet::new();
    for _ in 0..LIMITS.connections {
        let mut stream = server.connect().await;
        polite.spawn(async move {
            // Until the server closes the connection.
            while stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await.is_ok() {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        });
    }
    let scrape = tokio::time::timeout(Duration::from_secs(3), server.get("/metrics")).await;
    assert_eq!(scrape.expect("a place in time").status, 200);
}

/// An answer announces whether the connection ends.
#[tokio::test]
async fn an_answer_ends_the_connection_while_all_places_are_taken() {
    let server = Server::start(Limits { connections: 3, ..LIMITS }, Sample::default()).await;
    let ask = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n";
    let mut first = server.connect().await;
    first.write_all(ask).await.expect("a connection");
    assert!(!read_until(&mut first, "ok\n").await.contains("close"), "there is a place");
    let _others = [server.connect().await, server.connect().await];
    let mut next = server.connect().await;
    next.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        .await
        .expect("the queue takes it");
    let early = tokio::time::timeout(Duration::from_millis(200), next.readable()).await;
    assert!(early.is_err(), "the fourth connection was served");
    first.write_all(ask).await.expect("a connection");
    let answer = read_answer(&mut first).await;
    assert_eq!((answer.status, answer.header("connection")), (200, Some("close")));
    assert_eq!(read_answer(&mut next).await.status, 200);
}

#[tokio::test]
async fn who_closes_its_half_behind_a_request_is_answered() {
    let sample = Sample { takes: Duration::from_millis(50), ..Sample::default() };
    let server = Server::start(LIMITS, sample).await;
    let begin = Instant::now();
    for version in ["1.0", "1.1"] {
        let mut stream = server.connect().await;
        let request = format!("GET /metrics HTTP/{version}\r\nHost: x\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("a connection");
        stream.shutdown().await.expect("a connection");
        let answer = read_answer(&mut stream).await;
        assert_eq!((answer.status, answer.text()), (200, TEXT), "{version}");
    }
    // No connection waits for another request.
    assert!(begin.elapsed() < LIMITS.head_time);
}

#[tokio::test]
async fn a_peer_that_is_gone_leaves_its_place_in_time() {
    let limits = Limits { answer_time: Duration::from_millis(300), connections: 1, ..LIMITS };
    let server = Server::start(limits, Sample { takes: Duration::from_secs(2), ..Sample::default() }).await;
    let mut gone = server.connect().await;
    gone.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("a connection");
    drop(gone);
    let answer = tokio::time::timeout(Duration::from_secs(1), server.get("/healthz")).await;
    assert_eq!(answer.expect("the place is free in time").status, 200);
}

#[tokio::test]
async fn a_flood_of_scrapes_is_served_a_few_at_a_time() {
    let sample = Sample { takes: Duration::from_millis(20), ..Sample::default() };
    let server = Arc::new(Server::start(LIMITS, sample).await);
    let scrapes: Vec<_> = (0..40)
        .map(|_| {
            tokio::spawn({
                let server = server.clone();
                async move { server.get("/metrics").await.status }
            })
        })
        .collect();
    for scrape in scrapes {
        assert_eq!(scrape.await.expect("no panic"), 200);
    }
    assert_eq!(server.backend.most.load(SeqCst), LIMITS.scrapes);
}

/// Even more requests than permits: a failed one releases its permit.
#[test]
fn a_scrape_for_which_there_is_no_thread_is_refused() {
    without_threads(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let server = Server::start(Limits { scrapes: 2, ..LIMITS }, Sample::default()).await;
            for path in ["/metrics", "/", "/metrics"] {
                let answer = server.get(path).await;
                assert_eq!(answer.status, 500, "{path}: {answer:?}");
            }
            assert_eq!(server.get("/healthz").await.status, 200);
            server.has_lost(&[("failed", 3)]).await;
        });
    });
}

#[tokio::test]
async fn a_scrape_that_takes_too_long_is_given_up() {
    let limits = Limits { answer_time: Duration::from_millis(200), ..LIMITS };
    let server = Server::start(limits, Sample { takes: Duration::from_secs(2), ..Sample::default() }).await;
    let begin = Instant::now();
    // The third request finds both permits taken, though the first two peers are gone.
    for _ in 0..3 {
        assert_eq!(server.get("/metrics").await.status, 503);
    }
    assert!(begin.elapsed() < Duration::from_millis(1800));
    assert_eq!(server.backend.most.load(SeqCst), LIMITS.scrapes);
    assert_eq!(server.get("/healthz").await.status, 200);
    server.has_lost(&[("took_too_long", 3)]).await;
}

#[tokio::test]
async fn readiness_follows_the_backend_and_ends_with_the_shutdown() {
    // A grace period long enough to notice: the connections below must end because the server stops.
    let limits = Limits { grace: Duration::from_secs(4), ..LIMITS };
    let sample = Sample { takes: Duration::from_millis(300), ..Sample::default() };
    let mut server = Server::start(limits, sample).await;
    assert_eq!(server.get("/readyz").await.status, 503);
    assert_eq!(server.get("/healthz").await.status, 200);
    server.backend.ready.store(true, SeqCst);
    assert_eq!(server.get("/readyz").await.status, 200);

    // A slow answer in progress, with a readiness request behind it on the same connection, and an idle connection.
    let mut busy = server.connect().await;
    let mut idle = server.connect().await;
    busy.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\nGET /readyz HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .expect("a connection");
    tokio::time::sleep(Duration::from_millis(100)).await;
    let begin = Instant::now();
    drop(server.stop.take());
    assert_eq!(read_answer(&mut idle).await.status, 0);
    let answer = read_answer(&mut busy).await;
    assert!(answer.status == 200 && answer.text().starts_with(TEXT), "{answer:?}");
    assert!(!answer.text().contains("ready\n"), "{answer:?}");
    server.task.await.expect("no panic");
    assert!(begin.elapsed() < Duration::from_secs(2));
    assert!(TcpStream::connect(server.addr).await.is_err());
}

#[tokio::test]
async fn healthz_is_503_while_counting_stands_still() {
    let server = Server::start(LIMITS, Sample::default()).await;
    server.backend.stands_still.store(true, SeqCst);
    let answer = server.get("/healthz").await;
    assert!(answer.status == 503 && answer.text().contains(" has not run for 12 s: "), "{answer:?}");
    server.backend.stands_still.store(false, SeqCst);
    assert_eq!(server.get("/healthz").await.status, 200);
}

#[tokio::test]
async fn readyz_is_503_once_stopping() {
    let app = App {
        backend: Arc::new(Sample { ready: true.into(), ..Sample::default() }),
        losses: Arc::default(),
        scrapes: Arc::new(Semaphore::new(1)),
        room: Room::of(1),
        stopping: AtomicBool::new(false),
    };
    let app = Arc::new(app);
    assert_eq!(readyz(State(app.clone())).await.status(), StatusCode::OK);
    app.stopping.store(true, SeqCst);
    assert_eq!(readyz(State(app)).await.status(), StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn a_stuck_answer_does_not_hold_up_the_shutdown() {
    let mut server =
        Server::start(LIMITS, Sample { takes: Duration::from_secs(3), ..Sample::default() }).await;
    let mut busy = server.connect().await;
    busy.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("a connection");
    tokio::time::sleep(Duration::from_millis(100)).await;
    let begin = Instant::now();
    drop(server.stop.take());
    server.task.await.expect("no panic");
    assert!(begin.elapsed() < Duration::from_secs(1));
}

#[tokio::test]
async fn the_page_is_plain() {
    let server = Server::start(LIMITS, Sample::default()).await;
    let answer = server.get("/").await;
    assert_eq!(answer.header("content-type"), Some("text/html; charset=utf-8"));
    assert!(
        answer
            .header("content-security-policy")
            .is_some_and(|policy| policy.starts_with("default-src 'none'"))
    );
    assert!(answer.text().contains("Nothing is attached") && !answer.text().contains("<script"));
}
