//! Shapes: a framework's paths, followed through the types of an executable.

use monitor_ebpf::{KeyKind, LABELS, Shape, TagMap, TestOp, label, side};

use super::{
    Refusal, Wanted,
    layout::{Asked, NodeId, Nodes, Place, ROOT, Reads, RecordedAt},
    resolve::{FieldRef, Resolver},
};
use crate::{
    frameworks::{Alternatives, Condition, Key, Question, RecordedSpec, ShapeSpec},
    image::{Kind, Type},
    specs::Side,
};

/// A shape, proven in an executable.
#[derive(Clone, Debug)]
pub(super) struct ShapePlan {
    /// What is unknown about its calls, as text.
    pub(super) notes: Vec<String>,
    /// Why the start that its calls record can't be read; `None` if it can be.
    pub(super) unrecorded: Option<String>,
    /// The memory layout of the tags, which hold the number of retries.
    pub(super) tag_map: Option<TagMap>,
    /// Whether its calls have tags whose place or layout is unknown.
    pub(super) lacks_retries: bool,
    reads: Reads,
}

impl ShapePlan {
    /// Plans a shape; `None` if its type isn't in the executable. The names of caller, callee and method, and what
    /// the key depends on, are required. Anything else that is missing becomes a note.
    pub(super) fn make(spec: &ShapeSpec, resolver: &mut Resolver<'_>) -> Result<Option<Self>, Refusal> {
        let Some(itab) = resolver.itab(&spec.interface, &spec.concrete)? else { return Ok(None) };
        let inner = match &spec.when {
            None => None,
            Some(condition) => {
                let Some(inner) = inner_word(condition, itab.pointee, resolver)? else { return Ok(None) };
                Some(inner)
            }
        };
        let mut walk = Walk { nodes: Nodes::new(), root: ROOT, object: itab.pointee, resolver };
        let labels = walk.labels(spec)?;
        let mut notes = Notes { shape: &spec.name, notes: Vec::new() };
        let key_asks_streaming = spec.key == Key::GoroutineUnlessStreaming;
        let (streaming, why) = walk.question(&spec.streaming)?;
        match why {
            Some(why) if key_asks_streaming && streaming.places.is_empty() => return Err(why),
            Some(why) => notes.add("streaming calls can't be told apart, they count as pingpong", &why),
            None => {}
        }
        let (oneway, why) = walk.question(&spec.oneway)?;
        if let Some(why) = why {
            notes.add("oneway calls can't be told apart, they count as pingpong", &why);
        }
        let tags = spec.tags.as_ref().map(|path| walk.map(path)).transpose();
        let tags = notes.or_none("retries can't be told", tags)?.flatten();
        let sizes = notes.or_none("bytes can't be told", walk.sizes(&spec.sizes))?;
        let peer = spec.peer.as_ref().map(|paths| walk.peer(paths)).transpose();
        let peer = notes.or_none("the address of the peer can't be told", peer)?.flatten();
        let stream = or_none(walk.word(&spec.stream))?;
        let protocol = notes.or_none("the protocol can't be told", walk.word(&spec.protocol))?;
        // Starts are watched anyway.
        let (recorded, unrecorded) = match walk.recorded(&spec.recorded) {
            Ok(recorded) => (Some(recorded), None),
            Err(why) => (None, Some(format!("{}: {}", spec.name, optional(why)?.reason()))),
        };
        let panicked = walk.atomic(&spec.panicked);
        let panicked = notes.or_none("panics that end without an error count as succeeded", panicked)?;
        let reads = Reads {
            nodes: walk.nodes,
            type_word: itab.address,
            inner,
            side: side_code(spec.side),
            key: key_kind(spec.key) as u8,
            key_asks_streaming,
            labels,
            streaming,
            oneway,
            tags: tags.as_ref().map(|(place, _)| *place),
            stream,
            sizes,
            peer,
            protocol,
            recorded,
            panicked,
        };
        let tag_map = tags.and_then(|(_, layout)| layout);
        let lacks_retries = spec.tags.is_some() && tag_map.is_none();
        Ok(Some(Self { notes: notes.notes, unrecorded, tag_map, lacks_retries, reads }))
    }

    /// Returns the shape for a process whose executable is loaded `bias` bytes above its link-time addresses.
    pub(super) fn to_shape(&self, bias: u64, wanted: Wanted) -> Result<Shape, Refusal> {
        self.reads.to_shape(bias, wanted)
    }
}

/// Collects what is unknown about a shape.
struct Notes<'a> {
    shape: &'a str,
    notes: Vec<String>,
}

impl Notes<'_> {
    fn add(&mut self, what: &str, why: &Refusal) {
        self.notes.push(format!("{}: {what} ({})", self.shape, why.reason()));
    }

    /// Turns something that a release lacks into `None` and a note.
    fn or_none<T>(&mut self, what: &str, found: Result<T, Refusal>) -> Result<Option<T>, Refusal> {
        match found {
            Ok(found) => Ok(Some(found)),
            Err(why) => {
                self.add(what, &optional(why)?);
                Ok(None)
            }
        }
    }
}

/// Returns the place of a condition's interface field, and the itab that it must hold; `None` if the held type isn't
/// in the executable.
fn inner_word(
    condition: &Condition,
    object: u64,
    resolver: &mut Resolver<'_>,
) -> Result<Option<(Place, u64)>, Refusal> {
    let Some(inner) = resolver.itab(&condition.interface, &condition.holds)? else { return Ok(None) };
    let field = resolver.field(object, &condition.field)?;
    expect(&condition.field, &field.field_type, "an interface", |kind| kind == Kind::Interface)?;
    Ok(Some((Place { node: ROOT, offset: field.offset }, inner.address)))
}

/// Returns the reason why something optional is missing. An unreadable executable stays an error.
fn optional(why: Refusal) -> Result<Refusal, Refusal> {
    match why {
        Refusal::Image(_) => Err(why),
        _ => Ok(why),
    }
}

/// Turns something that a release lacks into `None`.
fn or_none<T>(found: Result<T, Refusal>) -> Result<Option<T>, Refusal> {
    found.map_or_else(|why| optional(why).map(|_| None), |found| Ok(Some(found)))
}

/// Follows paths through types, and notes the nodes on the way.
pub(super) struct Walk<'a, 'b> {
    pub(super) nodes: Nodes,
    /// The node where paths begin.
    pub(super) root: NodeId,
    /// The type of that node.
    pub(super) object: u64,
    pub(super) resolver: &'a mut Resolver<'b>,
}

impl Walk<'_, '_> {
    /// Returns the places of the names of caller, callee and method.
    fn labels(&mut self, spec: &ShapeSpec) -> Result<[Place; LABELS], Refusal> {
        let mut labels = [Place { node: ROOT, offset: 0 }; LABELS];
        for (label, path) in
            [(label::CALLER, &spec.caller), (label::CALLEE, &spec.callee), (label::METHOD, &spec.method)]
        {
            if let Some(place) = labels.get_mut(label) {
                *place = self.value(path, "a string", 16, |kind| kind == Kind::String)?;
            }
        }
        Ok(labels)
    }

    /// Returns the place of a value of a kind and size.
    pub(super) fn value(
        &mut self,
        path: &str,
        expected: &'static str,
        size: u64,
        fits: impl Fn(Kind) -> bool,
    ) -> Result<Place, Refusal> {
        let (place, found) = self.follow(path)?;
        expect(path, &found, expected, |kind| fits(kind) && found.size == size)?;
        aligned(path, place, size)?;
        Ok(place)
    }

    /// Returns the place of a string or byte slice, which begin alike.
    pub(super) fn text(&mut self, path: &str) -> Result<Place, Refusal> {
        let (place, found) = self.follow(path)?;
        let is_bytes = match found.elem.filter(|_| found.kind == Kind::Slice) {
            Some(elem) => self.resolver.type_at(elem)?.kind == Kind::Uint8,
            None => false,
        };
        expect(path, &found, "a string or a slice of bytes", |kind| {
            (kind == Kind::String && found.size == 16) || (is_bytes && found.size == 24)
        })?;
        aligned(path, place, 8)?;
        Ok(place)
    }

    fn word(&mut self, path: &str) -> Result<Place, Refusal> {
        self.value(path, "a number of 8 bytes", 8, is_integer)
    }

    fn sizes(&mut self, [sent, received]: &[String; 2]) -> Result<[Place; 2], Refusal> {
        Ok([self.word(sent)?, self.word(received)?])
    }

    /// Returns the place of the pointer in a `sync/atomic` value of the type `Value` or `Pointer`
    /// (`src/sync/atomic/value.go` and `type.go` @ go1.18 … go1.27). Both keep it in their field `v`, `Value` as part
    /// of an interface.
    fn atomic(&mut self, path: &str) -> Result<Place, Refusal> {
        let (_, found) = self.follow(path)?;
        expect(path, &found, "a value of sync/atomic", |kind| {
            kind == Kind::Struct && found.pkg_path.as_deref() == Some("sync/atomic")
        })?;
        let path = format!("{path}.v");
        let (mut place, found) = self.follow(&path)?;
        expect(&path, &found, "a pointer or an interface", |kind| {
            matches!((kind, found.size), (Kind::UnsafePointer, 8) | (Kind::Interface, 16))
        })?;
        aligned(&path, place, 8)?;
        if found.kind == Kind::Interface {
            place.offset = place.offset.saturating_add(8);
        }
        Ok(place)
    }

    /// Returns the places of an event that calls record themselves.
    fn recorded(&mut self, spec: &RecordedSpec) -> Result<RecordedAt, Refusal> {
        let events = self.value(&spec.events, "a slice", 24, |kind| kind == Kind::Slice)?;
        let element = format!("{}.[{}]", spec.events, spec.index);
        let (state, bit) = &spec.state;
        let (state, width) = self.number(&format!("{element}.{state}"))?;
        Ok(RecordedAt {
            count: Place { offset: events.offset.saturating_add(8), ..events },
            is_set: Asked { places: vec![state], op: TestOp::AnyBit, width, operand: *bit },
            time: self.word(&format!("{element}.{}", spec.time))?,
            index: spec.index,
        })
    }

    fn peer(&mut self, [address, port]: &[String; 2]) -> Result<[Place; 2], Refusal> {
        let address = self.value(address, "a slice", 24, |kind| kind == Kind::Slice)?;
        Ok([address, self.word(port)?])
    }

    fn map(&mut self, path: &str) -> Result<(Place, Option<TagMap>), Refusal> {
        let place = self.value(path, "a map", 8, |kind| kind == Kind::Map)?;
        let (_, found) = self.follow(path)?;
        Ok((place, self.resolver.map_layout(&found)))
    }

    /// Returns a question with its places, and why it can't be answered, or not for every type
    /// that its value can have.
    fn question(&mut self, question: &Question) -> Result<(Asked, Option<Refusal>), Refusal> {
        let (paths, op, operand) = match question {
            Question::Equals(paths, operand) => (paths, TestOp::Equal, *operand),
            Question::AnyBit(paths, operand) => (paths, TestOp::AnyBit, *operand),
        };
        let (places, width, failed) = self.alternatives(paths)?;
        Ok((Asked { places, op, width, operand }, failed))
    }

    /// Returns the places of a value in types that can replace each other, its width, and why a place is missing. A
    /// type that isn't in the executable is not missed if another one is.
    fn alternatives(&mut self, paths: &Alternatives) -> Result<(Vec<Place>, u8, Option<Refusal>), Refusal> {
        let mut places: Vec<Place> = Vec::new();
        let mut width = 8;
        let mut absent = None;
        let mut failed = None;
        for path in paths {
            match self.number(path) {
                Ok((place, this)) => {
                    if let Some(first) = places.first() {
                        if this != width {
                            failed = Some(Refusal::wrong_type(path, "another", "as wide as its alternative"));
                            continue;
                        }
                        self.nodes.set_twin(first.node, place.node);
                    }
                    width = this;
                    places.push(place);
                }
                Err(why @ Refusal::TypeMissing(_)) => absent = absent.or(Some(why)),
                Err(why) => failed = Some(optional(why)?),
            }
        }
        if places.is_empty() {
            failed = failed.or(absent);
        }
        Ok((places, width, failed))
    }

    /// Returns the place and width of a number, or of a pointer that identifies an object.
    pub(super) fn number(&mut self, path: &str) -> Result<(Place, u8), Refusal> {
        self.number_of(path, |kind| is_integer(kind) || kind == Kind::Pointer)
    }

    /// Returns the place and width of a number that is shown, so not of an address.
    pub(super) fn shown_number(&mut self, path: &str) -> Result<(Place, u8), Refusal> {
        self.number_of(path, is_integer)
    }

    fn number_of(&mut self, path: &str, fits: impl Fn(Kind) -> bool) -> Result<(Place, u8), Refusal> {
        let (place, found) = self.follow(path)?;
        expect(path, &found, "a number of 1, 4 or 8 bytes", |kind| {
            fits(kind) && matches!(found.size, 1 | 4 | 8)
        })?;
        aligned(path, place, found.size)?;
        Ok((place, u8::try_from(found.size).unwrap_or(8)))
    }

    /// Follows a path to a place, and returns it with the type of its value.
    fn follow(&mut self, path: &str) -> Result<(Place, Type), Refusal> {
        let mut place = Place { node: self.root, offset: 0 };
        let mut struct_type = self.object;
        let mut last: Option<Type> = None;
        for step in steps(path) {
            match step {
                Step::Field(name) => {
                    if let Some(pointer) = last.take().filter(|found| found.kind == Kind::Pointer) {
                        aligned(path, place, pointer.size)?;
                        place = Place { node: self.nodes.pointed_to(place), offset: 0 };
                        struct_type = pointer.elem.unwrap_or(struct_type);
                    }
                    let FieldRef { offset, field_type } = self.resolver.field(struct_type, name)?;
                    place.offset = place.offset.saturating_add(offset);
                    struct_type = field_type.address;
                    last = Some(field_type);
                }
                Step::Element(index) => {
                    let missing = || Refusal::TypeMissing(path.to_owned());
                    let slice = last.take().ok_or_else(missing)?;
                    expect(path, &slice, "a slice", |kind| kind == Kind::Slice)?;
                    let element = self.resolver.type_at(slice.elem.ok_or_else(missing)?)?;
                    let offset = element.size.saturating_mul(index);
                    place = Place { node: self.nodes.pointed_to(place), offset };
                    struct_type = element.address;
                }
                Step::Holds(concrete) => {
                    let missing = || Refusal::TypeMissing(concrete.to_owned());
                    let interface = last.take().ok_or_else(missing)?;
                    expect(path, &interface, "an interface", |kind| kind == Kind::Interface)?;
                    aligned(path, place, interface.size)?;
                    let itab = self.resolver.itab_of(&interface, concrete)?.ok_or_else(missing)?;
                    place = Place { node: self.nodes.behind(place, itab), offset: 0 };
                    struct_type = itab.pointee;
                }
            }
        }
        let last = last.ok_or_else(|| Refusal::TypeMissing(path.to_owned()))?;
        Ok((place, last))
    }
}

fn is_integer(kind: Kind) -> bool {
    use Kind::{Bool, Int, Int8, Int16, Int32, Int64, Uint, Uint8, Uint16, Uint32, Uint64};
    matches!(kind, Bool | Int | Int8 | Int16 | Int32 | Int64 | Uint | Uint8 | Uint16 | Uint32 | Uint64)
}

fn expect(
    what: &str,
    found: &Type,
    expected: &'static str,
    fits: impl FnOnce(Kind) -> bool,
) -> Result<(), Refusal> {
    if fits(found.kind) { Ok(()) } else { Err(Refusal::wrong_type(what, &found.name, expected)) }
}

/// Refuses a value that is not aligned: the programs read whole words at multiples of eight.
fn aligned(what: &str, place: Place, size: u64) -> Result<(), Refusal> {
    if place.offset.is_multiple_of(size.clamp(1, 8)) {
        return Ok(());
    }
    Err(Refusal::wrong_type(what, &format!("at offset {}", place.offset), "at a multiple of its size"))
}

/// A step of a path.
#[derive(Debug, PartialEq, Eq)]
enum Step<'a> {
    /// A field of the struct.
    Field(&'a str),
    /// An element of a slice.
    Element(u64),
    /// The type that an interface must hold a pointer to.
    Holds(&'a str),
}

/// Splits a path into steps. Dots inside parentheses belong to a type's name.
fn steps(path: &str) -> impl Iterator<Item = Step<'_>> {
    let mut rest = path;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        if let Some(inside) = rest.strip_prefix("(*") {
            let (name, after) = inside.split_once(')').unwrap_or((inside, ""));
            rest = after.strip_prefix('.').unwrap_or(after);
            return Some(Step::Holds(name));
        }
        let (name, after) = rest.split_once('.').unwrap_or((rest, ""));
        rest = after;
        let index = name.strip_prefix('[').and_then(|name| name.strip_suffix(']'));
        Some(index.and_then(|index| index.parse().ok()).map_or(Step::Field(name), Step::Element))
    })
}

/// The side in the format of the programs.
pub(super) fn side_code(of: Side) -> u8 {
    match of {
        Side::Client => side::CLIENT,
        Side::Server => side::SERVER,
    }
}

fn key_kind(key: Key) -> KeyKind {
    match key {
        Key::Object => KeyKind::Object,
        Key::GoroutineUnlessStreaming => KeyKind::GoroutineUnlessStreaming,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_cut_at_dots_outside_parentheses() {
        let path = "to.(*pkg/rpcinfo/remoteinfo.remoteInfo).serviceName";
        let expected =
            [Step::Field("to"), Step::Holds("pkg/rpcinfo/remoteinfo.remoteInfo"), Step::Field("serviceName")];
        assert_eq!(steps(path).collect::<Vec<_>>(), expected);
        assert_eq!(steps("from.serviceName").count(), 2);
        let expected = [Step::Field("events"), Step::Element(5), Step::Field("time")];
        assert_eq!(steps("events.[5].time").collect::<Vec<_>>(), expected);
    }
}
