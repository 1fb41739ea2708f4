//! Text that others have written, made fit to be shown.

/// Text on one line without anything that steers a terminal: names of files are whatever a target's owner chose.
pub(crate) fn printable(text: &str) -> String {
    let mut printable = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() { printable.extend(c.escape_default()) } else { printable.push(c) }
    }
    printable
}

/// Text with names from an executable in it, which can be of any length and hold anything.
pub(crate) fn shown(text: &(impl ToString + ?Sized)) -> String {
    const MAX: usize = 300;
    let mut text = printable(&text.to_string());
    if let Some((end, _)) = text.char_indices().nth(MAX) {
        text.truncate(end);
        text.push('…');
    }
    text
}
