//! Content negotiation with a scraper: `Accept` and `Accept-Encoding`.

use axum::http::{HeaderMap, header};

/// Returns the content type of the text format, as `promhttp` answers if it offers no other format (expfmt.Negotiate @
/// prometheus/common v0.70). `escaping` is for names outside the classic character set. There are none here, so the
/// answer only repeats the request's value.
pub(super) fn content_type(headers: &HeaderMap) -> &'static str {
    let mut answer = "text/plain; version=0.0.4; charset=utf-8; escaping=underscores";
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let mut clauses: Vec<_> = accept.split(',').map(Clause::parse).collect();
    clauses.sort_by(|a, b| b.quality.total_cmp(&a.quality));
    for clause in clauses {
        answer = match clause.parameter("escaping") {
            Some("allow-utf-8") => "text/plain; version=0.0.4; charset=utf-8; escaping=allow-utf-8",
            Some("underscores") => "text/plain; version=0.0.4; charset=utf-8; escaping=underscores",
            Some("dots") => "text/plain; version=0.0.4; charset=utf-8; escaping=dots",
            Some("values") => "text/plain; version=0.0.4; charset=utf-8; escaping=values",
            _ => answer,
        };
        if clause.value == "text/plain" && matches!(clause.parameter("version"), None | Some("0.0.4")) {
            break;
        }
    }
    answer
}

/// Whether the answer is compressed: if gzip is preferred to no encoding, as `promhttp` decides.
pub(super) fn wants_gzip(headers: &HeaderMap) -> bool {
    let lines = headers.get_all(header::ACCEPT_ENCODING);
    let clauses: Vec<_> = lines
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|line| line.split(','))
        .map(Clause::parse)
        .collect();
    let quality = |coding: &str| {
        let of = |name: &str| clauses.iter().find(|clause| clause.value.eq_ignore_ascii_case(name));
        of(coding).or_else(|| of("*")).map_or(0.0, |clause| clause.quality)
    };
    quality("gzip") > quality("identity")
}

/// One item of a list of preferences: `text/plain;version=0.0.4;q=0.5`.
struct Clause<'a> {
    value: &'a str,
    parameters: &'a str,
    quality: f32,
}

impl<'a> Clause<'a> {
    fn parse(text: &'a str) -> Self {
        let (value, parameters) = text.split_once(';').unwrap_or((text, ""));
        let mut clause = Self { value: value.trim(), parameters, quality: 1.0 };
        if let Some(quality) = clause.parameter("q") {
            // A quality out of bounds, or not a number: not wanted.
            clause.quality = quality.parse().ok().filter(|q| (0.0..=1.0).contains(q)).unwrap_or(0.0);
        }
        clause
    }

    fn parameter(&self, name: &str) -> Option<&'a str> {
        let mut pairs = self.parameters.split(';').filter_map(|pair| pair.split_once('='));
        pairs.find(|(key, _)| key.trim() == name).map(|(_, value)| value.trim())
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn with(name: header::HeaderName, value: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(name, HeaderValue::from_bytes(value.as_bytes()).expect("a header"));
        headers
    }

    #[test]
    fn content_types_are_those_that_promhttp_answers() {
        // Each answer is from promhttp @ client_golang v1.24.1. The fifth request is that of Prometheus 3 itself.
        let asked = [
            ("", "underscores"),
            ("*/*", "underscores"),
            ("text/plain", "underscores"),
            ("text/plain;version=0.0.4;escaping=allow-utf-8", "allow-utf-8"),
            (
                "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
                 application/openmetrics-text;version=0.0.1;q=0.5,\
                 text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
                "allow-utf-8",
            ),
            ("text/plain;q=0.9,application/x;escaping=dots;q=0.5", "underscores"),
            ("text/plain;q=0.1,application/x;escaping=dots;q=0.5", "dots"),
            ("text/plain;escaping=nonsense", "underscores"),
            ("text/plain;version=0.0.4;q=bad, a/b;escaping=values", "values"),
            (";;;,,/", "underscores"),
            ("text/plain; version=0.0.4; escaping=values", "values"),
        ];
        for (accept, escaping) in asked {
            let expected = format!("text/plain; version=0.0.4; charset=utf-8; escaping={escaping}");
            assert_eq!(content_type(&with(header::ACCEPT, accept)), expected, "{accept}");
        }
    }

    #[test]
    fn encodings_are_those_that_promhttp_answers() {
        // As above, except for the last two, where the standard (RFC 9110, 12.5.3) wants gzip.
        let asked = [
            ("", false),
            ("gzip", true),
            ("gzip;q=0", false),
            ("gzip;q=0.5", true),
            ("identity", false),
            ("gzip, identity", false),
            ("gzip;q=1.0, identity;q=0.5", true),
            ("gzip;q=0.5, identity", false),
            ("*", false),
            ("*;q=0", false),
            ("gzip;q=0, *", false),
            ("deflate, br", false),
            ("deflate, gzip;q=0.2, br", true),
            ("gzip;q=abc", false),
            ("gzip;q=2", false),
            ("GZIP", true),
            ("identity;q=0, *", true),
        ];
        for (accept, gzip) in asked {
            assert_eq!(wants_gzip(&with(header::ACCEPT_ENCODING, accept)), gzip, "{accept}");
        }
        assert!(!wants_gzip(&HeaderMap::new()));
    }

    proptest! {
        // A failure prints the input; a file beside the sources would be forgotten.
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn no_header_does_harm(bytes in proptest::collection::vec(32_u8..=255, 0..200)) {
            if let Ok(value) = HeaderValue::from_bytes(&bytes) {
                let headers = [(header::ACCEPT, value.clone()), (header::ACCEPT_ENCODING, value)].into_iter().collect();
                wants_gzip(&headers);
                content_type(&headers);
            }
        }
    }
}
