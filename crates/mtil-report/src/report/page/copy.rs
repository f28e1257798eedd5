//! The headline table as Markdown, CSV and LaTeX, to be copied from the page.

use maud::{Markup, html};

use crate::report::figures;
use crate::report::group::Group;

/// Returns the folded blocks. A click selects a block.
pub(super) fn copies(groups: &[Group<'_>]) -> Markup {
    let rows = figures::rows(groups);
    html! {
        details {
            summary { "Copy the figures as Markdown, CSV or LaTeX" }
            @for (name, text) in [
                ("Markdown", figures::markdown(&rows)),
                ("CSV", figures::csv(&rows)),
                ("LaTeX", latex(&rows)),
                ("CSV of every run", figures::csv(&figures::run_rows(groups))),
            ] {
                h3 { (name) }
                pre.copy tabindex="0" aria-label={ "The figures as " (name) } { (text) }
            }
        }
    }
}

/// Returns a `tabular` in the style of the package booktabs.
fn latex(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len).saturating_sub(1);
    let mut text = format!(
        "\\begin{{tabular}}{{l{}}}\n\\toprule\n",
        "r".repeat(columns)
    );
    for (at, row) in rows.iter().enumerate() {
        let cells: Vec<String> = row.iter().map(|cell| latex_cell(cell)).collect();
        text += &cells.join(" & ");
        text += if at == 0 {
            " \\\\\n\\midrule\n"
        } else {
            " \\\\\n"
        };
    }
    text + "\\bottomrule\n\\end{tabular}\n"
}

fn latex_cell(cell: &str) -> String {
    let mut text = String::new();
    for c in cell.chars() {
        match c {
            '&' | '%' | '$' | '#' | '_' | '{' | '}' => text.extend(['\\', c]),
            '±' => text += "$\\pm$",
            '→' => text += "$\\to$",
            '−' => text += "$-$",
            '–' => text += "--",
            '\\' => text += "\\textbackslash{}",
            '~' => text += "\\textasciitilde{}",
            '^' => text += "\\textasciicircum{}",
            c => text.push(c),
        }
    }
    // A hyphen before a number is a minus.
    match text.strip_prefix('-') {
        Some(number) if number.starts_with(|c: char| c.is_ascii_digit()) => format!("$-${number}"),
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_escape_what_their_format_reserves() {
        let rows = [
            vec!["method".to_owned(), "R@1".to_owned()],
            vec!["gnsp lr=1e-4, a_b".to_owned(), "-9.1 ± 1.0".to_owned()],
        ];
        let text = figures::csv(&rows);
        assert_eq!(text, "method,R@1\n\"gnsp lr=1e-4, a_b\",-9.1 ± 1.0\n");
        let text = latex(&rows);
        assert!(
            text.contains("gnsp lr=1e-4, a\\_b & $-$9.1 $\\pm$ 1.0 \\\\"),
            "{text}"
        );
        assert!(text.starts_with("\\begin{tabular}{lr}\n\\toprule\nmethod & R@1 \\\\\n\\midrule"));
    }
}
