//! Patterns of functions' names.

/// Whether a text is like a pattern, in which `*` stands for any text. Takes time in proportion to both lengths
/// multiplied, at most.
pub(super) fn is_like(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut at, mut place) = (0, 0);
    // The last star, and up to where it stands for the text.
    let mut star: Option<(usize, usize)> = None;
    while let Some(&byte) = text.get(place) {
        match pattern.get(at) {
            Some(b'*') => {
                star = Some((at, place));
                at += 1;
            }
            Some(&wanted) if wanted == byte => {
                at += 1;
                place += 1;
            }
            _ => {
                let Some((star_at, until)) = star else { return false };
                star = Some((star_at, until + 1));
                at = star_at + 1;
                place = until + 1;
            }
        }
    }
    pattern.get(at..).is_some_and(|rest| rest.iter().all(|byte| *byte == b'*'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_any_text() {
        for (pattern, text) in [("a*c", "abc"), ("a*c", "ac"), ("*", ""), ("a**b*", "axbxb"), ("*b", "abab")]
        {
            assert!(is_like(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in
            [("a*c", "abcd"), ("a", "ab"), ("ab", "a"), ("", "a"), ("*b", "ba"), ("a*a", "a")]
        {
            assert!(!is_like(pattern, text), "{pattern} {text}");
        }
    }

    #[test]
    fn patterns_made_to_take_long_do_not() {
        let pattern = "a*".repeat(128) + "b";
        assert!(!is_like(&pattern, &"a".repeat(4096)));
    }
}
