//! Windows: the pieces of the target's memory to copy for a shape, chosen so that reads are few and small.
//!
//! The values of a shape lie in a tree of nodes: the object, and below it whatever its interfaces hold. The request
//! decides which values of a node are needed. Values close to each other share a window.

#[cfg(test)]
mod tests;

use monitor_ebpf::{
    ARGUMENT, LABELS, MAX_WINDOWS, NO_GUARD, NO_SCRATCH, OBJECT, Recorded, SCRATCH_BYTES, Shape, Test,
    TestOp, Window, window_flag, window_use,
};

use super::{Refusal, Wanted, resolve::ItabRef};

/// A second read costs more than copying this many unneeded bytes.
const GAP_MAX: u64 = 64;

/// The index of a node in [`Nodes`].
pub(super) type NodeId = usize;

/// The object itself.
pub(super) const ROOT: NodeId = 0;
/// What the second argument of a start points to, in calls identified by site.
pub(super) const DESCRIPTION: NodeId = 1;
/// What the second argument of a finish points to.
pub(super) const STATUS: NodeId = 2;

/// A place in the memory that a node stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) node: NodeId,
    /// The offset from the start of the node, in bytes.
    pub(super) offset: u64,
}

/// An interface value, and the itab that it must hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Guard {
    at: Place,
    word: u64,
}

/// How a node is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Link {
    /// By an argument: [`OBJECT`] or [`ARGUMENT`].
    Root(u8),
    /// By the pointer at this place.
    Pointer(Place),
    /// By an interface value.
    Interface(Guard),
}

/// A piece of memory that a pointer leads to.
#[derive(Clone, Debug)]
struct Node {
    /// What points to it.
    link: Link,
    /// Another node that holds the same value in another type. The guards exclude each other, so at most one of the
    /// two is ever read, and they share one place in scratch memory.
    twin_of: Option<NodeId>,
}

/// The tree of nodes.
#[derive(Clone, Debug)]
pub(super) struct Nodes(Vec<Node>);

impl Nodes {
    /// Creates a tree of the object alone.
    pub(super) fn new() -> Self {
        Self(vec![Node { link: Link::Root(OBJECT), twin_of: None }])
    }

    /// Creates a tree of the object and the second arguments of start and finish.
    pub(super) fn with_arguments() -> Self {
        let roots = [OBJECT, ARGUMENT, ARGUMENT];
        Self(roots.map(|base| Node { link: Link::Root(base), twin_of: None }).into())
    }

    /// Returns the node behind an interface value that holds a pointer to a known type.
    pub(super) fn behind(&mut self, at: Place, itab: ItabRef) -> NodeId {
        self.linked(Link::Interface(Guard { at, word: itab.address }))
    }

    /// Returns the node behind a pointer.
    pub(super) fn pointed_to(&mut self, at: Place) -> NodeId {
        self.linked(Link::Pointer(at))
    }

    fn linked(&mut self, link: Link) -> NodeId {
        let known = self.0.iter().position(|node| node.link == link);
        known.unwrap_or_else(|| {
            self.0.push(Node { link, twin_of: None });
            self.0.len() - 1
        })
    }

    /// Declares that two nodes hold the same value, each in its own type.
    pub(super) fn set_twin(&mut self, first: NodeId, twin: NodeId) {
        if let Some(node) = self.0.get_mut(twin).filter(|_| first != twin) {
            node.twin_of = Some(first);
        }
    }

    fn link(&self, node: NodeId) -> Link {
        self.0.get(node).map_or(Link::Root(OBJECT), |node| node.link)
    }

    fn guard(&self, node: NodeId) -> Option<Guard> {
        match self.link(node) {
            Link::Interface(guard) => Some(guard),
            Link::Root(_) | Link::Pointer(_) => None,
        }
    }

    /// The place and length of the pointer or interface that leads to a node.
    fn pointer(&self, node: NodeId) -> Option<(Place, u64)> {
        match self.link(node) {
            Link::Root(_) => None,
            Link::Pointer(at) => Some((at, 8)),
            Link::Interface(guard) => Some((guard.at, 16)),
        }
    }

    /// The node whose place in scratch memory this one uses: itself, if it has no twin.
    fn first_of(&self, node: NodeId) -> NodeId {
        self.0.get(node).and_then(|node| node.twin_of).unwrap_or(node)
    }

    fn has_twins(&self, node: NodeId) -> bool {
        self.first_of(node) != node || self.0.iter().any(|other| other.twin_of == Some(node))
    }
}

/// A question, with the places of its value: one for each alternative.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) places: Vec<Place>,
    pub(super) op: TestOp,
    pub(super) width: u8,
    pub(super) operand: u32,
}

/// An event that calls record themselves.
#[derive(Clone, Debug)]
pub(super) struct RecordedAt {
    /// The place of the number of events.
    pub(super) count: Place,
    pub(super) is_set: Asked,
    pub(super) time: Place,
    pub(super) index: u8,
}

/// The places of all known values of a shape.
#[derive(Clone, Debug)]
pub(super) struct Reads {
    pub(super) nodes: Nodes,
    /// The object's itab.
    pub(super) type_word: u64,
    /// The place of another itab, and its value, for the shape to fit.
    pub(super) inner: Option<(Place, u64)>,
    pub(super) side: u8,
    pub(super) key: u8,
    /// Whether the key depends on whether the call is a stream.
    pub(super) key_asks_streaming: bool,
    pub(super) labels: [Place; LABELS],
    pub(super) streaming: Asked,
    pub(super) oneway: Asked,
    pub(super) tags: Option<Place>,
    pub(super) stream: Option<Place>,
    pub(super) sizes: Option<[Place; 2]>,
    pub(super) protocol: Option<Place>,
    /// The peer's IP address, a slice, and its port.
    pub(super) peer: Option<[Place; 2]>,
    /// The start that the call records itself.
    pub(super) recorded: Option<RecordedAt>,
    /// The pointer to the value recovered from a panic.
    pub(super) panicked: Option<Place>,
}

impl Reads {
    /// Returns the shape for a process whose executable is loaded `bias` bytes above its link-time addresses.
    pub(super) fn to_shape(&self, bias: u64, wanted: Wanted) -> Result<Shape, Refusal> {
        let windows = self.needs(wanted).windows(self.inner.map(|(place, _)| place))?;
        let recorded = self.recorded.as_ref().filter(|_| wanted.recorded);
        let late = recorded.map(|recorded| self.late(recorded)).transpose()?;
        let at = |place: Option<Place>| place.map_or(NO_SCRATCH, |place| windows.at(place));
        let peer = self.peer.filter(|_| wanted.peers);
        let mut shape = Shape {
            type_word: self.type_word.wrapping_add(bias),
            side: self.side,
            key: self.key,
            tags_at: at(self.tags.filter(|_| wanted.retries)),
            labels: self.labels.map(|place| windows.at(place)),
            stream_at: at(self.stream.filter(|_| wanted.messages)),
            sizes: [0, 1].map(|index| {
                at(self.sizes.filter(|_| wanted.reads_sizes()).and_then(|sizes| sizes.get(index).copied()))
            }),
            peer_at: at(peer.map(|[address, _]| address)),
            peer_port_at: at(peer.map(|[_, port]| port)),
            protocol_at: at(self.protocol.filter(|_| wanted.protocol)),
            panic_at: at(self.panicked.filter(|_| wanted.panics)),
            streaming: windows.test(&self.streaming),
            oneway: windows.test(&self.oneway),
            recorded: recorded.zip(late.as_ref()).map_or(Recorded::NONE, |(recorded, late)| Recorded {
                is_set: late.test(&recorded.is_set),
                time_at: late.at(recorded.time),
                count_at: late.at(recorded.count),
                index: recorded.index,
                ..Recorded::NONE
            }),
            windows: as_program(bias, [&windows].into_iter().chain(&late))?,
            ..Shape::UNUSED
        };
        if let Some((place, word)) = self.inner {
            shape.inner_at = windows.at(place);
            shape.inner_word = word.wrapping_add(bias);
        }
        Ok(shape)
    }

    fn needs(&self, wanted: Wanted) -> Needs<'_> {
        let message = if wanted.messages { window_use::MESSAGE } else { 0 };
        let start = if wanted.starts { window_use::START } else { 0 };
        let named = window_use::FINISH | message | start;
        let mut needs = Needs::new(&self.nodes);
        if let Some((place, _)) = self.inner {
            needs.add(place, 8, window_use::KEY | named);
        }
        for place in self.labels {
            needs.add(place, 16, named);
        }
        let key = if self.key_asks_streaming { window_use::KEY } else { 0 };
        for (question, uses) in [(&self.streaming, key | named), (&self.oneway, named)] {
            for place in &question.places {
                needs.add(*place, u64::from(question.width), uses);
            }
        }
        if let Some(place) = self.tags.filter(|_| wanted.retries) {
            needs.add(place, 8, window_use::FINISH);
        }
        if let Some(place) = self.stream.filter(|_| wanted.messages) {
            needs.add(place, 8, window_use::MESSAGE);
        }
        let protocol = self.protocol.filter(|_| wanted.protocol);
        let panicked = self.panicked.filter(|_| wanted.panics);
        let sizes = self.sizes.filter(|_| wanted.reads_sizes());
        for place in sizes.into_iter().flatten().chain(protocol).chain(panicked) {
            needs.add(place, 8, window_use::FINISH);
        }
        if let Some([address, port]) = self.peer.filter(|_| wanted.peers) {
            needs.add(address, 16, window_use::FINISH);
            needs.add(port, 8, window_use::FINISH);
        }
        needs
    }

    /// The windows that are read once a call without a seen start has been counted. All other values have been used
    /// by then, so these may overwrite them.
    fn late(&self, recorded: &RecordedAt) -> Result<Windows<'_>, Refusal> {
        let mut needs = Needs::new(&self.nodes);
        for place in [recorded.count, recorded.time] {
            needs.add(place, 8, window_use::RECORDED);
        }
        for place in &recorded.is_set.places {
            needs.add(*place, recorded.is_set.width.into(), window_use::RECORDED);
        }
        needs.windows(None)
    }
}

/// Some bytes of a node, and the programs that need them.
#[derive(Clone, Copy)]
struct Need {
    place: Place,
    length: u64,
    /// Bits of [`window_use`].
    uses: u8,
}

pub(super) struct Needs<'a> {
    nodes: &'a Nodes,
    all: Vec<Need>,
}

impl<'a> Needs<'a> {
    pub(super) fn new(nodes: &'a Nodes) -> Self {
        Self { nodes, all: Vec::new() }
    }

    /// Adds a need, and the needs for the pointers that lead there.
    pub(super) fn add(&mut self, place: Place, length: u64, uses: u8) {
        self.all.push(Need { place, length, uses });
        let mut node = place.node;
        while let Some((at, length)) = self.nodes.pointer(node) {
            self.all.push(Need { place: at, length, uses });
            node = at.node;
        }
    }

    /// Cuts the needs into windows and gives each a place in scratch memory. `first` must be in the first window.
    ///
    /// Gaps between needs are copied as long as there is room. The largest gaps are left out first.
    pub(super) fn windows(&self, first: Option<Place>) -> Result<Windows<'a>, Refusal> {
        let mut gaps: Vec<Gap> = (0..self.nodes.0.len()).flat_map(|node| self.gaps(node)).collect();
        gaps.sort_by_key(|gap| std::cmp::Reverse(gap.length));
        let mut refusal = Refusal::TooMuch("reads for a call");
        for left_out in 0..=gaps.len() {
            match self.windows_without(gaps.get(..left_out).unwrap_or_default(), first) {
                Ok(windows) => return Ok(windows),
                Err(error) => refusal = error,
            }
        }
        Err(refusal)
    }

    /// The gaps between the needs of a node that are small enough to copy.
    fn gaps(&self, node: NodeId) -> Vec<Gap> {
        let pieces = merge(self.pieces(node), |_, _| false);
        let pairs = pieces.iter().zip(pieces.iter().skip(1));
        pairs
            .map(|(one, next)| Gap { node, end: next.start, length: next.start - one.end })
            .filter(|gap| gap.length <= GAP_MAX)
            .collect()
    }

    fn windows_without(&self, gaps: &[Gap], first: Option<Place>) -> Result<Windows<'a>, Refusal> {
        let nodes = self.nodes;
        let mut order: Vec<NodeId> = (0..nodes.0.len()).collect();
        // Sort twins directly after the node whose place they share.
        order.sort_by_key(|node| nodes.first_of(*node));
        let mut planned: Vec<Planned> = Vec::new();
        let mut used = 0;
        for node in order {
            let left_out = |end| gaps.iter().any(|gap| gap.node == node && gap.end == end);
            let mut pieces = merge(self.pieces(node), |end, length| length <= GAP_MAX && !left_out(end));
            if let Some(first) = first.filter(|first| first.node == node) {
                pieces.sort_by_key(|piece| !(piece.start..piece.end).contains(&first.offset));
            }
            if nodes.has_twins(node) && pieces.len() > 1 {
                return Err(Refusal::TooMuch("values in types that stand for each other"));
            }
            for piece in pieces {
                let shared = planned.iter().find(|window| window.node == nodes.first_of(node));
                let shared = shared.map(|window| window.at).filter(|_| nodes.first_of(node) != node);
                let at = shared.unwrap_or(used);
                if shared.is_none() {
                    used += (piece.end - piece.start).next_multiple_of(8);
                }
                planned.push(Planned { node, piece, at, twin: shared.is_some() });
            }
        }
        if used > SCRATCH_BYTES as u64 {
            return Err(Refusal::TooMuch("bytes to read for a call"));
        }
        Ok(Windows { nodes, planned })
    }

    /// The needs of a node, as pieces. Words must lie at multiples of eight in scratch memory, as in the target. A
    /// value that twins share is at the start of its window.
    fn pieces(&self, node: NodeId) -> Vec<Piece> {
        let exact = self.nodes.has_twins(node);
        let needs = self.all.iter().filter(|need| need.place.node == node);
        needs
            .map(|need| {
                let start = if exact { need.place.offset } else { need.place.offset & !7 };
                let end = need.place.offset + need.length;
                // A value that twins share can begin anywhere, so its words can't be marked one by one.
                let words = if exact { u32::MAX } else { words_in(end - start) };
                Piece { start, end, uses: need.uses, words }
            })
            .collect()
    }
}

/// The bytes from `start` to `end` of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece {
    start: u64,
    end: u64,
    uses: u8,
    /// A bit for each word that is needed, counted from `start`.
    words: u32,
}

/// Unneeded bytes between two pieces of a node. The gap ends at `end`.
#[derive(Clone, Copy, Debug)]
struct Gap {
    node: NodeId,
    end: u64,
    length: u64,
}

/// Sorts the pieces of a node, and joins those that touch or overlap. `may_copy` decides by a gap's end and length
/// whether it is closed too.
fn merge(mut pieces: Vec<Piece>, may_copy: impl Fn(u64, u64) -> bool) -> Vec<Piece> {
    pieces.sort_unstable_by_key(|piece| (piece.start, piece.end));
    let mut merged: Vec<Piece> = Vec::new();
    for piece in pieces {
        match merged.last_mut() {
            Some(last) if piece.start <= last.end || may_copy(piece.start, piece.start - last.end) => {
                let words = piece.words.checked_shl(words_of(piece.start - last.start)).unwrap_or_default();
                last.end = last.end.max(piece.end);
                last.uses |= piece.uses;
                last.words |= words;
            }
            _ => merged.push(piece),
        }
    }
    merged
}

/// The number of words that hold this many bytes. If it does not fit, more than a window has.
fn words_of(bytes: u64) -> u32 {
    u32::try_from(bytes.div_ceil(8)).unwrap_or(u32::MAX)
}

/// A bit for each word of this many bytes.
fn words_in(bytes: u64) -> u32 {
    !u32::MAX.checked_shl(words_of(bytes)).unwrap_or_default()
}

/// A window and its place in scratch memory.
struct Planned {
    node: NodeId,
    piece: Piece,
    at: u64,
    /// Whether it shares the place of an earlier window.
    twin: bool,
}

/// Returns all windows of a shape in the format of the programs.
pub(super) fn as_program<'a, 'b: 'a>(
    bias: u64,
    parts: impl IntoIterator<Item = &'a Windows<'b>>,
) -> Result<[Window; MAX_WINDOWS], Refusal> {
    let mut windows = [Window::UNUSED; MAX_WINDOWS];
    let mut free = windows.iter_mut();
    for part in parts {
        for index in 0..part.planned.len() {
            let place = free.next().ok_or(Refusal::TooMuch("reads for a call"))?;
            *place = part.window(index, bias)?;
        }
    }
    Ok(windows)
}

pub(super) struct Windows<'a> {
    nodes: &'a Nodes,
    planned: Vec<Planned>,
}

impl Windows<'_> {
    /// The offset of a place in scratch memory.
    pub(super) fn at(&self, place: Place) -> u8 {
        let holds = |window: &&Planned| {
            window.node == place.node && (window.piece.start..window.piece.end).contains(&place.offset)
        };
        let window = self.planned.iter().find(holds);
        window
            .and_then(|window| u8::try_from(window.at + place.offset - window.piece.start).ok())
            .unwrap_or(NO_SCRATCH)
    }

    pub(super) fn test(&self, question: &Asked) -> Test {
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

    fn flags(&self, index: usize) -> u8 {
        let guard = |planned: &Planned| self.nodes.guard(planned.node).map(|guard| guard.at);
        let Some((this, later)) = self.planned.get(index..).and_then(<[_]>::split_first) else { return 0 };
        let twin = if this.twin { window_flag::TWIN } else { 0 };
        let last = guard(this).is_some_and(|place| !later.iter().any(|other| guard(other) == Some(place)));
        twin | if last { window_flag::REPORT } else { 0 }
    }

    /// Returns one window in the format of the programs.
    fn window(&self, index: usize, bias: u64) -> Result<Window, Refusal> {
        let too_far = |_| Refusal::TooMuch("bytes in an object");
        let Some(planned) = self.planned.get(index) else { return Ok(Window::UNUSED) };
        let guard = self.nodes.guard(planned.node);
        let Piece { start, end, uses, words } = planned.piece;
        Ok(Window {
            guard_word: guard.map_or(0, |guard| guard.word.wrapping_add(bias)),
            offset: u16::try_from(start).map_err(too_far)?,
            base: match self.nodes.link(planned.node) {
                Link::Root(base) => base,
                Link::Pointer(at) => self.at(at),
                Link::Interface(guard) => self.at(guard.at).saturating_add(8),
            },
            length: u8::try_from(end - start).map_err(too_far)?,
            at: u8::try_from(planned.at).map_err(too_far)?,
            guard_at: guard.map_or(NO_GUARD, |guard| self.at(guard.at)),
            uses,
            flags: self.flags(index),
            words,
            reserved: 0,
        })
    }
}
