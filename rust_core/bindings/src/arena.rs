//! The memory of a batch as a writable Python buffer, without a copy.
#![expect(unsafe_code, reason = "a buffer is handed out as a pointer and a length")]

use std::ffi::c_int;
use std::ptr::NonNull;
use std::sync::Weak;

use mmrlhf_core::load::pool::Pool;
use pyo3::ffi;
use pyo3::prelude::*;

/// Memory that belongs to Python from here on; `memoryview(arena)` and numpy see it in place.
#[pyclass(frozen)]
pub(crate) struct Arena {
    memory: NonNull<[u8]>,
    pool: Weak<Pool>,
}

// SAFETY: the pointer is the only one to its allocation on this side, and nothing here reads or
// writes through it; it is freed or given back once, when Python has let go of the last view.
unsafe impl Send for Arena {}
// SAFETY: as above; a shared reference gives out the pointer and the length alone.
unsafe impl Sync for Arena {}

impl Arena {
    pub(crate) fn new(memory: Box<[u8]>, pool: Weak<Pool>) -> Self {
        Self { memory: NonNull::from(Box::leak(memory)), pool }
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: the pointer came from `Box::leak` in `new`, and views keep this object alive.
        let memory = unsafe { Box::from_raw(self.memory.as_ptr()) };
        if let Some(pool) = self.pool.upgrade() {
            pool.give(memory);
        }
    }
}

#[pymethods]
impl Arena {
    unsafe fn __getbuffer__(
        slf: Bound<'_, Self>,
        view: *mut ffi::Py_buffer,
        flags: c_int,
    ) -> PyResult<()> {
        let memory = slf.get().memory;
        // SAFETY: Python hands over a `view` to fill in; the memory lives as long as `slf`, to which
        // the view takes a reference. It is writable: nobody else reads it.
        let failed = unsafe {
            let (start, length) = (memory.as_ptr().cast(), memory.len().cast_signed());
            ffi::PyBuffer_FillInfo(view, slf.as_ptr(), start, length, 0, flags)
        };
        if failed == 0 { Ok(()) } else { Err(PyErr::fetch(slf.py())) }
    }

    fn __len__(&self) -> usize {
        self.memory.len()
    }
}
