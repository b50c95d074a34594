//! One block of memory for everything of a batch.
//!
//! The fields lie one after the other, each at a multiple of 64 bytes, in the byte order of the
//! machine; whoever takes the block needs their names, kinds, shapes and offsets, and copies
//! nothing. Fresh memory is zero, which is what a picture that could not be read consists of.

/// The kind of a field's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Unsigned bytes.
    UInt8,
    /// Signed 32 bits.
    Int32,
    /// Signed 64 bits.
    Int64,
    /// 32-bit floats.
    Float32,
}

impl Kind {
    /// Its name in numpy.
    pub fn name(self) -> &'static str {
        match self {
            Self::UInt8 => "uint8",
            Self::Int32 => "int32",
            Self::Int64 => "int64",
            Self::Float32 => "float32",
        }
    }

    /// Bytes of one number.
    pub fn bytes(self) -> usize {
        match self {
            Self::UInt8 => 1,
            Self::Int32 | Self::Float32 => 4,
            Self::Int64 => 8,
        }
    }
}

/// Where one array of a batch lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field {
    /// What it is called.
    pub name: &'static str,
    /// What its numbers are.
    pub kind: Kind,
    /// Its dimensions.
    pub shape: Vec<usize>,
    /// Bytes from the start of the memory.
    pub offset: usize,
}

impl Field {
    /// Its length in bytes.
    pub fn bytes(&self) -> usize {
        self.shape.iter().product::<usize>() * self.kind.bytes()
    }
}

/// Every field begins at a multiple of this.
const ALIGNMENT: usize = 64;

/// The memory of a batch and what lies where in it.
#[derive(Debug, Clone, Default)]
pub struct Arena {
    memory: Vec<u8>,
    fields: Vec<Field>,
}

impl Arena {
    /// Zeroed memory for fields of these names, kinds and shapes.
    pub fn new(shapes: Vec<(&'static str, Kind, Vec<usize>)>) -> Self {
        let mut end = 0;
        let mut fields = Vec::with_capacity(shapes.len());
        for (name, kind, shape) in shapes {
            let field = Field { name, kind, shape, offset: end };
            end = (end + field.bytes()).next_multiple_of(ALIGNMENT);
            fields.push(field);
        }
        let memory = vec![0; end + ALIGNMENT];
        let skip = memory.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT);
        for field in &mut fields {
            field.offset += skip;
        }
        Self { memory, fields }
    }

    /// What lies where.
    pub fn fields(&self) -> &[Field] {
        &self.fields
    }

    /// Bytes of the memory.
    pub fn bytes(&self) -> usize {
        self.memory.len()
    }

    /// The memory itself, where it lies, and what lies where in it.
    pub fn into_parts(self) -> (Box<[u8]>, Vec<Field>) {
        // Made at its full length, it has no spare capacity to give back, so it does not move.
        (self.memory.into_boxed_slice(), self.fields)
    }

    /// The bytes of a field; none where there is no such field.
    pub fn get(&self, name: &str) -> &[u8] {
        let field = self.fields.iter().find(|field| field.name == name);
        field.map_or(&[], |field| &self.memory[field.offset..][..field.bytes()])
    }

    /// As [`Arena::get`], to be written.
    pub fn get_mut(&mut self, name: &str) -> &mut [u8] {
        match self.fields.iter().find(|field| field.name == name) {
            Some(field) => &mut self.memory[field.offset..][..field.bytes()],
            None => &mut [],
        }
    }

    /// Fill a field of 32-bit numbers.
    pub fn write_i32(&mut self, name: &str, values: impl IntoIterator<Item = i32>) {
        let places = self.get_mut(name).as_chunks_mut::<4>().0;
        for (place, value) in places.iter_mut().zip(values) {
            *place = value.to_ne_bytes();
        }
    }

    /// Fill a field of 32-bit numbers with rows, one after the other; the quick way for long ones.
    pub fn write_i32_rows<'a>(&mut self, name: &str, rows: impl IntoIterator<Item = &'a [i32]>) {
        let mut places = self.get_mut(name).as_chunks_mut::<4>().0;
        for row in rows {
            let (here, after) = places.split_at_mut(row.len().min(places.len()));
            for (place, value) in here.iter_mut().zip(row) {
                *place = value.to_ne_bytes();
            }
            places = after;
        }
    }

    /// Fill a field of 64-bit numbers.
    pub fn write_i64(&mut self, name: &str, values: impl IntoIterator<Item = i64>) {
        let places = self.get_mut(name).as_chunks_mut::<8>().0;
        for (place, value) in places.iter_mut().zip(values) {
            *place = value.to_ne_bytes();
        }
    }

    /// Fill a field of floats.
    pub fn write_f32(&mut self, name: &str, values: impl IntoIterator<Item = f32>) {
        let places = self.get_mut(name).as_chunks_mut::<4>().0;
        for (place, value) in places.iter_mut().zip(values) {
            *place = value.to_ne_bytes();
        }
    }
}
