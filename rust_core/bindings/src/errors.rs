//! One error enum of the core to one small tree of Python exceptions.

use std::any::Any;
use std::io::ErrorKind;

use mmrlhf_core::Error;
use pyo3::PyErr;
use pyo3::create_exception;
use pyo3::exceptions::{
    PyException, PyFileNotFoundError, PyKeyboardInterrupt, PyOSError, PyPermissionError,
};

create_exception!(
    mmrlhf_engine,
    CoreError,
    PyException,
    "The core failed: a defect, not bad input."
);
create_exception!(
    mmrlhf_engine,
    InputError,
    PyException,
    "An argument or a file does not have the promised form."
);

/// The Python exception for an error of the core.
pub(crate) fn to_python(error: Error) -> PyErr {
    let message = error.to_string();
    match error {
        Error::Interrupted => PyKeyboardInterrupt::new_err(()),
        Error::Io { source, .. } => match source.kind() {
            ErrorKind::NotFound => PyFileNotFoundError::new_err(message),
            ErrorKind::PermissionDenied => PyPermissionError::new_err(message),
            _ => PyOSError::new_err(message),
        },
        Error::InvalidInput { .. } | Error::CorruptData { .. } | Error::Conflict { .. } => {
            InputError::new_err(message)
        }
        _ => CoreError::new_err(message),
    }
}

/// The Python exception for a panic: it names the message and asks for a report.
pub(crate) fn from_panic(panic: &(dyn Any + Send)) -> PyErr {
    to_python(Error::panicked(panic))
}
