//! The error kinds of the core as the exceptions of `mmrlhf_engine.errors`.
//!
//! The classes are pure Python, so that catching them needs no extension; they are imported when
//! the first error is raised.

use std::any::Any;
use std::io::ErrorKind;

use mmrlhf_core::Error;
use pyo3::PyTypeInfo;
use pyo3::exceptions::PyKeyboardInterrupt;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyType};

/// Classes of the Python package by name.
mod classes {
    use pyo3::import_exception;

    import_exception!(mmrlhf_engine.errors, InputError);
    import_exception!(mmrlhf_engine.errors, CorruptDataError);
    import_exception!(mmrlhf_engine.errors, ConflictError);
    import_exception!(mmrlhf_engine.errors, InternalError);
    import_exception!(mmrlhf_engine.errors, FileError);
    import_exception!(mmrlhf_engine.errors, FileMissingError);
    import_exception!(mmrlhf_engine.errors, FileDeniedError);
}

pub(crate) use classes::InputError;

/// What separates a message from its hint.
const HINT: &str = "\n\nhint: ";

/// The Python exception for an error of the core.
pub(crate) fn to_python(error: Error) -> PyErr {
    Python::attach(|py| match &error {
        Error::Interrupted => PyKeyboardInterrupt::new_err(()),
        Error::Io { source, .. } => file_error(py, &error.to_string(), source),
        Error::InvalidInput { .. } => raised::<InputError>(py, &error),
        Error::CorruptData { .. } => raised::<classes::CorruptDataError>(py, &error),
        Error::Conflict { .. } => raised::<classes::ConflictError>(py, &error),
        _ => raised::<classes::InternalError>(py, &error),
    })
}

/// The Python exception for a panic.
pub(crate) fn from_panic(panic: &(dyn Any + Send)) -> PyErr {
    to_python(Error::panicked(panic))
}

fn raised<T: PyTypeInfo>(py: Python<'_>, error: &Error) -> PyErr {
    exception(&T::type_object(py), &error.to_string()).map_or_else(|e| e, PyErr::from_value)
}

/// A subclass of `OSError` with its `errno`, and of the class Python has for this kind of failure.
fn file_error(py: Python<'_>, message: &str, source: &std::io::Error) -> PyErr {
    let class = match source.kind() {
        ErrorKind::NotFound => classes::FileMissingError::type_object(py),
        ErrorKind::PermissionDenied => classes::FileDeniedError::type_object(py),
        _ => classes::FileError::type_object(py),
    };
    let made = exception(&class, message).and_then(|made| {
        made.setattr("errno", source.raw_os_error())?;
        Ok(made)
    });
    made.map_or_else(|e| e, PyErr::from_value)
}

fn exception<'py>(class: &Bound<'py, PyType>, message: &str) -> PyResult<Bound<'py, PyAny>> {
    let (message, hint) = message.split_once(HINT).map_or((message, None), |(m, h)| (m, Some(h)));
    let hints = PyDict::new(class.py());
    hints.set_item("hint", hint)?;
    class.call((message,), Some(&hints))
}
