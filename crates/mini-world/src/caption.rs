//! Captions of images: the described content and its phrasings.

use super::palette::COLOURS;
use super::rng::Rng;

/// Maximum length of a caption in words.
pub(super) const MAX_WORDS: usize = 16;

/// Content of an image, as the parts of a caption.
pub(super) struct Description {
    /// Quantity, never omitted: `"three"`, `"a piece of"`.
    pub count: &'static str,
    /// Adjectives before the noun.
    pub adjectives: Vec<Part>,
    /// The depicted object.
    pub noun: String,
    /// Phrases after the noun: `"on green"`.
    pub details: Vec<Part>,
    pub article: Article,
}

/// Part of a caption.
pub(super) struct Part {
    pub text: String,
    /// Never omitted: without it the caption would not identify the class.
    pub required: bool,
}

/// Article of a noun phrase.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Article {
    None,
    /// "a" or "an".
    A,
    The,
}

/// Returns a part that may be omitted.
pub(super) fn optional(text: &str) -> Part {
    Part {
        text: text.to_owned(),
        required: false,
    }
}

/// Returns a part that is never omitted.
pub(super) fn required(text: &str) -> Part {
    Part {
        text: text.to_owned(),
        required: true,
    }
}

/// Probability of keeping an optional part in a web-style caption, and in a sentence of the
/// held-out pairs.
const KEEP: f32 = 0.6;
const KEEP_IN_SENTENCES: f32 = 0.8;

/// Share of web-style captions without any optional part.
const TERSE: f32 = 0.4;

/// Share of web-style captions that end with a full stop, as prompts do.
const FULL_STOP: f32 = 0.2;

/// Prefixes of pretraining captions.
const PREFIXES: [&str; 9] = [
    "a picture of",
    "there is",
    "an image of",
    "here is",
    "this is",
    "picture showing",
    "my photo of",
    "drawing",
    "photo",
];

/// Uninformative captions, as they are frequent in web data.
const UNINFORMATIVE: [&str; 6] = [
    "a picture",
    "untitled",
    "my photo",
    "image for sale",
    "click here for more",
    "new",
];

impl Description {
    /// Returns a caption in the style of web data: in one of many forms, with parts omitted, and
    /// sometimes uninformative.
    pub fn web_caption(&self, rng: &mut Rng) -> String {
        let keep = if rng.chance(TERSE) { 0.0 } else { KEEP };
        let kept = self.drop_parts(keep, rng);
        let text = match rng.below(100) {
            0..25 => kept.phrase(),
            25..45 => {
                let prefix = rng.pick(&PREFIXES);
                join([prefix, &kept.phrase()])
            }
            45..57 => kept.bare(),
            57..67 => kept.noun_first(),
            67..79 => kept.sentence(),
            79..90 => kept.tags(rng),
            90..97 => kept.vague(rng),
            _ => rng.pick(&UNINFORMATIVE).to_owned(),
        };
        let stop = if rng.chance(FULL_STOP) { "." } else { "" };
        truncate(text) + stop
    }

    /// Returns a noun phrase with all parts: the form of the reference pairs.
    pub fn phrase(&self) -> String {
        let body = self.bare();
        truncate(match self.article {
            Article::None => body,
            Article::A => with_article(&body),
            Article::The => join(["the", &body]),
        })
    }

    /// Returns a sentence with some optional parts omitted: the form of the held-out pairs. It
    /// never equals a noun phrase of the reference pairs.
    pub fn partial_sentence(&self, rng: &mut Rng) -> String {
        self.drop_parts(KEEP_IN_SENTENCES, rng).sentence()
    }

    fn sentence(&self) -> String {
        let details = texts(&self.details);
        if self.adjectives.is_empty() {
            let article = match self.article {
                Article::None => "",
                _ => "the",
            };
            return truncate(join([
                "you can see",
                article,
                self.count,
                &self.noun,
                &join(details),
            ]));
        }
        let is = match self.count {
            "" | "one" | "a piece of" => "is",
            _ => "are",
        };
        let count = self.count.strip_prefix("a ").unwrap_or(self.count);
        let adjectives: Vec<&str> = texts(&self.adjectives).collect();
        truncate(join([
            "the",
            count,
            &self.noun,
            is,
            &adjectives.join(" and "),
            &join(details),
        ]))
    }

    /// Returns the noun phrase without an article.
    fn bare(&self) -> String {
        join([
            self.count,
            &join(texts(&self.adjectives)),
            &self.noun,
            &join(texts(&self.details)),
        ])
    }

    /// Returns the noun followed by all other parts.
    fn noun_first(&self) -> String {
        join([
            &self.noun,
            self.count,
            &join(texts(&self.adjectives)),
            &join(texts(&self.details)),
        ])
    }

    /// Returns all words in random order.
    fn tags(&self, rng: &mut Rng) -> String {
        let text = self.bare();
        let mut words: Vec<&str> = text.split(' ').collect();
        for last in (1..words.len()).rev() {
            words.swap(last, rng.below(last + 1));
        }
        join(words)
    }

    /// Returns an adjective or a detail, without the noun.
    fn vague(&self, rng: &mut Rng) -> String {
        let parts: Vec<&str> = texts(&self.adjectives)
            .chain(texts(&self.details))
            .collect();
        if parts.is_empty() {
            return rng.pick(&UNINFORMATIVE).to_owned();
        }
        join(["something", rng.pick(&parts)])
    }

    /// Returns `true` if a required part names a colour.
    pub fn requires_colour(&self) -> bool {
        let mut parts = self.adjectives.iter().chain(&self.details);
        parts.any(|part| part.required && names_colour(&part.text))
    }

    /// Removes the parts that name colours.
    pub fn without_colours(mut self) -> Self {
        for parts in [&mut self.adjectives, &mut self.details] {
            parts.retain(|part| !names_colour(&part.text));
        }
        self
    }

    /// Returns a copy that keeps each optional part with probability `keep`.
    fn drop_parts(&self, keep: f32, rng: &mut Rng) -> Self {
        let mut filter = |parts: &[Part]| -> Vec<Part> {
            let kept = parts.iter().filter(|p| p.required || rng.chance(keep));
            kept.map(|p| Part {
                text: p.text.clone(),
                required: p.required,
            })
            .collect()
        };
        Self {
            count: self.count,
            adjectives: filter(&self.adjectives),
            noun: self.noun.clone(),
            details: filter(&self.details),
            article: self.article,
        }
    }
}

fn names_colour(text: &str) -> bool {
    let mut words = text.split(' ');
    words.any(|word| COLOURS.iter().any(|(name, _)| *name == word))
}

fn texts(parts: &[Part]) -> impl Iterator<Item = &str> {
    parts.iter().map(|part| part.text.as_str())
}

/// Joins the non-empty parts by spaces.
pub(super) fn join<'a>(parts: impl IntoIterator<Item = &'a str>) -> String {
    let parts: Vec<&str> = parts.into_iter().filter(|part| !part.is_empty()).collect();
    parts.join(" ")
}

/// Prepends the indefinite article.
pub(super) fn with_article(phrase: &str) -> String {
    let article = if phrase.starts_with(['a', 'e', 'i', 'o', 'u']) {
        "an"
    } else {
        "a"
    };
    format!("{article} {phrase}")
}

/// Truncates a caption to [`MAX_WORDS`].
fn truncate(text: String) -> String {
    match text.match_indices(' ').nth(MAX_WORDS - 1) {
        Some((end, _)) => text[..end].to_owned(),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn description() -> Description {
        Description {
            count: "",
            adjectives: vec![optional("small"), required("red")],
            noun: "fruit".to_owned(),
            details: vec![optional("on white")],
            article: Article::A,
        }
    }

    #[test]
    fn full_captions_contain_all_parts() {
        let description = description();
        assert_eq!(description.phrase(), "a small red fruit on white");
        assert_eq!(
            description.sentence(),
            "the fruit is small and red on white"
        );
        let three = Description {
            count: "three",
            adjectives: vec![optional("blue")],
            noun: "stars".to_owned(),
            details: Vec::new(),
            article: Article::None,
        };
        assert_eq!(three.phrase(), "three blue stars");
        assert_eq!(three.sentence(), "the three stars are blue");
        let letter = Description {
            count: "",
            adjectives: Vec::new(),
            noun: "letter a".to_owned(),
            details: vec![optional("in red")],
            article: Article::The,
        };
        assert_eq!(letter.phrase(), "the letter a in red");
        assert_eq!(letter.sentence(), "you can see the letter a in red");
    }

    #[test]
    fn web_captions_keep_required_parts_unless_vague() {
        let mut forms = std::collections::BTreeSet::new();
        let mut uninformative = 0;
        for index in 0..2000 {
            let text = description().web_caption(&mut Rng::new(1, 2, 3, index));
            let says = text.contains("red") && text.contains("fruit");
            uninformative += usize::from(!says);
            forms.insert(text);
        }
        assert!(forms.len() > 60, "{}", forms.len());
        assert!((140..320).contains(&uninformative), "{uninformative}");
    }

    #[test]
    fn captions_are_truncated() {
        let long = vec!["word"; 40].join(" ");
        assert_eq!(truncate(long).split(' ').count(), MAX_WORDS);
        assert_eq!(truncate("a b".to_owned()), "a b");
    }
}
