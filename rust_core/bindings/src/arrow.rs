//! Arrow arrays from and to Python, by the Arrow PyCapsule interface, without a copy.
//!
//! Anything with `__arrow_c_array__` (pyarrow arrays) comes in as an [`ArrayRef`]; an [`ArrowArray`]
//! goes out with the same method, so `pyarrow.array(result)` takes it over. All places of the project
//! with `unsafe` are listed in `docs/decisions/0001-arrow-arrays-by-the-capsule-interface.md`.
#![expect(unsafe_code, reason = "the Arrow C data interface is made of raw structs")]

use std::ffi::CStr;
use std::sync::Arc;

use arrow_array::ffi::{FFI_ArrowArray, FFI_ArrowSchema, from_ffi, to_ffi};
use arrow_array::types::{ArrowPrimitiveType, ByteArrayType};
use arrow_array::{
    Array, ArrayRef, BooleanArray, FixedSizeListArray, GenericByteArray, LargeListArray,
    PrimitiveArray, StructArray, make_array,
};
use arrow_schema::{DataType, Field};
use mmrlhf_core::Error;
use mmrlhf_core::data_type::describe;
use mmrlhf_core::dedup::Texts;
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyCapsule, PyCapsuleMethods, PyTuple};

use crate::errors::{InputError, to_python};

const SCHEMA: &CStr = c"arrow_schema";
const ARRAY: &CStr = c"arrow_array";

/// An Arrow array taken from Python.
pub(crate) struct ArrowIn(pub(crate) ArrayRef);

impl ArrowIn {
    /// The array as the concrete type `T`, or an `InputError` that names both types in words.
    pub(crate) fn typed<T: Typed>(&self, what: &str) -> PyResult<T> {
        self.0.as_any().downcast_ref::<T>().cloned().ok_or_else(|| {
            to_python(Error::invalid(what, describe(self.0.data_type()), T::expected()))
        })
    }
}

/// A column of texts: an array, or a list of arrays that are its parts.
#[derive(FromPyObject)]
pub(crate) enum TextsIn {
    One(ArrowIn),
    Parts(Vec<ArrowIn>),
}

impl TextsIn {
    /// The texts, or an `InputError` that names what they are.
    pub(crate) fn texts(&self, what: &str) -> PyResult<Texts> {
        let parts = match self {
            Self::One(array) => std::slice::from_ref(array),
            Self::Parts(arrays) => arrays,
        };
        Ok(Texts::new(parts.iter().map(|part| part.typed(what)).collect::<PyResult<_>>()?))
    }
}

/// A concrete array, with its type in words.
pub(crate) trait Typed: Array + Clone + 'static {
    fn expected() -> String;
}

impl<T: ArrowPrimitiveType> Typed for PrimitiveArray<T> {
    fn expected() -> String {
        describe(&T::DATA_TYPE)
    }
}

impl<T: ByteArrayType> Typed for GenericByteArray<T> {
    fn expected() -> String {
        describe(&T::DATA_TYPE)
    }
}

impl Typed for LargeListArray {
    fn expected() -> String {
        "a list (large_list)".into()
    }
}

impl Typed for FixedSizeListArray {
    fn expected() -> String {
        "a list of one length in all rows (fixed_size_list)".into()
    }
}

impl Typed for BooleanArray {
    fn expected() -> String {
        describe(&DataType::Boolean)
    }
}

impl Typed for StructArray {
    fn expected() -> String {
        "a struct".into()
    }
}

impl<'py> FromPyObject<'_, 'py> for ArrowIn {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        let pair = object.call_method0("__arrow_c_array__").map_err(|_| {
            PyTypeError::new_err(format!("expected an Arrow array, found {}", object.get_type()))
        })?;
        let pair = pair.cast_into::<PyTuple>()?;
        let schema = pair.get_item(0)?.cast_into::<PyCapsule>()?;
        let array = pair.get_item(1)?.cast_into::<PyCapsule>()?;
        let schema = schema.pointer_checked(Some(SCHEMA))?.cast::<FFI_ArrowSchema>();
        let array = array.pointer_checked(Some(ARRAY))?.cast::<FFI_ArrowArray>();
        // SAFETY: the capsules carry these names, so by the PyCapsule interface they hold these
        // structs, alive as long as `pair`. The array is moved out, which leaves it marked as
        // released, as the interface asks of a consumer.
        let data = unsafe {
            let array = FFI_ArrowArray::from_raw(array.as_ptr());
            from_ffi(array, schema.as_ref())
        };
        data.map(|data| Self(make_array(data))).map_err(|e| InputError::new_err(e.to_string()))
    }
}

/// An Arrow array handed to Python; consume it with `pyarrow.array` or `pyarrow.record_batch`.
#[pyclass(frozen)]
pub(crate) struct ArrowArray(pub(crate) ArrayRef);

impl ArrowArray {
    pub(crate) fn new(array: impl Array + 'static) -> Self {
        Self(Arc::new(array))
    }

    /// A struct array of nullable columns: how a table leaves.
    pub(crate) fn table(columns: Vec<(&str, ArrayRef)>) -> Self {
        let columns: Vec<(Arc<Field>, ArrayRef)> = columns
            .into_iter()
            .map(|(name, array)| {
                (Arc::new(Field::new(name, array.data_type().clone(), true)), array)
            })
            .collect();
        Self::new(StructArray::from(columns))
    }
}

#[pymethods]
impl ArrowArray {
    /// The Arrow PyCapsule interface: a schema capsule and an array capsule.
    #[pyo3(signature = (requested_schema=None))]
    fn __arrow_c_array__<'py>(
        &self,
        py: Python<'py>,
        requested_schema: Option<Bound<'py, PyAny>>,
    ) -> PyResult<(Bound<'py, PyCapsule>, Bound<'py, PyCapsule>)> {
        drop(requested_schema); // a producer may ignore the wish, and ours has one form only
        let (array, schema) =
            to_ffi(&self.0.to_data()).map_err(|e| InputError::new_err(e.to_string()))?;
        let schema = PyCapsule::new_with_value(py, schema, SCHEMA)?;
        let array = PyCapsule::new_with_value(py, array, ARRAY)?;
        Ok((schema, array))
    }

    fn __len__(&self) -> usize {
        self.0.len()
    }
}
