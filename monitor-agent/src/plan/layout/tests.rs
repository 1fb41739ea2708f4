//! Windows of made-up shapes.

use monitor_ebpf::{KeyKind, size};

use super::*;

fn itab(address: u64) -> ItabRef {
    ItabRef { address, pointee: 0 }
}

fn place(node: NodeId, offset: u64) -> Place {
    Place { node, offset }
}

fn asked(places: Vec<Place>, width: u8) -> Asked {
    Asked { places, op: TestOp::Equal, width, operand: 1 }
}

/// A call on a server with separate parts: five interfaces, one of which holds a sixth, which holds one
/// of two types. Kitex v0.15.
fn server() -> Reads {
    let mut nodes = Nodes::new();
    let from = nodes.behind(place(ROOT, 0), itab(0x100));
    let to = nodes.behind(place(ROOT, 16), itab(0x100));
    let invocation = nodes.behind(place(ROOT, 32), itab(0x200));
    let method = nodes.behind(place(invocation, 40), itab(0x300));
    let generic = nodes.behind(place(invocation, 40), itab(0x400));
    let stats = nodes.behind(place(ROOT, 64), itab(0x500));
    let config = nodes.behind(place(ROOT, 48), itab(0x600));
    nodes.set_twin(method, generic);
    Reads {
        nodes,
        type_word: 0x10,
        inner: Some((place(ROOT, 16), 0x100)),
        side: 1,
        key: KeyKind::Object as u8,
        key_asks_streaming: false,
        labels: [place(from, 0), place(to, 0), place(to, 16)],
        streaming: asked(vec![place(invocation, 72)], 8),
        oneway: asked(vec![place(method, 24), place(generic, 17)], 1),
        tags: None,
        stream: Some(place(invocation, 72)),
        sizes: Some([place(stats, 56), place(stats, 72)]),
        peer: None,
        protocol: Some(place(config, 40)),
        recorded: None,
        panicked: Some(place(stats, 112)),
    }
}

fn used(shape: &Shape) -> Vec<&Window> {
    shape.windows.iter().filter(|window| window.length > 0).collect()
}

/// Checks that no two windows overlap unless they are twins, that none leaves scratch memory, and that a pointer is
/// copied before it is followed.
fn check_places(shape: &Shape) {
    let mut taken = [false; SCRATCH_BYTES];
    for window in used(shape) {
        assert!(window.at.is_multiple_of(8), "{window:?}");
        if window.base != OBJECT {
            assert!(taken[usize::from(window.base)] && taken[usize::from(window.guard_at)], "{window:?}");
            assert_eq!(window.base, window.guard_at + 8);
        }
        let twin = window.flags & window_flag::TWIN != 0;
        for byte in &mut taken[usize::from(window.at)..][..usize::from(window.length)] {
            assert_eq!(*byte, twin, "{window:?}");
            *byte = true;
        }
    }
}

#[test]
fn only_what_is_wanted_is_read() {
    let plain = server().to_shape(0, Wanted::default()).expect("a shape");
    check_places(&plain);
    assert_eq!(used(&plain).len(), 6);
    assert_eq!((plain.sizes, plain.stream_at), ([NO_SCRATCH; 2], NO_SCRATCH));
    assert_eq!((plain.protocol_at, plain.panic_at), (NO_SCRATCH, NO_SCRATCH));
    assert!(used(&plain).iter().all(|window| window.uses & window_use::MESSAGE == 0));

    let sizes = server().to_shape(0, Wanted { sizes: true, ..Wanted::default() }).expect("a shape");
    check_places(&sizes);
    assert_ne!(sizes.sizes, [NO_SCRATCH; 2]);
    assert_eq!(sizes.sizes[size::RECEIVED] - sizes.sizes[size::SENT], 16);
}

#[test]
fn a_peer_is_read_where_it_is_wanted() {
    let mut reads = server();
    let from = reads.nodes.behind(place(ROOT, 0), itab(0x100));
    let address = reads.nodes.behind(place(from, 32), itab(0x600));
    reads.peer = Some([place(address, 0), place(address, 24)]);
    let wanted = Wanted { events: true, peers: true, ..Wanted::default() };
    // With the sizes, there is no room for the peer.
    assert!(matches!(reads.to_shape(0, wanted), Err(Refusal::TooMuch(_))));
    reads.sizes = None;
    let without = reads.to_shape(0, Wanted { peers: false, ..wanted }).expect("a shape");
    assert_eq!((without.peer_at, used(&without).len()), (NO_SCRATCH, 6));
    let with = reads.to_shape(0, wanted).expect("a shape");
    check_places(&with);
    assert_eq!((with.peer_port_at - with.peer_at, used(&with).len()), (24, 8));
    assert!(used(&with).iter().any(|window| window.guard_word == 0x600));
}

#[test]
fn everything_fits_in_smaller_pieces() {
    let shape = server().to_shape(0, Wanted::ALL).expect("a shape");
    check_places(&shape);
    // With the gaps between them copied, the windows would not fit.
    assert_eq!(used(&shape).iter().filter(|window| window.length == 8).count(), 5, "{shape:?}");
    assert_eq!(used(&shape).len(), MAX_WINDOWS - 1);
    let messages: Vec<_> =
        used(&shape).into_iter().filter(|window| window.uses & window_use::MESSAGE == 0).collect();
    // Bytes sent, bytes received, panic and protocol.
    assert_eq!(messages.len(), 4, "{messages:?}");
}

#[test]
fn a_record_is_read_where_the_names_were() {
    let mut reads = server();
    let stats = reads.nodes.behind(place(ROOT, 64), itab(0x500));
    let event = reads.nodes.pointed_to(place(stats, 8));
    reads.recorded = Some(RecordedAt {
        count: place(stats, 16),
        is_set: Asked { op: TestOp::AnyBit, ..asked(vec![place(event, 0)], 1) },
        time: place(event, 40),
        index: 0,
    });
    let plain = reads.to_shape(0, Wanted::default()).expect("a shape");
    let wanted = Wanted { recorded: true, ..Wanted::default() };
    for wanted in [wanted, Wanted { events: true, sizes: true, ..wanted }] {
        let shape = reads.to_shape(0, wanted).expect("a shape");
        let (late, others): (Vec<&Window>, Vec<&Window>) =
            used(&shape).into_iter().partition(|window| window.uses == window_use::RECORDED);
        if !wanted.sizes {
            assert_eq!(others, used(&plain), "no read more where nobody asks");
        }
        // The stats from the object, the slice from the stats, the event from the slice.
        assert_eq!(late.len(), 3, "{late:?}");
        let mut taken = [false; SCRATCH_BYTES];
        for window in late {
            for at in window.at..window.at + window.length {
                assert!(!taken[usize::from(at)], "{window:?}");
                taken[usize::from(at)] = true;
            }
        }
        assert!(taken[usize::from(shape.recorded.time_at)] && taken[usize::from(shape.recorded.count_at)]);
        assert!(taken[0], "every place is free once all else is told");
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let mut reads = server();
    let far = (0..8).map(|index| place(ROOT, 1000 * index)).collect();
    reads.streaming = asked(far, 8);
    assert!(matches!(reads.to_shape(0, Wanted::default()), Err(Refusal::TooMuch(_))));
    reads.streaming = asked(vec![place(ROOT, 70_000)], 8);
    assert!(matches!(reads.to_shape(0, Wanted::default()), Err(Refusal::TooMuch(_))));
}

#[test]
fn alternatives_share_a_place_and_the_last_reports() {
    let shape = server().to_shape(0x1000, Wanted::default()).expect("a shape");
    let windows = used(&shape);
    let at = |word| windows.iter().position(|window| window.guard_word == word).expect("a window");
    let (first, twin) = (at(0x1300), at(0x1400));
    assert_eq!(twin, first + 1);
    assert_eq!(windows[first].at, windows[twin].at);
    assert_eq!((windows[first].at, windows[first].offset, windows[twin].offset), (shape.oneway.at, 24, 17));
    assert_eq!((windows[first].flags, windows[twin].flags), (0, window_flag::TWIN | window_flag::REPORT));
}

#[test]
fn the_first_window_decides_the_shape() {
    let mut reads = server();
    reads.inner = Some((place(ROOT, 400), 0x100));
    let shape = reads.to_shape(0x1000, Wanted::default()).expect("a shape");
    check_places(&shape);
    assert_eq!((shape.windows[0].offset, shape.inner_at, shape.inner_word), (400, 0, 0x1100));
    assert_ne!(shape.windows[0].uses & window_use::KEY, 0);
}

#[test]
fn a_key_that_depends_on_streaming_is_read_at_the_start() {
    let mut reads = server();
    reads.key_asks_streaming = true;
    let shape = reads.to_shape(0, Wanted::default()).expect("a shape");
    let key: Vec<_> = used(&shape).into_iter().filter(|window| window.uses & window_use::KEY != 0).collect();
    // The object, and the invocation.
    assert_eq!(key.iter().map(|window| window.guard_word).collect::<Vec<_>>(), [0, 0x200]);
}

#[test]
fn words_stay_at_multiples_of_eight() {
    let mut reads = server();
    reads.streaming = asked(vec![place(ROOT, 204)], 4);
    reads.tags = Some(place(ROOT, 208));
    let shape = reads.to_shape(0, Wanted { retries: true, ..Wanted::default() }).expect("a shape");
    assert_eq!((shape.streaming.at % 8, shape.tags_at % 8), (4, 0));
    assert_eq!(shape.tags_at, shape.streaming.at + 4);
}

#[test]
fn places_that_are_close_share_a_window() {
    let merged = |needs: &[(u64, u64)], gap| {
        let pieces = needs.iter().map(|(start, length)| Piece {
            start: *start,
            end: start + length,
            uses: 1,
            words: words_in(*length),
        });
        merge(pieces.collect(), |_, length| length <= gap)
            .iter()
            .map(|piece| (piece.start, piece.end))
            .collect::<Vec<_>>()
    };
    assert_eq!(merged(&[(72, 16), (0, 16), (56, 16)], 64), [(0, 88)]);
    assert_eq!(merged(&[(72, 16), (0, 16), (56, 16)], 32), [(0, 16), (56, 88)]);
    assert_eq!(merged(&[(0, 8), (144, 16), (176, 8)], 64), [(0, 8), (144, 184)]);
    assert_eq!(merged(&[(0, 88), (144, 16)], 64), [(0, 160)]);
    assert_eq!(merged(&[], 64), []);
}

#[test]
fn of_what_lies_between_needs_nothing_is_asked_for() {
    let words = |needs: &[(u64, u64)]| {
        let pieces = needs.iter().map(|(start, length)| Piece {
            start: *start,
            end: start + length,
            uses: 1,
            words: words_in(*length),
        });
        merge(pieces.collect(), |_, _| true).iter().map(|piece| piece.words).collect::<Vec<_>>()
    };
    assert_eq!(words(&[(72, 16), (0, 16), (56, 1)]), [0b110_1000_0011]);
    assert_eq!(words(&[(24, 16), (32, 16), (24, 4)]), [0b111]);
    assert_eq!(words(&[(0, 8), (248, 8)]), [1 | 1 << 31]);
    // The second word lies beyond the largest window.
    assert_eq!(words(&[(0, 8), (256, 8)]), [1]);
    assert_eq!([words_in(0), words_in(9), words_in(255), words_in(300)], [0, 0b11, u32::MAX, u32::MAX]);
}
