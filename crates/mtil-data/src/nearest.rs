//! Suggestions for misspelt names ("did you mean").

/// Returns the candidate with the smallest edit distance to `word`, ignoring case. Two neighbouring
/// letters in the wrong order are one edit.
///
/// `None` if every candidate differs by more than a third of the word's characters (at least one
/// edit is always allowed).
///
/// ```
/// use mtil_data::nearest;
///
/// let known = ["zscl", "finetune"];
/// assert_eq!(nearest("zcl", known).as_deref(), Some("zscl"));
/// assert_eq!(nearest("resnet", known), None);
/// ```
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let word = word.to_lowercase();
    let allowed = (word.chars().count() / 3).max(1);
    candidates
        .into_iter()
        .map(|c| (strsim::osa_distance(&word, &c.to_lowercase()), c))
        .filter(|(distance, _)| *distance <= allowed)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, c)| c.to_owned())
}

/// Returns the proposal of a similar name that ends a message, or nothing.
///
/// ```
/// use mtil_data::did_you_mean;
///
/// assert_eq!(did_you_mean(Some("gnsp")), " (did you mean `gnsp`?)");
/// assert_eq!(did_you_mean(None), "");
/// ```
pub fn did_you_mean(near: Option<&str>) -> String {
    near.map_or_else(String::new, |near| format!(" (did you mean `{near}`?)"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_finds_typos_and_nothing_else() {
        let known = ["templates", "classes", "path"];
        assert_eq!(nearest("templats", known).as_deref(), Some("templates"));
        assert_eq!(nearest("Classes", known).as_deref(), Some("classes"));
        assert_eq!(nearest("optimizer", known), None);
        assert_eq!(nearest("gnps", ["gnsp", "gift"]).as_deref(), Some("gnsp"));
    }
}
