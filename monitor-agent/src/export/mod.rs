//! How the numbers leave the agent: the Prometheus text format and the HTTP server that offers it.

pub mod http;
mod negotiate;
mod page;
pub mod text;
pub mod time;
