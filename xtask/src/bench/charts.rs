//! Charts as SVG, legible on light and on dark pages.

use std::fmt::Write as _;

use super::report::{Spread, float};

const WIDTH: f64 = 760.0;
/// Left end of the bars: labels are left of it.
const LEFT: f64 = 290.0;
/// Width for the numbers after the bars.
const RIGHT: f64 = 70.0;
const TOP: f64 = 44.0;
const ROW: f64 = 28.0;
const THICK: f64 = 16.0;

/// One bar.
#[derive(Clone, Debug)]
pub(super) struct Bar {
    pub(super) label: String,
    /// The bar ends at the median. A line goes from minimum to maximum.
    pub(super) value: Spread,
}

/// Draws horizontal bars that start at zero.
pub(super) fn bars(title: &str, digits: usize, bars: &[Bar]) -> String {
    let most = bars.iter().map(|bar| bar.value.max).fold(f64::EPSILON, f64::max);
    let x = |value: f64| LEFT + value.max(0.0) / most * (WIDTH - LEFT - RIGHT);
    let height = TOP + ROW * float(bars.len() as u64) + 12.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\">\n\
         <style>\n\
         text {{ font: 13px system-ui, sans-serif; fill: #1f2328 }}\n\
         .title {{ font-weight: 600; font-size: 14px }}\n\
         .bar {{ fill: #2f81c7 }}\n\
         .spread, .zero {{ stroke: #59636e; stroke-width: 1.5 }}\n\
         @media (prefers-color-scheme: dark) {{\n\
         text {{ fill: #e6edf3 }} .bar {{ fill: #58a6ff }} .spread, .zero {{ stroke: #9198a1 }}\n\
         }}\n\
         </style>\n\
         <text class=\"title\" x=\"8\" y=\"22\">{}</text>\n",
        escaped(title)
    );
    for (number, Bar { label, value }) in bars.iter().enumerate() {
        let top = TOP + ROW * float(number as u64);
        let (middle, end) = (top + THICK / 2.0, x(value.median));
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\n\
             <rect class=\"bar\" x=\"{LEFT}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"{THICK}\"/>\n\
             <line class=\"spread\" x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{middle:.1}\" y2=\"{middle:.1}\"/>\n\
             <text x=\"{:.1}\" y=\"{:.1}\">{:.digits$}</text>",
            LEFT - 8.0,
            middle + 4.5,
            escaped(label),
            end - LEFT,
            x(value.min),
            x(value.max),
            x(value.max) + 8.0,
            middle + 4.5,
            value.median,
        );
    }
    let _ = writeln!(
        svg,
        "<line class=\"zero\" x1=\"{LEFT}\" x2=\"{LEFT}\" y1=\"{:.1}\" y2=\"{:.1}\"/>\n</svg>",
        TOP - 6.0,
        height - 12.0
    );
    svg
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_line_ends_where_the_numbers_begin() {
        let bar = |label: &str, median| Bar {
            label: label.to_owned(),
            value: Spread::of([-1.0, median, 2.0 * median]),
        };
        let svg = bars("a < b", 1, &[bar("one", 2.0), bar("two", 1.0)]);
        assert!(svg.contains("a &lt; b") && svg.ends_with("</svg>\n"), "{svg}");
        // A width of 400 is 4.0, the maximum.
        assert!(svg.contains("width=\"200.0\"") && svg.contains("width=\"100.0\""), "{svg}");
        assert!(svg.contains("x1=\"290.0\" x2=\"690.0\""), "{svg}");
        assert_eq!(svg.matches("<rect").count(), 2);
    }
}
