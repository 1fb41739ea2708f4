//! gRPC-Go (`google.golang.org/grpc`), servers and clients.
//!
//! A server's call starts where the handler is looked up and known, one goroutine for each, and ends where its status is
//! written (`server.go`, `internal/transport/http2_server.go` @ v1.40.0 … v1.85.0). A call that is refused before that
//! has an end only. A client's call is a `clientStream`, unary ones too (`stream.go`), which makes attempts and
//! finishes once, but for one that never gets a stream: since v1.47.0 nothing is called for its end but what decides
//! whether there will be another attempt.

use super::spec::{
    CallSpec, Entry, KindSpec, ObjectOf, Side, SitedFramework, SitedMessages, StatusSpec, Way,
};

/// See the [module](self).
pub(super) static GRPC: SitedFramework = SitedFramework {
    name: "grpc",
    module: "google.golang.org/grpc",
    calls: &[SERVER_STREAM, SERVER_UNARY, CLIENT, CLIENT_WITHOUT_STREAM],
    status: StatusSpec {
        error: "internal/status.Error",
        from_error: "s",
        message: "s",
        code: "Code",
        // io.EOF: the end of a stream from the server.
        well: ("errors.errorString", "EOF"),
        // "max retries exhausted", in newer releases.
        wrap: ("fmt.wrapError", "err"),
    },
    labels: &["grpc_type", "grpc_service", "grpc_method", "grpc_code"],
};

/// `(t *http2Server) writeStatus(s *ServerStream, st *status.Status)`, since v1.69.0 with a small letter.
const HTTP2: &[Entry] = &[
    status_written("internal/transport.(*http2Server).writeStatus"),
    status_written("internal/transport.(*http2Server).WriteStatus"),
];

/// The same of a server behind that of net/http (`ServeHTTP`).
const NET_HTTP: &[Entry] = &[
    status_written("internal/transport.(*serverHandlerTransport).writeStatus"),
    status_written("internal/transport.(*serverHandlerTransport).WriteStatus"),
];

const fn status_written(function: &'static str) -> Entry {
    Entry { function, arguments: "www", object: 1, second: 2, error: None }
}

/// Both have the transport among the arguments up to v1.68.2, and the context since v1.59.0.
const fn processed(function: &'static str) -> [Entry; 2] {
    [
        Entry { function, arguments: "w{ww}{ww}wwww", object: 5, second: 7, error: None },
        Entry { function, arguments: "w{ww}wwww", object: 3, second: 5, error: None },
    ]
}

/// What the server's end of a stream is made of: `transport.ServerStream`, up to v1.68.2 `transport.Stream`.
const STREAM: &[Way] = &[Way { interface: ".ServerStream", concrete: ".serverStream", fields: &["s"] }];

/// Where a `*StreamDesc` can be found by its type.
const DESC: &[Way] = &[
    Way { interface: ".ServerStream", concrete: ".serverStream", fields: &["desc"] },
    Way {
        interface: ".ServerOption",
        concrete: ".funcServerOption",
        fields: &["f", "()", "unknownStreamDesc"],
    },
    Way { interface: "internal/resolver.ClientStream", concrete: ".clientStream", fields: &["desc"] },
    Way { interface: ".ClientStream", concrete: ".clientStream", fields: &["desc"] },
];

const METHOD_OF_STREAM: &[&str] = &["Stream.method", "method"];

/// Streams on a server; since v1.84.0 unary calls too.
const SERVER_STREAM: CallSpec = CallSpec {
    name: "server",
    side: Side::Server,
    start: &{
        let [with_transport, without] = processed(".(*Server).processStreamingRPC");
        let [_, all] = processed(".(*Server).processRPC");
        [with_transport, without, all]
    },
    finishes: &[HTTP2, NET_HTTP],
    variant_of: None,
    object: STREAM,
    key: None,
    method: METHOD_OF_STREAM,
    kind: KindSpec::Second(DESC, "ClientStreams", "ServerStreams"),
    first_start: false,
    first_finish: false,
    // `streamDone`. A handler that can't receive or send has its status written before it returns, and then again.
    over: Some((&["Stream.state", "state"], 3)),
    only_if_zero: &[],
    messages: &[SitedMessages {
        sent: ".(*serverStream).SendMsg",
        received: ".(*serverStream).RecvMsg",
        arguments: MESSAGE,
        receiver: &[Way { interface: ".ServerStream", concrete: ".serverStream", fields: &[] }],
        object: ObjectOf::Pointer("s"),
        description: DESCRIPTION,
    }],
};

/// A message is an interface value.
const MESSAGE: &str = "w{ww}";

/// A server's stream has its own since v1.75.0.
const DESCRIPTION: [&str; 3] = ["desc", "ClientStreams", "ServerStreams"];

/// Unary calls on a server, up to v1.83.2.
const SERVER_UNARY: CallSpec = CallSpec {
    name: "server, unary",
    start: &processed(".(*Server).processUnaryRPC"),
    kind: KindSpec::Unary,
    messages: &[],
    ..SERVER_STREAM
};

const CLIENT: CallSpec = CallSpec {
    name: "client",
    side: Side::Client,
    start: &[Entry {
        function: ".(*clientStream).newAttemptLocked",
        arguments: "w",
        object: 0,
        second: 0,
        error: None,
    }],
    finishes: &[&[Entry {
        function: ".(*clientStream).finish",
        arguments: "w{ww}",
        object: 0,
        second: 2,
        error: Some(1),
    }]],
    variant_of: None,
    object: CLIENT_STREAM,
    key: None,
    method: &["callHdr.Method"],
    kind: KindSpec::Object("desc.ClientStreams", "desc.ServerStreams"),
    first_start: true,
    first_finish: true,
    over: None,
    only_if_zero: &[],
    messages: &[
        // Since v1.84.0 what the user gets. Health checks are streams that are no calls.
        SitedMessages {
            sent: ".(*clientStreamWrapper).SendMsg",
            received: ".(*clientStreamWrapper).RecvMsg",
            arguments: MESSAGE,
            receiver: &[Way { interface: ".ClientStream", concrete: ".clientStreamWrapper", fields: &[] }],
            object: ObjectOf::Interface {
                field: "ClientStream",
                holds: ".clientStream",
                no_call: ".addrConnStream",
            },
            description: DESCRIPTION,
        },
        SitedMessages {
            sent: ".(*clientStream).SendMsg",
            received: ".(*clientStream).RecvMsg",
            arguments: MESSAGE,
            receiver: CLIENT_STREAM,
            object: ObjectOf::Itself,
            description: DESCRIPTION,
        },
    ],
};

const CLIENT_STREAM: &[Way] = &[
    Way { interface: "internal/resolver.ClientStream", concrete: ".clientStream", fields: &[] },
    Way { interface: ".ClientStream", concrete: ".clientStream", fields: &[] },
];

/// A client's call whose attempt got no stream, and that won't be tried again: there is no stream, none may be made
/// unseen, and the service's configuration has no retries.
const CLIENT_WITHOUT_STREAM: CallSpec = CallSpec {
    name: "client, without a stream",
    start: &[],
    finishes: &[&[Entry {
        function: ".(*csAttempt).shouldRetry",
        arguments: "w{ww}",
        object: 0,
        second: 2,
        error: Some(1),
    }]],
    variant_of: Some("client"),
    object: &[
        Way { interface: "internal/resolver.ClientStream", concrete: ".clientStream", fields: &["attempt"] },
        Way { interface: ".ClientStream", concrete: ".clientStream", fields: &["attempt"] },
    ],
    key: Some("cs"),
    method: &["cs.callHdr.Method"],
    kind: KindSpec::AsStarted,
    only_if_zero: &[
        // Up to v1.70.0 the field had the shorter name.
        &["transportStream", "s"],
        &["allowTransparentRetry"],
        &["cs.methodConfig.RetryPolicy"],
    ],
    messages: &[],
    ..CLIENT
};
