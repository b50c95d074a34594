//! The arrays of a batch, declared once: name, type and axes of each.
//!
//! The memory of a batch, what writes it, and the names that Python reads all follow from this table.

/// The type of an array's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dtype {
    /// Unsigned bytes.
    UInt8,
    /// Signed 32 bits.
    Int32,
    /// Signed 64 bits.
    Int64,
    /// 32-bit floats.
    Float32,
}

impl Dtype {
    /// Its name in numpy and torch.
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

/// What an axis of an array counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Axis {
    /// Tokens of the batch, those of images among them.
    Tokens,
    /// No axis, or one of time, row and column where the model tells them apart.
    Positions,
    /// Sequences.
    Sequences,
    /// Where each sequence begins, and the end of the last.
    SequenceBounds,
    /// Images and runs of frames in the sequences.
    Placeholders,
    /// Images and videos, each once.
    Images,
    /// Where the blocks of each image or video begin, and the end of the last.
    ImageBounds,
    /// Blocks of pixels of all images and videos.
    Blocks,
    /// The axes of one block: a tile has three, a patch one.
    Block,
    /// Pairs.
    Pairs,
    /// Sidecar columns of pairs.
    PairColumns,
    /// Sidecar columns of responses.
    SequenceColumns,
    /// Always so many.
    Exactly(usize),
}

impl Axis {
    /// How it is written in a shape.
    pub fn symbol(self) -> String {
        let symbol = match self {
            Self::Tokens => "T",
            Self::Positions | Self::Block => "...",
            Self::Sequences => "S",
            Self::SequenceBounds => "S + 1",
            Self::Placeholders => "N",
            Self::Images => "M",
            Self::ImageBounds => "M + 1",
            Self::Blocks => "B",
            Self::Pairs => "P",
            Self::PairColumns | Self::SequenceColumns => "C",
            Self::Exactly(count) => return count.to_string(),
        };
        symbol.to_owned()
    }
}

macro_rules! fields {
    ($(
        $field:ident $name:literal $dtype:ident [$($axis:ident $(($count:literal))?),+] $doc:literal
    )+) => {
        /// An array of a batch.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Field { $(#[doc = $doc] $field),+ }

        impl Field {
            /// All of them, in the order in which they lie in memory.
            pub const ALL: &[Self] = &[$(Self::$field),+];

            /// Its name in Python.
            pub fn name(self) -> &'static str {
                match self { $(Self::$field => $name),+ }
            }

            /// The type of its numbers.
            pub fn dtype(self) -> Dtype {
                match self { $(Self::$field => Dtype::$dtype),+ }
            }

            /// Its axes, the outermost first.
            pub fn axes(self) -> &'static [Axis] {
                match self { $(Self::$field => &[$(Axis::$axis $(($count))?),+]),+ }
            }
        }
    };
}

fields! {
    InputIds "input_ids" Int32 [Tokens] "Token ids, image tokens written out."
    PositionIds "position_ids" Int32 [Positions, Tokens] "One number a token, or three."
    CuSeqlens "cu_seqlens" Int32 [SequenceBounds] "Where each sequence begins, and the end."
    PromptLengths "prompt_lengths" Int32 [Sequences] "Tokens that are not the response's."
    PrefixSequence "prefix_sequence" Int32 [Sequences] "The sequence before it, or -1."
    SequenceQuery "sequence_query" Int64 [Sequences] "Row of queries."
    SequenceResponse "sequence_response" Int64 [Sequences] "Row of responses, or -1."
    PlaceholderSequence "placeholder_sequence" Int32 [Placeholders] "The sequence it is in."
    PlaceholderStart "placeholder_start" Int32 [Placeholders] "Its first image token."
    PlaceholderLength "placeholder_length" Int32 [Placeholders] "Its image tokens."
    PlaceholderImage "placeholder_image" Int32 [Placeholders] "The image or video it stands for."
    PlaceholderOffset "placeholder_offset" Int32 [Placeholders] "Its first feature of those."
    ImageBlob "image_blob" Int64 [Images] "Blob id, of a video's first frame."
    ImageSizes "image_sizes" Int32 [Images, Exactly(2)] "Height and width as seen."
    ImageGridThw "image_grid_thw" Int32 [Images, Exactly(3)] "Groups, rows, columns."
    ImageFrames "image_frames" Int32 [Images] "Frames of a video, 0 of an image."
    ImageBlocks "image_blocks" Int32 [ImageBounds] "Where its blocks begin, and the end."
    ImageUnreadable "image_unreadable" UInt8 [Images] "1 where it is blank."
    PixelValues "pixel_values" UInt8 [Blocks, Block] "Tiles or patches."
    PairRow "pair_row" Int64 [Pairs] "Row of pairs."
    PairQuery "pair_query" Int64 [Pairs] "Row of queries."
    PairChosen "pair_chosen" Int32 [Pairs] "The chosen sequence."
    PairRejected "pair_rejected" Int32 [Pairs] "The rejected sequence."
    PairMargin "pair_margin" Float32 [Pairs] "NaN where unknown."
    PairWeight "pair_weight" Float32 [Pairs] "0 where an image is blank."
    PairFlags "pair_flags" Int32 [Pairs] "The bits of docs/shard-format.md."
    PairColumns "pair_columns" Float32 [PairColumns, Pairs] "Sidecar columns of pairs."
    SequenceColumns "sequence_columns" Float32 [SequenceColumns, Sequences]
        "Sidecar columns of responses."
}

impl Field {
    /// Its shape in words, such as `[S + 1]`.
    pub fn axes_named(self) -> String {
        let symbols: Vec<String> = self.axes().iter().map(|axis| axis.symbol()).collect();
        format!("[{}]", symbols.join(", "))
    }
}

/// How many of everything a batch holds, from which all shapes follow.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sizes {
    /// Tokens.
    pub tokens: usize,
    /// Numbers a token has in its position, where that is an axis.
    pub positions: Option<usize>,
    /// Sequences.
    pub sequences: usize,
    /// Images and runs of frames in the sequences.
    pub placeholders: usize,
    /// Images and videos.
    pub images: usize,
    /// Blocks of all images and videos.
    pub blocks: usize,
    /// The dimensions of one block.
    pub block: Vec<usize>,
    /// Pairs.
    pub pairs: usize,
    /// Sidecar columns of pairs.
    pub pair_columns: usize,
    /// Sidecar columns of responses.
    pub sequence_columns: usize,
}

impl Sizes {
    /// The dimensions of an array.
    pub fn shape(&self, field: Field) -> Vec<usize> {
        let mut shape = Vec::new();
        for axis in field.axes() {
            match axis {
                Axis::Tokens => shape.push(self.tokens),
                Axis::Positions => shape.extend(self.positions),
                Axis::Sequences => shape.push(self.sequences),
                Axis::SequenceBounds => shape.push(self.sequences + 1),
                Axis::Placeholders => shape.push(self.placeholders),
                Axis::Images => shape.push(self.images),
                Axis::ImageBounds => shape.push(self.images + 1),
                Axis::Blocks => shape.push(self.blocks),
                Axis::Block => shape.extend(&self.block),
                Axis::Pairs => shape.push(self.pairs),
                Axis::PairColumns => shape.push(self.pair_columns),
                Axis::SequenceColumns => shape.push(self.sequence_columns),
                Axis::Exactly(count) => shape.push(*count),
            }
        }
        shape
    }
}
