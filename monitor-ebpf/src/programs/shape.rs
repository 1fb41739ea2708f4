//! Choosing the shape of an object, and copying what the shape says.

use monitor_ebpf::{
    ARGUMENT, GATES, INTERIM_RANGES, KeyKind, MAX_SHAPES, MAX_WINDOWS, NO_FIELD, NO_GUARD, NO_SCRATCH,
    OBJECT, Shape, TestOp, Window, by_site, call_type, outcome, policy, protocol, status_code, stream,
    window_flag, window_use,
};

use super::{
    in_flight::Key,
    maps::{RECIPE, field, recipe},
    memory,
    registers::Hit,
    scratch::{Scratch, UNREAD},
    types,
};

/// Returned by [`ShapeRef::kind_of_message`] where only the start knows the kind. No kind has this number.
pub(crate) const ONLY_START_TELLS: u8 = u8::MAX;
/// No call records so many kinds of events: such a number was misread.
const EVENTS_MAX: u64 = 1 << 16;

/// A shape of the recipe.
#[derive(Clone, Copy)]
pub(crate) struct ShapeRef(*const Shape);

/// The call whose message goes through a function.
pub(crate) enum MessageOf {
    /// The call with this object.
    Call(u64),
    /// None: the stream is no call of the target's.
    NoCall,
    /// It could not be determined.
    Unknown,
}

/// Returns the kind of call, by whether the client streams and whether the server does; 0 if that was not read.
#[inline(always)]
fn kind_of(client: u8, server: u8) -> u8 {
    match (client, server) {
        (0, 0) => stream::UNARY,
        (1, 0) => stream::CLIENT,
        (0, 1) => stream::SERVER,
        (1, 1) => stream::CLIENT | stream::SERVER,
        _ => 0,
    }
}

/// Why no shape was found.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unfound {
    /// The recipe has no shape for such an object.
    Unknown,
    /// The object's type could not be read.
    Unread,
}

/// Returns the shape of a hit, if the recipe has one. May copy the first window.
#[inline(always)]
pub(crate) fn find(hit: &Hit, scratch: &mut Scratch) -> Result<ShapeRef, Unfound> {
    if recipe!(by_site) != 0 {
        return ShapeRef::number(hit.shape).ok_or(Unfound::Unknown);
    }
    find_by_type(hit.type_word, hit.object, scratch)
}

/// Returns the shape of an object.
#[inline(always)]
fn find_by_type(type_word: u64, object: u64, scratch: &mut Scratch) -> Result<ShapeRef, Unfound> {
    if let Some(shape) = find_exactly(type_word, object, scratch) {
        return Ok(shape);
    }
    let meaning = types::resolve(type_word);
    let known = if meaning == 0 { type_word } else { meaning };
    let mut unexpected = type_word;
    for index in 0..MAX_SHAPES {
        let Some(shape) = ShapeRef::number(index) else { break };
        if field!(shape.0, type_word) != known {
            continue;
        }
        let inner_word = field!(shape.0, inner_word);
        if inner_word == 0 {
            return Ok(shape);
        }
        shape.copy_window(0, object, 0, scratch);
        let inner = scratch.word(field!(shape.0, inner_at));
        if types::is(inner, inner_word) {
            return Ok(shape);
        }
        unexpected = inner;
    }
    if unexpected == UNREAD {
        return Err(Unfound::Unread);
    }
    types::report(unexpected);
    Err(Unfound::Unknown)
}

/// Returns the shape of an object whose type words are those of the executable, as nearly all are.
#[inline(always)]
fn find_exactly(type_word: u64, object: u64, scratch: &mut Scratch) -> Option<ShapeRef> {
    for index in 0..MAX_SHAPES {
        let shape = ShapeRef::number(index)?;
        if field!(shape.0, type_word) != type_word {
            continue;
        }
        let inner_word = field!(shape.0, inner_word);
        if inner_word == 0 {
            return Some(shape);
        }
        shape.copy_window(0, object, 0, scratch);
        if scratch.word(field!(shape.0, inner_at)) == inner_word {
            return Some(shape);
        }
    }
    None
}

impl ShapeRef {
    /// Returns the shape of the recipe with this number.
    #[inline(always)]
    fn number(index: usize) -> Option<Self> {
        let first = (&raw const RECIPE.shapes).cast::<Shape>();
        (index < usize::from(recipe!(shape_count))).then(|| Self(first.wrapping_add(index)))
    }

    /// Copies the windows that have one of these uses.
    #[inline(always)]
    pub(crate) fn copy_windows(self, hit: &Hit, scratch: &mut Scratch, uses: u8) {
        // The data of an error without a status is not read.
        let has_status = self.has_status(hit) && self.code_given(hit).is_none();
        let argument = if has_status { hit.error_data } else { 0 };
        let mut expected = true;
        for index in 0..MAX_WINDOWS {
            // The first window was copied to find the shape.
            if index == 0 && field!(self.0, inner_word) != 0 {
                continue;
            }
            if field!(self.0, windows[index].length) == 0 {
                return;
            }
            if field!(self.0, windows[index].uses) & uses == 0 {
                continue;
            }
            let flags = field!(self.0, windows[index].flags);
            let is_twin = flags & window_flag::TWIN != 0;
            expected = self.copy_window(index, hit.object, argument, scratch) || (is_twin && expected);
            let is_complete = uses & (window_use::FINISH | window_use::MESSAGE) != 0;
            if flags & window_flag::REPORT != 0 && !expected && is_complete {
                types::report(scratch.word(field!(self.0, windows[index].guard_at)));
            }
        }
    }

    /// Copies the windows of a call whose start did not read its names, or that has not ended well. Rare, so the work
    /// is not inlined: the stack is nearly full.
    #[inline(always)]
    pub(crate) fn copy_untold(self, hit: &Hit, scratch: &mut Scratch) {
        copy_untold(self, hit.object, scratch);
    }

    /// Copies a window. Returns false when its guard does not match.
    #[inline(always)]
    fn copy_window(self, index: usize, object: u64, argument: u64, scratch: &mut Scratch) -> bool {
        // SAFETY: a place inside the recipe.
        let window: *const Window = unsafe { &raw const (*self.0).windows[index] };
        let guard_at = field!(window, guard_at);
        if guard_at != NO_GUARD && !types::is(scratch.word(guard_at), field!(window, guard_word)) {
            if field!(window, flags) & window_flag::TWIN == 0 {
                scratch.forget(field!(window, at), field!(window, length));
            }
            return false;
        }
        let base = field!(window, base);
        let pointer = match base {
            OBJECT => object,
            ARGUMENT => argument,
            place => scratch.word(place),
        };
        let address = pointer.wrapping_add(u64::from(field!(window, offset)));
        scratch.copy(field!(window, at), field!(window, length), field!(window, words), address);
        true
    }

    /// Returns when a call started by its own record, in nanoseconds since 1970; 0 if it has none. May overwrite the
    /// names in scratch memory.
    #[inline(always)]
    pub(crate) fn recorded_start(self, hit: &Hit, scratch: &mut Scratch) -> u64 {
        let at = field!(self.0, recorded.time_at);
        if recipe!(by_site) != 0 || at == NO_SCRATCH {
            return 0;
        }
        for index in 0..MAX_WINDOWS {
            if field!(self.0, windows[index].length) == 0 {
                break;
            }
            if field!(self.0, windows[index].uses) & window_use::RECORDED != 0 {
                self.copy_window(index, hit.object, 0, scratch);
            }
        }
        let count = scratch.word(field!(self.0, recorded.count_at));
        let is_there = count > u64::from(field!(self.0, recorded.index)) && count < EVENTS_MAX;
        // SAFETY: a place inside the recipe.
        let is_set = scratch.answer(unsafe { &raw const (*self.0).recorded.is_set });
        let time = scratch.word(at);
        if is_there && is_set && time != UNREAD { time } else { 0 }
    }

    /// Returns the key of a call. Needs the windows with [`window_use::KEY`].
    #[inline(always)]
    pub(crate) fn key(self, hit: &Hit, scratch: &Scratch) -> Key {
        if recipe!(by_site) != 0 {
            return self.key_of_site(hit, scratch);
        }
        if field!(self.0, key) == KeyKind::Object as u8 || self.is_streaming(scratch) {
            return Key::of_object(hit.object, self.side());
        }
        Key::of_goroutine(hit.goroutine())
    }

    /// Returns the key of a call whose site selects its shape.
    #[inline(always)]
    fn key_of_site(self, hit: &Hit, scratch: &Scratch) -> Key {
        self.key_of_its_own(hit, scratch).apart(field!(self.0, sited.apart))
    }

    /// Returns that key as it would be if there were no other operations.
    #[inline(always)]
    fn key_of_its_own(self, hit: &Hit, scratch: &Scratch) -> Key {
        let kind = field!(self.0, key);
        if kind == KeyKind::GoroutineUnlessStreaming as u8 {
            return Key::of_goroutine(hit.goroutine());
        }
        if kind == KeyKind::Frame as u8 {
            return Key::of_frame(hit.goroutine(), hit.stack(), self.side());
        }
        let at = field!(self.0, sited.key_at);
        let key = if at == NO_SCRATCH { hit.type_word } else { scratch.word(at) };
        if kind == KeyKind::Number as u8 {
            // Never 0, and a multiple of eight, like the address of an object.
            return Key::of_object(key << 3 | 1 << 63, self.side());
        }
        Key::of_object(key, self.side())
    }

    /// Returns whether the shape has this bit of [`monitor_ebpf::policy`].
    #[inline(always)]
    pub(crate) fn has(self, policy: u8) -> bool {
        recipe!(by_site) != 0 && field!(self.0, sited.policy) & policy != 0
    }

    /// Returns whether this hit of the start is the beginning of a call; `None` if that could not be read.
    #[inline(always)]
    pub(crate) fn begins(self, scratch: &Scratch) -> Option<bool> {
        if recipe!(by_site) != by_site::PATH || field!(self.0, sited.begins.op) == TestOp::Never as u8 {
            return Some(true);
        }
        // SAFETY: a place inside the recipe.
        scratch.answer_if_read(unsafe { &raw const (*self.0).sited.begins })
    }

    /// Returns whether a finish without a seen start is a repeated one. Needs the windows of calls without a start.
    #[inline(always)]
    pub(crate) fn ends_again(self, kind: u8, scratch: &Scratch) -> Option<bool> {
        if !self.has(policy::FIRST_FINISH) {
            return Some(false);
        }
        if kind == 0 && self.has(policy::KIND_AT_FINISH) {
            return None;
        }
        if kind != stream::UNARY {
            return Some(true);
        }
        if field!(self.0, sited.first.op) == TestOp::Never as u8 {
            return Some(false);
        }
        // SAFETY: a place inside the recipe.
        let is_first = scratch.answer_if_read(unsafe { &raw const (*self.0).sited.first });
        is_first.map(|is_first| !is_first)
    }

    /// Returns whether this hit is the finish of a call.
    #[inline(always)]
    pub(crate) fn is_finished(self, hit: &Hit, scratch: &Scratch) -> bool {
        if recipe!(by_site) == 0 {
            return true;
        }
        if hit.error == 0 && field!(self.0, sited.kept_at) != 0 {
            return false;
        }
        if self.code_given(hit).is_some() && !types::is(hit.error, field!(self.0, sited.given.word)) {
            return false;
        }
        for index in 0..GATES {
            if field!(self.0, sited.gates[index].op) == TestOp::Never as u8 {
                break;
            }
            // SAFETY: a place inside the recipe.
            if !scratch.answer(unsafe { &raw const (*self.0).sited.gates[index] }) {
                return false;
            }
        }
        true
    }

    /// Returns the code of a finish that only an error shows, if the hit may be one.
    #[inline(always)]
    pub(crate) fn code_given(self, hit: &Hit) -> Option<u32> {
        let place = field!(self.0, sited.given.place);
        (place != 0 && hit.place() == place).then(|| u32::from(field!(self.0, sited.given.code)))
    }

    /// Returns whether there is code that reports failures in the middle of a call.
    #[inline(always)]
    pub(crate) fn has_interim(self) -> bool {
        recipe!(by_site) != 0 && field!(self.0, sited.interim[0].length) != 0
    }

    /// Returns whether this is an address of such code.
    #[inline(always)]
    pub(crate) fn is_interim(self, address: u64) -> bool {
        (0..INTERIM_RANGES).any(|index| {
            let start = field!(self.0, sited.interim[index].start);
            address.wrapping_sub(start) < field!(self.0, sited.interim[index].length)
        })
    }

    /// Returns the type word of errors that wrap another, and the offset of the wrapped error in them.
    #[inline(always)]
    pub(crate) fn wrap(self) -> (u64, u64) {
        (field!(self.0, sited.wrap_word), u64::from(field!(self.0, sited.wrap_at)))
    }

    /// Returns the kind of call, as in [`stream`]; 0 if it is not known.
    #[inline(always)]
    pub(crate) fn kind(self, scratch: &Scratch) -> u8 {
        if recipe!(by_site) == 0 {
            return 0;
        }
        let (client, server) =
            (field!(self.0, sited.client_streams_at), field!(self.0, sited.server_streams_at));
        if client == NO_SCRATCH || server == NO_SCRATCH {
            return field!(self.0, sited.kind);
        }
        kind_of(scratch.byte(client), scratch.byte(server))
    }

    /// Returns the kind of a message's stream by its description, or [`ONLY_START_TELLS`]. A number, not an `Option`:
    /// the compiler may move the undefined content of a `None`, which the verifier takes for a read.
    #[inline(always)]
    pub(crate) fn kind_of_message(self, hit: &Hit) -> u8 {
        let at = field!(self.0, sited.messages.description_at);
        if at == NO_FIELD {
            return ONLY_START_TELLS;
        }
        let description = memory::word(hit.object.wrapping_add(u64::from(at)));
        let streams = |at: u16| memory::byte(description.wrapping_add(u64::from(at)));
        let client = streams(field!(self.0, sited.messages.streams_at[0]));
        kind_of(client, streams(field!(self.0, sited.messages.streams_at[1])))
    }

    /// Returns the call that a message belongs to, from the receiver of the function that it goes through.
    #[inline(always)]
    pub(crate) fn object_of_message(self, hit: &Hit) -> MessageOf {
        let at = field!(self.0, sited.messages.object_at);
        if at == NO_FIELD {
            return MessageOf::Call(hit.object);
        }
        let place = hit.object.wrapping_add(u64::from(at));
        let expected = field!(self.0, sited.messages.object_word);
        if expected == 0 {
            return MessageOf::Call(memory::word(place));
        }
        let found = memory::word(place);
        if types::is(found, expected) {
            return MessageOf::Call(memory::word(place.wrapping_add(8)));
        }
        let no_call = field!(self.0, sited.messages.no_call_word);
        if no_call != 0 && found == no_call {
            return MessageOf::NoCall;
        }
        types::report(found);
        MessageOf::Unknown
    }

    /// Returns the type word of errors that may stand for success, the text of the one that does, and its length.
    #[inline(always)]
    pub(crate) fn well(self) -> (u64, u64, u64) {
        (
            field!(self.0, sited.well_word),
            field!(self.0, sited.well_text),
            u64::from(field!(self.0, sited.well_length)),
        )
    }

    /// Returns whether the second argument leads to a status. At a start it leads elsewhere, and there is no error.
    #[inline(always)]
    pub(crate) fn has_status(self, hit: &Hit) -> bool {
        let word = field!(self.0, sited.status_word);
        word == 0 || hit.error == 0 || types::is(hit.error, word)
    }

    /// Returns the number of an operation's outcome, and whether an error says that the operation failed.
    #[inline(always)]
    pub(crate) fn outcome(self, hit: &Hit, scratch: &Scratch) -> (u32, bool) {
        let outcome = field!(self.0, sited.outcome);
        let width = field!(self.0, sited.number_width);
        if outcome == outcome::NUMBER {
            // A register may have anything above a number of fewer bytes.
            let mask = match width {
                1 => 0xff,
                2 => 0xffff,
                _ => u32::MAX,
            };
            return (hit.error as u32 & mask, false);
        }
        let at = field!(self.0, sited.code_at);
        let number = match width {
            0 => 0,
            1 => match scratch.byte(at) {
                u8::MAX => status_code::UNREADABLE,
                byte => u32::from(byte),
            },
            4 => scratch.half(at),
            _ => scratch.word(at) as u32,
        };
        (number, outcome == outcome::ERROR && hit.error != 0)
    }

    /// Returns the code of the status that was copied.
    #[inline(always)]
    pub(crate) fn status_code(self, scratch: &Scratch) -> u32 {
        match scratch.word(field!(self.0, sited.message_at)) {
            0 => status_code::OK,
            UNREAD => status_code::UNREADABLE,
            _ => scratch.half(field!(self.0, sited.code_at)),
        }
    }

    /// Returns whether the call is a stream.
    #[inline(always)]
    fn is_streaming(self, scratch: &Scratch) -> bool {
        // SAFETY: a place inside the recipe.
        scratch.answer(unsafe { &raw const (*self.0).streaming })
    }

    /// Returns one of [`call_type`].
    #[inline(always)]
    pub(crate) fn call_type(self, kind: u8, scratch: &Scratch) -> u8 {
        if kind > stream::UNARY || self.is_streaming(scratch) {
            return call_type::STREAMING;
        }
        // SAFETY: a place inside the recipe.
        let oneway = scratch.answer(unsafe { &raw const (*self.0).oneway });
        if oneway { call_type::ONEWAY } else { call_type::PINGPONG }
    }

    /// Returns one of [`monitor_ebpf::side`].
    #[inline(always)]
    pub(crate) fn side(self) -> u8 {
        field!(self.0, side)
    }

    /// Returns the place of a label's string header.
    #[inline(always)]
    pub(crate) fn label_at(self, label: usize) -> u8 {
        field!(self.0, labels[label])
    }

    /// Returns the kind of the object's stream; 0 if it is unknown. A call that is not a stream may use a streaming
    /// protocol all the same: it is unary then.
    #[inline(always)]
    pub(crate) fn stream(self, scratch: &Scratch) -> u8 {
        let at = field!(self.0, stream_at);
        if at == NO_SCRATCH {
            return 0;
        }
        match scratch.word(at) {
            0 => 1,
            // A number that does not fit is no kind of any framework.
            kind => u8::try_from(kind).unwrap_or(0),
        }
    }

    /// Returns the protocol of the call: see [`protocol`].
    #[inline(always)]
    pub(crate) fn protocol(self, scratch: &Scratch) -> u16 {
        let at = field!(self.0, protocol_at);
        if at == NO_SCRATCH {
            return protocol::NONE;
        }
        let number = scratch.word(at);
        if number < u64::from(protocol::UNREADABLE) - 1 { number as u16 + 1 } else { protocol::UNREADABLE }
    }

    /// Returns whether the target's code panicked in the call. Takes one more read than the windows, on request.
    #[inline(always)]
    pub(crate) fn has_panicked(self, scratch: &Scratch) -> bool {
        let at = field!(self.0, panic_at);
        at != NO_SCRATCH && memory::word(scratch.word(at)) != 0
    }

    /// Returns the place of a byte count.
    #[inline(always)]
    pub(crate) fn size_at(self, size: usize) -> u8 {
        field!(self.0, sizes[size])
    }

    /// Returns the place of the tag map's pointer.
    #[inline(always)]
    pub(crate) fn tags_at(self) -> u8 {
        field!(self.0, tags_at)
    }

    /// Returns the places of the slice header of the peer's IP address and of the peer's port.
    #[inline(always)]
    pub(crate) fn peer_at(self) -> (u8, u8) {
        (field!(self.0, peer_at), field!(self.0, peer_port_at))
    }
}

#[inline(never)]
fn copy_untold(shape: ShapeRef, object: u64, scratch: &mut Scratch) -> u32 {
    for index in 0..MAX_WINDOWS {
        // SAFETY: a place inside the recipe.
        let window: *const Window = unsafe { &raw const (*shape.0).windows[index] };
        if field!(window, length) == 0 {
            break;
        }
        if field!(window, uses) & window_use::UNTOLD != 0 {
            shape.copy_window(index, object, 0, scratch);
        }
    }
    0
}
