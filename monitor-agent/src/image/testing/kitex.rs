//! What a plan for Kitex needs, in the smallest form that can be planned.

use super::Builder;

/// The functions with a probe: a stack check, a frame push, and the way out.
pub(super) const FUNCTIONS: [(&str, &[u8]); 2] = [
    ("github.com/cloudwego/kitex/pkg/rpcinfo.(*TraceController).DoFinish", CHECKED),
    ("github.com/cloudwego/kitex/pkg/rpcinfo.(*TraceController).DoStart", CHECKED),
];
/// The module that the build info lists.
pub(super) const DEPENDENCY: &str = "dep\tgithub.com/cloudwego/kitex\tv0.16.3\n";

const CHECKED: &[u8] = &[0x49, 0x3b, 0x66, 0x10, 0x76, 3, 0x55, 0x5d, 0xc3, 0xe8, 0, 0, 0x10, 0, 0xeb, 0xf0];
const MODULE: &str = "github.com/cloudwego/kitex/";

/// Kinds of Go types by their numbers.
const INT: u8 = 2;
const UINT8: u8 = 8;
const BOOL: u8 = 1;
const INTERFACE: u8 = 20;
const MAP: u8 = 21;
const POINTER: u8 = 22;
const STRUCT: u8 = 25;

/// A field: name, type and offset.
type Field<'a> = (&'a str, u64, u64);

impl Builder {
    /// Writes the types of an `RPCInfo` in clients and servers. Returns its itabs, as pairs of interface and concrete
    /// type. `start` is the start of the type data.
    pub(super) fn kitex_types(&mut self, start: u64, string: u64) -> Vec<(u64, u64)> {
        let int = self.plain("*int", INT, 8);
        let byte = self.plain("*uint8", UINT8, 1);
        let bool = self.plain("*bool", BOOL, 1);
        let map = self.plain("*map[string]string", MAP, 8);
        // The type of its entries is not valid.
        self.rodata.extend([0; 64]);

        let rpc = self.text(0, &format!("{MODULE}pkg/rpcinfo"));
        let remote = self.text(0, &format!("{MODULE}pkg/rpcinfo/remoteinfo"));
        let service = self.text(0, &format!("{MODULE}pkg/serviceinfo"));
        let [info, endpoint, call, config, method] =
            ["RPCInfo", "EndpointInfo", "Invocation", "RPCConfig", "MethodInfo"]
                .map(|name| self.interface(start, rpc, &format!("*rpcinfo.{name}")));

        let names = [("serviceName", string, 0), ("method", string, 16)];
        let endpoint_info = self.structure(start, rpc, "*rpcinfo.endpointInfo", 32, &names);
        let tagged = [&names[..], &[("tags", map, 32)]].concat();
        let remote_info = self.structure(start, remote, "*remoteinfo.remoteInfo", 40, &tagged);
        let rpc_config = self.structure(start, rpc, "*rpcinfo.rpcConfig", 8, &[("interactionMode", int, 0)]);
        let method_info =
            self.structure(start, service, "*serviceinfo.methodInfo", 8, &[("oneWay", bool, 0)]);
        let modes = [("streamingMode", byte, 0), ("methodInfo", method, 8)];
        let invocation = self.structure(start, rpc, "*rpcinfo.invocation", 24, &modes);
        let parts =
            [("from", endpoint, 0), ("to", endpoint, 16), ("invocation", call, 32), ("config", config, 48)];
        let rpc_info = self.structure(start, rpc, "*rpcinfo.rpcInfo", 64, &parts);
        let parts = [("from", endpoint_info, 0), ("to", endpoint_info, 32), ("invocation", invocation, 64)];
        let inline = self.structure(start, rpc, "*rpcinfo.inlineRPCInfo", 88, &parts);

        [
            (info, rpc_info),
            (info, inline),
            (endpoint, endpoint_info),
            (endpoint, remote_info),
            (call, invocation),
            (config, rpc_config),
            (method, method_info),
        ]
        .map(|(interface, object)| (interface, self.pointer_to(object)))
        .to_vec()
    }

    fn plain(&mut self, name: &str, kind: u8, size: u64) -> u64 {
        let name = self.text(1, name);
        let at = self.here();
        self.header(size, 2, kind, name);
        at
    }

    fn structure(&mut self, start: u64, package: u32, name: &str, size: u64, fields: &[Field<'_>]) -> u64 {
        let names: Vec<_> = fields.iter().map(|(name, ..)| self.text(0, name)).collect();
        let name = self.text(1, name);
        let list = self.here();
        for ((_, field_type, offset), name) in fields.iter().zip(names) {
            self.pointer_in_rodata(start + u64::from(name));
            self.pointer_in_rodata(*field_type);
            self.rodata.extend(if self.file.minor <= 18 { offset << 1 } else { *offset }.to_le_bytes());
        }
        let at = self.here();
        self.header(size, 3, STRUCT, name);
        self.pointer_in_rodata(start + u64::from(package));
        self.pointer_in_rodata(list);
        self.rodata.extend([fields.len() as u64; 2].map(u64::to_le_bytes).concat());
        self.uncommon(package);
        at
    }

    fn interface(&mut self, start: u64, package: u32, name: &str) -> u64 {
        let name = self.text(1, name);
        let at = self.here();
        self.header(16, 3, INTERFACE, name);
        self.pointer_in_rodata(start + u64::from(package));
        self.pointer_in_rodata(start);
        self.rodata.extend([1_u64; 2].map(u64::to_le_bytes).concat());
        self.uncommon(package);
        at
    }

    fn pointer_to(&mut self, object: u64) -> u64 {
        let name = self.text(0, "*T");
        let at = self.here();
        self.header(8, 0, POINTER, name);
        self.pointer_in_rodata(object);
        at
    }
}
