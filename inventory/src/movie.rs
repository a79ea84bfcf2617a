//! A movie and its rules. A [`NewMovie`] or [`MovieChanges`] that exists keeps them.

use std::borrow::Cow;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

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
    /// The movie that it is once it is stored.
    pub(crate) fn with_id(self, id: i64) -> Movie {
        let Self { title, description } = self;
        Movie {
            id,
            title,
            description,
        }
    }
}

/// What to change of a movie; at least one field.
pub(crate) struct MovieChanges {
    pub(crate) title: Option<String>,
    pub(crate) description: Option<String>,
}

/// What a client sent, of whatever kind. None is a field that was left out; `null` is none.
#[derive(Deserialize)]
pub(crate) struct MovieFields {
    #[serde(default, deserialize_with = "present")]
    title: Option<Value>,
    #[serde(default, deserialize_with = "present")]
    description: Option<Value>,
}

fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(deserializer).map(Some)
}

/// Which rule was broken, for the client to read.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct RuleBroken(pub(crate) Cow<'static, str>);

impl TryFrom<MovieFields> for NewMovie {
    type Error = RuleBroken;

    fn try_from(fields: MovieFields) -> Result<Self, RuleBroken> {
        let required = |field: &str| RuleBroken(format!("{field} is required").into());
        Ok(Self {
            title: title(fields.title.ok_or_else(|| required("title"))?)?,
            description: description(fields.description.ok_or_else(|| required("description"))?)?,
        })
    }
}

impl TryFrom<MovieFields> for MovieChanges {
    type Error = RuleBroken;

    fn try_from(fields: MovieFields) -> Result<Self, RuleBroken> {
        if fields.title.is_none() && fields.description.is_none() {
            return Err(RuleBroken("title or description is required".into()));
        }
        Ok(Self {
            title: fields.title.map(title).transpose()?,
            description: fields.description.map(description).transpose()?,
        })
    }
}

fn title(value: Value) -> Result<String, RuleBroken> {
    let title = text("title", value)?;
    // A character has at least one byte, so most titles need not be counted.
    if title.len() > TITLE_CHARS_MAX && title.chars().count() > TITLE_CHARS_MAX {
        return Err(RuleBroken(
            format!("title may have at most {TITLE_CHARS_MAX} characters").into(),
        ));
    }
    Ok(title)
}

fn description(value: Value) -> Result<String, RuleBroken> {
    text("description", value)
}

fn text(field: &str, value: Value) -> Result<String, RuleBroken> {
    match value {
        Value::String(text) if text.trim().is_empty() => {
            Err(RuleBroken(format!("{field} must not be blank").into()))
        }
        // PostgreSQL has no NUL in its text.
        Value::String(text) if text.contains('\0') => {
            Err(RuleBroken(format!("{field} must not contain NUL").into()))
        }
        Value::String(text) => Ok(text),
        _ => Err(RuleBroken(format!("{field} must be a string").into())),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn create(fields: Value) -> Result<(String, String), String> {
        let fields: MovieFields = serde_json::from_value(fields).unwrap();
        NewMovie::try_from(fields)
            .map(|movie| (movie.title, movie.description))
            .map_err(|broken| broken.0.into_owned())
    }

    fn change(fields: Value) -> Result<(Option<String>, Option<String>), String> {
        let fields: MovieFields = serde_json::from_value(fields).unwrap();
        MovieChanges::try_from(fields)
            .map(|changes| (changes.title, changes.description))
            .map_err(|broken| broken.0.into_owned())
    }

    #[test]
    fn a_new_movie_needs_both_fields() {
        assert!(create(json!({ "title": "Alien", "description": "In space" })).is_ok());
        assert_eq!(
            create(json!({ "title": "Alien" })),
            Err("description is required".to_owned())
        );
        assert_eq!(
            create(json!({ "description": "x" })),
            Err("title is required".to_owned())
        );
    }

    #[test]
    fn a_change_needs_one_field_at_least() {
        assert_eq!(
            change(json!({ "title": "Aliens" })),
            Ok((Some("Aliens".to_owned()), None))
        );
        assert_eq!(
            change(json!({ "id": 7 })),
            Err("title or description is required".to_owned())
        );
    }

    #[test]
    fn a_field_that_is_no_text_is_named() {
        for value in [json!(null), json!(5), json!(["Alien"]), json!(true)] {
            let broken = change(json!({ "title": value }));
            assert_eq!(broken, Err("title must be a string".to_owned()));
        }
        for (value, rule) in [
            ("  \t\u{a0}", "be blank"),
            ("", "be blank"),
            ("a\0b", "contain NUL"),
        ] {
            let broken = create(json!({ "title": "Alien", "description": value }));
            assert_eq!(broken, Err(format!("description must not {rule}")));
        }
    }

    #[test]
    fn a_title_has_255_characters_at_most_whatever_their_bytes() {
        let titled =
            |characters| create(json!({ "title": "ü".repeat(characters), "description": "x" }));

        assert!(titled(255).is_ok());
        assert_eq!(
            titled(256),
            Err("title may have at most 255 characters".to_owned())
        );
    }
}
