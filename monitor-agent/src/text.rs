//! Untrusted text, made safe to show.

/// Returns the text on one line, with control characters escaped: a target's owner chooses the names of files, and some
/// characters steer a terminal.
pub(crate) fn printable(text: &str) -> String {
    let mut printable = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() { printable.extend(c.escape_default()) } else { printable.push(c) }
    }
    printable
}

/// Returns printable text of limited length. It contains names from an executable, which can be of any length.
pub(crate) fn shown(text: &(impl ToString + ?Sized)) -> String {
    const MAX: usize = 300;
    let mut text = printable(&text.to_string());
    if let Some((end, _)) = text.char_indices().nth(MAX) {
        text.truncate(end);
        text.push('…');
    }
    text
}
