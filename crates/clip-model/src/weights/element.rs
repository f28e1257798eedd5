//! Data types of stored tensors.

use std::fmt;

/// Data type of a stored tensor. `Display` prints its safetensors name.
///
/// ```
/// use clip_model::weights::ElementType;
///
/// assert_eq!(ElementType::BF16.size(), 2);
/// assert_eq!(ElementType::BF16.to_string(), "BF16");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ElementType {
    /// 64-bit IEEE floats.
    F64,
    /// 32-bit IEEE floats.
    F32,
    /// 16-bit IEEE floats.
    F16,
    /// 16-bit brain floats (bfloat16).
    BF16,
    /// 64-bit signed integers.
    I64,
    /// 32-bit signed integers.
    I32,
    /// 16-bit signed integers.
    I16,
    /// 8-bit signed integers.
    I8,
    /// 8-bit unsigned integers.
    U8,
    /// Booleans of one byte each; any non-zero byte is true.
    Bool,
}

impl ElementType {
    const ALL: [(Self, usize, &'static str); 10] = [
        (Self::F64, 8, "F64"),
        (Self::F32, 4, "F32"),
        (Self::F16, 2, "F16"),
        (Self::BF16, 2, "BF16"),
        (Self::I64, 8, "I64"),
        (Self::I32, 4, "I32"),
        (Self::I16, 2, "I16"),
        (Self::I8, 1, "I8"),
        (Self::U8, 1, "U8"),
        (Self::Bool, 1, "BOOL"),
    ];

    /// Returns the number of bytes per element.
    #[must_use]
    pub const fn size(self) -> usize {
        Self::ALL[self as usize].1
    }

    /// Returns `true` for the types that
    /// [`WeightFile::read_f32`](super::WeightFile::read_f32) reads.
    #[must_use]
    pub const fn is_float(self) -> bool {
        matches!(self, Self::F64 | Self::F32 | Self::F16 | Self::BF16)
    }

    /// Returns the type of a name in a safetensors header.
    pub(super) fn from_safetensors(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(.., n)| *n == name).map(|t| t.0)
    }

    /// Returns the type of a storage class of `torch`.
    pub(super) fn from_torch_storage(class: &str) -> Option<Self> {
        Some(match class {
            "DoubleStorage" => Self::F64,
            "FloatStorage" => Self::F32,
            "HalfStorage" => Self::F16,
            "BFloat16Storage" => Self::BF16,
            "LongStorage" => Self::I64,
            "IntStorage" => Self::I32,
            "ShortStorage" => Self::I16,
            "CharStorage" => Self::I8,
            "ByteStorage" => Self::U8,
            "BoolStorage" => Self::Bool,
            _ => return None,
        })
    }

    /// Returns the type of a dtype of `torch`.
    pub(super) fn from_torch_dtype(name: &str) -> Option<Self> {
        Some(match name {
            "float64" | "double" => Self::F64,
            "float32" | "float" => Self::F32,
            "float16" | "half" => Self::F16,
            "bfloat16" => Self::BF16,
            "int64" | "long" => Self::I64,
            "int32" | "int" => Self::I32,
            "int16" | "short" => Self::I16,
            "int8" => Self::I8,
            "uint8" => Self::U8,
            "bool" => Self::Bool,
            _ => return None,
        })
    }
}

impl fmt::Display for ElementType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(Self::ALL[*self as usize].2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_is_in_the_order_of_the_variants() {
        for (element, size, name) in ElementType::ALL {
            assert_eq!(element.size(), size);
            assert_eq!(element.to_string(), name);
            assert_eq!(ElementType::from_safetensors(name), Some(element));
        }
        assert_eq!(ElementType::from_safetensors("F8_E4M3"), None);
        assert_eq!(
            ElementType::from_torch_storage("HalfStorage"),
            Some(ElementType::F16)
        );
        assert_eq!(ElementType::from_torch_storage("ComplexFloatStorage"), None);
        assert_eq!(
            ElementType::from_torch_dtype("uint8"),
            Some(ElementType::U8)
        );
    }
}
