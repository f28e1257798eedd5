//! Literals of texts and integers in pickles.

/// Parses a little-endian two's complement integer of at most 16 bytes.
pub(crate) fn long(digits: &[u8]) -> Option<i128> {
    let sign = match digits.last() {
        Some(last) if *last >= 0x80 => 0xff,
        _ => 0,
    };
    let mut wide = [sign; 16];
    wide.get_mut(..digits.len())?.copy_from_slice(digits);
    Some(i128::from_le_bytes(wide))
}

/// Parses the text of a line.
pub(crate) fn parse<T: std::str::FromStr>(line: &[u8]) -> Option<T> {
    std::str::from_utf8(line).ok()?.parse().ok()
}

/// Returns the content of a Python 2 string literal.
pub(crate) fn unquote(line: &[u8]) -> Result<Vec<u8>, &'static str> {
    const ESCAPE: &str = "a text has an invalid escape";
    let inner = match line {
        [b'\'', inner @ .., b'\''] | [b'"', inner @ .., b'"'] => inner,
        _ => return Err("a text has no quotes"),
    };
    let mut bytes = Vec::with_capacity(inner.len());
    let mut rest = inner;
    while let [first, tail @ ..] = rest {
        rest = tail;
        if *first != b'\\' {
            bytes.push(*first);
            continue;
        }
        let [escape, tail @ ..] = rest else {
            return Err(ESCAPE);
        };
        rest = tail;
        bytes.push(match escape {
            b'\\' | b'\'' | b'"' => *escape,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'x' => {
                let (digits, tail) = rest.split_first_chunk::<2>().ok_or(ESCAPE)?;
                rest = tail;
                u8::try_from(hexadecimal(digits).ok_or(ESCAPE)?).map_err(|_| ESCAPE)?
            }
            _ => return Err("a text has an unknown escape"),
        });
    }
    Ok(bytes)
}

/// Decodes Python's `raw-unicode-escape`: characters may be written `\u00e9` or `\U000000e9`; other
/// bytes are Latin-1.
pub(crate) fn raw_unicode(line: &[u8]) -> Option<Box<str>> {
    let mut text = String::with_capacity(line.len());
    let mut rest = line;
    while let [first, tail @ ..] = rest {
        let digits = match rest {
            [b'\\', b'u', ..] => 4,
            [b'\\', b'U', ..] => 8,
            _ => {
                text.push(char::from(*first));
                rest = tail;
                continue;
            }
        };
        let (code, tail) = rest[2..].split_at_checked(digits)?;
        text.push(char::from_u32(hexadecimal(code)?)?);
        rest = tail;
    }
    Some(text.into())
}

fn hexadecimal(digits: &[u8]) -> Option<u32> {
    digits.iter().try_fold(0_u32, |value, digit| {
        let digit = char::from(*digit).to_digit(16)?;
        Some(value.checked_mul(16)? + digit)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_integers_are_twos_complement() {
        assert_eq!(long(b""), Some(0));
        assert_eq!(long(b"\xff"), Some(-1));
        assert_eq!(long(b"\xff\0"), Some(255));
        assert_eq!(long(&i128::MIN.to_le_bytes()), Some(i128::MIN));
        assert_eq!(long(b"\x01\0\0\0\0\0\0\0\0\0"), Some(1));
        assert_eq!(long(&[0; 17]), None);
    }

    #[test]
    fn literals_match_python() {
        assert_eq!(unquote(b"'a\\n\\x41\\''").unwrap(), b"a\nA'");
        assert_eq!(unquote(b"\"\\xff\\\\\"").unwrap(), b"\xff\\");
        assert_eq!(unquote(b"''").unwrap(), b"");
        for wrong in [
            &b"'"[..],
            b"abc",
            b"'a\"",
            b"'\\x4'",
            b"'\\x+1'",
            b"'\\'",
            b"'\\q'",
        ] {
            assert!(unquote(wrong).is_err(), "{wrong:?}");
        }
        // pickle.dumps("aé€\U0001f600\\n", protocol=0)
        let text = raw_unicode(b"a\xe9\\u20ac\\U0001f600\\u005cn").unwrap();
        assert_eq!(&*text, "aé€😀\\n");
        for wrong in [&b"\\u20a"[..], b"\\ud800", b"\\u+123", b"\\UFFFFFFFF"] {
            assert_eq!(raw_unicode(wrong), None, "{wrong:?}");
        }
    }
}
