//! A client that sends messages to a collector.

use std::{
    io,
    net::SocketAddr,
    path::Path,
    pin::Pin,
    str::FromStr,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use flate2::{Compression, write::GzEncoder};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{
    HeaderMap, Method, Request, Response, Uri,
    body::{Bytes, Incoming},
    header::{self, HeaderName, HeaderValue},
};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{
        Client as HyperClient,
        connect::{HttpConnector, dns::Name},
    },
    rt::TokioExecutor,
};
use opentelemetry_proto::tonic::collector::metrics::v1::{
    ExportMetricsServiceRequest, ExportMetricsServiceResponse, metrics_service_client::MetricsServiceClient,
};
use prost::Message as _;
use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem, pem::PemObject as _},
};
use thiserror::Error;
use tonic::{
    Code, Status,
    codec::CompressionEncoding,
    metadata::MetadataMap,
    transport::{Channel, Endpoint},
};
use tonic_types::StatusExt as _;
use tower::Service;

use super::{
    Settings, chain,
    settings::{Protocol, TlsFiles},
};
use crate::threads;

/// The most bytes of an answer.
const ANSWER_MAX: usize = 64 << 10;

/// The collector's answer to a message that it took.
pub(super) struct Reply {
    /// The number of points that it rejected.
    pub(super) rejected_points: u64,
    /// The reason that it gives.
    pub(super) message: String,
}

/// The reason why a message was not taken.
pub(super) struct Refused {
    pub(super) why: String,
    pub(super) again: Again,
}

/// Whether to retry.
#[derive(Clone, Copy)]
pub(super) enum Again {
    Never,
    /// After a pause that the agent chooses.
    AfterPause,
    /// After the time that the collector gave.
    After(Duration),
}

impl Refused {
    /// A failure that may pass.
    pub(super) fn for_now(why: impl Into<String>, after: Option<Duration>) -> Self {
        Self { why: why.into(), again: after.map_or(Again::AfterPause, Again::After) }
    }

    /// A failure that is permanent.
    fn for_good(why: impl Into<String>) -> Self {
        Self { why: why.into(), again: Again::Never }
    }
}

/// Why no client can be created.
#[derive(Debug, Error)]
pub enum ClientError {
    /// A PEM file for TLS can't be used.
    #[error("cannot read {path}: {why}")]
    File {
        /// Its path.
        path: String,
        /// What is wrong with it.
        why: String,
    },
    /// TLS can't be configured.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// A header is invalid.
    #[error("a header of OTEL_EXPORTER_OTLP_HEADERS is none: {0}")]
    Header(String),
}

/// Sends messages to one collector.
pub struct Client(Kind);

enum Kind {
    Grpc(Box<Grpc>),
    Http(Box<Http>),
}

struct Grpc {
    client: MetricsServiceClient<Channel>,
    metadata: MetadataMap,
}

struct Http {
    client: HyperClient<HttpsConnector<HttpConnector<Names>>, Full<Bytes>>,
    endpoint: Uri,
    headers: HeaderMap,
    compressed: bool,
}

impl Client {
    /// Creates a client. It connects when it first sends.
    pub fn new(settings: &Settings) -> Result<Self, ClientError> {
        let mut headers = HeaderMap::new();
        for (name, value) in &settings.headers {
            let wrong = || ClientError::Header(name.clone());
            let name = HeaderName::from_str(name).map_err(|_| wrong())?;
            headers.insert(name, HeaderValue::from_str(value).map_err(|_| wrong())?);
        }
        let mut http = HttpConnector::new_with_resolver(Names);
        // The HTTPS connector decides which schemes are allowed.
        http.enforce_http(false);
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls(&settings.tls, &settings.endpoint)?)
            .https_or_http();
        Ok(Self(match settings.protocol {
            Protocol::Grpc => {
                let channel = Endpoint::from(settings.endpoint.clone())
                    .connect_timeout(settings.timeout)
                    .connect_with_connector_lazy(connector.enable_http2().wrap_connector(http));
                // Collectors answer in the encoding of the request.
                let mut client =
                    MetricsServiceClient::new(channel).accept_compressed(CompressionEncoding::Gzip);
                if settings.compressed {
                    client = client.send_compressed(CompressionEncoding::Gzip);
                }
                Kind::Grpc(Box::new(Grpc { client, metadata: MetadataMap::from_headers(headers) }))
            }
            Protocol::Http => {
                let (endpoint, compressed) = (settings.endpoint.clone(), settings.compressed);
                let client = HyperClient::builder(TokioExecutor::new())
                    .build(connector.enable_http1().wrap_connector(http));
                Kind::Http(Box::new(Http { client, endpoint, headers, compressed }))
            }
        }))
    }

    /// Sends a message once, without retries.
    pub(super) async fn send(&self, message: &ExportMetricsServiceRequest) -> Result<Reply, Refused> {
        let response = match &self.0 {
            Kind::Grpc(grpc) => grpc.send(message.clone()).await?,
            Kind::Http(http) => http.send(message).await?,
        };
        let partial = response.partial_success.unwrap_or_default();
        let rejected_points = u64::try_from(partial.rejected_data_points).unwrap_or_default();
        Ok(Reply { rejected_points, message: partial.error_message })
    }
}

/// Resolves names as hyper does, but returns an error instead of panicking if no thread can be started.
#[derive(Clone)]
struct Names;

impl Service<Name> for Names {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        // The connector sets the port.
        Box::pin(async move { threads::look_up(name.as_str(), 0).await })
    }
}

impl Grpc {
    async fn send(
        &self,
        message: ExportMetricsServiceRequest,
    ) -> Result<ExportMetricsServiceResponse, Refused> {
        let mut request = tonic::Request::new(message);
        *request.metadata_mut() = self.metadata.clone();
        // A client is a handle: clones share the connection.
        let response = self.client.clone().export(request).await;
        response.map(tonic::Response::into_inner).map_err(|status| refused(&status))
    }
}

/// Maps a status to whether to retry, by `docs/specification.md` of OTLP @ v1.8.0.
fn refused(status: &Status) -> Refused {
    let after = status.get_details_retry_info().and_then(|info| info.retry_delay);
    let cause = std::error::Error::source(status).map(|source| format!(": {}", chain(source)));
    let why = format!("{:?}: {}{}", status.code(), status.message(), cause.unwrap_or_default());
    match status.code() {
        Code::Cancelled
        | Code::DeadlineExceeded
        | Code::Aborted
        | Code::OutOfRange
        | Code::Unavailable
        | Code::DataLoss => Refused::for_now(why, after),
        // Only if the collector gives a time.
        Code::ResourceExhausted if after.is_some() => Refused::for_now(why, after),
        // Not the collector's answer: the connection failed.
        Code::Unknown if std::error::Error::source(status).is_some() => Refused::for_now(why, None),
        _ => Refused::for_good(why),
    }
}

impl Http {
    async fn send(
        &self,
        message: &ExportMetricsServiceRequest,
    ) -> Result<ExportMetricsServiceResponse, Refused> {
        let failed = |why: &dyn std::error::Error| Refused::for_now(chain(why), None);
        let request =
            self.request(message.encode_to_vec()).map_err(|error| Refused::for_good(chain(&*error)))?;
        let response = self.client.request(request).await.map_err(|error| failed(&error))?;
        let status = response.status();
        // OTLP's code is 200. A proxy in front of the collector may use another one for success.
        if !status.is_success() {
            return Err(refused_by_http(&response));
        }
        let answer = Limited::new(response.into_body(), ANSWER_MAX).collect().await;
        let answer = answer.map_err(|error| failed(&*error))?.to_bytes();
        // The message is taken, even if the answer can't be decoded.
        Ok(ExportMetricsServiceResponse::decode(answer).unwrap_or_default())
    }

    fn request(&self, mut body: Vec<u8>) -> Result<Request<Full<Bytes>>, Box<dyn std::error::Error>> {
        let mut headers = self.headers.clone();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
        let agent = concat!(env!("CARGO_PKG_NAME"), "/", env!("CARGO_PKG_VERSION"));
        headers.insert(header::USER_AGENT, HeaderValue::from_static(agent));
        if self.compressed {
            headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            body = gzip(&body)?;
        }
        let mut request =
            Request::builder().method(Method::POST).uri(self.endpoint.clone()).body(Full::from(body))?;
        *request.headers_mut() = headers;
        Ok(request)
    }
}

fn gzip(bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    io::Write::write_all(&mut encoder, bytes)?;
    encoder.finish()
}

fn refused_by_http(response: &Response<Incoming>) -> Refused {
    let why = format!("the collector answers {}", response.status());
    match response.status().as_u16() {
        429 | 502 | 503 | 504 => {
            let after = response.headers().get(header::RETRY_AFTER).and_then(|value| value.to_str().ok());
            Refused::for_now(why, after.and_then(|value| value.parse().ok()).map(Duration::from_secs))
        }
        _ => Refused::for_good(why),
    }
}

fn tls(files: &TlsFiles, endpoint: &Uri) -> Result<ClientConfig, ClientError> {
    let mut roots = RootCertStore::empty();
    if let Some(path) = &files.authorities {
        for certificate in certificates(path)? {
            roots.add(certificate)?;
        }
    } else if endpoint.scheme_str() == Some("https") {
        // Some systems have certificates that can't be read. They are skipped.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots);
    let Some((certificate, key)) = &files.own else { return Ok(builder.with_no_client_auth()) };
    let key_file = PrivateKeyDer::from_pem_file(key).map_err(|error| unreadable(key, &error))?;
    Ok(builder.with_client_auth_cert(certificates(certificate)?, key_file)?)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, ClientError> {
    let certificates = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match certificates {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        Ok(_) => Err(unreadable(path, &pem::Error::NoItemsFound)),
        Err(error) => Err(unreadable(path, &error)),
    }
}

fn unreadable(path: &Path, error: &pem::Error) -> ClientError {
    ClientError::File { path: path.display().to_string(), why: chain(error) }
}
