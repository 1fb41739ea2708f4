//! The Prometheus text format 0.0.4, byte for byte as `client_golang` writes it.
//!
//! The `prometheus` crate's own encoder formats numbers differently (`le="1000000"` for `le="1e+06"`), which makes
//! different series. The order is that of `Registry.Gather` (prometheus/internal/metric.go @ v1.24.1): families by
//! name, labels by name, series by the values of their labels. The layout is that of `expfmt/text_create.go`.

use std::{cmp::Ordering, collections::BTreeMap, fmt::Write, ops::Range};

use prometheus::proto::{Histogram, LabelPair, Metric, MetricFamily, MetricType, Summary};

/// Encodes families as text.
///
/// Families of the same name are merged. Names must be of the classic form (letters, digits, `_`, and `:` in metrics):
/// they are written as they are. A duplicate series would make Prometheus reject everything. So of duplicate series,
/// and of labels or types under the same name, only the first is written; the others are logged.
#[must_use]
pub fn encode(families: &[MetricFamily]) -> String {
    let mut by_name = BTreeMap::<&str, Vec<&MetricFamily>>::new();
    for family in families.iter().filter(|family| !family.get_metric().is_empty()) {
        by_name.entry(family.name()).or_default().push(family);
    }
    let mut out = String::new();
    for (name, parts) in by_name {
        write_family(&mut out, name, &parts);
    }
    out
}

/// One series, with its labels in the order of writing.
struct Series<'a> {
    labels: Vec<&'a LabelPair>,
    metric: &'a Metric,
}

impl<'a> Series<'a> {
    fn new(metric: &'a Metric) -> Self {
        let mut labels: Vec<_> = metric.get_label().iter().collect();
        labels.sort_by_key(|label| label.name());
        labels.dedup_by(|next, kept| next.name() == kept.name());
        Self { labels, metric }
    }

    /// The order of `Gather`. Names break ties, for which `client_golang` has no order.
    fn order(&self, other: &Self) -> Ordering {
        let (ours, others) = (&self.labels, &other.labels);
        let values = || ours.iter().map(|label| label.value()).cmp(others.iter().map(|label| label.value()));
        let names = || ours.iter().map(|label| label.name()).cmp(others.iter().map(|label| label.name()));
        ours.len().cmp(&others.len()).then_with(values).then_with(names)
    }
}

fn write_family(out: &mut String, name: &str, parts: &[&MetricFamily]) {
    let Some(first) = parts.first() else { return };
    let kind = first.get_field_type();
    let (same, others): (Vec<&MetricFamily>, Vec<_>) =
        parts.iter().partition(|part| part.get_field_type() == kind);
    if !others.is_empty() {
        tracing::error!(metric = name, "given with two types; only the first is exported");
    }
    let mut series: Vec<_> = same.iter().flat_map(|part| part.get_metric()).map(Series::new).collect();
    let repeated: usize =
        series.iter().map(|series| series.metric.get_label().len() - series.labels.len()).sum();
    if repeated > 0 {
        tracing::error!(metric = name, repeated, "labels given twice; the first of each is exported");
    }
    series.sort_by(Series::order);
    let given = series.len();
    series.dedup_by(|next, kept| next.order(kept).is_eq());
    if series.len() < given {
        tracing::error!(
            metric = name,
            repeated = given - series.len(),
            "series given twice; the first is exported"
        );
    }

    out.push_str("# HELP ");
    out.push_str(name);
    out.push(' ');
    escape(out, first.help(), false);
    out.push_str("\n# TYPE ");
    out.push_str(name);
    out.push_str(match kind {
        MetricType::COUNTER => " counter\n",
        MetricType::GAUGE => " gauge\n",
        MetricType::SUMMARY => " summary\n",
        MetricType::UNTYPED => " untyped\n",
        MetricType::HISTOGRAM => " histogram\n",
    });
    for series in &series {
        write_series(out, name, kind, series);
    }
}

fn write_series(out: &mut String, name: &str, kind: MetricType, series: &Series<'_>) {
    let mut line = Lines { out, name, series };
    let metric = series.metric;
    match kind {
        MetricType::COUNTER => line.write("", None, metric.get_counter().get_value()),
        MetricType::GAUGE => line.write("", None, metric.get_gauge().get_value()),
        #[expect(deprecated, reason = "the only way to the value")]
        MetricType::UNTYPED => line.write("", None, metric.get_untyped().get_value()),
        MetricType::SUMMARY => write_summary(&mut line, metric.get_summary()),
        MetricType::HISTOGRAM => write_histogram(&mut line, metric.get_histogram()),
    }
}

fn write_summary(line: &mut Lines<'_, '_>, summary: &Summary) {
    for quantile in summary.get_quantile() {
        line.write("", Some(("quantile", quantile.quantile())), quantile.value());
    }
    line.write("_sum", None, summary.sample_sum());
    line.write("_count", None, count(summary.sample_count()));
}

fn write_histogram(line: &mut Lines<'_, '_>, histogram: &Histogram) {
    let buckets = histogram.get_bucket();
    for bucket in buckets {
        line.write("_bucket", Some(("le", bucket.upper_bound())), count(bucket.cumulative_count()));
    }
    if !buckets.iter().any(|bucket| bucket.upper_bound() == f64::INFINITY) {
        line.write("_bucket", Some(("le", f64::INFINITY)), count(histogram.get_sample_count()));
    }
    line.write("_sum", None, histogram.get_sample_sum());
    line.write("_count", None, count(histogram.get_sample_count()));
}

/// Writes the lines of one series.
struct Lines<'a, 'b> {
    out: &'a mut String,
    name: &'a str,
    series: &'a Series<'b>,
}

impl Lines<'_, '_> {
    fn write(&mut self, suffix: &str, extra: Option<(&str, f64)>, value: f64) {
        self.out.push_str(self.name);
        self.out.push_str(suffix);
        let mut separator = '{';
        for label in &self.series.labels {
            // The line's own label wins over one of the same name.
            if extra.is_some_and(|(name, _)| name == label.name()) {
                continue;
            }
            self.out.push(separator);
            self.out.push_str(label.name());
            self.out.push_str("=\"");
            escape(self.out, label.value(), true);
            self.out.push('"');
            separator = ',';
        }
        if let Some((name, bound)) = extra {
            self.out.push(separator);
            self.out.push_str(name);
            self.out.push_str("=\"");
            write_float(self.out, bound);
            self.out.push('"');
            separator = ',';
        }
        if separator == ',' {
            self.out.push('}');
        }
        self.out.push(' ');
        write_float(self.out, value);
        let timestamp = self.series.metric.timestamp_ms();
        if timestamp != 0 {
            // Writing to a string cannot fail, here and below.
            let _ = write!(self.out, " {timestamp}");
        }
        self.out.push('\n');
    }
}

#[expect(clippy::cast_precision_loss, reason = "values are floats; client_golang rounds the same way")]
fn count(value: u64) -> f64 {
    value as f64
}

/// Escapes backslashes and line breaks, and quotes in quoted text.
fn escape(out: &mut String, text: &str, quoted: bool) {
    let mut rest = text;
    while let Some(at) = rest.find(|c| matches!(c, '\\' | '\n') || quoted && c == '"') {
        let (plain, special) = rest.split_at(at);
        out.push_str(plain);
        out.push('\\');
        out.push_str(match special.as_bytes()[0] {
            b'\n' => "n",
            b'"' => "\"",
            _ => "\\",
        });
        rest = &special[1..];
    }
    out.push_str(rest);
}

/// Writes a number as Go's `strconv.FormatFloat(value, 'g', -1, 64)` does (strconv/ftoa.go): the fewest digits that
/// read back as the same number, with an exponent below 0.0001 and from 1000000 on. Negative zero is `0`, as in expfmt.
fn write_float(out: &mut String, value: f64) {
    const PLAIN_EXPONENTS: Range<i32> = -4..6;
    if value.is_nan() {
        return out.push_str("NaN");
    }
    if value.is_infinite() {
        return out.push_str(if value > 0.0 { "+Inf" } else { "-Inf" });
    }
    if value == 0.0 {
        return out.push('0');
    }
    let scientific = shortest(value.abs());
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or_default();
    if value < 0.0 {
        out.push('-');
    }
    if PLAIN_EXPONENTS.contains(&exponent) {
        return write_plain(out, mantissa, exponent);
    }
    // Rust's form lacks the exponent's sign and second digit.
    let sign = if exponent < 0 { '-' } else { '+' };
    let _ = write!(out, "{mantissa}e{sign}{:02}", exponent.abs());
}

/// Writes the mantissa with its decimal point, which follows the first digit, shifted by the exponent.
fn write_plain(out: &mut String, mantissa: &str, exponent: i32) {
    if exponent < 0 {
        out.push_str("0.");
        out.extend((exponent..-1).map(|_| '0'));
        out.extend(mantissa.chars().filter(|&c| c != '.'));
        return;
    }
    let mut digits = mantissa.chars().filter(|&c| c != '.');
    out.extend((0..=exponent).map(|_| digits.next().unwrap_or('0')));
    if let Some(digit) = digits.next() {
        out.push('.');
        out.push(digit);
        out.extend(digits);
    }
}

/// Returns a positive number in scientific form, with the fewest digits that read back as the same number. If two
/// candidates are equally near, Go takes the even one and Rust the upper one; that needs at least 15 digits.
fn shortest(value: f64) -> String {
    const TIE_LENGTH: usize = "1.23456789012345".len();
    let shortest = format!("{value:e}");
    let length = shortest.find('e').unwrap_or_default();
    if length < TIE_LENGTH {
        return shortest;
    }
    let decimals = length - "1.".len();
    let even = format!("{value:.decimals$e}");
    if even.parse() == Ok(value) { even } else { shortest }
}

#[cfg(test)]
mod tests {
    use prometheus::proto::{Bucket, Counter, Gauge};
    use proptest::prelude::*;

    use super::*;

    fn float(value: f64) -> String {
        let mut out = String::new();
        write_float(&mut out, value);
        out
    }

    fn escaped(text: &str, quoted: bool) -> String {
        let mut out = String::new();
        escape(&mut out, text, quoted);
        out
    }

    fn counter(labels: &[(&str, &str)], value: f64) -> Metric {
        let labels = labels.iter().map(|(name, value)| {
            let mut label = LabelPair::default();
            label.set_name((*name).to_owned());
            label.set_value((*value).to_owned());
            label
        });
        let mut counter = Counter::default();
        counter.set_value(value);
        let mut metric = Metric::from_label(labels.collect());
        metric.set_counter(counter);
        metric
    }

    fn family(name: &str, kind: MetricType, metrics: Vec<Metric>) -> MetricFamily {
        let mut family = MetricFamily::default();
        family.set_name(name.to_owned());
        family.set_help("Help.".to_owned());
        family.set_field_type(kind);
        family.set_metric(metrics);
        family
    }

    /// Formats a number as `strconv.FormatFloat` is documented, from its decimal digits: the reference for
    /// [`write_float`].
    fn slow_float(value: f64) -> String {
        let negative = value < 0.0;
        // The fewest digits that read back as the same number, by trial.
        let (digits, exponent) = (0..=17)
            .map(|precision| format!("{:.precision$e}", value.abs()))
            .find(|text| text.parse::<f64>() == Ok(value.abs()))
            .map(|text| {
                let (mantissa, exponent) = text.split_once('e').expect("an exponent");
                (mantissa.replace('.', ""), exponent.parse::<i32>().expect("a number"))
            })
            .expect("17 digits are always enough");
        let digits = digits.trim_end_matches('0');
        let digits = if digits.is_empty() { "0" } else { digits };
        let places = usize::try_from(exponent.unsigned_abs()).expect("small");
        let text = if !(-4..6).contains(&exponent) {
            let point = if digits.len() > 1 { "." } else { "" };
            let sign = if exponent < 0 { "-" } else { "+" };
            format!("{}{point}{}e{sign}{places:0>2}", &digits[..1], &digits[1..])
        } else if exponent < 0 {
            format!("0.{}{digits}", "0".repeat(places - 1))
        } else if digits.len() <= places + 1 {
            format!("{digits}{}", "0".repeat(places + 1 - digits.len()))
        } else {
            format!("{}.{}", &digits[..=places], &digits[places + 1..])
        };
        if negative { format!("-{text}") } else { text }
    }

    #[test]
    fn numbers_that_go_prints_in_its_own_way() {
        // Each as printed by strconv.FormatFloat(f, 'g', -1, 64) of Go 1.26.
        let printed = [
            (1.0, "1"),
            (-1.0, "-1"),
            (-0.0, "0"),
            (5000.0, "5000"),
            (100_000.0, "100000"),
            (999_999.5, "999999.5"),
            (1e6, "1e+06"),
            (1_234_567.0, "1.234567e+06"),
            (-2.5e6, "-2.5e+06"),
            (0.005, "0.005"),
            (0.0001, "0.0001"),
            (0.000_099, "9.9e-05"),
            (0.1 + 0.2, "0.30000000000000004"),
            (1e100, "1e+100"),
            (5e-324, "5e-324"),
            (836_703_145_764_238.0 + 0.25, "8.367031457642382e+14"),
            (836_703_145_764_238.0 + 0.75, "8.367031457642388e+14"),
            (f64::MAX, "1.7976931348623157e+308"),
            (18_446_744_073_709_551_615.0, "1.8446744073709552e+19"),
            (f64::NAN, "NaN"),
            (f64::INFINITY, "+Inf"),
            (f64::NEG_INFINITY, "-Inf"),
        ];
        for (value, text) in printed {
            assert_eq!(float(value), text);
        }
    }

    proptest! {
        // A failure prints the input; a file beside the sources would be forgotten.
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn numbers_are_printed_as_the_slow_way_does(bits in any::<u64>(), small in -2_000_000_i32..2_000_000, scale in -9_i32..9) {
            let any = f64::from_bits(bits);
            let common = f64::from(small) * 10_f64.powi(scale);
            for value in [any, common, f64::from(small)] {
                if value.is_finite() && value != 0.0 {
                    prop_assert_eq!(float(value), slow_float(value));
                }
            }
        }

        #[test]
        fn every_number_reads_back(bits in any::<u64>()) {
            let value = f64::from_bits(bits);
            let back: f64 = float(value).parse().expect("a number");
            prop_assert!(back.to_bits() == bits || value.is_nan() && back.is_nan() || value == 0.0 && back == 0.0);
        }

        #[test]
        fn label_values_read_back(text in any::<String>(), special in "[\\\\\"\n{},=é]*") {
            for text in [text, special] {
                let written = escaped(&text, true);
                prop_assert!(!written.contains('\n'));
                let (mut back, mut chars) = (String::new(), written.chars());
                while let Some(c) = chars.next() {
                    prop_assert_ne!(c, '"', "a bare quote ends the value");
                    back.push(match c {
                        '\\' => match chars.next() { Some('n') => '\n', other => other.expect("a pair") },
                        c => c,
                    });
                }
                prop_assert_eq!(back, text);
            }
        }

        #[test]
        fn no_series_is_written_twice(values in proptest::collection::vec(("[ab]{0,2}", "[ab]{0,2}"), 0..30), split in 0_usize..30) {
            let series: Vec<_> = values.iter().map(|(a, b)| counter(&[("z", a), ("a", b)], 1.0)).collect();
            let (one, two) = series.split_at(split.min(series.len()));
            let text = encode(&[family("m", MetricType::COUNTER, one.into()), family("m", MetricType::COUNTER, two.into())]);
            let lines: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
            let distinct: std::collections::HashSet<_> = values.iter().collect();
            prop_assert_eq!(lines.len(), distinct.len());
            prop_assert_eq!(lines.iter().collect::<std::collections::HashSet<_>>().len(), lines.len());
        }
    }

    #[test]
    fn help_keeps_its_quotes() {
        assert_eq!(escaped("a \"b\" \\ \n", false), "a \"b\" \\\\ \\n");
    }

    #[test]
    fn families_of_one_name_are_one_family() {
        let families = [
            family("b_total", MetricType::COUNTER, vec![counter(&[("target", "2")], 2.0)]),
            family("a_total", MetricType::COUNTER, vec![counter(&[], 3.0)]),
            family("empty", MetricType::COUNTER, vec![]),
            family("b_total", MetricType::COUNTER, vec![counter(&[("target", "1")], 1.0)]),
            family("b_total", MetricType::GAUGE, vec![counter(&[("target", "3")], 1.0)]),
        ];
        let expected = "\
# HELP a_total Help.
# TYPE a_total counter
a_total 3
# HELP b_total Help.
# TYPE b_total counter
b_total{target=\"1\"} 1
b_total{target=\"2\"} 2
";
        assert_eq!(encode(&families), expected);
    }

    #[test]
    fn no_label_is_written_twice() {
        let given = counter(&[("b", "2"), ("a", "1"), ("b", "3")], 1.0);
        let text = encode(&[family("m", MetricType::COUNTER, vec![given])]);
        assert!(text.ends_with("\nm{a=\"1\",b=\"2\"} 1\n"), "{text}");
        let mut histogram = Histogram::default();
        histogram.set_sample_count(3);
        let mut metric = counter(&[("a", "1"), ("le", "5")], 0.0);
        metric.set_histogram(histogram);
        let text = encode(&[family("h", MetricType::HISTOGRAM, vec![metric])]);
        assert!(text.contains("\nh_bucket{a=\"1\",le=\"+Inf\"} 3\n"), "{text}");
    }

    #[test]
    fn a_histogram_ends_with_infinity_once() {
        let bucket = |bound, count| {
            let mut bucket = Bucket::default();
            bucket.set_upper_bound(bound);
            bucket.set_cumulative_count(count);
            bucket
        };
        let with = |buckets| {
            let mut histogram = Histogram::default();
            histogram.set_bucket(buckets);
            histogram.set_sample_count(3);
            histogram.set_sample_sum(1_500_000.0);
            let mut metric = counter(&[("method", "Echo")], 0.0);
            metric.set_histogram(histogram);
            encode(&[family("latency_us", MetricType::HISTOGRAM, vec![metric])])
        };
        let text = with(vec![bucket(5000.0, 1), bucket(1e6, 2)]);
        let expected = "\
# HELP latency_us Help.
# TYPE latency_us histogram
latency_us_bucket{method=\"Echo\",le=\"5000\"} 1
latency_us_bucket{method=\"Echo\",le=\"1e+06\"} 2
latency_us_bucket{method=\"Echo\",le=\"+Inf\"} 3
latency_us_sum{method=\"Echo\"} 1.5e+06
latency_us_count{method=\"Echo\"} 3
";
        assert_eq!(text, expected);
        assert_eq!(with(vec![bucket(5000.0, 1), bucket(1e6, 2), bucket(f64::INFINITY, 3)]), expected);
    }

    #[test]
    fn summaries_and_timestamps_have_their_place() {
        let mut quantile = prometheus::proto::Quantile::default();
        quantile.set_quantile(0.25);
        quantile.set_value(1e-7);
        let mut summary = Summary::default();
        summary.set_quantile(vec![quantile]);
        summary.set_sample_count(1);
        summary.set_sample_sum(0.5);
        let mut metric = Metric::default();
        metric.set_summary(summary);
        let mut gauge = Gauge::default();
        gauge.set_value(2.0);
        let mut timed = Metric::from_gauge(gauge);
        timed.set_timestamp_ms(1_700_000_000_000);
        let families =
            [family("s", MetricType::SUMMARY, vec![metric]), family("g", MetricType::GAUGE, vec![timed])];
        let expected = "\
# HELP g Help.
# TYPE g gauge
g 2 1700000000000
# HELP s Help.
# TYPE s summary
s{quantile=\"0.25\"} 1e-07
s_sum 0.5
s_count 1
";
        assert_eq!(encode(&families), expected);
    }
}
