//! Tensor metadata and strided reads.

use std::io;

use half::{bf16, f16, slice::HalfBitsSliceExt as _, slice::HalfFloatSliceExt as _};

use super::{ElementType, source::Source};

/// Size of the conversion buffer in bytes.
const CHUNK_BYTES: usize = 1 << 20;

/// Maximum number of dimensions of a tensor, as in PyTorch.
pub(super) const MAX_DIMS: usize = 64;

/// Data type and shape of a tensor in a weight file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Data type.
    pub dtype: ElementType,
    /// Dimensions, outermost first; empty for a scalar.
    pub shape: Vec<usize>,
    pub(super) location: Location,
}

impl TensorInfo {
    /// Returns the number of elements.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Returns `true` if there are no elements.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Location of a tensor's elements in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Location {
    /// Index of the file in a sharded set.
    pub(super) shard: usize,
    /// Byte offset of the first element.
    pub(super) start: u64,
    /// Strides in elements; `None` for elements that are contiguous in row-major order.
    pub(super) strides: Option<Vec<u64>>,
}

/// Returns the product of `shape`, or `None` if it (or the product of its non-zero entries)
/// overflows.
pub(super) fn element_count(shape: &[usize]) -> Option<usize> {
    let bound = shape
        .iter()
        .try_fold(1_usize, |n, d| n.checked_mul((*d).max(1)))?;
    Some(if shape.contains(&0) { 0 } else { bound })
}

/// Validates a view of `shape` and `strides` that starts `offset` elements into a storage of
/// `available` elements. The view must stay in the storage and its dimensions must nest, so that it
/// has no overlapping elements and is no larger than its storage. Returns the strides unless the
/// view is contiguous.
pub(super) fn check_view(
    shape: &[usize],
    strides: &[u64],
    offset: u64,
    available: u64,
) -> Result<Option<Vec<u64>>, String> {
    if shape.len() > MAX_DIMS {
        return Err(format!(
            "has {} dimensions, at most {MAX_DIMS} are possible",
            shape.len()
        ));
    }
    if shape.len() != strides.len() {
        return Err(format!(
            "has {} dimensions but {} strides",
            shape.len(),
            strides.len()
        ));
    }
    let count =
        element_count(shape).ok_or_else(|| format!("has the impossible shape {shape:?}"))?;
    if count == 0 {
        return Ok(None);
    }
    let mut dims: Vec<(u64, u64)> = shape
        .iter()
        .zip(strides)
        .filter(|(d, _)| **d > 1)
        .map(|(d, s)| (*s, *d as u64))
        .collect();
    // Innermost first: each stride must exceed the span of the inner dimensions.
    dims.sort_unstable();
    let outside = || {
        format!(
            "of shape {shape:?} and strides {strides:?} at offset {offset} does not fit its \
             storage of {available} elements; fetch the file again"
        )
    };
    let mut last = 0_u64;
    for (stride, dim) in dims {
        if stride <= last {
            return Err(format!(
                "has overlapping strides {strides:?} (an expanded view); \
                 save it after `.contiguous()`"
            ));
        }
        last = (dim - 1)
            .checked_mul(stride)
            .and_then(|span| last.checked_add(span))
            .ok_or_else(outside)?;
    }
    if offset
        .checked_add(last)
        .is_none_or(|last| last >= available)
    {
        return Err(outside());
    }
    let mut row_major = 1;
    let contiguous = shape.iter().zip(strides).rev().all(|(d, s)| {
        let fits = *d == 1 || *s == row_major;
        row_major *= *d as u64;
        fits
    });
    Ok((!contiguous).then(|| strides.to_vec()))
}

/// Reads a float tensor, converted to 32 bits, in row-major order.
pub(super) fn read_floats(source: &Source<'_>, tensor: &TensorInfo) -> io::Result<Vec<f32>> {
    if tensor.location.strides.is_none() {
        match tensor.dtype {
            ElementType::F32 => return read_f32(source, tensor),
            ElementType::F16 => {
                return read_halves(source, tensor, |bits, out| {
                    bits.reinterpret_cast::<f16>().convert_to_f32_slice(out);
                });
            }
            ElementType::BF16 => {
                return read_halves(source, tensor, |bits, out| {
                    bits.reinterpret_cast::<bf16>().convert_to_f32_slice(out);
                });
            }
            _ => {}
        }
    }
    match tensor.dtype {
        ElementType::F64 => read(source, tensor, |b| f64::from_le_bytes(b) as f32),
        ElementType::F32 => read(source, tensor, f32::from_le_bytes),
        ElementType::F16 => read(source, tensor, |b| f16::from_le_bytes(b).to_f32()),
        ElementType::BF16 => read(source, tensor, |b| bf16::from_le_bytes(b).to_f32()),
        _ => Err(io::ErrorKind::InvalidInput.into()),
    }
}

/// Reads an integer or boolean tensor in row-major order.
pub(super) fn read_integers(source: &Source<'_>, tensor: &TensorInfo) -> io::Result<Vec<i64>> {
    match tensor.dtype {
        ElementType::I64 => read(source, tensor, i64::from_le_bytes),
        ElementType::I32 => read(source, tensor, |b| i32::from_le_bytes(b).into()),
        ElementType::I16 => read(source, tensor, |b| i16::from_le_bytes(b).into()),
        ElementType::I8 => read(source, tensor, |b| i8::from_le_bytes(b).into()),
        ElementType::U8 => read(source, tensor, |[b]| b.into()),
        ElementType::Bool => read(source, tensor, |[b]| (b != 0).into()),
        _ => Err(io::ErrorKind::InvalidInput.into()),
    }
}

/// Reads contiguous 32-bit floats directly into the result.
fn read_f32(source: &Source<'_>, tensor: &TensorInfo) -> io::Result<Vec<f32>> {
    let mut values = vec![0.0_f32; tensor.len()];
    source.read_exact_at(bytemuck::cast_slice_mut(&mut values), tensor.location.start)?;
    if cfg!(target_endian = "big") {
        for value in &mut values {
            *value = f32::from_bits(value.to_bits().swap_bytes());
        }
    }
    Ok(values)
}

/// Reads contiguous 16-bit floats, converting one chunk at a time.
fn read_halves(
    source: &Source<'_>,
    tensor: &TensorInfo,
    convert: impl Fn(&[u16], &mut [f32]),
) -> io::Result<Vec<f32>> {
    let mut values = vec![0.0_f32; tensor.len()];
    let mut chunk = vec![0_u16; values.len().min(CHUNK_BYTES / 2)];
    let mut offset = tensor.location.start;
    for part in values.chunks_mut(CHUNK_BYTES / 2) {
        let bits = &mut chunk[..part.len()];
        source.read_exact_at(bytemuck::cast_slice_mut(bits), offset)?;
        if cfg!(target_endian = "big") {
            bits.iter_mut().for_each(|b| *b = b.swap_bytes());
        }
        convert(bits, part);
        offset += 2 * part.len() as u64;
    }
    Ok(values)
}

/// Reads values of any type and strides, in row-major order of the shape.
fn read<T: Copy + Default, const SIZE: usize>(
    source: &Source<'_>,
    tensor: &TensorInfo,
    decode: impl Fn([u8; SIZE]) -> T,
) -> io::Result<Vec<T>> {
    let mut values = vec![T::default(); tensor.len()];
    if values.is_empty() {
        return Ok(values);
    }
    // Dimensions as (stride in the file, stride in the result, size), sorted by the stride in the
    // file, outermost first: the file is read sequentially, the result is scattered.
    let mut dims = Vec::new();
    let mut row_major = 1;
    for (axis, size) in tensor.shape.iter().enumerate().rev() {
        let stride = match &tensor.location.strides {
            Some(strides) => strides[axis],
            None => row_major as u64,
        };
        if *size > 1 {
            dims.push((stride, row_major, *size));
        }
        row_major *= size;
    }
    dims.sort_unstable_by_key(|d| std::cmp::Reverse(d.0));
    // Merge adjacent contiguous dimensions, for a long inner loop.
    dims.dedup_by(|inner, outer| {
        let adjacent = outer.0 == inner.0 * inner.2 as u64 && outer.1 == inner.1 * inner.2;
        if adjacent {
            *outer = (inner.0, inner.1, inner.2 * outer.2);
        }
        adjacent
    });
    let (stride, step, size) = dims.pop().unwrap_or((1, 1, 1));

    let end = source.len();
    let mut chunk = vec![0; CHUNK_BYTES.min(values.len().saturating_mul(SIZE).max(1 << 12))];
    // The buffer is empty at first. Offsets only grow, because no view overlaps itself, so no byte
    // is read twice.
    let (mut loaded, mut loaded_end) = (0_u64, 0_u64);
    let mut counters = vec![0; dims.len()];
    let (mut from, mut to) = (0_u64, 0);
    loop {
        for i in 0..size {
            let at = tensor.location.start + (from + i as u64 * stride) * SIZE as u64;
            if at + SIZE as u64 > loaded_end {
                let count = (chunk.len() as u64).min(end.saturating_sub(at));
                source.read_exact_at(&mut chunk[..count as usize], at)?;
                (loaded, loaded_end) = (at, at + count);
            }
            let bytes = chunk[..(loaded_end - loaded) as usize]
                .get((at - loaded) as usize..)
                .and_then(<[u8]>::first_chunk)
                .ok_or(io::ErrorKind::UnexpectedEof)?;
            values[to + i * step] = decode(*bytes);
        }
        // Advance the outer dimensions like an odometer.
        let mut axis = dims.len();
        loop {
            if axis == 0 {
                return Ok(values);
            }
            axis -= 1;
            let (stride, step, size) = dims[axis];
            counters[axis] += 1;
            if counters[axis] < size {
                from += stride;
                to += step;
                break;
            }
            counters[axis] = 0;
            from -= (size as u64 - 1) * stride;
            to -= (size - 1) * step;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn overflowing_shape_has_no_count() {
        assert_eq!(element_count(&[]), Some(1));
        assert_eq!(element_count(&[2, 0, 3]), Some(0));
        assert_eq!(element_count(&[usize::MAX, 2]), None);
        assert_eq!(element_count(&[0, usize::MAX, 2]), None);
    }

    #[test]
    fn out_of_bounds_and_overlapping_views_are_rejected() {
        assert_eq!(check_view(&[2, 3], &[3, 1], 0, 6), Ok(None));
        assert_eq!(check_view(&[3, 2], &[1, 3], 0, 6), Ok(Some(vec![1, 3])));
        assert_eq!(check_view(&[1, 3], &[99, 1], 0, 3), Ok(None));
        assert_eq!(check_view(&[], &[], 5, 6), Ok(None));
        assert_eq!(check_view(&[0, 7], &[7, 1], 0, 0), Ok(None));
        let reason = |shape: &[usize], strides: &[u64], offset, available| {
            check_view(shape, strides, offset, available).unwrap_err()
        };
        assert!(reason(&[2, 3], &[3, 1], 1, 6).contains("does not fit its storage of 6"));
        assert!(reason(&[], &[], 6, 6).contains("does not fit"));
        assert!(reason(&[2], &[u64::MAX], 2, 6).contains("does not fit"));
        assert!(reason(&[3], &[u64::MAX], 0, 6).contains("does not fit"));
        assert!(reason(&[1 << 40], &[0], 0, 1).contains("expanded view"));
        assert!(reason(&[3, 3], &[1, 1], 0, 9).contains("expanded view"));
        assert!(reason(&[2], &[], 0, 9).contains("1 dimensions but 0 strides"));
        assert!(reason(&[1; 65], &[1; 65], 0, 9).contains("65 dimensions"));
        assert!(reason(&[1 << 62, 8], &[8, 1], 0, 9).contains("impossible shape"));
    }

    #[test]
    fn strided_view_of_many_chunks_equals_contiguous_copy() {
        let (rows, columns) = (700_usize, 1000_usize);
        let bytes: Vec<u8> = (0..rows * columns)
            .flat_map(|i| (i as f32).to_le_bytes())
            .collect();
        let source = Source::Bytes(Cow::Owned(bytes));
        let mut tensor = TensorInfo {
            dtype: ElementType::F32,
            shape: vec![columns, rows],
            location: Location {
                shard: 0,
                start: 0,
                strides: Some(vec![1, columns as u64]),
            },
        };
        let values = read_floats(&source, &tensor).unwrap();
        for (i, value) in values.iter().enumerate() {
            let (c, r) = (i / rows, i % rows);
            assert_eq!(*value, (r * columns + c) as f32);
        }
        // Every third column of the last rows.
        tensor.shape = vec![10, 333];
        tensor.location.start = 4 * (690 * columns as u64);
        tensor.location.strides = Some(vec![columns as u64, 3]);
        let values = read_floats(&source, &tensor).unwrap();
        assert_eq!(values[333 * 9 + 332], (699 * columns + 996) as f32);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        /// Reading a permuted and sliced counter tensor agrees with index arithmetic.
        #[test]
        fn strided_reads_agree_with_index_arithmetic(
            sizes in prop::collection::vec(1_usize..5, 0..5),
            order in Just(vec![0_usize, 1, 2, 3, 4]).prop_shuffle(),
            pad in 1_u64..3,
        ) {
            let order: Vec<usize> = order.into_iter().filter(|i| *i < sizes.len()).collect();
            let mut strides = vec![0; sizes.len()];
            let mut span = pad;
            for axis in &order {
                strides[*axis] = span;
                span *= sizes[*axis] as u64 * pad;
            }
            let bytes: Vec<u8> = (0..=span as i64).flat_map(i64::to_le_bytes).collect();
            let view = check_view(&sizes, &strides, 1, span + 1);
            prop_assert!(view.is_ok());
            let tensor = TensorInfo {
                dtype: ElementType::I64,
                shape: sizes.clone(),
                location: Location { shard: 0, start: 8, strides: view.unwrap() },
            };
            let values = read_integers(&Source::Bytes(Cow::Owned(bytes)), &tensor).unwrap();
            for (i, value) in values.iter().enumerate() {
                let (mut rest, mut at) = (i, 1);
                for axis in (0..sizes.len()).rev() {
                    at += (rest % sizes[axis]) as u64 * strides[axis];
                    rest /= sizes[axis];
                }
                prop_assert_eq!(*value, at as i64);
            }
        }
    }
}
