//! One connection, and the limits on what its peer may do.

use std::{
    convert::Infallible,
    io,
    pin::Pin,
    sync::{Arc, atomic::AtomicU64},
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::{
    Router,
    http::{HeaderValue, Request, StatusCode, header},
    response::{IntoResponse, Response},
};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    sync::{Semaphore, watch},
    time::{Sleep, sleep},
};
use tower::ServiceExt;

use super::{
    Limits,
    losses::{Losses, count},
};

/// Serves one connection until it ends, breaks a limit, is answered while all places for connections are taken, or the
/// server stops.
pub(super) async fn run(
    limits: Limits,
    stream: TcpStream,
    router: Router,
    losses: Arc<Losses>,
    places: Arc<Semaphore>,
    mut stopped: watch::Receiver<bool>,
) {
    // Without it an answer's last part may wait for the peer's acknowledgement of the first.
    let _ = stream.set_nodelay(true);
    let stream = TokioIo::new(Guarded { stream, limit: limits.stall_time, stall: None, is_cut: false });
    let of_answers = Arc::clone(&losses);
    let service = service_fn(move |request| {
        answer(limits.answer_time, router.clone(), Arc::clone(&of_answers), Arc::clone(&places), request)
    });
    let mut connection = http1::Builder::new()
        .timer(TokioTimer::new())
        // Who has no more to ask may close its half. So one that is gone is noticed when its answer is written.
        .half_close(true)
        .header_read_timeout(limits.head_time)
        .max_buf_size(limits.head_size)
        .max_headers(limits.head_lines)
        .serve_connection(stream, service);
    // Errors here are resets, which are the peer's business, time limits and bad requests.
    let ended = tokio::select! {
        result = &mut connection => Some(result),
        () = told(&mut stopped) => None,
    };
    let result = if let Some(result) = ended {
        result
    } else {
        Pin::new(&mut connection).graceful_shutdown();
        (&mut connection).await
    };
    let Err(error) = result else { return };
    tracing::debug!(%error, "connection ended");
    let parts = connection.into_parts();
    if let Some(loss) = loss(&losses, &error, parts.io.inner().is_cut, !parts.read_buf.is_empty()) {
        count(loss);
    }
}

/// What a connection's end is counted as, if it is not the peer's own: whether its peer took an answer too slowly, and
/// whether a head had begun to come.
fn loss<'a>(
    losses: &'a Losses,
    error: &hyper::Error,
    is_cut: bool,
    has_begun: bool,
) -> Option<&'a AtomicU64> {
    if is_cut {
        return Some(&losses.answer_not_taken);
    }
    if error.is_parse_too_large() {
        return Some(&losses.head_too_large);
    }
    if error.is_parse() {
        return Some(&losses.malformed);
    }
    // Who has asked for nothing loses nothing: that is how idle connections end.
    (error.is_timeout() && has_begun).then_some(&losses.head_too_slow)
}

/// Resolves when the server stops.
async fn told(stopped: &mut watch::Receiver<bool>) {
    // An error is a server that is gone altogether.
    let _ = stopped.wait_for(|&stopped| stopped).await;
}

async fn answer(
    limit: Duration,
    router: Router,
    losses: Arc<Losses>,
    places: Arc<Semaphore>,
    request: Request<Incoming>,
) -> Result<Response, Infallible> {
    let made = tokio::time::timeout(limit, router.oneshot(request)).await;
    let Ok(mut response) = made.unwrap_or_else(|_| {
        count(&losses.took_too_long);
        let text = "too many scrapes at once, or one that takes too long: try again\n";
        Ok((StatusCode::SERVICE_UNAVAILABLE, text).into_response())
    });
    // Places go round: whoever asks again and again would keep one for ever, and others wait for it.
    if places.available_permits() == 0 {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(response)
}

/// A stream whose peer must take what is written to it: it is cut when writing has to wait longer than the limit.
/// Time runs from the first wait of an answer to its end, so that taking a byte now and then does not help.
struct Guarded {
    stream: TcpStream,
    limit: Duration,
    stall: Option<Pin<Box<Sleep>>>,
    /// The limit was passed.
    is_cut: bool,
}

impl Guarded {
    fn guard(&mut self, cx: &mut Context<'_>, wrote: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if wrote.is_ready() {
            return wrote;
        }
        let limit = self.limit;
        let stall = self.stall.get_or_insert_with(|| Box::pin(sleep(limit)));
        ready!(stall.as_mut().poll(cx));
        self.is_cut = true;
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Guarded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        if buf.filled().len() > before {
            // The next request: the answer before it was taken.
            self.stall = None;
        }
        read
    }
}

impl AsyncWrite for Guarded {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let wrote = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.guard(cx, wrote)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let wrote = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.guard(cx, wrote)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
