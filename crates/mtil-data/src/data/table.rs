//! Caption tables: text with one row per line, and values separated by commas or tabs.
//!
//! In a table separated by commas a value may be quoted (RFC 4180). In one separated by tabs a
//! quotation mark is a character like any other, unless it encloses the whole value as in CSV: some
//! programs write such values, others write a caption that begins with a quotation mark.

/// Number of lines of a value from which a quotation mark must have been left open.
const TOO_MANY_LINES: usize = 64;

/// The header of a caption table.
pub(crate) struct Header<'a> {
    /// The line.
    pub(crate) text: &'a str,
    /// Names of the columns.
    pub(crate) names: Vec<String>,
    separator: char,
}

impl<'a> Header<'a> {
    /// Names of the column with the image's path. The first that exists is taken.
    pub(crate) const FILE: [&'static str; 5] =
        ["file", "filename", "file_name", "image", "filepath"];
    /// Names of the column with the caption.
    pub(crate) const CAPTION: [&'static str; 3] = ["caption", "title", "text"];

    /// Reads the first line of a table that is not empty.
    ///
    /// The separator is the more frequent one in this line: captions contain commas too.
    pub(crate) fn read(table: &'a str) -> Result<Self, TableError> {
        let text = first_line(table);
        let tabs = text.matches('\t').count() > text.matches(',').count();
        let separator = if tabs { '\t' } else { ',' };
        let row = read_rows(text, separator, Quotes::Enclose, |_| false)?.pop();
        Ok(Self {
            text,
            names: row.map_or(Vec::new(), |row| row.values),
            separator,
        })
    }

    /// Returns the first column that has one of `names`, whatever the case of its letters.
    pub(crate) fn column(&self, names: &[&str]) -> Option<usize> {
        let position = |name: &&str| self.names.iter().position(|n| n.eq_ignore_ascii_case(name));
        names.iter().find_map(position)
    }

    /// Reads the captions of the table from two columns. A row has as many values as the header.
    /// `is_image` returns whether an image has this path.
    pub(crate) fn captions(
        &self,
        table: &str,
        [file, caption]: [usize; 2],
        is_image: impl Fn(&str) -> bool,
    ) -> Result<Vec<Caption>, TableError> {
        let columns = self.names.len();
        let is_row = |values: &[String]| values.len() == columns && is_image(&values[file]);
        let rows = read_rows(table, self.separator, Quotes::Enclose, is_row)?;
        let rows = rows.into_iter().skip(1);
        rows.map(|row| row.caption([file, caption], columns, "header"))
            .collect()
    }
}

/// Reads the captions of a table without a header: the first column is the caption, the second the
/// file. Quotation marks are characters like any other.
pub(crate) fn captions_without_header(table: &str) -> Result<Vec<Caption>, TableError> {
    let tabs = first_line(table).contains('\t');
    let separator = if tabs { '\t' } else { ',' };
    let rows = read_rows(table, separator, Quotes::Literal, |_| false)?;
    let columns = rows.first().map_or(0, |row| row.values.len());
    rows.into_iter()
        .map(|row| row.caption([1, 0], columns, "first row"))
        .collect()
}

fn first_line(table: &str) -> &str {
    let line = table.lines().find(|line| !line.trim().is_empty());
    line.unwrap_or_default()
}

/// A caption of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Caption {
    /// Number of the first line of its row, from 1.
    pub(crate) line: u64,
    /// Path of the image.
    pub(crate) file: String,
    /// The caption.
    pub(crate) text: String,
}

/// One row of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Row {
    /// Number of its first line, from 1.
    line: u64,
    /// Its values, without white space around them.
    values: Vec<String>,
}

impl Row {
    /// Returns the file and the caption of a row, which has as many values as `like`.
    fn caption(
        mut self,
        [file, caption]: [usize; 2],
        columns: usize,
        like: &str,
    ) -> Result<Caption, TableError> {
        let (line, found) = (self.line, self.values.len());
        let error = |reason| Err(TableError { line, reason });
        if found != columns {
            return error(format!(
                "{found} values where the {like} has {columns} (a value that contains the \
                 separator is in double quotes)"
            ));
        }
        if found <= file.max(caption) {
            return error("expected a caption and a file".into());
        }
        let mut take = |column: usize| std::mem::take(&mut self.values[column]);
        let (file, text) = (take(file), take(caption));
        match (file.is_empty(), text.is_empty()) {
            (true, _) => error("no file is named".into()),
            (_, true) => error(format!("the caption of {file} is empty")),
            _ => Ok(Caption { line, file, text }),
        }
    }
}

/// A defect of a table.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TableError {
    /// Number of its first line, from 1.
    pub(crate) line: u64,
    /// The defect.
    pub(crate) reason: String,
}

/// Treatment of quotation marks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Quotes {
    /// They may enclose a value.
    Enclose,
    /// They are characters like any other.
    Literal,
}

/// Reads the rows of a table, its header included. Lines without a value are skipped.
///
/// `is_row` tells whether values are those of a row, so that a quoted value that swallows rows is
/// found.
fn read_rows(
    text: &str,
    separator: char,
    quotes: Quotes,
    is_row: impl Fn(&[String]) -> bool,
) -> Result<Vec<Row>, TableError> {
    let mut rows = Vec::new();
    if separator == '\t' || quotes == Quotes::Literal {
        rows = separated(text, separator, quotes);
    } else {
        for row in comma_separated(text) {
            let row = row?;
            check_values(&row, is_row_of_line(&is_row))?;
            rows.push(row);
        }
    }
    rows.retain(|row| row.values != [""]);
    Ok(rows)
}

fn is_row_of_line(is_row: &impl Fn(&[String]) -> bool) -> impl Fn(&str) -> bool {
    move |line: &str| {
        let row = comma_separated(line).next();
        row.is_some_and(|row| row.is_ok_and(|row| is_row(&row.values)))
    }
}

fn comma_separated(text: &str) -> impl Iterator<Item = Result<Row, TableError>> {
    let reader = csv::ReaderBuilder::new()
        .has_headers(false)
        .flexible(true)
        .trim(csv::Trim::All)
        .from_reader(text.as_bytes());
    let mut lines = LineCounter::default();
    reader.into_records().map(move |row| match row {
        Ok(row) => Ok(Row {
            line: lines.at(text, row.position()),
            values: row.iter().map(str::to_owned).collect(),
        }),
        Err(error) => Err(TableError {
            line: lines.at(text, error.position()),
            reason: error.to_string(),
        }),
    })
}

/// Line numbers of positions in ascending order. Those of `csv` are too small after `\r\n`.
#[derive(Default)]
struct LineCounter {
    /// Bytes whose line ends are counted.
    counted: usize,
    ends: u64,
}

impl LineCounter {
    /// Returns the line, from 1, of the first value at or after a position.
    fn at(&mut self, text: &str, position: Option<&csv::Position>) -> u64 {
        let byte = position.map_or(0, |p| p.byte() as usize).min(text.len());
        let blank = |byte: &&u8| matches!(byte, b'\r' | b'\n');
        let rest = &text.as_bytes()[byte..];
        let start = byte + rest.iter().take_while(blank).count();
        let passed = text.as_bytes().get(self.counted..start).unwrap_or_default();
        self.ends += passed.iter().filter(|byte| **byte == b'\n').count() as u64;
        self.counted = self.counted.max(start);
        self.ends + 1
    }
}

/// Requires that no value of a row holds other rows.
fn check_values(row: &Row, is_row: impl Fn(&str) -> bool) -> Result<(), TableError> {
    for value in row.values.iter().filter(|value| value.contains('\n')) {
        let lines = value.lines().count();
        if lines < TOO_MANY_LINES && !value.lines().skip(1).any(&is_row) {
            continue;
        }
        let start: String = value.chars().take_while(|c| *c != '\n').take(40).collect();
        return Err(TableError {
            line: row.line,
            reason: format!(
                "the quoted value `{}…` has {lines} lines, which are rows of their own",
                start.trim_end()
            ),
        });
    }
    Ok(())
}

/// Reads rows whose values end at the separator or at the end of the line.
fn separated(text: &str, separator: char, quotes: Quotes) -> Vec<Row> {
    let ends = [separator, '\n', '\r'];
    let (mut rows, mut rest, mut line) = (Vec::new(), text, 1);
    while !rest.is_empty() {
        if let Some(after) = rest.strip_prefix(['\n', '\r']) {
            line += u64::from(rest.starts_with('\n'));
            rest = after;
            continue;
        }
        let mut row = Row {
            line,
            values: Vec::new(),
        };
        loop {
            let enclosed = match quotes {
                Quotes::Enclose => enclosed_value(rest, separator),
                Quotes::Literal => None,
            };
            let (value, length) = enclosed.unwrap_or_else(|| {
                let length = rest.find(ends).unwrap_or(rest.len());
                (rest[..length].to_owned(), length)
            });
            line += rest[..length].matches('\n').count() as u64;
            rest = &rest[length..];
            row.values.push(value.trim().to_owned());
            match rest.strip_prefix(separator) {
                Some(after) => rest = after,
                None => break,
            }
        }
        rows.push(row);
    }
    rows
}

/// Returns the value in quotation marks at the start of `text`, and its length in bytes with them.
///
/// `None` unless the closing mark ends the value. A value with both a line break and a separator is
/// none either: it would swallow the end of this row and the start of another.
fn enclosed_value(text: &str, separator: char) -> Option<(String, usize)> {
    let inside = text.strip_prefix('"')?;
    let (mut breaks, mut separators) = (false, false);
    let mut characters = inside.char_indices().peekable();
    while let Some((at, c)) = characters.next() {
        if c == '"' && characters.next_if(|(_, next)| *next == '"').is_none() {
            let after = &inside[at + 1..];
            let ends = after.is_empty() || after.starts_with([separator, '\n', '\r']);
            return ends.then(|| (inside[..at].replace("\"\"", "\""), at + 2));
        }
        breaks |= c == '\n' || c == '\r';
        separators |= c == separator;
        if breaks && separators {
            return None;
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tabs(text: &str) -> Vec<(u64, Vec<String>)> {
        let rows = read_rows(text, '\t', Quotes::Enclose, |_| false).unwrap();
        rows.into_iter().map(|row| (row.line, row.values)).collect()
    }

    #[test]
    fn a_lone_quotation_mark_swallows_no_row_of_a_tab_separated_table() {
        let mut text = "file\tcaption\n".to_owned();
        for i in 0..20 {
            let mark = if i == 9 { "\"" } else { "" };
            text += &format!("{i}.png\t{mark}caption {i}\n");
        }
        let rows = tabs(&text);
        assert_eq!(rows.len(), 21);
        assert_eq!(rows[10], (11, vec!["9.png".into(), "\"caption 9".into()]));
        assert_eq!(rows[20], (21, vec!["19.png".into(), "caption 19".into()]));
        // Two of them, around a tab and a line break.
        let rows = tabs("\"a\t1.png\nb\t2.png\nc\"\t3.png\n");
        let values: Vec<&str> = rows.iter().map(|(_, row)| row[0].as_str()).collect();
        assert_eq!(values, ["\"a", "b", "c\""]);
    }

    #[test]
    fn values_in_quotation_marks_are_read_as_other_programs_write_them() {
        for (text, want) in [
            ("\"a \"\"fish\"\"\"\tx\n", "a \"fish\""),
            ("\"a\tb\"\tx\n", "a\tb"),
            ("\"a\nb\"\tx\n", "a\nb"),
            ("\"a\" fish\tx\n", "\"a\" fish"),
            ("\"\"\tx\n", ""),
            ("\"\tx\n", "\""),
            (" a \tx\r\n", "a"),
        ] {
            let rows = tabs(text);
            assert_eq!(rows.len(), 1, "{text:?}");
            assert_eq!(rows[0].1, [want, "x"], "{text:?}");
        }
        let literal = read_rows("\"a\"\tx", '\t', Quotes::Literal, |_| false).unwrap();
        assert_eq!(literal[0].values, ["\"a\"", "x"]);
        let literal = read_rows("\"a,x\n\"b,y", ',', Quotes::Literal, |_| false).unwrap();
        assert_eq!(literal[1].values, ["\"b", "y"]);
    }

    #[test]
    fn rows_have_the_number_of_their_first_line() {
        assert_eq!(
            tabs("a\tb\r\n\r\n\"c\nd\"\te\nf\t"),
            [
                (1, vec!["a".to_owned(), "b".to_owned()]),
                (3, vec!["c\nd".to_owned(), "e".to_owned()]),
                (5, vec!["f".to_owned(), String::new()]),
            ]
        );
        assert!(tabs("").is_empty() && tabs("\n\n").is_empty());
    }

    #[test]
    fn a_quoted_value_that_swallows_rows_of_a_comma_separated_table_is_an_error() {
        let is_row = |values: &[String]| values.len() == 2 && values[0].ends_with(".png");
        let read = |text: &str| read_rows(text, ',', Quotes::Enclose, is_row);
        let text = "file,caption\n1.png,a\n2.png,\"b\n3.png,c\n4.png,\"d\n";
        let error = read(text).unwrap_err();
        assert_eq!(error.line, 3);
        assert!(
            error.reason.contains("`b…` has 3 lines"),
            "{}",
            error.reason
        );
        // Up to the end of the file.
        let error = read("file,caption\n1.png,\"a\n2.png,b\n3.png,c\n").unwrap_err();
        assert_eq!(error.line, 2);
        // A caption of several lines is none.
        let rows = read("file,caption\n1.png,\"a,\nb, c\nd\"\n2.png,e\n").unwrap();
        assert_eq!(rows[1].values, ["1.png", "a,\nb, c\nd"]);
        assert_eq!((rows[2].line, rows.len()), (5, 3));
        let long = format!("1.png,\"{}\"\n", "x\n".repeat(TOO_MANY_LINES));
        assert_eq!(read(&long).unwrap_err().line, 1);
    }

    /// Returns the captions of a table with the columns `file` and `caption`.
    fn captions(table: &str) -> Result<Vec<(u64, String, String)>, TableError> {
        let header = Header::read(table)?;
        let columns = [&Header::FILE[..], &Header::CAPTION[..]].map(|n| header.column(n).unwrap());
        let rows = header.captions(table, columns, |name| name.ends_with(".png"))?;
        Ok(rows.into_iter().map(|c| (c.line, c.file, c.text)).collect())
    }

    #[test]
    fn headers_may_be_quoted_and_come_after_empty_lines() {
        for (table, line) in [
            ("file,caption\na.png,\"a cat, asleep\"\n", 2),
            ("\"file\",\"caption\"\r\n\"a.png\",\"a cat, asleep\"\r\n", 2),
            (
                "\n \n\"Caption\",id,\"Image\"\n\"a cat, asleep\",7,a.png\n",
                4,
            ),
            ("\"caption\"\tfile\na cat, asleep\ta.png\n", 2),
            (
                "caption, with commas\tcaption\tfile\tid\nx\ta cat, asleep\ta.png\t1\n",
                2,
            ),
        ] {
            let want = (line, "a.png".to_owned(), "a cat, asleep".to_owned());
            assert_eq!(captions(table).unwrap(), [want], "{table}");
        }
    }

    #[test]
    fn a_row_of_another_length_is_an_error_with_its_line() {
        for table in [
            "file,caption\na.png,a cat\na.png,a cat, asleep\n",
            "caption,file\na cat,a.png\na cat, asleep,a.png\n",
            "caption\tfile\na cat\ta.png\na\tcat\ta.png\n",
        ] {
            let error = captions(table).unwrap_err();
            assert_eq!(error.line, 3, "{table}");
            let reason = &error.reason;
            assert!(
                reason.starts_with("3 values where the header has 2"),
                "{reason}"
            );
        }
        let error = captions_without_header("a cat,a.png\na cat, asleep,a.png\n").unwrap_err();
        assert_eq!(error.line, 2);
        assert!(
            error
                .reason
                .starts_with("3 values where the first row has 2")
        );
        let error = captions_without_header("a cat\nb\n").unwrap_err();
        assert_eq!(error.reason, "expected a caption and a file");
    }

    #[test]
    fn a_table_without_a_header_is_separated_by_tabs_if_it_has_one() {
        let rows = captions_without_header("a \"big\", fat, cat\ta.png\n\"b\tb.png\n").unwrap();
        let rows: Vec<_> = rows.iter().map(|c| (&*c.text, &*c.file)).collect();
        assert_eq!(rows, [("a \"big\", fat, cat", "a.png"), ("\"b", "b.png")]);
        assert!(captions_without_header("\n").unwrap().is_empty());
    }
}
