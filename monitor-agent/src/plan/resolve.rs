//! Names to numbers: types, fields and itabs of an executable, with the evidence for each.

use std::collections::{BTreeMap, HashMap};

use monitor_ebpf::TagMap;

use super::{Offset, Refusal};
use crate::image::{GoImage, Image, Kind, Type};

/// The evidence for everything here.
const TYPE_METADATA: &str = "Go type metadata";

/// Finds what a framework's description names.
pub(super) struct Resolver<'a> {
    image: &'a Image,
    go: &'a GoImage<'a>,
    module: &'static str,
    /// Itab of each pair (interface, concrete), by full names; more than one address is ambiguous.
    itabs: HashMap<(String, String), Vec<ItabRef>>,
    offsets: BTreeMap<String, Offset>,
}

/// An itab and the type that its interface values point to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ItabRef {
    /// Link-time address of the itab.
    pub(super) address: u64,
    /// Link-time address of the rtype that the pointer points to.
    pub(super) pointee: u64,
}

/// A field, found.
pub(super) struct FieldRef {
    /// Offset in its struct.
    pub(super) offset: u64,
    /// Its type.
    pub(super) field_type: Type,
}

impl<'a> Resolver<'a> {
    /// Reads all itabs whose two types belong to the framework.
    pub(super) fn new(module: &'static str, image: &'a Image, go: &'a GoImage<'a>) -> Result<Self, Refusal> {
        let mut names = HashMap::new();
        let mut itabs: HashMap<_, Vec<ItabRef>> = HashMap::new();
        for itab in go.itabs()? {
            let Some(interface) = full_name(&mut names, go, itab.interface) else { continue };
            if !interface.0.starts_with(module) {
                continue;
            }
            let Some(concrete) = full_name(&mut names, go, itab.concrete) else { continue };
            let Some(pointee) = concrete.1 else { continue };
            let found = itabs.entry((interface.0, concrete.0)).or_default();
            found.push(ItabRef { address: itab.address, pointee });
        }
        Ok(Self { image, go, module, itabs, offsets: BTreeMap::new() })
    }

    /// The itab under which a pointer to `concrete` is an `interface`; `None` when there is none: then no such
    /// value can exist that the compiler knew of.
    pub(super) fn itab(&mut self, interface: &str, concrete: &str) -> Result<Option<ItabRef>, Refusal> {
        let key = (self.full(interface), self.full(concrete));
        let Some(found) = self.itabs.get(&key) else { return Ok(None) };
        let [itab] = found.as_slice() else {
            return Err(Refusal::TypeTwice(concrete.to_owned()));
        };
        let itab = *itab;
        self.note(format!("itab({interface}, *{concrete})"), itab.address);
        Ok(Some(itab))
    }

    /// Like [`itab`](Self::itab), with the interface type itself.
    pub(super) fn itab_of(&mut self, interface: &Type, concrete: &str) -> Result<Option<ItabRef>, Refusal> {
        let name = type_full_name(interface);
        let name = name.strip_prefix(self.module).unwrap_or(&name).trim_start_matches('/').to_owned();
        self.itab(&name, concrete)
    }

    /// A field of the struct type at an address.
    pub(super) fn field(&mut self, struct_type: u64, name: &str) -> Result<FieldRef, Refusal> {
        let owner = self.go.type_at(struct_type)?;
        let Some(field) = owner.fields.iter().find(|field| field.name == name) else {
            return Err(Refusal::FieldMissing { type_name: owner.name, field: name.to_owned() });
        };
        let field_type = self.go.type_at(field.type_address)?;
        self.note(format!("{}.{name}", owner.name.trim_start_matches('*')), field.offset);
        Ok(FieldRef { offset: field.offset, field_type })
    }

    /// How entries of a map type lie in memory; `None` for a layout that isn't known.
    ///
    /// The type that holds the entries is part of the map's own type descriptor, after its key and element
    /// (`internal/abi/map.go` @ go1.26, `internal/abi/map_noswiss.go` @ go1.22: the field before `Hasher`).
    /// The map's header is not described by any type; it is that of `internal/runtime/maps.Map` or
    /// `runtime.hmap`, whichever goes with the entries.
    pub(super) fn map_layout(&mut self, map_type: &Type) -> Option<TagMap> {
        const ENTRIES_TYPE: u64 = 64;
        let word = self.image.read(map_type.address.checked_add(ENTRIES_TYPE)?, 8).ok()?;
        let entries = self.go.type_at(u64::from_le_bytes(word.try_into().ok()?)).ok()?;
        let offset = |name: &str| Some(entries.fields.iter().find(|field| field.name == name)?.offset);
        let layout = if (offset("ctrl"), offset("slots"), entries.size) == (Some(0), Some(8), 8 + 8 * 32) {
            TagMap::Swiss
        } else if (offset("topbits"), offset("keys"), offset("elems")) == (Some(0), Some(8), Some(8 + 8 * 16))
        {
            TagMap::Buckets
        } else {
            return None;
        };
        self.note(format!("size of an entry group of {}", map_type.name), entries.size);
        Some(layout)
    }

    /// Everything that was found, in the order of its names.
    pub(super) fn into_offsets(self) -> Vec<Offset> {
        self.offsets.into_values().collect()
    }

    fn note(&mut self, name: String, value: u64) {
        let offset = Offset { name: name.clone(), value, evidence: TYPE_METADATA.to_owned() };
        self.offsets.insert(name, offset);
    }

    fn full(&self, name: &str) -> String {
        format!("{}/{name}", self.module)
    }
}

type NameAndPointee = (String, Option<u64>);

/// Name with the whole package path, and the type pointed to, of an interface or of a pointer to a named
/// type. `None` for all others, and for types that can't be read: they are not what we look for.
fn full_name(
    names: &mut HashMap<u64, Option<NameAndPointee>>,
    go: &GoImage<'_>,
    address: u64,
) -> Option<NameAndPointee> {
    names
        .entry(address)
        .or_insert_with(|| {
            let found = go.type_at(address).ok()?;
            match found.kind {
                Kind::Interface => Some((type_full_name(&found), None)),
                Kind::Pointer => {
                    let pointee = go.type_at(found.elem?).ok()?;
                    Some((type_full_name(&pointee), Some(pointee.address)))
                }
                _ => None,
            }
        })
        .clone()
}

/// `github.com/…/pkg/rpcinfo.rpcInfo` from the short name that the runtime has and the package path.
fn type_full_name(found: &Type) -> String {
    let short = found.name.rsplit('.').next().unwrap_or(&found.name);
    format!("{}.{short}", found.pkg_path.as_deref().unwrap_or_default())
}
