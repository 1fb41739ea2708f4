//! Windows: which pieces of the target's memory to copy for a shape, so that few and small reads suffice.
//!
//! The paths of a shape form a tree: the object, and below it whatever its pointers lead to. Each node needs
//! some places; places close to each other share a window.

use monitor_ebpf::{
    LABELS, MAX_WINDOWS, NO_GUARD, NO_SCRATCH, OBJECT, SCRATCH_BYTES, Shape, TagMap, Test, TestOp, Window,
    label, window_flag, window_use,
};

use super::{
    Refusal,
    resolve::{FieldRef, ItabRef, Resolver},
};
use crate::{
    frameworks::{Alternatives, Key, Question, ShapeSpec},
    image::{Kind, Type},
};

/// A second read costs more than copying this many bytes that nobody needs.
const GAP_MAX: u64 = 64;

/// A shape of calls, proven in an executable.
#[derive(Clone, Debug)]
pub struct ShapePlan {
    /// What its kind of call can't be told from, in words.
    pub notes: Vec<String>,
    /// How the tags that hold the number of retries lie in memory.
    pub(super) tag_map: Option<TagMap>,
    /// The shape with link-time addresses.
    shape: Shape,
}

impl ShapePlan {
    /// Plans a shape; `None` when its type isn't in the executable.
    pub(super) fn make(spec: &ShapeSpec, resolver: &mut Resolver<'_>) -> Result<Option<Self>, Refusal> {
        let Some(itab) = resolver.itab(spec.interface, spec.concrete)? else { return Ok(None) };
        let mut tree = Tree::new(itab.pointee);
        let inner = match spec.when {
            None => None,
            Some(condition) => {
                let Some(inner) = resolver.itab(condition.interface, condition.holds)? else {
                    return Ok(None);
                };
                let field = resolver.field(itab.pointee, condition.field)?;
                tree.need(ROOT, field.offset, 8);
                Some((field.offset, inner.address))
            }
        };
        let mut labels = [None; LABELS];
        for (label, path) in
            [(label::CALLER, spec.caller), (label::CALLEE, spec.callee), (label::METHOD, spec.method)]
        {
            labels[label] = Some(Walk { tree: &mut tree, resolver }.string(path)?);
        }
        let streaming = Walk { tree: &mut tree, resolver }.question(spec.streaming)?;
        let oneway = Walk { tree: &mut tree, resolver }.question(spec.oneway)?;
        let tags = match spec.tags {
            Some(path) => Some(Walk { tree: &mut tree, resolver }.map(path)?),
            None => None,
        };

        let for_key: &[Place] = match spec.key {
            Key::GoroutineUnlessStreaming => &streaming.places,
            Key::Object => &[],
        };
        let windows = tree.windows(for_key)?;
        let mut shape = Shape {
            type_word: itab.address,
            side: spec.side.code(),
            key: spec.key.code() as u8,
            windows: windows.program()?,
            streaming: windows.test(&streaming),
            oneway: windows.test(&oneway),
            ..Shape::UNUSED
        };
        shape.labels = labels.map(|place| place.map_or(NO_SCRATCH, |place| windows.at(place)));
        shape.tags_at = tags.map_or(NO_SCRATCH, |(place, _)| windows.at(place));
        if let Some((offset, word)) = inner {
            shape.inner_at = windows.at(Place { node: ROOT, offset });
            shape.inner_word = word;
            if shape.inner_at >= shape.windows[0].length {
                return Err(Refusal::TooMuch("bytes between the fields of an object"));
            }
        }
        let notes = [("streaming", &streaming), ("oneway", &oneway)]
            .into_iter()
            .filter(|(_, question)| question.places.is_empty())
            .map(|(kind, _)| {
                format!("{}: {kind} calls can't be told apart, they count as pingpong", spec.name)
            })
            .collect();
        let tag_map = tags.and_then(|(_, layout)| layout);
        Ok(Some(Self { notes, tag_map, shape }))
    }

    /// The shape for a process whose executable lies `bias` bytes above its link-time addresses.
    pub(super) fn program(&self, bias: u64) -> Shape {
        let mut shape = self.shape;
        shape.type_word = shape.type_word.wrapping_add(bias);
        if shape.inner_word != 0 {
            shape.inner_word = shape.inner_word.wrapping_add(bias);
        }
        for window in &mut shape.windows {
            if window.guard_at != NO_GUARD {
                window.guard_word = window.guard_word.wrapping_add(bias);
            }
        }
        shape
    }
}

/// Number of a node in a [`Tree`].
type NodeId = usize;

/// The object itself.
const ROOT: NodeId = 0;

/// A place in what a node points to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    node: NodeId,
    offset: u64,
}

/// A question, with the places of the value that it asks about: one for each alternative.
struct Asked {
    places: Vec<Place>,
    op: TestOp,
    width: u8,
    operand: u32,
}

/// Something that a pointer leads to.
struct Node {
    /// Where the pointer lies; the object has none.
    pointer: Option<Place>,
    /// Where the type word lies, and which must be there.
    guard: Option<(Place, u64)>,
    /// Type of what is pointed to.
    struct_type: u64,
    /// Places needed: offset and length.
    needs: Vec<(u64, u64)>,
}

struct Tree {
    nodes: Vec<Node>,
    /// Nodes of which at most one is ever read, as their guards exclude each other: they share one window.
    twins: Vec<(NodeId, NodeId)>,
}

impl Tree {
    fn new(struct_type: u64) -> Self {
        Self {
            nodes: vec![Node { pointer: None, guard: None, struct_type, needs: Vec::new() }],
            twins: Vec::new(),
        }
    }

    fn need(&mut self, node: NodeId, offset: u64, length: u64) {
        if let Some(node) = self.nodes.get_mut(node) {
            node.needs.push((offset, length));
        }
    }

    /// The node behind an interface field that holds a pointer to a known type.
    fn follow(&mut self, field: Place, itab: ItabRef) -> NodeId {
        let pointer = Place { node: field.node, offset: field.offset + 8 };
        let guard = Some((field, itab.address));
        let known = self.nodes.iter().position(|node| node.pointer == Some(pointer) && node.guard == guard);
        if let Some(known) = known {
            return known;
        }
        self.need(field.node, field.offset, 16);
        self.nodes.push(Node { pointer: Some(pointer), guard, struct_type: itab.pointee, needs: Vec::new() });
        self.nodes.len() - 1
    }

    /// Cuts the needs of every node into windows and gives each a place in scratch memory.
    fn windows(&self, for_key: &[Place]) -> Result<Windows<'_>, Refusal> {
        let mut planned: Vec<Planned> = Vec::new();
        let mut used = 0;
        for (node, what) in self.nodes.iter().enumerate() {
            for (start, end) in merge(&what.needs) {
                let twin = self.twins.iter().find(|(_, twin)| *twin == node).and_then(|(first, _)| {
                    planned
                        .iter()
                        .find(|window| window.node == *first && window.end - window.start == end - start)
                });
                let at = twin.map_or(used, |first| first.at);
                let is_twin = twin.is_some();
                if !is_twin {
                    used += (end - start).next_multiple_of(8);
                }
                planned.push(Planned { node, start, end, at, twin: is_twin });
            }
        }
        if used > SCRATCH_BYTES as u64 {
            return Err(Refusal::TooMuch("bytes to read for a call"));
        }
        let key_nodes = for_key.iter().flat_map(|place| self.ancestry(place.node)).collect();
        Ok(Windows { tree: self, planned, key_nodes })
    }

    /// A node and the nodes that lead to it.
    fn ancestry(&self, node: NodeId) -> Vec<NodeId> {
        let mut line = vec![node];
        while let Some(pointer) =
            line.last().and_then(|last| self.nodes.get(*last)).and_then(|node| node.pointer)
        {
            line.push(pointer.node);
        }
        line
    }
}

/// Sorts places and joins those that are close.
fn merge(needs: &[(u64, u64)]) -> Vec<(u64, u64)> {
    let mut needs: Vec<_> = needs.iter().map(|(start, length)| (*start, start + length)).collect();
    needs.sort_unstable();
    let mut merged: Vec<(u64, u64)> = Vec::new();
    for (start, end) in needs {
        match merged.last_mut() {
            Some(last) if start <= last.1 + GAP_MAX => last.1 = last.1.max(end),
            _ => merged.push((start, end)),
        }
    }
    merged
}

/// A window: bytes `start` to `end` of what `node` points to, at `at` in scratch memory.
struct Planned {
    node: NodeId,
    start: u64,
    end: u64,
    at: u64,
    /// Shares its place with an earlier window.
    twin: bool,
}

struct Windows<'a> {
    tree: &'a Tree,
    planned: Vec<Planned>,
    key_nodes: Vec<NodeId>,
}

impl Windows<'_> {
    /// Where a place is found in scratch memory.
    fn at(&self, place: Place) -> u8 {
        let window = self
            .planned
            .iter()
            .find(|window| window.node == place.node && (window.start..window.end).contains(&place.offset));
        window
            .and_then(|window| u8::try_from(window.at + place.offset - window.start).ok())
            .unwrap_or(NO_SCRATCH)
    }

    fn test(&self, question: &Asked) -> Test {
        match question.places.first() {
            None => Test::NEVER,
            Some(place) => Test {
                op: question.op as u8,
                at: self.at(*place),
                width: question.width,
                operand: question.operand,
                ..Test::NEVER
            },
        }
    }

    fn uses(&self, node: NodeId) -> u8 {
        let key = if self.key_nodes.contains(&node) { window_use::KEY } else { 0 };
        key | window_use::FINISH | window_use::MESSAGE
    }

    fn flags(&self, index: usize) -> u8 {
        let guard = |planned: &Planned| Some(self.tree.nodes.get(planned.node)?.guard?.0);
        let Some((this, later)) = self.planned.get(index..).and_then(<[_]>::split_first) else { return 0 };
        let twin = if this.twin { window_flag::TWIN } else { 0 };
        let last = guard(this).is_some_and(|place| !later.iter().any(|other| guard(other) == Some(place)));
        twin | if last { window_flag::REPORT } else { 0 }
    }

    /// The windows as the programs want them.
    fn program(&self) -> Result<[Window; MAX_WINDOWS], Refusal> {
        let too_far = || Refusal::TooMuch("bytes in an object");
        let mut windows = [Window::UNUSED; MAX_WINDOWS];
        if self.planned.len() > windows.len() {
            return Err(Refusal::TooMuch("reads for a call"));
        }
        for (index, (window, planned)) in windows.iter_mut().zip(&self.planned).enumerate() {
            let Some(node) = self.tree.nodes.get(planned.node) else { continue };
            let (guard_at, guard_word) =
                node.guard.map_or((NO_GUARD, 0), |(place, word)| (self.at(place), word));
            *window = Window {
                guard_word,
                offset: u16::try_from(planned.start).map_err(|_| too_far())?,
                base: node.pointer.map_or(OBJECT, |place| self.at(place)),
                length: u8::try_from(planned.end - planned.start).map_err(|_| too_far())?,
                at: u8::try_from(planned.at).map_err(|_| too_far())?,
                guard_at,
                uses: self.uses(planned.node),
                flags: self.flags(index),
            };
        }
        Ok(windows)
    }
}

/// Follows paths through the types, noting what they need.
struct Walk<'a, 'b, 'c> {
    tree: &'a mut Tree,
    resolver: &'b mut Resolver<'c>,
}

impl Walk<'_, '_, '_> {
    fn string(&mut self, path: &str) -> Result<Place, Refusal> {
        let Some((place, found)) = self.follow(path)? else {
            return Err(Refusal::TypeMissing(path.to_owned()));
        };
        expect(path, &found, "a string", |kind| kind == Kind::String)?;
        self.tree.need(place.node, place.offset, 16);
        Ok(place)
    }

    fn map(&mut self, path: &str) -> Result<(Place, Option<TagMap>), Refusal> {
        let Some((place, found)) = self.follow(path)? else {
            return Err(Refusal::TypeMissing(path.to_owned()));
        };
        expect(path, &found, "a map", |kind| kind == Kind::Map)?;
        self.tree.need(place.node, place.offset, 8);
        Ok((place, self.resolver.map_layout(&found)))
    }

    fn question(&mut self, question: Question) -> Result<Asked, Refusal> {
        let (paths, op, operand) = match question {
            Question::Equals(paths, operand) => (paths, TestOp::Equal, operand),
            Question::AnyBit(paths, operand) => (paths, TestOp::AnyBit, operand),
        };
        let (places, width) = self.alternatives(paths)?;
        Ok(Asked { places, op, width, operand })
    }

    /// The places of a value in types that stand for each other, and its width.
    fn alternatives(&mut self, paths: Alternatives) -> Result<(Vec<Place>, u8), Refusal> {
        let mut places: Vec<Place> = Vec::new();
        let mut width = 8;
        for path in paths {
            let Some((place, found)) = self.follow(path)? else { continue };
            expect(path, &found, "a number of 1, 4 or 8 bytes", |kind| {
                is_integer(kind) && matches!(found.size, 1 | 4 | 8)
            })?;
            let this = u8::try_from(found.size).unwrap_or(8);
            match places.first() {
                None => width = this,
                Some(first) => {
                    expect(path, &found, "as wide as its alternative", |_| this == width)?;
                    self.tree.twins.push((first.node, place.node));
                }
            }
            self.tree.need(place.node, place.offset, found.size);
            places.push(place);
        }
        Ok((places, width))
    }

    /// Follows a path; `None` when a type that it names is not in the executable.
    fn follow(&mut self, path: &str) -> Result<Option<(Place, Type)>, Refusal> {
        let mut place = Place { node: ROOT, offset: 0 };
        let mut struct_type = self.tree.nodes.first().map_or(0, |root| root.struct_type);
        let mut last: Option<Type> = None;
        for step in steps(path) {
            match step {
                Step::Field(name) => {
                    let FieldRef { offset, field_type } = self.resolver.field(struct_type, name)?;
                    place.offset += offset;
                    struct_type = field_type.address;
                    last = Some(field_type);
                }
                Step::Holds(concrete) => {
                    let Some(interface) = last.take() else { return Ok(None) };
                    expect(path, &interface, "an interface", |kind| kind == Kind::Interface)?;
                    let Some(itab) = self.resolver.itab_of(&interface, concrete)? else { return Ok(None) };
                    place = Place { node: self.tree.follow(place, itab), offset: 0 };
                    struct_type = itab.pointee;
                }
            }
        }
        Ok(last.map(|last| (place, last)))
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
    if fits(found.kind) {
        return Ok(());
    }
    Err(Refusal::WrongType { what: what.to_owned(), found: found.name.clone(), expected })
}

/// A step of a path.
#[derive(Debug, PartialEq, Eq)]
enum Step<'a> {
    /// To a field of the struct.
    Field(&'a str),
    /// Through an interface, to the type that it must hold a pointer to.
    Holds(&'a str),
}

/// Cuts a path into steps. Dots inside parentheses belong to a type's name.
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
        Some(Step::Field(name))
    })
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
    }

    #[test]
    fn places_that_are_close_share_a_window() {
        assert_eq!(merge(&[(72, 16), (0, 16), (56, 16)]), [(0, 88)]);
        assert_eq!(merge(&[(0, 8), (144, 16), (176, 8)]), [(0, 8), (144, 184)]);
        assert_eq!(merge(&[(0, 88), (144, 16)]), [(0, 160)]);
        assert_eq!(merge(&[]), []);
    }
}
