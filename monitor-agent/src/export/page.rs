//! The status page for people: what is attached, since when and at what cost, with links to the rest.
//!
//! Plain HTML without scripts. Names come from untrusted processes, so all text goes through [`Escaped`].

use std::{
    fmt::{self, Write},
    time::SystemTime,
};

use super::http::{Status, TargetStatus};
use crate::time::rfc3339;

const STYLE: &str = "\
:root{color-scheme:light dark;--fg:#1c2024;--soft:#5b6570;--line:#d9dee3;--bg:#fbfcfd;--card:#fff;--link:#0b62c4}\
@media(prefers-color-scheme:dark){:root{--fg:#e6e9ec;--soft:#9aa5b1;--line:#30373e;--bg:#14171a;--card:#1b1f23;--link:#6cb0ff}}\
body{margin:0 auto;max-width:62rem;padding:2rem 1.25rem;background:var(--bg);color:var(--fg);\
font:16px/1.5 system-ui,sans-serif}\
h1{font-size:1.5rem;margin:0}h2{font-size:1.1rem;margin:0}p{margin:.25rem 0}\
.soft,th{color:var(--soft)}a{color:var(--link)}nav{margin:1rem 0 1.5rem}nav a{margin-right:1.25rem}\
section{background:var(--card);border:1px solid var(--line);border-radius:.5rem;padding:1rem 1.25rem;margin:1rem 0}\
code,td.n{font:.875em ui-monospace,monospace}code{overflow-wrap:anywhere}td.n{white-space:nowrap}\
.scroll{overflow-x:auto}table{border-collapse:collapse;width:100%;min-width:40rem;margin-top:.75rem}\
th,td{text-align:left;padding:.3rem 1rem .3rem 0;border-top:1px solid var(--line);vertical-align:top}\
th{font-weight:500;font-size:.875rem}";

/// Renders the whole page.
pub(super) fn render(status: &Status, now: SystemTime) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = write_page(&mut out, status, now);
    out
}

fn write_page(out: &mut String, status: &Status, now: SystemTime) -> fmt::Result {
    write!(
        out,
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n<title>monitor-agent</title>\n\
         <style>{STYLE}</style>\n</head>\n<body>\n<h1>monitor-agent</h1>\n\
         <p class=\"soft\">Version {}, running since {}</p>\n\
         <nav><a href=\"/metrics\">Metrics</a><a href=\"/readyz\">Ready?</a><a href=\"/healthz\">Healthy?</a></nav>\n",
        Escaped(&status.version),
        Since(status.started, now),
    )?;
    if status.targets.is_empty() {
        out.push_str("<p>Nothing is attached.</p>\n");
    }
    for target in &status.targets {
        write_target(out, target, now)?;
    }
    out.write_str("</body>\n</html>\n")
}

fn write_target(out: &mut String, target: &TargetStatus, now: SystemTime) -> fmt::Result {
    let pid = target.pid;
    write!(
        out,
        "<section>\n<h2>Process {pid} <span class=\"soft\">{}</span></h2>\n",
        Escaped(&target.state)
    )?;
    writeln!(out, "<p><code>{}</code></p>\n<p>{}</p>", Escaped(&target.exe), Escaped(&target.framework))?;
    match target.calls {
        Some((calls, lost)) => write!(out, "<p>{calls} calls counted, {lost} events lost")?,
        None => out.push_str("<p>Watched"),
    }
    if let Some(since) = target.since {
        write!(out, ", since {}", Since(since, now))?;
    }
    writeln!(out, ". <a href=\"/targets/{pid}/metrics\">Its metrics</a></p>")?;
    if !target.sites.is_empty() {
        out.push_str(
            "<div class=\"scroll\"><table>\n<tr><th>Probe<th>Function<th>File offset<th>Instruction<th>Cost of a hit</tr>\n",
        );
        for site in &target.sites {
            writeln!(
                out,
                "<tr><td>{}<td><code>{}</code><td class=\"n\">{:#x}<td><code>{}</code><td>{}</tr>",
                Escaped(&site.role),
                Escaped(&site.symbol),
                site.offset,
                Escaped(&site.instruction),
                Escaped(&site.cost),
            )?;
        }
        out.push_str("</table></div>\n");
    }
    out.write_str("</section>\n")
}

/// Text escaped for an element or a quoted attribute.
struct Escaped<'a>(&'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            match c {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                // Control characters do not print, and direction marks reorder the text around them.
                c if c.is_control() || is_direction(c) => f.write_char(char::REPLACEMENT_CHARACTER)?,
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

fn is_direction(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// A time to the second, and how long ago it was.
struct Since(SystemTime, SystemTime);

impl fmt::Display for Since {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = rfc3339(self.0);
        let (date, time) = text.split_once('T').unwrap_or((&text, ""));
        let time = time.split('.').next().unwrap_or_default();
        let seconds = self.1.duration_since(self.0).unwrap_or_default().as_secs();
        let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
        write!(f, "{date} {time} UTC (")?;
        match (days, hours, minutes) {
            (0, 0, 0) => write!(f, "{seconds} s"),
            (0, 0, _) => write!(f, "{minutes} min"),
            (0, ..) => write!(f, "{hours} h {minutes} min"),
            _ => write!(f, "{days} d {hours} h"),
        }?;
        f.write_char(')')
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::{super::http::SiteStatus, *};

    fn hostile(text: &str) -> Status {
        let text = text.to_owned();
        let site = SiteStatus {
            role: text.clone(),
            symbol: text.clone(),
            offset: 0x1234,
            instruction: text.clone(),
            cost: text.clone(),
        };
        let target = TargetStatus {
            pid: 42,
            exe: text.clone(),
            framework: text.clone(),
            state: text.clone(),
            since: Some(UNIX_EPOCH),
            calls: Some((7, 0)),
            sites: vec![site],
        };
        Status { version: text, started: UNIX_EPOCH, targets: vec![target] }
    }

    #[test]
    fn names_cannot_become_markup() {
        let page =
            render(&hostile("<script>alert('x')</script>\" onload=\"y\" &amp; \u{202e}\x07"), UNIX_EPOCH);
        let plain = render(&hostile("x"), UNIX_EPOCH);
        assert!(!page.contains("<script") && !page.contains('\u{202e}') && !page.contains('\x07'));
        for c in ['<', '>', '"'] {
            assert_eq!(page.matches(c).count(), plain.matches(c).count(), "{c}");
        }
        assert!(page.contains(
            "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;&quot; onload=&quot;y&quot; &amp;amp; "
        ));
    }

    #[test]
    fn the_page_tells_what_when_and_at_what_cost() {
        let page = render(&hostile("word"), UNIX_EPOCH + Duration::from_secs(3 * 3600 + 61));
        for part in
            ["Process 42", "7 calls", "0x1234", "1970-01-01 00:00:00 UTC (3 h 1 min)", "/targets/42/metrics"]
        {
            assert!(page.contains(part), "{part}: {page}");
        }
    }

    #[test]
    fn where_no_calls_are_watched_none_are_told() {
        let mut status = hostile("x");
        status.targets[0].calls = None;
        let page = render(&status, UNIX_EPOCH);
        assert!(page.contains("<p>Watched, since 1970") && !page.contains("counted"), "{page}");
    }

    #[test]
    fn without_targets_it_says_so() {
        let status = Status { targets: vec![], ..hostile("x") };
        assert!(render(&status, UNIX_EPOCH).contains("Nothing is attached"));
    }

    #[test]
    fn spans_are_rounded_down() {
        let ago = |seconds| Since(UNIX_EPOCH, UNIX_EPOCH + Duration::from_secs(seconds)).to_string();
        assert!(ago(59).ends_with("(59 s)"));
        assert!(ago(3599).ends_with("(59 min)"));
        assert!(ago(86_399).ends_with("(23 h 59 min)"));
        assert!(ago(86_400 * 400).ends_with("(400 d 0 h)"));
    }
}
