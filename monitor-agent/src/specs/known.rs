//! The specs that the agent has itself. None is used unless it is asked for.

/// Names and texts.
pub static KNOWN: &[(&str, &str)] = &[
    ("net-http", include_str!("../../frameworks/net-http.toml")),
    ("hertz", include_str!("../../frameworks/hertz.toml")),
];
