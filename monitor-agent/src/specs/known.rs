//! The built-in specs. Each is used only on request.

/// Names and texts of the specs.
pub static KNOWN: &[(&str, &str)] = &[
    ("net-http", include_str!("../../frameworks/net-http.toml")),
    ("hertz", include_str!("../../frameworks/hertz.toml")),
];
