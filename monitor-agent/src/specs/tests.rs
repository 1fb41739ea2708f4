use super::*;

/// An operation with everything.
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

/// The error of the spec with another text in place of a part of it.
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
        ("tries = {", "le = {", "the label le has a meaning"),
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
    assert!(text(vec![jobs(), jobs()]).contains("both have the metrics jobs_total"));
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
    for (function, symbol) in [
        ("\"_Z4showPKc\"", "_Z4showPKc"),
        ("\"show(char const*)\"", "_Z4showPKc"),
        ("\"ns::show\"", "_ZN2ns4showEPKc"),
        ("\"ns::*\"\nat_most = 2", "_ZN2ns4showEPKc"),
        ("\"(anonymous namespace)::show(int)\"", "_ZN12_GLOBAL__N_14showEi"),
        ("\"ns::sum<int>\"", "_ZN2ns3sumIiEEvT_"),
        ("\"show\"", "show"),
    ] {
        assert!(entry(function).is_like(symbol), "{function} {symbol}");
    }
    for (function, symbol) in [
        ("\"show(char*)\"", "_Z4showPKc"),
        ("\"ns::show\"", "_ZN2ns5showsEPKc"),
        ("\"show\"", "_Z4showPKc"),
        ("\"ns::show\"", "ns::show"),
    ] {
        assert!(!entry(function).is_like(symbol), "{function} {symbol}");
    }
}
