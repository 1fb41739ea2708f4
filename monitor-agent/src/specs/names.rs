//! Checks of the names in a spec.

use super::{REGISTERS, STEPS_MAX};

/// The prefixes of the agent's own metrics.
const TAKEN: [&str; 8] = ["monitor_", "kitex_", "grpc_", "rpc_", "go_", "process_", "runtime_", "target_"];
/// The labels that series have for other reasons.
const TAKEN_LABELS: [&str; 3] = ["target", "le", "quantile"];
/// The maximum length of the name of a metric or label.
const NAME_MAX: usize = 64;
/// The maximum length of the name of a function or type.
const SYMBOL_MAX: usize = 256;

/// Checks a name as the prefix of metrics.
pub(crate) fn metric(name: &str) -> Result<(), String> {
    if !is_name(name, true) {
        return Err(format!(
            "`{name}` is no name for metrics: letters, digits, underscores and colons, no digit first, at most \
             {NAME_MAX}"
        ));
    }
    match TAKEN.iter().find(|taken| format!("{name}_").starts_with(**taken)) {
        Some(taken) => Err(format!("metrics that begin with {taken} are the agent's own")),
        None => Ok(()),
    }
}

/// Checks the name of a label.
pub(crate) fn label(name: &str) -> Result<(), String> {
    if !is_name(name, false) || name.starts_with("__") {
        return Err(format!(
            "`{name}` is no name for a label: letters, digits and underscores, no digit and no two underscores \
             first, at most {NAME_MAX}"
        ));
    }
    if TAKEN_LABELS.contains(&name) {
        return Err(format!("the label {name} has a meaning of its own"));
    }
    Ok(())
}

fn is_name(name: &str, colons: bool) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '_' || (colons && c == ':');
    (1..=NAME_MAX).contains(&name.len())
        && name.chars().all(fits)
        && !name.starts_with(|c: char| c.is_ascii_digit())
}

/// Checks the full name of a Go function or type.
pub(crate) fn symbol(name: &str, what: &str) -> Result<(), String> {
    // Type arguments are as in the source: `main.set[struct { id int }]`.
    let mut depth = 0_i32;
    let mut is_clean = |c: char| {
        match c {
            '[' => depth += 1,
            ']' => depth -= 1,
            _ => {}
        }
        !c.is_control() && (c != ' ' || depth > 0)
    };
    if !name.chars().all(&mut is_clean) || name.len() > SYMBOL_MAX {
        return Err(format!("`{}` is no name of a {what}", name.escape_default()));
    }
    if !name.contains('.') {
        return Err(format!(
            "`{name}` is no full name of a {what}: write the whole path of its package before it"
        ));
    }
    Ok(())
}

/// Whether a native function's name is a demangled one. No mangled name has these characters.
pub(super) fn is_of_source(name: &str) -> bool {
    name.contains("::") || name.contains('(')
}

/// Whether a native function's name has a star that stands for any text. A star among the parameters
/// belongs to a pointer type.
pub(super) fn is_native_pattern(name: &str) -> bool {
    let path = if is_of_source(name) { name.split('(').next().unwrap_or_default() } else { name };
    path.contains('*')
}

/// The last part of a demangled name, without namespaces and parameters, if it is plain. The
/// mangled name contains it, too.
pub(super) fn own_name(name: &str) -> Option<&str> {
    let path = name.split('(').next()?;
    let last = path.rsplit("::").next()?;
    let is_plain = !last.is_empty() && last.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    is_plain.then_some(last)
}

/// Checks the name of a native function, mangled or demangled.
pub(super) fn native_symbol(name: &str) -> Result<(), String> {
    let is_clean = name.chars().all(|c| !c.is_control() && (c != ' ' || is_of_source(name)));
    if name.is_empty() || !is_clean || name.len() > SYMBOL_MAX {
        return Err(format!(
            "`{}` is no name of a function as `nm` or `nm -C` prints it, of at most {SYMBOL_MAX} bytes; a pattern may be shorter",
            name.escape_default()
        ));
    }
    Ok(())
}

/// Checks a layout of arguments.
pub(crate) fn arguments(text: &str) -> Result<(), String> {
    let mut depth = 0_usize;
    for c in text.chars() {
        match c {
            'w' | '1' | '2' | '4' => {}
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            _ => {
                return Err(format!(
                    "`{}` are no arguments: write w for a word, 1, 2 or 4 for fewer bytes, braces around what is one \
                     argument of several",
                    text.escape_default()
                ));
            }
        }
    }
    if text.len() > SYMBOL_MAX {
        return Err(format!(
            "these are more than {SYMBOL_MAX} bytes: write the first arguments, up to the last that is needed"
        ));
    }
    if depth > 0 {
        return Err(format!("`{text}` has a brace that is not closed"));
    }
    Ok(())
}

/// The width of a word of the arguments, in bytes.
pub(super) fn width(arguments: &str, word: usize) -> u8 {
    match arguments.chars().filter(|c| !matches!(c, '{' | '}')).nth(word) {
        Some('1') => 1,
        Some('2') => 2,
        Some('4') => 4,
        _ => 8,
    }
}

/// The words of the arguments. For each: whether it is 8 bytes wide, and whether it is the first of two of one
/// argument, like the type word of an interface.
pub(crate) fn words(arguments: &str) -> Vec<(bool, bool)> {
    let mut words: Vec<(bool, bool)> = Vec::new();
    let mut inside = Vec::new();
    for c in arguments.chars() {
        match c {
            '{' => inside.push(words.len()),
            '}' => {
                let first = inside.pop().filter(|first| words.len() == first + 2);
                if let Some(word) = first.and_then(|first| words.get_mut(first)) {
                    word.1 = true;
                }
            }
            c => words.push((c == 'w', false)),
        }
    }
    words
}

/// The number of leading words that are in registers, each in the register of its index. An argument that does not
/// fit into the remaining registers is on the stack as a whole, and the words after it are in other registers than
/// their index says.
pub(crate) fn in_registers(arguments: &str) -> usize {
    let (mut words, mut fitting, mut depth) = (0, 0, 0_i32);
    for c in arguments.chars() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => words += 1,
        }
        if words > REGISTERS {
            break;
        }
        if depth == 0 {
            fitting = words;
        }
    }
    fitting
}

/// Splits a path at dots outside parentheses.
pub fn steps_of(path: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0_i32;
    path.split(move |c| {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        c == '.' && depth == 0
    })
}

/// Checks the name of a field.
pub(crate) fn field(name: &str) -> Result<(), String> {
    let is_name = !name.is_empty()
        && name.chars().all(|c| c.is_alphanumeric() || c == '_')
        && !name.starts_with(|c: char| c.is_numeric());
    if is_name { Ok(()) } else { Err(format!("`{}` is no name of a field", name.escape_default())) }
}

/// Checks a path. A path begins with the name of a pointer.
pub(crate) fn path(path: &str) -> Result<(), String> {
    let steps: Vec<_> = steps_of(path).collect();
    let wrong = |why: String| Err(format!("`{}` is no path: {why}", path.escape_default()));
    if path.len() > SYMBOL_MAX || steps.len() > STEPS_MAX + 1 {
        return wrong(format!("it has more than {STEPS_MAX} steps"));
    }
    if steps.len() < 2 {
        return wrong("write the name of a pointer, a dot, and fields".to_owned());
    }
    for (index, step) in steps.iter().enumerate() {
        let held = step.strip_prefix("(*").and_then(|rest| rest.strip_suffix(')'));
        let is_type =
            held.is_some_and(|name| symbol(name, "type").is_ok() && !name.contains(['(', ')', '*']));
        let is_field = field(step).is_ok();
        if is_type && (index < 2 || index + 1 == steps.len()) {
            return wrong(format!("{step} must stand between fields"));
        }
        if !is_type && !is_field {
            return wrong(format!("`{step}` is neither a field nor a type as in (*package.Type)"));
        }
        if index > 0 && steps.iter().skip(1).take(index - 1).any(|other| other == step) {
            return wrong(format!("it goes through {step} twice, and paths may not go round"));
        }
    }
    Ok(())
}
