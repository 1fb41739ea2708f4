//! Go type descriptors: names, sizes, fields.
//!
//! Layout: `Type` and its companions in internal/abi/type.go @ go1.27, the same since Go 1.17 except for the field
//! offset. Up to Go 1.18 it was shifted left by one (runtime/type.go @ go1.18).

use super::bytes::{u8_at, u32_at, u64_at, varint_at};
use super::{GoImage, ImageError};

const HEADER: usize = 48;
/// The header and what follows it, for every kind except maps.
const LONGEST: usize = 80;
const FIELD: usize = 24;
const FLAG_UNCOMMON: u8 = 1;
const FLAG_EXTRA_STAR: u8 = 2;
const KIND_MASK: u8 = 0x1f;
/// The longest name. The compiler's own limit is far higher, and names that people write are far shorter.
const MAX_NAME: usize = 16 << 10;
const MAX_FIELDS: u64 = 4096;
/// The largest size. The compiler's own limit is 2⁵⁰ (`MAXWIDTH` in cmd/compile/internal/amd64/galign.go @ go1.26).
/// Offsets of nested types add up without overflow.
const MAX_SIZE: u64 = 1 << 50;

/// A type, as the program itself describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Type {
    /// Link-time address of its descriptor.
    pub address: u64,
    /// The kind of type.
    pub kind: Kind,
    /// The size of a value, in bytes.
    pub size: u64,
    /// The name as Go's `reflect` prints it, with the short package name: `*rpcinfo.rpcInfo`.
    pub name: String,
    /// Import path of the package that defines the type, or the type that it points to. `None` for types without a name
    /// (except structs with unexported fields) and for maps.
    pub pkg_path: Option<String>,
    /// Address of the type that a pointer points to, or that a slice, array, channel or map holds.
    pub elem: Option<u64>,
    /// The fields of a struct, in order.
    pub fields: Vec<Field>,
}

/// A field of a struct.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Field {
    /// Its name, or the name of its type for an embedded field.
    pub name: String,
    /// Link-time address of its type's descriptor.
    pub type_address: u64,
    /// The offset in the struct, in bytes.
    pub offset: u64,
    /// Whether it was written without a name.
    pub embedded: bool,
}

/// The kind of a Go type (`reflect.Kind`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "these are Go's own names")]
pub enum Kind {
    Bool,
    Int,
    Int8,
    Int16,
    Int32,
    Int64,
    Uint,
    Uint8,
    Uint16,
    Uint32,
    Uint64,
    Uintptr,
    Float32,
    Float64,
    Complex64,
    Complex128,
    Array,
    Chan,
    Func,
    Interface,
    Map,
    Pointer,
    Slice,
    String,
    Struct,
    UnsafePointer,
}

impl Kind {
    fn of_number(number: u8) -> Option<Self> {
        // In the order of Go's numbers, which start at 1.
        const KINDS: [Kind; 26] = [
            Kind::Bool,
            Kind::Int,
            Kind::Int8,
            Kind::Int16,
            Kind::Int32,
            Kind::Int64,
            Kind::Uint,
            Kind::Uint8,
            Kind::Uint16,
            Kind::Uint32,
            Kind::Uint64,
            Kind::Uintptr,
            Kind::Float32,
            Kind::Float64,
            Kind::Complex64,
            Kind::Complex128,
            Kind::Array,
            Kind::Chan,
            Kind::Func,
            Kind::Interface,
            Kind::Map,
            Kind::Pointer,
            Kind::Slice,
            Kind::String,
            Kind::Struct,
            Kind::UnsafePointer,
        ];
        KINDS.get(usize::from(number.checked_sub(1)?)).copied()
    }

    /// The offset of the element type's address. For a map, it is the type of the values.
    fn elem_at(self) -> Option<usize> {
        match self {
            Self::Pointer | Self::Slice | Self::Array | Self::Chan => Some(HEADER),
            Self::Map => Some(HEADER + 8),
            _ => None,
        }
    }

    /// The length of the descriptor before the part that only named types have. For maps it differs by release.
    fn uncommon_at(self) -> Option<u64> {
        match self {
            Self::Map => None,
            Self::Struct | Self::Interface => Some(80),
            Self::Pointer | Self::Slice | Self::Func => Some(56),
            Self::Array => Some(72),
            Self::Chan => Some(64),
            _ => Some(HEADER as u64),
        }
    }
}

/// The fixed part of a descriptor.
struct Header {
    data: Vec<u8>,
    kind: Kind,
    size: u64,
    flags: u8,
    name_offset: u32,
}

impl Header {
    fn parse(data: Vec<u8>) -> Option<Self> {
        Some(Self {
            kind: Kind::of_number(u8_at(&data, 23)? & KIND_MASK)?,
            size: u64_at(&data, 0).filter(|&size| size <= MAX_SIZE)?,
            flags: u8_at(&data, 20)?,
            name_offset: u32_at(&data, 40)?,
            data,
        })
    }
}

impl GoImage<'_> {
    /// Reads the type whose descriptor is at `address`.
    pub fn type_at(&self, address: u64) -> Result<Type, ImageError> {
        let header = self.type_header(address)?;
        let fields = if header.kind == Kind::Struct { self.fields(&header)? } else { Vec::new() };
        Ok(Type {
            address,
            kind: header.kind,
            size: header.size,
            name: self.name_of(&header)?,
            pkg_path: self.pkg_path_of(address, &header)?,
            elem: header.kind.elem_at().and_then(|at| u64_at(&header.data, at)),
            fields,
        })
    }

    /// Reads kind and name of the type whose descriptor is at `address`. Takes a few short reads, whatever fields it
    /// has.
    pub(crate) fn kind_and_name_at(&self, address: u64) -> Result<(Kind, String), ImageError> {
        let header = self.type_header(address)?;
        Ok((header.kind, self.name_of(&header)?))
    }

    fn type_header(&self, address: u64) -> Result<Header, ImageError> {
        let no_type = || ImageError::malformed(format!("there is no Go type at {address:#x}"));
        if !self.holds_type(address) {
            return Err(no_type());
        }
        self.pay_for_type(LONGEST)?;
        Header::parse(self.image.read_up_to(address, LONGEST)?).ok_or_else(no_type)
    }

    fn name_of(&self, header: &Header) -> Result<String, ImageError> {
        let (mut name, _) = self.name(self.type_offset(header.name_offset)?)?;
        if header.flags & FLAG_EXTRA_STAR != 0 {
            // The name shares the text of the pointer type's name.
            let Some(short) = name.strip_prefix('*') else {
                return Err(ImageError::malformed("a Go type name lacks its star"));
            };
            name = short.to_owned();
        }
        Ok(name)
    }

    fn pkg_path_of(&self, address: u64, header: &Header) -> Result<Option<String>, ImageError> {
        if header.flags & FLAG_UNCOMMON != 0
            && let Some(at) = header.kind.uncommon_at()
        {
            self.pay_for_type(4)?;
            let data = self.image.read(address.saturating_add(at), 4)?;
            return match u32_at(&data, 0) {
                None | Some(0) => Ok(None),
                Some(offset) => Ok(Some(self.name(self.type_offset(offset)?)?.0)),
            };
        }
        match u64_at(&header.data, HEADER) {
            Some(pointer) if header.kind == Kind::Struct && pointer != 0 => Ok(Some(self.name(pointer)?.0)),
            _ => Ok(None),
        }
    }

    fn fields(&self, header: &Header) -> Result<Vec<Field>, ImageError> {
        let slice = u64_at(&header.data, HEADER + 8).zip(u64_at(&header.data, HEADER + 16));
        let slice = slice.filter(|&(_, count)| count <= MAX_FIELDS);
        let (address, count) =
            slice.ok_or_else(|| ImageError::malformed("a Go struct has an impossible size"))?;
        if count == 0 {
            return Ok(Vec::new());
        }
        let len = usize::try_from(count).map_or(0, |count| count * FIELD);
        self.pay_for_type(len)?;
        let data = self.image.read(address, len)?;
        data.chunks_exact(FIELD).map(|entry| self.field(entry, header.size)).collect()
    }

    fn field(&self, entry: &[u8], size: u64) -> Result<Field, ImageError> {
        let words = (u64_at(entry, 0), u64_at(entry, 8), u64_at(entry, 16));
        let (Some(name), Some(type_address), Some(mut offset)) = words else {
            return Err(ImageError::malformed("a Go struct field is cut"));
        };
        let (name, name_flags) = self.name(name)?;
        let mut embedded = name_flags & 8 != 0;
        if self.version.minor <= 18 {
            embedded = offset & 1 != 0;
            offset >>= 1;
        }
        if offset > size || !self.holds_type(type_address) {
            return Err(ImageError::malformed(format!(
                "the Go struct field {name:?} lies outside its struct"
            )));
        }
        Ok(Field { name, type_address, offset, embedded })
    }

    /// Reads a name and its flags: flag byte, length, text.
    fn name(&self, address: u64) -> Result<(String, u8), ImageError> {
        // Most names fit into one read.
        const FIRST: usize = 64;
        self.pay_for_type(FIRST)?;
        let mut data = self.image.read_up_to(address, FIRST)?;
        let damaged = || ImageError::malformed(format!("there is no Go name at {address:#x}"));
        let (len, width) = varint_at(&data, 1).ok_or_else(damaged)?;
        let len = usize::try_from(len).ok().filter(|&len| len <= MAX_NAME).ok_or_else(damaged)?;
        let end = 1 + width + len;
        if data.len() < end {
            self.pay_for_type(end)?;
            data = self.image.read(address, end)?;
        }
        let text = data.get(1 + width..end).and_then(|text| str::from_utf8(text).ok()).ok_or_else(damaged)?;
        Ok((text.to_owned(), u8_at(&data, 0).ok_or_else(damaged)?))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{BASE, GoFile, Places};
    use super::super::{Image, ImageError};
    use super::*;

    fn image(file: Vec<u8>) -> Image {
        Image::parse(Box::new(file)).expect("an image")
    }

    #[test]
    fn a_struct_is_read_in_every_release() {
        for minor in 17..=27 {
            for pie in [false, true] {
                let (bytes, places) = GoFile { pie, ..GoFile::of_release(minor) }.build();
                let image = image(bytes);
                let go = image.go().expect("a Go image");
                let found = go.type_at(places.object).expect("a type");
                assert_eq!((found.kind, found.size, &*found.name), (Kind::Struct, 32, "pkg.T"));
                assert_eq!(found.pkg_path.as_deref(), Some("example.com/pkg"));
                let fields: Vec<_> = found.fields.iter().map(|f| (&*f.name, f.offset, f.embedded)).collect();
                assert_eq!(fields, [("base", 0, true), ("Name", 16, false)], "go1.{minor}");
                let field = go.type_at(found.fields[0].type_address).expect("a type");
                assert_eq!(field.name, "string");
            }
        }
    }

    #[test]
    fn a_pointer_is_named_with_its_star_and_leads_on() {
        let (bytes, places) = GoFile::of_release(26).build();
        let image = image(bytes);
        let go = image.go().expect("a Go image");
        let found = go.type_at(places.pointer).expect("a type");
        assert_eq!((found.kind, &*found.name, found.elem), (Kind::Pointer, "*pkg.T", Some(places.object)));
        assert_eq!(found.pkg_path.as_deref(), Some("example.com/pkg"));
        let found = go.type_at(places.interface).expect("a type");
        assert_eq!((found.kind, &*found.name, found.elem), (Kind::Interface, "pkg.I", None));
        for address in [places.object, places.pointer, places.interface] {
            let whole = go.type_at(address).expect("a type");
            assert_eq!(go.kind_and_name_at(address).expect("a type"), (whole.kind, whole.name));
        }
    }

    #[test]
    fn addresses_outside_the_type_data_are_no_types() {
        let (bytes, places) = GoFile::of_release(26).build();
        let image = image(bytes);
        let go = image.go().expect("a Go image");
        for address in [0, places.table, places.module, u64::MAX] {
            assert!(matches!(go.type_at(address), Err(ImageError::Malformed { .. })), "{address:#x}");
        }
    }

    #[test]
    fn impossible_types_are_refused() {
        let refused = |at: &dyn Fn(Places) -> u64, bytes: &[u8]| {
            let (mut file, places) = GoFile::of_release(26).build();
            let at = usize::try_from(at(places) - BASE).expect("an offset");
            file[at..at + bytes.len()].copy_from_slice(bytes);
            let image = image(file);
            let result = image.go().expect("a Go image").type_at(places.object);
            matches!(result, Err(ImageError::Malformed { .. }))
        };
        // Kind, name, number of fields, address of fields.
        assert!(refused(&|p| p.object + 23, &[0]));
        assert!(refused(&|p| p.object + 23, &[31]));
        assert!(refused(&|p| p.object + 40, &[0xff; 4]));
        assert!(refused(&|p| p.object + 64, &[0xff; 8]));
        assert!(refused(&|p| p.object + 56, &[0xff; 8]));
        // The first field: its name, its type, its offset.
        assert!(refused(&|p| p.fields, &[0xff; 8]));
        assert!(refused(&|p| p.fields + 8, &[0; 8]));
        assert!(refused(&|p| p.fields + 16, &[0xff; 8]));
        // A size smaller than the offset of the last field, and one that no type can have.
        assert!(refused(&|p| p.object, &[8]));
        assert!(refused(&|p| p.object, &[0xff; 8]));
    }

    #[test]
    fn types_cannot_be_read_again_and_again() {
        let (bytes, places) = GoFile::of_release(26).build();
        let image = image(bytes);
        let go = image.go().expect("a Go image");
        let times = (0..100_000).take_while(|_| go.type_at(places.object).is_ok()).count();
        assert!((1000..10_000).contains(&times), "{times}");
        // Another question may read as often.
        go.renew_type_budget();
        assert_eq!((0..100_000).take_while(|_| go.type_at(places.object).is_ok()).count(), times);
    }
}
