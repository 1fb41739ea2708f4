//! How the numbers leave the agent: the Prometheus text format and the HTTP server that offers it,
//! and OTLP.

pub mod http;
mod negotiate;
pub mod otlp;
mod page;
pub mod text;
