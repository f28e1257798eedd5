//! The frame of a page: one HTML file that refers to nothing outside itself.

use maud::{DOCTYPE, Markup, PreEscaped, html};

/// The style sheet of every page: it follows the reader's colour scheme, and prints.
const STYLE: &str = include_str!("style.css");

/// A page of `sections` with a title for the window. `style` is added to the style sheet.
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
