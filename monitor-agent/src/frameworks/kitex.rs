//! Kitex (CloudWeGo): thrift, protobuf and gRPC services in Go.
//!
//! Every RPC of every transport and of both sides goes through the two functions of the trace controller,
//! whether a tracer is registered or not (`pkg/rpcinfo/tracer.go` @ v0.6.0 … v0.16.3, `internal/stats/tracer.go`
//! @ v0.1.0 … v0.5.2). Each has a `defer`,
//! so the compiler never inlines it. Their object is the RPC's `RPCInfo`. When the finish function is
//! entered everything in it is set; right after it servers reset and clients recycle it, so its strings are
//! read there and nowhere later. The error is in the arguments only; it is not stored yet.

use super::spec::{
    Condition, ErrorSpec, Framework, Home, Key, MessageSpec, Pair, ProtocolSpec, Question, RecordedSpec,
    Route, ShapeSpec, Side,
};

/// See the [module](self).
pub(super) static KITEX: Framework = Framework {
    name: "kitex",
    module: "github.com/cloudwego/kitex",
    homes: &[
        // Since v0.6.0.
        Home {
            start: "pkg/rpcinfo.(*TraceController).DoStart",
            finish: "pkg/rpcinfo.(*TraceController).DoFinish",
        },
        // v0.1.0 to v0.5.2.
        Home {
            start: "internal/stats.(*Controller).DoStart",
            finish: "internal/stats.(*Controller).DoFinish",
        },
    ],
    // (c *TraceController) (ctx context.Context, ri RPCInfo[, err error])
    object: Pair { type_word: 3, data: 4 },
    error: Pair { type_word: 5, data: 6 },
    shapes: &[SERVER, CLIENT, SERVER_SEPARATE],
    errors: ERRORS,
    messages: MESSAGES,
    protocols: PROTOCOLS,
    open_interfaces: &[
        (RPC_INFO, "such calls are counted as lost"),
        ("pkg/serviceinfo.MethodInfo", "oneway methods that they describe count as pingpong on a server"),
    ],
};

/// Every error that Kitex makes itself is a `basicError` or wraps one (`pkg/kerrors/kerrors.go` @ v0.1.4 …
/// v0.16.3): package-level variables with literal messages. The outermost says the class. Errors of the codecs come
/// bare, and so do those of streams, which have no class.
const ERRORS: ErrorSpec = ErrorSpec {
    class: "pkg/kerrors.basicError",
    message: "message",
    wrapped: "pkg/kerrors.DetailedError",
    points: "basic",
    names: &[
        ("internal exception", "internal"),
        ("service discovery error", "discovery"),
        ("get connection error", "connection"),
        ("loadbalance error", "loadbalance"),
        ("no more instances to retry", "no_more_instance"),
        ("rpc timeout", "timeout"),
        ("timeout by business", "timeout"),
        ("canceled by business", "canceled"),
        ("request forbidden", "acl"),
        ("forbidden by circuitbreaker", "circuit_breaker"),
        ("remote or network error", "remote"),
        ("request over limit", "limit"),
        ("panic", "panic"),
        ("biz error", "biz"),
        ("retry error", "retry"),
        ("rpc call finished", "finish"),
        ("rpc route failed", "route"),
        ("payload validation error", "validation"),
    ],
    types: &[
        ("pkg/remote.TransError", "protocol"),
        ("pkg/remote/codec/perrors.protocolException", "protocol"),
        ("pkg/remote/codec/protobuf.pbError", "protocol"),
    ],
};

/// Since v0.16.0 (`pkg/rpcinfo/stream_tracer.go`): called by `client.(*stream)` and `server.(*stream)` for every
/// message, whether anyone listens or not. The last message of a stream is followed by an event with `io.EOF`.
const MESSAGES: MessageSpec = MessageSpec {
    sent: "pkg/rpcinfo.(*TraceController).HandleStreamSendEvent",
    received: "pkg/rpcinfo.(*TraceController).HandleStreamRecvEvent",
    error: "Err",
    routes: &[
        Route {
            interface: "pkg/streaming.ClientStream",
            concrete: "client.stream",
            fields: &["kc", "opt", "TracerCtl"],
            sent: "streamSendEventHandlers",
            received: "streamRecvEventHandlers",
        },
        Route {
            interface: "pkg/streaming.ServerStream",
            concrete: "server.stream",
            fields: &["traceCtl"],
            sent: "streamSendEventHandlers",
            received: "streamRecvEventHandlers",
        },
    ],
};

/// The numbers of `transport.Protocol`, and how its `String` writes them (`transport/keys.go` @ v0.5.2 … v0.16.3).
const PROTOCOLS: ProtocolSpec = ProtocolSpec {
    none: "PurePayload",
    bits: &[
        (2, "TTHeader"),
        (4, "Framed"),
        (8, "HTTP"),
        (16, "GRPC"),
        (32, "Hessian2"),
        (64, "TTHeaderStreaming"),
        (128, "GRPCStreaming"),
    ],
    joined_since: (0, 13),
    combinations: &[(6, "TTHeaderFramed")],
    other: "Unknown",
};

const RPC_INFO: &str = "pkg/rpcinfo.RPCInfo";
const ENDPOINT_INFO: &str = "pkg/rpcinfo.EndpointInfo";

/// Servers since v0.16.2: the `RPCInfo`'s parts are embedded in it. One object serves one request at a time
/// and is used again for the next of its connection (`pkg/rpcinfo/rpcinfo_inline.go` @ v0.16.3).
///
/// Only clients set the interaction mode, so the kind of call comes from the method and the stream itself.
const SERVER: ShapeSpec = ShapeSpec {
    name: "server",
    side: Side::Server,
    interface: RPC_INFO,
    concrete: "pkg/rpcinfo.inlineRPCInfo",
    when: None,
    key: Key::Object,
    caller: "from.serviceName",
    callee: "to.serviceName",
    method: "to.method",
    streaming: Question::AnyBit(&["invocation.streamingMode"], STREAMING_MODES),
    oneway: Question::Equals(
        &[
            "invocation.methodInfo.(*pkg/serviceinfo.methodInfo).oneWay",
            "invocation.methodInfo.(*pkg/generic.methodInfo).oneway",
        ],
        1,
    ),
    stream: "invocation.streamingMode",
    sizes: ["stats.sendSize", "stats.recvSize"],
    peer: Some(["from.address.(*net.TCPAddr).IP", "from.address.(*net.TCPAddr).Port"]),
    tags: None,
    protocol: "config.transportProtocol",
    recorded: recorded("stats.eventMap"),
    panicked: "stats.panicErr",
};

/// Servers up to v0.16.1, and whatever makes an `RPCInfo` by the public constructor: told from clients by the
/// type of the callee.
const SERVER_SEPARATE: ShapeSpec = ShapeSpec {
    name: "server, separate parts",
    side: Side::Server,
    interface: RPC_INFO,
    concrete: "pkg/rpcinfo.rpcInfo",
    when: Some(Condition { field: "to", interface: ENDPOINT_INFO, holds: "pkg/rpcinfo.endpointInfo" }),
    key: Key::Object,
    caller: "from.(*pkg/rpcinfo.endpointInfo).serviceName",
    callee: "to.(*pkg/rpcinfo.endpointInfo).serviceName",
    method: "to.(*pkg/rpcinfo.endpointInfo).method",
    streaming: Question::AnyBit(&["invocation.(*pkg/rpcinfo.invocation).streamingMode"], STREAMING_MODES),
    oneway: Question::Equals(
        &[
            "invocation.(*pkg/rpcinfo.invocation).methodInfo.(*pkg/serviceinfo.methodInfo).oneWay",
            "invocation.(*pkg/rpcinfo.invocation).methodInfo.(*pkg/generic.methodInfo).oneway",
        ],
        1,
    ),
    stream: "invocation.(*pkg/rpcinfo.invocation).streamingMode",
    sizes: SIZES,
    peer: Some([
        "from.(*pkg/rpcinfo.endpointInfo).address.(*net.TCPAddr).IP",
        "from.(*pkg/rpcinfo.endpointInfo).address.(*net.TCPAddr).Port",
    ]),
    tags: None,
    protocol: PROTOCOL,
    recorded: recorded("stats.(*pkg/rpcinfo.rpcStats).eventMap"),
    panicked: PANICKED,
};

/// Clients. A retried call finishes with the `RPCInfo` of its last attempt (v0.7.3 and later), so unary calls
/// are told apart by their goroutine; streams finish on any goroutine, with the `RPCInfo` of their start.
const CLIENT: ShapeSpec = ShapeSpec {
    name: "client",
    side: Side::Client,
    interface: RPC_INFO,
    concrete: "pkg/rpcinfo.rpcInfo",
    when: Some(Condition {
        field: "to",
        interface: ENDPOINT_INFO,
        holds: "pkg/rpcinfo/remoteinfo.remoteInfo",
    }),
    key: Key::GoroutineUnlessStreaming,
    caller: "from.(*pkg/rpcinfo.endpointInfo).serviceName",
    callee: "to.(*pkg/rpcinfo/remoteinfo.remoteInfo).serviceName",
    method: "to.(*pkg/rpcinfo/remoteinfo.remoteInfo).method",
    // rpcinfo.Streaming and rpcinfo.Oneway (pkg/rpcinfo/rpcconfig.go @ v0.16.3).
    streaming: Question::Equals(&["config.(*pkg/rpcinfo.rpcConfig).interactionMode"], 2),
    oneway: Question::Equals(&["config.(*pkg/rpcinfo.rpcConfig).interactionMode"], 1),
    stream: "invocation.(*pkg/rpcinfo.invocation).streamingMode",
    sizes: SIZES,
    // The instance that was called is of a type of the service discovery's own.
    peer: None,
    tags: Some("to.(*pkg/rpcinfo/remoteinfo.remoteInfo).tags"),
    protocol: PROTOCOL,
    recorded: recorded("stats.(*pkg/rpcinfo.rpcStats).eventMap"),
    panicked: PANICKED,
};

/// Of an `RPCInfo` whose parts are separate.
const SIZES: [&str; 2] = ["stats.(*pkg/rpcinfo.rpcStats).sendSize", "stats.(*pkg/rpcinfo.rpcStats).recvSize"];

/// Likewise.
const PROTOCOL: &str = "config.(*pkg/rpcinfo.rpcConfig).transportProtocol";
/// Likewise. A `Value` up to v0.16.1, a `Pointer` since v0.16.2 (`pkg/rpcinfo/rpcstats.go`).
const PANICKED: &str = "stats.(*pkg/rpcinfo.rpcStats).panicErr";

/// `RPCStart`, which calls record where a tracer is registered, since v0.16.2 as a number (`pkg/stats/event.go`,
/// `pkg/rpcinfo/rpcstats.go` @ v0.16.3). A retried call has it from its first attempt, with a bit more in the state.
const fn recorded(events: &'static str) -> RecordedSpec {
    RecordedSpec { events, index: 5, state: ("state", 2), time: "time" }
}

/// Client and server streaming, of a mode that is 0 for none, 1 for a unary call over a streaming protocol,
/// 2, 4 and 6 for the kinds of streams (`pkg/serviceinfo/serviceinfo.go` @ v0.16.3).
const STREAMING_MODES: u32 = 2 | 4;
