//! Comma-separated lists on the command line.

use std::{convert::Infallible, num::ParseIntError};

/// Returns a value of a list without white space around it.
pub fn trimmed(text: &str) -> Result<String, Infallible> {
    Ok(text.trim().to_owned())
}

/// Parses a seed of a list.
pub fn seed(text: &str) -> Result<u64, ParseIntError> {
    text.trim().parse()
}

/// Splits lists of names at their commas, and removes white space around the names. A name that
/// contains a comma is enclosed in double quotes, as in CSV.
pub fn names(lists: &[String]) -> Vec<String> {
    lists.iter().flat_map(|list| split(list)).collect()
}

fn split(list: &str) -> Vec<String> {
    let (mut names, mut name, mut inside) = (Vec::new(), String::new(), false);
    let mut letters = list.chars().peekable();
    while let Some(letter) = letters.next() {
        match letter {
            // Two quotation marks within quotes are one that is part of the name.
            '"' if inside && letters.next_if_eq(&'"').is_some() => name.push('"'),
            '"' if inside => inside = false,
            '"' if name.trim().is_empty() => inside = true,
            ',' if !inside => names.push(std::mem::take(&mut name)),
            letter => name.push(letter),
        }
    }
    names.push(name);
    names.iter().map(|name| name.trim().to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(lists: &[&str]) -> Vec<String> {
        names(
            &lists
                .iter()
                .map(|list| (*list).to_owned())
                .collect::<Vec<_>>(),
        )
    }

    #[test]
    fn lists_are_split_at_commas_outside_of_quotation_marks() {
        assert_eq!(of(&["a, b ,c", "d"]), ["a", "b", "c", "d"]);
        assert_eq!(of(&["\"cat, asleep\", dog"]), ["cat, asleep", "dog"]);
        assert_eq!(of(&["dog, \"cat, asleep\""]), ["dog", "cat, asleep"]);
        assert_eq!(of(&["\"a \"\"b\"\", c\""]), ["a \"b\", c"]);
        assert_eq!(of(&["5\" screen,b"]), ["5\" screen", "b"]);
        assert_eq!(of(&["a,,b,"]), ["a", "", "b", ""]);
        assert!(of(&[]).is_empty());
    }

    #[test]
    fn values_of_lists_have_no_space_around_them() {
        assert_eq!(trimmed(" gnsp "), Ok("gnsp".to_owned()));
        assert_eq!(seed(" 42"), Ok(42));
        assert!(seed("4 2").is_err());
    }
}
