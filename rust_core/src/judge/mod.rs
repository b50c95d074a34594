//! Whether two pictures or two texts that look alike are copies of one, with evidence.

pub mod picture;
pub mod text;
