//! Resolves names to numbers: types, fields and itabs of an executable, with the evidence for each.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use monitor_ebpf::TagMap;

use super::{Offset, Refusal, reach, witness::Claim};
use crate::image::{GoImage, Image, ImageError, Kind, Type};

/// The evidence for every number here, before the check against the DWARF.
const TYPE_METADATA: &str = "Go type metadata";
/// The maximum length of a type name, in bytes: at least twice that of any name looked for.
const MAX_NAME: usize = 512;
/// The maximum number of itabs. A framework's interfaces have a few hundred implementations, and two more for each
/// method of a service.
const MAX_ITABS: usize = 1 << 14;

/// Resolves the names in a framework's description or a spec.
pub(super) struct Resolver<'a> {
    image: &'a Image,
    go: &'a GoImage<'a>,
    /// The path of the framework's copy, which names are relative to.
    module: String,
    /// The itabs by the full names of interface and concrete type. Several for one pair are ambiguous.
    itabs: BTreeMap<(String, String), Vec<ItabRef>>,
    /// The addresses of types that have no itab, by name.
    reached: BTreeMap<String, BTreeSet<u64>>,
    /// The full names of types that end in a name looked for, after a slash.
    longer: BTreeSet<String>,
    offsets: BTreeMap<String, Offset>,
    /// The offsets that belong to fields.
    claims: Vec<Claim>,
}

/// An itab, and the type that its interface values point to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ItabRef {
    /// The link-time address of the itab.
    pub(super) address: u64,
    /// The link-time address of the type that the pointer points to.
    pub(super) pointee: u64,
}

/// A field that was found.
pub(super) struct FieldRef {
    /// The offset in its struct, in bytes.
    pub(super) offset: u64,
    /// Its type.
    pub(super) field_type: Type,
}

impl<'a> Resolver<'a> {
    /// Reads the itabs of all interfaces of the framework's copy at `module`, of its errors, and
    /// of the errors in `others`.
    pub(super) fn new(
        module: &str,
        others: &[&str],
        image: &'a Image,
        go: &'a GoImage<'a>,
    ) -> Result<Self, Refusal> {
        let mut names = HashMap::new();
        let mut itabs: BTreeMap<_, Vec<ItabRef>> = BTreeMap::new();
        let mut left = MAX_ITABS;
        for itab in go.itabs()? {
            let Some(interface) = full_name(&mut names, go, itab.interface) else { continue };
            let is_error = interface.text == ERROR;
            if !is_error && interface.text != ADDRESS && !is_below(&interface.text, module) {
                continue;
            }
            let Some(concrete) = full_name(&mut names, go, itab.concrete) else { continue };
            let name = concrete.text.trim_start_matches('*');
            if is_error && !is_below(name, module) && !others.contains(&name) {
                continue;
            }
            left = left.checked_sub(1).ok_or_else(too_many_itabs)?;
            let found = itabs.entry((interface.text, concrete.text)).or_default();
            found.push(ItabRef { address: itab.address, pointee: concrete.pointee });
        }
        go.check_types()?;
        Ok(Self {
            image,
            go,
            module: module.to_owned(),
            itabs,
            reached: BTreeMap::new(),
            longer: BTreeSet::new(),
            offsets: BTreeMap::new(),
            claims: Vec::new(),
        })
    }

    /// Creates a resolver for full names. Reads the itabs of the types in `concretes`, and searches for the others
    /// from the types that have itabs. The search may take most of the type data that may be read for one question;
    /// each spec counts as one question, and the number of specs is limited.
    pub(super) fn of_types(
        concretes: &[&str],
        image: &'a Image,
        go: &'a GoImage<'a>,
    ) -> Result<Self, Refusal> {
        go.renew_type_budget();
        let mut names = HashMap::new();
        let mut itabs: BTreeMap<_, Vec<ItabRef>> = BTreeMap::new();
        let mut used = BTreeMap::new();
        for itab in go.itabs()? {
            let Some(concrete) = full_name(&mut names, go, itab.concrete) else { continue };
            used.insert(concrete.pointee, concrete.text.clone());
            if !concretes.contains(&concrete.text.trim_start_matches('*')) {
                continue;
            }
            let Some(interface) = full_name(&mut names, go, itab.interface) else { continue };
            let found = itabs.entry((interface.text, concrete.text)).or_default();
            found.push(ItabRef { address: itab.address, pointee: concrete.pointee });
        }
        let is_used = |name: &&str| used.values().any(|text| text.trim_start_matches('*') == *name);
        let missing: Vec<_> = concretes.iter().copied().filter(|name| !is_used(name)).collect();
        let reached =
            if missing.is_empty() { BTreeMap::new() } else { reach::named(&missing, &used, image, go) };
        go.check_types()?;
        let is_longer = |text: &str| missing.iter().any(|name| ends_in(text, name));
        let all = used.values().map(|text| text.trim_start_matches('*'));
        let all = all.chain(reached.keys().map(String::as_str));
        let longer = all.filter(|text| is_longer(text)).map(str::to_owned).collect();
        let module = String::new();
        Ok(Self { image, go, module, itabs, reached, longer, offsets: BTreeMap::new(), claims: Vec::new() })
    }

    /// Asks a question, and forgets what was found for it except the answer.
    pub(super) fn forgetting<T>(&mut self, ask: impl FnOnce(&mut Self) -> T) -> T {
        let (offsets, claims) = (self.offsets.clone(), self.claims.len());
        let answer = ask(self);
        self.offsets = offsets;
        self.claims.truncate(claims);
        answer
    }

    /// Returns the struct type of this name. It or a pointer to it is used as an interface, or it
    /// lies behind a type that is.
    pub(super) fn type_named(&self, name: &str) -> Result<u64, Refusal> {
        let full = self.full(name);
        match self
            .reached
            .get(&full)
            .map(|addresses| addresses.iter().copied().collect::<Vec<_>>())
            .as_deref()
        {
            Some([address]) => return Ok(*address),
            Some([_, _, ..]) => return Err(Refusal::TypeTwice(full)),
            Some([]) | None => {}
        }
        let mut found =
            self.itabs.iter().filter(|((_, concrete), _)| concrete.trim_start_matches('*') == full);
        let Some((_, itabs)) = found.next() else { return Err(self.no_type(full)) };
        let first = itabs.first().map_or(0, |itab| itab.pointee);
        let others = itabs.iter().chain(found.flat_map(|(_, itabs)| itabs));
        if others.into_iter().any(|itab| itab.pointee != first) {
            return Err(Refusal::TypeTwice(full));
        }
        Ok(first)
    }

    /// Why there is no type of this name. If the name only lacks the beginning of its package path, the
    /// refusal gives the full name.
    fn no_type(&self, name: String) -> Refusal {
        let mut longer = self.longer.iter().filter(|text| ends_in(text, &name));
        match (longer.next(), longer.next()) {
            (Some(full), None) => Refusal::TypeElsewhere { name, full: full.clone() },
            _ => Refusal::TypeUnused(name),
        }
    }

    /// Returns the itab for a pointer to `concrete` as an `interface`. If there is none, the
    /// compiler knew of no such value.
    pub(super) fn itab(&mut self, interface: &str, concrete: &str) -> Result<Option<ItabRef>, Refusal> {
        let Some(itab) = self.only(&self.full(interface), &self.full(concrete))? else { return Ok(None) };
        self.note(format!("itab({}, *{})", shown(interface), shown(concrete)), itab.address);
        Ok(Some(itab))
    }

    /// Returns the itab of a framework's error type that is not a pointer.
    pub(super) fn itab_of_value(&mut self, concrete: &str) -> Result<Option<ItabRef>, Refusal> {
        let full = self.full(concrete);
        match self.itabs.get(&(ERROR.to_owned(), full.clone())).map(Vec::as_slice) {
            None => Ok(None),
            Some([itab]) => {
                let itab = *itab;
                self.note(format!("itab({ERROR}, {})", shown(concrete)), itab.address);
                Ok(Some(itab))
            }
            Some(_) => Err(Refusal::TypeTwice(full)),
        }
    }

    /// Returns the itab of an error type outside the framework, by its full name.
    pub(super) fn itab_of_error(&mut self, concrete: &str) -> Result<Option<ItabRef>, Refusal> {
        let Some(itab) = self.only(ERROR, concrete)? else { return Ok(None) };
        self.note(format!("itab({ERROR}, *{concrete})"), itab.address);
        Ok(Some(itab))
    }

    /// Returns the only itab of a pair of full names.
    fn only(&self, interface: &str, concrete: &str) -> Result<Option<ItabRef>, Refusal> {
        match self.itabs.get(&(interface.to_owned(), format!("*{concrete}"))).map(Vec::as_slice) {
            None => Ok(None),
            Some([itab]) => Ok(Some(*itab)),
            Some(_) => Err(Refusal::TypeTwice(concrete.to_owned())),
        }
    }

    /// Like [`itab`](Self::itab), but takes the interface type itself.
    pub(super) fn itab_of(&mut self, interface: &Type, concrete: &str) -> Result<Option<ItabRef>, Refusal> {
        let name = type_full_name(interface);
        let name = name.strip_prefix(&self.module).unwrap_or(&name).trim_start_matches('/').to_owned();
        self.itab(&name, concrete)
    }

    /// The names of types outside the framework that implement one of its interfaces, if the
    /// interface was looked up before.
    pub(super) fn foreign(&self, interface: &str) -> Vec<&str> {
        let asked = format!("itab({interface},");
        if !self.offsets.keys().any(|name| name.starts_with(&asked)) {
            return Vec::new();
        }
        let interface = self.full(interface);
        let pairs = self.itabs.keys().filter(|(of, _)| *of == interface).map(|(_, concrete)| concrete);
        pairs
            .map(String::as_str)
            .filter(|name| !is_below(name.trim_start_matches('*'), &self.module))
            .collect()
    }

    /// Returns the type at the end of a chain of fields, from the struct type at an address. Follows pointers and
    /// slices; `()` leads to the parameter of a function.
    pub(super) fn type_behind(&self, struct_type: u64, fields: &[impl AsRef<str>]) -> Result<Type, Refusal> {
        let mut found = self.go.type_at(struct_type)?;
        for name in fields.iter().map(AsRef::as_ref) {
            if name == "()" {
                found = self.pointee(self.only_parameter(&found)?)?;
                continue;
            }
            let field = found.fields.iter().find(|field| field.name == name);
            let address = field.map(|field| field.type_address).ok_or_else(|| Refusal::FieldMissing {
                type_name: found.name.clone(),
                field: name.to_owned(),
            })?;
            found = self.pointee(self.go.type_at(address)?)?;
        }
        Ok(found)
    }

    /// Returns the element type of a pointer or slice. Returns any other type itself.
    fn pointee(&self, found: Type) -> Result<Type, Refusal> {
        match (found.kind, found.elem) {
            (Kind::Pointer | Kind::Slice, Some(elem)) => Ok(self.go.type_at(elem)?),
            _ => Ok(found),
        }
    }

    /// Returns the type of a function type's only parameter.
    pub(super) fn only_parameter(&self, function: &Type) -> Result<Type, Refusal> {
        let wrong =
            || Refusal::wrong_type("what leads to a type", &function.name, "a function of one argument");
        if function.kind != Kind::Func || function.pkg_path.is_some() {
            return Err(wrong());
        }
        let [counts] = self.words(function.address.saturating_add(PARAMETER_COUNT))?;
        if counts & 0xffff != 1 {
            return Err(wrong());
        }
        let [parameter] = self.words(function.address.saturating_add(PARAMETERS))?;
        self.type_at(parameter)
    }

    /// Whether the type at an address is the framework's type of this name.
    pub(super) fn is_named(&self, address: u64, name: &str) -> Result<bool, Refusal> {
        Ok(type_full_name(&self.go.type_at(address)?) == self.full(name))
    }

    /// Returns the type at an address.
    pub(super) fn type_at(&self, address: u64) -> Result<Type, Refusal> {
        Ok(self.go.type_at(address)?)
    }

    /// Reads the words at an address of the file.
    pub(super) fn words<const N: usize>(&self, address: u64) -> Result<[u64; N], Refusal> {
        let bytes = self.image.read(address, N * 8)?;
        let mut words = [0; N];
        for (word, chunk) in words.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = chunk.try_into().map_or(0, u64::from_le_bytes);
        }
        Ok(words)
    }

    /// Returns a field of the struct type at an address.
    pub(super) fn field(&mut self, struct_type: u64, name: &str) -> Result<FieldRef, Refusal> {
        let owner = self.go.type_at(struct_type)?;
        let Some(field) = owner.fields.iter().find(|field| field.name == name) else {
            return Err(Refusal::FieldMissing { type_name: owner.name, field: name.to_owned() });
        };
        let field_type = self.go.type_at(field.type_address)?;
        let offset_name = format!("{}.{name}", owner.name.trim_start_matches('*'));
        self.note(offset_name.clone(), field.offset);
        self.claims.push(Claim {
            offset_name,
            type_name: type_full_name(&owner),
            size: owner.size,
            field: name.to_owned(),
            offset: field.offset,
        });
        Ok(FieldRef { offset: field.offset, field_type })
    }

    /// Returns how a map type's entries lie in memory; `None` if the layout is unknown.
    ///
    /// The type that holds the entries is part of the map's own type descriptor, after its key and element
    /// (`internal/abi/map.go` @ go1.26, `internal/abi/map_noswiss.go` @ go1.22: the field before `Hasher`).
    /// No type describes the map's header. It is that of `internal/runtime/maps.Map` or `runtime.hmap`,
    /// whichever goes with the entries.
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

    /// Returns all numbers found, sorted by name, and the claims about fields.
    pub(super) fn into_findings(self) -> (Vec<Offset>, Vec<Claim>) {
        (self.offsets.into_values().collect(), self.claims)
    }

    fn note(&mut self, name: String, value: u64) {
        let offset = Offset { name: name.clone(), value, evidence: TYPE_METADATA.to_owned() };
        self.offsets.insert(name, offset);
    }

    fn full(&self, name: &str) -> String {
        match name {
            ERROR | ADDRESS | TCP_ADDRESS => name.to_owned(),
            _ if self.module.is_empty() => name.to_owned(),
            _ if name.starts_with('.') => format!("{}{name}", self.module),
            _ => format!("{}/{name}", self.module),
        }
    }
}

/// A name of the framework for people: without the dot that begins names of the topmost package.
fn shown(name: &str) -> &str {
    name.strip_prefix('.').unwrap_or(name)
}

/// The offset of the number of parameters in an unnamed function type, in bytes. Their types follow (`FuncType` in
/// internal/abi/type.go @ go1.26).
pub(super) const PARAMETER_COUNT: u64 = 48;
/// The offset of the parameters' types: see [`PARAMETER_COUNT`].
pub(super) const PARAMETERS: u64 = 56;

/// The predeclared interface of errors.
pub(super) const ERROR: &str = "error";
/// The interface of addresses in Go's standard library, and the type of TCP addresses.
const ADDRESS: &str = "net.Addr";
const TCP_ADDRESS: &str = "net.TCPAddr";

fn too_many_itabs() -> ImageError {
    ImageError::Malformed { what: "it has more Go itabs of the framework than a program needs".to_owned() }
}

/// Whether `name` is the full name without the beginning of its package path.
pub(super) fn ends_in(full: &str, name: &str) -> bool {
    full.strip_suffix(name).is_some_and(|path| path.ends_with('/'))
}

/// Whether a type's full name belongs to a package of the module.
fn is_below(name: &str, module: &str) -> bool {
    name.strip_prefix(module).is_some_and(|rest| rest.starts_with(['/', '.']))
}

/// The name of an interface, or of a type that an interface can hold.
#[derive(Clone)]
struct TypeName {
    /// The name with the whole package path, and a star for a pointer.
    text: String,
    /// The type that an interface value points to: a pointer's element type, or the type itself.
    pointee: u64,
}

/// Returns the name of an interface, a struct, or a pointer to a named type. `None` for other types, which are never
/// looked for, and for unreadable ones.
fn full_name(names: &mut HashMap<u64, Option<TypeName>>, go: &GoImage<'_>, address: u64) -> Option<TypeName> {
    names
        .entry(address)
        .or_insert_with(|| {
            let found = go.type_at(address).ok()?;
            let name = match found.kind {
                Kind::Interface | Kind::Struct => TypeName { text: type_full_name(&found), pointee: address },
                Kind::Pointer => {
                    let pointee = go.type_at(found.elem?).ok()?;
                    let text = format!("*{}", type_full_name(&pointee));
                    TypeName { text, pointee: pointee.address }
                }
                _ => return None,
            };
            (name.text.len() <= MAX_NAME).then_some(name)
        })
        .clone()
}

/// Builds `github.com/…/pkg/rpcinfo.rpcInfo` from the runtime's short name and the package path.
pub(super) fn type_full_name(found: &Type) -> String {
    match &found.pkg_path {
        Some(path) => {
            // Type arguments contain paths, and so dots.
            let (name, arguments) = found.name.split_at(found.name.find('[').unwrap_or(found.name.len()));
            let short = name.rsplit('.').next().unwrap_or(name);
            format!("{path}.{short}{arguments}")
        }
        None => found.name.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_lack_the_beginning_of_its_path() {
        assert!(ends_in("example.com/app/queue.job", "queue.job"));
        assert!(ends_in("example.com/app/queue.job", "app/queue.job"));
        assert!(!ends_in("example.com/app/myqueue.job", "queue.job"));
        assert!(!ends_in("queue.job", "queue.job"));
    }

    #[test]
    fn a_full_name_has_the_path_of_its_package_and_its_arguments_as_they_are() {
        let full = |name: &str, path: Option<&str>| {
            let (name, pkg_path) = (name.to_owned(), path.map(str::to_owned));
            let (kind, fields) = (Kind::Struct, Vec::new());
            type_full_name(&Type { address: 0, kind, size: 0, name, pkg_path, elem: None, fields })
        };
        assert_eq!(full("rpcinfo.rpcInfo", Some("pkg/rpcinfo")), "pkg/rpcinfo.rpcInfo");
        assert_eq!(full("set.Of[a/b.T,int]", Some("x/set")), "x/set.Of[a/b.T,int]");
        assert_eq!(full("struct {}", None), "struct {}");
    }
}
