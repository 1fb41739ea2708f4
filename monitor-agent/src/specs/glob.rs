//! Patterns for function names.

/// Whether a text matches a pattern in which each `*` stands for any text. Takes time proportional to the product of
/// both lengths, at most.
pub(super) fn is_like(pattern: &str, text: &str) -> bool {
    is_like_with(pattern, text, |at| is_star(pattern, at))
}

/// Does the same for the name of a Go function, in which the star of a method's receiver is literal.
pub(super) fn is_like_in_go(pattern: &str, text: &str) -> bool {
    is_like_with(pattern, text, |at| stands_for_any(pattern, at))
}

/// Whether the name of a Go function has a star that stands for any text.
pub(super) fn is_pattern_in_go(name: &str) -> bool {
    (0..name.len()).any(|at| stands_for_any(name, at))
}

/// Whether the byte at `at` is a star that stands for any text, and not the star of a method's receiver, as in
/// `pkg.(*T).Method`. Otherwise `*T` would match any type whose name ends in `T`.
fn stands_for_any(name: &str, at: usize) -> bool {
    let byte = |at: usize| name.as_bytes().get(at);
    let is_behind_parenthesis = at.checked_sub(1).and_then(byte) == Some(&b'(');
    let is_before_name = byte(at + 1).is_some_and(|next| *next != b')');
    is_star(name, at) && !(is_behind_parenthesis && is_before_name)
}

fn is_star(pattern: &str, at: usize) -> bool {
    pattern.as_bytes().get(at) == Some(&b'*')
}

/// Matches with the bytes of the pattern for which `is_any` is true as wildcards.
fn is_like_with(pattern: &str, text: &str, is_any: impl Fn(usize) -> bool) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut at, mut place) = (0, 0);
    // The last star, and the end of the text that it stands for so far.
    let mut star: Option<(usize, usize)> = None;
    while let Some(&byte) = text.get(place) {
        match pattern.get(at) {
            Some(_) if is_any(at) => {
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
    (at..pattern.len()).all(is_any)
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
    fn the_star_of_a_receiver_stands_for_itself() {
        for (pattern, text) in [
            ("main.(*Server).Handle*", "main.(*Server).HandleAll"),
            ("main.(*Server*).Handle", "main.(*Servers).Handle"),
            ("main.(**Server).Handle", "main.(*AdminServer).Handle"),
            ("main.(*).Handle", "main.(*AdminServer).Handle"),
            ("main.(*", "main.(*AdminServer).Handle"),
            ("main.*.Handle", "main.(*AdminServer).Handle"),
        ] {
            assert!(is_like_in_go(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in [
            ("main.(*Server).Handle*", "main.(*AdminServer).HandleAll"),
            ("*.(*Server).*", "main.(*AdminServer).HandleAll"),
            ("main.(*Server).*", "main.(Server).Handle"),
            ("main.(**", "main.("),
        ] {
            assert!(!is_like_in_go(pattern, text), "{pattern} {text}");
        }
        // Names of native functions have no receivers.
        assert!(is_like("f(*T)", "f(char const*, T)"));
        assert!(!is_pattern_in_go("main.(*T).f") && !is_pattern_in_go("main.f"));
        for pattern in ["main.(*T).*", "main.(*).f", "main.(*", "main.(**T).f", "*.(*T).f"] {
            assert!(is_pattern_in_go(pattern), "{pattern}");
        }
    }

    #[test]
    fn patterns_made_to_take_long_do_not() {
        let pattern = "a*".repeat(128) + "b";
        assert!(!is_like(&pattern, &"a".repeat(4096)));
    }
}
