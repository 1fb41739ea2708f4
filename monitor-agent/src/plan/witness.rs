//! The second witness: compares offsets from Go's type metadata with the DWARF, if there is DWARF.

use std::collections::{BTreeMap, BTreeSet};

use super::{Offset, Refusal};
use crate::image::{Image, StructLayout};

/// What a plan takes from the type metadata about one field of a struct.
#[derive(Clone, Debug)]
pub(super) struct Claim {
    /// The name of the plan's [`Offset`].
    pub(super) offset_name: String,
    /// The struct's name, with the whole path of its package.
    pub(super) type_name: String,
    /// The size of the struct, in bytes.
    pub(super) size: u64,
    /// The field.
    pub(super) field: String,
    /// The offset of the field, in bytes.
    pub(super) offset: u64,
}

/// Compares claims with the DWARF. A confirmed one gets it as further evidence, a contradicted one is refused.
///
/// Damaged DWARF contradicts nothing. The returned note then says why it was not used.
pub(super) fn check(
    image: &Image,
    claims: &[Claim],
    offsets: &mut [Offset],
) -> Result<Option<String>, Refusal> {
    let names: BTreeSet<_> = claims.iter().map(|claim| claim.type_name.clone()).collect();
    let structs = match image.dwarf_structs(&names) {
        Ok(Some(structs)) => structs,
        Ok(None) => return Ok(None),
        Err(error) => {
            return Ok(Some(format!("the executable {error}; its Go type metadata is the only evidence")));
        }
    };
    compare(claims, &structs, offsets)?;
    Ok(None)
}

fn compare(
    claims: &[Claim],
    structs: &BTreeMap<String, StructLayout>,
    offsets: &mut [Offset],
) -> Result<(), Refusal> {
    for claim in claims {
        let Some(layout) = structs.get(&claim.type_name) else { continue };
        same(|| format!("size of {}", claim.type_name), claim.size, Some(layout.size))?;
        let what = || format!("offset of {}.{}", claim.type_name, claim.field);
        same(what, claim.offset, layout.fields.get(&claim.field).copied())?;
        for offset in offsets.iter_mut().filter(|offset| offset.name == claim.offset_name) {
            "Go type metadata, DWARF".clone_into(&mut offset.evidence);
        }
    }
    Ok(())
}

fn same(what: impl FnOnce() -> String, metadata: u64, dwarf: Option<u64>) -> Result<(), Refusal> {
    if dwarf == Some(metadata) {
        return Ok(());
    }
    Err(Refusal::EvidenceDiffers { what: what(), metadata, dwarf })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(field: &str, offset: u64) -> Claim {
        Claim {
            offset_name: format!("pkg.T.{field}"),
            type_name: "example.com/pkg.T".to_owned(),
            size: 32,
            field: field.to_owned(),
            offset,
        }
    }

    /// The evidence for `pkg.T.a`, or the refusal, if the DWARF has a struct with this name, size and field.
    fn outcome(name: &str, size: u64, field: &str, offset: u64) -> Result<String, String> {
        let layout = StructLayout { size, fields: BTreeMap::from([(field.to_owned(), offset)]) };
        let metadata = "Go type metadata".to_owned();
        let mut offsets = [Offset { name: "pkg.T.a".to_owned(), value: 8, evidence: metadata }];
        let structs = BTreeMap::from([(name.to_owned(), layout)]);
        match compare(&[claim("a", 8)], &structs, &mut offsets) {
            Ok(()) => Ok(offsets[0].evidence.clone()),
            Err(refusal) => Err(refusal.to_string()),
        }
    }

    #[test]
    fn evidence_is_what_both_say() {
        let name = "example.com/pkg.T";
        assert_eq!(outcome(name, 32, "a", 8).as_deref(), Ok("Go type metadata, DWARF"));
        assert_eq!(outcome("example.com/pkg.U", 32, "a", 16).as_deref(), Ok("Go type metadata"));
        let refused = |offset: &str| {
            Err(format!(
                "the offset of example.com/pkg.T.a is 8 in the Go type metadata and {offset} in the DWARF, so the \
                 layout can't be proven"
            ))
        };
        assert_eq!(outcome(name, 32, "a", 16), refused("16"));
        assert_eq!(outcome(name, 32, "b", 8), refused("not there"));
        let text = outcome(name, 40, "a", 8).expect_err("refused");
        assert!(
            text.contains("size of example.com/pkg.T is 32") && text.contains("40 in the DWARF"),
            "{text}"
        );
    }
}
