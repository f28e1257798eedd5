//! What a picture shows, and the many ways to say it.

use super::dice::Dice;
use super::palette::COLOURS;

/// The longest caption, in words.
pub(super) const LONGEST: usize = 16;

/// What a caption can say of a picture.
pub(super) struct Facts {
    /// Before everything else, never left out: `"three"`, `"a piece of"`.
    pub count: &'static str,
    /// In front of the noun.
    pub adjectives: Vec<Word>,
    /// What is shown.
    pub noun: String,
    /// Behind the noun: `"on green"`.
    pub details: Vec<Word>,
    pub article: Article,
}

/// A part of a caption.
pub(super) struct Word {
    pub text: String,
    /// Without it the caption would not say what is shown.
    pub needed: bool,
}

/// What stands before the first word of a noun phrase.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Article {
    None,
    /// "a" or "an".
    A,
    The,
}

/// A part that may be left out; none where there is nothing to say.
pub(super) fn may(text: &str) -> Word {
    Word {
        text: text.to_owned(),
        needed: false,
    }
}

/// A part that is never left out.
pub(super) fn must(text: &str) -> Word {
    Word {
        text: text.to_owned(),
        needed: true,
    }
}

/// Probability that a loose caption keeps a part that it may leave out, and that a sentence of the
/// held-out pairs does.
const KEPT: f32 = 0.6;
const KEPT_IN_SENTENCES: f32 = 0.8;

/// Share of loose captions that name what is shown and nothing else.
const TERSE: f32 = 0.4;

/// Share of loose captions that end with a full stop, as prompts do.
const STOPPED: f32 = 0.2;

/// What captions of pretraining begin with.
const LEADS: [&str; 9] = [
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

/// Captions that say nothing of their picture, as those of the web often do.
const EMPTY: [&str; 6] = [
    "a picture",
    "untitled",
    "my photo",
    "image for sale",
    "click here for more",
    "new",
];

impl Facts {
    /// A caption as on the web: in one of many forms, with some parts left out, and sometimes
    /// saying next to nothing.
    pub fn loose(&self, dice: &mut Dice) -> String {
        let share = if dice.chance(TERSE) { 0.0 } else { KEPT };
        let kept = self.some(share, dice);
        let text = match dice.below(100) {
            0..25 => kept.phrase(),
            25..45 => {
                let lead = dice.pick(&LEADS);
                join([lead, &kept.phrase()])
            }
            45..57 => kept.bare(),
            57..67 => kept.noun_first(),
            67..79 => kept.sentence(),
            79..90 => kept.tags(dice),
            90..97 => kept.vague(dice),
            _ => dice.pick(&EMPTY).to_owned(),
        };
        let stop = if dice.chance(STOPPED) { "." } else { "" };
        short(text) + stop
    }

    /// A noun phrase with all that can be said: the form of the reference pairs.
    pub fn phrase(&self) -> String {
        let body = self.bare();
        short(match self.article {
            Article::None => body,
            Article::A => with_article(&body),
            Article::The => join(["the", &body]),
        })
    }

    /// A sentence that leaves out some of what can be said: the form of the pairs that retrieval is
    /// measured on. None is a phrase.
    pub fn told(&self, dice: &mut Dice) -> String {
        self.some(KEPT_IN_SENTENCES, dice).sentence()
    }

    fn sentence(&self) -> String {
        let details = texts(&self.details);
        if self.adjectives.is_empty() {
            let article = match self.article {
                Article::None => "",
                _ => "the",
            };
            return short(join([
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
        short(join([
            "the",
            count,
            &self.noun,
            is,
            &adjectives.join(" and "),
            &join(details),
        ]))
    }

    /// Without an article.
    fn bare(&self) -> String {
        join([
            self.count,
            &join(texts(&self.adjectives)),
            &self.noun,
            &join(texts(&self.details)),
        ])
    }

    /// The noun, then what it is like.
    fn noun_first(&self) -> String {
        join([
            &self.noun,
            self.count,
            &join(texts(&self.adjectives)),
            &join(texts(&self.details)),
        ])
    }

    /// All words in any order.
    fn tags(&self, dice: &mut Dice) -> String {
        let text = self.bare();
        let mut words: Vec<&str> = text.split(' ').collect();
        for last in (1..words.len()).rev() {
            words.swap(last, dice.below(last + 1));
        }
        join(words)
    }

    /// What it is like, but not what it is.
    fn vague(&self, dice: &mut Dice) -> String {
        let parts: Vec<&str> = texts(&self.adjectives)
            .chain(texts(&self.details))
            .collect();
        if parts.is_empty() {
            return dice.pick(&EMPTY).to_owned();
        }
        join(["something", dice.pick(&parts)])
    }

    /// Whether a part that cannot be left out names a colour.
    pub fn needs_colour(&self) -> bool {
        let mut parts = self.adjectives.iter().chain(&self.details);
        parts.any(|word| word.needed && names_colour(&word.text))
    }

    /// The same without the parts that name colours.
    pub fn colourless(mut self) -> Self {
        for words in [&mut self.adjectives, &mut self.details] {
            words.retain(|word| !names_colour(&word.text));
        }
        self
    }

    /// The same with some parts left out.
    fn some(&self, share: f32, dice: &mut Dice) -> Self {
        let mut keep = |words: &[Word]| -> Vec<Word> {
            let kept = words.iter().filter(|w| w.needed || dice.chance(share));
            kept.map(|w| Word {
                text: w.text.clone(),
                needed: w.needed,
            })
            .collect()
        };
        Self {
            count: self.count,
            adjectives: keep(&self.adjectives),
            noun: self.noun.clone(),
            details: keep(&self.details),
            article: self.article,
        }
    }
}

fn names_colour(text: &str) -> bool {
    let mut words = text.split(' ');
    words.any(|word| COLOURS.iter().any(|(name, _)| *name == word))
}

fn texts(words: &[Word]) -> impl Iterator<Item = &str> {
    words.iter().map(|word| word.text.as_str())
}

/// The parts that are not empty, with spaces between.
pub(super) fn join<'a>(parts: impl IntoIterator<Item = &'a str>) -> String {
    let parts: Vec<&str> = parts.into_iter().filter(|part| !part.is_empty()).collect();
    parts.join(" ")
}

pub(super) fn with_article(phrase: &str) -> String {
    let article = if phrase.starts_with(['a', 'e', 'i', 'o', 'u']) {
        "an"
    } else {
        "a"
    };
    format!("{article} {phrase}")
}

/// The first words, as many as a caption may have.
fn short(text: String) -> String {
    match text.match_indices(' ').nth(LONGEST - 1) {
        Some((end, _)) => text[..end].to_owned(),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> Facts {
        Facts {
            count: "",
            adjectives: vec![may("small"), must("red")],
            noun: "fruit".to_owned(),
            details: vec![may("on white")],
            article: Article::A,
        }
    }

    #[test]
    fn full_captions_say_everything() {
        let facts = facts();
        assert_eq!(facts.phrase(), "a small red fruit on white");
        assert_eq!(facts.sentence(), "the fruit is small and red on white");
        let three = Facts {
            count: "three",
            adjectives: vec![may("blue")],
            noun: "stars".to_owned(),
            details: Vec::new(),
            article: Article::None,
        };
        assert_eq!(three.phrase(), "three blue stars");
        assert_eq!(three.sentence(), "the three stars are blue");
        let letter = Facts {
            count: "",
            adjectives: Vec::new(),
            noun: "letter a".to_owned(),
            details: vec![may("in red")],
            article: Article::The,
        };
        assert_eq!(letter.phrase(), "the letter a in red");
        assert_eq!(letter.sentence(), "you can see the letter a in red");
    }

    #[test]
    fn loose_captions_keep_what_is_needed_unless_they_are_vague() {
        let mut forms = std::collections::BTreeSet::new();
        let mut silent = 0;
        for index in 0..2000 {
            let text = facts().loose(&mut Dice::new(1, 2, 3, index));
            let says = text.contains("red") && text.contains("fruit");
            silent += usize::from(!says);
            forms.insert(text);
        }
        assert!(forms.len() > 60, "{}", forms.len());
        assert!((140..320).contains(&silent), "{silent}");
    }

    #[test]
    fn no_caption_is_too_long() {
        let long = vec!["word"; 40].join(" ");
        assert_eq!(short(long).split(' ').count(), LONGEST);
        assert_eq!(short("a b".to_owned()), "a b");
    }
}
