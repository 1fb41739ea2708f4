//! The parser accepts the text of `client_golang`, and refuses everything that Prometheus would refuse, and more.

use std::{fs, panic};

use super::{Kind, Scrape, whole};
use crate::paths;

const HEAD: &str = "# HELP calls Calls.\n# TYPE calls counter\n";

fn refused(text: &str) -> String {
    match Scrape::parse(text) {
        Ok(scrape) => panic!("{text:?} was read as {scrape:?}"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn text_of_client_golang() {
    let path = paths::tests().with_file_name("monitor-agent").join("tests/golden/client_golang.txt");
    let scrape = Scrape::parse(&fs::read_to_string(path).unwrap()).unwrap();
    assert_eq!(scrape.families.len(), 9);
    assert_eq!(scrape.families["kitex_server_throughput"].kind, Kind::Counter);
    assert_eq!(scrape.families["no_labels"].help, "");
    let calls = |labels| scrape.sum("kitex_server_throughput", labels);
    assert_eq!(Some(calls(&[("method", "Lookup")])), Some(1_100_000.0));
    assert_eq!(Some(calls(&[("method", "Lookup"), ("status", "error")])), Some(100_000.0));
    assert_eq!(scrape.value("kitex_server_throughput", &[("method", "Lookup")]), None);
    assert_eq!(scrape.value("escapes", &[("value", "line\nbreak")]), Some(3.0));
    assert_eq!(scrape.value("escapes", &[("value", "{a=\"b\",c=\"d\"} 1")]), Some(11.0));
    assert_eq!(scrape.value("floats", &[("case", "minus inf")]), Some(f64::NEG_INFINITY));
    assert!(scrape.value("floats", &[("case", "nan")]).unwrap().is_nan());
}

#[test]
fn histograms_add_up_and_have_quantiles() {
    let text = "# HELP us Time.\n# TYPE us histogram\n\
        us_bucket{m=\"a\",le=\"10\"} 50\nus_bucket{m=\"a\",le=\"20\"} 99\nus_bucket{m=\"a\",le=\"+Inf\"} 100\n\
        us_sum{m=\"a\"} 1000\nus_count{m=\"a\"} 100\n\
        us_bucket{m=\"b\",le=\"10\"} 0\nus_bucket{m=\"b\",le=\"20\"} 0\nus_bucket{m=\"b\",le=\"+Inf\"} 0\n\
        us_sum{m=\"b\"} 0\nus_count{m=\"b\"} 0\n";
    let scrape = Scrape::parse(text).unwrap();
    let a = scrape.histogram("us", &[("m", "a")]).unwrap();
    assert_eq!(a.quantile(0.5), Some(10.0));
    assert_eq!(a.quantile(0.25), Some(5.0));
    assert_eq!(a.quantile(0.999), Some(20.0));
    assert_eq!(a.quantile_bounds(0.99), Some((10.0, 20.0)));
    assert_eq!(a.quantile_bounds(0.999), Some((20.0, f64::INFINITY)));
    assert_eq!(scrape.histogram("us", &[]), Some(a.clone()));
    assert_eq!(a.since(&a).unwrap().quantile(0.5), None);
    assert_eq!(scrape.histogram("us", &[("m", "c")]), None);
    assert_eq!(scrape.histograms("us").len(), 2);
}

#[test]
fn what_is_no_count_is_not_made_one() {
    assert_eq!([0.0, -0.0, 12.0].map(whole), [0, 0, 12]);
    for number in [-1.0, 0.5, 9_007_199_254_740_992.0, f64::INFINITY, f64::NAN] {
        assert!(panic::catch_unwind(|| whole(number)).is_err(), "{number}");
    }
}

#[test]
fn order_of_lines() {
    assert!(refused("calls 1\n").contains("without HELP and TYPE"));
    assert!(refused("# TYPE calls counter\ncalls 1\n").contains("without HELP"));
    assert!(refused("# HELP calls Calls.\ncalls 1\n").contains("without HELP and TYPE"));
    assert!(refused("# HELP calls Calls.\n# HELP b B.\n").contains("without TYPE"));
    assert!(refused("# HELP calls Calls.\n# TYPE other counter\n").contains("for calls"));
    assert!(refused(HEAD).contains("no samples"));
    assert!(refused(&format!("{HEAD}calls 1\nother 1\n")).contains("not a sample of calls"));
    assert!(refused(&format!("{HEAD}calls 1\n{HEAD}calls{{a=\"b\"}} 1\n")).contains("before"));
    assert!(refused(&format!("{HEAD}calls 1\n\n")).contains("neither"));
    assert!(refused(&format!("{HEAD}calls 1\n# a comment\n")).contains("neither"));
    assert!(refused(&format!("{HEAD}calls 1")).contains("does not end"));
}

#[test]
fn broken_samples() {
    for (line, why) in [
        ("calls", "no value"),
        ("calls ", "not a number"),
        ("calls  1", "not a number"),
        ("calls 1 1700000000000", "not a number"),
        ("calls one", "not a number"),
        ("calls inf", "not a number"),
        ("calls -1", "cannot have this value"),
        ("calls NaN", "cannot have this value"),
        ("calls_total 1", "not a sample of calls"),
        ("1calls 1", "not a name"),
        ("calls{a=\"b\"}1", "no space"),
        ("calls{a=\"b\" 1", "neither a label nor the end"),
        ("calls{a=\"b\",} 1", "neither a label nor the end"),
        ("calls{,} 1", "label"),
        ("calls{a=b} 1", "label without a value"),
        ("calls{a:b=\"c\"} 1", "not a name"),
        ("calls{a=\"b\",a=\"c\"} 1", "twice"),
        ("calls{a=\"b} 1", "no closing quote"),
        ("calls{a=\"\\t\"} 1", "escape"),
        ("calls{le=\"1\"} 1", "`le`"),
    ] {
        let error = refused(&format!("{HEAD}{line}\n"));
        assert!(error.contains(why) && error.starts_with("line 3:"), "{line}: {error}");
    }
}

#[test]
fn series_twice() {
    let text = format!("{HEAD}calls{{a=\"1\",b=\"2\"}} 1\ncalls{{b=\"2\",a=\"1\"}} 1\n");
    assert!(refused(&text).contains("the series was there before"));
}

#[test]
fn broken_histograms() {
    let head = "# HELP us Time.\n# TYPE us histogram\n";
    for samples in [
        "us_bucket{le=\"1\"} 1\nus_sum 1\nus_count 1\n",
        "us_bucket{le=\"+Inf\"} 1\nus_sum 1\nus_count 2\n",
        "us_bucket{le=\"1\"} 2\nus_bucket{le=\"+Inf\"} 1\nus_sum 1\nus_count 1\n",
        "us_bucket{le=\"2\"} 1\nus_bucket{le=\"1\"} 1\nus_bucket{le=\"+Inf\"} 1\nus_sum 1\nus_count 1\n",
        "us_bucket{le=\"x\"} 1\nus_bucket{le=\"+Inf\"} 1\nus_sum 1\nus_count 1\n",
        "us_bucket{le=\"+Inf\"} 1\nus_count 1\n",
        "us_bucket{le=\"+Inf\"} 1\nus_sum 1\n",
        "us_bucket 1\nus_sum 1\nus_count 1\n",
        "us 1\n",
    ] {
        refused(&format!("{head}{samples}"));
    }
}
