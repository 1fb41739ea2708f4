//! One connection, with the limits on its peer.

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

/// Serves one connection. Returns when it ends or breaks a limit, after an answer while all slots are taken, or when
/// the server stops.
pub(super) async fn run(
    limits: Limits,
    stream: TcpStream,
    router: Router,
    losses: Arc<Losses>,
    places: Arc<Semaphore>,
    mut stopped: watch::Receiver<bool>,
) {
    // Otherwise the last part of an answer may wait for the peer's acknowledgement of the first.
    let _ = stream.set_nodelay(true);
    let stream = TokioIo::new(Guarded { stream, limit: limits.stall_time, stall: None, is_cut: false });
    let of_answers = Arc::clone(&losses);
    let service = service_fn(move |request| {
        answer(limits.answer_time, router.clone(), Arc::clone(&of_answers), Arc::clone(&places), request)
    });
    let mut connection = http1::Builder::new()
        .timer(TokioTimer::new())
        // A peer without further requests may close its half. So one that is gone is only noticed when its answer is
        // written.
        .half_close(true)
        .header_read_timeout(limits.head_time)
        .max_buf_size(limits.head_size)
        .max_headers(limits.head_lines)
        .serve_connection(stream, service);
    // Errors here are time limits, bad requests, and resets by the peer.
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

/// Returns the counter for the end of a connection, or `None` if the peer ended it. `is_cut` is set if the peer took an
/// answer too slowly, `has_begun` if a request's head had begun to arrive.
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
    // Without a request nothing is lost: idle connections end like this.
    (error.is_timeout() && has_begun).then_some(&losses.head_too_slow)
}

/// Resolves when the server stops.
async fn told(stopped: &mut watch::Receiver<bool>) {
    // An error means that the server is gone.
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
    // Slots rotate: a peer that asks again and again would keep one for ever, while others wait for it.
    if places.available_permits() == 0 {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(response)
}

/// A stream that is cut if its peer takes an answer too slowly. The time runs from the first write that has to wait to
/// the end of the answer, so taking a byte now and then does not help.
struct Guarded {
    stream: TcpStream,
    limit: Duration,
    stall: Option<Pin<Box<Sleep>>>,
    /// Whether the limit was exceeded.
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
            // The next request: the previous answer was taken.
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
