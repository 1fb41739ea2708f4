//! Little-endian numbers in byte slices, without panics.

/// The byte at `offset`.
pub(super) fn u8_at(data: &[u8], offset: usize) -> Option<u8> {
    data.get(offset).copied()
}

/// The 32-bit number at `offset`.
pub(super) fn u32_at(data: &[u8], offset: usize) -> Option<u32> {
    array_at(data, offset).map(u32::from_le_bytes)
}

/// The 64-bit number at `offset`.
pub(super) fn u64_at(data: &[u8], offset: usize) -> Option<u64> {
    array_at(data, offset).map(u64::from_le_bytes)
}

/// An unsigned varint, as in Go's `encoding/binary`, at `offset`, limited to 32 bits. Returns its value and length.
pub(super) fn varint_at(data: &[u8], offset: usize) -> Option<(u32, usize)> {
    let mut value = 0_u64;
    for i in 0..5 {
        let byte = u8_at(data, offset.checked_add(i)?)?;
        value |= u64::from(byte & 0x7f) << (7 * i);
        if byte & 0x80 == 0 {
            return Some((u32::try_from(value).ok()?, i + 1));
        }
    }
    None
}

fn array_at<const N: usize>(data: &[u8], offset: usize) -> Option<[u8; N]> {
    data.get(offset..offset.checked_add(N)?)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_little_endian_and_never_read_past_the_end() {
        let data = [1, 2, 3, 4, 5, 6, 7, 8];
        assert_eq!(u32_at(&data, 4), Some(0x0807_0605));
        assert_eq!(u64_at(&data, 0), Some(0x0807_0605_0403_0201));
        assert_eq!(u64_at(&data, 1), None);
        assert_eq!(u32_at(&data, usize::MAX), None);
    }

    #[test]
    fn varints_end_after_five_bytes() {
        assert_eq!(varint_at(&[0x05], 0), Some((5, 1)));
        assert_eq!(varint_at(&[0x00, 0x96, 0x01], 1), Some((150, 2)));
        assert_eq!(varint_at(&[0x80], 0), None);
        assert_eq!(varint_at(&[0xff, 0xff, 0xff, 0xff, 0x0f], 0), Some((u32::MAX, 5)));
        assert_eq!(varint_at(&[0xff, 0xff, 0xff, 0xff, 0x1f], 0), None);
        assert_eq!(varint_at(&[0x80, 0x80, 0x80, 0x80, 0x80, 0x01], 0), None);
    }
}
