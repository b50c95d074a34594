//! One block of memory for all arrays of a batch.
//!
//! The arrays lie one after the other in the order of [`Field::ALL`], each at a multiple of 64 bytes,
//! in the byte order of the machine; whoever takes the block needs their shapes and offsets, and
//! copies nothing. The memory is zero but for the pixels, which may hold those of an earlier batch.
//!
//! Numbers of another type than the field's, or more or fewer than its shape has, are a defect of the
//! caller and panic.

use std::ops::Range;
use std::sync::{Arc, Weak};

use bytemuck::Pod;

use super::fields::{Dtype, Field, Sizes};
use super::pool::Pool;

/// Where an array lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Its dimensions.
    pub shape: Vec<usize>,
    /// Bytes from the start of the memory.
    pub offset: usize,
}

/// Every array begins at a multiple of this.
const ALIGNMENT: usize = 64;

/// The memory of a batch and what lies where in it.
#[derive(Debug)]
pub struct Arena {
    memory: Box<[u8]>,
    /// By field.
    places: Vec<Place>,
    pool: Weak<Pool>,
}

/// A number that an array can hold.
pub trait Number: Pod {
    /// Its type.
    const DTYPE: Dtype;
}

impl Number for u8 {
    const DTYPE: Dtype = Dtype::UInt8;
}

impl Number for i32 {
    const DTYPE: Dtype = Dtype::Int32;
}

impl Number for i64 {
    const DTYPE: Dtype = Dtype::Int64;
}

impl Number for f32 {
    const DTYPE: Dtype = Dtype::Float32;
}

impl Arena {
    /// Memory for a batch of these sizes, zero but for the pixels.
    pub fn new(sizes: &Sizes, pool: &Arc<Pool>) -> Self {
        let mut end = 0;
        let mut places = Vec::with_capacity(Field::ALL.len());
        for &field in Field::ALL {
            let shape = sizes.shape(field);
            let bytes = shape.iter().product::<usize>() * field.dtype().bytes();
            places.push(Place { shape, offset: end });
            end = (end + bytes).next_multiple_of(ALIGNMENT);
        }
        let (mut memory, used) = pool.take(end + ALIGNMENT);
        let skip = memory.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT);
        for place in &mut places {
            place.offset += skip;
        }
        if used {
            let Place { shape, offset } = &places[Field::PixelValues as usize];
            memory[..*offset].fill(0);
            memory[*offset + shape.iter().product::<usize>()..].fill(0);
        }
        Self { memory, places, pool: Arc::downgrade(pool) }
    }

    /// Bytes of the memory.
    pub fn bytes(&self) -> usize {
        self.memory.len()
    }

    /// The memory itself, where it lies, where each field lies in it, in the order of
    /// [`Field::ALL`], and the pool that it may go back to.
    pub fn into_parts(self) -> (Box<[u8]>, Vec<Place>, Weak<Pool>) {
        (self.memory, self.places, self.pool)
    }

    /// The numbers of an array.
    ///
    /// # Panics
    ///
    /// If its numbers are of another type.
    pub fn values<T: Number>(&self, field: Field) -> &[T] {
        bytemuck::cast_slice(&self.memory[self.range::<T>(field)])
    }

    /// As [`Arena::values`], to be written.
    ///
    /// # Panics
    ///
    /// As [`Arena::values`].
    pub fn values_mut<T: Number>(&mut self, field: Field) -> &mut [T] {
        let range = self.range::<T>(field);
        bytemuck::cast_slice_mut(&mut self.memory[range])
    }

    fn range<T: Number>(&self, field: Field) -> Range<usize> {
        assert_eq!(T::DTYPE, field.dtype(), "type of {}", field.name());
        let Place { shape, offset } = &self.places[field as usize];
        *offset..offset + shape.iter().product::<usize>() * T::DTYPE.bytes()
    }

    /// Fill an array.
    ///
    /// # Panics
    ///
    /// If the values are of another type, or more or fewer than the array has.
    pub fn write<T: Number>(&mut self, field: Field, values: impl IntoIterator<Item = T>) {
        let places = self.values_mut(field);
        let (length, mut written) = (places.len(), 0);
        let mut values = values.into_iter();
        for (place, value) in places.iter_mut().zip(values.by_ref()) {
            *place = value;
            written += 1;
        }
        assert!(written == length && values.next().is_none(), "length of {}", field.name());
    }

    /// Fill an array with rows, one after the other; the quick way for long ones.
    ///
    /// # Panics
    ///
    /// As [`Arena::write`].
    pub fn write_rows<'a, T: Number>(
        &mut self,
        field: Field,
        rows: impl IntoIterator<Item = &'a [T]>,
    ) {
        let mut places = self.values_mut(field);
        for row in rows {
            assert!(row.len() <= places.len(), "length of {}", field.name());
            let (here, after) = places.split_at_mut(row.len());
            here.copy_from_slice(row);
            places = after;
        }
        assert!(places.is_empty(), "length of {}", field.name());
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;

    fn sizes() -> Sizes {
        let block = vec![3, 2, 2];
        Sizes { tokens: 5, sequences: 2, images: 1, blocks: 2, block, pairs: 1, ..Sizes::default() }
    }

    #[test]
    fn arrays_lie_apart_in_the_order_of_the_table() {
        let sizes = Sizes { positions: Some(3), ..sizes() };
        let mut arena = Arena::new(&sizes, &Arc::default());
        arena.write(Field::InputIds, 1..6);
        arena.write_rows(Field::PositionIds, [[7; 5].as_slice(); 3]);
        arena.values_mut::<u8>(Field::PixelValues).fill(9);
        assert_eq!(arena.values::<i32>(Field::InputIds), [1, 2, 3, 4, 5]);
        assert_eq!(arena.values::<i32>(Field::PositionIds), [7; 15]);
        assert_eq!(arena.values::<i32>(Field::CuSeqlens), [0; 3]);
        assert_eq!(arena.values::<i64>(Field::PairRow), [0]);
        let start = arena.memory.as_ptr() as usize;
        let (memory, places, _) = arena.into_parts();
        assert_eq!(memory.as_ptr() as usize, start);
        let mut end = 0;
        for (&field, place) in Field::ALL.iter().zip(&places) {
            assert_eq!((start + place.offset) % ALIGNMENT, 0);
            assert!(place.offset >= end);
            assert_eq!(place.shape, sizes.shape(field));
            end = place.offset + place.shape.iter().product::<usize>() * field.dtype().bytes();
        }
        assert!(end <= memory.len());
    }

    #[test]
    fn another_type_or_length_is_refused() {
        let mut arena = Arena::new(&sizes(), &Arc::default());
        let mut refused = |write: &dyn Fn(&mut Arena)| {
            catch_unwind(AssertUnwindSafe(|| write(&mut arena))).is_err()
        };
        assert!(!refused(&|arena| arena.write(Field::PairMargin, [0.5_f32])));
        assert!(refused(&|arena| arena.write(Field::PairMargin, [1_i32])));
        assert!(refused(&|arena| arena.write(Field::PairMargin, [0.5_f32, 0.5])));
        assert!(refused(&|arena| arena.write(Field::InputIds, [1_i32])));
        assert!(refused(&|arena| arena.write_rows(Field::InputIds, [[1_i32; 6].as_slice()])));
        assert!(refused(&|arena| arena.write_rows(Field::InputIds, [[1_i32; 4].as_slice()])));
    }
}
