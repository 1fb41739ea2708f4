//! The format of a spec's file, as it is parsed.

use std::{collections::BTreeMap, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor, value::MapAccessDeserializer},
};
use toml::Spanned;

use super::{Side, native::WrittenNative};

/// A whole file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Written {
    pub(super) name: Spanned<String>,
    pub(super) help: Option<Spanned<String>>,
    pub(super) module: Option<Spanned<String>>,
    pub(super) operation: Option<Spanned<Vec<Spanned<WrittenOperation>>>>,
    pub(super) native: Option<Spanned<Vec<Spanned<WrittenNative>>>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WrittenOperation {
    pub(super) name: Spanned<String>,
    #[serde(default)]
    pub(super) side: WrittenSide,
    pub(super) key: Spanned<WrittenKey>,
    pub(super) policy: Option<Spanned<WrittenPolicy>>,
    pub(super) start: Spanned<Vec<Spanned<WrittenEntry>>>,
    pub(super) finish: Option<Spanned<Vec<Spanned<WrittenEntry>>>>,
    pub(super) returns: Option<Spanned<WrittenWords>>,
    #[serde(default)]
    pub(super) allow_expensive: bool,
    #[serde(default)]
    pub(super) types: BTreeMap<String, Spanned<String>>,
    #[serde(default)]
    pub(super) labels: WrittenLabels,
    pub(super) failed: Option<Spanned<String>>,
    #[serde(default)]
    pub(super) signed: bool,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum WrittenSide {
    Client,
    #[default]
    Server,
}

impl From<WrittenSide> for Side {
    fn from(written: WrittenSide) -> Self {
        match written {
            WrittenSide::Client => Self::Client,
            WrittenSide::Server => Self::Server,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum WrittenKey {
    Goroutine,
    Pointer,
    Number,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum WrittenPolicy {
    Overwrite,
    FirstStart,
    FirstFinish,
    Nested,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct WrittenEntry {
    pub(super) function: Spanned<String>,
    pub(super) at_most: Option<Spanned<usize>>,
    pub(super) arguments: Option<Spanned<String>>,
    pub(super) key: Option<Spanned<usize>>,
    #[serde(default)]
    pub(super) pointers: BTreeMap<String, Spanned<usize>>,
    pub(super) error: Option<Spanned<usize>>,
    pub(super) number: Option<Spanned<usize>>,
}

/// A function in a framework's file: one that is entered, or one that gets an error from another (`given_by`).
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct WrittenEnd {
    function: Spanned<String>,
    arguments: Option<Spanned<String>>,
    key: Option<Spanned<usize>>,
    #[serde(default)]
    pointers: BTreeMap<String, Spanned<usize>>,
    pub(crate) error: Option<Spanned<usize>>,
    pub(crate) given_by: Option<Spanned<String>>,
}

impl WrittenEnd {
    /// Returns the entry of the function.
    pub(crate) fn entry(&self) -> WrittenEntry {
        let is_argument = self.given_by.is_none();
        WrittenEntry {
            function: self.function.clone(),
            at_most: None,
            arguments: self.arguments.clone(),
            key: self.key.clone(),
            pointers: self.pointers.clone(),
            error: self.error.clone().filter(|_| is_argument),
            number: None,
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WrittenWords {
    pub(super) results: Option<Spanned<String>>,
    #[serde(default)]
    pub(super) pointers: BTreeMap<String, Spanned<usize>>,
    pub(super) error: Option<Spanned<usize>>,
    pub(super) number: Option<Spanned<usize>>,
}

/// The labels' values, by the labels' names.
pub(super) type WrittenLabels = BTreeMap<Spanned<String>, Spanned<WrittenSource>>;

/// A path, or a table for any other source.
pub(super) enum WrittenSource {
    Path(String),
    Other(OtherSource),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct OtherSource {
    pub(super) number: Option<String>,
    pub(super) zero: Option<String>,
    pub(super) text: Option<String>,
    pub(super) outcome: Option<[String; 2]>,
}

impl<'de> Deserialize<'de> for WrittenSource {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = WrittenSource;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a path or a table")
            }

            fn visit_str<E>(self, path: &str) -> Result<WrittenSource, E> {
                Ok(WrittenSource::Path(path.to_owned()))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<WrittenSource, A::Error> {
                OtherSource::deserialize(MapAccessDeserializer::new(map)).map(WrittenSource::Other)
            }
        }
        deserializer.deserialize_any(Either)
    }
}
