//! Broken pictures are errors, never panics, whatever is broken in them.

use std::sync::LazyLock;

use libjpeg_turbo_rs::{Encoder, PixelFormat};
use mmrlhf_core::image::{PictureError, decode, probe};
use proptest::prelude::*;

const WIDTH: usize = 41;
const HEIGHT: usize = 29;
const MAX_PIXELS: u64 = 1 << 20;

/// A picture with some detail everywhere, as red, green and blue.
fn pixels() -> Vec<u8> {
    (0..WIDTH * HEIGHT * 3).map(|at| (at * at / 7 + at / 11) as u8).collect()
}

fn jpeg(progressive: bool) -> Vec<u8> {
    Encoder::new(&pixels(), WIDTH, HEIGHT, PixelFormat::Rgb)
        .progressive(progressive)
        .encode()
        .expect("encodes")
}

fn png(color: png::ColorType) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, WIDTH as u32, HEIGHT as u32);
    encoder.set_color(color);
    encoder.set_palette(pixels().into_iter().take(768).collect::<Vec<u8>>());
    let samples = &pixels()[..WIDTH * HEIGHT * color.samples()];
    encoder.write_header().and_then(|mut to| to.write_image_data(samples)).expect("encodes");
    bytes
}

fn gif() -> Vec<u8> {
    let mut bytes = Vec::new();
    let palette: Vec<u8> = pixels().into_iter().take(768).collect();
    let mut encoder =
        gif::Encoder::new(&mut bytes, WIDTH as u16, HEIGHT as u16, &palette).expect("begins");
    for _ in 0..2 {
        let indices = &pixels()[..WIDTH * HEIGHT];
        let frame = gif::Frame::from_indexed_pixels(WIDTH as u16, HEIGHT as u16, indices, None);
        encoder.write_frame(&frame).expect("encodes");
    }
    drop(encoder);
    bytes
}

fn webp() -> Vec<u8> {
    let mut bytes = Vec::new();
    image_webp::WebPEncoder::new(&mut bytes)
        .encode(&pixels(), WIDTH as u32, HEIGHT as u32, image_webp::ColorType::Rgb8)
        .expect("encodes");
    bytes
}

/// The one frame of [`webp`] as an animation.
fn animated_webp() -> Vec<u8> {
    let still = webp();
    let sizes = |width: usize, height: usize| {
        [&(width as u32 - 1).to_le_bytes()[..3], &(height as u32 - 1).to_le_bytes()[..3]].concat()
    };
    let chunk =
        |name: &[u8], body: &[u8]| [name, &(body.len() as u32).to_le_bytes(), body].concat();
    let canvas = chunk(b"VP8X", &[&[2, 0, 0, 0], &sizes(WIDTH + 4, HEIGHT + 4)[..]].concat());
    let frame = [&[1, 0, 0, 1, 0, 0], &sizes(WIDTH, HEIGHT)[..], &[0; 4], &still[12..]].concat();
    let body = [b"WEBP", &canvas[..], &chunk(b"ANIM", &[0; 6]), &chunk(b"ANMF", &frame)].concat();
    chunk(b"RIFF", &body)
}

fn bmp() -> Vec<u8> {
    let stride = (WIDTH * 3).next_multiple_of(4);
    let mut bytes = b"BM\0\0\0\0\0\0\0\0\x36\0\0\0\x28\0\0\0".to_vec();
    bytes.extend((WIDTH as u32).to_le_bytes());
    bytes.extend((HEIGHT as u32).to_le_bytes());
    bytes.extend([1, 0, 24, 0]);
    bytes.resize(54, 0);
    bytes.resize(54 + stride * HEIGHT, 90);
    bytes
}

static ENCODINGS: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    vec![
        jpeg(false),
        jpeg(true),
        png(png::ColorType::Rgb),
        png(png::ColorType::Indexed),
        png(png::ColorType::Grayscale),
        gif(),
        webp(),
        animated_webp(),
        bmp(),
    ]
});

/// Decoding gives an error, or as many samples as the header announced pixels.
fn answers(bytes: &[u8]) {
    let header = probe(bytes);
    match decode(bytes, MAX_PIXELS) {
        Err(error) => assert!(!error.to_string().is_empty()),
        Ok(pixels) => {
            let header = header.expect("what decodes has a header");
            assert_eq!(
                (pixels.width, pixels.height),
                (header.width as usize, header.height as usize)
            );
            assert_eq!(pixels.data.len(), pixels.width * pixels.height * pixels.channels);
        }
    }
}

#[test]
fn whole_pictures_are_read() {
    for bytes in ENCODINGS.iter() {
        let header = probe(bytes).expect("a header");
        let pixels = decode(bytes, MAX_PIXELS).expect("pixels");
        let animated = header.format.name() == "webp" && header.width as usize > WIDTH;
        let border = if animated { 4 } else { 0 };
        assert_eq!((pixels.width, pixels.height), (WIDTH + border, HEIGHT + border));
        answers(bytes);
    }
}

#[test]
fn every_truncation_is_an_error() {
    for bytes in ENCODINGS.iter() {
        let format = probe(bytes).expect("a header").format.name();
        for length in 0..bytes.len() {
            // A first frame that is whole is enough of a GIF.
            if format != "gif" {
                let error = probe(&bytes[..length]).expect_err("it is cut");
                let expected = if length < 30 { "media" } else { "truncated_media" };
                assert!(error.reason().ends_with(expected), "{format} cut at {length}: {error}");
            }
            answers(&bytes[..length]);
        }
    }
}

#[test]
fn the_pixel_limit_holds_for_every_format() {
    for bytes in ENCODINGS.iter() {
        let header = probe(bytes).expect("a header");
        let area = u64::from(header.width) * u64::from(header.height);
        assert!(decode(bytes, area).is_ok());
        let refused = decode(bytes, area - 1).expect_err("one pixel too many");
        assert!(matches!(refused, PictureError::TooManyPixels { .. }), "{refused}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn flipped_bits_get_an_answer(
        encoding in 0_usize..9,
        flips in prop::collection::vec((any::<prop::sample::Index>(), 0_u8..8), 1..6),
        // Headers are a small part of the bytes and the most delicate one.
        in_header: bool,
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut bytes = ENCODINGS[encoding].clone();
        let reach = if in_header { bytes.len().min(64) } else { bytes.len() };
        for (at, bit) in flips {
            bytes[at.index(reach)] ^= 1 << bit;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        answers(&bytes);
    }

    #[test]
    fn any_bytes_after_any_signature_get_an_answer(
        encoding in 0_usize..9,
        kept in 0_usize..40,
        tail in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        let head = &ENCODINGS[encoding][..kept];
        answers(&[head, &tail].concat());
    }
}
