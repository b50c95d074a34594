//! Names of rows by their content, the same in every dataset: BLAKE3, its first 128 bits.

/// Name of a query, response or pair.
pub type Id = [u8; 16];
/// Name of a blob.
pub type ContentHash = [u8; 32];

fn first_half(hasher: &blake3::Hasher) -> Id {
    let mut id = [0; 16];
    id.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    id
}

fn tokens_and_media<'a>(
    hasher: &mut blake3::Hasher,
    tokens: &[u32],
    media: impl ExactSizeIterator<Item = &'a ContentHash>,
) {
    hasher.update(&(tokens.len() as u64).to_le_bytes());
    for chunk in tokens.chunks(256) {
        let bytes: Vec<u8> = chunk.iter().flat_map(|token| token.to_le_bytes()).collect();
        hasher.update(&bytes);
    }
    hasher.update(&(media.len() as u64).to_le_bytes());
    for hash in media {
        hasher.update(hash);
    }
}

/// `qid`: the letter q, tokens, hashes of the media, seconds of the frames.
pub fn query<'a>(
    prompt: &[u32],
    media: impl ExactSizeIterator<Item = &'a ContentHash>,
    seconds: &[f32],
) -> Id {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"q");
    tokens_and_media(&mut hasher, prompt, media);
    hasher.update(&(seconds.len() as u64).to_le_bytes());
    for second in seconds {
        hasher.update(&second.to_le_bytes());
    }
    first_half(&hasher)
}

/// `rid`: the letter r, the query, tokens, hashes of the media.
pub fn response<'a>(
    query: &Id,
    tokens: &[u32],
    media: impl ExactSizeIterator<Item = &'a ContentHash>,
) -> Id {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"r").update(query);
    tokens_and_media(&mut hasher, tokens, media);
    first_half(&hasher)
}

/// `pid`: the letter p, the chosen and the rejected response.
pub fn pair(chosen: &Id, rejected: &Id) -> Id {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"p").update(chosen).update(rejected);
    first_half(&hasher)
}
