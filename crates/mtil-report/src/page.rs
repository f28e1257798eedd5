//! HTML layout of a self-contained page.

use maud::{DOCTYPE, Markup, PreEscaped, html};

/// Style sheet of every page, for light and dark colour schemes and for print.
const STYLE: &str = include_str!("style.css");

/// Returns a page with the given title and sections. `style` is appended to the style sheet. The
/// page needs no other file.
pub fn document(title: &str, style: &str, sections: &Markup) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (title) }
                style { (PreEscaped(STYLE)) (PreEscaped(style)) }
            }
            body { main { (sections) } }
        }
    }
}
