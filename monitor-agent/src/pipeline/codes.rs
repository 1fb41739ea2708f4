//! The codes of gRPC's statuses.

/// Their names (`codes/code_string.go` @ v1.85.0), by their numbers.
const CODES: [&str; 17] = [
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];

/// The name of a code as gRPC-Go has it, such as `NotFound`; `None` for a number that means nothing to it.
pub(crate) fn name(code: u32) -> Option<&'static str> {
    CODES.get(usize::try_from(code).ok()?).copied()
}
