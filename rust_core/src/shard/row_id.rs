//! Ids of rows by their content, the same in every dataset: the first 16 bytes of a BLAKE3.

/// Id of a query, response or pair.
pub type RowId = [u8; 16];
/// Id of a blob: the BLAKE3 of its bytes.
pub type ContentHash = [u8; 32];

fn truncated(hasher: &blake3::Hasher) -> RowId {
    let mut id = [0; 16];
    id.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    id
}

fn update_tokens_and_media<'a>(
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

/// `qid`: hash of `"q"`, tokens, hashes of the media, timestamps of the frames.
pub fn query<'a>(
    prompt: &[u32],
    media: impl ExactSizeIterator<Item = &'a ContentHash>,
    seconds: &[f32],
) -> RowId {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"q");
    update_tokens_and_media(&mut hasher, prompt, media);
    hasher.update(&(seconds.len() as u64).to_le_bytes());
    for second in seconds {
        hasher.update(&second.to_le_bytes());
    }
    truncated(&hasher)
}

/// `rid`: hash of `"r"`, `qid`, tokens, hashes of the media.
pub fn response<'a>(
    query: &RowId,
    tokens: &[u32],
    media: impl ExactSizeIterator<Item = &'a ContentHash>,
) -> RowId {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"r").update(query);
    update_tokens_and_media(&mut hasher, tokens, media);
    truncated(&hasher)
}

/// `pid`: hash of `"p"`, `rid` of the chosen and of the rejected response.
pub fn pair(chosen: &RowId, rejected: &RowId) -> RowId {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"p").update(chosen).update(rejected);
    truncated(&hasher)
}
