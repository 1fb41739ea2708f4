//! The rooms of the agent, as `docs/ARCHITECTURE.md` lists them: dependencies point one way, and one room names aya.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// Which rooms each uses outside of its tests: none that has its row below. Those without a row use none.
const ROOMS: &str = "\
target: descriptors
frameworks: image specs
goruntime: image target
plan: frameworks image specs text
bpf: descriptors image plan target
pipeline: frameworks specs
metrics: descriptors frameworks goruntime pipeline specs
events: pipeline specs text time
export: descriptors events memory metrics pipeline threads time
failure: bpf descriptors events export image plan specs target text threads
agent: bpf descriptors events export failure frameworks goruntime image metrics pipeline plan specs target text threads
cli: agent bpf descriptors events export failure goruntime image memory metrics pipeline plan specs target text threads
fuzzing: frameworks image pipeline plan specs";

#[test]
fn dependencies_point_one_way() {
    let rows: Vec<_> = ROOMS.lines().map(|row| row.split_once(": ").expect("a room and others")).collect();
    let mut allowed = Vec::new();
    for (index, (room, uses)) in rows.iter().enumerate() {
        for used in uses.split(' ') {
            assert!(rows[index..].iter().all(|(below, _)| *below != used), "{used} is not above {room}");
            allowed.push(format!("{room} uses {used}"));
        }
    }
    let mut seen = BTreeMap::new();
    for path in files(Path::new("src")).into_iter().filter(|path| !path.ends_with("tests.rs")) {
        let (file, text) = (path.display().to_string(), fs::read_to_string(&path).expect("a text"));
        let room = first_word(&file["src/".len()..]);
        let names_aya = ["aya::", "aya_log::", "aya_obj::"].iter().any(|name| text.contains(name));
        assert!(room == "bpf" || !names_aya, "{file} names aya");
        for (line, used) in uses(&text).into_iter().filter(|(_, used)| *used != room) {
            seen.insert(format!("{room} uses {used}"), format!("{file}:{line}"));
        }
    }
    let wrong: Vec<_> = seen.iter().filter(|(arrow, _)| !allowed.contains(*arrow)).collect();
    assert!(wrong.is_empty(), "not allowed: {wrong:#?}");
    allowed.retain(|arrow| !seen.contains_key(arrow));
    assert!(allowed.is_empty(), "no longer so: {allowed:?}");
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let paths = fs::read_dir(directory).expect("a directory").map(|entry| entry.expect("an entry").path());
    paths.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

/// The lines outside of tests and comments that name rooms, and which.
fn uses(text: &str) -> Vec<(usize, &str)> {
    let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let mut uses = Vec::new();
    for (at, found) in code.match_indices("crate::") {
        let (line, mut depth) = (code[..=at].lines().count(), 0);
        if code.lines().nth(line - 1).is_some_and(|line| line.trim_start().starts_with("//")) {
            continue;
        }
        // One path, or several in braces.
        let paths = code[at + found.len()..].split(';').next().unwrap_or_default();
        let paths = paths.strip_prefix('{').unwrap_or(first_word(paths)).split(|c: char| {
            depth += i32::from(c == '{') - i32::from(c == '}');
            c == ',' && depth == 0
        });
        let rooms = paths.map(|path| first_word(path.trim_start())).filter(|room| !room.is_empty());
        uses.extend(rooms.map(|room| (line, room)));
    }
    uses
}

fn first_word(text: &str) -> &str {
    text.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or_default()
}
