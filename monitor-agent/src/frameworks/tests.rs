use super::*;

const KITEX: &str = FILES[0].1;
const GRPC: &str = FILES[1].1;

/// The error for a file in which one part of the text is replaced.
fn error(text: &str, part: &str, other: &str) -> String {
    assert!(text.contains(part), "{part}");
    read("file.toml", &text.replacen(part, other, 1)).expect_err(other).to_string()
}

#[test]
fn the_files_can_be_read() {
    let titles: Vec<_> = known().titles().collect();
    assert_eq!(titles, [("Kitex", "github.com/cloudwego/kitex"), ("gRPC-Go", "google.golang.org/grpc")]);
    let kitex = &known().by_type[0];
    assert_eq!((kitex.object, kitex.error), (Pair { type_word: 3, data: 4 }, Pair { type_word: 5, data: 6 }));
    assert_eq!(kitex.shapes[0].caller, "from.serviceName");
    assert_eq!((known().code(5), known().code(17)), (Some("NotFound"), None));
}

#[test]
fn what_is_wrong_with_a_file_has_a_place() {
    for (text, part, other, expected) in [
        (KITEX, "told_by = \"type\"", "told_by = \"function\"", "unknown field"),
        (KITEX, "told_by = \"type\"\n", "", "missing field `told_by`"),
        (
            KITEX,
            "pointers = { ri = 3 }",
            "pointers = { ri = 4 }",
            "file.toml:20:1: the object is an interface",
        ),
        (KITEX, "pointers = { ri = 3 }", "pointers = { ri = 1 }", "all functions get the object"),
        (KITEX, "error = 5\n", "", "only that, gets an error"),
        (KITEX, "types = { ri", "types = { rj", "say of which type ri is"),
        (KITEX, "\"ri.from.serviceName\"", "\"from.serviceName\"", "does not begin with ri"),
        (KITEX, "(pkg/rpcinfo.RPCInfo).(*", "(pkg/rpcinfo.RPCInfo).(", "is no way to a type"),
        (KITEX, "is = \"& 6\"", "is = \"& six\"", "write the sum of the bits"),
        (KITEX, "is = \"== 2\"", "is = \">= 2\"", "only == can be asked"),
        (KITEX, "family = \"kitex\"", "family = \"other\"", "unknown variant `other`"),
        (KITEX, "retries = ", "retires = ", "unknown field `retires`"),
        (KITEX, "before = [0, 13]\n", "", "missing field `before`"),
        (KITEX, "{{www}{ww}}", "{{www}{ww}", "a brace that is not closed"),
        (GRPC, "starts_as = \"client\"", "starts_as = \"cleint\"", "there is no operation of this name"),
        (GRPC, "starts_as = \"client\"", "unary = true", "one of start and starts_as"),
        (GRPC, "client = \"attempt.cs", "client = \"other.cs", "has its streams behind its key"),
        (GRPC, "key = 5\n", "key = 7\n", "the pointer that is the key has one name"),
        (GRPC, "key = 5\n", "key = 6\n", "the key is one of the pointers"),
        (GRPC, "unary = true\n", "", "say which streams it has"),
        (GRPC, "error = 1\n", "", "a finish gets a status or an error"),
        (GRPC, "pointer = \"s\"", "pointer = \"s.t\"", "`s.t` is no name of a field"),
        (
            GRPC,
            "server = \"desc.ServerStreams\" }\n\n# Unary",
            "server = \"other.ServerStreams\" }\n\n# Unary",
            "one description",
        ),
        (GRPC, "text = \"EOF\"", "text = \"no more of it\"", "at most 8 bytes are compared"),
        (GRPC, "arguments = \"www\"", "arguments = \"www\"\nat_most = 2", "unknown field `at_most`"),
        (KITEX, "pointers = { ri = 3 }", "pointers = { ri = 3 }\nat_most = 2", "not patterns"),
        (
            GRPC,
            "in_place_of = \"client, without",
            "in_place_of = \"client",
            "there is no operation of this name",
        ),
        (
            GRPC,
            "error = 1\n\n[[operation.also_finish]]",
            "error = 2\n\n[[operation.also_finish]]",
            "the error is behind one word",
        ),
        (
            GRPC,
            "function = \".(*clientStream).newAttemptLocked\"",
            "function = \".(*clientStream).newAttemptLocked\"\ngiven_by = \".other\"",
            "where an error is given",
        ),
    ] {
        let text = error(text, part, other);
        assert!(text.contains(expected) && text.starts_with("file.toml:"), "{text}\nis not: {expected}");
    }
}
