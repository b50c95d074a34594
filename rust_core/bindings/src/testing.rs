//! How tests see each kind of error, and a panic, arrive in Python.

use std::io::ErrorKind;
use std::path::Path;

use mmrlhf_core::Error;
use pyo3::prelude::*;

use crate::call::enter;

/// Raise an error of the core of this kind, `panic` among them.
#[pyfunction]
pub(crate) fn raise_for_test(py: Python<'_>, kind: &str) -> PyResult<()> {
    let io = |error: std::io::Error| Error::io(Path::new("a.arrow"), error);
    enter(py, |_| {
        Err(match kind {
            "panic" => panic!("as asked for"),
            "interrupted" => Error::Interrupted,
            "invalid input" => Error::invalid("rows", 3, "4"),
            "corrupt data" => Error::corrupt("a.arrow: rows", 3, "4\n\nhint: copy it again"),
            "conflict" => Error::conflict("a.arrow", "somebody writing", "nobody"),
            "io" => io(std::io::Error::from_raw_os_error(28)),
            "missing" => io(ErrorKind::NotFound.into()),
            "denied" => io(ErrorKind::PermissionDenied.into()),
            "internal" => Error::internal("rows", "3 of 2"),
            other => Error::invalid("kind", other, "one of the core's"),
        })
    })
}
