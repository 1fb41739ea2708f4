//! The runtime's own histograms of durations.
//!
//! `timeHistogram` and `timeHistogramMetricsBuckets` in runtime/histogram.go @ go1.18 to go1.27.

use super::{Fault, Histogram, Layout, memory::Block};

/// Since Go 1.20: 40 buckets of 4, from 2^8 ns on, and an overflow.
const SINCE_1_20: Shape = Shape { sub_bits: 2, first_bit: 8, rows: 40, overflow: true };
/// Before: 45 buckets of 16, from 2^4 ns on.
const BEFORE_1_20: Shape = Shape { sub_bits: 4, first_bit: 4, rows: 45, overflow: false };

struct Shape {
    /// The number of bits after the highest by which a row is divided.
    sub_bits: u32,
    /// The highest bit of values in the second row. The first row has all lower values.
    first_bit: u32,
    rows: u32,
    overflow: bool,
}

impl Shape {
    fn count(&self) -> u32 {
        self.rows << self.sub_bits
    }

    /// Returns the lower bounds in seconds, from minus infinity to infinity.
    fn bounds(&self) -> Vec<f64> {
        let mut bounds = vec![f64::NEG_INFINITY];
        for row in 0..self.rows {
            for sub in 0..1_u64 << self.sub_bits {
                let nanos = match row.checked_sub(1) {
                    None => sub << (self.first_bit - self.sub_bits),
                    Some(row) => {
                        let bit = self.first_bit + row;
                        1 << bit | sub << (bit - self.sub_bits)
                    }
                };
                bounds.push(seconds(nanos));
            }
        }
        if self.overflow {
            bounds.push(seconds(1 << (self.first_bit + self.rows - 1)));
        }
        bounds.push(f64::INFINITY);
        bounds
    }
}

#[expect(clippy::cast_precision_loss, reason = "powers of two times small numbers; Go does the same")]
fn seconds(nanos: u64) -> f64 {
    nanos as f64 / 1e9
}

/// Reads the histogram at `offset` of a block.
pub(super) fn read(block: &Block, offset: u32, layout: &Layout) -> Result<Histogram, Fault> {
    let underflow = layout.get("timeHistogram.underflow")?;
    let shape = if layout.find("timeHistogram.overflow").is_some() { SINCE_1_20 } else { BEFORE_1_20 };
    if underflow != shape.count() * 8 {
        return Err(Fault::Implausible("the size of a histogram"));
    }
    let mut counts = vec![block.u64(offset.saturating_add(underflow))?];
    counts.extend(block.u64s(offset, shape.count())?);
    if shape.overflow {
        counts.push(block.u64(offset.saturating_add(underflow).saturating_add(8))?);
    }
    Ok(Histogram { counts, bounds: shape.bounds() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_those_of_the_runtime() {
        let new = SINCE_1_20.bounds();
        assert_eq!(new.len(), 163);
        assert_eq!(new[1..6], [0.0, 6.4e-8, 1.28e-7, 1.92e-7, 2.56e-7]);
        assert_eq!(new[161..], [140_737.488_355_328, f64::INFINITY]);
        let old = BEFORE_1_20.bounds();
        assert_eq!(old.len(), 722);
        assert_eq!(old[1..3], [0.0, 1e-9]);
        assert_eq!(old[17..19], [1.6e-8, 1.7e-8]);
    }
}
