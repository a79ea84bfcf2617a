//! A movie and its rules. Every [`NewMovie`] and every [`MovieChanges`] follows them.

use std::borrow::Cow;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

/// The most characters that a title may have.
const TITLE_CHARS_MAX: usize = 255;

/// A movie as it is stored.
#[derive(Debug, Serialize)]
pub(crate) struct Movie {
    pub(crate) id: i64,
    pub(crate) title: String,
    pub(crate) description: String,
}

/// A movie to be created.
pub(crate) struct NewMovie {
    pub(crate) title: String,
    pub(crate) description: String,
}

impl NewMovie {
    /// The movie as it is stored, with its id.
    pub(crate) fn with_id(self, id: i64) -> Movie {
        let Self { title, description } = self;
        Movie {
            id,
            title,
            description,
        }
    }
}

/// Changes of a movie: at least one field.
pub(crate) struct MovieChanges {
    pub(crate) title: Option<String>,
    pub(crate) description: Option<String>,
}

/// The fields of a body, each as the client wrote it, so that a value of the wrong type takes no memory, however
/// deep it is nested. A field that was left out is None.
#[derive(Deserialize)]
pub(crate) struct MovieFields<'a> {
    #[serde(borrow, default, deserialize_with = "present")]
    title: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    description: Option<&'a RawValue>,
}

/// Reads a field that was not left out; it may be `null`.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'de RawValue>, D::Error> {
    Deserialize::deserialize(deserializer).map(Some)
}

/// The rule that was broken, as a text for the client.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct RuleViolation(pub(crate) Cow<'static, str>);

impl TryFrom<MovieFields<'_>> for NewMovie {
    type Error = RuleViolation;

    fn try_from(fields: MovieFields<'_>) -> Result<Self, RuleViolation> {
        let required = |field: &str| RuleViolation(format!("{field} is required").into());
        Ok(Self {
            title: title(fields.title.ok_or_else(|| required("title"))?)?,
            description: description(fields.description.ok_or_else(|| required("description"))?)?,
        })
    }
}

impl TryFrom<MovieFields<'_>> for MovieChanges {
    type Error = RuleViolation;

    fn try_from(fields: MovieFields<'_>) -> Result<Self, RuleViolation> {
        if fields.title.is_none() && fields.description.is_none() {
            return Err(RuleViolation("title or description is required".into()));
        }
        Ok(Self {
            title: fields.title.map(title).transpose()?,
            description: fields.description.map(description).transpose()?,
        })
    }
}

fn title(value: &RawValue) -> Result<String, RuleViolation> {
    let title = text("title", value)?;
    // A character has at least one byte, so the characters of most titles need not be counted.
    if title.len() > TITLE_CHARS_MAX && title.chars().count() > TITLE_CHARS_MAX {
        return Err(RuleViolation(
            format!("title may have at most {TITLE_CHARS_MAX} characters").into(),
        ));
    }
    Ok(title)
}

fn description(value: &RawValue) -> Result<String, RuleViolation> {
    text("description", value)
}

fn text(field: &str, value: &RawValue) -> Result<String, RuleViolation> {
    let broken = |rule: &str| RuleViolation(format!("{field} {rule}").into());
    let json = value.get();
    if !json.starts_with('"') {
        return Err(broken("must be a string"));
    }
    // Half of a surrogate pair is valid in JSON, but is no character.
    let text: String =
        serde_json::from_str(json).map_err(|_| broken("is not a well-formed string"))?;
    if text.trim().is_empty() {
        Err(broken("must not be blank"))
    } else if text.contains('\0') {
        // PostgreSQL cannot store NUL in text.
        Err(broken("must not contain NUL"))
    } else {
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn create(fields: &Value) -> Result<(String, String), String> {
        let fields = fields.to_string();
        let fields: MovieFields<'_> = serde_json::from_str(&fields).unwrap();
        NewMovie::try_from(fields)
            .map(|movie| (movie.title, movie.description))
            .map_err(|broken| broken.0.into_owned())
    }

    fn change(fields: &Value) -> Result<(Option<String>, Option<String>), String> {
        change_as_written(&fields.to_string())
    }

    fn change_as_written(fields: &str) -> Result<(Option<String>, Option<String>), String> {
        let fields: MovieFields<'_> = serde_json::from_str(fields).unwrap();
        MovieChanges::try_from(fields)
            .map(|changes| (changes.title, changes.description))
            .map_err(|broken| broken.0.into_owned())
    }

    #[test]
    fn a_new_movie_needs_both_fields() {
        assert!(create(&json!({ "title": "Alien", "description": "In space" })).is_ok());
        assert_eq!(
            create(&json!({ "title": "Alien" })),
            Err("description is required".to_owned())
        );
        assert_eq!(
            create(&json!({ "description": "x" })),
            Err("title is required".to_owned())
        );
    }

    #[test]
    fn a_change_needs_one_field_at_least() {
        assert_eq!(
            change(&json!({ "title": "Aliens" })),
            Ok((Some("Aliens".to_owned()), None))
        );
        assert_eq!(
            change(&json!({ "id": 7 })),
            Err("title or description is required".to_owned())
        );
    }

    #[test]
    fn a_field_that_is_no_text_is_named() {
        for value in [
            json!(null),
            json!(5),
            json!(["Alien"]),
            json!(true),
            json!({ "a": 1 }),
        ] {
            let broken = change(&json!({ "title": value }));
            assert_eq!(broken, Err("title must be a string".to_owned()));
        }
        for (value, rule) in [
            ("  \t\u{a0}", "be blank"),
            ("", "be blank"),
            ("a\0b", "contain NUL"),
        ] {
            let broken = create(&json!({ "title": "Alien", "description": value }));
            assert_eq!(broken, Err(format!("description must not {rule}")));
        }
    }

    #[test]
    fn a_string_that_is_no_text_is_named() {
        let broken = change_as_written(r#"{"description":"\ud83c"}"#);

        assert_eq!(
            broken,
            Err("description is not a well-formed string".to_owned())
        );
        assert_eq!(
            change_as_written(r#"{"title":"\ud83c\udfac"}"#),
            Ok((Some("🎬".to_owned()), None))
        );
    }

    #[test]
    fn a_title_has_255_characters_at_most_whatever_their_bytes() {
        let titled =
            |characters| create(&json!({ "title": "ü".repeat(characters), "description": "x" }));

        assert!(titled(255).is_ok());
        assert_eq!(
            titled(256),
            Err("title may have at most 255 characters".to_owned())
        );
    }
}
