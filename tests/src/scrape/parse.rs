//! Parses the text into families, line by line.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use super::{Family, Kind, Labels, Sample, Scrape, histogram};

/// A parse error and its line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseError {
    /// The line's number, counted from 1.
    pub line: usize,
    /// What is wrong with the line.
    pub what: String,
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.what)
    }
}

impl std::error::Error for ParseError {}

/// The result of parsing a line: an error does not have the line's number yet.
type Line<T> = Result<T, String>;

pub(super) fn scrape(text: &str) -> Result<Scrape, ParseError> {
    if !text.is_empty() && !text.ends_with('\n') {
        let line = text.split('\n').count();
        return Err(ParseError { line, what: "the last line does not end".to_owned() });
    }
    let mut reader = Reader::default();
    let mut line = 0;
    for text in text.split_terminator('\n') {
        line += 1;
        reader.line(text).map_err(|what| ParseError { line, what: format!("{what}: {text}") })?;
    }
    reader.close_family().map_err(|what| ParseError { line, what })?;
    Ok(reader.scrape)
}

#[derive(Default)]
struct Reader {
    scrape: Scrape,
    /// A HELP line that has no TYPE line yet.
    help: Option<(String, String)>,
    open: Option<(String, Family)>,
    seen: BTreeSet<(String, Labels)>,
}

impl Reader {
    fn line(&mut self, line: &str) -> Line<()> {
        if let Some(help) = line.strip_prefix("# HELP ") {
            return self.help(help);
        }
        if let Some(kind) = line.strip_prefix("# TYPE ") {
            return self.kind(kind);
        }
        if line.starts_with('#') || line.is_empty() {
            return Err("neither HELP, TYPE nor a sample".to_owned());
        }
        self.sample(sample(line)?)
    }

    fn help(&mut self, line: &str) -> Line<()> {
        self.close_family()?;
        let (name, text) = line.split_once(' ').ok_or("HELP without a text")?;
        check_name(name, true)?;
        if self.scrape.families.contains_key(name) {
            return Err("the family was there before".to_owned());
        }
        let (text, rest) = unescape(text, None)?;
        debug_assert!(rest.is_empty(), "a HELP text ends with its line");
        self.help = Some((name.to_owned(), text));
        Ok(())
    }

    fn kind(&mut self, line: &str) -> Line<()> {
        let (name, kind) = line.split_once(' ').ok_or("TYPE without a type")?;
        let (help_name, help) = self.help.take().ok_or("TYPE without HELP before it")?;
        if help_name != name {
            return Err(format!("the HELP before is for {help_name}"));
        }
        let kind = match kind {
            "counter" => Kind::Counter,
            "gauge" => Kind::Gauge,
            "histogram" => Kind::Histogram,
            "summary" => Kind::Summary,
            "untyped" => Kind::Untyped,
            _ => return Err("unknown type".to_owned()),
        };
        self.open = Some((help_name, Family { help, kind, samples: Vec::new() }));
        Ok(())
    }

    fn sample(&mut self, sample: Sample) -> Line<()> {
        let (family_name, family) = self.open.as_mut().ok_or("a sample without HELP and TYPE before it")?;
        let suffix = sample.name.strip_prefix(family_name.as_str());
        let belongs = match family.kind {
            Kind::Histogram => matches!(suffix, Some("_bucket" | "_sum" | "_count")),
            Kind::Summary => matches!(suffix, Some("" | "_sum" | "_count")),
            _ => suffix == Some(""),
        };
        if !belongs {
            return Err(format!("not a sample of {family_name}"));
        }
        let is_bucket = family.kind == Kind::Histogram && suffix == Some("_bucket");
        if sample.labels.contains_key("le") != is_bucket {
            return Err("`le` belongs to every bucket and to nothing else".to_owned());
        }
        let is_quantile = family.kind == Kind::Summary && suffix == Some("");
        if sample.labels.contains_key("quantile") != is_quantile {
            return Err("`quantile` belongs to every quantile and to nothing else".to_owned());
        }
        if family.kind == Kind::Counter && (sample.value < 0.0 || sample.value.is_nan()) {
            return Err("a counter cannot have this value".to_owned());
        }
        if !self.seen.insert((sample.name.clone(), sample.labels.clone())) {
            return Err("the series was there before".to_owned());
        }
        family.samples.push(sample);
        Ok(())
    }

    fn close_family(&mut self) -> Line<()> {
        if let Some((name, _)) = &self.help {
            return Err(format!("HELP of {name} without TYPE"));
        }
        let Some((name, family)) = self.open.take() else { return Ok(()) };
        if family.samples.is_empty() {
            return Err(format!("{name} has no samples"));
        }
        if family.kind == Kind::Histogram {
            check_histograms(&name, &family)?;
        }
        self.scrape.families.insert(name, family);
        Ok(())
    }
}

fn check_histograms(name: &str, family: &Family) -> Line<()> {
    let parts =
        |suffix| family.samples.iter().filter(move |s| s.name.strip_prefix(name) == Some(suffix)).count();
    let series = histogram::of(name, family.samples.iter());
    if parts("_sum") != series.len() || parts("_count") != series.len() {
        return Err(format!("a histogram of {name} has no sum or no count"));
    }
    for (labels, histogram) in series {
        let rising = histogram.buckets.windows(2).all(|pair| pair[0].0 < pair[1].0 && pair[0].1 <= pair[1].1);
        let last = histogram.buckets.last().copied();
        if !rising || last != Some((f64::INFINITY, histogram.count)) {
            return Err(format!("buckets of {name}{labels:?} do not rise to +Inf and the count"));
        }
    }
    Ok(())
}

/// Parses `name{label="value",…} value`. Timestamps are refused, since no endpoint in the tests writes them.
fn sample(line: &str) -> Line<Sample> {
    let end = line.find(['{', ' ']).ok_or("no value")?;
    let (name, mut rest) = line.split_at(end);
    check_name(name, true)?;
    let mut labels = BTreeMap::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        while !rest.starts_with('}') {
            rest = label(rest, &mut labels)?;
        }
        rest = &rest[1..];
    }
    let value = number(rest.strip_prefix(' ').ok_or("no space before the value")?)?;
    Ok(Sample { name: name.to_owned(), labels, value })
}

/// Parses `name="value"` and, if another label follows, the comma.
fn label<'a>(text: &'a str, labels: &mut Labels) -> Line<&'a str> {
    let (name, rest) = text.split_once("=\"").ok_or("a label without a value")?;
    check_name(name, false)?;
    let (value, rest) = unescape(rest, Some('"'))?;
    if labels.insert(name.to_owned(), value).is_some() {
        return Err(format!("label {name} twice"));
    }
    match rest.strip_prefix(',') {
        Some(next) if !next.starts_with('}') => Ok(next),
        None if rest.starts_with('}') => Ok(rest),
        _ => Err("neither a label nor the end of the labels".to_owned()),
    }
}

/// Unescapes the text up to the closing quote, or up to the end of the line if `quote` is `None`.
fn unescape(text: &str, quote: Option<char>) -> Line<(String, &str)> {
    let mut plain = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => plain.push(match chars.next() {
                Some((_, '\\')) => '\\',
                Some((_, 'n')) => '\n',
                Some((_, '"')) if quote.is_some() => '"',
                _ => return Err("an escape that does not exist".to_owned()),
            }),
            c if Some(c) == quote => return Ok((plain, &text[at + 1..])),
            c => plain.push(c),
        }
    }
    if quote.is_some() { Err("no closing quote".to_owned()) } else { Ok((plain, "")) }
}

fn check_name(name: &str, colons: bool) -> Line<()> {
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '_' || (c == ':' && colons);
    if name.is_empty() || !name.chars().all(fits) || name.starts_with(|c: char| c.is_ascii_digit()) {
        return Err(format!("{name:?} is not a name"));
    }
    Ok(())
}

/// Parses a number in Go's format.
fn number(text: &str) -> Line<f64> {
    match text {
        "NaN" => Ok(f64::NAN),
        "+Inf" => Ok(f64::INFINITY),
        "-Inf" => Ok(f64::NEG_INFINITY),
        _ if text.bytes().all(|b| b.is_ascii_digit() || b"+-.e".contains(&b)) => {
            text.parse().map_err(|_| "not a number".to_owned())
        }
        _ => Err("not a number".to_owned()),
    }
}
