//! Whether two pictures or two texts that look alike are copies of one.

pub mod picture;
