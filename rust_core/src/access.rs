//! How columns in mapped files are going to be read, told to the operating system.
//!
//! It reads ahead in a mapped file: from 32 pages to thousands for one that is touched. In a pass from the
//! first row to the last that is what makes it fast. Where rows are read here and there, nearly all of it
//! is never looked at and drives out of the page cache what will be needed again. The advice changes no
//! content, and memory that is not mapped from a file is not affected by it.

/// The order in which bytes will be read.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Access {
    /// From the first to the last.
    InOrder,
    /// Here and there.
    Random,
}

/// Advise the system of how `bytes` will be read. The pages on which they begin and end are included:
/// whoever touches these would have all that lies behind them read too.
#[cfg(unix)]
pub(crate) fn advise(bytes: &[u8], access: Access) {
    let advice = match access {
        Access::InOrder => libc::MADV_NORMAL,
        Access::Random => libc::MADV_RANDOM,
    };
    #[expect(unsafe_code, reason = "a system call without a safe form")]
    // SAFETY: sysconf has no preconditions.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    let Ok(page) = usize::try_from(page) else { return };
    if bytes.is_empty() {
        return;
    }
    let before = bytes.as_ptr().addr() % page;
    let start = bytes.as_ptr().wrapping_sub(before).cast_mut();
    let length = (before + bytes.len()).next_multiple_of(page);
    #[expect(unsafe_code, reason = "a system call without a safe form")]
    // SAFETY: the pages are those of a living slice, and these two kinds of advice change no content, not
    // of their neighbours either. An error says that the advice was not taken, which is no harm.
    let _ = unsafe { libc::madvise(start.cast(), length, advice) };
}

/// No advice on other systems.
#[cfg(not(unix))]
pub(crate) fn advise(_bytes: &[u8], _access: Access) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_stay_as_they_are() {
        for length in [0, 1, 4095, 4096, 100_000] {
            let bytes: Vec<u8> = (0..length).map(|at| (at % 251) as u8).collect();
            for access in [Access::Random, Access::InOrder] {
                for start in [0, 1, 77] {
                    advise(bytes.get(start..).unwrap_or_default(), access);
                }
            }
            assert!(bytes.iter().enumerate().all(|(at, &byte)| byte == (at % 251) as u8));
        }
    }
}
