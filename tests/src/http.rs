//! A minimal HTTP client for the tests: one GET per connection, whatever the status.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};

/// The limit of a response body, in bytes: larger than any scrape.
const LARGEST: u64 = 64 << 20;

/// A response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// The URL requested.
    pub url: String,
    /// The status.
    pub status: u16,
    /// The headers whose values are text, with names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body, decompressed if it was compressed.
    pub body: String,
}

impl Response {
    /// Returns the body. Any status but 200 is an error.
    pub fn ok_body(self) -> Result<String> {
        if self.status != 200 {
            bail!("GET {}: status {}: {}", self.url, self.status, self.body);
        }
        Ok(self.body)
    }

    /// Returns the value of a header. `name` is in lower case.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }
}

/// Requests `http://ADDRESS/PATH`, with a timeout of ten seconds.
pub fn get(address: &str, path: &str) -> Result<Response> {
    // A new connection for each request, so that none stays open.
    let config = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_global(Some(Duration::from_secs(10)))
        .max_idle_connections(0)
        // Everything requested is on this machine, but ureq would use a proxy from the environment all the same.
        .proxy(None)
        .build();
    let url = format!("http://{address}{path}");
    let sent = ureq::Agent::new_with_config(config).get(&url).call();
    let mut response = sent.with_context(|| format!("GET {url}"))?;
    let headers = response.headers().iter();
    let headers =
        headers.filter_map(|(name, value)| Some((name.to_string(), value.to_str().ok()?.to_owned())));
    Ok(Response {
        status: response.status().as_u16(),
        headers: headers.collect(),
        body: response.body_mut().with_config().limit(LARGEST).read_to_string()?,
        url,
    })
}
