//! Reader of MATLAB's level 5 MAT-files (The MathWorks, "MAT-File Format").
//!
//! Stanford Cars and Flowers store their labels in such files. The crate `matfile` 0.5 reads
//! numeric arrays only, but the labels of Cars are cells in a struct.
//!
//! A header of 128 bytes is followed by elements: a type, a length and the content. An array is an
//! element that consists of elements. A compressed element contains another in a zlib stream.

use std::{cell::Cell, io::Read as _};

use super::error::DatasetError;

const HEADER: usize = 128;
/// Maximum decompressed size of all compressed elements together.
const MAX_INFLATED: u64 = 256 << 20;
/// Maximum number of arrays. An empty one has 8 bytes, which compression hides, and takes 100 bytes
/// of memory. The labels of Cars have 50,000.
const MAX_ARRAYS: usize = 1 << 19;
/// Maximum nesting depth of arrays.
const MAX_DEPTH: usize = 16;
/// Maximum number of dimensions of an array.
const MAX_DIMENSIONS: usize = 32;

/// A MATLAB array, with elements in column-major order.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Numbers or logical values of any type. 64-bit integers beyond 2^53 are rounded.
    Numeric {
        /// Length of each dimension.
        shape: Vec<usize>,
        /// The elements.
        data: Vec<f64>,
    },
    /// Characters. The rows of a character matrix are concatenated.
    Text(String),
    /// A cell array.
    Cell {
        /// Length of each dimension.
        shape: Vec<usize>,
        /// The cells.
        items: Vec<Value>,
    },
    /// A struct array.
    Struct {
        /// Length of each dimension.
        shape: Vec<usize>,
        /// Name of each field and its values, one per element of the array.
        fields: Vec<(String, Vec<Value>)>,
    },
}

/// Reads the variables of a MAT-file in file order. `name` identifies the file in errors.
///
/// # Errors
/// [`DatasetError::Matlab`] if the file is corrupt, is of level 4 or version 7.3, or contains
/// sparse or complex numbers, objects or functions.
pub fn read(bytes: &[u8], name: &str) -> Result<Vec<(String, Value)>, DatasetError> {
    parse(bytes).map_err(|reason| DatasetError::Matlab {
        path: name.to_owned(),
        reason,
    })
}

fn parse(bytes: &[u8]) -> Result<Vec<(String, Value)>, String> {
    const SAVE: &str = "save it in MATLAB with `-v7`, or with scipy.io.savemat";
    if bytes.starts_with(b"MATLAB 7.3") || bytes.starts_with(b"\x89HDF\r\n\x1a\n") {
        return Err(format!(
            "it is of version 7.3 (HDF5), which is not supported: {SAVE}"
        ));
    }
    // A level 4 file begins with a number below 5000, a level 5 file with text.
    if let Some(first) = bytes.first_chunk::<4>()
        && first.contains(&0)
        && u32::from_le_bytes(*first).min(u32::from_be_bytes(*first)) < 5000
    {
        return Err(format!("it is of level 4, which is not supported: {SAVE}"));
    }
    let header = bytes
        .get(..HEADER)
        .ok_or("it ends within its header: half downloaded? Download it again")?;
    let big_endian = match &header[126..] {
        b"IM" => false,
        b"MI" => true,
        _ => return Err("it is not a MAT-file: download it again".into()),
    };
    let version = from_bytes(
        [header[124], header[125]],
        big_endian,
        u16::from_le_bytes,
        u16::from_be_bytes,
    );
    if version >> 8 != 1 {
        return Err(format!(
            "its version is {version:#06x}, which is not supported: {SAVE}"
        ));
    }
    // The limit applies to all variables together, against decompression bombs.
    let mut inflated = 0;
    let arrays = &Cell::new(MAX_ARRAYS);
    let mut file = ElementReader {
        rest: &bytes[HEADER..],
        big_endian,
        arrays,
    };
    let mut variables = Vec::new();
    while !file.rest.is_empty() {
        let element = file.next()?;
        let (name, value) = match element.kind {
            DataType::COMPRESSED => {
                let mut content = Vec::new();
                flate2::read::ZlibDecoder::new(element.content)
                    .take(MAX_INFLATED + 1 - inflated)
                    .read_to_end(&mut content)
                    .map_err(|error| format!("a compressed variable is damaged ({error})"))?;
                inflated += content.len() as u64;
                if inflated > MAX_INFLATED {
                    return Err(format!(
                        "its variables are longer than {MAX_INFLATED} bytes"
                    ));
                }
                let mut inner = ElementReader {
                    rest: &content,
                    big_endian,
                    arrays,
                };
                inner.next()?.array(0)?
            }
            _ => element.array(0)?,
        };
        variables.push((name, value));
    }
    Ok(variables)
}

fn from_bytes<const N: usize, T>(
    bytes: [u8; N],
    big_endian: bool,
    from_le: fn([u8; N]) -> T,
    from_be: fn([u8; N]) -> T,
) -> T {
    if big_endian {
        from_be(bytes)
    } else {
        from_le(bytes)
    }
}

/// Data type of an element.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct DataType(u32);

impl DataType {
    const INT8: Self = Self(1);
    const UINT8: Self = Self(2);
    const INT16: Self = Self(3);
    const UINT16: Self = Self(4);
    const INT32: Self = Self(5);
    const UINT32: Self = Self(6);
    const SINGLE: Self = Self(7);
    const DOUBLE: Self = Self(9);
    const INT64: Self = Self(12);
    const UINT64: Self = Self(13);
    const MATRIX: Self = Self(14);
    const COMPRESSED: Self = Self(15);
    const UTF8: Self = Self(16);
    const UTF16: Self = Self(17);
    const UTF32: Self = Self(18);
}

/// Reader of a sequence of elements.
struct ElementReader<'a> {
    rest: &'a [u8],
    big_endian: bool,
    /// Number of arrays that may still be read, in all elements of the file together.
    arrays: &'a Cell<usize>,
}

struct Element<'a> {
    kind: DataType,
    content: &'a [u8],
    big_endian: bool,
    arrays: &'a Cell<usize>,
}

const TRUNCATED: &str = "it ends within a variable: half downloaded? Download it again";

impl<'a> ElementReader<'a> {
    fn next(&mut self) -> Result<Element<'a>, String> {
        let (tag, rest) = self.rest.split_first_chunk::<8>().ok_or(TRUNCATED)?;
        let (words, _) = tag.as_chunks::<4>();
        let u32_of = |word| {
            from_bytes(
                word,
                self.big_endian,
                u32::from_le_bytes,
                u32::from_be_bytes,
            )
        };
        let (first, second) = (u32_of(words[0]), u32_of(words[1]));
        let (kind, content, used) = if first >> 16 != 0 {
            // A small element stores its content in the tag.
            let length = (first >> 16) as usize;
            let content = self.rest[4..8].get(..length);
            let content = content.ok_or("a short element is longer than 4 bytes")?;
            (DataType(first & 0xffff), content, 0)
        } else {
            let (kind, length) = (DataType(first), second as usize);
            let content = rest.get(..length).ok_or(TRUNCATED)?;
            let padded = match kind {
                DataType::COMPRESSED => length,
                _ => length.next_multiple_of(8),
            };
            // The padding at the end of a file may be missing.
            (kind, content, padded.min(rest.len()))
        };
        self.rest = &rest[used..];
        Ok(Element {
            kind,
            content,
            big_endian: self.big_endian,
            arrays: self.arrays,
        })
    }
}

impl Element<'_> {
    /// Reads an array and its name.
    fn array(&self, depth: usize) -> Result<(String, Value), String> {
        if self.kind != DataType::MATRIX {
            return Err(format!("an array is of the unknown type {}", self.kind.0));
        }
        if depth > MAX_DEPTH {
            return Err(format!("its arrays are nested more than {MAX_DEPTH} deep"));
        }
        let left = self.arrays.get().checked_sub(1);
        self.arrays
            .set(left.ok_or_else(|| format!("it has more than {MAX_ARRAYS} arrays"))?);
        if self.content.is_empty() {
            // An empty cell or field.
            let (shape, data) = (vec![0, 0], Vec::new());
            return Ok((String::new(), Value::Numeric { shape, data }));
        }
        let mut parts = ElementReader {
            rest: self.content,
            big_endian: self.big_endian,
            arrays: self.arrays,
        };
        let flags = parts.next()?.integers()?;
        let &[flags, _] = flags.as_slice() else {
            return Err("an array has no flags".into());
        };
        let shape = parts.next()?.integers()?;
        if shape.len() > MAX_DIMENSIONS {
            return Err(format!("an array has {} dimensions", shape.len()));
        }
        let shape: Vec<usize> = shape
            .into_iter()
            .map(|length| usize::try_from(length).map_err(|_| "an array has a negative length"))
            .collect::<Result<_, _>>()?;
        let count = shape
            .iter()
            .try_fold(1_usize, |count, length| count.checked_mul(*length))
            .ok_or("the length of an array is too large")?;
        let name = parts.next()?.characters()?;
        let name: String = name.into_iter().collect();
        let within = |reason: String| match name.as_str() {
            "" => reason,
            name => format!("in `{name}`: {reason}"),
        };
        // Complex arrays store a second element with the imaginary parts.
        if flags & 0x800 != 0 {
            return Err(within("complex numbers are not supported".into()));
        }
        // The low byte of the flags is the class of the array.
        let value = match flags & 0xff {
            1 => parts
                .cells(count, depth)
                .map(|items| Value::Cell { shape, items }),
            2 => parts
                .fields(count, depth)
                .map(|fields| Value::Struct { shape, fields }),
            4 => parts.next().and_then(|text| text.text(&shape, count)),
            6..=15 => parts.next().and_then(|element| {
                let data = element.numbers()?;
                if data.len() == count {
                    Ok(Value::Numeric { shape, data })
                } else {
                    Err(format!(
                        "{} numbers are there, {count} are declared",
                        data.len()
                    ))
                }
            }),
            class => {
                let what = match class {
                    3 | 17 => "objects",
                    5 => "sparse matrices",
                    16 => "functions",
                    _ => "arrays of an unknown class",
                };
                Err(format!("{what} are not supported"))
            }
        };
        value.map_err(within).map(|value| (name.clone(), value))
    }

    /// Returns the content as numbers of `N` bytes.
    fn chunks<const N: usize, T>(
        &self,
        from_le: fn([u8; N]) -> T,
        from_be: fn([u8; N]) -> T,
    ) -> Result<Vec<T>, String> {
        match self.content.as_chunks::<N>() {
            (chunks, []) => Ok(chunks
                .iter()
                .map(|c| from_bytes(*c, self.big_endian, from_le, from_be))
                .collect()),
            _ => Err("the length of an element does not fit its type".into()),
        }
    }

    /// Returns the content as floating-point numbers.
    fn numbers(&self) -> Result<Vec<f64>, String> {
        macro_rules! numbers {
            ($kind:ty, $to:expr) => {
                self.chunks(<$kind>::from_le_bytes, <$kind>::from_be_bytes)?
                    .into_iter()
                    .map($to)
                    .collect()
            };
        }
        Ok(match self.kind {
            DataType::INT8 => numbers!(i8, f64::from),
            DataType::UINT8 => numbers!(u8, f64::from),
            DataType::INT16 => numbers!(i16, f64::from),
            DataType::UINT16 => numbers!(u16, f64::from),
            DataType::INT32 => numbers!(i32, f64::from),
            DataType::UINT32 => numbers!(u32, f64::from),
            DataType::SINGLE => numbers!(f32, f64::from),
            DataType::DOUBLE => numbers!(f64, |x| x),
            DataType::INT64 => numbers!(i64, |x| x as f64),
            DataType::UINT64 => numbers!(u64, |x| x as f64),
            other => return Err(format!("numbers are of the unknown type {}", other.0)),
        })
    }

    /// Returns the content as integers, for flags and lengths.
    fn integers(&self) -> Result<Vec<i64>, String> {
        Ok(match self.kind {
            DataType::INT32 => {
                let numbers = self.chunks(i32::from_le_bytes, i32::from_be_bytes)?;
                numbers.into_iter().map(i64::from).collect()
            }
            DataType::UINT32 => {
                let numbers = self.chunks(u32::from_le_bytes, u32::from_be_bytes)?;
                numbers.into_iter().map(i64::from).collect()
            }
            other => return Err(format!("lengths are of the unexpected type {}", other.0)),
        })
    }

    fn characters(&self) -> Result<Vec<char>, String> {
        const BROKEN: &str = "a text is malformed";
        match self.kind {
            // Names, and texts of old versions of MATLAB, are Latin-1.
            DataType::INT8 | DataType::UINT8 => {
                Ok(self.content.iter().copied().map(char::from).collect())
            }
            DataType::UTF8 => {
                let text = std::str::from_utf8(self.content).map_err(|_| BROKEN)?;
                Ok(text.chars().collect())
            }
            DataType::UINT16 | DataType::UTF16 => {
                let units = self.chunks(u16::from_le_bytes, u16::from_be_bytes)?;
                let characters: Result<_, _> = char::decode_utf16(units).collect();
                characters.map_err(|_| BROKEN.into())
            }
            DataType::UTF32 => {
                let units = self.chunks(u32::from_le_bytes, u32::from_be_bytes)?;
                let characters: Option<_> = units.into_iter().map(char::from_u32).collect();
                characters.ok_or_else(|| BROKEN.into())
            }
            other => Err(format!("a text is of the unknown type {}", other.0)),
        }
    }

    fn text(&self, shape: &[usize], count: usize) -> Result<Value, String> {
        let characters = self.characters()?;
        let rows = shape.first().copied().unwrap_or(1);
        if rows <= 1 {
            // UTF-8 and UTF-16 have variable-length characters, so `count` may differ.
            return Ok(Value::Text(characters.into_iter().collect()));
        }
        if characters.len() != count {
            return Err(format!(
                "{} characters are there, {count} are declared",
                characters.len()
            ));
        }
        // Rows of no characters, of which a few bytes can declare billions, have no text.
        let rows_with_text = 0..rows.min(count);
        let row_major = rows_with_text.flat_map(|row| characters[row..].iter().step_by(rows));
        Ok(Value::Text(row_major.collect()))
    }
}

impl ElementReader<'_> {
    /// Requires that the remaining bytes can hold `count` elements, each with a tag.
    fn require_count(&self, count: Option<usize>) -> Result<usize, String> {
        match count {
            Some(count) if count <= self.rest.len() / 8 => Ok(count),
            _ => Err("more arrays are declared than the file can hold".into()),
        }
    }

    fn cells(&mut self, count: usize, depth: usize) -> Result<Vec<Value>, String> {
        let count = self.require_count(Some(count))?;
        (0..count)
            .map(|_| Ok(self.next()?.array(depth + 1)?.1))
            .collect()
    }

    fn fields(&mut self, count: usize, depth: usize) -> Result<Vec<(String, Vec<Value>)>, String> {
        let length = match self.next()?.integers()?.as_slice() {
            &[length] if length > 0 => length as usize,
            _ => return Err("a struct has no field names".into()),
        };
        let names = self.next()?;
        let mut fields: Vec<(String, Vec<Value>)> = names
            .content
            .chunks_exact(length)
            .map(|name| {
                let end = name.iter().position(|b| *b == 0).unwrap_or(name.len());
                (
                    name[..end].iter().copied().map(char::from).collect(),
                    Vec::new(),
                )
            })
            .collect();
        self.require_count(count.checked_mul(fields.len()))?;
        // A struct without fields has no content, so its declared count is not limited by the file.
        for _ in 0..if fields.is_empty() { 0 } else { count } {
            for (_, values) in &mut fields {
                values.push(self.next()?.array(depth + 1)?.1);
            }
        }
        Ok(fields)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: &[u8] = include_bytes!("testdata/values-plain.mat");
    const COMPRESSED: &[u8] = include_bytes!("testdata/values-compressed.mat");
    const BIG_ENDIAN: &[u8] = include_bytes!("testdata/big-endian.mat");

    fn fault(bytes: &[u8]) -> String {
        let error = read(bytes, "setid.mat").unwrap_err().to_string();
        assert!(error.contains("setid.mat"), "{error}");
        error
    }

    fn numeric(shape: &[usize], data: &[f64]) -> Value {
        Value::Numeric {
            shape: shape.into(),
            data: data.into(),
        }
    }

    fn get<'a>(variables: &'a [(String, Value)], name: &str) -> &'a Value {
        let found = variables.iter().find(|(n, _)| n == name);
        &found.unwrap_or_else(|| panic!("no {name}")).1
    }

    #[test]
    fn reads_what_scipy_writes_compressed_or_not() {
        for file in [PLAIN, COMPRESSED] {
            let variables = read(file, "").unwrap();
            for kind in ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"] {
                let expected = numeric(&[1, 3], &[0.0, 1.0, 100.0]);
                assert_eq!(
                    get(&variables, &format!("kind_{kind}")),
                    &expected,
                    "{kind}"
                );
            }
            assert_eq!(
                get(&variables, "kind_b"),
                &numeric(&[1, 3], &[0.0, 1.0, 1.0])
            );
            let columns = [0.0, 3.0, 1.0, 4.0, 2.0, 5.0];
            assert_eq!(get(&variables, "matrix"), &numeric(&[2, 3], &columns));
            assert_eq!(get(&variables, "empty"), &numeric(&[0, 0], &[]));
            assert_eq!(get(&variables, "letters"), &Value::Text("abcxyz".into()));
            let text = |text: &str| Value::Text(text.into());
            assert_eq!(
                get(&variables, "class_names"),
                &Value::Cell {
                    shape: vec![1, 3],
                    items: vec![
                        text("AM General Hummer SUV 2000"),
                        text("Ram C/V"),
                        text("Grüße")
                    ]
                }
            );
            let numbers = |numbers: [f64; 3]| numbers.map(|x| numeric(&[1, 1], &[x])).to_vec();
            assert_eq!(
                get(&variables, "annotations"),
                &Value::Struct {
                    shape: vec![1, 3],
                    fields: vec![
                        ("bbox_x1".into(), numbers([39.0, 300.0, 70000.0])),
                        ("class".into(), numbers([14.0, 3.0, 196.0])),
                        (
                            "fname".into(),
                            ["00001.jpg", "00002.jpg", "00003.jpg"].map(text).to_vec()
                        ),
                    ]
                }
            );
            let one = |name: &str, value| Value::Struct {
                shape: vec![1, 1],
                fields: vec![(name.into(), vec![value])],
            };
            let nested = one("inner", one("deep", numeric(&[1, 1], &[5.0])));
            assert_eq!(get(&variables, "nested"), &nested);
        }
    }

    #[test]
    fn reads_the_other_byte_order() {
        let variables = read(BIG_ENDIAN, "").unwrap();
        assert_eq!(
            get(&variables, "numbers"),
            &numeric(&[2, 2], &[1.0, 2.5, -3.0, 4e9])
        );
        assert_eq!(
            get(&variables, "whole"),
            &numeric(&[1, 3], &[1.0, 300.0, 65535.0])
        );
        assert_eq!(get(&variables, "text"), &Value::Text("Grüß".into()));
    }

    #[test]
    fn other_versions_are_refused_with_what_to_do() {
        let message = fault(include_bytes!("testdata/level-4.mat"));
        assert!(
            message.contains("level 4") && message.contains("-v7"),
            "{message}"
        );
        let mut hdf5 = b"MATLAB 7.3 MAT-file, Platform: GLNXA64".to_vec();
        hdf5.resize(1024, b' ');
        let message = fault(&hdf5);
        assert!(
            message.contains("7.3") && message.contains("-v7"),
            "{message}"
        );
        let mut newer = PLAIN.to_vec();
        newer[125] = 3;
        assert!(fault(&newer).contains("0x0300"));
    }

    #[test]
    fn what_no_dataset_needs_is_refused_by_name() {
        let message = fault(include_bytes!("testdata/complex.mat"));
        assert!(
            message.contains("`complex`") && message.contains("complex numbers"),
            "{message}"
        );
        let message = fault(include_bytes!("testdata/sparse.mat"));
        assert!(
            message.contains("`sparse`") && message.contains("sparse matrices"),
            "{message}"
        );
    }

    #[test]
    fn truncated_files_are_refused_unless_a_variable_ends_there() {
        for file in [PLAIN, COMPRESSED, BIG_ENDIAN] {
            let whole = read(file, "").unwrap();
            for end in 0..file.len() {
                match read(&file[..end], "") {
                    Ok(variables) => {
                        // The numbers may be complete although their padding is not.
                        assert_eq!(variables, whole[..variables.len()], "{end}");
                        assert!(end >= HEADER);
                    }
                    Err(error) => assert!(error.to_string().contains("MATLAB file"), "{error}"),
                }
            }
        }
        assert!(fault(&PLAIN[..100]).contains("half downloaded?"));
        assert!(fault(&PLAIN[..200]).contains("half downloaded?"));
        for other in [&b""[..], b"<html>", &[b'x'; 500]] {
            fault(other);
        }
    }

    #[test]
    fn damaged_files_do_not_panic() {
        for file in [PLAIN, COMPRESSED, BIG_ENDIAN] {
            for at in 0..file.len() {
                for change in [1, 0x80, 0xff] {
                    let mut damaged = file.to_vec();
                    damaged[at] ^= change;
                    let _ = read(&damaged, "");
                }
            }
        }
    }

    fn element(kind: u32, content: &[u8]) -> Vec<u8> {
        let mut bytes = [kind.to_le_bytes(), (content.len() as u32).to_le_bytes()].concat();
        bytes.extend(content);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes
    }

    fn array(class: u32, shape: &[i32], body: &[u8]) -> Vec<u8> {
        let lengths: Vec<u8> = shape.iter().flat_map(|n| n.to_le_bytes()).collect();
        let flags = [class.to_le_bytes(), [0; 4]].concat();
        element(
            14,
            &[
                element(6, &flags),
                element(5, &lengths),
                element(1, b"x"),
                body.to_vec(),
            ]
            .concat(),
        )
    }

    fn file(variable: &[u8]) -> Vec<u8> {
        [&PLAIN[..HEADER], variable].concat()
    }

    #[test]
    fn lying_lengths_are_refused_before_anything_is_allocated() {
        let huge = [i32::MAX, i32::MAX];
        for (class, body) in [
            (1, vec![]),
            (
                2,
                [element(5, &[4, 0, 0, 0]), element(1, b"abc\0")].concat(),
            ),
        ] {
            let message = fault(&file(&array(class, &huge, &body)));
            assert!(message.contains("more arrays are declared"), "{message}");
        }
        let message = fault(&file(&array(6, &huge, &element(9, &[0; 8]))));
        assert!(message.contains("are declared"), "{message}");
        let message = fault(&file(&array(6, &[i32::MAX; 3], &element(9, &[0; 8]))));
        assert!(message.contains("too large"), "{message}");
        fault(&file(&array(6, &[-1, 1], &element(9, &[]))));
        fault(&file(
            &[14_u32.to_le_bytes(), u32::MAX.to_le_bytes()].concat(),
        ));
        // A struct without fields of very many elements.
        let empty = array(
            2,
            &huge,
            &[element(5, &[4, 0, 0, 0]), element(1, b"")].concat(),
        );
        assert!(read(&file(&empty), "").is_ok());
    }

    #[test]
    fn a_text_of_many_rows_without_characters_is_empty() {
        for rows in [3, i32::MAX] {
            let text = array(4, &[rows, 0], &element(4, b""));
            let variables = read(&file(&text), "").unwrap();
            assert_eq!(variables[0].1, Value::Text(String::new()), "{rows}");
        }
    }

    #[test]
    fn empty_arrays_are_bounded() {
        let cells = |count: usize| {
            let cells = element(14, b"").repeat(count);
            file(&array(1, &[count as i32, 1], &cells))
        };
        assert!(read(&cells(MAX_ARRAYS - 1), "").is_ok());
        assert!(fault(&cells(MAX_ARRAYS)).contains("more than 524288 arrays"));
    }

    #[test]
    fn nesting_is_bounded() {
        let mut nested = array(6, &[1, 1], &element(9, &1.0_f64.to_le_bytes()));
        for _ in 0..MAX_DEPTH {
            nested = array(1, &[1, 1], &nested);
        }
        assert!(read(&file(&nested), "").is_ok());
        nested = array(1, &[1, 1], &nested);
        assert!(fault(&file(&nested)).contains("nested"));
    }

    #[test]
    fn compressed_variables_are_bounded() {
        use std::io::Write as _;
        let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
        let zeros = vec![0; 1 << 20];
        for _ in 0..=MAX_INFLATED >> 20 {
            encoder.write_all(&zeros).unwrap();
        }
        let bomb = encoder.finish().unwrap();
        assert!(bomb.len() < 1 << 20);
        assert!(fault(&file(&element(15, &bomb))).contains("longer than"));
    }
}
