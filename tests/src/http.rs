//! HTTP as the tests need it: one GET, one connection, whatever the status.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};

/// Larger than any scrape.
const LARGEST: u64 = 64 << 20;

/// What was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// What was asked for.
    pub url: String,
    /// The status.
    pub status: u16,
    /// The headers that are text, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body, unpacked if it was compressed.
    pub body: String,
}

impl Response {
    /// The body, if the status is 200.
    pub fn ok_body(self) -> Result<String> {
        if self.status != 200 {
            bail!("GET {}: status {}: {}", self.url, self.status, self.body);
        }
        Ok(self.body)
    }

    /// The value of a header, by its name in lower case.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }
}

/// Asks `http://ADDRESS/PATH`, ten seconds at most.
pub fn get(address: &str, path: &str) -> Result<Response> {
    // A connection of its own for each request: nothing is held open at the end.
    let config = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_global(Some(Duration::from_secs(10)))
        .max_idle_connections(0)
        // All that is asked is on this machine; ureq would take a proxy from the environment for that, too.
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
