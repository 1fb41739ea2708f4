//! Export of metrics: the Prometheus text format, the HTTP server that serves it, and OTLP.

pub mod http;
mod negotiate;
pub mod otlp;
mod page;
pub mod text;
