use super::*;
use crate::image::Demangler;

/// The spec that most tests change a part of.
const JOBS: &str = r#"
name = "jobs"

[[operation]]
name = "job"
key = "pointer"
labels = { queue = "job.queue.name", status = { outcome = ["ok", "failed"] }, tries = { number = "job.tries" } }
types = { job = "main.job" }

[[operation.start]]
function = "main.(*queue).begin"
arguments = "ww"
key = 1

[[operation.finish]]
function = "main.(*queue).end"
arguments = "ww{ww}"
key = 1
pointers = { job = 1 }
error = 2
"#;

fn jobs() -> Spec {
    read("jobs.toml", JOBS).unwrap_or_else(|error| panic!("{error}"))
}

/// The error for the spec with one part of its text replaced.
fn error(part: &str, other: &str) -> String {
    assert!(JOBS.contains(part), "{part}");
    read("jobs.toml", &JOBS.replacen(part, other, 1)).expect_err(other).to_string()
}

#[test]
fn a_spec_says_what_starts_and_what_finishes() {
    let spec = jobs();
    assert_eq!(spec.labels, ["queue", "status", "tries"]);
    let [operation] = &spec.operations[..] else { panic!("{spec:?}") };
    assert_eq!((operation.key, operation.policy), (Key::Pointer, Policy::Overwrite));
    assert_eq!(operation.start[0].words.key, Some(1));
    let Finish::Entered(finish) = &operation.finish else { panic!("{operation:?}") };
    assert_eq!(finish[0].words.error, Some(2));
    assert_eq!(operation.labels[0], Source::Name("job.queue.name".to_owned()));
}

#[test]
fn errors_have_a_place() {
    for (part, other, expected) in [
        ("name = \"jobs\"", "name = \"1jobs\"", "jobs.toml:2:8: `1jobs` is no name for metrics"),
        ("name = \"jobs\"", "name = \"go\"", "jobs.toml:2:8: metrics that begin with go_"),
        // OpenTelemetry's old name of the uptime begins with `runtime_`.
        ("name = \"jobs\"", "name = \"runtime_jobs\"", "jobs.toml:2:8: metrics that begin with runtime_"),
        ("key = \"pointer\"", "key = \"thread\"", "jobs.toml:6:7: unknown variant `thread`"),
        ("error = 2", "error = 1", "jobs.toml:20:9: an error has two words"),
        ("error = 2", "error = 4", "jobs.toml:20:9: there are 4 words"),
        ("error = 2", "eror = 2", "jobs.toml:20:1: unknown field `eror`"),
        (
            "\"job.queue.name\"",
            "\"job.next.next\"",
            "jobs.toml:7:20: `job.next.next` is no path: it goes through next twice",
        ),
        ("\"job.queue.name\"", "\"queue.name\"", "jobs.toml:7:20: `queue` must be in the pointers"),
        ("tries = {", "le = {", "jobs.toml:7:79: the label le has a meaning"),
        (
            "\"job.queue.name\"",
            "\"job.queue.name\", a = \"job.a\", b = \"job.b\", r = \"job.c\"",
            "jobs.toml:7:68: at most 3 strings and one number",
        ),
        (
            "tries = { number = \"job.tries\" }",
            "tries = { number = \"job.tries\" }, x = { number = \"job.more\" }",
            "jobs.toml:7:117: at most 3 strings and one number",
        ),
        ("[[operation.start]]", "[operation.start]", "jobs.toml:10:1: invalid type: map"),
        ("[[operation.start]]", "[operation.start]", "two brackets, as in [[operation.start]]"),
        ("[[operation]]", "[operation]", "two brackets, as in [[operation]]"),
        ("main.(*queue).begin", "main.(*queue).*", "jobs.toml:11:12: a pattern needs at_most"),
        ("arguments = \"ww\"\n", "", "jobs.toml:10:1: say how its arguments lie"),
        ("key = \"pointer\"", "key = \"goroutine\"", "jobs.toml:10:1: the key is the goroutine"),
        ("arguments = \"ww\"", "arguments = \"4w\"\nkey = 0", "duplicate key"),
        ("name = \"jobs\"", "name = ", "jobs.toml:2:"),
        (
            "\"main.job\"",
            "\"(main.work).(*main.job)\"",
            "jobs.toml:8:17: only the frameworks that the agent has",
        ),
        (
            "name = \"jobs\"",
            "name = \"jobs\"\nstatus = 1",
            "jobs.toml:3:1: only the frameworks that the agent has",
        ),
        ("error = 2", "retries = 2", "unknown field `retries`"),
    ] {
        let text = error(part, other);
        assert!(text.contains(expected), "{text}\nis not: {expected}");
    }
}

#[test]
fn a_table_that_is_written_inline_may_be_one_of_several() {
    let read = |start: &str, finish: &str| {
        let text =
            format!("name = \"any\"\n[[native]]\nname = \"any\"\nkey = \"thread\"\n{start}\n{finish}\n");
        read("any.toml", &text).map_err(|error| error.to_string())
    };
    let [start, finish] = ["start = [{ function = \"begin\" }]", "finish = [{ function = \"end\" }]"];
    assert!(read(start, finish).is_ok());
    let single = |table: &str| table.replace(['[', ']'], "");
    for (place, told) in
        [("any.toml:5:9: ", read(&single(start), finish)), ("any.toml:6:10: ", read(start, &single(finish)))]
    {
        let why = told.expect_err("a single table");
        assert!(why.starts_with(place) && why.ends_with("brackets around it, as in [{ … }]"), "{why}");
    }
    let why = read("start.function = \"begin\"", finish).expect_err("a single table");
    assert!(why.contains("there may be several of these") && !why.contains("operation"), "{why}");
}

#[test]
fn returns_are_expensive() {
    let finish = JOBS.find("[[operation.finish]]").expect("a finish");
    let with = |lines: &str| {
        let head = JOBS[..finish].replace("\"pointer\"", "\"goroutine\"").replace("key = 1\n", "");
        let head = head.replace("types", &format!("{lines}\ntypes"));
        read("jobs.toml", &head)
    };
    let text = with("returns = { pointers = { job = 0 }, error = 1 }").expect_err("expensive").to_string();
    assert!(text.contains("allow_expensive = true"), "{text}");
    let spec = with("returns = { pointers = { job = 0 }, error = 1 }\nallow_expensive = true");
    assert!(matches!(spec.expect("a spec").operations[0].finish, Finish::Returned(_)));
}

#[test]
fn what_is_too_much_is_refused() {
    let operation = JOBS.split_once("[[operation]]").expect("an operation").1;
    let many = format!("name = \"jobs\"\n{}", format!("[[operation]]{operation}").repeat(OPERATIONS_MAX + 1));
    assert!(read("", &many).expect_err("too many").to_string().contains("from 1 to"));
    assert_eq!(read("", &" ".repeat(FILE_MAX + 1)), Err(SpecError::TooLong(String::new())));
    let deep = format!("name = {}", "[".repeat(10_000));
    assert!(read("", &deep).is_err());
    let long = format!("\"job.{}\"", "a.".repeat(STEPS_MAX) + "b");
    assert!(error("\"job.queue.name\"", &long).contains("more than"));
}

#[test]
fn specs_have_nothing_in_common() {
    let renamed = |name: &str| Spec { name: name.to_owned(), ..jobs() };
    let text = |specs| Specs::of(specs).expect_err("an error").to_string();
    let other = read("others.toml", JOBS).expect("a spec");
    let same = "specs jobs.toml and others.toml both have the metrics jobs_total: give one another name";
    assert!(text(vec![jobs(), other]).contains(same));
    assert!(text(vec![jobs(), renamed("others")]).contains("both watch main.(*queue).begin"));
    assert!(matches!(Specs::of(vec![jobs(); SPECS_MAX + 1]), Err(SpecError::TooMany)));
    assert_eq!(Specs::of(vec![jobs()]).expect("one").iter().count(), 1);
}

#[test]
fn the_agents_own_specs_can_be_read() {
    for (name, text) in KNOWN {
        let spec = read(name, text).unwrap_or_else(|error| panic!("{error}"));
        assert!(!spec.help.is_empty() && !spec.module.is_empty(), "{name}");
    }
    assert!(Specs::load(&KNOWN.iter().map(|(name, _)| (*name).to_owned()).collect::<Vec<_>>()).is_ok());
    let text = Specs::load(&["nothing".to_owned()]).expect_err("no file").to_string();
    assert!(text.contains("nothing") && text.contains("net-http"), "{text}");
}

#[test]
fn numbers_tell_failures() {
    let holds = |text: &str, number| {
        let spec = JOBS.replace("error = 2\n", "").replace("types", &format!("failed = \"{text}\"\ntypes"));
        read("", &spec).unwrap_or_else(|error| panic!("{error}")).operations[0].fails(Some(number))
    };
    assert!(holds(">= 500", 500) && !holds(">= 500", 499) && holds("!= 0", 1) && !holds("!= 0", 0));
    assert!(holds("== 7", 7) && holds("< 3", 2) && !holds("< 3", 3));
}

#[test]
fn native_functions_are_known_by_both_of_their_names() {
    let entry = |function: &str| {
        let text = format!(
            "name = \"any\"\n[[native]]\nname = \"any\"\nkey = \"thread\"\nallow_expensive = true\n\
             returns = {{ by = \"instructions\" }}\n[[native.start]]\nfunction = {function}\n"
        );
        let spec = read("", &text).unwrap_or_else(|error| panic!("{error}"));
        spec.operations[0].native.as_ref().expect("a native operation").start[0].clone()
    };
    let is_like = |function: &str, symbol: &str| {
        let names = Demangler::default().names(symbol);
        entry(function).is_like(symbol, || &names)
    };
    for (function, symbol) in [
        ("\"_Z4showPKc\"", "_Z4showPKc"),
        ("\"show(char const*)\"", "_Z4showPKc"),
        ("\"ns::show\"", "_ZN2ns4showEPKc"),
        ("\"ns::*\"\nat_most = 2", "_ZN2ns4showEPKc"),
        ("\"(anonymous namespace)::show(int)\"", "_ZN12_GLOBAL__N_14showEi"),
        ("\"ns::sum<int>\"", "_ZN2ns3sumIiEEvT_"),
        ("\"show\"", "show"),
    ] {
        assert!(is_like(function, symbol), "{function} {symbol}");
    }
    for (function, symbol) in [
        ("\"show(char*)\"", "_Z4showPKc"),
        ("\"ns::show\"", "_ZN2ns5showsEPKc"),
        ("\"show\"", "_Z4showPKc"),
        ("\"ns::show\"", "ns::show"),
    ] {
        assert!(!is_like(function, symbol), "{function} {symbol}");
    }
}

/// Whether `JOBS` can still be read with one part of its text replaced.
fn fits(part: &str, other: &str) -> bool {
    assert!(JOBS.contains(part), "{part}");
    read("", &JOBS.replacen(part, other, 1)).is_ok()
}

/// A text repeated with its index.
fn many(count: usize, one: impl Fn(usize) -> String) -> String {
    (0..count).map(one).collect()
}

#[test]
fn each_limit_is_where_the_documents_say() {
    const LABELS: &str = r#"labels = { queue = "job.queue.name", status = { outcome = ["ok", "failed"] }, tries = { number = "job.tries" } }"#;
    const START: &str =
        "[[operation.start]]\nfunction = \"main.(*queue).begin\"\narguments = \"ww\"\nkey = 1\n";
    let labels = |texts: usize, names: usize, numbers: usize| {
        let texts = many(texts, |index| format!("text{index} = {{ text = \"a\" }}, "));
        let names = many(names, |index| format!("name{index} = \"job.name{index}\", "));
        let numbers =
            many(numbers, |index| format!("number{index} = {{ number = \"job.number{index}\" }}, "));
        format!("labels = {{ {} }}", format!("{texts}{names}{numbers}").trim_end_matches(", "))
    };
    let path = |steps: usize| format!("\"job{}\"", many(steps, |index| format!(".f{index}")));
    let pointers = |count: usize| {
        format!("pointers = {{ job = 1{} }}", many(count - 1, |index| format!(", p{index} = 0")))
    };
    let pattern = |at_most: usize| format!("main.(*queue).begin*\"\nat_most = {at_most}\narguments = \"ww");
    for (what, part, at, past) in [
        ("alternatives", START, START.repeat(8), START.repeat(9)),
        ("functions of a pattern", "main.(*queue).begin\"\narguments = \"ww", pattern(64), pattern(65)),
        ("steps of a path", "\"job.queue.name\"", path(8), path(9)),
        ("labels", LABELS, labels(8, 0, 0), labels(9, 0, 0)),
        ("names", LABELS, labels(0, 3, 1), labels(0, 4, 1)),
        ("numbers", LABELS, labels(0, 3, 1), labels(0, 3, 2)),
        ("pointers", "pointers = { job = 1 }", pointers(2), pointers(3)),
        (
            "a name of metrics",
            "\"jobs\"",
            format!("\"{}\"", "j".repeat(64)),
            format!("\"{}\"", "j".repeat(65)),
        ),
        ("a name of a label", "tries =", format!("{} =", "t".repeat(64)), format!("{} =", "t".repeat(65))),
        (
            "a name of a function",
            "main.(*queue).begin",
            format!("main.{}", "b".repeat(251)),
            format!("main.{}", "b".repeat(252)),
        ),
        (
            "a name of a type",
            "main.job\"",
            format!("main.{}\"", "t".repeat(251)),
            format!("main.{}\"", "t".repeat(252)),
        ),
        (
            "a value of a label",
            "\"failed\"",
            format!("\"{}\"", "f".repeat(256)),
            format!("\"{}\"", "f".repeat(257)),
        ),
        (
            "help",
            "name = \"jobs\"",
            format!("name = \"jobs\"\nhelp = \"{}\"", "h".repeat(256)),
            format!("name = \"jobs\"\nhelp = \"{}\"", "h".repeat(257)),
        ),
    ] {
        assert!(fits(part, &at), "{what}: {at}");
        assert!(!fits(part, &past), "{what}: {past}");
    }
    assert!(error("main.(*queue).begin\"\narguments = \"ww", &pattern(0)).contains("from 1 to 64"));
    let operation = JOBS.split_once("[[operation]]").expect("an operation").1;
    let operations =
        |count: usize| format!("name = \"jobs\"\n{}", format!("[[operation]]{operation}").repeat(count));
    assert!(read("", &operations(4)).is_ok() && read("", &operations(5)).is_err());
    let long = |bytes: usize| format!("{JOBS}#{}", "-".repeat(bytes - JOBS.len() - 1));
    assert!(read("", &long(64 << 10)).is_ok() && read("", &long((64 << 10) + 1)).is_err());
    let specs = |count: usize| {
        let spec = |index: usize| {
            let name = format!("jobs{index}");
            let text =
                JOBS.replace("\"jobs\"", &format!("\"{name}\"")).replace("*queue", &format!("*{name}"));
            read("", &text).expect("a spec")
        };
        Specs::of((0..count).map(spec).collect())
    };
    assert!(specs(16).is_ok() && matches!(specs(17), Err(SpecError::TooMany)));
}

#[test]
fn words_are_in_the_registers_that_their_numbers_say() {
    let key = |arguments: &str, word: usize| format!("arguments = \"{arguments}\"\nkey = {word}");
    let begin = "arguments = \"ww\"\nkey = 1";
    for (arguments, word, is_there) in [
        ("wwwwwwwww", 8, true),
        ("wwwwwwwwww", 9, false),
        ("{{ww}{w}}wwwwww", 8, true),
        // An argument that does not fit is on the stack as a whole, and the words after it have other registers.
        ("wwwwwwww{ww}w", 7, true),
        ("wwwwwwww{ww}w", 8, false),
        ("wwwwwwww{ww}w", 10, false),
        ("{wwwwwwwwww}w", 10, false),
    ] {
        assert_eq!(fits(begin, &key(arguments, word)), is_there, "{arguments} {word}");
    }
    let text = error(begin, &key("wwwwwwww{ww}w", 8));
    assert!(
        text.contains("jobs.toml:13:7: only the first 8 of these words are in the 9 registers"),
        "{text}"
    );
    let error_at = |word: usize| {
        let head = JOBS.split_once("[[operation.finish]]").expect("a finish").0;
        let head = head.replace("\"pointer\"", "\"goroutine\"").replace("key = 1\n", "");
        let returns = format!(
            "returns = {{ pointers = {{ job = 0 }}, error = {word} }}\nallow_expensive = true\ntypes"
        );
        read("", &head.replace("types", &returns)).is_ok()
    };
    assert!(error_at(7) && !error_at(8));
}

#[test]
fn each_limit_of_native_functions_is_where_the_documents_say() {
    let spec = |arguments: &str, labels: &str| {
        let text = format!(
            "name = \"any\"\n[[native]]\nname = \"any\"\nkey = \"thread\"\nlabels = {{ {labels} }}\n\
             [[native.start]]\nfunction = \"begin\"\n{arguments}\n[[native.finish]]\nfunction = \"end\"\n"
        );
        read("", &text).is_ok()
    };
    assert!(spec("cstrings = { a = 5 }", "a = \"a\"") && !spec("cstrings = { a = 6 }", "a = \"a\""));
    assert!(spec("number = 5", "") && !spec("number = 6", ""));
    let strings = |count: usize| {
        let arguments = many(count, |index| format!("a{index} = 0, "));
        let labels = many(count, |index| format!("a{index} = \"a{index}\", "));
        let of = |text: &str| text.trim_end_matches(", ").to_owned();
        spec(&format!("cstrings = {{ {} }}", of(&arguments)), &of(&labels))
    };
    assert!(strings(3) && !strings(4));
    let native = |count: usize| {
        let one = "[[native]]\nname = \"any\"\nkey = \"thread\"\n[[native.start]]\nfunction = \"begin\"\n\
                   [[native.finish]]\nfunction = \"end\"\n";
        read("", &format!("name = \"any\"\n{}", one.repeat(count))).is_ok()
    };
    assert!(native(4) && !native(5));
}

#[test]
fn errors_in_labels_of_native_functions_have_a_place() {
    let error = |labels: &str| {
        let text = format!(
            "name = \"any\"\n[[native]]\nname = \"any\"\nkey = \"thread\"\nlabels = {{ {labels} }}\n\
             [[native.start]]\nfunction = \"begin\"\ncstrings = {{ a = 0 }}\n[[native.finish]]\nfunction = \"end\"\n"
        );
        read("any.toml", &text).expect_err(labels).to_string()
    };
    for (labels, expected) in [
        ("a = \"a\", b = \"a\", c = \"a\", d = \"a\"", "any.toml:5:43: at most 3 strings and one number"),
        ("le = \"a\"", "any.toml:5:12: the label le has a meaning"),
        ("a = \"b\"", "any.toml:5:16: `b` is no string of each start"),
    ] {
        let text = error(labels);
        assert!(text.contains(expected), "{text}\nis not: {expected}");
    }
}

#[test]
fn numbers_have_a_sign_where_the_spec_says_so() {
    let operation = |lines: &str, failed: &str| {
        let lines = format!("{lines}failed = \"{failed}\"\ntypes");
        let text = JOBS.replace("error = 2\n", "").replace("types", &lines);
        read("jobs.toml", &text).map(|spec| spec.operations[0].clone())
    };
    let signed = operation("signed = true\n", "< 0").expect("a spec");
    assert_eq!((signed.number(u32::MAX), signed.number(7)), (-1, 7));
    assert!(signed.fails(Some(u32::MAX)) && !signed.fails(Some(0)));
    let unsigned = operation("", ">= 4294967295").expect("a spec");
    assert_eq!(unsigned.number(u32::MAX), 4_294_967_295);
    assert!(unsigned.fails(Some(u32::MAX)) && !unsigned.fails(Some(7)));
    for failed in ["< 0", "< -1", ">= -1", "== -1", "!= -5"] {
        let text = operation("", failed).expect_err(failed).to_string();
        assert!(text.contains("jobs.toml:8:10: numbers have no sign"), "{text}");
        assert!(operation("signed = true\n", failed).is_ok(), "{failed}");
    }
    assert!(operation("signed = true\n", ">= 2147483648").is_err());
    assert!(operation("", ">= 4294967296").is_err());
}

#[test]
fn a_number_that_was_not_read_tells_nothing() {
    let text = JOBS.replace("error = 2\n", "").replace("types", "failed = \">= 3\"\ntypes");
    let told = &read("", &text).expect("a spec").operations[0];
    assert!(told.is_untold(None) && !told.is_untold(Some(3)) && !told.fails(None));
    assert!(!told.reads_any_number() && !jobs().operations[0].is_untold(None));
}

#[test]
fn numbers_have_as_many_bytes_as_their_words() {
    const SOURCES: &str = r#"status = { outcome = ["ok", "failed"] }, tries = { number = "job.tries" }"#;
    assert!(JOBS.contains(SOURCES));
    let text = JOBS.replace(SOURCES, "tries = { number = \"argument\" }");
    let entered = |arguments: &str, word: usize, lines: &str| {
        let text = text
            .replace("\"ww{ww}\"", &format!("\"ww{arguments}\""))
            .replace("types", &format!("{lines}types"));
        read("jobs.toml", &text.replace("error = 2", &format!("number = {word}")))
    };
    for (arguments, word, bytes) in [("1", 2, 1), ("{42}", 3, 2), ("4", 2, 4), ("w", 2, 8)] {
        let spec = entered(arguments, word, "").unwrap_or_else(|error| panic!("{error}"));
        let Finish::Entered(finish) = &spec.operations[0].finish else { panic!("{spec:?}") };
        assert_eq!(finish[0].words.number_width, bytes, "{arguments}");
        assert!(spec.operations[0].reads_any_number());
        let signed = entered(arguments, word, "signed = true\n");
        assert_eq!(signed.is_ok(), bytes >= 4, "{arguments}");
    }
    let finish = text.find("[[operation.finish]]").expect("a finish");
    let head = text[..finish].replace("\"pointer\"", "\"goroutine\"").replace("key = 1\n", "");
    let returned = |words: &str| {
        let returns =
            format!("returns = {{ pointers = {{ job = 0 }}, {words} }}\nallow_expensive = true\ntypes");
        read("jobs.toml", &head.replace("types", &returns))
    };
    for (words, bytes) in [
        ("number = 1, results = \"w1{ww}\"", 1),
        ("number = 1, results = \"w2\"", 2),
        ("number = 1, results = \"w4\"", 4),
        ("number = 1", 8),
    ] {
        let spec = returned(words).unwrap_or_else(|error| panic!("{error}"));
        let Finish::Returned(found) = &spec.operations[0].finish else { panic!("{spec:?}") };
        assert_eq!(found.number_width, bytes, "{words}");
    }
    for (words, expected) in [
        ("number = 1, results = \"w\"", "there are 1 words in `w`"),
        ("number = 1, results = \"4w\"", "this word has fewer than 8 bytes"),
        ("number = 1, results = \"wx\"", "`wx` are no arguments"),
        ("number = 9", "only the first 9 words of results"),
    ] {
        let text = returned(words).expect_err(words).to_string();
        assert!(text.contains(expected), "{text}\nis not: {expected}");
    }
}

#[test]
fn names_have_spaces_in_brackets_only() {
    assert!(fits("main.(*queue).begin", "main.set[struct { id int }].begin"));
    assert!(fits("\"main.job\"", "\"main.set[struct { id int }]\""));
    for name in ["main.set begin", "main.set[int] begin", "main.set]a [b"] {
        assert!(!fits("main.(*queue).begin", name), "{name}");
    }
}

#[test]
fn arguments_that_are_too_many_are_not_said_to_be_unclosed() {
    let arguments = |count: usize| format!("arguments = \"{}\"", "w".repeat(count));
    assert!(fits("arguments = \"ww\"", &arguments(256)));
    let text = error("arguments = \"ww\"", &arguments(257));
    assert!(text.contains("jobs.toml:12:13: these are more than 256 bytes"), "{text}");
}
