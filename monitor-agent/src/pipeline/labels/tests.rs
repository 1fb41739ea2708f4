use proptest::prelude::*;

use super::*;

fn set(bytes: &[u8], mark: u8) -> LabelSet {
    let mut set = LabelSet::EMPTY;
    set.text[label::METHOD][..bytes.len()].copy_from_slice(bytes);
    set.lengths[label::METHOD] = u8::try_from(bytes.len()).unwrap();
    set.marks[label::METHOD] = mark;
    set
}

fn method(set: &LabelSet) -> String {
    Labels::decode(set, &NoExecutable).method
}

/// An executable with `Echo` repeated at 0x4000, and one class of errors at 0x500.
struct Echo(Framework);

const ECHO: Echo = Echo(Framework::Kitex);

impl Executable for Echo {
    fn framework(&self) -> Framework {
        self.0
    }

    fn constant(&self, address: u64, length: usize) -> Option<Vec<u8>> {
        (address == 0x4000 && length.is_multiple_of(4)).then(|| b"Echo".repeat(length / 4))
    }

    fn error_class(&self, offset: u32) -> &'static str {
        if offset == 0x500 { "timeout" } else { OTHER }
    }

    fn protocol(&self, number: u16) -> Option<String> {
        (number == 0).then(|| "PurePayload".to_owned())
    }
}

#[test]
fn names_are_shown_as_the_in_process_code_does() {
    assert_eq!(method(&set(b"Echo", mark::WHOLE)), "Echo");
    assert_eq!(method(&set(b"", mark::WHOLE)), "unknown");
    assert_eq!(method(&set(b"unknown", mark::WHOLE)), "unknown");
    assert_eq!(method(&set(b"", mark::UNREADABLE)), "unreadable");
    assert_eq!(method(&set(b"", mark::OTHER)), "other");
    assert_eq!(method(&set(b"\xffcho", mark::WHOLE)), "\u{fffd}cho");
}

#[test]
fn a_cut_name_says_so_and_loses_no_half_character() {
    assert_eq!(method(&set(&[b'a'; 64], mark::CUT)), format!("{}…", "a".repeat(64)));
    let mut bytes = [b'a'; 64];
    bytes[62..].copy_from_slice(&"€".as_bytes()[..2]);
    assert_eq!(method(&set(&bytes, mark::CUT)), format!("{}…", "a".repeat(62)));
}

/// Only the programs' mark counts, whatever a name ends in.
#[test]
fn cut_names_are_counted() {
    let cut = |set: &LabelSet| Labels::decode(set, &ECHO).cut_names;
    let whole: [(&[u8], u8); 4] = [
        (&[b'a'; 64], mark::WHOLE),
        ("Echo…".as_bytes(), mark::WHOLE),
        (b"", mark::OTHER),
        (b"", mark::UNREADABLE),
    ];
    for (text, mark) in whole {
        assert_eq!(cut(&set(text, mark)), 0, "{mark}");
    }
    let mut names = set(&[b'a'; 64], mark::CUT);
    assert_eq!(cut(&names), 1);
    names.lengths[label::CALLER] = 64;
    names.marks[label::CALLER] = mark::CUT;
    assert_eq!(cut(&names), 2);
}

/// A name that is looked up is cut if its length exceeds the room.
#[test]
fn cut_names_are_counted_where_they_are_looked_up() {
    let literal = |address: u64, length: u64| {
        let bytes: Vec<u8> = [address.to_ne_bytes(), length.to_ne_bytes()].concat();
        let labels = Labels::decode(&set(&bytes, mark::LITERAL), &ECHO);
        (labels.method, labels.cut_names)
    };
    assert_eq!(literal(0x4000, 64), ("Echo".repeat(16), 0));
    assert_eq!(literal(0x4000, 65), (format!("{}…", "Echo".repeat(16)), 1));
    assert_eq!(literal(0x5000, 65), ("unreadable".to_owned(), 0));
}

#[test]
fn one_name_for_service_and_method_is_cut_once() {
    let decode = |path: &[u8]| {
        let mut set = LabelSet { error: 5, failed: 1, ..LabelSet::EMPTY };
        set.text.as_flattened_mut().copy_from_slice(path);
        set.lengths[0] = u8::try_from(path.len()).unwrap();
        set.marks[0] = mark::CUT;
        let Labels { callee, method, cut_names, .. } = Labels::decode(&set, &Echo(Framework::Grpc));
        assert_eq!(cut_names, 1);
        (callee, method)
    };
    let all = format!("{}…", "s".repeat(192));
    assert_eq!(decode(&[b's'; 192]), (all.clone(), all));
    // The leading slash is not part of a name.
    let service = "s".repeat(191);
    let all = format!("{service}…");
    assert_eq!(decode(format!("/{service}").as_bytes()), (all.clone(), all));
    let service = "s".repeat(190);
    assert_eq!(decode(format!("/{service}/").as_bytes()), (service, "…".to_owned()));
    let service = "s".repeat(100);
    let method = format!("{}…", "m".repeat(90));
    assert_eq!(decode(format!("/{service}/{}", "m".repeat(90)).as_bytes()), (service, method));
}

#[test]
fn errors_are_told_apart_by_what_stands_for_them() {
    let class = |error| Labels::decode(&LabelSet { error, ..LabelSet::EMPTY }, &ECHO).error_class;
    assert_eq!(class(error_class::NONE), "none");
    assert_eq!(class(error_class::ELSEWHERE), "other");
    assert_eq!(class(0x500), "timeout");
    assert_eq!(class(0x508), "other");
}

/// An executable that only answers these questions.
struct Told {
    framework: Framework,
    tells_retries: bool,
    /// Whether the number of an operation of a spec is in a register, not in memory. A number with all bits set means
    /// failure.
    in_register: bool,
}

impl Executable for Told {
    fn framework(&self) -> Framework {
        self.framework
    }

    fn constant(&self, _: u64, _: usize) -> Option<Vec<u8>> {
        None
    }

    fn reads_any_number(&self, _: u8) -> bool {
        self.in_register
    }

    fn fails(&self, _: u8, number: Option<u32>) -> bool {
        number == Some(u32::MAX)
    }

    fn tells_retries(&self) -> bool {
        self.tells_retries
    }

    fn error_class(&self, _: u32) -> &'static str {
        OTHER
    }

    fn protocol(&self, _: u16) -> Option<String> {
        None
    }
}

#[test]
fn retries_that_were_not_read_are_no_number() {
    let retry = |side: u8, retry: u16, executable: &dyn Executable| {
        Labels::decode(&LabelSet { side, retry, ..LabelSet::EMPTY }, executable).retry
    };
    let without_tags = Told { framework: Framework::Kitex, tells_retries: false, in_register: false };
    assert_eq!(retry(side::CLIENT, 0, &ECHO), "0");
    assert_eq!(retry(side::CLIENT, 2, &ECHO), "2");
    assert_eq!(retry(side::CLIENT, retry_count::UNREADABLE, &ECHO), "unreadable");
    assert_eq!(retry(side::CLIENT, 0, &without_tags), "unreadable");
    // A server's call has no tags to read.
    assert_eq!(retry(side::SERVER, 0, &without_tags), "0");
}

#[test]
fn protocols_are_named_by_the_framework() {
    let name = |protocol| Labels::decode(&LabelSet { protocol, ..LabelSet::EMPTY }, &ECHO).protocol;
    let names = [protocol::NONE, 1, 2, protocol::UNREADABLE].map(name);
    assert_eq!(names, ["", "PurePayload", "unreadable", "unreadable"]);
}

#[test]
fn one_name_is_service_and_method() {
    let decode = |path: &[u8]| {
        let mut set = LabelSet { error: 5, failed: 1, stream: 2, ..LabelSet::EMPTY };
        set.text.as_flattened_mut()[..path.len()].copy_from_slice(path);
        set.lengths[0] = u8::try_from(path.len()).unwrap();
        let labels = Labels::decode(&set, &Echo(Framework::Grpc));
        assert_eq!((labels.code, labels.error().as_deref()), (Some(5), Some("NotFound")));
        (labels.callee, labels.method)
    };
    let names = |service: &str, method: &str| (service.to_owned(), method.to_owned());
    assert_eq!(decode(b"/a.b.Service/Method"), names("a.b.Service", "Method"));
    assert_eq!(decode(b"Service/Method/More"), names("Service", "Method/More"));
    for (path, service, method) in [
        ("/Service/", "Service", "unknown"),
        ("//Method", "unknown", "Method"),
        ("//", "unknown", "unknown"),
        ("/", "unknown", "unknown"),
        ("", "unknown", "unknown"),
        ("/nonsense", "unknown", "unknown"),
        // A peer can't imitate a placeholder.
        ("other", "unknown", "unknown"),
    ] {
        assert_eq!(decode(path.as_bytes()), names(service, method), "{path}");
    }
    let long = [&b"/"[..], &[b's'; 90], b"/", &[b'm'; 100]].concat();
    assert_eq!(decode(&long), names(&"s".repeat(90), &"m".repeat(100)));
}

/// The names are those of the label `grpc_code`.
#[test]
fn errors_of_grpc_have_the_names_of_their_codes() {
    let error = |failed: u8, error: u32| {
        let set = LabelSet { error, failed, ..LabelSet::EMPTY };
        Labels::decode(&set, &Echo(Framework::Grpc)).error()
    };
    let codes = [5, 98, 99, status_code::UNREADABLE];
    let names = ["NotFound", "Code(98)", "Code(99)", "unreadable"];
    assert_eq!(codes.map(|code| error(1, code)), names.map(|name| Some(Cow::Borrowed(name))));
    assert_eq!(error(0, status_code::OK), None);
}

#[test]
fn what_stands_in_for_one_name_does_so_for_service_and_method() {
    for (mark, shown) in [(mark::OTHER, "other"), (mark::UNREADABLE, "unreadable")] {
        let mut set = LabelSet::EMPTY;
        set.marks[0] = mark;
        let labels = Labels::decode(&set, &Echo(Framework::Grpc));
        assert_eq!([&*labels.callee, &*labels.method], [shown, shown]);
    }
}

#[test]
fn a_number_in_a_register_is_always_one() {
    let decode = |in_register: bool, error: u32| {
        let set = LabelSet { error, stream: stream::FIRST_OPERATION, ..LabelSet::EMPTY };
        let framework = Framework::Spec { spec: 0, operation: 0 };
        let labels = Labels::decode(&set, &Told { framework, tells_retries: true, in_register });
        (labels.code, labels.failed)
    };
    assert_eq!(decode(true, u32::MAX), (Some(u32::MAX), true));
    assert_eq!(decode(false, u32::MAX), (None, false));
    assert_eq!(decode(false, 7), (Some(7), false));
}

#[test]
fn kinds_of_streams_have_names() {
    let names = [0, 1, 2, 4, 6, 3].map(|number| StreamKind::of(number).name());
    assert_eq!(names, ["unknown", "unary", "client", "server", "bidirectional", "unknown"]);
}

#[test]
fn bytes_that_were_not_in_memory_are_looked_up() {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&0x4000_u64.to_ne_bytes());
    bytes[8..].copy_from_slice(&4_u64.to_ne_bytes());
    let set = set(&bytes, mark::ADDRESS);
    assert_eq!(Labels::decode(&set, &ECHO).method, "Echo");
    assert_eq!(method(&set), "unreadable");
}

proptest! {
    #[test]
    fn any_bytes_of_a_target_decode(bytes in prop::array::uniform32(any::<u8>()), mark in 0_u8..9) {
        let mut set = set(&bytes, mark);
        set.lengths = [bytes[0], bytes[1], bytes[2]];
        set.retry = u16::from_ne_bytes([bytes[3], bytes[4]]);
        set.error = u32::from(bytes[5]);
        set.stream = bytes[6];
        set.protocol = u16::from(bytes[7]);
        let labels = Labels::decode(&set, &ECHO);
        prop_assert!(!labels.method.is_empty());
    }
}
